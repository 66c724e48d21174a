"""Copy-paste: entities of one view laid onto another (Ghiasi et al., Simple Copy-Paste, 2021; README §3)."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np

from sohes.data.images import ImageArray
from sohes.instruct.settings import SampleSettings
from sohes.instruct.targets import ViewedLabels
from sohes.rle import BoolArray, IntArray

_MOST = 4  # entities that are pasted, one at least
_BEST = 20  # they are drawn from so many of the highest score
_LARGEST = 1 / 3  # of the view below: what they may cover together
_FEATHER_PX = 1.0  # standard deviation of the blur along their outline


def draw_entities(above: ViewedLabels, most_px: float, rng: np.random.Generator) -> IntArray:
    """Indices of one to four targets, among those of the highest score, that have at most `most_px` together, px."""
    areas = above.masks.areas
    fitting = above.kept[areas[above.kept] <= most_px]
    best = fitting[np.argsort(-above.scores[fitting], kind="stable")[:_BEST]]
    drawn = rng.permutation(best)[: rng.integers(1, _MOST + 1)]
    return drawn[np.cumsum(areas[drawn]) <= most_px]


def paste(
    below: ViewedLabels, above: ViewedLabels, settings: SampleSettings, rng: np.random.Generator
) -> tuple[ViewedLabels, ViewedLabels, BoolArray] | None:
    """Lay some entities of one view onto another.

    Nothing above is part of anything below, or the other way around: that they overlap says nothing about the world,
    and what is covered is no longer in the masks below.

    Returns:
        The labels that are left below, the entities above with their parts, and the region (S, S) bool that these
        cover; None where there is nothing to paste.
    """
    height, width = below.view.size_hw
    entities = draw_entities(above, _LARGEST * height * width, rng)
    shapes = np.zeros((len(entities), settings.crop_px, settings.crop_px), dtype=bool)
    above.masks.paint(entities, shapes)
    region: BoolArray = np.asarray(shapes.any(axis=0))
    region[height:], region[:, width:] = False, False  # the padding below stays
    seen = above.within(region, settings)
    pasted = np.union1d(entities, np.flatnonzero(above.ancestor[entities].any(axis=0)))
    kept = np.intersect1d(seen.kept, pasted)
    if not len(kept):
        return None
    return below.within(~region, settings), replace(seen, kept=kept), region


def blend(below: ImageArray, above: ImageArray, region: BoolArray) -> ImageArray:
    """The view (h, w, 3) uint8 `below` with the pixels of another (h', w', 3) in a region (S, S), its outline soft."""
    height, width = below.shape[:2]
    missing = max(0, height - above.shape[0]), max(0, width - above.shape[1])
    padded = cv2.copyMakeBorder(above, 0, missing[0], 0, missing[1], cv2.BORDER_REPLICATE)[:height, :width]
    share = cv2.GaussianBlur(region[:height, :width].astype(np.float32), (0, 0), _FEATHER_PX)[:, :, None]
    return np.asarray(np.rint(below + share * (padded.astype(np.float32) - below)), np.uint8)
