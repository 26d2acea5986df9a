"""Which files of two folders belong together, by what names; and the pixels of one file, upright.

What cannot be read is refused in a message that names the file and says what to do with it.
"""

import os
import re
import stat
import unicodedata
import warnings
from collections import defaultdict
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageOps, TiffImagePlugin

from parts.script import UserError

CARVANA_GROUP = r"([0-9a-f]{12})_\d+"  # a car's twelve hex digits, before the number of the view
HOW_TO_GET_CARVANA = """\
To get Carvana's photographs: sign in to Kaggle, accept the rules of the competition
carvana-image-masking-challenge, download train.zip and train_masks.zip, and unpack both into dataset/,
which gives dataset/train/ and dataset/train_masks/. Then: python augment.py && python train.py
For images of your own: python augment.py --img-dir IMAGES --mask-dir MASKS
To try everything without any data: python train.py --demo"""
COPIES = ("hflip", "vflip", "grid")  # what augment.py appends to the name of a copy
MASK_ENDINGS = ("_mask", ".mask")  # which a mask's stem may have over its image's
SUFFIXES = (  # no .jp2, whose decoder takes some files that are cut short for whole
    *(".avif", ".bmp", ".gif", ".jfif", ".jpeg", ".jpg", ".pbm", ".pgm"),
    *(".png", ".pnm", ".ppm", ".tga", ".tif", ".tiff", ".webp"),
)
UNREAD = re.compile(  # names of pictures that are not read
    r"\.(arw|cr2|cr3|czi|dcm|dng|exr|fits|hdr|hei[cf]|hif|j2k|jp2|jxl|lif|mha|mrc|nd2|nef|nii|nii\.gz|np[yz]|nrrd|orf|pef"
    r"|raf|raw|rw2|srw|svg)$", re.IGNORECASE)  # fmt: skip
VIDEO = re.compile(r"\.(3gp|avi|flv|m2?ts|m4v|mkv|mov|mp4|mpe?g|mxf|ogv|webm|wmv)$", re.IGNORECASE)
LARGEST = 500_000_000  # pixels; one picture of that size fills 1.5 GB
SET_RANGE = 'IMAGE_RANGE = (low, high) or "auto" (--image-range) says which of its values become 0 and 255'

_AGAIN = "Fetch or export it again, or remove it"


class UnusableFile(UserError):
    """A file that cannot be used: `path`, `what` is wrong with it, and the `cure`."""

    def __init__(self, path, what=None, cure=None):
        # With its message alone DataLoader makes it again, from that of one raised in a worker.
        super().__init__(path if what is None else f"{shown(path)}: {what}. {cure}.")
        self.path, self.what, self.cure = path, what, cure

    def __reduce__(self):
        return UnusableFile, (self.path, self.what, self.cure)


def shown(path):
    """A path as it can be printed anywhere: what is unprintable in a name is escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(path))


# ---- folders and names


@dataclass(frozen=True)
class Listing:
    """`pictures` of `folder` and what lies below it, sorted by name.

    `left_out`: hidden files, folders without a picture and what is no picture by its name.
    """

    folder: Path
    pictures: list
    left_out: list

    def name_of(self, path):
        """A picture's name without its suffix: x in `folder` itself, a/x in its subfolder a."""
        return self._place_of(path) + _composed(path.stem)

    def owners_of(self, path, mask_name=None):
        """The names of images that a mask may belong to (`mask_stems`), each in the mask's own subfolder."""
        place = self._place_of(path)
        return [place + stem for stem in mask_stems(path, mask_name)]

    def _place_of(self, path):
        """What stands before a picture's own name: "" in `folder` itself, "a/" in its subfolder a."""
        place = _composed(path.parent.relative_to(self.folder).as_posix())
        return "" if place == "." else f"{place}/"


@dataclass(frozen=True)
class Pair:
    name: str  # the image's, without its suffix; with the subfolder, if there is one: a/x; of a page a/x_0
    image: Path
    mask: Path
    image_page: int = 0
    mask_page: int = 0
    more: tuple = ()  # further masks of the image, united with `mask`: see MASK_NAME

    @property
    def masks(self):
        """The mask, or all of them, as masks.read_mask takes it."""
        return (self.mask, *self.more) if self.more else self.mask

    @property
    def sources(self):
        """(file, page) of the image, then of each of its masks."""
        return [(self.image, self.image_page), *((mask, self.mask_page) for mask in (self.mask, *self.more))]


def list_pictures(folder, apart=()):
    """The Listing of `folder` and its subfolders but those `apart`.

    UserError: there is none, it or a folder below it may not be read, it holds no picture.
    """
    folder = Path(folder)
    pictures, left_out = _walked(folder, {os.path.realpath(other) for other in apart})
    if not pictures:
        others = f" ({len(left_out)} others are left out)" if left_out else ""
        cures = [f"{text}." for _, text in _of_other_kinds(left_out)] or ["Put some there, or give another folder."]
        raise UserError(" ".join([f"{shown(folder)}: holds no pictures{others}.", *cures]))
    return Listing(folder, sorted(pictures, key=lambda path: path.relative_to(folder).as_posix()), left_out)


