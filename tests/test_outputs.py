"""What predict.py makes of pictures: overlays, probabilities, masks of classes, scores, thresholds, submissions."""

import csv
import gzip
import re
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from predicting import NAMES, RULES, files_in, load, save, scores_in, to_images

from parts import pictures
from parts.errors import UserError
from parts.images import read_image, resize_image
from parts.mask_rules import find_mask_rule
from parts.masks import IGNORED, MaskRule, encode_mask, read_mask
from parts.names import Picture
from parts.outputs import (
    PictureScores,
    Submission,
    Threshold,
    UniformMasks,
    best_threshold,
    histogram,
    run_lengths,
)
from parts.predictions import Result
from parts.scores import count_confusion, dice_from_counts, overlap_of
from parts.spec import DataSpec
from parts.truths import Truths


def picture_of(name):
    """A Picture that is nowhere."""
    return Picture(Path(f"{name}.jpg"), Path(str(name)))


# ---- files of every picture


def test_overlays_and_probability_maps_change_no_mask(photos, call):
    _, plain = call(photos)
    before = {path.relative_to(plain): load(path) for path in plain.rglob("*.png")}
    for bits, kind in ((8, np.uint8), (16, np.uint16)):
        status, out = call(photos, "--overlays", "--probabilities", bits)
        assert status == 0
        for name, mask in before.items():
            chances = load(out / "probabilities" / name)
            assert (load(out / name) == mask).all() and chances.dtype == kind
            assert ((chances > np.iinfo(kind).max / 2) == (mask > 0)).mean() > 0.99
            assert load(out / "overlays" / name.with_suffix(".jpg")).shape == (*mask.shape, 3)


def test_a_picture_too_long_for_an_overlay_is_told_and_its_mask_written(photos, call, capsys):
    Image.new("RGB", (70_000, 3)).save(photos / "long.png")
    status, out = call(photos / "long.png", photos / "grey.png", "--overlays")
    assert status == 1 and "long.png: too long for an overlay" in capsys.readouterr().err
    assert load(out / "long.png").shape == (3, 70_000) and (out / "overlays" / "grey.jpg").is_file()


def labels_by_hand(network, path, size=(96, 128)):
    """The logits of a picture's classes, enlarged to its own size."""
    image = read_image(path)
    with torch.no_grad():
        logits = network(to_images(resize_image(image, size)))[0].numpy()
    return np.stack([resize_image(plane, image.shape[:2]) for plane in logits])


@pytest.mark.parametrize("kind", RULES)
def test_classes_are_written_as_the_masks_of_training_have_them(
    photos, call, classes_network, classes_checkpoint, capsys, kind
):
    mask_rule = RULES[kind]
    status, out = call(photos, "--checkpoint", classes_checkpoint(mask_rule))
    assert status == 0 and len(files_in(out)) == 5
    assert "look black" not in capsys.readouterr().out
    held = set()
    for path in photos.rglob("*.*"):
        if path.suffix != ".txt":
            written = out / path.relative_to(photos).with_suffix(".png")
            labels = read_mask(written, mask_rule)
            logits = labels_by_hand(classes_network, path)
            best, second = np.sort(logits, axis=0)[[-1, -2]]
            assert (labels == logits.argmax(0))[best - second > 1e-3].all(), path
            assert (load(written) == np.asarray(encode_mask(labels, mask_rule))).all()
            held |= set(np.unique(labels).tolist())
    assert held == {0, 1, 2, 3}
    spec = DataSpec(classes=dict(zip(mask_rule.names, mask_rule.classes)))
    read_back = find_mask_rule([*out.rglob("*.png")], spec, num_workers=1)
    assert (read_back.classes, read_back.kind) == (mask_rule.classes, mask_rule.kind)
    assert bool(read_back.colours) == bool(mask_rule.colours)


