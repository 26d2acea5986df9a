"""Audits a dataset drawn for it, and sets the seconds against those of decoding every file once.

    python benchmarks/audit.py --pairs 5000

Images are JPEG (or PNG), masks Carvana's kind of GIF. Decoding is read_image and read_mask at full size, in as
many processes as the audit has. They take turns, so that other work on the machine falls on both.
"""

import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from parts.audit import audit  # noqa: E402
from parts.errors import run  # noqa: E402
from parts.files import parallel_map  # noqa: E402
from parts.images import read_image  # noqa: E402
from parts.masks import MaskRule, read_mask  # noqa: E402
from parts.names import pair_files  # noqa: E402
from parts.options import settings_of  # noqa: E402

PAIRS = 5000  # images, each with its mask
SIDE = 512  # pixels, height and width
FORMAT = "jpg"  # of the images; png is slower to decode
ROUNDS = 3  # how often each of the two is timed; the fastest counts
NUM_WORKERS: int | None = None  # processes; None: one a core


def draw(item):
    """One pair: smooth noise with an ellipse on it."""
    folder, index, side, suffix = item
    random = np.random.default_rng(index)
    coarse = random.integers(0, 256, (24, 24, 3), np.uint8)
    image = cv2.resize(coarse, (side, side), interpolation=cv2.INTER_CUBIC)
    image = cv2.add(image, random.integers(0, 16, image.shape, np.uint8))
    mask = np.zeros((side, side), np.uint8)
    centre, axes = (random.integers(side // 4, 3 * side // 4, 2).tolist() for _ in range(2))
    cv2.ellipse(mask, centre, [axis // 2 for axis in axes], float(random.uniform(0, 180)), 0, 360, 255, -1)
    image[mask > 0] //= 2
    Image.fromarray(image).save(folder / "images" / f"{index:05d}.{suffix}", quality=90)
    Image.fromarray(mask).save(folder / "masks" / f"{index:05d}_mask.gif")


def decode_pair(pair):
    read_image(pair.image)
    read_mask(pair.mask, MaskRule())


def timed(function, *given, **named):
    start = time.perf_counter()
    function(*given, **named)
    return time.perf_counter() - start


def decode_all(pairs, num_workers):
    for _ in parallel_map(decode_pair, pairs, num_workers):
        pass


def main(argv=None):
    s = settings_of(globals(), argv)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        folders = folder / "images", folder / "masks"
        for it in folders:
            it.mkdir()
        for _ in parallel_map(draw, [(folder, index, s.SIDE, s.FORMAT) for index in range(s.PAIRS)], s.NUM_WORKERS):
            pass
        pairs = pair_files(*folders)
        named = dict(sheet=folder / "sheet.png", num_workers=s.NUM_WORKERS)
        audits, decodings = [], []
        for number in range(s.ROUNDS):
            cache = folder / f"audit{number}.json"
            audits.append(timed(audit, folders, cache=cache, **named))
            decodings.append(timed(decode_all, pairs, s.NUM_WORKERS))
        second = timed(audit, folders, cache=cache, **named)
    print(f"{s.PAIRS:,} pairs of {s.SIDE}x{s.SIDE}, {s.FORMAT} and gif")
    print(f"  audit   {min(audits):6.2f} s  ({', '.join(f'{it:.2f}' for it in audits)})")
    print(f"  decode  {min(decodings):6.2f} s  ({', '.join(f'{it:.2f}' for it in decodings)})")
    print(f"  ratio   {min(audits) / min(decodings):6.2f}    audit : decoding once")
    print(f"  second audit of the unchanged set {second:.2f} s")


if __name__ == "__main__":
    run(main)
