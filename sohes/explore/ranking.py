"""The regions of several trees as one ranked forest [ours] (README §8).

A region is a range of its tree's superpixels. What regions of two trees have in common follows from what the trees'
superpixels have in common, so masks are made of the chosen regions alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numba
import numpy as np
from numpy.typing import NDArray

from sohes.explore.region_tree import RegionTree
from sohes.masks import MaskForest, coverage_ancestors, nearest_parents
from sohes.rle import IntArray, encode_window

# what merges at once, has the colour of its surroundings, or is supported by nothing, is worth little, not nothing
_LEAST_PERSISTENCE, _LEAST_CONTRAST, _LEAST_SUPPORT = 1e-3, 1.0, 1e-3


def ranked_forest(
    trees: Sequence[RegionTree],
    *,
    min_area: float,
    max_area: float,
    max_masks: int,
    nms_iou: float,
    theta_cover: float,
    support: Sequence[NDArray[np.floating]] | None = None,
) -> MaskForest:
    """The best regions of several trees of one image, best first; what is part of what follows from coverage.

    A region's merit is agreement x compactness x root(persistence x contrast x area), with 4π area / perimeter² as
    compactness. Each time the region of the highest merit times root(1 - highest IoU with the regions chosen before) is
    chosen, and that product ranks it.

    A good ranking is no good order in which to cut, since it likes small regions first. What decides there is
    agreement² x contrast / regions that the tree had when the region was merged.

    Args:
        trees: at least one.
        min_area, max_area: px, of the regions that are considered.
        max_masks: regions at most.
        nms_iou: a region with a higher IoU with one chosen before is a duplicate.
        theta_cover: coverage that makes a region part of another, see `coverage_ancestors`.
        support: for each tree (R,), what else speaks for its regions; its root is a further factor of the merit.

    Returns:
        Scores fall, in [0, 1), with 0.5 for the median merit. Attributes: `cohesion`, see `RegionTree`; `cut`, the
        order in which `sohes.evaluation.partitions` takes the masks, the highest first.
    """
    kept = [np.flatnonzero((min_area <= tree.areas) & (tree.areas <= max_area)) for tree in trees]
    candidates = _Candidates(trees, kept)
    merit = candidates.merit()
    if support is not None:
        supported = np.concatenate([of_tree[regions] for of_tree, regions in zip(support, kept, strict=True)])
        merit *= np.sqrt(np.maximum(supported, _LEAST_SUPPORT))
    chosen, ranking, common = _choose(candidates, merit, max_masks, nms_iou)
    ancestor = coverage_ancestors(common / candidates.areas[chosen], theta_cover)
    size_hw = (trees[0].rank.shape[0], trees[0].rank.shape[1])
    rles = []
    for place in chosen:
        mask, corner = trees[candidates.tree[place]].window(candidates.region[place])
        rles.append(encode_window(mask, corner, size_hw))
    return MaskForest(
        size_hw=size_hw,
        rles=rles,
        scores=(ranking / (ranking + (np.median(merit) if len(merit) else 1))).astype(np.float32),
        ancestor=ancestor,
        parent=nearest_parents(ancestor, candidates.areas[chosen]),
        attributes={
            "cohesion": candidates.column("cohesion")[chosen].astype(np.float32),
            "cut": candidates.cut()[chosen].astype(np.float32),
        },
    )


class _Candidates:
    """The regions of all trees that are considered, R together.

    Attributes:
        tree, region: (R,) which tree, and which of its regions.
        areas: (R,) px.
    """

    def __init__(self, trees: Sequence[RegionTree], kept: Sequence[IntArray]) -> None:
        self._trees, self._kept = trees, kept
        self.tree = np.repeat(np.arange(len(trees)), [len(regions) for regions in kept])
        self.region = np.concatenate(kept)
        self.areas = self.column("areas")
        self._ranges = [(tree.start[regions], tree.stop[regions]) for tree, regions in zip(trees, kept, strict=True)]
        self._tables = {
            (one, other): _shared_pixels(trees[one].rank, trees[other].rank)
            for one in range(len(trees))
            for other in range(one)
        }
        self._pixels = [_pixels_below(tree) for tree in trees]

    def column(self, name: str) -> NDArray[np.float64]:
        """An attribute of `RegionTree`, (R,)."""
        return np.concatenate(
            [getattr(tree, name)[regions] for tree, regions in zip(self._trees, self._kept, strict=True)]
        ).astype(np.float64)

    @cached_property
    def agreement(self) -> NDArray[np.float64]:
        """Mean over the other trees of the highest IoU with a region of theirs, (R,); 1 if there is no other tree."""
        if len(self._trees) == 1:
            return np.ones(len(self.tree))
        total = np.zeros(len(self.tree))
        for (one, other), table in self._tables.items():
            first, second = self.tree == one, self.tree == other
            highest = _highest_iou(
                table, *self._ranges[one], self.areas[first], *self._ranges[other], self.areas[second]
            )
            total[first] += highest[0]
            total[second] += highest[1]
        return total / (len(self._trees) - 1)

    @cached_property
    def contrast(self) -> NDArray[np.float64]:
        """That of `RegionTree`, but not too small, (R,)."""
        return np.maximum(self.column("contrast"), _LEAST_CONTRAST)

    def merit(self) -> NDArray[np.float64]:
        """What a region is worth by itself, (R,); see `ranked_forest`."""
        persistence = np.maximum(self.column("persistence"), _LEAST_PERSISTENCE)
        compactness = 4 * np.pi * self.areas / self.column("perimeter") ** 2
        return self.agreement * compactness * np.sqrt(persistence * self.contrast * self.areas)

    def cut(self) -> NDArray[np.float64]:
        """What a region is worth in a partition, (R,); see `ranked_forest`."""
        # regions are numbered as they are made, so the parent's number tells how many merges came before it
        last = np.asarray([len(tree) for tree in self._trees])[self.tree] - 1
        parent = self.column("parent")
        remaining = np.where(parent < 0, 1, last + 2 - parent)
        return self.agreement**2 * self.contrast / remaining

    def common(self, place: int) -> NDArray[np.float64]:
        """Pixels that a region has in common with every other, (R,)."""
        own, region = self.tree[place], self.region[place]
        start, stop = self._trees[own].start[region], self._trees[own].stop[region]
        parts = []
        for other, (starts, stops) in enumerate(self._ranges):
            if other == own:
                pixels = self._pixels[own]
                below = np.clip(pixels, pixels[start], pixels[stop])
            elif other < own:
                below = self._tables[own, other][stop] - self._tables[own, other][start]
            else:
                below = self._tables[other, own][:, stop] - self._tables[other, own][:, start]
            parts.append(below[stops] - below[starts])
        return np.concatenate(parts)


def _choose(
    candidates: _Candidates, merit: NDArray[np.float64], count: int, nms_iou: float
) -> tuple[IntArray, NDArray[np.float64], NDArray[np.float64]]:
    """Places of the chosen regions (K,), best first, what ranks them (K,), and the pixels they share (K, K)."""
    closest = np.zeros(len(merit))  # highest IoU with a chosen region
    left = np.ones(len(merit), dtype=bool)
    chosen: list[int] = []
    ranking, common = [], []
    while left.any() and len(chosen) < count:
        value = np.where(left, merit * np.sqrt(1 - closest), -1)
        best = int(value.argmax())
        shared = candidates.common(best)
        chosen.append(best)
        ranking.append(value[best])
        common.append(shared.astype(np.int32))
        np.maximum(closest, shared / (candidates.areas + candidates.areas[best] - shared), out=closest)
        left &= closest <= nms_iou
        left[best] = False
    places = np.asarray(chosen, dtype=np.int64)
    pixels = np.asarray(common, dtype=np.float64).reshape(len(places), len(merit))
    return places, np.asarray(ranking, dtype=np.float64), pixels[:, places]


def _pixels_below(tree: RegionTree) -> IntArray:
    """Pixels of the superpixels that stand before each place of `rank`, (N + 1,)."""
    count = len(tree) // 2 + 1
    areas = np.zeros(count + 1, dtype=np.int64)
    areas[tree.stop[:count]] = tree.areas[:count]
    return areas.cumsum()


@numba.njit(cache=True, nogil=True)
def _shared_pixels(rank, other):  # type: ignore[no-untyped-def]
    """[i, j]: pixels that lie in the first i superpixels of one tree and in the first j of the other."""
    table = np.zeros((rank.max() + 2, other.max() + 2), np.int32)
    for y in range(rank.shape[0]):
        for x in range(rank.shape[1]):
            table[rank[y, x] + 1, other[y, x] + 1] += 1
    for i in range(1, table.shape[0]):
        row = np.int32(0)
        for j in range(1, table.shape[1]):
            row += table[i, j]
            table[i, j] = table[i - 1, j] + row
    return table


@numba.njit(cache=True, nogil=True)
def _highest_iou(table, start, stop, areas, other_start, other_stop, other_areas):  # type: ignore[no-untyped-def]
    """Of each region of one tree and of each of the other, the highest IoU with a region of the other tree."""
    highest, other_highest = np.zeros(len(start)), np.zeros(len(other_start))
    for i in range(len(start)):
        above, below = table[start[i]], table[stop[i]]
        for j in range(len(other_start)):
            first, last = other_start[j], other_stop[j]
            common = below[last] - above[last] - below[first] + above[first]
            if common:
                iou = common / (areas[i] + other_areas[j] - common)
                highest[i] = max(highest[i], iou)
                other_highest[j] = max(other_highest[j], iou)
    return highest, other_highest
