"""One mask: what its file holds (Observation), what its values mean (MaskRule), and the mask in memory.

In memory a mask is uint8 (H, W): {0, 1} for one foreground, class indices 0 ... C-1 for C classes, and IGNORED for
pixels that are neither trained on nor scored. Where classes overlap (OVERLAP) a label is a set of classes, the sum of
2**c over its classes c: so masks are bytes of one plane for them too, and whatever moves, cuts, stores and counts
labels works on sets as it is. Only what needs a mask of each class asks for these (`where`, `foregrounds_of`).
Grey values, palette indices and colours are different kinds of values. A file that could be read in two ways is
refused with a message that says what to do; nothing is guessed.
"""

import json
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from PIL import Image, PngImagePlugin

from parts.errors import UnusableFile, UserError, list_files, printable
from parts.images import RGB, Bands, Decoded, Size, decode, resize_image, rgb
from parts.spec import ALPHA, BACKGROUND, NAN

if TYPE_CHECKING:
    import torch

NUMBERS, COLOURS = "numbers", "colours"  # kinds of values: greys and palette indices; 0xRRGGBB
IGNORED = 255  # the label in memory of ignored pixels; no class has this index
MOST_CLASSES = 254
MOST_COLOURS = 256  # of one file that an Observation lists
VOID = 0xE0E0C0  # PASCAL VOC's colour of pixels without a label
_UNKNOWN = 254  # label of a value that the rule does not know, until the file is refused
_ROUNDED = 3  # of 255: how far a colour between two others may be from their line, in each channel
_WHOLE = "Save it with whole numbers from 0 to 255"
_LOSSY_FORMATS = ("JPEG", "MPO", "WEBP", "AVIF", "JPEG2000")

_NAMES = "Classes"  # the text in a PNG that says the names of its values, as JSON

Counts = list[list[int]]  # [value, pixels] of each value, ascending
PathLike = str | Path
FEW_PIXELS = 3  # by which RESIZE_MASKS cuts or pads a mask


# ---- what a file holds


@dataclass(frozen=True)
class Observation:
    """What one mask file holds. All fields are plain values, so that it can be pickled and stored as JSON."""

    path: str
    kind: str  # NUMBERS or COLOURS
    counts: Counts  # of all pixels; of colours only the MOST_COLOURS most frequent ones
    thick: Counts  # of those pixels whose eight neighbours have the same value, which those of a soft edge have not
    slopes: list[int]  # [pixels between a lower and a higher neighbour in their row, how many values those have]
    palette: list[list[int]] | None  # [index, 0xRRGGBB] of the used indices, where a colour palette was read by index
    lossy: bool  # whether the file's compression changes values
    size: list[int]  # height, width
    mode: str  # Pillow's
    frames: bool  # whether the file has more frames or pages
    alpha: Counts | None  # [alpha, pixels], where there is an alpha channel
    hidden: bool  # whether the alpha channel tells pixels of one colour apart
    cut: bool = False  # whether the values were fractions from 0 to 1, and became 0 and 1
    names: list[list] | None = None  # [value, name] of the used values, where the file says names
    turned: int = 1  # EXIF's orientation, which is undone; 1 is upright

    @property
    def values(self) -> tuple[int, ...]:
        """The values that the mask holds, ascending."""
        return tuple(value for value, _ in self.counts)

    @property
    def is_blurred(self) -> bool:
        """Whether JPEG or smoothing has mixed neighbouring values, in whatever format the file is now."""
        if self.lossy or len(self.counts) <= 2:
            return len(self.counts) > 2
        pixels = self.size[0] * self.size[1]
        thick_pixels = sum(count for _, count in self.thick)
        # Of the pixels outside areas at least 2 % lie on slopes, and more than half of all values occur there.
        pixels_on_slopes, values_on_slopes = self.slopes
        many_slopes = 50 * pixels_on_slopes >= pixels - thick_pixels and 2 * values_on_slopes > len(self.counts)
        # Noise has slopes too, but no areas (here: 5 % of the pixels), and its values are exact.
        return many_slopes and 20 * thick_pixels >= pixels

    def as_colours(self) -> "Observation":
        """The same mask with its values as colours: by its palette, or as greys."""
        if self.kind == COLOURS:
            return self
        colours = {value: min(value, 255) * 0x010101 for value in self.values}
        colours |= {index: colour for index, colour in self.palette or ()}  # noqa: C416  # mypy takes no list for a pair
        counts, thick = _recounted(self.counts, colours), _recounted(self.thick, colours)
        return replace(self, kind=COLOURS, counts=counts, thick=thick, palette=None, names=None)

    def without(self, values: Collection[int]) -> "Observation":
        """The same mask, which is not blurred, as if these values had no pixels."""
        counts, thick = ([pair for pair in pairs if pair[0] not in values] for pairs in (self.counts, self.thick))
        return replace(self, counts=counts, thick=thick, slopes=[0, 0])


