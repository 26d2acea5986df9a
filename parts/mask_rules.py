"""One MaskRule for all masks of a dataset, decided by what each of them holds.

All masks are pooled into a Census. The first reading of the table READINGS whose test holds for it gives the rule, or
a UserError that says what to do: masks that could be read in two ways are refused, nothing is guessed.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import NoReturn

from parts.errors import UnusableFile, UserError, list_files, printable, within_memory
from parts.files import parallel_map
from parts.masks import (
    COLOURS,
    MOST_CLASSES,
    MOST_COLOURS,
    NUMBERS,
    VOID,
    Counts,
    MaskRule,
    Observation,
    alpha_fault,
    class_colour,
    known_to,
    list_values,
    name_value,
    observe_mask,
)
from parts.spec import ALL, ALPHA, NONZERO, DataSpec, ListedClass, pack_color

Mask = str | Path | tuple[str | Path, int]  # a file, or (file, page)

FAR = 64  # of 255: the two ends of soft masks are at least this far apart
NEAR = 1 / 8  # of the distance of the ends: what is nearer to one of them belongs to it
DARK = 32  # of 255: up to here the lower end is black
_LOW, _BETWEEN, _HIGH = "low", "between", "high"  # where a value lies
_AS_ONE = "Write all masks the same way, or list the values of the foreground in MASK_FOREGROUND"


# ---- the decision


def find_mask_rule(
    masks: Iterable[Mask], spec: DataSpec = DataSpec(), num_workers: int | None = None, strict: bool = True
) -> MaskRule:
    """The one MaskRule of these mask files, all of which are read; see decide_mask_rule.

    `num_workers`: processes that decode; None: one per core. `strict`: any file that cannot be decoded is an error;
    otherwise it is one only if none can. UserError: names all of these files, or is decide_mask_rule's.
    """
    files = list(masks)
    if not files:
        raise UserError("There are no masks to find a rule from. Check the folders.")
    results = list(parallel_map(observation_or_fault, files, num_workers))
    observations = [result for result in results if isinstance(result, Observation)]
    faults = [str(result) for result in results if isinstance(result, UnusableFile)]
    if faults and (strict or not observations):
        raise UserError("\n".join(faults))
    return decide_mask_rule(observations, spec)


def observation_or_fault(mask: Mask) -> Observation | UnusableFile:
    """The Observation of a mask, or why it cannot be used."""
    path, page = mask if isinstance(mask, tuple) else (mask, 0)
    try:
        with within_memory(path):
            return observe_mask(path, page)
    except UnusableFile as fault:
        return fault.to_keep()


def decide_mask_rule(observations: Iterable[Observation], spec: DataSpec = DataSpec()) -> MaskRule:
    """The one MaskRule by which all the observed masks are read; of two values black is the background.

    UserError: masks of several classes, masks that need different rules, a MASK_FOREGROUND that no mask has, values
    that are neither a class nor ignored, values that JPEG or smoothing has blurred.
    """
    observations = list(observations)
    faults = filter(None, (alpha_fault(observation, spec.foreground) for observation in observations))
    if text := "\n".join(map(str, faults)):
        raise UserError(text)
    if spec.foreground == ALPHA:
        return MaskRule(ALPHA, (0,), (255,), soft=True)
    _refuse_negative(observations, spec)
    census = take_census(observations, spec)
    reading = next(reading for reading in READINGS if reading.applies(census))
    return replace(reading.read(census), ignored=census.ignored)


# ---- all masks, pooled


@dataclass(frozen=True)
class Census:
    """All observed masks of one dataset, with values of one kind, and what the constants say of these values."""

    observations: tuple[Observation, ...]
    spec: DataSpec
    kind: str  # NUMBERS or COLOURS
    foreground: tuple[int, ...]  # what MASK_FOREGROUND lists
    ignored: tuple[int, ...]  # what MASK_IGNORE lists
    listed: tuple[ListedClass, ...]  # what CLASSES lists; () for "all"

    @cached_property
    def counts(self) -> dict[int, int]:
        """{value: pixels} over all masks, the most frequent value first."""
        return _pool(observation.counts for observation in self.observations)

    @cached_property
    def palette(self) -> dict[int, int]:
        """{index: 0xRRGGBB} of the used indices of the masks' palettes."""
        return {index: colour for observation in self.observations for index, colour in observation.palette or ()}

    @cached_property
    def names(self) -> dict[int, str]:
        """{value: name} of the used values, where the masks' files say names."""
        return dict(entry for observation in self.observations for entry in observation.names or ())

    @cached_property
    def groups(self) -> dict[tuple[int, ...], list[str]]:
        """{values: the files that hold exactly these}."""
        groups = defaultdict(list)
        for observation in self.observations:
            groups[observation.values].append(observation.path)
        return groups

    @cached_property
    def inexact(self) -> list[Observation]:
        """The masks of more than two values, among which there may be soft edges."""
        return [observation for observation in self.observations if len(observation.counts) > 2]

    @cached_property
    def blurred(self) -> list[str]:
        """The files whose values JPEG or smoothing has blurred."""
        return [observation.path for observation in self.observations if observation.is_blurred]

    @cached_property
    def soft_edges(self) -> "SoftEdges | None":
        """The two ends of grey masks with soft edges, or None where more than half of the masks are no such masks."""
        if self.kind != NUMBERS or not self.inexact:
            return None
        soft = _find_ends(self.observations)
        if soft is None or not _are_soft_edges(self.inexact, soft):
            return None
        odd = tuple(observation for observation in self.observations if not _fits(observation, soft))
        return replace(soft, odd=odd) if len(odd) <= len(self.observations) / 2 else None

    @cached_property
    def kept(self) -> "Census":
        """The same without the ignored values, and without masks that hold nothing else."""
        if not self.ignored:
            return self
        observations = [observation.without(self.ignored) for observation in self.observations]
        return replace(self, observations=tuple(observation for observation in observations if observation.counts))


