"""The tree of regions that superpixels merge into, led by ViT features and image edges [ours] (README §8).

A ViT sees what belongs together but only patch by patch; superpixels see exact outlines but nothing of meaning. Here
the regions that merge are superpixels, so every mask ends where the image has an edge, and what merges first is decided
by the features: the cosine of two regions' summed features, as in SOHES, less a penalty for the edge between them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from sohes.explore.superpixel_graph import borders, mean_colours, pooled_features
from sohes.masks import FloatArray
from sohes.rle import BoolArray


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
        perimeter: (R,) px of outline, the image's own edge included.
        contrast: (R,) CIELAB distance of the region's mean colour to that of the superpixels around it, each weighted
            by its share of the outline; 0 where there are none.
    """

    rank: NDArray[np.int32]
    start: NDArray[np.int64]
    stop: NDArray[np.int64]
    parent: NDArray[np.int64]
    areas: NDArray[np.int64]
    boxes: NDArray[np.int64]
    persistence: FloatArray
    cohesion: FloatArray
    perimeter: FloatArray
    contrast: FloatArray

    def __len__(self) -> int:
        return len(self.areas)

    def window(self, region: int) -> tuple[BoolArray, tuple[int, int]]:
        """A region's mask (h, w) bool inside its box, and the box's corner (top, left)."""
        top, left, bottom, right = self.boxes[region]
        rank = self.rank[top:bottom, left:right]
        return (rank >= self.start[region]) & (rank < self.stop[region]), (int(top), int(left))


def grow_tree(
    image: NDArray[np.uint8],
    labels: NDArray[np.int32],
    features: FloatArray,
    edges: FloatArray,
    *,
    edge_weight: float,
    size_weight: float,
) -> RegionTree:
    """Merge adjacent superpixels until one region is left, the most similar pair first.

    The similarity of two regions is the cosine of their summed features less `edge_weight` times the mean strength of
    the edge along their common border. In the choice of a pair it is lowered further, by `size_weight` times the
    logarithm of the smaller one's area, so that small regions find their places before large ones merge.

    Args:
        image: (H, W, 3) uint8 RGB.
        labels: (H, W) int32 superpixels, numbered from 0 without gaps.
        features: (h, w, D) float32, patches of the whole image.
        edges: (H, W) float32, see `edge_strength`.
        edge_weight: per CIELAB unit of colour difference across a pixel.
        size_weight: per e-fold of area.
    """
    length = np.linalg.norm(features, axis=-1, keepdims=True)
    both = np.concatenate([features, features / np.maximum(length, 1e-12)], axis=-1)
    sums, unit_sums = (half.copy() for half in np.split(pooled_features(labels, both), 2, axis=1))
    areas = np.bincount(labels.ravel())
    border, strength = borders(labels, edges, len(areas))
    merges, similarity = _merge(sums, border.copy(), strength, areas.astype(np.float64), edge_weight, size_weight)
    return _tree(labels, areas, merges, similarity, unit_sums, border, mean_colours(labels, image))


@numba.njit(cache=True, nogil=True, fastmath={"reassoc", "contract"})
def _similarity(sums, norms, border, strength, areas, a, b, weights):  # type: ignore[no-untyped-def]
    product = 0.0
    for c in range(sums.shape[1]):
        product += sums[a, c] * sums[b, c]
    cosine = product / (norms[a] * norms[b]) if norms[a] > 1e-12 and norms[b] > 1e-12 else -1.0
    edge_weight, size_weight = weights
    return cosine - edge_weight * strength[a, b] / border[a, b] - size_weight * np.log(min(areas[a], areas[b]))


@numba.njit(cache=True, nogil=True)
def _merge(sums, border, strength, areas, edge_weight, size_weight):  # type: ignore[no-untyped-def]
    """Greedy merging; overwrites its arrays. Merged pairs (N - 1, 2) as region numbers, and their similarities.

    The similarities that decide contain the penalty for size, those that are returned do not.

    A region lives in the row of one of its superpixels. Each row remembers its best partner, so a merge looks at N
    rows and computes similarities for the neighbours of what it made. Ties go to the smaller row.
    """
    count, weights = len(sums), (edge_weight, size_weight)
    norms = np.empty(count)
    for a in range(count):
        norms[a] = np.sqrt((sums[a] ** 2).sum())
    similarity = np.full((count, count), -np.inf, np.float32)
    for a in range(count):
        for b in range(a):
            if border[a, b] > 0:
                similarity[a, b] = _similarity(sums, norms, border, strength, areas, a, b, weights)
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
        heights[merge] = similarity[a, b] + size_weight * np.log(min(areas[a], areas[b]))
        region[a] = count + merge
        alive[b] = False
        for c in range(sums.shape[1]):
            sums[a, c] += sums[b, c]
        areas[a] += areas[b]
        norms[a] = np.sqrt((sums[a] ** 2).sum())
        for other in range(count):
            if other == a or not alive[other] or border[a, other] + border[b, other] == 0:
                continue
            border[a, other] += border[b, other]
            border[other, a] = border[a, other]
            strength[a, other] += strength[b, other]
            strength[other, a] = strength[a, other]
            similarity[other, b] = -np.inf
            similarity[a, other] = _similarity(sums, norms, border, strength, areas, a, other, weights)
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
    border: FloatArray,
    colours: NDArray[np.float64],
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
    rank, stop = start[:count].astype(np.int32)[labels], start + size
    order = np.argsort(start[:count])
    perimeter, contrast = _outlines(rank, start, stop, border[np.ix_(order, order)], areas[order], colours[order])
    return RegionTree(
        rank=rank,
        start=start,
        stop=stop,
        parent=parent,
        areas=area,
        boxes=boxes,
        persistence=np.maximum(born - died, 0).astype(np.float32),
        cohesion=(np.linalg.norm(sums, axis=1) / area).astype(np.float32),
        perimeter=perimeter,
        contrast=contrast,
    )


def _outlines(
    rank: NDArray[np.int32],
    start: NDArray[np.int64],
    stop: NDArray[np.int64],
    border: FloatArray,
    areas: NDArray[np.int64],
    colours: NDArray[np.float64],
) -> tuple[FloatArray, FloatArray]:
    """Perimeter and contrast of each region; `border`, `areas` and `colours` are those of superpixels by rank."""

    def along(weights: NDArray[np.floating]) -> NDArray[np.float64]:
        """Sum of weights[x, y] over the superpixels x of a region and y outside, (R,)."""
        table = np.zeros((len(weights) + 1, len(weights) + 1))
        table[1:, 1:] = weights.cumsum(axis=0, dtype=np.float64).cumsum(axis=1)
        inside = table[stop, stop] - table[start, stop] - table[stop, start] + table[start, start]
        outside: NDArray[np.float64] = table[stop, -1] - table[start, -1] - inside
        return outside

    def within(values: NDArray[Any]) -> NDArray[np.float64]:
        """Sum of the superpixels' values (N,) in each region, (R,)."""
        total = np.concatenate([[0.0], values.cumsum(dtype=np.float64)])
        return total[stop] - total[start]

    shared = along(border)
    differences = np.zeros(len(start))
    for colour in colours.T:
        own = within(areas * colour) / within(areas)
        around = along(border * colour) / np.maximum(shared, 1)
        differences += np.where(shared > 0, own - around, 0) ** 2
    frame = np.concatenate([rank[0], rank[-1], rank[:, 0], rank[:, -1]])
    at_frame = within(np.bincount(frame, minlength=len(areas)))
    return (shared + at_frame).astype(np.float32), np.sqrt(differences).astype(np.float32)


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
