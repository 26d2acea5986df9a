"""Random small datasets that mix the kinds people bring, what each of them means, and whether the program agrees.

    python tests/random_datasets.py SEED FOLDER    makes that dataset in FOLDER, says what is meant and what comes of it
    python tests/random_datasets.py --seeds 0 1000 makes and checks these, and tells which went wrong

A dataset must train, with exactly the pixels that are meant; or must be refused, in words that name what is wrong;
or either is right, where a person could argue. Never is there another exception than UserError.
"""

import argparse
import io
import re
import shutil
import struct
import sys
import tempfile
import traceback
from collections import Counter
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from dataset import ArrayDataset, ImageDataset  # noqa: E402
from parts.annotations import draw_masks  # noqa: E402
from parts.arrays import Files  # noqa: E402
from parts.audit import audit  # noqa: E402
from parts.errors import UserError, printable  # noqa: E402
from parts.spec import DataSpec  # noqa: E402

IGNORED = 255
# Of Meant.reasons, the first first: where nothing is looked at, or nothing pairs, nothing else is told
UNPAIRED = ("a constant is malformed", "MASK_NAME is wrong", "names are unlike", "strays beside names that differ")
# Told where nothing else is wrong
LAST = (
    *("all of validation", "full of validation", "emptied at IMAGE_SIZE"),
    *("CLASSES is malformed", "MASK_IGNORE is malformed"),
)
FIELDS = {  # of DataSpec
    "MASK_FOREGROUND": "foreground",
    "IMAGE_NAME": "image_name",
    "MASK_NAME": "mask_name",
    "SKIP_UNPAIRED": "skip_unpaired",
    "RESIZE_MASKS": "resize_masks",
    "MASK_IGNORE": "ignore",
    "CLASSES": "classes",
    "OVERLAP": "overlap",
    "IMAGE_RANGE": "image_range",
    "GROUP": "group",
}
CONSTANTS = (*FIELDS, "IMAGE_SIZE")


@dataclass
class Scene:
    """One image and its mask, as they are meant: `labels` (H, W), 0 the background, 1, 2, ... one number an object."""

    image: np.ndarray  # uint8 (H, W, 3); what is written is made of it
    labels: np.ndarray
    place: str  # "" or the subfolder, with a slash
    stem: str


@dataclass
class Sample:
    """What the program should hold of one pair."""

    files: tuple
    pixels: object  # uint8 (H, W, 3), or a function that makes it of (low, high)
    mask: np.ndarray  # uint8 (H, W): {0, 1} or classes; IGNORED
    near: int = 0  # by how much pixels may differ at the file's own size
    lossy: bool = False  # a JPEG, which may be decoded at a part of its size


@dataclass
class Meant:
    """A dataset and what it means.

    `samples`: for each side {name of the pair: Sample}. `constants`: those of the program that are set.
    `reasons`: (why it must be refused, texts of which the message must hold one). `doubts`: why it may be.
    `soft`: masks have soft edges, so that pixels on them may go either way. `words`: what was drawn.
    `within`: where the ends of IMAGE_RANGE = "auto" must lie.
    """

    seed: int
    folders: list
    constants: dict = field(default_factory=dict)
    samples: list = field(default_factory=list)
    reasons: list = field(default_factory=list)
    doubts: list = field(default_factory=list)
    soft: bool = False
    words: list = field(default_factory=list)
    within: tuple = (-np.inf, np.inf)

    @property
    def state(self):
        return "must refuse" if self.reasons else "either" if self.doubts else "must train"


def pick(draw, choices):
    """One of the choices; of a dict, by its weights."""
    weights = list(choices.values()) if isinstance(choices, dict) else [1] * len(choices)
    return list(choices)[draw.choice(len(weights), p=np.array(weights) / sum(weights))]


def chance(draw, share):
    return bool(draw.random() < share)


# ---- images: every writer gives the path, and the pixels that are meant


