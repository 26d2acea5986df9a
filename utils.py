"""The article's utilities: loaders, accuracy, predictions to look at, checkpoints."""

import errno
import math
import multiprocessing
import os
import pickle
import re
import shutil
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Sampler, default_collate, get_worker_info

from dataset import ArrayDataset, Batch, CropDataset, ImageDataset, PairDataset, WholeDataset, declared, masks_of
from parts import pictures, processes
from parts.advice import summary
from parts.arrays import Files, Size
from parts.audit import Report
from parts.checkpoints import load_weights, save, without_prefixes
from parts.endings import KILLED
from parts.errors import UserError, tell
from parts.files import parallel_map, remove
from parts.inference import BatchPredictor, pixels_in_windows
from parts.losses import Loss
from parts.mask_rules import find_mask_rule
from parts.masks import IGNORED, MaskRule, resize_mask
from parts.names import pair_files
from parts.pictures import Example, Palette, Row
from parts.recipe import Variation, named_generator, true_labels, vary_batch
from parts.scores import Metric, Scores, count_labels, rows_of_counts, scores_of
from parts.spec import DataSpec
from parts.transforms import Transform

# ---- loaders

Folder = str | Path


def get_loaders(
    train_dir: Folder,
    train_mask_dir: Folder,
    val_dir: Folder,
    val_mask_dir: Folder,
    batch_size: int,
    num_workers: int = 4,
    pin_memory: bool = True,
    transform: Transform | None = None,
    *,
    image_size: Size | None = (320, 480),
    crop: Size | None = None,
    crop_foreground: float = 0.33,
    augment: Transform | str | None = None,
    report: Report | None = None,
    spec: DataSpec = DataSpec(),
    seed: int = 0,
    arrays: bool = True,
    output_dir: Folder = ".",
) -> tuple["Loader", "Loader"]:
    """Makes the loaders of (images, masks) batches for training (shuffled) and for validation (in order).

    Batches are uint8: images (N, C, H, W), masks (N, H, W) of {0, 1} or class indices, and IGNORED where a pixel is
    ignored. Which dataset they come from (dataset.py) follows from what is given:

    transform   ImageDataset: what the transform makes of each pair, in `num_workers` processes, as in the article
    image_size  ArrayDataset: all images resized to this (height, width), or padded to it (DataSpec.fit)
    crop        CropDataset for training, crops of this (height, width) of images at `image_size` or, with None, at
                their own sizes; WholeDataset for validation, in batches of one where sizes differ. Of a large
                validation set a part is scored, see `affordable`.

    `augment`, which goes with the last two, varies the samples for training alone, in `num_workers` processes.
    Without a transform all pairs are decoded once and kept on disk as arrays, in .arrays/ beside the images' folder,
    or in `output_dir` if nothing can be written there. With `arrays=False`, or no room on the disk, the same batches
    are decoded in every epoch.

    `report`, the audit's of these folders, tells the pairs and how they are read. Without one the folders are listed,
    and all masks are looked at, as `spec` says. The last training batch is left out where it is not full; which
    images that concerns differs by epoch. UserError: what is wrong with the files.
    """
    if transform is not None and (crop is not None or augment is not None):
        raise UserError("A transform makes items itself: crop and augment in it, or give none.")
    if augment is not None and crop is None and image_size is None:
        raise UserError("What augment makes has to be of one size: give image_size or crop.")
    report = report or _list_pairs((train_dir, train_mask_dir), (val_dir, val_mask_dir), spec)
    assert report.mask_rule is not None, "a report with problems; see Report.stop_if_spoiled"
    shared = ("mask_rule", "value_range", "channels", "resize_masks", "picture_bands", "fit")
    training = Files(report.train, image_size=image_size, **{name: getattr(report, name) for name in shared})
    validation = replace(training, pairs=report.val)
    train_data, val_data = _make_datasets(training, validation, transform, crop, crop_foreground, augment, seed)
    if augment is not None:
        _try_augment(train_data, num_workers)
    if arrays:
        _keep_arrays(train_data, Path(train_dir), Path(output_dir))
        _keep_arrays(val_data, Path(val_dir), Path(output_dir))
    val_batch_size = 1 if crop is not None and image_size is None else batch_size  # 1 where sizes differ
    train_loader = _make_loader(train_data, batch_size, num_workers, pin_memory, shuffle=True)
    return train_loader, _make_loader(val_data, val_batch_size, num_workers, pin_memory, shuffle=False)


