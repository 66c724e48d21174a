"""Boundary refinement of soft masks behind one interface, and the tidying of what comes out (§2.5 and 2.6).

A refiner is made once per image and called once per mask. It sees a mask through a window of the image: an array and
the window's top-left corner, so that a small mask costs little however large the image is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from sohes.errors import ConfigError, unknown_name
from sohes.masks import BoolArray

FloatImage = NDArray[np.float32]


class Refiner(Protocol):
    """Turns soft masks of one image into binary ones."""

    def margin(self, patch_px: float) -> int:
        """Pixels by which a window must reach beyond the soft mask's non-zero pixels, or else end with the image."""

    def __call__(self, soft: FloatImage, corner: tuple[int, int], patch_px: float) -> BoolArray:
        """The binary mask in the same window.

        Args:
            soft: (h, w) float32 in [0, 1], a window of the soft mask; the mask is 0 outside.
            corner: (top, left) of the window in the image.
            patch_px: side of a feature patch in pixels of the image.
        """


def make_refiner(name: str, image: NDArray[np.uint8]) -> Refiner:
    """The refiner `name` for `image` (H, W, 3) RGB.

    Raises:
        ConfigError: no such refiner.
    """
    if name not in _REFINERS:
        raise ConfigError(unknown_name("refiner", name, _REFINERS))
    return _REFINERS[name](image)


class Threshold:
    """No refinement: the soft mask at 0.5."""

    def __init__(self, image: NDArray[np.uint8]) -> None:
        pass

    def margin(self, patch_px: float) -> int:
        return 0

    def __call__(self, soft: FloatImage, corner: tuple[int, int], patch_px: float) -> BoolArray:
        return soft >= 0.5


class GuidedFilter:
    """Guided filter by the image's brightness, He et al. (Guided Image Filtering, 2010); radius of two patches."""

    def __init__(self, image: NDArray[np.uint8]) -> None:
        self.luma = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32) / np.float32(255)

    def margin(self, patch_px: float) -> int:
        return 2 * _radius(patch_px)

    def __call__(self, soft: FloatImage, corner: tuple[int, int], patch_px: float) -> BoolArray:
        window = np.s_[corner[0] : corner[0] + soft.shape[0], corner[1] : corner[1] + soft.shape[1]]
        return guided_filter(self.luma[window], soft, radius=_radius(patch_px)) >= 0.5


_REFINERS: dict[str, Callable[[NDArray[np.uint8]], Refiner]] = {"guided": GuidedFilter, "none": Threshold}


def _radius(patch_px: float) -> int:
    return max(1, round(2 * patch_px))


def guided_filter(luma: FloatImage, soft: FloatImage, *, radius: int, eps: float = 1e-3) -> FloatImage:
    """Guided filter of `soft` (H, W) in [0, 1] by `luma` (H, W) in [0, 1]; window of 2·radius + 1 px.

    Follows the local linear model of He et al. (Guided Image Filtering, 2010). Where the image is flat it smooths,
    where the image has an edge the mask's edge moves there.
    """

    def mean(values: FloatImage) -> FloatImage:
        side = 2 * radius + 1
        return np.asarray(cv2.boxFilter(values, -1, (side, side), borderType=cv2.BORDER_REFLECT), np.float32)

    mean_guide, mean_soft = mean(luma), mean(soft)
    slope = (mean(luma * soft) - mean_guide * mean_soft) / (mean(luma * luma) - mean_guide**2 + np.float32(eps))
    return mean(slope) * luma + mean(mean_soft - slope * mean_guide)


def refine_mask(luma: FloatImage, soft: FloatImage, *, patch_px: float, refiner: str = "guided") -> BoolArray:
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
