"""The two sides that benchmarks/train.py compares, and the clock and the measures that it holds to them."""

import itertools
import sys
import time
from pathlib import Path
from types import SimpleNamespace

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from torch import nn  # noqa: E402
from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

import processes  # noqa: E402
import recipe  # noqa: E402
import train  # noqa: E402
from training import Training  # noqa: E402
from unet import UNet  # noqa: E402


class Article:
    """The article's network, optimizer and step."""

    def __init__(self, device, seed=0):
        self.device, self.dtype = device, torch.float16 if device.type == "cuda" else None
        torch.manual_seed(seed)
        self.scored = self.network = UNet().to(device)
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=1e-4)
        self.loss_fn = nn.BCEWithLogitsLoss()
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.dtype is not None)

    def steps(self, batches):
        """Trains on uint8 batches; returns how many there were."""
        processes.keep_freed_memory(False)
        self.network.train()
        count = 0
        for images, masks in batches:
            images = images.to(self.device).contiguous().float() / 255
            masks = masks.to(self.device).float().unsqueeze(1)
            with torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype is not None):
                loss = self.loss_fn(self.network(images), masks)
            self.optimizer.zero_grad()
            self.scaler.scale(loss).backward()
            self.scaler.step(self.optimizer)
            self.scaler.update()
            loss.item()
            count += 1
        return count


class Ours:
    """What train.py does, as many steps at a time as are asked for."""

    def __init__(self, device, settings, total_steps, compiled_for=None):
        self.settings = settings
        self.run = Training(settings, device, total_steps)
        self.dtype = self.run.dtype
        if compiled_for:
            recipe.compile_or_not(self.run.network, compiled_for, self.dtype, settings.half_size)

    @property
    def scored(self):
        return self.run.scored

    def steps(self, batches):
        """Trains on a sized collection of uint8 batches, as large at every call: an epoch to train_fn."""
        if self.run.device.type == "cpu":
            processes.keep_freed_memory()
        bar = SimpleNamespace(update=lambda *_: None, set_postfix=lambda **_: None)
        train.train_fn(batches, self.run, self.settings, bar)
        self.run.epoch += 1
        return len(batches)


class Part:
    """The next `count` batches of an endless iterator."""

    def __init__(self, batches, count):
        self.batches, self.count = batches, count

    def __iter__(self):
        return itertools.islice(self.batches, self.count)

    def __len__(self):
        return self.count


def endless(loader):
    while True:
        yield from loader


def until(batches, seconds):
    """Batches for so many seconds from now; the step that has begun by then is finished."""
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        yield next(batches)


def wait_for(device):
    if device.type == "cuda":
        torch.cuda.synchronize()


def clocked(side, batches, device):
    """(seconds, steps) of `side` training on `batches`."""
    wait_for(device)
    start = time.perf_counter()
    count = side.steps(batches)
    wait_for(device)
    return time.perf_counter() - start, count


def matrix_peak(device, dtype):
    """FLOP/s of a large square matrix product, the best of several."""
    size, repeats = (8192, 10) if device.type == "cuda" else (4096, 2)
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    best = 0.0
    for _ in range(4):
        wait_for(device)
        start = time.perf_counter()
        for _ in range(repeats):
            a @ b
        wait_for(device)
        best = max(best, repeats * 2 * size**3 / (time.perf_counter() - start))
    return best


def training_flops(image_size):
    """FLOPs of one image's forward and backward pass through the default network."""
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        UNet()(torch.zeros(1, 3, *image_size)).sum().backward()
    return counter.get_total_flops()
