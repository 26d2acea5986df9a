import numpy as np
import pytest
import torch
from conftest import draw_pairs
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from loading import EpochSampler, files_of_batch, get_loaders
from unet import UNet
from utils import (
    check_accuracy,
    count_overlap,
    dice_from_counts,
    iou_from_counts,
    save_examples,
    save_predictions,
    symptom,
    to_device,
)


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


@pytest.mark.parametrize(
    "prediction, truth, dice, iou, accuracy",
    [
        (LEFT, LEFT, 1, 1, 1),
        (LEFT, TOP, 0.5, 1 / 3, 0.5),
        (FULL, LEFT, 2 / 3, 0.5, 0.5),
        (EMPTY, EMPTY, 1, 1, 1),
        (EMPTY, FULL, 0, 0, 0),
        (FULL, EMPTY, 0, 0, 0),
    ],
)
def test_scores_worked_out_by_hand(prediction, truth, dice, iou, accuracy):
    scores = check_accuracy(loader_of([prediction], [truth]), Threshold())
    assert scores.dice == pytest.approx(dice) and scores.iou == pytest.approx(iou)
    assert scores.accuracy == pytest.approx(accuracy)


def test_dice_is_the_mean_over_images_whatever_the_batches():
    predictions, truths = [LEFT, FULL, EMPTY, TOP, TOP], [LEFT, LEFT, EMPTY, LEFT, TOP]
    expected = [1, 2 / 3, 1, 0.5, 1]
    for batch_size in (1, 2, 3, 5):
        scores = check_accuracy(loader_of(predictions, truths, batch_size), Threshold())
        assert scores.per_image == pytest.approx(expected) and scores.dice == pytest.approx(np.mean(expected))
    assert scores.predicted_share == 10 / 20 and scores.true_share == 8 / 20


def test_a_broken_count_would_be_seen():
    """The check fails when predictions are shifted by one image, or the masks are inverted."""
    predictions = [LEFT, TOP, FULL]
    right = check_accuracy(loader_of(predictions, predictions), Threshold()).dice
    shifted = check_accuracy(loader_of(predictions, predictions[1:] + predictions[:1]), Threshold()).dice
    inverted = check_accuracy(loader_of(predictions, (1 - np.array(predictions)).tolist()), Threshold()).dice
    assert right == 1 and shifted < 0.7 and inverted == 0


def test_counts_and_what_follows_from_them():
    both, predicted, true = count_overlap(torch.tensor([LEFT]) > 0, torch.tensor([TOP]) > 0)[0].tolist()
    assert (both, predicted, true) == (1, 2, 2)
    assert dice_from_counts(np.array([1, 0]), np.array([2, 0]), np.array([2, 0])).tolist() == [0.5, 1]
    assert iou_from_counts(np.array([1, 0]), np.array([2, 0]), np.array([2, 0])).tolist() == pytest.approx([1 / 3, 1])


def test_the_model_comes_back_in_the_mode_it_was_in():
    model = UNet(features=(2, 2)).train()
    loader = DataLoader(TensorDataset(torch.zeros(2, 3, 8, 8), torch.zeros(2, 8, 8)), batch_size=1)
    before = model.state_dict()["encoder.0.conv.1.running_mean"].clone()
    check_accuracy(loader, model)
    assert model.training and torch.equal(before, model.state_dict()["encoder.0.conv.1.running_mean"])
    check_accuracy(loader, model.eval())
    assert not model.training


def test_symptoms_are_told():
    nothing = check_accuracy(loader_of([EMPTY], [LEFT]), Threshold())
    everything = check_accuracy(loader_of([FULL], [LEFT]), Threshold())
    fine = check_accuracy(loader_of([LEFT], [LEFT]), Threshold())
    assert "No pixel" in symptom(nothing) and "50.0 %" in symptom(nothing)
    assert "Every pixel" in symptom(everything) and symptom(fine) is None


def test_bytes_are_scaled_on_the_device_and_floats_left_alone():
    cpu, white = torch.device("cpu"), torch.full((1, 3, 2, 2), 255, dtype=torch.uint8)
    images, masks = to_device(white, torch.ones(1, 2, 2), cpu)
    assert images.dtype == torch.float32 and images.max() == 1 and masks.shape == (1, 1, 2, 2)
    images, _ = to_device(torch.full((1, 3, 2, 2), -0.7), torch.ones(1, 2, 2), cpu)
    assert images.min() == pytest.approx(-0.7)


@pytest.fixture
def folders(tmp_path):
    draw_pairs(tmp_path / "a", tmp_path / "am", 11)
    draw_pairs(tmp_path / "b", tmp_path / "bm", 5, first=50)
    return [tmp_path / name for name in ("a", "am", "b", "bm")]


@pytest.mark.parametrize("arrays", [True, False])
@pytest.mark.parametrize("workers", [0, 2])
def test_loaders_give_bytes_and_every_validation_image_once(folders, arrays, workers):
    train, val = get_loaders(*folders, 4, workers, True, image_size=(32, 48), arrays=arrays)
    batches = list(train)
    assert len(train) == len(batches) == 2  # 11 images: three wait for the next epoch
    images, masks = batches[0]
    assert images.dtype == torch.uint8 and images.shape == (4, 3, 32, 48) and masks.shape == (4, 32, 48)
    assert masks.unique().tolist() == [0, 1]
    assert sum(len(images) for images, _ in val) == 5


def test_the_order_differs_by_epoch_and_is_the_same_for_a_seed(folders):
    orders = []
    for seed in (0, 0, 1):
        train, _ = get_loaders(*folders, 4, 0, image_size=(32, 48), seed=seed)
        orders.append([train.sampler.order(epoch).tolist() for epoch in range(3)])
    assert orders[0] == orders[1] != orders[2]
    assert orders[0][0] != orders[0][1] and sorted(orders[0][0]) == list(range(11))


def test_the_files_of_a_batch_are_those_it_was_made_of(folders):
    train, _ = get_loaders(*folders, 4, 0, image_size=(40, 60))
    train.sampler.set_epoch(3)
    for index, (images, _) in enumerate(train):
        for image, path in zip(images, files_of_batch(train, 3, index), strict=True):
            assert np.array_equal(image.permute(1, 2, 0).numpy(), np.array(Image.open(path)))


def test_the_sampler_counts_epochs_by_itself():
    sampler = EpochSampler(range(20), shuffle=True)
    first, second = list(sampler), list(sampler)
    sampler.set_epoch(0)
    assert first != second and list(sampler) == first


def test_pictures_are_written_and_show_the_masks(folders, tmp_path):
    _, val = get_loaders(*folders, 4, 0, image_size=(40, 60))
    model = Threshold()
    out = tmp_path / "new" / "saved_images"
    save_predictions(val, model, out)
    assert {path.name for path in out.iterdir()} == {"0.png", "1.png", "pred_0.png", "pred_1.png"}
    grid = np.array(Image.open(out / "0.png").convert("L"))
    truth = next(iter(val))[1][0].numpy() * 255
    assert np.array_equal(grid[2:42, 2:62], truth)
    scores = check_accuracy(val, model)
    for epoch in (1, 2):
        save_examples(val, model, scores, epoch, out)
    assert {"examples.png", "worst.png", "strip.png"} <= {path.name for path in out.iterdir()}
    assert len(list((out / "strip").iterdir())) == 2
    save_examples(val, model, scores, 1, out)  # an earlier epoch again: the later one is of another run
    assert len(list((out / "strip").iterdir())) == 1
