"""Scores of predicted masks: counts of pixels, and every score that is made of them.

One foreground is counted as two classes are, background and foreground; its scores are those of the foreground alone.
Where classes overlap each of them is counted as one foreground, and confusions are those of sets of classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from parts.errors import UserError
from parts.masks import MaskRule, members
from parts.own import faults_of, is_own, load_part, name_of_part

ONE_FOREGROUND = MaskRule()
_COUNTED = 2**22  # pixels of an image that are counted at once: each takes 24 bytes then


@dataclass
class Scores:
    """The scores of one validation: pixel accuracy, Dice and IoU. Ignored pixels count nowhere.

    Dice = 2 |P and T| / (|P| + |T|) of the predicted and the true pixels of an image (L. R. Dice: Measures of the
    amount of ecologic association between species, 1945), IoU = |P and T| / |P or T|.
    One foreground: both are the means over the images, in which two empty masks count 1.
    Several classes: a class's Dice is the mean over the images that hold it or in which it is predicted. Its IoU is
    that of the counts of all images together, true positives / (true positives + false positives + false negatives),
    as the PASCAL VOC challenge of 2012 scores segmentation and ConfusionMatrix in torchvision's
    references/segmentation does. `dice` and `iou` are the means over the classes that have one.
    """

    accuracy: float  # share of right pixels
    dice: float
    # The Dice that selects the best epoch: over the images that hold foreground or in which some is predicted.
    # With classes it is `dice`
    dice_nonempty: float
    iou: float
    predicted_share: float  # of all pixels; with classes, that of the class that is predicted most
    true_share: float  # with classes, of that same class
    per_image: list[float] = field(repr=False)  # each image's Dice, in the dataset's order; with classes, their mean
    # By class, in lists: "names"; "dice", "iou" (None for a class that is neither true nor predicted in any image);
    # "share" of the true pixels; "confusion", counts of pixels, rows true, columns predicted. None for one foreground.
    # Where classes overlap "confusion" says which occur together, and "true" and "predicted" how many pixels each has
    classes: dict[str, Any] | None = field(default=None, repr=False)
    metrics: dict[str, float] = field(default_factory=dict)  # what METRICS asks for, by name
    baseline: float = 0.0  # the Dice of predicting one label everywhere: foreground, or the most frequent class
    loss: float | None = None  # the mean over images of each one's loss, where it was asked for


# ---- counts of pixels


def count_confusion(labels: Tensor, truths: Tensor, num_labels: int) -> Tensor:
    """Counts the pixels of each image by true and predicted label: int64 (N, L, L), rows true, columns predicted.

    Takes predicted and true labels (N, ..., H, W); num_labels = L is 2 for one foreground. A pixel whose true label is
    L or more, as IGNORED is, counts nowhere.
    """
    counts = torch.zeros(len(truths), 256 * num_labels, dtype=torch.int64, device=truths.device)
    predicted_pieces = labels.flatten(1).split(_COUNTED, 1)
    for true, predicted in zip(truths.flatten(1).split(_COUNTED, 1), predicted_pieces):
        places = true.long() * num_labels + predicted
        # Unlike bincount, this does not wait for a GPU
        counts.scatter_add_(1, places, places.new_ones(()).expand_as(places))
    return counts[:, : num_labels**2].reshape(-1, num_labels, num_labels)


def overlap_of(confusions: Tensor) -> Tensor:
    """Counts the pixels of each label, of confusions (N, L, L): int64 (N, 4, L), rows in both, predicted, true, all."""
    true = confusions.sum(2)
    pixels = true.sum(1, keepdim=True).expand_as(true)
    return torch.stack([confusions.diagonal(dim1=1, dim2=2), confusions.sum(1), true, pixels], dim=1)


_TOLERANCE = 0.0075  # of an image's diagonal: how far from each other two boundaries are the same, at least a pixel


def count_edges(labels: Tensor, truths: Tensor, num_labels: int, scored: Sequence[int]) -> Tensor:
    """Counts pixels of each image and label's boundary: int64 (N, 4, L), see `boundary`; 0 for labels not in `scored`.

    Takes labels as count_confusion does. A boundary is the pixels of a label that have one of another label among their
    eight neighbours. Near is at most a tolerance of rows and of columns away. What is ignored is no neighbour either.
    """
    labels, truths = (each.reshape(len(each), *each.shape[-2:]) for each in (labels, truths))
    known = truths < num_labels
    tolerance = max(1, round(_TOLERANCE * math.hypot(*truths.shape[1:])))
    counts = torch.zeros(len(truths), 4, num_labels, dtype=torch.int64, device=truths.device)
    for label in scored:
        predicted, true = (_edges((each == label) & known, known) for each in (labels, truths))
        counted = predicted & _spread(true, tolerance), predicted, true & _spread(predicted, tolerance), true
        counts[:, :, label] = torch.stack([each.flatten(1).sum(1) for each in counted], 1)
    return counts


def _edges(mask: Tensor, known: Tensor) -> Tensor:
    """The pixels of `mask` beside one that is `known` not to be of it; all of them booleans (N, H, W)."""
    return mask & _spread(known & ~mask, 1)


def _spread(mask: Tensor, reach: int) -> Tensor:
    """The pixels with a true one at most `reach` rows and `reach` columns away, of booleans (N, H, W).

    As max_pool2d would, which takes thirty times as long on a CPU.
    """
    for axis, padding in ((1, (0, 0, reach, reach)), (2, (reach, reach))):
        mask = F.pad(mask, padding)
        covered = 1  # pixels in a row that each one stands for, which every step can double
        while covered <= 2 * reach:
            step = min(covered, 2 * reach + 1 - covered)
            length = mask.shape[axis] - step
            mask = mask.narrow(axis, 0, length) | mask.narrow(axis, step, length)
            covered += step
    return mask


def count_labels(
    labels: Tensor, truths: Tensor, mask_rule: MaskRule, metrics: Mapping[str, Metric]
) -> tuple[Tensor, Tensor]:
    """Each image's counts of every label (N, 4, L), as of overlap_of, and its confusion (N, L, L); both int64.

    Where one of the `metrics` is `boundary` the counts are (N, 8, L): the last four are those of count_edges. Of C
    classes that overlap they are (N, 4 or 8, C), as of one foreground each.
    """
    confusions = count_confusion(labels, truths, mask_rule.num_labels)
    if mask_rule.overlaps:
        each = mask_rule.foregrounds_of(labels), mask_rule.foregrounds_of(truths)
        counts = count_labels(*each, ONE_FOREGROUND, metrics)[0][..., 1]  # (N * C, 4 or 8)
        return counts.reshape(len(labels), mask_rule.channels, -1).transpose(1, 2), confusions
    counts = overlap_of(confusions)
    if rows_of_counts(metrics) > 4:
        edges = count_edges(labels, truths, mask_rule.num_labels, scored_labels(mask_rule.channels))
        counts = torch.cat([counts, edges], 1)
    return counts, confusions


def rows_of_counts(metrics: Mapping[str, Metric]) -> int:
    """How many counts of each image and label the `metrics` need, as of count_labels: 4, or 8 with boundaries."""
    return 8 if boundary in metrics.values() else 4


def scored_labels(channels: int) -> range:
    """The columns of counts that have scores: all classes, or of one channel, and two columns, the foreground."""
    return range(channels) if channels > 1 else range(1, 2)


def dice_from_counts(both: np.ndarray, predicted: np.ndarray, true: np.ndarray) -> np.ndarray:
    """Dice = 2 |P and T| / (|P| + |T|) of counts of any one shape; both empty count 1."""
    return np.where(predicted + true == 0, 1.0, 2 * both / np.maximum(predicted + true, 1))


def iou_from_counts(both: np.ndarray, predicted: np.ndarray, true: np.ndarray) -> np.ndarray:
    """IoU = |P and T| / |P or T| of counts of any one shape; both empty count 1."""
    union = predicted + true - both
    return np.where(union == 0, 1.0, both / np.maximum(union, 1))


def selection_dice(both: np.ndarray, predicted: np.ndarray, true: np.ndarray) -> float:
    """The Dice that selects an epoch or a threshold: the mean over the images that are not empty; 1 if all are.

    Takes counts of the foreground (N,). An image is empty if it holds no foreground and none is predicted.
    """
    nonempty = predicted + true > 0
    if not nonempty.any():
        return 1.0
    return float(dice_from_counts(both, predicted, true)[nonempty].mean())


# ---- metrics: further scores of those counts

Metric = Callable[[int, int, int, int], float]  # (tp, fp, fn, tn), of an image and class; NaN where it has none
_METRIC_CONTRACT = "A metric is a function (tp, fp, fn, tn), pixels of an image and class, -> number, NaN for none."


def precision(tp: int, fp: int, fn: int, tn: int) -> float:
    """The share of the predicted pixels that are right."""
    return tp / (tp + fp) if tp + fp else math.nan


def recall(tp: int, fp: int, fn: int, tn: int) -> float:
    """The share of the true pixels that are predicted."""
    return tp / (tp + fn) if tp + fn else math.nan


def boundary(near_predicted: int, predicted: int, near_true: int, true: int) -> float:
    """F1 of boundaries, of an image and class: harmonic mean of the shares of each that are near the other one.

    Takes counts of boundary pixels: predicted ones near the true boundary, all predicted ones, true ones near the
    predicted boundary, all true ones. Csurka, Larlus, Perronnin: What is a good evaluation measure for semantic
    segmentation?, 2013, section 3.2, with their tolerance of 0.75 % of the diagonal, here in rows and columns.
    """
    if not predicted and not true:
        return math.nan
    if not near_predicted or not near_true:
        return 0.0
    precise, recalled = near_predicted / predicted, near_true / true
    return 2 * precise * recalled / (precise + recalled)


_COLUMNS = ("epoch", "learning_rate")  # of a history, beside those of Scores
# What METRICS may say; the counts that boundary takes are those of boundary pixels
KNOWN_METRICS: dict[str, Metric] = dict(precision=precision, recall=recall, boundary=boundary)


def load_metrics(chosen: Sequence[Any]) -> dict[str, Metric]:
    """{column: metric} of METRICS, each a word or one's own, as "FILE.py:NAME" or the function itself.

    The column of one's own has the name of the function. UserError, also where one is called: it does not exist, or is
    not what the contract says, or two have the same name.
    """
    metrics: dict[str, Metric] = {}
    for value in chosen:
        name = name_of_part(value).rpartition(":")[2]
        if name in metrics or name in Scores.__dataclass_fields__ or name in _COLUMNS:
            raise UserError(f"METRICS: the history has a column {name} already; give the function another name.")
        metrics[name] = load_part("METRICS", value, KNOWN_METRICS)
        if is_own(value):
            metrics[name] = partial(_of_own, value, metrics[name])
            for counts in ((3, 0, 0, 6), (1, 2, 3, 4), (0, 0, 5, 4), (0, 5, 0, 4)):
                metrics[name](*counts)
    return metrics


def _of_own(chosen: Any, metric: Metric, tp: int, fp: int, fn: int, tn: int) -> float:
    """A number of a metric of the user's own, which METRICS has `chosen`. UserError: it gives none, or infinity."""
    with faults_of("METRICS", chosen, _METRIC_CONTRACT):
        value = float(metric(tp, fp, fn, tn))
        if math.isinf(value):
            raise ValueError(f"gives {value} of tp = {tp}, fp = {fp}, fn = {fn}, tn = {tn}")
        return value


