"""One process, or several that torchrun starts: which one this is, and what they exchange.

Without torchrun's variables nothing of torch.distributed is used, and every function here does the plain thing for one
process. Sums travel by gloo or NCCL, whichever the tensor's device needs.
"""

import atexit
import ctypes
import gc
import importlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from parts.errors import UserError, ran_out_of_memory, tell

Result = TypeVar("Result")

MISSING_AFTER = timedelta(minutes=5)  # without an answer to an exchange of the others a process counts as missing
ROLL_CALL = timedelta(seconds=15)  # in which those that have waited for it tell each other that they are there


class Elsewhere(UserError):
    """Another process has failed, and says why."""


def _missing(seconds: float, numbers: list[int]) -> Elsewhere:
    """What to say where some processes have not answered for so long."""
    listed = ", ".join(map(str, numbers)) or "another one"
    return Elsewhere(
        f"Process {rank()} has waited {seconds:.0f} s for process {listed}, which does not answer: it hangs, or its "
        "machine cannot be reached. Stop what is left of it, then go on with --load-model."
    )


# ---- who is there


class MeetingPlace:
    """What torchrun's processes tell each other through its store.

    In an exchange of tensors a process waits for MISSING_AFTER. Work of one process, such as making arrays, may take
    hours; the others wait for it as long as it shows signs of life.
    """

    def __init__(self, store: dist.Store, rank: int, world_size: int) -> None:
        self.notes = store  # outlives the processes: those that torchrun starts in their place find it again
        self.rank, self.world_size = rank, world_size
        # A restarted process must not find the addresses of earlier ones.
        self.store = dist.PrefixStore(f"restart {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
        self._meetings = 0

    @contextmanager
    def heartbeat(self) -> Iterator[None]:
        """A thread that shows, during the block, that this process lives."""
        ended = threading.Event()

        def beat() -> None:
            with suppress(RuntimeError):  # the store has gone, and the others with it
                while not ended.wait(MISSING_AFTER.total_seconds() / 20):
                    self.store.add(f"beats {self.rank}", 1)

        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        except BaseException:
            with suppress(RuntimeError):
                self.store.add("left", 1)
            raise
        finally:
            ended.set()
            thread.join()

    def meet(self) -> None:
        """Waits until all processes have come here equally often.

        Elsewhere: one has ended, or shows no sign of life any more.
        """
        self._meetings += 1
        name, pause = f"meeting {self._meetings}", 0.001
        arrived = self.store.add(name, 1)
        patience = MISSING_AFTER.total_seconds()
        begin, beats = time.monotonic(), self._beats()
        while arrived < self.world_size:
            time.sleep(pause)
            pause = min(2 * pause, 0.1)
            if self.store.add("left", 0):
                raise Elsewhere(f"Process {self.rank} cannot go on with the others; see what they say.")
            if time.monotonic() - begin > patience:
                now = self._beats()
                if silent := [number for number in range(self.world_size) if now[number] == beats[number]]:
                    raise _missing(patience, silent)
                begin, beats = time.monotonic(), now
            arrived = self.store.add(name, 0)

    def _beats(self) -> list[int]:
        return [self.store.add(f"beats {number}", 0) for number in range(self.world_size)]

    def roll_call(self) -> list[int]:
        """The processes that do not tell, as each one does here, that they have waited for another one."""
        names = [f"process {number} has waited" for number in range(self.world_size)]
        end = time.monotonic() + ROLL_CALL.total_seconds()
        try:
            self.store.set(names[self.rank], "")
            while time.monotonic() < end and not self.store.check(names):
                time.sleep(0.1)
            return [number for number, name in enumerate(names) if not self.store.check([name])]
        except RuntimeError:  # the store is out of reach, as the machine of process 0 is
            return [0]


_meeting_place: MeetingPlace | None = None


def _meet() -> None:
    """Waits for all processes, which may have work of hours before an exchange."""
    assert _meeting_place is not None, "there are others"
    with _exchange():
        _meeting_place.meet()


# ---- starting


@contextmanager
def together(device: str = "auto") -> Iterator[torch.device]:
    """Joins torchrun's processes, if there are any, and gives the device of this one."""
    global _meeting_place
    alone = int(os.environ.get("WORLD_SIZE", 1)) == 1
    if not alone and ":" in device:
        raise UserError(f'DEVICE = "{device}": with torchrun each process takes a GPU of its own. Set it to "cuda".')
    own_device = pick_device(device, int(os.environ.get("LOCAL_RANK", 0)))
    if not alone or dist.is_torchelastic_launched():
        _meeting_place = MeetingPlace(*next(dist.rendezvous("env://", timeout=MISSING_AFTER)))
    if alone:
        yield own_device
        return
    # The group's threads end with the last object that holds on to it; where they outlive the interpreter they abort
    # it, now and then. DistributedDataParallel imports this module, which would hold on for ever if the group was there
    # already. The network is one more such object, and frames that imports leave behind may hold it until collected.
    importlib.import_module("torch._dynamo")
    atexit.register(gc.collect)
    backend = "gloo"
    if own_device.type == "cuda":
        backend = "cpu:gloo,cuda:nccl"
    place = _meeting_place
    assert place is not None, "torchrun has a store"
    options: dict[str, Any] = dict(store=place.store, rank=place.rank, world_size=place.world_size)
    dist.init_process_group(backend, timeout=MISSING_AFTER, **options)
    try:
        with place.heartbeat():
            yield own_device
    finally:
        if backend == "gloo" or sys.exc_info()[0] is None:  # after an error NCCL's may wait for the others for ever
            dist.destroy_process_group()


def pick_device(name: str, local_rank: int = 0) -> torch.device:
    """The torch.device that the constant DEVICE means on this machine.

    `local_rank`: this process's number on it, and the number of its GPU where the name has none.
    UserError: the machine has no such device.
    """
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(kind for kind, is_there in available.items() if is_there)  # the fastest
    kind, _, number = name.partition(":")
    if not available.get(kind):
        raise UserError(f'DEVICE = "{name}": this machine has none. "auto" takes what there is.')
    if kind != "cuda":
        return torch.device(kind)
    number = number or str(local_rank)
    if not number.isdigit() or int(number) >= torch.cuda.device_count():
        raise UserError(
            f'DEVICE = "cuda:{number}": there are {torch.cuda.device_count()} GPUs, counted from 0. '
            "Start no more processes than GPUs (--nproc_per_node)."
        )
    device = torch.device("cuda", int(number))
    torch.cuda.set_device(device)  # events and NCCL take the current one
    return device


def keep_freed_memory() -> None:
    """On Linux, makes malloc keep freed memory, rather than hand the pages of each large tensor back to the system.

    Faulting them in again costs a training step on a CPU a fifth of its time.
    (mallopt(3): M_MMAP_MAX is -4, M_TRIM_THRESHOLD -1.)
    """
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):  # glibc
        libc.mallopt(-4, 0)
        libc.mallopt(-1, -1)


