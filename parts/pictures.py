"""Pictures that explain: overlays, differences, sheets of both, and the curves of a run.

Images are uint8 (H, W, C), of which three channels are shown as RGB, or one as grey: the first, or Palette.bands.
Masks are uint8 (H, W) of labels, and IGNORED where a pixel is ignored; a Palette says how the labels are
drawn. Nothing here knows networks or folders.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import accumulate, zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import cv2
import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from PIL import Image, ImageDraw, ImageFont

from parts.files import write_whole
from parts.images import decode, resize_image
from parts.masks import IGNORED, MaskRule, members, resize_mask
from parts.spec import Color

if TYPE_CHECKING:  # matplotlib takes half a second to load, and only some runs draw curves
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Mostly Okabe and Ito's colours, which people of every kind of colour vision tell apart
FOREGROUND = (230, 0, 126)  # of overlays; a magenta, rare in photographs
BLACK, WHITE = (0, 0, 0), (255, 255, 255)  # background and foreground of a mask that is shown alone

# Of classes: first a dark slate, as the first one is mostly background, then Okabe and Ito's without black,
# those first that are rare in photographs
FIRST_COLOURS: tuple[Color, ...] = (
    (64, 72, 92),
    (204, 121, 167),
    (240, 228, 66),
    (0, 114, 178),
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (213, 94, 0),
)
APART = 8  # of 255: where two colours of the masks differ by less in every channel, the eye does not tell them apart
Arrays = Sequence[np.ndarray]  # images or masks
TEXT, FAINT, FRAME = (30, 30, 30), (110, 110, 110), (190, 190, 190)
MARGIN = 12  # pixels around and between tiles
TILE_HEIGHT = 240  # pixels
WIDEST = 2.0  # a tile's width over its height, beyond which it is shrunk to fit
FONT = 14  # pixels
_LINE = FONT + 8  # from one line of text to the next
NAMED = 12  # classes of a run's curves that are all named beside them
LETTERED = 16  # classes of a confusion matrix that has numbers in its cells
_SHEET_HEIGHT = 4 * TILE_HEIGHT  # at which images are kept for a sheet: thin objects show faintly there


# ---- colours and legends


@dataclass(frozen=True)
class LegendEntry:
    """One entry of a legend: a text beside a swatch, or, with neither colour nor hatching, a heading on a new line."""

    text: str
    colour: Color | None = None  # of the swatch
    hatched: bool = False  # the swatch looks as ignored pixels do

    @property
    def is_heading(self) -> bool:
        """Whether there is no swatch."""
        return self.colour is None and not self.hatched


@dataclass(frozen=True)
class Mark(LegendEntry):
    """A kind of pixel in a picture of differences: what it is called, and the tint that shows it."""

    colour: Color = FOREGROUND
    strength: float = 0.9  # 0 leaves the picture as it is, 1 paints over it


MISSED = Mark("missed", (230, 159, 0))  # orange: foreground of the truth that the prediction lacks
INVENTED = Mark("invented", (0, 114, 178))  # blue: predicted, and not in the truth
RIGHT = Mark("right", (0, 158, 115), strength=0.3)  # green, faint
WRONG = Mark("wrong class", (255, 110, 0))  # orange: another class than the true one
IGNORED_ENTRY = LegendEntry("ignored", hatched=True)


@dataclass(frozen=True)
class Palette:
    """How masks and their images are drawn: the name and the colour of each label. This one is of classes.

    Palette.of(mask_rule) makes the one that fits, a ForegroundPalette where there is one foreground. The two draw
    with the same methods, so that nobody else asks which one it is.
    """

    names: tuple[str, ...]  # of label 0, 1, ...
    colours: tuple[Color, ...]  # likewise
    bands: tuple[int, ...] | None = None  # the channels of images, from 1 on, that are shown; None: the first

    marks: ClassVar[tuple[Mark, ...]] = (WRONG, RIGHT)  # as `compare` tells pixels apart
    channels: ClassVar[int] = 3  # of a picture of masks
    grey_step: ClassVar[int] = 1  # between the grey values of two labels in a file that save_mask wrote

    @staticmethod
    def of(mask_rule: MaskRule | None, bands: tuple[int, ...] | None = None) -> Palette:
        """The palette of a dataset's masks. Without a rule there is one foreground.

        Classes have the colours of the masks where the eye tells these apart, else class_colours().
        """
        if mask_rule is None or not mask_rule.has_classes:
            return ForegroundPalette(MaskRule().label_names, (BLACK, WHITE), bands)
        if mask_rule.overlaps:  # of each set of classes the mean of their colours
            colours_of = np.array(class_colours()[1 : 1 + len(mask_rule.names)])
            held = [colours_of[classes.astype(bool)] for classes in members(len(mask_rule.names))[1:]]
            mixed: list[Color] = [tuple(own.mean(0).astype(int).tolist()) for own in held]
            return Palette(mask_rule.label_names, (BLACK, *mixed), bands)
        own: list[Color] = [(value >> 16, value >> 8 & 255, value & 255) for value in mask_rule.colours]
        colours = own if own and _apart(own) else class_colours()[: len(mask_rule.names)]
        return Palette(mask_rule.names, tuple(colours), bands)

    @property
    def entries(self) -> list[LegendEntry]:
        """A legend of all labels."""
        return [LegendEntry(name, colour) for name, colour in zip(self.names, self.colours)]

    def paint(self, mask: np.ndarray) -> np.ndarray:
        """The colours of a mask without ignored pixels, uint8 (H, W, 3)."""
        table = np.zeros((1, 256, 3), np.uint8)
        table[0, : len(self.colours)] = self.colours
        return cv2.LUT(cv2.cvtColor(np.ascontiguousarray(mask, dtype=np.uint8), cv2.COLOR_GRAY2RGB), table)

    def lay_over(self, image: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """`image` under a mask without ignored pixels: each class tinted, and outlined on both sides of a border."""
        colours = self.paint(mask)
        drawn = cv2.addWeighted(np.ascontiguousarray(image), 0.55, colours, 0.45, 0)
        edges = _borders(mask)
        drawn[edges] = colours[edges]
        return drawn

    def compare(self, truth: np.ndarray, prediction: np.ndarray) -> tuple[np.ndarray, ...]:
        """Where two masks differ and agree: for each of `marks` a boolean (H, W).

        The truth's commonest label is left out of what agrees: like the background of one foreground it stays grey.
        """
        commonest = np.bincount(np.ravel(truth), minlength=1).argmax()
        return truth != prediction, (truth == prediction) & (truth != commonest)

    def legend(self, masks: Iterable[np.ndarray]) -> list[LegendEntry]:
        """A legend of those labels that the masks hold, and of ignored pixels if there are any."""
        held = np.zeros(256, np.int64)
        for mask in masks:
            held += np.bincount(np.ravel(mask), minlength=256)
        entries = [entry for label, entry in enumerate(self.entries) if held[label]]
        if held[IGNORED]:
            entries.append(IGNORED_ENTRY)
        return entries

    def difference_legend(self, masks: Iterable[np.ndarray]) -> list[LegendEntry]:
        """A legend of the picture of differences, and of the `masks` beside it."""
        labels = self.legend(masks)
        ignored = [entry for entry in labels if entry.hatched]
        return [LegendEntry("masks:"), *labels, LegendEntry("difference:"), *self.marks, *ignored]


class ForegroundPalette(Palette):
    """How masks of one foreground are drawn: alone in black and white, over an image the foreground in magenta."""

    marks = (MISSED, INVENTED, RIGHT)
    channels = 1
    grey_step = 255

    def lay_over(self, image: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """`image` with the foreground of a mask tinted and outlined; the background stays as it is."""
        drawn = _tint(image, mask, FOREGROUND, 0.35)
        drawn[outline(mask)] = FOREGROUND
        return drawn

    def compare(self, truth: np.ndarray, prediction: np.ndarray) -> tuple[np.ndarray, ...]:
        """Where foreground is missed, invented and right: for each of `marks` a boolean (H, W)."""
        truth, prediction = truth.astype(bool), prediction.astype(bool)
        return truth & ~prediction, prediction & ~truth, truth & prediction

    def legend(self, masks: Iterable[np.ndarray]) -> list[LegendEntry]:
        """A legend of ignored pixels if there are any; the foreground explains itself."""
        if any(np.max(mask, initial=0) == IGNORED for mask in masks):
            return [IGNORED_ENTRY]
        return []

    def difference_legend(self, masks: Iterable[np.ndarray]) -> list[LegendEntry]:
        """A legend of the picture of differences; black and white masks need none."""
        return [*self.marks, *self.legend(masks)]


ONE_FOREGROUND = Palette.of(None)


def _apart(colours: Sequence[Color]) -> bool:
    """Whether the eye tells all of these colours apart."""
    values = np.array(colours)
    distances = np.abs(values[:, None] - values).max(axis=2)
    np.fill_diagonal(distances, 255)
    return bool(distances.min() >= APART)


@cache
def class_colours() -> list[Color]:
    """255 colours for classes, always the same: FIRST_COLOURS, then each time the one farthest from all before.

    Chosen from strong colours, by squared distance, green weighed most and blue least, in whole numbers.
    """
    levels = np.arange(0, 256, 28)
    strong = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), axis=-1).reshape(-1, 3)
    strong = strong[(np.ptp(strong, axis=1) >= 84) & (strong.max(axis=1) >= 112)]  # neither grey nor nearly black
    chosen = list(FIRST_COLOURS)
    nearest = np.min([((strong - colour) ** 2 * (3, 4, 2)).sum(axis=1) for colour in chosen], axis=0)
    while len(chosen) < 255:
        best = strong[nearest.argmax()]
        chosen.append(tuple(best.tolist()))
        nearest = np.minimum(nearest, ((strong - best) ** 2 * (3, 4, 2)).sum(axis=1))
    return chosen


# ---- one picture


def overlay(image: np.ndarray, mask: np.ndarray, palette: Palette = ONE_FOREGROUND) -> np.ndarray:
    """`image` with the foreground of `mask`, or every class, tinted and outlined, ignored pixels hatched.

    uint8 (H, W, 3).
    """
    image, (mask, ignored) = shown(image, palette.bands), _split(mask)
    return _hatch(palette.lay_over(image, mask), ignored, image)


def shown(image: np.ndarray, bands: Sequence[int] | None = None) -> np.ndarray:
    """An image as it is shown, (H, W, 3): these three channels, counted from 1, or one as grey; None: the first."""
    if image.ndim == 2:
        image = image[..., None]
    if bands is not None:
        image = image[..., [band - 1 for band in bands]]
    if image.shape[2] < 3:
        return np.repeat(image[..., :1], 3, axis=2)
    return np.ascontiguousarray(image[..., :3])


def difference(
    image: np.ndarray, truth: np.ndarray, prediction: np.ndarray, palette: Palette = ONE_FOREGROUND
) -> np.ndarray:
    """The greyed `image`, tinted where `prediction` is right and where it is wrong (Palette.marks).

    uint8 (H, W, 3). Ignored pixels of the truth are hatched.
    """
    grey = cv2.cvtColor(shown(image, palette.bands), cv2.COLOR_RGB2GRAY)
    plain = drawn = cv2.cvtColor((70 + grey * 0.6).astype(np.uint8), cv2.COLOR_GRAY2RGB)
    truth, ignored = _split(truth)
    for mark, where in zip(palette.marks, palette.compare(truth, prediction)):
        drawn = _tint(drawn, where, mark.colour, mark.strength)
    return _hatch(drawn, ignored, plain)


def mask_image(mask: np.ndarray, palette: Palette = ONE_FOREGROUND) -> np.ndarray:
    """A mask as an image, uint8 (H, W, 3): black and white, or the colours of classes; ignored pixels hatched grey."""
    mask, ignored = _split(mask)
    return _hatch(palette.paint(mask), ignored, 128)


def grid(masks: np.ndarray, palette: Palette = ONE_FOREGROUND) -> np.ndarray:
    """Masks (N, H, W), eight in a row on grey: one uint8 picture, the one that torchvision's make_grid gives.

    In RGB for classes, else in grey. Ours because importing torchvision takes a second or two.
    """
    count, height, width = masks.shape
    gap, across = 2, min(8, count)
    rows = -(-count // across)
    page = np.full((rows * (height + gap) + gap, across * (width + gap) + gap, palette.channels), 128, np.uint8)
    for index, mask in enumerate(masks):
        row, column = divmod(index, across)
        top, left = gap + row * (height + gap), gap + column * (width + gap)
        page[top : top + height, left : left + width] = mask_image(mask, palette)[..., : palette.channels]
    return page if palette.channels > 1 else page[..., 0]


def outline(mask: np.ndarray) -> np.ndarray:
    """The outermost pixels of the foreground, boolean (H, W); a thicker line on a larger image."""
    mask = np.ascontiguousarray(mask, dtype=np.uint8)
    inner = cv2.erode(mask, np.ones((3, 3), np.uint8), iterations=_thickness(mask.shape))
    return mask > inner


def _thickness(shape: Sequence[int]) -> int:
    """The width of a line in a picture of this (height, width), in pixels."""
    return max(1, round(min(shape) / 180))


def _borders(mask: np.ndarray) -> np.ndarray:
    """Where one class meets another, boolean (H, W): half as thick as an outline on each of the two sides."""
    around, width = np.ones((3, 3), np.uint8), (_thickness(mask.shape) + 1) // 2
    mask = np.ascontiguousarray(mask, dtype=np.uint8)
    return cv2.dilate(mask, around, iterations=width) != cv2.erode(mask, around, iterations=width)


def _split(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """(a mask with 0 where pixels are ignored, where that is as boolean (H, W), or None if nowhere)."""
    mask = np.asarray(mask)
    if mask.max(initial=0) != IGNORED:
        return mask, None
    ignored = mask == IGNORED
    return np.where(ignored, mask.dtype.type(0), mask), ignored


def _hatch(picture: np.ndarray, where: np.ndarray | None, beneath: np.ndarray | int) -> np.ndarray:
    """`picture`, changed in its place: `beneath` with diagonal lines where pixels are ignored.

    Half of the lines are light and half dark, so that they show on anything.
    """
    if where is None:
        return picture
    np.copyto(picture, beneath, where=where[..., None])
    height, width = where.shape
    line = _thickness(where.shape)
    phase = sliding_window_view(np.arange(height + width - 1) // line % 8, width)
    picture[where & (phase == 0)] = 235
    picture[where & (phase == 1)] = 60
    return picture


def _tint(image: np.ndarray, where: np.ndarray, colour: Color, strength: float) -> np.ndarray:
    """`image` moved towards `colour` where the mask `where` is set; a new array."""
    table = np.arange(256)[:, None] * (1 - strength) + np.asarray(colour) * strength
    tinted = cv2.LUT(np.ascontiguousarray(image), table.round().astype(np.uint8)[None])
    return np.where(where.astype(bool)[..., None], tinted, image)


# ---- files


def save_image(path: str | Path, picture: np.ndarray | Image.Image) -> None:
    """Writes an array (uint8 or uint16, (H, W) or uint8 (H, W, 3)) or a PIL image, whole, by `path`'s suffix.

    PNG is packed at its fast level: a tenth of the time, a little more disk.
    """
    image = picture if isinstance(picture, Image.Image) else Image.fromarray(np.ascontiguousarray(picture))
    kind = Image.registered_extensions()[Path(path).suffix.lower()]
    options: dict[str, Any] = {"PNG": {"compress_level": 1}, "JPEG": {"quality": 92}}.get(kind, {})
    write_whole(path, lambda file: image.save(file, format=kind, **options), sync=False)


def save_mask(path: str | Path, mask: np.ndarray, palette: Palette = ONE_FOREGROUND) -> None:
    """Writes a mask (H, W) as a grey picture that load_mask reads: black and white, or the indices of classes."""
    save_image(path, mask * np.uint8(palette.grey_step))


def load_mask(path: str | Path, palette: Palette = ONE_FOREGROUND) -> np.ndarray:
    """The mask (H, W) of a picture that save_mask wrote."""
    grey = np.asarray(decode(path).picture.convert("L"))
    return grey // np.uint8(palette.grey_step)


# ---- sheets


@dataclass(frozen=True)
class Row:
    """A row of a sheet: images side by side, of any sizes."""

    tiles: Sequence[np.ndarray]  # each uint8 (H, W, C) or (H, W)
    title: str = ""  # above the row
    captions: Sequence[str] = ()  # one below each tile


@dataclass(frozen=True)
class Example:
    """One image with its true and its predicted mask, as examples_sheet shows them."""

    image: np.ndarray  # uint8 (H, W, C)
    truth: np.ndarray  # uint8 (H, W)
    prediction: np.ndarray  # uint8 (H, W)
    caption: str = ""

    def shrunk(self) -> Example:
        """The example no larger than a sheet needs it: many photographs would fill the memory."""
        scale = min(1, _SHEET_HEIGHT / self.image.shape[0], 2 * _SHEET_HEIGHT / self.image.shape[1])
        if scale == 1:
            return self
        size = max(1, round(self.image.shape[0] * scale)), max(1, round(self.image.shape[1] * scale))
        image, truth = resize_image(self.image, size), resize_mask(self.truth, size)
        return Example(image, truth, resize_mask(self.prediction, size), self.caption)


def examples_sheet(
    examples: Sequence[Example], title: str | None = None, palette: Palette = ONE_FOREGROUND
) -> Image.Image:
    """A row for each example: the image, its true mask, its predicted one, and where the two differ."""
    rows = []
    for example in examples:
        masks = [mask_image(example.truth, palette), mask_image(example.prediction, palette)]
        compared = difference(example.image, example.truth, example.prediction, palette)
        rows.append(Row([shown(example.image, palette.bands), *masks, compared], example.caption))
    drawn = [example.truth for example in examples] + [example.prediction for example in examples]
    headings = ("image", "truth", "prediction", "difference")
    return sheet(rows, title, headings, palette.difference_legend(drawn))


def overlay_sheet(
    images: Arrays, masks: Arrays, captions: Sequence[str], title: str, palette: Palette = ONE_FOREGROUND
) -> Image.Image:
    """Overlays of the masks on their images, four in a row, a caption under each."""
    tiles = [overlay(image, mask, palette) for image, mask in zip(images, masks)]
    return sheet(_rows_of(tiles, captions, 4), title, legend=palette.legend(masks))


def strip(
    image: np.ndarray,
    truth: np.ndarray,
    predictions: Arrays,
    captions: Sequence[str],
    palette: Palette = ONE_FOREGROUND,
) -> Image.Image:
    """One image and its true mask, then the differences of one prediction after another, five in a row."""
    tiles = [shown(image, palette.bands), overlay(image, truth, palette)]
    tiles += [difference(image, truth, prediction, palette) for prediction in predictions]
    rows = _rows_of(tiles, ["image", "truth", *captions], 5)
    return sheet(rows, legend=palette.difference_legend([truth]))


def _rows_of(tiles: Sequence[np.ndarray], captions: Sequence[str], across: int) -> list[Row]:
    """Rows of `across` tiles with their captions."""
    starts = range(0, len(tiles), across)
    return [Row(tiles[start : start + across], captions=captions[start : start + across]) for start in starts]


def sheet(
    rows: Sequence[Row], title: str | None = None, headings: Sequence[str] = (), legend: Sequence[LegendEntry] = ()
) -> Image.Image:
    """Rows of images on white, as a PIL image: title, headings above the columns, rows, and the legend at the bottom.

    The legend takes as many lines as it needs.
    """
    tiles = [[_tile(tile) for tile in row.tiles] for row in rows]
    # Each column is as wide as its widest tile
    widths = [max(tile.width for tile in column if tile) for column in zip_longest(*tiles)]
    *lefts, right = accumulate(widths, lambda left, width: left + width + MARGIN, initial=MARGIN)
    width = max(right, 320)
    # As high as rows and legend can be; what is not needed is cut off in the end
    height = 2 * _LINE + len(rows) * (TILE_HEIGHT + 2 * _LINE + MARGIN) + len(legend) * _LINE + 4 * MARGIN
    page = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(page)

    top = MARGIN
    if title:
        _write(page, MARGIN, top - 3, title, width - 2 * MARGIN, FONT + 5)
        top += _LINE + 10
    if headings:
        top += _LINE
    for left, column_width, heading in zip(lefts, widths, headings):
        _write(page, left, top - _LINE, heading, column_width, colour=FAINT)
    for row, row_tiles in zip(rows, tiles):
        if row.title:
            _write(page, MARGIN, top, row.title, width - 2 * MARGIN)
            top += _LINE
        for left, tile in zip(lefts, row_tiles):
            draw.rectangle((left - 1, top - 1, left + tile.width, top + tile.height), outline=FRAME)
            page.paste(tile, (left, top))
        for left, column_width, tile, caption in zip(lefts, widths, row_tiles, row.captions):
            _write(page, left, top + tile.height + 2, caption, column_width)
        top += max(tile.height for tile in row_tiles) + MARGIN
        if row.captions:
            top += _LINE
    return page.crop((0, 0, width, _draw_legend(page, top, legend)))


def _draw_legend(page: Image.Image, top: int, legend: Sequence[LegendEntry]) -> int:
    """Draws a legend that begins at `top`, in as many lines as it needs; returns where it ends, its margin included."""
    if not legend:
        return top
    draw, left = ImageDraw.Draw(page), MARGIN
    headings = [entry.text for entry in legend if entry.is_heading]
    indent = max([_fitted(text, page.width)[1] + MARGIN for text in headings], default=0) + MARGIN  # of the swatches
    for entry in legend:
        text, length = _fitted(entry.text, min(14 * FONT, page.width - MARGIN - indent - FONT - 6))
        if left > MARGIN and (entry.is_heading or left + FONT + 6 + length > page.width - MARGIN):
            left, top = indent, top + _LINE
        if entry.is_heading:
            draw.text((MARGIN, top), text, fill=FAINT, font=_font(FONT))
            left = indent
            continue
        if entry.hatched:
            page.paste(Image.fromarray(mask_image(np.full((FONT, FONT), IGNORED, np.uint8))), (left, top + 2))
        draw.rectangle((left, top + 2, left + FONT, top + 2 + FONT), fill=entry.colour, outline=TEXT)
        draw.text((left + FONT + 6, top), text, fill=TEXT, font=_font(FONT))
        left += FONT + 6 + length + 2 * MARGIN
    return top + _LINE + MARGIN


def _tile(array: np.ndarray) -> Image.Image:
    """An array as a PIL image of TILE_HEIGHT, or lower where it would be too wide."""
    array = shown(np.asarray(array))
    height, width = array.shape[:2]
    scale = min(TILE_HEIGHT / height, WIDEST * TILE_HEIGHT / width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    smoothly = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    return Image.fromarray(cv2.resize(array, size, interpolation=smoothly))


def _write(
    page: Image.Image, left: int, top: int, text: str, width: int, size: int = FONT, colour: Color = TEXT
) -> None:
    """Writes `text`, shortened in its middle to `width` pixels."""
    ImageDraw.Draw(page).text((left, top), _fitted(text, width, size)[0], fill=colour, font=_font(size))


def _fitted(text: str, width: int, size: int = FONT) -> tuple[str, int]:
    """(`text`, shortened in its middle to `width` pixels, the width that this takes)."""
    font = _font(size)
    text = _printable(text)
    shown, kept = text, len(text)
    while kept > 4 and font.getlength(shown) > width:
        kept -= 1
        shown = f"{text[: -(-kept // 2)]}...{text[len(text) - kept // 2 :]}"
    return shown, round(font.getlength(shown))


def _printable(text: str) -> str:
    """`text` with a question mark for each character that cannot be drawn; odd file names hold some."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


