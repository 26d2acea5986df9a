"""Masks for new images, from a checkpoint that train.py saved.

    python predict.py photo.jpg folder/ --checkpoint best.pth
    python predict.py folder/ --masks masks/          also Dice and IoU at the masks' own size
    python predict.py test/ --submission submission.csv.gz --no-save-masks     Kaggle's rows
    python predict.py --export model.onnx             the network for elsewhere (or model.pt2)
    Predictor("best.pth")("photo.jpg")                the same mask as an array, in Python

Writes OUTPUT_DIR/name.png for each image: 0 and 255, of exactly its height and width (as its EXIF data
turn it), in the same tree of names; of each page or frame name_0.png, name_1.png ... where a file has
several. A network of several classes writes what the masks that it was trained on hold for them: values,
indices of a palette or colours. A picture that cannot be read is reported, the rest is done, and the exit
status is 1 then; 2 where nothing can be done.
"""

import signal

if __name__ == "__main__":  # Ctrl-C while torch is loaded, which takes seconds, ends without a traceback
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import os
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path, PurePath
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import torch
from tqdm import tqdm

import dataset
from parts.annotations import Annotations
from parts.checkpoints import load_network
from parts.clean_up import CleanUp
from parts.errors import UserError, counted, list_files, printable, ran_out_of_memory, run, tell
from parts.export import export
from parts.files import cores, digest_of
from parts.images import pages_of
from parts.inference import MIRRORS, Runner, make_runner
from parts.masks import MaskRule, encode_masks
from parts.names import Picture, find_pictures
from parts.networks import Network
from parts.options import settings_of
from parts.output_folder import OutputFolder, Planned, plan_files, refuse_doubles
from parts.outputs import (
    Disagreement,
    Failures,
    Masks,
    Overlays,
    PictureScores,
    Probabilities,
    Submission,
    ThresholdChoice,
    UniformMasks,
    Unseen,
    WorstSheet,
    rule_with_palette,
)
from parts.pictures import Palette
from parts.predictions import Decision, Output, PictureReader, Prediction, Size, predict_batch, predict_pictures
from parts.recipe import PRECISIONS
from parts.rules import any_value, either, file_path, file_paths, number, one_of, optional, part, sizes, whole
from parts.spec import STRETCH, DataSpec
from parts.truths import TruthFinder, Truths, background_of

