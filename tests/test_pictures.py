"""What is drawn: colours where they belong, texts that fit, curves of any length."""

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.utils import make_grid

from parts import pictures
from parts.masks import IGNORED, MaskRule
from parts.pictures import Example, LegendEntry, Palette, Row


@pytest.fixture
def scene():
    """(image, truth, prediction): truth is the upper half, prediction the left half."""
    image = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    truth, prediction = np.zeros((2, 60, 80), np.uint8)
    truth[:30], prediction[:, :40] = 1, 1
    return image, truth, prediction


def test_overlay_leaves_the_background_and_outlines_the_foreground(scene):
    image, truth, _ = scene
    before = image.copy()
    drawn = pictures.overlay(image, truth)
    assert drawn.shape == image.shape and drawn.dtype == np.uint8
    assert (image == before).all()
    assert (drawn[30:] == image[30:]).all()
    assert (drawn[29] == pictures.FOREGROUND).all(), "the last row of foreground is its outline"
    inside, was = drawn[5:25].astype(int), image[5:25].astype(int)
    away, before = (np.abs(part - pictures.FOREGROUND) for part in (inside, was))
    assert (away <= before).all() and (inside[..., 1] <= was[..., 1]).all()
    assert np.abs(inside - was).mean() > 20


@pytest.mark.parametrize("bands, places", [(None, [0, 1, 2]), ((4, 3, 2), [3, 2, 1]), ((5,), [4, 4, 4])])
def test_pictures_show_the_bands_that_are_asked_for(scene, bands, places):
    image = np.random.default_rng(1).integers(0, 256, (60, 80, 5), dtype=np.uint8)
    _, truth, prediction = scene
    palette, meant = Palette.of(None, bands), np.ascontiguousarray(image[..., places])
    for draw in (
        lambda image, *palette: pictures.overlay(image, truth, *palette),
        lambda image, *palette: pictures.difference(image, truth, prediction, *palette),
        lambda image, *palette: pictures.examples_sheet([Example(image, truth, prediction)], "worst", *palette),
        lambda image, *palette: pictures.strip(image, truth, [prediction], ["1"], *palette),
        lambda image, *palette: pictures.overlay_sheet([image], [truth], ["a"], "title", *palette),
    ):
        assert draw(image, palette).tobytes() == draw(meant).tobytes()


def test_outline_is_the_edge_and_not_the_picture_frame():
    mask = np.ones((40, 40), np.uint8)
    assert not pictures.outline(mask).any(), "foreground that leaves the picture has no edge there"
    mask[10:20, 10:20] = 0
    edge = pictures.outline(mask)
    assert edge[9, 10:20].all() and edge[20, 10:20].all() and not edge[15, 15] and edge.sum() == 44


def test_difference_has_a_colour_for_each_kind_of_pixel(scene):
    drawn = pictures.difference(*scene).astype(int)

    def nearest(part):
        mean = part.reshape(-1, 3).mean(axis=0)
        return min(pictures.ONE_FOREGROUND.marks, key=lambda mark: np.abs(mean - mark.colour).sum()).text

    assert nearest(drawn[:30, 40:]) == "missed"
    assert nearest(drawn[30:, :40]) == "invented"
    right, nothing = drawn[:30, :40], drawn[30:, 40:]
    assert (right[..., 1] > right[..., 0]).all(), "tinted green"
    assert (nothing[..., 0] == nothing[..., 2]).all(), "grey"


@pytest.fixture
def palette():
    return Palette(("ground", "road", "car", "tree"), tuple(pictures.class_colours()[:4]))


@pytest.fixture
def quarters():
    """(image, truth, prediction): four classes in the corners, an ignored square in the middle; class 1 is missed."""
    image = np.random.default_rng(0).integers(0, 256, (80, 120, 3), dtype=np.uint8)
    truth = np.zeros((80, 120), np.uint8)
    truth[:40, 60:], truth[40:, :60], truth[40:, 60:] = 1, 2, 3
    prediction = np.where(truth == 1, 2, truth).astype(np.uint8)
    truth[30:50, 40:80] = IGNORED
    return image, truth, prediction


