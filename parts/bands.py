"""Images of any number of channels: .npy files, and TIFFs of channels that neither Pillow nor OpenCV reads.

Values are (H, W, C) in one of three types: uint8, uint16 or float32.
"""

import io
import logging
import os
from pathlib import Path
from typing import IO, Any

import cv2
import numpy as np

from parts.errors import UnusableFile

NPY = ".npy"  # the suffix of files that numpy.save writes
_MARK = b"\x93NUMPY"
_AT_ONCE = 4  # channels that all of OpenCV's functions take


def stored_array(path: str | Path) -> np.ndarray:
    """The array of a .npy file as (H, W, C), in the file's own type; its values are read when they are looked at.

    UnusableFile: the file holds something else. ValueError: it is damaged.
    """
    with open(path, "rb") as file:
        if file.read(len(_MARK)) != _MARK:
            raise UnusableFile(path, "is no .npy file, whatever its name says", "Write it with numpy.save")
    array = np.load(path, mmap_mode="r", allow_pickle=False)
    if array.ndim not in (2, 3) or not array.size:
        shape = "x".join(map(str, array.shape)) or "one number"
        raise UnusableFile(path, f"holds an array of {shape}", "An image is (H, W) or (H, W, C)")
    return array if array.ndim == 3 else array[..., None]


def tiff_values(path: str | Path, page: int) -> np.ndarray:
    """The values of a TIFF's page as it stores them, (H, W, C) in the file's own type, by tifffile; greys have C = 1.

    UnusableFile: they are compressed in a way that needs a further package. Any exception: the file is damaged.
    """
    import tifffile  # here, because hardly a dataset needs it

    logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # remarks on odd tags; what matters raises
    with tifffile.TiffFile(path) as file:
        stored = file.pages[page].aspage()
        length = os.path.getsize(path)
        if any(start + count > length for start, count in zip(stored.dataoffsets, stored.databytecounts)):
            raise ValueError("the file is shorter than it says")  # the missing rows would be zeros
        try:
            values = stored.asarray()
        except ValueError as error:
            if "imagecodecs" not in str(error):
                raise
            name = getattr(stored.compression, "name", stored.compression)
            problem = f"is compressed with {name}, for which Python needs another package"
            raise UnusableFile(path, problem, "pip install imagecodecs, or save it without compression") from None
        if values.ndim == 2:
            return values[..., None]
        return np.moveaxis(values, 0, -1) if stored.axes.startswith("S") else values


def plain_values(values: np.ndarray, path: str | Path) -> np.ndarray:
    """Values of any type as uint8, uint16 or float32. UnusableFile: they are no numbers."""
    kind = values.dtype.kind
    if kind == "b":
        return values.astype(np.uint8) * 255
    if values.dtype in (np.uint8, np.uint16):
        return values.astype(values.dtype.newbyteorder("="), copy=False)
    if kind in "iu":
        is_short = values.min() >= 0 and values.max() <= 65535
        return values.astype(np.uint16 if is_short else np.float32)
    if kind != "f":
        raise UnusableFile(path, f"holds values of {values.dtype}", "Save it as uint8, uint16 or float32")
    return finite(values.astype(np.float32), path)


def finite(values: np.ndarray, path: str | Path) -> np.ndarray:
    """The same values. UnusableFile: some are no numbers."""
    is_finite = np.isfinite(values)
    if not is_finite.all():
        problem = f"has {values.size - np.count_nonzero(is_finite):,} pixels that are no numbers (NaN, or infinite)"
        raise UnusableFile(path, problem, "Give them a value, such as the least of the others")
    return values


def resized(array: np.ndarray, size: tuple[int, int], interpolation: int) -> np.ndarray:
    """cv2.resize of (H, W) or (H, W, C) to `size` = (height, width), for any number of channels."""
    height, width = size
    if array.ndim == 2 or 1 < array.shape[2] <= _AT_ONCE:
        return cv2.resize(array, (width, height), interpolation=interpolation)
    few = [array[..., first : first + _AT_ONCE] for first in range(0, array.shape[2], _AT_ONCE)]
    few = [cv2.resize(np.ascontiguousarray(some), (width, height), interpolation=interpolation) for some in few]
    return np.concatenate([some.reshape(height, width, -1) for some in few], axis=2)  # OpenCV drops an axis of one


def reflected(array: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(H, W, C) padded to `size` = (height, width): below and at the right, where it is mirrored."""
    below, beside = size[0] - array.shape[0], size[1] - array.shape[1]
    if not below and not beside:
        return array
    padded = cv2.copyMakeBorder(array, 0, below, 0, beside, cv2.BORDER_REFLECT_101)
    return padded.reshape(*size, -1)  # OpenCV drops an axis of one


def write_tiff(file: IO[bytes], values: np.ndarray) -> None:
    """Writes (H, W, C) as a TIFF, its channels together, deflated."""
    import tifffile

    content = io.BytesIO()  # tifffile would ask an open file for its name, which not all have
    options: Any = dict(photometric="minisblack", planarconfig="contig", compression="zlib", metadata=None)
    tifffile.imwrite(content, values, **options)
    file.write(content.getbuffer())
