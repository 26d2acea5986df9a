"""Batches: which images, in what order, out of which source."""

import math
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader, Sampler, default_collate

import processes
from arrays import ArrayDataset, DecodeDataset, collate_batch, make_arrays
from dataset import ImageDataset
from errors import UserError
from masks import find_mask_rule
from reading import pair_files


class EpochSampler(Sampler):
    """Indices of one epoch: a permutation drawn from (seed, epoch), the share of this process of it.

    Shuffled, every process gets equally many (the first few come twice where they do not divide);
    unshuffled, every index occurs once over all processes. Without `set_epoch` the epoch counts up
    by itself, whenever the sampler is run through.
    """

    def __init__(self, dataset, shuffle, seed=0):
        self.dataset, self.shuffle, self.seed = dataset, shuffle, seed
        self.epoch = 0

    def set_epoch(self, epoch):
        self.epoch = epoch

    def order(self, epoch):
        """The indices that this process sees in `epoch`."""
        count, world, rank = len(self.dataset), processes.world_size(), processes.rank()
        if not self.shuffle:
            return np.arange(rank, count, world)
        order = np.random.default_rng([self.seed, epoch]).permutation(count)
        return np.resize(order, -(-count // world) * world)[rank::world]

    def __iter__(self):
        if hasattr(self.dataset, "set_epoch"):
            self.dataset.set_epoch(self.epoch)  # for the random draws of a user's transform
        order = self.order(self.epoch)
        self.epoch += 1
        return iter(order.tolist())

    def __len__(self):
        return len(self.order(0))


def get_loaders(
    train_dir,
    train_mask_dir,
    val_dir,
    val_mask_dir,
    batch_size,
    num_workers=4,
    pin_memory=True,
    transform=None,
    *,
    image_size=(320, 480),
    rule=None,
    foreground=None,
    seed=0,
    arrays=True,
):
    """Loaders of (images, masks) batches for training (shuffled) and validation (in order, each once).

    With a `transform`, as in the article, items are decoded in workers and are what it makes of them.
    Without one, everything is decoded once, resized to `image_size` (height, width) and kept on disk
    as uint8 arrays (see arrays.py): images (N, 3, H, W), masks (N, H, W) of {0, 1}. `arrays=False`,
    or a disk without room, decodes the same batches afresh in every epoch.
    `rule` says what the masks' pixels mean (masks.MaskRule); by default all the masks are asked, with
    `foreground` as in MASK_FOREGROUND. A last training batch that is not full is left out: every
    epoch leaves out other images. UserError tells what is wrong with the files.
    """
    folders = ((train_dir, train_mask_dir), (val_dir, val_mask_dir))
    pairs = [pair_files(images, masks) for images, masks in folders]
    rule = rule or find_mask_rule([pair.mask for part in pairs for pair in part], foreground)
    loaders = []
    for (image_dir, mask_dir), part, shuffle in zip(folders, pairs, (True, False)):
        if transform is not None:
            data, collate = ImageDataset(image_dir, mask_dir, transform, rule=rule, seed=seed), None
        else:
            data = _arrays_or_files(part, rule, image_size, Path(image_dir), arrays)
            collate = collate_batch
        loader = DataLoader(
            data,
            batch_size=batch_size,
            sampler=EpochSampler(data, shuffle, seed),
            num_workers=0 if isinstance(data, ArrayDataset) else num_workers,  # a slice is had sooner than handed over
            pin_memory=pin_memory and torch.cuda.is_available(),
            collate_fn=collate,
            drop_last=shuffle and len(data) >= batch_size * processes.world_size(),
            generator=torch.Generator(),  # the loader's own draws leave the global generator alone
        )
        loaders.append(loader)
    return tuple(loaders)


def _arrays_or_files(pairs, rule, image_size, image_dir, wanted):
    """The batches' source: arrays on disk, made by process 0 first, or else the files themselves."""
    folder = image_dir.parent / ".arrays" / f"{image_dir.name}-{image_size[0]}x{image_size[1]}"
    if wanted and processes.world_size() == 1:
        return make_arrays(pairs, rule, image_size, folder) or DecodeDataset(pairs, rule, image_size)
    if wanted and processes.first(lambda: make_arrays(pairs, rule, image_size, folder) is not None):
        arrays = make_arrays(pairs, rule, image_size, folder, progress=False)
        return arrays or DecodeDataset(pairs, rule, image_size)  # on another machine, with a full disk of its own
    return DecodeDataset(pairs, rule, image_size)


def told_by_worker(error):
    """What a DataLoader's worker died of, in words (UserError), or None where it was something else."""
    text = str(error)
    if "exited unexpectedly" in text or "is killed by signal" in text:
        return UserError(
            "A worker that fetches batches was killed, perhaps because memory ran out. Go on with --load-model, "
            "and with a smaller NUM_WORKERS if it happens again."
        )
    for name in ("UserError: ", "UnusableFile: "):  # behind the worker's own traceback
        if text.startswith("Caught") and name in text:
            return UserError(text.rpartition(name)[2].strip())
    return None


def files_of_batch(loader, epoch, batch):
    """The image files of training batch number `batch` of `epoch` on this process."""
    start = batch * loader.batch_size
    order = loader.sampler.order(epoch)[start : start + loader.batch_size]
    return [loader.dataset.pairs[index].image for index in order]


def refuse_infinite(values, loader, epoch, first):
    """Ends the run where a loss is not finite, naming the files of that batch."""
    for offset, value in enumerate(values):
        if not math.isfinite(value):
            names = "\n".join(f"  {name}" for name in files_of_batch(loader, epoch, first + offset))
            raise UserError(
                f"The loss is {value} in epoch {epoch + 1}, batch {first + offset + 1}, of these files:\n"
                f"{names}\n"
                "The last checkpoint is from before it. Look at the files; then lower LEARNING_RATE, keep "
                "CLIP_GRADIENT on, or try PRECISION = 'float32'."
            )


def fetch(loader, indices):
    """The batch of these indices, made as the loader makes its own."""
    data = loader.dataset
    if hasattr(data, "__getitems__"):
        return data.__getitems__(list(indices))
    return default_collate([data[index] for index in indices])
