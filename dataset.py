"""The article's dataset of images and masks. As a script it looks at one, and says what is wrong with it.

    python dataset.py IMG_DIR MASK_DIR [VAL_IMG_DIR VAL_MASK_DIR]

prints counts, sizes, how the masks are read, the share of foreground, and every problem with its cure; it
writes a sheet of masks on their images. Exit status 2 where training would be spoiled.
"""

import signal

if __name__ == "__main__":  # Ctrl-C while torch is loaded, which takes seconds, ends without a traceback
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch.utils.data import Dataset, get_worker_info

from parts.annotations import draw_masks
from parts.arrays import Arrays, Files, Size, make_arrays
from parts.audit import audit
from parts.bands import reflected
from parts.errors import UserError, run, tell
from parts.files import Provenance, content_digests, stamp
from parts.images import RGB
from parts.mask_rules import find_mask_rule
from parts.masks import MaskRule, padded, refuse_united_classes
from parts.names import Pair, pair_files
from parts.options import settings_of
from parts.rules import any_text, any_value, either, file_path, named_numbers, one_of, optional, sizes, switch, whole
from parts.spec import PAD, STRETCH, DataSpec
from parts.transforms import Transform, augmented, transformed

# What images and masks mean, and which belong together: train.py, augment.py and predict.py take these from here.
MASK_FOREGROUND: int | tuple | str | None = None  # value(s) or name(s), "nonzero", "alpha"; None: as masks say
MASK_IGNORE: int | tuple | str | None = (
    None  # value(s) that are not trained on nor scored, as VOC's 255, -9999 or "nan"
)
CLASSES: str | tuple | dict | None = None  # "all", (0, 3), {"road": 3, "car": 8} or {"car": "{}_car"}; None: foreground
CHANNELS: int | str = 3  # of images: 3 is RGB, 1 greys; other TIFFs and .npy have any number; "auto": what all have
PICTURE_BANDS: tuple | None = None  # which channels pictures show, from 1 on: (4, 3, 2), or one; None: the first
IMAGE_RANGE: tuple | str | None = None  # (low, high) or "auto": what of 16-bit and float images becomes 0 ... 255
OVERLAP = False  # a pixel may be of several classes, as a tumour in its organ: CLASSES = {"organ": "{}_organ", ...}
GROUP: str | None = "auto"  # pattern of what names share that stay on one side of the split; "auto": known ones
IMAGE_NAME: str | None = None  # how images are named: "{}_left", "{}/images/*", or of a file a channel "{}_000*"
MASK_NAME: str | None = None  # how masks are named: "{}_segmentation", or "{}_*" for several of an image; None: like it
FIT = "stretch"  # how images become IMAGE_SIZE; "pad" keeps their proportions: scaled to fit into it, the rest ignored
RESIZE_MASKS = False  # bring masks of another size to that of their image, where proportions or nearly the size agree
SKIP_UNPAIRED = False  # leave out images without a mask and masks without an image, instead of refusing them

SHEET: str | None = "audit.png"  # where the overlays go; None: nowhere
IMAGE_SIZE: tuple | None = (320, 480)  # that of training: what of the masks is left at it is told; None: it is not

_SHARED = dict(  # the constants of all scripts; parts/spec.py says what they may be beyond this
    MASK_FOREGROUND=any_value(),
    MASK_IGNORE=any_value(),
    CLASSES=named_numbers(names_needed=False),
    CHANNELS=either(whole(1), "auto"),
    PICTURE_BANDS=optional(sizes()),
    IMAGE_RANGE=any_value(),
    OVERLAP=switch(),
    GROUP=optional(any_text()),
    IMAGE_NAME=optional(any_text()),
    MASK_NAME=optional(any_text()),
    FIT=one_of(STRETCH, PAD),
    RESIZE_MASKS=switch(),
    SKIP_UNPAIRED=switch(),
)
_RULES = _SHARED | dict(SHEET=optional(file_path()), IMAGE_SIZE=optional(sizes(2)))


class Batch(list):
    """The samples of a batch, as any DataLoader collates them; `tensors` has them collated already: (images, masks)."""

    def __init__(self, images: torch.Tensor, masks: torch.Tensor) -> None:
        super().__init__(zip(images, masks))
        self.tensors = images, masks


