"""Trials of the recipe: what a change to the training brings, over several seeds, beside the recipe as it is.

    python benchmarks/recipe.py                               every trial on every set, three seeds each: hours
    python benchmarks/recipe.py --sets cars --trials muon "group norm" --seeds 1
    python benchmarks/recipe.py --sets classes --data FOLDER  FOLDER/{train,val}_{images,masks}

A trial is train.py with other flags. What train.py does not have stands below as a part of one's own, which a flag
names: `python train.py --small --optimizer benchmarks/recipe.py:Muon`. Every run takes one thread, and is kept in
--results: what is there already is not run again. The score is that of the last epoch; time is CPU seconds, which other
work disturbs less than the clock. A trial that gains less than the spread over its seeds has shown nothing.

cars: the demo's drawn cars with their copies. cracks: thin lines among stains, trained on crops. classes: no default.
"""

import argparse
import csv
import json
import os
import statistics
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from random import choice, random

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

import numpy as np  # noqa: E402
import torch  # noqa: E402
from crops import make_cracks  # noqa: E402
from sides import machine, prepared  # noqa: E402
from torch import nn  # noqa: E402
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, update_bn  # noqa: E402

from parts.errors import UserError, run  # noqa: E402
from parts.losses import TERMS  # noqa: E402
from parts.processes import pick_device  # noqa: E402
from unet import DoubleConv, UNet  # noqa: E402

FOLDERS = ("train_images", "train_masks", "val_images", "val_masks")
ITSELF = "benchmarks/recipe.py"
SETS = {
    "cars": "--image-size 128 192 --num-epochs 1",
    "cracks": "--crop 160 240 --image-size none --num-epochs 1",
    "classes": "--classes all --image-size 128 176 --num-epochs 12",
}
TRIALS = {
    "as it is": "",
    "half of the steps at half size": "--half-size 0.5",
    "rate 1e-3": "--learning-rate 1e-3",
    "shorter warm-up": "--warmup 0.05",
    "shorter memory of squares": f"--optimizer {ITSELF}:adamw_95",
    "output begins at background": f"--network {ITSELF}:at_background",
    "colours varied": "--color-jitter 0.4",
    "colours varied by half": "--color-jitter 0.2",
    "scaled and rotated": "--scale 0.7 1.4 --rotate 10",
    "weights averaged": f"--network {ITSELF}:averaged",
    "weights averaged, constant rate": f"--network {ITSELF}:averaged --schedule constant",
    "group norm": f"--network {ITSELF}:group_norm",
    "instance norm": f"--network {ITSELF}:instance_norm",
    "no class weights": "--class-weights none",
    "foreground of other images pasted": f"--augment {ITSELF}:paste",
    "muon": f"--optimizer {ITSELF}:Muon",
    "residual blocks": f"--network {ITSELF}:residual",
    "flips in alternation": f"--no-flip --augment {ITSELF}:alternate",
    "deep supervision": f"--network {ITSELF}:deep --loss bce+dice+{ITSELF}:at_depth",
}


# ---- parts of one's own


class Averaged(nn.Module):
    """Trains a U-Net, and answers in evaluation with the exponential mean of its weights (decay 0.99 a step).

    BatchNorm's statistics are those of the mean's own answers to the last 32 batches: averaged ones do not fit it, and
    ruin what it answers (Izmailov et al., 2018, arXiv:1803.05407, section 3.2).
    """

    def __init__(self, network: UNet) -> None:
        super().__init__()
        self.trained, self.stride, self.reach = network, network.stride, network.reach
        self.mean = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(0.99))
        self.mean.requires_grad_(False)
        self.last = []

    def forward(self, x):
        if not self.training:
            return self.mean(x)
        self.mean.update_parameters(self.trained)  # of the steps until now
        self.last = [*self.last[-31:], x.detach()]
        return self.trained(x)

    @torch.no_grad()
    def train(self, mode=True):
        if self.training and not mode and self.last:
            update_bn(self.last, self.mean)
            self.last = []  # scoring and pictures ask for evaluation again and again
        super().train(mode)
        self.mean.eval()
        return self


