"""What a mask's pixels mean: every legal way of writing one reads back equal, every other one is refused in words."""

import io
import json
import pickle

import numpy as np
import pytest
from PIL import Image, ImageFilter

from parts.errors import UnusableFile, UserError
from parts.mask_rules import decide_mask_rule, find_mask_rule
from parts.masks import IGNORED, MaskRule, count_classes, encode_mask, observe_mask, read_mask, resize_mask
from parts.spec import DataSpec

H, W = 48, 64


def foreground_share(seen, mask_rule):
    """What share of an observed mask's pixels is foreground, of those that are not ignored; 0 if all are."""
    counts = count_classes(seen, mask_rule)[:-1]
    return counts[1:].sum() / max(1, counts.sum())


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


@pytest.mark.parametrize("name", LEGAL)
def test_every_legal_encoding_reads_back_equal(tmp_path, name):
    """Random masks of many sizes and shares, among them empty and full ones; read by one rule."""
    draw = np.random.default_rng(sum(map(ord, name)))
    masks = [blob(), np.zeros((H, W), np.uint8), np.ones((H, W), np.uint8)]
    for _ in range(9):
        height, width = draw.integers(1, 40, 2)
        masks.append((draw.random((height, width)) < draw.random()).astype(np.uint8))
    paths = write_all(tmp_path, LEGAL[name], name, masks)
    seen = [observe_mask(path) for path in paths]
    mask_rule = decide_mask_rule(seen)
    assert find_mask_rule(paths) == mask_rule and not mask_rule.soft
    for mask, path, it in zip(masks, paths, seen):
        found = read_mask(path, mask_rule)
        assert found.dtype == np.uint8
        np.testing.assert_array_equal(found, mask)
        assert foreground_share(it, mask_rule) == pytest.approx(mask.mean()) and it.size == list(mask.shape)


SOFT = {
    "jpeg 95.jpg": lambda m, p: grey(m).save(p, quality=95),
    "jpeg 50.jpg": lambda m, p: grey(m).save(p, quality=50),
    "jpeg in png.png": lambda m, p: jpeg(grey(m), 75).save(p),
    "good jpeg in png.png": lambda m, p: jpeg(grey(m), 95).save(p),
    "blurred.png": lambda m, p: smoothed(grey(m)).save(p),
    "white not quite white.png": lambda m, p: Image.fromarray(m * np.uint8(255) - (m & np.roll(m, 9, 1))).save(p),
    "16-bit blurred.png": lambda m, p: Image.fromarray(np.asarray(smoothed(grey(m))).astype(np.uint16) * 257).save(p),
}


@pytest.mark.parametrize("name", SOFT)
def test_soft_edges_are_cut_at_the_middle(tmp_path, name):
    masks = [blob(seed, 120, 160) for seed in range(4)] + [np.zeros((120, 160), np.uint8)]
    paths = write_all(tmp_path, SOFT[name], name, masks)
    mask_rule = find_mask_rule(paths)
    assert mask_rule.soft and "middle" in mask_rule.describe()
    for mask, path in zip(masks, paths):
        wrong = read_mask(path, mask_rule) != mask
        assert wrong.mean() < 0.005
    assert foreground_share(observe_mask(paths[0]), mask_rule) == pytest.approx(masks[0].mean(), abs=0.005)


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


def grain(mask):
    """A grey picture with a white area and a black one, and noise that is an eighth of it."""
    picture = mask * np.uint8(255)
    picture[-H // 8 :] = np.random.default_rng(0).integers(40, 215, (H // 8, W), np.uint8)
    return picture


def smoothed(picture):
    return picture.filter(ImageFilter.GaussianBlur(1.5))


def jpeg(picture, quality=75):
    """A picture as JPEG leaves it."""
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=quality)
    return Image.open(file)


def alpha_tells(mask):
    return coloured(mask, (255, 255, 255), (255, 255, 255), alpha=(0, 255))


def two(first, second):
    """A maker of two masks, each in its own way."""

    def make(folder):
        first(blob(0)).save(folder / "a.png")
        second(blob(1)).save(folder / "b.png")

    return make


def one(make, name="a.png", **options):
    return lambda folder: make(blob()).save(folder / name, **options)


COLOURED = np.random.default_rng(0).integers(1, 256, (300, 3), np.uint8)
COLOURED[0] = 0


def organ(mask, low=128, high=255, half=2):
    """An area of one value with a small thing of another in it."""
    values = mask * np.uint8(low)
    y, x = np.argwhere(mask).mean(axis=0).astype(int)
    values[y - half : y + half, x - half : x + half] = high
    return Image.fromarray(values)


def organs(save, make=organ, others=None):
    """A maker of masks of an organ, at a size at which it is large; `others`: how all but the first are made."""

    def write(folder):
        for seed in range(5):
            save((make if seed == 0 or others is None else others)(blob(seed, 240, 320)), folder / f"{seed}")

    return write


def as_jpeg(picture, path):
    picture.save(f"{path}.jpg", quality=90)


def resized(picture, path):
    picture.resize((213, 160), Image.Resampling.BICUBIC).save(f"{path}.png")


