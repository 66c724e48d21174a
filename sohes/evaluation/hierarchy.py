"""How well a predicted forest tells wholes from parts. Protocol "hierarchy_v1".

Predictions and annotated objects of an image are matched one to one at IoU >= 0.5 (Hungarian, largest total IoU).
Both forests are then cut down to the matched masks: a predicted mask that nobody annotated neither helps nor hurts, and
a missed object is a matter of recall, not of hierarchy. The coverage rule on the same predicted masks is the baseline
that a learned ancestor head has to beat.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment

from sohes.evaluation.inputs import Truth, load_inputs
from sohes.evaluation.protocols import HIERARCHY
from sohes.masks import (
    BoolArray,
    IntArray,
    MaskForest,
    coverage_ancestors,
    nearest_parents,
    pairwise_coverage,
    pairwise_iou,
)
from sohes.records import Measurement

MATCH_IOU = 0.5
THETA_COVER = 0.9  # [code: HASSOD's published coverage rule]

_METRICS = (
    "relation_precision",
    "relation_recall",
    "relation_f1",
    "parent_accuracy",
    "coverage_relation_f1",
    "coverage_parent_accuracy",
)


@dataclass(frozen=True, kw_only=True)
class HierarchyScores:
    """Fractions in [0, 1]; NaN where nothing decides the number.

    `relation_*`: the predicted relation "i is an ancestor of j" over ordered pairs of matched masks. `parent_accuracy`:
    among matched objects with a matched annotated ancestor, those whose nearest such ancestor is the predicted one.
    `coverage_*`: the same with the relation that the coverage rule gives for the predicted masks.
    """

    relation_precision: float
    relation_recall: float
    relation_f1: float
    parent_accuracy: float
    coverage_relation_f1: float
    coverage_parent_accuracy: float
    mean_depth: float  # of all predicted masks; a root has depth 0
    depth_share: tuple[float, ...]  # share of predicted masks at depth 0, 1, 2, ...
    n_images: int
    n_matched: int

    def measurements(self, *, method: str, backbone: str, init: str, data: str) -> list[Measurement]:
        """The metrics in percent, ready for a record; those that are NaN are left out."""
        values = {metric: getattr(self, metric) for metric in _METRICS}
        return [
            Measurement(
                method=method,
                backbone=backbone,
                init=init,
                data=data,
                protocol=HIERARCHY.id,
                metric=metric,
                value=100.0 * value,
                n_images=self.n_images,
            )
            for metric, value in values.items()
            if not np.isnan(value)
        ]


@dataclass
class _Counts:
    """Pooled counts of one predicted relation."""

    true: int = 0  # ordered pairs related in both
    predicted: int = 0
    annotated: int = 0
    parents_right: int = 0
    parents: int = 0

    def add(self, ancestor: BoolArray, parent: IntArray, truth: MaskForest) -> None:
        """Count one image; both relations are over the same K matched masks, in the same order."""
        self.true += int((ancestor & truth.ancestor).sum())
        self.predicted += int(ancestor.sum())
        self.annotated += int(truth.ancestor.sum())
        parts = truth.parent >= 0
        self.parents_right += int((parent[parts] == truth.parent[parts]).sum())
        self.parents += int(parts.sum())

    @property
    def f1(self) -> float:
        return _ratio(2 * self.true, self.predicted + self.annotated)


def evaluate_hierarchy(ground_truth: Truth, predictions: Mapping[int, MaskForest]) -> HierarchyScores:
    """Score the relations of predicted forests against the `parent_id` of the annotations.

    Args:
        ground_truth: path of a COCO JSON, or what `read_coco` made of it. An object's ancestors are its parent, the
            parent's parent and so on. Crowds do not count; a child of a crowd goes to the crowd's parent.
        predictions: forest by image id, at image size.

    Raises:
        DataError: ground truth or predictions that cannot be used; see `load_inputs`.
    """
    truth = load_inputs(ground_truth, predictions)
    head, rule, matched = _Counts(), _Counts(), 0
    for image_id, forest in predictions.items():
        annotated = truth.forest(image_id)
        annotated = annotated.select(np.flatnonzero(annotated.attributes["iscrowd"] == 0))
        predicted_index, annotated_index = match(forest, annotated)
        matched += len(predicted_index)
        target = annotated.select(annotated_index)
        chosen = forest.select(predicted_index)
        head.add(chosen.ancestor, chosen.parent, target)
        covering = _coverage_forest(forest).select(predicted_index)
        rule.add(covering.ancestor, covering.parent, target)
    depth = np.concatenate([forest.depth for forest in predictions.values()] or [np.zeros(0, np.int64)])
    return HierarchyScores(
        relation_precision=_ratio(head.true, head.predicted),
        relation_recall=_ratio(head.true, head.annotated),
        relation_f1=head.f1,
        parent_accuracy=_ratio(head.parents_right, head.parents),
        coverage_relation_f1=rule.f1,
        coverage_parent_accuracy=_ratio(rule.parents_right, rule.parents),
        mean_depth=float(depth.mean()) if depth.size else float("nan"),
        depth_share=tuple(float(share) for share in np.bincount(depth) / max(depth.size, 1)),
        n_images=len(truth),
        n_matched=matched,
    )


def match(predicted: MaskForest, annotated: MaskForest) -> tuple[IntArray, IntArray]:
    """Indices (K,) of predicted and annotated masks paired one to one at IoU >= 0.5, with the largest total IoU."""
    iou = pairwise_iou(predicted.rles, annotated.rles)
    iou = np.where(iou >= MATCH_IOU, iou, 0.0)
    rows, columns = linear_sum_assignment(iou, maximize=True)
    good = iou[rows, columns] > 0
    return rows[good].astype(np.int64), columns[good].astype(np.int64)


def _coverage_forest(forest: MaskForest) -> MaskForest:
    """The same masks related by the coverage rule."""
    ancestor = coverage_ancestors(pairwise_coverage(forest.rles), THETA_COVER)
    return MaskForest(
        size_hw=forest.size_hw,
        rles=forest.rles,
        scores=forest.scores,
        ancestor=ancestor,
        parent=nearest_parents(ancestor, forest.areas),
    )


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else float("nan")