def test_each_class_is_tinted_and_outlined_in_its_colour(quarters, palette):
    image, truth, _ = quarters
    before = image.copy()
    drawn = pictures.overlay(image, truth, palette)
    assert drawn.shape == image.shape and drawn.dtype == np.uint8 and (image == before).all()
    for index, colour in enumerate(palette.colours):
        inside = truth == index
        inside[1:-1, 1:-1] &= (truth[2:, 1:-1] == index) & (truth[:-2, 1:-1] == index)
        away = np.abs(drawn[inside].astype(int) - colour).mean()
        assert away < 0.6 * np.abs(image[inside].astype(int) - colour).mean()
    assert (drawn[5, 59] == palette.colours[0]).all() and (drawn[5, 60] == palette.colours[1]).all(), (
        "both sides of a border"
    )
    assert (drawn[:30, 58] != palette.colours[0]).any(axis=1).mean() > 0.9, "and no more than that"


@pytest.mark.parametrize("kind", ["overlay of one", "overlay", "difference of one", "difference"])
def test_the_picture_is_seen_between_the_lines_on_ignored_pixels(quarters, palette, kind):
    image, truth, prediction = quarters
    ignored = truth == IGNORED
    one, found = np.where(ignored, IGNORED, truth == 2).astype(np.uint8), np.ones_like(truth)
    if kind.endswith("of one"):
        truth, prediction, palette = one, found, pictures.ONE_FOREGROUND
    if kind.startswith("overlay"):
        drawn, beneath = pictures.overlay(image, truth, palette), image
        without = pictures.overlay(image, np.where(ignored, 0, truth), palette)
    else:
        drawn = pictures.difference(image, truth, prediction, palette)
        without = pictures.difference(image, np.where(ignored, 0, truth), prediction, palette)
        grey = np.zeros_like(truth)
        beneath = pictures.difference(image, grey, grey)  # nothing there and nothing found: grey alone
    assert (drawn[~ignored] == without[~ignored]).mean() > 0.98, "elsewhere as ever, but for outlines beside it"
    changed = (drawn != beneath).any(axis=2) & ignored
    assert 0.15 < changed.sum() / ignored.sum() < 0.35, "lines, not areas"
    light = (drawn[ignored] == 235).all(axis=1).mean()
    assert 0.1 < light < 0.15 and 0.1 < (drawn[ignored] == 60).all(axis=1).mean() < 0.15


def test_lines_on_ignored_pixels_are_diagonal_and_thicker_on_a_larger_picture():
    for side, thick in ((100, 1), (720, 4)):
        row = pictures.mask_image(np.full((side, side), IGNORED, np.uint8))[..., 0]
        assert (row[1:, :-1] == row[:-1, 1:]).all() and (row[0, :thick] == 235).all() and row[0, 2 * thick] == 128


def test_difference_of_classes_tells_right_from_wrong(quarters, palette):
    image, truth, prediction = quarters
    drawn = pictures.difference(image, truth, prediction, palette).astype(int)
    assert np.abs(drawn[:30, 60:] - pictures.WRONG.colour).mean() < 25, "strong"
    rights = [(drawn[rows], truth[rows]) for rows in (np.s_[:30, :60], np.s_[50:, :60], np.s_[50:, 60:])]
    commonest = np.bincount(truth[truth != IGNORED]).argmax()
    for right, labels in rights:
        is_grey = (right[..., 1] == right[..., 0]).all()
        assert is_grey == (labels == commonest).all() and right.std() > 20, "the picture is seen"
        assert is_grey or (right[..., 1] > right[..., 0]).all(), "tinted green"


def test_masks_and_grids_in_the_colours_of_the_classes(quarters, palette):
    _, truth, prediction = quarters
    drawn = pictures.mask_image(truth, palette)
    for index, colour in enumerate(palette.colours):
        assert (drawn[truth == index] == colour).all()
    assert set(np.unique(drawn[truth == IGNORED])) == {60, 128, 235}
    page = pictures.grid(np.stack([truth, prediction]), palette)
    assert page.shape == (84, 246, 3) and (page[2:82, 2:122] == drawn).all() and (page[0] == 128).all()
    one = np.where(truth == IGNORED, IGNORED, truth > 1).astype(np.uint8)
    page = pictures.grid(one[None])
    assert page.ndim == 2 and set(np.unique(page[2:-2, 2:-2][truth != IGNORED])) == {0, 255}
    assert set(np.unique(page[2:-2, 2:-2][truth == IGNORED])) == {60, 128, 235}


