"""The only place a metric is computed."""

from sohes.evaluation.clustering import ClusterScores, evaluate_clusters
from sohes.evaluation.evaluate import Evaluation, evaluate_predictions
from sohes.evaluation.hierarchy import HierarchyScores, evaluate_hierarchy
from sohes.evaluation.mask_recall import MaskRecall, evaluate_masks

__all__ = [
    "ClusterScores",
    "Evaluation",
    "HierarchyScores",
    "MaskRecall",
    "evaluate_clusters",
    "evaluate_hierarchy",
    "evaluate_masks",
    "evaluate_predictions",
]