# name -> (what makes masks in a folder, words of the message)
REFUSED = {
    "a small class above both ends, jpeg": (organs(as_jpeg), ["several classes", "blurred", "as PNG"]),
    "a small class above both ends, resized": (
        organs(resized, lambda m: organ(m, half=6)),
        ["several classes", "blurred", "as PNG"],
    ),
    "a class above both ends in one mask": (
        organs(as_jpeg, others=lambda m: grey(m, 0, 128)),
        ["but not in", "0.jpg holds", "blurred"],
    ),
    "a class below both ends": (
        organs(resized, lambda m: Image.fromarray(255 - np.asarray(organ(m, 127, 255, 6)) // 2)),
        ["several classes"],
    ),
    "38 that was jpeg, in png": (one(lambda m: jpeg(grey(m, 0, 38))), ["several classes", "blurred", "as PNG"]),
    "instance numbers": (
        lambda f: classes(range(30)).save(f / "a.png"),
        ["several classes", "--mask-foreground nonzero"],
    ),
    "few instances, of other number in each": (
        lambda f: classes([0, 1, 2, 3]).save(f / "a.png") or classes([0, 1, 2]).save(f / "b.png"),
        ["several classes", "--mask-foreground nonzero"],
    ),
    "coloured instances": (
        lambda f: Image.fromarray(COLOURED[classes(range(30))]).save(f / "a.png"),
        ["several classes", "--mask-foreground nonzero"],
    ),
    "classes 0..11": (lambda f: classes(range(12)).save(f / "a.png"), ["several classes", "11 (", "MASK_FOREGROUND"]),
    "classes 0, 1, 255": (
        lambda f: classes([0, 1, 255]).save(f / "a.png"),
        [
            "0 (33 %), 1 (33 %), 255 (33 %)",
            "--mask-foreground 1",
            "--classes all",
            '{"name": 1, ...}',
            "--mask-ignore 255",
        ],
    ),
    "voc with borders": (one(with_border), ["several classes", "15 (", "255 (", "--mask-ignore 255"]),
    "voc with borders, in colours": (
        one(lambda m: Image.fromarray(np.array([(0, 0, 0), (192, 0, 0), (224, 224, 192)], np.uint8)[m + edge(m)])),
        ["several classes", "--classes all", "--mask-ignore 0xE0E0C0"],
    ),
    "trimap": (lambda f: classes([0, 128, 255]).save(f / "a.png"), ["several classes", "128 ("]),
    "five even steps": (lambda f: classes([0, 64, 128, 191, 255]).save(f / "a.png"), ["several classes"]),
    "a small third class": (lambda f: classes([0] * 30 + [255] * 17 + [128]).save(f / "a.png"), ["128 ("]),
    "a thin third class": (
        one(lambda m: Image.fromarray(np.where(edge(m), 128, m * 255).astype(np.uint8))),
        ["several classes", "128 ("],
    ),
    "a thin third colour": (
        one(lambda m: Image.fromarray(np.array([(0, 0, 0), (255, 0, 0), (0, 0, 255)], np.uint8)[m + edge(m)])),
        ["several classes", "0x0000FF ("],
    ),
    "a trimap among soft masks": (
        lambda f: (
            [smoothed(grey(blob(i))).save(f / f"{i}.png") for i in range(9)]
            and classes([0] * 40 + [255] * 7 + [128]).save(f / "b.png")
        ),
        ["b.png holds 0, 128, 255"],
    ),
    "grain between black and white": (one(lambda m: Image.fromarray(grain(m))), ["several classes"]),
    "many classes": (lambda f: classes(range(48)).save(f / "a.png"), ["several classes", "and 8 more"]),
    "classes in jpeg": (lambda f: classes(range(0, 24, 2)).save(f / "a.jpg"), ["several classes", "as PNG"]),
    "coloured classes": (
        lambda f: (
            coloured(blob() + 0, (255, 0, 0), (0, 255, 0)).save(f / "a.png")
            or coloured(blob() + 0, (0, 0, 255)).save(f / "b.png")
        ),
        ["do not all mean the same", "0xFF0000", "0x0000FF", "--classes all"],
    ),
    "three colours": (
        lambda f: Image.fromarray(np.array([(0, 0, 0), (255, 0, 0), (0, 255, 0)], np.uint8)[classes([0, 1, 2])]).save(
            f / "a.png"
        ),
        ["several classes", "0xFF0000 (33 %)"],
    ),
    "{0, 1} and {0, 255}": (
        two(lambda m: grey(m, 0, 1), grey),
        ["do not all mean the same", "{0, 1} in 1", "{0, 255} in 1"],
    ),
    "{0, 1} and soft {0, 255}": (
        lambda f: (
            [smoothed(grey(blob(i))).save(f / f"{i}.png") for i in range(3)] and grey(blob(), 0, 1).save(f / "b.png")
        ),
        ["b.png holds 0, 1"],
    ),
    "red and white": (two(grey, lambda m: coloured(m, (255, 0, 0))), ["do not all mean the same"]),
    "1-bit and {0, 1}": (two(lambda m: grey(m).convert("1"), lambda m: grey(m, 0, 1)), ["{0, 1} in 1"]),
    "16-bit and 8-bit": (two(grey, lambda m: grey(m, 0, 65535, np.uint16)), ["65535"]),
    "{1, 2}": (one(lambda m: grey(m, 1, 2)), ["neither is black", "--mask-foreground 2"]),
    "red on green": (one(lambda m: coloured(m, (255, 0, 0), (0, 255, 0))), ["neither is black", "0xFF0000"]),
    "grey, which lossy WebP tints": (one(grey, "a.webp", quality=80), ["if only slightly", "as PNG"]),
    "red, jpeg": (one(lambda m: coloured(m, (255, 0, 0)), "a.jpg", quality=85), ["some are coloured", "as PNG"]),
    "red, jpeg in png": (one(lambda m: jpeg(coloured(m, (255, 0, 0)))), ["some are coloured", "stays blurred"]),
    "red, blurred": (one(lambda m: smoothed(coloured(m, (255, 0, 0)))), ["some are coloured", "without smoothing"]),
    "one red, blurred, among exact ones": (
        lambda f: (
            [coloured(blob(i), (255, 0, 0)).save(f / f"{i}.png") for i in range(5)]
            and smoothed(coloured(blob(9), (255, 0, 0))).save(f / "soft.png")
        ),
        ["soft.png: colours run into each other"],
    ),
    "soft grey ones beside a red one": (
        two(lambda m: smoothed(grey(m)), lambda m: coloured(m, (255, 0, 0))),
        ["a.png: colours"],
    ),
    "red on green, jpeg": (
        lambda f: coloured(blob(0, 240, 320), (200, 0, 0), (0, 200, 0)).save(f / "a.jpg"),
        ["some are coloured"],
    ),
    "mask in the alpha": (one(alpha_tells), ["alpha", "--mask-foreground alpha"]),
    "mask in a soft alpha": (
        one(lambda m: Image.merge("LA", [Image.new("L", (W, H)), grey(m).filter(ImageFilter.GaussianBlur(2))])),
        ["alpha"],
    ),
    "fractions": (one(lambda m: grey(m, 0, 0.5, np.float32), "a.tif"), ["fractions"]),
    "not a number": (one(lambda m: grey(m, np.nan, 1, np.float32), "a.tif"), ["fractions or infinite"]),
    "negative": (one(lambda m: grey(m, -1, 1, np.int32), "a.tif"), ["negative"]),
    "a photograph": (
        lambda f: Image.fromarray(np.random.default_rng(0).integers(0, 256, (H, W, 3), np.uint8)).save(f / "a.png"),
        ["run into each other"],
    ),
    "a photograph, jpeg": (
        lambda f: Image.fromarray(
            np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8).repeat(8, 0).repeat(8, 1)
        ).save(f / "a.jpg"),
        ["some are coloured"],
    ),
    "a grey photograph": (
        lambda f: Image.fromarray((np.indices((H, W)).sum(0) * 2).astype(np.uint8)).save(f / "a.png"),
        ["several classes"],
    ),
    "text": (lambda f: (f / "a.png").write_text("mask"), ["no picture"]),
    "empty file": (lambda f: (f / "a.png").write_bytes(b""), ["0 bytes"]),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_could_be_read_wrongly_is_refused(tmp_path, name):
    make, words = REFUSED[name]
    make(tmp_path)
    with pytest.raises(UserError) as caught:
        find_mask_rule(sorted(tmp_path.iterdir()))
    message = str(caught.value)
    for word in words:
        assert word in message
    if "neither is black" not in message:
        assert str(tmp_path) in message


def test_palettes_that_disagree_are_refused_unless_colours_are_asked_for(tmp_path):
    red, swapped = [(0, 0, 0), (255, 0, 0)], [(255, 0, 0), (0, 0, 0)]
    indexed(blob(0), red).save(tmp_path / "a.png")
    indexed(blob(1), swapped, (1, 0)).save(tmp_path / "b.png")
    paths = sorted(tmp_path.iterdir())
    for foreground, constant in ((None, "one value"), ("nonzero", "one value"), (1, "MASK_FOREGROUND")):
        with pytest.raises(UserError, match=f"a.png, .*b.png: index 0 of their palettes.*{constant} cannot mean both"):
            find_mask_rule(paths, DataSpec(foreground=foreground))
    coloured(blob(2), (255, 0, 0)).save(tmp_path / "c.png")  # beside one without a palette all are read by colour
    paths = sorted(tmp_path.iterdir())
    mask_rule = find_mask_rule(paths)
    assert mask_rule.kind == "colours"
    for seed, path in enumerate(paths):
        np.testing.assert_array_equal(read_mask(path, mask_rule), blob(seed))


def test_camvid_with_car_8(tmp_path):
    """CamVid as it is distributed: class indices 0 to 11, of which 8 is car."""
    masks = []
    for index in range(3):
        masks.append(classes(range(12), index))
        masks[-1].save(tmp_path / f"{index}.png")
    paths = sorted(tmp_path.iterdir())
    with pytest.raises(UserError) as caught:
        find_mask_rule(paths)
    for value in range(12):
        assert f" {value} (8.3 %)" in str(caught.value)
    assert "--mask-foreground" in str(caught.value)
    mask_rule = find_mask_rule(paths, DataSpec(foreground=8))
    both = find_mask_rule(paths, DataSpec(foreground=(8, 10)))
    for path, mask in zip(paths, masks):
        np.testing.assert_array_equal(read_mask(path, mask_rule), np.asarray(mask) == 8)
        np.testing.assert_array_equal(read_mask(path, both), np.isin(mask, (8, 10)))
    assert foreground_share(observe_mask(paths[0]), mask_rule) == pytest.approx(1 / 12)
    with pytest.raises(UserError, match="MASK_FOREGROUND = 99: no mask holds that"):
        find_mask_rule(paths, DataSpec(foreground=99))


def test_foreground_by_colour_and_the_other_way_round(tmp_path):
    coloured(blob(), (255, 0, 0), (0, 255, 0)).save(tmp_path / "a.png")
    mask_rule = find_mask_rule([tmp_path / "a.png"], DataSpec(foreground=0x00FF00))
    np.testing.assert_array_equal(read_mask(tmp_path / "a.png", mask_rule), 1 - blob())
    for values in ((0, 255, 0), 0x00FF00):  # red, green, blue; or all in one
        assert find_mask_rule([tmp_path / "a.png"], DataSpec(foreground=values)) == mask_rule
    for values in ((255.7, 0.2), "car"):
        with pytest.raises(UserError, match="whole numbers"):
            find_mask_rule([tmp_path / "a.png"], DataSpec(foreground=values))
    grey(blob()).save(tmp_path / "b.png")
    np.testing.assert_array_equal(
        read_mask(tmp_path / "b.png", find_mask_rule([tmp_path / "b.png"], DataSpec(foreground=0))), 1 - blob()
    )
    grey(blob()).save(tmp_path / "c.jpg")
    inverted = find_mask_rule([tmp_path / "c.jpg"], DataSpec(foreground=0))
    assert inverted.soft and (read_mask(tmp_path / "c.jpg", inverted) == 1 - blob()).mean() > 0.99
    classes(range(0, 48, 4)).save(tmp_path / "d.jpg")
    with pytest.raises(UserError, match="d.jpg.*compression has blurred"):
        find_mask_rule([tmp_path / "d.jpg"], DataSpec(foreground=8))
    two_rules = two(lambda m: grey(m, 0, 1), grey)
    two_rules(tmp_path)
    paths = [tmp_path / "a.png", tmp_path / "b.png"]
    mask_rule = find_mask_rule(paths, DataSpec(foreground=(1, 255)))
    assert all((read_mask(path, mask_rule) == blob(seed)).all() for seed, path in enumerate(paths))


def test_colour_classes_read_by_mask_foreground_and_soft_ones_do_not(tmp_path):
    """As CamVid's original labels: thin classes among large ones are no soft edges."""
    palette = np.random.default_rng(0).permutation(256 * 3)[: 12 * 3].reshape(12, 3).astype(np.uint8)
    for index in range(3):
        areas = np.array(classes(range(8), index))
        areas[::16] = np.random.default_rng(index).integers(8, 12, areas[::16].shape)  # in lines of a pixel
        Image.fromarray(palette[areas]).save(tmp_path / f"{index}.png")
        red, green, blue = palette[2].tolist()
        mask_rule = find_mask_rule(sorted(tmp_path.iterdir()), DataSpec(foreground=red << 16 | green << 8 | blue))
        np.testing.assert_array_equal(read_mask(tmp_path / f"{index}.png", mask_rule), areas == 2)
    smoothed(coloured(blob(), (255, 0, 0))).save(tmp_path / "soft.png")
    with pytest.raises(UserError, match="soft.png: colours run into each other"):
        find_mask_rule([tmp_path / "soft.png"], DataSpec(foreground=0xFF0000))


@pytest.mark.parametrize("wanted", [128, 255])
@pytest.mark.parametrize("save", [as_jpeg, resized])
def test_foreground_beside_a_class_beyond_is_not_read_as_another(tmp_path, save, wanted):
    organs(save, lambda m: organ(m, half=6))(tmp_path)
    with pytest.raises(UserError, match=f"0.*compression has blurred.*MASK_FOREGROUND = {wanted} "):
        find_mask_rule(sorted(tmp_path.iterdir()), DataSpec(foreground=wanted))


@pytest.mark.parametrize("quality", [10, 30, 50, 75, 95])
@pytest.mark.parametrize("high", [100, 128, 200])
def test_what_jpeg_overshoots_is_no_class(tmp_path, quality, high):
    masks = [blob(seed, 240, 320) for seed in range(3)]
    masks.append(np.kron(np.random.default_rng(0).integers(0, 2, (30, 40)), np.ones((9, 9))).astype(np.uint8))
    paths = write_all(tmp_path, lambda m, p: grey(m, 0, high).save(p, quality=quality), "a.jpg", masks)
    for wanted in (None, high):
        mask_rule = find_mask_rule(paths, DataSpec(foreground=wanted))
        assert all((read_mask(path, mask_rule) != mask).mean() < 0.02 for path, mask in zip(paths, masks))


def squares(mask, values=(20, 38), side=9):
    """Small squares; edges that lie along the rows and columns."""
    array, draw = np.zeros((240, 320), np.uint8), np.random.default_rng(mask.sum())
    for value in values * 6:
        y, x = draw.integers(0, 225), draw.integers(0, 305)
        array[y : y + side, x : x + side] = value
    return Image.fromarray(array)


@pytest.mark.parametrize("quality", [50, 75, 90, 95])
@pytest.mark.parametrize(
    "make",
    [
        lambda m: grey(m, 0, 38),
        squares,
        lambda m: organ(m, 38, 75),
        lambda m: Image.fromarray(np.array([(0, 0, 0), (255, 0, 0), (0, 0, 255)], np.uint8)[organ(m, 1, 2, 9)]),
    ],
)
def test_values_blurred_by_jpeg_are_seen_in_png(tmp_path, make, quality):
    """A third of the true area would be read, in speckles."""
    for seed in range(3):
        jpeg(make(blob(seed, 240, 320)), quality).save(tmp_path / f"{seed}.png")
    paths = sorted(tmp_path.iterdir())
    for wanted in (int(np.asarray(Image.open(paths[0]).convert("L")).max()), 38, "nonzero", 0xFE0000):
        with pytest.raises(UserError, match="0.png.*compression has blurred|0.png.*colours run into each other"):
            find_mask_rule(paths, DataSpec(foreground=wanted))


def test_thin_and_many_exact_values_are_not_taken_for_blurred(tmp_path):
    """Borders of a pixel, noise, points, and objects that touch each other by their numbers."""
    draw = np.random.default_rng(0)
    points = np.zeros((H, W), np.uint8)
    points[draw.integers(0, H, 60), draw.integers(0, W, 60)] = np.arange(1, 61)
    touching = np.kron(np.arange(192).reshape(12, 16), np.ones((4, 4)))
    arrays = [np.asarray(with_border(blob())), draw.integers(0, 12, (H, W)), points, touching]
    for array, wanted in zip(arrays, (15, 8, 60, 7)):
        Image.fromarray(array.astype(np.uint8)).save(tmp_path / "a.png")
        np.testing.assert_array_equal(
            read_mask(tmp_path / "a.png", find_mask_rule([tmp_path / "a.png"], DataSpec(foreground=wanted))),
            array == wanted,
        )


INSTANCES = {
    "grey": lambda n: Image.fromarray(n.astype(np.uint8)),
    "16 bits": lambda n: Image.fromarray((n * 301).astype(np.uint16)),
    "near and far": lambda n: Image.fromarray(np.array([0, 1, 2, 255], np.uint8)[n % 4]),
    "palette": lambda n: indexed(n > 0, [(0, 0, 0), (255, 0, 0), (0, 255, 0)], (0, n % 2 + 1)),
    "palette with black in the middle": lambda n: indexed(n > 0, [(9, 0, 0), (0, 0, 0), (0, 9, 0)], (1, n % 2 * 2)),
    "colours": lambda n: Image.fromarray(COLOURED[n]),
    "colours and no alpha": lambda n: Image.fromarray(COLOURED[n]).convert("RGBA"),
    "two values": lambda n: grey(n > 0, 0, 7),
    "soft": lambda n: grey(n > 0).filter(ImageFilter.GaussianBlur(0.6)),
}


@pytest.mark.parametrize("name", INSTANCES)
def test_nonzero_is_every_value_but_black(tmp_path, name):
    for seed in range(3):
        cell = 48 if name == "soft" else 16
        numbers = np.random.default_rng(seed).permutation(300).reshape(15, 20).repeat(cell, 0).repeat(cell, 1)
        numbers[numbers % 3 == 0] = 0
        if name in ("grey", "near and far"):
            numbers = numbers % 200
            numbers[numbers % 4 == 0] = 0
        INSTANCES[name](numbers).save(tmp_path / f"{seed}.png")
        np.save(tmp_path / f"{seed}.npy", numbers > 0)
    paths = sorted(tmp_path.glob("*.png"))
    mask_rule = find_mask_rule(paths, DataSpec(foreground="nonzero"))
    assert (
        "is foreground" in mask_rule.describe()
        and MaskRule.from_dict(json.loads(json.dumps(mask_rule.to_dict()))) == mask_rule
    )
    for path in paths:
        truth = np.load(path.with_suffix(".npy"))
        assert (read_mask(path, mask_rule) != truth).mean() <= (0.05 if name == "soft" else 0)
        assert foreground_share(observe_mask(path), mask_rule) == pytest.approx(truth.mean(), abs=0.01)


def cut_out(mask, mode="RGBA"):
    """A photograph, opaque where the mask is; a third of its edge is half so."""
    photograph = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*mask.shape, 3), np.uint8))
    picture = photograph.convert(mode)
    picture.putalpha(
        Image.fromarray(np.where(mask, 255 - 100 * edge(mask), 100 * np.roll(mask, 1, 0)).astype(np.uint8))
    )
    return picture


