"""The audit: every problem of a dataset at once, each with its file; nothing read twice; nothing skipped."""

import io
import json
import os
import signal
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from helpers import draw_pairs, script
from PIL import Image

import dataset
from augment import Choices, make_augmented
from parts import images
from parts.audit import LINES, audit
from parts.errors import UserError, printable
from parts.file_facts import IMAGE, MASK, VERSION, File, Looker, facts_digest
from parts.spec import DataSpec
from utils import get_loaders


@pytest.fixture
def data(tmp_path):
    """Folders of 12 good pairs for training and 4 for validation."""
    draw_pairs(tmp_path / "ti", tmp_path / "tm", 12)
    draw_pairs(tmp_path / "vi", tmp_path / "vm", 4, first=20)
    return tmp_path


def looked_at(data, image_size=None, sheet=None, cache=None, num_workers=None, **spec):
    named = dict(image_size=image_size, sheet=sheet, cache=cache, num_workers=num_workers)
    return audit((data / "ti", data / "tm"), (data / "vi", data / "vm"), DataSpec(**spec), **named)


def problems(report):
    return "\n".join(report.problems)


def redraw(data, folders, change):
    """Replaces each picture of these folders by what `change` makes of its array."""
    for folder in folders:
        for path in sorted((data / folder).iterdir()):
            Image.fromarray(np.ascontiguousarray(change(np.asarray(Image.open(path))))).save(path)


def test_images_that_are_squeezed_into_image_size(data):
    assert not any("changes its shape" in text for text in looked_at(data, (32, 48)).warnings)  # as they are
    (told,) = looked_at(data, (48, 48)).warnings
    assert "IMAGE_SIZE = 48x48 changes the proportions of 16 images up to 1.5 times (one of 40x60): what they" in told
    assert "--image-size 32 64 has about" in told or "--image-size 48 64 has about" in told
    assert "in both directions" not in told
    redraw(data, ("vi", "vm"), lambda picture: np.swapaxes(picture, 0, 1))
    told = "\n".join(looked_at(data, (48, 48)).warnings)
    assert "of 16 images up to 1.5 times (one of 40x60), in both directions: what" in told and "--fit pad" in told
    assert "has about" not in told


def test_masks_of_another_size_are_resized_where_that_is_asked_for(data):
    redraw(data, ("tm", "vm"), lambda mask: mask[::2, ::2])
    assert "--resize-masks) brings 16 masks to the size of the image" in problems(looked_at(data))
    report = looked_at(data, sheet=data / "out/audit.png", resize_masks=True)
    assert not report.problems and report.sheet
    assert ("resized", "16 masks of another size than the image (RESIZE_MASKS)") in report.facts
    folders = [data / name for name in ("ti", "tm", "vi", "vm")]
    for keywords in (dict(image_size=(40, 60)), dict(image_size=None, crop=(40, 60))):
        for given in (dict(report=report), dict(spec=DataSpec(resize_masks=True))):
            loader, _ = get_loaders(*folders, 12, 0, arrays=False, **keywords, **given)
            ((_, masks),) = loader
            assert sorted(mask.sum().item() for mask in masks) == pytest.approx([260] * 12, abs=40)
    make_augmented(data / "ti", data / "tm", data / "g", DataSpec(resize_masks=True), Choices(val_images=2))
    copies = [Image.open(path) for path in (data / "g").rglob("augmented_*_masks/*.png")]
    assert len(copies) == 42 and {mask.size for mask in copies} == {(60, 40)}


def rename(data, folders, old, new):
    for folder in folders:
        (data / folder / f"{old}.png").rename(data / folder / f"{new}.png")


# ---- one thing is spoiled, and told


@dataclass(frozen=True)
class Case:
    """What is done to good data, which constants are given, and what the audit says then."""

    spoil: Callable[[Path], None]
    constants: dict = field(default_factory=dict)
    problems: tuple = ()  # words that the problems hold; none: there is no problem
    count: int = 1  # problems
    text: tuple = ()  # words of the facts and warnings
    unsaid: tuple = ()  # words that stand in neither
    rule: dict | None = None  # fields of the MaskRule; {}: there is none


def name_masks_differently(data):
    for mask in (data / "vm").iterdir():
        mask.rename(mask.with_name(f"{mask.stem}_segmentation.png"))


def move_a_mask(data):
    (data / "tm" / "img_003.png").rename(data / "vm" / "stray.png")


def lose_folder(name):
    def spoil(data):
        (data / name).rename(data / "elsewhere")
        if name != "vi":
            (data / "vm" / "img_020.png").write_bytes(b"")

    return spoil


def name_masks_like_no_image(data):
    for index, path in enumerate(sorted((data / "vm").iterdir())):
        path.rename(path.with_name(f"other{index}.png"))


