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

import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import torch
from tqdm import tqdm

import dataset
from parts.audit import ALPHA_DROPPED
from parts.checkpoints import load_network
from parts.errors import UserError, counted, list_files, ran_out_of_memory, run, tell
from parts.export import export
from parts.files import cores, digest_of
from parts.inference import MIRRORS, Runner, make_runner
from parts.mask_rules import find_mask_rule
from parts.masks import MaskRule
from parts.names import Pair, Picture, find_masks, find_pictures
from parts.options import any_value, either, file_path, number, one_of, optional, part, settings_of, sizes, whole
from parts.output_folder import OutputFolder, Planned, check_plan, plan_files
from parts.outputs import (
    Failures,
    Masks,
    Overlays,
    PictureScores,
    Probabilities,
    Submission,
    ThresholdChoice,
    Truths,
    UniformMasks,
    WorstSheet,
)
from parts.predictions import ClassDecision, Decision, ForegroundDecision, Output, PictureReader, Size, predict_pictures
from parts.recipe import PRECISIONS
from parts.spec import DataSpec

CHECKPOINT = "best.pth"  # what train.py saved: the weights, and all that is to be known about the network
NETWORK: Any = None  # of a checkpoint of your own network, what train.py's NETWORK was: "mine.py:Net"
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
SUBMISSION_ORDER = "rows"  # pixels are numbered row by row, as Carvana's competition has it; "columns": as most others
EXPORT: str | None = None  # write the network as .onnx or .pt2, and end
BATCH_SIZE: int | None = None  # images a call; None: 16, on a CPU 1 (more is slower there)
NUM_WORKERS: int | None = None  # threads that read and write pictures; None: as many as there are cores
DEVICE = "auto"  # or cuda, mps, cpu
PRECISION = "auto"  # bfloat16 where it is faster (a CPU is timed), float16 on older CUDA, else float32; or one of these
# What the constants may be, where their values alone do not tell; MASK_NAME stands in dataset.py.
_RULES = dict(
    NETWORK=optional(part()),
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
    SUBMISSION_ORDER=one_of("rows", "columns"),
    EXPORT=optional(file_path(".onnx", ".pt2")),
    BATCH_SIZE=optional(whole(0)),
    NUM_WORKERS=optional(whole(0)),
    PRECISION=one_of("auto", *PRECISIONS),
)
_INPUTS = [("inputs", dict(nargs="*", default=[], metavar="INPUT", help="image files and folders"))]
_ARTICLE_SIZE = (320, 480)  # of the checkpoints that do not tell their size, such as the article's


# ---- what can be refused before anything runs


def check(s: SimpleNamespace) -> None:
    """Refuses constants that contradict each other; _RULES say what each may be. UserError."""
    DataSpec(foreground=s.MASK_FOREGROUND, ignore=s.MASK_IGNORE, mask_name=s.MASK_NAME)  # checks them
    kept = s.SAVE_MASKS or s.OVERLAYS or s.PROBABILITIES or s.MASKS or s.SUBMISSION
    for is_wrong, problem in (
        (s.THRESHOLD == "auto" and not s.MASKS, 'THRESHOLD = "auto" needs MASKS to choose it by.'),
        (s.EXPORT and s.inputs, "EXPORT writes the network and takes no images; run it without them."),
        (not s.EXPORT and not kept, "Nothing would be kept: leave SAVE_MASKS on, or ask for more."),
        (not s.EXPORT and not s.inputs, "Which images? Name files or folders; see --help."),
    ):
        if is_wrong:
            raise UserError(problem)


def refuse_for_classes(s: SimpleNamespace, names: Sequence[str]) -> None:
    """UserError that lists the constants which are for one foreground alone; `names` are those of the classes."""
    defaults: dict[str, Any] = dict(THRESHOLD=0.5, SUBMISSION=None, MASK_FOREGROUND=None)
    wrong = [f"{name} = {getattr(s, name)!r}" for name, value in defaults.items() if getattr(s, name) != value]
    if wrong:
        listed = [*names[:12], "..."] if len(names) > 12 else names
        cures = [f"{name} = {value!r}" for name, value in defaults.items()]
        raise UserError(
            f"{s.CHECKPOINT}: its network tells {len(names)} classes ({', '.join(listed)}), and these are for one "
            f"foreground: {', '.join(wrong)}. Leave them at {', '.join(cures)}."
        )


# ---- the pictures and their true masks


