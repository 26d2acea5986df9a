"""Which images are held out for validation, as lists of pairs; and in what the two sides of a split differ.

Images of one group (GROUP) always stay together. A random draw is stratified by what the masks hold: every part of it
has about the same share of the images that hold a rare class, or nothing.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from parts.errors import UserError, counted, list_files, printable, tell
from parts.names import Pair, group_of, source_stem
from parts.spec import AUTO

LAST, RANDOM = "last", "random"  # as VAL_CHOICE
MOST_KINDS = 8  # of names or sizes; where there are more they do not sort a dataset into a few kinds
_SIDES = ("train", "training", "val", "valid", "validation", "test")  # words in names that say the side itself

Labels = Mapping[str, Collection[int]]  # {name of a pair: the labels that its masks hold}


class Split(NamedTuple):
    """The pairs of a dataset by what they are for."""

    train: list[Pair]
    val: list[Pair]
    left_out: list[Pair]  # neither: they share their group with a validation image


def split(
    pairs: Sequence[Pair],
    val_images: int | float | str,
    group: str | None = AUTO,
    choice: str = LAST,
    seed: int = 0,
    labels: Labels | None = None,
    skip_unknown: bool = False,
) -> Split:
    """Holds out some of the sorted pairs for validation; what shares its group with one of them is left out.

    val_images: how many; below 1 a fraction of all; or the path of a list of their names, which leaves no choice
    choice: LAST: the last ones. RANDOM: whole groups, drawn by `seed` and stratified by `labels`, until they are enough
    skip_unknown: names on the list that no pair has are told, instead of refused
    UserError: numbers, names or a pattern that leave nothing on one side.
    """
    if len(pairs) < 2:
        raise UserError("There is one image. Add others: some are trained on, and others are held out.")
    groups = _groups_of(pairs, group)
    if isinstance(val_images, str):
        val = _listed(pairs, Path(val_images), skip_unknown)
    elif choice == RANDOM:
        number, sizes, drawn = _number_of(val_images, len(pairs)), Counter(groups), Counter[str]()
        for name in _stratified(pairs, groups, seed, labels or {}):
            if drawn.total() < number:
                drawn[name] = sizes[name]
        val = [pair for pair, name in zip(pairs, groups) if name in drawn]
    else:
        val = list(pairs[-_number_of(val_images, len(pairs)) :])
    chosen = set(val)
    held_out = {name for pair, name in zip(pairs, groups) if pair in chosen}
    result = Split([], val, [])
    for pair, name in zip(pairs, groups):
        if pair not in chosen:
            side = result.left_out if name in held_out else result.train
            side.append(pair)
    if not result.train:
        raise UserError(
            f"Nothing is left to train on: all {len(result.left_out)} other images share a group with the {len(val)} "
            f"validation images ({', '.join(sorted(held_out)[:3])}). Lower VAL_IMAGES (--val-images), or change GROUP "
            "(--group; none: each image stands for itself)."
        )
    return result


def folds(pairs: Sequence[Pair], count: int, group: str | None, seed: int, labels: Labels) -> list[Split]:
    """`count` Splits of the pairs: each group is validated on in one of them, and trained on in all others.

    They are drawn by `seed` and stratified by `labels`. Copies by augment.py are never validated on: they are left out
    where their source is. UserError: there are fewer groups than folds.
    """
    groups = _groups_of(pairs, group)
    sizes, order = Counter(groups), _stratified(pairs, groups, seed, labels)
    if len(order) < count:
        raise UserError(f"FOLDS = {count}: there are {counted(len(order), 'group')} of images. Lower FOLDS (--folds).")
    fold, done, fold_of = 0, 0, {}
    for index, name in enumerate(order, 1):
        fold_of[name] = fold
        done += sizes[name]
        if done * count >= len(pairs) * (fold + 1) or len(order) - index == count - fold - 1:
            fold += 1
    sources = {pair.name for pair in pairs}
    parts = [Split([], [], []) for _ in range(count)]
    for pair, name in zip(pairs, groups):
        source = source_stem(pair.name)
        is_copy = source != pair.name and source in sources
        for number, part in enumerate(parts):
            held_out = part.left_out if is_copy else part.val
            side = held_out if number == fold_of[name] else part.train
            side.append(pair)
    return parts


def _groups_of(pairs: Sequence[Pair], group: str | None) -> list[str]:
    """The group of each pair. The pages of a file are one group, unless there is no other file."""
    pages = Counter(pair.image for pair in pairs)
    names = []
    for pair in pairs:
        is_page = 1 < pages[pair.image] < len(pairs)
        names.append(group_of(pair.name.rpartition("_")[0] if is_page else pair.name, group))
    return names


def _number_of(val_images: int | float, total: int) -> int:
    """How many of `total` images VAL_IMAGES asks for. UserError: it leaves nothing on one side."""
    number = val_images
    if isinstance(val_images, float) and 0 < val_images < 1:
        number = max(1, round(val_images * total))
    if type(number) is not int or not 0 < number < total:
        raise UserError(
            f"VAL_IMAGES is {val_images}, of {total} images. Give a number from 1 to {total - 1}, a fraction between 0 "
            "and 1, such as --val-images 0.1, or a file that lists names."
        )
    return number


def _listed(pairs: Sequence[Pair], path: Path, skip_unknown: bool) -> list[Pair]:
    """The pairs whose names stand in a file, one on each line, with or without their suffix. UserError."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        raise UserError(f"VAL_IMAGES = {str(path)!r}: no list of names can be read there ({error}).") from None
    wanted = {line.strip() for line in lines} - {""}
    names = {pair: {pair.name, f"{pair.name}{pair.image.suffix}"} for pair in pairs}
    unknown = sorted(wanted.difference(*names.values()))
    if unknown:
        text = f"{printable(path)}: {counted(len(unknown), 'name')} of no image that has a mask: {list_files(unknown)}."
        if not skip_unknown:
            raise UserError(f"{text} Mend the list, or leave them out: SKIP_UNPAIRED = True (--skip-unpaired).")
        tell(text)
    val = [pair for pair in pairs if not wanted.isdisjoint(names[pair])]
    if not 0 < len(val) < len(pairs):
        raise UserError(f"{printable(path)}: lists {len(val)} of the {len(pairs)} images. List some, and not all.")
    return val


