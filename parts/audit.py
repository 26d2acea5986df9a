"""Every file of a dataset looked at before the first epoch, and what is wrong with them in words.

What was seen is remembered until a file changes, so that a second audit reads nothing again.
"""

import hashlib
import json
import os
from collections import Counter, defaultdict
from contextlib import closing, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from parts import pictures
from parts.files import each, stamp, write_text
from parts.masks import (
    NUMBERS,
    MaskRule,
    Observation,
    alpha_fault,
    decide_mask_rule,
    foreground_share,
    observe_mask,
    read_mask,
)
from parts.reading import (
    CARVANA_GROUP,
    LEAVE_OUT,
    NAME_MASKS,
    UnusableFile,
    decode,
    fits_group,
    group_of,
    list_both,
    match_all,
    read_image,
    refuse_mask_name,
    rgb,
    shown,
    source_stem,
)
from parts.script import UserError

VERSION = 4  # of the memory; raise it when something else is seen in the same files
LINES = 20  # files listed of one kind
DARK = 4096  # 16-bit images that stay below have fewer than 16 greys left at 8 bits
TILES = 16  # overlays on the sheet
FEW, SOME = 64, 200  # pixels of foreground at IMAGE_SIZE, and masks, that are looked at for what vanishes


@dataclass
class Report:
    """What an audit found: `problems` spoil training, `warnings` need not; both are texts, worst first.

    `train`, `val`: lists of reading.Pair. `rule`: how the masks are read, None where they have no rule in common,
    which is a problem then. `facts`: (label, text) in words. `sheet`: the picture of overlays, where one was written.
    """

    train: list
    val: list
    rule: MaskRule | None = None
    problems: list = field(default_factory=list)
    warnings: list = field(default_factory=list)
    facts: list = field(default_factory=list)
    sheet: Path | None = None

    def text(self):
        """The facts and the warnings; for the problems see stop_if_spoiled."""
        lines = [f"  {label:<13}{text}" for label, text in self.facts]
        warnings = [f"Warning: {warning}" for warning in self.warnings]
        look = [f"Look at the masks on their images: {shown(self.sheet)}"] if self.sheet else []
        return "\n".join(["What the data is:", *lines, *warnings, *look])

    def stop_if_spoiled(self):
        """UserError with all the problems, if there are any."""
        if self.problems:
            count = "A problem" if len(self.problems) == 1 else f"{len(self.problems)} problems"
            raise UserError("\n\n".join([f"{count} that would spoil training:", *self.problems]))


def audit(
    train_img_dir,
    train_mask_dir,
    val_img_dir=None,
    val_mask_dir=None,
    mask_foreground=None,
    group=CARVANA_GROUP,
    sheet=None,
    cache=None,
    num_workers=None,
    progress=True,
    image_size=None,
    mask_name=None,
    skip_unpaired=False,
    apart=(),
):
    """The Report on the pairs of these folders.

    mask_foreground, group: MASK_FOREGROUND (masks.decide_mask_rule) and GROUP (reading.group_of)
    sheet: where to write a picture of some masks on their images, or None
    cache: a JSON file that remembers what was seen, so that only new and changed files are read again
    num_workers: processes that decode; None: one a core
    image_size: (height, width) of training, to tell what of the masks is left at that; None: that is not told
    mask_name, skip_unpaired: MASK_NAME and SKIP_UNPAIRED (reading.match_all)
    apart: folders whose pictures are not the dataset's, wherever they lie
    """
    fits_group("", group)  # a pattern that is none is told now, not after the looking
    if mask_name is not None:
        refuse_mask_name(mask_name)
    if sheet:
        _check_sheet(Path(sheet), train_img_dir, train_mask_dir, val_img_dir, val_mask_dir)
    # Of folders that lie below one another, each keeps its own pictures, and none takes the sheet's for its own.
    others = [train_img_dir, train_mask_dir, val_img_dir, val_mask_dir, sheet and Path(sheet).parent, *apart]
    naming = mask_name, skip_unpaired, [folder for folder in others if folder is not None]
    sides = [_Side("training", train_img_dir, train_mask_dir, *naming)]
    if val_img_dir is not None:
        sides.append(_Side("validation", val_img_dir, val_mask_dir, *naming))
    _look(sides, cache, num_workers, progress)
    for side in sides:
        side.masks = [it if _is_fault(it) else alpha_fault(it, mask_foreground) or it for it in side.masks]
    report = Report(sides[0].pairs, sides[1].pairs if len(sides) > 1 else [])
    report.problems += [side.problem for side in sides if side.problem]
    _tell_unusable(report, sides)
    _tell_unpaired(report, sides)
    _decide_rule(report, sides, mask_foreground)
    _tell_misfits(report, sides)
    if len(sides) > 1 and os.path.realpath(train_img_dir) == os.path.realpath(val_img_dir):
        report.warnings.append(
            f"{shown(val_img_dir)}: is given for training and for validation, so the scores will tell how well its "
            "images are learnt by heart, and nothing about others."
        )
    elif len(sides) > 1:
        _compare_sides(report, *sides, group)
    _describe(report, sides)
    _tell_twins(report, sides)
    _look_at_depth(report, sides)
    _look_at_foreground(report, sides)
    if image_size and report.rule:
        _tell_what_vanishes(report, sides, tuple(image_size), num_workers)
    if sheet and report.rule:
        try:
            _draw_sheet(report, sides, Path(sheet))
        except OSError as error:  # what was found is worth more than its picture
            report.warnings.append(f"{shown(sheet)} could not be written ({error.strerror}).")
    return report


