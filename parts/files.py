"""Files that are whole or absent, how they are read back, what they were made from, locks, a function on all cores."""

import csv
import hashlib
import io
import json
import os
import re
import secrets
import shutil
import signal
import socket
import threading
import time
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing import active_children, parent_process
from pathlib import Path, PurePath
from typing import Any, BinaryIO, TypeVar

import cv2
from filelock import FileLock, Timeout

from parts.errors import UserError, counted, list_files, printable, tell

Place = str | Path
Item = TypeVar("Item")
Result = TypeVar("Result")

_PART = re.compile(r"\.(.+)\.[0-9a-f]{12}\.part", re.DOTALL)  # names of files and folders that are not finished
DAY = 86_400  # seconds; a file that nobody has written to for so long is not being written


# ---- whole files


def write_whole(path: Place, write: Callable[[BinaryIO], Any], sync: bool = True) -> None:
    """Writes a file that is never seen half: `write(file)` fills a file beside it, which is then renamed to `path`.

    A reader finds the old file or the new one at every moment, even if this process is killed or the power fails.
    Its folder is made if need be; where somebody removes that meanwhile, `write` is called a second time. `sync=False`
    leaves out the flush to disk, for files that are cheap to make again.
    """
    try:
        _write_once(Path(path), write, sync)
    except FileNotFoundError:
        _write_once(Path(path), write, sync)


def _write_once(path: Path, write: Callable[[BinaryIO], Any], sync: bool) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = unfinished(path)
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
        with open(os.open(part, flags, 0o666), "wb") as file:
            write(file)
            file.flush()
            if sync:
                os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException as error:
        part.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno and error.filename in (None, str(part)):
            error.filename = str(path)  # "disk full" should say where; Pillow's errors have no number, but words
        raise
    if sync:
        _sync_folder(path.parent)


def write_text(path: Place, text: str) -> None:
    """Writes a text as UTF-8, by `write_whole`."""
    write_whole(path, lambda file: file.write(text.encode()))


def write_csv(path: Place, columns: Sequence[str], rows: Iterable[Sequence]) -> None:
    """Writes a CSV file, by `write_whole`: the names of the `columns`, then the `rows`."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([columns, *rows])
    write_text(path, text.getvalue())


def write_changed(path: Place, new: bytes) -> None:
    """Writes a file unless it has these bytes already, so that what was made of it stays."""
    if content(path) != new:
        write_whole(path, lambda file: file.write(new), sync=False)


def keep_only(folder: Path, kept: Collection[Path], suffixes: Collection[str] = (".png",)) -> None:
    """Makes `folder` if need be, and removes what earlier calls have kept in and below it and this one does not.

    What they kept is listed beside the folder. UserError: other files there have one of these suffixes; these are
    somebody else's, which are neither removed nor replaced.
    """
    folder.mkdir(parents=True, exist_ok=True)
    memory = folder.with_name(f".{folder.name}.json")
    own: set[str] = read_own(memory, set, set())
    present = [file for file in folder.rglob("*") if file.suffix in suffixes]
    if foreign := [file for file in present if file.relative_to(folder).as_posix() not in own]:
        raise UserError(
            f"{printable(folder)}: holds {counted(len(foreign), 'file')} that this program has not written, where it "
            f"keeps its own: {list_files(foreign)}. Move or delete them, or give another OUTPUT_DIR (--output-dir)."
        )
    for file in present:
        if file not in kept:
            file.unlink()
    write_text(memory, json.dumps(sorted(file.relative_to(folder).as_posix() for file in kept)))


def copy_whole(source: Place, target: Place) -> None:
    """Gives the file `source` a second name, `target`; where the file system cannot, makes a copy.

    Two names of one file are safe because files are never changed in their place, only replaced.
    """
    part = unfinished(Path(target))
    try:
        os.link(source, part)
        os.replace(part, target)
        part.unlink(missing_ok=True)  # rename does nothing between two names of one file
    except OSError:
        part.unlink(missing_ok=True)
        write_whole(target, partial(copy_into, source))


def copy_into(source: Place, file: BinaryIO) -> None:
    """Writes the bytes of `source` into an open file."""
    with open(source, "rb") as original:
        shutil.copyfileobj(original, file, length=1 << 20)


def unfinished(path: Path) -> Path:
    """An unused name in the folder of `path`, short enough for any file system, for what will be renamed to `path`."""
    return path.with_name(f".{_shortened(path.name)}.{secrets.token_hex(6)}.part")


def _shortened(name: str) -> str:
    """A name of 40 characters at most, another one for each name."""
    if len(name) <= 40:
        return name
    return f"{name[:28]}{hashlib.sha256(os.fsencode(name)).hexdigest()[:12]}"


def remove(path: Place) -> None:
    """Removes a file, or a folder with all that is in it, if there is one; of a link only the link."""
    path = Path(path)
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def remove_leftovers(folder: Place, idle: float = 0, name: str = "") -> None:
    """Removes unfinished files, and folders of files, that killed processes left in `folder`.

    `idle`: only what nobody has written to for so many seconds; 0 is for where no other process writes.
    `name`: only what would have become the file or folder of this name.
    """
    for part in Path(folder).glob(".*.part"):
        target = _PART.fullmatch(part.name)
        if not target or (name and target[1] != _shortened(name)):
            continue
        with suppress(OSError):  # somebody else has removed it
            written = max(path.lstat().st_mtime for path in (part, *part.glob("*")))
            if time.time() - written >= idle:
                remove(part)


def _sync_folder(folder: Path) -> None:
    """Flushes a folder to disk, so that a new name in it survives a power cut; not every system can."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def path_inside(folder: Place, name: object, resolve: Callable[[Place], Place] = os.path.realpath) -> Path | None:
    """The path of a name that was read from a file, if it is a relative one that does not lead out of `folder`.

    `resolve` resolves links; for many names in a few folders give one that remembers what it has resolved.
    """
    if not isinstance(name, str) or "\0" in name or os.path.isabs(name) or ".." in PurePath(name).parts:
        return None
    path = Path(folder, name)
    return path if Path(resolve(path.parent)).is_relative_to(resolve(folder)) else None


