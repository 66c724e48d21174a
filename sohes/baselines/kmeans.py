"""k-means of a ViT's upsampled tokens in four nested levels: what CAST is compared with (README §3)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_array, eye_array, kron
from threadpoolctl import threadpool_limits
from torch.nn import functional as F

from sohes.backbones.timm_vit import load_backbone
from sohes.baselines.settings import VitKmeansSettings
from sohes.data.images import ImageLike, as_image
from sohes.masks import FloatArray, MaskForest
from sohes.methods.clusters import unit_length
from sohes.methods.forest import nested_forest
from sohes.methods.leopart.segment_settings import check_size
from sohes.methods.leopart.segmenter import square_view
from sohes.rle import IntArray
from sohes.segmenters.segmenter import Segmenter

Floats = NDArray[np.floating]


class KMeansLevel(NamedTuple):
    """Clusters of the pixels of one image.

    Attributes:
        labels: (S, S), from 0 on without gaps.
        cosines: of each cluster, the mean of its pixels with its centre.
    """

    labels: IntArray
    cosines: Floats


class VitKmeans(Segmenter):
    """Clusters of pixels, and clusters of these, three times over; every connected piece of each is a mask.

    A mask's score is the mean cosine of its cluster's pixels with their centre, 0 at least.

    Raises:
        WeightsError: the backbone's weights cannot be found or used.
        ConfigError: the square is no multiple of the backbone's patch.
    """

    def __init__(self, settings: VitKmeansSettings | None = None) -> None:
        self.settings = settings or VitKmeansSettings()
        self._vit = load_backbone(self.settings.backbone, architecture=self.settings.architecture, feature="token")
        provenance = self._vit.provenance
        self.backbone, self.init = provenance.timm_name, provenance.label
        self.supervision = provenance.supervision
        check_size(self.settings.size_px, self._vit.patch_size, self.backbone)

    def predict(self, image: ImageLike) -> MaskForest:
        """See `Segmenter.predict`; attributes `source`, "level 1" the finest, and `category_id`, a cluster's number."""
        settings, array = self.settings, as_image(image)
        view = square_view(array, settings.size_px)[None].to(self._vit.device)
        tokens = self._vit(view).map[0].permute(1, 2, 0).cpu().numpy()
        with threadpool_limits(1):  # products of several threads may be rounded in another order
            levels = nested_clusters(
                tokens, settings.size_px, settings.clusters, iterations=settings.iterations, seed=settings.seed
            )
        maps: dict[str, IntArray] = {}
        cosines: list[Floats] = []
        for number, level in reversed(list(enumerate(levels, start=1))):  # the coarsest first
            maps[f"level {number}"] = level.labels + sum(len(coarser) for coarser in cosines)
            cosines.append(level.cosines)
        square = (settings.size_px, settings.size_px)
        forest = nested_forest(maps, np.ones(square, np.float32), (array.shape[0], array.shape[1]))
        scores = np.concatenate(cosines)[forest.attributes["category_id"]].clip(0, 1).astype(np.float32)
        return replace(forest, scores=scores).select(np.lexsort((-forest.areas, -scores)))


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
        levels.append(KMeansLevel(labels.reshape(side_px, side_px), cosines))
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
