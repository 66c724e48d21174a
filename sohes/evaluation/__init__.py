"""The only place a metric is computed."""

from sohes.evaluation.hierarchy import HierarchyScores, evaluate_hierarchy
from sohes.evaluation.mask_recall import MaskRecall, evaluate_masks

__all__ = ["HierarchyScores", "MaskRecall", "evaluate_hierarchy", "evaluate_masks"]
