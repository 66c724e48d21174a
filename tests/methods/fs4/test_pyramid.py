"""Labels of regions and the loss against them: planted clusters, loops, and what can be told by hand."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from sklearn.metrics import normalized_mutual_info_score
from torch import Tensor
from torch.nn import functional as F

from sohes.backbones.pixel_clusters import unit_length
from sohes.errors import ConfigError, DataError
from sohes.methods.clusters import Projection
from sohes.methods.fs4.geometry import boxes_in_view
from sohes.methods.fs4.pyramid import PyramidLabels, RegionClusters, cluster_regions, label_regions
from sohes.methods.fs4.pyramid_loss import PyramidHeads, RegionView, region_vectors
from sohes.methods.fs4.pyramid_settings import PyramidSettings
from sohes.methods.fs4.regions import RegionStore, cell_boxes

TWO: dict[str, Any] = {
    "pgg_grids": (1, 2),
    "pgg_clusters": (3, 4),
    "pgg_level_weights": (0.6, 0.4),
    "pgg_dims": 4,
    "pgg_restarts": 2,
}
IMAGES = 40


class Planted(RegionStore):
    """Embeddings (40, 5, 10) around 3 directions for images and 4 for cells, in two pieces."""

    def __init__(self) -> None:
        random = np.random.default_rng(0)
        self.truth = [random.integers(0, 3, (IMAGES, 1)), random.integers(0, 4, (IMAGES, 4))]
        centres = random.normal(size=(7, 10))
        exact = np.concatenate([centres[self.truth[0]], centres[3 + self.truth[1]]], axis=1)
        noisy = exact + 0.05 * random.normal(size=exact.shape)
        self.all = (noisy / np.linalg.norm(noisy, axis=2, keepdims=True)).astype(np.float32)

    def level(self, regions: slice) -> Iterator[np.ndarray]:
        for piece in np.array_split(self.all, 2):
            yield piece[:, regions].reshape(-1, 10)


@pytest.fixture(scope="module")
def planted() -> Planted:
    return Planted()


@pytest.fixture(scope="module")
def labels(planted: Planted) -> PyramidLabels:
    return label_regions(planted, PyramidSettings(**TWO), seed=0)


def test_planted_clusters_are_found(planted: Planted, labels: PyramidLabels) -> None:
    assert labels.labels.shape == labels.confidence.shape == (IMAGES, 5)
    assert labels.labels.dtype == np.uint16
    for level, truth in zip((slice(0, 1), slice(1, 5)), planted.truth, strict=True):
        assert normalized_mutual_info_score(labels.labels[:, level].ravel(), truth.ravel()) == pytest.approx(1)
    assert float(labels.confidence.mean()) > 0.7  # not 1: two of the four whitened dimensions are noise
    again = label_regions(planted, PyramidSettings(**TWO), seed=0)
    assert np.array_equal(again.labels, labels.labels)
    assert np.array_equal(again.confidence, labels.confidence)


def test_labels_are_the_nearest_whitened_centroids(planted: Planted, labels: PyramidLabels) -> None:
    """With scikit-learn's PCA and loops over all; also of embeddings that were not clustered."""
    embeddings = planted.all[:, 1:].reshape(-1, 10)
    pca = PCA(4, svd_solver="full", whiten=True).fit(embeddings.astype(np.float64))
    points = pca.transform(embeddings)
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    found = labels.clusters[1]
    axes = np.sign(np.sum(pca.components_ * found.projection.axes, axis=1))  # of an axis: free
    distances = np.linalg.norm(points[:, None] - found.centroids * axes, axis=2)
    assert np.array_equal(distances.argmin(1), labels.labels[:, 1:].ravel())
    first, second = np.sort(distances, axis=1)[:, :2].T
    np.testing.assert_allclose(labels.confidence[:, 1:].ravel(), 1 - first / second, atol=2e-3)
    own, confidence = found.assign(embeddings[:6])
    assert np.array_equal(own, labels.labels[:, 1:].ravel()[:6])
    np.testing.assert_allclose(confidence, labels.confidence[:, 1:].ravel()[:6], atol=1e-6)


