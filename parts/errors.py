"""A user's mistakes in words, lists and counts in them, and how a script ends.

Exit statuses: 0 done; 1 some of the inputs failed; 2 a mistake to mend; 130 Ctrl-C; 143 SIGTERM.
"""

import errno
import os
import signal
import sys
import threading


class UserError(Exception):
    """A mistake that its reader can mend. The message names the file or constant, and what to do."""


class UnusableFile(UserError):
    """A file that cannot be used: `path`, `what` is wrong with it, and the `cure`."""

    def __init__(self, path, what=None, cure=None):
        # With its message alone DataLoader makes it again, from that of one raised in a worker.
        super().__init__(path if what is None else f"{printable(path)}: {what}. {cure}.")
        self.path, self.what, self.cure = path, what, cure

    def __reduce__(self):
        return UnusableFile, (self.path, self.what, self.cure)


def printable(path):
    """A path as it can be printed anywhere: what is unprintable in a name is escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(path))


def list_files(paths, most=3):
    """Some of the files, and how many more."""
    more = f" and {len(paths) - most:,} more" if len(paths) > most else ""
    return ", ".join(map(printable, paths[:most])) + more


def counted(count, noun):
    """A number of things in words: 1 file, 3 files, 2 classes."""
    plural = {"y": noun[:-1] + "ies", "s": noun + "es"}.get(noun[-1], noun + "s")
    return f"{count:,} {noun if count == 1 else plural}"


def ran_out_of_memory(error):
    """Whether an exception of PyTorch's says that memory is too small, the device's or the CPU's.

    Not all have a type of their own. cuDNN, which finds no room while it tries its kernels, says that it finds none of
    them, which may have other reasons too (PyTorch, aten/src/ATen/native/cudnn/Conv_v8.cpp).
    """
    words = ("unable to find an engine", "BLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")
    words += ("error: out of memory", "DefaultCPUAllocator: can't allocate", "DefaultCPUAllocator: not enough memory")
    return type(error).__name__ == "OutOfMemoryError" or any(word in str(error) for word in words)


class Terminated(BaseException):
    """SIGTERM has arrived; like KeyboardInterrupt it passes through `except Exception`."""


_asked_by = None  # the signal that has arrived


def _on_signal(number, frame):
    global _asked_by
    _asked_by = number
    stop_if_asked()


def stop_if_asked():
    """Raises for a signal that has arrived; long loops call it, because Python drops what a handler raises
    in the middle of a destructor or a weak reference's callback.
    """
    if _asked_by is not None:
        raise KeyboardInterrupt if _asked_by == signal.SIGINT else Terminated


def _tell_dropped(dropped):
    """What Python drops it prints with a traceback; a signal is no news, stop_if_asked raises it again."""
    if not issubclass(dropped.exc_type, (KeyboardInterrupt, Terminated)):
        sys.__unraisablehook__(dropped)


def run(main):
    """Calls main() and ends the process with the status that its end deserves, unless that is 0."""
    global _asked_by
    _asked_by = None
    if threading.current_thread() is threading.main_thread():
        sys.unraisablehook = _tell_dropped
        signal.signal(signal.SIGINT, _on_signal)
        signal.signal(signal.SIGTERM, _on_signal)
    try:
        status = main() or 0
    except UserError as mistake:
        if str(mistake):
            print(f"\n{mistake}", file=sys.stderr)
        status = 2
    except KeyboardInterrupt:
        print("\nStopped.", file=sys.stderr)
        status = 130
    except Terminated:
        print("\nStopped by SIGTERM.", file=sys.stderr)
        status = 143
    except BrokenPipeError:  # the reader of our output (`| head`) has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 141
    except OSError as error:
        words = describe(error)
        if words is None:
            raise
        print(f"\n{words}", file=sys.stderr)
        status = 2
    if status:
        sys.exit(status)


def describe(error):
    """An operating-system error in words, or None where a traceback says more."""
    where = f"{error.filename}: " if error.filename else ""
    cures = {
        errno.ENOSPC: "the disk is full. Free some space, then start again",
        errno.EDQUOT: "the disk quota is used up. Free some space, then start again",
        errno.EFBIG: "the file would outgrow the size that this system allows (see `ulimit -f`)",
        errno.EROFS: "the file system is read-only. Give another folder",
        errno.EACCES: "permission denied. Change the folder's permissions, or give another one",
        errno.ENOTDIR: "a part of this path is a file, where a folder is needed. Give another one",
        errno.EEXIST: "a file has the name of a folder that is needed. Give another one",
        errno.EISDIR: "this is a folder, where a file is needed. Give another name",
        errno.ENAMETOOLONG: "the name is too long for the file system. Shorten it",
        errno.EPERM: "permission denied. Change the folder's permissions, or give another one",
    }
    return f"{where}{cures[error.errno]}." if error.errno in cures else None
