"""Masks for new images, from a checkpoint that train.py saved.

    python predict.py photo.jpg folder/ --checkpoint best.pth
    python predict.py folder/ --masks masks/          also Dice and IoU at the masks' own size
    python predict.py test/ --submission submission.csv.gz --no-save-masks     Kaggle's rows
    python predict.py --export model.onnx             the network for elsewhere (or model.pt2)

Writes OUTPUT_DIR/name.png for each image: 0 and 255, of exactly its height and width (as its EXIF data
turn it), in the same tree of names; of each page or frame name_0.png, name_1.png ... where a file has
several. A network of several classes writes what the masks that it was trained on hold for them: values,
indices of a palette or colours. A picture that cannot be read is reported, the rest is done, and the exit
status is 1 then; 2 where nothing can be done.
"""

import csv
import gzip
import importlib.util
import io
import json
import math
import os
import sys
import tempfile
import unicodedata
from collections import Counter
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path, PurePath

import cv2
import numpy as np
import torch
from torch.export import Dim
from tqdm import tqdm

import dataset
from parts import pictures, reading
from parts.audit import DARK
from parts.files import cores, write_csv, write_whole
from parts.inference import MIRRORS, make_runner, predict_pictures, stride_of
from parts.masks import IGNORED, MaskRule, encode_mask, find_mask_rule, name_files, read_mask, resize_mask
from parts.reading import (
    decode,
    depth_of,
    ends_in_mask,
    folded,
    image_size,
    mask_stems,
    may_be_deep,
    owner_of,
    pages_of,
    read_image,
    resize_image,
    shown,
)
from parts.recipe import PRECISIONS
from parts.script import UserError, one_of, ran_out_of_memory, refuse_wrong, run, settings_of, sizes, whole
from utils import (
    class_columns,
    class_scores,
    class_table,
    count_confusion,
    count_overlap,
    dice_from_counts,
    dice_of_choice,
    for_sheet,
    iou_from_counts,
    load_network,
    overlap_of,
)

CHECKPOINT = "best.pth"  # what train.py saved: the weights, and all that is to be known about the network
OUTPUT_DIR = "predictions"  # where the masks go
SAVE_MASKS = True  # write them; off where the scores or the submission are all that is wanted
OVERLAYS = False  # also OUTPUT_DIR/overlays/name.jpg: the image with its mask laid over it
PROBABILITIES: int | None = None  # also OUTPUT_DIR/probabilities/name.png, of 8 or 16 bits; name_CLASS.png of each
THRESHOLD: float | str = 0.5  # foreground is what is more probable; "auto": the best for MASKS, by Dice
IMAGE_SIZE: tuple | str | None = None  # what the network sees; None: as in training, "own": each image's size
FLIPS: str | None = None  # "h", "v", "hv": also run the image's mirrored copies and average; costs 2, 2 and 4 runs
WINDOW = 768  # pixels: what is larger than its square runs in windows of it, within the memory of one
OVERLAP: int | None = None  # of neighbouring windows, pixels; None: what makes the plain network's seams vanish
MASKS: str | None = None  # a folder of true masks: scores, scores.csv and worst.png at the masks' own size
MASK_NAME: str | None = dataset.MASK_NAME  # how they are named, such as "{}_segmentation"; see dataset.py
MASK_FOREGROUND: int | tuple | str | None = None  # their foreground, as in dataset.py; None: as in training
MASK_IGNORE: int | tuple | None = None  # what of them is not scored, as in dataset.py; None: as in training
SUBMISSION: str | None = None  # Kaggle's run-length rows as a .csv or .csv.gz
EXPORT: str | None = None  # write the network as .onnx or .pt2, and end
BATCH_SIZE: int | None = None  # images a call; None: 16, on a CPU 1 (more is slower there)
NUM_WORKERS: int | None = None  # threads that read and write pictures; None: as many as there are cores
DEVICE = "auto"  # or cuda, mps, cpu
PRECISION = "auto"  # bfloat16 where the hardware has it, float16 on older CUDA, else float32; or one of these

_INPUTS = [("inputs", dict(nargs="*", default=[], metavar="INPUT", help="image files and folders"))]
_ARTICLE_SIZE = (320, 480)  # of the checkpoints that do not tell their size, such as the article's
_LONGEST_JPEG = 65_500  # pixels, libjpeg's own limit
_WORST = 10  # images that worst.png shows
_BINS = 256  # of probability: thresholds are multiples of 1/256
_READ_NAMES = {  # of classes: how an exported file is asked for them
    ".onnx": 'session.get_modelmeta().custom_metadata_map["classes"]',
    ".pt2": 'torch.export.load(path, extra_files=(names := {"classes": ""})), names["classes"]',
}
_TOLERANCE = 1e-3  # of an exported network's float32 logits: another runtime sums in another order