def _pool(counts: Iterable[Counts]) -> dict[int, int]:
    """{value: pixels} over the counts of many masks, the most frequent value first."""
    pooled: Counter[int] = Counter()
    for pairs in counts:
        pooled.update(dict(pairs))  # type: ignore[arg-type]  # lists of two are pairs too
    return dict(pooled.most_common())


def take_census(observations: Sequence[Observation], spec: DataSpec) -> Census:
    """The Census of masks whose alpha channels are in order.

    UserError: palettes contradict each other, a value is foreground and ignored.
    """
    kind = NUMBERS
    if any(observation.kind == COLOURS for observation in observations) or _lists_colours(observations, spec):
        kind = COLOURS  # numbers have colours too, by their palette or as greys
        observations = [observation.as_colours() for observation in observations]
    else:
        _refuse_other_palettes(observations, spec)
    foreground = _of_kind(_foreground_values(observations, spec), kind)
    ignored = _of_kind(spec.ignored_values, kind)
    both = sorted(set(foreground) & set(ignored))
    if both:
        raise UserError(
            f"{list_values(both, kind)} stands in MASK_FOREGROUND and in MASK_IGNORE. Take it out of one of them."
        )
    return Census(tuple(observations), spec, kind, foreground, ignored, spec.listed_classes)


def _foreground_values(observations: Iterable[Observation], spec: DataSpec) -> tuple[int, ...]:
    """The values that MASK_FOREGROUND lists; a name stands for its value. UserError: the masks do not have that name.

    The files of the masks say names where they were drawn by annotations.
    """
    value_of: dict[str, int] = {}
    name_of: dict[int, str] = {}
    for observation in observations:
        for value, name in observation.names or ():
            if value_of.setdefault(name, value) != value or name_of.setdefault(value, name) != name:
                raise UserError(
                    f"{observation.path}: says that {value} is {name}, and other masks say something else. Draw all "
                    "annotations anew, for training and validation at once."
                )
    unknown = [name for name in spec.foreground_names if name not in value_of]
    if unknown:
        listed = f"these: {', '.join(value_of)}" if value_of else "none. Give whole numbers, or a colour as 0xFF0000"
        raise UserError(
            f"MASK_FOREGROUND = {spec.foreground!r}: {', '.join(map(repr, unknown))} is no name of a class; the masks' "
            f'files say {listed}. "{NONZERO}" takes every value but 0, or black, and "{ALPHA}" what is opaque.'
        )
    return (*(spec.foreground_values or ()), *(value_of[name] for name in spec.foreground_names))


