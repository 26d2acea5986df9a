"""Every pair decoded once, into uint8 arrays on disk at IMAGE_SIZE that all epochs read slices of.

A folder of arrays holds images.npy (N, H, W, 3), masks.npy (N, H, W) of {0, 1}, and key.json, which says
from exactly what they were made. They are made in a folder beside their place and moved into it by one
rename: arrays that can be found are whole.
"""

import errno
import hashlib
import os
import re
import secrets
import shutil
import time
from contextlib import closing, suppress
from pathlib import Path

import cv2
import numpy as np
import torch
from torch.utils.data import Dataset, get_worker_info
from tqdm import tqdm

from errors import UserError
from files import write_text
from masks import read_mask
from origins import difference, fact, origin
from parallel import each, one_at_a_time
from reading import read_image, shown

_FILES = ("images.npy", "masks.npy")
_KEY = "key.json"
_SUFFIX = ".part"  # of a folder of arrays on its way in or out
_SPARE = 2**30  # bytes of disk that the arrays leave to checkpoints and pictures
_DAY = 24 * 3600


class _Batches(Dataset):
    """What both datasets share: `pairs[i]` are the files of index i, and a batch is fetched at once."""

    def __init__(self, pairs):
        self.pairs = list(pairs)

    def __len__(self):
        return len(self.pairs)

    def __getitem__(self, index):
        """Image (3, H, W) and mask (H, W), uint8 tensors."""
        images, masks = self.__getitems__([index])
        return images[0], masks[0]

    def __getitems__(self, indices):
        """Images (n, 3, H, W) in channels_last strides and masks (n, H, W) of {0, 1}, uint8 tensors."""
        images, masks = self.rows(indices)
        return torch.from_numpy(images).permute(0, 3, 1, 2), torch.from_numpy(masks)


class ArrayDataset(_Batches):
    """Batches out of a folder of arrays, as make_arrays gives them.

    Memory stays flat: only the batch is copied. A pickled dataset holds no arrays; they are opened again
    where it is unpickled, and a UserError says if they have been replaced since.
    """

    def __init__(self, pairs, folder, fingerprint):
        super().__init__(pairs)
        self.folder, self.fingerprint = Path(folder), fingerprint
        self._arrays = None

    @property
    def images(self):
        """np.memmap (N, H, W, 3) uint8, read-only."""
        return self._open()[0]

    @property
    def masks(self):
        """np.memmap (N, H, W) uint8 of {0, 1}, read-only."""
        return self._open()[1]

    def rows(self, indices):
        images, masks = self._open()
        return images[indices], masks[indices]

    def __getstate__(self):
        return {**self.__dict__, "_arrays": None}

    def _open(self):
        if self._arrays is None:
            try:
                arrays = _load(self.folder)
                # The key is read last: the three are moved in as one, so if it is ours, all are.
                ours = _fingerprint((self.folder / _KEY).read_text()) == self.fingerprint
            except (OSError, ValueError):
                ours = False
            if not ours:
                raise UserError(
                    f"{self.folder}: these arrays were removed or replaced while a run used them. Start it "
                    "again; runs with other settings at the same time need a copy of the dataset's folder."
                )
            self._arrays = arrays
        return self._arrays


class DecodeDataset(_Batches):
    """The same batches, bit for bit, decoded from the files every time."""

    def __init__(self, pairs, rule, image_size):
        super().__init__(pairs)
        self.rule, self.image_size = rule, tuple(image_size)

    def rows(self, indices):
        if get_worker_info() is not None:
            cv2.setNumThreads(0)  # the other cores have workers of their own; 1 would hang after a fork
        pairs = [self.pairs[index] for index in indices]
        try:
            images = [read_image(pair.image, self.image_size) for pair in pairs]
            masks = [read_mask(pair.mask, self.rule, self.image_size) for pair in pairs]
        except UserError as error:  # of one argument, as a DataLoader needs it to pass it on
            raise UserError(str(error)) from None
        return np.stack(images), np.stack(masks)


def collate_batch(batch):
    """For DataLoader's collate_fn: what `__getitems__` gives is a batch already."""
    return batch


def make_arrays(pairs, rule, image_size, folder, *, num_workers=None, progress=True):
    """The ArrayDataset of `pairs` at `image_size` = (height, width), kept in `folder`, made if need be.

    Arrays of other files, sizes, modification times, mask rule, image size or resize rule are made
    again, and the reason is printed. Any number of processes may call it at once. `num_workers`
    processes decode (None: one a core). Returns None, having said why, where the disk has no room or the
    folder cannot be written: use DecodeDataset then. UserError names all files that cannot be decoded,
    are gone, or change meanwhile.
    """
    folder = Path(folder)
    source = origin(pairs, rule, image_size, folder)
    try:
        if _mismatch(folder, source.text) is not None:
            folder.parent.mkdir(parents=True, exist_ok=True)
            lock = folder.parent / f".{folder.name}.lock"
            with one_at_a_time(lock, f"{shown(folder)}: waiting for another process that makes them.") as alone:
                reason = _mismatch(folder, source.text)  # whoever was waited for may have made them
                if reason is not None:
                    if reason:
                        print(f"{shown(folder)}: made again, because {reason}.")
                    _clear_leftovers(folder, alone)
                    _make(source, folder, num_workers, progress)
    except OSError as error:
        why = error.strerror or error
        print(f"{shown(folder)}: no arrays can be kept here ({why}). Every epoch decodes the files, which is slower.")
        return None
    dataset = ArrayDataset(source.pairs, folder, _fingerprint(source.text))
    dataset._open()  # at once: they stay readable even if another run replaces them
    return dataset


