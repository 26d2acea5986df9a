"""Pairs of images and masks decoded once, and kept on disk as arrays."""

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

import numpy as np
from tqdm import tqdm

from parts.errors import UnusableFile, UserError, printable
from parts.files import one_at_a_time, parallel_map, stamp, write_text
from parts.images import read_image
from parts.masks import MaskRule, read_mask


def read_pair(pair, mask_rule, size, value_range):
    """The image and the mask of a reading.Pair."""
    image = read_image(pair.image, size, pair.image_page, value_range)
    mask = read_mask(pair.masks, mask_rule, size, pair.mask_page)
    if mask.shape != image.shape[:2]:
        sizes = "is {}x{}, and its image {}x{}".format(*mask.shape, *image.shape[:2])
        raise UnusableFile(pair.mask, sizes, "Give each image a mask of its size")
    return image, mask


def points_of(mask, mask_rule):
    """int32 (C, POINTS): for each class of a mask, or for its foreground (C = 1), pixels that have it.

    Numbered row by row, spread evenly over all that there are; -1 where there are fewer.
    """
    labels = range(mask_rule.channels) if mask_rule.classes else (1,)
    points = np.full((len(labels), POINTS), -1, np.int32)
    for place, label in zip(points, labels):
        ends = np.cumsum([np.count_nonzero(row == label) for row in mask])  # flatnonzero would take 10 bytes a pixel
        chosen = np.linspace(0, ends[-1] - 1, min(ends[-1], POINTS)).astype(int)
        for at, (number, row) in enumerate(zip(chosen, np.searchsorted(ends, chosen, side="right"))):
            found = np.flatnonzero(mask[row] == label)
            place[at] = row * mask.shape[1] + found[number - ends[row]]  # counted from the row's end
    return points


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
    pairs, mask_rule, image_size, folder, num_workers=None, progress=True, *, value_range=None, sizes=None, points=False
):
    """The Arrays of `pairs` at `image_size` = (height, width), kept in `folder`, made if need be.

    With `sizes` instead, a (height, width) for each pair, images keep their own; `points`: whether places of the
    classes are kept, for crops. Arrays of other files (parts.files.stamp), another mask rule, image size, resize rule
    or `value_range` (as ImageDataset takes it) are made again, and the reason is printed. Any number of processes may call
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
            "mask_rule": mask_rule.to_dict(),
            "image_range": value_range and list(map(float, value_range)),
            "sizes": sizes,
            "points": POINTS * points,
            "pairs": _named(pairs, stamps, folder),
        }
    )
    try:
        if _mismatch(folder, key) is not None:
            folder.parent.mkdir(parents=True, exist_ok=True)
            lock = folder.parent / f".{folder.name}.lock"
            with one_at_a_time(lock, f"{printable(folder)}: waiting for another process that makes them."):
                reason = _mismatch(folder, key)  # whoever was waited for may have made them
                if reason is not None:
                    if reason:
                        print(f"{printable(folder)}: made again, because {reason}.")
                    how = mask_rule, size, value_range, points
                    _make(list(zip(pairs, stamps)), how, sizes, folder, key, num_workers, progress)
    except OSError as error:
        why = error.strerror or error
        slow = "Every crop decodes its whole image, which is far slower" if points else "Every epoch decodes the files"
        print(f"{printable(folder)}: no arrays can be kept here ({why}). {slow}.")
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
                reasons.append(f"{kind}: {files} {change}, e.g. {printable(os.path.basename(names[0]))}")
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
    mask_rule, size, _, points = how
    count, starts = len(stamped), _starts(sizes or [size] * len(stamped))
    shape = (count, *size) if size else (starts[-1],)
    arrays = [("|u1", (*shape, 3)), ("|u1", shape)] + [("<i4", (count, mask_rule.channels, POINTS))] * points
    need = sum(np.dtype(kind).itemsize * int(np.prod(shape)) for kind, shape in arrays)
    _make_room(folder, need + len(key))
    if progress and sizes:
        print(f"{printable(folder)}: {need / 1e9:.2f} GB of disk, for {count:,} images at their own size.")
    part, old = (folder.with_name(f".{folder.name}.{secrets.token_hex(6)}.part") for _ in range(2))
    try:
        part.mkdir()
        begin = {part / name: _reserve(part / name, *array) for name, array in zip(_FILES, arrays)}
        items = list(zip(range(count), starts, sizes or [size] * count, stamped))
        work = parallel_map(partial(_write_rows, begin, how), items, num_workers)
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
        print(f"{printable(folder)}: {count:,} pairs decoded once, {rate:.0f} a second, {need / 1e9:.2f} GB.")


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
    mask_rule, given, value_range, points = how
    problem = None
    try:
        rows = read_pair(pair, mask_rule, given, value_range)
        if rows[0].shape[:2] != tuple(size):
            height, width = rows[0].shape[:2]
            what = f"is {size[0]}x{size[1]} by its head, and {height}x{width} when it is decoded"
            raise UnusableFile(pair.image, what, "Save it again")
        rows = [*rows, points_of(rows[1], mask_rule)] if points else rows
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
