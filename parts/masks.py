"""What a mask's pixels mean: what each file holds, one rule for the whole dataset, and the mask in memory by it.

In memory a mask is uint8 (H, W): {0, 1} for one foreground, indices 0 ... C-1 for C classes; IGNORED is a pixel that
is neither trained on nor scored.
Grey values, indices of a palette and colours are told apart, never guessed: what could be read in two ways is
refused in words that say what to do.
"""

from collections import Counter
from dataclasses import asdict, dataclass, replace

import cv2
import numpy as np
from PIL import Image

from parts.files import each
from parts.reading import UnusableFile, decode, resize_image, rgb, shown
from parts.script import UserError

NUMBERS, COLOURS, ALPHA = "numbers", "colours", "alpha"
NONZERO = "nonzero"  # as MASK_FOREGROUND: every value but 0, or black; ALPHA as one: the alpha channel is the mask
ALL = "all"  # as CLASSES: every value that the masks hold
IGNORED = 255  # in memory; no class has this index
MOST = 254  # classes
MANY = 256  # colours of one file that are listed
NEAR, FAR = 1 / 8, 64  # two main values lie at least FAR (of 255) apart; NEAR of that distance is still the same
DARK = 32  # of 255: up to here the darker side of soft edges is black
VOID = 0xE0E0C0  # PASCAL VOC's colour for what has no label
_UNKNOWN = 254  # in memory, until it is refused: a value that the rule does not know
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
    def channels(self):
        """How many outputs a network has for these masks: 1, or one a class."""
        return len(self.classes) or 1

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
        return f"{self._sides()}; {_listed(self.ignored, self.kind)} {verb} ignored"

    def _sides(self):
        if self.kind == ALPHA:
            return "what is more than half opaque (alpha) is foreground, the rest is background"
        if self.classes:
            values = [name_value(value, self.kind) for value in self.classes]
            parts = [value if value == name else f"{value} {name}" for value, name in zip(values, self.names)]
            more = f" and {len(parts) - 12} more" if len(parts) > 12 else ""
            return f"there are {len(parts)} classes: {', '.join(parts[:12])}{more}"
        one, other = (_listed(side, self.kind) for side in (self.foreground, self.background))
        if self.soft:
            return f"{one} is foreground, {other} is background, values between are cut at the middle"
        if not self.foreground:
            return f"every value but {other} is foreground"
        return f"{one} is foreground, {'every other value' if self.rest else other} is background"


def find_mask_rule(mask_paths, foreground=None, num_workers=None, strict=True, ignore=None, classes=None):
    """The MaskRule of these masks (files, or pairs of a file and a page of it), looking at all; see decide_mask_rule.

    Files that cannot be decoded are a UserError that names them all; if not `strict`, where no others are left.
    """
    check_constants(foreground, ignore, classes)  # before many files are looked at
    paths = list(mask_paths)
    if not paths:
        raise UserError("There are no masks to find a rule from. Check the folders.")
    found = [_usable(it, foreground) for it in each(_observed_or_fault, paths, num_workers)]
    faults = [str(it) for it in found if isinstance(it, UnusableFile)]
    seen = [it for it in found if not isinstance(it, UnusableFile)]
    if faults and (strict or not seen):
        raise UserError("\n".join(faults))
    return decide_mask_rule(seen, foreground, ignore, classes)


def _observed_or_fault(mask):
    try:
        return observe_mask(*mask) if isinstance(mask, tuple) else observe_mask(mask)
    except UnusableFile as fault:
        return fault


def _usable(seen, foreground):
    return seen if isinstance(seen, UnusableFile) else alpha_fault(seen, foreground) or seen


