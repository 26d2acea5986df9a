"""Pictures through the network and out again: decoding ahead of it, writing behind it, in threads."""

from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

import pictures
import scores
import submission
from errors import UserError
from inputs import Picture, output_path
from masks import MaskRule, read_mask
from reading import image_size, read_image, resize_image

PENDING_BYTES = 300e6  # of pictures that wait for the network, and as many for being written
PICTURE_BYTES = 8  # a pixel: the picture, its logits, its mask


@dataclass
class Decoded:
    """A picture on its way: `image` as the network takes it; `full` at its own `size` where that is needed."""

    picture: Picture
    size: tuple
    image: np.ndarray
    full: np.ndarray | None


@dataclass
class Outcome:
    """What became of a picture: `error` in words, or what was asked for."""

    picture: Picture
    error: str | None = None
    counts: tuple | None = None  # of pixels: in both, predicted, true
    runs: str | None = None
    histogram: np.ndarray | None = None
    shown: tuple | None = None  # image, truth, prediction


@dataclass
class Finish:
    """Turns the logits of a picture into what was asked for. Runs in threads."""

    cut: float = 0.0  # logits above it are foreground
    folder: Path | None = None  # of the masks
    overlays: Path | None = None
    probabilities: Path | None = None
    bits: int = 8
    masks: dict | None = None  # {picture: file of its true mask}
    rule: MaskRule | None = None
    runs: bool = False
    histogram: bool = False
    show: bool = False

    @property
    def full(self):
        """Whether the picture at its own size is needed."""
        return bool(self.overlays or self.show)

    def __call__(self, decoded, logits):
        picture, outcome = decoded.picture, Outcome(decoded.picture)
        logits = logits if isinstance(logits, np.ndarray) else logits()
        truth = None
        if self.masks and picture in self.masks:
            try:
                truth = read_mask(self.masks[picture], self.rule)
            except UserError as mistake:
                outcome.error = str(mistake)
        own = resize_image(logits, decoded.size)
        mask = (own > self.cut).astype(np.uint8)
        if self.folder:
            pictures.save_image(output_path(self.folder, picture, ".png"), mask * 255)
        if self.overlays:
            pictures.save_image(output_path(self.overlays, picture, ".jpg"), pictures.overlay(decoded.full, mask))
        if self.probabilities:
            top, kind = (255, np.uint8) if self.bits == 8 else (65535, np.uint16)
            shades = (top / (1 + np.exp(-own.clip(-30, 30)))).round().astype(kind)
            pictures.save_image(output_path(self.probabilities, picture, ".png"), shades)
        if self.runs:
            outcome.runs = submission.encode(mask)
        if truth is not None:
            if truth.shape != mask.shape:
                own = resize_image(logits, truth.shape)
                mask = (own > self.cut).astype(np.uint8)
            outcome.counts = scores.count(mask, truth)
            if self.histogram:
                outcome.histogram = scores.histogram(own, truth)
            if self.show:
                outcome.shown = (resize_image(decoded.full, truth.shape), truth, mask)
        return outcome


def decode(picture, size, full):
    """The picture for the network, at `size` or at its "own"; or an Outcome with the reason why not."""
    try:
        if full:
            pixels = read_image(picture.path)
            own = pixels.shape[:2]
            return Decoded(picture, own, pixels if size == "own" else resize_image(pixels, size), pixels)
        own = image_size(picture.path)
        return Decoded(picture, own, read_image(picture.path, None if size == "own" else size), None)
    except UserError as mistake:
        return Outcome(picture, str(mistake))


def predict_pictures(wanted, runner, finish, size, batch_size, threads, say=lambda number, total: None):
    """Yields the Outcome of each picture, in their order.

    Threads decode ahead of the network and finish behind it. What waits on either side is bounded
    by number and by PENDING_BYTES, whatever the pictures' sizes.
    """
    pool = ThreadPoolExecutor(threads)
    waiting, batch, finishing = deque(), [], deque()
    todo, left, largest = iter(wanted), len(wanted), 1

    def allowed():
        return max(1, min(batch_size + 2 * threads, int(PENDING_BYTES // largest)))

    def flush():
        result = runner.logits(np.stack([item.image for item in batch]))
        for index, item in enumerate(batch):
            finishing.append(pool.submit(finish, item, partial(result, index)))
        batch.clear()

    try:
        while left or waiting or batch or finishing:
            while left and len(waiting) + len(batch) < allowed():
                waiting.append(pool.submit(decode, next(todo), size, finish.full))
                left -= 1
            if waiting:
                item = waiting.popleft().result()
                if isinstance(item, Outcome):
                    finishing.append(pool.submit(lambda outcome: outcome, item))
                    continue
                largest = max(largest, PICTURE_BYTES * item.size[0] * item.size[1])
                shape = item.image.shape
                if batch and batch[0].image.shape != shape:
                    flush()
                if runner.fits(shape):
                    batch.append(item)
                    if len(batch) >= min(batch_size, runner.batch_of(shape)):
                        flush()
                else:
                    logits = runner.logits_in_windows(item.image, say)
                    finishing.append(pool.submit(finish, item, logits))
            elif batch:
                flush()
            done = not (left or waiting or batch)
            while finishing and (done or finishing[0].done() or len(finishing) > allowed()):
                yield finishing.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
