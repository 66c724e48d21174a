"""From label maps, each level merging those of the next finer one, to a forest of masks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from skimage.measure import label as connected_components

from sohes.masks import FloatArray, MaskForest, ancestors_of
from sohes.rle import IntArray, Rle, encode_label_map

MAX_MASKS = 1000  # of an image, by score [protocol]


class _Mask(NamedTuple):
    rle: Rle
    source: str
    category: int
    score: float
    parent: int
    area: int  # of the label map


def resized(values: NDArray[np.integer] | FloatArray, size_hw: tuple[int, int]) -> NDArray:
    """A map (h, w) of labels or numbers at another size, each pixel as the nearest one of the map."""
    kind = np.float32 if values.dtype.kind == "f" else np.int32
    return cv2.resize(values.astype(kind), size_hw[::-1], interpolation=cv2.INTER_NEAREST_EXACT)


def nested_forest(levels: Mapping[str, IntArray], confidence: FloatArray, size_hw: tuple[int, int]) -> MaskForest:
    """Connected components of every level as masks, at most `MAX_MASKS`, best first, larger ones first among equals.

    A component is part of the one that it lies in on the level above; where it is all of that, it is left out.

    Args:
        levels: name to label map (h, w), the coarsest level first; negative where nothing is. A label of one level lies
            inside one label of the level above. Labels are distinct over all levels, as they become categories.
        confidence: (h, w), or (L, h, w) for each of the levels, in [0, 1]; the score of a mask is its mean.
        size_hw: of the image, px.

    Returns:
        Forest with the attributes `source`, name of the level, and `category_id`, the label.
    """
    height, width = confidence.shape[-2:]
    small = min(height, size_hw[0]), min(width, size_hw[1])  # so that every component has a pixel of the image
    of_levels = np.broadcast_to(confidence, (len(levels), height, width))
    masks: list[_Mask] = []
    # component of each pixel on the level above; their masks
    above, mask_above = np.zeros(small[0] * small[1], np.int64), [-1]
    for (name, labels), confident in zip(levels.items(), of_levels, strict=True):
        labels, sure = resized(labels, small), resized(confident, small).ravel()
        components = connected_components(labels, background=-1, connectivity=1)  # from 1 on, 0 for background
        flat = components.ravel()
        present, first, areas = np.unique(flat, return_index=True, return_counts=True)
        scores = np.bincount(flat, weights=sure) / np.maximum(np.bincount(flat), 1)
        mask_here = [-1] * (int(present[-1]) + 1)
        for index, place, area, rle in zip(
            present, first, areas, encode_label_map(resized(components, size_hw)), strict=True
        ):
            if index == 0:
                continue
            whole = mask_above[above[place]]
            if whole >= 0 and masks[whole].area == area:
                mask_here[index] = whole
                continue
            mask_here[index] = len(masks)
            masks.append(_Mask(rle, name, int(labels.flat[place]), float(scores[index]), whole, int(area)))
        above, mask_above = flat, mask_here
    parent = np.asarray([mask.parent for mask in masks], np.int64)
    forest = MaskForest(
        size_hw=size_hw,
        rles=[mask.rle for mask in masks],
        scores=np.asarray([mask.score for mask in masks], np.float32),
        ancestor=ancestors_of(parent),
        parent=parent,
        attributes={
            "source": np.asarray([mask.source for mask in masks], dtype=object),
            "category_id": np.asarray([mask.category for mask in masks], np.int64),
        },
    )
    order = np.lexsort((np.asarray([-mask.area for mask in masks]), -forest.scores))
    return forest.select(order[:MAX_MASKS])
