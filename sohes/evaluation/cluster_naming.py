"""Which class a cluster is called after: four rules over one confusion matrix (README §4).

Each takes a confusion matrix (K clusters, C classes) of pixels, int64, and returns the class of each cluster (K,),
int64, -1 for none. Rows and columns without a pixel are allowed.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from sohes.rle import IntArray


def majority(confusion: IntArray) -> IntArray:
    """The class that most of the cluster's pixels have, several clusters to one class; with equal counts the first.

    The same as the class of highest precision |k and c| / |k|, which is how Leopart states it for over-clustering.
    """
    return confusion.argmax(axis=1)


def best_iou(confusion: IntArray) -> IntArray:
    """The class of highest IoU with the cluster, several clusters to one class; with equal IoU the first."""
    return cluster_iou(confusion).argmax(axis=1)


def hungarian(confusion: IntArray) -> IntArray:
    """One cluster per class, so that the most pixels agree; other clusters are called after none."""
    return _one_to_one(-confusion, others=-1)


def hungarian_iou(confusion: IntArray) -> IntArray:
    """One cluster per class, so that the sum of IoUs is largest; other clusters go to class 0.

    As in Leopart's code (`PredsmIoU`): classes without a pixel take part, and a cluster may be spent on one.
    """
    return _one_to_one(1 - cluster_iou(confusion), others=0)


def cluster_iou(confusion: IntArray) -> NDArray[np.float64]:
    """IoU of each cluster with each class, (K, C); 0 where neither has a pixel."""
    union = confusion.sum(axis=1)[:, None] + confusion.sum(axis=0) - confusion
    return confusion / np.maximum(union, 1)


def _one_to_one(cost: NDArray[np.generic], *, others: int) -> IntArray:
    names = np.full(len(cost), others, np.int64)
    classes, clusters = linear_sum_assignment(cost.T)
    names[clusters] = classes
    return names
