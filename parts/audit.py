"""Looks at every file of a dataset before the first epoch, and tells in words what is wrong with it.

The audit has three steps. `_look_at_files` lets a Looker decode each image and each mask once. `_Survey` decides how
the masks are read and counts their pixels. Then each of the checks (`_CHECKS`) goes through that survey and yields
what it finds.
"""

import math
import os
from base64 import b85decode
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from parts import pictures
from parts.errors import UnusableFile, UserError, counted, list_files, printable
from parts.file_facts import EIGHTH, IMAGE, MASK, File, ImageFacts, Looker
from parts.files import parallel_map
from parts.images import RGB, choose_value_range, read_image, size_within
from parts.mask_rules import decide_mask_rule
from parts.masks import (
    IGNORED,
    MOST_COLOURS,
    NUMBERS,
    MaskRule,
    Observation,
    can_be_fitted,
    count_classes,
    read_mask,
    refuse_united_classes,
)
from parts.names import (
    LEAVE_OUT,
    NAME_MASKS,
    Folder,
    Matches,
    Pair,
    by_pages,
    fits_group,
    group_of,
    list_both,
    match,
    source_stem,
    tell_groups,
)
from parts.spec import ALPHA, AUTO, STRETCH, DataSpec
from parts.splits import Labels, kind_of_name, missing_classes, one_sided

LINES = 20  # files that one finding lists
ALPHA_DROPPED = (
    "with a channel of transparency, or a fourth one, that says something: it is dropped, and the network sees red, "
    "green and blue."
)
DARK = 4096  # 16-bit images that stay below have fewer than 16 greys left at 8 bits
TILES = 16  # overlays on the sheet
FEW, SOME = 64, 200  # pixels of foreground at IMAGE_SIZE, and masks, that are looked at for what vanishes
ALIKE = 0.998  # correlation of two images' greys, less those of all, from which on they are versions of one picture
SQUEEZED = 1.3  # times by which IMAGE_SIZE changes the proportions of an image, from which on it is told; 4:3 to 16:9
RARE = 0.001  # share of all pixels below which a class is told


# ---- the report


@dataclass(frozen=True)
class Finding:
    """One thing that the audit tells: an error spoils training, a warning may.

    `heading` says what is wrong, `lines` name the files, one each, and `cure` says what to do.
    """

    heading: str
    lines: Sequence[object] = ()  # paths, UnusableFiles or texts
    cure: str = ""
    is_error: bool = True

    def text(self) -> str:
        """The finding as it is printed, its list of files cut at LINES."""
        lines = [f"  {printable(line)}" for line in self.lines[:LINES]]
        if len(self.lines) > LINES:
            lines.append(f"  ... and {len(self.lines) - LINES:,} more")
        if self.cure:
            lines.append(self.cure)
        return "\n".join([self.heading, *lines])


@dataclass
class Report:
    """What an audit found out about a dataset.

    train, val: the pairs of both sides
    mask_rule: how the masks are read; None where they have no rule in common, which is an error then
    value_range: what of images of more than 8 bits becomes 0 ... 255 (images.read_image), or None
    channels: those of all images
    resize_masks: whether masks are brought to the size of their image
    picture_bands: which channels pictures show; None: the first
    fit: how images become IMAGE_SIZE (FIT)
    findings: errors and warnings in the order of the checks, which begins with the worst
    facts: (label, text), what the data is
    sheet: the picture of overlays, where one was written
    contents: (stamp, digest of its bytes) of each file that was looked at
    labels: those that the masks of each pair hold, by the pair's name
    label_shares: of the training masks' pixels the share that each label has, ignored ones aside
    """

    train: list[Pair]
    val: list[Pair]
    mask_rule: MaskRule | None = None
    value_range: tuple[float, float] | None = None
    channels: int = RGB
    resize_masks: bool = False
    picture_bands: tuple[int, ...] | None = None
    fit: str = STRETCH
    findings: list[Finding] = field(default_factory=list)
    facts: list[tuple[str, str]] = field(default_factory=list)
    sheet: Path | None = None
    contents: dict[Path, tuple[Any, str]] = field(default_factory=dict)
    label_shares: tuple[float, ...] = ()
    labels: Labels = field(default_factory=dict)

    @property
    def problems(self) -> list[str]:
        """The text of each error, the worst first."""
        return [finding.text() for finding in self.findings if finding.is_error]

    @property
    def warnings(self) -> list[str]:
        """The text of each warning, the worst first."""
        return [finding.text() for finding in self.findings if not finding.is_error]

    def text(self) -> str:
        """The facts and the warnings; the errors are told by stop_if_spoiled."""
        lines = ["What the data is:"]
        lines += [f"  {label:<13}{text}" for label, text in self.facts]
        lines += [f"Warning: {warning}" for warning in self.warnings]
        if self.sheet:
            lines.append(f"Look at the masks on their images: {printable(self.sheet)}")
        return "\n".join(lines)

    def stop_if_spoiled(self) -> None:
        """Raises a UserError with all the errors, if there are any."""
        problems = self.problems
        if problems:
            count = "A problem" if len(problems) == 1 else f"{len(problems)} problems"
            raise UserError("\n\n".join([f"{count} that would spoil training:", *problems]))


