"""train.py as a user runs it: real files, processes and signals."""

import csv
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from conftest import ROOT, SMALL, draw_pairs, script

import train
from errors import UserError
from settings import settings_of

ARTEFACTS = {"checkpoint.pth", "best.pth", "history.csv", "curves.png", "saved_images"}


def history(folder):
    with open(folder / "history.csv") as file:
        return list(csv.DictReader(file))


def same_runs(one, other):
    """Weights, averages, optimizer, history and pictures are the same, bit for bit."""
    first, second = torch.load(one / "checkpoint.pth"), torch.load(other / "checkpoint.pth")
    assert first.keys() == second.keys()
    for key in ("state_dict", "training_state_dict", "optimizer", "schedule", "average", "history", "epoch"):
        assert_same(first[key], second[key], key)
    for name in ("history.csv", "curves.png"):
        assert (one / name).read_bytes() == (other / name).read_bytes(), name
    pictures = sorted(path.relative_to(one) for path in (one / "saved_images").rglob("*.png"))
    assert pictures == sorted(path.relative_to(other) for path in (other / "saved_images").rglob("*.png"))
    for path in pictures:
        assert (one / path).read_bytes() == (other / path).read_bytes(), path


def assert_same(one, other, where):
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other), where
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            assert_same(one[key], other[key], f"{where}.{key}")
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other), where
        for index, (left, right) in enumerate(zip(one, other)):
            assert_same(left, right, f"{where}.{index}")
    else:
        assert one == other, where


def run_here(monkeypatch, folder, *flags):
    """train.py's main in this process, in `folder`: spares the imports."""
    monkeypatch.chdir(folder)
    train.main([*SMALL, *map(str, flags)])


def start(*flags, cwd):
    return subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), *map(str, flags)],
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for_epochs(folder, count, process):
    """Until history.csv holds `count` epochs."""
    for _ in range(2000):
        if (folder / "history.csv").exists() and len(history(folder)) >= count:
            return
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.01)
    raise AssertionError("the run made no progress")


def test_a_run_leaves_every_artefact_and_learns(prepared):
    done = script("train.py", *SMALL, "--num-epochs", 12, "--batch-size", 2, cwd=prepared)
    assert done.returncode == 0, done.stderr
    assert {path.name for path in prepared.iterdir()} >= ARTEFACTS
    lines = history(prepared)
    assert [int(line["epoch"]) for line in lines] == list(range(1, 13))
    assert float(lines[-1]["dice"]) > 0.8 and float(lines[-1]["loss"]) < float(lines[0]["loss"])
    drawn = {path.name for path in (prepared / "saved_images").iterdir()}
    assert {"0.png", "pred_0.png", "examples.png", "worst.png", "strip.png"} <= drawn
    assert "NUM_EPOCHS" in done.stdout and "Best Dice" in done.stdout
    best = torch.load(prepared / "best.pth")
    assert best["best_dice"] == max(float(line["dice"]) for line in lines) and best["network"]["features"] == [4, 8]


@pytest.mark.parametrize(
    "flags",
    [
        ["--ema-decay", "0.9", "--num-workers", "2"],
        ["--schedule", "plateau", "--plateau-patience", "1", "--accumulate", "2", "--no-arrays"],
        ["--schedule", "cosine", "--optimizer", "adam", "--loss", "bce", "--clip-gradient", "0"],
    ],
    ids=["average and workers", "plateau and accumulation", "cosine"],
)
def test_a_run_stopped_and_resumed_is_the_run_never_stopped(prepared, monkeypatch, capsys, flags):
    flags = ["--num-epochs", "4", *flags]
    whole, stopped = prepared / "whole", prepared / "stopped"
    run_here(monkeypatch, prepared, *flags, "--output-dir", whole)
    process = start(*SMALL, *flags, "--output-dir", stopped, cwd=prepared)
    wait_for_epochs(stopped, 2, process)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "--load-model" in err and "Traceback" not in err
    capsys.readouterr()
    run_here(monkeypatch, prepared, *flags, "--output-dir", stopped, "--load-model")
    said = capsys.readouterr().out
    assert "Going on after epoch" in said and "would have been" not in said
    same_runs(whole, stopped)


def test_a_changed_setting_is_said_on_resuming(prepared, monkeypatch, capsys):
    run_here(monkeypatch, prepared, "--num-epochs", 1)
    run_here(monkeypatch, prepared, "--num-epochs", 2, "--no-flip", "--load-model")
    said = capsys.readouterr().out
    assert "NUM_EPOCHS 1 -> 2" in said and "FLIP True -> False" in said
    assert [line["epoch"] for line in history(prepared)] == ["1", "2"]


def test_a_resumed_run_has_the_optimizer_settings_of_now(prepared, monkeypatch):
    run_here(monkeypatch, prepared, "--num-epochs", 1)
    run_here(monkeypatch, prepared, "--num-epochs", 2, "--weight-decay", 0.3, "--load-model")
    groups = torch.load(prepared / "checkpoint.pth")["optimizer"]["param_groups"]
    assert [group["weight_decay"] for group in groups] == [0.3, 0]


