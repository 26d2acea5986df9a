"""What a checkpoint's keys may hold: one table, by which predict.py, LOAD_MODEL and PRETRAINED check what they use.

A file may come from anywhere, and each of its values may be of any plain type. What is checked here can be used
without another look: it has its type, its range and its length, and it takes no memory that the file does not have.
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from parts.errors import UserError
from parts.masks import COLOURS, IGNORED, NUMBERS
from parts.networks import NETWORKS, NODES
from parts.own import is_own
from parts.recipe import PRECISIONS
from parts.rules import Rule, any_text, number, switch, whole
from parts.scores import Scores
from parts.spec import ALPHA, AUTO, NAN, DataSpec, names_class_file

EXPECTED = "Expected a file that train.py saved, or another PyTorch file with a state_dict"
_MOST_CHANNELS = 2**20  # of one level
_MOST_LEVELS = 16
_MOST_PIXELS = 10**8  # of an image that a network sees, or of a crop
_MOST_VALUES = 2**16  # that a mask rule lists
_MOST_EPOCHS = 10**5
_MOST_ENTRIES = 600  # of a dictionary, such as a history's row with a column for each of 254 classes
_SHORT = reprlib.Repr()
_SHORT.maxlevel, _SHORT.maxlist, _SHORT.maxtuple, _SHORT.maxdict, _SHORT.maxstring = 2, 4, 4, 4, 60


# ---- kinds of values


@dataclass(frozen=True)
class Simple:
    """A kind that is told in words, and by a test that takes any value; the Rules of constants are such, too."""

    wanted: str
    accepts: Callable[[Any], bool]


@dataclass(frozen=True)
class OrNone:
    """What another kind is, or None."""

    kind: AnyKind


@dataclass(frozen=True)
class Items:
    """A list or tuple of `least` to `most` items of one kind. The `conditions` are tests of the whole of it."""

    kind: AnyKind
    least: int = 0
    most: int = _MOST_VALUES
    conditions: tuple[Simple, ...] = ()


@dataclass(frozen=True)
class Fields:
    """A dictionary with a kind for each key, of which some are `required`; `others` is the kind of all other keys."""

    kinds: Mapping[str, AnyKind]
    required: Collection[str] = ()
    others: AnyKind | None = None  # None: there are no others
    most: int = _MOST_ENTRIES
    conditions: tuple[Simple, ...] = ()


AnyKind = Simple | Rule | OrNone | Items | Fields


def fault_of(name: str, value: Any, kind: AnyKind) -> str:
    """What is wrong with the value of a key `name`, as a part of a sentence; "" where nothing is."""
    if isinstance(kind, OrNone):
        if value is None:
            return ""
        return fault_of(name, value, kind.kind)
    if isinstance(kind, Items):
        return _fault_of_items(name, value, kind)
    if isinstance(kind, Fields):
        return _fault_of_fields(name, value, kind)
    if kind.accepts(value):
        return ""
    return _unexpected(name, value, kind.wanted)


def _fault_of_items(name: str, value: Any, kind: Items) -> str:
    if not isinstance(value, (list, tuple)) or not kind.least <= len(value) <= kind.most:
        length = kind.least if kind.least == kind.most else f"{kind.least} to {kind.most:,}"
        return _unexpected(name, value, f"a list of {length} entries")
    for index, item in enumerate(value):
        if fault := fault_of(f"{name}[{index}]", item, kind.kind):
            return fault
    return _first_unmet(name, value, kind.conditions)


def _fault_of_fields(name: str, value: Any, kind: Fields) -> str:
    if not isinstance(value, dict) or len(value) > kind.most or not all(isinstance(key, str) for key in value):
        return _unexpected(name, value, f"a dictionary of at most {kind.most} names")
    for key in kind.required:
        if key not in value:
            return f"its {name} lacks {key!r}"
    for key, item in value.items():
        item_kind = kind.kinds.get(key, kind.others)
        if item_kind is None:
            return f"its {name} has {shown(key)}, which is not understood here"
        if fault := fault_of(f"{name}[{shown(key)}]", item, item_kind):
            return fault
    return _first_unmet(name, value, kind.conditions)


def _first_unmet(name: str, value: Any, conditions: tuple[Simple, ...]) -> str:
    for condition in conditions:
        if not condition.accepts(value):
            return _unexpected(name, value, condition.wanted)
    return ""


def _unexpected(name: str, value: Any, wanted: str) -> str:
    return f"its {name} is {shown(value)}, and expected is {wanted}"


def shown(value: Any) -> str:
    """A value for a message, in short: what is in a file may be endless, or too long a number to be printed."""
    try:
        return _SHORT.repr(value)
    except ValueError:
        return f"a {type(value).__name__} of very many digits"


# ---- what the keys may hold


def _is_plain(value: Any, most: tuple[int, ...] = (_MOST_VALUES, _MOST_ENTRIES)) -> bool:
    """Whether a setting is None, a number or text, or a container of such with at most so many, at each depth."""
    if isinstance(value, dict):
        value = [*value.keys(), *value.values()]
    if isinstance(value, (list, tuple)):
        return bool(most) and len(value) <= most[0] and all(_is_plain(item, most[1:]) for item in value)
    return value is None or isinstance(value, (bool, str)) or _is_number(value)


def _is_number(value: Any) -> bool:
    """Whether it is a number that fits into 64 bits; not a number (NaN) does."""
    return type(value) is float or (type(value) is int and abs(value) < 2**63)


def _are_distinct(name: str) -> Simple:
    """The condition that a key's entries are all different."""
    return Simple(f"no entry twice in {name}", lambda value: len(set(value.get(name, ()))) == len(value.get(name, ())))