def save(path, array, mode=None, **keywords):
    """An array as a picture file; parents are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = array if isinstance(array, Image.Image) else Image.fromarray(array)
    if path.suffix.lower() == ".webp":
        keywords = {"lossless": True, "exact": True, **keywords}
    (picture.convert(mode) if mode else picture).save(path, **keywords)
    return path


def grey_of(image):
    return image.astype(np.uint16).sum(2).astype(np.uint16) // 3


def three(grey):
    return np.repeat(np.asarray(grey, np.uint8)[..., None], 3, axis=2)


def write_rgb(draw, base, scene):
    path = base(pick(draw, [".png", ".bmp", ".tif", ".tiff", ".ppm", ".tga", ".webp", ".PNG"]))
    save(path, scene.image)
    return path, scene.image


def write_grey(draw, base, scene):
    grey = grey_of(scene.image).astype(np.uint8)
    return save(base(pick(draw, [".png", ".bmp", ".tif", ".pgm", ".tga"])), grey), three(grey)


def write_rgba(draw, base, scene):
    alpha = draw.integers(0, 256, scene.labels.shape, np.uint8) if chance(draw, 0.5) else scene.labels * 0 + 255
    array = np.dstack([scene.image, alpha.astype(np.uint8)])
    return save(base(pick(draw, [".png", ".tif", ".tga", ".webp"])), array), scene.image


def write_la(draw, base, scene):
    grey = grey_of(scene.image).astype(np.uint8)
    alpha = draw.integers(0, 256, grey.shape, np.uint8)
    return save(base(".png"), Image.merge("LA", [Image.fromarray(grey), Image.fromarray(alpha)])), three(grey)


def write_palette(draw, base, scene):
    picture = Image.fromarray(scene.image).quantize(int(draw.integers(4, 200)))
    colours = np.array(picture.getpalette(), np.uint8).reshape(-1, 3)
    keywords = {"transparency": 0} if chance(draw, 0.3) else {}
    path = base(pick(draw, [".png", ".gif", ".bmp", ".tif"]))
    return save(path, picture, **(keywords if path.suffix in (".png", ".gif") else {})), colours[np.asarray(picture)]


def write_bit(draw, base, scene):
    bits = grey_of(scene.image) > 60
    return save(base(pick(draw, [".png", ".tif", ".pbm", ".bmp"])), Image.fromarray(bits)), three(bits * 255)


def write_jpeg(draw, base, scene):
    picture = Image.fromarray(scene.image).convert(pick(draw, {"RGB": 3, "L": 1, "CMYK": 1}))
    keywords = dict(quality=int(draw.integers(60, 98)), progressive=chance(draw, 0.3))
    path = save(base(pick(draw, [".jpg", ".jpeg", ".JPG", ".jfif"])), picture, format="JPEG", **keywords)
    with Image.open(path) as picture:
        return path, np.asarray(picture.convert("RGB"))


# EXIF's orientation: what a viewer does to the stored picture, as of numpy
UPRIGHT = {
    2: np.fliplr,
    3: lambda a: np.rot90(a, 2),
    4: np.flipud,
    5: lambda a: np.transpose(a, (1, 0, 2)),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(np.transpose(a, (1, 0, 2)), 2),
    8: lambda a: np.rot90(a, 1),
}
LAID = {**UPRIGHT, 6: UPRIGHT[8], 8: UPRIGHT[6]}  # and back


def write_turned(draw, base, scene, turned=None):
    turned = turned or int(draw.integers(2, 9))
    exif = Image.Exif()
    exif[274] = turned
    path = base(pick(draw, {".jpg": 3, ".png": 1, ".webp": 1, ".tif": 1}))
    stored = np.ascontiguousarray(LAID[turned](scene.image))
    if path.suffix == ".tif":
        save(path, stored, tiffinfo={274: turned})
    else:
        save(path, stored, exif=exif)
    if path.suffix == ".jpg":
        stored = cv2.imread(str(path), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)[..., ::-1]
    return path, np.ascontiguousarray(UPRIGHT[turned](stored))


def scaled(values):
    """The pixels of an image of more than 8 bits by a range (low, high); without one its upper 8 of 16 bits."""

    def pixels(value_range):
        if value_range is None:
            upper = values // 256
        else:
            upper = np.rint(
                np.clip((values.astype(np.float64) - value_range[0]) / (value_range[1] - value_range[0]), 0, 1) * 255
            )
        return three(upper) if values.ndim == 2 else upper.astype(np.uint8)

    return pixels


def write_deep(draw, base, scene, bits=16):
    colour = chance(draw, 0.4)
    values = scene.image if colour else grey_of(scene.image)
    values = values.astype(np.uint16) * 256 + draw.integers(0, 256, values.shape, np.uint16)
    values = (values >> (16 - bits)).astype(np.uint16)
    path = base(pick(draw, [".png", ".tif"]))
    path.parent.mkdir(parents=True, exist_ok=True)
    if colour:
        encoded = cv2.imencode(path.suffix, np.ascontiguousarray(values[..., ::-1]))[1]
        path.write_bytes(encoded.tobytes())
    elif path.suffix == ".tif" and chance(draw, 0.3):
        save(path, Image.fromarray(values.astype(np.int32)))
    else:
        save(path, values)
    return path, scaled(values)


def write_twelve(draw, base, scene):
    return write_deep(draw, base, scene, bits=12)


def write_float(draw, base, scene):
    values = (grey_of(scene.image) / np.float32(255)).astype(np.float32) * pick(draw, [1, 255, 4095])
    return save(base(pick(draw, [".tif", ".tiff"])), values), scaled(values)


def write_marked(draw, base, scene, dtype=np.uint16):
    """Values close to each other, and in the upper rows a mark for no data."""
    low, high, marks = MARKED[dtype]
    values = (low + grey_of(scene.image) / 255 * (high - low)).astype(dtype)
    values[: 1 + len(values) // 6] = pick(draw, marks)
    return save(base(pick(draw, [".tif", ".png"] if dtype == np.uint16 else [".tif"])), values), scaled(values)


def write_marked_floats(draw, base, scene):
    return write_marked(draw, base, scene, np.float32)


MARKED = {np.uint16: (3000, 3200, [65535]), np.float32: (100, 105, [-9999, 3.4e38, -3.4e38])}


def write_lab(draw, base, scene):
    path = save(base(".tif"), Image.fromarray(scene.image, "RGB").convert("CMYK"))
    with Image.open(path) as picture:
        return path, np.asarray(picture.convert("RGB"))


def write_pages(draw, frames, folder, base, values, plain=False):
    """Several pictures as the pages of one file; `values`(base, frame) writes one and gives its path."""
    paths = []
    for at, frame in enumerate(frames):

        def beside(end, at=at):
            return folder / f"page{at}{end.replace('.bmp', '.png')}"  # of which Pillow misreads some

        paths.append(values(beside, frame))
    pages = []
    for path in paths:
        with Image.open(path) as picture:
            picture.load()
            pages.append(picture.copy())
    end = pick(draw, {".tif": 3, ".gif": 1, ".png": 1, ".webp": 1} if plain else [".tif", ".tiff"])
    if end in (".tif", ".tiff"):
        return save(base(end), pages[0], append_images=pages[1:], save_all=True)
    pages = [page.convert("RGB" if end == ".webp" else "L") for page in pages]
    return save(base(end), pages[0], append_images=pages[1:], save_all=True)


IMAGES = {
    write_rgb: 8,
    write_grey: 3,
    write_rgba: 2,
    write_la: 1,
    write_palette: 2,
    write_bit: 0.5,
    write_jpeg: 6,
    write_turned: 3,
    write_deep: 2,
    write_twelve: 0.7,
    write_float: 0.4,
    write_marked: 0.4,
    write_marked_floats: 0.4,
    write_lab: 0.3,
}


# ---- masks


@dataclass
class Encoding:
    """How masks are written in one dataset.

    `write(draw, base, scene)`: writes the file and gives its path. `truth(scene)`: the mask that is meant.
    `between(scene)`: what share of a soft mask's pixels is neither black nor white.
    """

    words: str
    write: object
    truth: object
    constants: dict = field(default_factory=dict)
    reasons: list = field(default_factory=list)
    doubts: list = field(default_factory=list)
    soft: bool = False
    between: object = None


def filled(scene):
    return (scene.labels > 0).astype(np.uint8)


def numbers(array):
    """An array of whole numbers as the picture that holds it."""
    return Image.fromarray(array)


LOSSLESS = [".png", ".tif", ".bmp", ".gif", ".tga", ".pgm"]


def write_white(draw, base, scene):
    """0 and 255 in any of the ways in which that can be saved."""
    white = filled(scene) * np.uint8(255)
    opaque = np.full_like(white, 255)
    way = pick(draw, ["L", "L", "1", "RGB", "RGBA", "LA", "P", "palette"])
    if way == "L":
        return save(base(pick(draw, LOSSLESS)), white)
    if way == "1":
        return save(base(pick(draw, [".png", ".tif", ".bmp", ".pbm"])), Image.fromarray(white > 0))
    if way == "RGB":
        return save(base(pick(draw, [".png", ".bmp", ".tif", ".ppm", ".webp"])), np.dstack([white] * 3))
    if way == "RGBA":
        return save(base(pick(draw, [".png", ".tif", ".webp"])), np.dstack([white] * 3 + [opaque]))
    if way == "LA":
        return save(base(".png"), Image.merge("LA", [Image.fromarray(white), Image.fromarray(opaque)]))
    if way == "P":
        return save(base(pick(draw, [".png", ".gif", ".bmp"])), Image.fromarray(white).convert("P"))
    swapped = chance(draw, 0.5)  # which index is white
    picture = Image.fromarray(filled(scene) ^ np.uint8(swapped), "P")
    picture.putpalette([255, 255, 255, 0, 0, 0] if swapped else [0, 0, 0, 255, 255, 255])
    return save(base(pick(draw, [".png", ".gif", ".bmp"])), picture)


def misread(path):
    """Whether Pillow takes a BMP of 8 bits a pixel for one of 1 bit, as where its palette is black and white."""
    if path.suffix != ".bmp":
        return False
    with Image.open(path) as picture:
        return picture.mode == "1" and path.read_bytes()[28] > 1


def plain_values(draw):
    """Two values, one of which is 0 or black."""
    way = pick(
        draw, {"wrong": 0.3, "white": 6, "one": 3, "grey": 2, "deep": 2, "whole": 1, "inverted": 1, "neither": 1}
    )
    if way == "wrong":
        given = {"MASK_FOREGROUND": pick(draw, ["everything", -3, 1.5, (1, "x"), 77])}
        return Encoding(f"{given}", write_white, filled, given, [("MASK_FOREGROUND is malformed", ["MASK_FOREGROUND"])])
    if way == "white":
        return Encoding("masks of 0 and 255, saved in many ways", write_white, filled)
    if way == "one":
        return Encoding("masks of 0 and 1", lambda d, b, s: save(b(pick(d, LOSSLESS)), filled(s)), filled)
    if way == "grey":
        value = int(draw.integers(2, 255))

        def write(draw, base, scene):
            return save(base(pick(draw, LOSSLESS)), filled(scene) * np.uint8(value))

        return Encoding(f"masks of 0 and {value}", write, filled)
    if way == "deep":
        value = pick(draw, [1, 255, 300, 32768, 65535])

        def write(draw, base, scene):
            return save(base(pick(draw, [".png", ".tif", ".pgm"])), filled(scene).astype(np.uint16) * np.uint16(value))

        return Encoding(f"16-bit masks of 0 and {value}", write, filled)
    if way == "whole":
        value, kind = pick(draw, [1, 255]), pick(draw, [np.int32, np.float32])

        def write(draw, base, scene):
            return save(base(".tif"), filled(scene).astype(kind) * kind(value))

        return Encoding(f"{kind.__name__} masks of 0 and {value}", write, filled)
    if way == "inverted":

        def write(draw, base, scene):
            return save(base(pick(draw, LOSSLESS)), 255 - filled(scene) * np.uint8(255))

        return Encoding("black things on white", write, filled, {"MASK_FOREGROUND": 0})
    one, other = sorted(draw.choice(np.arange(40, 256), 2, replace=False).tolist(), reverse=chance(draw, 0.5))

    def write(draw, base, scene):
        return save(base(pick(draw, LOSSLESS)), np.where(scene.labels > 0, other, one).astype(np.uint8))

    if chance(draw, 0.6):
        return Encoding(f"masks of {one} and {other}, told", write, filled, {"MASK_FOREGROUND": other})
    return Encoding(f"masks of {one} and {other}", write, filled, reasons=[("neither is black", ["MASK_FOREGROUND"])])


def some_colour(draw):
    colour = draw.integers(0, 256, 3)
    colour[draw.integers(0, 3)], colour[draw.integers(0, 3)] = 255, 10
    colour[0] = 200 if len(set(colour.tolist())) == 1 else colour[0]  # no grey
    return tuple(colour.tolist())


def different_colours(draw, count):
    found = []
    while len(found) < count:
        colour = some_colour(draw)
        if colour not in found and len(set(colour)) > 1:
            found.append(colour)
    return found


def packed(colour):
    return colour[0] << 16 | colour[1] << 8 | colour[2]


def two_colours(draw):
    """Palettes and colours of two values."""
    one, other = different_colours(draw, 2)
    black = chance(draw, 0.7)
    one = (0, 0, 0) if black else one
    palette, swapped = chance(draw, 0.5), chance(draw, 0.4)
    told = chance(draw, 0.3 if black else 0.6)
    # In a GIF Pillow leaves out the colours that an empty mask does not use, so that its palette is another one.
    suffixes = [".png", ".bmp", ".tif"] if chance(draw, 0.7) else [".gif"]

    def write(draw, base, scene):
        if not palette:
            array = np.array([one, other], np.uint8)[filled(scene)]
            if chance(draw, 0.3):
                array = np.dstack([array, np.full(array.shape[:2], 255, np.uint8)])
            return save(base(pick(draw, [".png", ".tif", ".webp"])), array)
        picture = Image.fromarray(filled(scene) ^ np.uint8(swapped), "P")
        picture.putpalette([*other, *one] if swapped else [*one, *other])
        return save(base(pick(draw, suffixes)), picture)

    words = f"masks of the colours {one} and {other}" + (" by a palette" if palette else "")
    doubts = ["palettes may differ"] if palette and suffixes == [".gif"] else []
    if black and not told:
        return Encoding(words, write, filled, doubts=doubts)
    value = pick(draw, [other, packed(other)])
    if palette and chance(draw, 0.5):
        value = int(not swapped)
    elif told:
        doubts = []
    if told:
        return Encoding(words + ", told", write, filled, {"MASK_FOREGROUND": value}, doubts=doubts)
    texts = ["MASK_FOREGROUND", *(["with one palette"] if doubts else [])]
    return Encoding(words, write, filled, reasons=[("neither is black", texts)])


def cut_out(draw):
    """The alpha channel is the mask."""
    flat = chance(draw, 0.4)

    def write(draw, base, scene):
        colours = scene.image * 0 + 200 if flat else scene.image
        return save(base(pick(draw, [".png", ".tif", ".webp"])), np.dstack([colours, filled(scene) * np.uint8(255)]))

    if chance(draw, 0.7):
        return Encoding("cut-outs", write, filled, {"MASK_FOREGROUND": "alpha"})
    return Encoding(
        "cut-outs, untold", write, filled, reasons=[("alpha", ["MASK_FOREGROUND", "Save the masks as PNG"])]
    )


def soft_edges(draw):
    """JPEG, JPEG saved as PNG again, or smoothed."""
    way = pick(draw, ["jpeg", "again", "smooth"])
    quality = int(draw.integers(80, 99))

    def grey(scene):
        white = filled(scene) * np.uint8(255)
        if way == "smooth":
            return cv2.GaussianBlur(white, (3, 3), 0)
        file = io.BytesIO()
        Image.fromarray(white).save(file, "JPEG", quality=quality)
        return np.asarray(Image.open(file))

    def write(draw, base, scene):
        if way == "jpeg":
            return save(base(".jpg"), filled(scene) * np.uint8(255), quality=quality)
        return save(base(".png"), grey(scene))

    def truth(scene):
        return (grey(scene) > 127).astype(np.uint8)

    def between(scene):
        return ((grey(scene) > 31) & (grey(scene) < 224)).mean()

    return Encoding(f"soft edges ({way}, quality {quality})", write, truth, soft=True, between=between)


def fractions(draw):
    """Floats from 0 to 1: shares of foreground at edges, or the probabilities of some network."""
    way = pick(draw, ["edges", "probabilities"])
    told = chance(draw, 0.2)

    def share(scene):
        if way == "edges":
            return np.minimum(cv2.GaussianBlur(filled(scene).astype(np.float32), (3, 3), 0), 1)
        noise = np.random.default_rng(scene.labels.size).random(scene.labels.shape, np.float32)
        return np.where(scene.labels > 0, 0.52 + 0.48 * noise, 0.48 * noise).astype(np.float32)

    def write(draw, base, scene):
        return save(base(pick(draw, [".tif", ".tiff"])), share(scene))

    def truth(scene):
        return (share(scene) > 0.5).astype(np.uint8)

    return Encoding(f"fractions: {way}", write, truth, {"MASK_FOREGROUND": 1} if told else {})


def classes_of(draw):
    """Class numbers, a palette of classes or colours of classes, and what of them is asked for."""
    count = int(draw.integers(3, 6))
    way = pick(draw, ["numbers", "numbers", "deep", "palette", "colours"])
    if way == "colours":
        colours = [(0, 0, 0), *different_colours(draw, count - 1)]
        values = [packed(colour) for colour in colours]
    else:
        most = 1000 if way == "deep" else 250
        close = chance(draw, 0.6)
        values = [0, *sorted(draw.choice(np.arange(1, count if close else most), count - 1, replace=False).tolist())]
        colours = [(0, 0, 0), *different_colours(draw, count - 1)]
    rim = way != "colours" and chance(draw, 0.4)  # of 255, between the background and things
    several = chance(draw, 0.5)

    def index(scene):
        """0 ... count - 1, and IGNORED."""
        mask = np.where(scene.labels > 0, (scene.labels - 1) % (count - 1) + 1, 0).astype(np.uint8)
        if rim:
            wide = cv2.dilate(filled(scene), np.ones((3, 3), np.uint8)) > 0
            mask[wide & (scene.labels == 0)] = IGNORED
        return mask

    def write(draw, base, scene):
        mask = index(scene)
        if way == "colours":
            return save(base(pick(draw, [".png", ".bmp", ".tif"])), np.array(colours, np.uint8)[mask])
        table = np.full(256, 255, np.uint16)
        table[:count] = values
        if way == "deep":
            return save(base(pick(draw, [".png", ".tif"])), table[mask])
        picture = Image.fromarray(table[mask].astype(np.uint8))
        if way == "palette":
            entries = np.zeros((256, 3), np.uint8)
            entries[values], entries[255] = colours, (224, 224, 192)
            picture = Image.frombytes("P", picture.size, picture.tobytes())
            picture.putpalette(entries.ravel().tolist())
            return save(base(pick(draw, [".png", ".bmp", ".tif"])), picture)
        return save(base(pick(draw, LOSSLESS)), picture)

    words = f"{count} classes {values} as {way}" + (", a rim of 255" if rim else "")
    ignore = {"MASK_IGNORE": 255} if rim and chance(draw, 0.8) else {}
    if several:
        return ask_classes(draw, words, write, index, values, way, rim, ignore)
    wanted = draw.choice(np.arange(1, count), int(draw.integers(1, count)), replace=False).tolist()
    ask = pick(draw, {"some": 6, "nonzero": 1, "none": 1, "missing": 1})

    def truth(scene):
        mask = index(scene)
        seen = np.isin(mask, wanted) if ask == "some" else mask > 0
        return np.where((mask == IGNORED) & bool(ignore), IGNORED, seen).astype(np.uint8)

    if ask == "some":
        given = [colours[at] if way == "colours" and len(wanted) == 1 else values[at] for at in wanted]
        given = given[0] if len(given) == 1 else tuple(given)
        return Encoding(f"{words}, {given} asked for", write, truth, {"MASK_FOREGROUND": given, **ignore})
    if ask == "nonzero":
        return Encoding(words + ", all but 0", write, truth, {"MASK_FOREGROUND": "nonzero", **ignore})
    if ask == "none":
        return Encoding(words, write, truth, ignore, [("several classes", ["MASK_FOREGROUND"])])
    constants = {"MASK_FOREGROUND": 0x123456 if way == "colours" else 251, **ignore}
    return Encoding(words + ", another asked for", write, truth, constants, [("no such value", ["MASK_FOREGROUND"])])


def ask_classes(draw, words, write, index, values, way, rim, ignore):
    """Of masks of classes, what CLASSES asks for: all, or values in an order of their own."""
    ask = pick(draw, {"all": 3, "list": 3, "names": 3, "one too many": 1, "one too few": 1, "both": 0.3})
    order = draw.permutation(len(values)).tolist()
    given, reasons, doubts = tuple(values[at] for at in order), [], []
    if ask == "all":
        given, present = "all", [*values, 255] if rim and not ignore else values
        order = sorted(range(len(present)), key=lambda at: present[at])
        # what looks like the numbers of single things may be refused
        doubts = ["like instances"] if sorted(present) == list(range(len(present))) else []
    elif ask == "names":
        given = {f"kind {at}": value for at, value in enumerate(given)}
    elif ask == "one too many":
        given = (*given, 0x123456 if way == "colours" else 251)  # which no mask holds
    elif ask == "one too few":
        given, reasons = given[:-1], [("a value is no class", ["CLASSES"])]
    elif ask == "both":
        ignore, reasons = {**ignore, "MASK_FOREGROUND": 1}, [("CLASSES beside another is malformed", ["CLASSES"])]
    if rim and ask != "all" and "MASK_IGNORE" not in ignore:
        reasons = reasons or [("255 is no class", ["CLASSES", "MASK_IGNORE"])]

    def truth(scene):
        table = np.full(256, IGNORED, np.uint8)
        table[order] = range(len(order))
        mask = index(scene)
        if len(order) > len(values):  # 255 is one more class
            mask = np.where(mask == IGNORED, len(values), mask)
        return table[mask]

    return Encoding(f"{words}, CLASSES = {ask}", write, truth, {"CLASSES": given, **ignore}, reasons, doubts)


def instances(draw):
    """Numbers of single things."""
    deep, step = chance(draw, 0.5), int(draw.integers(1, 60))
    told = chance(draw, 0.7)

    def write(draw, base, scene):
        array = scene.labels.astype(np.uint16 if deep else np.uint8) * (step if deep else 1)
        return save(base(pick(draw, [".png", ".tif"])), array)

    if told:
        return Encoding("numbered things", write, filled, {"MASK_FOREGROUND": "nonzero"})
    return Encoding("numbered things, untold", write, filled, reasons=[("several values", ["MASK_FOREGROUND"])])


def mixed(draw):
    """0 and 1 here, 0 and 255 there."""
    turn = iter([1, 255] * 100)

    def write(draw, base, scene):
        return save(base(pick(draw, LOSSLESS)), filled(scene) * np.uint8(next(turn) if scene.labels.any() else 0))

    return Encoding("some of 0 and 1, some of 0 and 255", write, filled, reasons=[("mixed", ["MASK_FOREGROUND"])])


def photographs(draw):
    def write(draw, base, scene):
        return write_rgb(draw, base, scene)[0]

    words = ["MASK_FOREGROUND", "Save the masks as PNG", "seem to be photographs"]
    return Encoding("photographs for masks", write, filled, reasons=[("photographs", words)])


def lone_things(draw):
    """Several files an image, one for each thing of it."""
    constants = {"MASK_NAME": pick(draw, ["{}_*", "{}_obj*", "m*-{}"])}
    rim = chance(draw, 0.4)  # of 255 around each thing, which may lie on another one; the thing itself is 1
    if rim:
        constants["MASK_IGNORE"] = 255

    def ringed(thing):
        thing = thing.astype(np.uint8)
        wide = cv2.dilate(thing, np.ones((11, 11), np.uint8)) > 0
        return np.where(wide & (thing == 0), IGNORED, thing).astype(np.uint8)

    def truth(scene):
        things = [scene.labels == number for number in range(1, scene.labels.max() + 1)] if rim else []
        ignored = [ringed(thing) == IGNORED for thing in things]
        return np.where(np.any(ignored, axis=0) & (scene.labels == 0), IGNORED, filled(scene)).astype(np.uint8)

    def write(draw, base, scene):
        before, after = constants["MASK_NAME"].split("{}")
        for number in range(1, max(scene.labels.max(), 1) + 1):
            stem = before.replace("*", str(number)) + scene.stem + after.replace("*", str(number))
            thing = scene.labels == number
            array = ringed(thing) if rim else thing * np.uint8(255)
            path = save(base(".png").with_name(f"{stem}.png"), array)
        return path

    return Encoding("a file for each thing", write, truth, constants)


def single_classes(draw):
    """A file for each class of an image; none, or an empty one, for a class that it does not hold."""
    names = ["road", "car", "other thing"][: int(draw.integers(2, 4))]
    way = pick(draw, ["{}_<>", "<> of {}", "<>/{}"])
    patterns = {name: way.replace("<>", name) for name in names}
    overlap = chance(draw, 0.3)
    told = overlap and chance(draw, 0.5)
    constants = {"CLASSES": patterns} | ({"OVERLAP": True} if told else {})
    reasons = []
    if overlap and not told:
        reasons = [("classes overlap", ["marks"])]
    lacking = chance(draw, 0.5)

    def index(scene):
        return np.where(scene.labels > 0, (scene.labels - 1) % len(names) + 1, 0).astype(np.uint8)

    def truth(scene):
        if not told:
            return index(scene)
        return np.array([0, 1 + 2, 2, 4], np.uint8)[index(scene)]  # sets: what is of the first is of the second too

    def mask_of(scene, number):
        return np.isin(index(scene), (1, 2) if overlap and number == 2 else number)

    def write(draw, base, scene):
        path = base(".png")
        root = path.parents[scene.place.count("/")]
        held = [number for number in range(1, len(names) + 1) if mask_of(scene, number).any() or not lacking] or [1]
        for number in held:
            place, slash, stem = (scene.place + scene.stem).rpartition("/")
            if way == "<>/{}":
                place, slash, stem = "", "", scene.place + scene.stem
            file = f"{place}{slash}{patterns[names[number - 1]].replace('{}', stem)}{pick(draw, ['.png', '.bmp'])}"
            path = save(root / file, mask_of(scene, number) * np.uint8(255))
        return path

    overlapping = ", overlapping" if told else ""
    return Encoding(f"a file for each class{overlapping}", write, truth, constants, reasons)


MASKS = {
    plain_values: 9,
    two_colours: 3,
    cut_out: 2,
    soft_edges: 2,
    fractions: 1,
    classes_of: 5,
    instances: 2,
    mixed: 0.4,
    photographs: 0.3,
    lone_things: 1.5,
    single_classes: 1.5,
}


# ---- scenes and names


STEMS = [
    lambda draw, k: f"img_{k:04d}",
    lambda draw, k: f"{k}",
    lambda draw, k: f"photo {k}",
    lambda draw, k: f"IMG_{k}",
    lambda draw, k: f"a.b-{k}",
    lambda draw, k: f"K\u00f6ln {k} (\u6771\u4eac)",
    lambda draw, k: f"{k}%20#{k}",
    lambda draw, k: f"{draw.integers(1e6, 1e7)}_{k}",
    lambda draw, k: f"_{k}_hflip_",
]
NAMINGS = {  # the name of a mask, by stem and suffix of its image; what the program has to be told of it
    "same": (lambda stem, end: stem, None),
    "_mask": (lambda stem, end: f"{stem}_mask", None),
    ".mask": (lambda stem, end: f"{stem}.mask", None),
    "_MASK": (lambda stem, end: f"{stem}_MASK", None),
    "case": (lambda stem, end: stem.swapcase(), None),
    "double": (lambda stem, end: f"{stem}{end}", None),
    "decomposed": (lambda stem, end: stem.replace("\u00f6", "o\u0308"), None),
    "_segmentation": (lambda stem, end: f"{stem}_segmentation", None),
    "-mask": (lambda stem, end: f"{stem}-mask", None),
    "masks_": (lambda stem, end: f"masks_{stem}", None),
    "zeros": (lambda stem, end: re.sub(r"\d+", lambda found: f"{int(found[0]):07d}", stem), None),
    "told after": (lambda stem, end: f"{stem}_seg", "{}_seg"),
    "told before": (lambda stem, end: f"gt-{stem}", "gt-{}"),
    "told both": (lambda stem, end: f"y {stem} lab.el", "y {} lab.el"),
    "told wrongly": (lambda stem, end: f"{stem}_seg", "{}_label"),
    "told badly": (lambda stem, end: stem, "label"),
    "unlike": (lambda stem, end: f"{stem[::-1]}{len(stem)}{sum(map(ord, stem))}z", None),
}
AFFIXED = ("_segmentation", "-mask", "masks_", "zeros")  # seen only where they pair every file one to one


MALFORMED = {
    "GROUP": ["(", "[a-"],
    "IMAGE_RANGE": [(5, 5), (9, 1), (0, 1, 2), "full", (0, float("nan")), 255, ("a", "b")],
    "CLASSES": ["some", (), {}, 3, (0, -1), {"": 1, "b": 2}, (0, 1.5), ((0, 0, 999), 1)],
    "MASK_IGNORE": ["void", -1.5, 1.5, (), (255, "x"), {}],
}


def draw_scene(draw, size, objects, place, stem):
    height, width = size
    labels = np.zeros(size, np.uint8)
    y, x = np.mgrid[:height, :width]
    for number in range(1, objects + 1):
        # one below another, so that none hides another one: each keeps at least 3 pixels of its own
        top, bottom = (height * (number - 1)) // objects, (height * number) // objects
        tall = max(2, (bottom - top) * 3 // 4)
        wide = int(draw.integers(max(3, width // 4), max(4, width * 3 // 4)))
        left = int(draw.integers(0, width - wide))
        middle = top + tall / 2, left + wide / 2
        if chance(draw, 0.5) and tall > 6 and wide > 6:
            inside = ((y - middle[0]) / (tall / 2)) ** 2 + ((x - middle[1]) / (wide / 2)) ** 2 <= 1
        else:
            inside = (y >= top) & (y < top + tall) & (x >= left) & (x < left + wide)
        labels[inside] = number
    image = draw.integers(0, 60, (*size, 3), np.uint8) + np.where(labels[..., None] > 0, 150, 20).astype(np.uint8)
    return Scene(image + (labels[..., None] * 7), labels, place, stem)


def make(seed, folder):
    """Makes dataset number `seed` below `folder`, and gives what is Meant."""
    draw, folder = np.random.default_rng([seed, 2026]), Path(folder)
    two = chance(draw, 0.88)
    layout = pick(draw, {"two folders": 6, "one folder": 1, "masks below": 1})
    encoding = pick(draw, MASKS)(draw)
    naming = pick(
        draw,
        {
            name: 5 if name == "same" else 0.2 if name in ("unlike", "told wrongly", "told badly") else 1
            for name in NAMINGS
        },
    )
    several_files = encoding.words.startswith("a file for each")
    if several_files:
        naming = "told by *"
    if layout == "one folder" and naming not in ("_mask", ".mask", "told after"):
        naming = "_mask" if naming != "told by *" else naming
        layout = layout if naming == "_mask" else "two folders"
    meant = Meant(seed, [])
    meant.words += [encoding.words, f"names: {naming}", layout]
    meant.constants.update(encoding.constants)
    meant.reasons += encoding.reasons
    meant.doubts += encoding.doubts
    meant.soft = encoding.soft

    # sizes
    uniform = chance(draw, 0.6)
    least = 24 if encoding.soft else 10
    size = tuple(int(side) for side in draw.integers(least, 61, 2))
    size = (size[0], size[1] + (size[0] == size[1]))  # so that swapped sizes differ
    image_size = size if uniform and chance(draw, 0.7) else tuple(int(side) for side in draw.integers(8, 65, 2))
    meant.constants["IMAGE_SIZE"] = image_size
    meant.words.append(f"all {size[0]}x{size[1]}" if uniform else "sizes differ")

    # kinds of images
    kinds = {kind: IMAGES[kind] for kind in {pick(draw, IMAGES) for _ in range(int(draw.integers(1, 4)))}}
    kinds = dict(sorted(kinds.items(), key=lambda it: it[0].__name__))
    value_range = None
    many_bits = {write_float, write_deep, write_twelve, write_marked, write_marked_floats} & set(kinds)
    if chance(draw, 0.6 if many_bits else 0.1):
        value_range = pick(draw, ["auto", (0, 65535), (0, 4095), (0, 1), (100, 3000), (-1.5, 0.75)])
        meant.constants["IMAGE_RANGE"] = value_range
    meant.words.append("images: " + ", ".join(kind.__name__[6:] for kind in kinds))

    stem_of = pick(draw, STEMS)
    places = pick(draw, {("",): 5, ("a/", "b/"): 1, ("", "deep/down/"): 1})
    if layout == "masks below":
        places = ("",)
    sound = chance(draw, 0.6)  # nothing is wrong but what the masks' encoding may have
    blanks = pick(draw, {"none": 4, "some": 4, "all of validation": 0.4, "full of validation": 0.3})
    damaged = pick(
        draw,
        {
            "": 9,
            "cut": 0.5,
            "checksum": 0.4,
            "rows": 0.4,
            "zero": 0.4,
            "text": 0.4,
            "link": 0.3,
            "loop": 0.2,
            "folder": 0.2,
        },
    )
    misfit = pick(draw, {"": 12, "larger": 0.5, "swapped": 0.5, "as stored": 0.5})
    odd = pick(
        draw,
        {
            "": 8,
            "strays": 2,
            "strays left out": 2,
            "twice": 0.4,
            "both sides": 0.6,
            "one side": 0.4,
            "group": 0.4,
            "unread": 0.4,
        },
    )
    if sound:
        blanks, damaged, misfit = "some" if blanks != "none" else blanks, "", ""
        odd = odd if odd == "strays left out" and naming not in AFFIXED else ""
    if damaged == "folder" and naming == "told by *":
        damaged = "zero"  # a folder would be left out, and the other files of its image are masks enough
    if encoding.words.startswith("a file for each class"):
        misfit = ""
    resizes = (
        not misfit and not damaged and not encoding.words.startswith("a file for each class") and chance(draw, 0.15)
    )
    if resizes:
        meant.constants["RESIZE_MASKS"] = True
        meant.words.append("masks of other sizes")
    beside = chance(draw, 0.4)
    paged = naming in NAMINGS and blanks in ("none", "some") and not resizes and chance(draw, 0.3)
    if paged:
        kinds[write_grey] = 6
    told = NAMINGS[naming][1] if naming in NAMINGS else None
    if told:
        meant.constants["MASK_NAME"] = told
    if odd == "strays left out":
        meant.constants["SKIP_UNPAIRED"] = True
    meant.words += [
        word
        for word in (f"blanks: {blanks}", paged and "pages", damaged, misfit, odd, beside and "others beside")
        if word
    ]
    malformed = pick(draw, {"": 40, "GROUP": 1, "IMAGE_RANGE": 1, "CLASSES": 1, "MASK_IGNORE": 1})
    if malformed and not sound and naming not in ("told badly", "told wrongly", "unlike"):
        meant.constants[malformed] = pick(draw, MALFORMED[malformed])
        alone = malformed in ("GROUP", "IMAGE_RANGE")
        meant.reasons.append((UNPAIRED[0] if alone else f"{malformed} is malformed", [malformed]))
    if naming in ("told wrongly", "told badly"):
        meant.reasons.append(("MASK_NAME is wrong", ["MASK_NAME"]))
    if naming == "unlike":
        meant.reasons.append(("names are unlike", ["MASK_NAME"]))

    first_files = []  # of training, for what is on both sides
    number = int(draw.integers(0, 30))
    for side in range(1 + two):
        if side and odd == "one side":  # training images for validation, which is said and no more
            meant.folders += meant.folders[:2]
            meant.samples.append(meant.samples[0])
            break
        name = ("train", "val")[side]
        if layout == "two folders":
            image_dir, mask_dir = folder / f"{name}_images", folder / f"{name}_masks"
        elif layout == "one folder":
            image_dir = mask_dir = folder / name
        else:
            image_dir, mask_dir = folder / name, folder / name / "labels"
        meant.folders += [image_dir, mask_dir]
        samples = {}
        meant.samples.append(samples)
        count = int(draw.integers(4, 9)) if side == 0 else int(draw.integers(2, 5))
        written = []
        for k in range(count):
            number += 1
            own = size if uniform else tuple(int(s) for s in draw.integers(least, 61, 2))
            own = (own[0], own[1] + (own[0] == own[1]))
            objects = 2 if own[0] < 16 else int(draw.integers(1, 4))
            objects = max(objects, 4 if k == 0 and encoding.words.find("classes") > 0 else 2 if k == 0 else 0)
            place = places[k % len(places)]
            stem = stem_of(draw, number)
            if odd == "group" and k == 1 and naming in ("same", "_mask", ".mask"):
                stem = f"0123456789ab_{number:02d}"
                if side and stem[:12] not in " ".join(dict(meant.reasons)):  # else the other one is damaged
                    meant.reasons.append(("a group on both sides", ["GROUP"]))
            scene = draw_scene(draw, own, objects, place, stem)
            whole = two and side == 1
            if (k and blanks == "some" and chance(draw, 0.3)) or (whole and blanks == "all of validation"):
                scene.labels[:] = 0
            elif (k > 1 and blanks == "some" and chance(draw, 0.2)) or (whole and blanks == "full of validation"):
                scene.labels[:] = 1
            if k and blanks == "some" and chance(draw, 0.15):
                scene.image[:] = int(draw.integers(0, 256))
            kind = pick(draw, kinds)

            def base(end, place=place, stem=stem, image_dir=image_dir):
                return image_dir / f"{place}{stem}{end}"

            if odd == "both sides" and side == 1 and k == 0 and uniform:
                source, pixels, kind = first_files[0]
                path = base(source.suffix)
                path.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, path)
                meant.reasons.append(("on both sides", [path.name]))
            elif misfit == "as stored" and k == 1:
                kind, turned = write_turned, int(draw.integers(5, 9))
                path, pixels = write_turned(draw, base, scene, turned)
            else:
                path, pixels = kind(draw, base, scene)
            if not side:
                first_files.append((path, pixels, kind))
            mask_stem = NAMINGS[naming][0](stem, path.suffix) if naming in NAMINGS else stem

            def mask_base(end, place=place, mask_stem=mask_stem, mask_dir=mask_dir):
                return mask_dir / f"{place}{mask_stem}{end}"

            drawn = scene
            if paged and k and chance(draw, 0.6) and not (misfit and k == 1) and kind is write_grey:
                scenes = [draw_scene(draw, own, 2, place, stem) for _ in range(int(draw.integers(2, 4)))]
                path.unlink()

                def grey_page(beside, frame):
                    return save(beside(".png"), grey_of(frame.image).astype(np.uint8))

                def mask_page(beside, frame):
                    return encoding.write(draw, beside, frame)

                single = chance(draw, 0.2)  # a mask of one page
                path = write_pages(draw, scenes, folder / "pages", base, grey_page, plain=True)
                mask_stem = NAMINGS[naming][0](stem, path.suffix)
                scenes_of_mask = scenes[:1] if single else scenes
                white = encoding.write is write_white
                mask_path = write_pages(draw, scenes_of_mask, folder / "pages", mask_base, mask_page, white)
                shutil.rmtree(folder / "pages")
                written.append((path, mask_path))
                doubtful = encoding.soft and max(encoding.between(it) for it in scenes) > 0.07
                meant.doubts += ["hardly more than edges"] if doubtful else []
                if single:
                    meant.reasons.append(("pages", [printable(path.name), printable(mask_path.name)]))
                for at, page in enumerate(scenes[:1] if single else scenes):
                    pixels = three(grey_of(page.image).astype(np.uint8))
                    key = place + stem if single else f"{place}{stem}_{at}"
                    samples[key] = Sample((path, mask_path), pixels, encoding.truth(page))
                continue
            if misfit and k == 1:
                other = (own[0] + 1, own[1]) if misfit == "larger" else own[::-1]
                drawn = draw_scene(draw, other, 2, place, stem)
                if misfit == "as stored":
                    drawn.labels[:] = LAID[turned](scene.labels[..., None])[..., 0]
                drawn.labels[:] = np.where(drawn.labels > 0, 1, 0)
            if resizes and chance(draw, 0.6):
                drawn = resized_scene(draw, scene)
            mask_path = encoding.write(draw, mask_base, drawn)
            if not several_files and misread(mask_path):
                meant.doubts.append("a BMP that Pillow misreads")
            elif misfit and k == 1 and "alpha" not in dict(encoding.reasons):
                meant.reasons.append((misfit, [printable(path.name)]))
            if encoding.words.startswith("cut-outs") and mask_path.suffix == ".webp" and drawn.labels.all():
                meant.doubts.append("WebP keeps no alpha channel that is opaque all over")
            if encoding.soft and encoding.between(drawn) > 0.07:
                meant.doubts.append("hardly more than edges")
            deep = kind in many_bits
            if deep and not side and many_bits <= {write_marked, write_marked_floats} and scene.image.std() > 20:
                meant.within = (100, 3200)
            if kind in (write_float, write_marked_floats) and value_range is None:
                if "alpha" not in dict(encoding.reasons):  # whose masks cannot be used, which is told of the pair alone
                    meant.reasons.append(("floats", [printable(path.name)]))
                pixels = np.zeros((*own, 3), np.uint8)
            elif kind in (write_twelve, write_marked) and value_range is None:
                meant.doubts.append("12 bits")
            if callable(pixels) and value_range != "auto":
                pixels = pixels(value_range)
            if deep and value_range not in (None, "auto") and np.isin(pixels, (0, 255)).all():
                meant.doubts.append("beyond IMAGE_RANGE")
            lossy = path.suffix.lower() in (".jpg", ".jpeg", ".jfif")
            near = int(deep and value_range is not None) or 3 * (kind is write_turned and lossy)
            pair_name = place + stem
            written.append((path, mask_path))
            mask = encoding.truth(drawn)
            if resizes:
                mask = at_size_of_image(mask, own)
            samples[pair_name] = Sample((path, mask_path), pixels, mask, near, lossy)
        if naming in AFFIXED and naming != "zeros" and count < 2:
            meant.doubts.append("one name has no prefix")
        if side == int(two) and blanks in ("all of validation", "full of validation") and two:
            words = ["MASK_FOREGROUND", "CLASSES"]
            if not encoding.reasons:
                (meant.doubts if "CLASSES" in meant.constants else meant.reasons).append((blanks, words))
        if odd.startswith("strays") and side == 0:
            add_strays(draw, meant, image_dir, mask_dir, naming, layout, odd)
        if odd == "unread" and side == 0 and layout != "one folder" and naming in ("same", "_mask", ".mask"):
            (image_dir / "from a phone.heic").write_bytes(b"\0\0\0\x18ftypheic")
            save(mask_dir / "from a phone.png", np.eye(20, dtype=np.uint8) * 255)
            meant.reasons.append(("an image that is not read", ["from a phone"]))
        if odd == "twice" and side == 0 and not damaged:
            image, _ = written[-1]
            again = image.with_suffix(".bmp" if image.suffix != ".bmp" else ".png")
            save(again, draw.integers(0, 256, (20, 20, 3), np.uint8))
            meant.reasons.append(("one image twice", [printable(image.name), printable(again.name), "MASK_NAME"]))
        if damaged and side == 0:
            target = pick(draw, written[1:])[int(draw.integers(0, 2))]
            damage(draw, target, damaged)
            one = next(files for files in written if target in files)
            if damaged == "folder" and odd == "strays left out" and naming not in AFFIXED:  # left out as another stray
                for key in [key for key, sample in samples.items() if target in sample.files]:
                    del samples[key]
                meant.reasons = [it for it in meant.reasons if it[0] != misfit or it[1] != [printable(one[0].name)]]
                continue
            meant.reasons = [it for it in meant.reasons if it[0] != misfit or it[1] != [printable(one[0].name)]]
            why = f"{damaged}: {target.name}", [printable(path.stem) for path in one]
            meant.reasons.append(why)
        if beside:
            put_beside(draw, image_dir)
            put_beside(draw, mask_dir)
    tell_what_vanishes(meant)
    mask_name = told or "{}"
    told_so = naming == "same" or naming.startswith("told") and (places == ("",) or mask_name.startswith("{}"))
    if sound and not (odd or paged or meant.reasons) and naming in NAMINGS and told_so:
        plant_tree(meant, mask_name)
    return meant


def resized_scene(draw, scene):
    """The same scene, its labels at a size that RESIZE_MASKS brings back: of its proportions, or nearly its size."""
    height, width = scene.labels.shape
    factor = pick(draw, [2, 3, 0])
    size = (height * factor, width * factor)
    if not factor:
        size = tuple(int(side) for side in (height, width) + draw.integers(-3, 4, 2))
    if size == (width, height):  # which may be turned
        return scene
    places = [((np.arange(new) + 0.5) * old / new).astype(int) for new, old in zip(size, scene.labels.shape)]
    return Scene(scene.image[np.ix_(*places)], scene.labels[np.ix_(*places)], scene.place, scene.stem)


def at_size_of_image(mask, size):
    """What RESIZE_MASKS makes of a mask, written again: up to three pixels cut or repeated, else the nearest."""
    is_near = all(abs(old - new) <= 3 for old, new in zip(mask.shape, size))
    if is_near:
        places = [np.minimum(np.arange(new), old - 1) for old, new in zip(mask.shape, size)]
    else:
        places = [((np.arange(new) + 0.5) * old / new).astype(int) for old, new in zip(mask.shape, size)]
    return mask[np.ix_(*places)]


def plant_tree(meant, mask_name):
    """Moves images and masks into folders below theirs, which IMAGE_NAME and MASK_NAME tell."""
    meant.constants |= {"IMAGE_NAME": "shots/{}", "MASK_NAME": f"labels/{mask_name}"}
    meant.words.append("a tree")
    for side, samples in enumerate(meant.samples):
        for sample in samples.values():
            moved = []
            for folder, below, path in zip(meant.folders[2 * side :], ("shots", "labels"), sample.files):
                target = folder / below / path.relative_to(folder)
                target.parent.mkdir(parents=True, exist_ok=True)
                moved.append(path.rename(target))
            sample.files = tuple(moved)


def add_strays(draw, meant, image_dir, mask_dir, naming, layout, odd):
    """An image without a mask, or a mask without an image."""
    noise = draw.integers(0, 256, (30, 30, 3), np.uint8)
    names = ["stray one", "left-over"]
    if chance(draw, 0.6) or layout == "one folder":
        save(image_dir / f"{names[0]}.png", noise)
    else:
        save(mask_dir / f"{names[1]}.png", noise[..., 0] // 255)
    if odd == "strays" or naming in AFFIXED:  # which pair all files one to one, or none
        why = UNPAIRED[3] if naming in AFFIXED else "strays"
        meant.reasons.append((why, ["SKIP_UNPAIRED", "MASK_NAME"]))


def damage(draw, path, way):
    content = path.read_bytes() if way in ("cut", "zero", "text", "checksum", "rows") else b""
    spoiled = b""
    if way == "checksum" and path.suffix == ".png":  # of its first chunk of pixels
        start = content.index(b"IDAT")
        end = start + 4 + int.from_bytes(content[start - 4 : start], "big")
        spoiled = content[:end] + bytes([content[end] ^ 1]) + content[end + 1 :]
    if way == "rows" and path.suffix in (".tif", ".tiff"):
        spoiled = taller(content)
    path.unlink()
    if spoiled:
        path.write_bytes(spoiled)
    elif way in ("cut", "checksum", "rows"):
        path.write_bytes(content[: len(content) // 2])
    elif way == "zero":
        path.write_bytes(b"")
    elif way == "text":
        path.write_text("<html>404 Not Found</html>\n" * 9)
    elif way == "link":
        path.symlink_to(path.with_name("nowhere.png"))
    elif way == "loop":
        path.symlink_to(path)
    else:
        path.mkdir()
        (path / "inside.txt").write_text("")


def taller(content):
    """A TIFF of Pillow's whose first page says that it has twice the rows; b"" where it is compressed."""
    tags = {}
    first = struct.unpack_from("<I", content, 4)[0]
    for place in range(first + 2, first + 2 + 12 * struct.unpack_from("<H", content, first)[0], 12):
        tag, kind = struct.unpack_from("<HH", content, place)
        tags[tag] = place + 8, "<H" if kind == 3 else "<I"
    if content[:2] != b"II" or struct.unpack_from("<H", content, tags[259][0])[0] != 1:
        return b""
    place, layout = tags[257]
    changed = bytearray(content)
    struct.pack_into(layout, changed, place, 2 * struct.unpack_from(layout, content, place)[0])
    return bytes(changed)


