"""Trains a U-Net on images and masks, and leaves its checkpoints, scores and pictures.

    python augment.py && python train.py      Carvana's folders, split and augmented, then trained on
    python train.py --demo                    drawn cars, a small network, minutes on a CPU: Dice 0.98
    python train.py --load-model              goes on where the last run stopped
    torchrun --standalone --nproc_per_node=2 train.py    one process for each GPU

Leaves checkpoint.pth (the last), best.pth (the highest Dice), saved_images/, history.csv and curves.png.
"""

from __future__ import annotations

import signal
import time

if __name__ == "__main__":  # Ctrl-C while torch is loaded, which takes seconds, ends without a traceback
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    _STARTED = time.perf_counter()

import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path, PurePath
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

import dataset
from parts import pictures, processes, recipe, rules
from parts.advice import class_line, duration, epoch_line, few_steps, score_line, symptom, verdict
from parts.annotations import draw_masks
from parts.audit import Report, audit
from parts.budget import TimedSchedule, halve_until_it_fits
from parts.checkpoints import Run, differences_of_data, load_encoder_weights, load_pretrained
from parts.endings import command_of, ending_in_words
from parts.errors import UserError, counted, stop_if_asked, tell
from parts.errors import run as run_script
from parts.files import Provenance, write_csv
from parts.folds import Fold, fold_folder, sum_up
from parts.inference import to_device
from parts.loggers import LOGGERS, Logger, load_logger
from parts.losses import TERMS, Loss, label_weights
from parts.masks import MaskRule
from parts.names import HOW_TO_GET_CARVANA, Pair, Picture
from parts.networks import (
    NETWORKS,
    NODES,
    EncoderUNet,
    Network,
    build_network,
    freeze_encoder,
    keep_frozen_statistics,
    recompute_blocks,
)
from parts.options import changed, plain, settings_of, table
from parts.outputs import WorstSheet
from parts.own import is_own, load_part
from parts.own_dataset import folders_of, write_dataset
from parts.progress import Progress
from parts.run_folder import RunFolder
from parts.scores import KNOWN_METRICS, Scores, load_metrics
from parts.spec import DataSpec
from parts.splits import folds
from parts.transforms import draws_by_itself
from parts.truths import Truths
from predict import Predictor
from utils import (
    Loader,
    arrays_folder,
    check_accuracy,
    get_loaders,
    save_augmented,
    save_examples,
    save_predictions,
)

