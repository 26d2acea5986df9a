"""Splits a dataset by groups and writes the augmented copies that train.py trains on.

    python augment.py                                         Carvana, unpacked into dataset/
    python augment.py --img-dir A --mask-dir B --val-images 0.1

The last VAL_IMAGES images by name are held out, or as many at random (VAL_CHOICE), or those that a file
lists: they go to augmented_test_images/ and _masks/ as they are. Each other one goes to augmented_train_images/
and _masks/ four times: as it is, mirrored, upside down, and distorted on a grid (the mask in the same way).
Masks keep their values, palette and depth, so they mean what they meant, and images keep their 16 bits or
floats. Views of one car never stand on both sides.
The work runs on all cores, a run that was stopped goes on where it was, and every run over the same
sources ends with the same bytes. Look at augmented_preview.png before training.
"""

import signal

if __name__ == "__main__":  # Ctrl-C while albumentations is loaded, which takes seconds, ends without a traceback
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import hashlib
import json
import os
import re
import shlex
import time
import unicodedata
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, BinaryIO

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # or the import waits for the network

import albumentations as A
import cv2
import numpy as np
from PIL import Image
from tqdm import tqdm

import dataset
from parts import pictures
from parts.annotations import draw_masks
from parts.audit import ALPHA_DROPPED
from parts.bands import NPY, write_tiff
from parts.endings import command_of
from parts.errors import UnusableFile, UserError, counted, list_files, printable, run, tell, within_memory
from parts.files import (
    Provenance,
    copy_into,
    one_at_a_time,
    parallel_map,
    path_inside,
    read_own,
    refuse_link,
    remove_leftovers,
    stamp,
    write_text,
    write_whole,
)
from parts.images import (
    RGB,
    Bands,
    Decoded,
    choose_value_range,
    decode,
    decode_image,
    depth_of,
    head_of,
    image_size,
    pixels_of,
    read_image,
)
from parts.mask_rules import decide_mask_rule, observation_or_fault
from parts.masks import (
    MaskRule,
    Observation,
    can_be_fitted,
    count_classes,
    drops_alpha,
    fitted,
    names_in,
    observe_mask,
    png_options,
    read_mask,
    refuse_united_classes,
)
from parts.names import (
    COPIES,
    HOW_TO_GET_CARVANA,
    Folder,
    Pair,
    group_of,
    list_pictures,
    pair_files,
    suffixes_of,
    tell_groups,
)
from parts.options import changed, flags_of, settings_of
from parts.rules import any_value, one_of, optional, whole
from parts.spec import NONZERO, DataSpec
from parts.splits import LAST, RANDOM, Split, kind_of_name, missing_classes, one_sided, split

IMG_DIR = "dataset/train"  # the images; Carvana's train.zip unpacks into this
MASK_DIR = "dataset/train_masks"  # their masks; Carvana's train_masks.zip
OUTPUT_DIR = "dataset"  # gets augmented_{train,test}_{images,masks}/ and augmented_preview.png
VAL_IMAGES: int | float | str = 500  # for validation; below 1 a fraction, such as 0.1; or a list of names, "val.txt"
VAL_CHOICE = "last"  # by name, which suits Carvana and video; "random" where names sort images by what they show
JPEG_QUALITY = 95  # of the copies of JPEG images; originals are copied byte for byte, PNG stays lossless
NUM_WORKERS: int | None = None  # processes; None: one a core
SEED = 0  # of the grid distortions, where each image has its own draw, by its name; and of VAL_CHOICE = "random"

# What the constants may be, where their values alone do not tell. GROUP, MASK_NAME and the like stand in dataset.py.
_RULES = dict(
    VAL_IMAGES=any_value(),
    VAL_CHOICE=one_of(LAST, RANDOM),
    JPEG_QUALITY=whole(1, 100),
    NUM_WORKERS=optional(whole(1)),
    SEED=whole(0),
)

_PREVIEW = "augmented_preview.png"
_TRAIN, _TEST = "augmented_train", "augmented_test"
_FOLDERS = [f"{side}_{kind}" for side in (_TRAIN, _TEST) for kind in ("images", "masks")]
_JPEG_SUFFIXES, _TIFF_SUFFIXES = (".jpg", ".jpeg", ".jfif"), (".tif", ".tiff")


@dataclass(frozen=True)
class _Opened:
    """The decoded files of a pair."""

    pair: Pair
    image: Decoded | Bands
    pixels: np.ndarray  # of the image in their own depth: (H, W, C), or (H, W) of greys
    masks: list[Image.Image]  # with their files' own values

    @property
    def mask_values(self) -> list[np.ndarray]:
        """The values of each mask, (H, W) or (H, W, C)."""
        return [fitted(np.asarray(mask), self.pixels.shape[:2]) for mask in self.masks]


