"""Dense CRF with pairwise terms inside a window, solved by mean field (README §5).

The energy is that of the fully connected CRF of Krähenbühl and Koltun (2011) with the constants of HASSOD and CutLER,
its kernels normalised symmetrically as in their implementation; only pairs further apart than `REACH` are left out.
HASSOD solves one problem per level, with every region a label. Here each mask is a problem of two labels: with unaries
from up-sampled one-hot maps that is the same wherever two regions meet, and it also serves masks of no partition.
"""

from __future__ import annotations

import math

import cv2
import numba
import numpy as np
from numpy.typing import NDArray

from sohes.explore.regions import Rectangle
from sohes.masks import FloatArray
from sohes.rle import BoolArray

PATCH_PX = 8  # side of a patch on the canvas, at most
REACH = 7  # px of the canvas
ITERATIONS = 10
SMOOTHNESS_WEIGHT, SMOOTHNESS_PX = 7.0, 3.0
APPEARANCE_WEIGHT, APPEARANCE_PX, APPEARANCE_RGB = 10.0, 50.0, 5.0
CLIP = 1e-5  # of the probabilities behind the unaries: only the interpolated rim is open to change

# one of each pair of opposite steps
STEPS = tuple((dy, dx) for dy in range(REACH + 1) for dx in range(-REACH, REACH + 1) if (dy, dx) > (0, 0))


class LocalCRF:
    """Refines masks by a CRF on a canvas: the image, scaled down so that a patch has 8 px."""

    def __init__(self, image: NDArray[np.uint8], patch_px: float, area: Rectangle) -> None:
        self.margin = math.ceil(2 * patch_px)  # more than the rim of half a patch and the reach together
        top, left, height, width = area
        self._corner = (max(0, top - self.margin), max(0, left - self.margin))
        around = image[self._corner[0] : top + height + self.margin, self._corner[1] : left + width + self.margin]
        scale = min(1.0, PATCH_PX / patch_px)
        rows, columns = (max(1, round(side * scale)) for side in around.shape[:2])
        self._scales = rows / around.shape[0], columns / around.shape[1]
        canvas = cv2.resize(around, (columns, rows), interpolation=cv2.INTER_AREA)
        self._weights, self._own_weight = pair_weights(np.asarray(canvas, np.uint8))

    def __call__(self, soft: FloatArray, corner: tuple[int, int]) -> BoolArray:
        (rows, row_shift), (columns, column_shift) = (
            _place(corner[axis] - self._corner[axis], soft.shape[axis], self._scales[axis]) for axis in (0, 1)
        )
        own_weight = np.ascontiguousarray(self._own_weight[rows, columns])
        to_canvas = np.array([[self._scales[1], 0, column_shift], [0, self._scales[0], row_shift]])
        small = cv2.warpAffine(soft, to_canvas, own_weight.shape[::-1], borderMode=cv2.BORDER_REPLICATE)
        posterior = mean_field(
            np.asarray(small, np.float32), np.ascontiguousarray(self._weights[:, rows, columns]), own_weight
        )
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        large = cv2.warpAffine(posterior, to_canvas, soft.shape[::-1], flags=flags, borderMode=cv2.BORDER_REPLICATE)
        return np.asarray(large) >= 0.5


def _place(start: int, length: int, scale: float) -> tuple[slice, float]:
    """Where a window lies on the canvas along one axis, and its first pixel's centre in that place."""
    first, last = math.floor(start * scale), math.ceil((start + length) * scale - 1e-6)
    return slice(first, last), (start + 0.5) * scale - 0.5 - first


def pair_weights(canvas: NDArray[np.uint8]) -> tuple[FloatArray, FloatArray]:
    """Weights of the votes between pixels of `canvas` (h, w, 3), both kernels together.

    Returns:
        (steps, h, w), between a pixel and the one a step away, 0 where that lies beyond the canvas;
        (h, w), of a pixel for itself.
    """
    height, width = canvas.shape[:2]
    colours = [np.ascontiguousarray(canvas[..., c], np.float32) for c in range(3)]
    weights = np.zeros((len(STEPS), height, width), np.float32)  # first the appearance kernel alone
    smoothness = [np.float32(np.exp(-(dy**2 + dx**2) / (2 * SMOOTHNESS_PX**2))) for dy, dx in STEPS]
    sums = np.ones((2, height, width), np.float32)  # of smoothness and appearance, over neighbours and itself
    for weight, near, (dy, dx) in zip(weights, smoothness, STEPS, strict=True):
        here, there = _shifted(dy, dx, height, width)
        contrast = sum((colour[here] - colour[there]) ** 2 for colour in colours)
        weight[here] = np.exp(-(dy**2 + dx**2) / (2 * APPEARANCE_PX**2) - contrast / np.float32(2 * APPEARANCE_RGB**2))
        for pixel in (here, there):
            sums[0][pixel] += near
            sums[1][pixel] += weight[here]
    norms = 1 / np.sqrt(sums)
    for weight, near, (dy, dx) in zip(weights, smoothness, STEPS, strict=True):
        here, there = _shifted(dy, dx, height, width)
        weight[here] *= APPEARANCE_WEIGHT * norms[1][here] * norms[1][there]
        weight[here] += SMOOTHNESS_WEIGHT * near * norms[0][here] * norms[0][there]
    return weights, SMOOTHNESS_WEIGHT / sums[0] + APPEARANCE_WEIGHT / sums[1]


def _shifted(dy: int, dx: int, height: int, width: int) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """Windows of equal shape: the pixels from which the step stays inside, and where it leads."""
    here = np.s_[: max(0, height - dy), max(0, -dx) : max(0, width - max(0, dx))]
    there = np.s_[dy:, max(0, dx) : max(0, width + min(0, dx))]
    return here, there


@numba.njit(cache=True, nogil=True)
def _add_product(total: FloatArray, first: FloatArray, second: FloatArray) -> None:
    for index in range(len(first)):
        total[index] += first[index] * second[index]


@numba.njit(cache=True, nogil=True)
def mean_field(soft: FloatArray, weights: FloatArray, own_weight: FloatArray) -> FloatArray:
    """Probability (h, w) that a pixel belongs to the mask, after `ITERATIONS` parallel updates.

    Args:
        soft: (h, w), the mask before.
        weights: (steps, h, w) from `pair_weights`.
        own_weight: (h, w) from there.
    """
    height, width = soft.shape
    one = np.float32(1)
    mask = np.minimum(np.maximum(soft, np.float32(CLIP)), one - np.float32(CLIP))
    unary = np.log(mask / (one - mask))  # in favour of the mask
    for _ in range(ITERATIONS):
        vote = mask + mask - one
        favour = unary + own_weight * vote
        for step, (dy, dx) in enumerate(STEPS):
            first = max(0, -dx)
            last = max(first, min(width, width - dx))
            for y in range(height - dy):
                weight = weights[step, y, first:last]
                _add_product(favour[y, first:last], weight, vote[y + dy, first + dx : last + dx])
                _add_product(favour[y + dy, first + dx : last + dx], weight, vote[y, first:last])
        mask = one / (one + np.exp(-favour))
    return mask