def test_the_colours_of_classes_are_fixed_and_differ():
    colours = pictures.class_colours()
    assert len(colours) == len(set(colours)) == 255
    assert colours[:8] == list(pictures.FIRST_COLOURS)
    assert colours[8:12] == [(140, 0, 252), (84, 252, 0), (252, 0, 112), (0, 0, 252)], "always the same"
    first = np.array(colours[:41], int)
    apart = np.abs(first[:, None] - first).sum(axis=2) + 999 * np.eye(41, dtype=int)
    assert apart.min() > 60
    assert np.ptp(colours[1:], axis=1).min() > 80, "no greys, which streets hide"
    assert max(colours[0]) < 100 and np.ptp(colours[0]) < 40, "mostly background: calm"


FIXED = pictures.class_colours()


@pytest.mark.parametrize(
    "own, drawn",
    [
        ([0x000000, 0x800000, 0x00FF80], [(0, 0, 0), (128, 0, 0), (0, 255, 128)]),
        ([], FIXED[:3]),
        ([0x000000, 0x010101, 0x020202], FIXED[:3]),  # a palette of greys
        ([0x123456], [(0x12, 0x34, 0x56)]),
    ],
)
def test_classes_have_the_masks_colours_where_the_eye_tells_them_apart(own, drawn):
    names = ("a", "b", "c")[: len(drawn)]
    classes = dict(background=(), foreground=(), classes=tuple(range(len(drawn))), names=names)
    palette = Palette.of(MaskRule(**classes, colours=tuple(own)))
    assert type(palette) is Palette and palette.names == names and palette.colours == tuple(drawn)


@pytest.mark.parametrize("mask_rule", [None, MaskRule(), MaskRule(foreground=(8,), ignored=(255,))])
def test_one_foreground_has_a_palette_too(mask_rule):
    palette = Palette.of(mask_rule)
    assert palette == pictures.ONE_FOREGROUND and palette.names == ("background", "foreground")


def test_two_classes_are_not_one_foreground(scene):
    """They have their own names, both are drawn over images, and their masks are saved as the indices 0 and 1."""
    palette = Palette.of(MaskRule(background=(), foreground=(), classes=(0, 1), names=("background", "foreground")))
    image, truth, prediction = scene
    assert palette.names == pictures.ONE_FOREGROUND.names and palette != pictures.ONE_FOREGROUND
    assert (pictures.overlay(image, truth, palette)[40:] != pictures.overlay(image, truth)[40:]).any()
    assert pictures.grid(truth[None], palette).ndim == 3
    drawn = pictures.difference(image, truth, prediction, palette)[40:, 50:]
    assert (drawn[..., 1] == drawn[..., 0]).all(), "what is right of the commonest class stays grey"


def test_legends_tell_which_labels_there_are(quarters, palette):
    _, truth, prediction = quarters
    entries, ignored = palette.entries, LegendEntry("ignored", hatched=True)
    assert entries[1] == LegendEntry("road", palette.colours[1])
    assert palette.legend([prediction]) == [entries[0], entries[2], entries[3]]
    assert palette.legend([prediction, truth]) == [*entries, ignored]
    assert pictures.ONE_FOREGROUND.legend([prediction > 0]) == []
    assert pictures.ONE_FOREGROUND.legend([np.where(truth == IGNORED, IGNORED, 0)]) == [ignored]


