"""Names of clusters: Leopart's own code, and brute force over all namings of small confusion matrices."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from sohes.evaluation.cluster_naming import best_iou, cluster_iou, hungarian, hungarian_iou, majority
from sohes.evaluation.clustering import evaluate_clusters, name_clusters, score_clusters
from sohes.rle import IntArray

GOLDEN = Path(__file__).parent / "golden" / "clustering_scores.npz"
CLASSES = 5


@pytest.fixture(scope="module")
def golden() -> dict[str, NDArray]:
    with np.load(GOLDEN) as file:
        return dict(file)


def confusion(clusters: NDArray, truth: NDArray, k: int) -> IntArray:
    matrix = np.zeros((k, CLASSES), np.int64)
    np.add.at(matrix, (clusters.astype(int), truth.astype(int)), 1)
    return matrix


@pytest.mark.parametrize(
    ("case", "clusters", "truth", "name", "absent"),
    [
        ("majority", "over", "gt", majority, False),
        ("iou_matched", "over", "gt", best_iou, False),
        ("hungarian", "same", "gt", hungarian_iou, True),
        ("hungarian_12_clusters", "over", "gt", hungarian_iou, True),
        ("hungarian_absent_class", "same", "gt_absent", hungarian_iou, True),
    ],
)
def test_leopart(
    golden: dict[str, NDArray],
    case: str,
    clusters: str,
    truth: str,
    name: Callable[[IntArray], IntArray],
    absent: bool,
) -> None:
    matrix = confusion(golden[clusters], golden[truth], 12 if clusters == "over" else CLASSES)
    names = name(matrix)
    assert score_clusters(matrix, names, absent=absent).miou == pytest.approx(golden[f"{case}_miou"][()], abs=1e-9)
    named = name_clusters(matrix, names)
    right = np.diagonal(named)
    assert right.tolist() == golden[f"{case}_tp"].tolist()
    assert (named.sum(axis=1) - right).tolist() == golden[f"{case}_fp"].tolist()
    assert (named.sum(axis=0) - right).tolist() == golden[f"{case}_fn"].tolist()
    assert np.array_equal(names[golden[clusters]], golden[f"{case}_named"])


def test_iou_matrix(golden: dict[str, NDArray]) -> None:
    matrix = confusion(golden["over"], golden["gt"], 12)
    assert np.allclose(cluster_iou(matrix).T, golden["iou_matrix"], rtol=0, atol=1e-9)
    assert np.allclose((matrix / matrix.sum(axis=1)[:, None]).T, golden["precision_matrix"], rtol=0, atol=1e-9)


def test_an_absent_class_makes_the_two_one_to_one_rules_differ(golden: dict[str, NDArray]) -> None:
    scores = evaluate_clusters([(golden["same"], golden["gt_absent"])], clusters=CLASSES, classes=CLASSES)
    assert scores.leopart.miou == pytest.approx(0.32063246, abs=1e-8)
    assert scores.hungarian.miou == pytest.approx(0.4008, abs=5e-5)
    metrics = scores.metrics()
    assert metrics["cluster_miou_leopart"] == (pytest.approx(32.063246), "cluster_leopart_v1")
    assert metrics["cluster_miou_iou"][1] == "cluster_iou_v1"


@pytest.mark.parametrize("seed", range(8))
def test_brute_force(seed: int) -> None:
    rng = np.random.default_rng(seed)
    clusters, classes = int(rng.integers(2, 5)), 3
    matrix = rng.integers(0, 30, (clusters, classes)) * (rng.random((clusters, classes)) < 0.7)
    iou = np.array(
        [
            [
                matrix[k, c] / union if (union := matrix[k].sum() + matrix[:, c].sum() - matrix[k, c]) else 0.0
                for c in range(classes)
            ]
            for k in range(clusters)
        ]
    )
    several = list(itertools.product(range(classes), repeat=clusters))
    single = [
        names
        for names in itertools.product([-1, *range(classes)], repeat=clusters)
        if len({n for n in names if n >= 0}) == sum(n >= 0 for n in names) == min(clusters, classes)
    ]

    def total(table: NDArray, names: tuple[int, ...]) -> float:
        return float(sum(table[k, c] for k, c in enumerate(names) if c >= 0))

    assert total(matrix, majority(matrix)) == max(total(matrix, names) for names in several)
    assert total(iou, best_iou(matrix)) == pytest.approx(max(total(iou, names) for names in several))
    assert total(matrix, hungarian(matrix)) == max(total(matrix, names) for names in single)
    found = hungarian_iou(matrix)
    best = [n for n in single if total(iou, n) == pytest.approx(max(total(iou, names) for names in single))]
    assert tuple(found) in {tuple(0 if c < 0 else c for c in names) for names in best}


def test_all_rules_agree_on_a_permutation() -> None:
    order = np.array([2, 0, 3, 1])
    matrix = np.zeros((4, 4), np.int64)
    matrix[order, np.arange(4)] = (7, 3, 11, 2)
    for rule in (majority, best_iou, hungarian, hungarian_iou):
        assert rule(matrix)[order].tolist() == [0, 1, 2, 3]


def test_a_cluster_without_pixels() -> None:
    matrix = np.array([[5, 0], [0, 0], [1, 4]])
    assert majority(matrix).tolist() == best_iou(matrix).tolist() == [0, 0, 1]
    assert hungarian(matrix).tolist() == [0, -1, 1]
    assert hungarian_iou(matrix).tolist() == [0, 0, 1]