@pytest.mark.parametrize("name", ["RGBA a.png", "LA a.png", "RGBA a.tif", "RGBA a.webp", "P a.png"])
def test_alpha_is_the_mask_of_cut_outs(tmp_path, name):
    masks = [blob(seed, 120, 160) for seed in range(2)] + [np.zeros((12, 16), np.uint8)]

    def write(mask, path):
        if name.startswith("P"):
            return indexed(mask, VOC).save(path, transparency=bytes([0, 255, 255, 255]))
        return cut_out(mask, name.split()[0]).save(path, **({"lossless": True} if "webp" in name else {}))

    paths = write_all(tmp_path, write, name, masks)
    mask_rule = find_mask_rule(paths, DataSpec(foreground="alpha"))
    assert (
        "alpha" in mask_rule.describe() and MaskRule.from_dict(json.loads(json.dumps(mask_rule.to_dict()))) == mask_rule
    )
    for mask, path in zip(masks, paths):
        np.testing.assert_array_equal(read_mask(path, mask_rule), mask)
        assert foreground_share(observe_mask(path), mask_rule) == pytest.approx(mask.mean())
    if not name.startswith("P"):
        with pytest.raises(UserError, match="--mask-foreground alpha"):
            find_mask_rule(paths)


def test_masks_without_the_alpha_that_is_asked_for_are_named(tmp_path):
    cut_out(blob()).save(tmp_path / "a.png")
    for name in ("b.png", "c.png"):
        grey(blob()).save(tmp_path / name)
    paths = sorted(tmp_path.iterdir())
    with pytest.raises(UserError) as caught:
        find_mask_rule(paths, DataSpec(foreground="alpha"))
    assert all(f"{name}: has no alpha channel" in str(caught.value) for name in ("b.png", "c.png"))
    assert "a.png" not in str(caught.value)
    with pytest.raises(UnusableFile, match="has no alpha channel"):
        read_mask(paths[1], find_mask_rule(paths[:1], DataSpec(foreground="alpha")))
    alpha_tells(blob()).save(tmp_path / "d.png")
    with pytest.raises(UnusableFile, match="d.png.*--mask-foreground alpha"):
        read_mask(tmp_path / "d.png", MaskRule())
    for word in ("opaque", ("alpha", 3), "NONZERO"):
        with pytest.raises(UserError, match='"nonzero".*"alpha"'):
            find_mask_rule(paths[1:], DataSpec(foreground=word))


