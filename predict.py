"""Masks for new images, from a checkpoint that train.py saved.

    python predict.py photo.jpg folder/ --checkpoint best.pth
    python predict.py folder/ --masks masks/          also Dice and IoU at the masks' own size
    python predict.py test/ --submission submission.csv.gz --no-save-masks     Kaggle's rows
    python predict.py --export model.onnx             the network for elsewhere (or model.pt2)

Writes OUTPUT_DIR/name.png for each image: 0 and 255, of exactly its height and width (as its EXIF data
turn it), in the same tree of names; of each page or frame name_0.png, name_1.png ... where a file has
several. A network of several classes writes what the masks that it was trained on hold for them: values,
indices of a palette or colours. A picture that cannot be read is reported, the rest is done, and the exit
status is 1 then; 2 where nothing can be done.
"""

import math
import os
import sys
from collections import Counter
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import torch
from tqdm import tqdm

import dataset
from parts import pictures
from parts.checkpoints import load_network
from parts.errors import UserError, list_files, printable, ran_out_of_memory, run
from parts.export import export
from parts.files import cores
from parts.images import image_size
from parts.inference import MIRRORS, make_runner, predict_pictures
from parts.mask_rules import find_mask_rule
from parts.masks import MaskRule
from parts.names import find_masks, find_pictures, folded_path
from parts.options import any_value, either, file_path, number, one_of, optional, settings_of, sizes, whole
from parts.outputs import Finish, choose_threshold, tell_scores, write_submission
from parts.recipe import PRECISIONS
from parts.spec import DataSpec

CHECKPOINT = "best.pth"  # what train.py saved: the weights, and all that is to be known about the network
OUTPUT_DIR = "predictions"  # where the masks go
SAVE_MASKS = True  # write them; off where the scores or the submission are all that is wanted
OVERLAYS = False  # also OUTPUT_DIR/overlays/name.jpg: the image with its mask laid over it
PROBABILITIES: int | None = None  # also OUTPUT_DIR/probabilities/name.png, of 8 or 16 bits; name_CLASS.png of each
THRESHOLD: float | str = 0.5  # foreground is what is more probable; "auto": the best for MASKS, by Dice
IMAGE_SIZE: tuple | str | None = None  # what the network sees; None: as in training, "own": each image's size
FLIPS: str | None = None  # "h", "v", "hv": also run the image's mirrored copies and average; costs 2, 2 and 4 runs
WINDOW = 768  # pixels: what is larger than its square runs in windows of it, within the memory of one
OVERLAP: int | None = None  # of neighbouring windows, pixels; None: what makes the plain network's seams vanish
MASKS: str | None = None  # a folder of true masks: scores, scores.csv and worst.png at the masks' own size
MASK_FOREGROUND: int | tuple | str | None = None  # their foreground, as in dataset.py; None: as in training
MASK_IGNORE: int | tuple | None = None  # what of them is not scored, as in dataset.py; None: as in training
SUBMISSION: str | None = None  # Kaggle's run-length rows as a .csv or .csv.gz
EXPORT: str | None = None  # write the network as .onnx or .pt2, and end
BATCH_SIZE: int | None = None  # images a call; None: 16, on a CPU 1 (more is slower there)
NUM_WORKERS: int | None = None  # threads that read and write pictures; None: as many as there are cores
DEVICE = "auto"  # or cuda, mps, cpu
PRECISION = "auto"  # bfloat16 where the hardware has it, float16 on older CUDA, else float32; or one of these
# What the constants may be, where their values alone do not tell; MASK_NAME stands in dataset.py.
_RULES = dict(
    PROBABILITIES=one_of(None, 8, 16),
    THRESHOLD=either(number(above=0, below=1), "auto"),
    IMAGE_SIZE=either(sizes(2), "own", None),
    FLIPS=one_of(*MIRRORS),
    WINDOW=whole(64),
    OVERLAP=optional(whole(0)),
    MASKS=optional(file_path()),
    MASK_FOREGROUND=any_value(),
    MASK_IGNORE=any_value(),
    SUBMISSION=optional(file_path(".csv", ".csv.gz")),
    EXPORT=optional(file_path(".onnx", ".pt2")),
    BATCH_SIZE=optional(whole(0)),
    NUM_WORKERS=optional(whole(0)),
    PRECISION=one_of("auto", *PRECISIONS),
)
_INPUTS = [("inputs", dict(nargs="*", default=[], metavar="INPUT", help="image files and folders"))]
_ARTICLE_SIZE = (320, 480)  # of the checkpoints that do not tell their size, such as the article's


