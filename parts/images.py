"""The pixels of one image file, upright, and in words what is wrong with a file that is damaged or not supported."""

import os
import re
import stat
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image, ImageOps, TiffImagePlugin
from PIL.ExifTags import Base as Tag

from parts.errors import UnusableFile, counted

LARGEST = 500_000_000  # pixels; one picture of that size fills 1.5 GB
SET_RANGE = 'IMAGE_RANGE = (low, high) or "auto" (--image-range) says which of its values become 0 and 255'
_AGAIN = "Fetch or export it again, or remove it"
_SAVE_SHALLOWER = f"Save it with 8 or 16 bits; {SET_RANGE}, if it is an image"
_REDUCED_OR_MASK = 0b101  # bits of a TIFF's NewSubfileType: a smaller copy of another page, or its transparency mask

Size = tuple[int, int]  # height, width
Range = tuple[float, float]  # what becomes 0, what becomes 255


@dataclass(frozen=True)
class Decoded:
    """The decoded picture of a file, upright, and what the file said about it."""

    picture: Image.Image  # decoded to its end
    format: str  # Pillow's name of the file format, such as "JPEG"
    raw: str  # how the file lays out a pixel, in Pillow's terms, such as "RGB;16B"
    size: Size  # upright, and not reduced by a draft
    frames: bool  # whether the file has more frames or pages
    turned: int  # EXIF's orientation, 1 to 8; 1 is upright
    page: int = 0


# ---- reading


def read_image(
    path: str | Path, size: Size | None = None, page: int = 0, value_range: Range | None = None
) -> np.ndarray:
    """The picture in a file, uint8 (H, W, 3) in RGB, upright, without transparency.

    size         (height, width) to resize to. Shrinking averages areas, enlarging is linear; a JPEG of four times the
                 size or more is decoded at a half, a quarter or an eighth, which is faster.
    page         the number of the page or frame
    value_range  (low, high): values of more than 8 bits become 0 ... 255 by it (`bytes_of`), see IMAGE_RANGE. Without
                 one, 16 bits keep their upper 8, and other depths are refused.

    UnusableFile: the file is damaged, not supported, or not there.
    """
    draft = None
    if size is not None:
        # 2n - 1, because a JPEG of 1918 columns is halved to 959, which is near enough to twice 480
        draft = (2 * size[0] - 1, 2 * size[1] - 1)
    decoded = decode(path, draft, page)
    pixels = None
    if value_range is not None:
        deep = _deep_values(decoded, path)
        if deep is not None:
            pixels = _three_channels(bytes_of(deep, value_range))
    if pixels is None:
        pixels = rgb(decoded.picture, path)
    if size is None:
        return pixels
    return resize_image(pixels, size)


def decode(path: str | Path, draft: Size | None = None, page: int = 0) -> Decoded:
    """The Decoded picture of a file's page. UnusableFile: it cannot be decoded to its end.

    draft: (height, width); a JPEG may be decoded at a half, a quarter or an eighth, if it stays as large as that
    """
    with _opened(path, page) as picture:
        turned = _orientation(picture)
        raw = _raw_layout(picture)
        size = _upright_size(picture, turned)
        frames = picture.format != "MPO" and getattr(picture, "is_animated", False)  # an MPO has previews
        _refuse_misread(picture)
        if draft and picture.format in ("JPEG", "MPO"):
            height, width = draft
            if turned >= 5:  # on its side
                height, width = width, height
            picture.draft(None, (width, height))
        if picture.format == "TIFF" and picture.tag_v2.get(Tag.Orientation, 1) > 4:
            picture.filename = ""  # else Pillow maps the file into memory at the turned size, which scrambles greys
        picture.load()
        upright = picture
        if turned > 1:
            picture.info.pop("exif", None)  # exif_transpose would write it anew, and fail where it is damaged
            upright = ImageOps.exif_transpose(picture)
        return Decoded(upright, picture.format or "", raw, size, frames, turned, picture.tell())


def image_size(path: str | Path, page: int = 0) -> Size:
    """(height, width) of a picture after EXIF's orientation, from the head of its file. UnusableFile."""
    with _opened(path, page) as picture:
        return _upright_size(picture, _orientation(picture))


