"""Scores, worked out by hand or beside torchmetrics."""

import cv2
import numpy as np
import pytest
import torch
from fakes import EMPTY, FULL, LEFT, TOP, Given, Nearest, Threshold, class_loader, loader_of, random_labels
from torch.utils.data import DataLoader, TensorDataset

from parts import scores
from parts.advice import class_table, symptom
from parts.errors import UserError
from parts.masks import MaskRule
from parts.scores import (
    class_columns,
    count_confusion,
    count_labels,
    dice_from_counts,
    iou_from_counts,
    load_metrics,
    mean_metric,
    metric_of_each,
    overlap_of,
    selection_dice,
)
from unet import UNet
from utils import check_accuracy


@pytest.mark.parametrize(
    "prediction, truth, dice, iou, accuracy",
    [
        (LEFT, LEFT, 1, 1, 1),
        (LEFT, TOP, 0.5, 1 / 3, 0.5),
        (FULL, LEFT, 2 / 3, 0.5, 0.5),
        (EMPTY, EMPTY, 1, 1, 1),
        (EMPTY, FULL, 0, 0, 0),
        (FULL, EMPTY, 0, 0, 0),
    ],
)
def test_scores_worked_out_by_hand(prediction, truth, dice, iou, accuracy):
    scores = check_accuracy(loader_of([prediction], [truth]), Threshold())
    assert scores.dice == pytest.approx(dice) and scores.iou == pytest.approx(iou)
    assert scores.accuracy == pytest.approx(accuracy)


def test_dice_is_the_mean_over_images_whatever_the_batches():
    predictions, truths = [LEFT, FULL, EMPTY, TOP, TOP], [LEFT, LEFT, EMPTY, LEFT, TOP]
    expected = [1, 2 / 3, 1, 0.5, 1]
    for batch_size in (1, 2, 3, 5):
        scores = check_accuracy(loader_of(predictions, truths, batch_size), Threshold())
        assert scores.per_image == pytest.approx(expected) and scores.dice == pytest.approx(np.mean(expected))
    assert scores.predicted_share == 10 / 20 and scores.true_share == 8 / 20


def test_a_broken_count_would_be_seen():
    """The check fails when predictions are shifted by one image, or the masks are inverted."""
    predictions = [LEFT, TOP, FULL]
    right = check_accuracy(loader_of(predictions, predictions), Threshold()).dice
    shifted = check_accuracy(loader_of(predictions, predictions[1:] + predictions[:1]), Threshold()).dice
    inverted = check_accuracy(loader_of(predictions, (1 - np.array(predictions)).tolist()), Threshold()).dice
    assert right == 1 and shifted < 0.7 and inverted == 0


def test_counts_and_what_follows_from_them():
    counts = overlap_of(count_confusion(torch.tensor([LEFT]), torch.tensor([TOP]), 2))[0, :, 1].tolist()
    assert counts == [1, 2, 2, 4]  # in both, predicted, true, all
    assert dice_from_counts(np.array([1, 0]), np.array([2, 0]), np.array([2, 0])).tolist() == [0.5, 1]
    assert iou_from_counts(np.array([1, 0]), np.array([2, 0]), np.array([2, 0])).tolist() == pytest.approx([1 / 3, 1])


def test_what_chooses_goes_by_images_that_hold_something():
    both, predicted, true = np.array([[0, 0, 0], [5, 5, 5], [0, 3, 0]]).T
    assert selection_dice(both, predicted, true) == 0.5 and dice_from_counts(both, predicted, true).mean() == 2 / 3
    assert selection_dice(both * 0, predicted * 0, true * 0) == 1


def test_the_model_comes_back_in_the_mode_it_was_in():
    model = UNet(features=(2, 2)).train()
    loader = DataLoader(TensorDataset(torch.zeros(2, 3, 8, 8), torch.zeros(2, 8, 8)), batch_size=1)
    before = model.state_dict()["encoder.0.conv.1.running_mean"].clone()
    check_accuracy(loader, model)
    assert model.training and torch.equal(before, model.state_dict()["encoder.0.conv.1.running_mean"])
    check_accuracy(loader, model.eval())
    assert not model.training


def test_symptoms_are_told():
    nothing = check_accuracy(loader_of([EMPTY], [LEFT]), Threshold())
    everything = check_accuracy(loader_of([FULL], [LEFT]), Threshold())
    fine = check_accuracy(loader_of([LEFT], [LEFT]), Threshold())
    assert "predicted as background, though" in symptom(nothing) and "50.0 %" in symptom(nothing)
    assert "predicted as foreground, though" in symptom(everything) and symptom(fine) is None


