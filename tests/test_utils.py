"""Loaders, scores, pictures and checkpoints, worked out by hand or on real files."""

import os
import pickle
import random
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from helpers import ROOT, WAIT, draw_pairs
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from parts.encoders import build_network
from parts.script import UserError
from unet import UNet
from utils import (
    EpochSampler,
    arrays_folder,
    best_of,
    check_accuracy,
    count_overlap,
    dice_from_counts,
    dice_of_choice,
    get_loaders,
    iou_from_counts,
    load_checkpoint,
    load_encoder_weights,
    load_network,
    read_checkpoint,
    refuse_infinite,
    save_checkpoint,
    save_examples,
    save_predictions,
    symptom,
    targets_of,
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
    images = to_device(white, cpu)
    assert images.dtype == torch.float32 and images.max() == 1
    assert to_device(torch.full((1, 3, 2, 2), -0.7), cpu).min() == pytest.approx(-0.7)
    for masks in (torch.ones(1, 2, 2, dtype=torch.uint8), torch.ones(1, 1, 2, 2)):
        assert targets_of(masks, cpu).shape == (1, 1, 2, 2) and targets_of(masks, cpu).dtype == torch.float32


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


def test_arrays_of_a_read_only_dataset_lie_in_the_output(tmp_path, monkeypatch):
    data = tmp_path / "data"
    draw_pairs(data / "images", data / "masks", 4)
    monkeypatch.chdir(tmp_path)
    assert arrays_folder("data/images", "run") == Path("data/.arrays")
    data.chmod(0o555)
    tmp_path.chmod(0o755)
    if os.getuid() == 0:
        os.seteuid(65534)  # nobody: root may write everywhere
    try:
        assert arrays_folder("data/images", "run") == Path("run/.arrays")
    finally:
        if os.getuid() == 0:
            os.seteuid(0)
        data.chmod(0o755)


def test_what_chooses_goes_by_images_that_hold_something():
    both, predicted, true = np.array([[0, 0, 0], [5, 5, 5], [0, 3, 0]]).T
    assert dice_of_choice(both, predicted, true) == 0.5 and dice_from_counts(both, predicted, true).mean() == 2 / 3
    assert dice_of_choice(both * 0, predicted * 0, true * 0) == 1


def test_the_best_epoch_is_not_one_that_predicts_nothing():
    """On a mostly empty set such an epoch has the higher mean; the first of several equal ones is the best."""
    nothing, something = dict(epoch=1, dice=0.83, dice_nonempty=0.0), dict(epoch=2, dice=0.66, dice_nonempty=0.5)
    assert best_of([nothing, something, something | dict(epoch=3)]) is something
    assert best_of([dict(dice=0.2), dict(dice=0.4)]) == dict(dice=0.4)  # of a checkpoint from before there were two


def test_a_loss_that_is_not_finite_names_the_files_of_its_batch(folders):
    train, _ = get_loaders(*folders, 4, 0, image_size=(40, 60))
    train.sampler.set_epoch(3)
    for index, (images, _) in enumerate(train):
        with pytest.raises(UserError, match=f"epoch 4, batch {index + 1}") as told:
            refuse_infinite([0.5, float("nan")], train, 3, index - 1)
        paths = re.findall(r"^  (/.*)$", str(told.value), flags=re.M)
        for image, path in zip(images, paths, strict=True):
            assert np.array_equal(image.permute(1, 2, 0).numpy(), np.array(Image.open(path)))


def test_any_loader_can_be_scored_each_image_once_and_in_order(folders):
    """Also one that shuffles and leaves the last images out, as training's does, or PyTorch's own."""
    train, _ = get_loaders(*folders, 4, 0, image_size=(40, 60))
    model = Threshold()
    scores = check_accuracy(train, model)
    assert len(scores.per_image) == 11 == len(train.dataset)
    alone = [check_accuracy(DataLoader([train.dataset[i]]), model).dice for i in range(11)]
    assert scores.per_image == pytest.approx(alone) and len(set(alone)) > 3
    for loader in (train, DataLoader(train.dataset, 3, shuffle=True), DataLoader(train.dataset, 3, drop_last=True)):
        assert check_accuracy(loader, model).per_image == scores.per_image


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


# ---- checkpoints


@pytest.fixture
def network():
    torch.manual_seed(0)
    return UNet(features=(4, 8))


@pytest.fixture
def saved(tmp_path, network):
    optimizer = torch.optim.Adam(network.parameters())
    network(torch.rand(1, 3, 8, 8)).sum().backward()
    optimizer.step()
    path = tmp_path / "checkpoint.pth"
    save_checkpoint({"state_dict": network.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 3}, path)
    return path


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def test_what_was_saved_comes_back(saved, network):
    checkpoint = read_checkpoint(saved)
    assert checkpoint["epoch"] == 3 and equal(checkpoint["state_dict"], network.state_dict())
    other = UNet(features=(4, 8))
    load_checkpoint(checkpoint, other)
    assert equal(other.state_dict(), network.state_dict())
    assert equal(torch.load(saved)["state_dict"], network.state_dict())  # as the article reads it


@pytest.mark.parametrize("prefix", ["", "_orig_mod.", "module.", "module._orig_mod.", "_orig_mod.module."])
@pytest.mark.parametrize("key", ["state_dict", "model_state_dict", "model", None])
def test_other_layouts_are_read(tmp_path, network, prefix, key):
    weights = {prefix + name: value for name, value in network.state_dict().items()}
    torch.save({key: weights} if key else weights, tmp_path / "other.pth")
    assert equal(read_checkpoint(tmp_path / "other.pth")["state_dict"], network.state_dict())


def test_a_file_in_pytorchs_old_format_is_read(tmp_path, network):
    torch.save(network.state_dict(), tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert equal(read_checkpoint(tmp_path / "old.pth")["state_dict"], network.state_dict())


class Hostile:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_hostile_file_is_refused_and_not_run(tmp_path):
    trap = tmp_path / "trap"
    torch.save({"state_dict": Hostile(trap)}, tmp_path / "hostile.pth")
    (tmp_path / "plain.pth").write_bytes(pickle.dumps(Hostile(trap), protocol=2))
    for name in ("hostile.pth", "plain.pth"):
        with pytest.raises(UserError, match=name):
            read_checkpoint(tmp_path / name)
    assert not trap.exists()
    torch.load(tmp_path / "hostile.pth", weights_only=False)  # the trap is a real one
    assert trap.exists()


def test_foreign_files_are_refused_by_name(tmp_path, saved):
    whole = saved.read_bytes()
    with zipfile.ZipFile(tmp_path / "zip.pth", "w") as archive:
        archive.writestr("readme", "hello")
    contents = {
        "empty.pth": b"",
        "text.pth": b"not a checkpoint\n",
        "short.pth": whole[: len(whole) // 2],
        "tail.pth": whole[:-40],
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    torch.save([1, 2], tmp_path / "list.pth")
    torch.save({"epoch": 1}, tmp_path / "noweights.pth")
    for name in [*contents, "zip.pth", "list.pth", "noweights.pth", "absent.pth"]:
        with pytest.raises(UserError, match=name):
            read_checkpoint(tmp_path / name)
    with pytest.raises(UserError, match="no such checkpoint"):
        read_checkpoint(tmp_path)


def test_a_flipped_byte_is_refused_or_harmless(saved, network):
    whole = saved.read_bytes()
    expected = read_checkpoint(saved)
    draw, refused = random.Random(0), 0
    for _ in range(200):
        place = draw.randrange(len(whole))
        damaged = bytearray(whole)
        damaged[place] ^= 1 << draw.randrange(8)
        saved.write_bytes(damaged)
        try:
            found = read_checkpoint(saved)
        except UserError as error:
            assert saved.name in str(error)
            refused += 1
            continue
        assert equal(found["state_dict"], expected["state_dict"]) and found["epoch"] == 3
        for index, state in expected["optimizer"]["state"].items():
            assert equal(found["optimizer"]["state"][index], state)
    assert refused > 100


def test_another_architecture_is_refused_whole(saved):
    for other in (UNet(features=(4, 16)), UNet(features=(4, 8, 8))):
        before = {key: value.clone() for key, value in other.state_dict().items()}
        with pytest.raises(UserError, match="another architecture"):
            load_checkpoint(read_checkpoint(saved), other)
        assert equal(other.state_dict(), before)


def test_best_and_last_are_one_file_until_one_is_replaced(tmp_path):
    last, best = tmp_path / "checkpoint.pth", tmp_path / "best.pth"
    save_checkpoint({"state_dict": {"w": torch.zeros(3)}}, best, also=last)
    assert last.samefile(best)
    save_checkpoint({"state_dict": {"w": torch.ones(3)}}, last)
    assert torch.load(best)["state_dict"]["w"].sum() == 0 and torch.load(last)["state_dict"]["w"].sum() == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best.pth", "checkpoint.pth"]


def test_a_full_disk_leaves_the_old_checkpoint(tmp_path):
    """The size of a file is limited in the child, as a full disk would limit it."""
    path = tmp_path / "checkpoint.pth"
    save_checkpoint({"state_dict": {"w": torch.zeros(10)}}, path)
    before = path.read_bytes()
    code = (
        "import resource, signal, torch, utils\nfrom parts import script\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        f"script.run(lambda: utils.save_checkpoint({{'state_dict': {{'w': torch.zeros(10**6)}}}}, {str(path)!r}))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=WAIT)
    assert done.returncode == 2 and "checkpoint.pth" in done.stderr and "Traceback" not in done.stderr
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_a_network_comes_back_as_what_it_was(tmp_path, saved, network):
    found, checkpoint = load_network(saved)  # a file that does not say what network it is of
    assert equal(found.state_dict(), network.state_dict()) and not found.training and checkpoint["epoch"] == 3
    other = build_network(encoder="resnet18")
    torch.save({"state_dict": other.state_dict(), "network": {"encoder": "resnet18"}}, tmp_path / "encoder.pth")
    assert equal(load_network(tmp_path / "encoder.pth")[0].state_dict(), other.state_dict())


# ---- encoders' weights


def with_weights(name, weights):
    network = build_network(encoder=name)
    load_encoder_weights(network, name, weights)
    return network


def test_weights_of_a_file_arrive_and_those_of_another_network_are_refused(tmp_path):
    torch.manual_seed(1)
    whole = torchvision.models.resnet18(weights=None)
    torch.save(whole.state_dict(), tmp_path / "resnet18.pth")
    network = with_weights("resnet18", str(tmp_path / "resnet18.pth"))
    assert torch.equal(network.state_dict()["encoder.layer4.0.conv1.weight"], whole.layer4[0].conv1.weight)
    with pytest.raises(UserError, match="another architecture"):
        with_weights("vgg11_bn", str(tmp_path / "resnet18.pth"))


def test_weights_out_of_reach_are_told_with_their_place(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # nobody listens there: no network, wherever this runs
    with pytest.raises(UserError) as told:
        with_weights("resnet18", "DEFAULT")
    assert str(tmp_path) in str(told.value) and "resnet18-" in str(told.value) and "None" in str(told.value)
    with pytest.raises(UserError, match="IMAGENET1K_V1"):
        with_weights("resnet18", "IMAGENET99")


def test_weights_in_torchvisions_cache_are_used_and_damaged_ones_named(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    name = torchvision.models.ResNet18_Weights.DEFAULT.url.rpartition("/")[2]
    file = tmp_path / "hub" / "checkpoints" / name
    file.parent.mkdir(parents=True)
    whole = torchvision.models.resnet18(weights=None)
    torch.save(whole.state_dict(), file)
    network = with_weights("resnet18", "DEFAULT")
    assert torch.equal(network.state_dict()["encoder.conv1.weight"], whole.conv1.weight)
    file.write_bytes(file.read_bytes()[:100_000])
    with pytest.raises(UserError, match=name):
        with_weights("resnet18", "DEFAULT")


def test_files_without_batchnorms_counters_or_with_another_classifier_load(tmp_path):
    whole = torchvision.models.resnet18(weights=None, num_classes=7)
    old = {key: value for key, value in whole.state_dict().items() if not key.endswith("num_batches_tracked")}
    torch.save(old, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    network = with_weights("resnet18", str(tmp_path / "old.pth"))
    assert torch.equal(network.state_dict()["encoder.layer1.0.conv1.weight"], whole.layer1[0].conv1.weight)
