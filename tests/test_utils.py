"""Loaders, scores, pictures and checkpoints, worked out by hand or on real files."""

import re

import numpy as np
import pytest
import torch
import torch._dynamo.testing
from fakes import Nearest, Threshold
from helpers import draw_pairs
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader

from parts import pictures
from parts.errors import UserError
from parts.inference import to_device
from parts.progress import refuse_infinite
from parts.recipe import targets_of
from parts.scores import (
    count_confusion,
    dice_from_counts,
    overlap_of,
)
from parts.spec import DataSpec
from unet import UNet
from utils import (
    check_accuracy,
    get_loaders,
    save_examples,
    save_predictions,
)


@pytest.mark.parametrize("classes, channels", [(("a", "b", "c"), 3), (None, 1)])
def test_a_users_transform_works_with_classes_and_ignored_pixels(class_folders, classes, channels):
    """What comes of it is trained on and scored like the arrays."""
    meaning = dict(classes=dict(zip(classes, (0, 100, 200)))) if classes else dict(foreground=200)
    torch.manual_seed(0)
    model, targets, scores = nn.Conv2d(3, channels, 1, bias=False), [], []
    spec = DataSpec(ignore=50, **meaning)
    for transform in (None, lambda image, mask: dict(image=image.transpose(2, 0, 1), mask=mask.astype(np.int64))):
        _, val = get_loaders(*class_folders, 4, 0, transform=transform, image_size=(40, 60), spec=spec)
        mask_rule = val.dataset.mask_rule
        assert (mask_rule.channels, mask_rule.is_binary) == (channels, False)
        targets.append(torch.cat([targets_of(masks, torch.device("cpu"), labels=True) for _, masks in val]))
        scores.append(check_accuracy(val, model))
    assert torch.equal(*targets) and targets[0].unique().tolist() == [*range(max(2, channels)), 255]
    assert scores[0] == scores[1] and scores[0].accuracy < 1


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


def draw_classes(images, masks, count, size=(40, 60)):
    """Pictures whose red is the value of their masks, of 0, 100 and 200; the last rows are 50, and the first of one."""
    images.mkdir()
    masks.mkdir()
    for index in range(count):
        mask = np.random.default_rng(index).choice([0, 100, 200], size).astype(np.uint8)
        mask = np.kron(mask[::10, ::10], np.ones((10, 10), np.uint8))
        mask[-8:] = 50
        Image.fromarray(np.dstack([mask, mask * 0 + index, 255 - mask])).save(images / f"img_{index:03d}.png")
        Image.fromarray(mask).save(masks / f"img_{index:03d}.png")


@pytest.fixture
def class_folders(tmp_path):
    folders = [tmp_path / name for name in ("ca", "cam", "cb", "cbm")]
    draw_classes(*folders[:2], 6)
    draw_classes(*folders[2:], 5)
    return folders


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


def red_network():
    """Predicts the classes of draw_classes, without a fault."""
    model = Nearest(3)
    model.numbers.data *= 100
    return model


def test_classes_are_drawn_in_their_colours_and_kept_as_their_indices(class_folders, tmp_path):
    spec = DataSpec(ignore=50, classes=dict(sky=0, road=100, car=200))
    _, val = get_loaders(*class_folders, 4, 0, image_size=(40, 60), spec=spec)
    out, model, drawn = tmp_path / "saved_images", red_network(), []
    save_predictions(val, model, out)
    truth = next(iter(val))[1][0].numpy()
    colours = np.array(pictures.Palette.of(val.dataset.mask_rule).colours)
    for name in ("0.png", "pred_0.png"):
        drawn.append(np.array(Image.open(out / name).convert("RGB"))[2:42, 2:62])
        assert np.array_equal(drawn[-1][:32], colours[truth[:32]])
    assert not np.array_equal(drawn[0][32:], drawn[1][32:]), "what is ignored is hatched in the truth alone"
    scores = check_accuracy(val, model)
    assert scores.dice == 1 and scores.per_image == [1] * 5
    kept = out / "strip"
    kept.mkdir()
    pictures.save_image(kept / "0001_0.5000.png", np.full((20, 30), 255, np.uint8))  # of another size, and no class
    for name in ("0000_0.5000.png", "0007_0.5000.png", "0007_mine.png", "mine_2.png"):
        (kept / name).write_bytes(b"junk")
    for epoch in (2, 3):
        save_examples(val, model, scores, epoch, out)
    *names, mine, mine_too = [path.name for path in sorted(kept.iterdir())]
    assert names == ["0001_0.5000.png", "0002_1.0000.png", "0003_1.0000.png"] and "mine" in mine and "mine" in mine_too
    index = 0  # the first of five that are all shown
    assert np.array_equal(np.array(Image.open(kept / names[-1]))[:32], val.dataset[index][1].numpy()[:32])
    assert {"examples.png", "worst.png", "strip.png"} <= {path.name for path in out.iterdir()}


