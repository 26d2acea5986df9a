"""What predict.py makes of a picture's logits: masks, overlays, probabilities, scores, a submission."""

import csv
import gzip
import io
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch

from parts import pictures
from parts.audit import DARK
from parts.errors import UserError, printable
from parts.files import write_csv, write_whole
from parts.images import decode, depth_of, may_be_deep, read_image, resize_image
from parts.masks import IGNORED, MaskRule, encode_mask, read_mask, resize_mask
from parts.names import Picture
from parts.pictures import Example, Palette
from parts.scores import (
    class_columns,
    class_scores,
    class_table,
    count_confusion,
    dice_from_counts,
    iou_from_counts,
    overlap_of,
    selection_dice,
)

_LONGEST_JPEG = 65_500  # pixels, libjpeg's own limit
_WORST = 10  # images that worst.png shows
_BINS = 256  # of probability: thresholds are multiples of 1/256


@dataclass
class Outcome:
    """What became of a picture: `error` in words, or what was asked for."""

    picture: Picture
    error: str | None = None
    only: int | None = None  # the class that all of its pixels are predicted to be
    counts: list | None = None  # of pixels: in both, predicted, true; of each class, where there are several
    confusion: np.ndarray | None = None  # of several classes, (C, C): rows true, columns predicted
    runs: str | None = None
    histogram: np.ndarray | None = None
    shown: Example | None = None


class Bands:
    """What of a picture that goes in windows at its own size is kept of its bands, as Runner.bands gives them.

    Logits of all classes would be C large planes. `mask`: uint8 (H, W); `maps`: the probabilities, C such planes of
    `bits`, where these are asked for; `broken`: whether some logits are not numbers.
    """

    def __init__(self, size, channels, bits=None):
        self.mask, self.broken = np.empty(size, np.uint8), False
        self.maps = [np.empty(size, _kind_of(bits)) for _ in range(channels if bits else 0)]
        self.bits = bits

    def __call__(self, top, logits):
        rows, size = slice(top, top + logits.shape[1]), logits.shape[1:]
        self.broken = self.broken or bool(np.isnan(logits).any())
        self.mask[rows], best = classify(logits, size)
        if self.maps:
            for whole, part in zip(self.maps, class_probabilities(logits, best, self.bits)):
                whole[rows] = part


