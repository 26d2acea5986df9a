"""How the weights are updated: precision, optimizer, schedule, random variations and sizes."""

from __future__ import annotations

import math
import platform
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import ReduceLROnPlateau

from parts import processes
from parts.errors import UserError, ran_out_of_memory, tell
from parts.masks import IGNORED, MaskRule
from parts.own import faults_of, is_own, load_part, name_of_part
from parts.spec import PAD

PRECISIONS = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}
FULL_SIZE_FROM = 0.95  # share of the steps after which images that have grown have IMAGE_SIZE


# ---- precision


def autocast_dtype(device: torch.device, precision: str = "auto") -> torch.dtype | None:
    """Autocast's dtype on `device`, or None for float32. UserError: float16 on a CPU."""
    return PRECISIONS[choose_precision(device, precision)]


def choose_precision(device: torch.device, precision: str = "auto") -> str:
    """What PRECISION means on a device, a key of PRECISIONS.

    "auto" is bfloat16 on CUDA that computes it, and float16 on older CUDA. On a CPU that has bfloat16 it is what makes
    a convolution faster: some compute bfloat16 at half the speed of float32, and their lists of features do not tell.
    UserError: float16 on a CPU, where it would crawl.
    """
    if precision == "float16" and device.type == "cpu":
        raise UserError('PRECISION = "float16" is some thirty times slower on a CPU. Choose "auto".')
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float16"
    is_faster = device.type == "cpu" and cpu_lists_bfloat16() and convolution_times().of_bfloat16 < 0.9
    return "bfloat16" if is_faster else "float32"


def settle_precision(s: SimpleNamespace, device: torch.device, precision: str) -> torch.dtype | None:
    """Sets PRECISION to what "auto" stands for, so that a checkpoint keeps it; returns autocast's dtype.

    A run that goes on has that of its first part already (Run.resume).
    """
    if s.PRECISION == "auto":
        s.PRECISION = precision
        if device.type == "cpu" and cpu_lists_bfloat16():
            ratio = f"{convolution_times().of_bfloat16:.2f} times as long as in float32"
            processes.say(f"PRECISION = {precision}: a convolution in bfloat16 takes {ratio} here.")
    return PRECISIONS[s.PRECISION]


def cpu_lists_bfloat16() -> bool:
    """Whether the CPU's list of features has products in bfloat16; emulated, they are far slower than float32."""
    if platform.system() != "Linux":
        return False
    features = Path("/proc/cpuinfo").read_text().split()
    return "avx512_bf16" in features or "amx_bf16" in features or "bf16" in features  # x86, x86, Arm


@dataclass(frozen=True)
class ConvolutionTimes:
    """Seconds that a convolution, forward and backward, takes on the CPU."""

    float32: float
    bfloat16: float
    one_thread: float  # float32 on one thread

    @property
    def of_bfloat16(self) -> float:
        """How many times as long bfloat16 takes as float32."""
        return self.bfloat16 / self.float32

    @property
    def slowdown_by_threads(self) -> float:
        """How many times as long all of PyTorch's threads take as one: above 1 where other programs use the cores."""
        return self.float32 / self.one_thread


@cache
def convolution_times() -> ConvolutionTimes:
    """Times a convolution of 128 channels on the CPU, in some 50 ms; the best of several trials of each kind."""
    layer = nn.Conv2d(128, 128, 3, padding=1, bias=False).to(memory_format=torch.channels_last)
    images = torch.ones(1, 128, 24, 32).contiguous(memory_format=torch.channels_last).requires_grad_()

    def best_time(dtype: torch.dtype | None) -> float:
        times = []
        for _ in range(6):  # the first makes ready what the others use
            start = time.perf_counter()
            with torch.autocast("cpu", dtype=dtype, enabled=dtype is not None):
                logits = layer(images)
            logits.backward(torch.ones_like(logits))
            times.append(time.perf_counter() - start)
        return min(times)

    threads = torch.get_num_threads()
    float32, bfloat16 = best_time(None), best_time(torch.bfloat16)
    torch.set_num_threads(1)
    try:
        return ConvolutionTimes(float32, bfloat16, best_time(None))
    finally:
        torch.set_num_threads(threads)


