"""From pictures to predictions: read ahead of the network, predicted, and handed to outputs behind it, in threads.

A picture is read (PictureReader), runs through the network (inference.Runner), and its logits become a Prediction, by
a Decision. Each Output then makes of it what it is for, such as a file or a score. While the network has one batch,
threads read the pictures of the next ones and let the outputs work on those before.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby, islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from parts.audit import DARK
from parts.bands import reflected
from parts.clean_up import NOTHING, CleanUp
from parts.errors import UserError, within_memory
from parts.images import (
    RGB,
    Bands,
    Decoded,
    as_bytes,
    decode_image,
    depth_of,
    draft_size,
    image_of_array,
    image_size,
    read_image,
    resize_image,
    size_within,
)
from parts.inference import OnWindow, Runner, say_nothing
from parts.masks import drops_alpha, resize_mask
from parts.names import Picture
from parts.spec import STRETCH

Size = tuple[int, int]  # height, width


# ---- pictures


@dataclass(frozen=True)
class Loaded:
    """A picture that has been read."""

    picture: Picture
    size: Size  # its own
    image: np.ndarray  # as the network takes it, uint8 (h, w, C)
    value_range: tuple[float, float] | None = None  # as of PictureReader
    within: Size | None = None  # the picture's (height, width) in `image`, of which the rest is padding; None: all
    is_dark: bool = False  # it loses nearly all detail, because there is no `value_range`
    is_transparent: bool = False  # its channel of transparency is dropped, so that the network sees what that hides

    @property
    def network_size(self) -> Size:
        """The size at which the network takes it."""
        return self.image.shape[0], self.image.shape[1]

    @property
    def is_at_own_size(self) -> bool:
        """Whether that is the picture's own size."""
        return self.network_size == self.size

    def own_image(self) -> np.ndarray:
        """The picture at its own size, uint8 (H, W, C). UnusableFile.

        Read once more where the network takes it at another size: of a JPEG that is shrunk, only a part was decoded.
        """
        if self.is_at_own_size:
            return self.image
        return read_image(self.picture.images, None, self.picture.page, self.value_range, self.image.shape[2])


class PictureReader:
    """Reads pictures at the size at which a network takes them, in any thread.

    size: (height, width), or None for each picture's own size
    fit: how pictures become `size`, as in training; see FIT
    value_range: what of images of more than 8 bits becomes 0 ... 255, as in training; see IMAGE_RANGE
    channels: those that the network takes
    """

    def __init__(
        self,
        size: Size | None,
        value_range: Sequence[float] | None = None,
        channels: int = RGB,
        fit: str = STRETCH,
    ) -> None:
        self.size, self.channels, self.fit = size, channels, fit
        self.any_size = size is None  # pictures may differ in size, and be as large as they come
        self.value_range = (value_range[0], value_range[1]) if value_range else None

    def size_of(self, picture: Picture) -> Size:
        """The size at which the network takes a picture, without decoding it. UnusableFile."""
        return self.size or image_size(picture.path, picture.page)

    def read(self, picture: Picture) -> Loaded:
        """The picture, decoded and resized. UnusableFile."""
        decoded = decode_image(picture.images, draft_size(self.size), picture.page, self.channels)
        size = self.size and size_within(decoded.size, self.size, self.fit)
        image = as_bytes(decoded, picture.path, size, self.value_range, self.channels)
        # With a range of training's nothing is lost that was not lost there.
        is_dark = self.value_range is None and _is_dark(decoded, picture, self.channels)
        is_transparent = drops_alpha(decoded, self.channels)
        return Loaded(picture, decoded.size, self._padded(image), self.value_range, size, is_dark, is_transparent)

    def take(self, pixels: np.ndarray) -> Loaded:
        """A picture that is an array, as `images.image_of_array` takes it. UserError."""
        image = image_of_array(pixels, self.value_range, self.channels)
        size = (image.shape[0], image.shape[1])
        within = size_within(size, self.size or size, self.fit)
        image = self._padded(resize_image(image, within))
        return Loaded(Picture(Path("array"), Path("array")), size, image, self.value_range, within)

    def _padded(self, image: np.ndarray) -> np.ndarray:
        return reflected(image, self.size or (image.shape[0], image.shape[1]))