def find_truths(
    s: SimpleNamespace, wanted: Sequence[Picture], checkpoint: dict[str, Any], network_rule: MaskRule
) -> Truths:
    """The true masks of pictures, in the folder MASKS, or none without it. UserError: they cannot be compared."""
    if not s.MASKS:
        return Truths()
    pairs = find_masks(wanted, s.MASKS, DataSpec(mask_name=s.MASK_NAME))
    lacking = [picture for picture in wanted if picture not in pairs]
    if lacking:
        tell(f"Without a mask in {s.MASKS} (of as many pages), so not scored: {list_files(lacking)}")
    several = [picture for picture, pair in pairs.items() if pair.more]
    if network_rule.has_classes and several:
        raise UserError(
            f"{s.MASKS}: several masks fit {list_files(several)}, and such are united to one foreground. A network of "
            "classes is scored by one mask a picture: take the * out of MASK_NAME."
        )
    mask_rule = choose_rule_of_truths(s, pairs, checkpoint, network_rule)
    tell(f"In the masks {mask_rule.describe()}.")
    return Truths(pairs, mask_rule)


def choose_rule_of_truths(
    s: SimpleNamespace, pairs: dict[Picture, Pair], checkpoint: dict[str, Any], network_rule: MaskRule
) -> MaskRule:
    """The rule by which the true masks are read.

    The constants MASK_FOREGROUND and MASK_IGNORE come first, then those that training was told, and a network's
    classes. Otherwise the masks themselves are looked at, as their encoding may be another one than in training.
    """
    if network_rule.has_classes and s.MASK_IGNORE is None:
        return network_rule
    told = {name.upper(): value for name, value in checkpoint["settings"].items()}  # older ones are in lower case
    names = ("MASK_FOREGROUND", "MASK_IGNORE")
    given = {name: getattr(s, name) for name in names if getattr(s, name) is not None}
    foreground, ignore = map((told | given).get, names)
    # A rule that was made of training's masks alone says nothing of these
    if not given and foreground is not None and "mask_rule" in checkpoint:
        return MaskRule.from_dict(checkpoint["mask_rule"])
    spec = DataSpec(foreground=foreground, ignore=ignore)
    if network_rule.has_classes:
        spec = DataSpec(ignore=s.MASK_IGNORE, classes=dict(zip(network_rule.names, network_rule.classes)))
    masks = [source for pair in pairs.values() for source in pair.sources[1:]]
    return find_mask_rule(masks, spec, num_workers=s.NUM_WORKERS or None, strict=False)


# ---- the run


def choose_outputs(
    s: SimpleNamespace, mask_rule: MaskRule, scores: PictureScores, missing: Sequence[str]
) -> list[Output]:
    """What the constants ask for, in the order in which it is reported. `missing`: inputs that are no pictures."""
    folder = Path(s.OUTPUT_DIR)
    outputs: list[Output] = []
    if s.SAVE_MASKS:
        outputs.append(Masks(folder, mask_rule))
    if s.OVERLAYS:
        outputs.append(Overlays(folder / "overlays", mask_rule))
    if s.PROBABILITIES:
        outputs.append(Probabilities(folder / "probabilities", mask_rule, s.PROBABILITIES))
    outputs += [UniformMasks(mask_rule), scores]
    if s.SUBMISSION:
        outputs.append(Submission(s.SUBMISSION, missing, s.SUBMISSION_ORDER))
    return outputs


def settings_of_files(s: SimpleNamespace) -> dict[str, Any]:
    """The settings on which masks and all that is made of them depend; files that differ in them are not mixed."""
    names = ("THRESHOLD", "IMAGE_SIZE", "FLIPS", "WINDOW", "OVERLAP", "PRECISION")
    return {"digest of CHECKPOINT": digest_of(s.CHECKPOINT)} | {name: getattr(s, name) for name in names}


def network_size(asked: Size | str | None, checkpoint: dict[str, Any]) -> Size | None:
    """The size at which the network takes pictures, by IMAGE_SIZE and the checkpoint; None: each at its own."""
    if asked is None:
        asked = checkpoint.get("image_size", _ARTICLE_SIZE)  # None: trained on crops of images at their own size
    if asked is None or isinstance(asked, str):
        return None
    return asked[0], asked[1]


def run_network(
    s: SimpleNamespace,
    runner: Runner,
    reader: PictureReader,
    decision: Decision,
    wanted: Sequence[Picture],
    outputs: Sequence[Output],
    label: str = "predict",
) -> None:
    """Puts pictures through the network, under a bar with a `label`, and gives each result to every output."""
    with tqdm(total=len(wanted), desc=label, unit="image", disable=None) as bar:

        def say(window: int, windows: int) -> None:
            bar.set_postfix_str(f"window {window}/{windows}")

        try:
            for result in predict_pictures(wanted, runner, reader, decision, outputs, threads=s.NUM_WORKERS, say=say):
                for output in outputs:
                    output.take(result)
                bar.update()
        except RuntimeError as error:
            if not ran_out_of_memory(error):
                raise
            smaller = f"Lower BATCH_SIZE ({runner.batch_size}) or WINDOW ({s.WINDOW})."
            raise UserError(f"The device has run out of memory. {smaller}") from error
    for output in outputs:
        output.finish()


