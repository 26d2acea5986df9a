"""Which files of a dataset belong together, by their names; walking folders.

Training, augment.py and predict.py list folders by `walk`, and find the image that a mask belongs to by `mask_stems`
and `ImageNames`. What has no partner is refused in a message that names the file and says what to do with it.
"""

import os
import re
import shlex
import sys
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path, PurePath
from typing import NamedTuple

from parts.bands import NPY
from parts.errors import UnusableFile, UserError, counted, list_files, printable, tell
from parts.images import RGB, other_kind, pages_of
from parts.spec import AUTO, GROUPS, DataSpec, compile_groups

HOW_TO_GET_CARVANA = """\
To get Carvana's photographs: sign in to Kaggle, accept the rules of the competition
carvana-image-masking-challenge, download train.zip and train_masks.zip, and unpack both into dataset/,
which gives dataset/train/ and dataset/train_masks/. Then: python augment.py && python train.py
For images of your own: python augment.py --img-dir IMAGES --mask-dir MASKS
To try everything without any data: python train.py --demo"""
LEAVE_OUT = "SKIP_UNPAIRED = True (--skip-unpaired) leaves out what has no partner"
NAME_MASKS = (
    'MASK_NAME = "{}_segmentation" (--mask-name) says how masks are named, if not like their images, and IMAGE_NAME '
    'says how images are; both may hold folders (images/{}); CLASSES = {"car": "{}_car"} takes a file for each class'
)

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
        if shorter := _without(stems[-1], endings):
            stems.append(shorter)
    return stems


def _fillings(text: str, mask_name: str) -> list[str]:
    """What {} may stand for where `text` is a name by `mask_name`, the longest first."""
    pattern = re.escape(mask_name).replace(r"\*", "[^/]*")
    longest = len(text) - len(mask_name.replace("{}", "").replace("*", ""))
    lengths = range(longest, 0, -1)
    if not _takes_several(mask_name):
        lengths = lengths[:1]  # all of the text but what stands around {}
    fillings = []
    for length in lengths:
        if match := re.fullmatch(pattern.replace(r"\{\}", f"(.{{{length}}})"), text, re.IGNORECASE):
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
        folded = Counter(name.casefold() for name in self._names)
        # Of names that differ in case alone none is meant by another case
        self._by_lower_case = {name.casefold(): name for name in self._names if folded[name.casefold()] == 1}

    def owner(self, stems: Sequence[str]) -> str | None:
        """The name of the image that a mask of these stems belongs to, or None.

        The first stem that is a name in the same case; else the first that is one name in another case.
        """
        for stem in stems:
            if stem in self._names:
                return stem
        for stem in stems:
            if name := self._by_lower_case.get(stem.casefold()):
                return name
        return None


def source_stem(stem: str) -> str:
    """The stem of the file that augment.py made a copy from; any other stem stays as it is."""
    for copy in COPIES:
        if stem.endswith(f"_{copy}"):
            return stem[: -len(copy) - 1]
    return stem


def group_of(stem: str, group: str | None = AUTO) -> str:
    """The group that an image belongs to by its name: all images of one group stand on one side of a split.

    `group`: GROUP. The group is what the first parenthesis of its pattern matches, or all that it matches. A stem that
    it does not match is a group of its own.
    """
    match = fits_group(stem, group)
    if not match:
        return source_stem(stem)
    if match.re.groups and match[1] is not None:
        return match[1]
    return match[0]


def fits_group(stem: str, group: str | None) -> re.Match[str] | None:
    """The match of GROUP's pattern at the beginning of a stem, or None. UserError: it is no regular expression.

    For an image in a subfolder, whose stem is folder/name, the pattern is tried on the whole stem, then on the name.
    """
    stem = source_stem(stem)
    for pattern in compile_groups(group):
        if match := pattern.match(stem) or pattern.match(stem.rpartition("/")[2]):
            return match
    return None


def tell_groups(stems: Iterable[str], group: str | None) -> str:
    """Which patterns of GROUP = "auto" the names of images fit, and how many do; "" where there is nothing to tell."""
    if group != AUTO:
        return ""
    matches = [match for stem in stems if (match := fits_group(stem, group))]
    numbers = Counter(GROUPS[match.re.pattern] for match in matches)
    return ", ".join(f"{kind} ({counted(number, 'image')})" for kind, number in numbers.items())


# ---- the files in a folder


