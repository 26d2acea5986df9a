"""augment.py against the article's way: images a second, both in one run, on 1918x1280 files that it makes.

    python benchmarks/augment.py

The article's way: one process, Pillow, albumentations, every copy saved by Pillow with PNG's default
level. An image counts with its mask. Targets on two cores: 10x from JPEG sources, 4x from PNG sources.
"""

import os
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import albumentations as A
import numpy as np
from PIL import Image

from augment import Choices, make_augmented
from parts.cars import draw_dataset
from parts.errors import run
from parts.files import cores
from parts.names import pair_files
from parts.options import settings_of

PAIRS = 48  # source images; a quarter of them are held out, as originals alone
SERIAL_PAIRS = 6  # of them the article's way does only so many, evenly chosen: it takes two seconds each
IMAGE_SIZE = (1280, 1918)  # height and width of the sources, Carvana's by default

_TARGETS = {"JPEG": 10, "PNG": 4}


def article(pairs, folder):
    """The article's four copies of each pair, as PNG; images a second."""
    transforms = [A.HorizontalFlip(p=1.0), A.VerticalFlip(p=1.0), A.GridDistortion(p=1.0)]
    start = time.perf_counter()
    for pair in pairs:
        image = np.array(Image.open(pair.image).convert("RGB"))
        mask = np.array(Image.open(pair.mask).convert("L"))
        results = [{"image": image, "mask": mask}] + [apply(image=image, mask=mask) for apply in transforms]
        for number, result in enumerate(results):
            Image.fromarray(result["image"]).save(folder / f"{pair.name}_{number}.png")
            Image.fromarray(result["mask"]).save(folder / f"{pair.name}_{number}_mask.png")
    return 4 * len(pairs) / (time.perf_counter() - start)


def as_png(source, folder):
    """The same photographs and masks as PNG files."""
    for kind in ("train", "train_masks"):
        (folder / kind).mkdir(parents=True)
        for path in sorted((source / kind).iterdir()):
            Image.open(path).save(folder / kind / f"{path.stem}.png", compress_level=1)


def compare(kind, source, work, serial_pairs):
    pairs = pair_files(source / "train", source / "train_masks")
    chosen = [pairs[i] for i in np.linspace(0, len(pairs) - 1, serial_pairs).round().astype(int)]
    (work / f"{kind}-article").mkdir()
    slow = article(chosen, work / f"{kind}-article")
    start = time.perf_counter()
    done = make_augmented(
        source / "train", source / "train_masks", work / f"{kind}-ours", choices=Choices(val_images=0.25)
    )
    whole = done.total / (time.perf_counter() - start)
    ours = done.total / done.seconds
    print(
        f"{kind:>5}: the article's way {slow:6.2f} images/s; augment.py {ours:7.2f} ({ours / slow:5.1f}x), "
        f"with the checks before and the preview after {whole:7.2f} ({whole / slow:5.1f}x, target {_TARGETS[kind]}x)"
    )


def main():
    s = settings_of(globals())
    print(f"{s.PAIRS} pairs of {s.IMAGE_SIZE[1]}x{s.IMAGE_SIZE[0]}, {cores()} cores")
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        draw_dataset(folder / "jpeg", -(-s.PAIRS // 16), 16, s.IMAGE_SIZE, progress=False)
        as_png(folder / "jpeg", folder / "png")
        compare("JPEG", folder / "jpeg", folder, s.SERIAL_PAIRS)
        compare("PNG", folder / "png", folder, s.SERIAL_PAIRS)


if __name__ == "__main__":
    run(main)