def _is_dark(decoded: Decoded | Bands, picture: Picture, channels: int) -> bool:
    """Whether a picture has more than 8 bits, and hardly any values that reach the upper 8, which alone are kept."""
    try:
        depth = depth_of(decoded, picture.path, channels)
        return depth is not None and depth["highest"] < DARK
    except UserError:  # some layouts can be read in 8 bits alone
        return False


# ---- predictions


@dataclass(frozen=True)
class Decision:
    """How logits become labels: classes by the highest logit, one foreground by a threshold of its probability.

    Where classes overlap each of them is decided as one foreground.
    """

    channels: int = 1  # of the network: 1 for one foreground, or a channel for each class
    threshold: float = 0.5  # for one foreground, and classes that overlap
    clean_up: CleanUp = NOTHING  # of the mask at the picture's own size
    overlaps: bool = False

    @property
    def cut(self) -> float:
        """The logit of the threshold."""
        return math.log(self.threshold / (1 - self.threshold))


class Prediction:
    """What a network says of one picture: labels, {0, 1} of one foreground or the indices of classes.

    The outputs ask for masks at the picture's own size and at that of the true mask; each is made once. The clean-up is
    done at the picture's own size, and other sizes follow that.

    planes: float32 (C, h, w) as inference.Runner gives them, at the size at which the network took the picture
    """

    def __init__(self, loaded: Loaded, planes: np.ndarray, decision: Decision) -> None:
        self.loaded = loaded
        self.picture = loaded.picture
        self.size = loaded.size
        self.decision = decision
        self.has_nan = bool(np.isnan(planes).any())
        if loaded.within:
            planes = planes[:, : loaded.within[0], : loaded.within[1]]
        self.logits, self.apart = np.split(planes, [decision.channels])  # of several networks one plane follows
        self._masks: dict[Size, np.ndarray] = {}
        self._decided: dict[Size, np.ndarray] = {}
        self._lead = np.zeros(0)  # of the mask at the picture's own size, once that is made

    @property
    def problem(self) -> str:
        """What is wrong with it, in words; "" where nothing is."""
        if self.has_nan:
            cure = 'Try PRECISION = "float32", or another checkpoint.'
            return f"{self.picture}: the network's output is not a number. {cure}"
        return ""

    @property
    def mask(self) -> np.ndarray:
        """The labels at the picture's own size, uint8 (H, W)."""
        return self.mask_at(self.size)

    def mask_at(self, size: Size) -> np.ndarray:
        """The labels at `size` = (height, width), such as that of the true mask, uint8."""
        clean_up = self.decision.clean_up
        if clean_up.does_nothing:
            return self.decided_at(size)
        if self.size not in self._masks:
            self._masks[self.size] = clean_up(self.decided_at(self.size))
        if size not in self._masks:
            self._masks[size] = resize_mask(self._masks[self.size], size)
        return self._masks[size]

    def decided_at(self, size: Size) -> np.ndarray:
        """The labels at `size` before the clean-up, uint8."""
        if size not in self._decided:
            self._decided[size] = self._decide(size)
        return self._decided[size]

    def probabilities(self, bits: int) -> Iterable[np.ndarray]:
        """A map at the picture's own size of the foreground, or of each class one after another, by its `bits`.

        8 and 16: uint8 and uint16, of which 1 is the largest value. 32: float32 of 0 ... 1.
        """
        self.decided_at(self.size)  # which leaves the lead
        return probability_maps(self.logits, self._lead, bits)

    @property
    def disagreement(self) -> np.ndarray:
        """How far apart the probabilities of several networks are, at the picture's own size: float32 of 0 ... 1."""
        return resize_image(self.apart[0], self.size)

    def _decide(self, size: Size) -> np.ndarray:
        classified = classify(self.logits, size, self.decision.cut, self.decision.overlaps)
        if size == self.size:
            self._lead = classified.lead
        return classified.mask


