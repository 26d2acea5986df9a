"""The article's utilities: loaders, accuracy, predictions to look at, checkpoints."""

import math
import multiprocessing
import os
import sys
from functools import partial
from multiprocessing.connection import wait
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader, Sampler, default_collate, get_worker_info

from dataset import Batch, ImageDataset
from parts import pictures, processes
from parts.errors import UserError
from parts.files import copy_whole, parallel_map, write_whole
from parts.images import image_size as size_of
from parts.inference import pixels_in_windows, predict, predicted_labels
from parts.mask_rules import find_mask_rule
from parts.masks import IGNORED, MaskRule, read_mask, resize_mask
from parts.names import pair_files
from parts.pictures import Example, Palette
from parts.recipe import targets_of
from parts.scores import class_scores, class_table, count_confusion, count_overlap, foreground_scores, overlap_of
from parts.spec import DataSpec

# ---- loaders


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
    report=None,
    foreground=None,
    seed=0,
    arrays=True,
    output_dir=".",
    ignore=None,
    classes=None,
    value_range=None,
    crop=None,
    crop_foreground=0.33,
):
    """Loaders of (images, masks) batches for training (shuffled) and validation (in order, each once).

    With a `transform`, as in the article, items are decoded in workers and are what it makes of them.
    Without one, everything is decoded once, resized to `image_size` (height, width) and kept on disk
    as uint8 arrays (dataset.py): images (N, 3, H, W), masks (N, H, W) of {0, 1}, or of the indices of classes, and
    IGNORED where pixels are. `arrays=False`, or a disk without room, decodes the same batches afresh in every
    epoch. Arrays lie beside the images' folder, or in `output_dir` where nothing can be written there.
    `report` is what audit.audit has found of these folders, so that nothing is looked at twice; without it they are
    listed, and all the masks are asked what they mean, with `foreground`, `ignore` and `classes` as in
    MASK_FOREGROUND, MASK_IGNORE and CLASSES, and images are read with `value_range`, (low, high) as in IMAGE_RANGE.
    With `crop` = (height, width), training gets crops (ImageDataset), out of images at `image_size` or, where that is
    None, at their own; validation gets whole images, in batches of one where sizes differ, as many of them as
    `affordable` says. A last training batch that is not full is left out: every epoch leaves out other images.
    UserError tells what is wrong with the files.
    """
    folders = ((train_dir, train_mask_dir), (val_dir, val_mask_dir))
    sides = [report.train, report.val] if report else [pair_files(*side) for side in folders]
    if report:
        mask_rule, value_range = report.mask_rule, report.value_range
    else:
        masks = [source for side in sides for pair in side for source in pair.sources[1:]]
        mask_rule = find_mask_rule(masks, DataSpec(foreground=foreground, ignore=ignore, classes=classes))
    options = dict(image_size=image_size, mask_rule=mask_rule, value_range=value_range, seed=seed)
    loaders = []
    for (image_dir, mask_dir), pairs, shuffle in zip(folders, sides, (True, False)):
        if crop:
            options |= dict(crop=crop, crop_foreground=crop_foreground) if shuffle else dict(crop=None, whole=True)
            pairs = pairs if shuffle else affordable(pairs, loaders[0].dataset, image_size, mask_rule)
        data = ImageDataset(image_dir, mask_dir, transform, pairs=pairs, **options)
        if data.crop and data.sizes and processes.rank() == 0:
            padding = 1 - np.minimum(data.sizes, crop).prod(1).mean() / math.prod(crop)
            if padding > 0.1:
                print(f"Images are smaller than CROP: {padding:.0%} of what is trained on is padding, and ignored.")
        if arrays and transform is None:
            _keep_arrays(data, Path(image_dir), Path(output_dir))
        loader = Loader(
            data,
            batch_size=1 if data.sizes and not data.crop else batch_size,
            sampler=EpochSampler(data, shuffle, seed),
            num_workers=0 if data.arrays else num_workers,  # a slice is read sooner than passed on
            pin_memory=pin_memory and torch.cuda.is_available(),
            drop_last=shuffle and len(data) >= batch_size * processes.world_size(),
        )
        loaders.append(loader)
    return tuple(loaders)


