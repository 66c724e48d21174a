"""The canvas of the generated scenes: paints stuff and figures, and remembers whose each pixel is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from sohes.data.scenes.figures import Figure, Points, Shape
from sohes.data.scenes.textures import SURFACES, FloatImage, Grain, Rng, noise
from sohes.rle import IntArray


@dataclass(frozen=True)
class Band:
    """A stuff region from `top` down; `waves` is the height of its border's waves. All in image sides."""

    stuff: str
    surface: str
    top: tuple[float, float] = (0.0, 0.0)
    waves: float = 0.0


class Canvas:
    """Picture and owner of each pixel while a scene is painted, at twice the final size."""

    def __init__(self, rng: Rng, side: int) -> None:
        self.rng, self.side = rng, side
        self.colour = np.zeros((side, side, 3), dtype=np.float32)
        self.owner = np.full((side, side), -1, dtype=np.int32)
        self.names: list[str] = []
        self.parents: list[int] = []
        self.full: list[int] = []  # pixels of each node alone, without what covers it and beyond the frame
        self.grain = Grain(rng, side)
        self.light = np.array((rng.choice((-1.0, 1.0)) * rng.uniform(0.4, 0.8), -0.8), dtype=np.float32)

    def paint_bands(self, bands: Sequence[Band]) -> None:
        """Fill the canvas with stuff, from the top down. What a lower band covers never was there."""
        for band in bands:
            self._paint_band(band)
        self.full = np.bincount(self.owner.ravel(), minlength=len(self.names)).tolist()

    def _paint_band(self, band: Band) -> None:
        side = self.side
        top = self.rng.uniform(*band.top) * side
        border = np.full(side, top, dtype=np.float32)
        if band.waves:
            wave = noise(self.rng, (2, side), (2, side * 0.25), octaves=3)[0]
            border += wave * np.float32(band.waves * side * 0.5)
        first = max(0, int(border.min()))
        below = np.arange(first, side, dtype=np.float32)[:, None] >= border[None, :]
        surface = SURFACES[band.surface](self.rng, (side - first, side))
        np.copyto(self.colour[first:], surface, where=below[..., None])
        np.copyto(self.owner[first:], self._node(band.stuff, -1, 0), where=below)

    def paint_figure(self, figure: Figure, place: Points, *, shadow: bool) -> None:
        """Paint a figure; `place` (3, 2) maps its frame to canvas px: two columns of a linear map, then the origin."""
        shapes = [(shape, shape.points @ place[:2] + place[2]) for shape in figure.shapes]
        everything = np.concatenate([points for _, points in shapes])
        low = np.floor(everything.min(0)).astype(int) - 1
        high = np.ceil(everything.max(0)).astype(int) + 2
        wide, tall = high - low
        colour = np.zeros((tall, wide, 3), dtype=np.float32)
        owner = np.full((tall, wide), -1, dtype=np.int32)
        unit = float(np.sqrt(abs(np.linalg.det(place[:2]))))
        for shape, points in shapes:
            self._fill(colour, owner, shape, points - low, unit)
        if shadow:
            self._shadow(place[2], (wide * 0.46, unit * 0.055))
        self._paste(figure, colour, owner, low)

    def _fill(self, colour: FloatImage, owner: NDArray[np.int32], shape: Shape, points: Points, unit: float) -> None:
        low = np.maximum(np.floor(points.min(0)).astype(int), 0)
        high = np.ceil(points.max(0)).astype(int) + 1
        mask = np.zeros((high - low)[::-1], dtype=np.uint8)
        cv2.fillPoly(mask, [np.round((points - low) * 16).astype(np.int32)], 1, shift=4)
        field = 1 + self.grain.cut(shape.texture, mask.shape, max(3.0, unit * 0.07))
        if shape.bump:
            field = field + shape.bump * self._relief(mask)
        window = np.s_[low[1] : low[1] + mask.shape[0], low[0] : low[0] + mask.shape[1]]
        inside = mask.astype(bool)
        colour[window][inside] = field[inside][:, None] * shape.colour.astype(np.float32)
        owner[window][inside] = shape.node

    def _relief(self, mask: NDArray[np.uint8]) -> FloatImage:
        """Brightness of a cushion of that outline, lit from above and one side; darker towards its rim."""
        reach = max(1, int(0.16 * np.sqrt(mask.sum())))
        padded = cv2.copyMakeBorder(mask, reach, reach, reach, reach, cv2.BORDER_CONSTANT).astype(np.float32)
        height = cv2.blur(cv2.blur(padded, (2 * reach + 1,) * 2), (2 * reach + 1,) * 2)
        slope = np.stack([cv2.Sobel(height, -1, 1, 0, scale=1 / 8), cv2.Sobel(height, -1, 0, 1, scale=1 / 8)], axis=-1)
        relief = -(slope @ self.light) * (reach * 0.62) + 0.22 * (height - 0.85)
        return np.ascontiguousarray(relief[reach : reach + mask.shape[0], reach : reach + mask.shape[1]])

    def _shadow(self, foot: Points, half_axes: tuple[float, float]) -> None:
        shade = np.zeros((self.side, self.side), dtype=np.uint8)
        centre = (round(float(foot[0] - self.light[0] * half_axes[0] * 0.25)), round(float(foot[1])))
        cv2.ellipse(shade, centre, (round(half_axes[0]), max(2, round(half_axes[1]))), 0, 0, 360, 255, -1)
        rows = np.flatnonzero(shade.any(1))
        if len(rows) == 0:
            return
        reach = max(3, int(half_axes[1] * 0.9))
        window = np.s_[max(0, rows[0] - reach) : rows[-1] + reach + 1]
        soft = cv2.blur(shade[window], (2 * reach + 1,) * 2).astype(np.float32)
        self.colour[window] *= (1 - soft * np.float32(0.5 / 255))[..., None]

    def _paste(self, figure: Figure, colour: FloatImage, owner: NDArray[np.int32], low: IntArray) -> None:
        counts = np.bincount(owner[owner >= 0], minlength=len(figure.names))
        first = len(self.names)
        for node, (name, parent) in enumerate(zip(figure.names, figure.parents, strict=True)):
            self._node(name, parent + first if parent >= 0 else -1, int(counts[node]))
        y0, x0 = max(0, low[1]), max(0, low[0])
        y1, x1 = min(self.side, low[1] + owner.shape[0]), min(self.side, low[0] + owner.shape[1])
        if y1 <= y0 or x1 <= x0:
            return
        source = np.s_[y0 - low[1] : y1 - low[1], x0 - low[0] : x1 - low[0]]
        seen = owner[source] >= 0
        self.colour[y0:y1, x0:x1][seen] = colour[source][seen]
        self.owner[y0:y1, x0:x1][seen] = owner[source][seen] + first

    def _node(self, name: str, parent: int, full: int) -> int:
        self.names.append(name)
        self.parents.append(parent)
        self.full.append(full)
        return len(self.names) - 1
