"""Boundary refinement against the filter's equations, and the tidying of masks."""

from __future__ import annotations

import numpy as np
import pytest

from sohes.explore.refine import clean_mask, guided_filter, refine_mask
from tests.explore.reference import guided_filter_by_loops


@pytest.mark.parametrize("radius", [1, 3])
def test_guided_filter_is_that_of_the_equations(radius: int) -> None:
    rng = np.random.default_rng(radius)
    luma = rng.random((14, 19)).astype(np.float32)
    soft = rng.random((14, 19)).astype(np.float32)
    expected = guided_filter_by_loops(luma, soft, radius, 1e-3)
    np.testing.assert_allclose(guided_filter(luma, soft, radius=radius), expected, atol=2e-4)
    smoother = guided_filter_by_loops(luma, soft, radius, 0.5)
    np.testing.assert_allclose(guided_filter(luma, soft, radius=radius, eps=0.5), smoother, atol=2e-4)


@pytest.mark.parametrize("corner", [(20, 30), (0, 0), (50, 70)])
def test_refining_a_window_is_refining_the_image(corner: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    luma = rng.random((64, 80)).astype(np.float32)
    soft = np.zeros((64, 80), np.float32)
    soft[corner[0] : corner[0] + 12, corner[1] : corner[1] + 9] = 1
    soft *= rng.uniform(0.7, 1, soft.shape).astype(np.float32)
    whole = guided_filter(luma, soft, radius=4)
    clear = np.abs(whole - 0.5) > 1e-4
    found = refine_mask(luma, soft, patch_px=2.0)
    assert found.any()
    assert np.array_equal(found[clear], (whole >= 0.5)[clear])


def test_the_boundary_moves_to_the_edge_of_the_image() -> None:
    luma = np.full((60, 60), 0.2, np.float32)
    luma[15:45, 15:45] = 0.8
    soft = np.zeros((60, 60), np.float32)
    soft[12:42, 18:48] = 1  # off by three pixels both ways
    truth = luma > 0.5
    before = (soft >= 0.5) ^ truth
    after = refine_mask(luma, soft, patch_px=4) ^ truth
    assert after.sum() < 0.2 * before.sum()
    assert np.array_equal(refine_mask(luma, soft, patch_px=4, refiner="none"), soft >= 0.5)


def test_nothing_stays_nothing() -> None:
    empty = np.zeros((10, 12), np.float32)
    assert not refine_mask(empty + 0.5, empty, patch_px=2).any()
    assert not clean_mask(np.zeros((10, 12), dtype=bool)).any()


def two_squares(small: int) -> np.ndarray:
    """100 px, and `small` x `small` px apart from them."""
    mask = np.zeros((30, 30), dtype=bool)
    mask[2:12, 2:12] = True
    mask[20 : 20 + small, 20 : 20 + small] = True
    return mask


def test_a_speck_goes_a_second_part_stays() -> None:
    assert np.array_equal(clean_mask(two_squares(5)), two_squares(0))  # 100 of 125 px: just 80 %
    assert np.array_equal(clean_mask(two_squares(6)), two_squares(6))  # 100 of 136 px


def test_corners_connect() -> None:
    mask = np.zeros((20, 20), dtype=bool)
    mask[:10, :10] = True
    mask[10, 10] = True
    assert np.array_equal(clean_mask(mask), mask)


def test_holes_are_filled_with_what_lies_in_them() -> None:
    mask = np.zeros((20, 20), dtype=bool)
    mask[2:18, 2:18] = True
    full = mask.copy()
    mask[5:15, 5:15] = False
    mask[9:11, 9:11] = True  # an island in the hole
    assert np.array_equal(clean_mask(mask), full)


def test_a_bay_is_no_hole() -> None:
    mask = np.zeros((20, 20), dtype=bool)
    mask[2:18, 2:18] = True
    mask[8:12, 2:10] = False  # open to the left
    assert np.array_equal(clean_mask(mask), mask)
    assert np.array_equal(clean_mask(np.ones((5, 5), dtype=bool)), np.ones((5, 5), dtype=bool))
