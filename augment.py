"""Splits a dataset by groups and writes the augmented copies that train.py trains on.

    python augment.py                                         Carvana, unpacked into dataset/
    python augment.py --img-dir A --mask-dir B --val-images 0.1

The last VAL_IMAGES images by name are held out: they go to augmented_test_images/ and _masks/ as they
are. Each other one goes to augmented_train_images/ and _masks/ four times: as it is, mirrored, upside
down, and distorted on a grid (the mask in the same way). Views of one car never stand on both sides.
The work runs on all cores, a run that was stopped goes on where it was, and every run over the same
sources ends with the same bytes. Look at augmented_preview.png before training.
"""

import shlex
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

import manifest
import pictures
from copies import FOLDERS, Maker, all_copies, plan, read_pair
from errors import UserError, run
from files import remove_leftovers
from masks import MaskRule, find_mask_rule, read_mask
from parallel import each, one_at_a_time
from reading import CARVANA_GROUP, HOW_TO_GET_CARVANA, group_of, image_size, pair_files, read_image, shown
from settings import settings_of

IMG_DIR = "dataset/train"  # the images; Carvana's train.zip unpacks into this
MASK_DIR = "dataset/train_masks"  # their masks; Carvana's train_masks.zip
OUTPUT_DIR = "dataset"  # gets augmented_{train,test}_{images,masks}/ and augmented_preview.png
VAL_IMAGES: int | float = 500  # the last so many by name are for validation; below 1 a fraction, such as 0.1
GROUP = CARVANA_GROUP  # pattern of a name's beginning that tells the car: one car stays on one side
MASK_FOREGROUND: int | tuple | None = None  # the mask values that mean car, where they are not 1 or white
JPEG_QUALITY = 95  # of the copies of JPEG images; originals are copied byte for byte, PNG stays lossless
NUM_WORKERS: int | None = None  # processes; none: one a core
SEED = 0  # of the grid distortions; each image has its own draw, by its name

PREVIEW = "augmented_preview.png"
WRITTEN_MASKS = MaskRule("numbers", (0,), (255,))


def augmentation(image, mask, rule=None, seed=SEED):
    """Two files -> ([4 images uint8 (H, W, 3)], [4 masks uint8 (H, W) of 0 and 255]), as the article has it.

    In this order: original, horizontal flip, vertical flip, grid distortion. `rule`: the MaskRule of the
    dataset; by default that of this one mask. UnusableFile.
    """
    image, mask = Path(image), Path(mask)
    pixels, inside = read_pair(image, mask, rule or find_mask_rule([mask]))
    images, masks = all_copies(pixels, inside, image.stem, seed)
    return images, [mask * np.uint8(255) for mask in masks]


def split(pairs, val_images=VAL_IMAGES, group=GROUP):
    """(training, validation, left out): the last `val_images` of the sorted pairs are validation.

    A fraction counts of all images. What shares its group with a validation image is left out.
    UserError: numbers or a pattern that leave nothing on one side.
    """
    groups = {pair: group_of(pair.name, group) for pair in pairs}
    number = val_images if isinstance(val_images, int) else max(1, round(val_images * len(pairs)))
    if val_images <= 0 or isinstance(val_images, float) and val_images >= 1 or number >= len(pairs):
        raise UserError(
            f"VAL_IMAGES is {val_images}, of {len(pairs)} images. Give a number from 1 to {len(pairs) - 1}, or a "
            "fraction between 0 and 1, such as --val-images 0.1."
        )
    rest, val = pairs[:-number], pairs[-number:]
    held_out = {groups[pair] for pair in val}
    train = [pair for pair in rest if groups[pair] not in held_out]
    if not train:
        raise UserError(
            f"Nothing is left to train on: all {len(rest)} other images share a group with the {number} validation "
            f"images ({', '.join(sorted(held_out)[:3])}). Lower VAL_IMAGES (--val-images), or change GROUP (--group)."
        )
    return train, val, [pair for pair in rest if groups[pair] in held_out]


@dataclass(frozen=True)
class Summary:
    """What make_augmented did; sources are images as they came, `written` counts files of images."""

    train: int
    val: int
    left_out: int
    train_groups: int
    val_groups: int
    written: int
    total: int
    seconds: float
    preview: Path