def _fingerprint(text):
    return hashlib.sha256(text.encode()).hexdigest()


def _load(folder):
    return [np.load(folder / name, mmap_mode="r") for name in _FILES]


def _mismatch(folder, text):
    """None if the arrays in `folder` have that key, "" if there are none, else why they are others."""
    try:
        found = (folder / _KEY).read_text()
    except OSError:
        return ""
    try:
        if found != text:
            return difference(found, text)
        _load(folder)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return "the arrays there are damaged"
    return None


def _beside(folder):
    return folder.with_name(f".{folder.name}.{os.getpid()}-{secrets.token_hex(4)}{_SUFFIX}")


def _clear_leftovers(folder, alone):
    """Removes what killed runs left; where there are no locks, only what must be dead by its age."""
    ours = re.compile(re.escape(f".{folder.name}.") + r"\d+-[0-9a-f]{8}" + re.escape(_SUFFIX))
    for part in folder.parent.iterdir():
        if ours.fullmatch(part.name):
            with suppress(OSError):
                if alone or time.time() - part.stat().st_mtime > _DAY:
                    shutil.rmtree(part)


def _make(source, folder, num_workers, progress):
    started = time.perf_counter()
    count = len(source.pairs)
    shapes = (count, *source.size, 3), (count, *source.size)
    need = sum(int(np.prod(shape)) for shape in shapes)
    _make_room(folder, need + len(source.text))
    part = _beside(folder)
    try:
        part.mkdir()
        for name, shape in zip(_FILES, shapes):
            _reserve(part / name, shape)
        _decode(source, part, num_workers, progress)
        for name in _FILES:  # whole after a power cut too, before it gets its name
            with open(part / name, "r+b") as file:
                os.fsync(file.fileno())
        write_text(part / _KEY, source.text)
        _move_into_place(part, folder, source.text)
    finally:
        shutil.rmtree(part, ignore_errors=True)
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


def _reserve(path, shape):
    """An .npy file of zeros. Its rows are written, never mapped: a full disk is an OSError, no SIGBUS."""
    with open(path, "wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
        file.truncate(file.tell() + int(np.prod(shape)))


def _move_into_place(part, folder, text):
    for _ in range(10):  # more than twice only without locks, while others move theirs in
        try:
            os.rename(part, folder)
            return
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        if _mismatch(folder, text) is None:
            return
        old = _beside(folder)
        with suppress(FileNotFoundError):
            os.rename(folder, old)
        shutil.rmtree(old, ignore_errors=True)
    raise OSError(errno.EEXIST, "other processes keep putting theirs there")


def _decode(source, part, num_workers, progress):
    """Writes the rows of all pairs; UserError names every file that cannot be used."""
    count = len(source.pairs)
    with (
        closing(_RowWriter(source, part)) as writer,
        closing(each(writer, range(count), num_workers)) as work,
        tqdm(work, "decoding", count, unit=" images", disable=None if progress else True) as bar,
    ):
        problems = sorted((index, problem) for index, problem in bar if problem)
    if problems:
        raise UserError("\n".join(problem for _, problem in problems))


class _RowWriter:
    """Called with an index, decodes that pair and writes its rows; gives what is wrong with its files."""

    def __init__(self, source, part):
        self.source, self.part = source, part
        self.files = None  # of each array: the file, and where its rows begin

    def __call__(self, index):
        pair = self.source.pairs[index]
        size, rule = self.source.size, self.source.rule
        problem = None
        try:
            rows = read_image(pair.image, size), read_mask(pair.mask, rule, size)
        except (UserError, OSError) as error:
            problem = str(error) if isinstance(error, UserError) else f"{pair.image} or its mask: {error}"
        for path, before in zip((pair.image, pair.mask), self.source.facts[index]):
            if fact(path) != before:
                return f"{path}: changed, or went, while it was decoded. Start again once its folder is at rest."
        if problem is None:
            self._write(index, rows)
        return problem

    def _write(self, index, rows):
        if self.files is None:
            self.files = [_rows_of(self.part / name) for name in _FILES]
        for (file, start), row in zip(self.files, rows):
            file.seek(start + index * row.nbytes)
            file.write(np.ascontiguousarray(row))
            file.flush()  # a full disk is noticed here

    def close(self):
        for file, _ in self.files or ():
            file.close()


def _rows_of(path):
    file = open(path, "r+b")  # noqa: SIM115 (its process closes it)
    np.lib.format.read_magic(file)
    np.lib.format.read_array_header_1_0(file)
    return file, file.tell()
