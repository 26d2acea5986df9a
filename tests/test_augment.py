"""augment.py: the split, exact copies, the same bytes every time and after every kind of death."""

import json
import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from helpers import ROOT, WAIT, draw_pairs, script
from PIL import Image

import train
from augment import Choices, augmentation, distort, make_augmented, split
from parts.audit import audit
from parts.cars import draw_dataset
from parts.errors import UserError
from parts.images import decode, pixels_of, read_image
from parts.mask_rules import find_mask_rule
from parts.masks import IGNORED, MaskRule, read_mask
from parts.names import COPIES, Pair, group_of, pair_files
from parts.pictures import Palette
from parts.spec import CARVANA_GROUP, DataSpec

WHITE = MaskRule("numbers", (0,), (255,))
TRAIN_IMAGES, TRAIN_MASKS, TEST_IMAGES, TEST_MASKS = (
    f"augmented_{side}_{kind}" for side in ("train", "test") for kind in ("images", "masks")
)
# Every constant of augment.py but the folders, so that no test depends on how somebody has edited them
CONSTANTS = dict(val_choice="last", val_images=5, jpeg_quality=95, num_workers=None, seed=0)
FLAGS = ["--group", "auto", "--mask-foreground", "none", "--jpeg-quality", 95, "--num-workers", 2, "--seed", 0]
FLAGS += [
    "--image-name",
    "none",
    "--mask-name",
    "none",
    "--no-skip-unpaired",
    "--mask-ignore",
    "none",
    "--classes",
    "none",
]
FLAGS += ["--image-range", "none", "--image-name", "none"]


def make(raw, out, **given):
    constants = {name: given.pop(name, value) for name, value in CONSTANTS.items()}
    return make_augmented(raw / "train", raw / "train_masks", out, DataSpec(**given), Choices(**constants))


def contents(out):
    """Every file that a run leaves to the user, and its bytes."""
    return {
        path.relative_to(out).as_posix(): path.read_bytes()
        for path in sorted(Path(out).rglob("*"))
        if path.is_file() and not path.name.startswith(".")
    }


@pytest.fixture(scope="module")
def cars(tmp_path_factory):
    """4 cars from 4 sides, as JPEG and GIF."""
    folder = tmp_path_factory.mktemp("cars")
    draw_dataset(folder, cars=4, views=4, size=(64, 96), progress=False)
    return folder


@pytest.fixture
def raw(cars, tmp_path):
    """A copy of `cars` to spoil."""
    return shutil.copytree(cars, tmp_path / "raw")


@pytest.fixture(scope="module")
def made(cars, tmp_path_factory):
    out = tmp_path_factory.mktemp("made")
    return out, make(cars, out)


