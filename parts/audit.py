"""Every file of a dataset looked at before the first epoch, and what is wrong with them in words.

What was seen is remembered until a file changes, so that a second audit reads nothing again.
"""

import hashlib
import json
import os
from collections import Counter, defaultdict
from collections.abc import Iterable
from contextlib import closing, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from parts import pictures
from parts.errors import UnusableFile, UserError, counted, printable
from parts.files import parallel_map, stamp, write_text
from parts.images import choose_value_range, decode, depth_of, pages_of, pixels_of, read_image
from parts.mask_rules import decide_mask_rule, refuse_united_classes
from parts.masks import (
    IGNORED,
    MOST_COLOURS,
    NUMBERS,
    MaskRule,
    Observation,
    alpha_fault,
    alpha_of,
    count_classes,
    observe_mask,
    read_mask,
)
from parts.names import (
    LEAVE_OUT,
    NAME_MASKS,
    by_pages,
    fits_group,
    group_of,
    list_both,
    match,
    source_stem,
)
from parts.spec import ALPHA, DataSpec

VERSION = 5  # of the memory; raise it when something else is seen in the same files
LINES = 20  # files listed of one kind
DARK = 4096  # 16-bit images that stay below have fewer than 16 greys left at 8 bits
TILES = 16  # overlays on the sheet
FEW, SOME = 64, 200  # pixels of foreground at IMAGE_SIZE, and masks, that are looked at for what vanishes
FEW_COLOURS = 8  # of a sample of an image's pixels; photographs have more
RARE = 0.001  # share of all pixels below which a class is told


@dataclass
class Report:
    """What an audit found: `problems` spoil training, `warnings` need not; both are texts, worst first.

    `train`, `val`: lists of reading.Pair. `mask_rule`: how the masks are read, None where they have no rule in common,
    which is a problem then. `value_range`: what of images of more than 8 bits becomes 0 ... 255 (reading.read_image).
    `facts`: (label, text) in words. `sheet`: the picture of overlays, where one was written.
    """

    train: list
    val: list
    mask_rule: MaskRule | None = None
    value_range: tuple | None = None
    problems: list = field(default_factory=list)
    warnings: list = field(default_factory=list)
    facts: list = field(default_factory=list)
    sheet: Path | None = None

    def text(self):
        """The facts and the warnings; for the problems see stop_if_spoiled."""
        lines = [f"  {label:<13}{text}" for label, text in self.facts]
        warnings = [f"Warning: {warning}" for warning in self.warnings]
        look = [f"Look at the masks on their images: {printable(self.sheet)}"] if self.sheet else []
        return "\n".join(["What the data is:", *lines, *warnings, *look])

    def stop_if_spoiled(self):
        """UserError with all the problems, if there are any."""
        if self.problems:
            count = "A problem" if len(self.problems) == 1 else f"{len(self.problems)} problems"
            raise UserError("\n\n".join([f"{count} that would spoil training:", *self.problems]))