def _stratified(pairs: Sequence[Pair], groups: Sequence[str], seed: int, labels: Labels) -> list[str]:
    """All groups in a random order of which each stretch holds the same mix: cut anywhere, it gives strata alike.

    The stratum of a group is the rarest label that it holds. The groups of a stratum are spread evenly over the order.
    """
    holding = defaultdict[str, set[int]](set)
    for pair, name in zip(pairs, groups):
        holding[name].update(labels.get(pair.name, ()))
    frequency = Counter(label for held in holding.values() for label in held)
    strata = defaultdict[int, list[str]](list)
    for name in sorted(holding):
        strata[min(holding[name], key=lambda label: (frequency[label], label), default=-1)].append(name)
    draw = np.random.default_rng(seed)
    places: dict[str, tuple[float, float]] = {}
    for _, names in sorted(strata.items()):
        for rank, index in enumerate(draw.permutation(len(names))):
            places[names[index]] = (rank + 0.5) / len(names), draw.random()
    return sorted(places, key=places.__getitem__)


# ---- in what two sides differ


def kind_of_name(name: str) -> str:
    """The words with which an image's name and those of its folders begin, before a number: a/street_07 is a/street.

    Digests such as those of Carvana's cars, and words that say the side itself, tell no kind.
    """
    kinds = []
    for part in source_stem(name).split("/"):
        match = re.match(r"(\D*?)[\W_]*(\d+(?![0-9A-Za-z])|$)", part)
        pieces = re.split(r"[\W_]+", match[1]) if match else []
        kinds.append("_".join(word for word in pieces if word and word.lower() not in _SIDES))
    return "/".join(filter(None, kinds))


def one_sided(train: Iterable[str], val: Iterable[str]) -> list[str]:
    """Lines on the kinds of images that one side alone has; none where there are many kinds. The kind of each image.

    Left out are kinds so rare that by chance, too, fewer than two of them would be on one of the sides.
    """
    here, there = Counter(train), Counter(val)
    kinds = sorted(here.keys() | there.keys())
    lines: list[str] = []
    if not here or not there or len(kinds) > MOST_KINDS:
        return lines
    for kind in kinds:
        most = max(here[kind] / here.total(), there[kind] / there.total())
        if not (here[kind] and there[kind]) and most * min(here.total(), there.total()) >= 2:
            lines.append(f"{kind or 'other'}: {here[kind]:,} for training, {there[kind]:,} for validation")
    return lines


def missing_classes(names: Sequence[str], pixels: Mapping[str, Sequence[int] | np.ndarray]) -> list[str]:
    """A sentence, without its full stop, on the classes that each side lacks: {"training": pixels of each class}."""
    texts = []
    ends = {"training": "cannot be learnt", "validation": "are not scored"}
    for side, counts in pixels.items():
        absent = [name for name, count in zip(names, counts) if not count]
        if absent:
            texts.append(f"Classes that no mask for {side} holds, so that they {ends[side]}: {', '.join(absent)}")
    return texts
