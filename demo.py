"""Draws a small dataset of cars in a photo studio, in Carvana's layout and naming.

    python demo.py --cars 20 --image-size 320 480

writes demo/train/<12 hex digits>_01.jpg … _16.jpg and demo/train_masks/<the same>_mask.gif: every car
on a turntable, seen from 16 sides. A car is a small 3D model (cross-sections joined into quads), so its
outline changes with the view as a real one does; the mask is the whole outline, windows and wheels
included. A picture depends on (seed, car, view, size) alone, so a larger set begins with the smaller one.
"""

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont
from tqdm import tqdm

from errors import UserError, run
from files import write_whole
from settings import settings_of

FOLDER = "demo"  # where train/ and train_masks/ go
CARS = 20  # how many cars; each is a group that stays on one side of the split
VIEWS = 16  # pictures of each car, all the way round
IMAGE_SIZE = (320, 480)  # height and width; Carvana's own are 1280 1918
SEED = 0  # another seed draws other cars

_FINER = 2  # everything is drawn this many times larger, then shrunk: smooth edges
_CAMERA_DISTANCE, _CAMERA_PITCH = 7.2, 0.1  # metres, radians downwards
_PAINT, _ROOF, _TRIM, _GLASS, _BELOW, _CHROME, _LAMP, _TAIL, _PLATE = range(9)
_GLOSS = np.array([0.30, 0.30, 0.08, 0.55, 0.0, 0.5, 0.5, 0.35, 0.1])

# Lines along the car, front to back: (fraction of the length, height in metres).
_SHAPES = {
    "sedan": dict(
        size=(4.7, 1.82),
        top=[(0, 0.66), (0.04, 0.74), (0.26, 0.93), (0.42, 1.40), (0.52, 1.46), (0.66, 1.41), (0.84, 1.04),
             (0.97, 0.99), (1, 0.9)],
        belt=[(0.26, 0.90), (0.84, 0.99)], glass=(0.28, 0.44, 0.66, 0.84), clearance=0.2),
    "coupe": dict(
        size=(4.4, 1.86),
        top=[(0, 0.58), (0.05, 0.70), (0.30, 0.86), (0.47, 1.26), (0.55, 1.30), (0.66, 1.25), (0.9, 0.94),
             (0.98, 0.90), (1, 0.82)],
        belt=[(0.3, 0.83), (0.9, 0.92)], glass=(0.32, 0.49, 0.64, 0.88), clearance=0.16),
    "hatchback": dict(
        size=(4.0, 1.74),
        top=[(0, 0.68), (0.05, 0.80), (0.23, 0.97), (0.40, 1.46), (0.52, 1.52), (0.82, 1.45), (0.97, 1.02),
             (1, 0.86)],
        belt=[(0.23, 0.94), (0.97, 1.02)], glass=(0.25, 0.42, 0.83, 0.96), clearance=0.2),
    "SUV": dict(
        size=(4.65, 1.92),
        top=[(0, 0.84), (0.04, 0.98), (0.24, 1.12), (0.38, 1.66), (0.48, 1.74), (0.86, 1.68), (0.98, 1.16),
             (1, 0.95)],
        belt=[(0.24, 1.08), (0.98, 1.16)], glass=(0.26, 0.39, 0.87, 0.97), clearance=0.27),
    "van": dict(
        size=(4.95, 1.96),
        top=[(0, 0.80), (0.04, 0.96), (0.13, 1.14), (0.28, 1.86), (0.36, 1.97), (0.95, 1.95), (0.99, 1.3),
             (1, 1.0)],
        belt=[(0.13, 1.08), (1, 1.14)], glass=(0.15, 0.29, 0.95, 0.985), clearance=0.22),
    "pickup": dict(
        size=(5.4, 1.94),
        top=[(0, 0.90), (0.03, 1.02), (0.25, 1.15), (0.36, 1.74), (0.44, 1.80), (0.58, 1.76), (0.63, 1.17),
             (0.98, 1.15), (1, 1.05)],
        belt=[(0.25, 1.10), (0.63, 1.13), (1, 1.13)], glass=(0.27, 0.37, 0.585, 0.62), clearance=0.3),
}
_COLOURS = [  # half of them close to the studio's own greys
    (236, 237, 238), (226, 227, 224), (190, 193, 196), (150, 153, 157), (104, 107, 112), (62, 64, 68),
    (26, 27, 29), (18, 18, 20), (150, 22, 28), (28, 58, 128), (18, 36, 70), (36, 92, 68), (196, 160, 40),
    (120, 84, 58), (196, 84, 26), (188, 178, 158),
]  # fmt: skip
_WORDS = ["STUDIO", "AUTO HALL", "DRIVE", "360", "CARS DAILY", "BAY 7", "open road", "SINCE 1984", "motor"]