def _walked(folder, seen):
    """(pictures, left out) of a folder and what lies below it; `seen`: real paths of folders to pass by."""
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except FileNotFoundError:
        raise UserError(f"{shown(folder)}: there is no such folder. Check its name, or make it and fill it.") from None
    except NotADirectoryError:
        raise UserError(f"{shown(folder)}: is a file. Give the folder that the pictures lie in.") from None
    except OSError as error:
        raise UserError(
            f"{shown(folder)}: cannot be read ({error.strerror}). Change its permissions, or give another folder."
        ) from None
    seen.add(os.path.realpath(folder))
    pictures, left_out = [], []
    for entry in entries:
        path, hidden = folder / entry.name, entry.name.startswith(".")
        if _is_dir(entry):
            # also a link that leads back
            inside = [] if hidden or os.path.realpath(path) in seen else _walked(path, seen)
            if inside and inside[0]:
                pictures += inside[0]
                left_out += inside[1]
            else:
                left_out += [other for other in inside and inside[1] if _is_other_kind(other)] or [path]
        else:
            (pictures if path.suffix.lower() in SUFFIXES and not hidden else left_out).append(path)
    return pictures, left_out


def _is_other_kind(path):
    return not path.name.startswith(".") and bool(UNREAD.search(path.name) or VIDEO.search(path.name))


def _of_other_kinds(paths):
    """(label, text) on those of `paths` that hold pictures and are not read, and what to do with them."""
    paths = [path for path in paths if _is_other_kind(path)]
    videos = [path for path in paths if VIDEO.search(path.name)]
    unread = [path for path in paths if not VIDEO.search(path.name)]
    texts = []
    if unread:
        text = f"{_count(len(unread), 'picture')} of a kind that is not read: {_named_first(unread)}"
        texts.append(("not read", f"{text}. To use {_them(unread)}, save as PNG (images also as JPEG)"))
    if videos:
        text = f"{_count(len(videos), 'video')}: {_named_first(videos)}. To use {_them(videos)}, cut into frames"
        texts.append(("videos", f"{text} (mkdir frames; ffmpeg -i {shown(videos[0].name)} frames/%05d.png)"))
    return texts


def _named_first(paths):
    return ", ".join(shown(path.name) for path in paths[:5]) + (", ..." if len(paths) > 5 else "")


def _them(paths):
    return "it" if len(paths) == 1 else "them"


def _is_dir(entry):
    try:
        return entry.is_dir()
    except OSError:  # a symbolic link that leads to itself; reading it will say so
        return False


def _composed(text):
    return unicodedata.normalize("NFC", text)  # macOS writes accents in two characters


def ends_in_mask(path):
    """Whether a file is a mask by its own name, among images: a_mask.png, a.mask.gif."""
    return _without(Path(path).stem, MASK_ENDINGS) is not None


def mask_stems(path, mask_name=None):
    """The stems of images that a mask may belong to, the likeliest first.

    a_mask.png is the mask of a_mask, or of a; a.jpg.png of a.jpg, or of a. With a `mask_name`, as in MASK_NAME,
    that alone counts, and there is one stem or none; with a * in it, all that fit, the longest first.
    """
    stem = _composed(Path(path).stem)
    if mask_name is not None:
        return _named(stem, mask_name) or _named(_composed(Path(path).name), mask_name)
    stems = [stem]
    # each once: a.jpg_mask.png, a_mask.jpg.png
    for endings in (MASK_ENDINGS, SUFFIXES) if ends_in_mask(path) else (SUFFIXES, MASK_ENDINGS):
        shorter = _without(stems[-1], endings)
        if shorter is not None:
            stems.append(shorter)
    return stems


def _named(text, mask_name):
    """What {} may stand for where a name is `mask_name`, the longest first."""
    mask_name = refuse_mask_name(mask_name)
    pattern = re.escape(mask_name).replace(r"\*", ".*")
    longest = len(text) - len(mask_name.replace("{}", "").replace("*", ""))
    lengths = range(longest, 0, -1) if "*" in mask_name else [longest]  # without a * there is one
    found = [re.fullmatch(pattern.replace(r"\{\}", f"(.{{{n}}})"), text, re.IGNORECASE) for n in lengths if n > 0]
    return [match[1] for match in found if match]


def _without(stem, endings):
    """A stem without that one of the endings, in whatever case, that it has; None: it has none of them."""
    for end in endings:
        if stem.lower().endswith(end) and len(stem) > len(end):
            return stem[: -len(end)]
    return None


def refuse_mask_name(mask_name):
    """A MASK_NAME with its accents composed. UserError: it does not have one {}, or more than one *."""
    text = _composed(mask_name) if isinstance(mask_name, str) else ""
    if text.count("{}") != 1 or text.count("*") > 1 or set("/\\") & set(text):
        raise UserError(
            f"MASK_NAME = {mask_name!r}: give the name of a mask, with {{}} where its image's stands, such as "
            "{}_segmentation (--mask-name), and with a * for what differs where an image has several masks, such as "
            "{}_*; or None for names that agree."
        )
    return text


def folded(names):
    """{a name in lower case: the one name that it is}, for `owner_of`; None where it may be several."""
    found = {}
    for name in names:
        found[name.casefold()] = None if name.casefold() in found else name
    return found