def _check_sheet(sheet, *folders):
    if sheet.suffix.lower() not in (".png", ".jpg", ".jpeg"):
        raise UserError(f"{shown(sheet)}: the sheet of overlays is a .png or a .jpg file.")
    if sheet.resolve().parent in [Path(folder).resolve() for folder in folders if folder is not None]:
        raise UserError(f"{shown(sheet)}: there the sheet would be taken for one of the images. Give another folder.")


class _Side:
    """The files of training, or of validation, and what was seen in them."""

    def __init__(self, name, img_dir, mask_dir, mask_name, skip_unpaired, apart):
        self.name, self.problem = name, None
        self.pairs, self.faults, self.notes, self.left_out = [], [], [], []
        self.images, self.masks = [], []  # in the order of the pairs: facts and Observations, or UnusableFiles
        self.shares = []  # foreground of each usable mask, 0 to 1
        try:
            images, masks = list_both(img_dir, mask_dir, apart, mask_name)
        except UserError as error:
            self.problem = str(error)
            return
        self.left_out = images.left_out + masks.left_out
        found = match_all(images, masks, mask_name, skip_unpaired)
        self.pairs, self.faults, self.notes = found.pairs, found.faults, found.notes
        if not self.pairs:
            self.problem = (
                f"{shown(img_dir)}, {shown(mask_dir)}: no image there has a mask. Names must agree, like "
                f"a.jpg and a.png, a_mask.gif or a.mask.png. {NAME_MASKS}."
            )

    def usable(self):
        """(pair, facts of its image, Observation) where both files can be decoded."""
        return [it for it in zip(self.pairs, self.images, self.masks) if not any(map(_is_fault, it[1:]))]


def _is_fault(facts):
    return isinstance(facts, UnusableFile)


# ---- looking, and remembering it


def _look(sides, cache, num_workers, progress):
    """Fills in the `images` and `masks` of each side, decoding what `cache` does not remember."""
    pairs = [pair for side in sides for pair in side.pairs]
    # At an eighth of their size JPEGs decode in half the time, and are compared all the same. Among
    # other formats they must be decoded wholly, to be told from or equalled to those.
    eighths = all(pair.image.suffix.lower() in (".jpg", ".jpeg") for pair in pairs)
    memory, faults = _Memory(cache, eighths), {}
    files = dict.fromkeys(file for pair in pairs for file in (("image", pair.image), ("mask", pair.mask)))
    unseen = [file for file in files if memory.get(file) is None]
    hidden = None if progress and unseen else True  # None: shown on a terminal
    try:
        with closing(each(partial(_see, eighths), unseen, num_workers)) as work:
            for seen, file in zip(tqdm(work, "looking at", len(unseen), unit=" files", disable=hidden), unseen):
                if _is_fault(seen):
                    faults[file] = seen
                else:
                    memory.put(file, seen)
        images = {path: memory.get((kind, path)) for kind, path in files if kind == "image"}
        memory.changed |= _compare_wholly({path: facts for path, facts in images.items() if facts}, num_workers)
    finally:
        memory.save()  # also where it was stopped: what has been seen need not be seen again
    for side in sides:
        side.images = [faults.get(("image", pair.image)) or images[pair.image] for pair in side.pairs]
        masks = [("mask", pair.mask) for pair in side.pairs]
        side.masks = [faults.get(file) or Observation(str(file[1]), **memory.get(file)) for file in masks]