@cache
def _font(size: int) -> Any:
    from matplotlib import get_data_path  # here, as it takes half a second to load

    file = Path(get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"  # Pillow's own has no accents
    if not file.is_file():
        return ImageFont.load_default(size=size)
    return ImageFont.truetype(file, size)


# ---- curves and the confusion matrix


_LINE_OF = {  # columns of the history
    "loss": dict(label="training", color="#0072b2", linewidth=1.8),
    "val_loss": dict(label="validation", color="#d55e00", linewidth=1.8, linestyle="--"),
    "dice": dict(label="Dice", color="#009e73", linewidth=1.8),
    "iou": dict(label="IoU", color="#56b4e9", linewidth=1.8),
}
_LINE_AMONG_CLASSES = _LINE_OF | {  # whose colours are also those above
    "dice": dict(label="Dice", color="0", linewidth=2.6),
    "iou": dict(label="IoU", color="0.5", linewidth=1.8),
}
Columns = dict[str, np.ndarray]  # of a history, float64 (epochs,); not-a-number where an epoch has none


def draw_curves(history: Sequence[dict[str, Any]], path: str | Path, overlaps: bool = False) -> None:
    """Draws loss and scores by epoch, in two panels, as a picture at `path`.

    history: a dictionary for each epoch, with numbers under `epoch`, `loss` and, where there are some, `val_loss`,
    `dice`, `iou`, `dice_NAME` of each class, and other scores under their names. The best epoch is marked: by
    `dice_nonempty` (the Dice of images that hold something or are predicted to) where there is one, else by `dice`.
    overlaps: whether classes do; none of them has the first colour then, which is the background's (Palette.of).
    """
    columns: Columns = {name: np.array([row.get(name) for row in history], float) for name in history[-1]}
    by_class = [name for name in columns if name.startswith("dice_") and name != "dice_nonempty"]
    panels, width, lines = 11.0, 11.0, _LINE_OF | _lines_of_others(columns)  # inches
    if by_class:
        width, lines = 13.2, _LINE_AMONG_CLASSES  # with their legend beside the panels
    figure, share = _figure(width, 4), panels / width
    figure.subplots_adjust(left=0.065 * share, right=0.985 * share, bottom=0.13, top=0.96, wspace=0.16)
    loss_axes, score_axes = figure.subplots(1, 2)
    marker = "o" if len(history) <= 30 else ""  # more dots would run into each other
    if by_class:
        colours = class_colours()[1:] if overlaps else class_colours()
        _draw_classes(score_axes, columns, dict(zip(by_class, colours)), marker)
    for name, line in lines.items():
        if np.isfinite(columns.get(name, np.nan)).any():
            axes = loss_axes if name in ("loss", "val_loss") else score_axes
            axes.plot(columns["epoch"], columns[name], **{"marker": marker, "markersize": 4} | line)
    _mark_best(score_axes, columns)
    for axes, label in ((loss_axes, "loss"), (score_axes, "score on validation images")):
        _label_axes(axes, label, columns["epoch"])
        if axes.lines:
            axes.legend(frameon=bool(by_class), edgecolor="none", framealpha=0.8, loc="best")
    _save_figure(figure, path)


def _label_axes(axes: Axes, label: str, epochs: np.ndarray) -> None:
    """Names the two axes of a panel, the horizontal one with whole epochs."""
    from matplotlib.ticker import MaxNLocator

    axes.set_xlabel("epoch")
    axes.set_ylabel(label)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=12, integer=True, min_n_ticks=1))
    last = max(epochs.max(), epochs.min() + 2)  # after the first epoch there is room for the legend beside the dots
    axes.set_xlim(epochs.min() - 0.5, last + 0.5)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def _lines_of_others(columns: Columns) -> dict[str, dict[str, Any]]:
    """A thin line for each of METRICS."""
    known = {*_LINE_OF, "epoch", "accuracy", "learning_rate"}
    others = [name for name in columns if name not in known and not name.startswith("dice_")]
    colours = ("#e69f00", "#cc79a7", "0.5", "0.3")
    return {name: dict(label=name, color=colour, linewidth=0.9, marker="") for name, colour in zip(others, colours)}