def test_masks_of_classes_get_a_palette_that_changes_no_value(photos, call, classes_checkpoint, capsys):
    mask_rule = replace(RULES["numbers"], classes=(0, 3, 8, 7))
    path = classes_checkpoint(mask_rule)
    _, plain = call(photos, "--checkpoint", path, "--output-dir", photos / "plain")[0], photos / "plain"
    told = capsys.readouterr().out
    assert "up to 8, which look black" in told and "--overlays" in told and "--palette" in told
    status, out = call(photos, "--checkpoint", path, "--palette")
    assert status == 0 and "look black" not in capsys.readouterr().out
    table = np.zeros((256, 3), np.uint8)
    table[list(mask_rule.classes)] = pictures.Palette.of(mask_rule).colours
    written = [file for file in out.rglob("*.png") if "plain" not in file.parts]
    assert len(written) == 5
    for file in written:
        before = plain / file.relative_to(out)
        with Image.open(file) as picture:
            assert picture.mode == "P" and (np.asarray(picture) == load(before)).all()
            assert (np.asarray(picture.convert("RGB")) == table[load(before)]).all()
        assert (read_mask(file, mask_rule) == read_mask(before, mask_rule)).all()
    spec = DataSpec(classes=dict(zip(mask_rule.names, mask_rule.classes)))
    read_back = find_mask_rule(written, spec, num_workers=1)
    assert (read_mask(file, read_back) == read_mask(before, mask_rule)).all() and read_back.kind == "numbers"
    with pytest.raises(UserError, match="PALETTE colours masks of classes with values up to 255.*300"):
        call(photos, "--checkpoint", classes_checkpoint(), "--palette")


def test_a_map_of_each_class_and_overlays_with_one_legend(photos, call, classes_checkpoint):
    status, out = call(photos, "--checkpoint", classes_checkpoint(), "--probabilities", 16, "--overlays")
    assert status == 0
    for name in ("a", "sub/b.c"):
        maps = np.stack([load(out / "probabilities" / f"{name}_{kind}.png") for kind in ("0", "road", "a_b", "300")])
        labels = read_mask(out / f"{name}.png", RULES["numbers"])
        assert maps[0].shape == labels.shape and np.abs(maps.astype(int).sum(0) - 65535).max() <= 4
        chosen = np.take_along_axis(maps, labels[None].astype(int), 0)[0]
        assert (chosen == maps.max(0)).mean() > 0.999
        image, palette = read_image(next(photos.rglob(f"{name}.*"))), pictures.Palette.of(RULES["numbers"])
        pictures.save_image(out / "drawn.jpg", pictures.overlay(image, labels, palette))
        assert (load(out / "overlays" / f"{name}.jpg") == load(out / "drawn.jpg")).all()
    assert (out / "overlays" / "legend.png").is_file()
    assert len(list((out / "probabilities").rglob("*.png"))) == 20


def test_classes_of_a_picture_in_windows(photos, call, classes_checkpoint, tmp_path):
    """At its own size they are decided band by band: the same masks, maps and scores as in one piece."""
    path, files, truths = classes_checkpoint(), [photos / "a.jpg", photos / "sub" / "b.c.png"], tmp_path / "truths"
    own = ("--checkpoint", path, "--image-size", "own", "--probabilities", 8)
    _, whole = call(*files, *own, "--output-dir", tmp_path / "whole")[0], tmp_path / "whole"
    truths.mkdir()
    (truths / "b.c.png").write_bytes((whole / "b.c.png").read_bytes())
    small = read_mask(whole / "a.png", RULES["numbers"], (50, 75))  # scored at its own size
    encode_mask(small, RULES["numbers"]).save(truths / "a.png")
    status, out = call(*files, *own, "--window", 64, "--masks", truths, "--overlays")
    assert status == 0
    for name in ("a.png", "b.c.png", "probabilities/a_road.png", "probabilities/b.c_300.png"):
        one, other = load(whole / name), load(out / name)
        assert one.shape == other.shape and (np.abs(one.astype(int) - other) > 1).mean() < 1e-3, name
    assert all(float(row["dice"]) > 0.995 for row in scores_in(out).values())


def test_a_file_that_does_not_tell_its_classes_has_numbers(photos, call, classes_network, tmp_path, capsys):
    torch.save(classes_network.state_dict(), tmp_path / "foreign.pth")
    status, out = call(photos / "a.jpg", "--checkpoint", tmp_path / "foreign.pth", "--image-size", 96, 128)
    assert status == 0
    logits = labels_by_hand(classes_network, photos / "a.jpg")
    assert (load(out / "a.png") == logits.argmax(0)).mean() > 0.999
    assert "hold values up to 3, which look black. --overlays" in capsys.readouterr().out