def plain_set(folder, count, suffix=".png", size=(24, 36)):
    """img_000, img_001, …: noise, and a mask of {0, 255} that lies on the bright part of it."""
    for kind in ("train", "train_masks"):
        (folder / kind).mkdir(parents=True)
    for index in range(count):
        rng = np.random.default_rng(index)
        mask = np.zeros(size, np.uint8)
        top, left = rng.integers(1, size[0] // 4), rng.integers(1, size[1] // 4)
        mask[top : top + size[0] // 2, left : left + size[1] // 2] = 255
        image = rng.integers(0, 90, (*size, 3), np.uint8) + (mask // 2)[..., None]
        Image.fromarray(image).save(folder / "train" / f"img_{index:03d}{suffix}")
        Image.fromarray(mask).save(folder / "train_masks" / f"img_{index:03d}.png")
    return folder


# ---- the split


def test_no_car_on_both_sides_and_the_last_by_name_held_out(cars, made):
    out, done = made
    sources = sorted(path.stem for path in (cars / "train").iterdir())
    test = sorted(path.stem for path in (out / TEST_IMAGES).iterdir())
    train = {path.stem for path in (out / TRAIN_IMAGES).iterdir()}
    assert test == sources[-5:]
    assert not {group_of(name) for name in test} & {group_of(name) for name in train}
    # the 5 are one car and a view of another one, whose 3 other views are left out
    assert (done.train, done.val, done.left_out) == (8, 5, 3)
    assert (done.train_groups, done.val_groups) == (2, 2)
    assert train == {f"{name}{end}" for name in sources[:8] for end in ("", "_hflip", "_vflip", "_grid")}


def test_names_that_do_not_fit_lose_nothing(tmp_path):
    raw = plain_set(tmp_path, 10)
    pairs = pair_files(raw / "train", raw / "train_masks")
    train, val, left_out = split(pairs, 3, CARVANA_GROUP)
    assert [pair.name for pair in val] == ["img_007", "img_008", "img_009"]
    assert len(train) == 7 and not left_out
    assert [len(part) for part in split(pairs, 0.2, CARVANA_GROUP)] == [8, 2, 0]
    assert [len(part) for part in split(pairs, 0.01, CARVANA_GROUP)] == [9, 1, 0]


def test_names_that_sort_images_are_told_and_a_random_split_is_the_cure(tmp_path):
    raw, out = plain_set(tmp_path, 20), tmp_path / "out"
    for path in sorted(raw.rglob("img_*.png")):
        path.rename(path.with_name(path.name.replace("img", "cat" if path.stem < "img_014" else "dog")))
    (warning,) = make(raw, out, val_images=6).warnings
    assert "cat: 14 for training, 0 for validation; dog: 0 for training, 6" in warning
    assert "--val-choice random" in warning
    done = make(raw, out, val_images=6, val_choice="random")
    assert (done.train, done.val, done.left_out, done.warnings) == (14, 6, 0, [])
    assert make(raw, out, val_images=6, val_choice="random").written == 0


def test_a_group_pattern_of_ones_own(tmp_path):
    for kind in ("train", "train_masks"):
        (tmp_path / kind).mkdir()
        for name in ("a_1", "a_2", "b_1", "b_2", "c_1", "c_2"):
            Image.fromarray(np.eye(8, dtype=np.uint8) * 255).save(tmp_path / kind / f"{name}.png")
    pairs = pair_files(tmp_path / "train", tmp_path / "train_masks")
    train, val, left_out = split(pairs, 3, r"(.+)_")
    assert [[pair.name for pair in part] for part in (train, val, left_out)] == [
        ["a_1", "a_2"], ["b_2", "c_1", "c_2"], ["b_1"]]  # fmt: skip


@pytest.mark.parametrize(
    ("keywords", "words"),
    [
        ({"val_images": 0}, "VAL_IMAGES is 0"),
        ({"val_images": -1}, "VAL_IMAGES"),
        ({"val_images": 16}, "from 1 to 15"),
        ({"val_images": 1.0}, "fraction"),
        ({"val_images": 2.5}, "VAL_IMAGES is 2.5"),
        ({"val_images": "none.txt"}, "no list of names"),
        ({"group": "("}, "no regular expression"),
        ({"group": ""}, "Nothing is left"),
    ],
)
def test_splits_that_cannot_be_in_words(cars, tmp_path, keywords, words):
    with pytest.raises(UserError, match=words.replace("(", r"\(")):
        make(cars, tmp_path / "out", **keywords)
    assert not (tmp_path / "out").exists()


def test_constants_that_cannot_be_in_words_all_at_once(cars, tmp_path):
    flags = ["--jpeg-quality", 0, "--num-workers", 0, "--seed", -1]
    done = script("augment.py", "--img-dir", cars / "train", "--mask-dir", cars / "train_masks", *flags, cwd=tmp_path)
    assert done.returncode == 2 and "JPEG_QUALITY = 0: a whole number from 1 to 100" in done.stderr, done.stderr
    assert "NUM_WORKERS = 0" in done.stderr and "SEED = -1" in done.stderr
    assert not (tmp_path / "dataset").exists()


# ---- the copies


def as_grey(values):
    return Image.fromarray(values)


def as_palette(values):
    picture = Image.frombytes("P", values.shape[::-1], values.tobytes())
    picture.putpalette([0, 0, 0, 200, 0, 0, 0, 200, 0, 0, 0, 200, 90, 90, 0])
    return picture


def as_colours(values):
    return Image.fromarray(np.array([(0, 0, 0), (255, 0, 0), (0, 255, 0), (0, 0, 255), (9, 9, 9)], np.uint8)[values])


ENCODINGS = {
    "grey": (".png", as_grey, "L"),
    "palette": (".png", as_palette, "P"),
    "palette gif": (".gif", as_palette, "P"),
    "16 bits": (".png", lambda values: Image.fromarray(values.astype(np.uint16) * 1000), "I;16"),
    "32 bits": (".tif", lambda values: Image.fromarray(values.astype(np.int32) * 100_000), "I"),
    "floats": (".tif", lambda values: Image.fromarray(values.astype(np.float32)), "F"),
    "colours": (".png", as_colours, "RGB"),
    "colours with alpha": (".png", lambda values: as_colours(values).convert("RGBA"), "RGBA"),
    "1 bit": (".png", lambda values: Image.fromarray(values > 1), "1"),
    "bmp": (".bmp", as_grey, "L"),
}


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_masks_keep_their_own_encoding(tmp_path, encoding):
    """Values, palette and depth: whatever a mask's pixel was, it is that in every copy, and nothing is invented."""
    suffix, encode, mode = ENCODINGS[encoding]
    raw, out = plain_set(tmp_path / "raw", 5), tmp_path / "out"
    for path in sorted((raw / "train_masks").iterdir()):
        values = np.random.default_rng(len(path.stem)).integers(0, 5, (6, 9)).repeat(4, 0).repeat(4, 1).astype(np.uint8)
        path.unlink()
        encode(values).save(path.with_suffix(suffix))
    make(raw, out, val_images=2)
    source = Image.open(raw / "train_masks" / f"img_000{suffix}")
    expected = np.asarray(source)
    assert source.mode == mode
    for end, flip in (("", np.s_[:, :]), ("_hflip", np.s_[:, ::-1]), ("_vflip", np.s_[::-1])):
        (path,) = (out / TRAIN_MASKS).glob(f"img_000{end}.*")
        copy = Image.open(path)
        assert copy.mode == mode and np.array_equal(np.asarray(copy), expected[flip])
        if mode == "P":
            assert copy.getpalette()[:15] == source.getpalette()[:15]
    (path,) = (out / TRAIN_MASKS).glob("img_000_grid.*")
    bent = np.asarray(Image.open(path))
    assert bent.shape == expected.shape and not np.array_equal(bent, expected)
    assert {tuple(np.ravel(v)) for v in bent.reshape(len(bent) * bent.shape[1], -1)} <= {
        tuple(np.ravel(v)) for v in expected.reshape(len(expected) * expected.shape[1], -1)
    }
    with Image.open(out / "augmented_preview.png") as sheet:
        assert sheet.width > 800


def test_deep_masks_in_pgm_become_png_of_16_bits_or_are_refused(tmp_path):
    raw = plain_set(tmp_path / "raw", 3)
    values = np.random.default_rng(0).choice([0, 300, 65535], (24, 36)).astype(">u2")
    for path in sorted((raw / "train_masks").iterdir()):
        path.unlink()
        path.with_suffix(".pgm").write_bytes(b"P5 36 24 65535\n" + values.tobytes())
    make(raw, tmp_path / "out", val_images=1)
    copies = sorted((tmp_path / "out" / TRAIN_MASKS).iterdir())
    assert len(copies) == 8
    for path in copies:
        flip = {"hflip": values[:, ::-1], "vflip": values[::-1], "grid": None}.get(path.stem.split("_")[-1], values)
        copy = np.asarray(decode(path).picture)
        assert copy.dtype == np.uint16 and set(np.unique(copy)) == {0, 300, 65535}
        assert flip is None or np.array_equal(copy, flip)
    for name, picture in (("floats", np.zeros((24, 36), np.float32)), ("long", np.full((24, 36), 70_000, np.int32))):
        for path in (raw / "train_masks").iterdir():
            Image.fromarray(picture).save(path, "TIFF")
        with pytest.raises(
            UserError, match="pgm: has pixels of 32 bits, whatever its name says. Give it the suffix .tif"
        ):
            make(raw, tmp_path / name, val_images=1)


def test_a_palettes_transparency_is_kept(tmp_path):
    raw, out = plain_set(tmp_path / "raw", 4), tmp_path / "out"
    for path in (raw / "train_masks").iterdir():
        as_palette(np.asarray(Image.open(path)) // 255).save(path, transparency=0)
    make(raw, out, val_images=1)
    for path in (out / TRAIN_MASKS).iterdir():
        assert Image.open(path).info["transparency"] in (0, b"\0"), path
    masks = sorted((out / TRAIN_MASKS).iterdir())
    assert (
        read_mask(masks[0], find_mask_rule(masks, DataSpec(foreground="alpha"))).mean()
        == (np.asarray(Image.open(masks[0])) > 0).mean()
    )


def test_one_of_several_classes_trains_by_one_constant(tmp_path):
    """MASK_FOREGROUND means before augmenting what it means after it."""
    raw, out = plain_set(tmp_path / "raw", 6), tmp_path / "out"
    for path in (raw / "train_masks").iterdir():
        mask = np.asarray(Image.open(path))
        Image.fromarray(np.where(mask, 8, np.arange(24)[:, None] // 5).astype(np.uint8)).save(path)
    make(raw, out, val_images=2, foreground=8)
    folders = [out / name for name in (TRAIN_IMAGES, TRAIN_MASKS, TEST_IMAGES, TEST_MASKS)]
    report = audit(folders[:2], folders[2:], DataSpec(foreground=8))
    assert report.problems == [] and report.mask_rule.foreground == (8,)
    before = find_mask_rule(sorted((raw / "train_masks").iterdir()), DataSpec(foreground=8))
    assert np.array_equal(
        read_mask(raw / "train_masks" / "img_000.png", before),
        read_mask(out / TRAIN_MASKS / "img_000.png", report.mask_rule),
    )


VOID = 255
SIX = [0, 0, 0, 128, 0, 0, 0, 128, 0, 128, 128, 0, 0, 0, 128, 128, 0, 128] + [0] * 747 + [224, 224, 192]  # VOC's


def class_set(folder, count, values=(0, 1, 2, 3, 4, 5, VOID), size=(48, 72), only_in=None):
    """plain_set with masks of areas of these values, with VOC's palette; `only_in`: {value: numbers of its files}."""
    plain_set(folder, count, size=size)
    for number, path in enumerate(sorted((folder / "train_masks").iterdir())):
        held = [value for value in values if number in (only_in or {}).get(value, (number,))]
        areas = np.random.default_rng(number).permutation(np.resize(held, 24)).reshape(4, 6).astype(np.uint8)
        areas = areas.repeat(size[0] // 4, 0).repeat(size[1] // 6, 1)
        picture = Image.frombytes("P", areas.shape[::-1], areas.tobytes())
        picture.putpalette(SIX)
        picture.save(path)
    return folder


def test_classes_and_void_are_bent_without_inventing_any(tmp_path):
    raw, out = class_set(tmp_path / "raw", 5), tmp_path / "out"
    make(raw, out, val_images=2, classes="all", ignore=VOID)
    before = find_mask_rule(sorted((raw / "train_masks").iterdir()), DataSpec(classes="all", ignore=VOID))
    after = find_mask_rule(sorted((out / TRAIN_MASKS).iterdir()), DataSpec(classes="all", ignore=VOID))
    assert after == before and after.classes == (0, 1, 2, 3, 4, 5) and after.colours[1] == 0x800000
    for number in range(3):
        mask = read_mask(raw / "train_masks" / f"img_{number:03d}.png", before)
        for end, flip in (("", np.s_[:, :]), ("_hflip", np.s_[:, ::-1]), ("_vflip", np.s_[::-1])):
            np.testing.assert_array_equal(
                read_mask(out / TRAIN_MASKS / f"img_{number:03d}{end}.png", after), mask[flip]
            )
        bent = read_mask(out / TRAIN_MASKS / f"img_{number:03d}_grid.png", after)
        assert set(np.unique(bent)) == set(np.unique(mask)) == {0, 1, 2, 3, 4, 5, IGNORED} and (bent != mask).any()


# ---- pages, several masks of one image, images of more than 8 bits


def save_pages(path, pages):
    first, *rest = map(Image.fromarray, pages)
    first.save(path, save_all=True, append_images=rest)


def test_every_page_has_its_copies(tmp_path):
    raw, out = plain_set(tmp_path / "raw", 3), tmp_path / "out"
    draw = np.random.default_rng(9)
    images = draw.integers(0, 256, (3, 24, 36, 3), np.uint8)
    masks = draw.integers(0, 2, (3, 6, 9), np.uint8).repeat(4, 1).repeat(4, 2) * 255
    images[1] = images[0]
    save_pages(raw / "train" / "a.tif", images)
    save_pages(raw / "train_masks" / "a.tif", masks)
    done = make(raw, out, val_images=2)
    assert (done.train, done.val, done.written) == (4, 2, 18)
    names = {f"a_{page}{end}" for page in range(3) for end in ("", "_hflip", "_vflip", "_grid")}
    assert {path.stem for path in (out / TRAIN_IMAGES).iterdir() if path.stem.startswith("a_")} == names
    pairs = {pair.name: pair for pair in pair_files(out / TRAIN_IMAGES, out / TRAIN_MASKS)}
    for page in range(3):
        for end, flip in (("", np.s_[:, :]), ("_hflip", np.s_[:, ::-1]), ("_vflip", np.s_[::-1])):
            pair = pairs[f"a_{page}{end}"]
            np.testing.assert_array_equal(read_image(pair.image), images[page][flip])
            np.testing.assert_array_equal(read_mask(pair.mask, WHITE) * 255, masks[page][flip])
    bent = [read_image(pairs[f"a_{page}_grid"].image) for page in (0, 1)]
    assert (bent[0] != bent[1]).any()  # each page has a draw of its own
    again = make(raw, out, val_images=2)
    assert again.written == 0
    one = augmentation(raw / "train" / "img_000.png", raw / "train_masks" / "img_000.png")  # as an article's reader
    np.testing.assert_array_equal(one[0][3], read_image(pairs["img_000_grid"].image))


@pytest.mark.parametrize(
    "mask_name, image_name", [("{}_*", None), ("*-{}", None), ("{}*", "{}_left"), ("{}/masks/*", "{}/images/*")]
)
def test_each_of_several_masks_has_its_copies_by_one_draw(tmp_path, mask_name, image_name):
    """One file an object: united they are what the united mask would have become, by the same MASK_NAME."""
    raw, out, united = plain_set(tmp_path / "raw", 5), tmp_path / "out", tmp_path / "united"
    shutil.copytree(raw / "train", united / "train")
    (united / "train_masks").mkdir()
    for number, path in enumerate(sorted((raw / "train_masks").iterdir())):
        path.unlink()
        areas = np.random.default_rng(number).integers(0, 3, (6, 9)).repeat(4, 0).repeat(4, 1)
        for thing in (1, 2) if number else (1,):  # one image has one mask
            name = mask_name.replace("{}", path.stem).replace("*", f"Thing {thing}")
            file = raw / "train_masks" / f"{name}.png"
            file.parent.mkdir(exist_ok=True, parents=True)
            Image.fromarray(((areas == thing) * 255).astype(np.uint8)).save(file)
        whole = areas > 0 if number else areas == 1
        Image.fromarray((whole * 255).astype(np.uint8)).save(united / "train_masks" / path.name)
    spec = dict(mask_name=mask_name, image_name=image_name)
    if image_name:
        for path in list((raw / "train").iterdir()):
            file = raw / "train" / (image_name.replace("{}", path.stem).replace("*", "photo") + path.suffix)
            file.parent.mkdir(exist_ok=True, parents=True)
            path.rename(file)
    done = make(raw, out, val_images=2, **spec)
    make(united, united / "out", val_images=2)
    assert (done.train, done.val, done.written) == (3, 2, 14)
    assert [len(list((out / folder).rglob("*.png"))) for folder in (TRAIN_MASKS, TEST_MASKS)] == [4 * 5, 4]
    expected = mask_name.replace("{}", "img_001_hflip").replace("*", "Thing 2")
    assert (out / TRAIN_MASKS / f"{expected}.png").is_file()
    for images, masks in ((TRAIN_IMAGES, TRAIN_MASKS), (TEST_IMAGES, TEST_MASKS)):
        for pair in pair_files(out / images, out / masks, DataSpec(**spec)):
            assert len(pair.more) == (not pair.name.startswith("img_000"))
            expected = united / "out" / masks / f"{pair.name}.png"
            np.testing.assert_array_equal(read_mask(pair.masks, WHITE), read_mask(expected, WHITE))
    assert (out / "augmented_preview.png").read_bytes() == (united / "out" / "augmented_preview.png").read_bytes()
    assert make(raw, out, val_images=2, **spec).written == 0


def test_pages_of_a_stack_stay_on_one_side():
    stack = [Pair(f"b_{n}", Path("b.tif"), Path("m/b.tif"), n, n) for n in range(4)]
    others = [Pair(name, Path(f"{name}.png"), Path(f"m/{name}.png")) for name in ("a", "c")]
    train, val, left_out = split(sorted(others + stack, key=lambda pair: pair.name), 2)
    assert [pair.name for pair in val] == ["b_3", "c"] and [pair.name for pair in train] == ["a"]
    assert left_out == stack[:3]
    train, val, left_out = split(stack, 1)  # the only file
    assert val == stack[3:] and train == stack[:3] and not left_out


def test_masks_that_would_become_one_file_are_named(tmp_path):
    raw = plain_set(tmp_path / "raw", 4)
    for path in sorted((raw / "train_masks").iterdir()):
        shutil.copy(path, path.with_name(f"{path.stem}_1.png"))
        path.unlink()
    Image.new("L", (36, 24)).save(raw / "train_masks" / "img_000_1.bmp")
    with pytest.raises(UserError, match="img_000_1.bmp and .*img_000_1.png would both become"):
        make(raw, tmp_path / "out", val_images=1, mask_name="{}_*")
    (raw / "train_masks" / "img_000_1.bmp").unlink()
    with pytest.raises(UserError, match="Leave the suffix out of MASK_NAME"):
        make(raw, tmp_path / "out", val_images=1, mask_name="{}_1.png")
    assert not (tmp_path / "out").exists()


DEPTHS = {
    "16-bit grey PNG": (".png", ".png", np.uint16, 1),
    "16-bit colour PNG": (".png", ".png", np.uint16, 3),
    "16-bit grey TIFF": (".tif", ".png", np.uint16, 1),
    "float TIFF": (".tif", ".tif", np.float32, 1),
    "32-bit TIFF": (".tif", ".tif", np.int32, 1),
}


def bent_in_64_bits(mask, values):
    """The grid distortion of `values` (H, W, C), by where it takes the columns and rows of an image from."""
    height, width = values.shape[:2]
    columns, rows = np.meshgrid(np.arange(width), np.arange(height))
    places = np.dstack([columns, rows, rows]).astype(np.float32)  # of two channels OpenCV 5 takes steps of 1/32
    left, top, _ = np.moveaxis(distort(places, [], f"0/{mask.stem}")[0][3], 2, 0)
    x, y = np.floor(left).astype(int), np.floor(top).astype(int)
    right, below = np.minimum(x + 1, width - 1), np.minimum(y + 1, height - 1)
    along, down = (left - x).astype(np.float64)[..., None], (top - y).astype(np.float64)[..., None]
    above, under = (values[row, x] * (1 - along) + values[row, right] * along for row in (y, below))
    return above * (1 - down) + under * down


@pytest.mark.parametrize("kind", DEPTHS)
def test_images_keep_their_depth(tmp_path, kind):
    """Flips are exact, the grid is bilinear between the values that were there, IMAGE_RANGE means what it meant."""
    suffix, made, dtype, channels = DEPTHS[kind]
    value_range = {np.uint16: (300, 1300), np.float32: (-2.5, 7.5), np.int32: (-70_000, 90_000)}[dtype]
    raw, out = plain_set(tmp_path / "raw", 5, size=(48, 64)), tmp_path / "out"
    sources = []
    for path in sorted((raw / "train").iterdir()):
        noise = np.random.default_rng(len(sources)).uniform(*value_range, (6, 8, channels)).astype(np.float32)
        values = cv2.resize(noise, (64, 48)).reshape(48, 64, channels).astype(dtype)
        sources.append(values)
        path.unlink()
        if channels == 3:
            cv2.imwrite(str(path), values[..., ::-1])
        else:
            Image.fromarray(values[..., 0]).save(path.with_suffix(suffix))
    make(raw, out, val_images=2, image_range=value_range)
    if suffix == ".png":
        assert (out / TRAIN_IMAGES / "img_000.png").read_bytes() == (raw / "train" / "img_000.png").read_bytes()
    whole = np.uint16 if dtype == np.uint16 else np.float32
    for number in range(3):
        values = sources[number].astype(whole)
        for end, flip in (("", np.s_[:, :]), ("_hflip", np.s_[:, ::-1]), ("_vflip", np.s_[::-1])):
            path = out / TRAIN_IMAGES / f"img_{number:03d}{end}{made}"
            pixels = pixels_of(decode(path), path)
            assert pixels.dtype == whole
            np.testing.assert_array_equal(pixels, np.broadcast_to(values, (48, 64, 3))[flip])
            source = raw / "train" / f"img_{number:03d}{suffix}"
            np.testing.assert_array_equal(
                read_image(path, value_range=value_range), read_image(source, value_range=value_range)[flip]
            )
        path = out / TRAIN_IMAGES / f"img_{number:03d}_grid{made}"
        bent = pixels_of(decode(path), path)
        assert bent.dtype == whole and values.min() <= bent.min() and bent.max() <= values.max()
        exact = bent_in_64_bits(raw / "train_masks" / f"img_{number:03d}.png", sources[number].astype(np.float64))
        assert np.abs(bent - exact).max() <= (0.51 if whole == np.uint16 else 1e-5 * np.ptp(value_range))
        assert (bent != values).any()
    with Image.open(out / "augmented_preview.png") as sheet:
        tile = np.asarray(sheet)[60:300, 12:330].astype(int)
        assert np.ptp(tile) > 150  # seen by IMAGE_RANGE, of which the upper 8 bits are next to nothing


def test_floats_are_shown_without_a_range_and_told_by_their_suffix(tmp_path):
    raw = plain_set(tmp_path / "raw", 4)
    for path in sorted((raw / "train").iterdir()):
        path.unlink()
        Image.fromarray(np.random.default_rng(0).normal(size=(24, 36)).astype(np.float32)).save(
            path.with_suffix(".tif")
        )
    make(raw, tmp_path / "out", val_images=1)
    assert {path.suffix for path in (tmp_path / "out" / TRAIN_IMAGES).iterdir()} == {".tif"}
    with pytest.raises(UserError, match="IMAGE_RANGE"):
        make(raw, tmp_path / "out", val_images=1, image_range=(5, 1))
    shutil.move(raw / "train" / "img_001.tif", raw / "train" / "img_001.png")
    with pytest.raises(UserError, match="img_001.png: has pixels of 32 bits, whatever its name says"):
        make(raw, tmp_path / "out", val_images=1)


# ---- classes on both sides, and in the preview


def test_a_fourth_band_that_is_dropped_is_told(tmp_path):
    raw = plain_set(tmp_path, 4)
    for number in (0, 3):
        path = raw / "train" / f"img_00{number}.png"
        colours = np.asarray(Image.open(path))
        band = np.full(colours.shape[:2], 200, np.uint8)
        band[0, :number] = 100
        Image.fromarray(np.dstack([colours, band])).save(path)
    (warning,) = make(raw, tmp_path / "out", val_images=1).warnings
    assert warning.startswith("1 image with a channel of transparency") and warning.endswith("img_003.png")


def test_classes_that_one_side_lacks_are_told(tmp_path):
    """Of eight images six are trained on."""
    raw, out = class_set(tmp_path / "raw", 8, only_in={2: range(6), 4: (6, 7), 5: (0, 7)}), tmp_path / "out"
    constants = dict(val_images=2, classes={"sky": 0, "road": 1, "car": 2, "tree": 3, "cat": 4, "dog": 5, "cow": 9})
    done = make(raw, out, ignore=VOID, **constants)
    cure = "Change VAL_IMAGES, VAL_CHOICE or GROUP, or take out of CLASSES what is in no mask at all"
    assert done.warnings == [
        f"Classes that no mask for training holds, so that they cannot be learnt: cat, cow. {cure}",
        f"Classes that no mask for validation holds, so that they are not scored: car, cow. {cure}",
    ]
    written = contents(out)
    assert make(raw, out, val_images=2, classes="all", ignore=VOID).warnings == [
        f"Classes that no mask for training holds, so that they cannot be learnt: 4. {cure}",
        f"Classes that no mask for validation holds, so that they are not scored: 2. {cure}",
    ]
    with pytest.raises(UserError, match="values that are no class"):  # void, before anything is made
        make(raw, out, **constants)
    assert make(raw, out, val_images=2, foreground=3).warnings == []
    make(raw, out, ignore=VOID, **constants)
    assert contents(out) == written


def colours_in(picture):
    return {tuple(colour) for colour in np.unique(np.asarray(picture.convert("RGB")).reshape(-1, 3), axis=0).tolist()}


@pytest.mark.slow
def test_the_preview_shows_classes_and_void_with_a_legend(tmp_path):
    raw, out = class_set(tmp_path / "raw", 5), tmp_path / "out"
    make(raw, out, val_images=2)
    plain = Image.open(out / "augmented_preview.png").copy()
    make(raw, out, val_images=2, classes="all", ignore=VOID)
    with Image.open(out / "augmented_preview.png") as sheet:
        mask_rule = find_mask_rule(sorted((raw / "train_masks").iterdir()), DataSpec(classes="all", ignore=VOID))
        expected = set(Palette.of(mask_rule).colours)
        assert len(expected) == 6 and sheet.height > plain.height
        legend = sheet.crop((0, plain.height - 12, sheet.width, sheet.height))
        assert expected <= colours_in(legend) and not expected <= colours_in(plain)
    make(raw, out, val_images=2, foreground=3, ignore=VOID)
    with Image.open(out / "augmented_preview.png") as sheet:
        assert plain.height < sheet.height and (230, 0, 126) in colours_in(sheet)


def test_classes_with_what_they_do_not_go_with(tmp_path):
    raw = class_set(tmp_path / "raw", 5)
    with pytest.raises(UserError, match="CLASSES trains on several classes, MASK_FOREGROUND on one"):
        make(raw, tmp_path / "out", val_images=2, classes=(0, 1), foreground=1)
    for path in sorted((raw / "train_masks").iterdir()):
        for number in (1, 2):
            shutil.copy(path, path.with_name(f"{path.stem}_{number}.png"))
        path.unlink()
    with pytest.raises(UserError, match=r"CLASSES with several masks of one image, e.g. .*img_000_1.png"):
        make(raw, tmp_path / "out", val_images=2, classes="all", ignore=VOID, mask_name="{}_*")
    assert not (tmp_path / "out").exists()


# ---- images as they are


def test_lossless_images_stay_so_and_flips_are_flips(tmp_path):
    raw, out = plain_set(tmp_path / "raw", 6), tmp_path / "out"
    make(raw, out, val_images=2)
    for source in sorted((raw / "train").iterdir())[:4]:
        image = np.asarray(Image.open(source))
        mask = np.asarray(Image.open(raw / "train_masks" / source.name))
        for end, flip in (("", np.s_[:, :]), ("_hflip", np.s_[:, ::-1]), ("_vflip", np.s_[::-1])):
            name = f"{source.stem}{end}.png"
            assert np.array_equal(read_image(out / TRAIN_IMAGES / name), image[flip]), name
            assert np.array_equal(read_mask(out / TRAIN_MASKS / name, WHITE) * 255, mask[flip]), name
        assert (out / TRAIN_IMAGES / source.name).read_bytes() == source.read_bytes()


def test_the_grid_bends_image_and_mask_alike(tmp_path):
    """Noise reaches 89 outside the mask and begins at 127 inside: the image tells where the mask must be."""
    raw, out = plain_set(tmp_path / "raw", 6, size=(96, 128)), tmp_path / "out"
    for kind in ("train", "train_masks"):
        shutil.copy(raw / kind / "img_000.png", raw / kind / "img_001.png")
    make(raw, out, val_images=2)
    grids = []
    for index in range(4):
        image = read_image(out / TRAIN_IMAGES / f"img_{index:03d}_grid.png")
        mask = read_mask(out / TRAIN_MASKS / f"img_{index:03d}_grid.png", WHITE)
        before = read_mask(out / TRAIN_MASKS / f"img_{index:03d}.png", WHITE)
        bright = image.mean(2) > 108
        assert (bright != mask).mean() < 0.01 < (bright != before).mean()
        grids.append(image.tobytes())
    assert grids[0] != grids[1]  # each name has a draw of its own


def test_masks_are_binary_for_every_reader(made):
    out, _ = made
    for folder in (TRAIN_MASKS, TEST_MASKS):
        for path in (out / folder).iterdir():
            with Image.open(path) as mask:
                assert mask.format == "PNG"
                assert set(np.unique(np.asarray(mask.convert("L")))) == {0, 255}


def test_jpeg_originals_byte_for_byte_and_copies_of_good_quality(cars, made):
    out, _ = made
    for path in sorted((out / TEST_IMAGES).iterdir()):
        assert path.read_bytes() == (cars / "train" / path.name).read_bytes()
    for source in sorted((cars / "train").iterdir())[:8]:
        assert (out / TRAIN_IMAGES / source.name).read_bytes() == source.read_bytes()
        image = read_image(source).astype(int)
        for end, flip in (("_hflip", np.s_[:, ::-1]), ("_vflip", np.s_[::-1])):
            path = out / TRAIN_IMAGES / f"{source.stem}{end}.jpg"
            with Image.open(path) as copy:
                assert copy.format == "JPEG"
            assert np.abs(read_image(path) - image[flip]).mean() < 4


def test_a_rotated_photograph_is_written_upright(raw, tmp_path):
    name = sorted((raw / "train").iterdir())[0].stem
    upright = Image.open(raw / "train" / f"{name}.jpg")
    exif = Image.Exif()
    exif[274] = 6  # to be turned by 90 degrees clockwise
    upright.transpose(Image.Transpose.ROTATE_90).save(raw / "train" / f"{name}.jpg", quality=95, exif=exif)
    make(raw, tmp_path / "out")
    with Image.open(tmp_path / "out" / TRAIN_IMAGES / f"{name}.jpg") as written:
        assert written.size == (96, 64) and 274 not in written.getexif()
        assert np.abs(np.asarray(written, int) - np.asarray(upright, int)).mean() < 6


def test_cmyk_and_palettes_become_rgb(raw, tmp_path):
    first, second = (path.stem for path in sorted((raw / "train").iterdir())[:2])
    Image.open(raw / "train" / f"{first}.jpg").convert("CMYK").save(raw / "train" / f"{first}.jpg")
    Image.open(raw / "train" / f"{second}.jpg").quantize(16).save(raw / "train" / f"{second}.png")
    (raw / "train" / f"{second}.jpg").unlink()
    make(raw, tmp_path / "out")
    for name in (f"{first}.jpg", f"{second}.png"):
        with Image.open(tmp_path / "out" / TRAIN_IMAGES / name) as written:
            assert written.mode == "RGB"


def test_augmentation_as_in_the_article(cars):
    pair = pair_files(cars / "train", cars / "train_masks")[0]
    images, masks = augmentation(str(pair.image), str(pair.mask))
    assert len(images) == len(masks) == 1 + len(COPIES)
    assert np.array_equal(images[0], read_image(pair.image))
    assert np.array_equal(images[1], images[0][:, ::-1]) and np.array_equal(masks[1], masks[0][:, ::-1])
    assert np.array_equal(images[2], images[0][::-1]) and np.array_equal(masks[2], masks[0][::-1])
    for image, mask in zip(images, masks):
        assert image.dtype == mask.dtype == np.uint8 and image.shape == (*mask.shape, 3)
        assert set(np.unique(mask)) == {0, 1}  # the file's own values: indices of black and white


def test_what_is_written_pairs_up_again(made):
    out, done = made
    assert len(pair_files(out / TRAIN_IMAGES, out / TRAIN_MASKS)) == 4 * done.train
    assert len(pair_files(out / TEST_IMAGES, out / TEST_MASKS)) == done.val
    with Image.open(out / "augmented_preview.png") as sheet:
        assert sheet.width > 800


# ---- the same bytes


@pytest.mark.slow
def test_byte_for_byte_the_same_whoever_does_the_work(cars, made, tmp_path):
    out, _ = made
    np.random.seed(123)
    random.seed(123)
    make(cars, tmp_path / "alone", num_workers=1)
    assert contents(tmp_path / "alone") == contents(out)
    code = (
        "import multiprocessing, sys; from pathlib import Path\n"
        "if __name__ == '__main__':\n"
        "    multiprocessing.set_start_method('spawn')\n"
        f"    sys.path.insert(0, {str(ROOT)!r}); from augment import Choices, make_augmented\n"
        f"    raw = Path({str(cars)!r})\n"
        f"    constants = {CONSTANTS!r}\n"
        "    make_augmented(raw / 'train', raw / 'train_masks', 'out', choices=Choices(**constants))\n"
    )
    (tmp_path / "run.py").write_text(code)
    subprocess.run(
        [sys.executable, "run.py"], cwd=tmp_path, check=True, timeout=WAIT, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert contents(tmp_path / "out") == contents(out)


def start(raw, out):
    flags = ["--img-dir", raw / "train", "--mask-dir", raw / "train_masks", "--output-dir", out]
    return subprocess.Popen(
        [sys.executable, ROOT / "augment.py", *map(str, [*flags, *FLAGS]), "--val-images", "20"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        text=True,
    )


def wait_for_images(out, process, count):
    while process.poll() is None and len(list((out / TRAIN_IMAGES).glob("*.*"))) < count:
        time.sleep(0.002)


def nobody_left(group):
    for _ in range(500):
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.01)
    return False


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "killpg"), reason="needs POSIX signals")
@pytest.mark.parametrize(("number", "status"), [(signal.SIGKILL, -9), (signal.SIGINT, 130)])
def test_killed_at_random_moments_it_ends_with_the_same_bytes(tmp_path, number, status):
    raw = plain_set(tmp_path / "raw", 120, ".jpg", (120, 160))
    make(raw, tmp_path / "undisturbed", val_images=20)
    expected = contents(tmp_path / "undisturbed")
    out = tmp_path / "out"
    moments = sorted(random.Random(number).sample(range(1, 200), 2))  # of 340: a busy machine may see them late
    killed = 0
    for moment in moments:
        process = start(raw, out)
        wait_for_images(out, process, moment)
        process.send_signal(number)
        process.communicate(timeout=WAIT)
        killed += process.returncode == status
        assert nobody_left(process.pid)
        found = contents(out)
        assert found.items() <= expected.items()  # nothing half-written under a real name
    assert killed
    process = start(raw, out)
    printed = process.communicate(timeout=WAIT)[0]
    assert process.returncode == 0 and ("Going on: " in printed or found == expected)
    assert contents(out) == expected
    assert not list(out.rglob("*.part"))


def test_a_second_run_writes_nothing(cars, made):
    out, first = made
    times = {path: path.stat().st_mtime_ns for path in out.rglob("augmented_t*/*")}
    again = make(cars, out)
    assert first.written == first.total == again.total and again.written == 0
    assert times == {path: path.stat().st_mtime_ns for path in out.rglob("augmented_t*/*")}


# ---- changes, and other people's files


def test_a_changed_setting_is_noticed_and_said(raw, made, tmp_path, capsys):
    out = tmp_path / "out"
    make(raw, out, seed=7)
    assert contents(out) != contents(made[0])
    capsys.readouterr()
    assert make(raw, out).written == make(raw, tmp_path / "other").total
    assert "SEED was 7, now 0" in capsys.readouterr().out
    assert contents(out) == contents(made[0])


def test_another_split_leaves_no_car_behind(raw, tmp_path):
    out = tmp_path / "out"
    make(raw, out, val_images=5)
    make(raw, out, val_images=9)
    make(raw, tmp_path / "fresh", val_images=9)
    assert contents(out) == contents(tmp_path / "fresh")


def test_a_changed_source_is_made_anew_alone(raw, tmp_path, capsys):
    out = tmp_path / "out"
    make(raw, out)
    first, second, *_ = sorted((raw / "train").iterdir())
    shutil.copy(raw / "train_masks" / f"{second.stem}_mask.gif", raw / "train_masks" / f"{first.stem}_mask.gif")
    capsys.readouterr()
    assert make(raw, out).written == 4
    assert f"training images: 1 file changed, e.g. {first.stem}" in capsys.readouterr().out
    make(raw, tmp_path / "fresh")
    assert contents(out) == contents(tmp_path / "fresh")


def test_files_of_a_source_that_is_gone_go_too(raw, tmp_path):
    out = tmp_path / "out"
    make(raw, out)
    first = sorted((raw / "train").iterdir())[0]
    first.unlink()
    (raw / "train_masks" / f"{first.stem}_mask.gif").unlink()
    make(raw, out)
    assert not [name for name in contents(out) if first.stem in name]


def test_other_peoples_files_are_kept_and_named(raw, tmp_path):
    out = tmp_path / "out"
    (out / TRAIN_IMAGES).mkdir(parents=True)
    mine = out / TRAIN_IMAGES / "holiday.jpg"
    shutil.copy(sorted((raw / "train").iterdir())[0], mine)
    with pytest.raises(UserError, match="holiday.jpg") as caught:
        make(raw, out)
    assert "--output-dir" in str(caught.value)
    assert list(contents(out)) == [f"{TRAIN_IMAGES}/holiday.jpg"]
    mine.unlink()
    make(raw, out)
    (out / TRAIN_IMAGES / "holiday.jpg").write_bytes(b"x")
    with pytest.raises(UserError, match="holiday.jpg"):
        make(raw, out, val_images=9)


@pytest.mark.parametrize(
    "name", ["../precious.txt", "{here}/precious.txt", "notes.txt", f"{TRAIN_IMAGES}/../../precious.txt", 3]
)
def test_a_manifest_that_names_other_peoples_files_counts_as_none(tmp_path, name):
    """It came with somebody's dataset: what it lists would be removed."""
    plain_set(tmp_path, 3)
    out = tmp_path / "out"
    out.mkdir()
    precious = [tmp_path / "precious.txt", out / "notes.txt"]
    for path in precious:
        path.write_text("precious")
    files = {"a": [f"{TRAIN_IMAGES}/a.png", name.format(here=tmp_path) if isinstance(name, str) else name]}
    provenance = {"version": 2, "settings": {}, "sources": {"training images": {"a": []}, "validation images": {}}}
    (out / ".augmented.json").write_text(json.dumps({"provenance": provenance, "files": files}))
    assert make(tmp_path, out, val_images=1).written == 9
    assert all(path.read_text() == "precious" for path in precious)


def test_folders_that_are_links_out_of_the_output_folder_are_refused(tmp_path):
    plain_set(tmp_path, 3)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / ".x.0123456789ab.part").write_text("precious")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / TEST_MASKS).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=f"{TEST_MASKS}: a link leads"):
        make(tmp_path, tmp_path / "out", val_images=1)
    assert [path.name for path in (tmp_path / "elsewhere").iterdir()] == [".x.0123456789ab.part"]


def test_every_damaged_file_is_named_and_the_rest_is_done(raw, tmp_path):
    first, second, third, *_ = sorted((raw / "train").iterdir())
    whole = {path: path.read_bytes() for path in (first, second, third)}
    first.write_bytes(whole[first][:500])
    second.write_bytes(b"")
    Image.open(third).resize((20, 20)).save(third)
    with pytest.raises(UserError) as caught:
        make(raw, tmp_path / "out")
    for name in (first.name, second.name, f"{third.stem}_mask.gif"):
        assert name in str(caught.value)
    for path, data in whole.items():
        path.write_bytes(data)
    done = make(raw, tmp_path / "out")
    assert done.written == 12
    make(raw, tmp_path / "fresh")
    assert contents(tmp_path / "out") == contents(tmp_path / "fresh")


def test_sources_that_look_like_copies_may_not_collide(tmp_path):
    raw = plain_set(tmp_path / "raw", 4)
    for kind in ("train", "train_masks"):
        shutil.copy(raw / kind / "img_000.png", raw / kind / "img_000_hflip.png")
    with pytest.raises(UserError, match="img_000_hflip"):
        make(raw, tmp_path / "out", val_images=1)


def test_its_own_output_is_no_source(cars, made):
    out, _ = made
    with pytest.raises(UserError, match="originals"):
        make_augmented(out / TRAIN_IMAGES, out / TRAIN_MASKS, out, choices=Choices(**CONSTANTS))


def test_its_preview_does_not_lie_among_the_images(raw):
    with pytest.raises(UserError, match="OUTPUT_DIR"):
        make_augmented(raw / "train", raw / "train_masks", raw / "train", choices=Choices(**CONSTANTS))


def test_pictures_that_the_grid_cannot_bend_are_named(tmp_path):
    raw = plain_set(tmp_path / "raw", 4)
    for kind in ("train", "train_masks"):
        with Image.open(raw / kind / "img_001.png") as picture:
            small = picture.resize((40, 4), Image.Resampling.NEAREST)
        small.save(raw / kind / "img_001.png")
    with pytest.raises(UserError, match="img_001.png: is 4×40, and grid distortion"):
        make(raw, tmp_path / "out", val_images=1)


def test_a_name_that_grows_too_long_is_told(tmp_path):
    raw = plain_set(tmp_path / "raw", 4)
    for kind in ("train", "train_masks"):
        (raw / kind / "img_000.png").rename(raw / kind / ("a" * 248 + ".png"))
    flags = ["--img-dir", raw / "train", "--mask-dir", raw / "train_masks", "--val-images", 1]
    done = script("augment.py", *flags, *FLAGS, "--output-dir", "out", cwd=tmp_path)
    assert done.returncode == 2 and "too long" in done.stderr and "Traceback" not in done.stderr, done.stderr


def test_no_data_in_words(tmp_path):
    flags = ["--img-dir", "dataset/train", "--mask-dir", "dataset/train_masks"]
    done = script("augment.py", *flags, *FLAGS, cwd=tmp_path)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    for words in ("dataset/train", "carvana-image-masking-challenge", "train_masks.zip", "train.py --demo"):
        assert words in done.stderr
    (tmp_path / "train").mkdir()
    with pytest.raises(UserError, match="is empty(.|\n)*carvana-image-masking-challenge"):
        make(tmp_path, tmp_path / "out")


def test_the_script_tells_what_it_did(cars, tmp_path):
    flags = ["--img-dir", cars / "train", "--mask-dir", cars / "train_masks", "--val-images", 5]
    done = script("augment.py", *flags, *FLAGS, "--output-dir", "my data", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for words in (
        "8 images of 2 groups",
        "5 images of 2 groups",
        "Carvana's cars (16 images)",
        "Left out: 3",
        "images a second",
        "preview.png",
    ):
        assert words in done.stdout
    assert f"python {ROOT / 'train.py'} --train-img-dir 'my data/augmented_train_images'" in done.stdout


def test_the_next_command_is_told_of_images_and_masks_what_this_one_was(tmp_path):
    raw = plain_set(tmp_path, 4)
    flags = ["--img-dir", raw / "train", "--mask-dir", raw / "train_masks", "--val-images", 1]
    told = ["--classes", "a thing=255", "nothing=0", "--mask-ignore", 9, "--image-range", 0, 4095, "--fit", "pad"]
    told += ["--group", "(img) of", "--resize-masks", "--channels", "auto"]
    done = script("augment.py", *flags, *told, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    words = shlex.split(re.search(r"^Next: python \S*train\.py (.*)", done.stdout, re.M)[1])
    s = train.settings(words)
    assert s.CLASSES == {"a thing": 255, "nothing": 0} and (s.MASK_IGNORE, s.IMAGE_RANGE) == (9, (0, 4095))
    assert (s.FIT, s.GROUP, s.RESIZE_MASKS, s.CHANNELS) == ("pad", "(img) of", True, "auto")


@pytest.mark.slow
def test_subfolders_are_kept_and_masks_named_as_said(tmp_path):
    for place in ("a", "b"):
        draw_pairs(tmp_path / "raw" / place, tmp_path / "raw" / "masks" / place, 3, first=ord(place))
        for folder, name in ((tmp_path / "raw" / place, "{}.png"), (tmp_path / "raw" / "masks" / place, "{}_seg.png")):
            for number, path in enumerate(sorted(folder.iterdir())):
                path.rename(folder / name.format(number))
    (tmp_path / "raw" / "b" / "stray.png").write_bytes(b"x")
    call = ("--img-dir", "raw", "--mask-dir", "raw/masks", "--output-dir", "raw/out", "--val-images", 2, *FLAGS)
    call += ("--mask-name", "{}_seg", "--group", "none of these", "--skip-unpaired")
    for written in (16 + 2, 0):  # the second run takes nothing of the first for its own
        done = script("augment.py", *call, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert f"Written: {written} of 18" in done.stdout and "1 image without a mask" in done.stdout
    out = tmp_path / "raw" / "out"
    assert "--mask-name '{}_seg'" in done.stdout and (out / TRAIN_MASKS / "b" / "0_grid_seg.png").is_file()
    train = pair_files(out / TRAIN_IMAGES, out / TRAIN_MASKS, DataSpec(mask_name="{}_seg"))
    assert len(train) == 16 and {pair.name for pair in train} >= {"a/0", "a/0_hflip", "b/0", "b/0_grid"}
    assert [pair.name for pair in pair_files(out / TEST_IMAGES, out / TEST_MASKS, DataSpec(mask_name="{}_seg"))] == [
        "b/1",
        "b/2",
    ]
    Image.new("RGB", (60, 40)).save(out / TEST_IMAGES / "b" / "foreign.png")
    assert "foreign.png" in script("augment.py", *call, cwd=tmp_path).stderr