def _lists_colours(observations: Iterable[Observation], spec: DataSpec) -> bool:
    """Whether CLASSES lists colours, or MASK_FOREGROUND or MASK_IGNORE those of the palettes instead of indices."""
    if any(entry.is_color for entry in spec.listed_classes):
        return True
    used = [entry for observation in observations for entry in observation.palette or ()]
    indices, colours = {index for index, _ in used}, {colour for _, colour in used}
    for values in (spec.foreground_values or (), spec.ignored_values):
        if not indices.issuperset(values) and not colours.isdisjoint(_of_kind(values, COLOURS)):
            return True
    return False


def _of_kind(values: tuple[int, ...], kind: str) -> tuple[int, ...]:
    """Values in order; for coloured masks three up to 255 are the red, green and blue of one colour."""
    if kind == COLOURS and len(values) == 3 and max(values) <= 255:
        return (pack_color(values),)
    return tuple(sorted(set(values)))


def _refuse_other_palettes(observations: Iterable[Observation], spec: DataSpec) -> None:
    """UserError: an index is one colour in one mask and another colour in another mask."""
    constants = {
        "MASK_FOREGROUND": spec.foreground_values,
        "MASK_IGNORE": spec.ignored_values,
        "CLASSES": spec.listed_classes,
    }
    listed = next((name for name, values in constants.items() if values), "one value")
    first_use: dict[int, tuple[int, str]] = {}
    for observation in observations:
        entries = observation.palette or []
        if not entries and observation.mode == "P":  # a grey palette, such as a GIF's that is black all over
            entries = [[value, min(value, 255) * 0x010101] for value in observation.values]
        for index, colour in entries:
            first_colour, first_path = first_use.setdefault(index, (colour, observation.path))
            if colour != first_colour:
                raise UserError(
                    f"{list_files([first_path, observation.path])}: index {index} of their palettes is "
                    f"{name_value(first_colour, COLOURS)} in one and {name_value(colour, COLOURS)} in the other, so "
                    f"{listed} cannot mean both. Save all masks as PNG, with one palette or in RGB; or list colours "
                    f"instead of indices, such as {name_value(first_colour, COLOURS)}."
                )


# ---- soft edges: grey masks of two values, with what JPEG or smoothing has left between them


@dataclass(frozen=True)
class SoftEdges:
    """Grey masks that are cut at the middle between two ends, the values that nearly all of their pixels are near."""

    low: int
    high: int
    odd: tuple[Observation, ...] = ()  # the masks that do not fit

    @property
    def mask_rule(self) -> MaskRule:
        """The rule of all masks but the odd ones."""
        return MaskRule(NUMBERS, (self.low,), (self.high,), soft=True)

    @property
    def is_dark(self) -> bool:
        """Whether the lower end is black, or nearly."""
        return self.low <= DARK * max(self.high, 255) / 255

    def place(self, value: int) -> str:
        """_LOW near the lower end, or below it; _HIGH near the higher end, or above it; else _BETWEEN."""
        near = (self.high - self.low) * NEAR
        if value <= self.low + near:
            return _LOW
        if value >= self.high - near:
            return _HIGH
        return _BETWEEN

    def beyond(self, value: int) -> float:
        """How far outside both ends a value lies, as a share of their distance."""
        return max(self.low - value, value - self.high, 0) / (self.high - self.low)


def _find_ends(observations: Iterable[Observation]) -> SoftEdges | None:
    """The two most frequent values of areas that are far apart, or None where there is only one."""
    thick = list(_pool(observation.thick for observation in observations))  # the most frequent first
    distance = FAR * _step(max(thick, default=0))
    for value in thick[1:]:
        if abs(value - thick[0]) >= distance:
            return SoftEdges(min(value, thick[0]), max(value, thick[0]))
    return None


