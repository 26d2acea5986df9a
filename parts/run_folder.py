"""OUTPUT_DIR of a run: who writes there, and what is saved of every epoch while the next one begins."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from parts import pictures, processes
from parts.checkpoints import Run, save, set_aside, snapshot
from parts.errors import tell
from parts.files import refuse_link, remove_leftovers, sole_writer, write_csv
from parts.masks import MaskRule


class RunFolder:
    """OUTPUT_DIR of a run: held against a second run, with a thread that saves while the next epoch begins.

    Whatever ends the run, what has begun to be written is finished. Process 0 alone writes. `draw`, in the methods,
    draws the pictures of the run's last epoch.
    """

    def __init__(self, folder: str | Path) -> None:
        self.path = Path(folder)
        self.begun = f"{self.path}: the folder is this run's"  # a note for those that torchrun starts in its place
        self._open = ExitStack()
        self._saving: Future | None = None

    def __enter__(self) -> RunFolder:
        if processes.rank() == 0:
            self._open.enter_context(sole_writer(self.path))
            for name in ("", "saved_images", "saved_images/strip"):
                refuse_link(self.path / name, self.path)
                remove_leftovers(self.path / name)
        self._thread = self._open.enter_context(ThreadPoolExecutor(1))
        return self

    def __exit__(self, *failure: object) -> None:
        self._open.close()

    def was_begun(self) -> bool:
        """Whether torchrun has restarted this run, and an epoch of it is saved."""
        return processes.first(lambda: processes.is_noted(self.begun) and (self.path / "checkpoint.pth").exists())

    def begin(self, run: Run, draw: Callable[[], None]) -> bool:
        """Puts the files of an earlier run aside, or sets those of a resumed run right; says whether that is all.

        It is where all epochs are done: a run that was killed after its last checkpoint lacks its pictures still.
        """

        def begin() -> bool:
            done = run.done(self.path / "checkpoint.pth")
            if run.history:
                write_history(self.path, run.history, run.mask_rule)
                draw()
            if not run.settings.LOAD_MODEL and not processes.is_noted(self.begun):
                set_aside(self.path)
            processes.note(self.begun)  # from now on a checkpoint here is of this run
            if done:
                tell(done)
            return bool(done)

        return processes.first(begin)

    def keep(self, run: Run, draw: Callable[[], None]) -> None:
        """Begins to write the checkpoint and the history, and draws, while the other processes wait.

        Raises what went wrong with those of the epoch before.
        """

        def keep() -> None:
            state, is_best = snapshot(run.state()), run.best is run.history[-1]
            self.finish()
            self._saving = self._thread.submit(save_epoch, state, self.path, is_best)
            draw()

        processes.first(keep)

    def finish(self) -> None:
        """Waits until all is written. Raises what went wrong."""
        if self._saving is not None:
            self._saving.result()


def save_epoch(state: dict[str, Any], output: Path, is_best: bool) -> None:
    """The checkpoint of an epoch, then the history up to it."""
    if is_best:  # best.pth first: a run killed between the two repeats its epoch
        save(state, output / "best.pth", also=output / "checkpoint.pth")
    else:
        save(state, output / "checkpoint.pth")
    write_history(output, state["history"], MaskRule.from_dict(state["mask_rule"]))


def write_history(folder: Path, history: list[dict[str, Any]], mask_rule: MaskRule) -> None:
    """history.csv and curves.png, made anew from all epochs."""
    columns = list(history[-1])
    write_csv(folder / "history.csv", columns, [[row.get(name) for name in columns] for row in history])
    pictures.draw_curves(history, folder / "curves.png", mask_rule.overlaps)
