"""The true masks of pictures that predict.py scores: found, and read by a rule or drawn from annotations."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np

from parts.annotations import Annotated, Annotations, draw, read_annotations
from parts.errors import UserError, list_files, printable, tell
from parts.mask_rules import find_mask_rule
from parts.masks import MaskRule, read_mask
from parts.names import Pair, Picture, find_masks
from parts.spec import BACKGROUND, NONZERO, DataSpec

Size = tuple[int, int]  # height, width


@dataclass(frozen=True)
class Truths:
    """The true masks of pictures, and the rule that reads them."""

    pairs: dict[Picture, Pair] = field(default_factory=dict)
    mask_rule: MaskRule = MaskRule()

    def read(self, picture: Picture, size: Size) -> np.ndarray | None:
        """The true mask of a picture of `size`, uint8 (H, W) of labels and IGNORED, at its own size; None: it has none.

        UserError: it cannot be read, or it or the picture is turned by 90 degrees.
        """
        pair = self.pairs.get(picture)
        if pair is None:
            return None
        truth = self._labels(picture, size)
        # Viewers turn photographs by their EXIF data, and programs that draw masks may not.
        if _is_turned(truth.shape, size):
            (height, width), (tall, wide) = size, truth.shape
            raise UserError(
                f"{picture} is {height}x{width} (height x width), {printable(pair.mask)} is {tall}x{wide} "
                "(height x width): one is turned, so it is not scored."
            )
        return truth

    def _labels(self, picture: Picture, size: Size) -> np.ndarray:
        pair = self.pairs[picture]
        return read_mask(pair.masks, self.mask_rule, page=pair.mask_page)


@dataclass(frozen=True)
class DrawnTruths(Truths):
    """The true masks of pictures, each drawn from what is annotated of it, with the labels of the network's rule."""

    annotated: dict[Picture, list[Annotated]] = field(default_factory=dict)
    label_of: dict[str, int] = field(default_factory=dict)  # of each class, by its name
    background: int = 0  # the label of what is in no shape
    file_rule: MaskRule | None = None  # as of Annotations

    def _labels(self, picture: Picture, size: Size) -> np.ndarray:
        background = None if self.mask_rule.overlaps else self.background
        return draw(self.annotated[picture], picture.path, size, self.label_of, self.file_rule, background)


def _is_turned(size: Sequence[int], other: Sequence[int]) -> bool:
    """Whether a size (H, W) has the proportions of another one when it is turned by 90 degrees, and not as it is."""

    def is_scaled(height: int, width: int) -> bool:
        # Sides are whole pixels, so proportions agree up to one pixel of either.
        return abs(height * other[1] - width * other[0]) <= max(height, width, *other)

    height, width = size
    return is_scaled(width, height) and not is_scaled(height, width)


def background_of(mask_rule: MaskRule) -> int | None:
    """The label that is background: of classes that of the value 0, or of black, if there is one."""
    if not mask_rule.has_classes or mask_rule.overlaps:
        return 0
    return next((label for label, value in enumerate(mask_rule.classes) if value == 0), None)