def audit(
    train_folders: tuple[Folder, Folder],
    val_folders: tuple[Folder, Folder] | None = None,
    spec: DataSpec = DataSpec(),
    *,
    image_size: tuple[int, int] | None = None,
    sheet: Folder | None = None,
    cache: Folder | None = None,
    apart: Iterable[Folder] = (),
    num_workers: int | None = None,
) -> Report:
    """Looks at every file of a dataset and reports what would spoil training on it.

    train_folders, val_folders: (images, masks); val_folders None: there is no validation
    spec: what the files mean; its image_range "auto" is decided by the training images, its channels "auto" by all
    image_size: (height, width) of training, to tell what is left of the masks at that size; None: not told
    sheet: where to write a picture of some masks on their images, or None
    cache: a JSON file that remembers what was seen, so that only new and changed files are decoded again
    apart: folders whose pictures do not belong to the dataset, wherever they lie
    num_workers: processes that decode; None: one per core
    UserError: `sheet` cannot be written there. What is wrong with the dataset stands in the Report.
    """
    folders = [*train_folders, *(val_folders or ())]
    # Where folders lie below one another, each keeps its own pictures; the sheet is a picture of none of them.
    others = [*folders, *apart]
    if sheet:
        _check_sheet_path(Path(sheet), folders)
        others.append(Path(sheet).parent)
    sides = [_Side("training", train_folders, spec, others)]
    if val_folders is not None:
        sides.append(_Side("validation", val_folders, spec, others))
    looker = Looker(cache, num_workers)
    _look_at_files(sides, spec, looker)

    survey = _Survey(sides, spec, image_size, num_workers)
    report = survey.report()
    report.contents = looker.contents()
    if sheet and survey.counted:
        try:
            report.sheet = _draw_sheet(survey, Path(sheet))
        except OSError as error:  # what was found out is worth more than its picture
            text = f"{printable(sheet)} could not be written ({error.strerror})."
            report.findings.append(Finding(text, is_error=False))
    return report


def _check_sheet_path(sheet: Path, folders: list[Folder]) -> None:
    if sheet.suffix.lower() not in (".png", ".jpg", ".jpeg"):
        raise UserError(f"{printable(sheet)}: the sheet of overlays is a .png or a .jpg file.")
    if sheet.resolve().parent in [Path(folder).resolve() for folder in folders]:
        problem = "there the sheet would be taken for one of the images. Give another folder."
        raise UserError(f"{printable(sheet)}: {problem}")


# ---- what is known of training, of validation, and of both


@dataclass
class _Example:
    """An image and its masks, all of which can be decoded, and what was seen in them."""

    side: str  # "training" or "validation"
    pair: Pair
    image: ImageFacts
    masks: list[Observation]
    # Pixels of each label in its masks, ignored ones last: int64 (labels + 1,). Filled in when the mask rule is known.
    counts: np.ndarray = field(default_factory=lambda: np.zeros(3, np.int64))

    @property
    def foreground(self) -> float:
        """The share of foreground, or of all classes but the first, in the pixels that are not ignored."""
        return float(1 - self.counts[0] / max(self.counts[:-1].sum(), 1))

    @property
    def is_turned_unclear(self) -> bool:
        """Whether EXIF turns the image, and not its masks, of whose sizes either way of drawing them makes the same."""
        size, orientation = self.image.size, self.image.orientation
        keeps_size = 1 < orientation < 5 or (orientation >= 5 and size[0] == size[1])
        return keeps_size and all(mask.size == size and mask.turned != orientation for mask in self.masks)


class _Side:
    """Training or validation: its files, which of them belong together, and what was seen in them."""

    def __init__(self, name: str, folders: tuple[Folder, Folder], spec: DataSpec, apart: list[Folder]) -> None:
        """Lists the pairs of two folders, of the images and of the masks; nothing is decoded yet."""
        self.name, self.folders = name, folders
        self.problem = ""  # why there is no pair at all
        matches, self.left_out = Matches([], [], []), []
        try:
            images, masks = list_both(*folders, spec, apart)
            matches, self.left_out = match(images, masks, spec), images.left_out + masks.left_out
        except UserError as error:
            self.problem = str(error)
        self.pairs, self.unpaired, self.notes = matches.pairs, matches.faults, matches.notes
        if not self.pairs and not self.problem:
            self.problem = (
                f"{', '.join(map(printable, folders))}: no image there has a mask. Names must agree, like a.jpg and "
                f"a.png, a_mask.gif or a.mask.png. {NAME_MASKS}."
            )
        self.unequal_pages: list[UnusableFile] = []  # images whose masks have other pages
        self.unusable: list[UnusableFile] = []
        self.examples: list[_Example] = []

    def add(self, pair: Pair, facts: list[Any]) -> None:
        """Takes what was seen in the image of a pair and in its masks, or why they cannot be used."""
        faults = [fault for fault in facts if isinstance(fault, UnusableFile)]
        self.unusable += faults
        if not faults:
            self.examples.append(_Example(self.name, pair, facts[0], facts[1:]))

    @property
    def pixels(self) -> np.ndarray:
        """The pixels of each label in all examples, ignored ones last, int64 (labels + 1,)."""
        return np.sum([example.counts for example in self.examples], axis=0)

    @property
    def shares(self) -> np.ndarray:
        """The share of each label in the pixels of all examples, ignored ones aside, float (labels,)."""
        return self.pixels[:-1] / max(self.pixels[:-1].sum(), 1)


