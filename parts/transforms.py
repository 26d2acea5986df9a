"""Transforms of the user's own: albumentations, or any function of an image and its mask, seeded for each sample."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from parts.errors import UserError
from parts.masks import IGNORED
from parts.own import faults_of, load_part

Transform = Callable[..., dict[str, Any]]  # called with image= and mask=, returns both under these names
CONTRACT = (
    "An augmentation is called as f(image=, mask=) and returns a dictionary with both, such as albumentations does."
)
_TRIALS = 8  # an augmentation that acts on half of the images leaves all of these as they are once in 65,000 times


def transformed(transform: Transform, image: np.ndarray, mask: np.ndarray, numbers: Sequence[int]) -> dict[str, Any]:
    """What `transform(image=image, mask=mask)` returns; its draws depend on `numbers` (seed, epoch, index) alone.

    For the call Python's, NumPy's and torch's generators (that of the CPU) are seeded, afterwards they go on as if
    nothing had been. A transform that has `set_random_seed`, as those of albumentations have, is seeded by that too.
    """
    seed = int(np.random.SeedSequence(numbers).generate_state(1)[0])
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        random.seed(seed)
        np.random.seed(seed)
        torch.default_generator.manual_seed(seed)
        if hasattr(transform, "set_random_seed"):
            transform.set_random_seed(seed)
        return transform(image=image, mask=mask)
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.set_rng_state(before[2])


def augmented(
    augment: Transform | str, image: np.ndarray, mask: np.ndarray, numbers: Sequence[int], num_labels: int
) -> tuple[np.ndarray, np.ndarray]:
    """An image, uint8 (H, W, C), and its mask, uint8 (H, W), as AUGMENT makes them of such; `numbers` as above.

    The mask holds labels below `num_labels`, and IGNORED. UserError: AUGMENT cannot be loaded, or fails, or makes
    something else.
    """
    with faults_of("AUGMENT", augment, CONTRACT):
        made = transformed(load_part("AUGMENT", augment, {}), image, mask, numbers)
    if not isinstance(made, Mapping) or not {"image", "mask"} <= made.keys():
        raise UserError(f"AUGMENT returns no dictionary with both. {CONTRACT}")
    if fault := _fault_of_image(made["image"], image.shape) or _fault_of_mask(made["mask"], mask.shape, num_labels):
        raise UserError(f"AUGMENT returns {fault}.")
    return made["image"], np.asarray(made["mask"]).astype(np.uint8, copy=False)


def draws_by_itself(augment: Transform | str, image: np.ndarray, mask: np.ndarray, num_labels: int) -> bool:
    """Whether AUGMENT makes different images of one with the same seed: it draws from a generator of its own."""
    for number in range(_TRIALS):
        first, second = (augmented(augment, image.copy(), mask.copy(), (number,), num_labels) for _ in range(2))
        if not all(map(np.array_equal, first, second)):
            return True
    return False


def _fault_of_image(made: Any, shape: tuple[int, ...]) -> str:
    """What is wrong with an image that AUGMENT has made; "" if nothing is."""
    kind = getattr(made, "dtype", type(made).__name__)
    if not isinstance(made, np.ndarray) or kind != np.uint8:
        cure = "leave Normalize and ToTensorV2 out; bytes become 0 to 1 on the device"
        return f"an image of {kind}, and the network takes bytes (a NumPy array of uint8): {cure}"
    if made.shape != shape:
        cure = f"keep the shape, or end with one that makes it, such as A.RandomResizedCrop(size={shape[:2]})"
        return f"an image of shape {made.shape} for one of {shape}, and a batch needs one size: {cure}"
    return ""


def _fault_of_mask(made: Any, shape: tuple[int, ...], num_labels: int) -> str:
    """What is wrong with a mask that AUGMENT has made; "" if nothing is."""
    labels = np.asarray(made)
    if labels.shape != shape:
        return f"a mask of shape {labels.shape} for one of {shape}: change image and mask alike"
    cure = "take the nearest pixel where it resizes or rotates, and fill with one of these"
    allowed = f"labels (0 ... {num_labels - 1}) and {IGNORED} for ignored pixels alone: {cure}"
    if labels.dtype.kind not in "biu":
        return f"a mask of {labels.dtype}, which has to hold {allowed}"
    wrong = labels[(labels != IGNORED) & ((labels < 0) | (labels >= num_labels))]
    if wrong.size:
        return f"a mask that holds {wrong.flat[0]}, and it has to hold {allowed}"
    return ""
