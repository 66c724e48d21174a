"""Scores of clusters and thresholds: against the authors' own code."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sohes.errors import DataError
from sohes.methods.leopart.clusters import (
    ForegroundScores,
    foreground_clusters,
    labels_threshold,
    quantile_threshold,
)

GOLDEN = np.load(Path(__file__).parent / "golden" / "foreground.npz")
CLUSTERS, K = GOLDEN["clusters"][:, 0], int(GOLDEN["k"])


def golden_scores() -> np.ndarray:
    scores = ForegroundScores(K)
    for clusters, foreground in zip(CLUSTERS, GOLDEN["attention_foreground"][:, 0].astype(bool), strict=True):
        scores.add(clusters, foreground)
    return scores.result()


def test_scores_are_the_authors() -> None:
    np.testing.assert_allclose(golden_scores(), GOLDEN["precision"], atol=1e-6)


def test_threshold_with_labels_is_the_authors() -> None:
    truth = GOLDEN["gt"][:, 0] != 0  # so that 255 counts as foreground
    threshold, tried = labels_threshold(golden_scores(), zip(CLUSTERS, truth, strict=True))
    np.testing.assert_allclose(tried, GOLDEN["cuts"], atol=1e-6)
    assert threshold == pytest.approx(float(GOLDEN["threshold"][()]))
    chosen = np.flatnonzero(foreground_clusters(golden_scores(), threshold))
    assert chosen.tolist() == sorted(GOLDEN["foreground_clusters"].tolist())


def test_quantile_sends_that_share_of_the_clusters_to_the_background() -> None:
    scores = np.random.default_rng(2).permutation(200) / 200
    assert foreground_clusters(scores, quantile_threshold(scores, 0.65)).sum() == 70
    assert foreground_clusters(scores, quantile_threshold(scores, 0.0)).all()
    assert foreground_clusters(scores, quantile_threshold(scores, 1.0)).sum() == 1


def test_what_cannot_be_separated_is_said() -> None:
    with pytest.raises(DataError, match=r"reaches the threshold 0\.9, the highest is 0\.5; lower score_threshold"):
        foreground_clusters(np.array([0.2, 0.5]), 0.9)
    nothing = ForegroundScores(2)
    nothing.add(np.zeros((2, 2), np.int64), np.zeros((2, 2), bool))
    with pytest.raises(DataError, match=r"foreground is empty in every image"):
        nothing.result()
    with pytest.raises(DataError, match=r"no image has annotations; set threshold=quantile"):
        labels_threshold(np.arange(20) / 20, [])