def pages_of(path: str | Path) -> list[int] | None:
    """The numbers of a file's frames that are pictures of their own: [0], or its pages; None: it cannot be read.

    The previews in an MPO, the smaller copies and transparency masks in a TIFF and the layers of a PSD are none.
    """
    try:
        with _opened(path) as picture:
            if picture.format == "TIFF":
                return _tiff_pages(picture) or [0]
            if picture.format in ("AVIF", "GIF", "PNG", "WEBP"):
                return list(range(getattr(picture, "n_frames", 1)))
            return [0]
    except UnusableFile:
        return None


def _tiff_pages(picture: Any) -> list[int]:
    pages: list[int] = []
    page = 0
    while True:
        try:
            picture.seek(page)
        except EOFError:
            return pages
        except Exception:  # as where the rest is lost, which reading this page will say
            return [*pages, page]
        if not picture.tag_v2.get(Tag.NewSubfileType, 0) & _REDUCED_OR_MASK:
            pages.append(page)
        page += 1


@contextmanager
def _opened(path: str | Path, page: int = 0) -> Iterator[Any]:
    """The PIL picture in a file, at that page; whatever goes wrong inside becomes an UnusableFile."""
    # Both settings belong to the process and are made each time: changes for a while would mix up threads.
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
    except Exception as error:  # the decoders raise nearly every kind
        fault = None
        if isinstance(error, (Image.UnidentifiedImageError, SyntaxError)):
            fault = _odd_tiff(path, page)
        raise fault or _unusable(_with_page(path, page), error) from None


def _with_page(path: str | Path, page: int) -> str | Path:
    """A file as messages name it, with the page in brackets unless it is the first."""
    return f"{path}[{page}]" if page else path


def _raw_layout(picture: Any) -> str:
    """How a file lays out a pixel, in Pillow's terms, such as "RGB;16B"."""
    return str(picture.tile[0][3]) if picture.tile else ""


def _upright_size(picture: Any, turned: int) -> Size:
    """(height, width) of an open picture after its orientation `turned`."""
    width, height = picture.size
    if picture.format == "TIFF":  # some versions of Pillow swap its size here, others when it is loaded
        width, height = picture.tag_v2[Tag.ImageWidth], picture.tag_v2[Tag.ImageLength]
        turned = picture.tag_v2.get(Tag.Orientation, 1)
    if 5 <= turned <= 8:
        return width, height
    return height, width


def _orientation(picture: Any) -> int:
    """EXIF's orientation of an open picture that is still to be applied, 1 to 8; 1 is upright."""
    if picture.format == "TIFF":
        return 1  # Pillow applies it itself
    if picture.format == "PNG" and "exif" not in picture.info:
        return 1  # getexif would decode all of the picture to look for it
    try:
        turned = picture.getexif().get(Tag.Orientation)
    except Exception:  # damaged metadata is no reason to lose the picture; viewers show it as it is stored
        return 1
    return turned if turned in range(1, 9) else 1


# ---- what is refused


def _refuse_special(path: str | Path) -> None:
    """UnusableFile for what is no file with content."""
    state = os.stat(path)
    if stat.S_ISDIR(state.st_mode):
        raise UnusableFile(path, "is a folder", "Give a picture file")
    if not stat.S_ISREG(state.st_mode):  # opening a pipe would wait for ever
        raise UnusableFile(path, "is no ordinary file", "Replace it by a picture, or remove it")
    if state.st_size == 0:
        raise UnusableFile(path, "is empty (0 bytes)", _AGAIN)


