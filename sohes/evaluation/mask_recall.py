"""Class-agnostic mask recall and precision, COCO's rule with one category and up to 1,000 masks per image (README §2).

Images are matched one at a time and leave only small tables (about 8 bytes per prediction), so memory does not grow
with the masks. Sizes come from the masks, never from boxes or from an `area` field; as in COCO's code exactly 32²
(96²) px counts as S and as M (as M and as L).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sohes.data.coco import ImageItem, ImageSet
from sohes.evaluation.bootstrap import recall_interval
from sohes.evaluation.inputs import Truth, checked, read_truth
from sohes.evaluation.matching import IOU_THRESHOLDS, MAX_PREDICTIONS, MatchTable, match_image, unpack_bits
from sohes.evaluation.protocols import MASK_AR1000, MASK_AR1000_BOOTSTRAP
from sohes.masks import AREA_CLASSES, MaskForest

LIMITS = (1, 10, 100, MAX_PREDICTIONS)  # masks per image, the best by score
COUNTS = (1, 2, 5, 10, 20, 50, 100, 200, 500, MAX_PREDICTIONS)  # the same for a curve
SIZES = ("mask_ar_1000", *(f"mask_ar_1000_{size}" for size in AREA_CLASSES))  # metrics, one for each area range

_RECALL_POINTS = np.linspace(0.0, 1.0, 101)


@dataclass(frozen=True, kw_only=True)
class MaskRecall:
    """Fractions in [0, 1]; NaN where no object decides the number (no object at all, or none of that size).

    `mask_ar_K` is the recall at K masks per image, averaged over IoU 0.50, 0.55, ..., 0.95; `_s`, `_m`, `_l` count
    objects below 32², up to 96², and above 96² px. `mask_ap*` are at 1,000 masks per image, over 101 recall points.

    Attributes:
        recall_at_iou: recall at each of `IOU_THRESHOLDS`, 1,000 masks per image.
        recall_at_count: `mask_ar_K` for K = 1, 2, ..., 1000.
        intervals: 95 % interval of `mask_ar_1000` and its size classes, by metric; NaN for fewer than two images.
        images: what decides recall in each image, by id: `objects` and `found_1000`, both also by size as `_s`, `_m`,
            `_l`, and `found_100`. Found is counted at each of the ten IoU thresholds and summed, so all are integers,
            and sums of them over any set of images give its recall.
        n_objects: without crowds.
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
    recall_at_iou: tuple[float, ...]
    recall_at_count: tuple[float, ...]
    intervals: Mapping[str, tuple[float, float]]
    images: pd.DataFrame
    n_images: int
    n_objects: int
    n_predictions: int

    @property
    def by_image(self) -> dict[int, float]:
        """`mask_ar_1000` of each image that has objects, by image id."""
        some = self.images[self.images["objects"] > 0]
        return dict((some["found_1000"] / (len(IOU_THRESHOLDS) * some["objects"])).items())  # type: ignore[arg-type]

    def metrics(self) -> dict[str, tuple[float, str]]:
        """Value in percent and protocol of every metric by name; `_low` and `_high` are the ends of an interval."""
        values = {f"mask_ar_{count}": (100.0 * self.recall_at_count[count - 1], MASK_AR1000.id) for count in COUNTS}
        for name in (*SIZES[1:], "mask_ap", "mask_ap50", "mask_ap75"):
            values[name] = 100.0 * getattr(self, name), MASK_AR1000.id
        for threshold, recall in zip(IOU_THRESHOLDS, self.recall_at_iou, strict=True):
            values[f"mask_recall_iou{100 * threshold:.0f}"] = 100.0 * recall, MASK_AR1000.id
        for name, bounds in self.intervals.items():
            for end, bound in zip(("low", "high"), bounds, strict=True):
                values[f"{name}_{end}"] = 100.0 * bound, MASK_AR1000_BOOTSTRAP.id
        return values


def evaluate_masks(ground_truth: Truth, predictions: Mapping[int, MaskForest]) -> MaskRecall:
    """Score the masks of every image of `ground_truth` (SOHES, ICLR 2024: zero-shot evaluation by class-agnostic AR).

    Args:
        ground_truth: path of a COCO JSON, or what `read_coco` made of it. Categories do not matter. Crowds neither
            count nor hurt, as in COCO.
        predictions: forest by image id, at image size; asked for one at a time. An image that is missing here has no
            prediction: all its objects are missed. Of more than 1,000 masks the best by score count; equal scores keep
            their order.

    Raises:
        DataError: ground truth or predictions that cannot be used; see `read_truth` and `checked`.
    """
    scorer = MaskScorer(read_truth(ground_truth))
    for item, forest in checked(scorer.truth, predictions):
        scorer.add(item, forest)
    return scorer.result()


