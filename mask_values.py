"""What values a mask file holds: grey values, palette indices or colours, and how much of each.

What they mean is decided for a whole dataset, in masks.py.
"""

from dataclasses import dataclass

import cv2
import numpy as np

from decoding import Decoded, UnusableFile, decode, rgb, shown

NUMBERS, COLOURS = "numbers", "colours"
MANY = 32  # colours of one file that are listed
NEAR, FAR = 1 / 8, 64  # two main values lie at least FAR (of 255) apart; NEAR of that distance is still the same
ALL_COLOURS = 1 << 24


@dataclass(frozen=True)
class Observation:
    """What was seen in one mask. Plain values only, so that it pickles and goes into JSON.

    `counts`: [value, pixels] of each value; colours are 0xRRGGBB. `thick`: the same of those pixels
    whose eight neighbours are equal to them, which those of a soft edge are not. Where a coloured file
    has soft edges, `counts` has its two main colours with all that is nearer to each, and `between` is
    [pixels, thick pixels] of what is near to neither; otherwise it is None.
    """

    path: str
    kind: str
    counts: list
    thick: list
    between: list | None
    palette: list | None  # [index, 0xRRGGBB] of the used indices, where a colour palette was read by index
    lossy: bool
    size: list  # height, width
    mode: str
    frames: bool


def observe_mask(path):
    """The Observation of a mask file. UnusableFile."""
    return observe(decode(path), path)


def observe(decoded, path):
    """The Observation of a Decoded mask."""
    kind, array, palette = values_of(decoded, path)
    lossy = decoded.format in ("JPEG", "MPO", "WEBP", "AVIF", "JPEG2000") and not _is_lossless_webp(path)
    between = None
    if kind == NUMBERS:
        counts = count_values(array)
        thick = counts if len(counts) <= 2 else count_values(array[_amid_equals(array)])
    else:
        packed = pack(array)
        counts = count_values(packed)
        thick = counts if len(counts) <= 2 else count_values(packed[_amid_equals(array).all(axis=2)])
        if len(counts) > 2:
            counts, thick, between = _condensed(counts, thick, lossy)
    if palette is not None:
        palette = [[index, palette[index]] for index, _ in counts]
    size = list(array.shape[:2])
    mode = decoded.picture.mode
    return Observation(str(path), kind, counts, thick, between, palette, lossy, size, mode, decoded.frames)


def _is_lossless_webp(path):
    with open(path, "rb") as file:
        head = file.read(64)
    return head[8:12] == b"WEBP" and b"VP8L" in head  # RFC 9649, section 2.6


