"""The article's dataset of images and masks. As a script it looks at one, and says what is wrong with it.

    python dataset.py IMG_DIR MASK_DIR [VAL_IMG_DIR VAL_MASK_DIR]

prints counts, sizes, how the masks are read, the share of foreground, and every problem with its cure; it
writes a sheet of masks on their images. Exit status 2 where training would be spoiled.
"""

import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import time
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import torch
from torch.utils.data import Dataset, get_worker_info
from tqdm import tqdm

from parts import reading
from parts.audit import audit
from parts.files import each, one_at_a_time, stamp, write_text
from parts.masks import IGNORED, MaskRule, find_mask_rule, read_mask, refuse_united_classes
from parts.reading import UnusableFile, image_size, pair_files, read_image, shown
from parts.script import UserError, refuse_wrong, run, settings_of, sizes

# Shared by all scripts: what the masks mean, and which images belong together.
MASK_FOREGROUND: int | tuple | str | None = None  # value(s) of foreground, "nonzero" or "alpha"; None: as masks say
MASK_IGNORE: int | tuple | None = None  # value(s) that are neither trained on nor scored, such as VOC's 255
CLASSES: str | tuple | dict | None = None  # "all", (0, 3, 8) or {"road": 3, "car": 8}; None: foreground alone
IMAGE_RANGE: tuple | str | None = None  # (low, high) or "auto": what of 16-bit and float images becomes 0 ... 255
GROUP = reading.CARVANA_GROUP  # pattern of the part of a name that must not stand on both sides of the split
MASK_NAME: str | None = None  # how masks are named: "{}_segmentation", or "{}_*" for several of an image; None: like it
SKIP_UNPAIRED = False  # leave out images without a mask and masks without an image, instead of refusing them

_SHARED = ("MASK_FOREGROUND", "MASK_IGNORE", "CLASSES", "IMAGE_RANGE", "GROUP", "MASK_NAME", "SKIP_UNPAIRED")

SHEET: str | None = "audit.png"  # where the overlays go; None: nowhere
IMAGE_SIZE: tuple | None = (320, 480)  # that of training: what of the masks is left at it is told; None: it is not


def shared(s):
    """The constants that all scripts share, of one script's settings `s`, as audit and make_augmented take them."""
    return {name.lower(): getattr(s, name) for name in _SHARED}


def _read(pair, rule, size, span):
    """The image and the mask of a reading.Pair."""
    image = read_image(pair.image, size, pair.image_page, span)
    mask = read_mask(pair.masks, rule, size, pair.mask_page)
    if mask.shape != image.shape[:2]:
        sizes = "is {}x{}, and its image {}x{}".format(*mask.shape, *image.shape[:2])
        raise UnusableFile(pair.mask, sizes, "Give each image a mask of its size")
    return image, mask


class Batch(list):
    """The items of a batch, as any DataLoader collates them; `tensors`: (images, masks), collated already."""


_ADDED = ("ignored", "classes", "names", "colours")  # fields of a MaskRule


