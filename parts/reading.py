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
    """`pictures` sorted by name; `left_out`: hidden files, folders and what is no picture by its name."""

    pictures: list
    left_out: list


@dataclass(frozen=True)
class Pair:
    name: str
    image: Path
    mask: Path


def list_pictures(folder):
    """The Listing of `folder`. UserError: there is none, it may not be read, it holds no picture."""
    folder = Path(folder)
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
    pictures, left_out = [], []
    for entry in entries:
        usable = Path(entry.name).suffix.lower() in SUFFIXES and not entry.name.startswith(".") and not _is_dir(entry)
        (pictures if usable else left_out).append(folder / entry.name)
    if not pictures:
        others = f" ({len(left_out)} others are left out)" if left_out else ""
        raise UserError(f"{shown(folder)}: holds no pictures{others}. Put some there, or give another folder.")
    return Listing(pictures, left_out)


def _is_dir(entry):
    try:
        return entry.is_dir()
    except OSError:  # a symbolic link that leads to itself; reading it will say so
        return False


def mask_stems(path):
    """The stems of images that a mask may belong to: a_mask.png is the mask of a_mask, or of a."""
    stem = unicodedata.normalize("NFC", Path(path).stem)  # macOS writes accents in two characters
    return [stem] + [stem[: -len(end)] for end in MASK_ENDINGS if stem.endswith(end) and stem != end]


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
    """The match of `pattern` at the beginning of a stem, or None. UserError: it is no regular expression."""
    try:
        return re.match(pattern, source_stem(stem))
    except re.error as error:
        raise UserError(f"GROUP = {pattern!r}: is no regular expression ({error}). Mend it.") from None


# ---- pairs


def pair_files(img_dir, mask_dir):
    """The Pairs of two folders, sorted by name. UserError names every file that has no partner, or several."""
    pairs, faults = match_all(*list_both(img_dir, mask_dir))
    if faults:
        raise UserError("\n".join(map(str, faults)))
    return pairs


def list_both(img_dir, mask_dir):
    """The Listings of images and masks; in one folder for both, masks are what ends in _mask."""
    images = list_pictures(img_dir)
    if not os.path.isdir(mask_dir) or not os.path.samefile(img_dir, mask_dir):
        return images, list_pictures(mask_dir)
    masks = [path for path in images.pictures if len(mask_stems(path)) > 1]
    if not masks:
        raise UserError(
            f"{shown(img_dir)}: is given both for images and for masks, and no file there ends in _mask. Give the "
            "folder of the masks, or name them like a_mask.png."
        )
    rest = [path for path in images.pictures if path not in set(masks)]
    return Listing(rest, images.left_out), Listing(masks, [])


def match_all(images, masks):
    """(Pairs, UnusableFiles) of two Listings: all that fit, and one fault for each file that does not."""
    by_stem, by_exact = defaultdict(list), defaultdict(list)
    for path in images.pictures:
        by_exact[unicodedata.normalize("NFC", path.stem)].append(path)
    for path in masks.pictures:
        stems = mask_stems(path)
        # a_mask.png is the mask of an image a_mask where there is one, and of a otherwise
        mine = stems[0] if stems[0] in by_exact else stems[-1]
        by_stem[mine].append(path)
    pairs, faults = [], []
    for stem, found in sorted(by_exact.items()):
        partners = by_stem.pop(stem, [])
        if len(found) > 1 or len(partners) > 1:
            names = ", ".join(shown(path) for path in found + partners)
            faults.append(
                UnusableFile(found[0], f"it is not clear which belong together: {names}", "Keep one image and one mask")
            )
        elif not partners:
            faults.append(UnusableFile(found[0], "has no mask", f"Add {shown(stem)}.png or the like, or remove it"))
        else:
            pairs.append(Pair(stem, found[0], partners[0]))
    for stem, partners in sorted(by_stem.items()):
        faults += [
            UnusableFile(path, "is the mask of no image", f"Add the image {shown(stem)}, or remove it")
            for path in partners
        ]
    return sorted(pairs, key=lambda pair: pair.name), faults


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
