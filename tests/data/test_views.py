"""Views: pixels, masks and the affine map tell the same story; only seed and position decide."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torchvision.transforms import RandomResizedCrop

from sohes.data.views import View, epoch_order, overlap_px, overlapping_crop, sample_rng
from sohes.rle import BoolArray

CANVAS_PX = 48


def jittered(
    size_hw: tuple[int, int], rng: np.random.Generator, scale: tuple[float, float] = (0.5, 2.0), flip: float = 0.5
) -> View:
    return View.jittered(size_hw, rng, canvas_px=CANVAS_PX, scale=scale, flip=flip)


def coordinates(height: int, width: int) -> np.ndarray:
    """Red grows to the right, green downwards, in steps of 4."""
    image = np.zeros((height, width, 3), np.uint8)
    image[..., 0] = 4 * np.arange(width)
    image[..., 1] = 4 * np.arange(height)[:, None]
    return image


def cut(view: View, masks: BoolArray) -> BoolArray:
    rows, columns = view.grid((masks.shape[1], masks.shape[2]))
    return masks[:, rows][:, :, columns]


@pytest.mark.parametrize("seed", range(60))
def test_image_and_masks_stay_aligned(seed: int) -> None:
    """The masks are the coordinates in bits; what they spell is what the pixel's colour says, to a pixel."""
    rng = np.random.default_rng(seed)
    height, width = rng.integers(8, 60, 2)
    columns, rows = np.meshgrid(np.arange(width), np.arange(height))
    bits = np.stack([(columns >> bit) & 1 for bit in range(6)] + [(rows >> bit) & 1 for bit in range(6)]).astype(bool)
    view = jittered((height, width), rng, scale=(0.8, 2.0))
    image, masks = view.pixels(coordinates(height, width)), cut(view, bits)
    assert image.shape[:2] == masks.shape[1:] == view.size_hw
    column = sum(masks[bit].astype(int) << bit for bit in range(6))
    row = sum(masks[6 + bit].astype(int) << bit for bit in range(6))
    # away from the border, where the bicubic kernel is cut; a shrunk pixel covers several
    inner = np.s_[3:-3, 3:-3]
    shrunk = max(1.0, view.width / view.size_hw[1])
    assert np.abs(image[..., 0][inner] / 4.0 - column[inner]).max(initial=0) <= shrunk
    assert np.abs(image[..., 1][inner] / 4.0 - row[inner]).max(initial=0) <= shrunk


def test_flip_mirrors_both() -> None:
    view = View(4.0, 2.0, 20.0, 10.0, (10, 20), False)
    mirrored = replace(view, flipped=True)
    image, masks = coordinates(30, 40), np.random.default_rng(0).random((2, 30, 40)) > 0.5
    assert np.array_equal(view.pixels(image), image[2:12, 4:24])
    assert np.array_equal(cut(view, masks), masks[:, 2:12, 4:24])
    assert np.array_equal(mirrored.pixels(image), image[2:12, 4:24][:, ::-1])
    assert np.array_equal(cut(mirrored, masks), masks[:, 2:12, 4:24][:, :, ::-1])


