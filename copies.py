"""The files that augment.py makes of one pair: the original, its flips, its grid distortion, and their masks."""

import hashlib
import os
import shutil
import unicodedata
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # or the import waits for the network

import albumentations as A
import cv2
from PIL import Image

from decoding import decode, rgb
from errors import UserError
from files import write_whole
from masks import MaskRule, read_mask
from reading import COPIES, UnusableFile, shown

TRAIN, TEST = "augmented_train", "augmented_test"
FOLDERS = [f"{side}_{kind}" for side in (TRAIN, TEST) for kind in ("images", "masks")]
JPEG_SUFFIXES = (".jpg", ".jpeg", ".jfif")


@dataclass(frozen=True)
class Item:
    """A pair and the files to make of it, below the output folder: images, then as many masks."""

    image: Path
    mask: Path
    name: str
    files: list


def plan(train, val):
    """The Items of all pairs; UserError where two of them would write one file."""
    items, taken = [], {}
    for side, pairs in ((TRAIN, train), (TEST, val)):
        for pair in pairs:
            suffix = pair.image.suffix if pair.image.suffix.lower() in JPEG_SUFFIXES else ".png"
            stems = [pair.image.stem] + [f"{pair.image.stem}_{copy}" for copy in COPIES if side == TRAIN]
            files = [f"{side}_images/{stem}{suffix}" for stem in stems] + [f"{side}_masks/{stem}.png" for stem in stems]
            items.append(Item(pair.image, pair.mask, pair.name, files))
            for stem in stems:
                other = taken.setdefault((side, stem.lower()), pair.image)  # Windows and macOS ignore case
                if other is not pair.image:
                    raise UserError(
                        f"{shown(other)} and {shown(pair.image)} would both become {side}_images/{shown(stem)}. "
                        "Rename one of them, or remove it if it is a copy that augment.py made."
                    )
    return items


def all_copies(image, mask, name, seed):
    """([4 images], [4 masks]): the originals and their COPIES; the grid's draw is that of (seed, name)."""
    grid = A.GridDistortion(p=1.0)
    key = f"{seed}/{unicodedata.normalize('NFC', name)}".encode("utf-8", "surrogateescape")
    grid.set_random_seed(int.from_bytes(hashlib.sha256(key).digest()[:4], "big"))
    distorted = grid(image=image, mask=mask)
    images = [image, cv2.flip(image, 1), cv2.flip(image, 0), distorted["image"]]
    return images, [mask, cv2.flip(mask, 1), cv2.flip(mask, 0), distorted["mask"]]


def read_pair(image, mask, rule, decoded=None):
    pixels, inside = rgb((decoded or decode(image)).picture, image), read_mask(mask, rule)
    if pixels.shape[:2] != inside.shape:
        sizes = ["×".join(map(str, it.shape[:2])) for it in (inside, pixels)]
        what = f"is {sizes[0]} (height × width), but its image {shown(image)} {sizes[1]}"
        raise UnusableFile(mask, what, "Export one of them again, or remove both")
    return pixels, inside


@dataclass(frozen=True)
class Maker:
    """Makes the files of one item; it travels to the worker processes."""

    output_dir: Path
    rule: MaskRule
    quality: int
    seed: int

    def __call__(self, item):
        """None, or the UnusableFile that keeps this item from being made."""
        try:
            decoded = decode(item.image)
            image, mask = read_pair(item.image, item.mask, self.rule, decoded)
            if len(item.files) > 2 and not (min(image.shape[:2]) >= 5 and max(image.shape[:2]) < 32767):
                size = "×".join(map(str, image.shape[:2]))
                what = f"is {size}, and grid distortion takes sides of 5 to 32,766 pixels"
                raise UnusableFile(item.image, what, "Cut it into tiles, or remove it and its mask")
        except UnusableFile as fault:
            return fault
        half = len(item.files) // 2
        targets = [self.output_dir / file for file in item.files]
        images, masks = [image], [mask]
        if half > 1:
            images, masks = all_copies(image, mask, item.name, self.seed)
        for number, (target, pixels) in enumerate(zip(targets[:half], images)):
            if number == 0 and _can_be_copied(decoded, target):
                _copy(item.image, target)
            else:
                self._write_image(target, pixels)
        for target, inside in zip(targets[half:], masks):
            _write_mask(target, inside)
        return None

    def _write_image(self, target, pixels):
        pixels = cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR)
        if target.suffix.lower() in JPEG_SUFFIXES:
            data = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, self.quality])[1]
        else:  # photographs have few repetitions to find: Huffman codes alone are fastest and as small
            options = [cv2.IMWRITE_PNG_COMPRESSION, 1, cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_HUFFMAN_ONLY]
            data = cv2.imencode(".png", pixels, options)[1]
        # No flush to disk: a killed process loses nothing of what it has written, only a power cut would.
        write_whole(target, lambda file: file.write(data), sync=False)


def _can_be_copied(decoded, target):
    """Whether any program reads from the file itself what was decoded.

    Not where EXIF turns it, where more frames follow, or where CMYK, palettes and 16 bits await.
    """
    kind = "JPEG" if target.suffix.lower() in JPEG_SUFFIXES else "PNG"
    plain = decoded.picture.mode in ("RGB", "L") and ";16" not in decoded.raw
    return decoded.format == kind and plain and decoded.turned == 1 and not decoded.frames


def _copy(source, target):
    with open(source, "rb") as original:
        write_whole(target, lambda file: shutil.copyfileobj(original, file, 1 << 20), sync=False)


def _write_mask(target, inside):
    """PNG of one bit a pixel: a third of the time and the bytes, and every reader gives 0 and 255."""
    picture = Image.fromarray(inside.astype(bool))
    write_whole(target, lambda file: picture.save(file, "PNG", compress_level=1), sync=False)
