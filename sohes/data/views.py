"""Views: crops of an image with their geometry on record, drawn by seed and position alone (README §4)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sohes.data.images import ImageArray
from sohes.rle import IntArray

_CROP_ATTEMPTS = 10  # draws of a rectangle that fits, as torchvision makes
_OVERLAP_ATTEMPTS = 50  # draws of a crop that overlaps the others enough


def sample_rng(seed: int, position: int) -> np.random.Generator:
    """Random numbers of the sample at `position`, counted over all epochs: whichever worker, also after a resume."""
    return np.random.default_rng([seed, 2, position])


@lru_cache(maxsize=2)
def epoch_order(seed: int, epoch: int, count: int) -> IntArray:
    """The order (count,) in which an epoch goes through its images; kept, since each of its samples asks for it."""
    order = np.random.default_rng([seed, 1, epoch]).permutation(count)
    order.setflags(write=False)
    return order


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

    @classmethod
    def resized_crop(
        cls,
        size_hw: tuple[int, int],
        rng: np.random.Generator,
        *,
        side_px: int,
        area: tuple[float, float],
        aspect: tuple[float, float] = (3 / 4, 4 / 3),
    ) -> View:
        """A random resized crop: a rectangle of whole pixels brought to a square, as torchvision's RandomResizedCrop.

        Args:
            size_hw: of the image in px.
            rng: that it is drawn from.
            side_px: of the view.
            area: of the rectangle as a share of the image's, lowest and highest.
            aspect: width over height of the rectangle, lowest and highest, drawn evenly in its logarithm; a long
                image, in which ten draws did not fit, gives its middle at the nearest ratio.
        """
        height, width = size_hw
        flat, tall = math.log(aspect[1]), math.log(aspect[0])
        for _ in range(_CROP_ATTEMPTS):
            target, ratio = rng.uniform(*area) * height * width, math.exp(rng.uniform(tall, flat))
            w, h = round(math.sqrt(target * ratio)), round(math.sqrt(target / ratio))
            if 0 < w <= width and 0 < h <= height:
                left, top = int(rng.integers(0, width - w + 1)), int(rng.integers(0, height - h + 1))
                return cls(left, top, w, h, (side_px, side_px), False)
        w, h = min(width, max(1, round(height * aspect[1]))), min(height, max(1, round(width / aspect[0])))
        return cls((width - w) // 2, (height - h) // 2, w, h, (side_px, side_px), False)

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

    def pixels(self, image: ImageArray, resampling: Image.Resampling = Image.Resampling.BICUBIC) -> ImageArray:
        """The view (h, w, 3) of an image (H, W, 3) uint8."""
        box = (self.left, self.top, self.left + self.width, self.top + self.height)
        height, width = self.size_hw
        cut = np.asarray(Image.fromarray(image).resize((width, height), resampling, box=box))
        return np.asarray(cv2.flip(cut, 1), np.uint8) if self.flipped else cut

    def grid(self, size_hw: tuple[int, int]) -> tuple[IntArray, IntArray]:
        """Rows (h,) and columns (w,) of an image of size `size_hw` in which the centres of the view's pixels lie."""
        height, width = self.size_hw
        rows = (self.top + (np.arange(height) + 0.5) * self.height / height).astype(int).clip(0, size_hw[0] - 1)
        columns = (self.left + (np.arange(width) + 0.5) * self.width / width).astype(int).clip(0, size_hw[1] - 1)
        return rows, columns[::-1] if self.flipped else columns

    def shared_box(self, other: View) -> NDArray[np.float64]:
        """What `other`, of the same image, shows of this view: xyxy in px of this view; refused where that is nothing.

        Raises:
            ValueError: the two views do not overlap.
        """
        left, top = max(self.left, other.left), max(self.top, other.top)
        right = min(self.left + self.width, other.left + other.width)
        bottom = min(self.top + self.height, other.top + other.height)
        if right <= left or bottom <= top:
            raise ValueError(f"{self} and {other} do not overlap")
        corners = self.affine[:, :2] @ [[left, right], [top, bottom]] + self.affine[:, 2:]
        return np.concatenate([corners.min(1), corners.max(1)])


def overlap_px(view: View, other: View) -> float:
    """Pixels of the image that two views of it share."""
    across = min(view.left + view.width, other.left + other.width) - max(view.left, other.left)
    down = min(view.top + view.height, other.top + other.height) - max(view.top, other.top)
    return max(0.0, across) * max(0.0, down)


def overlapping_crop(
    size_hw: tuple[int, int],
    rng: np.random.Generator,
    others: Sequence[View],
    *,
    min_share: float,
    side_px: int,
    area: tuple[float, float],
) -> View:
    """A random resized crop that overlaps each of `others` in more than `min_share` of the image's area.

    Drawn up to 50 times; the last draw is then moved so that its middle is that of what the others share, which makes
    it overlap them all, perhaps in less. The others overlap one another.
    """
    floor = int(size_hw[0] * size_hw[1] * min_share)
    for _ in range(_OVERLAP_ATTEMPTS):
        view = View.resized_crop(size_hw, rng, side_px=side_px, area=area)
        if all(overlap_px(view, other) > floor for other in others):
            return view
    left, top = max(other.left for other in others), max(other.top for other in others)
    right = min(other.left + other.width for other in others)
    bottom = min(other.top + other.height for other in others)
    left = min(max((left + right - view.width) // 2, 0), size_hw[1] - view.width)
    top = min(max((top + bottom - view.height) // 2, 0), size_hw[0] - view.height)
    return replace(view, left=left, top=top)
