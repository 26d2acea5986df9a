"""Splits a dataset by groups and writes the augmented copies that train.py trains on.

    python augment.py                                         Carvana, unpacked into dataset/
    python augment.py --img-dir A --mask-dir B --val-images 0.1

The last VAL_IMAGES images by name are held out: they go to augmented_test_images/ and _masks/ as they
are. Each other one goes to augmented_train_images/ and _masks/ four times: as it is, mirrored, upside
down, and distorted on a grid (the mask in the same way). Masks keep their values, palette and depth, so
they mean what they meant, and images keep their 16 bits or floats. Views of one car never stand on both sides.
The work runs on all cores, a run that was stopped goes on where it was, and every run over the same
sources ends with the same bytes. Look at augmented_preview.png before training.
"""

import hashlib
import json
import os
import re
import shlex
import shutil
import time
import unicodedata
from collections import Counter
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # or the import waits for the network

import albumentations as A
import cv2
import numpy as np
from PIL import Image
from tqdm import tqdm

import dataset
from parts import pictures
from parts.errors import UnusableFile, UserError, printable, run
from parts.files import one_at_a_time, parallel_map, remove_leftovers, stamp, write_text, write_whole
from parts.images import choose_value_range, decode, depth_of, image_size, pixels_of, read_image
from parts.mask_rules import decide_mask_rule, refuse_united_classes
from parts.masks import count_classes, observe_mask, read_mask
from parts.names import COPIES, HOW_TO_GET_CARVANA, Pair, group_of, list_pictures, pair_files
from parts.options import optional, settings_of, whole
from parts.spec import CARVANA_GROUP, DataSpec

IMG_DIR = "dataset/train"  # the images; Carvana's train.zip unpacks into this
MASK_DIR = "dataset/train_masks"  # their masks; Carvana's train_masks.zip
OUTPUT_DIR = "dataset"  # gets augmented_{train,test}_{images,masks}/ and augmented_preview.png
VAL_IMAGES = 500  # the last so many by name are for validation; below 1 a fraction, such as 0.1
JPEG_QUALITY = 95  # of the copies of JPEG images; originals are copied byte for byte, PNG stays lossless
NUM_WORKERS: int | None = None  # processes; None: one a core
SEED = 0  # of the grid distortions; each image has its own draw, by its name

# What the constants may be, where their values alone do not tell. GROUP, MASK_NAME and the like stand in dataset.py.
_RULES = dict(JPEG_QUALITY=whole(1, 100), NUM_WORKERS=optional(whole(1)), SEED=whole(0))

_PREVIEW = "augmented_preview.png"
_TRAIN, _TEST = "augmented_train", "augmented_test"
_FOLDERS = [f"{side}_{kind}" for side in (_TRAIN, _TEST) for kind in ("images", "masks")]
_JPEG_SUFFIXES = (".jpg", ".jpeg", ".jfif")


def augmentation(image, mask, seed=0, opened=None, name=None):
    """Two files -> ([4 images (H, W, 3), or (H, W) of more than 8 bits], [4 masks (H, W) or (H, W, C)]).

    In the article's order: original, horizontal flip, vertical flip, grid distortion, whose draw is that of
    (seed, `name`, by default the image's). All have their files' own values. Of several mask files, in a tuple, each
    of the 4 is a tuple of as many masks. `opened`: what `_open` gives for the files. UnusableFile.
    """
    files = mask if isinstance(mask, tuple) else (mask,)
    _, pixels, masks = opened or _open(Pair("", image, files[0], more=files[1:]))
    insides = [np.asarray(picture) for _, picture in masks]
    if not (min(pixels.shape[:2]) >= 5 and max(pixels.shape[:2]) < 32767):
        size = "×".join(map(str, pixels.shape[:2]))
        what = f"is {size}, and grid distortion takes sides of 5 to 32,766 pixels"
        raise UnusableFile(image, what, "Cut it into tiles, or remove it and its mask")
    # Bilinear; of masks the nearest pixel, so that no value is invented, nor 0 for the last row and column.
    grid = A.GridDistortion(p=1.0, border_mode=cv2.BORDER_REPLICATE)
    name = name or unicodedata.normalize("NFC", Path(image).stem)
    key = f"{seed}/{name}".encode("utf-8", "surrogateescape")
    grid.set_random_seed(int.from_bytes(hashlib.sha256(key).digest()[:4], "big"))
    images = [pixels, pixels[:, ::-1], pixels[::-1], grid(image=pixels)["image"]]
    copies = []
    for inside in insides:
        wide = {np.dtype(bool): np.uint8, np.dtype(np.int32): np.float64}.get(inside.dtype, inside.dtype)  # OpenCV's
        bent = grid.apply_to_mask(inside.astype(wide), **grid.params).astype(inside.dtype)  # by the image's draw
        copies.append([inside, inside[:, ::-1], inside[::-1], bent])
    return images, list(zip(*copies)) if isinstance(mask, tuple) else copies[0]