def augmentation(
    image: str | Path, mask: str | Path, seed: int = 0, channels: int | None = RGB
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Makes the article's four pairs of an image file and its mask file: as it is, both flips, and the grid distortion.

    Gives the images, (H, W, 3) or (H, W) of greys of more than 8 bits, and the masks, (H, W) or (H, W, C), with the
    values of their files. Of other `channels` than RGB images are (H, W, channels), or (H, W) of one; None: what the
    file has. The grid is that of `seed` and of the image's name. UnusableFile.
    """
    opened = _open(Pair("", Path(image), Path(mask)), channels)
    name = unicodedata.normalize("NFC", Path(image).stem)
    images, (masks,) = _make_copies(opened, seed, name)
    return images, masks


def _make_copies(opened: _Opened, seed: int, name: str) -> tuple[list[np.ndarray], list[list[np.ndarray]]]:
    """The four images, and the four copies of each mask. UnusableFile: the grid cannot distort the image."""
    if not (min(opened.pixels.shape[:2]) >= 5 and max(opened.pixels.shape[:2]) < 32767):
        size = "×".join(map(str, opened.pixels.shape[:2]))
        problem = f"is {size}, and grid distortion takes sides of 5 to 32,766 pixels"
        raise UnusableFile(opened.pair.image, problem, "Cut it into tiles, or remove it and its mask")
    return distort(opened.pixels, opened.mask_values, f"{seed}/{name}")


def distort(
    pixels: np.ndarray, masks: Sequence[np.ndarray], draw: str
) -> tuple[list[np.ndarray], list[list[np.ndarray]]]:
    """Four copies of an image and of each of its masks: as it is, mirrored, upside down, distorted on a grid.

    pixels: (H, W) or (H, W, C), distorted with bilinear interpolation
    masks: (H, W) or (H, W, C), distorted in the same way, by the nearest pixel, so that no value is invented
    draw: the grid's random draw is that of this text
    """
    # The border is replicated, or 0 would be invented for the last row and column.
    grid = A.GridDistortion(p=1.0, border_mode=cv2.BORDER_REPLICATE)
    digest = hashlib.sha256(draw.encode("utf-8", "surrogateescape")).digest()
    grid.set_random_seed(int.from_bytes(digest[:4], "big"))
    images = [pixels, pixels[:, ::-1], pixels[::-1], grid(image=pixels)["image"]]
    copies = []
    for mask in masks:
        # OpenCV distorts neither booleans nor whole numbers of 32 bits; these types hold the same values.
        wider = {np.dtype(bool): np.uint8, np.dtype(np.int32): np.float64}.get(mask.dtype, mask.dtype)
        distorted = grid.apply_to_mask(mask.astype(wider), **grid.params).astype(mask.dtype)
        copies.append([mask, mask[:, ::-1], mask[::-1], distorted])
    return images, copies


def _open(pair: Pair, channels: int | None, resize_masks: bool = False) -> _Opened:
    """Decodes the files of a pair. UnusableFile: one is damaged, or sizes differ more than RESIZE_MASKS allows."""
    decoded = decode_image(pair.images, page=pair.image_page, channels=channels)
    pixels = pixels_of(decoded, pair.image, channels)
    is_deep_grey = pixels.dtype != np.uint8 and decoded.decoded_mode[0] in "IF"
    if is_deep_grey or pixels.shape[2] == 1:
        pixels = pixels[..., 0]  # greys stay grey
    masks = []
    for path, page in pair.mask_sources:
        mask = _in_writable_mode(decode(path, page=page))
        height, width = pixels.shape[:2]
        if mask.size != (width, height) and not (resize_masks and can_be_fitted(mask.size[::-1], (height, width))):
            sizes = f"is {mask.height}×{mask.width} (height × width), but its image {printable(pair.image)}"
            raise UnusableFile(path, f"{sizes} {height}×{width}", "Export one of them again, or remove both")
        masks.append(mask)
    return _Opened(pair, decoded, pixels, masks)


def _in_writable_mode(mask: Decoded) -> Image.Image:
    """A mask in a mode of Pillow's that can be written, with the same values."""
    picture = mask.picture
    values = np.asarray(picture)
    # Greys of 16 bits: in this machine's byte order; or of a PGM, for which Pillow has 32, and PNG has not.
    if picture.mode.startswith("I;16") or (mask.format in ("PNG", "PPM") and picture.mode == "I"):
        return Image.fromarray(values.astype(np.uint16))
    if picture.mode in ("1", "L", "P", "I", "F", "RGB", "RGBA", "LA"):
        return picture
    return picture.convert("RGBA" if "a" in picture.mode.lower() else "RGB")


@dataclass(frozen=True)
class Choices:
    """How a dataset is split and copied: constants of this file."""

    val_images: int | float | str = VAL_IMAGES
    val_choice: str = VAL_CHOICE
    jpeg_quality: int = JPEG_QUALITY
    num_workers: int | None = NUM_WORKERS
    seed: int = SEED


@dataclass(frozen=True)
class Summary:
    """What make_augmented did."""

    train: int  # images for training, as they came
    val: int  # images for validation
    left_out: int  # images that share their group with a validation image
    train_groups: int
    val_groups: int
    groups: str  # which names tell groups, as tell_groups says
    written: int  # files of images
    total: int  # files of images that are there now
    seconds: float
    preview: Path
    warnings: list[str]  # classes or kinds of names that one side of the split lacks; channels that are dropped


def make_augmented(
    img_dir: Folder, mask_dir: Folder, output_dir: Folder, spec: DataSpec = DataSpec(), choices: Choices = Choices()
) -> Summary:
    """Splits a dataset and writes the augmented copies below `output_dir`, as far as they are not there yet.

    `spec` says what the files mean. UserError: unusable files (all of them named), a split that leaves nothing, files
    of somebody else in the way.
    """
    output_dir = Path(output_dir)
    _check_folders(img_dir, mask_dir, output_dir)
    ((_, drawn),) = draw_masks([(img_dir, mask_dir)], output_dir / "drawn_masks", spec)
    pairs = pair_files(img_dir, drawn, spec, apart=[output_dir, mask_dir])
    looks_at_masks = choices.val_choice == RANDOM or spec.classes is not None
    mask_rule, counts = _count_labels(pairs if looks_at_masks else [], spec, choices.num_workers)
    labels = {name: np.flatnonzero(pixels).tolist() for name, pixels in counts.items()}
    sides = split(pairs, choices.val_images, spec.group, choices.val_choice, choices.seed, labels, spec.skip_unpaired)
    maker = _Maker(output_dir, spec, choices)
    items = _plan(sides, spec, maker.channels)
    warnings = _warn_of_names(sides, choices.val_choice) + _warn_of_classes(sides, mask_rule, counts)
    output_dir.mkdir(parents=True, exist_ok=True)
    waiting = f"Another augment.py is at work in {printable(output_dir)}; waiting for it ..."
    with one_at_a_time(output_dir / ".augmented.lock", waiting):
        missing = _prepare(output_dir, items, _settings_of_copies(spec, choices))
        start = time.perf_counter()
        transparent = _make(missing, items, maker)
        if transparent:
            warnings.append(f"{counted(len(transparent), 'image')} {ALPHA_DROPPED} {list_files(transparent)}")
        seconds = time.perf_counter() - start
        _draw_preview(maker, [item for item in items if item.side == _TRAIN], mask_rule)
    return Summary(
        train=len(sides.train),
        val=len(sides.val),
        left_out=len(sides.left_out),
        train_groups=len({group_of(pair.name, spec.group) for pair in sides.train}),
        val_groups=len({group_of(pair.name, spec.group) for pair in sides.val}),
        groups=tell_groups([pair.name for side in sides for pair in side], spec.group),
        written=_count_images(missing),
        total=_count_images(items),
        seconds=seconds,
        preview=output_dir / _PREVIEW,
        warnings=warnings,
    )


def _settings_of_copies(spec: DataSpec, choices: Choices) -> dict[str, object]:
    """The constants on which the copies depend; those that once did not exist only where they are set."""
    settings: dict[str, object] = {"JPEG_QUALITY": choices.jpeg_quality, "SEED": choices.seed}
    later = {"IMAGE_NAME": spec.image_name, "MASK_NAME": spec.mask_name, "CHANNELS": spec.channels}
    return settings | {name: value for name, value in later.items() if value not in (None, RGB)}


def _check_folders(img_dir: Folder, mask_dir: Folder, output_dir: Path) -> None:
    output = output_dir.resolve()
    for folder in map(Path, (img_dir, mask_dir)):
        if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
            problem = "is empty." if folder.exists() else "there is no such folder."
            raise UserError(f"{printable(folder)}: {problem}\n{HOW_TO_GET_CARVANA}")
        if folder.resolve() in [output / name for name in _FOLDERS]:
            raise UserError(f"{printable(folder)}: augment.py writes there itself. Give the folder of the originals.")
        if folder.resolve() == output:
            raise UserError(
                f"{printable(folder)}: {_PREVIEW} would be taken for one of the images there. Give another OUTPUT_DIR "
                "(--output-dir)."
            )


# ---- which files are made


@dataclass(frozen=True)
class Item:
    """A pair and the files to make of it, by their paths below the output folder."""

    side: str  # _TRAIN or _TEST
    pair: Pair
    images: list[str]
    masks: list[list[str]]  # of each mask as many as of the image

    @property
    def files(self) -> list[str]:
        """All files to make."""
        return [*self.images, *(file for files in self.masks for file in files)]


def _plan(sides: Split, spec: DataSpec, channels: int | None) -> list[Item]:
    """The Items of all pairs. UserError: two of them would write one file."""
    items = []
    for side, pairs in ((_TRAIN, sides.train), (_TEST, sides.val)):
        for pair in pairs:
            stems = [pair.name]
            if side == _TRAIN:
                stems += [f"{pair.name}_{copy}" for copy in COPIES]
            suffix = _image_suffix(pair, channels)
            images = [f"{side}_images/{_image_stem(stem, spec.image_name)}{suffix}" for stem in stems]
            masks = []
            for mask, _ in pair.mask_sources:
                suffix = ".tif" if mask.suffix.lower() in _TIFF_SUFFIXES else ".png"  # of 32 bits, which PNG has not
                names = [_mask_stem(pair, mask, stem, spec) + suffix for stem in stems]
                masks.append([f"{side}_masks/{name}" for name in names])
            items.append(Item(side, pair, images, masks))
    _refuse_same_files(items)
    return items


def _refuse_same_files(items: Iterable[Item]) -> None:
    taken: dict[str, tuple[Path, str]] = {}
    for item in items:
        # Images by their stems, which pair them with their masks
        sources = [(item.pair.image, os.path.splitext(file)[0]) for file in item.images]
        for (mask, _), files in zip(item.pair.mask_sources, item.masks):
            sources += [(mask, file) for file in files]
        for source, name in sources:
            key = name.lower()  # Windows and macOS do not tell cases apart
            other, other_pair = taken.setdefault(key, (source, item.pair.name))
            if (other, other_pair) != (source, item.pair.name):
                raise UserError(
                    f"{printable(other)} and {printable(source)} would both become {printable(name)}. Rename one of "
                    "them, or remove it if it is a copy that augment.py made."
                )


def _image_suffix(pair: Pair, channels: int | None) -> str:
    """The suffix of an image's copies: that of a JPEG, .tif where the pixels have 32 bits, otherwise .png.

    Of other `channels` than RGB also .npy and all .tif stay what they are, and several files become one .tif.
    """
    if pair.bands:
        return ".tif"
    suffix = pair.image.suffix
    if suffix.lower() in (*_JPEG_SUFFIXES, NPY):
        return suffix
    if suffix.lower() in _TIFF_SUFFIXES:
        with suppress(UnusableFile):  # if it is damaged, _Maker will say so
            mode = head_of(pair.image, pair.image_page).mode
            if channels != RGB or mode in ("I", "F") or mode.startswith("3 x "):  # as of images.Bands
                return ".tif"
    return ".png"


def _image_stem(stem: str, image_name: str | None) -> str:
    """The name of a copy called `stem` as IMAGE_NAME says, so that it stays true."""
    if image_name is None:
        return stem
    place, slash, name = ("", "", stem) if "/" in image_name else stem.rpartition("/")
    return f"{place}{slash}{image_name.replace('{}', name).replace('*', '1')}"


def _mask_stem(pair: Pair, mask: Path, stem: str, spec: DataSpec) -> str:
    """The name of the mask of a copy called `stem`: the same, or as MASK_NAME says, what its * stands for kept."""
    if spec.mask_name is None:
        return stem
    # A pattern with folders is that of the whole path below the folder of the masks.
    whole = "/" in spec.mask_name
    place, slash, name = ("", "", stem) if whole else stem.rpartition("/")
    image = pair.name if whole or spec.image_name else pair.image.stem
    image = unicodedata.normalize("NFC", image if whole else image.rpartition("/")[2])
    before, after = (re.escape(part).replace(r"\*", "[^/]*") for part in spec.mask_name.split("{}"))
    own = unicodedata.normalize("NFC", mask.with_suffix("").as_posix())
    match = re.fullmatch(f"(?:.*/|)({before}){re.escape(image)}({after})", own, re.IGNORECASE | re.DOTALL)
    if not match:
        raise UserError(
            f"MASK_NAME = {spec.mask_name!r}: does not say how to name a copy of {printable(mask)}, which may be of "
            "another kind. Leave the suffix out of MASK_NAME."
        )
    return f"{place}{slash}{match[1]}{name}{match[2]}"


def _count_images(items: Iterable[Item]) -> int:
    return sum(len(item.images) for item in items)


# ---- making them


def _make(missing: list[Item], items: list[Item], maker: "_Maker") -> list[Path]:
    """Makes the files of the missing items, on all cores; gives the images that lost a channel of transparency.

    UserError names every file that cannot be used.
    """
    total, faults, transparent = _count_images(items), [], []
    done = total - _count_images(missing)
    # disable=None: shown on a terminal
    with (
        tqdm(total=total, initial=done, unit=" images", desc="augmenting", disable=None) as progress,
        closing(parallel_map(maker, missing, maker.choices.num_workers)) as outcomes,
    ):
        for item, outcome in zip(missing, outcomes):
            if isinstance(outcome, UnusableFile):
                faults.append(str(outcome))
            elif outcome:
                transparent.append(item.pair.image)
            progress.update(len(item.images))
    if faults:
        raise UserError("\n".join(faults))
    return transparent


@dataclass(frozen=True)
class _Maker:
    """Makes the files of one item; it travels to the worker processes."""

    output_dir: Path
    spec: DataSpec
    choices: Choices

    @property
    def channels(self) -> int | None:
        """Those of all images; None: as many as each has."""
        return None if isinstance(self.spec.channels, str) else self.spec.channels

    def __call__(self, item: Item) -> UnusableFile | bool:
        """Makes the files: whether the image lost a channel of transparency; or the UnusableFile that prevents it."""
        try:
            with within_memory(item.pair.image):
                return self._make(item)
        except UnusableFile as fault:
            return fault.to_keep()

    def _make(self, item: Item) -> bool:
        """Makes the files: whether the image lost a channel of transparency. UnusableFile: nothing is written."""
        opened = _open(item.pair, self.channels, self.spec.resize_masks)
        _refuse_depth(item.pair.image, opened.pixels, item.images[0])
        images, masks = [opened.pixels], [[values] for values in opened.mask_values]
        for (path, _), (values,), targets in zip(item.pair.mask_sources, masks, item.masks):
            _refuse_depth(path, values, targets[0])
        if item.side == _TRAIN:
            # The draw is that of the name without its subfolder, as in `augmentation`.
            images, masks = _make_copies(opened, self.choices.seed, item.pair.name.rpartition("/")[2])
        for target, pixels in zip(item.images, images):
            if target == item.images[0] and not item.pair.bands and _can_be_copied(opened.image, target):
                self._write(target, partial(copy_into, item.pair.image))
            else:
                self._write_image(target, pixels)
        for targets, copies, like in zip(item.masks, masks, opened.masks):
            for target, values in zip(targets, copies):
                self._write_mask(target, values, like)
        return drops_alpha(opened.image, self.channels)

    def _write_image(self, target: str, pixels: np.ndarray) -> None:
        """Writes uint8, uint16 or float32 (H, W) or (H, W, C), in their depth, as what the name says."""
        pixels, suffix = np.ascontiguousarray(pixels), os.path.splitext(target)[1].lower()
        if suffix == NPY:
            self._write(target, lambda file: np.save(file, pixels))
            return
        if suffix == ".tif" and pixels.ndim == 3:
            self._write(target, lambda file: write_tiff(file, pixels))
            return
        if suffix == ".tif" or pixels.shape[2:] == (2,):  # grey with alpha, which OpenCV does not write
            kind, picture = "TIFF" if suffix == ".tif" else "PNG", Image.fromarray(pixels)
            self._write(target, lambda file: picture.save(file, format=kind))
            return
        if pixels.ndim == 3:
            pixels = cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR if pixels.shape[2] == RGB else cv2.COLOR_RGBA2BGRA)
        if suffix in _JPEG_SUFFIXES:
            _, encoded = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, self.choices.jpeg_quality])
        else:  # photographs hardly repeat themselves: Huffman codes alone are the fastest, and as small
            options = [cv2.IMWRITE_PNG_COMPRESSION, 1, cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_HUFFMAN_ONLY]
            _, encoded = cv2.imencode(".png", pixels, options)
        self._write(target, lambda file: file.write(encoded.data))

    def _write_mask(self, target: str, values: np.ndarray, like: Image.Image) -> None:
        """Writes a mask of these values in the encoding of the mask `like`, without loss."""
        values = np.ascontiguousarray(values)
        tiff, png = {"format": "TIFF"}, {"format": "PNG", **png_options(names_in(like))}
        options: dict = tiff if target.endswith(".tif") else png
        if like.mode == "P":
            picture = Image.frombytes("P", values.shape[1::-1], values.tobytes())
            picture.putpalette(like.getpalette("RGB") or [])
            if "transparency" in like.info:  # of which colours; it may be what the mask means
                options["transparency"] = like.info["transparency"]
        else:
            picture = Image.fromarray(values)
        self._write(target, lambda file: picture.save(file, **options))

    def _write(self, target: str, write: Callable[[BinaryIO], object]) -> None:
        # No flush to disk: a killed process loses nothing of what it has written, only a power cut would.
        write_whole(self.output_dir / target, write, sync=False)