def owner_of(stems, names, in_lower_case):
    """The first of a mask's stems that is one of the images' `names`, in the same case or else in another; or None."""
    for stem in stems:
        if stem in names:
            return stem
    return next(filter(None, (in_lower_case.get(stem.casefold()) for stem in stems)), None)


def source_stem(stem):
    """The stem of the file that a copy by augment.py was made from; another stem stays itself."""
    for copy in COPIES:
        if stem.endswith(f"_{copy}"):
            return stem[: -len(copy) - 1]
    return stem


def group_of(stem, pattern=CARVANA_GROUP):
    """What an image shows, by its name: images of one group must stand on one side of a split.

    `pattern` is a regular expression for the beginning of the name; its first group counts, or all that
    it matches. A stem that it does not match is a group of its own.
    """
    stem = source_stem(stem)
    found = fits_group(stem, pattern)
    if not found:
        return stem
    return found[1] if found.re.groups and found[1] is not None else found[0]


def fits_group(stem, pattern):
    """The match of `pattern` at the beginning of a stem, or None. UserError: it is no regular expression.

    In subfolders, where a stem is folder/name, the pattern is tried on the whole of it and then on the name.
    """
    stem = source_stem(stem)
    try:
        return re.match(pattern, stem) or re.match(pattern, stem.rpartition("/")[2])
    except re.error as error:
        raise UserError(f"GROUP = {pattern!r}: is no regular expression ({error}). Mend it.") from None


# ---- pairs


LEAVE_OUT = "SKIP_UNPAIRED = True (--skip-unpaired) leaves out what has no partner"
NAME_MASKS = 'MASK_NAME = "{}_segmentation" (--mask-name) says how masks are named, if not like their images'


@dataclass(frozen=True)
class Matches:
    """`pairs` sorted by name; `faults`: an UnusableFile for each file that has no partner, or several.

    `notes`: (label, text) of what was taken that is not plain: names that differ, files that were left out.
    """

    pairs: list
    faults: list
    notes: list


def pair_files(img_dir, mask_dir, mask_name=None, skip_unpaired=False, apart=()):
    """The Pairs of two folders, sorted by name, pages apart; prints the notes. UserError names all misfits."""
    found = match_all(*list_both(img_dir, mask_dir, apart, mask_name), mask_name, skip_unpaired)
    pairs, faults = by_pages(found.pairs, pages_of)
    if found.faults or faults:
        cures = [f"{NAME_MASKS}; {LEAVE_OUT}."] if found.faults else []
        raise UserError("\n".join([*map(str, found.faults + faults), *cures]))
    if not pairs:
        raise UserError(f"{shown(img_dir)}, {shown(mask_dir)}: no image there has a mask. {NAME_MASKS}.")
    for _, text in found.notes:
        print(f"{shown(img_dir)}: {text}.")
    return pairs


def by_pages(pairs, pages):
    """(pairs, faults): of an image and a mask that have several pages a Pair for each; UnusableFiles, of unequal many.

    Pages are called name_0, name_1 ... `pages(path)`: the numbers of a file's pages, as pages_of gives them; a file
    without any (None) keeps its pair, so that reading it tells what is wrong.
    """
    apart, faults, taken = [], [], {pair.name for pair in pairs}
    for pair in pairs:
        here, there, *others = [pages(path) for path in (pair.image, pair.mask, *pair.more)]
        if here == there == [0] or not here or not there:
            apart.append(pair)
        elif len(here) != len(there) or any(len(other or there) != len(there) for other in others):
            masks = ", ".join(f"{shown(path)} {len(pages(path) or [0]):,}" for path in (pair.mask, *pair.more))
            what = f"holds {_count(len(here), 'picture')} (pages or frames), and its mask {masks}"
            faults.append(UnusableFile(pair.image, what, "Save both with as many, or each page as a file of its own"))
        elif len(here) == 1:
            apart.append(replace(pair, image_page=here[0], mask_page=there[0]))
        else:
            numbered = [(f"{pair.name}_{number}", both) for number, both in enumerate(zip(here, there))]
            made = [replace(pair, name=name, image_page=one, mask_page=other) for name, (one, other) in numbered]
            if same := taken.intersection(name for name, _ in numbered):
                what = f"has {len(here):,} pages, which are called like another image: {shown(min(same))}"
                faults.append(UnusableFile(pair.image, what, "Rename one of the two"))
            apart += made
    return apart, faults


def list_both(img_dir, mask_dir, apart=(), mask_name=None):
    """The Listings of images and masks; in one folder for both, masks are what ends in _mask, or as `mask_name` says.

    Either may lie below the other, whose pictures it does not join; nor do those of the folders `apart`.
    """
    if not os.path.isdir(mask_dir) or not os.path.isdir(img_dir) or not os.path.samefile(img_dir, mask_dir):
        return list_pictures(img_dir, [mask_dir, *apart]), list_pictures(mask_dir, [img_dir, *apart])
    images = list_pictures(img_dir, apart)
    names = {images.name_of(path) for path in images.pictures}
    in_lower_case = folded(names)

    def is_mask(path):
        if mask_name is None or "*" not in mask_name:
            return bool(mask_stems(path, mask_name)) if mask_name else ends_in_mask(path)
        # img_1 fits {}_* as well, and is a mask where img is another picture
        others = [name for name in images.owners_of(path, mask_name) if name != images.name_of(path)]
        return owner_of(others, names, in_lower_case) is not None

    masks = [path for path in images.pictures if is_mask(path)]
    if not masks:
        raise UserError(
            f"{shown(img_dir)}: is given both for images and for masks, and no file there ends in _mask. Give the "
            f"folder of the masks, or name them like a_mask.png. {NAME_MASKS}."
        )
    left_out = [path for path in images.left_out if is_mask(path)]
    taken = {*masks, *left_out}
    rest, others = ([path for path in paths if path not in taken] for paths in (images.pictures, images.left_out))
    return Listing(images.folder, rest, others), Listing(images.folder, masks, left_out)