def test_sixteen_bits_beside_colours_read_as_they_are_counted(tmp_path):
    grey(blob(0), 0, 1, np.uint16).save(tmp_path / "a.png")
    coloured(blob(1), (1, 1, 1), (0, 9, 0)).save(tmp_path / "b.png")
    paths = sorted(tmp_path.iterdir())
    mask_rule = find_mask_rule(paths, DataSpec(foreground=0x010101))
    for seed, path in enumerate(paths):
        np.testing.assert_array_equal(read_mask(path, mask_rule), blob(seed))
        assert foreground_share(observe_mask(path), mask_rule) == blob(seed).mean()


def test_lossless_webp_and_many_instances_are_counted_exactly(tmp_path):
    classes([0, 1, 2, 3]).convert("RGB").save(tmp_path / "a.webp", lossless=True)
    mask_rule = find_mask_rule([tmp_path / "a.webp"], DataSpec(foreground=2))
    np.testing.assert_array_equal(read_mask(tmp_path / "a.webp", mask_rule), np.asarray(classes([0, 1, 2, 3])) == 2)
    instances = np.arange(H * W, dtype=np.uint16).reshape(H, W) // 4
    Image.fromarray(instances).save(tmp_path / "b.png")
    mask_rule = find_mask_rule([tmp_path / "b.png"], DataSpec(foreground=5))
    assert foreground_share(observe_mask(tmp_path / "b.png"), mask_rule) == 4 / (H * W)
    np.testing.assert_array_equal(read_mask(tmp_path / "b.png", mask_rule), instances == 5)


