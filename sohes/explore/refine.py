"""Boundary refinement of soft masks, without any human-made mask behind it."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from sohes.masks import BoolArray


def guided_filter(
    luma: NDArray[np.float32], soft: NDArray[np.float32], *, radius: int, eps: float = 1e-3
) -> NDArray[np.float32]:
    """Guided filter of `soft` (H, W) in [0, 1] by `luma` (H, W) in [0, 1]; window of 2·radius + 1 px.

    Follows the local linear model of He et al. (Guided Image Filtering, 2010). Where the image is flat it smooths,
    where the image has an edge the mask's edge moves there.
    """

    def mean(values: NDArray[np.float32]) -> NDArray[np.float32]:
        side = 2 * radius + 1
        return np.asarray(cv2.boxFilter(values, -1, (side, side), borderType=cv2.BORDER_REFLECT), np.float32)

    mean_guide, mean_soft = mean(luma), mean(soft)
    slope = (mean(luma * soft) - mean_guide * mean_soft) / (mean(luma * luma) - mean_guide**2 + np.float32(eps))
    return mean(slope) * luma + mean(mean_soft - slope * mean_guide)


def refine_mask(
    luma: NDArray[np.float32], soft: NDArray[np.float32], *, patch_px: float, refiner: str = "guided"
) -> BoolArray:
    """Binary mask (H, W) of a soft mask (H, W) in [0, 1].

    Args:
        luma: (H, W) float32 in [0, 1], the image's brightness.
        patch_px: side of a feature patch in pixels of this image; the filter's radius is twice that.
        refiner: "guided", or "none" for plain thresholding at 0.5.
    """
    if refiner == "none":
        return soft >= 0.5
    radius = max(1, round(2 * patch_px))
    height, width = luma.shape
    x, y, w, h = cv2.boundingRect((soft > 0).view(np.uint8))
    window = np.s_[
        max(0, y - 2 * radius) : min(height, y + h + 2 * radius),
        max(0, x - 2 * radius) : min(width, x + w + 2 * radius),
    ]
    refined = np.zeros((height, width), dtype=bool)
    refined[window] = guided_filter(luma[window], soft[window], radius=radius) >= 0.5
    return refined


def clean_mask(mask: BoolArray) -> BoolArray:
    """Largest 8-connected component if it holds at least 80 % of the area, else all; holes filled. (H, W) bool."""
    count, labels, stats, _ = cv2.connectedComponentsWithStats(mask.view(np.uint8), connectivity=8)
    if count <= 1:
        return mask
    areas = stats[1:, cv2.CC_STAT_AREA]
    largest = int(areas.argmax())
    if count > 2 and areas[largest] >= 0.8 * areas.sum():
        mask = labels == largest + 1
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    filled = np.zeros(mask.shape, np.uint8)
    cv2.drawContours(filled, contours, -1, 1, thickness=cv2.FILLED)
    return filled.astype(bool)