def _open(pair):
    """(the image as reading.Decoded, its pixels, [(reading.Decoded, a PIL image of its own values) of each mask])."""
    decoded, masks = decode(pair.image, page=pair.image_page), []
    pixels = pixels_of(decoded, pair.image)
    if pixels.dtype != np.uint8 and decoded.picture.mode[0] in "IF":
        pixels = pixels[..., 0]  # greys stay grey
    for mask, page in pair.sources[1:]:
        opened = decode(mask, page=page)
        picture = opened.picture
        if picture.mode.startswith("I;16"):
            picture = Image.fromarray(np.asarray(picture).astype(np.uint16))  # of whatever byte order
        elif picture.mode not in ("1", "L", "P", "I", "F", "RGB", "RGBA", "LA"):
            picture = picture.convert("RGBA" if "a" in picture.mode.lower() else "RGB")
        if pixels.shape[1::-1] != picture.size:
            sizes = [f"{height}×{width}" for height, width in (picture.size[::-1], pixels.shape[:2])]
            what = f"is {sizes[0]} (height × width), but its image {printable(pair.image)} {sizes[1]}"
            raise UnusableFile(mask, what, "Export one of them again, or remove both")
        masks.append((opened, picture))
    return decoded, pixels, masks


def split(pairs, val_images=VAL_IMAGES, group=CARVANA_GROUP):
    """(training, validation, left out): the last `val_images` of the sorted pairs are validation.

    A fraction counts of all images. What shares its group with a validation image is left out; the pages of a file are
    of one group, unless there is no other file. UserError: numbers or a pattern that leave nothing on one side.
    """
    pages = Counter(pair.image for pair in pairs)
    names = [it.name if pages[it.image] in (1, len(pairs)) else it.name.rpartition("_")[0] for it in pairs]
    groups = {pair: group_of(name, group) for pair, name in zip(pairs, names)}
    number = val_images if isinstance(val_images, int) else max(1, round(val_images * len(pairs)))
    if len(pairs) < 2:
        raise UserError("There is one image. Add others: some are trained on, and others are held out.")
    if val_images <= 0 or isinstance(val_images, float) and val_images >= 1 or number >= len(pairs):
        raise UserError(
            f"VAL_IMAGES is {val_images}, of {len(pairs)} images. Give a number from 1 to {len(pairs) - 1}, or a "
            "fraction between 0 and 1, such as --val-images 0.1."
        )
    rest, val = pairs[:-number], pairs[-number:]
    held_out = {groups[pair] for pair in val}
    train = [pair for pair in rest if groups[pair] not in held_out]
    if not train:
        raise UserError(
            f"Nothing is left to train on: all {len(rest)} other images share a group with the {number} validation "
            f"images ({', '.join(sorted(held_out)[:3])}). Lower VAL_IMAGES (--val-images), or change GROUP (--group)."
        )
    return train, val, [pair for pair in rest if groups[pair] in held_out]


@dataclass(frozen=True)
class Summary:
    """What make_augmented did; sources are images as they came, `written` counts files of images."""

    train: int
    val: int
    left_out: int
    train_groups: int
    val_groups: int
    written: int
    total: int
    seconds: float
    preview: Path
    warnings: list  # classes that one side of the split lacks


