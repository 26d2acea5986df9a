"""The demo's dataset: cars in a photo studio, drawn in Carvana's layout and naming.

A car stands on a turntable and is seen from all sides. It is a small 3D model, cross-sections joined into quads, so
its outline changes with the view as a real one's does; the mask is the whole outline, windows and wheels included.
A picture depends on (seed, car, view, size) and the turntable's step alone, so a larger set begins with a smaller one.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
from numpy.random import Generator, default_rng
from numpy.typing import ArrayLike
from PIL import Image, ImageColor, ImageDraw, ImageFilter
from tqdm import tqdm

from parts.errors import UserError
from parts.files import write_whole

Size = tuple[int, int]  # height, width


def draw_dataset(
    folder: str | Path, cars: int = 20, views: int = 16, size: Size = (320, 480), seed: int = 0, progress: bool = True
) -> tuple[Path, Path]:
    """Draws a dataset in Carvana's layout: `cars` cars, each from `views` sides, at `size` = (height, width).

    Writes train/<12 hex digits>_01.jpg … and train_masks/<the same>_mask.gif into `folder`, and returns these two
    folders. UserError: numbers that cannot be drawn.
    """
    if cars < 1 or not 1 <= views <= 99:
        raise UserError(f"The demo draws 1 car or more from 1 to 99 sides: got {cars} cars, {views} views.")
    if len(size) != 2 or min(size) < 32:
        raise UserError(f"The demo draws pictures of 32×32 or more: got {'×'.join(map(str, size))}.")
    images, masks = Path(folder) / "train", Path(folder) / "train_masks"
    for written in (images, masks):
        written.mkdir(parents=True, exist_ok=True)
    jobs = list(product(range(cars), range(1, views + 1)))
    hidden = None if progress else True  # None: the bar is shown on a terminal alone
    for car, view in tqdm(jobs, desc="drawing", unit="image", disable=hidden):
        name = f"{hashlib.sha256(f'car {seed} {car}'.encode()).hexdigest()[:12]}_{view:02d}"
        picture, mask = draw_car(seed, car, view, views, size)
        write_whole(images / f"{name}.jpg", partial(picture.save, format="JPEG", quality=92), sync=False)
        write_whole(masks / f"{name}_mask.gif", partial(mask.save, format="GIF"), sync=False)
    return images, masks


def draw_car(seed: int, car: int, view: int, views: int, size: Size) -> tuple[Image.Image, Image.Image]:
    """View 1, 2, … `views` of a car: an RGB image, and its mask, a palette image of 0, black, and 1, white."""
    # One generator for each thing that pictures share, so that none depends on how many pictures are drawn.
    of_studio = default_rng([seed, car % STUDIOS, 1000])
    of_car, of_view = default_rng([seed, car]), default_rng([seed, car, view])
    model = Car(of_car)
    scene = Scene(of_studio, of_car, of_view, 2 * np.pi * (view - 1) / views, size)
    canvas = scene.background()
    # The car's shadow on the floor, its reflection in the floor, then the car itself
    shadow = scene.draw(canvas.copy(), model, up=0).filter(ImageFilter.GaussianBlur(scene.focal / 60))
    canvas.paste((12, 12, 14), mask=shadow.point(lambda value: int(value * scene.dark)))
    mirrored = canvas.copy()
    reflected = scene.draw(mirrored, model, up=-1)
    canvas.paste(mirrored, mask=reflected.point(lambda value: int(value * scene.polish)))
    outline = scene.draw(canvas, model)
    # What the camera makes of it: exposure and grain
    pixels = np.asarray(canvas.reduce(FINER)).astype(np.float32) * scene.exposure
    pixels += scene.grain * of_view.standard_normal((*size, 1), dtype=np.float32)
    mask = Image.fromarray((np.asarray(outline.reduce(FINER)) >= 128).astype(np.uint8)).convert("P")
    mask.putpalette([0, 0, 0, 255, 255, 255])
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)), mask


# ---- the car: a 3D model of quads


PAINT, ROOF, TRIM, GLASS, BELOW, CHROME, LAMP, TAIL, PLATE, TYRE, WELL, RIM = range(12)  # materials of a car
GLOSS = np.array([0.3, 0.3, 0.08, 0.55, 0, 0.5, 0.5, 0.35, 0.1, 0, 0, 0.25])  # of each: how much it mirrors
ALONG = np.pad(np.linspace(0, 1, 48), 1, mode="edge")  # its cross-sections, front to back; both ends are closed
FLANK, BELT, ROWS = 3, 9, 15  # points of half a cross-section, from below: the flank's first, its last, all

Line = tuple[tuple[float, ...], tuple[float, ...]]  # places along the car, heights there


@dataclass(frozen=True)
class Shape:
    """The body of a kind of car: lengths in metres, places along the car as fractions of its length from the front."""

    size: tuple[float, float]  # length, width
    clearance: float  # between the ground and the body
    glass: tuple[float, float, float, float]  # where the windscreen begins and ends, and the rear window
    belt: Line  # where the side windows begin
    top: Line  # the roof, with the bonnet and the boot
    may_be_closed: bool = False  # whether half of them have no side windows at the back


SHAPES = {
    "sedan": Shape(size=(4.7, 1.82), clearance=0.2, glass=(0.28, 0.44, 0.66, 0.84), belt=((0.26, 0.84), (0.90, 0.99)),
        top=((0, 0.04, 0.26, 0.42, 0.52, 0.66, 0.84, 0.97, 1), (0.66, 0.74, 0.93, 1.40, 1.46, 1.41, 1.04, 0.99, 0.9))),
    "coupe": Shape(size=(4.4, 1.86), clearance=0.16, glass=(0.32, 0.49, 0.64, 0.88), belt=((0.3, 0.9), (0.83, 0.92)),
        top=((0, 0.05, 0.30, 0.47, 0.55, 0.66, 0.9, 0.98, 1), (0.58, 0.70, 0.86, 1.26, 1.30, 1.25, 0.94, 0.90, 0.82))),
    "hatch": Shape(size=(4.0, 1.74), clearance=0.2, glass=(0.25, 0.42, 0.83, 0.96), belt=((0.23, 0.97), (0.94, 1.02)),
        top=((0, 0.05, 0.23, 0.40, 0.52, 0.82, 0.97, 1), (0.68, 0.80, 0.97, 1.46, 1.52, 1.45, 1.02, 0.86))),
    "SUV": Shape(size=(4.65, 1.92), clearance=0.27, glass=(0.26, 0.39, 0.87, 0.97), belt=((0.24, 0.98), (1.08, 1.16)),
        top=((0, 0.04, 0.24, 0.38, 0.48, 0.86, 0.98, 1), (0.84, 0.98, 1.12, 1.66, 1.74, 1.68, 1.16, 0.95))),
    "van": Shape(size=(4.95, 1.96), clearance=0.22, glass=(0.15, 0.29, 0.95, 0.985), belt=((0.13, 1), (1.08, 1.14)),
        top=((0, 0.04, 0.13, 0.28, 0.36, 0.95, 0.99, 1), (0.80, 0.96, 1.14, 1.86, 1.97, 1.95, 1.3, 1.0)),
        may_be_closed=True),
    "pickup": Shape(size=(5.4, 1.94), clearance=0.3, glass=(0.27, 0.37, 0.585, 0.62), belt=((0.25, 0.63), (1.10, 1.13)),
        top=((0, 0.03, 0.25, 0.36, 0.44, 0.58, 0.63, 0.98, 1), (0.90, 1.02, 1.15, 1.74, 1.80, 1.76, 1.17, 1.15, 1.05))),
}  # fmt: skip
COLOURS = ["#ecedee", "#e2e3e0", "#bec1c4", "#96999d", "#686b70", "#3e4044", "#1a1b1d", "#121214"]  # studio greys
COLOURS += ["#96161c", "#1c3a80", "#122446", "#245c44", "#c4a028", "#78543a", "#c4541a", "#bcb29e"]
FIXED_COLOURS = [(14, 14, 15), (188, 190, 194), (214, 218, 222)]  # red, green, blue of BELOW, CHROME, LAMP
FIXED_COLOURS += [(150, 20, 22), (226, 222, 200), (38, 38, 40)]  # TAIL, PLATE, TYRE


@dataclass(frozen=True)
class Panel:
    """Some quads of a car's right half."""

    quads: np.ndarray  # (Q, 4, 3): corners, counter-clockwise, seen from outside
    material: np.ndarray | int  # of each of them (Q,), or of all
    nearer: float = 0  # how many metres nearer than they are they count, when quads are drawn from back to front


