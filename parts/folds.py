"""What all folds of a dataset say together: Dice of each, and of every image by the network that has not seen it."""

import shlex
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from parts.checkpoint_keys import RESUMED, check_keys
from parts.checkpoints import read_checkpoint
from parts.endings import command_of
from parts.errors import UserError, counted
from parts.files import write_csv
from parts.masks import MaskRule
from parts.names import Pair


def fold_folder(output: str | Path, fold: int) -> Path:
    """OUTPUT_DIR of a fold, counted from 1."""
    return Path(output) / f"fold_{fold}"


@dataclass(frozen=True, eq=False)
class Fold:
    """A trained fold: its best network, and the pairs that this has not seen."""

    number: int  # counted from 1
    checkpoint: Path
    mask_rule: MaskRule
    epoch: int
    dice: float
    dice_of: dict[Pair, float]

    @classmethod
    def load(cls, output: str | Path, number: int, pairs: Sequence[Pair]) -> "Fold":
        """The fold in `output` that was validated on these pairs. UserError: its best.pth is not of that training."""
        path = fold_folder(output, number) / "best.pth"
        saved = check_keys(path, read_checkpoint(path), RESUMED)
        per_image = saved.get("scores", {}).get("per_image", [])
        if len(per_image) != len(pairs):
            raise UserError(f"{path}: holds scores of {len(per_image)} images, not of these {len(pairs)}.")
        scores, rule = saved["scores"], MaskRule.from_dict(saved["mask_rule"])
        return cls(number, path, rule, saved["epoch"], scores["dice"], dict(zip(pairs, per_image)))


def sum_up(output: str | Path, folds: Sequence[Fold]) -> str:
    """A table of the folds in words; writes `output`/scores.csv, the worst image first."""
    rows = [(value, pair.name, fold.number) for fold in folds for pair, value in fold.dice_of.items()]
    csv_file = Path(output) / "scores.csv"
    write_csv(csv_file, ["image", "fold", "dice"], [[name, fold, f"{value:.6f}"] for value, name, fold in sorted(rows)])
    dice = [fold.dice for fold in folds]
    lines = []
    for fold in folds:
        count = counted(len(fold.dice_of), "image")
        lines.append(f"fold {fold.number}   Dice {fold.dice:.4f}   {count}, epoch {fold.epoch}")
    lines += [
        f"mean     Dice {statistics.mean(dice):.4f}, standard deviation {statistics.stdev(dice):.4f}",
        f"{csv_file} has every image, the worst first, by the network that has not seen it. All networks together:",
        f"  {command_of('predict.py')} IMAGES --checkpoint {shlex.join(str(fold.checkpoint) for fold in folds)}",
    ]
    return "\n".join(lines)
