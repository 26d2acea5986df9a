"""Files that are whole or absent: written beside their place, flushed to disk, moved into it."""

import os
import shutil
import tempfile
import threading
from pathlib import Path

_SUFFIX = ".part"  # what an interrupted write leaves behind ends in this
_UMASK = threading.Lock()


def write_whole(path, write, sync=True):
    """Calls `write(file)` with a binary file that becomes `path` once it is complete.

    A reader sees the old file or the new one, at every instant and after every kind of death.
    `sync=False` spares the flush to disk for files that are cheap to make again.
    """
    path = Path(path)
    handle, name = _temporary(path)
    try:
        with os.fdopen(handle, "wb") as file:
            write(file)
            file.flush()
            if sync:
                os.fsync(file.fileno())
        os.chmod(name, 0o666 & ~_umask())  # mkstemp gives 0600, which other accounts could not read
        os.replace(name, path)
    except BaseException as error:
        Path(name).unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename in (None, name):
            error.filename = str(path)  # "disk full" should say where
        raise
    if sync:
        _sync_folder(path.parent)


def write_text(path, text):
    """The UTF-8 text `text` at `path`, whole."""
    write_whole(path, lambda file: file.write(text.encode()))


def copy_whole(source, target):
    """`target` becomes the same file as `source`: a second name where the system can, else a copy.

    Sharing is safe because no file is ever changed in its place, only replaced.
    """
    handle, name = _temporary(Path(target))
    os.close(handle)
    try:
        os.unlink(name)
        os.link(source, name)
        os.replace(name, target)
        Path(name).unlink(missing_ok=True)  # rename does nothing between two names of one file
    except OSError:
        Path(name).unlink(missing_ok=True)
        with open(source, "rb") as original:
            write_whole(target, lambda file: shutil.copyfileobj(original, file))


def _temporary(path):
    """(handle, name) of a new file beside `path`."""
    try:
        return tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:40]}.", suffix=_SUFFIX)
    except OSError as error:
        error.filename = str(path)  # the name that the reader knows
        raise


def remove_leftovers(folder):
    """Clears away what killed writers left in `folder`; only call it where nobody else writes."""
    for part in Path(folder).glob(f".*{_SUFFIX}"):
        part.unlink(missing_ok=True)


def _umask():
    with _UMASK:  # it can only be read by changing it, for the whole process
        value = os.umask(0)
        os.umask(value)
    return value


def _sync_folder(folder):
    """The new name itself must survive a power cut; not every system can do it."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    except OSError:
        pass
    finally:
        os.close(handle)
