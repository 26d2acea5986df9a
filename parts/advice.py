"""What the numbers of a run mean, in words: a line for each epoch, tables of classes, and advice that fits the case."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from parts.errors import counted
from parts.scores import Scores

_FEW_STEPS = 200  # of the optimizer: a network from random weights has hardly begun to learn with fewer
_ENOUGH_STEPS = 800  # are advised then
_NAMED = 12  # classes in a line


# ---- scores


def summary(scores: Scores, pixels: int) -> str:
    """The scores as they are printed, for a validation of `pixels` pixels: with classes a table of them first."""
    lines, detail = [], ""
    if scores.classes:
        lines.append(class_table(scores))
        count = sum(dice is not None for dice in scores.classes["dice"])
        detail = f": means over {count} classes"
    elif scores.dice_nonempty != scores.dice:
        detail = f"; Dice {scores.dice_nonempty:.4f} of images that hold something or are predicted to"
    further = "".join(f", {name} {score_text(value)}" for name, value in scores.metrics.items())
    lines.append(
        f"Got {round(scores.accuracy * pixels)}/{pixels} pixels right, accuracy {100 * scores.accuracy:.2f} %; "
        f"Dice {scores.dice:.4f}, IoU {scores.iou:.4f}{further}{detail}"
    )
    return "\n".join(lines)


def score_line(scores: Scores) -> str:
    """The scores in one short line."""
    items = dict(dice=scores.dice, iou=scores.iou) | scores.metrics
    return "  ".join(f"{_SPELLED.get(name, name)} {score_text(value)}" for name, value in items.items())


def class_table(scores: Scores, most: int = 20) -> str:
    """The classes of `scores` in lines of words, in their order, the lowest Dice marked.

    Of more than `most` those with the lowest Dice are shown, and the rest counted. A class that is never right has
    0.0000; one that is neither true nor predicted in any image has no Dice.
    """
    classes = scores.classes or {}
    rows = list(zip(classes["names"], classes["dice"], classes["iou"], classes["share"]))
    order = sorted(range(len(rows)), key=lambda index: (rows[index][1] is None, rows[index][1]))  # the lowest first
    if len(rows) > most:
        order = order[: most - 1]  # the last line counts the rest
    shown = [rows[index] for index in sorted(order)]
    width = min(30, max(len("class"), *(len(row[0]) for row in shown)))
    lines = [f"  {'class':<{width}}    Dice     IoU  of pixels"]
    for name, dice, iou, share in shown:
        numbers = "     -       -" if dice is None else f"{dice:.4f}  {iou:.4f}"
        mark = "  lowest" if name == rows[order[0]][0] and dice is not None else ""
        lines.append(f"  {name:<{width}}  {numbers}  {100 * share:7.2f} %{mark}")
    if len(shown) < len(rows):
        lines.append(f"  ... and {len(rows) - len(shown)} more")
    return "\n".join(lines)


def class_line(scores: Scores) -> str:
    """The Dice of each class in one line, in the order of the classes, with the lowest one marked."""
    classes = scores.classes or {}
    known = [(dice, index) for index, dice in enumerate(classes["dice"]) if dice is not None]
    lowest = min(known, default=(0, -1))[1]
    items = []
    for index, (name, dice) in enumerate(list(zip(classes["names"], classes["dice"]))[:_NAMED]):
        mark = " (lowest)" if index == lowest else ""
        items.append(f"{name[:20]} {'-' if dice is None else f'{dice:.3f}'}{mark}")
    if len(classes["names"]) > _NAMED:
        items.append(f"and {len(classes['names']) - _NAMED} more")
    return ", ".join(items)


def epoch_line(row: dict[str, Any], is_best: bool, epochs: int, seconds: float) -> str:
    """An epoch in one line: its row of the history, of how many, how long it took and how long the rest will take."""
    items = [f"epoch {row['epoch']:>{len(str(epochs))}}/{epochs}", f"loss {row['loss']:.4f}"]
    if row.get("val_loss") is not None:
        items.append(f"val loss {row['val_loss']:.4f}")
    items.append(f"Dice {row['dice']:.4f}{' (best)' if is_best else ''}")
    if row["dice_nonempty"] != row["dice"]:
        items.append(f"of images that are not empty {row['dice_nonempty']:.4f}")
    shown = [name for name in row if name not in _NOT_SHOWN and not name.startswith("dice_")]
    items += [f"{_SPELLED.get(name, name)} {score_text(row[name])}" for name in shown if row[name] is not None]
    left = seconds * (epochs - row["epoch"])
    items.append(f"{duration(seconds)}, {duration(left)} left" if left else duration(seconds))
    return "  ".join(items)


def score_text(value: float) -> str:
    """A score; "-" where it is not a number, as the precision where nothing is predicted."""
    return "-" if math.isnan(value) else f"{value:.4f}"


_SPELLED = dict(dice="Dice", iou="IoU")
_NOT_SHOWN = ("epoch", "loss", "val_loss", "accuracy", "dice", "learning_rate")


def duration(seconds: float) -> str:
    """A time in words: 9 s, 2 min, 1.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


# ---- advice


