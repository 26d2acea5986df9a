"""What a mask's pixels mean: what each file holds, one rule for the whole dataset, and the mask in memory by it.

In memory a mask is uint8 (H, W): {0, 1} for one foreground, indices 0 ... C-1 for C classes; IGNORED is a pixel that
is neither trained on nor scored.
Grey values, indices of a palette and colours are told apart, never guessed: what could be read in two ways is
refused in words that say what to do.
"""

from collections import Counter
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

import cv2
import numpy as np
from PIL import Image

from parts.errors import UnusableFile, UserError, list_files, printable
from parts.images import decode, resize_image, rgb
from parts.spec import ALPHA

if TYPE_CHECKING:
    import torch

NUMBERS, COLOURS = "numbers", "colours"
IGNORED = 255  # in memory; no class has this index
MOST = 254  # classes
MANY = 256  # colours of one file that are listed
VOID = 0xE0E0C0  # PASCAL VOC's colour for what has no label
_UNKNOWN = 254  # in memory, until it is refused: a value that the rule does not know


# ---- what a file holds


@dataclass(frozen=True)
class Observation:
    """What was seen in one mask. Plain values only, so that it pickles and goes into JSON.

    `counts`: [value, pixels] of each value, of the MANY most frequent colours; colours are 0xRRGGBB.
    `thick`: the same of those pixels whose eight neighbours are equal to them, which those of a soft edge are not.
    `slopes`: how many pixels lie, in their row, between a lower and a higher neighbour, and how many values those have.
    `alpha`: [alpha, pixels] where there is an alpha channel; `hidden`: it tells pixels of one colour apart.
    """

    path: str
    kind: str
    counts: list
    thick: list
    slopes: list
    palette: list | None  # [index, 0xRRGGBB] of the used indices, where a colour palette was read by index
    lossy: bool
    size: list  # height, width
    mode: str
    frames: bool
    alpha: list | None
    hidden: bool


def observe_mask(path, page=0):
    """The Observation of a mask file. UnusableFile."""
    decoded = decode(path, page=page)
    kind, array, palette = values_of(decoded, path)
    values = array if kind == NUMBERS else pack(array)
    counts = count_values(values)
    thick, slopes = counts, [0, 0]
    if len(counts) > 2:
        amid = _amid_equals(array)
        slopes = _slopes(values)
        thick = count_values(values[amid if kind == NUMBERS else amid.all(axis=2)])
    if kind == COLOURS:
        counts = sorted(sorted(counts, key=lambda it: -it[1])[:MANY])
        kept = {value for value, _ in counts}
        thick = [it for it in thick if it[0] in kept]
    if palette is not None:
        palette = [[index, palette[index]] for index, _ in counts]
    lossy = decoded.format in ("JPEG", "MPO", "WEBP", "AVIF", "JPEG2000") and not _is_lossless_webp(path)
    size, mode = list(array.shape[:2]), decoded.picture.mode
    alpha = alpha_of(decoded.picture)
    alpha = alpha if alpha is None else count_values(alpha)
    cut_out = kind == COLOURS and len(counts) == MANY and alpha is not None and len(alpha) > 1  # a photograph's colours
    hidden = cut_out or _alpha_tells(decoded.picture)
    return Observation(
        str(path), kind, counts, thick, slopes, palette, lossy, size, mode, decoded.frames, alpha, hidden
    )


def alpha_fault(seen, foreground=None):
    """The UnusableFile that an observed mask is by what it has, or lacks, of an alpha channel, else None."""
    if foreground == ALPHA and seen.alpha is None:
        return UnusableFile(
            seen.path,
            'has no alpha channel, which MASK_FOREGROUND = "alpha" takes for the mask',
            "Save it with transparency, or set MASK_FOREGROUND to what is foreground",
        )
    return _hidden_in_alpha(seen.path) if seen.hidden and foreground != ALPHA else None


def _hidden_in_alpha(path):
    return UnusableFile(
        path,
        "is transparent in places where its colours do not say so, so the mask may be in its alpha channel",
        'If it is, set MASK_FOREGROUND = "alpha" (--mask-foreground alpha). Else save it without transparency, '
        "foreground white on black",
    )


