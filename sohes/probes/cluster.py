"""Cluster probe: as many clusters of train features as there are classes, matched one to one on val (README §10).

PiCIE's protocol on the features of any backbone: spherical k-means, the centre square of 320 px, dot products with the
centroids upsampled to its pixels. Labels match clusters to classes, and do nothing before.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_array
from sklearn.cluster import kmeans_plusplus
from threadpoolctl import threadpool_limits
from torch import Tensor
from torch.nn.functional import normalize

from sohes.backbones.pixel_clusters import unit_length
from sohes.data.label_maps import IGNORE, LabelMap
from sohes.data.square import centre_square_labels
from sohes.errors import ConfigError, DataError
from sohes.evaluation.cluster_naming import hungarian
from sohes.evaluation.cluster_probe import METHOD
from sohes.evaluation.clustering import name_clusters
from sohes.evaluation.protocols import CLUSTER_PROBE, CROP_PX
from sohes.masks import FloatArray
from sohes.probes.features import Features
from sohes.probes.patches import check_memory
from sohes.probes.scoring import Scored, Task, to_label_map
from sohes.progress import track
from sohes.rle import IntArray

ITERATIONS = 50
_ROWS = 65_536  # patches of a chunk


def cluster_probe(task: Task, seed: int) -> list[Scored]:
    """K-means of train patches into K clusters, K the number of classes, scored on the pixels of val.

    Raises:
        ConfigError: more classes than train patches that are clustered, or more of these than memory holds.
        DataError: fewer distinct ones than classes.
    """
    classes = len(task.data.classes)
    patches = len(task.data.train) * (task.size_px // task.backbone.patch_size) ** 2
    count = min(patches, task.config.tokens)
    if classes > count:
        raise ConfigError(
            f"{classes} clusters, one for each class, but {count} of the {patches} train patches are clustered; give "
            "more train images, or raise tokens"
        )
    needed = 2 * 4 * count * task.backbone.embed_dim  # k-means++ and norms take about as much again
    check_memory(needed, torch.device("cpu"), f"{count} patches to cluster", "tokens=N")
    points = drawn_patches(task.train, count, seed=seed)
    centroids = spherical_kmeans(points, classes, seed=seed)
    weights, maps = torch.from_numpy(centroids).to(task.backbone.device), task.val

    def clusters(place: int) -> LabelMap:
        return to_label_map(cosines(maps[place], weights), (CROP_PX, CROP_PX), size_px=None)

    pixels: IntArray = np.zeros((len(task.data.val), classes, classes), np.int64)  # cluster by class, of each image
    for place, item in enumerate(track(task.data.val, f"scoring {METHOD}")):
        truth = centre_square_labels(item.label_map(), CROP_PX)
        labelled = truth != IGNORE
        joint = clusters(place)[labelled].astype(np.int64) * classes + truth[labelled]
        pixels[place] = np.bincount(joint, minlength=classes**2).reshape(classes, classes)
    names = hungarian(pixels.sum(axis=0))
    return [
        Scored(
            method=METHOD,
            protocol=CLUSTER_PROBE.id,
            confusions=np.stack([name_clusters(own, names).T for own in pixels]),
            label_map=lambda place: names[clusters(place)].astype(np.uint8),
            notes=(
                f"{classes} clusters of {count} patches of {len(task.data.train)} train images, without augmentation; "
                "labels of val match them to classes",
            ),
        )
    ]


def cosines(features: NDArray[np.float32], centroids: Tensor) -> Tensor:
    """Dot products (h, w, K) of features (h, w, D), brought to length 1, with centroids (K, D) on their device."""
    return normalize(torch.tensor(features, device=centroids.device), dim=-1) @ centroids.T


def drawn_patches(features: Features, count: int, *, seed: int) -> FloatArray:
    """Feature vectors (M, D) float32 of length 1: all patches, or `count` of them, drawn without replacement."""
    per_image = features.side**2
    chosen: IntArray = np.arange(features.tokens)
    if count < features.tokens:
        chosen = np.sort(np.random.default_rng(seed).choice(features.tokens, count, replace=False))
    ends = np.searchsorted(chosen, per_image * np.arange(len(features) + 1))
    points = np.empty((len(chosen), features.dim), np.float32)
    for place in range(len(features)):
        own = slice(ends[place], ends[place + 1])
        points[own] = unit_length(features[place].reshape(per_image, -1)[chosen[own] - per_image * place])
    return points


def spherical_kmeans(points: FloatArray, k: int, *, seed: int) -> FloatArray:
    """Centroids of length 1 that maximise the sum of cosines with their points, from the first centres of k-means++.

    The same whatever the number of cores. A cluster that loses its last point keeps its centroid.

    Args:
        points: (M, D) float32 of length 1.
        k: number of clusters K, at most M.
        seed: of the first centres.

    Returns:
        (K, D) float32.

    Raises:
        DataError: fewer distinct points than clusters.
    """
    distinct = len(np.unique(points, axis=0)) if len(points) < 10 * k else len(points)
    with threadpool_limits(1):  # sums of several threads are rounded in any order
        centroids, _ = kmeans_plusplus(points, k, random_state=seed)
        if distinct < k or len(np.unique(centroids, axis=0)) < k:
            raise DataError(f"{k} clusters need {k} distinct patches, and there are fewer; give images that differ")
        before: IntArray | None = None
        for _ in track(range(ITERATIONS), f"k-means, {k} clusters"):
            labels, sums = _step(points, centroids)
            if before is not None and np.array_equal(labels, before):
                break
            before = labels
            filled = np.linalg.norm(sums, axis=1) > 0
            centroids = np.where(filled[:, None], unit_length(sums), centroids)
    return centroids


def _step(points: FloatArray, centroids: FloatArray) -> tuple[IntArray, NDArray[np.float64]]:
    """Cluster of each point (M,), and the sum of each cluster's points (K, D)."""
    labels = np.empty(len(points), np.int64)
    sums = np.zeros(centroids.shape)
    for first in range(0, len(points), _ROWS):
        own = points[first : first + _ROWS]
        found = labels[first : first + _ROWS] = (own @ centroids.T).argmax(axis=1)
        rows = np.arange(len(own))
        sums += csr_array((np.ones(len(own)), (found, rows)), shape=(len(centroids), len(own))) @ own
    return labels, sums