def _step(highest: int) -> int:
    """What a step of 8 bits is among values up to `highest`: 257 in 16 bits."""
    return 257 if highest > 255 else 1


def _are_soft_edges(inexact: list[Observation], soft: SoftEdges) -> bool:
    """Whether nearly all pixels of these masks are near the two ends, and the rest are soft edges between them."""
    pixels = _pool(observation.counts for observation in inexact)
    between = [pixels[value] for value in pixels if soft.place(value) == _BETWEEN]
    if sum(between) > sum(pixels.values()) / 10:
        return False
    if any(observation.lossy for observation in inexact):
        return True
    if between:
        # Soft edges pass through many greys. Where there are few, each of them means something.
        return len(between) >= 3 and max(between) <= sum(between) / 2
    if soft.low == 0 and all(value == 0 or value >= 250 * _step(soft.high) for value in pixels):
        return True  # white that is not quite white
    # Good JPEG that was saved as PNG has several values at each end.
    places = Counter(soft.place(value) for value in pixels)
    return min(places[_LOW], places[_HIGH]) >= 3


def _fits(observation: Observation, soft: SoftEdges) -> bool:
    """Whether one mask is what soft edges between these ends give: little between them, and that thin.

    JPEG and smoothing overshoot the ends, by half of their distance or little more, and thinly; what lies farther out
    is a class of its own.
    """
    thick_values = {value for value, _ in observation.thick}
    if max(map(soft.beyond, observation.values)) > 3 / 4 or max(map(soft.beyond, thick_values), default=0) > 1 / 4:
        return False
    between = sum(pixels for value, pixels in observation.counts if soft.place(value) == _BETWEEN)
    thick_between = sum(pixels for value, pixels in observation.thick if soft.place(value) == _BETWEEN)
    if between > sum(pixels for _, pixels in observation.counts) / 4 or thick_between > between / 10:
        return False
    # {0, 1} among {0, 255}: areas near one end, but not of its value, and nothing at the other end
    places = {soft.place(value) for value in thick_values} - {_BETWEEN}
    return len(places) == 2 or thick_values <= {soft.low, soft.high}


# ---- the readings


@dataclass(frozen=True)
class Reading:
    """One way to read masks: `read` gives the rule, or refuses, if `applies` is the first test that holds."""

    name: str
    applies: Callable[[Census], bool]
    read: Callable[[Census], MaskRule]


def _read_classes(census: Census) -> MaskRule:
    """Every value is a class or ignored."""
    values = tuple(entry.value for entry in census.listed)
    names = tuple(entry.name for entry in census.listed if entry.name)
    if census.kind == NUMBERS and census.blurred:
        raise _blurred(census.blurred, "classes")
    between = _smoothed_between(census)
    if census.kind == COLOURS and not {*census.kept.counts}.issubset({*values, *between}):
        _refuse_soft_colours(census.kept, between)
    if not census.listed:  # "all"
        _refuse_object_numbers(census)
        values = tuple(sorted(census.kept.counts))
    names = names or tuple(census.names.get(value, name_value(value, census.kind)) for value in values)
    rule = MaskRule(census.kind, (), (), classes=values, names=names, files=census.spec.files)
    if faults := _class_faults(census, rule):
        raise UserError(f"CLASSES = {census.spec.classes!r}: {'; '.join(faults)}. Change CLASSES.")
    if unknown := sorted({*census.kept.counts}.difference(rule.values, between)):
        _refuse_unknown_values(census, unknown)
    colours = values if census.kind == COLOURS else _class_colours(values, census.palette)
    return replace(rule, soft=bool(between), colours=colours)


