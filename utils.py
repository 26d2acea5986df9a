"""The article's utilities: loaders, accuracy, predictions to look at, checkpoints."""

import math
import multiprocessing
import os
import sys
from functools import partial
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Sampler, default_collate, get_worker_info

from dataset import Batch, ImageDataset
from parts import pictures, processes
from parts.errors import UserError
from parts.files import copy_whole, parallel_map, write_whole
from parts.images import image_size as size_of
from parts.inference import BatchPredictor, pixels_in_windows
from parts.mask_rules import find_mask_rule
from parts.masks import MaskRule, read_mask, resize_mask
from parts.names import pair_files
from parts.pictures import Example, Palette
from parts.recipe import true_labels
from parts.scores import Scores, count_confusion, overlap_of, scores_of, summary
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


# ---- scores and pictures


def check_accuracy(
    loader: DataLoader,
    model: nn.Module,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> Scores:
    """Prints and returns the Scores of `model` over every image of the loader's dataset, each counted once.

    The dataset's `mask_rule` (MaskRule) tells whether there is one foreground or several classes, and whether pixels
    are ignored; without one it is one foreground. `dtype` is autocast's (None: none). With several processes each
    scores its share and all get the same result. A loader that shuffles, or leaves images out, has its dataset read in
    order instead. UserError: the network has other output channels than the masks need.
    """
    predictor = _predictor_of(loader, model, device, dtype)
    overlap, confusion = _count_labels(_in_order(loader), predictor)
    scores = scores_of(overlap, confusion, predictor.mask_rule.names)
    if processes.rank() == 0:
        print(summary(scores, int(confusion.sum())))
    return scores


def _count_labels(loader: DataLoader, predictor: BatchPredictor) -> tuple[np.ndarray, np.ndarray]:
    """Each image's counts (N, 3, L), as of overlap_of, and the sum of all confusions (L, L), over all processes.

    They are summed on the device and read once, at the end.
    """
    device, num_labels = predictor.device, predictor.mask_rule.num_labels
    dataset: Any = loader.dataset
    sampler: Any = loader.sampler  # an EpochSampler, which tells which images this process scores
    counts = []
    total = torch.zeros(num_labels, num_labels, dtype=torch.int64, device=device)
    for images, masks in loader:
        truths = true_labels(masks, device, predictor.mask_rule)
        confusions = count_confusion(predictor.labels(images), truths, num_labels)
        counts.append(overlap_of(confusions))
        total += confusions.sum(0)
    exact = torch.device("cpu") if device.type == "mps" else device  # mps has no float64
    overlap = torch.zeros(len(dataset), 3, num_labels, dtype=torch.float64, device=exact)
    if counts:
        overlap[sampler.order(0)] = torch.cat(counts).to(exact).double()
    overlap = processes.sum_over_all(overlap)
    total = processes.sum_over_all(total.to(exact).double())
    return overlap.cpu().numpy(), total.cpu().numpy()


def rule_of(loader: DataLoader) -> MaskRule:
    """The MaskRule of a loader's dataset; that of one foreground where the dataset has none, as a user's own."""
    return getattr(loader.dataset, "mask_rule", None) or MaskRule()


def _predictor_of(
    loader: DataLoader, model: nn.Module, device: torch.device | str | None, dtype: torch.dtype | None
) -> BatchPredictor:
    """What predicts the labels of a loader's batches, on `device` (None: where the model is)."""
    device = torch.device(device or next(model.parameters()).device)
    return BatchPredictor(model, rule_of(loader), device, dtype, getattr(loader.dataset, "whole", False))


def _in_order(loader: DataLoader) -> DataLoader:
    """`loader` itself where it gives every image of its dataset once and in order, else one that does."""
    if isinstance(loader.sampler, EpochSampler) and not loader.sampler.shuffle:
        return loader
    own: dict[str, Any] = {}  # a Loader has these already
    if not isinstance(loader, Loader):
        own = dict(collate_fn=loader.collate_fn, worker_init_fn=loader.worker_init_fn, generator=torch.Generator())
    sampler = EpochSampler(loader.dataset, shuffle=False)
    return type(loader)(
        loader.dataset, batch_size=loader.batch_size, sampler=sampler, num_workers=loader.num_workers, **own
    )


def save_predictions(
    loader: DataLoader,
    model: nn.Module,
    folder: str | Path = "saved_images/",
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    limit: int | None = None,
) -> None:
    """Writes each batch's predicted masks as `pred_N.png` and its true ones as `N.png`, in grids.

    `folder` is made if need be. `limit`: so many batches, None for all of them.
    """
    predictor = _predictor_of(loader, model, device, dtype)
    palette = Palette.of(predictor.mask_rule)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for index, (images, masks) in enumerate(loader):
        if index == limit:
            break
        truths = true_labels(masks, masks.device, predictor.mask_rule)
        for name, labels in ((f"pred_{index}.png", predictor.labels(images)), (f"{index}.png", truths)):
            pictures.save_image(folder / name, pictures.grid(labels[:, 0].cpu().numpy(), palette))


def save_examples(
    loader: DataLoader,
    model: nn.Module,
    scores: Scores,
    epoch: int,
    folder: str | Path = "saved_images/",
    count: int = 6,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> None:
    """Writes pictures of `count` validation images: each one, its true mask, its predicted mask, and the difference.

    `examples.png` shows always the same images, `worst.png` those with this epoch's lowest Dice, and `strip.png` one
    image over the epochs.
    """
    predictor = _predictor_of(loader, model, device, dtype)
    palette = Palette.of(predictor.mask_rule)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    dataset: Any = loader.dataset
    total = len(dataset)
    count = min(count, total)
    spread = [round((place + 0.5) * total / count - 0.5) for place in range(count)]  # evenly over the dataset
    worst = np.argsort(scores.per_image, kind="stable")[:count].tolist()

    examples: dict[int, Example] = {}
    for name, indices in (("examples", spread), ("worst", worst)):
        batches = [indices]
        if predictor.in_windows:  # images of different sizes make no batch
            batches = [[index] for index in indices if index not in examples]
        for batch in batches:
            examples |= _examples_of(loader, predictor, scores, batch)
        sheet = pictures.examples_sheet([examples[index] for index in indices], f"{name}, epoch {epoch}", palette)
        pictures.save_image(folder / f"{name}.png", sheet)
        if name == "examples":
            _save_strip(folder, examples[spread[0]], epoch, scores.per_image[spread[0]], palette)


def _examples_of(
    loader: DataLoader, predictor: BatchPredictor, scores: Scores, indices: list[int]
) -> dict[int, Example]:
    """The Example of each of these images of the loader's dataset, by index. They are predicted as one batch."""
    dataset: Any = loader.dataset
    images, masks = loader.collate_fn(dataset.__getitems__(indices))
    truths = true_labels(masks, masks.device, predictor.mask_rule)[:, 0].numpy()
    predictions = predictor.labels(images)[:, 0].cpu().numpy()
    examples = {}
    for index, image, truth, prediction in zip(indices, _for_eyes(images), truths, predictions):
        caption = f"{dataset.pairs[index].name}  Dice {scores.per_image[index]:.4f}"
        examples[index] = Example(image, truth, prediction, caption).shrunk()
    return examples


def _save_strip(folder: Path, example: Example, epoch: int, dice: float, palette: Palette) -> None:
    """Keeps this epoch's mask as `strip/EPOCH_DICE.png` and draws up to eight of them, evenly spread."""
    masks_folder = folder / "strip"
    masks_folder.mkdir(exist_ok=True)
    pattern = "[0-9][0-9][0-9][0-9]_*.png"
    for old in masks_folder.glob(pattern):
        if int(old.stem.split("_")[0]) >= epoch:  # of a run that went further than the one that goes on here
            old.unlink()
    pictures.save_mask(masks_folder / f"{epoch:04d}_{dice:.4f}.png", example.prediction, palette)

    files = sorted(masks_folder.glob(pattern))
    chosen = sorted(set(np.linspace(0, len(files) - 1, 8).round().astype(int)))
    masks, captions = [], []
    for file in (files[index] for index in chosen):
        number, its_dice = file.stem.split("_")
        captions.append(f"epoch {int(number)}, Dice {its_dice}")
        mask = pictures.load_mask(file, palette)
        if mask.shape != example.truth.shape:  # from before IMAGE_SIZE was changed
            mask = resize_mask(mask, example.truth.shape)
        masks.append(mask)
    pictures.save_image(folder / "strip.png", pictures.strip(example.image, example.truth, masks, captions, palette))


def _for_eyes(images: torch.Tensor) -> np.ndarray:
    """Images (N, 3, H, W) of a batch, bytes or floats, as uint8 (N, H, W, 3)."""
    if images.dtype != torch.uint8:
        # A user's transform may have normalised them: their own range is shown, if they leave [0, 1]
        low, high = images.amin().clamp(max=0), images.amax().clamp(min=1)
        images = ((images - low) / (high - low) * 255).byte()
    return images.permute(0, 2, 3, 1).contiguous().numpy()


# ---- checkpoints


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