class Car:
    """A car of random make. x runs backwards, y to the right, z up, in metres; (0, 0, 0) is the ground below it.

    quads (Q, 4, 3), materials (Q,), nearer (Q,): as in Panel, of both halves
    colours (12, 3): red, green, blue of each material
    """

    def __init__(self, rng: Generator) -> None:
        shape = list(SHAPES.values())[rng.integers(len(SHAPES))]
        length, width = np.array(shape.size) * rng.uniform(0.95, 1.05, 2)
        body, house = _body(rng, shape, length, width)
        skin = _strip(body[:, 1:], body[:, :-1]).reshape(-1, 4, 3)
        panels = [Panel(skin, _skin(rng, shape, house)), *_fittings(rng, body, length, shape.glass[0])]
        radius = (0.24 + 0.35 * shape.clearance) * rng.uniform(0.97, 1.1)
        axles = rng.uniform(0.175, 0.2), rng.uniform(0.78, 0.81)
        paint, spokes = _paint(rng), int(rng.integers(5, 11))
        rim = np.array([1, 1, 1.03]) * rng.choice([45, 120, 190])
        self.colours = np.concatenate([paint, FIXED_COLOURS, [0.5 * rim, 1.5 * rim]])
        for axle in axles:
            panels += _wheel((axle - 0.5) * length, width / 2, radius, spokes)
        right = np.concatenate([panel.quads for panel in panels])
        left = right[:, ::-1] * [1, -1, 1]  # in reverse, because mirroring turns counter-clockwise into clockwise
        self.quads = np.concatenate([right, left])
        materials = [np.broadcast_to(panel.material, len(panel.quads)) for panel in panels]
        self.materials = np.tile(np.concatenate(materials), 2)
        self.nearer = np.tile(np.concatenate([np.full(len(panel.quads), panel.nearer) for panel in panels]), 2)


