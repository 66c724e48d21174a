"""How well a predicted forest tells wholes from parts. Protocol "hierarchy_v1" (README §3).

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

from sohes.data.coco import ImageItem, ImageSet
from sohes.evaluation.inputs import Truth, checked, read_truth
from sohes.evaluation.protocols import HIERARCHY
from sohes.masks import MaskForest, coverage_ancestors, nearest_parents, pairwise_coverage, pairwise_iou
from sohes.rle import BoolArray, IntArray

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

    def metrics(self) -> dict[str, tuple[float, str]]:
        """Value in percent and protocol of every metric by name."""
        return {metric: (100.0 * getattr(self, metric), HIERARCHY.id) for metric in _METRICS}


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
        DataError: ground truth or predictions that cannot be used; see `read_truth` and `checked`.
    """
    scorer = HierarchyScorer(read_truth(ground_truth))
    for item, forest in checked(scorer.truth, predictions):
        scorer.add(item, forest)
    return scorer.result()


class HierarchyScorer:
    """Hierarchy scores image by image: `add` each image once, then ask for the `result`."""

    def __init__(self, truth: ImageSet) -> None:
        self.truth = truth
        self._head, self._rule = _Counts(), _Counts()
        self._matched = 0
        self._at_depth: IntArray = np.zeros(0, np.int64)  # predicted masks at depth 0, 1, 2, ...

    def add(self, item: ImageItem, forest: MaskForest) -> None:
        """Count the relations of one image; the forest must fit it (see `checked`)."""
        annotated = self.truth.forest(item.id)
        annotated = annotated.select(np.flatnonzero(annotated.attributes["iscrowd"] == 0))
        predicted_index, annotated_index = match(forest, annotated)
        self._matched += len(predicted_index)
        target = annotated.select(annotated_index)
        chosen = forest.select(predicted_index)
        self._head.add(chosen.ancestor, chosen.parent, target)
        covering = _coverage_forest(forest).select(predicted_index)
        self._rule.add(covering.ancestor, covering.parent, target)
        at_depth = np.bincount(forest.depth, minlength=len(self._at_depth))
        at_depth[: len(self._at_depth)] += self._at_depth
        self._at_depth = at_depth

    def result(self) -> HierarchyScores:
        """The scores of what was added."""
        head, rule, masks = self._head, self._rule, int(self._at_depth.sum())
        return HierarchyScores(
            relation_precision=_ratio(head.true, head.predicted),
            relation_recall=_ratio(head.true, head.annotated),
            relation_f1=head.f1,
            parent_accuracy=_ratio(head.parents_right, head.parents),
            coverage_relation_f1=rule.f1,
            coverage_parent_accuracy=_ratio(rule.parents_right, rule.parents),
            mean_depth=_ratio(int(self._at_depth @ np.arange(len(self._at_depth))), masks),
            depth_share=tuple((self._at_depth / max(masks, 1)).tolist()),
            n_images=len(self.truth),
            n_matched=self._matched,
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
