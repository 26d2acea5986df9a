"""One mask: every legal way of writing one reads back equal; what the rule does not know is refused in words."""

import json
import pickle

import numpy as np
import pytest
import torch
from mask_makers import (
    ENCODINGS,
    LEGAL,
    TINTS,
    VOC,
    H,
    W,
    areas,
    blob,
    classes,
    coloured,
    cut_out,
    foreground_share,
    grey,
    indexed,
    through_json,
    write_all,
)
from PIL import Image

from parts.errors import UnusableFile, UserError
from parts.mask_rules import decide_mask_rule, find_mask_rule
from parts.masks import (
    IGNORED,
    MaskRule,
    Observation,
    can_be_fitted,
    count_classes,
    encode_mask,
    fitted,
    observe_mask,
    read_mask,
    resize_mask,
)
from parts.spec import DataSpec


@pytest.mark.parametrize("name", LEGAL)
def test_every_legal_encoding_reads_back_equal(tmp_path, name):
    """Random masks of many sizes and shares, among them empty and full ones; read by one rule."""
    draw = np.random.default_rng(sum(map(ord, name)))
    masks = [blob(), np.zeros((H, W), np.uint8), np.ones((H, W), np.uint8)]
    for _ in range(9):
        height, width = draw.integers(1, 40, 2)
        masks.append((draw.random((height, width)) < draw.random()).astype(np.uint8))
    paths = write_all(tmp_path, LEGAL[name], name, masks)
    observations = [observe_mask(path) for path in paths]
    mask_rule = decide_mask_rule(observations)
    assert find_mask_rule(paths) == mask_rule and not mask_rule.soft
    for mask, path, observation in zip(masks, paths, observations):
        read = read_mask(path, mask_rule)
        assert read.dtype == np.uint8
        np.testing.assert_array_equal(read, mask)
        assert foreground_share(observation, mask_rule) == pytest.approx(mask.mean())
        assert observation.size == list(mask.shape)


@pytest.mark.parametrize("name", ["RGBA a.png", "LA a.png", "RGBA a.tif", "RGBA a.webp", "P a.png"])
def test_alpha_is_the_mask_of_cut_outs(tmp_path, name):
    masks = [blob(seed, 120, 160) for seed in range(2)] + [np.zeros((12, 16), np.uint8)]

    def write(mask, path):
        if name.startswith("P"):
            return indexed(mask, VOC).save(path, transparency=bytes([0, 255, 255, 255]))
        return cut_out(mask, name.split()[0]).save(path, **({"lossless": True} if "webp" in name else {}))

    paths = write_all(tmp_path, write, name, masks)
    mask_rule = find_mask_rule(paths, DataSpec(foreground="alpha"))
    assert "alpha" in mask_rule.describe() and through_json(mask_rule) == mask_rule
    for mask, path in zip(masks, paths):
        np.testing.assert_array_equal(read_mask(path, mask_rule), mask)
        assert foreground_share(observe_mask(path), mask_rule) == pytest.approx(mask.mean())
    if not name.startswith("P"):
        with pytest.raises(UserError, match="--mask-foreground alpha"):
            find_mask_rule(paths)


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


def test_rules_and_observations_are_stored_and_come_back(tmp_path):
    grey(blob()).save(tmp_path / "a.png")
    for mask_rule in (find_mask_rule([tmp_path / "a.png"]), MaskRule("colours", (), (1, 2), rest=True)):
        assert through_json(mask_rule) == mask_rule
    observation = observe_mask(tmp_path / "a.png")
    assert pickle.loads(pickle.dumps(observation)) == observation
    assert Observation(**json.loads(json.dumps(vars(observation)))) == observation


RULES = {  # name -> (rule, channels of the network, labels, their names)
    "one foreground": (MaskRule(), 1, 2, ("background", "foreground")),
    "one foreground, some pixels ignored": (MaskRule(ignored=(7,)), 1, 2, ("background", "foreground")),
    "two classes": (MaskRule(background=(), foreground=(), classes=(3, 8), names=("a", "b")), 2, 2, ("a", "b")),
    "three": (MaskRule(background=(), foreground=(), classes=(3, 8, 9), names=("a", "b", "c")), 3, 3, ("a", "b", "c")),
}


