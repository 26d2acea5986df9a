"""Kaggle's submission: masks as run-length encoded rows of a CSV file.

The competition's page says that "the pixels are one-indexed and numbered from top to bottom, then left
to right: 1 is pixel (1,1), 2 is pixel (1,2), etc.", which contradicts itself. Its data decide: in
train_masks.csv the first car's runs start at 879386, 881253, 883140, so one row's run begins 1,867 and
1,887 pixels after the last one's: just under the width of 1,918, as under a roof that widens downwards,
and nowhere near the height of 1,280.
"""

import csv
import gzip
import io

import numpy as np

from files import write_whole

RLE_ORDER = "C"  # row by row, left to right (see above); "F" would be column by column
COLUMNS = ("img", "rle_mask")


def encode(mask, order=RLE_ORDER):
    """The runs of foreground in a mask (H, W) as "start length start length ...", the first pixel being 1.

    A mask without foreground gives the empty string.
    """
    pixels = np.asarray(mask).ravel(order).astype(bool)
    edges = np.flatnonzero(pixels[1:] != pixels[:-1]) + 2
    edges = np.concatenate(
        [[1] if pixels[0] else [], edges, [pixels.size + 1] if pixels[-1] else []], dtype=np.int64, casting="unsafe"
    )
    runs = edges.reshape(-1, 2)
    runs[:, 1] -= runs[:, 0]
    return " ".join(map(str, edges.tolist()))


def decode(text, size, order=RLE_ORDER):
    """The mask uint8 (H, W) of {0, 1} that `encode` was given; `size` is (H, W).

    ValueError where the runs are unsorted, overlap or leave the picture.
    """
    runs = np.array(text.split(), dtype=np.int64).reshape(-1, 2)
    starts, ends = runs[:, 0] - 1, runs[:, 0] - 1 + runs[:, 1]
    height, width = size
    if len(runs) and (
        starts[0] < 0 or ends[-1] > height * width or (runs[:, 1] < 1).any() or (starts[1:] < ends[:-1]).any()
    ):
        raise ValueError(f"these runs do not fit a mask of {height}x{width}")
    steps = np.zeros(height * width + 1, np.int8)
    np.add.at(steps, starts, 1)
    np.add.at(steps, ends, -1)
    return np.cumsum(steps[:-1], dtype=np.int8).astype(np.uint8).reshape(size, order=order)


def write_submission(path, rows):
    """Writes `rows` of (image file name, runs) as they come, to a file that appears when it is complete.

    A `path` that ends in .gz is compressed. Memory does not grow with the rows.
    """

    def write(file):
        packed = gzip.GzipFile(filename="", fileobj=file, mode="wb", mtime=0) if str(path).endswith(".gz") else file
        # a name that is no Unicode keeps its bytes
        text = io.TextIOWrapper(packed, encoding="utf-8", errors="surrogateescape", newline="")
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows(rows)
        text.flush()
        text.detach()
        if packed is not file:
            packed.close()

    write_whole(path, write)