def _recounted(counts: Counts, colours: dict[int, int]) -> Counts:
    """`counts` by colour instead of by value; a palette may hold one colour twice."""
    pixels_of: Counter[int] = Counter()
    for value, pixels in counts:
        pixels_of[colours[value]] += pixels
    return [[colour, pixels] for colour, pixels in sorted(pixels_of.items())]


def observe_mask(path: PathLike, page: int = 0) -> Observation:
    """The Observation of a mask file, or of one page of it. UnusableFile: it cannot be decoded or has no values."""
    decoded = decode(path, page=page)
    read = values_of(decoded, path)
    counts, thick = _count_both(read)
    palette = None
    if read.palette is not None:
        palette = [[index, read.palette[index]] for index, _ in counts]
    names = names_in(decoded.picture)
    alpha = alpha_of(decoded.picture)
    alpha_counts = None if alpha is None else count_values(alpha)
    # A photograph that is cut out: its colours are so many that the alpha need not tell any apart.
    cut_out = read.kind == COLOURS and len(counts) == MOST_COLOURS and len(alpha_counts or ()) > 1
    return Observation(
        path=str(path),
        kind=read.kind,
        counts=counts,
        thick=thick,
        slopes=_slopes(read.array) if len(counts) > 2 else [0, 0],
        palette=palette,
        lossy=decoded.format in _LOSSY_FORMATS and not _is_lossless_webp(path),
        size=list(read.array.shape),
        mode=decoded.picture.mode,
        frames=decoded.frames,
        alpha=alpha_counts,
        hidden=cut_out or _alpha_separates(decoded.picture),
        cut=read.cut,
        names=[[value, names[value]] for value, _ in counts if value in names] or None,
        turned=decoded.turned,
    )


def _count_both(read: "Values") -> tuple[Counts, Counts]:
    """The `counts` and `thick` of an Observation."""
    counts = thick = count_values(read.array)
    if len(counts) > 2:
        thick = count_values(read.array[_inside_areas(read.array)])
    if read.kind == COLOURS:
        counts = sorted(sorted(counts, key=lambda pair: -pair[1])[:MOST_COLOURS])
        listed = {value for value, _ in counts}
        thick = [pair for pair in thick if pair[0] in listed]
    return counts, thick


def names_in(picture: Image.Image) -> dict[int, str]:
    """{value: name} of the classes of a decoded mask, if its file says them (`png_options`)."""
    try:
        stored = json.loads(picture.info.get(_NAMES, "{}"))
        return {int(value): str(name)[:100] for value, name in stored.items()}
    except (ValueError, TypeError, AttributeError, RecursionError):
        return {}


def png_options(names: Mapping[int, str]) -> dict[str, Any]:
    """How a mask is saved as PNG, with Pillow: fast, and with the `names` of its values."""
    info = PngImagePlugin.PngInfo()
    if names:
        info.add_itxt(_NAMES, json.dumps(names))
    return {"compress_level": 1, "pnginfo": info}


def alpha_fault(observation: Observation, foreground: Any = None) -> UnusableFile | None:
    """The UnusableFile of a mask that lacks the alpha channel it should have, or may hide a mask in the one it has.

    `foreground`: MASK_FOREGROUND. None: nothing is wrong.
    """
    if foreground == ALPHA and observation.alpha is None:
        return UnusableFile(
            observation.path,
            'has no alpha channel, which MASK_FOREGROUND = "alpha" takes for the mask',
            "Save it with transparency, or set MASK_FOREGROUND to what is foreground",
        )
    if observation.hidden and foreground != ALPHA:
        return _hidden_in_alpha(observation.path)
    return None


def _hidden_in_alpha(path: PathLike) -> UnusableFile:
    return UnusableFile(
        path,
        "is transparent in places where its colours do not say so, so the mask may be in its alpha channel",
        'If it is, set MASK_FOREGROUND = "alpha" (--mask-foreground alpha). Else save it without transparency, '
        "foreground white on black",
    )


# ---- the values of a decoded file