@dataclass(frozen=True)
class Listing:
    """The picture files in `folder` and below it, by their names, and what else is there.

    left_out   files of other names, hidden files and folders, empty folders, folders that were to be kept apart
    errors     of folders that cannot be read
    pattern    IMAGE_NAME, where the pictures are images
    unfit      picture files that are not named as IMAGE_NAME and MASK_NAME say
    """

    folder: Path
    pictures: list[Path]
    left_out: list[Path]
    errors: list[OSError] = field(default_factory=list)
    pattern: str | None = None
    unfit: list[Path] = field(default_factory=list)

    def name_of(self, path: Path) -> str:
        """A picture's name without its suffix: x in `folder` itself, a/x in its subfolder a; or as `pattern` says."""
        if self.pattern is not None and (names := self.owners_of(path, self.pattern)):
            return names[0]
        return self.place_of(path) + _composed(path.stem)

    def place_of(self, path: Path) -> str:
        """What stands before the file's own name in `name_of`: "" in `folder` itself, "a/" in its subfolder a."""
        return _place(path.parent.relative_to(self.folder))

    def only(self, files: Collection[Path]) -> "Listing":
        """The same without all other files."""
        pictures = [path for path in self.pictures if path in files]
        return replace(self, pictures=pictures, left_out=[path for path in self.left_out if path in files])

    def named_by(self, name: str | None) -> "Listing":
        """The same without pictures that are not named as `name`, IMAGE_NAME or MASK_NAME, says."""
        if name is None:
            return self
        fitting = [path for path in self.pictures if self.owners_of(path, name)]
        unfit = sorted({*self.pictures}.difference(fitting))
        return replace(self, pictures=fitting, unfit=[*self.unfit, *unfit])

    def owners_of(self, path: Path, mask_name: str | None = None) -> list[str]:
        """The names of the images that a mask may belong to (`mask_stems`), all in the mask's own subfolder.

        A `mask_name` with folders is that of the whole path below `folder`.
        """
        place = self.place_of(path)
        if mask_name is not None and "/" in mask_name:
            names = (place + _composed(name) for name in (path.stem, path.name))
            return [filling for name in names for filling in _fillings(name, mask_name)]
        return [place + stem for stem in mask_stems(path, mask_name)]


def _place(folder: PurePath) -> str:
    text = _composed(folder.as_posix())
    return "" if text == "." else f"{text}/"


def walk(folder: Folder, apart: Iterable[Folder] = (), suffixes: Collection[str] = SUFFIXES) -> Listing:
    """The Listing of `folder` and its subfolders but those `apart`, sorted; a folder's files before its subfolders.

    Links to folders are followed, and each folder is listed once. Raises nothing: see Listing.errors.
    """
    listing = Listing(Path(folder), [], [])
    # Folders are compared by their real paths, because links may lead to them, or back to where they came from.
    kept_apart = {os.path.realpath(other) for other in apart} - {os.path.realpath(folder)}
    listed = set()
    for place, subfolders, files in os.walk(listing.folder, onerror=listing.errors.append, followlinks=True):
        here, real = Path(place), os.path.realpath(place)
        if real in kept_apart or real in listed:  # or its pictures are listed, by another path
            subfolders.clear()
            if real in kept_apart:
                listing.left_out.append(here)
            continue
        listed.add(real)
        if not subfolders and not files and here != listing.folder:
            listing.left_out.append(here)
        hidden = [name for name in subfolders if name.startswith(".")]
        subfolders[:] = sorted(set(subfolders).difference(hidden))  # which is what os.walk visits next, in this order
        for name in sorted(files + hidden):
            path = here / name
            if path.suffix.lower() in suffixes and not name.startswith("."):
                listing.pictures.append(path)
            else:
                listing.left_out.append(path)
    return listing


def list_pictures(folder: Folder, apart: Iterable[Folder] = (), suffixes: Collection[str] = SUFFIXES) -> Listing:
    """The Listing of `folder` and its subfolders but those `apart`, its pictures sorted by their paths below it.

    UserError: there is no such folder, it or a folder below it cannot be read, it holds no picture.
    """
    listing = walk(folder, apart, suffixes)
    if listing.errors:
        error = listing.errors[0]
        problem = f"cannot be read ({error.strerror}). Change its permissions, or give another folder."
        if isinstance(error, FileNotFoundError):
            problem = "there is no such folder. Check its name, or make it and fill it."
        elif isinstance(error, NotADirectoryError):
            cure = _way_to_pictures([Path(error.filename)]) or "Give the folder that the pictures lie in."
            problem = f"is a file. {cure}"
        raise UserError(f"{printable(error.filename)}: {problem}")
    if not listing.pictures:
        others = f" ({len(listing.left_out)} others are left out)" if listing.left_out else ""
        cures = [f"{note.text}." for note in _notes_on_other_kinds(listing.left_out)]
        cures = cures or [_way_to_pictures(listing.left_out) or "Put some there, or give another folder."]
        raise UserError(" ".join([f"{printable(folder)}: holds no pictures{others}.", *cures]))
    pictures = sorted(listing.pictures, key=lambda path: path.relative_to(listing.folder).as_posix())
    return replace(listing, pictures=pictures)


_ARCHIVES = (".zip", ".tar", ".tgz", ".gz", ".xz", ".7z", ".rar")
_TABLES = (".csv", ".tsv", ".json", ".jsonl", ".geojson", ".ndjson", ".xml")


def _way_to_pictures(files: Sequence[Path]) -> str:
    """How pictures are made of files of other kinds that data come in: archives, annotations, tables; "": of none."""
    for path in files:
        if path.suffix.lower() in _ARCHIVES:
            name, folder = (shlex.quote(printable(place)) for place in (path, path.with_suffix("")))
            command = f"unzip {name} -d {folder}" if path.suffix.lower() == ".zip" else f"unpack {name} first"
            return f"Archives are not read: {command}"
        if path.suffix.lower() in _TABLES:
            return (
                f"If {path.name} holds annotations: the scripts draw those of labelme and COCO (.json) and YOLO's "
                "polygons (.txt, with classes.txt or data.yaml); of run lengths in a table docs/change-it.md "
                "(A dataset) has the lines that make masks. Export others as one of these, or as masks in PNG."
            )
    return ""


