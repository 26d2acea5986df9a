"""The article's utilities: loaders, accuracy, predictions to look at, checkpoints."""

import math
import multiprocessing
import os
import pickle
import urllib.error
import zipfile
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader, Sampler, default_collate, get_worker_info

from dataset import Batch, ImageDataset
from parts import pictures, processes
from parts.encoders import build_network
from parts.files import copy_whole, write_whole
from parts.masks import find_mask_rule, resize_mask
from parts.reading import pair_files
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
):
    """Loaders of (images, masks) batches for training (shuffled) and validation (in order, each once).

    With a `transform`, as in the article, items are decoded in workers and are what it makes of them.
    Without one, everything is decoded once, resized to `image_size` (height, width) and kept on disk
    as uint8 arrays (dataset.py): images (N, 3, H, W), masks (N, H, W) of {0, 1}. `arrays=False`,
    or a disk without room, decodes the same batches afresh in every epoch. Arrays lie beside the images'
    folder, or in `output_dir` where nothing can be written there.
    `report` is what audit.audit has found of these folders, so that nothing is looked at twice; without it
    they are listed, and all the masks are asked what they mean, with `foreground` as in MASK_FOREGROUND.
    A last training batch that is not full is left out: every epoch leaves out other images. UserError tells
    what is wrong with the files.
    """
    folders = ((train_dir, train_mask_dir), (val_dir, val_mask_dir))
    sides = [report.train, report.val] if report else [pair_files(*side) for side in folders]
    rule = report.rule if report else find_mask_rule([pair.mask for side in sides for pair in side], foreground)
    loaders = []
    for (image_dir, mask_dir), pairs, shuffle in zip(folders, sides, (True, False)):
        data = ImageDataset(image_dir, mask_dir, transform, image_size=image_size, pairs=pairs, rule=rule, seed=seed)
        if arrays and transform is None:
            _keep_arrays(data, Path(image_dir), Path(output_dir))
        loader = Loader(
            data,
            batch_size=batch_size,
            sampler=EpochSampler(data, shuffle, seed),
            num_workers=0 if data.arrays else num_workers,  # a slice is had sooner than handed over
            pin_memory=pin_memory and torch.cuda.is_available(),
            drop_last=shuffle and len(data) >= batch_size * processes.world_size(),
        )
        loaders.append(loader)
    return tuple(loaders)


def _keep_arrays(data, image_dir, output_dir):
    """Process 0 makes the arrays, then all open them."""
    beside = arrays_folder(image_dir, output_dir)
    folder = beside / "{}-{}x{}".format(image_dir.name, *data.image_size)
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
    return batch.whole if isinstance(batch, Batch) else default_collate(batch)


def _return_faults(worker):
    get_worker_info().dataset.returns_faults = True


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
            names = "\n".join(f"  {loader.dataset.pairs[index].image}" for index in order)
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


def targets_of(masks, device):
    """Masks of a batch (N, H, W) or (N, 1, H, W) as the loss takes them: float32 (N, 1, H, W) of {0, 1}."""
    masks = masks.to(device, non_blocking=True)
    return masks.reshape(len(masks), 1, *masks.shape[-2:]).float()


# ---- accuracy


@dataclass
class Scores:
    """Of one validation: pixel accuracy, Dice and IoU (means over images) and what the images had."""

    accuracy: float
    dice: float
    dice_nonempty: float  # of the images that hold something or are predicted to: dice_of_choice
    iou: float
    predicted_share: float  # of all pixels
    true_share: float
    per_image: list = field(repr=False)  # each image's Dice, in the dataset's order


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