@dataclass(frozen=True)
class Values:
    """The values of a mask's pixels."""

    kind: str  # NUMBERS or COLOURS
    array: np.ndarray  # whole numbers (H, W); of colours int32 0xRRGGBB
    palette: dict[int, int] | None = None  # index -> 0xRRGGBB, where the numbers are indices of a colour palette
    cut: bool = False  # whether they were fractions from 0 to 1, and what was more than one half is 1


def values_of(decoded: Decoded, path: PathLike) -> Values:
    """The Values of a decoded mask: greys as grey values in whatever way they are stored, a colour palette as indices.

    Fractions from 0 to 1 are cut at one half, and NaN is NAN. UnusableFile: 16 bits in several channels, or other
    fractions.
    """
    picture = decoded.picture
    if ";16" in decoded.raw and picture.mode in ("RGB", "RGBA", "LA"):
        raise UnusableFile(path, "has 16 bits in each of several channels", "Save it as grey, or with 8 bits")
    if picture.mode in ("1", "L"):
        return Values(NUMBERS, np.asarray(picture.convert("L")))
    if picture.mode == "F" or picture.mode.startswith("I"):
        array = np.asarray(picture)
        # Shares of foreground: from 0 to 1, at least three values, some of which are fractions
        if are_shares := picture.mode == "F" and array.min() >= 0 and array.max() <= 1 and len(np.unique(array)) > 2:
            array = (array > 0.5).astype(np.uint16)
        return Values(NUMBERS, _whole_numbers(array, path), cut=bool(are_shares))
    if picture.mode in ("P", "PA"):
        return _palette_values(picture.convert("P"))
    colours = rgb(picture, path)
    if (colours == colours[..., :1]).all():
        return Values(NUMBERS, np.ascontiguousarray(colours[..., 0]))
    return Values(COLOURS, pack(colours))


def colours_of(decoded: Decoded, path: PathLike) -> np.ndarray:
    """The mask as colours, int32 (H, W) of 0xRRGGBB, in whatever way it is stored."""
    picture = decoded.picture
    if picture.mode.startswith("I"):  # numbers beyond 255 are white, as in Observation.as_colours
        numbers = _whole_numbers(np.asarray(picture), path)
        if numbers.min() < 0:
            raise UnusableFile(path, "has negative values, which are no colours", _WHOLE)
        return np.minimum(numbers, 255).astype(np.int32) * 0x010101
    return pack(rgb(picture, path))


def _whole_numbers(array: np.ndarray, path: PathLike) -> np.ndarray:
    """Floats and signed numbers as uint16 where that holds them, else int32, NaN as NAN. UnusableFile: fractions."""
    if array.dtype.kind == "f":
        is_nan = np.isnan(array)
        array = np.where(is_nan, 0, array)
        if not (np.isfinite(array).all() and (array == np.floor(array)).all()):
            raise UnusableFile(path, "has fractions or infinite values", _WHOLE)
        array = np.clip(array, NAN + 256, 2**31 - 256).astype(np.int32)
        array[is_nan] = NAN
    if array.min() >= 0 and array.max() < 65536:
        return array.astype(np.uint16)
    return array


def _palette_values(picture: Image.Image) -> Values:
    """The Values of a picture with a palette: grey values where the palette is grey, else indices."""
    indices = np.asarray(picture)
    entries = np.array(picture.getpalette("RGB") or [], np.int32).reshape(-1, 3)
    used = np.flatnonzero(picture.histogram()).tolist()
    if max(used) >= len(entries):  # indices without a colour
        return Values(NUMBERS, indices)
    colours = (entries @ [65536, 256, 1]).tolist()
    if not (entries == entries[:, :1]).all():
        return Values(NUMBERS, indices, dict(enumerate(colours)))
    if len({colours[index] for index in used}) < len(used):  # one grey twice: only the indices tell its areas apart
        return Values(NUMBERS, indices)
    table = np.zeros(256, np.uint8)
    table[: len(entries)] = entries[:256, 0]
    return Values(NUMBERS, cv2.LUT(np.ascontiguousarray(indices), table))


def alpha_of(picture: Image.Image) -> np.ndarray | None:
    """The alpha channel of a PIL image, uint8 (H, W), or None where there is none."""
    if picture.mode in ("LA", "RGBA", "PA"):
        return np.asarray(picture.getchannel("A"))
    if picture.mode == "RGBa" or "transparency" in picture.info:
        return np.asarray(picture.convert("RGBA").getchannel("A"))
    return None


