"""The pixels of one image file, upright, and in words what is wrong with a file that is damaged or not supported."""

import math
import os
import re
import stat
import threading
import warnings
import zlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image, TiffImagePlugin
from PIL.ExifTags import Base as Tag

from parts import bands
from parts.errors import UnusableFile, UserError, counted, printable, within_memory
from parts.spec import STRETCH

LARGEST = 500_000_000  # pixels; one picture of that size fills 1.5 GB
SET_RANGE = 'IMAGE_RANGE = (low, high) or "auto" (--image-range) says which of its values become 0 and 255'
_AGAIN = "Fetch or export it again, or remove it"
_SAVE_SHALLOWER = f"Save it with 8 or 16 bits; {SET_RANGE}, if it is an image"
_LONGEST_WEBP = 16383  # pixels of a side; the head of an animation may say more, all of which memory would be taken for
GDAL_NODATA = 42113  # a TIFF's tag
FAR_OFF = 2  # times the distance between all other values: a value that is as far from them is none of them
_NO_MEASURE = 9e36  # what is farther from 0 marks no data: the ends of float32, and what netCDF fills with
_REDUCED_OR_MASK = 0b101  # bits of a TIFF's NewSubfileType: a smaller copy of another page, or its transparency mask

# Only these of Pillow's decoders are open to a file, those of names.SUFFIXES and TGA's: others start programs (EPS), or
# are hardly used and hardly tested.
_FORMATS = ["JPEG", "PNG", "TIFF", "GIF", "BMP", "PPM", "WEBP"]
if find_spec("PIL.AvifImagePlugin"):  # which older versions of Pillow lack
    _FORMATS.append("AVIF")

