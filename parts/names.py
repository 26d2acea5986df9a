"""Which files of a dataset belong together, by what names; walking folders.

What has no partner is refused in a message that names the file and says what to do with it.
"""

import os
import re
import sys
import unicodedata
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path, PurePath

from parts.errors import UnusableFile, UserError, counted, list_files, printable
from parts.images import pages_of
from parts.spec import CARVANA_GROUP, DataSpec

Folder = str | os.PathLike[str]

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
        raise UserError(" ".join([f"{printable(folder)}: holds no pictures{others}.", *cures]))
    return Listing(folder, sorted(pictures, key=lambda path: path.relative_to(folder).as_posix()), left_out)


def _walked(folder, seen):
    """(pictures, left out) of a folder and what lies below it; `seen`: real paths of folders to pass by."""
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except FileNotFoundError:
        raise UserError(
            f"{printable(folder)}: there is no such folder. Check its name, or make it and fill it."
        ) from None
    except NotADirectoryError:
        raise UserError(f"{printable(folder)}: is a file. Give the folder that the pictures lie in.") from None
    except OSError as error:
        raise UserError(
            f"{printable(folder)}: cannot be read ({error.strerror}). Change its permissions, or give another folder."
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
        text = f"{counted(len(unread), 'picture')} of a kind that is not read: {_named_first(unread)}"
        texts.append(("not read", f"{text}. To use {_them(unread)}, save as PNG (images also as JPEG)"))
    if videos:
        text = f"{counted(len(videos), 'video')}: {_named_first(videos)}. To use {_them(videos)}, cut into frames"
        texts.append(("videos", f"{text} (mkdir frames; ffmpeg -i {printable(videos[0].name)} frames/%05d.png)"))
    return texts


def _named_first(paths):
    return ", ".join(printable(path.name) for path in paths[:5]) + (", ..." if len(paths) > 5 else "")


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


def pair_files(
    img_dir: Folder, mask_dir: Folder, spec: DataSpec = DataSpec(), apart: Iterable[Folder] = ()
) -> list[Pair]:
    """The Pairs of two folders, sorted by name, pages apart; prints the notes. UserError names all misfits."""
    found = match(*list_both(img_dir, mask_dir, spec, apart), spec)
    pairs, faults = by_pages(found.pairs, pages_of)
    if found.faults or faults:
        cures = [f"{NAME_MASKS}; {LEAVE_OUT}."] if found.faults else []
        raise UserError("\n".join([*map(str, found.faults + faults), *cures]))
    if not pairs:
        raise UserError(f"{printable(img_dir)}, {printable(mask_dir)}: no image there has a mask. {NAME_MASKS}.")
    for _, text in found.notes:
        print(f"{printable(img_dir)}: {text}.")
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
            masks = ", ".join(f"{printable(path)} {len(pages(path) or [0]):,}" for path in (pair.mask, *pair.more))
            what = f"holds {counted(len(here), 'picture')} (pages or frames), and its mask {masks}"
            faults.append(UnusableFile(pair.image, what, "Save both with as many, or each page as a file of its own"))
        elif len(here) == 1:
            apart.append(replace(pair, image_page=here[0], mask_page=there[0]))
        else:
            numbered = [(f"{pair.name}_{number}", both) for number, both in enumerate(zip(here, there))]
            made = [replace(pair, name=name, image_page=one, mask_page=other) for name, (one, other) in numbered]
            if same := taken.intersection(name for name, _ in numbered):
                what = f"has {len(here):,} pages, which are called like another image: {printable(min(same))}"
                faults.append(UnusableFile(pair.image, what, "Rename one of the two"))
            apart += made
    return apart, faults


def list_both(
    img_dir: Folder, mask_dir: Folder, spec: DataSpec = DataSpec(), apart: Iterable[Folder] = ()
) -> tuple[Listing, Listing]:
    """The Listings of images and masks; in one folder for both, masks are what ends in _mask, or as MASK_NAME says.

    Either may lie below the other, whose pictures it does not join; nor do those of the folders `apart`.
    """
    if not os.path.isdir(mask_dir) or not os.path.isdir(img_dir) or not os.path.samefile(img_dir, mask_dir):
        return list_pictures(img_dir, [mask_dir, *apart]), list_pictures(mask_dir, [img_dir, *apart])
    mask_name = spec.mask_name
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
            f"{printable(img_dir)}: is given both for images and for masks, and no file there ends in _mask. Give the "
            f"folder of the masks, or name them like a_mask.png. {NAME_MASKS}."
        )
    left_out = [path for path in images.left_out if is_mask(path)]
    taken = {*masks, *left_out}
    rest, others = ([path for path in paths if path not in taken] for paths in (images.pictures, images.left_out))
    return Listing(images.folder, rest, others), Listing(images.folder, masks, left_out)