class BandedPrediction(Prediction):
    """Of a network for C classes, decided band by band, for a large picture that runs in windows at its own size.

    C planes of logits, each as large as the picture, would fill memory. If maps of probabilities are wanted, `bits`
    says so beforehand, and they are made band by band too: C planes of 8 or 16 bits.
    """

    def __init__(self, loaded: Loaded, planes: int, decision: Decision, bits: int | None = None) -> None:
        super().__init__(loaded, np.empty((planes, 0, 0), np.float32), decision)  # its logits are not kept
        self._decided[self.size] = np.empty(self.size, np.uint8)
        self.apart = np.empty((planes - decision.channels, *self.size), np.float32)
        self._bits = bits
        self._maps = []
        if bits:
            self._maps = [np.empty(self.size, _TYPES[bits]) for _ in range(decision.channels)]

    def put(self, top: int, planes: np.ndarray) -> None:
        """Takes the band of planes float32 (C, h, W) that begins at row `top`."""
        rows = slice(top, top + planes.shape[1])
        self.has_nan = self.has_nan or bool(np.isnan(planes).any())
        logits, self.apart[:, rows] = np.split(planes, [self.decision.channels])
        classified = classify(logits, (logits.shape[1], logits.shape[2]), self.decision.cut, self.decision.overlaps)
        self._decided[self.size][rows] = classified.mask
        if self._bits:
            for whole, band in zip(self._maps, probability_maps(logits, classified.lead, self._bits)):
                whole[rows] = band

    def probabilities(self, bits: int) -> Iterable[np.ndarray]:
        """The C maps that were made along the way."""
        return self._maps

    def _decide(self, size: Size) -> np.ndarray:
        return resize_mask(self._decided[self.size], size)


class Classified(NamedTuple):
    """The label of each pixel, and how sure that is."""

    mask: np.ndarray  # uint8 (H, W)
    lead: np.ndarray  # float32 (H, W): how far the highest logit lies above that of label 0; (C, H, W) of foregrounds


def lead_of(logits: np.ndarray, label: int, size: Size) -> np.ndarray:
    """How far the logit of a label lies above that of label 0, float32 at `size`.

    logits: float32 (C, h, w); the one channel of a foreground is that already.
    """
    plane = logits[0] if len(logits) == 1 else logits[label] - logits[0]
    return resize_image(plane, size)


def classify(logits: np.ndarray, size: Size, cut: float = 0.0, overlaps: bool = False) -> Classified:
    """The label with the highest logit in each pixel, at `size`; of one foreground where its logit is above `cut`.

    logits: float32 (C, h, w), of which one plane at a time is enlarged. Each is compared by how far it lies above that
    of label 0, so that two classes give the mask that one foreground gives with the difference of their logits. Of
    equal ones the first wins. Where classes overlap the label is the set of those whose logits are above `cut`.
    """
    if overlaps:
        each = [classify(plane[None], size, cut) for plane in logits]
        mask = np.bitwise_or.reduce([one.mask << c for c, one in enumerate(each)])
        return Classified(mask.astype(np.uint8), np.stack([one.lead for one in each]))
    mask, lead = np.zeros(size, np.uint8), np.full(size, cut, np.float32)  # label 0 leads itself by 0
    for label in range(1, max(2, len(logits))):
        plane = lead_of(logits, label, size)
        np.copyto(mask, label, where=plane > lead)
        np.maximum(lead, plane, out=lead)
    return Classified(mask, lead)


def probability_maps(logits: np.ndarray, lead: np.ndarray, bits: int) -> Iterator[np.ndarray]:
    """The map of the foreground, or of each class, as of Prediction.probabilities: softmax, with label 0 at 0.

    lead: as classify gives it for `logits`
    """
    if lead.ndim == 3:  # of classes that overlap
        for plane, own in zip(logits, lead):
            yield from probability_maps(plane[None], own, bits)
        return

    def power(label: int) -> np.ndarray:
        """e to the power of how far below the highest logit that of a label lies."""
        return np.exp((lead_of(logits, label, lead.shape) if label else 0) - lead)

    # Twice over the labels, because their planes together would fill memory
    labels = range(max(2, len(logits)))
    total = sum(map(power, labels))
    for label in labels[-len(logits) :]:
        shares = power(label) * (_LARGEST[bits] / total)
        yield shares if bits == 32 else shares.round().astype(_TYPES[bits])


_LARGEST = {8: 255, 16: 65535, 32: 1}  # {bits of a map: the value of probability 1}
_TYPES: dict[int, type[np.generic]] = {8: np.uint8, 16: np.uint16, 32: np.float32}