# ---- first of all
TRAIN_IMG_DIR = "./dataset/augmented_train_images"  # as augment.py leaves them, or any folder of images
TRAIN_MASK_DIR = "./dataset/augmented_train_masks"  # their masks: name.png, name_mask.gif, name.mask.png, ...
VAL_IMG_DIR = "./dataset/augmented_test_images"  # images that training never sees
VAL_MASK_DIR = "./dataset/augmented_test_masks"  # their masks
OUTPUT_DIR = "."  # where checkpoints, saved_images/, history.csv and curves.png go
IMAGE_SIZE: tuple | None = (320, 480)  # height and width of training; higher finds finer edges; None with CROP: own
BATCH_SIZE = 16  # images a step and process, the article's; on a CPU 4 learns more in a minute
NUM_EPOCHS = 20  # how often every image is seen; the schedule ends with the last one
LEARNING_RATE = 5e-4  # of the whole batch (BATCH_SIZE x ACCUMULATE x processes); the article's: 1e-4
LOAD_MODEL = False  # go on from OUTPUT_DIR/checkpoint.pth
DEVICE = "auto"  # or cuda, mps, cpu
DEMO = False  # draw a small dataset of cars and train on it with settings that suit a CPU
SMALL = False  # a network of a quarter of the channels and small batches: learns most in a few minutes on a CPU
# ---- other data, folds and crops
FOLDS: int | None = None  # so many trainings, each validated on another part of the training folders; None: VAL_IMG_DIR
FOLD: int | None = None  # of FOLDS train this one alone, from 1 on; None: all, one after the other
DATASET: Any = None  # in the place of these folders a dataset of your own: "mine.py:name", see docs/change-it.md
CROP: tuple | None = None  # train on crops of this size: for what is small beside its picture
CROP_FOREGROUND = 0.33  # share of an image's crops that are drawn so that they hold foreground, or one of its classes
# ---- network
NETWORK = "unet"  # or attention, or one of your own: "mine.py:Net"
FEATURES = (64, 128, 256, 512)  # channels of each level; more levels see more of the picture
ENCODER: str | None = None  # a torchvision encoder such as resnet34 or vgg16_bn in the place of the plain one
ENCODER_WEIGHTS: str | None = "DEFAULT"  # torchvision's name of its weights, a file, or None for from scratch
FREEZE_ENCODER = 0  # so many first epochs train the decoder alone: for pretrained encoders
PRETRAINED: str | None = None  # a checkpoint whose weights a new run starts from: fine-tuning
# ---- length, optimizer and schedule
MINUTES: float | None = None  # in place of NUM_EPOCHS: as many steps as end within them, with all that a run does
PATIENCE = 0  # end after so many epochs without a better Dice; 0 for never
ACCUMULATE = 1  # batches whose gradients make one step; doubled, BATCH_SIZE halved, where one does not fit a GPU
OPTIMIZER = "adamw"  # or adam (the article's), sgd, or one of your own: "mine.py:name"
WEIGHT_DECAY = 0.01  # of weights alone, not of biases and normalisation; the article's: 0
CLIP_GRADIENT = 1.0  # largest norm of a step's gradient; 0 for none, the article's
SCHEDULE = "linear"  # to zero at the end; or cosine, constant (the article's), plateau (by Dice), "mine.py:name"
WARMUP = 0.15  # share of all steps in which the learning rate rises to its height
PLATEAU_PATIENCE = 3  # epochs without a better Dice until the plateau schedule divides the rate by ten
# ---- loss
LOSS = "bce+dice"  # bce (the article's), dice, focal, tversky, topk, "mine.py:name", joined: "0.5*bce + dice"
CLASS_WEIGHTS: tuple | str | None = "auto"  # what a pixel of each class counts in the loss: rare ones more; None: alike
# ---- how training images vary
FLIP = True  # mirror each training image left-right half of the time, on the device
SCALE: tuple | None = None  # smallest and largest factor that training images are scaled by, such as (0.7, 1.4)
ROTATE = 0.0  # degrees by which training images are rotated at most, to both sides
COLOR_JITTER = 0.0  # how far contrast, brightness and colours vary, such as 0.4: for new cameras, lights and paints
AUGMENT: Any = None  # varies training images: albumentations' A.Compose([...]), f(image=, mask=), or "mine.py:name"
SEED = 0  # of the weights, the order of the images and the flips
# ---- speed and memory
NUM_WORKERS = 2  # processes that decode where there are no arrays, and run AUGMENT; arrays alone need none
PIN_MEMORY = True  # page-locked batches, which CUDA copies in the background
ARRAYS = True  # decode once into arrays on disk; False decodes in every epoch, with CROP for every crop
HALF_SIZE = 0.0  # share of the steps at half of IMAGE_SIZE, before it grows to all of it; on a CPU 0.5 learnt most
PRECISION = "auto"  # bfloat16 where it is faster (a CPU is timed), float16 on older CUDA, else float32; or one of these
COMPILE = True  # torch.compile, on CUDA alone
CHECKPOINTING = False  # compute each block anew for its gradients: half of the memory, a third more time
SYNC_BATCHNORM = False  # with several processes: normalise over all their batches together
# ---- scores, and what a run tells
METRICS = ("precision", "recall", "boundary")  # beside Dice and IoU; boundary: F1 of edges; or your own, "mine.py:name"
LOGGER: Any = None  # is told every epoch: "tensorboard", or one of your own: "mine.py:name"
PICTURE_BATCHES = 4  # validation batches drawn as pred_N.png and N.png in each epoch
SETTINGS = False  # print all constants at the start, not only those that were changed for this run

# What the constants may be, where their values alone do not tell. Those about images and masks, such as CLASSES and
# MASK_FOREGROUND, stand in dataset.py, for all scripts.
_RULES = dict(
    FOLDS=rules.optional(rules.whole(2)),
    FOLD=rules.optional(rules.whole(1)),
    DATASET=rules.optional(rules.part()),
    IMAGE_SIZE=rules.optional(rules.sizes(2)),
    CROP=rules.optional(rules.sizes(2)),
    CROP_FOREGROUND=rules.number(most=1),
    NUM_WORKERS=rules.whole(0),
    NETWORK=rules.part(*NETWORKS),
    FEATURES=rules.sizes(),
    ENCODER=rules.one_of(None, *NODES),
    ENCODER_WEIGHTS=rules.optional(rules.any_text()),
    NUM_EPOCHS=rules.whole(1),
    MINUTES=rules.optional(rules.number(above=0)),
    BATCH_SIZE=rules.whole(1),
    ACCUMULATE=rules.whole(1),
    LEARNING_RATE=rules.number(above=0),
    OPTIMIZER=rules.part(*recipe.OPTIMIZERS),
    WEIGHT_DECAY=rules.number(),
    SCHEDULE=rules.part(*recipe.SCHEDULES),
    WARMUP=rules.number(below=1),
    PLATEAU_PATIENCE=rules.whole(0),
    LOSS=rules.sum_of(rules.part(*TERMS)),
    CLASS_WEIGHTS=rules.weights(),
    CLIP_GRADIENT=rules.number(),
    HALF_SIZE=rules.number(below=recipe.FULL_SIZE_FROM),
    AUGMENT=rules.optional(rules.part()),
    SCALE=rules.optional(rules.interval()),
    ROTATE=rules.number(most=180),
    COLOR_JITTER=rules.number(below=1),
    METRICS=rules.parts(*KNOWN_METRICS),
    LOGGER=rules.optional(rules.part(*LOGGERS)),
    FREEZE_ENCODER=rules.whole(0),
    PATIENCE=rules.whole(0),
    PRECISION=rules.one_of("auto", *recipe.PRECISIONS),
    PRETRAINED=rules.optional(rules.file_path()),
    SEED=rules.whole(0),
    PICTURE_BATCHES=rules.whole(0),
)
# What the switches of these names stand for; a flag of one's own wins
_PRESETS = dict(
    SMALL=dict(FEATURES=(16, 32, 64, 128, 256), BATCH_SIZE=4, LEARNING_RATE=1e-3),
    DEMO=dict(
        TRAIN_IMG_DIR="demo/dataset/augmented_train_images",
        TRAIN_MASK_DIR="demo/dataset/augmented_train_masks",
        VAL_IMG_DIR="demo/dataset/augmented_test_images",
        VAL_MASK_DIR="demo/dataset/augmented_test_masks",
        OUTPUT_DIR="demo",
        IMAGE_SIZE=(128, 192),
        FEATURES=(16, 32, 64, 128),
        BATCH_SIZE=8,
        NUM_EPOCHS=3,
        LEARNING_RATE=2e-3,
    ),
)
# What each of torchrun's machines may have of its own: its folders, and what it can do.
_MAY_DIFFER = (
    *("TRAIN_IMG_DIR", "TRAIN_MASK_DIR", "VAL_IMG_DIR", "VAL_MASK_DIR", "OUTPUT_DIR", "PRETRAINED", "ENCODER_WEIGHTS"),
    *("NUM_WORKERS", "PIN_MEMORY", "COMPILE", "PICTURE_BATCHES"),
)