class _Survey:
    """What all checks look at."""

    def __init__(
        self, sides: list[_Side], spec: DataSpec, image_size: tuple[int, int] | None, num_workers: int | None
    ) -> None:
        """Decides how masks and images of more than 8 bits are read, and counts the pixels of each label."""
        self.sides, self.spec, self.image_size, self.num_workers = sides, spec, image_size, num_workers
        self.examples = [example for side in sides for example in side.examples]
        self.masks = [mask for example in self.examples for mask in example.masks]
        self.deep = [example for example in self.examples if example.image.depth]  # of more than 8 bits
        self.value_range, self.nodata = _decide_value_range(self.deep, spec)
        counts = Counter(example.image.channels for example in self.examples)
        self.channels: int = max(counts, key=counts.__getitem__, default=RGB)  # CHANNELS, or what "auto" stands for
        self.mask_rule: MaskRule | None = None
        self.mask_rule_problem = ""  # why there is no rule; "" also where there is no mask to find one from
        self.counted: list[_Side] = []  # the sides whose pixels of each label are known
        try:
            self._decide_mask_rule()
        except UserError as error:
            self.mask_rule_problem = str(error)

    def _decide_mask_rule(self) -> None:
        """Decides how the masks are read, and counts their pixels. UserError: they have no rule in common."""
        if not self.masks:
            return
        if self.spec.foreground != ALPHA:
            _refuse_photographs(self.sides, self.masks)
        if self.spec.classes is not None:
            for example in self.examples:
                refuse_united_classes((example.pair.mask, *example.pair.more))
        self.mask_rule = decide_mask_rule(self.masks, self.spec)
        for example in self.examples:
            example.counts = _count_united(example.masks, self.mask_rule)
        self.counted = [side for side in self.sides if side.examples]

    def size_of(self, example: _Example) -> tuple[int, int]:
        """The (height, width) of an example at IMAGE_SIZE, without padding."""
        height, width = example.image.size
        return size_within((height, width), self.image_size or (height, width), self.spec.fit)

    def report(self) -> Report:
        """The Report of all that the checks find; what was seen in files and drawn of them is added by `audit`."""
        val = [pair for side in self.sides[1:] for pair in side.pairs]
        report = Report(self.sides[0].pairs, val, self.mask_rule, self.value_range, self.channels)
        report.resize_masks, report.picture_bands = self.spec.resize_masks, self.spec.picture_bands
        report.fit = self.spec.fit
        if self.sides[0].examples:
            report.label_shares = tuple(self.sides[0].shares.tolist())
            report.labels = {one.pair.name: np.flatnonzero(one.counts[:-1]).tolist() for one in self.examples}
        report.findings = [finding for check in _CHECKS for finding in check(self)]
        report.facts = [fact for facts in _FACTS for fact in facts(self)]
        return report

    @property
    def rule(self) -> MaskRule:
        """The mask rule, for checks that look at `counted`, which is empty where there is none."""
        return self.mask_rule or MaskRule()

    @property
    def is_one_folder(self) -> bool:
        """Whether training and validation are the same images."""
        folders = [os.path.realpath(side.folders[0]) for side in self.sides]
        return len(folders) > 1 and folders[0] == folders[1]

    @property
    def are_apart(self) -> bool:
        """Whether training and validation should have nothing in common."""
        return len(self.sides) > 1 and not self.is_one_folder

    @cached_property
    def leaks(self) -> set[Path]:
        """The images for validation with the pixels of an image for training."""
        return {path for _, _, val in self.kinds_on_both(_pixels_of) for path in val}

    def kinds_on_both(self, kind_of: Callable[[_Example], Hashable]) -> Iterator[tuple[Any, list[Path], list[Path]]]:
        """(kind, images for training, images for validation) of each kind that both sides have, in order.

        Examples of the kind None count nowhere. Nothing where training and validation are the same images on purpose.
        """
        if not self.are_apart:
            return
        here, there = [_images_by_kind(side.examples, kind_of) for side in self.sides]
        for kind in sorted(here.keys() & there.keys()):
            yield kind, here[kind], there[kind]


def _images_by_kind(examples: Iterable[_Example], kind_of: Callable[[_Example], Hashable]) -> dict[Any, list[Path]]:
    """The images of each kind; without those whose kind is None."""
    images = defaultdict(list)
    for example in examples:
        if (kind := kind_of(example)) is not None:
            images[kind].append(example.pair.image)
    return images


def _pixels_of(example: _Example) -> str | None:
    """What equal pixels have in common; None of one value all over, such as an empty tile's, which tell nothing."""
    return None if example.image.is_blank else example.image.digest


def _refuse_photographs(sides: list[_Side], masks: list[Observation]) -> None:
    """UserError: most of the masks are photographs."""
    photographs = [mask for mask in masks if _is_photograph(mask)]
    if 2 * len(photographs) <= len(masks):
        return
    example, cure = printable(photographs[0].path), ""
    if any(mask.alpha and len(mask.alpha) > 1 for mask in masks):
        cure = ' If they are cut-outs, set MASK_FOREGROUND = "alpha" (--mask-foreground alpha).'
    few_colors = [one.image.has_few_colors for side in sides for one in side.examples]
    if 2 * sum(few_colors) > len(few_colors):
        folders = " and ".join(" with ".join(map(printable, side.folders)) for side in sides)
        raise UserError(
            f"The masks are photographs, e.g. {example}, and the images hold hardly any colours, as masks do: the "
            f"folders seem to be swapped. Swap {folders} (--train-img-dir, --train-mask-dir and so on).{cure}"
        )
    # Greys may be soft masks, of which decide_mask_rule tells
    if not all(mask.kind == NUMBERS or len(mask.counts) < MOST_COLOURS for mask in masks):
        raise UserError(
            f"The masks seem to be photographs, e.g. {example}: they hold hundreds of colours and hardly any areas of "
            f"one. Check the folder of the masks.{cure}"
        )


def _is_photograph(mask: Observation) -> bool:
    """Whether it has many values, and hardly a pixel that is equal to its neighbours."""
    inside_areas = sum(pixels for _, pixels in mask.thick)
    return len(mask.counts) > 100 and 5 * inside_areas < mask.size[0] * mask.size[1]


def _count_united(masks: list[Observation], mask_rule: MaskRule) -> np.ndarray:
    """Pixels of each label in the masks of one image, ignored ones last; masks of objects hardly overlap."""
    united, *others = [count_classes(mask, mask_rule) for mask in masks]
    for counts in others:
        united[1] = min(united[1] + counts[1], united[:2].sum())
        united[0] = max(united[0] - counts[1], 0)
    return united


def _decide_value_range(deep: list[_Example], spec: DataSpec) -> tuple[tuple[float, float] | None, dict[float, float]]:
    """(low, high) that becomes 0 ... 255 in images of more than 8 bits; None: there are none, or no IMAGE_RANGE.

    And {value: share} of what stands for no data in them, by choose_value_range.
    """
    if not deep:
        return None, {}
    # By the training images, where these are deep: they come first
    depths = [example.image.depth or {} for example in deep if example.side == deep[0].side]
    chosen, nodata = choose_value_range(depths)
    return (chosen if isinstance(spec.image_range, str) else spec.image_range), nodata  # AUTO


# ---- looking at files


