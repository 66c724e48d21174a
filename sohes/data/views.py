"""Views: crops of an image with their geometry on record, drawn by seed and position alone (README §4)."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sohes.data.images import ImageArray
from sohes.rle import IntArray


def sample_rng(seed: int, position: int) -> np.random.Generator:
    """Random numbers of the sample at `position`, counted over all epochs: whichever worker, also after a resume."""
    return np.random.default_rng([seed, 2, position])


def epoch_order(seed: int, epoch: int, count: int) -> IntArray:
    """The order (count,) in which an epoch goes through its images."""
    return np.random.default_rng([seed, 1, epoch]).permutation(count)


@dataclass(frozen=True)
class View:
    """A rectangle of an image at another size, mirrored or not.

    Coordinates are continuous, x to the right and y down, in px: pixel (row, column) is the square that begins at
    (column, row).

    Attributes:
        left, top, width, height: the rectangle in the image.
        size_hw: of the view in px.
        flipped: mirrored from left to right, after the crop.
    """

    left: float
    top: float
    width: float
    height: float
    size_hw: tuple[int, int]
    flipped: bool

    @classmethod
    def jittered(
        cls,
        size_hw: tuple[int, int],
        rng: np.random.Generator,
        *,
        canvas_px: int,
        scale: tuple[float, float],
        flip: float,
    ) -> View:
        """Large-scale jitter (Ghiasi et al., Simple Copy-Paste, 2021).

        Args:
            size_hw: of the image in px.
            rng: that it is drawn from.
            canvas_px: sides of the square that the view fits in.
            scale: lowest and highest multiple of the canvas to which the image's long side is scaled; of what is larger
                than the canvas a part is cut out.
            flip: probability of a mirrored view.
        """
        height, width = size_hw
        zoom = rng.uniform(*scale) * canvas_px / max(size_hw)
        cut_h, cut_w = min(height, canvas_px / zoom), min(width, canvas_px / zoom)
        top, left = rng.uniform(0, height - cut_h), rng.uniform(0, width - cut_w)
        out = tuple(min(canvas_px, max(1, round(side * zoom))) for side in (cut_h, cut_w))
        return cls(left, top, cut_w, cut_h, (out[0], out[1]), bool(rng.random() < flip))

    @property
    def affine(self) -> NDArray[np.float64]:
        """Map A (2, 3) from the image to the view: (x', y') = A @ (x, y, 1)."""
        height, width = self.size_hw
        across, down = width / self.width, height / self.height
        to_right = [across, 0.0, -across * self.left]
        if self.flipped:
            to_right = [-across, 0.0, width + across * self.left]
        return np.array([to_right, [0.0, down, -down * self.top]])

    @property
    def area_scale(self) -> float:
        """Pixels of the view per pixel of the image."""
        return self.size_hw[0] * self.size_hw[1] / (self.height * self.width)

    def pixels(self, image: ImageArray) -> ImageArray:
        """The view (h, w, 3) of an image (H, W, 3) uint8, bicubic."""
        box = (self.left, self.top, self.left + self.width, self.top + self.height)
        height, width = self.size_hw
        cut = np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC, box=box))
        return np.asarray(cv2.flip(cut, 1), np.uint8) if self.flipped else cut

    def grid(self, size_hw: tuple[int, int]) -> tuple[IntArray, IntArray]:
        """Rows (h,) and columns (w,) of an image of size `size_hw` in which the centres of the view's pixels lie."""
        height, width = self.size_hw
        rows = (self.top + (np.arange(height) + 0.5) * self.height / height).astype(int).clip(0, size_hw[0] - 1)
        columns = (self.left + (np.arange(width) + 0.5) * self.width / width).astype(int).clip(0, size_hw[1] - 1)
        return rows, columns[::-1] if self.flipped else columns