def train_fn(
    loader: Loader,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    loss_fn: nn.Module,
    scaler: torch.amp.GradScaler,
    schedule: recipe.Schedule,
    epoch: int,
    s: SimpleNamespace,
) -> tuple[float, float]:
    """Trains for one epoch, counted from 0; returns the mean loss and the share of the time spent waiting for data."""
    model.train()
    keep_frozen_statistics(model)
    device = next(model.parameters()).device
    dtype = recipe.autocast_dtype(device, s.PRECISION)
    network: Any = getattr(model, "module", model)  # inside DistributedDataParallel
    labels = recipe.takes_labels(s)
    with Progress(loader, epoch, s.NUM_EPOCHS, device) as progress:
        for index, (images, masks) in enumerate(loader):
            stop_if_asked()
            progress.batch_arrived()

            # One step of the optimizer takes ACCUMULATE batches; the last one of an epoch may have fewer
            step = epoch * schedule.steps_per_epoch + index // s.ACCUMULATE
            place = index % s.ACCUMULATE
            batches = min(s.ACCUMULATE, len(loader) - (index - place))
            last = place == batches - 1

            # To the device as bytes; there they vary at random and, while they grow (HALF_SIZE), are made smaller
            images, targets = to_device(images, device), recipe.targets_of(masks, device, labels)
            draws = recipe.named_generator(s.SEED, epoch, index, processes.rank())
            images, targets = recipe.vary_batch(images, targets, recipe.Variation.of(s), draws)
            factor = recipe.size_factor(step / schedule.total, s.HALF_SIZE)
            if s.HALF_SIZE:  # sizes between the first and the last are rare: trying cuDNN's kernels would cost more
                torch.backends.cudnn.benchmark = factor in (1, recipe.size_factor(0, s.HALF_SIZE))
            images, targets = recipe.shrink_batch(images, targets, factor, network.stride)

            # Forward, using mixed precision, and backward
            with processes.synchronised(model, last):
                with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
                    predictions = model(images)
                loss = loss_fn(predictions.float(), targets)
                scaler.scale(loss / batches).backward()

            # The optimizer's step, at this step's learning rate
            if last:
                schedule.before_step(step)
                if s.CLIP_GRADIENT:
                    scaler.unscale_(optimizer)
                    nn.utils.clip_grad_norm_(model.parameters(), s.CLIP_GRADIENT)
                scaler.step(optimizer)
                scaler.update()
                optimizer.zero_grad(set_to_none=True)
            progress.batch_done(loss.detach())
            if last and step + 1 >= schedule.total:  # MINUTES may end an epoch early
                break
        return progress.mean_loss(), progress.waiting


def main(argv: list[str] | None = None) -> None:
    """One run, or one for each of FOLDS. `argv`: its flags; None takes the command line's."""
    begun = time.perf_counter()
    if __name__ == "__main__":  # the process was started for this run
        begun = _STARTED
    s = settings(argv)
    if s.FOLDS and s.FOLD is None:
        train_folds(s, argv)
    else:
        train(s, argv, begun)