@dataclass
class Finish:
    """Turns the logits of a picture into what was asked for. Runs in threads."""

    cut: float = 0.0  # logits above it are foreground
    folders: dict = field(default_factory=dict)  # of "masks", "overlays", "probabilities", where they are wanted
    bits: int = 8  # of probabilities
    truths: dict = field(default_factory=dict)  # {picture: Pair of it and its true mask}
    mask_rule: MaskRule | None = None  # which reads them
    classes: MaskRule | None = None  # the network's, where it has several
    runs: bool = False
    histogram: bool = False
    show: bool = False
    value_range: tuple | None = None  # of training's images of more than 8 bits: see IMAGE_RANGE
    dark: dict = field(default_factory=dict)  # {picture: True} of those which lose nearly everything without

    def paths(self, kind, picture):
        """The files of that kind; with_suffix would cut names such as a.b."""
        base, ending = self.folders[kind] / picture.name, ".jpg" if kind == "overlays" else ".png"
        if self.classes is None or kind != "probabilities":
            return [base.with_name(base.name + ending)]
        names = ["".join(c if c.isalnum() or c in "+-._" else "_" for c in name) for name in self.classes.names]
        return [base.with_name(f"{base.name}_{name}{ending}") for name in names]

    @property
    def legend(self):
        """Where the colours of the overlays' classes are explained, or None."""
        return self.folders["overlays"] / "legend.png" if self.classes and "overlays" in self.folders else None

    @property
    def palette(self):
        """How the network's labels are drawn."""
        return Palette.of(self.classes)

    def bands(self, item):
        """What takes the bands of an Item."""
        return Bands(item.size, self.classes.channels, self.bits if "probabilities" in self.folders else None)

    def read(self, picture, size):
        """The picture at the network's `size` (None: its own), and as it is where that is needed."""
        image = read_image(picture.path, size, picture.page, self.value_range)
        if self.value_range is None and _is_dark(picture):
            self.dark[picture] = True
        if not self.show and "overlays" not in self.folders:
            return image, None
        # decoded once more, so that the network sees the same with and without
        return image, read_image(picture.path, None, picture.page, self.value_range) if size else image

    def __call__(self, item, fetch):
        """The Outcome of an Item; fetch() gives its logits at the network's size, or its Bands."""
        outcome = Outcome(item.picture, item.error)
        if item.error:
            return outcome
        logits = fetch()
        if logits.broken if isinstance(logits, Bands) else np.isnan(logits).any():
            cure = 'Try PRECISION = "float32", or another checkpoint.'
            outcome.error = f"{item.picture}: the network's output is not a number. {cure}"
            return outcome
        mask, at_own = self._decided(logits, item.size)
        low, high = int(mask.min()), int(mask.max())
        outcome.only = low if low == high else None
        self._save("masks", item.picture, lambda: [encode_mask(mask, self.classes) if self.classes else mask * 255])
        self._save("probabilities", item.picture, lambda: self._maps(logits, at_own))
        if max(item.size) <= _LONGEST_JPEG:
            self._save("overlays", item.picture, lambda: [pictures.overlay(item.extra, mask, self.palette)])
        elif "overlays" in self.folders:
            limit = f"a JPEG of at most {_LONGEST_JPEG} pixels"
            outcome.error = f"{item.picture}: too long for an overlay, {limit}."
        if self.runs:
            outcome.runs = run_lengths(mask)
        if item.picture in self.truths:
            try:
                self._score(item, logits, mask, at_own, outcome)
            except UserError as mistake:
                outcome.error = str(mistake)
        return outcome

    def _decided(self, logits, size):
        """The mask at `size`, uint8, and what its probabilities come from: see _maps."""
        if isinstance(logits, Bands):
            return (logits.mask if size == logits.mask.shape else resize_mask(logits.mask, size)), None
        if self.classes:
            return classify(logits, size)
        at_size = resize_image(logits, size)
        return (at_size > self.cut).astype(np.uint8), at_size

    def _maps(self, logits, at_own):
        if isinstance(logits, Bands):
            return logits.maps
        return class_probabilities(logits, at_own, self.bits) if self.classes else [probability_map(at_own, self.bits)]

    def _save(self, kind, picture, draw):
        if kind in self.folders:
            for path, drawn in zip(self.paths(kind, picture), draw()):
                path.parent.mkdir(parents=True, exist_ok=True)
                pictures.save_image(path, drawn)

    def _score(self, item, logits, mask, at_own, outcome):
        """Compares with the true mask, at its size."""
        pair_of_files = self.truths[item.picture]
        truth = read_mask(pair_of_files.masks, self.mask_rule, page=pair_of_files.mask_page)
        if _turned(truth.shape, item.size):
            sizes = [f"{height}x{width} (height x width)" for height, width in (item.size, truth.shape)]
            pair = f"{item.picture} is {sizes[0]}, {printable(pair_of_files.mask)} is {sizes[1]}"
            raise UserError(f"{pair}: one is turned, so it is not scored.")
        if truth.shape != tuple(item.size):
            mask, at_own = self._decided(logits, truth.shape)
        pair = [torch.from_numpy(np.ascontiguousarray(labels))[None] for labels in (mask, truth)]
        counts = count_confusion(*pair, self.mask_rule.num_labels)
        if self.classes:
            outcome.counts, outcome.confusion = overlap_of(counts)[0].tolist(), counts[0].numpy()
        else:
            outcome.counts = overlap_of(counts)[0, :, 1].tolist()
            if self.histogram:
                known = truth != IGNORED if self.mask_rule.ignored else ...  # all of it
                outcome.histogram = histogram(at_own[known], truth[known])
        if self.show:
            outcome.shown = Example(resize_image(item.extra, truth.shape), truth, mask).shrunk()


def _is_dark(picture):
    """Whether a picture that is read without a span has more than 8 bits, and hardly any of the upper 8."""
    try:
        if not may_be_deep(picture.path, picture.page):
            return False
        depth = depth_of(decode(picture.path, page=picture.page), picture.path)
        return bool(depth) and depth["highest"] < DARK
    except UserError:  # some layouts can be read in 8 bits alone
        return False


def _turned(one, other):
    """Whether size `one` (H, W) is a scaled copy of `other` turned by 90 degrees, and not of it as it is."""

    def alike(height, width):  # but for rounding
        return abs(height * other[1] - width * other[0]) <= max(height, width, *other)

    return alike(*one[::-1]) and not alike(*one)


def _kind_of(bits):
    return np.uint8 if bits == 8 else np.uint16