def _paint(rng: Generator) -> np.ndarray:
    """(4, 3): red, green, blue of the materials that differ from car to car: PAINT, ROOF, TRIM, GLASS."""
    paint = np.clip(ImageColor.getrgb(COLOURS[rng.integers(len(COLOURS))]) + rng.uniform(-12, 12, 3), 8, 245)
    roof = np.array([28, 28, 30]) if rng.random() < 0.15 else paint
    trim = paint if rng.random() < 0.3 else np.array([38, 39, 41])
    return np.stack([paint, roof, trim, np.array([30, 36, 40]) * rng.uniform(0.6, 1.8)])


def _strip(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """(N - 1, …, 4, 3) quads between two lines of N points, each (N, …, 3)."""
    return np.stack([one[:-1], one[1:], other[1:], other[:-1]], -2)


def _body(rng: Generator, shape: Shape, length: float, width: float) -> tuple[np.ndarray, np.ndarray]:
    """(50, ROWS, 3) points of the right half of the cross-sections, each from below; (50,) heights of the cabin."""
    tall = rng.uniform(0.95, 1.05)
    top_x, top_z = np.array(shape.top)
    top_x[1:-1] += rng.uniform(-0.012, 0.012, len(top_x) - 2)
    corners = np.pad(np.interp(ALONG, top_x, top_z), 2, mode="edge")
    top = tall * np.convolve(corners, [0.1, 0.2, 0.4, 0.2, 0.1], "valid")
    belt = np.minimum(tall * np.interp(ALONG, *shape.belt), top - 0.03)
    front, back = np.clip(1 - ALONG / 0.14, 0, 1), np.clip(1 - (1 - ALONG) / 0.12, 0, 1)  # 1 there, 0 elsewhere
    half = width / 2 * (1 - rng.uniform(0.14, 0.26) * front**2.2 - rng.uniform(0.08, 0.18) * back**2.2)
    floor = shape.clearance + 0.1 * front**2 + 0.14 * back**2
    lean, bulge = rng.uniform((0.18, 0.02), (0.26, 0.06))
    house = top - belt
    roof = half * (0.95 - lean * np.clip(house / 0.5, 0, 1))
    points = [(0 * half, floor), (0.86 * half, floor), (0.96 * half, floor + 0.08)]  # (to the side, up)
    for f in (0.2, 0.35, 0.5, 0.64, 0.78, 0.9, 1):  # the flank, from floor to belt
        points.append((half * (1 - bulge * (2 * f - 0.9) ** 2), floor + f * (belt - floor)))
    points += [(half * (0.975 - bulge), belt + 0.08 * house), (roof, belt + 0.86 * house)]
    points += [(0.93 * roof, belt + 0.96 * house), (0.6 * roof, top), (0 * roof, top + 0.015)]
    slant = np.outer(0.14 * front**2 - 0.06 * back**2, np.linspace(0, 1, ROWS))
    across, up = np.array(points).transpose(1, 2, 0)
    body = np.stack([((ALONG - 0.5) * length)[:, None] + slant, across, up], -1)
    body[[0, -1]] = body[[1, -2]] * [1, 0, 1]
    return body, house


def _skin(rng: Generator, shape: Shape, house: np.ndarray) -> np.ndarray:
    """(49 (ROWS - 1),) materials of the body's quads: which are windows, which are lamps."""
    glass = shape.glass
    table = np.full((len(ALONG) - 1, ROWS - 1), PAINT)
    along = (ALONG[:-1] + ALONG[1:]) / 2
    screens = ((along > glass[0]) & (along < glass[1])) | ((along > glass[2]) & (along < glass[3]))
    last = glass[3] - 0.03  # where the side windows end
    if shape.may_be_closed and rng.random() < 0.5:
        last = rng.uniform(0.36, 0.5)
    sides = (house[:-1] > 0.24) & (along > glass[0] + 0.06) & (along < last)
    for pillar in (rng.uniform(0.5, 0.54), glass[2] - rng.uniform(0.0, 0.05)):
        sides &= np.abs(along - pillar) > 0.012
    table[:, :2] = BELOW, TRIM
    table[(along >= glass[0]) & (along <= glass[3]) & ~screens, BELT + 2 :] = ROOF
    table[screens, BELT + 3 :] = GLASS
    table[sides, BELT + 1] = GLASS
    table[along < rng.uniform(0.04, 0.07), FLANK + 2 : FLANK + 5] = LAMP
    table[along > rng.uniform(0.94, 0.965), FLANK + rng.integers(0, 3) : FLANK + 5] = TAIL
    table[[0, -1]] = [BELOW, TRIM, TRIM] + [PAINT] * (ROWS - 4)
    return table.ravel()


def _fittings(rng: Generator, body: np.ndarray, length: float, cowl: float) -> Iterator[Panel]:
    """The Panels of grille, lamps, plates, doors with handles, and mirror; `cowl`: where the windscreen begins."""

    def upright(xs: ArrayLike, ys: ArrayLike, low: ArrayLike, high: ArrayLike) -> np.ndarray:
        """Upright rectangles above a line in the ground plan, which runs to the right as seen from outside."""
        line = np.stack(np.broadcast_arrays(xs, ys, low), -1)
        return _strip(line, line + [0, 0, np.subtract(high, low)])

    lamp = rng.uniform(0.5, 0.7)
    grille = TRIM if rng.random() < 0.6 else CHROME
    # At the front and at the back: the cross-section, where it faces, what is at its sides and in its middle, and how
    # high its plate hangs
    for ring, facing, light, middle, plate in ((body[1], -1, LAMP, grille, 0.02), (body[-2], 1, TAIL, PAINT, 0.3)):
        x = facing * ((facing * ring[:, 0]).max() + 0.01)
        wide, low, tall = 0.97 * ring[FLANK, 1], ring[FLANK, 2], ring[BELT + 1, 2] - ring[FLANK, 2]
        yield Panel(upright(x, (0, lamp * wide)[::facing], low, low + 0.6 * tall), middle, 0.3)
        yield Panel(upright(x, (lamp * wide, wide)[::facing], low + 0.45 * tall, low + tall - 0.05), light, 0.3)
        yield Panel(upright(x, (0, 0.26)[::facing], low + plate * tall, low + plate * tall + 0.12), PLATE, 0.4)
    widest = body[:, FLANK + 2, 1].max() + 0.004
    seams = [cowl + 0.06, rng.uniform(0.5, 0.54)]  # of the doors, of which there are one or two on a side
    if rng.random() < 0.7:
        seams.append(0.7)
    xs, belts = (np.array(seams) - 0.5) * length, np.interp(seams, ALONG, body[:, BELT, 2])
    for x, belt in zip(xs, belts):
        yield Panel(upright((x + 0.015, x), widest, 0.38, belt), TRIM, 0.6)
    for x, belt in zip(xs[:-1], belts[:-1]):  # each door's handle
        yield Panel(upright((x + 0.34, x + 0.16), widest, belt - 0.16, belt - 0.12), CHROME, 0.7)
    x, belt, inner, outer = xs[0], belts[0], widest - 0.06, widest + 0.17
    yield Panel(upright((x + 0.1, x + 0.1, x, x), (inner, outer, outer, inner), belt, belt + 0.15), PAINT)  # mirror


def _wheel(x: float, y: float, radius: float, spokes: int) -> Iterator[Panel]:
    """The Panels of a tyre, mostly hidden by the body, and of what is visible from the side."""
    turn, arc = np.linspace(0, 2 * np.pi, 33), np.linspace(0, np.pi, 17)
    tread = np.stack([turn[:-1], turn[1:], turn[1:], turn[:-1]], -1)  # angles of the quads' corners
    disc = np.stack([arc[1:], -arc[1:], -arc[:-1], arc[:-1]], -1)
    spoke = np.linspace(0, 2 * np.pi, spokes, endpoint=False)[:, None] + [-0.8, -0.16, 0.16, 0.8]
    for r, angles, out, material, nearer in (  # `r` from the hub, in radii; `out` of the body, in metres
        (1, tread, np.array([-0.22, -0.22, 0.004, 0.004]), TYRE, -10),
        (1, disc[:, ::-1], -0.22, TYRE, -10),
        (1.2, disc, 0.002, BELOW, 10),  # the arch
        (1, disc, 0.004, TYRE, 10.3),
        (0.7, disc, 0.004, WELL, 10.6),
        (np.array([0.08, 0.68, 0.68, 0.08]), spoke, 0.005, RIM, 10.9),
        (0.14, disc, 0.006, WELL, 11.2),
    ):
        lowest = -0.3 if material == BELOW else -1.0  # the arch ends above the body's lower edge
        up = np.maximum(r * np.sin(angles), lowest)
        corners = x - radius * r * np.cos(angles), y + out, radius * (1 + up)
        yield Panel(np.stack(np.broadcast_arrays(*corners), -1), material, nearer)


# ---- the studio


STUDIOS = 5  # that the cars of one seed are photographed in; the light differs from car to car
FINER = 2  # everything is drawn this many times larger, then shrunk: smooth edges
PITCH = 0.1  # radians, that the camera looks downwards
CAMERA = np.array([0, -7.2, 0.68 + 7.2 * np.tan(PITCH)])  # metres
SIGNS = ["STUDIO", "AUTO HALL", "DRIVE", "360", "CARS DAILY", "BAY 7", "open road", "SINCE 1984", "motor"]


class Scene:
    """A studio with the light on one car, and the camera at one moment.

    of_studio, of_car, of_view   the generators of what all cars of the studio, all views of the car, or none share
    turn                         of the turntable, in radians
    size                         (height, width) of the picture
    """

    def __init__(self, of_studio: Generator, of_car: Generator, of_view: Generator, turn: float, size: Size) -> None:
        self.size = width, height = size[1] * FINER, size[0] * FINER
        self.focal = min(width, 1.5 * height) * of_car.uniform(0.98, 1.12)
        self.wall = of_studio.uniform(120, 230) * of_studio.uniform(0.96, 1.04, 3)
        self.ground = np.minimum(self.wall * of_studio.uniform(0.72, 1.08) * of_studio.uniform(0.97, 1.03, 3), 240)
        self.polish = of_studio.uniform(0.03, 0.3)  # of the floor: how much it mirrors
        self.props = default_rng(of_studio.integers(2**32))
        self.sun = np.array([of_car.uniform(-0.8, 0.8), -0.5, 0.8])
        # How the light changes across the wall and down it; how dark the car's shadow is
        self.lean, self.fall, self.dark = of_car.uniform((-0.3, -0.25, 0.35), (0.3, 0.3, 0.7))
        tint = of_car.uniform(0.97, 1.03, 3) * of_car.uniform(0.9, 1.1)
        self.grain = of_car.uniform(1.0, 4.0)
        turn += of_car.uniform(-0.2, 0.2) + of_view.uniform(-0.04, 0.04)
        self.turn = np.array([[-np.sin(turn), -np.cos(turn), 0], [np.cos(turn), -np.sin(turn), 0], [0, 0, 1]])
        self.exposure = (tint * of_view.uniform(0.93, 1.07)).astype(np.float32)
        self.centre = (np.array([0.5, 0.53]) + of_view.uniform(-0.015, 0.015, 2)) * self.size

    def project(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Canvas positions (..., 2) and distances (...) of points in the studio, (..., 3)."""
        x, away, up = np.moveaxis(points - CAMERA, -1, 0)
        far, down = away * np.cos(PITCH) - up * np.sin(PITCH), -up * np.cos(PITCH) - away * np.sin(PITCH)
        return np.stack([x, down], -1) * (self.focal / far)[..., None] + self.centre, far

    def background(self) -> Image.Image:
        """The studio without the car: wall, floor and turntable, and edges that are not a car's."""
        (width, height), rng = self.size, self.props
        y, x, _ = np.mgrid[0 : 1 : height // 4 * 1j, 0 : 1 : width // 4 * 1j, :1]  # smooth, so a coarse grid will do
        floor = 1 / (1 + np.exp((0.46 + 0.1 * (x - 0.5) ** 2 - y) / 0.025))
        light = 1 + self.lean * (x - 0.5) + self.fall * (y - 0.4) - 0.5 * ((x - 0.5) ** 2 + (y - 0.5) ** 2)
        pixels = (self.wall * (1 - floor) + self.ground * floor * (0.9 + 0.2 * y)) * light
        canvas = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).resize(self.size, Image.Resampling.BILINEAR)
        draw, thin = ImageDraw.Draw(canvas), max(1, round(width / 400))
        # Seams in the wall, and signs on it
        for at in np.arange(rng.uniform(0, 0.3), 1, rng.uniform(0.12, 0.4)):
            line = [(at * width, 0), ((0.02 + 0.96 * at) * width, 0.44 * height)]
            draw.line(line, fill=_ink(self.wall * rng.uniform(0.8, 0.95)), width=thin)
        for sign in rng.permutation(SIGNS)[: rng.integers(0, 3)].tolist():
            left, top, tall = rng.uniform((0, 0.06, 0.06), (0.75, 0.34, 0.16)) * (width, height, height)
            ink = _ink(self.wall * 0.45) if rng.random() < 0.6 else _ink(rng.integers(20, 200, 3))
            draw.text((left, top), sign, fill=ink, font_size=max(6, round(tall)))
        # Lamps on the ceiling, and on every other set one on a stand
        for _ in range(rng.integers(0, 4)):
            at, wide, tall = rng.uniform((0, 0.04, 0.015), (1, 0.12, 0.05)) * (width, width, height)
            draw.rounded_rectangle([at - wide, -9, at + wide, tall], radius=4 * thin, fill=(252, 252, 250))
        if rng.random() < 0.5:
            at, grey = rng.choice([rng.uniform(0.03, 0.13), rng.uniform(0.87, 0.97)]) * width, int(rng.uniform(24, 120))
            draw.line([(at, 0.14 * height), (at, 0.66 * height)], fill=(grey, grey, grey), width=3 * thin)
            draw.regular_polygon((at, 0.14 * height, 0.09 * height), 4, rotation=-9, fill=(grey, grey, grey))
        # The turntable: rim, then top
        circle = np.exp(1j * np.linspace(0, 2 * np.pi, 73))
        for radius, factor in ((3.1, rng.uniform(0.86, 0.97)), (3.02, rng.uniform(0.97, 1.06))):
            points, _ = self.project(radius * np.stack([circle.real, circle.imag, 0 * circle.real], -1))
            draw.polygon(points.ravel().tolist(), fill=_ink(self.ground * factor))
        return canvas

    def draw(self, canvas: Image.Image, car: Car, up: float = 1) -> Image.Image:
        """Paints the car `up` times as high (-1: mirrored in the floor, 0: a shadow); returns its outline, 0 or 255."""
        world = car.quads @ self.turn
        points, far = self.project(world * [1, 1, up])
        normals = np.cross(world[:, 2] - world[:, 0], world[:, 3] - world[:, 1])
        normals /= np.linalg.norm(normals, axis=1, keepdims=True) + 1e-9
        sight = world.mean(1) - CAMERA * [1, 1, up]  # from the camera to each quad
        sight /= np.linalg.norm(sight, axis=1, keepdims=True)
        facing = (normals * sight).sum(1)  # below 0: its outside is visible
        colours = self._shade(car, normals, sight, facing)
        outline = Image.new("L", canvas.size)
        paint, mark = ImageDraw.Draw(canvas), ImageDraw.Draw(outline)
        order = np.argsort(car.nearer - far.mean(1))
        for index in order[facing[order] < 0]:  # from back to front
            corners = points[index].ravel().tolist()
            paint.polygon(corners, fill=_ink(colours[index]))
            mark.polygon(corners, fill=255)
        return outline

    def _shade(self, car: Car, normals: np.ndarray, sight: np.ndarray, facing: np.ndarray) -> np.ndarray:
        """(Q, 3) uint8: the colour of each quad, its paint under soft light, and the studio mirrored in what shines."""
        light = 0.50 + 0.24 * normals[:, 2] + 0.42 * np.clip(normals @ self.sun, 0, None) / np.linalg.norm(self.sun)
        ray = sight[:, 2] - 2 * facing * normals[:, 2]  # how steeply the mirrored one rises
        studio = np.where(ray > 0, 90 + 150 * np.clip(ray * 1.3, 0, 1), 60 + 60 * np.clip(-ray, 0, 1))
        gloss = GLOSS[car.materials][:, None]
        colours = car.colours[car.materials] * light[:, None] * (1 - 0.4 * gloss) + gloss * 0.7 * studio[:, None]
        return np.clip(colours, 0, 255).astype(np.uint8)


def _ink(colour: np.ndarray) -> tuple[int, ...]:
    """Red, green and blue as Pillow draws with them."""
    return tuple(map(int, colour))