def test_pages_of_a_mask_are_looked_at_and_read_each(tmp_path):
    pages = [Image.fromarray(np.full((6, 8), 0, np.uint8)) for _ in range(2)]
    pages[1].paste(7, (0, 0, 4, 6))
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    mask_rule = find_mask_rule([(tmp_path / "a.tif", page) for page in range(2)])
    assert [int(read_mask(tmp_path / "a.tif", mask_rule, page=page).sum()) for page in range(2)] == [0, 24]


def test_a_mask_that_the_rule_does_not_know_is_refused(tmp_path):
    grey(blob(), 0, 1).save(tmp_path / "a.png")
    coloured(blob(), (255, 0, 0)).save(tmp_path / "b.png")
    for name in ("a.png", "b.png"):
        with pytest.raises(UnusableFile) as caught:
            read_mask(tmp_path / name, MaskRule())
        assert name in str(caught.value) and "255 is foreground" in str(caught.value)
    with pytest.raises(UnusableFile):
        read_mask(tmp_path / "a.png", MaskRule("colours", (0,), (0xFF0000,)))


def test_rules_travel(tmp_path):
    grey(blob()).save(tmp_path / "a.png")
    for mask_rule in (find_mask_rule([tmp_path / "a.png"]), MaskRule("colours", (), (1, 2), rest=True)):
        assert MaskRule.from_dict(json.loads(json.dumps(mask_rule.to_dict()))) == mask_rule
    seen = observe_mask(tmp_path / "a.png")
    assert pickle.loads(pickle.dumps(seen)) == seen
    assert type(seen)(**json.loads(json.dumps(vars(seen)))) == seen


def test_half_of_an_area_decides(tmp_path):
    mask = np.zeros((4, 8), np.uint8)
    mask[:2, :2] = 1  # all of the first cell
    mask[0, 2:4] = 1  # half of the second
    mask[0, 4] = 1  # a quarter of the third
    np.testing.assert_array_equal(resize_mask(mask, (2, 4)), [[1, 1, 0, 0], [0, 0, 0, 0]])
    grey(mask).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "a.png", MaskRule(), (2, 4)), resize_mask(mask, (2, 4)))
    assert set(np.unique(resize_mask(blob(), (200, 300)))) == {0, 1}
    big = blob(0, 480, 640)
    small = resize_mask(big, (160, 213))
    back = resize_mask(small, big.shape)
    assert (big & back).sum() / (big | back).sum() > 0.98


def test_no_masks():
    with pytest.raises(UserError, match="no masks"):
        find_mask_rule([])


