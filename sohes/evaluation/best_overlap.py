"""Average best overlap of annotated wholes and of annotated parts, protocol "best_overlap_v1" (README §10)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from sohes.data.coco import ImageItem, ImageSet
from sohes.evaluation.inputs import Truth, checked, read_truth
from sohes.evaluation.protocols import BEST_OVERLAP, MASK_COUNT
from sohes.masks import MaskForest
from sohes.rle import BoolArray


@dataclass(frozen=True, kw_only=True)
class BestOverlap:
    """Fractions in [0, 1]; NaN where nothing decides the number.

    Attributes:
        objects: mean over all annotated objects of the highest IoU with a predicted mask of the image.
        wholes: the same of those without a parent.
        parts: the same of those with one.
        wholes_image, parts_image: mean in each image that has some, then over these images.
        masks_per_image: predicted masks that were compared, over all images.
    """

    objects: float
    wholes: float
    parts: float
    wholes_image: float
    parts_image: float
    masks_per_image: float

    def metrics(self) -> dict[str, tuple[float, str]]:
        """Value, in the unit of its protocol, and protocol of every metric by name; without parts those of wholes."""
        kinds = ("wholes", "parts") if not math.isnan(self.parts) else ("wholes",)
        names = [f"{kind}{averaging}" for averaging in ("", "_image") for kind in kinds]
        values = {f"best_overlap_{name}": (100.0 * getattr(self, name), BEST_OVERLAP.id) for name in names}
        return values | {"masks_per_image": (self.masks_per_image, MASK_COUNT.id)}


def evaluate_best_overlap(
    ground_truth: Truth, predictions: Mapping[int, MaskForest], *, count: int | None = None
) -> BestOverlap:
    """How well the best mask of an image fits each annotated object (Uijlings et al., IJCV 2013, without classes).

    Args:
        ground_truth: path of a COCO JSON, or what `read_coco` made of it. Crowds do not count; a child of a crowd goes
            to the crowd's parent.
        predictions: forest by image id, at image size. Objects of an image that is missing here have an overlap of 0.
        count: masks of an image that are compared, the best by score, equal scores in their order; None for all.

    Raises:
        DataError: ground truth or predictions that cannot be used; see `read_truth` and `checked`.
    """
    scorer = BestOverlapScorer(read_truth(ground_truth))
    for item, forest in checked(scorer.truth, predictions):
        if count is not None:
            forest = forest.select(np.argsort(-forest.scores, kind="stable")[:count])
        scorer.add(item, forest)
    return scorer.result()


class BestOverlapScorer:
    """Best overlaps image by image: `add` each image once, then ask for the `result`."""

    def __init__(self, truth: ImageSet) -> None:
        self.truth = truth
        self._best: dict[int, NDArray[np.float64]] = {}  # of each object of an image
        self._is_part: dict[int, BoolArray] = {}
        self._n_masks = 0

    def add(self, item: ImageItem, forest: MaskForest) -> None:
        """Compare the predictions of one image, which must fit it (see `checked`), with its objects."""
        annotated = self.truth.forest(item.id)
        annotated = annotated.select(np.flatnonzero(annotated.attributes["iscrowd"] == 0))
        iou = np.zeros((len(forest), len(annotated)))
        if iou.size:
            iou[:] = coco_mask.iou(forest.rles, annotated.rles, [0] * len(annotated))
        self._best[item.id] = iou.max(axis=0, initial=0)
        self._is_part[item.id] = annotated.parent >= 0
        self._n_masks += len(forest)

    def result(self) -> BestOverlap:
        """The numbers; images that were never added have no predictions."""
        for item in self.truth.items:
            if item.id not in self._best:
                self.add(item, MaskForest.from_rles([], item.size_hw))
        images = [(best, self._is_part[image_id]) for image_id, best in self._best.items()]
        wholes, parts = [best[~is_part] for best, is_part in images], [best[is_part] for best, is_part in images]
        return BestOverlap(
            objects=_mean(np.concatenate([*wholes, *parts])),
            wholes=_mean(np.concatenate(wholes)),
            parts=_mean(np.concatenate(parts)),
            wholes_image=_mean([own.mean() for own in wholes if len(own)]),
            parts_image=_mean([own.mean() for own in parts if len(own)]),
            masks_per_image=self._n_masks / len(images),
        )


def _mean(values: NDArray[np.float64] | list[np.floating]) -> float:
    return float(np.mean(values)) if len(values) else math.nan
