"""DataSpec: what the files of a dataset mean, as the shared constants say it, checked once.

The constants stand in dataset.py. Whether they fit the files is checked by names.py, images.py and mask_rules.py.
"""

import math
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from parts.errors import UserError

CARVANA_GROUP = r"([0-9a-f]{12})_\d+"  # a car's twelve hex digits, before the number of the view
GROUPS = {  # the patterns of GROUP = "auto", and what they tell
    CARVANA_GROUP: "views of Carvana's cars",
    r"(.+)\.rf\.[0-9A-Za-z]+$": "versions by Roboflow",
    r"(.+?)[-_ ]r(?:ow)?[-_]?\d+[-_ ]c(?:ol)?[-_]?\d+(?![0-9A-Za-z])": "tiles by row and column",
    r"(.+?)[-_ ]x[-_]?\d+[-_ ]y[-_]?\d+(?![0-9A-Za-z])": "tiles by x and y",
    r"(.+?)[-_ ]*\[(?:\w+=[^],]*,)*x=": "tiles by QuPath",  # name [x=0,y=512,w=512,h=512]
}
BACKGROUND = "background"  # the name of what is in no class
NONZERO = "nonzero"  # as MASK_FOREGROUND: every value but 0, or black
ALPHA = "alpha"  # as MASK_FOREGROUND: what is more than half opaque
NAN = -(2**31)  # the whole number that stands for a mask's NaN, which MASK_IGNORE calls "nan"
ALL = "all"  # as CLASSES: every value that the masks hold
AUTO = "auto"  # as IMAGE_RANGE: that of nearly all values for training; as GROUP: the patterns GROUPS; as CHANNELS: all

STRETCH, PAD = "stretch", "pad"  # as FIT
MOST_OVERLAPPING = 7  # classes of which a pixel may have several: a bit each of a mask's bytes, of which 255 is ignored

Color = tuple[int, int, int]  # red, green, blue


@dataclass(frozen=True)
class ListedClass:
    """One class that CLASSES lists."""

    name: str | None  # None: CLASSES lists values without names
    value: int  # of a colour 0xRRGGBB
    is_color: bool  # whether it was given as red, green and blue


