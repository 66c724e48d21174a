"""Boundary refinement of soft masks behind one interface, and the tidying of what comes out (§2.5 and 2.6).

A refiner is made once per feature map and called once per mask. It sees a mask through a window of the image: an array
and its top-left corner, so that a small mask costs little however large the image is.
"""

from __future__ import annotations

from typing import Protocol

import cv2
import numba
import numpy as np
from numpy.typing import NDArray

from sohes.errors import ConfigError, unknown_name
from sohes.masks import BoolArray, IntArray

FloatImage = NDArray[np.float32]
ByteImage = NDArray[np.uint8]


class Refiner(Protocol):
    """Turns soft masks of one image into binary ones.

    Attributes:
        margin: pixels by which a window must reach beyond the soft mask's non-zero pixels, or else end with the image.
    """

    margin: int

    def __call__(self, soft: FloatImage, corner: tuple[int, int]) -> BoolArray:
        """The binary mask in the same window.

        Args:
            soft: (h, w) float32 in [0, 1], a window of the soft mask, which is 0 outside.
            corner: (top, left) of the window in the image.
        """


def make_refiner(
    name: str, image: ByteImage, patch_px: float, *, area: tuple[int, int, int, int] | None = None
) -> Refiner:
    """A refiner for the masks of one feature map.

    Args:
        name: "guided" or "none".
        image: (H, W, 3) uint8 RGB, the whole image.
        patch_px: side of a feature patch in pixels of the image.
        area: (top, left, height, width) of the part of the image that the feature map shows; default all of it.

    Raises:
        ConfigError: no such refiner.
    """
    if name not in _REFINERS:
        raise ConfigError(unknown_name("refiner", name, _REFINERS))
    return _REFINERS[name](image, patch_px, area or (0, 0, *image.shape[:2]))


class Threshold:
    """No refinement: the soft mask at 0.5."""

    margin = 0

    def __init__(self, image: ByteImage, patch_px: float, area: tuple[int, int, int, int]) -> None:
        pass

    def __call__(self, soft: FloatImage, corner: tuple[int, int]) -> BoolArray:
        return soft >= 0.5


class GuidedFilter:
    """Guided filter by the image's brightness, He et al. (Guided Image Filtering, 2010), radius of two patches.

    Where the image is flat it smooths, where the image has an edge the mask's edge moves there.
    """

    def __init__(
        self, image: ByteImage, patch_px: float, area: tuple[int, int, int, int], *, eps: float = 1e-3
    ) -> None:
        self.radius = max(1, round(2 * patch_px))
        self.margin = 2 * self.radius
        top, left, height, width = area
        self._corner = (max(0, top - self.margin), max(0, left - self.margin))
        around = image[self._corner[0] : top + height + self.margin, self._corner[1] : left + width + self.margin]
        self._luma = cv2.cvtColor(around, cv2.COLOR_RGB2GRAY).astype(np.float32) / np.float32(255)
        # what depends on the image alone is shared by all masks
        self._mean, square = _box_means(self._luma, self._luma**2, *_mirrored(self._luma, self.radius))
        self._inverse = 1 / (square - self._mean**2 + np.float32(eps))

    def __call__(self, soft: FloatImage, corner: tuple[int, int]) -> BoolArray:
        return self.filter(soft, corner) >= 0.5

    def filter(self, soft: FloatImage, corner: tuple[int, int]) -> FloatImage:
        """The filter's output (h, w) before thresholding."""
        top, left = corner[0] - self._corner[0], corner[1] - self._corner[1]
        window = np.s_[top : top + soft.shape[0], left : left + soft.shape[1]]
        luma, mean, inverse = (np.ascontiguousarray(image[window]) for image in (self._luma, self._mean, self._inverse))
        return _guided(luma, mean, inverse, np.ascontiguousarray(soft), *_mirrored(soft, self.radius))


_REFINERS = {"guided": GuidedFilter, "none": Threshold}