def put_beside(draw, folder):
    """What is no picture of the dataset, and changes nothing."""
    for name in draw.choice([".DS_Store", "Thumbs.db", "notes.txt", ".hidden.png", "list.csv"], 2).tolist():
        (folder / name).write_bytes(b"something")
    (folder / "__MACOSX").mkdir(exist_ok=True)
    (folder / "__MACOSX" / "._img_1.png").write_bytes(b"\0\5\x16\7")


def tell_what_vanishes(meant):
    """A side whose masks are all emptied at IMAGE_SIZE must be refused."""
    size = meant.constants["IMAGE_SIZE"]
    for samples in meant.samples:
        left = []
        for sample in samples.values():
            mask = sample.mask == 1 if "CLASSES" not in meant.constants else (sample.mask > 0) & (sample.mask < IGNORED)
            if mask.any() and (mask.shape[0] > size[0] or mask.shape[1] > size[1]):
                left.append(shares(mask, size).max())
        if left and max(left) < 0.51 and ("CLASSES" in meant.constants or "RESIZE_MASKS" in meant.constants):
            meant.doubts.append("perhaps emptied at IMAGE_SIZE")
        elif left and max(left) < 0.49:
            meant.reasons.append(("emptied at IMAGE_SIZE", ["IMAGE_SIZE"]))
        elif left and max(left) < 0.51:
            meant.doubts.append("perhaps emptied at IMAGE_SIZE")


