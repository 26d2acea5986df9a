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
    alone = touch(tmp_path / "alone", "a.jpg", "b.jpg")
    with pytest.raises(UserError, match="given both for images and for masks"):
        pair_files(alone, alone)


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
    assert source_stem("a_vflip") == "a" and source_stem("a_flip") == "a_flip"
    with pytest.raises(UserError, match="GROUP"):
        group_of("a", "(")
