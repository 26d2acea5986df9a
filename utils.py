"""The article's utilities: loaders, accuracy, predictions to look at, checkpoints."""

import math
import multiprocessing
import os
import pickle
import sys
import urllib.error
import zipfile
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.connection import wait
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader, Sampler, default_collate, get_worker_info

from dataset import Batch, ImageDataset
from parts import pictures, processes
from parts.encoders import build_network
from parts.files import copy_whole, each, write_whole
from parts.inference import Runner, pixels_in_windows
from parts.masks import IGNORED, MaskRule, find_mask_rule, read_mask, resize_mask
from parts.reading import image_size as size_of
from parts.reading import pair_files, resize_image
from parts.recipe import as_written
from parts.script import UserError

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
    span=None,
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
    MASK_FOREGROUND, MASK_IGNORE and CLASSES, and images are read with `span`, (low, high) as in IMAGE_RANGE.
    With `crop` = (height, width), training gets crops (ImageDataset), out of images at `image_size` or, where that is
    None, at their own; validation gets whole images, in batches of one where sizes differ, as many of them as
    `affordable` says. A last training batch that is not full is left out: every epoch leaves out other images.
    UserError tells what is wrong with the files.
    """
    folders = ((train_dir, train_mask_dir), (val_dir, val_mask_dir))
    sides = [report.train, report.val] if report else [pair_files(*side) for side in folders]
    if report:
        rule, span = report.rule, report.span
    else:
        masks = [source for side in sides for pair in side for source in pair.sources[1:]]
        rule = find_mask_rule(masks, foreground, ignore=ignore, classes=classes)
    options = dict(image_size=image_size, rule=rule, span=span, seed=seed)
    loaders = []
    for (image_dir, mask_dir), pairs, shuffle in zip(folders, sides, (True, False)):
        if crop:
            options |= dict(crop=crop, crop_foreground=crop_foreground) if shuffle else dict(crop=None, whole=True)
            pairs = pairs if shuffle else affordable(pairs, loaders[0].dataset, image_size, rule)
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


def affordable(pairs, training, image_size, rule):
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
    holds = np.array(list(each(partial(_holds, rule=rule, size=image_size), [pairs[index] for index in order])))
    needed = list({int(places.argmax()): None for places in holds.T if places.any()})
    chosen = [*needed, *(place for place in range(len(pairs)) if place not in needed)][: max(few, 4, len(needed))]
    if processes.rank() == 0:
        print(
            f"To score all {len(pairs)} validation images would take longer than a fifth of an epoch: {len(chosen)} of "
            "them are scored, the same ones each time. predict.py --masks scores all."
        )
    return [pairs[index] for index in sorted(order[chosen])]


def _holds(pair, rule, size):
    """Of each class, or of the foreground alone, whether a pair's mask has it."""
    mask = read_mask(pair.masks, rule, size, pair.mask_page)
    return [bool((mask == label).any()) for label in (range(rule.channels) if rule.classes else (1,))]


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


def to_device(images, device):
    """Images (N, 3, H, W) as the network takes them, in [0, 1].

    uint8 travels to the device and is scaled there; floats (from the article's transform) stay as they are.
    """
    images = images.to(device, non_blocking=True)
    if images.dtype == torch.uint8:
        images = images.float().div_(255)
    return images if device.type == "mps" else images.contiguous(memory_format=torch.channels_last)


def targets_of(masks, device, labels=False):
    """Masks of a batch (N, H, W) or (N, 1, H, W) as the loss takes them: float32 (N, 1, H, W) of {0, 1}.

    With `labels` (a MaskRule's), as where there are classes or ignored pixels: uint8 (N, 1, H, W). UserError: a
    transform has made something else of them than whole numbers from 0 to 255.
    """
    if labels and masks.dtype != torch.uint8:
        whole = masks.to(torch.uint8)
        if not torch.equal(whole.to(masks.dtype), masks):
            raise UserError(
                "The transform has changed the values of the masks, which are the indices of classes and "
                f"{IGNORED} where a pixel is ignored: have it leave them whole, with nearest interpolation."
            )
        masks = whole
    masks = masks.to(device, non_blocking=True)
    masks = masks.reshape(len(masks), 1, *masks.shape[-2:])
    return masks if labels else masks.float()


# ---- accuracy

_COUNTED = 2**22  # pixels of an image that are counted at once: each takes 24 bytes then