def _list_pairs(train_folders: tuple[Folder, Folder], val_folders: tuple[Folder, Folder], spec: DataSpec) -> Report:
    """A Report of the pairs and their reading alone, where no audit was made."""
    train, val = pair_files(*train_folders, spec), pair_files(*val_folders, spec)
    rule = find_mask_rule(masks_of([*train, *val]), spec)
    return Report(train, val, rule, *declared(spec), spec.resize_masks, spec.picture_bands, spec.fit)


def _make_datasets(
    training: Files,
    validation: Files,
    transform: Transform | None,
    crop: Size | None,
    crop_foreground: float,
    augment: Transform | str | None,
    seed: int,
) -> tuple[PairDataset, PairDataset]:
    """The datasets for training and validation, by what is given; get_loaders says which."""
    if crop is not None:
        crops = CropDataset(training, crop, crop_foreground, seed, augment)
        padding = crops.padding()
        if padding > 0.1:
            processes.say(f"Images are smaller than CROP: {padding:.0%} of what is trained on is padding, and ignored.")
        return crops, WholeDataset(affordable(validation, crops), seed)
    if transform is None and training.image_size is not None:
        return ArrayDataset(training, seed, augment), ArrayDataset(validation, seed)
    return _image_dataset(training, transform, seed), _image_dataset(validation, transform, seed)


def _image_dataset(files: Files, transform: Transform | None, seed: int) -> ImageDataset:
    spec = DataSpec(channels=files.channels, image_range=files.value_range, picture_bands=files.picture_bands)
    return ImageDataset(None, None, transform, pairs=files.pairs, mask_rule=files.mask_rule, spec=spec, seed=seed)


def _try_augment(data: PairDataset, num_workers: int) -> None:
    """UserError where `augment` makes of the first sample what cannot be trained on, or does not reach the workers."""
    _ = data[0]
    if num_workers and multiprocessing.get_start_method() != "fork":
        try:
            pickle.dumps(data.augment)
        except Exception as error:  # whatever an object of the user's own fails with
            raise UserError(
                f'AUGMENT cannot be sent to processes of NUM_WORKERS ({error}). Name it as "mine.py:name", or set '
                "NUM_WORKERS = 0."
            ) from error


def _make_loader(data: PairDataset, batch_size: int, num_workers: int, pin_memory: bool, shuffle: bool) -> "Loader":
    return Loader(
        data,
        batch_size=batch_size,
        sampler=EpochSampler(data, shuffle, data.seed),
        # A slice of arrays is read sooner than another process could hand it over.
        num_workers=num_workers if data.arrays is None or data.augment is not None else 0,
        pin_memory=pin_memory and torch.cuda.is_available(),
        drop_last=shuffle and len(data) >= batch_size * processes.world_size(),
    )


def affordable(files: Files, crops: CropDataset) -> Files:
    """Leaves of the validation pairs as many as an epoch of training on crops leaves time for, and says so.

    Scoring and drawing them may take about a fifth of the time of training, or four images, the least by which two
    epochs can be told apart. A pixel that is scored is taken to cost a third of one that is trained on. The number
    goes by pixels, not by a clock, so that a resumed run scores the same images. Those kept are drawn once and for
    all; among them is one with foreground, or one of each class, if there are any.
    """
    count = len(files.pairs)
    order = np.random.default_rng(0).permutation(count)
    costs = np.array([pixels_in_windows(size) for size in files.sizes])[order].cumsum()
    counts = np.arange(1, count + 1)
    # Images shown in saved_images/ are predicted once more: 4 in batches, and 12 in examples.png and worst.png.
    drawn = np.minimum(counts, 4) + np.minimum(counts, 12)
    affordable_pixels = len(crops) * math.prod(crops.crop) / 5
    most = max(4, int(np.count_nonzero(costs * (1 + drawn / counts) / 3 <= affordable_pixels)))
    if most >= count:
        return files
    holds = np.array(list(parallel_map(partial(_labels_held, files), order.tolist())))  # (images, labels)
    # The first image with each label, once where it is the first with several.
    needed = list(dict.fromkeys(int(held.argmax()) for held in holds.T if held.any()))
    others = [place for place in range(count) if place not in needed]
    chosen = [*needed, *others][: max(most, len(needed))]
    processes.say(
        f"To score all {count} validation images would take longer than a fifth of an epoch: {len(chosen)} of "
        "them are scored, the same ones each time. predict.py --masks scores all."
    )
    return replace(files, pairs=[files.pairs[number] for number in sorted(order[chosen])])


