"""Which files of two folders belong together, by what names; and the pixels of one file, upright.

What cannot be read is refused in a message that names the file and says what to do with it.
"""

import os
import re
import stat
import unicodedata
import warnings
from collections import defaultdict
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageOps

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
LARGEST = 500_000_000  # pixels; one picture of that size fills 1.5 GB

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

    def place_of(self, path):
        """What stands before a picture's own name: "" in `folder` itself, "a/" in its subfolder a."""
        place = _composed(path.parent.relative_to(self.folder).as_posix())
        return "" if place == "." else f"{place}/"


@dataclass(frozen=True)
class Pair:
    name: str  # the image's, without its suffix; with the subfolder, if there is one: a/x
    image: Path
    mask: Path


def list_pictures(folder, apart=()):
    """The Listing of `folder` and its subfolders but those `apart`.

    UserError: there is none, it or a folder below it may not be read, it holds no picture.
    """
    folder = Path(folder)
    pictures, left_out = _walked(folder, {os.path.realpath(other) for other in apart})
    if not pictures:
        others = f" ({len(left_out)} others are left out)" if left_out else ""
        raise UserError(f"{shown(folder)}: holds no pictures{others}. Put some there, or give another folder.")
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
                left_out.append(path)
        else:
            (pictures if path.suffix.lower() in SUFFIXES and not hidden else left_out).append(path)
    return pictures, left_out


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
    that alone counts, and there is one stem or none.
    """
    stem = _composed(Path(path).stem)
    if mask_name is not None:
        before, after = refuse_mask_name(mask_name)
        pattern = f"{re.escape(before)}(.+){re.escape(after)}"
        found = [re.fullmatch(pattern, text, re.IGNORECASE) for text in (stem, _composed(Path(path).name))]
        return [match[1] for match in found if match][:1]
    stems = [stem]
    # each once: a.jpg_mask.png, a_mask.jpg.png
    for endings in (MASK_ENDINGS, SUFFIXES) if ends_in_mask(path) else (SUFFIXES, MASK_ENDINGS):
        shorter = _without(stems[-1], endings)
        if shorter is not None:
            stems.append(shorter)
    return stems


def _without(stem, endings):
    """A stem without that one of the endings, in whatever case, that it has; None: it has none of them."""
    for end in endings:
        if stem.lower().endswith(end) and len(stem) > len(end):
            return stem[: -len(end)]
    return None


def refuse_mask_name(mask_name):
    """What stands before and behind the {} of a MASK_NAME. UserError: it has no {}, or several."""
    parts = _composed(mask_name).split("{}") if isinstance(mask_name, str) else []
    if len(parts) != 2 or set("/\\*") & set("".join(parts)):
        raise UserError(
            f"MASK_NAME = {mask_name!r}: give the name of a mask, with {{}} where its image's stands, such as "
            "{}_segmentation (--mask-name), or None for names that agree."
        )
    return parts


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
    """The Pairs of two folders, sorted by name; prints the notes. UserError names every file without one partner."""
    found = match_all(*list_both(img_dir, mask_dir, apart, mask_name), mask_name, skip_unpaired)
    if found.faults:
        raise UserError("\n".join([*map(str, found.faults), f"{NAME_MASKS}; {LEAVE_OUT}."]))
    if not found.pairs:
        raise UserError(f"{shown(img_dir)}, {shown(mask_dir)}: no image there has a mask. {NAME_MASKS}.")
    for _, text in found.notes:
        print(f"{shown(img_dir)}: {text}.")
    return found.pairs


def list_both(img_dir, mask_dir, apart=(), mask_name=None):
    """The Listings of images and masks; in one folder for both, masks are what ends in _mask, or as `mask_name` says.

    Either may lie below the other, whose pictures it does not join; nor do those of the folders `apart`.
    """
    if not os.path.isdir(mask_dir) or not os.path.isdir(img_dir) or not os.path.samefile(img_dir, mask_dir):
        return list_pictures(img_dir, [mask_dir, *apart]), list_pictures(mask_dir, [img_dir, *apart])
    images = list_pictures(img_dir, apart)
    masks = [path for path in images.pictures if (mask_stems(path, mask_name) if mask_name else ends_in_mask(path))]
    if not masks:
        raise UserError(
            f"{shown(img_dir)}: is given both for images and for masks, and no file there ends in _mask. Give the "
            f"folder of the masks, or name them like a_mask.png. {NAME_MASKS}."
        )
    rest = [path for path in images.pictures if path not in set(masks)]
    return Listing(images.folder, rest, images.left_out), Listing(images.folder, masks, [])


def match_all(images, masks, mask_name=None, skip_unpaired=False):
    """The Matches of two Listings.

    A mask belongs to the image of its name (`mask_stems`), in the same subfolder. What remains on both sides is
    taken for pairs where numbers without their leading zeros, or, if no name agrees, one prefix or suffix on each
    side, pair every file one to one. `mask_name`, `skip_unpaired`: as in MASK_NAME and SKIP_UNPAIRED.
    """
    by_name, by_owner, strays = defaultdict(list), defaultdict(list), {}
    for path in images.pictures:
        by_name[images.place_of(path) + _composed(path.stem)].append(path)
    in_lower_case = folded(by_name)
    for path in masks.pictures:
        place = masks.place_of(path)
        stems = [place + stem for stem in mask_stems(path, mask_name)]
        owner = owner_of(stems, by_name, in_lower_case)
        if owner:
            by_owner[owner].append(path)
        else:
            strays[path] = [place + _composed(path.stem), *stems]
    notes = []
    lonely = [name for name in by_name if name not in by_owner]
    if not mask_name and lonely and len(lonely) == len(strays):
        owners, words = _differently_named(lonely, [names[0] for names in strays.values()], affixes=not by_owner)
        if owners:
            by_owner.update((owner, [path]) for owner, path in zip(owners, strays))
            strays.clear()
            path = by_owner[lonely[0]][0]
            notes.append(("names", f"{words}; e.g. {shown(path.name)} for {shown(by_name[lonely[0]][0].name)}"))
    pairs, faults, alone = [], [], []
    for name, found in sorted(by_name.items()):
        partners = by_owner[name]
        if len(found) > 1 or len(partners) > 1:
            names = ", ".join(shown(path) for path in found + partners)
            faults.append(
                UnusableFile(found[0], f"it is not clear which belong together: {names}", "Keep one image and one mask")
            )
        elif not partners:
            wanted = shown(mask_name.replace("{}", Path(name).name) if mask_name else name)
            alone.append(UnusableFile(found[0], "has no mask", f"Add {wanted}.png or the like, or remove it"))
        else:
            pairs.append(Pair(name, found[0], partners[0]))
    without = len(alone)
    for path, names in sorted(strays.items(), key=lambda item: item[1][-1]):
        cure = f"Add the image {shown(names[-1])}, or remove it"
        if mask_name and len(names) == 1:
            cure = f"Name it as MASK_NAME = {mask_name!r} says, or remove it"
        alone.append(UnusableFile(path, "is the mask of no image", cure))
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


def read_image(path, size=None, page=0):
    """The picture in a file (that frame of it), uint8 (H, W, 3) in RGB, upright, at `size` = (height, width) if given.

    16-bit greys keep their upper 8 bits; transparency is dropped. Shrinking averages areas (a JPEG of
    four times the size or more halves itself first), enlarging is linear. UnusableFile.
    """
    # 2n - 1, because a JPEG of 1918 columns halves to 959, which is near enough to twice 480
    decoded = decode(path, size and (2 * size[0] - 1, 2 * size[1] - 1), page)
    array = rgb(decoded.picture, path)
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
        raise _unusable(f"{path}[{page}]" if page else path, error) from None


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
    if draft and picture.format in ("JPEG", "MPO"):
        height, width = draft[::-1] if turned >= 5 else draft
        picture.draft(None, (width, height))
    picture.load()
    upright = picture
    if turned > 1:
        picture.info.pop("exif", None)  # exif_transpose would write it anew, and fail where it is damaged
        upright = ImageOps.exif_transpose(picture)
    return Decoded(upright, picture.format, raw, size, frames, turned)


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


def rgb(picture, path):
    """uint8 (H, W, 3) of a PIL image in any mode. UnusableFile where its values say nothing."""
    if picture.mode.startswith("I"):
        grey = np.asarray(picture)
        if grey.min() < 0 or grey.max() > 65535:
            raise UnusableFile(path, "has pixels of 32 bits", "Save it with 8 or 16 bits")
        return np.repeat((grey // 256).astype(np.uint8)[..., None], 3, axis=2)
    if picture.mode == "F":
        raise UnusableFile(path, "has floating-point pixels", "Save it with 8 or 16 bits")
    try:
        if picture.mode in ("P", "PA") and "transparency" in picture.info:
            picture = picture.convert("RGBA")  # from where the alpha is dropped
        return np.asarray(picture if picture.mode == "RGB" else picture.convert("RGB"))
    except ValueError as error:
        raise UnusableFile(path, f"has pixels of a kind that cannot be shown ({error})", "Save it as RGB") from None