def _refuse_depth(image: Path, pixels: np.ndarray, target: str) -> None:
    """UnusableFile: files of the kind that `image` is by its name cannot hold its pixels."""
    suffix = os.path.splitext(target)[1].lower()
    most = {".tif": 4, NPY: 4, ".png": 2}.get(suffix, 1)  # bytes of a value
    if pixels.dtype.itemsize > most:
        problem = f"has pixels of {8 * pixels.dtype.itemsize} bits, whatever its name says"
        raise UnusableFile(image, problem, "Give it the suffix .tif")
    if suffix == ".png" and pixels.dtype.itemsize > 1 and pixels.shape[2:] == (2,):
        raise UnusableFile(image, "has two channels of 16 bits, which no program here writes as PNG", "Save it as TIFF")


def _can_be_copied(decoded: Decoded | Bands, target: str) -> bool:
    """Whether every program reads from the file itself what was decoded.

    Not where EXIF turns it, where more frames follow, or where it has CMYK, a palette or transparency.
    """
    kind = "JPEG" if target.lower().endswith(_JPEG_SUFFIXES) else "PNG"
    plain = decoded.decoded_mode in ("RGB", "L", "I", "I;16")
    if isinstance(decoded, Bands):
        kind, plain = decoded.format, True
    return decoded.format == kind and plain and decoded.turned == 1 and not decoded.frames


