"""How a run ends before its last epoch: in words, with what to change and the command that goes on."""

from __future__ import annotations

import math
import os
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

from parts import processes, recipe
from parts.errors import Terminated, UserError, ran_out_of_memory, tell
from parts.files import stamp

KILLED = "DataLoader worker (pid"  # PyTorch's words


@contextmanager
def ending_in_words(s: SimpleNamespace, argv: list[str] | None) -> Iterator[None]:
    """Tells what to change where memory runs out or a worker is killed, and how a run that has ended is continued."""
    checkpoint = Path(s.OUTPUT_DIR) / "checkpoint.pth"
    before = stamp(checkpoint)
    try:
        yield
    except UserError as error:  # such as a file that went, or a loss that is not finite
        if stamp(checkpoint) == before or processes.rank() > 0:
            raise
        raise UserError(f"{error}\n{how_to_continue(True, argv)}") from error
    except Exception as error:  # libraries have exceptions of their own for too little memory
        if ran_out_of_memory(error):
            raise UserError(out_of_memory_message(error, s)) from error
        if not worker_was_killed(error):
            raise
        raise UserError(
            "A worker that fetches batches was killed, perhaps because memory ran out. Go on with --load-model, and "
            "with a smaller NUM_WORKERS if it happens again."
        ) from None
    except (KeyboardInterrupt, Terminated):
        if processes.rank() == 0:
            has_epoch = s.LOAD_MODEL or stamp(checkpoint) != before or (s.FOLD or 1) > 1
            tell(f"\n{how_to_continue(has_epoch, argv)}", file=sys.stderr)
        raise


def how_to_continue(has_epoch: bool, argv: list[str] | None) -> str:
    """The command that continues a stopped run. `has_epoch`: an epoch of it is saved."""
    start = command_of("train.py")
    if processes.world_size() > 1:
        start = start.replace("python", "torchrun ...", 1)
    if argv is None:
        argv = sys.argv[1:]
    flags = [flag for flag in argv if flag != "--load-model"]
    advice = "No epoch was finished; start again"
    if has_epoch:
        advice = "Go on after the last finished epoch"
        flags.append("--load-model")
    return f"{advice} with:\n  {start} {shlex.join(flags)}".rstrip()


def command_of(script: str) -> str:
    """The command that starts a script beside the one that was started, from where that was."""
    path = os.path.join(os.path.dirname(sys.argv[0]), script)
    if not os.path.exists(path):  # a notebook's is elsewhere
        path = script
    return f"python {shlex.quote(path)}"


def worker_was_killed(error: BaseException) -> bool:
    """Whether an exception says that a worker of a DataLoader was killed.

    PyTorch has no type of its own for that. It raises a RuntimeError, out of a signal handler at whatever the main
    process is doing, or where the next batch is waited for (torch/utils/data/dataloader.py, torch/csrc/DataLoader.cpp).
    """
    return isinstance(error, RuntimeError) and KILLED in str(error)


def out_of_memory_message(error: BaseException, s: SimpleNamespace) -> str:
    """The cures for memory that has run out, with numbers."""
    constant = recipe.size_constant(s)
    size, batch_size = getattr(s, constant), s.BATCH_SIZE
    lines = [f"The device has run out of memory with BATCH_SIZE = {batch_size} at {constant} = {tuple(size)}."]
    if batch_size > 1:
        half = batch_size // 2
        flags = f"--batch-size {half} --accumulate {s.ACCUMULATE * batch_size // half}"
        lines.append(f"  {flags}: the same step in smaller pieces")
    smaller = [max(32, side * 3 // 4 // 16 * 16) for side in size]
    if math.prod(smaller) < math.prod(size):
        sides = " ".join(map(str, smaller))
        lines.append(f"  --{constant.lower().replace('_', '-')} {sides}: a little over half of the memory")
    lines.append("  FEATURES with fewer channels: a smaller network")
    first_line = (str(error).splitlines() or [type(error).__name__])[0]
    lines.append(f"({first_line[:200]})")
    return "\n".join(lines)
