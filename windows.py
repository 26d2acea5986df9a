"""The network over one picture or many: whole, or in overlapping windows that bound its memory.

What the network sees of a pixel's surroundings ends at its reach. Windows start on its pooling grid
and overlap by more than twice that reach, so that each pixel's logit comes from windows which see all
that the whole picture would have shown: seams then differ from the whole picture by rounding alone.
"""

from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

MIRRORS = {  # test-time copies, as the axes (of N, C, H, W) they are mirrored along
    "none": [()],
    "h": [(), (3,)],
    "v": [(), (2,)],
    "hv": [(), (3,), (2,), (2, 3)],
}


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


@dataclass
class Runner:
    """Runs a network on uint8 pictures.

    `window` is the side (pixels) above which a picture is cut into windows, and the pixels that one
    call of the network may hold are its square. `overlap` is what neighbouring windows share; None:
    what seamless windows of this network need, at most half a window.
    """

    network: nn.Module
    device: torch.device
    dtype: torch.dtype | None = None  # autocast's
    mirrors: str = "none"
    window: int = 768
    overlap: int | None = None

    def __post_init__(self):
        self.stride = stride_of(self.network)
        self.reach = reach_of(self.network)
        self.window = max(_up(self.window, self.stride), 2 * self.stride)
        wanted = 2 * self.reach + 2 * self.stride if self.overlap is None else self.overlap
        self.overlap = min(_up(wanted, self.stride), self.window // 2 // self.stride * self.stride)

    def fits(self, size):
        """Whether a picture of `size` (H, W) goes through the network in one piece."""
        return _up(size[0], self.stride) * _up(size[1], self.stride) <= self.window**2

    def batch_of(self, size):
        """How many pictures of `size` one call may take."""
        return max(1, self.window**2 // (size[0] * size[1]))

    def logits(self, images):
        """Logits of a batch of equally large pictures that fit.

        images: uint8 (N, H, W, 3). Returns a function that gives picture number i its float32 (H, W),
        and waits for the device only then.
        """
        height, width = images.shape[1:3]
        images = np.pad(
            images,
            ((0, 0), (0, -height % self.stride), (0, -width % self.stride), (0, 0)),
            mode="edge",
        )
        logits = self._run(images)[:, :height, :width]
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

    @torch.inference_mode()
    def _run(self, images):
        batch = torch.from_numpy(images)
        if self.device.type == "cuda":
            batch = batch.pin_memory()
        batch = batch.to(self.device, non_blocking=True).permute(0, 3, 1, 2)  # a channels-last view
        batch = batch.float().div_(255)
        total = 0
        for axes in MIRRORS[self.mirrors]:
            with torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype is not None):
                logits = self.network(batch.flip(axes) if axes else batch)
            total = total + (logits.flip(axes) if axes else logits)[:, 0].float()
        return total / len(MIRRORS[self.mirrors])

    def logits_in_windows(self, image, say=lambda number, total: None):
        """Logits float32 (H, W), in memory, of one picture uint8 (H, W, 3) of any size, window by window.

        Beyond picture and result it needs the memory of a single window.
        """
        canvas = np.zeros(image.shape[:2], np.float32)
        rows, columns = (self._axis(length) for length in image.shape[:2])
        windows = [(*row, *column) for row in rows for column in columns]
        for number, (top, down, left, across) in enumerate(windows):
            piece = image[top : top + len(down), left : left + len(across)]
            height, width = piece.shape[:2]
            piece = cv2.copyMakeBorder(
                piece, 0, len(down) - height, 0, len(across) - width, cv2.BORDER_REPLICATE
            )
            logits = self._run(piece[None])[0].cpu().numpy()
            logits *= down[:, None]
            logits *= across
            canvas[top : top + height, left : left + width] += logits[:height, :width]
            say(number + 1, len(windows))
        return canvas

    def _axis(self, length):
        """[(start, weights)] of the windows along one side; at every pixel the weights sum to 1."""
        length = _up(length, self.stride)
        side = min(self.window, length)
        count = 1 if length <= side else -(-(length - self.overlap) // (side - self.overlap))
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


def _up(length, step):
    """`length` rounded up to a multiple of `step`."""
    return -(-length // step) * step