# ---- the preview


def _draw_preview(maker: _Maker, items: list[Item], mask_rule: MaskRule | None) -> None:
    """Draws a sheet of some of the training images with every copy, masks laid over them.

    `mask_rule`: that of all masks, if it is known.
    """
    numbers = np.linspace(0, len(items) - 1, 5).round().astype(int).tolist()
    chosen = [items[number] for number in sorted(set(numbers))]
    mask_rule = mask_rule or _preview_rule(chosen, maker.spec)
    value_range = _preview_range(chosen, maker)
    palette = pictures.Palette.of(mask_rule, maker.spec.picture_bands)
    rows, masks = [], []
    for item in chosen:
        height, width = image_size(maker.output_dir / item.images[0])
        size = (2 * pictures.TILE_HEIGHT, max(1, round(2 * pictures.TILE_HEIGHT * width / height)))
        tiles = []
        for image, *files in zip(item.images, *item.masks):
            tile = read_image(maker.output_dir / image, size, 0, value_range, maker.channels)
            if mask_rule:
                masks.append(read_mask(tuple(maker.output_dir / file for file in files), mask_rule, size))
                tile = pictures.overlay(tile, masks[-1], palette)
            tiles.append(tile)
        rows.append(pictures.Row(tiles, item.pair.name))
    title = f"{len(chosen)} of {len(items)} training images with every copy: does each mask lie on what you want found?"
    columns = ["original", "horizontal flip", "vertical flip", "grid distortion"]
    sheet = pictures.sheet(rows, title, columns, palette.legend(masks))
    pictures.save_image(maker.output_dir / _PREVIEW, sheet)