def probability_map(logits, bits):
    """The probabilities of logits as uint8 or uint16, 1 being the type's largest value."""
    kind = _kind_of(bits)
    return (np.iinfo(kind).max / (1 + np.exp(-logits.clip(-30, 30)))).round().astype(kind)


def classify(logits, size):
    """(the class of the highest logit, uint8; how far that lies above the first class's, float32), both of `size`.

    logits: float32 (C, h, w), of which one plane at a time is enlarged. What is compared is how far each lies above
    the first, so that two classes give what one foreground does of the difference of the two; of equal ones the
    first wins.
    """
    mask, best = np.zeros(size, np.uint8), np.zeros(size, np.float32)
    for index in range(1, len(logits)):
        plane = resize_image(logits[index] - logits[0], size)
        np.copyto(mask, index, where=plane > best)
        np.maximum(best, plane, out=best)
    return mask, best


def class_probabilities(logits, best, bits):
    """Yields the map of each class, as of probability_map: softmax. `best`: as classify gives it for `logits`."""
    kind = _kind_of(bits)

    def power(index):
        plane = resize_image(logits[index] - logits[0], best.shape) if index else np.zeros_like(best)
        return np.exp(plane - best)

    total = sum(map(power, range(len(logits))))
    for index in range(len(logits)):
        yield (power(index) * (np.iinfo(kind).max / total)).round().astype(kind)


def histogram(logits, truth):
    """How many pixels of (background, foreground) have a probability in each bin: int64 (2, _BINS).

    Bin k holds k/_BINS < p <= (k+1)/_BINS, so that p > k/_BINS is bin k and all above it.
    logits: float32 (H, W); truth: (H, W) of {0, 1}
    """
    scaled = np.exp(-np.clip(logits, -30, 30))
    scaled += 1
    np.divide(_BINS, scaled, out=scaled)
    bins = np.clip(np.ceil(scaled) - 1, 0, _BINS - 1).astype(np.uint16)
    bins += _BINS * truth.astype(np.uint16)
    return np.bincount(bins.ravel(), minlength=2 * _BINS).reshape(2, _BINS)


