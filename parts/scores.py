"""Scores of predicted masks: counts of pixels, and every score that is made of them."""

from dataclasses import dataclass, field

import numpy as np
import torch

_COUNTED = 2**22  # pixels of an image that are counted at once: each takes 24 bytes then


@dataclass
class Scores:
    """Of one validation: pixel accuracy, Dice and IoU, and what the images had. Ignored pixels count nowhere.

    Dice = 2 |P and T| / (|P| + |T|) of the predicted and the true pixels of an image (L. R. Dice: Measures of the
    amount of ecologic association between species, 1945), IoU = |P and T| / |P or T|.
    One foreground: both are the means over the images, in which two empty masks count 1.
    Several classes: a class's Dice is the mean over the images that hold it or were given it. Its IoU is that of the
    counts of all images together, true positives / (true positives + false positives + false negatives), as the
    PASCAL VOC challenge of 2012 scores segmentation and ConfusionMatrix in torchvision's references/segmentation
    does. `dice` and `iou` are the means over the classes that have one.
    """

    accuracy: float  # right ones among the pixels that are not ignored
    dice: float
    dice_nonempty: float  # what chooses: of the images that hold something or are predicted to; with classes, `dice`
    iou: float
    predicted_share: float  # of all pixels; with classes, that of the one that is predicted most
    true_share: float  # with classes, of that same class
    per_image: list = field(repr=False)  # each image's Dice, in the dataset's order; with classes, their mean
    # By class, in lists: "names"; "dice", "iou" (None where no image holds it or was given it); "share" of the true
    # pixels; "confusion", counts of pixels, rows true, columns predicted. None for one foreground.
    classes: dict | None = field(default=None, repr=False)


def count_overlap(predictions, truths):
    """(N, 3) counts of pixels, of each image: in both, predicted, true. Takes booleans (N, ..., H, W)."""
    predictions, truths = predictions.flatten(1), truths.flatten(1)
    return torch.stack([(predictions & truths).sum(1), predictions.sum(1), truths.sum(1)], dim=1)


def dice_from_counts(both, predicted, true):
    """Dice = 2 |P and T| / (|P| + |T|) of each image; both empty count 1."""
    return np.where(predicted + true == 0, 1.0, 2 * both / np.maximum(predicted + true, 1))


def dice_of_choice(both, predicted, true):
    """What chooses goes by this: the mean Dice of the images that hold something or are predicted to; 1 if none do."""
    chosen = predicted + true > 0
    return float(dice_from_counts(both, predicted, true)[chosen].mean()) if chosen.any() else 1.0


def iou_from_counts(both, predicted, true):
    """IoU = |P and T| / |P or T| of each image; both empty count 1."""
    union = predicted + true - both
    return np.where(union == 0, 1.0, both / np.maximum(union, 1))


def count_confusion(predictions, truths, classes):
    """(N, C, C) counts of pixels, of each image: rows true, columns predicted. Takes labels (N, ..., H, W).

    Where the true label is none of the `classes`, which IGNORED is not, a pixel counts nowhere.
    """
    counts = torch.zeros(len(truths), 256 * classes, dtype=torch.int64, device=truths.device)
    for part, found in zip(truths.flatten(1).split(_COUNTED, 1), predictions.flatten(1).split(_COUNTED, 1)):
        pairs = part.long() * classes + found
        counts.scatter_add_(1, pairs, pairs.new_ones(()).expand_as(pairs))  # which, unlike bincount, waits for no GPU
    return counts[:, : classes**2].reshape(-1, classes, classes)


def overlap_of(confusion):
    """(N, 3, C) counts, as count_overlap has them, of each class: of confusions (N, C, C)."""
    return torch.stack([confusion.diagonal(dim1=1, dim2=2), confusion.sum(1), confusion.sum(2)], dim=1)


def foreground_scores(both, predicted, true, pixels):
    """The Scores of one foreground, of each image's counts (N,) and of how many `pixels` there are in all."""
    per_image, pixels = dice_from_counts(both, predicted, true), max(1, pixels)
    return Scores(
        accuracy=(pixels - int((predicted + true - 2 * both).sum())) / pixels,
        dice=float(per_image.mean()),
        dice_nonempty=dice_of_choice(both, predicted, true),
        iou=float(iou_from_counts(both, predicted, true).mean()),
        predicted_share=float(predicted.sum() / pixels),
        true_share=float(true.sum() / pixels),
        per_image=per_image.tolist(),
    )