# ---- which pictures, what their outputs are called, and which mask belongs to each


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
        return shown(self.path) + f"[{self.number}]" * (self.pages > 1)


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
            missing.append(f"{shown(place)}: there is no such file or folder.")
        elif place.is_dir():
            for file in _files_of(place, own, mask_dir, len(inputs) > 1, missing, left_out):
                found.setdefault(os.path.abspath(file), (file, place))
        elif (words := _unread(place)) and pages_of(place) is None:
            missing.append(words)
        else:
            found.setdefault(os.path.abspath(place), (place, place.parent))
    names = [PurePath(file.relative_to(base)).with_suffix("") for file, base in found.values()]
    if len({_folded(name) for name in names}) < len(names):
        common = os.path.commonpath([os.path.dirname(path) for path in found])
        names = [PurePath(os.path.relpath(path, common)).with_suffix("") for path in found]
    if left_out := list(dict.fromkeys(left_out)):
        kinds = "that are no pictures by their names, hidden, or of this run"
        print(f"Left out: {len(left_out):,} {kinds}: {name_files(left_out, 5)}.")
    wanted = [it for (file, _), name in zip(found.values(), names) for it in _pictures_in(file, name)]
    return wanted, list(dict.fromkeys(missing))


def _pictures_in(file, name):
    pages = pages_of(file) or [0]
    if len(pages) == 1:
        return [Picture(file, name, pages[0])]
    return [Picture(file, name.with_name(f"{name.name}_{n}"), page, n, len(pages)) for n, page in enumerate(pages)]


def _folded(path):
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
            print(f"{shown(folder)}: left out, because it is OUTPUT_DIR or MASKS.", file=sys.stderr)
            return []
        elif holds_masks:
            raise UserError(
                f"{shown(folder)}: is given both for images and for MASKS, and no file there ends in _mask. "
                "Name the masks like a_mask.png, or keep them in another folder."
            )
    unread = {file: words for file in others if file.name[0] != "." and (words := _unread(file))}
    missing += unread.values()
    left_out += [file for file in others if file not in unread]
    if not files and not unread and among_others:
        missing.append(f"{shown(folder)}: there is no image in it.")
    return files


def _unread(file):
    """What to do with a file that is none by its name, but is a picture to a person; or None."""
    if reading.VIDEO.search(file.name):
        cut = f"ffmpeg -i {shown(file.name)} frames/%05d.png"
        return f"{shown(file)}: is a video. Cut it into frames (mkdir frames; {cut}), and give their folder."
    if reading.UNREAD.search(file.name) or (file.suffix.lower() not in reading.SUFFIXES and pages_of(file)):
        return f"{shown(file)}: its kind or its name is not read. Save it as PNG or TIFF."
    return None


def files_below(folder, apart, missing, others):
    """The picture files below `folder`, sorted; hidden ones and the folders `apart` (real paths) are left out.

    The list `missing` gets a line for each folder that cannot be read, `others` what else there is.
    """

    def tell(error):
        missing.append(f"{shown(error.filename)}: cannot be read ({error.strerror}).")

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
            usable = name.lower().endswith(tuple(reading.SUFFIXES)) and not name.startswith(".")
            (files if usable else others).append(Path(place, name))
    return files


def find_masks(wanted, mask_dir, mask_name=None):
    """{picture: (mask file, page of it)} for those of the pictures `wanted` that have one in `mask_dir` or below it.

    A mask in the same subfolder as its picture comes first, then one with its name anywhere. A page's is one of
    its own name, or the page of that number of one with the file's name, where that has equally many.
    Where `mask_name` has a *, all that fit are its mask: (tuple of files, page of them).
    UserError where there is no mask at all, or more than one fits.
    """
    if not os.path.isdir(mask_dir):
        raise UserError(f"{mask_dir}: there is no such folder. MASKS names the one with the true masks.")
    counted = cache(pages_of)
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
                matched[picture] = fitting[0] if len(fitting) == 1 else tuple(fitting), pages[0][number]
        elif fitting:
            doubtful.append(f"{picture}: " + ", ".join(map(shown, fitting)))
    if doubtful:
        raise UserError("More than one mask fits these pictures; keep one of each:\n  " + "\n  ".join(doubtful))
    if not matched:
        raise UserError(
            f"{mask_dir}: no mask there fits any of the pictures. For a.jpg it would be a.png, a_mask.gif or the like, "
            f"and have as many pages. {reading.NAME_MASKS}."
        )
    return matched


def find_truths(s, wanted, checkpoint, classes=None):
    """({picture: (mask file or files, page)}, the rule that reads them); ({}, None) where no scores are asked for.

    They may be of another encoding than those of training, so they are asked what their values mean,
    unless training was told a MASK_FOREGROUND: that holds here too. So does the network's rule of `classes`.
    """
    if not s.MASKS:
        return {}, None
    truths = find_masks(wanted, s.MASKS, s.MASK_NAME)
    lacking = [picture for picture in wanted if picture not in truths]
    if lacking:
        print(f"Without a mask in {s.MASKS} (of as many pages), so not scored: {name_files(lacking)}")
    several = [picture for picture, (files, _) in truths.items() if isinstance(files, tuple)]
    if classes and several:
        raise UserError(
            f"{s.MASKS}: several masks fit {name_files(several)}, and such are united to one foreground. A network of "
            "classes is scored by one mask a picture: take the * out of MASK_NAME."
        )
    told = {name.upper(): value for name, value in checkpoint["settings"].items()}  # older ones are in lower case
    foreground = told.get("MASK_FOREGROUND") if s.MASK_FOREGROUND is None else s.MASK_FOREGROUND
    ignore = told.get("MASK_IGNORE") if s.MASK_IGNORE is None else s.MASK_IGNORE
    as_in_training = s.MASK_FOREGROUND is None and s.MASK_IGNORE is None and "mask_rule" in checkpoint
    if classes and s.MASK_IGNORE is None:
        rule = classes
    elif as_in_training and foreground is not None:
        rule = MaskRule.from_dict(checkpoint["mask_rule"])
    else:
        files = [(file, page) for files, page in truths.values() for file in each_of(files)]
        named = dict(zip(classes.names, classes.classes)) if classes else None
        rule = find_mask_rule(files, foreground, s.NUM_WORKERS or None, strict=False, ignore=ignore, classes=named)
    print(f"In the masks {rule.describe()}.")
    return truths, rule