@dataclass
class Scores:
    """Of one validation: pixel accuracy, Dice and IoU, and what the images had. Ignored pixels count nowhere.

    Dice = 2 |P and T| / (|P| + |T|) of the predicted and the true pixels of an image (L. R. Dice: Measures of the
    amount of ecologic association between species, 1945), IoU = |P and T| / |P or T|.
    One foreground: both are the means over the images, in which two empty masks count 1.
    Several classes: a class's Dice is the mean over the images that hold it or were given it. Its IoU is that of the
    counts of all images together, true positives / (true positives + false positives + false negatives), as the
    PASCAL VOC challenge of 2012 scores segmentation and ConfusionMatrix in torchvision's references/segmentation
    does. `dice` and `iou` are the means over the classes that have one.
    """

    accuracy: float  # right ones among the pixels that are not ignored
    dice: float
    dice_nonempty: float  # what chooses: of the images that hold something or are predicted to; with classes, `dice`
    iou: float
    predicted_share: float  # of all pixels; with classes, that of the one that is predicted most
    true_share: float  # with classes, of that same class
    per_image: list = field(repr=False)  # each image's Dice, in the dataset's order; with classes, their mean
    # By class, in lists: "names"; "dice", "iou" (None where no image holds it or was given it); "share" of the true
    # pixels; "confusion", counts of pixels, rows true, columns predicted. None for one foreground.
    classes: dict | None = field(default=None, repr=False)


def count_overlap(predictions, truths):
    """(N, 3) counts of pixels, of each image: in both, predicted, true. Takes booleans (N, ..., H, W)."""
    predictions, truths = predictions.flatten(1), truths.flatten(1)
    return torch.stack([(predictions & truths).sum(1), predictions.sum(1), truths.sum(1)], dim=1)


def dice_from_counts(both, predicted, true):
    """Dice = 2 |P and T| / (|P| + |T|) of each image; both empty count 1."""
    return np.where(predicted + true == 0, 1.0, 2 * both / np.maximum(predicted + true, 1))


def dice_of_choice(both, predicted, true):
    """What chooses goes by this: the mean Dice of the images that hold something or are predicted to; 1 if none do."""
    chosen = predicted + true > 0
    return float(dice_from_counts(both, predicted, true)[chosen].mean()) if chosen.any() else 1.0


def iou_from_counts(both, predicted, true):
    """IoU = |P and T| / |P or T| of each image; both empty count 1."""
    union = predicted + true - both
    return np.where(union == 0, 1.0, both / np.maximum(union, 1))


def count_confusion(predictions, truths, classes):
    """(N, C, C) counts of pixels, of each image: rows true, columns predicted. Takes labels (N, ..., H, W).

    Where the true label is none of the `classes`, which IGNORED is not, a pixel counts nowhere.
    """
    counts = torch.zeros(len(truths), 256 * classes, dtype=torch.int64, device=truths.device)
    for part, found in zip(truths.flatten(1).split(_COUNTED, 1), predictions.flatten(1).split(_COUNTED, 1)):
        pairs = part.long() * classes + found
        counts.scatter_add_(1, pairs, pairs.new_ones(()).expand_as(pairs))  # which, unlike bincount, waits for no GPU
    return counts[:, : classes**2].reshape(-1, classes, classes)


def overlap_of(confusion):
    """(N, 3, C) counts, as count_overlap has them, of each class: of confusions (N, C, C)."""
    return torch.stack([confusion.diagonal(dim1=1, dim2=2), confusion.sum(1), confusion.sum(2)], dim=1)


def foreground_scores(both, predicted, true, pixels):
    """The Scores of one foreground, of each image's counts (N,) and of how many `pixels` there are in all."""
    per_image, pixels = dice_from_counts(both, predicted, true), max(1, pixels)
    return Scores(
        accuracy=(pixels - int((predicted + true - 2 * both).sum())) / pixels,
        dice=float(per_image.mean()),
        dice_nonempty=dice_of_choice(both, predicted, true),
        iou=float(iou_from_counts(both, predicted, true).mean()),
        predicted_share=float(predicted.sum() / pixels),
        true_share=float(true.sum() / pixels),
        per_image=per_image.tolist(),
    )