def decide_mask_rule(observations, foreground=None, ignore=None, classes=None):
    """The one MaskRule by which all the observed masks read; of two values black is the background.

    `foreground` (MASK_FOREGROUND): the value, or a sequence of values, that are foreground instead; "nonzero":
    every value but 0, or black; "alpha": what is more than half opaque.
    `ignore` (MASK_IGNORE): the value, or a sequence of values, that are neither; masks need not hold them.
    `classes` (CLASSES): "all", the values of the classes in their order, or {name: value}.
    UserError: masks of several classes, masks that read by different rules, a `foreground` that no mask has, values
    that are neither a class nor ignored.
    """
    wanted, ignored, listed = check_constants(foreground, ignore, classes)
    seen = list(observations)
    if faults := [str(fault) for it in seen if (fault := alpha_fault(it, foreground))]:
        raise UserError("\n".join(faults))
    if foreground == ALPHA:
        return MaskRule(ALPHA, (0,), (255,), soft=True)
    nonzero = foreground == NONZERO
    if any(it.kind == COLOURS for it in seen) or any(isinstance(value, tuple) for _, value in listed):
        seen = [_as_colours(it) for it in seen]
    elif clash := _palette_clash(seen):
        if constant := "MASK_FOREGROUND" if wanted else "MASK_IGNORE" if ignored else "CLASSES" if listed else None:
            raise UserError(f"{clash}, so {constant} cannot mean both. Save all masks with one palette.")
        seen = [_as_colours(it) for it in seen]
    kind = seen[0].kind
    wanted, ignored = wanted and _of_kind(wanted, kind), _of_kind(ignored, kind)
    if both := set(wanted or ()) & set(ignored):
        raise UserError(
            f"{_listed(sorted(both), kind)} stands in MASK_FOREGROUND and in MASK_IGNORE. Take it out of one of them."
        )
    if classes is not None:
        return _with_classes(seen, kind, listed, ignored)
    whole = seen
    if ignored:
        _refuse_blurred(seen, f"MASK_IGNORE = {_listed(ignored, kind)}")
        seen = _without(seen, ignored)
    rule, odd = _two_values(seen, kind, ignored), []
    if rule is None and kind == NUMBERS:
        rule, odd = _two_ends(seen)
    elif rule is None and not nonzero:
        _refuse_soft_colours(seen)
    if ignored and rule is not None and rule.soft:
        _say_blurred([it.path for it in seen if len(it.counts) > 2], f"MASK_IGNORE = {_listed(ignored, kind)}")
    if nonzero:
        rule = _with_nonzero(seen, kind, None if odd else rule)
    elif wanted is not None:
        rule = _with_foreground(seen, kind, None if odd else rule, wanted)
    elif rule is None:
        raise UserError(_several(whole, seen, kind))
    elif odd:
        raise UserError(_odd_ones(odd, kind, rule))
    else:
        _refuse_unclear_sides(rule, _palette(seen))
    return replace(rule, ignored=ignored)


def check_constants(foreground=None, ignore=None, classes=None):
    """What MASK_FOREGROUND, MASK_IGNORE and CLASSES list: (values or None, values, [(name or None, value)]). UserError.

    Of what is no list, as "nonzero" and "all", nothing. Whether they fit the masks, decide_mask_rule says.
    """
    wanted = None if foreground is None or foreground in (ALPHA, NONZERO) else _wanted(foreground)
    ignored = () if ignore is None else _wanted(ignore, "MASK_IGNORE")
    listed = _given_classes(classes)
    if classes is not None and foreground is not None:
        raise UserError(
            f"CLASSES = {classes!r} and MASK_FOREGROUND = {foreground!r}: CLASSES trains on several classes, "
            "MASK_FOREGROUND on one. Take one of them back."
        )
    if ignored and foreground == ALPHA:
        raise UserError(
            f'MASK_IGNORE = {ignore!r} and MASK_FOREGROUND = "{ALPHA}": transparency has no value for what is ignored. '
            "Take one of them back."
        )
    return wanted, ignored, listed


def _wanted(given, constant="MASK_FOREGROUND"):
    """The whole numbers of MASK_FOREGROUND or MASK_IGNORE."""
    values = np.atleast_1d(given).tolist()
    if not values or not all(type(value) is int and value >= 0 for value in values):
        words = f', "{NONZERO}" (every value but 0, or black) or "{ALPHA}" (what is opaque)'
        raise UserError(
            f"{constant} = {given!r}: give one or more whole numbers, or a colour as 0xFF0000"
            f"{words if constant == 'MASK_FOREGROUND' else ''}."
        )
    return tuple(values)


def _of_kind(values, kind):
    """Values in order; for coloured masks three up to 255 are the red, green and blue of one."""
    if kind == COLOURS and len(values) == 3 and max(values) <= 255:
        values = (_packed(values),)
    return tuple(sorted(set(values)))


