"""A dataset of one's own, written down as files: what looks at, decodes and shows files then does so with it, too.

DATASET = "mine.py:dataset"  # a function (train) -> the dataset of training (True) or of validation (False)
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from parts.bands import NPY
from parts.files import keep_only, parallel_map, path_inside, write_changed
from parts.images import RGB
from parts.own import faults_of

CONTRACT = (
    "DATASET(train) gives a dataset with len() and [i] -> (image uint8 (H, W) or (H, W, 3), mask uint8 (H, W)), and "
    "`names`, if it has such. With CHANNELS set images may be (H, W, C)."
)
Folders = tuple[Path, Path]  # of images and of masks


def folders_of(output: str | Path, side: str) -> Folders:
    """Where the images and masks of a `side`, "train" or "val", are written."""
    place = Path(output) / "own_dataset"
    return place / f"{side}_images", place / f"{side}_masks"


def write_dataset(chosen: Any, make: Callable[[bool], Any], output: str | Path, channels: int | str = RGB) -> None:
    """Writes the datasets that DATASET = `chosen`, which is `make`, gives for training and validation.

    Images are PNGs, or with other CHANNELS than RGB .npy files. A file is replaced only where its pixels differ, so
    that arrays made of it stay. Files of samples that the dataset has no longer are removed. UserError: it is not what
    CONTRACT says.
    """
    for side in ("train", "val"):
        folders = folders_of(output, side)
        with faults_of("DATASET", chosen, CONTRACT):
            data = make(side == "train")
            names = _names_of(data, folders[0], side)
        for folder in folders:
            suffix = ".png" if channels == RGB or folder == folders[1] else NPY
            keep_only(folder, {folder / f"{name}{suffix}" for name in names}, (".png", NPY))
        write = _Writer(chosen, data, folders, channels != RGB)
        for _ in parallel_map(write, list(enumerate(names))):
            pass


def _names_of(data: Any, folder: Path, side: str) -> list[str]:
    """The names of the samples: those that the dataset has, or numbers. ValueError: one cannot be a file's."""
    names = [
        str(name) for name in getattr(data, "names", None) or (f"{side}_{index:06d}" for index in range(len(data)))
    ]
    if not names:
        raise ValueError(f"its len is 0 for {side}")
    if len(names) != len(data) or len(set(names)) != len(names):
        raise ValueError(f"it has {len(data)} samples and {len(set(names))} different names")
    for name in names:
        if not name or path_inside(folder, name) is None or Path(name).name != name:
            raise ValueError(f"{name!r} is no name for a file")
    return names


@dataclass(frozen=True)
class _Writer:
    """Writes the samples of a dataset as files, from any process."""

    chosen: Any
    data: Any
    folders: Folders
    any_channels: bool  # of images

    def __call__(self, sample: tuple[int, str]) -> None:
        """Writes the sample of a number under a name."""
        index, name = sample
        with faults_of("DATASET", self.chosen, CONTRACT):
            image, mask = map(np.asarray, self.data[index])
            if mask.dtype == bool:
                mask = mask.astype(np.uint8)
            for array, kind, shapes in ((image, "image", (2, 3)), (mask, "mask", (2,))):
                is_shape = array.ndim in shapes and (self.any_channels or array.shape[2:] in ((), (RGB,)))
                if array.dtype != np.uint8 or not is_shape:
                    raise TypeError(f"the {kind} of sample {index} is {array.dtype} of shape {array.shape}")
            if image.shape[:2] != mask.shape:
                raise ValueError(f"sample {index} has an image of {image.shape[:2]} and a mask of {mask.shape}")
        for folder, array, is_stored in zip(self.folders, (image, mask), (self.any_channels, False)):
            encoded = io.BytesIO()
            if is_stored:
                np.save(encoded, array)
            else:
                Image.fromarray(array).save(encoded, "PNG", compress_level=1)
            write_changed(folder / f"{name}{NPY if is_stored else '.png'}", encoded.getvalue())