def _smoothed_between(census: Census) -> set[int]:
    """The colours between two that CLASSES and MASK_IGNORE list, where these are soft edges, and all is counted."""
    masks, listed = census.kept, tuple(entry.value for entry in census.listed)
    counted = not any(mask.lossy or len(mask.counts) >= MOST_COLOURS for mask in masks.inexact)
    if masks.kind != COLOURS or not listed or not counted:
        return set()
    rule = MaskRule(COLOURS, (), (), soft=True, ignored=census.ignored, classes=listed)
    between = known_to(rule, masks.counts).difference(listed)
    for mask in masks.observations:
        counts, thick = _pool([mask.counts]), _pool([mask.thick])
        between -= {value for value in thick if 10 * thick[value] > counts[value]}
    for mask in masks.observations:
        if 4 * sum(pixels for value, pixels in mask.counts if value in between) > mask.size[0] * mask.size[1]:
            return set()
    return between if len(between) >= 3 else set()  # as of greys: where there are few, each of them means something


def _class_faults(census: Census, rule: MaskRule) -> list[str]:
    """What is wrong with the classes of a rule, in words."""
    values = rule.classes
    faults = [f"{name_value(value, census.kind)} is given to two classes" for value in _repeated(values)]
    faults += [f"two classes are called {name}" for name in _repeated(rule.names)]
    both = sorted({*rule.values} & {*census.ignored})
    faults += [f"{name_value(value, census.kind)} is in MASK_IGNORE too" for value in both]
    if census.spec.class_files:
        drawn = dict(zip(rule.values, rule.label_names))
        told = [f"{value} is {name}" for value, name in census.names.items() if drawn.get(value, name) != name]
        faults += [f"{text}, as the masks' files say, which were drawn by other CLASSES" for text in told[:1]]
    if census.kind == NUMBERS:
        faults += [f"{value} is more than the 65535 of 16 bits" for value in values if value > 65535]
    if len(values) > MOST_CLASSES:
        faults.append(f"these are {len(values):,} classes, and {MOST_CLASSES} is the most")
    if len(values) < 2:
        one = ", ".join(name_value(value, census.kind) for value in values) or "a value"
        faults.append(f"two classes are the least; MASK_FOREGROUND = {one} tells one from all the rest")
    return faults


def _repeated(entries: Sequence) -> list:
    return [entry for entry, count in Counter(entries).items() if count > 1]


def _class_colours(values: Sequence[int], palette: dict[int, int]) -> tuple[int, ...]:
    """0xRRGGBB of each class by the palette of the masks, () where they have none.

    A class that no mask holds has the colour that PASCAL VOC gives its number, or the next one that is free.
    """
    if not palette:
        return ()
    colours = {value: palette[value] for value in values if value in palette}
    for value in values:
        if value not in colours:
            candidates = map(class_colour, range(value, value + 256))
            colours[value] = next(colour for colour in candidates if colour not in colours.values())
    return tuple(colours[value] for value in values)


def _ignores_in_blurred(census: Census) -> bool:
    """Whether values are to be ignored in masks that are blurred, or have soft edges."""
    return bool(census.ignored) and (bool(census.blurred) or census.kept.soft_edges is not None)


def _refuse_ignored(census: Census) -> NoReturn:
    files = census.blurred or [observation.path for observation in census.kept.inexact]
    raise _blurred(files, f"MASK_IGNORE = {list_values(census.ignored, census.kind)}")


def _read_nonzero(census: Census) -> MaskRule:
    """Every value but 0, or black, is foreground."""
    masks = census.kept
    if masks.blurred:
        soft = masks.soft_edges
        if soft is None or soft.odd or not soft.is_dark:
            raise _blurred(masks.blurred, f"MASK_FOREGROUND = {NONZERO}")
        return soft.mask_rule
    black = sorted(index for index, colour in masks.palette.items() if colour == 0)
    if not black or not masks.palette.get(0):  # index 0 is black, or has no colour
        black = [0]
    return MaskRule(masks.kind, tuple(black), (), rest=True)


def _read_listed_foreground(census: Census) -> MaskRule:
    """The listed values are foreground, every other value is background."""
    masks = census.kept
    if masks.kind == COLOURS:
        _refuse_soft_colours(masks)
    soft = masks.soft_edges
    if soft is not None and not soft.odd and all(soft.beyond(value) <= NEAR for value in masks.foreground):
        places = {soft.place(value) for value in masks.foreground}
        if places == {_HIGH}:
            return soft.mask_rule
        if places == {_LOW}:
            return replace(soft.mask_rule, background=(soft.high,), foreground=(soft.low,))
    constant = f"MASK_FOREGROUND = {list_values(masks.foreground, masks.kind)}"
    if masks.blurred:
        raise _blurred(masks.blurred, constant)
    if not set(masks.counts) & set(masks.foreground):
        raise UserError(
            f"{constant}: no mask holds that. {_tell_shares(masks)} Set MASK_FOREGROUND to one or more of these values."
        )
    return MaskRule(masks.kind, (), masks.foreground, rest=True)