def _packed(colour):
    red, green, blue = colour
    return red << 16 | green << 8 | blue


def _without(seen, ignored):
    """Observations, none blurred, as if these values had no pixels, and of masks that hold anything else."""
    left = [
        replace(
            it,
            counts=[pair for pair in it.counts if pair[0] not in ignored],
            thick=[pair for pair in it.thick if pair[0] not in ignored],
            slopes=[0, 0],
        )
        for it in seen
    ]
    return [it for it in left if it.counts]


def _given_classes(classes):
    """[(name or None, value)] of CLASSES, [] for None and "all"; a value may be a tuple of red, green and blue."""
    if classes is None or (isinstance(classes, str) and classes == ALL):
        return []
    given = []
    if isinstance(classes, dict):
        given = [(name.strip() if isinstance(name, str) else "", _class_value(it)) for name, it in classes.items()]
    elif isinstance(classes, (tuple, list, range)):
        given = [(None, _class_value(it)) for it in classes]
    if not given or any(name == "" or value is None for name, value in given):
        raise UserError(
            f'CLASSES = {classes!r}: give "{ALL}" (every value that the masks hold), values as (0, 3, 8), or names '
            'with their values as {"road": 3, "car": 8} (--classes road=3 car=8); a colour is 0xFF0000 or (255, 0, 0).'
        )
    return given


def _class_value(value):
    """A whole number, a tuple of red, green and blue, or None for what is neither."""
    value = value.item() if isinstance(value, np.generic) else value
    if isinstance(value, (tuple, list)):
        return tuple(value) if len(value) == 3 and all(type(it) is int and 0 <= it <= 255 for it in value) else None
    return value if type(value) is int and value >= 0 else None


def _with_classes(seen, kind, listed, ignored):
    """The MaskRule by CLASSES; `listed`: what _given_classes has found there, none for "all"."""
    present = {value for it in seen for value, _ in it.counts} - set(ignored)
    values = [_packed(value) if isinstance(value, tuple) else value for _, value in listed]
    names = [name for name, _ in listed if name is not None]
    strange = present - set(values) if listed else set()
    if kind == NUMBERS:
        _refuse_blurred(seen, "classes")
    elif strange or not listed:
        _refuse_soft_colours(_without(seen, ignored))
    if not listed:
        _refuse_instances(seen, kind, ignored)
        values = sorted(present)
    faults = [f"{_listed([it], kind)} is given to two classes" for it, n in Counter(values).items() if n > 1]
    faults += [f"two classes are called {name}" for name, n in Counter(names).items() if n > 1]
    faults += [f"{_listed([it], kind)} is in MASK_IGNORE too" for it in values if it in ignored]
    faults += [f"{it} is more than the 65535 of 16 bits" for it in values if kind == NUMBERS and it > 65535]
    if len(values) > MOST:
        faults.append(f"these are {len(values):,} classes, and {MOST} is the most")
    if len(values) < 2:
        one = f"MASK_FOREGROUND = {_listed(values, kind)}" if values else "MASK_FOREGROUND"
        faults.append(f"two classes are the least; {one} tells one from all the rest")
    if faults:
        raise UserError(f"CLASSES = {_typed(listed, values, kind)}: {'; '.join(faults)}. Change CLASSES.")
    if strange:
        _refuse_strange(seen, kind, listed, values, sorted(strange), ignored)
    names = tuple(names or [name_value(value, kind) for value in values])
    colours = tuple(values) if kind == COLOURS else _class_colours(values, _palette(seen))
    return MaskRule(kind, (), (), ignored=ignored, classes=tuple(values), names=names, colours=colours)


def _typed(listed, values, kind, more=""):
    """CLASSES as a user would write it."""
    if not listed:
        return f'"{ALL}"'
    values = [name_value(value, kind) for value in values]
    if listed[0][0] is None:
        return f"({', '.join(values)}{more or ',' * (len(values) == 1)})"
    return "{" + ", ".join(f'"{name}": {value}' for (name, _), value in zip(listed, values)) + more + "}"


