"""What may be wrong with a dataset: each kind of problem found, and put into words."""

from collections import defaultdict

from errors import UserError
from reading import UnusableFile, fits_group, group_of, list_both, match_all, shown, source_stem

LINES = 20  # files listed of one kind
DARK = 4096  # 16-bit images that stay below have fewer than 16 greys left at 8 bits


class Side:
    """The files of training, or of validation."""

    def __init__(self, name, img_dir, mask_dir):
        self.name, self.problems, self.left_out = name, [], []
        self.pairs, self.faults = [], []
        self.images, self.masks, self.shares = [], [], []
        try:
            images, masks = list_both(img_dir, mask_dir)
        except UserError as error:
            self.problems.append(str(error))
            return
        self.left_out = images.left_out + masks.left_out
        self.pairs, self.faults = match_all(images, masks)
        if not self.pairs:
            self.problems.append(
                f"{shown(img_dir)}, {shown(mask_dir)}: no image there has a mask. Names must agree, like "
                "a.jpg and a.png, a_mask.gif or a.mask.png."
            )

    def usable(self):
        """(pair, facts of its image, Observation) where both files can be decoded."""
        return [it for it in zip(self.pairs, self.images, self.masks) if not is_fault(it[1]) and not is_fault(it[2])]


def listed(heading, lines, cure=None):
    """A text of one problem or warning: all that it is about, cut at LINES."""
    lines = [f"  {line}" for line in lines]
    if len(lines) > LINES:
        lines = [*lines[:LINES], f"  ... and {len(lines) - LINES:,} more"]
    return "\n".join([heading, *lines, *([cure] if cure else [])])


def number(count, noun):
    plural = noun[:-1] + "ies" if noun.endswith("y") else noun + "s"
    return f"{count:,} {noun if count == 1 else plural}"


def is_fault(facts):
    return isinstance(facts, UnusableFile)


def unusable(sides):
    faults = [facts for side in sides for facts in side.images + side.masks if is_fault(facts)]
    return [listed(f"{number(len(faults), 'file')} cannot be used:", faults)] if faults else []


def unpaired(sides):
    texts = []
    for side in sides:
        if side.faults:
            heading = f"{number(len(side.faults), 'file')} for {side.name} without one partner of the same name:"
            texts.append(listed(heading, side.faults))
    return texts


def misfits(sides):
    lines = []
    for side in sides:
        for pair, image, mask in side.usable():
            size, other = image["size"], mask.size
            if size == other:
                continue
            line = f"{shown(pair.image)} is {by(size)}, {shown(pair.mask)} is {by(other)}"
            if size == other[::-1]:
                line += ": height and width are swapped, so one of them is rotated"
                if image["turned"] >= 5:
                    line += " (the image by its EXIF tag: rotate the mask, or remove the tag)"
            lines.append(line)
    heading = f"{number(len(lines), 'pair')} of an image and a mask that differ in size (height x width):"
    cure = "Export both from the same picture, or remove them."
    return [listed(heading, lines, cure)] if lines else []


def by(size):
    return f"{size[0]}x{size[1]}"


def compare_sides(report, train, val, group):
    """The same picture, or the same thing, in training and in validation."""
    here, there = (_by_pixels(side) for side in (train, val))
    same = sorted(here.keys() & there.keys())
    if same:
        lines = [f"{shown(val_path)} is {shown(here[key][0])}" for key in same for val_path in there[key]]
        cure = "Remove them from one of the two, or scores will be too good."
        heading = f"{number(len(lines), 'image')} for validation with the pixels of one for training:"
        report.problems.append(listed(heading, lines, cure))
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
        report.problems.append(listed(f"{number(len(shared), 'group')} of images on both sides:", lines, cure))
    pixels = {path for key in same for path in there[key]}
    alike = [path for name, path in sorted(stems[1].items()) if name in stems[0] and path not in pixels]
    if alike:
        heading = f"{number(len(alike), 'name')} in both training and validation, with other pixels. Are these "
        heading += "numbered alike, or copies of one picture?"
        report.warnings.append(listed(heading, map(shown, alike)))


def _by_pixels(side):
    """{what is equal for equal pixels: images}."""
    found = defaultdict(list)
    for pair, facts, _ in side.usable():
        found[facts.get("exact") or facts["digest"]].append(pair.image)
    return found


def find_twins(report, sides):
    for side in sides:
        twins = sorted(paths for paths in _by_pixels(side).values() if len(paths) > 1)
        if twins:
            heading = f"{number(sum(map(len, twins)), 'image')} for {side.name} with the same pixels as another:"
            report.warnings.append(listed(heading, [" = ".join(map(shown, paths)) for paths in twins]))


def look_at_depth(report, sides):
    images = [(pair.image, image["brightest"]) for side in sides for pair, image, _ in side.usable()]
    deep = [(path, brightest) for path, brightest in images if brightest is not None]
    dark = [shown(path) for path, brightest in deep if brightest < DARK]
    if not dark:
        return
    heading = f"{number(len(dark), 'image')} of 16 bits that use only the lowest 12 or fewer. Of 8 bits, which the "
    heading += "network sees, hardly any are left:"
    text = listed(heading, dark, "Stretch their values over 0 to 65535, all by the same factor.")
    (report.problems if len(dark) == len(deep) else report.warnings).append(text)