def drops_alpha(decoded: Decoded | Bands, channels: int | None = RGB) -> bool:
    """Whether an image has a channel of transparency, or a fourth one, that is dropped, and not the same all over."""
    if not isinstance(decoded, Decoded) or channels not in (1, RGB):
        return False
    picture = decoded.picture
    if picture.mode not in ("LA", "PA", "RGBA", "RGBX"):
        return False
    alpha = np.asarray(picture.getchannel(picture.getbands()[-1]))
    return bool(alpha.min() < alpha.max())


def _alpha_separates(picture: Image.Image) -> bool:
    """Whether the alpha channel tells pixels of one colour apart, instead of repeating what the colours say."""
    if picture.mode not in ("LA", "RGBA", "PA", "RGBa"):
        return False
    array = np.asarray(picture.convert("RGBA"))
    if array[..., 3].min() == array[..., 3].max():
        return False
    colours = pack(array[..., :3])
    with_alpha = colours.astype(np.int64) << 8 | array[..., 3]
    return len(np.unique(with_alpha)) > len(np.unique(colours))


def _is_lossless_webp(path: PathLike) -> bool:
    with open(path, "rb") as file:
        head = file.read(64)
    return head[8:12] == b"WEBP" and b"VP8L" in head  # RFC 9649, section 2.6


def count_values(array: np.ndarray) -> Counts:
    """[value, pixels] of each value of an array of whole numbers, ascending.

    More than 4096 values of 16 bits are rounded to steps of 257.
    """
    if array.dtype not in (np.uint8, np.uint16):
        return np.stack(np.unique(array, return_counts=True), axis=1).tolist()
    counts = np.bincount(array.ravel())
    if np.count_nonzero(counts) > 4096:  # 257 v is what a value v of 8 bits becomes in 16
        counts = np.bincount((array.ravel() >> 8).astype(np.int32) * 257)
    values = np.flatnonzero(counts)
    return np.stack([values, counts[values]], axis=1).tolist()


def _inside_areas(array: np.ndarray) -> np.ndarray:
    """Where all eight neighbours have a pixel's own value, bool (H, W)."""
    if array.dtype == np.int32:
        array = array.astype(np.float64)  # OpenCV's morphology does not take int32
    square = np.ones((3, 3), np.uint8)
    return cv2.erode(array, square) == cv2.dilate(array, square)


