"""MINUTES: a run ends in time, its last epoch early if need be, and a resumed run keeps the plan."""

from types import SimpleNamespace

import pytest
import torch
from helpers import SMALL, history

import train
from parts import budget
from parts.budget import TimedSchedule, halve_until_it_fits
from parts.errors import UserError
from parts.losses import Loss
from unet import UNet

STEP, EPOCH = 0.1, 2.0  # seconds


class Clock:
    """In the place of the module time: it goes on where a test says so."""

    now = 1000.0

    def perf_counter(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    monkeypatch.setattr(budget, "time", Clock())
    return budget.time


def timed(seconds, begun, steps_per_epoch=20, **settings):
    constants = dict(SCHEDULE="linear", NUM_EPOCHS=3, WARMUP=0.15, PLATEAU_PATIENCE=3, HALF_SIZE=0.0)
    s = SimpleNamespace(**constants | settings, MINUTES=seconds / 60)
    return TimedSchedule(torch.optim.SGD([torch.zeros(1, requires_grad=True)], 1.0), steps_per_epoch, s, begun)


def steps_of(schedule, clock, slowness):
    """Goes through a run as train.py does; gives its steps. `slowness`: factor of all times, after some seconds."""
    begun, epoch = clock.now, 0
    while epoch < schedule.settings.NUM_EPOCHS:
        for index in range(schedule.steps_per_epoch):
            step = epoch * schedule.steps_per_epoch + index
            clock.now += STEP * schedule._pixels(step / schedule.total) * slowness(clock.now - begun)
            schedule.before_step(step)
            if step + 1 >= schedule.total:
                break
        epoch += 1
        clock.now += EPOCH * slowness(clock.now - begun)
    return step + 1


@pytest.mark.parametrize("slowness", [
    lambda seconds: 1, lambda seconds: 1 + (seconds > 20), lambda seconds: 4 - 3 * (seconds > 3),
    lambda seconds: 1.5 + (seconds // 7 % 2),
])  # fmt: skip
@pytest.mark.parametrize(("steps_per_epoch", "half_size"), [(20, 0), (50, 0), (5000, 0), (100, 0.5)])
def test_a_schedule_ends_in_time_with_a_learning_rate_of_nearly_zero(clock, slowness, steps_per_epoch, half_size):
    """On a machine whose speed changes, too."""
    begun = clock.now
    schedule = timed(60, begun, steps_per_epoch, HALF_SIZE=half_size)
    schedule.epoch_seconds = EPOCH * slowness(0)
    steps = steps_of(schedule, clock, slowness)
    assert clock.now - begun == pytest.approx(60, rel=0.05)
    assert steps == schedule.total and -(-steps // steps_per_epoch) == schedule.settings.NUM_EPOCHS
    assert schedule.optimizer.param_groups[0]["lr"] < 0.05


def test_slow_steps_are_looked_at_each(clock):
    schedule = timed(60, clock.now)
    for step, look in enumerate((3, 3, 4, 5, 6)):
        clock.now += 5
        schedule.before_step(step)
        assert schedule.next_look == look
    assert 11 <= schedule.total <= 12


def test_a_resumed_schedule_keeps_the_plan_and_counts_the_time_that_is_spent(clock):
    schedule = timed(60, clock.now - 30)
    for step in range(30):
        clock.now += STEP
        schedule.before_step(step)
    state = schedule.state_dict()
    assert state["plan"]["seconds"] == pytest.approx(33)
    clock.now += 1000
    resumed = timed(60, clock.now)
    resumed.load_state_dict(state)
    assert (resumed.total, resumed.rising) == (schedule.total, schedule.rising)
    assert resumed.settings.NUM_EPOCHS == schedule.settings.NUM_EPOCHS > 3
    assert clock.now - resumed.begun == pytest.approx(33)
    for step in range(30, 60):
        clock.now += STEP
        resumed.before_step(step)
        assert resumed.total == schedule.total


class Small(UNet):
    """A U-Net for which memory is too small for more than four images."""

    def forward(self, images):
        if len(images) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return super().forward(images)


@pytest.mark.parametrize(("batch_size", "expected"), [(13, (3, 4)), (4, (4, 1)), (16, (4, 4))])
def test_batches_are_halved_until_they_fit(capsys, batch_size, expected):
    model, loss_fn = Small(features=(4, 8)), Loss("bce+dice")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    constants = dict.fromkeys(("CLASSES", "MASK_IGNORE", "CROP", "AUGMENT"))
    s = SimpleNamespace(**constants, FIT="stretch", BATCH_SIZE=batch_size, ACCUMULATE=1, PRECISION="float32")
    halve_until_it_fits(s, model, loss_fn, (32, 48))
    assert expected == (s.BATCH_SIZE, s.ACCUMULATE)
    assert ("ACCUMULATE 2." in capsys.readouterr().out) == (batch_size > 4)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.slow
def test_minutes_end_a_run_that_more_minutes_continue(prepared, monkeypatch, capsys):
    monkeypatch.chdir(prepared)
    flags = [*SMALL, "--batch-size", "1"]
    train.main([*flags, "--minutes", "0.05"])
    assert "MINUTES = 0.05 are" in capsys.readouterr().out
    epochs = len(history(prepared))
    saved = torch.load(prepared / "checkpoint.pth", weights_only=True)
    assert epochs == saved["settings"]["NUM_EPOCHS"] and saved["schedule"]["plan"]["budget"] == 3
    train.main([*flags, "--minutes", "0.05", "--load-model"])
    assert "--minutes 0.1" in capsys.readouterr().out and len(history(prepared)) == epochs
    train.main([*flags, "--minutes", "0.1", "--load-model"])
    assert len(history(prepared)) > epochs
    with pytest.raises(UserError, match="MINUTES = 0: a number, above 0"):
        train.main([*flags, "--minutes", "0"])
