"""Looks at every file of a dataset before the first epoch, and tells in words what is wrong with it.

The audit has three steps. `_look_at_files` decodes each image and each mask once, on all cores, and remembers what it
saw until a file changes, so that a second audit decodes nothing again. `_Survey` decides how the masks are read and
counts their pixels. Then each of the checks (`_CHECKS`) goes through that survey and yields what it finds.
"""

import hashlib
import json
import os
from base64 import b85decode, b85encode
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from parts import pictures
from parts.errors import UnusableFile, UserError, counted, printable, within_memory
from parts.files import Provenance, digest_of, parallel_map, read_own, stamp, write_text
from parts.images import (
    RGB,
    bytes_of,
    choose_value_range,
    decode_image,
    depth_of,
    pages_of,
    pixels_of,
    read_image,
    resize_image,
)
from parts.mask_rules import decide_mask_rule, refuse_united_classes
from parts.masks import (
    IGNORED,
    MOST_COLOURS,
    NUMBERS,
    MaskRule,
    Observation,
    alpha_fault,
    can_be_fitted,
    count_classes,
    drops_alpha,
    observe_mask,
    read_mask,
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
from parts.spec import ALPHA, AUTO, DataSpec
from parts.splits import Labels, kind_of_name, one_sided

VERSION = 10  # of the remembered facts; raise it when other facts are taken from the same files
LINES = 20  # files that one finding lists
ALPHA_DROPPED = (
    "with a channel of transparency, or a fourth one, that says something: it is dropped, and the network sees red, "
    "green and blue."
)
DARK = 4096  # 16-bit images that stay below have fewer than 16 greys left at 8 bits
TILES = 16  # overlays on the sheet
FEW, SOME = 64, 200  # pixels of foreground at IMAGE_SIZE, and masks, that are looked at for what vanishes
FEW_COLORS = 8  # of a sample of an image's pixels; photographs have more
LOOK = 16  # rows and columns of the small greys by which images are compared
LEAST_CONTRAST = 3  # of 255 between these greys; what has less shows nothing but noise
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
    named = [("training", train_folders)]
    if val_folders is not None:
        named.append(("validation", val_folders))
    folders = [folder for _, both in named for folder in both]
    # Where folders lie below one another, each keeps its own pictures; the sheet is a picture of none of them.
    others = [*folders, *apart]
    if sheet:
        _check_sheet_path(Path(sheet), folders)
        others.append(Path(sheet).parent)
    sides = [_Side(name, both, spec, others) for name, both in named]
    looker = _Looker(cache, num_workers)
    _look_at_files(sides, spec, looker)

    survey = _Survey(sides, spec, image_size, num_workers)
    val_pairs = [pair for side in sides[1:] for pair in side.pairs]
    report = Report(sides[0].pairs, val_pairs, survey.mask_rule, survey.value_range, survey.channels)
    report.resize_masks = spec.resize_masks
    if sides[0].examples:
        report.label_shares = tuple(_class_shares(survey)[0].tolist())
        report.labels = {one.pair.name: np.flatnonzero(one.counts[:-1]).tolist() for one in survey.examples}
    report.findings = [finding for check in _CHECKS for finding in check(survey)]
    report.contents = looker.contents()
    report.facts = [fact for facts in _FACTS for fact in facts(survey)]
    if sheet and survey.mask_rule:
        try:
            report.sheet = _draw_sheet(survey, survey.mask_rule, Path(sheet))
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


@dataclass(frozen=True)
class ImageFacts:
    """What was seen in one image. Plain values only, so that it pickles and goes into JSON."""

    size: list[int]  # height, width
    format: str  # Pillow's name of it
    mode: str  # of Pillow
    frames: bool  # whether more frames or pages follow the first one
    orientation: int  # EXIF's, 1 to 8; 1 is upright
    depth: dict | None  # of images of more than 8 bits: images.depth_of
    has_alpha: bool  # a channel of transparency, or a fourth one, that is not the same all over
    has_few_colors: bool
    is_blank: bool  # one value all over
    digest: str  # equal for equal pixels
    look: str  # nearly equal for nearly equal pictures, see _look_of; "" where hardly anything is to be seen
    channels: int = RGB  # what is read of its channels, as CHANNELS says


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


class _Side:
    """Training or validation: its files, which of them belong together, and what was seen in them."""

    def __init__(self, name: str, folders: tuple[Folder, Folder], spec: DataSpec, apart: list[Folder]) -> None:
        """Lists the pairs of two folders, of the images and of the masks; nothing is decoded yet."""
        self.name, self.folders = name, folders
        self.problem = ""  # why there is no pair at all
        matches, self.left_out = Matches([], [], []), []
        try:
            images, masks = list_both(*folders, spec, apart)
        except UserError as error:
            self.problem = str(error)
        else:
            matches, self.left_out = match(images, masks, spec), images.left_out + masks.left_out
        self.pairs, self.unpaired, self.notes = matches.pairs, matches.faults, matches.notes
        if not self.pairs and not self.problem:
            self.problem = (
                f"{', '.join(map(printable, folders))}: no image there has a mask. Names must agree, like a.jpg and "
                f"a.png, a_mask.gif or a.mask.png. {NAME_MASKS}."
            )
        self.unequal_pages: list[UnusableFile] = []  # images whose masks have other pages
        self.unusable: list[UnusableFile] = []
        self.images: list[ImageFacts] = []  # all that can be decoded
        self.masks: list[Observation] = []  # likewise
        self.examples: list[_Example] = []

    def add(self, pair: Pair, image: ImageFacts | UnusableFile, masks: list[Observation | UnusableFile]) -> None:
        """Takes what was seen in the files of a pair, or why they cannot be used."""
        usable = [mask for mask in masks if isinstance(mask, Observation)]
        self.masks += usable
        self.unusable += [fault for fault in (image, *masks) if isinstance(fault, UnusableFile)]
        if isinstance(image, ImageFacts):
            self.images.append(image)
            if len(usable) == len(masks):
                self.examples.append(_Example(self.name, pair, image, usable))

    @property
    def pixels(self) -> np.ndarray:
        """The pixels of each label in all examples, ignored ones last, int64 (labels + 1,)."""
        return np.sum([example.counts for example in self.examples], axis=0)


class _Survey:
    """What all checks look at."""

    def __init__(
        self, sides: list[_Side], spec: DataSpec, image_size: tuple[int, int] | None, num_workers: int | None
    ) -> None:
        """Decides how masks and images of more than 8 bits are read, and counts the pixels of each label."""
        self.sides, self.spec, self.image_size, self.num_workers = sides, spec, image_size, num_workers
        self.examples = [example for side in sides for example in side.examples]
        self.value_range, self.nodata = _decide_value_range(sides, spec)
        counts = Counter(example.image.channels for example in self.examples)
        self.channels: int = counts.most_common(1)[0][0] if counts else RGB  # CHANNELS, or what "auto" stands for
        self.mask_rule: MaskRule | None = None
        self.mask_rule_problem = ""  # why there is no rule; "" also where there is no mask to find one from
        masks = [mask for side in sides for mask in side.masks]
        if masks and spec.foreground != ALPHA:
            self.mask_rule_problem = _photographs(sides, masks)
        if not masks or self.mask_rule_problem:
            return
        try:
            if spec.classes is not None:
                refuse_united_classes(pair for side in sides for pair in side.pairs)
            self.mask_rule = decide_mask_rule(masks, spec)
        except UserError as error:
            self.mask_rule_problem = str(error)
            return
        for example in self.examples:
            example.counts = _count_united(example.masks, self.mask_rule)

    @property
    def deep(self) -> list[_Example]:
        """The examples whose image has more than 8 bits."""
        return [example for example in self.examples if example.image.depth]

    @cached_property
    def turned_unclear(self) -> list[_Example]:
        """The examples that EXIF turns where sizes cannot tell whether their masks show the turned picture.

        None where other images show by their sizes that masks were drawn on turned pictures, and no image the opposite.
        """
        turned = [example for example in self.examples if example.image.orientation > 1]
        if any(_is_drawn_as_turned(example) for example in turned) and not any(map(_is_drawn_as_stored, turned)):
            return []
        return [example for example in turned if _is_unclear(example)]

    @property
    def is_one_folder(self) -> bool:
        """Whether training and validation are the same images."""
        folders = [os.path.realpath(side.folders[0]) for side in self.sides]
        return len(folders) > 1 and folders[0] == folders[1]

    @property
    def opposed(self) -> list[tuple[_Side, _Side]]:
        """(training, validation), where they should have nothing in common; otherwise nothing."""
        if len(self.sides) < 2 or self.is_one_folder:
            return []
        return [(self.sides[0], self.sides[1])]


def _photographs(sides: list[_Side], masks: list[Observation]) -> str:
    """What to say where most of the masks are photographs rather than masks, otherwise ""."""
    photographs = [mask for mask in masks if _is_photograph(mask)]
    if 2 * len(photographs) <= len(masks):
        return ""
    example, cure = printable(photographs[0].path), ""
    if any(mask.alpha and len(mask.alpha) > 1 for mask in masks):
        cure = ' If they are cut-outs, set MASK_FOREGROUND = "alpha" (--mask-foreground alpha).'
    images = [image for side in sides for image in side.images]
    if 2 * sum(image.has_few_colors for image in images) > len(images):
        folders = " and ".join(" with ".join(map(printable, side.folders)) for side in sides)
        return (
            f"The masks are photographs, e.g. {example}, and the images hold hardly any colours, as masks do: the "
            f"folders seem to be swapped. Swap {folders} (--train-img-dir, --train-mask-dir and so on).{cure}"
        )
    if all(mask.kind == NUMBERS or len(mask.counts) < MOST_COLOURS for mask in masks):
        return ""  # greys may be soft masks, of which decide_mask_rule tells
    return (
        f"The masks seem to be photographs, e.g. {example}: they hold hundreds of colours and hardly any areas of one. "
        f"Check the folder of the masks.{cure}"
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


def _decide_value_range(sides: list[_Side], spec: DataSpec) -> tuple[tuple[float, float] | None, dict[float, float]]:
    """(low, high) that becomes 0 ... 255 in images of more than 8 bits; None: there are none, or no IMAGE_RANGE.

    And {value: share} of what stands for no data in them, by choose_value_range.
    """
    depths = [[example.image.depth for example in side.examples if example.image.depth] for side in sides]
    if not any(depths):
        return None, {}
    chosen, nodata = choose_value_range(depths[0] or depths[1])  # by the training images, where these are deep
    if not isinstance(spec.image_range, str):  # AUTO
        return spec.image_range, nodata
    return chosen, nodata


# ---- looking at files, and remembering what was seen

# As what a file is looked at: an image, an image at an eighth of its size, a mask, or for the numbers of its pages.
IMAGE, EIGHTH, MASK, PAGES = "image", "eighth", "mask", "pages"
_CONTENT = "content"  # the digest of a file's bytes, among the facts of its first page
_JPEG_SUFFIXES = (".jpg", ".jpeg")


@dataclass(frozen=True)
class _File:
    """A file, or one page of it, and as what it is looked at."""

    kind: str  # IMAGE, EIGHTH, MASK or PAGES
    path: Path
    page: int = 0
    channels: int | None = RGB  # of an image; None: all that it has

    @property
    def key(self) -> str:
        """Its name in the memory."""
        name = f"{self.kind} {os.path.abspath(self.path)}"
        if self.channels != RGB:
            name = f"{self.channels or 'all'} channels of {name}"
        return f"{name}[{self.page}]" if self.page else name


def _look_at_files(sides: list[_Side], spec: DataSpec, looker: "_Looker") -> None:
    """Fills in what was seen in the files of each side.

    JPEGs decode in half the time at an eighth of their size, which is enough to tell nearly all pictures apart; those
    that it does not tell apart are decoded again at their full size. Among other formats JPEGs are decoded at their
    full size at once, because only then equal pixels have equal digests.
    """
    all_jpeg = all(pair.image.suffix.lower() in _JPEG_SUFFIXES for side in sides for pair in side.pairs)
    channels = None if isinstance(spec.channels, str) else spec.channels  # AUTO
    files_of = partial(_files_of, image_kind=EIGHTH if all_jpeg else IMAGE, channels=channels)
    try:
        looker.look(file for side in sides for file in files_of(side.pairs))
        looker.look(_File(PAGES, file.path) for file, facts in looker.facts.items() if facts["frames"])
        for side in sides:
            side.pairs, side.unequal_pages = by_pages(side.pairs, looker.pages_of)
        looker.look(file for side in sides for file in files_of(side.pairs))  # the pages after the first
        looker.look_wholly()
    finally:
        looker.save()  # also where it was stopped: what has been seen need not be decoded again
    for side in sides:
        for pair in side.pairs:
            image, *masks = files_of([pair])
            side.add(pair, looker.image_facts(image), [looker.observation(mask, spec) for mask in masks])


def _files_of(pairs: Iterable[Pair], image_kind: str, channels: int | None) -> Iterator[_File]:
    """The image of each pair, and then its masks."""
    for pair in pairs:
        image, *masks = pair.sources
        yield _File(image_kind, *image, channels)
        for mask in masks:
            yield _File(MASK, *mask)


class _Looker:
    """Looks at files on all cores, and remembers what was seen in a JSON file as long as they keep their stamps."""

    def __init__(self, cache: Folder | None, num_workers: int | None) -> None:
        self.cache, self.num_workers = cache, num_workers
        self.facts: dict[_File, dict[str, Any]] = {}
        self.faults: dict[_File, UnusableFile] = {}
        self.whole: dict[_File, _File] = {}  # of EIGHTHs that were also looked at as IMAGEs
        self.stamps: dict[str, Any] = {}  # of each file that has facts, by its key
        # Of an earlier audit, by the files' keys
        self.old_stamps: dict[str, Any] = {}
        self.old_facts: dict[str, dict[str, Any]] = {}
        if cache:
            self.old_stamps, self.old_facts = read_own(Path(cache), _remembered, (self.old_stamps, self.old_facts))

    def look(self, files: Iterable[_File]) -> None:
        """Looks at those files that were not looked at before, neither now nor by an earlier audit."""
        unknown, stamps = [], {}
        for file in dict.fromkeys(files):
            if file in self.facts or file in self.faults:
                continue
            key = file.key
            stamps[file] = stamp(file.path)  # before it is decoded
            if key in self.old_facts and self.old_stamps[key] == stamps[file]:
                self.facts[file], self.stamps[key] = self.old_facts[key], stamps[file]
            else:
                unknown.append(file)
        hidden = None if unknown else True  # None: shown on a terminal
        with closing(parallel_map(_look_at, unknown, self.num_workers)) as results:
            progress = tqdm(results, "looking at", len(unknown), unit=" files", disable=hidden)
            for facts, file in zip(progress, unknown):
                if isinstance(facts, UnusableFile):
                    self.faults[file] = facts
                else:
                    self.facts[file], self.stamps[file.key] = facts, stamps[file]

    def look_wholly(self) -> None:
        """Looks at the full size of those images that an eighth of it does not tell apart."""
        digests = {file: facts["digest"] for file, facts in self.facts.items() if file.kind == EIGHTH}
        same = Counter(digests.values())
        self.whole = {file: replace(file, kind=IMAGE) for file, digest in digests.items() if same[digest] > 1}
        self.look(self.whole.values())

    def pages_of(self, path: Path) -> list[int]:
        """The numbers of a file's pages."""
        return self.facts.get(_File(PAGES, path), {"pages": [0]})["pages"]

    def contents(self) -> dict[Path, tuple[Any, str]]:
        """(stamp, digest of its bytes) of each file."""
        return {
            file.path: (self.stamps[file.key], facts[_CONTENT])
            for file, facts in self.facts.items()
            if _CONTENT in facts
        }

    def image_facts(self, file: _File) -> ImageFacts | UnusableFile:
        """What was seen in an image, or why it cannot be used."""
        file = self.whole.get(file, file)
        if file in self.faults:
            return self.faults[file]
        return ImageFacts(**_without_content(self.facts[file]))

    def observation(self, file: _File, spec: DataSpec) -> Observation | UnusableFile:
        """What was seen in a mask, or why it cannot be used."""
        if file in self.faults:
            return self.faults[file]
        path = f"{file.path}[{file.page}]" if file.page else str(file.path)
        observation = Observation(path, **_without_content(self.facts[file]))
        return alpha_fault(observation, spec.foreground) or observation

    def save(self) -> None:
        """Remembers what this audit needed, and forgets other files; nothing where nothing can be written."""
        if not self.cache or self.stamps == self.old_stamps:
            return
        facts = {file.key: facts for file, facts in self.facts.items()}
        provenance = Provenance(VERSION, {"digest": facts_digest(facts)}, {"files": self.stamps})
        stored = {"provenance": provenance.to_dict(), "facts": facts}
        with suppress(OSError):
            write_text(Path(self.cache), json.dumps(stored, separators=(",", ":")))


def _remembered(stored: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """The stamps and the facts that `_Looker.save` wrote, by the files' keys. ValueError: they are others."""
    provenance, facts = Provenance.from_dict(stored["provenance"]), stored["facts"]
    stamps = provenance.sources["files"]
    expected = Provenance(VERSION, {"digest": facts_digest(facts)}, {"files": stamps})
    if provenance != expected or stamps.keys() != facts.keys():
        raise ValueError("not what an audit of this version wrote")
    return stamps, facts


def facts_digest(facts: dict[str, Any]) -> str:
    """A digest by which facts that were changed on disk are not believed."""
    return hashlib.sha1(json.dumps(facts).encode(), usedforsecurity=False).hexdigest()


def _look_at(file: _File) -> dict[str, Any] | UnusableFile:
    """Plain facts of one file; or why it cannot be used."""
    try:
        if file.kind == PAGES:
            return {"pages": pages_of(file.path) or [0]}
        with within_memory(file.path):
            facts = dict(vars(observe_mask(file.path, file.page) if file.kind == MASK else _see_image(file)))
        facts.pop("path", None)  # a memory that names it could not be moved
        if file.page == 0:
            with suppress(OSError):  # it has just gone, which is told where it is needed
                facts[_CONTENT] = digest_of(file.path)
        return facts
    except UnusableFile as fault:
        return fault


def _without_content(facts: dict[str, Any]) -> dict[str, Any]:
    """What was seen in the pixels alone."""
    return {name: value for name, value in facts.items() if name != _CONTENT}


def _see_image(file: _File) -> ImageFacts:
    """What is seen in an image. UnusableFile."""
    smallest = (1, 1) if file.kind == EIGHTH else None  # of which a JPEG decodes an eighth at most
    decoded = decode_image(file.path, smallest, file.page, file.channels)
    pixels, depth = pixels_of(decoded, file.path, file.channels), depth_of(decoded, file.path, file.channels)
    sample = pixels[:: max(1, len(pixels) // 32), :: max(1, pixels.shape[1] // 32)]
    # Processors have instructions for SHA-1, which makes it the fastest digest that is long enough here.
    digest = hashlib.sha1(repr(decoded.size).encode(), usedforsecurity=False)
    digest.update(np.ascontiguousarray(pixels).data)
    return ImageFacts(
        size=list(decoded.size),
        format=decoded.format,
        mode=decoded.decoded_mode,
        frames=decoded.frames,
        orientation=decoded.turned,
        depth=depth,
        has_alpha=drops_alpha(decoded, file.channels),
        has_few_colors=len(np.unique(sample.reshape(-1, sample.shape[2]), axis=0)) <= FEW_COLORS,
        # A few rows first, which is enough for nearly all images.
        is_blank=bool((pixels[::8] == pixels[0, 0]).all() and (pixels == pixels[0, 0]).all()),
        digest=digest.hexdigest(),
        look=_look_of(pixels, depth),
        channels=pixels.shape[2],
    )


def _look_of(pixels: np.ndarray, depth: dict | None) -> str:
    """LOOK x LOOK greys of an image (H, W, C), its darkest as 0 and its brightest as 255, row by row in base 85."""
    rows = pixels[:: max(1, len(pixels) // 128)]  # all rows would take ten times as long
    if depth is not None:
        rows = bytes_of(rows, choose_value_range([depth])[0])
    greys = resize_image(rows, (LOOK, LOOK)).mean(axis=2)
    darkest, brightest = greys.min(), greys.max()
    if brightest - darkest < LEAST_CONTRAST:
        return ""
    stretched = np.rint((greys - darkest) * (255 / (brightest - darkest))).astype(np.uint8)
    return b85encode(stretched.tobytes()).decode()


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
    cut = [mask.path for side in survey.sides for mask in side.masks if mask.cut]
    if cut:
        heading = f"{counted(len(cut), 'mask')} of fractions from 0 to 1, e.g. {printable(cut[0])}, cut at one half."
        yield Finding(heading, is_error=False)
    mask_rule = survey.mask_rule
    if mask_rule and mask_rule.soft and mask_rule.kind == NUMBERS:
        soft = [mask.path for side in survey.sides for mask in side.masks if len(mask.counts) > 2]
        if soft:
            heading = f"{counted(len(soft), 'mask')} with soft or JPEG edges, e.g. {printable(soft[0])}, cut at the "
            yield Finding(f"{heading}middle: {mask_rule.describe()}.", is_error=False)


def _check_sizes(survey: _Survey) -> Iterator[Finding]:
    """Masks of another size than their image."""
    lines, resizable = [], 0
    for example in survey.examples:
        size = example.image.size
        for mask in example.masks:
            line = f"{printable(example.pair.image)} is {_by(size)}, {printable(mask.path)} is {_by(mask.size)}"
            if size == mask.size[::-1]:
                line += ": height and width are swapped, so one of them is rotated"
                if example.image.orientation >= 5:
                    line += " (the image by its EXIF tag: rotate the mask, or remove the tag)"
            if size == mask.size:
                continue
            can_be = can_be_fitted(mask.size, size)
            if not (can_be and survey.spec.resize_masks):
                lines.append(line)
                resizable += can_be
    heading = "of an image and a mask that differ in size (height x width):"
    cure = "Export both from the same picture, or remove them"
    if resizable:
        cure += (
            f"; or RESIZE_MASKS = True (--resize-masks) brings {counted(resizable, 'mask')} to the size of the image, "
            "where proportions or nearly the size agree"
        )
    yield from _listed(lines, "pair", heading, f"{cure}.")


def _check_proportions(survey: _Survey) -> Iterator[Finding]:
    """Images whose proportions IMAGE_SIZE changes."""
    if survey.image_size is None or not survey.examples:
        return
    height, width = survey.image_size
    factors = np.array([example.image.size[1] / example.image.size[0] for example in survey.examples]) * height / width
    texts = []
    for verb, by in (("narrower", factors), ("lower", 1 / factors)):
        squeezed = int(np.count_nonzero(by > SQUEEZED))
        if squeezed:
            size = survey.examples[int(by.argmax())].image.size
            texts.append(f"{counted(squeezed, 'image')} up to {by.max():.1f} times {verb} (one of {_by(size)})")
    if not texts:
        return
    # What has the same area and the proportions in the middle, in steps that a network's poolings take
    middle = float(np.median(factors))
    fitting = [max(16, round(side / 16) * 16) for side in (height / middle**0.5, width * middle**0.5)]
    cure = f"--image-size {fitting[0]} {fitting[1]} has about the proportions of most images, and as many pixels."
    if len(texts) > 1:
        cure = "Sort them by their proportions, or train on crops, which keep these (--image-size none --crop H W)."
    heading = f"IMAGE_SIZE = {_by(survey.image_size)} makes {' and '.join(texts)}: what they show changes its shape."
    yield Finding(heading, cure=cure, is_error=False)


def _check_turned(survey: _Survey) -> Iterator[Finding]:
    """Images that EXIF turns, whose masks may show the picture as it is stored: equal sizes do not tell."""
    unclear = survey.turned_unclear
    if not unclear:
        return
    as_stored = any(_is_drawn_as_stored(example) for example in survey.examples)
    verb = "is" if len(unclear) == 1 else "are"
    heading = (
        f"{counted(len(unclear), 'image')} {verb} turned by EXIF, and sizes cannot tell whether the mask was drawn on "
        "the turned picture, or on the one that is stored"
    )
    if as_stored:
        heading += ", as those of other images here were"
    cure = (
        "Look at them in the picture of overlays. Where a mask lies wrong, turn it, or remove the image's tag "
        "(exiftool -Orientation= FILE)."
    )
    yield Finding(f"{heading}:", [example.pair.image for example in unclear], cure, is_error=as_stored)


def _is_drawn_as_turned(example: _Example) -> bool:
    """Whether the sizes say that the mask of an image that EXIF turns shows the turned picture."""
    size = example.image.size
    return example.image.orientation >= 5 and all(size == mask.size != mask.size[::-1] for mask in example.masks)


def _is_drawn_as_stored(example: _Example) -> bool:
    """Whether the sizes say that the mask of an image that EXIF turns shows the picture as it is stored."""
    size = example.image.size
    return example.image.orientation >= 5 and all(size == mask.size[::-1] != mask.size for mask in example.masks)


def _is_unclear(example: _Example) -> bool:
    """Whether the sizes of an image that EXIF turns, and of its masks, are the same both ways."""
    size = example.image.size
    is_same = example.image.orientation < 5 or size == size[::-1]
    return is_same and all(size == mask.size for mask in example.masks)


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
    for train, val in survey.opposed:
        here, there = _images_by_digest(train), _images_by_digest(val)
        lines = []
        for digest in sorted(here.keys() & there.keys()):
            lines += [f"{printable(path)} is {printable(here[digest][0])}" for path in there[digest]]
        cure = "Remove them from one of the two, or scores will be too good."
        yield from _listed(lines, "image", "for validation with the pixels of one for training:", cure)


def _images_by_digest(side: _Side) -> dict[str, list[Path]]:
    """The images with equal pixels; without those of one value all over, such as empty tiles, which tell nothing."""
    images = defaultdict(list)
    for example in side.examples:
        if not example.image.is_blank:
            images[example.image.digest].append(example.pair.image)
    return images


def _check_versions(survey: _Survey) -> Iterator[Finding]:
    """Images for validation that are nearly one for training: resized, compressed again, darker.

    What all images share, such as a background, is taken off first. Next to each other frames of a drive, a second
    apart, correlate by 0.993 at most then, and JPEGs of quality 30 with their originals by 0.9996.
    """
    for train, val in survey.opposed:
        same = _images_by_digest(train).keys()
        ours = [example for example in train.examples if example.image.look]
        theirs = [example for example in val.examples if example.image.look and example.image.digest not in same]
        if not ours or not theirs:
            continue
        looks = _normalised([example.image.look for example in (*ours, *theirs)])
        lines = []
        for example, look in zip(theirs, looks[len(ours) :]):
            likeness = looks[: len(ours)] @ look
            if likeness.max() >= ALIKE:
                nearest = ours[int(likeness.argmax())].pair.image
                lines.append(f"{printable(example.pair.image)} is nearly {printable(nearest)}")
        cure = (
            "Keep all versions of a picture on one side, or scores will be too good. GROUP tells them by their names."
        )
        heading = "for validation with nearly the pixels of one for training:"
        yield from _listed(lines, "image", heading, cure, is_error=False)


def _normalised(looks: list[str]) -> np.ndarray:
    """ImageFacts.look of images, less what all share, as float32 vectors of length 1: their products correlate."""
    greys = np.array([np.frombuffer(b85decode(look), np.uint8) for look in looks], np.float32)
    greys -= greys.mean(axis=1, keepdims=True)
    greys /= np.linalg.norm(greys, axis=1, keepdims=True)
    greys -= greys.mean(axis=0)
    return greys / np.maximum(np.linalg.norm(greys, axis=1, keepdims=True), 1e-6)


def _check_groups(survey: _Survey) -> Iterator[Finding]:
    """Groups of images, by GROUP, that stand on both sides."""
    group = survey.spec.group
    for sides in survey.opposed:
        here, there = [_images_by_group(side, group) for side in sides]
        lines = []
        for name in sorted(here.keys() & there.keys()):
            lines.append(
                f"{printable(name)}: {printable(here[name][0])} and {len(here[name]) - 1:,} more in training, "
                f"{printable(there[name][0])} and {len(there[name]) - 1:,} more in validation"
            )
        cure = f"Keep each on one side (augment.py does), or change GROUP = {group!r}, which tells them by their names."
        yield from _listed(lines, "group", "of images on both sides:", cure)


def _images_by_group(side: _Side, group: str | None) -> dict[str, list[Path]]:
    """The images of each group, of those whose names fit the pattern GROUP."""
    images = defaultdict(list)
    for pair in side.pairs:
        if fits_group(pair.name, group):
            images[group_of(pair.name, group)].append(pair.image)
    return images


def _check_kinds(survey: _Survey) -> Iterator[Finding]:
    """Beginnings of names, sizes and ranges of values that one side alone has, where a few of each are told apart."""
    for sides in survey.opposed:
        lines = []
        for trait, kind_of in _TRAITS.items():
            kinds = [[kind_of(example) for example in side.examples] for side in sides]
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


def _check_names(survey: _Survey) -> Iterator[Finding]:
    """Images of one name on both sides whose pixels differ and whose names are of no group."""
    for train, val in survey.opposed:
        digests = _images_by_digest(train).keys()
        leaks = {path for digest, paths in _images_by_digest(val).items() if digest in digests for path in paths}
        here, there = [_images_by_stem(side, survey.spec.group) for side in (train, val)]
        alike = [there[stem] for stem in sorted(here.keys() & there.keys()) if there[stem] not in leaks]
        heading = "in both training and validation, with other pixels. Are these numbered alike, or copies of one "
        yield from _listed(alike, "name", f"{heading}picture?", is_error=False)


def _images_by_stem(side: _Side, group: str | None) -> dict[str, Path]:
    """The first image of each name, copies by augment.py counted as their originals; of names without a group."""
    images: dict[str, Path] = {}
    for pair in side.pairs:
        if not fits_group(pair.name, group):
            images.setdefault(source_stem(pair.name), pair.image)
    return images


# ---- checks of images


def _check_channels(survey: _Survey) -> Iterator[Finding]:
    """Images of different numbers of channels."""
    images = defaultdict(list)
    for example in survey.examples:
        images[example.image.channels].append(example.pair.image)
    if len(images) > 1:
        lines = [f"{count}: {counted(len(paths), 'image')}, e.g. {paths[0]}" for count, paths in sorted(images.items())]
        heading = 'The images have different numbers of channels, so that CHANNELS = "auto" is none:'
        cure = "Export all of them with as many, or leave out those that are others"
        if images.keys() <= {1, RGB}:
            cure += "; or set CHANNELS = 3 (--channels 3), which makes RGB of greys"
        yield Finding(heading, lines, f"{cure}.")


def _check_alpha(survey: _Survey) -> Iterator[Finding]:
    """Images whose fourth channel is not the same all over."""
    images = [example.pair.image for example in survey.examples if example.image.has_alpha]
    yield from _listed(images, "image", ALPHA_DROPPED, is_error=False)


def _check_duplicates(survey: _Survey) -> Iterator[Finding]:
    """Images of one side with equal pixels."""
    for side in survey.sides:
        twins = sorted(paths for paths in _images_by_digest(side).values() if len(paths) > 1)
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


def _check_ignored(survey: _Survey) -> Iterator[Finding]:
    """MASK_IGNORE that ignores nothing, or everything."""
    if not survey.mask_rule or not survey.mask_rule.ignored or not survey.examples:
        return
    if not any(example.counts[-1] for example in survey.examples):
        yield Finding("MASK_IGNORE: no mask holds that.", is_error=False)
    for side in survey.sides:
        if side.examples and not side.pixels[:-1].any():
            yield Finding(f"Every pixel of the masks for {side.name} is ignored. Check MASK_IGNORE.")


def _check_foreground(survey: _Survey) -> Iterator[Finding]:
    """A side whose masks are all empty, or all foreground; foreground that seems to be the background."""
    mask_rule = survey.mask_rule
    if not mask_rule or mask_rule.has_classes or not survey.examples:
        return
    for side in survey.sides:
        if not side.examples or not side.pixels[:-1].any():
            continue  # all is ignored, which _check_ignored tells
        for share, state in ((0, "is empty"), (1, "is foreground all over")):
            if all(example.foreground == share for example in side.examples):
                yield Finding(
                    f"Every mask for {side.name} {state}, e.g. {printable(side.pairs[0].mask)}, so there is nothing to "
                    "learn or to score. Check the masks, and MASK_FOREGROUND."
                )
    if 0.9 < np.median([example.foreground for example in survey.examples]) < 1:
        value = mask_rule.background[0] if mask_rule.background else "see above"
        heading = "Nearly everything is foreground. If it should be the other way round, set MASK_FOREGROUND to the "
        yield Finding(f"{heading}value of what you mean ({value}).", is_error=False)


def _check_classes(survey: _Survey) -> Iterator[Finding]:
    """Classes that one side lacks."""
    mask_rule = survey.mask_rule
    if not mask_rule or not mask_rule.has_classes:
        return
    for side in survey.sides:
        if not side.examples:
            continue
        pixels = dict(zip(mask_rule.names, side.pixels.tolist()))
        present = [name for name in pixels if pixels[name]]
        if len(present) == 1:
            yield Finding(
                f"The masks for {side.name} hold one of the classes alone, {present[0]}, so there is nothing to learn "
                "or to score. Check the masks, and CLASSES."
            )
        absent = [name for name in pixels if not pixels[name]]
        if absent:
            end = "cannot be learnt" if side is survey.sides[0] else "are not scored"
            heading = f"Classes that no mask for {side.name} holds, so that they {end}: {', '.join(absent)}."
            yield Finding(heading, is_error=False)


def _check_rare_classes(survey: _Survey) -> Iterator[Finding]:
    """Classes that hardly any pixel has."""
    mask_rule = survey.mask_rule
    if not mask_rule:
        return
    for shares in _class_shares(survey)[:1]:
        rare = [f"{name} ({100 * share:.2g} %)" for name, share in zip(mask_rule.names, shares) if 0 < share < RARE]
        if rare:
            heading = f"Classes that hardly any pixel for training has: {', '.join(rare)}."
            yield Finding(heading, is_error=False)


def _class_shares(survey: _Survey) -> list[np.ndarray]:
    """The share that each class has in the pixels of each side with examples, ignored ones aside, float (classes,)."""
    counts = [side.pixels[:-1] for side in survey.sides if side.examples]
    return [pixels / max(pixels.sum(), 1) for pixels in counts]


# ---- checks of what is left of the masks at IMAGE_SIZE

_RAISE_IMAGE_SIZE = "Raise IMAGE_SIZE, or train on crops of images at their own size: --image-size none --crop 320 480."


def _check_what_vanishes(survey: _Survey) -> Iterator[Finding]:
    """Foreground, or classes, that are lost where masks are shrunk to IMAGE_SIZE, because they are small or thin."""
    mask_rule, size = survey.mask_rule, survey.image_size
    if not size or not mask_rule:
        return
    shrunk = [one for one in survey.examples if any(old > new for old, new in zip(one.masks[0].size, size))]
    if mask_rule.has_classes and shrunk:
        yield from _vanishing_classes(survey, mask_rule, size, shrunk)
    if not mask_rule.has_classes:
        yield from _vanishing_foreground(survey, mask_rule, size, [one for one in shrunk if one.foreground])


def _vanishing_foreground(
    survey: _Survey, mask_rule: MaskRule, size: tuple[int, int], shrunk: list[_Example]
) -> Iterator[Finding]:
    before = np.array([example.foreground for example in shrunk])
    # To decode all masks again would double the time of the audit. So only those are decoded whose foreground would
    # fill a few pixels, and a sample of the others, which may be thin; and all, if one of these loses half of it.
    chosen = np.union1d(np.flatnonzero(before * size[0] * size[1] < FEW), _sample_of(shrunk))
    for numbers in (chosen, np.arange(len(shrunk))):
        counts = _counts_at(size, [shrunk[number] for number in numbers], mask_rule, survey.num_workers)
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


def _vanishing_classes(
    survey: _Survey, mask_rule: MaskRule, size: tuple[int, int], shrunk: list[_Example]
) -> Iterator[Finding]:
    sample = [shrunk[number] for number in _sample_of(shrunk)]
    before = np.array([example.counts for example in sample])
    after = _counts_at(size, sample, mask_rule, survey.num_workers)
    # The mean over masks of each class's share of the mask
    shares = [(counts / counts.sum(axis=1, keepdims=True)).mean(axis=0) for counts in (before, after)]
    lines = []
    for name, share, left in zip(mask_rule.names, *shares):
        if left < share / 2:
            lines.append(f"{name}: {share:.3%} -> {left:.3%} of the pixels")
    verb = "loses" if len(lines) == 1 else "lose"
    heading = f"{verb} more than half of the pixels at IMAGE_SIZE {_by(size)}, being small or thin:"
    yield from _listed(lines, "class", heading, _RAISE_IMAGE_SIZE, is_error=False)


def _sample_of(examples: list[_Example]) -> np.ndarray:
    """The numbers of at most SOME of these, spread over all."""
    return np.linspace(0, len(examples) - 1, min(len(examples), SOME)).round().astype(int)


def _counts_at(
    size: tuple[int, int], examples: list[_Example], mask_rule: MaskRule, num_workers: int | None
) -> np.ndarray:
    """Pixels of each label of the masks at that size, int64 (examples, labels + 1), ignored ones last."""
    count = partial(_count_at, mask_rule=mask_rule, size=size)
    counts = list(parallel_map(count, [example.pair for example in examples], num_workers))
    return np.array(counts, np.int64).reshape(-1, mask_rule.num_labels + 1)


def _count_at(pair: Pair, mask_rule: MaskRule, size: tuple[int, int]) -> np.ndarray:
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
    _check_ignored,
    _check_foreground,
    _check_classes,
    _check_rare_classes,
    _check_what_vanishes,
)


# ---- facts: what the data is


def _facts_of_files(survey: _Survey) -> Iterator[tuple[str, str]]:
    """Counts of pairs, and the sizes and kinds of their files."""
    yield "pairs", ", ".join(f"{len(side.pairs):,} for {side.name}" for side in survey.sides)
    for side in survey.sides:
        for label, text in side.notes:
            yield label, f"for {side.name} {text}"
    if survey.examples:
        images = [example.image for example in survey.examples]
        if groups := tell_groups([example.pair.name for example in survey.examples], survey.spec.group):
            yield "groups", f"by their names: {groups} (GROUP)"
        yield "sizes", _most_common(_by(image.size) for image in images)
        yield "images", _most_common(f"{image.format} {image.mode}" for image in images)
        if survey.channels != RGB:
            shown = "three" if survey.channels > 2 else "one"
            yield "channels", f"{survey.channels}, of which the pictures show {shown}"
        yield "masks", _most_common(f"mode {mask.mode}" for example in survey.examples for mask in example.masks)


def _facts_of_odd_files(survey: _Survey) -> Iterator[tuple[str, str]]:
    """Images that are turned upright, are pages, or have several masks."""
    turned = sum(example.image.orientation > 1 for example in survey.examples)
    if turned:
        yield "EXIF", f"{counted(turned, 'image')} set upright"
    if survey.spec.resize_masks:
        resized = sum(example.image.size != mask.size for example in survey.examples for mask in example.masks)
        yield "resized", f"{counted(resized, 'mask')} of another size than the image (RESIZE_MASKS)"
    pairs = [example.pair for example in survey.examples]
    paged = {pair.image for pair in pairs if pair.image_page or pair.mask_page}
    if paged:
        yield "pages", f"each of {counted(len(paged), 'file')} is an image with a mask of its own"
    several = [len(pair.more) + 1 for pair in pairs if pair.more]
    if several:
        count = f"{counted(len(several), 'image')} with 2 to {max(several)} masks"
        yield "united", f"{count}, by MASK_NAME, whose foregrounds are united"


def _facts_left_out(survey: _Survey) -> Iterator[tuple[str, str]]:
    """Files that are no pictures."""
    left_out = [printable(path.name) for side in survey.sides for path in side.left_out]
    if left_out and survey.examples:
        more = ", ..." if len(left_out) > 5 else ""
        yield "left out", f"{len(left_out):,} that are no pictures by their names: {', '.join(left_out[:5])}{more}"


def _facts_of_values(survey: _Survey) -> Iterator[tuple[str, str]]:
    """How the values of images and masks are read, and what share of the pixels they have."""
    if survey.value_range:
        low, high = survey.value_range
        deep = counted(len(survey.deep), "image")
        yield "range", f"{low:g} ... {high:g} of {deep} of more than 8 bits becomes 0 ... 255 (IMAGE_RANGE)"
    if survey.nodata and survey.spec.image_range == AUTO:
        values = " and ".join(f"{value:g} ({share:.1%} of the values)" for value, share in survey.nodata.items())
        yield "no data", f"{values}, declared so or far from all others, does not count for that range"
    mask_rule = survey.mask_rule
    if not mask_rule or not survey.examples:
        return
    yield "mask values", mask_rule.describe()
    if mask_rule.has_classes:
        yield "classes", _shares_in_words(survey, mask_rule)
    else:
        shares = np.array([example.foreground for example in survey.examples])
        ends = f"{np.count_nonzero(shares == 0):,} masks empty, {np.count_nonzero(shares == 1):,} all foreground"
        text = f"least {shares.min():.2%}, median {np.median(shares):.2%}, most {shares.max():.2%} of a mask; {ends}"
        yield "foreground", text
    if mask_rule.ignored:
        pixels = np.sum([example.counts for example in survey.examples], axis=0)
        yield "ignored", f"{pixels[-1] / pixels.sum():.2%} of all pixels are neither trained on nor scored"


def _shares_in_words(survey: _Survey, mask_rule: MaskRule) -> str:
    """The share of each class in the pixels of each side."""
    columns = ["class", *(side.name for side in survey.sides if side.examples)]
    rows = [" / ".join(columns) + ": "]
    for name, *shares in zip(mask_rule.names, *_class_shares(survey)):
        rows.append(" / ".join([name, *(f"{100 * share:.2g} %" for share in shares)]))
    more = f" and {len(rows) - 41} more" if len(rows) > 41 else ""
    return f"{rows[0]}{', '.join(rows[1:41])}{more}"


_FACTS = (_facts_of_files, _facts_of_odd_files, _facts_left_out, _facts_of_values)


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


def _draw_sheet(survey: _Survey, mask_rule: MaskRule, path: Path) -> Path | None:
    """Draws the masks of some examples on their images; None where no example can be drawn."""

    def can_be_drawn(example: _Example) -> bool:
        image = example.image
        # Images of 32 bits and floats have no pixels without a range.
        has_pixels = survey.value_range or image.depth is None or image.depth["bits"] == 16
        return (
            bool(has_pixels)
            and image.channels == survey.channels
            and (survey.spec.resize_masks or all(image.size == mask.size for mask in example.masks))
        )

    examples = [example for example in survey.examples if can_be_drawn(example)]
    if not examples:
        return None
    images, masks, captions = [], [], []
    for example in _choose_tiles(examples, mask_rule, survey.turned_unclear):
        pair, (height, width) = example.pair, example.image.size
        scale = min(1, 480 / max(height, width))
        size = max(1, round(height * scale)), max(1, round(width * scale))
        images.append(read_image(pair.image, size, pair.image_page, survey.value_range, survey.channels))
        own_size = (height, width) if survey.spec.resize_masks else None
        masks.append(read_mask(pair.masks, mask_rule, size, pair.mask_page, own_size))
        captions.append(pair.name if mask_rule.has_classes else f"{pair.name}  {example.foreground:.1%}")
    title = f"{len(examples):,} pairs; foreground is tinted, its share stands below"
    if mask_rule.has_classes:
        title = f"{len(examples):,} pairs; each class has its colour"
    sheet = pictures.overlay_sheet(images, masks, captions, title, pictures.Palette.of(mask_rule))
    pictures.save_image(path, sheet)
    return path


def _choose_tiles(examples: list[_Example], mask_rule: MaskRule, doubtful: list[_Example]) -> list[_Example]:
    """At most TILES examples: with the least and the most foreground, or the most of each class; others in between.

    Half of them are from the `doubtful` ones, as far as there are that many.
    """
    if mask_rule.has_classes:
        shares = [example.counts[:-1] / example.counts.sum() for example in examples]
        extremes = np.argmax(shares, axis=0).tolist()
    else:
        ranked = sorted(range(len(examples)), key=lambda number: examples[number].foreground)
        extremes = [ranked[0], ranked[-1]]
    doubted = {example.pair.image for example in doubtful}
    first = [number for number, example in enumerate(examples) if example.pair.image in doubted][: TILES // 2]
    extremes = list(dict.fromkeys([*first, *extremes]))[:TILES]
    spread = np.linspace(0, len(examples) - 1, max(TILES - len(extremes), 1)).round().astype(int).tolist()
    return [examples[number] for number in sorted(list(dict.fromkeys([*extremes, *spread]))[:TILES])]