def averaged(in_channels, out_channels, features):
    return Averaged(UNet(in_channels, out_channels, features, pads=True))


def group_norm(in_channels, out_channels, features):
    return with_norm(lambda channels: nn.GroupNorm(8, channels), in_channels, out_channels, features)


def instance_norm(in_channels, out_channels, features):
    return with_norm(lambda channels: nn.InstanceNorm2d(channels, affine=True), in_channels, out_channels, features)


def with_norm(make, in_channels, out_channels, features):
    """A U-Net with other layers in the place of BatchNorm."""
    network = UNet(in_channels, out_channels, features, pads=True)
    for block in network.modules():
        if isinstance(block, DoubleConv):
            for index in (1, 4):
                block.conv[index] = make(block.conv[index].num_features)
    return network


class Residual(nn.Module):
    """A DoubleConv whose input is added before its last rectifier: He et al., 2016, arXiv:1512.03385, figure 2."""

    def __init__(self, block: DoubleConv) -> None:
        super().__init__()
        first, last = block.conv[0], block.conv[4]
        self.block = block.conv[:5]
        self.short = nn.Sequential(
            nn.Conv2d(first.in_channels, last.num_features, 1, bias=False), nn.BatchNorm2d(last.num_features)
        )

    def forward(self, x):
        return torch.relu(self.block(x) + self.short(x))


def residual(in_channels, out_channels, features):
    network = UNet(in_channels, out_channels, features, pads=True)
    network.middle = Residual(network.middle)
    for blocks in (network.encoder, network.decoder):
        for index, block in enumerate(blocks):
            if isinstance(block, DoubleConv):
                blocks[index] = Residual(block)
    return network


SIDE_LOGITS = []  # of the last batch, at half, a quarter ... of its size


def deep(in_channels, out_channels, features):
    """A U-Net that training reads at each of the decoder's levels: Lee et al., 2015, arXiv:1409.5185."""
    network = UNet(in_channels, out_channels, features, pads=True)
    levels = network.decoder[1:-2:2]
    network.heads = nn.ModuleList(nn.Conv2d(block.conv[3].out_channels, out_channels, 1) for block in levels)
    network.register_forward_pre_hook(lambda *_: SIDE_LOGITS.clear())
    for block, head in zip(levels, network.heads):
        block.register_forward_hook(
            lambda _, __, found, head=head: SIDE_LOGITS.append(head(found)) if network.training else None
        )
    return network


def at_depth(logits, labels, kept):
    """Cross-entropy and Dice of those outputs, enlarged; each counts half of the next finer one."""
    total = 0 * logits.sum()  # which a loss must depend on, also where there are none
    for level, side in enumerate(reversed(SIDE_LOGITS), 1):
        large = nn.functional.interpolate(side.float(), size=labels.shape[2:], mode="bilinear")
        total = total + sum(TERMS[name](large, labels, kept, None) for name in ("bce", "dice")) / 2**level
    return total


adamw_95 = partial(torch.optim.AdamW, betas=(0.9, 0.95), fused=True)


def at_background(in_channels, out_channels, features):
    """A U-Net that begins with a probability of 0.1 for all but the background: Lin et al., 2017, arXiv:1708.02002."""
    network = UNet(in_channels, out_channels, features, pads=True)
    nn.init.constant_(network.output_conv.bias[-(out_channels - 1 or 1) :].data, -2.2)
    return network


