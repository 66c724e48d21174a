"""Cluster scores on maps worked by hand, and against a brute force over all namings."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from sohes.errors import DataError
from sohes.evaluation.clustering import evaluate_clusters


def test_by_hand() -> None:
    # clusters 0, 1, 2 over classes 0, 1; the last column is ignored
    predicted = np.array([[0, 0, 0, 2], [1, 1, 2, 2]])
    annotated = np.array([[0, 0, 1, 255], [0, 1, 1, 255]])
    # overlaps: cluster 0: 2 of class 0, 1 of class 1; cluster 1: 1 and 1; cluster 2: 0 and 1
    scores = evaluate_clusters([(predicted, annotated)], clusters=3, classes=2)
    assert (scores.n_images, scores.n_pixels) == (1, 6)
    # majority: 0 -> 0, 1 -> 0 (equal overlap, the first), 2 -> 1
    assert scores.majority.classes.tolist() == [0, 0, 1]
    assert scores.majority.accuracy == pytest.approx(4 / 6)
    # class 0: 3 right, 5 called so, 3 annotated: 3/5; class 1: 1 right, 1 called so, 3 annotated: 1/3
    assert scores.majority.iou == pytest.approx([3 / 5, 1 / 3])
    assert scores.majority.miou == pytest.approx((3 / 5 + 1 / 3) / 2)
    # Hungarian: 0 -> 0 and one of 1, 2 -> 1, three pixels right either way
    assert scores.hungarian.accuracy == pytest.approx(3 / 6)
    assert scores.hungarian.classes[0] == 0
    assert sorted(scores.hungarian.classes[1:].tolist()) == [-1, 1]


def test_sums_over_the_data_set_before_it_divides() -> None:
    # image 1: class 0 IoU 1/1; image 2: class 0 IoU 1/9. The data set's: 2/10, not the mean 5/9
    first = np.zeros((1, 1), int), np.zeros((1, 1), int)
    second = np.zeros((3, 3), int), np.array([[0, 1, 1], [1, 1, 1], [1, 1, 1]])
    scores = evaluate_clusters(iter([first, second]), clusters=2, classes=2)
    assert scores.hungarian.classes.tolist() == [1, 0]  # eight pixels of class 1 outweigh two
    assert scores.hungarian.iou == pytest.approx([0, 8 / 10])
    swapped = evaluate_clusters([(first[0], first[1] + 1), (second[0], 1 - second[1])], clusters=1, classes=1 + 1)
    assert swapped.majority.iou == pytest.approx([8 / 10, 0])


def brute_force(pairs: list, clusters: int, classes: int, naming: tuple) -> tuple[float, float]:
    """Mean IoU of present classes and accuracy, pixel by pixel, for one naming of the clusters."""
    right, total = 0, 0
    both, either = [0] * classes, [0] * classes
    for predicted, annotated in pairs:
        for cluster, target in zip(predicted.ravel(), annotated.ravel(), strict=True):
            if target == 255:
                continue
            name = naming[cluster]
            total += 1
            right += name == target
            for c in range(classes):
                both[c] += name == c and target == c
                either[c] += name == c or target == c
    present = {int(t) for _, annotated in pairs for t in annotated.ravel() if t != 255}
    return sum(both[c] / either[c] for c in present) / len(present), right / total


@pytest.mark.parametrize("seed", range(6))
def test_equals_brute_force(seed: int) -> None:
    rng = np.random.default_rng(seed)
    clusters, classes = int(rng.integers(2, 5)), 3
    pairs = []
    for _ in range(3):
        annotated = rng.integers(0, classes - (seed == 0), (4, 5))  # in one case a class is missing
        predicted = np.where(rng.random((4, 5)) < 0.6, annotated % clusters, rng.integers(0, clusters, (4, 5)))
        pairs.append((predicted, np.where(rng.random((4, 5)) < 0.2, 255, annotated)))
    scores = evaluate_clusters(pairs, clusters=clusters, classes=classes)

    one_to_one = [
        naming
        for naming in itertools.product([-1, *range(classes)], repeat=clusters)
        if len({n for n in naming if n >= 0}) == sum(n >= 0 for n in naming) == min(clusters, classes)
    ]
    best = max(brute_force(pairs, clusters, classes, naming)[1] for naming in one_to_one)
    assert scores.hungarian.accuracy == pytest.approx(best)
    assert tuple(scores.hungarian.classes.tolist()) in one_to_one
    miou, _ = brute_force(pairs, clusters, classes, tuple(scores.hungarian.classes))
    assert scores.hungarian.miou == pytest.approx(miou)

    best = max(brute_force(pairs, clusters, classes, n)[1] for n in itertools.product(range(classes), repeat=clusters))
    assert scores.majority.accuracy == pytest.approx(best)
    miou, _ = brute_force(pairs, clusters, classes, tuple(scores.majority.classes))
    assert scores.majority.miou == pytest.approx(miou)


def test_renamed_clusters_change_nothing_and_a_permutation_is_perfect() -> None:
    rng = np.random.default_rng(1)
    annotated = rng.integers(0, 4, (9, 9)).astype(np.uint8)
    scores = evaluate_clusters([(np.array([2, 0, 3, 1])[annotated], annotated)], clusters=4, classes=4)
    for match in (scores.hungarian, scores.majority):
        assert match.miou == match.accuracy == 1.0
        assert match.classes.tolist() == [1, 3, 0, 2]


def test_metrics() -> None:
    annotated = np.array([[0, 1]])
    scores = evaluate_clusters([(annotated, annotated)], clusters=2, classes=3)
    metrics = scores.metrics()
    assert set(metrics) == {
        f"cluster_{m}_{n}" for m in ("miou", "accuracy") for n in ("hungarian", "majority", "iou", "leopart")
    }
    assert metrics["cluster_miou_majority"] == (100.0, "cluster_majority_v1")
    assert metrics["cluster_accuracy_hungarian"] == (100.0, "cluster_hungarian_v1")
    of_all = metrics.pop("cluster_miou_leopart")
    assert of_all == (pytest.approx(100 * 2 / 3), "cluster_leopart_v1")  # the third class counts as 0 there
    assert {value for value, _ in metrics.values()} == {100.0}
    assert math.isnan(scores.majority.iou[2])  # not in the ground truth


def test_nothing_annotated() -> None:
    scores = evaluate_clusters([(np.zeros((2, 2), int), np.full((2, 2), 255))], clusters=2, classes=2)
    assert math.isnan(scores.hungarian.miou)
    assert all(math.isnan(value) for value, _ in scores.metrics().values())


def test_bad_maps() -> None:
    good = np.zeros((2, 2), int)
    with pytest.raises(DataError, match=r"label map 1 is \(2, 2\) px, its annotation \(2, 3\) px"):
        evaluate_clusters([(good, good), (good, np.zeros((2, 3), int))], clusters=2, classes=2)
    with pytest.raises(DataError, match=r"label map 0 has labels 2 to 2; they must lie in \[0, 2\)"):
        evaluate_clusters([(good + 2, good)], clusters=2, classes=2)
    with pytest.raises(DataError, match="annotation 0 has labels -1 to -1"):
        evaluate_clusters([(good, good - 1)], clusters=2, classes=2)
    evaluate_clusters([(good + 9, good + 255)], clusters=2, classes=2)  # where nothing is annotated, anything may be
