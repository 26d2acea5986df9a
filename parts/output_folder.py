"""Which files a run of predict.py writes, and which ones earlier runs have written."""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from parts.errors import UserError, counted, list_files, printable, tell
from parts.files import Provenance, path_inside, read_own, remove_leftovers, sole_writer, stamp, write_text
from parts.names import Pair, Picture, folded_path
from parts.predictions import Output

# ---- which files a run writes


@dataclass(frozen=True)
class Planned:
    """A file that a run is to write: that of one picture, or, in words, what it is of."""

    path: Path
    source: Picture | str


def plan_files(outputs: Sequence[Output], wanted: Sequence[Picture]) -> list[Planned]:
    """All files that outputs write for the pictures `wanted`."""
    planned = []
    for output in outputs:
        planned += [Planned(path, picture) for picture in wanted for path in output.paths(picture)]
        planned += [Planned(path, source) for path, source in output.summaries().items()]
    return planned


def check_plan(planned: Sequence[Planned], wanted: Sequence[Picture], true_masks: Iterable[Pair]) -> None:
    """UserError where planned files would overwrite an input or each other."""
    inputs = [picture.path for picture in wanted]
    for pair in true_masks:
        inputs += [mask for mask, _ in pair.sources[1:]]
    originals = {os.path.realpath(path) for path in inputs}

    problems = []
    by_place: dict[str, list[Planned]] = defaultdict(list)
    for file in planned:
        place = os.path.realpath(file.path)
        by_place[folded_path(place)].append(file)
        if place in originals or os.path.isdir(file.path):
            problems.append(f"{printable(file.path)}: is one of the inputs, or a folder")
    for same in by_place.values():  # as two pictures do that differ in their suffix alone
        if len(same) > 1:
            listed = " and ".join(f"{printable(file.path)} of {file.source}" for file in same)
            problems.append(f"one file would be {listed}")
            if len({file.path for file in same}) > 1:
                problems[-1] += " on some systems: the names differ only in case, or in how an accent is coded"
    if problems:
        cures = "Give another OUTPUT_DIR, or rename one of two pictures"
        raise UserError(f"These outputs would overwrite something. {cures}:\n  " + "\n  ".join(problems))


# ---- the output folder

_LIST = ".predicted.json"  # in the output folder
_SUFFIXES = (".png", ".jpg", ".csv", ".gz", ".onnx", ".pt2")  # of all that is written
_VERSION = 1  # of the list; raise it when the same settings begin to give other files


@dataclass(frozen=True)
class _Earlier:
    """What earlier runs have written into an output folder, and is there."""

    provenance: Provenance  # what the list says
    files: dict[str, list]  # {name: what the file is made of, as `_source_on_list`}
    difference: str  # between the settings of then and now, in words
    outdated: list[str]  # names of files that must not lie beside those of the coming run

    def kept(self, kind: str) -> dict[str, list]:
        """{name: what the list says under `kind`} of the files that stay."""
        stored = self.provenance.sources.get(kind, {})
        return {name: stored[name] for name in self.files if name in stored and name not in self.outdated}