def audit(
    train_folders: tuple[str | Path, str | Path],
    val_folders: tuple[str | Path, str | Path] | None = None,
    spec: DataSpec = DataSpec(),
    *,
    image_size: tuple[int, int] | None = None,
    sheet: str | Path | None = None,
    cache: str | Path | None = None,
    apart: Iterable[str | Path] = (),
    num_workers: int | None = None,
) -> Report:
    """Looks at every file of a dataset and reports what would spoil training on it.

    train_folders, val_folders: (images, masks); val_folders None: there is no validation
    spec: what the files mean; its image_range "auto" is decided by the training images
    image_size: (height, width) of training, to tell what of the masks is left at that; None: that is not told
    sheet: where to write a picture of some masks on their images, or None
    cache: a JSON file that remembers what was seen, so that only new and changed files are read again
    apart: folders whose pictures are not the dataset's, wherever they lie
    num_workers: processes that decode; None: one a core
    """
    mask_foreground = spec.foreground
    train_img_dir, train_mask_dir = train_folders
    val_img_dir, val_mask_dir = val_folders or (None, None)
    group, image_range, progress = spec.group, spec.image_range, True
    if sheet:
        _check_sheet(Path(sheet), train_img_dir, train_mask_dir, val_img_dir, val_mask_dir)
    # Of folders that lie below one another, each keeps its own pictures, and none takes the sheet's for its own.
    others = [train_img_dir, train_mask_dir, val_img_dir, val_mask_dir, sheet and Path(sheet).parent, *apart]
    naming = spec, [folder for folder in others if folder is not None]
    sides = [_Side("training", train_img_dir, train_mask_dir, *naming)]
    if val_img_dir is not None:
        sides.append(_Side("validation", val_img_dir, val_mask_dir, *naming))
    _look(sides, cache, num_workers, progress)
    for side in sides:
        side.masks = [
            [it if _is_fault(it) else alpha_fault(it, mask_foreground) or it for it in masks] for masks in side.masks
        ]
    report = Report(sides[0].pairs, sides[1].pairs if len(sides) > 1 else [])
    report.problems += [side.problem for side in sides if side.problem]
    _tell_unusable(report, sides)
    _tell_unpaired(report, sides)
    _decide_rule(report, sides, spec)
    _tell_misfits(report, sides)
    if len(sides) > 1 and os.path.realpath(train_img_dir) == os.path.realpath(val_img_dir):
        report.warnings.append(
            f"{printable(val_img_dir)}: is given for training and for validation, so the scores will tell how well its "
            "images are learnt by heart, and nothing about others."
        )
    elif len(sides) > 1:
        _compare_sides(report, *sides, group)
    _describe(report, sides)
    _tell_twins(report, sides)
    _choose_span(report, sides, image_range)
    if report.mask_rule:
        _count_classes(report, sides)
        (_look_at_classes if report.mask_rule.classes else _look_at_foreground)(report, sides)
    if image_size and report.mask_rule:
        _tell_what_vanishes(report, sides, tuple(image_size), num_workers)
    if sheet and report.mask_rule:
        try:
            _draw_sheet(report, sides, Path(sheet))
        except OSError as error:  # what was found is worth more than its picture
            report.warnings.append(f"{printable(sheet)} could not be written ({error.strerror}).")
    return report


def _check_sheet(sheet, *folders):
    if sheet.suffix.lower() not in (".png", ".jpg", ".jpeg"):
        raise UserError(f"{printable(sheet)}: the sheet of overlays is a .png or a .jpg file.")
    if sheet.resolve().parent in [Path(folder).resolve() for folder in folders if folder is not None]:
        raise UserError(
            f"{printable(sheet)}: there the sheet would be taken for one of the images. Give another folder."
        )


class _Side:
    """The files of training, or of validation, and what was seen in them."""

    def __init__(self, name, img_dir, mask_dir, spec, apart):
        self.name, self.problem, self.folders = name, None, (img_dir, mask_dir)
        self.pairs, self.faults, self.notes, self.left_out = [], [], [], []
        self.page_faults = []  # files whose pages are not as many as their partner's
        # In the order of the pairs: facts of the image, and the Observations of its masks; or UnusableFiles
        self.images, self.masks = [], []
        self.counts = np.zeros((0, 3), np.int64)  # pixels of each class in each usable mask, ignored ones last
        self.shares = []  # foreground of each usable mask, 0 to 1, of what is not ignored
        try:
            images, masks = list_both(img_dir, mask_dir, spec, apart)
        except UserError as error:
            self.problem = str(error)
            return
        self.left_out = images.left_out + masks.left_out
        found = match(images, masks, spec)
        self.pairs, self.faults, self.notes = found.pairs, found.faults, found.notes
        if not self.pairs:
            self.problem = (
                f"{printable(img_dir)}, {printable(mask_dir)}: no image there has a mask. Names must agree, like "
                f"a.jpg and a.png, a_mask.gif or a.mask.png. {NAME_MASKS}."
            )

    def usable(self):
        """(pair, facts of its image, Observations of its masks) where all the files can be decoded."""
        every = zip(self.pairs, self.images, self.masks)
        return [it for it in every if not any(map(_is_fault, [it[1], *it[2]]))]


def _is_fault(facts):
    return isinstance(facts, UnusableFile)


# ---- looking, and remembering it


def _look(sides, cache, num_workers, progress):
    """Fills in the `images` and `masks` of each side, and its pages, decoding what `cache` does not remember."""
    # At an eighth of their size JPEGs decode in half the time, and are compared all the same. Among
    # other formats they must be decoded wholly, to be told from or equalled to those.
    eighths = all(pair.image.suffix.lower() in (".jpg", ".jpeg") for side in sides for pair in side.pairs)
    memory, faults = _Memory(cache, eighths), {}

    def pages(path):
        facts = memory.get(("image", path, 0)) or memory.get(("mask", path, 0)) or {}
        return facts.get("pages") or [0]

    try:
        _see_all(sides, memory, faults, eighths, num_workers, progress)
        for side in sides:
            side.pairs, side.page_faults = by_pages(side.pairs, pages)
        files = _see_all(sides, memory, faults, eighths, num_workers, progress)  # the pages after the first
        images = {file: memory.get(file) for file in files if file[0] == "image"}
        memory.changed |= _compare_wholly({file: facts for file, facts in images.items() if facts}, num_workers)
    finally:
        memory.save()  # also where it was stopped: what has been seen need not be seen again
    for side in sides:
        for pair in side.pairs:
            image, *masks = _files_of(pair)
            side.images.append(faults.get(image) or images[image])
            side.masks.append([faults.get(mask) or _observation(mask, memory.get(mask)) for mask in masks])