@torch.no_grad()
def check_accuracy(loader, model, device=None, dtype=None):
    """Prints and returns the Scores of `model` over every image of the loader's dataset, each counted once.

    `dtype` is autocast's (None: none). The counts are summed on the device and read once, at the end;
    with several processes each scores its share and all get the same result. A loader that shuffles, or
    leaves images out, has its dataset read in order instead.
    """
    device = torch.device(device or next(model.parameters()).device)
    loader = _in_order(loader)
    training = model.training
    model.eval()
    counts, pixels = [], 0
    for images, masks in loader:
        with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
            logits = model(to_device(images, device))
        counts.append(count_overlap(logits > 0, targets_of(masks, device) > 0.5))
        pixels = masks[0].numel()
    model.train(training)
    exact = torch.device("cpu") if device.type == "mps" else device  # mps has no float64
    everyone = torch.zeros(len(loader.dataset), 3, dtype=torch.float64, device=exact)
    if counts:
        everyone[loader.sampler.order(0)] = torch.cat(counts).to(everyone.device).to(everyone.dtype)
    both, predicted, true = processes.sum_over_all(everyone).cpu().numpy().T
    pixels = processes.largest(pixels) * len(both)
    right = pixels - int((predicted + true - 2 * both).sum())
    per_image = dice_from_counts(both, predicted, true)
    scores = Scores(
        accuracy=right / pixels,
        dice=float(per_image.mean()),
        dice_nonempty=dice_of_choice(both, predicted, true),
        iou=float(iou_from_counts(both, predicted, true).mean()),
        predicted_share=float(predicted.sum() / pixels),
        true_share=float(true.sum() / pixels),
        per_image=per_image.tolist(),
    )
    if processes.rank() == 0:
        chosen = f"; Dice {scores.dice_nonempty:.4f} of images that hold something or are predicted to"
        chosen = chosen if scores.dice_nonempty != scores.dice else ""
        print(
            f"Got {right}/{pixels} pixels right, accuracy {100 * scores.accuracy:.2f} %; "
            f"Dice {scores.dice:.4f}, IoU {scores.iou:.4f}{chosen}"
        )
    return scores


def _in_order(loader):
    """`loader` itself where it gives every image of its dataset once and in order, else one that does."""
    if isinstance(loader.sampler, EpochSampler) and not loader.sampler.shuffle:
        return loader
    return DataLoader(
        loader.dataset,
        batch_size=loader.batch_size,
        sampler=EpochSampler(loader.dataset, shuffle=False),
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
        worker_init_fn=loader.worker_init_fn,
        generator=torch.Generator(),
    )


def symptom(scores):
    """What scores that cannot be right point to, in words, or None."""
    if scores.true_share > 0 and scores.predicted_share == 0:
        return (
            f"No pixel of the validation images is predicted as foreground, though the masks hold "
            f"{100 * scores.true_share:.1f} %. In the first epochs this may pass. If it stays: look at the "
            "overlays of the audit (do the masks lie on their objects?), then lower LEARNING_RATE."
        )
    if scores.true_share < 1 and scores.predicted_share == 1:
        return (
            f"Every pixel is predicted as foreground, though the masks hold {100 * scores.true_share:.1f} %. "
            "If it stays: look at the overlays of the audit (is foreground what you mean by it?), then lower "
            "LEARNING_RATE."
        )
    return None


# ---- predictions to look at


@torch.no_grad()
def predict(images, model, device, dtype=None):
    """Masks (N, H, W) uint8 of {0, 1}, on the CPU, for a batch of images as a loader gives them."""
    training = model.training
    model.eval()
    with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
        logits = model(to_device(images, device))
    model.train(training)
    return (logits[:, 0] > 0).byte().cpu()


def save_predictions(loader, model, folder="saved_images/", device=None, dtype=None, limit=None):
    """Writes each batch's predicted masks as `pred_N.png` and its true ones as `N.png`, in grids.

    `folder` is made if need be. `limit` says how many, None for all of them.
    """
    device = torch.device(device or next(model.parameters()).device)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for index, (images, masks) in enumerate(loader):
        if index == limit:
            break
        found = predict(images, model, device, dtype)
        for name, shown in ((f"pred_{index}.png", found), (f"{index}.png", _truths(masks))):
            pictures.save_image(folder / name, pictures.grid(shown.numpy()))


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
    for name, indices in (("examples", fixed), ("worst", worst)):
        images, masks = loader.collate_fn(loader.dataset.__getitems__(indices))
        truths, found = _truths(masks).numpy(), predict(images, model, device, dtype).numpy()
        captions = [f"{loader.dataset.pairs[i].name}  Dice {scores.per_image[i]:.4f}" for i in indices]
        shown = _for_eyes(images)
        sheet = pictures.examples_sheet(shown, truths, found, captions, f"{name}, epoch {epoch}")
        pictures.save_image(folder / f"{name}.png", sheet)
        if name == "examples":
            _save_strip(folder, shown[0], truths[0], found[0], epoch, scores.per_image[indices[0]])


