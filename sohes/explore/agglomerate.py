"""Greedy agglomerative merging of 4-adjacent image patches at descending similarity thresholds (SOHES §3.1).

The feature of a region is the sum of its patches' features; the two adjacent regions of highest cosine similarity merge
first, as long as they are at least as similar as the threshold. The order is what defines the result: merging changes
similarities both ways, so no dendrogram cut gives the same regions.
"""

from __future__ import annotations

from collections.abc import Sequence

import numba
import numpy as np
from numpy.typing import NDArray

_ZERO_NORM = 1e-12


def merge_patches(features: NDArray[np.floating], thresholds: Sequence[float]) -> NDArray[np.int32]:
    """Nested regions of a feature map.

    Ties go to the pair with the smaller first region, then the smaller second; regions are numbered in order of
    creation, patches first (row-major). A feature of zero length is similar to nothing (-1).

    Args:
        features: (H, W, C) float, finite. Scaling all of them by a constant changes nothing.
        thresholds: cosines; sorted descending, duplicates dropped.

    Returns:
        (T, H, W) int32, one map a threshold. Equal numbers are one 4-connected region, in every map that has it.

    Raises:
        ValueError: not three-dimensional, empty, or not finite.
    """
    features = np.asarray(features)
    if features.ndim != 3 or features.size == 0:
        raise ValueError(f"features must be a non-empty (H, W, C) array, not one of shape {features.shape}")
    if not np.isfinite(features).all():
        raise ValueError("features hold NaN or infinite values")
    levels = np.asarray(sorted(set(map(float, thresholds)), reverse=True))
    height, width, channels = features.shape
    sums = features.reshape(-1, channels).astype(np.float64)
    return _merge(sums, height, width, levels).reshape(len(levels), height, width)


@numba.njit(cache=True, nogil=True)
def _above(sims, firsts, seconds, i, j):  # type: ignore[no-untyped-def]
    """Whether heap entry i comes before entry j."""
    if sims[i] != sims[j]:
        return sims[i] > sims[j]
    if firsts[i] != firsts[j]:
        return firsts[i] < firsts[j]
    return seconds[i] < seconds[j]


@numba.njit(cache=True, nogil=True)
def _swap(sims, firsts, seconds, i, j):  # type: ignore[no-untyped-def]
    sims[i], sims[j] = sims[j], sims[i]
    firsts[i], firsts[j] = firsts[j], firsts[i]
    seconds[i], seconds[j] = seconds[j], seconds[i]


@numba.njit(cache=True, nogil=True)
def _sift_up(sims, firsts, seconds, i):  # type: ignore[no-untyped-def]
    while i > 0:
        parent = (i - 1) // 2
        if not _above(sims, firsts, seconds, i, parent):
            return
        _swap(sims, firsts, seconds, i, parent)
        i = parent


@numba.njit(cache=True, nogil=True)
def _sift_down(sims, firsts, seconds, i, size):  # type: ignore[no-untyped-def]
    while True:
        best, left, right = i, 2 * i + 1, 2 * i + 2
        if left < size and _above(sims, firsts, seconds, left, best):
            best = left
        if right < size and _above(sims, firsts, seconds, right, best):
            best = right
        if best == i:
            return
        _swap(sims, firsts, seconds, i, best)
        i = best


@numba.njit(cache=True, nogil=True, fastmath={"reassoc", "contract"})
def _cosine(sums, norms, slot, other):  # type: ignore[no-untyped-def]
    if norms[slot] < _ZERO_NORM or norms[other] < _ZERO_NORM:
        return -1.0
    product = 0.0
    for c in range(sums.shape[1]):
        product += sums[slot, c] * sums[other, c]
    return product / (norms[slot] * norms[other])


@numba.njit(cache=True, nogil=True)
def _norm(sums, slot):  # type: ignore[no-untyped-def]
    total = 0.0
    for c in range(sums.shape[1]):
        total += sums[slot, c] * sums[slot, c]
    return np.sqrt(total)


