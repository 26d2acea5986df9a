"""Masks for new images, from a checkpoint that train.py saved.

    python predict.py photo.jpg folder/ "shots/*.png" --checkpoint best.pth
    python predict.py folder/ --masks masks/          also Dice and IoU at the masks' own size
    python predict.py test/ --submission submission.csv.gz --no-save-masks     Kaggle's rows
    python predict.py --export model.onnx             the network for elsewhere (or model.pt2)

Writes OUTPUT_DIR/name.png for each image: 0 and 255, of exactly its height and width (as its EXIF data
turn it), in the same tree of names. An unreadable file is reported, the rest is done, and the exit
status is 1 then; 2 where nothing can be done.
"""

import math
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import cv2
import torch
from tqdm import tqdm

import pictures
from encoders import load_network
from errors import UserError, run
from export import export
from inputs import find_masks, find_pictures, refuse_overwriting
from masks import MaskRule, find_mask_rule
from parallel import cores
from predicting import Finish, predict_pictures
from processes import keep_freed_memory, pick_device
from reading import shown
from recipe import autocast_dtype
from scores import Table, best_threshold
from settings import settings_of
from submission import write_submission
from windows import MIRRORS, Runner, fold_batchnorm

CHECKPOINT = "best.pth"  # what train.py saved: the weights, and all that is to be known about the network
OUTPUT_DIR = "predictions"  # where the masks go
SAVE_MASKS = True  # write them; off where the scores or the submission are all that is wanted
OVERLAYS = False  # also OUTPUT_DIR/overlays/name.jpg: the image with its mask laid over it
PROBABILITIES: int | None = None  # also OUTPUT_DIR/probabilities/name.png, of 8 or 16 bits
THRESHOLD: float | str = 0.5  # foreground is what is more probable; "auto": the best for MASKS, by Dice
IMAGE_SIZE: tuple | str | None = None  # what the network sees; None: the size of training, "own": each image's
FLIPS = "none"  # "h", "v", "hv": also run the image's mirrored copies and average; costs 2, 2 and 4 runs
WINDOW = 768  # pixels: what is larger than its square runs in windows of it, within the memory of one
OVERLAP: int | None = None  # of neighbouring windows, pixels; None: what makes the plain network's seams vanish
MASKS: str | None = None  # a folder of true masks: scores, scores.csv and worst.png at the masks' own size
MASK_FOREGROUND: int | tuple | None = None  # their value(s) that are foreground; None: as in training
SUBMISSION: str | None = None  # Kaggle's run-length rows as a .csv or .csv.gz
EXPORT: str | None = None  # write the network as .onnx or .pt2, and end
BATCH_SIZE: int | None = None  # images a call; None: 16, on a CPU 1 (more is slower there)
NUM_WORKERS: int | None = None  # threads that read and write pictures; None: as many as there are cores
DEVICE = "auto"  # or cuda, mps, cpu
PRECISION = "auto"  # bfloat16 where the hardware has it, float16 on older CUDA, else float32; or one of these

POSITIONALS = [("inputs", dict(nargs="*", default=[], metavar="INPUT", help="image files, folders, quoted patterns"))]
# A checkpoint that does not tell its size, such as the article's, was trained at this one.
ARTICLE_SIZE = (320, 480)
# How many images worst.png shows.
WORST = 10


def check(settings):
    """Refuses in words the values that nothing can be done with."""
    size = settings.image_size
    whole = isinstance(size, tuple) and len(size) == 2 and all(isinstance(n, int) and n > 0 for n in size)
    suffix = Path(settings.export or "").suffix
    kept = (settings.save_masks, settings.overlays, settings.probabilities, settings.masks, settings.submission)
    ends = str(settings.submission).endswith((".csv", ".csv.gz"))
    for wrong, words in (
        (size not in (None, "own") and not whole, f'IMAGE_SIZE is height and width, or "own", not {size!r}.'),
        (
            settings.threshold != "auto"
            and not (isinstance(settings.threshold, (int, float)) and 0 < settings.threshold < 1),
            f'THRESHOLD lies between 0 and 1, or is "auto", not {settings.threshold!r}.',
        ),
        (settings.threshold == "auto" and not settings.masks, 'THRESHOLD = "auto" needs MASKS to choose it by.'),
        (settings.flips not in MIRRORS, f"FLIPS is one of {', '.join(MIRRORS)}, not {settings.flips!r}."),
        (settings.probabilities not in (None, 8, 16), "PROBABILITIES is 8 or 16 (bits)."),
        (settings.window < 64, "WINDOW is at least 64 pixels."),
        (settings.submission and not ends, f"SUBMISSION ends in .csv or .csv.gz, not {settings.submission}."),
        (settings.export and suffix not in (".onnx", ".pt2"), f"EXPORT ends in .onnx or .pt2, not {settings.export}."),
        (settings.overlap is not None and settings.overlap < 0, "OVERLAP is 0 or more pixels."),
        (min(settings.batch_size or 0, settings.num_workers or 0) < 0, "BATCH_SIZE and NUM_WORKERS are not negative."),
        (settings.export and settings.inputs, "EXPORT writes the network and takes no images; run it without them."),
        (not settings.export and not any(kept), "Nothing would be kept: leave SAVE_MASKS on, or ask for more."),
        (not settings.inputs and not settings.export, "Which images? Name files, folders or patterns; see --help."),
    ):
        if wrong:
            raise UserError(words)