def make_augmented(
    img_dir: str | Path,
    mask_dir: str | Path,
    output_dir: str | Path,
    spec: DataSpec = DataSpec(),
    *,
    val_images: int | float = VAL_IMAGES,
    jpeg_quality: int = JPEG_QUALITY,
    num_workers: int | None = NUM_WORKERS,
    seed: int = SEED,
) -> Summary:
    """Writes what this file's docstring says below `output_dir`, as far as it is not there yet; a Summary.

    UserError: unusable files (all of them named), a split that leaves nothing, another's files in the way, constants
    that cannot be.
    """
    mask_foreground, mask_ignore, classes = spec.foreground, spec.ignore, spec.classes
    mask_name, group, image_range = spec.mask_name, spec.group, spec.image_range
    _check_folders(img_dir, mask_dir, output_dir)
    train, val, left_out = split(pair_files(img_dir, mask_dir, spec, apart=[output_dir]), val_images, group)
    items = _plan(train, val, mask_name)
    mask_rule, warnings = None, []
    if classes is not None:
        refuse_united_classes(train + val)
        mask_rule, warnings = _tell_lacking(train, val, spec, num_workers)
    output_dir = Path(output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    waiting = f"Another augment.py is at work in {printable(output_dir)}; waiting for it ..."
    with one_at_a_time(output_dir / ".augmented.lock", waiting):
        settings = {"JPEG_QUALITY": jpeg_quality, "SEED": seed}
        if mask_name is not None:
            settings["MASK_NAME"] = mask_name
        missing = _prepare(output_dir, items, settings)
        start = time.perf_counter()
        _make(missing, _Maker(output_dir, jpeg_quality, seed), num_workers, items)
        seconds = time.perf_counter() - start
        sample = _sample(items[: len(train)])
        mask_rule = mask_rule or _shown_rule(sample, mask_foreground, mask_ignore)
        _draw_preview(output_dir, sample, len(train), mask_rule, _span(sample, image_range))
    return Summary(
        train=len(train),
        val=len(val),
        left_out=len(left_out),
        train_groups=len({group_of(pair.name, group) for pair in train}),
        val_groups=len({group_of(pair.name, group) for pair in val}),
        written=_images(missing),
        total=_images(items),
        seconds=seconds,
        preview=output_dir / _PREVIEW,
        warnings=warnings,
    )


def _check_folders(img_dir, mask_dir, output_dir):
    for folder in (img_dir, mask_dir):
        folder = Path(folder)
        if not folder.exists() or folder.is_dir() and not any(folder.iterdir()):
            state = "is empty" if folder.exists() else "there is no such folder"
            raise UserError(f"{printable(folder)}: {state}.\n{HOW_TO_GET_CARVANA}")
        if folder.resolve() in [(Path(output_dir) / name).resolve() for name in _FOLDERS]:
            raise UserError(f"{printable(folder)}: augment.py writes there itself. Give the folder of the originals.")
        if folder.resolve() == Path(output_dir).resolve():
            raise UserError(
                f"{printable(folder)}: {_PREVIEW} would be taken for one of the images there. Give another OUTPUT_DIR "
                "(--output-dir)."
            )


# ---- the files


@dataclass(frozen=True)
class Item:
    """A pair and the files to make of it, below the output folder; of each of its masks as many as of its image."""

    pair: Pair
    images: list
    masks: list  # of lists

    @property
    def files(self):
        return [*self.images, *(file for files in self.masks for file in files)]


def _plan(train, val, mask_name):
    """The Items of all pairs; UserError where two of them would write one file."""
    items, taken = [], {}
    for side, pairs in ((_TRAIN, train), (_TEST, val)):
        for pair in pairs:
            stems = [pair.name] + [f"{pair.name}_{copy}" for copy in COPIES if side == _TRAIN]
            suffix = _suffix(pair)
            images = [f"{side}_images/{stem}{suffix}" for stem in stems]
            masks = [
                [f"{side}_masks/{_mask_stem(pair, mask, stem, mask_name)}{_mask_suffix(mask)}" for stem in stems]
                for mask, _ in pair.sources[1:]
            ]
            items.append(Item(pair, images, masks))
            # Images by their stems, which pair them; Windows and macOS ignore case.
            names = [(pair.image, f"{side}_images/{stem}") for stem in stems]
            names += [(mask, file) for (mask, _), files in zip(pair.sources[1:], masks) for file in files]
            for source, name in names:
                other = taken.setdefault(name.lower(), (source, pair.name))
                if other != (source, pair.name):
                    raise UserError(
                        f"{printable(other[0])} and {printable(source)} would both become {printable(name)}. "
                        "Rename one of them, or remove it if it is a copy that augment.py made."
                    )
    return items


def _suffix(pair):
    """Of the files of an image: .jpg and the like, .tif where its pixels have 32 bits, else .png."""
    suffix = pair.image.suffix
    if suffix.lower() in _JPEG_SUFFIXES:
        return suffix
    if suffix.lower() in (".tif", ".tiff"):
        with suppress(Exception), Image.open(pair.image) as picture:  # what is wrong with it the maker says
            picture.seek(pair.image_page)
            if picture.mode in ("I", "F"):
                return ".tif"
    return ".png"


def _mask_suffix(mask):
    return ".tif" if mask.suffix.lower() in (".tif", ".tiff") else ".png"  # TIFF may have 32 bits


def _mask_stem(pair, mask, stem, mask_name):
    """The name of a mask's copy, whose image's is `stem`: the same, or what MASK_NAME makes of it, `*` as it was."""
    if mask_name is None:
        return stem
    place, _, name = stem.rpartition("/")
    before, after = (re.escape(part).replace(r"\*", ".*") for part in mask_name.split("{}"))
    own, image = (unicodedata.normalize("NFC", path.stem) for path in (mask, pair.image))
    found = re.fullmatch(f"{before}({re.escape(image)}){after}", own, re.IGNORECASE)
    if not found:
        raise UserError(
            f"MASK_NAME = {mask_name!r}: does not say how to name a copy of {printable(mask)}, which may be of another "
            "kind. Leave the suffix out of MASK_NAME."
        )
    return f"{place}/" * bool(place) + own[: found.start(1)] + name + own[found.end(1) :]


def _images(items):
    return sum(len(item.images) for item in items)


def _make(missing, maker, num_workers, items):
    faults = []
    total = _images(items)
    # None: shown on a terminal
    bar = tqdm(total=total, initial=total - _images(missing), unit=" images", desc="augmenting", disable=None)
    with bar, closing(parallel_map(maker, missing, num_workers)) as outcomes:
        for item, fault in zip(missing, outcomes):
            if fault is not None:
                faults.append(str(fault))
            bar.update(len(item.images))
    if faults:
        raise UserError("\n".join(faults))


@dataclass(frozen=True)
class _Maker:
    """Makes the files of one item; it travels to the worker processes."""

    output_dir: Path
    quality: int
    seed: int

    def __call__(self, item):
        """None, or the UnusableFile that keeps this item from being made."""
        pair = item.pair
        try:
            decoded, pixels, masks = opened = _open(pair)
            images, copies = [pixels], [[np.asarray(picture)] for _, picture in masks]
            if len(item.images) > 1:
                name = pair.name.rpartition("/")[2]
                images, copies = augmentation(pair.image, (pair.mask, *pair.more), self.seed, opened, name)
                copies = zip(*copies)
            _refuse_depth(pair.image, pixels, item.images[0])
            for number, (target, made) in enumerate(zip(item.images, images)):
                target = self.output_dir / target
                if number == 0 and _can_be_copied(decoded, target):
                    with open(pair.image, "rb") as original:
                        _write(target, lambda file, original=original: shutil.copyfileobj(original, file, 1 << 20))
                else:
                    self._write_image(target, made)
        except UnusableFile as fault:
            return fault
        for targets, values, (_, picture) in zip(item.masks, copies, masks):
            for target, made in zip(targets, values):
                _write_mask(self.output_dir / target, made, picture)
        return None

    def _write_image(self, target, pixels):
        """uint8 and uint16 (H, W, 3), uint16 and float32 (H, W), in their depth."""
        pixels = np.ascontiguousarray(pixels)
        if target.suffix == ".tif":
            picture = Image.fromarray(pixels)
            return _write(target, lambda file: picture.save(file, format="TIFF"))
        if pixels.ndim == 3:
            pixels = cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR)
        if target.suffix.lower() in _JPEG_SUFFIXES:
            data = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, self.quality])[1]
        else:  # photographs have few repetitions to find: Huffman codes alone are fastest and as small
            options = [cv2.IMWRITE_PNG_COMPRESSION, 1, cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_HUFFMAN_ONLY]
            data = cv2.imencode(".png", pixels, options)[1]
        _write(target, lambda file: file.write(data))


