"""Which files are read, how they pair up, and what image each holds: right pixels, or a message with a cure."""

import io
import os
import subprocess
import sys
import tempfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from helpers import ROOT, WAIT
from PIL import Image

from parts.reading import (
    UnusableFile,
    group_of,
    image_size,
    list_pictures,
    pages_of,
    pair_files,
    read_image,
    resize_image,
    shown,
    source_stem,
)
from parts.script import UserError

H, W = 24, 36


def colours(seed=0):
    """An image with a different value nearly everywhere, so that every flip and turn shows."""
    return np.random.default_rng(seed).integers(0, 256, (H, W, 3), np.uint8)


def smooth():
    """An image that JPEG keeps nearly as it is."""
    y, x = np.mgrid[:H, :W]
    return np.stack([x * 7, y * 10, 200 - x * 2 - y], axis=2).astype(np.uint8)


GREY = colours()[..., 0]
THREE = [GREY] * 3


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


def cut(kind, share, **options):
    """A maker: the first `share` of a picture's bytes."""

    def make(path):
        file = io.BytesIO()
        Image.fromarray(colours()).save(file, kind, **options)
        data = file.getvalue()
        path.write_bytes(data[: int(share * len(data))])

    return make


def blank_end(path):
    file = io.BytesIO()
    Image.fromarray(colours()).save(file, "JPEG", quality=95)
    data = file.getvalue()
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


OPENED = "what Pillow itself makes of the file"  # for lossy kinds
WIDE = (GREY.astype(np.uint16) << 8) | 77

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
    "turned 9, which is none.png": (turned(9), colours()),
    "UPPER.PNG": (save(colours()), colours()),
    "with space and [brackets] {x}.png": (save(colours()), colours()),
    "Fahrräder_日本_🚗.png": (save(colours()), colours()),
    "jpeg called.png": (lambda path: Image.fromarray(colours()).save(path, "BMP"), colours()),
    os.fsdecode(b"no-unicode-\xff.png"): (save(colours(), format="PNG"), colours()),
    "one pixel.png": (save(colours()[:1, :1]), colours()[:1, :1]),
    "float.tif": (save(GREY.astype(np.float32)), "floating-point"),
    "negative.tif": (save(WIDE.astype(np.int32) - 500), "32 bits"),
    "zero.png": (lambda path: path.write_bytes(b""), "empty (0 bytes)"),
    "text.png": (lambda path: path.write_text("not a picture\n" * 50), "no picture"),
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
    "half.bmp": (cut("BMP", 0.5), "cut short"),
    "half.tif": (cut("TIFF", 0.5), ""),
    "half.webp": (cut("WEBP", 0.5), ""),
    "half.ppm": (cut("PPM", 0.5), "cut short"),
    "zeros at the end.jpg": (blank_end, "zeros"),
    "zeros in the middle.png": (half_in_the_middle, "damaged"),
    "giant.png": (giant, "million pixels"),
    "loop.png": (lambda path: path.symlink_to(path), "link"),
    "dangling.png": (lambda path: path.symlink_to(path.parent / "nothing"), "link"),
    "pipe.png": (lambda path: os.mkfifo(path), "no ordinary file"),
    "missing.png": (lambda path: None, "not there"),
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
        assert expected in str(caught.value) and str(caught.value).startswith(shown(path))
        assert caught.value.cure
        str(caught.value).encode()  # can be printed


def test_jpeg_orientations_match_pngs(tmp_path):
    for orientation in range(1, 9):
        turned(orientation, smooth())(tmp_path / "a.jpg")
        turned(orientation, smooth())(tmp_path / "a.png")
        difference = read_image(tmp_path / "a.jpg").astype(int) - read_image(tmp_path / "a.png")
        assert np.abs(difference).mean() < 4
        assert image_size(tmp_path / "a.jpg") == read_image(tmp_path / "a.jpg").shape[:2]


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP", "TGA"])
def test_cut_anywhere_it_is_refused_or_whole(tmp_path, kind):
    file, path = io.BytesIO(), tmp_path / "cut.png"
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
        "import sys; from parts.reading import image_size, read_image\n"
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


def touch(folder, *names):
    folder.mkdir(exist_ok=True)
    for name in names:
        (folder / name).write_bytes(b"x")
    return folder


