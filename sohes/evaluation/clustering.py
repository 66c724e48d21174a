"""How well clusters of pixels agree with annotated classes. Protocols "cluster_*_v1" (README §4).

Label maps may have more clusters than there are classes (over-clustering). Intersections and unions are summed over all
images and divided once; the confusion matrix is all that is kept. `cluster_naming` has the rules by which clusters are
called after classes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sohes.errors import DataError
from sohes.evaluation.cluster_naming import best_iou, hungarian, hungarian_iou, majority
from sohes.evaluation.protocols import CLUSTER_HUNGARIAN, CLUSTER_IOU, CLUSTER_LEOPART, CLUSTER_MAJORITY
from sohes.rle import IntArray

IGNORE = 255  # label of pixels that do not count


@dataclass(frozen=True, kw_only=True)
class ClusterMatch:
    """Scores of clusters under class names: fractions in [0, 1], NaN where nothing decides the number.

    Attributes:
        classes: (K,) int64, class of each cluster, -1 for none.
        named: (C called, C annotated) int64, pixels, see `name_clusters`.
        iou: (C,) of each class, NaN for one that does not count.
        miou: mean of those that do: the classes in the ground truth, or all.
        accuracy: share of the labelled pixels whose cluster has their class.
    """

    classes: IntArray
    named: IntArray
    iou: NDArray[np.float64]
    miou: float
    accuracy: float


@dataclass(frozen=True, kw_only=True)
class ClusterScores:
    """One set of label maps under every rule of naming.

    Attributes:
        hungarian: one cluster per class by pixels, the others to none.
        majority: each cluster to the class of most of its pixels.
        iou: each cluster to the class of highest IoU.
        leopart: one cluster per class by IoU, the others to class 0; classes without a pixel count, as 0.
        n_images: that were scored.
        n_pixels: labelled ones.
    """

    hungarian: ClusterMatch
    majority: ClusterMatch
    iou: ClusterMatch
    leopart: ClusterMatch
    n_images: int
    n_pixels: int

    def metrics(self) -> dict[str, tuple[float, str]]:
        """Value in percent and protocol of every metric by name."""
        return {
            f"cluster_{metric}_{name}": (100.0 * getattr(match, metric), protocol.id)
            for name, match, protocol in (
                ("hungarian", self.hungarian, CLUSTER_HUNGARIAN),
                ("majority", self.majority, CLUSTER_MAJORITY),
                ("iou", self.iou, CLUSTER_IOU),
                ("leopart", self.leopart, CLUSTER_LEOPART),
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
        return ClusterScores(
            hungarian=score_clusters(confusion, hungarian(confusion)),
            majority=score_clusters(confusion, majority(confusion)),
            iou=score_clusters(confusion, best_iou(confusion)),
            leopart=score_clusters(confusion, hungarian_iou(confusion), absent=True),
            n_images=self._images,
            n_pixels=int(confusion.sum()),
        )


def name_clusters(confusion: IntArray, classes: IntArray) -> IntArray:
    """The confusion matrix (C called, C annotated) of clusters (K, C) that are called `classes` (K,), -1 for none."""
    named = np.zeros((confusion.shape[1], confusion.shape[1]), np.int64)
    np.add.at(named, classes[classes >= 0], confusion[classes >= 0])
    return named


def score_clusters(confusion: IntArray, classes: IntArray, *, absent: bool = False) -> ClusterMatch:
    """Scores of clusters under class names.

    Args:
        confusion: (K, C) pixels of cluster k and class c.
        classes: (K,) class of each cluster, -1 for none.
        absent: whether classes that are not in the ground truth count; their IoU is 0.
    """
    named = name_clusters(confusion, classes)
    right, annotated = np.diagonal(named), confusion.sum(axis=0)
    union = named.sum(axis=1) + annotated - right
    counts = np.full(len(right), True) if absent else annotated > 0
    iou = np.divide(right, np.maximum(union, 1), out=np.full(len(right), np.nan), where=counts)
    total = int(annotated.sum())
    return ClusterMatch(
        classes=classes,
        named=named,
        iou=iou,
        miou=float(iou[counts].mean()) if total else float("nan"),
        accuracy=float(right.sum()) / total if total else float("nan"),
    )