def find_truths(s, wanted, checkpoint, classes=None):
    """({picture: Pair of it and its mask}, the rule that reads them); ({}, None) where no scores are asked for.

    They may be of another encoding than those of training, so they are asked what their values mean,
    unless training was told a MASK_FOREGROUND: that holds here too. So does the network's rule of `classes`.
    """
    if not s.MASKS:
        return {}, None
    truths = find_masks(wanted, s.MASKS, DataSpec(mask_name=s.MASK_NAME))
    lacking = [picture for picture in wanted if picture not in truths]
    if lacking:
        print(f"Without a mask in {s.MASKS} (of as many pages), so not scored: {list_files(lacking)}")
    several = [picture for picture, pair in truths.items() if pair.more]
    if classes and several:
        raise UserError(
            f"{s.MASKS}: several masks fit {list_files(several)}, and such are united to one foreground. A network of "
            "classes is scored by one mask a picture: take the * out of MASK_NAME."
        )
    told = {name.upper(): value for name, value in checkpoint["settings"].items()}  # older ones are in lower case
    foreground = told.get("MASK_FOREGROUND") if s.MASK_FOREGROUND is None else s.MASK_FOREGROUND
    ignore = told.get("MASK_IGNORE") if s.MASK_IGNORE is None else s.MASK_IGNORE
    as_in_training = s.MASK_FOREGROUND is None and s.MASK_IGNORE is None and "mask_rule" in checkpoint
    if classes and s.MASK_IGNORE is None:
        mask_rule = classes
    elif as_in_training and foreground is not None:
        mask_rule = MaskRule.from_dict(checkpoint["mask_rule"])
    else:
        files = [source for pair in truths.values() for source in pair.sources[1:]]
        named = dict(zip(classes.names, classes.classes)) if classes else None
        mask_rule = find_mask_rule(
            files,
            DataSpec(foreground=foreground, ignore=ignore, classes=named),
            num_workers=s.NUM_WORKERS or None,
            strict=False,
        )
    print(f"In the masks {mask_rule.describe()}.")
    return truths, mask_rule


# ---- the run


def check(s: SimpleNamespace) -> None:
    """Refuses constants that contradict each other; _RULES say what each may be. UserError."""
    DataSpec(foreground=s.MASK_FOREGROUND, ignore=s.MASK_IGNORE, mask_name=s.MASK_NAME)  # checks them
    kept = s.SAVE_MASKS or s.OVERLAYS or s.PROBABILITIES or s.MASKS or s.SUBMISSION
    for wrong, words in (
        (s.THRESHOLD == "auto" and not s.MASKS, 'THRESHOLD = "auto" needs MASKS to choose it by.'),
        (s.EXPORT and s.inputs, "EXPORT writes the network and takes no images; run it without them."),
        (not s.EXPORT and not kept, "Nothing would be kept: leave SAVE_MASKS on, or ask for more."),
        (not s.EXPORT and not s.inputs, "Which images? Name files or folders; see --help."),
    ):
        if wrong:
            raise UserError(words)


def refuse_for_classes(s, classes):
    """UserError that lists the constants which are for one foreground alone."""
    plain = dict(THRESHOLD=0.5, SUBMISSION=None, MASK_FOREGROUND=None)
    if wrong := [f"{name} = {getattr(s, name)!r}" for name, value in plain.items() if getattr(s, name) != value]:
        raise UserError(
            f"{s.CHECKPOINT}: its network tells {len(classes.names)} classes ({', '.join(classes.names[:12])}"
            f"{', ...' if len(classes.names) > 12 else ''}), and these are for one foreground: {', '.join(wrong)}. "
            f"Leave them at {', '.join(f'{name} = {value!r}' for name, value in plain.items())}."
        )