def test_pairs_by_exact_stem(tmp_path):
    names = ["1.jpg", "10.jpg", "a.JPG", "b.png", "c.bmp", "d d.png", "e.v2.png", "f_mask.png"]
    masks = ["1.png", "10_mask.gif", "a.png", "b_mask.PNG", "c.mask.png", "d d_mask.png", "e.v2.mask.gif", "f_mask.gif"]
    images, masks = touch(tmp_path / "i", *names), touch(tmp_path / "m", *masks)
    found = [(pair.name, pair.image.name, pair.mask.name) for pair in pair_files(images, masks)]
    assert found == [
        ("1", "1.jpg", "1.png"),
        ("10", "10.jpg", "10_mask.gif"),
        ("a", "a.JPG", "a.png"),
        ("b", "b.png", "b_mask.PNG"),
        ("c", "c.bmp", "c.mask.png"),
        ("d d", "d d.png", "d d_mask.png"),
        ("e.v2", "e.v2.png", "e.v2.mask.gif"),
        ("f_mask", "f_mask.png", "f_mask.gif"),
    ]


def test_every_misfit_is_named_together(tmp_path):
    images = touch(tmp_path / "i", "1.jpg", "2.jpg", "3.jpg", "3.png", "4.jpg", "ok.jpg")
    masks = touch(tmp_path / "m", "10.png", "2.png", "2_mask.png", "3.png", "5_mask.gif", "ok.png")
    with pytest.raises(UserError) as caught:
        pair_files(images, masks)
    lines = str(caught.value).splitlines()
    assert "MASK_NAME" in lines[-1] and "SKIP_UNPAIRED" in lines.pop()
    assert len(lines) == 6 and not any("ok" in Path(line.split(":")[0]).name for line in lines)
    for file in ("i/1.jpg", "i/2.jpg", "i/3.jpg", "i/4.jpg", "m/10.png", "m/5_mask.gif"):
        assert sum(line.startswith(f"{tmp_path}/{file}: ") for line in lines) == 1
    assert "2.png" in lines[1] and "2_mask.png" in lines[1]


def test_accents_in_one_or_two_characters_are_the_same_name(tmp_path):
    images, masks = touch(tmp_path / "i", "caf\u00e9.jpg"), touch(tmp_path / "m", "cafe\u0301.png")
    assert len(pair_files(images, masks)) == 1


def test_images_and_masks_in_one_folder(tmp_path):
    both = touch(tmp_path / "both", "a.jpg", "a_mask.png", "b.jpg", "b_mask.png")
    assert [(pair.image.name, pair.mask.name) for pair in pair_files(both, both)] == [
        ("a.jpg", "a_mask.png"),
        ("b.jpg", "b_mask.png"),
    ]
    named = touch(tmp_path / "named", "a.jpg", "a_seg.png")
    assert [pair.mask.name for pair in pair_files(named, named, "{}_seg")] == ["a_seg.png"]
    alone = touch(tmp_path / "alone", "a.jpg", "b.jpg")
    with pytest.raises(UserError, match="given both for images and for masks"):
        pair_files(alone, alone)


# what images and their masks are called, and whether it is told
SCHEMES = {
    "segmentation": ("ISIC_{:07}.jpg", "ISIC_{:07}_segmentation.png", True),
    "prefix": ("img_{:04}.jpg", "mask_{:04}.png", True),
    "both": ("a_{:04}.jpg", "a_{:04}_L.png", True),
    "double": ("{:04}.jpg", "{:04}.jpg.png", False),
    "double and mask": ("{:04}.jpg", "{:04}.jpg_mask.png", False),
    "drive": ("{:02}_training.tif", "{:02}_manual1.gif", True),
    "case": ("IMG_{}.JPG", "img_{}.png", False),
    "case of the ending": ("p{}.jpg", "p{}_MASK.png", False),
    "plural": ("p{}.jpg", "p{}_masks.png", True),
    "dash": ("p{}.jpg", "p{}-mask.png", True),
    "channel": ("c_{:03}_0000.png", "c_{:03}.png", True),
    "zeros": ("{}.jpg", "{:04}.png", True),
    "zeros and prefix": ("img_{}.jpg", "mask_{:04}.png", True),
    "in folders": ("{0}/img_{0}.jpg", "{0}/seg_{0}.png", True),
}


