"""Scaler, PCA and clusters: against scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.decomposition import PCA
from sklearn.preprocessing import StandardScaler

from sohes.errors import ConfigError, DataError
from sohes.methods.clusters import Moments, assign, fit_centroids


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


def test_whitening_is_a_whitened_pca() -> None:
    random = np.random.default_rng(0)
    tokens = (random.normal(size=(300, 12)) @ random.normal(size=(12, 12)) + 5).astype(np.float32)
    moments = Moments(12)
    for piece in np.array_split(tokens, 4):
        moments.add(piece)
    ours = moments.whitening(4, name="dims")(tokens)
    theirs = PCA(4, svd_solver="full", whiten=True).fit_transform(tokens.astype(np.float64))
    np.testing.assert_allclose(ours * np.sign((ours * theirs).sum(axis=0)), theirs, atol=2e-4)
    np.testing.assert_allclose(np.cov(ours.T), np.eye(4), atol=1e-4)


def test_noise_is_not_whitened() -> None:
    random = np.random.default_rng(0)
    flat = Moments(6)
    flat.add((random.normal(size=(50, 3)) @ random.normal(size=(3, 6)) + 1).astype(np.float32))
    flat.whitening(3, name="dims")
    with pytest.raises(ConfigError, match="dims=4, but the features vary in 3 dimensions alone"):
        flat.whitening(4, name="dims")
    same = Moments(6)
    same.add(np.ones((50, 6), np.float32))
    with pytest.raises(ConfigError, match="vary in 0 dimensions"):
        same.whitening(1, name="dims")


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
    with pytest.raises(
        DataError, match=r"parts=300 is more than the 200 distinct features .* set parts to at most 200"
    ):
        fit_centroids(points, 300, **options)
    with pytest.raises(DataError, match=r"parts=3 is more than the 1 distinct"):
        fit_centroids(np.ones((20, 8), np.float32), 3, **options)
