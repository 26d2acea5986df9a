"""Which files of a dataset belong together, by their names; walking folders.

Training, augment.py and predict.py list folders by `walk`, and find the image that a mask belongs to by `mask_stems`
and `ImageNames`. What has no partner is refused in a message that names the file and says what to do with it.
"""

import os
import re
import sys
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path, PurePath
from typing import NamedTuple

from parts.errors import UnusableFile, UserError, counted, list_files, printable
from parts.images import pages_of
from parts.spec import CARVANA_GROUP, DataSpec

HOW_TO_GET_CARVANA = """\
To get Carvana's photographs: sign in to Kaggle, accept the rules of the competition
carvana-image-masking-challenge, download train.zip and train_masks.zip, and unpack both into dataset/,
which gives dataset/train/ and dataset/train_masks/. Then: python augment.py && python train.py
For images of your own: python augment.py --img-dir IMAGES --mask-dir MASKS
To try everything without any data: python train.py --demo"""
LEAVE_OUT = "SKIP_UNPAIRED = True (--skip-unpaired) leaves out what has no partner"
NAME_MASKS = 'MASK_NAME = "{}_segmentation" (--mask-name) says how masks are named, if not like their images'

COPIES = ("hflip", "vflip", "grid")  # what augment.py appends to the name of a copy
MASK_ENDINGS = ("_mask", ".mask")  # what the name of a mask may have after the name of its image
SUFFIXES = (  # no .jp2: its decoder takes some files that are cut short for complete ones
    *(".avif", ".bmp", ".gif", ".jfif", ".jpeg", ".jpg", ".pbm", ".pgm"),
    *(".png", ".pnm", ".ppm", ".tga", ".tif", ".tiff", ".webp"),
)
UNREAD = re.compile(  # names of pictures that are not read
    r"\.(arw|cr2|cr3|czi|dcm|dng|exr|fits|hdr|hei[cf]|hif|j2k|jp2|jxl|lif|mha|mrc|nd2|nef|nii|nii\.gz|np[yz]|nrrd|orf|pef"
    r"|raf|raw|rw2|srw|svg)$", re.IGNORECASE)  # fmt: skip
VIDEO = re.compile(r"\.(3gp|avi|flv|m2?ts|m4v|mkv|mov|mp4|mpe?g|mxf|ogv|webm|wmv)$", re.IGNORECASE)

Folder = str | os.PathLike[str]


# ---- names of images, masks and groups


def ends_in_mask(path: Path) -> bool:
    """Whether a file that lies among images is a mask by its own name, such as a_mask.png or a.mask.gif."""
    return _without(path.stem, MASK_ENDINGS) is not None


def mask_stems(path: Path, mask_name: str | None = None) -> list[str]:
    """The stems of the images that a mask may belong to by its name, the likeliest first.

    a_mask.png is the mask of a_mask, or of a; a.jpg.png is the mask of a.jpg, or of a. With a `mask_name` (see
    MASK_NAME) nothing else counts: there is one stem or none; with a * in it, all that fit, the longest first.
    """
    stem = _composed(path.stem)
    if mask_name is not None:  # which may be written with the suffix or without
        return _fillings(stem, mask_name) or _fillings(_composed(path.name), mask_name)
    stems = [stem]
    order = [SUFFIXES, MASK_ENDINGS]  # as in a_mask.jpg.png
    if ends_in_mask(path):
        order.reverse()  # as in a.jpg_mask.png
    for endings in order:
        shorter = _without(stems[-1], endings)
        if shorter is not None:
            stems.append(shorter)
    return stems


def _fillings(text: str, mask_name: str) -> list[str]:
    """What {} may stand for where `text` is a name by `mask_name`, the longest first."""
    pattern = re.escape(mask_name).replace(r"\*", ".*")
    longest = len(text) - len(mask_name.replace("{}", "").replace("*", ""))
    lengths = range(longest, 0, -1)
    if not _takes_several(mask_name):
        lengths = lengths[:1]  # all of the text but what stands around {}
    fillings = []
    for length in lengths:
        match = re.fullmatch(pattern.replace(r"\{\}", f"(.{{{length}}})"), text, re.IGNORECASE)
        if match:
            fillings.append(match[1])
    return fillings


def _without(stem: str, endings: Iterable[str]) -> str | None:
    """A stem without the ending that it has, in upper or lower case; None: it has none of them."""
    for end in endings:
        if stem.lower().endswith(end) and len(stem) > len(end):
            return stem[: -len(end)]
    return None


def _composed(text: str) -> str:
    return unicodedata.normalize("NFC", text)  # macOS writes accents in two characters


