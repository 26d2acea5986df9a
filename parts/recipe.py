"""How the weights are updated: precision, loss, optimizer, schedule, flips and colours."""

import math
import platform
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from parts.script import UserError

PRECISIONS = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}
LOSSES = {"bce": False, "bce+dice": True}  # whether Dice is added
OPTIMIZERS = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
SCHEDULES = ("constant", "linear", "cosine", "plateau")
IGNORED = 255  # the label of pixels that are neither trained on nor scored, as in parts.masks
FULL_SIZE_FROM = 0.95  # share of the steps after which images that have grown are whole


def autocast_dtype(device, precision="auto"):
    """Autocast's dtype on `device`, or None for float32. UserError: float16 on a CPU, where it would crawl."""
    if precision == "auto":
        return best_dtype(device.type, has_bfloat16(device))
    if precision == "float16" and device.type == "cpu":
        raise UserError('PRECISION = "float16" is some thirty times slower on a CPU. Choose "auto".')
    return PRECISIONS[precision]


def best_dtype(device_type, bfloat16):
    """bfloat16 where the hardware computes it, float16 on CUDA that does not, else float32 (None)."""
    if device_type in ("cuda", "cpu") and bfloat16:
        return torch.bfloat16
    return torch.float16 if device_type == "cuda" else None


def has_bfloat16(device):
    """Whether `device` multiplies bfloat16 matrices in hardware; emulated, they are slower than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu" and platform.system() == "Linux":
        flags = Path("/proc/cpuinfo").read_text().split()
        return "avx512_bf16" in flags or "amx_bf16" in flags or "bf16" in flags  # x86, x86, Arm
    return False


class Loss(nn.Module):
    """Cross-entropy, to which "bce+dice" adds the soft Dice loss, in float32: logits (N, C, H, W) -> a scalar.

    Targets are {0, 1} in floats (N, 1, H, W) for C = 1, and the cross-entropy is binary; or labels in uint8
    (N, 1, H, W): classes 0 ... C - 1, or {0, 1} for C = 1, and IGNORED, which counts in neither term. The
    cross-entropy is the mean over pixels.
    Dice as in Milletari, Navab, Ahmadi: V-Net, 2016, section 3, with plain sums in the denominator; of each
    image, then the mean, as it is scored. Of several classes it is the mean over those that the image holds:
    one that it does not hold could only be asked for nothing, which the others' Dice asks already. One pixel is
    added above and below, so that an empty mask predicted empty loses nothing, nor does an image that is ignored.
    """

    def __init__(self, name):
        super().__init__()
        self.dice = LOSSES[name]

    def forward(self, logits, targets):
        if targets.dtype == torch.uint8:
            return self._of_labels(logits.float(), targets)
        logits, targets = logits.float(), targets.float()
        loss = F.binary_cross_entropy_with_logits(logits, targets)
        if self.dice:
            probabilities, targets = logits.sigmoid().flatten(1), targets.flatten(1)
            both = (probabilities * targets).sum(1)
            areas = probabilities.sum(1) + targets.sum(1)
            loss = loss + 1 - ((2 * both + 1) / (areas + 1)).mean()
        return loss

    def _of_labels(self, logits, labels):
        kept = (labels != IGNORED).float()
        if logits.shape[1] == 1:
            truth = labels * kept
            lost = F.binary_cross_entropy_with_logits(logits, truth, weight=kept, reduction="sum")
            probabilities = logits.sigmoid()
        else:
            classes = torch.arange(logits.shape[1], dtype=torch.uint8, device=labels.device)[:, None, None]
            truth = (labels == classes).float()
            logs = logits.contiguous().log_softmax(1)  # along strides of 1, every sum below would be slow on a CPU
            lost = -(logs * truth).sum()
            probabilities = logs.exp()
        loss = lost / kept.sum().clamp(min=1)
        if self.dice:
            both, true = (probabilities * truth).sum((2, 3)), truth.sum((2, 3))  # (N, C)
            dice = (2 * both + 1) / ((probabilities * kept).sum((2, 3)) + true + 1)
            held = true > 0 if logits.shape[1] > 1 else torch.ones_like(true)
            loss = loss + (((1 - dice) * held).sum(1) / held.sum(1).clamp(min=1)).mean()
        return loss


def make_optimizer(network, name, learning_rate, weight_decay):
    """Adam or AdamW, fused where the device can; biases and normalisation are not decayed."""
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.dim() > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
    ]
    fused = parameters[0].device.type in ("cpu", "cuda")
    return OPTIMIZERS[name](groups, lr=learning_rate, fused=fused)


def learning_rate_factor(step, total, name, warmup):
    """What the learning rate is multiplied by in `step` (0 ... total - 1), a function of the step alone."""
    rising = round(total * warmup)
    if step < rising:
        return (step + 1) / (rising + 1)
    left = (total - step) / max(1, total - rising)  # 1 after the warm-up, just above 0 at the end
    if name == "linear":
        return left
    if name == "cosine":
        return 0.5 * (1 - math.cos(math.pi * left))
    return 1.0


class Schedule:
    """The learning rate: by the step, and for "plateau" by validation Dice as well."""

    def __init__(self, optimizer, name, steps_per_epoch, epochs, warmup=0.0, plateau_patience=3):
        self.optimizer, self.name, self.warmup = optimizer, name, warmup
        self.steps_per_epoch, self.total = steps_per_epoch, steps_per_epoch * epochs
        self.start = self.height = optimizer.param_groups[0]["lr"]
        self.plateau = None
        if name == "plateau":
            self.plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(
                optimizer, mode="max", factor=0.1, patience=plateau_patience
            )

    def before_step(self, step):
        """Sets the learning rate of `step`, counted from 0 over the whole run."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.height * learning_rate_factor(step, self.total, self.name, self.warmup)

    def after_epoch(self, dice):
        """Tells the plateau schedule how validation went."""
        if self.plateau:
            for group in self.optimizer.param_groups:
                group["lr"] = self.height  # the warm-up has changed it
            self.plateau.step(dice)
            self.height = self.optimizer.param_groups[0]["lr"]

    def state_dict(self):
        plateau = None
        if self.plateau:
            state = self.plateau.state_dict()
            plateau = {key: state[key] for key in ("best", "num_bad_epochs", "last_epoch", "cooldown_counter")}
        return {"start": self.start, "height": self.height, "plateau": plateau}

    def load_state_dict(self, state):
        if self.plateau and state["plateau"]:
            self.plateau.load_state_dict(state["plateau"])
            self.height = state["height"] * (self.start / state.get("start", self.start))  # LEARNING_RATE of now


