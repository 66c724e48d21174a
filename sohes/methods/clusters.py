"""Features standardised, projected and clustered: what several methods do with the patches or regions of a data set."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.cluster import KMeans
from sklearn.metrics import pairwise_distances_argmin
from threadpoolctl import threadpool_limits

from sohes.errors import ConfigError, DataError
from sohes.masks import FloatArray
from sohes.rle import IntArray

_NO_VARIANCE = 1e-10  # share of the mean squared length from which variance is more than rounding


@dataclass(frozen=True)
class Projection:
    """Tokens standardised per dimension, then projected onto principal axes.

    Attributes:
        mean, scale: (D,) float32.
        axes: (P, D) float32, orthogonal; of length 1, or where it whitens of 1 / standard deviation along them.
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

    def projection(self, dims: int, *, name: str = "pca") -> Projection:
        """What scikit-learn's `StandardScaler` and full `PCA` to `dims` dimensions do on all tokens at once.

        Args:
            dims: P.
            name: of the setting that it is, for the message.

        Raises:
            ConfigError: more dimensions than channels or tokens.
        """
        mean, covariance = self._normal(dims, name)
        deviation = np.sqrt(np.maximum(np.diagonal(covariance), 0))
        scale = np.where(deviation > 1e-6 * np.maximum(np.abs(mean), 1), deviation, 1.0)  # a constant stays one
        _, axes = _principal(covariance / np.outer(scale, scale), dims)
        return Projection(*(array.astype(np.float32) for array in (mean, scale, axes)))

    def whitening(self, dims: int, *, name: str) -> Projection:
        """What scikit-learn's full `PCA` to `dims` dimensions with `whiten=True` does on all tokens at once.

        Args:
            dims: P.
            name: of the setting that it is, for the message.

        Raises:
            ConfigError: more dimensions than channels or tokens, or than the tokens vary in.
        """
        mean, covariance = self._normal(dims, name)
        variances, axes = _principal(covariance * self.count / max(self.count - 1, 1), dims)
        varied = int((variances > _NO_VARIANCE * (np.trace(covariance) + mean @ mean)).sum())
        if varied < dims:  # noise would be brought to the length of the rest
            raise ConfigError(
                f"{name}={dims}, but the features vary in {varied} dimensions alone; set it to at most that"
            )
        white = axes / np.sqrt(variances)[:, None]
        return Projection(*(array.astype(np.float32) for array in (mean, np.ones_like(mean), white)))

    def _normal(self, dims: int, name: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        if dims > min(self.count, len(self._sum)):
            raise ConfigError(
                f"{name}={dims} is more than {self.count:,} tokens of {len(self._sum)} channels have; set {name} to at "
                f"most {min(self.count, len(self._sum))}"
            )
        mean = self._sum / self.count
        return mean, self._outer / self.count - np.outer(mean, mean)


def _principal(covariance: NDArray[np.float64], dims: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Variances (dims,), falling, and their axes (dims, D) of length 1, of which the largest entry is positive."""
    values, vectors = np.linalg.eigh(covariance)
    axes = vectors.T[::-1][:dims]
    signs = np.sign(axes[np.arange(dims), np.abs(axes).argmax(axis=1)])  # of an axis, free otherwise
    return values[::-1][:dims], axes * signs[:, None]


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
            f"{name}={count} is more than the {distinct:,} distinct features there are to cluster; give more images, "
            f"or set {name} to at most {distinct}"
        )
    with threadpool_limits(1, user_api="openmp"):  # sums of several threads are rounded in any order
        fitted = KMeans(count, n_init=restarts, max_iter=iterations, random_state=seed).fit(points)
    return np.asarray(fitted.cluster_centers_, np.float32)


def assign(points: FloatArray, centroids: FloatArray) -> IntArray:
    """Index of the nearest centroid, (N,)."""
    if len(points) == 0:
        return np.zeros(0, np.int64)
    return np.asarray(pairwise_distances_argmin(points, centroids), np.int64)
