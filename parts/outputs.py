"""What predict.py makes of every picture: masks, overlays, probabilities, a submission, scores. Each is an Output.

A further one is a class here, and a line in predict.py's choose_outputs.
"""

from __future__ import annotations

import csv
import gzip
import io
import math
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
import torch
from tqdm import tqdm

from parts import pictures
from parts.advice import class_table, score_text
from parts.audit import ALPHA_DROPPED
from parts.errors import UserError, counted, escaped, list_files, tell
from parts.files import write_csv, write_whole
from parts.images import resize_image
from parts.masks import IGNORED, NUMBERS, MaskRule, encode_masks
from parts.names import Picture
from parts.pictures import Example, Palette
from parts.predictions import Output, Prediction, Result, lead_of
from parts.scores import (
    KNOWN_METRICS,
    Scores,
    class_columns,
    count_labels,
    dice_from_counts,
    iou_from_counts,
    mean_of_numbers,
    metric_of_each,
    scored_labels,
    scores_of,
    selection_dice,
)
from parts.spec import pack_color
from parts.truths import Truths

_LONGEST_JPEG = 65_500  # pixels, libjpeg's own limit
_ORDERS = dict(  # of a submission's pixels, in words
    rows="row by row, as Carvana's competition asks for; most others number them column by column",
    columns="column by column, as most competitions ask for; Carvana's numbers them row by row",
)
_LOOKS_BLACK = 32  # grey values below it, of 255
_WORST = 10  # images that worst.png shows, and that the networks disagree most about
_BINS = 256  # of probability: thresholds are multiples of 1/256


# ---- files of every picture


class Masks(Output):
    """folder/name.png: the mask at the picture's own size.

    Of one foreground 0 and 255; of classes in the encoding of the masks that the network was trained on. Of classes
    that overlap one of each, 0 and 255, named as those of training.
    """

    def __init__(self, folder: Path, mask_rule: MaskRule) -> None:
        self.folder = folder
        self.mask_rule = mask_rule

    def paths(self, picture: Picture) -> list[Path]:
        """The file of a picture's mask, or of each class's."""
        patterns = [name.replace("*", "1") for name in self.mask_rule.files] or ["{}"]  # * unites several files
        names = [pattern.replace("{}", str(picture.name)) for pattern in patterns]
        return [self.folder / f"{name}.png" for name in names]

    def make(self, prediction: Prediction) -> None:
        """Writes the mask, or masks."""
        masks = encode_masks(prediction.mask, self.mask_rule)
        for path, mask in zip(self.paths(prediction.picture), masks):
            pictures.save_image(path, mask)

    def report(self) -> None:
        """Says where masks of classes look black in a viewer."""
        rule = self.mask_rule
        is_grey = rule.has_classes and not rule.overlaps and rule.kind == NUMBERS and not rule.colours
        if is_grey and max(rule.classes) < _LOOKS_BLACK:
            tell(
                f"The masks hold values up to {max(rule.classes)}, which look black. --overlays shows the classes over "
                "the images, and --palette gives the masks colours that change no value."
            )


def rule_with_palette(rule: MaskRule) -> MaskRule:
    """A rule of classes whose masks are written with a palette: the colours in which pictures show the classes.

    UserError: these masks have no room for one.
    """
    if not rule.has_classes or rule.overlaps or rule.kind != NUMBERS or max(rule.classes) > 255:
        problem = f"PALETTE colours masks of classes with values up to 255, and in these {rule.describe()}"
        raise UserError(f"{problem}. Leave it out; --overlays shows any masks.")
    return replace(rule, colours=tuple(map(pack_color, Palette.of(rule).colours)))


