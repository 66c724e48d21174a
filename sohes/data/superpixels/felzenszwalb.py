"""The graph-based segmentation of Felzenszwalb and Huttenlocher (README §8)."""

from __future__ import annotations

import cv2
import numba
import numpy as np
from numpy.typing import NDArray

_LONGEST_PX = 1024
_LEVELS = 1 << 16  # of colour differences, so that edges can be sorted by counting


def felzenszwalb(image: NDArray[np.uint8], *, scale: float, sigma: float, min_size: int) -> NDArray[np.int32]:
    """Graph-based segmentation of Felzenszwalb and Huttenlocher (IJCV 2004), on the 8-connected pixel grid.

    Args:
        image: (H, W, 3) uint8 RGB.
        scale: the paper's k for colours in 0..255; larger means larger segments. Differences are rounded to 0.007.
        sigma: of the Gaussian that smooths the image first, px; 0 for none.
        min_size: smaller segments are joined with a neighbour, px.

    Returns:
        (H, W) int32, numbered from 0 in row-major order of their first pixel.
    """
    height, width = image.shape[:2]
    shrink = min(1.0, _LONGEST_PX / max(height, width))  # beyond, superpixels gain little and cost much
    small_wh = max(1, round(width * shrink)), max(1, round(height * shrink))
    min_size = max(1, round(min_size * shrink**2))
    smooth = np.asarray(cv2.resize(image, small_wh, interpolation=cv2.INTER_AREA), np.float32)
    if sigma > 0:
        smooth = np.asarray(cv2.GaussianBlur(smooth, (0, 0), sigma), np.float32)
    labels = _segmented(smooth, scale, min_size)
    return np.asarray(cv2.resize(labels, (width, height), interpolation=cv2.INTER_NEAREST), np.int32)


@numba.njit(cache=True, nogil=True)
def find_root(root, place):  # type: ignore[no-untyped-def]
    """What a place is joined to in a union-find forest, with paths halved on the way."""
    while root[place] != place:
        root[place] = root[root[place]]
        place = root[place]
    return place


@numba.njit(cache=True, nogil=True)
def _segmented(image, scale, min_size):  # type: ignore[no-untyped-def]
    height, width, channels = image.shape
    count = height * width
    steps = ((0, 1), (1, 0), (1, 1), (1, -1))
    weights = np.empty(4 * count, np.uint16)
    present = np.zeros(4 * count, np.bool_)
    starts = np.zeros(_LEVELS + 1, np.int64)
    unit = (_LEVELS - 1) / (255.0 * np.sqrt(3.0))
    for y in range(height):
        for x in range(width):
            for step in range(4):
                row, column = y + steps[step][0], x + steps[step][1]
                if row >= height or column < 0 or column >= width:
                    continue
                total = np.float32(0)
                for c in range(channels):
                    total += (image[y, x, c] - image[row, column, c]) ** 2
                level = np.uint16(min(np.sqrt(total) * unit, _LEVELS - 1))
                edge = 4 * (y * width + x) + step
                weights[edge], present[edge] = level, True
                starts[level + 1] += 1
    starts = np.cumsum(starts)
    order = np.empty(starts[-1], np.int32)
    for edge in range(4 * count):
        if present[edge]:
            order[starts[weights[edge]]] = edge
            starts[weights[edge]] += 1

    shift = np.array([1, width, width + 1, width - 1])
    root = np.arange(count)
    size = np.ones(count, np.int64)
    limit = np.full(count, scale, np.float64)  # largest difference inside plus k / size
    for edge in order:
        a, b = find_root(root, edge // 4), find_root(root, edge // 4 + shift[edge % 4])
        weight = weights[edge] / unit
        if a != b and weight <= min(limit[a], limit[b]):
            a, b = min(a, b), max(a, b)
            root[b] = a
            size[a] += size[b]
            limit[a] = weight + scale / size[a]
    for edge in order:
        a, b = find_root(root, edge // 4), find_root(root, edge // 4 + shift[edge % 4])
        if a != b and min(size[a], size[b]) < min_size:
            a, b = min(a, b), max(a, b)
            root[b] = a
            size[a] += size[b]
    labels = np.empty(count, np.int32)
    used = 0
    for place in range(count):
        first = find_root(root, place)  # the smallest pixel of its segment
        if first == place:
            labels[place] = used
            used += 1
        else:
            labels[place] = labels[first]
    return labels.reshape(height, width)
