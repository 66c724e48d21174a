"""Targets: the labels of an image that a view of it leaves (README §3)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

import numpy as np
from numpy.typing import NDArray

from sohes.data.coco import ImageItem
from sohes.data.views import View
from sohes.instruct.settings import SampleSettings
from sohes.rle import BoolArray, IntArray, MaskRuns

CURRICULUM_START = 1 / 16  # of the canvas: area bound of a target at the first step, under a curriculum


def area_bound_px(progress: float, settings: SampleSettings) -> int:
    """Area of a target at least, px, after `progress` (share) of a training: falls evenly in its logarithm.

    >>> settings = SampleSettings(crop_px=448, curriculum=0.5)
    >>> [area_bound_px(progress, settings) for progress in (0, 0.25, 0.5, 1)]
    [12544, 1120, 100, 100]
    """
    start, end = CURRICULUM_START * settings.crop_px**2, max(1, settings.min_area_px)
    if progress >= settings.curriculum or start <= end:
        return settings.min_area_px
    return round(start * (end / start) ** (progress / settings.curriculum))


def surviving_targets(
    masks: MaskRuns, areas_before: NDArray[np.floating], ancestor: BoolArray, settings: SampleSettings
) -> IntArray:
    """Indices of M cropped masks that stay targets: large enough, enough left, not the same as their part.

    Args:
        masks: after the crop.
        areas_before: (M,), what they would have on a canvas that cuts nothing off, px.
        ancestor: (M, M).
        settings: the bounds.
    """
    areas = masks.areas
    stays = (areas >= settings.min_area_px) & (areas >= settings.min_area_left * areas_before)
    alike = areas[None, :] > settings.same_iou * areas[:, None]  # an IoU is at most the ratio of the areas
    wholes, parts = np.nonzero(ancestor & alike & stays[:, None] & stays[None, :])
    shared = masks.common(np.stack([wholes, parts], axis=1))
    same = shared > settings.same_iou * (areas[wholes] + areas[parts] - shared)
    stays[wholes[same]] = False
    return np.flatnonzero(stays)


@dataclass(frozen=True)
class ViewedLabels:
    """M labels of an image as a view shows them.

    Attributes:
        item: the image.
        view: of it.
        scores: (M,), for ranking.
        masks: of the view's size.
        areas_before: (M,), what the masks would have if nothing were cut off or covered, px.
        ancestor: (M, M).
        kept: (K,) indices of those that are targets.
    """

    item: ImageItem
    view: View
    scores: NDArray[np.float32]
    masks: MaskRuns
    areas_before: NDArray[np.floating]
    ancestor: BoolArray
    kept: IntArray

    def within(self, region: BoolArray, settings: SampleSettings) -> Self:
        """What is left where only a region (S, S) bool of the canvas is seen."""
        masks = self.masks.within(region)
        return replace(self, masks=masks, kept=surviving_targets(masks, self.areas_before, self.ancestor, settings))