def train(s: SimpleNamespace, argv: list[str] | None, begun: float) -> list[Pair]:
    """One run, to the closing summary; returns the pairs of its validation. `begun`: when MINUTES began to count."""
    with processes.together(s.DEVICE) as device, ending_in_words(s, argv), RunFolder(s.OUTPUT_DIR) as folder:
        # Settings, device and seed
        tell_settings(s)
        recipe.prepare_device(device)
        torch.manual_seed(s.SEED)
        # Audit: every file is looked at before the first epoch
        report = processes.first(lambda: look_at_data(s, folder.path))
        rule = report.mask_rule
        assert rule is not None, "the audit refuses masks without a rule in common"

        # Network: with random weights, or those of ENCODER_WEIGHTS or PRETRAINED
        architecture = architecture_of(s, report.channels, rule.channels)
        model = build_network(**architecture)
        refuse_small_size(s, model.stride, len(report.train))
        model = prepared(model, s, rule, device)
        # Loss and optimizer, and what is told of every epoch
        weights = label_weights(s.CLASS_WEIGHTS, report.label_shares, rule)
        loss_fn = Loss(s.LOSS, weights, rule).to(device).checked(rule.channels)
        metrics, logger = load_metrics(s.METRICS), load_logger(s.LOGGER)
        optimizer = recipe.make_optimizer(model, s.OPTIMIZER, s.LEARNING_RATE, s.WEIGHT_DECAY)
        # Loaders, of the pairs that the audit has listed
        train_loader, val_loader = make_loaders(s, report, model, loss_fn, folder.path)
        # Learning rate by the step, and mixed precision, of which float16 alone could underflow
        schedule = make_schedule(optimizer, len(train_loader), s, begun)
        precision = processes.first(lambda: recipe.choose_precision(device, s.PRECISION))
        scaler = torch.amp.GradScaler(device.type, enabled=precision == "float16")

        # The run: all that a checkpoint holds, and that LOAD_MODEL resumes
        scored_on, data = val_loader.dataset.identity(), data_of(train_loader, val_loader, report)
        run = Run(model, optimizer, schedule, scaler, architecture, rule, report.value_range, scored_on, data, s)
        if s.LOAD_MODEL or folder.was_begun():
            run.resume(folder.path / "checkpoint.pth")
        dtype = recipe.settle_precision(s, device, precision)
        show = partial(draw, run, val_loader, folder.path, dtype)
        if folder.begin(run, show):
            return val_loader.dataset.pairs
        processes.say(describe_run(run, device, dtype))

        # Epochs: train, check accuracy, add a row to the history, save, draw
        score = partial(check_accuracy, val_loader, model, device, dtype, metrics, loss_fn, quiet=True)
        if not run.history:
            draw_augmented(s, train_loader, folder.path)
            tell_untrained(run, score, val_loader, dtype)
        first, start = len(run.history), time.perf_counter()
        while (epoch := len(run.history)) < s.NUM_EPOCHS:  # which MINUTES may change meanwhile
            if epoch in (first, s.FREEZE_ENCODER):
                trained = wrap_and_compile(model, device, dtype, s, epoch)
            train_loader.sampler.set_epoch(epoch)
            loss, waiting = train_fn(train_loader, trained, optimizer, loss_fn, scaler, schedule, epoch, s)
            processes.same_everywhere(model)  # BatchNorm's statistics
            run.record(loss, score())
            folder.keep(run, show)  # saved while the next epoch begins
            tell_epoch(run, logger, folder.path, (time.perf_counter() - start) / (epoch + 1 - first))
            if out_of_patience(run):
                break
        folder.finish()
        processes.say(summary(run, folder.path, time.perf_counter() - start, waiting, train_loader))
        return val_loader.dataset.pairs


def architecture_of(s: SimpleNamespace, in_channels: int, out_channels: int) -> dict[str, Any]:
    """What build_network makes this network from; it stands in the checkpoints."""
    chosen = dict(network=s.NETWORK, features=list(s.FEATURES), encoder=s.ENCODER, pads=True)
    return chosen | dict(in_channels=in_channels, out_channels=out_channels)


def train_folds(s: SimpleNamespace, argv: list[str] | None) -> None:
    """Trains each of FOLDS, then sums them up. UserError: under torchrun."""
    with processes.together(s.DEVICE):
        if processes.world_size() > 1:
            processes.refuse("FOLDS with torchrun: train one fold at a time, with --fold 1, --fold 2 and so on.")
    flags = sys.argv[1:] if argv is None else argv
    trained = []
    for fold in range(1, s.FOLDS + 1):
        pairs = train(settings([*flags, "--fold", str(fold)]), argv, time.perf_counter())
        trained.append(Fold.load(s.OUTPUT_DIR, fold, pairs))
    tell(sum_up(s.OUTPUT_DIR, trained))
    draw_worst(s, trained)