def _refuse_depth(image, pixels, target):
    """UnusableFile where a file of the kind that `image` is by its name cannot hold its pixels."""
    most = {".tif": np.float32, ".png": np.uint16}.get(os.path.splitext(target)[1], np.uint8)
    if pixels.dtype.itemsize > np.dtype(most).itemsize:
        bits = 8 * pixels.dtype.itemsize
        raise UnusableFile(image, f"has pixels of {bits} bits, whatever its name says", "Give it the suffix .tif")


def _write(target, write):
    # No flush to disk: a killed process loses nothing of what it has written, only a power cut would.
    write_whole(target, write, sync=False)


def _can_be_copied(decoded, target):
    """Whether any program reads from the file itself what was decoded.

    Not where EXIF turns it, where more frames follow, or where CMYK, palettes and transparency await.
    """
    kind = "JPEG" if target.suffix.lower() in _JPEG_SUFFIXES else "PNG"
    plain = decoded.picture.mode in ("RGB", "L", "I", "I;16")
    return decoded.format == kind and plain and decoded.turned == 1 and not decoded.frames


def _write_mask(target, values, like):
    """A mask of these values in the encoding of the PIL image `like`, without loss."""
    values = np.ascontiguousarray(values)
    if like.mode == "P":
        picture = Image.frombytes("P", values.shape[1::-1], values.tobytes())
        picture.putpalette(like.getpalette("RGB"))
    else:
        picture = Image.fromarray(values)
    kind = {"format": "TIFF"} if target.suffix == ".tif" else {"format": "PNG", "compress_level": 1}
    if like.mode == "P" and "transparency" in like.info:  # of which colours; it may be what the mask means
        kind["transparency"] = like.info["transparency"]
    _write(target, lambda file: picture.save(file, **kind))


