"""What image a file holds: the right pixels, or a message with a cure."""

import io
import json
import multiprocessing
import os
import struct
import subprocess
import sys
import tempfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from helpers import ROOT, WAIT, draw_pairs
from PIL import Image, TiffImagePlugin

from augment import Choices, make_augmented
from parts import images
from parts.audit import audit
from parts.errors import UnusableFile, UserError, printable
from parts.images import (
    bytes_of,
    choose_value_range,
    decode,
    depth_of,
    image_size,
    pages_of,
    pixels_of,
    read_image,
    resize_image,
)
from parts.inference import Runner
from parts.names import find_pictures
from parts.predictions import Decision, Output, PictureReader, predict_pictures

H, W = 24, 36


def colours(seed=0):
    """An image with a different value nearly everywhere, so that every flip and turn shows."""
    return np.random.default_rng(seed).integers(0, 256, (H, W, 3), np.uint8)


def deep(channels=3, seed=1):
    return np.random.default_rng(seed).integers(0, 65536, (H, W, channels), np.uint16)


def smooth():
    """An image that JPEG keeps nearly as it is."""
    y, x = np.mgrid[:H, :W]
    return np.stack([x * 7, y * 10, 200 - x * 2 - y], axis=2).astype(np.uint8)


GREY = colours()[..., 0]
THREE = [GREY] * 3
WIDE = (GREY.astype(np.uint16) << 8) | 77


def save(array, mode=None, **options):
    """A maker: writes `array` under the path it is given."""

    def make(path):
        picture = Image.fromarray(array)
        picture.convert(mode).save(path, **options) if mode else picture.save(path, **options)

    return make


def turned(orientation, array=None):
    def make(path):
        exif = Image.Exif()
        exif[274] = orientation
        Image.fromarray(colours() if array is None else array).save(path, exif=exif)

    return make


def frames(path):
    first, second = (Image.fromarray(it).quantize(16) for it in (smooth(), 255 - smooth()))
    first.save(path, save_all=True, append_images=[second])


def palette(path):
    picture = Image.fromarray((GREY // 64).astype(np.uint8), mode="P")
    picture.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255, 9, 8, 7])
    picture.save(path)


def cmyk(path):
    Image.fromarray(np.dstack([255 - colours(), np.zeros((H, W), np.uint8)]), "CMYK").save(path)


