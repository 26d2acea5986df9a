"""Pictures through a network in threads: order, what may wait, what happens when something fails; what logits mean."""

import threading
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from predicting import blobs

from parts.errors import UserError
from parts.images import resize_image
from parts.inference import Runner, make_runner
from parts.names import Picture
from parts.predictions import (
    BandedPrediction,
    Decision,
    Loaded,
    Output,
    PictureReader,
    classify,
    predict_pictures,
    probability_maps,
)
from unet import UNet

CPU = torch.device("cpu")


class Drawn(PictureReader):
    """Reads pictures that are drawn: of `sizes`, or a word in place of a size for what cannot be read."""

    any_size = True

    def __init__(self, sizes, own_sizes=None, any_size=True):
        super().__init__(None)
        self.sizes, self.own_sizes, self.begun = sizes, own_sizes or sizes, []
        self.any_size = any_size

    @property
    def pictures(self):
        return [Picture(Path(str(number)), Path(str(number))) for number in range(len(self.sizes))]

    def size_of(self, picture):
        size = self.sizes[int(picture.name.name)]
        if size == "lost":
            raise UserError("there is no such picture")
        return (40, 60) if size == "cut" else size

    def read(self, picture):
        number = int(picture.name.name)
        self.begun.append(number)
        self.size_of(picture)
        if self.sizes[number] == "cut":
            raise UserError("this picture is cut short")
        return Loaded(picture, self.own_sizes[number], blobs(*self.sizes[number], seed=number))


class Logits(Output):
    """Keeps the logits of every picture."""

    def make(self, prediction):
        return prediction.logits


SIZES = [(40, 60), (40, 60), (41, 60), "lost", (40, 60), "cut", (150, 130), (40, 60), (40, 60), (40, 60), (1, 3)]


@pytest.mark.parametrize("batch_size, threads, any_size", [(1, 1, False), (4, 2, False), (4, 3, True), (1, 8, True)])
def test_order_and_results_do_not_depend_on_batches_and_threads(network, batch_size, threads, any_size):
    told, kept, reader = [], Logits(), Drawn(SIZES, any_size=any_size)
    results = list(
        predict_pictures(
            reader.pictures,
            Runner(network, CPU, window=100, batch_size=batch_size),
            reader,
            Decision(),
            [kept],
            threads=threads,
            say=lambda window, windows: told.append(window),
        )
    )
    assert [result.picture for result in results] == reader.pictures
    assert results[3].problems == ["there is no such picture"] and results[5].problems == ["this picture is cut short"]
    assert not results[3].made and not results[5].made
    whole = Runner(network, CPU)
    for number, result in enumerate(results):
        if not result.problems:
            expected = whole.logits(blobs(*SIZES[number], seed=number)[None])(0)
            assert np.allclose(result.made[kept], expected, atol=1e-3), number
    assert told == list(range(1, len(told) + 1)) and len(told) > 1, "one of them went in windows"


def test_a_problem_of_one_output_does_not_keep_the_others_from_the_picture(network):
    class Fails(Output):
        def make(self, prediction):
            if prediction.picture.name.name == "1":
                raise UserError("this one cannot be made")

    class Last(Output):
        def make(self, prediction):
            return int(prediction.mask.sum())

    reader, failing, last = Drawn([(40, 60)] * 3), Fails(), Last()
    results = predict_pictures(reader.pictures, Runner(network, CPU), reader, Decision(), [failing, last], threads=2)
    problems = []
    for result in results:
        assert isinstance(result.made[last], int) and (failing in result.made) == (not result.problems)
        problems.append(result.problems)
    assert problems == [[], ["this one cannot be made"], []]


def test_an_output_that_is_not_a_number_is_told(network):
    class Broken(Runner):
        def _run(self, images):
            return super()._run(images) * float("nan")

    for sizes in ([(40, 60)], [(150, 130)]):
        reader = Drawn(sizes)
        (result,) = predict_pictures(
            reader.pictures, Broken(network, CPU, window=100), reader, Decision(), [Logits()], threads=1
        )
        assert "0: the network's output is not a number" in result.problems[0] and not result.made


@pytest.mark.parametrize("own_size, kind", [((150, 130), BandedPrediction), ((75, 65), None)])
def test_classes_of_a_picture_in_windows_are_decided_band_by_band(classes_network, own_size, kind):
    """At its own size, so that its logits are never in memory together; at another one they must be, to be resized."""

    class Kind(Output):
        map_bits = 8

        def make(self, prediction):
            maps = np.stack(list(prediction.probabilities(8)))
            return type(prediction), prediction.mask, maps

    reader, output = Drawn([(40, 60), (150, 130)], [(40, 60), own_size]), Kind()
    small, large = predict_pictures(
        reader.pictures, Runner(classes_network, CPU, window=100), reader, Decision(4), [output], threads=1
    )
    kinds = [result.made[output][0] for result in (small, large)]
    assert kinds[0] is not BandedPrediction and (kinds[1] is BandedPrediction) == (kind is BandedPrediction)
    _, mask, maps = large.made[output]
    assert mask.shape == own_size and maps.shape == (4, *own_size) and maps.dtype == np.uint8
    assert (maps.argmax(0) == mask).mean() > 0.9