@pytest.mark.slow
def test_two_classes_give_what_one_foreground_gives(photos, call, changed, network, tmp_path):
    """The class of 255 has the logits of the foreground, and that of 0 has zeros."""
    weights = network.state_dict()
    two = {key: torch.cat([0 * weights[key], weights[key]]) for key in ("output_conv.weight", "output_conv.bias")}
    path = changed(
        state_dict=weights | two,
        network=dict(in_channels=3, out_channels=2, features=[8, 16]),
        mask_rule=MaskRule("numbers", (), (), classes=(0, 255), names=("0", "255")).to_dict(),
    )
    in_windows = ("--window", 64, "--image-size")
    for flags in ((), ("--flips", "hv"), (*in_windows, "own"), (*in_windows, 120, 160), ("--batch-size", 3)):
        call(photos, *flags, "--output-dir", tmp_path / "one")
        call(photos, *flags, "--output-dir", tmp_path / "two", "--checkpoint", path)
        for mask in (tmp_path / "one").rglob("*.png"):
            other = load(tmp_path / "two" / mask.relative_to(tmp_path / "one"))
            assert (load(mask) == other).all() and other.any() and not other.all(), (flags, mask)


# ---- the submission


def decoded(runs, size):
    """The mask {0, 1} of runs, row by row; they are in order and apart, and end within it."""
    mask, end = np.zeros(size[0] * size[1], np.uint8), 0
    numbers = list(map(int, runs.split()))
    for start, length in zip(numbers[::2], numbers[1::2], strict=True):
        assert start > end + (end > 0) and length > 0
        end = start + length - 1
        assert end <= mask.size
        mask[start - 1 : end] = 1
    return mask.reshape(size)


def test_runs_worked_out_by_hand():
    assert run_lengths(np.array([[0, 1, 1], [1, 0, 1]])) == "2 3 6 1", "row by row: pixels 2, 3, 4 and 6"
    assert run_lengths(np.array([[0, 1, 1], [1, 0, 1]]), "columns") == "2 2 5 2", "pixels 2, 3, 5 and 6"
    row = np.zeros((1, 16), int)
    row[0, [0, 1, 2, 9, 10, 11, 12, 13]] = 1
    assert run_lengths(row) == "1 3 10 5", "the example of the competition's page"
    assert run_lengths(np.zeros((3, 3))) == "" and run_lengths(np.ones((3, 3))) == "1 9"


def test_runs_come_back_as_the_mask():
    rng = np.random.default_rng(0)
    for share in (0, 0.01, 0.5, 0.99, 1):
        for size in ((1, 1), (1, 40), (37, 1), (61, 83)):
            mask = (rng.random(size) < share).astype(np.uint8)
            assert (decoded(run_lengths(mask), size) == mask).all()
            assert (mask == decoded(run_lengths(mask, "columns"), size[::-1]).T).all()


@pytest.mark.parametrize(
    "name, opener, order", [("rows.csv", open, "rows"), ("deep/rows.csv.gz", gzip.open, "columns")]
)
def test_the_submission_decodes_to_the_masks(photos, call, tmp_path, capsys, name, opener, order):
    _, out = call(photos, "--submission", tmp_path / name, "--submission-order", order)
    numbered = {"rows": "numbered row by row, as Carvana", "columns": "numbered column by column, as most"}
    assert numbered[order] in capsys.readouterr().out
    with opener(tmp_path / name, "rt") as file:
        header, *rows = csv.reader(file)
    assert header == ["img", "rle_mask"]
    assert [name for name, _ in rows] == ["a.jpg", "grey.png", "palette.gif", "turned.jpg", "b.c.png"]
    masks = {mask.stem: load(mask) for mask in out.rglob("*.png")}
    for name, runs in rows:
        mask = masks[Path(name).stem]
        if order == "columns":
            mask = mask.T
        assert (decoded(runs, mask.shape) * 255 == mask).all()