def _files_of(pair):
    """(what it is, path, page) of the image and of each mask of a pair."""
    image, *masks = pair.sources
    return [("image", *image), *(("mask", *mask) for mask in masks)]


def _see_all(sides, memory, faults, eighths, num_workers, progress):
    """The files of all pairs; those that neither `memory` nor `faults` know are looked at first."""
    files = dict.fromkeys(file for side in sides for pair in side.pairs for file in _files_of(pair))
    unseen = [file for file in files if file not in faults and memory.get(file) is None]
    hidden = None if progress and unseen else True  # None: shown on a terminal
    with closing(parallel_map(partial(_see, eighths), unseen, num_workers)) as work:
        for seen, file in zip(tqdm(work, "looking at", len(unseen), unit=" files", disable=hidden), unseen):
            if _is_fault(seen):
                faults[file] = seen
            else:
                memory.put(file, seen)
    return files


def _observation(file, facts):
    _, path, page = file
    known = {name: value for name, value in facts.items() if name != "pages"}
    return Observation(f"{path}[{page}]" if page else str(path), **known)


def _see(eighths, file):
    """Plain facts of one file, as _files_of gives it; or the UnusableFile that it is."""
    kind, path, page = file
    try:
        facts = _image_facts(path, page, eighths) if kind == "image" else dict(vars(observe_mask(path, page)))
    except UnusableFile as fault:
        return fault
    facts.pop("path", None)
    if facts["frames"] and not page:
        facts["pages"] = pages_of(path)
    return facts


