"""Trains a U-Net on images and masks, and leaves its checkpoints, scores and pictures.

    python augment.py && python train.py      Carvana's folders, split and augmented, then trained on
    python train.py --demo                    drawn cars, a small network, minutes on a CPU: Dice 0.98
    python train.py --load-model              goes on where the last run stopped
    torchrun --standalone --nproc_per_node=2 train.py    one process for each GPU

Leaves checkpoint.pth (the last), best.pth (the highest Dice), saved_images/, history.csv and curves.png.
"""

import shlex
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace

import torch
from tqdm import tqdm

import dataset
from parts import pictures, processes, recipe
from parts.audit import audit
from parts.checkpoints import best_of, load_encoder_weights, load_pretrained, resume, run_state, set_aside, snapshot
from parts.errors import Terminated, UserError, ran_out_of_memory, run, stop_if_asked
from parts.files import remove_leftovers, sole_writer, stamp, write_csv
from parts.inference import to_device
from parts.names import HOW_TO_GET_CARVANA
from parts.networks import NODES, build_network
from parts.options import any_text, file_path, number, one_of, optional, settings_of, sizes, table, whole
from parts.recipe import targets_of
from parts.scores import class_columns, symptom
from parts.spec import DataSpec
from utils import (
    arrays_folder,
    check_accuracy,
    get_loaders,
    refuse_infinite,
    save_checkpoint,
    save_examples,
    save_predictions,
    worker_was_killed,
)

TRAIN_IMG_DIR = "./dataset/augmented_train_images"  # as augment.py leaves them, or any folder of images
TRAIN_MASK_DIR = "./dataset/augmented_train_masks"  # their masks: name.png, name_mask.gif, name.mask.png, ...
VAL_IMG_DIR = "./dataset/augmented_test_images"  # images that training never sees
VAL_MASK_DIR = "./dataset/augmented_test_masks"  # their masks
OUTPUT_DIR = "."  # where checkpoints, saved_images/, history.csv and curves.png go
IMAGE_SIZE: tuple | None = (320, 480)  # height and width of training; higher finds finer edges; None with CROP: own
CROP: tuple | None = None  # train on crops of this size: for what is small beside its picture
CROP_FOREGROUND = 0.33  # share of an image's crops that are drawn so that they hold foreground, or one of its classes
ARRAYS = True  # decode once into arrays on disk; False decodes in every epoch, with CROP for every crop
NUM_WORKERS = 2  # processes that decode where there are no arrays; arrays need none
PIN_MEMORY = True  # page-locked batches, which CUDA copies in the background
FEATURES = (64, 128, 256, 512)  # channels of each level; more levels see more of the picture
ENCODER: str | None = None  # a torchvision encoder such as resnet34 or vgg16_bn in the place of the plain one
ENCODER_WEIGHTS: str | None = "DEFAULT"  # torchvision's name of its weights, a file, or None for from scratch
NUM_EPOCHS = 20  # how often every image is seen; the schedule ends with the last one
BATCH_SIZE = 16  # images a step and process, the article's; on two CPU cores 2 learns more in a minute
ACCUMULATE = 1  # batches whose gradients make one step, where a large batch does not fit
LEARNING_RATE = 5e-4  # of the whole batch (BATCH_SIZE x ACCUMULATE x processes); the article's: 1e-4
OPTIMIZER = "adamw"  # or adam, the article's
WEIGHT_DECAY = 0.01  # of weights alone, not of biases and normalisation; the article's: 0
SCHEDULE = "linear"  # to zero at the end; or cosine, constant (the article's), plateau (on validation Dice)
WARMUP = 0.15  # share of all steps in which the learning rate rises to its height
PLATEAU_PATIENCE = 3  # epochs without a better Dice until the plateau schedule divides the rate by ten
LOSS = "bce+dice"  # or bce, the article's
CLIP_GRADIENT = 1.0  # largest norm of a step's gradient; 0 for none, the article's
HALF_SIZE = 0.0  # share of the steps at half of IMAGE_SIZE, before it grows to all of it; on a CPU 0.5 learnt most
FLIP = True  # mirror each training image left-right half of the time, on the device
COLOR_JITTER = 0.4  # how far contrast, brightness and colours of training images vary; the article's: 0
PATIENCE = 0  # end after so many epochs without a better Dice; 0 for never
DEVICE = "auto"  # or cuda, mps, cpu
PRECISION = "auto"  # bfloat16 where the hardware has it, float16 on older CUDA, else float32; or one of these
COMPILE = True  # torch.compile, on CUDA alone
SYNC_BATCHNORM = False  # with several processes: normalise over all their batches together
LOAD_MODEL = False  # go on from OUTPUT_DIR/checkpoint.pth
PRETRAINED: str | None = None  # a checkpoint whose weights a new run starts from: fine-tuning
SEED = 0  # of the weights, the order of the images and the flips
PICTURE_BATCHES = 4  # validation batches drawn as pred_N.png and N.png in each epoch
DEMO = False  # draw a small dataset of cars and train on it with settings that suit a CPU