def each_of(files):
    """The files of a picture's mask, as find_masks has them."""
    return files if isinstance(files, tuple) else (files,)


# ---- what becomes of a picture's logits


@dataclass
class Outcome:
    """What became of a picture: `error` in words, or what was asked for."""

    picture: Picture
    error: str | None = None
    only: int | None = None  # the class that all of its pixels are predicted to be
    counts: list | None = None  # of pixels: in both, predicted, true; of each class, where there are several
    confusion: np.ndarray | None = None  # of several classes, (C, C): rows true, columns predicted
    runs: str | None = None
    histogram: np.ndarray | None = None
    shown: tuple | None = None  # image, truth, prediction


class Bands:
    """What of a picture that goes in windows at its own size is kept of its bands, as Runner.bands gives them.

    Logits of all classes would be C large planes. `mask`: uint8 (H, W); `maps`: the probabilities, C such planes of
    `bits`, where these are asked for; `broken`: whether some logits are not numbers.
    """

    def __init__(self, size, channels, bits=None):
        self.mask, self.broken = np.empty(size, np.uint8), False
        self.maps = [np.empty(size, _kind_of(bits)) for _ in range(channels if bits else 0)]
        self.bits = bits

    def __call__(self, top, logits):
        rows, size = slice(top, top + logits.shape[1]), logits.shape[1:]
        self.broken = self.broken or bool(np.isnan(logits).any())
        self.mask[rows], best = classify(logits, size)
        if self.maps:
            for whole, part in zip(self.maps, class_probabilities(logits, best, self.bits)):
                whole[rows] = part


@dataclass
class Finish:
    """Turns the logits of a picture into what was asked for. Runs in threads."""

    cut: float = 0.0  # logits above it are foreground
    folders: dict = field(default_factory=dict)  # of "masks", "overlays", "probabilities", where they are wanted
    bits: int = 8  # of probabilities
    truths: dict = field(default_factory=dict)  # {picture: (file or files, page) of its true mask}
    rule: MaskRule | None = None  # which reads them
    classes: MaskRule | None = None  # the network's, where it has several
    runs: bool = False
    histogram: bool = False
    show: bool = False
    span: tuple | None = None  # of training's images of more than 8 bits: see IMAGE_RANGE
    dark: dict = field(default_factory=dict)  # {picture: True} of those which lose nearly everything without

    def paths(self, kind, picture):
        """The files of that kind; with_suffix would cut names such as a.b."""
        base, ending = self.folders[kind] / picture.name, ".jpg" if kind == "overlays" else ".png"
        if self.classes is None or kind != "probabilities":
            return [base.with_name(base.name + ending)]
        names = ["".join(c if c.isalnum() or c in "+-._" else "_" for c in name) for name in self.classes.names]
        return [base.with_name(f"{base.name}_{name}{ending}") for name in names]

    @property
    def legend(self):
        """Where the colours of the overlays' classes are explained, or None."""
        return self.folders["overlays"] / "legend.png" if self.classes and "overlays" in self.folders else None

    @property
    def colours(self):
        """(colour, name) of each class, as the functions that draw take them; None of one foreground."""
        return pictures.classes_of(self.classes) if self.classes else None

    def bands(self, item):
        """What takes the bands of an Item."""
        return Bands(item.size, self.classes.channels, self.bits if "probabilities" in self.folders else None)

    def read(self, picture, size):
        """The picture at the network's `size` (None: its own), and as it is where that is needed."""
        image = read_image(picture.path, size, picture.page, self.span)
        if self.span is None and _is_dark(picture):
            self.dark[picture] = True
        if not self.show and "overlays" not in self.folders:
            return image, None
        # decoded once more, so that the network sees the same with and without
        return image, read_image(picture.path, None, picture.page, self.span) if size else image

    def __call__(self, item, fetch):
        """The Outcome of an Item; fetch() gives its logits at the network's size, or its Bands."""
        outcome = Outcome(item.picture, item.error)
        if item.error:
            return outcome
        logits = fetch()
        if logits.broken if isinstance(logits, Bands) else np.isnan(logits).any():
            cure = 'Try PRECISION = "float32", or another checkpoint.'
            outcome.error = f"{item.picture}: the network's output is not a number. {cure}"
            return outcome
        mask, at_own = self._decided(logits, item.size)
        low, high = int(mask.min()), int(mask.max())
        outcome.only = low if low == high else None
        self._save("masks", item.picture, lambda: [encode_mask(mask, self.classes) if self.classes else mask * 255])
        self._save("probabilities", item.picture, lambda: self._maps(logits, at_own))
        if max(item.size) <= _LONGEST_JPEG:
            self._save("overlays", item.picture, lambda: [pictures.overlay(item.extra, mask, self.colours)])
        elif "overlays" in self.folders:
            limit = f"a JPEG of at most {_LONGEST_JPEG} pixels"
            outcome.error = f"{item.picture}: too long for an overlay, {limit}."
        if self.runs:
            outcome.runs = run_lengths(mask)
        if item.picture in self.truths:
            try:
                self._score(item, logits, mask, at_own, outcome)
            except UserError as mistake:
                outcome.error = str(mistake)
        return outcome

    def _decided(self, logits, size):
        """The mask at `size`, uint8, and what its probabilities come from: see _maps."""
        if isinstance(logits, Bands):
            return (logits.mask if size == logits.mask.shape else resize_mask(logits.mask, size)), None
        if self.classes:
            return classify(logits, size)
        at_size = resize_image(logits, size)
        return (at_size > self.cut).astype(np.uint8), at_size

    def _maps(self, logits, at_own):
        if isinstance(logits, Bands):
            return logits.maps
        return class_probabilities(logits, at_own, self.bits) if self.classes else [probability_map(at_own, self.bits)]

    def _save(self, kind, picture, draw):
        if kind in self.folders:
            for path, drawn in zip(self.paths(kind, picture), draw()):
                path.parent.mkdir(parents=True, exist_ok=True)
                pictures.save_image(path, drawn)

    def _score(self, item, logits, mask, at_own, outcome):
        """Compares with the true mask, at its size."""
        files, page = self.truths[item.picture]
        truth = read_mask(files, self.rule, page=page)
        if _turned(truth.shape, item.size):
            sizes = [f"{height}x{width} (height x width)" for height, width in (item.size, truth.shape)]
            pair = f"{item.picture} is {sizes[0]}, {shown(each_of(files)[0])} is {sizes[1]}"
            raise UserError(f"{pair}: one is turned, so it is not scored.")
        if truth.shape != tuple(item.size):
            mask, at_own = self._decided(logits, truth.shape)
        if self.classes:
            pair = (torch.from_numpy(np.ascontiguousarray(it))[None] for it in (mask, truth))
            counts = count_confusion(*pair, self.classes.channels)
            outcome.counts, outcome.confusion = overlap_of(counts)[0].tolist(), counts[0].numpy()
        else:
            seen = truth != IGNORED if self.rule.ignored else ...  # all of it
            pair = (torch.from_numpy(np.ascontiguousarray(it[seen])).bool()[None] for it in (mask, truth))
            outcome.counts = count_overlap(*pair)[0].tolist()
            if self.histogram:
                outcome.histogram = histogram(at_own[seen], truth[seen])
        if self.show:
            outcome.shown = for_sheet(resize_image(item.extra, truth.shape), truth, mask)