def _see(eighths, file):
    """Plain facts of one file, ("image" or "mask", path); or the UnusableFile that it is."""
    kind, path = file
    try:
        if kind == "image":
            return _image_facts(path, eighths)
        facts = dict(vars(observe_mask(path)))
    except UnusableFile as fault:
        return fault
    del facts["path"]
    return facts


def _image_facts(path, eighths):
    """Plain facts of an image. `digest` is equal for equal pixels, and nearly always another for others."""
    decoded = decode(path, (1, 1) if eighths else None)
    picture = decoded.picture
    pixels = rgb(picture, path)
    step = 1 if eighths else 8
    brightest = int(np.asarray(picture).max()) if picture.mode.startswith("I") else None
    return {
        "size": list(decoded.size),
        "format": decoded.format,
        "mode": picture.mode,
        "frames": decoded.frames,
        "turned": decoded.turned,
        "brightest": brightest,  # of 16 bits
        "blank": bool((pixels[::8] == pixels[0, 0]).all() and (pixels == pixels[0, 0]).all()),
        "digest": _digest(decoded.size, pixels[::step]),
    }


def _digest(size, pixels):
    summary = hashlib.blake2b(repr(size).encode(), digest_size=12)
    summary.update(np.ascontiguousarray(pixels))
    return summary.hexdigest()


def _compare_wholly(images, num_workers):
    """Gives an `exact` digest to those of {path: facts} whose digests are equal. Whether there were new ones."""
    alike = defaultdict(list)
    for path, facts in images.items():
        alike[facts["digest"]].append(path)
    paths = [path for twins in alike.values() if len(twins) > 1 for path in twins if "exact" not in images[path]]
    for path, exact in zip(paths, each(_exact_digest, paths, num_workers)):
        images[path]["exact"] = exact
    return bool(paths)


def _exact_digest(path):
    """The digest of all pixels, or None for a file that has gone bad meanwhile."""
    try:
        decoded = decode(path)
        return _digest(decoded.size, rgb(decoded.picture, path))
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
        """The facts of a file, ("image" or "mask", path), or None where it must be looked at."""
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
        return f"{file[0]} {os.path.abspath(file[1])}"

    def save(self):
        """Remembers what this audit needed and forgets other files; nothing where nothing can be written."""
        if not self.place or not (self.changed or len(self.known) != len(self.old)):
            return
        with suppress(OSError):
            self.place.parent.mkdir(parents=True, exist_ok=True)
            write_text(self.place, json.dumps({"head": self.head, "files": self.known}, separators=(",", ":")))


# ---- what spoils training


def _tell_unusable(report, sides):
    faults = [facts for side in sides for facts in side.images + side.masks if _is_fault(facts)]
    if faults:
        report.problems.append(_listed(f"{_number(len(faults), 'file')} cannot be used:", faults))


def _tell_unpaired(report, sides):
    for side in sides:
        if side.faults:
            heading = f"{_number(len(side.faults), 'file')} for {side.name} without one partner of the same name:"
            report.problems.append(_listed(heading, side.faults, f"{NAME_MASKS}; {LEAVE_OUT}."))


def _decide_rule(report, sides, foreground):
    seen = [mask for side in sides for mask in side.masks if not _is_fault(mask)]
    if not seen:
        return
    try:
        report.rule = decide_mask_rule(seen, foreground)
    except UserError as error:
        report.problems.append(str(error))
        return
    if report.rule.soft and report.rule.kind == NUMBERS:
        soft = [mask.path for mask in seen if len(mask.counts) > 2]
        if soft:
            report.warnings.append(
                f"{_number(len(soft), 'mask')} with soft or JPEG edges, e.g. {shown(soft[0])}, cut at the middle: "
                f"{report.rule.describe()}."
            )


def _tell_misfits(report, sides):
    lines = []
    for side in sides:
        for pair, image, mask in side.usable():
            size, other = image["size"], mask.size
            if size == other:
                continue
            line = f"{shown(pair.image)} is {_by(size)}, {shown(pair.mask)} is {_by(other)}"
            if size == other[::-1]:
                line += ": height and width are swapped, so one of them is rotated"
                if image["turned"] >= 5:
                    line += " (the image by its EXIF tag: rotate the mask, or remove the tag)"
            lines.append(line)
    if lines:
        heading = f"{_number(len(lines), 'pair')} of an image and a mask that differ in size (height x width):"
        cure = "Export both from the same picture, or remove them."
        report.problems.append(_listed(heading, lines, cure))


