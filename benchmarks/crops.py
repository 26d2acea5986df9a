"""Full resolution: training on crops beside training on shrunk images, for equal minutes; and how fast crops are read.

    python benchmarks/crops.py --parts cracks --minutes 10      things of 2 to 12 pixels in photographs of 1918x1280
    python benchmarks/crops.py --parts cars --minutes 10        the demo's cars, drawn at 1918x1280
    python benchmarks/crops.py --parts folders --data FOLDER    FOLDER/{train,val}_{images,masks}
    python benchmarks/crops.py --parts loader                   images a second, memory, start-up

Sides: shrunk (IMAGE_SIZE as --size), crops (CROP as --size), and shrunk for half of the minutes and crops from its
weights for the other half. Minutes are those of training steps, planned for 90 %. Dice is predict.py's, at the
photographs' own size, over validation images that no side has seen. What follows -- overrides train.py's constants.
"""

import argparse
import csv
import io
import json
import os
import re
import shutil
import sys
import time
from contextlib import redirect_stdout
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

import cv2  # noqa: E402
import numpy as np  # noqa: E402
from PIL import Image  # noqa: E402
from sides import MARGIN, Ours, Part, clocked, endless, machine, ours_settings  # noqa: E402

import predict  # noqa: E402
import utils  # noqa: E402
from parts.audit import Report  # noqa: E402
from parts.cars import draw_dataset  # noqa: E402
from parts.errors import run  # noqa: E402
from parts.files import write_text  # noqa: E402
from parts.mask_rules import find_mask_rule  # noqa: E402
from parts.names import pair_files  # noqa: E402
from parts.processes import pick_device  # noqa: E402

LARGE = (1280, 1918)
SIDES = ("shrunk", "crops", "shrunk, then crops")
FOLDERS = ("train_images", "train_masks", "val_images", "val_masks")


def draw_cracks(seed, size=LARGE):
    """(image, mask) of dark cracks and discs of 2 to 12 pixels, among darker and larger stains and grain as dark."""
    draw = np.random.default_rng(seed)
    height, width = size
    light = draw.uniform(90, 180, (5, 7, 3)).astype(np.float32)
    image = cv2.resize(light, (width, height), interpolation=cv2.INTER_CUBIC)
    grain = cv2.GaussianBlur(draw.normal(0, 1, size).astype(np.float32), (0, 0), 1.5)
    image += 60 * grain[..., None] + draw.normal(0, 5, (*size, 3)).astype(np.float32)
    stains, mask = np.zeros(size, np.uint8), np.zeros(size, np.uint8)

    def anywhere():
        return int(draw.integers(0, width)), int(draw.integers(0, height))

    for _ in range(draw.integers(20, 40)):
        axes = int(draw.integers(14, 60)), int(draw.integers(10, 40))
        cv2.ellipse(stains, anywhere(), axes, float(draw.uniform(0, 180)), 0, 360, 1, -1)
    for _ in range(draw.integers(4, 9)):
        place, angle, thick = np.array(anywhere(), float), draw.uniform(0, 2 * np.pi), int(draw.integers(2, 7))
        for _ in range(draw.integers(20, 60)):
            angle += draw.normal(0, 0.35)
            step = place + draw.uniform(10, 30) * np.array([np.cos(angle), np.sin(angle)])
            cv2.line(mask, place.astype(int).tolist(), step.astype(int).tolist(), 1, thick)
            place = step
    for _ in range(draw.integers(10, 25)):
        cv2.circle(mask, anywhere(), int(draw.integers(3, 7)), 1, -1)
    for where, dark in ((stains, 60), (mask, 60)):
        image -= dark * cv2.GaussianBlur(where.astype(np.float32), (0, 0), 0.8)[..., None]
    return np.clip(image, 0, 255).astype(np.uint8), mask * np.uint8(255)


def make_cracks(folder, training=60, validation=8, size=LARGE):
    if not (folder / FOLDERS[3]).is_dir():
        for name in FOLDERS:
            (folder / name).mkdir(parents=True, exist_ok=True)
        for number in range(training + validation):
            side = "train" if number < training else "val"
            image, mask = draw_cracks(number, size)
            Image.fromarray(image).save(folder / f"{side}_images" / f"c{number:03d}.jpg", quality=95)
            Image.fromarray(mask).save(folder / f"{side}_masks" / f"c{number:03d}.png")
    print(f"By the best threshold of brightness, Dice {best_threshold_dice(folder):.3f}.")


