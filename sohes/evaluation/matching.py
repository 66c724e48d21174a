"""COCO's matching of one image, kept as a small table: what each prediction took at every IoU threshold and size.

Predictions go by falling score. Each takes the free object of highest IoU that reaches the threshold; among equals the
later object. Ignored objects (crowds, and those outside the size range) are taken only where no other qualifies, and
make the prediction neutral. The rules and their order are pycocotools', so that every number is equal; the IoUs are its
own. Its precision of one size class is not needed, so predictions outside a size range are ignored.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from sohes.masks import AREA_CLASSES, FloatArray, MaskForest
from sohes.rle import BoolArray, IntArray, rle_areas

IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
AREA_RANGES = np.array([(0.0, 1e10), *AREA_CLASSES.values()])  # px²: all, s, m, l; both ends belong to a range
MAX_PREDICTIONS = 1000  # per image, the best by score


@dataclass(frozen=True)
class MatchTable:
    """What decides the numbers of one image; T IoU thresholds, A area ranges, N predictions by falling score.

    Attributes:
        scores: (N,) float32; at most 1,000.
        found: (N,) uint16, bit t set when the prediction took an object at threshold t; all sizes.
        neutral: (N,) uint16, bit t set when the prediction does not count at threshold t; all sizes.
        matched: (A, T) int64, objects found by all N.
        objects: (A,) int64, objects that count.
    """

    scores: FloatArray
    found: NDArray[np.uint16]
    neutral: NDArray[np.uint16]
    matched: IntArray
    objects: IntArray


def match_image(forest: MaskForest, objects: Sequence[Mapping[str, Any]], crowd: BoolArray) -> MatchTable:
    """Match the predictions of one image to its annotated objects.

    Args:
        forest: predictions; of more than 1,000 the best by score count, equal scores keep their order.
        objects: G compressed RLEs of the same size.
        crowd: (G,) bool; a crowd is matched by the share of the prediction that lies in it.
    """
    order = np.argsort(-forest.scores, kind="stable")[:MAX_PREDICTIONS]
    rles = [forest.rles[index] for index in order]
    ignored = crowd | _outside(rle_areas(objects))
    iou = np.zeros((len(rles), len(objects)))
    if rles and objects:
        iou[:] = coco_mask.iou(rles, list(objects), crowd.astype(int).tolist())
    found, neutral = _match(iou, crowd, ignored, np.minimum(IOU_THRESHOLDS, 1 - 1e-10))
    return MatchTable(
        scores=forest.scores[order].astype(np.float32),
        found=_bits(found[0]),
        neutral=_bits(neutral),
        matched=found.sum(axis=2),
        objects=(~ignored).sum(axis=1),
    )


def unpack_bits(bits: NDArray[np.uint16]) -> BoolArray:
    """(..., T) bool of packed thresholds (...)."""
    return (bits[..., None] >> np.arange(len(IOU_THRESHOLDS), dtype=np.uint16) & 1).astype(bool)


def _bits(flags: BoolArray) -> NDArray[np.uint16]:
    """Thresholds (T, N) packed to (N,)."""
    return (flags.astype(np.uint16) << np.arange(len(flags), dtype=np.uint16)[:, None]).sum(axis=0, dtype=np.uint16)


def _outside(areas: IntArray) -> BoolArray:
    """(A, M): which of M areas lie outside each range."""
    return (areas < AREA_RANGES[:, :1]) | (areas > AREA_RANGES[:, 1:])


@numba.njit(cache=True, nogil=True)
def _match(iou, crowd, ignored, thresholds):  # type: ignore[no-untyped-def]
    """Predictions that found an object (A, T, N) bool, and those that are neutral over all sizes (T, N) bool.

    Args:
        iou: (N, G) float64, predictions by falling score.
        crowd: (G,) bool.
        ignored: (A, G) bool; range 0 is all sizes.
        thresholds: (T,).
    """
    ranges, count = ignored.shape
    predictions = len(iou)
    found = np.zeros((ranges, len(thresholds), predictions), np.bool_)
    neutral = np.zeros((len(thresholds), predictions), np.bool_)
    highest = np.zeros(predictions)
    for i in range(predictions):
        for j in range(count):
            highest[i] = max(highest[i], iou[i, j])
    for a in range(ranges):
        order = np.argsort(ignored[a], kind="mergesort")  # those that count first
        for t in range(len(thresholds)):
            taken = np.zeros(count, np.bool_)
            for i in range(predictions):
                chosen, best = -1, thresholds[t]
                if highest[i] < best:
                    continue
                for j in order:
                    if taken[j] and not crowd[j]:
                        continue
                    if chosen >= 0 and ignored[a, j] and not ignored[a, chosen]:
                        break
                    if iou[i, j] >= best:
                        chosen, best = j, iou[i, j]
                if chosen >= 0:
                    taken[chosen] = True
                    found[a, t, i] = not ignored[a, chosen]
                    neutral[t, i] |= a == 0 and ignored[a, chosen]
    return found, neutral