# What the constants may be, where their values alone do not tell. Those about images and masks, such as CLASSES and
# MASK_FOREGROUND, stand in dataset.py, for all scripts.
_RULES = dict(
    IMAGE_SIZE=optional(sizes(2)),
    CROP=optional(sizes(2)),
    CROP_FOREGROUND=number(most=1),
    NUM_WORKERS=whole(0),
    FEATURES=sizes(),
    ENCODER=one_of(None, *NODES),
    ENCODER_WEIGHTS=optional(any_text()),
    NUM_EPOCHS=whole(1),
    BATCH_SIZE=whole(1),
    ACCUMULATE=whole(1),
    LEARNING_RATE=number(above=0),
    OPTIMIZER=one_of(*recipe.OPTIMIZERS),
    WEIGHT_DECAY=number(),
    SCHEDULE=one_of(*recipe.SCHEDULES),
    WARMUP=number(below=1),
    PLATEAU_PATIENCE=whole(0),
    LOSS=one_of(*recipe.LOSSES),
    CLIP_GRADIENT=number(),
    HALF_SIZE=number(below=recipe.FULL_SIZE_FROM),
    COLOR_JITTER=number(below=1),
    PATIENCE=whole(0),
    PRECISION=one_of("auto", *recipe.PRECISIONS),
    PRETRAINED=optional(file_path()),
    SEED=whole(0),
    PICTURE_BATCHES=whole(0),
)
_DEMO_SETTINGS = dict(
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
)
_READ_LOSS_EVERY = 20  # steps between two looks at the loss, each of which waits for the device


def train_fn(loader, model, optimizer, loss_fn, scaler, schedule, epoch, s, dtype=None, bar=None):
    """One epoch (counted from 0) with the settings `s`; `dtype` is autocast's.

    Returns (mean loss, share of the time spent waiting for data).
    """
    model.train()
    device, smallest = next(model.parameters()).device, getattr(model, "module", model).smallest
    labels = s.CLASSES is not None or s.MASK_IGNORE is not None or s.CROP is not None  # crops pad with IGNORED
    batches = len(loader)
    losses, looked, total, waited = [], 0, 0.0, 0.0
    done = torch.cuda.Event() if device.type == "cuda" else None  # the device has caught up with the last step
    begin = asked = time.perf_counter()
    for index, (images, masks) in enumerate(loader):
        stop_if_asked()
        if done is None or done.query():  # else the device was still at work, and nothing waited for data
            waited += time.perf_counter() - asked
        in_step = index % s.ACCUMULATE
        of_step = min(s.ACCUMULATE, batches - (index - in_step))  # the last step of an epoch may have fewer batches
        step = epoch * schedule.steps_per_epoch + index // s.ACCUMULATE
        images, targets = to_device(images, device), targets_of(masks, device, labels)
        draws = recipe.named_generator(s.SEED, epoch, index, processes.rank())
        images, targets = recipe.vary_batch(images, targets, s.FLIP, s.COLOR_JITTER, draws)
        factor = recipe.size_factor(step / schedule.total, s.HALF_SIZE)
        if s.HALF_SIZE:  # of which the sizes between come up a few times each
            torch.backends.cudnn.benchmark = factor in (1, recipe.size_factor(0, s.HALF_SIZE))
        images, targets = recipe.shrink_batch(images, targets, factor, smallest)

        # forward in mixed precision, backward
        with processes.synchronised(model, last=in_step == of_step - 1):
            with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
                predictions = model(images)
            loss = loss_fn(predictions.float(), targets)
            scaler.scale(loss / of_step).backward()
        if in_step == of_step - 1:
            schedule.before_step(step)
            if s.CLIP_GRADIENT:
                scaler.unscale_(optimizer)
                torch.nn.utils.clip_grad_norm_(model.parameters(), s.CLIP_GRADIENT)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad(set_to_none=True)

        losses.append(loss.detach())
        if len(losses) == _READ_LOSS_EVERY or index == batches - 1 or device.type == "cpu":
            values = torch.stack(losses).tolist()
            refuse_infinite(values, loader, epoch, looked)
            total, looked, losses = total + sum(values), index + 1, []
            if bar is not None:
                waiting = waited / (time.perf_counter() - begin)
                bar.set_postfix(loss=f"{total / looked:.4f}", waiting=f"{100 * waiting:.0f}%", refresh=False)
        if bar is not None:
            bar.update()
        if done is not None:
            done.record()
        asked = time.perf_counter()
    sums = processes.sum_over_all(torch.tensor([total, looked], dtype=torch.float64))
    return float(sums[0] / sums[1]), waited / (time.perf_counter() - begin)