class ImageNames:
    """The names of all images, to find the one that a mask belongs to."""

    def __init__(self, names: Iterable[str]) -> None:
        self._names = set(names)
        self._by_lower_case: dict[str, str | None] = {}  # None: several names differ in case alone
        for name in self._names:
            lower = name.casefold()
            if lower in self._by_lower_case:
                self._by_lower_case[lower] = None
            else:
                self._by_lower_case[lower] = name

    def owner(self, stems: Sequence[str]) -> str | None:
        """The name of the image that a mask of these stems belongs to, or None.

        The first stem that is a name in the same case; else the first that is one name in another case.
        """
        for stem in stems:
            if stem in self._names:
                return stem
        for stem in stems:
            name = self._by_lower_case.get(stem.casefold())
            if name:
                return name
        return None

    def sort_masks(
        self, masks: Iterable[Path], stems_of: Callable[[Path], list[str]]
    ) -> tuple[dict[str, list[Path]], list[Path]]:
        """({name of an image: its masks}, masks of no image); `stems_of`: the stems of a mask, see `owner`."""
        by_owner: dict[str, list[Path]] = defaultdict(list)
        strays = []
        for mask in masks:
            owner = self.owner(stems_of(mask))
            if owner is None:
                strays.append(mask)
            else:
                by_owner[owner].append(mask)
        return dict(by_owner), strays


def source_stem(stem: str) -> str:
    """The stem of the file that augment.py made a copy from; any other stem stays as it is."""
    for copy in COPIES:
        if stem.endswith(f"_{copy}"):
            return stem[: -len(copy) - 1]
    return stem


def group_of(stem: str, pattern: str = CARVANA_GROUP) -> str:
    """The group that an image belongs to by its name: all images of one group stand on one side of a split.

    `pattern`: a regular expression for the beginning of the name (see GROUP). The group is what its first parenthesis
    matches, or all that it matches. A stem that it does not match is a group of its own.
    """
    match = fits_group(stem, pattern)
    if not match:
        return source_stem(stem)
    if match.re.groups and match[1] is not None:
        return match[1]
    return match[0]


def fits_group(stem: str, pattern: str) -> re.Match[str] | None:
    """The match of `pattern` at the beginning of a stem, or None. UserError: it is no regular expression.

    For an image in a subfolder, whose stem is folder/name, the pattern is tried on the whole stem, then on the name.
    """
    stem = source_stem(stem)
    try:
        return re.match(pattern, stem) or re.match(pattern, stem.rpartition("/")[2])
    except re.error as error:
        raise UserError(f"GROUP = {pattern!r}: is no regular expression ({error}). Mend it.") from None


# ---- the files in a folder


@dataclass(frozen=True)
class Listing:
    """The picture files in `folder` and below it, by their names, and what else is there.

    left_out   files of other names, hidden files and folders, empty folders, folders that were to be kept apart
    errors     of folders that cannot be read
    """

    folder: Path
    pictures: list[Path]
    left_out: list[Path]
    errors: list[OSError] = field(default_factory=list)

    def name_of(self, path: Path) -> str:
        """A picture's name without its suffix: x in `folder` itself, a/x in its subfolder a."""
        return self.place_of(path) + _composed(path.stem)

    def place_of(self, path: Path) -> str:
        """What stands before the file's own name in `name_of`: "" in `folder` itself, "a/" in its subfolder a."""
        return _place(path.parent.relative_to(self.folder))

    def only(self, files: Collection[Path]) -> "Listing":
        """The same without all other files."""
        pictures = [path for path in self.pictures if path in files]
        return replace(self, pictures=pictures, left_out=[path for path in self.left_out if path in files])

    def owners_of(self, path: Path, mask_name: str | None = None) -> list[str]:
        """The names of the images that a mask may belong to (`mask_stems`), all in the mask's own subfolder."""
        place = self.place_of(path)
        return [place + stem for stem in mask_stems(path, mask_name)]


def _place(folder: PurePath) -> str:
    text = _composed(folder.as_posix())
    return "" if text == "." else f"{text}/"


def walk(folder: Folder, apart: Iterable[Folder] = ()) -> Listing:
    """The Listing of `folder` and its subfolders but those `apart`, sorted; a folder's files before its subfolders.

    Links to folders are followed, and each folder is listed once. Raises nothing: see Listing.errors.
    """
    listing = Listing(Path(folder), [], [])
    # Folders are compared by their real paths, because links may lead to them, or back to where they came from.
    kept_apart = {os.path.realpath(other) for other in apart} - {os.path.realpath(folder)}
    listed = set()
    waiting = [listing.folder]
    while waiting:
        place = waiting.pop()
        real = os.path.realpath(place)
        if real in kept_apart:
            listing.left_out.append(place)
            continue
        if real in listed:  # its pictures are listed, by another path
            continue
        listed.add(real)
        try:
            entries = sorted(os.scandir(place), key=lambda entry: entry.name)
        except OSError as error:
            listing.errors.append(error)
            continue
        if not entries and place != listing.folder:
            listing.left_out.append(place)
        subfolders = []
        for entry in entries:
            path = place / entry.name
            hidden = entry.name.startswith(".")
            if _is_folder(entry) and not hidden:
                subfolders.append(path)
            elif not hidden and path.suffix.lower() in SUFFIXES:
                listing.pictures.append(path)
            else:
                listing.left_out.append(path)
        waiting += reversed(subfolders)  # the first one is next, with all that lies below it
    return listing


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a symbolic link that leads to itself; reading it will say so
        return False


