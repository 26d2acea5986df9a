"""A photo studio around a car: walls, lights, floor, and the camera that a turntable turns the car before."""

from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from cars import GLOSS, random_car

STUDIOS = 5  # that the cars of one seed are photographed in; the light differs from car to car
FINER = 2  # everything is drawn this many times larger, then shrunk: smooth edges
_TURN = np.linspace(0, 2 * np.pi, 33)[:-1]
_CIRCLE = np.stack([np.cos(_TURN), 0 * _TURN, np.sin(_TURN)], -1)  # upright, of radius 1
CAMERA_DISTANCE, CAMERA_PITCH = 7.2, 0.1  # metres, radians downwards
WORDS = ["STUDIO", "AUTO HALL", "DRIVE", "360", "CARS DAILY", "BAY 7", "open road", "SINCE 1984", "motor"]


def draw_car(seed, car, view, views, size):
    """View 1, 2, … `views` of a car, `size` = (height, width): an RGB image, and its mask.

    The mask is a palette image of 0, black, and 1, white, as Carvana's GIFs hold.
    """
    rng = np.random.default_rng([seed, car])
    model = random_car(rng)
    scene = Scene(np.random.default_rng([seed, car % STUDIOS, 1000]), rng, size)
    moment = np.random.default_rng([seed, car, view])
    turn = 2 * np.pi * (view - 1) / views + rng.uniform(-0.2, 0.2) + moment.uniform(-0.04, 0.04)
    scene.place(turn, moment)
    canvas = scene.background()
    scene.shadow(canvas, model)
    scene.reflection(canvas, model)
    mask = Image.new("L", canvas.size)
    scene.draw(model, ImageDraw.Draw(canvas), ImageDraw.Draw(mask))
    height, width = size
    pixels = np.asarray(canvas.reduce(FINER)).astype(np.float32)
    grain = moment.standard_normal((height, width, 1), dtype=np.float32) * scene.grain
    pixels = pixels * (scene.exposure * scene.tint) + grain
    picture = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    inside = Image.fromarray((np.asarray(mask.reduce(FINER)) >= 128).astype(np.uint8)).convert("P")
    inside.putpalette([0, 0, 0, 255, 255, 255])
    return picture, inside


