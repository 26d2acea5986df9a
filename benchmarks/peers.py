"""Dice after equal minutes of training: this project beside the article's settings and two other projects.

    python benchmarks/peers.py --minutes 3                     on drawn cars
    python benchmarks/peers.py --data FOLDER --minutes 3       on FOLDER/augmented_*, or FOLDER/train and train_masks

Every side trains on the same decoded arrays, one after the other in this run, and is scored on the same held-out
images; validation is not counted. Pytorch-UNet's recipe is re-made in sides.py. The side of segmentation_models.pytorch
needs that package, and is left out in words without it.
"""

import argparse
import importlib.util
import io
import sys
from contextlib import redirect_stdout
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from sides import (  # noqa: E402
    ARTICLE_BATCH,
    MARGIN,
    Article,
    Ours,
    Part,
    Smp,
    WholeImages,
    clocked,
    endless,
    loaders,
    machine,
    ours_settings,
    prepared,
    trial_seconds,
    until,
)

from parts.errors import run  # noqa: E402
from parts.processes import pick_device  # noqa: E402
from utils import check_accuracy  # noqa: E402

SCRATCH = ["--encoder", "resnet34", "--encoder-weights", "none"]
OURS = {  # flags of train.py
    "ours, the full network: batches of 2, HALF_SIZE 0.5": [],
    "ours, --small": ["--small", "--batch-size", "4", "--half-size", "0"],
    "ours, ENCODER = resnet34 from scratch, batches of 4": [*SCRATCH, "--batch-size", "4", "--half-size", "0"],
}
OTHERS = {  # what makes a side, and its batches
    "the article's settings": (Article, ARTICLE_BATCH),
    "the recipe of Pytorch-UNet": (lambda device, seed: WholeImages(device, 2, seed), 1),
    "segmentation_models.pytorch, resnet34 from scratch": (Smp, 4),
}


def train_other(make, batch, device, folder, args):
    """(minutes, images, Dice) of another project's side."""
    train_loader, val_loader = loaders(folder, batch, ours_settings(device, [], args.seed), tuple(args.image_size))
    make(device, args.seed).steps(Part(endless(train_loader), 1))  # the first step anywhere is slower
    side = make(device, args.seed)
    seconds, count = clocked(side, until(endless(train_loader), 60 * args.minutes), device)
    return seconds / 60, count * batch, dice_of(side, val_loader, device)


def train_ours(flags, device, folder, args):
    """(minutes, images, Dice) of train.py with these flags, planned for the minutes by a short trial."""
    s = ours_settings(device, flags, args.seed)
    train_loader, val_loader = loaders(folder, s.BATCH_SIZE, s, tuple(args.image_size))
    steps = int(MARGIN * 60 * args.minutes / trial_seconds(s, device, train_loader, None))
    side = Ours(device, s, -(-steps // s.ACCUMULATE), 1)
    seconds, count = clocked(side, Part(endless(train_loader), steps), device)
    return seconds / 60, count * s.BATCH_SIZE, dice_of(side, val_loader, device)


def dice_of(side, val_loader, device):
    """Of the held-out images; a network with two channels gives the foreground in the second."""
    network = side.network
    if isinstance(side, WholeImages):
        network = OneChannel(network)
    with redirect_stdout(io.StringIO()):
        return check_accuracy(val_loader, network, device, side.dtype).dice


class OneChannel:
    """A network of two classes as one of one foreground: the difference of their logits."""

    def __init__(self, network):
        self.network, self.training = network, network.training

    def __getattr__(self, name):
        return getattr(self.network, name)

    def __call__(self, images):
        background, foreground = self.network(images).split(1, dim=1)
        return foreground - background


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=3)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--data", type=Path, help="default: drawn cars")
    parser.add_argument("--cars", type=int, default=24, help="drawn, 16 views of each")
    parser.add_argument("--val-images", type=int, default=64, help="held out where FOLDER is not split yet")
    parser.add_argument("--image-size", nargs=2, type=int, default=(160, 240), metavar=("H", "W"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, default=ROOT / "demo" / "benchmark", help="where data are prepared")
    args = parser.parse_args()
    device = pick_device(args.device)
    folder = prepared(args.data, args.work, args.cars, args.val_images)
    print(f"{folder.name}, {args.image_size[0]}x{args.image_size[1]}, seed {args.seed}; {machine(device)}")
    print("\n| | minutes | images seen | Dice |\n|---|---|---|---|")
    for name, (make, batch) in OTHERS.items():
        if make is Smp and importlib.util.find_spec("segmentation_models_pytorch") is None:
            print(f"| {name} | left out: pip install segmentation_models_pytorch | | |")
            continue
        tell(name, train_other(make, batch, device, folder, args))
    for name, flags in OURS.items():
        tell(name, train_ours(flags, device, folder, args))


def tell(name, result):
    minutes, images, dice = result
    print(f"| {name} | {minutes:.2f} | {images:,} | {dice:.4f} |", flush=True)


if __name__ == "__main__":
    run(main)
