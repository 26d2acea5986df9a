"""Pictures that explain: overlays, differences, sheets of both, and the curves of a run.

Images are uint8 (H, W, 3) in RGB, masks uint8 (H, W): of {0, 1} for one foreground, of indices of `classes` where
there are any, a list of (colour (r, g, b), name), one a class; IGNORED in both. Nothing here knows networks or folders.
"""

from functools import cache
from pathlib import Path

import cv2
import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from PIL import Image, ImageDraw, ImageFont

from parts.files import write_whole
from parts.images import resize_image
from parts.masks import IGNORED, resize_mask

# Mostly Okabe and Ito's colours, which people of every kind of colour vision tell apart
FOREGROUND = (230, 0, 126)  # of overlays; a magenta, rare in photographs
MISSED = (230, 159, 0)  # orange: foreground of the truth that the prediction lacks
INVENTED = (0, 114, 178)  # blue: predicted, and not there
AGREED = (0, 158, 115)  # green: right, lightly tinted
WRONG = (255, 110, 0)  # orange: another class than the true one
DIFFERENCE_LEGEND = ((MISSED, "missed"), (INVENTED, "invented"), (AGREED, "right"))
CLASSES_LEGEND = ((WRONG, "wrong class"), (AGREED, "right"))
HATCHED = "hatched"  # in a legend, in a colour's place


# Of classes: first a dark slate, as the first one is mostly background, then Okabe and Ito's without black,
# those first that are rare in photographs
FIRST_COLOURS = (
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
TEXT, FAINT, FRAME = (30, 30, 30), (110, 110, 110), (190, 190, 190)
MARGIN = 12  # pixels around and between tiles
TILE_HEIGHT = 240  # pixels
WIDEST = 2.0  # a tile's width over its height, beyond which it is shrunk to fit
FONT = 14  # pixels
NAMED = 12  # classes of a run's curves that are all named beside them
LETTERED = 16  # classes of a confusion matrix that has numbers in its cells
CURVE_LABELS = {"dice": "Dice", "iou": "IoU", "loss": "training loss"}
CURVE_COLOURS = {"dice": "#009e73", "iou": "#56b4e9", "loss": "#0072b2"}


def classes_of(mask_rule):
    """The (colour, name) of each class of a MaskRule, or None for one foreground (no rule: likewise).

    The colours are those of the masks where they have some that the eye tells apart, else the palette's.
    """
    if mask_rule is None or not mask_rule.classes:
        return None
    own = np.array(mask_rule.colours, np.int64)[:, None] >> (16, 8, 0) & 255
    if len(own):
        apart = np.abs(own[:, None] - own).max(axis=2)
        np.fill_diagonal(apart, 255)
    colours = own.tolist() if len(own) and apart.min() >= APART else palette()
    return [(tuple(colour), name) for colour, name in zip(colours, mask_rule.names)]


@cache
def palette():
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


def overlay(image, mask, classes=None):
    """`image` with the foreground of `mask`, or every class, tinted and outlined, ignored pixels hatched.

    uint8 (H, W, 3).
    """
    mask, ignored = _split(mask)
    if classes:
        colours = _painted(mask, classes)
        out = cv2.addWeighted(np.ascontiguousarray(image), 0.55, colours, 0.45, 0)
        edges = _borders(mask)
        out[edges] = colours[edges]
    else:
        out = _tint(image, mask, FOREGROUND, 0.35)
        out[outline(mask)] = FOREGROUND
    return out if ignored is None else _hatch(out, ignored, image)


def difference(image, truth, prediction, classes=None):
    """The greyed `image` with what `prediction` got right and wrong (one foreground: missed, or invented).

    uint8 (H, W, 3). Ignored pixels of the truth are hatched.
    """
    grey = cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_RGB2GRAY)
    plain = out = cv2.cvtColor((70 + grey * 0.6).astype(np.uint8), cv2.COLOR_GRAY2RGB)
    truth, ignored = _split(truth)
    if classes:
        out = _tint(out, truth == prediction, AGREED, 0.3)
        out = _tint(out, truth != prediction, WRONG, 0.9)
    else:
        truth, prediction = truth.astype(bool), prediction.astype(bool)
        out = _tint(out, truth & prediction, AGREED, 0.3)
        out = _tint(out, truth & ~prediction, MISSED, 0.9)
        out = _tint(out, prediction & ~truth, INVENTED, 0.9)
    return out if ignored is None else _hatch(out, ignored, plain)