def affordable(pairs, training, image_size, mask_rule):
    """Those validation pairs that an epoch of crops leaves time for: all, or a few that are drawn once and for all.

    Scoring and drawing them may take about a fifth of the time that training takes, or four images, by which an epoch
    can just be told from another; a pixel that is scored costs a third of one that is trained on. It goes by pixels,
    not by a clock, so that a run that is resumed scores the same images. Among them is one with foreground, or one of
    each class, if there are any; and this is said.
    """
    sizes = [image_size] * len(pairs) if image_size else [size_of(pair.image, pair.image_page) for pair in pairs]
    order = np.random.default_rng(0).permutation(len(pairs))
    costs = np.array([pixels_in_windows(size) for size in sizes])[order].cumsum()
    counts = np.arange(1, len(pairs) + 1)
    again = np.minimum(counts, 4) + np.minimum(counts, 12)  # images that saved_images/ shows are predicted once more
    few = np.count_nonzero(costs * (1 + again / counts) / 3 <= len(training) * math.prod(training.crop) / 5)
    if max(few, 4) >= len(pairs):
        return pairs
    holds = np.array(
        list(parallel_map(partial(_holds, mask_rule=mask_rule, size=image_size), [pairs[index] for index in order]))
    )
    needed = list({int(places.argmax()): None for places in holds.T if places.any()})
    chosen = [*needed, *(place for place in range(len(pairs)) if place not in needed)][: max(few, 4, len(needed))]
    if processes.rank() == 0:
        print(
            f"To score all {len(pairs)} validation images would take longer than a fifth of an epoch: {len(chosen)} of "
            "them are scored, the same ones each time. predict.py --masks scores all."
        )
    return [pairs[index] for index in sorted(order[chosen])]


def _holds(pair, mask_rule, size):
    """Of each class, or of the foreground alone, whether a pair's mask has it."""
    mask = read_mask(pair.masks, mask_rule, size, pair.mask_page)
    return [bool((mask == label).any()) for label in (range(mask_rule.channels) if mask_rule.classes else (1,))]


def _keep_arrays(data, image_dir, output_dir):
    """Process 0 makes the arrays, then all open them."""
    beside = arrays_folder(image_dir, output_dir)
    size = "{}x{}".format(*data.image_size) if data.image_size else "own"
    # In OUTPUT_DIR, train/images and val/images would both be images
    name = image_dir.name if beside.parent == image_dir.parent else "-".join(image_dir.absolute().parts[-2:])
    folder = beside / f"{name}-{size}{'-crops' * bool(data.crop)}"
    if processes.first(lambda: data.keep_arrays(folder)) and processes.rank():
        data.keep_arrays(folder, progress=False)  # on another machine, which makes its own


def arrays_folder(image_dir, output_dir):
    """Where arrays of the images in `image_dir` lie: beside it, or in `output_dir` for a dataset that is read-only."""
    beside = Path(image_dir).parent / ".arrays"
    own = os.access in os.supports_effective_ids
    writable = os.access(beside if os.path.exists(beside) else beside.parent, os.W_OK, effective_ids=own)
    return beside if writable else Path(output_dir) / ".arrays"


class Loader(DataLoader):
    """A DataLoader of an ImageDataset; what is wrong with a file comes through its workers as the UserError it is."""

    worker_killed = False  # in the last pass through any of them

    def __init__(self, data, **keywords):
        own_draws = torch.Generator()  # leaves the global generator alone
        super().__init__(data, collate_fn=_collate, worker_init_fn=_return_faults, generator=own_draws, **keywords)

    def __iter__(self):
        Loader.worker_killed, batches = False, None
        try:
            batches = super().__iter__()
            for batch in batches:
                if isinstance(batch, UserError):
                    raise batch
                yield batch
        except (ConnectionError, EOFError):  # a worker's pipe breaks a moment before its end can be seen
            wait([worker.sentinel for worker in batches._workers], timeout=5)
            raise
        finally:
            # Where a worker is killed, PyTorch raises a plain RuntimeError at whatever the main process is doing, or
            # the pipe to it breaks. Here, before the others are ended, their exit statuses tell.
            workers = {*getattr(batches, "_workers", ()), *multiprocessing.process._children}
            Loader.worker_killed = any(worker.exitcode for worker in workers)


def _collate(batch):
    if isinstance(batch, UserError):
        return batch
    return batch.tensors if isinstance(batch, Batch) else default_collate(batch)


def _return_faults(worker):
    get_worker_info().dataset.returns_faults = True
    sys.excepthook = _hang_up