def _refuse_strange(seen, kind, listed, values, strange, ignored):
    """Masks hold values that are neither a class nor ignored."""
    files = [it.path for it in seen if any(value in strange for value, _ in it.counts)]
    names = [name_value(value, kind) for value in strange[:12]]
    more = "".join(f", {name}" if listed[0][0] is None else f', "{name}": {name}' for name in names)
    ignore = sorted({*strange, *ignored})
    raise UserError(
        f"{name_files(files)}: values that are no class: {_some_shares(seen, kind, strange)}. Add them "
        f"(CLASSES = {_typed(listed, values, kind, more)}), or leave "
        f"their pixels out of training and scores: MASK_IGNORE = {_tuple(ignore, kind)} "
        f"(--mask-ignore {' '.join(name_value(value, kind) for value in ignore)})."
    )


def _refuse_instances(seen, kind, ignored):
    """All the values may be single objects' numbers, which are no classes."""
    groups = {tuple(value for value, _ in it.counts) for it in _without(seen, ignored)}
    values = {value for group in groups for value in group}
    # Not yet in three or four kinds of files: a tumour is only where its organ is.
    if len(values) > MOST or (len(groups) > 4 and _numbered(groups)):
        what = f"{len(values):,} values" if len(values) > MOST else "0 to n, with another n in each"
        raise UserError(
            f'CLASSES = "{ALL}": the masks hold {what}, so they seem to number single objects, e.g. '
            f"{name_files([it.path for it in seen])}. If all objects are one foreground, set MASK_FOREGROUND = "
            f'"{NONZERO}" (--mask-foreground {NONZERO}). If they are classes, list them: CLASSES = '
            f"{_tuple(sorted(values)[:12], kind)}{' ...' if len(values) > 12 else ''}."
        )


def _class_colours(values, palette):
    """0xRRGGBB of each class by the palette of the masks, () where they have none.

    A class that no mask holds has the colour that PASCAL VOC gives its number, or the next one that is free.
    """
    if not palette:
        return ()
    colours = {value: palette[value] for value in values if value in palette}
    for value in values:
        if value not in colours:
            free = map(_voc_colour, range(value, value + 256))
            colours[value] = next(colour for colour in free if colour not in colours.values())
    return tuple(colours[value] for value in values)


def _voc_colour(index):
    """0xRRGGBB: the bits of an index, from its lowest one, are the highest ones of red, green and blue in turn."""
    colour = 0
    for bit in range(8):
        colour |= (index >> bit & 1) << (16 - 8 * (bit % 3) + 7 - bit // 3)
    return colour


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
                    f"in one and {name_value(colour, COLOURS)} in the other"
                )
    return None


def _two_values(seen, kind, ignored=()):
    """The MaskRule of masks that hold two values in all, or fewer, else None."""
    values = sorted({value for it in seen for value, _ in it.counts})
    if len(values) > 2:
        return None
    if len(values) <= 1:
        white = 0xFFFFFF if kind == COLOURS else 255
        while white in ignored:
            white -= 1
        return MaskRule(kind, (0,), (max(values, default=0) or white,))
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
    _refuse_blurred(seen, f"MASK_FOREGROUND = {_listed(wanted, kind)}")
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
    _refuse_blurred(seen, f"MASK_FOREGROUND = {NONZERO}")


def _refuse_blurred(seen, wanted):
    if blurred := [it.path for it in seen if _blurred(it)]:
        _say_blurred(blurred, wanted)


def _say_blurred(paths, wanted):
    raise UserError(
        f"{name_files(paths)}: compression has blurred the values of the masks (or smoothing has; PNG keeps what "
        f"JPEG has done before), so {wanted} cannot be told from the neighbours. Save the masks as PNG from their "
        "source."
    )


