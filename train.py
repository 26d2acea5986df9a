"""Trains a U-Net on images and masks, and leaves its checkpoints, scores and pictures.

    python augment.py && python train.py      Carvana's folders, split and augmented, then trained on
    python train.py --demo                    drawn cars, a small network, minutes on a CPU
    python train.py --load-model              goes on where the last run stopped
    torchrun --standalone --nproc_per_node=2 train.py    one process for each GPU

Leaves checkpoint.pth (the last), best.pth (the highest Dice), saved_images/, history.csv and curves.png.
"""

import csv
import io
import shlex
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import torch
from tqdm import tqdm

import demo
import errors
import pictures
import processes
import recipe
from arrays import ArrayDataset
from audit import audit
from checkpoints import save_run, set_aside, sole_writer
from errors import Terminated, UserError
from files import remove_leftovers, write_text
from loading import get_loaders, refuse_infinite, told_by_worker
from reading import CARVANA_GROUP, HOW_TO_GET_CARVANA
from settings import fits, settings_of, table
from training import Training
from utils import check_accuracy, save_examples, save_predictions, symptom, to_device

TRAIN_IMG_DIR = "./dataset/augmented_train_images"  # as augment.py leaves them, or any folder of images
TRAIN_MASK_DIR = "./dataset/augmented_train_masks"  # their masks: name.png, name_mask.gif, name.mask.png, ...
VAL_IMG_DIR = "./dataset/augmented_test_images"  # images that training never sees
VAL_MASK_DIR = "./dataset/augmented_test_masks"  # their masks
OUTPUT_DIR = "."  # where checkpoints, saved_images/, history.csv and curves.png go
MASK_FOREGROUND: int | tuple | None = None  # the mask value(s) that are foreground; None: what the masks say
GROUP = CARVANA_GROUP  # pattern of the part of a name that must not stand on both sides of the split
IMAGE_SIZE = (320, 480)  # height and width of training; higher finds finer edges and costs its pixels
ARRAYS = True  # decode once into arrays on disk; False decodes in every epoch
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
EMA_DECAY = 0.0  # of the running mean of the weights that is scored and saved, such as 0.999; 0 for none
HALF_SIZE = 0.0  # share of the steps at half of IMAGE_SIZE, before it grows to all of it; on a CPU 0.5 learnt most
FLIP = True  # mirror each training image left-right half of the time, on the device
COLOR_JITTER = 0.4  # how far contrast, brightness and colours of training images vary; the article's: 0
PATIENCE = 0  # end after so many epochs without a better Dice; 0 for never
DEVICE = "auto"  # or cuda, mps, cpu
PRECISION = "auto"  # bfloat16 where the hardware has it, float16 on older CUDA, else float32; or one of these
COMPILE = True  # torch.compile, on CUDA alone
SYNC_BATCHNORM = False  # with several processes: normalise over all their batches together
LOAD_MODEL = False  # go on from OUTPUT_DIR/checkpoint.pth
SEED = 0  # of the weights, the order of the images and the flips
PICTURE_BATCHES = 4  # validation batches drawn as pred_N.png and N.png in each epoch
DEMO = False  # draw a small dataset of cars and train on it with settings that suit a CPU