# ---- the preview


def _sample(items, rows=5):
    """The items that the preview shows."""
    return [items[index] for index in sorted(set(np.linspace(0, len(items) - 1, rows).round().astype(int).tolist()))]


def _draw_preview(output_dir, items, count, mask_rule, value_range):
    """A sheet of some of the `count` training images with every copy, masks laid over them."""
    palette = pictures.Palette.of(mask_rule)
    rows, masks = [], []
    for item in items:
        height, width = image_size(output_dir / item.images[0])
        size = (2 * pictures.TILE_HEIGHT, max(1, round(2 * pictures.TILE_HEIGHT * width / height)))
        tiles = []
        for image, *files in zip(item.images, *item.masks):
            image = read_image(output_dir / image, size, value_range=value_range)
            if mask_rule:
                files = tuple(output_dir / file for file in files)
                masks.append(read_mask(files if len(files) > 1 else files[0], mask_rule, size))
                image = pictures.overlay(image, masks[-1], palette)
            tiles.append(image)
        rows.append(pictures.Row(tiles, item.pair.name))
    title = f"{len(items)} of {count} training images with every copy: does each mask lie on what you want found?"
    columns = ["original", "horizontal flip", "vertical flip", "grid distortion"]
    sheet = pictures.sheet(rows, title, columns, palette.legend(masks))
    pictures.save_image(output_dir / _PREVIEW, sheet)


def _shown_rule(items, foreground, ignore):
    """What the preview tints: the foreground where these masks tell it, else every value but 0; None: nothing."""
    seen = [observe_mask(*mask) for item in items for mask in item.pair.sources[1:]]
    others = sorted({value for it in seen for value, _ in it.counts if value})
    for wanted, ignored in ((foreground, ignore), (others, None)):
        try:
            return decide_mask_rule(seen, DataSpec(foreground=wanted, ignore=ignored))
        except UserError:  # train.py's audit says it
            continue
    return None