def test_rows_are_written_as_they_come_and_appear_when_complete(tmp_path, capsys):
    path = tmp_path / "rows.csv"
    submission = Submission(path, ["b.png: there is no such file."])
    for index in range(1000):
        made = {} if index == 7 else {submission: "1 1"}
        submission.take(Result(picture_of(index), made=made))
        assert not any(tmp_path.iterdir())
    submission.finish()
    lines = path.read_text().splitlines()
    assert lines[:2] == ["img,rle_mask", "0.jpg,1 1"] and len(lines) == 1000 and list(tmp_path.iterdir()) == [path]
    submission.report()
    assert f"{path}: lacks the rows of 2 inputs: b.png, 7.jpg." in capsys.readouterr().err
    stopped = Submission(path)
    stopped.take(Result(picture_of(0), made={stopped: "1 1"}))
    del stopped
    assert len(path.read_text().splitlines()) == 1000 and list(tmp_path.iterdir()) == [path]


def test_a_submission_that_cannot_be_written_is_told_by_its_own_name():
    submission = Submission("/proc/rows.csv")
    with pytest.raises(OSError) as caught:
        submission.take(Result(picture_of(0), made={submission: "1 1"}))
    assert caught.value.filename == "/proc/rows.csv"


# ---- scores of one foreground


