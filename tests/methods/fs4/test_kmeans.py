"""k-means: recovers what is there, counts what it saw, and does not depend on how points are split."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans
from torch import Tensor
from torch.nn import functional as F

from sohes.errors import ConfigError
from sohes.methods.fs4.kmeans import MiniBatchKMeans, assign, cluster_sums, fit_kmeans

MEANS = F.normalize(torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [-1, -1, -1]]), dim=1)


def gaussians(count: int, seed: int = 0, spread: float = 0.05) -> Tensor:
    """Points (count, 3) around four means."""
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randint(0, 4, (count,), generator=generator)
    return F.normalize(MEANS[chosen] + spread * torch.randn(count, 3, generator=generator), dim=1)


def matched(centroids: Tensor) -> Tensor:
    """The centroids in the order of the means."""
    return centroids[(MEANS @ centroids.T).argmax(1)]


@pytest.mark.parametrize("spherical", [True, False])
def test_four_gaussians(spherical: bool) -> None:
    batches = gaussians(4000).split(500)
    found = fit_kmeans(torch.cat(batches[:2]), 4, iterations=10, seed=1, spherical=spherical)
    for batch in batches[2:]:
        found.update(batch)
    torch.testing.assert_close(matched(found.centroids), MEANS, atol=0.02, rtol=0)
    assert float(found.counts.sum()) == 4000
    assert torch.allclose(found.centroids.norm(dim=1), torch.ones(4)) == spherical


def test_lloyd_is_scikit_learns() -> None:
    """From a start in each cluster both end at the same means."""
    points = gaussians(600, spread=0.3)
    ours = fit_kmeans(points, 4, iterations=50, seed=3, spherical=False)
    theirs = KMeans(4, init=matched(ours.centroids).numpy(), n_init=1, max_iter=50, tol=0).fit(points.numpy())
    np.testing.assert_allclose(matched(ours.centroids).numpy(), theirs.cluster_centers_, atol=1e-4)


def test_nearest_is_by_distance() -> None:
    points, centroids = torch.randn(50, 5), 3 * torch.rand(7, 1) * torch.randn(7, 5)
    assert torch.equal(assign(points, centroids), torch.cdist(points, centroids).argmin(1))


def test_sums() -> None:
    sums, sizes = cluster_sums(torch.tensor([[1.0, 2], [3, 4], [5, 6]]), torch.tensor([2, 0, 2]), 3)
    assert sums.tolist() == [[3, 4], [0, 0], [6, 8]]
    assert sizes.tolist() == [1, 0, 2]


def test_sums_of_many() -> None:
    """More than are added up at a time."""
    points, chosen = gaussians(10_000, spread=0.3), torch.arange(10_000) % 4
    expected = np.zeros((4, 3))
    np.add.at(expected, chosen.numpy(), points.double().numpy())
    sums, sizes = cluster_sums(points, chosen, 4)
    np.testing.assert_allclose(sums.numpy(), expected, rtol=1e-12)
    assert sizes.tolist() == [2500] * 4


def test_an_update_is_the_mean_of_all_seen() -> None:
    start = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    found = MiniBatchKMeans(start, torch.tensor([2, 3]), spherical=False)
    found.update(torch.tensor([[1.0, 0.3], [0.7, 0.0]]))
    torch.testing.assert_close(found.centroids, torch.tensor([[3.7 / 4, 0.3 / 4], [0, 1]]))
    assert found.counts.tolist() == [4, 3]


def test_an_empty_cluster_gets_the_farthest_point() -> None:
    """Three groups, of which two equal starts leave one alone."""
    points = torch.tensor([[1.0, 0]] * 5 + [[0.0, 1]] * 5 + [[-1.0, 0]] * 5)
    for seed in range(5):
        found = fit_kmeans(points, 3, iterations=4, seed=seed)
        assert found.counts.tolist() == [5, 5, 5]


def test_points_that_are_all_one_leave_clusters_empty() -> None:
    found = fit_kmeans(torch.ones(20, 4) / 2, 3, iterations=3, seed=0)
    assert sorted(found.counts.tolist()) == [0, 0, 20]
    assert bool(found.centroids.isfinite().all())


def test_too_few_points() -> None:
    with pytest.raises(ConfigError, match=r"clusters=4 is more than the 3 points .* at most 3"):
        fit_kmeans(torch.randn(3, 2), 4, iterations=1, seed=0)
