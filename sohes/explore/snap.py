"""Masks of a segmenter beside the region trees of the same image [ours] (README §8 of `segmenters`).

What a mask has in common with regions is counted in superpixels, for a region is a range of them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numba
import numpy as np
from numpy.typing import NDArray

from sohes.explore.region_tree import RegionTree
from sohes.masks import FloatArray, MaskForest
from sohes.rle import MaskRuns, Rle, encode_window


def snapped(forest: MaskForest, trees: Sequence[RegionTree], *, max_area: float) -> tuple[list[Rle], FloatArray]:
    """The region most alike to each mask, of all trees, and the mask's score times their IoU.

    Args:
        forest: masks of an image.
        trees: at least one, of the same image.
        max_area: px, of the regions that are considered. A mask that has nothing in common with one is left out.
    """
    alike = [np.where(tree.areas <= max_area, region_iou(forest.rles, tree), 0) for tree in trees]
    highest = np.stack([iou.max(axis=1) for iou in alike], axis=1)
    kept = np.flatnonzero(highest.max(axis=1) > 0)
    rles = []
    for mask in kept:
        choice = highest[mask].argmax()
        window, corner = trees[choice].window(int(alike[choice][mask].argmax()))
        rles.append(encode_window(window, corner, forest.size_hw))
    return rles, (forest.scores * highest.max(axis=1))[kept]


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