def _span(items, image_range):
    """(low, high), which the preview shows as 0 ... 255 of images of more than 8 bits, or None."""
    if isinstance(image_range, (tuple, list)):
        return tuple(image_range)
    if image_range is None and not any(item.images[0].endswith(".tif") for item in items):
        return None  # the upper 8 bits, as in training; floats have none
    depths = [depth_of(decode(it.pair.image, page=it.pair.image_page), it.pair.image) for it in items]
    return choose_value_range([depth["quantiles"] for depth in depths if depth]) if any(depths) else None


# ---- the classes of the two sides


def _tell_lacking(train, val, spec, num_workers):
    """(the MaskRule of CLASSES, what to say of those that one side of the split lacks). UserError as train.py's."""
    seen = list(parallel_map(_observed, [pair.sources[1] for pair in train + val], num_workers))
    sides = [[it for it in side if it] for side in (seen[: len(train)], seen[len(train) :])]
    if not all(sides):
        return None, []
    mask_rule, words = decide_mask_rule(sides[0] + sides[1], spec), []
    here, there = (sum(count_classes(it, mask_rule)[:-1] for it in side) for side in sides)
    for name, training, validation in zip(mask_rule.names, here, there):
        if not training and not validation:
            words.append(f"class {name} is in no mask at all: take it out of CLASSES, or give it another value")
        elif not training:
            words.append(f"class {name} is in no training mask and cannot be learnt: lower VAL_IMAGES or change GROUP")
        elif not validation:
            words.append(f"class {name} is in no validation mask and is not scored: raise VAL_IMAGES or change GROUP")
    return mask_rule, words


def _observed(mask):
    """The Observation of (file, page), None where it cannot be used, which the maker will say."""
    try:
        return observe_mask(*mask)
    except UnusableFile:
        return None


# ---- the manifest: what the folder of made files was made from
#
# The next run finishes it, or makes it anew and says why. The manifest stands on disk before the first of
# its files, and files of an older one are removed before a new one stands there. So a file that the manifest
# lists, if it exists, was made from exactly that source by exactly those settings, wherever a run was killed.

_VERSION = 2  # raise it when the same sources and settings begin to give other files
_MANIFEST = ".augmented.json"


def _prepare(output_dir, items, settings):
    """Clears away what is not to stay in `output_dir`, writes the manifest; the Items yet to be made."""
    old = _load_manifest(output_dir)
    _refuse_foreign(output_dir, old)
    for folder in sorted({*_FOLDERS, *(os.path.dirname(file) for item in items for file in item.files)}):
        (output_dir / folder).mkdir(parents=True, exist_ok=True)
        remove_leftovers(output_dir / folder)
    new = {}
    for item in items:
        source = [part for path, _ in item.pair.sources for part in (path.name, *(stamp(path) or ["gone"]))]
        new[item.pair.name] = {"from": source, "files": item.files}  # a folder may move, its files may not change
    reasons = _remove_stale(output_dir, old, settings, new)
    manifest = {"version": _VERSION, "settings": settings, "items": new}
    write_text(output_dir / _MANIFEST, json.dumps(manifest))
    missing = [item for item in items if not _is_complete(output_dir, item)]
    if reasons:
        print(f"Making anew what has changed since the last run: {reasons}.")
    elif missing and len(missing) < len(items):
        print(f"Going on: {len(items) - len(missing)} of {len(items)} images are done.")
    return missing


def _load_manifest(folder):
    """The manifest in `folder`: {"settings": {...}, "items": {name: {"from": [...], "files": [...]}}}."""
    try:
        manifest = json.loads((Path(folder) / _MANIFEST).read_text(encoding="utf-8"))
        if manifest["version"] == _VERSION:
            return manifest
        return {**manifest, "settings": {"version of this program": manifest["version"]}}
    except (OSError, ValueError, KeyError, TypeError):
        # none, or damaged: its files are unknown then, will count as somebody else's, and stay
        return {"settings": {}, "items": {}}


