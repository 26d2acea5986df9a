"""Facts of each file of a dataset, which is decoded once, on all cores; they are remembered until the file changes."""

import hashlib
import json
import os
from base64 import b85encode
from collections import Counter
from collections.abc import Iterable
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from parts.errors import UnusableFile, within_memory
from parts.files import Provenance, digest_of, parallel_map, read_own, stamp, write_text
from parts.images import RGB, bytes_of, choose_value_range, decode_image, depth_of, pages_of, pixels_of, resize_image
from parts.masks import Observation, alpha_fault, drops_alpha, observe_mask
from parts.names import Folder

VERSION = 12  # of the remembered facts; raise it when other facts are taken from the same files
FEW_COLORS = 8  # of a sample of an image's pixels; photographs have more
LOOK = 16  # rows and columns of the small greys by which images are compared
LEAST_CONTRAST = 3  # of 255 between these greys; what has less shows nothing but noise
IMAGE, EIGHTH, MASK = "image", "eighth", "mask"  # as what a file is decoded; EIGHTH: a JPEG at an eighth of its size


@dataclass(frozen=True)
class ImageFacts:
    """What was seen in one image. Plain values only, so that it pickles and goes into JSON."""

    size: list[int]  # height, width
    format: str  # Pillow's name of it
    mode: str  # of Pillow
    frames: bool  # whether more frames or pages follow the first one
    orientation: int  # EXIF's, 1 to 8; 1 is upright
    depth: dict | None  # of images of more than 8 bits: images.depth_of
    has_alpha: bool  # a channel of transparency, or a fourth one, that is not the same all over
    has_few_colors: bool
    is_blank: bool  # one value all over
    digest: str  # equal for equal pixels
    look: str  # nearly equal for nearly equal pictures, see _look_of; "" where hardly anything is to be seen
    channels: int = RGB  # what is read of its channels, as CHANNELS says


@dataclass(frozen=True)
class File:
    """A file, or one page of it, and as what it is decoded."""

    kind: str  # IMAGE, EIGHTH or MASK
    path: Path
    page: int = 0
    channels: int | None = RGB  # of an image; None: all that it has
    bands: tuple[Path, ...] = ()  # further files, whose channels follow

    @property
    def paths(self) -> tuple[Path, ...]:
        """The file and the further ones."""
        return (self.path, *self.bands)

    def stamp(self) -> list | None:
        """What tells whether it has changed: its stamp, or of several files the stamp of each."""
        return [stamp(path) for path in self.paths] if self.bands else stamp(self.path)

    @property
    def key(self) -> str:
        """Its name in the memory."""
        name = f"{self.kind} {' and '.join(map(os.path.abspath, self.paths))}"
        if self.channels != RGB:
            name = f"{self.channels or 'all'} channels of {name}"
        return f"{name}[{self.page}]" if self.page else name


class Looker:
    """Looks at files on all cores, and remembers in the JSON file `cache` what was seen in those that stay unchanged.

    Of each file it has a record: its stamp, what was seen in its pixels and, for the first page, the numbers of the
    pages and the digest of all bytes.
    """

    def __init__(self, cache: Folder | None, num_workers: int | None) -> None:
        self.cache, self.num_workers = cache, num_workers
        self.records: dict[File, dict[str, Any]] = {}
        self.faults: dict[File, UnusableFile] = {}
        self.whole: dict[File, File] = {}  # of EIGHTHs that were also looked at as IMAGEs
        self.remembered: dict[str, dict[str, Any]] = {}  # the records of an earlier audit, by the files' keys
        if cache:
            self.remembered = read_own(Path(cache), _remembered, {})

    def look(self, files: Iterable[File]) -> None:
        """Looks at those files that were not looked at before, neither now nor by an earlier audit."""
        unknown = []
        for file in dict.fromkeys(files):
            if file in self.records or file in self.faults:
                continue
            record = self.remembered.get(file.key)
            if record and record["stamp"] == file.stamp():
                self.records[file] = record
            else:
                unknown.append(file)
        if not unknown:
            return
        with closing(parallel_map(_look_at, unknown, self.num_workers)) as results:
            # disable=None: shown on a terminal
            progress = tqdm(results, "looking at", len(unknown), unit=" files", disable=None)
            for record, file in zip(progress, unknown):
                if isinstance(record, UnusableFile):
                    self.faults[file] = record
                else:
                    self.records[file] = record

    def look_wholly(self) -> None:
        """Looks at the full size of those images that an eighth of it does not tell apart."""
        digests = {file: record["facts"]["digest"] for file, record in self.records.items() if file.kind == EIGHTH}
        same = Counter(digests.values())
        self.whole = {file: replace(file, kind=IMAGE) for file, digest in digests.items() if same[digest] > 1}
        self.look(self.whole.values())

    def pages(self) -> dict[Path, list[int]]:
        """The numbers of the pages of each file that can be used."""
        return {file.path: record["pages"] for file, record in self.records.items() if not file.page}

    def contents(self) -> dict[Path, tuple[Any, str]]:
        """(stamp, digest of its bytes) of each file that can be used."""
        firsts = {file.path: record for file, record in self.records.items() if not file.page and not file.bands}
        return {path: (record["stamp"], record["content"]) for path, record in firsts.items()}

    def facts_of(self, file: File, foreground: Any) -> ImageFacts | Observation | UnusableFile:
        """What was seen in an image, or in a mask under MASK_FOREGROUND; or why it cannot be used."""
        file = self.whole.get(file, file)
        if file in self.faults:
            return self.faults[file]
        facts = self.records[file]["facts"]
        if file.kind != MASK:
            return ImageFacts(**facts)
        observation = Observation(f"{file.path}[{file.page}]" if file.page else str(file.path), **facts)
        return alpha_fault(observation, foreground) or observation

    def save(self) -> None:
        """Remembers what this audit needed, and forgets other files; nothing where nothing can be written."""
        records = {file.key: record for file, record in self.records.items()}
        if self.cache and records != self.remembered:
            provenance = Provenance(VERSION, {"digest": facts_digest(records)}, {})
            stored = {"provenance": provenance.to_dict(), "facts": records}
            with suppress(OSError):
                write_text(Path(self.cache), json.dumps(stored, separators=(",", ":")))