class PairDataset(Dataset):
    """The base of the datasets below: pairs of images and masks, how they are read, and the epoch.

    A sample is an image and its mask, both uint8: the image of C channels, RGB unless CHANNELS says otherwise; the mask
    of {0, 1} or class indices, and IGNORED (255) where a pixel is neither trained on nor scored. `files`
    (parts.arrays.Files) says which pairs there are and how they are read. Random draws come from (seed, epoch, index),
    whatever worker process they are made in. UserError: what is wrong with the files.
    """

    whole = False  # whether samples are whole images that a network predicts in windows
    arrays: Arrays | None = None  # where samples are read instead of their files, if they are
    augment: Transform | str | None = None  # what varies samples at random, if something does

    def __init__(self, files: Files, seed: int = 0) -> None:
        if files.mask_rule.has_classes:
            for pair in files.pairs:
                refuse_united_classes((pair.mask, *pair.more))
        self.files = files
        self.seed = seed
        # A DataLoader's worker changes the exceptions that it passes on, so there UserErrors are returned.
        self.returns_faults = False
        # In shared memory, because workers that persist have copies of everything else.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    @property
    def pairs(self) -> list[Pair]:
        """The pairs of an image and its mask, or masks."""
        return self.files.pairs

    @property
    def mask_rule(self) -> MaskRule:
        """How the values of masks become labels."""
        return self.files.mask_rule

    @property
    def image_size(self) -> Size | None:
        """(height, width) that all images are resized to; None: each has its own."""
        return self.files.image_size

    @property
    def epoch(self) -> int:
        """The epoch that random draws are those of; `set_epoch` sets it."""
        return int(self._epoch)

    def set_epoch(self, epoch: int) -> None:
        """From now on random draws are those of this epoch."""
        self._epoch.fill_(epoch)

    def pair_of(self, index: int) -> Pair:
        """The Pair that sample `index` is made of."""
        return self.pairs[index]

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitems__(self, indices: Sequence[int]) -> list | UserError:
        """The samples of a batch, as a DataLoader asks for them."""
        if get_worker_info() is not None:
            cv2.setNumThreads(0)  # the other cores have workers of their own; 1 would hang after a fork
        try:
            return self._batch(indices)
        except UserError as fault:
            if not self.returns_faults:
                raise
            return UserError(str(fault))

    def _batch(self, indices: Sequence[int]) -> list:
        return [self[index] for index in indices]

    def identity(self) -> str:
        """A digest of the files' names and lengths, their size in memory and the reading of the masks.

        A checkpoint keeps that of the validation set: scores of two epochs can be compared if it is the same.
        """
        names: list[list] = []
        for pair in self.pairs:
            for path, page in pair.sources:
                num_bytes = (stamp(path) or [0])[0]
                entry = [pair.name, num_bytes]
                if page:
                    entry.append(page)
                names.append(entry)
        # Fields that a MaskRule has not always had count only where they are set, so that old checkpoints still fit.
        rule = {name: value for name, value in self.mask_rule.to_dict().items() if value or name not in _ADDED_TO_RULE}
        identified: list[Any] = [names, self.image_size, rule]
        if self.files.value_range is not None:
            identified.append(self.files.value_range)
        if self.files.channels != RGB:
            identified.append(self.files.channels)
        if self.files.fit != STRETCH:
            identified.append(self.files.fit)
        return hashlib.sha256(json.dumps(identified).encode()).hexdigest()

    def provenance(self, known: Mapping[Path, tuple[Any, str]]) -> Provenance:
        """From which files samples are made: the content of each, by its name below its folder.

        A checkpoint keeps it. `known`: the contents that the audit's Report has, which need not be read again.
        UserError: a file cannot be read.
        """
        digests = content_digests(self.files.stamps, known)
        sources: dict[str, dict[str, Any]] = {"images": {}, "masks": {}}
        for pair in self.pairs:
            folder = os.path.dirname(pair.name)
            for kind, files in (("images", (pair.image, *pair.bands)), ("masks", (pair.mask, *pair.more))):
                sources[kind] |= {os.path.join(folder, file.name): digests[file] for file in files}
        return Provenance(1, {}, sources)


_ADDED_TO_RULE = ("ignored", "classes", "names", "colours")


