"""What several classes cost a training step: the article's network with one output channel and with many, in turn.

    python benchmarks/classes_step.py                       160x240, batches of 2, 12 classes, a tenth of pixels ignored
    python benchmarks/classes_step.py --classes 2 12 150 --image-size 320 480 --batch-size 16 --device cuda

A step is that of train.py's train_fn: flips and colours, the network in mixed precision and channels_last, the loss
in float32, backward, clipping, AdamW. Each round takes a step of every side, so that what else the machine does meets
all of them; a side's ratio is the median over rounds of its time by that of one foreground in the same round.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

import torch  # noqa: E402
from sides import wait_for  # noqa: E402

from parts import processes, recipe  # noqa: E402
from parts.errors import run  # noqa: E402
from parts.losses import Loss  # noqa: E402
from unet import UNet  # noqa: E402

_WARM_UP = 2  # rounds that do not count, because the first steps anywhere are slower


class Side:
    """A network of `classes` channels, or of one foreground for 1, and its training steps on one batch."""

    def __init__(self, classes, size, batch, loss, device):
        draws = torch.Generator().manual_seed(0)
        self.device, self.dtype = device, recipe.autocast_dtype(device)
        self.images = torch.randint(0, 256, (batch, 3, *size), dtype=torch.uint8, generator=draws).to(device)
        self.images = self.images.contiguous(memory_format=torch.channels_last)
        coarse = torch.randint(0, max(2, classes), (batch, 1, 8, 12), dtype=torch.uint8, generator=draws)
        rows, columns = (torch.arange(side) * cells // side for side, cells in zip(size, coarse.shape[2:]))
        masks = coarse.index_select(2, rows).index_select(3, columns)  # patches, as masks have them
        if classes > 1:
            masks[:, :, : size[0] // 10] = recipe.IGNORED
        self.targets = masks.to(device) if classes > 1 else masks.to(device).float()
        torch.manual_seed(0)
        self.network = UNet(out_channels=classes).to(device, memory_format=torch.channels_last)
        self.optimizer = recipe.make_optimizer(self.network, "adamw", 5e-4, 0.01)
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.dtype == torch.float16)
        self.loss_fn = Loss(loss)
        self.variation = recipe.Variation(True, 0.4)

    def step(self, number):
        """(seconds of one step, seconds of the loss and its way back to the logits once more, alone)."""
        draws = recipe.named_generator(0, number)
        wait_for(self.device)
        start = time.perf_counter()
        images, targets = recipe.vary_batch(self.images.float() / 255, self.targets, self.variation, draws)
        with torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype is not None):
            logits = self.network(images)
        self.scaler.scale(self.loss_fn(logits.float(), targets)).backward()
        self.scaler.unscale_(self.optimizer)
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        wait_for(self.device)
        whole = time.perf_counter() - start
        logits = logits.detach().float().requires_grad_()
        wait_for(self.device)
        start = time.perf_counter()
        self.loss_fn(logits, targets).backward()
        wait_for(self.device)
        return whole, time.perf_counter() - start


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classes", nargs="+", type=int, default=[12])
    parser.add_argument("--image-size", nargs=2, type=int, default=(160, 240), metavar=("H", "W"))
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--loss", default="bce+dice")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--device", default="auto")
    args = parser.parse_args()
    device = processes.pick_device(args.device)
    if device.type == "cpu":
        processes.keep_freed_memory()
    sides = {n: Side(n, tuple(args.image_size), args.batch_size, args.loss, device) for n in (1, *args.classes)}
    times = {classes: [] for classes in sides}
    for number in range(args.rounds + _WARM_UP):
        turn = list(sides)[:: 1 if number % 2 else -1]  # each side comes first as often as last
        for classes in turn:
            found = sides[classes].step(number)
            if number >= _WARM_UP:
                times[classes].append(found)
    dtype = str(sides[1].dtype or torch.float32).removeprefix("torch.")
    print(
        f"Training steps at {args.image_size[0]}x{args.image_size[1]}, batch {args.batch_size}, {dtype} on {device}, "
        f"{torch.get_num_threads()} threads, {args.rounds} rounds in turn.\n\n"
        "| classes | ms a step, median (lowest) | ratio, median of rounds (quartiles) | ms of the loss |\n"
        "|---|---|---|---|"
    )
    for classes, found in times.items():
        steps, losses = (sorted(1e3 * seconds for seconds in column) for column in zip(*found))
        ratios = [mine[0] / one[0] for mine, one in zip(found, times[1])]
        low, middle, high = statistics.quantiles(ratios, n=4)
        print(
            f"| {'one foreground' if classes == 1 else classes} | {statistics.median(steps):.1f} ({steps[0]:.1f}) "
            f"| {middle:.3f} ({low:.3f} to {high:.3f}) | {statistics.median(losses):.2f} |"
        )


if __name__ == "__main__":
    run(main)