@pytest.mark.parametrize("tiles", [1, 4])
@pytest.mark.parametrize("count", [12, 40])
def test_legends_of_many_and_long_names_stay_on_the_page(count, tiles):
    names = [f"class {i} " + "of a long name " * (i % 4) for i in range(count)]
    legend = [LegendEntry(name, colour) for name, colour in zip(names, pictures.class_colours())]
    tile = np.zeros((100, 160, 3), np.uint8)
    alone = np.asarray(pictures.sheet([Row([tile] * tiles)]))
    page = np.asarray(pictures.sheet([Row([tile] * tiles)], legend=legend))
    assert page.shape[1] == alone.shape[1], "wrapped, not widened"
    below = page[alone.shape[0] :]
    edge = pictures.MARGIN - 1
    assert (below[:, -edge:] == 255).all() and (below[-edge:] == 255).all(), "nothing is cut"
    for entry in legend:
        assert (below == entry.colour).all(axis=2).sum() >= 0.8 * (pictures.FONT - 1) ** 2, "a swatch each"


def test_sheets_of_classes_explain_masks_and_difference(quarters, palette):
    image, truth, prediction = quarters
    plain = np.where(truth == IGNORED, 0, truth).astype(np.uint8)
    hatched = []
    for shown in (plain, truth):
        strip = pictures.strip(image, shown, [prediction] * 2, ["1", "2"], palette)
        sheet = pictures.examples_sheet([Example(image, shown, prediction, "a")], None, palette)
        overlays = pictures.overlay_sheet([image], [shown], ["a"], "title", palette)
        classes, marks = palette.entries, list(palette.marks)
        for page, entries in ((strip, classes), (sheet, classes + marks), (overlays, classes)):
            foot = np.asarray(page)[-2 * (pictures.FONT + 8) - pictures.MARGIN :]
            assert all((foot == entry.colour).all(axis=2).sum() > 150 for entry in entries)
            hatched.append(bool((foot == 128).all(axis=2).sum() > 60))  # letters have a few such pixels
    assert hatched == [False] * 3 + [True] * 3, "the hatched swatch, only if there is something ignored"


def test_sheet_holds_rows_of_tiles_of_any_size_and_kind():
    rng = np.random.default_rng(0)
    wide, tall = rng.integers(0, 256, (30, 900, 3), np.uint8), rng.integers(0, 256, (900, 30, 3), np.uint8)
    grey = rng.integers(0, 256, (50, 70), np.uint8)
    page = pictures.sheet(
        [Row([wide, tall, grey], captions=["a", "b", "c"]), Row([grey], "one row")], "title", ["x", "y", "z"]
    )
    assert page.mode == "RGB" and page.getpixel((0, 0)) == (255, 255, 255)
    assert page.height > 2 * pictures.TILE_HEIGHT and page.width > pictures.WIDEST * pictures.TILE_HEIGHT
    assert page.width < 2000


def test_long_and_odd_captions_stay_within_their_tile():
    tile = np.zeros((100, 100, 3), np.uint8)
    name = "a very long name that will never fit below a tile of that width_0001.jpg"
    page = pictures.sheet([Row([tile, tile], captions=[name, "bad \udcff\n byte"])], "ümlaut " * 200)
    row = np.asarray(page)[-pictures.MARGIN - pictures.FONT - 6 :]
    left = pictures.MARGIN + pictures.TILE_HEIGHT
    assert (row[:, left : left + pictures.MARGIN - 2] == 255).all(), "the gap between the tiles is white"
    assert (row[:, :left] < 128).any()


def test_examples_and_strip_have_a_tile_for_everything(scene):
    image, truth, prediction = scene
    sheet = pictures.examples_sheet([Example(image, truth, prediction, name) for name in "abc"], "worst")
    assert sheet.height > 3 * pictures.TILE_HEIGHT and sheet.width > 4 * pictures.TILE_HEIGHT
    strip = pictures.strip(image, truth, [prediction] * 8, [f"epoch {i}" for i in range(8)])
    assert strip.height > 2 * pictures.TILE_HEIGHT


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_maps_come_back_as_they_were_saved(tmp_path, kind):
    array = (np.random.default_rng(0).random((33, 47)) * np.iinfo(kind).max).astype(kind)
    pictures.save_image(tmp_path / "map.png", array)
    with Image.open(tmp_path / "map.png") as picture:
        assert (np.asarray(picture) == array).all()
    assert [path.name for path in tmp_path.iterdir()] == ["map.png"]


