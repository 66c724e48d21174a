"""What the level maps say about each region, patch by patch, and masks of patches against OpenCV's up-sampling."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sohes.explore.agglomerate import merge_patches
from sohes.explore.regions import Rectangle, Upsampler, find_regions
from sohes.masks import FloatArray
from sohes.rle import BoolArray


def feature_map(seed: int, height: int, width: int) -> FloatArray:
    """Noise around a few directions, of lengths far apart, some of them zero."""
    rng = np.random.default_rng(seed)
    directions = rng.normal(size=(3, 5))[rng.integers(0, 3, (height, width))]
    lengths = rng.choice([0, 0.1, 1, 7], (height, width, 1), p=[0.05, 0.3, 0.35, 0.3])
    return ((directions + rng.normal(0, 0.4, (height, width, 5))) * lengths).astype(np.float32)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    thresholds=st.lists(st.sampled_from([1.01, 0.95, 0.8, 0.5, 0.2, -0.3, -1]), min_size=1, max_size=4, unique=True),
)
def test_every_region_of_every_level(seed: int, height: int, width: int, thresholds: list[float]) -> None:
    features = feature_map(seed, height, width)
    regions = find_regions(features, thresholds)
    levels = merge_patches(features, thresholds)
    assert np.array_equal(regions.levels, levels)
    assert regions.numbers.tolist() == sorted(set(levels.flat))
    assert len(regions) == len(regions.numbers)
    for index, number in enumerate(regions.numbers):
        standing = [level for level, numbers in enumerate(levels) if (numbers == number).any()]
        assert (regions.first[index], regions.last[index]) == (standing[0], standing[-1])
        patches = levels[standing[0]] == number
        rows, columns = np.nonzero(patches)
        assert regions.sizes[index] == len(rows)
        box = [rows.min(), columns.min(), rows.max() + 1, columns.max() + 1]
        assert regions.boxes[index].tolist() == box
        assert np.array_equal(regions.patches(index), patches[box[0] : box[2], box[1] : box[3]])
        units = [vector / max(np.linalg.norm(vector), 1e-12) for vector in features[patches].astype(float)]
        assert regions.cohesion[index] == pytest.approx(np.linalg.norm(np.sum(units, 0)) / len(units), abs=1e-6)


def test_levels_at_which_regions_stand() -> None:
    features = np.zeros((1, 4, 2), np.float32)
    features[0, :2] = [1, 0]
    features[0, 2:] = [0.8, 0.6]  # cosine 0.8
    regions = find_regions(features, (0.9, 0.85, 0.5))
    assert regions.boxes[:, 1::2].tolist() == [[0, 2], [2, 4], [0, 4]]
    assert list(zip(regions.first, regions.last, strict=True)) == [(0, 1), (0, 1), (2, 2)]
    np.testing.assert_allclose(regions.cohesion, [1, 1, np.cos(np.arccos(0.8) / 2)], rtol=1e-6)


def test_cohesion_is_of_directions_and_not_of_lengths() -> None:
    features = np.array([[[100, 0], [0, 1]]], np.float32)
    regions = find_regions(features, (-1,))
    assert regions.cohesion.tolist() == pytest.approx([np.sqrt(0.5)])
    assert find_regions(np.zeros((2, 2, 3), np.float32), (-1,)).cohesion.tolist() == [0]


def random_patches(rng: np.random.Generator, grid_hw: tuple[int, int]) -> tuple[BoolArray, list[int]]:
    """A mask on the grid, mostly not convex, and its box."""
    patches = np.zeros(grid_hw, dtype=bool)
    top, left = rng.integers(0, grid_hw[0]), rng.integers(0, grid_hw[1])
    part = patches[top : rng.integers(top, grid_hw[0]) + 1, left : rng.integers(left, grid_hw[1]) + 1]
    part[:] = rng.random(part.shape) < 0.7
    part[rng.integers(0, part.shape[0]), rng.integers(0, part.shape[1])] = True
    rows, columns = np.nonzero(patches)
    return patches, [rows.min(), columns.min(), rows.max() + 1, columns.max() + 1]


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    grid_hw=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    view_hw=st.tuples(st.integers(1, 70), st.integers(1, 70)),
    around=st.tuples(*[st.integers(0, 20)] * 4),
    margin=st.integers(0, 30),
)
def test_windows_of_soft_masks(
    seed: int, grid_hw: tuple[int, int], view_hw: tuple[int, int], around: tuple[int, ...], margin: int
) -> None:
    above, before, below, after = around  # of the image, beyond the view
    size_hw = above + view_hw[0] + below, before + view_hw[1] + after
    patches, box = random_patches(np.random.default_rng(seed), grid_hw)
    view = Rectangle(above, before, *view_hw)
    window, corner = Upsampler(grid_hw, view, size_hw).window(patches[box[0] : box[2], box[1] : box[3]], box, margin)
    assert window.dtype == np.float32

    whole = np.zeros(size_hw, np.float32)
    inside = whole[above : above + view_hw[0], before : before + view_hw[1]]
    inside[:] = interpolated(patches, view_hw)
    assert min(corner) >= 0
    end = corner[0] + window.shape[0], corner[1] + window.shape[1]
    assert end[0] <= size_hw[0]
    assert end[1] <= size_hw[1]
    np.testing.assert_allclose(window, whole[corner[0] : end[0], corner[1] : end[1]], atol=1e-5)
    for axis in (0, 1):  # nothing outside, and `margin` px to spare except at the image's border
        reached = np.flatnonzero((whole > 1e-5).any(1 - axis))
        if len(reached):
            assert corner[axis] <= max(0, reached[0] - margin)
            assert end[axis] >= min(size_hw[axis], reached[-1] + 1 + margin)


def interpolated(patches: BoolArray, size_hw: tuple[int, int]) -> FloatArray:
    """The whole mask at a size in px, by OpenCV; half-pixel centres, edges repeated, whether it grows or shrinks."""
    # a single row or column has no neighbours to interpolate with: OpenCV repeats it, as it does edges
    return cv2.resize(patches.astype(np.float32), size_hw[::-1], interpolation=cv2.INTER_LINEAR)


def test_the_window_of_a_small_region_is_small() -> None:
    upsampler = Upsampler((60, 60), Rectangle(0, 0, 600, 600), (600, 600))
    window, corner = upsampler.window(np.ones((2, 3), dtype=bool), (10, 20, 12, 23), 7)
    assert corner == (90 - 7, 190 - 7)  # one patch of 10 px more on each side, then the margin
    assert window.shape == (40 + 14, 50 + 14)


def test_up_sampling_keeps_the_middle_of_each_patch() -> None:
    patches = np.array([[True, False], [False, True]])
    soft, corner = Upsampler((2, 2), Rectangle(0, 0, 20, 20), (20, 20)).window(patches, (0, 0, 2, 2), 0)
    assert (soft.shape, corner) == ((20, 20), (0, 0))
    np.testing.assert_allclose(soft[:5, :5], 1, atol=0.1)  # centres of patches lie between pixels 4 and 5, 14 and 15
    np.testing.assert_allclose(soft[:5, 15:], 0, atol=0.1)
    np.testing.assert_allclose(soft, 1 - soft[:, ::-1], atol=1e-6)