def values_of(decoded, path):
    """(NUMBERS, array (H, W), colours of a palette or None) or (COLOURS, array (H, W, 3) uint8, None) of a Decoded.

    Greys are their grey values in whatever way they were saved, a colour palette its indices.
    """
    picture = decoded.picture
    if ";16" in decoded.raw and picture.mode in ("RGB", "RGBA", "LA"):
        raise UnusableFile(path, "has 16 bits in each of several channels", "Save it as grey, or with 8 bits")
    if picture.mode == "1":
        picture = picture.convert("L")
    if picture.mode == "L":
        return NUMBERS, np.asarray(picture), None
    if picture.mode == "F" or picture.mode.startswith("I"):
        return NUMBERS, _whole_numbers(np.asarray(picture), path), None
    if picture.mode == "P":
        return _palette_values(picture)
    if picture.mode == "PA":
        return _palette_values(picture.convert("P"))
    colours = rgb(picture, path)
    if (colours == colours[..., :1]).all():
        return NUMBERS, np.ascontiguousarray(colours[..., 0]), None
    return COLOURS, colours, None


def colours_of(decoded, path):
    """The mask as colours, uint8 (H, W, 3), whatever it was saved as."""
    picture = decoded.picture
    if picture.mode.startswith("I"):  # as _as_colours has them
        values = np.minimum(_whole_numbers(np.asarray(picture), path), 255).astype(np.uint8)
        return np.repeat(values[..., None], 3, axis=2)
    return rgb(picture, path)


def _whole_numbers(array, path):
    cure = "Save it with whole numbers from 0 to 255"
    if array.dtype.kind == "f":
        if not (np.isfinite(array).all() and (array == np.floor(array)).all()):
            raise UnusableFile(path, "has fractions or infinite values", cure)
        array = np.clip(array, -1, 2**31 - 256).astype(np.int32)
    if array.min() < 0:
        raise UnusableFile(path, "has negative values", cure)
    if array.max() < 65536:
        array = array.astype(np.uint16)
    return array


def _palette_values(picture):
    indices = np.asarray(picture)
    entries = np.array(picture.getpalette("RGB") or [], np.int32).reshape(-1, 3)
    used = [index for _, index in picture.getcolors()]
    if max(used) < len(entries):
        colours = (entries @ [65536, 256, 1]).tolist()
        grey = (entries == entries[:, :1]).all()
        if grey and len({colours[index] for index in used}) == len(used):
            table = np.zeros(256, np.uint8)
            table[: len(entries)] = entries[:256, 0]
            return NUMBERS, cv2.LUT(np.ascontiguousarray(indices), table), None
        if not grey:
            return NUMBERS, indices, dict(enumerate(colours))
    return NUMBERS, indices, None


def alpha_of(picture):
    """The alpha channel of a PIL image, uint8 (H, W), or None where there is none."""
    if picture.mode in ("LA", "RGBA", "PA"):
        return np.asarray(picture.getchannel("A"))
    if picture.mode == "RGBa" or "transparency" in picture.info:
        return np.asarray(picture.convert("RGBA").getchannel("A"))
    return None


def _alpha_tells(picture):
    """Whether transparency says more than the colours do; it may repeat what they say."""
    if picture.mode not in ("LA", "RGBA", "PA", "RGBa"):
        return False
    array = np.asarray(picture.convert("RGBA"))
    if array[..., 3].min() == array[..., 3].max():
        return False
    colours = pack(array[..., :3])
    both = colours.astype(np.int64) << 8 | array[..., 3]
    return len(np.unique(both)) > len(np.unique(colours))


def _is_lossless_webp(path):
    with open(path, "rb") as file:
        head = file.read(64)
    return head[8:12] == b"WEBP" and b"VP8L" in head  # RFC 9649, section 2.6


def count_values(array):
    """[value, pixels] of each value of an array of whole numbers, ascending; 16 bits come in steps if very many."""
    if array.dtype not in (np.uint8, np.uint16):
        return np.stack(np.unique(array, return_counts=True), axis=1).tolist()
    counts = np.bincount(array.ravel())
    if np.count_nonzero(counts) > 4096:  # 257 v is what 8 bits v become in 16
        counts = np.bincount((array.ravel() >> 8).astype(np.int32) * 257)
    values = np.flatnonzero(counts)
    return np.stack([values, counts[values]], axis=1).tolist()