def best_threshold_dice(folder):
    """The highest mean Dice that one threshold of brightness reaches on the validation images."""
    dice = []
    for pair in pair_files(folder / FOLDERS[2], folder / FOLDERS[3]):
        grey, truth = np.asarray(Image.open(pair.image).convert("L")), np.asarray(Image.open(pair.mask)) > 0
        every = np.stack([np.bincount(grey[where], minlength=256).cumsum() for where in (truth, ~truth)])
        dice.append(2 * every[0] / (every.sum(axis=0) + truth.sum()))
    return float(np.mean(dice, axis=0).max())


def make_cars(folder, cars=20, views=4, validation=4, size=LARGE):
    """Drawn cars, the views of the last few for validation."""
    if (folder / FOLDERS[3]).is_dir():
        return
    draw_dataset(folder, cars=cars, views=views, size=size)
    images = sorted((folder / "train").iterdir())
    names = sorted({path.stem[:12] for path in images})
    for name in FOLDERS:
        (folder / name).mkdir(exist_ok=True)
    for path in [*images, *(folder / "train_masks").iterdir()]:
        side = "val" if path.stem[:12] in names[-validation:] else "train"
        path.rename(folder / f"{side}_{'masks' if path.parent.name == 'train_masks' else 'images'}" / path.name)


def train(side, folder, args, device, minutes, weights=None):
    """Trains "shrunk" or "crops" for so many minutes, from `weights`; returns (checkpoint, minutes, images)."""
    crops = side == "crops"
    s = ours_settings(device, [*args.flags, *["--half-size", "0"] * crops], args.seed)
    size = tuple(args.size)
    s.CROP, s.IMAGE_SIZE = (size, None) if crops else (None, size)
    pairs = [pair_files(folder / FOLDERS[at], folder / FOLDERS[at + 1]) for at in (0, 2)]
    mask_rule = find_mask_rule([pair.mask for side in pairs for pair in side])
    places = [folder / name for name in FOLDERS]
    keywords = dict(image_size=s.IMAGE_SIZE, crop=s.CROP, report=Report(*pairs, mask_rule), seed=s.SEED)
    loader, _ = utils.get_loaders(*places, s.BATCH_SIZE, 0, s.PIN_MEMORY, **keywords)
    for _ in range(2):  # every size is slower the first time
        seconds, count = clocked(Ours(device, s, 40, 1), Part(endless(loader), 40), device)
    steps = max(1, int(MARGIN * 60 * minutes / (seconds / count)))
    runner = Ours(device, s, steps, 1)
    if weights:
        runner.network.load_state_dict(weights)
    loader.sampler.set_epoch(0)
    seconds, count = clocked(runner, Part(endless(loader), steps), device)
    architecture = dict(in_channels=3, out_channels=1, features=list(s.FEATURES), encoder=s.ENCODER)
    state = dict(state_dict=runner.network.state_dict(), network=architecture, mask_rule=mask_rule.to_dict())
    return state | dict(image_size=s.IMAGE_SIZE and list(size), crop=s.CROP), seconds / 60, count * s.BATCH_SIZE