# ---- which process this is


def rank() -> int:
    """This process's number, 0 when it is alone."""
    if dist.is_initialized():
        return dist.get_rank()
    return 0


def world_size() -> int:
    """How many processes train together."""
    if dist.is_initialized():
        return dist.get_world_size()
    return 1


def note(name: str) -> None:
    """Leaves a note for the processes that torchrun may start in the place of these."""
    if _meeting_place is not None:
        _meeting_place.notes.set(name, "")


def is_noted(name: str) -> bool:
    """Whether a process of this torchrun has left a note of that name."""
    return _meeting_place is not None and _meeting_place.notes.check([name])


def say(text: str) -> None:
    """Prints a text once, and not once in every process."""
    if rank() == 0:
        tell(text)


# ---- training together


def wrap(network: nn.Module, device: torch.device, sync_batchnorm: bool = False) -> nn.Module:
    """The network as training calls it: itself, or with several processes a DistributedDataParallel around it.

    UserError: `sync_batchnorm` on a device for which PyTorch has none.
    """
    if world_size() == 1:
        return network
    if sync_batchnorm:
        if device.type == "cpu":
            raise UserError("SYNC_BATCHNORM: PyTorch synchronises it on GPUs alone. Leave it off on a CPU.")
        network = nn.SyncBatchNorm.convert_sync_batchnorm(network)
    device_ids = None
    if device.type == "cuda":
        device_ids = [device.index]
    with _exchange():
        model = DistributedDataParallel(network, device_ids=device_ids)
    # BatchNorm's statistics are shared once an epoch (same_everywhere), not before every step. This attribute says so
    # to every version of PyTorch; the argument for it has another name in the newest one.
    model.broadcast_buffers = False
    return model