def _hang_up(kind, value, trace):
    """A run that is stopped may be taking a batch at that moment; the thread that hands it over need not tell."""
    if not issubclass(kind, (ConnectionError, EOFError)):
        sys.__excepthook__(kind, value, trace)


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
        count, world = len(self.dataset), processes.world_size()
        return -(-count // world) if self.shuffle else len(range(processes.rank(), count, world))


def refuse_infinite(losses, loader, epoch, first):
    """Ends the run where one of the `losses` of batches `first`, ... is not finite, naming the batch's files."""
    for batch, value in enumerate(losses, first):
        if not math.isfinite(value):
            start = batch * loader.batch_size
            order = loader.sampler.order(epoch)[start : start + loader.batch_size]
            names = "\n".join(f"  {loader.dataset.pair_of(index).image}" for index in order)
            raise UserError(
                f"The loss is {value} in epoch {epoch + 1}, batch {batch + 1}, of these files:\n"
                f"{names}\n"
                "The last checkpoint is from before it. Look at the files; then lower LEARNING_RATE, keep "
                "CLIP_GRADIENT on, or try PRECISION = 'float32'."
            )


@torch.no_grad()
def check_accuracy(loader, model, device=None, dtype=None):
    """Prints and returns the Scores of `model` over every image of the loader's dataset, each counted once.

    What the masks hold, one foreground or several classes, with ignored pixels or without, the dataset's `mask_rule`
    (MaskRule) tells; without one it is one foreground. `dtype` is autocast's (None: none). The counts are summed on
    the device and read once, at the end; with several processes each scores its share and all get the same result.
    A loader that shuffles, or leaves images out, has its dataset read in order instead.
    """
    device = torch.device(device or next(model.parameters()).device)
    loader, mask_rule = _in_order(loader), rule_of(loader)
    channels, labels = mask_rule.channels, mask_rule.labels
    training = model.training
    model.eval()
    # The sum of confusions; of one foreground, how many pixels are scored
    counts, total = [], torch.zeros(channels, channels, dtype=torch.int64, device=device)
    for images, masks in loader:
        found, outputs = predicted_labels(images, model, device, dtype, getattr(loader.dataset, "whole", False))
        if outputs != channels:
            raise UserError(
                f"The network has {outputs} output channels, and these masks need {channels}: one for each class "
                "(CLASSES), or one for a single foreground."
            )
        targets = targets_of(masks, device, labels)
        if channels > 1:
            confusions = count_confusion(found, targets, channels)
            counts.append(overlap_of(confusions))
            total += confusions.sum(0)
        elif labels:
            known = targets != IGNORED
            counts.append(count_overlap(found & known, targets == 1))
            total += known.sum()
        else:
            counts.append(count_overlap(found, targets > 0.5))
            total += targets.numel()
    model.train(training)
    exact = torch.device("cpu") if device.type == "mps" else device  # mps has no float64
    everyone = torch.zeros(len(loader.dataset), 3, channels, dtype=torch.float64, device=exact)
    if counts:
        everyone[loader.sampler.order(0)] = torch.cat(counts).reshape(-1, 3, channels).to(exact).double()
    everyone = processes.sum_over_all(everyone).cpu().numpy()
    total = processes.sum_over_all(total.to(exact).double()).cpu().numpy()
    pixels = int(total.sum())
    if channels > 1:
        scores = class_scores(everyone, total, mask_rule.names)
    else:
        scores = foreground_scores(*everyone[..., 0].T, pixels)
    if processes.rank() == 0:
        chosen = f"; Dice {scores.dice_nonempty:.4f} of images that hold something or are predicted to"
        chosen = chosen if scores.dice_nonempty != scores.dice else ""
        if scores.classes:
            print(class_table(scores))
            chosen = f": means over {sum(dice is not None for dice in scores.classes['dice'])} classes"
        print(
            f"Got {round(scores.accuracy * pixels)}/{pixels} pixels right, accuracy {100 * scores.accuracy:.2f} %; "
            f"Dice {scores.dice:.4f}, IoU {scores.iou:.4f}{chosen}"
        )
    return scores


def rule_of(loader):
    """The MaskRule of a loader's dataset; that of one foreground where it has none, as datasets of others."""
    return getattr(loader.dataset, "mask_rule", None) or MaskRule()


def _in_order(loader):
    """`loader` itself where it gives every image of its dataset once and in order, else one that does."""
    if isinstance(loader.sampler, EpochSampler) and not loader.sampler.shuffle:
        return loader
    own = {}  # a Loader has these already
    if not isinstance(loader, Loader):
        own = dict(collate_fn=loader.collate_fn, worker_init_fn=loader.worker_init_fn, generator=torch.Generator())
    sampler = EpochSampler(loader.dataset, shuffle=False)
    return type(loader)(
        loader.dataset, batch_size=loader.batch_size, sampler=sampler, num_workers=loader.num_workers, **own
    )


def save_predictions(loader, model, folder="saved_images/", device=None, dtype=None, limit=None):
    """Writes each batch's predicted masks as `pred_N.png` and its true ones as `N.png`, in grids.

    `folder` is made if need be. `limit` says how many, None for all of them.
    """
    device = torch.device(device or next(model.parameters()).device)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    mask_rule, whole = rule_of(loader), getattr(loader.dataset, "whole", False)
    palette = Palette.of(mask_rule)
    for index, (images, masks) in enumerate(loader):
        if index == limit:
            break
        found = predict(images, model, device, dtype, whole)
        for name, shown in ((f"pred_{index}.png", found), (f"{index}.png", _truths(masks, mask_rule))):
            pictures.save_image(folder / name, pictures.grid(shown.numpy(), palette))


def save_examples(loader, model, scores, epoch, folder="saved_images/", count=6, device=None, dtype=None):
    """Writes what the eye needs: `examples.png` (always the same images), `worst.png` (this epoch's
    lowest Dice), and `strip.png` (one image over the epochs): image, truth, prediction, difference.
    """
    device = torch.device(device or next(model.parameters()).device)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    total = len(loader.dataset)
    count = min(count, total)
    fixed = [round((place + 0.5) * total / count - 0.5) for place in range(count)]  # spread over the set
    worst = np.argsort(scores.per_image, kind="stable")[:count].tolist()
    mask_rule, whole, seen = rule_of(loader), getattr(loader.dataset, "whole", False), {}
    palette = Palette.of(mask_rule)
    for name, indices in (("examples", fixed), ("worst", worst)):
        for batch in [[index] for index in indices if index not in seen] if whole else [indices]:
            images, masks = loader.collate_fn(loader.dataset.__getitems__(batch))
            found = predict(images, model, device, dtype, whole).numpy()
            for index, *shown in zip(batch, _for_eyes(images), _truths(masks, mask_rule).numpy(), found):
                caption = f"{loader.dataset.pairs[index].name}  Dice {scores.per_image[index]:.4f}"
                seen[index] = Example(*shown, caption).shrunk()
        examples = [seen[index] for index in indices]
        sheet = pictures.examples_sheet(examples, f"{name}, epoch {epoch}", palette)
        pictures.save_image(folder / f"{name}.png", sheet)
        if name == "examples":
            _save_strip(folder, examples[0], epoch, scores.per_image[indices[0]], palette)


def _save_strip(folder, example, epoch, dice, palette):
    """Keeps this epoch's mask as `strip/EPOCH_DICE.png` and draws up to eight of them, evenly spread."""
    kept = folder / "strip"
    kept.mkdir(exist_ok=True)
    for old in kept.glob("[0-9][0-9][0-9][0-9]_*.png"):
        if int(old.stem.split("_")[0]) >= epoch:  # of a run that went further than the one that goes on here
            old.unlink()
    pictures.save_mask(kept / f"{epoch:04d}_{dice:.4f}.png", example.prediction, palette)
    frames = sorted(kept.glob("[0-9][0-9][0-9][0-9]_*.png"))
    frames = [frames[i] for i in sorted(set(np.linspace(0, len(frames) - 1, 8).round().astype(int)))]
    named = [frame.stem.split("_") for frame in frames]
    captions = [f"epoch {int(number)}, Dice {dice}" for number, dice in named]
    masks = [pictures.load_mask(frame, palette) for frame in frames]
    # An earlier IMAGE_SIZE may have been another one
    masks = [mask if mask.shape == example.truth.shape else resize_mask(mask, example.truth.shape) for mask in masks]
    pictures.save_image(folder / "strip.png", pictures.strip(example.image, example.truth, masks, captions, palette))


def _truths(masks, mask_rule):
    """True masks of a batch as uint8 (N, H, W), in the values that a MaskRule gives."""
    if mask_rule.labels:
        return targets_of(masks, masks.device, labels=True)[:, 0]
    return (masks.reshape(len(masks), *masks.shape[-2:]) > 0.5).byte()


def _for_eyes(images):
    """Images (N, 3, H, W) of a batch, bytes or floats, as uint8 (N, H, W, 3)."""
    if images.dtype != torch.uint8:
        low, high = images.amin(), images.amax()  # a user's transform may have normalised them
        low, high = min(low, 0 * low), max(high, 0 * high + 1)
        images = ((images - low) / (high - low) * 255).byte()
    return images.permute(0, 2, 3, 1).contiguous().numpy()


def save_checkpoint(state, filename="checkpoint.pth", also=None):
    """Writes the dictionary `state` (tensors and plain types only) to `filename`, whole and flushed.

    A process killed at any moment, a full disk or a power cut leaves the old file or the new one.
    `also` becomes the same file, after it.
    """
    print(f"=> Saving checkpoint {filename}")
    write_whole(filename, lambda file: _torch_save(state, file))
    if also:
        copy_whole(filename, also)


def _torch_save(state, file):
    try:
        torch.save(state, file)
    except RuntimeError as error:
        if isinstance(error.__context__, OSError):  # a full disk: the archive's own complaint hides the cause
            raise error.__context__ from None
        raise