def test_scores_worked_out_by_hand(tmp_path):
    scores = PictureScores(tmp_path, Truths(), MaskRule())
    for name, counts in dict(perfect=(8, 8, 8), half=(2, 4, 8), missed=(0, 0, 8), empty=(0, 0, 0)).items():
        both, predicted, true = counts
        confusion = np.array([[20 - predicted - true + both, predicted - both], [true - both, both]])
        edges = [[0, 0]] * 4 if name == "empty" else [[0, both // 2], [0, 2], [0, both // 2], [0, 4]]
        made = np.concatenate([overlap_of(torch.from_numpy(confusion[None]))[0].numpy(), edges])
        scores.take(Result(picture_of(name), made={scores: (made[None], confusion[None])}))
    scores.finish()
    assert scores.scores.per_image == [1, 2 * 2 / 12, 0, 1]
    rows = scores_in(tmp_path)
    assert rows["half.jpg"] == dict(
        image="half.jpg", dice="0.333333", iou="0.200000", pixels_in_both="2", predicted_pixels="4", true_pixels="8",
        precision="0.500000", recall="0.250000", boundary="0.333333",
    )  # fmt: skip
    assert [rows["missed.jpg"][name] for name in ("precision", "recall", "boundary")] == ["", "0.000000", "0.000000"]
    assert [rows["empty.jpg"][name] for name in ("precision", "recall", "boundary")] == [""] * 3
    assert float(rows["mean"]["precision"]) == 0.75
    assert list(rows)[-1] == "mean"
    assert float(rows["mean"]["dice"]) == pytest.approx((1 + 1 / 3 + 0 + 1) / 4, abs=1e-6)
    assert [picture.path.stem for picture in scores.worst()] == ["missed", "half", "perfect", "empty"]


def test_real_masks_are_counted_and_the_lowest_come_first(photos, call, tmp_path, capsys):
    _, out = call(photos)
    predicted = load(out / "a.png") > 0
    halved = predicted.copy()
    halved[:50] = False
    save(tmp_path / "truths" / "a.png", halved * np.uint8(255))
    save(tmp_path / "truths" / "grey.png", load(out / "grey.png"))
    call(photos, "--masks", tmp_path / "truths")
    rows, both = scores_in(out), int(halved.sum())
    counts = [int(rows["a.jpg"][key]) for key in ("pixels_in_both", "predicted_pixels", "true_pixels")]
    assert counts == [both, int(predicted.sum()), both]
    assert float(rows["a.jpg"]["dice"]) == pytest.approx(2 * both / (both + predicted.sum()), abs=1e-6)
    assert float(rows["grey.png"]["dice"]) == 1
    assert re.search(r"(?s)The lowest Dice:\n  0\.\S+  \S*a\.jpg\n  1\.0000  \S*grey", capsys.readouterr().out)


def test_its_own_masks_score_one_and_their_opposites_nothing(photos, call, tmp_path, capsys):
    _, out = call(photos)
    for path in out.rglob("*.png"):
        target = tmp_path / "truths" / path.relative_to(out).with_name(path.stem + "_mask.png")
        save(target, 255 - load(path) if path.stem == "grey" else load(path))
    status, out = call(photos, "--masks", tmp_path / "truths")
    assert status == 0
    dice = {name: float(row["dice"]) for name, row in scores_in(out, key=lambda row: row["image"]).items()}
    assert dice[str(photos / "a.jpg")] == 1 and dice[str(photos / "grey.png")] == 0 and dice["mean"] == 0.8
    said = capsys.readouterr().out
    assert "Dice 0.8000, IoU 0.8000: means over 5" in said and re.search(r"0\.0000 .*grey\.png", said)
    assert load(out / "worst.png").shape[0] > 5 * 240


def test_a_mask_of_another_size_is_scored_at_its_own(photos, call, tmp_path):
    _, out = call(photos / "a.jpg")
    larger = cv2.resize(load(out / "a.png"), (300, 200), interpolation=cv2.INTER_LINEAR)
    (tmp_path / "truths").mkdir()
    Image.fromarray(larger).convert("1", dither=0).save(tmp_path / "truths" / "a.png")
    _, out = call(photos, "--masks", tmp_path / "truths", "--no-save-masks")
    row = scores_in(out)["a.jpg"]
    assert float(row["dice"]) > 0.85  # the edges of noise differ
    assert int(row["true_pixels"]) == int((load(tmp_path / "truths" / "a.png") > 0).sum()), "counted on 200x300"


def test_several_masks_of_a_picture_are_united(photos, call, tmp_path):
    truths = tmp_path / "truths"
    _, out = call(photos)
    whole = {"a": load(out / "a.png"), "sub/b.c": load(out / "sub" / "b.c.png"), "grey": load(out / "grey.png")}
    for name, mask in whole.items():
        left, right = mask.copy(), mask.copy()
        left[:, 30:] = right[:, :30] = 0
        for number, part in enumerate([mask] if name == "grey" else [left, right]):
            save(truths / f"{name}_obj{number}.png", part)
    status, out = call(photos, "--masks", truths, "--mask-name", "{}_obj*")
    assert status == 0
    rows = scores_in(out, key=lambda row: Path(row["image"]).stem)
    assert set(rows) == {"a", "b.c", "grey", "mean"}
    for name, mask in whole.items():
        row = rows[Path(name).name]
        assert float(row["dice"]) == 1 and int(row["true_pixels"]) == (mask > 0).sum()


def test_masks_that_cannot_be_compared_are_told(photos, call, tmp_path, capsys):
    """One that is turned, and one that is damaged; the others are scored."""
    white = np.full((100, 150), 255, np.uint8)
    save(tmp_path / "truths" / "turned.png", white)  # as stored, before EXIF
    save(tmp_path / "truths" / "a.png", white)
    (tmp_path / "truths" / "grey.png").write_bytes(b"no mask")
    status, out = call(photos, "--masks", tmp_path / "truths")
    said = capsys.readouterr()
    assert status == 1 and "turned.jpg is 150x100" in said.err and "one is turned" in said.err
    assert "grey.png" in said.err and "2 of the inputs failed" in said.err
    assert set(scores_in(out)) == {"a.jpg", "mean"} and len(list(out.rglob("*.png"))) == 5 + 1
    assert "reads as foreground" not in said.out


def test_ignored_pixels_are_not_scored(photos, call, changed, tmp_path, capsys):
    _, out = call(photos)
    predicted, path = load(out / "a.png") > 0, tmp_path / "truths" / "a.png"
    truth = predicted.astype(np.uint8)
    truth[:50] = 1 - truth[:50]  # all wrong
    truth[:40] = 7
    save(path, truth)
    right, given = int(predicted[50:].sum()), predicted[40:].sum() + (truth == 1).sum()

    def row(*flags):
        call(photos, "--masks", path.parent, *flags)
        return scores_in(out)["a.jpg"]

    for flags in (("--mask-ignore", 7), ("--checkpoint", changed(settings={"MASK_IGNORE": 7}))):
        scores = row(*flags)
        assert float(scores["dice"]) == pytest.approx(2 * right / given, abs=1e-6)
        assert int(scores["predicted_pixels"]) == predicted[40:].sum()
        assert "7 is ignored" in capsys.readouterr().out
    mask_rule = MaskRule("numbers", (), (1,), rest=True, ignored=(7,)).to_dict()
    told = changed(settings={"MASK_IGNORE": 7, "MASK_FOREGROUND": 1}, mask_rule=mask_rule)
    assert row("--checkpoint", told) == scores
    with pytest.raises(UserError, match="several classes"):
        row()
    truth[:40] = 0  # where nothing is ignored
    save(path, truth * 255)
    assert row() == row("--mask-ignore", 7) != scores


def test_empty_images_are_told_apart_from_the_mean(photos, call, tmp_path, capsys):
    nearly_one = ("--threshold", 1 - 1e-9)
    _, out = call(photos, *nearly_one)
    assert not any(load(path).any() for path in out.rglob("*.png"))
    assert "Nothing is predicted in 5 of them" in capsys.readouterr().out
    _, out = call(photos / "a.jpg", "--output-dir", tmp_path / "one")[0], tmp_path / "one"
    assert "Nothing is predicted" not in capsys.readouterr().out
    truths = tmp_path / "truths"
    save(truths / "a.png", load(out / "a.png"))
    save(truths / "grey.png", np.zeros((90, 60), np.uint8))
    save(truths / "palette.png", np.zeros((64, 80), np.uint8))
    call(photos, "--masks", truths, *nearly_one)
    said = capsys.readouterr().out
    assert "Dice 0.6667, IoU 0.6667: means over 3" in said and "\nDice 0.0000 without those that are empty" in said
    call(photos, "--masks", truths)  # where something is predicted in each
    said = capsys.readouterr().out
    assert "Dice 0.3333" in said and "without those" not in said


# ---- the threshold


def test_the_chosen_threshold_is_the_best_of_all():
    rng = np.random.default_rng(0)
    images = []
    for shift in (-1.0, -1.5, 0.0):
        truth = (rng.random((40, 50)) < 0.3).astype(np.uint8)
        images.append((((truth * 3 - 1.5) + rng.normal(0, 1, truth.shape) + shift).astype(np.float32), truth))
    best = best_threshold([histogram(*image) for image in images])

    def mean_dice(threshold):
        logits, truths = (np.stack(arrays) for arrays in zip(*images))
        masks = torch.from_numpy(1 / (1 + np.exp(-logits.astype(np.float64))) > threshold)
        counts = overlap_of(count_confusion(masks, torch.from_numpy(truths), 2))[:, :3, 1]
        return dice_from_counts(*counts.numpy().T).mean()

    by_hand = [mean_dice(k / 256) for k in range(1, 256)]
    assert best.dice == pytest.approx(max(by_hand), abs=1e-3) == pytest.approx(mean_dice(best.value), abs=1e-3)
    assert best.dice_at_half == pytest.approx(mean_dice(0.5), abs=1e-3)
    assert best.value < 0.45 and best.dice > best.dice_at_half + 0.01


def test_equally_good_thresholds_give_the_one_in_the_middle():
    truth = np.array([[0, 1]], np.uint8)
    assert best_threshold([histogram(np.array([[-9, 9]], np.float32), truth)]) == Threshold(0.5, 1, 1)


def test_empty_images_do_not_make_a_threshold_best_at_which_nothing_is_predicted():
    """Two images that hold something, found at 0.25 only, and ten that are empty, where noise is predicted then."""
    truth = np.zeros((20, 20), np.uint8)
    truth[:10] = 1
    holding = (np.where(truth, -0.7, -4).astype(np.float32), truth)
    empty = np.full((20, 20), -4, np.float32)
    empty[0, 0] = -0.7
    best = best_threshold([histogram(*image) for image in [holding] * 2 + [(empty, 0 * truth)] * 10])
    assert 0.02 < best.value < 0.34 and best.dice == pytest.approx(2 / 12) and best.dice_at_half == 0
    assert best_threshold([histogram(empty, 0 * truth)]) == Threshold(0.5, 1, 1), "where all are empty, nothing is best"


@pytest.mark.parametrize(
    "names, ignored", [(("a", "grey", "palette", "turned", "sub/b.c"), None), (("a", "grey"), 100)]
)
def test_threshold_auto_finds_the_one_that_made_the_masks(photos, call, tmp_path, capsys, names, ignored):
    """Also where most of each mask is ignored: such pixels choose nothing."""
    _, out = call(photos, "--threshold", 0.8)
    for name in names:
        truth = load(out / f"{name}.png").copy()
        if ignored:
            truth[20:] = ignored
        save(tmp_path / "truths" / f"{name}.png", truth)
    capsys.readouterr()
    call(photos, "--threshold", "auto", "--masks", tmp_path / "truths", "--mask-ignore", ignored or "none")
    said = capsys.readouterr().out
    threshold, dice = (float(re.search(rf"{name} ([\d.]+)", said)[1]) for name in ("Threshold", r"\nDice"))
    assert 0.7 < threshold < 0.9 and dice > 0.98
    assert ignored or 0.78 < threshold < 0.82


# ---- scores of classes


def test_scores_of_classes(photos, call, classes_checkpoint, tmp_path, capsys):
    """Of its own masks, of which one lacks a class, one is ignored in part, and one is shifted by hand."""
    mask_rule, truths = RULES["palette"], tmp_path / "truths"
    truths.mkdir()
    path = classes_checkpoint(mask_rule)
    _, out = call(photos, "--checkpoint", path)
    true = {name: read_mask(out / f"{name}.png", mask_rule) for name in ("a", "grey", "palette")}
    true["a"][true["a"] == 3] = 0
    true["grey"][:30] = IGNORED
    for name, mask in true.items():
        encode_mask(mask, mask_rule).save(truths / f"{name}.png")
    status, out = call(photos, "--checkpoint", path, "--masks", truths)
    said = capsys.readouterr().out
    assert status == 0 and "there are 4 classes: 0, 3 road, 8 a/b, 7 300; 9 is ignored" in said

    rows = scores_in(out, key=lambda row: Path(row["image"]).stem)
    columns = ["dice", "dice_0", "dice_road", "dice_a/b", "dice_300"]
    assert list(rows["a"]) == ["image", *columns, "precision", "recall", "boundary"]
    assert [float(rows["grey"][name]) for name in ("precision", "recall", "boundary")] == [1] * 3
    assert [float(rows["grey"][column] or 1) for column in columns] == [1] * 5
    predicted = read_mask(out / "a.png", mask_rule)
    by_hand = []
    for label in range(4):
        both = ((predicted == label) & (true["a"] == label)).sum()
        by_hand.append(2 * both / ((predicted == label).sum() + (true["a"] == label).sum()))
    assert by_hand[3] == 0 < by_hand[0] < 1
    assert [float(rows["a"][column]) for column in columns] == pytest.approx([np.mean(by_hand), *by_hand], abs=1e-6)
    holding = [float(row["dice_300"]) for name, row in rows.items() if name != "mean" and row["dice_300"]]
    assert float(rows["mean"]["dice_300"]) == pytest.approx(np.mean(holding), abs=1e-6)

    known = {name: mask != IGNORED for name, mask in true.items()}
    pooled = np.concatenate([true[name][known[name]] for name in true])
    given = np.concatenate([read_mask(out / f"{name}.png", mask_rule)[known[name]] for name in true])
    iou = [((pooled == k) & (given == k)).sum() / ((pooled == k) | (given == k)).sum() for k in range(4)]
    table = {name: float(value) for name, value in re.findall(r"\n  (\S+) +[\d.]+  ([\d.]+) +[\d.]+ %", said)}
    assert table == pytest.approx(dict(zip(NAMES, iou)), abs=1e-4)
    assert f"IoU {np.mean(iou):.4f}" in said and "The lowest Dice:" in said
    assert load(out / "worst.png").shape[0] > 3 * 240


def test_a_network_that_tells_one_class_alone_everywhere_is_told(
    photos, call, classes_network, classes_checkpoint, capsys
):
    call(photos, "--checkpoint", classes_checkpoint())
    assert "Every pixel" not in capsys.readouterr().out
    weights = classes_network.state_dict()
    weights["output_conv.bias"] = weights["output_conv.bias"] + torch.tensor([0, 0, 1e4, 0])
    call(photos, "--checkpoint", classes_checkpoint(state_dict=weights))
    assert "Every pixel of them is predicted as a/b" in capsys.readouterr().out
    for labels in ((2, None), (2, 1)):  # not everywhere, or not the same one
        uniform = UniformMasks(RULES["numbers"])
        for name, label in zip("ab", labels):
            uniform.take(Result(picture_of(name), made={uniform: label}))
        uniform.report()
    assert not capsys.readouterr().out
