"""What tests and benchmarks share: small data, and the scripts run as a user runs them."""

import csv
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

# What a run of train.py's in the tests has in its constants: a network and images so small that an epoch takes a moment.
TRAIN = dict(
    IMAGE_SIZE=(32, 48),
    NUM_WORKERS=0,
    FEATURES=(4, 8),
    NUM_EPOCHS=1,
    BATCH_SIZE=4,
    LEARNING_RATE=0.01,
    DEVICE="cpu",
)


def flags(**constants):
    """train.py's command line for TRAIN with these changes."""
    words = []
    for name, value in (TRAIN | constants).items():
        flag = name.lower().replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            words += [f"--{flag}", *map(str, value if isinstance(value, tuple) else [value])]
    return words


SMALL = flags()

ROOT = Path(__file__).resolve().parent.parent
WAIT = 120  # seconds, for a process that should end; a slow machine needs a part of it


def draw_pairs(images, masks, count, size=(40, 60), first=0):
    """Bright rectangles on dark noise, and their masks; no two alike."""
    images.mkdir(parents=True, exist_ok=True)
    masks.mkdir(parents=True, exist_ok=True)
    for index in range(first, first + count):
        draw = np.random.default_rng(index)
        mask = np.zeros(size, np.uint8)
        top, left = draw.integers(0, size[0] // 2), draw.integers(0, size[1] // 2)
        mask[top : top + size[0] // 3, left : left + size[1] // 3] = 255
        noise = draw.integers(0, 100, (*size, 3), np.uint8)
        Image.fromarray(noise + mask[..., None] // 2).save(images / f"img_{index:03d}.png")
        Image.fromarray(mask).save(masks / f"img_{index:03d}.png")


def script(name, *flags, cwd, **keywords):
    """Runs one of the repository's scripts as a user does, in the folder `cwd`."""
    return subprocess.run(
        [sys.executable, str(ROOT / name), *map(str, flags)],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=WAIT,
        **keywords,
    )


fresh_script = script


def start(*command, cwd, **keywords):
    """A script of the repository, or another command, started in `cwd`; end it with communicate(timeout=WAIT)."""
    name, *words = map(str, command)
    words = [sys.executable, str(ROOT / name), *words] if name.endswith(".py") else [name, *words]
    pipe = subprocess.PIPE
    return subprocess.Popen(words, cwd=cwd, stdout=pipe, stderr=pipe, text=True, **keywords)


def history(folder):
    with open(folder / "history.csv") as file:
        return list(csv.DictReader(file))


def wait_for_epochs(folder, count, process):
    """Until history.csv holds `count` epochs."""
    end = time.monotonic() + WAIT
    while time.monotonic() < end:
        if (folder / "history.csv").exists() and len(history(folder)) >= count:
            return
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.01)
    raise AssertionError("the run made no progress")


def children_of(process):
    """Process ids of what a process has started."""
    found = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True)
    return list(map(int, found.stdout.split()))


def wait_for_end(pids, seconds=15):
    end = time.monotonic() + seconds
    while any(os.path.exists(f"/proc/{pid}") for pid in pids):
        assert time.monotonic() < end, "a process outlived its run"
        time.sleep(0.05)


def same_runs(one, other):
    """Asserts that weights, optimizer, history and pictures of two runs are the same, bit for bit."""
    first, second = torch.load(one / "checkpoint.pth"), torch.load(other / "checkpoint.pth")
    assert first.keys() == second.keys()
    for key in ("state_dict", "optimizer", "schedule", "history", "epoch"):
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
