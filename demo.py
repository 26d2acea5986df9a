"""Draws a small dataset of cars in a photo studio, in Carvana's layout and naming.

    python demo.py --cars 20 --image-size 320 480

writes demo/train/<12 hex digits>_01.jpg … _16.jpg and demo/train_masks/<the same>_mask.gif: every car
on a turntable, seen from 16 sides. A car is a small 3D model (cross-sections joined into quads), so its
outline changes with the view as a real one does; the mask is the whole outline, windows and wheels
included. A picture depends on (seed, car, view, size) alone, so a larger set begins with the smaller one.
"""

import hashlib
import shlex
from pathlib import Path

from tqdm import tqdm

from errors import UserError, run
from files import write_whole
from settings import settings_of
from studio import draw_car

FOLDER = "demo"  # where train/ and train_masks/ go
CARS = 20  # how many cars; each is a group that stays on one side of the split
VIEWS = 16  # pictures of each car, all the way round
IMAGE_SIZE = (320, 480)  # height and width; Carvana's own are 1280 1918
SEED = 0  # another seed draws other cars


def draw_dataset(folder, cars=CARS, views=VIEWS, size=IMAGE_SIZE, seed=SEED, progress=True):
    """Writes `cars` × `views` pictures of `size` = (height, width) and their masks; returns the two folders.

    UserError: numbers that cannot be drawn.
    """
    if cars < 1 or not 1 <= views <= 99:
        raise UserError(f"demo.py draws 1 car or more from 1 to 99 sides: got {cars} cars, {views} views.")
    if len(size) != 2 or min(size) < 32:
        raise UserError(f"demo.py draws pictures of 32×32 or more: got {'×'.join(map(str, size))}.")
    images, masks = Path(folder) / "train", Path(folder) / "train_masks"
    images.mkdir(parents=True, exist_ok=True)
    masks.mkdir(parents=True, exist_ok=True)
    jobs = tqdm(total=cars * views, desc="drawing", unit="image", disable=None if progress else True)
    for car in range(cars):
        for view in range(1, views + 1):
            name = f"{car_name(seed, car)}_{view:02d}"
            picture, mask = draw_car(seed, car, view, views, size)
            write_whole(images / f"{name}.jpg", lambda file, p=picture: p.save(file, "JPEG", quality=92), sync=False)
            write_whole(masks / f"{name}_mask.gif", lambda file, m=mask: m.save(file, "GIF"), sync=False)
            jobs.update()
    jobs.close()
    return images, masks


def car_name(seed, car):
    """Twelve hexadecimal digits, as Carvana's names have."""
    return hashlib.sha256(f"car {seed} {car}".encode()).hexdigest()[:12]


def main():
    settings = settings_of(__file__)
    images, masks = draw_dataset(settings.folder, settings.cars, settings.views, settings.image_size, settings.seed)
    print(f"{settings.cars} cars from {settings.views} sides: {images} and {masks}.")
    folders = ["--img-dir", str(images), "--mask-dir", str(masks), "--output-dir", settings.folder]
    print("Next: " + shlex.join(["python", "augment.py", *folders, "--val-images", "0.2"]))


if __name__ == "__main__":
    run(main)