def best_threshold(histograms):
    """(threshold, its mean Dice, mean Dice at 0.5) over images, from their histograms (N, 2, _BINS).

    Of the thresholds k/_BINS with 0 < k < _BINS the one with the highest mean, which is selection_dice; of equal
    ones the one nearest to 0.5.
    """
    above = np.cumsum(np.asarray(histograms)[..., ::-1], axis=2)[..., ::-1]  # pixels in bin k and all above
    foreground, predicted = above[:, 1], above.sum(axis=1)
    dice = [selection_dice(foreground[:, k], predicted[:, k], foreground[:, 0]) for k in range(_BINS)]
    best = max(range(1, _BINS), key=lambda k: (dice[k], -abs(k - _BINS // 2)))
    return best / _BINS, dice[best], dice[_BINS // 2]


def choose_threshold(put_through, finish):
    """The threshold that gives the pictures with masks the highest mean Dice."""
    outcomes = put_through(list(finish.truths), replace(finish, folders={}, runs=False, histogram=True), "threshold")
    histograms = [outcome.histogram for outcome in outcomes if outcome.histogram is not None]
    if not histograms:
        raise UserError("None of the pictures with masks can be read, so no threshold can be chosen.")
    threshold, dice, dice_at_half = best_threshold(histograms)
    print(
        f"Threshold {threshold:.4f}: Dice {dice:.4f} over those of {len(histograms)} images that hold something or are "
        f"predicted to, {dice_at_half:.4f} at 0.5. Chosen on these images, it flatters their scores a little."
    )
    return threshold


def write_scores(path, names, counts):
    """A CSV file with one line an image, and the means at the bottom. Returns Dice and IoU of each, float (N,)."""
    both, predicted, true = np.array(counts, np.int64).T
    dice, iou = dice_from_counts(both, predicted, true), iou_from_counts(both, predicted, true)
    rows = [[name, f"{d:.6f}", f"{i:.6f}", *row] for name, d, i, row in zip(names, dice, iou, counts)]
    rows.append(["mean", f"{dice.mean():.6f}", f"{iou.mean():.6f}", "", "", ""])
    write_csv(path, ["image", "dice", "iou", "pixels_in_both", "predicted_pixels", "true_pixels"], rows)
    return dice, iou


def write_class_scores(path, names, counts, scores):
    """A CSV file with one line an image: its Dice, and that of each class that it holds or was given.

    The means are at the bottom. counts: int64 (N, 3, C), as of overlap_of; scores: their Scores.
    """
    columns = class_columns(scores)
    dice, held = dice_from_counts(*np.moveaxis(counts, 1, 0)), counts[:, 1:].any(axis=1)
    rows = [[name, mean, *row] for name, mean, row in zip(names, scores.per_image, np.where(held, dice, None))]
    rows.append(["mean", scores.dice, *columns.values()])
    rows = [[name, *("" if value is None else f"{value:.6f}" for value in values)] for name, *values in rows]
    write_csv(path, ["image", "dice", *columns], rows)


def tell_scores(folder, scored, confusion, put_through, finish):
    """Leaves scores.csv and worst.png in `folder`, and prints the means and the lowest Dice.

    scored: {picture: counts}; confusion: the sum of all, of several classes. The lowest are put through the network
    again, now for the sheet.
    """
    folder.mkdir(parents=True, exist_ok=True)
    wanted, names, counts = list(scored), [str(picture) for picture in scored], np.array(list(scored.values()))
    if finish.classes:
        scores = class_scores(counts, confusion, finish.classes.names)
        write_class_scores(folder / "scores.csv", names, counts, scores)
        dice = np.array(scores.per_image)
        captions = [f"{name}  Dice {d:.4f}" for name, d in zip(names, dice)]
    else:
        dice, iou = write_scores(folder / "scores.csv", names, counts)
        captions = [f"{name}  Dice {d:.4f}, IoU {i:.4f}" for name, d, i in zip(names, dice, iou)]
    worst = np.argsort(dice, kind="stable")[:_WORST].tolist()
    captions = {wanted[i]: captions[i] for i in worst}
    again = put_through(list(captions), replace(finish, folders={}, runs=False, show=True), "worst")
    if outcomes := [outcome for outcome in again if outcome.shown]:
        examples = [replace(outcome.shown, caption=captions[outcome.picture]) for outcome in outcomes]
        sheet = pictures.examples_sheet(examples, "The lowest Dice", finish.palette)
        pictures.save_image(folder / "worst.png", sheet)
    if finish.classes:
        print(class_table(scores))
        print(
            f"Dice {scores.dice:.4f}, IoU {scores.iou:.4f}: means over the classes, of {len(dice)} images at their "
            f"masks' size; accuracy {100 * scores.accuracy:.2f} %"
        )
    else:
        if not counts[:, 2].any():
            print("No pixel of these masks reads as foreground. If they are not empty, MASK_FOREGROUND says what is.")
        print(f"Dice {dice.mean():.4f}, IoU {iou.mean():.4f}: means over {len(dice)} images at their masks' size")
        if (choice := selection_dice(*counts.T)) != dice.mean():
            print(f"Dice {choice:.4f} without those that are empty and predicted to be, each of which counts 1 there")
    print("The lowest Dice:", *(f"  {dice[i]:.4f}  {names[i]}" for i in worst), sep="\n")
    print(f"All of them: {folder / 'scores.csv'}. The lowest: {folder / 'worst.png'}.")


def run_lengths(mask):
    """The runs of foreground in a mask (H, W), row by row, as "start length start length ...", the first pixel being 1.

    The competition's page says that "the pixels are one-indexed and numbered from top to bottom, then left
    to right: 1 is pixel (1,1), 2 is pixel (1,2), etc.", which contradicts itself. Its data decide: in
    train_masks.csv the first car's runs start at 879386, 881253, 883140, so one row's run begins 1,867 and
    1,887 pixels after the last one's: just under the width of 1,918, as under a roof that widens downwards,
    and nowhere near the height of 1,280.
    """
    edges = np.flatnonzero(np.diff(mask.ravel().astype(bool), prepend=False, append=False)) + 1
    edges[1::2] -= edges[::2]
    return " ".join(map(str, edges.tolist()))


def write_submission(path, rows):
    """Writes `rows` of (image file name, runs) as they come, to a file that appears when it is complete.

    A `path` that ends in .gz is compressed. Memory does not grow with the rows.
    """

    def write(file):
        packed = gzip.GzipFile(filename="", fileobj=file, mode="wb", mtime=0) if str(path).endswith(".gz") else file
        # a name that is no Unicode keeps its bytes
        text = io.TextIOWrapper(packed, encoding="utf-8", errors="surrogateescape", newline="")
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(("img", "rle_mask"))
        writer.writerows(rows)
        text.flush()
        text.detach()
        if packed is not file:
            packed.close()

    Path(path).parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, write)