def suffixes_of(channels: object) -> Collection[str]:
    """The suffixes of images of so many CHANNELS: .npy files are images where these are not RGB, as set by default."""
    return SUFFIXES if channels == RGB else (*SUFFIXES, NPY)


def list_images(img_dir: Folder, spec: DataSpec, apart: Iterable[Folder] = ()) -> Listing:
    """The Listing of the images alone, named as IMAGE_NAME says. UserError: as `list_pictures`."""
    images = list_pictures(img_dir, apart, suffixes_of(spec.channels))
    return replace(images.named_by(spec.image_name), pattern=spec.image_name)


def list_both(
    img_dir: Folder, mask_dir: Folder, spec: DataSpec = DataSpec(), apart: Iterable[Folder] = ()
) -> tuple[Listing, Listing]:
    """The Listings of the images and of the masks.

    Where both have one folder, masks are the files whose name ends in _mask, or is as MASK_NAME says. One folder may
    lie below the other, and keeps its own files. Files in the folders `apart` belong to neither. UserError: as
    `list_pictures`, and where no file of one folder for both is a mask.
    """
    images, masks = _list_both(img_dir, mask_dir, spec, apart)
    if spec.image_name is None:
        return images, masks
    # Trees hold other pictures beside the ones that both names say.
    images = replace(images.named_by(spec.image_name), pattern=spec.image_name)
    for listing, name in ((images, spec.image_name), (masks.named_by(spec.mask_name), spec.mask_name)):
        if not listing.pictures:
            example = f", e.g. {printable(listing.unfit[0])}" if listing.unfit else ""
            raise UserError(f"{printable(listing.folder)}: no picture is named as {name!r}{example}. {NAME_MASKS}.")
    return images, masks.named_by(spec.mask_name)


def _list_both(img_dir: Folder, mask_dir: Folder, spec: DataSpec, apart: Iterable[Folder]) -> tuple[Listing, Listing]:
    """The same, before IMAGE_NAME."""
    suffixes = suffixes_of(spec.channels)
    if not os.path.isdir(mask_dir) or not os.path.isdir(img_dir) or not os.path.samefile(img_dir, mask_dir):
        return list_pictures(img_dir, [mask_dir, *apart], suffixes), list_pictures(mask_dir, [img_dir, *apart])
    # One folder for both: it is listed once, and divided by the names of the files.
    both = list_pictures(img_dir, apart, suffixes)
    both = replace(both, pattern=spec.image_name)
    names = ImageNames(map(both.name_of, both.pictures))

    def is_mask(path: Path) -> bool:
        if spec.mask_name is None:
            return ends_in_mask(path)
        owners = both.owners_of(path, spec.mask_name)
        if not _takes_several(spec.mask_name):
            return bool(owners)
        # img_1 fits {}_* in any case, and is a mask only where there is another picture called img.
        return names.owner([owner for owner in owners if owner != both.name_of(path)]) is not None

    files = {*both.pictures, *both.left_out}
    masks = set(filter(is_mask, files))
    if masks.isdisjoint(both.pictures):
        raise UserError(
            f"{printable(img_dir)}: is given both for images and for masks, and no file there ends in _mask. Give the "
            f"folder of the masks, or name them like a_mask.png. {NAME_MASKS}."
        )
    return both.only(files - masks), both.only(masks)


# ---- pictures of kinds that are not read


class Note(NamedTuple):
    """What a person should know about the files that were taken or left out: a short label, and a text."""

    label: str
    text: str


def _of_kind(kind: re.Pattern[str], paths: Iterable[Path]) -> list[Path]:
    """Those of `paths` whose names are of a kind that is not read (UNREAD, VIDEO), without hidden files."""
    return [path for path in paths if kind.search(path.name) and not path.name.startswith(".")]


def _notes_on_other_kinds(paths: Sequence[Path]) -> list[Note]:
    """Notes on those of `paths` that hold pictures of kinds that are not read, and what to do with them."""
    notes = []
    if unread := _of_kind(UNREAD, paths):
        text = f"{counted(len(unread), 'picture')} of a kind that is not read: {_first_names(unread)}. "
        text += "To use files of this kind, save as PNG (images also as JPEG)"
        if any(path.suffix.lower() == NPY for path in unread):
            text += f", or, if they are images in {NPY} files, set CHANNELS (--channels auto)"
        notes.append(Note("not read", text))
    if videos := _of_kind(VIDEO, paths):
        text = f"{counted(len(videos), 'video')}: {_first_names(videos)}. To use such, cut into frames "
        notes.append(Note("videos", f"{text}({_to_frames(videos[0])})"))
    return notes


def _to_frames(video: Path) -> str:
    return f"mkdir frames; ffmpeg -i {printable(video.name)} frames/%05d.png"


def _first_names(paths: Sequence[Path]) -> str:
    return list_files([path.name for path in paths], 5)


# ---- pairs of images and masks