@dataclass(frozen=True)
class _Car:
    quads: np.ndarray  # (Q, 4, 3) metres: x backwards, y to the side, z up, the middle at (0, 0, 0)
    materials: np.ndarray  # (Q,)
    base: np.ndarray  # (materials, 3) colours
    wheels: list  # (x, side, half-width there, radius)
    spokes: int
    rim: tuple
    footprint: np.ndarray  # (P, 2)


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


def draw_car(seed, car, view, views=VIEWS, size=IMAGE_SIZE):
    """One picture: an RGB image and its mask, a black-and-white palette image as Carvana's GIFs hold."""
    rng = np.random.default_rng([seed, car])
    model = _model(rng)
    scene = _Scene(rng, size)
    moment = np.random.default_rng([seed, car, view])
    turn = 2 * np.pi * (view - 1) / views + rng.uniform(-0.2, 0.2) + moment.uniform(-0.04, 0.04)
    scene.place(turn, moment)
    canvas = scene.background()
    scene.shadow(canvas, model)
    scene.reflection(canvas, model)
    mask = Image.new("L", canvas.size)
    scene.draw(model, ImageDraw.Draw(canvas), ImageDraw.Draw(mask))
    height, width = size
    pixels = np.asarray(canvas.reduce(_FINER)).astype(np.float32)
    grain = moment.standard_normal((height, width, 1), dtype=np.float32) * scene.grain
    pixels = pixels * (scene.exposure * scene.tint) + grain
    picture = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    inside = Image.fromarray((np.asarray(mask.reduce(_FINER)) >= 128).astype(np.uint8)).convert("P")
    inside.putpalette([0, 0, 0, 255, 255, 255])
    return picture, inside


