"""Pictures through the network and out again: decoding ahead of it, writing behind it, in threads."""

from collections import deque
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

import pictures
import scores
import submission
from errors import UserError
from inputs import Picture, output_path
from masks import MaskRule, read_mask, resize_mask
from reading import image_size, read_image, resize_image, shown

PENDING_BYTES = 300e6  # of pictures that wait for the network, and as many for being written
SHEET_HEIGHT = 480  # pixels
LONGEST_JPEG = 65_500  # pixels, libjpeg's own limit
PICTURE_BYTES = 8  # a pixel: the picture, its logits, its mask


@dataclass
class Item:
    """A picture on its way: `size` its own (height, width), `image` as the network takes it, `full` at its size."""

    picture: Picture
    size: tuple = (1, 1)
    error: str | None = None
    image: np.ndarray | None = None
    full: np.ndarray | None = None

    @property
    def cost(self):
        return PICTURE_BYTES * self.size[0] * self.size[1]


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

    def __call__(self, item, logits):
        """The Outcome of an Item; `logits()` gives float32 (H, W) at the network's size."""
        picture, outcome, logits = item.picture, Outcome(item.picture), logits()
        if np.isnan(logits).any():
            cure = 'Try PRECISION = "float32", or another checkpoint.'
            outcome.error = f"{shown(picture.path)}: the network's output is not a number. {cure}"
            return outcome
        at_own = resize_image(logits, item.size)
        mask = (at_own > self.cut).astype(np.uint8)
        if self.folder:
            pictures.save_image(output_path(self.folder, picture, ".png"), mask * 255)
        if self.overlays and max(item.size) > LONGEST_JPEG:
            outcome.error = f"{shown(picture.path)}: too long for an overlay, a JPEG of at most {LONGEST_JPEG} pixels."
        elif self.overlays:
            pictures.save_image(output_path(self.overlays, picture, ".jpg"), pictures.overlay(item.full, mask))
        if self.probabilities:
            shades = probability_map(at_own, self.bits)
            pictures.save_image(output_path(self.probabilities, picture, ".png"), shades)
        if self.runs:
            outcome.runs = submission.encode(mask)
        if self.masks and picture in self.masks:
            try:
                truth = read_mask(self.masks[picture], self.rule)
            except UserError as mistake:
                outcome.error = str(mistake)
                return outcome
            if _turned(truth.shape, mask.shape):
                sizes = [f"{height}x{width} (height x width)" for height, width in (mask.shape, truth.shape)]
                pair = f"{shown(picture.path)} is {sizes[0]}, {shown(self.masks[picture])} is {sizes[1]}"
                outcome.error = f"{pair}: one is turned, so it is not scored."
                return outcome
            if truth.shape != mask.shape:
                at_own = resize_image(logits, truth.shape)
                mask = (at_own > self.cut).astype(np.uint8)
            outcome.counts = scores.count(mask, truth)
            if self.histogram:
                outcome.histogram = scores.histogram(at_own, truth)
            if self.show:
                small = _for_sheet(truth.shape)
                masks = resize_mask(truth, small), resize_mask(mask, small)
                outcome.shown = (resize_image(item.full, small), *masks)
        return outcome


def _turned(one, other):
    """Whether size `one` (H, W) is a scaled copy of `other` turned by 90 degrees, and not of it as it is."""

    def alike(height, width):  # but for rounding
        return abs(height * other[1] - width * other[0]) <= max(height, width, *other)

    return alike(*one[::-1]) and not alike(*one)


def probability_map(logits, bits):
    """The probabilities of logits as uint8 or uint16, 1 being the type's largest value."""
    kind = np.uint8 if bits == 8 else np.uint16
    return (np.iinfo(kind).max / (1 + np.exp(-logits.clip(-30, 30)))).round().astype(kind)


