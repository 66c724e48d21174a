"""How well superpixels keep to human masks: boundary recall, undersegmentation error, achievable IoU.

As in benchmarks of superpixels (Achanta et al., PAMI 2012; Neubert and Protzel, 2012; Stutz, Hermans and Leibe, CVIU
2018), but of masks that may overlap and need not cover the image, since people outline wholes and their parts.
"""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from sohes.rle import BoolArray


class SuperpixelScores(NamedTuple):
    """Fractions.

    Attributes:
        boundary_recall: of the pixels on borders of masks, those with a border of superpixels at most 2 px away.
        undersegmentation: what superpixels leak over borders of masks, per px of mask: of each superpixel the smaller
            one of its parts inside and outside. Lower is better.
        achievable_iou: mean over masks, of a mask with all superpixels of which more than half lies in it.
        boundary_share: of all pixels, those on borders of superpixels; recall has to be seen beside it.
    """

    boundary_recall: float
    undersegmentation: float
    achievable_iou: float
    boundary_share: float


def superpixel_scores(labels: NDArray[np.integer], masks: BoolArray, *, tolerance_px: float = 2.0) -> SuperpixelScores:
    """Compare the superpixels of an image with its masks.

    Args:
        labels: (H, W) integers from 0.
        masks: (M, H, W) bool, none of them empty, not all of them the whole image.
        tolerance_px: distance at which a border of a mask counts as met.
    """
    count = int(labels.max()) + 1
    areas = np.bincount(labels.ravel(), minlength=count)
    human, leaks, ious = np.zeros(labels.shape, dtype=bool), 0, []
    for mask in masks:
        human |= _border(mask)
        inside = np.bincount(labels[mask], minlength=count)
        leaks += np.minimum(inside, areas - inside).sum()
        taken = 2 * inside > areas
        ious.append(inside[taken].sum() / (mask.sum() + (areas - inside)[taken].sum()))
    own = _border(labels)
    distance = cv2.distanceTransform((~own).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    return SuperpixelScores(
        boundary_recall=float((distance[human] <= tolerance_px).mean()),
        undersegmentation=float(leaks / masks.sum()),
        achievable_iou=float(np.mean(ious)),
        boundary_share=float(own.mean()),
    )


def _border(labels: NDArray[np.generic]) -> BoolArray:
    """Pixels whose right or lower neighbour is another's."""
    found = np.zeros(labels.shape, dtype=bool)
    found[:, :-1] = labels[:, 1:] != labels[:, :-1]
    found[:-1] |= labels[1:] != labels[:-1]
    return found
