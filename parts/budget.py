"""A schedule over as many steps as end within MINUTES."""

import time
from collections import deque
from types import SimpleNamespace
from typing import Any

import torch

from parts import processes
from parts.errors import counted
from parts.recipe import Schedule, size_factor

_LOOK_EVERY = 10  # steps between two looks at the clock
_WARM_UP = 2  # first steps of a process, which take longer
_RECENT = 200  # steps whose mean time is taken
_TOLERANCE = 0.03  # of MINUTES: a plan that ends so much earlier or later is kept


class TimedSchedule(Schedule):
    """A Schedule whose number of steps follows from how long steps take, and what is done after each epoch.

    It sets NUM_EPOCHS; the last epoch may end early. The plan is laid after the first steps, and anew where it would
    miss MINUTES by more than _TOLERANCE. A checkpoint keeps it, with the time that is spent: while it need not be laid
    anew, a resumed run goes on exactly. `begun`: when the run began, by time.perf_counter.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, steps_per_epoch: int, settings: SimpleNamespace, begun: float
    ) -> None:
        s = settings
        super().__init__(optimizer, s.SCHEDULE, steps_per_epoch, s.NUM_EPOCHS, s.WARMUP, s.PLATEAU_PATIENCE)
        self.settings, self.budget = s, 60.0 * s.MINUTES
        self.begun, self.last_look = begun, time.perf_counter()
        self.steps = 0  # of this process
        self.step_seconds: deque[float] = deque(maxlen=_RECENT)  # of a step at full size
        self.epoch_seconds = 0.0  # what is done between two epochs
        self.is_laid = False

    def before_step(self, step: int) -> None:
        """Sets the learning rate of `step`, with a look at the clock."""
        self._measure(step)
        is_first = step % self.steps_per_epoch == 0
        if self.step_seconds and (is_first or self.steps % _LOOK_EVERY == 0):
            self._lay(processes.first(lambda: self._plan(step)))
        super().before_step(step)

    def _measure(self, step: int) -> None:
        """Takes the time since the last step."""
        now = time.perf_counter()
        seconds, self.last_look = now - self.last_look, now
        self.steps += 1
        if self.steps == 1:  # what is done before the first epoch takes about as long as between two
            self.epoch_seconds = self.epoch_seconds or seconds
        elif step % self.steps_per_epoch == 0 and self.step_seconds:
            self.epoch_seconds = max(0.0, seconds - self._step_seconds() * self._pixels(step / self.total))
        elif self.steps > _WARM_UP:
            self.step_seconds.append(seconds / self._pixels(step / self.total))

    def _step_seconds(self) -> float:
        return sum(self.step_seconds) / len(self.step_seconds)

    def _pixels(self, share: float) -> float:
        """The share of an image's pixels that a step has after that share of all steps (HALF_SIZE)."""
        return size_factor(share, self.settings.HALF_SIZE) ** 2

    def _plan(self, step: int) -> int:
        """The number of all steps with which a run ends in time, before `step`, counted from 0, is made."""
        left = self.budget - (time.perf_counter() - self.begun)
        shares = torch.linspace(min(1.0, step / self.total), 1, 50).tolist()
        seconds = self._step_seconds() * sum(map(self._pixels, shares)) / len(shares)
        epoch = step // self.steps_per_epoch
        if self.is_laid and step < self.total:
            needed = (self.total - step) * seconds + (self._epochs(self.total) - epoch) * self.epoch_seconds
            if abs(needed - left) < _TOLERANCE * self.budget:
                return self.total
        total, affordable, epochs = step + 1, step + 2, epoch
        while affordable > epochs * self.steps_per_epoch:
            epochs += 1
            affordable = step + int((left - (epochs - epoch) * self.epoch_seconds) / seconds)
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