def draw_worst(s: SimpleNamespace, trained: list[Fold], most: int = 10) -> None:
    """OUTPUT_DIR/worst.png: the images with the lowest Dice of all folds, with the masks that their folds predict."""
    scored = [(dice, fold, pair) for fold in trained for pair, dice in fold.dice_of.items()]
    pairs: dict[Picture, Pair] = {}
    captions: dict[Picture, str] = {}
    chosen: dict[Fold, list[Picture]] = {}
    for dice, fold, pair in sorted(scored, key=lambda one: one[0])[:most]:
        picture = Picture(pair.image, PurePath(pair.name), pair.image_page, bands=pair.bands)
        pairs[picture], captions[picture] = pair, f"{pair.name}  fold {fold.number}, Dice {dice:.4f}"
        chosen.setdefault(fold, []).append(picture)
    rule = trained[0].mask_rule
    palette = pictures.Palette.of(rule, s.PICTURE_BANDS)
    sheet = WorstSheet(Path(s.OUTPUT_DIR) / "worst.png", Truths(pairs, rule), palette, captions)
    own = {"NETWORK": s.NETWORK} if is_own(s.NETWORK) else {}
    for fold, shown in chosen.items():
        Predictor(fold.checkpoint, DEVICE=s.DEVICE, THRESHOLD=0.5, **own).run(shown, [sheet], "worst")
    tell(f"The worst images of all folds: {sheet.path}")


# ---- what main begins with


def settings(argv: list[str] | None = None) -> SimpleNamespace:
    """The constants, with the flags of a command line over them. UserError: what cannot be used."""
    s = settings_of(globals(), argv, rules=_RULES, shared=vars(dataset), presets=_PRESETS)
    load_parts(s)
    if s.DATASET is not None:
        s.TRAIN_IMG_DIR, s.TRAIN_MASK_DIR = map(str, folders_of(s.OUTPUT_DIR, "train"))
        s.VAL_IMG_DIR, s.VAL_MASK_DIR = map(str, folders_of(s.OUTPUT_DIR, "val"))
    if s.IMAGE_SIZE is None and not s.CROP:
        raise UserError("These constants cannot be used:\n  IMAGE_SIZE = None: height and width, or None with CROP")
    if s.FOLD is not None:
        settle_fold(s)
    return s


def settle_fold(s: SimpleNamespace) -> None:
    """Sets OUTPUT_DIR to that of FOLD, which LOAD_MODEL begins where it has not begun. UserError: there is none."""
    if not s.FOLDS or s.FOLD > s.FOLDS:
        raise UserError(f"FOLD = {s.FOLD}: it is one of FOLDS = {s.FOLDS}, from 1 on.")
    s.OUTPUT_DIR = str(fold_folder(s.OUTPUT_DIR, s.FOLD))
    s.LOAD_MODEL = s.LOAD_MODEL and (Path(s.OUTPUT_DIR) / "checkpoint.pth").exists()


def refuse_missing_folders(s: SimpleNamespace) -> None:
    """UserError where one of the four folders is not there, or is empty, with what would fill it."""
    lacking = {}
    for name in ("TRAIN_IMG_DIR", "TRAIN_MASK_DIR", "VAL_IMG_DIR", "VAL_MASK_DIR")[: 2 if s.FOLDS else 4]:
        folder = Path(getattr(s, name))
        if not folder.exists():
            lacking[name] = "there is no such folder"
        elif folder.is_dir() and not any(folder.iterdir()):
            lacking[name] = "no images here: the folder is empty"
    if not lacking:
        return
    lines = [f"{name} = {getattr(s, name)}: {problem}" for name, problem in lacking.items()]
    cure = HOW_TO_GET_CARVANA
    if all(name.startswith("VAL") for name in lacking):
        cure = (
            "Validation needs images that training does not see. Split some off:\n  python augment.py --img-dir "
            f"{s.TRAIN_IMG_DIR} --mask-dir {s.TRAIN_MASK_DIR} --output-dir split --val-images 0.1"
        )
    raise UserError("\n".join([*lines, f"(Relative paths start at {Path.cwd()}.)", cure]))


def load_parts(s: SimpleNamespace) -> None:
    """Loads the parts of one's own, so that one that is missing is told before anything else. UserError."""
    Loss(s.LOSS)
    load_metrics(s.METRICS)
    load_logger(s.LOGGER)
    tables: dict[str, Mapping] = dict(
        NETWORK=NETWORKS, OPTIMIZER=recipe.OPTIMIZERS, SCHEDULE=recipe.SCHEDULES, AUGMENT={}, DATASET={}
    )
    for name, choices in tables.items():
        load_part(name, getattr(s, name), choices)


def tell_settings(s: SimpleNamespace) -> None:
    """Prints the settings that were changed for this run, and where CROP is one of them what crops are cut from.

    UserError: processes on other machines have other ones.
    """
    processes.agreed(
        lambda: {name: value for name, value in plain(s).items() if name not in _MAY_DIFFER}, _other_values
    )
    if not s.DEMO and s.DATASET is None:
        processes.first(lambda: refuse_missing_folders(s))
    shown = s if s.SETTINGS else changed(s, globals(), vars(dataset))
    if vars(shown):
        processes.say(f"Settings (constants of train.py and dataset.py; --settings prints all):\n{table(shown)}")
    if s.CROP:
        processes.say(settle_crop(s))


