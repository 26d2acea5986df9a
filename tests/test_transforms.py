"""Transforms of the user's own: their draws, and what they have to give back."""

import os
import random

import numpy as np
import pytest
import torch

from parts.errors import UserError
from parts.masks import IGNORED
from parts.transforms import augmented, draws_by_itself, transformed

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
import albumentations as A  # noqa: E402
from albumentations.pytorch import ToTensorV2  # noqa: E402

IMAGE = np.random.default_rng(0).integers(0, 256, (24, 32, 3), np.uint8)
MASK = np.zeros((24, 32), np.uint8)
MASK[4:12, 5:20], MASK[:2] = 1, IGNORED


def draws_of_all(image, mask):
    return dict(image=[np.random.rand(), random.random(), float(torch.rand(()))], mask=mask)


@pytest.mark.parametrize("transform", [draws_of_all, A.Compose([A.GaussNoise(p=1)]), A.GaussNoise(p=1)])
def test_draws_are_those_of_the_sample_and_others_go_on_as_if_there_were_none(transform):
    def made(*numbers):
        return transformed(transform, IMAGE, MASK, numbers)["image"]

    np.random.seed(1), random.seed(1), torch.manual_seed(1)
    first = draws_of_all(IMAGE, MASK)["image"]
    np.random.seed(1), random.seed(1), torch.manual_seed(1)
    one = made(0, 1, 2)
    assert draws_of_all(IMAGE, MASK)["image"] == first
    assert np.array_equal(made(0, 1, 2), one)
    for numbers in ((1, 1, 2), (0, 2, 2), (0, 1, 3)):
        assert np.equal(made(*numbers), one).mean() < 0.5


NOISE = A.Compose([A.GaussNoise(p=0.5)])


def inside(image, mask):
    return NOISE(image=image, mask=mask)


def seeded_inside(image, mask):
    NOISE.set_random_seed(random.getrandbits(32))
    return NOISE(image=image, mask=mask)


def test_a_generator_that_is_not_seeded_is_noticed():
    assert draws_by_itself(inside, IMAGE, MASK, 2)
    assert not any(draws_by_itself(transform, IMAGE, MASK, 2) for transform in (NOISE, seeded_inside))


@pytest.mark.parametrize(
    "transform",
    [
        A.Compose([A.Affine(rotate=(-40, 40), fill_mask=IGNORED, p=1), A.RandomBrightnessContrast(p=1)]),
        A.HorizontalFlip(p=1),
        lambda image, mask: dict(image=image[::-1], mask=mask[::-1].astype(np.int64)),
        lambda image, mask: dict(image=255 - image, mask=mask == 1, more=8),
    ],
)
def test_what_fits_is_taken_as_bytes(transform):
    image, mask = augmented(transform, IMAGE, MASK, (0, 1, 2), 2)
    assert image.dtype == mask.dtype == np.uint8 and image.shape == IMAGE.shape and mask.shape == MASK.shape
    assert not np.array_equal(image, IMAGE) and set(np.unique(mask)) <= {0, 1, IGNORED}


def gives(image=IMAGE, mask=MASK):
    return lambda **_: dict(image=image, mask=mask)


@pytest.mark.parametrize(
    "transform, message",
    [
        (
            A.Compose([A.Normalize()]),
            "returns an image of float32, .* takes bytes .* leave Normalize and ToTensorV2 out",
        ),
        (A.Compose([ToTensorV2()]), "returns an image of torch.uint8, .* leave Normalize and ToTensorV2 out"),
        (A.RandomCrop(16, 24), r"image of shape \(16, 24, 3\) for one of \(24, 32, 3\), .*size=\(24, 32\)"),
        (A.RandomCrop(48, 48), "AUGMENT = 'transforms.py:RandomCrop': CropSizeError: .*\nAn augmentation is called"),
        (A.ToGray(num_output_channels=1, p=1), r"image of shape \(24, 32\) for"),
        (gives(image=IMAGE.tolist()), "image of list"),
        (gives(mask=MASK[:-1]), r"mask of shape \(23, 32\) for one of \(24, 32\)"),
        (gives(mask=MASK / 255), r"mask of float64, .* labels \(0 ... 1\) and 255"),
        (gives(mask=MASK * 3), r"mask that holds 253, .* nearest"),
        (gives(mask=MASK.astype(int) - 1), "mask that holds 254, "),
        (gives(mask=-MASK.astype(int) - 1), "mask that holds -256, "),
        (lambda image, mask: (image, mask), "AUGMENT returns no dictionary with both"),
        (lambda image, mask: dict(image=image), "AUGMENT returns no dictionary with both"),
        ("nowhere.py:augment", "AUGMENT = 'nowhere.py:augment': FileNotFoundError"),
        (lambda image: dict(image=image), "TypeError: .*mask"),
        (lambda image, mask: 1 / 0, "ZeroDivisionError: .*test_transforms.py, line"),
    ],
)
def test_what_cannot_be_trained_on_is_refused_in_words(transform, message):
    with pytest.raises(UserError, match=message):
        augmented(transform, IMAGE, MASK, (0, 1, 2), 2)
