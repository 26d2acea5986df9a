"""Which files a run of predict.py writes, and which ones earlier runs have written."""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from parts.errors import UserError, counted, list_files, printable, tell
from parts.files import Provenance, path_inside, read_own, remove_leftovers, sole_writer, stamp, write_text
from parts.names import Picture, folded_path
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


def refuse_doubles(planned: Sequence[Planned]) -> None:
    """UserError where one file would be made of two pictures, as of two that differ in their suffix alone."""
    by_place: dict[str, list[Planned]] = defaultdict(list)
    for file in planned:
        by_place[folded_path(os.path.realpath(file.path))].append(file)
    problems = []
    for same in by_place.values():
        if len(same) > 1:
            listed = " and ".join(f"{printable(file.path)} of {file.source}" for file in same)
            problems.append(f"one file would be {listed}")
            if len({file.path for file in same}) > 1:
                problems[-1] += " on some systems: the names differ only in case, or in how an accent is coded"
    if problems:
        cures = "Give another OUTPUT_DIR, or rename one of two pictures"
        raise UserError(f"These outputs would overwrite each other. {cures}:\n  " + "\n  ".join(problems))


# ---- the output folder

_LIST = ".predicted.json"  # in the output folder
_SUFFIXES = (".png", ".jpg", ".csv", ".gz", ".onnx", ".pt2")  # of all that is written
_CURE = "Give another OUTPUT_DIR (--output-dir)"
_VERSION = 2  # of the list; raise it when the same settings begin to give other files


class _Entry(NamedTuple):
    """A file on the list."""

    picture: str  # the name of the picture that it is made of; "" of all of them
    source: str  # that picture's file, page and stamp; without its folder, which may be moved
    stamp: list[int] | None = None  # of the file itself; None until it is written


