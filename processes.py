"""One process or several: who is first, and sums over all of them."""

import torch
import torch.distributed as dist


def rank():
    """This process's number, 0 when it is alone."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size():
    """How many processes train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def sum_over_all(tensor):
    """The sum of every process's `tensor`, in place, on every process."""
    if world_size() > 1:
        dist.all_reduce(tensor, op=dist.ReduceOp.SUM)
    return tensor


def first(function):
    """Calls `function()` on process 0 alone and gives its result to all; its failure fails all of them."""
    if world_size() == 1:
        return function()
    outcome = [None, None]
    if rank() == 0:
        try:
            outcome[0] = function()
        except Exception as error:
            outcome[1] = error
    dist.broadcast_object_list(outcome, src=0)
    if outcome[1] is not None:
        raise outcome[1]
    return outcome[0]


def same_everywhere(module):
    """BatchNorm's running statistics differ between processes: everybody takes those of process 0."""
    if world_size() > 1:
        with torch.no_grad():
            for buffer in module.buffers():
                dist.broadcast(buffer, src=0)