def list_pictures(folder: Folder, apart: Iterable[Folder] = ()) -> Listing:
    """The Listing of `folder` and its subfolders but those `apart`, its pictures sorted by their paths below it.

    UserError: there is no such folder, it or a folder below it cannot be read, it holds no picture.
    """
    listing = walk(folder, apart)
    for error in listing.errors:
        raise UserError(f"{printable(error.filename)}: {_problem_of_folder(error)}") from None
    if not listing.pictures:
        others = ""
        if listing.left_out:
            others = f" ({len(listing.left_out)} others are left out)"
        cures = [f"{note.text}." for note in _notes_on_other_kinds(listing.left_out)]
        cures = cures or ["Put some there, or give another folder."]
        raise UserError(" ".join([f"{printable(folder)}: holds no pictures{others}.", *cures]))
    pictures = sorted(listing.pictures, key=lambda path: path.relative_to(listing.folder).as_posix())
    return replace(listing, pictures=pictures)


def _problem_of_folder(error: OSError) -> str:
    if isinstance(error, FileNotFoundError):
        return "there is no such folder. Check its name, or make it and fill it."
    if isinstance(error, NotADirectoryError):
        return "is a file. Give the folder that the pictures lie in."
    return f"cannot be read ({error.strerror}). Change its permissions, or give another folder."


def list_both(
    img_dir: Folder, mask_dir: Folder, spec: DataSpec = DataSpec(), apart: Iterable[Folder] = ()
) -> tuple[Listing, Listing]:
    """The Listings of the images and of the masks.

    Where both have one folder, masks are the files whose name ends in _mask, or is as MASK_NAME says. One folder may
    lie below the other, and keeps its own files. Files in the folders `apart` belong to neither. UserError: as
    `list_pictures`, and where no file of one folder for both is a mask.
    """
    if not os.path.isdir(mask_dir) or not os.path.isdir(img_dir) or not os.path.samefile(img_dir, mask_dir):
        return list_pictures(img_dir, [mask_dir, *apart]), list_pictures(mask_dir, [img_dir, *apart])
    # One folder for both: it is listed once, and divided by the names of the files.
    both = list_pictures(img_dir, apart)
    files = {*both.pictures, *both.left_out}
    masks = set(filter(_mask_test(both, spec.mask_name), files))
    if masks.isdisjoint(both.pictures):
        raise UserError(
            f"{printable(img_dir)}: is given both for images and for masks, and no file there ends in _mask. Give the "
            f"folder of the masks, or name them like a_mask.png. {NAME_MASKS}."
        )
    return both.only(files - masks), both.only(masks)


def _mask_test(both: Listing, mask_name: str | None) -> Callable[[Path], bool]:
    """The function that tells masks from images where they lie in one folder."""
    if mask_name is None:
        return ends_in_mask
    if not _takes_several(mask_name):
        return lambda path: bool(mask_stems(path, mask_name))
    names = ImageNames(map(both.name_of, both.pictures))

    def belongs_to_another(path: Path) -> bool:
        """img_1 fits {}_* in any case, and is a mask only where there is another picture called img."""
        own_name = both.name_of(path)
        return names.owner([name for name in both.owners_of(path, mask_name) if name != own_name]) is not None

    return belongs_to_another


# ---- pictures of kinds that are not read


class Note(NamedTuple):
    """What a person should know about the files that were taken or left out: a short label, and a text."""

    label: str
    text: str


def _unread_pictures(paths: Iterable[Path]) -> list[Path]:
    return [path for path in paths if UNREAD.search(path.name) and not path.name.startswith(".")]


def _notes_on_other_kinds(paths: Sequence[Path]) -> list[Note]:
    """Notes on those of `paths` that hold pictures of kinds that are not read, and what to do with them."""
    notes = []
    unread = _unread_pictures(paths)
    if unread:
        text = f"{counted(len(unread), 'picture')} of a kind that is not read: {_first_names(unread)}. "
        notes.append(Note("not read", f"{text}To use {_them(unread)}, save as PNG (images also as JPEG)"))
    videos = [path for path in paths if VIDEO.search(path.name) and not path.name.startswith(".")]
    if videos:
        text = f"{counted(len(videos), 'video')}: {_first_names(videos)}. To use {_them(videos)}, cut into frames "
        notes.append(Note("videos", f"{text}({_to_frames(videos[0])})"))
    return notes


def _to_frames(video: Path) -> str:
    return f"mkdir frames; ffmpeg -i {printable(video.name)} frames/%05d.png"


def _first_names(paths: Sequence[Path]) -> str:
    names = [printable(path.name) for path in paths[:5]]
    if len(paths) > 5:
        names.append("...")
    return ", ".join(names)


def _them(paths: Sequence[Path]) -> str:
    return "it" if len(paths) == 1 else "them"


# ---- pairs of images and masks


@dataclass(frozen=True)
class Pair:
    """An image and its mask, or its masks.

    name         the image's, without suffix, with its subfolder: a/x; for a page its number is appended: a/x_0
    image_page   the number of the page or frame of the image file
    mask_page    the same of each mask file
    more         further masks of the image, united with `mask`; see MASK_NAME
    """

    name: str
    image: Path
    mask: Path
    image_page: int = 0
    mask_page: int = 0
    more: tuple[Path, ...] = ()

    @property
    def masks(self) -> Path | tuple[Path, ...]:
        """The mask file, or all of them, in the form that masks.read_mask takes."""
        return (self.mask, *self.more) if self.more else self.mask

    @property
    def sources(self) -> list[tuple[Path, int]]:
        """(file, page) of the image, then of each of its masks."""
        return [(self.image, self.image_page), *((mask, self.mask_page) for mask in (self.mask, *self.more))]