def _compare_sides(report, train, val, group):
    """The same picture, or the same thing, in training and in validation."""
    here, there = (_by_pixels(side) for side in (train, val))
    same = sorted(here.keys() & there.keys())
    if same:
        lines = [f"{shown(val_path)} is {shown(here[key][0])}" for key in same for val_path in there[key]]
        cure = "Remove them from one of the two, or scores will be too good."
        heading = f"{_number(len(lines), 'image')} for validation with the pixels of one for training:"
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
            f"{shown(name)}: {shown(groups[0][name][0])} and {len(groups[0][name]) - 1:,} more in training, "
            f"{shown(groups[1][name][0])} and {len(groups[1][name]) - 1:,} more in validation"
            for name in shared
        ]
        cure = f"Keep each on one side (augment.py does), or change GROUP = {group!r}, which tells them by their names."
        report.problems.append(_listed(f"{_number(len(shared), 'group')} of images on both sides:", lines, cure))
    pixels = {path for key in same for path in there[key]}
    alike = [path for name, path in sorted(stems[1].items()) if name in stems[0] and path not in pixels]
    if alike:
        heading = f"{_number(len(alike), 'name')} in both training and validation, with other pixels. Are these "
        heading += "numbered alike, or copies of one picture?"
        report.warnings.append(_listed(heading, map(shown, alike)))


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
    report.facts.append(("masks", _counted(Counter(f"mode {mask.mode}" for _, _, mask in usable))))
    turned = sum(image["turned"] > 1 for _, image, _ in usable)
    if turned:
        report.facts.append(("EXIF", f"{_number(turned, 'image')} set upright"))
    frames = [pair.image for pair, image, _ in usable if image["frames"]]
    frames += [pair.mask for pair, _, mask in usable if mask.frames]
    if frames:
        heading = f"{_number(len(frames), 'file')} with several frames or pages, of which the first one is used:"
        report.warnings.append(_listed(heading, map(shown, frames)))
    left_out = [path for side in sides for path in side.left_out]
    if left_out:
        names = ", ".join(shown(path.name) for path in left_out[:5]) + (", ..." if len(left_out) > 5 else "")
        report.facts.append(("left out", f"{len(left_out):,} that are no pictures by their names: {names}"))


def _counted(counter):
    parts = [f"{name} ({count:,})" for name, count in counter.most_common(6)]
    more = [f"{len(counter) - 6} others"] if len(counter) > 6 else []
    return ", ".join(parts + more) if len(counter) > 1 else f"all {next(iter(counter))}"


def _tell_twins(report, sides):
    for side in sides:
        twins = sorted(paths for paths in _by_pixels(side).values() if len(paths) > 1)
        if twins:
            heading = f"{_number(sum(map(len, twins)), 'image')} for {side.name} with the same pixels as another:"
            report.warnings.append(_listed(heading, [" = ".join(map(shown, paths)) for paths in twins]))


def _look_at_depth(report, sides):
    images = [(pair.image, image["brightest"]) for side in sides for pair, image, _ in side.usable()]
    deep = [(path, brightest) for path, brightest in images if brightest is not None]
    dark = [shown(path) for path, brightest in deep if brightest < DARK]
    if not dark:
        return
    heading = f"{_number(len(dark), 'image')} of 16 bits that use only the lowest 12 or fewer. Of 8 bits, which the "
    heading += "network sees, hardly any are left:"
    text = _listed(heading, dark, "Stretch their values over 0 to 65535, all by the same factor.")
    (report.problems if len(dark) == len(deep) else report.warnings).append(text)


def _look_at_foreground(report, sides):
    if report.rule is None:
        return
    for side in sides:
        side.shares = [foreground_share(mask, report.rule) for _, _, mask in side.usable()]
    shares = np.array([share for side in sides for share in side.shares])
    if not len(shares):
        return
    least, median, most = (float(np.quantile(shares, at)) for at in (0, 0.5, 1))
    empty, full = int((shares == 0).sum()), int((shares == 1).sum())
    report.facts.append(("mask values", report.rule.describe()))
    words = f"least {least:.2%}, median {median:.2%}, most {most:.2%} of a mask"
    report.facts.append(("foreground", words + f"; {empty:,} masks empty, {full:,} all foreground"))
    for side in sides:
        if side.shares and (max(side.shares) == 0 or min(side.shares) == 1):
            what = "is empty" if max(side.shares) == 0 else "is foreground all over"
            report.problems.append(
                f"Every mask for {side.name} {what}, e.g. {shown(side.pairs[0].mask)}, so there is nothing to learn "
                "or to score. Check the masks, and MASK_FOREGROUND."
            )
    if 0.9 < median < 1:
        report.warnings.append(
            "Nearly everything is foreground. If it should be the other way round, set MASK_FOREGROUND to the value "
            f"of what you mean ({report.rule.background[0] if report.rule.background else 'see above'})."
        )