def _refuse_foreign(folder, manifest):
    """UserError if pictures lie there that no run has listed: they would be trained on."""
    ours = {file for item in manifest["items"].values() for file in item["files"]}
    foreign = []
    for subfolder in _FOLDERS:
        try:
            found = list_pictures(Path(folder) / subfolder).pictures
        except UserError:  # none there
            continue
        foreign += [path for path in found if path.relative_to(folder).as_posix() not in ours]
    if foreign:
        names = "\n".join(f"  {printable(path)}" for path in foreign[:10])
        more = f"\n  and {len(foreign) - 10} others" if len(foreign) > 10 else ""
        raise UserError(
            f"{printable(folder)}: holds {len(foreign)} pictures that augment.py did not write, and that training would "
            f"take for its own:\n{names}{more}\nMove or delete them, or give another OUTPUT_DIR (--output-dir)."
        )


def _remove_stale(folder, manifest, settings, items):
    """Removes the files of `manifest` that are not to be made, or not like that; returns why, in words."""
    old = manifest["items"]
    if not old:
        return ""
    stale = {name for name in old if manifest["settings"] != settings or items.get(name) != old[name]}
    kept = {file for name, item in old.items() if name not in stale for file in item["files"]}
    for name in stale:
        for file in old[name]["files"]:
            if file not in kept:
                (Path(folder) / file).unlink(missing_ok=True)
    return _reasons(manifest, settings, items)


def _reasons(manifest, settings, items):
    before, old = manifest["settings"], manifest["items"]
    if before != settings:
        changed = [key for key in {**before, **settings} if before.get(key) != settings.get(key)]
        words = "; ".join(
            f"{key} was {before[key]}, now {settings[key]}" if key in before and key in settings else key
            for key in changed
        )
        return f"other settings ({words})"
    both = [name for name in items if name in old]
    groups = {
        "new": [name for name in items if name not in old],
        "gone": [name for name in old if name not in items],
        "changed": [name for name in both if items[name]["from"] != old[name]["from"]],
        "now on the other side of the split": [
            name for name in both if items[name]["from"] == old[name]["from"] and items[name] != old[name]
        ],
    }
    return "; ".join(
        f"{len(names)} source{'s' * (len(names) > 1)} {what}, e.g. {printable(names[0])}"
        for what, names in groups.items()
        if names
    )


def _is_complete(folder, item):
    """Whether every file of an item is there. A power cut may leave a name whose bytes never arrived."""
    try:
        return all(os.stat(Path(folder) / file).st_size > 0 for file in item.files)
    except OSError:
        return False


def main(argv=None):
    s = settings_of(globals(), argv, rules=_RULES, shared=vars(dataset))
    done = make_augmented(
        s.IMG_DIR,
        s.MASK_DIR,
        s.OUTPUT_DIR,
        DataSpec.of(s),
        val_images=s.VAL_IMAGES,
        jpeg_quality=s.JPEG_QUALITY,
        num_workers=s.NUM_WORKERS,
        seed=s.SEED,
    )
    print(f"Training: {_words(done.train, done.train_groups)}, {done.train * 4} with their copies.")
    print(f"Validation: {_words(done.val, done.val_groups)}, as they are.")
    if done.left_out:
        print(f"Left out: {done.left_out} images, which share their group with a validation image.")
    rate = f", {done.written / done.seconds:.1f} images a second" if done.written else ""
    print(f"Written: {done.written} of {done.total} images and as many masks, in {done.seconds:.1f} s{rate}.")
    for warning in done.warnings:
        print(f"Warning: {warning}.")
    print(f"Look at {done.preview} first: does every mask lie on its car?")
    flags = ("--train-img-dir", "--train-mask-dir", "--val-img-dir", "--val-mask-dir")
    folders = [part for flag, folder in zip(flags, _FOLDERS) for part in (flag, str(Path(s.OUTPUT_DIR) / folder))]
    words = folders if Path(s.OUTPUT_DIR) != Path("dataset") else []
    words += [] if s.MASK_NAME == dataset.MASK_NAME else ["--mask-name", s.MASK_NAME]
    print("Next: " + shlex.join(["python", "train.py", *words]))


def _words(images, groups):
    return f"{images} images of {groups} group{'s' * (groups != 1)}"


if __name__ == "__main__":
    run(main)