def match(images: Listing, masks: Listing, spec: DataSpec = DataSpec()) -> Matches:
    """The Matches of two Listings.

    A mask belongs to the image of its name (`mask_stems`), in the same subfolder. What remains on both sides is
    taken for pairs where numbers without their leading zeros, or, if no name agrees, one prefix or suffix on each
    side, pair every file one to one. Only where MASK_NAME has a *, an image may have several masks.
    """
    mask_name, skip_unpaired = spec.mask_name, spec.skip_unpaired
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
            notes.append(("names", f"{words}; e.g. {printable(path.name)} for {printable(by_name[lonely[0]][0].name)}"))
    pairs, faults, alone = [], [], []
    unread = {images.name_of(_as_png(path)): path for path in images.left_out if UNREAD.search(path.name)}
    unread_in_lower_case = folded(unread)
    unread_masks = {owner_of(masks.owners_of(_as_png(path), mask_name), by_name, in_lower_case): path
                    for path in masks.left_out if UNREAD.search(path.name)}  # fmt: skip
    several = mask_name is not None and "*" in mask_name
    for name, found in sorted(by_name.items()):
        partners = by_owner[name]
        if len(found) > 1 or len(partners) > 1 and not several:
            names = ", ".join(printable(path) for path in found + partners)
            faults.append(
                UnusableFile(found[0], f"it is not clear which belong together: {names}", "Keep one image and one mask")
            )
        elif not partners and name in unread_masks:
            what = f"has its mask in {printable(unread_masks[name])}, which is of a kind that is not read"
            alone.append(UnusableFile(found[0], what, "Save that as PNG"))
        elif not partners:
            wanted = printable(mask_name.replace("{}", Path(name).name).replace("*", "1") if mask_name else name)
            alone.append(UnusableFile(found[0], "has no mask", f"Add {wanted}.png or the like, or remove it"))
        else:
            mask, *more = sorted(partners)
            pairs.append(Pair(name, found[0], mask, more=tuple(more)))
    without = len(alone)
    scheme = _scheme_of_several(masks, by_name, in_lower_case) if strays and not mask_name else None
    for path, names in sorted(strays.items(), key=lambda item: item[1][-1]):
        what = "is the mask of no image"
        if owner := owner_of(names[1:], unread, unread_in_lower_case):
            what = f"is the mask of {printable(unread[owner])}, which is of a kind that is not read"
            cure = "Save that as PNG or JPEG"
        elif mask_name and len(names) == 1:
            cure = f"Name it as MASK_NAME = {mask_name!r} says, or remove it"
        elif scheme:
            cure = f"If it is one of several of an image, set MASK_NAME = {scheme!r} (--mask-name), which unites them"
        else:
            cure = f"Add the image {printable(names[1] if several else names[-1])}, or remove it"
        alone.append(UnusableFile(path, what, cure))
    if alone and skip_unpaired:
        files = ", ".join(printable(fault.path.name) for fault in alone[:5]) + (", ..." if len(alone) > 5 else "")
        counts = (
            f"{counted(without, 'image')} without a mask and {counted(len(alone) - without, 'mask')} without an image"
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


@dataclass(frozen=True)
class Picture:
    """`path` is the file; `name` what its outputs are called: a relative path without a suffix.

    `page`: which frame of the file it is; where that holds several pictures, it is `number` of `pages`.
    """

    path: Path
    name: PurePath
    page: int = 0
    number: int = 0
    pages: int = 1

    def __str__(self):
        return printable(self.path) + f"[{self.number}]" * (self.pages > 1)


def find_pictures(inputs, output_dir=None, mask_dir=None):
    """(pictures, missing) of the files and folders in `inputs`.

    A folder is searched with all that lies below it, and its tree of names kept; a file gives its own
    name. Where that would give two the same, all of them keep their place below the folder that they have
    in common.
    What lies in `output_dir` or `mask_dir` is left out, unless it is asked for by that very name; of a
    folder that is itself `mask_dir`, what ends in _mask is. `missing` says in words what gave nothing.
    What else a folder holds is told: as missing where it is a picture to a person. Each page is a Picture.
    """
    own = {os.path.realpath(folder) for folder in (output_dir, mask_dir) if folder}
    found = {}  # the absolute path (each picture once) -> the file, and the folder that names it
    missing, left_out = [], []
    for place in map(Path, inputs):
        if not os.path.exists(place):
            missing.append(f"{printable(place)}: there is no such file or folder.")
        elif place.is_dir():
            for file in _files_of(place, own, mask_dir, len(inputs) > 1, missing, left_out):
                found.setdefault(os.path.abspath(file), (file, place))
        elif (words := _unread(place)) and pages_of(place) is None:
            missing.append(words)
        else:
            found.setdefault(os.path.abspath(place), (place, place.parent))
    names = [PurePath(file.relative_to(base)).with_suffix("") for file, base in found.values()]
    if len({folded_path(name) for name in names}) < len(names):
        common = os.path.commonpath([os.path.dirname(path) for path in found])
        names = [PurePath(os.path.relpath(path, common)).with_suffix("") for path in found]
    if left_out := list(dict.fromkeys(left_out)):
        kinds = "that are no pictures by their names, hidden, or of this run"
        print(f"Left out: {len(left_out):,} {kinds}: {list_files(left_out, 5)}.")
    wanted = [it for (file, _), name in zip(found.values(), names) for it in _pictures_in(file, name)]
    return wanted, list(dict.fromkeys(missing))


def _pictures_in(file, name):
    pages = pages_of(file) or [0]
    if len(pages) == 1:
        return [Picture(file, name, pages[0])]
    return [Picture(file, name.with_name(f"{name.name}_{n}"), page, n, len(pages)) for n, page in enumerate(pages)]


def folded_path(path):
    """A name as the file systems see it that do not tell A.png from a.png."""
    return str(path).casefold()


def _files_of(folder, own, mask_dir, among_others, missing, left_out):
    """The pictures of a folder that was asked for; see find_pictures."""
    real, others = os.path.realpath(folder), []
    files = files_below(folder, own - {real}, missing, others)
    if real in own:
        images = [file for file in files if not ends_in_mask(file)]
        holds_masks = mask_dir and real == os.path.realpath(mask_dir)
        if holds_masks and len(images) < len(files):
            files = images
        elif among_others:  # as where the shell's * names all that there is
            print(f"{printable(folder)}: left out, because it is OUTPUT_DIR or MASKS.", file=sys.stderr)
            return []
        elif holds_masks:
            raise UserError(
                f"{printable(folder)}: is given both for images and for MASKS, and no file there ends in _mask. "
                "Name the masks like a_mask.png, or keep them in another folder."
            )
    unread = {file: words for file in others if file.name[0] != "." and (words := _unread(file))}
    missing += unread.values()
    left_out += [file for file in others if file not in unread]
    if not files and not unread and among_others:
        missing.append(f"{printable(folder)}: there is no image in it.")
    return files


def _unread(file):
    """What to do with a file that is none by its name, but is a picture to a person; or None."""
    if VIDEO.search(file.name):
        cut = f"ffmpeg -i {printable(file.name)} frames/%05d.png"
        return f"{printable(file)}: is a video. Cut it into frames (mkdir frames; {cut}), and give their folder."
    if UNREAD.search(file.name) or (file.suffix.lower() not in SUFFIXES and pages_of(file)):
        return f"{printable(file)}: its kind or its name is not read. Save it as PNG or TIFF."
    return None


def files_below(folder, apart, missing, others):
    """The picture files below `folder`, sorted; hidden ones and the folders `apart` (real paths) are left out.

    The list `missing` gets a line for each folder that cannot be read, `others` what else there is.
    """

    def tell(error):
        missing.append(f"{printable(error.filename)}: cannot be read ({error.strerror}).")

    files, seen = [], set(apart)
    for place, folders, names in os.walk(folder, followlinks=True, onerror=tell):
        if (real := os.path.realpath(place)) in seen:  # also a link that leads back
            others += [Path(place)] * (real in apart)
            folders.clear()
            continue
        seen.add(real)
        others += [Path(place, name) for name in sorted(folders) if name.startswith(".")]
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            usable = name.lower().endswith(tuple(SUFFIXES)) and not name.startswith(".")
            (files if usable else others).append(Path(place, name))
    return files


def find_masks(wanted: list["Picture"], mask_dir: Folder, spec: DataSpec = DataSpec()) -> dict["Picture", Pair]:
    """{picture: the Pair of it and its mask} for those of `wanted` that have one in `mask_dir` or below it.

    A mask in the same subfolder as its picture comes first, then one with its name anywhere. A page's is one of
    its own name, or the page of that number of one with the file's name, where that has equally many.
    Where MASK_NAME has a *, all that fit are its mask.
    UserError where there is no mask at all, or more than one fits.
    """
    if not os.path.isdir(mask_dir):
        raise UserError(f"{mask_dir}: there is no such folder. MASKS names the one with the true masks.")
    counted, mask_name = cache(pages_of), spec.mask_name
    asked = [(it, it.path.stem, it.number, it.pages) for it in wanted if it.pages > 1]
    asked += [(it, it.name.name, 0, 1) for it in wanted]  # last, and so these replace the ones before
    asked = [(it, unicodedata.normalize("NFC", name), *page) for it, name, *page in asked]
    known, by_place, by_name = {name for _, name, *_ in asked}, {}, {}
    in_lower_case = folded(known)
    paths = {os.path.realpath(picture.path) for picture in wanted}  # which may lie beside their masks
    for mask in files_below(mask_dir, (), [], []):
        if os.path.realpath(mask) in paths:
            continue
        stem = owner_of(mask_stems(mask, mask_name), known, in_lower_case)
        by_place.setdefault((mask.relative_to(mask_dir).parent, stem), []).append(mask)
        by_name.setdefault(stem, []).append(mask)
    matched, doubtful = {}, []
    for picture, name, number, count in asked:
        fitting = by_place.get((Path(picture.name.parent), name)) or by_name.get(name, [])
        if len(fitting) == 1 or (fitting and mask_name and "*" in mask_name):
            pages = [counted(file) or range(count) for file in fitting]  # reading them will tell what is wrong
            if all(len(numbers) == count for numbers in pages):
                mask, *more = fitting
                matched[picture] = Pair(
                    picture.name.as_posix(), picture.path, mask, picture.page, pages[0][number], tuple(more)
                )
        elif fitting:
            doubtful.append(f"{picture}: " + ", ".join(map(printable, fitting)))
    if doubtful:
        raise UserError("More than one mask fits these pictures; keep one of each:\n  " + "\n  ".join(doubtful))
    if not matched:
        raise UserError(
            f"{mask_dir}: no mask there fits any of the pictures. For a.jpg it would be a.png, a_mask.gif or the like, "
            f"and have as many pages. {NAME_MASKS}."
        )
    return matched