def metric_of_each(metric: Metric, counts: np.ndarray, label: int) -> list[float]:
    """A metric of each image, of their counts (N, 4 or 8, L), as of count_labels; NaN for an image that has none.

    An image in which there is nothing of the label and nothing is predicted has none.
    """
    both, predicted, true, pixels = counts[:, :4, label].T.astype(np.int64)
    if metric is boundary:
        counted = counts[:, 4:, label].astype(np.int64)
    else:
        counted = np.stack([both, predicted - both, true - both, pixels - predicted - true + both], 1)
    present = (predicted + true > 0).tolist()
    return [float(metric(*row)) if is_there else math.nan for row, is_there in zip(counted.tolist(), present)]


def mean_metric(metric: Metric, counts: np.ndarray, labels: Sequence[int]) -> float:
    """A metric's mean, as that of Dice: over images, of several classes over each one's images, then over the classes.

    counts: (N, 4 or 8, L), as of count_labels. labels: those that are scored, the foreground or all classes. A NaN
    does not count.
    """
    return mean_of_numbers([mean_of_numbers(metric_of_each(metric, counts, label)) for label in labels])


def mean_of_numbers(values: Sequence[float]) -> float:
    """The mean of those values that are not NaN; NaN where there are none."""
    numbers = [value for value in values if not math.isnan(value)]
    return sum(numbers) / len(numbers) if numbers else math.nan


