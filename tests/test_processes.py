"""Two gloo processes on one machine."""

import json
import os
import platform
import signal
import subprocess
import sys
import time

import pytest
import torch
from conftest import ROOT, SMALL, script
from test_train import history, run_here, same_runs, wait_for_epochs

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
ALONE = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
ALONE["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])


def start(*flags, cwd):
    return subprocess.Popen(
        [*TORCHRUN, *map(str, flags)],
        cwd=cwd,
        env=ALONE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def together(*flags, cwd):
    process = start(*flags, cwd=cwd)
    out, err = process.communicate(timeout=180)
    return process.returncode, out, err


ONE_STEP = """
import json, sys, torch, processes
from loading import get_loaders
from unet import UNet
from utils import check_accuracy
PARTS = ("train_images", "train_masks", "test_images", "test_masks")
with processes.together("cpu") as device:
    torch.manual_seed(0)
    network = UNet(features=(4, 8)).eval()  # BatchNorm frozen: each process sees half of the batch
    images, masks = torch.rand(4, 3, 16, 16), (torch.rand(4, 1, 16, 16) > 0.5).float()
    rank, world = processes.rank(), processes.world_size()
    model = processes.wrap(network, device)
    halves = [(images[i], masks[i]) for i in (slice(0, 2), slice(2, 4))]
    for index, (x, y) in enumerate(halves):  # accumulation: synchronised at the last alone
        x, y = x[rank::world], y[rank::world]
        with processes.synchronised(model, index == 1):
            loss = torch.nn.functional.binary_cross_entropy_with_logits(model(x), y) / 2
            loss.backward()
    if rank == 0:
        torch.save([p.grad for p in network.parameters()], sys.argv[1])
    counts = processes.sum_over_all(torch.tensor([rank + 1.0]))
    assert counts.item() == world * (world + 1) / 2 and processes.largest(rank) == world - 1
    assert processes.first(lambda: rank) == 0
    try:
        processes.wrap(network, device, sync_batchnorm=True)
        assert world == 1
    except processes.UserError as error:
        assert world == 2 and "SYNC_BATCHNORM" in str(error)
    folders = [f"{sys.argv[2]}/dataset/augmented_{part}" for part in PARTS]
    loader = get_loaders(*folders[2:], *folders[:2], 2, 0, image_size=(32, 48))[1]
    scores = check_accuracy(loader, network)
    if rank == 1 or world == 1:
        with open(sys.argv[1] + ".json", "w") as file:
            json.dump([scores.dice, scores.iou, scores.accuracy, scores.per_image], file)
"""


def test_gradients_and_scores_of_two_processes_are_those_of_one(prepared):
    """Of one step, to rounding; of 11 validation images, exactly."""
    (prepared / "step.py").write_text(ONE_STEP)
    code, _, err = together(prepared / "step.py", prepared / "two", prepared, cwd=prepared)
    assert code == 0, err
    assert "Warning" not in err
    one = script(prepared / "step.py", prepared / "one", prepared, cwd=prepared, env=ALONE)
    assert one.returncode == 0, one.stderr
    for alone, shared in zip(torch.load(prepared / "one"), torch.load(prepared / "two"), strict=True):
        torch.testing.assert_close(alone, shared, rtol=1e-4, atol=1e-6)
    assert len(json.loads((prepared / "one.json").read_text())[3]) == 11
    assert (prepared / "one.json").read_text() == (prepared / "two.json").read_text()


FAULTS = """
import resource, torch, processes
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.ones(16 << 20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
for keep in (False, True):
    processes.keep_freed_memory(keep)
    faults()
    print(faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc's malloc can be told to keep its memory")
def test_freed_memory_is_kept_for_the_next_tensor(tmp_path):
    (tmp_path / "faults.py").write_text(FAULTS)
    done = script(tmp_path / "faults.py", cwd=tmp_path, env=ALONE)
    given_back, kept = map(int, done.stdout.split())
    assert given_back > 100_000 > 2 * kept, "10 times 64 MiB are 163,840 pages of 4 KiB"


FLAGS = [*SMALL, "--batch-size", "2", "--num-epochs", "3", "--accumulate", "2", "--picture-batches", "1"]


# A thread of gloo that outlives the group may abort the interpreter at its end, one time in a hundred.
TRAIN_AND_LOOK = """
import errors, train
from pathlib import Path
try:
    errors.run(train.main)
finally:
    threads = [(task / "comm").read_text() for task in Path("/proc/self/task").glob("*")]
    assert not any("gloo_runloop" in name for name in threads), threads
"""


def test_interrupted_and_resumed_is_uninterrupted_and_one_process_goes_on(prepared, monkeypatch, capsys):
    whole, stopped = prepared / "whole", prepared / "stopped"
    (prepared / "look.py").write_text(TRAIN_AND_LOOK)
    code, out, err = together(prepared / "look.py", *FLAGS, "--output-dir", whole, cwd=prepared)
    assert code == 0, err
    assert out.count("Best Dice") == 1, "process 0 alone prints"
    process = start(ROOT / "train.py", *FLAGS, "--output-dir", stopped, cwd=prepared)
    wait_for_epochs(stopped, 1, process)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    code, _, err = together(ROOT / "train.py", *FLAGS, "--output-dir", stopped, "--load-model", cwd=prepared)
    assert code == 0, err
    same_runs(whole, stopped)
    flags = [*FLAGS, "--num-epochs", "4", "--output-dir", stopped, "--load-model"]
    run_here(monkeypatch, prepared, *flags)
    assert "PROCESSES 2 -> 1" in capsys.readouterr().out
    assert len(history(stopped)) == 4


def test_one_killed_ends_the_other(prepared):
    process = start(ROOT / "train.py", *SMALL, "--num-epochs", 500, cwd=prepared)
    wait_for_epochs(prepared, 1, process)
    children = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True).stdout.split()
    assert len(children) == 2
    os.kill(int(children[1]), signal.SIGKILL)
    begin = time.monotonic()
    process.communicate(timeout=30)
    assert process.returncode != 0 and time.monotonic() - begin < 30
    assert not any(os.path.exists(f"/proc/{child}") for child in children)
    torch.load(prepared / "checkpoint.pth")


def test_a_mistake_is_told_once(prepared):
    (prepared / "look.py").write_text(TRAIN_AND_LOOK)
    code, _, err = together(prepared / "look.py", *SMALL, "--train-mask-dir", "nowhere", cwd=prepared)
    assert code != 0 and err.count("nowhere: ") == 1
    assert "gloo" not in err
