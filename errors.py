"""How a script ends: a user's mistake in one message, a signal with the work saved.

Exit statuses: 0 done; 1 some of the inputs failed; 2 a mistake to mend; 130 Ctrl-C; 143 SIGTERM.
"""

import errno
import os
import signal
import sys
import threading


class UserError(Exception):
    """A mistake that its reader can mend. The message names the file or constant, and what to do."""


class Terminated(BaseException):
    """SIGTERM has arrived; like KeyboardInterrupt it passes through `except Exception`."""


_asked_by = None  # the signal that has arrived


def _first_signal(number, frame):
    global _asked_by
    _asked_by = number
    signal.signal(number, signal.SIG_DFL)  # the second one ends the process at once
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


def watch_signals():
    """The first Ctrl-C or SIGTERM unwinds the program; a second one ends it on the spot."""
    if threading.current_thread() is threading.main_thread():
        sys.unraisablehook = _tell_dropped
        signal.signal(signal.SIGINT, _first_signal)
        signal.signal(signal.SIGTERM, _first_signal)


def run(main):
    """Calls main() and leaves the process with the status that its end deserves."""
    watch_signals()
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
