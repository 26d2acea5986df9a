"""How fast a training step is, and how soon a Dice is reached: this project beside the article's settings.

    python benchmarks/train.py                       both parts, on drawn cars
    python benchmarks/train.py --data FOLDER         on FOLDER/augmented_*, or FOLDER/train and FOLDER/train_masks
    python benchmarks/train.py --parts race --minutes 15 --seeds 3 --image-size 160 240
    python benchmarks/train.py -- --batch-size 4     what follows -- overrides constants of train.py

step: images a second of whole training steps at --step-size, the sides in turn, and their share of the
highest speed of a matrix product, measured between them. race: Dice of held-out images by minutes of
training (validation and compiling not counted), the sides from the same seeds on the same decoded arrays;
ours once planned for a sixth of the minutes and once for all. Every race is kept in --results: pieces
(`--only sixth --seed 1`) may be run one by one, and what is there already is not run again.

The article's side is its loop: float32 in NCHW (on CUDA its autocast to float16 with a GradScaler), BCE,
Adam at 1e-4, batches of 16, the loss read at every step. Ours is train.py's own train_fn with the constants
that stand there. Both get the same arrays, so nothing here is won by decoding once.
"""

import argparse
import io
import json
import statistics
import sys
from contextlib import redirect_stdout
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

import matplotlib  # noqa: E402

matplotlib.use("Agg")

import matplotlib.pyplot as plt  # noqa: E402
import torch  # noqa: E402
from sides import (  # noqa: E402
    ARTICLE_BATCH,
    MARGIN,
    Article,
    Ours,
    Part,
    clocked,
    endless,
    loaders,
    machine,
    matrix_peak,
    ours_settings,
    prepared,
    training_flops,
    trial_seconds,
    until,
)

from parts import recipe  # noqa: E402
from parts.errors import run  # noqa: E402
from parts.files import write_text, write_whole  # noqa: E402
from parts.processes import pick_device  # noqa: E402
from utils import check_accuracy  # noqa: E402

SIDES = {"article": "the article's settings", "sixth": "ours, planned for a sixth", "whole": "ours, planned for all"}


def compare_steps(device, image_size, batch, rounds, flags):
    """Prints the table of part (a)."""
    s = ours_settings(device, [*flags, "--half-size", "0"], 0)
    shape = (batch, 3, *image_size)
    images = torch.randint(0, 256, shape, dtype=torch.uint8).contiguous(memory_format=torch.channels_last)
    masks = torch.randint(0, 2, (batch, *image_size), dtype=torch.uint8)
    cuda = device.type == "cuda"
    makers = {"the article's settings": lambda: Article(device), "ours": lambda: Ours(device, s, 1, 10**6)}
    if cuda:
        makers["ours, compiled"] = lambda: Ours(device, s, 1, 10**6, shape)
    sides, memory = {}, {}
    repeats = [(images, masks)] * (20 if cuda else 1)
    for name, make in makers.items():
        before = torch.cuda.memory_allocated() if cuda else 0
        sides[name] = make()
        if cuda:
            torch.cuda.reset_peak_memory_stats()
        clocked(sides[name], repeats * (1 if cuda else 2), device)
        memory[name] = (torch.cuda.max_memory_allocated() - before) / 2**30 if cuda else None
    dtype = sides["ours"].dtype or torch.float32
    speeds, peak, fastest = {name: [] for name in sides}, 0.0, dtype
    for _ in range(rounds):
        for name, side in sides.items():
            seconds, count = clocked(side, repeats, device)
            speeds[name].append(count * batch / seconds)
        for kind in {dtype, torch.float32, recipe.autocast_dtype(device) or dtype}:  # which is faster differs by CPU
            if (reached := matrix_peak(device, kind)) > peak:
                peak, fastest = reached, kind
    flops = training_flops(image_size)
    print(
        f"\nTraining steps at {image_size[0]}x{image_size[1]}, batch {batch}, {flops / 1e12:.3f} TFLOP an image; "
        f"{rounds} rounds in turn, each side's median (lowest to highest).\n"
        f"Ours computes in {str(dtype)[6:]}. The fastest matrix product, in {str(fastest)[6:]}, reaches "
        f"{peak / 1e12:.3g} TFLOP/s.\n\n"
        "| side | images/s | against the article's | TFLOP/s | of the matrix peak | memory |\n|---|---|---|---|---|---|"
    )
    slow = statistics.median(speeds["the article's settings"])
    for name, found in speeds.items():
        speed = statistics.median(found)
        room = f"{memory[name]:.1f} GiB" if cuda else "-"
        print(
            f"| {name} | {speed:.3g} ({min(found):.3g} to {max(found):.3g}) | {speed / slow:.2f}x "
            f"| {speed * flops / 1e12:.3g} | {100 * speed * flops / peak:.0f} % | {room} |"
        )


