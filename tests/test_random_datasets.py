"""Datasets drawn at random train with exactly what they mean, or are refused in words that say what is wrong."""

import re

import pytest
from helpers import script
from random_datasets import check_seed, make, words_of

SEEDS, A_TEST = 1000, 50


@pytest.mark.slow
@pytest.mark.parametrize("first", range(0, SEEDS, A_TEST))
def test_a_dataset_is_read_as_it_is_meant_or_refused_in_words(first, tmp_path):
    told, outcomes = [], set()
    for seed in range(first, first + A_TEST):
        meant, outcome, wrong = check_seed(seed, tmp_path / str(seed), sheet=seed % 5 == 0)
        outcomes.add(outcome)
        if wrong:
            told.append(f"python tests/random_datasets.py {seed} FOLDER: {words_of(meant)}\n{outcome}: {wrong}")
    assert not told, "\n\n".join(told)
    assert outcomes == {"trained", "refused"}, "the generator draws both"


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(0, 50, 5))
def test_the_scripts_say_the_same_of_a_dataset(seed, tmp_path):
    meant = make(seed, tmp_path / "data")
    train_img, train_mask, *validation = meant.folders
    validation = validation or meant.folders  # train.py has two sides; those of one are warned of
    constants = [flag for name, value in meant.constants.items() for flag in _flags(name, value)]
    looked = script(
        "dataset.py", train_img, train_mask, *meant.folders[2:], *constants, "--sheet", "none", cwd=tmp_path
    )
    sides = zip(("train-img", "train-mask", "val-img", "val-mask"), (train_img, train_mask, *validation))
    folders = [word for name, folder in sides for word in (f"--{name}-dir", folder)]
    small = ["--features", 4, 8, "--num-epochs", 1, "--batch-size", 2, "--device", "cpu", "--num-workers", 0]
    trained = script("train.py", *folders, *constants, *small, "--output-dir", "out", cwd=tmp_path)
    for done in (looked, trained):
        assert "Traceback" not in done.stderr + done.stdout, done.stderr
        expected = {"must train": [0], "must refuse": [2], "either": [0, 2]}[meant.state]
        assert done.returncode in expected, f"{words_of(meant)}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
        assert done.returncode == 0 or re.search("[A-Z]+_[A-Z]+|CLASSES|data/", done.stderr)


def _flags(name, value):
    flag = f"--{name.lower().replace('_', '-')}"
    if isinstance(value, bool):
        return [flag] if value else []
    if isinstance(value, dict):
        return [flag, *(f"{key}={one}" for key, one in value.items())]
    return [flag, *(value if isinstance(value, tuple) else [value])]