def _labels_held(files: Files, number: int) -> list[bool]:
    """Whether a pair's mask holds each class, or the foreground."""
    mask = files.mask(number)
    return [bool(files.mask_rule.where(mask, channel).any()) for channel in range(files.mask_rule.channels)]


def _keep_arrays(data: PairDataset, image_dir: Path, output_dir: Path) -> None:
    """Process 0 makes the arrays of a dataset that can have some, then all open them."""
    if not isinstance(data, ArrayDataset):
        return
    beside = arrays_folder(image_dir, output_dir)
    name = image_dir.name
    if beside.parent != image_dir.parent:  # in OUTPUT_DIR, train/images and val/images would both be images
        name = "-".join(image_dir.absolute().parts[-2:])
    size = "own" if data.image_size is None else "{}x{}".format(*data.image_size)
    folder = beside / (f"{name}-{size}-crops" if isinstance(data, CropDataset) else f"{name}-{size}")
    if processes.first(lambda: data.keep_arrays(folder)) and processes.rank():
        data.keep_arrays(folder, progress=False)  # on another machine, which makes its own


def arrays_folder(image_dir: Folder, output_dir: Folder) -> Path:
    """Where arrays of the images in `image_dir` lie: beside it, or in `output_dir` for a dataset that is read-only."""
    beside = Path(image_dir).parent / ".arrays"
    existing = beside if os.path.exists(beside) else beside.parent
    if os.access(existing, os.W_OK, effective_ids=os.access in os.supports_effective_ids):
        return beside
    return Path(output_dir) / ".arrays"


class Loader(DataLoader):
    """A DataLoader of a PairDataset, whose workers pass a UserError on as it is.

    RuntimeError, told by `worker_was_killed`: one of the workers was killed. UserError: shared memory is too small.
    """

    dataset: PairDataset
    sampler: "EpochSampler"
    batch_size: int

    def __init__(self, data: Any, **keywords: Any) -> None:
        own_draws = torch.Generator()  # leaves the global generator alone
        super().__init__(data, collate_fn=_collate, worker_init_fn=_begin_worker, generator=own_draws, **keywords)

    def __iter__(self) -> Any:
        if self.num_workers:
            refuse_small_shared_memory(_BYTES_OF_QUEUES * (1 + self.num_workers))
        try:
            for batch in super().__iter__():
                if isinstance(batch, UserError):
                    raise batch
                yield batch
        except RuntimeError as error:
            if "Too many open files" in str(error):  # PyTorch's words for what was an OSError
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE)) from error
            raise
        except (ConnectionError, EOFError) as error:
            # The pipe to a killed worker may break a moment before PyTorch can see that the worker is dead.
            raise RuntimeError(f"{KILLED}s unknown) was killed: {error}") from error


def _collate(batch: Any) -> Any:
    if isinstance(batch, UserError):
        return batch
    try:
        if not isinstance(batch, Batch):
            return default_collate(batch)
        if get_worker_info() is not None:
            # Here, because in the thread that hands a batch over an error is lost, and the main process would wait.
            for tensor in batch.tensors:
                tensor.share_memory_()
        return batch.tensors
    except RuntimeError as error:
        if "shared memory" not in str(error):
            raise
        if file := re.search(r"</(\w+)>", str(error)):  # which PyTorch leaves behind
            _SHARED_MEMORY.joinpath(file[1]).unlink(missing_ok=True)
        return UserError(_TOO_LITTLE_SHARED_MEMORY)


