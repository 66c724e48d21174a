"""Class-agnostic mask recall and precision, COCO's rule with one category and up to 1,000 masks an image.

Protocol "mask_ar1000_v1". The evaluator is faster-coco-eval; its numbers equal pycocotools' (tests, 1e-9). Its arrays
are summarised here, because the usual summary is fixed to 100 detections an image. Sizes come from the masks, never
from boxes or from an `area` field; as in COCO's code exactly 32² (96²) px counts as S and as M (as M and as L).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from faster_coco_eval import COCO, COCOeval_faster
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from sohes.data.coco import ImageSet
from sohes.evaluation.inputs import Truth, load_inputs
from sohes.evaluation.protocols import MASK_AR1000
from sohes.masks import AREA_CLASSES, MaskForest
from sohes.records import Measurement

LIMITS = (1, 10, 100, 1000)  # masks an image, the best by score
IOU_THRESHOLDS = tuple(round(0.5 + 0.05 * step, 2) for step in range(10))

_METRICS = tuple(f"mask_ar_{limit}" for limit in LIMITS)
_METRICS += tuple(f"mask_ar_1000_{size}" for size in AREA_CLASSES)
_METRICS += ("mask_ap", "mask_ap50", "mask_ap75")


@dataclass(frozen=True, kw_only=True)
class MaskRecall:
    """Fractions in [0, 1]; NaN where no object decides the number (no object at all, or none of that size).

    `mask_ar_K` is the recall at K masks an image, averaged over IoU 0.50, 0.55, ..., 0.95; `_s`, `_m`, `_l` count
    objects below 32², up to 96², and above 96² px. `mask_ap*` are at 1,000 masks an image, over 101 recall points.
    """

    mask_ar_1: float
    mask_ar_10: float
    mask_ar_100: float
    mask_ar_1000: float
    mask_ar_1000_s: float
    mask_ar_1000_m: float
    mask_ar_1000_l: float
    mask_ap: float
    mask_ap50: float
    mask_ap75: float
    recall_at_iou: tuple[float, ...]  # at IOU_THRESHOLDS, 1,000 masks an image
    n_images: int
    n_objects: int  # without crowds
    n_predictions: int

    def measurements(self, *, method: str, backbone: str, init: str, data: str) -> list[Measurement]:
        """The metrics in percent, ready for a record; those that are NaN are left out."""
        values = {metric: getattr(self, metric) for metric in _METRICS}
        return [
            Measurement(
                method=method,
                backbone=backbone,
                init=init,
                data=data,
                protocol=MASK_AR1000.id,
                metric=metric,
                value=100.0 * value,
                n_images=self.n_images,
            )
            for metric, value in values.items()
            if not np.isnan(value)
        ]


def evaluate_masks(ground_truth: Truth, predictions: Mapping[int, MaskForest]) -> MaskRecall:
    """Score the masks of every image of `ground_truth` (SOHES, ICLR 2024: zero-shot evaluation by class-agnostic AR).

    Args:
        ground_truth: path of a COCO JSON, or what `read_coco` made of it. Categories do not matter. Crowds neither
            count nor hurt, as in COCO.
        predictions: forest by image id, at image size. An image that is missing here has no prediction: all its objects
            are missed. Of more than 1,000 masks the best by score count; equal scores keep their order.

    Raises:
        DataError: ground truth or predictions that cannot be used; see `load_inputs`.
    """
    truth = load_inputs(ground_truth, predictions)
    precision, recall = _evaluate(truth, predictions)
    by_limit = {f"mask_ar_{limit}": _mean(recall[:, 0, index]) for index, limit in enumerate(LIMITS)}
    by_size = {f"mask_ar_1000_{size}": _mean(recall[:, 1 + index, -1]) for index, size in enumerate(AREA_CLASSES)}
    best = precision[:, :, 0, -1]
    return MaskRecall(
        **by_limit,
        **by_size,
        mask_ap=_mean(best),
        mask_ap50=_mean(best[IOU_THRESHOLDS.index(0.5)]),
        mask_ap75=_mean(best[IOU_THRESHOLDS.index(0.75)]),
        recall_at_iou=tuple(_mean(row) for row in recall[:, 0, -1]),
        n_images=len(truth),
        n_objects=sum(not row.iscrowd for rows in truth.annotations.values() for row in rows),
        n_predictions=sum(len(forest) for forest in predictions.values()),
    )


def _evaluate(
    truth: ImageSet, predictions: Mapping[int, MaskForest]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Precision (T, R, A, K) and recall (T, A, K): IoU thresholds, recall points, area ranges (all first), limits."""
    evaluator = COCOeval_faster(
        _coco(truth, _truth_annotations(truth)),
        _coco(truth, _prediction_annotations(predictions)),
        "segm",
        ranges={name: list(limits) for name, limits in AREA_CLASSES.items()},
    )
    evaluator.params.maxDets = list(LIMITS)
    evaluator.evaluate()
    evaluator.accumulate()
    return np.asarray(evaluator.eval["precision"])[:, :, 0], np.asarray(evaluator.eval["recall"])[:, 0]


def _mean(values: NDArray[np.float64]) -> float:
    """Mean of what is defined (COCO marks the rest by -1); NaN when nothing is."""
    defined = values[values > -1]
    return float(defined.mean()) if defined.size else float("nan")


def _coco(truth: ImageSet, annotations: list[dict[str, Any]]) -> COCO:
    images = [{"id": item.id, "height": item.height, "width": item.width} for item in truth.items]
    return COCO({"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "entity"}]})


def _truth_annotations(truth: ImageSet) -> list[dict[str, Any]]:
    pairs = [(item, row) for item in truth.items for row in truth.annotations.get(item.id, ())]
    return [
        # ids are counted anew: COCO's code takes an object with id 0 for "no match"
        _annotation(index, item.id, row.rle(item.size_hw)) | {"iscrowd": int(row.iscrowd != 0)}
        for index, (item, row) in enumerate(pairs, start=1)
    ]


def _prediction_annotations(predictions: Mapping[int, MaskForest]) -> list[dict[str, Any]]:
    rows = [
        (image_id, rle, float(score))
        for image_id, forest in predictions.items()
        for rle, score in zip(forest.rles, forest.scores, strict=True)
    ]
    return [
        _annotation(index, image_id, rle) | {"iscrowd": 0, "score": score}
        for index, (image_id, rle, score) in enumerate(rows, start=1)
    ]


def _annotation(index: int, image_id: int, rle: dict[str, Any]) -> dict[str, Any]:
    """One annotation without a box: with one, box area would decide the size class."""
    area = float(coco_mask.area(rle))
    return {"id": index, "image_id": image_id, "category_id": 1, "segmentation": rle, "area": area}