# ---- several classes, and pixels that are ignored


def test_scores_of_classes_worked_out_by_hand(capsys):
    """Two images of four pixels; the last class is nowhere, void is the last pixel."""
    predictions = [[[0, 1], [1, 2]], [[0, 0], [0, 1]]]
    truths = [[[0, 1], [0, 255]], [[0, 0], [0, 0]]]
    loader = class_loader(predictions, truths, "sky", "road", "car", "pole")
    for batch_size in (1, 2):
        scores = check_accuracy(DataLoader(loader.dataset, batch_size), Nearest(4))
    sky, road = [(2 / 3 + 6 / 7) / 2, 4 / 6], [(2 / 3 + 0) / 2, 1 / 3]  # each Dice by image, IoU of all pixels
    assert scores.classes["names"] == ["sky", "road", "car", "pole"]
    assert scores.classes["dice"] == [pytest.approx(sky[0]), pytest.approx(road[0]), None, None]
    assert scores.classes["iou"] == [pytest.approx(sky[1]), pytest.approx(road[1]), None, None]
    assert scores.classes["share"] == pytest.approx([6 / 7, 1 / 7, 0, 0])
    assert scores.classes["confusion"] == [[4, 2, 0, 0], [0, 1, 0, 0], [0] * 4, [0] * 4]
    assert scores.accuracy == 5 / 7 and scores.per_image == pytest.approx([2 / 3, 3 / 7])
    assert scores.dice == scores.dice_nonempty == pytest.approx((sky[0] + road[0]) / 2)
    assert scores.iou == pytest.approx((sky[1] + road[1]) / 2)
    assert (scores.predicted_share, scores.true_share) == (4 / 7, 6 / 7)
    lines = capsys.readouterr().out.splitlines()[-6:]
    assert [line.split()[0] for line in lines] == ["class", "sky", "road", "car", "pole", "Got"], "in their own order"
    assert "0.3333  0.3333    14.29 %  lowest" in lines[2] and lines[3].split()[1:3] == ["-", "-"]
    assert "Got 5/7 pixels right" in lines[5] and lines[5].endswith(": means over 2 classes")


def test_a_confusion_has_true_rows_and_predicted_columns():
    confusion = count_confusion(torch.tensor([[[0, 1, 1, 2]]]), torch.tensor([[[0, 0, 2, 255]]], dtype=torch.uint8), 3)
    assert confusion.tolist() == [[[1, 1, 0], [0, 0, 0], [0, 1, 0]]]
    assert overlap_of(confusion)[0].tolist() == [[1, 0, 0], [1, 2, 0], [2, 0, 1], [3, 3, 3]]


def edges_by_distances(mask, known):
    """The boundary of a mask, pixel by pixel."""
    padded = np.pad(known & ~mask, 1)
    rows, columns = np.nonzero(mask)
    return [place for place in zip(rows, columns) if padded[place[0] : place[0] + 3, place[1] : place[1] + 3].any()]


def boundary_by_distances(labels, truth, label, tolerance):
    """The boundary score from the distances of all pairs of boundary pixels."""
    known = truth != 255
    predicted, true = (edges_by_distances((each == label) & known, known) for each in (labels, truth))
    if not predicted and not true:
        return np.nan
    if not predicted or not true:
        return 0
    distances = np.abs(np.array(predicted)[:, None] - np.array(true)[None]).max(2)
    precise, recalled = (distances.min(1) <= tolerance).mean(), (distances.min(0) <= tolerance).mean()
    return 2 * precise * recalled / max(1e-9, precise + recalled)


