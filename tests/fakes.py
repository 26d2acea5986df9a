"""Networks and loaders of which every prediction is known."""

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from parts.masks import MaskRule


class Threshold(nn.Module):
    """Predicts foreground where the first channel is above a half."""

    def __init__(self):
        super().__init__()
        self.bias = nn.Parameter(torch.tensor(0.5))

    def forward(self, images):
        return images[:, :1] - self.bias


def loader_of(predictions, truths, batch_size=2):
    """A loader whose images make Threshold predict `predictions`."""
    images = torch.tensor(predictions, dtype=torch.uint8).unsqueeze(1).repeat(1, 3, 1, 1) * 255
    return DataLoader(TensorDataset(images, torch.tensor(truths, dtype=torch.uint8)), batch_size=batch_size)


FULL, EMPTY, LEFT, TOP = [[1, 1], [1, 1]], [[0, 0], [0, 0]], [[1, 0], [1, 0]], [[1, 1], [0, 0]]


class Nearest(nn.Module):
    """Predicts the class whose number is nearest to the first channel of the images."""

    def __init__(self, classes):
        super().__init__()
        self.numbers = nn.Parameter(torch.arange(classes).reshape(1, classes, 1, 1).float())

    def forward(self, images):
        return -((images[:, :1] * 255 - self.numbers) ** 2)


class Given(TensorDataset):
    """Images and masks as they are given, with a rule that says what the masks hold."""

    def __init__(self, predictions, truths, mask_rule):
        images = torch.as_tensor(predictions, dtype=torch.uint8).unsqueeze(1).repeat(1, 3, 1, 1)
        super().__init__(images, torch.as_tensor(truths))
        self.mask_rule = mask_rule


def classes_rule(*names, **keywords):
    values = tuple(range(len(names)))
    return MaskRule(background=(), foreground=(), classes=values, names=names, **keywords)


def class_loader(predictions, truths, *names, batch_size=2, **keywords):
    truths = torch.as_tensor(truths, dtype=torch.uint8)
    return DataLoader(Given(predictions, truths, classes_rule(*names, **keywords)), batch_size=batch_size)


def random_labels(classes, shape=(7, 20, 30), ignored=0.2):
    """(predictions, truths) that agree in half of the pixels; the last class but one is missing in some images."""
    draw = np.random.default_rng(classes)
    truths = draw.integers(0, classes, shape)
    truths[::2][truths[::2] == classes - 2] = 0
    predictions = np.where(draw.random(shape) < 0.5, truths, draw.integers(0, classes, shape))
    predictions[::2][predictions[::2] == classes - 2] = 0
    return predictions.astype(np.uint8), np.where(draw.random(shape) < ignored, 255, truths).astype(np.uint8)
