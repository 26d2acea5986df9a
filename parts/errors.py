"""User errors, lists and counts in words, and how a script ends.

Exit statuses: 0 done; 1 some of the inputs failed; 2 an error that the user can correct; 130 Ctrl-C; 143 SIGTERM.
"""

import atexit
import difflib
import errno
import gc
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from pathlib import Path
from types import FrameType
from typing import Any, TextIO


class UserError(Exception):
    """An error that the user can correct. The message names the file or constant, and what to do."""


class UnusableFile(UserError):
    """A file that cannot be used: its path, the problem with it, and the cure.

    The message is "path: problem. cure.". A DataLoader, which passes an exception on from a worker, makes it again from
    the message alone, so that the first argument may be the whole message, with neither problem nor cure.
    """

    def __init__(self, path: str | Path, problem: str | None = None, cure: str | None = None):
        message = str(path)
        if problem is not None:
            message = f"{printable(path)}: {problem}. {cure}."
        super().__init__(message)
        self.path, self.problem, self.cure = path, problem, cure

    def __reduce__(self) -> tuple[type["UnusableFile"], tuple[str | Path, str | None, str | None]]:
        return UnusableFile, (self.path, self.problem, self.cure)

    def to_keep(self) -> "UnusableFile":
        """A copy without a traceback, whose frames would keep the pixels of the file in memory."""
        return copy(self)


# ---- words for messages