def test_the_boundary_score_is_that_of_distances_between_boundaries():
    """On drawn discs, bars and polygons, moved by some pixels, with an ignored corner; one image has nothing."""
    draw, size = np.random.default_rng(0), (120, 240)  # whose diagonal of 268 makes the tolerance 2
    truths, predictions = np.zeros((2, 6, *size), np.uint8)
    for index, (truth, prediction) in enumerate(zip(truths[:5], predictions)):
        for label, more in ((1, 0), (2, index)):
            x, y, side = (int(draw.integers(*limits)) for limits in ((30, 200), (20, 100), (5, 25)))
            cv2.circle(truth, (x, y), side, label, -1)
            cv2.circle(prediction, (x + more, y), side + index % 2, label, -1)
        cv2.fillPoly(truth, [draw.integers(0, 120, (4, 2), np.int32)], 1)
        cv2.rectangle(prediction, (0, 3 * index), (40, 40), 1, -1)
        truth[80:, 150 : 150 + 20 * index] = 255
    expected = [[boundary_by_distances(*pair, label, 2) for pair in zip(predictions, truths)] for label in range(3)]
    chosen = load_metrics(["boundary"])
    loader = class_loader(predictions, truths, "sky", "disc", "dot", batch_size=4)
    scores_of_classes = check_accuracy(loader, Nearest(3), metrics=chosen)
    assert scores_of_classes.metrics["boundary"] == pytest.approx(np.mean([np.nanmean(row) for row in expected]))
    assert 0.2 < scores_of_classes.metrics["boundary"] < 0.95 and np.isnan(expected[1][5])
    rule = MaskRule(classes=(0, 1, 2), names=("sky", "disc", "dot"))
    for label in range(3):
        counts, _ = count_labels(torch.from_numpy(predictions), torch.from_numpy(truths), rule, chosen)
        values = metric_of_each(chosen["boundary"], counts.numpy(), label)
        assert values == pytest.approx(expected[label], nan_ok=True)
    counts, _ = count_labels(torch.from_numpy(truths % 255), torch.from_numpy(truths), rule, chosen)
    assert mean_metric(chosen["boundary"], counts.numpy(), range(3)) == 1


