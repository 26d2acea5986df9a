"""Two gloo processes on one machine."""

import os
import platform
import signal
import subprocess
import sys
import time

import pytest
import torch
from conftest import ROOT, SMALL, script
from test_train import history, same_runs, wait_for_epochs

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
import sys, torch, processes
from unet import UNet
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
"""


def test_gradients_of_two_processes_are_those_of_one(tmp_path):
    (tmp_path / "step.py").write_text(ONE_STEP)
    code, _, err = together(tmp_path / "step.py", tmp_path / "two.pt", cwd=tmp_path)
    assert code == 0, err
    one = script(tmp_path / "step.py", tmp_path / "one.pt", cwd=tmp_path, env=ALONE)
    assert one.returncode == 0, one.stderr
    for alone, shared in zip(torch.load(tmp_path / "one.pt"), torch.load(tmp_path / "two.pt"), strict=True):
        torch.testing.assert_close(alone, shared, rtol=1e-4, atol=1e-6)


SCORE = """
import sys, json, torch, processes
from loading import get_loaders
from unet import UNet
from utils import check_accuracy
data = sys.argv[1]
with processes.together("cpu"):
    torch.manual_seed(0)
    network = UNet(features=(4, 8))
    folders = [f"{data}/augmented_test_images", f"{data}/augmented_test_masks"]
    train = [f"{data}/augmented_train_images", f"{data}/augmented_train_masks"]
    loader = get_loaders(*folders, *train, 2, 0, image_size=(32, 48))[1]
    scores = check_accuracy(loader, network)
    if processes.rank() == 1 or processes.world_size() == 1:
        with open(sys.argv[2], "w") as file:
            json.dump([scores.dice, scores.iou, scores.accuracy, scores.per_image], file)
"""


def test_scores_of_11_images_are_exactly_those_of_one_process(prepared):
    (prepared / "score.py").write_text(SCORE)
    code, _, err = together(prepared / "score.py", prepared / "dataset", prepared / "two.json", cwd=prepared)
    assert code == 0, err
    env = ALONE
    one = script(prepared / "score.py", prepared / "dataset", prepared / "one.json", cwd=prepared, env=env)
    assert one.returncode == 0, one.stderr
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


FLAGS = [*SMALL, "--batch-size", "2", "--num-epochs", "4", "--accumulate", "2"]


def test_interrupted_and_resumed_is_uninterrupted_and_one_process_goes_on(prepared):
    whole, stopped = prepared / "whole", prepared / "stopped"
    code, out, err = together(ROOT / "train.py", *FLAGS, "--output-dir", whole, cwd=prepared)
    assert code == 0, err
    assert out.count("Best Dice") == 1, "process 0 alone prints"
    process = start(ROOT / "train.py", *FLAGS, "--output-dir", stopped, cwd=prepared)
    wait_for_epochs(stopped, 1, process)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    code, _, err = together(ROOT / "train.py", *FLAGS, "--output-dir", stopped, "--load-model", cwd=prepared)
    assert code == 0, err
    same_runs(whole, stopped)
    flags = [*FLAGS, "--num-epochs", "5", "--output-dir", stopped, "--load-model"]
    alone = script("train.py", *flags, cwd=prepared, env=ALONE)
    assert alone.returncode == 0 and "PROCESSES 2 -> 1" in alone.stdout, alone.stderr
    assert len(history(stopped)) == 5


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
    code, _, err = together(ROOT / "train.py", *SMALL, "--train-mask-dir", "nowhere", cwd=prepared)
    assert code != 0 and err.count("nowhere: ") == 1
