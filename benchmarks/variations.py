"""What varying training images costs: in the loader (AUGMENT), and in a training step (SCALE and ROTATE).

    python benchmarks/variations.py [--image-size 160 240] [--workers 0 2] [--rounds 5]

1. Images a second into batches of 16: out of arrays, as they are and through AUGMENT, with and without workers, and
   decoded in every epoch. The files are drawn: JPEG of 512x768. An epoch's start of workers is included.
2. A training step of the article's network with FLIP and COLOR_JITTER alone, and with SCALE and ROTATE too, in turn.

Each round takes every side once, so that what else the machine does meets all of them; medians over rounds.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from contextlib import redirect_stdout
from pathlib import Path

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

import albumentations as A  # noqa: E402
import torch  # noqa: E402
from classes_step import Side  # noqa: E402

from parts import processes, recipe  # noqa: E402
from parts.cars import draw_dataset  # noqa: E402
from parts.errors import run  # noqa: E402
from utils import get_loaders  # noqa: E402

_BATCH = 16
_AUGMENT = A.Compose(
    [A.HorizontalFlip(), A.Affine(scale=(0.8, 1.2), rotate=(-15, 15), p=0.7), A.RandomBrightnessContrast(p=0.5)]
)
_FILES = (512, 768)  # of which JPEG's decoder reads a half for images of 160x240


def rate(loader):
    """Images a second of one epoch."""
    start = time.perf_counter()
    count = sum(len(images) for images, _ in loader)
    return count / (time.perf_counter() - start)


def measure_loaders(size, workers, rounds):
    with tempfile.TemporaryDirectory() as folder:
        folders = 2 * draw_dataset(folder, cars=16, views=32, size=_FILES, progress=False)
        sides = {}
        with redirect_stdout(None):
            for count in workers:
                for name, arrays, augment in (
                    ("arrays", True, None),
                    ("arrays, AUGMENT", True, _AUGMENT),
                    ("decoded in every epoch", False, None),
                    ("decoded in every epoch, AUGMENT", False, _AUGMENT),
                ):
                    loader, _ = get_loaders(*folders, _BATCH, count, image_size=size, arrays=arrays, augment=augment)
                    if not arrays or augment or count == workers[0]:  # arrays alone never have workers
                        sides[f"{name} | {loader.num_workers}"] = loader
        rates = {name: [] for name in sides}
        for _ in range(rounds):
            for name, loader in sides.items():
                rates[name].append(rate(loader))
    print("| images from | workers | images a second, median (least to most) |\n|---|---|---|")
    for name, measured in rates.items():
        print(f"| {name} | {statistics.median(measured):.0f} ({min(measured):.0f} to {max(measured):.0f}) |")


def measure_steps(size, batch, rounds, device):
    sides = {}
    for name, more in (("FLIP, COLOR_JITTER", {}), ("... SCALE, ROTATE", dict(scale=(0.7, 1.4), rotate=20.0))):
        sides[name] = Side(1, size, batch, "bce+dice", device)
        sides[name].variation = recipe.Variation(True, 0.4, **more)
    times = {name: [] for name in sides}
    for number in range(rounds + 2):  # the first two do not count
        for name in list(sides)[:: 1 if number % 2 else -1]:
            times[name].append(sides[name].step(number)[0])
    first, other = (measured[2:] for measured in times.values())
    ratio = statistics.median(b / a for a, b in zip(first, other))
    print(
        f"\nA step of {batch} images on {device}: {1e3 * statistics.median(first):.1f} ms, with SCALE and ROTATE "
        f"{1e3 * statistics.median(other):.1f}; ratio, median of {rounds} rounds: {ratio:.3f}"
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image-size", nargs=2, type=int, default=(160, 240), metavar=("H", "W"))
    parser.add_argument("--workers", nargs="+", type=int, default=[0, 2])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=2, help="of the steps")
    parser.add_argument("--device", default="auto")
    args = parser.parse_args()
    size = tuple(args.image_size)
    print(f"At {size[0]}x{size[1]}; load of the machine before: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores.\n")
    measure_loaders(size, args.workers, args.rounds)
    device = processes.pick_device(args.device)
    if device.type == "cpu":
        processes.keep_freed_memory()
    measure_steps(size, args.batch_size, 2 * args.rounds, device)
    print(f"{torch.get_num_threads()} threads; load after: {os.getloadavg()[0]:.1f}.")


if __name__ == "__main__":
    run(main)