# ---- several classes, and what is ignored


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


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("name", ENCODINGS)
def test_classes_in_every_encoding_read_back_equal_and_are_written_so(tmp_path, name, seed):
    draw = np.random.default_rng(seed)
    most, write = ENCODINGS[name]
    count, void = int(draw.integers(2, 9)), seed % 2
    values = draw.choice(most + 1 if most < 65536 else 65536, count + void, replace=False)
    values = values * 251 % 2**24 if most > 65535 else values
    if seed % 3 == 0 and most == 255 and 255 not in values:
        values[-1] = 255  # what a byte holds at most, as a class or as what is ignored
    values = values.tolist()
    classes, ignore = values[:count], values[count] if void else None
    given = [tuple(classes), {f"class {value}": value for value in classes}, "all"][seed % 3]
    labels = [*range(count), *[IGNORED] * void]
    truths = [areas(draw, labels) for _ in range(3)] + [np.array([labels]).repeat(6, 0).repeat(6, 1)]
    table = np.zeros(256, np.int64)
    table[labels] = values
    paths = write_all(tmp_path, lambda m, p: write(table[m], p), "a.tif" if "32" in name else "a.png", truths)
    mask_rule = find_mask_rule(paths, DataSpec(ignore=ignore, classes=given))
    order = sorted(classes) if given == "all" else classes
    assert mask_rule.classes == tuple(order) and mask_rule.channels == count and mask_rule.labels and not mask_rule.soft
    assert mask_rule.ignored == (() if ignore is None else (ignore,))
    in_words = [f"0x{value:06X}" if "colours" in name else str(value) for value in order]
    assert list(mask_rule.names) == (list(given) if isinstance(given, dict) else in_words)
    renumbered = np.arange(256)
    renumbered[:count] = [order.index(value) for value in classes]
    for truth, path in zip(truths, paths):
        truth = renumbered[truth]
        mask = read_mask(path, mask_rule)
        assert mask.dtype == np.uint8
        np.testing.assert_array_equal(mask, truth)
        counts = np.bincount(truth.ravel(), minlength=256)
        np.testing.assert_array_equal(count_classes(observe_mask(path), mask_rule), [*counts[:count], counts[IGNORED]])
        encode_mask(mask, mask_rule).save(tmp_path / "again.png")
        np.testing.assert_array_equal(read_mask(tmp_path / "again.png", mask_rule), truth)
        again, seen = observe_mask(tmp_path / "again.png"), observe_mask(path)
        assert again.counts == seen.counts or name.startswith("colours")  # whose greys are counted as such
        assert again.palette == seen.palette or (void and again.palette)  # void has VOC's colour there
    assert MaskRule.from_dict(json.loads(json.dumps(mask_rule.to_dict()))) == mask_rule
    if "colours" in name:
        assert mask_rule.colours == mask_rule.classes
    elif name == "palette":
        assert mask_rule.colours == tuple(
            int.from_bytes(bytes(TINTS[value].tolist()), "big") for value in mask_rule.classes
        )
    else:
        assert mask_rule.colours == ()


FOREGROUND = {  # of values 0, 1 and 2, the last one ignored: MASK_FOREGROUND -> what is foreground
    "as the masks say": (None, [0, 1]),
    "a value": (1, [0, 1]),
    "the other way round": (0, [1, 0]),
    "nonzero": ("nonzero", [0, 1]),
}


@pytest.mark.parametrize("wanted", FOREGROUND)
@pytest.mark.parametrize("name", ["numbers", "16 bits", "palette", "colours"])
def test_one_foreground_and_what_is_ignored(tmp_path, name, wanted):
    given, meant = FOREGROUND[wanted]
    values = np.array([0, 38, 255] if name != "colours" else [0, 0xC00000, 0xE0E0C0])
    given = given if given in (None, 0, "nonzero") else int(values[1])
    draw = np.random.default_rng(0)
    masks = [areas(draw, range(3)) for _ in range(4)] + [np.full((5, 7), 2)]  # one of nothing else
    palette = TINTS.copy()
    palette[0] = 0
    write = (lambda v, p: with_palette(v, palette).save(p)) if name == "palette" else ENCODINGS[name][1]
    paths = write_all(tmp_path, lambda m, p: write(values[m], p), "a.png", masks)
    void = int(values[2]) if name != "colours" else (224, 224, 192)  # as MASK_FOREGROUND, red, green and blue of one
    mask_rule = find_mask_rule(paths, DataSpec(foreground=given, ignore=void))
    assert (
        mask_rule.ignored == (values[2],)
        and mask_rule.labels
        and mask_rule.channels == 1
        and "ignored" in mask_rule.describe()
    )
    assert MaskRule.from_dict(json.loads(json.dumps(mask_rule.to_dict()))) == mask_rule
    for path, mask in zip(paths, masks):
        truth = np.array([*meant, IGNORED], np.uint8)[mask]
        np.testing.assert_array_equal(read_mask(path, mask_rule), truth)
        seen, counts = observe_mask(path), [(truth == label).sum() for label in (0, 1, IGNORED)]
        np.testing.assert_array_equal(count_classes(seen, mask_rule), counts)
        assert foreground_share(seen, mask_rule) == counts[1] / max(1, counts[0] + counts[1])


def test_what_no_mask_holds_may_be_ignored_and_all_may_be(tmp_path):
    grey(blob()).save(tmp_path / "a.png")
    mask_rule = find_mask_rule([tmp_path / "a.png"], DataSpec(ignore=7))
    np.testing.assert_array_equal(read_mask(tmp_path / "a.png", mask_rule), blob())
    grey(blob(), 0, 7).save(tmp_path / "b.png")
    mask_rule = find_mask_rule([tmp_path / "b.png"], DataSpec(ignore=(7, 255)))
    np.testing.assert_array_equal(read_mask(tmp_path / "b.png", mask_rule), blob() * IGNORED)
    assert foreground_share(observe_mask(tmp_path / "b.png"), mask_rule) == 0
    assert not set(mask_rule.foreground) & set(mask_rule.ignored)
    mask_rule = find_mask_rule([tmp_path / "b.png"], DataSpec(ignore=(0, 7)))
    assert (read_mask(tmp_path / "b.png", mask_rule) == IGNORED).all()
    assert foreground_share(observe_mask(tmp_path / "b.png"), mask_rule) == 0
    with pytest.raises(
        UserError, match="several classes.*0 .*, 15 .*, 255 "
    ):  # what is ignored stands among the shares
        with_border(blob()).save(tmp_path / "c.png")
        organ(blob(), 15, 3).save(tmp_path / "d.png")
        find_mask_rule([tmp_path / "c.png", tmp_path / "d.png"], DataSpec(ignore=255))


def test_old_rules_are_read_and_long_ones_are_a_short_line():
    old = {"kind": "numbers", "background": [0], "foreground": [255], "soft": True, "rest": False}
    mask_rule = MaskRule.from_dict(old)
    assert mask_rule == MaskRule(soft=True) and mask_rule.channels == 1 and not mask_rule.labels
    names = tuple(f"kind {index}" for index in range(250))
    long = MaskRule("colours", (), (), ignored=(1, 2), classes=tuple(range(1000, 1250)), names=names)
    text = long.describe()
    assert text.startswith("there are 250 classes: 0x0003E8 kind 0, ") and "and 238 more" in text
    assert text.endswith("; 0x000001, 0x000002 are ignored") and "\n" not in text and len(text) < 350