# ---- what is made of predictions


@dataclass
class Result:
    """What the outputs have made of one picture; before that, the picture on its way to the network."""

    picture: Picture
    problems: list[str] = field(default_factory=list)  # in words: what of it could not be read, or not be made
    made: dict[Output, Any] = field(default_factory=dict)  # what each `make` has returned, where it did not fail
    loaded: Loaded | None = None  # from when it is read until its prediction is made
    weight: int = 1  # pictures that it counts as where they wait; all that may, if it runs in windows

    @property
    def network_size(self) -> Size | None:
        """The size at which the network takes it; None where it could not be read."""
        return self.loaded.network_size if self.loaded else None


class Output:
    """Something that is made of every picture's prediction; subclasses define those of these methods that they need.

    While the pictures run, `make` is called in threads, of several pictures at once: slow work belongs there. `take`
    is called in the main thread, of one picture after another in their order. `finish` and `report` follow at the end.
    """

    map_bits: int | None = None  # of the maps that `make` takes of Prediction.probabilities, if it takes any

    def paths(self, picture: Picture) -> list[Path]:
        """The files that `make` writes for a picture, so that nothing is overwritten."""
        return []

    def summaries(self) -> dict[Path, str]:
        """{file: in words, what it is of} of the files that `finish` writes for all pictures."""
        return {}

    def check(self, wanted: Sequence[Picture]) -> None:
        """UserError where this output cannot be made of all of these pictures together."""

    def make(self, prediction: Prediction) -> Any:
        """Does the slow work for one picture; what it returns is in Result.made. UserError: it cannot be done."""

    def take(self, result: Result) -> None:
        """Takes the result of one picture, also of one that could not be read."""

    def finish(self) -> None:
        """Writes the files that are about all pictures."""

    def report(self) -> None:
        """Prints what a user should know."""


def predict_pictures(
    pictures: Iterable[Picture],
    runner: Runner,
    reader: PictureReader,
    decision: Decision,
    outputs: Sequence[Output],
    *,
    threads: int,
    say: OnWindow = say_nothing,
) -> Iterator[Result]:
    """Puts pictures through a network, lets each output make what it is for, and yields the Results in their order.

    Threads read ahead of the network and call Output.make behind it. On either side a batch and two pictures a thread
    wait at most; or one single picture, if that runs in windows, so that memory is bounded however large pictures are.
    `say(window, windows)` is called while a picture runs in windows.
    """
    pool = ThreadPoolExecutor(threads)  # threads do, as decoders, encoders and numpy run beside each other
    capacity = runner.batch_size + 2 * threads
    ahead, behind = _Queue(capacity), _Queue(capacity)
    bits = next((output.map_bits for output in outputs if output.map_bits), None)
    try:
        for batch in _batches(_read_ahead(pictures, runner, reader, pool, ahead), runner, reader.any_size):
            if runner.device.type == "cpu":
                # The network has a thread for each core: one that is held up by decoding makes the others wait.
                wait([*ahead.futures, *behind.futures])
            predictions: list = [None]  # of a picture that was not read, which is alone
            if loaded := [result.loaded for result in batch if result.loaded]:
                predictions = predict_batch(loaded, runner, decision, say, bits)
            for result, predict in zip(batch, predictions):
                behind.put(pool.submit(_make, result, predict, outputs), result.weight)
            # Results that are ready are given out at once, and waited for where too many are not.
            while behind.futures and (behind.is_overfull or behind.futures[0].done()):
                yield behind.get()
        while behind.futures:
            yield behind.get()
    finally:
        pool.shutdown(cancel_futures=True)  # whatever the reason, what has not begun is not done


class _Queue:
    """Futures of pictures in order, of at most `capacity` by their weights."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.futures: deque[Future] = deque()
        self._weights: deque[int] = deque()

    def has_room(self, weight: int) -> bool:
        """Whether another picture may be put in; an empty queue takes any."""
        return not self.futures or sum(self._weights) + weight <= self.capacity

    @property
    def is_overfull(self) -> bool:
        """Whether the first result has to be taken before anything else is done."""
        return len(self.futures) > 1 and sum(self._weights) > self.capacity

    def put(self, future: Future, weight: int) -> None:
        """Appends a picture's future."""
        self.futures.append(future)
        self._weights.append(weight)

    def get(self) -> Any:
        """The result of the first one, once it is there."""
        self._weights.popleft()
        return self.futures.popleft().result()