class Overlays(Output):
    """folder/name.jpg: the picture with its mask laid over it; of classes also folder/legend.png."""

    def __init__(self, folder: Path, mask_rule: MaskRule, bands: tuple[int, ...] | None = None) -> None:
        self.folder = folder
        self.palette = Palette.of(mask_rule, bands)
        self.legends = [folder / "legend.png"] if mask_rule.has_classes else []

    def paths(self, picture: Picture) -> list[Path]:
        """The file of a picture's overlay."""
        return [_file_of(picture, self.folder, ".jpg")]

    def summaries(self) -> dict[Path, str]:
        """The file of the legend, for classes."""
        return dict.fromkeys(self.legends, "the classes")

    def make(self, prediction: Prediction) -> None:
        """Writes the overlay. UserError: the picture is longer than a JPEG may be."""
        if max(prediction.size) > _LONGEST_JPEG:  # the mask itself is a PNG, which may be longer
            limit = f"a JPEG of at most {_LONGEST_JPEG} pixels"
            raise UserError(f"{prediction.picture}: too long for an overlay, {limit}.")
        drawn = pictures.overlay(prediction.loaded.own_image(), prediction.mask, self.palette)
        pictures.save_image(self.paths(prediction.picture)[0], drawn)

    def finish(self) -> None:
        """Writes the legend, if there is an overlay."""
        for legend in self.legends:
            if self.folder.is_dir():
                pictures.save_image(legend, pictures.sheet([], title="Classes", legend=self.palette.entries))


class Probabilities(Output):
    """folder/name.png: the probability of foreground, of 8 or 16 bits; of classes a name_CLASS.png of each."""

    def __init__(self, folder: Path, mask_rule: MaskRule, bits: int) -> None:
        self.folder = folder
        self.bits = self.map_bits = bits
        endings = [f"_{_as_file_name(name)}.png" for name in mask_rule.names]
        self.endings = endings if mask_rule.has_classes else [".png"]

    def paths(self, picture: Picture) -> list[Path]:
        """The file of a picture's map, or one for each class."""
        return [_file_of(picture, self.folder, ending) for ending in self.endings]

    def make(self, prediction: Prediction) -> None:
        """Writes the maps; they are made one after another, because of many classes all would fill memory."""
        for path, drawn in zip(self.paths(prediction.picture), prediction.probabilities(self.bits)):
            pictures.save_image(path, drawn)


class Disagreement(Output):
    """folder/name.png: how far apart the probabilities of several networks are; grey levels, 0 where all agree."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.means: dict[Picture, float] = {}

    def paths(self, picture: Picture) -> list[Path]:
        """The file of a picture's map."""
        return [_file_of(picture, self.folder, ".png")]

    def make(self, prediction: Prediction) -> float:
        """Writes the map; gives its mean."""
        apart = prediction.disagreement
        pictures.save_image(self.paths(prediction.picture)[0], (255 * apart).round().astype(np.uint8))
        return float(apart.mean())

    def take(self, result: Result) -> None:
        """Keeps the mean."""
        if self in result.made:
            self.means[result.picture] = result.made[self]

    def report(self) -> None:
        """Prints the pictures that the networks disagree most about, which teach most if they are labelled next."""
        most = sorted(self.means, key=self.means.__getitem__, reverse=True)[:_WORST]
        if most:
            tell("The networks disagree most, by the mean of their pixels, about:")
        for picture in most:
            tell(f"  {self.means[picture]:.4f}  {picture}")


def _file_of(picture: Picture, folder: Path, ending: str) -> Path:
    """A picture's file in `folder`, in the tree of names; with_suffix would cut names such as a.b."""
    base = folder / picture.name
    return base.with_name(base.name + ending)


def _as_file_name(name: str) -> str:
    """The name of a class without what file systems or shells take for something else."""
    return "".join(letter if letter.isalnum() or letter in "+-._" else "_" for letter in name)


# ---- a submission


