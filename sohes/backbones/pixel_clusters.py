"""k-means of the pixels of an upsampled feature map, what CAST is compared with; no pixel's feature is ever made."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_array, diags_array, eye_array, kron
from torch.nn import functional as F

from sohes.masks import FloatArray
from sohes.rle import IntArray

Floats = NDArray[np.floating]


class KMeansLevel(NamedTuple):
    """Clusters of the pixels of one image.

    Attributes:
        labels: (S, S), from 0 on without gaps.
        cosines: of each cluster, the mean of its pixels with its centre.
        directions: (K, D) float32 of length 1, the mean of each cluster's pixels, each of length 1 before.
    """

    labels: IntArray
    cosines: Floats
    directions: FloatArray


def nested_clusters(
    tokens: Floats, side_px: int, counts: Sequence[int], *, iterations: int, seed: int
) -> list[KMeansLevel]:
    """Cluster the pixels of bilinearly upsampled tokens, then the mean directions of the clusters, and so on.

    A pixel is a fixed mixture of at most four tokens. So its product with a centre is that mixture of the tokens'
    products, and no pixel's feature is ever made: equal to k-means of the pixels, in a fraction of the work.

    Args:
        tokens: (h, w, D).
        side_px: side of the square, S.
        counts: clusters of each level at most, falling.
        iterations: of each k-means.
        seed: of the first labels, which are drawn.

    Returns:
        A level for each count, each of unions of clusters of the one before.
    """
    rng = np.random.default_rng(seed)
    mixture = csr_array(kron(*(_upsampling(side, side_px) for side in tokens.shape[:2])), dtype=np.float32)
    flat: FloatArray = tokens.reshape(-1, tokens.shape[-1]).astype(np.float32)
    lengths = np.sqrt(np.maximum(mixture.multiply(mixture @ (flat @ flat.T)).sum(axis=1), 1e-24))
    of_length_1 = csr_array(diags_array(1 / lengths) @ mixture, dtype=np.float32)
    levels: list[KMeansLevel] = []
    labels: IntArray = np.arange(side_px**2)
    for count in counts:
        if not levels:
            found = spherical_kmeans(flat, mixture, count, iterations=iterations, rng=rng)
        else:
            means = _directions(labels, mixture, flat)
            identity = csr_array(eye_array(len(means), dtype=np.float32))
            found = spherical_kmeans(means, identity, count, iterations=iterations, rng=rng)[labels]
        labels = np.unique(found, return_inverse=True)[1]
        centres = _directions(labels, mixture, flat)
        products = np.take_along_axis(mixture @ (flat @ centres.T), labels[:, None], axis=1)[:, 0]
        cosines = np.bincount(labels, weights=products / lengths) / np.bincount(labels)
        directions = _directions(labels, of_length_1, flat)
        levels.append(KMeansLevel(labels.reshape(side_px, side_px), cosines, directions))
    return levels


def spherical_kmeans(
    points: FloatArray, mixture: csr_array, count: int, *, iterations: int, rng: np.random.Generator
) -> IntArray:
    """Labels (N,) of the rows of `mixture @ points` by k-means on the sphere, from drawn labels.

    A centre is the direction of its members' sum, in which longer ones weigh more; a member has the largest product
    with its centre [CAST]. A cluster may run empty.

    Args:
        points: (n, D).
        mixture: (N, n).
        count: clusters.
        iterations: at most; it ends when no label changes.
        rng: draws the first labels.
    """
    labels: IntArray = rng.integers(count, size=mixture.shape[0])
    for _ in range(iterations):
        centres = _directions(labels, mixture, points, count)
        found = (mixture @ (points @ centres.T)).argmax(axis=1)
        if np.array_equal(found, labels):
            break
        labels = found
    return labels


def unit_length(points: NDArray[np.floating]) -> FloatArray:
    """(M, D) float32 with rows of length 1; one of zeros stays."""
    lengths = np.linalg.norm(points, axis=1, keepdims=True)
    return np.asarray(points / np.maximum(lengths, 1e-12), np.float32)


def _directions(labels: IntArray, mixture: csr_array, points: FloatArray, count: int | None = None) -> FloatArray:
    """(K, D) of length 1: of the sum of the rows of `mixture @ points` that have a label; 0 for one that none has."""
    count = int(labels.max()) + 1 if count is None else count
    places = np.arange(len(labels) + 1)
    members = csr_array((np.ones(len(labels), np.float32), labels, places), shape=(len(labels), count))
    return unit_length(np.asarray((members.T @ mixture).toarray() @ points, np.float32))


def _upsampling(side: int, side_px: int) -> csr_array:
    """(side_px, side): what bilinear interpolation makes of each token along one side."""
    weights = F.interpolate(torch.eye(side)[None], size=side_px, mode="linear")[0]
    return csr_array(weights.T.numpy())