def _look_at_files(sides: list["_Side"], spec: DataSpec, looker: Looker) -> None:
    """Fills in what was seen in the files of each side.

    JPEGs decode in half the time at an eighth of their size, which is enough to tell nearly all pictures apart; those
    that it does not tell apart are decoded again at their full size. Among other formats JPEGs are decoded at their
    full size at once, because only then equal pixels have equal digests.
    """
    all_jpeg = all(pair.image.suffix.lower() in (".jpg", ".jpeg") for side in sides for pair in side.pairs)
    channels = None if isinstance(spec.channels, str) else spec.channels  # AUTO
    files_of = partial(_files_of, image_kind=EIGHTH if all_jpeg else IMAGE, channels=channels)
    try:
        looker.look(file for side in sides for file in files_of(side.pairs))
        pages = looker.pages()
        for side in sides:
            side.pairs, side.unequal_pages = by_pages(side.pairs, lambda path: pages.get(path, [0]))
        looker.look(file for side in sides for file in files_of(side.pairs))  # the pages after the first
        looker.look_wholly()
    finally:
        looker.save()  # also where it was stopped: what has been seen need not be decoded again
    for side in sides:
        for pair in side.pairs:
            side.add(pair, [looker.facts_of(file, spec.foreground) for file in files_of([pair])])


def _files_of(pairs: Iterable[Pair], image_kind: str, channels: int | None) -> Iterator[File]:
    """The image of each pair, and then its masks."""
    for pair in pairs:
        yield File(image_kind, pair.image, pair.image_page, channels, pair.bands)
        for mask in pair.mask_sources:
            yield File(MASK, *mask)


# ---- checks of files and names


def _listed(lines: Sequence[object], noun: str, rest: str, cure: str = "", is_error: bool = True) -> Iterator[Finding]:
    """A finding on these files, if there are any, whose heading begins with their number."""
    if lines:
        yield Finding(f"{counted(len(lines), noun)} {rest}", lines, cure, is_error)


def _check_files(survey: _Survey) -> Iterator[Finding]:
    """Folders without any pair; files that cannot be decoded, or lack the alpha channel that is the mask."""
    for side in survey.sides:
        if side.problem:
            yield Finding(side.problem)
    faults = {fault.path: fault for side in survey.sides for fault in side.unusable}
    yield from _listed(list(faults.values()), "file", "cannot be used:")


def _check_partners(survey: _Survey) -> Iterator[Finding]:
    """Images and masks that have no partner, or more than one; pages that have none."""
    for side in survey.sides:
        heading = f"for {side.name} without one partner of the same name:"
        yield from _listed(side.unpaired, "file", heading, f"{NAME_MASKS}; {LEAVE_OUT}.")
        yield from _listed(side.unequal_pages, "file", f"for {side.name} with pages that have no partner:")


def _check_mask_rule(survey: _Survey) -> Iterator[Finding]:
    """Masks that have no rule in common, or soft edges."""
    if survey.mask_rule_problem:
        yield Finding(survey.mask_rule_problem)
    cut = [mask.path for mask in survey.masks if mask.cut]
    if cut:
        heading = f"{counted(len(cut), 'mask')} of fractions from 0 to 1, e.g. {printable(cut[0])}, cut at one half."
        yield Finding(heading, is_error=False)
    soft = [mask.path for mask in survey.masks if len(mask.counts) > 2]
    if soft and survey.rule.soft and survey.rule.kind == NUMBERS:
        heading = f"{counted(len(soft), 'mask')} with soft or JPEG edges, e.g. {printable(soft[0])}, cut at the middle"
        yield Finding(f"{heading}: {survey.rule.describe()}.", is_error=False)


def _check_sizes(survey: _Survey) -> Iterator[Finding]:
    """Masks of another size than their image."""
    lines, resizable = [], 0
    for image, mask in ((example, mask) for example in survey.examples for mask in example.masks):
        size, can_be = image.image.size, can_be_fitted(mask.size, image.image.size)
        if size == mask.size or (can_be and survey.spec.resize_masks):
            continue
        line = f"{printable(image.pair.image)} is {_by(size)}, {printable(mask.path)} is {_by(mask.size)}"
        if size == mask.size[::-1]:
            line += ": height and width are swapped, so one of them is rotated"
            if image.image.orientation >= 5:
                line += " (the image by its EXIF tag: rotate the mask, or remove the tag)"
            elif mask.turned >= 5:
                line += " (the mask by its EXIF tag: remove the tag, exiftool -Orientation= FILE)"
        lines.append(line)
        resizable += can_be
    cure = "Export both from the same picture, or remove them"
    if resizable:
        cure += (
            f"; or RESIZE_MASKS = True (--resize-masks) brings {counted(resizable, 'mask')} to the size of the image, "
            "where proportions or nearly the size agree"
        )
    yield from _listed(lines, "pair", "of an image and a mask that differ in size (height x width):", f"{cure}.")


def _check_proportions(survey: _Survey) -> Iterator[Finding]:
    """Images whose proportions IMAGE_SIZE changes."""
    if survey.image_size is None or not survey.examples or survey.spec.fit != STRETCH:
        return
    height, width = survey.image_size
    factors = np.array([example.image.size[1] / example.image.size[0] for example in survey.examples]) * height / width
    changes = np.maximum(factors, 1 / factors)
    if changes.max() <= SQUEEZED:
        return
    size = survey.examples[int(changes.argmax())].image.size
    directions = ", in both directions" if min(factors.max(), 1 / factors.min()) > SQUEEZED else ""
    heading = (
        f"IMAGE_SIZE = {_by(survey.image_size)} changes the proportions of "
        f"{counted((changes > SQUEEZED).sum(), 'image')} up to {changes.max():.1f} times (one of {_by(size)})"
        f"{directions}: what they show changes its shape."
    )
    cure = 'FIT = "pad" (--fit pad) and crops (--image-size none --crop H W) keep those of each image.'
    middle = float(np.median(factors))
    left = np.maximum(factors / middle, middle / factors) > SQUEEZED
    if left.mean() < 0.25:  # what has the same area and suits most of them, in steps that a network's poolings take
        fitting = [max(16, round(side / 16) * 16) for side in (height / middle**0.5, width * middle**0.5)]
        sides = f"--image-size {fitting[0]} {fitting[1]}"
        cure = f"{sides} has about the proportions in the middle, and as many pixels. {cure}"
    yield Finding(heading, cure=cure, is_error=False)


