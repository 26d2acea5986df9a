"""The article's dataset of images and masks. As a script it looks at one, and says what is wrong with it.

    python dataset.py IMG_DIR MASK_DIR [VAL_IMG_DIR VAL_MASK_DIR]

prints counts, sizes, how the masks are read, the share of foreground, and every problem with its cure; it
writes a sheet of masks on their images. Exit status 2 where training would be spoiled.
"""

import numpy as np
import torch
from torch.utils.data import Dataset

from audit import audit
from errors import UserError, run
from masks import find_mask_rule, read_mask
from reading import CARVANA_GROUP, pair_files, read_image
from settings import settings_of

MASK_FOREGROUND: int | tuple | None = None  # the value, or values, of foreground in the masks; None: found out
GROUP = CARVANA_GROUP  # regular expression; names with one first group show one thing, and stay on one side
SHEET: str | None = "audit.png"  # where the overlays go; none: nowhere
CACHE: str | None = None  # a JSON file that remembers what was seen; none: every file is read again
NUM_WORKERS: int | None = None  # processes that decode; none: one a core


class ImageDataset(Dataset):
    """Images and masks of two folders, decoded whenever they are asked for.

    `ds[i]` is the image, uint8 (H, W, 3) in RGB, and its mask, uint8 (H, W) of {0, 1}; or what
    `transform(image=..., mask=...)`, as of albumentations, makes of them. A transform with a
    `set_random_seed` is seeded for each item from (seed, epoch, i), whatever worker it runs in.
    `rule` says how masks are read (masks.MaskRule); by default all of them are asked, with `foreground`
    as in MASK_FOREGROUND. `pairs` holds the files. UserError: what is wrong with them.
    """

    def __init__(self, img_dir, mask_dir, transform=None, *, rule=None, foreground=None, seed=0):
        self.pairs = pair_files(img_dir, mask_dir)
        self.rule = rule or find_mask_rule([pair.mask for pair in self.pairs], foreground)
        self.transform, self.seed = transform, seed
        # In shared memory, because workers that persist have copies of everything else
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def set_epoch(self, epoch):
        """The transform's random draws are those of this epoch from now on."""
        self._epoch.fill_(epoch)

    def __len__(self):
        return len(self.pairs)

    def __getitem__(self, index):
        pair = self.pairs[index]
        image, mask = read_image(pair.image), read_mask(pair.mask, self.rule)
        if self.transform is None:
            return image, mask
        if hasattr(self.transform, "set_random_seed"):
            draw = np.random.SeedSequence([self.seed, int(self._epoch), index % len(self)])
            self.transform.set_random_seed(int(draw.generate_state(1)[0]))
        made = self.transform(image=image, mask=mask)
        return made["image"], made["mask"]


image_dataset = ImageDataset


def main(argv=None):
    folders = [(name, {}) for name in ("img_dir", "mask_dir")]
    folders += [(name, {"nargs": "?", "default": None}) for name in ("val_img_dir", "val_mask_dir")]
    settings = settings_of(__file__, argv, positionals=folders)
    if settings.val_img_dir and not settings.val_mask_dir:
        raise UserError("VAL_IMG_DIR has no VAL_MASK_DIR beside it. Give both, or neither.")
    report = audit(
        settings.img_dir,
        settings.mask_dir,
        settings.val_img_dir,
        settings.val_mask_dir,
        mask_foreground=settings.mask_foreground,
        group=settings.group,
        sheet=settings.sheet,
        cache=settings.cache,
        num_workers=settings.num_workers,
    )
    print(report.text())
    report.stop_if_spoiled()
    print("No problems.")


if __name__ == "__main__":
    run(main)
