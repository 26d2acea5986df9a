"""Pictures that explain: overlays, differences, sheets of both, and the curves of a run.

Images are uint8 (H, W, 3) in RGB, masks (H, W) of {0, 1}. Nothing here knows networks or folders.
"""

from functools import cache
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from parts.files import write_whole

# Okabe and Ito's colours, which people of every kind of colour vision tell apart
FOREGROUND = (230, 0, 126)  # of overlays; a magenta, rare in photographs
MISSED = (230, 159, 0)  # orange: foreground of the truth that the prediction lacks
INVENTED = (0, 114, 178)  # blue: predicted, and not there
AGREED = (0, 158, 115)  # green: right, lightly tinted
DIFFERENCE_LEGEND = ((MISSED, "missed"), (INVENTED, "invented"), (AGREED, "right"))

TEXT, FAINT, FRAME = (30, 30, 30), (110, 110, 110), (190, 190, 190)
MARGIN = 12  # pixels around and between tiles
TILE_HEIGHT = 240  # pixels
WIDEST = 2.0  # a tile's width over its height, beyond which it is shrunk to fit
FONT = 14  # pixels

CURVE_LABELS = {"dice": "Dice", "iou": "IoU", "loss": "training loss"}
CURVE_COLOURS = {"dice": "#009e73", "iou": "#56b4e9", "loss": "#0072b2", "val_loss": "#d55e00"}


def overlay(image, mask):
    """`image` with the foreground of `mask` tinted and outlined, uint8 (H, W, 3)."""
    out = _tint(image, mask, FOREGROUND, 0.35)
    out[outline(mask)] = FOREGROUND
    return out


def difference(image, truth, prediction):
    """The greyed `image` with what `prediction` missed, invented and got right, uint8 (H, W, 3)."""
    grey = cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_RGB2GRAY)
    out = cv2.cvtColor((70 + grey * 0.6).astype(np.uint8), cv2.COLOR_GRAY2RGB)
    truth, prediction = truth.astype(bool), prediction.astype(bool)
    out = _tint(out, truth & prediction, AGREED, 0.3)
    out = _tint(out, truth & ~prediction, MISSED, 0.9)
    return _tint(out, prediction & ~truth, INVENTED, 0.9)


def outline(mask):
    """The outermost pixels of the foreground, boolean (H, W); a thicker line on a larger image."""
    mask = np.ascontiguousarray(mask, dtype=np.uint8)
    width = max(1, round(min(mask.shape) / 180))
    inner = cv2.erode(mask, np.ones((3, 3), np.uint8), iterations=width)
    return mask > inner


def _tint(image, where, colour, strength):
    """`image` moved towards `colour` where the mask `where` is set; a new array."""
    table = np.arange(256)[:, None] * (1 - strength) + np.asarray(colour) * strength
    tinted = cv2.LUT(np.ascontiguousarray(image), table.round().astype(np.uint8)[None])
    return np.where(where.astype(bool)[..., None], tinted, image)


def mask_image(mask):
    """A mask as an image, uint8 (H, W, 3) of black and white."""
    return np.repeat((np.asarray(mask) > 0).astype(np.uint8)[..., None] * 255, 3, axis=2)