def _amid_equals(array):
    """Where all eight neighbours have a pixel's own value."""
    if array.dtype == np.int32:
        array = array.astype(np.float64)  # OpenCV's morphology knows no int32
    square = np.ones((3, 3), np.uint8)
    return cv2.erode(array, square) == cv2.dilate(array, square)


def _slopes(values):
    """[pixels, values] of what lies between a lower and a higher neighbour, left and right of it.

    Edges that compression or smoothing has blurred are made of these; between areas of classes they are rare:
    0.5 % at most of the pixels that are not thick in CamVid's masks, over 4 % after JPEG of quality 95.
    """
    step = max(1, len(values) // 128)  # rows looked at; the share is the same
    rows = values[::step]
    up, down = rows[:, 1:] > rows[:, :-1], rows[:, 1:] < rows[:, :-1]
    between = rows[:, 1:-1][(up[:, 1:] & up[:, :-1]) | (down[:, 1:] & down[:, :-1])]
    return [len(between) * step, len(count_values(between))]


def pack(colours):
    """(H, W, 3) uint8 -> (H, W) int32 of 0xRRGGBB."""
    red, green, blue = (colours[..., channel].astype(np.int32) for channel in range(3))
    return red << 16 | green << 8 | blue


# ---- what the values mean in all masks


@dataclass(frozen=True)
class MaskRule:
    """Which values are foreground, or which class.

    `kind`: "numbers" (grey values, indices of a colour palette), "colours" (0xRRGGBB) or "alpha".
    `soft`: there is one value on each side, and what lies between goes to the nearer one.
    `rest`: every other value is background (MASK_FOREGROUND), or foreground where none is listed; without it,
    another value is an error.
    `ignored`: the values that become IGNORED, whatever else is said of them.
    `classes`: the value of each class, in their order; `background` and `foreground` are () then. `names`: a text for
    each, the value in words where none was given. `colours`: 0xRRGGBB of each where the masks have them, else ().
    """

    kind: str = NUMBERS
    background: tuple = (0,)
    foreground: tuple = (255,)
    soft: bool = False
    rest: bool = False
    ignored: tuple = ()
    classes: tuple = ()
    names: tuple = ()
    colours: tuple = ()

    @property
    def has_classes(self) -> bool:
        """Whether there are several classes; otherwise there is one foreground."""
        return bool(self.classes)

    @property
    def channels(self) -> int:
        """The number of output channels of a network for these masks: 1 for one foreground, or one per class."""
        return len(self.classes) or 1

    @property
    def num_labels(self) -> int:
        """The number of labels of a mask in memory without IGNORED: 2 for one foreground, or one per class."""
        return len(self.classes) or 2

    @property
    def label_names(self) -> tuple[str, ...]:
        """The name of each label: those of the classes, or background and foreground."""
        return self.names if self.has_classes else ("background", "foreground")

    def labels_of(self, logits: "torch.Tensor") -> "torch.Tensor":
        """The predicted labels, uint8 (N, 1, H, W), of logits (N, channels, H, W)."""
        if self.has_classes:
            return logits.argmax(1, keepdim=True).byte()
        return (logits > 0).byte()

    @property
    def labels(self):
        """Whether masks in memory hold more than {0, 1}."""
        return bool(self.classes or self.ignored)

    def to_dict(self):
        """Plain types, for JSON and checkpoints."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, plain):
        return cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in plain.items()})

    def describe(self):
        """The rule in a line of words."""
        if not self.ignored:
            return self._sides()
        verb = "is" if len(self.ignored) == 1 else "are"
        return f"{self._sides()}; {list_values(self.ignored, self.kind)} {verb} ignored"

    def _sides(self):
        if self.kind == ALPHA:
            return "what is more than half opaque (alpha) is foreground, the rest is background"
        if self.classes:
            values = [name_value(value, self.kind) for value in self.classes]
            parts = [value if value == name else f"{value} {name}" for value, name in zip(values, self.names)]
            more = f" and {len(parts) - 12} more" if len(parts) > 12 else ""
            return f"there are {len(parts)} classes: {', '.join(parts[:12])}{more}"
        one, other = (list_values(side, self.kind) for side in (self.foreground, self.background))
        if self.soft:
            return f"{one} is foreground, {other} is background, values between are cut at the middle"
        if not self.foreground:
            return f"every value but {other} is foreground"
        return f"{one} is foreground, {'every other value' if self.rest else other} is background"


def as_colours(seen):
    """An Observation whose values are colours, whatever they were."""
    if seen.kind == COLOURS:
        return seen
    colours = dict(seen.palette) if seen.palette else {value: min(value, 255) * 0x010101 for value, _ in seen.counts}
    counts, thick = Counter(), Counter()
    for counter, part in ((counts, seen.counts), (thick, seen.thick)):
        for value, pixels in part:
            counter[colours[value]] += pixels  # a palette may hold one colour twice
    return replace(seen, kind=COLOURS, counts=sorted(counts.items()), thick=sorted(thick.items()))


def list_values(values, kind):
    return ", ".join(name_value(value, kind) for value in values)


def name_value(value, kind):
    """A value as a user would write it in MASK_FOREGROUND."""
    return f"0x{value:06X}" if kind == COLOURS else str(value)


# ---- masks in memory


def read_mask(path, mask_rule, size=None, page=0):
    """The mask in a file, uint8 (H, W) as rule.labels says, upright, at `size` = (height, width) if given.

    `path` may be a tuple of files: foreground is what any of them has as foreground, ignored what else any ignores.
    UnusableFile: it cannot be decoded, or holds a value that `mask_rule` does not know; files of different sizes.
    """
    if isinstance(path, tuple):
        mask = _united(path, mask_rule, page)
        return mask if size is None else resize_mask(mask, size)
    decoded = decode(path, page=page)
    if mask_rule.kind == ALPHA:
        alpha = alpha_of(decoded.picture)
        if alpha is None:
            raise _unknown(path, "has no alpha channel", mask_rule)
        mask = _read_numbers(alpha, mask_rule)
    elif mask_rule.kind == COLOURS:
        mask = _judge(pack(colours_of(decoded, path)), mask_rule)
    else:
        if _alpha_tells(decoded.picture):
            raise _hidden_in_alpha(path)
        kind, values, _ = values_of(decoded, path)
        if kind == COLOURS:
            raise _unknown(path, "is coloured", mask_rule)
        mask = _read_numbers(values, mask_rule)
    if mask.max() > 1 and (mask == _UNKNOWN).any():
        raise _unknown(path, "holds other values", mask_rule)
    return mask if size is None else resize_mask(mask, size)


def _united(paths, mask_rule, page):
    if mask_rule.classes and len(paths) > 1:
        raise UserError(
            f"{list_files(paths)}: several masks of one image are united, which CLASSES leaves unclear: one of two "
            "classes would win. Save one mask for each image."
        )
    mask = read_mask(paths[0], mask_rule, page=page)
    for path in paths[1:]:
        other = read_mask(path, mask_rule, page=page)
        if other.shape != mask.shape:
            raise UnusableFile(
                path,
                f"is {other.shape[0]}x{other.shape[1]}, and {printable(paths[0])}, a mask of the same image, is "
                f"{mask.shape[0]}x{mask.shape[1]} (height x width)",
                "Save all masks of an image at its size",
            )
        mask, foreground = np.maximum(mask, other), (mask == 1) | (other == 1)
        mask[foreground] = 1
    return mask


def count_classes(seen, mask_rule):
    """int64 of max(2, rule.channels) + 1: an observed mask's pixels of each class, the ignored ones last.

    Of one foreground: background, foreground, ignored.
    """
    if mask_rule.kind == COLOURS:
        seen = as_colours(seen)
    values, pixels = np.array(seen.alpha if mask_rule.kind == ALPHA else seen.counts).T
    counts = np.zeros(256, np.int64)
    np.add.at(counts, _judge(values, mask_rule), pixels)
    return counts[[*range(max(2, mask_rule.channels)), IGNORED]]


def _unknown(path, what, mask_rule):
    cure = "add what it holds to CLASSES or to MASK_IGNORE" if mask_rule.classes else "set MASK_FOREGROUND"
    return UnusableFile(
        path, f"{what}, but in these masks {mask_rule.describe()}", f"Write it like the others, or {cure}"
    )


def _read_numbers(values, mask_rule):
    """The mask of an array of numbers, with _UNKNOWN for what the rule does not know."""
    if values.dtype == np.uint8:
        return cv2.LUT(np.ascontiguousarray(values), _judge(np.arange(256), mask_rule))
    return _judge(values, mask_rule)


def _judge(values, mask_rule):
    """What values become in memory, uint8 of their shape."""
    if mask_rule.classes:
        return _class_indices(values, mask_rule)
    if mask_rule.soft:
        (low,), (high,) = mask_rule.background, mask_rule.foreground
        twice = 2 * values.astype(np.int32)
        return (twice > low + high if high > low else twice < low + high).astype(np.uint8)
    if not mask_rule.foreground:
        judged = (~np.isin(values, mask_rule.background)).astype(np.uint8)
    else:
        foreground = np.isin(values, mask_rule.foreground)
        known = foreground | mask_rule.rest | np.isin(values, mask_rule.background)
        judged = np.where(known, foreground, _UNKNOWN).astype(np.uint8)
    if mask_rule.ignored:
        judged[np.isin(values, mask_rule.ignored)] = IGNORED
    return judged


def _class_indices(values, mask_rule):
    most = np.iinfo(values.dtype).max
    pairs = [*zip(mask_rule.classes, range(MOST)), *((value, IGNORED) for value in mask_rule.ignored)]
    known, labels = np.array(sorted(pair for pair in pairs if pair[0] <= most), np.int64).reshape(-1, 2).T
    known, labels = known.astype(values.dtype), labels.astype(np.uint8)
    at = np.minimum(np.searchsorted(known, values), len(known) - 1)
    return np.where(known[at] == values, labels[at], np.uint8(_UNKNOWN))


def encode_mask(mask, mask_rule):
    """A PIL image of a mask in memory, in the encoding of the masks that `mask_rule` is of.

    Of one foreground: grey, 0 and 255. Of classes their values: RGB for coloured masks, else grey of 8 or 16 bits, or
    a palette where the masks have one. IGNORED is written as the first of the ignored values.
    """
    if not mask_rule.classes:
        return Image.fromarray((mask == 1) * np.uint8(255))
    values = np.zeros(256, np.int32)
    values[: len(mask_rule.classes)] = mask_rule.classes
    values[IGNORED] = mask_rule.ignored[0] if mask_rule.ignored else 0
    if mask_rule.kind == COLOURS:
        return Image.fromarray(np.stack([values >> 16, values >> 8 & 255, values & 255], axis=1).astype(np.uint8)[mask])
    if values.max() > 255:
        return Image.fromarray(values.astype(np.uint16)[mask])
    picture = Image.fromarray(values.astype(np.uint8)[mask])
    if mask_rule.colours:
        palette = np.full(256, VOID)  # also so that no palette is all grey, which would be read by its greys
        palette[list(mask_rule.classes)] = mask_rule.colours
        picture.putpalette(np.stack([palette >> 16, palette >> 8 & 255, palette & 255], axis=1).ravel().tolist())
    return picture


def resize_mask(mask, size):
    """A mask in memory at `size` = (height, width): of {0, 1} what is foreground on at least half of a pixel's area.

    Of more labels the one with the largest area there, and of equal ones the higher; IGNORED counts as one.
    Measured against the nearest pixel, as IoU of the shrunk mask, enlarged again, with the full one:
    0.969 to 0.948 for CamVid's cars at 160x240, 0.987 to 0.974 for ellipses of 1280x1918 at 320x480. Mean IoU over
    CamVid's eleven classes and void: 0.916 to 0.896 at 160x240, 0.862 to 0.845 at 96x128, and in each class more, thin
    ones too (pole 0.695 to 0.642); over drawn areas, lines of 3 to 5 pixels and dots: 0.851 to 0.824.
    """
    if mask.max() > 1:
        return _resize_labels(mask, size)
    return (resize_image(mask * np.uint8(255), size) > 127).astype(np.uint8)


def _resize_labels(mask, size):
    pixels = cv2.calcHist([np.ascontiguousarray(mask)], [0], None, [256], [0, 256])  # in a tenth of bincount's time
    low, *others = np.flatnonzero(pixels)
    areas = (resize_image((mask == label) * np.uint8(255), size) for label in others)
    if len(others) == 1:  # as {0, 1}, rounding included
        return np.where(next(areas) > 127, others[0], low).astype(np.uint8)
    resized, most = np.full(size, low, np.uint8), resize_image((mask == low) * np.uint8(255), size)
    for label, area in zip(others, areas):
        resized[area >= most] = label
        np.maximum(most, area, out=most)
    return resized
