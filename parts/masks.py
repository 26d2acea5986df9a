"""What a mask's pixels mean: what each file holds, one rule for the whole dataset, and the mask of {0, 1} by it.

Grey values, indices of a palette and colours are told apart, never guessed: what could be read in two ways is
refused in words that say what to do.
"""

from collections import Counter
from dataclasses import asdict, dataclass, replace

import cv2
import numpy as np

from parts.files import each
from parts.reading import UnusableFile, decode, resize_image, rgb, shown
from parts.script import UserError

NUMBERS, COLOURS, ALPHA = "numbers", "colours", "alpha"
NONZERO = "nonzero"  # as MASK_FOREGROUND: every value but 0, or black; ALPHA as one: the alpha channel is the mask
MANY = 256  # colours of one file that are listed
NEAR, FAR = 1 / 8, 64  # two main values lie at least FAR (of 255) apart; NEAR of that distance is still the same
DARK = 32  # of 255: up to here the darker side of soft edges is black
_AS_ONE = "Write all masks the same way, or list the values of the foreground in MASK_FOREGROUND"


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


def _blurred(seen):
    """Whether values run into each other in an observed mask, whatever kind of file holds it now."""
    pixels, thick = seen.size[0] * seen.size[1], sum(n for _, n in seen.thick)
    if len(seen.counts) <= 2:
        return False
    if seen.lossy:
        return True
    many = 50 * seen.slopes[0] >= pixels - thick and 2 * seen.slopes[1] > len(seen.counts)
    return many and 20 * thick >= pixels  # noise has no areas, and its values are what they are


def pack(colours):
    """(H, W, 3) uint8 -> (H, W) int32 of 0xRRGGBB."""
    red, green, blue = (colours[..., channel].astype(np.int32) for channel in range(3))
    return red << 16 | green << 8 | blue


# ---- what the values mean in all masks