def make_runner(settings, network):
    """The network where it runs best."""
    device = pick_device(settings.device)
    if device.type == "cpu":
        keep_freed_memory()
    network = fold_batchnorm(network).to(device)
    if device.type != "mps":
        network.to(memory_format=torch.channels_last)
    dtype = autocast_dtype(device, settings.precision)
    return Runner(network, device, dtype, settings.flips, settings.window, settings.overlap)


def true_masks(settings, wanted, checkpoint):
    """({picture: mask file}, the rule that reads them); (None, None) where no scores are asked for.

    They may be of another encoding than those of training, so they are asked what their values mean,
    unless training was told a MASK_FOREGROUND: that holds here too.
    """
    if not settings.masks:
        return None, None
    truths = find_masks(wanted, settings.masks)
    lacking = [shown(picture.path) for picture in wanted if picture not in truths]
    if lacking:
        more = f" and {len(lacking) - 5} more" if len(lacking) > 5 else ""
        print(f"Without a mask in {settings.masks}, so not scored: {', '.join(lacking[:5])}{more}")
    told = checkpoint["settings"].get("mask_foreground") is not None and "mask_rule" in checkpoint
    if told and settings.mask_foreground is None:
        rule = MaskRule.from_dict(checkpoint["mask_rule"])
    else:
        rule = find_mask_rule(truths.values(), settings.mask_foreground, settings.num_workers or None, strict=False)
    print(f"In the masks {rule.describe()}.")
    return truths, rule


def outputs_of(settings, wanted):
    """Every file that the run will write."""
    folder = Path(settings.output_dir)
    kinds = (
        (settings.save_masks, folder, ".png"),
        (settings.overlays, folder / "overlays", ".jpg"),
        (settings.probabilities, folder / "probabilities", ".png"),
    )
    files = [place / f"{picture.name}{suffix}" for on, place, suffix in kinds if on for picture in wanted]
    if settings.masks:
        files += [folder / "scores.csv", folder / "worst.png"]
    return files + ([Path(settings.submission)] if settings.submission else [])


def choose_threshold(job, truths, rule):
    """The threshold that gives the pictures with masks the highest mean Dice."""
    outcomes = job(list(truths), Finish(masks=truths, rule=rule, histogram=True), "threshold")
    histograms = [outcome.histogram for outcome in outcomes if outcome.histogram is not None]
    if not histograms:
        raise UserError("None of the pictures with masks can be read, so no threshold can be chosen.")
    threshold, dice, dice_at_half = best_threshold(histograms)
    print(
        f"Threshold {threshold:.4f}: Dice {dice:.4f} over {len(histograms)} images, {dice_at_half:.4f} at 0.5. "
        "Chosen on these images, it flatters their scores a little."
    )
    return threshold


def followed(outcomes, table, failures):
    """Passes the outcomes on; says what failed, and keeps the counts."""
    for outcome in outcomes:
        if outcome.error:
            tqdm.write(outcome.error, file=sys.stderr)
            failures.append(outcome.picture)
        if outcome.counts:
            table.add(shown(outcome.picture.path), outcome.counts)
        yield outcome


def draw_worst(job, table, finish, path):
    """A sheet of the lowest Dice: image, truth, prediction, difference."""
    by_path = {shown(picture.path): picture for picture in finish.masks}
    dice, iou = table.scores()
    captions = {table.names[i]: f"{table.names[i]}  Dice {dice[i]:.4f}, IoU {iou[i]:.4f}" for i in table.worst(WORST)}
    again = replace(finish, folder=None, overlays=None, probabilities=None, runs=False, show=True)
    outcomes = [it for it in job([by_path[name] for name in captions], again, "worst") if it.shown]
    if outcomes:
        tiles = zip(*(it.shown for it in outcomes))
        texts = [captions[shown(it.picture.path)] for it in outcomes]
        pictures.save_image(path, pictures.examples_sheet(*tiles, texts, "The lowest Dice"))


