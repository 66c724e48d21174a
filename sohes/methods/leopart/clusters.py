"""Clusters of patches, and which of them are foreground (README §9)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.cluster import KMeans
from sklearn.metrics import pairwise_distances_argmin
from threadpoolctl import threadpool_limits

from sohes.errors import ConfigError, DataError
from sohes.masks import FloatArray
from sohes.rle import BoolArray, IntArray

_CUTS = (0.55, 0.75)  # shares of background clusters that are tried with labels [Leopart]
_SNAP = np.arange(0, 1, 0.05)  # scores that a threshold found so is rounded to [Leopart]


@dataclass(frozen=True)
class Projection:
    """Tokens standardised per dimension, then projected onto principal axes.

    Attributes:
        mean, scale: (D,) float32.
        axes: (P, D) float32, orthonormal.
    """

    mean: FloatArray
    scale: FloatArray
    axes: FloatArray

    def __call__(self, tokens: FloatArray) -> FloatArray:
        """(N, D) to (N, P) float32."""
        return np.asarray(((tokens - self.mean) / self.scale) @ self.axes.T, np.float32)


class Moments:
    """Mean and covariance of tokens that come in pieces: standardising and PCA need no more of them.

    Args:
        dim: D, channels of a token.
    """

    def __init__(self, dim: int) -> None:
        self.count = 0
        self._sum = np.zeros(dim)
        self._outer = np.zeros((dim, dim))

    def add(self, tokens: FloatArray) -> None:
        """Take tokens (N, D)."""
        exact = tokens.astype(np.float64)
        self.count += len(exact)
        self._sum += exact.sum(axis=0)
        self._outer += exact.T @ exact

    def projection(self, dims: int) -> Projection:
        """What scikit-learn's `StandardScaler` and full `PCA` to `dims` dimensions do on all tokens at once.

        Raises:
            ConfigError: more dimensions than channels or tokens.
        """
        if dims > min(self.count, len(self._sum)):
            raise ConfigError(
                f"pca={dims} is more than {self.count:,} tokens of {len(self._sum)} channels have; set pca to at most "
                f"{min(self.count, len(self._sum))}"
            )
        mean = self._sum / self.count
        covariance = self._outer / self.count - np.outer(mean, mean)
        deviation = np.sqrt(np.maximum(np.diagonal(covariance), 0))
        scale = np.where(deviation > 1e-6 * np.maximum(np.abs(mean), 1), deviation, 1.0)  # a constant stays one
        _, vectors = np.linalg.eigh(covariance / np.outer(scale, scale))
        axes = vectors.T[::-1][:dims]
        signs = np.sign(axes[np.arange(dims), np.abs(axes).argmax(axis=1)])  # of an axis, free otherwise
        return Projection(*(array.astype(np.float32) for array in (mean, scale, axes * signs[:, None])))


def unit_length(points: FloatArray) -> FloatArray:
    """(N, P) with rows of length 1."""
    unit: FloatArray = points / np.maximum(np.linalg.norm(points, axis=1, keepdims=True), 1e-12)
    return unit


def fit_centroids(
    points: FloatArray, count: int, *, seed: int, restarts: int, iterations: int, name: str
) -> FloatArray:
    """Centroids (K, P) float32 of the k-means of points (N, P), the same whatever the number of cores.

    Args:
        count: K.
        name: of the setting that K is, for the message.

    Raises:
        DataError: fewer distinct points than clusters.
    """
    distinct = len(np.unique(points, axis=0)) if len(points) < 10 * count else len(points)
    if distinct < count:
        raise DataError(
            f"{name}={count} is more than the {distinct:,} distinct patches there are to cluster; give more images, or "
            f"set {name} to at most {distinct}"
        )
    with threadpool_limits(1, user_api="openmp"):  # sums of several threads are rounded in any order
        fitted = KMeans(count, n_init=restarts, max_iter=iterations, random_state=seed).fit(points)
    return np.asarray(fitted.cluster_centers_, np.float32)


def assign(points: FloatArray, centroids: FloatArray) -> IntArray:
    """Index of the nearest centroid, (N,)."""
    if len(points) == 0:
        return np.zeros(0, np.int64)
    return np.asarray(pairwise_distances_argmin(points, centroids), np.int64)


class ForegroundScores:
    """How much of each cluster lies in a noisy foreground: precision in an image, mean over the images that have it.

    Args:
        count: K, number of clusters.
    """

    def __init__(self, count: int) -> None:
        self._sum = np.zeros(count)
        self._images = np.zeros(count, np.int64)

    def add(self, clusters: NDArray[np.integer], foreground: BoolArray) -> None:
        """Take an image's cluster map (H, W) in [0, K) and its noisy foreground (H, W)."""
        flat, count = clusters.ravel(), len(self._sum)
        pixels = np.bincount(flat, minlength=count)
        inside = np.bincount(flat[foreground.ravel()], minlength=count)
        self._sum += inside / np.maximum(pixels, 1)
        self._images += pixels > 0

    def result(self) -> NDArray[np.float64]:
        """(K,) in [0, 1]; 0 for a cluster that no image has.

        Raises:
            DataError: nothing lies in the foreground.
        """
        if not self._sum.any():
            raise DataError("the noisy foreground is empty in every image; take attention of another backbone")
        return self._sum / np.maximum(self._images, 1)


def quantile_threshold(scores: NDArray[np.floating], background_share: float) -> float:
    """The lowest score of a foreground cluster when so large a share of the clusters is background."""
    place = min(int(background_share * len(scores)), len(scores) - 1)
    return float(np.sort(scores)[place])


def labels_threshold(
    scores: NDArray[np.floating], images: Iterable[tuple[NDArray[np.integer], BoolArray]]
) -> tuple[float, list[tuple[float, int, float]]]:
    """The threshold as it is published, for which labels are read.

    Args:
        scores: (K,) of the clusters.
        images: cluster map and annotated foreground (H, W) of each; in the public code 255 counts as foreground.

    Returns:
        The threshold; and score, number of background clusters and Jaccard index of each cut, the best one last.
    """
    count = len(scores)
    cuts = range(int(_CUTS[0] * count), int(_CUTS[1] * count))
    if not cuts:
        raise ConfigError(f"threshold=labels tries nothing with {count} foreground_clusters; take 20 or more")
    rank = np.argsort(np.argsort(scores))
    jaccard, seen = np.zeros(len(cuts)), 0
    for clusters, truth in images:
        ranks = rank[clusters]
        for index, cut in enumerate(cuts):
            found = ranks >= cut
            jaccard[index] += np.count_nonzero(found & truth) / max(np.count_nonzero(found | truth), 1)
        seen += 1
    if not seen:
        raise DataError("threshold=labels, but no image has annotations; set threshold=quantile")
    tried = sorted(zip(np.sort(scores)[cuts], cuts, jaccard / seen, strict=True), key=lambda cut: cut[2])
    threshold = min(_SNAP, key=lambda score: abs(score - tried[-1][0]))
    return float(threshold), [(float(score), cut, float(value)) for score, cut, value in tried]


def foreground_clusters(scores: NDArray[np.floating], threshold: float) -> BoolArray:
    """Which clusters (K,) are foreground.

    Raises:
        DataError: none of them.
    """
    chosen: BoolArray = scores >= threshold
    if not chosen.any():
        raise DataError(
            f"no cluster's score reaches the threshold {threshold:.3g}, the highest is {scores.max():.3g}; lower "
            "score_threshold, or set threshold=quantile"
        )
    return chosen
