"""What is told of every epoch to a program that shows runs: LOGGER.

A logger is called with (epoch, row, folder): the epoch from 1, its row of history.csv as a dictionary, and the folder
of its pictures. A class is made one first.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2

from parts.errors import UserError
from parts.own import faults_of, load_part

Logger = Callable[[int, dict[str, Any], Path], None]
CONTRACT = "A logger is a function (epoch, row of the history, folder of pictures)."


class TensorBoard:
    """Scalars and examples.png of every epoch, for `tensorboard --logdir OUTPUT_DIR`. UserError: it is missing."""

    def __init__(self) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise UserError('LOGGER = "tensorboard": pip install tensorboard, or leave LOGGER = None.') from error
        self.make_writer = SummaryWriter
        self.writer: Any = None

    def __call__(self, epoch: int, row: dict[str, Any], folder: Path) -> None:
        if self.writer is None:  # what an earlier run, or a later epoch of this one, has left there is hidden
            self.writer = self.make_writer(str(folder.parent / "tensorboard"), purge_step=epoch)
        for name, value in row.items():
            if name != "epoch" and value is not None and math.isfinite(value):
                self.writer.add_scalar(name, value, epoch)
        picture = cv2.imread(str(folder / "examples.png"))
        if picture is not None:
            self.writer.add_image("examples", picture[:, :, ::-1], epoch, dataformats="HWC")
        self.writer.flush()


LOGGERS: dict[str, Any] = dict(tensorboard=TensorBoard)


def load_logger(chosen: Any) -> Logger:
    """The logger that LOGGER names; for None one that does nothing. UserError: there is none, or it is not callable."""
    if chosen is None:
        return lambda epoch, row, folder: None
    part = load_part("LOGGER", chosen, LOGGERS)

    with faults_of("LOGGER", chosen, CONTRACT):
        logger = part() if isinstance(part, type) else part
        if not callable(logger):
            raise TypeError(f"a {type(logger).__name__} cannot be called")
        inspect.signature(logger).bind(1, {}, Path())  # TypeError: it takes other arguments

    def tell(epoch: int, row: dict[str, Any], folder: Path) -> None:
        with faults_of("LOGGER", chosen, CONTRACT):
            logger(epoch, row, folder)

    return tell
