"""The pixels of pairs of images and masks: decoded from their files, or kept on disk as arrays.

`Files` and `Arrays` give the same bytes by the same two methods, `sample` and `batch`; `make_arrays` makes the second
of the first.

A folder of arrays holds images.npy and masks.npy, for crops also points.npy, and key.json, the Provenance of the
arrays. Images of one size are (N, H, W, C) and masks (N, H, W). Of images at their own sizes the pixels follow each
other, (P, C) and (P,). The arrays are made in a folder beside their place, which is then renamed: arrays that have
their name are complete. The key holds the stamps of the arrays themselves too, so that changed ones are not believed.
"""

import errno
import hashlib
import json
import math
import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from parts.bands import reflected
from parts.errors import UnusableFile, UserError, printable, tell, within_memory
from parts.files import (
    DAY,
    Provenance,
    content,
    is_changed,
    one_at_a_time,
    parallel_map,
    read_own,
    remove,
    remove_leftovers,
    stamp,
    unfinished,
    write_text,
)
from parts.images import RGB, image_size, read_image, size_within
from parts.masks import MaskRule, padded, read_mask
from parts.names import Pair
from parts.spec import STRETCH

Size = tuple[int, int]  # height, width

POINTS = 256  # positions of each label that are kept of each mask, for crops
_LAYOUT = 5  # raise it when the arrays, or their key, are laid out in another way
_RESIZE_RULE = 1  # raise it when read_image or read_mask begin to give other pixels
_NAMES = ("images.npy", "masks.npy", "points.npy")
_KEY = "key.json"
_SPARE = 2**30  # bytes of disk that are left free for checkpoints and pictures


@dataclass(frozen=True)
class Sample:
    """One image and its mask, in memory."""

    image: np.ndarray  # uint8 (H, W, C), of which three channels are RGB
    mask: np.ndarray  # uint8 (H, W), labels or masks.IGNORED
    points: np.ndarray  # int32 (C, POINTS), see `points_of`; NO_POINTS where no crops are drawn


NO_POINTS = np.empty((0, POINTS), np.int32)


# ---- decoded from files