def class_scores(overlap, confusion, names):
    """The Scores of several classes, of each image's counts (N, 3, C), overlap_of, and the sum of confusions (C, C)."""
    both, predicted, true = np.moveaxis(np.asarray(overlap), 1, 0)
    confusion = np.asarray(confusion).astype(np.int64)
    held = predicted + true > 0
    dice = np.where(held, dice_from_counts(both, predicted, true), 0)
    images, there = held.sum(0), held.any(0)
    by_class = dice.sum(0) / np.maximum(images, 1)
    columns, rows, pixels = confusion.sum(0), confusion.sum(1), max(1, confusion.sum())
    iou = iou_from_counts(confusion.diagonal(), columns, rows)
    per_image = np.where(held.any(1), dice.sum(1) / np.maximum(held.sum(1), 1), 1.0)
    mean_dice = float(by_class[there].mean()) if there.any() else 1.0
    most = int(columns.argmax())
    return Scores(
        accuracy=float(confusion.trace() / pixels),
        dice=mean_dice,
        dice_nonempty=mean_dice,
        iou=float(iou[there].mean()) if there.any() else 1.0,
        predicted_share=float(columns[most] / pixels),
        true_share=float(rows[most] / pixels),
        per_image=per_image.tolist(),
        classes=dict(
            names=list(names),
            dice=[float(value) if has else None for value, has in zip(by_class, there)],
            iou=[float(value) if has else None for value, has in zip(iou, there)],
            share=(rows / pixels).tolist(),
            confusion=confusion.tolist(),
        ),
    )


@torch.no_grad()
def check_accuracy(loader, model, device=None, dtype=None):
    """Prints and returns the Scores of `model` over every image of the loader's dataset, each counted once.

    What the masks hold, one foreground or several classes, with ignored pixels or without, the dataset's `rule`
    (MaskRule) tells; without one it is one foreground. `dtype` is autocast's (None: none). The counts are summed on
    the device and read once, at the end; with several processes each scores its share and all get the same result.
    A loader that shuffles, or leaves images out, has its dataset read in order instead.
    """
    device = torch.device(device or next(model.parameters()).device)
    loader, rule = _in_order(loader), rule_of(loader)
    channels, labels = rule.channels, rule.labels
    training = model.training
    model.eval()
    # The sum of confusions; of one foreground, how many pixels are scored
    counts, total = [], torch.zeros(channels, channels, dtype=torch.int64, device=device)
    for images, masks in loader:
        found, outputs = _labels(images, model, device, dtype, getattr(loader.dataset, "whole", False))
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
        scores = class_scores(everyone, total, rule.names)
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


def _labels(images, model, device, dtype, whole=False):
    """(what `model` predicts, how many channels it has): booleans (N, 1, H, W), or the classes' indices, on `device`.

    `whole` images are of any size, and run in windows.
    """
    if whole:
        cudnn, tries = torch.backends.cudnn, torch.backends.cudnn.benchmark
        cudnn.benchmark = False  # it would try its kernels for every size anew
        with as_written(model):
            labels = _labels_in_windows(images, Runner(model, device, dtype))
        cudnn.benchmark = tries
        return labels
    with as_written(model), torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
        logits = model(to_device(images, device))
    return logits.argmax(1, keepdim=True) if logits.shape[1] > 1 else logits > 0, logits.shape[1]


def _labels_in_windows(images, runner):
    kind = torch.uint8 if runner.channels > 1 else torch.bool
    labels = torch.empty(len(images), 1, *images.shape[2:], dtype=kind, device=runner.device)
    for image, found in zip(images.permute(0, 2, 3, 1).numpy(), labels[:, 0]):
        for top, logits in runner.bands(image):
            found[top : top + logits.shape[1]] = logits.argmax(0) if runner.channels > 1 else logits[0] > 0
    return labels, runner.channels


def class_table(scores, most=20):
    """The classes of `scores` in lines of words, the lowest Dice first; of more than `most` the rest are counted.

    A class that is never right has 0.0000; one that no image holds, or is given, has no Dice.
    """
    found = scores.classes
    rows = list(zip(found["names"], found["dice"], found["iou"], found["share"]))
    rows.sort(key=lambda row: (row[1] is None, row[1]))
    shown = rows if len(rows) <= most else rows[: most - 1]
    width = min(30, max(len("class"), *(len(name) for name, *_ in shown)))
    lines = [f"  {'class':<{width}}    Dice     IoU  of pixels"]
    for name, dice, iou, share in shown:
        numbers = "     -       -" if dice is None else f"{dice:.4f}  {iou:.4f}"
        lines.append(f"  {name:<{width}}  {numbers}  {100 * share:7.2f} %")
    more = [f"  ... and {len(rows) - len(shown)} more"] if len(rows) > len(shown) else []
    return "\n".join(lines + more)