def _slopes(values: np.ndarray) -> list[int]:
    """[pixels, values] of the pixels whose left and right neighbours are one lower and one higher than they.

    Edges that compression or smoothing has blurred consist of these; between areas of classes they are rare: at most
    0.5 % of the pixels that are not thick in CamVid's masks, over 4 % after JPEG of quality 95.
    """
    step = max(1, len(values) // 128)  # a sample of the rows has the same share of them
    rows = values[::step]
    up, down = rows[:, 1:] > rows[:, :-1], rows[:, 1:] < rows[:, :-1]
    between = rows[:, 1:-1][(up[:, 1:] & up[:, :-1]) | (down[:, 1:] & down[:, :-1])]
    return [len(between) * step, len(count_values(between))]


def pack(colours: np.ndarray) -> np.ndarray:
    """Colours as numbers: uint8 (H, W, 3) in RGB -> int32 (H, W) of 0xRRGGBB."""
    red, green, blue = (colours[..., channel].astype(np.int32) for channel in range(3))
    return red << 16 | green << 8 | blue


def unpack(values: np.ndarray) -> np.ndarray:
    """Numbers as colours: int (N,) of 0xRRGGBB -> uint8 (N, 3) in RGB."""
    return np.stack([values >> 16, values >> 8 & 255, values & 255], axis=1).astype(np.uint8)


# ---- what the values mean in all masks


@dataclass(frozen=True)
class MaskRule:
    """What each value means in all the masks of a dataset: background, foreground, a class, or ignored."""

    kind: str = NUMBERS  # or COLOURS (0xRRGGBB), or ALPHA
    background: tuple[int, ...] = (0,)  # () for classes
    foreground: tuple[int, ...] = (255,)  # () for classes; () with `rest`: all that is not background
    soft: bool = False  # values between the one on each side, or colours between two classes, are the nearer one's
    rest: bool = False  # other values are background, or foreground where none is listed; False: they are errors
    ignored: tuple[int, ...] = ()  # values that become IGNORED, on whatever side they stand besides
    classes: tuple[int, ...] = ()  # the value of each class, in the order of their indices
    names: tuple[str, ...] = ()  # of the classes; a value in words where no name was given
    colours: tuple[int, ...] = ()  # 0xRRGGBB of each class, where the masks have colours
    files: tuple[str, ...] = ()  # of classes that overlap: how each one's own masks are named; values of sets are sums

    @property
    def overlaps(self) -> bool:
        """Whether a pixel may be of several classes."""
        return bool(self.files)

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
        """The number of labels of a mask in memory without IGNORED: 2 for one foreground, one per class, or set."""
        return 2 ** len(self.classes) if self.overlaps else len(self.classes) or 2

    @property
    def label_names(self) -> tuple[str, ...]:
        """The name of each label: those of the classes, or sets of them, or background and foreground."""
        if self.overlaps:
            held = [np.array(self.names)[classes] for classes in members(self.channels).astype(bool)]
            return tuple(" + ".join(names) or BACKGROUND for names in held)
        return self.names if self.has_classes else (BACKGROUND, "foreground")

    @property
    def values(self) -> tuple[int, ...]:
        """The value of each label of classes in a file."""
        return tuple(range(self.num_labels)) if self.overlaps else self.classes

    @property
    def is_binary(self) -> bool:
        """Whether masks in memory hold nothing but {0, 1}: neither classes nor ignored pixels."""
        return not self.classes and not self.ignored

    def labels_of(self, logits: "torch.Tensor") -> "torch.Tensor":
        """The predicted labels, uint8 (N, 1, H, W), of logits (N, channels, H, W)."""
        if self.overlaps:
            return sum((logits[:, c : c + 1] > 0).byte() << c for c in range(self.channels))  # type: ignore[return-value]
        labels = logits.argmax(1, keepdim=True) if self.has_classes else logits > 0
        return labels.byte()

    def where(self, mask: np.ndarray, channel: int) -> np.ndarray:
        """Where a mask of labels holds the foreground (channel 0), or a class: booleans of its shape."""
        if self.overlaps:
            return (mask >> channel & 1).astype(bool) & (mask != IGNORED)
        return mask == (channel if self.has_classes else 1)

    def foregrounds_of(self, labels: "torch.Tensor") -> "torch.Tensor":
        """Labels (N, ..., H, W) of C classes that overlap, as masks of one foreground each: uint8 (N * C, 1, H, W)."""
        labels = labels.reshape(len(labels), 1, *labels.shape[-2:])
        ignored = (labels == IGNORED).byte() * IGNORED
        bits = labels.new_ones(self.channels).cumsum(0, dtype=labels.dtype).view(-1, 1, 1) - 1  # made on the device
        return (labels >> bits & 1 | ignored).flatten(0, 1).unsqueeze(1)

    def by_class(self, counts: np.ndarray) -> np.ndarray:
        """Counts or shares (..., labels) as those of each class (..., C), which they are unless classes overlap."""
        return counts @ members(self.channels) if self.overlaps else counts

    def to_dict(self) -> dict[str, Any]:
        """The rule as plain types, for JSON and checkpoints; without `files` where there are none, as it always was."""
        plain = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}
        return plain if self.overlaps else {name: value for name, value in plain.items() if name != "files"}

    @classmethod
    def from_dict(cls, plain: dict[str, Any]) -> "MaskRule":
        """The rule of which `to_dict` made `plain`; fields that older checkpoints lack have their defaults."""
        fields: dict[str, Any] = dict(plain)
        fields |= {name: tuple(value) for name, value in plain.items() if isinstance(value, list)}
        return cls(**fields)

    def describe(self) -> str:
        """The rule in one line of words."""
        foreground, background = list_values(self.foreground, self.kind), list_values(self.background, self.kind)
        if self.kind == ALPHA:
            text = "what is more than half opaque (alpha) is foreground, the rest is background"
        elif self.has_classes:
            text = self._describe_classes()
        elif not self.foreground:
            text = f"every value but {background} is foreground"
        elif self.rest:
            text = f"{foreground} is foreground, every other value is background"
        else:
            text = f"{foreground} is foreground, {background} is background"
        if self.soft and self.has_classes:
            text += "; colours between two are the nearer one's"
        elif self.soft and self.kind != ALPHA:
            text += ", values between are cut at the middle"
        if self.ignored:
            verb = "is" if len(self.ignored) == 1 else "are"
            text += f"; {list_values(self.ignored, self.kind)} {verb} ignored"
        return text

    def _describe_classes(self) -> str:
        values = [name_value(value, self.kind) for value in self.classes[:12]]
        listed = [value if name == value else f"{value} {name}" for value, name in zip(values, self.names)]
        text = f"there are {len(self.classes)} classes: {', '.join(listed)}"
        if len(self.classes) > 12:
            text += f" and {len(self.classes) - 12} more"
        if self.overlaps:
            text += ", whose values add up where they overlap"
        return text