@pytest.mark.parametrize("labels, greys", [(2, [0, 255]), (3, [0, 1, 2])])
def test_masks_come_back_from_their_grey_pictures(tmp_path, labels, greys):
    """One foreground is black and white; classes are their indices."""
    palette = pictures.ONE_FOREGROUND
    if labels > 2:
        palette = Palette(("a", "b", "c"), tuple(FIXED[:3]))
    mask = np.random.default_rng(0).integers(0, labels, (33, 47), np.uint8)
    pictures.save_mask(tmp_path / "mask.png", mask, palette)
    with Image.open(tmp_path / "mask.png") as picture:
        assert np.unique(picture).tolist() == greys
    assert (pictures.load_mask(tmp_path / "mask.png", palette) == mask).all()


@pytest.mark.parametrize("count", [2, 8, 11])
def test_grids_are_those_of_torchvision(count):
    masks = np.random.default_rng(count).integers(0, 2, (count, 5, 7), np.uint8)
    theirs = make_grid(torch.from_numpy(masks)[:, None] * 255, pad_value=128)[0].numpy()
    assert np.array_equal(pictures.grid(masks), theirs)


@pytest.mark.parametrize("epochs", [1, 3, 200])
def test_curves_of_any_length(tmp_path, epochs):
    history = [
        {"epoch": e + 1, "loss": 0.7 * 0.98**e, "dice": 1 - 0.5 * 0.98**e, "iou": 1 - 0.6 * 0.98**e, "lr": 1e-3}
        for e in range(epochs)
    ]
    pictures.draw_curves(history, tmp_path / "curves.png")
    with Image.open(tmp_path / "curves.png") as picture:
        assert picture.width > 800 and picture.height > 300
        assert len(np.unique(np.asarray(picture.convert("RGB")).reshape(-1, 3), axis=0)) > 20


def test_curves_without_scores_or_with_gaps(tmp_path):
    pictures.draw_curves([{"epoch": 1, "loss": float("nan"), "dice": None}], tmp_path / "curves.png")
    pictures.draw_curves([{"epoch": 1, "loss": 0.5}], tmp_path / "curves.png")
    assert (tmp_path / "curves.png").stat().st_size > 1000


@pytest.fixture
def figures(monkeypatch):
    """The figures that are saved, to be asked what they show."""
    kept, save = [], pictures._save_figure
    monkeypatch.setattr(pictures, "_save_figure", lambda figure, path: (kept.append(figure), save(figure, path)))
    return kept


def texts_of(legend):
    return [text.get_text() for text in legend.get_texts()]


def curves_of(names, epochs=5):
    """A history in which the class named first is the worst."""
    worse = {f"dice_{name}": [0.1 * e * (i + 1) / len(names) for e in range(epochs)] for i, name in enumerate(names)}
    shared = [{"epoch": e + 1, "loss": 1 / (e + 1), "dice": 0.1 * e, "dice_nonempty": 0.1 * e} for e in range(epochs)]
    return [row | {name: values[e] for name, values in worse.items()} for e, row in enumerate(shared)]


def test_curves_of_classes_are_thin_and_named_beside_the_plot(tmp_path, figures):
    odd = ["$x$", "_background_", "loss", "dice", "bad\udcff\n", "a name that is much longer than its legend is wide"]
    pictures.draw_curves(curves_of(odd), tmp_path / "curves.png")
    (figure,) = figures
    loss, score = figure.axes
    assert len(loss.lines) == 1, "a class called loss is none"
    assert texts_of(score.get_legend())[0] == "Dice" and len(score.lines) == 2 + len(odd)
    thick = max(line.get_linewidth() for line in score.lines)
    assert [line.get_label() for line in score.lines if line.get_linewidth() == thick] == ["Dice"]
    (beside,) = figure.legends
    texts = texts_of(beside)
    assert texts[:5] == [r"\$x\$", "_background_", "loss", "dice", "bad??"] and len(texts[5]) == 22
    assert beside.get_title().get_text() == "Dice by class, worst first"
    box = beside.get_window_extent()
    assert box.x0 >= score.get_window_extent().x1 and box.x1 <= figure.bbox.x1 and box.y0 >= 0


