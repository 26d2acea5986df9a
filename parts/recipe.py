"""How the weights are updated: precision, loss, optimizer, schedule, flips and colours."""

import math
import platform
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from parts.errors import UserError, ran_out_of_memory
from parts.masks import IGNORED, MaskRule

PRECISIONS = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}
LOSSES = {"bce": False, "bce+dice": True}  # whether Dice is added
OPTIMIZERS = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
SCHEDULES = ("constant", "linear", "cosine", "plateau")
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
    draws = torch.empty(6 * len(images), pin_memory=images.device.type == "cuda")  # one copy, which nobody waits for
    flips, colors = draws[: len(images)], draws[len(images) :].view(-1, 5)
    for part in [flips] * bool(flip) + [colors] * bool(color_jitter):
        torch.rand(part.shape, generator=generator, out=part)
    draws = draws.to(images.device, non_blocking=True)
    flips, colors = draws[: len(images)], draws[len(images) :].view(-1, 5)
    if flip:
        images, masks = flip_batch(images, masks, flips)
    return jitter_colors(images, color_jitter, colors) if color_jitter else images, masks


def flip_batch(images, masks, draws):
    """Mirrors images of (N, C, H, W), and their masks, left-right where the draw (N,) in [0, 1) is below one half."""
    chosen = (draws < 0.5)[:, None, None, None]
    return torch.where(chosen, images.flip(3), images), torch.where(chosen, masks.flip(3), masks)


def jitter_colors(images, strength, draws):
    """Changes each image's contrast about its mean, its brightness and its channels' balance, by `draws` (N, 5).

    Factors go from 1 - strength to 1 + strength as the draws go from 0 to 1, a channel's as the square root of that.
    Values may leave [0, 1] a little: nothing is cut off that the camera saw.
    """
    draws = (1 + strength * (2 * draws - 1))[:, :, None, None]
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

    The points are its centre, which decides where none has most, and those of its quarters. Measured on every fourth of
    CamVid's class masks at 160x240, shrunk and enlarged again, as mean IoU with what was there: 0.858 at half the size,
    0.903 at 112x176, 0.963 at 144x224 (the centre alone, nearest: 0.845, 0.900, 0.969; the largest of the classes'
    areas: 0.852, 0.903, 0.957, and several times the time with 12 classes).
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


def compile_or_not(model, shape, dtype, half_size=0.0):
    """torch.compile, tried on zeros of `shape` (N, C, H, W), and of half its size where training starts there.

    `model`: a network, or a DistributedDataParallel around it, whose exchange of gradients then overlaps with the
    compiled backward pass. Compiled in its place, it keeps its keys; a failure, now or at another size later, leaves
    it as it was. Returns whether it is compiled. That memory runs out is no failure of the compiler, and raised.
    """
    network = getattr(model, "module", model)
    if any(isinstance(module, nn.SyncBatchNorm) for module in network.modules()):
        print("Not compiled: torch.compile would break the graph at each SYNC_BATCHNORM.")
        return False
    device = next(network.parameters()).device
    images = torch.zeros(shape, device=device).contiguous(memory_format=torch.channels_last)
    statistics = [buffer.clone() for buffer in network.buffers()]
    model.compile(options=_layout())
    torch._dynamo.config.suppress_errors = False
    try:
        for factor in {1.0, size_factor(0.0, half_size)}:
            batch, _ = shrink_batch(images, images, factor, network.smallest)
            with torch.autocast(device.type, dtype=dtype) if dtype else nullcontext():
                model(batch).sum().backward()
        compiled = torch._dynamo.config.suppress_errors = True
    except Exception as error:  # whatever the compiler trips over: training goes on without it
        if ran_out_of_memory(error):
            raise
        line = (str(error).strip().splitlines() or [""])[0][:200]
        print(f"torch.compile failed, training goes on without it ({type(error).__name__}: {line}).")
        model._compiled_call_impl = None
        compiled = False
    network.zero_grad(set_to_none=True)
    with torch.no_grad():
        for buffer, before in zip(network.buffers(), statistics):
            buffer.copy_(before)
    return compiled


def _layout():
    """Options of torch.compile that keep convolutions channels-last, or None where this version has none.

    By itself inductor decides by the sizes at hand, and so compiles again for each that HALF_SIZE passes through.
    """
    import torch._inductor as inductor  # here, because only compiling needs it

    name = "force_layout_optimization"
    return {name: True} if name in inductor.list_options() else None


def as_written(model):
    """A context in which a compiled model runs as it is written.

    Scoring and pictures have last batches and odd sizes, each of which would be compiled once more.
    """
    compiled = getattr(model, "_compiled_call_impl", None) is not None
    return torch.compiler.set_stance("force_eager") if compiled else nullcontext()


def describe_dtype(device, dtype):
    """What a training step computes in, in words."""
    tf32 = device.type == "cuda" and torch.cuda.get_device_capability(device)[0] >= 8
    if dtype is None and tf32 and torch.backends.cudnn.allow_tf32:
        return "float32 (convolutions in TF32, which has 10 bits of mantissa)"
    return str(dtype or torch.float32).removeprefix("torch.")


def out_of_memory_message(error, batch_size, size, accumulate, constant="IMAGE_SIZE"):
    """What to turn when the device's memory is too small, with numbers; `constant` says the `size` trained on."""
    half = max(1, batch_size // 2)
    smaller = " ".join(str(max(32, side * 3 // 4 // 16 * 16)) for side in size)
    halved = f"--batch-size {half} --accumulate {accumulate * batch_size // half}"
    return (
        f"The device has run out of memory with BATCH_SIZE = {batch_size} at {constant} = {tuple(size)}.\n"
        + (f"  {halved}: the same step in smaller pieces\n" if batch_size > 1 else "")
        + f"  --{constant.lower().replace('_', '-')} {smaller}: a little over half of the memory\n"
        "  FEATURES with fewer channels: a smaller network\n"
        f"({str(error).splitlines()[0][:200]})"
    )


def targets_of(masks: torch.Tensor, device: torch.device, labels: bool = False) -> torch.Tensor:
    """Masks of a batch (N, H, W) or (N, 1, H, W) as the loss takes them: float32 (N, 1, H, W) of {0, 1}.

    With `labels` (a MaskRule's), as where there are classes or ignored pixels: uint8 (N, 1, H, W). UserError: a
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


def true_labels(masks: torch.Tensor, device: torch.device, mask_rule: MaskRule) -> torch.Tensor:
    """Masks of a batch (N, H, W) or (N, 1, H, W) as they are scored and drawn: uint8 (N, 1, H, W) of labels.

    UserError: as of targets_of.
    """
    targets = targets_of(masks, device, mask_rule.labels)
    return targets if mask_rule.labels else (targets > 0.5).byte()
