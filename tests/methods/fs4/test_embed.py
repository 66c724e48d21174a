"""Embeddings of images of any size, and the clusters of their pixels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from skimage.measure import label
from torch.nn import functional as F

from sohes.methods.fs4.embed import Embedder, nearest_centroids
from sohes.methods.fs4.specks import without_specks
from tests.methods.fs4.colours import Colours


def embedder(view_px: int = 32, side: int = 8) -> tuple[Embedder, Colours]:
    network = Colours(side, view_px)
    return Embedder(network), network  # type: ignore[arg-type]


def picture(height: int, width: int) -> np.ndarray:
    """A smooth one: red grows downwards, green to the right."""
    y, x = np.indices((height, width)) + 0.5
    blue = np.full((height, width), 120.0)
    return np.stack([20 + 200 * y / height, 20 + 200 * x / width, blue], axis=2).round().astype(np.uint8)


@pytest.mark.parametrize("size_hw", [(32, 32), (64, 96), (96, 64), (40, 100), (301, 128)])
def test_an_image_of_any_aspect_is_embedded_as_a_whole(size_hw: tuple[int, int]) -> None:
    """Colours do not depend on the squares they are seen in; so squares must lie where they are taken from."""
    made, network = embedder()
    found = made.image(picture(*size_hw))
    cells = [round(side / min(size_hw) * 8) for side in size_hw]
    assert found.shape == (3, *cells)
    assert all(shape[2:] == (32, 32) for shape in network.seen)
    expected = torch.from_numpy(picture(*cells)).permute(2, 0, 1).float()
    assert (found - F.normalize(expected, dim=0)).abs().max() < 0.03


def test_a_square_is_embedded_once_and_a_long_image_in_squares_that_overlap() -> None:
    made, network = embedder()
    for size_hw, squares in (((50, 50), 1), ((32, 48), 2), ((64, 32), 3), ((2, 1000), 7)):
        network.seen.clear()
        assert made.image(picture(*size_hw)).shape[2] <= 4 * 8
        assert network.seen == [(squares, 3, 32, 32)]


def test_sides_that_are_no_multiple_of_a_cell() -> None:
    made, _ = embedder(view_px=42, side=12)
    for width in range(42, 90):
        assert made.image(picture(42, width)).shape == (3, 12, round(width / 42 * 12))


def test_labels_are_those_of_similarities_at_the_size_of_the_image() -> None:
    random = torch.Generator().manual_seed(0)
    embeddings = F.normalize(torch.randn(5, 6, 9, generator=random), dim=0)
    centroids = F.normalize(torch.randn(4, 5, generator=random), dim=1)
    for size_hw in ((31, 50), (4, 7)):
        whole = F.interpolate((centroids @ embeddings.flatten(1)).view(1, 4, 6, 9), size_hw, mode="bilinear")[0]
        labels, similarity = nearest_centroids(embeddings, centroids, size_hw)
        np.testing.assert_array_equal(labels, whole.argmax(0).numpy())
        np.testing.assert_allclose(similarity, whole.amax(0).numpy(), atol=1e-6)


def test_large_images_are_labelled_in_strips(monkeypatch: pytest.MonkeyPatch) -> None:
    random = torch.Generator().manual_seed(1)
    embeddings, centroids = torch.randn(3, 5, 5, generator=random), torch.randn(7, 3, generator=random)
    whole = nearest_centroids(embeddings, centroids, (40, 30))
    monkeypatch.setattr("sohes.methods.fs4.embed._STRIP", 7 * 30 * 3)
    for a, b in zip(whole, nearest_centroids(embeddings, centroids, (40, 30)), strict=True):
        np.testing.assert_array_equal(a, b)


def test_specks_are_flooded_by_what_lies_around_them() -> None:
    labels = np.zeros((9, 9), np.int64)
    labels[:, 5:] = 2
    labels[2, 2] = labels[4, 7] = 1  # inside 0, inside 2
    labels[8, 8] = 0  # a corner of another place's label
    expected = np.zeros((9, 9), np.int64)
    expected[:, 5:] = 2
    np.testing.assert_array_equal(without_specks(labels, 4), expected)
    np.testing.assert_array_equal(without_specks(labels, 1), labels)


def test_nothing_is_left_below_the_least_area_unless_all_is() -> None:
    labels = np.random.default_rng(0).integers(0, 3, (60, 80))
    labels[:30] = 1
    found = without_specks(labels, 12)
    assert np.bincount(label(found, background=-1, connectivity=1).ravel())[1:].min() >= 12
    specks = np.indices((6, 6)).sum(0) % 2
    np.testing.assert_array_equal(without_specks(specks, 2), specks)