_ENDS = {"JPEG": b"\xff\xd9", "MPO": b"\xff\xd9", "GIF": b";", "WEBP": None}  # what compressed files end with
_MARKS = (b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # of the commonest of them

# Pictures of kinds that are not read and that people have: (place, what files have there, what they are).
_OTHER_KINDS = (
    (0, b"%!PS", "an EPS picture"),
    (0, b"8BPS", "a PSD picture"),
    (0, b"\0\0\0\x0cjP  ", "a JPEG 2000 picture"),
    (0, b"\xff\x4f\xff\x51", "a JPEG 2000 picture"),
    (4, b"ftyphei", "a HEIC picture"),
)

# What EXIF's orientations are undone by
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# Of the files of several pages that a thread has read last, so many stay open, such as those of an image and its masks.
# Files of larger pages do not, because each holds a page in memory.
_MOST_OPEN = 4
_LARGEST_OPEN = 16_000_000  # pixels

RGB = 3  # CHANNELS of what nearly all datasets hold

ImageFiles = str | Path | Sequence[Path]  # the file of an image, or several, whose channels follow each other
Size = tuple[int, int]  # height, width
Range = tuple[float, float]  # what becomes 0, what becomes 255


@dataclass(frozen=True)
class Head:
    """What a file says about one of its pages, before that is decoded."""

    format: str  # Pillow's name of the file format, such as "JPEG"
    mode: str  # Pillow's, such as "RGB"
    raw: str  # how the file lays out a pixel, in Pillow's terms, such as "RGB;16B"
    size: Size  # upright, and not reduced by a draft
    frames: bool  # whether the file has more frames or pages
    turned: int  # EXIF's orientation, 1 to 8; 1 is upright
    page: int
    nodata: float | None  # the value that stands for pixels without one, by the tag of a GeoTIFF

    @classmethod
    def of(cls, picture: Any) -> "Head":
        """The head of the page at which an open picture is, which is not decoded yet."""
        turned = _orientation(picture)
        return cls(
            format=picture.format or "",
            mode=picture.mode,
            raw=str(picture.tile[0][3]) if picture.tile else "",
            size=_upright_size(picture, turned),
            frames=picture.format != "MPO" and getattr(picture, "is_animated", False),  # an MPO has previews
            turned=turned,
            page=picture.tell(),
            nodata=_nodata_of(picture.tag_v2) if picture.format == "TIFF" else None,
        )


@dataclass(frozen=True)
class Decoded(Head):
    """The decoded picture of a file's page, upright, and what the file said about it."""

    picture: Image.Image  # decoded to its end; its mode may differ from what the head says

    @property
    def decoded_mode(self) -> str:
        """The mode of what has been decoded."""
        return self.picture.mode


@dataclass(frozen=True)
class Bands(Head):
    """The values of a file's page that is read without Pillow, because of its channels (parts/bands.py)."""

    values: np.ndarray  # (H, W, C), upright: uint8, uint16 or float32

    @property
    def decoded_mode(self) -> str:
        """The number of channels and the type of their values in the file, such as "7 x float32"."""
        return self.mode


# ---- reading


def read_image(
    files: ImageFiles,
    size: Size | None = None,
    page: int = 0,
    value_range: Range | None = None,
    channels: int | None = RGB,
) -> np.ndarray:
    """The picture in a file, uint8 (H, W, channels), upright; three channels are RGB, without transparency.

    files        the file, or several, whose channels follow each other
    size         (height, width) to resize to. Shrinking averages areas, enlarging is linear; a JPEG of four times the
                 size or more is decoded at a half, a quarter or an eighth, which is faster.
    page         the number of the page or frame
    value_range  (low, high): values of more than 8 bits become 0 ... 255 by it (`bytes_of`), see IMAGE_RANGE. Without
                 one, 16 bits keep their upper 8, and other depths are refused.
    channels     as CHANNELS says; greys become RGB, and RGB of equal channels becomes grey; None: what the file has

    UnusableFile: the file is damaged, not supported, not there, or of other channels.
    """
    decoded = decode_image(files, draft_size(size), page, channels)
    return as_bytes(decoded, _first_of(files), size, value_range, channels)


def _first_of(files: ImageFiles) -> str | Path:
    return files if isinstance(files, (str, Path)) else files[0]


def draft_size(size: Size | None) -> Size | None:
    """The size that `decode` is asked for where an image is to be resized to `size`."""
    if size is None:
        return None
    # 2n - 1, because a JPEG of 1918 columns is halved to 959, which is near enough to twice 480
    return 2 * size[0] - 1, 2 * size[1] - 1


def as_bytes(
    decoded: Decoded | Bands,
    path: str | Path,
    size: Size | None = None,
    value_range: Range | None = None,
    channels: int | None = RGB,
) -> np.ndarray:
    """What `read_image` gives of a Decoded. UnusableFile."""
    if value_range is not None:
        pixels = bytes_of(pixels_of(decoded, path, channels), value_range)
    else:
        pixels = _with_channels(_shallow_values(decoded, path, channels), channels, path)
    return pixels if size is None else resize_image(pixels, size)


def decode_image(
    files: ImageFiles, draft: Size | None = None, page: int = 0, channels: int | None = RGB
) -> Decoded | Bands:
    """The decoded image of a file's page, of any kind; `channels` None: as many as the file has. UnusableFile.

    files: the file, or several, whose channels follow each other
    draft: as of `decode`
    """
    path = _first_of(files)
    if not isinstance(files, (str, Path)) and len(files) > 1:
        return _united(files, page, channels)
    if not _holds_bands(path, page, channels):
        return decode(path, draft, page)
    with _in_words(path, page):
        _refuse_special(path)
        head = _head_of_bands(path, page)
        values = _values_of_bands(path, head)
        upright = np.ascontiguousarray(_upright(bands.plain_values(values, path), head.turned))
        return Bands(**vars(head), values=upright)


def _united(files: Sequence[Path], page: int, channels: int | None) -> Bands:
    """The channels of several files, one after another. UnusableFile: one is, or they do not fit each other."""
    first = decode_image(files[0], None, page, None)
    values: list[np.ndarray] = []
    for file in files:
        pixels = pixels_of(decode_image(file, None, page, None), file, None)
        if values and (pixels.shape[:2] != values[0].shape[:2] or pixels.dtype != values[0].dtype):
            own, others = ("{}x{} of {}".format(*array.shape[:2], array.dtype) for array in (pixels, values[0]))
            cure = "Give all files of an image one size and one depth"
            raise UnusableFile(file, f"is {own}, and {printable(files[0])} is {others}", cure)
        values.append(pixels)
    united = np.concatenate(values, axis=2)
    count = united.shape[2]
    if channels not in (None, count):
        problem = f"and {counted(len(files) - 1, 'file')} after it make {counted(count, 'channel')} of one image"
        raise UnusableFile(files[0], f"{problem}, and CHANNELS = {channels}", "Give all that it needs, and no others")
    kinds = f"{counted(len(files), 'file')} of {first.format}"
    head = {name: getattr(first, name) for name in Head.__dataclass_fields__}
    return Bands(**head | dict(format=kinds, mode=f"{count} x {united.dtype}", frames=False, turned=1), values=united)


def decode(path: str | Path, draft: Size | None = None, page: int = 0) -> Decoded:
    """The Decoded picture of a file's page. UnusableFile: it cannot be decoded to its end.

    draft: (height, width); a JPEG may be decoded at a half, a quarter or an eighth, if it stays as large as that
    """
    with _opened(path, page) as file:
        picture, head = file.picture, file.head
        file.refuse_misread()
        if draft and head.format in ("JPEG", "MPO"):
            height, width = draft
            if head.turned >= 5:  # on its side
                height, width = width, height
            picture.draft(None, (width, height))
        if head.format == "TIFF" and picture.tag_v2.get(Tag.Orientation, 1) > 4:
            picture.filename = ""  # else Pillow maps the file into memory at the turned size, which scrambles greys
        picture.load()
        upright = picture
        if head.turned > 1:
            upright = picture.transpose(_TURNS[head.turned])
        elif file.stays_open:  # and goes on to other pages
            upright = picture.copy()
        return Decoded(**vars(head), picture=upright)


def head_of(path: str | Path, page: int = 0) -> Head:
    """What a file says about a page, which is not decoded. UnusableFile."""
    if _holds_bands(path, page):
        with _in_words(path, page):
            _refuse_special(path)
            return _head_of_bands(path, page)
    with _opened(path, page) as file:
        return file.head


def image_size(path: str | Path, page: int = 0) -> Size:
    """(height, width) of a picture after EXIF's orientation, from the head of its file. UnusableFile."""
    return head_of(path, page).size


def pages_of(path: str | Path, channels: object = RGB) -> list[int] | None:
    """The numbers of a file's frames that are pictures of their own: [0], or its pages; None: it cannot be read.

    Pages that are the channels of a picture, as ImageJ writes composites, are one where CHANNELS asks for them. The
    previews in an MPO, the smaller copies and transparency masks in a TIFF and the layers of a PSD are none.
    """
    try:
        if _holds_bands(path):
            return _pages_of_bands(path, channels)
        with _opened(path) as file:
            if file.head.format == "TIFF":
                return _tiff_pages(path)
            if file.head.format in ("AVIF", "GIF", "PNG", "WEBP"):
                return list(range(getattr(file.picture, "n_frames", 1)))
            return [0]
    except UnusableFile:
        return None


def _tiff_pages(path: str | Path) -> list[int]:
    """The numbers of a TIFF's pages that are pictures of their own. Any exception: it is damaged."""
    kinds = [tags.get(Tag.NewSubfileType, 0) for tags in _tiff_directories(path)]
    return [page for page, kind in enumerate(kinds) if not kind & _REDUCED_OR_MASK] or [0]


# ---- open files


class _OpenFile:
    """An open file at one of its pages. Turned to the next page, it goes on from there.

    To reach a page of a GIF all pages before it must be decoded, and those of a TIFF be found one after another.
    """

    def __init__(self, path: str | Path) -> None:
        self._files = ExitStack()
        self.path = path
        self.picture = self._files.enter_context(_open(path))
        self.head = Head.of(self.picture)
        self._is_checked = False

    @property
    def stays_open(self) -> bool:
        """Whether other pages may be asked for, and memory allows to wait for them."""
        height, width = self.head.size
        return self.head.frames and height * width <= _LARGEST_OPEN

    def turn_to(self, page: int) -> None:
        """Goes to a page; to an earlier one from the beginning again, as animated PNGs go forwards alone."""
        if page < self.head.page:
            self._files.close()
            self.picture = self._files.enter_context(_open(self.path))
        if page != self.head.page:
            self.picture.seek(page)
            self.head = Head.of(self.picture)

    def refuse_misread(self) -> None:
        """UnusableFile for a page that Pillow would decode to wrong pixels without an error."""
        _refuse_misread(self.picture, _with_page(self.path, self.head.page))
        if not self._is_checked:
            _refuse_damaged(self.path, self.head.format)
            self._is_checked = True

    def close(self) -> None:
        """Closes the file; what has been decoded stays."""
        self._files.close()


_open_files = threading.local()


def _waiting() -> dict[tuple, _OpenFile]:
    """The files that this thread has left open, by what they were then, the last one last."""
    if getattr(_open_files, "process", None) != os.getpid():  # a forked process would share the place in its parent's
        _open_files.process, _open_files.files = os.getpid(), {}
    return _open_files.files


@contextmanager
def _opened(path: str | Path, page: int = 0) -> Iterator[_OpenFile]:
    """A file, open at that page; whatever goes wrong inside becomes an UnusableFile.

    One of several pages stays open for this thread's next call, which goes on from there.
    """
    # Both settings belong to the process and are made each time: changes for a while would mix up threads.
    warnings.filterwarnings("ignore", module=r"PIL\.")  # remarks on odd metadata; what matters raises
    Image.MAX_IMAGE_PIXELS = LARGEST // 2  # Pillow refuses twice this
    with _in_words(path, page):
        state = _refuse_special(path)
        key = (str(path), state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns)
        with ExitStack() as at_end:
            file = _waiting().pop(key, None) or _OpenFile(path)
            at_end.callback(file.close)
            file.turn_to(page)
            yield file
            if file.stays_open:
                at_end.pop_all()
                _waiting()[key] = file
        if len(_waiting()) > _MOST_OPEN:
            _waiting().pop(next(iter(_waiting()))).close()


@contextmanager
def _in_words(path: str | Path, page: int) -> Iterator[None]:
    """Whatever goes wrong with a file inside becomes an UnusableFile."""
    try:
        with within_memory(_with_page(path, page)):
            yield
    except UnusableFile:
        raise
    except Exception as error:  # the decoders raise nearly every kind
        fault = None
        if isinstance(error, (Image.UnidentifiedImageError, SyntaxError)):
            fault = _odd_tiff(path, page)
        raise fault or _unusable(_with_page(path, page), error) from None


def _open(path: str | Path) -> Any:
    """The PIL picture in a file, at its first page. UnusableFile: it is of a kind that is not read."""
    try:
        return Image.open(path, formats=_FORMATS)
    except Image.UnidentifiedImageError:
        kind = other_kind(path)
        if kind:
            raise UnusableFile(path, f"is {kind}, which is not read", "Save it as PNG or TIFF") from None
        if Path(path).suffix.lower() != ".tga":  # which has no mark, so that its decoder takes others for its own
            raise
        return Image.open(path, formats=["TGA"])


def other_kind(path: str | Path) -> str | None:
    """What a file is, by its content, if it is a picture of a kind that is not read; None: it is something else."""
    start = _start_of(path)
    return next((kind for place, mark, kind in _OTHER_KINDS if start.startswith(mark, place)), None)


def _start_of(path: str | Path) -> bytes:
    """The first bytes of a file, all in which the kinds of pictures differ; none of a file that cannot be read."""
    with suppress(OSError), open(path, "rb") as file:
        return file.read(12)
    return b""


def _with_page(path: str | Path, page: int) -> str | Path:
    """A file as messages name it, with the page in brackets unless it is the first."""
    return f"{path}[{page}]" if page else path


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


def _nodata_of(tags: Any) -> float | None:
    """The value that a TIFF's tag of GDAL's declares to stand for no data; None: there is none, or it is NaN."""
    with suppress(TypeError, ValueError):  # the tag is damaged
        value = float(tags.get(GDAL_NODATA, "nan"))
        return value if math.isfinite(value) else None
    return None


# ---- files of bands


def _holds_bands(path: str | Path, page: int = 0, channels: int | None = None) -> bool:
    """Whether a file is read without Pillow: a .npy file, or a TIFF of channels that Pillow does not read right.

    Where RGB is wanted (`channels`), TIFFs of other channels are left to Pillow, which drops alpha or refuses.
    """
    suffix = os.path.splitext(path)[1].lower()
    if suffix not in (".tif", ".tiff"):
        return suffix == bands.NPY
    try:
        tags = _tiff_tags(path, page)
        samples, bits = int(tags.get(Tag.SamplesPerPixel, 1)), int(max(tags.get(Tag.BitsPerSample, (1,))))
        has_whole_numbers = tags.get(Tag.SampleFormat, (1,))[0] == 1
        colours, is_planar = tags.get(Tag.PhotometricInterpretation, 1), tags.get(Tag.PlanarConfiguration) == 2
    except Exception:  # the tags are damaged, or there are none, which Pillow says
        return False
    if channels not in (1, RGB) and page == 0 and _channel_pages(tags) > 1:
        return True
    if samples == 1 or colours not in (1, 2) or (channels == RGB and samples != RGB):  # greys from black, RGB
        return False
    is_plain = has_whole_numbers and bits <= 16 and not (is_planar and bits > 8)
    return samples != RGB or colours == 1 or not is_plain


def _head_of_bands(path: str | Path, page: int) -> Head:
    """The head of a file of bands. Any exception: it is damaged."""
    if os.path.splitext(path)[1].lower() == bands.NPY:
        array = bands.stored_array(path)
        height, width, count = array.shape
        kind, name, turned, frames, nodata = array.dtype.name, "NPY", 1, False, None
    else:
        tags = _tiff_tags(path, page)
        _refuse_missing_rows(tags, _with_page(path, page))
        height, width = tags[Tag.ImageLength], tags[Tag.ImageWidth]
        count, turned = tags.get(Tag.SamplesPerPixel, 1), tags.get(Tag.Orientation, 1)
        numbers = {1: "uint", 2: "int", 3: "float"}.get(tags.get(Tag.SampleFormat, (1,))[0], "other")
        kind, name = f"{numbers}{max(tags.get(Tag.BitsPerSample, (1,)))}", "TIFF"
        frames, nodata = page > 0 or bool(tags.next), _nodata_of(tags)
        if (pages := _channel_pages(tags)) > 1:
            count, frames = pages, False
    if height * width > LARGEST:
        raise Image.DecompressionBombError
    size = (width, height) if turned >= 5 else (height, width)
    return Head(name, f"{count} x {kind}", kind, size, frames, turned, page, nodata)


def _values_of_bands(path: str | Path, head: Head) -> np.ndarray:
    """The values of a file of bands as they are stored, (H, W, C). Any exception: it is damaged."""
    if head.format == "NPY":
        return np.array(bands.stored_array(path))
    pages = range(head.page, head.page + _channel_pages(_tiff_tags(path, head.page)))
    return np.concatenate([bands.tiff_values(path, page) for page in pages], axis=2)


def _channel_pages(tags: Any) -> int:
    """How many pages of a TIFF, from the one with these tags on, are the channels of one picture: ImageJ's composites.

    Those of three are pages still: CHANNELS = 3 asks for nothing else than RGB.
    """
    text = str(tags.get(Tag.ImageDescription, ""))
    if not text.startswith("ImageJ=") or tags.get(Tag.SamplesPerPixel, 1) > 1:
        return 1
    numbers = dict(re.findall(r"^(images|channels)=(\d+)$", text, re.MULTILINE))
    channels = int(numbers.get("channels", 1))
    is_composite = int(numbers.get("images", 1)) == channels != RGB  # else it has depths or times as well
    return channels if is_composite else 1


def _pages_of_bands(path: str | Path, channels: object) -> list[int] | None:
    """As pages_of."""
    with _in_words(path, 0):
        head = _head_of_bands(path, 0)
        if head.format == "NPY" or (channels not in (1, RGB) and not head.frames):
            return [0]
        return _tiff_pages(path)


# ---- what is refused


def _refuse_special(path: str | Path) -> os.stat_result:
    """What the system says about a file. UnusableFile for what is no file with content."""
    state = os.stat(path)
    if stat.S_ISDIR(state.st_mode):
        raise UnusableFile(path, "is a folder", "Give a picture file")
    if not stat.S_ISREG(state.st_mode):  # opening a pipe would wait for ever
        raise UnusableFile(path, "is no ordinary file", "Replace it by a picture, or remove it")
    if state.st_size == 0:
        raise UnusableFile(path, "is empty (0 bytes)", _AGAIN)
    return state


def _refuse_misread(picture: Any, path: str | Path) -> None:
    """UnusableFile for open pictures that Pillow would decode to wrong pixels without an error."""
    if picture.format == "WEBP" and max(picture.size) > _LONGEST_WEBP:
        problem = "is damaged (by its head it is {1}x{0}, larger than a WebP can be)".format(*picture.size)
        raise UnusableFile(path, problem, _AGAIN)
    if picture.format == "BMP" and picture.mode == "1":
        stride = picture.tile[0][3][1]  # bytes in a row of the file; rows of 1 bit are filled up to 4 bytes
        if stride > (picture.size[0] + 31) // 32 * 4:
            problem = "is a BMP with a palette of black and white in more than 1 bit, which is not read right"
            raise UnusableFile(path, problem, "Save it as PNG")
    if picture.format == "TIFF":
        _refuse_missing_rows(picture.tag_v2, path)
        bits = picture.tag_v2.get(Tag.BitsPerSample, (1,))
        is_planar = picture.tag_v2.get(Tag.PlanarConfiguration) == 2
        if is_planar and len(bits) > 1 and max(bits) > 8:
            problem = "keeps each channel by itself (planar) with more than 8 bits, which is not read right"
            raise UnusableFile(path, problem, "Save it with its channels together (contiguous), or as PNG")


def _refuse_missing_rows(tags: Any, path: str | Path) -> None:
    """UnusableFile where a TIFF's page holds fewer rows than its head says: Pillow would fill up with black.

    The rows stand in strips, one below another, or in tiles, of which several lie side by side.
    """
    height, width = tags[Tag.ImageLength], tags[Tag.ImageWidth]
    channels, bits = tags.get(Tag.SamplesPerPixel, 1), tags.get(Tag.BitsPerSample, (1,))
    places, lengths = tags.get(Tag.StripOffsets), tags.get(Tag.StripByteCounts)
    rows, columns = min(height, tags.get(Tag.RowsPerStrip, height)), width
    if Tag.TileOffsets in tags:
        places, lengths = tags[Tag.TileOffsets], tags.get(Tag.TileByteCounts)
        rows, columns = tags[Tag.TileLength], tags[Tag.TileWidth]
    if places is None:  # some old ones keep a JPEG instead
        return
    needed = -(-height // rows) * -(-width // columns)
    if tags.get(Tag.PlanarConfiguration) == 2:
        needed *= channels
    is_short = len(places) < needed
    if lengths and tags.get(Tag.Compression, 1) == 1 and tags.get(Tag.PhotometricInterpretation) != 6:
        # Without compression as many bytes as pixels need; 6 is YCbCr, whose colours may have fewer pixels.
        least = height * (width * channels * sum(bits) // len(bits) // 8)
        is_short = is_short or 0 < sum(lengths) < least  # some programs write no lengths, but 0
    if is_short:
        raise UnusableFile(path, f"is damaged or cut short (it holds fewer than the {height:,} rows it should)", _AGAIN)


def _refuse_damaged(path: str | Path, kind: str) -> None:
    """UnusableFile for a file, of one of Pillow's formats, whose damages Pillow would read without an error."""
    if kind == "PNG":
        _refuse_wrong_checksums(path)
    if kind in _ENDS:
        _refuse_blank_end(path, _ENDS[kind])
    if kind == "GIF":
        _refuse_cut_blocks(path)


def _refuse_wrong_checksums(path: str | Path) -> None:
    """UnusableFile where the checksum of a PNG's chunk is not that of its content: Pillow does not look at all of them.

    A chunk is its length, its kind, the content, and CRC-32 of kind and content.
    """
    with open(path, "rb") as file:
        file.seek(8)  # the mark of a PNG
        kind = b""
        while kind != b"IEND":
            length, kind = file.read(4), file.read(4)
            if not length:  # the mark of the end is missing, which no pixel needs
                return
            left, checksum = int.from_bytes(length, "big"), zlib.crc32(kind)
            while left > 0 and (content := file.read(min(left, 1 << 20))):
                checksum = zlib.crc32(content, checksum)
                left -= len(content)
            if left or file.read(4) != checksum.to_bytes(4, "big"):
                raise UnusableFile(path, "is damaged or cut short (a checksum does not fit its content)", _AGAIN)


def _refuse_cut_blocks(path: str | Path) -> None:
    """UnusableFile where a GIF ends within a block: Pillow would give the frames before, as if there were no others.

    A block is its mark, for a frame its size and perhaps a palette, and pieces of up to 255 bytes, of which an empty
    one is the last. That the mark of the file's end is missing does no harm, and is common.
    """
    data = Path(path).read_bytes()
    place = 13 + _palette_bytes(data[10])
    try:
        while data[place : place + 1] in (b"!", b","):
            place += 2 if data[place : place + 1] == b"!" else 11 + _palette_bytes(data[place + 9])
            while data[place]:
                place += 1 + data[place]
            place += 1
    except IndexError:
        raise UnusableFile(path, "is damaged or cut short (it ends within a block)", _AGAIN) from None


def _palette_bytes(flags: int) -> int:
    """The bytes of a GIF's palette, by the flags that stand before it."""
    return 3 << (flags & 7) + 1 if flags & 128 else 0


def _refuse_blank_end(path: str | Path, mark: bytes | None) -> None:
    """UnusableFile where zeros stand for the rest of a compressed picture, as an interrupted download may leave them.

    Decoders make grey of them, or leave frames out, without an error. `mark`: what a file of this kind ends with.
    """
    with open(path, "rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - 4096))
        end = file.read()
    content = end.rstrip(b"\0")
    if len(end) - len(content) > 64 and not (mark and content.endswith(mark)):
        raise UnusableFile(path, "ends in zeros, where the rest of the picture should be", _AGAIN)


def _unusable(path: str | Path, error: Exception) -> UnusableFile:
    """The UnusableFile for what Pillow or the operating system raised."""
    if "\0" in str(path):
        return UnusableFile(path, "is no name of a file, because it holds the character NUL", "Check its name")
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
    reason = str(error).strip().rstrip(".") or type(error).__name__
    if isinstance(error, Image.UnidentifiedImageError):
        if not _start_of(path).startswith(_MARKS):
            return UnusableFile(path, "is no picture of a kind that is read, whatever its name says", _AGAIN)
        reason = "its head cannot be read"
    return UnusableFile(path, f"is damaged or cut short ({reason})", _AGAIN)


def _odd_tiff(path: str | Path, page: int) -> UnusableFile | None:
    """The UnusableFile for a TIFF of a kind that Pillow does not read; None: it is no such file, or damaged."""
    try:
        tags = _tiff_tags(path, page)
        channels = int(tags.get(Tag.SamplesPerPixel, 1))  # an odd tag may hold bytes
        bits = int(max(tags.get(Tag.BitsPerSample, (1,))))
        values = {2: "signed ", 3: "floating-point ", 5: "complex ", 6: "complex "}
        kind = values.get(tags.get(Tag.SampleFormat, (1,))[0], "")
        size = f"{tags[Tag.ImageLength]}x{tags[Tag.ImageWidth]}"
        colours, compression = tags.get(Tag.PhotometricInterpretation), tags.get(Tag.Compression, 1)
    except Exception:  # the tags themselves are damaged, or there are none
        return None
    is_packed = compression not in TiffImagePlugin.COMPRESSION_INFO
    if channels in (1, 3) and not kind and bits <= 16 and not is_packed and colours in (0, 1, 2, 3):
        return None  # nothing is odd about it (grey from white or black, RGB, a palette), so that it must be damaged
    problem = f"is a TIFF of {counted(channels, 'channel')} of {kind}{bits} bits, {size} (height x width)"
    if is_packed or colours not in (0, 1, 2, 3):
        problem += f", of compression {compression} and photometric interpretation {colours}"
    cure = "Save it as grey or RGB with 8 or 16 bits, or as grey with floating-point values of 32 bits, by LZW"
    if channels not in (1, 3):
        cure = f"Set CHANNELS = {channels} (--channels {channels}), or save one or three of them as grey or RGB"
    return UnusableFile(_with_page(path, page), f"{problem}, which is not read", cure)


def _tiff_tags(path: str | Path, page: int) -> Any:
    """The tags of a TIFF's page by Pillow's reader of tags alone. ValueError: it is no TIFF, or has fewer pages."""
    for number, tags in enumerate(_tiff_directories(path)):
        if number == page:
            return tags
    raise ValueError(f"it has no page {page}")


def _tiff_directories(path: str | Path) -> Iterator[Any]:
    """The tags of a TIFF's pages, one after another. ValueError: the file is no TIFF."""
    with open(path, "rb") as file:
        head = file.read(8)
        if head[:4] not in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
            raise ValueError
        is_big_tiff = b"+" in head[2:4]  # its head has 16 bytes
        if is_big_tiff:
            head += file.read(8)
        tags, read = TiffImagePlugin.ImageFileDirectory_v2(head), set[int]()
        while tags.next and tags.next not in read:  # a damaged file may lead back
            read.add(tags.next)
            file.seek(tags.next)
            tags.load(file)
            yield tags


# ---- pixels in 8 bits and in more


def resize_image(array: np.ndarray, size: Size) -> np.ndarray:
    """`array` (H, W) or (H, W, C) at `size` = (height, width): areas are averaged, or it is enlarged linearly."""
    height, width = size
    if height < array.shape[0] or width < array.shape[1]:
        smaller = (min(height, array.shape[0]), min(width, array.shape[1]))
        array = bands.resized(array, smaller, cv2.INTER_AREA)
    if array.shape[:2] != (height, width):
        array = bands.resized(array, (height, width), cv2.INTER_LINEAR)
    return array


def size_within(own: Size, size: Size, fit: str) -> Size:
    """The (height, width) that a picture of its `own` size has in one of `size`; the rest below and beside is padding.

    With FIT = "stretch" that is all of it; with "pad" the most that keeps the picture's proportions.
    """
    if fit == STRETCH:
        return size
    scale = min(size[0] / own[0], size[1] / own[1])
    height, width = (max(1, round(side * scale)) for side in own)
    return height, width


def rgb(picture: Image.Image, path: str | Path) -> np.ndarray:
    """The pixels of a PIL picture of any mode, uint8 (H, W, 3). UnusableFile: its values have no meaning in 8 bits."""
    if picture.mode.startswith("I"):
        grey = np.asarray(picture)
        if grey.min() < 0 or grey.max() > 65535:
            problem = f"has values from {grey.min():,} to {grey.max():,}, beyond the 0 to 65,535 of 16 bits"
            raise UnusableFile(path, problem, _SAVE_SHALLOWER)
        return np.repeat((grey // 256).astype(np.uint8)[..., None], RGB, axis=2)
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


def pixels_of(decoded: Decoded | Bands, path: str | Path, channels: int | None = RGB) -> np.ndarray:
    """The pixels of a Decoded in their own depth, (H, W, channels): uint8, uint16 or float32. UnusableFile.

    channels: as of `decode_image`
    """
    pixels = _deep_values(decoded, path, channels)
    if pixels is None:
        pixels = _shallow_values(decoded, path, channels)
    return _with_channels(pixels, channels, path)


def _shallow_values(decoded: Decoded | Bands, path: str | Path, channels: int | None) -> np.ndarray:
    """The pixels of a Decoded in 8 bits, (H, W, C), with alpha where `channels` are others than grey and RGB.

    UnusableFile: its values have no meaning in 8 bits.
    """
    if isinstance(decoded, Bands):
        return _upper_bits(decoded.values, path)
    picture = decoded.picture
    if channels == RGB:
        return rgb(picture, path)
    if picture.mode == "L" or (channels != 1 and picture.mode in ("LA", "RGBA")):
        return np.asarray(picture)
    is_grey = picture.mode in ("1", "LA") or picture.mode.startswith("I")
    return rgb(picture, path)[..., : 1 if is_grey else RGB]


def _upper_bits(values: np.ndarray, path: str | Path) -> np.ndarray:
    """The upper 8 bits of values of 16. UnusableFile: they have more."""
    if values.dtype == np.float32:
        raise UnusableFile(path, "has values of 32 bits or with fractions", _SAVE_SHALLOWER)
    return values if values.dtype == np.uint8 else (values >> 8).astype(np.uint8)


def _with_channels(pixels: np.ndarray, channels: int | None, path: str | Path) -> np.ndarray:
    """Pixels (H, W) or (H, W, C) as (H, W, channels). UnusableFile: they have others.

    Greys become RGB, and RGB of three equal channels grey. `channels` None: they stay as many.
    """
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    count = pixels.shape[2]
    if channels in (None, count):
        return pixels
    if (channels, count) == (RGB, 1):
        return np.repeat(pixels, RGB, axis=2)
    if (channels, count) == (1, RGB) and (pixels == pixels[..., :1]).all():
        return pixels[..., :1]
    problem = f"has {counted(count, 'channel')}, and CHANNELS = {channels}"
    raise UnusableFile(path, problem, f"Save it with {channels}, or train with CHANNELS = {count} (--channels {count})")


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


def image_of_array(array: np.ndarray, value_range: Range | None = None, channels: int = RGB) -> np.ndarray:
    """What `read_image` would give of a file with these pixels: uint8 (H, W, channels).

    array: (H, W) of greys, or (H, W, C) of C channels. For RGB these may also be grey, grey and alpha, or RGB and
    alpha; alpha is dropped. It is uint8, uint16 or, with a `value_range`, of any finite numbers. UserError: it is no
    such array.
    """
    pixels = array[..., None] if array.ndim == 2 else array
    if pixels.ndim != 3 or not pixels.size or (channels == RGB and pixels.shape[2] > 4):
        raise UserError(f"An array of shape {array.shape} is no picture. Give (H, W) of greys, or (H, W, 3) of RGB.")
    if channels == RGB:
        pixels = pixels[..., : pixels.shape[2] - 1 + pixels.shape[2] % 2]
    pixels = _with_channels(pixels, channels, "The array")
    if value_range is not None:
        if pixels.dtype not in (np.uint8, np.uint16):
            pixels = pixels.astype(np.float32)
        if np.isfinite(pixels).all():
            return np.ascontiguousarray(bytes_of(pixels, value_range))
    elif pixels.dtype == np.uint8:
        return np.ascontiguousarray(pixels)
    elif pixels.dtype == np.uint16:
        return (pixels // 256).astype(np.uint8)
    raise UserError(
        f"An array of {array.dtype} with NaN, or without a range of values, is no picture. Give uint8 or uint16; a "
        "network that was trained with IMAGE_RANGE takes all finite numbers."
    )


def depth_of(decoded: Decoded | Bands, path: str | Path, channels: int | None = RGB) -> dict[str, Any] | None:
    """What there is to know about the values of more than 8 bits, for IMAGE_RANGE; None: they have 8. UnusableFile.

    A dictionary that JSON takes. "bits": 16, 32 (whole numbers) or "float"; "lowest", "highest" of all values;
    "quantiles": 100 of a sixteenth of the values, one in the middle of each hundredth, so that 0.5 % are beyond the
    first and 0.5 % beyond the last; "nodata": Head.nodata.
    """
    deep = _deep_values(decoded, path, channels)
    if deep is None:
        return None
    bits: int | str = 32
    if decoded.decoded_mode == "F" or " x float" in decoded.decoded_mode:
        bits = "float"
    elif deep.dtype == np.uint16:
        bits = 16
    middles = (np.arange(100) + 0.5) / 100
    return {
        "bits": bits,
        "lowest": deep.min().item(),
        "highest": deep.max().item(),
        "quantiles": np.quantile(deep[::4, ::4], middles, method="nearest").tolist(),
        "nodata": decoded.nodata,
    }


def choose_value_range(depths: Sequence[dict[str, Any]]) -> tuple[Range, dict[float, float]]:
    """(low, high) that IMAGE_RANGE = "auto" stands for, and {value: share} of what was left out as no data.

    depths: those of each image, by `depth_of`. The range is that of all values but 0.5 % at either end; where they
    are one value, it is their minimum and maximum. Left out is what a file declares to stand for no data, and one value
    at an end that is far from all others, such as -9999, which would leave few of the 256 greys to the others; so are
    the ends of float32, both of which may be there.
    """
    pooled = np.concatenate([np.asarray(depth["quantiles"], float) for depth in depths])
    # In images of 32 bits the tag's value is rounded as theirs are.
    nodata = [float(np.float32(depth["nodata"])) for depth in depths if depth["nodata"] is not None]
    nodata += np.unique(pooled[np.abs(pooled) > _NO_MEASURE]).tolist()
    while (kept := pooled[~np.isin(pooled, nodata)]).size:
        low, high = np.percentile(kept, (0.5, 99.5), method="nearest").tolist()
        if (value := _far_off(kept, low, high)) is None:
            break
        nodata.append(value)
    else:  # nothing but what is declared to be no data
        nodata, kept, low, high = [], pooled, pooled.min().item(), pooled.max().item()
    if low == high:
        low, high = kept.min().item(), kept.max().item()
    if low == high:
        high = low + 1
    shares = {value: float(np.mean(pooled == value)) for value in nodata}
    return (low, high), {value: share for value, share in shares.items() if share}


def _far_off(values: np.ndarray, low: float, high: float) -> float | None:
    """The one of `low` and `high`, the ends of nearly all values, that is far from all between them; or None."""
    between = values[(values > low) & (values < high)]
    if between.size:
        first, last = between.min(), between.max()
        if first - low > FAR_OFF * (high - first):
            return low
        if high - last > FAR_OFF * (last - low):
            return high
    return None


def _deep_values(decoded: Decoded | Bands, path: str | Path, channels: int | None = RGB) -> np.ndarray | None:
    """The values of a Decoded of more than 8 bits: uint16 or float32, (H, W) of greys or (H, W, C); None: it has 8.

    Colours keep alpha where `channels` are others than grey and RGB.
    """
    if isinstance(decoded, Bands):
        return None if decoded.values.dtype == np.uint8 else decoded.values
    picture = decoded.picture
    if picture.mode.startswith("I"):
        grey = np.asarray(picture)
        if "I;32" in decoded.raw and "S" not in decoded.raw:  # without a sign, for which Pillow has no mode
            grey = grey.view(np.uint32)
        if grey.min() >= 0 and grey.max() <= 65535:
            return grey.astype(np.uint16)
        return grey.astype(np.float32)
    if picture.mode == "F":
        return bands.finite(np.asarray(picture), path)
    if decoded.format == "PPM":
        white = re.search(r"'RGB', (\d+)", decoded.raw)  # each file chooses which value is white
        if white and int(white[1]) > 255:
            return _deep_colours(decoded, path, channels, int(white[1]))
    if re.search(r"(RGB\w*|LA);16", decoded.raw):
        return _deep_colours(decoded, path, channels)
    return None


def _deep_colours(decoded: Decoded, path: str | Path, channels: int | None, white: int = 65535) -> np.ndarray:
    """Colours of 16 bits, uint16 (H, W, C), by OpenCV, because Pillow keeps the upper 8 alone. UnusableFile.

    C is 3; with alpha it is 4, or 2 of greys, where `channels` are others than grey and RGB. `white` becomes 65,535, as
    it does where Pillow reads greys.
    """
    array = _by_opencv(path, decoded.page)
    if array is not None and array.dtype == np.uint16 and array.ndim == 3 and array.shape[2] > 2:
        is_grey, alpha = decoded.raw.startswith("LA"), array[..., 3:]
        array = np.ascontiguousarray(_upright(array[..., 2::-1], decoded.turned))  # BGR or BGRA to RGB
        if white < 65535:
            array = np.rint(array * (65535 / white)).astype(np.uint16)
        upper = np.asarray(decoded.picture.convert("RGB"))
        # Both libraries must see the same picture; in PPM Pillow rounds.
        if array.shape == upper.shape and cv2.absdiff((array >> 8).astype(np.uint8), upper).max() <= 1:
            if channels in (1, RGB):
                return array
            kept = array[..., :1] if is_grey else array
            return np.concatenate([kept, _upright(alpha, decoded.turned)], axis=2)
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
