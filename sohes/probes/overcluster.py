"""Over-clustering: k-means of val features into more clusters than classes, each called after the class it agrees with.

Leopart's protocol (its `experiments/overcluster`): features standardised, projected onto 50 principal components,
k-means of 100 iterations with restarts, cluster maps upsampled by nearest neighbour. Labels name the clusters, and do
nothing before (README §7).
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from sklearn.cluster import KMeans
from threadpoolctl import threadpool_limits

from sohes.data.label_maps import IGNORE, LabelMap
from sohes.errors import ConfigError
from sohes.evaluation.cluster_naming import hungarian_iou, majority
from sohes.evaluation.semantic import confusion_matrix, semantic_protocol
from sohes.probes.features import Features
from sohes.probes.scoring import Scored, Task, annotation
from sohes.progress import track
from sohes.records import usable_cores
from sohes.rle import IntArray

Label = TypeVar("Label", bound=np.integer)

ITERATIONS = 100
_NEXT_RESTART = 1_000_000  # between the random states of restarts; the first one's is the seed
_AT_ONCE = 4  # k-means that run beside one another; each has its copy of the features

ClusterMaps = NDArray[np.int32]  # (N, h, w)


def overcluster_probe(task: Task, seed: int) -> list[Scored]:
    """K-means for each of the settings' numbers of clusters, and for as many as there are classes.

    More clusters than classes are named by majority, several to one class; as many by a one-to-one matching on IoU, in
    which classes without a pixel take part. Fewer are an error.

    Raises:
        ConfigError: fewer clusters than classes, or more than there are patches.
    """
    classes = len(task.data.classes)
    numbers = [*dict.fromkeys((*task.config.clusters, classes))]
    patches = len(task.data.val) * (task.size_px // task.backbone.patch_size) ** 2
    check_clusters(numbers, classes=classes, patches=patches)
    points = principal_components(task.val, components=task.config.components)
    scored = []
    for k in numbers:
        maps = cluster_maps(points, k, seed=seed, restarts=task.config.restarts)
        scored.append(_score(task, maps, k))
    return scored


def check_clusters(numbers: list[int], *, classes: int, patches: int) -> None:
    """Refuse numbers of clusters that cannot be.

    Raises:
        ConfigError: see `overcluster_probe`.
    """
    for k in numbers:
        if k > patches:
            raise ConfigError(
                f"clusters: {k} clusters, but the val images have {patches} patches; take fewer clusters, more images "
                "or a larger size_px"
            )
        if k < classes:
            raise ConfigError(f"clusters: {k} clusters cannot name {classes} classes; take more")


def _score(task: Task, maps: ClusterMaps, k: int) -> Scored:
    """Name the clusters by their pixels in all val images, at the size that is scored, and score the names."""
    config, items, classes = task.config, task.data.val, len(task.data.classes)
    annotated = partial(annotation, size_px=task.size_px, score_px=config.score_px)
    pixels: IntArray = np.zeros((k, classes), np.int64)
    for place, item in enumerate(track(items, f"naming {k} clusters")):
        truth = annotated(item)
        labelled = truth != IGNORE
        clusters = nearest(maps[place], truth.shape)[labelled].astype(np.int64)
        pixels += np.bincount(clusters * classes + truth[labelled], minlength=k * classes).reshape(k, classes)
    named = (majority if k > classes else hungarian_iou)(pixels).astype(np.uint8)

    def label_map(place: int, size_hw: tuple[int, ...]) -> LabelMap:
        return named[nearest(maps[place], size_hw)]

    confusions = np.zeros((len(items), classes, classes), np.int64)
    for place, item in enumerate(items):
        truth = annotated(item)
        confusions[place] = confusion_matrix(
            label_map(place, truth.shape), truth, classes=classes, name=str(item.image)
        )
    return Scored(
        method=f"k-means, {k} clusters",
        protocol=semantic_protocol(
            f"cluster{k}" + ("" if k > classes else "_matched"), size_px=task.size_px, score_px=config.score_px
        ).id,
        confusions=confusions,
        label_map=lambda place: label_map(place, items[place].size_hw),
        notes=(
            f"{k} clusters of the val features themselves, {config.restarts} restart(s); labels of val name them, "
            f"{len(set(named.tolist()))} of {classes} classes are named",
        ),
    )


def principal_components(features: Features, *, components: int) -> NDArray[np.float32]:
    """Features standardised in each dimension, then projected onto their principal components, largest variance first.

    Both are fitted on these features, read one image at a time.

    Returns:
        (N, h, w, P) float32; P is `components`, or D if that is less.
    """

    def maps() -> Iterator[NDArray[np.float32]]:
        return (features[place].reshape(-1, features.dim) for place in range(len(features)))

    mean = np.mean([one.mean(axis=0, dtype=np.float64) for one in maps()], axis=0)
    deviation = np.sqrt(np.mean([np.square(one - mean).mean(axis=0) for one in maps()], axis=0))
    deviation[deviation == 0] = 1  # a constant dimension
    mean, deviation = mean.astype(np.float32), deviation.astype(np.float32)
    covariance = np.zeros((features.dim, features.dim))
    for one in maps():
        standard = (one - mean) / deviation
        covariance += standard.T @ standard
    vectors = np.linalg.eigh(covariance)[1][:, ::-1][:, :components].astype(np.float32)
    projected = [((one - mean) / deviation) @ vectors for one in maps()]
    return np.stack(projected).reshape(len(features), features.side, features.side, -1)


def cluster_maps(points: NDArray[np.float32], k: int, *, seed: int, restarts: int) -> ClusterMaps:
    """Clusters of feature vectors by scikit-learn's k-means: of some restarts those of least inertia.

    The same whatever the number of cores.

    Args:
        points: (N, h, w, P) float32.
        k: number of clusters, at most that of the vectors.
        seed: of the first centres.
        restarts: how many.

    Returns:
        (N, h, w) int32 in [0, k).
    """
    flat = points.reshape(-1, points.shape[-1])

    def fit(restart: int) -> tuple[float, NDArray[np.int32]]:
        with threadpool_limits(1, user_api="openmp"):  # sums of several threads are rounded in any order
            state = seed + _NEXT_RESTART * restart
            found = KMeans(k, n_init=1, max_iter=ITERATIONS, random_state=state).fit(flat)
        return float(found.inertia_), found.labels_

    with threadpool_limits(1, user_api="blas"), ThreadPoolExecutor(min(usable_cores(), _AT_ONCE)) as pool:
        fits = list(track(pool.map(fit, range(restarts)), f"k-means, {k} clusters", total=restarts))
    return min(fits, key=lambda one: one[0])[1].reshape(points.shape[:-1])


def nearest(small: NDArray[Label], size_hw: tuple[int, ...]) -> NDArray[Label]:
    """A map (h, w) upsampled by nearest neighbour to (H, W), as torch's `interpolate` does it."""
    rows, columns = (np.arange(out) * n // out for out, n in zip(size_hw, small.shape, strict=True))
    return small[rows[:, None], columns]
