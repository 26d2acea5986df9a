"""What the numbers of a run mean, in words."""

import numpy as np
import pytest

from parts.advice import class_line, duration, epoch_line, score_line, symptom, verdict
from parts.scores import Scores, scores_of


def rows(dice, val_loss=None, loss=None):
    """A history of these values by epoch."""
    losses = loss or np.linspace(1, 0.2, len(dice)).tolist()
    val_losses = val_loss or losses
    return [
        dict(epoch=epoch, loss=a, val_loss=b, accuracy=0.9, dice=c, dice_nonempty=c, iou=0.8, learning_rate=0.1)
        for epoch, (a, b, c) in enumerate(zip(losses, val_losses, dice), 1)
    ]


def foreground_scores(**changes):
    values = dict(accuracy=0.9, dice=0.5, dice_nonempty=0.5, iou=0.4, predicted_share=0.1, true_share=0.1)
    return Scores(**values | dict(per_image=[0.5], baseline=0.2) | changes)


def test_an_epoch_is_one_line():
    (row,) = rows([0.924])
    line = epoch_line(row | dict(precision=0.9), True, 20, 9.2)
    assert line == (
        "epoch  1/20  loss 1.0000  val loss 1.0000  Dice 0.9240 (best)  IoU 0.8000  precision 0.9000  9 s, 3 min left"
    )
    line = epoch_line(row | dict(val_loss=None, dice_nonempty=0.9, dice_road=0.1), False, 1, 6000)
    assert "precision -" in epoch_line(row | dict(precision=float("nan")), True, 1, 1)
    assert line == "epoch 1/1  loss 1.0000  Dice 0.9240  of images that are not empty 0.9000  IoU 0.8000  1.7 h"
    assert [duration(seconds) for seconds in (0.4, 89, 91, 5399, 5401)] == ["0 s", "89 s", "2 min", "90 min", "1.5 h"]


def with_pixels(overlap):
    """Counts with their fourth row, of all pixels."""
    return np.concatenate([overlap, np.broadcast_to(overlap[:, 2:].sum(2, keepdims=True), overlap[:, 2:].shape)], 1)


def test_classes_stand_in_their_order_with_the_lowest_marked():
    overlap = np.array([[[5, 0, 0, 1], [6, 1, 0, 1], [5, 2, 0, 1]]])
    scores = scores_of(with_pixels(overlap), np.diag([5, 0, 0, 1]), ("sky", "road", "car", "pole"))
    assert class_line(scores) == "sky 0.909, road 0.000 (lowest), car -, pole 1.000"


@pytest.mark.parametrize(
    "history, scores, steps, said, unsaid",
    [
        (rows([0.15, 0.2, 0.2]), foreground_scores(), 18, ["18 steps in all", "nothing yet"], "LEARNING_RATE"),
        (rows([0.15, 0.2, 0.2]), foreground_scores(), 5000, ["nothing yet", "LEARNING_RATE"], "steps"),
        (rows([0.5, 0.6, 0.7]), foreground_scores(), 5000, ["rising still"], "nothing"),
        (rows([0.97, 0.97, 0.971]), foreground_scores(), 30, [], "steps"),
        (
            rows([0.7] * 8, [0.5, 0.3, 0.2, 0.25, 0.3, 0.3, 0.4, 0.5]),
            foreground_scores(),
            5000,
            ["Since epoch 3"],
            "steps",
        ),
        (rows([0.7] * 8, [0.5, 0.3, 0.2, 0.2, 0.2, 0.2, 0.2, 0.21]), foreground_scores(), 5000, [], "Since"),
    ],
)
def test_a_verdict_fits_the_case(history, scores, steps, said, unsaid):
    words = " ".join(verdict(history, scores, steps, 16))
    assert all(part in words for part in said) and unsaid not in words and (said or not words)


def test_the_baseline_is_one_label_everywhere():
    overlap = np.array([[[0, 2], [0, 10], [8, 2]], [[0, 4], [0, 10], [6, 4]]])
    everything = scores_of(with_pixels(overlap), np.zeros((2, 2)), ())
    assert everything.baseline == pytest.approx(everything.dice) == pytest.approx((4 / 12 + 8 / 14) / 2)
    overlap = np.array([[[8, 0, 0], [10, 0, 0], [8, 2, 0]]])
    sky = scores_of(with_pixels(overlap), np.array([[8, 0, 0], [2, 0, 0], [0] * 3]), "abc")
    assert sky.baseline == pytest.approx(sky.dice) == pytest.approx(16 / 18 / 2)


def test_classes_that_are_predicted_nowhere_are_named():
    overlap = np.array([[[80, 10, 0], [85, 15, 0], [80, 19, 1]]])
    scores = scores_of(with_pixels(overlap), np.array([[80, 5, 0], [5, 10, 0], [0, 1, 0]]), ("bg", "disc", "dot"))
    words = " ".join(verdict(rows([0.6] * 3), scores, 5000, 4))
    assert "Predicted nowhere: dot (0.99 % of the pixels). LOSS" in words


def test_overlapping_classes_that_are_predicted_nowhere_are_named():
    """A pixel may be of none of them."""
    sets = np.array([[70, 2, 0, 0], [3, 20, 0, 0], [0, 0, 0, 0], [1, 4, 0, 0]])  # of background, organ, spot, both
    scores = scores_of(with_pixels(np.array([[[24, 0], [26, 0], [28, 5]]])), sets, ("organ", "spot"))
    words = " ".join(verdict(rows([0.6] * 3), scores, 5000, 4))
    assert "Predicted nowhere: spot (5 % of the pixels). LOSS" in words and symptom(scores) is None
    nothing = scores_of(
        with_pixels(np.array([[[0, 0], [0, 0], [28, 5]]])), sets * [[1], [0], [0], [0]], ("organ", "spot")
    )
    assert symptom(nothing) == "No pixel of the validation images is predicted as one of the classes."


def test_a_score_that_has_no_number_is_a_dash():
    assert score_line(foreground_scores(metrics=dict(precision=float("nan")))).endswith("precision -")