def _preview_rule(items: list[Item], spec: DataSpec) -> MaskRule | None:
    """What the preview tints: the foreground where these masks tell it, else every value but 0; None: nothing."""
    masks = [observe_mask(*mask) for item in items for mask in item.pair.mask_sources]
    for reading in (spec, DataSpec(foreground=NONZERO)):
        with suppress(UserError):  # train.py's audit says it
            return decide_mask_rule(masks, reading)
    return None


def _preview_range(items: list[Item], maker: _Maker) -> tuple[float, float] | None:
    """(low, high), which the preview shows as 0 ... 255 of images of more than 8 bits; None: there are none."""
    if isinstance(maker.spec.image_range, tuple):
        return maker.spec.image_range
    depths = []
    for item in items:
        decoded = decode_image(item.pair.images, page=item.pair.image_page, channels=maker.channels)
        if depth := depth_of(decoded, item.pair.image, maker.channels):
            depths.append(depth)
    return choose_value_range(depths)[0] if depths else None


# ---- what the two sides hold


def _count_labels(
    pairs: Sequence[Pair], spec: DataSpec, num_workers: int | None
) -> tuple[MaskRule | None, dict[str, np.ndarray]]:
    """(the rule of all masks, {name of a pair: the pixels of each label in its masks, int64 (labels,)}).

    Masks that cannot be used are left out, as _Maker tells of them; without any other there is no rule. UserError: they
    have no rule in common.
    """
    if spec.classes is not None:
        for pair in pairs:
            refuse_united_classes((pair.mask, *pair.more))
    masks = [(pair.name, source) for pair in pairs for source in pair.mask_sources]
    results = parallel_map(observation_or_fault, [source for _, source in masks], num_workers)
    usable = [(name, mask) for (name, _), mask in zip(masks, results) if isinstance(mask, Observation)]
    if not usable:
        return None, {}
    rule = decide_mask_rule([mask for _, mask in usable], spec)
    counts: dict[str, np.ndarray] = {}
    for name, mask in usable:
        counts[name] = counts.get(name, 0) + count_classes(mask, rule)[: rule.num_labels]
    return rule, counts


