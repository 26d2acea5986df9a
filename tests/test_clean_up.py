"""CleanUp: small areas, all but the largest, and holes, of one foreground and of classes; in predict.py with scores."""

import re

import numpy as np
import pytest
from predicting import RULES, blobs, load, save

from parts.clean_up import CleanUp

MASK = """
.......1
.111....
.1.1.11.
.111.1..
......1.
"""


def drawn(text):
    """A mask of digits, dots being 0."""
    rows = text.replace(".", "0").split()
    return np.array([list(map(int, row)) for row in rows], np.uint8)


@pytest.mark.parametrize(
    ("clean_up", "mask", "expected"),
    [
        (CleanUp(), MASK, MASK),
        (CleanUp(min_pixels=2), MASK, MASK.replace(".......1", "........")),
        (CleanUp(min_pixels=5), MASK, "........ .111.... .1.1.... .111.... ........"),  # the four touch by a corner
        (CleanUp(largest=True, fill_holes=True), MASK, "........ .111.... .111.... .111.... ........"),
        (CleanUp(min_pixels=99), MASK, "........ ........ ........ ........ ........"),
        (CleanUp(fill_holes=True), "1111 1..1 11.1", "1111 1..1 11.1"),  # open at the border
        (CleanUp(largest=True), "2.11 ..1. 2222", "..11 ..1. 2222"),  # each class has its largest
        (CleanUp(fill_holes=True), "11111 1.1.1 11121 11111", "11111 111.1 11121 11111"),
        (CleanUp(fill_holes=True), "1111 1.21 1111", "1111 1.21 1111"),  # a thing inside is no hole
        (CleanUp(min_pixels=2), "11122 13122 11122", "11122 11122 11122"),  # the nearest label that stays
        (CleanUp(min_pixels=2, fill_holes=True, background=None), ".111 ...1", ".111 ...1"),
        (CleanUp(min_pixels=2, background=None), ".111 11.1", "1111 1111"),
    ],
)
def test_what_stays(clean_up, mask, expected):
    mask = drawn(mask)
    before = mask.copy()
    assert np.array_equal(clean_up(mask), drawn(expected)) and np.array_equal(mask, before)


def test_random_masks_follow_the_definition():
    rng = np.random.default_rng(0)
    for number in range(20):
        mask = (rng.random((40, 50)) < 0.3 + 0.02 * number).astype(np.uint8)
        cleaned = CleanUp(min_pixels=6)(mask)
        assert (cleaned <= mask).all() and np.array_equal(CleanUp(min_pixels=6)(cleaned), cleaned)
        filled = CleanUp(fill_holes=True)(mask)
        assert (filled >= mask).all() and np.array_equal(CleanUp(fill_holes=True)(filled), filled)


def test_predict_tells_dice_before_and_after(call, classes_checkpoint, tmp_path, capsys):
    """The true masks are those that the network predicts, without their small areas."""
    for number in range(2):
        save(tmp_path / "photos" / f"{number}.png", blobs(100, 150, number))
    for kind, flags in (("", []), ("classes", ["--checkpoint", classes_checkpoint(RULES["numbers"])])):
        _, out = call(tmp_path / "photos", *flags, "--output-dir", tmp_path / f"raw{kind}")
        raw, masks = tmp_path / f"raw{kind}", tmp_path / f"masks{kind}"
        for path in raw.glob("*.png"):
            values = load(path)
            labels = np.searchsorted(np.unique(values), values).astype(np.uint8)
            save(masks / path.name, np.unique(values)[CleanUp(min_pixels=200)(labels)])
        capsys.readouterr()
        folder = tmp_path / f"out{kind}"
        call(tmp_path / "photos", *flags, "--min-pixels", 200, "--masks", masks, "--output-dir", folder)
        told = capsys.readouterr().out
        before, after = re.search(r"clean-up has changed Dice from (\S+) to (\S+)\.\n", told).groups()
        assert float(before) < 1 and float(after) == 1
        assert all(np.array_equal(load(folder / path.name), load(path)) for path in masks.glob("*.png"))