# ---- the documented rule of resizing, written again: areas averaged, or linearly enlarged


def weights(old, new):
    """(new, old): how much each old pixel counts in each new one."""
    found = np.zeros((new, old))
    if new <= old:
        for at in range(new):
            begin, end = at * old / new, (at + 1) * old / new
            for pixel in range(int(begin), min(old, int(np.ceil(end - 1e-9)))):
                found[at, pixel] = max(0, min(end, pixel + 1) - max(begin, pixel)) * new / old
        return found
    for at in range(new):
        place = np.clip((at + 0.5) * old / new - 0.5, 0, old - 1)
        low = min(int(place), old - 2) if old > 1 else 0
        found[at, low] += 1 - (place - low)
        if old > 1:
            found[at, low + 1] += place - low
    return found


def resized(array, size):
    """(H, W) or (H, W, C) as floats at `size`."""
    rows, columns = (weights(old, new) for old, new in zip(array.shape, size))
    return np.einsum("ah,hw...,bw->ab...", rows, array.astype(np.float64), columns, optimize=True)


def shares(mask, size):
    return resized(mask, size)


# ---- does the program agree?


def check(meant, work, sheet=False):
    """(outcome, what is wrong or None): "trained", "refused" or "crashed"."""
    with redirect_stdout(io.StringIO()) as said:
        try:
            report, datasets = run_program(meant, Path(work), sheet)
        except UserError as error:
            return "refused", judge_refusal(meant, str(error))
        except Exception:
            return "crashed", traceback.format_exc(limit=-4)
    if meant.reasons:
        return "trained", f"should be refused: {meant.reasons}\n{said.getvalue()[-300:]}"
    value_range = report.value_range or ()
    low, high = meant.within if meant.constants.get("IMAGE_RANGE") == "auto" else (-np.inf, np.inf)
    if not all(low <= end <= high for end in value_range):
        return "trained", f"the range is {value_range}, and should lie within {meant.within}"
    for samples, (full, small) in zip(meant.samples, datasets):
        wrong = compare(meant, samples, full, small, getattr(report, "value_range", None))
        if wrong:
            return "trained", wrong
    return "trained", None


