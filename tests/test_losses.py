import math
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import SMALL
from PIL import Image
from torch import nn

import train
from parts.errors import UserError
from parts.losses import TERMS, Loss, label_weights
from parts.masks import IGNORED, MaskRule


def logits_of(chances):
    return torch.logit(torch.tensor(chances, dtype=torch.float64)).float().reshape(1, 1, 2, 2)


def test_losses_worked_out_by_hand():
    targets = torch.tensor([[[[1.0, 0.0], [0.0, 0.0]]]])
    logits = logits_of([0.5, 0.5, 0.25, 0.25])
    bce = -(2 * math.log(0.5) + 2 * math.log(0.75)) / 4
    dice = (2 * 0.5 + 1) / (1.5 + 1 + 1)
    assert Loss("bce")(logits, targets).item() == pytest.approx(bce)
    assert Loss("bce+dice")(logits, targets).item() == pytest.approx(bce + 1 - dice)
    empty = Loss("bce+dice")(torch.full((2, 1, 4, 4), -30.0), torch.zeros(2, 1, 4, 4))
    assert empty.item() == pytest.approx(0, abs=1e-6)
    assert Loss("bce+dice")(logits.bfloat16(), targets).dtype == torch.float32


def test_the_dice_loss_is_of_each_image_then_the_mean():
    logits = torch.cat([torch.full((1, 1, 8, 8), 30.0), torch.full((1, 1, 8, 8), -30.0)])
    targets = torch.cat([torch.ones(1, 1, 8, 8), torch.ones(1, 1, 8, 8)])
    parts = [Loss("bce+dice")(logits[i : i + 1], targets[i : i + 1]).item() for i in (0, 1)]
    assert Loss("bce+dice")(logits, targets).item() == pytest.approx(sum(parts) / 2)


def labels_of(*images):
    """Labels (N, 1, H, W) of images that are lists of rows."""
    return torch.tensor(images, dtype=torch.uint8)[:, None]


def test_losses_of_classes_worked_out_by_hand():
    """Two images of two by two pixels and three classes; an ignored pixel; a class that one image does not hold."""
    chances = torch.tensor([[0.5, 0.25, 0.25], [0.125, 0.5, 0.375], [0.25, 0.25, 0.5], [0.0625, 0.0625, 0.875]])
    logits = chances.log().T.reshape(1, 3, 2, 2).repeat(2, 1, 1, 1) + 3  # what all classes share counts nothing
    labels = labels_of([[0, 1], [1, 255]], [[2, 2], [2, 2]])
    right = [0.5, 0.5, 0.25, 0.25, 0.375, 0.5, 0.875]
    entropy = -sum(map(math.log, right)) / 7
    first = [(2 * 0.5 + 1) / (0.875 + 1 + 1), (2 * 0.75 + 1) / (1.0 + 2 + 1)]  # its classes 0 and 1, of three pixels
    second = (2 * 2.0 + 1) / (2.0 + 4 + 1)
    assert Loss("bce")(logits, labels).item() == pytest.approx(entropy)
    dice = (1 - sum(first) / 2 + 1 - second) / 2
    assert Loss("bce+dice")(logits, labels).item() == pytest.approx(entropy + dice)
    assert Loss("bce+dice")(logits.bfloat16(), labels).dtype == torch.float32
    last = logits.contiguous(memory_format=torch.channels_last)
    assert Loss("bce+dice")(last, labels).item() == pytest.approx(entropy + dice)


def test_two_classes_lose_what_one_foreground_does():
    one = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 4
    targets = (torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(1)) < 0.4).float()
    targets[1] = 0  # an empty mask is asked for nothing
    both = torch.cat([torch.zeros_like(one), one], 1)
    found = Loss("bce")(both, targets.byte())
    torch.testing.assert_close(found, Loss("bce")(one, targets), rtol=1e-6, atol=0)
    for name in [
        "bce",
        "bce+dice",
        "focal",
        "tversky",
        "topk",
    ]:  # and as labels of one foreground, no pixel of them ignored
        torch.testing.assert_close(Loss(name)(one, targets.byte()), Loss(name)(one, targets))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", [*TERMS, "bce+dice"])
