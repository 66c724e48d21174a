"""k-means of more pixels than memory holds: a start from some of them, then running means (README §4)."""

from __future__ import annotations

import torch
from mmengine.dist import all_reduce, broadcast
from torch import Tensor
from torch.nn import functional as F

from sohes.errors import ConfigError

CHUNK = 2**16  # points whose similarities to all centroids are in memory together
_CACHED = 2**12  # points that are added up at a time: their float64 copy stays in a processor's cache


def assign(points: Tensor, centroids: Tensor) -> Tensor:
    """Index (n,) int64 of the nearest of the centroids (K, C) to points (n, C), by Euclidean distance."""
    offsets = centroids.square().sum(1) / 2
    parts = [(part @ centroids.T - offsets).argmax(1) for part in points.split(CHUNK)]
    return torch.cat(parts)


def cluster_sums(points: Tensor, clusters: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Sum (K, C) and number (K,) of the points (n, C) of each of `count` clusters, float64.

    By matrices of 0 and 1, since additions by index come in any order on a GPU.
    """
    sums = points.new_zeros(count, points.shape[1], dtype=torch.float64)
    sizes = points.new_zeros(count, dtype=torch.float64)
    for part, chosen in zip(points.split(_CACHED), clusters.split(_CACHED), strict=True):
        members = F.one_hot(chosen, count).double()
        sums += members.T @ part.double()
        sizes += members.sum(0)
    return sums, sizes


class MiniBatchKMeans:
    """Running means of clusters, moved by batch after batch (Sculley, 2010), over all processes together.

    Args:
        means: (K, C) to start from.
        counts: (K,) of the points that they are the means of.
        spherical: bring the centroids to unit length, so that distance and dot product agree; else they are the means.

    Attributes:
        means, counts: as they are now, float64.
    """

    def __init__(self, means: Tensor, counts: Tensor, *, spherical: bool = True) -> None:
        self.means, self.counts, self._spherical = means.double(), counts.double(), spherical

    @property
    def centroids(self) -> Tensor:
        """(K, C) float32."""
        return (F.normalize(self.means, dim=1) if self._spherical else self.means).float()

    def update(self, points: Tensor) -> None:
        """Assign this process's points (n, C) float32 of a batch, then move the means by those of all processes."""
        sums, sizes = cluster_sums(points, assign(points, self.centroids), len(self.means))
        all_reduce(sums)
        all_reduce(sizes)
        self.counts = self.counts + sizes
        self.means = self.means + (sums - sizes[:, None] * self.means) / self.counts.clamp(min=1)[:, None]


def fit_kmeans(
    points: Tensor, count: int, *, iterations: int, seed: int, spherical: bool = True, name: str = "clusters"
) -> MiniBatchKMeans:
    """Lloyd's k-means from k-means++, ready for more batches; a cluster that runs empty gets the farthest point.

    Args:
        points: (n, C) float32, the same on all processes.
        count: K.
        iterations: of Lloyd's algorithm.
        seed: of the start.
        spherical: see `MiniBatchKMeans`; the points are of unit length.
        name: of the setting that K is, for the message.

    Raises:
        ConfigError: fewer points than clusters.
    """
    if len(points) < count:
        raise ConfigError(
            f"{name}={count} is more than the {len(points):,} points that the first centroids are made of; give more "
            f"images, or set {name} to at most {len(points)}"
        )
    centroids = _plus_plus(points, count, seed)
    for _ in range(iterations):
        found = MiniBatchKMeans(*_means(points, centroids), spherical=spherical)
        centroids = _refilled(points, found)
    means, counts = _means(points, centroids)
    if not spherical:
        means = centroids
    broadcast(means)  # equal to the bit on all processes, or they might label differently
    broadcast(counts)
    return MiniBatchKMeans(means, counts, spherical=spherical)


def _means(points: Tensor, centroids: Tensor) -> tuple[Tensor, Tensor]:
    """Means (K, C) and numbers (K,) of the points nearest to each centroid; an empty cluster keeps its centroid."""
    sums, sizes = cluster_sums(points, assign(points, centroids), len(centroids))
    return torch.where(sizes[:, None] > 0, sums / sizes.clamp(min=1)[:, None], centroids.double()), sizes


def _refilled(points: Tensor, found: MiniBatchKMeans) -> Tensor:
    """The centroids (K, C), those of empty clusters replaced by the points that are farthest from their own."""
    centroids, empty = found.centroids, found.counts == 0
    if bool(empty.any()):
        full = centroids[~empty]
        nearest = torch.cat([full[assign(part, full)] for part in points.split(CHUNK)])
        far = (points - nearest).square().sum(1).topk(int(empty.sum())).indices
        centroids[empty] = points[far]
    return centroids


def _plus_plus(points: Tensor, count: int, seed: int) -> Tensor:
    """Centroids (K, C) of k-means++ (Arthur and Vassilvitskii, 2007), drawn on the CPU: the same on every device."""
    generator = torch.Generator().manual_seed(seed)
    draws = torch.rand(count, generator=generator, dtype=torch.float64).tolist()
    places = [min(int(draws[0] * len(points)), len(points) - 1)]
    distances = torch.full((len(points),), torch.inf, dtype=torch.float64, device=points.device)
    for draw in draws[1:]:
        last = points[places[-1]]
        reach = torch.cat([(part - last).square().sum(1) for part in points.split(_CACHED)])
        distances = torch.minimum(distances, reach.double())
        reached = distances.cumsum(0)
        aim = draw * reached[-1]
        places.append(int(torch.searchsorted(reached, aim, right=True).clamp(max=len(points) - 1)))
    return points[places]