def _several(whole, seen, kind):
    """The message for masks that no rule of two values fits: classes, or a mixture of rules.

    `whole`: the observations with what is ignored, which `seen` does without.
    """
    groups = {}
    for it in seen:
        groups.setdefault(tuple(value for value, _ in it.counts), []).append(it.path)
    many = [path for values, paths in groups.items() if len(values) > 2 for path in paths]
    if many:
        likely = name_value(_likely(seen), kind)
        cure = (
            "For one of them, or some, against the rest, set MASK_FOREGROUND to the value, or the values "
            f'(--mask-foreground {likely}). For all of them, each a class of its own, set CLASSES = "{ALL}" '
            f'(--classes {ALL}), or CLASSES = {{"name": {likely}, ...}} with the values that you mean'
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
        if (void := _likely_void(seen, kind)) is not None:
            name = name_value(void, kind)
            cure += (
                f". {name} may mark borders, or what has no label; if it does, MASK_IGNORE = {name} "
                f"(--mask-ignore {name}) leaves its pixels out of training and scores"
            )
        return f"The masks hold several classes, e.g. {name_files(many)}. {_shares(whole, kind)} {cure}."
    lines = [
        f"  {{{_listed(values, kind)}}} in {len(paths):,}: {name_files(paths)}"
        for values, paths in sorted(groups.items(), key=lambda it: -len(it[1]))
        if len(values) > 1 or values[0]
    ]
    more = [f"  ... and {len(lines) - 10} more kinds"] if len(lines) > 10 else []
    cure = f'{_AS_ONE}. If each value is a class of its own, set CLASSES = "{ALL}" (--classes {ALL}).'
    return "\n".join(["The masks do not all mean the same by their values:", *lines[:10], *more, cure])


def _like_instances(seen, groups):
    """Whether values number objects rather than classes: very many, or 0 to n in each file with n of its own."""
    if len({value for it in seen for value, _ in it.counts}) > 20:
        return True
    return len(groups) > 1 and _numbered(groups)


def _numbered(groups):
    return all(values == tuple(range(len(values))) for values in groups)


def _likely_void(seen, kind):
    """The value that may stand for what has no label: 255 beside small numbers, or VOC's colour."""
    values = {value for it in seen for value, _ in it.counts}
    if kind == COLOURS:
        return VOID if VOID in values else None
    return 255 if max(values) == 255 and max(values - {255}) < 64 else None


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
    return f"Their values, and what share of all pixels each has: {_some_shares(seen, kind)}."


def _some_shares(seen, kind, values=None):
    pooled = _pooled(it.counts for it in seen)
    total = sum(pooled.values())
    shares = [it for it in sorted(pooled.items()) if values is None or it[0] in values]
    parts = [f"{name_value(value, kind)} ({100 * n / total:.2g} %)" for value, n in shares]
    return ", ".join(parts[:40]) + (f" and {len(parts) - 40} more" if len(parts) > 40 else "")


def _tuple(values, kind):
    """A value, or several, as a constant."""
    return f"({_listed(values, kind)})" if len(values) > 1 else _listed(values, kind)


def _listed(values, kind):
    return ", ".join(name_value(value, kind) for value in values)


def name_value(value, kind):
    """A value as a user would write it in MASK_FOREGROUND."""
    return f"0x{value:06X}" if kind == COLOURS else str(value)


def name_files(paths, most=3):
    """Some of the files, and how many more."""
    more = f" and {len(paths) - most:,} more" if len(paths) > most else ""
    return ", ".join(map(shown, paths[:most])) + more


# ---- masks in memory


def read_mask(path, rule, size=None, page=0):
    """The mask in a file, uint8 (H, W) as rule.labels says, upright, at `size` = (height, width) if given.

    `path` may be a tuple of files: foreground is what any of them has as foreground, ignored what else any ignores.
    UnusableFile: it cannot be decoded, or holds a value that `rule` does not know; files of different sizes.
    """
    if isinstance(path, tuple):
        mask = _united(path, rule, page)
        return mask if size is None else resize_mask(mask, size)
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
    if mask.max() > 1 and (mask == _UNKNOWN).any():
        raise _unknown(path, "holds other values", rule)
    return mask if size is None else resize_mask(mask, size)


def _united(paths, rule, page):
    if rule.classes and len(paths) > 1:
        raise UserError(
            f"{name_files(paths)}: several masks of one image are united, which CLASSES leaves unclear: one of two "
            "classes would win. Save one mask for each image."
        )
    mask = read_mask(paths[0], rule, page=page)
    for path in paths[1:]:
        other = read_mask(path, rule, page=page)
        if other.shape != mask.shape:
            raise UnusableFile(
                path,
                f"is {other.shape[0]}x{other.shape[1]}, and {shown(paths[0])}, a mask of the same image, is "
                f"{mask.shape[0]}x{mask.shape[1]} (height x width)",
                "Save all masks of an image at its size",
            )
        mask, foreground = np.maximum(mask, other), (mask == 1) | (other == 1)
        mask[foreground] = 1
    return mask


def count_classes(seen, rule):
    """int64 of max(2, rule.channels) + 1: an observed mask's pixels of each class, the ignored ones last.

    Of one foreground: background, foreground, ignored.
    """
    if rule.kind == COLOURS:
        seen = _as_colours(seen)
    values, pixels = np.array(seen.alpha if rule.kind == ALPHA else seen.counts).T
    counts = np.zeros(256, np.int64)
    np.add.at(counts, _judge(values, rule), pixels)
    return counts[[*range(max(2, rule.channels)), IGNORED]]


def _unknown(path, what, rule):
    cure = "add what it holds to CLASSES or to MASK_IGNORE" if rule.classes else "set MASK_FOREGROUND"
    return UnusableFile(path, f"{what}, but in these masks {rule.describe()}", f"Write it like the others, or {cure}")


def _read_numbers(values, rule):
    """The mask of an array of numbers, with _UNKNOWN for what the rule does not know."""
    if values.dtype == np.uint8:
        return cv2.LUT(np.ascontiguousarray(values), _judge(np.arange(256), rule))
    return _judge(values, rule)


def _judge(values, rule):
    """What values become in memory, uint8 of their shape."""
    if rule.classes:
        return _class_indices(values, rule)
    if rule.soft:
        (low,), (high,) = rule.background, rule.foreground
        twice = 2 * values.astype(np.int32)
        return (twice > low + high if high > low else twice < low + high).astype(np.uint8)
    if not rule.foreground:
        judged = (~np.isin(values, rule.background)).astype(np.uint8)
    else:
        foreground = np.isin(values, rule.foreground)
        known = foreground | rule.rest | np.isin(values, rule.background)
        judged = np.where(known, foreground, _UNKNOWN).astype(np.uint8)
    if rule.ignored:
        judged[np.isin(values, rule.ignored)] = IGNORED
    return judged


def _class_indices(values, rule):
    most = np.iinfo(values.dtype).max
    pairs = [*zip(rule.classes, range(MOST)), *((value, IGNORED) for value in rule.ignored)]
    known, labels = np.array(sorted(pair for pair in pairs if pair[0] <= most), np.int64).reshape(-1, 2).T
    known, labels = known.astype(values.dtype), labels.astype(np.uint8)
    at = np.minimum(np.searchsorted(known, values), len(known) - 1)
    return np.where(known[at] == values, labels[at], np.uint8(_UNKNOWN))


def refuse_united_classes(pairs):
    """UserError where an image has several masks: which class lies on which other one they do not say."""
    if several := [pair for pair in pairs if pair.more]:
        raise UserError(
            f"CLASSES with several masks of one image, e.g. {name_files([*several[0].masks])}: they are united, and "
            "only one foreground can be. Save the classes of an image in one mask, or set CLASSES = None."
        )


def encode_mask(mask, rule):
    """A PIL image of a mask in memory, in the encoding of the masks that `rule` is of.

    Of one foreground: grey, 0 and 255. Of classes their values: RGB for coloured masks, else grey of 8 or 16 bits, or
    a palette where the masks have one. IGNORED is written as the first of the ignored values.
    """
    if not rule.classes:
        return Image.fromarray((mask == 1) * np.uint8(255))
    values = np.zeros(256, np.int32)
    values[: len(rule.classes)] = rule.classes
    values[IGNORED] = rule.ignored[0] if rule.ignored else 0
    if rule.kind == COLOURS:
        return Image.fromarray(np.stack([values >> 16, values >> 8 & 255, values & 255], axis=1).astype(np.uint8)[mask])
    if values.max() > 255:
        return Image.fromarray(values.astype(np.uint16)[mask])
    picture = Image.fromarray(values.astype(np.uint8)[mask])
    if rule.colours:
        palette = np.full(256, VOID)  # also so that no palette is all grey, which would be read by its greys
        palette[list(rule.classes)] = rule.colours
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