def pairs_of(folder, capsys, images, masks, **named):
    """{image: mask}, below their folders, and what is printed."""
    for side, names in (("i", images), ("m", masks)):
        for name in names:
            (folder / side / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / side / name).write_bytes(b"x")
    found = pair_files(folder / "i", folder / "m", **named)
    names = {str(pair.image.relative_to(folder / "i")): str(pair.mask.relative_to(folder / "m")) for pair in found}
    return names, capsys.readouterr().out


@pytest.mark.parametrize("scheme", SCHEMES)
def test_other_ways_to_name_masks(tmp_path, capsys, scheme):
    image, mask, told = SCHEMES[scheme]
    wanted = {image.format(k): mask.format(k) for k in range(8, 12)}
    found, words = pairs_of(tmp_path, capsys, wanted, wanted.values())
    assert found == wanted
    if told:  # with an example
        assert Path(mask.format(8)).name in words or Path(mask.format(10)).name in words
    else:
        assert words == ""


@pytest.mark.parametrize(
    "images, masks",
    [
        (["10.jpg", "11.jpg"], ["20.png", "21.png"]),  # a number would be cut in two
        (["1.jpg", "2.jpg"], ["1001.png", "1002.png"]),
        (["x.jpg"], ["y.png"]),
        (["1.jpg"], ["10.png"]),
        (["a.jpg", "b.jpg"], ["a_seg.png", "b_seg.png", "c_seg.png"]),  # not every file
        (["a.jpg", "b.jpg", "c.jpg"], ["a.png", "b_seg.png", "c_seg.png"]),  # plain names pair something
        (["1.jpg", "01.jpg"], ["001.png", "0001.png"]),
        (["IMG.jpg", "img.png"], ["Img.png"]),
    ],
)
def test_names_that_do_not_pair_every_file_are_no_scheme(tmp_path, capsys, images, masks):
    with pytest.raises(UserError) as caught:
        pairs_of(tmp_path, capsys, images, masks)
    text = str(caught.value)
    assert "MASK_NAME" in text and "SKIP_UNPAIRED" in text
    alone = {name for name in [*images, *masks] if name not in ("a.jpg", "a.png")}
    assert all(f"{name}: " in text for name in alone)


def test_the_same_case_comes_before_another(tmp_path, capsys):
    images = ["a.jpg", "A.jpg", "b_mask.jpg", "b.jpg"]
    masks = ["A.png", "a.png", "b_mask.png", "B.png"]
    found, _ = pairs_of(tmp_path, capsys, images, masks)
    assert found == {"a.jpg": "a.png", "A.jpg": "A.png", "b_mask.jpg": "b_mask.png", "b.jpg": "B.png"}


@pytest.mark.parametrize("mask_name", ["{}_seg", "{}_SEG.png"])
def test_mask_name_says_it_by_hand(tmp_path, capsys, mask_name):
    wanted = {"a.jpg": "a_seg.png", "s/b.jpg": "s/b_seg.png", "c_seg.jpg": "c_seg_seg.png"}
    assert pairs_of(tmp_path, capsys, wanted, wanted.values(), mask_name=mask_name) == (wanted, "")
    with pytest.raises(UserError, match="d.png: is the mask of no image. Name it as MASK_NAME") as caught:
        pairs_of(tmp_path, capsys, ["d.jpg"], ["d.png"], mask_name=mask_name)
    assert "d.jpg: has no mask" in str(caught.value)


@pytest.mark.parametrize("mask_name", ["_seg", "", "{}{}", "{}_*", "masks/{}"])
def test_a_mask_name_that_says_nothing(tmp_path, capsys, mask_name):
    with pytest.raises(UserError, match="MASK_NAME = .*{}_segmentation"):
        pairs_of(tmp_path, capsys, ["a.jpg"], ["a_seg.png"], mask_name=mask_name)