def class_columns(scores):
    """{"dice_NAME": Dice} of each class, for a row of the history; {} for one foreground.

    No column has the name of another one, such as dice_nonempty's.
    """
    columns = {}
    found = scores.classes or {"names": [], "dice": []}
    for index, (name, dice) in enumerate(zip(found["names"], found["dice"])):
        column = f"dice_{name}"
        while column in columns or column in vars(scores):
            column += f"_{index}"
        columns[column] = dice
    return columns


def rule_of(loader):
    """The MaskRule of a loader's dataset; that of one foreground where it has none, as datasets of others."""
    return getattr(loader.dataset, "rule", None) or MaskRule()


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


def symptom(scores):
    """What scores that cannot be right point to, in words, or None."""
    held = f"though the masks hold {100 * scores.true_share:.1f} %"
    if scores.classes:
        names, confusion = scores.classes["names"], np.array(scores.classes["confusion"])
        given, there = np.flatnonzero(confusion.sum(0)), np.flatnonzero(confusion.sum(1))
        if not len(given) == 1 < len(there):
            return None
        what = f"predicted as {names[given[0]]}, {held} of it, and {len(there)} classes in all"
    elif scores.predicted_share == 0 < scores.true_share:
        what = f"predicted as background, {held} of foreground"
    elif scores.predicted_share == 1 > scores.true_share:
        what = f"predicted as foreground, {held} of it"
    else:
        return None
    return (
        f"Every pixel of the validation images is {what}. In the first epochs this may pass. If it stays: look at "
        "the overlays of the audit (do the masks lie on what is meant?), then lower LEARNING_RATE."
    )


# ---- predictions to look at

_SHEET_HEIGHT = 4 * pictures.TILE_HEIGHT  # at which images are kept for a sheet: what is thin shows faintly there


@torch.no_grad()
def predict(images, model, device, dtype=None, whole=False):
    """Masks (N, H, W) uint8 of {0, 1}, on the CPU, for a batch of images as a loader gives them.

    Of a network with a channel for each class the indices of classes. `whole` images run in windows.
    """
    training = model.training
    model.eval()
    found, _ = _labels(images, model, device, dtype, whole)
    model.train(training)
    return found[:, 0].byte().cpu()


def save_predictions(loader, model, folder="saved_images/", device=None, dtype=None, limit=None):
    """Writes each batch's predicted masks as `pred_N.png` and its true ones as `N.png`, in grids.

    `folder` is made if need be. `limit` says how many, None for all of them.
    """
    device = torch.device(device or next(model.parameters()).device)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    rule, whole = rule_of(loader), getattr(loader.dataset, "whole", False)
    classes = pictures.classes_of(rule)
    for index, (images, masks) in enumerate(loader):
        if index == limit:
            break
        found = predict(images, model, device, dtype, whole)
        for name, shown in ((f"pred_{index}.png", found), (f"{index}.png", _truths(masks, rule))):
            pictures.save_image(folder / name, pictures.grid(shown.numpy(), classes=classes))


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
    rule, whole, seen = rule_of(loader), getattr(loader.dataset, "whole", False), {}
    classes = pictures.classes_of(rule)
    for name, indices in (("examples", fixed), ("worst", worst)):
        for batch in [[index] for index in indices if index not in seen] if whole else [indices]:
            images, masks = loader.collate_fn(loader.dataset.__getitems__(batch))
            found = predict(images, model, device, dtype, whole).numpy()
            seen |= zip(batch, map(for_sheet, _for_eyes(images), _truths(masks, rule).numpy(), found))
        shown, truths, found = zip(*(seen[index] for index in indices))
        captions = [f"{loader.dataset.pairs[i].name}  Dice {scores.per_image[i]:.4f}" for i in indices]
        sheet = pictures.examples_sheet(shown, truths, found, captions, f"{name}, epoch {epoch}", classes=classes)
        pictures.save_image(folder / f"{name}.png", sheet)
        if name == "examples":
            _save_strip(folder, shown[0], truths[0], found[0], epoch, scores.per_image[indices[0]], classes)


