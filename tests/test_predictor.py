"""Predictor: predict.py from Python, bit for bit; and several checkpoints, whose probabilities are averaged."""

import os
import pickle
import re
import shutil
import time
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from predicting import RULES, blobs, files_in, load, save, save_pages

import predict
from parts.errors import UserError
from parts.inference import Runner, mean_of_probabilities
from predict import Predictor

CPU = dict(DEVICE="cpu", PRECISION="float32")


@pytest.fixture
def mixed(tmp_path):
    """A folder with a picture of each kind, of odd sizes."""
    folder = tmp_path / "mixed"
    image = blobs(101, 67)
    save(folder / "grey.png", image[..., 0])
    save(folder / "alpha.png", np.dstack([image, image[..., :1]]))
    save(folder / "grey-alpha.png", image[..., :2])
    save(folder / "deep.png", image[..., 0].astype(np.uint16) * 200 + 77)
    cv2.imwrite(str(folder / "deep-rgb.png"), image.astype(np.uint16) * 200 + 77)
    save(folder / "a.jpg", blobs(382, 511))  # which is decoded at a half for 96x128
    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray(image).save(folder / "turned.jpg", exif=exif)
    Image.fromarray(image).save(folder / "turned-too.webp", exif=exif, lossless=True)
    Image.fromarray(image).quantize(32).save(folder / "palette.png")
    save(folder / "deep-tiff.tif", image[..., 1].astype(np.uint16) * 200 + 77)
    save(folder / "dot.png", image[:1, :3])
    return folder


def pixels_of(path):
    """A picture as the libraries give it to somebody who reads it himself."""
    if path.name == "deep-rgb.png":
        return cv2.imread(str(path), cv2.IMREAD_UNCHANGED)[..., ::-1]
    with Image.open(path) as picture:
        upright = ImageOps.exif_transpose(picture)
        array = np.asarray(upright.convert("RGB") if upright.mode == "P" else upright)
    return array.astype(np.uint16) if array.dtype == np.int32 else array


def flags_of(constants):
    words = []
    for name, value in constants.items():
        words += [f"--{name.lower().replace('_', '-')}", *map(str, value if isinstance(value, tuple) else [value])]
    return words


OWN = dict(IMAGE_SIZE="own", WINDOW=64)
CROPPED = dict(IMAGE_SIZE=(64, 80), WINDOW=64, OVERLAP=16)
WAYS = [  # the encoding of classes, or None for one foreground; constants; the range of values in training
    (None, {}, None),
    (None, dict(FLIPS="hv", THRESHOLD=0.3, MIN_PIXELS=60), None),
    pytest.param(None, OWN, None, marks=pytest.mark.slow),
    (None, CROPPED, (2000, 50000)),
    ("numbers", CROPPED, (2000, 50000)),
    pytest.param("palette", OWN | dict(MIN_PIXELS=60), None, marks=pytest.mark.slow),
    ("colours", {}, None),
]


@pytest.mark.parametrize("kind, constants, value_range", WAYS)
def test_a_predictor_gives_what_predict_writes(
    mixed, call, changed, classes_checkpoint, tmp_path, kind, constants, value_range
):
    path, endings = changed(image_range=value_range), [""]
    if value_range:
        save(mixed / "float.tif", blobs(40, 50)[..., 0] * np.float32(200.5))
    if kind:
        path = classes_checkpoint(RULES[kind], image_range=value_range)
        endings = ["_0", "_road", "_a_b", "_300"]
    assert call(mixed, "--checkpoint", path, "--probabilities", 16, *flags_of(constants))[0] == 0
    predictor, out = Predictor(path, **CPU, **constants), tmp_path / "out"
    for picture in mixed.iterdir():
        written, mask = load(out / f"{picture.stem}.png"), predictor(picture)
        assert mask.dtype == written.dtype and np.array_equal(mask, written), picture.name
        if picture.name != "a.jpg":  # of which predict.py decodes a part alone
            assert np.array_equal(predictor(pixels_of(picture)), written), picture.name
        shares = predictor.probabilities(picture)
        maps = np.stack([load(out / "probabilities" / f"{picture.stem}{ending}.png") for ending in endings])
        assert shares.dtype == np.float32 and np.abs(shares * 65535.0 - maps).max() <= 0.52, picture.name


