"""Scores of predicted masks at the true masks' own size, and the threshold that makes them best."""

import csv
import io
from dataclasses import dataclass, field

import numpy as np
import torch

from files import write_text
from utils import count_overlap, dice_from_counts, iou_from_counts

BINS = 256  # of probability: thresholds are multiples of 1/256


def count(prediction, truth):
    """(in both, predicted, true) counts of pixels, of masks (H, W) of {0, 1}."""
    pair = (torch.from_numpy(np.ascontiguousarray(mask)).bool()[None] for mask in (prediction, truth))
    return tuple(count_overlap(*pair)[0].tolist())


def histogram(logits, truth):
    """How many pixels of (background, foreground) have a probability in each bin: int64 (2, BINS).

    Bin k holds k/BINS < p <= (k+1)/BINS, so that p > k/BINS is bin k and all above it.
    logits: float32 (H, W); truth: (H, W) of {0, 1}
    """
    scaled = np.exp(-np.clip(logits, -30, 30))
    scaled += 1
    np.divide(BINS, scaled, out=scaled)
    bins = np.clip(np.ceil(scaled) - 1, 0, BINS - 1).astype(np.uint16)
    bins += BINS * truth.astype(np.uint16)
    return np.bincount(bins.ravel(), minlength=2 * BINS).reshape(2, BINS)


def best_threshold(histograms):
    """(threshold, its mean Dice, mean Dice at 0.5) over images, from their histograms (N, 2, BINS).

    Of the thresholds k/BINS with 0 < k < BINS the one with the highest mean Dice; of equal ones the
    one nearest to 0.5.
    """
    above = np.cumsum(np.asarray(histograms)[..., ::-1], axis=2)[..., ::-1]  # pixels in bin k and all above
    background, foreground = above[:, 0], above[:, 1]
    dice = dice_from_counts(foreground, foreground + background, foreground[:, :1]).mean(axis=0)
    best = max(range(1, BINS), key=lambda k: (dice[k], -abs(k - BINS // 2)))
    return best / BINS, float(dice[best]), float(dice[BINS // 2])


@dataclass
class Table:
    """The counts of each image, and what follows from them."""

    names: list = field(default_factory=list)
    counts: list = field(default_factory=list)

    def add(self, name, counts):
        self.names.append(name)
        self.counts.append(counts)

    def scores(self):
        """Dice and IoU of each image, float (N,) both."""
        both, predicted, true = np.array(self.counts, dtype=np.int64).T
        return dice_from_counts(both, predicted, true), iou_from_counts(both, predicted, true)

    def worst(self, number):
        """Indices of the lowest Dice, the lowest first."""
        return np.argsort(self.scores()[0], kind="stable")[:number].tolist()

    def text(self, number):
        """The means, and the `number` lowest Dice by name, to print."""
        dice, iou = self.scores()
        means = f"Dice {dice.mean():.4f}, IoU {iou.mean():.4f}: means over {len(dice)} images at their masks' size"
        lowest = [f"  {dice[i]:.4f}  {self.names[i]}" for i in self.worst(number)]
        return "\n".join([means, "The lowest Dice:", *lowest])

    def write(self, path):
        """A CSV file with one line an image, and the means at the bottom."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["image", "dice", "iou", "pixels_in_both", "predicted_pixels", "true_pixels"])
        dice, iou = self.scores()
        for name, one_dice, one_iou, counts in zip(self.names, dice, iou, self.counts):
            writer.writerow([name, f"{one_dice:.6f}", f"{one_iou:.6f}", *counts])
        writer.writerow(["mean", f"{dice.mean():.6f}", f"{iou.mean():.6f}", "", "", ""])
        write_text(path, text.getvalue())
