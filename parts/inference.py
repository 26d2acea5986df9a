"""A network over pictures: batches, windows over large ones, mirrored copies.

A pixel's logit depends on its surroundings as far as the network's reach. Windows start on its pooling grid and
overlap by more than twice that reach, so that each pixel's logit comes from windows which hold all that it depends
on: a seam then differs from the whole picture by rounding alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import nn
from torch.nn.functional import logsigmoid
from torch.nn.utils.fusion import fuse_conv_bn_eval

from parts.errors import UserError
from parts.losses import Loss
from parts.masks import MaskRule
from parts.networks import Network
from parts.processes import keep_freed_memory, pick_device
from parts.recipe import as_written, autocast_dtype

MIRRORS: dict[str | None, list[tuple[int, ...]]] = {  # of each copy the axes (of N, C, H, W) that it is mirrored along
    None: [()],
    "h": [(), (3,)],
    "v": [(), (2,)],
    "hv": [(), (3,), (2,), (2, 3)],
}
_BATCH_SIZE = 16  # where nothing else is asked for; on a CPU 1, as more is slower there

OnWindow = Callable[[int, int], None]  # is called with the number of a window, and how many there are


def say_nothing(window: int, windows: int) -> None:
    """For `say`, where nobody watches the windows."""


# ---- one network


def fold_batchnorm(network: Network) -> Network:
    """Folds each BatchNorm into the convolution before it: the same function, faster. Changes `network`."""
    network.eval()
    for block in [module for module in network.modules() if isinstance(module, nn.Sequential)]:
        for index in range(len(block) - 1):
            convolution, norm = block[index], block[index + 1]
            if isinstance(convolution, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                block[index] = fuse_conv_bn_eval(convolution, norm)
                block[index + 1] = nn.Identity()
    return network


def make_runner(
    network: Network, device: str = "auto", precision: str = "auto", batch_size: int | None = None, **options: Any
) -> Runner:
    """The Runner of a network (and of `others`), which it changes, set up to be fast on a device.

    `device`, `precision`, `batch_size`: as in DEVICE, PRECISION and BATCH_SIZE. `options`: further fields of Runner.
    """
    place = pick_device(device)
    dtype = autocast_dtype(place, precision)
    if place.type == "cpu":
        keep_freed_memory()
    for each in (network, *options.get("others", ())):
        fold_batchnorm(each).to(place)
        if place.type != "mps":
            each.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if not batch_size:
        batch_size = 1 if place.type == "cpu" else _BATCH_SIZE
    return Runner(network, place, dtype, batch_size=batch_size, **options)


def mean_of_probabilities(logits: torch.Tensor, overlaps: bool = False) -> torch.Tensor:
    """The logits (..., C, H, W) of the mean of M networks' probabilities, of their logits float32 (M, ..., C, H, W).

    Of one channel those of a sigmoid, of several those of a softmax, unless the classes overlap. In logarithms, because
    a probability near 1 is 1 in float32.
    """
    if len(logits) == 1:
        return logits[0]
    if logits.shape[-3] > 1 and not overlaps:
        return logits.log_softmax(-3).logsumexp(0)
    return logsigmoid(logits).logsumexp(0) - logsigmoid(-logits).logsumexp(0)


def disagreement_of(logits: torch.Tensor, overlaps: bool = False) -> torch.Tensor:
    """How far apart M networks' probabilities are, 0 ... 1: (..., 1, H, W) of their logits (M, ..., C, H, W).

    The largest probability of the foreground less the smallest one; of classes that of the class where it is most.
    """
    probabilities = logits.sigmoid() if overlaps or logits.shape[-3] == 1 else logits.softmax(-3)
    return (probabilities.amax(0) - probabilities.amin(0)).amax(-3, keepdim=True)


# ---- windows


def pixels_in_windows(size: tuple[int, int], window: int = 768, overlap: int = 256) -> int:
    """How many pixels a network of four levels computes for a picture of `size` (H, W) that a Runner cuts up."""
    if math.prod(size) <= window**2:
        return math.prod(size)
    return math.prod(_count_windows(side, window, overlap) * min(side, window) for side in size)


def _count_windows(length: int, window: int, overlap: int) -> int:
    """How many windows there are along a side of `length` pixels."""
    if length <= window:
        return 1
    return math.ceil((length - overlap) / (window - overlap))


@dataclass(frozen=True)
class Span:
    """Where a window lies along one side of a picture, and how much its logits count in each place."""

    start: int
    weights: np.ndarray  # float32 (length of the window,)

    def __len__(self) -> int:
        return len(self.weights)

    @property
    def pixels(self) -> slice:
        """Of the side; beyond the picture's end where that is no multiple of the stride."""
        return slice(self.start, self.start + len(self))