def test_batches_hold_what_they_may(network, monkeypatch):
    shapes = []
    plain = Runner.logits

    def logits(self, images):
        shapes.append(images.shape[:3])
        return plain(self, images)

    monkeypatch.setattr(Runner, "logits", logits)
    for batch_size, any_size, sizes in ((4, False, [4, 3]), (4, True, [2, 2, 2, 1]), (1, False, [1] * 7)):
        shapes.clear()
        reader, runner = (
            Drawn([(32, 64)] * 7, any_size=any_size),
            Runner(network, CPU, window=64, batch_size=batch_size),
        )
        list(predict_pictures(reader.pictures, runner, reader, Decision(), [], threads=2))
        assert [shape[0] for shape in shapes] == sizes


@pytest.mark.parametrize("size, most", [((40, 60), 1 + 2 * 4), ((150, 130), 1)])
def test_few_pictures_wait_and_of_those_in_windows_one(network, monkeypatch, size, most):
    """Seen from the network, which has one more in hand: those read and not yet there, those there and not yet out."""
    reader, taken, waiting = Drawn([size] * 30), [], []
    plain = Runner._run

    def run(self, images):
        waiting.append(len(reader.begun) - len(taken))
        return plain(self, images)

    monkeypatch.setattr(Runner, "_run", run)
    runner = Runner(network, CPU, window=100)
    for result in predict_pictures(reader.pictures, runner, reader, Decision(), [Logits()], threads=4):
        taken.append(int(result.picture.name.name))
    assert taken == list(range(30)) and max(waiting) <= 2 * most + 1


def test_what_an_output_raises_is_raised_and_what_has_not_begun_is_not_done(network):
    """Also where the reader of the results turns away."""
    made = []

    class Slow(Output):
        def __init__(self, fails):
            self.fails = fails

        def make(self, prediction):
            made.append(prediction.picture)
            time.sleep(0.02)  # so that the rest of the batch still waits
            if self.fails:
                raise OSError("the disk is full")

    def results(fails):
        made.clear()
        reader = Drawn([(32, 32)] * 30, any_size=False)
        runner = Runner(network, CPU, batch_size=30)
        return predict_pictures(reader.pictures, runner, reader, Decision(), [Slow(fails)], threads=1)

    before = threading.active_count()
    with pytest.raises(OSError, match="the disk is full"):
        list(results(fails=True))
    assert len(made) < 20 and threading.active_count() == before
    some = results(fails=False)
    assert next(some).picture.name == Path("0")
    some.close()
    assert len(made) < 20 and threading.active_count() == before


# ---- what logits mean


def test_two_classes_are_decided_as_one_foreground_is():
    """By the difference of their logits."""
    assert not classify(np.ones((2, 4, 6), np.float32), (4, 6)).mask.any(), "of equal ones the first"
    logits = np.random.default_rng(0).normal(0, 3, (2, 40, 60)).astype(np.float32)
    for size in ((40, 60), (123, 77), (20, 200)):
        decided = classify(logits, size)
        lead = resize_image(logits[1] - logits[0], size)
        assert (decided.mask == (lead > 0)).all() and decided.mask.any() and not decided.mask.all()
        _, foreground = probability_maps(logits, decided.lead, 8)
        (alone,) = probability_maps((logits[1] - logits[0])[None], decided.lead, 8)
        sigmoid = 255 / (1 + np.exp(-lead.astype(float)))
        assert (foreground == alone).all() and np.abs(foreground - sigmoid).max() < 0.51


def test_probabilities_of_classes_are_softmax():
    logits = np.random.default_rng(0).normal(0, 40, (5, 30, 40)).astype(np.float32)
    for bits, size in ((8, (30, 40)), (16, (77, 91)), (16, (13, 50))):
        decided = classify(logits, size)
        planes = torch.from_numpy(np.stack([resize_image(plane, size) for plane in logits])).double()
        maps = np.stack(list(probability_maps(logits, decided.lead, bits)))
        most = 2**bits - 1
        assert maps.dtype == (np.uint8 if bits == 8 else np.uint16) and maps.max() == most
        assert np.abs(maps - planes.softmax(0).numpy() * most).max() < 0.5 + 1e-4 * most
        assert (decided.mask == planes.argmax(0).numpy()).mean() > 0.999


def test_windows_of_classes_need_a_strip_of_memory():
    """Not a plane of logits a class, of which there are 30 of 0.4 MB here."""
    torch.manual_seed(0)
    runner = make_runner(UNet(features=(4, 8), out_channels=30).eval(), "cpu", "float32", window=64)
    image = blobs(1400, 70)
    with torch.no_grad():  # so that each is the best somewhere
        runner.network.output_conv.bias -= torch.from_numpy(np.median(runner.logits(image[None, :100])(0), axis=(1, 2)))
    tracemalloc.start()
    try:
        prediction = BandedPrediction(Loaded(None, image.shape[:2], image), runner.planes, Decision(runner.channels))
        for top, logits in runner.bands(image):
            assert logits.untyped_storage().nbytes() < 1e6  # which tracemalloc does not see
            prediction.put(top, logits.numpy())
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert most < 3e6 and len(np.unique(prediction.mask)) > 1
    assert (prediction.mask == runner.logits_in_windows(image).argmax(0)).mean() > 0.9999
