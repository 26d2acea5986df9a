"""The article's utilities: loaders, accuracy, predictions to look at, checkpoints."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

import pictures
import processes
from checkpoints import load_checkpoint, save_checkpoint
from loading import EpochSampler, fetch, get_loaders

__all__ = [
    "check_accuracy",
    "count_overlap",
    "dice_from_counts",
    "get_loaders",
    "iou_from_counts",
    "load_checkpoint",
    "save_checkpoint",
    "save_examples",
    "save_predictions",
    "symptom",
    "to_device",
]


def to_device(images, masks, device):
    """A batch as the network takes it: images (N, 3, H, W) in [0, 1], masks (N, 1, H, W) of {0.0, 1.0}.

    uint8 travels to the device and is scaled there; floats (from the article's transform) stay as they are.
    """
    images = images.to(device, non_blocking=True)
    masks = masks.to(device, non_blocking=True)
    if images.dtype == torch.uint8:
        images = images.float().div_(255)
    if device.type != "mps":
        images = images.contiguous(memory_format=torch.channels_last)
    return images, masks.reshape(len(masks), 1, *masks.shape[-2:]).float()


@dataclass
class Scores:
    """Of one validation: pixel accuracy, Dice and IoU (means over images) and what the images had."""

    accuracy: float
    dice: float
    iou: float
    predicted_share: float  # of all pixels
    true_share: float
    per_image: list = field(repr=False)  # each image's Dice, in the dataset's order


def count_overlap(predictions, truths):
    """(N, 3) counts of pixels, of each image: in both, predicted, true. Takes booleans (N, ..., H, W)."""
    predictions, truths = predictions.flatten(1), truths.flatten(1)
    return torch.stack([(predictions & truths).sum(1), predictions.sum(1), truths.sum(1)], dim=1)


def dice_from_counts(both, predicted, true):
    """Dice = 2 |P and T| / (|P| + |T|) of each image; both empty count 1."""
    return np.where(predicted + true == 0, 1.0, 2 * both / np.maximum(predicted + true, 1))


def iou_from_counts(both, predicted, true):
    """IoU = |P and T| / |P or T| of each image; both empty count 1."""
    union = predicted + true - both
    return np.where(union == 0, 1.0, both / np.maximum(union, 1))


@torch.no_grad()
def check_accuracy(loader, model, device=None, dtype=None):
    """Prints and returns the Scores of `model` over every image of `loader`, each counted once.

    `dtype` is autocast's (None: none). The counts are summed on the device and read once, at the end;
    with several processes each scores its share and all get the same result.
    """
    device = torch.device(device or next(model.parameters()).device)
    training = model.training
    model.eval()
    counts, pixels = [], 0
    for images, masks in loader:
        images, masks = to_device(images, masks, device)
        with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
            logits = model(images)
        counts.append(count_overlap(logits > 0, masks > 0.5))
        pixels = masks[0].numel()
    model.train(training)
    everyone = torch.zeros(len(loader.dataset), 3, dtype=torch.float64, device=_exact_device(device))
    order = loader.sampler.order(0) if isinstance(loader.sampler, EpochSampler) else slice(None)
    if counts:
        everyone[order] = torch.cat(counts).to(everyone.device).to(everyone.dtype)
    both, predicted, true = processes.sum_over_all(everyone).cpu().numpy().T
    pixels = processes.largest(pixels) * len(both)
    right = pixels - int((predicted + true - 2 * both).sum())
    per_image = dice_from_counts(both, predicted, true)
    scores = Scores(
        accuracy=right / pixels,
        dice=float(per_image.mean()),
        iou=float(iou_from_counts(both, predicted, true).mean()),
        predicted_share=float(predicted.sum() / pixels),
        true_share=float(true.sum() / pixels),
        per_image=per_image.tolist(),
    )
    if processes.rank() == 0:
        print(
            f"Got {right}/{pixels} pixels right, accuracy {100 * scores.accuracy:.2f} %; "
            f"Dice {scores.dice:.4f}, IoU {scores.iou:.4f}"
        )
    return scores


def _exact_device(device):
    return torch.device("cpu") if device.type == "mps" else device  # mps has no float64


def symptom(scores):
    """What scores that cannot be right point to, in words, or None."""
    if scores.true_share > 0 and scores.predicted_share == 0:
        return (
            f"No pixel of the validation images is predicted as foreground, though the masks hold "
            f"{100 * scores.true_share:.1f} %. In the first epochs this may pass. If it stays: look at the "
            "overlays of the audit (do the masks lie on their objects?), then lower LEARNING_RATE."
        )
    if scores.true_share < 1 and scores.predicted_share == 1:
        return (
            f"Every pixel is predicted as foreground, though the masks hold {100 * scores.true_share:.1f} %. "
            "If it stays: look at the overlays of the audit (is foreground what you mean by it?), then lower "
            "LEARNING_RATE."
        )
    return None


@torch.no_grad()
def predict(images, model, device, dtype=None):
    """Masks (N, H, W) uint8 of {0, 1}, on the CPU, for a batch of images as a loader gives them."""
    images, _ = to_device(images, torch.zeros(len(images), *images.shape[-2:]), device)
    with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
        logits = model(images)
    return (logits[:, 0] > 0).byte().cpu()


def save_predictions(loader, model, folder="saved_images/", device=None, dtype=None, limit=None):
    """Writes each batch's predicted masks as `pred_N.png` and its true ones as `N.png`, in grids.

    `folder` is made if need be. `limit` says how many, None for all of them.
    """
    device = torch.device(device or next(model.parameters()).device)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    training = model.training
    model.eval()
    for index, (images, masks) in enumerate(loader):
        if index == limit:
            break
        truths = masks.reshape(len(masks), *masks.shape[-2:]) > 0.5
        found = predict(images, model, device, dtype)
        for name, shown in ((f"pred_{index}.png", found), (f"{index}.png", truths)):
            pictures.save_image(folder / name, pictures.grid(shown.numpy()))
    model.train(training)


def save_examples(loader, model, scores, epoch, folder="saved_images/", count=6, device=None, dtype=None):
    """Writes what the eye needs: `examples.png` (always the same images), `worst.png` (this epoch's
    lowest Dice), and `strip.png` (one image over the epochs): image, truth, prediction, difference.
    """
    device = torch.device(device or next(model.parameters()).device)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    total = len(loader.dataset)
    count = min(count, total)
    fixed = [round((place + 0.5) * total / count - 0.5) for place in range(count)]  # spread over the set
    worst = np.argsort(scores.per_image, kind="stable")[:count].tolist()
    training = model.training
    model.eval()
    for name, indices in (("examples", fixed), ("worst", worst)):
        images, masks = fetch(loader, indices)
        masks = (masks.reshape(len(masks), *masks.shape[-2:]) > 0.5).byte().numpy()
        found = predict(images, model, device, dtype).numpy()
        captions = [f"{loader.dataset.pairs[i].name}  Dice {scores.per_image[i]:.4f}" for i in indices]
        shown = _for_eyes(images)
        sheet = pictures.examples_sheet(shown, masks, found, captions, f"{name}, epoch {epoch}")
        pictures.save_image(folder / f"{name}.png", sheet)
        if name == "examples":
            _save_strip(folder, shown[0], masks[0], found[0], epoch, scores.per_image[indices[0]])
    model.train(training)


def _save_strip(folder, image, truth, prediction, epoch, dice):
    """Keeps this epoch's mask as `strip/EPOCH_DICE.png` and draws up to eight of them, evenly spread."""
    kept = folder / "strip"
    kept.mkdir(exist_ok=True)
    for old in kept.glob("[0-9][0-9][0-9][0-9]_*.png"):
        if int(old.stem.split("_")[0]) >= epoch:  # of a run that went further than the one that goes on here
            old.unlink()
    pictures.save_image(kept / f"{epoch:04d}_{dice:.4f}.png", prediction * 255)
    frames = sorted(kept.glob("[0-9][0-9][0-9][0-9]_*.png"))
    frames = [frames[i] for i in sorted(set(np.linspace(0, len(frames) - 1, 8).round().astype(int)))]
    named = [frame.stem.split("_") for frame in frames]
    captions = [f"epoch {int(number)}, Dice {dice}" for number, dice in named]
    masks = [pictures.load_mask(frame) for frame in frames]
    pictures.save_image(folder / "strip.png", pictures.strip(image, truth, masks, captions))


def _for_eyes(images):
    """Images (N, 3, H, W) of a batch, bytes or floats, as uint8 (N, H, W, 3)."""
    if images.dtype != torch.uint8:
        low, high = images.amin(), images.amax()  # a user's transform may have normalised them
        low, high = min(low, 0 * low), max(high, 0 * high + 1)
        images = ((images - low) / (high - low) * 255).byte()
    return images.permute(0, 2, 3, 1).contiguous().numpy()