def race(folder, args, device):
    """Each side's Dice at full size, as a table."""
    records = []
    for side in args.sides:
        first, *then = side.split(", then ")
        checkpoint, minutes, images = train(first, folder, args, device, args.minutes / (1 + len(then)))
        for part in then:
            weights = checkpoint["state_dict"]
            checkpoint, more, seen = train(part, folder, args, device, args.minutes / 2, weights)
            minutes, images = minutes + more, images + seen
        place = args.output / f"{folder.name}-{side.replace(', ', '-').replace(' ', '-')}"
        place.mkdir(parents=True, exist_ok=True)
        with redirect_stdout(io.StringIO()):
            utils.save_checkpoint(checkpoint, place / "best.pth")
            words = ["--checkpoint", place / "best.pth", "--masks", folder / FOLDERS[3], "--output-dir", place]
            predict.main([str(word) for word in [folder / FOLDERS[2], *words, "--device", device.type]])
        with open(place / "scores.csv") as file:
            dice = float(next(row["dice"] for row in csv.DictReader(file) if row["image"] == "mean"))
        records.append(dict(side=side, minutes=minutes, images=images, dice=dice))
        print(f"{folder.name}, {side}: {minutes:.1f} minutes, {images} images, Dice {dice:.4f}", flush=True)
    title = f"{folder.name}, {args.minutes:g} minutes a side"
    print(f"\n| {title} | minutes | images seen | Dice at full size |\n|---|---|---|---|")
    for it in records:
        print(f"| {it['side']} | {it['minutes']:.1f} | {it['images']:,} | {it['dice']:.4f} |")
    write_text(args.output / f"{folder.name}.json", json.dumps(dict(machine=machine(device), records=records)) + "\n")


def private_bytes():
    """Memory that this process alone has and could not drop; the pages of a file that is mapped are clean."""
    text = Path("/proc/self/smaps_rollup").read_text()
    return 1024 * sum(map(int, re.findall(r"^Private_Dirty: +(\d+) kB", text, flags=re.M)))


def measure_loader(args):
    """Crops a second out of arrays, of images that lie in the page cache; memory and start-up by their number."""
    print("| images of 1918x1280 | start-up | crops a second, batches of 16 | private memory |\n|---|---|---|---|")
    work = args.output / "loader"
    for count in (20, 200):
        for kind in ("images", "masks"):
            (work / kind).mkdir(parents=True, exist_ok=True)
        draw = np.random.default_rng(0)
        pixels, mask = draw.integers(0, 256, (*LARGE, 3), np.uint8), np.zeros(LARGE, np.uint8)
        mask[500:700, 800:1000] = 255
        Image.fromarray(pixels).save(work / "first.jpg", quality=90)
        Image.fromarray(mask).save(work / "first.png")
        for number in range(count):
            for kind, end in (("images", "jpg"), ("masks", "png")):
                target = work / kind / f"{number:04d}.{end}"
                if not target.exists():
                    os.link(work / f"first.{end}", target)
        report = Report(pair_files(work / "images", work / "masks"), [], find_mask_rule([work / "first.png"]))
        report.val = report.train[:1]
        for _ in range(2):  # the second time arrays are there
            start = time.perf_counter()
            folders = [work / "images", work / "masks"] * 2
            with redirect_stdout(io.StringIO()):
                loader, _ = utils.get_loaders(*folders, 16, 0, image_size=None, crop=tuple(args.size), report=report)
            seconds = time.perf_counter() - start
        for _ in range(2):
            start, crops = time.perf_counter(), 0
            for images, _ in loader:
                crops += len(images)
                if crops >= 1600:
                    break
            speed = crops / (time.perf_counter() - start)
        print(f"| {count} | {1000 * seconds:.0f} ms | {speed:.0f} | {private_bytes() / 1e6:.0f} MB |", flush=True)
    shutil.rmtree(work)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = ("cracks", "cars", "folders", "loader")
    parser.add_argument("--parts", nargs="+", choices=parts, default=["cracks", "cars", "loader"])
    parser.add_argument("--data", type=Path, help="of the part folders")
    parser.add_argument("--minutes", type=float, default=10, help="of each side")
    parser.add_argument("--size", nargs=2, type=int, default=(320, 480), metavar=("H", "W"))
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=SIDES)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--output", type=Path, default=ROOT / "demo" / "benchmark" / "crops")
    parser.add_argument("flags", nargs="*", help="after --: constants of train.py, such as --features 16 32 64 128")
    args = parser.parse_args()
    device = pick_device(args.device)
    print(machine(device))
    args.output.mkdir(parents=True, exist_ok=True)
    if "cracks" in args.parts:
        make_cracks(args.output / "cracks")
        race(args.output / "cracks", args, device)
    if "cars" in args.parts:
        make_cars(args.output / "cars")
        race(args.output / "cars", args, device)
    if "folders" in args.parts:
        race(args.data, args, device)
    if "loader" in args.parts:
        measure_loader(args)


if __name__ == "__main__":
    run(main)