class MaskScorer:
    """Mask recall image by image: `add` each image once, then ask for the `result`."""

    def __init__(self, truth: ImageSet) -> None:
        self.truth = truth
        self._tables: dict[int, MatchTable] = {}
        self._n_predictions = 0

    def add(self, item: ImageItem, forest: MaskForest) -> None:
        """Match the predictions of one image, which must fit it (see `checked`)."""
        rows = self.truth.annotations.get(item.id, [])
        objects, crowd = [row.rle(item.size_hw) for row in rows], np.array([row.iscrowd != 0 for row in rows], bool)
        self._tables[item.id] = match_image(forest, objects, crowd)
        self._n_predictions += len(forest)

    def result(self) -> MaskRecall:
        """The numbers; images that were never added have no predictions."""
        for item in self.truth.items:
            if item.id not in self._tables:
                self.add(item, MaskForest.from_rles([], item.size_hw))
        # by id, as COCO's code does: it decides between equal scores of different images
        tables = [self._tables[image_id] for image_id in sorted(self._tables)]
        matched = _stack([table.matched for table in tables], (len(AREA_CLASSES) + 1, len(IOU_THRESHOLDS)))
        objects = _stack([table.objects for table in tables], (len(AREA_CLASSES) + 1,))
        recall = _divide(matched.sum(axis=0), objects.sum(axis=0)[:, None])
        n_objects = int(objects[:, 0].sum())
        at_count = _divide(_found_at_count(tables), n_objects).mean(axis=1)
        precision = _average_precision(tables, n_objects)
        return MaskRecall(
            **{f"mask_ar_{limit}": float(at_count[limit - 1]) for limit in LIMITS},
            **{name: float(value) for name, value in zip(SIZES[1:], recall.mean(axis=1)[1:], strict=True)},
            mask_ap=float(precision.mean()),
            mask_ap50=float(precision[0]),
            mask_ap75=float(precision[5]),
            recall_at_iou=tuple(recall[0].tolist()),
            recall_at_count=tuple(at_count.tolist()),
            intervals=dict(zip(SIZES, recall_interval(matched.mean(axis=2), objects), strict=True)),
            images=_image_counts(sorted(self._tables), tables, matched.sum(axis=2), objects),
            n_images=len(tables),
            n_objects=n_objects,
            n_predictions=self._n_predictions,
        )


def _image_counts(
    ids: list[int], tables: list[MatchTable], found: NDArray[np.int64], objects: NDArray[np.int64]
) -> pd.DataFrame:
    sizes = [name.removeprefix("mask_ar_1000") for name in SIZES]
    counts = {f"objects{size}": objects[:, place] for place, size in enumerate(sizes)}
    counts |= {f"found_1000{size}": found[:, place] for place, size in enumerate(sizes)}
    counts["found_100"] = np.array([unpack_bits(table.found[:100]).sum() for table in tables], np.int64)
    return pd.DataFrame(counts, index=pd.Index(ids, name="image_id"))


def _found_at_count(tables: list[MatchTable]) -> NDArray[np.int64]:
    """(1000, T): objects found by the first 1, 2, ..., 1000 predictions of each image."""
    at_rank = np.zeros((MAX_PREDICTIONS, len(IOU_THRESHOLDS)), np.int64)
    for table in tables:
        at_rank[: len(table.found)] += unpack_bits(table.found)
    return at_rank.cumsum(axis=0)


def _average_precision(tables: list[MatchTable], n_objects: int) -> NDArray[np.float64]:
    """(T,): precision at 101 recall points, no lower than at any higher recall, averaged; NaN without objects."""
    if n_objects == 0:
        return np.full(len(IOU_THRESHOLDS), np.nan)
    order = np.argsort(-np.concatenate([table.scores for table in tables]), kind="stable")
    found = np.concatenate([table.found for table in tables])[order]
    neutral = np.concatenate([table.neutral for table in tables])[order]
    average = np.zeros(len(IOU_THRESHOLDS))
    for index in range(len(average)):
        hits = np.flatnonzero(found >> index & 1)  # precision is highest at these
        counted = np.cumsum(neutral >> index & 1 == 0)[hits]
        precision = np.arange(1, len(hits) + 1) / (counted + np.spacing(1))
        envelope = np.maximum.accumulate(precision[::-1])[::-1]
        places = np.searchsorted(np.arange(1, len(hits) + 1) / n_objects, _RECALL_POINTS, side="left")
        average[index] = np.append(envelope, 0.0)[places].mean()
    return average


def _stack(arrays: list[NDArray[np.int64]], shape: tuple[int, ...]) -> NDArray[np.int64]:
    return np.array(arrays, np.int64).reshape(-1, *shape)


def _divide(part: NDArray[np.number], whole: NDArray[np.number] | int) -> NDArray[np.float64]:
    """part / whole; NaN where whole is 0."""
    whole = np.broadcast_to(np.asarray(whole, np.float64), part.shape)
    return np.divide(part, whole, out=np.full(part.shape, np.nan), where=whole > 0)