def main(argv=None):
    s = settings(argv)
    output = Path(s.OUTPUT_DIR)
    with (
        processes.together(s.DEVICE) as device,
        ending_in_words(s, argv),
        sole_writer(output) if processes.rank() == 0 else nullcontext(),
        ThreadPoolExecutor(1) as writer,  # whatever ends the run, what it has begun to write is finished
    ):
        first = processes.rank() == 0
        say = print if first else lambda *words: None
        say(f"Settings (each is a constant at the top of train.py):\n{table(s)}")
        if s.CROP:
            say(settle_crop(s))
        size = s.CROP or s.IMAGE_SIZE  # of what the network trains on
        if device.type == "cpu":
            processes.keep_freed_memory()
        # Here the files are listed, paired and looked at; the loaders take the pairs from the report.
        report = processes.first(lambda: look_at_data(s, output))

        torch.manual_seed(s.SEED)
        torch.backends.cudnn.benchmark = True  # tries its kernels once for each size
        channels = dict(in_channels=3, out_channels=report.mask_rule.channels)
        architecture = dict(**channels, features=list(s.FEATURES), encoder=s.ENCODER)
        model = build_network(**architecture)
        smallest = model.smallest * (2 if s.HALF_SIZE else 1)
        longer = smallest * (2 if 1 in (s.BATCH_SIZE, len(report.train)) else 1)  # BatchNorm needs more than one pixel
        if min(size) < smallest or max(size) < longer:
            what = "CROP" if s.CROP else "IMAGE_SIZE"
            least = f"{smallest} {longer}{' with HALF_SIZE' if s.HALF_SIZE else ''}"
            raise UserError(f"{what} = {tuple(size)} is too small: the network's poolings need at least {least}.")
        if s.PRETRAINED and not s.LOAD_MODEL:
            load_pretrained(s.PRETRAINED, model, report.mask_rule)
        elif s.ENCODER and s.ENCODER_WEIGHTS and not s.LOAD_MODEL:
            load_encoder_weights(model, s.ENCODER, s.ENCODER_WEIGHTS)
        train_loader, val_loader = get_loaders(
            s.TRAIN_IMG_DIR,
            s.TRAIN_MASK_DIR,
            s.VAL_IMG_DIR,
            s.VAL_MASK_DIR,
            s.BATCH_SIZE,
            s.NUM_WORKERS,
            s.PIN_MEMORY and device.type == "cuda",
            image_size=s.IMAGE_SIZE,
            crop=s.CROP,
            crop_foreground=s.CROP_FOREGROUND,
            report=report,
            seed=s.SEED,
            arrays=s.ARRAYS,
            output_dir=output,
        )
        model = model.to(device) if device.type == "mps" else model.to(device, memory_format=torch.channels_last)
        loss_fn = recipe.Loss(s.LOSS)
        optimizer = recipe.make_optimizer(model, s.OPTIMIZER, s.LEARNING_RATE, s.WEIGHT_DECAY)
        steps = -(-len(train_loader) // s.ACCUMULATE)
        schedule = recipe.Schedule(optimizer, s.SCHEDULE, steps, s.NUM_EPOCHS, s.WARMUP, s.PLATEAU_PATIENCE)
        dtype = recipe.autocast_dtype(device, s.PRECISION)
        scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)  # which alone could underflow
        scored_on = val_loader.dataset.identity()
        history, since, scores = [], 0, None  # `since`: the epoch after which the best one is looked for
        if s.LOAD_MODEL:
            parts = model, optimizer, schedule, scaler
            history, since, scores = resume(output / "checkpoint.pth", *parts, s, scored_on, report.mask_rule)
        trained = processes.wrap(model, device, s.SYNC_BATCHNORM)  # the model itself, or around it
        if s.COMPILE and device.type == "cuda":
            with processes.synchronised(trained, last=False):
                recipe.compile_or_not(trained, (s.BATCH_SIZE, 3, *size), dtype, s.HALF_SIZE)
        parameters = sum(parameter.numel() for parameter in model.parameters())
        say(f"{parameters:,} parameters on {device}, {recipe.describe_dtype(device, dtype)}, {steps} steps an epoch")

        if first:
            remove_leftovers(output)
            if scores:  # a run killed while writing these is set right here
                write_history(output, history)
                draw(val_loader, model, scores, len(history), output, device, dtype, s)
            elif not s.LOAD_MODEL:
                set_aside(output)
        if not history:
            check_accuracy(val_loader, model, device, dtype)
        waiting, start, saving = 0.0, time.perf_counter(), None
        for epoch in range(len(history), s.NUM_EPOCHS):
            train_loader.sampler.set_epoch(epoch)
            title = f"Epoch {epoch + 1}/{s.NUM_EPOCHS}"
            with tqdm(total=len(train_loader), desc=title, disable=not first, mininterval=0.5) as bar:
                loss, waiting = train_fn(
                    train_loader, trained, optimizer, loss_fn, scaler, schedule, epoch, s, dtype, bar
                )
            processes.same_everywhere(model)
            scores = check_accuracy(val_loader, model, device, dtype)
            rate = optimizer.param_groups[0]["lr"]
            schedule.after_epoch(scores.dice_nonempty)
            found = {name: getattr(scores, name) for name in ("accuracy", "dice", "dice_nonempty", "iou")}
            history.append(dict(epoch=epoch + 1, loss=loss, **found, learning_rate=rate) | class_columns(scores))
            best = best_of(history[since:])
            if first:
                if words := symptom(scores):
                    print(words)
                parts = model, optimizer, schedule, scaler
                means = architecture, report.mask_rule, scored_on, report.value_range
                state = snapshot(run_state(*parts, history, since, scores, s, *means))
                if saving:
                    saving.result()  # raises what went wrong
                saving = writer.submit(save_epoch, state, output, best is history[-1])  # while the next epoch begins
                draw(val_loader, model, scores, epoch + 1, output, device, dtype, s)
            if s.PATIENCE and epoch + 1 - best["epoch"] >= s.PATIENCE:
                say(f"No better Dice for {s.PATIENCE} epochs (PATIENCE): the run ends here.")
                break

        if saving:
            saving.result()
        seconds = time.perf_counter() - start
        say(f"Best Dice {best['dice']:.4f} after {len(history)} epochs; this run trained {seconds:.0f} s.")
        if waiting > 0.2:
            cure = "raise NUM_WORKERS" if s.ARRAYS else "raise NUM_WORKERS, or set ARRAYS = True"
            cure = "put the dataset on a faster disk" if train_loader.dataset.arrays else cure
            say(f"{100 * waiting:.0f} % of the last epoch was spent waiting for data: {cure}.")
        say(f"Look at {output / 'saved_images'}/ and {output / 'curves.png'}; the network is in {output / 'best.pth'}.")