def _model(rng):
    """A car of random make: quads with materials, and its wheels."""
    kind = list(_SHAPES)[rng.integers(len(_SHAPES))]
    shape = _SHAPES[kind]
    length, width = np.array(shape["size"]) * rng.uniform(0.95, 1.05, 2)
    tall = rng.uniform(0.95, 1.05)
    along = np.linspace(0, 1, 56)
    top_x, top_z = np.array(shape["top"]).T
    top_x[1:-1] += rng.uniform(-0.012, 0.012, len(top_x) - 2)
    top = _smooth(np.interp(along, top_x, top_z)) * tall
    belt_x, belt_z = np.array(shape["belt"]).T
    belt = np.minimum(np.interp(along, belt_x, belt_z) * tall, top - 0.03)
    front, back = 1 - np.clip(along / 0.14, 0, 1), 1 - np.clip((1 - along) / 0.12, 0, 1)
    half = width / 2 * (1 - rng.uniform(0.14, 0.26) * front**2.2 - rng.uniform(0.08, 0.18) * back**2.2)
    floor = shape["clearance"] + 0.1 * front**2 + 0.14 * back**2
    house = top - belt  # the height of the greenhouse
    roof = half * (0.95 - rng.uniform(0.18, 0.26) * np.clip(house / 0.5, 0, 1))
    side = belt - floor
    # the right half of each cross-section, from the bottom's middle to the top's middle
    across = np.stack(
        [0 * half, 0.86 * half, 0.96 * half, half, half, 0.985 * half, 0.95 * half, 0.94 * half,
         roof, 0.93 * roof, 0.6 * roof, 0 * roof], 1)  # fmt: skip
    up = np.stack(
        [floor, floor, floor + 0.08, floor + 0.3 * side, floor + 0.62 * side, belt - 0.1 * side, belt,
         belt + 0.08 * house, belt + 0.86 * house, belt + 0.96 * house, top, top + 0.015], 1)  # fmt: skip
    x = np.broadcast_to(((along - 0.5) * length)[:, None], up.shape)
    x = x + 0.14 * (front**2)[:, None] * np.linspace(0, 1, 12) - 0.06 * (back**2)[:, None] * np.linspace(0, 1, 12)
    right, left = np.stack([x, across, up], -1), np.stack([x, -across, up], -1)[:, ::-1]
    rings = np.concatenate([right, left], 1)  # (S, 24, 3)
    skin = np.stack([rings[:-1, 1:], rings[1:, 1:], rings[1:, :-1], rings[:-1, :-1]], 2)
    materials = _skin_materials(shape["glass"], (along[:-1] + along[1:]) / 2, house, kind, rng)
    quads, kinds = [skin.reshape(-1, 4, 3)], [materials.reshape(-1)]
    for end, plan in ((0, {2: _TRIM, 3: _TRIM}), (-1, {1: _TRIM, 2: _TRIM})):
        ring = np.stack([right[end, :-1], right[end, 1:], left[end, ::-1][1:], left[end, ::-1][:-1]], 1)
        quads.append(ring[:, ::-1] if end == 0 else ring)
        kinds.append(np.array([plan.get(k, _BELOW if k == 0 else _PAINT) for k in range(len(ring))]))
    extras = list(_fittings(rng, right, length, shape["glass"][0], belt))
    quads.append(np.stack([quad for quad, _ in extras]))
    kinds.append(np.array([material for _, material in extras]))
    radius = (0.31 + 0.03 * (kind in ("SUV", "pickup", "van"))) * rng.uniform(0.97, 1.1)
    wheels = []
    for where in (rng.uniform(0.175, 0.2), rng.uniform(0.78, 0.81)):
        at = np.interp(where, along, half)
        wheels += [((where - 0.5) * length, 1, at, radius), ((where - 0.5) * length, -1, at, radius)]
    outline = np.stack([x[:, 3], half], 1)
    footprint = np.concatenate([outline, outline[::-1] * [1, -1]])
    rim = tuple(np.array([1, 1, 1.03]) * rng.choice([45, 120, 190]))
    return _Car(np.concatenate(quads), np.concatenate(kinds), _base_colours(rng), wheels,
                int(rng.integers(5, 11)), rim, footprint)  # fmt: skip


def _smooth(line):
    """Rounds the corners of a line that bends at given points."""
    padded = np.concatenate([line[:1].repeat(2), line, line[-1:].repeat(2)])
    return np.convolve(padded, [0.1, 0.2, 0.4, 0.2, 0.1], "valid")


def _skin_materials(glass, along, house, kind, rng):
    """(S - 1, 23) materials of the body: which quads are windows, which are lamps."""
    table = np.full((len(along), 23), _PAINT)
    table[:, [0, 22]] = _BELOW
    table[:, [1, 21]] = _TRIM
    windscreen = (along > glass[0]) & (along < glass[1])
    rear = (along > glass[2]) & (along < glass[3])
    cabin = (along >= glass[0]) & (along <= glass[3])
    table[np.ix_(cabin & ~windscreen & ~rear, [8, 9, 10, 11, 12, 13, 14])] = _ROOF
    table[np.ix_(windscreen | rear, [9, 10, 11, 12, 13])] = _GLASS
    last = rng.uniform(0.36, 0.5) if kind == "van" and rng.random() < 0.5 else glass[3] - 0.03
    sides = (house[:-1] > 0.24) & (along > glass[0] + 0.06) & (along < last)
    for pillar in (rng.uniform(0.5, 0.54), glass[2] - rng.uniform(0.0, 0.05)):
        sides &= np.abs(along - pillar) > 0.012
    table[np.ix_(sides, [7, 15])] = _GLASS
    table[np.ix_(along < rng.uniform(0.04, 0.07), [4, 18])] = _LAMP
    table[np.ix_(along > rng.uniform(0.94, 0.965), [4, 5, 17, 18])] = _TAIL
    return table