def _for_sheet(size):
    """The size at which a picture of `size` is kept for a sheet."""
    scale = min(1, SHEET_HEIGHT / size[0], 2 * SHEET_HEIGHT / size[1])
    return tuple(max(1, round(side * scale)) for side in size)


def predict_pictures(wanted, runner, finish, size, batch_size, threads, say=lambda number, total: None):
    """Yields the Outcome of each Picture in `wanted`, in their order.

    The network sees them at `size` (height, width), or at their "own". Threads decode ahead of it and
    call `finish` behind it; on either side no more than PENDING_BYTES wait, or else a single picture.
    `say(window, windows)` is called where a picture does not fit.
    """
    with _Threads(threads) as pool:
        own, heads = size == "own", map(_head, wanted)
        coming = next(heads, None)
        ahead, batch, behind = _Queue(batch_size + 2 * threads), [], _Queue(batch_size + 2 * threads)
        while coming or ahead.futures or batch or behind.futures:
            while coming and ahead.has_room(coming):
                ahead.put(coming, pool.submit(_decode, coming, size, finish.full))
                coming = next(heads, None)
            if ahead.futures:
                item = ahead.get()
                if batch and (item.error or item.image.shape != batch[0].image.shape):
                    _run(batch, runner, finish, pool, ahead, behind)
                if item.error:
                    behind.put(item, pool.submit(Outcome, item.picture, item.error))
                elif runner.fits(item.image.shape):
                    batch.append(item)
                    # At sizes of their own the pictures of a batch may be large, and the window bounds memory.
                    if len(batch) >= (min(batch_size, runner.batch_of(item.image.shape)) if own else batch_size):
                        _run(batch, runner, finish, pool, ahead, behind)
                else:
                    logits = runner.logits_in_windows(item.image, say)
                    behind.put(item, pool.submit(finish, item, lambda logits=logits: logits))
            elif batch:
                _run(batch, runner, finish, pool, ahead, behind)
            ended = not (coming or ahead.futures or batch)
            while behind.futures and (ended or behind.overfull() or behind.futures[0].done()):
                yield behind.get()


class _Threads(ThreadPoolExecutor):
    """Leaves without doing what has not begun, whatever the reason."""

    def __exit__(self, *reason):
        self.shutdown(wait=True, cancel_futures=True)


class _Queue:
    """Futures in order, and how many bytes of pictures they hold."""

    def __init__(self, most):
        self.most, self.futures, self.costs = most, deque(), deque()

    def has_room(self, item):
        """One always has room; more only within both bounds."""
        return not self.costs or (len(self.costs) < self.most and sum(self.costs) + item.cost <= PENDING_BYTES)

    def overfull(self):
        return len(self.costs) > self.most or (len(self.costs) > 1 and sum(self.costs) > PENDING_BYTES)

    def put(self, item, future):
        self.costs.append(item.cost)
        self.futures.append(future)

    def get(self):
        self.costs.popleft()
        return self.futures.popleft().result()


def _head(picture):
    """The Item of a picture, not yet decoded."""
    try:
        return Item(picture, image_size(picture.path))
    except UserError as mistake:
        return Item(picture, error=str(mistake))


def _decode(item, size, full):
    if not item.error:
        try:
            item.image = read_image(item.picture.path, None if size == "own" else size)
            if full:  # decoded once more, so that the network sees the same with and without
                item.full = item.image if size == "own" else read_image(item.picture.path)
        except UserError as mistake:
            item.error = str(mistake)
    return item


def _run(batch, runner, finish, pool, ahead, behind):
    """The network over a batch of equally large pictures, which `finish` then gets; empties the batch."""
    if runner.device.type == "cpu":
        # The network has a thread for each core: one that is held up by decoding makes the others wait.
        wait([*ahead.futures, *behind.futures])
    fetch = runner.logits(np.stack([item.image for item in batch]))
    for index, item in enumerate(batch):
        behind.put(item, pool.submit(finish, item, partial(fetch, index)))
    batch.clear()
