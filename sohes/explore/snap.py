"""Masks of a segmenter beside the region trees of the same image [ours] (README §11).

What a mask has in common with regions is counted in superpixels, for a region is a range of them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numba
import numpy as np
from numpy.typing import NDArray

from sohes.explore.region_tree import RegionTree
from sohes.masks import FloatArray, MaskForest
from sohes.rle import BoolArray, IntArray, MaskRuns, Rle, encode_window

_INSIDE = 0.5  # share of a superpixel that a mask covers where it takes all of it


def snapped(rles: Sequence[Rle], tree: RegionTree) -> list[Rle]:
    """Each mask as the superpixels of which it covers more than half; as it is, where there are none.

    Args:
        rles: masks of the tree's image.
        tree: its superpixels are taken, whatever they merge into.
    """
    height, width = tree.rank.shape
    below = _pixels_below(MaskRuns.of_rles(rles, (height, width)), tree)
    count = len(tree) // 2 + 1
    areas, boxes = np.zeros(count, np.int64), np.zeros((count, 4), np.int64)
    areas[tree.start[:count]], boxes[tree.start[:count]] = tree.areas[:count], tree.boxes[:count]
    taken = np.diff(below, axis=1) > _INSIDE * areas
    return [_union(tree, boxes, ranks) if ranks.any() else rle for rle, ranks in zip(rles, taken, strict=True)]


def _union(tree: RegionTree, boxes: IntArray, ranks: BoolArray) -> Rle:
    """Superpixels by rank (N,), as one mask; `boxes` of all by rank."""
    (top, left), (bottom, right) = boxes[ranks, :2].min(axis=0), boxes[ranks, 2:].max(axis=0)
    mask = ranks[tree.rank[top:bottom, left:right]]
    return encode_window(mask, (int(top), int(left)), (tree.rank.shape[0], tree.rank.shape[1]))


def region_iou(rles: Sequence[Rle], tree: RegionTree) -> FloatArray:
    """IoU of every mask with every region of a tree, (M, R) float32."""
    masks = MaskRuns.of_rles(rles, (tree.rank.shape[0], tree.rank.shape[1]))
    below = _pixels_below(masks, tree)
    common = below[:, tree.stop] - below[:, tree.start]
    return (common / (masks.areas[:, None] + tree.areas - common)).astype(np.float32)


def _pixels_below(masks: MaskRuns, tree: RegionTree) -> NDArray[np.int32]:
    """Pixels of each mask in the tree's first 0, 1, ... N superpixels by rank, (M, N + 1)."""
    by_column = np.ascontiguousarray(tree.rank.T).ravel()
    below = np.zeros((len(masks), len(tree) // 2 + 2), np.int32)
    _count(masks.starts, masks.ends, masks.first, by_column, below)
    return below.cumsum(axis=1, dtype=np.int32)


@numba.njit(cache=True, nogil=True)
def _count(starts, ends, first, ranks, count):  # type: ignore[no-untyped-def]
    """Add to count[m, i + 1] the pixels of mask m in the superpixel of rank i; `ranks` of pixels, column by column."""
    for mask in range(len(first) - 1):
        for run in range(first[mask], first[mask + 1]):
            for pixel in range(starts[run], ends[run]):
                count[mask, ranks[pixel] + 1] += 1


def region_support(forest: MaskForest, trees: Sequence[RegionTree]) -> list[NDArray[np.float64]]:
    """What a forest says for each region of each tree: the highest score times IoU of its masks, (R,) in [0, 1]."""
    scores = forest.scores[:, None]
    return [(region_iou(forest.rles, tree) * scores).max(axis=0, initial=0).astype(np.float64) for tree in trees]
