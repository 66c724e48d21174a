"""Small images to segment, their label maps enlarged again, and masks as a ranked forest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from sohes.data.images import ImageArray
from sohes.masks import MaskForest, non_maximum_suppression
from sohes.rle import Rle, rle_areas

MAX_MASKS = 1000  # per image: more do not count in the protocol
_SAME_IOU = 0.95  # above it, two masks are one found twice


def shrunk(image: ImageArray, long_px: int) -> ImageArray:
    """The image (H, W, 3) with its longer side at most `long_px`."""
    height, width = image.shape[:2]
    scale = long_px / max(height, width)
    if scale >= 1:
        return image
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8)


def enlarged(labels: NDArray[np.integer], size_hw: tuple[int, int]) -> NDArray[np.integer]:
    """The label map (h, w) at another size, by the nearest label."""
    rows, columns = (
        ((np.arange(side) + 0.5) * given / side).astype(int) for side, given in zip(size_hw, labels.shape, strict=True)
    )
    return labels[rows][:, columns]


def ranked_forest(
    rles: Sequence[Rle], iou: NDArray[np.floating], scores: NDArray[Any], size_hw: tuple[int, int]
) -> MaskForest:
    """The distinct masks by score, larger ones first where scores are equal, at most `MAX_MASKS`; related by coverage.

    Args:
        rles: M masks of one image, in any order; the whole image itself is left out, for it says nothing.
        iou: (M, M), of every pair.
        scores: (M,), higher is better.
    """
    areas = rle_areas(rles)
    order = np.lexsort((-areas, -np.asarray(scores)))
    order = order[areas[order] < size_hw[0] * size_hw[1]]
    kept = non_maximum_suppression(iou, order, _SAME_IOU)[:MAX_MASKS]
    return MaskForest.from_rles([rles[i] for i in kept], size_hw, scores=np.asarray(scores)[kept])
