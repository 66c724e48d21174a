"""Scaler, PCA, clusters and their scores: against scikit-learn, and against the authors' own code."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sklearn.decomposition import PCA
from sklearn.preprocessing import StandardScaler

from sohes.errors import ConfigError, DataError
from sohes.methods.leopart.clusters import (
    ForegroundScores,
    Moments,
    assign,
    fit_centroids,
    foreground_clusters,
    labels_threshold,
    quantile_threshold,
    unit_length,
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


def test_moments_are_a_scaler_and_a_pca() -> None:
    random = np.random.default_rng(0)
    tokens = (random.normal(size=(500, 12)) @ random.normal(size=(12, 12)) + 5).astype(np.float32)
    tokens[:, 3] = 7  # a channel that never changes
    moments = Moments(12)
    for piece in np.array_split(tokens, 7):
        moments.add(piece)
    ours = moments.projection(4)(tokens)
    theirs = PCA(4, svd_solver="full").fit_transform(StandardScaler().fit_transform(tokens.astype(np.float64)))
    signs = np.sign((ours * theirs).sum(axis=0))  # of an axis: free
    np.testing.assert_allclose(ours * signs, theirs, atol=2e-4)
    with pytest.raises(ConfigError, match=r"pca=13 is more than 500 tokens of 12 channels have; set pca to at most 12"):
        moments.projection(13)


def test_clusters_are_found_again_and_are_the_same_each_time() -> None:
    random = np.random.default_rng(1)
    centres = random.normal(size=(5, 8)) * 20
    points = (np.repeat(centres, 40, axis=0) + random.normal(size=(200, 8))).astype(np.float32)
    options = {"seed": 3, "restarts": 2, "iterations": 50, "name": "parts"}
    centroids = fit_centroids(points, 5, **options)
    labels = assign(points, centroids).reshape(5, 40)
    assert (labels == labels[:, :1]).all()
    assert len(set(labels[:, 0])) == 5
    assert (fit_centroids(points, 5, **options) == centroids).all()
    assert assign(points[:0], centroids).shape == (0,)
    with pytest.raises(DataError, match=r"parts=300 is more than the 200 distinct patches .* set parts to at most 200"):
        fit_centroids(points, 300, **options)
    with pytest.raises(DataError, match=r"parts=3 is more than the 1 distinct"):
        fit_centroids(np.ones((20, 8), np.float32), 3, **options)


def test_unit_length() -> None:
    points = np.array([[3.0, 4.0], [0.0, 0.0]], np.float32)
    np.testing.assert_allclose(unit_length(points), [[0.6, 0.8], [0.0, 0.0]])


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