def test_ignored_pixels_of_one_foreground_are_drawn(class_folders, tmp_path):
    _, val = get_loaders(*class_folders, 4, 0, image_size=(40, 60), spec=DataSpec(ignore=50, foreground=200))
    model = Threshold()
    save_predictions(val, model, tmp_path)
    truth = np.array(Image.open(tmp_path / "0.png").convert("L"))[2:42, 2:62]
    assert set(np.unique(truth[:32])) == {0, 255} and len(np.unique(truth[32:])) > 1
    save_examples(val, model, check_accuracy(val, model), 1, tmp_path)
    assert set(np.unique(np.array(Image.open(next((tmp_path / "strip").iterdir()))))) <= {0, 255}


# ---- crops, and whole images in windows


def test_pictures_of_photographs_are_kept_as_large_as_their_sheet_needs(tmp_path):
    folders = [tmp_path / name for name in ("ti", "tm", "vi", "vm")]
    draw_pairs(*folders[:2], 60, size=(64, 96))
    draw_pairs(*folders[2:], 1, size=(1440, 1200), first=100)
    _, loader = get_loaders(*folders, 4, 0, image_size=None, crop=(64, 96))
    network = UNet(features=(4,))
    save_examples(loader, network, check_accuracy(loader, network), 1, tmp_path)
    (kept,) = (tmp_path / "strip").iterdir()
    with Image.open(kept) as picture, Image.open(tmp_path / "examples.png") as sheet:
        assert picture.size == (800, 960) and sheet.height < 400


@pytest.mark.parametrize("classes", [None, (0, 127, 255)])
def test_whole_images_are_scored_and_drawn_at_their_own_size(tmp_path, classes):
    folders = [tmp_path / name for name in ("ti", "tm", "vi", "vm")]
    draw_pairs(*folders[:2], 4, size=(60, 90))
    draw_pairs(*folders[2:], 3, size=(36, 52), first=10)
    draw_pairs(*folders[2:], 1, size=(800, 790), first=14)  # in several windows
    if classes:
        for path in [*folders[1].iterdir(), *folders[3].iterdir()]:
            mask = np.asarray(Image.open(path)).copy()
            mask[: len(mask) // 4] = 127
            Image.fromarray(mask).save(path)
    torch.manual_seed(0)
    network = UNet(3, 3 if classes else 1, (4, 8))
    _, loader = get_loaders(*folders, 2, 0, image_size=None, crop=(32, 32), spec=DataSpec(classes=classes))
    scores = check_accuracy(loader, network, dtype=None)
    network.eval()
    expected = []
    for images, masks in loader:
        height, width = images.shape[2:]
        padded = nn.functional.pad(images.float() / 255, (0, -width % 4, 0, -height % 4), mode="replicate")
        with torch.no_grad():
            logits = network(padded)[:, :, :height, :width]
        if classes:
            expected.append(count_confusion(logits.argmax(1), masks, 3)[0])
        else:
            expected.append(overlap_of(count_confusion((logits[:, 0] > 0).byte(), masks, 2))[0, :3, 1])
    if classes:
        found, meant = np.array(scores.classes["confusion"]), torch.stack(expected).sum(0).numpy()
        assert np.abs(found - meant).sum() <= 1e-4 * meant.sum() and found.sum() == meant.sum()
    else:
        dice = [dice_from_counts(*counts.numpy()) for counts in expected]
        assert np.allclose(scores.per_image, dice, atol=1e-3)
    save_predictions(loader, network, tmp_path / "out", limit=2)
    save_examples(loader, network, scores, 1, tmp_path / "out")
    with Image.open(tmp_path / "out" / "pred_0.png") as picture:
        assert picture.size == (52 + 4, 36 + 4)
    for name in ("examples", "worst", "strip"):
        assert (tmp_path / "out" / f"{name}.png").stat().st_size > 1000


@pytest.mark.parametrize("crop", [None, (32, 48)])
def test_scores_and_pictures_run_a_compiled_network_as_it_is_written(folders, crop):
    """Their last batches and odd sizes compile nothing; training does."""
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounter()
    network = UNet(features=(4, 8))
    network.compile(backend=counter)
    _, loader = get_loaders(*folders, 4, 0, image_size=None if crop else (40, 60), crop=crop)
    scores = check_accuracy(loader, network)
    save_predictions(loader, network, folders[0].parent / "out")
    save_examples(loader, network, scores, 1, folders[0].parent / "out")
    assert counter.frame_count == 0
    network(torch.rand(2, 3, 32, 48))
    assert counter.frame_count == 1
    torch._dynamo.reset()