_SHARED_MEMORY = Path("/dev/shm")  # Linux's
_BYTES_OF_QUEUES = 2**16  # that the queues of a worker take of it, and more


_TOO_LITTLE_SHARED_MEMORY = (
    f"{_SHARED_MEMORY}, through which workers hand over batches, is too small. Start the container with more of it "
    "(docker run --shm-size=2g), lower BATCH_SIZE or NUM_WORKERS, or decode without workers: NUM_WORKERS = 0 "
    "(--num-workers 0)."
)


def refuse_small_shared_memory(num_bytes: int) -> None:
    """UserError where this system has shared memory, and fewer free bytes of it."""
    if _SHARED_MEMORY.is_dir() and shutil.disk_usage(_SHARED_MEMORY).free < num_bytes:
        raise UserError(_TOO_LITTLE_SHARED_MEMORY)


def _begin_worker(number: int) -> None:
    """What a Loader's worker process does first."""
    worker = get_worker_info()
    assert worker is not None  # DataLoader calls this in its workers alone
    dataset: Any = worker.dataset
    dataset.returns_faults = True
    sys.excepthook = _tell_unless_hung_up


def _tell_unless_hung_up(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Keeps silent where the main process is stopped while it takes a batch: the thread that hands it over fails."""
    if not issubclass(kind, (ConnectionError, EOFError)):
        sys.__excepthook__(kind, error, trace)


class EpochSampler(Sampler):
    """The indices of one epoch: this process's share of a permutation drawn from (seed, epoch).

    Shuffled, every process gets equally many (the first few come twice where they do not divide); unshuffled, every
    index occurs once over all processes. Without `set_epoch` the epoch counts up by itself, each time that the
    sampler is run through.
    """

    def __init__(self, dataset: Any, shuffle: bool, seed: int = 0) -> None:
        self.dataset, self.shuffle, self.seed = dataset, shuffle, seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """The next pass is that of this epoch."""
        self.epoch = epoch

    def order(self, epoch: int) -> np.ndarray:
        """The indices that this process gets in `epoch`."""
        count, world, rank = len(self.dataset), processes.world_size(), processes.rank()
        if not self.shuffle:
            return np.arange(rank, count, world)
        order = np.random.default_rng([self.seed, epoch]).permutation(count)
        return np.resize(order, -(-count // world) * world)[rank::world]

    def __iter__(self) -> Iterator[int]:
        if hasattr(self.dataset, "set_epoch"):
            self.dataset.set_epoch(self.epoch)  # for the random draws of crops and of a user's transform
        order = self.order(self.epoch)
        self.epoch += 1
        return iter(order.tolist())

    def __len__(self) -> int:
        count, world = len(self.dataset), processes.world_size()
        if self.shuffle:
            return -(-count // world)  # rounded up
        return len(range(processes.rank(), count, world))


# ---- scores and pictures


def check_accuracy(
    loader: DataLoader,
    model: nn.Module,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    metrics: Mapping[str, Metric] | None = None,
    loss_fn: Loss | None = None,
    quiet: bool = False,
) -> Scores:
    """Prints and returns the Scores of `model` over every image of the loader's dataset, each counted once.

    The dataset's `mask_rule` (MaskRule) tells whether there is one foreground or several classes, and whether pixels
    are ignored; without one it is one foreground. `dtype` is autocast's (None: none). `metrics`: further scores, as of
    scores.load_metrics. `loss_fn`: for Scores.loss. `quiet`: nothing is printed. With several processes each
    scores its share and all get the same result. A loader that shuffles, or leaves images out, has its dataset read in
    order instead. UserError: the network has other output channels than the masks need.
    """
    predictor = replace(_predictor_of(loader, model, device, dtype), loss_fn=loss_fn)
    counts, confusion, loss = _count_labels(_in_order(loader), predictor, metrics or {})
    scores = scores_of(counts, confusion, predictor.mask_rule.names, metrics)
    scores.loss = loss
    if not quiet:
        processes.say(summary(scores, int(confusion.sum())))
    return scores


def _count_labels(
    loader: DataLoader, predictor: BatchPredictor, metrics: Mapping[str, Metric]
) -> tuple[np.ndarray, np.ndarray, float | None]:
    """Each image's counts (N, 4 or 8, L), as of count_labels, the sum of confusions (L, L), and the mean of the losses.

    They are summed on the device and read once, at the end.
    """
    device, num_labels = predictor.device, predictor.mask_rule.num_labels
    dataset: Any = loader.dataset
    sampler: Any = loader.sampler  # an EpochSampler, which tells which images this process scores
    counts, losses = [], []
    total = torch.zeros(num_labels, num_labels, dtype=torch.int64, device=device)
    for images, masks in loader:
        truths = true_labels(masks, device, predictor.mask_rule)
        labels, loss = predictor.labels_and_losses(images, truths)
        losses.append(loss)
        counts_of_each, confusions = count_labels(labels, truths, predictor.mask_rule, metrics)
        counts.append(counts_of_each)
        total += confusions.sum(0)
    exact = torch.device("cpu") if device.type == "mps" else device  # mps has no float64
    shape = len(dataset), rows_of_counts(metrics), max(2, predictor.mask_rule.channels)
    all_counts = torch.zeros(shape, dtype=torch.float64, device=exact)
    loss_of_each = torch.zeros(len(dataset), dtype=torch.float64, device=exact)
    if counts:
        all_counts[sampler.order(0)] = torch.cat(counts).to(exact).double()
        loss_of_each[sampler.order(0)] = torch.cat(losses).to(exact).double()
    all_counts = processes.sum_over_all(all_counts)
    mean_loss = float(processes.sum_over_all(loss_of_each).mean())
    total = processes.sum_over_all(total.to(exact).double())
    return all_counts.cpu().numpy(), total.cpu().numpy(), mean_loss if math.isfinite(mean_loss) else None


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

    `folder` is made if need be. `limit`: so many batches, None for all of them. What fills IMAGE_SIZE beside an image
    (FIT = "pad") is hatched in both.
    """
    predictor = _predictor_of(loader, model, device, dtype)
    palette = Palette.of(predictor.mask_rule)
    folder, insides = Path(folder), _insides(loader)
    for index, (images, masks) in enumerate(loader):
        if index == limit:
            break
        truths = true_labels(masks, masks.device, predictor.mask_rule)[:, 0].cpu().numpy()
        predictions = predictor.labels(images)[:, 0].cpu().numpy()
        for prediction, inside in zip(predictions, insides):
            padding = np.ones(prediction.shape, bool)
            padding[inside] = False
            prediction[padding] = IGNORED
        for name, labels in ((f"pred_{index}.png", predictions), (f"{index}.png", truths)):
            pictures.save_image(folder / name, pictures.grid(labels, palette))


def _insides(loader: DataLoader) -> Iterator[tuple[slice, slice]]:
    """Where in each sample its image lies (Files.inside), in the loader's order; nothing where that is not known."""
    files, sampler = getattr(loader.dataset, "files", None), loader.sampler
    if files and isinstance(sampler, EpochSampler) and not sampler.shuffle:
        yield from map(files.inside, sampler.order(sampler.epoch))


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
    dataset: Any = loader.dataset
    palette = Palette.of(predictor.mask_rule, dataset.files.picture_bands)
    folder = Path(folder)
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


def save_augmented(
    dataset: ArrayDataset, variation: Variation, folder: str | Path = "saved_images/", count: int = 8
) -> None:
    """Writes `augmented.png`: some samples as they are, each beside three versions as training sees them.

    They are varied by the dataset's `augment` and, as on the device, by `variation`.
    """
    palette = Palette.of(dataset.mask_rule, dataset.files.picture_bands)
    rows, masks = [], []
    for index in np.linspace(0, len(dataset) - 1, min(count, len(dataset))).round().astype(int).tolist():
        versions = _versions_of(dataset, variation, index)
        tiles = [pictures.overlay(image, mask, palette) for image, mask in versions]
        rows.append(Row(tiles, captions=[dataset.pair_of(index).name]))
        masks += [mask for _, mask in versions]
    sheet = pictures.sheet(
        rows, "training images, varied", ("as they are", "varied", "varied", "varied"), palette.legend(masks)
    )
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    pictures.save_image(folder / "augmented.png", sheet)


def _versions_of(dataset: ArrayDataset, variation: Variation, index: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """A sample's image (H, W, C) and mask (H, W), and three variations of them."""
    images, masks = dataset.read([index])
    versions = [(images[0], masks[0])]
    for epoch in range(3):
        copies = images.copy(), masks.copy()  # which `augment` may change in their place
        image, mask = map(torch.from_numpy, dataset.augmented(*copies, [index], epoch))
        draws = named_generator(dataset.seed, epoch, index)
        image, mask = vary_batch(image.permute(0, 3, 1, 2) / 255, mask[:, None], variation, draws)
        versions.append((_for_eyes((image.clamp(0, 1) * 255).byte())[0], mask[0, 0].numpy()))
    return versions


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
        inside = dataset.files.inside(index)
        examples[index] = Example(image[inside], truth[inside], prediction[inside], caption).shrunk()
    return examples


def _save_strip(folder: Path, example: Example, epoch: int, dice: float, palette: Palette) -> None:
    """Keeps this epoch's mask as `strip/EPOCH_DICE.png` and draws up to eight of them, evenly spread.

    One that is damaged is removed, and the strip goes without it.
    """
    files = []
    for old in sorted((folder / "strip").glob("*.png")):
        kept = re.fullmatch(r"(\d{4,})_([01]\.\d{4})\.png", old.name)
        if kept and int(kept[1]) < epoch:
            files.append((old, f"epoch {int(kept[1])}, Dice {kept[2]}"))
        elif kept:  # of a run that went further than the one that goes on here
            remove(old)
    files.append((folder / "strip" / f"{epoch:04d}_{dice:.4f}.png", f"epoch {epoch}, Dice {dice:.4f}"))
    pictures.save_mask(files[-1][0], example.prediction, palette)

    masks, captions = [], []
    for index in sorted(set(np.linspace(0, len(files) - 1, 8).round().astype(int))):
        file, caption = files[index]
        try:
            mask = pictures.load_mask(file, palette)
        except UserError:
            remove(file)
            continue
        if mask.shape != example.truth.shape:  # from before IMAGE_SIZE was changed
            mask = resize_mask(mask, example.truth.shape)
        masks.append(mask)
        captions.append(caption)
    pictures.save_image(folder / "strip.png", pictures.strip(example.image, example.truth, masks, captions, palette))


def _for_eyes(images: Tensor) -> np.ndarray:
    """Images (N, C, H, W) of a batch, bytes or floats, as uint8 (N, H, W, C)."""
    if images.dtype != torch.uint8:
        # A user's transform may have normalised them: their own range is shown, if they leave [0, 1]
        low, high = images.amin().clamp(max=0), images.amax().clamp(min=1)
        images = ((images - low) / (high - low) * 255).byte()
    return images.permute(0, 2, 3, 1).contiguous().numpy()


# ---- checkpoints


def save_checkpoint(state: dict[str, Any], filename: str | Path = "checkpoint.pth") -> None:
    """Writes a dictionary of tensors and plain types to a file, whole and flushed; see checkpoints.save."""
    tell(f"=> Saving checkpoint {filename}")
    save(state, filename)


def load_checkpoint(checkpoint: dict[str, Any], model: nn.Module) -> None:
    """Puts the weights of a checkpoint, a dictionary with `state_dict`, into the network: all of them or none.

    Prefixes of torch.compile and DistributedDataParallel are left out. UserError: they are of another network.
    """
    tell("=> Loading checkpoint")
    load_weights(model, without_prefixes(checkpoint["state_dict"]), "the checkpoint")