def for_sheet(image, *masks):
    """An image (H, W, 3) and masks (H, W) of it, no larger than their sheet needs: photographs would fill memory."""
    scale = min(1, _SHEET_HEIGHT / image.shape[0], 2 * _SHEET_HEIGHT / image.shape[1])
    size = tuple(max(1, round(side * scale)) for side in image.shape[:2])
    return (resize_image(image, size), *(resize_mask(mask, size) for mask in masks)) if scale < 1 else (image, *masks)


def _save_strip(folder, image, truth, prediction, epoch, dice, classes):
    """Keeps this epoch's mask as `strip/EPOCH_DICE.png` and draws up to eight of them, evenly spread."""
    kept = folder / "strip"
    kept.mkdir(exist_ok=True)
    for old in kept.glob("[0-9][0-9][0-9][0-9]_*.png"):
        if int(old.stem.split("_")[0]) >= epoch:  # of a run that went further than the one that goes on here
            old.unlink()
    pictures.save_image(kept / f"{epoch:04d}_{dice:.4f}.png", prediction if classes else prediction * 255)
    frames = sorted(kept.glob("[0-9][0-9][0-9][0-9]_*.png"))
    frames = [frames[i] for i in sorted(set(np.linspace(0, len(frames) - 1, 8).round().astype(int)))]
    named = [frame.stem.split("_") for frame in frames]
    captions = [f"epoch {int(number)}, Dice {dice}" for number, dice in named]
    masks = [pictures.load_mask(frame, classes) for frame in frames]
    # An earlier IMAGE_SIZE may have been another one
    masks = [mask if mask.shape == truth.shape else resize_mask(mask, truth.shape) for mask in masks]
    pictures.save_image(folder / "strip.png", pictures.strip(image, truth, masks, captions, classes=classes))


def _truths(masks, rule):
    """True masks of a batch as uint8 (N, H, W), in the values that a MaskRule gives."""
    if rule.labels:
        return targets_of(masks, masks.device, labels=True)[:, 0]
    return (masks.reshape(len(masks), *masks.shape[-2:]) > 0.5).byte()


def _for_eyes(images):
    """Images (N, 3, H, W) of a batch, bytes or floats, as uint8 (N, H, W, 3)."""
    if images.dtype != torch.uint8:
        low, high = images.amin(), images.amax()  # a user's transform may have normalised them
        low, high = min(low, 0 * low), max(high, 0 * high + 1)
        images = ((images - low) / (high - low) * 255).byte()
    return images.permute(0, 2, 3, 1).contiguous().numpy()


# ---- checkpoints: whole at every instant, verified when read, and nothing in them executed

_WEIGHT_KEYS = ("state_dict", "model_state_dict", "model")  # ours and the article's; then other layouts
_PREFIXES = ("_orig_mod.", "module.")  # torch.compile and DistributedDataParallel put these before keys


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


def set_aside(output):
    """A new run in an old one's folder leaves the old one's work under another name, until the next new one."""
    for name in ("checkpoint.pth", "best.pth", "history.csv"):
        old = output / name
        if old.exists():
            kept = old.replace(output / f"{old.stem}.previous{old.suffix}")
            print(f"{old} of an earlier run is now {kept}")


def read_checkpoint(filename, device="cpu"):
    """The dictionary in `filename`, its weights under `state_dict` without a wrapper's prefixes.

    Every record's CRC is checked first, so a damaged file is refused rather than loaded wrong, and
    only tensors and plain types are unpickled. Files of the article's code, bare state dicts and
    those of torch.compile or DistributedDataParallel are read too. UserError names what is wrong.
    """
    expected = "Expected a file that train.py saved, or another PyTorch file with a state_dict"
    path = Path(filename)
    if not path.is_file():
        raise UserError(f"{path}: there is no such checkpoint. Train first, or name another file.")
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                damaged = archive.testzip()
            if damaged:
                raise UserError(f"{path}: damaged (checksum of {damaged}). Use another checkpoint.")
        checkpoint = torch.load(path, map_location=device, weights_only=True)
    except UserError:
        raise
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path}: refused, because it is damaged or holds more than tensors and plain values, "
            f"which could run code. {expected}."  # PyTorch's own words tell how to run it
        ) from error
    except Exception as error:  # a truncated or foreign file fails in many ways, all of them meaning this
        raise UserError(f"{path}: not a readable checkpoint ({_first_line(error)}). {expected}.") from error
    if not isinstance(checkpoint, dict):
        raise UserError(f"{path}: holds a {type(checkpoint).__name__}. {expected}.")
    key = next((key for key in _WEIGHT_KEYS if isinstance(checkpoint.get(key), dict)), None)
    weights = checkpoint.pop(key) if key else checkpoint
    if not key:  # bare weights; some programs keep a list or two beside them
        weights = {name: value for name, value in weights.items() if isinstance(value, torch.Tensor)}
    if not weights or not all(isinstance(value, torch.Tensor) for value in weights.values()):
        raise UserError(f"{path}: holds no weights. {expected}.")
    return (checkpoint if key else {}) | {"state_dict": _without_prefixes(weights)}