def _is_dark(picture):
    """Whether a picture that is read without a span has more than 8 bits, and hardly any of the upper 8."""
    try:
        if not may_be_deep(picture.path, picture.page):
            return False
        depth = depth_of(decode(picture.path, page=picture.page), picture.path)
        return bool(depth) and depth["highest"] < DARK
    except UserError:  # some layouts can be read in 8 bits alone
        return False


def _turned(one, other):
    """Whether size `one` (H, W) is a scaled copy of `other` turned by 90 degrees, and not of it as it is."""

    def alike(height, width):  # but for rounding
        return abs(height * other[1] - width * other[0]) <= max(height, width, *other)

    return alike(*one[::-1]) and not alike(*one)


def _kind_of(bits):
    return np.uint8 if bits == 8 else np.uint16


def probability_map(logits, bits):
    """The probabilities of logits as uint8 or uint16, 1 being the type's largest value."""
    kind = _kind_of(bits)
    return (np.iinfo(kind).max / (1 + np.exp(-logits.clip(-30, 30)))).round().astype(kind)


def classify(logits, size):
    """(the class of the highest logit, uint8; how far that lies above the first class's, float32), both of `size`.

    logits: float32 (C, h, w), of which one plane at a time is enlarged. What is compared is how far each lies above
    the first, so that two classes give what one foreground does of the difference of the two; of equal ones the
    first wins.
    """
    mask, best = np.zeros(size, np.uint8), np.zeros(size, np.float32)
    for index in range(1, len(logits)):
        plane = resize_image(logits[index] - logits[0], size)
        np.copyto(mask, index, where=plane > best)
        np.maximum(best, plane, out=best)
    return mask, best


def class_probabilities(logits, best, bits):
    """Yields the map of each class, as of probability_map: softmax. `best`: as classify gives it for `logits`."""
    kind = _kind_of(bits)

    def power(index):
        plane = resize_image(logits[index] - logits[0], best.shape) if index else np.zeros_like(best)
        return np.exp(plane - best)

    total = sum(map(power, range(len(logits))))
    for index in range(len(logits)):
        yield (power(index) * (np.iinfo(kind).max / total)).round().astype(kind)


# ---- scores at the true masks' own size, and the threshold that makes them best


def histogram(logits, truth):
    """How many pixels of (background, foreground) have a probability in each bin: int64 (2, _BINS).

    Bin k holds k/_BINS < p <= (k+1)/_BINS, so that p > k/_BINS is bin k and all above it.
    logits: float32 (H, W); truth: (H, W) of {0, 1}
    """
    scaled = np.exp(-np.clip(logits, -30, 30))
    scaled += 1
    np.divide(_BINS, scaled, out=scaled)
    bins = np.clip(np.ceil(scaled) - 1, 0, _BINS - 1).astype(np.uint16)
    bins += _BINS * truth.astype(np.uint16)
    return np.bincount(bins.ravel(), minlength=2 * _BINS).reshape(2, _BINS)


