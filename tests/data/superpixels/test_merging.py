"""Merging against scikit-learn's Ward clustering with the same neighbours, and against SciPy's connected components."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from scipy import ndimage
from sklearn.cluster import AgglomerativeClustering
from sklearn.feature_extraction.image import grid_to_graph

from sohes.data.superpixels.merging import merge_regions, pieces
from tests.data.superpixels.test_felzenszwalb import renumbered


@pytest.mark.parametrize("count", [1, 2, 7, 30, 100])
@pytest.mark.parametrize("place_weight", [0.0, 0.7])
def test_pixels_merge_as_in_ward_clustering(count: int, place_weight: float) -> None:
    image = np.random.default_rng(count).integers(0, 256, (11, 13, 3), dtype=np.uint8)
    lab = cv2.cvtColor(image.astype(np.float32) / 255, cv2.COLOR_RGB2Lab).reshape(-1, 3)
    places = place_weight * np.indices((11, 13)).reshape(2, -1).T
    ward = AgglomerativeClustering(count, linkage="ward", connectivity=grid_to_graph(11, 13))
    expected = ward.fit_predict(np.concatenate([lab, places], axis=1).astype(np.float64)).reshape(11, 13)
    pixels = np.arange(11 * 13, dtype=np.int32).reshape(11, 13)
    found = merge_regions(pixels, image, count, place_weight=place_weight)
    assert found.dtype == np.int32
    assert np.array_equal(found, renumbered(expected))


def test_large_regions_resist() -> None:
    """70 is nearer to 79 than to 60 (L* 29.6, 33.5, 25.2), but 2·2/4·4.4² is below 2·30/32·3.9²."""
    widths = [2, 2, 30]
    image = np.repeat(np.array([60, 70, 79], np.uint8), widths)[None, :, None].repeat(3, axis=-1)
    found = merge_regions(np.repeat(np.arange(3), widths)[None].astype(np.int32), image, 2, place_weight=0)
    assert np.array_equal(found, np.repeat([0, 0, 1], widths)[None])


def test_too_few_regions_stay() -> None:
    labels = np.array([[2, 2, 0], [1, 1, 0]], np.int32)
    found = merge_regions(labels, np.zeros((2, 3, 3), np.uint8), 5, place_weight=1)
    assert np.array_equal(found, [[0, 0, 1], [2, 2, 1]])


def test_pieces_are_connected_components() -> None:
    rng = np.random.default_rng(0)
    labels, cells = rng.integers(0, 3, (2, 20, 30)).astype(np.int32)
    cells = (cells > 0).astype(np.int32)
    expected, used = np.zeros((20, 30), int), 0
    for code in range(6):
        found, count = ndimage.label(labels * 2 + cells == code)
        expected += np.where(found > 0, found + used, 0)
        used += count
    assert np.array_equal(pieces(labels, cells), renumbered(expected))
