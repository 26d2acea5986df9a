"""The sides that benchmarks/train.py, classes.py and peers.py compare, and the clock that is held to them."""

import ctypes
import io
import itertools
import platform
import sys
import time
from contextlib import redirect_stderr
from datetime import date
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402
from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

import train  # noqa: E402
from parts import processes, recipe  # noqa: E402
from parts.cars import draw_dataset  # noqa: E402
from parts.losses import Loss  # noqa: E402
from parts.networks import build_network  # noqa: E402
from unet import UNet  # noqa: E402
from utils import get_loaders  # noqa: E402

ARTICLE_BATCH = 16
MARGIN = 0.9  # of the time is planned for: a run that is a little slower than its trial still ends in time


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
        torch.backends.cudnn.benchmark = False
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


class WholeImages:
    """The recipe of milesial's Pytorch-UNet for several classes, re-made: one whole image a step in float32 and NCHW,
    RMSprop at 1e-5 with momentum 0.999, cross-entropy plus the Dice loss over all classes, gradients cut at 1.

    It knows no ignored pixels; here they are left out of both terms, to its advantage.
    """

    def __init__(self, device, channels, seed=0):
        self.device, self.channels, self.dtype = device, channels, None
        torch.manual_seed(seed)
        self.network = UNet(3, channels).to(device)
        keywords = dict(lr=1e-5, weight_decay=1e-8, momentum=0.999)
        self.optimizer = torch.optim.RMSprop(self.network.parameters(), **keywords)

    def steps(self, batches):
        """Trains on uint8 batches of one image each; returns how many there were."""
        give_freed_memory_back()
        self.network.train()
        count = 0
        for images, masks in batches:
            logits = self.network(images.to(self.device).contiguous().float() / 255)
            masks = masks.to(self.device).long()
            known = (masks != 255)[:, None]
            truths = F.one_hot(masks.where(known[:, 0], 0), self.channels).permute(0, 3, 1, 2) * known
            found = logits.softmax(1) * known
            both, areas = 2 * (found * truths).sum((2, 3)), found.sum((2, 3)) + truths.sum((2, 3))
            dice = (both + 1e-6) / (torch.where(areas == 0, both, areas) + 1e-6)
            loss = F.cross_entropy(logits, masks, ignore_index=255) + 1 - dice.mean()
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
            self.optimizer.step()
            loss.item()
            count += 1
        return count


class Smp:
    """segmentation_models.pytorch's U-Net on a resnet34 from scratch, as its examples train it: Adam, BCE and Dice."""

    def __init__(self, device, seed=0):
        import segmentation_models_pytorch as smp  # it is no requirement of this project

        self.device, self.dtype = device, None
        torch.manual_seed(seed)
        self.network = smp.Unet("resnet34", encoder_weights=None, in_channels=3, classes=1).to(device)
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=5e-4)
        self.terms = [smp.losses.DiceLoss("binary"), nn.BCEWithLogitsLoss()]

    def steps(self, batches):
        """Trains on uint8 batches; returns how many there were."""
        give_freed_memory_back()
        self.network.train()
        count = 0
        for images, masks in batches:
            logits = self.network(images.to(self.device).contiguous().float() / 255)
            masks = masks.to(self.device).float()[:, None]
            loss = sum(term(logits, masks) for term in self.terms)
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            self.optimizer.step()
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
    """What train.py does, as many steps at a time as are asked for: an epoch of its own to train_fn.

    `tries`: whether cuDNN tries its kernels, as train.py has it. What it has chosen for a shape, either way, it keeps
    for the whole process, so that the two must not be compared in one.
    """

    def __init__(self, device, s, steps_per_epoch, epochs, compiled_for=None, channels=1, tries=True):
        self.s, self.epoch, self.tries = s, 0, tries
        torch.backends.cudnn.benchmark = tries
        torch.manual_seed(s.SEED)
        self.network = build_network(3, channels, s.FEATURES, s.ENCODER, pads=True).to(
            device, memory_format=torch.channels_last
        )
        optimizer = recipe.make_optimizer(self.network, s.OPTIMIZER, s.LEARNING_RATE, s.WEIGHT_DECAY)
        self.dtype = recipe.autocast_dtype(device, s.PRECISION)
        scaler = torch.amp.GradScaler(device.type, enabled=self.dtype == torch.float16)
        schedule = recipe.Schedule(optimizer, s.SCHEDULE, steps_per_epoch, epochs, s.WARMUP, s.PLATEAU_PATIENCE)
        self.parts = optimizer, Loss(s.LOSS), scaler, schedule
        self.trained = processes.wrap(self.network, device, s.SYNC_BATCHNORM)
        if compiled_for:
            with processes.synchronised(self.trained, last=False):
                recipe.compile_or_not(self.trained, compiled_for, self.dtype, s.HALF_SIZE)
        self.on_cpu = device.type == "cpu"

    def steps(self, batches):
        """Trains on a sized collection of uint8 batches, as large at every call."""
        if self.on_cpu:
            processes.keep_freed_memory()
        torch.backends.cudnn.benchmark = self.tries
        with redirect_stderr(io.StringIO()):  # the progress bars of many short epochs
            train.train_fn(batches, self.trained, *self.parts, self.epoch, self.s)
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


def ours_settings(device, flags, seed):
    """train.py's constants with `flags` over them; two CPU cores learn most from small batches of growing images."""
    small = ["--batch-size", "2", "--half-size", "0.5"] if device.type == "cpu" else []
    return train.settings([*small, *flags, "--seed", str(seed)])


def machine(device):
    """What a figure depends on, in one line."""
    name = torch.cuda.get_device_name() if device.type == "cuda" else f"{platform.machine()} CPU, {cpu_name()}"
    return f"{name}, {torch.get_num_threads()} threads, torch {torch.__version__}, {date.today()}"


def cpu_name():
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())


def prepared(data, work, cars, val_images):
    """The folder that holds augmented_{train,test}_{images,masks}, made if need be."""
    if data is None:
        data = work / f"drawn-{cars}"
        if not (data / "train").is_dir():
            draw_dataset(data, cars=cars)
    if (data / "augmented_train_images").is_dir():
        return data
    output = work / f"{data.name}-augmented"
    if not (output / "augmented_train_images").is_dir():
        import augment  # here, because not every machine has albumentations

        augment.make_augmented(
            data / "train", data / "train_masks", output, choices=augment.Choices(val_images=val_images)
        )
    return output


def loaders(folder, batch, s, image_size):
    """(training, validation) as train.py has them; a batch is uint8 from the arrays on disk."""
    places = [folder / f"augmented_{part}_{kind}" for part in ("train", "test") for kind in ("images", "masks")]
    return get_loaders(*places, batch, s.NUM_WORKERS, s.PIN_MEMORY, image_size=image_size, seed=s.SEED)


def trial_seconds(s, device, loader, compiled):
    """Seconds of a mean step of ours, from a short run of its own, which passes through all sizes of HALF_SIZE."""
    count = 100 if device.type == "cuda" else 40
    for _ in range(2):  # what is done for the first time is slower
        trial = Ours(device, s, -(-count // s.ACCUMULATE), 1, compiled)
        seconds, _ = clocked(trial, Part(endless(loader), count), device)
    return seconds / count