def best_threshold(histograms):
    """(threshold, its mean Dice, mean Dice at 0.5) over images, from their histograms (N, 2, _BINS).

    Of the thresholds k/_BINS with 0 < k < _BINS the one with the highest mean, which is dice_of_choice; of equal
    ones the one nearest to 0.5.
    """
    above = np.cumsum(np.asarray(histograms)[..., ::-1], axis=2)[..., ::-1]  # pixels in bin k and all above
    foreground, predicted = above[:, 1], above.sum(axis=1)
    dice = [dice_of_choice(foreground[:, k], predicted[:, k], foreground[:, 0]) for k in range(_BINS)]
    best = max(range(1, _BINS), key=lambda k: (dice[k], -abs(k - _BINS // 2)))
    return best / _BINS, dice[best], dice[_BINS // 2]


def choose_threshold(put_through, finish):
    """The threshold that gives the pictures with masks the highest mean Dice."""
    outcomes = put_through(list(finish.truths), replace(finish, folders={}, runs=False, histogram=True), "threshold")
    histograms = [outcome.histogram for outcome in outcomes if outcome.histogram is not None]
    if not histograms:
        raise UserError("None of the pictures with masks can be read, so no threshold can be chosen.")
    threshold, dice, dice_at_half = best_threshold(histograms)
    print(
        f"Threshold {threshold:.4f}: Dice {dice:.4f} over those of {len(histograms)} images that hold something or are "
        f"predicted to, {dice_at_half:.4f} at 0.5. Chosen on these images, it flatters their scores a little."
    )
    return threshold


def write_scores(path, names, counts):
    """A CSV file with one line an image, and the means at the bottom. Returns Dice and IoU of each, float (N,)."""
    both, predicted, true = np.array(counts, np.int64).T
    dice, iou = dice_from_counts(both, predicted, true), iou_from_counts(both, predicted, true)
    rows = [[name, f"{d:.6f}", f"{i:.6f}", *row] for name, d, i, row in zip(names, dice, iou, counts)]
    rows.append(["mean", f"{dice.mean():.6f}", f"{iou.mean():.6f}", "", "", ""])
    write_csv(path, ["image", "dice", "iou", "pixels_in_both", "predicted_pixels", "true_pixels"], rows)
    return dice, iou


def write_class_scores(path, names, counts, scores):
    """A CSV file with one line an image: its Dice, and that of each class that it holds or was given.

    The means are at the bottom. counts: int64 (N, 3, C), as of overlap_of; scores: their Scores.
    """
    columns = class_columns(scores)
    dice, held = dice_from_counts(*np.moveaxis(counts, 1, 0)), counts[:, 1:].any(axis=1)
    rows = [[name, mean, *row] for name, mean, row in zip(names, scores.per_image, np.where(held, dice, None))]
    rows.append(["mean", scores.dice, *columns.values()])
    rows = [[name, *("" if value is None else f"{value:.6f}" for value in values)] for name, *values in rows]
    write_csv(path, ["image", "dice", *columns], rows)


def tell_scores(folder, scored, confusion, put_through, finish):
    """Leaves scores.csv and worst.png in `folder`, and prints the means and the lowest Dice.

    scored: {picture: counts}; confusion: the sum of all, of several classes. The lowest are put through the network
    again, now for the sheet.
    """
    folder.mkdir(parents=True, exist_ok=True)
    wanted, names, counts = list(scored), [str(picture) for picture in scored], np.array(list(scored.values()))
    if finish.classes:
        scores = class_scores(counts, confusion, finish.classes.names)
        write_class_scores(folder / "scores.csv", names, counts, scores)
        dice = np.array(scores.per_image)
        captions = [f"{name}  Dice {d:.4f}" for name, d in zip(names, dice)]
    else:
        dice, iou = write_scores(folder / "scores.csv", names, counts)
        captions = [f"{name}  Dice {d:.4f}, IoU {i:.4f}" for name, d, i in zip(names, dice, iou)]
    worst = np.argsort(dice, kind="stable")[:_WORST].tolist()
    captions = {wanted[i]: captions[i] for i in worst}
    again = put_through(list(captions), replace(finish, folders={}, runs=False, show=True), "worst")
    if outcomes := [outcome for outcome in again if outcome.shown]:
        texts = [captions[outcome.picture] for outcome in outcomes]
        shown = zip(*(outcome.shown for outcome in outcomes))
        sheet = pictures.examples_sheet(*shown, texts, "The lowest Dice", finish.colours)
        pictures.save_image(folder / "worst.png", sheet)
    if finish.classes:
        print(class_table(scores))
        print(
            f"Dice {scores.dice:.4f}, IoU {scores.iou:.4f}: means over the classes, of {len(dice)} images at their "
            f"masks' size; accuracy {100 * scores.accuracy:.2f} %"
        )
    else:
        if not counts[:, 2].any():
            print("No pixel of these masks reads as foreground. If they are not empty, MASK_FOREGROUND says what is.")
        print(f"Dice {dice.mean():.4f}, IoU {iou.mean():.4f}: means over {len(dice)} images at their masks' size")
        if (choice := dice_of_choice(*counts.T)) != dice.mean():
            print(f"Dice {choice:.4f} without those that are empty and predicted to be, each of which counts 1 there")
    print("The lowest Dice:", *(f"  {dice[i]:.4f}  {names[i]}" for i in worst), sep="\n")
    print(f"All of them: {folder / 'scores.csv'}. The lowest: {folder / 'worst.png'}.")


# ---- Kaggle's submission


def run_lengths(mask):
    """The runs of foreground in a mask (H, W), row by row, as "start length start length ...", the first pixel being 1.

    The competition's page says that "the pixels are one-indexed and numbered from top to bottom, then left
    to right: 1 is pixel (1,1), 2 is pixel (1,2), etc.", which contradicts itself. Its data decide: in
    train_masks.csv the first car's runs start at 879386, 881253, 883140, so one row's run begins 1,867 and
    1,887 pixels after the last one's: just under the width of 1,918, as under a roof that widens downwards,
    and nowhere near the height of 1,280.
    """
    edges = np.flatnonzero(np.diff(mask.ravel().astype(bool), prepend=False, append=False)) + 1
    edges[1::2] -= edges[::2]
    return " ".join(map(str, edges.tolist()))


def write_submission(path, rows):
    """Writes `rows` of (image file name, runs) as they come, to a file that appears when it is complete.

    A `path` that ends in .gz is compressed. Memory does not grow with the rows.
    """

    def write(file):
        packed = gzip.GzipFile(filename="", fileobj=file, mode="wb", mtime=0) if str(path).endswith(".gz") else file
        # a name that is no Unicode keeps its bytes
        text = io.TextIOWrapper(packed, encoding="utf-8", errors="surrogateescape", newline="")
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(("img", "rle_mask"))
        writer.writerows(rows)
        text.flush()
        text.detach()
        if packed is not file:
            packed.close()

    Path(path).parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, write)


# ---- the network for elsewhere


def export(network, path, names=()):
    """Writes `network` to `path` (.onnx or .pt2) with a free number of images, height and width.

    Its input `images` is float32 (N, 3, H, W) in [0, 1], its output `logits` (N, 1, H, W), foreground
    above 0, or (N, C, H, W) of C classes, whose `names` go along as a JSON list under "classes". Before
    the file appears it is read back, run at several sizes and compared with PyTorch. UserError where
    packages are missing or the outputs differ. Returns a line of words for the reader.
    """
    path = Path(path)
    network = network.cpu().float().eval()
    stride = stride_of(network)
    trials = [(1, 2 * stride, 2 * stride), (2, 3 * stride, 4 * stride), (3, 4 * stride + 3, 2 * stride + 3)]
    example = (torch.zeros(2, 3, 4 * stride, 4 * stride + 16),)
    extra = {"classes": json.dumps(names)} if names else {}
    free = ({0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC},)  # number of images, height, width
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        made = Path(folder, "network" + path.suffix)
        call, runtime = (_to_onnx if path.suffix == ".onnx" else _to_pt2)(network, made, example, free, extra)
        noise = [torch.rand(n, 3, h, w, generator=torch.Generator().manual_seed(0)) for n, h, w in trials]
        worst = max(float((call(images) - network(images)).abs().max()) for images in noise)
        if not worst <= _TOLERANCE:
            raise UserError(f"{path}: its outputs are up to {worst:.2g} off PyTorch's, so it was not written.")
        content = made.read_bytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, lambda file: file.write(content))
    reading = (
        f" A pixel's class is the channel of its highest logit; their names are in the file, "
        f"{_READ_NAMES[path.suffix]}: {', '.join(names)}."
    )
    return (
        f"{path}: {len(content) / 1e6:.1f} MB; images float32 (N, 3, H, W) in [0, 1] -> logits "
        f"(N, {len(names) or 1}, H, W), any N, any H and W from {2 * stride}. At {len(trials)} sizes {runtime} differs "
        f"from PyTorch by {worst:.1e} at most.{reading if names else ''}"
    )


def _to_pt2(network, path, example, free, extra):
    torch.export.save(torch.export.export(network, example, dynamic_shapes=free), path, extra_files=extra)
    return torch.export.load(path).module(), "the exported program"


def _to_onnx(network, path, example, free, extra):
    absent = [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]
    if absent:
        raise UserError(
            f"EXPORT to .onnx needs the package{'s' * (len(absent) > 1)} {' and '.join(absent)}: "
            f"pip install {' '.join(absent)} onnxruntime. A .pt2 needs nothing more."
        )
    names = dict(input_names=["images"], output_names=["logits"])
    program = torch.onnx.export(network, example, dynamo=True, dynamic_shapes=free, verbose=False, **names)
    program.model.metadata_props.update(extra)
    program.save(path)
    if importlib.util.find_spec("onnxruntime"):
        runtime = importlib.import_module("onnxruntime")
        session, name = runtime.InferenceSession(path, providers=["CPUExecutionProvider"]), "onnxruntime"
    else:
        reference = importlib.import_module("onnx.reference")
        session, name = reference.ReferenceEvaluator(str(path)), "onnx's reference"
    return lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0]), name