def values_of(decoded: Decoded, path):
    """(NUMBERS, array (H, W), colours of a palette or None) or (COLOURS, array (H, W, 3) uint8, None).

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
    if picture.mode in ("LA", "RGBA", "PA", "La", "RGBa"):
        _refuse_telling_alpha(np.asarray(picture.convert("RGBA")), path)
        if picture.mode == "PA":
            return _palette_values(picture.convert("P"))
    colours = rgb(picture, path)
    if (colours == colours[..., :1]).all():
        return NUMBERS, np.ascontiguousarray(colours[..., 0]), None
    return COLOURS, colours, None


def colours_of(decoded, path):
    """The mask as colours, uint8 (H, W, 3), whatever it was saved as."""
    picture = decoded.picture
    if picture.mode.startswith("I"):  # as mask_rules.as_colours has them
        values = np.minimum(_whole_numbers(np.asarray(picture), path), 255).astype(np.uint8)
        return np.repeat(values[..., None], 3, axis=2)
    return rgb(picture, path)


def pack(colours):
    """(H, W, 3) uint8 -> (H, W) int32 of 0xRRGGBB."""
    red, green, blue = (colours[..., channel].astype(np.int32) for channel in range(3))
    return red << 16 | green << 8 | blue


def unpack(values):
    """Values 0xRRGGBB -> (N, 3) int32."""
    values = np.asarray(values, dtype=np.int32)
    return np.stack([values >> 16 & 255, values >> 8 & 255, values & 255], axis=-1)


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
    used = [index for index, _ in count_values(indices)]
    if used[-1] < len(entries):
        colours = (entries @ [65536, 256, 1]).tolist()
        grey = (entries == entries[:, :1]).all()
        if grey and len({colours[index] for index in used}) == len(used):
            table = np.zeros(256, np.uint8)
            table[: len(entries)] = entries[:256, 0]
            return NUMBERS, table[indices], None
        if not grey:
            return NUMBERS, indices, dict(enumerate(colours))
    return NUMBERS, indices, None


def _refuse_telling_alpha(array, path):
    """Transparency may repeat what the colours say; it may not say more than they do."""
    if array[..., 3].min() == array[..., 3].max():
        return
    colours = pack(array[..., :3])
    both = colours.astype(np.int64) << 8 | array[..., 3]
    if len(np.unique(both)) > len(np.unique(colours)):
        raise UnusableFile(
            path,
            "is transparent in places that have the same colour as others, so the mask may be in its alpha channel",
            "Save it without transparency, foreground white on black",
        )


def count_values(array):
    """[value, pixels] of each value of an array of whole numbers, ascending; 16 bits come in steps if very many."""
    array = np.ascontiguousarray(array).ravel()
    if array.dtype == np.uint8 and 0 < array.size < 2**24:  # up to which calcHist's float32 counts exactly
        counts = cv2.calcHist([array], [0], None, [256], [0, 256]).ravel().astype(np.int64)
    elif array.dtype in (np.uint8, np.uint16):
        counts = np.bincount(array)
        if np.count_nonzero(counts) > 4096:  # 257 v is what 8 bits v become in 16
            counts = np.bincount((array >> 8).astype(np.int32) * 257)
    else:
        return _count_few(array)
    values = np.flatnonzero(counts)
    return np.stack([values, counts[values]], axis=1).tolist()


def _count_few(array):
    """By passes, which for a handful of values is ten times as fast as sorting."""
    counts = []
    for _ in range(8):
        if not array.size:
            return sorted(counts)
        rest = array[array != array[0]]
        counts.append([int(array[0]), array.size - rest.size])
        array = rest
    values, more = np.unique(array, return_counts=True)
    return sorted(counts + np.stack([values, more], axis=1).tolist())


def _amid_equals(array):
    """Where all eight neighbours have a pixel's own value."""
    if array.dtype == np.int32:
        array = array.astype(np.float64)  # OpenCV's morphology knows no int32
    square = np.ones((3, 3), np.uint8)
    return cv2.erode(array, square) == cv2.dilate(array, square)


def main_two(counts):
    """The most frequent colour, and the most frequent one FAR from it, or None: ([value, pixels] -> values)."""
    values, pixels = np.array(counts).T
    colours = unpack(values)
    first = pixels.argmax()
    away = np.abs(colours - colours[first]).max(axis=1) >= FAR
    if not away.any():
        return int(values[first]), None
    return int(values[first]), int(values[np.where(away, pixels, -1).argmax()])


def near_which(colours, two):
    """For colours (N, 3): 0 or 1 where they are near the first or second of `two`, else -1."""
    ends = unpack(two)
    away = np.abs(colours[:, None] - ends).max(axis=2)
    reach = np.abs(ends[0] - ends[1]).max() * NEAR * 2  # chroma is blurred more than brightness
    return np.where(away.min(axis=1) <= reach, away.argmin(axis=1), -1)


def _condensed(counts, thick, lossy):
    """Colours as their two main ones and what lies between, where that is nearly nothing and thin."""
    first, second = main_two(thick or counts)
    listed = sorted(sorted(counts, key=lambda it: -it[1])[:MANY])
    kept = {value for value, _ in listed}
    listed_thick = [it for it in thick if it[0] in kept]
    if second is None:
        return listed, listed_thick, None
    ends, between, kinds = [], [], []
    for part in (counts, thick):
        values, pixels = np.array(part or [[first, 0]]).T
        colours = unpack(values)
        side = near_which(colours, (first, second))
        nearer = (np.square(colours[:, None] - unpack((first, second))).sum(axis=2)).argmin(axis=1)
        ends.append(sorted([end, int(pixels[nearer == index].sum())] for index, end in enumerate((first, second))))
        between.append(int(pixels[side == -1].sum()))
        kinds.append(int((side == -1).sum()))
    if between[0] > sum(pixels for _, pixels in counts) / 4 or between[1] > between[0] / 10:
        return listed, listed_thick, None
    if kinds[0] < 3 and not lossy:
        return listed, listed_thick, None
    return ends[0], ends[1], between


def name_value(value, kind):
    """A value as a user would write it in MASK_FOREGROUND."""
    return f"0x{value:06X}" if kind == COLOURS else str(value)


def name_files(paths, most=3):
    """Some of the files, and how many more."""
    more = f" and {len(paths) - most:,} more" if len(paths) > most else ""
    return ", ".join(map(shown, paths[:most])) + more