PETS = {"cat": 1, "dog": 2}
# name -> (values that the mask holds, MASK_FOREGROUND, MASK_IGNORE, CLASSES, words of the message)
WRONG = {
    "no class": ([0, 1], None, None, (), ["CLASSES = ()", '"all"', '{"road": 3, "car": 8}']),
    "another word": ([0, 1], None, None, "cat", ["CLASSES = 'cat'", '"all"']),
    "fractions": ([0, 1], None, None, (0, 0.5), ["0.5", "0xFF0000"]),
    "switches": ([0, 1], None, None, (False, True), ["False"]),
    "negative": ([0, 1], None, None, (0, -1), ["-1"]),
    "the wrong way round": ([0, 1], None, None, {0: "cat", 1: "dog"}, ['{"road": 3, "car": 8}']),
    "no name": ([0, 1], None, None, {"": 0, "dog": 1}, ['{"road": 3, "car": 8}']),
    "a colour out of range": ([0, 1], None, None, ((0, 0, 0), (0, 0, 256)), ["256"]),
    "a value twice": ([0, 1], None, None, (0, 1, 1), ["CLASSES = (0, 1, 1)", "1 is given to two"]),
    "a name twice, a value too": ([0, 1], None, None, {"a": 0, "a ": 0}, ["0 is given to two", "called a"]),
    "one class": ([0, 1], None, None, {"cat": 1}, ['{"cat": 1}', "MASK_FOREGROUND = 1"]),
    "one value": ([3], None, None, "all", ["two classes are the least", "MASK_FOREGROUND = 3"]),
    "nothing left": ([3], None, 3, "all", ["two classes are the least"]),
    "very many": ([0, 1], None, None, tuple(range(255)), ["255 classes, and 254"]),
    "both ways": ([0, 1, 2], 1, None, PETS, ["MASK_FOREGROUND = 1", "Take one of them back"]),
    "both words": ([0, 1, 2], "alpha", None, "all", ["MASK_FOREGROUND = 'alpha'"]),
    "a class that is ignored": ([0, 1, 2], None, (0, 2), PETS, ["2 is in MASK_IGNORE too"]),
    "32 bits": ([0, 1, 2], None, None, (0, 1, 2, 65536), ["65536 is more than the 65535"]),
    "no such class": (
        [0, 1, 2, 3], None, 255, PETS,
        ["a.png", "0 (25 %), 3 (25 %)", '{"cat": 1, "dog": 2, "0": 0, "3": 3}', "MASK_IGNORE = (0, 3, 255)",
         "(--mask-ignore 0 3 255)"],
    ),
    "no such class, by values": ([0, 1, 2, 3], None, 0, (1, 2), ["CLASSES = (1, 2, 3)", "MASK_IGNORE = (0, 3)"]),
    "ignored foreground": ([0, 1, 2], 1, (1, 2), None, ["1 stands in MASK_FOREGROUND and in MASK_IGNORE"]),
    "ignored words": ([0, 1, 2], None, "void", None, ["MASK_IGNORE = 'void'", "whole numbers"]),
    "ignored fractions": ([0, 1, 2], None, 0.5, None, ["MASK_IGNORE = 0.5"]),
    "ignored nothing": ([0, 1, 2], None, (), None, ["MASK_IGNORE = ()"]),
    "ignored and alpha": ([0, 1, 2], "alpha", 3, None, ['MASK_FOREGROUND = "alpha"', "Take one of them back"]),
    "several classes but for one": ([0, 1, 2, 3], None, 3, None, ["several classes", "--classes all"]),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_wrong_classes_and_ignored_values_are_told_in_words(tmp_path, name):
    values, foreground, ignore, given, words = WRONG[name]
    classes(values).save(tmp_path / "a.png")
    with pytest.raises(UserError) as caught:
        find_mask_rule([tmp_path / "a.png"], DataSpec(foreground=foreground, ignore=ignore, classes=given))
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize("name", [*SOFT, "red, blurred"])
def test_blurred_masks_have_no_classes_and_nothing_to_ignore(tmp_path, name):
    write = SOFT.get(name, lambda m, p: smoothed(coloured(m, (255, 0, 0))).save(p))
    masks = [blob(seed, 120, 160) for seed in range(4)]
    paths = write_all(tmp_path, write, name if name in SOFT else "red.png", masks)
    options = [{"ignore": 128}]
    if not name.startswith("white"):  # whose values are few and told apart
        options += [{"classes": "all"}, {"classes": (0, 38)}, {"classes": {"a": 0, "b": 255}, "ignore": 128}]
    for given in options:
        with pytest.raises(UserError, match="compression has blurred|colours run into each other"):
            find_mask_rule(paths, DataSpec(**given))


def test_all_the_values_that_number_objects_are_no_classes(tmp_path):
    for count in range(2, 8):
        classes(range(count)).save(tmp_path / f"{count}.png")
    paths = sorted(tmp_path.iterdir())
    with pytest.raises(UserError, match=r"0 to n.*--mask-foreground nonzero.*CLASSES = \(0, 1, 2, 3, 4, 5, 6\)"):
        find_mask_rule(paths, DataSpec(classes="all"))
    assert find_mask_rule(paths, DataSpec(classes=range(7))).channels == 7
    assert find_mask_rule(paths[:3], DataSpec(classes="all")).channels == 4  # a tumour is only where its organ is
    Image.fromarray(np.arange(300, dtype=np.uint16).repeat(9).reshape(30, 90)).save(tmp_path / "many.png")
    with pytest.raises(UserError, match="300 values.*single objects.*many.png"):
        find_mask_rule([tmp_path / "many.png"], DataSpec(classes="all"))
    classes(range(21)).save(tmp_path / "voc.png")
    assert find_mask_rule([tmp_path / "voc.png"], DataSpec(classes="all")).channels == 21


def test_classes_whose_palettes_disagree(tmp_path):
    cells, green_red = areas(np.random.default_rng(0), range(3)), [(0, 0, 0), (0, 128, 0), (128, 0, 0)]
    with_palette(cells, VOC).save(tmp_path / "{a}.png")
    with_palette(np.array([0, 2, 1])[cells], green_red).save(tmp_path / "{b}.png")
    paths = sorted(tmp_path.iterdir())
    for options, constant in (
        ({"classes": (0, 1, 2)}, "CLASSES"),
        ({"ignore": 2}, "MASK_IGNORE"),
        ({"classes": "all"}, "one value"),
    ):
        with pytest.raises(UserError, match=f"index 1 of their palettes.*{constant} cannot mean both.*one palette"):
            find_mask_rule(paths, DataSpec(**options))
    colours = {"ground": (0, 0, 0), "green": [0, 128, 0], "red": (128, 0, 0)}  # which say that colours are meant
    mask_rule = find_mask_rule(paths, DataSpec(classes=colours))
    assert mask_rule.kind == "colours" and mask_rule.colours == mask_rule.classes == (0, 0x008000, 0x800000)
    for path in paths:
        np.testing.assert_array_equal(read_mask(path, mask_rule), np.array([0, 2, 1])[cells])
    coloured(blob(), (0, 128, 0)).save(tmp_path / "{c}.png")  # one without a palette beside them
    paths = sorted(tmp_path.iterdir())
    mask_rule = find_mask_rule(paths, DataSpec(classes="all", ignore=(0, 0, 0)))
    np.testing.assert_array_equal(read_mask(paths[2], mask_rule), np.where(blob(), 0, IGNORED))


def test_colours_of_classes_are_the_palettes_and_of_absent_ones_free(tmp_path):
    with_palette(areas(np.random.default_rng(0), [0, 1, 255]), [*VOC[:2], *TINTS[2:255], (224, 224, 192)]).save(
        tmp_path / "a.png"
    )
    mask_rule = find_mask_rule([tmp_path / "a.png"], DataSpec(ignore=255, classes=(0, 3, 1, 20)))
    assert mask_rule.colours == (0, 0x808000, 0x800000, 0x004080)  # VOC's 3 is chair, 20 is a monitor
    with_palette(areas(np.random.default_rng(0), [0, 1]), [(0, 0, 0), (0, 128, 0)]).save(tmp_path / "b.png")
    assert find_mask_rule([tmp_path / "b.png"], DataSpec(classes=(0, 1, 2))).colours == (
        0,
        0x008000,
        0x808000,
    )  # 2 is green too
    greys = Image.fromarray(np.uint8([[0, 1], [2, 2]]))  # used colours are grey, the palette is not
    greys.putpalette([0, 0, 0, 90, 90, 90, 200, 200, 200, 255, 0, 0])
    greys.save(tmp_path / "c.png")
    mask_rule = find_mask_rule([tmp_path / "c.png"], DataSpec(classes="all"))
    encode_mask(np.uint8([[2, 1], [0, 0]]), mask_rule).save(tmp_path / "d.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "d.png", mask_rule), [[2, 1], [0, 0]])


def test_one_foreground_is_written_white_on_black(tmp_path):
    for mask_rule in (MaskRule(), MaskRule("numbers", (), (8,), rest=True), MaskRule("colours", (0,), (0xFF0000,))):
        encode_mask(blob(), mask_rule).save(tmp_path / "a.png")
        np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "a.png")), blob() * 255)