def refuse_lost(s, finish, wanted):
    """UserError where an output would be lost in another one, or an input in an output."""
    outputs = [(path, str(it)) for kind in finish.folders for it in wanted for path in finish.paths(kind, it)]
    outputs += [(Path(s.OUTPUT_DIR, name), "the scores") for name in ("scores.csv", "worst.png") if s.MASKS]
    outputs += [(Path(s.SUBMISSION), "all images")] if s.SUBMISSION else []
    outputs += [(finish.legend, "the classes")] if finish.legend else []
    masks = [file for pair in finish.truths.values() for file, _ in pair.sources[1:]]
    originals = {os.path.realpath(path) for path in [*(picture.path for picture in wanted), *masks]}
    sources, wrong = {}, []
    for path, source in outputs:
        sources.setdefault(folded_path(os.path.realpath(path)), []).append(f"{printable(path)} of {source}")
        if os.path.realpath(path) in originals or os.path.isdir(path):
            wrong.append(f"{printable(path)}: is one of the inputs, or a folder")
    wrong += [f"one file would be {' and '.join(same)}" for same in sources.values() if len(same) > 1]
    if wrong:
        cures = "Give another OUTPUT_DIR, or rename one of two pictures"
        raise UserError(f"These outputs would overwrite something. {cures}:\n  " + "\n  ".join(wrong))
    names = Counter(picture.name.name + picture.path.suffix for picture in wanted)
    doubled = ", ".join([name for name, number in names.items() if number > 1][:10])
    if s.SUBMISSION and doubled:
        raise UserError(f"SUBMISSION names images by their file name, and these come more than once: {doubled}.")


def put_through(s, runner, wanted, finish, label="predict"):
    """Puts the pictures `wanted` through the network, under a bar, and yields their Outcomes."""
    own = s.IMAGE_SIZE == "own"
    with tqdm(total=len(wanted), desc=label, unit="image", disable=None) as bar:
        outcomes = predict_pictures(
            wanted,
            runner,
            size_of=lambda picture: image_size(picture.path, picture.page),
            read=lambda picture: finish.read(picture, None if own else s.IMAGE_SIZE),
            finish=finish,
            batch_size=s.BATCH_SIZE,
            threads=s.NUM_WORKERS,
            bounded=own,
            say=lambda window, windows: bar.set_postfix_str(f"window {window}/{windows}"),
            in_bands=finish.bands if own and finish.classes else None,
        )
        try:
            for outcome in outcomes:
                bar.update()
                yield outcome
        except RuntimeError as error:
            if not ran_out_of_memory(error):
                raise
            smaller = f"Lower BATCH_SIZE ({s.BATCH_SIZE}) or WINDOW ({s.WINDOW})."
            raise UserError(f"The device has run out of memory. {smaller}") from error


def followed(outcomes, scored, confusion, failures, alone):
    """Says what failed, fills `scored` ({picture: counts}), `failures` ({picture: whether it has a row all the same})
    and `alone` ({picture: the one class that is predicted}), adds to `confusion`, and yields the submission's rows."""
    for outcome in outcomes:
        if outcome.error:
            tqdm.write(outcome.error, file=sys.stderr)
            failures[outcome.picture] = outcome.runs is not None
        if outcome.only is not None:
            alone[outcome.picture] = outcome.only
        if outcome.counts:
            scored[outcome.picture] = outcome.counts
        if outcome.confusion is not None:
            confusion += outcome.confusion
        if outcome.runs is not None:
            yield outcome.picture.name.name + outcome.picture.path.suffix, outcome.runs  # a page's: a_1.tif


def tell_alone(alone, done, classes):
    """Says where nothing is predicted, or one and the same class in all of the `done` pictures."""
    cure = "are picture and IMAGE_SIZE as in training?"
    if not classes and (empty := [picture for picture, value in alone.items() if value == 0]):
        print(
            f"Nothing is predicted in {len(empty)} of them: {list_files(empty)}. Where something should be: {cure} "
            "Else lower THRESHOLD."
        )
    if classes and len(alone) == done and len(set(alone.values())) == 1:
        name = classes.names[next(iter(alone.values()))]
        print(f"Every pixel of them is predicted as {name}. Where something else should be: {cure}")