def make_augmented(
    img_dir,
    mask_dir,
    output_dir,
    val_images=VAL_IMAGES,
    group=GROUP,
    mask_foreground=MASK_FOREGROUND,
    jpeg_quality=JPEG_QUALITY,
    num_workers=NUM_WORKERS,
    seed=SEED,
    progress=True,
):
    """Writes what this file's docstring says below `output_dir`, as far as it is not there yet; a Summary.

    UserError: unusable files (all of them named), a split that leaves nothing, another's files in the way.
    """
    _check(img_dir, mask_dir, output_dir, jpeg_quality, num_workers)
    pairs = pair_files(img_dir, mask_dir)
    train, val, left_out = split(pairs, val_images, group)
    if progress:
        print(f"{len(pairs)} images and masks in {shown(img_dir)} and {shown(mask_dir)}; looking at every mask ...")
    rule = find_mask_rule([pair.mask for pair in pairs], mask_foreground, num_workers)
    items = plan(train, val)
    output_dir = Path(output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    waiting = f"Another augment.py is at work in {shown(output_dir)}; waiting for it ..."
    with one_at_a_time(output_dir / ".augmented.lock", waiting):
        made_by = {"mask rule": rule.describe(), "JPEG_QUALITY": jpeg_quality, "SEED": seed}
        missing = _prepare(output_dir, items, made_by)
        start = time.perf_counter()
        _make(missing, Maker(output_dir, rule, jpeg_quality, seed), num_workers, items, progress)
        seconds = time.perf_counter() - start
        _draw_preview(output_dir, items[: len(train)])
    return Summary(
        train=len(train),
        val=len(val),
        left_out=len(left_out),
        train_groups=len({group_of(pair.name, group) for pair in train}),
        val_groups=len({group_of(pair.name, group) for pair in val}),
        written=_images(missing),
        total=_images(items),
        seconds=seconds,
        preview=output_dir / PREVIEW,
    )


def _check(img_dir, mask_dir, output_dir, jpeg_quality, num_workers):
    for folder in (img_dir, mask_dir):
        folder = Path(folder)
        if not folder.exists() or folder.is_dir() and not any(folder.iterdir()):
            state = "is empty" if folder.exists() else "there is no such folder"
            raise UserError(f"{shown(folder)}: {state}.\n{HOW_TO_GET_CARVANA}")
        if folder.resolve() in [(Path(output_dir) / name).resolve() for name in FOLDERS]:
            raise UserError(f"{shown(folder)}: augment.py writes there itself. Give the folder of the originals.")
        if folder.resolve() == Path(output_dir).resolve():
            raise UserError(
                f"{shown(folder)}: {PREVIEW} would be taken for one of the images there. Give another OUTPUT_DIR "
                "(--output-dir)."
            )
    if not 1 <= jpeg_quality <= 100:
        raise UserError(f"JPEG_QUALITY (--jpeg-quality) goes from 1 to 100, got {jpeg_quality}.")
    if num_workers is not None and num_workers < 1:
        raise UserError(f"NUM_WORKERS (--num-workers) is 1 or more, or none for one a core; got {num_workers}.")


def _prepare(output_dir, items, settings):
    """Clears away what is not to stay in `output_dir`, writes the manifest; the Items yet to be made."""
    old = manifest.load(output_dir)
    manifest.refuse_foreign(output_dir, FOLDERS, old)
    for folder in FOLDERS:
        (output_dir / folder).mkdir(exist_ok=True)
        remove_leftovers(output_dir / folder)
    new = {item.name: {"from": manifest.source_facts(item.image, item.mask), "files": item.files} for item in items}
    reasons = manifest.remove_stale(output_dir, old, settings, new)
    manifest.store(output_dir, settings, new)
    missing = [item for item in items if not manifest.is_complete(output_dir, new[item.name])]
    if reasons:
        print(f"Making anew what has changed since the last run: {reasons}.")
    elif missing and len(missing) < len(items):
        print(f"Going on: {len(items) - len(missing)} of {len(items)} images are done.")
    return missing


def _images(items):
    return sum(len(item.files) // 2 for item in items)


def _make(missing, maker, num_workers, items, progress):
    faults = []
    total = _images(items)
    bar = tqdm(total=total, initial=total - _images(missing), unit=" images", desc="augmenting", disable=not progress)
    with bar, closing(each(maker, missing, num_workers)) as outcomes:
        for index, fault in outcomes:
            if fault is not None:
                faults.append((missing[index].name, str(fault)))
            bar.update(len(missing[index].files) // 2)
    if faults:
        raise UserError("\n".join(text for _, text in sorted(faults)))


def _draw_preview(output_dir, items, rows=5):
    """A sheet of some training images with every copy, masks laid over them."""
    chosen = [items[index] for index in sorted(set(np.linspace(0, len(items) - 1, rows).round().astype(int).tolist()))]
    tiles = []
    for item in chosen:
        half = len(item.files) // 2
        height, width = image_size(output_dir / item.files[0])
        size = (2 * pictures.TILE_HEIGHT, max(1, round(2 * pictures.TILE_HEIGHT * width / height)))
        row = []
        for image, mask in zip(item.files[:half], item.files[half:]):
            found = read_mask(output_dir / mask, WRITTEN_MASKS, size)
            row.append(pictures.overlay(read_image(output_dir / image, size), found))
        tiles.append(row)
    title = f"{len(chosen)} of {len(items)} training images with every copy: does each mask lie on what you want found?"
    columns = ["original", "horizontal flip", "vertical flip", "grid distortion"]
    pictures.save_image(output_dir / PREVIEW, pictures.sheet(tiles, [item.name for item in chosen], title, columns))


def main():
    settings = settings_of(__file__)
    done = make_augmented(
        settings.img_dir,
        settings.mask_dir,
        settings.output_dir,
        settings.val_images,
        settings.group,
        settings.mask_foreground,
        settings.jpeg_quality,
        settings.num_workers,
        settings.seed,
    )
    output = settings.output_dir
    print(f"Training: {_words(done.train, done.train_groups)}, {done.train * 4} with their copies.")
    print(f"Validation: {_words(done.val, done.val_groups)}, as they are.")
    if done.left_out:
        print(f"Left out: {done.left_out} images, which share their group with a validation image.")
    rate = f", {done.written / done.seconds:.1f} images a second" if done.written else ""
    print(f"Written: {done.written} of {done.total} images and as many masks, in {done.seconds:.1f} s{rate}.")
    print(f"Look at {done.preview} first: does every mask lie on its car?")
    flags = ("--train-img-dir", "--train-mask-dir", "--val-img-dir", "--val-mask-dir")
    folders = [part for flag, folder in zip(flags, FOLDERS) for part in (flag, str(Path(output) / folder))]
    print("Next: " + shlex.join(["python", "train.py"] + (folders if output != OUTPUT_DIR else [])))


def _words(images, groups):
    return f"{images} images of {groups} group{'s' * (groups != 1)}"


if __name__ == "__main__":
    run(main)