@dataclass(frozen=True)
class Pair:
    """An image and its mask, or its masks.

    name         the image's, without suffix, with its subfolder: a/x; for a page its number is appended: a/x_0
    image_page   the number of the page or frame of the image file
    mask_page    the same of each mask file
    more         further masks of the image, united with `mask`; see MASK_NAME
    bands        further files of the image, whose channels follow those of `image`; see IMAGE_NAME
    """

    name: str
    image: Path
    mask: Path
    image_page: int = 0
    mask_page: int = 0
    more: tuple[Path, ...] = ()
    bands: tuple[Path, ...] = ()

    @property
    def images(self) -> Path | tuple[Path, ...]:
        """The image file, or all of them, in the form that images.decode_image takes."""
        return (self.image, *self.bands) if self.bands else self.image

    @property
    def masks(self) -> Path | tuple[Path, ...]:
        """The mask file, or all of them, in the form that masks.read_mask takes."""
        return (self.mask, *self.more) if self.more else self.mask

    @property
    def sources(self) -> list[tuple[Path, int]]:
        """(file, page) of the image, or of each of its files, then of each of its masks."""
        return [*((file, self.image_page) for file in (self.image, *self.bands)), *self.mask_sources]

    @property
    def mask_sources(self) -> list[tuple[Path, int]]:
        """(file, page) of each mask."""
        return [(mask, self.mask_page) for mask in (self.mask, *self.more)]


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
    pairs, page_faults = by_pages(matches.pairs, partial(pages_of, channels=spec.channels))
    faults = matches.faults + page_faults
    for note in matches.notes:  # also on kinds that are not read, which may be why something has no partner
        tell(f"{printable(img_dir)}: {note.text}.")
    if faults:
        lines = [str(fault) for fault in faults]
        if matches.faults:
            lines.append(f"{NAME_MASKS}; {LEAVE_OUT}.")
        raise UserError("\n".join(lines))
    if not pairs:
        raise UserError(f"{printable(img_dir)}, {printable(mask_dir)}: no image there has a mask. {NAME_MASKS}.")
    return pairs


