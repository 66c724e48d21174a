"""Boundary refinement against the filter's equations, and the tidying of masks."""

from __future__ import annotations

import numpy as np
import pytest

from sohes.errors import ConfigError
from sohes.explore.guided import GuidedFilter
from sohes.explore.refine import _REFINERS, clean_mask, make_refiner
from sohes.explore.settings import REFINERS
from sohes.rle import BoolArray
from tests.explore.reference import guided_filter_by_loops


def noise(seed: int, height: int, width: int) -> np.ndarray:
    """A gray image (H, W, 3) whose brightness is any of its channels."""
    gray = np.random.default_rng(seed).integers(0, 256, (height, width, 1), dtype=np.uint8)
    return np.repeat(gray, 3, axis=-1)


@pytest.mark.parametrize("radius", [2, 4, 16])
def test_guided_filter_is_that_of_the_equations(radius: int) -> None:
    image = noise(radius, 14, 19)  # smaller than the largest window
    soft = np.random.default_rng(0).random((14, 19)).astype(np.float32)
    refiner = GuidedFilter(image, radius / 2, (0, 0, 14, 19))
    expected = guided_filter_by_loops(image[..., 0] / np.float32(255), soft, radius, 1e-3)
    np.testing.assert_allclose(refiner.filter(soft, (0, 0)), expected, atol=1e-5)
    refiner = GuidedFilter(image, radius / 2, (0, 0, 14, 19), eps=0.5)
    smoother = guided_filter_by_loops(image[..., 0] / np.float32(255), soft, radius, 0.5)
    np.testing.assert_allclose(refiner.filter(soft, (0, 0)), smoother, atol=1e-5)


@pytest.mark.parametrize("top_left", [(20, 30), (0, 0), (50, 68)])
def test_a_window_of_an_area_gives_what_the_image_gives(top_left: tuple[int, int]) -> None:
    image = noise(1, 64, 80)
    soft = np.zeros((64, 80), np.float32)
    (top, left), (height, width) = top_left, (12, 9)
    support = np.s_[top : top + height, left : left + width]
    soft[support] = np.random.default_rng(0).uniform(0.5, 1, soft[support].shape)
    expected = GuidedFilter(image, 2.0, (0, 0, 64, 80)).filter(soft, (0, 0))
    assert (expected > 0.5).any()

    refiner = GuidedFilter(image, 2.0, (top, left, *soft[support].shape))
    corner = max(0, top - refiner.margin), max(0, left - refiner.margin)
    window = np.s_[corner[0] : top + height + refiner.margin, corner[1] : left + width + refiner.margin]
    np.testing.assert_allclose(refiner.filter(soft[window], corner), expected[window], atol=1e-5)
    outside = expected.copy()
    outside[window] = 0
    assert np.abs(outside).max() < 1e-5  # the margin is wide enough


def displaced_square() -> tuple[np.ndarray, np.ndarray, BoolArray]:
    """An image with a bright square, a soft mask that is off by three pixels both ways, and the square."""
    image = np.full((60, 60, 3), 50, np.uint8)
    image[15:45, 15:45] = 200
    soft = np.zeros((60, 60), np.float32)
    soft[12:42, 18:48] = 1
    return image, soft, image[..., 0] > 100


def test_the_boundary_moves_to_the_edge_of_the_image() -> None:
    image, soft, truth = displaced_square()
    before = (soft >= 0.5) ^ truth
    after = make_refiner("guided", image, 4.0)(soft, (0, 0)) ^ truth
    assert after.sum() < 0.2 * before.sum()


def test_no_refinement_is_the_threshold() -> None:
    image, soft, _ = displaced_square()
    soft[20, 20] = 0.49
    refiner = make_refiner("none", image, 4.0)
    assert np.array_equal(refiner(soft[10:50, 15:50], (10, 15)), soft[10:50, 15:50] >= 0.5)


def test_nothing_stays_nothing() -> None:
    empty = np.zeros((10, 12), np.float32)
    assert not make_refiner("guided", noise(0, 10, 12), 2.0)(empty, (0, 0)).any()
    assert not clean_mask(np.zeros((10, 12), dtype=bool)).any()


def test_refiners_are_those_of_the_settings() -> None:
    assert set(_REFINERS) == set(REFINERS)


def test_unknown_refiner() -> None:
    with pytest.raises(ConfigError, match="did you mean 'guided'"):
        make_refiner("guide", noise(0, 4, 4), 2.0)


def two_squares(small: int) -> BoolArray:
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


@pytest.mark.parametrize("density", [0.2, 0.5, 0.8])
def test_cleaning_by_flooding(density: float) -> None:
    rng = np.random.default_rng(int(10 * density))
    for _ in range(30):
        mask = rng.random(rng.integers(1, 16, 2)) < density
        before = mask.copy()
        assert np.array_equal(clean_mask(mask), cleaned_by_flooding(mask))
        assert np.array_equal(mask, before)


def cleaned_by_flooding(mask: BoolArray) -> BoolArray:
    """The same rules: components by walking from pixel to pixel, holes as what cannot be reached from outside."""
    diagonal = [(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1) if dy or dx]
    straight = [(dy, dx) for dy, dx in diagonal if not dy * dx]
    parts = components(mask, diagonal)
    if parts:
        largest = max(parts, key=len)
        if len(largest) >= 0.8 * mask.sum():
            parts = [largest]
    kept = np.zeros((mask.shape[0] + 2, mask.shape[1] + 2), dtype=bool)
    for part in parts:
        for y, x in part:
            kept[y + 1, x + 1] = True
    outside = next(part for part in components(~kept, straight) if (0, 0) in part)
    filled = np.ones_like(kept)
    filled[tuple(np.transpose(sorted(outside)))] = False
    return filled[1:-1, 1:-1]


def components(mask: BoolArray, steps: list[tuple[int, int]]) -> list[set[tuple[int, int]]]:
    left, found = {(int(y), int(x)) for y, x in np.argwhere(mask)}, []
    while left:
        queue = [left.pop()]
        part = set(queue)
        while queue:
            y, x = queue.pop()
            near = {(y + dy, x + dx) for dy, dx in steps} & left
            left -= near
            part |= near
            queue += near
        found.append(part)
    return found