def _warn_of_classes(sides: Split, rule: MaskRule | None, counts: dict[str, np.ndarray]) -> list[str]:
    """What to say of the classes that one side of a split lacks."""
    if rule is None or not rule.has_classes:
        return []
    none = np.zeros(rule.num_labels, np.int64)
    pixels = {}
    for side, pairs in (("training", sides.train), ("validation", sides.val)):
        pixels[side] = rule.by_class(np.sum([counts.get(pair.name, none) for pair in pairs], axis=0))
    cure = "Change VAL_IMAGES, VAL_CHOICE or GROUP, or take out of CLASSES what is in no mask at all"
    return [f"{text}. {cure}" for text in missing_classes(rule.names, pixels)]


def _warn_of_names(sides: Split, val_choice: str) -> list[str]:
    """What to say where the names of images begin with words that one side of the split alone has."""
    lines = one_sided(*([kind_of_name(pair.name) for pair in pairs] for pairs in (sides.train, sides.val)))
    if not lines:
        return []
    cure = ""
    if val_choice == LAST:
        cure = f'. If names sort the images by what they show, set VAL_CHOICE = "{RANDOM}" (--val-choice {RANDOM})'
    return [f"names that one side alone has, by how they begin: {'; '.join(lines)}{cure}"]


# ---- the manifest: what the files in the output folder were made from
#
# By it the next run goes on, or makes anew what has changed and says why. The manifest is on disk before the first of
# its files, and files of an older one are removed before a new one is written. So a file that the manifest lists, if
# it exists, was made from exactly these sources by exactly these settings, wherever a run was killed.

