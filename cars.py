"""Cars as small 3D models: cross-sections along the body, joined into quads; wheels; paint.

Coordinates are metres: x from the front backwards, y to the side, z up; the middle stands at (0, 0, 0).
"""

from dataclasses import dataclass

import numpy as np

PAINT, ROOF, TRIM, GLASS, BELOW, CHROME, LAMP, TAIL, PLATE = range(9)  # materials
GLOSS = np.array([0.30, 0.30, 0.08, 0.55, 0.0, 0.5, 0.5, 0.35, 0.1])  # of each material: how much it mirrors

STATIONS = 48  # cross-sections along the body
RING = 15  # points of half a cross-section, from below to the top
SIDES = range(3, 9)  # those of the flank
WINDOW = 10  # where the windows begin

# Lines along the car, front to back: (fraction of the length, height in metres).
SHAPES = {
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
COLOURS = [  # half of them close to the studio's own greys
    (236, 237, 238), (226, 227, 224), (190, 193, 196), (150, 153, 157), (104, 107, 112), (62, 64, 68),
    (26, 27, 29), (18, 18, 20), (150, 22, 28), (28, 58, 128), (18, 36, 70), (36, 92, 68), (196, 160, 40),
    (120, 84, 58), (196, 84, 26), (188, 178, 158),
]  # fmt: skip


@dataclass(frozen=True)
class Car:
    quads: np.ndarray  # (Q, 4, 3) metres: x backwards, y to the side, z up, the middle at (0, 0, 0)
    materials: np.ndarray  # (Q,)
    nearer: np.ndarray  # (Q,) metres: quads are drawn as if they were that much nearer
    base: np.ndarray  # (materials, 3) colours
    wheels: list  # (x, side, half-width there, radius)
    spokes: int
    rim: list
    footprint: np.ndarray  # (P, 2)


def random_car(rng):
    """A car of random make: quads with materials, and its wheels."""
    kind = list(SHAPES)[rng.integers(len(SHAPES))]
    shape = SHAPES[kind]
    length, width = np.array(shape["size"]) * rng.uniform(0.95, 1.05, 2)
    tall = rng.uniform(0.95, 1.05)
    along = np.linspace(0, 1, STATIONS)
    top_x, top_z = np.array(shape["top"]).T
    top_x[1:-1] += rng.uniform(-0.012, 0.012, len(top_x) - 2)
    top = _smooth(np.interp(along, top_x, top_z)) * tall
    belt_x, belt_z = np.array(shape["belt"]).T
    belt = np.minimum(np.interp(along, belt_x, belt_z) * tall, top - 0.03)
    front, back = 1 - np.clip(along / 0.14, 0, 1), 1 - np.clip((1 - along) / 0.12, 0, 1)
    half = width / 2 * (1 - rng.uniform(0.14, 0.26) * front**2.2 - rng.uniform(0.08, 0.18) * back**2.2)
    floor = shape["clearance"] + 0.1 * front**2 + 0.14 * back**2
    across, up = _section(half, floor, belt, top, rng.uniform(0.18, 0.26), rng.uniform(0.02, 0.06))
    slant = np.linspace(0, 1, RING)
    x = ((along - 0.5) * length)[:, None] + np.outer(0.14 * front**2 - 0.06 * back**2, slant)
    right, left = np.stack([x, across, up], -1), np.stack([x, -across, up], -1)[:, ::-1]
    rings = np.concatenate([right, left], 1)
    skin = np.stack([rings[:-1, 1:], rings[1:, 1:], rings[1:, :-1], rings[:-1, :-1]], 2)
    middles = (along[:-1] + along[1:]) / 2
    parts = [(skin.reshape(-1, 4, 3), _skin_materials(shape["glass"], middles, top - belt, kind, rng).ravel(), 0)]
    for end in (0, -1):
        ring = np.stack([right[end, :-1], right[end, 1:], left[end, ::-1][1:], left[end, ::-1][:-1]], 1)
        materials = np.array([BELOW] + [TRIM] * 2 + [PAINT] * (len(ring) - 3))
        parts.append((ring[:, ::-1] if end == 0 else ring, materials, 0))
    for quad, material, nearer in _fittings(rng, right, length, shape["glass"][0], belt):
        parts.append((quad[None], np.array([material]), nearer))
    radius = (0.31 + 0.03 * (kind in ("SUV", "pickup", "van"))) * rng.uniform(0.97, 1.1)
    axles = rng.uniform(0.175, 0.2), rng.uniform(0.78, 0.81)
    wheels = [((at - 0.5) * length, side, np.interp(at, along, half), radius) for at in axles for side in (1, -1)]
    outline = np.stack([x[:, SIDES[0]], half], 1)
    return Car(
        quads=np.concatenate([quads for quads, _, _ in parts]),
        materials=np.concatenate([materials for _, materials, _ in parts]),
        nearer=np.concatenate([np.full(len(quads), nearer) for quads, _, nearer in parts]),
        base=_base_colours(rng),
        wheels=wheels,
        spokes=int(rng.integers(5, 11)),
        rim=(np.array([1, 1, 1.03]) * rng.choice([45, 120, 190])).tolist(),
        footprint=np.concatenate([outline, outline[::-1] * [1, -1]]),
    )


def _section(half, floor, belt, top, lean, bulge):
    """(S, RING) distances to the side and heights of the cross-sections' right half, from below to the top."""
    house = top - belt  # the greenhouse
    roof = half * (0.95 - lean * np.clip(house / 0.5, 0, 1))
    sides = [0.2, 0.35, 0.5, 0.64, 0.78, 0.9]  # heights between floor and belt
    rows = [(0 * half, floor), (0.86 * half, floor), (0.96 * half, floor + 0.08)]
    rows += [(half * (1 - bulge * (2 * f - 0.9) ** 2), floor + f * (belt - floor)) for f in sides]
    rows += [(half * (0.985 - bulge), belt), (half * (0.975 - bulge), belt + 0.08 * house)]
    rows += [(roof, belt + 0.86 * house), (0.93 * roof, belt + 0.96 * house)]
    rows += [(0.6 * roof, top), (0 * roof, top + 0.015)]
    return np.stack([across for across, _ in rows], 1), np.stack([up for _, up in rows], 1)


def _smooth(line):
    """Rounds the corners of a line that bends at given points."""
    padded = np.concatenate([line[:1].repeat(2), line, line[-1:].repeat(2)])
    return np.convolve(padded, [0.1, 0.2, 0.4, 0.2, 0.1], "valid")


def _skin_materials(glass, along, house, kind, rng):
    """(S - 1, 2 RING - 1) materials of the body: which quads are windows, which are lamps."""
    table = np.full((len(along), 2 * RING - 1), PAINT)

    def paint(where, columns, material):
        for column in columns:
            table[where, column] = table[where, -1 - column] = material

    windscreen = (along > glass[0]) & (along < glass[1])
    rear = (along > glass[2]) & (along < glass[3])
    cabin = (along >= glass[0]) & (along <= glass[3])
    paint(slice(None), [0], BELOW)
    paint(slice(None), [1], TRIM)
    paint(cabin & ~windscreen & ~rear, range(WINDOW + 1, RING), ROOF)
    paint(windscreen | rear, range(WINDOW + 2, RING), GLASS)
    last = rng.uniform(0.36, 0.5) if kind == "van" and rng.random() < 0.5 else glass[3] - 0.03
    sides = (house[:-1] > 0.24) & (along > glass[0] + 0.06) & (along < last)
    for pillar in (rng.uniform(0.5, 0.54), glass[2] - rng.uniform(0.0, 0.05)):
        sides &= np.abs(along - pillar) > 0.012
    paint(sides, [WINDOW], GLASS)
    paint(along < rng.uniform(0.04, 0.07), SIDES[2:5], LAMP)
    paint(along > rng.uniform(0.94, 0.965), SIDES[rng.integers(0, 3) : 5], TAIL)
    return table


def _fittings(rng, right, length, cowl, belt):
    """(quad, material, nearer) of what is fixed to the body: grille, lamps, plates, doors, mirrors.

    `nearer`: how many metres nearer than it is it counts when the quads are drawn from back to front.
    """

    def box(x, y, z, sign, axis):
        """A rectangle that looks along `axis`, forwards or backwards."""
        low, high = (np.array([x[i], y[i], z[i]], dtype=float) for i in (0, 1))
        steps = [(0, 0), (1, 0), (1, 1), (0, 1)] if (sign > 0) == (axis == 0) else [(0, 0), (0, 1), (1, 1), (1, 0)]
        other = [1 - axis, 2]
        corners = np.stack([low] * 4)
        for corner, picks in zip(corners, steps):
            corner[other] = np.where(picks, high[other], low[other])
        return corners

    lamp = rng.uniform(0.5, 0.7)
    grille = TRIM if rng.random() < 0.6 else CHROME
    for ring, sign, light in ((right[0], -1, LAMP), (right[-1], 1, TAIL)):
        x = [ring[:, 0].min() - 0.01 if sign < 0 else ring[:, 0].max() + 0.01] * 2
        w, low, high = 0.97 * ring[SIDES[0], 1], ring[SIDES[0], 2], ring[WINDOW, 2]
        tall = high - low
        if sign < 0:
            yield box(x, (-lamp * w, lamp * w), (low, low + 0.6 * tall), sign, 0), grille, 0.3
        yield box(x, (lamp * w, w), (low + 0.45 * tall, high - 0.05), sign, 0), light, 0.3
        yield box(x, (-w, -lamp * w), (low + 0.45 * tall, high - 0.05), sign, 0), light, 0.3
        plate = low + (0.02 if sign < 0 else 0.3) * tall
        yield box(x, (-0.26, 0.26), (plate, plate + 0.12), sign, 0), PLATE, 0.4
    widest = right[:, SIDES[2], 1].max() + 0.004
    doors = [cowl + 0.06, rng.uniform(0.5, 0.54)] + ([0.7] if rng.random() < 0.7 else [])
    for side in (1, -1):
        y = [side * widest] * 2
        for door in doors:
            x, top = (door - 0.5) * length, np.interp(door, np.linspace(0, 1, len(belt)), belt)
            yield box((x, x + 0.015), y, (0.38, top), side, 1), TRIM, 0.6
            if door != doors[-1]:
                yield box((x + 0.16, x + 0.34), y, (top - 0.16, top - 0.12), side, 1), CHROME, 0.7
        x, z = (cowl + 0.07 - 0.5) * length, np.interp(cowl + 0.07, np.linspace(0, 1, len(belt)), belt)
        y0, y1 = sorted((side * (widest - 0.06), side * (widest + 0.17)))
        for sign in (1, -1):  # a mirror
            yield box([x + 0.05 * sign] * 2, (y0, y1), (z, z + 0.15), sign, 0), PAINT, 0
        yield box((x - 0.05, x + 0.05), [side * (widest + 0.17)] * 2, (z, z + 0.15), side, 1), PAINT, 0


def _base_colours(rng):
    paint = np.clip(np.array(COLOURS[rng.integers(len(COLOURS))]) + rng.uniform(-12, 12, 3), 8, 245)
    roof = np.array([28, 28, 30]) if rng.random() < 0.15 else paint
    trim = paint if rng.random() < 0.3 else np.array([38, 39, 41])
    glass = np.array([30, 36, 40]) * rng.uniform(0.6, 1.8)
    return np.array([paint, roof, trim, glass, (14, 14, 15), (188, 190, 194), (214, 218, 222), (150, 20, 22),
                     (226, 222, 200)], dtype=float)  # fmt: skip
