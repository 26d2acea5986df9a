"""What training makes small: a table of terms, which are joined with +, or a loss of one's own.

    LOSS = "0.5*bce + dice"
    LOSS = "mine.py:boundary_loss"  # a function (logits, labels, kept) -> scalar, or a class that makes one

Every term takes, in float32 and on the device,
    logits (N, C, H, W), C = 1 for one foreground, whose labels are 0 and 1
    labels (N, 1, H, W), uint8; 0 where a pixel is ignored
    kept   (N, 1, H, W), booleans: False where a pixel is ignored
and gives a scalar. Those of the table also take the weights of the labels, a tensor (number of labels,), or None.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from parts.errors import UserError
from parts.masks import IGNORED, MaskRule
from parts.own import faults_of, is_own, load_part
from parts.rules import terms_of

CONTRACT = "A loss is a function (logits (N, C, H, W), labels (N, 1, H, W), kept (N, 1, H, W)) -> scalar tensor."
_HARDEST = 0.1  # share of an image's pixels that "topk" counts


class Loss(nn.Module):
    """The sum of the terms that LOSS names: logits (N, C, H, W) and targets (N, 1, H, W) -> a scalar, in float32.

    Targets are {0, 1} in floats, or labels in uint8, in which IGNORED counts in no term. `class_weights`: what a pixel
    of each label counts in "bce" and "focal". `mask_rule`: where classes overlap, each one's logits and labels go
    through the terms as those of one foreground. UserError: a term that does not exist, or cannot be loaded.
    """

    class_weights: Tensor | None

    def __init__(self, loss: Any, class_weights: Tensor | None = None, mask_rule: MaskRule = MaskRule()) -> None:
        super().__init__()
        self.mask_rule = mask_rule
        self.register_buffer("class_weights", class_weights, persistent=False)
        self.terms: list[tuple[float, Callable]] = []
        self.own: list[tuple[Any, Callable]] = []  # those of the user, by what LOSS says
        modules = []
        for factor, name in terms_of(loss) if isinstance(loss, str) else [(1.0, loss)]:
            term = load_part("LOSS", name, TERMS)
            if is_own(name):
                if isinstance(term, type):
                    with faults_of("LOSS", name, CONTRACT):
                        term = term()
                self.own.append((name, term))
            else:
                term = partial(self._with_weights, term)
            if isinstance(term, nn.Module):
                modules.append(term)
            self.terms.append((factor, term))
        self.modules_of_terms = nn.ModuleList(modules)  # so that .to(device) takes their weights along

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        if self.mask_rule.overlaps:  # each class is one foreground, as of an image of its own
            logits, targets = logits.flatten(0, 1).unsqueeze(1), self.mask_rule.foregrounds_of(targets)
        kept = torch.ones_like(targets, dtype=torch.bool)
        if targets.dtype == torch.uint8:
            kept = targets != IGNORED
        labels, logits = targets.byte() * kept, logits.float()
        losses = [factor * term(logits, labels, kept) for factor, term in self.terms]
        return torch.stack(losses).sum()

    def _with_weights(self, term: Callable, *batch: Tensor) -> Tensor:
        return term(*batch, self.class_weights)

    def checked(self, channels: int) -> Loss:
        """The loss itself, after a trial of the user's own terms on a small batch. UserError: what one does wrong."""
        channels = 1 if self.mask_rule.overlaps else channels
        for name, term in self.own:
            with faults_of("LOSS", name, CONTRACT), torch.enable_grad():
                device = next((value.device for value in self.buffers()), torch.device("cpu"))
                draws = torch.Generator().manual_seed(0)
                logits = torch.randn(2, channels, 32, 32, generator=draws).to(device).requires_grad_()
                labels = torch.randint(max(2, channels), (2, 1, 32, 32), generator=draws).byte().to(device)
                kept = torch.ones_like(labels, dtype=torch.bool)
                kept[:, :, :4] = False
                value = term(logits, labels, kept)
                if not isinstance(value, Tensor) or value.numel() != 1:
                    raise TypeError(f"the loss is {_described(value)}, and not a single number; .mean() makes one")
                if not torch.isfinite(value):
                    raise ValueError(f"the loss is {value.item()} of ordinary logits")
                if not value.requires_grad or torch.autograd.grad(value, logits, allow_unused=True)[0] is None:
                    raise ValueError(
                        "the loss is a number that does not depend on the logits (detached, or of labels alone)"
                    )
        return self