# ---- scores of many images


def scores_of(
    counts: np.ndarray, confusion: np.ndarray, class_names: Sequence[str], metrics: Mapping[str, Metric] | None = None
) -> Scores:
    """The Scores of all images, from each one's counts (N, 4 or 8, L), as of count_labels, and the sum of confusions.

    class_names: those of a MaskRule, () for one foreground. metrics: as of load_metrics.
    """
    counts = np.asarray(counts)
    overlap, labels = counts[:, :3], scored_labels(len(class_names))
    if class_names:
        scores = class_scores(overlap, confusion, class_names)
    else:
        scores = _foreground_scores(overlap, confusion)
    scores.baseline = _baseline(counts, labels)
    scores.metrics = {name: mean_metric(metric, counts, labels) for name, metric in (metrics or {}).items()}
    return scores


def _baseline(counts: np.ndarray, labels: Sequence[int]) -> float:
    """The Dice of predicting one of the `labels` everywhere, the most frequent one; of counts (N, 4 or 8, L)."""
    true = counts[:, 2]
    label = max(labels, key=lambda label: true[:, label].sum())
    dice = dice_from_counts(true[:, label], counts[:, 3, label], true[:, label])
    if len(labels) == 1:
        return float(dice.mean())
    scored = int((true.sum(0) > 0).sum())
    return float(dice.mean()) / max(1, scored)