def members(num_classes: int) -> np.ndarray:
    """Which classes each set of them holds, sets by their labels: {0, 1}, int64 (2**C, C)."""
    return np.arange(2**num_classes)[:, None] >> np.arange(num_classes) & 1


def list_values(values: Iterable[int], kind: str) -> str:
    """Values in words, separated by commas."""
    return ", ".join(name_value(value, kind) for value in values)


def name_value(value: int, kind: str) -> str:
    """A value as a user would write it in a constant, or in a shell."""
    if value == NAN:
        return '"nan"'
    return f"0x{value:06X}" if kind == COLOURS else str(value)


# ---- masks in memory


def read_mask(
    path: PathLike | tuple[PathLike, ...],
    mask_rule: MaskRule,
    size: Size | None = None,
    page: int = 0,
    image_size: Size | None = None,
) -> np.ndarray:
    """The mask in a file, uint8 (H, W) of the rule's labels, upright, at `size` = (height, width) if given.

    `image_size`: its image's, to which it is brought before where RESIZE_MASKS does (`fitted`).

    `path` may be a tuple of files, which are united: foreground is what any of them has as foreground, and ignored
    what any other ignores. UnusableFile: a file cannot be decoded, holds a value that `mask_rule` does not know, or
    has another size than the others. UserError: several files under a rule of classes.
    """
    paths = path if isinstance(path, tuple) else (path,)
    if mask_rule.has_classes:
        refuse_united_classes(paths)
    mask = _read_one(paths[0], mask_rule, page, image_size)
    for path in paths[1:]:
        other = _read_one(path, mask_rule, page, image_size)
        if other.shape != mask.shape:
            problem = f"is {size_text(other.shape)}, and {printable(paths[0])}, a mask of the same image, is "
            raise UnusableFile(path, problem + size_text(mask.shape), "Save all masks of an image at its size")
        foreground = (mask == 1) | (other == 1)
        mask = np.maximum(mask, other)  # IGNORED is the highest label
        mask[foreground] = 1
    return mask if size is None else resize_mask(mask, size)


def refuse_united_classes(paths: Sequence[PathLike]) -> None:
    """UserError where an image has several masks: which of two classes wins where they overlap is not known."""
    if len(paths) > 1:
        raise UserError(
            f"CLASSES with several masks of one image, e.g. {list_files(paths)}: they are united, and only one "
            "foreground can be. Save the classes of an image in one mask, or set CLASSES = None."
        )


def padded(mask: np.ndarray, size: Size) -> np.ndarray:
    """A mask (H, W) of labels padded to `size` = (height, width): IGNORED below and at the right."""
    below, beside = size[0] - mask.shape[0], size[1] - mask.shape[1]
    return cv2.copyMakeBorder(mask, 0, below, 0, beside, cv2.BORDER_CONSTANT, value=IGNORED)


def size_text(size: Sequence[int]) -> str:
    """A (height, width) in words."""
    return f"{size[0]}x{size[1]} (height x width)"


def can_be_fitted(size: Sequence[int], image_size: Sequence[int]) -> bool:
    """Whether RESIZE_MASKS brings a mask of this (height, width) to that of its image.

    It does where proportions agree within 1 %, or the mask is a few pixels larger or smaller, as padding and cutting
    leave it; not where height and width are swapped.
    """
    if list(size) == list(image_size)[::-1]:
        return list(size) == list(image_size)
    return _is_near(size, image_size) or abs(size[0] * image_size[1] / (size[1] * image_size[0]) - 1) <= 0.01


def _is_near(size: Sequence[int], image_size: Sequence[int]) -> bool:
    return all(abs(own - wanted) <= FEW_PIXELS for own, wanted in zip(size, image_size))