def run_program(meant, work, sheet):
    """What train.py does with the data before the first epoch."""
    given = meant.constants
    size = given["IMAGE_SIZE"]
    spec = DataSpec(**{FIELDS[name]: value for name, value in given.items() if name in FIELDS})
    sides = [tuple(meant.folders[:2]), *([tuple(meant.folders[2:])] if meant.folders[2:] else [])]
    sides = draw_masks(sides, work / "drawn_masks", spec)
    report = audit(
        sides[0],
        sides[1] if sides[1:] else None,
        spec,
        image_size=size,
        sheet=work / "saved_images" / "audit.png" if sheet else None,
        cache=work / "audit.json",
        apart=[work, *meant.folders[1::2]],
        num_workers=1,
    )
    report.text()
    report.stop_if_spoiled()
    datasets = []
    for at, pairs in enumerate([report.train, report.val][: len(meant.samples)]):
        keywords = dict(pairs=pairs, mask_rule=report.mask_rule, value_range=report.value_range)
        full = ImageDataset(*sides[at], **keywords, spec=DataSpec(resize_masks=spec.resize_masks))
        files = Files(pairs, report.mask_rule, report.value_range, size, resize_masks=spec.resize_masks)
        small = ArrayDataset(files)
        if not small.keep_arrays(work / f"arrays{at}", num_workers=1, progress=False):
            raise AssertionError("no arrays were made")
        [full[index] for index in range(len(full))]
        datasets.append((full, small))
    return report, datasets