class Scene:
    """The studio around a car: its walls and lights, and the camera."""

    def __init__(self, place, car, size):
        """`place` and `car`: generators, of what belongs to the studio and of the light on one car."""
        self.height, self.width = size[0] * FINER, size[1] * FINER
        self.focal = min(self.width, 1.5 * self.height) * car.uniform(0.98, 1.12)
        self.wall = place.uniform(120, 230) * place.uniform(0.96, 1.04, 3)
        self.ground = self.wall * place.uniform(0.72, 1.08) * place.uniform(0.97, 1.03, 3)
        self.mirror = place.uniform(0.03, 0.3)
        self.props = place.integers(2**32)
        self.sun = np.array([car.uniform(-0.8, 0.8), -0.5, 0.8])
        self.lean = car.uniform(-0.3, 0.3)  # how much brighter one end of the wall is
        self.fall = car.uniform(-0.25, 0.3)
        self.dark = car.uniform(0.35, 0.7)
        self.tint = car.uniform(0.97, 1.03, 3).astype(np.float32) * np.float32(car.uniform(0.9, 1.1))
        self.grain = car.uniform(1.0, 4.0)

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
        cos, sin = np.cos(CAMERA_PITCH), np.sin(CAMERA_PITCH)
        away, up = points[..., 1] + CAMERA_DISTANCE, points[..., 2] - 0.68 - CAMERA_DISTANCE * np.tan(CAMERA_PITCH)
        far = away * cos - up * sin
        screen = np.stack([points[..., 0], -(up * cos + away * sin)], -1) * (self.focal / far)[..., None]
        return screen + self.centre, far

    def background(self):
        height, width = self.height // 4 + 1, self.width // 4 + 1  # smooth, so a coarse grid will do
        y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j].astype(np.float32)
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
            word, tall = WORDS[rng.integers(len(WORDS))], rng.uniform(0.06, 0.16)
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
        camera = np.array([0, -CAMERA_DISTANCE, 0.68 + CAMERA_DISTANCE * np.tan(CAMERA_PITCH)])
        world = self.turned(car.quads) * flip
        normal = np.cross(world[:, 2] - world[:, 0], world[:, 3] - world[:, 1]) * flip[2]
        normal /= np.linalg.norm(normal, axis=1, keepdims=True) + 1e-9
        sight = world.mean(1) - camera
        colours = self._shade(car, normal * flip, sight / np.linalg.norm(sight, axis=1, keepdims=True))
        points, far = self.project(world)
        facing = (normal * sight).sum(1) < 0
        order = np.argsort(car.nearer - far.mean(1))

        def polygon(corners, colour):
            corners = [tuple(p) for p in corners.tolist()]
            draw.polygon(corners, fill=colour)
            mask.polygon(corners, fill=255)

        for wheel in car.wheels:
            self._tyre(wheel, polygon, flip)
        for index in order[facing[order]]:
            polygon(points[index], tuple(colours[index].tolist()))
        for wheel in car.wheels:
            if self.turned(np.array([0.0, wheel[1], 0.0]))[1] < -0.14:  # on the side that the camera sees
                self._rim(car, wheel, polygon, flip)

    def _shade(self, car, normal, sight):
        """(Q, 3) uint8: paint under soft light, and the studio mirrored in what shines."""
        sun = self.sun / np.linalg.norm(self.sun)
        light = 0.50 + 0.24 * normal[:, 2] + 0.42 * np.clip(normal @ sun, 0, None)
        up = sight[:, 2] - 2 * (sight * normal).sum(1) * normal[:, 2]  # where the mirrored ray goes
        studio = np.where(up > 0.0, 90 + 150 * np.clip(up * 1.3, 0, 1), 60 + 60 * np.clip(-up, 0, 1))
        gloss = GLOSS[car.materials][:, None]
        colour = car.base[car.materials] * light[:, None] * (1 - 0.4 * gloss) + gloss * 0.7 * studio[:, None]
        return np.clip(colour, 0, 255).astype(np.uint8)

    def _tyre(self, wheel, polygon, flip):
        """A black cylinder; drawn before the body, which hides its upper part."""
        x, side, half, radius = wheel
        rims = [_CIRCLE * radius + [x, side * y, radius] for y in (half - 0.22, half + 0.004)]
        inner, outer = (self.project(self.turned(rim) * flip)[0] for rim in rims)
        for i in range(len(_CIRCLE)):  # the tread: one strip after another joins the two edges
            polygon(np.stack([inner[i - 1], inner[i], outer[i], outer[i - 1]]), (20, 20, 21))
        polygon(inner, (20, 20, 21))
        polygon(outer, (20, 20, 21))

    def _rim(self, car, wheel, polygon, flip):
        """What is seen of a wheel from its side; drawn after the body."""
        x, side, half, radius = wheel

        def disc(scale, y, colour, shape=_CIRCLE):
            spot = shape * radius * scale + [x, side * y, radius]
            polygon(self.project(self.turned(spot) * flip)[0], tuple(map(int, colour)))

        rim = np.array(car.rim)
        arch = np.maximum(_CIRCLE, [-9, -9, -0.25])  # it ends above the body's lower edge
        disc(1.2, half + 0.002, (12, 12, 13), arch)
        disc(1.0, half + 0.004, (30, 30, 31))
        disc(0.7, half + 0.004, rim * 0.45)
        for angle in np.arange(car.spokes) * 2 * np.pi / car.spokes + x:
            corners = [(0.12, 0.8), (1.0, 0.16), (1.0, -0.16), (0.12, -0.8)]
            spoke = np.array([[r * np.cos(angle + a), 0, r * np.sin(angle + a)] for r, a in corners])
            disc(0.68, half + 0.005, rim, spoke)
        disc(0.14, half + 0.006, rim * 0.7)


@lru_cache(maxsize=32)
def _font(size):
    return ImageFont.load_default(size)