@dataclass(frozen=True)
class DataSpec:
    """What the files of a dataset mean: the constants that all scripts share, as one value.

    UserError: a constant has a value that it cannot have, or two constants contradict each other.
    """

    foreground: int | str | tuple[int | str, ...] | None = None  # MASK_FOREGROUND: values, "nonzero", "alpha", names
    ignore: int | str | tuple[int | str, ...] | None = None  # MASK_IGNORE: values that are not trained on nor scored
    classes: str | tuple | dict | None = None  # CLASSES: "all", values, {name: value or files}; None: one foreground
    channels: int | str = 3  # CHANNELS of images: 3 (RGB), 1 (greys), any number, or "auto" (what all of them have)
    image_range: tuple[float, float] | str | None = None  # IMAGE_RANGE: (low, high) or "auto", which becomes 0 ... 255
    picture_bands: tuple[int, ...] | None = None  # PICTURE_BANDS: channels, from 1 on, that pictures show; None: first
    group: str | None = AUTO  # GROUP: pattern of the part of a name whose images stay on one side; None: no groups
    image_name: str | None = None  # IMAGE_NAME: an image's name, with {} for what it shares with its masks
    mask_name: str | None = None  # MASK_NAME: a mask's name, with {} for its image's
    resize_masks: bool = False  # RESIZE_MASKS: masks of another size than their image are brought to it
    fit: str = STRETCH  # FIT: "stretch" or "pad", how images become IMAGE_SIZE
    overlap: bool = False  # OVERLAP: a pixel may be of several classes, each of which has masks of its own
    skip_unpaired: bool = False  # SKIP_UNPAIRED: leave out images without a mask and masks without an image

    @classmethod
    def of(cls, settings: Any) -> "DataSpec":
        """The DataSpec of a script's settings, whose attributes have the names of the constants."""
        constants = {"foreground": "MASK_FOREGROUND", "ignore": "MASK_IGNORE"}  # others have the names of their fields
        names = [field.name for field in fields(cls)]
        return cls(**{name: getattr(settings, constants.get(name, name.upper())) for name in names})

    def __post_init__(self) -> None:
        _check_channels(self.channels)
        _check_image_range(self.image_range)
        _check_picture_bands(self.picture_bands, self.channels)
        for constant in ("image_name", "mask_name"):
            if getattr(self, constant) is not None:
                object.__setattr__(self, constant, _composed_name(constant.upper(), getattr(self, constant)))
        compile_groups(self.group)
        if self.fit not in (STRETCH, PAD):
            raise UserError(f'FIT = {self.fit!r}: give "{STRETCH}" or "{PAD}".')
        # Each of these properties raises UserError where its constant cannot be read.
        _ = self.foreground_values, self.ignored_values, self.listed_classes
        if self.classes is not None and self.foreground is not None:
            raise UserError(
                f"CLASSES = {self.classes!r} and MASK_FOREGROUND = {self.foreground!r}: CLASSES trains on several "
                "classes, MASK_FOREGROUND on one. Take one of them back."
            )
        if self.overlap and not (self.class_files and all(map(names_class_file, self.class_files.values()))):
            raise UserError(
                f"OVERLAP = True and CLASSES = {self.classes!r}: classes overlap where each has masks of its own, "
                'below one folder: CLASSES = {"organ": "{}_organ", "tumour": "tumour/{}"} (--classes '
                "organ='{}_organ' ...). Say so, or set OVERLAP = False."
            )
        if self.overlap and len(self.class_files) > MOST_OVERLAPPING:
            raise UserError(
                f"OVERLAP = True and {len(self.class_files)} CLASSES: {MOST_OVERLAPPING} is the most that may overlap. "
                "Train several networks, or join classes."
            )
        if self.ignored_values and self.foreground == ALPHA:
            raise UserError(
                f'MASK_IGNORE = {self.ignore!r} and MASK_FOREGROUND = "{ALPHA}": transparency has no value for what is '
                "ignored. Take one of them back."
            )

    @property
    def foreground_values(self) -> tuple[int, ...] | None:
        """The values that MASK_FOREGROUND lists; None where it lists none ("nonzero", "alpha", names, None)."""
        if self.foreground is None or self.foreground in (ALPHA, NONZERO) or self.foreground_names:
            return None
        others = f', "{NONZERO}" (every value but 0, or black), "{ALPHA}" (what is opaque) or names of classes'
        return _whole_numbers("MASK_FOREGROUND", self.foreground, others)

    @property
    def foreground_names(self) -> tuple[str, ...]:
        """The names of classes that MASK_FOREGROUND lists, of masks that have such; () where it lists none."""
        listed = self.foreground if isinstance(self.foreground, (tuple, list)) else (self.foreground,)
        if not all(isinstance(name, str) and name.lower() not in (ALPHA, NONZERO) for name in listed):
            return ()
        return tuple(map(str, listed))

    @property
    def ignored_values(self) -> tuple[int, ...]:
        """The values that MASK_IGNORE lists, NAN for "nan"."""
        if self.ignore is None:
            return ()
        return _whole_numbers("MASK_IGNORE", self.ignore, ', or "nan"', least=NAN)

    @property
    def listed_classes(self) -> tuple[ListedClass, ...]:
        """The classes that CLASSES lists, in its order; none for None and "all"."""
        if self.classes is None or (isinstance(self.classes, str) and self.classes == ALL):
            return ()
        if self.class_files:
            return self._drawn_classes()
        listed: list[ListedClass | None] = [None]
        if isinstance(self.classes, Mapping):
            names = [name.strip() if isinstance(name, str) else "" for name in self.classes]
            listed = [_listed_class(name, value) for name, value in zip(names, self.classes.values())]
        elif isinstance(self.classes, (tuple, list, range)):
            listed = [_listed_class(None, value) for value in self.classes]
        classes = tuple(entry for entry in listed if entry is not None)
        if not classes or len(classes) < len(listed):
            raise UserError(
                f'CLASSES = {self.classes!r}: give "{ALL}" (every value that the masks hold), values as (0, 3, 8), or '
                'names with their values as {"road": 3, "car": 8} (--classes road=3 car=8); a colour is 0xFF0000 or '
                '(255, 0, 0). Where each class has a file of its own: {"road": "{}_road"} or {"road": "road/{}"}.'
            )
        return classes

    def _drawn_classes(self) -> tuple[ListedClass, ...]:
        """The classes that are drawn into one mask, and their values there; where classes overlap these add up."""
        if self.overlap:
            return tuple(ListedClass(name, 2**bit, is_color=False) for bit, name in enumerate(self.class_files))
        names = [BACKGROUND, *self.class_files]
        return tuple(ListedClass(name, value, is_color=False) for value, name in enumerate(names))

    @property
    def files(self) -> tuple[str, ...]:
        """How the masks of each class are named where classes may overlap; () where they may not."""
        return tuple(self.class_files.values()) if self.overlap else ()

    @property
    def class_files(self) -> dict[str, str]:
        """{class: how its masks are named}, with {} for an image's name; {} where CLASSES does not list such."""
        if not isinstance(self.classes, Mapping):
            return {}
        patterns = {}
        for name, text in self.classes.items():
            if isinstance(name, str) and isinstance(text, str) and text.count("{}") == 1 and text != "{}":
                patterns[name.strip()] = unicodedata.normalize("NFC", text)
        return patterns if len(patterns) == len(self.classes) and all(patterns) else {}