def class_scores(overlap, confusion, names):
    """The Scores of several classes, of each image's counts (N, 3, C), overlap_of, and the sum of confusions (C, C)."""
    both, predicted, true = np.moveaxis(np.asarray(overlap), 1, 0)
    confusion = np.asarray(confusion).astype(np.int64)
    held = predicted + true > 0
    dice = np.where(held, dice_from_counts(both, predicted, true), 0)
    images, there = held.sum(0), held.any(0)
    by_class = dice.sum(0) / np.maximum(images, 1)
    columns, rows, pixels = confusion.sum(0), confusion.sum(1), max(1, confusion.sum())
    iou = iou_from_counts(confusion.diagonal(), columns, rows)
    per_image = np.where(held.any(1), dice.sum(1) / np.maximum(held.sum(1), 1), 1.0)
    mean_dice = float(by_class[there].mean()) if there.any() else 1.0
    most = int(columns.argmax())
    return Scores(
        accuracy=float(confusion.trace() / pixels),
        dice=mean_dice,
        dice_nonempty=mean_dice,
        iou=float(iou[there].mean()) if there.any() else 1.0,
        predicted_share=float(columns[most] / pixels),
        true_share=float(rows[most] / pixels),
        per_image=per_image.tolist(),
        classes=dict(
            names=list(names),
            dice=[float(value) if has else None for value, has in zip(by_class, there)],
            iou=[float(value) if has else None for value, has in zip(iou, there)],
            share=(rows / pixels).tolist(),
            confusion=confusion.tolist(),
        ),
    )


def class_table(scores, most=20):
    """The classes of `scores` in lines of words, the lowest Dice first; of more than `most` the rest are counted.

    A class that is never right has 0.0000; one that no image holds, or is given, has no Dice.
    """
    found = scores.classes
    rows = list(zip(found["names"], found["dice"], found["iou"], found["share"]))
    rows.sort(key=lambda row: (row[1] is None, row[1]))
    printable = rows if len(rows) <= most else rows[: most - 1]
    width = min(30, max(len("class"), *(len(name) for name, *_ in printable)))
    lines = [f"  {'class':<{width}}    Dice     IoU  of pixels"]
    for name, dice, iou, share in printable:
        numbers = "     -       -" if dice is None else f"{dice:.4f}  {iou:.4f}"
        lines.append(f"  {name:<{width}}  {numbers}  {100 * share:7.2f} %")
    more = [f"  ... and {len(rows) - len(printable)} more"] if len(rows) > len(printable) else []
    return "\n".join(lines + more)


def class_columns(scores):
    """{"dice_NAME": Dice} of each class, for a row of the history; {} for one foreground.

    No column has the name of another one, such as dice_nonempty's.
    """
    columns = {}
    found = scores.classes or {"names": [], "dice": []}
    for index, (name, dice) in enumerate(zip(found["names"], found["dice"])):
        column = f"dice_{name}"
        while column in columns or column in vars(scores):
            column += f"_{index}"
        columns[column] = dice
    return columns


def symptom(scores):
    """What scores that cannot be right point to, in words, or None."""
    held = f"though the masks hold {100 * scores.true_share:.1f} %"
    if scores.classes:
        names, confusion = scores.classes["names"], np.array(scores.classes["confusion"])
        given, there = np.flatnonzero(confusion.sum(0)), np.flatnonzero(confusion.sum(1))
        if not len(given) == 1 < len(there):
            return None
        what = f"predicted as {names[given[0]]}, {held} of it, and {len(there)} classes in all"
    elif scores.predicted_share == 0 < scores.true_share:
        what = f"predicted as background, {held} of foreground"
    elif scores.predicted_share == 1 > scores.true_share:
        what = f"predicted as foreground, {held} of it"
    else:
        return None
    return (
        f"Every pixel of the validation images is {what}. In the first epochs this may pass. If it stays: look at "
        "the overlays of the audit (do the masks lie on what is meant?), then lower LEARNING_RATE."
    )