def _are_as_many(first: str, *others: str) -> Simple:
    """The condition that several keys have equally many entries."""
    wanted = f"as many {', '.join(others)} as {first}"
    return Simple(wanted, lambda value: len({len(value.get(name, ())) for name in (first, *others)}) == 1)


def _written_in_bits(rule: dict[str, Any]) -> bool:
    """Whether files of masks can hold the values of a rule's classes."""
    most = 255 if rule.get("colours") else 65535
    return max(rule.get("classes", ()), default=0) <= (0xFFFFFF if rule.get("kind") == COLOURS else most)


def _constant(name: str, field: str) -> Simple:
    """What a constant of dataset.py may be, a `field` of DataSpec, which checks it."""

    def accepts(value: Any) -> bool:
        try:
            return _is_plain(value) and bool(DataSpec(**{"channels": AUTO, field: value}))
        except UserError:
            return False

    return Simple(f"what {name} may be", accepts)


_NUMBER = Simple("a number", _is_number)
_SHARE = Simple("a number from 0 to 1", lambda value: _is_number(value) and not (value < 0 or value > 1))
_POSITIVE = Simple("a number above 0", lambda value: _is_number(value) and 0 < value < 1e38)
_CHANNELS = whole(1, _MOST_CHANNELS)
_COUNT = Simple("a whole number, 0 or more", lambda value: type(value) is int and 0 <= value < 2**62)
_VALUES = Items(whole(0, 2**31 - 1))
_IS_SMALL = Simple(f"height and width, at most {_MOST_PIXELS:,} pixels", lambda size: math.prod(size) <= _MOST_PIXELS)
_SIZE = Items(whole(1, _MOST_PIXELS), 2, 2, (_IS_SMALL,))
_NAMES = Items(any_text(), most=IGNORED)


def _one_of(*choices: str) -> Simple:
    """One of some words."""
    return Simple(f"one of {', '.join(choices)}", lambda value: isinstance(value, str) and value in choices)


def _is_network(name: Any) -> bool:
    """Whether it is a word of the project, or names one of the user's own: only a text does."""
    return isinstance(name, str) and (name in NETWORKS or is_own(name))


_NETWORK = Fields(
    dict(
        in_channels=_CHANNELS,
        out_channels=_CHANNELS,
        features=Items(_CHANNELS, 1, _MOST_LEVELS),
        encoder=OrNone(_one_of(*NODES)),
        pads=switch(),
        network=Simple("the name of a network", _is_network),
    )
)


def _are_named_by_bits(rule: Mapping[str, Any]) -> bool:
    """Whether classes overlap as they do where their masks are drawn, or do not at all."""
    return not rule.get("files") or list(rule.get("classes", ())) == [2**c for c in range(len(rule["files"]))]


def _has_ends_of_soft_edges(rule: Mapping[str, Any]) -> bool:
    """Whether it is known what is on both sides of soft edges, if a rule has these."""
    if rule.get("soft") and rule.get("classes"):
        return rule.get("kind") == COLOURS and not rule.get("files")
    return not rule.get("soft") or len(rule.get("background", (0,))) == len(rule.get("foreground", (0,))) == 1