def judge_refusal(meant, text):
    if not text.strip():
        return "refused without words"
    files = {path.name for folder in meant.folders if folder.exists() for path in folder.rglob("*")}
    if not any(name in text for name in CONSTANTS) and not any(printable(name) in text for name in files):
        return f"the message names neither a file nor a constant: {text}"
    if not meant.reasons:
        return None if meant.doubts else f"must train, but is refused: {text}"
    if any(why.endswith("malformed") and words[0] in text for why, words in meant.reasons):
        return None  # which may be told before anything is looked at
    blind = sorted((it for it in meant.reasons if it[0] in UNPAIRED), key=lambda it: UNPAIRED.index(it[0]))[:1]
    plain = [it for it in meant.reasons if it[0] not in LAST]
    due = blind or plain or meant.reasons
    untold = [why for why, words in due if not any(word in text for word in words)]
    is_drawn = any(words.startswith("a file for each class") for words in meant.words)
    if is_drawn and len(untold) < len(due):  # what hinders the drawing is told before anything else is looked at
        return None
    return f"not told: {untold}; said: {text}" if untold else None


def compare(meant, samples, full, small, value_range):
    """What differs between what was meant and what the datasets hold, in words, or None."""
    names = [pair.name for pair in full.pairs]
    if sorted(names) != sorted(samples):
        return f"pairs are {sorted(names)}, meant are {sorted(samples)}"
    images, masks = small.arrays.open()
    size = meant.constants["IMAGE_SIZE"]
    for index, name in enumerate(names):
        sample, (image, mask) = samples[name], full[index]
        pixels = sample.pixels(value_range) if callable(sample.pixels) else sample.pixels
        off = far(image, pixels)
        if off is None or off > sample.near:
            return f"{name}: image {sample.files[0].name}: {image.shape} for {pixels.shape}, off by {off}"
        if mask.shape != sample.mask.shape or mask.dtype != np.uint8:
            return f"{name}: mask of {mask.shape} {mask.dtype}, meant {sample.mask.shape}"
        apart = (mask != sample.mask).mean()
        if apart > (0.02 if meant.soft else 0):
            return f"{name}: {apart:.2%} of the mask {sample.files[1].name} differ; {Counter(mask.ravel().tolist())}"
        if tuple(pixels.shape[:2]) == tuple(size):
            if far(images[index], image) or (masks[index] != mask).any():
                return f"{name}: its arrays differ from its files, which have that size"
            continue
        off = far(images[index], resized(image, size))
        if off > 2 and not sample.lossy:
            return f"{name}: image {sample.files[0].name} at IMAGE_SIZE is off by {off}"
        if sample.lossy and np.abs(images[index] - resized(image, size)).mean() > 25:
            return f"{name}: image {sample.files[0].name} at IMAGE_SIZE is another one"
        wrong = mask_wrong(masks[index], mask, size)
        if wrong:
            return f"{name}: mask {sample.files[1].name} at IMAGE_SIZE: {wrong}"
    return None