class TruthFinder:
    """Finds the true masks of pictures in the place MASKS: masks, or what train.py draws masks of.

    s: the constants of predict.py. checkpoint: which tells those of training. mask_rule: that of the network.
    """

    def __init__(self, s: SimpleNamespace, checkpoint: Mapping[str, Any], mask_rule: MaskRule) -> None:
        self.s, self.checkpoint, self.mask_rule = s, checkpoint, mask_rule
        told = {name.upper(): value for name, value in checkpoint["settings"].items()}  # older ones are in lower case
        self.classes = told.get("CLASSES")
        given = {name: getattr(s, name) for name in ("MASK_FOREGROUND", "MASK_IGNORE")}
        self.is_told = set(given.values()) == {None}  # what is given comes first
        self.foreground, self.ignore = (told.get(name) if given[name] is None else given[name] for name in given)
        self.annotations = self._annotations() if s.MASKS else None

    def _annotations(self) -> Annotations | None:
        """What annotates the inputs; None: masks lie there. UserError: it cannot be understood.

        A file for each class is named as CLASSES of training says; others, as overlays among masks of predict.py's own,
        are left out.
        """
        s = self.s
        spec = DataSpec(image_name=s.IMAGE_NAME, mask_name=s.MASK_NAME)
        if self.mask_rule.has_classes:
            by_class = DataSpec(classes=self.classes, ignore=self.ignore, skip_unpaired=True)
            spec = by_class if by_class.class_files else spec
        return read_annotations(s.inputs, s.MASKS, spec)

    def find(self, wanted: Sequence[Picture]) -> Truths:
        """The true masks of the pictures `wanted`, none without MASKS. UserError: they cannot be compared."""
        s = self.s
        if not s.MASKS:
            return Truths()
        if self.annotations:
            truths: Truths = self._drawn(wanted, self.annotations)
        else:
            pairs = find_masks(wanted, s.MASKS, DataSpec(image_name=s.IMAGE_NAME, mask_name=s.MASK_NAME))
            several = [picture for picture, pair in pairs.items() if pair.more]
            if self.mask_rule.has_classes and several:
                raise UserError(
                    f"{s.MASKS}: several masks fit {list_files(several)}, and such are united to one foreground. A "
                    "network of classes is scored by one mask a picture: take the * out of MASK_NAME."
                )
            truths = Truths(pairs, self._rule_of(pairs))
            tell(f"In the masks {truths.mask_rule.describe()}.")
        lacking = [picture for picture in wanted if picture not in truths.pairs]
        if lacking:
            tell(f"Without a mask in {s.MASKS} (of as many pages), so not scored: {list_files(lacking)}")
        return truths

    def _rule_of(self, pairs: Mapping[Picture, Pair]) -> MaskRule:
        """The rule by which true masks are read.

        The constants MASK_FOREGROUND and MASK_IGNORE come first, then those that training was told, and a network's
        classes. Otherwise the masks themselves are looked at, as their encoding may be another one than in training.
        """
        network, stored = self.mask_rule, self.checkpoint.get("mask_rule")
        if network.has_classes and self.s.MASK_IGNORE is None:
            return network
        # A rule that was made of training's masks alone says nothing of these
        if self.is_told and self.foreground is not None and stored:
            return MaskRule.from_dict(stored)
        spec = DataSpec(foreground=self.foreground, ignore=self.ignore)
        if network.has_classes:
            classes = dict(zip(network.names, network.files or network.classes))
            spec = DataSpec(ignore=self.s.MASK_IGNORE, classes=classes, overlap=network.overlaps)
        masks = [source for pair in pairs.values() for source in pair.mask_sources]
        return find_mask_rule(masks, spec, num_workers=self.s.NUM_WORKERS or None, strict=False)

    def _drawn(self, wanted: Sequence[Picture], annotations: Annotations) -> DrawnTruths:
        """The true masks that annotations give. UserError: they name other classes, or other pictures alone."""
        place = printable(annotations.place)
        pictures = {picture.name.as_posix(): picture for picture in wanted}
        of_image = annotations.by_image(pictures, None)
        if not of_image:
            raise UserError(f"{place}: annotates none of the pictures; their names must be those of the images.")
        if self.s.MASK_IGNORE is not None and not annotations.file_rule:
            raise UserError(f"{place}: holds outlines with names, and MASK_IGNORE is a value of masks. Leave it out.")
        label_of = self._labels_by_name(annotations)
        background = label_of.setdefault(BACKGROUND, background_of(self.mask_rule))
        if background is None:
            raise UserError(f"{place}: what is in no shape is background, and the network has no such class.")
        tell(f"{annotations.describe(of_image)}.")
        annotated = {pictures[name]: each for name, each in of_image.items()}
        pairs = {}
        for picture, each in annotated.items():
            file, *more = dict.fromkeys(one.file for one in each)
            pairs[picture] = Pair(
                picture.name.as_posix(), picture.path, file, picture.page, more=tuple(more), bands=picture.bands
            )
        return DrawnTruths(pairs, self.mask_rule, annotated, label_of, background, annotations.file_rule)

    def _labels_by_name(self, annotations: Annotations) -> dict[str, Any]:
        """{name of a class: its label}. UserError: a name that the network, or the annotations, do not know."""
        place = printable(annotations.place)
        if self.mask_rule.has_classes:
            names = self.mask_rule.names
            used = {shape.name for each in annotations.annotated for shape in each.shapes}
            self._refuse_unknown(used - {BACKGROUND}, names, f"{place} annotates", "the network knows")
            return dict(zip(names, self.mask_rule.classes if self.mask_rule.overlaps else range(len(names))))
        names = tuple(name for name in annotations.classes if name != BACKGROUND)
        chosen = names
        if self.foreground not in (None, NONZERO):
            chosen = DataSpec(foreground=self.foreground).foreground_names or (repr(self.foreground),)
            self._refuse_unknown(chosen, names, "MASK_FOREGROUND is", f"{place} annotates")
        return {name: int(name in chosen) for name in annotations.classes}

    @staticmethod
    def _refuse_unknown(used: Iterable[str], known: Sequence[str], begin: str, knows: str) -> None:
        unknown = [name for name in used if name not in known]
        if unknown:
            listed, names = (printable(", ".join(sorted(each)[:20])) for each in (unknown, known))
            raise UserError(f"{begin} {listed}, and {knows} {names}. Names must agree (MASK_FOREGROUND, CLASSES).")
