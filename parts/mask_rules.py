"""One rule for all masks of a dataset, decided by what each of them holds.

Grey values, indices of a palette and colours are told apart, never guessed: what could be read in two ways is
refused in words that say what to do.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from parts.errors import UnusableFile, UserError, list_files
from parts.files import parallel_map
from parts.masks import (
    COLOURS,
    MANY,
    MOST,
    NUMBERS,
    VOID,
    MaskRule,
    Observation,
    alpha_fault,
    as_colours,
    list_values,
    name_value,
    observe_mask,
)
from parts.spec import ALL, ALPHA, NONZERO, DataSpec

Mask = str | Path | tuple[str | Path, int]  # a file, or a page of it

NEAR, FAR = 1 / 8, 64  # two main values lie at least FAR (of 255) apart; NEAR of that distance is still the same
DARK = 32  # of 255: up to here the darker side of soft edges is black
_AS_ONE = "Write all masks the same way, or list the values of the foreground in MASK_FOREGROUND"


def _blurred(seen):
    """Whether values run into each other in an observed mask, whatever kind of file holds it now."""
    pixels, thick = seen.size[0] * seen.size[1], sum(n for _, n in seen.thick)
    if len(seen.counts) <= 2:
        return False
    if seen.lossy:
        return True
    many = 50 * seen.slopes[0] >= pixels - thick and 2 * seen.slopes[1] > len(seen.counts)
    return many and 20 * thick >= pixels  # noise has no areas, and its values are what they are


def find_mask_rule(
    masks: Iterable[Mask], spec: DataSpec = DataSpec(), num_workers: int | None = None, strict: bool = True
) -> MaskRule:
    """The MaskRule of these masks (files, or pairs of a file and a page of it), looking at all; see decide_mask_rule.

    Files that cannot be decoded are a UserError that names them all; if not `strict`, where no others are left.
    """
    paths = list(masks)
    if not paths:
        raise UserError("There are no masks to find a rule from. Check the folders.")
    found = [_usable(it, spec.foreground) for it in parallel_map(_observed_or_fault, paths, num_workers)]
    faults = [str(it) for it in found if isinstance(it, UnusableFile)]
    seen = [it for it in found if not isinstance(it, UnusableFile)]
    if faults and (strict or not seen):
        raise UserError("\n".join(faults))
    return decide_mask_rule(seen, spec)


def _observed_or_fault(mask):
    try:
        return observe_mask(*mask) if isinstance(mask, tuple) else observe_mask(mask)
    except UnusableFile as fault:
        return fault


def _usable(seen, foreground):
    return seen if isinstance(seen, UnusableFile) else alpha_fault(seen, foreground) or seen


def decide_mask_rule(observations: Iterable[Observation], spec: DataSpec = DataSpec()) -> MaskRule:
    """The one MaskRule by which all the observed masks read; of two values black is the background.

    UserError: masks of several classes, masks that read by different rules, a MASK_FOREGROUND that no mask has, values
    that are neither a class nor ignored.
    """
    foreground, classes = spec.foreground, spec.classes
    wanted, ignored, listed = spec.foreground_values, spec.ignored_values, spec.listed_classes
    seen = list(observations)
    if faults := [str(fault) for it in seen if (fault := alpha_fault(it, foreground))]:
        raise UserError("\n".join(faults))
    if foreground == ALPHA:
        return MaskRule(ALPHA, (0,), (255,), soft=True)
    nonzero = foreground == NONZERO
    if any(it.kind == COLOURS for it in seen) or any(isinstance(value, tuple) for _, value in listed):
        seen = [as_colours(it) for it in seen]
    elif clash := _palette_clash(seen):
        if constant := "MASK_FOREGROUND" if wanted else "MASK_IGNORE" if ignored else "CLASSES" if listed else None:
            raise UserError(f"{clash}, so {constant} cannot mean both. Save all masks with one palette.")
        seen = [as_colours(it) for it in seen]
    kind = seen[0].kind
    wanted, ignored = wanted and _of_kind(wanted, kind), _of_kind(ignored, kind)
    if both := set(wanted or ()) & set(ignored):
        raise UserError(
            f"{list_values(sorted(both), kind)} stands in MASK_FOREGROUND and in MASK_IGNORE. Take it out of one of "
            "them."
        )
    if classes is not None:
        return _with_classes(seen, kind, listed, ignored)
    whole = seen
    if ignored:
        _refuse_blurred(seen, f"MASK_IGNORE = {list_values(ignored, kind)}")
        seen = _without(seen, ignored)
    rule, odd = _two_values(seen, kind, ignored), []
    if rule is None and kind == NUMBERS:
        rule, odd = _two_ends(seen)
    elif rule is None and not nonzero:
        _refuse_soft_colours(seen)
    if ignored and rule is not None and rule.soft:
        _say_blurred([it.path for it in seen if len(it.counts) > 2], f"MASK_IGNORE = {list_values(ignored, kind)}")
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
    faults = [f"{list_values([it], kind)} is given to two classes" for it, n in Counter(values).items() if n > 1]
    faults += [f"two classes are called {name}" for name, n in Counter(names).items() if n > 1]
    faults += [f"{list_values([it], kind)} is in MASK_IGNORE too" for it in values if it in ignored]
    faults += [f"{it} is more than the 65535 of 16 bits" for it in values if kind == NUMBERS and it > 65535]
    if len(values) > MOST:
        faults.append(f"these are {len(values):,} classes, and {MOST} is the most")
    if len(values) < 2:
        one = f"MASK_FOREGROUND = {list_values(values, kind)}" if values else "MASK_FOREGROUND"
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
        f"{list_files(files)}: values that are no class: {_some_shares(seen, kind, strange)}. Add them "
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
            f"{list_files([it.path for it in seen])}. If all objects are one foreground, set MASK_FOREGROUND = "
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


def _palette_clash(seen):
    """Words, if an index is one colour in one mask and another colour in another one."""
    first = {}
    for it in seen:
        for index, colour in it.palette or ():
            other, path = first.setdefault(index, (colour, it.path))
            if other != colour:
                return (
                    f"{list_files([path, it.path])}: index {index} of their palettes is {name_value(other, COLOURS)} "
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
            f"{list_files([it.path for it in inexact])}: colours run into each other there, as smoothing and JPEG "
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
    _refuse_blurred(seen, f"MASK_FOREGROUND = {list_values(wanted, kind)}")
    present = {value for it in seen for value, _ in it.counts}
    if not present & set(wanted):
        raise UserError(
            f"MASK_FOREGROUND = {list_values(wanted, kind)}: no mask holds that. {_shares(seen, kind)} Set "
            "MASK_FOREGROUND to one or more of these values."
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
        f"{list_files(paths)}: compression has blurred the values of the masks (or smoothing has; PNG keeps what "
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
        return f"The masks hold several classes, e.g. {list_files(many)}. {_shares(whole, kind)} {cure}."
    lines = [
        f"  {{{list_values(values, kind)}}} in {len(paths):,}: {list_files(paths)}"
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
    lines = [
        f"  {list_files([it.path])} holds {list_values([value for value, _ in it.counts[:12]], kind)}" for it in odd
    ]
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
    return f"({list_values(values, kind)})" if len(values) > 1 else list_values(values, kind)


def refuse_united_classes(pairs):
    """UserError where an image has several masks: which class lies on which other one they do not say."""
    if several := [pair for pair in pairs if pair.more]:
        raise UserError(
            f"CLASSES with several masks of one image, e.g. {list_files([*several[0].masks])}: they are united, and "
            "only one foreground can be. Save the classes of an image in one mask, or set CLASSES = None."
        )
