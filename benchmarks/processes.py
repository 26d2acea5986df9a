"""Images a second of training in one process and in several, and what a step sends between them.

    python benchmarks/processes.py                         one and two processes
    python benchmarks/processes.py --processes 1 2 4 8     on a machine with as many GPUs

Every count runs under torchrun, in turn, with train.py's own step and constants, on random pixels. On a CPU
the cores are shared out, so one process on one core stands beside: several cannot be faster than one on all.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import torch
from sides import Ours, clocked
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks

import train
from parts import processes
from parts.errors import UserError, run
from parts.files import cores


def child(options):
    """One of torchrun's processes: trains, and process 0 prints images a second and bytes a step."""
    sent = []

    def counted(group, bucket):
        sent.append(bucket.buffer().nbytes)
        return default_hooks.allreduce_hook(group, bucket)

    with processes.together(options.device) as device:
        flags = ["--batch-size", str(options.batch_size), "--features", *map(str, options.features)]
        ours = Ours(device, train.settings(flags), 1, 10**6)
        if processes.world_size() > 1:
            ours.trained.register_comm_hook(None, counted)
        shape = (options.batch_size, 3, *options.image_size)
        images = torch.randint(0, 256, shape, dtype=torch.uint8).contiguous(memory_format=torch.channels_last)
        batches = [(images, torch.randint(0, 2, (len(images), *options.image_size), dtype=torch.uint8))]
        clocked(ours, batches * 2, device)
        sent.clear()
        seconds, steps = clocked(ours, batches * options.steps, device)
        if processes.rank() == 0:
            rate = steps * options.batch_size * processes.world_size() / seconds
            print(json.dumps([rate, sum(sent) / steps]))


def measure(number, threads, arguments):
    """[images a second, bytes of gradients a step] of `number` processes with `threads` each."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={number}"]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    command += [__file__, "--child", *arguments]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise UserError(f"{number} processes ended with status {done.returncode}.")
    return json.loads(done.stdout.splitlines()[-1])


def compare(options, arguments):
    cuda = processes.pick_device(options.device).type == "cuda"
    counts = [(number, cores() // number if not cuda else 1) for number in options.processes]
    runs = counts if cuda else [(1, 1), *counts]
    found = {one: [] for one in runs}
    for _ in range(options.rounds):
        for one in runs:
            found[one].append(measure(*one, arguments))
    size = "x".join(map(str, options.image_size))
    print(f"Training steps of {options.batch_size} images a process at {size}; median of {options.rounds} rounds.\n")
    print("| processes | threads of each | images/s | of one such process | gradients a step | sent by each a step |")
    print("|---|---|---|---|---|---|")
    alone = {threads: statistics.median(rate for rate, _ in found[1, threads]) for one, threads in runs if one == 1}
    for (number, threads), rounds in found.items():
        rate, volume = (statistics.median(column) for column in zip(*rounds))
        share = f"{rate / alone[threads]:.2f}x" if threads in alone else "-"
        ring = 2 * (number - 1) / number * volume  # a ring passes every byte on twice, but for its own share
        sent = [f"{moved / 1e6:.0f} MB" if number > 1 else "-" for moved in (volume, ring)]
        print(f"| {number} | {threads} | {rate:.3g} | {share} | {sent[0]} | {sent[1]} |")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=2, help="of each process")
    parser.add_argument("--image-size", type=int, nargs=2, default=[160, 240])
    parser.add_argument("--features", type=int, nargs="+", default=[64, 128, 256, 512])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options)
    else:
        compare(options, sys.argv[1:])


if __name__ == "__main__":
    run(main)