def _check_turned(survey: _Survey) -> Iterator[Finding]:
    """Images that EXIF turns, whose masks may show the picture as it is stored: equal sizes do not tell."""
    images = [example.pair.image for example in survey.examples if example.is_turned_unclear]
    heading = (
        "turned by EXIF, where sizes cannot tell whether the mask was drawn on the turned picture, or on the one that "
        "is stored:"
    )
    cure = (
        "Look at them in the picture of overlays. Where a mask lies wrong, turn it, or remove the image's tag "
        "(exiftool -Orientation= FILE)."
    )
    yield from _listed(images, "image", heading, cure, is_error=False)
    masks = []
    for image, mask in ((example.image, mask) for example in survey.examples for mask in example.masks):
        if mask.size == image.size and mask.turned not in (1, image.orientation):
            masks.append(mask.path)
    cure = (
        "Look at them in the picture of overlays. Where a mask lies wrong, remove its tag, or give the image the same."
    )
    yield from _listed(masks, "mask", "turned by EXIF where the image is not:", cure, is_error=False)


# ---- checks of training against validation


def _check_one_folder(survey: _Survey) -> Iterator[Finding]:
    """Training and validation on the same images."""
    if survey.is_one_folder:
        heading = (
            f"{printable(survey.sides[1].folders[0])}: is given for training and for validation, so the scores will "
            "tell how well its images are learnt by heart, and nothing about others."
        )
        yield Finding(heading, is_error=False)


def _check_leaks(survey: _Survey) -> Iterator[Finding]:
    """Images for validation with the pixels of an image for training."""
    lines = []
    for _, train, val in survey.kinds_on_both(_pixels_of):
        lines += [f"{printable(path)} is {printable(train[0])}" for path in val]
    cure = "Remove them from one of the two, or scores will be too good."
    yield from _listed(lines, "image", "for validation with the pixels of one for training:", cure)


def _check_groups(survey: _Survey) -> Iterator[Finding]:
    """Groups of images, by GROUP, that stand on both sides."""
    group = survey.spec.group

    def kind_of(example: _Example) -> str | None:
        return group_of(example.pair.name, group) if fits_group(example.pair.name, group) else None

    lines = []
    for name, train, val in survey.kinds_on_both(kind_of):
        lines.append(
            f"{printable(name)}: {printable(train[0])} and {len(train) - 1:,} more in training, {printable(val[0])} "
            f"and {len(val) - 1:,} more in validation"
        )
    cure = f"Keep each on one side (augment.py does), or change GROUP = {group!r}, which tells them by their names."
    yield from _listed(lines, "group", "of images on both sides:", cure)


def _check_names(survey: _Survey) -> Iterator[Finding]:
    """Images of one name on both sides whose pixels differ and whose names are of no group."""

    def kind_of(example: _Example) -> str | None:  # copies by augment.py count as their originals
        return None if fits_group(example.pair.name, survey.spec.group) else source_stem(example.pair.name)

    alike = [val[0] for _, _, val in survey.kinds_on_both(kind_of) if val[0] not in survey.leaks]
    heading = "in both training and validation, with other pixels. Are these numbered alike, or copies of one picture?"
    yield from _listed(alike, "name", heading, is_error=False)


def _check_versions(survey: _Survey) -> Iterator[Finding]:
    """Images for validation that are nearly one for training: resized, compressed again, darker.

    What all images share, such as a background, is taken off first. Next to each other frames of a drive, a second
    apart, correlate by 0.993 at most then, and JPEGs of quality 30 with their originals by 0.9996.
    """
    train = [one for one in survey.sides[0].examples if one.image.look]
    val = [one for one in survey.sides[-1].examples if one.image.look and one.pair.image not in survey.leaks]
    if not survey.are_apart or not train or not val:
        return
    looks = _normalised([example.image.look for example in (*train, *val)])
    lines = []
    for example, look in zip(val, looks[len(train) :]):
        likeness = looks[: len(train)] @ look
        if likeness.max() >= ALIKE:
            nearest = train[int(likeness.argmax())].pair.image
            lines.append(f"{printable(example.pair.image)} is nearly {printable(nearest)}")
    cure = "Keep all versions of a picture on one side, or scores will be too good. GROUP tells them by their names."
    heading = "for validation with nearly the pixels of one for training:"
    yield from _listed(lines, "image", heading, cure, is_error=False)


def _normalised(looks: list[str]) -> np.ndarray:
    """ImageFacts.look of images, less what all share, as float32 vectors of length 1: their products correlate."""
    greys = np.array([np.frombuffer(b85decode(look), np.uint8) for look in looks], np.float32)
    greys -= greys.mean(axis=1, keepdims=True)
    greys /= np.linalg.norm(greys, axis=1, keepdims=True)
    greys -= greys.mean(axis=0)
    return greys / np.maximum(np.linalg.norm(greys, axis=1, keepdims=True), 1e-6)


def _check_kinds(survey: _Survey) -> Iterator[Finding]:
    """Beginnings of names, sizes and ranges of values that one side alone has, where a few of each are told apart."""
    if not survey.are_apart:
        return
    lines = []
    for trait, kind_of in _TRAITS.items():
        kinds = [[kind_of(example) for example in side.examples] for side in survey.sides]
        lines += [f"{trait} {line}" for line in one_sided(*kinds)]
    cure = 'What training lacks is not learnt: augment.py\'s VAL_CHOICE = "random" splits every kind.'
    yield from _listed(lines, "kind", "of images on one side alone:", cure, is_error=False)


def _range_of(example: _Example) -> str:
    """The bits of an image, and of whole numbers the bits that it uses."""
    depth = example.image.depth
    if depth is None:
        return "8 bits"
    if depth["bits"] == "float":
        return "fractions"
    return f"{depth['bits']} bits, of which {int(depth['highest']).bit_length()} are used"


_TRAITS: dict[str, Callable[[_Example], str]] = {
    "names that begin with": lambda example: kind_of_name(example.pair.name),
    "size": lambda example: _by(example.image.size),
    "values of": _range_of,
}


# ---- checks of images