def named_generator(*numbers):
    """A CPU generator of its own for (seed, epoch, ...): the same numbers, the same draws."""
    seed = np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(seed >> np.uint64(1)))


def vary_batch(images, masks, flip, color_jitter, generator):
    """Images (N, 3, H, W) in [0, 1] and masks (N, 1, H, W), as the constants FLIP and COLOR_JITTER vary them.

    Masks are what Loss takes, and stay it, here and in the functions below.
    """
    if flip:
        images, masks = flip_batch(images, masks, generator)
    return jitter_colors(images, color_jitter, generator) if color_jitter else images, masks


def flip_batch(images, masks, generator):
    """Mirrors each image of (N, C, H, W), and its mask, left-right with a chance of one half."""
    chosen = (torch.rand(len(images), generator=generator) < 0.5).to(images.device, non_blocking=True)
    chosen = chosen[:, None, None, None]
    return torch.where(chosen, images.flip(3), images), torch.where(chosen, masks.flip(3), masks)


def jitter_colors(images, strength, generator):
    """Changes each image's contrast about its mean, its brightness and its channels' balance, at random.

    Factors are drawn from 1 - strength to 1 + strength, a channel's from the square root of that. Values
    may leave [0, 1] a little: nothing is cut off that the camera saw.
    """
    draws = 1 + strength * (2 * torch.rand(len(images), 5, generator=generator) - 1)
    draws = draws.to(images.device, non_blocking=True)[:, :, None, None]
    contrast, brightness, balance = draws[:, :1], draws[:, 1:2], draws[:, 2:].sqrt()
    mean = images.mean((1, 2, 3), keepdim=True)
    return ((images - mean) * contrast + mean * brightness) * balance