def test_a_run_stopped_before_its_first_epoch_does_not_claim_an_earlier_runs(prepared, monkeypatch):
    run_here(monkeypatch, prepared, "--num-epochs", 1)
    process = start(*SMALL, "--num-epochs", 500, "--seed", 1, cwd=prepared)
    for line in process.stdout:
        if "Settings" in line:
            break
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    goes_on = (prepared / "history.previous.csv").exists() and len(history(prepared)) > 0
    assert ("--load-model" in err) == goes_on, err


def test_sigterm_ends_cleanly_and_leaves_no_worker(prepared):
    process = start(*SMALL, "--num-epochs", 500, "--num-workers", 2, "--no-arrays", cwd=prepared)
    wait_for_epochs(prepared, 1, process)
    children = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True).stdout.split()
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 143 and "--load-model" in err and "Traceback" not in err
    deadline = time.monotonic() + 15
    while any(os.path.exists(f"/proc/{child}") for child in children):
        assert time.monotonic() < deadline, "a worker outlived its run"
        time.sleep(0.1)
    torch.load(prepared / "checkpoint.pth")


def test_ten_kills_at_random_moments_lose_nothing(tmp_path):
    done = script("benchmarks/faults.py", "--kills", 10, "--saves", 0, cwd=tmp_path)
    assert done.returncode == 0 and done.stdout.startswith("10 kills"), done.stderr


def test_a_second_ctrl_c_ends_at_once(prepared):
    process = start(*SMALL, "--num-epochs", 500, cwd=prepared)
    wait_for_epochs(prepared, 1, process)
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert process.returncode in (130, -signal.SIGINT)
    torch.load(prepared / "checkpoint.pth")


def test_two_runs_do_not_share_a_folder(prepared):
    process = start(*SMALL, "--num-epochs", 500, cwd=prepared)
    wait_for_epochs(prepared, 1, process)
    done = script("train.py", *SMALL, "--num-epochs", 1, cwd=prepared)
    process.kill()
    process.communicate()
    assert done.returncode == 2 and f"process {process.pid}" in done.stderr


def test_no_data_is_told_in_one_message(tmp_path):
    done = script("train.py", cwd=tmp_path)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "augmented_train_images" in done.stderr and "--demo" in done.stderr and "carvana" in done.stderr.lower()


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--batch-size", "0"], "BATCH_SIZE = 0"),
        (["--image-size", "32"], "IMAGE_SIZE"),
        (["--clip-gradient", "-1"], "CLIP_GRADIENT = -1"),
        (["--seed", "-1"], "SEED = -1"),
        (["--loss", "hinge"], "hinge"),
        (["--schedule", "stairs"], "stairs"),
        (["--optimizer", "magic"], "magic"),
        (["--encoder", "resnet1"], "resnet1"),
        (["--device", "tpu"], "tpu"),
        (["--load-model"], "checkpoint.pth"),
        (["--image-size", "2", "2"], "too small"),
        (["--train-mask-dir", "nowhere"], "nowhere"),
    ],
)
def test_mistakes_are_told_in_words(prepared, monkeypatch, flags, words):
    with pytest.raises(UserError, match=words):
        run_here(monkeypatch, prepared, "--num-epochs", "1", *flags)


def test_a_constant_edited_into_another_kind_is_told_in_words(tmp_path):
    source = (ROOT / "train.py").read_text().replace("\nNUM_EPOCHS = 20 ", '\nNUM_EPOCHS = "20" ')
    (tmp_path / "edited.py").write_text(source)
    with pytest.raises(UserError, match="NUM_EPOCHS = '20': at least 1"):
        train.check(settings_of(tmp_path / "edited.py", []))


def test_a_checkpoint_of_another_architecture_is_refused(prepared, monkeypatch):
    run_here(monkeypatch, prepared, "--num-epochs", 1)
    before = (prepared / "checkpoint.pth").read_bytes()
    with pytest.raises(UserError, match="another architecture"):
        run_here(monkeypatch, prepared, "--features", 4, 16, "--load-model")
    assert (prepared / "checkpoint.pth").read_bytes() == before


def test_a_loss_that_is_not_finite_names_the_files(prepared):
    flags = ["--learning-rate", "1e30", "--clip-gradient", "0", "--optimizer", "adam", "--warmup", "0"]
    done = script("train.py", *SMALL, "--num-epochs", 4, *flags, cwd=prepared)
    assert done.returncode == 2 and "The loss is" in done.stderr and "img_" in done.stderr, done.stderr