def _other_values(first: dict[str, Any], own: dict[str, Any]) -> str:
    """The settings that differ from those of process 0, in words."""
    names = [name for name in own if own[name] != first.get(name)]
    return ", ".join(f"{name} = {own[name]!r} (process 0: {first.get(name)!r})" for name in names)


def settle_crop(s: SimpleNamespace) -> str:
    """Says what crops are cut from; where IMAGE_SIZE leaves nothing to cut, images keep their own size.

    UserError: CROP and HALF_SIZE are both set.
    """
    if s.HALF_SIZE:
        raise UserError(
            f"CROP with HALF_SIZE = {s.HALF_SIZE}: half a crop's size is another scale than that of prediction. Set "
            "HALF_SIZE = 0 (--half-size 0)."
        )
    crops = "Crops of {}x{} are cut out of images ".format(*s.CROP)
    if s.IMAGE_SIZE is None:
        return crops + "at their own size."
    margins = [side - crop for crop, side in zip(s.CROP, s.IMAGE_SIZE)]
    if min(margins) < 0 or max(margins) == 0:
        reason = f"IMAGE_SIZE = {tuple(s.IMAGE_SIZE)} leaves nothing to cut"
        s.IMAGE_SIZE = None
        return crops + f"at their own size ({reason})."
    return crops + "of {}x{} (IMAGE_SIZE; set it to None for images at their own size).".format(*s.IMAGE_SIZE)


def look_at_data(s: SimpleNamespace, output: Path) -> Report:
    """The audit's report on every file. UserError: there is something that would spoil training."""
    if s.DEMO:
        draw_demo(Path(s.TRAIN_IMG_DIR).parent)
    if s.DATASET is not None:
        write_dataset(s.DATASET, load_part("DATASET", s.DATASET, {}), s.OUTPUT_DIR, s.CHANNELS)
    spec = DataSpec.of(s)
    folders = [(s.TRAIN_IMG_DIR, s.TRAIN_MASK_DIR), (s.VAL_IMG_DIR, s.VAL_MASK_DIR)]
    if s.FOLDS:
        folders = folders[:1]
    train, *val = draw_masks(folders, output / "drawn_masks", spec)
    report = audit(
        train,
        val[0] if val else None,
        spec,
        image_size=s.IMAGE_SIZE,
        sheet=output / "saved_images" / "audit.png",
        cache=arrays_folder(s.TRAIN_IMG_DIR, output) / "audit.json",
        apart=[output, s.TRAIN_MASK_DIR, s.VAL_MASK_DIR],
    )
    tell(report.text())
    report.stop_if_spoiled()
    if s.FOLDS:
        fold = folds(report.train, s.FOLDS, spec.group, s.SEED, report.labels)[s.FOLD - 1]
        tell(f"Fold {s.FOLD} of {s.FOLDS}: {len(fold.train):,} pairs for training, {len(fold.val):,} for validation.")
        report = replace(report, train=fold.train, val=fold.val)
    return report


def draw_demo(folder: Path) -> None:
    """Draws cars in Carvana's layout, and augments them."""
    import augment  # here, because albumentations takes a second or two to load, and the demo alone needs it
    from parts.cars import draw_dataset

    if len(list((folder / "train_masks").glob("*.gif"))) < 20 * 16:
        draw_dataset(folder, cars=20, views=16, size=(256, 384))
    choices = augment.Choices(val_images=64)
    augment.make_augmented(folder / "train", folder / "train_masks", folder, choices=choices)


def refuse_small_size(s: SimpleNamespace, smallest: int, images: int) -> None:
    """UserError where IMAGE_SIZE or CROP is smaller than the network takes.

    `smallest`: the least height and width that the network's poolings leave something of. `images`: how many are
    trained on.
    """
    constant = recipe.size_constant(s)
    size = getattr(s, constant)
    hint = ""
    if s.HALF_SIZE:
        smallest, hint = 2 * smallest, " with HALF_SIZE"
    longer = smallest
    if 1 in (s.BATCH_SIZE, images):
        longer = 2 * smallest  # at the lowest level BatchNorm needs more than the single pixel of a single image
    if min(size) < smallest or max(size) < longer:
        raise UserError(
            f"{constant} = {tuple(size)} is too small: the network's poolings need at least {smallest} {longer}{hint}."
        )


def prepared(model: Network, s: SimpleNamespace, mask_rule: MaskRule, device: torch.device) -> Network:
    """The network on the device, with the weights that a new run starts from, if these are not random ones."""
    if s.FREEZE_ENCODER:  # a network that has none is told before the files of an earlier run are put aside
        freeze_encoder(model, False)
    if s.PRETRAINED and not s.LOAD_MODEL:
        load_pretrained(s.PRETRAINED, model, mask_rule)
    elif isinstance(model, EncoderUNet) and s.ENCODER_WEIGHTS and not s.LOAD_MODEL:
        load_encoder_weights(model, s.ENCODER, s.ENCODER_WEIGHTS)
    if s.CHECKPOINTING:
        recompute_blocks(model)
    order = torch.contiguous_format if device.type == "mps" else torch.channels_last  # the fastest
    return model.to(device).to(memory_format=order)