class OutputFolder:
    """The folder that a run writes into, with a list of what has been written there: of which picture, and how.

    Other files, and listed ones that have changed since, are somebody else's: they are neither replaced nor removed.
    The list is on disk before the first of its files, and outdated files are removed before it is. So a file that it
    lists, if it exists, was made by the list's settings, wherever a run was killed. It is a Provenance; its kinds are
    "files" (what each is made of), "stamps" (bytes and time of each) and "elsewhere" (stamps of files in other places).

    settings: the constants on which the files depend, and what tells the checkpoint
    """

    def __init__(self, folder: str | Path, settings: dict[str, Any], planned: Sequence[Planned]) -> None:
        self.folder = Path(folder)
        self.settings = settings
        self.planned: dict[str, Path] = {}  # in the folder, by their names on the list
        self.sources: dict[str, list] = {}  # {name: what the file is to be made of}
        self.elsewhere: dict[str, Path] = {}  # such as a submission, by their real paths
        self._linked: list[Path] = []  # behind links that lead out of the folder
        real, real_parent = os.path.realpath(folder), cache(os.path.realpath)
        for file in planned:
            place = Path(real_parent(file.path.parent), file.path.name)
            if place.is_relative_to(real):
                name = place.relative_to(real).as_posix()
                self.planned[name], self.sources[name] = file.path, _source_on_list(file.source)
            elif file.path.is_relative_to(folder):
                self._linked.append(file.path)
            else:
                self.elsewhere[str(place)] = file.path

    def own_files(self) -> set[str]:
        """The real paths of the files that earlier runs have written into the folder."""
        return {os.path.realpath(self.folder / name) for name in self._earlier().files}

    def check(self) -> _Earlier:
        """UserError: files of somebody else would be replaced, or files of several settings would be mixed."""
        folder, cure = printable(self.folder), "Give another OUTPUT_DIR (--output-dir), or move them away."
        if self._linked:
            raise UserError(
                f"{folder}: links in it lead elsewhere, where these files would be written: "
                f"{list_files(self._linked)}. Remove the links, or give another OUTPUT_DIR (--output-dir)."
            )
        earlier = self._earlier()
        foreign = [path for name, path in self.planned.items() if name not in earlier.files]
        stamps = earlier.provenance.sources.get("elsewhere", {})
        foreign += [path for place, path in self.elsewhere.items() if stamps.get(place) != _short_stamp(path)]
        foreign = [path for path in foreign if os.path.lexists(path)]
        if foreign:
            raise UserError(
                "These files would be replaced, but predict.py has not written them, or they have changed since then: "
                f"{list_files(foreign, 10)}. Give other names or another OUTPUT_DIR (--output-dir), or move them away."
            )
        others = earlier.files.keys() - earlier.outdated
        if earlier.difference and others:
            raise UserError(
                f"{folder}: holds {counted(len(others), 'file')} of an earlier run, which would be mixed with those of "
                f"this one ({earlier.difference}): {list_files(sorted(others))}. {cure}"
            )
        return earlier

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Lets one process at a time into the block, which writes the planned files. UserError: as `check`."""
        with sole_writer(self.folder):
            earlier = self.check()
            if earlier.outdated:
                reason = earlier.difference or "pictures have changed"
                tell(f"{printable(self.folder)}: {counted(len(earlier.outdated), 'outdated file')} removed ({reason}).")
            for name in earlier.outdated:
                (self.folder / name).unlink(missing_ok=True)
            for folder in {self.folder, *(path.parent for path in self.planned.values())}:
                remove_leftovers(folder)  # those of killed runs
            settings = self.settings if self.planned else earlier.provenance.settings
            files, stamps = earlier.kept("files"), earlier.kept("stamps")
            elsewhere = dict(earlier.provenance.sources.get("elsewhere", {}))
            before = {name: state for name, state in stamps.items() if name not in self.planned}
            self._save(settings, files=files | self.sources, stamps=before, elsewhere=elsewhere)
            try:
                yield
            finally:
                for name, path in self.planned.items():
                    if state := _short_stamp(path):
                        files[name], stamps[name] = self.sources[name], state
                elsewhere |= {place: state for place, path in self.elsewhere.items() if (state := _short_stamp(path))}
                self._save(settings, files=files, stamps=stamps, elsewhere=elsewhere)

    def _earlier(self) -> _Earlier:
        stored = self._stored()
        difference = ""
        if self.planned:
            difference = Provenance(_VERSION, self.settings, {}).difference(replace(stored, sources={}))
        stamps = stored.sources.get("stamps", {})
        files = {}
        for name, source in stored.sources.get("files", {}).items():
            path = self.planned.get(name) or path_inside(self.folder, name)
            if path and path.suffix in _SUFFIXES and path.is_file() and isinstance(source, list):
                state = _short_stamp(path)
                if stamps.get(name, state) == state:
                    files[name] = source
        return _Earlier(stored, files, difference, self._outdated(files, bool(difference)))

    def _outdated(self, files: dict[str, list], is_different: bool) -> list[str]:
        """Those of earlier `files` that would now be made otherwise, and then those that are of all pictures."""
        now = {source[0]: source for source in self.sources.values() if source}
        outdated = []
        for name, source in files.items():
            same = now.get(str(source[0])) if source else None
            if same and (is_different or source != same):
                outdated.append(name)
        if outdated or is_different:
            outdated += [name for name, source in files.items() if not source]
        return outdated

    def _stored(self) -> Provenance:
        """What the list says; nothing where there is none, or it is damaged."""
        return read_own(self.folder / _LIST, Provenance.from_dict, Provenance(_VERSION, self.settings, {}))

    def _save(self, settings: dict[str, Any], **sources: dict[str, list]) -> None:
        write_text(self.folder / _LIST, json.dumps(Provenance(_VERSION, settings, sources).to_dict()))


def _short_stamp(path: Path) -> list[int] | None:
    """Bytes and time of modification, which a copy of a folder may keep; None where there is no file."""
    state = stamp(path)
    return state and state[:2]


def _source_on_list(source: Picture | str) -> list:
    """What a file is made of: the picture's name, its file's name and stamp, and the page; [] for all pictures.

    Without the path to the picture's file, whose folder may be moved.
    """
    if isinstance(source, str):
        return []
    return [source.name.as_posix(), source.path.name, source.page, stamp(source.path)]
