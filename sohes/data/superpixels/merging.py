"""Regions merged to a given number, first those whose merger costs least in Ward's sense (README §8)."""

from __future__ import annotations

import heapq

import cv2
import numba
import numpy as np
from numpy.typing import NDArray

from sohes.data.superpixels.felzenszwalb import find_root


def merge_regions(
    labels: NDArray[np.int32], image: NDArray[np.uint8], count: int, *, place_weight: float
) -> NDArray[np.int32]:
    """Merge adjacent regions (4 neighbours) until `count` are left.

    The next pair is the one whose merger adds least to the squared distances of pixels from their region's mean, in
    CIELAB and `place_weight` times row and column (Ward, JASA 1963): small and alike regions merge first.

    Args:
        labels: (H, W) int32, every number from 0 on.
        image: (H, W, 3) uint8 RGB.
        count: regions to leave; where there are no more, they stay as they are.
        place_weight: CIELAB units that a distance of one px is worth.

    Returns:
        (H, W) int32, numbered from 0 in row-major order of first pixels; connected where the given regions are.
    """
    lab = cv2.cvtColor(image.astype(np.float32) / np.float32(255), cv2.COLOR_RGB2Lab)
    places = np.indices(labels.shape, np.float32) * np.float32(place_weight)
    sizes = np.bincount(labels.ravel())
    sums = [np.bincount(labels.ravel(), of.ravel(), len(sizes)) for of in (*np.moveaxis(lab, -1, 0), *places)]
    root = _merge(_adjacent(labels), sizes.astype(np.float64), np.stack(sums, axis=1) / sizes[:, None], count)
    return np.asarray(_numbered(labels, root), np.int32)


def pieces(labels: NDArray[np.int32], cells: NDArray[np.int32]) -> NDArray[np.int32]:
    """Connected pieces (4 neighbours) of what has one label and lies in one cell: (H, W) int32, numbered as above."""
    return np.asarray(_numbered(np.arange(labels.size).reshape(labels.shape), _joined(labels, cells)), np.int32)


def _adjacent(labels: NDArray[np.int32]) -> NDArray[np.int64]:
    """Pairs of regions with a common border, (E, 2), the smaller number first."""
    count = int(labels.max()) + 1
    codes = []
    for a, b in ((labels[:, 1:], labels[:, :-1]), (labels[1:], labels[:-1])):
        differ = a != b
        codes.append(np.minimum(a, b)[differ].astype(np.int64) * count + np.maximum(a, b)[differ])
    return np.stack(np.divmod(np.unique(np.concatenate(codes)), count), axis=1)


@numba.njit(cache=True, nogil=True)
def _merge(pairs, sizes, means, count):  # type: ignore[no-untyped-def]
    """What each region is merged into, by number: those given, then the merged ones in order; itself where in none."""
    given = len(sizes)
    regions = max(given, 2 * given - count)
    root = np.arange(regions)
    size, mean = np.zeros(regions), np.zeros((regions, means.shape[1]))
    size[:given], mean[:given] = sizes, means
    neighbours = [np.empty(0, np.int64) for _ in range(given)]
    degree = np.bincount(pairs.ravel(), minlength=given)
    for region in range(given):
        neighbours[region] = np.empty(degree[region], np.int64)
    heap = [(0.0, 0, 0) for _ in range(0)]
    for a, b in pairs:
        for region, other in ((a, b), (b, a)):
            degree[region] -= 1
            neighbours[region][degree[region]] = other
        heap.append((_cost(a, b, size, mean), a, b))
    heapq.heapify(heap)
    seen_by = np.full(regions, -1)
    for new in range(given, regions):
        _, a, b = heapq.heappop(heap)
        while root[a] != a or root[b] != b:  # one of them is merged already
            _, a, b = heapq.heappop(heap)
        root[a] = root[b] = seen_by[new] = new
        size[new] = size[a] + size[b]
        mean[new] = (size[a] * mean[a] + size[b] * mean[b]) / size[new]
        around = np.empty(len(neighbours[a]) + len(neighbours[b]), np.int64)
        found = 0
        for former in (a, b):
            for other in neighbours[former]:
                region = find_root(root, other)
                if seen_by[region] != new:
                    seen_by[region] = new
                    around[found] = region
                    found += 1
                    heapq.heappush(heap, (_cost(region, new, size, mean), region, new))
        neighbours.append(around[:found].copy())
    return root


@numba.njit(cache=True, nogil=True)
def _cost(a, b, size, mean):  # type: ignore[no-untyped-def]
    apart = 0.0
    for channel in range(mean.shape[1]):
        apart += (mean[a, channel] - mean[b, channel]) ** 2
    return size[a] * size[b] / (size[a] + size[b]) * apart


@numba.njit(cache=True, nogil=True)
def _joined(labels, cells):  # type: ignore[no-untyped-def]
    """For each pixel an earlier one of its piece, or itself."""
    height, width = labels.shape
    root = np.arange(height * width)
    for y in range(height):
        for x in range(width):
            for row, column in ((y, x - 1), (y - 1, x)):
                if min(row, column) < 0 or labels[row, column] != labels[y, x] or cells[row, column] != cells[y, x]:
                    continue
                a, b = find_root(root, row * width + column), find_root(root, y * width + x)
                root[max(a, b)] = min(a, b)
    return root


@numba.njit(cache=True, nogil=True)
def _numbered(labels, root):  # type: ignore[no-untyped-def]
    number = np.full(len(root), -1)
    used = 0
    found = np.empty(labels.shape, np.int32)
    for y in range(labels.shape[0]):
        for x in range(labels.shape[1]):
            region = find_root(root, labels[y, x])
            if number[region] < 0:
                number[region] = used
                used += 1
            found[y, x] = number[region]
    return found