DEMO_SETTINGS = dict(
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
# Steps between two looks at the loss, each of which waits for the device.
READ_LOSS_EVERY = 20


def train_fn(loader, run, settings, bar):
    """One epoch over `loader`. Returns (mean loss, share of the time spent waiting for data)."""
    run.model.train()
    accumulate = settings.accumulate
    losses, looked, total, waited = [], 0, 0.0, 0.0
    begin = asked = time.perf_counter()
    for index, (images, masks) in enumerate(loader):
        errors.stop_if_asked()
        waited += time.perf_counter() - asked
        images, masks = to_device(images, masks, run.device)
        draws = recipe.named_generator(run.seed, run.epoch, index, processes.rank())
        images, masks = recipe.vary_batch(images, masks, settings.flip, settings.color_jitter, draws)
        step = (run.epoch * -(-len(loader) // accumulate)) + index // accumulate
        factor = recipe.size_factor(step / run.schedule.total, settings.half_size)
        images, masks = recipe.shrink_batch(images, masks, factor, run.network.smallest)
        group = min(accumulate, len(loader) - index // accumulate * accumulate)
        last = index % accumulate == group - 1
        with processes.synchronised(run.model, last):
            with torch.autocast(run.device.type, dtype=run.dtype, enabled=run.dtype is not None):
                predictions = run.model(images)
            loss = run.loss_fn(predictions.float(), masks)
            run.scaler.scale(loss / group).backward()
        if last:
            run.schedule.before_step(step)
            if settings.clip_gradient:
                run.scaler.unscale_(run.optimizer)
                torch.nn.utils.clip_grad_norm_(run.network.parameters(), settings.clip_gradient)
            run.scaler.step(run.optimizer)
            run.scaler.update()
            run.optimizer.zero_grad(set_to_none=True)
            if run.average:
                run.average.update(run.network)
        losses.append(loss.detach())
        if len(losses) == READ_LOSS_EVERY or index == len(loader) - 1 or run.device.type == "cpu":
            values = torch.stack(losses).tolist()
            refuse_infinite(values, loader, run.epoch, looked)
            total, looked, losses = total + sum(values), index + 1, []
            wait = waited / (time.perf_counter() - begin)
            bar.set_postfix(loss=f"{total / looked:.4f}", waiting=f"{100 * wait:.0f}%", refresh=False)
        bar.update()
        asked = time.perf_counter()
    sums = processes.sum_over_all(torch.tensor([total, looked], dtype=torch.float64))
    return float(sums[0] / sums[1]), waited / (time.perf_counter() - begin)


def write_history(folder, history):
    """history.csv and curves.png, made anew from all epochs."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(history[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(history)
    write_text(folder / "history.csv", text.getvalue())
    pictures.draw_curves(history, folder / "curves.png")


def prepare_data(settings):
    """Draws the demo's cars if asked, and looks at every file before the first epoch. Returns the report."""
    if settings.demo:
        import augment  # here, because albumentations takes a second or two to load, and the demo alone needs it

        source = Path(settings.train_img_dir).parent
        if len(list((source / "train_masks").glob("*.gif"))) < 20 * 16:
            demo.draw_dataset(source, cars=20, views=16, size=(256, 384))
        augment.make_augmented(source / "train", source / "train_masks", source, val_images=64)
    folders = [settings.train_img_dir, settings.train_mask_dir, settings.val_img_dir, settings.val_mask_dir]
    for folder in map(Path, folders):
        if not folder.is_dir() or not any(folder.iterdir()):
            raise UserError(f"{folder}: no images here.\n{HOW_TO_GET_CARVANA}")
    output = Path(settings.output_dir)
    report = audit(
        *folders,
        mask_foreground=settings.mask_foreground,
        group=settings.group,
        sheet=output / "saved_images" / "audit.png",
        cache=Path(settings.train_img_dir).parent / ".arrays" / "audit.json",
    )
    print(report.text())
    report.stop_if_spoiled()
    return report


def check(settings):
    """Refuses, in one message, constants that cannot be meant."""
    wrong = [
        f"{name.upper()} = {value!r}: {words}"
        for name, test, words in (
            ("image_size", lambda v: isinstance(v, tuple) and len(v) == 2 and min(v) > 0, "height and width"),
            ("features", lambda v: isinstance(v, tuple) and len(v) > 0 and min(v) > 0, "one or more channel counts"),
            ("num_epochs", lambda v: v >= 1, "at least 1"),
            ("batch_size", lambda v: v >= 1, "at least 1"),
            ("accumulate", lambda v: v >= 1, "at least 1"),
            ("num_workers", lambda v: v >= 0, "0 or more"),
            ("learning_rate", lambda v: v > 0, "more than 0"),
            ("weight_decay", lambda v: v >= 0, "0 or more"),
            ("clip_gradient", lambda v: v >= 0, "0 for none, or more"),
            ("seed", lambda v: v >= 0, "0 or more"),
            ("picture_batches", lambda v: v >= 0, "0 or more"),
            ("warmup", lambda v: 0 <= v < 1, "a share, 0 or more and below 1"),
            ("half_size", lambda v: 0 <= v < 0.95, "a share, 0 or more and below 0.95"),
            ("color_jitter", lambda v: 0 <= v < 1, "0 for none, or below 1 such as 0.3"),
            ("ema_decay", lambda v: 0 <= v < 1, "0, or below 1 such as 0.999"),
            ("patience", lambda v: v >= 0, "0 or more epochs"),
        )
        if not fits(test, value := getattr(settings, name))
    ]
    if wrong:
        raise UserError("These constants of train.py cannot be used:\n  " + "\n  ".join(wrong))


def train(settings, device):
    """One run, from looking at the data to the closing summary."""
    output, first = Path(settings.output_dir), processes.rank() == 0
    say = print if first else lambda *words: None
    say(f"Settings (each is a constant at the top of train.py):\n{table(settings)}")
    report = processes.first(lambda: prepare_data(settings))
    train_loader, val_loader = get_loaders(
        settings.train_img_dir,
        settings.train_mask_dir,
        settings.val_img_dir,
        settings.val_mask_dir,
        settings.batch_size,
        settings.num_workers,
        settings.pin_memory,
        image_size=settings.image_size,
        rule=report.rule,
        seed=settings.seed,
        arrays=settings.arrays,
    )
    steps = -(-len(train_loader) // settings.accumulate)
    run = Training(settings, device, steps * settings.num_epochs)
    smallest = run.network.smallest * (2 if settings.half_size else 1)
    if min(settings.image_size) < smallest:
        raise UserError(f"IMAGE_SIZE is too small: the network's poolings need at least {smallest} {smallest}.")
    if settings.load_model:
        run.restore(output / "checkpoint.pth", settings)
    if settings.compile and device.type == "cuda":
        shape = (settings.batch_size, 3, *settings.image_size)
        recipe.compile_or_not(run.network, shape, run.dtype, settings.half_size)
    run.model = processes.wrap(run.network, device, settings.sync_batchnorm)
    parameters = sum(parameter.numel() for parameter in run.network.parameters())
    say(f"{parameters:,} parameters on {device}, {run.dtype or torch.float32}, {steps} steps an epoch")

    if first:
        remove_leftovers(output)
        if not settings.load_model:
            set_aside(output)
        if run.history:
            write_history(output, run.history)  # a run killed while writing them is set right here
    if not run.epoch:
        check_accuracy(val_loader, run.scored, device, run.dtype)
    pictures_dir, waiting = output / "saved_images", 0.0
    start = time.perf_counter()
    while run.epoch < settings.num_epochs:
        title = f"Epoch {run.epoch + 1}/{settings.num_epochs}"
        train_loader.sampler.set_epoch(run.epoch)
        with tqdm(total=len(train_loader), desc=title, disable=not first, mininterval=0.5) as bar:
            loss, waiting = train_fn(train_loader, run, settings, bar)
        run.epoch += 1
        processes.same_everywhere(run.network)
        if run.average:
            processes.same_everywhere(run.average.network)
        scores = check_accuracy(val_loader, run.scored, device, run.dtype)
        rate = run.optimizer.param_groups[0]["lr"]
        run.schedule.after_epoch(scores.dice)
        improved = scores.dice > run.best_dice
        run.best_dice = max(scores.dice, run.best_dice)
        row = dict(epoch=run.epoch, loss=loss, accuracy=scores.accuracy, dice=scores.dice, iou=scores.iou)
        run.history.append(row | dict(learning_rate=rate))
        if first:
            if words := symptom(scores):
                print(words)
            seen = (val_loader, run.scored)
            save_predictions(*seen, pictures_dir, device, run.dtype, settings.picture_batches)
            save_examples(*seen, scores, run.epoch, pictures_dir, device=device, dtype=run.dtype)
            state = run.state(settings, report.rule)
            save_run(state, output / "checkpoint.pth", output / "best.pth" if improved else None)
            write_history(output, run.history)
        since_best = run.epoch - max(run.history, key=lambda row: row["dice"])["epoch"]
        if settings.patience and since_best >= settings.patience:
            say(f"No better Dice for {since_best} epochs (PATIENCE): the run ends here.")
            break
    seconds = time.perf_counter() - start
    say(f"Best Dice {run.best_dice:.4f} after {run.epoch} epochs; this run trained {seconds:.0f} s.")
    if waiting > 0.2:
        arrays = isinstance(train_loader.dataset, ArrayDataset)
        cure = "put the dataset on a faster disk" if arrays else "raise NUM_WORKERS, or set ARRAYS = True"
        say(f"{100 * waiting:.0f} % of the last epoch was spent waiting for data: {cure}.")
    say(f"Look at {pictures_dir}/ and {output / 'curves.png'}; the network is in {output / 'best.pth'}.")


def written(path):
    """When `path` was written, None where it is not there."""
    return path.stat().st_mtime_ns if path.exists() else None


def say_how_to_go_on(argv, saved, settings):
    """Prints the command that goes on with a run that was stopped; `saved`: it has finished an epoch."""
    goes_on = saved or settings.load_model
    start = ["python"] if processes.world_size() == 1 else ["torchrun", "..."]
    words = [word for word in argv if word != "--load-model"] + ["--load-model"] * goes_on
    does = "Go on after the last finished epoch" if goes_on else "No epoch was finished; start again"
    print(f"\n{does} with:\n  {shlex.join([*start, 'train.py', *words])}", file=sys.stderr)


def main(argv=None):
    settings = settings_of(__file__, argv, presets={"DEMO": DEMO_SETTINGS})
    check(settings)
    checkpoint = Path(settings.output_dir) / "checkpoint.pth"
    before = written(checkpoint)
    with processes.together(settings.device) as device:
        if device.type == "cpu":
            processes.keep_freed_memory()
        try:
            with sole_writer(settings.output_dir) if processes.rank() == 0 else nullcontext():
                train(settings, device)
        except torch.OutOfMemoryError as error:
            sizes = (settings.batch_size, settings.image_size, settings.accumulate)
            raise UserError(recipe.out_of_memory_message(error, *sizes)) from error
        except (RuntimeError, UserError) as error:
            raise processes.told_by_peer(error) or told_by_worker(error) or error from None
        except (KeyboardInterrupt, Terminated):
            if processes.rank() == 0:
                say_how_to_go_on(sys.argv[1:] if argv is None else argv, written(checkpoint) != before, settings)
            raise


if __name__ == "__main__":
    errors.run(main)