def make_loaders(
    s: SimpleNamespace, report: Report, model: Network, loss_fn: nn.Module, output: Path
) -> tuple[Loader, Loader]:
    """get_loaders with the constants: batches for training, which fit into the device's memory, and for validation."""
    device = next(model.parameters()).device
    if device.type != "cpu":  # there the system ends a process that takes too much
        halve_until_it_fits(s, model, loss_fn, getattr(s, recipe.size_constant(s)))
    train_dir, val_dir = s.TRAIN_IMG_DIR, s.VAL_IMG_DIR
    if s.FOLDS:  # each fold has arrays of its own, in its folder
        train_dir, val_dir = output / "train", output / "val"
    sizes = dict(image_size=s.IMAGE_SIZE, crop=s.CROP, crop_foreground=s.CROP_FOREGROUND)
    chosen: dict[str, Any] = sizes | dict(augment=s.AUGMENT, seed=s.SEED, arrays=s.ARRAYS)
    folders, pin_memory = (train_dir, s.TRAIN_MASK_DIR, val_dir, s.VAL_MASK_DIR), s.PIN_MEMORY and device.type == "cuda"
    return get_loaders(*folders, s.BATCH_SIZE, s.NUM_WORKERS, pin_memory, report=report, output_dir=output, **chosen)


def data_of(train_loader: Loader, val_loader: Loader, report: Report) -> dict[str, Provenance]:
    """From which files this run's data are made. UserError: another machine has others."""
    loaders = {"training": train_loader, "validation": val_loader}

    def make() -> dict[str, Provenance]:
        return {side: loader.dataset.provenance(report.contents) for side, loader in loaders.items()}

    def difference(first: dict[str, Provenance], own: dict[str, Provenance]) -> str:
        texts = differences_of_data(first, own).items()
        return ", ".join(f"its {side} data are not those of process 0 ({text})" for side, text in texts)

    return processes.agreed(make, difference)