class Submission(Output):
    """A .csv or .csv.gz file of rows (image file name, runs of its mask), as Kaggle's competition asks for it.

    Rows go to an unnamed file as they come, so memory does not grow with them; `path` appears when all are there.
    `missing`: what was asked for and is no picture, in words that begin with its name. `order`: as of `run_lengths`.
    """

    def __init__(self, path: str | Path, missing: Iterable[str] = (), order: str = "rows") -> None:
        self.path = Path(path)
        self.order = order
        self.lacking = [text.partition(": ")[0] for text in missing]

    def summaries(self) -> dict[Path, str]:
        """The file of all rows."""
        return {self.path: "all images"}

    def check(self, wanted: Sequence[Picture]) -> None:
        """UserError where two pictures have one name, by which alone the rows tell them apart."""
        names = Counter(_row_name(picture) for picture in wanted)
        doubled = [name for name, count in names.items() if count > 1]
        if doubled:
            listed = ", ".join(doubled[:10])
            raise UserError(f"SUBMISSION names images by their file name, and these come more than once: {listed}.")

    def make(self, prediction: Prediction) -> str:
        """The runs of a picture's mask."""
        return run_lengths(prediction.mask, self.order)

    def take(self, result: Result) -> None:
        """Writes the row of a picture, if it was predicted."""
        if self in result.made:
            csv.writer(self._rows, lineterminator="\n").writerow((_row_name(result.picture), result.made[self]))
        else:
            self.lacking.append(str(result.picture))

    def finish(self) -> None:
        """Moves the rows to their file."""
        write_whole(self.path, self._copy_rows)
        self._rows.close()

    def report(self) -> None:
        """Says in which order pixels are counted, and which inputs have no row."""
        tell(f"{self.path}: pixels are numbered {_ORDERS[self.order]} (SUBMISSION_ORDER).")
        if self.lacking:
            names = list_files(self.lacking, 10)
            tell(f"{self.path}: lacks the rows of {len(self.lacking)} inputs: {names}.", file=sys.stderr)

    @cached_property
    def _rows(self) -> io.TextIOWrapper:
        """The unnamed file, opened with the first row; the system removes it however this process ends."""
        folder = self.path.parent
        folder.mkdir(parents=True, exist_ok=True)
        try:
            file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115  # `finish` closes it
        except OSError as error:
            error.filename = str(self.path)
            raise
        # A name that is no Unicode keeps its bytes
        rows = io.TextIOWrapper(file, encoding="utf-8", errors="surrogateescape", newline="")
        rows.write("img,rle_mask\n")
        return rows

    def _copy_rows(self, file: BinaryIO) -> None:
        self._rows.seek(0)
        rows = cast(BinaryIO, self._rows.buffer)
        if self.path.suffix != ".gz":
            shutil.copyfileobj(rows, file)
            return
        # Without a name and a time in its head, equal rows give an equal file.
        with gzip.GzipFile(filename="", fileobj=file, mode="wb", mtime=0) as packed:
            shutil.copyfileobj(rows, packed)


def _row_name(picture: Picture) -> str:
    """How a submission names a picture: as its file, or a page as its mask with the file's suffix (a_1.tif)."""
    return picture.name.name + picture.path.suffix


def run_lengths(mask: np.ndarray, order: str = "rows") -> str:
    """The runs of foreground in a mask (H, W) as "start length start length ...", the first pixel being 1.

    order: "rows", row by row, as in Carvana's competition, or "columns", as in most others. Carvana's page says that
    "the pixels are one-indexed and numbered from top to bottom, then left to right: 1 is pixel (1,1), 2 is pixel (1,2),
    etc.", which contradicts itself. Its data decide: in train_masks.csv the first car's runs start at 879386, 881253,
    883140, so one row's run begins 1,867 and 1,887 pixels after the last one's: just under the width of 1,918, as under
    a roof that widens downwards, and nowhere near the height of 1,280.
    """
    if order == "columns":
        mask = mask.T
    edges = np.flatnonzero(np.diff(mask.ravel().astype(bool), prepend=False, append=False)) + 1
    edges[1::2] -= edges[::2]  # starts and ends take turns; an end less its start is a length
    return " ".join(map(str, edges.tolist()))


# ---- comparison with true masks