_MASK_RULE = Fields(
    dict(
        kind=_one_of(NUMBERS, COLOURS, ALPHA),
        background=_VALUES,
        foreground=_VALUES,
        soft=switch(),
        rest=switch(),
        ignored=Items(whole(NAN, 2**31 - 1)),
        classes=Items(whole(0, 2**31 - 1), most=IGNORED),
        names=_NAMES,
        colours=Items(whole(0, 0xFFFFFF), most=IGNORED),
        files=Items(Simple("a name with {}", lambda name: isinstance(name, str) and names_class_file(name)), most=7),
    ),
    conditions=(
        _are_as_many("classes", "names"),
        _are_distinct("classes"),
        _are_distinct("names"),
        Simple(
            "a colour for each class, or none",
            lambda rule: len(rule.get("colours", ())) in (0, len(rule.get("classes", ()))),
        ),
        Simple("one value on each side of soft edges, or classes of colours", _has_ends_of_soft_edges),
        Simple("classes whose values files can hold", _written_in_bits),
        Simple("a name for the files of each class, or none", _are_named_by_bits),
    ),
)
_HISTORY = Items(
    Fields(
        dict(epoch=whole(1, _MOST_EPOCHS), loss=_NUMBER, dice=_SHARE, dice_nonempty=_SHARE),
        required=("epoch", "dice"),
        others=OrNone(_NUMBER),
    ),
    most=_MOST_EPOCHS,
    conditions=(
        Simple(
            "one row for each epoch, in their order",
            lambda rows: [row["epoch"] for row in rows] == list(range(1, len(rows) + 1)),
        ),
    ),
)
_OTHER_SCORES = ("per_image", "classes", "metrics", "baseline", "loss")
_SCORES = {field.name: _SHARE for field in fields(Scores) if field.name not in _OTHER_SCORES}
_CLASS_SCORES = Fields(
    dict(
        names=_NAMES,
        dice=Items(OrNone(_SHARE)),
        iou=Items(OrNone(_SHARE)),
        share=Items(_SHARE),
        confusion=Items(Items(_COUNT, most=IGNORED), most=IGNORED),
        true=Items(_COUNT),
        predicted=Items(_COUNT),
    ),
    required=("names", "dice", "iou", "share", "confusion"),
    conditions=(
        _are_as_many("names", "dice", "iou", "share", "confusion"),
        Simple(
            "as many columns as rows in confusion",
            lambda scores: all(len(row) == len(scores["names"]) for row in scores["confusion"]),
        ),
    ),
)
_PLATEAU = Fields(
    dict(best=_NUMBER, num_bad_epochs=_COUNT, last_epoch=_COUNT, cooldown_counter=_COUNT),
    required=("best", "num_bad_epochs", "last_epoch", "cooldown_counter"),
)
_SCALER = ("scale", "growth_factor", "backoff_factor")  # numbers above 0

_PROVENANCE = Fields(
    dict(
        version=_COUNT,
        settings=Fields({}),
        sources=Fields(dict.fromkeys(("images", "masks"), Fields({}, others=any_text(), most=2**24))),
    ),
    required=("version", "settings", "sources"),
)

_PLAN = Fields(  # of MINUTES
    dict(steps=whole(1, 2**40), budget=_POSITIVE, seconds=_POSITIVE, epoch_seconds=number(most=1e9)),
    required=("steps", "budget", "seconds", "epoch_seconds"),
)

_OF_DATA = dict(  # settings that predict.py obeys
    CHANNELS="channels",
    CLASSES="classes",
    FIT="fit",
    IMAGE_NAME="image_name",
    MASK_FOREGROUND="foreground",
    MASK_IGNORE="ignore",
    PICTURE_BANDS="picture_bands",
)
# The optimizer's state is checked against the network, in checkpoints.py.
KEYS: dict[str, AnyKind] = dict(
    network=_NETWORK,
    mask_rule=_MASK_RULE,
    image_size=OrNone(_SIZE),
    crop=OrNone(_SIZE),
    image_range=OrNone(
        Items(_NUMBER, 2, 2, (Simple("a low and a higher number", lambda pair: -1e38 < pair[0] < pair[1] < 1e38),))
    ),
    settings=Fields(
        dict(
            PRECISION=_one_of("auto", *PRECISIONS), **{name: _constant(name, field) for name, field in _OF_DATA.items()}
        ),
        others=Simple("a plain value", _is_plain),
    ),
    epoch=_COUNT,
    history=_HISTORY,
    since=_COUNT,
    scores=Fields(
        dict(
            **_SCORES,
            per_image=Items(_SHARE, most=2**40),
            classes=OrNone(_CLASS_SCORES),
            metrics=Fields({}, others=_NUMBER),
            baseline=_SHARE,
            loss=OrNone(_NUMBER),
        ),
        required=(*_SCORES, "per_image"),
    ),
    scored_on=any_text(),
    data=Fields(dict(training=_PROVENANCE, validation=_PROVENANCE)),
    processes=_COUNT,
    schedule=Fields(
        dict(start=_POSITIVE, height=_POSITIVE, plateau=OrNone(_PLATEAU), plan=_PLAN), required=("height", "plateau")
    ),
    scaler=Fields(dict.fromkeys(_SCALER, _POSITIVE) | dict(growth_interval=whole(1, 2**31), _growth_tracker=_COUNT)),
)
# Other programs use these names too; what has another type than ours is left out, as if it were not there.
_TYPES_OF_OURS = dict(network=dict, mask_rule=dict, settings=dict, epoch=int)

PREDICTED = ("network", "mask_rule", "image_size", "crop", "image_range", "settings", "epoch")
RESUMED = (*PREDICTED, "history", "since", "scores", "scored_on", "data", "processes")


def check_keys(path: str | Path, checkpoint: dict[str, Any], names: Collection[str]) -> dict[str, Any]:
    """The checkpoint, after a look at these keys of it; those that another program uses for something else left out.

    A key may be missing. UserError: one of them holds what it may not hold.
    """
    kept = dict(checkpoint)
    for name in names:
        if name not in checkpoint:
            continue
        value = checkpoint[name]
        if not isinstance(value, _TYPES_OF_OURS.get(name, object)):
            del kept[name]
        elif fault := fault_of(name, value, KEYS[name]):
            raise UserError(f"{path}: {fault}. {EXPECTED}.")
    return kept