def match_all(images, masks, mask_name=None, skip_unpaired=False):
    """The Matches of two Listings.

    A mask belongs to the image of its name (`mask_stems`), in the same subfolder. What remains on both sides is
    taken for pairs where numbers without their leading zeros, or, if no name agrees, one prefix or suffix on each
    side, pair every file one to one. `mask_name`, `skip_unpaired`: as in MASK_NAME and SKIP_UNPAIRED; only where
    the name has a *, an image may have several masks.
    """
    by_name, by_owner, strays = defaultdict(list), defaultdict(list), {}
    for path in images.pictures:
        by_name[images.name_of(path)].append(path)
    in_lower_case = folded(by_name)
    for path in masks.pictures:
        owners = masks.owners_of(path, mask_name)
        owner = owner_of(owners, by_name, in_lower_case)
        if owner:
            by_owner[owner].append(path)
        else:
            strays[path] = [masks.name_of(path), *owners]
    notes = _of_other_kinds(images.left_out + masks.left_out)
    lonely = [name for name in by_name if name not in by_owner]
    if not mask_name and lonely and len(lonely) == len(strays):
        owners, words = _differently_named(lonely, [names[0] for names in strays.values()], affixes=not by_owner)
        if owners:
            by_owner.update((owner, [path]) for owner, path in zip(owners, strays))
            strays.clear()
            path = by_owner[lonely[0]][0]
            notes.append(("names", f"{words}; e.g. {shown(path.name)} for {shown(by_name[lonely[0]][0].name)}"))
    pairs, faults, alone = [], [], []
    unread = {images.name_of(_as_png(path)): path for path in images.left_out if UNREAD.search(path.name)}
    unread_in_lower_case = folded(unread)
    unread_masks = {owner_of(masks.owners_of(_as_png(path), mask_name), by_name, in_lower_case): path
                    for path in masks.left_out if UNREAD.search(path.name)}  # fmt: skip
    several = mask_name is not None and "*" in mask_name
    for name, found in sorted(by_name.items()):
        partners = by_owner[name]
        if len(found) > 1 or len(partners) > 1 and not several:
            names = ", ".join(shown(path) for path in found + partners)
            faults.append(
                UnusableFile(found[0], f"it is not clear which belong together: {names}", "Keep one image and one mask")
            )
        elif not partners and name in unread_masks:
            what = f"has its mask in {shown(unread_masks[name])}, which is of a kind that is not read"
            alone.append(UnusableFile(found[0], what, "Save that as PNG"))
        elif not partners:
            wanted = shown(mask_name.replace("{}", Path(name).name).replace("*", "1") if mask_name else name)
            alone.append(UnusableFile(found[0], "has no mask", f"Add {wanted}.png or the like, or remove it"))
        else:
            mask, *more = sorted(partners)
            pairs.append(Pair(name, found[0], mask, more=tuple(more)))
    without = len(alone)
    scheme = _scheme_of_several(masks, by_name, in_lower_case) if strays and not mask_name else None
    for path, names in sorted(strays.items(), key=lambda item: item[1][-1]):
        what = "is the mask of no image"
        if owner := owner_of(names[1:], unread, unread_in_lower_case):
            what = f"is the mask of {shown(unread[owner])}, which is of a kind that is not read"
            cure = "Save that as PNG or JPEG"
        elif mask_name and len(names) == 1:
            cure = f"Name it as MASK_NAME = {mask_name!r} says, or remove it"
        elif scheme:
            cure = f"If it is one of several of an image, set MASK_NAME = {scheme!r} (--mask-name), which unites them"
        else:
            cure = f"Add the image {shown(names[1] if several else names[-1])}, or remove it"
        alone.append(UnusableFile(path, what, cure))
    if alone and skip_unpaired:
        files = ", ".join(shown(fault.path.name) for fault in alone[:5]) + (", ..." if len(alone) > 5 else "")
        counts = (
            f"{_count(without, 'image')} without a mask and {_count(len(alone) - without, 'mask')} without an image"
        )
        notes.append(("unpaired", f"{counts} are left out: {files}"))
    elif alone:
        order = {path: number for number, path in enumerate(images.pictures)}
        faults = sorted(faults + alone, key=lambda fault: order.get(fault.path, len(order)))
    return Matches(sorted(pairs, key=lambda pair: pair.name), faults, notes)


def _as_png(path):
    """A picture that is not read, as it would be called if it were; .nii.gz has two suffixes."""
    return path.with_name(UNREAD.sub(".png", path.name))