class ImageDataset(PairDataset):
    """The article's dataset: each image and mask at its own size, or what a transform makes of the two.

    `ds[i]` is an array (H, W, C) and an array (H, W), or the "image" and the "mask" that
    `transform(image=..., mask=...)` returns, as albumentations does. Its random draws are those of the sample.

    The two folders are listed unless `pairs` are given. Masks are read by `mask_rule`; without one, all masks are
    looked at to find it, as `spec` says. `value_range` = (low, high) is what becomes 0 and 255 of images of more than
    8 bits; without one it is that of `spec`.
    """

    def __init__(
        self,
        img_dir: str | Path | None,
        mask_dir: str | Path | None,
        transform: Transform | None = None,
        *,
        pairs: Sequence[Pair] | None = None,
        mask_rule: MaskRule | None = None,
        spec: DataSpec = DataSpec(),
        value_range: tuple[float, float] | None = None,
        seed: int = 0,
    ) -> None:
        if pairs is None:
            if img_dir is None or mask_dir is None:
                raise UserError("ImageDataset: give img_dir and mask_dir, or pairs.")
            pairs = pair_files(img_dir, mask_dir, spec)
        if mask_rule is None:
            mask_rule = find_mask_rule(masks_of(pairs), spec)
        if value_range is not None:
            spec = replace(spec, image_range=value_range)
        value_range, channels = declared(spec)
        kept = spec.resize_masks, spec.picture_bands
        files = Files(list(pairs), mask_rule, value_range, None, False, channels, *kept)
        super().__init__(files, seed)
        self.transform = transform

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        sample = self.files.sample(index)
        image = np.array(sample.image)  # a copy: what Pillow decodes is read-only
        if self.transform is None:
            return image, sample.mask
        made = transformed(self.transform, image, sample.mask, (self.seed, self.epoch, index % len(self)))
        return made["image"], made["mask"]


image_dataset = ImageDataset  # the article's spelling


def masks_of(pairs: Sequence[Pair]) -> list[tuple[Path, int]]:
    """(file, page) of every mask of these pairs."""
    return [source for pair in pairs for source in pair.mask_sources]


def declared(spec: DataSpec) -> tuple[tuple[float, float] | None, int]:
    """(value range, channels) of images, as IMAGE_RANGE and CHANNELS say.

    UserError: one is "auto", which an audit of the images alone can tell.
    """
    if isinstance(spec.image_range, str) or isinstance(spec.channels, str):
        raise UserError(
            f'IMAGE_RANGE = {spec.image_range!r} and CHANNELS = {spec.channels!r}: what is "auto" is decided by an '
            "audit of the training images. Give its report, or numbers."
        )
    return spec.image_range, spec.channels