def test_pages_constants_and_what_is_refused(mixed, checkpoint, changed, tmp_path, monkeypatch):
    save_pages(tmp_path / "stack.tif", [Image.fromarray(blobs(60, 90, number)) for number in range(2)])
    predictor = Predictor(checkpoint, **CPU)
    for page in range(2):
        assert np.array_equal(predictor(str(tmp_path / "stack.tif"), page), predictor(blobs(60, 90, page)))
    grey = blobs(60, 90)[..., 0]
    assert np.array_equal(pickle.loads(pickle.dumps(predictor))(grey), predictor(grey))
    monkeypatch.setattr("predict.THRESHOLD", 1 - 1e-9)
    assert predictor(blobs(60, 90)).any() and not Predictor(checkpoint, **CPU)(blobs(60, 90)).any()
    for attempt, words in (
        (lambda: Predictor(checkpoint, flips="h"), "flips: Predictor takes"),
        (lambda: Predictor(checkpoint, FLIP="h"), "Is FLIPS meant"),
        (lambda: Predictor(checkpoint, FLIPS="x"), "FLIPS = 'x'"),
        (lambda: Predictor(checkpoint, THRESHOLD="auto"), "let predict.py find it"),
        (lambda: Predictor("nosuch.pth"), "no such checkpoint"),
        (lambda: Predictor(checkpoint, CHECKPOINT=checkpoint), "checkpoints twice"),
        (lambda: Predictor(""), "CHECKPOINT = .*: a path, or several"),
        (lambda: predictor("nosuch.jpg"), "nosuch.jpg"),
        (lambda: predictor([]), "takes a file, files or an array, not list"),
        (lambda: predictor(tmp_path / "stack.tif", 2), r"stack.tif: has no page 2; the first one is 0\."),
        (lambda: predictor(tmp_path / "stack.tif", -1), "has no page -1"),
        (lambda: predictor.export(tmp_path / "model.tflite"), "model.tflite: .* ends in .pt2 or .onnx"),
        (lambda: Predictor(checkpoint, checkpoint, **CPU).export("model.pt2"), "EXPORT writes one network"),
        (lambda: predictor(np.zeros((2, 3, 4, 5), np.uint8)), r"shape \(2, 3, 4, 5\)"),
        (lambda: predictor(np.zeros((0, 3), np.uint8)), r"shape \(0, 3\)"),
        (lambda: predictor(np.zeros((2, 3), np.float32)), "array of float32"),
        (lambda: Predictor(changed(image_range=(0, 1)))(np.full((2, 3), np.nan)), "array of float64 with NaN"),
    ):
        with pytest.raises(UserError, match=words):
            attempt()


def test_threads_get_what_one_thread_gets_in_any_folder(mixed, checkpoint, tmp_path, monkeypatch):
    """And one at a time is in the networks, which are made ready once."""
    (mixed / "a.jpg").unlink()  # which is large
    pictures = [*mixed.iterdir()] * 2
    alone = Predictor(checkpoint, **CPU, **OWN)
    expected = [alone(picture) for picture in pictures]
    (tmp_path / "run").mkdir()
    shutil.copy(checkpoint, tmp_path / "run" / "best.pth")
    monkeypatch.chdir(tmp_path / "run")
    predictor, at_once, most, made = Predictor("best.pth", **CPU, **OWN), [], [], []
    monkeypatch.chdir(mixed)

    def slow(*given, real=predict.make_runner, **options):
        made.append(given)
        time.sleep(0.05)
        return real(*given, **options)

    def run(self, images, real=Runner._run):
        at_once.append(images)
        most.append(len(at_once))
        logits = real(self, images)
        at_once.pop()
        return logits

    monkeypatch.setattr(predict, "make_runner", slow)
    monkeypatch.setattr(Runner, "_run", run)
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(predictor, [picture.name for picture in pictures]))
    assert all(map(np.array_equal, results, expected)) and len(made) == 1 and max(most) == 1


def test_a_device_without_memory_is_told(checkpoint, monkeypatch):
    def fail(self, images):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Runner, "_run", fail)
    predictor = Predictor(checkpoint, **CPU)
    for _ in range(2):  # the next picture is let in
        with pytest.raises(UserError, match="The device has run out of memory. Lower BATCH_SIZE"):
            predictor(blobs(64, 64))