def make_job(settings, runner, size):
    """predict_pictures with these settings and a bar: job(pictures, finish, label) yields outcomes."""
    threads = settings.num_workers or cores()
    batch_size = settings.batch_size or (1 if runner.device.type == "cpu" else 16)

    def job(items, finish, label="predict"):
        with tqdm(total=len(items), desc=label, unit="image", disable=None) as bar:

            def say(window, windows):
                bar.set_postfix_str(f"window {window}/{windows}")

            try:
                for outcome in predict_pictures(items, runner, finish, size, batch_size, threads, say):
                    bar.update()
                    yield outcome
            except torch.OutOfMemoryError as error:
                raise UserError(
                    f"The device has run out of memory. Lower BATCH_SIZE ({batch_size}) or WINDOW ({settings.window})."
                ) from error

    return job


def describe(settings, checkpoint, runner, size, number):
    """What is about to happen, in a line."""
    seen = "their own size" if size == "own" else f"{size[0]}x{size[1]}"
    precision = str(runner.dtype or torch.float32).removeprefix("torch.")
    return (
        f"{settings.checkpoint}: epoch {checkpoint.get('epoch', 'unknown')}. {number} images, which the network "
        f"sees at {seen}, on {runner.device} in {precision}."
    )


def find_inputs(settings):
    """(pictures, missing), said aloud and refused where nothing is to be done or a name would be lost."""
    wanted, missing = find_pictures(settings.inputs, settings.output_dir, settings.masks)
    for text in missing:
        print(text, file=sys.stderr)
    if not wanted:
        raise UserError(f"There is no image in {', '.join(settings.inputs)}.")
    names = Counter(picture.path.name for picture in wanted)
    doubled = [name for name, number in names.items() if number > 1]
    if settings.submission and doubled:
        raise UserError(
            f"SUBMISSION names images by their file name, and these come more than once: {', '.join(doubled[:10])}."
        )
    return wanted, missing


def main(argv=None):
    settings = settings_of(__file__, argv, positionals=POSITIONALS)
    check(settings)
    network, checkpoint = load_network(settings.checkpoint)
    if settings.export:
        print(export(network, settings.export))
        return 0
    wanted, missing = find_inputs(settings)
    truths, rule = true_masks(settings, wanted, checkpoint)
    refuse_overwriting(outputs_of(settings, wanted), [it.path for it in wanted] + list((truths or {}).values()))
    size = settings.image_size or tuple(checkpoint.get("image_size", ARTICLE_SIZE))
    runner = make_runner(settings, network)
    print(describe(settings, checkpoint, runner, size, len(wanted)))
    cv2.setNumThreads(1)  # there is a picture for each thread already
    job = make_job(settings, runner, size)
    threshold = settings.threshold
    if threshold == "auto":
        threshold = choose_threshold(job, truths, rule)

    folder = Path(settings.output_dir)
    finish = Finish(
        cut=math.log(threshold / (1 - threshold)),
        folder=folder if settings.save_masks else None,
        overlays=folder / "overlays" if settings.overlays else None,
        probabilities=folder / "probabilities" if settings.probabilities else None,
        bits=settings.probabilities,
        masks=truths,
        rule=rule,
        runs=bool(settings.submission),
    )
    table, failures = Table(), list(missing)
    outcomes = followed(job(wanted, finish), table, failures)
    if settings.submission:
        Path(settings.submission).parent.mkdir(parents=True, exist_ok=True)
        rows = ((it.picture.path.name, it.runs) for it in outcomes if it.runs is not None)
        write_submission(settings.submission, rows)
    for _ in outcomes:  # all of them, where no submission has taken them
        pass
    drawn = settings.save_masks or settings.overlays or settings.probabilities
    places = [str(folder)] * bool(drawn) + [settings.submission] * bool(settings.submission)
    print(f"{len(wanted) + len(missing) - len(failures)} images done; see {' and '.join(places) or 'below'}.")
    if table.names:
        folder.mkdir(parents=True, exist_ok=True)
        table.write(folder / "scores.csv")
        draw_worst(job, table, finish, folder / "worst.png")
        if not any(true for _, _, true in table.counts):
            print("No pixel of these masks reads as foreground. If they are not empty, MASK_FOREGROUND says what is.")
        print(f"{table.text(WORST)}\nAll of them: {folder / 'scores.csv'}. The lowest: {folder / 'worst.png'}.")
    if failures:
        print(f"{len(failures)} of the inputs failed; see above.", file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    run(main)
