"""The objects of the generated scenes: each a tree of named parts, drawn from polygons.

A figure lives in its own frame: x to the right, y down, the ground (or water line) at y = 0, about one unit large.
Later shapes cover earlier ones; a pixel belongs to the part painted last on it, and so to that part's ancestors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Rng = np.random.Generator
Points = NDArray[np.float64]
Colour = NDArray[np.float64]

# category names: parts and subparts of each kind
PARTS: dict[str, tuple[str, ...]] = {
    "car": ("body", "window", "light", "wheel", "rim"),
    "house": ("wall", "roof", "chimney", "door", "knob", "window", "pane"),
    "person": ("head", "hair", "eye", "torso", "arm", "hand", "leg", "shoe"),
    "tree": ("trunk", "crown", "fruit"),
    "fish": ("body", "tail", "fin", "eye", "pupil"),
    "flower": ("stem", "leaf", "blossom", "petal", "centre", "pot"),
    "boat": ("hull", "porthole", "mast", "sail", "stripe", "flag"),
}


@dataclass(frozen=True)
class Shape:
    """One filled polygon. `texture` names a pattern of `textures.Grain`; `bump` is how round it is shaded."""

    node: int
    points: Points  # (N, 2) x, y
    colour: Colour  # RGB, 0..255
    texture: str = "cloth"
    bump: float = 1.0


@dataclass
class Figure:
    """Nodes (the whole is node 0) and shapes in painting order."""

    kind: str
    names: list[str] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    shapes: list[Shape] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.names.append(self.kind)
        self.parents.append(-1)

    def part(self, name: str, parent: int = 0) -> int:
        """A new part of the node `parent`; the number to paint with."""
        assert name in PARTS[self.kind], (self.kind, name)
        self.names.append(f"{self.kind}:{name}")
        self.parents.append(parent)
        return len(self.names) - 1

    def fill(
        self,
        node: int,
        points: Points | Sequence[tuple[float, float]],
        colour: Colour,
        texture: str = "cloth",
        bump: float = 1.0,
    ) -> None:
        """Paint a polygon."""
        self.shapes.append(Shape(node, np.asarray(points, dtype=np.float64), colour, texture, bump))


def rgb(rng: Rng, *choices: Sequence[float], spread: float = 14) -> Colour:
    """One of the colours, varied."""
    return np.asarray(choices[rng.integers(len(choices))], dtype=np.float64) + rng.uniform(-spread, spread, 3)


def any_colour(rng: Rng) -> Colour:
    """A vivid paint."""
    paints = (
        (196, 42, 40), (36, 84, 168), (232, 178, 42), (44, 128, 84), (226, 226, 222), (52, 56, 64), (222, 116, 40),
        (120, 60, 140), (92, 168, 198), (214, 96, 130),
    )  # fmt: skip
    return rgb(rng, *paints)


def box(x0: float, y0: float, x1: float, y1: float) -> Points:
    """Rectangle."""
    return np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], dtype=np.float64)


def ellipse(x: float, y: float, rx: float, ry: float | None = None, angle: float = 0.0) -> Points:
    """Ellipse of the given half axes, turned by `angle` in radians."""
    turn = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    across, up = rx * np.cos(turn), (rx if ry is None else ry) * np.sin(turn)
    cos, sin = np.cos(angle), np.sin(angle)
    return np.stack([x + across * cos - up * sin, y + across * sin + up * cos], axis=1)


def limb(start: Sequence[float], end: Sequence[float], width: float, end_width: float | None = None) -> Points:
    """Straight limb with round ends, `width` wide at its start."""
    first, last = np.asarray(start, dtype=np.float64), np.asarray(end, dtype=np.float64)
    heading = np.arctan2(*(last - first)[::-1])
    turn = np.linspace(np.pi / 2, 3 * np.pi / 2, 9) + heading
    cap = np.stack([np.cos(turn), np.sin(turn)], axis=1)
    return np.concatenate([first + cap * width / 2, last - cap * (width if end_width is None else end_width) / 2])


def smooth(points: Sequence[tuple[float, float]] | Points, steps: int = 6) -> Points:
    """Closed Catmull-Rom curve through the points."""
    p1 = np.asarray(points, dtype=np.float64)
    p0, p2, p3 = np.roll(p1, 1, 0), np.roll(p1, -1, 0), np.roll(p1, -2, 0)
    t = np.linspace(0, 1, steps, endpoint=False)[None, :, None]
    a, b, c, d = (p[:, None, :] for p in (p0, p1, p2, p3))
    curve = 0.5 * (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3)
    return curve.reshape(-1, 2)


def car(rng: Rng) -> Figure:
    """Saloon, hatchback or van, from the side."""
    figure = Figure("car")
    paint, glass = any_colour(rng), rgb(rng, (120, 160, 182), (70, 92, 108), (166, 194, 206))
    roof = rng.uniform(0.42, 0.47)
    rear, front, hood = [(0.16, 0.34, 0.82), (0.04, 0.12, 0.78), (0.02, 0.05, 0.86)][rng.integers(3)]
    nose = rng.uniform(0.24, 0.29)
    tail = nose + 0.02 if rear > 0.1 else roof - 0.05
    top = front + rng.uniform(0.30, 0.36) if hood < 0.85 else 0.70
    body = figure.part("body")
    outline = [(0.0, -0.11), (0.005, -tail + 0.03), (rear, -tail), (front, -roof), (top, -roof), (hood, -nose)]
    outline += [(0.965, -nose + 0.03), (1.0, -0.17), (0.99, -0.08), (0.5, -0.07), (0.02, -0.07)]
    figure.fill(body, smooth(_rounded(outline)), paint, bump=1.3)
    figure.fill(body, box(0.02, -0.125, 0.985, -0.105), paint * 0.55, bump=0.0)
    sill, lintel = -nose - 0.015, -roof + 0.035
    left = rear + (front - rear) * 0.55 + 0.03
    cuts = [left, (left + top) / 2 + 0.01, top + 0.005]
    for number, (x0, x1) in enumerate(pairwise(cuts)):
        lean_left = 0.05 if number == 0 and rear > 0.1 else 0.01
        lean_right = -(hood - top) * 0.62 if number == 1 else 0.0
        pane = [
            (x0 + lean_left, lintel),
            (x1 - 0.015, lintel),
            (x1 - 0.015 - lean_right, sill),
            (x0 - lean_left * 0.4, sill),
        ]
        figure.fill(figure.part("window"), pane, glass, bump=0.4)
    figure.fill(figure.part("light"), ellipse(0.955, -0.205, 0.032, 0.024), rgb(rng, (250, 240, 190)), bump=0.5)
    figure.fill(figure.part("light"), box(0.006, -0.24, 0.035, -0.18), rgb(rng, (190, 30, 30)), bump=0.3)
    radius, metal = rng.uniform(0.09, 0.105), rgb(rng, (178, 180, 186), (206, 206, 210), (120, 122, 130))
    for x in (0.2, 0.79):
        figure.fill(body, ellipse(x, -radius, radius * 1.16), paint * 0.22, bump=0.0)
        wheel = figure.part("wheel")
        figure.fill(wheel, ellipse(x, -radius, radius), rgb(rng, (34, 34, 38), spread=6), bump=0.8)
        rim = figure.part("rim", wheel)
        figure.fill(rim, ellipse(x, -radius, radius * 0.6), metal)
        _spokes(figure, rim, (x, -radius), radius * 0.5, metal * 0.45, rng)
    figure.shapes = [replace(shape, points=shape.points - (0.5, 0.0)) for shape in figure.shapes]  # drawn from the rear
    return figure


def _rounded(points: Sequence[tuple[float, float]], cut: float = 0.22) -> Points:
    """Cut every corner, so that a smooth curve through the points keeps their straight sides."""
    corners = np.asarray(points, dtype=np.float64)
    before, after = np.roll(corners, 1, 0) - corners, np.roll(corners, -1, 0) - corners
    return np.stack([corners + cut * before, corners + cut * after], axis=1).reshape(-1, 2)


def _spokes(figure: Figure, node: int, centre: tuple[float, float], reach: float, colour: Colour, rng: Rng) -> None:
    count, start = int(rng.integers(4, 7)), rng.uniform(0, np.pi)
    for turn in start + np.arange(count) * 2 * np.pi / count:
        middle = np.array(centre) + 0.62 * reach * np.array([np.cos(turn), np.sin(turn)])
        figure.fill(node, ellipse(middle[0], middle[1], reach * 0.3, reach * 0.17, turn), colour, bump=0.0)


def house(rng: Rng) -> Figure:
    """Gabled or hipped house with a door, windows and a chimney."""
    figure = Figure("house")
    wide, tall = rng.uniform(0.42, 0.52), rng.uniform(0.42, 0.55)
    top = tall + rng.uniform(0.26, 0.36)
    roof_paint = rgb(rng, (150, 62, 48), (92, 84, 92), (120, 84, 60), (70, 90, 104))
    wall_paint = rgb(rng, (228, 214, 186), (206, 190, 176), (190, 204, 210), (222, 186, 150), (196, 126, 100))
    chimney = figure.part("chimney")
    x = rng.uniform(0.12, 0.26) * rng.choice((-1, 1))
    figure.fill(chimney, box(x - 0.05, -top - 0.02, x + 0.05, -tall), rgb(rng, (150, 84, 66), (128, 122, 120)), "rows")
    wall = figure.part("wall")
    texture = str(rng.choice(("stone", "planks", "rows")))
    figure.fill(wall, box(-wide, -tall - 0.02, wide, 0), wall_paint, texture, bump=0.35)
    figure.fill(wall, box(-wide, -0.04, wide, 0), wall_paint * 0.7, bump=0.0)
    ridge = rng.choice((0.0, rng.uniform(0.12, 0.3)))
    eaves = wide + 0.06
    outline = [(-eaves, -tall + 0.02), (-ridge - 0.01, -top), (ridge + 0.01, -top), (eaves, -tall + 0.02)]
    figure.fill(figure.part("roof"), outline, roof_paint, "rows", bump=0.7)
    places = [-0.62, 0.0, 0.62]
    door_at = int(rng.integers(3))
    for number, place in enumerate(places):
        if number == door_at:
            _door(figure, place * wide, tall, rng)
        else:
            _window(figure, place * wide, -tall * 0.55, tall * rng.uniform(0.36, 0.46), rng)
    return figure


def _door(figure: Figure, x: float, tall: float, rng: Rng) -> None:
    door = figure.part("door")
    half, top = 0.085, tall * 0.66
    paint = rgb(rng, (112, 66, 40), (60, 92, 78), (140, 44, 44), (60, 74, 116))
    figure.fill(door, box(x - half, -top, x + half, 0), paint, "bark", bump=0.5)
    figure.fill(door, box(x - half * 0.6, -top * 0.88, x + half * 0.6, -top * 0.55), paint * 0.75, bump=0.0)
    figure.fill(figure.part("knob", door), ellipse(x + half * 0.6, -top * 0.45, 0.026), rgb(rng, (226, 192, 92)))


def _window(figure: Figure, x: float, y: float, side: float, rng: Rng) -> None:
    window = figure.part("window")
    half, gap = side / 2, side * 0.07
    figure.fill(window, box(x - half, y - half, x + half, y + half), rgb(rng, (240, 238, 230), (120, 80, 56)), bump=0.3)
    glass = rgb(rng, (96, 130, 160), (58, 74, 96), (240, 208, 120))
    middle = half - gap
    for dx, dy in ((-1, -1), (0, -1), (-1, 0), (0, 0)):
        x0, y0 = x + dx * middle + (dx + 1) * gap * 0.5, y + dy * middle + (dy + 1) * gap * 0.5
        pane = box(x0, y0, x0 + middle - gap * 0.5, y0 + middle - gap * 0.5)
        figure.fill(figure.part("pane", window), pane, glass * rng.uniform(0.85, 1.15), bump=0.3)


def person(rng: Rng) -> Figure:
    """Standing or waving figure with a large head."""
    figure = Figure("person")
    skin = rgb(rng, (236, 194, 160), (198, 144, 108), (142, 94, 66), (92, 60, 44))
    shirt, trousers = any_colour(rng), rgb(rng, (52, 66, 104), (70, 66, 62), (134, 112, 82), (44, 92, 84))
    stride = rng.uniform(0.03, 0.1)
    for side in (-1, 1):
        leg = figure.part("leg")
        figure.fill(leg, limb((side * 0.07, -0.42), (side * (0.06 + stride), -0.06), 0.125, 0.095), trousers)
        foot = side * (0.06 + stride) + 0.025
        figure.fill(
            figure.part("shoe", leg), ellipse(foot, -0.035, 0.085, 0.038), rgb(rng, (60, 40, 34), (210, 210, 212))
        )
    raised = rng.random() < 0.45
    for side in (-1, 1):
        up = raised and side == 1
        elbow = (side * 0.27, -0.62 if up else -0.50)
        wrist = (side * 0.30, -0.84) if up else (side * rng.uniform(0.22, 0.32), -0.37)
        arm = figure.part("arm")
        figure.fill(arm, limb((side * 0.14, -0.645), elbow, 0.10, 0.085), shirt * 0.9)
        figure.fill(arm, limb(elbow, wrist, 0.085, 0.075), shirt * 0.9)
        figure.fill(figure.part("hand", arm), ellipse(*wrist, 0.052), skin)
    torso = figure.part("torso")
    outline = [(-0.15, -0.70), (0.15, -0.70), (0.19, -0.62), (0.14, -0.38), (-0.14, -0.38), (-0.19, -0.62)]
    figure.fill(torso, smooth(_rounded(outline)), shirt, str(rng.choice(("cloth", "stripes", "planks"))))
    head = figure.part("head")
    figure.fill(head, box(-0.045, -0.74, 0.045, -0.68), skin * 0.85, bump=0.0)
    figure.fill(head, ellipse(0, -0.845, 0.125, 0.14), skin)
    hair = figure.part("hair", head)
    low = rng.uniform(-0.86, -0.76)
    shape = [(-0.135, low), (-0.145, -0.9), (-0.09, -0.995), (0.03, -1.01), (0.125, -0.95), (0.14, low - 0.02)]
    shape += [(0.105, -0.885), (0.02, -0.915), (-0.08, -0.89)]
    figure.fill(hair, smooth(shape), rgb(rng, (44, 32, 28), (120, 74, 40), (206, 168, 96), (150, 60, 36)), "bark")
    for side in (-1, 1):
        eye = figure.part("eye", head)
        figure.fill(eye, ellipse(side * 0.05, -0.845, 0.034, 0.036), np.array((248.0, 248, 244)), bump=0.2)
        figure.fill(eye, ellipse(side * 0.046, -0.842, 0.017, 0.021), np.array((34.0, 28, 30)), bump=0.0)
    smile = smooth([(-0.052, -0.79), (0, -0.77), (0.052, -0.79), (0, -0.748)])
    figure.fill(head, smile, skin * (0.78, 0.42, 0.42), bump=0.0)
    return figure


def tree(rng: Rng) -> Figure:
    """Fruit tree with a round or a long crown."""
    figure = Figure("tree")
    trunk, half = figure.part("trunk"), rng.uniform(0.045, 0.065)
    bark = rgb(rng, (104, 74, 52), (124, 104, 84), (86, 66, 56))
    outline = [
        (-half * 1.7, 0),
        (-half, -0.12),
        (-half * 0.8, -0.6),
        (half * 0.8, -0.6),
        (half, -0.12),
        (half * 1.7, 0),
    ]
    figure.fill(trunk, outline, bark, "bark", bump=1.2)
    for side in (-1, 1):
        figure.fill(trunk, limb((0, -0.33), (side * 0.17, -0.52), half, half * 0.5), bark, "bark")
    crown = figure.part("crown")
    leaves = rgb(rng, (66, 122, 50), (44, 100, 60), (116, 140, 50), (186, 112, 44))
    wide, tall, middle = rng.uniform(0.30, 0.40), rng.uniform(0.26, 0.32), -0.68
    turn = np.linspace(0, 2 * np.pi, 14, endpoint=False)
    wobble = 1 + rng.uniform(-0.09, 0.09, 14)
    edge = np.stack([wide * np.cos(turn) * wobble, middle + tall * np.sin(turn) * wobble], axis=1)
    figure.fill(crown, smooth(edge), leaves, "leaf", bump=1.0)
    for _ in range(7):  # clumps of leaves, lit from above
        angle, reach = rng.uniform(0, 2 * np.pi), rng.uniform(0.3, 0.72)
        x, y = wide * reach * np.cos(angle), middle + tall * reach * np.sin(angle)
        figure.fill(crown, ellipse(x, y, wide * 0.3, tall * 0.28), leaves * rng.uniform(0.9, 1.14), "leaf", bump=0.9)
    fruit = rgb(rng, (204, 38, 36), (236, 160, 40), (246, 214, 70))
    turns = np.linspace(0, 2 * np.pi, int(rng.integers(3, 7)), endpoint=False) + rng.uniform(0, 2 * np.pi)
    for angle in turns:
        reach = rng.uniform(0.35, 0.75)
        x, y = wide * reach * np.cos(angle), middle + tall * reach * np.sin(angle)
        figure.fill(figure.part("fruit", crown), ellipse(x, y, rng.uniform(0.034, 0.045)), fruit, bump=1.4)
    return figure


def fish(rng: Rng) -> Figure:
    """Fish, swimming to the right."""
    figure = Figure("fish")
    paint, second = any_colour(rng), any_colour(rng)
    tall = rng.uniform(0.19, 0.29)
    tail = figure.part("tail")
    spread = rng.uniform(0.17, 0.26)
    outline = [
        (-0.28, -0.03),
        (-0.40, -spread * 0.6),
        (-0.53, -spread),
        (-0.47, 0),
        (-0.53, spread),
        (-0.40, spread * 0.6),
    ]
    figure.fill(tail, smooth([*outline, (-0.28, 0.03)]), second, "bark")
    top = [(-0.14, -tall * 0.6), (-0.12, -tall - 0.10), (0.0, -tall - 0.13), (0.18, -tall * 0.7)]
    figure.fill(figure.part("fin"), smooth(_rounded(top)), second * 0.92, "bark")
    body = figure.part("body")
    outline = [
        (-0.34, 0),
        (-0.2, -tall * 0.62),
        (0.05, -tall),
        (0.28, -tall * 0.78),
        (0.44, -tall * 0.12),
        (0.45, tall * 0.1),
    ]
    outline += [(0.28, tall * 0.78), (0.05, tall), (-0.2, tall * 0.62)]
    figure.fill(body, smooth(outline), paint, str(rng.choice(("scales", "stripes", "cloth", "scales"))), bump=1.4)
    figure.fill(body, limb((0.36, tall * 0.28), (0.43, tall * 0.2), 0.014), paint * 0.4, bump=0.0)
    side = [(-0.02, 0.02), (-0.16, -0.03 + tall * 0.3), (-0.13, tall * 0.75), (0.06, tall * 0.42)]
    figure.fill(figure.part("fin"), smooth(side), second, "bark")
    eye = figure.part("eye")
    figure.fill(eye, ellipse(0.29, -tall * 0.32, 0.062), np.array((244.0, 244, 238)), bump=0.4)
    figure.fill(figure.part("pupil", eye), ellipse(0.3, -tall * 0.32, 0.035), np.array((24.0, 24, 30)), bump=0.2)
    return figure


def flower(rng: Rng) -> Figure:
    """One flower, from the ground or from a pot."""
    figure = Figure("flower")
    green = rgb(rng, (70, 128, 58), (96, 140, 62), (54, 112, 72))
    potted = rng.random() < 0.45
    base = -0.2 if potted else 0.0
    bend = rng.uniform(-0.05, 0.05)
    stem = figure.part("stem")
    figure.fill(stem, limb((0, base), (bend, -0.45), 0.05, 0.042), green)
    figure.fill(stem, limb((bend, -0.45), (0, -0.7), 0.042, 0.04), green)
    for side in (-1, 1):
        lean, y = side * rng.uniform(0.45, 0.8), base - rng.uniform(0.12, 0.2)
        figure.fill(
            figure.part("leaf"),
            ellipse(side * 0.12, y - abs(lean) * 0.1, 0.13, 0.05, -lean),
            green * rng.uniform(0.85, 1.1),
            bump=1.2,
        )
    if potted:
        pot, clay = figure.part("pot"), rgb(rng, (186, 104, 66), (120, 132, 146), (206, 196, 178))
        figure.fill(pot, [(-0.14, -0.18), (0.14, -0.18), (0.10, 0), (-0.10, 0)], clay, "stone", bump=1.2)
        figure.fill(pot, box(-0.165, -0.235, 0.165, -0.165), clay * 1.08, "stone", bump=0.6)
    _blossom(figure, (0.0, -0.76), rng)
    return figure


def _blossom(figure: Figure, centre: tuple[float, float], rng: Rng) -> None:
    blossom, reach, count = figure.part("blossom"), rng.uniform(0.14, 0.165), int(rng.integers(5, 8))
    paint = rgb(rng, (232, 84, 120), (240, 232, 226), (246, 196, 50), (150, 88, 190), (218, 54, 50), (92, 120, 214))
    start = rng.uniform(0, np.pi)
    for turn in start + np.arange(count) * 2 * np.pi / count:
        middle = np.array(centre) + reach * np.array((np.cos(turn), np.sin(turn)))
        petal = ellipse(middle[0], middle[1], reach * 0.72, reach * 1.9 / count * 1.25, turn)
        figure.fill(figure.part("petal", blossom), petal, paint * rng.uniform(0.9, 1.06), bump=1.2)
    heart = rgb(rng, (240, 190, 50), (110, 70, 40))
    figure.fill(figure.part("centre", blossom), ellipse(*centre, reach * 0.62), heart, "leaf", bump=1.4)


def boat(rng: Rng) -> Figure:
    """Sailing boat."""
    figure = Figure("boat")
    paint, cloth, second = any_colour(rng), rgb(rng, (240, 236, 226), (236, 220, 190), (222, 90, 70)), any_colour(rng)
    lean = rng.uniform(-0.02, 0.02)
    mast, top = figure.part("mast"), -rng.uniform(0.9, 1.0)
    figure.fill(mast, limb((0, -0.1), (lean, top), 0.034, 0.026), rgb(rng, (116, 82, 56), (190, 186, 180)))
    flag = [(lean, top), (lean - 0.16, top + 0.05), (lean, top + 0.1)]
    figure.fill(figure.part("flag"), flag, second)
    for side, reach, high in ((1, rng.uniform(0.36, 0.44), top + 0.08), (-1, rng.uniform(0.24, 0.34), top + 0.2)):
        sail = figure.part("sail")
        luff, clew, peak = (side * 0.03, -0.25), (side * reach, -0.25), (lean + side * 0.03, high)
        bulge = (side * reach * 0.72, (high - 0.25) * 0.48)
        figure.fill(sail, smooth(_rounded([luff, clew, bulge, peak], 0.12)), cloth * (1.0 if side > 0 else 0.93))
        if side > 0:
            low, up = -0.34, -0.43
            at = [
                side * (0.045 + (reach - 0.04) * (1 - (abs(y) - 0.25) / (abs(high) - 0.25)) ** 0.75) for y in (low, up)
            ]
            band = [(side * 0.045, low), (at[0], low), (at[1], up), (side * 0.045, up)]
            figure.fill(figure.part("stripe", sail), band, second)
    hull = figure.part("hull")
    outline = [(-0.5, -0.2), (0.52, -0.22), (0.40, -0.04), (0.3, 0.0), (-0.36, 0.0), (-0.44, -0.06)]
    figure.fill(hull, smooth(_rounded(outline, 0.16)), paint, "planks", bump=1.1)
    figure.fill(hull, limb((-0.49, -0.2), (0.5, -0.215), 0.035), paint * 0.6, bump=0.0)
    for x in np.linspace(-0.24, 0.24, int(rng.integers(2, 5))):
        figure.fill(figure.part("porthole", hull), ellipse(x, -0.105, 0.038), rgb(rng, (180, 214, 226)), bump=0.5)
    return figure


FIGURES: dict[str, Callable[[Rng], Figure]] = {
    "car": car, "house": house, "person": person, "tree": tree, "fish": fish, "flower": flower, "boat": boat,
}  # fmt: skip
