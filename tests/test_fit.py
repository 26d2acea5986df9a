"""FIT = "pad": images of any proportions in IMAGE_SIZE, the same for arrays, training, scores and predictions."""

import csv
from pathlib import Path, PurePath

import numpy as np
import pytest
import torch
from fakes import Threshold
from helpers import draw_pairs, flags
from PIL import Image

import predict
import train
from parts.arrays import Files, make_arrays
from parts.audit import audit
from parts.images import read_image, size_within
from parts.masks import IGNORED, MaskRule
from parts.names import Picture, pair_files
from parts.predictions import PictureReader
from parts.spec import DataSpec
from utils import get_loaders, save_predictions

SIZE = (48, 48)


@pytest.fixture
def data(tmp_path):
    """Portraits and landscapes: t/ for training, v/ for validation."""
    for side, count, begin in (("t", 4, 0), ("v", 2, 50)):
        for size, first in (((48, 32), begin), ((32, 48), begin + 10)):
            draw_pairs(tmp_path / side / "i", tmp_path / side / "m", count, size, first)
    return tmp_path


@pytest.mark.parametrize(
    "own, size, within",
    [
        ((480, 320), (48, 48), (48, 32)),
        ((320, 480), (48, 48), (32, 48)),
        ((10, 20), (48, 48), (24, 48)),
        ((1, 5000), (48, 48), (1, 48)),
        ((1918, 1280), (320, 480), (320, 214)),
    ],
)
def test_a_picture_keeps_its_proportions_within_the_size(own, size, within):
    assert size_within(own, size, "pad") == within and size_within(own, size, "stretch") == size


def test_the_rest_is_mirrored_in_the_image_and_ignored_in_the_mask(data, capsys):
    pairs = pair_files(data / "t/i", data / "t/m")
    files = Files(pairs, MaskRule(), image_size=SIZE, fit="pad")
    arrays, reader = make_arrays(files, data / "arrays", 0, progress=False), PictureReader(SIZE, fit="pad")
    assert {read_image(pair.image).shape[:2] for pair in pairs} == {(48, 32), (32, 48)}
    for number, pair in enumerate(pairs):
        own, sample = read_image(pair.image), files.sample(number)
        height, width = own.shape[:2]
        assert np.array_equal(sample.image[:height, :width], own) and sample.image.shape == (*SIZE, 3)
        if width < 48:
            assert np.array_equal(sample.image[:, width:], own[:, width - 17 : width - 1][:, ::-1])
        mask = np.asarray(Image.open(pair.mask)) // 255
        assert np.array_equal(sample.mask[:height, :width], mask) and (sample.mask == IGNORED).sum() == 48 * 16
        for other in (arrays.sample(number).image, reader.read(Picture(pair.image, PurePath("x"))).image):
            assert np.array_equal(other, sample.image)
    make_arrays(Files(pairs, MaskRule(), image_size=SIZE), data / "arrays", 0, progress=False)
    assert "made again, because FIT was pad, now stretch." in capsys.readouterr().out


def test_grids_of_masks_hatch_the_rest_and_only_that(data, tmp_path):
    for path in (data / "v/m").iterdir():
        mask = np.asarray(Image.open(path)).copy()
        mask[:8] = 50  # which is ignored, and is no padding
        Image.fromarray(mask).save(path)
    folders = [data / side / kind for side in "tv" for kind in "im"]
    spec = DataSpec(foreground=255, ignore=50, fit="pad")
    _, loader = get_loaders(*folders, 3, 0, image_size=SIZE, spec=spec)  # a batch of three, and one of one
    model = Threshold()
    model.bias.data.fill_(-1)  # predicts foreground everywhere
    save_predictions(loader, model, tmp_path / "out")
    number = 0
    for name, masks in (("0", next(iter(loader))[1]), ("1", loader.dataset[3][1][None])):
        predicted, true = (np.asarray(Image.open(tmp_path / "out" / f"{kind}{name}.png")) for kind in ("pred_", ""))
        for column in range(len(masks)):
            place = slice(2, 50), slice(2 + 50 * column, 50 + 50 * column)
            outside = np.ones(SIZE, bool)
            outside[loader.dataset.files.inside(number)] = False
            assert outside.sum() == 48 * 16 and len(np.unique(predicted[place][outside])) > 1
            assert np.array_equal(predicted[place][outside], true[place][outside])
            assert (predicted[place][~outside] == 255).all()
            number += 1


def test_changed_proportions_are_told_only_where_they_change(data):
    folders = [(data / side / "i", data / side / "m") for side in "tv"]
    (told,) = audit(*folders, image_size=SIZE, num_workers=0).warnings
    assert "12 images up to 1.5 times" in told and "--fit pad" in told
    assert not audit(*folders, DataSpec(fit="pad"), image_size=SIZE, num_workers=0).warnings


@pytest.mark.parametrize("fit", ["pad", "stretch"])
def test_predictions_are_what_was_scored(data, fit, monkeypatch, capsys):
    monkeypatch.chdir(data)
    places = dict(TRAIN_IMG_DIR="t/i", TRAIN_MASK_DIR="t/m", VAL_IMG_DIR="v/i", VAL_MASK_DIR="v/m", OUTPUT_DIR="run")
    train.main(flags(IMAGE_SIZE=SIZE, FIT=fit, NUM_EPOCHS=3, **places))
    saved = torch.load("run/best.pth", weights_only=True)
    with Image.open(max(Path("run/saved_images/strip").iterdir())) as drawn:
        assert drawn.size == ((32, 48) if fit == "pad" else (48, 48)), "without what fills IMAGE_SIZE"
    assert predict.main(["v/i", "--masks", "v/m", "--checkpoint", "run/best.pth", "--precision", "float32"]) == 0
    assert ("proportions kept" in capsys.readouterr().out) == (fit == "pad")
    rows = csv.DictReader(Path("predictions/scores.csv").read_text().splitlines())
    dice_of = {row["image"]: float(row["dice"]) for row in rows}
    apart = max(abs(dice_of[name] - dice) for name, dice in zip(sorted(dice_of), saved["scores"]["per_image"]))
    assert apart < 1e-4 if fit == "pad" else apart > 1e-4, "pixels that are stretched are scored at another size"
    Image.new("RGB", (30, 90)).save("v/i/tall.png")
    mask = predict.Predictor("run/best.pth", DEVICE="cpu")("v/i/tall.png")
    assert mask.shape == (90, 30)