@dataclass(frozen=True)
class MaskRule:
    """Which values are foreground.

    `kind`: "numbers" (grey values, indices of a colour palette), "colours" (0xRRGGBB) or "alpha".
    `soft`: there is one value on each side, and what lies between goes to the nearer one.
    `rest`: every other value is background (MASK_FOREGROUND), or foreground where none is listed; without it,
    another value is an error.
    """

    kind: str = NUMBERS
    background: tuple = (0,)
    foreground: tuple = (255,)
    soft: bool = False
    rest: bool = False

    def to_dict(self):
        """Plain types, for JSON and checkpoints."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, plain):
        return cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in plain.items()})

    def describe(self):
        """The rule in a line of words."""
        if self.kind == ALPHA:
            return "what is more than half opaque (alpha) is foreground, the rest is background"
        one, other = (_listed(side, self.kind) for side in (self.foreground, self.background))
        if self.soft:
            return f"{one} is foreground, {other} is background, values between are cut at the middle"
        if not self.foreground:
            return f"every value but {other} is foreground"
        return f"{one} is foreground, {'every other value' if self.rest else other} is background"


def find_mask_rule(mask_paths, foreground=None, num_workers=None, strict=True):
    """The MaskRule of these masks (files, or pairs of a file and a page of it), looking at all; see decide_mask_rule.

    Files that cannot be decoded are a UserError that names them all; if not `strict`, where no others are left.
    """
    paths = list(mask_paths)
    if not paths:
        raise UserError("There are no masks to find a rule from. Check the folders.")
    found = [_usable(it, foreground) for it in each(_observed_or_fault, paths, num_workers)]
    faults = [str(it) for it in found if isinstance(it, UnusableFile)]
    seen = [it for it in found if not isinstance(it, UnusableFile)]
    if faults and (strict or not seen):
        raise UserError("\n".join(faults))
    return decide_mask_rule(seen, foreground)


def _observed_or_fault(mask):
    try:
        return observe_mask(*mask) if isinstance(mask, tuple) else observe_mask(mask)
    except UnusableFile as fault:
        return fault


def _usable(seen, foreground):
    return seen if isinstance(seen, UnusableFile) else alpha_fault(seen, foreground) or seen


def decide_mask_rule(observations, foreground=None):
    """The one MaskRule by which all the observed masks read; of two values black is the background.

    `foreground` (MASK_FOREGROUND): the value, or a sequence of values, that are foreground instead; "nonzero":
    every value but 0, or black; "alpha": what is more than half opaque.
    UserError: masks of several classes, masks that read by different rules, a `foreground` that no mask has.
    """
    seen = list(observations)
    if faults := [str(fault) for it in seen if (fault := alpha_fault(it, foreground))]:
        raise UserError("\n".join(faults))
    if foreground == ALPHA:
        return MaskRule(ALPHA, (0,), (255,), soft=True)
    nonzero = foreground == NONZERO
    wanted = None if foreground is None or nonzero else _wanted(foreground)
    if any(it.kind == COLOURS for it in seen):
        seen = [_as_colours(it) for it in seen]
    elif clash := _palette_clash(seen):
        if wanted:
            raise UserError(clash)
        seen = [_as_colours(it) for it in seen]
    kind = seen[0].kind
    if wanted and kind == COLOURS and len(wanted) == 3 and max(wanted) <= 255:  # red, green and blue of one
        wanted = tuple(pack(np.array([[wanted]], np.uint8)).ravel().tolist())
    wanted = wanted and tuple(sorted(set(wanted)))
    rule, odd = _two_values(seen, kind), []
    if rule is None and kind == NUMBERS:
        rule, odd = _two_ends(seen)
    elif rule is None and not nonzero:
        _refuse_soft_colours(seen)
    if nonzero:
        return _with_nonzero(seen, kind, None if odd else rule)
    if wanted is not None:
        return _with_foreground(seen, kind, None if odd else rule, wanted)
    if rule is None:
        raise UserError(_several(seen, kind))
    if odd:
        raise UserError(_odd_ones(odd, kind, rule))
    _refuse_unclear_sides(rule, _palette(seen))
    return rule


def _wanted(foreground):
    values = np.atleast_1d(foreground).tolist()
    if not values or not all(type(value) is int for value in values):
        raise UserError(
            f"MASK_FOREGROUND = {foreground!r}: give one or more whole numbers, a colour as 0xFF0000, "
            f'"{NONZERO}" (every value but 0, or black) or "{ALPHA}" (what is opaque).'
        )
    return tuple(values)


def _as_colours(seen):
    """An Observation whose values are colours, whatever they were."""
    if seen.kind == COLOURS:
        return seen
    colours = dict(seen.palette) if seen.palette else {value: min(value, 255) * 0x010101 for value, _ in seen.counts}
    counts, thick = Counter(), Counter()
    for counter, part in ((counts, seen.counts), (thick, seen.thick)):
        for value, pixels in part:
            counter[colours[value]] += pixels  # a palette may hold one colour twice
    return replace(seen, kind=COLOURS, counts=sorted(counts.items()), thick=sorted(thick.items()))


def _palette_clash(seen):
    """Words, if an index is one colour in one mask and another colour in another one."""
    first = {}
    for it in seen:
        for index, colour in it.palette or ():
            other, path = first.setdefault(index, (colour, it.path))
            if other != colour:
                return (
                    f"{name_files([path, it.path])}: index {index} of their palettes is {name_value(other, COLOURS)} "
                    f"in one and {name_value(colour, COLOURS)} in the other, so MASK_FOREGROUND cannot mean both. "
                    "Save all masks with one palette."
                )
    return None


def _two_values(seen, kind):
    """The MaskRule of masks that hold two values in all, else None."""
    values = sorted({value for it in seen for value, _ in it.counts})
    if len(values) > 2:
        return None
    if len(values) == 1:
        white = 0xFFFFFF if kind == COLOURS else 255
        return MaskRule(kind, (0,), (values[0] or white,))
    if _palette(seen).get(values[1]) == 0:  # the colour of this index
        values.reverse()
    return MaskRule(kind, (values[0],), (values[1],))


def _palette(seen):
    return {index: colour for it in seen for index, colour in it.palette or ()}


def _refuse_unclear_sides(rule, palette):
    """Which of two values is foreground is plain only where the other one is black, or nearly."""
    (one,), (other,) = rule.background, rule.foreground
    if palette.get(one) == 0 or one <= (DARK * max(other, 255) / 255 if rule.soft else 0):
        return
    one, other = name_value(one, rule.kind), name_value(other, rule.kind)
    raise UserError(
        f"The masks hold two values, {one} and {other}, and neither is black. Set MASK_FOREGROUND to the one that "
        f"you mean by foreground (--mask-foreground {other})."
    )


def _refuse_soft_colours(seen):
    """A colour between two others may be a third class; which it is, only greys tell."""
    inexact = [it for it in seen if len(it.counts) > 2]
    counts, thick = _pooled(it.counts for it in inexact), _pooled(it.thick for it in inexact)
    others = counts.keys() - list(thick)[:2]
    pixels, thick_pixels = (sum(part.get(value, 0) for value in others) for part in (counts, thick))
    many = len(counts) >= MANY or (len(others) >= 3 and pixels <= sum(counts.values()) / 4)
    if any(it.lossy for it in inexact) or (many and thick_pixels <= pixels / 10):
        raise UserError(
            f"{name_files([it.path for it in inexact])}: colours run into each other there, as smoothing and JPEG "
            "leave them. That can be read only where all masks are exactly grey, and here some are coloured, if only "
            "slightly. Save the masks as PNG from their source, without smoothing. (A JPEG that is saved again as PNG "
            "stays blurred.)"
        )


def _two_ends(seen):
    """(MaskRule, observations that do not read by it) of grey masks with soft or JPEG edges, else (None, [])."""
    ends = _number_ends(seen) if any(len(it.counts) > 2 for it in seen) else None
    if ends is None:
        return None, []
    odd = [it for it in seen if not _numbers_read(it, ends)]
    if len(odd) > len(seen) / 2:
        return None, []
    return MaskRule(NUMBERS, (ends[0],), (ends[1],), soft=True), odd


def _number_ends(seen):
    """(background, foreground): the two values that nearly all pixels are near, or None."""
    pooled = _pooled(it.thick for it in seen) or {0: 0}
    scale = 257 if max(pooled) > 255 else 1  # of 16 bits
    first = next(iter(pooled))
    others = [value for value in pooled if abs(value - first) >= FAR * scale]
    if not others:
        return None
    ends = sorted((first, others[0]))
    inexact = [it for it in seen if len(it.counts) > 2]
    values = _pooled(it.counts for it in inexact)
    between = [n for value, n in values.items() if _side(value, ends) < 0]
    if sum(between) > sum(values.values()) / 10:
        return None
    if any(it.lossy for it in inexact):
        return ends
    # Soft edges pass through many greys. Where there are few, each of them means something.
    if between:
        return ends if len(between) >= 3 and max(between) <= sum(between) / 2 else None
    # Where there are none: good JPEG that was saved as PNG, or white that is not quite white.
    sides = Counter(_side(value, ends) for value in values)
    strays = ends[0] == 0 and all(value == 0 or value >= 250 * scale for value in values)
    return ends if strays or min(sides[0], sides[1]) >= 3 else None


def _side(value, ends):
    """0 near the darker end, 1 near the brighter, -1 between."""
    reach = (ends[1] - ends[0]) * NEAR
    if value <= ends[0] + reach:
        return 0
    return 1 if value >= ends[1] - reach else -1


def _beyond(value, ends):
    """How far outside both ends a value lies, as a share of their distance."""
    return max(ends[0] - value, value - ends[1], 0) / (ends[1] - ends[0])


def _numbers_read(seen, ends):
    """Whether one mask is what soft edges between these ends give: little between them, and that thin.

    JPEG and smoothing overshoot the ends, by half of their distance or little more, and thinly; what lies farther out
    is a class of its own.
    """
    if any(_beyond(v, ends) > 3 / 4 for v, _ in seen.counts) or any(_beyond(v, ends) > 1 / 4 for v, _ in seen.thick):
        return False
    between = sum(n for value, n in seen.counts if _side(value, ends) < 0)
    thick_between = sum(n for value, n in seen.thick if _side(value, ends) < 0)
    if between > sum(n for _, n in seen.counts) / 4 or thick_between > between / 10:
        return False
    # {0, 1} among {0, 255}: areas near one end, but not of its value, and nothing at the other end
    areas = {value for value, _ in seen.thick}
    sides = {_side(value, ends) for value in areas} - {-1}
    return len(sides) == 2 or areas <= set(ends)


def _with_foreground(seen, kind, rule, wanted):
    """The MaskRule by MASK_FOREGROUND."""
    if rule is not None and rule.soft:
        ends = rule.background + rule.foreground
        sides = {2 if _beyond(value, sorted(ends)) > NEAR else _side(value, ends) for value in wanted}
        if sides == {1}:
            return rule
        if sides == {0}:
            return replace(rule, background=rule.foreground, foreground=rule.background)
    _refuse_blurred(seen, _listed(wanted, kind))
    present = {value for it in seen for value, _ in it.counts}
    if not present & set(wanted):
        raise UserError(
            f"MASK_FOREGROUND = {_listed(wanted, kind)}: no mask holds that. {_shares(seen, kind)} Set MASK_FOREGROUND "
            "to one or more of these values."
        )
    return MaskRule(kind, (), wanted, rest=True)


def _with_nonzero(seen, kind, rule):
    """The MaskRule by which every value but 0, or black, is foreground."""
    palette = _palette(seen)
    black = tuple(sorted(index for index, colour in palette.items() if colour == 0))
    exact = MaskRule(kind, black if palette.get(0) and black else (0,), (), rest=True)
    if not any(map(_blurred, seen)):
        return exact
    if rule is not None and rule.soft and rule.background[0] <= DARK * max(rule.foreground[0], 255) / 255:
        return rule
    _refuse_blurred(seen, NONZERO)


def _refuse_blurred(seen, wanted):
    if blurred := [it.path for it in seen if _blurred(it)]:
        raise UserError(
            f"{name_files(blurred)}: compression has blurred the values of the masks (or smoothing has; PNG keeps what "
            f"JPEG has done before), so MASK_FOREGROUND = {wanted} cannot be told from its neighbours. Save the masks "
            "as PNG from their source."
        )


def _several(seen, kind):
    """The message for masks that no rule of two values fits: classes, or a mixture of rules."""
    groups = {}
    for it in seen:
        groups.setdefault(tuple(value for value, _ in it.counts), []).append(it.path)
    many = [path for values, paths in groups.items() if len(values) > 2 for path in paths]
    if many:
        cure = (
            "Set MASK_FOREGROUND to the value, or the values, that you mean by foreground "
            f"(--mask-foreground {name_value(_likely(seen), kind)})"
        )
        if any(map(_blurred, seen)):
            cure = (
                "JPEG or smoothing has blurred these values: save the masks as PNG from their source, then set "
                "MASK_FOREGROUND"
            )
        elif _like_instances(seen, groups):
            cure += (
                '. If they number single objects, and all of them are foreground, set MASK_FOREGROUND = "nonzero" '
                "(--mask-foreground nonzero)"
            )
        return f"The masks hold several classes, e.g. {name_files(many)}. {_shares(seen, kind)} {cure}."
    lines = [
        f"  {{{_listed(values, kind)}}} in {len(paths):,}: {name_files(paths)}"
        for values, paths in sorted(groups.items(), key=lambda it: -len(it[1]))
        if len(values) > 1 or values[0]
    ]
    more = [f"  ... and {len(lines) - 10} more kinds"] if len(lines) > 10 else []
    return "\n".join(["The masks do not all mean the same by their values:", *lines[:10], *more, f"{_AS_ONE}."])


def _like_instances(seen, groups):
    """Whether values number objects rather than classes: very many, or 0 to n in each file with n of its own."""
    if len({value for it in seen for value, _ in it.counts}) > 20:
        return True
    return len(groups) > 1 and all(values == tuple(range(len(values))) for values in groups)


def _odd_ones(odd, kind, rule):
    lines = [f"  {name_files([it.path])} holds {_listed([value for value, _ in it.counts[:12]], kind)}" for it in odd]
    more = [f"  ... and {len(lines) - 10} more"] if len(lines) > 10 else []
    cure = _AS_ONE
    if any(map(_blurred, odd)):
        cure = "Values there are blurred by JPEG or smoothing: save the masks as PNG from their source"
    return "\n".join([f"In most masks {rule.describe()}, but not in:", *lines[:10], *more, f"{cure}."])


def _likely(seen):
    """An example of a class: the most frequent value that is not the background's."""
    common = list(_pooled(it.counts for it in seen))[:2]
    return next((value for value in common if value), common[0])