_VERSION = 2  # raise it when the same sources and settings begin to give other files
_MANIFEST = ".augmented.json"
_KINDS = {_TRAIN: "training images", _TEST: "validation images"}  # of sources


@dataclass(frozen=True)
class _Manifest:
    """From which sources the files were made, and which files belong to each, by the pair's name."""

    provenance: Provenance = Provenance(_VERSION, {}, {})
    files: dict[str, list[str]] = field(default_factory=dict)

    @classmethod
    def of(cls, items: Iterable[Item], settings: dict[str, object]) -> "_Manifest":
        """The manifest of the items as they are to be made now."""
        sources: dict[str, dict[str, list]] = {kind: {} for kind in _KINDS.values()}
        for item in items:
            # The name and the stamp of each file: a folder may be moved, its files may not change.
            made_from: list = []
            for path, _ in item.pair.sources:
                made_from.append(path.name)
                made_from += stamp(path) or ["gone"]
            sources[_KINDS[item.side]][item.pair.name] = made_from
        return cls(Provenance(_VERSION, settings, sources), {item.pair.name: item.files for item in items})

    @classmethod
    def load(cls, folder: Path) -> "_Manifest":
        """The manifest in a folder; an empty one where there is none, or it is damaged or somebody else's.

        Files that it does not list will count as somebody else's, and stay.
        """
        return read_own(folder / _MANIFEST, partial(cls._from_stored, folder), cls())

    @classmethod
    def _from_stored(cls, folder: Path, stored: Any) -> "_Manifest":
        """The manifest that was stored. ValueError: it names files that are not augment.py's, which may be any."""
        manifest = cls(Provenance.from_dict(stored["provenance"]), stored["files"])
        names = [name for sources in manifest.provenance.sources.values() for name in sources]
        if sorted(names) != sorted(manifest.files):
            raise ValueError("the files are not of these sources")
        resolve = cache(os.path.realpath)
        for file in (file for files in manifest.files.values() for file in files):
            name, _, rest = file.partition("/")
            if name not in _FOLDERS or path_inside(folder / name, rest, resolve) is None:
                raise ValueError(f"{file!r} is not in a folder that is written")
        return manifest

    def save(self, folder: Path) -> None:
        """Writes the manifest."""
        write_text(folder / _MANIFEST, json.dumps({"provenance": self.provenance.to_dict(), "files": self.files}))

    def files_as_in(self, new: "_Manifest") -> set[str]:
        """The files that the manifest `new` would make in the same way."""
        mine, other = self.provenance, new.provenance
        if (mine.version, mine.settings) != (other.version, other.settings):
            return set()
        kept: set[str] = set()
        for kind, sources in other.sources.items():
            for name, made_from in sources.items():
                if mine.sources.get(kind, {}).get(name) == made_from:
                    kept.update(self.files[name])
        return kept


