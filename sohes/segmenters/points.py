"""Random points of an image and bilinear values there; x and y lie in [0, 1], from corner to corner."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

_COPIED_PX = 2**26  # pixels of masks that exist in float32 at a time


def random_points(keys: Sequence[int], use: int, rows: Sequence[int], points: int, device: torch.device) -> Tensor:
    """Points (sum of rows, `points`, 2), `rows[b]` of them for image b, the same for the same key and use."""
    drawn = []
    for key, count in zip(keys, rows, strict=True):
        generator = torch.Generator(device).manual_seed((key * 1009 + use) % 2**63)
        drawn.append(torch.rand(count, points, 2, device=device, generator=generator))
    return torch.cat(drawn)


def sample_points(maps: Tensor, points: Tensor) -> Tensor:
    """Bilinear values (B, M, P) float32 of maps (B, M, h, w) at points (B, P, 2), 0 beyond the border."""
    return F.grid_sample(maps.float(), points[:, None] * 2 - 1, align_corners=False).squeeze(2)


def sample_masks(masks: Tensor, rows: Tensor, points: Tensor) -> Tensor:
    """Bilinear values (K, P) float32 of masks (R, H, W) bool: of mask `rows[k]` at points[k], (K,) and (K, P, 2).

    A part of the masks after another, since float copies of all targets would fill a GPU. (To read the four corners of
    every point instead takes three times as long on CPUs: index arithmetic costs more than the copies.)
    """
    size = max(1, _COPIED_PX // masks[0].numel())
    parts = zip(rows.split(size), points.split(size), strict=True)
    return torch.cat([sample_points(masks[own][:, None], places)[:, 0] for own, places in parts])