def _image_facts(path, page, eighths):
    """Plain facts of an image. `digest` is equal for equal pixels, and nearly always another for others."""
    decoded = decode(path, (1, 1) if eighths else None, page)
    picture = decoded.picture
    pixels = pixels_of(decoded, path)
    step = 1 if eighths else 8
    sample = pixels[:: max(1, len(pixels) // 32), :: max(1, pixels.shape[1] // 32)]
    alpha = alpha_of(picture) if picture.mode in ("LA", "PA", "RGBA") else None
    return {
        "size": list(decoded.size),
        "format": decoded.format,
        "mode": picture.mode,
        "frames": decoded.frames,
        "turned": decoded.turned,
        "depth": depth_of(decoded, path),
        "fourth": alpha is not None and bool(alpha.min() < alpha.max()),
        "few": len(np.unique(sample.astype(np.float64) @ (65536, 256, 1))) <= FEW_COLOURS,
        "blank": bool((pixels[::8] == pixels[0, 0]).all() and (pixels == pixels[0, 0]).all()),
        "digest": _digest(decoded.size, pixels[::step]),
    }


def _digest(size, pixels):
    summary = hashlib.blake2b(repr(size).encode(), digest_size=12)
    summary.update(np.ascontiguousarray(pixels))
    return summary.hexdigest()


def _compare_wholly(images, num_workers):
    """Gives an `exact` digest to those of {file: facts} whose digests are equal. Whether there were new ones."""
    alike = defaultdict(list)
    for file, facts in images.items():
        alike[facts["digest"]].append(file)
    files = [file for twins in alike.values() if len(twins) > 1 for file in twins if "exact" not in images[file]]
    for file, exact in zip(files, parallel_map(_exact_digest, files, num_workers)):
        images[file]["exact"] = exact
    return bool(files)


def _exact_digest(file):
    """The digest of all pixels, or None for a file that has gone bad meanwhile."""
    _, path, page = file
    try:
        decoded = decode(path, page=page)
        return _digest(decoded.size, pixels_of(decoded, path))
    except UserError:
        return None


class _Memory:
    """Facts of files, kept in the JSON file `place` (or nowhere: None) as long as the files keep their stamps."""

    def __init__(self, place, eighths):
        self.place, self.head = place and Path(place), [VERSION, eighths]
        self.old, self.known, self.stamps, self.changed = {}, {}, {}, False
        with suppress(OSError, ValueError, KeyError, TypeError):  # none yet, or not ours: look again
            found = json.loads(self.place.read_text()) if place else {"head": None}
            self.old = found["files"] if found["head"] == self.head else {}

    def get(self, file):
        """The facts of a file, as _files_of gives it, or None where it must be looked at."""
        key = self._key(file)
        if key not in self.stamps:  # taken before the file is read
            self.stamps[key] = stamp(file[1])
            if key in self.old and self.old[key][0] == self.stamps[key]:
                self.known[key] = self.old[key]
        return self.known[key][1] if key in self.known else None

    def put(self, file, facts):
        key = self._key(file)
        self.known[key] = [self.stamps[key], facts]
        self.changed = True

    def _key(self, file):
        kind, path, page = file
        return f"{kind} {os.path.abspath(path)}" + f"[{page}]" * bool(page)

    def save(self):
        """Remembers what this audit needed and forgets other files; nothing where nothing can be written."""
        if not self.place or not (self.changed or len(self.known) != len(self.old)):
            return
        with suppress(OSError):
            self.place.parent.mkdir(parents=True, exist_ok=True)
            write_text(self.place, json.dumps({"head": self.head, "files": self.known}, separators=(",", ":")))


# ---- what spoils training


def _tell_unusable(report, sides):
    seen = [it for side in sides for image, masks in zip(side.images, side.masks) for it in (image, *masks)]
    faults = list({it.path: it for it in seen if _is_fault(it)}.values())
    if faults:
        report.problems.append(_listed(f"{counted(len(faults), 'file')} cannot be used:", faults))


def _tell_unpaired(report, sides):
    for side in sides:
        if side.faults:
            heading = f"{counted(len(side.faults), 'file')} for {side.name} without one partner of the same name:"
            report.problems.append(_listed(heading, side.faults, f"{NAME_MASKS}; {LEAVE_OUT}."))
        if side.page_faults:
            heading = f"{counted(len(side.page_faults), 'file')} for {side.name} with pages that have no partner:"
            report.problems.append(_listed(heading, side.page_faults))


def _decide_rule(report, sides, spec):
    seen = [it for side in sides for masks in side.masks for it in masks if not _is_fault(it)]
    if not seen:
        return
    if spec.foreground != ALPHA and (words := _photographs(sides, seen)):
        report.problems.append(words)
        return
    try:
        if spec.classes is not None:
            refuse_united_classes(pair for side in sides for pair in side.pairs)
        report.mask_rule = decide_mask_rule(seen, spec)
    except UserError as error:
        report.problems.append(str(error))
        return
    if report.mask_rule.soft and report.mask_rule.kind == NUMBERS:
        soft = [mask.path for mask in seen if len(mask.counts) > 2]
        if soft:
            report.warnings.append(
                f"{counted(len(soft), 'mask')} with soft or JPEG edges, e.g. {printable(soft[0])}, cut at the middle: "
                f"{report.mask_rule.describe()}."
            )


def _photographs(sides, seen):
    """Words where most of the masks are photographs rather than masks, else None."""
    pixels = [it.size[0] * it.size[1] for it in seen]
    masks = [it.path for it, n in zip(seen, pixels) if len(it.counts) > 100 and 5 * sum(dict(it.thick).values()) < n]
    if 2 * len(masks) <= len(seen):
        return None
    cut_outs = [it.path for it in seen if it.alpha and len(it.alpha) > 1]
    cure = ' If they are cut-outs, set MASK_FOREGROUND = "alpha" (--mask-foreground alpha).' if cut_outs else ""
    images = [facts for side in sides for facts in side.images if not _is_fault(facts)]
    if 2 * sum(facts["few"] for facts in images) > len(images):
        folders = " and ".join(" with ".join(map(printable, side.folders)) for side in sides)
        return (
            f"The masks are photographs, e.g. {printable(masks[0])}, and the images hold hardly any colours, as masks do: "
            f"the folders seem to be swapped. Swap {folders} (--train-img-dir, --train-mask-dir and so on).{cure}"
        )
    if all(it.kind == NUMBERS or len(it.counts) < MOST_COLOURS for it in seen):
        return None  # greys may be soft masks, which has its own words
    return (
        f"The masks seem to be photographs, e.g. {printable(masks[0])}: they hold hundreds of colours and hardly any areas "
        f"of one. Check the folder of the masks.{cure}"
    )


def _tell_misfits(report, sides):
    lines = []
    for side in sides:
        for pair, image, masks in side.usable():
            for mask in masks:
                size, other = image["size"], mask.size
                if size == other:
                    continue
                line = f"{printable(pair.image)} is {_by(size)}, {printable(mask.path)} is {_by(other)}"
                if size == other[::-1]:
                    line += ": height and width are swapped, so one of them is rotated"
                    if image["turned"] >= 5:
                        line += " (the image by its EXIF tag: rotate the mask, or remove the tag)"
                lines.append(line)
    if lines:
        heading = f"{counted(len(lines), 'pair')} of an image and a mask that differ in size (height x width):"
        cure = "Export both from the same picture, or remove them."
        report.problems.append(_listed(heading, lines, cure))


def _compare_sides(report, train, val, group):
    """The same picture, or the same thing, in training and in validation."""
    here, there = (_by_pixels(side) for side in (train, val))
    same = sorted(here.keys() & there.keys())
    if same:
        lines = [f"{printable(val_path)} is {printable(here[key][0])}" for key in same for val_path in there[key]]
        cure = "Remove them from one of the two, or scores will be too good."
        heading = f"{counted(len(lines), 'image')} for validation with the pixels of one for training:"
        report.problems.append(_listed(heading, lines, cure))
    groups = [defaultdict(list), defaultdict(list)]
    stems = [{}, {}]
    for side, by_group, by_stem in zip((train, val), groups, stems):
        for pair in side.pairs:
            if fits_group(pair.name, group):
                by_group[group_of(pair.name, group)].append(pair.image)
            else:
                by_stem.setdefault(source_stem(pair.name), pair.image)
    shared = sorted(groups[0].keys() & groups[1].keys())
    if shared:
        lines = [
            f"{printable(name)}: {printable(groups[0][name][0])} and {len(groups[0][name]) - 1:,} more in training, "
            f"{printable(groups[1][name][0])} and {len(groups[1][name]) - 1:,} more in validation"
            for name in shared
        ]
        cure = f"Keep each on one side (augment.py does), or change GROUP = {group!r}, which tells them by their names."
        report.problems.append(_listed(f"{counted(len(shared), 'group')} of images on both sides:", lines, cure))
    pixels = {path for key in same for path in there[key]}
    alike = [path for name, path in sorted(stems[1].items()) if name in stems[0] and path not in pixels]
    if alike:
        heading = f"{counted(len(alike), 'name')} in both training and validation, with other pixels. Are these "
        heading += "numbered alike, or copies of one picture?"
        report.warnings.append(_listed(heading, map(printable, alike)))


def _by_pixels(side):
    """{what is equal for equal pixels: images}; those of one value all over, such as empty tiles, tell nothing."""
    found = defaultdict(list)
    for pair, facts, _ in side.usable():
        if facts["blank"]:
            continue
        found[facts.get("exact") or facts["digest"]].append(pair.image)
    return found


# ---- what the data is, and what is odd in it


def _describe(report, sides):
    """Counts of pairs, sizes, kinds; and what of it is odd, as warnings."""
    usable = [it for side in sides for it in side.usable()]
    counts = [f"{len(side.pairs):,} for {side.name}" for side in sides]
    report.facts.append(("pairs", ", ".join(counts)))
    report.facts += [(label, f"for {side.name} {text}") for side in sides for label, text in side.notes]
    if not usable:
        return
    sizes = Counter(_by(image["size"]) for _, image, _ in usable)
    report.facts.append(("sizes", _counted(sizes)))
    report.facts.append(("images", _counted(Counter(f"{it['format']} {it['mode']}" for _, it, _ in usable))))
    report.facts.append(("masks", _counted(Counter(f"mode {mask.mode}" for _, _, masks in usable for mask in masks))))
    turned = sum(image["turned"] > 1 for _, image, _ in usable)
    if turned:
        report.facts.append(("EXIF", f"{counted(turned, 'image')} set upright"))
    paged = {pair.image for pair, _, _ in usable if pair.image_page or pair.mask_page}
    if paged:
        report.facts.append(("pages", f"each of {counted(len(paged), 'file')} is an image with a mask of its own"))
    several = [len(pair.more) + 1 for pair, _, _ in usable if pair.more]
    if several:
        count = f"{counted(len(several), 'image')} with 2 to {max(several)} masks"
        report.facts.append(("united", f"{count}, by MASK_NAME, whose foregrounds are united"))
    if fourth := [pair.image for pair, image, _ in usable if image["fourth"]]:
        heading = f"{counted(len(fourth), 'image')} with a channel of transparency, or a fourth one, that says "
        heading += "something: it is dropped, and the network sees red, green and blue."
        report.warnings.append(_listed(heading, map(printable, fourth)))
    left_out = [path for side in sides for path in side.left_out]
    if left_out:
        names = ", ".join(printable(path.name) for path in left_out[:5]) + (", ..." if len(left_out) > 5 else "")
        report.facts.append(("left out", f"{len(left_out):,} that are no pictures by their names: {names}"))


def _counted(counter):
    parts = [f"{name} ({count:,})" for name, count in counter.most_common(6)]
    more = [f"{len(counter) - 6} others"] if len(counter) > 6 else []
    return ", ".join(parts + more) if len(counter) > 1 else f"all {next(iter(counter))}"


def _tell_twins(report, sides):
    for side in sides:
        twins = sorted(paths for paths in _by_pixels(side).values() if len(paths) > 1)
        if twins:
            heading = f"{counted(sum(map(len, twins)), 'image')} for {side.name} with the same pixels as another:"
            report.warnings.append(_listed(heading, [" = ".join(map(printable, paths)) for paths in twins]))


def _choose_span(report, sides, image_range):
    """Sets report.span, by IMAGE_RANGE, and tells what becomes of images of more than 8 bits."""
    deep = [(side, pair.image, image["depth"]) for side in sides for pair, image, _ in side.usable() if image["depth"]]
    if not deep:
        return
    report.value_range = image_range
    if image_range == "auto":
        ours = [depth["quantiles"] for side, _, depth in deep if side is sides[0]]
        report.value_range = choose_value_range(ours or [depth["quantiles"] for _, _, depth in deep])
    if report.value_range:
        low, high = report.value_range
        words = f"{low:g} ... {high:g} of {counted(len(deep), 'image')} of more than 8 bits becomes 0 ... 255"
        report.facts.append(("range", words + " (IMAGE_RANGE)"))
        beyond = [printable(path) for _, path, depth in deep if depth["highest"] <= low or depth["lowest"] >= high]
        if beyond:
            heading = f"{counted(len(beyond), 'image')} with all values outside of that range, so that nothing is seen:"
            text = _listed(heading, beyond, 'Widen IMAGE_RANGE, or set it to "auto".')
            (report.problems if len(beyond) == len(deep) else report.warnings).append(text)
        return
    cure = 'Set IMAGE_RANGE = "auto" (--image-range auto), or the lowest and the highest value that mean something.'
    if unread := [printable(path) for _, path, depth in deep if depth["bits"] != 16]:
        heading = f"{counted(len(unread), 'image')} of 32 bits or with fractions, whose range must be known:"
        report.problems.append(_listed(heading, unread, cure))
    dark = [printable(path) for _, path, depth in deep if depth["bits"] == 16 and depth["highest"] < DARK]
    if dark:
        heading = (
            f"{counted(len(dark), 'image')} of 16 bits that use only the lowest 12 or fewer. Of 8 bits, which the "
        )
        heading += "network sees, hardly any are left:"
        (report.problems if len(dark) == len(deep) else report.warnings).append(_listed(heading, dark, cure))


def _count_classes(report, sides):
    """Fills in `counts` and `shares` of each side."""
    for side in sides:
        counts = []
        for _, _, masks in side.usable():
            first, *more = [count_classes(mask, report.mask_rule) for mask in masks]
            for other in more:  # of objects, which hardly overlap
                first[1] = min(first[1] + other[1], first[:2].sum())
                first[0] = max(first[0] - other[1], 0)
            counts.append(first)
        side.counts = np.array(counts, np.int64).reshape(-1, max(2, report.mask_rule.channels) + 1)
        known = side.counts[:, :-1].sum(axis=1)
        side.shares = (1 - side.counts[:, 0] / np.maximum(known, 1)).tolist()


def _tell_ignored(report, sides):
    """Problems and facts of MASK_IGNORE."""
    if not report.mask_rule.ignored:
        return
    ignored, pixels = (sum(int(part.sum()) for part in parts) for parts in
                       ([side.counts[:, -1] for side in sides], [side.counts for side in sides]))  # fmt: skip
    report.facts.append(("ignored", f"{ignored / max(pixels, 1):.2%} of all pixels are neither trained on nor scored"))
    if not ignored:
        report.warnings.append("MASK_IGNORE: no mask holds that.")
    for side in sides:
        if len(side.counts) and not side.counts[:, :-1].sum():
            report.problems.append(f"Every pixel of the masks for {side.name} is ignored. Check MASK_IGNORE.")


def _look_at_foreground(report, sides):
    shares = np.array([share for side in sides for share in side.shares])
    if not len(shares):
        return
    least, median, most = (float(np.quantile(shares, at)) for at in (0, 0.5, 1))
    empty, full = int((shares == 0).sum()), int((shares == 1).sum())
    report.facts.append(("mask values", report.mask_rule.describe()))
    words = f"least {least:.2%}, median {median:.2%}, most {most:.2%} of a mask"
    report.facts.append(("foreground", words + f"; {empty:,} masks empty, {full:,} all foreground"))
    _tell_ignored(report, sides)
    for side in sides:
        if side.shares and (max(side.shares) == 0 or min(side.shares) == 1):
            what = "is empty" if max(side.shares) == 0 else "is foreground all over"
            report.problems.append(
                f"Every mask for {side.name} {what}, e.g. {printable(side.pairs[0].mask)}, so there is nothing to learn "
                "or to score. Check the masks, and MASK_FOREGROUND."
            )
    if 0.9 < median < 1:
        report.warnings.append(
            "Nearly everything is foreground. If it should be the other way round, set MASK_FOREGROUND to the value "
            f"of what you mean ({report.mask_rule.background[0] if report.mask_rule.background else 'see above'})."
        )


def _look_at_classes(report, sides):
    """What share of the pixels each class has; and what is missing on one side, or hardly there."""
    report.facts.append(("mask values", report.mask_rule.describe()))
    counts = [side.counts[:, :-1].sum(axis=0) for side in sides if len(side.counts)]
    if not counts:
        return
    shares = [count / max(count.sum(), 1) for count in counts]
    parts = [" / ".join([name, *(f"{100 * side[index]:.2g} %" for side in shares)]) for index, name in
             enumerate(report.mask_rule.names)]  # fmt: skip
    told = " / ".join(["class", *(side.name for side in sides if len(side.counts))])
    more = f" and {len(parts) - 40} more" if len(parts) > 40 else ""
    report.facts.append(("classes", f"{told}: {', '.join(parts[:40])}{more}"))
    _tell_ignored(report, sides)
    for side, count in zip([side for side in sides if len(side.counts)], counts):
        if (count > 0).sum() == 1:
            report.problems.append(
                f"The masks for {side.name} hold one of the classes alone, {report.mask_rule.names[int(count.argmax())]}, "
                "so there is nothing to learn or to score. Check the masks, and CLASSES."
            )
        absent = [name for name, pixels in zip(report.mask_rule.names, count) if not pixels]
        if absent:
            end = "cannot be learnt" if side is sides[0] else "are not scored"
            report.warnings.append(
                f"Classes that no mask for {side.name} holds, so that they {end}: {', '.join(absent)}."
            )
    rare = [
        f"{name} ({100 * share:.2g} %)" for name, share in zip(report.mask_rule.names, shares[0]) if 0 < share < RARE
    ]
    if rare:
        report.warnings.append(f"Classes that hardly any pixel for training has: {', '.join(rare)}.")


def _tell_what_vanishes(report, sides, size, num_workers):
    """Foreground, or classes, lost where masks are shrunk to `size`: what is small or thin beside its picture."""
    places = [(side, share, counts, pair) for side in sides
              for share, counts, (pair, _, masks) in zip(side.shares, side.counts, side.usable())
              if (share or report.mask_rule.classes) and any(a > b for a, b in zip(masks[0].size, size))]  # fmt: skip
    # To look at all of them would be to decode them twice. All are looked at where one of these loses anything:
    # those whose foreground would fill a few pixels, and some of the others, which may be thin.
    few = [at for at, (_, share, _, _) in enumerate(places) if share * size[0] * size[1] < FEW]
    some = np.linspace(0, len(places) - 1, min(len(places), SOME)).round().astype(int).tolist()
    read = partial(_counts_at, mask_rule=report.mask_rule, size=size)
    at = f"IMAGE_SIZE {_by(size)}"
    cure = "Raise IMAGE_SIZE, or train on crops of images at their own size: --image-size none --crop 320 480."
    if report.mask_rule.classes:
        if places:
            _tell_what_classes_lose(report, [places[index] for index in some], read, num_workers, at, cure)
        return
    for chosen in (sorted({*few, *some}), range(len(places))):
        found = [
            _share_of(counts) for counts in parallel_map(read, [places[index][3] for index in chosen], num_workers)
        ]
        lost = [(places[index], left) for index, left in zip(chosen, found) if left < places[index][1] / 2]
        if not lost:
            return
    emptied = [place for place, left in lost if not left]
    before, after = np.mean([place[1] for place in places]), np.mean(found)
    text = _listed(
        f"{counted(len(emptied), 'mask')} {'is' if len(emptied) == 1 else 'are'} emptied at {at}, and "
        f"{counted(len(lost) - len(emptied), 'other')} lose more than half of their foreground, because it is small "
        f"or thin beside its picture; foreground is {before:.3%} of the masks in their files, and {after:.3%} then:",
        [f"{printable(pair.mask)}: {share:.3%} -> {left:.3%}" for (_, share, _, pair), left in lost],
        cure,
    )
    for side in sides:
        mine = [place for place in places if place[0] is side]
        if mine and len(mine) == sum(place[0] is side for place in emptied):
            report.problems.append(f"No mask for {side.name} has any foreground left at {at}.\n{text}")
            return
    report.warnings.append(text)


def _tell_what_classes_lose(report, places, read, num_workers, at, cure):
    found = np.array(list(parallel_map(read, [pair for _, _, _, pair in places], num_workers)))
    both = np.array([counts for _, _, counts, _ in places]), found
    shares = [(counts / counts.sum(axis=1, keepdims=True)).mean(axis=0) for counts in both]
    lost = [
        f"{name}: {before:.3%} -> {after:.3%} of the pixels"
        for name, before, after in zip(report.mask_rule.names, *shares)
        if after < before / 2
    ]
    if lost:
        verb = "loses" if len(lost) == 1 else "lose"
        heading = f"{counted(len(lost), 'class')} {verb} more than half of the pixels at {at}, being small or thin:"
        report.warnings.append(_listed(heading, lost, cure))


def _counts_at(pair, mask_rule, size):
    """Pixels of each class of a pair's mask once it is shrunk, ignored ones last."""
    counts = np.bincount(read_mask(pair.masks, mask_rule, size, pair.mask_page).ravel(), minlength=256)
    return np.append(counts[: max(2, mask_rule.channels)], counts[IGNORED])


def _share_of(counts):
    return float(counts[1] / max(counts[:-1].sum(), 1))


def _draw_sheet(report, sides, path):
    """Overlays of pairs spread over the dataset; those with the least and the most foreground, or most of a class."""
    usable = [(*it[:2], *it[2]) for side in sides for it in zip(side.shares, side.counts, side.usable())]
    usable = [it for it in usable if all(it[3]["size"] == mask.size for mask in it[4]) and _can_be_shown(report, it[3])]
    if not usable:
        return
    ranked = sorted(range(len(usable)), key=lambda index: usable[index][0])
    most = [ranked[0], ranked[-1]]
    if report.mask_rule.classes:
        most = np.argmax([counts[:-1] / counts.sum() for _, counts, *_ in usable], axis=0).tolist()
    most = list(dict.fromkeys(most))[:TILES]
    spread = np.linspace(0, len(usable) - 1, max(TILES - len(most), 1)).round().astype(int).tolist()
    chosen = sorted(list(dict.fromkeys([*most, *spread]))[:TILES])
    images, masks, captions = [], [], []
    for index in chosen:
        share, _, pair, facts, _ = usable[index]
        scale = min(1, 480 / max(facts["size"]))
        size = [max(1, round(side * scale)) for side in facts["size"]]
        images.append(read_image(pair.image, size, pair.image_page, report.value_range))
        masks.append(read_mask(pair.masks, report.mask_rule, size, pair.mask_page))
        captions.append(pair.name if report.mask_rule.classes else f"{pair.name}  {share:.1%}")
    path.parent.mkdir(parents=True, exist_ok=True)
    what = "each class has its colour" if report.mask_rule.classes else "foreground is tinted, its share stands below"
    title, palette = f"{len(usable):,} pairs; {what}", pictures.Palette.of(report.mask_rule)
    pictures.save_image(path, pictures.overlay_sheet(images, masks, captions, title, palette))
    report.sheet = path


def _can_be_shown(report, facts):
    return bool(report.value_range) or facts["depth"] is None or facts["depth"]["bits"] == 16


# ---- words


def _listed(heading, lines, cure=None):
    """A text of one problem or warning: all that it is about, cut at LINES."""
    lines = [f"  {line}" for line in lines]
    if len(lines) > LINES:
        lines = [*lines[:LINES], f"  ... and {len(lines) - LINES:,} more"]
    return "\n".join([heading, *lines, *([cure] if cure else [])])


def _by(size):
    return f"{size[0]}x{size[1]}"
