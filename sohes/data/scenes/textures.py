"""Procedural surfaces of the generated scenes: noise, and the stuff regions behind the objects.

A surface is (H, W, 3) float32 RGB, 0..255 (values may run over; the picture is clipped at the end).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

FloatImage = NDArray[np.float32]
Colour = Sequence[float] | NDArray[np.float32]
Rng = np.random.Generator


def noise(rng: Rng, size_hw: tuple[int, int], cell_hw: tuple[float, float], *, octaves: int = 1) -> FloatImage:
    """Smooth noise (H, W), mean 0 and deviation about 1; `cell_hw` is the height and width in px of its blobs."""
    height, width = size_hw
    total = np.zeros(size_hw, dtype=np.float32)
    power = 0.0
    for octave in range(octaves):
        rows, columns = (
            max(2, int(np.ceil(side / cell * 2**octave)) + 1) for side, cell in zip(size_hw, cell_hw, strict=True)
        )
        grid = rng.standard_normal((min(rows, height), min(columns, width)), dtype=np.float32)
        total += cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC) * 0.5**octave
        power += 0.25**octave
    return total / np.float32(0.88 * np.sqrt(power))  # interpolation leaves about 0.88 of the deviation


def _mix(low: Colour, high: Colour, weight: FloatImage) -> FloatImage:
    """Blend two colours by `weight` (H, W), or (H, 1), 0..1."""
    first, second = np.asarray(low, np.float32), np.asarray(high, np.float32)
    return first + (second - first) * weight[..., None]


def _towards(image: FloatImage, grey: float, weight: NDArray[Any]) -> FloatImage:
    """Blend an image with a grey by `weight` (H, W), 0..1."""
    return image + (np.float32(grey) - image) * weight[..., None].astype(np.float32)


def _ramp(size_hw: tuple[int, int]) -> FloatImage:
    """0 at the top to 1 at the bottom, (H, W)."""
    return np.repeat(np.linspace(0, 1, size_hw[0], dtype=np.float32)[:, None], size_hw[1], axis=1)


def _pick(rng: Rng, choices: Sequence[Sequence[float]]) -> NDArray[np.float32]:
    colour = np.asarray(choices[int(rng.integers(len(choices)))], dtype=np.float32)
    return colour + rng.uniform(-10, 10, 3).astype(np.float32)


def sky(rng: Rng, size_hw: tuple[int, int]) -> FloatImage:
    """Gradient with soft clouds."""
    top = _pick(rng, [(70, 130, 205), (95, 150, 215), (110, 135, 175), (105, 110, 160)])
    low = _pick(rng, [(200, 222, 238), (232, 214, 190), (215, 220, 222)])
    base = _mix(top, low, _ramp(size_hw))
    unit = max(size_hw)
    cloud = noise(rng, size_hw, (unit * 0.16, unit * 0.4), octaves=4)
    cover = np.clip((cloud - rng.uniform(0.0, 1.2)) * 0.6, 0, 0.85)
    return _towards(base, 248, cover)


def grass(rng: Rng, size_hw: tuple[int, int]) -> FloatImage:
    """Blades over lighter and darker patches."""
    unit = max(size_hw)
    dark, light = _pick(rng, [(62, 110, 42), (86, 118, 44), (52, 98, 56)]), _pick(rng, [(128, 168, 72), (150, 166, 80)])
    patches = noise(rng, size_hw, (unit * 0.07, unit * 0.22), octaves=3) * 0.16
    blades = noise(rng, size_hw, (7, 2)) * 0.17
    return _mix(dark, light, np.clip(0.42 + patches + blades + 0.12 * _ramp(size_hw), 0, 1.2))


def hill(rng: Rng, size_hw: tuple[int, int]) -> FloatImage:
    """Wooded or rocky slope, hazy from far away."""
    unit = max(size_hw)
    dark, light = (
        [(48, 76, 60), (96, 124, 96)],
        [(92, 84, 78), (158, 148, 136)],
        [(66, 82, 104), (128, 146, 164)],
    )[rng.integers(3)]
    lumps = noise(rng, size_hw, (unit * 0.05, unit * 0.06), octaves=4) * 0.3
    return _mix(dark, light, np.clip(0.45 + lumps, 0, 1.1)) + 12 * (1 - _ramp(size_hw))[..., None]


def sand(rng: Rng, size_hw: tuple[int, int]) -> FloatImage:
    """Grains and wind ripples."""
    unit = max(size_hw)
    base = _pick(rng, [(214, 188, 140), (226, 206, 166), (198, 168, 124)])
    rows = np.arange(size_hw[0], dtype=np.float32)[:, None]
    warp = noise(rng, size_hw, (unit * 0.1, unit * 0.2), octaves=2)
    ripples = np.sin(rows * (2 * np.pi / (unit * rng.uniform(0.03, 0.05))) + 2.2 * warp)
    field = 1 + 0.035 * ripples + 0.05 * warp + 0.045 * noise(rng, size_hw, (2, 2))
    return base * field[..., None].astype(np.float32)


def water(rng: Rng, size_hw: tuple[int, int]) -> FloatImage:
    """Waves, wider towards the viewer, with light crests."""
    unit = max(size_hw)
    deep, light = (
        _pick(rng, [(22, 84, 128), (18, 106, 124), (44, 92, 110)]),
        _pick(rng, [(84, 168, 196), (110, 176, 186)]),
    )
    waves = noise(rng, size_hw, (unit * 0.022, unit * 0.12), octaves=2)
    swell = noise(rng, size_hw, (unit * 0.1, unit * 0.5), octaves=2)
    base = _mix(deep, light, np.clip(0.4 + 0.13 * waves + 0.14 * swell, 0, 1.1))
    crest = np.clip(waves - 1.4, 0, 1) * 0.55
    return _towards(base, 238, crest)


def deep_water(rng: Rng, size_hw: tuple[int, int]) -> FloatImage:
    """Water from within: darker downwards, with slanting light and drifting specks."""
    unit = max(size_hw)
    top, low = _pick(rng, [(70, 176, 200), (84, 170, 176), (62, 150, 204)]), _pick(rng, [(12, 62, 104), (16, 76, 96)])
    base = _mix(top, low, _ramp(size_hw) ** 0.8)
    columns = np.arange(size_hw[1], dtype=np.float32)[None, :] + _ramp(size_hw) * unit * rng.uniform(-0.5, 0.5)
    beams = np.sin(columns * (2 * np.pi / (unit * 0.21))) + np.sin(columns * (2 * np.pi / (unit * 0.13)) + 1.3)
    field = (
        np.clip(beams, 0, 2) * (1 - _ramp(size_hw)) * 18 + noise(rng, size_hw, (unit * 0.1, unit * 0.2), octaves=3) * 6
    )
    specks = (noise(rng, size_hw, (3, 3)) > 3.2) * 40
    return (base + (field + specks)[..., None]).astype(np.float32)


def road(rng: Rng, size_hw: tuple[int, int]) -> FloatImage:
    """Asphalt with a dashed line."""
    height, width = size_hw
    unit = max(size_hw)
    grain = noise(rng, size_hw, (2, 2)) * 7 + noise(rng, size_hw, (unit * 0.05, unit * 0.2), octaves=3) * 6
    base = (rng.uniform(84, 128) + grain).astype(np.float32)
    y, thick = int(height * rng.uniform(0.45, 0.6)), max(2, int(unit * 0.012))
    dash, start = int(unit * rng.uniform(0.14, 0.2)), int(rng.integers(unit // 5))
    dashes = (np.arange(width) + start) % (2 * dash) < dash
    base[y : y + thick, dashes] = 205 + grain[y : y + thick, dashes]
    return np.repeat(base[..., None], 3, axis=2)


def _courses(
    rng: Rng, size_hw: tuple[int, int], brick_hw: tuple[int, int], gap: int
) -> tuple[FloatImage, NDArray[np.bool_]]:
    """A value in 0..1 for each brick of a running bond, and the joints between them; both (H, W)."""
    height, width = size_hw
    tall, wide = brick_hw
    rows, columns = np.arange(height)[:, None], np.arange(width)[None, :]
    course = rows // tall
    along = columns + (course % 2) * (wide // 2)
    value = rng.random((height // tall + 1, width // wide + 2), dtype=np.float32)
    return value[course, along // wide], (rows % tall < gap) | (along % wide < gap)


def brick(rng: Rng, size_hw: tuple[int, int]) -> FloatImage:
    """Brick wall with mortar joints."""
    unit = max(size_hw)
    tall = int(unit * rng.uniform(0.035, 0.055))
    value, joints = _courses(rng, size_hw, (tall, int(tall * rng.uniform(2.0, 2.6))), max(2, tall // 7))
    dark, light = (
        [(136, 62, 46), (190, 104, 78)],
        [(150, 112, 82), (206, 170, 132)],
        [(116, 76, 72), (160, 118, 108)],
    )[rng.integers(3)]
    face = _mix(dark, light, value)
    face[joints] = rng.uniform(168, 206)
    field = noise(rng, size_hw, (3, 3)) * 7 + noise(rng, size_hw, (unit * 0.1, unit * 0.1), octaves=2) * 5
    return face + field[..., None]


def wood(rng: Rng, size_hw: tuple[int, int], *, upright: bool = True) -> FloatImage:
    """Planks with grain, upright (a fence) or lying (a deck)."""
    height, width = size_hw if upright else size_hw[::-1]
    unit = max(size_hw)
    plank = int(unit * rng.uniform(0.055, 0.085))
    columns = np.arange(width)
    tone = (rng.random(width // plank + 1, dtype=np.float32) - 0.5)[columns // plank][None, :]
    grain = noise(rng, (height, width), (unit * 0.3, 4), octaves=2)
    dark, light = ([(96, 62, 36), (176, 126, 80)], [(120, 98, 78), (188, 166, 140)], [(112, 66, 44), (172, 106, 70)])[
        rng.integers(3)
    ]
    face = _mix(dark, light, np.clip(0.55 + 0.45 * tone + 0.13 * grain, 0, 1.1))
    face[:, columns % plank < max(2, plank // 12)] *= 0.45
    return face if upright else np.ascontiguousarray(face.transpose(1, 0, 2))


def deck(rng: Rng, size_hw: tuple[int, int]) -> FloatImage:
    """Lying planks."""
    return wood(rng, size_hw, upright=False)


SURFACES: dict[str, Callable[[Rng, tuple[int, int]], FloatImage]] = {
    "sky": sky, "hill": hill, "grass": grass, "sand": sand, "water": water, "deep_water": deep_water,
    "road": road, "brick": brick, "wood": wood, "deck": deck,
}  # fmt: skip


class Grain:
    """Noise and patterns for the surface of an object, cut at random places from sheets made once a scene."""

    def __init__(self, rng: Rng, side: int) -> None:
        self._rng = rng
        self._side = side
        self._sheets = {
            "cloth": noise(rng, (side, side), (2, 2)) * 0.03,
            "leaf": noise(rng, (side, side), (side * 0.016, side * 0.016), octaves=2) * 0.16,
            "bark": noise(rng, (side, side), (side * 0.06, side * 0.007), octaves=2) * 0.13,
            "stone": noise(rng, (side, side), (side * 0.03, side * 0.03), octaves=3) * 0.06,
        }

    def cut(self, name: str, size_hw: tuple[int, int], pitch: float) -> FloatImage:
        """Relative brightness (H, W) about 0 of the pattern `name`; `pitch` is its repeat in px."""
        if name in self._sheets:
            # a cut larger than the sheet repeats it
            starts = [self._rng.integers(max(1, self._side - length + 1)) for length in size_hw]
            rows, columns = (
                (np.arange(length) + start) % self._side for length, start in zip(size_hw, starts, strict=True)
            )
            return self._sheets[name][np.ix_(rows, columns)]
        height, width = size_hw
        y, x = np.arange(height, dtype=np.float32)[:, None], np.arange(width, dtype=np.float32)[None, :]
        if name == "planks":
            return np.where(y % pitch < max(1.5, pitch * 0.14), np.float32(-0.16), np.float32(0.02)) + 0 * x
        if name == "scales":
            return (0.09 * np.sin(2 * np.pi * (x + y) / pitch) * np.sin(2 * np.pi * (x - y) / pitch)).astype(np.float32)
        if name == "stripes":
            return np.where((x + 0.25 * y) % (2 * pitch) < pitch, np.float32(0.14), np.float32(-0.22))
        if name == "rows":
            tall = max(4, int(pitch))
            value, joints = _courses(self._rng, size_hw, (tall, int(tall * 1.6)), max(1, tall // 6))
            return np.where(joints, np.float32(-0.18), (value - 0.5) * 0.18)
        raise ValueError(f"no pattern '{name}'")