class PictureScores(Output):
    """folder/scores.csv: Dice of every picture that has a true mask, at that mask's size; and means in words.

    Ignored pixels of a true mask count nowhere. Of classes each picture has the Dice of those that are true or
    predicted in it, and their mean.
    """

    def __init__(self, folder: Path, truths: Truths, mask_rule: MaskRule) -> None:
        self.path = folder / "scores.csv"
        self.worst_path = folder / "worst.png"
        self.truths = truths
        self.mask_rule = mask_rule
        # Of L labels and each picture, int64 (8, L), as of count_labels
        self.counts: dict[Picture, np.ndarray] = {}
        self.confusion = np.zeros((mask_rule.num_labels, mask_rule.num_labels), np.int64)  # of all pictures
        self.counts_before: list[np.ndarray] = []  # as counts, of masks before the clean-up, where there is one
        self.scores: Scores  # of all pictures, by `finish`

    def summaries(self) -> dict[Path, str]:
        """scores.csv, and worst.png, which a WorstSheet writes in another run."""
        if not self.truths.pairs:
            return {}
        return dict.fromkeys([self.path, self.worst_path], "the scores")

    def make(self, prediction: Prediction) -> tuple[np.ndarray, np.ndarray] | None:
        """A picture's counts (1, 8, L) and confusion (1, L, L), as of count_labels; None where there is no true mask.

        Where masks are cleaned up there are two of each, the second before that.
        """
        truth = self.truths.read(prediction.picture, prediction.size)
        if truth is None:
            return None
        masks = [prediction.mask_at(truth.shape)]
        if not prediction.decision.clean_up.does_nothing:
            masks.append(prediction.decided_at(truth.shape))
        labels, truths = (torch.from_numpy(np.stack(arrays)) for arrays in (masks, [truth] * len(masks)))
        counts, confusions = count_labels(labels, truths, self.mask_rule, KNOWN_METRICS)
        return counts.numpy(), confusions.numpy()

    def take(self, result: Result) -> None:
        """Keeps a picture's counts, eight of each label: whole tables of many classes would fill memory."""
        if result.made.get(self) is not None:
            (counts, *before), confusions = result.made[self]
            self.counts[result.picture] = counts
            self.counts_before += before
            self.confusion += confusions[0]

    def finish(self) -> None:
        """Writes scores.csv: a row of each picture, and one of the means."""
        if self.counts:
            counts = np.stack(list(self.counts.values()))
            self.scores = scores_of(counts, self.confusion, self.mask_rule.names, KNOWN_METRICS)
            columns = self._columns(counts)
            write_csv(self.path, list(columns), [list(map(_cell, row)) for row in zip(*columns.values())])

    def _columns(self, counts: np.ndarray) -> dict[str, list]:
        """{column of scores.csv: its cells}, of the pictures' counts (N, 8, L)."""
        scores = self.scores
        columns: dict[str, list] = {"image": [*map(str, self.counts), "mean"], "dice": [*scores.per_image, scores.dice]}
        both, predicted, true = np.moveaxis(counts[:, :3], 1, 0)
        if self.mask_rule.has_classes:
            by_class = np.full(both.shape, np.nan)  # a class that is neither true nor predicted in a picture has none
            np.copyto(by_class, dice_from_counts(both, predicted, true), where=predicted + true > 0)
            for (name, mean), dice in zip(class_columns(scores).items(), by_class.T):
                columns[name] = [*dice, mean]
        else:
            columns["iou"] = [*iou_from_counts(both, predicted, true)[:, 1], scores.iou]
            for name, pixels in dict(pixels_in_both=both, predicted_pixels=predicted, true_pixels=true).items():
                columns[name] = [*pixels[:, 1], None]
        for name, metric in KNOWN_METRICS.items():
            by_label = [metric_of_each(metric, counts, label) for label in scored_labels(self.mask_rule.channels)]
            columns[name] = [*map(mean_of_numbers, zip(*by_label)), scores.metrics[name]]
        return columns

    def worst(self) -> dict[Picture, str]:
        """The pictures with the lowest Dice, lowest first, and a caption of each."""
        scored, dice = list(self.counts), self.scores.per_image
        lowest = np.argsort(dice, kind="stable")[:_WORST].tolist()
        return {scored[index]: f"{dice[index]:.4f}  {scored[index]}" for index in lowest}

    def report(self) -> None:
        """Prints the means and the lowest Dice."""
        if not self.counts:
            return
        scores, averaged = self.scores, f"{len(self.counts)} images at their masks' size"
        if self.mask_rule.has_classes:
            tell(class_table(scores))
            averaged = f"the classes, of {averaged}"
        elif not scores.true_share:
            tell("No pixel of these masks reads as foreground. If they are not empty, MASK_FOREGROUND says what is.")
        further = "".join(f"; {name} {score_text(value)}" for name, value in scores.metrics.items())
        tell(
            f"Dice {scores.dice:.4f}, IoU {scores.iou:.4f}: means over {averaged}; accuracy "
            f"{100 * scores.accuracy:.2f} %{further}"
        )
        if scores.dice_nonempty != scores.dice:
            tell(
                f"Dice {scores.dice_nonempty:.4f} without those that are empty and predicted to be, each of which "
                "counts 1 there"
            )
        if self.counts_before:
            before = scores_of(np.stack(self.counts_before), self.confusion, self.mask_rule.names)
            tell(f"The clean-up has changed Dice from {before.dice:.4f} to {scores.dice:.4f}.")
        tell("The lowest Dice:")
        for caption in self.worst().values():
            tell(f"  {caption}")
        tell(f"All of them: {self.path}. The lowest: {self.worst_path}.")