def test_what_has_no_partner_is_left_out_where_that_is_asked_for(tmp_path, capsys):
    images, masks = ["a.jpg", "b.jpg", "c.jpg"], ["a.png", "x.png", "y.png", "c.png"]
    found, words = pairs_of(tmp_path, capsys, images, masks, skip_unpaired=True)
    assert found == {"a.jpg": "a.png", "c.jpg": "c.png"}
    assert "1 image without a mask and 2 masks without an image are left out: b.jpg, x.png, y.png" in words
    with pytest.raises(UserError, match="c_mask.png"):  # two masks of one image are not left out
        pairs_of(tmp_path, capsys, [], ["c_mask.png"], skip_unpaired=True)
    with pytest.raises(UserError, match="no image there has a mask"):
        pairs_of(tmp_path / "none", capsys, ["a.jpg"], ["b.png"], skip_unpaired=True)


def test_subfolders(tmp_path, capsys):
    wanted = {"a/x.jpg": "a/x.png", "b/c/x.jpg": "b/c/x_mask.gif", "x.jpg": "x.png"}
    assert pairs_of(tmp_path, capsys, [*wanted, ".hidden/x.jpg"], wanted.values()) == (wanted, "")
    (tmp_path / "i/a/again").symlink_to(tmp_path / "i")
    assert [pair.name for pair in pair_files(tmp_path / "i", tmp_path / "m")] == ["a/x", "b/c/x", "x"]
    with pytest.raises(UserError, match="d/x.png: is the mask of no image. Add the image d/x,"):
        pairs_of(tmp_path, capsys, [], ["d/x.png"])


def test_folders_below_one_another_keep_their_own(tmp_path):
    images = touch(tmp_path / "i", "a.jpg", "b.jpg")
    touch(images / "masks", "a.png", "b.png")
    touch(images / "made", "c.jpg")
    pairs = pair_files(images, images / "masks", apart=[images / "made"])
    assert [pair.name for pair in pairs] == ["a", "b"]
    both = touch(tmp_path / "both", "a.jpg", "a_mask.png")
    touch(both / "s", "a.jpg", "a_MASK.png")
    assert [(pair.name, pair.mask.name) for pair in pair_files(both, both)] == [
        ("a", "a_mask.png"),
        ("s/a", "a_MASK.png"),
    ]


def test_what_is_no_picture_is_left_out_and_counted(tmp_path):
    folder = touch(tmp_path / "i", "b.jpg", "a.PNG", ".hidden.png", "Thumbs.db", "notes.txt", "no-suffix", "._b.jpg")
    (folder / "folder.png").mkdir()
    (folder / "loop.png").symlink_to(folder / "loop.png")
    listing = list_pictures(folder)
    assert [path.name for path in listing.pictures] == ["a.PNG", "b.jpg", "loop.png"]
    assert len(listing.left_out) == 6


@pytest.mark.parametrize("what", ["missing", "file", "empty", "only others"])
def test_unusable_folders(tmp_path, what):
    folder = tmp_path / what
    if what == "file":
        folder.write_text("")
    elif what != "missing":
        touch(folder, *(["notes.txt"] if what == "only others" else []))
    with pytest.raises(UserError) as caught:
        list_pictures(folder)
    assert str(folder) in str(caught.value)


def test_folder_and_file_without_permission(tmp_path_factory):
    """In a child that is nobody, because permissions do not bind root."""
    with tempfile.TemporaryDirectory() as place:
        os.chmod(place, 0o755)
        locked = Path(place, "locked")
        touch(locked, "a.png").chmod(0)
        Image.fromarray(GREY).save(Path(place, "b.png"))
        Path(place, "b.png").chmod(0)
        code = (
            "import os, sys\nfrom PIL import Image\nfrom parts.script import UserError\n"
            "from parts.reading import list_pictures, read_image\n"
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


def test_groups_and_copies():
    assert group_of("00087a6bd4dc_01") == group_of("00087a6bd4dc_16_hflip") == "00087a6bd4dc"
    assert group_of("img_001") == "img_001" and group_of("img_001_grid") == "img_001"
    assert group_of("0001TP_006690", r"(.*)_") == "0001TP" and group_of("0001TP_006690", r"\d+") == "0001"
    assert group_of("s/00087a6bd4dc_01") == "00087a6bd4dc" and group_of("p1/x_grid", r"p\d+") == "p1"
    assert source_stem("a_vflip") == "a" and source_stem("a_flip") == "a_flip"
    with pytest.raises(UserError, match="GROUP"):
        group_of("a", "(")
