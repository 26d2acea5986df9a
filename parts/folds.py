"""What all folds of a dataset say together: Dice of each, and of every image by the network that has not seen it."""

import shlex
import statistics
from pathlib import Path

from parts.checkpoint_keys import RESUMED, check_keys
from parts.checkpoints import read_checkpoint
from parts.errors import UserError, counted
from parts.files import write_csv


def fold_folder(output: str | Path, fold: int) -> Path:
    """OUTPUT_DIR of a fold, counted from 1."""
    return Path(output) / f"fold_{fold}"


def sum_up(output: str | Path, folds: int) -> str:
    """A table of the folds in words; writes `output`/scores.csv. UserError: a fold's best.pth cannot be read."""
    checkpoints = [fold_folder(output, fold) / "best.pth" for fold in range(1, folds + 1)]
    rows: list[list] = []
    dice, lines = [], []
    for fold, path in enumerate(checkpoints, 1):
        saved = check_keys(path, read_checkpoint(path), RESUMED)
        if not {"data", "scores"} <= saved.keys():
            raise UserError(f"{path}: is not of this training, as it holds no scores.")
        images, scores = saved["data"]["validation"]["sources"]["images"], saved["scores"]
        rows += [[name, fold, f"{value:.6f}"] for name, value in zip(images, scores["per_image"])]
        dice.append(scores["dice"])
        count = counted(len(scores["per_image"]), "image")
        lines.append(f"fold {fold}   Dice {dice[-1]:.4f}   {count}, epoch {saved['epoch']}")
    csv_file = Path(output) / "scores.csv"
    write_csv(csv_file, ["image", "fold", "dice"], sorted(rows, key=lambda row: float(row[2])))
    lines += [
        f"mean     Dice {statistics.mean(dice):.4f}, standard deviation {statistics.stdev(dice):.4f}",
        f"{csv_file} has every image, the worst first, by the network that has not seen it. All networks together:",
        f"  python predict.py IMAGES --checkpoint {shlex.join(map(str, checkpoints))}",
    ]
    return "\n".join(lines)