def _cell(value: str | int | float | None) -> str | int | None:
    """A cell of a CSV row: fractions with six digits, nothing for NaN."""
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.6f}"
    return value


class WorstSheet(Output):
    """worst.png: pictures with their true mask, the predicted one and the difference, each under its caption."""

    def __init__(self, path: Path, truths: Truths, palette: Palette, captions: dict[Picture, str]) -> None:
        self.path = path
        self.truths = truths
        self.palette = palette
        self.captions = captions
        self.examples: list[Example] = []

    def make(self, prediction: Prediction) -> Example | None:
        """A picture's row of the sheet, no larger than the sheet needs."""
        truth = self.truths.read(prediction.picture, prediction.size)
        if truth is None:
            return None
        image = resize_image(prediction.loaded.own_image(), truth.shape)
        caption = self.captions[prediction.picture]
        return Example(image, truth, prediction.mask_at(truth.shape), caption).shrunk()

    def take(self, result: Result) -> None:
        """Keeps the row. What fails here has failed before, and was told then."""
        example = result.made.get(self)
        if example:
            self.examples.append(example)

    def finish(self) -> None:
        """Writes the sheet, in the order of the captions."""
        if self.examples:
            order = list(self.captions.values())
            self.examples.sort(key=lambda example: order.index(example.caption))
            pictures.save_image(self.path, pictures.examples_sheet(self.examples, "The lowest Dice", self.palette))


# ---- the threshold


class ThresholdChoice(Output):
    """Finds the threshold at which one foreground has the highest mean Dice, over the pictures with true masks."""

    def __init__(self, truths: Truths) -> None:
        self.truths = truths
        self.histograms: list[np.ndarray] = []

    def make(self, prediction: Prediction) -> np.ndarray | None:
        """The histogram of a picture's probabilities, without ignored pixels."""
        truth = self.truths.read(prediction.picture, prediction.size)
        if truth is None:
            return None
        logits = lead_of(prediction.logits, 1, truth.shape)
        known = truth != IGNORED
        return histogram(logits[known], truth[known])

    def take(self, result: Result) -> None:
        """Keeps the histogram; what has failed is told when the picture is predicted."""
        counts = result.made.get(self)
        if counts is not None:
            self.histograms.append(counts)

    def best(self) -> float:
        """The best threshold, which is printed. UserError: no picture could be compared."""
        if not self.histograms:
            raise UserError("None of the pictures with masks can be read, so no threshold can be chosen.")
        chosen = best_threshold(self.histograms)
        tell(
            f"Threshold {chosen.value:.4f}: Dice {chosen.dice:.4f} over those of {len(self.histograms)} images that "
            f"hold something or are predicted to, {chosen.dice_at_half:.4f} at 0.5. Chosen on these images, it "
            "flatters their scores a little."
        )
        return chosen.value


@dataclass(frozen=True)
class Threshold:
    """A chosen threshold of probability."""

    value: float
    dice: float  # of the images with it
    dice_at_half: float  # with 0.5


