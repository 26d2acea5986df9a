"""The two sides that benchmarks/train.py compares, and the clock and the measures that it holds to them."""

import ctypes
import itertools
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from torch import nn  # noqa: E402
from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

import train  # noqa: E402
from parts import processes, recipe  # noqa: E402
from parts.encoders import build_network  # noqa: E402
from unet import UNet  # noqa: E402


class Article:
    """The article's network, optimizer and step."""

    def __init__(self, device, seed=0):
        self.device, self.dtype = device, torch.float16 if device.type == "cuda" else None
        torch.manual_seed(seed)
        self.network = UNet().to(device)
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=1e-4)
        self.loss_fn = nn.BCEWithLogitsLoss()
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.dtype is not None)

    def steps(self, batches):
        """Trains on uint8 batches; returns how many there were."""
        give_freed_memory_back()
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


def give_freed_memory_back():
    """malloc as it settles by itself (parts.processes.keep_freed_memory says what is undone, and why it was done)."""
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if hasattr(libc, "malloc_trim"):
        largest = 32 << 20  # bytes, of what malloc takes from its heap
        for option, value in ((-4, 65536), (-1, 2 * largest), (-3, largest)):
            libc.mallopt(option, value)
        libc.malloc_trim(0)


class Ours:
    """What train.py does, as many steps at a time as are asked for: an epoch of its own to train_fn."""

    def __init__(self, device, s, steps_per_epoch, epochs, compiled_for=None):
        self.s, self.epoch = s, 0
        torch.manual_seed(s.SEED)
        self.network = build_network(3, 1, s.FEATURES, s.ENCODER).to(device, memory_format=torch.channels_last)
        optimizer = recipe.make_optimizer(self.network, s.OPTIMIZER, s.LEARNING_RATE, s.WEIGHT_DECAY)
        self.dtype = recipe.autocast_dtype(device, s.PRECISION)
        scaler = torch.amp.GradScaler(device.type, enabled=self.dtype == torch.float16)
        schedule = recipe.Schedule(optimizer, s.SCHEDULE, steps_per_epoch, epochs, s.WARMUP, s.PLATEAU_PATIENCE)
        self.parts = optimizer, recipe.Loss(s.LOSS), scaler, schedule
        if compiled_for:
            recipe.compile_or_not(self.network, compiled_for, self.dtype, s.HALF_SIZE)
        self.trained = processes.wrap(self.network, device, s.SYNC_BATCHNORM)
        self.on_cpu = device.type == "cpu"

    def steps(self, batches):
        """Trains on a sized collection of uint8 batches, as large at every call."""
        if self.on_cpu:
            processes.keep_freed_memory()
        train.train_fn(batches, self.trained, *self.parts, self.epoch, self.s, self.dtype)
        self.epoch += 1
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