class ImageDataset(Dataset):
    """Images and masks of two folders, which are listed only where `pairs`, reading.Pairs, are not given.

    `ds[i]` is uint8, an image in RGB and its mask of {0, 1} or class indices, masks.IGNORED (255) where a pixel is
    ignored. Which image and in what shape, by what is given:

    nothing: pair i at its own size, (H, W, 3) and (H, W)
    transform: what `transform(image=..., mask=...)`, as of albumentations, makes of that. One with a
        `set_random_seed` is seeded for each item from (seed, epoch, i), whatever worker it runs in.
    image_size: pair i at this (height, width), (3, H, W) and (H, W). A batch is fetched at once: (n, 3, H, W) in
        channels_last strides and (n, H, W).
    crop: a part of this (height, width) of a pair at `image_size` or its own; of each as many as would cover it, drawn
        anew for each epoch, from (seed, epoch, i). A `crop_foreground` part of them is drawn so that it holds
        foreground, or a class that the image holds. Smaller images are padded by reflection, the padding is ignored.
    whole: pair i at `image_size` or its own, (3, H, W) and (H, W), for batches of one

    The last three come out of arrays on disk (`keep_arrays`), decoded once, or are decoded when they are asked for: the
    same, bit for bit. `rule` (masks.MaskRule) says how masks are read; by default all of them are asked, with
    `foreground`, `ignore` and `classes` as in MASK_FOREGROUND, MASK_IGNORE and CLASSES. `span` = (low, high): what of
    images of more than 8 bits becomes 0 ... 255 (reading.read_image). UserError: what is wrong with the files.
    """

    def __init__(
        self,
        img_dir,
        mask_dir,
        transform=None,
        *,
        image_size=None,
        pairs=None,
        rule=None,
        foreground=None,
        seed=0,
        ignore=None,
        classes=None,
        span=None,
        crop=None,
        crop_foreground=0.33,
        whole=False,
    ):
        self.pairs = pair_files(img_dir, mask_dir) if pairs is None else list(pairs)
        if rule is None:
            masks = [file for pair in self.pairs for file in pair.sources[1:]]
            rule = find_mask_rule(masks, foreground, ignore=ignore, classes=classes)
        self.rule, self.span = rule, None if span is None else tuple(map(float, span))
        if rule.classes:
            refuse_united_classes(self.pairs)
        if transform and (crop or whole):
            raise UserError("A transform makes items itself: crop in it, or give none.")
        self.transform, self.seed = transform, seed
        self.image_size = None if transform or not image_size else tuple(image_size)
        self.crop, self.crop_foreground = crop and tuple(crop), crop_foreground
        self.sizes, self._ends = None, None  # of the images, where these differ; how many crops end with each
        if (crop or whole) and not self.image_size:
            self.sizes = list(each(_size_of, self.pairs))
        if crop:
            sizes = np.array(self.sizes or [self.image_size] * len(self.pairs))
            self._ends = np.cumsum(np.prod(-(-sizes // self.crop), axis=1))
        self.whole = whole
        self.arrays = None
        self.returns_faults = False  # instead of raising them: a DataLoader's worker changes what is raised there
        # In shared memory, because workers that persist have copies of everything else
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def set_epoch(self, epoch):
        """The random draws of crops, and of the transform, are those of this epoch from now on."""
        self._epoch.fill_(epoch)

    def keep_arrays(self, folder, num_workers=None, progress=True):
        """Batches come out of arrays in `folder` from now on, made if need be; False where they cannot be kept."""
        how = dict(span=self.span, sizes=self.sizes, points=bool(self.crop))
        self.arrays = make_arrays(self.pairs, self.rule, self.image_size, folder, num_workers, progress, **how)
        return self.arrays is not None

    def identity(self):
        """A word that is another one for other files, another size or another reading of the masks."""
        files = [(pair.name, *file) for pair in self.pairs for file in pair.sources]
        names = [[name, *(stamp(path) or [0])[:1], *[page] * (page > 0)] for name, path, page in files]
        # What was added later counts where it is used alone, so that checkpoints from before still fit.
        rule = {name: value for name, value in self.rule.to_dict().items() if value or name not in _ADDED}
        what = [names, self.image_size, rule, *([self.span] if self.span else [])]
        return hashlib.sha256(json.dumps(what).encode()).hexdigest()

    def __len__(self):
        return int(self._ends[-1]) if self.crop else len(self.pairs)

    def pair_of(self, index):
        """The Pair that item `index` is of."""
        return self.pairs[self._pair_number(index)]

    def _pair_number(self, index):
        return int(np.searchsorted(self._ends, index, side="right")) if self.crop else index

    def __getitem__(self, index):
        if self.image_size or self.sizes:
            images, masks = self._batch([index])
            return images[0], masks[0]
        return self._item(index)

    def __getitems__(self, indices):
        """The items: a Batch, or a plain list where they are numpy arrays, or a transform's."""
        if get_worker_info() is not None:
            cv2.setNumThreads(0)  # the other cores have workers of their own; 1 would hang after a fork
        try:
            if not (self.image_size or self.sizes):
                return [self._item(index) for index in indices]
            images, masks = self._batch(indices)
        except UserError as fault:
            if not self.returns_faults:
                raise
            return UserError(str(fault))
        batch = Batch(zip(images, masks))
        batch.tensors = images, masks
        return batch

    def _batch(self, indices):
        if self.crop:
            images, masks = map(np.stack, zip(*map(self._crop_of, indices)))
        elif self.sizes:
            images, masks = (array[None] for array in map(np.array, self._decoded(*indices)[:2]))
        elif self.arrays:
            images, masks = self.arrays.rows(indices)
        else:
            pairs = [self.pairs[index] for index in indices]
            images, masks = map(np.stack, zip(*(_read(pair, self.rule, self.image_size, self.span) for pair in pairs)))
        return torch.from_numpy(images).permute(0, 3, 1, 2), torch.from_numpy(masks)

    def _decoded(self, number):
        """(image (H, W, 3), mask (H, W), points (C, POINTS)) of a pair; with arrays memory-mapped views."""
        if self.arrays:
            return self.arrays.one(number)
        image, mask = _read(self.pairs[number], self.rule, self.image_size, self.span)
        return image, mask, points_of(mask, self.rule) if self.crop else None

    def _crop_of(self, index):
        """(image (h, w, 3), mask (h, w)) of crop `index` in this epoch."""
        image, mask, points = self._decoded(self._pair_number(index))
        draw = np.random.default_rng([self.seed, int(self._epoch), index])
        corner = draw.integers(0, 1 + np.maximum(0, np.subtract(mask.shape, self.crop)))
        held = np.flatnonzero(points[:, 0] >= 0)
        if draw.random() < self.crop_foreground and len(held):
            places = points[draw.choice(held)]
            place = np.array(divmod(draw.choice(places[places >= 0]), mask.shape[1]))
            last = np.minimum(place, np.subtract(mask.shape, self.crop).clip(0))
            corner = draw.integers(np.maximum(0, place - self.crop + 1).clip(None, last), last + 1)
        top, left = corner
        part = np.s_[top : top + self.crop[0], left : left + self.crop[1]]
        image, mask = image[part], mask[part]
        below, beside = np.subtract(self.crop, mask.shape).tolist()
        if below or beside:
            image = cv2.copyMakeBorder(image, 0, below, 0, beside, cv2.BORDER_REFLECT_101)
            mask = cv2.copyMakeBorder(mask, 0, below, 0, beside, cv2.BORDER_CONSTANT, value=IGNORED)
        return image, mask

    def _item(self, index):
        pair = self.pairs[index]
        image, mask = _read(pair, self.rule, None, self.span)
        image = np.array(image)  # Pillow's own is read-only
        if self.transform is None:
            return image, mask
        if hasattr(self.transform, "set_random_seed"):
            draw = np.random.SeedSequence([self.seed, int(self._epoch), index % len(self)])
            self.transform.set_random_seed(int(draw.generate_state(1)[0]))
        made = self.transform(image=image, mask=mask)
        return made["image"], made["mask"]


image_dataset = ImageDataset  # the article's spelling


def _size_of(pair):
    return image_size(pair.image, pair.image_page)


def points_of(mask, rule):
    """int32 (C, POINTS): for each class of a mask, or for its foreground (C = 1), pixels that have it.

    Numbered row by row, spread evenly over all that there are; -1 where there are fewer.
    """
    labels = range(rule.channels) if rule.classes else (1,)
    points = np.full((len(labels), POINTS), -1, np.int32)
    for place, label in zip(points, labels):
        ends = np.cumsum([np.count_nonzero(row == label) for row in mask])  # flatnonzero would take 10 bytes a pixel
        chosen = np.linspace(0, ends[-1] - 1, min(ends[-1], POINTS)).astype(int)
        for at, (number, row) in enumerate(zip(chosen, np.searchsorted(ends, chosen, side="right"))):
            found = np.flatnonzero(mask[row] == label)
            place[at] = row * mask.shape[1] + found[number - ends[row]]  # counted from the row's end
    return points


# ---- arrays on disk
#
# A folder of arrays holds images.npy (N, H, W, 3), masks.npy (N, H, W) as read_mask gives them, and key.json, which
# says from exactly which files they were made, and how. Of images of their own sizes the pixels follow each other,
# (P, 3) and (P,); where crops are drawn there is points.npy (N, C, POINTS) besides. They are made in a folder beside
# their place and moved into it by one rename: arrays that can be found are whole.

POINTS = 256  # places of each class in each image that crops are drawn by
_FILES = ("images.npy", "masks.npy", "points.npy")
_KEY = "key.json"
_LAYOUT = 3  # raise it when the arrays, or their key, are laid out in another way
_RESIZE_RULE = 1  # raise it when read_image or read_mask begin to give other pixels
_SPARE = 2**30  # bytes of disk that the arrays leave to checkpoints and pictures


class Arrays:
    """A folder of arrays whose key is `key`. Memory stays flat: only what is asked for is copied.

    Pickled it holds no arrays; they are opened again where it is unpickled, and a UserError says if they have
    been replaced since.
    """

    def __init__(self, folder, key, sizes=None):
        self.folder, self._key = Path(folder), hashlib.sha256(key.encode()).hexdigest()
        self.sizes, self._starts = sizes, _starts(sizes) if sizes else None
        self._opened = None
        self.open()  # at once: they stay readable even if another run replaces them

    def open(self):
        """(images, masks), and points where there are any: read-only np.memmaps, as this part's head says."""
        if self._opened is None:
            try:
                arrays = _load(self.folder)
                # The key is read last: they are renamed together, so that if it is ours, all are.
                ours = hashlib.sha256((self.folder / _KEY).read_bytes()).hexdigest() == self._key
            except (OSError, ValueError):
                ours = False
            if not ours:
                raise UserError(
                    f"{self.folder}: these arrays were removed or replaced while a run used them. Start it "
                    "again; runs with other settings at the same time need a copy of the dataset's folder."
                )
            self._opened = arrays
        return self._opened

    def rows(self, indices):
        images, masks = self.open()[:2]
        return images[indices], masks[indices]

    def one(self, number):
        """(image, mask, points or None) of one pair, as views: what is not looked at is not read."""
        images, masks, *points = self.open()
        points = points[0][number] if points else None
        if self.sizes is None:
            return images[number], masks[number], points
        size, part = self.sizes[number], slice(*self._starts[number : number + 2])
        return images[part].reshape(*size, 3), masks[part].reshape(size), points

    def __getstate__(self):
        return {**self.__dict__, "_opened": None}


def _starts(sizes):
    """Where the pixels of each image of these (height, width) begin, and where the last one's end."""
    return [0, *np.cumsum([height * width for height, width in sizes]).tolist()]


def make_arrays(
    pairs, rule, image_size, folder, num_workers=None, progress=True, *, span=None, sizes=None, points=False
):
    """The Arrays of `pairs` at `image_size` = (height, width), kept in `folder`, made if need be.

    With `sizes` instead, a (height, width) for each pair, images keep their own; `points`: whether places of the
    classes are kept, for crops. Arrays of other files (parts.files.stamp), another mask rule, image size, resize rule
    or `span` (as ImageDataset takes it) are made again, and the reason is printed. Any number of processes may call
    it at once. `num_workers` processes decode (None: one a core). Returns None, having said why, where the disk has
    no room or the folder cannot be written. UserError names all files that cannot be decoded, are gone, or change
    meanwhile.
    """
    folder, size = Path(folder), image_size and tuple(int(side) for side in image_size)
    stamps = [[stamp(path) for path, _ in pair.sources] for pair in pairs]
    gone = [path for pair, its in zip(pairs, stamps) for (path, _), it in zip(pair.sources, its) if it is None]
    if gone:
        raise UserError("\n".join(f"{path}: has just gone. Put it back, or start again." for path in gone))
    key = json.dumps(
        {
            "layout": [_LAYOUT, _RESIZE_RULE],
            "image_size": size,
            "mask_rule": rule.to_dict(),
            "image_range": span and list(map(float, span)),
            "sizes": sizes,
            "points": POINTS * points,
            "pairs": _named(pairs, stamps, folder),
        }
    )
    try:
        if _mismatch(folder, key) is not None:
            folder.parent.mkdir(parents=True, exist_ok=True)
            lock = folder.parent / f".{folder.name}.lock"
            with one_at_a_time(lock, f"{shown(folder)}: waiting for another process that makes them."):
                reason = _mismatch(folder, key)  # whoever was waited for may have made them
                if reason is not None:
                    if reason:
                        print(f"{shown(folder)}: made again, because {reason}.")
                    how = rule, size, span, points
                    _make(list(zip(pairs, stamps)), how, sizes, folder, key, num_workers, progress)
    except OSError as error:
        why = error.strerror or error
        slow = "Every crop decodes its whole image, which is far slower" if points else "Every epoch decodes the files"
        print(f"{shown(folder)}: no arrays can be kept here ({why}). {slow}.")
        return None
    return Arrays(folder, key, sizes)


def _named(pairs, stamps, folder):
    """[name seen from `folder`, page, *stamp] of each file of each pair, the image's first: a dataset may be moved
    together with its arrays.
    """
    folders = {}

    def named(path, page, its_stamp):
        parent, name = os.path.split(path)
        if parent not in folders:
            try:
                folders[parent] = Path(os.path.relpath(parent or ".", folder)).as_posix()
            except ValueError:  # Windows: on another drive
                folders[parent] = Path(parent).absolute().as_posix()
        return [f"{folders[parent]}/{name}", page, *its_stamp]

    return [[named(*file, it) for file, it in zip(pair.sources, its)] for pair, its in zip(pairs, stamps)]


def _load(folder):
    names = _FILES if (folder / _FILES[2]).exists() else _FILES[:2]
    return [np.load(folder / name, mmap_mode="r") for name in names]


def _mismatch(folder, key):
    """None if the arrays in `folder` have that key, "" if there are none, else why they are others."""
    try:
        found = (folder / _KEY).read_text()
    except OSError:
        return ""
    try:
        if found != key:
            return _difference(json.loads(found), json.loads(key))
        _load(folder)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return "the arrays there are damaged"
    return None


def _difference(old, new):
    """In words, what has changed from one key to another."""
    if old.get("layout") != new["layout"]:
        return "another version of this program made them"
    reasons = []
    if old["image_size"] != new["image_size"]:
        reasons.append("IMAGE_SIZE was " + ("{}x{}".format(*old["image_size"]) if old["image_size"] else "None"))
    if old["points"] != new["points"]:
        reasons.append("CROP was " + ("set" if old["points"] else "None"))
    if old["mask_rule"] != new["mask_rule"]:
        reasons.append(f"the mask rule was: {MaskRule.from_dict(old['mask_rule']).describe()}")
    if old["image_range"] != new["image_range"]:
        was = old["image_range"]
        reasons.append("IMAGE_RANGE was " + ("None" if was is None else "({:g}, {:g})".format(*was)))
    for kind, which in (("images", slice(1)), ("masks", slice(1, None))):
        before, after = ({name: it for files in key["pairs"] for name, _, *it in files[which]} for key in (old, new))
        changes = {
            "changed": [name for name in after if name in before and after[name] != before[name]],
            "new": [name for name in after if name not in before],
            "gone": [name for name in before if name not in after],
        }
        for change, names in changes.items():
            if names:
                files = "1 file" if len(names) == 1 else f"{len(names)} files"
                reasons.append(f"{kind}: {files} {change}, e.g. {shown(os.path.basename(names[0]))}")
    return "; ".join(reasons) or "the files come in another order, or belong together in another way"


def _make(stamped, how, sizes, folder, key, num_workers, progress):
    """Makes arrays in `folder`, whose lock is held; `stamped`: each pair, and the stamps of its files.

    `how`: the mask rule, (height, width) or None, the span of images of more than 8 bits, and whether points are kept.
    """
    started = time.perf_counter()
    ours = re.compile(re.escape(f".{folder.name}.") + r"[0-9a-f]{12}\.part")
    for part in folder.parent.iterdir():
        if ours.fullmatch(part.name):  # what a killed run has left
            shutil.rmtree(part, ignore_errors=True)
    rule, size, _, points = how
    count, starts = len(stamped), _starts(sizes or [size] * len(stamped))
    shape = (count, *size) if size else (starts[-1],)
    arrays = [("|u1", (*shape, 3)), ("|u1", shape)] + [("<i4", (count, rule.channels, POINTS))] * points
    need = sum(np.dtype(kind).itemsize * int(np.prod(shape)) for kind, shape in arrays)
    _make_room(folder, need + len(key))
    if progress and sizes:
        print(f"{shown(folder)}: {need / 1e9:.2f} GB of disk, for {count:,} images at their own size.")
    part, old = (folder.with_name(f".{folder.name}.{secrets.token_hex(6)}.part") for _ in range(2))
    try:
        part.mkdir()
        begin = {part / name: _reserve(part / name, *array) for name, array in zip(_FILES, arrays)}
        items = list(zip(range(count), starts, sizes or [size] * count, stamped))
        work = each(partial(_write_rows, begin, how), items, num_workers)
        work = tqdm(work, "decoding", count, unit=" images", disable=None if progress else True)
        problems = [problem for problem in work if problem]
        if problems:
            raise UserError("\n".join(problems))
        for path in begin:  # whole after a power cut too, before it gets its name
            with open(path, "r+b") as file:
                os.fsync(file.fileno())
        write_text(part / _KEY, key)
        if folder.exists():
            os.rename(folder, old)
        os.rename(part, folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
    if progress:
        rate = count / (time.perf_counter() - started)
        print(f"{shown(folder)}: {count:,} pairs decoded once, {rate:.0f} a second, {need / 1e9:.2f} GB.")


def _make_room(folder, need):
    """OSError where the disk has no room; arrays that are to be replaced go first if they must."""
    free = shutil.disk_usage(folder.parent).free - _SPARE
    if free < need and folder.is_dir():
        old = sum(file.stat().st_size for file in folder.iterdir())
        if free + old >= need:
            shutil.rmtree(folder)
            return
    if free < need:
        raise OSError(errno.ENOSPC, f"they need {need / 1e9:.1f} GB of disk, and {max(free, 0) / 1e9:.1f} are free")


def _reserve(path, kind, shape):
    """Makes an .npy file of zeros; returns where its rows begin.

    They are written, never mapped: a full disk is an OSError then, no SIGBUS.
    """
    with open(path, "wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": kind, "fortran_order": False, "shape": shape})
        start = file.tell()
        file.truncate(start + np.dtype(kind).itemsize * int(np.prod(shape)))
    return start


def _write_rows(starts, how, item):
    """Decodes the pair of an `item`, (index, first pixel, size, (pair, stamps)), and writes its rows.

    starts: {file: where its rows begin}. Returns what is wrong, in words.
    """
    index, first, size, (pair, stamps) = item
    rule, given, span, points = how
    problem = None
    try:
        rows = _read(pair, rule, given, span)
        if rows[0].shape[:2] != tuple(size):
            height, width = rows[0].shape[:2]
            what = f"is {size[0]}x{size[1]} by its head, and {height}x{width} when it is decoded"
            raise UnusableFile(pair.image, what, "Save it again")
        rows = [*rows, points_of(rows[1], rule)] if points else rows
    except (UserError, OSError) as error:
        problem = str(error) if isinstance(error, UserError) else f"{pair.image} or its mask: {error}"
    for (path, _), before in zip(pair.sources, stamps):
        if stamp(path) != before:
            return f"{path}: changed, or went, while it was decoded. Start again once its folder is at rest."
    if problem is None:
        places = 3 * first, first, index * rows[-1].nbytes
        for (path, start), row, place in zip(starts.items(), rows, places):
            with open(path, "r+b") as file:
                file.seek(start + place)
                file.write(np.ascontiguousarray(row))
    return problem


def main(argv=None):
    folders = [(name, {}) for name in ("img_dir", "mask_dir")]
    folders += [(name, {"nargs": "?", "default": None}) for name in ("val_img_dir", "val_mask_dir")]
    s = settings_of(globals(), argv, positionals=folders)
    two = sizes("height and width, or None", 2)
    refuse_wrong(s, IMAGE_SIZE=(lambda v: v is None or two[0](v), two[1]))
    if s.val_img_dir and not s.val_mask_dir:
        raise UserError("VAL_IMG_DIR has no VAL_MASK_DIR beside it. Give both, or neither.")
    folders = s.img_dir, s.mask_dir, s.val_img_dir, s.val_mask_dir
    report = audit(*folders, sheet=s.SHEET, image_size=s.IMAGE_SIZE, **shared(s))
    print(report.text())
    report.stop_if_spoiled()
    print("No problems.")


if __name__ == "__main__":
    run(main)