def prepare_device(device: torch.device) -> None:
    """Sets what makes training faster for the whole process, and says where other programs slow it down."""
    torch.backends.cudnn.benchmark = True  # tries its kernels once for each size
    if device.type == "cpu":
        processes.keep_freed_memory()
        if torch.get_num_threads() > 1 and processes.world_size() == 1:
            slowdown = convolution_times().slowdown_by_threads
            if slowdown > 1.5:
                tell(
                    f"PyTorch's {torch.get_num_threads()} threads take {slowdown:.1f} times as long as one of them: "
                    "other programs use the cores, and the threads wait for each other. Stop those, or start with "
                    "OMP_NUM_THREADS=1 python train.py ..."
                )


def describe_dtype(device: torch.device, dtype: torch.dtype | None) -> str:
    """The precision of a training step, in words; `dtype` is autocast's."""
    tf32 = device.type == "cuda" and torch.cuda.get_device_capability(device)[0] >= 8
    if dtype is None and tf32 and torch.backends.cudnn.allow_tf32:
        return "float32 (convolutions in TF32, which has 10 bits of mantissa)"
    return str(dtype or torch.float32).removeprefix("torch.")


# ---- optimizer and schedule


OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "sgd": partial(torch.optim.SGD, momentum=0.9, nesterov=True),
}
# The factor of the learning rate in `step` of the `total` after the warm-up; "plateau" lowers it by Dice besides
SCHEDULES: dict[str, Callable[[int, int], float]] = {
    "constant": lambda step, total: 1.0,
    "linear": lambda step, total: (total - step) / total,
    "cosine": lambda step, total: 0.5 * (1 - math.cos(math.pi * ((total - step) / total))),
    "plateau": lambda step, total: 1.0,
}
_OPTIMIZER_CONTRACT = (
    "An optimizer is made by OPTIMIZER(groups, lr=...), where groups are dictionaries of params and weight_decay."
)
_SCHEDULE_CONTRACT = "A schedule is a function (step, total) -> factor of LEARNING_RATE, for 0 <= step < total."


