"""Scores of predicted masks: counts of pixels, and every score that is made of them.

One foreground is counted as two classes are, background and foreground; its scores are those of the foreground alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from parts.errors import UserError
from parts.own import faults_of, load_part, name_of_part

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
    # "share" of the true pixels; "confusion", counts of pixels, rows true, columns predicted. None for one foreground
    classes: dict[str, Any] | None = field(default=None, repr=False)
    metrics: dict[str, float] = field(default_factory=dict)  # what METRICS asks for, by name
    baseline: float = 0.0  # the Dice of predicting one label everywhere: foreground, or the most frequent class
    loss: float | None = None  # the mean over images of each one's loss, where it was asked for


# ---- counts of pixels


def count_confusion(labels: torch.Tensor, truths: torch.Tensor, num_labels: int) -> torch.Tensor:
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


def overlap_of(confusions: torch.Tensor) -> torch.Tensor:
    """Counts the pixels of each label, of confusions (N, L, L): int64 (N, 3, L), rows in both, predicted, true."""
    return torch.stack([confusions.diagonal(dim1=1, dim2=2), confusions.sum(1), confusions.sum(2)], dim=1)


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


_COLUMNS = ("epoch", "learning_rate")  # of a history, beside those of Scores
KNOWN_METRICS: dict[str, Metric] = dict(precision=precision, recall=recall)


def load_metrics(chosen: Sequence[Any]) -> dict[str, Metric]:
    """{column: metric} of METRICS, each a word or one's own, as "FILE.py:NAME" or the function itself.

    The column of one's own has the name of the function. UserError: it does not exist, or is not what the contract
    says, or two have the same name.
    """
    metrics: dict[str, Metric] = {}
    for value in chosen:
        name = name_of_part(value).rpartition(":")[2].rpartition(".")[2]
        if name in metrics or name in Scores.__dataclass_fields__ or name in _COLUMNS:
            raise UserError(f"METRICS: the history has a column {name} already; give the function another name.")
        metric = load_part("METRICS", value, KNOWN_METRICS)
        with faults_of("METRICS", value, _METRIC_CONTRACT):
            for counts in ((3, 0, 0, 6), (1, 2, 3, 4), (0, 0, 5, 4), (0, 5, 0, 4)):
                float(metric(*counts))
        metrics[name] = metric
    return metrics


def mean_metric(metric: Metric, overlap: np.ndarray, labels: Sequence[int]) -> float:
    """A metric's mean, as that of Dice: over images, of several classes over each one's images, then over the classes.

    overlap: counts (N, 3, L), as of overlap_of. labels: those that are scored, the foreground or all classes. An image
    in which there is nothing of a label and nothing is predicted does not count, nor does a NaN.
    """
    by_label = []
    for label in labels:
        both, predicted, true = overlap[..., label].T.astype(np.int64)
        pixels = overlap[:, 2].sum(1).astype(np.int64)
        counted = np.stack([both, predicted - both, true - both, pixels - predicted - true + both], 1)
        values = [float(metric(*counts)) for counts in counted[predicted + true > 0].tolist()]
        values = [value for value in values if not math.isnan(value)]
        if values:
            by_label.append(sum(values) / len(values))
    return sum(by_label) / len(by_label) if by_label else math.nan


# ---- scores of many images


def scores_of(
    overlap: np.ndarray, confusion: np.ndarray, class_names: Sequence[str], metrics: Mapping[str, Metric] | None = None
) -> Scores:
    """The Scores of all images, from each one's counts (N, 3, L), as of overlap_of, and the sum of confusions (L, L).

    class_names: those of a MaskRule, () for one foreground. metrics: as of load_metrics.
    """
    if class_names:
        scores, labels = class_scores(overlap, confusion, class_names), range(len(class_names))
    else:
        scores, labels = _foreground_scores(overlap, confusion), range(1, 2)
    scores.baseline = _baseline(np.asarray(overlap), labels)
    scores.metrics = {name: mean_metric(metric, overlap, labels) for name, metric in (metrics or {}).items()}
    return scores


def _baseline(overlap: np.ndarray, labels: Sequence[int]) -> float:
    """The Dice of predicting one of the `labels` everywhere, the most frequent one; of counts (N, 3, L)."""
    true = overlap[:, 2]
    label = max(labels, key=lambda label: true[:, label].sum())
    dice = dice_from_counts(true[:, label], true.sum(1), true[:, label])
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
    """The Scores of several classes, from each image's counts (N, 3, C) and the sum of confusions (C, C)."""
    both, predicted, true = np.moveaxis(np.asarray(overlap), 1, 0)
    confusion = np.asarray(confusion).astype(np.int64)
    columns, rows, pixels = confusion.sum(0), confusion.sum(1), max(1, confusion.sum())

    # Of each image and class, where the class is true or predicted; elsewhere it has no Dice
    present = predicted + true > 0
    dice = np.where(present, dice_from_counts(both, predicted, true), 0)
    images = present.sum(0)
    by_class = dice.sum(0) / np.maximum(images, 1)
    per_image = np.where(present.any(1), dice.sum(1) / np.maximum(present.sum(1), 1), 1.0)

    iou = iou_from_counts(confusion.diagonal(), columns, rows)
    scored = images > 0
    mean_dice = mean_iou = 1.0
    if scored.any():
        mean_dice, mean_iou = float(by_class[scored].mean()), float(iou[scored].mean())
    most = int(columns.argmax())
    return Scores(
        accuracy=float(confusion.trace() / pixels),
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