@dataclass(frozen=True)
class Matches:
    """Which image has which mask.

    pairs    sorted by name
    faults   one for each file that has no partner, or several
    notes    on names that differ, and on files that were left out
    """

    pairs: list[Pair]
    faults: list[UnusableFile]
    notes: list[Note]


def pair_files(
    img_dir: Folder, mask_dir: Folder, spec: DataSpec = DataSpec(), apart: Iterable[Folder] = ()
) -> list[Pair]:
    """The Pairs of the files in two folders, sorted by name, one for each page; prints the notes.

    Files in the folders `apart` are not taken. UserError: names all files that have no partner.
    """
    matches = match(*list_both(img_dir, mask_dir, spec, apart), spec)
    pairs, page_faults = by_pages(matches.pairs, pages_of)
    faults = matches.faults + page_faults
    if faults:
        lines = [str(fault) for fault in faults]
        if matches.faults:
            lines.append(f"{NAME_MASKS}; {LEAVE_OUT}.")
        raise UserError("\n".join(lines))
    if not pairs:
        raise UserError(f"{printable(img_dir)}, {printable(mask_dir)}: no image there has a mask. {NAME_MASKS}.")
    for note in matches.notes:
        print(f"{printable(img_dir)}: {note.text}.")
    return pairs


def match(images: Listing, masks: Listing, spec: DataSpec = DataSpec()) -> Matches:
    """The Matches of the images and the masks of a dataset.

    A mask belongs to the image whose name it has (`mask_stems`), in the same subfolder. Files that remain on both
    sides are pairs where one rule pairs every one of them: numbers are compared without leading zeros, or, if no name
    agrees at all, all names of one side have the same prefix or suffix. An image has several masks only where
    MASK_NAME has a *.
    """
    notes = _notes_on_other_kinds(images.left_out + masks.left_out)
    matching = _Matching(images, masks, spec.mask_name)  # by equal names
    note = matching.pair_by_scheme()
    if note:
        notes.append(note)
    faults, lonely, strays = matching.ambiguous(), matching.lonely_images(), matching.stray_masks()
    if not spec.skip_unpaired:
        faults += lonely + strays
    elif lonely or strays:
        counts = f"{counted(len(lonely), 'image')} without a mask and {counted(len(strays), 'mask')} without an image"
        files = _first_names([Path(fault.path) for fault in lonely + strays])
        notes.append(Note("unpaired", f"{counts} are left out: {files}"))
    order: dict[str | Path, int] = {path: number for number, path in enumerate(images.pictures)}
    faults.sort(key=lambda fault: order.get(fault.path, len(order)))  # by the images; then masks of no image
    return Matches(matching.pairs(), faults, notes)