# ---- the run


def check(s):
    """Refuses in words the values that nothing can be done with."""
    own_or_two, two = sizes('height and width, "own", or None', 2)

    def ends(*suffixes):
        return (lambda v: v is None or v.endswith(suffixes)), f"a file name that ends in {' or '.join(suffixes)}"

    def or_none(rule):
        return (lambda v: v is None or rule[0](v)), f"{rule[1]}, or None"

    refuse_wrong(
        s,
        PROBABILITIES=one_of(None, 8, 16),
        THRESHOLD=(lambda v: v == "auto" or (type(v) in (int, float) and 0 < v < 1), 'between 0 and 1, or "auto"'),
        IMAGE_SIZE=(lambda v: v in (None, "own") or own_or_two(v), two),
        FLIPS=one_of(*MIRRORS),
        WINDOW=whole(64),
        OVERLAP=or_none(whole(0)),
        SUBMISSION=ends(".csv", ".csv.gz"),
        EXPORT=ends(".onnx", ".pt2"),
        BATCH_SIZE=or_none(whole(0)),
        NUM_WORKERS=or_none(whole(0)),
        PRECISION=one_of("auto", *PRECISIONS),
    )
    kept = s.SAVE_MASKS or s.OVERLAYS or s.PROBABILITIES or s.MASKS or s.SUBMISSION
    for wrong, words in (
        (s.THRESHOLD == "auto" and not s.MASKS, 'THRESHOLD = "auto" needs MASKS to choose it by.'),
        (s.EXPORT and s.inputs, "EXPORT writes the network and takes no images; run it without them."),
        (not s.EXPORT and not kept, "Nothing would be kept: leave SAVE_MASKS on, or ask for more."),
        (not s.EXPORT and not s.inputs, "Which images? Name files or folders; see --help."),
    ):
        if wrong:
            raise UserError(words)


