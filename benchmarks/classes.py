"""Several classes: this project beside Pytorch-UNet's recipe, for equal minutes on the same photographs.

    python benchmarks/classes.py IMAGES MASKS --held-out PREFIX --ignore 11 --minutes 45
    python benchmarks/classes.py IMAGES MASKS --held-out PREFIX --only ours -- --color-jitter 0.2

Trains both sides, one after the other, on the images whose names do not begin with PREFIX, and scores those whose
names do: IoU by class from the counts of all of them (PASCAL VOC), and Dice. Minutes are those of training steps;
validation is not counted. Ours is train.py's own train_fn, planned for 90 % of the minutes; what follows -- overrides
its constants. The other side (sides.WholeImages) takes steps until its minutes are over. Pictures, a checkpoint of ours
and a JSON file of all scores go into --output.
"""

import argparse
import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from sides import (  # noqa: E402
    MARGIN,
    Ours,
    Part,
    WholeImages,
    clocked,
    endless,
    machine,
    ours_settings,
    until,
)

import utils  # noqa: E402
from parts.audit import Report  # noqa: E402
from parts.errors import run  # noqa: E402
from parts.files import write_text  # noqa: E402
from parts.mask_rules import find_mask_rule  # noqa: E402
from parts.names import pair_files  # noqa: E402
from parts.processes import pick_device  # noqa: E402
from parts.spec import DataSpec  # noqa: E402


def loaders(args, mask_rule, s, batch):
    """(training, validation), split by the beginning of the names."""
    pairs = pair_files(args.images, args.masks)
    held_out = [pair for pair in pairs if pair.name.startswith(args.held_out)]
    report = Report([pair for pair in pairs if pair not in held_out], held_out, mask_rule)
    folders = [args.images, args.masks] * 2
    keywords = dict(image_size=tuple(args.image_size), report=report, seed=s.SEED, arrays=False)
    found = utils.get_loaders(*folders, batch, 0, s.PIN_MEMORY, **keywords)
    for loader, name in zip(found, ("train", "val")):
        loader.dataset.keep_arrays(args.output / f"{name}-arrays")
    return found


def race(side, args, mask_rule, device):
    """Trains one side; returns the Scores of its end, and prints those on the way."""
    s = ours_settings(device, args.flags, args.seed)
    s.CLASSES, s.MASK_IGNORE = mask_rule.classes, mask_rule.ignored or None  # what train_fn goes by
    batch = 1 if side == "whole images" else s.BATCH_SIZE
    train_loader, val_loader = loaders(args, mask_rule, s, batch)
    limit, plan = 60 * args.minutes, None
    if side == "ours":
        trial = Ours(device, s, 40, 1, channels=mask_rule.channels)
        clocked(trial, Part(endless(train_loader), 4), device)
        trial = Ours(device, s, 40, 1, channels=mask_rule.channels)  # passes through all sizes of HALF_SIZE
        seconds, count = clocked(trial, Part(endless(train_loader), 40), device)
        plan = max(1, int(MARGIN * limit / (seconds / count) / args.points))
        runner = Ours(device, s, -(-plan // s.ACCUMULATE), args.points, channels=mask_rule.channels)
    else:
        runner = WholeImages(device, mask_rule.channels, args.seed)
    train_loader.sampler.set_epoch(0)
    source, spent, seen = endless(train_loader), 0.0, 0
    for point in range(1, args.points + 1):
        part = Part(source, plan) if plan else until(source, limit * point / args.points - spent)
        seconds, count = clocked(runner, part, device)
        spent, seen = spent + seconds, seen + count * batch
        print(f"{side}: {spent / 60:.2f} minutes, {seen} images", flush=True)
        scores = utils.check_accuracy(val_loader, runner.network, device, runner.dtype)
    folder = args.output / side.replace(" ", "-")
    utils.save_examples(val_loader, runner.network, scores, args.points, folder, device=device, dtype=runner.dtype)
    if side == "ours":
        architecture = dict(
            in_channels=3, out_channels=mask_rule.channels, features=list(s.FEATURES), encoder=s.ENCODER
        )
        state = dict(network=architecture, mask_rule=mask_rule.to_dict(), image_size=list(args.image_size))
        utils.save_checkpoint(state | dict(state_dict=runner.network.state_dict()), folder / "best.pth")
    return dict(side=side, minutes=spent / 60, images=seen, dice=scores.dice, iou=scores.iou, classes=scores.classes)


def tell(records):
    """The sides' IoU by class, side by side."""
    names = records[0]["classes"]["names"]
    print("| | " + " | ".join(record["side"] for record in records) + " |\n|---|" + "---|" * len(records))
    rows = [("minutes", "minutes", ".1f"), ("images seen", "images", ","), ("mean IoU", "iou", ".3f")]
    for title, key, form in [*rows, ("mean Dice", "dice", ".3f")]:
        print(f"| {title} | " + " | ".join(format(record[key], form) for record in records) + " |")
    for index, name in enumerate(names):
        found = [record["classes"]["iou"][index] for record in records]
        print(f"| IoU {name} | " + " | ".join("-" if iou is None else f"{iou:.3f}" for iou in found) + " |")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=Path)
    parser.add_argument("masks", type=Path)
    parser.add_argument("--held-out", required=True, metavar="PREFIX", help="of the names that are scored")
    parser.add_argument("--ignore", type=int, help="the masks' value that is neither trained on nor scored")
    parser.add_argument("--names", nargs="+", help="of the classes, in the order of their values")
    parser.add_argument("--minutes", type=float, default=45)
    parser.add_argument("--image-size", nargs=2, type=int, default=(240, 320), metavar=("H", "W"))
    parser.add_argument("--points", type=int, default=6, help="how often each side is scored")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--only", choices=("ours", "whole images"))
    parser.add_argument("--output", type=Path, default=ROOT / "demo" / "benchmark" / "classes")
    parser.add_argument("flags", nargs="*", help="after --: constants of train.py, such as --color-jitter 0.2")
    args = parser.parse_args()
    device = pick_device(args.device)
    print(machine(device))
    masks = [pair.mask for pair in pair_files(args.images, args.masks)]
    mask_rule = find_mask_rule(masks, DataSpec(ignore=args.ignore, classes="all"))
    if args.names:
        mask_rule = find_mask_rule(
            masks, DataSpec(ignore=args.ignore, classes=dict(zip(args.names, mask_rule.classes)))
        )
    args.output.mkdir(parents=True, exist_ok=True)
    records = [race(side, args, mask_rule, device) for side in ("ours", "whole images") if args.only in (None, side)]
    write_text(args.output / "scores.json", json.dumps(dict(machine=machine(device), records=records), indent=1) + "\n")
    tell(records)


if __name__ == "__main__":
    run(main)