def _described(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    return f"a {type(value).__name__}"


def label_weights(chosen: str | Sequence[float] | None, shares: Sequence[float], rule: MaskRule) -> Tensor | None:
    """What a pixel of each label counts, as CLASS_WEIGHTS says: float32 (labels,), or None where all count alike.

    `shares`: that of each label in the pixels of training. "auto": of classes that do not overlap
    1 / ln(1.02 + share), from 1.4 for a label that covers everything to 50 for one that is hardly there, as Paszke et
    al.: ENet, 2016, section 5.2; None otherwise. UserError: there are more or fewer labels than weights, or weights
    are given for classes that overlap.
    """
    if chosen is None or (chosen == "auto" and (rule.overlaps or not rule.has_classes)):
        return None
    if rule.overlaps:
        raise UserError('CLASS_WEIGHTS is for classes that do not overlap: with OVERLAP leave it at "auto".')
    if isinstance(chosen, str):
        return 1 / torch.log(1.02 + torch.tensor(shares, dtype=torch.float32))
    if len(chosen) != len(shares):
        labels = "background and foreground" if len(shares) == 2 else f"{len(shares)} classes"
        raise UserError(f"CLASS_WEIGHTS has {len(chosen)} numbers, and the masks have {labels}.")
    return torch.tensor(chosen, dtype=torch.float32)


# ---- terms by pixel


def cross_entropy(logits: Tensor, labels: Tensor, kept: Tensor, weights: Tensor | None = None) -> Tensor:
    """ "bce": the cross-entropy, binary for one foreground; the mean over pixels."""
    return _mean(_entropies(logits, labels, kept), labels, kept, weights)


def focal(logits: Tensor, labels: Tensor, kept: Tensor, weights: Tensor | None = None) -> Tensor:
    """The cross-entropy, of pixels that are right already hardly any: times (1 - p)^2.

    Lin, Goyal, Girshick, He, Dollár: Focal Loss for Dense Object Detection, 2017, equation 5, with gamma = 2.
    """
    entropies = _entropies(logits, labels, kept)
    return _mean((1 - torch.exp(-entropies)) ** 2 * entropies, labels, kept, weights)


def hardest(logits: Tensor, labels: Tensor, kept: Tensor, weights: Tensor | None = None) -> Tensor:
    """ "topk": the cross-entropy of the tenth of each image's pixels in which it is highest.

    Wu, Shen, van den Hengel: Bridging Category-level and Instance-level Semantic Image Segmentation, 2016, section 3.
    """
    entropies = _entropies(logits, labels, kept).flatten(1)
    highest = entropies.topk(math.ceil(_HARDEST * entropies.shape[1]), dim=1).values
    counts = (_HARDEST * kept.sum((1, 2, 3))).ceil()  # (N,), without waiting for a GPU
    counted = torch.arange(highest.shape[1], device=counts.device) < counts[:, None]
    return ((highest * counted).sum(1) / counts.clamp(min=1)).mean()


def _entropies(logits: Tensor, labels: Tensor, kept: Tensor) -> Tensor:
    """The cross-entropy of each pixel (N, 1, H, W); 0 where it is ignored."""
    if logits.shape[1] == 1:
        return F.binary_cross_entropy_with_logits(logits, labels.float(), weight=kept, reduction="none")
    logs = logits.contiguous().log_softmax(1)  # along strides of 1, sums would be slow on a CPU
    return -logs.gather(1, labels.long()) * kept


def _mean(entropies: Tensor, labels: Tensor, kept: Tensor, weights: Tensor | None) -> Tensor:
    """The mean over kept pixels, each with its label's weight."""
    counted = kept.float()
    if weights is not None:
        counted = counted * weights[labels.long()]
    return (entropies * counted).sum() / counted.sum().clamp(min=1)


# ---- terms by region


def dice(logits: Tensor, labels: Tensor, kept: Tensor, weights: Tensor | None = None) -> Tensor:
    """1 - the soft Dice of each image, as it is scored; the mean over images.

    Milletari, Navab, Ahmadi: V-Net, 2016, section 3, with plain sums in the denominator. With several classes it is the
    mean over those that the image holds: for the others the loss could only ask that nothing is predicted, which it
    asks already through the classes that are there. One pixel is added to numerator and denominator, so that an empty
    mask that is predicted empty costs nothing, nor does an image that is ignored.
    """
    return _missed_overlap(logits, labels, kept, false_positives=0.5, false_negatives=0.5)


def tversky(logits: Tensor, labels: Tensor, kept: Tensor, weights: Tensor | None = None) -> Tensor:
    """As "dice", but what is missed costs more than what is predicted too much: for small foregrounds.

    Salehi, Erdogmus, Gholipour: Tversky loss function for image segmentation using 3D fully convolutional deep
    networks, 2017, equation 1, with alpha = 0.3 and beta = 0.7.
    """
    return _missed_overlap(logits, labels, kept, false_positives=0.3, false_negatives=0.7)


def _missed_overlap(
    logits: Tensor, labels: Tensor, kept: Tensor, false_positives: float, false_negatives: float
) -> Tensor:
    """1 - the Tversky index with these weights; with one half each it is Dice."""
    if logits.shape[1] == 1:
        probabilities, classes = logits.sigmoid(), torch.ones(1, device=labels.device)
    else:
        probabilities = logits.contiguous().softmax(1)
        classes = torch.arange(logits.shape[1], device=labels.device)
    truth = ((labels == classes[:, None, None]) & kept).float()  # (N, C, H, W)
    both, true = (probabilities * truth).sum((2, 3)), truth.sum((2, 3))  # (N, C)
    predicted = (probabilities * kept).sum((2, 3))
    missed = false_positives * (predicted - both) + false_negatives * (true - both)
    index = (both + 0.5) / (both + missed + 0.5)
    counted = torch.ones_like(true)
    if truth.shape[1] > 1:
        counted = (true > 0).float()  # the classes that an image holds
    return (((1 - index) * counted).sum(1) / counted.sum(1).clamp(min=1)).mean()


TERMS: dict[str, Callable] = dict(bce=cross_entropy, dice=dice, focal=focal, tversky=tversky, topk=hardest)
