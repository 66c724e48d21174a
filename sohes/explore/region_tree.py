"""The tree of regions that superpixels merge into, led by ViT features and image edges [ours] (README §8).

A ViT sees what belongs together but only patch by patch; superpixels see exact outlines but nothing of meaning. Here
the regions that merge are superpixels, so every mask ends where the image has an edge, and what merges first is decided
by the features: the cosine of two regions' summed features, as in SOHES, less a penalty for the edge between them.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numba
import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from sohes.masks import FloatArray, MaskForest
from sohes.rle import BoolArray, encode_window

_STRIP_PX, _REACH_PX = 512, 16  # rows at a time; further away nothing changes an edge's strength


@dataclass(frozen=True)
class RegionTree:
    """Superpixels and all regions that merging them makes.

    Region numbers: superpixels first, then merged regions in order of creation. The superpixels of a region stand side
    by side in `rank`, so a region is a range of it.

    Attributes:
        rank: (H, W) int32, place of each pixel's superpixel in the order that keeps regions together.
        start, stop: (R,) the region's range of ranks.
        parent: (R,) region that a region was merged into, -1 for the last one.
        areas: (R,) px.
        boxes: (R, 4) top, left, bottom, right in px, the ends exclusive.
        persistence: (R,) similarity at which a region came to be less that at which it was merged into another, not
            below 0; superpixels come to be at 1, and the last region stays down to -1.
        cohesion: (R,) length of the region's mean unit feature.
    """

    rank: NDArray[np.int32]
    start: NDArray[np.int64]
    stop: NDArray[np.int64]
    parent: NDArray[np.int64]
    areas: NDArray[np.int64]
    boxes: NDArray[np.int64]
    persistence: FloatArray
    cohesion: FloatArray

    def __len__(self) -> int:
        return len(self.areas)

    @property
    def scores(self) -> FloatArray:
        """What ranks the regions, (R,) in [0, 1]: persistence times the root of the area; 0.5 is the median."""
        standing = self.persistence * np.sqrt(self.areas)
        return (standing / (standing + max(np.median(standing), 1e-9))).astype(np.float32)

    def forest(self, regions: NDArray[np.int64]) -> MaskForest:
        """The chosen regions; a region's parent is the nearest chosen one that it was merged into."""
        place = {int(region): index for index, region in enumerate(regions)}
        ancestor = np.zeros((len(regions), len(regions)), dtype=bool)
        parent = np.full(len(regions), -1, dtype=np.int64)
        for index, region in enumerate(regions):
            above = self.parent[region]
            while above >= 0 and int(above) not in place:
                above = self.parent[above]
            parent[index] = place[int(above)] if above >= 0 else -1
        for index in np.argsort(-self.areas[regions], kind="stable"):  # parents before children
            if parent[index] >= 0:
                ancestor[:, index] = ancestor[:, parent[index]]
                ancestor[parent[index], index] = True
        size_hw = (self.rank.shape[0], self.rank.shape[1])
        return MaskForest(
            size_hw=size_hw,
            rles=[encode_window(*self.window(region), size_hw) for region in regions],
            scores=self.scores[regions],
            ancestor=ancestor,
            parent=parent,
            attributes={"cohesion": self.cohesion[regions]},
        )

    def window(self, region: int) -> tuple[BoolArray, tuple[int, int]]:
        """A region's mask (h, w) bool inside its box, and the box's corner (top, left)."""
        top, left, bottom, right = self.boxes[region]
        rank = self.rank[top:bottom, left:right]
        return (rank >= self.start[region]) & (rank < self.stop[region]), (int(top), int(left))


def grow_tree(
    image: NDArray[np.uint8], labels: NDArray[np.int32], features: FloatArray, *, edge_weight: float
) -> RegionTree:
    """Merge adjacent superpixels until one region is left, the most similar pair first.

    The similarity of two regions is the cosine of their summed features less `edge_weight` times the mean strength of
    the edge along their common border.

    Args:
        image: (H, W, 3) uint8 RGB.
        labels: (H, W) int32 superpixels, numbered from 0 without gaps.
        features: (h, w, D) float32, patches of the whole image.
        edge_weight: per CIELAB unit of colour difference across a pixel.
    """
    sums = _pooled(labels, features)
    length = np.linalg.norm(features, axis=-1, keepdims=True)
    unit_sums = _pooled(labels, features / np.maximum(length, 1e-12))
    areas = np.bincount(labels.ravel())
    border, strength = _borders(labels, edge_strength(image), len(areas))
    merges, similarity = _merge(sums, border, strength, edge_weight)
    return _tree(labels, areas, merges, similarity, unit_sums)


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


def _pooled(labels: NDArray[np.int32], features: FloatArray) -> NDArray[np.float64]:
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
def _borders(labels, strength, count):  # type: ignore[no-untyped-def]
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