def size_factor(share, half_size):
    """What IMAGE_SIZE is multiplied by after `share` of the steps: a half up to `half_size`, then evenly more."""
    if not half_size or share >= FULL_SIZE_FROM:
        return 1.0
    return 0.5 + 0.5 * max(0.0, share - half_size) / (FULL_SIZE_FROM - half_size)


def shrink_batch(images, masks, factor, multiple):
    """Images and masks (N, C, H, W) at `factor` of their size, rounded to `multiple` pixels.

    A step at half the size costs a quarter, and most of what a network learns first shows there: the
    progressive resizing of Howard's fast.ai entry to DAWNBench, 2018.
    """
    if factor == 1:
        return images, masks
    size = [max(multiple, round(side * factor / multiple) * multiple) for side in images.shape[2:]]
    if masks.dtype == torch.uint8:
        masks = _shrink_labels(masks, size)
    else:
        masks = (F.interpolate(masks, size, mode="bilinear", antialias=True) >= 0.5).float()
    images = F.interpolate(images, size, mode="bilinear", antialias=True)
    return images.contiguous(memory_format=torch.channels_last), masks


def _shrink_labels(labels, size):
    """Labels (N, 1, H, W) at a smaller `size`: of each pixel the label that most of five points in it have.

    The points are its centre, which decides where none has most, and those of its quarters. Measured on CamVid's
    classes at 160x240, shrunk to a half and enlarged again: mean IoU with what was there 0.858 (the centre alone,
    nearest: 0.845; the largest of the classes' areas, smoothed as images are: 0.852), and of the poles' share of
    the pixels 0.97 are left (1.00; 0.64). It takes a ninth of the areas' time with 12 classes, and as long for any
    number of classes.
    """
    places = [(0.5, 0.5), (0.25, 0.25), (0.25, 0.75), (0.75, 0.25), (0.75, 0.75)]
    points = []
    for place in places:
        rows, columns = (
            ((torch.arange(count, device=labels.device) + share) * side / count).long()
            for share, count, side in zip(place, size, labels.shape[2:])
        )
        points.append(labels.index_select(2, rows).index_select(3, columns))
    shrunk, most = points[0], torch.zeros_like(points[0])
    for point in points:
        votes = sum((point == other).byte() for other in points)
        shrunk, most = torch.where(votes > most, point, shrunk), torch.maximum(votes, most)
    return shrunk


def compile_or_not(network, shape, dtype, half_size=0.0):
    """torch.compile, tried on zeros of `shape` (N, C, H, W), and of half its size where training starts there.

    Compiled in its place, the network keeps its keys; a failure leaves it as it was. Returns whether it is compiled.
    """
    device = next(network.parameters()).device
    images = torch.zeros(shape, device=device).contiguous(memory_format=torch.channels_last)
    statistics = [buffer.clone() for buffer in network.buffers()]
    network.compile()
    try:
        for factor in {1.0, size_factor(0.0, half_size)}:
            batch, _ = shrink_batch(images, images, factor, network.smallest)
            with torch.autocast(device.type, dtype=dtype) if dtype else nullcontext():
                network(batch).sum().backward()
        compiled = True
    except Exception as error:  # whatever the compiler trips over: training goes on without it
        print(f"torch.compile failed, training goes on without it ({type(error).__name__}).")
        network._compiled_call_impl = None
        compiled = False
    network.zero_grad(set_to_none=True)
    with torch.no_grad():
        for buffer, before in zip(network.buffers(), statistics):
            buffer.copy_(before)
    return compiled


def out_of_memory_message(error, batch_size, image_size, accumulate):
    """What to turn when the device's memory is too small, with numbers."""
    half = max(1, batch_size // 2)
    smaller = " ".join(str(max(32, side * 3 // 4 // 16 * 16)) for side in image_size)
    halved = f"--batch-size {half} --accumulate {accumulate * batch_size // half}"
    return (
        f"The device has run out of memory with BATCH_SIZE = {batch_size} at IMAGE_SIZE = {tuple(image_size)}.\n"
        + (f"  {halved}: the same step in smaller pieces\n" if batch_size > 1 else "")
        + f"  --image-size {smaller}: a little over half of the memory\n"
        "  FEATURES with fewer channels: a smaller network\n"
        f"({str(error).splitlines()[0][:200]})"
    )
