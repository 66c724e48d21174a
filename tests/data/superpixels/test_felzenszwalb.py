"""Felzenszwalb and Huttenlocher's segments against scikit-image and against plain loops over pixels."""

from __future__ import annotations

from collections.abc import Iterator

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage
from skimage import segmentation

from sohes.data.superpixels.felzenszwalb import felzenszwalb

Image = NDArray[np.uint8]
Labels = NDArray[np.int32]


def edges(image: Image) -> Iterator[tuple[int, int, int]]:
    """Level, first and second pixel (row-major) of each edge; the order of ties: pixel, then right, down, diagonals.

    Levels are what colour differences are rounded down to: the largest one in 2^16 - 1 steps.
    """
    height, width = image.shape[:2]
    colours = image.astype(np.float64)
    for y in range(height):
        for x in range(width):
            for row, column in ((y, x + 1), (y + 1, x), (y + 1, x + 1), (y + 1, x - 1)):
                if row < height and 0 <= column < width:
                    difference = np.sqrt(((colours[y, x] - colours[row, column]) ** 2).sum())
                    level = int(difference * 65535 / np.sqrt(3 * 255**2) * (1 + 1e-9))
                    yield level, y * width + x, row * width + column


def felzenszwalb_by_loops(image: Image, scale: float, min_size: int) -> Labels:
    """The paper's algorithm on a list of edges and one label per pixel."""
    order = sorted(edges(image), key=lambda edge: edge[0])
    labels = np.arange(image[..., 0].size)
    largest = dict.fromkeys(range(len(labels)), 0.0)  # difference inside
    for level, first, second in order:
        a, b = labels[first], labels[second]
        difference = level * np.sqrt(3 * 255**2) / 65535
        if a == b:
            continue
        if difference <= min(largest[c] + scale / (labels == c).sum() for c in (a, b)):
            labels[labels == b] = a
            largest[a] = difference
    for _, first, second in order:
        a, b = labels[first], labels[second]
        if a != b and min((labels == a).sum(), (labels == b).sum()) < min_size:
            labels[labels == b] = a
    return renumbered(labels.reshape(image.shape[:2]))


def renumbered(labels: NDArray[np.integer]) -> Labels:
    """From 0, in row-major order of first pixels."""
    _, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[inverse].reshape(labels.shape).astype(np.int32)


def few_colours(seed: int, height: int, width: int) -> Image:
    """Patches of a few colours, so that many edges are equally strong."""
    rng = np.random.default_rng(seed)
    smooth = ndimage.gaussian_filter(rng.normal(size=(height, width)), 1.5)
    levels = np.digitize(smooth, np.quantile(smooth, [0.2, 0.4, 0.6, 0.8]))
    return rng.integers(0, 256, (5, 3), dtype=np.uint8)[levels]


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(("scale", "min_size"), [(1, 1), (100, 1), (300, 6), (3000, 1), (50, 30)])
def test_segments_by_loops(seed: int, scale: float, min_size: int) -> None:
    image = few_colours(seed, 13, 17)
    if seed % 2:
        image = image ^ np.random.default_rng(seed).integers(0, 8, image.shape, dtype=np.uint8)
    found = felzenszwalb(image, scale=scale, sigma=0, min_size=min_size)
    assert found.dtype == np.int32
    assert np.array_equal(found, felzenszwalb_by_loops(image, scale, min_size))


def test_segments_are_those_of_scikit_image() -> None:
    """On pictures without ties, which the algorithm leaves open.

    Nor is any difference so close to a limit that rounding it to a level changes what follows.
    """
    compared, counts = 0, set()
    for seed in range(23):
        image = np.random.default_rng(seed).integers(0, 256, (7, 8, 3), dtype=np.uint8)
        levels = [level for level, _, _ in edges(image)]
        if len(set(levels)) < len(levels):
            continue
        for scale, min_size in ((100, 1), (400, 1), (700, 1), (300, 5)):
            expected = segmentation.felzenszwalb(image, scale=scale, sigma=0, min_size=min_size)
            found = felzenszwalb(image, scale=scale, sigma=0, min_size=min_size)
            assert np.array_equal(found, renumbered(expected)), (seed, scale, min_size)
            counts.add(int(found.max()) + 1)
            compared += 1
    assert compared > 40
    assert len(counts) > 10


@pytest.mark.parametrize("min_size", [1, 5, 40])
def test_segments_hang_together_and_are_large_enough(min_size: int) -> None:
    image = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    labels = felzenszwalb(image, scale=50, sigma=0.8, min_size=min_size)
    sizes = np.bincount(labels.ravel())
    assert len(sizes) > 3
    assert sizes.min() >= min_size
    assert np.array_equal(labels, renumbered(labels))
    for label in range(len(sizes)):
        assert cv2.connectedComponents((labels == label).astype(np.uint8), connectivity=8)[0] == 2


def test_smoothing_comes_first() -> None:
    flat = np.full((30, 30, 3), 90, np.uint8)
    speckled = flat + np.random.default_rng(0).integers(0, 60, flat.shape, dtype=np.uint8)
    counts = [felzenszwalb(speckled, scale=20, sigma=sigma, min_size=1).max() for sigma in (0, 1, 3)]
    assert counts[0] > 5 * counts[1] > 5 * counts[2]


@pytest.mark.parametrize("upright", [False, True])
def test_large_images_are_cut_up_at_half_the_size(upright: bool) -> None:
    small = few_colours(0, 20, 1024)
    if upright:
        small = small.swapaxes(0, 1)
    small = np.clip(small, 9, 246)
    # each pixel becomes four that differ, with its colour as their mean
    contrast = np.random.default_rng(0).integers(-9, 10, small.shape).repeat(2, 0).repeat(2, 1)
    contrast[1::2] *= -1
    contrast[:, 1::2] *= -1
    large = (small.repeat(2, 0).repeat(2, 1) + contrast).astype(np.uint8)
    found = felzenszwalb(large, scale=100, sigma=0, min_size=40)
    assert found.shape == large.shape[:2]
    expected = felzenszwalb(small, scale=100, sigma=0, min_size=10)
    assert np.array_equal(found, expected.repeat(2, 0).repeat(2, 1))
    assert expected.max() > 20
