"""What tests and benchmarks share: small data, and the scripts run as a user runs them."""

import csv
import functools
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

# The constants of train.py that a run in the tests changes: a network and images so small that an epoch takes a moment.
TRAIN = dict(
    IMAGE_SIZE=(32, 48),
    NUM_WORKERS=0,
    FEATURES=(4, 8),
    NUM_EPOCHS=1,
    BATCH_SIZE=4,
    LEARNING_RATE=0.01,
    DEVICE="cpu",
    PRECISION="float32",  # what "auto" takes is timed, and may differ from one run to the next
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


class _Warm:
    """The process that tests/warm.py is, started when the first script asks for it."""

    def __init__(self):
        self.connection, other = socket.socketpair()
        with other:
            words = [sys.executable, str(ROOT / "tests" / "warm.py"), str(other.fileno())]
            subprocess.Popen(words, pass_fds=[other.fileno()], stdin=subprocess.DEVNULL)

    def received(self):
        """The next number that it sends."""
        sent = b""
        while len(sent) < struct.calcsize("i"):
            piece = self.connection.recv(struct.calcsize("i") - len(sent))
            assert piece, "the warm process has ended"
            sent += piece
        return struct.unpack("i", sent)[0]

    def run(self, words, cwd, environment):
        """subprocess.CompletedProcess of a script and its arguments."""
        with tempfile.TemporaryFile("w+") as request, _captured() as out, _captured() as err:
            json.dump(dict(argv=words, cwd=str(cwd), environment=environment), request)
            request.seek(0)
            self.connection.settimeout(WAIT)
            socket.send_fds(self.connection, [b"."], [request.fileno(), out.fileno(), err.fileno()])
            child = self.received()
            try:
                status = self.received()
            except TimeoutError:
                os.kill(child, signal.SIGKILL)
                self.connection.settimeout(None)
                self.received()
                raise subprocess.TimeoutExpired(words, WAIT, _text(out), _text(err)) from None
            return subprocess.CompletedProcess(words, status, _text(out), _text(err))


def _captured():
    return tempfile.TemporaryFile("w+", errors="replace")


def _text(file):
    file.seek(0)
    return file.read()


@functools.cache
def _warm(number):
    return _Warm()


_AT_START = ("OMP_", "MKL_", "PYTHON", "TORCH_", "CUDA_", "LD_", "MALLOC_", "LC_", "LANG")  # read when a process starts


def script(name, *flags, cwd, env=None, beside=0):
    """Runs one of the repository's scripts in the folder `cwd`, as a user does, but spares it the imports of libraries.

    `script("-c", code, ...)` runs Python code. It is a fork of one process (tests/warm.py), and a process of its own
    where the environment `env` differs in what is read at the start. Scripts that run at the same time, each called by
    a thread of its own, have different numbers `beside`.
    """
    env = dict(os.environ if env is None else env)
    others = {key for key in {*env, *os.environ} if env.get(key) != os.environ.get(key)} - {"PYTHONPATH"}
    if sys.platform != "linux" or any(key.startswith(_AT_START) for key in others):
        return fresh_script(name, *flags, cwd=cwd, env=env)
    words = [name if name == "-c" else str(ROOT / name), *map(str, flags)]
    return _warm(beside).run(words, cwd, env)


def fresh_script(name, *flags, cwd, env=None):
    """The same in a process of its own: for tests of what happens when one starts."""
    words = [sys.executable, name if name == "-c" else str(ROOT / name), *map(str, flags)]
    return subprocess.run(words, cwd=cwd, env=env, capture_output=True, text=True, timeout=WAIT)


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