def _scheme_of_several(masks, names, in_lower_case):
    """The MASK_NAME with a * that every mask fits, where each begins with an image's name; or None."""
    for end in ("_", "-", ".", " "):
        scheme = f"{{}}{end}*"
        if all(owner_of(masks.owners_of(path, scheme), names, in_lower_case) for path in masks.pictures):
            return scheme
    return None


def _count(number, noun):
    return f"{number:,} {noun}{'s' * (number != 1)}"


def _differently_named(names, others, affixes):
    """([the name for each of `others`], how they differ in words), or ([], "") where not every one has its own.

    `affixes`: whether names may differ in a prefix or a suffix, or in leading zeros alone.
    """
    for zeros, strip in ((True, False), (False, True), (True, True)):
        if strip and not affixes:
            continue
        here, there = _split(names, zeros), _split(others, zeros)
        words = "numbers are compared without leading zeros"
        if strip:
            ends = _affixes([base for _, base in here], [base for _, base in there])
            if ends is None:
                continue
            (before, after), (other_before, other_after) = ends
            words = f'the mask of an image "{before}{{}}{after}" is taken to be "{other_before}{{}}{other_after}"'
            words += ", leading zeros aside" if zeros else ""
            here = [(place, base[len(before) : len(base) - len(after)]) for place, base in here]
            there = [(place, base[len(other_before) : len(base) - len(other_after)]) for place, base in there]
        owners = dict(zip(here, names))
        if len(owners) == len(names) and sorted(there) == sorted(owners):
            return [owners[key] for key in there], words
    return [], ""


def _split(names, zeros):
    """(place, own name) of each in lower case; `zeros`: numbers without leading ones."""
    split = [name.casefold().rpartition("/")[::2] for name in names]
    if not zeros:
        return split
    return [(place, re.sub(r"\d+", lambda number: number[0].lstrip("0") or "0", base)) for place, base in split]


def _affixes(names, others):
    """((prefix, suffix) of all names, that of all others), without what is the same on both sides; or None.

    None where there is none, where one side would have both, or where it would cut a number in two.
    """
    if len(names) == 1:  # two names with something in common say nothing, unless one is part of the other
        short, long = sorted((names[0], others[0]), key=len)
        ends = [("", ""), (long[: -len(short)], "") if long.endswith(short) else ("", long[len(short) :])]
        if not (long.startswith(short) or long.endswith(short)):
            return None
        ends = ends if short == names[0] else ends[::-1]
    else:
        ends = []
        for side in (names, others):
            before = os.path.commonprefix(side)
            rest = [name[len(before) :][::-1] for name in side]
            ends.append((before, os.path.commonprefix(rest)[::-1]))
        same = len(os.path.commonprefix([before[::-1] for before, _ in ends]))
        same_after = len(os.path.commonprefix([after for _, after in ends]))
        ends = [(before[: len(before) - same], after[same_after:]) for before, after in ends]
    cut = any(before[-1:].isdigit() or after[:1].isdigit() for before, after in ends)
    if cut or any(before and after for before, after in ends) or not any(map(any, ends)):
        return None
    return ends


# ---- pixels


def read_image(path, size=None, page=0, span=None):
    """The picture in a file (that frame of it), uint8 (H, W, 3) in RGB, upright, at `size` = (height, width) if given.

    With a `span` = (low, high), see IMAGE_RANGE, values of more than 8 bits become 0 ... 255 by it (`bytes_of`);
    without one, 16 bits keep their upper 8, and others are refused. Transparency is dropped. Shrinking averages
    areas (a JPEG of four times the size or more halves itself first), enlarging is linear. UnusableFile.
    """
    # 2n - 1, because a JPEG of 1918 columns halves to 959, which is near enough to twice 480
    decoded = decode(path, size and (2 * size[0] - 1, 2 * size[1] - 1), page)
    deep = None if span is None else _deep(decoded, path)
    array = rgb(decoded.picture, path) if deep is None else _three_channels(bytes_of(deep, span))
    return array if size is None else resize_image(array, size)


def resize_image(array, size):
    """`array` (H, W) or (H, W, C) at `size` = (height, width): areas averaged, or linearly enlarged."""
    (height, width), (tall, wide) = size, array.shape[:2]
    if height < tall or width < wide:
        array = cv2.resize(array, (min(width, wide), min(height, tall)), interpolation=cv2.INTER_AREA)
    if array.shape[:2] != (height, width):
        array = cv2.resize(array, (width, height), interpolation=cv2.INTER_LINEAR)
    return array


def image_size(path, page=0):
    """(height, width) of a picture, after EXIF, from the head of its file. UnusableFile."""
    with _opened(path, page) as picture:
        return _upright_size(picture, _orientation(picture))


def pages_of(path):
    """The numbers of a file's frames that are pictures of their own: [0], or its pages; None: it cannot be read.

    The previews in an MPO, the smaller copies and transparency masks in a TIFF and the layers of a PSD are none.
    """
    try:
        with _opened(path) as picture:
            if picture.format == "TIFF":
                return _tiff_pages(picture) or [0]
            paged = picture.format in ("AVIF", "GIF", "PNG", "WEBP")
            return list(range(getattr(picture, "n_frames", 1))) if paged else [0]
    except UnusableFile:
        return None