def test_a_large_images_confusion_is_counted_in_parts(monkeypatch):
    found, true = torch.randint(0, 3, (2, 2, 20, 30), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    whole = count_confusion(found, true, 3)
    monkeypatch.setattr(scores, "_COUNTED", 70)
    assert torch.equal(count_confusion(found, true, 3), whole) and whole.sum() == 1200


@pytest.mark.parametrize("classes", [2, 3, 12])
def test_scores_of_classes_are_those_of_torchmetrics(classes):
    metrics = pytest.importorskip("torchmetrics.classification", reason="torchmetrics is not installed")
    predictions, truths = random_labels(classes)
    names = map(str, range(classes))
    scores = check_accuracy(class_loader(predictions, truths, *names, batch_size=3), Nearest(classes))
    found, given = torch.tensor(predictions).long(), torch.tensor(truths).long()
    options = dict(num_classes=classes, ignore_index=255)
    assert scores.classes["confusion"] == metrics.MulticlassConfusionMatrix(**options)(found, given).tolist()
    iou = metrics.MulticlassJaccardIndex(**options, average=None)(found, given)
    assert scores.classes["iou"] == pytest.approx(iou.tolist()) and scores.iou == pytest.approx(float(iou.mean()))
    options |= dict(average=None, multidim_average="samplewise")
    dice, other = (metrics.MulticlassF1Score(**options, zero_division=it)(found, given) for it in (0, 1))
    dice[dice != other] = torch.nan  # F1 is Dice; an image neither holds this class nor is given it
    assert dice.isnan().any() == (classes > 2)
    assert scores.classes["dice"] == pytest.approx(dice.nanmean(0).tolist())
    assert scores.per_image == pytest.approx(dice.nanmean(1).tolist())
    assert scores.dice == pytest.approx(float(dice.nanmean(0).mean()))


def test_ignored_pixels_of_one_foreground_count_nowhere():
    metrics = pytest.importorskip("torchmetrics.classification", reason="torchmetrics is not installed")
    predictions, truths = random_labels(2)
    predictions[0], truths[1][truths[1] < 255], predictions[1] = 0, 0, 0
    loader = DataLoader(Given(predictions * 255, truths, MaskRule(ignored=(7,))), batch_size=3)
    scores = check_accuracy(loader, Threshold())
    found, given = torch.tensor(predictions).long(), torch.tensor(truths).long()
    assert scores.accuracy == pytest.approx(float(metrics.BinaryAccuracy(ignore_index=255)(found, given)))
    options = dict(ignore_index=255, multidim_average="samplewise", zero_division=1)
    assert scores.per_image == pytest.approx(metrics.BinaryF1Score(**options)(found, given).tolist())
    iou = [metrics.BinaryJaccardIndex(ignore_index=255, zero_division=1)(*pair) for pair in zip(found, given)]
    assert scores.iou == pytest.approx(float(torch.stack(iou).mean())) and scores.classes is None
    known = truths < 255
    assert scores.predicted_share == predictions[known].mean() and scores.true_share == truths[known].mean()
    assert scores.per_image[1] == 1 and scores.dice_nonempty < scores.dice


def test_two_classes_and_one_foreground_tell_the_same_of_the_foreground():
    predictions, truths = random_labels(2, ignored=0)
    both = check_accuracy(class_loader(predictions, truths, "0", "255"), Nearest(2))
    one = check_accuracy(loader_of(predictions, truths), Threshold())
    assert both.classes["dice"][1] == pytest.approx(one.dice) and both.accuracy == one.accuracy


def test_two_classes_are_not_one_foreground():
    """The background is one of the classes then, and an empty image has no Dice of the foreground instead of 1."""
    predictions, truths = [LEFT, EMPTY], [TOP, EMPTY]
    one = check_accuracy(loader_of(predictions, truths), Threshold())
    assert (one.per_image, one.dice, one.dice_nonempty) == ([0.5, 1], 0.75, 0.5)
    assert (one.iou, one.classes) == (pytest.approx((1 / 3 + 1) / 2), None)
    two = check_accuracy(class_loader(predictions, truths, "background", "foreground"), Nearest(2))
    assert (two.classes["dice"], two.per_image) == ([0.75, 0.5], [0.5, 1])
    assert two.dice == two.dice_nonempty == 0.625
    assert two.classes["iou"] == pytest.approx([5 / 7, 1 / 3])


def test_images_that_are_wholly_ignored_change_nothing():
    predictions, truths = random_labels(3)
    before = check_accuracy(class_loader(predictions[1:], truths[1:], "a", "b", "c"), Nearest(3))
    truths[0] = 255
    after = check_accuracy(class_loader(predictions, truths, "a", "b", "c"), Nearest(3))
    assert after.classes == before.classes and after.per_image == [1.0, *before.per_image]
    nothing = check_accuracy(class_loader(predictions[:1], truths[:1], "a", "b", "c"), Nearest(3))
    assert (nothing.dice, nothing.iou, nothing.accuracy) == (1, 1, 0)


@pytest.mark.parametrize(
    "loader, network, words",
    [
        (class_loader([LEFT], [LEFT], "a", "b"), Nearest(3), "has 3 output channels, and these masks need 2"),
        (class_loader([LEFT], [LEFT], "a", "b"), Threshold(), "has 1 output channels, and these masks need 2"),
        (loader_of([LEFT], [LEFT]), Nearest(2), "has 2 output channels, and these masks need 1"),
    ],
)
def test_a_network_of_other_channels_than_the_masks_is_told(loader, network, words):
    with pytest.raises(UserError, match=words):
        check_accuracy(loader, network)


def test_a_long_table_is_cut_and_columns_do_not_collide():
    names = [f"class{index:02d}" for index in range(40)]
    predictions, truths = random_labels(40, ignored=0)
    predictions[predictions == 7] = 8
    scores = check_accuracy(class_loader(predictions, truths, *names), Nearest(40))
    lines = class_table(scores).splitlines()
    assert len(lines) == 21 and lines[-1].strip() == "... and 21 more"
    lowest = [line.split()[:3] for line in lines if line.endswith("lowest")]
    assert lowest == [["class07", "0.0000", "0.0000"]], "never predicted"
    assert len(class_table(scores, 40).splitlines()) == 41
    columns = class_columns(scores)
    assert columns["dice_class07"] == 0 and list(columns.values()) == scores.classes["dice"]
    scores.classes["names"][:3] = ["nonempty", "nonempty_0", "class05"]
    columns = class_columns(scores)
    assert len(columns) == 40 and not columns.keys() & vars(scores).keys()
    assert class_columns(check_accuracy(loader_of([LEFT], [LEFT]), Threshold())) == {}


def test_that_one_class_is_given_to_everything_is_told():
    predictions, truths = random_labels(3)
    scores = check_accuracy(class_loader(predictions * 0 + 1, truths, "sky", "road", "car"), Nearest(3))
    share = scores.classes["share"]
    assert (scores.predicted_share, scores.true_share) == (1, share[1]) and share[1] < share[0]
    words = symptom(scores)
    assert "predicted as road" in words and "3 classes" in words and f"{100 * share[1]:.1f} %" in words
    alone = check_accuracy(class_loader(predictions * 0 + 1, truths * 0 + 1, "sky", "road", "car"), Nearest(3))
    assert symptom(alone) is None and alone.dice == 1
