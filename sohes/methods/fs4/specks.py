"""Label maps without tiny components."""

from __future__ import annotations

import numpy as np
from skimage.measure import label as connected_components
from skimage.segmentation import watershed

from sohes.rle import IntArray


def without_specks(labels: IntArray, min_px: float) -> IntArray:
    """A label map (H, W) whose components below `min_px` pixels are flooded by those around them.

    If all of them are that small, it stays as it is.
    """
    components = connected_components(labels, background=-1, connectivity=1)
    areas = np.bincount(components.ravel())
    kept = areas >= min_px
    if kept[1:].all() or not kept[1:].any():
        return labels
    label_of = np.zeros(len(areas), labels.dtype)
    label_of[components] = labels
    flooded = watershed(np.zeros(labels.shape, np.uint8), np.where(kept[components], components, 0))
    return label_of[flooded]
