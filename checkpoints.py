"""Checkpoints: whole at every instant, verified when read, and nothing in them executed."""

import os
import pickle
import socket
import zipfile
from contextlib import contextmanager
from pathlib import Path

import torch

from errors import UserError
from files import copy_whole, write_whole

try:
    import fcntl
except ImportError:  # Windows: two runs in one folder are then not noticed
    fcntl = None

WEIGHT_KEYS = ("state_dict", "model_state_dict", "model")  # ours and the article's; then other layouts
PREFIXES = ("_orig_mod.", "module.")  # torch.compile and DistributedDataParallel put these before keys


def save_checkpoint(state, filename="checkpoint.pth"):
    """Writes the dictionary `state` (tensors and plain types only) to `filename`, whole and flushed.

    A process killed at any moment, a full disk or a power cut leaves the old file or the new one.
    """
    print(f"=> Saving checkpoint {filename}")
    write_whole(filename, lambda file: _torch_save(state, file))


def _torch_save(state, file):
    try:
        torch.save(state, file)
    except RuntimeError as error:
        if isinstance(error.__context__, OSError):  # a full disk: the archive's own complaint hides the cause
            raise error.__context__ from None
        raise


def save_run(state, last, best=None):
    """Saves `state` as the file `last` and, where it is the best so far, as the file `best` too.

    The best one comes first: a run killed between the two repeats its epoch and writes both again.
    """
    save_checkpoint(state, best or last)
    if best:
        copy_whole(best, last)


def set_aside(output):
    """A new run in an old one's folder leaves the old one's work under another name, until the next new one."""
    for name in ("checkpoint.pth", "best.pth", "history.csv"):
        old = output / name
        if old.exists():
            kept = old.replace(output / f"{old.stem}.previous{old.suffix}")
            print(f"{old} of an earlier run is now {kept}")


def read_checkpoint(filename, device="cpu"):
    """The dictionary in `filename`, its weights under `state_dict` without a wrapper's prefixes.

    Every record's CRC is checked first, so a damaged file is refused rather than loaded wrong, and
    only tensors and plain types are unpickled. Files of the article's code, bare state dicts and
    those of torch.compile or DistributedDataParallel are read too. UserError names what is wrong.
    """
    expected = "Expected a file that train.py saved, or another PyTorch file with a state_dict"
    path = Path(filename)
    if not path.is_file():
        raise UserError(f"{path}: there is no such checkpoint. Train first, or name another file.")
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                damaged = archive.testzip()
            if damaged:
                raise UserError(f"{path}: damaged (checksum of {damaged}). Use another checkpoint.")
        checkpoint = torch.load(path, map_location=device, weights_only=True)
    except UserError:
        raise
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path}: refused, because it is damaged or holds more than tensors and plain values, "
            f"which could run code. {expected}."  # PyTorch's own words tell how to run it
        ) from error
    except Exception as error:  # a truncated or foreign file fails in many ways, all of them meaning this
        raise UserError(f"{path}: not a readable checkpoint ({_first_line(error)}). {expected}.") from error
    if not isinstance(checkpoint, dict):
        raise UserError(f"{path}: holds a {type(checkpoint).__name__}. {expected}.")
    key = next((key for key in WEIGHT_KEYS if isinstance(checkpoint.get(key), dict)), None)
    weights = checkpoint.pop(key) if key else checkpoint
    if not weights or not all(isinstance(value, torch.Tensor) for value in weights.values()):
        raise UserError(f"{path}: holds no weights. {expected}.")
    return (checkpoint if key else {}) | {"state_dict": without_prefixes(weights)}


def load_checkpoint(checkpoint, model):
    """Puts the weights of `checkpoint` (a dictionary with `state_dict`) into `model`, all or nothing."""
    print("=> Loading checkpoint")
    load_weights(model, without_prefixes(checkpoint["state_dict"]))


def load_weights(model, weights, source="the checkpoint"):
    """`model.load_state_dict`, with a misfit told in words (UserError)."""
    own = model.state_dict()
    missing = [key for key in own if key not in weights]
    foreign = [key for key in weights if key not in own]
    shapes = [
        f"{key} is {tuple(weights[key].shape)} there and {tuple(own[key].shape)} here"
        for key in own
        if key in weights and own[key].shape != weights[key].shape
    ]
    if missing or foreign or shapes:
        words = [f"{source} belongs to another architecture (FEATURES, ENCODER or the channels differ):"]
        for label, items in (("lacks", missing), ("has, unknown here,", foreign), ("misfit:", shapes)):
            if items:
                more = f" and {len(items) - 3} more" if len(items) > 3 else ""
                words.append(f"  {label} {', '.join(items[:3])}{more}")
        raise UserError("\n".join(words))
    model.load_state_dict(weights)


def without_prefixes(weights):
    """The same state dict, its keys as the bare network has them."""
    for prefix in PREFIXES * 2:  # either wrapper may be the outer one
        if weights and all(key.startswith(prefix) for key in weights):
            weights = {key[len(prefix) :]: value for key, value in weights.items()}
    return weights


@contextmanager
def sole_writer(folder):
    """Holds `folder` against a second run; UserError where another one lives in it.

    The lock is the kernel's and ends with its process, so that no stale one can be left. It is a POSIX
    record lock because those, unlike flock's, do not live on in a DataLoader's forked workers.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "a+") as file:
        if fcntl is not None:
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if not isinstance(error, (BlockingIOError, PermissionError)):
                    print(f"{folder}: its file system has no locks, so a second run here would not be noticed.")
                    yield
                    return
                file.seek(0)
                raise UserError(
                    f"{folder}: another run writes here ({file.read().strip() or 'unknown process'}). "
                    "Wait for its end, or give this one an OUTPUT_DIR of its own."
                ) from None
        file.seek(0)
        earlier = file.read().strip()
        if earlier:
            print(f"An earlier run ({earlier}) ended here without saying goodbye; its lock is void.")
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        try:
            yield
        finally:
            file.truncate(0)


def _first_line(error):
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
