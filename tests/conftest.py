"""What every test shares: the modules on the path, small data, and the scripts run as a user runs them."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
os.environ["OMP_NUM_THREADS"] = "1"  # networks this small only lose by more; and sums come out the same everywhere
ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

SMALL = [  # a network and images so small that an epoch takes a moment
    *("--image-size", "32", "48", "--features", "4", "8", "--batch-size", "4", "--num-workers", "0"),
    *("--device", "cpu", "--learning-rate", "0.01"),
]


def draw_pairs(images, masks, count, size=(40, 60), first=0):
    """Bright rectangles on dark noise, and their masks; no two alike."""
    images.mkdir(parents=True, exist_ok=True)
    masks.mkdir(parents=True, exist_ok=True)
    for index in range(first, first + count):
        draw = np.random.default_rng(index)
        mask = np.zeros(size, np.uint8)
        top, left = draw.integers(0, size[0] // 2), draw.integers(0, size[1] // 2)
        mask[top : top + size[0] // 3, left : left + size[1] // 3] = 255
        noise = draw.integers(0, 100, (*size, 3), np.uint8)
        Image.fromarray(noise + mask[..., None] // 2).save(images / f"img_{index:03d}.png")
        Image.fromarray(mask).save(masks / f"img_{index:03d}.png")


@pytest.fixture
def prepared(tmp_path):
    """A folder with dataset/augmented_* of 11 training and 5 validation pairs, as train.py expects it."""
    data = tmp_path / "dataset"
    draw_pairs(data / "augmented_train_images", data / "augmented_train_masks", 11)
    draw_pairs(data / "augmented_test_images", data / "augmented_test_masks", 5, first=50)
    return tmp_path


def script(name, *flags, cwd, **keywords):
    """Runs one of the repository's scripts as a user does, in the folder `cwd`."""
    return subprocess.run(
        [sys.executable, str(ROOT / name), *map(str, flags)],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=240,
        **keywords,
    )
