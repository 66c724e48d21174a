"""Things and stuff of matched clusters: by hand, and PiCIE's code, whose parts are clusters in any order."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from sohes.data.prepare.semantic_classes import COCO_STUFF27, COCO_THING12
from sohes.evaluation.cluster_probe import cluster_probe_metrics
from sohes.evaluation.clustering import ClusterMatch, evaluate_clusters

GOLDEN = Path(__file__).parent / "golden" / "picie_hungarian.npz"
CLASSES = ("person", "animal", "sky", "water")


@pytest.fixture(scope="module")
def golden() -> dict[str, NDArray]:
    with np.load(GOLDEN) as file:
        return dict(file)


def match_of(clusters: NDArray, labels: NDArray) -> ClusterMatch:
    annotated = np.where(labels < 0, 255, labels.astype(int))
    pairs = zip(clusters, annotated, strict=True)
    return evaluate_clusters(pairs, clusters=27, classes=27).hungarian


def in_order_of_clusters(match: ClusterMatch) -> NDArray:
    """PiCIE's matrix of classes and clusters, its rows put at the places of their clusters; columns stay."""
    clusters = match.named.T[:, match.classes]  # class by cluster, as counted
    rows = np.zeros_like(clusters)
    rows[np.argsort(match.classes)] = clusters
    return rows


def mean_iou(square: NDArray) -> float:
    right = np.diagonal(square)
    return 100 * float(np.mean(right / (square.sum(axis=0) + square.sum(axis=1) - right)))


def test_picie(golden: dict[str, NDArray]) -> None:
    match = match_of(golden["clusters"], golden["labels"])
    found = cluster_probe_metrics(match, COCO_STUFF27)
    assert found["acc_pixel"] == (pytest.approx(golden["accuracy"][()], abs=1e-9), "probe_cluster_crop320_v1")
    assert found["miou_dataset"] == (pytest.approx(golden["mean_iou"][()], abs=1e-9), "probe_cluster_crop320_v1")
    assert 100 * match.iou[match.classes] == pytest.approx(golden["iou_in_cluster_order"], abs=1e-9)
    rows = in_order_of_clusters(match)
    for kind, part in (("things", slice(0, 12)), ("stuff", slice(12, 27))):
        published = golden[f"published_{kind.removesuffix('s')}_miou"][()]
        assert mean_iou(rows[part, part]) == pytest.approx(published, abs=1e-4)
        assert found[f"miou_{kind}_alone"][0] != pytest.approx(published, abs=1)  # those of arbitrary clusters
        assert found[f"miou_{kind}"][0] == pytest.approx(100 * match.iou[part].mean(), abs=1e-9)


def test_by_hand() -> None:
    # clusters 0 to 3 are water, sky, animal, person
    pixels = {  # (class, cluster): how many
        (0, 3): 6,
        (0, 2): 2,
        (0, 1): 2,  # persons called sky
        (1, 2): 4,
        (1, 3): 1,
        (2, 1): 8,
        (2, 0): 1,
        (3, 0): 5,
        (3, 2): 5,  # water called animal
    }
    truth = np.repeat([key[0] for key in pixels], list(pixels.values()))[None]
    clusters = np.repeat([key[1] for key in pixels], list(pixels.values()))[None]
    expected = {
        "miou_dataset": (6 / 11 + 4 / 12 + 8 / 11 + 5 / 11) / 4,
        "acc_pixel": 23 / 34,
        "miou_things": (6 / (6 + 4 + 1) + 4 / (4 + 1 + 7)) / 2,
        "miou_stuff": (8 / (8 + 1 + 2) + 5 / (5 + 5 + 1)) / 2,
        "miou_things_alone": (6 / (6 + 2 + 1) + 4 / (4 + 1 + 2)) / 2,
        "miou_stuff_alone": (8 / (8 + 1) + 5 / (5 + 1)) / 2,
    }
    for order in (np.arange(4), np.array([2, 0, 3, 1])):  # whatever the clusters are called
        match = evaluate_clusters([(order[clusters], truth)], clusters=4, classes=4).hungarian
        found = cluster_probe_metrics(match, CLASSES)
        assert {name: value for name, (value, _) in found.items()} == pytest.approx(
            {name: 100 * value for name, value in expected.items()}
        )
    assert found["miou_stuff_alone"][1] == "probe_cluster_crop320_alone_v1"
    assert found["miou_stuff"][1] == "probe_cluster_crop320_v1"
    alone = mean_iou(in_order_of_clusters(match)[:2, :2])
    assert alone != pytest.approx(found["miou_things_alone"][0], abs=1)  # rows for columns fail here


def test_surplus_clusters_and_classes_that_do_not_occur() -> None:
    truth = np.array([[0, 0, 0, 2, 2, 2, 255]])
    clusters = np.array([[4, 4, 1, 0, 0, 4, 9]])
    match = evaluate_clusters([(clusters, truth)], clusters=5, classes=4).hungarian
    found = {name: value for name, (value, _) in cluster_probe_metrics(match, CLASSES).items()}
    assert found["miou_things"] == pytest.approx(100 * 2 / 4)  # animals do not occur; cluster 1 may be called so
    assert found["miou_stuff"] == pytest.approx(100 * 2 / 3)
    assert found["miou_dataset"] == pytest.approx(100 * (2 / 4 + 2 / 3) / 2)
    assert found["miou_stuff_alone"] == 100
    things = evaluate_clusters([(clusters * 0, truth * 0)], clusters=4, classes=4).hungarian
    assert set(cluster_probe_metrics(things, CLASSES)) == {
        "miou_dataset",
        "acc_pixel",
        "miou_things",
        "miou_things_alone",
    }


@pytest.mark.parametrize("classes", [COCO_THING12, ("person", "sky", "background"), ("a", "b")])
def test_classes_without_two_kinds(classes: tuple[str, ...]) -> None:
    labels = np.arange(len(classes))[None]
    match = evaluate_clusters([(labels, labels)], clusters=len(classes), classes=len(classes)).hungarian
    assert set(cluster_probe_metrics(match, classes)) == {"miou_dataset", "acc_pixel"}