def far(one, other):
    return None if one.shape != other.shape else float(np.abs(one.astype(np.float64) - other).max(initial=0))


def mask_wrong(found, mask, size):
    """A resized mask holds, where that is clear, the value that fills most of the pixel."""
    values = np.unique(mask)
    if not set(np.unique(found).tolist()) <= set(values.tolist()):
        return f"values {np.unique(found).tolist()} out of {values.tolist()}"
    parts = np.stack([resized(mask == value, size) for value in values])
    clear = parts.max(0) > 0.51
    wrong = (found != values[parts.argmax(0)]) & clear
    return f"{int(wrong.sum())} pixels have another value than most of their area" if wrong.any() else None


def words_of(meant):
    """What was drawn, and what must come of it, in a few lines."""
    why = "".join(f"\n  because of {why}" for why, _ in meant.reasons)
    return f"{meant.state}: {'; '.join(meant.words)}{why}\n  {meant.constants}"


def check_seed(seed, folder, sheet=False):
    """(Meant, outcome, what is wrong or None) of one dataset, made in the empty `folder`."""
    data, work = Path(folder) / "data", Path(folder) / "work"
    meant = make(seed, data)
    work.mkdir(parents=True)
    return (meant, *check(meant, work, sheet))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("seed", nargs="?", type=int)
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--seeds", nargs=2, type=int, default=(0, 1000), metavar=("FROM", "TO"))
    options = parser.parse_args()
    if options.seed is not None:
        meant, outcome, wrong = check_seed(options.seed, options.folder, sheet=True)
        print(f"{words_of(meant)}\n{outcome}: {wrong or 'right'}")
        return
    counts, bad = Counter(), 0
    for seed in range(*options.seeds):
        with tempfile.TemporaryDirectory() as folder:
            meant, outcome, wrong = check_seed(seed, folder, sheet=seed % 5 == 0)
        counts[meant.state, outcome] += 1
        if wrong:
            bad += 1
            print(f"--- {seed}: {words_of(meant)}\n{outcome}: {wrong[:1500]}")
    for (state, outcome), number in sorted(counts.items()):
        print(f"{number:5} {state}: {outcome}")
    print(f"{bad} went wrong.")
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