def _mirrored(image: FloatImage, radius: int) -> tuple[IntArray, IntArray]:
    """Rows and columns that stand at -radius - 1, ..., size + radius - 1: beyond its border the image is mirrored."""
    places = (np.arange(-radius - 1, size + radius) % (2 * size) for size in image.shape)
    rows, columns = (np.minimum(at, 2 * size - 1 - at) for at, size in zip(places, image.shape, strict=True))
    return rows, columns


@numba.njit(cache=True, nogil=True, fastmath={"reassoc", "contract"})
def _box_means(
    first: FloatImage, second: FloatImage, rows: IntArray, columns: IntArray
) -> tuple[FloatImage, FloatImage]:
    """Means of two images (h, w) over squares, by running sums; two at a time hide the latency of each other's sum.

    `rows` and `columns` as from `_mirrored`: their length beyond the image's is the side of the square.
    """
    height, width = first.shape
    side = len(rows) - height
    scale = 1.0 / side**2
    first_mean, second_mean = np.empty_like(first), np.empty_like(first)
    first_sums, second_sums = np.zeros(width), np.zeros(width)  # of the columns, over the rows of the square
    for row in rows[:side]:
        for x in range(width):
            first_sums[x] += first[row, x]
            second_sums[x] += second[row, x]
    for y in range(height):
        leaving, entering = rows[y], rows[y + side]
        for x in range(width):
            first_sums[x] += np.float64(first[entering, x]) - np.float64(first[leaving, x])
            second_sums[x] += np.float64(second[entering, x]) - np.float64(second[leaving, x])
        first_sum = second_sum = 0.0
        for column in columns[:side]:
            first_sum += first_sums[column]
            second_sum += second_sums[column]
        for x in range(width):
            leaving, entering = columns[x], columns[x + side]
            first_sum += first_sums[entering] - first_sums[leaving]
            second_sum += second_sums[entering] - second_sums[leaving]
            first_mean[y, x] = first_sum * scale
            second_mean[y, x] = second_sum * scale
    return first_mean, second_mean


@numba.njit(cache=True, nogil=True, fastmath={"reassoc", "contract"})
def _guided(
    luma: FloatImage, mean: FloatImage, inverse: FloatImage, soft: FloatImage, rows: IntArray, columns: IntArray
) -> FloatImage:
    """Equations 5, 6 and 8 of the paper; `mean` of the luma, `inverse` of its variance plus eps."""
    offset, slope = _box_means(soft, luma * soft, rows, columns)  # until the loop, means of soft and product
    for y in range(luma.shape[0]):
        for x in range(luma.shape[1]):
            slope[y, x] = (slope[y, x] - mean[y, x] * offset[y, x]) * inverse[y, x]
            offset[y, x] -= slope[y, x] * mean[y, x]
    slope, offset = _box_means(slope, offset, rows, columns)
    for y in range(luma.shape[0]):
        for x in range(luma.shape[1]):
            offset[y, x] += slope[y, x] * luma[y, x]
    return offset


def refine_mask(luma: FloatImage, soft: FloatImage, *, patch_px: float, refiner: str = "guided") -> BoolArray:
    """Binary mask (H, W) of a soft mask (H, W), by the brightness (H, W) in [0, 1]; see `make_refiner`."""
    image = np.repeat(np.round(luma * 255).astype(np.uint8)[..., None], 3, axis=-1)
    return make_refiner(refiner, image, patch_px)(soft, (0, 0))


def clean_mask(mask: BoolArray) -> BoolArray:
    """Largest 8-connected component if it holds at least 80 % of the area, else all; holes filled. (h, w) bool.

    Works on the mask's box, so a wide window costs little.
    """
    x, y, width, height = cv2.boundingRect(mask.view(np.uint8))
    box = np.s_[y : y + height, x : x + width]
    cleaned = np.zeros_like(mask)
    inside = mask[box]
    if inside.size:
        count, labels = cv2.connectedComponents(inside.view(np.uint8), connectivity=8)
        if count > 2:
            areas = np.bincount(labels.ravel())[1:]
            if areas.max() >= 0.8 * areas.sum():
                inside = labels == areas.argmax() + 1
        contours, _ = cv2.findContours(inside.view(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
        cv2.drawContours(cleaned[box].view(np.uint8), contours, -1, 1, thickness=cv2.FILLED)
    return cleaned