@dataclass(frozen=True)
class Files:
    """Pairs of images and masks that are decoded each time they are asked for.

    UserError: a file is unusable, or has changed since the object was made.
    """

    pairs: list[Pair]
    mask_rule: MaskRule
    value_range: tuple[float, float] | None = None  # of images of more than 8 bits: what becomes 0 and 255
    image_size: Size | None = None  # (height, width) that all are resized to; None: each has its own
    with_points: bool = False  # whether samples have `points`
    channels: int = RGB  # of images
    resize_masks: bool = False  # whether masks of another size are brought to that of their image (masks.fitted)
    picture_bands: tuple[int, ...] | None = None  # which channels pictures show (pictures.shown)
    fit: str = STRETCH  # how images become `image_size`: "stretch", or "pad" where their proportions stay
    stamps: dict[Path, list[int] | None] = field(init=False, compare=False, repr=False)  # of each file, when made

    def __post_init__(self) -> None:
        object.__setattr__(self, "pairs", list(self.pairs))
        object.__setattr__(self, "stamps", {path: stamp(path) for pair in self.pairs for path, _ in pair.sources})
        if self.value_range is not None:
            object.__setattr__(self, "value_range", tuple(map(float, self.value_range)))
        if self.image_size is not None:
            object.__setattr__(self, "image_size", tuple(map(int, self.image_size)))

    @cached_property
    def sizes(self) -> list[Size]:
        """(height, width) of each sample; of images at their own size, as the heads of their files tell it."""
        if self.image_size is not None:
            return [self.image_size] * len(self.pairs)
        return list(parallel_map(_size_of, self.pairs))

    def mask(self, number: int) -> np.ndarray:
        """The mask of one pair, uint8 (H, W)."""
        pair = self.pairs[number]
        own_size = _size_of(pair) if self.resize_masks else None
        mask = read_mask(pair.masks, self.mask_rule, self._size_within(pair), pair.mask_page, own_size)
        return padded(mask, self.image_size or mask.shape)

    def _size_within(self, pair: Pair) -> Size | None:
        """The (height, width) to which an image and its mask are resized, before they are padded to `image_size`."""
        if self.image_size is None or self.fit == STRETCH:
            return self.image_size
        return size_within(_size_of(pair), self.image_size, self.fit)

    def inside(self, number: int) -> tuple[slice, slice]:
        """Where in a sample its image lies: where proportions are kept the rest is filled."""
        if self.fit == STRETCH:
            return slice(None), slice(None)
        height, width = self._size_within(self.pairs[number]) or (None, None)
        return slice(height), slice(width)

    def sample(self, number: int) -> Sample:
        """The image and the mask of one pair."""
        pair = self.pairs[number]
        try:
            return self._decode(number, pair)
        finally:  # also where it cannot be decoded: it may be half of a new file
            for path, _ in pair.sources:
                if is_changed(path, self.stamps[path]):
                    cure = "Start again, or go on with LOAD_MODEL, once its folder is at rest"
                    raise UnusableFile(path, "changed, or went, while it was in use", cure)

    def _decode(self, number: int, pair: Pair) -> Sample:
        image = read_image(pair.images, self._size_within(pair), pair.image_page, self.value_range, self.channels)
        image = reflected(image, self.image_size or image.shape[:2])
        mask = self.mask(number)
        if mask.shape != image.shape[:2]:
            sizes = "is {}x{}, and its image {}x{}".format(*mask.shape, *image.shape[:2])
            raise UnusableFile(pair.mask, sizes, "Give each image a mask of its size")
        return Sample(image, mask, points_of(mask, self.mask_rule) if self.with_points else NO_POINTS)

    def batch(self, numbers: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """The images (n, H, W, C) and the masks (n, H, W) of pairs of one size."""
        samples = [self.sample(number) for number in numbers]
        return np.stack([sample.image for sample in samples]), np.stack([sample.mask for sample in samples])


def _size_of(pair: Pair) -> Size:
    return image_size(pair.image, pair.image_page)


def points_of(mask: np.ndarray, mask_rule: MaskRule) -> np.ndarray:
    """Positions in a mask (H, W) of each class, or of the foreground (C = 1): int32 (C, POINTS).

    A position is row * W + column. Of a label with more pixels than POINTS they are spread evenly over all of its
    pixels; a label with fewer has -1 in the rest of its row.
    """
    points = np.full((mask_rule.channels, POINTS), -1, np.int32)
    for channel, positions in enumerate(points):
        # Row by row, because np.flatnonzero of the whole mask would take 10 bytes a pixel.
        ends = np.cumsum([np.count_nonzero(mask_rule.where(row, channel)) for row in mask])
        chosen = np.linspace(0, ends[-1] - 1, min(ends[-1], POINTS)).astype(int)
        rows = np.searchsorted(ends, chosen, side="right")
        for index, (number, row) in enumerate(zip(chosen, rows)):
            columns = np.flatnonzero(mask_rule.where(mask[row], channel))
            # `number - ends[row]` counts back from the last pixel of its row, so it is negative.
            positions[index] = row * mask.shape[1] + columns[number - ends[row]]
    return points


# ---- kept on disk


class Arrays:
    """Samples that were decoded once, in the folder that `make_arrays` made. Memory stays flat: pages of the files.

    Pickled it holds no pixels: the copy opens the files again. UserError: they have been replaced since.
    """

    def __init__(self, folder: Path, files: Files, key: str) -> None:
        self.folder = folder
        self._digest = hashlib.sha256(key.encode()).hexdigest()
        self._own_sizes = files.sizes if files.image_size is None else None
        self._starts = _first_pixels(self._own_sizes or [])
        self._opened: list[np.ndarray] | None = None
        self.open()  # at once: open files stay readable even if another run replaces them

    def open(self) -> list[np.ndarray]:
        """The images, the masks, and for crops the points: read-only np.memmaps, as the head of this module says."""
        if self._opened is None:
            try:
                opened = _load(self.folder)
                # The key is read last. All files are renamed together, so if the key is the same, all are.
                key = (self.folder / _KEY).read_bytes()
                is_same = hashlib.sha256(key).hexdigest() == self._digest
            except (FileNotFoundError, NotADirectoryError, ValueError):
                is_same = False
            if not is_same:
                raise UserError(
                    f"{printable(self.folder)}: these arrays were removed or replaced while a run used them. Start it "
                    "again; runs with other settings at the same time need a copy of the dataset's folder."
                )
            self._opened = opened
        return self._opened

    def sample(self, number: int) -> Sample:
        """One pair, as views of the files: pixels that nobody looks at are not read."""
        images, masks, *rest = self.open()
        points = rest[0][number] if rest else NO_POINTS
        if self._own_sizes is None:
            return Sample(images[number], masks[number], points)
        height, width = self._own_sizes[number]
        pixels = slice(self._starts[number], self._starts[number + 1])
        return Sample(images[pixels].reshape(height, width, -1), masks[pixels].reshape(height, width), points)

    def batch(self, numbers: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """The images (n, H, W, C) and the masks (n, H, W) of pairs of one size, as copies."""
        images, masks = self.open()[:2]
        return images[numbers], masks[numbers]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": None}


def _first_pixels(sizes: Sequence[Size]) -> list[int]:
    """Where the pixels of each image begin if they all follow each other; one more for where the last ones end."""
    return list(accumulate((height * width for height, width in sizes), initial=0))


def _load(folder: Path) -> list[np.ndarray]:
    return [np.load(folder / name, mmap_mode="r") for name in _NAMES if name != _NAMES[2] or (folder / name).exists()]


# ---- made once


def make_arrays(
    files: Files, folder: str | Path, num_workers: int | None = None, progress: bool = True
) -> Arrays | None:
    """The Arrays of these Files in `folder`, decoded now unless they are there already.

    If the arrays there were made from other files, or in another way, they are made again, and the reason is printed.
    Any number of processes may call this at once: one of them decodes, in `num_workers` processes (None: one a core).
    None, with the reason printed: the disk has no room, or the folder cannot be written. UserError: names all files
    that cannot be decoded, are gone, or change meanwhile.
    """
    folder = Path(folder)
    plan = _Plan(files, folder)
    try:
        remove_leftovers(folder.parent, idle=DAY)  # of any arrays; others may be made there at this moment
        if plan.mismatch() is not None:
            folder.parent.mkdir(parents=True, exist_ok=True)
            lock = folder.parent / f".{folder.name}.lock"
            with one_at_a_time(lock, f"{printable(folder)}: waiting for another process that makes them."):
                reason = plan.mismatch()  # whoever was waited for may have made them
                if reason:
                    tell(f"{printable(folder)}: made again, because {reason}.")
                if reason is not None:
                    _make(plan, num_workers, progress)
    except OSError as error:
        crops, epochs = "Every crop decodes its whole image, which is far slower", "Every epoch decodes the files"
        cost = crops if files.with_points else epochs
        tell(f"{printable(folder)}: no arrays can be kept here ({error.strerror or error}). {cost}.")
        return None
    return Arrays(folder, files, plan.key)


@dataclass(frozen=True)
class _ArrayFile:
    """One .npy file of a folder of arrays."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        return np.dtype(self.dtype).itemsize * math.prod(self.shape)

    def reserve(self, folder: Path) -> int:
        """Makes the file, full of zeros; returns the byte at which its data begin.

        The data are written later, not mapped: so a full disk is an OSError, and not a signal that kills.
        """
        return np.lib.format.open_memmap(folder / self.name, "w+", self.dtype, self.shape).offset


class _Plan:
    """What the arrays of some Files are to be. UserError names all files that are gone."""

    def __init__(self, files: Files, folder: Path) -> None:
        self.files, self.folder = files, folder
        gone = [printable(path) for path in files.stamps if stamp(path) is None]
        if gone:
            raise UserError("\n".join(f"{path}: has just gone. Put it back, or start again." for path in gone))
        self.provenance = _provenance_of(files, folder)
        self.key = ""  # the content of key.json, when the arrays are there

    @cached_property
    def array_files(self) -> list[_ArrayFile]:
        """The files; made when they are needed, because images of their own sizes are opened for these."""
        count, size = len(self.files.pairs), self.files.image_size
        shape = (_first_pixels(self.files.sizes)[-1],) if size is None else (count, *size)
        array_files = [_ArrayFile(_NAMES[0], "|u1", (*shape, self.files.channels)), _ArrayFile(_NAMES[1], "|u1", shape)]
        if self.files.with_points:
            array_files.append(_ArrayFile(_NAMES[2], "<i4", (count, self.files.mask_rule.channels, POINTS)))
        return array_files

    def mismatch(self) -> str | None:
        """Why the arrays in the folder are not these, in words; "" where there are none, None where they are these."""
        stored = content(self.folder / _KEY)
        if stored is None:
            return ""
        now = self.provenance_in(self.folder)
        self.key = json.dumps(now.to_dict())
        if stored == self.key.encode():
            return None

        def difference(old: Any) -> str:
            return now.difference(Provenance.from_dict(old), _describe)

        reason = read_own(self.folder / _KEY, difference, "the arrays there are damaged")
        return reason or "the files come in another order, or belong together in another way"

    def provenance_in(self, folder: Path) -> Provenance:
        """The Provenance with the stamps of the arrays as they lie in a folder."""
        names = _NAMES if self.files.with_points else _NAMES[:2]
        arrays = {name: stamp(folder / name) or [] for name in names}
        return replace(self.provenance, sources=self.provenance.sources | {"arrays": arrays})


def _provenance_of(files: Files, folder: Path) -> Provenance:
    """The Provenance of arrays in `folder`; names are relative to it, so that a dataset may move with its arrays."""
    prefixes: dict[str, str] = {}  # of each folder of images or masks
    sources: dict[str, dict[str, Any]] = {"images": {}, "masks": {}}
    order = hashlib.sha256()
    for pair in files.pairs:
        masks = pair.mask_sources
        for path, page in pair.sources:
            kind = "masks" if (path, page) in masks else "images"
            parent, name = os.path.split(path)
            if parent not in prefixes:
                prefixes[parent] = _relative(parent, folder)
            name = f"{prefixes[parent]}/{name}"
            sources[kind][name] = files.stamps[path]
            order.update(json.dumps([kind, name, page]).encode())
    settings: dict[str, Any] = {
        "IMAGE_SIZE": files.image_size,
        "CROP": files.with_points,
        "the mask rule": files.mask_rule.to_dict(),
        "IMAGE_RANGE": files.value_range,
        _ORDER: order.hexdigest(),
    }
    others = {"CHANNELS": files.channels, "FIT": files.fit}
    settings |= {name: value for name, value in others.items() if value != _LEFT_OUT[name]}
    return Provenance([_LAYOUT, _RESIZE_RULE, POINTS], settings, sources)


def _relative(parent: str, folder: Path) -> str:
    try:
        return Path(os.path.relpath(parent or ".", folder)).as_posix()
    except ValueError:  # Windows: on another drive
        return Path(parent).absolute().as_posix()


_ORDER = "order"  # a digest of all names in the order of the rows; told only where nothing else differs
_LEFT_OUT = {"CHANNELS": RGB, "FIT": STRETCH}  # of the key, so that arrays from before these settings stay as they are


def _describe(name: str, old: Any, new: Any) -> str:
    """A setting of the key that differs, in words."""
    if name == _ORDER:
        return ""
    if name == "the mask rule":
        return f"{name} was: {MaskRule.from_dict(old).describe()}"
    old, new = (_LEFT_OUT.get(name) if value is None else value for value in (old, new))
    return f"{name} was {old}, now {new}"


def _make(plan: _Plan, num_workers: int | None, progress: bool) -> None:
    """Decodes all pairs into arrays, and puts them in the place of older ones. The folder's lock is held.

    OSError: the disk has no room. UserError names all files that cannot be used.
    """
    started = time.perf_counter()
    folder, count = plan.folder, len(plan.files.pairs)
    remove_leftovers(folder.parent, name=folder.name)
    need = sum(array_file.num_bytes for array_file in plan.array_files)
    free = shutil.disk_usage(folder.parent).free - _SPARE
    if free < need:
        raise OSError(errno.ENOSPC, f"they need {need / 1e9:.1f} GB of disk, and {max(free, 0) / 1e9:.1f} are free")
    if progress and plan.files.image_size is None:
        tell(f"{printable(folder)}: {need / 1e9:.2f} GB of disk, for {count:,} images at their own size.")
    part, replaced = unfinished(folder), unfinished(folder)
    try:
        part.mkdir()
        targets = {part / array_file.name: array_file.reserve(part) for array_file in plan.array_files}
        work = parallel_map(_Writer(plan.files, targets), range(count), num_workers)
        # disable=None shows the bar on a terminal only
        bar = tqdm(work, "decoding", count, unit=" images", disable=None if progress else True)
        problems = [problem for problem in bar if problem]
        if problems:
            raise UserError("\n".join(problems))
        for path in targets:  # the data must be on disk before they get their name
            with open(path, "r+b") as file:
                os.fsync(file.fileno())
        plan.key = json.dumps(plan.provenance_in(part).to_dict())
        write_text(part / _KEY, plan.key)
        if os.path.lexists(folder):
            os.rename(folder, replaced)
        os.rename(part, folder)
    finally:
        remove(part)
        remove(replaced)
    if progress:
        rate = count / (time.perf_counter() - started)
        tell(f"{printable(folder)}: {count:,} pairs decoded once, {rate:.0f} a second, {need / 1e9:.2f} GB.")


class _Writer:
    """Decodes pairs and writes their pixels to their places in the files of arrays, from any process."""

    def __init__(self, files: Files, targets: dict[Path, int]) -> None:
        self.files = files
        self.targets = targets  # images, masks, points: the byte of each file at which its data begin
        self.first_pixels = _first_pixels(files.sizes)

    def __call__(self, number: int) -> str | None:
        """Writes one pair; returns what is wrong with it, in words."""
        pair = self.files.pairs[number]
        problem = None
        try:
            with within_memory(pair.image):
                sample, size = self.files.sample(number), self.files.sizes[number]
            if sample.mask.shape != size:
                sizes = "is {}x{} by its head, and {}x{} when it is decoded".format(*size, *sample.mask.shape)
                raise UnusableFile(pair.image, sizes, "Save it again")
        except UserError as error:
            problem = str(error)
        except OSError as error:
            problem = f"{printable(pair.image)} or its mask: {error}"
        if problem is None:
            self._write(number, sample)
        return problem

    def _write(self, number: int, sample: Sample) -> None:
        first = self.first_pixels[number]
        # Each array, and the byte of its data at which this pair's begin; there is no file for NO_POINTS.
        rows = [
            (sample.image, self.files.channels * first),
            (sample.mask, first),
            (sample.points, number * sample.points.nbytes),
        ]
        for (path, start), (row, place) in zip(self.targets.items(), rows):
            with open(path, "r+b") as file:
                file.seek(start + place)
                file.write(np.ascontiguousarray(row).data)