# ---- several checkpoints


@pytest.fixture
def others(network, classes_network, changed, classes_checkpoint, tmp_path):
    """others(classes, ...) is the path of a checkpoint of another network, with other values in it."""

    def make(classes=False, name="other.pth", **values):
        weights = (classes_network if classes else network).state_dict()
        draw = torch.Generator().manual_seed(3)
        noise = torch.randn(weights["output_conv.weight"].shape, generator=draw)
        weights |= {"output_conv.weight": weights["output_conv.weight"] + noise * weights["output_conv.weight"].std()}
        path = (classes_checkpoint if classes else changed)(state_dict=weights, **values)
        os.rename(path, tmp_path / name)
        return str(tmp_path / name)

    return make


@pytest.mark.parametrize("classes", [False, True])
def test_of_several_checkpoints_the_probabilities_are_averaged(
    mixed, call, checkpoint, classes_checkpoint, others, tmp_path, capsys, classes
):
    """And how far they are apart is measured, also in windows, and of classes band by band."""
    paths = [others(classes), str(checkpoint)]
    if classes:
        paths[1] = classes_checkpoint()
    for name in ("a.jpg", "alpha.png", "grey-alpha.png", "deep.png", "deep-tiff.tif", "turned.jpg", "turned-too.webp"):
        (mixed / name).unlink()
    ways = dict(IMAGE_SIZE="own", FLIPS="h", WINDOW=64)
    alone, both = [Predictor(path, **CPU, **ways) for path in paths], Predictor(*paths, **CPU, **ways)
    assert call("--checkpoint", *paths, mixed, *flags_of(ways), "--disagreement")[0] == 0, "inputs may stand behind"
    told = re.search(r"disagree most.*:\n  (0\.\d+)  (\S+)\n", capsys.readouterr().out)
    means = {}
    for picture in mixed.iterdir():
        one, two = (predictor.probabilities(picture) for predictor in alone)
        np.testing.assert_allclose(both.probabilities(picture), (one + two) / 2, atol=1e-5)
        apart = np.abs(one - two)
        if classes:
            apart = apart.max(0)
        np.testing.assert_allclose(both.disagreement(picture), apart, atol=1e-4)
        drawn = load(tmp_path / "out" / "disagreement" / f"{picture.stem}.png")
        assert drawn.dtype == np.uint8 and np.abs(drawn - 255 * apart).max() < 0.6
        means[str(picture)] = apart.mean()
        assert np.array_equal(both(picture), load(tmp_path / "out" / f"{picture.stem}.png"))
    assert min(means.values()) > 0.01
    assert told[2] == max(means, key=means.get) and float(told[1]) == pytest.approx(max(means.values()), abs=1e-4)
    with pytest.raises(UserError, match="has one network"):
        alone[0].disagreement(picture)


def test_probabilities_near_one_keep_their_order():
    sure = torch.tensor([200.0, -200.0, 60.0]).reshape(1, 1, 1, 3)
    mean = mean_of_probabilities(torch.stack([sure, sure + 1]))
    assert torch.isfinite(mean).all() and mean[0, 0, 0, 0] > mean[0, 0, 0, 2] > 59 and mean[0, 0, 0, 1] < -198


def test_checkpoints_that_cannot_be_averaged_are_refused(
    photos, call, checkpoint, classes_checkpoint, others, tmp_path
):
    for other, words in (
        (others(True, "several.pth"), r"other classes \(CLASSES\)"),
        (others(name="deep.pth", image_range=(0, 1)), r"other ranges of values \(IMAGE_RANGE\)"),
        (others(name="large.pth", image_size=(64, 64)), r"other sizes of images \(IMAGE_SIZE"),
    ):
        with pytest.raises(UserError, match=f"best.pth and {re.escape(other)} have {words}"):
            call(photos, "--checkpoint", checkpoint, other)
    call(photos / "a.jpg", "--checkpoint", checkpoint, other, "--image-size", 64, 64)
    with pytest.raises(UserError, match="EXPORT writes one network"):
        call("--checkpoint", checkpoint, other, "--export", "model.pt2")
    assert len(files_in(tmp_path / "out")) == 1