def _save_strip(folder, image, truth, prediction, epoch, dice):
    """Keeps this epoch's mask as `strip/EPOCH_DICE.png` and draws up to eight of them, evenly spread."""
    kept = folder / "strip"
    kept.mkdir(exist_ok=True)
    for old in kept.glob("[0-9][0-9][0-9][0-9]_*.png"):
        if int(old.stem.split("_")[0]) >= epoch:  # of a run that went further than the one that goes on here
            old.unlink()
    pictures.save_image(kept / f"{epoch:04d}_{dice:.4f}.png", prediction * 255)
    frames = sorted(kept.glob("[0-9][0-9][0-9][0-9]_*.png"))
    frames = [frames[i] for i in sorted(set(np.linspace(0, len(frames) - 1, 8).round().astype(int)))]
    named = [frame.stem.split("_") for frame in frames]
    captions = [f"epoch {int(number)}, Dice {dice}" for number, dice in named]
    masks = [pictures.load_mask(frame) for frame in frames]  # an earlier IMAGE_SIZE may have been another one
    masks = [mask if mask.shape == truth.shape else resize_mask(mask, truth.shape) for mask in masks]
    pictures.save_image(folder / "strip.png", pictures.strip(image, truth, masks, captions))


def _truths(masks):
    """True masks of a batch as uint8 (N, H, W) of {0, 1}."""
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


def run_state(model, optimizer, schedule, scaler, history, since, scores, s, architecture, rule, scored_on):
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
        image_size=list(s.IMAGE_SIZE),
        settings={name: value for name, value in vars(s).items() if name not in _OUTSIDE},
        processes=processes.world_size(),
    )


def resume(path, model, optimizer, schedule, scaler, s, scored_on):
    """Goes on from the checkpoint `path`, exactly: (history, since, the last Scores).

    `history` has a dictionary for each epoch. Where other validation images, another IMAGE_SIZE or another
    reading of the masks are `scored_on`, old scores do not compare: the best epoch is looked for after `since`,
    and the last Scores are None. Says that, and which settings were others when it was saved.
    UserError: it is of another network, unreadable, or has all its epochs behind it.
    """
    saved = read_checkpoint(path, next(model.parameters()).device)
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


def load_pretrained(path, model):
    """Puts the weights of a checkpoint into `model`, for a new run.

    An output layer for other classes stays as it is, random, and this is said. UserError: it is of another network.
    """
    weights = read_checkpoint(path)["state_dict"]
    own = model.state_dict()
    head = [key for key in weights if key.startswith("output_conv.") and key in own]
    if any(weights[key].shape != own[key].shape for key in head):
        shapes = weights["output_conv.weight"].shape[0], own["output_conv.weight"].shape[0]
        print(f"{path}: has {shapes[0]} output channels, and {shapes[1]} are needed: the output layer starts anew.")
        weights = {**weights, **{key: own[key] for key in head}}
    _load_weights(model, weights, f"PRETRAINED = {str(path)!r}")
    print(f"Starting from the weights in {path}")


def load_network(path):
    """(network, checkpoint) of a file that train.py or the article's code saved; the network is in eval mode.

    It takes images (N, 3, H, W) in [0, 1] and gives logits (N, 1, H, W); UserError where it would not.
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
    except TypeError as error:
        raise UserError(f"{path}: says of its network what is not understood here ({error}).") from error
    channels = network.in_channels, network.output_conv.out_channels
    if channels != (3, 1):
        raise UserError(
            f"{path}: its network has {channels[0]} channels in and {channels[1]} out. RGB (3) and one mask are needed."
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
