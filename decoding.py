"""One picture file into pixels, whole and upright, or a message that names the file and the cure."""

import os
import stat
import warnings
from contextlib import contextmanager
from dataclasses import dataclass

import cv2
import numpy as np
from PIL import Image

from errors import UserError

LARGEST = 500_000_000  # pixels; one picture of that size fills 1.5 GB
_AGAIN = "Fetch or export it again, or remove it"
_PNG_END = bytes(4) + b"IEND\xaeB`\x82"  # the last chunk, which is empty, with its checksum

# EXIF's orientation (tag 274) -> what sets the pixels upright
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class UnusableFile(UserError):
    """A file that cannot be used: `path`, `what` is wrong with it, and the `cure`."""

    def __init__(self, path, what=None, cure=None):
        # With its message alone DataLoader makes it again, from that of one raised in a worker.
        super().__init__(path if what is None else f"{shown(path)}: {what}. {cure}.")
        self.path, self.what, self.cure = path, what, cure

    def __reduce__(self):
        return UnusableFile, (self.path, self.what, self.cure)


@dataclass(frozen=True)
class Decoded:
    """`picture`: a PIL image, loaded and upright. The rest: what its file was, before that."""

    picture: Image.Image
    format: str
    raw: str  # how the file lays out a pixel, in Pillow's terms, such as "RGB;16B"
    size: tuple  # height and width, upright and without a draft's shrinking
    frames: bool  # whether more frames or pages follow the first one
    turned: int  # EXIF's orientation; 1 is upright


def shown(path):
    """A path as it can be printed anywhere: what is unprintable in a name is escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(path))


def decode(path, draft=None):
    """The Decoded picture of a file, its first frame. UnusableFile: it cannot be decoded to its end.

    `draft` = (height, width): a JPEG may come smaller, by a power of two, but no smaller than that.
    """
    with _opened(path) as picture:
        return _loaded(picture, draft)


@contextmanager
def _opened(path):
    """The PIL picture in a file; whatever goes wrong with it becomes an UnusableFile."""
    # Both are the process's own and set again each time, because scoped changes would mix up threads.
    warnings.filterwarnings("ignore", module=r"PIL\.")  # remarks on odd metadata; what matters raises
    Image.MAX_IMAGE_PIXELS = LARGEST // 2  # Pillow refuses twice this
    try:
        _refuse_special(path)
        with Image.open(path) as picture:
            yield picture
    except UnusableFile:
        raise
    except Exception as error:  # the codecs raise nearly every kind
        raise _unusable(path, error) from None


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
    kind = picture.format
    if turned > 1:
        picture = picture.transpose(_UPRIGHT[turned])
    return Decoded(picture, kind, raw, size, frames, turned)


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
    if picture.format == "TIFF":
        return 1  # Pillow sets these upright itself
    if picture.format == "PNG" and "exif" not in picture.info:
        return 1  # asking on would decode all of it
    try:
        turned = picture.getexif().get(274)
    except Exception:  # damaged metadata is no reason to lose the picture; viewers show it as it lies
        return 1
    return turned if turned in _UPRIGHT else 1


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


def plain_png(path):
    """uint8 (H, W, 3) of an ordinary PNG of 8-bit RGB by OpenCV, which takes three quarters of Pillow's time.

    None for every other file, and for one that OpenCV refuses: decode says what is wrong with it.
    """
    with _opened(path) as picture:
        raw = str(picture.tile[0][3]) if picture.tile else ""
        if (picture.format, raw) != ("PNG", "RGB") or "exif" in picture.info or picture.is_animated:
            return None
        picture.fp.seek(-12, os.SEEK_END)
        if picture.fp.read() != _PNG_END:  # cut short: libpng would print a line of its own first
            return None
    data = np.fromfile(path, np.uint8)  # cv2.imread would crash on a name that is no Unicode
    array = cv2.imdecode(data, cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    return None if array is None else cv2.cvtColor(array, cv2.COLOR_BGR2RGB)


def image_size(path):
    """(height, width) of a picture, after EXIF, from the head of its file. UnusableFile."""
    with _opened(path) as picture:
        return _upright_size(picture, _orientation(picture))


def _upright_size(picture, turned):
    """(height, width) of a picture that is open."""
    size = picture.size
    if picture.format == "TIFF":  # whose size some versions of Pillow swap here, and others when it is loaded
        size, turned = (picture.tag_v2[256], picture.tag_v2[257]), picture.tag_v2.get(274, 1)
    return tuple(size) if 5 <= turned <= 8 else tuple(size[::-1])


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
