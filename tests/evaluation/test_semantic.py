from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.metrics import accuracy_score, jaccard_score

from sohes.errors import DataError
from sohes.evaluation.semantic import (
    class_iou,
    confusion_matrix,
    paired_difference,
    semantic_protocol,
    semantic_scores,
)
from sohes.rle import IntArray

CLASSES = 4


def maps(seed: int, *, images: int = 3) -> list[tuple[NDArray[np.uint8], NDArray[np.uint8]]]:
    """Predictions and annotations of images of several sizes; 255 is annotated too, class 3 only predicted."""
    rng = np.random.default_rng(seed)
    pairs = []
    for _ in range(images):
        size_hw = tuple(rng.integers(5, 12, 2))
        annotated = rng.integers(0, CLASSES - 1, size_hw).astype(np.uint8)
        predicted = np.where(rng.random(size_hw) < 0.4, annotated, rng.integers(0, CLASSES, size_hw)).astype(np.uint8)
        annotated[rng.random(size_hw) < 0.2] = 255
        pairs.append((predicted, annotated))
    return pairs


def confusions(pairs: list[tuple[NDArray[np.uint8], NDArray[np.uint8]]]) -> IntArray:
    return np.stack([confusion_matrix(predicted, annotated, classes=CLASSES) for predicted, annotated in pairs])


def test_scores_equal_scikit_learns_on_all_pixels_together() -> None:
    pairs = maps(0)
    predicted, annotated = (np.concatenate([pair[side].ravel() for pair in pairs]) for side in (0, 1))
    predicted, annotated = predicted[annotated != 255], annotated[annotated != 255]
    scores = semantic_scores(confusions(pairs))
    by_class = jaccard_score(annotated, predicted, labels=[0, 1, 2], average=None)
    np.testing.assert_allclose(scores.iou[:3], by_class, atol=1e-12)
    assert np.isnan(scores.iou[3])  # predicted, never annotated: no class of the mean, though its pixels are wrong
    assert scores.miou == pytest.approx(by_class.mean(), abs=1e-12)
    assert scores.accuracy == pytest.approx(accuracy_score(annotated, predicted), abs=1e-12)
    assert (scores.n_classes, scores.n_images) == (3, 3)
    assert semantic_scores(confusions(pairs), only=[2, 0]).miou == pytest.approx(by_class[[0, 2]].mean(), abs=1e-12)


def test_rows_are_annotated_and_columns_predicted() -> None:
    annotated = np.array([[0, 0, 1], [255, 2, 2]], np.uint8)
    predicted = np.array([[0, 1, 1], [99, 2, 0]], np.uint8)
    found = confusion_matrix(predicted, annotated, classes=3)
    assert found.tolist() == [[1, 1, 0], [0, 1, 0], [1, 0, 1]]
    np.testing.assert_allclose(class_iou(found), [1 / 3, 1 / 2, 1 / 2])


def test_what_cannot_be_scored_is_refused() -> None:
    annotated = np.zeros((2, 3), np.uint8)
    with pytest.raises(DataError, match=r"a\.png: the prediction is \(3, 2\) px, the annotation \(2, 3\) px"):
        confusion_matrix(annotated.T, annotated, classes=2, name="a.png")
    with pytest.raises(DataError, match=r"the annotation has labels 0 to 7; they must lie in \[0, 2\)"):
        confusion_matrix(annotated, np.array([[0, 7, 0], [0, 0, 255]], np.uint8), classes=2)
    with pytest.raises(DataError, match=r"the prediction has labels 0 to 255"):
        confusion_matrix(np.uint8([[0, 255, 0], [0, 0, 0]]), annotated, classes=2)
    nothing = np.zeros((2, 3, 3), np.int64)
    with pytest.raises(DataError, match="no pixel"):
        semantic_scores(nothing)
    nothing[0, 1, 1] = 5
    with pytest.raises(DataError, match=r"classes \[2\] do not occur"):
        semantic_scores(nothing, only=[1, 2])


def test_bootstrap_of_a_difference_is_of_the_same_images() -> None:
    """Images of very different difficulty: both move together, so their difference hardly does."""
    rng = np.random.default_rng(0)
    ours, theirs = np.zeros((2, 40, 2, 2), np.int64)
    for place in range(40):
        wrong = int(rng.integers(0, 900))
        for matrix, more in ((ours, 0), (theirs, 50)):
            matrix[place] = [[1000 - wrong - more, wrong + more], [wrong + more, 1000 - wrong - more]]
    found = paired_difference(ours, theirs)
    assert found.value == pytest.approx(semantic_scores(ours).miou - semantic_scores(theirs).miou)
    assert 0 < found.low < found.value < found.high
    alone = [semantic_scores(ours[rng.integers(40, size=40)]).miou for _ in range(300)]
    assert found.high - found.low < 0.3 * np.ptp(np.percentile(alone, [2.5, 97.5]))
    assert paired_difference(ours, theirs) == found  # seeded
    swapped = paired_difference(theirs, ours)
    assert (swapped.value, swapped.low, swapped.high) == pytest.approx((-found.value, -found.high, -found.low))
    same = paired_difference(ours, ours)
    assert (same.value, same.low, same.high) == (0, 0, 0)
    with pytest.raises(DataError, match="not of the same images"):
        paired_difference(ours, theirs[:3])


def test_bootstrap_equals_resampled_scores() -> None:
    """Against the scores of resampled images, computed one by one."""
    ours = confusions(maps(1, images=6))
    theirs = np.stack([np.diag(row) for row in ours.sum(axis=2)])  # perfect, of the same annotation
    rng = np.random.default_rng(0)
    drawn = [rng.integers(6, size=6) for _ in range(1000)]
    values = [semantic_scores(ours[at]).miou - semantic_scores(theirs[at]).miou for at in drawn]
    found = paired_difference(ours, theirs)
    np.testing.assert_allclose((found.low, found.high), np.percentile(values, [2.5, 97.5]), atol=1e-12)


def test_protocols_name_both_resolutions() -> None:
    assert semantic_protocol("linear", size_px=448, score_px=None).id == "probe_linear_448_full_v1"
    assert semantic_protocol("knn", size_px=224, score_px=100).id == "probe_knn_224_100_v1"
    assert "100 x 100" in semantic_protocol("knn", size_px=224, score_px=100).resize
