"""The article's dataset: its own use, masks of {0, 1}, and random draws that do not depend on the workers."""

import os
import pickle

import numpy as np
import pytest
import torch
from conftest import draw_pairs
from PIL import Image
from torch.utils.data import DataLoader

from dataset import ImageDataset, image_dataset
from errors import UserError

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
import albumentations as A  # noqa: E402
from albumentations.pytorch import ToTensorV2  # noqa: E402


@pytest.fixture
def folders(tmp_path):
    draw_pairs(tmp_path / "images", tmp_path / "masks", 9)
    return tmp_path / "images", tmp_path / "masks"


def test_items_are_arrays(folders):
    dataset = ImageDataset(*folders)
    assert len(dataset) == 9 and [pair.name for pair in dataset.pairs] == [f"img_{i:03d}" for i in range(9)]
    for index in range(9):
        image, mask = dataset[index]
        np.testing.assert_array_equal(image, np.asarray(Image.open(folders[0] / f"img_{index:03d}.png")))
        np.testing.assert_array_equal(mask * 255, np.asarray(Image.open(folders[1] / f"img_{index:03d}.png")))
        assert image.dtype == mask.dtype == np.uint8
    with pytest.raises(IndexError):
        dataset[9]


def test_the_articles_transform(folders):
    transform = A.Compose(
        [
            A.Resize(height=32, width=48),
            A.Normalize(mean=[0.0, 0.0, 0.0], std=[1.0, 1.0, 1.0], max_pixel_value=255.0),
            ToTensorV2(),
        ]
    )
    image, mask = image_dataset(*folders, transform=transform)[0]
    assert image.shape == (3, 32, 48) and image.dtype == torch.float32 and image.min() >= 0 and image.max() <= 1
    assert mask.shape == (32, 48) and set(mask.unique().tolist()) == {0, 1}
    targets = mask.float().unsqueeze(0)
    assert targets.max() == 1


def draws(dataset, workers, epochs=(0, 1), persistent=False):
    """Every epoch's images, in order."""
    loader = DataLoader(dataset, batch_size=3, num_workers=workers, persistent_workers=persistent)
    found = []
    for epoch in epochs:
        dataset.set_epoch(epoch)
        found.append(torch.cat([images for images, _ in loader]))
    return found


def test_draws_depend_on_seed_epoch_and_index_alone(folders):
    transform = A.Compose([A.RandomCrop(24, 24), A.RandomBrightnessContrast(p=1)])
    dataset = ImageDataset(*folders, transform, seed=3)
    first, second = draws(dataset, 0)
    again = draws(ImageDataset(*folders, A.Compose([A.RandomCrop(24, 24), A.RandomBrightnessContrast(p=1)]), seed=3), 2)
    persistent = draws(dataset, 2, persistent=True)
    for other in (again, persistent):
        assert torch.equal(first, other[0]) and torch.equal(second, other[1])
    assert not torch.equal(first, second)
    other_seed = ImageDataset(*folders, transform, seed=4)
    assert not torch.equal(draws(other_seed, 0, [0])[0], first)


def test_image_and_mask_stay_together(folders):
    transform = A.Compose([A.HorizontalFlip(p=1)])
    plain, flipped = ImageDataset(*folders)[2], ImageDataset(*folders, transform)[2]
    np.testing.assert_array_equal(flipped[0], plain[0][:, ::-1])
    np.testing.assert_array_equal(flipped[1], plain[1][:, ::-1])


def test_foreground_and_rule(folders):
    inverted = ImageDataset(*folders, foreground=0)
    plain = ImageDataset(*folders)
    np.testing.assert_array_equal(inverted[0][1], 1 - plain[0][1])
    assert ImageDataset(*folders, rule=inverted.rule).rule == inverted.rule


def test_it_pickles_and_keeps_its_epoch(folders):
    dataset = ImageDataset(*folders)
    dataset.set_epoch(5)
    copy = pickle.loads(pickle.dumps(dataset))
    assert int(copy._epoch) == 5 and copy.rule == dataset.rule and copy.pairs == dataset.pairs


def test_mistakes_are_told_at_once(folders):
    with pytest.raises(UserError, match="no such folder"):
        ImageDataset(folders[0], folders[1] / "nothing")
    (folders[1] / "img_000.png").unlink()
    (folders[1] / "img_001.png").unlink()
    with pytest.raises(UserError) as caught:
        ImageDataset(*folders)
    assert "img_000" in str(caught.value) and "img_001" in str(caught.value)


def test_a_file_that_goes_bad_in_a_worker_is_named(folders):
    dataset = ImageDataset(*folders)
    (folders[0] / "img_004.png").write_bytes(b"")
    with pytest.raises(UserError, match="img_004.png: is empty"):
        draws(dataset, 1, [0])