def _check_channels(survey: _Survey) -> Iterator[Finding]:
    """Images of different numbers of channels."""
    images = _images_by_kind(survey.examples, lambda example: example.image.channels)
    if len(images) > 1:
        lines = [f"{count}: {counted(len(paths), 'image')}, e.g. {paths[0]}" for count, paths in sorted(images.items())]
        heading = 'The images have different numbers of channels, so that CHANNELS = "auto" is none:'
        cure = "Export all of them with as many, or leave out those that are others"
        if images.keys() <= {1, RGB}:
            cure += "; or set CHANNELS = 3 (--channels 3), which makes RGB of greys"
        yield Finding(heading, lines, f"{cure}.")
    bands = survey.spec.picture_bands
    if bands and survey.examples and max(bands) > survey.channels:
        heading = f"PICTURE_BANDS = {bands}: the images have {counted(survey.channels, 'channel')}."
        yield Finding(heading, cure="Give others, counted from 1 (--picture-bands).")


def _check_alpha(survey: _Survey) -> Iterator[Finding]:
    """Images whose fourth channel is not the same all over."""
    images = [example.pair.image for example in survey.examples if example.image.has_alpha]
    yield from _listed(images, "image", ALPHA_DROPPED, is_error=False)


def _check_duplicates(survey: _Survey) -> Iterator[Finding]:
    """Images of one side with equal pixels."""
    for side in survey.sides:
        twins = sorted(paths for paths in _images_by_kind(side.examples, _pixels_of).values() if len(paths) > 1)
        if twins:
            heading = f"{counted(sum(map(len, twins)), 'image')} for {side.name} with the same pixels as another:"
            yield Finding(heading, [" = ".join(map(printable, paths)) for paths in twins], is_error=False)


def _check_value_range(survey: _Survey) -> Iterator[Finding]:
    """Images of more than 8 bits of which little or nothing would be left at 8 bits."""
    deep = [(example.pair.image, example.image.depth or {}) for example in survey.deep]
    if survey.value_range:
        low, high = survey.value_range
        beyond = [path for path, depth in deep if depth["highest"] <= low or depth["lowest"] >= high]
        cure = 'Widen IMAGE_RANGE, or set it to "auto".'
        heading = "with all values outside of that range, so that nothing is seen:"
        yield from _listed(beyond, "image", heading, cure, is_error=len(beyond) == len(deep))
        return
    cure = 'Set IMAGE_RANGE = "auto" (--image-range auto), or the lowest and the highest value that mean something.'
    unread = [path for path, depth in deep if depth["bits"] != 16]
    yield from _listed(unread, "image", "of 32 bits or with fractions, whose range must be known:", cure)
    dark = [path for path, depth in deep if depth["bits"] == 16 and _highest(depth, survey.nodata) < DARK]
    heading = "of 16 bits that use only the lowest 12 or fewer. Of 8 bits, which the network sees, hardly any are left:"
    yield from _listed(dark, "image", heading, cure, is_error=len(dark) == len(deep))


def _highest(depth: dict, nodata: dict[float, float]) -> float:
    """The highest value of an image of more than 8 bits, what stands for no data aside."""
    if depth["highest"] not in nodata:
        return depth["highest"]
    return max([value for value in depth["quantiles"] if value not in nodata], default=0)


# ---- checks of what the masks hold


def _check_labels(survey: _Survey) -> Iterator[Finding]:
    """A side whose masks hold one label alone, or nothing but what is ignored."""
    for side in survey.counted:
        held = [name for name, pixels in zip(survey.rule.label_names, side.pixels) if pixels]
        if not held:
            yield Finding(f"Every pixel of the masks for {side.name} is ignored. Check MASK_IGNORE.")
        if len(held) == 1:
            constant = "CLASSES" if survey.rule.has_classes else "MASK_FOREGROUND"
            yield Finding(
                f"The masks for {side.name} hold nothing but {printable(held[0])}, e.g. "
                f"{printable(side.pairs[0].mask)}, so there is nothing to learn or to score. Check the masks, and "
                f"{constant}."
            )
    if survey.counted and survey.rule.ignored and not any(example.counts[-1] for example in survey.examples):
        yield Finding("MASK_IGNORE: no mask holds that.", is_error=False)


def _check_foreground(survey: _Survey) -> Iterator[Finding]:
    """Foreground that seems to be the background."""
    if not survey.counted or survey.rule.has_classes:
        return
    if 0.9 < np.median([example.foreground for example in survey.examples]) < 1:
        value = survey.rule.background[0] if survey.rule.background else "see above"
        heading = "Nearly everything is foreground. If it should be the other way round, set MASK_FOREGROUND to the "
        yield Finding(f"{heading}value of what you mean ({value}).", is_error=False)


def _check_classes(survey: _Survey) -> Iterator[Finding]:
    """Classes that one side lacks, or that hardly any pixel for training has."""
    names = survey.rule.names  # none of one foreground
    pixels = {side.name: survey.rule.by_class(side.pixels[:-1]) for side in survey.counted}
    for text in missing_classes(names, pixels):
        yield Finding(f"{text}.", is_error=False)
    for side in survey.counted[:1]:
        shares = survey.rule.by_class(side.shares)
        rare = [f"{name} ({100 * share:.2g} %)" for name, share in zip(names, shares) if 0 < share < RARE]
        if rare:
            heading = f"Classes that hardly any pixel for training has: {', '.join(rare)}."
            yield Finding(heading, is_error=False)


# ---- checks of what is left of the masks at IMAGE_SIZE

_RAISE_IMAGE_SIZE = "Raise IMAGE_SIZE, or train on crops of images at their own size: --image-size none --crop 320 480."


def _check_what_vanishes(survey: _Survey) -> Iterator[Finding]:
    """Foreground, or classes, that are lost where masks are shrunk to IMAGE_SIZE, because they are small or thin."""
    size = survey.image_size
    if not size or not survey.counted:
        return
    shrunk = [
        one for one in survey.examples if any(old > new for old, new in zip(one.masks[0].size, survey.size_of(one)))
    ]
    if survey.rule.has_classes:
        yield from _vanishing_classes(survey, size, shrunk)
    else:
        yield from _vanishing_foreground(survey, size, [one for one in shrunk if one.foreground])