def race(side, device, folder, image_size, seed, minutes, points, flags):
    """Trains one side; returns its record: [minutes of training, images, Dice] at `points` times."""
    s = ours_settings(device, flags, seed)
    batch = ARTICLE_BATCH if side == "article" else s.BATCH_SIZE
    train_loader, val_loader = loaders(folder, batch, s, image_size)
    limit, plan = 60 * minutes * (1 / 6 if side == "sixth" else 1), None
    if side == "article":
        runner = Article(device, seed)
        Article(device, seed).steps(Part(endless(train_loader), 1))  # the first step anywhere is slower
    else:
        compiled = (batch, 3, *image_size) if s.COMPILE and device.type == "cuda" else None
        seconds = trial_seconds(s, device, train_loader, compiled)
        plan = max(1, int(MARGIN * limit / seconds / points))
        runner = Ours(device, s, -(-plan // s.ACCUMULATE), points, compiled)
    train_loader.sampler.set_epoch(0)
    source, spent, seen, curve = endless(train_loader), 0.0, 0, []
    for point in range(1, points + 1):
        if plan:
            part = Part(source, plan)
        else:
            part = until(source, limit * point / points - spent)
        seconds, count = clocked(runner, part, device)
        spent, seen = spent + seconds, seen + count * batch
        with redirect_stdout(io.StringIO()):
            dice = check_accuracy(val_loader, runner.network, device, runner.dtype).dice
        curve.append([spent / 60, seen, dice])
        print(f"  {side}, seed {seed}: {spent / 60:.2f} minutes, {seen} images, Dice {dice:.4f}", flush=True)
    return dict(curve=curve, batch=batch, training_images=len(train_loader.dataset), validation=len(val_loader.dataset))


def races(args, device):
    """Runs the pieces that are asked for and not there yet, then prints and draws all that there are."""
    folder = prepared(args.data, args.work, args.cars, args.val_images)
    setting = dict(data=folder.name, image_size=list(args.image_size), minutes=args.minutes, device=device.type)
    records = json.loads(args.results.read_text()) if args.results.is_file() else []
    for seed in [args.seed] if args.seed is not None else range(args.seeds):
        for side in [args.only] if args.only else SIDES:
            piece = setting | dict(side=side, seed=seed, flags=[] if side == "article" else args.flags)
            if any(piece.items() <= record.items() for record in records):
                continue
            size = tuple(args.image_size)
            found = race(side, device, folder, size, seed, args.minutes, args.points, args.flags)
            records.append(piece | found | dict(machine=machine(device)))
            write_text(args.results, json.dumps(records, indent=1) + "\n")
    kept = [
        record
        for record in records
        if setting.items() <= record.items() and (record["side"] == "article" or record["flags"] == args.flags)
    ]
    tell(kept, args.minutes)
    draw(kept, args.minutes, args.results.with_suffix(".png"))


def tell(records, minutes):
    """Prints, seed by seed, the Dice at the end, and when ours had the article's."""
    by = {(record["side"], record["seed"]): record["curve"] for record in records}
    print(
        f"\n| seed | the article's after {minutes:g} minutes | ours planned for {minutes / 6:.2g}: the end | "
        f"had the article's Dice after | ours planned for {minutes:g}: the end |\n|---|---|---|---|---|"
    )
    for seed in sorted({seed for _, seed in by}):
        article, sixth, whole = (by.get((side, seed)) for side in SIDES)
        height = article[-1][2] if article else None
        when = next((f"{point[0]:.2f}" for point in sixth or () if article and point[2] >= height), "-")
        ends = [f"{curve[-1][2]:.4f} ({curve[-1][0]:.2f} min)" if curve else "-" for curve in (article, sixth, whole)]
        print(f"| {seed} | {ends[0]} | {ends[1]} | {when} min | {ends[2]} |")


def draw(records, minutes, path):
    """The curves, Dice by minutes of training."""
    figure, axes = plt.subplots(figsize=(7, 4.2))
    labelled = set()
    for record in records:
        side = record["side"]
        label = None if side in labelled else SIDES[side]
        labelled.add(side)
        times, _, dice = zip(*record["curve"])
        axes.plot(times, dice, "o-", markersize=3, color=f"C{list(SIDES).index(side)}", label=label)
    axes.axvline(minutes / 6, color="0.7", linestyle=":")
    axes.set_xlabel("minutes of training")
    axes.set_ylabel("Dice, held-out images")
    if records:
        size = "x".join(map(str, records[0]["image_size"]))
        axes.set_title(f"{records[0]['data']}, {size}, {records[0]['device']}", fontsize=9)
        low = min(point[2] for record in records for point in record["curve"][-2:])
        axes.set_ylim(max(0.0, low - 0.02), 1.0)
        axes.legend()
    axes.grid(alpha=0.3)
    figure.tight_layout()
    write_whole(path, lambda file: figure.savefig(file, format="png", dpi=130))
    plt.close(figure)
    print(f"Drawn in {path}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=("step", "race"), default=["step", "race"])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--step-size", nargs=2, type=int, default=(320, 480), metavar=("H", "W"))
    parser.add_argument("--batch-size", type=int, help="of the step (default: 2 on a CPU, else 16)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--data", type=Path, help="default: drawn cars")
    parser.add_argument("--cars", type=int, default=24, help="drawn, 16 views of each")
    parser.add_argument("--val-images", type=int, default=64, help="held out where FOLDER is not split yet")
    parser.add_argument("--image-size", nargs=2, type=int, default=(160, 240), metavar=("H", "W"), help="of the race")
    parser.add_argument("--minutes", type=float, default=15)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--seed", type=int, help="this one alone")
    parser.add_argument("--only", choices=SIDES, help="this side alone")
    parser.add_argument("--points", type=int, default=6, help="how often a race is validated")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "time_to_dice.json")
    parser.add_argument("--work", type=Path, default=ROOT / "demo" / "benchmark", help="where data are prepared")
    parser.add_argument("flags", nargs="*", help="after --: constants of train.py, such as --loss bce")
    args = parser.parse_args()
    device = pick_device(args.device)
    print(machine(device))
    if "step" in args.parts:
        batch = args.batch_size or (2 if device.type == "cpu" else 16)
        compare_steps(device, tuple(args.step_size), batch, args.rounds, args.flags)
    if "race" in args.parts:
        races(args, device)


if __name__ == "__main__":
    run(main)