def _read_ahead(
    pictures: Iterable[Picture], runner: Runner, reader: PictureReader, pool: ThreadPoolExecutor, ahead: _Queue
) -> Iterator[Result]:
    """The Results of `pictures`, read by the pool while the ones before are in the network."""
    for picture in pictures:
        result = Result(picture, weight=ahead.capacity if _runs_in_windows(picture, runner, reader) else 1)
        ready = []
        while not ahead.has_room(result.weight):
            ready.append(ahead.get())
        # Only then the network gets those that are ready, so that this one is read meanwhile.
        ahead.put(pool.submit(_read, result, reader), result.weight)
        yield from ready
    while ahead.futures:
        yield ahead.get()


def _runs_in_windows(picture: Picture, runner: Runner, reader: PictureReader) -> bool:
    """Whether a picture is too large for the network in one piece, by the head of its file."""
    try:
        return not runner.fits(reader.size_of(picture))
    except UserError:  # reading it will say so
        return False


@contextmanager
def _problems_of(result: Result) -> Iterator[None]:
    """Adds to a result what cannot be done with its picture alone."""
    try:
        with within_memory(str(result.picture)):
            yield
    except UserError as mistake:
        result.problems.append(str(mistake))


def _read(result: Result, reader: PictureReader) -> Result:
    """Reads a picture, in a thread."""
    with _problems_of(result):
        result.loaded = reader.read(result.picture)
    return result


def _batches(results: Iterator[Result], runner: Runner, any_size: bool) -> Iterator[list[Result]]:
    """Joins neighbours of one size, for one call of the network.

    A picture that could not be read, or runs in windows, is alone. Where pictures are of any size a batch has no more
    pixels than a window, as a picture nearly as large as a window may come any number of times.
    """
    for size, neighbours in groupby(results, lambda result: result.network_size):
        most = runner.batch_size
        if size is None or not runner.fits(size):
            most = 1
        elif any_size:
            most = max(1, min(most, runner.window**2 // (size[0] * size[1])))
        while batch := list(islice(neighbours, most)):
            yield batch


def predict_batch(
    pictures: Sequence[Loaded],
    runner: Runner,
    decision: Decision,
    say: OnWindow = say_nothing,
    bits: int | None = None,
) -> list[Callable[[], Prediction]]:
    """For each picture of a batch, all of one size, a function that gives its Prediction, having waited for a GPU.

    A picture that does not fit into the network in one piece must be alone. bits: of the maps of probabilities that
    will be asked for, if any will
    """
    first = pictures[0]
    if not runner.fits(first.network_size):
        prediction = _predict_in_windows(first, runner, decision, say, bits)
        return [lambda: prediction]
    fetch = runner.logits(np.stack([loaded.image for loaded in pictures]))

    def predict(index: int) -> Prediction:
        return Prediction(pictures[index], fetch(index), decision)

    return [partial(predict, index) for index in range(len(pictures))]


def _predict_in_windows(
    loaded: Loaded, runner: Runner, decision: Decision, say: OnWindow, bits: int | None
) -> Prediction:
    """The prediction of a picture that does not fit into one piece.

    Of one foreground all logits are kept, as they are one plane; of classes only where they must be resized.
    """
    if decision.channels == 1 or not loaded.is_at_own_size:
        return Prediction(loaded, runner.logits_in_windows(loaded.image, say), decision)
    prediction = BandedPrediction(loaded, runner.planes, decision, bits)
    for top, planes in runner.bands(loaded.image, say):
        prediction.put(top, planes.cpu().numpy())
    return prediction


def _make(result: Result, predict: Callable[[], Prediction] | None, outputs: Sequence[Output]) -> Result:
    """Lets the outputs work on one picture, in a thread; a problem of one of them does not stop the others."""
    result.loaded = None
    if predict is None:
        return result
    prediction = predict()
    if prediction.problem:
        result.problems.append(prediction.problem)
        return result
    for output in outputs:
        with _problems_of(result):
            result.made[output] = output.make(prediction)
    return result