def _vanishing_foreground(survey: _Survey, size: tuple[int, int], shrunk: list[_Example]) -> Iterator[Finding]:
    before = np.array([example.foreground for example in shrunk])
    # To decode all masks again would double the time of the audit. So only those are decoded whose foreground would
    # fill a few pixels, and a sample of the others, which may be thin; and all, if one of these loses half of it.
    pixels = np.array([math.prod(survey.size_of(one)) for one in shrunk])
    chosen = np.union1d(np.flatnonzero(before * pixels < FEW), _sample_of(shrunk))
    for numbers in (chosen, np.arange(len(shrunk))):
        counts = _counts_at([shrunk[number] for number in numbers], survey)
        after = counts[:, 1] / np.maximum(counts[:, :-1].sum(axis=1), 1)
        lost = after < before[numbers] / 2
        if not lost.any():
            return
    emptied = lost & (after == 0)
    verb = "is" if emptied.sum() == 1 else "are"
    heading = (
        f"{counted(emptied.sum(), 'mask')} {verb} emptied at IMAGE_SIZE {_by(size)}, and "
        f"{counted((lost & ~emptied).sum(), 'other')} lose more than half of their foreground, because it is small or "
        f"thin beside its picture; foreground is {before.mean():.3%} of the masks in their files, and "
        f"{after.mean():.3%} then:"
    )
    lines = []
    for number in np.flatnonzero(lost):
        lines.append(f"{printable(shrunk[number].pair.mask)}: {before[number]:.3%} -> {after[number]:.3%}")
    # Nothing can be learnt, or scored, where every mask of a side is emptied.
    sides = np.array([example.side for example in shrunk])
    spoiled = [side.name for side in survey.sides if side.name in sides and emptied[sides == side.name].all()]
    if spoiled:
        heading = f"No mask for {spoiled[0]} has any foreground left at IMAGE_SIZE {_by(size)}.\n{heading}"
    yield Finding(heading, lines, _RAISE_IMAGE_SIZE, is_error=bool(spoiled))


def _vanishing_classes(survey: _Survey, size: tuple[int, int], shrunk: list[_Example]) -> Iterator[Finding]:
    sample = [shrunk[number] for number in _sample_of(shrunk)]
    if not sample:
        return
    before, after = np.array([example.counts for example in sample]), _counts_at(sample, survey)
    # The mean over masks of each class's share of the mask
    shares = [(counts / counts.sum(axis=1, keepdims=True)).mean(axis=0)[:-1] for counts in (before, after)]
    lines = []
    for name, share, left in zip(survey.rule.names, *map(survey.rule.by_class, shares)):
        if left < share / 2:
            lines.append(f"{name}: {share:.3%} -> {left:.3%} of the pixels")
    verb = "loses" if len(lines) == 1 else "lose"
    heading = f"{verb} more than half of the pixels at IMAGE_SIZE {_by(size)}, being small or thin:"
    yield from _listed(lines, "class", heading, _RAISE_IMAGE_SIZE, is_error=False)


def _sample_of(examples: list[_Example]) -> np.ndarray:
    """The numbers of at most SOME of these, spread over all."""
    return np.linspace(0, len(examples) - 1, min(len(examples), SOME)).round().astype(int)


def _counts_at(examples: list[_Example], survey: _Survey) -> np.ndarray:
    """Pixels of each label of the masks at IMAGE_SIZE, int64 (examples, labels + 1), ignored ones last."""
    count = partial(_count_at, mask_rule=survey.rule)
    sized = [(example.pair, survey.size_of(example)) for example in examples]
    counts = list(parallel_map(count, sized, survey.num_workers))
    return np.array(counts, np.int64).reshape(-1, survey.rule.num_labels + 1)


def _count_at(sized: tuple[Pair, tuple[int, int]], mask_rule: MaskRule) -> np.ndarray:
    pair, size = sized
    counts = np.bincount(read_mask(pair.masks, mask_rule, size, pair.mask_page).ravel(), minlength=256)
    return np.append(counts[: mask_rule.num_labels], counts[IGNORED])


# In the order in which the findings are told, the worst first.
_CHECKS: tuple[Callable[[_Survey], Iterable[Finding]], ...] = (
    _check_files,
    _check_partners,
    _check_mask_rule,
    _check_sizes,
    _check_one_folder,
    _check_leaks,
    _check_groups,
    _check_names,
    _check_versions,
    _check_kinds,
    _check_turned,
    _check_proportions,
    _check_channels,
    _check_alpha,
    _check_duplicates,
    _check_value_range,
    _check_labels,
    _check_foreground,
    _check_classes,
    _check_what_vanishes,
)


# ---- facts: what the data is


def _facts_of_files(survey: _Survey) -> Iterator[tuple[str, str]]:
    """Counts of pairs, how their names agree, and what is no picture."""
    yield "pairs", ", ".join(f"{len(side.pairs):,} for {side.name}" for side in survey.sides)
    for side in survey.sides:
        for label, text in side.notes:
            yield label, f"for {side.name} {text}"
    if groups := tell_groups([example.pair.name for example in survey.examples], survey.spec.group):
        yield "groups", f"by their names: {groups} (GROUP)"
    left_out = [path.name for side in survey.sides for path in side.left_out]
    if left_out and survey.examples:
        yield "left out", f"{len(left_out):,} that are no pictures by their names: {list_files(left_out, 5)}"


def _facts_of_kinds(survey: _Survey) -> Iterator[tuple[str, str]]:
    """The sizes and kinds of images and masks."""
    images = [example.image for example in survey.examples]
    if not images:
        return
    yield "sizes", _most_common(_by(image.size) for image in images)
    yield "images", _most_common(f"{image.format} {image.mode}" for image in images)
    if survey.channels != RGB:
        first = "1, 2, 3" if survey.channels > 2 else "1"
        shown = ", ".join(map(str, survey.spec.picture_bands or ())) or first
        yield "channels", f"{survey.channels}, of which the pictures show {shown} (PICTURE_BANDS)"
    yield "masks", _most_common(f"mode {mask.mode}" for mask in survey.masks)
    if turned := sum(image.orientation > 1 for image in images):
        yield "EXIF", f"{counted(turned, 'image')} set upright"