def _draw_classes(axes: Axes, columns: Columns, colours: dict[str, Color], marker: str) -> None:
    """Draws a thin line for each class, and a legend beside the plot: of all up to NAMED, else of the five worst."""
    names, last = list(colours), []  # the Dice by which the worst are found; a class without any comes last
    for name in names:
        known = columns[name][np.isfinite(columns[name])]
        last.append(known[-1] if len(known) else np.inf)
    named = np.argsort(last, kind="stable")
    title = "Dice by class, worst first"
    if len(names) > NAMED:
        named = named[:5]
        title = f"Dice, the worst {len(named)} of {len(names)} classes"

    lines = []
    for index, (name, own_colour) in enumerate(colours.items()):
        colour: str | list[float] = "0.75"
        order = 1.8
        if index in named:
            # Darker than in masks, as light ones are faint on white
            colour, order = [channel / 255 * 0.85 for channel in own_colour], 1.9
        style: dict[str, Any] = dict(marker=marker, markersize=2, linewidth=0.9, color=colour, zorder=order)
        lines += axes.plot(columns["epoch"], columns[name], **style)
    legend = axes.figure.legend(
        [lines[index] for index in named],
        [_shortened(names[index].removeprefix("dice_")) for index in named],
        title=title,
        loc="upper left",
        bbox_to_anchor=(axes.get_position().x1, axes.get_position().y1),
        frameon=False,
        fontsize=9,
        title_fontsize=9,
        alignment="left",
    )
    for line in legend.get_lines():
        line.set(linewidth=2.5, marker="")


