"""The one rule by which all masks of a dataset read, decided from what was seen in each of them."""

from collections import Counter
from dataclasses import asdict, dataclass, replace

import numpy as np

from errors import UserError
from mask_values import COLOURS, FAR, NEAR, NUMBERS, name_files, name_value, near_which, pack, unpack

DARK = 32  # of 255: up to here the darker side of soft edges is black
_AS_ONE = "Write all masks the same way, or list the values of the foreground in MASK_FOREGROUND"


@dataclass(frozen=True)
class MaskRule:
    """Which values are foreground.

    `kind`: "numbers" (grey values, indices of a colour palette) or "colours" (0xRRGGBB).
    `soft`: there is one value on each side, and what lies between goes to the nearer one.
    `rest`: every other value is background (MASK_FOREGROUND); without it, another value is an error.
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
        one, other = (_listed(side, self.kind) for side in (self.foreground, self.background))
        if self.soft:
            return f"{one} is foreground, {other} is background, values between are cut at the middle"
        return f"{one} is foreground, {'every other value' if self.rest else other} is background"


def _listed(values, kind):
    return ", ".join(name_value(value, kind) for value in values)


def decide_mask_rule(observations, foreground=None):
    """The one MaskRule by which all the observed masks read; of two values black is the background.

    `foreground` (MASK_FOREGROUND): the value, or a sequence of values, that are foreground instead.
    UserError: masks of several classes, masks that read by different rules, a `foreground` that no mask has.
    """
    seen = list(observations)
    wanted = None if foreground is None else _wanted(foreground)
    if any(it.kind == COLOURS for it in seen):
        seen = [as_colours(it) for it in seen]
    elif clash := _palette_clash(seen):
        if wanted:
            raise UserError(clash)
        seen = [as_colours(it) for it in seen]
    kind = seen[0].kind
    if wanted and kind == COLOURS and len(wanted) == 3 and max(wanted) <= 255:  # red, green and blue of one
        wanted = tuple(pack(np.array([[wanted]], np.uint8)).ravel().tolist())
    wanted = wanted and tuple(sorted(set(wanted)))
    rule, odd = _two_values(seen, kind), []
    if rule is None:
        rule, odd = _two_ends(seen, kind)
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
        raise UserError(f"MASK_FOREGROUND = {foreground!r}: give one or more whole numbers, a colour as 0xFF0000.")
    return tuple(values)


def as_colours(seen):
    """An Observation whose values are colours, whatever they were."""
    if seen.kind == COLOURS:
        return seen
    colours = dict(seen.palette) if seen.palette else {value: min(value, 255) * 0x010101 for value, _ in seen.counts}
    counts, thick = (sorted([colours[value], n] for value, n in part) for part in (seen.counts, seen.thick))
    return replace(seen, kind=COLOURS, counts=counts, thick=thick)


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
    if len(values) > 2 or any(it.between for it in seen):
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
    if palette.get(one) == 0:
        return
    darkest = unpack([one])[0].max() if rule.kind == COLOURS else one * 255 / max(other, 255)
    if darkest > (DARK if rule.soft else 0):
        one, other = name_value(one, rule.kind), name_value(other, rule.kind)
        raise UserError(
            f"The masks hold two values, {one} and {other}, and neither is black. Set MASK_FOREGROUND to the one that "
            f"you mean by foreground (--mask-foreground {other})."
        )


def _two_ends(seen, kind):
    """(MaskRule, observations that do not read by it) of masks with soft or JPEG edges, else (None, [])."""
    if not any(len(it.counts) > 2 or it.between for it in seen):
        return None, []
    ends = _colour_ends(seen) if kind == COLOURS else _number_ends(seen)
    if ends is None:
        return None, []
    reads = _colours_read if kind == COLOURS else _numbers_read
    odd = [it for it in seen if not reads(it, ends)]
    if len(odd) > len(seen) / 2:
        return None, []
    return MaskRule(kind, (ends[0],), (ends[1],), soft=True), odd


def _colour_ends(seen):
    """(background, foreground): the two main colours of masks with soft edges, or None."""
    pooled = _pooled(it.thick for it in seen if it.between)
    others = [value for value in pooled if np.abs(unpack([value]) - unpack([next(iter(pooled))])).max() >= FAR]
    if not others:
        return None
    return sorted((next(iter(pooled)), others[0]), key=lambda value: unpack([value])[0].max())


def _colours_read(seen, ends):
    """Whether a mask has no colour but these two; a lossy one may have them a little off."""
    sides = near_which(unpack([value for value, _ in seen.counts]), ends).tolist()
    return -1 not in sides and len(set(sides)) == len(sides)


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


def _numbers_read(seen, ends):
    """Whether one mask is what soft edges between these ends give: little between them, and that thin."""
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
        near = near_which(unpack(wanted), ends).tolist() if kind == COLOURS else [_side(it, ends) for it in wanted]
        if set(near) == {1}:
            return rule
        if set(near) == {0}:
            return replace(rule, background=rule.foreground, foreground=rule.background)
    lossy = [it.path for it in seen if it.lossy and len(it.counts) > 2]
    if lossy:
        raise UserError(
            f"{name_files(lossy)}: the compression has blurred the values of the masks, so MASK_FOREGROUND = "
            f"{_listed(wanted, kind)} cannot be told from its neighbours. Save the masks as PNG from their source."
        )
    present = {value for it in seen for value, _ in it.counts}
    if not present & set(wanted):
        raise UserError(
            f"MASK_FOREGROUND = {_listed(wanted, kind)}: no mask holds that. {_shares(seen, kind)} Set MASK_FOREGROUND "
            "to one or more of these values."
        )
    return MaskRule(kind, (), wanted, rest=True)


def _several(seen, kind):
    """The message for masks that no rule of two values fits: classes, or a mixture of rules."""
    groups = {}
    for it in seen:
        groups.setdefault(tuple(value for value, _ in it.counts), []).append(it.path)
    many = [path for values, paths in groups.items() if len(values) > 2 for path in paths]
    if many:
        lossy = any(it.lossy for it in seen if len(it.counts) > 2)
        cure = (
            "Set MASK_FOREGROUND to the value, or the values, that you mean by foreground "
            f"(--mask-foreground {name_value(_likely(seen), kind)})"
        )
        if lossy:
            cure = "JPEG blurs values: save the masks as PNG from their source, then set MASK_FOREGROUND"
        return f"The masks hold several classes, e.g. {name_files(many)}. {_shares(seen, kind)} {cure}."
    lines = [
        f"  {{{_listed(values, kind)}}} in {len(paths):,}: {name_files(paths)}"
        for values, paths in sorted(groups.items(), key=lambda it: -len(it[1]))
        if len(values) > 1 or values[0]
    ]
    more = [f"  ... and {len(lines) - 10} more kinds"] if len(lines) > 10 else []
    return "\n".join(["The masks do not all mean the same by their values:", *lines[:10], *more, f"{_AS_ONE}."])


def _odd_ones(odd, kind, rule):
    lines = [f"  {name_files([it.path])} holds {_listed([value for value, _ in it.counts[:12]], kind)}" for it in odd]
    more = [f"  ... and {len(lines) - 10} more"] if len(lines) > 10 else []
    return "\n".join([f"In most masks {rule.describe()}, but not in:", *lines[:10], *more, f"{_AS_ONE}."])


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