def symptom(scores: Scores) -> str | None:
    """Says that one label is predicted everywhere, which cannot be right; None where it is not so."""
    held = f"though the masks hold {100 * scores.true_share:.1f} %"
    if scores.classes:
        names, true = scores.classes["names"], np.flatnonzero(scores.classes["share"])
        predicted = np.flatnonzero(_predicted_pixels(scores.classes))
        if _overlap(scores.classes) and len(true) and not len(predicted):
            return "No pixel of the validation images is predicted as one of the classes."
        if len(predicted) != 1 or len(true) < 2 or scores.predicted_share < 1:
            return None
        prediction = f"{names[predicted[0]]}, {held} of it, and {len(true)} classes in all"
    elif scores.predicted_share == 0 < scores.true_share:
        prediction = f"background, {held} of foreground"
    elif scores.predicted_share == 1 > scores.true_share:
        prediction = f"foreground, {held} of it"
    else:
        return None
    return f"Every pixel of the validation images is predicted as {prediction}."


def _overlap(classes: dict[str, Any]) -> bool:
    """Whether a pixel may be of several of the classes, of Scores.classes: then it may be of none, too."""
    return "predicted" in classes


def _predicted_pixels(classes: dict[str, Any]) -> np.ndarray:
    """How many pixels each class is predicted in, of Scores.classes."""
    return np.array(classes["predicted"]) if _overlap(classes) else np.array(classes["confusion"]).sum(0)


def verdict(history: Sequence[dict[str, Any]], scores: Scores, steps: int, batch_size: int) -> list[str]:
    """What a run of `steps` has come to and what to turn, as sentences: none where nothing can be said.

    `history`: its rows. `scores`: those of the last epoch.
    """
    best = max(row["dice_nonempty"] for row in history)
    nothing_learnt = [*_of_nothing_learnt(best, scores, steps, batch_size, len(history))]
    return nothing_learnt or [*_of_missed_classes(scores), *_of_overfitting(history), *_of_rising(history)]


def _of_nothing_learnt(best: float, scores: Scores, steps: int, batch_size: int, epochs: int) -> Iterator[str]:
    """A best Dice that needs no network, or a run too short to tell."""
    is_trivial = best <= scores.baseline + 0.02 and best < 0.9
    if is_trivial:
        label = "foreground" if scores.classes is None else "the most frequent class"
        yield (
            f"To call every pixel {label} would score {scores.baseline:.4f}: "
            "the network has learnt nothing yet that can be used."
        )
    if best < 0.95 and (advice := few_steps(steps, batch_size, epochs)):
        yield advice
    elif is_trivial:
        yield (
            "Look at saved_images/audit.png: do the masks lie on what is meant? If they do, lower LEARNING_RATE, and "
            "then give it more epochs."
        )


def few_steps(steps: int, batch_size: int, epochs: int) -> str:
    """Says that a run of so few steps can hardly learn, and what makes more of them; "" where there are enough."""
    if steps >= _FEW_STEPS:
        return ""
    smaller = min(batch_size, 4)
    longer = math.ceil(_ENOUGH_STEPS * epochs * smaller / batch_size / max(1, steps))
    return (
        f"{counted(steps, 'step')} in all, and a network from random weights needs some hundreds: "
        f"--batch-size {smaller} --num-epochs {longer} would make {_ENOUGH_STEPS}. A batch is one step, however "
        "large it is."
    )


def _of_missed_classes(scores: Scores) -> Iterator[str]:
    """Classes that are there and are predicted nowhere, where others are learnt."""
    if not scores.classes:
        return
    predicted = _predicted_pixels(scores.classes)
    missed = [
        f"{name} ({100 * share:.2g} % of the pixels)"
        for name, share, pixels in zip(scores.classes["names"], scores.classes["share"], predicted)
        if share > 0 and pixels == 0
    ]
    if missed and (_overlap(scores.classes) or (predicted > 0).sum() > 1):
        yield (
            f'Predicted nowhere: {", ".join(missed[:6])}. LOSS = "focal+dice" (--loss focal+dice) lets hard pixels '
            "count more; another start (--seed 1) or more FEATURES may find them too."
        )


def _of_overfitting(history: Sequence[dict[str, Any]]) -> Iterator[str]:
    """A validation loss that has risen while that of training fell."""
    losses = [row["val_loss"] for row in history if row.get("val_loss") is not None]
    if len(history) < 5 or len(losses) < len(history):
        return
    lowest = int(np.argmin(losses))
    risen = losses[-1] > 1.15 * losses[lowest] and history[-1]["loss"] < history[lowest]["loss"]
    if lowest < 0.7 * len(history) and risen:
        yield (
            f"Since epoch {lowest + 1} the validation loss has risen ({losses[lowest]:.3f} to {losses[-1]:.3f}) while "
            "that of training fell: the network learns its images by heart. More images, AUGMENT, SCALE and ROTATE, "
            "or fewer epochs."
        )


def _of_rising(history: Sequence[dict[str, Any]]) -> Iterator[str]:
    """A Dice that was still rising at the end."""
    dice = [row["dice_nonempty"] for row in history]
    before = max(dice[: -max(1, len(dice) // 5)], default=1.0)
    if len(dice) > 2 and max(dice) == dice[-1] and dice[-1] > before + 0.01:
        yield f"Dice was rising still: more epochs (--num-epochs {2 * len(history)}, from the start) would gain more."
