"""Boundary refinement of soft masks behind one interface, and the tidying of what comes out (README §5, 6).

A refiner is made once per feature map and called once per mask. It sees a mask through a window of the image: an array
and its top-left corner, so that a small mask costs little however large the image is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from sohes.errors import ConfigError, unknown_name
from sohes.explore.cascadepsp import CascadePSP
from sohes.explore.crf import LocalCRF
from sohes.explore.guided import GuidedFilter
from sohes.explore.regions import Rectangle
from sohes.masks import FloatArray
from sohes.rle import BoolArray


class Refiner(Protocol):
    """Turns soft masks of one image into binary ones.

    Attributes:
        margin: pixels by which a window must reach beyond the soft mask's non-zero pixels, or else end with the image.
    """

    margin: int

    def __call__(self, soft: FloatArray, corner: tuple[int, int]) -> BoolArray:
        """The binary mask in the same window.

        Args:
            soft: (h, w) float32 in [0, 1], a window of the soft mask, which is 0 outside.
            corner: (top, left) of the window in the image.
        """


def make_refiner(name: str, image: NDArray[np.uint8], patch_px: float, *, area: Rectangle | None = None) -> Refiner:
    """A refiner for the masks of one feature map.

    Args:
        name: one of `REFINERS` of the settings.
        image: (H, W, 3) uint8 RGB, the whole image.
        patch_px: side of a feature patch in pixels of the image.
        area: the part of the image that the feature map shows; default all of it.

    Raises:
        ConfigError: no such refiner, or its package is not installed.
        WeightsError: its weights are missing or damaged.
    """
    if name not in _REFINERS:
        raise ConfigError(unknown_name("refiner", name, _REFINERS))
    return _REFINERS[name](image, patch_px, area or Rectangle(0, 0, image.shape[0], image.shape[1]))


class Threshold:
    """No refinement: the soft mask at 0.5."""

    margin = 0

    def __init__(self, image: NDArray[np.uint8], patch_px: float, area: Rectangle) -> None:
        pass

    def __call__(self, soft: FloatArray, corner: tuple[int, int]) -> BoolArray:
        return soft >= 0.5


_REFINERS: dict[str, Callable[[NDArray[np.uint8], float, Rectangle], Refiner]] = {
    "guided": GuidedFilter,
    "local_crf": LocalCRF,
    "cascadepsp": CascadePSP,
    "none": Threshold,
}


def clean_mask(mask: BoolArray) -> BoolArray:
    """Largest 8-connected component if it holds at least 80 % of the area, else all; holes filled. (h, w) bool.

    Works on the mask's box, so a wide window costs little.
    """
    x, y, width, height = cv2.boundingRect(mask.view(np.uint8))
    box = np.s_[y : y + height, x : x + width]
    cleaned = np.zeros_like(mask)
    inside = mask[box]
    if inside.size:
        count, labels = cv2.connectedComponents(inside.view(np.uint8), connectivity=8)
        if count > 2:
            areas = np.bincount(labels.ravel())[1:]
            if areas.max() >= 0.8 * areas.sum():
                inside = labels == areas.argmax() + 1
        contours, _ = cv2.findContours(inside.view(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
        cv2.drawContours(cleaned[box].view(np.uint8), contours, -1, 1, thickness=cv2.FILLED)
    return cleaned