def _refuse_misread(picture: Any) -> None:
    """UnusableFile for open pictures that Pillow would decode to wrong pixels without an error."""
    if picture.format in ("JPEG", "MPO"):
        _refuse_blank_end(picture)
    if picture.format == "BMP" and picture.mode == "1":
        stride = picture.tile[0][3][1]  # bytes in a row of the file; rows of 1 bit are filled up to 4 bytes
        if stride > (picture.size[0] + 31) // 32 * 4:
            problem = "is a BMP with a palette of black and white in more than 1 bit, which is not read right"
            raise UnusableFile(picture.filename, problem, "Save it as PNG")
    if picture.format == "TIFF":
        bits = picture.tag_v2.get(Tag.BitsPerSample, (1,))
        is_planar = picture.tag_v2.get(Tag.PlanarConfiguration) == 2
        if is_planar and len(bits) > 1 and max(bits) > 8:
            problem = "keeps each channel by itself (planar) with more than 8 bits, which is not read right"
            raise UnusableFile(picture.filename, problem, "Save it with its channels together (contiguous), or as PNG")


def _refuse_blank_end(picture: Any) -> None:
    """UnusableFile where zeros stand for the rest of a JPEG, as an interrupted download may leave them.

    libjpeg would decode them to grey without an error.
    """
    place = picture.fp.tell()
    size = picture.fp.seek(0, os.SEEK_END)
    picture.fp.seek(max(0, size - 4096))
    end = picture.fp.read()
    picture.fp.seek(place)
    content = end.rstrip(b"\0")
    if len(end) - len(content) > 64 and not content.endswith(b"\xff\xd9"):  # the marker of a JPEG's end
        raise UnusableFile(picture.filename, "ends in zeros, where the rest of the picture should be", _AGAIN)


def _unusable(path: str | Path, error: Exception) -> UnusableFile:
    """The UnusableFile for what Pillow or the operating system raised."""
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
    reason = str(error).strip().rstrip(".") or type(error).__name__
    return UnusableFile(path, f"is damaged or cut short ({reason})", _AGAIN)


def _odd_tiff(path: str | Path, page: int) -> UnusableFile | None:
    """The UnusableFile for a TIFF of a kind that Pillow does not read; None: it is no such file, or damaged."""
    try:
        tags = _tiff_tags(path, page)
        channels = tags.get(Tag.SamplesPerPixel, 1)
        bits = max(tags.get(Tag.BitsPerSample, (1,)))
        values = {2: "signed ", 3: "floating-point ", 5: "complex ", 6: "complex "}
        kind = values.get(tags.get(Tag.SampleFormat, (1,))[0], "")
        size = f"{tags[Tag.ImageLength]}x{tags[Tag.ImageWidth]}"
        colours, compression = tags.get(Tag.PhotometricInterpretation), tags.get(Tag.Compression, 1)
    except Exception:  # the tags themselves are damaged, or there are none
        return None
    problem = f"is a TIFF of {counted(channels, 'channel')} of {kind}{bits} bits, {size} (height x width)"
    cure = "Save it as grey or RGB with 8 or 16 bits, or as grey with floating-point values of 32 bits"
    if channels not in (1, 3, 4):
        cure = "Save one or three of its channels, those that show most, as grey or RGB with 8 or 16 bits"
    elif compression not in TiffImagePlugin.COMPRESSION_INFO:
        problem += f", compressed in an uncommon way ({compression})"
        cure = "Save it with LZW or without compression"
    elif colours not in (0, 1, 2, 3):  # greys from white or from black, RGB, palette
        problem += f", of colours of an uncommon kind (photometric interpretation {colours})"
    elif bits <= 16 and not kind:  # nothing is odd about it, so that it must be damaged
        return None
    return UnusableFile(_with_page(path, page), f"{problem}, which is not read", cure)


def _tiff_tags(path: str | Path, page: int) -> Any:
    """The tags of a TIFF's page by Pillow's reader of tags alone. ValueError: the file is no TIFF."""
    with open(path, "rb") as file:
        head = file.read(8)
        if head[:4] not in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
            raise ValueError
        is_big_tiff = b"+" in head[2:4]  # its head has 16 bytes
        if is_big_tiff:
            head += file.read(8)
        tags = TiffImagePlugin.ImageFileDirectory_v2(head)
        for _ in range(page + 1):
            file.seek(tags.next)
            tags.load(file)
    return tags


# ---- pixels in 8 bits and in more