@pytest.mark.parametrize("size_hw", [(40, 60), (1, 300), (300, 1), (1, 1), (2000, 30)])
def test_view_stays_inside_image_and_canvas(size_hw: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    scales = []
    for _ in range(200):
        view = jittered(size_hw, rng)
        assert 0 <= view.top <= view.top + view.height <= size_hw[0]
        assert 0 <= view.left <= view.left + view.width <= size_hw[1]
        assert all(1 <= side <= 48 for side in view.size_hw)
        scales.append(max(view.size_hw) / 48)
        assert view.pixels(np.zeros((*size_hw, 3), np.uint8)).shape[:2] == view.size_hw
        assert cut(view, np.zeros((1, *size_hw), bool)).shape[1:] == view.size_hw
    assert min(scales) < 0.6  # shrunk images leave padding
    assert max(scales) == 1  # enlarged ones are cut to the canvas


def test_flips_as_often_as_set() -> None:
    rng = np.random.default_rng(0)
    assert not any(jittered((20, 20), rng, flip=0.0).flipped for _ in range(50))
    assert 60 < sum(jittered((20, 20), rng).flipped for _ in range(200)) < 140


def mapped(view: View, points: np.ndarray) -> np.ndarray:
    """Points (N, 2) of the image in the view."""
    return points @ view.affine[:, :2].T + view.affine[:, 2]


def unmapped(view: View, points: np.ndarray) -> np.ndarray:
    """Points (N, 2) of the view in the image."""
    square = np.vstack([view.affine, [0, 0, 1]])
    return np.linalg.solve(square, np.column_stack([points, np.ones(len(points))]).T)[:2].T


def test_corners_become_corners() -> None:
    view = View(4.0, 2.0, 20.0, 10.0, (30, 40), False)
    corners = np.array([[4, 2], [24, 2], [24, 12], [4, 12]], float)
    np.testing.assert_allclose(mapped(view, corners), [[0, 0], [40, 0], [40, 30], [0, 30]], atol=1e-12)
    flipped = replace(view, flipped=True)
    np.testing.assert_allclose(mapped(flipped, corners), [[40, 0], [0, 0], [0, 30], [40, 30]], atol=1e-12)
    assert view.area_scale == pytest.approx(abs(np.linalg.det(view.affine[:, :2])))
    np.testing.assert_allclose(mapped(view, np.array([[9.0, 7.0]])), [[10, 15]])  # a quarter across, half-way down
    np.testing.assert_allclose(mapped(flipped, np.array([[9.0, 7.0]])), [[30, 15]])


@pytest.mark.parametrize("seed", range(40))
def test_the_affine_map_agrees_with_grid_and_pixels(seed: int) -> None:
    rng = np.random.default_rng(seed)
    height, width = (int(side) for side in rng.integers(8, 60, 2))
    view = jittered((height, width), rng, scale=(0.9, 3.0))
    centres = np.stack(np.meshgrid(np.arange(view.size_hw[1]), np.arange(view.size_hw[0])), -1).reshape(-1, 2) + 0.5
    found = unmapped(view, centres)
    rows, columns = view.grid((height, width))
    expected = np.stack(np.meshgrid(columns, rows), -1).reshape(-1, 2)
    assert (found - expected > -1e-9).all()  # each centre lies in its pixel
    assert (found - expected < 1 + 1e-9).all()
    points = rng.uniform(0, (width, height), (20, 2))
    np.testing.assert_allclose(unmapped(view, mapped(view, points)), points, atol=1e-9)
    # the colour of an image of coordinates is that of the place; at the border the bicubic kernel is cut
    colours = view.pixels(coordinates(height, width))[3:-3, 3:-3, :2].astype(float)
    places = found.reshape(*view.size_hw, 2)[3:-3, 3:-3]
    assert np.abs(colours / 4 + 0.5 - places).max(initial=0) < 0.2


def test_seed_and_position_decide() -> None:
    draws = [sample_rng(seed, position).random() for seed in (0, 1) for position in (0, 1)]
    assert len(set(draws)) == 4
    assert sample_rng(1, 1).random() == draws[3]
    assert sorted(epoch_order(0, 0, 9)) == list(range(9))
    assert epoch_order(0, 1, 9).tolist() == epoch_order(0, 1, 9).tolist() != epoch_order(0, 0, 9).tolist()


def test_resized_crops_are_distributed_as_those_of_torchvision() -> None:
    """Means of a thousand rectangles, to within three standard errors of each."""
    torch.manual_seed(0)
    rng, scale = np.random.default_rng(0), (0.05, 0.25)
    ours = [View.resized_crop((120, 200), rng, side_px=96, area=scale) for _ in range(1000)]
    found = np.array([[view.top, view.left, view.height, view.width] for view in ours])
    image = torch.zeros(3, 120, 200)
    expected = np.array([RandomResizedCrop.get_params(image, list(scale), [3 / 4, 4 / 3]) for _ in range(1000)])
    error = np.sqrt(found.var(0) / 1000 + expected.var(0) / 1000)
    assert (np.abs(found.mean(0) - expected.mean(0)) < 3 * error).all()
    assert (np.abs(found.std(0) / expected.std(0) - 1) < 0.1).all()


@pytest.mark.parametrize(("size_hw", "expected"), [((10, 300), (10, 13)), ((300, 10), (13, 10))])
def test_a_long_image_gives_its_middle(size_hw: tuple[int, int], expected: tuple[int, int]) -> None:
    view = View.resized_crop(size_hw, np.random.default_rng(0), side_px=96, area=(0.9, 1.0))
    assert (view.height, view.width) == expected
    assert abs(2 * view.left + view.width - size_hw[1]) <= 1
    assert abs(2 * view.top + view.height - size_hw[0]) <= 1


def test_overlapping_crops() -> None:
    """An overlap that can be had is had; one that cannot ends after a while with crops that overlap all the same."""
    others = [View(0, 0, 30, 30, (8, 8), False), View(20, 20, 80, 80, (8, 8), False)]
    for seed in range(100):
        rng = np.random.default_rng(seed)
        view = overlapping_crop((100, 100), rng, others, min_share=0.005, side_px=8, area=(0.05, 0.25))
        assert all(overlap_px(view, other) > 50 for other in others)
        moved = overlapping_crop((100, 100), rng, others, min_share=0.5, side_px=8, area=(0.05, 0.25))
        assert all(overlap_px(moved, other) > 0 for other in others)
        assert 0 <= moved.left <= 100 - moved.width
        assert 0 <= moved.top <= 100 - moved.height
        assert abs(moved.left + moved.width / 2 - 25) <= 0.5 or moved.left == 0


@pytest.mark.parametrize("flipped", [False, True])
def test_the_shared_box_shows_the_same_pixels(flipped: bool) -> None:
    """Both views at the image's scale, one pixel of it being one of theirs."""
    image = coordinates(40, 50)
    one, other = View(5, 3, 20, 30, (30, 20), flipped), View(12, 10, 25, 15, (15, 25), False)
    x0, y0, x1, y1 = one.shared_box(other).astype(int)
    seen = one.pixels(image)[y0:y1, x0:x1]
    u0, v0, u1, v1 = other.shared_box(one).astype(int)
    assert np.array_equal(seen[:, ::-1] if flipped else seen, other.pixels(image)[v0:v1, u0:u1])
    assert seen.shape == (15, 13, 3)
    assert overlap_px(one, other) == 15 * 13


def test_views_that_share_nothing() -> None:
    one, other = View(0, 0, 5, 5, (5, 5), False), View(5, 0, 5, 5, (5, 5), False)
    assert overlap_px(one, other) == 0
    with pytest.raises(ValueError, match="do not overlap"):
        one.shared_box(other)