def refuse_for_classes(s, classes):
    """UserError that lists the constants which are for one foreground alone."""
    plain = dict(THRESHOLD=0.5, SUBMISSION=None, MASK_FOREGROUND=None)
    if wrong := [f"{name} = {getattr(s, name)!r}" for name, value in plain.items() if getattr(s, name) != value]:
        raise UserError(
            f"{s.CHECKPOINT}: its network tells {len(classes.names)} classes ({', '.join(classes.names[:12])}"
            f"{', ...' if len(classes.names) > 12 else ''}), and these are for one foreground: {', '.join(wrong)}. "
            f"Leave them at {', '.join(f'{name} = {value!r}' for name, value in plain.items())}."
        )


def refuse_lost(s, finish, wanted):
    """UserError where an output would be lost in another one, or an input in an output."""
    outputs = [(path, str(it)) for kind in finish.folders for it in wanted for path in finish.paths(kind, it)]
    outputs += [(Path(s.OUTPUT_DIR, name), "the scores") for name in ("scores.csv", "worst.png") if s.MASKS]
    outputs += [(Path(s.SUBMISSION), "all images")] if s.SUBMISSION else []
    outputs += [(finish.legend, "the classes")] if finish.legend else []
    masks = [file for files, _ in finish.truths.values() for file in each_of(files)]
    originals = {os.path.realpath(path) for path in [*(picture.path for picture in wanted), *masks]}
    sources, wrong = {}, []
    for path, source in outputs:
        sources.setdefault(_folded(os.path.realpath(path)), []).append(f"{shown(path)} of {source}")
        if os.path.realpath(path) in originals or os.path.isdir(path):
            wrong.append(f"{shown(path)}: is one of the inputs, or a folder")
    wrong += [f"one file would be {' and '.join(same)}" for same in sources.values() if len(same) > 1]
    if wrong:
        cures = "Give another OUTPUT_DIR, or rename one of two pictures"
        raise UserError(f"These outputs would overwrite something. {cures}:\n  " + "\n  ".join(wrong))
    names = Counter(picture.name.name + picture.path.suffix for picture in wanted)
    doubled = ", ".join([name for name, number in names.items() if number > 1][:10])
    if s.SUBMISSION and doubled:
        raise UserError(f"SUBMISSION names images by their file name, and these come more than once: {doubled}.")


def put_through(s, runner, wanted, finish, label="predict"):
    """Puts the pictures `wanted` through the network, under a bar, and yields their Outcomes."""
    own = s.IMAGE_SIZE == "own"
    with tqdm(total=len(wanted), desc=label, unit="image", disable=None) as bar:
        outcomes = predict_pictures(
            wanted,
            runner,
            size_of=lambda picture: image_size(picture.path, picture.page),
            read=lambda picture: finish.read(picture, None if own else s.IMAGE_SIZE),
            finish=finish,
            batch_size=s.BATCH_SIZE,
            threads=s.NUM_WORKERS,
            bounded=own,
            say=lambda window, windows: bar.set_postfix_str(f"window {window}/{windows}"),
            in_bands=finish.bands if own and finish.classes else None,
        )
        try:
            for outcome in outcomes:
                bar.update()
                yield outcome
        except RuntimeError as error:
            if not ran_out_of_memory(error):
                raise
            smaller = f"Lower BATCH_SIZE ({s.BATCH_SIZE}) or WINDOW ({s.WINDOW})."
            raise UserError(f"The device has run out of memory. {smaller}") from error