def _pooled(parts):
    """{value: pixels} over the [value, pixels] lists of many masks, the most frequent first."""
    pooled = Counter()
    for part in parts:
        pooled.update(dict(part))
    return dict(pooled.most_common())


def _shares(seen, kind):
    """Every value and its share of the pixels of all masks."""
    pooled = _pooled(it.counts for it in seen)
    total = sum(pooled.values())
    parts = [f"{name_value(value, kind)} ({100 * n / total:.2g} %)" for value, n in sorted(pooled.items())]
    more = f" and {len(parts) - 40} more" if len(parts) > 40 else ""
    return f"Their values, and what share of all pixels each has: {', '.join(parts[:40])}{more}."


def _listed(values, kind):
    return ", ".join(name_value(value, kind) for value in values)


def name_value(value, kind):
    """A value as a user would write it in MASK_FOREGROUND."""
    return f"0x{value:06X}" if kind == COLOURS else str(value)


def name_files(paths, most=3):
    """Some of the files, and how many more."""
    more = f" and {len(paths) - most:,} more" if len(paths) > most else ""
    return ", ".join(map(shown, paths[:most])) + more


# ---- masks of {0, 1}


def read_mask(path, rule, size=None, page=0):
    """The mask in a file, uint8 (H, W) of {0, 1}, upright, at `size` = (height, width) if given.

    UnusableFile: it cannot be decoded, or holds a value that `rule` does not know.
    """
    decoded = decode(path, page=page)
    if rule.kind == ALPHA:
        alpha = alpha_of(decoded.picture)
        if alpha is None:
            raise _unknown(path, "has no alpha channel", rule)
        mask = _read_numbers(alpha, rule)
    elif rule.kind == COLOURS:
        mask = _judge(pack(colours_of(decoded, path)), rule)
    else:
        if _alpha_tells(decoded.picture):
            raise _hidden_in_alpha(path)
        kind, values, _ = values_of(decoded, path)
        if kind == COLOURS:
            raise _unknown(path, "is coloured", rule)
        mask = _read_numbers(values, rule)
    if mask.max() > 1:
        raise _unknown(path, "holds other values", rule)
    return mask if size is None else resize_mask(mask, size)


