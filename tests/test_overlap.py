"""Classes that overlap (OVERLAP): a label is a set of classes, each of which is trained, scored and written alone."""

import shutil
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from helpers import flags
from PIL import Image
from test_annotations import SIZE, images

import augment
import dataset
import predict
import train
from parts.annotations import draw_masks
from parts.clean_up import CleanUp
from parts.errors import UserError
from parts.inference import mean_of_probabilities
from parts.losses import Loss
from parts.mask_rules import find_mask_rule
from parts.masks import IGNORED, MaskRule, read_mask
from parts.predictions import classify, probability_maps
from parts.scores import KNOWN_METRICS, count_labels, scores_of
from parts.spec import DataSpec

PATTERNS = {"organ": "{}_organ", "tumour": "tumours/{}"}
RULE = MaskRule(background=(), foreground=(), classes=(1, 2), names=tuple(PATTERNS), files=tuple(PATTERNS.values()))
SPEC = DataSpec(classes=PATTERNS, overlap=True)


def organ_of(k, size=SIZE):
    """An organ, and a tumour inside of it and beyond its end; every third one has none."""
    draw = np.random.default_rng(k)
    organ, tumour = np.zeros((2, *size), np.uint8)
    x, y = int(draw.integers(20, size[1] - 20)), int(draw.integers(16, size[0] - 16))
    cv2.ellipse(organ, (x, y), (15, 12), 0, 0, 360, 255, -1)
    if k % 3:
        cv2.circle(tumour, (x + 10, y), 7, 255, -1)
    return organ, tumour


def truth_of(k):
    organ, tumour = organ_of(k)
    return (organ > 0) + 2 * (tumour > 0)


def organs(folder, ks):
    """Images in folder/i, and masks of the two classes in folder/m."""
    images(folder / "i", ks)
    for k in ks:
        organ, tumour = organ_of(k)
        shade = np.random.default_rng(k).integers(0, 40, (*SIZE, 3), np.uint8)
        shade += (organ // 4 + tumour // 3)[..., None]
        Image.fromarray(shade).save(folder / f"i/p{k}.png")
        for pattern, mask in zip(PATTERNS.values(), (organ, tumour)):
            path = folder / f"m/{pattern.format(f'p{k}')}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            if mask.any():
                Image.fromarray(mask).save(path)
    return folder / "i", folder / "m"


@pytest.fixture
def folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return organs(tmp_path, range(6))


def test_masks_of_each_class_are_drawn_as_sets(folders):
    with pytest.raises(UserError, match=r"tumours/p1.png: marks .*_organ.png.*OVERLAP = True \(--overlap\)"):
        draw_masks([folders], "out/drawn", DataSpec(classes=PATTERNS))
    ((_, drawn),) = draw_masks([folders], "out/drawn", SPEC)
    files = sorted(drawn.glob("*.png"))
    rule = find_mask_rule(files, SPEC)
    assert rule == RULE and (rule.channels, rule.num_labels) == (2, 4)
    assert rule.label_names == ("background", "organ", "tumour", "organ + tumour")
    assert MaskRule.from_dict(rule.to_dict()) == rule and "files" not in MaskRule().to_dict()
    for k in range(6):
        assert np.array_equal(read_mask(drawn / f"p{k}.png", rule), truth_of(k))
    with pytest.raises(UserError, match="1 is organ, as the masks' files say, which were drawn by other CLASSES"):
        find_mask_rule(files, DataSpec(classes=dict(reversed(PATTERNS.items())), overlap=True))
    Image.fromarray(np.full(SIZE, 4, np.uint8)).save(drawn / "p5.png")
    with pytest.raises(UserError, match="p5.png: values that are no class: 4"):
        find_mask_rule(files, SPEC)
    for ignored in (2, 3):  # a class, and a set of classes
        with pytest.raises(UserError, match=f"{ignored} is in MASK_IGNORE too"):
            find_mask_rule(files[:5], DataSpec(classes=PATTERNS, overlap=True, ignore=ignored))


def test_what_one_class_ignores_is_ignored(folders):
    mask = np.array(Image.open(folders[1] / "p1_organ.png"))
    mask[:3] = 7
    Image.fromarray(mask).save(folders[1] / "p1_organ.png")
    spec = DataSpec(classes=PATTERNS, overlap=True, ignore=7)
    ((_, drawn),) = draw_masks([folders], "out/drawn", spec)
    rule, expected = find_mask_rule(sorted(drawn.glob("*.png")), spec), truth_of(1)
    expected[:3] = IGNORED
    assert np.array_equal(read_mask(drawn / "p1.png", rule), expected) and not rule.where(expected, 1)[:3].any()


@pytest.mark.parametrize(
    "classes, words",
    [
        ("all", "classes overlap where each has masks of its own"),
        ({"a": "../{}_a", "b": "{}_b"}, "below one folder"),
        ({str(c): f"{{}}_{c}" for c in range(8)}, "8 CLASSES: 7 is the most"),
    ],
)
def test_classes_that_cannot_overlap_are_told(classes, words):
    with pytest.raises(UserError, match=words):
        DataSpec(classes=classes, overlap=True)


def test_annotations_are_no_masks_of_classes(folders):
    shutil.rmtree(folders[1])
    folders[1].mkdir()
    (folders[1] / "p0.json").write_text('{"shapes": []}')
    with pytest.raises(UserError, match="p0.json: annotations, and no masks named as CLASSES"):
        draw_masks([folders], "out/drawn", SPEC)


def test_each_class_is_lost_and_scored_as_one_foreground():
    draws = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 2, 20, 30, generator=draws)
    truths = torch.randint(4, (3, 1, 20, 30), generator=draws).byte()
    truths[0, :, :5] = IGNORED
    alone, together = Loss("bce+dice+focal+tversky"), Loss("bce+dice+focal+tversky", mask_rule=RULE)
    classes = [torch.where(truths == IGNORED, truths, truths >> c & 1) for c in range(2)]
    expected = [alone(logits[:, [c]], classes[c]) for c in range(2)]
    assert together(logits, truths).item() == pytest.approx(torch.stack(expected).mean().item(), rel=1e-2)
    labels = RULE.labels_of(logits)
    counts, confusions = count_labels(labels, truths, RULE, KNOWN_METRICS)
    for c in range(2):
        one = count_labels((logits[:, [c]] > 0).byte(), classes[c], MaskRule(), KNOWN_METRICS)[0]
        assert torch.equal(counts[..., c], one[..., 1])
    scores = scores_of(counts.numpy(), confusions.sum(0).numpy(), RULE.names, KNOWN_METRICS)
    known = truths != IGNORED
    held = [(truths >> c & 1).bool() & known for c in range(2)]
    table = [[int((true & (logits[:, [c]] > 0)).sum()) for c in range(2)] for true in held]
    assert scores.classes["confusion"] == table and scores.classes["true"] == [int(true.sum()) for true in held]
    assert scores.accuracy == pytest.approx(float((labels == truths)[known].float().mean()))
    with pytest.raises(UserError, match="CLASS_WEIGHTS is for classes that do not overlap"):
        train.label_weights((1, 2), (0.5, 0.5), RULE)
    assert train.label_weights("auto", (0.5, 0.5), RULE) is None