def histogram(logits: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """How many pixels of (background, foreground) have a probability in each bin: int64 (2, _BINS).

    Bin k holds k/_BINS < p <= (k+1)/_BINS, so that p > k/_BINS is bin k and all above it.
    logits: float32 of any shape; truth: of that shape, {0, 1}
    """
    scaled = np.exp(-np.clip(logits, -30, 30))
    scaled += 1
    np.divide(_BINS, scaled, out=scaled)  # the probability times _BINS, in place because pictures are large
    bins = np.clip(np.ceil(scaled) - 1, 0, _BINS - 1).astype(np.uint16)
    bins += _BINS * truth.astype(np.uint16)  # foreground is counted in the second row
    return np.bincount(bins.ravel(), minlength=2 * _BINS).reshape(2, _BINS)


def best_threshold(histograms: Sequence[np.ndarray]) -> Threshold:
    """The threshold k/_BINS, 0 < k < _BINS, with the highest selection_dice over images; the nearest to 0.5 of several.

    histograms: as of `histogram`, one for each image
    """
    above = np.cumsum(np.asarray(histograms)[..., ::-1], axis=2)[..., ::-1]  # pixels in bin k and all above
    foreground, predicted = above[:, 1], above.sum(axis=1)
    dice = [selection_dice(foreground[:, k], predicted[:, k], foreground[:, 0]) for k in range(_BINS)]
    best = max(range(1, _BINS), key=lambda k: (dice[k], -abs(k - _BINS // 2)))
    return Threshold(best / _BINS, dice[best], dice[_BINS // 2])


# ---- what a user should know


class Unseen(Output):
    """Tells what of pictures the network has not seen, or should not have seen."""

    def __init__(self) -> None:
        self.dark: list[Picture] = []
        self.transparent: list[Picture] = []

    def make(self, prediction: Prediction) -> tuple[bool, bool]:
        """Whether the picture loses its detail, and whether its transparency is dropped."""
        return prediction.loaded.is_dark, prediction.loaded.is_transparent

    def take(self, result: Result) -> None:
        """Keeps the pictures of which that is so."""
        for kept, is_so in zip((self.dark, self.transparent), result.made.get(self, ())):
            if is_so:
                kept.append(result.picture)

    def report(self) -> None:
        """Prints these pictures."""
        if self.dark:
            tell(
                f"{len(self.dark)} of them have 16 bits and use only the lowest 12 or fewer, of which the 8 that this "
                f"network sees keep hardly any: {list_files(self.dark, 10)}. Train with IMAGE_RANGE, or stretch their "
                "values over 0 to 65535 as those of training are."
            )
        if self.transparent:
            tell(f"{counted(len(self.transparent), 'image')} {ALPHA_DROPPED}\n  {list_files(self.transparent, 10)}")


class UniformMasks(Output):
    """Tells where nothing is predicted, or one and the same class everywhere, which is rarely what is meant."""

    def __init__(self, mask_rule: MaskRule) -> None:
        self.mask_rule = mask_rule
        self.labels: dict[Picture, int | None] = {}  # the one that all pixels have; None: there are several

    def make(self, prediction: Prediction) -> int | None:
        """The label of all pixels, if there is one."""
        low, high = int(prediction.mask.min()), int(prediction.mask.max())
        return low if low == high else None

    def take(self, result: Result) -> None:
        """Keeps the label."""
        if self in result.made:
            self.labels[result.picture] = result.made[self]

    def report(self) -> None:
        """Prints the pictures in which nothing is predicted, or the class that is predicted everywhere."""
        cure = "are picture and IMAGE_SIZE as in training?"
        if self.mask_rule.has_classes:
            labels = set(self.labels.values())
            if len(labels) == 1 and (label := labels.pop()) is not None:
                name = self.mask_rule.label_names[label]
                tell(f"Every pixel of them is predicted as {name}. Where something else should be: {cure}")
            return
        empty = [picture for picture, label in self.labels.items() if label == 0]
        if empty:
            tell(
                f"Nothing is predicted in {len(empty)} of them: {list_files(empty)}. Where something should be: {cure} "
                "Else lower THRESHOLD."
            )


class Failures(Output):
    """Prints what is wrong with a picture as soon as it is known, and counts the inputs that have failed.

    `missing`: in words, what was asked for and is no picture; it has been printed already.
    """

    def __init__(self, missing: Iterable[str] = ()) -> None:
        self.count = len(list(missing))

    def take(self, result: Result) -> None:
        """Prints all problems of a picture."""
        for problem in result.problems:
            tqdm.write(escaped(problem), file=sys.stderr)  # above the bar
        if result.problems:
            self.count += 1

    def report(self) -> None:
        """Prints how many have failed."""
        if self.count:
            tell(f"{self.count} of the inputs failed; see above.", file=sys.stderr)