def names_class_file(text: str) -> bool:
    """Whether a text may name the masks of a class below a folder, with {} for an image's name."""
    return text.count("{}") == 1 and "\\" not in text and ".." not in text and not text.startswith("/")


def compile_groups(group: str | None) -> list[re.Pattern[str]]:
    """The regular expressions that GROUP stands for, of which the first that fits counts. UserError: it is none."""
    if group is None:
        return []
    try:
        return [re.compile(pattern) for pattern in (GROUPS if group == AUTO else [group])]
    except re.error as error:
        raise UserError(f"GROUP = {group!r}: is no regular expression ({error}). Mend it.") from None


def pack_color(color: Sequence[int]) -> int:
    """Red, green and blue as one number, 0xRRGGBB."""
    red, green, blue = color
    return red << 16 | green << 8 | blue


def _whole_numbers(constant: str, given: Any, other_words: str = "", least: int = 0) -> tuple[int, ...]:
    values = [_plain(value) for value in np.atleast_1d(np.asarray(given, object)).tolist()]
    if least == NAN:
        values = [NAN if str(value) == "nan" else value for value in values]
    if not values or not all(type(value) is int and value >= least for value in values):
        raise UserError(
            f"{constant} = {given!r}: give one or more whole numbers, or a colour as 0xFF0000{other_words}."
        )
    return tuple(values)


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def _listed_class(name: str | None, value: Any) -> ListedClass | None:
    """The class of a value, or of a colour given as red, green and blue; None: it is neither, or its name is empty."""
    value = _plain(value)
    if name == "":
        return None
    if type(value) is int and value >= 0:
        return ListedClass(name, value, is_color=False)
    if isinstance(value, (tuple, list)) and len(value) == 3 and all(type(c) is int and 0 <= c <= 255 for c in value):
        return ListedClass(name, pack_color(value), is_color=True)
    return None


def _check_channels(given: Any) -> None:
    if not (given == AUTO if isinstance(given, str) else type(given) is int and given > 0):
        raise UserError(
            f"CHANNELS = {given!r}: give a whole number, such as 3 for RGB, 1 for greys and 4 for RGB with a fourth "
            'channel; or "auto", for what all images have.'
        )


def _check_image_range(given: Any) -> None:
    if given is None or (isinstance(given, str) and given == AUTO):
        return
    are_two = isinstance(given, (tuple, list)) and len(given) == 2
    if are_two and all(type(bound) in (int, float) for bound in given) and -math.inf < given[0] < given[1] < math.inf:
        return
    raise UserError(
        f"IMAGE_RANGE = {given!r}: give two numbers, the lower one first, which become 0 and 255, such as "
        '(0, 4095) (--image-range 0 4095); or "auto", for most of what the training images hold; or None.'
    )


def _check_picture_bands(given: Any, channels: int | str) -> None:
    if given is None:
        return
    most = channels if isinstance(channels, int) else math.inf  # "auto": the audit counts them
    are_few = isinstance(given, (tuple, list)) and len(given) in (1, 3)
    if not are_few or not all(type(band) is int and 1 <= band <= most for band in given):
        raise UserError(
            f"PICTURE_BANDS = {given!r} and CHANNELS = {channels!r}: give three channels of the images, counted from "
            "1, as red, green and blue of pictures, such as (4, 3, 2) (--picture-bands 4 3 2); or one, as grey."
        )


def _composed_name(constant: str, given: Any) -> str:
    """A pattern of names with its accents composed, as all names are compared. UserError: not one {}, or several *."""
    text = unicodedata.normalize("NFC", given) if isinstance(given, str) else ""
    if text.count("{}") != 1 or text.count("*") > 1 or "\\" in text or text.startswith("/"):
        raise UserError(
            f"{constant} = {given!r}: give a name, with {{}} where that of the image stands, such as {{}}_segmentation "
            "(--mask-name), and with a * for what differs, such as {}_* where an image has several masks; with "
            "folders, such as {}/masks/* (--image-name '{}/images/*'), it begins below the given folder; or None for "
            "names that agree."
        )
    return text
