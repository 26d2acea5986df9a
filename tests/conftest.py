"""What pytest needs: the modules on the path, one thread a process, all cores, and the prepared folder."""

import os
import sys
from pathlib import Path

import pytest

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
os.environ["OMP_NUM_THREADS"] = "1"  # networks this small only lose by more; and sums come out the same everywhere
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from helpers import draw_pairs  # noqa: E402
from predicting import (  # noqa: E402, F401
    call,
    changed,
    checkpoint,
    classes_checkpoint,
    classes_network,
    command_line,
    network,
    photos,
)


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config):
    """All tests together run on all cores where pytest-xdist is installed; `-n 0`: in this process."""
    everything = config.args_source is config.ArgsSource.TESTPATHS and not config.option.keyword
    is_worker = "PYTEST_XDIST_WORKER" in os.environ
    if everything and not is_worker and getattr(config.option, "numprocesses", 0) is None:
        config.option.numprocesses, config.option.maxprocesses, config.option.dist = "auto", 8, "worksteal"


@pytest.fixture
def prepared(tmp_path):
    """A folder with dataset/augmented_* of 11 training and 5 validation pairs, as train.py expects it."""
    data = tmp_path / "dataset"
    draw_pairs(data / "augmented_train_images", data / "augmented_train_masks", 11)
    draw_pairs(data / "augmented_test_images", data / "augmented_test_masks", 5, first=50)
    return tmp_path
