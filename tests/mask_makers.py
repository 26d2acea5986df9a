"""Masks for tests: shapes, and every way of writing them to a file."""

import io
import json

import numpy as np
from PIL import Image, ImageFilter

from parts.masks import MaskRule, count_classes

H, W = 48, 64


def foreground_share(observation, mask_rule):
    """What share of an observed mask's pixels is foreground, of those that are not ignored; 0 if all are."""
    counts = count_classes(observation, mask_rule)[:-1]
    return counts[1:].sum() / max(1, counts.sum())


def through_json(mask_rule):
    """The rule as a checkpoint gives it back."""
    return MaskRule.from_dict(json.loads(json.dumps(mask_rule.to_dict())))


def blob(seed=0, height=H, width=W):
    """A mask of {0, 1}: an ellipse that no flip or turn leaves as it is."""
    draw = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    cy, cx = draw.uniform(0.3, 0.45, 2) * (height, width)
    return (((y - cy) / (height * 0.25)) ** 2 + ((x - cx + (y - cy) / 3) / (width * 0.2)) ** 2 < 1).astype(np.uint8)


def grey(mask, low=0, high=255, dtype=np.uint8):
    return Image.fromarray(np.where(mask, high, low).astype(dtype))


def coloured(mask, foreground, background=(0, 0, 0), alpha=None):
    colours = np.array([background, foreground], np.uint8)[mask]
    if alpha is not None:
        colours = np.dstack([colours, np.array(alpha, np.uint8)[mask]])
    return Image.fromarray(colours)


def indexed(mask, colours, values=(0, 1)):
    picture = Image.fromarray(np.where(mask, values[1], values[0]).astype(np.uint8), mode="P")
    picture.putpalette(sum((list(colour) for colour in colours), []))
    return picture


def upright_by_exif(mask, path):
    exif = Image.Exif()
    exif[274] = 6
    grey(np.rot90(mask)).save(path, exif=exif)


def animated(mask, path):
    grey(mask).save(path, save_all=True, append_images=[grey(1 - mask)])


VOC = [(0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0)]
# name -> how a mask of {0, 1} is written; each must read back equal
LEGAL = {
    "0-255.png": lambda m, p: grey(m).save(p),
    "0-255.bmp": lambda m, p: grey(m).save(p),
    "0-255.tif": lambda m, p: grey(m).save(p),
    "0-1.png": lambda m, p: grey(m, 0, 1).save(p),
    "0-1.tif": lambda m, p: grey(m, 0, 1).save(p),
    "0-7.png": lambda m, p: grey(m, 0, 7).save(p),
    "0-254.png": lambda m, p: grey(m, 0, 254).save(p),
    "0-128.pgm": lambda m, p: grey(m, 0, 128).save(p),
    "1-bit.png": lambda m, p: grey(m).convert("1").save(p),
    "1-bit.tif": lambda m, p: grey(m).convert("1").save(p, compression="group4"),
    "1-bit.bmp": lambda m, p: grey(m).convert("1").save(p),
    "1-bit.pbm": lambda m, p: grey(m).convert("1").save(p),
    "carvana.gif": lambda m, p: grey(m).save(p),
    "1-bit.gif": lambda m, p: grey(m).convert("1").save(p),
    "grey palette.png": lambda m, p: indexed(m, [(0, 0, 0), (255, 255, 255)]).save(p),
    "reversed grey palette.png": lambda m, p: indexed(m, [(255,) * 3, (0,) * 3], (1, 0)).save(p),
    "voc.png": lambda m, p: indexed(m, VOC).save(p),
    "voc.gif": lambda m, p: indexed(m, VOC, (0, 3)).save(p, optimize=False),
    "palette of white and black.png": lambda m, p: indexed(m, [(255,) * 3, (0,) * 3, (9, 0, 0)], (1, 0)).save(p),
    "black in the middle.png": lambda m, p: indexed(m, [(9, 0, 0), (0,) * 3, (255,) * 3], (1, 2)).save(p),
    "palette with transparency.png": lambda m, p: indexed(m, VOC).save(p, transparency=bytes([0, 255])),
    "web palette.png": lambda m, p: grey(m).convert("RGB").convert("P").save(p),
    "16-bit 0-1.png": lambda m, p: grey(m, 0, 1, np.uint16).save(p),
    "16-bit 0-65535.png": lambda m, p: grey(m, 0, 65535, np.uint16).save(p),
    "16-bit.tif": lambda m, p: grey(m, 0, 1000, np.uint16).save(p),
    "32-bit.tif": lambda m, p: grey(m, 0, 100_000, np.int32).save(p),
    "float.tif": lambda m, p: grey(m, 0, 1, np.float32).save(p),
    "rgb white.png": lambda m, p: coloured(m, (255,) * 3).save(p),
    "rgb 0-1.png": lambda m, p: coloured(m, (1, 1, 1)).save(p),
    "rgb red.png": lambda m, p: coloured(m, (255, 0, 0)).save(p),
    "rgb nearly black.bmp": lambda m, p: coloured(m, (0, 0, 1)).save(p),
    "rgba opaque.png": lambda m, p: coloured(m, (255,) * 3, alpha=(255, 255)).save(p),
    "rgba see-through.png": lambda m, p: coloured(m, (255, 0, 0), alpha=(0, 0)).save(p),
    "rgba where black.png": lambda m, p: coloured(m, (0, 255, 0), alpha=(0, 255)).save(p),
    "grey alpha.png": lambda m, p: grey(m).convert("LA").save(p),
    "white.webp": lambda m, p: grey(m).save(p, lossless=True),
    "red.webp": lambda m, p: coloured(m, (255, 0, 0)).save(p, lossless=True),
    "animated.gif": animated,
    "turned by exif.png": upright_by_exif,
    "UPPER.PNG": lambda m, p: grey(m).save(p),
    "no suffix's kind.png": lambda m, p: grey(m).save(p, format="BMP"),
}