class _Matching:
    """The images and masks of a dataset by their names, and what is wrong with those that have no partner.

    images_of   {name: its image files}; more than one, such as a.jpg and a.png, is a fault
    masks_of    {name of an image: its mask files}
    strays      mask files of no image
    """

    def __init__(self, images: Listing, masks: Listing, mask_name: str | None) -> None:
        self.images, self.masks, self.mask_name = images, masks, mask_name
        self.images_of: dict[str, list[Path]] = defaultdict(list)
        for path in images.pictures:
            self.images_of[images.name_of(path)].append(path)
        self.names = ImageNames(self.images_of)
        self.masks_of, self.strays = self.names.sort_masks(masks.pictures, self._owners_of)

    def _owners_of(self, mask: Path) -> list[str]:
        return self.masks.owners_of(mask, self.mask_name)

    def pair_by_scheme(self) -> Note | None:
        """Pairs the images and masks that remain, if one rule for their names pairs every one, and says by which."""
        lonely = [name for name in self.images_of if name not in self.masks_of]
        # MASK_NAME leaves nothing to guess; and a rule that leaves one file over is none.
        if self.mask_name or not lonely or len(lonely) != len(self.strays):
            return None
        scheme = _find_scheme(lonely, [self.masks.name_of(path) for path in self.strays], affixes=not self.masks_of)
        if scheme is None:
            return None
        self.masks_of.update((owner, [path]) for owner, path in zip(scheme.owners, self.strays))
        self.strays = []
        image, mask = self.images_of[lonely[0]][0], self.masks_of[lonely[0]][0]
        return Note("names", f"{scheme.text}; e.g. {printable(mask.name)} for {printable(image.name)}")

    def _is_ambiguous(self, name: str) -> bool:
        several_masks = len(self.masks_of.get(name, [])) > 1 and not _takes_several(self.mask_name)
        return several_masks or len(self.images_of[name]) > 1

    def pairs(self) -> list[Pair]:
        """The Pairs of all images that have their mask, sorted by name."""
        pairs = []
        for name, files in sorted(self.masks_of.items()):
            if not self._is_ambiguous(name):
                mask, *more = sorted(files)
                pairs.append(Pair(name, self.images_of[name][0], mask, more=tuple(more)))
        return pairs

    def ambiguous(self) -> list[UnusableFile]:
        """A fault for each name of several images, or of several masks where an image has one."""
        faults = []
        for name, files in sorted(self.images_of.items()):
            if self._is_ambiguous(name):
                names = ", ".join(map(printable, files + self.masks_of.get(name, [])))
                problem = f"it is not clear which belong together: {names}"
                faults.append(UnusableFile(files[0], problem, "Keep one image and one mask"))
        return faults

    def lonely_images(self) -> list[UnusableFile]:
        """A fault for each image without a mask."""
        # A mask of a kind that is not read, such as x.npy, says more than that there is no mask.
        not_read = {}
        for path in _unread_pictures(self.masks.left_out):
            not_read[self.names.owner(self._owners_of(_as_png(path)))] = path
        faults = []
        for name, files in sorted(self.images_of.items()):
            if name in self.masks_of or self._is_ambiguous(name):
                continue
            problem = "has no mask"
            cure = f"Add {printable(self._expected_stem(name))}.png or the like, or remove it"
            if name in not_read:
                problem = f"has its mask in {printable(not_read[name])}, which is of a kind that is not read"
                cure = "Save that as PNG"
            faults.append(UnusableFile(files[0], problem, cure))
        return faults

    def _expected_stem(self, name: str) -> str:
        """The stem that a mask of the image should have."""
        if self.mask_name is None:
            return name
        return self.mask_name.replace("{}", PurePath(name).name).replace("*", "1")

    def stray_masks(self) -> list[UnusableFile]:
        """A fault for each mask of no image, sorted by the names of the images that they are likely to belong to."""
        not_read = {self.images.name_of(_as_png(path)): path for path in _unread_pictures(self.images.left_out)}
        names_not_read = ImageNames(not_read)
        scheme = self._scheme_of_several()
        faults = []
        for path in sorted(self.strays, key=self._likely_name):
            owners = self._owners_of(path)
            owner = names_not_read.owner(owners)
            problem = "is the mask of no image"
            if owner:
                problem = f"is the mask of {printable(not_read[owner])}, which is of a kind that is not read"
                cure = "Save that as PNG or JPEG"
            elif not owners:
                cure = f"Name it as MASK_NAME = {self.mask_name!r} says, or remove it"
            elif scheme:
                name = f"MASK_NAME = {scheme!r} (--mask-name)"
                cure = f"If it is one of several of an image, set {name}, which unites them"
            elif _takes_several(self.mask_name):
                cure = f"Add the image {printable(owners[0])}, or remove it"
            else:
                cure = f"Add the image {printable(owners[-1])}, or remove it"
            faults.append(UnusableFile(path, problem, cure))
        return faults

    def _likely_name(self, mask: Path) -> str:
        """The shortest name that the image of a mask may have; the mask's own name, if it is not as MASK_NAME says."""
        return [self.masks.name_of(mask), *self._owners_of(mask)][-1]

    def _scheme_of_several(self) -> str | None:
        """The MASK_NAME with a * by which every mask belongs to an image; None: there is none, or none is needed."""
        if not self.strays or self.mask_name:
            return None
        for end in ("_", "-", ".", " "):
            scheme = f"{{}}{end}*"
            if all(self.names.owner(self.masks.owners_of(path, scheme)) for path in self.masks.pictures):
                return scheme
        return None


def _takes_several(mask_name: str | None) -> bool:
    """Whether MASK_NAME gives an image several masks."""
    return mask_name is not None and "*" in mask_name


def _as_png(path: Path) -> Path:
    """The name that a picture of a kind that is not read would have as PNG; .nii.gz is one suffix."""
    return path.with_name(UNREAD.sub(".png", path.name))


# ---- masks that are named by a rule of their own


@dataclass(frozen=True)
class _Scheme:
    """A rule by which masks are named after their images: the image of each mask, and the rule in words."""

    owners: list[str]
    text: str


@dataclass(frozen=True)
class _Affixes:
    """What all names of one side have around the part that tells them apart."""

    before: str
    after: str

    def strip(self, keys: list[tuple[str, str]]) -> list[tuple[str, str]]:
        """(subfolder, name) of each file, the names without the affixes."""
        return [(place, name[len(self.before) : len(name) - len(self.after)]) for place, name in keys]

    def __str__(self) -> str:
        return f'"{self.before}{{}}{self.after}"'


def _find_scheme(image_names: list[str], mask_names: list[str], affixes: bool) -> _Scheme | None:
    """The rule by which each image has one of the masks, and each mask one image; None: there is none.

    affixes: whether names may differ in a prefix or a suffix, and not in leading zeros alone.
    """
    owners = _one_to_one(image_names, _keys(image_names, zeros=True), _keys(mask_names, zeros=True))
    if owners:
        return _Scheme(owners, "numbers are compared without leading zeros")
    if not affixes:
        return None
    for zeros in (False, True):
        image_keys, mask_keys = _keys(image_names, zeros), _keys(mask_names, zeros)
        both = _find_affixes([name for _, name in image_keys], [name for _, name in mask_keys])
        if both is None:
            continue
        of_images, of_masks = both
        owners = _one_to_one(image_names, of_images.strip(image_keys), of_masks.strip(mask_keys))
        if owners:
            text = f"the mask of an image {of_images} is taken to be {of_masks}"
            if zeros:
                text += ", leading zeros aside"
            return _Scheme(owners, text)
    return None