def _remembered(stored: Any) -> dict[str, dict[str, Any]]:
    """The records that `Looker.save` wrote. ValueError: they are others."""
    records = stored["facts"]
    if Provenance.from_dict(stored["provenance"]) != Provenance(VERSION, {"digest": facts_digest(records)}, {}):
        raise ValueError("not what an audit of this version wrote")
    return records


def facts_digest(facts: dict[str, Any]) -> str:
    """A digest by which facts that were changed on disk are not believed."""
    return hashlib.sha1(json.dumps(facts).encode(), usedforsecurity=False).hexdigest()


def _look_at(file: File) -> dict[str, Any] | UnusableFile:
    """The record of one file; or why it cannot be used."""
    try:
        record: dict[str, Any] = {"stamp": file.stamp()}  # before it is decoded: it may change meanwhile
        with within_memory(file.path):
            facts = dict(vars(observe_mask(file.path, file.page) if file.kind == MASK else _see_image(file)))
        facts.pop("path", None)  # a memory that names it could not be moved
        record["facts"] = facts
        if not file.page:
            record |= {"pages": [0], "content": digest_of(file.path)}
            if facts["frames"]:
                record["pages"] = pages_of(file.path) or [0]
        return record
    except UnusableFile as fault:
        return fault.to_keep()
    except OSError as error:
        return UnusableFile(file.path, f"cannot be read ({error.strerror})", "Mend it, or remove it")


def _see_image(file: File) -> ImageFacts:
    """What is seen in an image. UnusableFile."""
    smallest = (1, 1) if file.kind == EIGHTH else None  # of which a JPEG decodes an eighth at most
    decoded = decode_image(file.paths, smallest, file.page, file.channels)
    pixels, depth = pixels_of(decoded, file.path, file.channels), depth_of(decoded, file.path, file.channels)
    sample = pixels[:: max(1, len(pixels) // 32), :: max(1, pixels.shape[1] // 32)]
    colors = np.ascontiguousarray(sample).view(f"V{sample.itemsize * sample.shape[2]}")  # a pixel's channels as one
    # Processors have instructions for SHA-1, which makes it the fastest digest that is long enough here.
    digest = hashlib.sha1(repr(decoded.size).encode(), usedforsecurity=False)
    digest.update(np.ascontiguousarray(pixels).data)
    return ImageFacts(
        size=list(decoded.size),
        format=decoded.format,
        mode=decoded.decoded_mode,
        frames=decoded.frames,
        orientation=decoded.turned,
        depth=depth,
        has_alpha=drops_alpha(decoded, file.channels),
        has_few_colors=len(set(colors.ravel().tolist())) <= FEW_COLORS,
        # A few rows first, which is enough for nearly all images.
        is_blank=bool((pixels[::8] == pixels[0, 0]).all() and (pixels == pixels[0, 0]).all()),
        digest=digest.hexdigest(),
        look=_look_of(pixels, depth),
        channels=pixels.shape[2],
    )


def _look_of(pixels: np.ndarray, depth: dict | None) -> str:
    """LOOK x LOOK greys of an image (H, W, C), its darkest as 0 and its brightest as 255, row by row in base 85."""
    rows = pixels[:: max(1, len(pixels) // 128)]  # all rows would take ten times as long
    if depth is not None:
        rows = bytes_of(rows, choose_value_range([depth])[0])
    greys = resize_image(rows, (LOOK, LOOK)).mean(axis=2)
    darkest, brightest = greys.min(), greys.max()
    if brightest - darkest < LEAST_CONTRAST:
        return ""
    stretched = np.rint((greys - darkest) * (255 / (brightest - darkest))).astype(np.uint8)
    return b85encode(stretched.tobytes()).decode()
