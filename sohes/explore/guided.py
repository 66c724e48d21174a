"""Guided filter of He, Sun and Tang (Guided Image Filtering, 2010) for many masks of one image (README §5)."""

from __future__ import annotations

import cv2
import numba
import numpy as np
from numpy.typing import NDArray

from sohes.explore.regions import Rectangle
from sohes.masks import FloatArray
from sohes.rle import BoolArray

Places = NDArray[np.uint32]  # unsigned: spares numba a test of each index's sign


class GuidedFilter:
    """Refines masks by the image's brightness; the radius is two patches.

    Where the image is flat it smooths, where the image has an edge the mask's edge moves there.
    """

    def __init__(self, image: NDArray[np.uint8], patch_px: float, area: Rectangle, *, eps: float = 1e-3) -> None:
        self.radius = max(1, round(2 * patch_px))
        self.margin = 2 * self.radius
        top, left, height, width = area
        self._corner = (max(0, top - self.margin), max(0, left - self.margin))
        around = image[self._corner[0] : top + height + self.margin, self._corner[1] : left + width + self.margin]
        self._luma = cv2.cvtColor(around, cv2.COLOR_RGB2GRAY).astype(np.float32) / np.float32(255)
        # what depends on the image alone is shared by all masks
        self._mean, square = _box_means(self._luma, self._luma**2, self.radius)
        self._inverse = np.reciprocal(square - self._mean**2 + np.float32(eps))

    def __call__(self, soft: FloatArray, corner: tuple[int, int]) -> BoolArray:
        return self.filter(soft, corner) >= 0.5

    def filter(self, soft: FloatArray, corner: tuple[int, int]) -> FloatArray:
        """The filter's output (h, w) before thresholding."""
        top, left = corner[0] - self._corner[0], corner[1] - self._corner[1]
        output: FloatArray = _guided(self._luma, self._mean, self._inverse, soft, top, left, self.radius)
        return output


@numba.njit(cache=True, nogil=True)
def _mirrored(size: int, radius: int) -> Places:
    """Which row stands at -radius - 1, ..., size + radius - 1: beyond its border the image is mirrored."""
    places = np.empty(size + 2 * radius + 1, np.uint32)
    for i in range(len(places)):
        place = (i - radius - 1) % (2 * size)
        places[i] = min(place, 2 * size - 1 - place)
    return places


@numba.njit(cache=True, nogil=True, fastmath={"reassoc", "contract"})
def _box_means(first: FloatArray, second: FloatArray, radius: int) -> tuple[FloatArray, FloatArray]:
    """Means of two images (h, w) over squares, by running sums; two at a time hide the latency of each other's sum."""
    height, width = first.shape
    rows, columns, side = _mirrored(height, radius), _mirrored(width, radius), 2 * radius + 1
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
    luma: FloatArray, mean: FloatArray, inverse: FloatArray, soft: FloatArray, top: int, left: int, radius: int
) -> FloatArray:
    """Equations 5, 6 and 8 of the paper; `mean` of the luma, `inverse` of its variance plus eps. `soft` is a window."""
    product = np.empty_like(soft)
    for y in range(soft.shape[0]):
        row = luma[top + y]
        for x in range(soft.shape[1]):
            product[y, x] = soft[y, x] * row[left + x]
    offset, slope = _box_means(soft, product, radius)  # until the loop, means of soft and product
    for y in range(soft.shape[0]):
        row, factor = mean[top + y], inverse[top + y]
        for x in range(soft.shape[1]):
            slope[y, x] = (slope[y, x] - row[left + x] * offset[y, x]) * factor[left + x]
            offset[y, x] -= slope[y, x] * row[left + x]
    slope, offset = _box_means(slope, offset, radius)
    for y in range(soft.shape[0]):
        row = luma[top + y]
        for x in range(soft.shape[1]):
            offset[y, x] += slope[y, x] * row[left + x]
    return offset