def _fittings(rng, right, length, cowl, belt):
    """(quad, material) of what is fixed to the body: grille, plates, door lines, handles, mirrors."""
    front, back = right[0], right[-1]
    lamp = rng.uniform(0.5, 0.7)

    def panel(ring, sign, left, low, up, material):
        x = min(ring[:, 0]) - 0.01 if sign < 0 else max(ring[:, 0]) + 0.01
        corners = np.array([[x, left[0], low], [x, left[1], low], [x, left[1], up], [x, left[0], up]])
        return (corners[::-1] if sign < 0 else corners), material

    w, low, high = front[3, 1], front[3, 2], front[6, 2]
    yield panel(front, -1, (-0.6 * w, 0.6 * w), low, low + 0.7 * (high - low), _TRIM if rng.random() < 0.6 else _CHROME)
    yield panel(front, -1, (lamp * w, w), low + 0.5 * (high - low), high - 0.04, _LAMP)
    yield panel(front, -1, (-w, -lamp * w), low + 0.5 * (high - low), high - 0.04, _LAMP)
    yield panel(front, -1, (-0.26, 0.26), low - 0.1, low + 0.02, _PLATE)
    w, low, high = back[3, 1], back[3, 2], back[6, 2]
    yield panel(back, 1, (lamp * w, w), low + 0.4 * (high - low), high - 0.05, _TAIL)
    yield panel(back, 1, (-w, -lamp * w), low + 0.4 * (high - low), high - 0.05, _TAIL)
    yield panel(back, 1, (-0.26, 0.26), low + 0.1, low + 0.24, _PLATE)
    widest = right[:, 3, 1].max() + 0.004
    doors = [cowl + 0.06, rng.uniform(0.5, 0.54)] + ([0.7] if rng.random() < 0.7 else [])
    reach = np.interp(doors, np.linspace(0, 1, len(belt)), belt)
    for side in (1, -1):
        for door, top in zip(doors, reach):
            x, y = (door - 0.5) * length, side * widest
            line = np.array([[x, y, 0.38], [x + 0.02, y, 0.38], [x + 0.02, y * 0.985, top], [x, y * 0.985, top]])
            yield (line[::-1] if side > 0 else line), _TRIM
            grip = np.array([[0.16, y, -0.16], [0.34, y, -0.16], [0.34, y, -0.12], [0.16, y, -0.12]])
            grip = grip + [x, 0, top]
            if door != doors[-1]:
                yield (grip[::-1] if side > 0 else grip), _CHROME
        x, z, y0 = (cowl + 0.07 - 0.5) * length, np.interp(cowl + 0.07, np.linspace(0, 1, len(belt)), belt), widest - 0.06
        for a, b in ((0.0, 0.12), (0.12, 0.0)):  # a mirror: thin, seen from the front, the back and the side
            yield np.array([[x + a, side * y0, z], [x + b, side * (y0 + 0.22), z],
                            [x + b, side * (y0 + 0.22), z + 0.15], [x + a, side * y0, z + 0.13]]), _PAINT  # fmt: skip


def _base_colours(rng):
    paint = np.clip(np.array(_COLOURS[rng.integers(len(_COLOURS))]) + rng.uniform(-12, 12, 3), 8, 245)
    roof = np.array([28, 28, 30]) if rng.random() < 0.15 else paint
    trim = paint if rng.random() < 0.3 else np.array([38, 39, 41])
    glass = np.array([30, 36, 40]) * rng.uniform(0.6, 1.8)
    return np.array([paint, roof, trim, glass, (14, 14, 15), (188, 190, 194), (214, 218, 222), (150, 20, 22),
                     (226, 222, 200)], dtype=float)  # fmt: skip