def _prepare(output_dir: Path, items: list[Item], settings: dict[str, object]) -> list[Item]:
    """Removes what is not to stay in the output folder and writes the manifest; gives the Items yet to be made.

    settings: the constants on which the made files depend
    """
    folders = sorted({*_FOLDERS, *(os.path.dirname(file) for item in items for file in item.files)})
    for folder in folders:
        refuse_link(output_dir / folder, output_dir)
    old, new = _Manifest.load(output_dir), _Manifest.of(items, settings)
    listed = {file for files in old.files.values() for file in files}
    _refuse_foreign(output_dir, listed, suffixes_of(settings.get("CHANNELS", RGB)))
    for folder in folders:
        (output_dir / folder).mkdir(parents=True, exist_ok=True)
        remove_leftovers(output_dir / folder)
    for file in listed - old.files_as_in(new):
        (output_dir / file).unlink(missing_ok=True)
    new.save(output_dir)
    missing = [item for item in items if not _is_complete(output_dir, item)]
    reasons = new.provenance.difference(old.provenance)
    if reasons and old.files:
        tell(f"Making anew what has changed since the last run: {reasons}.")
    elif missing and len(missing) < len(items):
        tell(f"Going on: {len(items) - len(missing)} of {len(items)} images are done.")
    return missing


def _refuse_foreign(folder: Path, listed: set[str], suffixes: Collection[str]) -> None:
    """UserError: pictures with one of these suffixes lie there that no run has listed, which would be trained on."""
    foreign: list[Path] = []
    for name in _FOLDERS:
        with suppress(UserError):  # none there
            made = list_pictures(folder / name, suffixes=suffixes).pictures
            foreign += [path for path in made if path.relative_to(folder).as_posix() not in listed]
    if foreign:
        raise UserError(
            f"{printable(folder)}: holds {counted(len(foreign), 'picture')} that augment.py did not write, and that "
            f"training would take for its own: {list_files(foreign)}. Move or delete them, or give another OUTPUT_DIR "
            "(--output-dir)."
        )


def _is_complete(folder: Path, item: Item) -> bool:
    """Whether every file of an item is there. A power cut may leave a name whose bytes never arrived."""
    try:
        return all(os.stat(folder / file).st_size > 0 for file in item.files)
    except OSError:
        return False


def main(argv: Sequence[str] | None = None) -> None:
    """Makes the augmented copies that the constants and the command line describe, and says what to run next."""
    s = settings_of(globals(), argv, rules=_RULES, shared=vars(dataset))
    choices = Choices(s.VAL_IMAGES, s.VAL_CHOICE, s.JPEG_QUALITY, s.NUM_WORKERS, s.SEED)
    done = make_augmented(s.IMG_DIR, s.MASK_DIR, s.OUTPUT_DIR, DataSpec.of(s), choices)
    train, val = counted(done.train, "image"), counted(done.val, "image")
    tell(f"Training: {train} of {counted(done.train_groups, 'group')}, {done.train * 4:,} with their copies.")
    tell(f"Validation: {val} of {counted(done.val_groups, 'group')}, as they are.")
    if done.groups:
        tell(f"Groups are told by their names: {done.groups} (GROUP).")
    if done.left_out:
        tell(f"Left out: {counted(done.left_out, 'image')} in the group of a validation image.")
    rate = f", {done.written / done.seconds:.1f} images a second" if done.written else ""
    tell(f"Written: {done.written} of {done.total} images and as many masks, in {done.seconds:.1f} s{rate}.")
    for warning in done.warnings:
        tell(f"Warning: {warning}.")
    tell(f"Look at {done.preview} first: does every mask lie on what it marks?")
    command = []
    if Path(s.OUTPUT_DIR) != Path("dataset"):
        flags = ("--train-img-dir", "--train-mask-dir", "--val-img-dir", "--val-mask-dir")
        for flag, folder in zip(flags, _FOLDERS):
            command += [flag, str(Path(s.OUTPUT_DIR) / folder)]
    shared = {name: value for name, value in vars(s).items() if name in vars(dataset)}
    command += flags_of(changed(SimpleNamespace(**shared), vars(dataset)))
    tell(f"Next: {command_of('train.py')} {shlex.join(command)}".rstrip())


if __name__ == "__main__":
    run(main)