def test_ignored_pixels_count_nowhere(name, channels):
    """The loss is that of the picture without them, whatever is predicted there, and nothing is learnt from them."""
    draws = torch.Generator().manual_seed(0)
    logits = torch.randn(2, channels, 8, 6, generator=draws)
    labels = torch.randint(0, max(2, channels), (2, 1, 8, 6), generator=draws, dtype=torch.uint8)
    expected = Loss(name)(logits, labels)
    framed = torch.full((2, channels, 10, 9), 20.0)
    framed[:, :, 1:9, 2:8] = logits
    around = torch.full((2, 1, 10, 9), IGNORED, dtype=torch.uint8)
    around[:, :, 1:9, 2:8] = labels
    framed.requires_grad_()
    loss = Loss(name)(framed, around)
    torch.testing.assert_close(loss, expected)
    loss.backward()
    ignored = (around == IGNORED).expand_as(framed)
    assert (framed.grad[ignored] == 0).all()
    assert name == "topk" or (framed.grad[~ignored] != 0).all()


@pytest.mark.parametrize("channels", [1, 4])
@pytest.mark.parametrize("name", ["bce", "bce+dice", "focal", "tversky"])
def test_images_without_any_label_lose_nothing(name, channels):
    logits = torch.randn(2, channels, 4, 4, generator=torch.Generator().manual_seed(0), requires_grad=True)
    labels = torch.full((2, 1, 4, 4), IGNORED, dtype=torch.uint8)
    loss = Loss(name)(logits, labels)
    loss.backward()
    assert loss.item() == 0 and not logits.grad.any()
    labels[0] = 1
    logits.grad = None
    Loss(name)(logits, labels).backward()
    assert logits.grad[0].all() and not logits.grad[1].any() and torch.isfinite(logits.grad).all()


def test_a_class_that_no_image_holds_does_no_harm():
    """Its own Dice is not asked for: predicting what is there loses nothing, however many classes there are."""
    labels = labels_of([[0, 2], [2, 255]], [[4, 4], [0, 4]])
    known = labels.where(labels != IGNORED, torch.tensor(3, dtype=torch.uint8))  # the ignored pixel as class 3
    logits = 30.0 * (known == torch.arange(5)[:, None, None])
    assert Loss("bce+dice")(logits, labels).item() == pytest.approx(0, abs=1e-6)


def test_terms_for_rare_and_hard_pixels_worked_out_by_hand():
    logits, labels = logits_of([0.5, 0.25, 0.9, 0.2]), labels_of([[1, 1], [0, 0]])
    right = torch.tensor([0.5, 0.25, 0.1, 0.8], dtype=torch.float64)
    entropies = -right.log()
    assert Loss("focal")(logits, labels).item() == pytest.approx(((1 - right) ** 2 * entropies).mean().item())
    assert Loss("topk")(logits, labels).item() == pytest.approx(entropies.max().item())  # a tenth of 4 is 1 at least
    index = (0.75 + 0.5) / (0.75 + 0.3 * 1.1 + 0.7 * 1.25 + 0.5)
    assert Loss("tversky")(logits, labels).item() == pytest.approx(1 - index)
    parts = 0.5 * Loss("bce")(logits, labels) + 2 * Loss("tversky")(logits, labels)
    assert Loss("0.5*bce + 2 * tversky")(logits, labels).item() == pytest.approx(parts.item())


@pytest.mark.parametrize("channels", [1, 3])
def test_weights_are_those_of_pytorchs_cross_entropy(channels):
    draws = torch.Generator().manual_seed(0)
    logits = torch.randn(2, channels, 6, 5, generator=draws)
    labels = torch.randint(max(2, channels), (2, 1, 6, 5), generator=draws).byte()
    labels[0, 0, :2] = IGNORED
    weights = torch.tensor([0.5, 2.0, 7.0])[: max(2, channels)]
    both = logits if channels > 1 else torch.cat([torch.zeros_like(logits), logits], 1)
    expected = nn.functional.cross_entropy(both, labels[:, 0].long(), weights, ignore_index=IGNORED)
    torch.testing.assert_close(Loss("bce", weights)(logits, labels), expected)