def printable(text: object) -> str:
    """Text that can be printed anywhere: unprintable characters, such as those of a file's name, are escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))


def escaped(text: object) -> str:
    """Text of several lines, each of them printable."""
    return "\n".join(map(printable, str(text).split("\n")))


def tell(text: object, file: TextIO | None = None) -> None:
    """Prints a text, to sys.stdout unless another `file` is given.

    All that is printed goes through here (a bar's line through `escaped`), because it may hold names and other text out
    of files, in which escape sequences would drive the reader's terminal.
    """
    print(escaped(text), file=file)


def list_files(paths: Sequence[object], most: int = 3) -> str:
    """The first paths, at most `most` of them, and the number of the others."""
    text = ", ".join(map(printable, paths[:most]))
    if len(paths) > most:
        text += f" and {len(paths) - most:,} more"
    return text


def guess(name: str, known: Iterable[str]) -> str:
    """ " Is ... meant?", with the known name that is most like this one; "" where none is."""
    nearest = difflib.get_close_matches(name, known, n=1)
    return f" Is {nearest[0]} meant?" if nearest else ""


def counted(count: int, noun: str) -> str:
    """A number of things in words: 1 file, 3 files, 2 classes."""
    plurals = {"y": noun[:-1] + "ies", "s": noun + "es"}
    if count != 1:
        noun = plurals.get(noun[-1], noun + "s")
    return f"{count:,} {noun}"


# ---- exceptions that are not ours


# Parts of PyTorch's messages. cuDNN, which finds no memory while it tries its kernels, says that it finds no kernel,
# which may have other reasons too (PyTorch, aten/src/ATen/native/cudnn/Conv_v8.cpp).
_OUT_OF_MEMORY = (
    "unable to find an engine",
    "BLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "error: out of memory",
    "DefaultCPUAllocator: can't allocate",
    "DefaultCPUAllocator: not enough memory",
    "Insufficient memory",  # OpenCV's words
)


def ran_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory is too small, the device's or the CPU's.

    Only some of PyTorch's have a type of their own; the others are known by their messages.
    """
    if isinstance(error, MemoryError) or isinstance(error, OSError) and error.errno == errno.ENOMEM:
        return True
    return type(error).__name__ == "OutOfMemoryError" or any(text in str(error) for text in _OUT_OF_MEMORY)


@contextmanager
def within_memory(path: str | Path) -> Iterator[None]:
    """What is done with one picture: where memory is too small for it, UnusableFile says so, and others can go on."""
    try:
        yield
    except Exception as error:
        if not isinstance(error, MemoryError) and "Insufficient memory" not in str(error):  # OpenCV's words
            raise
        error.__traceback__ = None  # which holds what did fit, as long as the UnusableFile is kept
        raise UnusableFile(path, "does not fit into memory", "Shrink it, or cut it into tiles") from None


_TOO_LITTLE_MEMORY = "there is too little memory. Close other programs, or lower the sizes that are worked on"
_TOO_MANY_OPEN = "too many files are open. Raise the limit (see `ulimit -n`), or lower NUM_WORKERS"
_DENIED = "permission denied. Change the folder's permissions, or give another one"
_CURES = {
    errno.ENOSPC: "the disk is full. Free some space, then start again",
    errno.EDQUOT: "the disk quota is used up. Free some space, then start again",
    errno.EFBIG: "the file would outgrow the size that this system allows (see `ulimit -f`)",
    errno.EROFS: "the file system is read-only. Give another folder",
    errno.EACCES: _DENIED,
    errno.EPERM: _DENIED,
    errno.ENOENT: "there is no such file or folder, or it was removed meanwhile. Put it back, or give another one",
    errno.EMFILE: _TOO_MANY_OPEN,
    errno.ENFILE: _TOO_MANY_OPEN,
    errno.ENOMEM: _TOO_LITTLE_MEMORY,
    errno.ENOTDIR: "a part of this path is a file, where a folder is needed. Give another one",
    errno.EEXIST: "a file has the name of a folder that is needed. Give another one",
    errno.EISDIR: "this is a folder, where a file is needed. Give another name",
    errno.ENAMETOOLONG: "the name is too long for the file system. Shorten it",
}


def describe(error: OSError) -> str | None:
    """An error of the operating system in words; None where it is none, as some of Pillow's, which have no number."""
    if error.errno is None:
        return None
    place = f"{error.filename}: " if error.filename else ""
    return f"{place}{_CURES.get(error.errno, error.strerror)}."


# ---- how a script ends


class Terminated(BaseException):
    """SIGTERM has arrived. Like KeyboardInterrupt it is no Exception, so that `except Exception` lets it pass."""


_signal: int | None = None  # the signal that has arrived


def _on_signal(number: int, frame: FrameType | None) -> None:
    global _signal
    _signal = number
    stop_if_asked()


def stop_if_asked() -> None:
    """Raises KeyboardInterrupt or Terminated if a signal has arrived. Long loops call this in each step.

    The handler alone does not suffice: Python drops an exception that is raised in a destructor, or in the callback of
    a weak reference, where the handler may happen to run.
    """
    if _signal == signal.SIGINT:
        raise KeyboardInterrupt
    if _signal is not None:
        raise Terminated


def _report_dropped(dropped: Any) -> None:
    """sys.unraisablehook: prints what Python has dropped, but not our own two, which stop_if_asked raises again.

    Nor the complaint of a DataLoader's workers that could not all be started, which is raised as an error already.
    """
    of_workers = getattr(dropped.object, "__qualname__", "") == "_MultiProcessingDataLoaderIter.__del__"
    if not of_workers and not issubclass(dropped.exc_type, (KeyboardInterrupt, Terminated)):
        sys.__unraisablehook__(dropped)


def run(main: Callable[[], int | None]) -> None:
    """Calls main(), tells a user's error in words, and ends the process with its exit status, unless that is 0."""
    global _signal
    _signal = None
    atexit.register(gc.freeze)  # spares the search through all objects as the interpreter ends, which takes a second
    if threading.current_thread() is threading.main_thread():  # the only one that may set handlers
        sys.unraisablehook = _report_dropped
        signal.signal(signal.SIGINT, _on_signal)
        signal.signal(signal.SIGTERM, _on_signal)
    message = ""
    try:
        status = main() or 0
    except UserError as error:
        status, message = 2, str(error)
    except KeyboardInterrupt:
        status, message = 130, "Stopped."
    except Terminated:
        status, message = 143, "Stopped by SIGTERM."
    except BrokenPipeError:  # the reader of our output (`| head`) has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 141
    except MemoryError:
        status, message = 2, f"{_TOO_LITTLE_MEMORY[0].upper()}{_TOO_LITTLE_MEMORY[1:]}."
    except OSError as error:
        description = describe(error)
        if description is None:
            raise
        status, message = 2, description
    if message:
        tell(f"\n{message}", file=sys.stderr)
    if status:
        sys.exit(status)
