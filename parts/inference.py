"""Pictures through a network: batches, windows, mirrored copies; decoding ahead and finishing behind, in threads.

What the network sees of a pixel's surroundings ends at its reach. Windows start on its pooling grid
and overlap by more than twice that reach, so that each pixel's logit comes from windows which see all
that the whole picture would have shown: seams then differ from the whole picture by rounding alone.

How pictures are read, and what becomes of their logits, is the caller's affair: predict_pictures takes functions.
"""

import math
from collections import deque
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import partial
from itertools import groupby, islice

import cv2
import numpy as np
import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from parts.errors import UserError
from parts.masks import MaskRule
from parts.processes import keep_freed_memory, pick_device
from parts.recipe import as_written, autocast_dtype

MIRRORS = {  # copies of a picture, as the axes (of N, C, H, W) that they are mirrored along
    None: [()],
    "h": [(), (3,)],
    "v": [(), (2,)],
    "hv": [(), (3,), (2,), (2, 3)],
}
PENDING_BYTES = 300e6  # of pictures that wait for the network, and as many for being finished
PIXEL_BYTES = 8  # of a waiting picture: its pixels, its logits, its mask
LOGIT_BYTES = 4  # of each further channel, at the size at which the network sees the picture


# ---- one network


def stride_of(network):
    """How many pixels one of the deepest level stands for: sizes that are multiples of it pool evenly."""
    return 2 ** (len(network.decoder) // 2)


def reach_of(network):
    """How far the plain U-Net sees from a pixel, in pixels.

    On the way down two 3x3 convolutions a level reach 2 * 2**level each side, on the way up as many,
    in the middle 2 * stride; the pooling cells add up to stride - 1. A torchvision encoder with more
    layers sees further, ever fainter.
    """
    stride = stride_of(network)
    return 4 * (stride - 1) + 2 * stride + stride - 1


def fold_batchnorm(network):
    """The same function with each BatchNorm folded into the convolution before it; changes `network`."""
    network.eval()
    for block in [module for module in network.modules() if isinstance(module, nn.Sequential)]:
        for index in range(len(block) - 1):
            if isinstance(block[index], nn.Conv2d) and isinstance(block[index + 1], nn.BatchNorm2d):
                block[index] = fuse_conv_bn_eval(block[index], block[index + 1])
                block[index + 1] = nn.Identity()
    return network


def make_runner(network, device="auto", precision="auto", **options):
    """The Runner of `network` (which it changes) where and as it is fastest, by the words of DEVICE and PRECISION."""
    device = pick_device(device)
    dtype = autocast_dtype(device, precision)
    if device.type == "cpu":
        keep_freed_memory()
    network = fold_batchnorm(network).to(device)
    if device.type != "mps":
        network.to(memory_format=torch.channels_last)
    return Runner(network, device, dtype, **options)


def pixels_in_windows(size, window=768, overlap=256):
    """How many pixels a network of four levels computes for a picture of `size` (H, W) that a Runner cuts up."""
    if math.prod(size) <= window**2:
        return math.prod(size)
    return math.prod(_windows(side, window, overlap) * min(side, window) for side in size)


def _windows(length, window, overlap):
    """How many windows there are along a side of `length` pixels."""
    return 1 if length <= window else -(-(length - overlap) // (window - overlap))


@dataclass
class Runner:
    """Runs a network on uint8 pictures.

    `mirrors`, a key of MIRRORS: the logits are the mean over these copies.
    `window`, pixels: a picture of more than its square is cut into windows of that side.
    `overlap`, pixels: what neighbouring windows share; None: what seamless windows of this network need.
    It is at most half a window; both are rounded up to multiples of the stride.
    Logits are float32 (H, W), or (C, H, W) of a network of C > 1 `channels`.
    """

    network: nn.Module
    device: torch.device
    dtype: torch.dtype | None = None  # autocast's
    mirrors: str | None = None
    window: int = 768
    overlap: int | None = None

    def __post_init__(self):
        self.channels = self.network.output_conv.out_channels
        self.stride = stride_of(self.network)
        self.reach = reach_of(self.network)
        self.window = max(self._up(self.window), 2 * self.stride)
        wanted = 2 * self.reach + 2 * self.stride if self.overlap is None else self.overlap
        self.overlap = min(self._up(wanted), self.window // 2 // self.stride * self.stride)

    def fits(self, size):
        """Whether a picture of `size` (H, W) goes through the network in one piece."""
        return self._up(size[0]) * self._up(size[1]) <= self.window**2

    def logits(self, images):
        """Logits of a batch of equally large pictures, in one piece.

        images: uint8 (N, H, W, 3). Returns a function that gives picture number i its logits, and waits for the
        device only then.
        """
        logits = self._padded(images)
        if self.channels == 1:
            logits = logits[:, 0]
        arrived = None
        if self.device.type == "cuda":
            host = torch.empty(logits.shape, pin_memory=True)
            host.copy_(logits, non_blocking=True)
            arrived = torch.cuda.Event()
            arrived.record()
        else:
            host = logits.cpu()

        def fetch(index):
            if arrived:
                arrived.synchronize()
            return np.ascontiguousarray(host[index].numpy())

        return fetch

    def logits_in_windows(self, image, say=lambda number, total: None):
        """Logits of one picture uint8 (H, W, 3) of any size, window by window; `say(window, windows)` follows it."""
        logits = np.empty((self.channels, *image.shape[:2]), np.float32)
        for top, band in self.bands(image, say):
            logits[:, top : top + band.shape[1]] = band.cpu().numpy()
        return logits if self.channels > 1 else logits[0]

    def bands(self, image, say=lambda number, total: None):
        """Yields (top, logits) of one band of such a picture after another: float32 (C, h, W) on the device.

        `top` is its first row. It lasts until the next one, so the memory is that of a row of windows. A picture that
        fits is one band.
        """
        height, width = image.shape[:2]
        if self.fits((height, width)):
            yield 0, self._padded(image[None])[0]
            return
        rows, columns = (self.windows_along(length) for length in (height, width))
        tall, first = min(height, len(rows[0][1])), 0  # of the canvas, and its first row
        canvas = torch.zeros(self.channels, tall, width, device=self.device)
        for row, (top, down) in enumerate(rows):
            if top > first:  # no other window sees the rows above it
                yield first, canvas[:, : top - first]
                canvas = torch.cat([canvas[:, top - first :], torch.zeros_like(canvas[:, : top - first])], 1)
                first = top
            for column, (left, across) in enumerate(columns):
                piece = image[top : top + len(down), left : left + len(across)]
                high, wide = piece.shape[:2]
                piece = cv2.copyMakeBorder(piece, 0, len(down) - high, 0, len(across) - wide, cv2.BORDER_REPLICATE)
                down_here, across_here = (torch.from_numpy(weights).to(self.device) for weights in (down, across))
                logits = self._run(piece[None])[0] * down_here[:, None] * across_here
                canvas[:, :high, left : left + wide] += logits[:, :high, :wide]
                say(row * len(columns) + column + 1, len(rows) * len(columns))
        yield first, canvas[:, : height - first]

    def windows_along(self, length):
        """[(start, weights)] of the windows along a side of `length` pixels; at every pixel the weights sum to 1."""
        length = self._up(length)
        side = min(self.window, length)
        count = _windows(length, side, self.overlap)
        last = (length - side) // self.stride
        starts = [round(last * i / max(1, count - 1)) * self.stride for i in range(count)]
        total = np.zeros(length, np.float32)
        weights = []
        for start in starts:
            weight = np.ones(side, np.float32)
            if start > 0:
                weight[: self.overlap] = self._ramp()
            if start + side < length:
                weight[side - self.overlap :] *= self._ramp()[::-1]
            total[start : start + side] += weight
            weights.append(weight)
        return [(start, weight / total[start : start + side]) for start, weight in zip(starts, weights)]

    def _ramp(self):
        """Weights over an overlap: zero where the window's edge is within reach, then rising smoothly."""
        margin = min(self.reach, (self.overlap - self.stride) // 2)
        rise = (np.arange(self.overlap, dtype=np.float32) + 0.5 - margin) / (self.overlap - 2 * margin)
        return np.sin(np.clip(rise, 0, 1) * np.pi / 2) ** 2

    def _up(self, length):
        """`length` rounded up to a multiple of the stride."""
        return -(-length // self.stride) * self.stride

    def _padded(self, images):
        """Logits (N, C, H, W) on the device of uint8 (N, H, W, 3) of any size, in one piece."""
        height, width = images.shape[1:3]
        beyond = (0, self._up(height) - height), (0, self._up(width) - width)
        return self._run(np.pad(images, ((0, 0), *beyond, (0, 0)), mode="edge"))[..., :height, :width]

    @torch.inference_mode()
    def _run(self, images):
        """float32 (N, C, H, W) on the device, of uint8 (N, H, W, 3); H and W are multiples of the stride."""
        batch = torch.from_numpy(images)
        if self.device.type == "cuda":
            batch = batch.pin_memory()
        batch = batch.to(self.device, non_blocking=True).permute(0, 3, 1, 2)  # a channels-last view
        batch = batch.float().div_(255)
        total = 0
        for axes in MIRRORS[self.mirrors]:
            with torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype is not None):
                logits = self.network(batch.flip(axes) if axes else batch)
            total = total + (logits.flip(axes) if axes else logits).float()
        return total / len(MIRRORS[self.mirrors])


# ---- many pictures


@dataclass
class Item:
    """A picture on its way. Where it could not be read, `error` says why, and there is no `image`."""

    picture: object  # whatever the caller knows it by
    size: tuple = (1, 1)  # its own height and width
    error: str | None = None
    image: np.ndarray | None = None  # as the network takes it, uint8 (H, W, 3)
    extra: object = None  # what else `read` gave
    further: int = 0  # bytes of its logits of all channels but one, once it has them

    @property
    def bytes(self):
        return PIXEL_BYTES * self.size[0] * self.size[1] + self.further


def predict_pictures(
    pictures,
    runner,
    size_of,
    read,
    finish,
    batch_size,
    threads,
    bounded=False,
    say=lambda number, total: None,
    in_bands=None,
):
    """Yields finish(item, fetch) of every picture, in their order; fetch() gives its logits as the Runner does.

    size_of(picture): its own (height, width), quickly.
    read(picture): uint8 (H, W, 3) as the network shall see it, and what else `finish` wants in item.extra.
    A UserError of these two becomes item.error; `fetch` is None then.
    bounded: a batch has no more pixels than a window, as is needed where pictures are as large as they come.
    say(window, windows): called where a picture goes in windows.
    in_bands(item): for such a picture, what is called with every Runner.bands, and what fetch() then gives.

    Threads call `read` ahead of the network and `finish` behind it; on either side no more than
    PENDING_BYTES wait, or else a single picture.
    """
    pool = ThreadPoolExecutor(threads)
    ahead, behind = _Queue(batch_size + 2 * threads), _Queue(batch_size + 2 * threads)
    try:
        for batch in _batches(_decoded(pictures, size_of, read, pool, ahead), runner, batch_size, bounded):
            if runner.device.type == "cpu":
                # The network has a thread for each core: one that is held up by decoding makes the others wait.
                wait([*ahead.futures, *behind.futures])
            for item, fetch in zip(batch, _logits_of(batch, runner, say, in_bands)):
                behind.put(item, pool.submit(finish, item, fetch))
            while behind.futures and (behind.overfull() or behind.futures[0].done()):
                yield behind.get()
        while behind.futures:
            yield behind.get()
    finally:
        pool.shutdown(cancel_futures=True)  # whatever the reason, what has not begun is not done


def _decoded(pictures, size_of, read, pool, ahead):
    """The Items of `pictures`, read by the pool while the ones before are in the network."""
    heads = map(partial(_head, size_of), pictures)
    coming = next(heads, None)
    while coming or ahead.futures:
        while coming and ahead.has_room(coming):
            ahead.put(coming, pool.submit(_decode, coming, read))
            coming = next(heads, None)
        yield ahead.get()


def _head(size_of, picture):
    try:
        return Item(picture, size_of(picture))
    except UserError as mistake:
        return Item(picture, error=str(mistake))


def _decode(item, read):
    if not item.error:
        try:
            item.image, item.extra = read(item.picture)
        except UserError as mistake:
            item.error = str(mistake)
    return item


def _batches(items, runner, batch_size, bounded):
    """Lists of neighbours of one shape, for one call; what has failed, or goes in windows, is alone."""
    for shape, neighbours in groupby(items, lambda item: None if item.error else item.image.shape):
        most = batch_size
        if shape is None or not runner.fits(shape):
            most = 1
        elif bounded:
            most = max(1, min(batch_size, runner.window**2 // (shape[0] * shape[1])))
        while batch := list(islice(neighbours, most)):
            yield batch


def _logits_of(batch, runner, say, in_bands):
    """For each Item a function that gives its logits."""
    if batch[0].error:
        return [None]
    height, width = batch[0].image.shape[:2]
    if not runner.fits((height, width)) and in_bands:
        kept = in_bands(batch[0])
        for top, band in runner.bands(batch[0].image, say):
            kept(top, band.cpu().numpy())
        return [lambda: kept]
    for item in batch:
        item.further = LOGIT_BYTES * (runner.channels - 1) * height * width
    if not runner.fits((height, width)):
        logits = runner.logits_in_windows(batch[0].image, say)
        return [lambda: logits]
    fetch = runner.logits(np.stack([item.image for item in batch]))
    return [partial(fetch, index) for index in range(len(batch))]


class _Queue:
    """Futures in order, and how many bytes of pictures they hold."""

    def __init__(self, most):
        self.most, self.futures, self.bytes = most, deque(), deque()

    def has_room(self, item):
        """One always has room; more only within both bounds."""
        return not self.bytes or (len(self.bytes) < self.most and sum(self.bytes) + item.bytes <= PENDING_BYTES)

    def overfull(self):
        return len(self.bytes) > self.most or (len(self.bytes) > 1 and sum(self.bytes) > PENDING_BYTES)

    def put(self, item, future):
        self.bytes.append(item.bytes)
        self.futures.append(future)

    def get(self):
        self.bytes.popleft()
        return self.futures.popleft().result()


# ---- batches as the loaders give them


def to_device(images: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Images (N, 3, H, W) as the network takes them: on `device`, in [0, 1].

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

    @torch.no_grad()
    def labels(self, images: torch.Tensor) -> torch.Tensor:
        """The predicted labels, uint8 (N, 1, H, W) on the device, of images (N, 3, H, W). The model keeps its mode.

        UserError: the model has more or fewer output channels than the masks need.
        """
        training = self.model.training
        self.model.eval()
        try:
            # Last batches and images of any size would each be compiled once more
            with as_written():
                return self._labels_in_windows(images) if self.in_windows else self._labels(images)
        finally:
            self.model.train(training)

    def _labels(self, images: torch.Tensor) -> torch.Tensor:
        with torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype is not None):
            logits = self.model(to_device(images, self.device))
        self._refuse_channels(logits.shape[1])
        return self.mask_rule.labels_of(logits)

    def _labels_in_windows(self, images: torch.Tensor) -> torch.Tensor:
        runner = Runner(self.model, self.device, self.dtype)
        self._refuse_channels(runner.channels)
        labels = torch.empty(len(images), 1, *images.shape[2:], dtype=torch.uint8, device=self.device)
        cudnn, benchmark = torch.backends.cudnn, torch.backends.cudnn.benchmark
        cudnn.benchmark = False  # it would try its kernels for every size anew
        for index, image in enumerate(images.permute(0, 2, 3, 1).numpy()):
            for top, logits in runner.bands(image):
                labels[index, :, top : top + logits.shape[1]] = self.mask_rule.labels_of(logits[None])[0]
        cudnn.benchmark = benchmark
        return labels

    def _refuse_channels(self, channels: int) -> None:
        if channels != self.mask_rule.channels:
            raise UserError(
                f"The network has {channels} output channels, and these masks need {self.mask_rule.channels}: one for "
                "each class (CLASSES), or one for a single foreground."
            )