class Band(NamedTuple):
    """Some rows of a picture's logits."""

    top: int  # the first row
    logits: torch.Tensor  # float32 (C, h, W), as of Runner


@dataclass
class Runner:
    """Runs a network on uint8 pictures.

    batch_size: the most pictures in one call
    mirrors: a key of MIRRORS; the logits are the mean over these copies
    window: a picture of more pixels than its square is cut into windows of that side
    others: further networks, whose probabilities are averaged with those of the first
    classes_overlap: each channel has probabilities of its own, see MaskRule.overlaps
    overlap: pixels that neighbouring windows share, at most half a window; None: what makes the seams of this network
        vanish. Window and overlap are rounded up to multiples of the stride.

    Logits are float32 (C, H, W) of a network of C `channels`. Of several networks one plane follows: disagreement_of.
    """

    network: Network
    device: torch.device
    dtype: torch.dtype | None = None  # autocast's; None: no autocast
    batch_size: int = 1
    mirrors: str | None = None
    window: int = 768
    overlap: int | None = None
    others: Sequence[Network] = ()
    classes_overlap: bool = False

    def __post_init__(self) -> None:
        self.channels = self.network.out_channels
        self.networks = (self.network, *self.others)
        self.planes = self.channels + (len(self.networks) > 1)
        self.stride = math.lcm(*(network.stride for network in self.networks))
        self.window = max(self._rounded_up(self.window), 2 * self.stride)

    @cached_property
    def reach(self) -> int:
        """How far from a pixel the networks see."""
        return max(network.reach for network in self.networks)

    @cached_property
    def shared(self) -> int:
        """Pixels that neighbouring windows share."""
        overlap = self.overlap
        if overlap is None:
            overlap = 2 * self.reach + 2 * self.stride
        return min(self._rounded_up(overlap), self.window // 2 // self.stride * self.stride)

    def fits(self, size: tuple[int, int]) -> bool:
        """Whether a picture of `size` (H, W) goes through the network in one piece."""
        return self._rounded_up(size[0]) * self._rounded_up(size[1]) <= self.window**2

    def logits(self, images: np.ndarray) -> Callable[[int], np.ndarray]:
        """Runs a batch of pictures uint8 (N, H, W, C), each in one piece.

        Returns a function that gives picture number i its logits. It waits for a GPU only when it is called, so that
        the next batch can be prepared meanwhile.
        """
        logits = self._joined(self._run(images))
        arrived = None
        if self.device.type == "cuda":
            # From pinned memory on, the copy runs beside the next batch; the event tells when it is there.
            host = torch.empty(logits.shape, pin_memory=True)
            host.copy_(logits, non_blocking=True)
            arrived = torch.cuda.Event()
            arrived.record()
        else:
            host = logits.cpu()

        def fetch(index: int) -> np.ndarray:
            if arrived:
                arrived.synchronize()
            return np.ascontiguousarray(host[index].numpy())

        return fetch

    def logits_in_windows(self, image: np.ndarray, say: OnWindow = say_nothing) -> np.ndarray:
        """The logits of one picture uint8 (H, W, C) of any size, window by window."""
        logits = np.empty((self.planes, *image.shape[:2]), np.float32)
        for top, band in self.bands(image, say):
            logits[:, top : top + band.shape[1]] = band.cpu().numpy()
        return logits

    def bands(self, image: np.ndarray, say: OnWindow = say_nothing) -> Iterator[Band]:
        """Yields the logits of a picture uint8 (H, W, C) of any size in bands of rows, from top to bottom.

        A band is on the device, and lasts until the next one: memory is that of a row of windows. A picture that fits
        is one band.
        """
        height, width = image.shape[:2]
        if self.fits((height, width)):
            yield Band(0, self._joined(self._run(image[None]))[0])
            return
        # The canvas is as high as a window. Whenever the next row of windows begins lower, the rows above it are
        # complete: they are given out, and the canvas moves down.
        rows, columns = self.windows_along(height), self.windows_along(width)
        count = len(rows) * len(columns)
        top = 0  # the canvas' first row, of the picture
        shape = (len(self.networks), self.channels, min(height, len(rows[0])), width)
        canvas = torch.zeros(shape, device=self.device)
        for row_number, row in enumerate(rows):
            done = row.start - top  # rows that no further window reaches
            if done:
                yield Band(top, self._joined(canvas[:, :, :done]))
                canvas = torch.cat([canvas[:, :, done:], torch.zeros_like(canvas[:, :, :done])], 2)
                top = row.start
            for column_number, column in enumerate(columns):
                self._add_window(canvas, image, row, column)
                say(row_number * len(columns) + column_number + 1, count)
        yield Band(top, self._joined(canvas[:, :, : height - top]))

    def _joined(self, logits: torch.Tensor) -> torch.Tensor:
        """What the networks say together, float32 (..., planes, H, W) of their logits (M, ..., C, H, W)."""
        mean = mean_of_probabilities(logits, self.classes_overlap)
        if len(self.networks) == 1:
            return mean
        return torch.cat([mean, disagreement_of(logits, self.classes_overlap)], -3)

    def windows_along(self, length: int) -> list[Span]:
        """The windows along a side of `length` pixels; at every pixel the weights sum to 1."""
        length = self._rounded_up(length)
        side = min(self.window, length)
        count = _count_windows(length, side, self.shared)
        last = (length - side) // self.stride  # where the last window begins, in strides
        starts = [round(last * index / max(1, count - 1)) * self.stride for index in range(count)]
        total = np.zeros(length, np.float32)
        spans = []
        for start in starts:
            weights = np.ones(side, np.float32)
            if start > 0:
                weights[: self.shared] = self._ramp()
            if start + side < length:
                weights[side - self.shared :] *= self._ramp()[::-1]
            total[start : start + side] += weights
            spans.append(Span(start, weights))
        return [Span(span.start, span.weights / total[span.pixels]) for span in spans]

    def _add_window(self, canvas: torch.Tensor, image: np.ndarray, row: Span, column: Span) -> None:
        """Adds the weighted logits of one window to a canvas (M, C, h, W), whose first row is the window's."""
        logits = self._run(image[None, row.pixels, column.pixels])[:, 0]  # smaller than the window at the picture's end
        height, width = logits.shape[2:]
        down = torch.from_numpy(row.weights[:height]).to(self.device)
        across = torch.from_numpy(column.weights[:width]).to(self.device)
        canvas[:, :, :height, column.start : column.start + width] += logits * down[:, None] * across

    def _ramp(self) -> np.ndarray:
        """Weights over an overlap: zero where the window's edge is within reach, then rising smoothly."""
        margin = min(self.reach, (self.shared - self.stride) // 2)
        rise = (np.arange(self.shared, dtype=np.float32) + 0.5 - margin) / (self.shared - 2 * margin)
        return np.sin(np.clip(rise, 0, 1) * np.pi / 2) ** 2

    def _rounded_up(self, length: int) -> int:
        """`length`, rounded up to a multiple of the stride."""
        return math.ceil(length / self.stride) * self.stride

    @torch.inference_mode()
    def _run(self, images: np.ndarray) -> torch.Tensor:
        """Logits float32 (M, N, C, H, W) of the M networks, on the device, of uint8 (N, H, W, C), in one piece."""
        batch = torch.from_numpy(np.array(images))  # a copy, because pictures may be read-only
        if self.device.type == "cuda":
            batch = batch.pin_memory()
        batch = batch.to(self.device, non_blocking=True).permute(0, 3, 1, 2)  # a channels-last view
        batch = batch.float().div_(255)  # bytes travel, floats are made on the device
        first, *others = (self._mean_of_copies(network, batch) for network in self.networks)
        return torch.stack([first, *others]) if others else first[None]

    def _mean_of_copies(self, network: Network, batch: torch.Tensor) -> torch.Tensor:
        """A network's logits float32 (N, C, H, W): the mean over the mirrored copies."""
        copies = MIRRORS[self.mirrors]
        total = torch.zeros((), device=self.device)
        for axes in copies:
            with torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype is not None):
                logits = network(batch.flip(axes))
            total = total + logits.flip(axes).float()
        return total / len(copies)


# ---- batches as the loaders give them


def to_device(images: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Images (N, C, H, W) as the network takes them: on `device`, in [0, 1].

    uint8 travels to the device and is scaled there; floats (from the article's transform) stay as they are.
    """
    images = images.to(device, non_blocking=True)
    if images.dtype == torch.uint8:
        images = images.float().div_(255)
    return images if device.type == "mps" else images.contiguous(memory_format=torch.channels_last)


@dataclass(frozen=True)
class BatchPredictor:
    """Predicts the labels of batches as a loader gives them, to score them or to draw them."""

    model: nn.Module
    mask_rule: MaskRule  # of the masks that the model is trained on
    device: torch.device
    dtype: torch.dtype | None = None  # autocast's
    in_windows: bool = False  # the images are of any size
    loss_fn: Loss | None = None  # gives the loss of each image that has a true mask

    def labels(self, images: torch.Tensor) -> torch.Tensor:
        """The predicted labels, uint8 (N, 1, H, W) on the device, of images (N, C, H, W). The model keeps its mode.

        UserError: the model has more or fewer output channels than the masks need.
        """
        return self.labels_and_losses(images)[0]

    @torch.no_grad()
    def labels_and_losses(
        self, images: torch.Tensor, truths: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The labels, and each image's loss (N,) beside its true labels uint8 (N, 1, H, W); NaN without those.

        The loss of a large image is the mean over the bands that it is predicted in, by their pixels.
        """
        training = self.model.training
        self.model.eval()
        try:
            # Last batches and images of any size would each be compiled once more
            with as_written():
                if self.in_windows:
                    return self._in_windows(images, truths)
                return self._in_one_piece(images, truths)
        finally:
            self.model.train(training)

    def _in_one_piece(self, images: torch.Tensor, truths: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        with torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype is not None):
            logits = self.model(to_device(images, self.device))
        self._refuse_channels(logits.shape[1])
        return self.mask_rule.labels_of(logits), self._losses(logits, truths)

    def _losses(self, logits: torch.Tensor, truths: torch.Tensor | None) -> torch.Tensor:
        """The loss of each image alone, so that it does not depend on which images are in a batch: float32 (N,)."""
        if self.loss_fn is None or truths is None:
            return torch.full((len(logits),), torch.nan, device=logits.device)
        logits = logits.float()
        return torch.stack([self.loss_fn(*pair) for pair in zip(logits.split(1), truths.split(1))])

    def _in_windows(self, images: torch.Tensor, truths: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        runner = Runner(cast(Network, self.model), self.device, self.dtype)
        self._refuse_channels(runner.channels)
        labels = torch.empty(len(images), 1, *images.shape[2:], dtype=torch.uint8, device=self.device)
        losses = torch.zeros(len(images), device=self.device)
        cudnn, benchmark = torch.backends.cudnn, torch.backends.cudnn.benchmark
        cudnn.benchmark = False  # it would try its kernels for every size anew
        for index, image in enumerate(images.permute(0, 2, 3, 1).numpy()):
            for top, logits in runner.bands(image):
                rows = slice(top, top + logits.shape[1])
                labels[index, :, rows] = self.mask_rule.labels_of(logits[None])[0]
                band = None if truths is None else truths[index : index + 1, :, rows]
                losses[index] += self._losses(logits[None], band)[0] * (logits.shape[1] / images.shape[2])
        cudnn.benchmark = benchmark
        return labels, losses

    def _refuse_channels(self, channels: int) -> None:
        if channels != self.mask_rule.channels:
            raise UserError(
                f"The network has {channels} output channels, and these masks need {self.mask_rule.channels}: one for "
                "each class (CLASSES), or one for a single foreground."
            )