def outline(mask):
    """The outermost pixels of the foreground, boolean (H, W); a thicker line on a larger image."""
    mask = np.ascontiguousarray(mask, dtype=np.uint8)
    inner = cv2.erode(mask, np.ones((3, 3), np.uint8), iterations=_thickness(mask.shape))
    return mask > inner


def _thickness(shape):
    """The width of a line in a picture of this (height, width), in pixels."""
    return max(1, round(min(shape) / 180))


def _borders(mask):
    """Where one class meets another, boolean (H, W): half as thick as an outline on each of the two sides."""
    around, width = np.ones((3, 3), np.uint8), (_thickness(mask.shape) + 1) // 2
    mask = np.ascontiguousarray(mask, dtype=np.uint8)
    return cv2.dilate(mask, around, iterations=width) != cv2.erode(mask, around, iterations=width)


def _split(mask):
    """(a mask with 0 where pixels are ignored, where that is as boolean (H, W), or None if nowhere)."""
    mask = np.asarray(mask)
    if mask.max(initial=0) != IGNORED:
        return mask, None
    ignored = mask == IGNORED
    return np.where(ignored, mask.dtype.type(0), mask), ignored


def _hatch(picture, where, beneath):
    """`picture`, changed: `beneath` with diagonal lines, half light and half dark so that they show on anything."""
    np.copyto(picture, beneath, where=where[..., None])
    height, width = where.shape
    line = _thickness(where.shape)
    phase = sliding_window_view(np.arange(height + width - 1) // line % 8, width)
    picture[where & (phase == 0)] = 235
    picture[where & (phase == 1)] = 60
    return picture


def _painted(mask, classes):
    """The colours of classes, uint8 (H, W, 3)."""
    table = np.zeros((1, 256, 3), np.uint8)
    table[0, : len(classes)] = [colour for colour, _ in classes]
    return cv2.LUT(cv2.cvtColor(np.ascontiguousarray(mask, dtype=np.uint8), cv2.COLOR_GRAY2RGB), table)


def _tint(image, where, colour, strength):
    """`image` moved towards `colour` where the mask `where` is set; a new array."""
    table = np.arange(256)[:, None] * (1 - strength) + np.asarray(colour) * strength
    tinted = cv2.LUT(np.ascontiguousarray(image), table.round().astype(np.uint8)[None])
    return np.where(where.astype(bool)[..., None], tinted, image)


def mask_image(mask, classes=None):
    """A mask as an image, uint8 (H, W, 3): black and white, or the colours of classes; ignored pixels hatched grey."""
    mask, ignored = _split(mask)
    if classes:
        out = _painted(mask, classes)
    else:
        out = np.repeat((mask > 0).astype(np.uint8)[..., None] * 255, 3, axis=2)
    return out if ignored is None else _hatch(out, ignored, 128)


def grid(masks, classes=None):
    """Masks (N, H, W), eight in a row on grey: one uint8 picture, the one that torchvision's make_grid gives.

    In RGB for classes. Ours because importing torchvision takes a second or two.
    """
    count, height, width = masks.shape
    gap, across = 2, min(8, count)
    rows, cell = -(-count // across), (height + gap, width + gap)
    page = np.full((rows * cell[0] + gap, across * cell[1] + gap, *([3] if classes else [])), 128, np.uint8)
    for index, mask in enumerate(masks):
        top, left = (gap + at * side for at, side in zip(divmod(index, across), cell))
        shown = mask_image(mask, classes)
        page[top : top + height, left : left + width] = shown if classes else shown[..., 0]
    return page


def load_mask(path, classes=None):
    """The mask (H, W) of a picture that save_image wrote: of {0, 1} where it is black and white, or of classes."""
    with Image.open(path) as picture:
        grey = np.asarray(picture.convert("L"))
    return grey if classes else (grey > 127).astype(np.uint8)


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
    legend: (colour or HATCHED, text) pairs, explained at the bottom in as many lines as they need; where the colour
        is None, a new line begins with the text
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
    entries, below = _lay_out(legend, page_width)
    page = Image.new("RGB", (page_width, above + sum(tall) + below), "white")
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
    _explain(page, entries, top)
    return page


def legend_of(masks, classes=None):
    """The (colour, name) of each class that these masks hold, for `sheet`; and what is hatched, if anything is."""
    entries = []
    if classes:
        held = sum((np.bincount(np.ravel(mask), minlength=256) for mask in masks), np.zeros(256, int))
        entries = [entry for index, entry in enumerate(classes) if held[index]]
    return entries + [(HATCHED, "ignored")] * any(np.max(mask, initial=0) == IGNORED for mask in masks)


def examples_sheet(images, truths, predictions, captions, title=None, classes=None):
    """A row for each image: it, its true mask, its predicted one, and where they differ."""
    tiles = [
        [image, mask_image(truth, classes), mask_image(found, classes), difference(image, truth, found, classes)]
        for image, truth, found in zip(images, truths, predictions)
    ]
    columns = ("image", "truth", "prediction", "difference")
    return sheet(tiles, list(captions), title, columns, _difference_legend([*truths, *predictions], classes))


def overlay_sheet(images, masks, captions, title, classes=None):
    """Overlays of the masks on their images, four in a row, a caption under each."""
    tiles = [overlay(image, mask, classes) for image, mask in zip(images, masks)]
    return sheet(_in_rows(tiles, 4), _in_rows(list(captions), 4), title, legend=legend_of(masks, classes))


def strip(image, truth, predictions, captions, classes=None):
    """One image and its true mask, then the differences of one prediction after another."""
    tiles = [image, overlay(image, truth, classes)]
    tiles += [difference(image, truth, found, classes) for found in predictions]
    texts = ["image", "truth"] + list(captions)
    return sheet(_in_rows(tiles, 5), _in_rows(texts, 5), legend=_difference_legend([truth], classes))


def _difference_legend(masks, classes):
    """What the colours of `difference` mean, and those of the masks beside it."""
    if not classes:
        return [*DIFFERENCE_LEGEND, *legend_of(masks)]
    return [(None, "masks:"), *legend_of(masks, classes), (None, "difference:"), *CLASSES_LEGEND, *legend_of(masks)]


def _lay_out(legend, width):
    """([(x, y, colour, text)], height) of a legend in lines of `width` pixels."""
    entries, left, top = [], MARGIN, 0
    for colour, text in legend:
        text, long = _fitted(text, min(14 * FONT, width - 2 * MARGIN - FONT - 6))
        long += 0 if colour is None else FONT + 6
        if left > MARGIN and (colour is None or left + long > width - MARGIN):
            left, top = MARGIN, top + FONT + 8
        entries.append((left, top, colour, text))
        left += long + 2 * MARGIN
    return entries, top + FONT + 8 + MARGIN if entries else 0


def _explain(page, entries, top):
    """Draws the `entries` of _lay_out on a PIL image, below `top`."""
    draw = ImageDraw.Draw(page)
    for left, down, colour, text in entries:
        place = (left, top + down + 2, left + FONT, top + down + 2 + FONT)
        if colour == HATCHED:
            swatch = mask_image(np.full((FONT, FONT), IGNORED, np.uint8))
            page.paste(Image.fromarray(swatch), place[:2])
        if colour is None:
            draw.text((left, top + down), text, fill=FAINT, font=_font(FONT))
            continue
        draw.rectangle(place, fill=None if colour == HATCHED else tuple(colour), outline=TEXT)
        draw.text((left + FONT + 6, top + down), text, fill=TEXT, font=_font(FONT))


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
    """Writes `text`, shortened in its middle to `width` pixels."""
    draw.text(place, _fitted(text, width, size)[0], fill=colour, font=_font(size))


def _fitted(text, width, size=FONT):
    """(`text`, shortened in its middle to `width` pixels, the width that it takes)."""
    font = _font(size)
    text = _printable(text)
    shown, kept = text, len(text)
    while kept > 4 and font.getlength(shown) > width:
        kept -= 1
        shown = f"{text[: -(-kept // 2)]}...{text[len(text) - kept // 2 :]}"
    return shown, round(font.getlength(shown))


def _printable(text):
    """`text` without what odd file names may hold."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


@cache
def _font(size):
    from matplotlib import get_data_path  # as below: half a second, for what only some runs draw

    file = Path(get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"  # Pillow's own has no accents
    return ImageFont.truetype(file, size) if file.is_file() else ImageFont.load_default(size=size)


def draw_curves(history, path):
    """Loss and scores by epoch, in two panels, as a picture at `path`.

    history: a list of dictionaries, one each epoch, with numbers under `epoch`, `loss` and, where there are some,
    `dice`, `iou` and `dice_NAME` of each class. The best epoch is marked: by `dice_nonempty` (the Dice
    of images that hold something or are predicted to) where there is one, else by `dice`.
    """
    from matplotlib.ticker import MaxNLocator

    epochs = [line["epoch"] for line in history]
    losses, scores = ["loss"], [name for name in ("dice", "iou") if name in history[-1]]
    by_class = [name for name in history[-1] if name.startswith("dice_") and name != "dice_nonempty"]
    colours = CURVE_COLOURS | ({"dice": "0", "iou": "0.5"} if by_class else {})  # theirs are colours of classes too
    wide = 11 + 2.2 * bool(by_class)
    part = 11 / wide  # the rest is for the classes' legend
    figure = _figure(wide, 4)
    figure.subplots_adjust(left=0.065 * part, right=0.985 * part, bottom=0.13, top=0.96, wspace=0.16)
    labels = ("loss", "score on validation images")
    for axes, label, shown in zip(figure.subplots(1, 2), labels, (losses, scores)):
        if label != "loss" and by_class:
            _draw_classes(axes, epochs, history, by_class)
        for name in shown:
            values = [_number(line.get(name)) for line in history]
            axes.plot(
                epochs,
                values,
                label=CURVE_LABELS[name],
                marker="o" if len(history) <= 30 else None,
                markersize=4,
                linewidth=2.6 if by_class and name == "dice" else 1.8,
                color=colours[name],
            )
        axes.set_xlabel("epoch")
        axes.set_ylabel(label)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=12, integer=True, min_n_ticks=1))
        axes.set_xlim(min(epochs) - 0.5, max(epochs) + 0.5)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        if "dice" in shown:
            _mark_best(axes, epochs, history)
        if shown:
            axes.legend(frameon=bool(by_class), edgecolor="none", framealpha=0.8, loc="best")
    _save_figure(figure, path)


def _draw_classes(axes, epochs, history, names):
    """A thin line for each class, and a legend beside the plot: of all up to NAMED, else of the five worst."""
    rows = np.array([[_number(line.get(name)) for line in history] for name in names])
    known = [row[np.isfinite(row)] for row in rows]
    last = np.array([row[-1] if len(row) else np.inf for row in known])
    worst = np.argsort(last, kind="stable")
    named = worst if len(names) <= NAMED else worst[:5]
    handles = {}
    for index, (row, colour) in enumerate(zip(rows, palette())):
        colour = [part / 255 * 0.85 for part in colour] if index in named else "0.75"  # light ones are faint on white
        (handles[index],) = axes.plot(
            epochs,
            row,
            marker="o" if len(history) <= 30 else None,
            markersize=2,
            linewidth=0.9,
            color=colour,
            zorder=1.9 if index in named else 1.8,
        )
    scores = ["none" if np.isinf(last[i]) else f"{last[i]:.3f}" for i in named]
    texts = [f"{score}  {_shortened(names[i].removeprefix('dice_'))}" for score, i in zip(scores, named)]
    title = f"Dice by class, epoch {epochs[-1]}"
    title += "" if len(named) == len(names) else f":\nthe worst {len(named)} of {len(names)}"
    beside = axes.figure.legend(
        [handles[i] for i in named],
        texts,
        title=title,
        loc="upper left",
        bbox_to_anchor=(axes.get_position().x1, axes.get_position().y1),
        frameon=False,
        fontsize=9,
        title_fontsize=9,
        alignment="left",
    )
    for line in beside.get_lines():
        line.set(linewidth=2.5, marker="")


def draw_confusion(confusion, names, path):
    """What became of each true class, as a heat map at `path`.

    confusion: counts of pixels (C, C), rows the true classes, columns the predicted ones; names: C texts. Each row
    is shown in per cent of its sum; that of a class without pixels is grey.
    """
    from matplotlib import colormaps

    counts = np.asarray(confusion, np.float64)
    totals = counts.sum(axis=1, keepdims=True)
    share = np.ma.masked_invalid(np.divide(100 * counts, totals, out=np.full_like(counts, np.nan), where=totals > 0))
    names = [_shortened(name) for name in names]
    count = len(names)
    side = np.clip(0.42 * count, 2.2, max(8, 0.13 * count))  # inches; of the map
    letters = min(9, 0.7 * 72 * side / count)
    long = max(_font(100).getlength(name) for name in names) / 100 * letters / 72  # it is matplotlib's own font
    start = long + 0.5  # inches: the names beside and below the map, and the words "true" and "predicted"
    wide, high = max(start + side + 1.3, 4.6), start + side + 0.55
    figure = _figure(wide, high)
    axes = figure.add_axes([start / wide, start / high, side / wide, side / high])
    shown = axes.imshow(share, cmap=colormaps["Blues"].with_extremes(bad="0.85"), vmin=0, vmax=100)
    axes.set_xticks(range(count), names, rotation=90, fontsize=letters)
    axes.set_yticks(range(count), names, fontsize=letters)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    axes.set_xticks(np.arange(count - 1) + 0.5, minor=True)
    axes.set_yticks(np.arange(count - 1) + 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=0.8)
    axes.tick_params(which="both", length=0)
    axes.spines[:].set_visible(False)
    if count <= LETTERED:
        for row, column in zip(*np.nonzero(~np.ma.getmaskarray(share))):
            value = share[row, column]
            if value >= 0.5 or row == column:
                colour = "white" if value > 55 else "0.15"
                axes.text(column, row, f"{value:.0f}", ha="center", va="center", fontsize=9, color=colour)
    beside = figure.add_axes([(start + side + 0.2) / wide, start / high, 0.14 / wide, side / high])
    bar = figure.colorbar(shown, cax=beside)
    bar.set_label("% of the true class")
    bar.outline.set_visible(False)
    axes.set_title("What became of each true class", fontsize=11, loc="left")
    _save_figure(figure, path)


def _figure(width, height):
    """A figure of so many inches. Margins are set by hand: matplotlib's layout engines draw everything twice."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    return figure


def _save_figure(figure, path):
    kind = Path(path).suffix.lower().lstrip(".") or "png"
    fast = {"pil_kwargs": {"compress_level": 1}} if kind == "png" else {}
    write_whole(path, lambda file: figure.savefig(file, format=kind, dpi=110, **fast), sync=False)


def _mark_best(axes, epochs, history):
    """A ring around the Dice of the epoch that best.pth is from, and its numbers."""
    dice, chosen = (
        np.array([_number(line.get(name, line.get("dice"))) for line in history]) for name in ("dice", "dice_nonempty")
    )
    if np.isnan(chosen).all():
        return
    best = int(np.nanargmax(chosen))
    label = f"best: Dice {dice[best]:.4f}, epoch {epochs[best]}"
    if chosen[best] != dice[best]:
        label = f"{label},\nby {chosen[best]:.4f} of images that are not empty"
    axes.plot(
        epochs[best],
        dice[best],
        linestyle="none",
        marker="o",
        markersize=11,
        markerfacecolor="none",
        markeredgecolor="#d55e00",
        markeredgewidth=1.8,
        label=label,
    )


def _shortened(name, most=18):
    """A class's name of at most `most` letters, for matplotlib, which takes what is between dollars for a formula."""
    name = _printable(name)
    name = name if len(name) <= most else f"{name[: most // 2]}...{name[3 - most // 2 :]}"
    return name.replace("$", r"\$")


def _number(value):
    """`value` as a float, not-a-number where it is none."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return float("nan")


_SHEET_HEIGHT = 4 * TILE_HEIGHT  # at which images are kept for a sheet: what is thin shows faintly there


def for_sheet(image, *masks):
    """An image (H, W, 3) and masks (H, W) of it, no larger than their sheet needs: photographs would fill memory."""
    scale = min(1, _SHEET_HEIGHT / image.shape[0], 2 * _SHEET_HEIGHT / image.shape[1])
    size = tuple(max(1, round(side * scale)) for side in image.shape[:2])
    return (resize_image(image, size), *(resize_mask(mask, size) for mask in masks)) if scale < 1 else (image, *masks)