def settings(argv: list[str] | None = None) -> SimpleNamespace:
    """The constants, with the flags of a command line over them. UserError: what cannot be used."""
    s = settings_of(globals(), argv, rules=_RULES, shared=vars(dataset), presets={"DEMO": _DEMO_SETTINGS})
    if s.IMAGE_SIZE is None and not s.CROP:
        raise UserError("These constants cannot be used:\n  IMAGE_SIZE = None: height and width, or None with CROP")
    return s


def settle_crop(s):
    """What crops are cut from, in words; images keep their own size where IMAGE_SIZE leaves nothing to cut."""
    if s.HALF_SIZE:
        raise UserError(
            f"CROP with HALF_SIZE = {s.HALF_SIZE}: half a crop's size is another scale than that of prediction. Set "
            "HALF_SIZE = 0 (--half-size 0)."
        )
    crops = "Crops of {}x{} are cut out of images ".format(*s.CROP)
    if s.IMAGE_SIZE is None:
        return crops + "at their own size."
    left = [side - crop for crop, side in zip(s.CROP, s.IMAGE_SIZE)]
    if min(left) < 0 or not any(left):
        why, s.IMAGE_SIZE = f"IMAGE_SIZE = {tuple(s.IMAGE_SIZE)} leaves nothing to cut", None
        return crops + f"at their own size ({why})."
    return crops + "of {}x{} (IMAGE_SIZE; set it to None for images at their own size).".format(*s.IMAGE_SIZE)


