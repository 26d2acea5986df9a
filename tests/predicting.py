"""What the tests of predict.py share: pictures, small networks that predict something, and its command line.

Fixtures; conftest.py makes them known to all tests.
"""

import csv
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

import predict
from parts.masks import MaskRule
from unet import UNet
from utils import save_checkpoint

# Every constant that an expectation may depend on, however somebody has edited them.
EVERY = [
    *(
        "--save-masks",
        "--no-overlays",
        "--no-disagreement",
        "--probabilities",
        "none",
        "--threshold",
        "0.5",
        "--image-size",
        "none",
    ),
    *("--flips", "none", "--window", "768", "--overlap", "none", "--masks", "none", "--mask-foreground", "none"),
    *("--mask-ignore", "none", "--mask-name", "none", "--submission", "none", "--export", "none"),
    *("--submission-order", "rows", "--no-largest", "--min-pixels", "0", "--no-fill-holes"),
    *("--batch-size", "none", "--num-workers", "2", "--device", "cpu", "--precision", "float32"),
]

NAMES = ("0", "road", "a/b", "300")  # of the classes that classes_network tells
COLOURS = (0x102030, 0xFF0000, 0x00FF00, 0xFF)
RULES = dict(
    numbers=MaskRule("numbers", (), (), classes=(0, 3, 8, 300), names=NAMES),
    palette=MaskRule("numbers", (), (), ignored=(9,), classes=(0, 3, 8, 7), names=NAMES, colours=COLOURS),
    colours=MaskRule("colours", (), (), ignored=(0xFFFFFF,), classes=COLOURS, names=NAMES, colours=COLOURS),
)


def blobs(height, width, seed=0):
    """A smooth picture, uint8 (H, W, 3)."""
    small = np.random.default_rng(seed).integers(0, 256, (height // 12 + 2, width // 12 + 2, 3), dtype=np.uint8)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)


def load(path):
    """The pixels of a picture file as they are stored."""
    with Image.open(path) as picture:
        return np.asarray(picture)


def save(path, array):
    """Writes an array as a picture file, in a folder that is made."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def files_in(folder):
    """All files in a folder and below it, but the hidden ones that a run keeps there."""
    return sorted(path for path in folder.rglob("*.*") if not path.name.startswith("."))


def save_pages(path, pictures, **options):
    """Writes PIL images as the pages of one file."""
    first, *rest = (picture.copy() for picture in pictures)  # saving leaves its marks on them
    first.save(path, save_all=True, append_images=rest, **options)


def scores_in(folder, key=lambda row: Path(row["image"]).name):
    """The rows of a scores.csv, by the names of their files; "mean" is the last one."""
    with open(folder / "scores.csv", errors="surrogateescape") as file:
        return {key(row): row for row in csv.DictReader(file)}


def to_images(array):
    """uint8 (H, W, 3) as a batch of one that a network takes."""
    return torch.from_numpy(array).permute(2, 0, 1)[None] / 255


@pytest.fixture(scope="session")
def network():
    """A U-Net with random weights, for which about half of a picture is foreground, and surely so."""
    torch.manual_seed(0)
    network = UNet(features=(8, 16), pads=True).eval()
    with torch.no_grad():
        logits = network(to_images(blobs(96, 128)))
        network.output_conv.bias -= logits.median()
        for parameter in network.output_conv.parameters():
            parameter *= 3 / logits.std()
    return network


@pytest.fixture(scope="session")
def classes_network(network):
    """That U-Net with four random output channels, none of which is the best everywhere."""
    torch.manual_seed(1)
    weights = network.state_dict()
    several = UNet(features=(8, 16), out_channels=4, pads=True).eval()
    weights |= {key: torch.randn(4, *weights[key].shape[1:]) for key in ("output_conv.weight", "output_conv.bias")}
    several.load_state_dict(weights)
    with torch.no_grad():
        logits = several(to_images(blobs(96, 128)))[0].flatten(1)
        several.output_conv.bias -= logits.median(1).values
        for parameter in several.output_conv.parameters():
            parameter *= (5 / logits.std(1)).reshape(-1, *[1] * (parameter.ndim - 1))
    return several


@pytest.fixture(scope="session")
def checkpoint(network, tmp_path_factory):
    """The path of a checkpoint of `network`, trained at 96x128."""
    path = tmp_path_factory.mktemp("run") / "best.pth"
    state = dict(
        state_dict=network.state_dict(),
        network=dict(in_channels=3, out_channels=1, features=[8, 16]),
        image_size=[96, 128],
        epoch=7,
        settings={"MASK_FOREGROUND": None},
    )
    save_checkpoint(state, path)
    return path


@pytest.fixture
def changed(checkpoint, tmp_path):
    """changed(key=value, ...) is the path of that checkpoint with other values in it."""

    def change(**values):
        torch.save(torch.load(checkpoint, weights_only=True) | values, tmp_path / "changed.pth")
        return str(tmp_path / "changed.pth")

    return change


@pytest.fixture
def classes_checkpoint(classes_network, changed):
    """classes_checkpoint(rule, ...) is the path of a checkpoint of `classes_network`, for masks of that MaskRule."""
    architecture = dict(in_channels=3, out_channels=4, features=[8, 16])

    def make(mask_rule=RULES["numbers"], **values):
        state = dict(state_dict=classes_network.state_dict(), network=architecture, mask_rule=mask_rule.to_dict())
        return changed(**state | values)

    return make


@pytest.fixture
def command_line(checkpoint, tmp_path):
    """command_line(inputs, then flags) is predict.py's, with every other constant given too."""

    def complete(*given):
        given = [str(word) for word in given]
        first = next((index for index, word in enumerate(given) if word.startswith("--")), len(given))
        places = ["--checkpoint", str(checkpoint), "--output-dir", str(tmp_path / "out")]
        return [*given[:first], *EVERY, *places, *given[first:]]

    return complete


@pytest.fixture
def call(command_line, tmp_path):
    """call(inputs, then flags) runs predict.main; gives (status, output folder)."""
    return lambda *given: (predict.main(command_line(*given)), tmp_path / "out")


@pytest.fixture
def photos(tmp_path):
    """A tree of pictures: odd sizes, a subfolder, grey, palette, turned by EXIF."""
    folder = tmp_path / "photos"
    (folder / "sub").mkdir(parents=True)
    Image.fromarray(blobs(100, 150)).save(folder / "a.jpg")
    Image.fromarray(blobs(161, 241, 1)).save(folder / "sub" / "b.c.png")
    Image.fromarray(blobs(90, 60, 2)[..., 0]).save(folder / "grey.png")
    Image.fromarray(blobs(64, 80, 3)).quantize(64).save(folder / "palette.gif")
    exif = Image.Exif()
    exif[274] = 6  # to be turned by 90 degrees
    Image.fromarray(blobs(100, 150, 4)).save(folder / "turned.jpg", exif=exif, quality=95)
    (folder / "notes.txt").write_text("no picture")
    return folder
