"""Pseudo-labels of images and patches: clusters of the regions of each level of a pyramid (README §6)."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from sklearn.metrics import adjusted_mutual_info_score

from sohes.backbones.pixel_clusters import unit_length
from sohes.errors import ConfigError, DataError
from sohes.files import atomic_path
from sohes.masks import FloatArray
from sohes.methods.clusters import Moments, Projection, fit_centroids
from sohes.methods.fs4.pyramid_settings import PyramidSettings
from sohes.methods.fs4.regions import RegionStore, level_slices
from sohes.progress import track
from sohes.rle import BoolArray, IntArray

_ROWS = 65_536  # regions that are compared with the centroids at once
_LEVEL_ARRAYS = ("mean", "scale", "axes", "centroids", "counts", "kept")


@dataclass(frozen=True)
class RegionClusters:
    """The clusters of a level.

    Attributes:
        projection: of embeddings, with whitening.
        centroids: (K, P) float32 of length 1, among projected embeddings of length 1.
        counts: (K,) int64, regions that each had before small ones were dissolved.
        kept: (K,) bool, which of them are left.
    """

    projection: Projection
    centroids: FloatArray
    counts: IntArray
    kept: BoolArray

    def assign(self, embeddings: FloatArray) -> tuple[IntArray, FloatArray]:
        """Clusters (n,) of embeddings (n, D), and how surely each is that and no other.

        The confidence is 1 - d1 / d2 in [0, 1], of the distances to the nearest and the second centroid.
        """
        return self.assign_points(unit_length(self.projection(embeddings)))

    def assign_points(self, points: FloatArray) -> tuple[IntArray, FloatArray]:
        """The same of points (n, P), projected and of length 1."""
        names = np.flatnonzero(self.kept)
        centroids = torch.from_numpy(self.centroids[names])
        labels, confidence = np.empty(len(points), np.int64), np.empty(len(points), np.float32)
        for start in range(0, len(points), _ROWS):
            rows = slice(start, start + _ROWS)
            nearest = (torch.from_numpy(points[rows]) @ centroids.T).topk(2, dim=1)
            first, second = (2 - 2 * nearest.values).clamp(min=0).sqrt().unbind(1)
            labels[rows] = names[nearest.indices[:, 0]]
            confidence[rows] = torch.where(second > 0, 1 - first / second, 0)
        return labels, confidence


def cluster_regions(
    points: FloatArray, projection: Projection, count: int, settings: PyramidSettings, *, seed: int
) -> RegionClusters:
    """Spherical k-means; clusters of less than `pgg_min_share` of the regions are dissolved into what is nearest.

    Args:
        points: (n, P), projected and of length 1.
        projection: that they went through.
        count: K.
        settings: of the k-means, and `pgg_min_share`.
        seed: of its starts.

    Raises:
        ConfigError: more clusters than regions.
        DataError: fewer than two clusters are left.
    """
    if count > len(points):
        raise ConfigError(
            f"pgg_clusters has {count} for a level of {len(points):,} regions; give more images, or set it to at most "
            f"{len(points)}"
        )
    centroids = unit_length(
        fit_centroids(
            points,
            count,
            seed=seed,
            restarts=settings.pgg_restarts,
            iterations=settings.pgg_iterations,
            name="pgg_clusters",
        )
    )
    all_kept = RegionClusters(projection, centroids, np.zeros(count, np.int64), np.ones(count, bool))
    counts = np.bincount(all_kept.assign_points(points)[0], minlength=count)
    kept = (counts > 0) & (counts >= settings.pgg_min_share * len(points))
    if kept.sum() < 2:
        raise DataError(
            f"{int(kept.sum())} of {count} clusters have {settings.pgg_min_share:.2%} of the {len(points):,} regions "
            "or more: features that tell nothing apart, or pgg_min_share is too high"
        )
    return RegionClusters(projection, centroids, counts, kept)


@dataclass(frozen=True)
class PyramidLabels:
    """Of each image, the cluster of each region; regions are in the order of `cell_boxes`.

    Attributes:
        grids: cells along a side, for each level.
        labels: (N, R) uint16; those of a level count from 0.
        confidence: (N, R) float32 in [0, 1], see `RegionClusters.assign`.
        clusters: of each level.
    """

    grids: tuple[int, ...]
    labels: NDArray[np.uint16]
    confidence: FloatArray
    clusters: tuple[RegionClusters, ...]

    def save(self, path: Path) -> None:
        """Write to a safetensors file."""
        arrays = {"labels": self.labels, "confidence": self.confidence}
        for level, found in enumerate(self.clusters):
            values = (*vars(found.projection).values(), found.centroids, found.counts, found.kept)
            arrays |= {f"{level}.{name}": value for name, value in zip(_LEVEL_ARRAYS, values, strict=True)}
        with atomic_path(path) as temporary:
            save_file(
                {name: np.ascontiguousarray(array) for name, array in arrays.items()},
                temporary,
                {"grids": json.dumps(self.grids)},
            )

    @classmethod
    def load(cls, path: Path) -> PyramidLabels:
        """Read what `save` wrote.

        Raises:
            DataError: missing, damaged, or something else.
        """
        try:
            with safe_open(path, "numpy") as file:
                grids = tuple(json.loads(file.metadata()["grids"]))
                clusters = []
                for level in range(len(grids)):
                    mean, scale, axes, *rest = (file.get_tensor(f"{level}.{name}") for name in _LEVEL_ARRAYS)
                    clusters.append(RegionClusters(Projection(mean, scale, axes), *rest))
                return cls(grids, file.get_tensor("labels"), file.get_tensor("confidence"), tuple(clusters))
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"{path}: no labels of regions can be read from it ({error!r}); delete it, and they are made again"
            ) from error

    def information_shared_with(self, other: PyramidLabels) -> list[float]:
        """Mutual information with the labels of the same images in another round, for each level: 1 same, 0 by chance.

        Raises:
            DataError: they are of other images or grids.
        """
        if self.grids != other.grids or self.labels.shape != other.labels.shape:
            raise DataError(
                f"labels of {len(other.labels)} images and grids {other.grids} say nothing of {len(self.labels)} "
                f"images and grids {self.grids}"
            )
        return [
            float(adjusted_mutual_info_score(self.labels[:, level].ravel(), other.labels[:, level].ravel()))
            for level in level_slices(self.grids)
        ]

    def information_of_layout(self) -> list[float]:
        """Mutual information of labels and places in the grid, for each level: 0 where it is as by chance.

        High values say that regions were clustered by layout, as sky on top, and not by what they show.
        """
        found = []
        for level in level_slices(self.grids):
            labels = self.labels[:, level]
            places = np.broadcast_to(np.arange(labels.shape[1]), labels.shape)
            found.append(float(adjusted_mutual_info_score(labels.ravel(), places.ravel())) if places.any() else 0.0)
        return found


def label_regions(store: RegionStore, settings: PyramidSettings, *, seed: int) -> PyramidLabels:
    """Project, cluster and label the regions of a data set, level by level.

    Raises:
        ConfigError: more dimensions or clusters than a level has regions.
        DataError: see `cluster_regions`.
    """
    labels: list[IntArray] = []
    confidence: list[FloatArray] = []
    clusters = []
    levels = zip(level_slices(settings.pgg_grids), settings.pgg_clusters, strict=True)
    for regions, count in track(levels, "levels of the pyramid", total=len(settings.pgg_grids)):
        moments = None
        for piece in store.level(regions):
            moments = moments or Moments(piece.shape[1])
            moments.add(piece)
        if moments is None:
            raise DataError("no image to make labels of regions from; give a list with some")
        projection = moments.whitening(settings.pgg_dims, name="pgg_dims")
        points = np.concatenate([unit_length(projection(piece)) for piece in store.level(regions)])
        found = cluster_regions(points, projection, count, settings, seed=seed)
        own_labels, own_confidence = found.assign_points(points)
        cells = regions.stop - regions.start
        labels.append(own_labels.reshape(-1, cells))
        confidence.append(own_confidence.reshape(-1, cells))
        clusters.append(found)
    return PyramidLabels(
        tuple(settings.pgg_grids),
        np.concatenate(labels, axis=1).astype(np.uint16),
        np.concatenate(confidence, axis=1),
        tuple(clusters),
    )