@numba.njit(cache=True, nogil=True)
def _merge(sums, height, width, levels):  # type: ignore[no-untyped-def]
    """`merge_patches` on sums (H·W, C) float64, which it overwrites; (T, H·W) int32 out.

    A region lives in the slot of one of its patches; `region[slot]` is its number. Merging joins two slots, so memory
    never grows. Adjacency is a linked list of slots per region: lists are joined when regions are, and entries
    pointing into merged slots are resolved, and repetitions dropped, when a list is next walked. The heap keeps
    stale entries until they surface; when it is full, they are dropped, which frees at least half of it.
    """
    count = height * width
    root = np.arange(count)  # slot -> slot its region lives in (followed to the fixed point)
    region = np.arange(count)
    norms = np.empty(count)
    for slot in range(count):
        norms[slot] = _norm(sums, slot)

    edges = 2 * (height * (width - 1) + width * (height - 1))
    to = np.empty(edges, np.int64)
    following = np.full(edges, -1, np.int64)
    first_edge = np.full(count, -1, np.int64)
    last_edge = np.full(count, -1, np.int64)
    capacity = max(2 * edges, 16)
    sims = np.empty(capacity)
    firsts = np.empty(capacity, np.int64)
    seconds = np.empty(capacity, np.int64)
    size = 0
    edge = 0
    for slot in range(count):
        for step in range(2):
            if step == 0:
                if slot % width == width - 1:
                    continue
                other = slot + 1
            else:
                if slot + width >= count:
                    continue
                other = slot + width
            for source, target in ((slot, other), (other, slot)):
                to[edge] = target
                if first_edge[source] < 0:
                    first_edge[source] = edge
                else:
                    following[last_edge[source]] = edge
                last_edge[source] = edge
                edge += 1
            sims[size] = _cosine(sums, norms, slot, other)
            firsts[size], seconds[size] = slot, other
            size += 1
            _sift_up(sims, firsts, seconds, size - 1)

    home = np.full(2 * count, -1, np.int64)  # region number -> slot; -1 once it has merged into another
    home[:count] = np.arange(count)
    seen = np.full(count, -1, np.int64)
    next_region = count
    out = np.empty((len(levels), count), np.int32)
    for level in range(len(levels)):
        while size > 0:
            a, b = home[firsts[0]], home[seconds[0]]
            alive = a >= 0 and b >= 0
            if alive and sims[0] < levels[level]:
                break
            size -= 1
            _swap(sims, firsts, seconds, 0, size)
            _sift_down(sims, firsts, seconds, 0, size)
            if not alive:
                continue
            home[region[a]] = home[region[b]] = -1
            new = next_region
            next_region += 1
            root[b] = a
            region[a] = new
            home[new] = a
            for c in range(sums.shape[1]):
                sums[a, c] += sums[b, c]
            norms[a] = _norm(sums, a)
            following[last_edge[a]] = first_edge[b]
            last_edge[a] = last_edge[b]

            # walk the joined list: resolve, drop repetitions and itself, push the new similarities
            seen[a] = new
            previous = -1
            current = first_edge[a]
            while current >= 0:
                slot = to[current]
                while root[slot] != slot:
                    root[slot] = root[root[slot]]
                    slot = root[slot]
                after = following[current]
                if seen[slot] == new:
                    if previous >= 0:
                        following[previous] = after
                    else:
                        first_edge[a] = after
                else:
                    seen[slot] = new
                    to[current] = slot
                    previous = current
                    if size == capacity:
                        kept = 0
                        for i in range(size):
                            if home[firsts[i]] >= 0 and home[seconds[i]] >= 0:
                                sims[kept], firsts[kept], seconds[kept] = sims[i], firsts[i], seconds[i]
                                kept += 1
                        size = kept
                        for i in range(size // 2 - 1, -1, -1):
                            _sift_down(sims, firsts, seconds, i, size)
                    sims[size] = _cosine(sums, norms, a, slot)
                    firsts[size], seconds[size] = region[slot], new
                    size += 1
                    _sift_up(sims, firsts, seconds, size - 1)
                current = after
            last_edge[a] = previous
        for slot in range(count):
            place = slot
            while root[place] != place:
                root[place] = root[root[place]]
                place = root[place]
            out[level, slot] = region[place]
    return out