def resize_image(array: np.ndarray, size: Size) -> np.ndarray:
    """`array` (H, W) or (H, W, C) at `size` = (height, width): areas are averaged, or it is enlarged linearly."""
    height, width = size
    if height < array.shape[0] or width < array.shape[1]:
        smaller = (min(width, array.shape[1]), min(height, array.shape[0]))
        array = cv2.resize(array, smaller, interpolation=cv2.INTER_AREA)
    if array.shape[:2] != (height, width):
        array = cv2.resize(array, (width, height), interpolation=cv2.INTER_LINEAR)
    return array


def rgb(picture: Image.Image, path: str | Path) -> np.ndarray:
    """The pixels of a PIL picture of any mode, uint8 (H, W, 3). UnusableFile: its values have no meaning in 8 bits."""
    if picture.mode.startswith("I"):
        grey = np.asarray(picture)
        if grey.min() < 0 or grey.max() > 65535:
            problem = f"has values from {grey.min():,} to {grey.max():,}, beyond the 0 to 65,535 of 16 bits"
            raise UnusableFile(path, problem, _SAVE_SHALLOWER)
        return _three_channels((grey // 256).astype(np.uint8))
    if picture.mode == "F":
        raise UnusableFile(path, "has floating-point pixels", _SAVE_SHALLOWER)
    try:
        if picture.mode in ("P", "PA") and "transparency" in picture.info:
            picture = picture.convert("RGBA")  # as Pillow asks for; the next step drops the transparency
        if picture.mode != "RGB":
            picture = picture.convert("RGB")
        return np.asarray(picture)
    except ValueError as error:
        raise UnusableFile(path, f"has pixels of a kind that cannot be shown ({error})", "Save it as RGB") from None


def pixels_of(decoded: Decoded, path: str | Path) -> np.ndarray:
    """The pixels of a Decoded in their own depth, (H, W, 3): uint8, uint16 or float32. UnusableFile."""
    deep = _deep_values(decoded, path)
    if deep is None:
        return rgb(decoded.picture, path)
    return _three_channels(deep)


def bytes_of(pixels: np.ndarray, value_range: Range) -> np.ndarray:
    """`pixels` as uint8: low ... high of `value_range` becomes 0 ... 255, what lies beyond it 0 or 255; uint8 stays."""
    if pixels.dtype == np.uint8:
        return pixels
    if pixels.dtype == np.uint16:  # through a table of all values
        return _stretched(np.arange(65536, dtype=np.float32), value_range)[pixels]
    return _stretched(pixels, value_range)


def _stretched(values: np.ndarray, value_range: Range) -> np.ndarray:
    low, high = value_range
    with np.errstate(over="ignore"):  # of values near the end of float32, which are beyond the range anyway
        scaled = (values - np.float32(low)) * np.float32(255 / (high - low))
    return np.rint(np.clip(scaled, 0, 255)).astype(np.uint8)


def may_be_deep(path: str | Path, page: int = 0) -> bool:
    """Whether the head of a file leaves it open that `depth_of` finds more than 8 bits. UnusableFile."""
    with _opened(path, page) as picture:
        return picture.mode[0] in "IF" or ";16" in _raw_layout(picture) or picture.format == "PPM"


def depth_of(decoded: Decoded, path: str | Path) -> dict[str, Any] | None:
    """What there is to know about the values of more than 8 bits, for IMAGE_RANGE; None: they have 8. UnusableFile.

    A dictionary that JSON takes. "bits": 16, 32 (whole numbers) or "float"; "lowest", "highest" of all values;
    "quantiles": 100 of a sixteenth of the values, one in the middle of each hundredth, so that 0.5 % are beyond the
    first and 0.5 % beyond the last.
    """
    deep = _deep_values(decoded, path)
    if deep is None:
        return None
    bits: int | str = 32
    if decoded.picture.mode == "F":
        bits = "float"
    elif deep.dtype == np.uint16:
        bits = 16
    middles = (np.arange(100) + 0.5) / 100
    return {
        "bits": bits,
        "lowest": deep.min().item(),
        "highest": deep.max().item(),
        "quantiles": np.quantile(deep[::4, ::4], middles, method="nearest").tolist(),
    }


def choose_value_range(quantiles: Sequence[Sequence[float]]) -> Range:
    """(low, high) that IMAGE_RANGE = "auto" stands for: all values but 0.5 % at either end.

    quantiles: those of each image, by `depth_of`. Where all but 0.5 % are one value, it is their minimum and maximum.
    """
    pooled = np.concatenate([np.asarray(of_image, float) for of_image in quantiles])
    low, high = np.percentile(pooled, (0.5, 99.5)).tolist()
    if low == high:
        low, high = pooled.min().item(), pooled.max().item()
    if low == high:
        high = low + 1
    return low, high


def _three_channels(array: np.ndarray) -> np.ndarray:
    """Greys (H, W) as (H, W, 3); colours stay as they are."""
    if array.ndim == 3:
        return array
    return np.repeat(array[..., None], 3, axis=2)


def _deep_values(decoded: Decoded, path: str | Path) -> np.ndarray | None:
    """The values of a Decoded of more than 8 bits: uint16 or float32, (H, W) of greys or (H, W, 3); None: it has 8."""
    picture = decoded.picture
    if picture.mode.startswith("I"):
        grey = np.asarray(picture)
        if "I;32" in decoded.raw and "S" not in decoded.raw:  # without a sign, for which Pillow has no mode
            grey = grey.view(np.uint32)
        if grey.min() >= 0 and grey.max() <= 65535:
            return grey.astype(np.uint16)
        return grey.astype(np.float32)
    if picture.mode == "F":
        grey = np.asarray(picture)
        finite = np.isfinite(grey)
        if not finite.all():
            problem = f"has {grey.size - np.count_nonzero(finite):,} pixels that are no numbers (NaN, or infinite)"
            raise UnusableFile(path, problem, "Give them a value, such as the least of the others")
        return grey
    if decoded.format == "PPM":
        white = re.search(r"'RGB', (\d+)", decoded.raw)  # each file chooses which value is white
        if white and int(white[1]) > 255:
            return _deep_colours(decoded, path, int(white[1]))
    if re.search(r"(RGB\w*|LA);16", decoded.raw):
        return _deep_colours(decoded, path)
    return None


def _deep_colours(decoded: Decoded, path: str | Path, white: int = 65535) -> np.ndarray:
    """Colours of 16 bits, uint16 (H, W, 3), by OpenCV, because Pillow keeps the upper 8 alone. UnusableFile.

    `white` becomes 65,535, as it does where Pillow reads greys.
    """
    array = _by_opencv(path, decoded.page)
    if array is not None and array.dtype == np.uint16 and array.ndim == 3 and array.shape[2] > 2:
        array = np.ascontiguousarray(_upright(array[..., 2::-1], decoded.turned))  # BGR or BGRA to RGB
        if white < 65535:
            array = np.rint(array * (65535 / white)).astype(np.uint16)
        upper = np.asarray(decoded.picture.convert("RGB"))
        # Both libraries must see the same picture; in PPM Pillow rounds.
        if array.shape == upper.shape and cv2.absdiff((array >> 8).astype(np.uint8), upper).max() <= 1:
            return array
    problem = "has 16 bits in several channels, laid out in an uncommon way"
    raise UnusableFile(path, problem, "Save it as PNG of 16 bits")


def _by_opencv(path: str | Path, page: int) -> np.ndarray | None:
    """What OpenCV decodes of a file's page, as it is stored; None: nothing."""
    with suppress(AttributeError):  # of older versions; it is the process's own, and set each time, as in _opened
        cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)  # remarks on odd tags
    if page == 0:
        return cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_UNCHANGED)
    _, pages = cv2.imreadmulti(os.fspath(path), start=page, count=1, flags=cv2.IMREAD_UNCHANGED)
    return pages[0] if pages else None


def _upright(array: np.ndarray, turned: int) -> np.ndarray:
    """`array` (H, W, C) by EXIF's orientation; that of a TIFF is 1 here, because OpenCV applies it as Pillow does."""
    if turned in (5, 6, 7, 8):
        array = array.transpose(1, 0, 2)
    if turned in (3, 4, 7, 8):
        array = array[::-1]
    if turned in (2, 3, 6, 7):
        array = array[:, ::-1]
    return array