def as_they_are(dims: int) -> Projection:
    return Projection(np.zeros(dims, np.float32), np.ones(dims, np.float32), np.eye(dims, dtype=np.float32))


def directions(*degrees: float) -> np.ndarray:
    angles = np.deg2rad(np.array(degrees))
    return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


def test_confidence_by_hand() -> None:
    clusters = RegionClusters(as_they_are(2), directions(0, 60), np.array([1, 1]), np.ones(2, bool))
    labels, confidence = clusters.assign(directions(0, 30, 40, -20))
    assert labels.tolist()[0] == 0
    assert labels.tolist()[2:] == [1, 0]
    # chords: 2 sin(angle / 2)
    expected = [1, 0, 1 - math.sin(math.radians(10)) / math.sin(math.radians(20))]
    expected.append(1 - math.sin(math.radians(10)) / math.sin(math.radians(40)))
    np.testing.assert_allclose(confidence, expected, atol=1e-3)


def test_a_small_cluster_is_dissolved_into_the_nearest() -> None:
    """Three directions of which the middle one, nearer to the first, is rare."""
    random = np.random.default_rng(0)
    points = directions(*(random.normal(0, 1, 60)), *(random.normal(40, 1, 2)), *(random.normal(120, 1, 60)))
    settings = PyramidSettings(pgg_min_share=0.05)
    whole = cluster_regions(points, as_they_are(2), 3, PyramidSettings(pgg_min_share=0.01), seed=0)
    assert whole.kept.all()
    found = cluster_regions(points, as_they_are(2), 3, settings, seed=0)
    assert sorted(found.counts.tolist()) == [2, 60, 60]
    assert sorted(found.counts[found.kept]) == [60, 60]
    labels, confidence = found.assign_points(points)
    assert len(set(labels[:62].tolist())) == len(set(labels[62:].tolist())) == 1
    assert set(labels.tolist()) == set(np.flatnonzero(found.kept))
    assert confidence[60:62].max() < 0.6 < confidence[:60].min()


def test_what_cannot_be_grouped_is_said(planted: Planted) -> None:
    with pytest.raises(ConfigError, match="pgg_clusters has 41 for a level of 40 regions; give more images, or set it"):
        label_regions(planted, PyramidSettings(**TWO | {"pgg_clusters": (41, 4)}), seed=0)
    with pytest.raises(ConfigError, match=r"pgg_dims=11 is more than 40 tokens of 10 channels have"):
        label_regions(planted, PyramidSettings(**TWO | {"pgg_dims": 11}), seed=0)
    points = directions(*range(40), *range(200, 261))
    with pytest.raises(DataError, match=r"1 of 2 clusters have 50\.00% of the 101 regions or more"):
        cluster_regions(points, as_they_are(2), 2, PyramidSettings(pgg_min_share=0.5), seed=0)


def test_labels_are_saved_and_loaded(labels: PyramidLabels, planted: Planted, tmp_path: Path) -> None:
    path = tmp_path / "pyramid.safetensors"
    labels.save(path)
    again = PyramidLabels.load(path)
    assert again.grids == (1, 2)
    assert np.array_equal(again.labels, labels.labels)
    assert again.labels.dtype == np.uint16
    assert np.array_equal(again.confidence, labels.confidence)
    embeddings = planted.all[:, 1:].reshape(-1, 10)
    for one, other in zip(again.clusters[1].assign(embeddings), labels.clusters[1].assign(embeddings), strict=True):
        assert np.array_equal(one, other)
    path.write_bytes(path.read_bytes()[:-100])
    for damaged in (path, tmp_path / "missing.safetensors"):
        with pytest.raises(DataError, match=f"{damaged.name}: no labels of regions can be read .* made again"):
            PyramidLabels.load(damaged)


def named(labels: np.ndarray) -> PyramidLabels:
    return PyramidLabels((1, 2), labels.astype(np.uint16), np.ones(labels.shape, np.float32), ())