CHECKPOINT: str | tuple = "best.pth"  # what train.py saved; of several files the networks' probabilities are averaged
NETWORK: Any = None  # of a checkpoint of your own network, what train.py's NETWORK was: "mine.py:Net"
OUTPUT_DIR = "predictions"  # where the masks go
SAVE_MASKS = True  # write them; off where the scores or the submission are all that is wanted
PALETTE = False  # masks of classes with a palette of colours, which viewers show; their values stay the same
OVERLAYS = False  # also OUTPUT_DIR/overlays/name.jpg: the image with its mask laid over it
PROBABILITIES: int | None = None  # also OUTPUT_DIR/probabilities/name.png, of 8 or 16 bits; name_CLASS.png of each
DISAGREEMENT = False  # also OUTPUT_DIR/disagreement/name.png: black where several CHECKPOINTs agree, white where not
THRESHOLD: float | str = 0.5  # foreground is what is more probable; "auto": the best for MASKS, by Dice
LARGEST = False  # of the foreground, or of each class, keep the largest connected area alone
MIN_PIXELS = 0  # remove areas of fewer pixels, of the foreground or of a class
FILL_HOLES = False  # background that an area encloses becomes a part of it
IMAGE_SIZE: tuple | str | None = None  # what the network sees; None: as in training, "own": each image's size
FLIPS: str | None = None  # "h", "v", "hv": also run the image's mirrored copies and average; costs 2, 2 and 4 runs
WINDOW = 768  # pixels: what is larger than its square runs in windows of it, within the memory of one
OVERLAP: int | None = None  # of neighbouring windows, pixels; None: what makes the plain network's seams vanish
MASKS: str | None = None  # true masks, or annotations: scores, scores.csv and worst.png at the masks' own size
MASK_FOREGROUND: int | tuple | str | None = None  # their foreground, as in dataset.py; None: as in training
MASK_IGNORE: int | tuple | None = None  # what of them is not scored, as in dataset.py; None: as in training
SUBMISSION: str | None = None  # Kaggle's run-length rows as a .csv or .csv.gz
SUBMISSION_ORDER = "rows"  # pixels are numbered row by row, as Carvana's competition has it; "columns": as most others
EXPORT: str | None = None  # write the network as .onnx or .pt2, and end; with IMAGE_SIZE for that size alone
BATCH_SIZE: int | None = None  # images a call; None: 16, on a CPU 1 (more is slower there)
NUM_WORKERS: int | None = None  # threads that read and write pictures; None: as many as there are cores
DEVICE = "auto"  # or cuda, mps, cpu
PRECISION = "auto"  # bfloat16 where it is faster (a CPU is timed), float16 on older CUDA, else float32; or one of these
# What the constants may be, where their values alone do not tell; IMAGE_NAME and MASK_NAME stand in dataset.py.
_RULES = dict(
    CHECKPOINT=file_paths(),
    NETWORK=optional(part()),
    PROBABILITIES=one_of(None, 8, 16),
    THRESHOLD=either(number(above=0, below=1), "auto"),
    MIN_PIXELS=whole(0),
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
_FILES_OF_EACH = ("SAVE_MASKS", "OVERLAYS", "PROBABILITIES", "DISAGREEMENT")  # each: a file of a picture in OUTPUT_DIR
_ARTICLE_SIZE = (320, 480)  # of the checkpoints that do not tell their size, such as the article's


# ---- what can be refused before anything runs


def check(s: SimpleNamespace) -> None:
    """Refuses constants that contradict each other; _RULES say what each may be. UserError."""
    DataSpec(
        foreground=s.MASK_FOREGROUND, ignore=s.MASK_IGNORE, image_name=s.IMAGE_NAME, mask_name=s.MASK_NAME
    )  # checks them
    kept = any(getattr(s, name) for name in ("SUBMISSION", "MASKS", *_FILES_OF_EACH))
    for is_wrong, problem in (
        (s.DISAGREEMENT and len(s.CHECKPOINT) == 1, "DISAGREEMENT is that of several networks: give more CHECKPOINTs."),
        (s.THRESHOLD == "auto" and not s.MASKS, 'THRESHOLD = "auto" needs MASKS to choose it by.'),
        (s.EXPORT and len(s.CHECKPOINT) > 1, _ONE_EXPORT),
        (s.EXPORT and s.inputs, "EXPORT writes the network and takes no images; run it without them."),
        (not s.EXPORT and not kept, "Nothing would be kept: leave SAVE_MASKS on, or ask for more."),
        (not s.EXPORT and not s.inputs, "Which images? Name files or folders; see --help."),
    ):
        if is_wrong:
            raise UserError(problem)


def refuse_for_classes(s: SimpleNamespace, names: Sequence[str], overlaps: bool) -> None:
    """UserError that lists the constants which are for one foreground alone; `names` are those of the classes."""
    defaults: dict[str, Any] = dict(THRESHOLD=0.5, SUBMISSION=None, MASK_FOREGROUND=None)
    if overlaps and s.THRESHOLD != "auto":  # one for all classes
        del defaults["THRESHOLD"]
    wrong = [f"{name} = {getattr(s, name)!r}" for name, value in defaults.items() if getattr(s, name) != value]
    if wrong:
        listed = [*names[:12], "..."] if len(names) > 12 else names
        cures = [f"{name} = {value!r}" for name, value in defaults.items()]
        raise UserError(
            f"{list_files(s.CHECKPOINT)}: its network tells {len(names)} classes ({', '.join(listed)}), and these "
            f"are for one foreground: {', '.join(wrong)}. Leave them at {', '.join(cures)}."
        )


# ---- the network


def take_inputs_back(s: SimpleNamespace) -> None:
    """Makes inputs of what the command line has behind --checkpoint, and is not named as the first checkpoint is."""
    first, *others = s.CHECKPOINT
    inputs = [path for path in others if Path(path).suffix != Path(first).suffix]
    s.inputs = [*s.inputs, *inputs]
    s.CHECKPOINT = (first, *(path for path in others if path not in inputs))


def load_networks(s: SimpleNamespace) -> tuple[list[Network], dict[str, Any]]:
    """The networks of all checkpoints, and the checkpoint of the first. UserError: they cannot be averaged."""
    networks, checkpoints = [], []
    expected: dict[str, Any] = {}  # of the first
    for path in s.CHECKPOINT:
        network, checkpoint = load_network(path, s.NETWORK)
        networks.append(network)
        checkpoints.append(checkpoint)
        rule = rule_of_network(network, checkpoint)
        traits = {
            "classes (CLASSES)": (rule.names, rule.classes, rule.kind, rule.colours, rule.files),
            "channels (CHANNELS)": network.in_channels,
            "ranges of values (IMAGE_RANGE)": checkpoint.get("image_range"),
            "sizes of images (IMAGE_SIZE gives all of them one)": network_size(s.IMAGE_SIZE, checkpoint),
            "ways to fit images into it (FIT)": fit_of(checkpoint),
        }
        expected = expected or traits
        if differing := [name for name, value in traits.items() if value != expected[name]]:
            raise UserError(
                f"{s.CHECKPOINT[0]} and {path} have other {', '.join(differing)}, so their probabilities are not "
                "averaged. Give checkpoints that were trained on the same data."
            )
    return networks, checkpoints[0]


def rule_of_network(network: Network, checkpoint: dict[str, Any]) -> MaskRule:
    """What a network tells: the classes of its masks of training, or one foreground, whatever those were."""
    if network.out_channels == 1:
        return MaskRule()
    return MaskRule.from_dict(checkpoint["mask_rule"])


def network_size(asked: Size | str | None, checkpoint: dict[str, Any]) -> Size | None:
    """The size at which the network takes pictures, by IMAGE_SIZE and the checkpoint; None: each at its own."""
    if asked is None:
        asked = checkpoint.get("image_size", _ARTICLE_SIZE)  # None: trained on crops of images at their own size
    if asked is None or isinstance(asked, str):
        return None
    return asked[0], asked[1]


def fit_of(checkpoint: dict[str, Any]) -> str:
    """FIT of training, how pictures become the size that the network takes."""
    return DataSpec(fit=checkpoint["settings"].get("FIT", STRETCH)).fit


_IN_NETWORK = threading.Lock()
_ONE_EXPORT = "EXPORT writes one network: give one CHECKPOINT."
Given = str | Path | Sequence[str | Path] | np.ndarray  # a picture


class Predictor:
    """What this script does with a picture, from Python: `Predictor("best.pth")("photo.jpg")` is its mask.

    checkpoints   files that train.py saved; of several the networks' probabilities are averaged; none: CHECKPOINT
    settings      all constants of this script, where they have been read already
    constants     those that are to differ: Predictor("best.pth", FLIPS="h", IMAGE_SIZE="own")

    A picture is the path of a file (`page`: the number of its page), or several paths, of files whose channels follow
    each other; or an array: (H, W) of greys, (H, W, 3) of RGB, or (H, W, C) of the CHANNELS that it was trained on.
    It may be called by several threads at once, which read and resize side by side, and wait for the networks.
    UserError: what is wrong with a checkpoint, a constant or a picture.
    """

    def __init__(self, *checkpoints: str | Path, settings: SimpleNamespace | None = None, **constants: Any) -> None:
        if settings is None:
            if checkpoints and "CHECKPOINT" in constants:
                raise UserError("Predictor is given its checkpoints twice: leave CHECKPOINT = ... out, or the others.")
            if checkpoints:
                constants["CHECKPOINT"] = checkpoints
            settings = read_settings(globals() | constants, [])
            if unknown := constants.keys() - vars(settings).keys():
                raise UserError(f"{', '.join(sorted(unknown))}: Predictor takes predict.py's constants (FLIPS='h').")
            if settings.THRESHOLD == "auto":
                raise UserError('THRESHOLD = "auto" needs true masks: let predict.py find it, and give the number.')
        self.settings = settings
        self.networks, self.checkpoint = load_networks(settings)
        self.mask_rule = rule_of_network(self.networks[0], self.checkpoint)
        self.reader = PictureReader(
            network_size(settings.IMAGE_SIZE, self.checkpoint),
            self.checkpoint.get("image_range"),
            self.networks[0].in_channels,
            fit_of(self.checkpoint),
        )
        if self.mask_rule.has_classes:
            refuse_for_classes(settings, self.mask_rule.names, self.mask_rule.overlaps)
        background, overlapping = background_of(self.mask_rule), len(self.mask_rule.files)
        clean_up = CleanUp(settings.LARGEST, settings.MIN_PIXELS, settings.FILL_HOLES, background, overlapping)
        threshold = 0.5 if settings.THRESHOLD == "auto" else settings.THRESHOLD
        self.decision = Decision(self.networks[0].out_channels, threshold, clean_up, self.mask_rule.overlaps)

    def __call__(self, picture: Given, page: int = 0) -> np.ndarray:
        """The mask of a picture at its own size, as predict.py writes it.

        Of one foreground 0 and 255, uint8 (H, W); of classes the values of the masks of training: (H, W), or (H, W, 3).
        Of classes that overlap 0 and 255 of each one: (C, H, W).
        """
        first, *others = map(np.asarray, encode_masks(self._predict(picture, page).mask, self.mask_rule))
        return np.stack([first, *others]) if others else first

    def probabilities(self, picture: Given, page: int = 0) -> np.ndarray:
        """The probabilities at a picture's own size, float32: of foreground (H, W), of classes (C, H, W)."""
        first, *others = self._predict(picture, page, bits=32).probabilities(32)
        return np.stack([first, *others]) if others else first

    def disagreement(self, picture: Given, page: int = 0) -> np.ndarray:
        """How far apart the probabilities of several networks are, float32 (H, W) of 0 ... 1; see DISAGREEMENT."""
        if len(self.networks) == 1:
            raise UserError("Predictor has one network, which agrees with itself: give it several checkpoints.")
        return self._predict(picture, page).disagreement

    def _predict(self, picture: Given, page: int, bits: int | None = None) -> Prediction:
        if isinstance(picture, np.ndarray):
            loaded = self.reader.take(np.asarray(picture))  # of a matrix too
        else:
            paths = [picture] if isinstance(picture, (str, Path)) else picture
            are_paths = isinstance(paths, (list, tuple)) and all(isinstance(path, (str, Path)) for path in paths)
            if not are_paths or not paths:
                raise UserError(
                    f"Predictor takes a file, files or an array, not {type(picture).__name__}; np.asarray(image) makes "
                    "an array of Pillow's images."
                )
            file, *bands = map(Path, paths)
            if page and page not in (pages_of(file, self.reader.channels) or [page]):
                raise UserError(f"{printable(file)}: has no page {page!r}; the first one is 0.")
            loaded = self.reader.read(Picture(file, PurePath(file.stem), page, bands=tuple(bands)))
        with self._in_network():
            (predict,) = predict_batch([loaded], self.runner, self.decision, bits=bits)
        prediction = predict()
        if prediction.problem:
            raise UserError(prediction.problem)
        return prediction

    def export(self, path: str | Path) -> str:
        """Writes the network to `path`, .onnx or .pt2, and what its user must know; returns a line of words for him.

        With IMAGE_SIZE = (H, W) it takes that size alone. UserError: see parts.export.
        """
        if len(self.networks) > 1:
            raise UserError(_ONE_EXPORT)
        size = self.settings.IMAGE_SIZE
        fixed = None if size is None or isinstance(size, str) else (size[0], size[1])
        return export(self.networks[0], path, self._metadata(), fixed)

    def _metadata(self) -> dict[str, Any]:
        """What an exported file tells of its network and the images that it takes."""
        channels, image_range = self.networks[0].in_channels, self.checkpoint.get("image_range")
        # None: the class with the highest logit; else what is above it by its own sigmoid
        threshold = self.decision.threshold if self.mask_rule.overlaps or not self.mask_rule.has_classes else None
        colours = {1: "greys", 3: "RGB"}.get(channels, f"{channels} channels, the first three RGB if they are colours")
        scaled = "8-bit values / 255"
        if image_range:
            low, high = image_range
            scaled += f"; those of more bits (value - {low:g}) / {high - low:g}, cut to [0, 1]"
        return {
            "image_size": self.reader.size,  # height and width; None: that of each image
            "fit": self.reader.fit,  # how images become that: resized, or scaled and then padded below and at the right
            "channels": channels,
            "image_range": image_range,
            "classes": self.mask_rule.names,  # none for one foreground
            "threshold": threshold,
            "pixels": f"float32 (N, {channels}, H, W) in [0, 1]: {colours}, {scaled}",
        }

    @cached_property
    def runner(self) -> Runner:
        """The networks on their device, made ready for it."""
        s, (first, *others) = self.settings, self.networks
        options = dict(mirrors=s.FLIPS, window=s.WINDOW, overlap=s.OVERLAP, others=others)
        options["classes_overlap"] = self.mask_rule.overlaps
        return make_runner(first, s.DEVICE, s.PRECISION, s.BATCH_SIZE, **options)

    @contextmanager
    def _in_network(self) -> Iterator[None]:
        """Lets one thread at a time to the networks: more would need more memory. UserError: there is not enough."""
        try:
            with _IN_NETWORK:
                yield
        except RuntimeError as error:
            if not ran_out_of_memory(error):
                raise
            smaller = "Lower BATCH_SIZE (--batch-size) or WINDOW (--window)."
            raise UserError(f"The device has run out of memory. {smaller}") from error

    def run(self, wanted: Sequence[Picture], outputs: Sequence[Output], label: str = "predict") -> None:
        """Puts pictures through the network, under a bar with a `label`, and gives each result to every output."""
        threads = self.settings.NUM_WORKERS or cores()
        with tqdm(total=len(wanted), desc=label, unit="image", disable=None) as bar:

            def say(window: int, windows: int) -> None:
                bar.set_postfix_str(f"window {window}/{windows}")

            with self._in_network():
                for result in predict_pictures(
                    wanted, self.runner, self.reader, self.decision, outputs, threads=threads, say=say
                ):
                    for output in outputs:
                        output.take(result)
                    bar.update()
        for output in outputs:
            output.finish()

    def describe(self) -> str:
        """The checkpoints, and how the network runs, in one line of words."""
        size = f"{self.reader.size[0]}x{self.reader.size[1]}" if self.reader.size else "their own size"
        if self.reader.size and self.reader.fit != STRETCH:
            size += ", their proportions kept"
        precision = str(self.runner.dtype or torch.float32).removeprefix("torch.")
        return (
            f"{list_files(self.settings.CHECKPOINT)}: epoch {self.checkpoint.get('epoch', 'unknown')}. Images are "
            f"seen at {size}, on {self.runner.device} in {precision}."
        )


# ---- the pictures and their true masks


def find_wanted(
    s: SimpleNamespace, predictor: Predictor, annotations: Annotations | None
) -> tuple[list[Picture], list[str]]:
    """The pictures of the inputs, and in words what gave nothing. `annotations`: what lies in the place MASKS.

    IMAGE_NAME, unless it is given, becomes that of training where some pictures are named so.
    """
    written = OutputFolder(s.OUTPUT_DIR, {}).own_files()
    told = predictor.checkpoint["settings"]
    channels = told.get("CHANNELS", predictor.reader.channels)
    mask_dir = s.MASKS
    if annotations:  # where images may lie, and masks of single classes
        mask_dir, written = None, written | {os.path.realpath(each.file) for each in annotations.annotated}
    find = partial(find_pictures, s.inputs, s.OUTPUT_DIR, mask_dir, written, channels)
    if s.IMAGE_NAME is None and told.get("IMAGE_NAME"):
        s.IMAGE_NAME = DataSpec(image_name=told["IMAGE_NAME"]).image_name
        wanted, missing = find(s.IMAGE_NAME)
        if wanted:
            return wanted, missing
        tell(f"No picture is named as in training, IMAGE_NAME = {s.IMAGE_NAME!r}, so names are not looked at.")
        s.IMAGE_NAME = None
    return find(s.IMAGE_NAME)


# ---- the run


def choose_outputs(
    s: SimpleNamespace, mask_rule: MaskRule, scores: PictureScores, missing: Sequence[str]
) -> list[Output]:
    """What the constants ask for, in the order in which it is reported. `missing`: inputs that are no pictures."""
    folder = Path(s.OUTPUT_DIR)
    outputs: list[Output] = []
    if s.SAVE_MASKS:
        outputs.append(Masks(folder, rule_with_palette(mask_rule) if s.PALETTE else mask_rule))
    if s.OVERLAYS:
        outputs.append(Overlays(folder / "overlays", mask_rule, s.PICTURE_BANDS))
    if s.PROBABILITIES:
        outputs.append(Probabilities(folder / "probabilities", mask_rule, s.PROBABILITIES))
    if s.DISAGREEMENT:
        outputs.append(Disagreement(folder / "disagreement"))
    outputs += [Unseen(), UniformMasks(mask_rule), scores]
    if s.SUBMISSION:
        outputs.append(Submission(s.SUBMISSION, missing, s.SUBMISSION_ORDER))
    return outputs


def settings_of_files(s: SimpleNamespace) -> dict[str, Any]:
    """The settings on which masks and all that is made of them depend; files that differ in them are not mixed."""
    names: tuple[str, ...] = ("THRESHOLD", "IMAGE_SIZE", "FLIPS", "WINDOW", "OVERLAP", "PRECISION")
    if s.THRESHOLD == "auto":
        names += ("MASKS",)
    chosen = ("LARGEST", "MIN_PIXELS", "FILL_HOLES", "PALETTE", "PICTURE_BANDS")
    names += tuple(name for name in chosen if getattr(s, name))
    digests = " and ".join(map(digest_of, s.CHECKPOINT))
    return {"digest of CHECKPOINT": digests} | {name: getattr(s, name) for name in names}


def bands_of_pictures(s: SimpleNamespace, predictor: Predictor) -> tuple[int, ...] | None:
    """The channels that pictures show: PICTURE_BANDS, or those of training; None: the first. UserError: they lack."""
    bands = s.PICTURE_BANDS or predictor.checkpoint["settings"].get("PICTURE_BANDS")
    return DataSpec(channels=predictor.reader.channels, picture_bands=bands).picture_bands


def choose_threshold(predictor: Predictor, truths: Truths) -> None:
    """Runs a network for one foreground over the pictures with true masks, to find the THRESHOLD that "auto" is."""
    choice = ThresholdChoice(truths)
    predictor.run(list(truths.pairs), [choice], "threshold")
    predictor.decision = replace(predictor.decision, threshold=choice.best())


def report_done(s: SimpleNamespace, done: int) -> None:
    """Says how many pictures are done, and where their masks are."""
    places = []
    if any(getattr(s, name) for name in _FILES_OF_EACH):
        places.append(s.OUTPUT_DIR)
    if s.SUBMISSION:
        places.append(s.SUBMISSION)
    tell(f"{counted(done, 'image')} done; see {' and '.join(places) or 'below'}.")


def read_settings(constants: Mapping[str, Any], argv: Sequence[str] | None) -> SimpleNamespace:
    """The constants of this script, overridden by the flags of a command line, with the `inputs` on it.

    CHECKPOINT is a tuple, also of one.
    """
    names = ["IMAGE_NAME", "MASK_NAME", "PICTURE_BANDS"]
    s = settings_of(constants, argv, rules=_RULES, shared=vars(dataset), shared_names=names, positionals=_INPUTS)
    if isinstance(s.CHECKPOINT, str):
        s.CHECKPOINT = (s.CHECKPOINT,)
    return s


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the script with the constants above and the command line; returns its exit status."""
    s = read_settings(globals(), argv)
    take_inputs_back(s)
    check(s)
    predictor = Predictor(settings=s)
    mask_rule = predictor.mask_rule
    s.PICTURE_BANDS = bands_of_pictures(s, predictor)
    if s.EXPORT:
        folder = OutputFolder(s.OUTPUT_DIR, settings_of_files(s), [Planned(Path(s.EXPORT), "the network")])
        with folder.writing():
            tell(predictor.export(s.EXPORT))
        return 0

    # The pictures, and what is made of them
    finder = TruthFinder(s, predictor.checkpoint, mask_rule)
    wanted, missing = find_wanted(s, predictor, finder.annotations)
    for problem in missing:
        tell(problem, file=sys.stderr)
    if not wanted:
        raise UserError(f"There is no image in {', '.join(s.inputs)}.")
    truths = finder.find(wanted)
    # Each output takes every picture's result; scores and failures are asked for more afterwards
    scores = PictureScores(Path(s.OUTPUT_DIR), truths, mask_rule)
    failures = Failures(missing)
    outputs = [*choose_outputs(s, mask_rule, scores, missing), failures]
    for output in outputs:
        output.check(wanted)
    planned = plan_files(outputs, wanted)
    refuse_doubles(planned)
    inputs = [file for picture in wanted for file in (picture.path, *picture.bands)]
    inputs += [mask for pair in truths.pairs.values() for mask, _ in pair.mask_sources]
    folder = OutputFolder(s.OUTPUT_DIR, settings_of_files(s), planned, inputs)
    cv2.setNumThreads(1)  # there is a picture for each thread already
    tell(f"{predictor.describe()} {counted(len(wanted), 'image')}.")

    # Through the network: for a threshold first, if one is to be chosen; for the outputs; then the worst for a sheet
    with folder.writing():
        if s.THRESHOLD == "auto":
            choose_threshold(predictor, truths)
        predictor.run(wanted, outputs)
        report_done(s, len(wanted) - failures.count + len(missing))
        if scores.counts:
            sheet = WorstSheet(scores.worst_path, truths, Palette.of(mask_rule, s.PICTURE_BANDS), scores.worst())
            predictor.run(list(sheet.captions), [sheet], "worst")
    for output in outputs:
        output.report()
    return 1 if failures.count else 0


if __name__ == "__main__":
    run(main)