def _facts_of_odd_pairs(survey: _Survey) -> Iterator[tuple[str, str]]:
    """Masks of another size than their image, pages, and images with several masks."""
    pairs = [example.pair for example in survey.examples]
    if survey.spec.resize_masks and pairs:
        resized = sum(example.image.size != mask.size for example in survey.examples for mask in example.masks)
        yield "resized", f"{counted(resized, 'mask')} of another size than the image (RESIZE_MASKS)"
    if paged := {pair.image for pair in pairs if pair.image_page or pair.mask_page}:
        yield "pages", f"each of {counted(len(paged), 'file')} is an image with a mask of its own"
    if several := [len(pair.more) + 1 for pair in pairs if pair.more]:
        count = f"{counted(len(several), 'image')} with 2 to {max(several)} masks"
        yield "united", f"{count}, by MASK_NAME, whose foregrounds are united"


def _facts_of_values(survey: _Survey) -> Iterator[tuple[str, str]]:
    """How the values of images and masks are read, and what share of the pixels they have."""
    if survey.value_range:
        low, high = survey.value_range
        deep = counted(len(survey.deep), "image")
        yield "range", f"{low:g} ... {high:g} of {deep} of more than 8 bits becomes 0 ... 255 (IMAGE_RANGE)"
    if survey.nodata and survey.spec.image_range == AUTO:
        values = " and ".join(f"{value:g} ({share:.1%} of the values)" for value, share in survey.nodata.items())
        yield "no data", f"{values}, declared so or far from all others, does not count for that range"
    if not survey.counted:
        return
    yield "mask values", survey.rule.describe()
    if survey.rule.has_classes:
        heading = " / ".join(["class", *(side.name for side in survey.counted)])
        rows = []
        for name, *shares in zip(survey.rule.names, *(survey.rule.by_class(side.shares) for side in survey.counted)):
            rows.append(" / ".join([name, *(f"{100 * share:.2g} %" for share in shares)]))
        more = f" and {len(rows) - 40} more" if len(rows) > 40 else ""
        yield "classes", f"{heading}: {', '.join(rows[:40])}{more}"
    else:
        held = np.array([example.foreground for example in survey.examples])
        ends = f"{np.count_nonzero(held == 0):,} masks empty, {np.count_nonzero(held == 1):,} all foreground"
        text = f"least {held.min():.2%}, median {np.median(held):.2%}, most {held.max():.2%} of a mask; {ends}"
        yield "foreground", text
    if survey.rule.ignored:
        pixels = np.sum([side.pixels for side in survey.counted], axis=0)
        yield "ignored", f"{pixels[-1] / pixels.sum():.2%} of all pixels are neither trained on nor scored"


def _facts_of_edges(survey: _Survey) -> Iterator[tuple[str, str]]:
    """The share of smoothed edges between classes."""
    if survey.rule.soft and survey.rule.has_classes:
        colours, pixels = np.concatenate([mask.as_colours().counts for mask in survey.masks]).T
        between = pixels[~np.isin(colours, survey.rule.classes + survey.rule.ignored)].sum() / pixels.sum()
        yield "between", f"colours between two classes are the nearer one's, {100 * between:.2g} % of the pixels"


_FACTS = (_facts_of_files, _facts_of_kinds, _facts_of_odd_pairs, _facts_of_values, _facts_of_edges)


def _most_common(texts: Iterable[str]) -> str:
    """The most frequent texts, and how often each occurs."""
    counter = Counter(texts)
    if len(counter) == 1:
        return f"all {next(iter(counter))}"
    kinds = [f"{text} ({count:,})" for text, count in counter.most_common(6)]
    if len(counter) > 6:
        kinds.append(f"{len(counter) - 6} others")
    return ", ".join(kinds)


def _by(size: Iterable[int]) -> str:
    """A size in words: height x width."""
    return "x".join(map(str, size))


# ---- the sheet of overlays


def _draw_sheet(survey: _Survey, path: Path) -> Path | None:
    """Draws the masks of some examples on their images; None where no example can be drawn."""
    bands = survey.spec.picture_bands
    if bands and max(bands) > survey.channels:
        return None
    rule, palette = survey.rule, pictures.Palette.of(survey.rule, bands)
    images, masks, captions = [], [], []
    for example in _choose_tiles(survey):
        pair, (height, width) = example.pair, example.image.size
        scale = min(1, 480 / max(height, width))
        size = max(1, round(height * scale)), max(1, round(width * scale))
        with suppress(UnusableFile):  # such as one of another number of channels, which the checks tell
            image = read_image(pair.images, size, pair.image_page, survey.value_range, survey.channels)
            masks.append(read_mask(pair.masks, rule, size, pair.mask_page, (height, width)))
            images.append(image)
            captions.append(pair.name if rule.has_classes else f"{pair.name}  {example.foreground:.1%}")
    if not images:
        return None
    title = f"{len(survey.examples):,} pairs; foreground is tinted, its share stands below"
    if rule.has_classes:
        title = f"{len(survey.examples):,} pairs; each class has its colour"
    sheet = pictures.overlay_sheet(images, masks, captions, title, palette)
    pictures.save_image(path, sheet)
    return path


def _choose_tiles(survey: _Survey) -> list[_Example]:
    """At most TILES examples: with the least and the most foreground, or the most of each class; others in between.

    Half of them are from those that EXIF turns unclearly, as far as there are that many.
    """
    examples = survey.examples
    if survey.rule.has_classes:
        shares = [example.counts[:-1] / example.counts.sum() for example in examples]
        extremes = np.argmax(shares, axis=0).tolist()
    else:
        ranked = sorted(range(len(examples)), key=lambda number: examples[number].foreground)
        extremes = [ranked[0], ranked[-1]]
    first = [number for number, example in enumerate(examples) if example.is_turned_unclear][: TILES // 2]
    extremes = list(dict.fromkeys([*first, *extremes]))[:TILES]
    spread = np.linspace(0, len(examples) - 1, max(TILES - len(extremes), 1)).round().astype(int).tolist()
    return [examples[number] for number in sorted(list(dict.fromkeys([*extremes, *spread]))[:TILES])]
