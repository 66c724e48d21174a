"""The only place a metric is computed."""

from sohes.evaluation.ground_truth import GroundTruth, load_ground_truth
from sohes.evaluation.hierarchy import HierarchyScores, evaluate_hierarchy
from sohes.evaluation.mask_recall import MaskRecall, evaluate_masks

__all__ = [
    "GroundTruth",
    "HierarchyScores",
    "MaskRecall",
    "evaluate_hierarchy",
    "evaluate_masks",
    "load_ground_truth",
]