def fitted(mask: np.ndarray, image_size: Sequence[int]) -> np.ndarray:
    """A mask (H, W) or (H, W, C) of any values at its image's size, if it `can_be_fitted`; else as it is.

    By a few pixels it is cut, or repeats its last ones, below and at the right; otherwise by the nearest pixel.
    """
    size = mask.shape[:2]
    if size == tuple(image_size) or not can_be_fitted(size, image_size):
        return mask
    places = []
    for own, wanted in zip(size, image_size):
        place = np.minimum(np.arange(wanted), own - 1)
        if not _is_near(size, image_size):
            place = ((np.arange(wanted) + 0.5) * own / wanted).astype(int)
        places.append(place)
    rows, columns = places
    return mask[rows[:, None], columns]


def _read_one(path: PathLike, mask_rule: MaskRule, page: int, image_size: Size | None) -> np.ndarray:
    decoded = decode(path, page=page)
    if mask_rule.kind == ALPHA:
        values = alpha_of(decoded.picture)
        if values is None:
            raise _unknown(path, "has no alpha channel", mask_rule)
    elif mask_rule.kind == COLOURS:
        values = colours_of(decoded, path)
    else:
        if _alpha_separates(decoded.picture):
            raise _hidden_in_alpha(path)
        read = values_of(decoded, path)
        if read.kind == COLOURS:
            raise _unknown(path, "is coloured", mask_rule)
        values = read.array
        if values.min() < 0 and not np.isin(values[values < 0], mask_rule.ignored).all():
            raise _unknown(path, "has negative values or NaN", mask_rule)
    mask = _labels_of_values(values, mask_rule)
    if mask.max() > 1 and (mask == _UNKNOWN).any():
        raise _unknown(path, "holds other values", mask_rule)
    return mask if image_size is None else fitted(mask, image_size)


def _unknown(path: PathLike, problem: str, mask_rule: MaskRule) -> UnusableFile:
    cure = "set MASK_FOREGROUND"
    if mask_rule.has_classes:
        cure = "add what it holds to CLASSES or to MASK_IGNORE"
    problem += f", but in these masks {mask_rule.describe()}"
    return UnusableFile(path, problem, f"Write it like the others, or {cure}")


def count_classes(observation: Observation, mask_rule: MaskRule) -> np.ndarray:
    """The pixels of each label in an observed mask, int64 (num_labels + 1,); those of ignored pixels come last."""
    if mask_rule.kind == COLOURS:
        observation = observation.as_colours()
    values, pixels = np.array(observation.alpha if mask_rule.kind == ALPHA else observation.counts).T
    counts = np.zeros(256, np.int64)
    np.add.at(counts, _labels_of_values(values, mask_rule), pixels)
    return np.append(counts[: mask_rule.num_labels], counts[IGNORED])


def known_to(mask_rule: MaskRule, values: Iterable[int]) -> set[int]:
    """Those of the values that have a label by the rule."""
    array = np.array(sorted(values), np.int64)
    return set(array[_labels_of_values(array, mask_rule) != _UNKNOWN].tolist())


def _labels_of_values(values: np.ndarray, mask_rule: MaskRule) -> np.ndarray:
    """The label of each value, uint8 of the same shape; _UNKNOWN where the rule does not know the value."""
    if values.dtype == np.uint8:  # by a table, which is faster
        return cv2.LUT(np.ascontiguousarray(values), _labels_of_values(np.arange(256), mask_rule))
    if mask_rule.soft and not mask_rule.has_classes:
        (low,), (high,) = mask_rule.background, mask_rule.foreground
        twice = 2 * values.astype(np.int32)  # against the sum of the ends, without fractions
        return (twice > low + high if high > low else twice < low + high).astype(np.uint8)
    label_of_value = dict.fromkeys(mask_rule.background, 0) | dict.fromkeys(mask_rule.foreground, 1)
    label_of_value |= {value: label for label, value in enumerate(mask_rule.values)}
    label_of_value |= dict.fromkeys(mask_rule.ignored, IGNORED)
    limits = np.iinfo(values.dtype)  # what the array cannot hold need not be searched
    known = sorted(value for value in label_of_value if limits.min <= value <= limits.max)
    labels = np.array([label_of_value[value] for value in known], np.uint8)
    known_values = np.array(known, values.dtype)
    places = np.minimum(np.searchsorted(known_values, values), len(known) - 1)
    others = _UNKNOWN
    if mask_rule.rest:
        others = int(not mask_rule.foreground)
    labels = np.where(known_values[places] == values, labels[places], np.uint8(others))
    if mask_rule.soft and (unknown := labels == _UNKNOWN).any():
        between, places = np.unique(values[unknown], return_inverse=True)
        labels[unknown] = _labels_between(between, label_of_value)[places]
    return labels