def test_information_shared_by_rounds(labels: PyramidLabels) -> None:
    swapped = named(5 - labels.labels.astype(int))
    assert labels.information_shared_with(swapped) == pytest.approx([1, 1])
    drawn = named(np.random.default_rng(1).integers(0, 3, (IMAGES, 5)))
    assert np.abs(labels.information_shared_with(drawn)).max() < 0.1
    with pytest.raises(DataError, match="labels of 39 images"):
        labels.information_shared_with(named(labels.labels[1:]))


def test_information_of_layout() -> None:
    places = np.tile([0, 0, 1, 2, 3], (20, 1))
    assert named(places).information_of_layout() == pytest.approx([0, 1])
    drawn = np.random.default_rng(0).integers(0, 4, (400, 5))
    assert abs(named(drawn).information_of_layout()[1]) < 0.01


def test_region_vectors_of_a_plane() -> None:
    """Bilinear samples of a linear map average to its value in the middle of a box, away from the border."""
    y, x = torch.meshgrid(torch.arange(12) + 0.5, torch.arange(20) + 0.5, indexing="ij")
    maps = torch.stack([2 * x + 1, y - x]).expand(2, -1, -1, -1)
    boxes = torch.tensor(
        [[[0.1, 0.1, 0.5, 0.9], [0.3, 0.2, 0.6, 0.7]], [[0.25, 0.25, 0.75, 0.75], [0.4, 0.1, 0.9, 0.4]]]
    )
    middle = (boxes[..., :2] + boxes[..., 2:]) / 2 * torch.tensor([20, 12])
    expected = torch.stack([2 * middle[..., 0] + 1, middle[..., 1] - middle[..., 0]], dim=2)
    torch.testing.assert_close(region_vectors(maps, boxes), expected, atol=1e-4, rtol=1e-5)


def batch(images: int = 3, seed: int = 0) -> tuple[list[RegionView], Tensor, Tensor]:
    """Two views, the first of which is cropped and mirrored here and there; labels and confidence."""
    draw = torch.Generator().manual_seed(seed)
    side = torch.rand(images, 1, generator=draw) / 2 + 0.5
    corner = torch.rand(images, 2, generator=draw) * (1 - side)
    flip = torch.tensor([[0.0], [1.0], [1.0]])[:images]
    crops = torch.cat([corner, side, side, flip], dim=1)
    whole = torch.tensor([0.0, 0, 1, 1, 0]).expand(images, 5)
    views = []
    for shown in (crops, whole):
        maps, pooled = torch.randn(images, 6, 7, 7, generator=draw), torch.randn(images, 6, generator=draw)
        views.append(RegionView(shown, maps, pooled, torch.randn(images, 8, 5, 5, generator=draw)))
    labels = torch.cat(
        [torch.randint(0, 3, (images, 1), generator=draw), torch.randint(0, 4, (images, 4), generator=draw)], dim=1
    )
    return views, labels, torch.rand(images, 5, generator=draw)


def heads(**changes: Any) -> PyramidHeads:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return PyramidHeads(6, 8, PyramidSettings(**TWO | changes))


def entropy(logits: Tensor, label: int) -> float:
    return float(logits.double().logsumexp(0) - logits.double()[label])


