"""What is drawn: colours where they belong, texts that fit, curves of any length."""

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.utils import make_grid

from parts import pictures


@pytest.fixture
def scene():
    """(image, truth, prediction): truth is the upper half, prediction the left half."""
    image = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    truth, prediction = np.zeros((2, 60, 80), np.uint8)
    truth[:30], prediction[:, :40] = 1, 1
    return image, truth, prediction


def test_overlay_leaves_the_background_and_outlines_the_foreground(scene):
    image, truth, _ = scene
    before = image.copy()
    drawn = pictures.overlay(image, truth)
    assert drawn.shape == image.shape and drawn.dtype == np.uint8
    assert (image == before).all()
    assert (drawn[30:] == image[30:]).all()
    assert (drawn[29] == pictures.FOREGROUND).all(), "the last row of foreground is its outline"
    inside, was = drawn[5:25].astype(int), image[5:25].astype(int)
    away, before = (np.abs(part - pictures.FOREGROUND) for part in (inside, was))
    assert (away <= before).all() and (inside[..., 1] <= was[..., 1]).all()
    assert np.abs(inside - was).mean() > 20


def test_outline_is_the_edge_and_not_the_picture_frame():
    mask = np.ones((40, 40), np.uint8)
    assert not pictures.outline(mask).any(), "foreground that leaves the picture has no edge there"
    mask[10:20, 10:20] = 0
    edge = pictures.outline(mask)
    assert edge[9, 10:20].all() and edge[20, 10:20].all() and not edge[15, 15] and edge.sum() == 44


def test_difference_has_a_colour_for_each_kind_of_pixel(scene):
    drawn = pictures.difference(*scene).astype(int)

    def nearest(part):
        mean = part.reshape(-1, 3).mean(axis=0)
        return min(pictures.DIFFERENCE_LEGEND, key=lambda entry: np.abs(mean - entry[0]).sum())[1]

    assert nearest(drawn[:30, 40:]) == "missed"
    assert nearest(drawn[30:, :40]) == "invented"
    right, nothing = drawn[:30, :40], drawn[30:, 40:]
    assert (right[..., 1] > right[..., 0]).all(), "tinted green"
    assert (nothing[..., 0] == nothing[..., 2]).all(), "grey"


def test_sheet_holds_rows_of_tiles_of_any_size_and_kind():
    rng = np.random.default_rng(0)
    wide, tall = rng.integers(0, 256, (30, 900, 3), np.uint8), rng.integers(0, 256, (900, 30, 3), np.uint8)
    grey = rng.integers(0, 256, (50, 70), np.uint8)
    page = pictures.sheet([[wide, tall, grey], [grey]], [["a", "b", "c"], "one row"], "title", ["x", "y", "z"])
    assert page.mode == "RGB" and page.getpixel((0, 0)) == (255, 255, 255)
    assert page.height > 2 * pictures.TILE_HEIGHT and page.width > pictures.WIDEST * pictures.TILE_HEIGHT
    assert page.width < 2000


def test_long_and_odd_captions_stay_within_their_tile():
    tile = np.zeros((100, 100, 3), np.uint8)
    name = "a very long name that will never fit below a tile of that width_0001.jpg"
    page = pictures.sheet([[tile, tile]], [[name, "bad \udcff\n byte"]], "ümlaut " * 200)
    row = np.asarray(page)[-pictures.MARGIN - pictures.FONT - 6 :]
    left = pictures.MARGIN + pictures.TILE_HEIGHT
    assert (row[:, left : left + pictures.MARGIN - 2] == 255).all(), "the gap between the tiles is white"
    assert (row[:, :left] < 128).any()


def test_examples_and_strip_have_a_tile_for_everything(scene):
    image, truth, prediction = scene
    sheet = pictures.examples_sheet([image] * 3, [truth] * 3, [prediction] * 3, ["a", "b", "c"], "worst")
    assert sheet.height > 3 * pictures.TILE_HEIGHT and sheet.width > 4 * pictures.TILE_HEIGHT
    strip = pictures.strip(image, truth, [prediction] * 8, [f"epoch {i}" for i in range(8)])
    assert strip.height > 2 * pictures.TILE_HEIGHT


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_masks_and_maps_come_back_as_they_were_saved(tmp_path, kind):
    array = (np.random.default_rng(0).random((33, 47)) * np.iinfo(kind).max).astype(kind)
    pictures.save_image(tmp_path / "map.png", array)
    with Image.open(tmp_path / "map.png") as picture:
        assert (np.asarray(picture) == array).all()
    assert [path.name for path in tmp_path.iterdir()] == ["map.png"]
    mask = (array > np.iinfo(kind).max // 2).astype(np.uint8)
    pictures.save_image(tmp_path / "mask.png", mask * 255)
    assert (pictures.load_mask(tmp_path / "mask.png") == mask).all()


@pytest.mark.parametrize("count", [2, 8, 11])
def test_grids_are_those_of_torchvision(count):
    masks = np.random.default_rng(count).integers(0, 2, (count, 5, 7), np.uint8)
    theirs = make_grid(torch.from_numpy(masks)[:, None] * 255, pad_value=128)[0].numpy()
    assert np.array_equal(pictures.grid(masks), theirs)


@pytest.mark.parametrize("epochs", [1, 3, 200])
def test_curves_of_any_length(tmp_path, epochs):
    history = [
        {"epoch": e + 1, "loss": 0.7 * 0.98**e, "dice": 1 - 0.5 * 0.98**e, "iou": 1 - 0.6 * 0.98**e, "lr": 1e-3}
        for e in range(epochs)
    ]
    pictures.draw_curves(history, tmp_path / "curves.png")
    with Image.open(tmp_path / "curves.png") as picture:
        assert picture.width > 800 and picture.height > 300
        assert len(np.unique(np.asarray(picture.convert("RGB")).reshape(-1, 3), axis=0)) > 20


def test_curves_without_scores_or_with_gaps(tmp_path):
    pictures.draw_curves([{"epoch": 1, "loss": float("nan"), "dice": None}], tmp_path / "curves.png")
    pictures.draw_curves([{"epoch": 1, "loss": 0.5}], tmp_path / "curves.png")
    assert (tmp_path / "curves.png").stat().st_size > 1000