def main(argv=None):
    s = settings_of(
        globals(), argv, rules=_RULES, shared=vars(dataset), shared_names=["MASK_NAME"], positionals=_INPUTS
    )
    check(s)
    network, checkpoint = load_network(s.CHECKPOINT)
    classes = MaskRule.from_dict(checkpoint["mask_rule"]) if network.output_conv.out_channels > 1 else None
    if s.EXPORT:
        print(export(network, s.EXPORT, classes.names if classes else ()))
        return 0
    if classes:
        refuse_for_classes(s, classes)

    wanted, missing = find_pictures(s.inputs, s.OUTPUT_DIR, s.MASKS)
    for text in missing:
        print(text, file=sys.stderr)
    if not wanted:
        raise UserError(f"There is no image in {', '.join(s.inputs)}.")
    truths, mask_rule = find_truths(s, wanted, checkpoint, classes)
    folder = Path(s.OUTPUT_DIR)
    kinds = dict(masks=s.SAVE_MASKS, overlays=s.OVERLAYS, probabilities=s.PROBABILITIES)
    folders = {kind: folder if kind == "masks" else folder / kind for kind, on in kinds.items() if on}
    finish = Finish(folders=folders, bits=s.PROBABILITIES, truths=truths, mask_rule=mask_rule, runs=bool(s.SUBMISSION))
    finish.classes, finish.value_range = classes, checkpoint.get("image_range")
    refuse_lost(s, finish, wanted)

    runner = make_runner(network, s.DEVICE, s.PRECISION, mirrors=s.FLIPS, window=s.WINDOW, overlap=s.OVERLAP)
    trained_at = checkpoint.get("image_size", _ARTICLE_SIZE)  # None: on crops out of images at their own size
    s.IMAGE_SIZE = s.IMAGE_SIZE or ("own" if trained_at is None else tuple(trained_at))
    s.BATCH_SIZE = s.BATCH_SIZE or (1 if runner.device.type == "cpu" else 16)
    s.NUM_WORKERS = s.NUM_WORKERS or cores()
    cv2.setNumThreads(1)  # there is a picture for each thread already
    seen = "their own size" if s.IMAGE_SIZE == "own" else f"{s.IMAGE_SIZE[0]}x{s.IMAGE_SIZE[1]}"
    print(
        f"{s.CHECKPOINT}: epoch {checkpoint.get('epoch', 'unknown')}. {len(wanted)} images, which the network sees "
        f"at {seen}, on {runner.device} in {str(runner.dtype or torch.float32).removeprefix('torch.')}."
    )
    through = partial(put_through, s, runner)
    threshold = choose_threshold(through, finish) if s.THRESHOLD == "auto" else s.THRESHOLD
    finish.cut = math.log(threshold / (1 - threshold))

    scored, failures, alone = {}, dict.fromkeys(missing, False), {}
    confusion = np.zeros((runner.channels, runner.channels), np.int64)
    rows = followed(through(wanted, finish), scored, confusion, failures, alone)
    if s.SUBMISSION:
        write_submission(s.SUBMISSION, rows)
    for _ in rows:  # all of them, where no submission has taken them
        pass
    if finish.legend and finish.legend.parent.is_dir():
        pictures.save_image(finish.legend, pictures.sheet([], title="Classes", legend=finish.palette.entries))
    places = [s.OUTPUT_DIR] * bool(folders) + [s.SUBMISSION] * bool(s.SUBMISSION)
    done = len(wanted) + len(missing) - len(failures)
    print(f"{done} images done; see {' and '.join(places) or 'below'}.")
    if dark := [picture for picture in wanted if picture in finish.dark]:
        print(
            f"{len(dark)} of them have 16 bits and use only the lowest 12 or fewer, of which the 8 that this network "
            f"sees keep hardly any: {list_files(dark, 10)}. Train with IMAGE_RANGE, or stretch their values over 0 to "
            "65535 as those of training are."
        )
    tell_alone(alone, done, classes)
    if scored:
        tell_scores(folder, scored, confusion, through, finish)
    lacking = [str(it).partition(": ")[0] for it, has_row in failures.items() if not has_row]
    if s.SUBMISSION and lacking:
        print(f"{s.SUBMISSION}: lacks the rows of {len(lacking)} inputs: {list_files(lacking, 10)}.", file=sys.stderr)
    if failures:
        print(f"{len(failures)} of the inputs failed; see above.", file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    run(main)
