"""What a run may take: as many steps as end within MINUTES, and batches that fit into the memory of a device."""

import time
from collections import deque
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from parts import processes
from parts.errors import counted, ran_out_of_memory
from parts.recipe import Schedule, autocast_dtype, size_factor, takes_labels, targets_of

_LOOK_EVERY = 10  # steps between two looks at the clock, or fewer where these take more than _TOLERANCE
_WARM_UP = 2  # first steps of a process, which take longer
_RECENT = 50  # steps whose mean time is taken
_TOLERANCE = 0.01  # of MINUTES: a plan that ends so much earlier or later is kept


class TimedSchedule(Schedule):
    """A Schedule whose number of steps follows from how long steps take, and what is done after each epoch.

    It sets NUM_EPOCHS; the last epoch may end early. The plan is laid after the first steps, and anew where it would
    miss MINUTES by more than _TOLERANCE. A checkpoint keeps it, with the time that is spent: a resumed run goes on with
    it. `begun`: when the run began, by time.perf_counter. `epoch_seconds`, what is done after an epoch takes, is
    measured after each, and before the first by who calls.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, steps_per_epoch: int, settings: SimpleNamespace, begun: float
    ) -> None:
        s = settings
        super().__init__(optimizer, s.SCHEDULE, steps_per_epoch, s.NUM_EPOCHS, s.WARMUP, s.PLATEAU_PATIENCE)
        self.settings, self.budget = s, 60.0 * s.MINUTES
        self.begun, self.last_look = begun, time.perf_counter()
        self.steps, self.next_look = 0, _WARM_UP + 1  # of this process
        self.step_seconds: deque[float] = deque(maxlen=_RECENT)  # of a step at full size
        self.epoch_seconds = 0.0  # what is done between two epochs
        self.step_seconds_then = 0.0  # of a step as that was measured: where the machine slows down both take longer
        self.is_laid = False

    def before_step(self, step: int) -> None:
        """Sets the learning rate of `step`, with a look at the clock."""
        self._measure(step)
        is_first = step % self.steps_per_epoch == 0
        if self.step_seconds and (is_first or self.steps >= self.next_look):
            total, pause = processes.first(lambda: (self._plan(step), self._pause()))
            self._lay(total)
            self.next_look = self.steps + pause
        super().before_step(step)

    def _measure(self, step: int) -> None:
        """Takes the time since the last step."""
        now = time.perf_counter()
        seconds, self.last_look = now - self.last_look, now
        self.steps += 1
        if self.steps == 1:
            return
        if step % self.steps_per_epoch == 0 and self.step_seconds:
            self.epoch_seconds = max(0.0, seconds - self._step_seconds() * self._pixels(step / self.total))
            self.step_seconds_then = self._step_seconds()
        elif self.steps > _WARM_UP:
            self.step_seconds.append(seconds / self._pixels(step / self.total))

    def _pause(self) -> int:
        """How many steps there are to the next look at the clock."""
        return max(1, min(_LOOK_EVERY, int(_TOLERANCE * self.budget / self._step_seconds())))

    def _step_seconds(self) -> float:
        return sum(self.step_seconds) / len(self.step_seconds)

    def _pixels(self, share: float) -> float:
        """The share of an image's pixels that a step has after that share of all steps (HALF_SIZE)."""
        return size_factor(share, self.settings.HALF_SIZE) ** 2

    def _plan(self, step: int) -> int:
        """The number of all steps with which a run ends in time, before `step`, counted from 0, is made."""
        left = self.budget - (time.perf_counter() - self.begun)
        self.step_seconds_then = self.step_seconds_then or self._step_seconds()
        epoch_seconds = self.epoch_seconds * self._step_seconds() / self.step_seconds_then
        shares = torch.linspace(min(1.0, step / self.total), 1, 50).tolist()
        seconds = self._step_seconds() * sum(map(self._pixels, shares)) / len(shares)
        epoch = step // self.steps_per_epoch
        if self.is_laid and step < self.total:
            needed = (self.total - step) * seconds + (self._epochs(self.total) - epoch) * epoch_seconds
            if abs(needed - left) < _TOLERANCE * self.budget:
                return self.total
        total, affordable, epochs = step + 1, step + 2, epoch
        while affordable > epochs * self.steps_per_epoch:
            epochs += 1
            affordable = step + int((left - (epochs - epoch) * epoch_seconds) / seconds)
            total = max(total, min(affordable, epochs * self.steps_per_epoch))
        return total

    def _epochs(self, steps: int) -> int:
        return -(-steps // self.steps_per_epoch)

    def _lay(self, total: int) -> None:
        """Lays the schedule over so many steps."""
        s, epochs = self.settings, self._epochs(total)
        if not self.is_laid:
            share = f"{total / self.steps_per_epoch:.1f} epochs"
            processes.say(f"MINUTES = {s.MINUTES:g} are {counted(total, 'step')}, {share}, as far as can be told now.")
        self.is_laid, self.total, s.NUM_EPOCHS = True, total, epochs
        self.rising = round(total * s.WARMUP)

    def state_dict(self) -> dict[str, Any]:
        """The state for a checkpoint, with the plan."""
        spent = time.perf_counter() - self.begun
        plan = dict(steps=self.total, budget=self.budget, seconds=spent, epoch_seconds=self.epoch_seconds)
        return super().state_dict() | {"plan": plan}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on with the plan of a checkpoint, whose time counts as spent."""
        super().load_state_dict(state)
        if plan := state.get("plan"):
            self.begun -= plan["seconds"]
            self.epoch_seconds = plan["epoch_seconds"]
            self.is_laid, self.total = True, plan["steps"]
            self.settings.NUM_EPOCHS = self._epochs(self.total) + (self.budget > plan["budget"])
            self.rising = round(self.total * self.settings.WARMUP)


def halve_until_it_fits(s: SimpleNamespace, model: nn.Module, loss_fn: nn.Module, size: tuple[int, int]) -> None:
    """Halves BATCH_SIZE and doubles ACCUMULATE until forward and backward at `size` fit into the device's memory.

    The model and its loss remain as they were. Where not even one image fits, training will say what to change.
    """
    while _runs_out(model, loss_fn, s, size) and s.BATCH_SIZE > 1:
        half = s.BATCH_SIZE // 2
        accumulate = round(s.ACCUMULATE * s.BATCH_SIZE / half)
        processes.say(
            f"The device's memory is too small for BATCH_SIZE = {s.BATCH_SIZE}: it is {half} now, and ACCUMULATE "
            f"{accumulate}. BatchNorm takes its statistics of {counted(half, 'image')} then."
        )
        s.BATCH_SIZE, s.ACCUMULATE = half, accumulate


def _runs_out(model: nn.Module, loss_fn: nn.Module, s: SimpleNamespace, size: tuple[int, int]) -> bool:
    """Whether memory is too small for a step on black images, in one of the processes."""
    device = next(model.parameters()).device
    statistics = {name: buffer.clone() for name, buffer in model.named_buffers()}
    runs_out = 0
    try:
        _try_step(model, loss_fn, s, size, device)
    except (RuntimeError, MemoryError) as error:
        if not ran_out_of_memory(error):
            raise
        runs_out = 1
    for name, buffer in model.named_buffers():
        buffer.copy_(statistics[name])
    model.zero_grad(set_to_none=True)
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return bool(processes.sum_over_all(torch.tensor([runs_out], dtype=torch.float64)).item())


def _try_step(
    model: nn.Module, loss_fn: nn.Module, s: SimpleNamespace, size: tuple[int, int], device: torch.device
) -> None:
    moments = [torch.empty_like(parameter) for parameter in (*model.parameters(), *model.parameters())]  # as AdamW's
    dtype = autocast_dtype(device, s.PRECISION)
    targets = targets_of(torch.zeros(s.BATCH_SIZE, *size, dtype=torch.uint8), device, takes_labels(s))
    model.train()
    images = torch.zeros(s.BATCH_SIZE, getattr(model, "in_channels", 3), *size, device=device)
    with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
        predictions = model(images.contiguous(memory_format=torch.channels_last))
    loss_fn(predictions.float(), targets).backward()
    del moments
