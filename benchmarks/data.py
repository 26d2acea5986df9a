"""Loading, on files of 1918x1280 that this draws in a temporary folder: how fast, and in how much memory.

    python benchmarks/data.py

1. Images a second into batches of 16 at 320x480: the article's way (one worker, Pillow, full decode,
   A.Resize, A.Normalize, ToTensorV2, all of it in every epoch) beside this project's first epoch, making
   the arrays included, and its later ones, with utils.get_loaders as train.py calls it.
   Targets on two cores: first epoch 2x from PNG, 5x from JPEG; later epochs 100x.
2. The private memory of a loader's worker over arrays ten times larger. Target: within 10 %.
3. How the cost grows with the number of pairs: making, start-up with arrays in place, an epoch.
"""

import argparse
import os
import shutil
import sys
import tempfile
import time
from contextlib import redirect_stdout
from pathlib import Path

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import albumentations as A
import cv2
import numpy as np
import torch
from albumentations.pytorch import ToTensorV2
from PIL import Image
from torch.utils.data import DataLoader, Dataset, Subset

from dataset import ArrayDataset
from parts.arrays import Files
from parts.audit import Report
from parts.files import cores, parallel_map
from parts.mask_rules import find_mask_rule
from parts.names import pair_files
from utils import get_loaders

BATCH = 16
SIZE = (320, 480)
FULL = (1280, 1918)
NUM_WORKERS = 2  # as in train.py


# ---- what is read