def tiff(array, photometric=1, planar=1, compression=1, more=()):
    """A maker of a TIFF that Pillow does not write: `array` (H, W, C) of any type, as it lies there."""

    def make(path):
        height, width, channels = array.shape
        kind = {"u": 1, "i": 2, "f": 3}[array.dtype.kind]
        data = (array.transpose(2, 0, 1) if planar == 2 else array).tobytes()
        planes = channels if planar == 2 else 1
        places = [4096 + len(data) // planes * plane for plane in range(planes)]
        tags = {256: [width], 257: [height], 258: [array.dtype.itemsize * 8] * channels, 259: [compression]}
        tags |= {262: [photometric], 273: places, 277: [channels], 278: [height]}
        tags |= {279: [len(data) // planes] * planes, 284: [planar], 339: [kind] * channels, **dict(more)}
        tags = {tag: numbers for tag, numbers in tags.items() if numbers is not None}
        head, values = struct.pack("<2sHIH", b"II", 42, 8, len(tags)), b""
        for tag, numbers in sorted(tags.items()):  # all of 32 bits; several of them stand behind the others
            place = numbers[0] if len(numbers) == 1 else 2048 + len(values)
            values += struct.pack(f"<{len(numbers)}I", *numbers) * (len(numbers) > 1)
            head += struct.pack("<HHII", tag, 4, len(numbers), place)
        path.write_bytes((head.ljust(2048, b"\0") + values).ljust(4096, b"\0") + data)

    return make


def tiled(more=()):
    """A maker of a TIFF of GREY in tiles of 16 by 16."""
    rows, columns = -(-H // 16), -(-W // 16)
    whole = np.zeros((rows * 16, columns * 16), np.uint8)
    whole[:H, :W] = GREY
    tiles = whole.reshape(rows, 16, columns, 16).swapaxes(1, 2).reshape(-1, 16, 1)
    places = [4096 + 256 * number for number in range(rows * columns)]
    tags = {256: [W], 257: [H], 322: [16], 323: [16], 324: places, 325: [256] * len(places), 273: None, 279: None}
    return tiff(tiles, more={**tags, 278: None, **dict(more)})


def claiming(rows, array, **options):
    """A maker of a TIFF whose head says that it has so many rows."""

    def make(path):
        Image.fromarray(array).save(path, "TIFF", **options)
        data = bytearray(path.read_bytes())
        for place in tags_of(data):
            if struct.unpack_from("<H", data, place)[0] == 257:
                struct.pack_into("<HHII", data, place, 257, 4, 1, rows)
        path.write_bytes(data)

    return make


def tags_of(data):
    """The places of the tags of a TIFF's first page, each of 12 bytes."""
    first = struct.unpack_from("<I", data, 4)[0]
    return range(first + 2, first + 2 + 12 * struct.unpack_from("<H", data, first)[0], 12)


def cut(kind, share, **options):
    """A maker: the first `share` of a picture's bytes."""

    def make(path):
        file = io.BytesIO()
        Image.fromarray(colours()).save(file, kind, **options)
        data = file.getvalue()
        path.write_bytes(data[: int(share * len(data))])

    return make


def cut_film(path):
    """A GIF of two frames, cut before the second: Pillow gives the first, as if there were no other."""
    frames(path)
    data = path.read_bytes()
    path.write_bytes(data[: data.rindex(b"!\xf9") + 2])


def endless_film(path):
    """A GIF of two frames without the mark of the end."""
    frames(path)
    path.write_bytes(path.read_bytes().removesuffix(b";"))


def wide_film(path):
    """A WebP of two frames whose head says 30,001 columns."""
    first, second = (Image.fromarray(array) for array in (colours(), 255 - colours()))
    first.save(path, save_all=True, append_images=[second], lossless=True)
    data = path.read_bytes()
    path.write_bytes(data[:24] + (30_000).to_bytes(3, "little") + data[27:])


def blank_end(path):
    draw = np.random.default_rng(0)  # noise fills files
    first, second = (Image.fromarray(draw.integers(0, 256, (24, 32, 3), np.uint8)) for _ in range(2))
    options = dict(save_all=True, append_images=[second]) if path.suffix == ".gif" else {}
    first.save(path, quality=95, **options)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2] + bytes(len(data) - len(data) // 2))


def half_in_the_middle(path):
    file = io.BytesIO()
    Image.fromarray(colours()).save(file, "PNG")
    data = bytearray(file.getvalue())
    data[300:900] = bytes(600)
    path.write_bytes(data)


def giant(path):
    """A PNG's head that promises 40,000 x 40,000 pixels."""
    Image.new("1", (40_000, 1)).save(path)
    data = bytearray(path.read_bytes())
    data[20:24] = (40_000).to_bytes(4, "big")
    data[29:33] = zlib.crc32(bytes(data[12:29])).to_bytes(4, "big")
    path.write_bytes(data)


def starting_with(mark, place=0):
    """A maker of a file that begins as pictures of some kind do."""
    return lambda path: path.write_bytes(bytes(place) + mark + bytes(4000))


def icon(path):
    """An ICO that TGA's decoder would take: its third byte says colours by number, its 17th a bit a pixel."""
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (160, 160, 3), np.uint8)).save(
        path, "ICO", sizes=[(160, 160)], bitmap_format="bmp"
    )


OPENED = "what Pillow itself makes of the file"  # for lossy kinds

# name -> (maker, the image it holds) or (maker, words of the message)
IMAGES = {
    "rgb.png": (save(colours()), colours()),
    "rgb.bmp": (save(colours()), colours()),
    "rgb.tif": (save(colours()), colours()),
    "lzw.tiff": (save(colours(), compression="tiff_lzw"), colours()),
    "rgb.ppm": (save(colours()), colours()),
    "rgb.tga": (save(colours()), colours()),
    "lossless.webp": (save(colours(), lossless=True), colours()),
    "lossy.jpg": (save(smooth(), quality=90), OPENED),
    "progressive.jpeg": (save(smooth(), progressive=True), OPENED),
    "lossy.webp": (save(smooth()), OPENED),
    "grey.png": (save(GREY), np.dstack(THREE)),
    "grey.jpg": (save(smooth()[..., 0]), OPENED),
    "one-bit.png": (save(GREY > 99), np.dstack([(GREY > 99) * np.uint8(255)] * 3)),
    "grey-alpha.png": (save(np.dstack([GREY, GREY[::-1]])), np.dstack(THREE)),
    "rgba.png": (save(np.dstack([colours(), GREY])), colours()),
    "sixteen.png": (save(WIDE), np.dstack(THREE)),
    "sixteen.tif": (save(WIDE), np.dstack(THREE)),
    "thirty-two.tif": (save(WIDE.astype(np.int32)), np.dstack(THREE)),
    "palette.png": (palette, np.eye(4, 3, dtype=np.uint8)[GREY // 64] * 255 + (GREY // 64 == 3)[..., None] * [9, 8, 7]),
    "palette.gif": (palette, np.eye(4, 3, dtype=np.uint8)[GREY // 64] * 255 + (GREY // 64 == 3)[..., None] * [9, 8, 7]),
    "cmyk.tif": (cmyk, colours()),
    "cmyk.jpg": (cmyk, OPENED),
    "animated.gif": (frames, np.asarray(Image.fromarray(smooth()).quantize(16).convert("RGB"))),
    "pages.tif": (frames, np.asarray(Image.fromarray(smooth()).quantize(16).convert("RGB"))),
    "turned 1.png": (turned(1), colours()),
    "turned 2.png": (turned(2), colours()[:, ::-1]),
    "turned 3.png": (turned(3), colours()[::-1, ::-1]),
    "turned 4.png": (turned(4), colours()[::-1]),
    "turned 5.png": (turned(5), colours().transpose(1, 0, 2)),
    "turned 6.png": (turned(6), np.rot90(colours(), -1)),
    "turned 7.png": (turned(7), np.rot90(colours().transpose(1, 0, 2), 2)),
    "turned 8.png": (turned(8), np.rot90(colours())),
    "turned 6.tif": (turned(6), np.rot90(colours(), -1)),
    "turned grey 8.tif": (turned(8, GREY), np.rot90(np.dstack(THREE))),
    "turned 9, which is none.png": (turned(9), colours()),
    "UPPER.PNG": (save(colours()), colours()),
    "with space and [brackets] {x}.png": (save(colours()), colours()),
    "Fahrräder_日本_🚗.png": (save(colours()), colours()),
    "jpeg called.png": (lambda path: Image.fromarray(colours()).save(path, "BMP"), colours()),
    os.fsdecode(b"no-unicode-\xff.png"): (save(colours(), format="PNG"), colours()),
    "one pixel.png": (save(colours()[:1, :1]), colours()[:1, :1]),
    "float.tif": (save(GREY.astype(np.float32)), "floating-point pixels. Save it with 8 or 16 bits; IMAGE_RANGE"),
    "negative.tif": (save(WIDE.astype(np.int32) - 500), "16 bits. Save it with 8 or 16 bits; IMAGE_RANGE"),
    "five bands.tif": (tiff(np.zeros((H, W, 5), np.uint8)), "a TIFF of 5 channels of 8 bits, 24x36 (height x width)"),
    "float colours.tif": (
        tiff(np.zeros((H, W, 3), np.float32), 2),
        "has values of 32 bits or with fractions. Save it with 8 or 16 bits; IMAGE_RANGE",
    ),
    "double.tif": (tiff(np.zeros((H, W, 1))), "1 channel of floating-point 64 bits"),
    "lab.tif": (tiff(deep(), 8), "3 channels of 16 bits, 24x36 (height x width), of compression 1 and photometric"),
    "packed.tif": (tiff(colours(), 2, compression=34712), "of compression 34712 and"),
    "planar.tif": (tiff(deep(), 2, planar=2), deep() >> 8),
    "zero.png": (lambda path: path.write_bytes(b""), "empty (0 bytes)"),
    "text.png": (lambda path: path.write_text("not a picture\n" * 50), "no picture"),
    "program.jpg": (
        lambda path: path.write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 6 4\n"),
        "is an EPS picture",
    ),
    "jp2.png": (lambda path: Image.fromarray(colours()).save(path, "JPEG2000"), "is a JPEG 2000 picture, which is not"),
    "icon.png": (icon, "is no picture of a kind that is read"),
    "layers.tif": (starting_with(b"8BPS"), "is a PSD picture"),
    "phone.jpg": (starting_with(b"\0\0\0\x18ftypheic"), "is a HEIC picture"),
    "disc.jpg": (starting_with(b"PCD_", 2048), "is no picture of a kind that is read"),
    "html.jpg": (lambda path: path.write_text("<!DOCTYPE html><title>Sign in</title>"), "no picture"),
    "folder.png": (lambda path: path.mkdir(), "is a folder"),
    "head only.png": (cut("PNG", 0.01), "cut short"),
    "a third.png": (cut("PNG", 0.33), "cut short"),
    "nearly all.png": (cut("PNG", 0.98), "cut short"),
    "head only.jpg": (cut("JPEG", 0.3), "cut short"),
    "half.jpg": (cut("JPEG", 0.7), "cut short"),
    "nearly all.jpg": (cut("JPEG", 0.98), "cut short"),
    "half progressive.jpg": (cut("JPEG", 0.7, progressive=True), "cut short"),
    "half.gif": (cut("GIF", 0.7), "cut short"),
    "film.gif": (cut_film, "cut short"),
    "film without its end.gif": (endless_film, np.asarray(Image.fromarray(smooth()).quantize(16).convert("RGB"))),
    "film.webp": (wide_film, "larger than a WebP can be"),
    "half.bmp": (cut("BMP", 0.5), "cut short"),
    "half.tif": (cut("TIFF", 0.5), ""),
    "half.webp": (cut("WEBP", 0.5), ""),
    "half.ppm": (cut("PPM", 0.5), "cut short"),
    "zeros at the end.jpg": (blank_end, "zeros"),
    "zeros at the end.gif": (blank_end, "zeros"),
    "zeros at the end.webp": (blank_end, "zeros"),
    "zeros in the middle.png": (half_in_the_middle, "damaged"),
    "giant.png": (giant, "million pixels"),
    "loop.png": (lambda path: path.symlink_to(path), "link"),
    "dangling.png": (lambda path: path.symlink_to(path.parent / "nothing"), "link"),
    "pipe.png": (lambda path: os.mkfifo(path), "no ordinary file"),
    "missing.png": (lambda path: None, "not there"),
    "long IHDR.png": (lambda path: path.write_bytes(b"\x89PNG\r\n\x1a\n\0\0\0\x0eIHDR" + bytes(99)), "damaged"),
    "more rows.tif": (claiming(7_000_000, GREY), "cut short (it holds fewer than the 7,000,000 rows it should)"),
    "more rows of colours.tif": (claiming(H + 1, colours()), "cut short"),
    "more rows of 16 bits.tif": (claiming(2 * H, WIDE), "cut short"),
    "more rows of LZW.tif": (claiming(2 * H, colours(), compression="tiff_lzw"), "cut short"),
    "more rows in one strip.tif": (tiff(GREY[..., None], more={257: [H + 9], 278: [2**32 - 1]}), "cut short"),
    "more rows, planar.tif": (tiff(colours(), 2, planar=2, more={257: [2 * H]}), "cut short"),
    "tiles.tif": (tiled(), np.dstack(THREE)),
    "more rows of tiles.tif": (tiled({257: [4 * H]}), "cut short"),
    "one strip of any height.tif": (tiff(GREY[..., None], more={278: [2**32 - 1]}), np.dstack(THREE)),
}


@pytest.mark.parametrize("name", IMAGES, ids=lambda name: name.encode("ascii", "backslashreplace").decode())
def test_image_is_read_right_or_refused_in_words(tmp_path, name):
    make, expected = IMAGES[name]
    path = tmp_path / name
    make(path)
    if isinstance(expected, np.ndarray) or expected is OPENED:
        image = read_image(path)
        if expected is OPENED:
            with Image.open(path) as picture:
                expected = np.asarray(picture.convert("RGB"))
        assert image.dtype == np.uint8 and image.shape == (*expected.shape[:2], 3)
        np.testing.assert_array_equal(image, expected)
        assert image_size(path) == image.shape[:2]
    else:
        with pytest.raises(UnusableFile) as caught:
            read_image(path)
        assert expected in str(caught.value) and str(caught.value).startswith(printable(path))
        assert caught.value.cure
        str(caught.value).encode()  # can be printed


def by_opencv(array, *options):
    """A maker: OpenCV writes 16 bits of RGB or RGBA."""

    def make(path):
        order = [2, 1, 0, 3][: array.shape[2]]
        path.write_bytes(cv2.imencode(path.suffix, array[..., order], options)[1])

    return make


def turned_colours(path):
    """A PNG of 16-bit colours with EXIF's orientation 6."""
    by_opencv(deep())(path)
    exif = Image.Exif()
    exif[274] = 6
    chunk = b"eXIf" + exif.tobytes().removeprefix(b"Exif\0\0")
    data = path.read_bytes()
    chunk = (len(chunk) - 4).to_bytes(4, "big") + chunk + zlib.crc32(chunk).to_bytes(4, "big")
    path.write_bytes(data[:33] + chunk + data[33:])


def twelve_bits(path):
    path.write_bytes(b"P6 %d %d 4095\n" % (W, H) + (deep() >> 4).astype(">u2").tobytes())


LZW = (cv2.IMWRITE_TIFF_COMPRESSION, 5)
FLOATS = np.linspace(-3, 1e6, H * W, dtype=np.float32).reshape(H, W)
DEEP = {  # name -> (maker, its pixels in their own depth)
    "colour.png": (by_opencv(deep()), deep()),
    "alpha.png": (by_opencv(deep(4)), deep(4)[..., :3]),
    "colour.tif": (by_opencv(deep(), cv2.IMWRITE_TIFF_COMPRESSION, 1), deep()),
    "lzw.tif": (by_opencv(deep(), *LZW), deep()),
    "alpha.tif": (by_opencv(deep(4), *LZW), deep(4)[..., :3]),
    "colour.ppm": (by_opencv(deep()), deep()),
    "twelve bits.ppm": (twelve_bits, np.rint((deep() >> 4) * (65535 / 4095)).astype(np.uint16)),
    "turned.png": (turned_colours, np.rot90(deep(), -1)),
    "grey.png": (save(deep()[..., 0]), np.dstack([deep()[..., 0]] * 3)),
    "grey.tif": (save(deep()[..., 0]), np.dstack([deep()[..., 0]] * 3)),
    "turned grey.tif": (turned(6, deep()[..., 0]), np.rot90(np.dstack([deep()[..., 0]] * 3), -1)),
    "float.tif": (save(FLOATS), np.dstack([FLOATS] * 3)),
    "whole numbers.tif": (save(WIDE.astype(np.int32)), np.dstack([WIDE] * 3)),
    "negative.tif": (save(WIDE.astype(np.int32) - 500), np.dstack([WIDE.astype(np.float32) - 500] * 3)),
    "no sign.tif": (tiff(deep(1) * np.uint32(65537)), np.dstack([deep(1) * np.float32(65537)] * 3)),
    "eight.png": (save(colours()), colours()),
    "eight.jpg": (save(smooth()[..., 0]), OPENED),
    "five, six and five bits.bmp": (
        lambda path: path.write_bytes(
            b"BM" + (66 + H * W * 2).to_bytes(4, "little") + bytes(4) + (66).to_bytes(4, "little")
            + b"".join(n.to_bytes(4, "little") for n in (40, W, H, 1 | 16 << 16, 3, 0, 0, 0, 0, 0, 0xF800, 0x7E0, 0x1F))
            + bytes(H * W * 2)
        ),
        np.zeros((H, W, 3), np.uint8),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", DEEP)
def test_pixels_keep_their_depth_and_a_span_makes_bytes_of_them(tmp_path, name):
    make, expected = DEEP[name]
    path = tmp_path / name
    make(path)
    if expected is OPENED:
        expected = read_image(path)
    decoded = decode(path)
    pixels, depth = pixels_of(decoded, path), depth_of(decoded, path)
    assert pixels.dtype == expected.dtype
    np.testing.assert_array_equal(pixels, expected)
    assert image_size(path) == pixels.shape[:2]
    low, high = 1000, 40_000
    image = read_image(path, value_range=(low, high))
    assert image.dtype == np.uint8
    if expected.dtype == np.uint8:
        assert depth is None and np.array_equal(image, expected)
        return
    right = np.clip((expected.astype(float) - low) * 255 / (high - low), 0, 255)
    assert np.abs(image - right).max() <= 0.51
    np.testing.assert_array_equal(image, bytes_of(pixels, (low, high)))
    np.testing.assert_array_equal(read_image(path, (9, 8), value_range=(low, high)), resize_image(image, (9, 8)))
    kind = "float" if name == "float.tif" else 16 if expected.dtype == np.uint16 else 32
    assert (depth["bits"], depth["lowest"], depth["highest"]) == (kind, expected.min(), expected.max())
    assert json.loads(json.dumps(depth)) == depth
    assert np.array_equal(depth["quantiles"], np.sort(depth["quantiles"])) and len(depth["quantiles"]) == 100


def test_a_later_page_of_deep_colours(tmp_path):
    pages = [deep(3, seed)[..., ::-1] for seed in range(3)]
    cv2.imwritemulti(str(tmp_path / "a.tif"), pages)
    for number in range(3):
        decoded = decode(tmp_path / "a.tif", page=number)
        assert np.array_equal(pixels_of(decoded, tmp_path / "a.tif"), deep(3, number))


def test_deep_colours_that_two_libraries_see_differently_are_refused(tmp_path):
    tiff(deep(4), 2, more={338: [1]})(tmp_path / "a.tif")  # colours multiplied by alpha, which Pillow takes back
    assert read_image(tmp_path / "a.tif").shape == (H, W, 3)
    with pytest.raises(UnusableFile, match="a.tif: has 16 bits in several channels, laid out in an uncommon way"):
        read_image(tmp_path / "a.tif", value_range=(0, 9))


def test_nothing_is_printed_about_odd_tags(tmp_path, capfd):
    tiff(deep(), 2, more={42113: [0]})(tmp_path / "a.tif")  # GDAL's value of no data
    assert np.array_equal(pixels_of(decode(tmp_path / "a.tif"), tmp_path / "a.tif"), deep())
    assert capfd.readouterr() == ("", "")


def test_pixels_that_are_no_numbers_are_refused(tmp_path):
    values = FLOATS.copy()
    values[3, :4] = np.nan, np.inf, -np.inf, np.nan
    Image.fromarray(values).save(tmp_path / "a.tif")
    with pytest.raises(UnusableFile, match="a.tif: has 4 pixels that are no numbers"):
        read_image(tmp_path / "a.tif", value_range=(0, 1))
    with np.errstate(all="raise"):
        bytes_of(np.float32([[-3.4e38, 3.4e38]]), (-3e38, 1))


def test_the_span_of_a_dataset_leaves_outliers_out(tmp_path):
    depths = []
    for seed in range(5):
        draw = np.random.default_rng(seed)
        values = draw.integers(2000, 3000, (200, 300), np.uint16)
        values.flat[draw.choice(values.size, 60, replace=False)] = 65535
        Image.fromarray(values).save(tmp_path / "a.png")
        depths.append(depth_of(decode(tmp_path / "a.png"), tmp_path / "a.png"))
    (low, high), nodata = choose_value_range(depths)
    assert 2000 <= low < 2030 and 2970 < high <= 3000 and not nodata


RISING = list(range(1000, 1100))
RANGES = {  # quantiles of the images -> the range, and what is left out
    "one value nearly everywhere": ([[7] * 999 + [9]], (7, 9), {}),
    "one value": ([[7.0] * 100], (7, 8), {}),
    "two images": ([range(500), range(500, 1001)], (5, 995), {}),
    "black beside greys": ([[0] * 50 + [500 + 10 * k for k in range(50)]], (0, 990), {}),
    "light that is clipped": ([[min(30_000 + 600 * k, 65535) for k in range(100)]], (30_000, 65535), {}),
    "-9999": ([[-9999] * 8 + RISING[8:], RISING], (1001, 1099), {-9999: 0.04}),
    "65535": ([RISING[:90] + [65535] * 10], (1000, 1089), {65535: 0.1}),
    "both ends of float32": (
        [[-3.4e38] * 10 + RISING[10:90] + [3.4e38] * 10],
        (1010, 1089),
        {3.4e38: 0.1, -3.4e38: 0.1},
    ),
    "both ends": ([[-9999] * 10 + RISING[10:90] + [3.4e38] * 10], (1010, 1089), {3.4e38: 0.1, -9999: 0.1}),
    "nothing else": ([[-9999] * 100], (-9999, -9998), {}),
}


@pytest.mark.parametrize("name", RANGES)
def test_the_range_of_a_dataset_is_that_of_its_data(name):
    quantiles, value_range, nodata = RANGES[name]
    depths = [dict(quantiles=list(of_image), nodata=None) for of_image in quantiles]
    assert choose_value_range(depths) == (value_range, nodata)


def test_what_a_geotiff_declares_as_no_data_is_left_out(tmp_path):
    values = np.random.default_rng(0).normal(100, 30, (40, 60)).astype(np.float32)
    values[:8] = -0.1  # not far from the others
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    for tag in ("-0.1", "nan", "odd"):
        tags[images.GDAL_NODATA] = tag
        Image.fromarray(values).save(tmp_path / "a.tif", tiffinfo=tags)
        depth = depth_of(decode(tmp_path / "a.tif"), tmp_path / "a.tif")
        (low, high), nodata = choose_value_range([depth])
        if tag == "-0.1":
            assert low > 10 and list(nodata.values()) == [pytest.approx(0.2)]
            assert choose_value_range([dict(depth, quantiles=[values[0, 0].item()] * 100)])[1] == {}
        else:
            assert low < 10 and nodata == {}


def test_jpeg_orientations_match_pngs(tmp_path):
    for orientation in range(1, 9):
        turned(orientation, smooth())(tmp_path / "a.jpg")
        turned(orientation, smooth())(tmp_path / "a.png")
        difference = read_image(tmp_path / "a.jpg").astype(int) - read_image(tmp_path / "a.png")
        assert np.abs(difference).mean() < 4
        assert image_size(tmp_path / "a.jpg") == read_image(tmp_path / "a.jpg").shape[:2]


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP", "TGA"])
def test_cut_anywhere_it_is_refused_or_whole(tmp_path, kind):
    file, path = io.BytesIO(), tmp_path / f"cut.{kind.lower()}"  # TGA is told by its name alone
    Image.fromarray(colours()).save(file, kind)
    data = file.getvalue()
    path.write_bytes(data)
    whole = read_image(path)
    refused = 0
    for length in range(0, len(data), 11):
        path.write_bytes(data[:length])
        try:
            np.testing.assert_array_equal(read_image(path), whole)
        except UnusableFile:
            refused += 1
    assert refused > len(data) / 11 * 0.9


def test_damaged_metadata_leaves_the_pixels_and_the_turn(tmp_path):
    """EXIF whose values Pillow can read and not write again; the orientation in it still counts."""
    exif = Image.Exif()
    exif[274], exif[271], exif[306] = 6, "Maker", "2020:01:01 00:00:00"
    Image.fromarray(colours()).save(tmp_path / "a.png", exif=exif)
    data, draw, read = (tmp_path / "a.png").read_bytes(), np.random.default_rng(0), 0
    start = data.index(b"eXIf")
    end = start + 4 + int.from_bytes(data[start - 4 : start], "big")
    orientation = data.index(b"\x12\x01" if b"II*" in data else b"\x01\x12", start)
    for _ in range(300):
        damaged = bytearray(data)
        place = draw.integers(start + 14, end)
        if orientation <= place < orientation + 12:
            continue
        damaged[place] ^= 1 << draw.integers(8)
        damaged[end : end + 4] = zlib.crc32(damaged[start:end]).to_bytes(4, "big")
        (tmp_path / "a.png").write_bytes(damaged)
        image = read_image(tmp_path / "a.png")
        read += np.array_equal(image, np.rot90(colours(), -1))
        assert np.array_equal(image, np.rot90(colours(), -1)) or np.array_equal(image, colours())
    assert read > 150


def test_nothing_is_printed_about_odd_metadata(tmp_path):
    """Pillow warns of a palette with transparency, of large pictures and of broken EXIF."""
    picture = Image.fromarray(GREY // 64, mode="P")
    picture.save(tmp_path / "a.png", transparency=bytes([0, 9, 200, 255]))
    exif = Image.Exif()
    exif[274] = 1
    Image.fromarray(smooth()).save(tmp_path / "b.jpg", exif=exif.tobytes()[:-9])
    Image.new("1", (10_000, 10_000)).save(tmp_path / "c.png")
    code = (
        "import sys; from parts.images import image_size, read_image\n"
        "for path in sys.argv[1:3]: read_image(path, (8, 8))\n"
        "image_size(sys.argv[3])"
    )
    paths = [tmp_path / name for name in ("a.png", "b.jpg", "c.png")]
    done = subprocess.run([sys.executable, "-c", code, *paths], cwd=ROOT, capture_output=True, text=True, timeout=WAIT)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_sizes_are_height_and_width_and_shrinking_averages(tmp_path):
    big = np.kron(colours()[:, :, :1] // 255 * 255, np.ones((8, 8, 1), np.uint8)).repeat(3, axis=2)
    Image.fromarray(big).save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png", (H, W)).shape == (H, W, 3)
    checks = np.indices((64, 64)).sum(0).astype(np.uint8) % 2 * 200
    assert set(np.unique(resize_image(checks, (16, 16)))) == {100}
    assert resize_image(checks, (128, 16)).shape == (128, 16)
    assert resize_image(checks, (64, 64)) is checks


def test_each_page_is_read_by_its_number(tmp_path):
    pages = [Image.fromarray(np.full((10 + number, 20, 3), 50 * number, np.uint8)) for number in range(3)]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    pages[0].save(tmp_path / "one.tif")
    (tmp_path / "text.tif").write_text("no picture")
    assert [pages_of(tmp_path / f"{name}.tif") for name in ("a", "one", "text")] == [[0, 1, 2], [0], None]
    for number in range(3):
        assert image_size(tmp_path / "a.tif", number) == (10 + number, 20)
        assert (read_image(tmp_path / "a.tif", page=number) == 50 * number).all()
        assert (read_image(tmp_path / "a.tif", (4, 5), number) == 50 * number).all()
    with pytest.raises(UnusableFile, match=r"a\.tif\[3\]: "):
        read_image(tmp_path / "a.tif", page=3)


def test_small_jpeg_is_close_to_the_full_one_shrunk(tmp_path):
    y, x = np.mgrid[:640, :960]
    waves = [np.sin(x / 9), np.cos(y / 13), np.sin((x + y) / 50)]
    photo = (127 + 100 * np.stack(waves, axis=2)).astype(np.uint8)
    for orientation, size in ((1, (160, 240)), (6, (240, 160))):
        turned(orientation, photo)(tmp_path / "a.jpg")
        small = read_image(tmp_path / "a.jpg", size).astype(float)
        full = resize_image(read_image(tmp_path / "a.jpg"), size)
        assert small.shape == (*size, 3) and np.abs(small - full).mean() < 1


def test_a_later_page_of_an_odd_kind_is_told(tmp_path):
    pages = [Image.fromarray(np.full((4, 5), number, np.uint8)) for number in range(2)]
    pages[0].save(tmp_path / "two.tif", save_all=True, append_images=pages[1:])
    tiff(np.zeros((H, W, 5), np.uint8))(tmp_path / "five.tif")
    data, five = bytearray((tmp_path / "two.tif").read_bytes()), (tmp_path / "five.tif").read_bytes()
    first = int.from_bytes(data[4:8], "little")
    link = first + 2 + 12 * int.from_bytes(data[first : first + 2], "little")  # to the second page
    data[link : link + 4] = (1024).to_bytes(4, "little")
    (tmp_path / "a.tif").write_bytes(bytes(data[:1024]).ljust(1024, b"\0") + five[8:1032] + five[2048:])
    assert pages_of(tmp_path / "a.tif") == [0, 1]
    with pytest.raises(UnusableFile, match=r"a\.tif\[1\]: is a TIFF of 5 channels"):
        read_image(tmp_path / "a.tif", page=1)


def test_folder_and_file_without_permission(tmp_path_factory):
    """In a child that is nobody, because permissions do not bind root."""
    with tempfile.TemporaryDirectory() as place:
        os.chmod(place, 0o755)
        locked = Path(place, "locked")
        locked.mkdir(mode=0)
        Image.fromarray(GREY).save(Path(place, "b.png"))
        Path(place, "b.png").chmod(0)
        code = (
            "import os, sys\nfrom PIL import Image\nfrom parts.errors import UserError\n"
            "from parts.images import read_image\nfrom parts.names import list_pictures\n"
            "Image.init()\n"
            "if os.geteuid() == 0: os.setuid(65534)\n"
            "for call, name in ((list_pictures, 'locked'), (read_image, 'b.png')):\n"
            "    try: call(f'{sys.argv[1]}/{name}')\n"
            "    except UserError as error: print(error)\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, place], cwd=ROOT, capture_output=True, text=True, timeout=WAIT
        )
        lines = done.stdout.splitlines()
        assert len(lines) == 2, done.stderr
        assert str(locked) in lines[0] and "ermission" in lines[0] and "b.png" in lines[1] and "ermission" in lines[1]
        locked.chmod(0o755)


def test_a_bitmap_that_pillow_misreads_is_refused(tmp_path):
    """Its palette of two is taken for 1 bit, whatever the file says: it would be read as stripes."""
    mask = np.zeros((19, 39), np.uint8)
    mask[3:9, 4:20] = 1
    picture = Image.fromarray(mask).convert("P")
    picture.putpalette([0, 0, 0, 255, 255, 255])
    picture.save(tmp_path / "two.bmp")
    with pytest.raises(UnusableFile, match="two.bmp: is a BMP with a palette of black and white"):
        decode(tmp_path / "two.bmp")
    Image.fromarray(mask > 0).save(tmp_path / "one.bmp")
    np.testing.assert_array_equal(np.asarray(decode(tmp_path / "one.bmp").picture), mask > 0)


def test_one_function_opens_and_says_which_kinds():
    """Else Pillow opens a file by whatever decoder fits, some of which start programs."""
    for path in [*ROOT.glob("*.py"), *ROOT.glob("parts/*.py")]:
        lines = [line for line in path.read_text().splitlines() if "Image.open(" in line]
        assert path.name == "images.py" or not lines, path
        assert all("formats=" in line for line in lines)


# ---- pages are read by going through the file once


def drawn_frames(count):
    """Frames of which each differs from the one before in some places, so that each is made of those before it."""
    frames, array = [], np.zeros((12, 16, 3), np.uint8)
    for number in range(count):
        array[number % 12, number % 7 : number % 7 + 5] = number * 37 % 256, number, 255 - number
        frames.append(Image.fromarray(array))
    return frames


KINDS_OF_PAGES = {
    "a.gif": {},
    "b.gif": dict(disposal=2),
    "a.png": {},
    "b.png": dict(disposal=1, blend=1),
    "a.webp": dict(lossless=True),
    "a.tif": {},
    "b.tif": dict(compression="tiff_lzw"),
}


@pytest.mark.parametrize("name", KINDS_OF_PAGES)
def test_pages_are_read_in_one_pass_whoever_reads_them(tmp_path, name, monkeypatch):
    count, path = 40, tmp_path / name
    first, *rest = drawn_frames(count)
    first.save(path, save_all=True, append_images=rest, **KINDS_OF_PAGES[name])
    right = []
    for number in range(count):
        with Image.open(path) as picture:
            picture.seek(number)
            right.append(np.asarray(picture.convert("RGB")))
    opened, real_open = [], Image.open
    monkeypatch.setattr(Image, "open", lambda *given, **options: opened.append(1) or real_open(*given, **options))

    def check(number):
        assert image_size(path, number) == (12, 16)
        again = [read_image(path, page=number) for _ in range(2)]
        assert np.array_equal(again[0], right[number]) and np.array_equal(again[1], right[number])
        return number

    assert pages_of(path) == list(range(count))
    pages = [decode(path, page=number) for number in range(count)]
    assert len(opened) == 1, "pages are quadratic where each is looked for from the first"
    kept = [np.asarray(page.picture.convert("RGB")) for page in pages]  # each is its own, though the file went on
    assert np.array_equal(kept, right)
    child = multiprocessing.get_context("fork").Process(target=lambda: list(map(check, range(count))))
    child.start()  # with a file that its parent reads too
    for number in [*range(count), 7, 39, 0, 21]:
        check(number)
    child.join()
    assert child.exitcode == 0
    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(check, range(count))) == list(range(count))
    assert len(opened) <= 4 + 3, "one a thread, and one for each step back"
    path.write_bytes((tmp_path / name).read_bytes()[:-60])  # which is another file by now
    with pytest.raises(UnusableFile):
        list(map(check, range(count)))


def test_every_page_is_turned_and_few_files_stay_open(tmp_path):
    exif = Image.Exif()
    exif[274] = 6
    first, *rest = drawn_frames(3)
    for number in range(30):
        first.save(tmp_path / f"{number}.webp", save_all=True, append_images=rest, exif=exif, lossless=True)
    before = len(os.listdir("/proc/self/fd")) if os.path.exists("/proc/self/fd") else 0
    for number in range(30):
        for page, frame in enumerate([first, *rest]):
            image = read_image(tmp_path / f"{number}.webp", page=page)
            np.testing.assert_array_equal(image, np.rot90(np.asarray(frame), -1))
    if before:
        assert len(os.listdir("/proc/self/fd")) <= before + 6


# ---- damage that Pillow does not see


@pytest.mark.parametrize("pages", [1, 3])
def test_a_png_with_any_bit_flipped_is_refused(tmp_path, pages):
    """Of its data, the checksum alone tells it: where it lies among zeros, it moves pixels and no decoder complains."""
    mask = np.zeros((40, 60), np.uint8)
    mask[9:30, 20:50] = 255
    first, *rest = (Image.fromarray(np.roll(mask, 3 * number, 1)) for number in range(pages))
    first.save(tmp_path / "a.png", save_all=pages > 1, append_images=rest)
    data = (tmp_path / "a.png").read_bytes()
    assert len(pages_of(tmp_path / "a.png")) == pages
    for place in range(len(data)):
        damaged = bytearray(data)
        damaged[place] ^= 1 << place % 8
        (tmp_path / "a.png").write_bytes(damaged)
        with pytest.raises(UnusableFile, match="damaged|no picture"):
            decode(tmp_path / "a.png")


@pytest.mark.parametrize("array", [GREY, colours(), WIDE, GREY.astype(np.int32)], ids=["8", "RGB", "16", "32"])
def test_a_changed_tag_of_a_tiff_ends_nothing(tmp_path, array):
    """Whatever a tag says: pixels, or an UnusableFile."""
    path = tmp_path / "a.tif"
    Image.fromarray(array).save(path)
    data, refused = path.read_bytes(), 0
    for tag in tags_of(data):
        for place in range(tag, tag + 12):
            for value in (0, 2, 7, 12, 255):
                path.write_bytes(data[:place] + bytes([value]) + data[place + 1 :])
                pages_of(path)
                try:
                    decoded = decode(path)
                    pixels_of(decoded, path), depth_of(decoded, path), image_size(path)
                except UnusableFile:
                    refused += 1
    assert refused > 100


def test_nul_is_in_no_name(tmp_path):
    with pytest.raises(UnusableFile, match=r"a\\x00b.png: is no name of a file, .* NUL"):
        read_image(f"{tmp_path}/a\0b.png")


# ---- too little memory for one picture


class TooLarge(Output):
    """What cannot be made of one picture, for want of memory."""

    def __init__(self, name, error):
        self.name, self.error = name, error

    def make(self, prediction):
        if prediction.picture.path.name == self.name:
            raise self.error


@pytest.mark.parametrize("error", [MemoryError(), cv2.error("Insufficient memory in function 'OutOfMemoryError'")])
def test_a_picture_that_does_not_fit_into_memory_fails_alone(tmp_path, monkeypatch, error, network):
    draw_pairs(tmp_path / "i", tmp_path / "m", 3)
    wanted, _ = find_pictures([tmp_path / "i"])

    def run_network(outputs=()):
        runner, reader = Runner(network, torch.device("cpu")), PictureReader(None)
        results = list(predict_pictures(wanted, runner, reader, Decision(), outputs, threads=2))
        return [result.problems for result in results]

    words = "img_000.png: does not fit into memory"
    told, *others = run_network([TooLarge("img_000.png", error)])
    assert words in told[0] and others == [[], []], "as it is written"

    def rgb(picture, path, real=images.rgb):
        if Path(path).name == "img_000.png":
            raise error
        return real(picture, path)

    monkeypatch.setattr(images, "rgb", rgb)
    told, *others = run_network()
    assert words in told[0] and others == [[], []], "as it is read"
    assert words in "".join(audit((tmp_path / "i", tmp_path / "m")).problems)
    with pytest.raises(UserError, match=words):
        make_augmented(tmp_path / "i", tmp_path / "m", tmp_path / "out", choices=Choices(val_images=1))
    assert len(list((tmp_path / "out").rglob("*.png"))) == 2 * 5, "the other two pairs are made"


@pytest.mark.parametrize("suffix", ["png", "gif", "tif", "webp"])
def test_pages_are_read_in_any_order(tmp_path, suffix):
    path = tmp_path / f"film.{suffix}"
    frames = [Image.fromarray(np.full((8, 8), value, np.uint8)).convert("RGB") for value in (0, 80, 160, 240)]
    frames[0].save(path, save_all=True, append_images=frames[1:], **({"lossless": True} if suffix == "webp" else {}))
    for page in (0, 2, 1, 3, 3, 0):
        assert abs(int(read_image(path, page=page).mean()) - 80 * page) <= 2, page
