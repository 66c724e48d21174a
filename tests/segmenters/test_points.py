"""Random points by key; bilinear values against grid_sample."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

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


@pytest.mark.parametrize("size_hw", [(1, 1), (3, 5), (224, 160), (1024, 1024)])
def test_masks_are_read_as_grid_sample_reads_them(size_hw: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    masks = torch.rand(4, *size_hw, generator=generator) > 0.5
    points = torch.rand(2, 300, 2, generator=generator)
    points[:, :4] = torch.tensor([[0.0, 0.0], [1.0, 1.0], [0.0, 1.0], [1.0, 0.5]])  # half a pixel beyond the centres
    points[:, 4:6] = torch.tensor([[-0.1, 0.5], [0.5, 1.2]])
    expected = F.grid_sample(masks.float().view(2, 2, *size_hw), points[:, None] * 2 - 1, align_corners=False)[:, :, 0]
    shared = sample_masks(masks, torch.arange(4).view(2, 2), points[:, None])
    assert shared.dtype == torch.float32
    assert torch.allclose(shared, expected, atol=1e-6 * max(size_hw))
    own = sample_masks(masks, torch.tensor([3, 0]), points[[1, 0]])
    assert torch.allclose(own, expected[[1, 0], [1, 0]], atol=1e-6 * max(size_hw))