class Squared(nn.Module):
    """A loss of one's own, with a weight that must travel to the device."""

    def __init__(self):
        super().__init__()
        self.register_buffer("factor", torch.tensor(2.0))

    def forward(self, logits, labels, kept):
        return self.factor * ((logits.sigmoid() - labels.float()) ** 2)[kept].mean()


def test_a_loss_of_ones_own_is_called_with_labels_and_what_is_kept(tmp_path):
    logits, labels = logits_of([0.5, 0.25, 0.9, 0.2]), labels_of([[1, 1], [IGNORED, 0]])
    expected = 2 * (0.25 + 0.5625 + 0.04) / 3
    (tmp_path / "losses_of_mine.py").write_text(
        "def squared(logits, labels, kept):\n    from test_losses import Squared"
        "\n    return Squared()(logits, labels, kept)\n"
    )
    for own in (Squared, Squared(), lambda *batch: Squared()(*batch), f"{tmp_path / 'losses_of_mine.py'}:squared"):
        loss = Loss(own)
        loss.checked(1)
        assert loss(logits, labels).item() == pytest.approx(expected)
    mixed = Loss(f"bce + 0.5*{tmp_path / 'losses_of_mine.py'}:squared")
    assert mixed(logits, labels).item() == pytest.approx(Loss("bce")(logits, labels).item() + expected / 2)
    assert next(Loss(Squared).buffers()).item() == 2  # Module.to takes it to the device


@pytest.mark.parametrize(
    "own, said",
    [
        (lambda logits, labels: 0, "positional argument"),
        (lambda logits, labels, kept: logits.sigmoid().mean((1, 2, 3)), "a tensor of shape (2,)"),
        (lambda logits, labels, kept: 0.5, "a float"),
        (lambda logits, labels, kept: labels.float().mean(), "does not depend on the logits"),
        (lambda logits, labels, kept: logits.mean() / 0, "ordinary logits"),
        ("nowhere.py:loss", "no such file"),
        ("bce+focl", "expected is bce, dice"),
    ],
)
def test_a_loss_that_cannot_be_is_told_before_training(own, said):
    with pytest.raises(UserError) as told:
        Loss(own).checked(1)
    assert said in str(told.value) and str(told.value).startswith("LOSS = ")


def test_rare_labels_count_more(prepared, monkeypatch):
    shares = (0.9, 0.095, 0.005)
    classes = MaskRule(background=(), foreground=(), classes=(0, 1, 2), names=("a", "b", "c"))
    weights = label_weights("auto", shares, classes)
    assert weights.tolist() == pytest.approx([1 / math.log(1.02 + share) for share in shares])
    assert label_weights(None, shares, classes) is None
    assert label_weights((1, 2, 3), shares, classes).tolist() == [1, 2, 3]
    assert label_weights("auto", (0.9, 0.1), MaskRule()) is None, "of one foreground Dice in the loss sees to it"
    with pytest.raises(UserError, match="CLASS_WEIGHTS has 2 numbers, and the masks have 3 classes"):
        label_weights((1, 2), shares, classes)

    # The shares are those of the training masks
    seen = []
    monkeypatch.setattr(train, "label_weights", lambda chosen, shares, rule: seen.append((chosen, shares)))
    monkeypatch.chdir(prepared)
    train.main(SMALL)
    masks = [np.array(Image.open(path)) > 0 for path in Path(train.TRAIN_MASK_DIR).iterdir()]
    share = np.mean([mask.mean() for mask in masks])
    assert seen == [("auto", pytest.approx((1 - share, share)))]
    for wrong in ("0 1", "1", "some"):
        with pytest.raises(UserError, match="CLASS_WEIGHTS = "):
            train.main([*SMALL, "--class-weights", *wrong.split()])