class Muon(torch.optim.Optimizer):
    """Steps of nearly orthogonal matrices: Jordan et al., 2024, kellerjordan.github.io/posts/muon; the first and the
    last layer, biases and normalisation by AdamW.

    A convolution's weights are the matrix (out, in * kernel). Steps have the mean square of AdamW's (Liu et al., 2025,
    arXiv:2502.16982, equation 4), so that its learning rate and weight decay serve for both.
    """

    def __init__(self, groups, lr):
        super().__init__(groups, dict(lr=lr, weight_decay=0.0))
        outer = {id(parameter) for parameter in (self.param_groups[0]["params"][0], self.param_groups[0]["params"][-1])}
        for group in self.param_groups:
            group["inner"] = [p.dim() == 4 and id(p) not in outer for p in group["params"]]

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for parameter, inner in zip(group["params"], group["inner"]):
                if parameter.grad is None:
                    continue
                state, gradient = self.state[parameter], parameter.grad
                if not state:
                    state.update(step=0, mean=torch.zeros_like(gradient), square=torch.zeros_like(gradient))
                state["step"] += 1
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                if inner:
                    state["mean"].lerp_(gradient, 0.05)
                    update = gradient.lerp(state["mean"], 0.95).flatten(1)
                    change = 0.2 * max(update.shape) ** 0.5 * orthogonal(update).view(parameter.shape)
                else:
                    state["mean"].lerp_(gradient, 0.1)
                    state["square"].lerp_(gradient.square(), 0.001)
                    height = (state["square"] / (1 - 0.999 ** state["step"])).sqrt() + 1e-8
                    change = state["mean"] / (1 - 0.9 ** state["step"]) / height
                parameter.sub_(group["lr"] * change)


def orthogonal(matrix, rounds=5):
    """The matrix with singular values near 1: five Newton-Schulz rounds."""
    x = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    x = (x / (x.norm() + 1e-7)).bfloat16()
    for _ in range(rounds):
        product = x @ x.T
        x = 3.4445 * x + (-4.7750 * product + 2.0315 * product @ product) @ x
    x = x.float()
    return x.T if matrix.shape[0] > matrix.shape[1] else x


class Paste:
    """Half of the time puts a label of another training image on this one, where it was there: Ghiasi et al., 2021,
    arXiv:2012.07177."""

    def __init__(self):
        self.others = []

    def __call__(self, image, mask):
        self.others = [*self.others[-63:], (image.copy(), mask.copy())]
        if random() < 0.5:
            other, labels = choice(self.others)
            if other.shape == image.shape:
                chosen = labels == choice([label for label in np.unique(labels) if 0 < label < 255] or [0])
                image, mask = image.copy(), mask.copy()
                image[chosen], mask[chosen] = other[chosen], labels[chosen]
        return dict(image=image, mask=mask)


class Alternate:
    """Mirrors an image in every second epoch, the first one drawn: Jordan, 2024, arXiv:2404.00498, section 3.6."""

    def __init__(self):
        self.mirrored = {}

    def __call__(self, image, mask):
        key = hash(image.tobytes())
        self.mirrored[key] = not self.mirrored.get(key, random() < 0.5)
        if self.mirrored[key]:
            image, mask = np.ascontiguousarray(image[:, ::-1]), np.ascontiguousarray(mask[:, ::-1])
        return dict(image=image, mask=mask)


paste, alternate = Paste(), Alternate()


# ---- runs


def prepare(name, args):
    """The four folders of a set, drawn if need be."""
    if args.data or name == "classes":
        if not args.data:
            return None
        return [args.data / folder for folder in FOLDERS]
    if name == "cars":
        folder = prepared(None, args.work, 24, 64)
        return [folder / f"augmented_{part}_{kind}" for part in ("train", "test") for kind in ("images", "masks")]
    make_cracks(args.work / "cracks", training=80, validation=8, size=(480, 640))
    return [args.work / "cracks" / folder for folder in FOLDERS]