def _one_to_one(
    image_names: list[str], image_keys: list[tuple[str, str]], mask_keys: list[tuple[str, str]]
) -> list[str]:
    """The image's name for each mask, where images and masks have the same keys, each once; else nothing."""
    owners = dict(zip(image_keys, image_names))
    if len(owners) < len(image_names) or sorted(mask_keys) != sorted(owners):
        return []
    return [owners[key] for key in mask_keys]


def _keys(names: list[str], zeros: bool) -> list[tuple[str, str]]:
    """(subfolder, own name) of each, in lower case; `zeros`: numbers in own names without leading zeros."""
    keys = []
    for name in names:
        place, _, own_name = name.casefold().rpartition("/")
        if zeros:
            own_name = re.sub(r"\d+", lambda number: number[0].lstrip("0") or "0", own_name)
        keys.append((place, own_name))
    return keys


def _find_affixes(names: list[str], others: list[str]) -> tuple[_Affixes, _Affixes] | None:
    """The affixes of all `names`, and those of all `others`, where these differ.

    None: there are none, one side would have a prefix and a suffix, or they would cut a number in two.
    """
    if len(names) == 1:
        both = _affixes_of_one(names[0], others[0])
    else:
        both = _without_common(_common_affixes(names), _common_affixes(others))
    for affixes in both:
        cuts_a_number = affixes.before[-1:].isdigit() or affixes.after[:1].isdigit()
        if cuts_a_number or (affixes.before and affixes.after):
            return None
    if both[0] == both[1]:  # no affixes at all
        return None
    return both


def _common_affixes(names: list[str]) -> _Affixes:
    before = os.path.commonprefix(names)
    backwards = [name[len(before) :][::-1] for name in names]  # commonprefix of reversed names gives the suffix
    return _Affixes(before, os.path.commonprefix(backwards)[::-1])


def _without_common(one: _Affixes, other: _Affixes) -> tuple[_Affixes, _Affixes]:
    """Two affixes without what they share next to the names.

    Images img_a1, img_a2 and masks seg_a1, seg_a2 have the prefixes "img_a" and "seg_a"; shortened, "img" and "seg".
    """
    same_before = len(os.path.commonprefix([one.before[::-1], other.before[::-1]]))
    same_after = len(os.path.commonprefix([one.after, other.after]))

    def shortened(affixes: _Affixes) -> _Affixes:
        return _Affixes(affixes.before[: len(affixes.before) - same_before], affixes.after[same_after:])

    return shortened(one), shortened(other)


def _affixes_of_one(name: str, other: str) -> tuple[_Affixes, _Affixes]:
    """The affixes of two single names: only where one name is part of the other do they say something."""
    short, long = sorted((name, other), key=len)
    none = extra = _Affixes("", "")
    if long.endswith(short):
        extra = _Affixes(long[: len(long) - len(short)], "")
    elif long.startswith(short):
        extra = _Affixes("", long[len(short) :])
    return (none, extra) if short == name else (extra, none)


# ---- pages


def by_pages(pairs: Iterable[Pair], pages: Callable[[Path], list[int] | None]) -> tuple[list[Pair], list[UnusableFile]]:
    """(pairs, faults): a Pair for each page of an image and its mask; a fault where they have not equally many.

    Pages are called name_0, name_1 ... `pages(path)` gives the numbers of a file's pages, as images.pages_of does. A
    pair with a file that has none (None) stays, so that reading the file says what is wrong.
    """
    pairs = list(pairs)
    names = {pair.name for pair in pairs}
    by_page, faults = [], []
    for pair in pairs:
        image_pages, mask_pages, *others = [pages(path) for path in (pair.image, pair.mask, *pair.more)]
        if not image_pages or not mask_pages:  # reading the file will say what is wrong
            by_page.append(pair)
            continue
        counts = {len(mask_pages), *(len(other or mask_pages) for other in others)}
        if counts != {len(image_pages)}:
            faults.append(_unequal_pages(pair, pages))
            continue
        if len(image_pages) == 1:
            by_page.append(replace(pair, image_page=image_pages[0], mask_page=mask_pages[0]))
            continue
        apart = [
            replace(pair, name=f"{pair.name}_{number}", image_page=image_page, mask_page=mask_page)
            for number, (image_page, mask_page) in enumerate(zip(image_pages, mask_pages))
        ]
        same = names.intersection(page.name for page in apart)  # a.tif with pages beside a_0.tif
        if same:
            problem = f"has {len(apart):,} pages, which are called like another image: {printable(min(same))}"
            faults.append(UnusableFile(pair.image, problem, "Rename one of the two"))
        by_page += apart
    return by_page, faults


def _unequal_pages(pair: Pair, pages: Callable[[Path], list[int] | None]) -> UnusableFile:
    masks = ", ".join(f"{printable(path)} {len(pages(path) or [0]):,}" for path in (pair.mask, *pair.more))
    count = counted(len(pages(pair.image) or [0]), "picture")
    problem = f"holds {count} (pages or frames), and its mask {masks}"
    return UnusableFile(pair.image, problem, "Save both with as many, or each page as a file of its own")


