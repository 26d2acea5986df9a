"""The progress of one epoch: its bar, its mean loss, the time without data, and a loss that is not finite."""

from __future__ import annotations

import math
import time
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from parts import processes
from parts.errors import UserError, printable

_READ_LOSS_EVERY = 20  # steps between two looks at the loss, each of which waits for the device


class Progress:
    """The progress bar of one epoch, with its mean loss and the share of the time in which the device had no data.

    `loader`: a utils.Loader. Looking at a loss waits for the device, so on a GPU they are read _READ_LOSS_EVERY at a
    time.
    """

    def __init__(self, loader: Any, epoch: int, num_epochs: int, device: torch.device) -> None:
        self.loader, self.epoch = loader, epoch
        title = f"Epoch {epoch + 1}/{num_epochs}"
        self.bar = tqdm(total=len(loader), desc=title, disable=processes.rank() > 0 or None, leave=False)
        self.read_every = 1 if device.type == "cpu" else _READ_LOSS_EVERY
        self.last_step: torch.cuda.Event | None = None  # the device has reached it: it has nothing left to do
        if device.type == "cuda":
            self.last_step = torch.cuda.Event()
        self.unread: list[Tensor] = []
        self.batches_read, self.sum_of_losses = 0, 0.0
        self.waited = 0.0
        self.begin = self.asked = time.perf_counter()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *failure: object) -> None:
        self.bar.close()

    def batch_arrived(self) -> None:
        """Counts the time since the last batch as waiting, unless the device was still at work on that."""
        if self.last_step is None or self.last_step.query():
            self.waited += time.perf_counter() - self.asked

    def batch_done(self, loss: Tensor) -> None:
        """Takes the loss of a batch. UserError: one is not finite."""
        self.unread.append(loss)
        if len(self.unread) == self.read_every:
            self._read()
        self.bar.update()
        if self.last_step is not None:
            self.last_step.record()
        self.asked = time.perf_counter()

    def _read(self) -> None:
        """Reads the losses that were taken since the last time. UserError: one is not finite."""
        if not self.unread:
            return
        losses = torch.stack(self.unread).tolist()
        refuse_infinite(losses, self.loader, self.epoch, self.batches_read)
        self.sum_of_losses += sum(losses)
        self.batches_read, self.unread = self.batches_read + len(losses), []
        mean = f"{self.sum_of_losses / self.batches_read:.4f}"
        self.bar.set_postfix(loss=mean, waiting=f"{100 * self.waiting:.0f}%", refresh=False)

    @property
    def waiting(self) -> float:
        """The share of the epoch's time that was spent waiting for data."""
        return self.waited / (time.perf_counter() - self.begin)

    def mean_loss(self) -> float:
        """The mean over the batches of all processes. UserError: a loss is not finite."""
        self._read()
        sums = torch.tensor([self.sum_of_losses, self.batches_read], dtype=torch.float64)
        total, count = processes.sum_over_all(sums)
        return float(total / count)


def refuse_infinite(losses: list[float], loader: Any, epoch: int, first: int) -> None:
    """Ends the run where a loss is not finite, with the files of its batch.

    `losses`: those of the batches `first`, `first` + 1, ... of `epoch`, both counted from 0. UserError: one is not
    finite.
    """
    for batch, value in enumerate(losses, first):
        if math.isfinite(value):
            continue
        start = batch * loader.batch_size
        order = loader.sampler.order(epoch)[start : start + loader.batch_size]
        names = "\n".join(f"  {printable(loader.dataset.pair_of(index).image)}" for index in order)
        raise UserError(
            f"The loss is {value} in epoch {epoch + 1}, batch {batch + 1}, of these files:\n{names}\n"
            "The last checkpoint is from before it. Look at the files; then lower LEARNING_RATE, keep "
            "CLIP_GRADIENT on, or try PRECISION = 'float32'."
        )