def test_each_class_is_decided_and_cleaned_up_as_one_foreground():
    logits = np.random.default_rng(0).normal(size=(2, 12, 16)).astype(np.float32)
    decided = classify(logits, (24, 32), 0.3, overlaps=True)
    alone = [classify(plane[None], (24, 32), 0.3) for plane in logits]
    assert np.array_equal(decided.mask, alone[0].mask + 2 * alone[1].mask)
    for plane, own, each in zip(logits, alone, probability_maps(logits, decided.lead, 8)):
        assert np.array_equal(each, *probability_maps(plane[None], own.lead, 8))
    cleaned = CleanUp(min_pixels=20, fill_holes=True, overlapping=2)(decided.mask)
    clean_up = CleanUp(min_pixels=20, fill_holes=True)
    assert np.array_equal(cleaned, clean_up(alone[0].mask) + 2 * clean_up(alone[1].mask))
    several = torch.randn(2, 1, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    mean = mean_of_probabilities(several, overlaps=True).sigmoid()
    assert torch.allclose(mean, several.sigmoid().mean(0), atol=1e-6)


def overlapping(folder, **constants):
    words = [f"{name}={pattern}" for name, pattern in PATTERNS.items()]
    data = dict(TRAIN_IMG_DIR="i", TRAIN_MASK_DIR="m", VAL_IMG_DIR="v/i", VAL_MASK_DIR="v/m", CLASSES=tuple(words))
    organs(folder / "v", range(100, 105))
    return flags(OVERLAP=True, **data, **constants)


def weights_of(path):
    return torch.load(path, weights_only=True)["state_dict"]


@pytest.mark.slow
def test_a_run_is_resumed_bit_by_bit_and_predicts_files_that_are_read_back(folders, tmp_path, capsys):
    steady = dict(SCHEDULE="constant", WARMUP=0.0, NUM_EPOCHS=2)
    words = overlapping(tmp_path, CROP=(32, 32), IMAGE_SIZE=SIZE, ROTATE=20, **steady)
    train.main([*words, "--output-dir", "whole"])
    train.main([*words, "--output-dir", "half", "--num-epochs", "1"])
    train.main([*words, "--output-dir", "half", "--load-model"])
    whole, half = weights_of("whole/checkpoint.pth"), weights_of("half/checkpoint.pth")
    assert all(torch.equal(value, half[name]) for name, value in whole.items())
    saved = tmp_path / "whole/saved_images"
    assert (saved / "confusion.csv").read_text().startswith('"true class (pixels), predicted as",organ,tumour\n')
    capsys.readouterr()
    options = ["--checkpoint", "whole/checkpoint.pth", "--output-dir", "p", "--threshold", "0.4", "--overlays"]
    assert predict.main(["i", *options, "--masks", "m"]) == 0
    out = capsys.readouterr().out
    assert "means over the classes" in out and "organ" in out
    names = {path.relative_to(tmp_path / "p").as_posix() for path in (tmp_path / "p").rglob("*.png")}
    assert {f"p{k}_organ.png" for k in range(6)} | {f"tumours/p{k}.png" for k in range(6)} <= names
    shutil.rmtree("p/overlays")
    (tmp_path / "p/worst.png").unlink()
    ((_, drawn),) = draw_masks([("i", "p")], "again", SPEC)
    rule = find_mask_rule(sorted(drawn.glob("*.png")), SPEC)
    predictor = predict.Predictor("whole/checkpoint.pth", THRESHOLD=0.4)
    for k in range(6):
        organ, tumour = predictor(f"i/p{k}.png") > 0
        assert np.array_equal(read_mask(drawn / f"p{k}.png", rule), organ + 2 * tumour)
    assert predictor.probabilities("i/p1.png").shape == (2, *SIZE)
    assert "of each class whose logit is above that of the threshold: organ, tumour" in predictor.export("n.pt2")
    with pytest.raises(UserError, match="these are for one foreground: THRESHOLD = 'auto'"):
        predict.main(["i", "--checkpoint", "whole/checkpoint.pth", "--threshold", "auto", "--masks", "m"])


def test_what_predict_writes_is_read_back_among_its_other_files(folders, call, classes_checkpoint, capsys):
    patterns = {name: f"{{}}_{name}" for name in "abc"} | {"d": "{}/d*"}
    rule = replace(RULE, classes=(1, 2, 4, 8), names=tuple(patterns), files=tuple(patterns.values()))
    path = classes_checkpoint(rule, settings=dict(CLASSES=patterns, OVERLAP=True))
    _, out = call("i", "--checkpoint", path, "--overlays")
    assert (out / "p0/d1.png").exists()
    assert call("i", "--checkpoint", path, "--masks", out, "--output-dir", "again")[0] == 0
    told = capsys.readouterr().out
    assert "p0.jpg" in told.split(": named by none of CLASSES")[0] and "Dice 1.0000, IoU 1.0000: means" in told


def test_copies_and_the_audit_hold_sets_of_classes(folders, capsys):
    words = [f"{name}={pattern}" for name, pattern in PATTERNS.items()]
    given = ["--img-dir", "i", "--mask-dir", "m", "--output-dir", "g", "--val-images", "2", "--overlap"]
    augment.main([*given, "--classes", *words])
    spec = DataSpec(classes=PATTERNS, overlap=True)
    ((_, same),) = draw_masks([("g/augmented_train_images", "g/augmented_train_masks")], "again", spec)
    rule = find_mask_rule(sorted((folders[0].parent / same).glob("*.png")), spec)
    mirrored = read_mask(folders[0].parent / same / "p1_hflip.png", rule)
    assert rule == RULE and np.array_equal(mirrored, truth_of(1)[:, ::-1])
    capsys.readouterr()
    dataset.main([*map(str, folders), "--overlap", "--classes", *words])
    share = 100 * np.mean([truth_of(k) > 1 for k in range(6)])
    assert f"tumour / {share:.2g} %" in capsys.readouterr().out


@pytest.mark.slow
def test_an_organ_and_its_tumour_are_learnt(folders, tmp_path):
    organs(tmp_path, range(24))
    train.main(overlapping(tmp_path, IMAGE_SIZE=SIZE, NUM_EPOCHS=30, FEATURES=(8, 16)))
    rows = torch.load("best.pth", weights_only=True)["history"]
    assert max(min(row["dice_organ"], row["dice_tumour"]) for row in rows) >= 0.95