@pytest.mark.parametrize("files", [(), ("{}_a", "{}_b")], ids=["apart", "overlapping"])
def test_curves_have_the_colours_of_masks(tmp_path, figures, files):
    rule = MaskRule(background=(), foreground=(), classes=(1, 2), names=("a", "b"), files=files)
    pictures.draw_curves(curves_of("ab"), tmp_path / "curves.png", rule.overlaps)
    colours = Palette.of(rule).colours[rule.overlaps :][:2]
    for line, colour in zip(figures[0].axes[1].lines, colours):
        assert line.get_color() == [channel / 255 * 0.85 for channel in colour]


def test_curves_of_many_classes_name_the_worst(tmp_path, figures):
    history = curves_of([f"c{i}" for i in range(40)])
    history[-1]["dice_c2"] = history[-2]["dice_c2"] = None  # in no image any more: its last value counts
    for row in history:
        row["dice_c1"] = None
    pictures.draw_curves(history, tmp_path / "curves.png")
    (beside,) = figures[0].legends
    assert texts_of(beside) == ["c0", "c2", "c3", "c4", "c5"]
    assert beside.get_title().get_text() == "Dice, the worst 5 of 40 classes"
    assert beside.get_window_extent().x1 <= figures[0].bbox.x1


def test_the_ring_is_around_what_chooses(tmp_path, figures):
    history = [{"epoch": e, "loss": 1, "dice": d, "dice_nonempty": n} for e, d, n in ((1, 0.9, 0.0), (2, 0.7, 0.6))]
    for shown in (history, [{key: row[key] for key in ("epoch", "loss", "dice")} for row in history]):
        pictures.draw_curves(shown, tmp_path / "curves.png")
    chosen, plain = (figure.axes[1].lines[-1] for figure in figures)
    assert (*chosen.get_xdata(), *chosen.get_ydata()) == (2, 0.7), "not the epoch that predicts nothing"
    assert chosen.get_label() == "best: Dice 0.7000, epoch 2"
    assert plain.get_label() == "best: Dice 0.9000, epoch 1"


@pytest.mark.parametrize("count", [2, 16, 17, pytest.param(100, marks=pytest.mark.slow)])
def test_confusion_is_in_per_cent_of_the_true_class(tmp_path, figures, count):
    counts = np.random.default_rng(count).integers(0, 50, (count, count)) + 900 * np.eye(count, dtype=int)
    counts[1] = 0
    names = ["_$a$", "bad\udcff\n", *(f"a class of a long name, number {i}" for i in range(count))][:count]
    pictures.draw_confusion(counts.tolist(), names, tmp_path / "confusion.png")
    assert [path.name for path in tmp_path.iterdir()] == ["confusion.png"]
    with Image.open(tmp_path / "confusion.png") as picture:
        page = np.asarray(picture.convert("RGB"))
    assert max(page.shape) < 2000
    axes = figures[0].axes[0]
    shown = axes.images[0].get_array()
    assert shown.mask[1].all() and not np.delete(shown.mask, 1, axis=0).any()
    assert np.allclose(np.delete(shown, 1, axis=0).sum(axis=1), 100)
    grey = (page[..., :1] == page).all(axis=2) & (np.abs(page[..., 0].astype(int) - 217) < 3)  # 0.85 of 255
    assert grey.sum() > 1000, "the row of a class without pixels"
    cells = {tuple(text.get_position()): text.get_text() for text in axes.texts}
    assert bool(cells) == (count <= 16)
    if cells:
        assert cells[0, 0] == f"{100 * counts[0, 0] / counts[0].sum():.0f}" and (0, 1) not in cells
    for side in ((0, slice(None)), (-1, slice(None)), (slice(None), 0), (slice(None), -1)):
        assert (page[side] == 255).all(), "nothing is cut"
    places = [label.get_window_extent() for label in axes.get_xticklabels()]
    assert all(one.x1 <= other.x0 + 1 for one, other in zip(places, places[1:])), "names do not overlap"