def _foreground_scores(overlap: np.ndarray, confusion: np.ndarray) -> Scores:
    """The Scores of one foreground, from each image's counts (N, 3, 2) and the sum of confusions (2, 2)."""
    both, predicted, true = np.asarray(overlap)[..., 1].T
    confusion = np.asarray(confusion).astype(np.int64)
    pixels = max(1, int(confusion.sum()))
    wrong = int(confusion[0, 1] + confusion[1, 0])
    per_image = dice_from_counts(both, predicted, true)
    return Scores(
        accuracy=(pixels - wrong) / pixels,
        dice=float(per_image.mean()),
        dice_nonempty=selection_dice(both, predicted, true),
        iou=float(iou_from_counts(both, predicted, true).mean()),
        predicted_share=float(predicted.sum() / pixels),
        true_share=float(true.sum() / pixels),
        per_image=per_image.tolist(),
    )


def class_scores(overlap: np.ndarray, confusion: np.ndarray, names: Sequence[str]) -> Scores:
    """The Scores of several classes, from each image's counts (N, 3, C) and the sum of confusions (C, C).

    Where classes overlap confusions are those of their sets, (2**C, 2**C).
    """
    both, predicted, true = np.moveaxis(np.asarray(overlap), 1, 0)
    confusion = np.asarray(confusion).astype(np.int64)
    pixels, right = max(1, confusion.sum()), confusion.trace()
    columns, rows, together = predicted.sum(0), true.sum(0), {}
    if len(confusion) > len(names):
        held = members(len(names))
        confusion = held.T @ confusion @ held
        together = dict(true=rows.astype(int).tolist(), predicted=columns.astype(int).tolist())

    # Of each image and class, where the class is true or predicted; elsewhere it has no Dice
    present = predicted + true > 0
    dice = np.where(present, dice_from_counts(both, predicted, true), 0)
    images = present.sum(0)
    by_class = dice.sum(0) / np.maximum(images, 1)
    per_image = np.where(present.any(1), dice.sum(1) / np.maximum(present.sum(1), 1), 1.0)

    iou = iou_from_counts(both.sum(0), columns, rows)
    scored = images > 0
    mean_dice = mean_iou = 1.0
    if scored.any():
        mean_dice, mean_iou = float(by_class[scored].mean()), float(iou[scored].mean())
    most = int(columns.argmax())
    return Scores(
        accuracy=float(right / pixels),
        dice=mean_dice,
        dice_nonempty=mean_dice,
        iou=mean_iou,
        predicted_share=float(columns[most] / pixels),
        true_share=float(rows[most] / pixels),
        per_image=per_image.tolist(),
        classes=dict(
            names=list(names),
            dice=[float(value) if has_one else None for value, has_one in zip(by_class, scored)],
            iou=[float(value) if has_one else None for value, has_one in zip(iou, scored)],
            share=(rows / pixels).tolist(),
            confusion=confusion.tolist(),
            **together,
        ),
    )


# ---- the history's columns


def class_columns(scores: Scores) -> dict[str, float | None]:
    """{"dice_NAME": Dice} of each class, for a row of the history; {} for one foreground.

    No two columns have one name, and none has that of another score, such as dice_nonempty.
    """
    columns: dict[str, float | None] = {}
    if not scores.classes:
        return columns
    for index, (name, dice) in enumerate(zip(scores.classes["names"], scores.classes["dice"])):
        column = f"dice_{name}"
        while column in columns or column in vars(scores):
            column += f"_{index}"
        columns[column] = dice
    return columns
