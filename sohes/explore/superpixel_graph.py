"""What superpixels are merged by: features, colours, and the edges along their borders (README §8)."""

from __future__ import annotations

import cv2
import numba
import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from sohes.masks import FloatArray

_STRIP_PX, _REACH_PX = 512, 16  # rows at a time; further away nothing changes an edge's strength


def edge_strength(image: NDArray[np.uint8]) -> FloatArray:
    """Colour gradient (H, W) float32 in CIELAB units a pixel, the larger of two scales (sigma 1 and 2 px)."""
    strongest = np.zeros(image.shape[:2], np.float32)
    for top in range(0, len(image), _STRIP_PX):  # of a large photograph, all at once would be gigabytes
        first = max(0, top - _REACH_PX)
        strip = _edge_strength(image[first : top + _STRIP_PX + _REACH_PX])
        strongest[top : top + _STRIP_PX] = strip[top - first : top - first + _STRIP_PX]
    return strongest


def _edge_strength(image: NDArray[np.uint8]) -> FloatArray:
    lab = cv2.cvtColor(image.astype(np.float32) / np.float32(255), cv2.COLOR_RGB2Lab)
    strongest = np.zeros(image.shape[:2], np.float32)
    for sigma in (1.0, 2.0):
        smooth = cv2.GaussianBlur(lab, (0, 0), sigma)
        across, down = (cv2.Sobel(smooth, cv2.CV_32F, *axis, scale=1 / 8) for axis in ((1, 0), (0, 1)))
        # the wider Gaussian flattens the same edge; times sigma, both answer alike
        strength = np.sqrt((across**2 + down**2).sum(axis=-1)) * np.float32(sigma)
        np.maximum(strongest, strength, out=strongest)
    return strongest


def pooled_features(labels: NDArray[np.int32], features: FloatArray) -> NDArray[np.float64]:
    """Sum over each superpixel's pixels of the bilinearly up-sampled features, (N, D), without up-sampling them."""
    (height, width), (rows, columns, channels) = labels.shape, features.shape
    count = int(labels.max()) + 1
    weights = np.zeros(count * rows * columns, np.float64).reshape(count, -1)
    _add_weights(labels, *_taps(rows, height), *_taps(columns, width), columns, weights)
    pooled: NDArray[np.float64] = sparse.csr_matrix(weights) @ features.reshape(-1, channels).astype(np.float64)
    return pooled


def _taps(patches: int, pixels: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The patch below each pixel's centre, and how far towards the next one it lies; half-pixel centres."""
    place = np.clip((np.arange(pixels) + 0.5) * patches / pixels - 0.5, 0, patches - 1)
    below = np.minimum(place.astype(np.int64), max(patches - 2, 0))
    return below, place - below


@numba.njit(cache=True, nogil=True)
def _add_weights(labels, row, down, column, across, columns, weights):  # type: ignore[no-untyped-def]
    rows = weights.shape[1] // columns
    for y in range(labels.shape[0]):
        for x in range(labels.shape[1]):
            label = labels[y, x]
            for step in range(4):
                part = (down[y] if step // 2 else 1 - down[y]) * (across[x] if step % 2 else 1 - across[x])
                patch_row = min(row[y] + step // 2, rows - 1)
                patch_column = min(column[x] + step % 2, columns - 1)
                weights[label, patch_row * columns + patch_column] += part


@numba.njit(cache=True, nogil=True)
def borders(labels, strength, count):  # type: ignore[no-untyped-def]
    """Length of the border of each pair of superpixels, and the sum of edge strength along it: (N, N) float32 each."""
    border = np.zeros((count, count), np.float32)
    total = np.zeros((count, count), np.float32)
    height, width = labels.shape
    for y in range(height):
        for x in range(width):
            for step in range(2):
                row, column = y + step, x + 1 - step
                if row == height or column == width:
                    continue
                a, b = labels[y, x], labels[row, column]
                if a != b:
                    here = max(strength[y, x], strength[row, column])
                    border[a, b] += 1
                    border[b, a] += 1
                    total[a, b] += here
                    total[b, a] += here
    return border, total


def mean_colours(labels: NDArray[np.int32], image: NDArray[np.uint8]) -> NDArray[np.float64]:
    """CIELAB of each superpixel's mean RGB, (N, 3)."""
    areas = np.bincount(labels.ravel())
    rgb = _colour_sums(labels, image, len(areas)) / areas[:, None] / 255
    lab = cv2.cvtColor(rgb[None].astype(np.float32), cv2.COLOR_RGB2Lab)
    return np.asarray(lab[0], np.float64)


@numba.njit(cache=True, nogil=True)
def _colour_sums(labels, image, count):  # type: ignore[no-untyped-def]
    sums = np.zeros((count, 3), np.float64)
    for y in range(labels.shape[0]):
        for x in range(labels.shape[1]):
            for c in range(3):
                sums[labels[y, x], c] += image[y, x, c]
    return sums