def train(name, trial, seed, folders, args):
    """One run; returns {score, seconds}, also from the folder of one that has ended."""
    output = args.results / name / f"{trial.replace(' ', '-').replace(',', '')}-{seed}"
    flags = [*SETS[name].split(), *args.flags, *TRIALS[trial].split()]
    if args.minutes:
        flags += ["--minutes", str(args.minutes)]
    kept = output / "result.json"
    if kept.is_file() and (found := json.loads(kept.read_text()))["flags"] == flags:
        return found
    output.mkdir(parents=True, exist_ok=True)
    places = zip(("--train-img-dir", "--train-mask-dir", "--val-img-dir", "--val-mask-dir"), map(str, folders))
    plain = ["--num-workers", "0", "--metrics", "none", "--picture-batches", "0", "--device", "cpu"]
    command = [sys.executable, "train.py", "--small", *(word for place in places for word in place), *plain]
    command += ["--output-dir", str(output), "--seed", str(seed), *flags]
    with open(output / "log.txt", "w") as log:
        process = os.posix_spawn(
            command[0],
            command,
            os.environ | dict(OMP_NUM_THREADS="1"),
            file_actions=[(os.POSIX_SPAWN_DUP2, log.fileno(), 1), (os.POSIX_SPAWN_DUP2, log.fileno(), 2)],
        )
        _, status, used = os.wait4(process, 0)
    if status:
        raise UserError(f"{trial} on {name}, seed {seed}, ended in an error: {output / 'log.txt'}")
    with open(output / "history.csv") as table:
        last = list(csv.DictReader(table))[-1]
    score = float(last["iou" if "dice_0" in last else "dice"])
    found = dict(score=score, seconds=used.ru_utime + used.ru_stime, flags=flags)
    kept.write_text(json.dumps(found))
    return found


def row(name, trial, found, plain):
    scores = [run["score"] for run in found]
    mean = statistics.mean(scores)
    spread = statistics.stdev(scores) if len(scores) > 1 else float("nan")
    seconds = statistics.mean(run["seconds"] for run in found)
    gain = f"{mean - statistics.mean(run['score'] for run in plain):+.4f}"
    cost = seconds / statistics.mean(run["seconds"] for run in plain)
    each = ", ".join(f"{score:.4f}" for score in scores)
    print(
        f"| {name} | {trial} | {each} | {mean:.4f} ± {spread:.4f} | {gain} | {seconds:.0f} ({cost:.2f}) |", flush=True
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--trials", nargs="+", choices=TRIALS, default=list(TRIALS), metavar="TRIAL")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--minutes", type=float, help="a run, in the place of a number of epochs")
    parser.add_argument("--jobs", type=int, default=1, help="runs at once, of one thread each")
    parser.add_argument("--data", type=Path, help="the four folders of a set")
    parser.add_argument("--results", type=Path, default=ROOT / "demo" / "recipe")
    parser.add_argument("--work", type=Path, default=ROOT / "demo" / "benchmark", help="where data are prepared")
    parser.add_argument("flags", nargs="*", help="after --: constants of train.py, of every run")
    args = parser.parse_args()
    args.results = args.results.resolve()
    os.chdir(ROOT)
    print(machine(pick_device("cpu")))
    print("\n| set | trial | scores | mean | gain | CPU seconds |\n|---|---|---|---|---|---|")
    for name in args.sets:
        folders = prepare(name, args)
        if folders is None:
            print(f"| {name} | left out: --data FOLDER says where they are | | | | |")
            continue
        trials = list(dict.fromkeys(["as it is", *args.trials]))
        with ThreadPoolExecutor(args.jobs) as pool:
            runs = {t: [pool.submit(train, name, t, seed, folders, args) for seed in range(args.seeds)] for t in trials}
            for trial in trials:
                try:
                    row(name, trial, [run.result() for run in runs[trial]], [run.result() for run in runs[trials[0]]])
                except UserError as error:  # such as half of the size with crops; the others go on
                    print(f"| {name} | {trial} | {error} | | | |")


if __name__ == "__main__":
    run(main)
