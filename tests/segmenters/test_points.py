"""Random points by key; bilinear values against grid_sample."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from sohes.segmenters import points as points_module
from sohes.segmenters.points import random_points, sample_masks, sample_points


def test_points_read_pixel_centres_and_lie_between() -> None:
    maps = torch.arange(4.0).reshape(1, 1, 2, 2)
    points = torch.tensor([[[0.25, 0.25], [0.75, 0.25], [0.25, 0.75], [0.5, 0.5]]])
    assert sample_points(maps, points)[0, 0].tolist() == pytest.approx([0, 1, 2, 1.5])


def test_points_belong_to_the_image_wherever_it_is_computed() -> None:
    keys, cpu = [7, 3], torch.device("cpu")
    both = random_points(keys, 1, [2, 3], 5, cpu)
    assert torch.equal(both[2:], random_points(keys[1:], 1, [3], 5, cpu))
    assert not torch.equal(both[2:4], both[:2])
    assert not torch.equal(both, random_points(keys, 2, [2, 3], 5, cpu))


@pytest.mark.parametrize("copied_px", [1, 40, 2**26])
def test_masks_are_read_as_grid_sample_reads_them(copied_px: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole, in parts of two masks, and one by one."""
    monkeypatch.setattr(points_module, "_COPIED_PX", copied_px)
    generator = torch.Generator().manual_seed(0)
    masks, rows = torch.rand(4, 5, 4, generator=generator) > 0.5, torch.tensor([3, 0, 0])
    points = torch.rand(3, 300, 2, generator=generator)
    points[:, :4] = torch.tensor([[0.0, 0.0], [1.0, 1.0], [-0.1, 0.5], [0.5, 1.2]])
    found = sample_masks(masks, rows, points)
    assert found.dtype == torch.float32
    expected = F.grid_sample(masks.float()[rows, None], points[:, None] * 2 - 1, align_corners=False)[:, 0, 0]
    assert torch.equal(found, expected)
