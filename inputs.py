"""Which pictures predict.py was asked for, what their outputs are called, and which mask belongs to each."""

import glob
import os
import unicodedata
from dataclasses import dataclass
from pathlib import Path, PurePath

from errors import UserError
from reading import SUFFIXES, mask_stems, shown


@dataclass(frozen=True)
class Picture:
    """`path` is the file; `name` what its outputs are called: a relative path without a suffix."""

    path: Path
    name: PurePath


def find_pictures(inputs, output_dir):
    """(pictures, missing) of the files, folders and patterns in `inputs`.

    A folder is searched with all that lies below it (but for `output_dir`), and its tree of names
    kept; a file gives its own name. Where that would make two outputs one, all of them keep their
    place below the folder that they have in common. UserError where two would still be one.
    `missing` are the inputs that are no file, folder or pattern with matches.
    """
    found, missing = {}, []  # the absolute path (each picture once) -> Picture
    for text in inputs:
        if os.path.exists(text):
            places = [text]
        else:
            places = sorted(glob.glob(text, recursive=True))
        if not places:
            missing.append(text)
        for place in map(Path, places):
            files = files_below(place, output_dir) if place.is_dir() else [place]
            base = place if place.is_dir() else place.parent
            for file in files:
                name = PurePath(file.relative_to(base)).with_suffix("")
                found.setdefault(os.path.abspath(file), Picture(file, name))
    pictures = list(found.values())
    if len({_folded(picture) for picture in pictures}) < len(pictures):
        common = os.path.commonpath([os.path.dirname(path) for path in found])
        pictures = [
            Picture(picture.path, PurePath(os.path.relpath(path, common)).with_suffix(""))
            for path, picture in found.items()
        ]
    _refuse_collisions(pictures)
    return pictures, missing


def files_below(folder, but=None):
    """The picture files below `folder`, sorted; hidden ones and the folder `but` are left out."""
    but = os.path.abspath(but) if but else None
    files, seen = [], set()
    for place, folders, names in os.walk(folder, followlinks=True):
        if (real := os.path.realpath(place)) in seen:  # a link that leads back
            folders[:] = []
            continue
        seen.add(real)
        folders[:] = sorted(
            name
            for name in folders
            if not name.startswith(".") and os.path.abspath(os.path.join(place, name)) != but
        )
        files += [
            Path(place, name)
            for name in sorted(names)
            if not name.startswith(".") and name.lower().endswith(tuple(SUFFIXES))
        ]
    return files


def _folded(picture):
    return str(picture.name).casefold()  # some file systems do not tell A.png from a.png


def _refuse_collisions(pictures):
    places = {}
    for picture in pictures:
        places.setdefault(_folded(picture), []).append(shown(picture.path))
    doubled = [" and ".join(paths) for paths in places.values() if len(paths) > 1]
    if doubled:
        raise UserError(
            "These pictures would get one and the same mask file. Rename one of each, or predict them in "
            "runs with an OUTPUT_DIR each:\n  " + "\n  ".join(doubled)
        )


def output_path(folder, picture, suffix):
    """The output of `picture` below `folder`; its own folder exists then."""
    path = Path(folder, f"{picture.name}{suffix}")  # with_suffix would cut names such as a.b
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def refuse_overwriting(outputs, originals):
    """UserError where one of the `outputs` stands twice, or is one of the `originals` (paths both)."""
    originals = {os.path.realpath(path) for path in originals}
    seen, wrong = set(), []
    for path in map(os.path.realpath, outputs):
        if path in originals or path in seen:
            wrong.append(shown(path))
        seen.add(path)
    if wrong:
        raise UserError("These files would be overwritten. Give another OUTPUT_DIR:\n  " + "\n  ".join(wrong))


def find_masks(pictures, mask_dir):
    """{picture: mask file} for those of `pictures` that have one in `mask_dir` or below it.

    A mask in the same subfolder as its picture comes first, then one with its name anywhere.
    UserError where there is no mask at all, or more than one fits.
    """
    if not os.path.isdir(mask_dir):
        raise UserError(f"{mask_dir}: there is no such folder. MASKS names the one with the true masks.")
    names = {picture: unicodedata.normalize("NFC", picture.name.name) for picture in pictures}
    known, by_place, by_name = set(names.values()), {}, {}
    for mask in files_below(mask_dir):
        stems = mask_stems(mask)
        stem = stems[0] if stems[0] in known else stems[-1]  # a_mask.png belongs to a_mask, or to a
        by_place.setdefault((mask.relative_to(mask_dir).parent, stem), []).append(mask)
        by_name.setdefault(stem, []).append(mask)
    matched, doubtful = {}, []
    for picture, name in names.items():
        fitting = by_place.get((Path(picture.name.parent), name)) or by_name.get(name, [])
        if len(fitting) == 1:
            matched[picture] = fitting[0]
        elif fitting:
            doubtful.append(f"{shown(picture.path)}: " + ", ".join(map(shown, fitting)))
    if doubtful:
        raise UserError("More than one mask fits these pictures; keep one of each:\n  " + "\n  ".join(doubtful))
    if not matched:
        raise UserError(
            f"{mask_dir}: no mask there fits any of the pictures. For a.jpg it would be a.png, a_mask.gif or the like."
        )
    return matched