def divide_validation(data):
    redraw(data, ["vm"], lambda mask: mask // 255)


def draw_stripes_around(data):
    """Masks of the value 8 on stripes of several values."""
    stripes = np.arange(40, dtype=np.uint8)[:, None] // 8
    redraw(data, ["tm", "vm"], lambda mask: np.where(mask, 8, stripes).astype(np.uint8))


def turn(*folders, name="img_000", tag=6):
    """Sets the EXIF tag that turns an image, by 90 degrees where none is given."""

    def spoil(data):
        exif = Image.Exif()
        exif[274] = tag
        for folder in folders:
            Image.open(data / folder / f"{name}.png").save(data / folder / f"{name}.png", exif=exif)

    return spoil


def turn_three(*first):
    """An image that is turned by 180 degrees, a square one by 90, and img_000 as `turn` does in these folders."""

    def spoil(data):
        turn(*first)(data)
        for folder in ("ti", "tm"):
            Image.open(data / folder / "img_001.png").crop((0, 0, 40, 40)).save(data / folder / "img_001.png")
        turn("ti", name="img_001", tag=8)(data)
        turn("vi", name="img_021", tag=3)(data)

    return spoil


def copy_an_image(data):
    Image.open(data / "ti" / "img_000.png").save(data / "vi" / "img_020.png", compress_level=1)


def copy_a_version(data):
    """The image darker, larger and as JPEG."""
    for kind, resampling in (("i", Image.Resampling.BICUBIC), ("m", Image.Resampling.NEAREST)):
        picture = Image.open(data / f"t{kind}" / "img_000.png").resize((90, 60), resampling)
        picture.save(data / f"v{kind}" / "img_020.png")
    picture = Image.open(data / "vi" / "img_020.png").point(lambda value: value * 0.8)
    picture.save(data / "vi" / "img_020.jpg", quality=90)
    (data / "vi" / "img_020.png").unlink()


def take_a_flip_of_the_same_car(data):
    rename(data, ["ti", "tm"], "img_000", "00087a6bd4dc_01_hflip")
    rename(data, ["vi", "vm"], "img_020", "00087a6bd4dc_02")


def empty_and_fill_masks(data):
    Image.fromarray(np.zeros((40, 60), np.uint8)).save(data / "tm" / "img_000.png")
    Image.fromarray(np.full((40, 60), 255, np.uint8)).save(data / "tm" / "img_001.png")
    for name in ("Thumbs.db", ".hidden.png", "notes.txt"):
        (data / "ti" / name).write_text("x")
    (data / "ti" / "deeper.png").mkdir()


def save_masks_as_jpeg(data):
    for path in (data / "tm").iterdir():
        Image.open(path).save(path.with_suffix(".jpg"), quality=80)
        path.unlink()


def empty_validation(data):
    redraw(data, ["vm"], np.zeros_like)


def name_kinds_apart(data):
    for side, name in (("t", "street"), ("v", "indoor")):
        for path in sorted((data / f"{side}i").iterdir()) + sorted((data / f"{side}m").iterdir()):
            path.rename(path.with_name(path.name.replace("img", name)))
    redraw(data, ["vi"], lambda image: image[..., 0] * np.uint16(257))


def take_twelve_bits(data):
    draw = np.random.default_rng(0)
    redraw(data, ["ti"], lambda image: draw.integers(0, 4000, (40, 60), np.uint16))


def take_twelve_bits_but_once(data):
    take_twelve_bits(data)
    bright = np.random.default_rng(1).integers(0, 60000, (40, 60), np.uint16)
    Image.fromarray(bright).save(data / "ti" / "img_000.png")


def add_blank_tiles(data):
    for side in ("t", "v"):
        Image.new("RGB", (60, 40)).save(data / f"{side}i" / f"{side}blank.png")
        Image.new("L", (60, 40)).save(data / f"{side}m" / f"{side}blank.png")


def ignore_the_top(data):
    """Masks of {0, 1}, and 2 in the upper quarter."""
    top = np.arange(40)[:, None] < 10
    redraw(data, ["tm", "vm"], lambda mask: np.where(top, 2, mask // 255).astype(np.uint8))


def draw_classes(data, values=(0, 1, 2), void=None):
    """Masks that hold classes in stripes, and `void` in a corner."""
    for folder in ("tm", "vm"):
        for path in (data / folder).iterdir():
            mask = np.repeat(np.array(values, np.uint8), [60 // len(values)] * len(values))[None].repeat(40, axis=0)
            mask = np.ascontiguousarray(np.roll(mask, int(path.stem[-2:]), axis=1))
            if void is not None:
                mask[:4, :6] = void
            Image.fromarray(mask).save(path)


def smooth_classes(data):
    """Three classes of colours, and edges of four pixels between them."""
    draw_classes(data)
    colours = np.array([(0, 0, 0), (128, 64, 128), (0, 0, 142)], np.float32)
    weights = [1 / 9, 2 / 9, 3 / 9, 2 / 9, 1 / 9]

    def smooth(mask):
        return sum(w * np.roll(colours[mask], k, 1) for k, w in enumerate(weights)).round().astype(np.uint8)

    redraw(data, ["tm", "vm"], smooth)


def draw_classes_and_void(data):
    draw_classes(data, void=255)


def draw_rare_classes(data):
    """Validation lacks a class, and another one has a pixel in one mask."""
    draw_classes(data)
    redraw(data, ["vm"], lambda mask: np.minimum(mask, 1))
    mask = np.asarray(Image.open(data / "tm" / "img_003.png")).copy()
    mask[0, 0] = 7
    Image.fromarray(mask).save(data / "tm" / "img_003.png")


def draw_one_class_for_validation(data):
    draw_rare_classes(data)
    empty_validation(data)


def lose_pages(data):
    """An image of three pages whose mask has one."""
    for kind in ("ti", "tm"):
        first, *rest = [Image.open(data / kind / f"img_00{page}.png").copy() for page in range(3)]
        pages = rest if kind == "ti" else []
        first.save(data / kind / "stack.tif", save_all=True, append_images=pages)


def deepen(folder, factor, dtype=np.uint16):
    for path in folder.iterdir():
        grey = np.asarray(Image.open(path).convert("L")).astype(dtype) * dtype(factor)
        Image.fromarray(grey).save(path.with_suffix(".tif"))
        path.unlink()


def take_shares(data):
    redraw(data, ["tm", "vm"], lambda mask: np.maximum(mask, np.roll(mask // 3, 1)))
    for folder in ("tm", "vm"):
        deepen(data / folder, 1 / 255, np.float32)


def take_eleven_bits(data):
    for folder in ("ti", "vi"):
        deepen(data / folder, 8)


def mark_no_data(data):
    take_eleven_bits(data)
    top = np.arange(40)[:, None] < 8
    redraw(data, ["ti", "vi"], lambda image: np.where(top, 65535, image).astype(np.uint16))


def take_floats(data):
    for folder in ("ti", "vi"):
        deepen(data / folder, 0.01, np.float32)


def add_alpha(varied):
    def spoil(data):
        path = data / "ti" / "img_002.png"
        colours = np.asarray(Image.open(path))
        alpha = colours[..., 0] if varied else np.full(colours.shape[:2], 255, np.uint8)
        Image.fromarray(np.dstack([colours, alpha])).save(path)

    return spoil


def number_objects(data):
    """16-bit masks whose objects are numbered, from another number on in validation."""
    for folder, first in (("tm", 0), ("vm", 1)):
        for path in (data / folder).iterdir():
            mask = np.asarray(Image.open(path)) > 0
            numbers = (np.cumsum(mask, axis=1) // 5 + first) * mask
            Image.fromarray(numbers.astype(np.uint16)).save(path)


NAMES = {"sky": 0, "road": 1, "car": 2}
CASES = {
    "masks named otherwise": Case(
        name_masks_differently,
        text=(
            "12 for training, 4 for validation",
            'for validation the mask of an image "{}" is taken to be "{}_segmentation"; e.g. img_020_s',
        ),
    ),
    "masks named otherwise, and MASK_NAME": Case(
        name_masks_differently,
        dict(mask_name="{}_segmentation"),
        problems=("no image there has a mask",),
        text=("0 for training, 4 for validation",),
        unsaid=("is taken to be",),
        count=2,
    ),
    "strays": Case(
        move_a_mask,
        problems=(
            "img_003.png: has no mask",
            "stray.png: is the mask of no image",
            "SKIP_UNPAIRED = True",
            "MASK_NAME",
        ),
        count=2,
    ),
    "strays, left out": Case(
        move_a_mask,
        dict(skip_unpaired=True),
        text=(
            "11 for training, 4 for validation",
            "for training 1 image without a mask and 0 masks without an image are left out: img_003",
            "for validation 0 images without a mask and 1 mask without an image are left out: stray",
        ),
    ),
    "no folder of images": Case(
        lose_folder("ti"), problems=("DATA/ti: there is no such folder", "img_020.png: is empty"), count=2
    ),
    "no folder of masks": Case(
        lose_folder("tm"), problems=("DATA/tm: there is no such folder", "img_020.png: is empty"), count=2
    ),
    "no folder for validation": Case(lose_folder("vi"), problems=("DATA/vi: there is no such folder",)),
    "no pair for validation": Case(name_masks_like_no_image, problems=("no image there has a mask",), count=2),
    "two rules": Case(divide_validation, problems=("{0, 255} in 12", "{0, 1} in 4"), rule={}),
    "two rules, told": Case(divide_validation, dict(foreground=(1, 255))),
    "several classes": Case(draw_stripes_around, problems=("several classes", "--mask-foreground"), rule={}),
    "one of several classes": Case(draw_stripes_around, dict(foreground=8), rule=dict(foreground=(8,))),
    "a turned image": Case(turn("ti"), problems=("img_000.png is 60x40", "EXIF tag")),
    "a turned mask": Case(turn("tm"), problems=("img_000.png is 60x40", "(the mask by its EXIF tag: remove")),
    "a mask turned by 180 degrees": Case(
        turn("tm", tag=3), text=("1 mask turned by EXIF where the image is not", "tm/img_000.png", "remove its tag")
    ),
    "a turned pair": Case(turn("ti", "tm"), text=("1 image set upright",), unsaid=("Warning",)),
    "a pair turned by 180 degrees": Case(turn("ti", "tm", tag=3), text=("1 image set upright",), unsaid=("Warning",)),
    "turned images whose sizes do not tell": Case(
        turn_three(), text=("2 images turned by EXIF", "ti/img_001.png", "vi/img_021.png", "exiftool")
    ),
    "turned images beside one whose mask is turned": Case(
        turn_three("ti", "tm"), text=("3 images set upright", "2 images turned by EXIF")
    ),
    "turned images beside one whose mask is not": Case(
        turn_three("ti"),
        problems=("by its EXIF tag",),
        text=("2 images turned by EXIF",),
    ),
    "kinds on one side alone": Case(
        name_kinds_apart,
        text=(
            "begin with street: 12 for training, 0 for validation",
            "indoor: 0 for training, 4",
            "values of 16 bits, of which",
            'VAL_CHOICE = "random"',
        ),
        unsaid=("  size 40",),
    ),
    "one image on both sides": Case(copy_an_image, problems=("img_020.png is ", "img_000.png")),
    "a version on both sides": Case(
        copy_a_version,
        text=("1 image for validation with nearly the pixels", "img_020.jpg is nearly DATA/ti/img_000.png"),
    ),
    "one group on both sides": Case(
        copy_an_image, dict(group="(img)_"), problems=("1 group of images on both sides",), count=2
    ),
    "a flip of the same car": Case(take_a_flip_of_the_same_car, problems=("00087a6bd4dc: ",)),
    "equal numbers": Case(
        lambda data: rename(data, ["vi", "vm"], "img_020", "img_003"), text=("1 name in both", "numbered alike")
    ),
    "empty and full masks, other files": Case(
        empty_and_fill_masks, text=("1 masks empty, 1 all foreground", "4 that are no pictures", "Thumbs.db")
    ),
    "masks of shares": Case(take_shares, text=("16 masks of fractions from 0 to 1",)),
    "soft masks": Case(save_masks_as_jpeg, text=("JPEG edges",), rule=dict(soft=True)),
    "smoothed classes": Case(
        smooth_classes,
        dict(classes={"sky": 0, "road": 0x804080, "car": 0x00008E}),
        text=("colours between two classes are the nearer one's, 20 % of the pixels",),
        rule=dict(soft=True),
    ),
    "nothing but empty masks": Case(
        empty_validation, problems=("The masks for validation hold nothing but background, e.g.",)
    ),
    "16 bits that use 12": Case(
        take_twelve_bits, problems=("12 images of 16 bits that use only the lowest 12", "IMAGE_RANGE")
    ),
    "16 bits that use 12, but for one": Case(take_twelve_bits_but_once, text=("11 images of 16 bits",)),
    "16 bits that use 11, and a range": Case(
        take_eleven_bits, dict(image_range="auto"), text=("IMAGE_RANGE",), unsaid=("Warning",)
    ),
    "12 bits with a mark for no data": Case(
        mark_no_data, problems=("16 images of 16 bits that use only the lowest 12",)
    ),
    "12 bits with a mark for no data, and a range": Case(
        mark_no_data,
        dict(image_range="auto"),
        text=("65535 (20.0% of the values)", "does not count"),
        unsaid=("Warning",),
    ),
    "16 bits beyond the range": Case(
        take_eleven_bits, dict(image_range=(3000, 4000)), problems=("all values outside of that range",)
    ),
    "floats": Case(take_floats, problems=("with fractions", "img_000.tif", "IMAGE_RANGE")),
    "blank tiles on both sides": Case(add_blank_tiles),
    "a third value": Case(ignore_the_top, problems=("--mask-foreground",)),
    "a third value, ignored": Case(
        ignore_the_top,
        dict(ignore=2),
        text=("25.00% of all pixels are neither trained on nor scored",),
        rule=dict(ignored=(2,), is_binary=False),
    ),
    "ignored, and in no mask": Case(
        ignore_the_top, dict(ignore=9, foreground=1), text=("MASK_IGNORE: no mask holds that",)
    ),
    "everything ignored": Case(
        ignore_the_top, dict(ignore=(0, 1, 2)), problems=("Every pixel of the masks for training is ignored",), count=2
    ),
    "classes, untold": Case(draw_classes_and_void, problems=("--mask-foreground", "--classes"), rule={}),
    "classes that leave values": Case(
        draw_classes_and_void, dict(classes=(0, 1)), problems=("img_000.png", "CLASSES", "255")
    ),
    "rare and absent classes": Case(
        draw_rare_classes,
        dict(classes={**NAMES, "sign": 7, "boat": 9}),
        text=(
            "no mask for training holds, so that they cannot be learnt: boat.",
            "no mask for validation holds, so that they are not scored: car, sign, boat.",
            "hardly any pixel for training has: sign (",
        ),
    ),
    "one class alone": Case(
        draw_one_class_for_validation,
        dict(classes=(0, 1, 2, 7)),
        problems=("for validation hold nothing but 0, e.g.",),
    ),
    "other pages": Case(lose_pages, problems=("1 file for training with pages that have no partner", "stack.tif")),
    "an alpha channel": Case(add_alpha(varied=True), text=("it is dropped",)),
    "an alpha channel that is opaque": Case(add_alpha(varied=False), unsaid=("it is dropped",)),
    "numbered objects": Case(number_objects, problems=("several classes",), rule={}),
    "numbered objects, told": Case(number_objects, dict(foreground="nonzero")),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_one_thing_is_spoiled(data, case):
    case.spoil(data)
    report = looked_at(data, **case.constants)
    told, text = problems(report), report.text()
    assert len(report.problems) == (case.count if case.problems else 0), told
    for words in case.problems:
        assert words.replace("DATA", str(data)) in told
    for words in case.text:
        assert words.replace("DATA", str(data)) in text
    for words in case.unsaid:
        assert words not in told + text
    if case.rule == {}:
        assert report.mask_rule is None
    for name, value in (case.rule or {}).items():
        assert getattr(report.mask_rule, name) == value


CONSTANTS_AT_ODDS = {
    "GROUP.*no regular expression": dict(group="("),
    "CLASSES = 'all' and MASK_FOREGROUND = 2": dict(classes="all", foreground=2),
    "IMAGE_RANGE": dict(image_range=(5, 5)),
}


@pytest.mark.parametrize("words", CONSTANTS_AT_ODDS)
def test_constants_at_odds_are_told_before_the_looking(data, words):
    with pytest.raises(UserError, match=words):
        looked_at(data, cache=data / "audit.json", **CONSTANTS_AT_ODDS[words])
    assert not (data / "audit.json").exists()


# ---- datasets as a whole


def test_good_data(data):
    report = looked_at(data, sheet=data / "new" / "sheet.png")
    assert report.problems == [] and report.warnings == []
    assert len(report.train) == 12 and len(report.val) == 4
    shares = [(np.asarray(Image.open(pair.mask)) > 0).mean() for pair in report.train + report.val]
    words = f"least {min(shares):.2%}, median {np.median(shares):.2%}, most {max(shares):.2%} of a mask"
    assert words in report.text() and report.mask_rule.foreground == (255,)
    text = report.text()
    for words in ("12 for training, 4 for validation", "all 40x60", "PNG RGB", "255 is foreground", "sheet.png"):
        assert words in text
    report.stop_if_spoiled()
    with Image.open(data / "new" / "sheet.png") as sheet:
        pixels = np.asarray(sheet.convert("RGB")).reshape(-1, 3).astype(int)
    outlines = np.abs(pixels - (230, 0, 126)).max(axis=1) < 20
    assert outlines.sum() > 100


def test_subfolders_and_what_lies_below_the_images(data):
    for kind in "im":
        (data / f"t{kind}" / "s").mkdir()
        for number in (0, 1):
            (data / f"t{kind}" / f"img_00{number}.png").rename(data / f"t{kind}" / "s" / f"x{number}.png")
        (data / f"v{kind}").rename(data / f"t{kind}" / "val")
    run = data / "ti" / "run"
    run.mkdir()
    Image.new("RGB", (60, 40)).save(run / "curves.png")
    folders = [data / "ti", data / "tm", data / "ti" / "val", data / "tm" / "val"]
    report = audit(folders[:2], folders[2:], sheet=run / "audit.png", apart=[run])
    assert report.problems == [] and len(report.val) == 4
    assert [pair.name for pair in report.train][-2:] == ["s/x0", "s/x1"] and len(report.train) == 12


def test_one_folder_pair_alone(data):
    report = audit((data / "ti", data / "tm"))
    assert report.problems == [] and report.val == []


def test_all_problems_at_once(data):
    Image.new("RGB", (60, 40)).save(data / "ti" / "lonely.png")
    Image.new("L", (60, 40)).save(data / "vm" / "orphan_mask.png")
    for name in ("x.png", "x.jpg"):
        Image.new("RGB", (60, 40)).save(data / "ti" / name)
    (data / "ti" / "img_001.png").write_bytes(b"")
    mask = (data / "tm" / "img_002.png").read_bytes()
    (data / "tm" / "img_002.png").write_bytes(mask[: len(mask) // 2])
    (data / "ti" / "img_003.png").write_text("not a picture")
    Image.new("RGB", (61, 40), 9).save(data / "ti" / "img_004.png")
    Image.open(data / "ti" / "img_005.png").transpose(Image.Transpose.ROTATE_90).save(data / "ti" / "img_005.png")
    Image.open(data / "ti" / "img_006.png").save(data / "vi" / "img_020.png")
    Image.fromarray(np.asarray(Image.open(data / "tm" / "img_007.png")) // 255).save(data / "tm" / "img_007.png")
    for folder, view in (("ti", "01"), ("vi", "02")):
        masks = folder.replace("i", "m")
        old = "img_008" if folder == "ti" else "img_021"
        rename(data, (folder, masks), old, f"00087a6bd4dc_{view}")
    report = looked_at(data)
    text = problems(report)
    for words in (
        "lonely.png: has no mask",
        "orphan_mask.png: is the mask of no image",
        "x.jpg, ",
        "img_001.png: is empty (0 bytes)",
        "img_002.png: is damaged or cut short",
        "img_003.png: is no picture",
        "img_004.png is 40x61",
        "height and width are swapped",
        "img_020.png is ",
        "{0, 1} in 1",
        "00087a6bd4dc: ",
    ):
        assert words in text, words
    assert report.mask_rule is None
    with pytest.raises(UserError) as caught:
        report.stop_if_spoiled()
    assert text.split("\n")[0] in str(caught.value)
    # unusable files come first, leaks last
    assert text.index("img_001.png") < text.index("lonely.png") < text.index("{0, 1}") < text.index("00087a6bd4dc: ")


def test_every_fault_at_once(data):
    file = io.BytesIO()
    Image.open(data / "ti" / "img_000.png").save(file, "JPEG")
    faults = {
        "zero.png": b"",
        "text.png": b"hello",
        "cut.jpg": file.getvalue()[:-200],
        "name with space [x].png": b"\x89PNG\r\n\x1a\n",
        "日本 é.png": b"GIF89a",
        os.fsdecode(b"byte-\xff.png"): b"x",
    }
    for name, content in faults.items():
        (data / "ti" / name).write_bytes(content)
        Image.new("L", (60, 40)).save((data / "tm" / name).with_suffix(".png"))
    (data / "ti" / "loop.png").symlink_to(data / "ti" / "loop.png")
    Image.new("L", (60, 40)).save(data / "tm" / "loop.png")
    os.mkfifo(data / "ti" / "pipe.png")
    Image.new("L", (60, 40)).save(data / "tm" / "pipe.png")
    (data / "ti" / "folder.png").mkdir()
    with pytest.raises(UserError, match="8 files cannot be used") as caught:
        dataset.main([str(data / "ti"), str(data / "tm"), "--sheet", "none"])
    for name in (*faults, "loop.png", "pipe.png"):
        assert printable(name) in str(caught.value)


def test_long_lists_are_cut_and_counts_are_exact(tmp_path):
    draw_pairs(tmp_path / "ti", tmp_path / "tm", 3)
    for index in range(LINES + 7):
        Image.new("L", (4, 4)).save(tmp_path / "ti" / f"more{index}.png")
    report = audit((tmp_path / "ti", tmp_path / "tm"))
    (problem,) = report.problems
    assert f"{LINES + 7} files for training" in problem and "and 7 more" in problem
    assert problem.count("has no mask") == LINES


def test_cut_outs_are_read_by_a_word(data):
    """What a cut-out's alpha says is remembered, too."""
    shares = {}
    for folder in ("tm", "vm"):
        for path in (data / folder).iterdir():
            mask = np.asarray(Image.open(path)) > 0
            photograph = np.random.default_rng(mask.sum()).integers(0, 256, (*mask.shape, 3), np.uint8)
            Image.fromarray(np.dstack([photograph, mask * np.uint8(255)])).save(path)
            shares[path] = mask.mean()
    assert "16 files cannot be used" in problems(looked_at(data)) and "alpha" in problems(looked_at(data))
    for _ in range(2):
        report = looked_at(data, foreground="alpha", cache=data / "seen.json")
        assert report.problems == [] and report.warnings == []
        assert f"median {np.median(list(shares.values())):.2%}" in report.text() and "opaque" in report.text()
    assert "16 files cannot be used" in problems(looked_at(data, cache=data / "seen.json"))


def test_duplicates_are_compared_by_all_their_pixels(data):
    """Files equal in the rows that are summed up at first, and in an eighth of their size, are not equal."""
    one = np.asarray(Image.open(data / "ti" / "img_000.png")).copy()
    Image.fromarray(one).save(data / "ti" / "img_001.png", compress_level=0)
    one[3, 3] ^= 1
    Image.fromarray(one).save(data / "ti" / "img_002.png")
    report = looked_at(data)
    (warning,) = report.warnings
    assert "2 images for training" in warning and "img_000.png" in warning and "img_001.png" in warning
    assert "img_002.png" not in warning
    for folder in ("ti", "vi"):
        for path in (data / folder).iterdir():
            picture = Image.open(path).convert("RGB").resize((64, 48))
            picture.save(path.with_suffix(".jpg"), quality=90)
            path.unlink()
    for folder in ("tm", "vm"):
        for path in (data / folder).iterdir():
            Image.open(path).resize((64, 48), Image.Resampling.NEAREST).save(path)
    (data / "ti" / "img_005.jpg").write_bytes((data / "vi" / "img_020.jpg").read_bytes() + b"more")
    text = problems(looked_at(data))
    assert text.count(" is ") == 1 and "img_005.jpg" in text and "img_020.jpg" in text


def test_learning_by_heart_on_purpose_is_a_warning(data):
    report = audit((data / "ti", data / "tm"), (data / "ti", data / "tm"))
    assert report.problems == [] and "learnt by heart" in report.text()


def test_swapped_folders_and_photographs_as_masks_are_told(data):
    for folder in ("ti", "vi"):
        for path in (data / folder).iterdir():
            noise = np.random.default_rng(int(path.stem[-3:])).integers(0, 256, (40, 60, 3), np.uint8)
            Image.fromarray(noise).save(path)
    swapped = audit((data / "tm", data / "ti"), (data / "vm", data / "vi"))
    assert "seem to be swapped" in problems(swapped) and "--train-img-dir" in problems(swapped)
    for path in (data / "tm").iterdir():
        (data / "ti" / path.name).replace(path)
    draw_pairs(data / "ti", data / "others", 12)
    photographs = audit((data / "ti", data / "tm"))
    assert "seem to be photographs" in problems(photographs) and "img_000.png" in problems(photographs)


def small_things(folder, count, first=0, size=9):
    """Squares of 9 pixels in pictures of 512x768, as cells, lesions or cars from above are."""
    for index in range(first, first + count):
        draw = np.random.default_rng(index)
        mask = np.zeros((512, 768), bool)
        top, left = draw.integers(20, 480, 3), draw.integers(20, 740, 3)
        for y, x in zip(top, left):
            mask[y : y + size, x : x + size] = True
        for place, values in (
            (folder[0], draw.integers(0, 40, (512, 768, 3)) + mask[..., None] * 99),
            (folder[1], mask * 255),
        ):
            place.mkdir(exist_ok=True)
            Image.fromarray(values.astype(np.uint8)).save(place / f"s{index}.png")


def test_what_vanishes_when_masks_are_shrunk_is_told(tmp_path):
    folders = [tmp_path / name for name in ("ti", "tm", "vi", "vm")]
    small_things(folders[:2], 4)
    small_things(folders[2:], 2, first=10)
    report = audit(folders[:2], folders[2:], image_size=(32, 48))
    assert "No mask for training has any foreground left at IMAGE_SIZE 32x48" in problems(report)
    assert "6 masks are emptied" in problems(report) and "--image-size" in problems(report)
    small_things(folders[:2], 1, first=3, size=90)  # one that stays
    small_things(folders[2:], 1, first=11, size=90)
    report = audit(folders[:2], folders[2:], image_size=(32, 48))
    assert report.problems == [] and "4 masks are emptied at IMAGE_SIZE 32x48, and 0 others" in report.text()
    assert audit(folders[:2], folders[2:], image_size=(512, 768)).warnings == []
    assert audit(folders[:2], folders[2:]).warnings == []


def test_lines_that_are_thin_are_told_too(tmp_path):
    for place in ("ti", "tm"):
        (tmp_path / place).mkdir()
    for index in range(4):
        mask = np.zeros((400, 600), np.uint8)
        mask[5 + index :: 12] = 255  # a twelfth of the picture, one pixel thick
        Image.fromarray(mask).save(tmp_path / "tm" / f"{index}.png")
        Image.fromarray(np.random.default_rng(index).integers(0, 255, (400, 600, 3), np.uint8)).save(
            tmp_path / "ti" / f"{index}.png"
        )
    report = audit((tmp_path / "ti", tmp_path / "tm"), image_size=(100, 150))
    assert "4 masks are emptied at IMAGE_SIZE 100x150" in problems(report)


def test_a_class_that_vanishes_when_masks_are_shrunk_is_told(tmp_path):
    for side, count in (("t", 6), ("v", 2)):
        draw_pairs(tmp_path / f"{side}i", tmp_path / f"{side}m", count, size=(160, 240), first=10 * count)
        for path in (tmp_path / f"{side}m").iterdir():
            mask = np.asarray(Image.open(path)) // 255
            mask[::16] = 2  # lines of one pixel
            Image.fromarray(mask).save(path)
    report = looked_at(tmp_path, classes={"sky": 0, "box": 1, "line": 2}, image_size=(40, 60))
    assert "1 class loses more than half of the pixels at IMAGE_SIZE 40x60" in report.text()
    assert "line: 6.250% -> 0.000%" in report.text() and "box:" not in report.text().split("being small")[1]


# ---- ignored pixels, classes, pages, several masks, images of more than 8 bits


def test_ignored_pixels_are_left_out_of_the_shares(data):
    ignore_the_top(data)
    report = looked_at(data, ignore=2, sheet=data / "new" / "sheet.png")
    shares = [(np.asarray(Image.open(pair.mask))[10:] == 1).mean() for pair in report.train + report.val]
    assert f"least {min(shares):.2%}" in report.text() and report.sheet.is_file()


def test_classes_are_counted_and_drawn(data):
    draw_classes(data, void=255)
    report = looked_at(data, ignore=255, classes=NAMES, sheet=data / "new" / "sheet.png")
    assert report.problems == [] and report.mask_rule.channels == 3 and report.sheet.is_file()
    assert "class / training / validation: sky / 3" in report.text() and "1.00% of all pixels" in report.text()


def test_each_page_is_an_image(data):
    for kind, pages in (("ti", range(3)), ("tm", range(3)), ("vi", range(20, 22)), ("vm", range(20, 22))):
        files = [data / kind / f"img_{page:03d}.png" for page in pages]
        first, *rest = [Image.open(file).copy() for file in files]
        first.save(data / kind / "stack.tif", save_all=True, append_images=rest)
        for file in files:
            file.unlink()
    cache = data / "memory.json"
    report = looked_at(data, cache=cache, sheet=data / "new" / "sheet.png")
    assert report.problems == [] and "each of 2 files is an image with a mask of its own" in report.text()
    assert [(pair.name, pair.image_page) for pair in report.train[-3:]] == [(f"stack_{n}", n) for n in range(3)]
    assert len(report.val) == 4
    again = looked_at(data, cache=cache)
    assert again.train == report.train and again.text() == report.text().replace(
        f"\nLook{report.text().split('Look')[1]}", ""
    )


def test_several_masks_of_an_image_are_united(data):
    for folder in ("tm", "vm"):
        for path in list((data / folder).iterdir()):
            mask = np.asarray(Image.open(path))
            for number, half in enumerate((slice(None, 30), slice(30, None))):
                part = np.zeros_like(mask)
                part[:, half] = mask[:, half]
                Image.fromarray(part).save(path.with_name(f"{path.stem}_{number}.png"))
            path.unlink()
    report = looked_at(data, mask_name="{}_*", sheet=data / "new" / "sheet.png")
    assert report.problems == [] and len(report.train) == 12 and len(report.train[0].masks) == 2
    assert "16 images with 2 to 2 masks" in report.text()
    assert "CLASSES with several masks of one image" in problems(looked_at(data, mask_name="{}_*", classes="all"))


def test_a_range_is_chosen(data):
    take_eleven_bits(data)
    low, high = looked_at(data, image_range="auto").value_range
    assert 0 <= low < 200 and 1000 < high < 255 * 8
    assert looked_at(data, image_range=(0, 2040)).value_range == (0, 2040)


def test_a_range_of_floats_is_chosen(data):
    take_floats(data)
    report = looked_at(data, image_range="auto", sheet=data / "new" / "sheet.png")
    assert report.problems == [] and 0 <= report.value_range[0] < report.value_range[1] < 2.6 and report.sheet.is_file()


def test_a_range_is_chosen_by_the_training_images_where_they_are_deep(data):
    deepen(data / "ti", 8)
    deepen(data / "vi", 200)
    assert 1000 < looked_at(data, image_range="auto").value_range[1] < 255 * 8
    for path in (data / "ti").iterdir():
        Image.fromarray((np.asarray(Image.open(path)) // 8).astype(np.uint8)).save(path)
    assert looked_at(data, image_range="auto").value_range[1] > 255 * 8


# ---- what is remembered, and written


def remember(cache, mode):
    """Lets a memory tell of another mode than the files have: a report that tells it was not made of the files."""
    stored = json.loads(cache.read_text().replace(mode, '"mode":"remembered"'))
    stored["provenance"]["settings"]["digest"] = facts_digest(stored["facts"])
    cache.write_text(json.dumps(stored))


def test_unchanged_files_are_not_read_again(data):
    cache = data / "seen" / "audit.json"
    before = looked_at(data, cache=cache)
    remember(cache, '"mode":"L"')
    after = looked_at(data, cache=cache)
    assert after.problems == before.problems == []
    assert before.text().replace("mode L", "mode remembered") == after.text() != before.text()
    for name in ("ti/img_003.png", "tm/img_004.png"):  # other bytes, of the same length and time
        stamp = os.stat(data / name)
        (data / name).write_bytes(bytes(stamp.st_size))
        os.utime(data / name, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    (data / "vm" / "img_021.png").write_bytes(b"x")
    text = problems(looked_at(data, cache=cache))
    assert all(name in text for name in ("img_003.png", "img_004.png", "img_021.png", "3 files cannot be used"))
    assert "img_005.png" not in text


def test_a_stopped_audit_remembers_what_it_has_seen(tmp_path):
    folders = tmp_path / "i", tmp_path / "m"
    draw_pairs(*folders, 20, size=(300, 450))
    for _ in range(2):  # the first one loads what Pillow needs
        start = time.perf_counter()
        audit(folders, num_workers=0)
        took = time.perf_counter() - start
    cache = tmp_path / "audit.json"
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            signal.setitimer(signal.ITIMER_REAL, took / 3)
            audit(folders, cache=cache, num_workers=0)
            signal.pause()
    finally:
        signal.signal(signal.SIGALRM, before)
    seen = json.loads(cache.read_text())["facts"]
    assert 0 < len(seen) < 40
    remember(cache, '"mode":"RGB"')
    report = audit(folders, cache=cache, num_workers=0)
    assert report.problems == [] and "PNG remembered" in report.text()
    assert len(json.loads(cache.read_text())["facts"]) == 40


@pytest.mark.parametrize("kind", [IMAGE, MASK])
def test_a_file_that_is_refused_leaves_no_pixels_in_memory(data, monkeypatch, kind):
    """Or the files after one that does not fit into memory would not fit either."""
    kept = []

    def fails(picture, **head):
        kept.append(weakref.ref(picture))
        raise MemoryError

    monkeypatch.setattr(images, "Decoded", fails)
    file, looker = File(kind, data / "ti" / "img_000.png"), Looker(None, None)
    looker.look([file])
    assert "does not fit into memory" in str(looker.faults[file]) and kept[0]() is None


@pytest.mark.parametrize("content", ["", "{", "[]", f'{{"head": [{VERSION}, false], "files": []}}', "null", "\x00"])
def test_a_damaged_memory_is_not_believed(data, content):
    cache = data / "audit.json"
    cache.write_text(content)
    assert looked_at(data, cache=cache).problems == []
    assert len(json.loads(cache.read_text())["facts"]) == 32


def test_facts_that_were_changed_on_disk_are_not_believed(data):
    cache = data / "audit.json"
    looked_at(data, cache=cache)
    good = cache.read_bytes()
    cache.write_bytes(good.replace(b'"size":[40,60]', b'"size":"4060"'))  # of another type
    assert cache.read_bytes() != good and looked_at(data, cache=cache).problems == []
    assert cache.read_bytes() == good


def test_memory_that_cannot_be_kept_stops_nothing(data):
    (data / "file").write_text("")
    assert looked_at(data, cache=data / "file" / "audit.json").problems == []


def test_bad_files_are_not_remembered(data):
    """A file that had no permission, or was being copied, is looked at again."""
    cache, path = data / "audit.json", data / "ti" / "img_000.png"
    good, stamp = path.read_bytes(), os.stat(path)
    path.write_bytes(bytes(len(good)))
    os.utime(path, ns=(1, 1))
    assert "img_000.png" in problems(looked_at(data, cache=cache))
    path.write_bytes(good)
    os.utime(path, ns=(1, 1))
    assert os.stat(path).st_size == stamp.st_size and looked_at(data, cache=cache).problems == []


def test_several_processes_see_the_same(data):
    Image.open(data / "ti" / "img_000.png").save(data / "ti" / "img_001.png", compress_level=1)
    (data / "ti" / "img_002.png").write_bytes(b"x")
    texts = []
    for workers in (0, 2):
        report = looked_at(data, num_workers=workers, cache=data / f"{workers}.json")
        texts.append((report.text(), report.problems))
    assert texts[0] == texts[1] and (data / "0.json").read_text() == (data / "2.json").read_text()


def test_a_sheet_that_cannot_be_written_costs_only_itself(data):
    (data / "file").write_text("")
    report = looked_at(data, sheet=data / "file" / "audit.png")
    assert report.problems == [] and "could not be written" in report.text() and "Look at" not in report.text()
    for sheet, words in ((data / "overlays", r"\.png"), (data / "vi" / "audit.png", "taken for one of the images")):
        with pytest.raises(UserError, match=words):
            looked_at(data, sheet=sheet)


# ---- the script


@pytest.mark.parametrize("word", ["nonzero", "alpha"])
def test_the_script_takes_the_words(data, word, capsys):
    flags = [*(str(data / name) for name in ("ti", "tm")), "--sheet", "none", "--mask-foreground", word]
    if word == "alpha":
        with pytest.raises(UserError, match="img_000.png: has no alpha channel"):
            dataset.main(flags)
    else:
        dataset.main(flags)
        assert "every value but 0 is foreground" in capsys.readouterr().out


@pytest.mark.slow
def test_the_script_on_good_data_and_bad(data):
    folders = [data / name for name in ("ti", "tm", "vi", "vm")]
    done = script("dataset.py", *folders, cwd=data)
    assert done.returncode == 0, done.stderr
    assert "No problems." in done.stdout and (data / "audit.png").is_file()
    for name in ("img_001.png", "img_002.png"):
        (data / "ti" / name).write_bytes(b"x")
    done = script("dataset.py", *folders, cwd=data)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "2 files cannot be used" in done.stderr and "img_001.png" in done.stderr and "img_002.png" in done.stderr


def test_the_scripts_flags(data, capsys):
    plain = ["--sheet", "none", "--mask-foreground", "none", "--group", "(x)", "--image-size", "none"]
    folders = [str(data / name) for name in ("ti", "tm")]
    with pytest.raises(UserError, match="VAL_MASK_DIR"):
        dataset.main([*folders, str(data / "vi"), *plain])
    with pytest.raises(UserError, match="there is no such folder"):
        dataset.main([folders[0], str(data / "nothing"), *plain])
    draw_stripes_around(data)
    with pytest.raises(UserError, match="several classes.*\n?.*--mask-foreground"):
        dataset.main([*folders, *plain])
    dataset.main([*folders, *plain, "--mask-foreground", "8"])
    assert "8 is foreground, every other value is background" in capsys.readouterr().out


def test_the_script_leaves_out_strays(data, capsys):
    move_a_mask(data)
    dataset.main([str(data / "ti"), str(data / "tm"), "--skip-unpaired", "--sheet", "none"])
    assert "img_003.png" in capsys.readouterr().out