def _read_two_values(census: Census) -> MaskRule:
    """Black is background and the other value foreground."""
    masks = census.kept
    values = sorted(masks.counts)
    if len(values) < 2:  # all masks are empty, or full
        white = 0xFFFFFF if masks.kind == COLOURS else 255
        while white in masks.ignored:
            white -= 1
        return MaskRule(masks.kind, (0,), (max(values, default=0) or white,))
    background, foreground = values
    if masks.palette.get(foreground) == 0:  # its colour is black
        background, foreground = foreground, background
    if masks.palette.get(background, background) != 0:
        _refuse_unclear_sides(background, foreground, masks)
    return MaskRule(masks.kind, (background,), (foreground,))


def _read_soft_edges(census: Census) -> MaskRule:
    """Greys are cut at the middle between the two ends."""
    masks = census.kept
    soft = masks.soft_edges
    assert soft is not None  # the table has tested it
    if soft.odd:
        _refuse_odd(soft)
    if not soft.is_dark and masks.palette.get(soft.low) != 0:
        _refuse_unclear_sides(soft.low, soft.high, masks)
    return soft.mask_rule


def _refuse_the_rest(census: Census) -> NoReturn:
    """Several classes, or a mixture of encodings."""
    masks = census.kept
    if masks.kind == COLOURS:
        _refuse_soft_colours(masks)
    if masks.inexact:
        _refuse_several_classes(census)
    _refuse_mixture(masks)


READINGS = (  # tried in order
    Reading("CLASSES", lambda census: census.spec.classes is not None, _read_classes),
    Reading("MASK_IGNORE in blurred masks", _ignores_in_blurred, _refuse_ignored),
    Reading('MASK_FOREGROUND = "nonzero"', lambda census: census.spec.foreground == NONZERO, _read_nonzero),
    Reading("MASK_FOREGROUND lists values", lambda census: bool(census.foreground), _read_listed_foreground),
    Reading("annotations, all of them foreground", lambda census: bool(census.names), _read_nonzero),
    Reading("two values", lambda census: len(census.kept.counts) <= 2, _read_two_values),
    Reading("soft edges between two values", lambda census: census.kept.soft_edges is not None, _read_soft_edges),
    Reading("anything else", lambda census: True, _refuse_the_rest),
)


# ---- what is refused, in words


def _refuse_negative(observations: Iterable[Observation], spec: DataSpec) -> None:
    """UserError: masks hold negative values or NaN that are not ignored, or fractions where there are classes."""
    ignored = spec.ignored_values
    negative = {value for observation in observations for value in observation.values if value < 0} - {*ignored}
    if negative:
        files = [observation.path for observation in observations if not negative.isdisjoint(observation.values)]
        values = sorted(negative)[:10]
        raise UserError(
            f"{list_files(files)}: negative values, or NaN: {list_values(values, NUMBERS)}. If they stand for pixels "
            f"without a label, leave these out of training and scores: {_ignore_text(values, NUMBERS)}. Else save the "
            "masks with whole numbers from 0 to 255."
        )
    cut = [observation.path for observation in observations if observation.cut]
    if cut and spec.classes is not None:
        raise UserError(f"{list_files(cut)}: the values are fractions, and no classes. Save the masks with numbers.")


def _blurred(files: list[str], constant: str) -> UserError:
    return UserError(
        f"{list_files(files)}: compression has blurred the values of the masks (or smoothing has; PNG keeps what "
        f"JPEG has done before), so {constant} cannot be told from the neighbours. Save the masks as PNG from their "
        "source."
    )


