"""How well clusters of pixels agree with annotated classes. Protocols "cluster_*_v1" (README §4).

Label maps may have more clusters than there are classes (over-clustering). Intersections and unions are summed over all
images and divided once; the confusion matrix is all that is kept. Clusters are named after classes in two ways:

- Hungarian: one cluster per class, so that the most pixels agree; pixels of a cluster without a class belong to none.
- Majority: each cluster goes to the class it overlaps most, several to one class; with equal overlap to the first.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from sohes.errors import DataError
from sohes.evaluation.protocols import CLUSTER_HUNGARIAN, CLUSTER_MAJORITY
from sohes.rle import IntArray

IGNORE = 255  # label of pixels that do not count


@dataclass(frozen=True, kw_only=True)
class ClusterMatch:
    """Scores of clusters under class names: fractions in [0, 1], NaN where nothing decides the number.

    Attributes:
        classes: (K,) int64, class of each cluster, -1 for none.
        iou: (C,) of each class, NaN for one that is not in the ground truth.
        miou: mean of those that are.
        accuracy: share of the labelled pixels whose cluster has their class.
    """

    classes: IntArray
    iou: NDArray[np.float64]
    miou: float
    accuracy: float


@dataclass(frozen=True, kw_only=True)
class ClusterScores:
    """Both matches of one set of label maps."""

    hungarian: ClusterMatch
    majority: ClusterMatch
    n_images: int
    n_pixels: int  # labelled ones

    def metrics(self) -> dict[str, tuple[float, str]]:
        """Value in percent and protocol of every metric by name."""
        return {
            f"cluster_{metric}_{name}": (100.0 * getattr(match, metric), protocol.id)
            for name, match, protocol in (
                ("hungarian", self.hungarian, CLUSTER_HUNGARIAN),
                ("majority", self.majority, CLUSTER_MAJORITY),
            )
            for metric in ("miou", "accuracy")
        }


def evaluate_clusters(
    pairs: Iterable[tuple[NDArray[np.integer], NDArray[np.integer]]], *, clusters: int, classes: int
) -> ClusterScores:
    """Score label maps, taken one at a time.

    Args:
        pairs: of each image the clusters (H, W) in [0, clusters) and the annotated classes (H, W) in [0, classes), or
            255 where no class is annotated; there the cluster does not matter.
        clusters: number of clusters K.
        classes: number of classes C.

    Raises:
        DataError: maps of different sizes, or a label out of range; the message names the image by its place.
    """
    scorer = ClusterScorer(clusters=clusters, classes=classes)
    for predicted, annotated in pairs:
        scorer.add(predicted, annotated)
    return scorer.result()


class ClusterScorer:
    """Cluster scores image by image: `add` each image once, then ask for the `result`."""

    def __init__(self, *, clusters: int, classes: int) -> None:
        self._confusion: IntArray = np.zeros((clusters, classes), np.int64)
        self._images = 0

    def add(self, predicted: NDArray[np.integer], annotated: NDArray[np.integer]) -> None:
        """Count the pixels of one image; see `evaluate_clusters`."""
        clusters, classes = self._confusion.shape
        if predicted.shape != annotated.shape:
            raise DataError(
                f"label map {self._images} is {predicted.shape} px, its annotation {annotated.shape} px; bring it to "
                "that size before"
            )
        labelled = annotated != IGNORE
        cluster, target = predicted[labelled].astype(np.int64), annotated[labelled].astype(np.int64)
        for name, labels, count in (("label map", cluster, clusters), ("annotation", target, classes)):
            if labels.size and not (labels.min() >= 0 and labels.max() < count):
                raise DataError(
                    f"{name} {self._images} has labels {labels.min()} to {labels.max()}; they must lie in [0, {count})"
                )
        self._confusion += np.bincount(cluster * classes + target, minlength=clusters * classes).reshape(
            clusters, classes
        )
        self._images += 1

    def result(self) -> ClusterScores:
        """The scores of what was added."""
        confusion = self._confusion
        hungarian = np.full(len(confusion), -1, np.int64)
        rows, columns = linear_sum_assignment(confusion, maximize=True)
        hungarian[rows] = columns
        return ClusterScores(
            hungarian=_score(confusion, hungarian),
            majority=_score(confusion, confusion.argmax(axis=1)),
            n_images=self._images,
            n_pixels=int(confusion.sum()),
        )


def _score(confusion: IntArray, names: IntArray) -> ClusterMatch:
    """Scores of the confusion matrix (K, C) when cluster k is called `names[k]`."""
    named = np.zeros((confusion.shape[1], confusion.shape[1]), np.int64)  # predicted class, annotated class
    np.add.at(named, names[names >= 0], confusion[names >= 0])
    right, annotated = np.diagonal(named), confusion.sum(axis=0)
    union = named.sum(axis=1) + annotated - right
    present = annotated > 0
    iou = np.divide(right, union, out=np.full(len(right), np.nan), where=present)
    total = int(annotated.sum())
    return ClusterMatch(
        classes=names,
        iou=iou,
        miou=float(iou[present].mean()) if present.any() else float("nan"),
        accuracy=float(right.sum()) / total if total else float("nan"),
    )
