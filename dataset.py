"""The article's dataset of images and masks. As a script it looks at one, and says what is wrong with it.

    python dataset.py IMG_DIR MASK_DIR [VAL_IMG_DIR VAL_MASK_DIR]

prints counts, sizes, how the masks are read, the share of foreground, and every problem with its cure; it
writes a sheet of masks on their images. Exit status 2 where training would be spoiled.
"""

import hashlib
import json

import cv2
import numpy as np
import torch
from torch.utils.data import Dataset, get_worker_info

from parts.arrays import make_arrays, points_of, read_pair
from parts.audit import audit
from parts.errors import UserError, run
from parts.files import parallel_map, stamp
from parts.images import image_size
from parts.mask_rules import find_mask_rule, refuse_united_classes
from parts.masks import IGNORED
from parts.names import pair_files
from parts.options import any_text, any_value, file_path, named_numbers, optional, settings_of, sizes, switch
from parts.spec import CARVANA_GROUP, DataSpec

# What images and masks mean, and which belong together: train.py, augment.py and predict.py take these from here.
MASK_FOREGROUND: int | tuple | str | None = None  # value(s) of foreground, "nonzero" or "alpha"; None: as masks say
MASK_IGNORE: int | tuple | None = None  # value(s) that are neither trained on nor scored, such as VOC's 255
CLASSES: str | tuple | dict | None = None  # "all", (0, 3, 8) or {"road": 3, "car": 8}; None: foreground alone
IMAGE_RANGE: tuple | str | None = None  # (low, high) or "auto": what of 16-bit and float images becomes 0 ... 255
GROUP = CARVANA_GROUP  # pattern of the part of a name that must not stand on both sides of the split
MASK_NAME: str | None = None  # how masks are named: "{}_segmentation", or "{}_*" for several of an image; None: like it
SKIP_UNPAIRED = False  # leave out images without a mask and masks without an image, instead of refusing them

SHEET: str | None = "audit.png"  # where the overlays go; None: nowhere
IMAGE_SIZE: tuple | None = (320, 480)  # that of training: what of the masks is left at it is told; None: it is not

_SHARED = dict(  # the constants of all scripts; parts/spec.py says what they may be beyond this
    MASK_FOREGROUND=any_value(),
    MASK_IGNORE=any_value(),
    CLASSES=named_numbers(names_needed=False),
    IMAGE_RANGE=any_value(),
    GROUP=any_text(),
    MASK_NAME=optional(any_text()),
    SKIP_UNPAIRED=switch(),
)
_RULES = _SHARED | dict(SHEET=optional(file_path()), IMAGE_SIZE=optional(sizes(2)))


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
    same, bit for bit. `mask_rule` (masks.MaskRule) says how masks are read; by default all of them are asked, with
    `foreground`, `ignore` and `classes` as in MASK_FOREGROUND, MASK_IGNORE and CLASSES. `value_range` = (low, high): what of
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
        mask_rule=None,
        foreground=None,
        seed=0,
        ignore=None,
        classes=None,
        value_range=None,
        crop=None,
        crop_foreground=0.33,
        whole=False,
    ):
        self.pairs = pair_files(img_dir, mask_dir) if pairs is None else list(pairs)
        if mask_rule is None:
            masks = [file for pair in self.pairs for file in pair.sources[1:]]
            mask_rule = find_mask_rule(masks, DataSpec(foreground=foreground, ignore=ignore, classes=classes))
        self.mask_rule, self.value_range = mask_rule, None if value_range is None else tuple(map(float, value_range))
        if mask_rule.classes:
            refuse_united_classes(self.pairs)
        if transform and (crop or whole):
            raise UserError("A transform makes items itself: crop in it, or give none.")
        self.transform, self.seed = transform, seed
        self.image_size = None if transform or not image_size else tuple(image_size)
        self.crop, self.crop_foreground = crop and tuple(crop), crop_foreground
        self.sizes, self._ends = None, None  # of the images, where these differ; how many crops end with each
        if (crop or whole) and not self.image_size:
            self.sizes = list(parallel_map(_size_of, self.pairs))
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
        how = dict(value_range=self.value_range, sizes=self.sizes, points=bool(self.crop))
        self.arrays = make_arrays(self.pairs, self.mask_rule, self.image_size, folder, num_workers, progress, **how)
        return self.arrays is not None

    def identity(self):
        """A word that is another one for other files, another size or another reading of the masks."""
        files = [(pair.name, *file) for pair in self.pairs for file in pair.sources]
        names = [[name, *(stamp(path) or [0])[:1], *[page] * (page > 0)] for name, path, page in files]
        # What was added later counts where it is used alone, so that checkpoints from before still fit.
        mask_rule = {name: value for name, value in self.mask_rule.to_dict().items() if value or name not in _ADDED}
        what = [names, self.image_size, mask_rule, *([self.value_range] if self.value_range else [])]
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
            images, masks = map(
                np.stack, zip(*(read_pair(pair, self.mask_rule, self.image_size, self.value_range) for pair in pairs))
            )
        return torch.from_numpy(images).permute(0, 3, 1, 2), torch.from_numpy(masks)

    def _decoded(self, number):
        """(image (H, W, 3), mask (H, W), points (C, POINTS)) of a pair; with arrays memory-mapped views."""
        if self.arrays:
            return self.arrays.one(number)
        image, mask = read_pair(self.pairs[number], self.mask_rule, self.image_size, self.value_range)
        return image, mask, points_of(mask, self.mask_rule) if self.crop else None

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
        image, mask = read_pair(pair, self.mask_rule, None, self.value_range)
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


def main(argv=None):
    folders = [(name, {}) for name in ("img_dir", "mask_dir")]
    folders += [(name, {"nargs": "?", "default": None}) for name in ("val_img_dir", "val_mask_dir")]
    s = settings_of(globals(), argv, rules=_RULES, positionals=folders)
    if s.val_img_dir and not s.val_mask_dir:
        raise UserError("VAL_IMG_DIR has no VAL_MASK_DIR beside it. Give both, or neither.")
    val_folders = None
    if s.val_img_dir:
        val_folders = s.val_img_dir, s.val_mask_dir
    report = audit((s.img_dir, s.mask_dir), val_folders, DataSpec.of(s), sheet=s.SHEET, image_size=s.IMAGE_SIZE)
    print(report.text())
    report.stop_if_spoiled()
    print("No problems.")


if __name__ == "__main__":
    run(main)