class ArrayDataset(PairDataset):
    """Pairs at one size, `files.image_size`: `ds[i]` is a tensor (C, H, W) and a tensor (H, W).

    A batch is fetched at once: (n, C, H, W) in channels_last strides, and (n, H, W). Samples are decoded afresh each
    time, or read from arrays on disk (`keep_arrays`): the same, bit for bit. `augment`, albumentations or any function
    of such a kind, varies each of them at random: uint8 (H, W, C) and uint8 (H, W), and it has to return the like. As
    text, "mine.py:name", it is loaded by each worker for itself, from wherever the file lies.
    """

    def __init__(self, files: Files, seed: int = 0, augment: Transform | str | None = None) -> None:
        super().__init__(files, seed)
        self.augment = augment

    def keep_arrays(self, folder: str | Path, num_workers: int | None = None, progress: bool = True) -> bool:
        """Makes arrays in `folder` unless they are there, and reads from them; False where they cannot be kept."""
        self.arrays = make_arrays(self.files, folder, num_workers, progress)
        return self.arrays is not None

    @property
    def pixels(self) -> Files | Arrays:
        """Where samples are read."""
        if self.arrays is not None:
            return self.arrays
        return self.files

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        images, masks = self._batch([index]).tensors
        return images[0], masks[0]

    def _batch(self, indices: Sequence[int]) -> Batch:
        images, masks = self.read(indices)
        images, masks = self.augmented(images, masks, indices, self.epoch)
        return Batch(torch.from_numpy(images).permute(0, 3, 1, 2), torch.from_numpy(masks))

    def read(self, indices: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """Images (n, H, W, C) and masks (n, H, W), before `augment`."""
        return self.pixels.batch(indices)

    def augmented(
        self, images: np.ndarray, masks: np.ndarray, indices: Sequence[int], epoch: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """What `augment` makes of these samples in an epoch; they themselves where there is none."""
        if self.augment is None:
            return images, masks
        made = []
        for image, mask, index in zip(images, masks, indices):
            try:
                made.append(augmented(self.augment, image, mask, (self.seed, epoch, index), self.mask_rule.num_labels))
            except UserError as fault:
                raise UserError(f"{self.pair_of(index).image}: {fault}") from fault
        return np.stack([image for image, _ in made]), np.stack([mask for _, mask in made])


class WholeDataset(ArrayDataset):
    """Whole images at `files.image_size` or, without one, at their own sizes, then for batches of one."""

    whole = True

    def read(self, indices: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        if self.image_size is not None:
            return super().read(indices)
        (index,) = indices
        sample = self.pixels.sample(index)
        return np.array(sample.image)[None], np.array(sample.mask)[None]


class CropDataset(ArrayDataset):
    """Crops of size `crop` = (height, width) of images at `files.image_size` or, without one, at their own sizes.

    Of each image there are as many crops as would cover it, drawn anew for each epoch. A share of `crop_foreground` of
    them is drawn so that it holds foreground, or one of the classes that the image holds. Smaller images are padded by
    reflection, and the padding is ignored. `augment` varies crops, as they are cut.
    """

    def __init__(
        self,
        files: Files,
        crop: Size,
        crop_foreground: float = 0.33,
        seed: int = 0,
        augment: Transform | str | None = None,
    ) -> None:
        super().__init__(replace(files, with_points=True), seed, augment)
        self.crop = crop[0], crop[1]
        self.crop_foreground = crop_foreground
        per_image = np.prod(-(-np.array(self.files.sizes) // self.crop), axis=1)  # rounded up
        self._ends = np.cumsum(per_image)  # how many crops there are of an image and all before it

    def __len__(self) -> int:
        return int(self._ends[-1])

    def pair_of(self, index: int) -> Pair:
        """The Pair that sample `index` is made of."""
        return self.pairs[self._number_of(index)]

    def padding(self) -> float:
        """The share of all pixels of crops that is padding, as images are smaller than `crop`; every image alike."""
        inside = np.minimum(self.files.sizes, self.crop).prod(axis=1)
        return float(1 - inside.mean() / np.prod(self.crop))

    def _number_of(self, index: int) -> int:
        return int(np.searchsorted(self._ends, index, side="right"))

    def read(self, indices: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        crops = [self._draw_crop(index) for index in indices]
        return np.stack([image for image, _ in crops]), np.stack([mask for _, mask in crops])

    def _draw_crop(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Crop `index` of this epoch: an image (h, w, C) and a mask (h, w)."""
        sample = self.pixels.sample(self._number_of(index))
        top, left = self._draw_corner(sample.mask.shape, sample.points, index)
        part = np.s_[top : top + self.crop[0], left : left + self.crop[1]]
        image, mask = sample.image[part], sample.mask[part]
        return reflected(image, self.crop), padded(mask, self.crop)

    def _draw_corner(self, size: Sequence[int], points: np.ndarray, index: int) -> np.ndarray:
        """(top, left) of crop `index` in an image of this (height, width), which holds its labels at `points`."""
        draw = np.random.default_rng([self.seed, self.epoch, index])
        last = np.subtract(size, self.crop).clip(0)  # the corner that leads to the lower right end of the image
        corner = draw.integers(0, 1 + last)
        held = np.flatnonzero(points[:, 0] >= 0)  # the labels that the image holds
        if draw.random() >= self.crop_foreground or not len(held):
            return corner
        positions = points[draw.choice(held)]
        position = np.array(divmod(draw.choice(positions[positions >= 0]), size[1]))
        # Any corner whose crop holds the position, so that it does not always come to lie in the middle.
        last = np.minimum(position, last)
        first = np.maximum(0, position - self.crop + 1).clip(None, last)
        return draw.integers(first, last + 1)


def main(argv: Sequence[str] | None = None) -> None:
    """Audits the folders of the command line, prints the report, and refuses data that would spoil training."""
    positionals: list[tuple[str, dict]] = [(name, {}) for name in ("img_dir", "mask_dir")]
    positionals += [(name, {"nargs": "?", "default": None}) for name in ("val_img_dir", "val_mask_dir")]
    s = settings_of(globals(), argv, rules=_RULES, positionals=positionals)
    if s.val_img_dir and not s.val_mask_dir:
        raise UserError("VAL_IMG_DIR has no VAL_MASK_DIR beside it. Give both, or neither.")
    folders = [(s.img_dir, s.mask_dir)]
    if s.val_img_dir:
        folders.append((s.val_img_dir, s.val_mask_dir))
    spec = DataSpec.of(s)
    train, *val = draw_masks(folders, Path(s.SHEET or "").parent / "audit_masks", spec)
    apart = [masks for _, masks in folders]  # which lie where they are, even where others are drawn of them
    report = audit(train, val[0] if val else None, spec, sheet=s.SHEET, image_size=s.IMAGE_SIZE, apart=apart)
    tell(report.text())
    report.stop_if_spoiled()
    tell("No problems.")


if __name__ == "__main__":
    run(main)