def make_schedule(optimizer: torch.optim.Optimizer, batches: int, s: SimpleNamespace, begun: float) -> recipe.Schedule:
    """The schedule of SCHEDULE over all steps, with `batches` in an epoch; `begun`: when MINUTES begin to count."""
    steps = -(-batches // s.ACCUMULATE)
    if s.MINUTES:
        return TimedSchedule(optimizer, steps, s, begun)
    return recipe.Schedule(optimizer, s.SCHEDULE, steps, s.NUM_EPOCHS, s.WARMUP, s.PLATEAU_PATIENCE)


def wrap_and_compile(
    model: Network, device: torch.device, dtype: torch.dtype | None, s: SimpleNamespace, epoch: int
) -> nn.Module:
    """The network as it is trained from `epoch` on; with torchrun it averages gradients.

    FREEZE_ENCODER freezes a part of it. With COMPILE it is compiled for the size of training; other devices than CUDA
    gain nothing from it.
    """
    if s.FREEZE_ENCODER:
        freeze_encoder(model, epoch < s.FREEZE_ENCODER)
    trained = processes.wrap(model, device, s.SYNC_BATCHNORM)
    if s.COMPILE and not s.CHECKPOINTING and device.type == "cuda":
        size = getattr(s, recipe.size_constant(s))
        with processes.synchronised(trained, last=False):  # its trial exchanges nothing with other processes
            recipe.compile_or_not(trained, (s.BATCH_SIZE, model.in_channels, *size), dtype, s.HALF_SIZE)
    return trained


def describe_run(run: Run, device: torch.device, dtype: torch.dtype | None) -> str:
    """The network's size, the device, the precision and the steps in a line, and whether these are too few to learn."""
    s, schedule = run.settings, run.schedule
    parameters = sum(parameter.numel() for parameter in run.model.parameters())
    steps = f"{counted(schedule.steps_per_epoch, 'step')} an epoch"
    line = f"{parameters:,} parameters on {device}, {recipe.describe_dtype(device, dtype)}, {steps}"
    if device.type == "cpu" and s.NETWORK == "unet" and s.ENCODER is None and s.FEATURES[0] >= 64:
        line += "\nOn a CPU a smaller network learns more in the same minutes: SMALL = True (--small)."
    if s.PRETRAINED or run.history:
        return line
    return "\n".join(filter(None, [line, few_steps(schedule.total, s.BATCH_SIZE, s.NUM_EPOCHS)]))


# ---- what a run says and leaves in its folder


def tell_untrained(run: Run, score: Callable[[], Scores], val_loader: Loader, dtype: torch.dtype | None) -> None:
    """Prints the scores of the network that a run begins with. MINUTES learn from it what is done after an epoch."""
    begin, scores = time.perf_counter(), score()
    processes.say(f"Before training: {score_line(scores)}")
    if isinstance(run.schedule, TimedSchedule):
        with TemporaryDirectory() as folder:
            processes.first(lambda: draw(replace(run, scores=scores), val_loader, Path(folder), dtype))
        run.schedule.epoch_seconds = 1.3 * (time.perf_counter() - begin)  # as a checkpoint will be saved, too


def tell_epoch(run: Run, logger: Logger, output: Path, seconds: float) -> None:
    """Prints the last epoch of a run in a line, and gives it to LOGGER; `seconds`: what an epoch takes on average."""
    row = run.history[-1]
    lines = [epoch_line(row, run.best is row, run.settings.NUM_EPOCHS, seconds)]
    assert run.scores is not None, "the epoch has been recorded"
    if run.scores.classes:
        lines.append(f"  {class_line(run.scores)}")
    if advice := symptom(run.scores):
        lines.append(f"  {advice}")
    processes.say("\n".join(lines))
    processes.first(lambda: logger(row["epoch"], row, output / "saved_images"))


def out_of_patience(run: Run) -> bool:
    """Whether a run ends before its last epoch, by PATIENCE, which is printed then."""
    patience = run.settings.PATIENCE
    if not patience or run.epochs_since_best < patience:
        return False
    processes.say(f"No better Dice for {patience} epochs (PATIENCE): the run ends here.")
    return True


def draw_augmented(s: SimpleNamespace, train_loader: Loader, output: Path) -> None:
    """saved_images/augmented.png: what AUGMENT, SCALE and ROTATE, where one of them is set, make of training images."""
    variation = recipe.Variation.of(s)
    if processes.rank() == 0 and (s.AUGMENT is not None or variation.moves):
        dataset: Any = train_loader.dataset
        save_augmented(dataset, variation, output / "saved_images")
        (image, *_), (mask, *_) = dataset.read([0])
        if s.AUGMENT is not None and draws_by_itself(s.AUGMENT, image, mask, dataset.mask_rule.num_labels):
            tell(
                "Warning: with the same seed AUGMENT makes other images, so it draws from a generator of its own. All "
                "worker processes may draw the same then, and a resumed run is not the one that was stopped. Seed "
                "albumentations inside of a function by transform.set_random_seed(random.getrandbits(32))."
            )


def draw(run: Run, val_loader: Loader, output: Path, dtype: torch.dtype | None) -> None:
    """saved_images/ after the last epoch of a run; with several classes also their confusion matrix.

    Nothing where the scores of a resumed run do not compare with those to come.
    """
    folder, scores = output / "saved_images", run.scores
    if scores is None or len(scores.per_image) != len(val_loader.dataset):
        return
    save_predictions(val_loader, run.model, folder, dtype=dtype, limit=run.settings.PICTURE_BATCHES)
    save_examples(val_loader, run.model, scores, len(run.history), folder, dtype=dtype)
    if scores.classes:
        names, confusion = scores.classes["names"], scores.classes["confusion"]
        pictures.draw_confusion(confusion, names, folder / "confusion.png", scores.classes.get("true"))
        rows = [[name, *counts] for name, counts in zip(names, confusion)]
        write_csv(folder / "confusion.csv", ["true class (pixels), predicted as", *names], rows)


def summary(run: Run, output: Path, seconds: float, waiting: float, loader: Loader) -> str:
    """The best Dice, the time, where to look, and what would make it faster.

    `waiting`: the share of the last epoch that was spent waiting for data of the `loader`.
    """
    best = f"Best Dice {run.best['dice']:.4f}, of epoch {run.best['epoch']} of {len(run.history)}"
    lines = [f"{best}; this run trained {duration(seconds)}."]
    if run.scores is not None:
        steps = len(run.history) * run.schedule.steps_per_epoch
        lines += verdict(run.history, run.scores, steps, run.settings.BATCH_SIZE)
    if waiting > 0.2:
        cure = "raise NUM_WORKERS, or set ARRAYS = True"
        if run.settings.AUGMENT is not None:
            cure = "raise NUM_WORKERS, or leave out of AUGMENT what takes long"
        elif loader.dataset.arrays:
            cure = "put the dataset on a faster disk"
        elif run.settings.ARRAYS:
            cure = "raise NUM_WORKERS"
        lines.append(f"{100 * waiting:.0f} % of the last epoch was spent waiting for data: {cure}.")
    shown = f"{output / 'saved_images'}/ and {output / 'curves.png'}"
    checkpoint = output / "best.pth"
    network = f"the network is in {checkpoint}"
    if not checkpoint.exists():
        checkpoint = output / "checkpoint.pth"
        network = f"best.pth, of epoch {run.best['epoch']}, is gone; the last network is in {checkpoint}"
    lines.append(f"Look at {shown}; {network}.")
    lines.append(f"Masks of new images: {command_of('predict.py')} --checkpoint {checkpoint} PHOTO")
    return "\n".join(lines)


if __name__ == "__main__":
    run_script(main)
