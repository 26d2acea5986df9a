"""Which pictures predict.py was asked for, what their outputs are called, and which mask belongs to each."""

import glob
import os
import sys
import unicodedata
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path, PurePath

from errors import UserError
from reading import SUFFIXES, mask_stems, shown


@dataclass(frozen=True)
class Picture:
    """`path` is the file; `name` what its outputs are called: a relative path without a suffix."""

    path: Path
    name: PurePath


def find_pictures(inputs, output_dir=None, mask_dir=None):
    """(pictures, missing) of the files, folders and patterns in `inputs`.

    A folder is searched with all that lies below it, and its tree of names kept; a file gives its own
    name. Where that would make two outputs one, all of them keep their place below the folder that they
    have in common. UserError where two would still be one.
    What lies in `output_dir` or `mask_dir` is left out, unless it is asked for by that very name; of a
    folder that is itself `mask_dir`, what ends in _mask is. `missing` says in words what gave nothing.
    """
    own = {os.path.realpath(folder) for folder in (output_dir, mask_dir) if folder}
    found, missing = {}, []  # the absolute path (each picture once) -> Picture
    for text in inputs:
        places = [text]
        if not os.path.exists(text):
            apart = [folder for folder in own if _lies_in(folder, _root(text)) and not _lies_in(_root(text), folder)]
            matches = sorted(glob.glob(text, recursive=True))
            places = [place for place in matches if not any(_lies_in(place, folder) for folder in apart)]
        if not places:
            missing.append(f"{shown(text)}: there is no such file or folder.")
        for place in map(Path, places):
            files, base = [place], place.parent
            if place.is_dir():
                files, base = _files_of(place, own, mask_dir, len(inputs) > 1, missing), place
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


def _root(pattern):
    """The folder that a pattern starts from: its parts before the first with a wildcard."""
    return Path(*takewhile(lambda part: not glob.has_magic(part), Path(pattern).parts))


def _lies_in(place, folder):
    """Whether `place` is `folder`, or anywhere below it, links followed."""
    return Path(os.path.realpath(place)).is_relative_to(os.path.realpath(folder))


def _files_of(folder, own, mask_dir, among_others, missing):
    """The pictures of a folder that was asked for; see find_pictures."""
    real = os.path.realpath(folder)
    files = files_below(folder, own - {real}, missing)
    if real in own:
        rest = [file for file in files if len(mask_stems(file)) == 1]
        if mask_dir and real == os.path.realpath(mask_dir) and (len(rest) < len(files) or not among_others):
            if len(rest) == len(files):
                raise UserError(
                    f"{shown(folder)}: is given both for images and for MASKS, and no file there ends in _mask. "
                    "Name the masks like a_mask.png, or keep them in another folder."
                )
            return rest
        if among_others:  # as where the shell's * names all that there is
            print(f"{shown(folder)}: left out, because it is OUTPUT_DIR or MASKS.", file=sys.stderr)
            return []
    if not files and among_others:
        missing.append(f"{shown(folder)}: there is no image in it.")
    return files


def files_below(folder, apart=(), missing=None):
    """The picture files below `folder`, sorted; hidden ones and the folders `apart` (real paths) are left out.

    Where a list `missing` is given, it gets a line for each folder that cannot be read.
    """

    def tell(error):
        if missing is not None:
            missing.append(f"{shown(error.filename)}: cannot be read ({error.strerror}).")

    files, seen = [], set()
    for place, folders, names in os.walk(folder, followlinks=True, onerror=tell):
        if (real := os.path.realpath(place)) in seen:  # a link that leads back
            folders[:] = []
            continue
        seen.add(real)
        folders[:] = sorted(
            name
            for name in folders
            if not name.startswith(".") and os.path.realpath(os.path.join(place, name)) not in apart
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
    """UserError where one of the `outputs` stands twice, is a folder, or is one of the `originals` (paths all)."""
    originals = {os.path.realpath(path) for path in originals}
    seen, wrong, twice = set(), [], []
    for path in map(os.path.realpath, outputs):
        if path in originals or os.path.isdir(path):
            wrong.append(shown(path))
        elif path in seen:
            twice.append(shown(path))
        seen.add(path)
    if wrong:
        raise UserError(
            "These files or folders would be overwritten. Give another OUTPUT_DIR:\n  " + "\n  ".join(wrong)
        )
    if twice:
        raise UserError("Two outputs would be this one file. Rename the picture of its name:\n  " + "\n  ".join(twice))


def find_masks(pictures, mask_dir):
    """{picture: mask file} for those of `pictures` that have one in `mask_dir` or below it.

    A mask in the same subfolder as its picture comes first, then one with its name anywhere.
    UserError where there is no mask at all, or more than one fits.
    """
    if not os.path.isdir(mask_dir):
        raise UserError(f"{mask_dir}: there is no such folder. MASKS names the one with the true masks.")
    names = {picture: unicodedata.normalize("NFC", picture.name.name) for picture in pictures}
    known, by_place, by_name = set(names.values()), {}, {}
    paths = {os.path.realpath(picture.path) for picture in pictures}  # which may lie beside their masks
    for mask in files_below(mask_dir):
        if os.path.realpath(mask) in paths:
            continue
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