def test_masks_of_one_image_are_united(tmp_path):
    draw = np.random.default_rng(0)
    masks = draw.choice([0, 1, 255], (3, 30, 40), p=[0.6, 0.2, 0.2])
    paths = write_all(tmp_path, lambda m, p: Image.fromarray(m.astype(np.uint8)).save(p), "a.png", list(masks))
    mask_rule = find_mask_rule(paths, DataSpec(ignore=255))
    truth = np.where((masks == 1).any(0), 1, np.where((masks == 255).any(0), IGNORED, 0))
    np.testing.assert_array_equal(read_mask(tuple(paths), mask_rule), truth)
    np.testing.assert_array_equal(
        read_mask(tuple(paths), mask_rule, (15, 20)), resize_mask(truth.astype(np.uint8), (15, 20))
    )
    np.testing.assert_array_equal(read_mask((paths[1],), mask_rule), read_mask(paths[1], mask_rule))
    binary = find_mask_rule(paths, DataSpec(foreground=(1, 255)))
    np.testing.assert_array_equal(read_mask(tuple(paths), binary), (masks > 0).any(0))
    Image.fromarray(np.zeros((40, 30), np.uint8)).save(tmp_path / "turned.png")
    with pytest.raises(UserError, match="0 a.png, .*1 a.png.*CLASSES leaves unclear"):
        read_mask(tuple(paths), find_mask_rule(paths, DataSpec(classes="all")))
    with pytest.raises(UnusableFile, match="turned.png: is 40x30, and .*0 a.png.*30x40"):
        read_mask((*paths, tmp_path / "turned.png"), mask_rule)


def test_values_that_the_classes_lack_are_refused_when_read(tmp_path):
    rules = [
        MaskRule("numbers", (), (), ignored=(255,), classes=(3, 8), names=("road", "car")),
        MaskRule("numbers", (), (), ignored=(0xE0E0C0,), classes=(3, 0xE0E000), names=("3", "8")),
        MaskRule("colours", (), (), classes=(3, 8), names=("0x000003", "0x000008")),
    ]
    for dtype in (np.uint8, np.uint16, np.int32):
        for value in (0, 7, 254, 0xE0E0C0 & 65535, 70_000):
            if value <= np.iinfo(dtype).max:
                Image.fromarray(np.array([[3, 3], [3, value]], dtype)).save(tmp_path / "a.tif")
                for mask_rule in rules:
                    with pytest.raises(UnusableFile, match="a.tif: holds other values.*CLASSES or to MASK_IGNORE"):
                        read_mask(tmp_path / "a.tif", mask_rule)


@pytest.mark.parametrize("seed", range(40))
def test_shrunk_labels_are_those_of_the_largest_area(seed):
    """Two classes as {0, 1}, whatever their labels; every pixel one that was there."""
    draw = np.random.default_rng(seed)
    mask = (draw.random(draw.integers(1, 50, 2)) < draw.random()).astype(np.uint8)
    size = tuple(draw.integers(1, 50, 2).tolist())
    for low, high in ((0, 2), (1, 255), (3, 7)):
        two_labels = np.where(mask, high, low).astype(np.uint8)
        np.testing.assert_array_equal(resize_mask(two_labels, size), np.where(resize_mask(mask, size), high, low))
    many = areas(draw, [0, 1, 5, 254, IGNORED]).astype(np.uint8)
    assert set(np.unique(resize_mask(many, size))) <= set(np.unique(many))
    np.testing.assert_array_equal(resize_mask(many, many.shape), many)
    labels = np.array([0, 1, 5, 254, IGNORED])
    height, width = (side // 2 for side in many.shape)
    cells = draw.choice(labels[: draw.integers(3, 6)], (height, width, 4))
    counts = (cells[..., None] == labels).sum(2)
    wanted = labels[4 - counts[..., ::-1].argmax(2)]  # of equal ones the higher
    whole = cells.reshape(height, width, 2, 2).swapaxes(1, 2).reshape(height * 2, width * 2).astype(np.uint8)
    if len(np.unique(whole)) > 2:
        np.testing.assert_array_equal(resize_mask(whole, (height, width)), wanted)
