"""The demo's cars: Carvana's layout, the same pictures every time, and a task that is not trivial."""

import re

import numpy as np
import pytest
import torch
from PIL import Image

from parts.cars import draw_dataset
from parts.errors import UserError
from parts.images import read_image
from parts.mask_rules import find_mask_rule
from parts.masks import read_mask
from parts.names import group_of, pair_files
from unet import UNet

SIZE = (48, 72)


def drawn(folder, **keywords):
    draw_dataset(folder, **{"cars": 2, "views": 3, "size": SIZE, "progress": False, **keywords})
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*.*")}


def test_layout_and_names_are_carvanas(tmp_path):
    files = drawn(tmp_path)
    images = sorted(name for name in files if name.startswith("train/"))
    assert len(images) == 6 and len(files) == 12
    for name in images:
        assert re.fullmatch(r"train/[0-9a-f]{12}_0[123]\.jpg", name)
        assert f"train_masks/{name[6:-4]}_mask.gif" in files
    pairs = pair_files(tmp_path / "train", tmp_path / "train_masks")
    assert len({group_of(pair.name) for pair in pairs}) == 2


def test_masks_are_black_and_white_palettes_with_a_car(tmp_path):
    drawn(tmp_path, cars=6, views=4)
    for path in (tmp_path / "train_masks").iterdir():
        with Image.open(path) as mask:
            assert mask.mode == "P" and mask.size == SIZE[::-1]
            assert set(np.unique(np.asarray(mask.convert("L")))) == {0, 255}
            assert 0.05 < np.mean(np.asarray(mask.convert("L")) > 0) < 0.5


def test_a_picture_depends_on_its_own_number_alone(tmp_path):
    few, many = drawn(tmp_path / "few"), drawn(tmp_path / "many", cars=4)
    assert few == drawn(tmp_path / "again")
    assert few.items() <= many.items()
    assert not few.items() & drawn(tmp_path / "other", seed=1).items()
    assert len(set(many.values())) == len(many)


def test_any_size(tmp_path):
    for size in ((1280, 1918), (97, 33), (32, 200)):
        drawn(tmp_path / str(size), cars=1, views=1, size=size)
        (pair,) = pair_files(tmp_path / str(size) / "train", tmp_path / str(size) / "train_masks")
        mask = read_mask(pair.mask, find_mask_rule([pair.mask]))
        assert read_image(pair.image).shape == (*size, 3) and mask.shape == size and mask.any()


def test_neither_a_threshold_nor_an_untrained_network_can_do_it(tmp_path):
    drawn(tmp_path, cars=10, views=4, size=(64, 96))
    pairs = pair_files(tmp_path / "train", tmp_path / "train_masks")
    mask_rule = find_mask_rule([pair.mask for pair in pairs])
    images = np.stack([read_image(pair.image) for pair in pairs])
    truths = np.stack([read_mask(pair.mask, mask_rule) for pair in pairs]).astype(bool)

    def dice(found):
        return np.mean(2 * (found & truths).sum((1, 2)) / (found.sum((1, 2)) + truths.sum((1, 2))))

    grey = images.mean(3)
    assert max(dice(grey < level) for level in range(20, 250, 10)) < 0.75
    assert max(dice(grey > level) for level in range(20, 250, 10)) < 0.75
    torch.manual_seed(0)
    with torch.no_grad():
        logits = UNet(features=(4, 8)).eval()(torch.from_numpy(images).permute(0, 3, 1, 2) / 255)
    assert dice(logits[:, 0].numpy() > 0) < 0.6


def test_impossible_numbers_in_words(tmp_path):
    for keywords in ({"cars": 0}, {"views": 0}, {"views": 100}, {"size": (8, 8)}):
        with pytest.raises(UserError, match="The demo draws"):
            drawn(tmp_path, **keywords)