def write_all(folder, write, name, masks):
    paths = [folder / f"{index} {name}" for index in range(len(masks))]
    for path, mask in zip(paths, masks):
        write(mask, path)
    return paths


SOFT = {
    "jpeg 95.jpg": lambda m, p: grey(m).save(p, quality=95),
    "jpeg 50.jpg": lambda m, p: grey(m).save(p, quality=50),
    "jpeg in png.png": lambda m, p: jpeg(grey(m), 75).save(p),
    "good jpeg in png.png": lambda m, p: jpeg(grey(m), 95).save(p),
    "blurred.png": lambda m, p: smoothed(grey(m)).save(p),
    "white not quite white.png": lambda m, p: Image.fromarray(m * np.uint8(255) - (m & np.roll(m, 9, 1))).save(p),
    "16-bit blurred.png": lambda m, p: Image.fromarray(np.asarray(smoothed(grey(m))).astype(np.uint16) * 257).save(p),
}


def classes(values, seed=0):
    """Areas of each of the values."""
    cells = np.random.default_rng(seed).permutation(np.resize(values, 48)).reshape(6, 8)
    return Image.fromarray(np.kron(cells, np.ones((8, 8))).astype(np.uint8))


def edge(mask):
    """The outermost pixels of the foreground."""
    return mask - np.asarray(Image.fromarray(mask).filter(ImageFilter.MinFilter(3)))


def with_border(mask):
    """VOC's way: class 15, and 255 around it."""
    return Image.fromarray(np.where(edge(mask), 255, mask * 15).astype(np.uint8))


def smoothed(picture):
    return picture.filter(ImageFilter.GaussianBlur(1.5))


def jpeg(picture, quality=75):
    """A picture as JPEG leaves it."""
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=quality)
    return Image.open(file)


def mask_in_alpha(mask):
    """White all over, and opaque where the mask is."""
    return coloured(mask, (255, 255, 255), (255, 255, 255), alpha=(0, 255))


def organ(mask, low=128, high=255, half=2):
    """An area of one value with a small thing of another in it."""
    values = mask * np.uint8(low)
    y, x = np.argwhere(mask).mean(axis=0).astype(int)
    values[y - half : y + half, x - half : x + half] = high
    return Image.fromarray(values)


def cut_out(mask, mode="RGBA"):
    """A photograph, opaque where the mask is; a third of its edge is half so."""
    photograph = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*mask.shape, 3), np.uint8))
    picture = photograph.convert(mode)
    picture.putalpha(
        Image.fromarray(np.where(mask, 255 - 100 * edge(mask), 100 * np.roll(mask, 1, 0)).astype(np.uint8))
    )
    return picture


def areas(draw, labels, cell=6):
    """Random areas of some of the labels."""
    cells = draw.choice(labels, draw.integers(2, 7, 2))
    return cells.repeat(cell, 0).repeat(cell, 1)


def with_palette(values, colours):
    picture = Image.fromarray(values.astype(np.uint8))
    picture.putpalette(np.asarray(colours, np.uint8).ravel().tolist())
    return picture


def to_rgb(values):
    return np.stack([values >> 16, values >> 8 & 255, values & 255], axis=-1).astype(np.uint8)


TINTS = np.random.default_rng(1).permutation(256 * 256)[: 3 * 256].reshape(256, 3).astype(np.uint8)
# name -> (largest value, how an array of values is written); values above 255 and not of 16 bits are 0xRRGGBB
ENCODINGS = {
    "numbers": (255, lambda v, p: Image.fromarray(v.astype(np.uint8)).save(p)),
    "few numbers": (9, lambda v, p: Image.fromarray(v.astype(np.uint8)).save(p)),
    "16 bits": (65535, lambda v, p: Image.fromarray(v.astype(np.uint16)).save(p)),
    "32 bits": (65535, lambda v, p: Image.fromarray(v.astype(np.int32)).save(p, format="TIFF")),
    "grey in three channels": (255, lambda v, p: Image.fromarray(v.astype(np.uint8)).convert("RGB").save(p)),
    "palette": (255, lambda v, p: with_palette(v, TINTS).save(p)),
    "palette of greys": (255, lambda v, p: with_palette(255 - v, np.arange(255, -1, -1).repeat(3)).save(p)),
    "colours": (0xFFFFFF, lambda v, p: Image.fromarray(to_rgb(v)).save(p)),
    "colours, opaque": (0xFFFFFF, lambda v, p: Image.fromarray(to_rgb(v)).convert("RGBA").save(p)),
}