def make_optimizer(
    network: nn.Module, optimizer: Any, learning_rate: float, weight_decay: float
) -> torch.optim.Optimizer:
    """The optimizer that OPTIMIZER names, fused where the device can; biases and normalisation are not decayed.

    `optimizer`: a word of OPTIMIZERS, or one's own, as "FILE.py:NAME" or the object itself. UserError: it is not what
    the contract says.
    """
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    weights = [parameter for parameter in parameters if parameter.dim() > 1]
    others = [parameter for parameter in parameters if parameter.dim() <= 1]
    groups = [{"params": weights, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    make = load_part("OPTIMIZER", optimizer, OPTIMIZERS)
    if not is_own(optimizer):
        return make(groups, lr=learning_rate, fused=parameters[0].device.type in ("cpu", "cuda"))
    with faults_of("OPTIMIZER", optimizer, _OPTIMIZER_CONTRACT):
        made = make(groups, lr=learning_rate)
        if not isinstance(made, torch.optim.Optimizer):
            raise TypeError(f"a {type(made).__name__} is no torch.optim.Optimizer")
        return made


class Schedule:
    """The learning rate by the step, and for "plateau" by validation Dice as well.

    `schedule`: a word of SCHEDULES, or one's own, as "FILE.py:NAME" or the function itself. `warmup`: the share of all
    steps in which the learning rate rises to its height. What it is depends on the step alone, so that a run that is
    resumed goes on exactly. UserError: a function of one's own is not what the contract says.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        schedule: Any,
        steps_per_epoch: int,
        epochs: int,
        warmup: float = 0.0,
        plateau_patience: int = 3,
    ) -> None:
        self.optimizer, self.schedule = optimizer, schedule
        self.factor = load_part("SCHEDULE", schedule, SCHEDULES)
        self.steps_per_epoch, self.total = steps_per_epoch, steps_per_epoch * epochs
        self.rising = round(self.total * warmup)
        if is_own(schedule):  # tried, also for absolute learning rates in the place of factors
            steps = range(min(self.rising, self.total - 1), self.total, -(-self.total // 100))
            highest = max(map(self.factor_of, steps))
            if highest < 0.1:
                processes.say(
                    f"SCHEDULE = {name_of_part(schedule)!r} gives {highest:g} at most, which LEARNING_RATE is "
                    "multiplied by. If these are learning rates themselves, set LEARNING_RATE = 1."
                )
        self.start: float = optimizer.param_groups[0]["lr"]  # LEARNING_RATE
        self.height = self.start  # after the warm-up; the plateau schedule lowers it
        self.plateau: ReduceLROnPlateau | None = None
        if schedule == "plateau":
            self.plateau = ReduceLROnPlateau(optimizer, mode="max", factor=0.1, patience=plateau_patience)

    def before_step(self, step: int) -> None:
        """Sets the learning rate of `step`, counted from 0 over the whole run."""
        self._set(self.height * self.factor_of(step))

    def factor_of(self, step: int) -> float:
        """The factor of the learning rate in `step`."""
        if step < self.rising:
            return (step + 1) / (self.rising + 1)
        if not is_own(self.schedule):
            return self.factor(step - self.rising, self.total - self.rising)
        with faults_of("SCHEDULE", self.schedule, _SCHEDULE_CONTRACT):
            factor = float(self.factor(step - self.rising, self.total - self.rising))
            if not 0 <= factor < math.inf:
                raise ValueError(f"gives {factor}")
            return factor

    def after_epoch(self, dice: float) -> None:
        """Tells the plateau schedule the Dice of validation."""
        if self.plateau:
            self._set(self.height)  # which the warm-up has changed
            self.plateau.step(dice)
            self.height = self.optimizer.param_groups[0]["lr"]

    def _set(self, learning_rate: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate

    def state_dict(self) -> dict[str, Any]:
        """The state for a checkpoint, in plain types."""
        plateau = None
        if self.plateau:
            state = self.plateau.state_dict()
            plateau = {key: state[key] for key in ("best", "num_bad_epochs", "last_epoch", "cooldown_counter")}
        return {"start": self.start, "height": self.height, "plateau": plateau}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from the state of a checkpoint, with the LEARNING_RATE of this run."""
        if self.plateau and state["plateau"]:
            self.plateau.load_state_dict(state["plateau"])
            self.height = state["height"] * (self.start / state.get("start", self.start))


# ---- batches: random variations, and sizes


def named_generator(*numbers: int) -> torch.Generator:
    """A CPU generator of its own for (seed, epoch, ...): the same numbers, the same draws."""
    seed = np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(seed >> np.uint64(1)))


@dataclass(frozen=True)
class Variation:
    """How training images vary on the device: the constants FLIP, COLOR_JITTER, SCALE and ROTATE."""

    flip: bool = False
    color_jitter: float = 0.0
    scale: tuple[float, float] | None = None  # the smallest and the largest factor
    rotate: float = 0.0  # the largest angle, in degrees, to both sides

    @classmethod
    def of(cls, settings: SimpleNamespace) -> Variation:
        """The Variation that the constants of training say."""
        return cls(settings.FLIP, settings.COLOR_JITTER, settings.SCALE, settings.ROTATE)

    @property
    def moves(self) -> bool:
        """Whether images are scaled or rotated, so that some of their pixels come from outside of them."""
        return self.scale is not None or self.rotate > 0


def vary_batch(
    images: Tensor, masks: Tensor, variation: Variation, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Images (N, 3, H, W) in [0, 1] and masks (N, 1, H, W), varied at random.

    Masks are what Loss takes, and stay so, here and in the functions below.
    """
    # One number for each image's flip, five for its colours, four for its place: drawn on the CPU, so that every device
    # gets the same, and sent in one copy, for which nothing waits.
    sizes = [len(images), 5 * len(images), 4 * len(images)]
    draws = torch.empty(sum(sizes), pin_memory=images.device.type == "cuda")
    flips, colors, places = draws.split(sizes)
    if variation.flip:
        torch.rand(sizes[0], generator=generator, out=flips)
    if variation.color_jitter:
        torch.rand(sizes[1], generator=generator, out=colors)
    if variation.moves:
        torch.rand(sizes[2], generator=generator, out=places)
    flips, colors, places = draws.to(images.device, non_blocking=True).split(sizes)
    if variation.flip:
        images, masks = flip_batch(images, masks, flips)
    if variation.moves:
        images, masks = move_batch(images, masks, variation, places.view(-1, 4))
    if variation.color_jitter:
        images = jitter_colors(images, variation.color_jitter, colors.view(-1, 5))
    return images, masks


def flip_batch(images: Tensor, masks: Tensor, draws: Tensor) -> tuple[Tensor, Tensor]:
    """Mirrors images (N, C, H, W) and their masks left-right where the draw (N,) in [0, 1) is below one half."""
    chosen = (draws < 0.5)[:, None, None, None]
    return torch.where(chosen, images.flip(3), images), torch.where(chosen, masks.flip(3), masks)


def move_batch(images: Tensor, masks: Tensor, variation: Variation, draws: Tensor) -> tuple[Tensor, Tensor]:
    """Scales and rotates images (N, C, H, W) and their masks, by `draws` (N, 4) in [0, 1): factor, angle and place.

    The place says which part of an enlarged image is left, and where a shrunk one lies. Beyond its rim an image is
    reflected, and its mask IGNORED, so that masks become labels, uint8 (N, 1, H, W). Images are sampled bilinearly,
    masks at the nearest pixel.
    """
    height, width = images.shape[2:]
    low, high = variation.scale or (1.0, 1.0)
    factors = low * (high / low) ** draws[:, 0]  # as many below the geometric mean as above
    angles = math.radians(variation.rotate) * (2 * draws[:, 1] - 1)
    shifts = (2 * draws[:, 2:] - 1) * (1 - 1 / factors).abs()[:, None]  # as far as the smaller fits into the larger
    # Where in an image each pixel comes from. Both count from -1 to 1 between the rims, across and down, so a rotation
    # has to take care of the sides' ratio.
    cosines, sines = angles.cos() / factors, angles.sin() / factors
    across = [cosines, -sines * (height / width), shifts[:, 0]]
    down = [sines * (width / height), cosines, shifts[:, 1]]
    sources = torch.stack(across + down, dim=1).view(-1, 2, 3)
    grid = F.affine_grid(sources, list(images.shape), align_corners=False)
    moved = F.grid_sample(images, grid, "bilinear", "reflection", align_corners=False)
    # Outside, grid_sample gives zeros: IGNORED is 0 meanwhile
    labels = IGNORED - F.grid_sample(IGNORED - masks.float(), grid, "nearest", "zeros", align_corners=False)
    return moved.contiguous(memory_format=torch.channels_last), labels.byte()


def jitter_colors(images: Tensor, strength: float, draws: Tensor) -> Tensor:
    """Changes each image's contrast about its mean, its brightness and its channels' balance, by `draws` (N, 5).

    Factors go from 1 - strength to 1 + strength as the draws go from 0 to 1, a channel's as the square root of that.
    Values may leave [0, 1] a little: nothing is cut off that the camera saw. Other channels than RGB have no balance.
    """
    draws = (1 + strength * (2 * draws - 1))[:, :, None, None]
    contrast, brightness, balance = draws[:, :1], draws[:, 1:2], draws[:, 2:].sqrt()
    mean = images.mean((1, 2, 3), keepdim=True)
    varied = (images - mean) * contrast + mean * brightness
    return varied * balance if images.shape[1] == 3 else varied


def size_constant(s: SimpleNamespace) -> str:
    """The name of the constant that says the size of what the network is trained on."""
    return "CROP" if s.CROP else "IMAGE_SIZE"


def size_factor(share: float, half_size: float) -> float:
    """The factor of IMAGE_SIZE after `share` of the steps: a half up to the share `half_size`, then growing to 1."""
    if not half_size or share >= FULL_SIZE_FROM:
        return 1.0
    return 0.5 + 0.5 * max(0.0, share - half_size) / (FULL_SIZE_FROM - half_size)


def shrink_batch(images: Tensor, masks: Tensor, factor: float, multiple: int) -> tuple[Tensor, Tensor]:
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


def _shrink_labels(labels: Tensor, size: Sequence[int]) -> Tensor:
    """Labels (N, 1, H, W) at a smaller `size`: of each pixel the label that most of five points in it have.

    The points are its centre, which decides where none has most, and the centres of its quarters. benchmarks/README.md
    compares it with other rules.
    """
    points = []
    for down, across in ((0.5, 0.5), (0.25, 0.25), (0.25, 0.75), (0.75, 0.25), (0.75, 0.75)):
        rows = _places(size[0], labels.shape[2], down, labels.device)
        columns = _places(size[1], labels.shape[3], across, labels.device)
        points.append(labels.index_select(2, rows).index_select(3, columns))
    shrunk, most = points[0], torch.zeros_like(points[0])
    for point in points:
        votes = torch.zeros_like(point)
        for other in points:
            votes += point == other
        shrunk, most = torch.where(votes > most, point, shrunk), torch.maximum(votes, most)
    return shrunk


def _places(count: int, side: int, share: float, device: torch.device) -> Tensor:
    """The pixels that lie at `share` of each of `count` equal pieces of a side."""
    return ((torch.arange(count, device=device) + share) * side / count).long()


# ---- torch.compile


def compile_or_not(model: nn.Module, shape: Sequence[int], dtype: torch.dtype | None, half_size: float = 0.0) -> bool:
    """Compiles a model in its place, if torch.compile can; else prints the reason and leaves it as it is.

    It is tried on zeros of `shape` (N, C, H, W), and of half that size where training starts there (HALF_SIZE); what
    fails at another size later runs as it is written. `model`: a network, or a DistributedDataParallel around it,
    whose exchange of gradients then overlaps with the compiled backward pass. Its weights, statistics and keys stay.
    Returns whether it is compiled. An error of memory that has run out is raised: the compiler has not failed then.
    """
    network: Any = getattr(model, "module", model)
    if any(isinstance(module, nn.SyncBatchNorm) for module in network.modules()):
        tell("Not compiled: torch.compile would break the graph at each SYNC_BATCHNORM.")
        return False
    # As an earlier run in this process may have left them otherwise
    torch.compiler.set_stance("default")
    torch._dynamo.config.suppress_errors = False
    device = next(network.parameters()).device
    images = torch.zeros(tuple(shape), device=device).contiguous(memory_format=torch.channels_last)
    statistics = [buffer.clone() for buffer in network.buffers()]
    try:
        # Convolutions stay channels-last; left alone, inductor decides by the sizes at hand, and so compiles again for
        # each that HALF_SIZE passes through.
        model.compile(options={"force_layout_optimization": True})
        for factor in {1.0, size_factor(0.0, half_size)}:
            batch, _ = shrink_batch(images, images, factor, network.stride)
            with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
                model(batch).sum().backward()
    except Exception as error:  # whatever the compiler fails with: training goes on without it
        if ran_out_of_memory(error):
            raise
        line = (str(error).strip().splitlines() or [""])[0][:200]
        tell(f"torch.compile failed, training goes on without it ({type(error).__name__}: {line}).")
        torch.compiler.set_stance("force_eager")
        return False
    finally:  # the network is as it was: without gradients, and its statistics know nothing of the zeros
        network.zero_grad(set_to_none=True)
        with torch.no_grad():
            for buffer, value in zip(network.buffers(), statistics):
                buffer.copy_(value)
    torch._dynamo.config.suppress_errors = True
    return True


def as_written() -> AbstractContextManager[None]:
    """A context in which compiled models run as they are written.

    Scoring and pictures have last batches and odd sizes, each of which would be compiled once more.
    """
    if "torch._dynamo" not in sys.modules:  # so nothing is compiled; loading it takes seconds
        return nullcontext()
    return torch.compiler.set_stance("force_eager")


# ---- masks of a batch


def takes_labels(s: SimpleNamespace) -> bool:
    """Whether training's targets are labels: where pixels may be IGNORED, as crops, AUGMENT and FIT pad with it."""
    return s.FIT == PAD or any(value is not None for value in (s.CLASSES, s.MASK_IGNORE, s.CROP, s.AUGMENT))


def targets_of(masks: Tensor, device: torch.device, labels: bool = False) -> Tensor:
    """Masks of a batch (N, H, W) or (N, 1, H, W) as the loss takes them: float32 (N, 1, H, W) of {0, 1}.

    With `labels`, as where there are classes or ignored pixels: uint8 (N, 1, H, W). UserError: a
    transform has made something else of them than whole numbers from 0 to 255.
    """
    if labels and masks.dtype != torch.uint8:
        whole = masks.to(torch.uint8)
        if not torch.equal(whole.to(masks.dtype), masks):
            raise UserError(
                "The transform has changed the values of the masks, which are the indices of classes and "
                f"{IGNORED} where a pixel is ignored: have it leave them whole, with nearest interpolation."
            )
        masks = whole
    masks = masks.to(device, non_blocking=True)
    masks = masks.reshape(len(masks), 1, *masks.shape[-2:])
    return masks if labels else masks.float()


def true_labels(masks: Tensor, device: torch.device, mask_rule: MaskRule) -> Tensor:
    """Masks of a batch (N, H, W) or (N, 1, H, W) as they are scored and drawn: uint8 (N, 1, H, W) of labels.

    Of one foreground a transform may also have made fractions of them, which are cut at one half. UserError: as of
    targets_of.
    """
    is_cut = mask_rule.is_binary and masks.dtype != torch.uint8
    targets = targets_of(masks, device, labels=not is_cut)
    return (targets > 0.5).byte() if is_cut else targets
