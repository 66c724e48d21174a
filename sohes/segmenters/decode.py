"""From predicted relations to a forest (README §4)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from sohes.masks import FloatArray, MaskForest, non_maximum_suppression, pairwise_iou
from sohes.rle import BoolArray, IntArray, Rle

MAX_MASKS = 1000  # of an image, by score [protocol]


def relations(probability: NDArray[np.floating], areas: NDArray[np.integer], threshold: float = 0.5) -> BoolArray:
    """R[i, j]: i is an ancestor of j, by the head's probabilities (M, M). Larger areas above smaller: acyclic."""
    larger = areas[:, None] > areas[None, :]
    return (probability > threshold) & (probability > probability.T) & larger


def decode_parents(relation: BoolArray, areas: NDArray[np.integer], probability: NDArray[np.floating]) -> IntArray:
    """Parent of each mask (M,), -1 for a root: among its ancestors the one with most of the others above it.

    That one is the nearest where the relation is consistent; ties go to the smaller area, then the higher probability.
    """
    parent = np.full(len(relation), -1, dtype=np.int64)
    for child in range(len(relation)):
        ancestors = np.flatnonzero(relation[:, child])
        if len(ancestors):
            above = relation[np.ix_(ancestors, ancestors)].sum(0)
            parent[child] = ancestors[np.lexsort((probability[ancestors, child], -areas[ancestors], above))[-1]]
    return parent


def select_forest(forest: MaskForest, *, min_score: float = 0.5, nms_iou: float = 0.8) -> MaskForest:
    """The masks of a prediction that a person wants to see: scored above `min_score`, without duplicates.

    Masks that share more than `nms_iou` look the same, and each would take a level of the forest to itself. Parents are
    decoded again among the chosen: one that was decoded among all predictions may be a mask that nobody sees.
    """
    order = [index for index in np.argsort(-forest.scores, kind="stable") if forest.scores[index] > min_score]
    confident = forest.select(order)
    kept = non_maximum_suppression(pairwise_iou(confident.rles), range(len(confident)), nms_iou)
    chosen = confident.select(kept)
    by_score = np.broadcast_to(chosen.scores[:, None], chosen.ancestor.shape)
    return replace(chosen, parent=decode_parents(chosen.ancestor, chosen.areas, by_score))


def distinct(rles: Sequence[Rle], scores: FloatArray, nms_iou: float) -> tuple[list[Rle], FloatArray]:
    """The best `MAX_MASKS` masks and scores, best first, of those that share at most `nms_iou` with one before.

    Masks of equal score keep their order.
    """
    order = np.argsort(-scores, kind="stable")
    kept = non_maximum_suppression(pairwise_iou(rles), order, nms_iou)[:MAX_MASKS]
    return [rles[index] for index in kept], scores[kept]