OTHERWISE = {  # constants of training -> another value than that of SMALL or the default
    "IMAGE_SIZE": [40, 48],
    "FEATURES": [4, 6],
    "BATCH_SIZE": [3],
    "ACCUMULATE": [2],
    "LEARNING_RATE": [0.02],
    "OPTIMIZER": ["adam"],
    "WEIGHT_DECAY": [0.1],
    "SCHEDULE": ["cosine"],
    "WARMUP": [0.6],
    "LOSS": ["bce"],
    "CLIP_GRADIENT": [0.01],
    "EMA_DECAY": [0.9],
    "HALF_SIZE": [0.5],
    "COLOR_JITTER": [0.3],
    "PRECISION": ["bfloat16"],
    "SEED": [1],
    "ENCODER": ["resnet18", "--encoder-weights", "none"],
}


def test_no_constant_of_training_is_ignored(prepared, monkeypatch):
    for drawing in ("save_predictions", "save_examples", "write_history"):
        monkeypatch.setattr(train, drawing, lambda *given, **named: None)  # which takes ten times as long

    def weights(name, *flags):
        base = ["--num-epochs", 1, "--batch-size", 2, "--precision", "float32", "--output-dir", name]
        run_here(monkeypatch, prepared, *base, *flags)
        return torch.load(prepared / name / "best.pth")["state_dict"]

    def same(one, other):
        return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)

    usual = weights("usual")
    assert same(weights("again"), usual)
    flags = {name: [f"--{name.lower().replace('_', '-')}", *values] for name, values in OTHERWISE.items()}
    flags["FLIP"] = ["--no-flip"]
    assert [name for name in flags if same(weights(name, *flags[name]), usual)] == []


def test_the_plateau_schedule_follows_dice_with_its_patience(prepared, monkeypatch):
    for patience, falls_in in ((0, 3), (2, 5)):  # the first epoch is the best: nothing can be learnt at this rate
        flags = ["--learning-rate", "1e-6", "--schedule", "plateau", "--warmup", 0, "--num-epochs", 5]
        run_here(monkeypatch, prepared, *flags, "--plateau-patience", patience, "--output-dir", f"{patience}")
        rates = [float(line["learning_rate"]) for line in history(prepared / f"{patience}")]
        assert [epoch for epoch, rate in enumerate(rates, 1) if rate < 5e-7][:1] == [falls_in]


def test_patience_ends_the_run(prepared, monkeypatch, capsys):
    run_here(monkeypatch, prepared, "--learning-rate", "1e-12", "--num-epochs", 30, "--patience", 2)
    assert "(PATIENCE)" in capsys.readouterr().out and len(history(prepared)) < 10


def test_foreground_never_predicted_is_said(prepared, monkeypatch, capsys):
    run_here(monkeypatch, prepared, "--num-epochs", 1, "--learning-rate", "1e-12")
    assert "predicted as foreground" in capsys.readouterr().out


def kill_a_worker(prepared, folder):
    flags = ["--num-epochs", 500, "--num-workers", 2, "--no-arrays", "--output-dir", folder]
    process = start(*SMALL, *flags, cwd=prepared)
    wait_for_epochs(folder, 1, process)
    for _ in range(200):  # workers live for one epoch each
        found = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True).stdout.split()
        if found:
            try:
                os.kill(int(found[0]), signal.SIGKILL)
                break
            except ProcessLookupError:
                continue
    try:
        return process.communicate(timeout=20)[1], process.returncode
    except subprocess.TimeoutExpired:
        process.kill()
        raise


def test_a_killed_worker_is_told_and_the_checkpoint_stands(prepared):
    for attempt in range(3):  # a worker killed after its last batch harms nobody, and the run goes on
        try:
            err, code = kill_a_worker(prepared, prepared / f"run{attempt}")
            break
        except subprocess.TimeoutExpired:
            continue
    assert code == 2 and "worker" in err and "Traceback" not in err, err
    torch.load(prepared / f"run{attempt}" / "checkpoint.pth")


def test_a_file_that_vanishes_while_training_is_named(prepared):
    process = start(*SMALL, "--num-epochs", 500, "--no-arrays", "--num-workers", 2, cwd=prepared)
    wait_for_epochs(prepared, 1, process)
    (prepared / "dataset/augmented_train_images/img_004.png").unlink()
    _, err = process.communicate(timeout=60)
    assert process.returncode == 2 and "img_004.png" in err and "Traceback" not in err, err
    torch.load(prepared / "checkpoint.pth")


def test_a_read_only_or_missing_place_is_told(prepared):
    (prepared / "file").write_text("")
    done = script("train.py", *SMALL, "--output-dir", "file/run", cwd=prepared)
    assert done.returncode == 2 and "Traceback" not in done.stderr and "file" in done.stderr, done.stderr


def test_more_pictures_change_the_arrays(prepared, monkeypatch, capsys):
    run_here(monkeypatch, prepared, "--num-epochs", 1)
    draw_pairs(prepared / "dataset/augmented_train_images", prepared / "dataset/augmented_train_masks", 2, first=90)
    capsys.readouterr()
    before = torch.load(prepared / "best.pth")
    run_here(monkeypatch, prepared, "--num-epochs", 1)
    assert "3 steps an epoch" in capsys.readouterr().out
    assert_same(torch.load(prepared / "best.previous.pth"), before, "the earlier run's")