def _first_line(error):
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def _without_prefixes(weights):
    """The same state dict, its keys as the bare network has them."""
    for prefix in _PREFIXES * 2:  # either wrapper may be the outer one
        if weights and all(key.startswith(prefix) for key in weights):
            weights = {key[len(prefix) :]: value for key, value in weights.items()}
    return weights


def load_checkpoint(checkpoint, model, source="the checkpoint"):
    """Puts the weights of `checkpoint` (a dictionary with `state_dict`) into `model`, all or nothing.

    UserError: they are of another network.
    """
    print("=> Loading checkpoint")
    _load_weights(model, _without_prefixes(checkpoint["state_dict"]), source)


def _load_weights(model, weights, source):
    own = model.state_dict()
    missing = [key for key in own if key not in weights]
    foreign = [key for key in weights if key not in own]
    shapes = [
        f"{key} is {tuple(weights[key].shape)} there and {tuple(own[key].shape)} here"
        for key in own
        if key in weights and own[key].shape != weights[key].shape
    ]
    if missing or foreign or shapes:
        words = [f"{source} belongs to another architecture (FEATURES, ENCODER or the channels differ):"]
        for label, items in (("lacks", missing), ("has, unknown here,", foreign), ("misfit:", shapes)):
            if items:
                more = f" and {len(items) - 3} more" if len(items) > 3 else ""
                words.append(f"  {label} {', '.join(items[:3])}{more}")
        raise UserError("\n".join(words))
    model.load_state_dict(weights)


# These settings change where a run happens, not what becomes of it.
_OUTSIDE = ["LOAD_MODEL", "DEMO", "OUTPUT_DIR", "NUM_WORKERS", "PIN_MEMORY", "ARRAYS", "PICTURE_BATCHES"]


def run_state(model, optimizer, schedule, scaler, history, since, scores, s, architecture, rule, scored_on, span=None):
    """The checkpoint of a run with the settings `s`, in tensors and plain types: all that `resume` needs.

    Random draws need no place here: the order of the images, the flips and a transform's draws come from
    generators made of (SEED, epoch, index), so that an epoch is the same whoever reaches it.
    """
    return dict(
        state_dict=model.state_dict(),
        optimizer=optimizer.state_dict(),
        schedule=schedule.state_dict(),
        scaler=scaler.state_dict(),
        epoch=len(history),
        best_dice=best_of(history[since:])["dice"],
        history=history,
        since=since,
        scores=vars(scores),
        scored_on=scored_on,
        network=architecture,
        mask_rule=rule.to_dict(),
        image_size=s.IMAGE_SIZE and list(s.IMAGE_SIZE),
        crop=s.CROP and list(s.CROP),
        image_range=span and list(span),
        settings={name: value for name, value in vars(s).items() if name not in _OUTSIDE},
        processes=processes.world_size(),
    )


def snapshot(state):
    """A copy of a checkpoint's dictionary on the CPU, which training that goes on does not change."""
    if isinstance(state, torch.Tensor):
        return state.detach().to("cpu", copy=True)
    if isinstance(state, dict):
        return {key: snapshot(it) for key, it in state.items()}
    return type(state)(map(snapshot, state)) if isinstance(state, (list, tuple)) else state


