"""The pixels of one image file, upright, and what of a damaged or unsupported file is refused in words."""

import os
import re
import stat
import warnings
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import cv2
import numpy as np
from PIL import Image, ImageOps, TiffImagePlugin

from parts.errors import UnusableFile, counted

LARGEST = 500_000_000  # pixels; one picture of that size fills 1.5 GB
SET_RANGE = 'IMAGE_RANGE = (low, high) or "auto" (--image-range) says which of its values become 0 and 255'
_AGAIN = "Fetch or export it again, or remove it"


def read_image(path, size=None, page=0, value_range=None):
    """The picture in a file (that frame of it), uint8 (H, W, 3) in RGB, upright, at `size` = (height, width) if given.

    With a `value_range` = (low, high), see IMAGE_RANGE, values of more than 8 bits become 0 ... 255 by it (`bytes_of`);
    without one, 16 bits keep their upper 8, and others are refused. Transparency is dropped. Shrinking averages
    areas (a JPEG of four times the size or more halves itself first), enlarging is linear. UnusableFile.
    """
    # 2n - 1, because a JPEG of 1918 columns halves to 959, which is near enough to twice 480
    decoded = decode(path, size and (2 * size[0] - 1, 2 * size[1] - 1), page)
    deep = None if value_range is None else _deep(decoded, path)
    array = rgb(decoded.picture, path) if deep is None else _three_channels(bytes_of(deep, value_range))
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
    what = f"is a TIFF of {counted(channels, 'channel')} of {values}{bits} bits, {size} (height x width)"
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


def pixels_of(decoded, path):
    """The pixels of a Decoded in their own depth, (H, W, 3): uint8, uint16 or float32. UnusableFile."""
    deep = _deep(decoded, path)
    return rgb(decoded.picture, path) if deep is None else _three_channels(deep)


def bytes_of(pixels, value_range):
    """uint8 of `pixels`: low ... high of `value_range` becomes 0 ... 255, what lies beyond it 0 or 255; uint8 stays."""
    if pixels.dtype == np.uint8:
        return pixels
    if pixels.dtype == np.uint16:
        return _stretched(np.arange(65536, dtype=np.float32), value_range)[pixels]
    return _stretched(pixels, value_range)


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


def choose_value_range(quantiles):
    """(low, high), what IMAGE_RANGE = "auto" stands for: all values but 0.5 % at either end.

    `quantiles`: a list for each image, by `depth_of`. Where that leaves one value, the least and the most of them.
    """
    pooled = np.concatenate([np.asarray(some, float) for some in quantiles])
    low, high = np.percentile(pooled, (0.5, 99.5)).tolist()
    if low == high:
        low, high = pooled.min().item(), pooled.max().item()
    return low, (high if high > low else low + 1)


def _stretched(values, value_range):
    low, high = value_range
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