def test_loss_is_that_of_loops() -> None:
    views, labels, confidence = batch()
    module = heads()
    found = module(views, labels, confidence)
    pyramid, link = [], []
    for view in views:
        boxes, visible = boxes_in_view(cell_boxes([1, 2], 0.25), view.crops)
        vectors = region_vectors(view.maps, boxes)
        assert view.pooled is not None
        vectors[:, 0] = view.pooled
        sums = np.zeros((3, 2))  # of weighted entropies and of weights: two levels, and the link
        for image in range(3):
            for region in range(5):
                if visible[image, region] < 0.5:
                    continue
                weight, label, level = float(confidence[image, region]), int(labels[image, region]), int(region > 0)
                unit = vectors[image, region] / vectors[image, region].norm()
                classes = module.weights[level].detach()
                logits = torch.stack([unit @ row / row.norm() / 0.1 for row in classes])
                sums[level] += weight * entropy(logits, label), weight
                if region == 0:
                    pixels = view.embeddings[image].flatten(1).T
                    mean = torch.stack([pixel / pixel.norm() for pixel in pixels]).mean(0)
                    assert module.link is not None
                    unit = mean / mean.norm()
                    logits = torch.stack([unit @ row / row.norm() / 0.1 for row in module.link.detach()])
                    sums[2] += weight * entropy(logits, label), weight
        means = sums[:, 0] / sums[:, 1]
        pyramid.append(0.6 * means[0] + 0.4 * means[1])
        link.append(means[2])
    assert found.pyramid.item() == pytest.approx(np.mean(pyramid), rel=1e-5)
    assert found.link.item() == pytest.approx(np.mean(link), rel=1e-5)


def test_hardly_visible_cells_do_not_count() -> None:
    """The crop is the upper left quarter: of the cells, without overlap, one is seen; the whole image is not."""
    views, labels, confidence = batch()
    crops = torch.tensor([0.0, 0, 0.5, 0.5, 0]).expand(3, 5)
    view = views[0]._replace(crops=crops)
    module = heads(pgg_overlap=0.0)
    found = module([view], labels, confidence)
    seen = confidence * torch.tensor([0.0, 1, 0, 0, 0])
    assert torch.equal(found.pyramid, module([view], labels, seen).pyramid)
    assert found.pyramid.item() > 0
    assert found.link.item() == 0
    counted = heads(pgg_overlap=0.0, pgg_min_visible=0.25)([view], labels, confidence)
    assert counted.link.item() > 0


def test_nothing_that_counts_is_a_loss_of_zero_without_nan() -> None:
    views, labels, confidence = batch()
    maps = views[0].maps.clone().requires_grad_()
    away = torch.tensor([0.99, 0.99, 0.01, 0.01, 0]).expand(3, 5)
    module = heads()
    found = module([views[0]._replace(crops=away, maps=maps), views[1]._replace(maps=maps)], labels, 0 * confidence)
    (found.pyramid + found.link).backward()
    assert found.pyramid.item() == found.link.item() == 0
    assert maps.grad is not None
    assert not maps.grad.any()


def test_all_of_it_learns_and_the_link_can_be_left_out() -> None:
    views, labels, confidence = batch()
    module = heads()
    found = module(views, labels, confidence)
    (found.pyramid + found.link).backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in module.parameters())
    without = heads(pgg_link_weight=0.0)
    plain = without([view._replace(pooled=None) for view in views], labels, confidence)
    assert without.link is None
    assert plain.link.item() == 0
    first = [parameter.clone() for parameter in module.parameters()]
    module.reset()
    assert not any(torch.equal(one, other) for one, other in zip(first, module.parameters(), strict=True) if one.any())


def test_right_and_uniform_predictions() -> None:
    """Maps that are one class's direction everywhere: nearly no loss; orthogonal ones: the logarithm of K."""
    module = heads(pgg_temperature=0.01)
    with torch.no_grad():
        for weight in module.weights:
            weight.copy_(torch.eye(6)[: len(weight)])
    labels, confidence = torch.full((2, 5), 2), torch.ones(2, 5)
    whole = torch.tensor([0.0, 0, 1, 1, 0]).expand(2, 5)
    for channel, expected in ((2, 0.0), (5, 0.6 * math.log(3) + 0.4 * math.log(4))):
        maps = F.one_hot(torch.tensor(channel), 6).float()[None, :, None, None].expand(2, -1, 7, 7)
        found = module([RegionView(whole, maps, None, torch.rand(2, 8, 5, 5))], labels, confidence)
        assert found.pyramid.item() == pytest.approx(expected, abs=1e-5)


def test_points_of_length_one_are_what_is_clustered(labels: PyramidLabels) -> None:
    for found in labels.clusters:
        np.testing.assert_allclose(unit_length(found.centroids), found.centroids, atol=1e-6)