@pytest.mark.parametrize("name", RULES)
def test_a_rule_tells_its_labels_and_those_that_a_network_predicts(name):
    mask_rule, channels, num_labels, label_names = RULES[name]
    assert (mask_rule.channels, mask_rule.num_labels, mask_rule.label_names) == (channels, num_labels, label_names)
    assert mask_rule.has_classes == (channels > 1)
    logits = torch.randn(2, channels, 3, 4, generator=torch.Generator().manual_seed(0))
    labels = mask_rule.labels_of(logits)
    assert labels.dtype == torch.uint8 and labels.shape == (2, 1, 3, 4)
    assert torch.equal(labels, logits.argmax(1, keepdim=True) if channels > 1 else logits > 0)


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
    assert mask_rule.classes == tuple(order) and mask_rule.channels == count
    assert not mask_rule.is_binary and not mask_rule.soft
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
        written, first = observe_mask(tmp_path / "again.png"), observe_mask(path)
        assert written.counts == first.counts or name.startswith("colours")  # whose greys are counted as such
        assert written.palette == first.palette or (void and written.palette)  # void has VOC's colour there
    assert through_json(mask_rule) == mask_rule
    if "colours" in name:
        assert mask_rule.colours == mask_rule.classes
    elif name == "palette":
        assert mask_rule.colours == tuple(
            int.from_bytes(bytes(TINTS[value].tolist()), "big") for value in mask_rule.classes
        )
    else:
        assert mask_rule.colours == ()


def test_old_rules_are_read_and_long_ones_are_a_short_line():
    old = {"kind": "numbers", "background": [0], "foreground": [255], "soft": True, "rest": False}
    mask_rule = MaskRule.from_dict(old)
    assert mask_rule == MaskRule(soft=True) and mask_rule.channels == 1 and mask_rule.is_binary
    names = tuple(f"kind {index}" for index in range(250))
    long = MaskRule("colours", (), (), ignored=(1, 2), classes=tuple(range(1000, 1250)), names=names)
    text = long.describe()
    assert text.startswith("there are 250 classes: 0x0003E8 kind 0, ") and "and 238 more" in text
    assert text.endswith("; 0x000001, 0x000002 are ignored") and "\n" not in text and len(text) < 350


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
    with pytest.raises(UserError, match="0 a.png, .*1 a.png.*only one foreground can be"):
        read_mask(tuple(paths), find_mask_rule(paths, DataSpec(classes="all")))
    with pytest.raises(UnusableFile, match="turned.png: is 40x30 .*, and .*0 a.png.*30x40"):
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


SIZES = {  # of a mask whose image is 40x60 -> whether RESIZE_MASKS takes it
    "half": ((20, 30), True),
    "double, but for a pixel": ((80, 121), True),
    "cut and padded": ((39, 63), True),
    "other proportions": ((40, 64), False),
    "turned": ((60, 40), False),
}


@pytest.mark.parametrize("size, taken", SIZES.values(), ids=SIZES)
def test_masks_are_brought_to_the_size_of_their_image(tmp_path, size, taken):
    assert can_be_fitted(size, (40, 60)) == taken
    mask = np.zeros(size, np.uint8)
    mask[: size[0] // 2] = 255
    Image.fromarray(mask).save(tmp_path / "a.png")
    read = read_mask(tmp_path / "a.png", MaskRule(), image_size=(40, 60))
    assert read.shape == ((40, 60) if taken else size)
    if taken:
        assert abs(np.count_nonzero(read) - 20 * 60) <= 60
        many = fitted(np.dstack([mask.astype(np.int32)] * 3), (40, 60))
        assert np.array_equal(many[..., 1] == 255, read == 1)