# ---- the pictures that predict.py is given, and their true masks


@dataclass(frozen=True)
class Picture:
    """A picture to predict: one page of an image file.

    name     what its outputs are called: a relative path without suffix
    page     the number of the page or frame in the file
    number   which of the file's `pages` pictures it is
    """

    path: Path
    name: PurePath
    page: int = 0
    number: int = 0
    pages: int = 1

    def __str__(self) -> str:
        if self.pages > 1:
            return f"{printable(self.path)}[{self.number}]"
        return printable(self.path)


def find_pictures(
    inputs: Sequence[Folder], output_dir: Folder | None = None, mask_dir: Folder | None = None
) -> tuple[list[Picture], list[str]]:
    """(pictures, missing): all Pictures of the files and folders in `inputs`, and in words what gave nothing.

    A folder is listed with its subfolders, and its pictures are named by their paths below it; a file has its own
    name. Where two would have the same name, all are named by their paths below the folder that they have in common.
    Files in `output_dir` or `mask_dir` are left out, unless they are given by that very name; in a folder that is
    itself `mask_dir`, those whose names end in _mask are. What else folders hold is printed, or is among the missing
    where it is a picture to a person. UserError: a folder is given for images and masks, and no name there ends in
    _mask.
    """
    search = _Search(output_dir, mask_dir, among_others=len(inputs) > 1)
    for place in inputs:
        search.add(Path(place))
    left_out = list(dict.fromkeys(search.left_out))
    if left_out:
        kinds = "that are no pictures by their names, hidden, or of this run"
        print(f"Left out: {len(left_out):,} {kinds}: {list_files(left_out, 5)}.")
    pictures = []
    for path, name in zip(search.files.values(), search.distinct_names()):
        pictures += _pages_as_pictures(path, name)
    return pictures, list(dict.fromkeys(search.missing))


class _Search:
    """The picture files that predict.py is given, each once.

    files      {absolute path: file}
    names      for each of them, what its outputs are called
    missing    in words: inputs that are not there, folders and pictures that cannot be read
    left_out   what else the folders hold
    """

    def __init__(self, output_dir: Folder | None, mask_dir: Folder | None, among_others: bool) -> None:
        self.files: dict[str, Path] = {}
        self.names: list[PurePath] = []
        self.missing: list[str] = []
        self.left_out: list[Path] = []
        self._among_others = among_others  # whether there are several inputs, as where the shell expands a *
        self._own = {os.path.realpath(folder) for folder in (output_dir, mask_dir) if folder}
        self._mask_dir = os.path.realpath(mask_dir) if mask_dir else None

    def add(self, place: Path) -> None:
        """Adds one of the inputs, a file or a folder."""
        if not os.path.exists(place):
            self.missing.append(f"{printable(place)}: there is no such file or folder.")
            return
        if place.is_dir():
            self._add_folder(place)
            return
        problem = _problem_of_kind(place)
        if problem and pages_of(place) is None:  # a file that is given by its name may have any suffix
            self.missing.append(problem)
        else:
            self._take(place, place.parent)

    def _take(self, file: Path, folder: Path) -> None:
        """Adds a file that is named by its path below `folder`, unless it was added before."""
        path = os.path.abspath(file)
        if path not in self.files:
            self.files[path] = file
            self.names.append(PurePath(file.relative_to(folder)).with_suffix(""))

    def _add_folder(self, folder: Path) -> None:
        real = os.path.realpath(folder)
        listing = walk(folder, self._own - {real})
        self.missing += [f"{printable(error.filename)}: cannot be read ({error.strerror})." for error in listing.errors]
        files = listing.pictures
        if real in self._own:  # one of the run's own folders is asked for by its name
            images = [file for file in files if not ends_in_mask(file)]
            has_masks_beside = real == self._mask_dir and len(images) < len(files)
            if has_masks_beside:
                files = images
            elif self._among_others:  # as where the shell's * names all that there is
                print(f"{printable(folder)}: left out, because it is OUTPUT_DIR or MASKS.", file=sys.stderr)
                return
            elif real == self._mask_dir:
                raise UserError(
                    f"{printable(folder)}: is given both for images and for MASKS, and no file there ends in _mask. "
                    "Name the masks like a_mask.png, or keep them in another folder."
                )
        problems = self._sort_others(listing.left_out)
        if not files and not problems and self._among_others:
            self.missing.append(f"{printable(folder)}: there is no image in it.")
        for file in files:
            self._take(file, folder)

    def _sort_others(self, paths: Iterable[Path]) -> int:
        """Adds files that are pictures to a person to `missing`, others to `left_out`; returns how many are missing."""
        before = len(self.missing)
        for path in paths:
            problem = None
            if not path.name.startswith("."):
                problem = _problem_of_kind(path)
            if problem:
                self.missing.append(problem)
            else:
                self.left_out.append(path)
        return len(self.missing) - before

    def distinct_names(self) -> list[PurePath]:
        """`names`, or where two are the same, all as paths below the folder that all files have in common."""
        if len({folded_path(name) for name in self.names}) == len(self.names):
            return self.names
        common = os.path.commonpath([os.path.dirname(path) for path in self.files])
        return [PurePath(os.path.relpath(path, common)).with_suffix("") for path in self.files]