def _mark_best(axes: Axes, columns: Columns) -> None:
    """Draws a ring around the Dice of the epoch that best.pth is from."""
    selection = columns.get("dice_nonempty", columns.get("dice", np.array([np.nan])))
    if np.isnan(selection).all():
        return
    best = int(np.nanargmax(selection))
    epoch, dice = columns["epoch"][best], columns["dice"][best]
    label = f"best: Dice {dice:.4f}, epoch {epoch:.0f}"
    ring: dict[str, Any] = dict(markersize=11, fillstyle="none", color="#d55e00", markeredgewidth=1.8, clip_on=False)
    axes.plot(epoch, dice, "o", label=label, **ring)


def draw_confusion(
    confusion: Sequence[Sequence[int]], names: Sequence[str], path: str | Path, true: Sequence[int] | None = None
) -> None:
    """Draws as what each true class was predicted, as a heat map at `path`.

    confusion: counts of pixels (C, C), rows the true classes, columns the predicted ones; names: C texts. Each row
    is shown in per cent of its sum; that of a class without pixels is grey. true: the pixels of each class, where
    classes overlap, and more than one column may have a pixel.
    """
    from matplotlib import colormaps

    counts = np.asarray(confusion, np.float64)
    totals = counts.sum(axis=1, keepdims=True) if true is None else np.array(true, np.float64)[:, None]
    share = np.ma.masked_invalid(np.divide(100 * counts, totals, out=np.full_like(counts, np.nan), where=totals > 0))
    names = [_shortened(name) for name in names]
    count = len(names)

    # Sizes in inches: of the map, and of the names beside and below it with the words "true" and "predicted"
    side = np.clip(0.42 * count, 2.2, max(8, 0.13 * count))
    letters = min(9, 0.7 * 72 * side / count)  # points
    longest = max(_font(100).getlength(name) for name in names) / 100 * letters / 72  # it is matplotlib's own font
    start = longest + 0.5
    width, height = max(start + side + 1.3, 4.6), start + side + 0.55
    figure = _figure(width, height)

    axes = figure.add_axes((start / width, start / height, side / width, side / height))
    shown = axes.imshow(share, cmap=colormaps["Blues"].with_extremes(bad="0.85"), vmin=0, vmax=100)
    axes.set_xticks(range(count), names, rotation=90, fontsize=letters)
    axes.set_yticks(range(count), names, fontsize=letters)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    axes.set_xticks(np.arange(count - 1) + 0.5, minor=True)  # white lines between the cells
    axes.set_yticks(np.arange(count - 1) + 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=0.8)
    axes.tick_params(which="both", length=0)
    axes.spines[:].set_visible(False)
    if count <= LETTERED:
        for row, column in zip(*np.nonzero(~np.ma.getmaskarray(share))):
            value = share[row, column]
            if value >= 0.5 or row == column:  # what rounds to 0 stands only on the diagonal
                colour = "white" if value > 55 else "0.15"
                axes.text(column, row, f"{value:.0f}", ha="center", va="center", fontsize=9, color=colour)
    axes.set_title("What became of each true class", fontsize=11, loc="left")

    bar_axes = figure.add_axes(((start + side + 0.2) / width, start / height, 0.14 / width, side / height))
    bar = figure.colorbar(shown, cax=bar_axes)
    bar.set_label("% of the true class")
    bar.outline.set_visible(False)
    _save_figure(figure, path)


def _figure(width: float, height: float) -> Figure:
    """A figure of so many inches. Margins are set by hand: matplotlib's layout engines draw everything twice."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    return figure


def _save_figure(figure: Figure, path: str | Path) -> None:
    kind = Path(path).suffix.lower().lstrip(".") or "png"
    options: dict[str, Any] = {}
    if kind == "png":
        options["pil_kwargs"] = {"compress_level": 1}  # a tenth of the time
    write_whole(path, lambda file: figure.savefig(file, format=kind, dpi=110, **options), sync=False)


def _shortened(name: str, most: int = 22) -> str:
    """A class's name of at most `most` letters, for matplotlib, which takes what is between dollars for a formula."""
    name = _printable(name)
    if len(name) > most:
        name = f"{name[: most // 2]}...{name[3 - most // 2 :]}"
    return name.replace("$", r"\$")