def look_at_data(s, output):
    """The audit's report on every file, before the first epoch. UserError: what would spoil training."""
    folders = [s.TRAIN_IMG_DIR, s.TRAIN_MASK_DIR, s.VAL_IMG_DIR, s.VAL_MASK_DIR]
    if s.DEMO:
        draw_demo(Path(s.TRAIN_IMG_DIR).parent)
    for folder in map(Path, folders):
        if not folder.is_dir() or not any(folder.iterdir()):
            raise UserError(f"{folder}: no images here.\n{HOW_TO_GET_CARVANA}")
    report = audit(
        (s.TRAIN_IMG_DIR, s.TRAIN_MASK_DIR),
        (s.VAL_IMG_DIR, s.VAL_MASK_DIR),
        DataSpec.of(s),
        image_size=s.IMAGE_SIZE,
        sheet=output / "saved_images" / "audit.png",
        cache=arrays_folder(s.TRAIN_IMG_DIR, output) / "audit.json",
        apart=[output],
    )
    print(report.text())
    report.stop_if_spoiled()
    return report


def draw_demo(folder):
    """Draws cars in Carvana's layout, and augments them."""
    import augment  # here, because albumentations takes a second or two to load, and the demo alone needs it
    from parts.cars import draw_dataset

    if len(list((folder / "train_masks").glob("*.gif"))) < 20 * 16:
        draw_dataset(folder, cars=20, views=16, size=(256, 384))
    augment.make_augmented(folder / "train", folder / "train_masks", folder, val_images=64)


def draw(loader, model, scores, epoch, output, device, dtype, s):
    """saved_images/ after `epoch` epochs."""
    folder = output / "saved_images"
    save_predictions(loader, model, folder, device, dtype, s.PICTURE_BATCHES)
    save_examples(loader, model, scores, epoch, folder, device=device, dtype=dtype)
    if scores.classes:
        names, confusion = scores.classes["names"], scores.classes["confusion"]
        pictures.draw_confusion(confusion, names, folder / "confusion.png")
        rows = [[name, *counts] for name, counts in zip(names, confusion)]
        write_csv(folder / "confusion.csv", ["true class (pixels), predicted as", *names], rows)


def save_epoch(state, output, is_best):
    """The checkpoint of an epoch, then the history up to it."""
    if is_best:  # best.pth first: a run killed between the two repeats its epoch
        save_checkpoint(state, output / "best.pth", also=output / "checkpoint.pth")
    else:
        save_checkpoint(state, output / "checkpoint.pth")
    write_history(output, state["history"])


def write_history(folder, history):
    """history.csv and curves.png, made anew from all epochs."""
    columns = list(history[-1])
    write_csv(folder / "history.csv", columns, [[row.get(name) for name in columns] for row in history])
    pictures.draw_curves(history, folder / "curves.png")


@contextmanager
def ending_in_words(s, argv):
    """Out of memory is told with what to turn, a worker's death, and with a run's stop the command that goes on."""
    checkpoint = Path(s.OUTPUT_DIR) / "checkpoint.pth"
    before = stamp(checkpoint)
    try:
        yield
    except (RuntimeError, OSError) as error:
        if ran_out_of_memory(error):
            size = (s.CROP, s.ACCUMULATE, "CROP") if s.CROP else (s.IMAGE_SIZE, s.ACCUMULATE)
            raise UserError(recipe.out_of_memory_message(error, s.BATCH_SIZE, *size)) from error
        if not worker_was_killed(error):
            raise
        raise UserError(
            "A worker that fetches batches was killed, perhaps because memory ran out. Go on with --load-model, and "
            "with a smaller NUM_WORKERS if it happens again."
        ) from None
    except (KeyboardInterrupt, Terminated):
        if processes.rank() == 0:
            goes_on = s.LOAD_MODEL or stamp(checkpoint) != before  # this run has saved an epoch
            start = ["python"] if processes.world_size() == 1 else ["torchrun", "..."]
            words = [word for word in (sys.argv[1:] if argv is None else argv) if word != "--load-model"]
            does = "Go on after the last finished epoch" if goes_on else "No epoch was finished; start again"
            command = shlex.join([*start, "train.py", *words, *["--load-model"] * goes_on])
            print(f"\n{does} with:\n  {command}", file=sys.stderr)
        raise


if __name__ == "__main__":
    run(main)
