"""FOLDS: every image is scored by the network that has not seen it, and all folds go on as one run."""

import csv
import shutil
import signal
import statistics

import numpy as np
import pytest
import torch
from helpers import SMALL, WAIT, same_runs, start, wait_for_epochs

import train
from parts.errors import UserError
from parts.folds import fold_folder

FLAGS = [*SMALL, "--folds", "3", "--batch-size", "2"]


@pytest.mark.slow
def test_folds_stopped_in_their_middle_are_those_never_stopped(prepared, monkeypatch, capsys):
    shutil.rmtree(prepared / "dataset/augmented_test_images")  # not needed
    monkeypatch.chdir(prepared)
    flags = [*FLAGS, "--num-epochs", "3"]
    train.main([*flags, "--output-dir", "whole"])
    told = capsys.readouterr().out
    stopped = prepared / "stopped"
    process = start("train.py", *flags, "--output-dir", stopped, cwd=prepared)
    wait_for_epochs(fold_folder(stopped, 2), 1, process)  # one fold is done, one has not begun
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=WAIT)
    assert process.returncode == 130 and "--load-model" in err and "--fold " not in err, err
    train.main([*flags, "--output-dir", "stopped", "--load-model"])
    assert (prepared / "whole/scores.csv").read_bytes() == (stopped / "scores.csv").read_bytes()
    assert (prepared / "whole/worst.png").read_bytes() == (stopped / "worst.png").read_bytes()
    dice = []
    for fold in (1, 2, 3):
        same_runs(fold_folder(prepared / "whole", fold), fold_folder(stopped, fold))
        dice.append(torch.load(fold_folder(stopped, fold) / "best.pth")["best_dice"])
    with open(stopped / "scores.csv") as file:
        rows = list(csv.DictReader(file))
    images = {path.stem for path in (prepared / "dataset/augmented_train_images").iterdir()}
    assert {row["image"] for row in rows} == images and len(rows) == len(images)
    assert [float(row["dice"]) for row in rows] == sorted(float(row["dice"]) for row in rows)
    for fold, value in enumerate(dice, 1):
        own = [float(row["dice"]) for row in rows if row["fold"] == str(fold)]
        assert np.mean(own) == pytest.approx(value, abs=1e-6)
        assert f"fold {fold}   Dice {value:.4f}   {len(own)} images" in told
    assert f"Dice {np.mean(dice):.4f}, standard deviation {statistics.stdev(dice):.4f}" in told


def test_one_fold_alone_leaves_out_what_it_validates_on(prepared, monkeypatch, capsys):
    monkeypatch.chdir(prepared)
    train.main([*FLAGS, "--fold", "2", "--load-model"])
    assert "Fold 2 of 3: 7 pairs for training, 4 for validation." in capsys.readouterr().out
    data = torch.load(prepared / "fold_2/checkpoint.pth")["data"]
    sides = [set(data[side]["sources"]["images"]) for side in ("training", "validation")]
    assert [len(side) for side in sides] == [7, 4] and not sides[0] & sides[1]
    assert {path.name for path in prepared.iterdir()} == {"dataset", "fold_2"}


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--fold", "4"], "FOLD = 4: it is one of FOLDS = 3"),
        (["--folds", "none", "--fold", "1"], "FOLD = 1: it is one of FOLDS = None"),
        (["--folds", "12"], "FOLDS = 12: there are 11 groups"),
        (["--folds", "1"], "FOLDS = 1: a whole number, 2 or more"),
    ],
)
def test_folds_that_cannot_be(prepared, monkeypatch, flags, words):
    monkeypatch.chdir(prepared)
    with pytest.raises(UserError, match=words):
        train.main([*FLAGS, *flags])
