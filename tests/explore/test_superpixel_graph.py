"""What superpixels are merged by, against other libraries and plain loops."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from scipy import ndimage
from skimage.color import rgb2lab

from sohes.explore.superpixel_graph import borders, edge_strength, mean_colours, pooled_features
from tests.data.superpixels.test_felzenszwalb import few_colours


def test_edge_strength_by_other_libraries() -> None:
    image = few_colours(1, 33, 41)
    image[:16] = ndimage.gaussian_filter(image[:16], (2, 2, 0))
    lab = rgb2lab(image)
    answers = []
    for sigma in (1, 2):
        smooth = ndimage.gaussian_filter(lab, (sigma, sigma, 0), mode="mirror")
        slopes = [
            ndimage.sobel(plane, axis, mode="mirror") / 8 for plane in np.moveaxis(smooth, -1, 0) for axis in (0, 1)
        ]
        answers.append(sigma * np.linalg.norm(slopes, axis=0))
    found = edge_strength(image)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, np.maximum(*answers), rtol=0.02, atol=0.05)  # CIELAB's constants differ
    assert (answers[0] > answers[1] + 1).any()
    assert (answers[1] > answers[0] + 1).any()


def test_edge_strength_of_a_large_picture_is_that_of_its_parts() -> None:
    image = few_colours(3, 1100, 40)
    whole = edge_strength(image)
    for top in (0, 480, 500, 700):
        part = edge_strength(image[top : top + 400])
        np.testing.assert_array_equal(part[20:-20], whole[top + 20 : top + 380])


@pytest.mark.parametrize("grid", [(4, 5), (1, 1), (40, 3)])
def test_features_of_superpixels_are_those_of_their_pixels(grid: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 6, (17, 22)).astype(np.int32)
    features = rng.normal(size=(*grid, 3)).astype(np.float32)
    whole = cv2.resize(features, labels.shape[::-1], interpolation=cv2.INTER_LINEAR)
    expected = [whole[labels == label].sum(axis=0) for label in range(6)]
    np.testing.assert_allclose(pooled_features(labels, features), expected, atol=1e-3)


def test_borders_by_loops() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 5, (9, 12)).astype(np.int32)
    strength = rng.uniform(size=labels.shape).astype(np.float32)
    length, total = np.zeros((5, 5)), np.zeros((5, 5))
    for place, label in np.ndenumerate(labels):
        for other in [(place[0] + 1, place[1]), (place[0], place[1] + 1)]:
            if other[0] < 9 and other[1] < 12 and labels[other] != label:
                for pair in [(label, labels[other]), (labels[other], label)]:
                    length[pair] += 1
                    total[pair] += max(strength[place], strength[other])
    found = borders(labels, strength, 5)
    np.testing.assert_array_equal(found[0], length)
    np.testing.assert_allclose(found[1], total, rtol=1e-5)


def test_colours_by_another_library() -> None:
    image = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    labels = np.random.default_rng(1).integers(0, 7, (20, 30)).astype(np.int32)
    expected = [rgb2lab(image[labels == label].mean(axis=0) / 255) for label in range(7)]
    np.testing.assert_allclose(mean_colours(labels, image), expected, atol=0.2)  # CIELAB's constants differ