def _problem_of_kind(file: Path) -> str | None:
    """What to do with a file that is not read by its name, but is a picture or a video to a person; or None."""
    if VIDEO.search(file.name):
        return f"{printable(file)}: is a video. Cut it into frames ({_to_frames(file)}), and give their folder."
    if UNREAD.search(file.name) or (file.suffix.lower() not in SUFFIXES and pages_of(file)):
        return f"{printable(file)}: its kind or its name is not read. Save it as PNG or TIFF."
    return None


def _pages_as_pictures(file: Path, name: PurePath) -> list[Picture]:
    """The Pictures of a file, one for each page; a file that cannot be read is one, so that reading it says why."""
    pages = pages_of(file) or [0]
    if len(pages) == 1:
        return [Picture(file, name, pages[0])]
    pictures = []
    for number, page in enumerate(pages):
        pictures.append(Picture(file, name.with_name(f"{name.name}_{number}"), page, number, len(pages)))
    return pictures


def folded_path(path: PurePath | str) -> str:
    """A path as file systems compare it that do not tell A.png from a.png."""
    return str(path).casefold()


def find_masks(pictures: Sequence[Picture], mask_dir: Folder, spec: DataSpec = DataSpec()) -> dict[Picture, Pair]:
    """The Pair of each picture that has its true mask in `mask_dir` or below it.

    A mask in the same subfolder as its picture comes first, then one of that name in any subfolder. The mask of a page
    is a file with the page's own name (a_1), or the page of that number in a file with the image file's name (a), if it
    has as many pages. Where MASK_NAME has a *, all that fit are the picture's masks. UserError: there is no mask at
    all, or more than one fits.
    """
    if not os.path.isdir(mask_dir):
        raise UserError(f"{mask_dir}: there is no such folder. MASKS names the one with the true masks.")
    masks = _TrueMasks(pictures, mask_dir, spec.mask_name)
    pairs, doubtful = {}, []
    for picture in pictures:
        for wanted in _wanted_masks(picture):
            fitting = masks.fitting(picture, wanted)
            if len(fitting) > 1 and not _takes_several(spec.mask_name):
                doubtful.append(f"{picture}: {', '.join(map(printable, fitting))}")
                continue
            page = masks.page_of(fitting, wanted)
            if page is not None:
                mask, *more = fitting
                pairs[picture] = Pair(picture.name.as_posix(), picture.path, mask, picture.page, page, tuple(more))
    if doubtful:
        raise UserError("More than one mask fits these pictures; keep one of each:\n  " + "\n  ".join(doubtful))
    if not pairs:
        raise UserError(
            f"{mask_dir}: no mask there fits any of the pictures. For a.jpg it would be a.png, a_mask.gif or the like, "
            f"and have as many pages. {NAME_MASKS}."
        )
    return pairs


@dataclass(frozen=True)
class _WantedMask:
    """A file that may hold a picture's true mask: its stem, and as which of how many pages."""

    stem: str
    number: int = 0
    pages: int = 1


def _wanted_masks(picture: Picture) -> list[_WantedMask]:
    """The files that may hold the picture's mask, the best one last."""
    own_file = _WantedMask(_composed(picture.name.name))
    if picture.pages == 1:
        return [own_file]
    return [_WantedMask(_composed(picture.path.stem), picture.number, picture.pages), own_file]


class _TrueMasks:
    """The mask files below a folder, by the names of the pictures that they may belong to."""

    def __init__(self, pictures: Sequence[Picture], mask_dir: Folder, mask_name: str | None) -> None:
        names = ImageNames(wanted.stem for picture in pictures for wanted in _wanted_masks(picture))
        images = {os.path.realpath(picture.path) for picture in pictures}  # which may lie beside their masks
        listing = walk(mask_dir)
        files = [file for file in listing.pictures if os.path.realpath(file) not in images]
        self._by_name, _ = names.sort_masks(files, partial(mask_stems, mask_name=mask_name))
        self._by_place: dict[tuple[str, str], list[Path]] = defaultdict(list)  # the same by (subfolder, name)
        for name, masks in self._by_name.items():
            for mask in masks:
                self._by_place[listing.place_of(mask), name].append(mask)
        self._pages_of = cache(pages_of)

    def fitting(self, picture: Picture, wanted: _WantedMask) -> list[Path]:
        """The masks of that name in the picture's own subfolder, or if there are none, in any."""
        in_place = self._by_place.get((_place(picture.name.parent), wanted.stem))
        return in_place or self._by_name.get(wanted.stem, [])

    def page_of(self, masks: Sequence[Path], wanted: _WantedMask) -> int | None:
        """The wanted page's number in `masks`; None: there is no mask, or it has not as many pages."""
        if not masks:
            return None
        # A file that cannot be read counts as right: reading it will say what is wrong.
        pages = [self._pages_of(mask) or range(wanted.pages) for mask in masks]
        if any(len(numbers) != wanted.pages for numbers in pages):
            return None
        return pages[0][wanted.number]