def _labels_between(colours: np.ndarray, label_of_colour: dict[int, int]) -> np.ndarray:
    """The label of the nearer of two of these colours that each colour lies between; _UNKNOWN: of no two of them."""
    ends = [colour for colour in label_of_colour if 0 <= colour <= 0xFFFFFF]
    points, places = unpack(np.array(ends)).astype(float), unpack(colours).astype(float)
    labels, nearest = np.full(len(colours), _UNKNOWN, np.uint8), np.full(len(colours), np.inf)
    for first, second in combinations(range(len(ends)), 2):
        line = points[second] - points[first]
        along = np.clip((places - points[first]) @ line / (line @ line), 0, 1)
        beside = np.abs(points[first] + along[:, None] * line - places).max(axis=1)
        distance = np.minimum(along, 1 - along) * np.linalg.norm(line)
        better = (beside <= _ROUNDED) & (distance < nearest)  # of several lines that of the nearest end
        nearest[better] = distance[better]
        labels[better] = np.where(along > 0.5, label_of_colour[ends[second]], label_of_colour[ends[first]])[better]
    return labels


def class_colour(index: int) -> int:
    """0xRRGGBB by PASCAL VOC: the bits of an index, from its lowest, are the highest of red, green and blue in turn."""
    colour = 0
    for bit in range(8):
        colour |= (index >> bit & 1) << (16 - 8 * (bit % 3) + 7 - bit // 3)
    return colour


def encode_mask(mask: np.ndarray, mask_rule: MaskRule) -> Image.Image:
    """A PIL image of a mask in memory, encoded as the masks that `mask_rule` describes.

    One foreground: grey, 0 and 255. Classes: their values, as RGB for coloured masks, as a palette where the masks
    have one, else as grey of 8 or 16 bits. IGNORED is written as the first of the ignored values from 0 on.
    """
    if not mask_rule.has_classes:
        return Image.fromarray((mask == 1) * np.uint8(255))
    values = np.zeros(256, np.int32)
    values[: mask_rule.num_labels] = mask_rule.values
    values[IGNORED] = next((value for value in mask_rule.ignored if value >= 0), 0)
    if mask_rule.kind == COLOURS:
        return Image.fromarray(unpack(values)[mask])
    if values.max() > 255:
        return Image.fromarray(values.astype(np.uint16)[mask])
    picture = Image.fromarray(cv2.LUT(np.ascontiguousarray(mask), values.astype(np.uint8)))
    if mask_rule.colours:
        palette = np.full(256, VOID)  # no grey, because an all-grey palette would be read by its greys
        palette[list(mask_rule.classes)] = mask_rule.colours
        picture.putpalette(unpack(palette).ravel().tolist())
    return picture


def encode_masks(mask: np.ndarray, mask_rule: MaskRule) -> list[Image.Image]:
    """What predict.py writes of a mask in memory: one picture, or where classes overlap that of each foreground."""
    if not mask_rule.overlaps:
        return [encode_mask(mask, mask_rule)]
    return [encode_mask(mask_rule.where(mask, channel), MaskRule()) for channel in range(mask_rule.channels)]


def resize_mask(mask: np.ndarray, size: Size) -> np.ndarray:
    """A mask in memory at `size` = (height, width), uint8; measured in benchmarks/README.md.

    Of {0, 1} a pixel is foreground if at least half of its area is. Of more labels it has the one with the largest
    area there, and of equal ones the higher; IGNORED counts as a label.
    """
    if mask.max() <= 1:
        return (resize_image(mask * np.uint8(255), size) > 127).astype(np.uint8)
    pixels = cv2.calcHist([np.ascontiguousarray(mask)], [0], None, [256], [0, 256])  # in a tenth of bincount's time
    labels = np.flatnonzero(pixels).tolist()
    if len(labels) == 2:  # as {0, 1}, rounding included
        return np.where(_area_of(mask, labels[1], size) > 127, labels[1], labels[0]).astype(np.uint8)
    resized, largest = np.zeros((2, *size), np.uint8)  # of each pixel the label, and the area that this has in it
    for label in labels:
        area = _area_of(mask, label, size)
        resized[area >= largest] = label
        np.maximum(largest, area, out=largest)
    return resized


def _area_of(mask: np.ndarray, label: int, size: tuple[int, int]) -> np.ndarray:
    """The share of each pixel's area that a label has in the resized mask, uint8 of 0 ... 255."""
    return resize_image((mask == label) * np.uint8(255), size)
