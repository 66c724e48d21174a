"""How well predicted classes agree with annotated ones, pixel by pixel (README §6).

Every image is one confusion matrix; the scores of any set of images come from their sum: intersections and unions are
summed over all images and divided once for each class.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sohes.errors import DataError
from sohes.evaluation.bootstrap import PERCENTILES, RESAMPLES, SEED
from sohes.evaluation.protocols import CLUSTER_HUNGARIAN, Protocol
from sohes.rle import IntArray

IGNORE = 255  # label of pixels that do not count


@dataclass(frozen=True, kw_only=True)
class SemanticScores:
    """Scores of one prediction: fractions in [0, 1].

    Attributes:
        iou: (C,) of each class, NaN for one that is not in the ground truth.
        miou: mean over the classes that count.
        accuracy: share of the labelled pixels that are right.
        n_classes: classes that count.
        n_images: how many were scored.
    """

    iou: NDArray[np.float64]
    miou: float
    accuracy: float
    n_classes: int
    n_images: int


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A score of one prediction less that of another on the same images, with its 95 % interval; fractions."""

    value: float
    low: float
    high: float

    def sentence(self, method: str, score: str) -> str:
        """What a reader of a probe should know of it, where the other is the start backbone."""
        interval = f"{100 * self.low:+.1f} to {100 * self.high:+.1f}"
        verdict = "" if self.low > 0 or self.high < 0 else ": no difference is shown"
        return (
            f"{method}: {100 * self.value:+.1f} {score} against the start backbone, 95 % interval {interval} by paired "
            f"bootstrap over val images{verdict}"
        )


def semantic_protocol(probe: str, *, size_px: int, score_px: int | None) -> Protocol:
    """The protocol of a probe: its id names the resolution of the features and that of the scoring.

    Args:
        probe: short name, "linear".
        size_px: side to which images are squashed.
        score_px: side of the square on which predictions are scored; None for the annotation's own size.

    >>> semantic_protocol("linear", size_px=448, score_px=None).id
    'probe_linear_448_full_v1'
    """
    size = "full" if score_px is None else str(score_px)
    return Protocol(
        id=f"probe_{probe}_{size_px}_{size}_v1",
        data="every pixel that is not 255; classes that occur in the ground truth",
        resize=f"images squashed to {size_px} x {size_px} px (bicubic); scored "
        + ("at the annotation's own size" if score_px is None else f"at {score_px} x {score_px} px (nearest)"),
        limit="one class for each pixel",
        averaging=CLUSTER_HUNGARIAN.averaging,
        source=f"sohes.probes, {probe}",
    )


def confusion_matrix(
    predicted: NDArray[np.integer], annotated: NDArray[np.integer], *, classes: int, name: str = "label map"
) -> IntArray:
    """Pixels of one image by annotated class (row) and predicted class (column): (C, C) int64.

    Args:
        predicted: (H, W), classes in [0, C); where no class is annotated any value.
        annotated: (H, W), classes in [0, C), or 255 where none is annotated.
        classes: number of classes C.
        name: of the image, for messages.

    Raises:
        DataError: maps of different sizes, or a label out of range.
    """
    if predicted.shape != annotated.shape:
        raise DataError(
            f"{name}: the prediction is {predicted.shape} px, the annotation {annotated.shape} px; bring it to that "
            "size before"
        )
    labelled = annotated != IGNORE
    rows, columns = annotated[labelled].astype(np.int64), predicted[labelled].astype(np.int64)
    for what, labels in (("annotation", rows), ("prediction", columns)):
        if labels.size and not (labels.min() >= 0 and labels.max() < classes):
            raise DataError(
                f"{name}: the {what} has labels {labels.min()} to {labels.max()}; they must lie in [0, {classes})"
            )
    return np.bincount(rows * classes + columns, minlength=classes**2).reshape(classes, classes)


def semantic_scores(confusions: IntArray, *, only: Sequence[int] | None = None) -> SemanticScores:
    """Scores over a data set.

    Args:
        confusions: (N, C, C) int64 of `confusion_matrix`.
        only: classes over which mIoU is the mean; None for all that occur in the ground truth.

    Raises:
        DataError: no pixel is annotated, or a class of `only` does not occur.
    """
    total = confusions.sum(axis=0)
    annotated = total.sum(axis=1)
    if not annotated.any():
        raise DataError("no pixel of the scored images is annotated; there is nothing to score")
    chosen = np.flatnonzero(annotated) if only is None else np.asarray(only)
    if absent := [label for label in chosen.tolist() if not annotated[label]]:
        raise DataError(f"classes {absent} do not occur in the ground truth, so their mean IoU is not defined")
    iou = class_iou(total)
    return SemanticScores(
        iou=iou,
        miou=float(iou[chosen].mean()),
        accuracy=float(np.trace(total) / annotated.sum()),
        n_classes=len(chosen),
        n_images=len(confusions),
    )


def class_iou(confusion: NDArray[np.number]) -> NDArray[np.float64]:
    """IoU of each class (..., C) of confusion matrices (..., C, C); NaN for one that is not in the ground truth."""
    right = np.diagonal(confusion, axis1=-2, axis2=-1).astype(np.float64)
    annotated = confusion.sum(axis=-1)
    union = annotated + confusion.sum(axis=-2) - right
    return np.divide(right, union, out=np.full(right.shape, np.nan), where=annotated > 0)


def paired_difference(ours: IntArray, theirs: IntArray) -> Difference:
    """mIoU of `ours` less that of `theirs`, with the 95 % percentile interval of a paired bootstrap over images.

    Images are drawn with replacement, the same ones for both (Efron and Tibshirani, 1993); the mean is over the classes
    that occur among those drawn. It says how far the difference would move with other images of the same kind.

    Args:
        ours, theirs: (N, C, C) int64 of the same images in the same order; of a probe with seeds their sum over these.

    Raises:
        DataError: of different shapes, so not of the same images and classes.
    """
    if ours.shape != theirs.shape:
        raise DataError(f"confusions {ours.shape} and {theirs.shape} are not of the same images and classes")
    count = len(ours)
    value = semantic_scores(ours).miou - semantic_scores(theirs).miou
    if count < 2:
        return Difference(value=value, low=np.nan, high=np.nan)
    rng = np.random.default_rng(SEED)
    differences = np.full(RESAMPLES, np.nan)
    pair = np.stack([ours, theirs], axis=1).reshape(count, -1).astype(np.float64)
    for place in range(RESAMPLES):
        times = np.bincount(rng.integers(count, size=count), minlength=count).astype(np.float64)
        drawn = class_iou((times @ pair).reshape(2, *ours.shape[1:]))
        present = ~np.isnan(drawn[0])
        if present.any():
            differences[place] = (drawn[0, present] - drawn[1, present]).mean()
    low, high = np.nanpercentile(differences, PERCENTILES)
    return Difference(value=value, low=float(low), high=float(high))