def _tiff_pages(picture):
    pages, page = [], 0
    while True:
        try:
            picture.seek(page)
        except EOFError:
            return pages
        except Exception:  # as where the rest is lost, which reading this page will say
            return [*pages, page]
        if not picture.tag_v2.get(254, 0) & 5:  # a reduced copy of another one (bit 0), or its mask (bit 2)
            pages.append(page)
        page += 1


def _upright_size(picture, turned):
    """(height, width) of a picture that is open."""
    size = picture.size
    if picture.format == "TIFF":  # whose size some versions of Pillow swap here, and others when it is loaded
        size, turned = (picture.tag_v2[256], picture.tag_v2[257]), picture.tag_v2.get(274, 1)
    return tuple(size) if 5 <= turned <= 8 else tuple(size[::-1])


@dataclass(frozen=True)
class Decoded:
    """`picture`: a PIL image, loaded and upright. The rest: what its file was, before that."""

    picture: Image.Image
    format: str
    raw: str  # how the file lays out a pixel, in Pillow's terms, such as "RGB;16B"
    size: tuple  # height and width, upright and without a draft's shrinking
    frames: bool  # whether more frames or pages follow the first one
    turned: int  # EXIF's orientation; 1 is upright
    page: int = 0


def decode(path, draft=None, page=0):
    """The Decoded picture of a file, frame number `page`. UnusableFile: it cannot be decoded to its end.

    `draft` = (height, width): a JPEG may come smaller, by a power of two, but no smaller than that.
    """
    with _opened(path, page) as picture:
        return _loaded(picture, draft)


@contextmanager
def _opened(path, page=0):
    """The PIL picture in a file, at that frame; whatever goes wrong with it becomes an UnusableFile."""
    # Both are the process's own and set again each time, because scoped changes would mix up threads.
    warnings.filterwarnings("ignore", module=r"PIL\.")  # remarks on odd metadata; what matters raises
    Image.MAX_IMAGE_PIXELS = LARGEST // 2  # Pillow refuses twice this
    try:
        _refuse_special(path)
        with Image.open(path) as picture:
            if page:
                picture.seek(page)
            yield picture
    except UnusableFile:
        raise
    except Exception as error:  # the codecs raise nearly every kind
        odd = _odd_tiff(path, page) if isinstance(error, (Image.UnidentifiedImageError, SyntaxError)) else None
        raise odd or _unusable(f"{path}[{page}]" if page else path, error) from None


def _refuse_special(path):
    state = os.stat(path)
    if stat.S_ISDIR(state.st_mode):
        raise UnusableFile(path, "is a folder", "Give a picture file")
    if not stat.S_ISREG(state.st_mode):  # opening a pipe would wait for ever
        raise UnusableFile(path, "is no ordinary file", "Replace it by a picture, or remove it")
    if state.st_size == 0:
        raise UnusableFile(path, "is empty (0 bytes)", _AGAIN)


def _loaded(picture, draft):
    turned = _orientation(picture)
    raw = str(picture.tile[0][3]) if picture.tile else ""
    size = _upright_size(picture, turned)
    frames = picture.format != "MPO" and getattr(picture, "is_animated", False)  # MPO: previews
    if picture.format in ("JPEG", "MPO"):
        _refuse_blank_end(picture)
    if picture.format == "BMP" and picture.mode == "1" and picture.tile[0][3][1] > (picture.size[0] + 31) // 32 * 4:
        what = "is a BMP with a palette of black and white in more than 1 bit, which is not read right"
        raise UnusableFile(picture.filename, what, "Save it as PNG")
    if picture.format == "TIFF":
        bits = picture.tag_v2.get(258, (1,))
        if picture.tag_v2.get(284) == 2 and len(bits) > 1 and max(bits) > 8:
            what = "keeps each channel by itself (planar) with more than 8 bits, which is not read right"
            raise UnusableFile(picture.filename, what, "Save it with its channels together (contiguous), or as PNG")
        if picture.tag_v2.get(274, 1) > 4:  # Pillow would map the file at the turned size, and scramble greys
            picture.filename = ""
    if draft and picture.format in ("JPEG", "MPO"):
        height, width = draft[::-1] if turned >= 5 else draft
        picture.draft(None, (width, height))
    picture.load()
    upright = picture
    if turned > 1:
        picture.info.pop("exif", None)  # exif_transpose would write it anew, and fail where it is damaged
        upright = ImageOps.exif_transpose(picture)
    return Decoded(upright, picture.format, raw, size, frames, turned, picture.tell())


def _refuse_blank_end(picture):
    """An interrupted download may leave zeros for the rest, which libjpeg decodes to grey without a word."""
    place = picture.fp.tell()
    size = picture.fp.seek(0, os.SEEK_END)
    picture.fp.seek(max(0, size - 4096))
    end = picture.fp.read()
    picture.fp.seek(place)
    kept = end.rstrip(b"\0")
    if len(end) - len(kept) > 64 and not kept.endswith(b"\xff\xd9"):
        raise UnusableFile(picture.filename, "ends in zeros, where the rest of the picture should be", _AGAIN)


def _orientation(picture):
    """EXIF's orientation of a picture that is open, 1 to 8; 1 is upright."""
    if picture.format == "TIFF":
        return 1  # Pillow sets these upright itself
    if picture.format == "PNG" and "exif" not in picture.info:
        return 1  # asking on would decode all of it
    try:
        turned = picture.getexif().get(274)
    except Exception:  # damaged metadata is no reason to lose the picture; viewers show it as it lies
        return 1
    return turned if turned in range(1, 9) else 1


