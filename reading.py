"""Which picture files lie in a folder, which mask belongs to which image, and what image a file holds."""

import os
import re
import unicodedata
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import cv2

from decoding import UnusableFile, decode, image_size, plain_png, rgb, shown
from errors import UserError

__all__ = [
    "CARVANA_GROUP",
    "COPIES",
    "HOW_TO_GET_CARVANA",
    "SUFFIXES",
    "Listing",
    "Pair",
    "UnusableFile",
    "fits_group",
    "group_of",
    "image_size",
    "list_pictures",
    "mask_stems",
    "match",
    "match_all",
    "list_both",
    "pair_files",
    "read_image",
    "resize_image",
    "shown",
    "source_stem",
]

CARVANA_GROUP = r"([0-9a-f]{12})_\d+"  # a car's twelve hex digits, before the number of the view
HOW_TO_GET_CARVANA = """\
To get Carvana's photographs: sign in to Kaggle, accept the rules of the competition
carvana-image-masking-challenge, download train.zip and train_masks.zip, and unpack both into dataset/,
which gives dataset/train/ and dataset/train_masks/. Then: python augment.py && python train.py
For images of your own: python augment.py --img-dir IMAGES --mask-dir MASKS
To try everything without any data: python train.py --demo"""
COPIES = ("hflip", "vflip", "grid")  # what augment.py appends to the name of a copy
MASK_ENDINGS = ("_mask", ".mask")  # which a mask's stem may have over its image's
SUFFIXES = (  # no .jp2, whose decoder takes some files that are cut short for whole
    *(".avif", ".bmp", ".gif", ".jfif", ".jpeg", ".jpg", ".pbm", ".pgm"),
    *(".png", ".pnm", ".ppm", ".tga", ".tif", ".tiff", ".webp"),
)


@dataclass(frozen=True)
class Listing:
    """`pictures` sorted by name; `left_out`: hidden files, folders and what is no picture by its name."""

    pictures: list
    left_out: list


@dataclass(frozen=True)
class Pair:
    name: str
    image: Path
    mask: Path


def list_pictures(folder):
    """The Listing of `folder`. UserError: there is none, it may not be read, it holds no picture."""
    folder = Path(folder)
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except FileNotFoundError:
        raise UserError(f"{shown(folder)}: there is no such folder. Check its name, or make it and fill it.") from None
    except NotADirectoryError:
        raise UserError(f"{shown(folder)}: is a file. Give the folder that the pictures lie in.") from None
    except OSError as error:
        raise UserError(
            f"{shown(folder)}: cannot be read ({error.strerror}). Change its permissions, or give another folder."
        ) from None
    pictures, left_out = [], []
    for entry in entries:
        usable = Path(entry.name).suffix.lower() in SUFFIXES and not entry.name.startswith(".") and not _is_dir(entry)
        (pictures if usable else left_out).append(folder / entry.name)
    if not pictures:
        others = f" ({len(left_out)} others are left out)" if left_out else ""
        raise UserError(f"{shown(folder)}: holds no pictures{others}. Put some there, or give another folder.")
    return Listing(pictures, left_out)


def _is_dir(entry):
    try:
        return entry.is_dir()
    except OSError:  # a symbolic link that leads to itself; reading it will say so
        return False


def mask_stems(path):
    """The stems of images that a mask may belong to: a_mask.png is the mask of a_mask, or of a."""
    stem = unicodedata.normalize("NFC", Path(path).stem)  # macOS writes accents in two characters
    return [stem] + [stem[: -len(end)] for end in MASK_ENDINGS if stem.endswith(end) and stem != end]


def source_stem(stem):
    """The stem of the file that a copy by augment.py was made from; another stem stays itself."""
    for copy in COPIES:
        if stem.endswith(f"_{copy}"):
            return stem[: -len(copy) - 1]
    return stem


def group_of(stem, pattern=CARVANA_GROUP):
    """What an image shows, by its name: images of one group must stand on one side of a split.

    `pattern` is a regular expression for the beginning of the name; its first group counts, or all that
    it matches. A stem that it does not match is a group of its own.
    """
    stem = source_stem(stem)
    found = fits_group(stem, pattern)
    if not found:
        return stem
    return found[1] if found.re.groups and found[1] is not None else found[0]