def grid(masks):
    """Masks (N, H, W), eight in a row on grey: one uint8 picture, the one that torchvision's make_grid gives.

    Ours because importing torchvision takes a second or two.
    """
    count, height, width = masks.shape
    gap, across = 2, min(8, count)
    rows, cell = -(-count // across), (height + gap, width + gap)
    page = np.full((rows * cell[0] + gap, across * cell[1] + gap), 128, np.uint8)
    for index, mask in enumerate(masks):
        top, left = (gap + at * side for at, side in zip(divmod(index, across), cell))
        page[top : top + height, left : left + width] = np.where(mask, 255, 0)
    return page


def load_mask(path):
    """The mask {0, 1} of a black-and-white picture that save_image wrote."""
    with Image.open(path) as picture:
        return (np.asarray(picture.convert("L")) > 127).astype(np.uint8)


def save_image(path, picture):
    """Writes an array (uint8 or uint16, (H, W) or uint8 (H, W, 3)) or a PIL image, whole, by `path`'s suffix.

    PNG is packed at its fast level: a tenth of the time, a little more disk.
    """
    if not isinstance(picture, Image.Image):
        picture = Image.fromarray(np.ascontiguousarray(picture))
    kind = Image.registered_extensions()[Path(path).suffix.lower()]
    options = {"PNG": {"compress_level": 1}, "JPEG": {"quality": 92}}.get(kind, {})
    write_whole(path, lambda file: picture.save(file, format=kind, **options), sync=False)


def sheet(tiles, captions=None, title=None, columns=None, legend=()):
    """Rows of images on white, as a PIL image.

    tiles: a list of rows, each a list of arrays, uint8 (H, W, 3) or (H, W), of any sizes
    captions: for each row a text above it, or a list of texts, one under each tile
    columns: headings above the columns
    legend: (colour, text) pairs, explained at the bottom
    """
    rows = [[_tile(tile) for tile in row] for row in tiles]
    captions = captions or [""] * len(rows)
    count = max(map(len, rows), default=0)
    widths = [max(row[c].width for row in rows if c < len(row)) for c in range(count)]
    lefts = (MARGIN + np.cumsum([0] + [width + MARGIN for width in widths])).tolist()
    line = FONT + 8
    page_width = max(lefts[-1], 320)

    above = MARGIN + (line + 10 if title else 0) + (line if columns else 0)
    tall = [max(tile.height for tile in row) + MARGIN for row in rows]
    tall = [height + (line if caption else 0) for height, caption in zip(tall, captions)]
    page = Image.new("RGB", (page_width, above + sum(tall) + (line + MARGIN if legend else 0)), "white")
    draw = ImageDraw.Draw(page)
    if title:
        _write(draw, (MARGIN, MARGIN - 3), title, page_width - 2 * MARGIN, FONT + 5)
    for left, width, heading in zip(lefts, widths, columns or ()):
        _write(draw, (left, above - line), heading, width, FONT, FAINT)
    top = above
    for row, caption, space in zip(rows, captions, tall):
        start = top
        if caption and isinstance(caption, str):
            _write(draw, (MARGIN, top), caption, page_width - 2 * MARGIN)
            start += line
        for index, tile in enumerate(row):
            right, bottom = lefts[index] + tile.width, start + tile.height
            draw.rectangle((lefts[index] - 1, start - 1, right, bottom), outline=FRAME)
            page.paste(tile, (lefts[index], start))
            if not isinstance(caption, str):
                _write(draw, (lefts[index], start + tile.height + 2), caption[index], widths[index])
        top += space
    left = MARGIN
    for colour, text in legend:
        draw.rectangle((left, top + 2, left + FONT, top + 2 + FONT), fill=colour, outline=TEXT)
        left += FONT + 6
        left += _write(draw, (left, top), text, page_width) + 2 * MARGIN
    return page


def examples_sheet(images, truths, predictions, captions, title=None):
    """A row for each image: it, its true mask, its predicted one, and where they differ."""
    tiles = [
        [image, mask_image(truth), mask_image(prediction), difference(image, truth, prediction)]
        for image, truth, prediction in zip(images, truths, predictions)
    ]
    columns = ("image", "truth", "prediction", "difference")
    return sheet(tiles, list(captions), title, columns, DIFFERENCE_LEGEND)


def overlay_sheet(images, masks, captions, title):
    """Overlays of the masks on their images, four in a row, a caption under each."""
    tiles = [overlay(image, mask) for image, mask in zip(images, masks)]
    return sheet(_in_rows(tiles, 4), _in_rows(list(captions), 4), title)


def strip(image, truth, predictions, captions):
    """One image and its true mask, then the differences of one prediction after another."""
    tiles = [image, overlay(image, truth)] + [difference(image, truth, found) for found in predictions]
    texts = ["image", "truth"] + list(captions)
    return sheet(_in_rows(tiles, 5), _in_rows(texts, 5), legend=DIFFERENCE_LEGEND)


def _in_rows(items, across):
    return [items[start : start + across] for start in range(0, len(items), across)]


def _tile(array):
    """An array as a PIL image of TILE_HEIGHT, or lower where it would be too wide."""
    array = np.asarray(array)
    array = np.ascontiguousarray(array if array.ndim == 3 else np.repeat(array[..., None], 3, axis=2))
    scale = min(TILE_HEIGHT / array.shape[0], WIDEST * TILE_HEIGHT / array.shape[1])
    size = [max(1, round(side * scale)) for side in (array.shape[1], array.shape[0])]
    smoothly = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    return Image.fromarray(cv2.resize(array, size, interpolation=smoothly))


def _write(draw, place, text, width, size=FONT, colour=TEXT):
    """Writes `text`, shortened in its middle to `width` pixels; returns the width it took."""
    font = _font(size)
    text = "".join(letter if letter.isprintable() else "?" for letter in text)  # as odd file names may hold
    shown, kept = text, len(text)
    while kept > 4 and font.getlength(shown) > width:
        kept -= 1
        shown = f"{text[: -(-kept // 2)]}...{text[len(text) - kept // 2 :]}"
    draw.text(place, shown, fill=colour, font=font)
    return round(font.getlength(shown))


@cache
def _font(size):
    from matplotlib import get_data_path  # as below: half a second, for what only some runs draw

    file = Path(get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"  # Pillow's own has no accents
    return ImageFont.truetype(file, size) if file.is_file() else ImageFont.load_default(size=size)


def draw_curves(history, path):
    """Loss and scores by epoch, in two panels, as a picture at `path`.

    history: a list of dictionaries, one each epoch, with `epoch` and numbers under names such as `loss`,
    `val_loss`, `dice`, `iou`. The best epoch by Dice is marked.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    epochs = [line["epoch"] for line in history]
    names = list(dict.fromkeys(name for line in history for name in line))
    losses = [name for name in names if name.endswith("loss")]
    scores = [name for name in names if name.endswith(("dice", "iou"))]
    figure = Figure(figsize=(11, 4))  # margins by hand: matplotlib's layout engines draw everything twice
    figure.subplots_adjust(left=0.065, right=0.985, bottom=0.13, top=0.96, wspace=0.16)
    FigureCanvasAgg(figure)
    labels = ("loss", "score on validation images")
    for axes, label, shown in zip(figure.subplots(1, 2), labels, (losses, scores)):
        for name in shown:
            values = [_number(line.get(name)) for line in history]
            axes.plot(
                epochs,
                values,
                label=CURVE_LABELS.get(name, name.replace("_", " ")),
                marker="o" if len(history) <= 30 else None,
                markersize=4,
                linewidth=1.8,
                color=CURVE_COLOURS.get(name),
            )
        axes.set_xlabel("epoch")
        axes.set_ylabel(label)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=12, integer=True, min_n_ticks=1))
        axes.set_xlim(min(epochs) - 0.5, max(epochs) + 0.5)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        if "dice" in shown:
            _mark_best(axes, epochs, [_number(line.get("dice")) for line in history])
        if shown:
            axes.legend(frameon=False, loc="best")
    kind = Path(path).suffix.lower().lstrip(".") or "png"
    fast = {"pil_kwargs": {"compress_level": 1}} if kind == "png" else {}
    write_whole(path, lambda file: figure.savefig(file, format=kind, dpi=110, **fast), sync=False)


def _mark_best(axes, epochs, dice):
    """A ring around the highest Dice, and its number."""
    if np.isnan(dice).all():
        return
    best = int(np.nanargmax(dice))
    axes.plot(
        epochs[best],
        dice[best],
        linestyle="none",
        marker="o",
        markersize=11,
        markerfacecolor="none",
        markeredgecolor="#d55e00",
        markeredgewidth=1.8,
        label=f"best: Dice {dice[best]:.4f}, epoch {epochs[best]}",
    )


def _number(value):
    """`value` as a float, not-a-number where it is none."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return float("nan")
