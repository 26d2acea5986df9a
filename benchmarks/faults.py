"""Kills a short training at random moments, and times what saving safely costs.

    python benchmarks/faults.py --kills 100

Each training is killed (SIGKILL) at a random moment, every third time one while a checkpoint is being
written, and goes on with LOAD_MODEL until it is done; in between every checkpoint that exists must load,
and at the end weights, optimizer, history and pictures must be those of a run that was never killed.
Exit status 1 where one is not.
"""

import argparse
import contextlib
import os
import random
import signal
import statistics
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
os.environ["OMP_NUM_THREADS"] = "1"  # or forked children wait for threads that only their parent has

import torch  # noqa: E402
from helpers import SMALL, assert_same, draw_pairs, same_runs  # noqa: E402

import train  # noqa: E402
from parts.checkpoints import read_checkpoint  # noqa: E402
from unet import UNet  # noqa: E402
from utils import save_checkpoint  # noqa: E402

PARTS = ".*.pth.*.part"  # how files.py calls a checkpoint that is being written
# Weights enough for a checkpoint to take a while, pictures few enough that an epoch does not
EPOCHS = 2
SETTINGS = ["--features", "16", "32", "64", "--num-epochs", str(EPOCHS), "--picture-batches", "0"]


def start(folder, output, *flags):
    """Trains in a forked child, which spares the imports; returns its process id."""
    child = os.fork()
    if child:
        return child
    os.chdir(folder)
    with open(folder / "log.txt", "a") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    status = 1
    try:
        train.main([*SMALL, *SETTINGS, "--output-dir", str(output), *flags])
        status = 0
    finally:
        os._exit(status)


def wait(child):
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def wait_for_a_save(output, child):
    """Until a checkpoint is being written (earlier deaths have left others), or the training has ended."""
    before, look = set(output.glob(PARTS)), os.WEXITED | os.WNOHANG | os.WNOWAIT
    while not set(output.glob(PARTS)) - before and os.waitid(os.P_PID, child, look) is None:
        time.sleep(2e-4)


def kill_and_resume(folder, kills, draw):
    """Kills `kills` times, over as many trainings as that takes; returns (kills, trainings, kills while saving)."""
    begin = time.perf_counter()
    assert wait(start(folder, folder / "whole")) == 0, (folder / "log.txt").read_text()[-2000:]
    length = time.perf_counter() - begin
    killed = trainings = saving = 0
    while killed < kills:
        output = folder / f"run{trainings}"
        checkpoint = output / "checkpoint.pth"
        while True:
            child = start(folder, output, *(["--load-model"] if checkpoint.exists() else []))
            if killed < kills:
                if killed % 3 == 2:
                    wait_for_a_save(output, child)
                    time.sleep(draw.uniform(0, 0.02))
                else:
                    time.sleep(draw.uniform(0, length))
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child, signal.SIGKILL)
            status = wait(child)
            if status == 0:
                break
            assert status == -signal.SIGKILL, (folder / "log.txt").read_text()[-2000:]
            killed += 1
            saving += any(output.glob(PARTS))
            for path in output.glob("*.pth"):
                read_checkpoint(path)
            if checkpoint.exists() and read_checkpoint(checkpoint)["epoch"] == EPOCHS:
                break  # all that it had left to write were history.csv and pictures
        if status == 0:
            same_runs(folder / "whole", output)
        else:
            whole, killed_last = (read_checkpoint(run / "checkpoint.pth") for run in (folder / "whole", output))
            for key in ("state_dict", "optimizer", "history"):
                assert_same(whole[key], killed_last[key], key)
        trainings += 1
    return killed, trainings, saving


def saving_cost(folder, repeats):
    """Median seconds of a plain torch.save, of ours, and of the largest ratio's parts, taken in turn."""
    network = UNet()
    state = {"state_dict": network.state_dict(), "optimizer": {"exp_avg": [p.clone() for p in network.parameters()]}}
    plain, ours = [], []
    for _ in range(repeats):
        for times, save in ((plain, torch.save), (ours, save_checkpoint)):
            os.sync()  # neither pays for what the other left unwritten
            begin = time.perf_counter()
            with contextlib.redirect_stdout(None):
                save(state, folder / "state.pth")
            times.append(time.perf_counter() - begin)
    return statistics.median(plain), statistics.median(ours), (folder / "state.pth").stat().st_size


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--saves", type=int, default=7, help="0 leaves the cost of saving out")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if options.kills:
            data = folder / "dataset"
            draw_pairs(data / "augmented_train_images", data / "augmented_train_masks", 8)
            draw_pairs(data / "augmented_test_images", data / "augmented_test_masks", 2, first=50)
            killed, trainings, saving = kill_and_resume(folder, options.kills, random.Random(options.seed))
            print(f"{killed} kills over {trainings} trainings, {saving} of them while a checkpoint was being written:")
            print("every checkpoint loaded, every training ended in the same weights, history and pictures")
        if options.saves:
            plain, ours, size = saving_cost(folder, options.saves)
            print(f"saving {size / 2**20:.0f} MiB: torch.save {plain:.2f} s, safely {ours:.2f} s, {ours / plain:.2f}x")


if __name__ == "__main__":
    main()
