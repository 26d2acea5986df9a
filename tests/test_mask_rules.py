"""One rule for all masks of a dataset; what could be read in two ways is refused in words."""

import cv2
import numpy as np
import pytest
from mask_makers import (
    ENCODINGS,
    SOFT,
    TINTS,
    VOC,
    H,
    W,
    areas,
    blob,
    classes,
    coloured,
    cut_out,
    edge,
    foreground_share,
    grey,
    indexed,
    jpeg,
    mask_in_alpha,
    organ,
    smoothed,
    through_json,
    with_border,
    with_palette,
    write_all,
)
from PIL import Image, ImageFilter

from parts.checkpoint_keys import KEYS, fault_of
from parts.errors import UnusableFile, UserError
from parts.mask_rules import READINGS, find_mask_rule, take_census
from parts.masks import (
    IGNORED,
    MaskRule,
    _labels_of_values,
    count_classes,
    encode_mask,
    observe_mask,
    png_options,
    read_mask,
)
from parts.spec import DataSpec


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


def grain(mask):
    """A grey picture with a white area and a black one, and noise that is an eighth of it."""
    picture = mask * np.uint8(255)
    picture[-H // 8 :] = np.random.default_rng(0).integers(40, 215, (H // 8, W), np.uint8)
    return picture


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
    "a palette of purple and yellow": (
        one(lambda m: indexed(m, [(253, 231, 37), (68, 1, 84)], (1, 0)), "a.gif"),
        ["0 (0xFDE725) and 1 (0x440154), and neither is black", "--mask-foreground 1"],
    ),
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
    "mask in the alpha": (one(mask_in_alpha), ["alpha", "--mask-foreground alpha"]),
    "mask in a soft alpha": (
        one(lambda m: Image.merge("LA", [Image.new("L", (W, H)), grey(m).filter(ImageFilter.GaussianBlur(2))])),
        ["alpha"],
    ),
    "fractions": (one(lambda m: grey(m, 0, 0.5, np.float32), "a.tif"), ["fractions"]),
    "infinite": (one(lambda m: grey(m, np.inf, 1, np.float32), "a.tif"), ["fractions or infinite"]),
    "not a number": (
        one(lambda m: grey(m, np.nan, 1, np.float32), "a.tif"),
        ['MASK_IGNORE = "nan" (--mask-ignore "nan")'],
    ),
    "negative": (one(lambda m: grey(m, -1, 1, np.int32), "a.tif"), ["MASK_IGNORE = -1 (--mask-ignore -1)"]),
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
    "gif palettes, which Pillow shortens": (
        lambda f: (
            indexed(blob(), VOC, (0, 3)).save(f / "a.gif")
            or indexed(np.ones((H, W), np.uint8), VOC, (0, 3)).save(f / "b.gif")
        ),
        ["a.gif, ", "b.gif: index 0 of their palettes is 0x000000 in one and 0x808000 in the other", "as PNG"],
    ),
    "a gif palette that is shortened to black": (
        lambda f: (
            indexed(blob(), [(0, 0, 0), (255, 0, 0)][::-1], (1, 0)).save(f / "a.png")
            or indexed(np.zeros((H, W), np.uint8), [(255, 0, 0), (0, 0, 0)], (1, 0)).save(f / "b.gif")
        ),
        ["b.gif: index 0 of their palettes is 0xFF0000 in one and 0x000000 in the other"],
    ),
    "text": (lambda f: (f / "a.png").write_text("mask"), ["no picture"]),
    "empty file": (lambda f: (f / "a.png").write_bytes(b""), ["0 bytes"]),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_could_be_read_wrongly_is_refused(tmp_path, name):
    make, expected = REFUSED[name]
    make(tmp_path)
    with pytest.raises(UserError) as caught:
        find_mask_rule(sorted(tmp_path.iterdir()))
    message = str(caught.value)
    assert [text for text in expected if text not in message] == []
    if "neither is black" not in message:
        assert str(tmp_path) in message


@pytest.mark.parametrize("ignore", [-9999, "nan", float("nan"), (-9999, "nan")])
@pytest.mark.parametrize("classes", [None, (0, 1)])
def test_negative_values_and_nan_are_ignored_where_they_are_listed(tmp_path, ignore, classes):
    one = -9999 if ignore == -9999 else np.nan
    values = blob().astype(np.float32)
    values[:4] = one
    if isinstance(ignore, tuple):
        values[0] = -9999
    Image.fromarray(values).save(tmp_path / "a.tif")
    grey(blob(1), 0, 1).save(tmp_path / "b.png")
    mask_rule = find_mask_rule([tmp_path / "a.tif", tmp_path / "b.png"], DataSpec(ignore=ignore, classes=classes))
    expected = blob()
    expected[:4] = 255
    np.testing.assert_array_equal(read_mask(tmp_path / "a.tif", mask_rule), expected)
    np.testing.assert_array_equal(read_mask(tmp_path / "b.png", mask_rule), blob(1))
    assert MaskRule.from_dict(mask_rule.to_dict()) == mask_rule
    assert ("nan" in mask_rule.describe()) == (ignore != -9999)
    np.asarray(encode_mask(expected, mask_rule))
    values[0] = -7
    Image.fromarray(values).save(tmp_path / "a.tif")
    with pytest.raises(UserError, match="negative values or NaN"):
        read_mask(tmp_path / "a.tif", mask_rule)


def test_shares_from_0_to_1_are_cut_at_one_half(tmp_path):
    shares = cv2.GaussianBlur(blob().astype(np.float32), (5, 5), 0)
    Image.fromarray(shares).save(tmp_path / "a.tif")
    Image.fromarray(blob(1).astype(np.float32)).save(tmp_path / "b.tif")
    paths = [tmp_path / "a.tif", tmp_path / "b.tif"]
    mask_rule = find_mask_rule(paths)
    np.testing.assert_array_equal(read_mask(paths[0], mask_rule), shares > 0.5)
    np.testing.assert_array_equal(read_mask(paths[1], mask_rule), blob(1))
    assert [observe_mask(path).cut for path in paths] == [True, False]
    with pytest.raises(UserError, match="a.tif: the values are fractions"):
        find_mask_rule(paths, DataSpec(classes="all"))


def test_palettes_that_disagree_are_refused_unless_colours_are_asked_for(tmp_path):
    red, swapped = [(0, 0, 0), (255, 0, 0)], [(255, 0, 0), (0, 0, 0)]
    indexed(blob(0), red).save(tmp_path / "a.png")
    indexed(blob(1), swapped, (1, 0)).save(tmp_path / "b.png")
    paths = sorted(tmp_path.iterdir())
    for foreground, constant in ((None, "one value"), ("nonzero", "one value"), (1, "MASK_FOREGROUND")):
        with pytest.raises(UserError, match=f"a.png, .*b.png: index 0 of their palettes.*{constant} cannot mean both"):
            find_mask_rule(paths, DataSpec(foreground=foreground))
    for foreground in (0xFF0000, (255, 0, 0)):
        mask_rule = find_mask_rule(paths, DataSpec(foreground=foreground))
        for seed, path in enumerate(paths):
            np.testing.assert_array_equal(read_mask(path, mask_rule), blob(seed))
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
    two(lambda m: grey(m, 0, 1), grey)(tmp_path)
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
    assert "is foreground" in mask_rule.describe() and through_json(mask_rule) == mask_rule
    for path in paths:
        truth = np.load(path.with_suffix(".npy"))
        assert (read_mask(path, mask_rule) != truth).mean() <= (0.05 if name == "soft" else 0)
        assert foreground_share(observe_mask(path), mask_rule) == pytest.approx(truth.mean(), abs=0.01)


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
    mask_in_alpha(blob()).save(tmp_path / "d.png")
    with pytest.raises(UnusableFile, match="d.png.*--mask-foreground alpha"):
        read_mask(tmp_path / "d.png", MaskRule())


# name of the reading -> (constants, values of each mask): the first test of the table that holds
READ_BY = {
    "CLASSES": ({"classes": "all"}, [(0, 1)]),
    "MASK_IGNORE in blurred masks": ({"ignore": 9}, "soft"),
    'MASK_FOREGROUND = "nonzero"': ({"foreground": "nonzero"}, [(0, 1, 2)]),
    "MASK_FOREGROUND lists values": ({"foreground": 1, "ignore": 2}, [(0, 1, 2)]),
    "annotations, all of them foreground": ({}, "named"),
    "two values": ({"ignore": 2}, [(0, 1, 2), (0, 1)]),
    "soft edges between two values": ({}, "soft"),
    "anything else": ({}, [(0, 1), (0, 2)]),
}


def test_each_reading_has_its_case(tmp_path):
    assert list(READ_BY) == [reading.name for reading in READINGS]
    for name, (constants, masks) in READ_BY.items():
        if masks == "soft":
            smoothed(grey(blob())).save(tmp_path / "a.png")
            observations = [observe_mask(tmp_path / "a.png")]
        elif masks == "named":
            classes((0, 1, 2)).save(tmp_path / "a.png", **png_options({1: "car", 2: "lamp"}))
            observations = [observe_mask(tmp_path / "a.png")]
        else:
            observations = []
            for values in masks:
                classes(values).save(tmp_path / "a.png")
                observations.append(observe_mask(tmp_path / "a.png"))
        census = take_census(observations, DataSpec(**constants))
        assert next(reading.name for reading in READINGS if reading.applies(census)) == name


def test_no_masks():
    with pytest.raises(UserError, match="no masks"):
        find_mask_rule([])


FOREGROUND = {  # of values 0, 1 and 2, the last one ignored: MASK_FOREGROUND -> what is foreground
    "as the masks say": (None, [0, 1]),
    "a value": (1, [0, 1]),
    "the other way round": (0, [1, 0]),
    "nonzero": ("nonzero", [0, 1]),
}


@pytest.mark.parametrize("wanted", FOREGROUND)
@pytest.mark.parametrize("name", ["numbers", "16 bits", "palette", "colours"])
def test_one_foreground_and_what_is_ignored(tmp_path, name, wanted):
    given, meaning = FOREGROUND[wanted]
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
    assert mask_rule.ignored == (values[2],) and not mask_rule.is_binary and mask_rule.channels == 1
    assert "ignored" in mask_rule.describe() and through_json(mask_rule) == mask_rule
    for path, mask in zip(paths, masks):
        truth = np.array([*meaning, IGNORED], np.uint8)[mask]
        np.testing.assert_array_equal(read_mask(path, mask_rule), truth)
        observation, counts = observe_mask(path), [(truth == label).sum() for label in (0, 1, IGNORED)]
        np.testing.assert_array_equal(count_classes(observation, mask_rule), counts)
        assert foreground_share(observation, mask_rule) == counts[1] / max(1, counts[0] + counts[1])


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
    with_border(blob()).save(tmp_path / "c.png")
    organ(blob(), 15, 3).save(tmp_path / "d.png")
    with pytest.raises(UserError, match="several classes.*0 .*, 15 .*, 255 "):  # the shares of ignored values too
        find_mask_rule([tmp_path / "c.png", tmp_path / "d.png"], DataSpec(ignore=255))


PETS = {"cat": 1, "dog": 2}


# name -> (values that the mask holds, constants, texts of the message)
WRONG = {
    "a value twice": ([0, 1], {"classes": (0, 1, 1)}, ["CLASSES = (0, 1, 1)", "1 is given to two"]),
    "a name twice, a value too": ([0, 1], {"classes": {"a": 0, "a ": 0}}, ["0 is given to two", "called a"]),
    "one class": ([0, 1], {"classes": {"cat": 1}}, ["{'cat': 1}", "MASK_FOREGROUND = 1"]),
    "one value": ([3], {"classes": "all"}, ["two classes are the least", "MASK_FOREGROUND = 3"]),
    "nothing left": ([3], {"classes": "all", "ignore": 3}, ["two classes are the least"]),
    "very many": ([0, 1], {"classes": tuple(range(255))}, ["255 classes, and 254"]),
    "a class that is ignored": ([0, 1, 2], {"classes": PETS, "ignore": (0, 2)}, ["2 is in MASK_IGNORE too"]),
    "32 bits": ([0, 1, 2], {"classes": (0, 1, 2, 65536)}, ["65536 is more than the 65535"]),
    "no such class": (
        [0, 1, 2, 3],
        {"classes": PETS, "ignore": 255},
        ["a.png", "0 (25 %), 3 (25 %). Add them to CLASSES, or", "MASK_IGNORE = (0, 3, 255) (--mask-ignore 0 3 255)"],
    ),
    "no such class, by values": (
        [0, 1, 2, 3],
        {"classes": (1, 2), "ignore": 0},
        ["3 (25 %). Add them to CLASSES", "MASK_IGNORE = (0, 3)"],
    ),
    "ignored foreground": (
        [0, 1, 2],
        {"foreground": 1, "ignore": (1, 2)},
        ["1 stands in MASK_FOREGROUND and in MASK_IGNORE"],
    ),
    "many values": (range(60), {"classes": (0, 1)}, ["more. Add them", "MASK_IGNORE = (2, 3,", "10, 11)"]),
    "several classes but for one": ([0, 1, 2, 3], {"ignore": 3}, ["several classes", "--classes all"]),
}


@pytest.mark.parametrize("name", WRONG)
def test_classes_and_ignored_values_that_do_not_fit_are_told_in_words(tmp_path, name):
    values, constants, expected = WRONG[name]
    classes(values).save(tmp_path / "a.png")
    with pytest.raises(UserError) as caught:
        find_mask_rule([tmp_path / "a.png"], DataSpec(**constants))
    assert [text for text in expected if text not in str(caught.value)] == []


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


def test_smoothed_edges_between_classes_of_colours_are_told(tmp_path):
    colours = np.asarray(coloured(blob(0, 120, 160), (255, 0, 0))).copy()
    colours[80:, :60] = 0, 255, 0
    listed = {"red": 0xFF0000, "green": (0, 255, 0), "rest": 0}
    for k, picture in enumerate((Image.fromarray(colours), smoothed(Image.fromarray(colours)))):
        picture.save(tmp_path / f"{k}.png")
    assert find_mask_rule([tmp_path / "0.png"], DataSpec(classes=listed)).channels == 3
    with pytest.raises(UserError, match="1.png: colours run into each other"):
        find_mask_rule([tmp_path / "0.png", tmp_path / "1.png"], DataSpec(classes=listed))
    with pytest.raises(UserError, match="more. JPEG or smoothing has blurred these values") as caught:
        find_mask_rule([tmp_path / "0.png", tmp_path / "1.png"])
    assert str(caught.value).count(" %)") == 10


STREET = {"ground": (70, 70, 70), "road": (128, 64, 128), "car": (0, 0, 142)}
STREET_COLOURS = np.array([*STREET.values()], np.uint8)


def street(seed, gap=8):
    """Labels of three classes at four times 96x128: an ellipse, and a triangle at least so many pixels beside it."""
    labels, draw = np.zeros((384, 512), np.uint8), np.random.default_rng(seed)
    x, y = draw.integers(130, 180), draw.integers(140, 240)
    cv2.ellipse(labels, (int(x), int(y)), (92, 84), 20, 0, 360, 1, -1)
    corners = np.array([(x + 96, 70), (470, 110), (420, 310), (x + 96, 300)]) + [gap, 0]
    return cv2.fillPoly(labels, [corners.astype(np.int32)], 2)


def shrunk(colours, filter_name="area"):
    """A quarter of a picture's height and width, with smoothed edges."""
    if filter_name == "area":
        return Image.fromarray(cv2.resize(colours, None, fx=0.25, fy=0.25, interpolation=cv2.INTER_AREA))
    height, width = colours.shape[:2]
    return Image.fromarray(colours).resize((width // 4, height // 4), Image.Resampling[filter_name])


@pytest.mark.parametrize("name", ["area", "BOX", "BILINEAR", "palette"])
def test_smoothed_edges_between_two_classes_are_the_nearer_ones(tmp_path, name):
    drawn = [street(seed) for seed in range(4)]
    shrink = (lambda c: shrunk(c).quantize(256)) if name == "palette" else (lambda c: shrunk(c, name))
    paths = write_all(tmp_path, lambda m, p: shrink(STREET_COLOURS[m]).save(p), "a.png", drawn)
    mask_rule = find_mask_rule(paths, DataSpec(classes=STREET))
    assert mask_rule.soft and "between two are the nearer" in mask_rule.describe()
    assert through_json(mask_rule) == mask_rule and not fault_of("mask_rule", mask_rule.to_dict(), KEYS["mask_rule"])
    read, true = (np.stack(masks) for masks in ([read_mask(p, mask_rule) for p in paths], drawn))
    true = true[:, 2::4, 2::4]
    assert (read == true).mean() >= 0.98
    for label in range(3):
        assert 2 * ((read == label) & (true == label)).sum() >= 0.95 * ((read == label).sum() + (true == label).sum())
    for path, mask in zip(paths, read):
        counts = count_classes(observe_mask(path), mask_rule)
        np.testing.assert_array_equal(counts, [*np.bincount(mask.ravel(), minlength=3), 0])
    with pytest.raises(UserError, match="several classes"):
        find_mask_rule(paths)


def test_smoothed_classes_are_refused_after_jpeg_and_where_three_meet(tmp_path):
    shrunk(STREET_COLOURS[street(0)]).save(tmp_path / "good.png")
    shrunk(STREET_COLOURS[street(0)]).save(tmp_path / "a.jpg", quality=95)
    jpeg(shrunk(STREET_COLOURS[street(0)]), 95).save(tmp_path / "b.png")
    shrunk(STREET_COLOURS[street(0, gap=-41)]).save(tmp_path / "c.png")
    for name in ("a.jpg", "b.png", "c.png"):
        with pytest.raises(UserError, match="run into each other.*between two that CLASSES lists.*here are 0x") as told:
            find_mask_rule([tmp_path / "good.png", tmp_path / name], DataSpec(classes=STREET))
        assert 1 <= str(told.value).count(" %)") <= 10
    grey(street(0) > 0).save(tmp_path / "grey.jpg")  # all of whose values are on the line from black to white
    with pytest.raises(UserError, match="grey.jpg: colours run into each other"):
        find_mask_rule([tmp_path / "grey.jpg"], DataSpec(classes={"black": (0, 0, 0), "white": (255, 255, 255)}))
    assert not find_mask_rule([tmp_path / "good.png"], DataSpec(classes="all")).soft
    mask_rule = find_mask_rule([tmp_path / "good.png"], DataSpec(classes=STREET))
    with pytest.raises(UnusableFile, match="c.png: holds other values.*between two are the nearer"):
        read_mask(tmp_path / "c.png", mask_rule)


@pytest.mark.parametrize("side", [160, 16])
@pytest.mark.parametrize("colour", [(0, 200, 0), (35, 35, 106)])  # beside all lines, and on one of them
def test_an_unlisted_colour_of_an_area_is_told_among_smoothed_classes(tmp_path, colour, side):
    paths = []
    for seed in range(8):
        colours = STREET_COLOURS[street(seed)]
        if seed == 5:
            colours[200 : 200 + side, -side:] = colour
        paths.append(tmp_path / f"{seed}.png")
        shrunk(colours).save(paths[-1])
    with pytest.raises(UserError, match=f"0x{int.from_bytes(bytes(colour), 'big'):06X} ") as told:
        find_mask_rule(paths, DataSpec(classes=STREET))
    assert str(told.value).count(" %)") <= 10


def test_a_class_or_an_ignored_colour_is_an_end_of_lines_and_comes_first(tmp_path):
    listed = {"black": 0, "red": 0xC80000, "blue": 0x0000C8}
    for colour, constants, expected in (
        ((100, 0, 0), {"classes": {**listed, "dark": 0x640000}}, 3),
        ((0, 200, 0), {"ignore": 0x00C800}, IGNORED),
        ((100, 0, 0), {"ignore": 0x640000}, IGNORED),
    ):
        colours = np.array([(0, 0, 0), (200, 0, 0), (0, 0, 200)], np.uint8)[street(0)]
        colours[:41] = colours[-41:] = colour
        shrunk(colours).save(tmp_path / "a.png")
        mask_rule = find_mask_rule([tmp_path / "a.png"], DataSpec(**{"classes": listed, **constants}))
        read = read_mask(tmp_path / "a.png", mask_rule)
        assert mask_rule.soft and (read[:10] == expected).all() and (read[-10:] == expected).all()
        assert set(np.unique(read[11:-11])) <= {0, 1, 2, expected if colour[0] else 0}
    colours = np.array([(0, 0, 0), (200, 0, 0), (0, 0, 200)], np.uint8)[street(0)]
    colours[1::4, :8] = (100, 0, 0)  # one colour, and thin: a class that is not listed
    Image.fromarray(colours).save(tmp_path / "a.png")
    with pytest.raises(UserError, match="no class: 0x640000 "):
        find_mask_rule([tmp_path / "a.png"], DataSpec(classes=listed))
    labels = _labels_of_values(np.array([0x620201, 0x400000, 0xA00000, 0x2000A8, 0x640064, 0xC80004]), mask_rule)
    assert labels.tolist() == [IGNORED, IGNORED, 1, 2, 1, 1]
    assert _labels_of_values(np.array([0x64000A, 0x006400]), mask_rule).tolist() == [254, 254]  # on no line


@pytest.mark.parametrize("kind", ["numbers", "alpha"])
def test_a_stored_rule_has_soft_classes_of_colours_alone(kind):
    rule = MaskRule(kind, (), (), soft=True, classes=(0, 1), names=("a", "b")).to_dict()
    assert "classes of colours" in fault_of("mask_rule", rule, KEYS["mask_rule"])
    assert not fault_of("mask_rule", {**rule, "soft": False}, KEYS["mask_rule"])
    assert not fault_of("mask_rule", {**rule, "kind": "colours"}, KEYS["mask_rule"])


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
    mask_rule = find_mask_rule([tmp_path / "b.png"], DataSpec(classes=(0, 1, 2)))
    assert mask_rule.colours == (0, 0x008000, 0x808000)  # VOC's 2 is green too
    greys = Image.fromarray(np.uint8([[0, 1], [2, 2]]))  # used colours are grey, the palette is not
    greys.putpalette([0, 0, 0, 90, 90, 90, 200, 200, 200, 255, 0, 0])
    greys.save(tmp_path / "c.png")
    mask_rule = find_mask_rule([tmp_path / "c.png"], DataSpec(classes="all"))
    encode_mask(np.uint8([[2, 1], [0, 0]]), mask_rule).save(tmp_path / "d.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "d.png", mask_rule), [[2, 1], [0, 0]])
