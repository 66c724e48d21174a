"""k-means of upsampled tokens: equal to k-means of the pixels, and nested."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from sohes.backbones.pixel_clusters import nested_clusters, unit_length


@pytest.fixture
def tokens() -> np.ndarray:
    """(6, 6, 16), smooth like those of a ViT."""
    generator = torch.Generator().manual_seed(0)
    coarse = F.interpolate(torch.randn(1, 16, 3, 3, generator=generator), size=6, mode="bicubic")
    return (coarse + 0.3 * torch.randn(1, 16, 6, 6, generator=generator))[0].permute(1, 2, 0).numpy()


def pixels_of(tokens: np.ndarray, side: int) -> np.ndarray:
    upsampled = F.interpolate(torch.from_numpy(tokens).permute(2, 0, 1)[None].double(), size=side, mode="bilinear")
    return upsampled[0].permute(1, 2, 0).reshape(side * side, -1).numpy()


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def naive(rows: np.ndarray, labels: np.ndarray, count: int, iterations: int) -> np.ndarray:
    """Every row is compared with the direction of every cluster's sum."""
    for _ in range(iterations):
        sums = np.array([rows[labels == label].sum(axis=0) for label in range(count)])
        centres = sums / np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-12)
        labels = (rows @ centres.T).argmax(axis=1)
    return np.unique(labels, return_inverse=True)[1]


def test_equals_k_means_of_the_pixels(tokens: np.ndarray) -> None:
    side, rows = 48, pixels_of(tokens, 48)
    levels = nested_clusters(tokens, side, (9, 4), iterations=6, seed=3)
    rng = np.random.default_rng(3)
    fine = naive(rows, rng.integers(9, size=side**2), 9, 6)
    assert (levels[0].labels.ravel() == fine).mean() > 0.999
    found = levels[0].labels.ravel()
    means = unit(np.array([rows[found == label].sum(axis=0) for label in range(found.max() + 1)]))
    coarse = naive(means, rng.integers(4, size=len(means)), 4, 6)
    assert np.array_equal(levels[1].labels.ravel(), coarse[found])


def test_a_clusters_cosine_is_the_mean_over_its_pixels(tokens: np.ndarray) -> None:
    rows = pixels_of(tokens, 30)
    for level in nested_clusters(tokens, 30, (6, 3), iterations=10, seed=0):
        for label, cosine in enumerate(level.cosines):
            own = rows[level.labels.ravel() == label]
            centre = own.sum(axis=0)
            assert cosine == pytest.approx((unit(own) @ (centre / np.linalg.norm(centre))).mean(), abs=1e-5)
            mean = unit(own).mean(axis=0)
            np.testing.assert_allclose(level.directions[label], mean / np.linalg.norm(mean), atol=1e-5)


def test_levels_are_unions_of_the_ones_before(tokens: np.ndarray) -> None:
    levels = nested_clusters(tokens, 48, (16, 8, 4, 2), iterations=30, seed=0)
    for finer, coarser, count in zip(levels, levels[1:], (8, 4, 2), strict=False):
        pairs = np.unique(np.stack([finer.labels.ravel(), coarser.labels.ravel()]), axis=1)
        assert pairs.shape[1] == finer.labels.max() + 1
        assert 1 <= coarser.labels.max() + 1 <= count


def test_equal_tokens_are_never_apart() -> None:
    kinds = np.repeat(np.repeat(np.array([[0, 1], [2, 0]]), 3, axis=0), 3, axis=1)
    (level,) = nested_clusters(np.eye(4)[kinds] + 0.01, 6, (5,), iterations=30, seed=0)
    assert np.unique(np.stack([level.labels.ravel(), kinds.ravel()]), axis=1).shape[1] == 3


def test_unit_length() -> None:
    points = np.array([[3.0, 4.0], [0.0, 0.0]], np.float32)
    np.testing.assert_allclose(unit_length(points), [[0.6, 0.8], [0.0, 0.0]])
