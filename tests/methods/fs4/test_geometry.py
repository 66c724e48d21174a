"""Crop, resize and flip of maps, and boxes in them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from sohes.data.views import View
from sohes.methods.fs4.geometry import as_crop, boxes_in_view, draw_crop, warp

BASE_PX, SIDE = 96, 24


def drawn(seed: int) -> View:
    return draw_crop(np.random.default_rng(seed), base_px=BASE_PX, view_px=48, crop_min=0.5)


def smooth(seed: int) -> Tensor:
    """(1, 3, 96, 96) in [0, 1] without fine detail."""
    coarse = torch.rand(1, 3, 5, 5, generator=torch.Generator().manual_seed(seed))
    return F.interpolate(coarse, size=BASE_PX, mode="bicubic", align_corners=False).clamp(0, 1)


@pytest.mark.parametrize("flip", [0, 1])
def test_warp_is_a_cut_that_is_resized_and_mirrored(flip: int) -> None:
    maps = torch.rand(2, 3, 8, 10, generator=torch.Generator().manual_seed(0))
    crops = torch.tensor([[2 / 10, 1 / 8, 6 / 10, 5 / 8, flip], [0, 0, 1, 1, 1 - flip]])
    cut = F.interpolate(maps[:1, :, 1:6, 2:8], size=7, mode="bilinear", align_corners=False)
    whole = F.interpolate(maps[1:], size=7, mode="bilinear", align_corners=False)
    expected = torch.cat([cut.flip(3), whole] if flip else [cut, whole.flip(3)])
    torch.testing.assert_close(warp(maps, crops, 7), expected, atol=1e-6, rtol=0)


def test_warp_has_a_gradient() -> None:
    maps = torch.rand(1, 2, 4, 4, dtype=torch.float32, requires_grad=True)
    warp(maps, torch.tensor([[0.25, 0.0, 0.5, 0.5, 1.0]]), 4).sum().backward()
    assert float(maps.grad[0, 0, :2, 1:3].min()) > 0
    assert float(maps.grad[0, 0, 2:].abs().max()) == 0


@pytest.mark.parametrize("seed", range(6))
def test_equivariance(seed: int) -> None:
    """With a network that averages, view 1's embedding is the warped one of view 2, to the error of interpolation."""
    view, base = drawn(seed), smooth(seed)
    pixels = (base[0].permute(1, 2, 0) * 255).byte().numpy()
    first = torch.from_numpy(view.pixels(pixels, Image.Resampling.BILINEAR).copy()).permute(2, 0, 1)[None].float() / 255
    second = F.interpolate(base, size=48, mode="bilinear", align_corners=False)
    found = [F.adaptive_avg_pool2d(image, SIDE) for image in (first, second)]
    warped = warp(found[1], as_crop(view, BASE_PX)[None], SIDE)
    assert float((found[0] - warped).abs().mean()) < 0.01
    assert float((found[0] - warped.flip(3)).abs().mean()) > 0.02


def test_draws_are_squares_inside_of_both_kinds() -> None:
    views = [drawn(seed) for seed in range(200)]
    assert {view.flipped for view in views} == {True, False}
    assert all(view.width == view.height and BASE_PX / 2 <= view.width < BASE_PX for view in views)
    assert all(view.left >= 0 and view.left + view.width <= BASE_PX for view in views)
    assert all(view.top >= 0 and view.top + view.height <= BASE_PX for view in views)


@pytest.mark.parametrize("seed", range(8))
def test_visible_share_is_that_of_a_mask(seed: int) -> None:
    """Boxes of whole pixels: their masks are cut and mirrored as pixels are."""
    view = drawn(seed)
    rng = np.random.default_rng(seed)
    corners = np.sort(rng.integers(0, BASE_PX + 1, (12, 2, 2)), axis=1)
    corners[:, 1] = np.maximum(corners[:, 1], corners[:, 0] + 1)
    boxes = torch.from_numpy(corners.reshape(12, 4)).float() / BASE_PX
    found, visible = boxes_in_view(boxes, as_crop(view, BASE_PX)[None])
    side = int(view.width)
    for place, ((x0, y0), (x1, y1)) in enumerate(corners):
        mask = np.zeros((BASE_PX + 1, BASE_PX + 1), bool)
        mask[y0:y1, x0:x1] = True
        cut = mask[view.top : view.top + side, view.left : view.left + side]
        cut = cut[:, ::-1] if view.flipped else cut
        assert float(visible[0, place]) == pytest.approx(cut.sum() / mask.sum(), abs=1e-4)
        if cut.any():
            rows, columns = np.flatnonzero(cut.any(1)), np.flatnonzero(cut.any(0))
            expected = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
            np.testing.assert_allclose(found[0, place] * side, expected, atol=1e-3)