@numba.njit(cache=True, nogil=True, fastmath={"reassoc", "contract"})
def _similarity(sums, norms, border, strength, a, b, edge_weight):  # type: ignore[no-untyped-def]
    product = 0.0
    for c in range(sums.shape[1]):
        product += sums[a, c] * sums[b, c]
    cosine = product / (norms[a] * norms[b]) if norms[a] > 1e-12 and norms[b] > 1e-12 else -1.0
    return cosine - edge_weight * strength[a, b] / border[a, b]


@numba.njit(cache=True, nogil=True)
def _merge(sums, border, strength, edge_weight):  # type: ignore[no-untyped-def]
    """Greedy merging; overwrites its arrays. Merged pairs (N - 1, 2) as region numbers, and their similarities.

    A region lives in the row of one of its superpixels. Each row remembers its best partner, so a merge looks at N
    rows and computes similarities for the neighbours of what it made. Ties go to the smaller row.
    """
    count = len(sums)
    norms = np.empty(count)
    for a in range(count):
        norms[a] = np.sqrt((sums[a] ** 2).sum())
    similarity = np.full((count, count), -np.inf, np.float32)
    for a in range(count):
        for b in range(a):
            if border[a, b] > 0:
                similarity[a, b] = _similarity(sums, norms, border, strength, a, b, edge_weight)
                similarity[b, a] = similarity[a, b]
    best = np.empty(count, np.int64)
    for a in range(count):
        best[a] = similarity[a].argmax()
    region = np.arange(count)
    alive = np.ones(count, np.bool_)
    merges = np.empty((count - 1, 2), np.int64)
    heights = np.empty(count - 1, np.float64)
    for merge in range(count - 1):
        a = -1
        for row in range(count):
            if alive[row] and (a < 0 or similarity[row, best[row]] > similarity[a, best[a]]):
                a = row
        b = best[a]
        merges[merge] = region[a], region[b]
        heights[merge] = similarity[a, b]
        region[a] = count + merge
        alive[b] = False
        for c in range(sums.shape[1]):
            sums[a, c] += sums[b, c]
        norms[a] = np.sqrt((sums[a] ** 2).sum())
        for other in range(count):
            if other == a or not alive[other] or border[a, other] + border[b, other] == 0:
                continue
            border[a, other] += border[b, other]
            border[other, a] = border[a, other]
            strength[a, other] += strength[b, other]
            strength[other, a] = strength[a, other]
            similarity[other, b] = -np.inf
            similarity[a, other] = _similarity(sums, norms, border, strength, a, other, edge_weight)
            similarity[other, a] = similarity[a, other]
            gain = similarity[other, a] - similarity[other, best[other]]
            if best[other] == a or best[other] == b:
                best[other] = similarity[other].argmax()
            elif gain > 0 or (gain == 0 and a < best[other]):
                best[other] = a
        similarity[a, b] = -np.inf
        best[a] = similarity[a].argmax()
    return merges, heights


def _tree(
    labels: NDArray[np.int32],
    areas: NDArray[np.int64],
    merges: NDArray[np.int64],
    similarity: NDArray[np.float64],
    unit_sums: NDArray[np.float64],
) -> RegionTree:
    count, total = len(areas), len(areas) + len(merges)
    born, died = np.ones(total), np.full(total, -1.0)
    parent = np.full(total, -1, np.int64)
    born[count:] = similarity
    start, size = np.zeros(total, np.int64), np.ones(total, np.int64)
    area, boxes = np.zeros(total, np.int64), np.zeros((total, 4), np.int64)
    area[:count], boxes[:count] = areas, _boxes(labels, count)
    sums = np.concatenate([unit_sums, np.zeros((len(merges), unit_sums.shape[1]))])
    for region, (a, b) in enumerate(merges, start=count):
        died[[a, b]] = similarity[region - count]
        parent[[a, b]] = region
        size[region], area[region] = size[a] + size[b], area[a] + area[b]
        boxes[region, :2] = np.minimum(boxes[a, :2], boxes[b, :2])
        boxes[region, 2:] = np.maximum(boxes[a, 2:], boxes[b, 2:])
        sums[region] = sums[a] + sums[b]
    for region in range(total - 1, count - 1, -1):  # from the last region down: first child left, second right
        a, b = merges[region - count]
        start[a], start[b] = start[region], start[region] + size[a]
    return RegionTree(
        rank=start[:count].astype(np.int32)[labels],
        start=start,
        stop=start + size,
        parent=parent,
        areas=area,
        boxes=boxes,
        persistence=np.maximum(born - died, 0).astype(np.float32),
        cohesion=(np.linalg.norm(sums, axis=1) / area).astype(np.float32),
    )


@numba.njit(cache=True, nogil=True)
def _boxes(labels, count):  # type: ignore[no-untyped-def]
    boxes = np.zeros((count, 4), np.int64)
    boxes[:, :2] = 1 << 40
    for y in range(labels.shape[0]):
        for x in range(labels.shape[1]):
            box = boxes[labels[y, x]]
            box[0], box[1] = min(box[0], y), min(box[1], x)
            box[2], box[3] = max(box[2], y + 1), max(box[3], x + 1)
    return boxes