class _Scene:
    """The studio around a car: its walls and lights, and the camera."""

    def __init__(self, rng, size):
        self.height, self.width = size[0] * _FINER, size[1] * _FINER
        self.focal = min(self.width, 1.5 * self.height) * rng.uniform(0.98, 1.12)
        self.wall = rng.uniform(120, 236) * np.array([1, 1, 1]) * rng.uniform(0.96, 1.04, 3)
        self.ground = self.wall * rng.uniform(0.72, 1.08) * rng.uniform(0.97, 1.03, 3)
        self.sun = np.array([rng.uniform(-0.8, 0.8), -0.5, 0.8])
        self.lean = rng.uniform(-0.3, 0.3)  # how much brighter one end of the wall is
        self.fall = rng.uniform(-0.25, 0.35)
        self.mirror = rng.uniform(0.03, 0.3)
        self.dark = rng.uniform(0.35, 0.7)
        self.props = rng.integers(2**32)
        self.tint = rng.uniform(0.97, 1.03, 3).astype(np.float32)
        self.grain = rng.uniform(1.0, 4.0)

    def place(self, turn, moment):
        self.turn = turn
        self.exposure = moment.uniform(0.93, 1.07)
        self.centre = (self.width * (0.5 + moment.uniform(-0.015, 0.015)),
                       self.height * (0.53 + moment.uniform(-0.015, 0.015)))  # fmt: skip

    def turned(self, points):
        """Points on the car, (..., 3), where the turntable has taken them."""
        cos, sin = np.cos(self.turn), np.sin(self.turn)
        x, y, z = np.moveaxis(points, -1, 0)
        return np.stack([-sin * x + cos * y, -cos * x - sin * y, z], -1)

    def project(self, points):
        """Canvas positions (..., 2) and distances (...) of points in the studio, (..., 3)."""
        cos, sin = np.cos(_CAMERA_PITCH), np.sin(_CAMERA_PITCH)
        away, up = points[..., 1] + _CAMERA_DISTANCE, points[..., 2] - 0.68 - _CAMERA_DISTANCE * np.tan(_CAMERA_PITCH)
        far = away * cos - up * sin
        screen = np.stack([points[..., 0], -(up * cos + away * sin)], -1) * (self.focal / far)[..., None]
        return screen + self.centre, far

    def background(self):
        height, width = self.height // 4 + 1, self.width // 4 + 1  # smooth, so a coarse grid will do
        y, x = np.mgrid[0:1 : height * 1j, 0:1 : width * 1j].astype(np.float32)
        horizon = 0.46 + 0.1 * (x - 0.5) ** 2
        below = 1 / (1 + np.exp(-(y - horizon) / 0.025))[..., None]
        light = (1 + self.lean * (x - 0.5) + self.fall * (y - 0.4) - 0.5 * ((x - 0.5) ** 2 + (y - 0.5) ** 2))[..., None]
        pixels = (self.wall * (1 - below) + self.ground * below * (0.9 + 0.2 * y[..., None])) * light
        canvas = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).resize(
            (self.width, self.height), Image.Resampling.BILINEAR)  # fmt: skip
        self._props(ImageDraw.Draw(canvas), np.random.default_rng(self.props))
        return canvas

    def _props(self, draw, rng):
        """Seams, lettering, lamps and the turntable: edges that are not a car's."""
        width, height = self.width, self.height
        thin = max(1, round(width / 400))
        shade = lambda colour, factor: tuple(int(min(255, v * factor)) for v in colour)  # noqa: E731
        for at in np.arange(rng.uniform(0, 0.3), 1, rng.uniform(0.12, 0.4)):
            line = [(at * width, 0), (width * (0.5 + (at - 0.5) * 0.96), 0.44 * height)]
            draw.line(line, fill=shade(self.wall, rng.uniform(0.8, 0.95)), width=thin)
        if rng.random() < 0.5:
            y, tall = rng.uniform(0.28, 0.4) * height, rng.uniform(0.01, 0.04) * height
            draw.rectangle([0, y, width, y + tall], fill=shade(self.wall, rng.choice([0.7, 0.85, 1.12])))
        for _ in range(rng.integers(0, 3)):
            word, tall = _WORDS[rng.integers(len(_WORDS))], rng.uniform(0.06, 0.16)
            place = rng.uniform(0, 0.75) * width, rng.uniform(0.06, 0.34) * height
            ink = shade(self.wall, 0.45) if rng.random() < 0.6 else tuple(rng.integers(20, 200, 3).tolist())
            draw.text(place, word, fill=ink, font=_font(max(6, round(tall * height))))
        for _ in range(rng.integers(0, 4)):
            x, wide, tall = rng.uniform(0, 1), rng.uniform(0.04, 0.12), rng.uniform(0.015, 0.05)
            draw.rounded_rectangle([(x - wide) * width, -9, (x + wide) * width, tall * height],
                                   radius=4 * thin, fill=(252, 252, 250))  # fmt: skip
        if rng.random() < 0.5:  # a lamp on its stand
            x = rng.choice([rng.uniform(0.03, 0.13), rng.uniform(0.87, 0.97)]) * width
            tone = shade((60, 60, 62), rng.uniform(0.4, 2))
            draw.line([(x, 0.14 * height), (x, 0.66 * height)], fill=tone, width=3 * thin)
            draw.polygon([(x - 0.05 * width, 0.06 * height), (x + 0.05 * width, 0.09 * height),
                          (x + 0.04 * width, 0.22 * height), (x - 0.04 * width, 0.2 * height)], fill=tone)  # fmt: skip
        angles = np.linspace(0, 2 * np.pi, 73)
        circle = np.stack([np.cos(angles), np.sin(angles), 0 * angles], -1)
        for radius, factor in ((3.1, rng.uniform(0.86, 0.97)), (3.02, rng.uniform(0.97, 1.06))):
            points, _ = self.project(circle * radius)
            draw.polygon([tuple(p) for p in points], fill=shade(self.ground, factor))

    def shadow(self, canvas, car):
        """Soft below the whole car, hard below the tyres; blurred on a coarse grid."""
        soft = Image.new("L", (self.width // 4, self.height // 4))
        draw = ImageDraw.Draw(soft)
        for grow, strength in ((1.12, 0.55), (0.98, 1.0)):
            ground = np.concatenate([car.footprint * grow, np.zeros((len(car.footprint), 1))], 1)
            points, _ = self.project(self.turned(ground))
            draw.polygon([tuple(p / 4) for p in points], fill=int(255 * self.dark * strength))
        soft = soft.filter(ImageFilter.GaussianBlur(self.focal * 0.004)).resize(canvas.size, Image.Resampling.BILINEAR)
        canvas.paste((12, 12, 14), mask=soft)

    def reflection(self, canvas, car):
        """The car upside down in a polished floor."""
        other, mask = canvas.copy(), Image.new("L", canvas.size)
        self.draw(car, ImageDraw.Draw(other), ImageDraw.Draw(mask), floor=True)
        canvas.paste(other, mask=mask.point(lambda v: int(v * self.mirror)))

    def draw(self, car, draw, mask, floor=False):
        """Paints the car from back to front; `mask` gets its outline. `floor`: its mirror image instead."""
        flip = np.array([1, 1, -1 if floor else 1])
        camera = np.array([0, -_CAMERA_DISTANCE, 0.68 + _CAMERA_DISTANCE * np.tan(_CAMERA_PITCH)])
        world = self.turned(car.quads) * flip
        normal = np.cross(world[:, 2] - world[:, 0], world[:, 3] - world[:, 1]) * flip[2]
        normal /= np.linalg.norm(normal, axis=1, keepdims=True) + 1e-9
        sight = world.mean(1) - camera
        colours = self._shade(car, normal * flip, sight / np.linalg.norm(sight, axis=1, keepdims=True))
        points, far = self.project(world)
        facing = (normal * sight).sum(1) < 0
        order = np.argsort(-far.mean(1))

        def polygon(corners, colour):
            corners = [tuple(p) for p in corners.tolist()]
            draw.polygon(corners, fill=colour)
            mask.polygon(corners, fill=255)

        near = [self.turned(np.array([0.0, side, 0.0]))[1] < -0.14 for _, side, _, _ in car.wheels]
        for wheel, seen in zip(car.wheels, near):
            if not seen:
                self._wheel(car, wheel, polygon, flip, seen)
        for index in order[facing[order]]:
            polygon(points[index], tuple(colours[index].tolist()))
        for wheel, seen in zip(car.wheels, near):
            if seen:
                self._wheel(car, wheel, polygon, flip, seen)

    def _shade(self, car, normal, sight):
        """(Q, 3) uint8: paint under soft light, and the studio mirrored in what shines."""
        sun = self.sun / np.linalg.norm(self.sun)
        light = 0.50 + 0.24 * normal[:, 2] + 0.42 * np.clip(normal @ sun, 0, None)
        up = sight[:, 2] - 2 * (sight * normal).sum(1) * normal[:, 2]  # where the mirrored ray goes
        studio = np.where(up > 0.0, 90 + 150 * np.clip(up * 1.3, 0, 1), 60 + 60 * np.clip(-up, 0, 1))
        gloss = _GLOSS[car.materials][:, None]
        colour = car.base[car.materials] * light[:, None] * (1 - 0.4 * gloss) + gloss * 0.7 * studio[:, None]
        return np.clip(colour, 0, 255).astype(np.uint8)

    def _wheel(self, car, wheel, polygon, flip, seen):
        x, side, half, radius = wheel
        angles = np.linspace(0, 2 * np.pi, 33)[:-1]
        circle = np.stack([np.cos(angles), 0 * angles, np.sin(angles)], -1)

        def disc(scale, y, colour, shape=circle):
            spot = shape * radius * scale + [x, side * y, radius]
            polygon(self.project(self.turned(spot) * flip)[0], colour)

        if seen:  # the dark of the wheel arch, above the body's lower edge
            disc(1.2, half + 0.002, (12, 12, 13), np.maximum(circle, [-9, -9, -0.25]))
        rims = [circle * radius + [x, side * y, radius] for y in (half - 0.22, half + 0.004)]
        inner, outer = (self.project(self.turned(rim) * flip)[0] for rim in rims)
        for i in range(len(circle)):  # the tread: one strip after another joins the two edges
            polygon(np.stack([inner[i - 1], inner[i], outer[i], outer[i - 1]]), (20, 20, 21))
        polygon(inner, (20, 20, 21))
        polygon(outer, (30, 30, 31) if seen else (20, 20, 21))
        if not seen:
            return
        disc(0.7, half + 0.004, tuple(int(v * 0.45) for v in car.rim))
        spin = np.arange(car.spokes) * 2 * np.pi / car.spokes + x
        for angle in spin:
            corners = [(0.12, 0.8), (1.0, 0.16), (1.0, -0.16), (0.12, -0.8)]
            spoke = np.array([[r * np.cos(angle + a), 0, r * np.sin(angle + a)] for r, a in corners])
            disc(0.68, half + 0.005, tuple(int(v) for v in car.rim), spoke)
        disc(0.14, half + 0.006, tuple(int(v * 0.7) for v in car.rim))


@lru_cache(maxsize=32)
def _font(size):
    return ImageFont.load_default(size)


def main():
    settings = settings_of(__file__)
    images, masks = draw_dataset(settings.folder, settings.cars, settings.views, settings.image_size, settings.seed)
    print(f"{settings.cars} cars from {settings.views} sides: {images} and {masks}.")
    print(f"Next: python augment.py --img-dir {images} --mask-dir {masks} --output-dir {settings.folder} --val-images 0.2")


if __name__ == "__main__":
    run(main)