def _unusable(path, error):
    """The UnusableFile for what Pillow or the system raised."""
    if isinstance(error, FileNotFoundError):
        if os.path.islink(path):
            return UnusableFile(path, "is a symbolic link to a file that is not there", "Mend the link, or remove it")
        return UnusableFile(path, "is not there", "Check its name")
    if isinstance(error, PermissionError):
        return UnusableFile(path, "may not be read (permission denied)", "Change its permissions (chmod +r)")
    if isinstance(error, OSError) and os.path.islink(path) and not os.path.exists(path):
        return UnusableFile(path, "is a symbolic link that leads to itself", "Mend the link, or remove it")
    if isinstance(error, Image.DecompressionBombError):
        return UnusableFile(path, f"has more than {LARGEST // 10**6} million pixels", "Cut it into tiles")
    if isinstance(error, Image.UnidentifiedImageError):
        return UnusableFile(path, "is no picture, whatever its name says", _AGAIN)
    if isinstance(error, MemoryError):
        return UnusableFile(path, "does not fit into memory", "Shrink it, or cut it into tiles")
    why = str(error).strip().rstrip(".") or type(error).__name__
    return UnusableFile(path, f"is damaged or cut short ({why})", _AGAIN)


def _odd_tiff(path, page):
    """The UnusableFile that tells of what kind a TIFF is that Pillow does not read; None: it is no such file."""
    try:
        with open(path, "rb") as file:
            head = file.read(8)
            if head[:4] not in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
                return None
            tags = TiffImagePlugin.ImageFileDirectory_v2(head + file.read(8 * (b"+" in head[2:4])))
            for _ in range(page + 1):
                file.seek(tags.next)
                tags.load(file)
        channels, bits, kind = tags.get(277, 1), max(tags.get(258, (1,))), tags.get(339, (1,))[0]
        size, layout, packed = f"{tags[257]}x{tags[256]}", tags.get(262), tags.get(259, 1)
    except Exception:  # damaged; so it is no picture
        return None
    values = {2: "signed ", 3: "floating-point ", 5: "complex ", 6: "complex "}.get(kind, "")
    what = f"is a TIFF of {_count(channels, 'channel')} of {values}{bits} bits, {size} (height x width)"
    cure = "Save it as grey or RGB with 8 or 16 bits, or as grey with floating-point values of 32 bits"
    if channels not in (1, 3, 4):
        cure = "Save one or three of its channels, those that show most, as grey or RGB with 8 or 16 bits"
    elif packed not in TiffImagePlugin.COMPRESSION_INFO:
        what, cure = f"{what}, compressed in an uncommon way ({packed})", "Save it with LZW or without compression"
    elif layout not in (0, 1, 2, 3):
        what += f", of colours of an uncommon kind (photometric interpretation {layout})"
    elif bits <= 16 and not values:  # nothing is odd about it, so that it must be damaged
        return None
    return UnusableFile(f"{path}[{page}]" if page else path, f"{what}, which is not read", cure)