def fits_group(stem, pattern):
    """The match of `pattern` at the beginning of a stem, or None. UserError: it is no regular expression."""
    try:
        return re.match(pattern, source_stem(stem))
    except re.error as error:
        raise UserError(f"GROUP = {pattern!r}: is no regular expression ({error}). Mend it.") from None


def pair_files(img_dir, mask_dir):
    """The Pairs of two folders, sorted by name. UserError names every file that has no partner, or several."""
    return match(*list_both(img_dir, mask_dir))


def list_both(img_dir, mask_dir):
    """The Listings of images and masks; in one folder for both, masks are what ends in _mask."""
    images = list_pictures(img_dir)
    if not os.path.isdir(mask_dir) or not os.path.samefile(img_dir, mask_dir):
        return images, list_pictures(mask_dir)
    masks = [path for path in images.pictures if len(mask_stems(path)) > 1]
    if not masks:
        raise UserError(
            f"{shown(img_dir)}: is given both for images and for masks, and no file there ends in _mask. Give the "
            "folder of the masks, or name them like a_mask.png."
        )
    rest = [path for path in images.pictures if path not in set(masks)]
    return Listing(rest, images.left_out), Listing(masks, [])


def match(images, masks):
    """The Pairs of two Listings."""
    pairs, faults = match_all(images, masks)
    if faults:
        raise UserError("\n".join(str(fault) for fault in faults))
    return pairs


def match_all(images, masks):
    """(Pairs, UnusableFiles): all that fit, and one fault for each file that does not."""
    by_stem, by_exact = defaultdict(list), defaultdict(list)
    for path in images.pictures:
        by_exact[unicodedata.normalize("NFC", path.stem)].append(path)
    for path in masks.pictures:
        stems = mask_stems(path)
        # a_mask.png is the mask of an image a_mask where there is one, and of a otherwise
        mine = stems[0] if stems[0] in by_exact else stems[-1]
        by_stem[mine].append(path)
    pairs, faults = [], []
    for stem, found in sorted(by_exact.items()):
        partners = by_stem.pop(stem, [])
        if len(found) > 1 or len(partners) > 1:
            names = ", ".join(shown(path) for path in found + partners)
            faults.append(
                UnusableFile(found[0], f"it is not clear which belong together: {names}", "Keep one image and one mask")
            )
        elif not partners:
            faults.append(UnusableFile(found[0], "has no mask", f"Add {shown(stem)}.png or the like, or remove it"))
        else:
            pairs.append(Pair(stem, found[0], partners[0]))
    for stem, partners in sorted(by_stem.items()):
        faults += [UnusableFile(path, "is the mask of no image", f"Add the image {shown(stem)}, or remove it")
                   for path in partners]
    return sorted(pairs, key=lambda pair: pair.name), faults


def read_image(path, size=None):
    """The picture in a file, uint8 (H, W, 3) in RGB, upright, at `size` = (height, width) if given.

    16-bit greys keep their upper 8 bits; transparency is dropped. Shrinking averages areas (a JPEG of
    four times the size or more halves itself first), enlarging is linear. UnusableFile.
    """
    array = plain_png(path) if os.fspath(path).lower().endswith(".png") else None
    if array is None:
        # 2n - 1, because a JPEG of 1918 columns halves to 959, which is near enough to twice 480
        decoded = decode(path, size and (2 * size[0] - 1, 2 * size[1] - 1))
        array = rgb(decoded.picture, path)
    return array if size is None else resize_image(array, size)


def resize_image(array, size):
    """`array` (H, W) or (H, W, C) at `size` = (height, width): areas averaged, or linearly enlarged."""
    (height, width), (tall, wide) = size, array.shape[:2]
    if height < tall or width < wide:
        array = cv2.resize(array, (min(width, wide), min(height, tall)), interpolation=cv2.INTER_AREA)
    if array.shape[:2] != (height, width):
        array = cv2.resize(array, (width, height), interpolation=cv2.INTER_LINEAR)
    return array