@contextmanager
def synchronised(model: nn.Module, last: bool) -> Iterator[None]:
    """Where a batch goes forward and backward; gradients are averaged in the `last` batch of a step alone."""
    exchange: AbstractContextManager = nullcontext()
    if isinstance(model, DistributedDataParallel) and not last:
        exchange = model.no_sync()
    failure: type[Exception] = RuntimeError
    if world_size() > 1 and next(model.parameters()).device.type == "cuda":
        failure = dist.DistError  # NCCL's own: other failures of a step are then the step's
    with exchange, _exchange(failure):
        yield


@contextmanager
def _exchange(failure: type[Exception] = RuntimeError) -> Iterator[None]:
    """An exchange with the other processes: `failure` in it means that one of them has gone, which becomes Elsewhere.

    Gloo has no type of error for that, so every RuntimeError in an exchange counts as one.
    """
    begin = time.monotonic()
    try:
        yield
    except failure as error:
        if world_size() == 1 or ran_out_of_memory(error):
            raise
        waited = time.monotonic() - begin
        if waited >= MISSING_AFTER.total_seconds():
            assert _meeting_place is not None, "there are others"
            raise _missing(waited, _meeting_place.roll_call()) from error
        first_line = (str(error).splitlines() or [""])[0][:200]
        raise Elsewhere(f"Process {rank()} cannot go on with the others; see what they say. ({first_line})") from error


def sum_over_all(tensor: Tensor) -> Tensor:
    """The sum of every process's tensor, in place, on every process."""
    if world_size() > 1:
        with _exchange():
            dist.all_reduce(tensor, op=dist.ReduceOp.SUM)
    return tensor


def first(function: Callable[[], Result]) -> Result:
    """Calls a function on process 0 alone and gives its result to all; its failure ends all of them."""
    if world_size() == 1:
        return function()
    message: list = [None, True]  # the result, and whether there is one
    error = None
    if rank() == 0:
        try:
            message[0] = function()
        except Exception as failure:
            error, message[1] = failure, False
    _meet()
    with _exchange():
        dist.broadcast_object_list(message, src=0)
    if error is not None:
        raise error
    result, succeeded = message
    if not succeeded:
        raise Elsewhere("")  # process 0 says why
    return result


def refuse(message: str) -> None:
    """Ends all processes with a UserError, which process 0 alone tells."""

    def fail() -> None:
        raise UserError(message)

    first(fail)


def agreed(make: Callable[[], Result], difference: Callable[[Result, Result], str]) -> Result:
    """What `make` gives on process 0, if it gives the same on every machine.

    `difference(that of process 0, that of this machine)`: in what the two differ, in words; "" where they do not.
    UserError, on all processes: they differ somewhere, or could not be made.
    """
    value = first(make)
    if world_size() == 1:
        return value
    text = ""
    if rank() > 0 and int(os.environ.get("LOCAL_RANK", 0)) == 0:  # the first process of another machine
        try:
            text = difference(value, make())
        except UserError as error:
            text = str(error)
    texts: list = [None] * world_size()
    _meet()
    with _exchange():
        dist.all_gather_object(texts, text)
    lines = [f"Process {number}: {text}." for number, text in enumerate(texts) if text]
    if lines:
        raise UserError("\n".join([*lines, "All machines need the same, so that their processes train one network."]))
    return value


@torch.no_grad()
def same_everywhere(module: nn.Module) -> None:
    """Gives every process the BatchNorm statistics of process 0; each has those of its own batches."""
    if world_size() > 1:
        with _exchange():
            for buffer in module.buffers():
                dist.broadcast(buffer, src=0)