def _refuse_soft_colours(census: Census, between: Collection[int] = ()) -> None:
    """UserError: colours are blurred. One between two others may be a third class, which only greys could tell."""
    counts = _pool(observation.counts for observation in census.inexact)
    thick = _pool(observation.thick for observation in census.inexact)
    # All but the colours of the two largest areas, and those that CLASSES lists
    listed = {entry.value for entry in census.listed}
    others = set(counts) - set(list(thick)[:2]) - listed.union(between)
    pixels = sum(counts[value] for value in others)
    thick_pixels = sum(thick.get(value, 0) for value in others)
    many = len(counts) >= MOST_COLOURS or (len(others) >= 3 and pixels <= sum(counts.values()) / 4)
    if any(observation.lossy for observation in census.inexact) or (many and thick_pixels <= pixels / 10):
        raise UserError(
            f"{list_files([observation.path for observation in census.inexact])}: colours run into each other there, "
            f"as smoothing and JPEG leave them. {_tell_readable(census, listed.union(between))}. Save the masks as PNG "
            "from their source, without smoothing. (A JPEG that is saved again as PNG stays blurred.)"
        )


def _tell_readable(census: Census, readable: Collection[int]) -> str:
    """Which colours that run into each other are read, and which are here, the most frequent first."""
    if not census.listed:
        return "That can be read only where all masks are exactly grey, and here some are coloured, if only slightly"
    others = [value for value in census.counts if value not in readable]
    return (
        f"Such are read only between two that CLASSES lists, on thin edges in lossless files of less than "
        f"{MOST_COLOURS} colours, and here are {_list_shares(census, others, 10)}"
    )


def _refuse_object_numbers(census: Census) -> None:
    """UserError: CLASSES = "all", and the values seem to number single objects, which are no classes."""
    groups, values = census.kept.groups, sorted(census.kept.counts)
    if len(values) > MOST_CLASSES:
        problem = f"{len(values):,} values"
    elif len(groups) > 4 and _are_numbered(groups):
        # Not yet in three or four kinds of files: a tumour is only where its organ is.
        problem = "0 to n, with another n in each"
    else:
        return
    more = " ..." if len(values) > 12 else ""
    raise UserError(
        f'CLASSES = "{ALL}": the masks hold {problem}, so they seem to number single objects, e.g. '
        f"{list_files([observation.path for observation in census.observations])}. If all objects are one foreground, "
        f'set MASK_FOREGROUND = "{NONZERO}" (--mask-foreground {NONZERO}). If they are classes, list them: CLASSES = '
        f"({list_values(values[:12], census.kind)}){more}."
    )


def _are_numbered(groups: Iterable[tuple[int, ...]]) -> bool:
    """Whether each kind of file holds the values 0 ... n."""
    return all(values == tuple(range(len(values))) for values in groups)


def _refuse_unknown_values(census: Census, unknown: list[int]) -> NoReturn:
    """Masks hold values that are neither a class nor ignored."""
    files = [observation.path for observation in census.observations if not set(unknown).isdisjoint(observation.values)]
    most = 40
    if census.kind == COLOURS:  # of what smoothing has left there may be many: the most frequent ones
        unknown, most = sorted(unknown, key=lambda value: -census.counts[value]), 10
    ignored = sorted({*unknown[:10], *census.ignored})
    raise UserError(
        f"{list_files(files)}: values that are no class: {_list_shares(census, unknown, most)}. Add them to CLASSES, "
        f"or leave their pixels out of training and scores: {_ignore_text(ignored, census.kind)}."
    )


def _refuse_unclear_sides(background: int, foreground: int, census: Census) -> NoReturn:
    """Which of two values is foreground is clear only where the other one is black, or nearly."""
    names = []
    for value in (background, foreground):
        names.append(name_value(value, census.kind))
        if value in census.palette:
            names[-1] += f" ({name_value(census.palette[value], COLOURS)})"
    raise UserError(
        f"The masks hold two values, {' and '.join(names)}, and neither is black. Set MASK_FOREGROUND to the one that "
        f"you mean by foreground (--mask-foreground {name_value(foreground, census.kind)})."
    )