def _tell_what_vanishes(report, sides, size, num_workers):
    """Foreground that is lost where masks are shrunk to `size`: what is small or thin beside its picture."""
    places = [(side, share, pair.mask, mask.size) for side in sides
              for share, (pair, _, mask) in zip(side.shares, side.usable())
              if share and (mask.size[0] > size[0] or mask.size[1] > size[1])]  # fmt: skip
    # To look at all of them would be to decode them twice. All are looked at where one of these loses anything:
    # those whose foreground would fill a few pixels, and some of the others, which may be thin.
    few = [at for at, (_, share, _, _) in enumerate(places) if share * size[0] * size[1] < FEW]
    some = np.linspace(0, len(places) - 1, min(len(places), SOME)).round().astype(int).tolist()
    read = partial(_share_at, rule=report.rule, size=size)
    for chosen in (sorted({*few, *some}), range(len(places))):
        found = list(each(read, [places[at][2] for at in chosen], num_workers))
        lost = [(places[at], left) for at, left in zip(chosen, found) if left < places[at][1] / 2]
        if not lost:
            return
    emptied = [place for place, left in lost if not left]
    at = f"IMAGE_SIZE {_by(size)}"
    before, after = np.mean([place[1] for place in places]), np.mean(found)
    text = _listed(
        f"{_number(len(emptied), 'mask')} {'is' if len(emptied) == 1 else 'are'} emptied at {at}, and "
        f"{_number(len(lost) - len(emptied), 'other')} lose more than half of their foreground, because it is small "
        f"or thin beside its picture; foreground is {before:.3%} of the masks in their files, and {after:.3%} then:",
        [f"{shown(path)}: {share:.3%} -> {left:.3%}" for (_, share, path, _), left in lost],
        "Raise IMAGE_SIZE (--image-size), or cut the pictures into tiles.",
    )
    for side in sides:
        mine = [place for place in places if place[0] is side]
        if mine and len(mine) == sum(place[0] is side for place in emptied):
            report.problems.append(f"No mask for {side.name} has any foreground left at {at}.\n{text}")
            return
    report.warnings.append(text)


def _share_at(path, rule, size):
    """What share of a mask's pixels is foreground once it is shrunk."""
    return float(read_mask(path, rule, size).mean())


def _draw_sheet(report, sides, path):
    """Overlays of pairs spread over the dataset, those with the least and the most foreground among them."""
    usable = [(share, *it) for side in sides for share, it in zip(side.shares, side.usable())]
    usable = [it for it in usable if it[2]["size"] == it[3].size]
    if not usable:
        return
    ranked = sorted(range(len(usable)), key=lambda index: usable[index][0])
    spread = np.linspace(0, len(usable) - 1, max(TILES - 2, 1)).round().astype(int).tolist()
    chosen = sorted({ranked[0], ranked[-1], *spread})[:TILES]
    images, masks, captions = [], [], []
    for index in chosen:
        share, pair, facts, _ = usable[index]
        scale = min(1, 480 / max(facts["size"]))
        size = [max(1, round(side * scale)) for side in facts["size"]]
        images.append(read_image(pair.image, size))
        masks.append(read_mask(pair.mask, report.rule, size))
        captions.append(f"{pair.name}  {share:.1%}")
    path.parent.mkdir(parents=True, exist_ok=True)
    title = f"{len(usable):,} pairs; foreground is tinted, its share stands below"
    pictures.save_image(path, pictures.overlay_sheet(images, masks, captions, title))
    report.sheet = path


# ---- words


def _listed(heading, lines, cure=None):
    """A text of one problem or warning: all that it is about, cut at LINES."""
    lines = [f"  {line}" for line in lines]
    if len(lines) > LINES:
        lines = [*lines[:LINES], f"  ... and {len(lines) - LINES:,} more"]
    return "\n".join([heading, *lines, *([cure] if cure else [])])


def _number(count, noun):
    plural = noun[:-1] + "ies" if noun.endswith("y") else noun + "s"
    return f"{count:,} {noun if count == 1 else plural}"


def _by(size):
    return f"{size[0]}x{size[1]}"
