"""One process or several, started by torchrun: who is first, and what they share.

Without torchrun's variables nothing of torch.distributed is touched, and every function here is the
plain thing for one process. Sums travel by gloo or NCCL, whichever the tensor's device needs.
"""

import ctypes
import importlib
import os
import sys
from contextlib import contextmanager, nullcontext
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from parts.errors import UserError, ran_out_of_memory


class Elsewhere(UserError):
    """Another process has failed and says why."""


@contextmanager
def together(device="auto"):
    """Joins torchrun's processes, if there are any, and gives this one's torch.device."""
    alone = int(os.environ.get("WORLD_SIZE", 1)) == 1
    if not alone and ":" in device:
        raise UserError(f'DEVICE = "{device}": with torchrun each process takes a GPU of its own. Set it to "cuda".')
    device = pick_device(device, int(os.environ.get("LOCAL_RANK", 0)))
    if alone:
        yield device
        return
    # DistributedDataParallel imports it. Imported after the processes have joined it holds on to their group,
    # whose threads then outlive destroy_process_group and, now and then, abort the interpreter at its end.
    importlib.import_module("torch._dynamo")
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    # Making the arrays of a large set may take process 0 a while, and the others wait that long.
    dist.init_process_group(backend, timeout=timedelta(hours=2))
    try:
        yield device
    finally:
        if backend == "gloo" or sys.exc_info()[0] is None:  # after an error NCCL's may wait for the others for ever
            dist.destroy_process_group()


def pick_device(name, local_rank=0):
    """The torch.device that DEVICE = `name` means here; UserError where there is none of it."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    available = {"cuda": torch.cuda.is_available, "mps": torch.backends.mps.is_available, "cpu": lambda: True}
    kind = name.split(":")[0]
    if kind not in available or not available[kind]():
        raise UserError(f'DEVICE = "{name}": this machine has none. "auto" takes what there is.')
    if kind != "cuda":
        return torch.device(kind)
    index = name.partition(":")[2] or str(local_rank)
    if not index.isdigit() or int(index) >= torch.cuda.device_count():
        raise UserError(
            f'DEVICE = "cuda:{index}": there are {torch.cuda.device_count()} GPUs, counted from 0. '
            "Start no more processes than GPUs (--nproc_per_node)."
        )
    device = torch.device("cuda", int(index))
    torch.cuda.set_device(device)  # events and NCCL go by the current one
    return device


def keep_freed_memory():
    """On Linux, has malloc keep what is freed, rather than hand each large tensor's pages back to the system.

    Faulting them in again costs a training step on a CPU a fifth of its time.
    (mallopt(3): M_MMAP_MAX is -4, M_TRIM_THRESHOLD -1.)
    """
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if hasattr(libc, "mallopt"):  # glibc
        libc.mallopt(-4, 0)
        libc.mallopt(-1, -1)


def rank():
    """This process's number, 0 when it is alone."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size():
    """How many processes train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def wrap(network, device, sync_batchnorm=False):
    """`network` as training calls it: itself, or a DistributedDataParallel around it.

    UserError: `sync_batchnorm` on a device for which PyTorch has none.
    """
    if world_size() == 1:
        return network
    if sync_batchnorm:
        if device.type == "cpu":
            raise UserError("SYNC_BATCHNORM: PyTorch synchronises it on GPUs alone. Leave it off on a CPU.")
        network = torch.nn.SyncBatchNorm.convert_sync_batchnorm(network)
    model = DistributedDataParallel(network, device_ids=[device.index] if device.type == "cuda" else None)
    # BatchNorm's statistics are shared once an epoch (same_everywhere), not before every step. The newest
    # PyTorch has another name for the argument and keeps this attribute.
    model.broadcast_buffers = False
    return model


@contextmanager
def synchronised(model, last):
    """Gradients are averaged over the processes at the `last` batch of a step alone."""
    nccl = world_size() > 1 and next(model.parameters()).device.type == "cuda"
    silent = nullcontext() if last or not isinstance(model, DistributedDataParallel) else model.no_sync()
    with silent, _exchange(dist.DistError if nccl else RuntimeError):
        yield


@contextmanager
def _exchange(failure=RuntimeError):
    """What fails in an exchange with the other processes fails because one of them has gone.

    Gloo has no type of error for that; the place tells it. NCCL's is DistError, by which it is told where a step of
    the network's may fail as well.
    """
    try:
        yield
    except failure as error:
        if world_size() == 1 or ran_out_of_memory(error):
            raise
        first_line = (str(error).splitlines() or [""])[0][:200]
        raise Elsewhere(f"Process {rank()} cannot go on with the others; see what they say. ({first_line})") from error


def sum_over_all(tensor):
    """The sum of every process's `tensor`, in place, on every process."""
    if world_size() > 1:
        with _exchange():
            dist.all_reduce(tensor, op=dist.ReduceOp.SUM)
    return tensor


def first(function):
    """Calls `function()` on process 0 alone and gives its result to all; its failure ends all of them."""
    if world_size() == 1:
        return function()
    outcome = [None, True]
    error = None
    if rank() == 0:
        try:
            outcome[0] = function()
        except Exception as failure:
            error, outcome[1] = failure, False
    with _exchange():
        dist.broadcast_object_list(outcome, src=0)
    if error is not None:
        raise error
    if not outcome[1]:
        raise Elsewhere("")
    return outcome[0]


@torch.no_grad()
def same_everywhere(module):
    """BatchNorm's running statistics differ between processes: everybody takes those of process 0."""
    if world_size() > 1:
        with _exchange():
            for buffer in module.buffers():
                dist.broadcast(buffer, src=0)