def _refuse_odd(soft: SoftEdges) -> NoReturn:
    """Most masks have soft edges between two ends, and some hold something else."""
    lines = [f"  {printable(odd.path)} holds {list_values(odd.values[:12], NUMBERS)}" for odd in soft.odd]
    cure = _AS_ONE
    if any(observation.is_blurred for observation in soft.odd):
        cure = "Values there are blurred by JPEG or smoothing: save the masks as PNG from their source"
    _refuse_lines(f"In most masks {soft.mask_rule.describe()}, but not in:", lines, cure)


def _refuse_several_classes(census: Census) -> NoReturn:
    """Masks hold more than two values each. The cures depend on what these seem to be."""
    masks = census.kept
    several = [file for values, files in masks.groups.items() if len(values) > 2 for file in files]
    most = 40
    if masks.blurred:
        most = 10
        cure = (
            "JPEG or smoothing has blurred these values: save the masks as PNG from their source, then set "
            "MASK_FOREGROUND"
        )
    else:
        # Likely a class: the most frequent value that is not the background's
        example = name_value(next(value for value in masks.counts if value), masks.kind)
        cure = (
            "For one of them, or some, against the rest, set MASK_FOREGROUND to the value, or the values "
            f'(--mask-foreground {example}). For all of them, each a class of its own, set CLASSES = "{ALL}" '
            f'(--classes {ALL}), or CLASSES = {{"name": {example}, ...}} with the values that you mean'
        )
        if len(masks.counts) > 20 or (len(masks.groups) > 1 and _are_numbered(masks.groups)):
            cure += (
                f'. If they number single objects, and all of them are foreground, set MASK_FOREGROUND = "{NONZERO}" '
                f"(--mask-foreground {NONZERO})"
            )
    # What may stand for pixels without a label: 255 beside small numbers, or VOC's colour
    values = set(masks.counts)
    void = VOID if masks.kind == COLOURS else 255
    if void in values and (masks.kind == COLOURS or (max(values) == 255 and max(values - {255}) < 64)):
        cure += (
            f". {name_value(void, masks.kind)} may mark borders, or what has no label; if it does, "
            f"{_ignore_text([void], masks.kind)} leaves its pixels out of training and scores"
        )
    # The shares are those of all values, the ignored ones too.
    raise UserError(f"The masks hold several classes, e.g. {list_files(several)}. {_tell_shares(census, most)} {cure}.")


def _refuse_mixture(census: Census) -> NoReturn:
    """Each mask holds two values at most, but not all of them the same."""
    lines = []
    for values, files in sorted(census.groups.items(), key=lambda group: -len(group[1])):
        if values != (0,):
            lines.append(f"  {{{list_values(values, census.kind)}}} in {len(files):,}: {list_files(files)}")
    cure = f'{_AS_ONE}. If each value is a class of its own, set CLASSES = "{ALL}" (--classes {ALL})'
    _refuse_lines("The masks do not all mean the same by their values:", lines, cure)


def _refuse_lines(heading: str, lines: list[str], cure: str) -> NoReturn:
    """UserError of the first ten lines, and how many more."""
    if len(lines) > 10:
        lines = [*lines[:10], f"  ... and {len(lines) - 10} more"]
    raise UserError("\n".join([heading, *lines, f"{cure}."]))


def _tell_shares(census: Census, most: int = 40) -> str:
    shares = _list_shares(census, sorted(census.counts), most)
    return f"Their values, and what share of all pixels each has: {shares}."


def _list_shares(census: Census, values: list[int], most: int = 40) -> str:
    """Values, and the share that each has of all masks' pixels: at most so many, and the number of the others."""
    total = sum(census.counts.values())
    shares = [f"{name_value(value, census.kind)} ({100 * census.counts[value] / total:.2g} %)" for value in values]
    return list_files(shares, most)


def _ignore_text(values: Sequence[int], kind: str) -> str:
    """MASK_IGNORE of these values, as a constant and as a flag."""
    listed = list_values(values, kind)
    constant = f"({listed})" if len(values) > 1 else listed
    return f"MASK_IGNORE = {constant} (--mask-ignore {listed.replace(',', '')})"