def stamp(path: Place) -> list[int] | None:
    """A file's [bytes, time of modification, time of change], times in ns; None where there is no file.

    A file whose stamp is equal has not changed. The time of change differs also where a copy keeps the time of
    modification of its source.
    """
    try:
        state = os.stat(path)
    except OSError:
        return None
    return [state.st_size, state.st_mtime_ns, state.st_ctime_ns]


def digest_of(path: Place) -> str:
    """A file's content in 16 hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()[:16]


def is_changed(path: Place, old: list[int] | None) -> bool:
    """Whether a file has another length or time of modification than its `old` stamp says, or is gone.

    The time of change is left out: it differs also where a file gets another name or other permissions.
    """
    new = stamp(path)
    return new is None or old is None or new[:2] != old[:2]


def content_digests(paths: Iterable[Path], known: Mapping[Path, tuple[Any, str]]) -> dict[Path, str]:
    """The `digest_of` of each file. Those that have the stamp in `known`, {path: (stamp, digest)}, are not read.

    UserError: a file cannot be read.
    """
    digests, unknown = {}, []
    for path in dict.fromkeys(paths):
        old_stamp, digest = known.get(path, (None, ""))
        if old_stamp is not None and stamp(path) == old_stamp:
            digests[path] = digest
        else:
            unknown.append(path)
    try:
        return digests | dict(zip(unknown, parallel_map(digest_of, unknown)))
    except OSError as error:
        raise UserError(f"{printable(error.filename)}: cannot be read ({error.strerror}).") from error


# ---- what is read back


def content(path: Place) -> bytes | None:
    """The bytes of a file; None: there is none, or it cannot be read. A pipe, which could wait for ever, is none."""
    try:
        return Path(path).read_bytes() if Path(path).is_file() else None
    except OSError:
        return None


def read_own(path: Place, interpret: Callable[[Any], Result], otherwise: Result) -> Result:
    """What `interpret` makes of the JSON in one of this program's own files; `otherwise` where it fails.

    Such a file is a memory of what was done. Where it is gone, damaged or somebody else's, in whichever of many ways,
    it counts as none, and what it told is made anew.
    """
    try:
        return interpret(json.loads(content(path) or b""))
    except Exception:
        return otherwise


def refuse_link(folder: Place, root: Place) -> None:
    """UserError where a link leads from `folder`, in which files are written and removed, out of `root`."""
    if not Path(folder).resolve().is_relative_to(Path(root).resolve()):
        raise UserError(
            f"{printable(folder)}: a link leads from here out of {printable(root)}, to where files of others may lie. "
            "Remove the link; OUTPUT_DIR may lie anywhere."
        )


# ---- what files were made from


@dataclass(frozen=True)
class Provenance:
    """From which files something was made, by which settings, and in which layout.

    It is stored beside what was made. The next run builds its own and compares the two: where they are equal,
    what is stored can be used; where they differ, `difference` says in what.
    """

    version: Any  # of the layout, or of the code that makes the files; raise it when either changes
    settings: dict[str, Any]  # name: plain value; all sources are made again where one of them differs
    sources: dict[str, dict[str, Any]]  # kind, such as "images": {name: its stamp, digest or other plain value}

    def __post_init__(self) -> None:
        # As JSON gives them back (tuples become lists), so that a stored one and a new one compare equal.
        object.__setattr__(self, "version", json.loads(json.dumps(self.version)))
        object.__setattr__(self, "settings", json.loads(json.dumps(self.settings)))

    def to_dict(self) -> dict[str, Any]:
        """A dictionary of plain values, for JSON."""
        return {"version": self.version, "settings": self.settings, "sources": self.sources}

    @classmethod
    def from_dict(cls, stored: Any) -> "Provenance":
        """The Provenance that `to_dict` wrote. ValueError: `stored` is something else.

        What older code wrote in another way, a dictionary without a version, is one of another version.
        """
        if isinstance(stored, dict) and "version" not in stored:
            return cls(None, {}, {})
        try:
            version, settings, sources = stored["version"], stored["settings"], stored["sources"]
        except (KeyError, TypeError) as error:
            raise ValueError(f"no provenance: {error}") from error
        if not all(isinstance(value, dict) for value in (settings, sources, *dict(sources).values())):
            raise ValueError("no provenance: not all of it are dictionaries")
        return cls(version, settings, sources)

    def difference(
        self, old: "Provenance", describe: Callable[[str, Any, Any], str] = "{} was {}, now {}".format
    ) -> str:
        """What differs from an `old` Provenance, in words; "" where nothing does.

        `describe(name, old value, new value)` words a changed setting; what it gives "" for is left out.
        """
        if old.version != self.version:
            return "another version of this program made them"
        reasons = []
        for name in {**old.settings, **self.settings}:
            was, now = old.settings.get(name), self.settings.get(name)
            if was != now:
                reasons.append(describe(name, was, now))
        for kind in {**old.sources, **self.sources}:
            before, after = old.sources.get(kind, {}), self.sources.get(kind, {})
            for change, names in (
                ("changed", [name for name in after if name in before and after[name] != before[name]]),
                ("new", [name for name in after if name not in before]),
                ("gone", [name for name in before if name not in after]),
            ):
                if names:
                    example = printable(os.path.basename(names[0]))
                    reasons.append(f"{kind}: {counted(len(names), 'file')} {change}, e.g. {example}")
        return "; ".join(filter(None, reasons))


# ---- one process at a time


@contextmanager
def one_at_a_time(path: Place, message: str) -> Iterator[None]:
    """Lets one process at a time into the block, by the lock file `path`; the others print `message` and wait.

    The lock of a process ends with it, however it ends. OSError: the file system has no locks.
    """
    lock = _lock_of(Path(path))
    try:
        try:
            lock.acquire(timeout=0)
        except Timeout:
            tell(message)
            lock.acquire()
    except NotImplementedError as error:
        raise OSError(f"{path}: {error}") from error
    try:
        yield
    finally:
        lock.release()


@contextmanager
def sole_writer(folder: Place) -> Iterator[None]:
    """Locks `folder`, which is made if need be, during the block. UserError: another run holds it."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / ".lock"
    owner = (content(path) or b"")[:200].decode(errors="replace")
    lock = _lock_of(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise UserError(
            f"{printable(folder)}: another run writes here ({printable(owner) or 'unknown process'}). "
            "Wait for its end, or give this one an OUTPUT_DIR of its own."
        ) from None
    except (NotImplementedError, OSError) as error:
        tell(f"{folder}: its file system has no locks ({error}), so a second run there would not be noticed.")
    try:
        if lock.is_locked:
            path.write_text(f"process {os.getpid()} on {socket.gethostname()}")
        yield
    finally:
        lock.release()


def _lock_of(path: Path) -> FileLock:
    """A lock on the file `path`. What came there with somebody else's folder and is no file, such as a link, goes."""
    if path.is_symlink() or (path.exists() and not path.is_file()):
        path.unlink()
    return FileLock(path)


# ---- all cores


def cores() -> int:
    """The number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def parallel_map(
    function: Callable[[Item], Result], items: Sequence[Item], num_workers: int | None = None
) -> Generator[Result, None, None]:
    """Yields function(item) for every item, in their order, computed by several processes.

    There are `num_workers` of them (None: one a core), but none for fewer than 8 items each: then this process
    computes. `function` and `items` must be picklable. Each process has its own copy of `function`, which may keep
    state between calls. An exception of `function` is raised here. UserError: a process was killed.
    """
    workers = min(cores() if num_workers is None else num_workers, len(items) // 8)
    if workers <= 1:
        yield from map(function, items)
        return
    others = set(active_children())
    pool = ProcessPoolExecutor(workers, initializer=_begin, initargs=(function,))
    try:
        # New processes inherit that signals are held, until they have said how they handle them.
        with _signals_held():
            try:
                outcomes = pool.map(_call, items, chunksize=4)
            except OSError:  # not all could be started; the others would wait for work, and this one for their end
                for worker in set(active_children()) - others:
                    worker.kill()
                raise
        yield from outcomes
    except BrokenProcessPool:
        raise UserError(
            "A worker process was killed. If the machine ran out of memory, close other programs; then start again. "
            "A script of your own needs its main guard: if __name__ == '__main__':"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


_function: Callable[[Any], Any]  # what this worker process computes


def _begin(function: Callable[[Any], Any]) -> None:
    """What a worker process does first."""
    global _function
    _function = function
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the first process ends the others
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT, signal.SIGTERM})
    threading.Thread(target=_end_with_parent, daemon=True).start()
    cv2.setNumThreads(0)  # 1 would wait, after a fork, for threads that only the parent has


def _call(item: Any) -> Any:
    return _function(item)


def _end_with_parent() -> None:
    """Ends this process when its parent has ended, even if that was killed and could not tell."""
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


@contextmanager
def _signals_held() -> Iterator[None]:
    """SIGINT and SIGTERM wait until the end of the block, where the system can do that."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