class OutputFolder:
    """The folder that a run writes into, with a list of what has been written: of which picture, and how.

    Other files, and listed ones that have changed since, are somebody else's: they are neither replaced nor removed.
    The list is on disk before the first of its files, and outdated files are removed before it is. So a file that it
    lists, if it exists, was made by the list's settings, wherever a run was killed. It is a Provenance, whose only kind
    of sources is "files": {name: _Entry}. A file elsewhere, such as a submission, stands there by its full path.

    settings: the constants on which the files depend, and what tells the checkpoint
    inputs: files that the run reads, which are not replaced either
    """

    def __init__(
        self,
        folder: str | Path,
        settings: dict[str, Any],
        planned: Sequence[Planned] = (),
        inputs: Iterable[str | Path] = (),
    ) -> None:
        self.folder = Path(folder)
        self.settings = settings
        self.inputs = set(map(os.path.realpath, inputs))
        self.paths: dict[str, Path] = {}  # of what is planned, by its name on the list
        self.planned: dict[str, _Entry] = {}
        real, real_parent = os.path.realpath(folder), cache(os.path.realpath)
        for file in planned:
            place = Path(real_parent(file.path.parent), file.path.name)
            name = Path(str(place).removeprefix(real + os.sep)).as_posix()
            self.paths[name], self.planned[name] = file.path, _entry_of(file.source)

    def own_files(self) -> set[str]:
        """The real paths of what earlier runs have written."""
        return {os.path.realpath(self.folder / name) for name in self._earlier().sources["files"]}

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Lets one process at a time into the block, which writes the planned files.

        UserError: files of somebody else would be replaced, or files of several settings would be mixed.
        """
        self._check(self._earlier())  # refuses before there is a folder
        with sole_writer(self.folder):
            earlier = self._earlier()
            outdated = self._check(earlier)
            if outdated:
                reason = self._difference(earlier) or "pictures have changed"
                tell(f"{printable(self.folder)}: {counted(len(outdated), 'outdated file')} removed ({reason}).")
            for name in outdated:
                (self.folder / name).unlink(missing_ok=True)
            inside = [path.parent for name, path in self.paths.items() if not os.path.isabs(name)]
            for folder in {self.folder, *inside}:
                remove_leftovers(folder)  # those of killed runs
            settings = self.settings if inside else earlier.settings
            files = {name: entry for name, entry in earlier.sources["files"].items() if name not in outdated}
            self._save(settings, files | self.planned)
            try:
                yield
            finally:
                for name, path in self.paths.items():
                    if state := _short_stamp(path):
                        files[name] = self.planned[name]._replace(stamp=state)
                self._save(settings, files)

    def _check(self, earlier: Provenance) -> set[str]:
        """The names of earlier files that must not lie beside those of this run. UserError: as `writing`."""
        self._refuse_foreign(earlier.sources["files"])
        difference = self._difference(earlier)
        files = {name: entry for name, entry in earlier.sources["files"].items() if not os.path.isabs(name)}
        # Outdated is what would now be made otherwise, and then what is made of all pictures
        sources = {entry.picture: entry.source for entry in self.planned.values()}
        outdated = set()
        for name, (picture, source, _) in files.items():
            if picture and picture in sources and (difference or source != sources[picture]):
                outdated.add(name)
        if outdated or difference:
            outdated |= {name for name, entry in files.items() if not entry.picture}
        others = files.keys() - outdated
        if difference and others:
            raise UserError(
                f"{printable(self.folder)}: holds {counted(len(others), 'file')} of an earlier run, which would be "
                f"mixed with those of this one ({difference}): {list_files(sorted(others))}. {_CURE}, or move them "
                "away."
            )
        return outdated

    def _refuse_foreign(self, own: Collection[str]) -> None:
        """UserError: planned files would replace others than those `own` names, or lie behind links."""
        linked = [path for name, path in self.paths.items() if os.path.isabs(name) and path.is_relative_to(self.folder)]
        if linked:
            raise UserError(
                f"{printable(self.folder)}: links in it lead elsewhere, where these files would be written: "
                f"{list_files(linked)}. Remove the links. {_CURE}."
            )
        present = {name: path for name, path in self.paths.items() if os.path.lexists(path)}
        foreign = [path for name, path in present.items() if name not in own or os.path.realpath(path) in self.inputs]
        if foreign:
            raise UserError(
                "These files would be replaced, but predict.py has not written them, they have changed since then, or "
                f"they are inputs: {list_files(foreign, 10)}. {_CURE} or other names, or move them away."
            )

    def _difference(self, earlier: Provenance) -> str:
        """How the settings differ from those of earlier files, in words; "" where this run writes none beside them."""
        if all(map(os.path.isabs, self.planned)):
            return ""
        return Provenance(_VERSION, self.settings, {}).difference(replace(earlier, sources={}))

    def _earlier(self) -> Provenance:
        """The list of earlier runs, with those of its files that are there and have not changed since.

        Where there is no list, or it is damaged, it has none.
        """
        stored = read_own(self.folder / _LIST, _read_list, Provenance(_VERSION, self.settings, {"files": {}}))
        files = {name: entry for name, entry in stored.sources["files"].items() if self._is_own(name, entry)}
        return replace(stored, sources={"files": files})

    def _is_own(self, name: str, entry: _Entry) -> bool:
        """Whether a listed file is there as it was written, or, in the folder alone, as a killed run has left it."""
        is_elsewhere = os.path.isabs(name)
        path = Path(name) if is_elsewhere else path_inside(self.folder, name)
        if path is None or path.suffix not in _SUFFIXES or not path.is_file():
            return False
        return entry.stamp == _short_stamp(path) or (entry.stamp is None and not is_elsewhere)

    def _save(self, settings: dict[str, Any], files: dict[str, _Entry]) -> None:
        write_text(self.folder / _LIST, json.dumps(Provenance(_VERSION, settings, {"files": files}).to_dict()))


def _read_list(stored: Any) -> Provenance:
    """The list as `_save` wrote it. Exceptions of many kinds: it is something else."""
    provenance = Provenance.from_dict(stored)
    files = {}
    for name, (picture, source, state) in provenance.sources["files"].items():
        files[name] = _Entry(str(picture), str(source), state)
    return replace(provenance, sources={"files": files})


def _short_stamp(path: Path) -> list[int] | None:
    """Bytes and time of modification, which a copy of a folder may keep; None where there is no file."""
    state = stamp(path)
    return state and state[:2]


def _entry_of(source: Picture | str) -> _Entry:
    if isinstance(source, str):
        return _Entry("", "")
    files = (source.path, *source.bands)
    names, stamps = [file.name for file in files], ", ".join(str(stamp(file)) for file in files)
    return _Entry(source.name.as_posix(), f"{', '.join(names)}, page {source.page}, {stamps}")
