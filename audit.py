"""Looks at every file of a dataset before the first epoch, and says all that is wrong with it at once."""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

import pictures
from errors import UserError
from findings import (
    Side,
    by,
    compare_sides,
    find_twins,
    is_fault,
    listed,
    look_at_depth,
    misfits,
    number,
    unpaired,
    unusable,
)
from looking import look
from masks import MaskRule, decide_mask_rule, foreground_share, read_mask
from reading import CARVANA_GROUP, fits_group, read_image, shown

TILES = 16  # overlays on the sheet


@dataclass
class Report:
    """What an audit found: `problems` spoil training, `warnings` need not; both are texts, worst first.

    `foreground`: least, median and most of its share over the masks, 0 to 1. `rule` is None where the
    masks have none in common, which is a problem then.
    """

    rule: MaskRule | None
    train: list
    val: list
    problems: list = field(default_factory=list)
    warnings: list = field(default_factory=list)
    foreground: tuple = (0.0, 0.0, 0.0)
    facts: list = field(default_factory=list)  # (label, text)
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
):
    """The Report on the pairs of these folders.

    mask_foreground, group: MASK_FOREGROUND (masks.decide_mask_rule) and GROUP (reading.group_of)
    sheet: where to write a picture of some masks on their images, or None
    cache: a JSON file that remembers what was seen, so that only new and changed files are read again
    """
    fits_group("", group)  # a pattern that is none is told now, not after the looking
    if sheet:
        _check_sheet(Path(sheet), train_img_dir, train_mask_dir, val_img_dir, val_mask_dir)
    sides = [Side("training", train_img_dir, train_mask_dir)]
    if val_img_dir is not None:
        sides.append(Side("validation", val_img_dir, val_mask_dir))
    pairs = [pair for side in sides for pair in side.pairs]
    images, seen = look(pairs, cache, num_workers, progress)
    for side in sides:
        count = len(side.pairs)
        side.images, images = images[:count], images[count:]
        side.masks, seen = seen[:count], seen[count:]
    report = Report(None, sides[0].pairs, sides[1].pairs if len(sides) > 1 else [])
    report.problems += [text for side in sides for text in side.problems]
    report.problems += unusable(sides)
    report.problems += unpaired(sides)
    _decide_rule(report, sides, mask_foreground)
    report.problems += misfits(sides)
    if len(sides) > 1:
        compare_sides(report, *sides, group)
    _describe(report, sides)
    find_twins(report, sides)
    look_at_depth(report, sides)
    _look_at_foreground(report, sides)
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


def _decide_rule(report, sides, foreground):
    seen = [mask for side in sides for mask in side.masks if not is_fault(mask)]
    if not seen:
        return
    try:
        report.rule = decide_mask_rule(seen, foreground)
    except UserError as error:
        report.problems.append(str(error))
        return
    if report.rule.soft:
        soft = [mask.path for mask in seen if len(mask.counts) > 2 or mask.between]
        if soft:
            report.warnings.append(
                f"{number(len(soft), 'mask')} with soft or JPEG edges, e.g. {shown(soft[0])}, cut at the middle: "
                f"{report.rule.describe()}."
            )


def _describe(report, sides):
    """Counts of pairs, sizes, kinds; and what of it is odd, as warnings."""
    usable = [it for side in sides for it in side.usable()]
    counts = [f"{len(side.pairs):,} for {side.name}" for side in sides]
    report.facts.append(("pairs", ", ".join(counts)))
    if not usable:
        return
    sizes = Counter(by(image["size"]) for _, image, _ in usable)
    report.facts.append(("sizes", _counted(sizes)))
    report.facts.append(("images", _counted(Counter(f"{it['format']} {it['mode']}" for _, it, _ in usable))))
    report.facts.append(("masks", _counted(Counter(f"mode {mask.mode}" for _, _, mask in usable))))
    turned = sum(image["turned"] > 1 for _, image, _ in usable)
    if turned:
        report.facts.append(("EXIF", f"{number(turned, 'image')} set upright"))
    frames = [pair.image for pair, image, _ in usable if image["frames"]]
    frames += [pair.mask for pair, _, mask in usable if mask.frames]
    if frames:
        heading = f"{number(len(frames), 'file')} with several frames or pages, of which the first one is used:"
        report.warnings.append(listed(heading, map(shown, frames)))
    left_out = [path for side in sides for path in side.left_out]
    if left_out:
        names = ", ".join(shown(path.name) for path in left_out[:5]) + (", ..." if len(left_out) > 5 else "")
        report.facts.append(("left out", f"{len(left_out):,} that are no pictures by their names: {names}"))


def _counted(counter):
    parts = [f"{name} ({count:,})" for name, count in counter.most_common(6)]
    more = [f"{len(counter) - 6} others"] if len(counter) > 6 else []
    return ", ".join(parts + more) if len(counter) > 1 else f"all {next(iter(counter))}"


def _look_at_foreground(report, sides):
    if report.rule is None:
        return
    for side in sides:
        side.shares = [foreground_share(mask, report.rule) for _, _, mask in side.usable()]
    shares = np.array([share for side in sides for share in side.shares])
    if not len(shares):
        return
    least, median, most = (float(np.quantile(shares, at)) for at in (0, 0.5, 1))
    report.foreground = (least, median, most)
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