class Draw:
    """Draws photograph number `index` into `folder`: smooth shading, shapes with edges, fine grain."""

    def __init__(self, folder, size, kinds):
        self.folder, self.size, self.kinds = folder, size, kinds

    def __call__(self, index):
        rng = np.random.default_rng(index)
        height, width = self.size
        image = np.full((height, width, 3), 110, np.float32)
        for cells, strength in ((3, 60), (12, 20), (90, 8)):
            noise = rng.standard_normal((cells, cells * 3 // 2, 3)).astype(np.float32) * strength
            image += cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)
        for _ in range(60):
            box = self.ellipse(rng, 0.02, 0.12)
            cv2.ellipse(image, box, rng.uniform(20, 235, 3).tolist(), int(rng.choice([-1, 2, 5])), cv2.LINE_AA)
        mask = np.zeros((height, width), np.uint8)
        box = self.ellipse(rng, 0.4, 0.6)
        cv2.ellipse(mask, box, 255, -1)
        cv2.ellipse(image, box, rng.uniform(20, 235, 3).tolist(), 12, cv2.LINE_AA)
        grain = rng.standard_normal((height, width, 1), dtype=np.float32) * 5  # as grey as a camera's
        image = Image.fromarray(
            np.clip(image + cv2.GaussianBlur(grain, (0, 0), 0.8)[..., None], 0, 255).astype(np.uint8)
        )
        for kind in self.kinds:
            folder = self.folder / kind
            image.save(folder / f"images/{index:05d}.{kind}", quality=95)
            Image.fromarray(mask).save(folder / f"masks/{index:05d}.png")

    def ellipse(self, rng, least, most):
        height, width = self.size
        centre = rng.uniform(0.2, 0.8, 2) * (width, height)
        return tuple(centre), tuple(rng.uniform(least, most, 2) * (width, height)), rng.uniform(0, 180)


def draw(folder, size, kinds, distinct, count):
    """`folder`/kind/images and masks with `count` pairs; after `distinct` drawn ones, links to them."""
    for kind in kinds:
        (folder / kind / "images").mkdir(parents=True)
        (folder / kind / "masks").mkdir()
    for _ in parallel_map(Draw(folder, size, kinds), range(distinct)):
        pass
    for kind in kinds:
        for part, suffix in (("images", kind), ("masks", "png")):
            for index in range(distinct, count):
                source = folder / kind / part / f"{index % distinct:05d}.{suffix}"
                os.link(source, source.with_name(f"{index:05d}.{suffix}"))


def megabytes(folder):
    return np.mean([file.stat().st_size for file in folder.iterdir()]) / 1e6


# ---- both ways


class ArticleDataset(Dataset):
    """The article's dataset: both files decoded in full for each item."""

    def __init__(self, folder):
        self.pairs = pair_files(folder / "images", folder / "masks")
        self.transform = A.Compose(
            [
                A.Resize(height=SIZE[0], width=SIZE[1]),
                A.Normalize(mean=[0.0] * 3, std=[1.0] * 3, max_pixel_value=255.0),
                ToTensorV2(),
            ]
        )

    def __len__(self):
        return len(self.pairs)

    def __getitem__(self, index):
        pair = self.pairs[index]
        with Image.open(pair.image) as picture:
            image = np.array(picture.convert("RGB"))
        with Image.open(pair.mask) as picture:
            mask = np.array(picture.convert("L"), dtype=np.float32)
        mask[mask == 255.0] = 1.0
        made = self.transform(image=image, mask=mask)
        return made["image"], made["mask"]


def rate(loader):
    """Images a second through one epoch, its workers' start included."""
    start, count = time.perf_counter(), 0
    for images, _ in loader:
        count += len(images)
    return count / (time.perf_counter() - start)


def article(folder, count):
    some = Subset(ArticleDataset(folder), range(count))
    return rate(DataLoader(some, batch_size=BATCH, shuffle=True, num_workers=1))


def ours(folder, mask_rule, num_workers):
    """The training loader; its pairs also serve for validation, whose arrays are then in place."""
    folders = (folder / "images", folder / "masks") * 2
    pairs = pair_files(*folders[:2])
    found = Report(pairs, pairs, mask_rule)
    with redirect_stdout(sys.stderr):
        return get_loaders(*folders, BATCH, num_workers, image_size=SIZE, report=found)[0]


def first_epoch(folder, mask_rule):
    start, count = time.perf_counter(), 0
    for images, _ in ours(folder, mask_rule, NUM_WORKERS):
        count += len(images)
    return count / (time.perf_counter() - start)


def compare(folder, options):
    print(f"\n1. Images a second into batches of {BATCH} at {SIZE[0]}x{SIZE[1]}, {cores()} cores")
    draw(folder, FULL, ("png", "jpg"), options.distinct, options.pairs)
    for kind in ("png", "jpg"):
        print(
            f"   {options.pairs} {kind} of {FULL[1]}x{FULL[0]} ({options.distinct} distinct), "
            f"{megabytes(folder / kind / 'images'):.2f} MB each; masks png, {megabytes(folder / kind / 'masks'):.3f} MB"
        )
    rows = {}
    for kind in ("png", "jpg"):
        mask_rule = find_mask_rule(sorted((folder / kind / "masks").iterdir()))  # train.py's audit has it already
        rows["the article's way", kind] = article(folder / kind, options.article_pairs)
        rows["first epoch, arrays made", kind] = first_epoch(folder / kind, mask_rule)
        for workers in (NUM_WORKERS, 1, 0):
            loader = ours(folder / kind, mask_rule, workers)
            rows[f"later epochs, NUM_WORKERS = {workers}", kind] = max(rate(loader) for _ in range(3))
    print(f"\n   {'':32}{'from PNG':>20}{'from JPEG':>20}{'JPEG, the article PNG':>24}")
    for name in dict.fromkeys(name for name, _ in rows):
        png, jpg = rows[name, "png"], rows[name, "jpg"]
        base, jpg_base = rows["the article's way", "png"], rows["the article's way", "jpg"]
        print(f"   {name:32}{png:10.1f} ({png / base:6.1f}x){jpg:10.1f} ({jpg / jpg_base:6.1f}x){jpg / base:22.1f}x")


def with_arrays(pairs, mask_rule, size, folder):
    """The ArrayDataset of these pairs, its arrays kept in `folder`."""
    data = ArrayDataset(Files(pairs, mask_rule, image_size=size))
    data.keep_arrays(folder, progress=False)
    return data


def whole(batch):
    return batch.tensors


def as_it_is(batch):
    return batch


# ---- memory


class Watched(Dataset):
    """A dataset's batches, each with the private bytes of the process that fetched it."""

    def __init__(self, dataset):
        self.dataset = dataset

    def __len__(self):
        return len(self.dataset)

    def __getitems__(self, indices):
        return self.dataset.__getitems__(indices).tensors, private_bytes()


def private_bytes():
    """Private_Clean and Private_Dirty of this process's mappings, the arrays' own left out.

    The system counts a file's page as private where only one process maps it, though it can take such a
    page back at any time; that is why smaps_rollup, which cannot tell them apart, would not do.
    """
    total, counted = 0, True
    for line in Path("/proc/self/smaps").read_text().splitlines():
        name, *rest = line.split()
        if not name.endswith(":"):
            counted = not line.endswith(".npy")
        elif counted and name in ("Private_Clean:", "Private_Dirty:"):
            total += int(rest[0]) * 1024
    return total


def peak(dataset, method):
    """The largest that a worker's private memory was in three epochs; batches on their way count too."""
    loader = DataLoader(
        Watched(dataset),
        batch_size=BATCH,
        shuffle=True,
        num_workers=1,
        collate_fn=as_it_is,
        multiprocessing_context=method,
    )
    return max(private for _ in range(3) for _, private in loader)


def memory(folder, options):
    counts = options.memory_pairs, 10 * options.memory_pairs
    print(f"\n2. Private memory of a loader's worker, in MB, arrays at {SIZE[0]}x{SIZE[1]}")
    draw(folder, (427, 640), ("jpg",), 32, counts[1])
    pairs = pair_files(folder / "jpg/images", folder / "jpg/masks")
    mask_rule = find_mask_rule([pair.mask for pair in pairs[:32]])
    sets = [with_arrays(pairs[:count], mask_rule, SIZE, folder / str(count)) for count in counts]
    for method in ("fork", "spawn"):
        small, large = (peak(dataset, method) / 1e6 for dataset in sets)
        sizes = [sum(array.nbytes for array in dataset.arrays.open()) / 1e6 for dataset in sets]
        print(
            f"   {method:6} {sizes[0]:6.0f} MB of arrays: {small:7.1f}; {sizes[1]:6.0f} MB: {large:7.1f} "
            f"({100 * (large / small - 1):+.1f} %)"
        )


# ---- growth


def growth(folder, options):
    size = (160, 240)
    counts = options.counts
    print(f"\n3. How the cost grows: JPEGs of 640x427 to {size[0]}x{size[1]}")
    draw(folder, (427, 640), ("jpg",), 32, max(counts))
    pairs = pair_files(folder / "jpg/images", folder / "jpg/masks")
    mask_rule = find_mask_rule([pair.mask for pair in pairs[:32]])
    for count in counts:
        times = [time.perf_counter()]
        with_arrays(pairs[:count], mask_rule, size, folder / "arrays")
        times.append(time.perf_counter())
        dataset = with_arrays(pairs[:count], mask_rule, size, folder / "arrays")
        times.append(time.perf_counter())
        loader = DataLoader(dataset, BATCH, shuffle=True, num_workers=NUM_WORKERS, collate_fn=whole)
        rate(loader)
        times.append(time.perf_counter())
        making, starting, epoch = np.diff(times)
        print(
            f"   {count:6,} pairs: made in {making:6.2f} s ({1e3 * making / count:.2f} ms a pair), start-up with "
            f"arrays in place {1e3 * starting:6.1f} ms ({1e6 * starting / count:.0f} us a pair), "
            f"epoch {1e3 * epoch / count:.3f} ms a pair"
        )
        shutil.rmtree(folder / "arrays")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=400, help="of full size, of each kind")
    parser.add_argument("--distinct", type=int, default=32, help="how many of them differ; the others are links")
    parser.add_argument("--article-pairs", type=int, default=160, help="how many of them the article's way reads")
    parser.add_argument("--memory-pairs", type=int, default=200, help="in the smaller set of arrays")
    parser.add_argument("--counts", type=int, nargs="+", default=[100, 1000, 5000], help="pairs, for the growth")
    parser.add_argument("--folder", help="where the temporary folder is made")
    options = parser.parse_args()
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        for part in (compare, memory, growth):
            place = Path(folder) / part.__name__
            place.mkdir()
            part(place, options)
            shutil.rmtree(place)
    print(f"\n{time.perf_counter() - started:.0f} s in all; torch {torch.__version__}, {cores()} cores")


if __name__ == "__main__":
    main()