def resume(path, model, optimizer, schedule, scaler, s, scored_on, rule=None):
    """Goes on from the checkpoint `path`, exactly: (history, since, the last Scores).

    `rule`, the masks' MaskRule, must be of the classes that the checkpoint's network has.

    `history` has a dictionary for each epoch. Where other validation images, another IMAGE_SIZE or another
    reading of the masks are `scored_on`, old scores do not compare: the best epoch is looked for after `since`,
    and the last Scores are None. Says that, and which settings were others when it was saved.
    UserError: it is of another network or other classes, unreadable, or has all its epochs behind it.
    """
    saved = read_checkpoint(path, next(model.parameters()).device)
    if other := _other_classes(saved, rule):
        raise UserError(
            f"{path}: {other}. Going on needs the same ones, in the same order (CLASSES). To start a new run from "
            f"these weights, leave LOAD_MODEL off and set PRETRAINED (--pretrained {path})."
        )
    load_checkpoint(saved, model, str(path))
    history = saved.get("history", [])
    if len(history) >= s.NUM_EPOCHS:
        raise UserError(
            f"{path}: has all of its {len(history)} epochs behind it, and NUM_EPOCHS = {s.NUM_EPOCHS} counts those of "
            f"the whole run. To go on, give a larger one (--num-epochs {2 * len(history)}); to start a new run from "
            f"these weights, leave LOAD_MODEL off and set PRETRAINED (--pretrained {path})."
        )
    own = [{key: it for key, it in group.items() if key != "params"} for group in optimizer.param_groups]
    for name, part in dict(optimizer=optimizer, schedule=schedule, scaler=scaler).items():
        if saved.get(name):
            try:
                part.load_state_dict(saved[name])
            except (ValueError, KeyError, RuntimeError) as error:
                print(f"The {name} starts anew: its state in {path} does not fit ({error}).")
    for group, kept in zip(optimizer.param_groups, own):
        group.update(kept)  # WEIGHT_DECAY and the like are those of now, not the saved ones
    before = saved.get("settings", {}) | {"PROCESSES": saved.get("processes", 1)}
    now = vars(s) | {"PROCESSES": processes.world_size()}
    changed = [f"{name} {before[name]!r} -> {now[name]!r}" for name in now if before.get(name, now[name]) != now[name]]
    same = saved.get("scored_on", scored_on) == scored_on
    since = saved.get("since", 0) if same else len(history)
    if processes.rank() == 0:
        if changed:
            print("Not the run that would have been, for these have changed: " + ", ".join(changed))
        best = f", best Dice {best_of(history[since:])['dice']:.4f}" if history[since:] else ""
        print(f"Going on after epoch {len(history)}{best}")
        if not same:
            print(
                "The validation images, IMAGE_SIZE or what the masks mean are not those of before, so the old scores "
                "do not compare: the best Dice, best.pth and PATIENCE start anew."
            )
    return history, since, Scores(**saved["scores"]) if same and "scores" in saved else None


def best_of(history):
    """The epoch that is chosen, the first of several: see dice_of_choice."""
    return max(history, key=lambda row: row.get("dice_nonempty", row["dice"]))


def _other_classes(checkpoint, rule):
    """In words, that the checkpoint's network has other classes than masks read by `rule`; None where it has not.

    Files of other programs do not say which classes they have: None.
    """
    saved = checkpoint.get("mask_rule")
    if rule is None or not isinstance(saved, dict):
        return None
    old, new = list(saved.get("names", ())), list(rule.names)
    return f"its network has {_listed(old)}, and the masks have {_listed(new)}" if old != new else None


def _listed(names):
    """The names of classes in words, the first of very many."""
    more = f" and {len(names) - 12} more" if len(names) > 12 else ""
    return f"the classes {', '.join(names[:12])}{more}" if names else "one foreground"


def load_pretrained(path, model, rule=None):
    """Puts the weights of a checkpoint into `model`, for a new run on masks that are read by `rule` (MaskRule).

    An output layer for other classes stays as it is, random, and this is said. UserError: it is of another network.
    """
    saved = read_checkpoint(path)
    weights, own = saved["state_dict"], model.state_dict()
    head = [key for key in weights if key.startswith("output_conv.") and key in own]
    other = _other_classes(saved, rule)
    if not other and any(weights[key].shape != own[key].shape for key in head):
        shapes = weights["output_conv.weight"].shape[0], own["output_conv.weight"].shape[0]
        other = f"has {shapes[0]} output channels, and {shapes[1]} are needed"
    if other:
        print(f"{path}: {other}: the output layer starts anew.")
        weights = {**weights, **{key: own[key] for key in head}}
    _load_weights(model, weights, f"PRETRAINED = {str(path)!r}")
    print(f"Starting from the weights in {path}")