def choose_decision(
    s: SimpleNamespace, mask_rule: MaskRule, truths: Truths, through_network: Callable[..., None]
) -> Decision:
    """How the network's logits are decided: by class, or by THRESHOLD, which "auto" finds in a run of its own."""
    if mask_rule.has_classes:
        return ClassDecision(mask_rule.num_labels)
    if s.THRESHOLD != "auto":
        return ForegroundDecision(s.THRESHOLD)
    choice = ThresholdChoice(truths)
    through_network(ForegroundDecision(), list(truths.pairs), [choice], "threshold")
    return ForegroundDecision(choice.best())


def report_done(s: SimpleNamespace, wanted: Sequence[Picture], failed: int, reader: PictureReader) -> None:
    """Says how many pictures are done, and what the network has not seen of some of them, or should not have seen."""
    places = []
    if s.SAVE_MASKS or s.OVERLAYS or s.PROBABILITIES:
        places.append(s.OUTPUT_DIR)
    if s.SUBMISSION:
        places.append(s.SUBMISSION)
    tell(f"{len(wanted) - failed} images done; see {' and '.join(places) or 'below'}.")
    dark = [picture for picture in wanted if picture in reader.dark]
    if dark:
        tell(
            f"{len(dark)} of them have 16 bits and use only the lowest 12 or fewer, of which the 8 that this network "
            f"sees keep hardly any: {list_files(dark, 10)}. Train with IMAGE_RANGE, or stretch their values over 0 to "
            "65535 as those of training are."
        )
    transparent = [picture for picture in wanted if picture in reader.transparent]
    if transparent:
        tell(f"{counted(len(transparent), 'image')} {ALPHA_DROPPED}\n  {list_files(transparent, 10)}")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the script with the constants above and the command line; returns its exit status."""
    s = settings_of(
        globals(), argv, rules=_RULES, shared=vars(dataset), shared_names=["MASK_NAME"], positionals=_INPUTS
    )
    check(s)
    network, checkpoint = load_network(s.CHECKPOINT, s.NETWORK)
    mask_rule = MaskRule()  # of one foreground, whatever the masks of training were
    if network.out_channels > 1:
        mask_rule = MaskRule.from_dict(checkpoint["mask_rule"])
    if s.EXPORT:
        with OutputFolder(s.OUTPUT_DIR, settings_of_files(s), [Planned(Path(s.EXPORT), "the network")]).writing():
            tell(export(network, s.EXPORT, mask_rule.names))
        return 0
    if mask_rule.has_classes:
        refuse_for_classes(s, mask_rule.names)

    # The pictures, and what is made of them
    wanted, missing = find_pictures(s.inputs, s.OUTPUT_DIR, s.MASKS)
    for problem in missing:
        tell(problem, file=sys.stderr)
    if not wanted:
        raise UserError(f"There is no image in {', '.join(s.inputs)}.")
    truths = find_truths(s, wanted, checkpoint, mask_rule)
    # Each output takes every picture's result; scores and failures are asked for more afterwards
    scores = PictureScores.of(Path(s.OUTPUT_DIR), truths, mask_rule)
    failures = Failures(missing)
    outputs = [*choose_outputs(s, mask_rule, scores, missing), failures]
    planned = plan_files(outputs, wanted)
    check_plan(planned, wanted, truths.pairs.values())
    for output in outputs:
        output.check(wanted)
    folder = OutputFolder(s.OUTPUT_DIR, settings_of_files(s), planned)
    folder.check()

    # The network, on its device
    runner = make_runner(
        network, s.DEVICE, s.PRECISION, s.BATCH_SIZE, mirrors=s.FLIPS, window=s.WINDOW, overlap=s.OVERLAP
    )
    reader = PictureReader(network_size(s.IMAGE_SIZE, checkpoint), checkpoint.get("image_range"))
    s.NUM_WORKERS = s.NUM_WORKERS or cores()
    cv2.setNumThreads(1)  # there is a picture for each thread already
    size = f"{reader.size[0]}x{reader.size[1]}" if reader.size else "their own size"
    tell(
        f"{s.CHECKPOINT}: epoch {checkpoint.get('epoch', 'unknown')}. {len(wanted)} images, which the network sees "
        f"at {size}, on {runner.device} in {str(runner.dtype or torch.float32).removeprefix('torch.')}."
    )

    # Through the network: for a threshold first, if one is to be chosen; for the outputs; then the worst for a sheet
    through_network = partial(run_network, s, runner, reader)
    with folder.writing():
        decision = choose_decision(s, mask_rule, truths, through_network)
        through_network(decision, wanted, outputs)
        report_done(s, wanted, failures.count - len(missing), reader)
        if scores.counts:
            sheet = WorstSheet(scores.worst_path, truths, mask_rule, scores.worst())
            through_network(decision, list(sheet.captions), [sheet], "worst")
    for output in outputs:
        output.report()
    return 1 if failures.count else 0


if __name__ == "__main__":
    run(main)
