"""From the label maps of a segmentation to masks, and from masks to a ranked forest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from sohes.data.images import ImageArray
from sohes.masks import MaskForest, non_maximum_suppression, rle_areas

MAX_MASKS = 1000  # of an image: more do not count in the protocol
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


def label_rles(labels: NDArray[np.integer]) -> list[dict[str, Any]]:
    """COCO RLE of every region of a label map (H, W), in the order of the labels.

    The map is read once, so thousands of regions of a large image cost no more than one.
    """
    flat = labels.ravel(order="F")
    starts = np.flatnonzero(np.r_[True, flat[1:] != flat[:-1]])
    ends = np.r_[starts[1:], flat.size]
    order = np.argsort(flat[starts], kind="stable")
    _, first = np.unique(flat[starts][order], return_index=True)
    rles = []
    for runs in np.split(order, first[1:]):
        edges = np.r_[0, np.stack([starts[runs], ends[runs]], axis=1).ravel(), flat.size]
        rles.append({"size": list(labels.shape), "counts": np.diff(edges).tolist()})
    return compressed(rles)


def compressed(rles: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """COCO RLEs with lists as `counts`, with compressed text instead."""
    packed = [coco_mask.frPyObjects(rle, *rle["size"]) for rle in rles]
    return [{"size": list(rle["size"]), "counts": rle["counts"].decode("ascii")} for rle in packed]


def ranked_forest(
    rles: Sequence[dict[str, Any]], iou: NDArray[np.floating], scores: NDArray[Any], size_hw: tuple[int, int]
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