def rgb(picture, path):
    """uint8 (H, W, 3) of a PIL image in any mode. UnusableFile where its values say nothing."""
    if picture.mode.startswith("I"):
        grey = np.asarray(picture)
        if grey.min() < 0 or grey.max() > 65535:
            what = f"has values from {grey.min():,} to {grey.max():,}, beyond the 0 to 65,535 of 16 bits"
            raise UnusableFile(path, what, f"Save it with 8 or 16 bits; {SET_RANGE}, if it is an image")
        return np.repeat((grey // 256).astype(np.uint8)[..., None], 3, axis=2)
    if picture.mode == "F":
        what = "has floating-point pixels"
        raise UnusableFile(path, what, f"Save it with 8 or 16 bits; {SET_RANGE}, if it is an image")
    try:
        if picture.mode in ("P", "PA") and "transparency" in picture.info:
            picture = picture.convert("RGBA")  # from where the alpha is dropped
        return np.asarray(picture if picture.mode == "RGB" else picture.convert("RGB"))
    except ValueError as error:
        raise UnusableFile(path, f"has pixels of a kind that cannot be shown ({error})", "Save it as RGB") from None


# ---- images of more than 8 bits


def refuse_image_range(value):
    """UserError: it is no IMAGE_RANGE, which is None, "auto", or two finite numbers, of which the first is lower."""
    fits = value is None or isinstance(value, str) and value == "auto"
    if isinstance(value, (tuple, list)) and len(value) == 2:
        fits = all(type(it) in (int, float) and np.isfinite(it) for it in value) and value[0] < value[1]
    if not fits:
        raise UserError(
            f"IMAGE_RANGE = {value!r}: give two numbers, the lower one first, which become 0 and 255, such as "
            '(0, 4095) (--image-range 0 4095); or "auto", for most of what the training images hold; or None.'
        )


def pixels_of(decoded, path):
    """The pixels of a Decoded in their own depth, (H, W, 3): uint8, uint16 or float32. UnusableFile."""
    deep = _deep(decoded, path)
    return rgb(decoded.picture, path) if deep is None else _three_channels(deep)


def bytes_of(pixels, span):
    """uint8 of `pixels`: low ... high of `span` becomes 0 ... 255, what lies beyond it 0 or 255; uint8 stays."""
    if pixels.dtype == np.uint8:
        return pixels
    if pixels.dtype == np.uint16:
        return _stretched(np.arange(65536, dtype=np.float32), span)[pixels]
    return _stretched(pixels, span)


def may_be_deep(path, page=0):
    """Whether the head of a file leaves it open that `depth_of` finds more than 8 bits. UnusableFile."""
    with _opened(path, page) as picture:
        raw = str(picture.tile[0][3]) if picture.tile else ""
        return picture.mode[0] in "IF" or ";16" in raw or picture.format == "PPM"


def depth_of(decoded, path):
    """What IMAGE_RANGE may say of a Decoded: None of 8 bits, else a plain dictionary. UnusableFile.

    "bits": 16, 32 (whole numbers) or "float"; "lowest", "highest" of all values; "quantiles": 100 of a sixteenth of
    them, in the middle of each hundredth, so that the first and the last leave 0.5 % out.
    """
    deep = _deep(decoded, path)
    if deep is None:
        return None
    middles = (np.arange(100) + 0.5) / 100
    return {
        "bits": "float" if decoded.picture.mode == "F" else 16 if deep.dtype == np.uint16 else 32,
        "lowest": deep.min().item(),
        "highest": deep.max().item(),
        "quantiles": np.quantile(deep[::4, ::4], middles, method="nearest").tolist(),
    }


def choose_span(quantiles):
    """(low, high), what IMAGE_RANGE = "auto" stands for: all values but 0.5 % at either end.

    `quantiles`: a list for each image, by `depth_of`. Where that leaves one value, the least and the most of them.
    """
    pooled = np.concatenate([np.asarray(some, float) for some in quantiles])
    low, high = np.percentile(pooled, (0.5, 99.5)).tolist()
    if low == high:
        low, high = pooled.min().item(), pooled.max().item()
    return low, (high if high > low else low + 1)


def _stretched(values, span):
    low, high = span
    with np.errstate(over="ignore"):  # of values near the end of float32, which are beyond the span anyway
        scaled = (values - np.float32(low)) * np.float32(255 / (high - low))
    return np.rint(np.clip(scaled, 0, 255)).astype(np.uint8)


def _three_channels(array):
    return array if array.ndim == 3 else np.repeat(array[..., None], 3, axis=2)


def _deep(decoded, path):
    """The values of a Decoded of more than 8 bits: uint16 or float32, (H, W) of greys or (H, W, 3); else None."""
    picture = decoded.picture
    if picture.mode.startswith("I"):
        grey = np.asarray(picture)
        if "I;32" in decoded.raw and "S" not in decoded.raw:  # without a sign, for which Pillow has no mode
            grey = grey.view(np.uint32)
        return grey.astype(np.uint16 if grey.min() >= 0 and grey.max() <= 65535 else np.float32)
    if picture.mode == "F":
        grey = np.asarray(picture)
        if not (finite := np.isfinite(grey)).all():
            what = f"has {grey.size - np.count_nonzero(finite):,} pixels that are no numbers (NaN, or infinite)"
            raise UnusableFile(path, what, "Give them a value, such as the least of the others")
        return grey
    white = re.search(r"'RGB', (\d+)", decoded.raw) if decoded.format == "PPM" else None  # which each file chooses
    if white and int(white[1]) > 255:
        return _wide_colours(decoded, path, int(white[1]))
    return _wide_colours(decoded, path) if re.search(r"(RGB\w*|LA);16", decoded.raw) else None


def _wide_colours(decoded, path, white=65535):
    """uint16 (H, W, 3) of colours of 16 bits, by OpenCV, because Pillow keeps the upper 8 alone. UnusableFile.

    `white` becomes 65,535, as it does where Pillow reads greys.
    """
    with suppress(AttributeError):  # of older versions; it is the process's own, and set each time, as in _opened
        cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)  # remarks on odd tags
    if decoded.page:
        _, found = cv2.imreadmulti(os.fspath(path), start=decoded.page, count=1, flags=cv2.IMREAD_UNCHANGED)
        array = found[0] if found else None
    else:
        array = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_UNCHANGED)
    if array is not None and array.dtype == np.uint16 and array.ndim == 3 and array.shape[2] > 2:
        array = np.ascontiguousarray(_upright(array[..., 2::-1], decoded.turned))
        if white < 65535:
            array = np.rint(array * (65535 / white)).astype(np.uint16)
        upper = np.asarray(decoded.picture.convert("RGB"))
        # Both must see the same picture; in PPM Pillow rounds.
        if array.shape == upper.shape and cv2.absdiff((array >> 8).astype(np.uint8), upper).max() <= 1:
            return array
    what = "has 16 bits in several channels, laid out in an uncommon way"
    raise UnusableFile(path, what, "Save it as PNG of 16 bits")


def _upright(array, turned):
    """`array` as EXIF's orientation says; of a TIFF, which OpenCV turns as Pillow does, that is 1 here."""
    if turned in (5, 6, 7, 8):
        array = array.transpose(1, 0, 2)
    if turned in (3, 4, 7, 8):
        array = array[::-1]
    return array[:, ::-1] if turned in (2, 3, 6, 7) else array