def foreground_share(seen, rule):
    """What share of an observed mask's pixels is foreground, 0 to 1."""
    if rule.kind == COLOURS:
        seen = _as_colours(seen)
    values, pixels = np.array(seen.alpha if rule.kind == ALPHA else seen.counts).T
    return float(pixels[_judge(values, rule) == 1].sum() / pixels.sum())


def _unknown(path, what, rule):
    cure = "Write it like the others, or set MASK_FOREGROUND"
    return UnusableFile(path, f"{what}, but in these masks {rule.describe()}", cure)


def _read_numbers(values, rule):
    """0 and 1, and 2 for what the rule does not know."""
    if values.dtype == np.uint8:
        return cv2.LUT(np.ascontiguousarray(values), _judge(np.arange(256), rule))
    return _judge(values, rule)


def _judge(values, rule):
    if rule.soft:
        (low,), (high,) = rule.background, rule.foreground
        twice = 2 * values.astype(np.int32)
        return (twice > low + high if high > low else twice < low + high).astype(np.uint8)
    if not rule.foreground:
        return (~np.isin(values, rule.background)).astype(np.uint8)
    foreground = np.isin(values, rule.foreground)
    known = foreground | rule.rest | np.isin(values, rule.background)
    return np.where(known, foreground, 2).astype(np.uint8)


def resize_mask(mask, size):
    """A mask of {0, 1} at `size` = (height, width): what is foreground on at least half of a pixel's area.

    Measured against the nearest pixel, as IoU of the shrunk mask, enlarged again, with the full one:
    0.969 to 0.948 for CamVid's cars at 160x240, 0.987 to 0.974 for ellipses of 1280x1918 at 320x480.
    """
    return (resize_image(mask * np.uint8(255), size) > 127).astype(np.uint8)
