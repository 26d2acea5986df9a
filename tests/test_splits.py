"""Splits: random ones with whole groups and strata, those by a list, and what of their two sides differs."""

from pathlib import Path

import pytest

from parts.errors import UserError
from parts.names import Pair
from parts.splits import RANDOM, folds, kind_of_name, one_sided, split


def pairs_of(names):
    """Pairs of these names, whose files do not exist."""
    return [Pair(name, Path(f"{name}.png"), Path(f"m/{name}.png")) for name in sorted(names)]


def names_of(pairs):
    """Their names."""
    return [pair.name for pair in pairs]


def test_a_random_split_takes_whole_groups_and_drops_nothing():
    pairs = pairs_of(f"{car:012x}_{view:02d}" for car in range(10) for view in range(4))
    chosen = [split(pairs, 6, choice=RANDOM, seed=seed) for seed in (0, 0, 1)]
    assert chosen[0] == chosen[1] != chosen[2]
    for train, val, left_out in chosen:
        assert not left_out and len(val) == 8 and sorted(train + val, key=lambda pair: pair.name) == pairs
        assert not {name[:12] for name in names_of(train)} & {name[:12] for name in names_of(val)}


@pytest.mark.parametrize("seed", range(5))
def test_a_random_split_is_stratified_by_the_rarest_label_that_a_mask_holds(seed):
    pairs = pairs_of(f"p{k:03d}" for k in range(60))
    labels = {name: {0} if k % 3 else {0, 1} for k, name in enumerate(names_of(pairs))}
    labels["p001"] = {0, 1, 2}
    for number in (6, 15):
        val = names_of(split(pairs, number, choice=RANDOM, seed=seed, labels=labels).val)
        assert len(val) == number and "p001" not in val  # what is there once is for training
        assert abs(sum(1 in labels[name] for name in val) - number / 3) <= 1


def test_folds_share_out_whole_groups_and_validate_on_no_copies():
    cars = [f"{car:012x}_{view:02d}" for car in range(9) for view in range(4)]
    pairs = pairs_of(f"{name}{copy}" for name in cars for copy in ("", "_hflip"))
    labels = {pair.name: {0, 1} if pair.name[11] in "036" else {0} for pair in pairs}
    parts = folds(pairs, 3, "auto", 0, labels)
    assert parts == folds(pairs, 3, "auto", 0, labels) != folds(pairs, 3, "auto", 1, labels)
    assert sorted(name for part in parts for name in names_of(part.val)) == cars
    for train, val, left_out in parts:
        assert (len(train), len(val), len(left_out)) == (48, 12, 12) and len({*train, *val, *left_out}) == 72
        assert {name[:12] for name in names_of(val)} == {name[:12] for name in names_of(left_out)}
        assert not {name[:12] for name in names_of(val)} & {name[:12] for name in names_of(train)}
        assert sum(1 in labels[name] for name in names_of(val)) == 4
    uneven = pairs_of([*(f"a_{k}" for k in range(10)), "b_1", "c_1"])
    assert [len(part.val) for part in folds(uneven, 3, r"\w_", 0, {})] != [12, 0, 0]
    assert all(part.val for seed in range(9) for part in folds(uneven, 3, r"\w_", seed, {}))


def test_a_list_says_what_is_held_out(tmp_path, capsys):
    pairs, listed = pairs_of(["a/x", "a/y", "b/z_1", "b/z_2"]), tmp_path / "val.txt"
    listed.write_text("a/x\n\nb/z_1.png\n")
    assert [names_of(side) for side in split(pairs, str(listed), r"b/z")] == [["a/y"], ["a/x", "b/z_1"], ["b/z_2"]]
    listed.write_text("a/x\nc\n")
    with pytest.raises(UserError, match="1 name of no image that has a mask: c.*SKIP_UNPAIRED"):
        split(pairs, str(listed))
    assert names_of(split(pairs, str(listed), skip_unknown=True).val) == ["a/x"]
    assert "of no image that has a mask: c" in capsys.readouterr().out
    listed.write_text("\n".join(names_of(pairs)))
    with pytest.raises(UserError, match="4 of the 4"):
        split(pairs, str(listed))


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a_street_07", "a_street"),
        ("cat01_2_hflip", "cat"),
        ("z indoor (3)", "z_indoor"),
        ("street/0001", "street"),
        ("patient3/slice-07", "patient/slice"),
        ("fff9b3a5373f_01", ""),
        ("0cdf5b5d0ce1_01", ""),
        ("val_001", ""),
        ("COCO_train2014_000012", "COCO"),
        ("IMG_4_jpg.rf.0a1b", "IMG"),
    ],
)
def test_the_kind_that_a_name_tells(name, kind):
    assert kind_of_name(name) == kind


def test_kinds_that_one_side_alone_has():
    assert one_sided(["cat"] * 24, ["dog"] * 6) == [
        "cat: 24 for training, 0 for validation",
        "dog: 0 for training, 6 for validation",
    ]
    assert one_sided(["cat"] * 24 + ["dog"], ["dog"] * 6) == ["cat: 24 for training, 0 for validation"]
    assert not one_sided(["cat"] * 24 + ["dog"] * 4, ["cat"] * 6)  # four of 28 are missing among six by chance
    assert not one_sided(["cat"], ["dog"])
    assert not one_sided(map(str, range(90)), map(str, range(90, 100)))