def followed(outcomes, scored, confusion, failures, alone):
    """Says what failed, fills `scored` ({picture: counts}), `failures` ({picture: whether it has a row all the same})
    and `alone` ({picture: the one class that is predicted}), adds to `confusion`, and yields the submission's rows."""
    for outcome in outcomes:
        if outcome.error:
            tqdm.write(outcome.error, file=sys.stderr)
            failures[outcome.picture] = outcome.runs is not None
        if outcome.only is not None:
            alone[outcome.picture] = outcome.only
        if outcome.counts:
            scored[outcome.picture] = outcome.counts
        if outcome.confusion is not None:
            confusion += outcome.confusion
        if outcome.runs is not None:
            yield outcome.picture.name.name + outcome.picture.path.suffix, outcome.runs  # a page's: a_1.tif


def tell_alone(alone, done, classes):
    """Says where nothing is predicted, or one and the same class in all of the `done` pictures."""
    cure = "are picture and IMAGE_SIZE as in training?"
    if not classes and (empty := [picture for picture, value in alone.items() if value == 0]):
        print(
            f"Nothing is predicted in {len(empty)} of them: {name_files(empty)}. Where something should be: {cure} "
            "Else lower THRESHOLD."
        )
    if classes and len(alone) == done and len(set(alone.values())) == 1:
        name = classes.names[next(iter(alone.values()))]
        print(f"Every pixel of them is predicted as {name}. Where something else should be: {cure}")


def main(argv=None):
    s = settings_of(globals(), argv, positionals=_INPUTS)
    check(s)
    network, checkpoint = load_network(s.CHECKPOINT)
    classes = MaskRule.from_dict(checkpoint["mask_rule"]) if network.output_conv.out_channels > 1 else None
    if s.EXPORT:
        print(export(network, s.EXPORT, classes.names if classes else ()))
        return 0
    if classes:
        refuse_for_classes(s, classes)

    wanted, missing = find_pictures(s.inputs, s.OUTPUT_DIR, s.MASKS)
    for text in missing:
        print(text, file=sys.stderr)
    if not wanted:
        raise UserError(f"There is no image in {', '.join(s.inputs)}.")
    truths, rule = find_truths(s, wanted, checkpoint, classes)
    folder = Path(s.OUTPUT_DIR)
    kinds = dict(masks=s.SAVE_MASKS, overlays=s.OVERLAYS, probabilities=s.PROBABILITIES)
    folders = {kind: folder if kind == "masks" else folder / kind for kind, on in kinds.items() if on}
    finish = Finish(folders=folders, bits=s.PROBABILITIES, truths=truths, rule=rule, runs=bool(s.SUBMISSION))
    finish.classes, finish.span = classes, checkpoint.get("image_range")
    refuse_lost(s, finish, wanted)

    runner = make_runner(network, s.DEVICE, s.PRECISION, mirrors=s.FLIPS, window=s.WINDOW, overlap=s.OVERLAP)
    trained_at = checkpoint.get("image_size", _ARTICLE_SIZE)  # None: on crops out of images at their own size
    s.IMAGE_SIZE = s.IMAGE_SIZE or ("own" if trained_at is None else tuple(trained_at))
    s.BATCH_SIZE = s.BATCH_SIZE or (1 if runner.device.type == "cpu" else 16)
    s.NUM_WORKERS = s.NUM_WORKERS or cores()
    cv2.setNumThreads(1)  # there is a picture for each thread already
    seen = "their own size" if s.IMAGE_SIZE == "own" else f"{s.IMAGE_SIZE[0]}x{s.IMAGE_SIZE[1]}"
    print(
        f"{s.CHECKPOINT}: epoch {checkpoint.get('epoch', 'unknown')}. {len(wanted)} images, which the network sees "
        f"at {seen}, on {runner.device} in {str(runner.dtype or torch.float32).removeprefix('torch.')}."
    )
    through = partial(put_through, s, runner)
    threshold = choose_threshold(through, finish) if s.THRESHOLD == "auto" else s.THRESHOLD
    finish.cut = math.log(threshold / (1 - threshold))

    scored, failures, alone = {}, dict.fromkeys(missing, False), {}
    confusion = np.zeros((runner.channels, runner.channels), np.int64)
    rows = followed(through(wanted, finish), scored, confusion, failures, alone)
    if s.SUBMISSION:
        write_submission(s.SUBMISSION, rows)
    for _ in rows:  # all of them, where no submission has taken them
        pass
    if finish.legend and finish.legend.parent.is_dir():
        pictures.save_image(finish.legend, pictures.sheet([], title="Classes", legend=finish.colours))
    places = [s.OUTPUT_DIR] * bool(folders) + [s.SUBMISSION] * bool(s.SUBMISSION)
    done = len(wanted) + len(missing) - len(failures)
    print(f"{done} images done; see {' and '.join(places) or 'below'}.")
    if dark := [picture for picture in wanted if picture in finish.dark]:
        print(
            f"{len(dark)} of them have 16 bits and use only the lowest 12 or fewer, of which the 8 that this network "
            f"sees keep hardly any: {name_files(dark, 10)}. Train with IMAGE_RANGE, or stretch their values over 0 to "
            "65535 as those of training are."
        )
    tell_alone(alone, done, classes)
    if scored:
        tell_scores(folder, scored, confusion, through, finish)
    lacking = [str(it).partition(": ")[0] for it, has_row in failures.items() if not has_row]
    if s.SUBMISSION and lacking:
        print(f"{s.SUBMISSION}: lacks the rows of {len(lacking)} inputs: {name_files(lacking, 10)}.", file=sys.stderr)
    if failures:
        print(f"{len(failures)} of the inputs failed; see above.", file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    run(main)