def match(images: Listing, masks: Listing, spec: DataSpec = DataSpec()) -> Matches:
    """The Matches of the images and the masks of a dataset.

    A mask belongs to the image whose name it has (`mask_stems`), in the same subfolder. Files that remain on both
    sides are pairs where one rule pairs every one of them: numbers are compared without leading zeros, or, if no name
    agrees at all, all names of one side have the same prefix or suffix. An image has several masks only where
    MASK_NAME has a *, and several files where IMAGE_NAME has one and CHANNELS is not that of RGB.
    """
    notes = _notes_on_other_kinds(images.left_out + masks.left_out)
    matching = _Matching(images, masks, spec)  # by equal names
    if unfit := [*images.unfit, *masks.unfit]:
        text = f"{counted(len(unfit), 'picture')} that IMAGE_NAME and MASK_NAME do not name: {_first_names(unfit)}"
        notes.append(Note("other names", text))
    if note := matching.pair_by_scheme():
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

    images_of   {name: its image files}; more than one, such as a.jpg and a.png, is a fault where nothing unites them
    masks_of    {name of an image: its mask files}
    strays      mask files of no image
    """

    def __init__(self, images: Listing, masks: Listing, spec: DataSpec) -> None:
        self.images, self.masks, self.image_name, self.mask_name = images, masks, spec.image_name, spec.mask_name
        self.unites_images = unites_images(spec.image_name, spec.channels)
        self.images_of: dict[str, list[Path]] = defaultdict(list)
        for path in images.pictures:
            self.images_of[images.name_of(path)].append(path)
        self.names = ImageNames(self.images_of)
        self.masks_of: dict[str, list[Path]] = defaultdict(list)
        self.strays: list[Path] = []
        self.odd = self._images_of_other_files() if self.unites_images else {}
        for path in masks.pictures:
            owner = self.names.owner(self._owners_of(path))
            if owner is None:
                self.strays.append(path)
            else:
                self.masks_of[owner].append(path)

    def _owners_of(self, mask: Path) -> list[str]:
        return self.masks.owners_of(mask, self.mask_name)

    def pair_by_scheme(self) -> Note | None:
        """Pairs the images and masks that remain, if one rule for their names pairs every one, and says by which."""
        lonely = [name for name in self.images_of if name not in self.masks_of]
        # MASK_NAME leaves nothing to guess; and a rule that leaves one file over is none.
        if self.mask_name or not lonely or len(lonely) != len(self.strays):
            return None
        stray_names = [self.masks.name_of(path) for path in self.strays]
        owners, rule = _find_scheme(lonely, stray_names, affixes=not self.masks_of)
        if not owners:
            return None
        self.masks_of.update((owner, [path]) for owner, path in zip(owners, self.strays))
        self.strays = []
        image, mask = self.images_of[lonely[0]][0], self.masks_of[lonely[0]][0]
        return Note("names", f"{rule}; e.g. {printable(mask.name)} for {printable(image.name)}")

    def _images_of_other_files(self) -> dict[str, str]:
        """{name: in words, which files others have} of the images whose files are not those that most have."""
        own = {  # what the names of its files have beside the image's
            name: tuple(sorted(_composed(file.stem).replace(PurePath(name).name, "") for file in files))
            for name, files in self.images_of.items()
        }
        usual, count = Counter(own.values()).most_common(1)[0]
        if 2 * count > len(own):
            return {name: f"({', '.join(map(printable, usual))})" for name, rests in own.items() if rests != usual}
        number = Counter(map(len, own.values())).most_common(1)[0][0]
        return {name: f"({number:,} of them)" for name, rests in own.items() if len(rests) != number}

    def _is_ambiguous(self, name: str) -> bool:
        several_masks = len(self.masks_of.get(name, [])) > 1 and not _takes_several(self.mask_name)
        several_images = len(self.images_of[name]) > 1 and not self.unites_images
        return several_masks or several_images or name in self.odd

    def pairs(self) -> list[Pair]:
        """The Pairs of all images that have their mask, sorted by name."""
        pairs = []
        for name, files in sorted(self.masks_of.items()):
            if not self._is_ambiguous(name):
                (image, *bands), (mask, *more) = sorted(self.images_of[name]), sorted(files)
                pairs.append(Pair(name, image, mask, more=tuple(more), bands=tuple(bands)))
        return pairs

    def ambiguous(self) -> list[UnusableFile]:
        """A fault for each name of several images, or of several masks where an image has one."""
        faults = []
        for name, files in sorted(self.images_of.items()):
            if name in self.odd:
                problem = f"makes {printable(name)} of {counted(len(files), 'file')}: {list_files(files, 5)}"
                cure = f"Give it the files that others have {self.odd[name]}, or remove it"
                faults.append(UnusableFile(files[0], problem, cure))
            elif self._is_ambiguous(name):
                names = ", ".join(map(printable, files + self.masks_of.get(name, [])))
                cure = "Keep one image and one mask"
                if _takes_several(self.image_name):
                    cure += "; or set CHANNELS (--channels auto), with which IMAGE_NAME makes one image of them"
                faults.append(UnusableFile(files[0], f"it is not clear which belong together: {names}", cure))
        return faults

    def lonely_images(self) -> list[UnusableFile]:
        """A fault for each image without a mask."""
        faults, scheme = [], self._scheme_of_channels()
        for name, files in sorted(self.images_of.items()):
            if name in self.masks_of or self._is_ambiguous(name):
                continue
            expected = name
            if self.mask_name is not None:
                own = name if "/" in self.mask_name else PurePath(name).name
                expected = self.mask_name.replace("{}", own).replace("*", "1")
            cure = f"Add {printable(expected)}.png or the like, or remove it"
            if scheme and self.images.owners_of(files[0], scheme):
                cure = f"If it is a channel of an image, {_how_to_unite(scheme)}"
            faults.append(UnusableFile(files[0], "has no mask", cure))
        return faults

    def stray_masks(self) -> list[UnusableFile]:
        """A fault for each mask of no image, sorted by the names of the images that they are likely to belong to."""
        scheme, channels = self._scheme_of_several(), self._scheme_of_channels()
        faults = []
        # The last owner has the shortest name; a mask that is not named as MASK_NAME says has none, but its own name.
        for path in sorted(self.strays, key=lambda path: [self.masks.name_of(path), *self._owners_of(path)][-1]):
            owners = self._owners_of(path)
            if not owners:
                cure = f"Name it as MASK_NAME = {self.mask_name!r} says, or remove it"
            elif scheme:
                name = f"MASK_NAME = {scheme!r} (--mask-name)"
                cure = f"If it is one of several of an image, set {name}, which unites them"
            elif channels:
                cure = f"If the channels of its image are files of their own, {_how_to_unite(channels)}"
            else:
                likely = owners[0] if self.mask_name else owners[-1]
                cure = f"Add the image {printable(likely)}, or remove it"
            faults.append(UnusableFile(path, "is the mask of no image", cure))
        return faults

    def _scheme_of_channels(self) -> str | None:
        """The IMAGE_NAME with a * by which several images without a mask belong to one mask of no image; or None."""
        wanted = ImageNames(owner for path in self.strays for owner in self._owners_of(path))
        rests: dict[str, list[str]] = defaultdict(list)  # what the names of a mask's images have beyond its own
        for name, files in self.images_of.items():
            if name not in self.masks_of and (owner := wanted.owner(self.images.owners_of(files[0], "{}_*")[:1])):
                rests[owner].append(name[len(owner) :])
        if self.image_name or all(len(several) < 2 for several in rests.values()):
            return None
        return f"{{}}{os.path.commonprefix([rest for several in rests.values() for rest in several])}*"

    def _scheme_of_several(self) -> str | None:
        """The MASK_NAME with a * by which every mask belongs to an image; None: there is none, or none is needed."""
        if not self.strays or self.mask_name:
            return None
        for end in ("_", "-", ".", " "):
            scheme = f"{{}}{end}*"
            if all(self.names.owner(self.masks.owners_of(path, scheme)) for path in self.masks.pictures):
                return scheme
        return None


def _takes_several(pattern: str | None) -> bool:
    """Whether MASK_NAME, or IMAGE_NAME, has a * and so may fit several files of an image."""
    return pattern is not None and "*" in pattern


def _how_to_unite(image_name: str) -> str:
    flags = f"--image-name {shlex.quote(printable(image_name))} --channels auto"
    return f"set IMAGE_NAME and CHANNELS ({flags}), which make one image of them"


def unites_images(image_name: str | None, channels: object) -> bool:
    """Whether the files that the * of IMAGE_NAME stands for are channels of one image: not where CHANNELS is RGB."""
    return _takes_several(image_name) and channels != RGB


# ---- masks that are named by a rule of their own


def _find_scheme(image_names: list[str], mask_names: list[str], affixes: bool) -> tuple[list[str], str]:
    """(owners, rule): the image of each mask by a rule that gives each image one mask, and the rule in words.

    affixes: whether names may differ in a prefix or a suffix, and not in leading zeros alone. There are no owners where
    there is no such rule.
    """
    owners = _one_to_one(image_names, _keys(image_names, zeros=True), _keys(mask_names, zeros=True))
    if owners or not affixes:
        return owners, "numbers are compared without leading zeros"
    for zeros in (False, True):
        image_keys, mask_keys = _keys(image_names, zeros), _keys(mask_names, zeros)
        of_images, of_masks = _find_affixes([name for _, name in image_keys], [name for _, name in mask_keys])
        owners = _one_to_one(image_names, _fillings_of(image_keys, of_images), _fillings_of(mask_keys, of_masks))
        if owners and of_images != of_masks:
            rule = f'the mask of an image "{of_images}" is taken to be "{of_masks}"'
            return owners, f"{rule}, leading zeros aside" if zeros else rule
    return [], ""


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


def _fillings_of(keys: list[tuple[str, str]], pattern: str) -> list[tuple[str, str]]:
    """(subfolder, what {} of the pattern stands for) of each."""
    return [(place, filling) for place, name in keys for filling in _fillings(name, pattern)]


def _find_affixes(names: list[str], others: list[str]) -> tuple[str, str]:
    """What all `names` have before or after the part that tells them apart, as img_{}; and the same of all `others`.

    "{}" twice: there is no such thing, or one side would have a prefix and a suffix.
    """
    if len(names) == 1:  # of single names only that one is part of the other says something
        short, long = sorted((*names, *others), key=len)
        before, middle, after = long.partition(short)
        affixes = [("", ""), (before, after) if middle else ("", "")]
        if names[0] == long:
            affixes.reverse()
    else:
        (before, after), (other_before, other_after) = _common_affixes(names), _common_affixes(others)
        # What both sides share next to the names is part of them: "img" and "seg" of img_a1, img_a2 and seg_a1, seg_a2.
        same_before = len(os.path.commonprefix([before[::-1], other_before[::-1]]))
        same_after = len(os.path.commonprefix([after, other_after]))
        affixes = [
            (before[: len(before) - same_before], after[same_after:]),
            (other_before[: len(other_before) - same_before], other_after[same_after:]),
        ]
    for before, after in affixes:
        cuts_a_number = before[-1:].isdigit() or after[:1].isdigit()
        if cuts_a_number or (before and after):
            return "{}", "{}"
    one, other = (before + "{}" + after for before, after in affixes)
    return one, other


def _common_affixes(names: list[str]) -> tuple[str, str]:
    before = os.path.commonprefix(names)
    backwards = [name[len(before) :][::-1] for name in names]  # commonprefix of reversed names gives the suffix
    return before, os.path.commonprefix(backwards)[::-1]


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
        numbers = {path: pages(path) for path in (pair.image, pair.mask, *pair.more)}
        image_pages, mask_pages = numbers[pair.image], numbers[pair.mask]
        if not image_pages or not mask_pages:  # reading the file will say what is wrong
            by_page.append(pair)
        elif any(held and len(held) != len(image_pages) for held in numbers.values()):
            faults.append(_unequal_pages(pair, numbers))
        elif len(image_pages) == 1:
            by_page.append(replace(pair, image_page=image_pages[0], mask_page=mask_pages[0]))
        else:
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


def _unequal_pages(pair: Pair, numbers: dict[Path, list[int] | None]) -> UnusableFile:
    """The fault of an image and masks with these numbers of pages, which are not equally many."""
    held = f"{counted(len(numbers[pair.image] or []), 'picture')} (pages or frames), and its mask "
    held += ", ".join(f"{printable(path)} {len(numbers[path] or [0]):,}" for path in (pair.mask, *pair.more))
    cure = "Save both with as many, or each page as a file of its own"
    if pages_of(pair.image, AUTO) == [0]:
        cure = "Its pages are the channels of one image: set CHANNELS (--channels auto)"
    return UnusableFile(pair.image, f"holds {held}", cure)


# ---- the pictures that predict.py is given, and their true masks


@dataclass(frozen=True)
class Picture:
    """A picture to predict: one page of an image file.

    name     what its outputs are called: a relative path without suffix
    page     the number of the page or frame in the file
    number   which of the file's `pages` pictures it is
    bands    further files, whose channels follow those of `path`; see IMAGE_NAME
    """

    path: Path
    name: PurePath
    page: int = 0
    number: int = 0
    pages: int = 1
    bands: tuple[Path, ...] = ()

    @property
    def images(self) -> Path | tuple[Path, ...]:
        """The file, or all of them, in the form that images.decode_image takes."""
        return (self.path, *self.bands) if self.bands else self.path

    def __str__(self) -> str:
        if self.pages > 1:
            return f"{printable(self.path)}[{self.number}]"
        return printable(self.path)


def find_pictures(
    inputs: Sequence[Folder],
    output_dir: Folder | None = None,
    mask_dir: Folder | None = None,
    written: Collection[str] = (),
    channels: object = RGB,
    image_name: str | None = None,
) -> tuple[list[Picture], list[str]]:
    """(pictures, missing): all Pictures of the files and folders in `inputs`, and in words what gave nothing.

    A folder is listed with its subfolders, and its pictures are named by their paths below it; a file has its own
    name. Where two would have the same name, all are named by their paths below the folder that they have in common.
    Files in `output_dir` or `mask_dir` are left out, unless they are given by that very name; in a folder that is
    itself `mask_dir`, those whose names end in _mask are, and in any folder those that earlier runs have `written`
    (real paths). What else folders hold is printed, or is among the missing where it is a picture to a person.
    `channels`: CHANNELS of training. `image_name`: IMAGE_NAME, which leaves out what is named otherwise; files that
    its * unites are one picture, called by what {} stands for. UserError: a folder is given for images and masks, and
    no name there ends in _mask.
    """
    if image_name:  # which tells images from masks, wherever they lie
        mask_dir = None
    own = {os.path.realpath(folder) for folder in (output_dir, mask_dir) if folder}
    masks = os.path.realpath(mask_dir) if mask_dir else None
    given = _Inputs(own, masks, written, channels, image_name, among_others=len(inputs) > 1)
    for place in map(Path, inputs):
        given.add(place)
    if left_out := list(dict.fromkeys(given.left_out)):
        kinds = "that are no pictures by their names, hidden, or of this run"
        if image_name:
            kinds = f"{kinds}, or not named as IMAGE_NAME = {image_name!r}"
        tell(f"Left out: {len(left_out):,} {kinds}: {list_files(left_out, 5)}.")
    pictures = [picture for some, name in _named_apart(given.files) for picture in _pictures_in(some, name, channels)]
    return pictures, list(dict.fromkeys(given.missing))


def _named_apart(files: dict[str, tuple[dict[str, Path], PurePath]]) -> list[tuple[list[Path], PurePath]]:
    """The files of each picture with its name: where two have the same, their paths below the folder that all share."""
    by_name = [([*some.values()], name) for some, name in files.values()]
    if len({folded_path(name) for _, name in by_name}) < len(files):
        common = os.path.commonpath([os.path.dirname(path) for path in files])
        names = (PurePath(os.path.relpath(path, common)).with_suffix("") for path in files)
        by_name = [(some, name) for (some, _), name in zip(by_name, names)]
    return by_name


def _pictures_in(files: list[Path], name: PurePath, channels: object) -> list[Picture]:
    """The Pictures of a file, whose outputs are called `name`, of several pages name_0 ...; or the one of all files."""
    file, *bands = sorted(files)
    pages = pages_of(file, channels) or [0]  # a file that cannot be read is one picture, so that reading it says why
    if bands or len(pages) == 1:
        return [Picture(file, name, pages[0], bands=tuple(bands))]
    names = [name.with_name(f"{name.name}_{number}") for number in range(len(pages))]
    return [Picture(file, names[number], page, number, len(pages)) for number, page in enumerate(pages)]


@dataclass
class _Inputs:
    """The files and folders that predict.py is given, added one by one.

    own            real paths of the run's own folders, OUTPUT_DIR and MASKS; `masks`: that of MASKS
    written        real paths of files that earlier runs have written
    among_others   whether there are several inputs, as where the shell expands a *
    files          {absolute path: ({absolute path: file}, what its outputs are called)} of each picture; a file that
                   is given twice is one
    missing        in words what of the inputs cannot be read, or gives nothing
    left_out       files that are no pictures, and the folders of the run itself
    """

    own: set[str]
    masks: str | None
    written: Collection[str]
    channels: object
    image_name: str | None
    among_others: bool
    files: dict[str, tuple[dict[str, Path], PurePath]] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    left_out: list[Path] = field(default_factory=list)

    def add(self, place: Path) -> None:
        """Takes the pictures of a file or folder. UserError: as of find_pictures."""
        listing = self._list(place)
        unites = unites_images(self.image_name, self.channels)
        for file in listing.pictures:
            owners = listing.owners_of(file, self.image_name) if self.image_name else []
            if file != place and os.path.realpath(file) in self.written:
                continue
            if file != place and self.image_name and not owners:
                self.left_out.append(file)
                continue
            key, name = os.path.abspath(file), PurePath(file.relative_to(listing.folder)).with_suffix("")
            if unites and owners:
                key, name = os.path.abspath(listing.folder / f"{owners[0]}.files"), PurePath(owners[0])
            self.files.setdefault(key, ({}, name))[0].setdefault(os.path.abspath(file), file)

    def _list(self, place: Path) -> Listing:
        if os.path.isdir(place):
            return self._list_folder(place)
        if not os.path.exists(place):
            self.missing.append(f"{printable(place)}: there is no such file or folder.")
        elif (problem := _problem_of_kind(place)) and pages_of(place) is None:
            self.missing.append(problem)
        else:  # given by its name, it may have any suffix
            return Listing(place.parent, [place], [])
        return Listing(place, [], [])

    def _list_folder(self, folder: Path) -> Listing:
        real = os.path.realpath(folder)
        listing = walk(folder, self.own - {real}, suffixes_of(self.channels))
        self.missing += [f"{printable(error.filename)}: cannot be read ({error.strerror})." for error in listing.errors]
        if real == self.masks and (masks := set(filter(ends_in_mask, listing.pictures))):
            listing = replace(listing, pictures=[file for file in listing.pictures if file not in masks])
        elif real in self.own and self.among_others:
            tell(f"{printable(folder)}: left out, because it is OUTPUT_DIR or MASKS.", file=sys.stderr)
            return Listing(folder, [], [])
        elif real == self.masks:
            raise UserError(
                f"{printable(folder)}: is given both for images and for MASKS, and no file there ends in _mask. "
                "Name the masks like a_mask.png, or keep them in another folder."
            )
        told = len(self.missing)
        for path in listing.left_out:
            problem = None if path.name.startswith(".") else _problem_of_kind(path)
            if problem:  # it is a picture to a person
                self.missing.append(problem)
            else:
                self.left_out.append(path)
        if self.among_others and not listing.pictures and len(self.missing) == told:
            self.missing.append(f"{printable(folder)}: there is no image in it.")
        return listing


def _problem_of_kind(file: Path) -> str | None:
    """What to do with a file that is not read by its name, but is a picture or a video to a person; or None."""
    if VIDEO.search(file.name):
        return f"{printable(file)}: is a video. Cut it into frames ({_to_frames(file)}), and give their folder."
    if UNREAD.search(file.name) or (file.suffix.lower() not in SUFFIXES and _is_picture(file)):
        return f"{printable(file)}: its kind or its name is not read. Save it as PNG or TIFF."
    return None


def _is_picture(file: Path) -> bool:
    """Whether a file is a picture by its content, of a kind that is read or of another one."""
    return bool(pages_of(file)) or (file.is_file() and other_kind(file) is not None)


def folded_path(path: PurePath | str) -> str:
    """A path as file systems compare it that tell neither upper from lower case nor two codings of an accent apart."""
    return _composed(str(path)).casefold()


def find_masks(pictures: Sequence[Picture], mask_dir: Folder, spec: DataSpec = DataSpec()) -> dict[Picture, Pair]:
    """The Pair of each picture that has its true mask in `mask_dir` or below it.

    A mask in the same subfolder as its picture comes first, then one of that name in any subfolder. The mask of a page
    is a file with the page's own name (a_1), or the page of that number in a file with the image file's name (a), if it
    has as many pages. Where MASK_NAME has a *, all that fit are the picture's masks. UserError: there is no mask at
    all, or more than one fits.
    """
    if not os.path.isdir(mask_dir):
        raise UserError(f"{mask_dir}: there is no such folder. MASKS names the one with the true masks.")
    masks_of = _masks_by_stem(pictures, mask_dir, spec)
    page_numbers_of = cache(pages_of)
    pairs, doubtful = {}, []
    for picture in pictures:
        for stem, pages in _wanted_masks(picture, spec.image_name):
            fitting = masks_of.get((_place(picture.name.parent), stem)) or masks_of.get((None, stem), [])
            if len(fitting) > 1 and not _takes_several(spec.mask_name):
                doubtful.append(f"{picture}: {', '.join(map(printable, fitting))}")
                continue
            # A file that cannot be read counts as right: reading it will say what is wrong.
            page_numbers = [page_numbers_of(mask) or range(pages) for mask in fitting]
            if fitting and all(len(numbers) == pages for numbers in page_numbers):
                mask, *more = fitting
                page = page_numbers[0][picture.number if pages > 1 else 0]
                name, pages_in = picture.name.as_posix(), (picture.page, page)
                pairs[picture] = Pair(name, picture.path, mask, *pages_in, tuple(more), picture.bands)
    if doubtful:
        raise UserError("More than one mask fits these pictures; keep one of each:\n  " + "\n  ".join(doubtful))
    if not pairs:
        raise UserError(
            f"{mask_dir}: no mask there fits any of the pictures. For a.jpg it would be a.png, a_mask.gif or the like, "
            f"and have as many pages. {NAME_MASKS}."
        )
    return pairs


def _wanted_masks(picture: Picture, image_name: str | None) -> list[tuple[str, int]]:
    """(stem, number of pages) of the files that may hold the picture's mask, the best one last."""
    own_file = (_composed(picture.name.name), 1)
    if image_name is not None and not picture.bands:
        name = picture.name.as_posix() if "/" in image_name else picture.name.name
        for filling in _fillings(_composed(name), image_name)[:1]:
            own_file = (filling.rpartition("/")[2], 1)
    if picture.pages == 1:
        return [own_file]
    return [(_composed(picture.path.stem), picture.pages), own_file]


def _masks_by_stem(
    pictures: Sequence[Picture], mask_dir: Folder, spec: DataSpec
) -> dict[tuple[str | None, str], list[Path]]:
    """{(subfolder, stem): the mask files there that belong to this stem}; None is any subfolder."""
    names = ImageNames(stem for picture in pictures for stem, _ in _wanted_masks(picture, spec.image_name))
    # Images may lie beside their masks
    images = {os.path.realpath(file) for picture in pictures for file in (picture.path, *picture.bands)}
    listing = walk(mask_dir)
    masks_of: dict[tuple[str | None, str], list[Path]] = defaultdict(list)
    for mask in listing.pictures:
        owners = [owner.rpartition("/")[2] for owner in listing.owners_of(mask, spec.mask_name)]
        stem = names.owner(owners)
        if stem is not None and os.path.realpath(mask) not in images:
            masks_of[None, stem].append(mask)
            masks_of[listing.place_of(mask), stem].append(mask)
    return masks_of