def load_network(path):
    """(network, checkpoint) of a file that train.py or the article's code saved; the network is in eval mode.

    It takes images (N, 3, H, W) in [0, 1] and gives logits (N, 1, H, W), or (N, C, H, W) of the C classes of
    checkpoint["mask_rule"], a dictionary as of MaskRule. Where a file does not say what its channels are, they are
    classes of the values 0 to C - 1. UserError: it is of another network than that.
    """
    checkpoint = read_checkpoint(path)
    for key in ("network", "settings"):  # another's file may hold none, or something else
        if not isinstance(checkpoint.get(key), dict):
            checkpoint[key] = {}
    architecture = checkpoint["network"] or _plain_architecture(checkpoint["state_dict"])
    if architecture is None:
        raise UserError(f"{path}: neither says what network it is of, nor are its weights those of the plain one.")
    try:
        network = build_network(**architecture)
        rule = MaskRule.from_dict(checkpoint["mask_rule"]) if isinstance(checkpoint.get("mask_rule"), dict) else None
    except TypeError as error:
        raise UserError(f"{path}: says of its network what is not understood here ({error}).") from error
    inputs, outputs = network.in_channels, network.output_conv.out_channels
    if rule is None and 1 < outputs < IGNORED:
        values = tuple(range(outputs))
        rule = MaskRule(background=(), foreground=(), classes=values, names=tuple(map(str, values)))
        checkpoint["mask_rule"] = rule.to_dict()
    channels = rule.channels if rule else 1
    if (inputs, outputs) != (3, channels):
        one_each = f"{channels}, one for each class," if channels > 1 else "one for the mask"
        raise UserError(
            f"{path}: its network has {inputs} channels in and {outputs} out. RGB (3) and {one_each} are needed."
        )
    _load_weights(network, checkpoint.pop("state_dict"), str(path))  # popped: its memory is free again
    return network.eval(), checkpoint


def _plain_architecture(weights):
    """The plain network that has these weights, for build_network, or None."""
    try:
        features = []
        while f"encoder.{len(features)}.conv.0.weight" in weights:
            features.append(weights[f"encoder.{len(features)}.conv.0.weight"].shape[0])
        channels = weights["encoder.0.conv.0.weight"].shape[1], weights["output_conv.weight"].shape[0]
    except (KeyError, IndexError):
        return None
    return dict(in_channels=channels[0], out_channels=channels[1], features=features)


def load_encoder_weights(network, name, weights):
    """Puts torchvision's weights of its network `name` into the encoder of `network`.

    `weights`: torchvision's word for them ("DEFAULT", "IMAGENET1K_V1"), or the path of a state dict. The
    classifier's are left out, and the counters that BatchNorm had not in the days of some of torchvision's
    files may be missing. UserError: they cannot be had, or are of another network.
    """
    found = _encoder_weights(name, weights)
    counters = {key: it for key, it in network.encoder.state_dict().items() if key.endswith("num_batches_tracked")}
    features = {key: it for key, it in found.items() if not key.startswith(("fc.", "classifier."))}
    _load_weights(network.encoder, counters | features, f"ENCODER_WEIGHTS = {weights!r}")


def _encoder_weights(name, weights):
    if Path(weights).is_file():
        return read_checkpoint(weights)["state_dict"]
    from torchvision.models import get_model_weights  # here, because it takes a second or two to load

    known = get_model_weights(name)
    if weights not in known.__members__:
        names = ", ".join(["DEFAULT", *(member.name for member in known)])
        raise UserError(f"ENCODER_WEIGHTS = {weights!r} is neither a file nor among {names}. None trains from scratch.")
    entry = known[weights]
    file = Path(torch.hub.get_dir()) / "checkpoints" / entry.url.rpartition("/")[2]
    if file.is_file():
        return read_checkpoint(file)["state_dict"]  # a damaged one is told by its name
    try:
        return entry.get_state_dict(progress=True, check_hash=True, weights_only=True)
    except (urllib.error.URLError, OSError, RuntimeError) as error:
        raise UserError(
            f"The weights {entry} could not be fetched ({error}).\nOn a machine with a network fetch\n  {entry.url}\n"
            f"and put it at\n  {file}\n"
            "or name its place in ENCODER_WEIGHTS; ENCODER_WEIGHTS = None trains from scratch."
        ) from error
