"""The article's dataset: an image and its mask, decoded anew whenever they are asked for."""

import torch
from torch.utils.data import Dataset

from masks import find_mask_rule, read_mask
from reading import pair_files, read_image


class ImageDataset(Dataset):
    def __init__(self, img_dir, mask_dir, transform=None, *, rule=None, foreground=None, seed=0):
        self.pairs = pair_files(img_dir, mask_dir)
        self.rule = rule or find_mask_rule([pair.mask for pair in self.pairs], foreground)
        self.transform, self.seed = transform, seed
        self.epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def set_epoch(self, epoch):
        self.epoch.fill_(epoch)

    def __len__(self):
        return len(self.pairs)

    def __getitem__(self, index):
        pair = self.pairs[index]
        image, mask = read_image(pair.image), read_mask(pair.mask, self.rule)
        if self.transform is None:
            return image, mask
        if hasattr(self.transform, "set_random_seed"):
            self.transform.set_random_seed(hash((self.seed, int(self.epoch), index)) % 2**32)
        made = self.transform(image=image, mask=mask)
        return made["image"], made["mask"]


image_dataset = ImageDataset
