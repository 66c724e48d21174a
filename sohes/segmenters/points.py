"""Random points of an image and bilinear values there; x and y lie in [0, 1], from corner to corner."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


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
    """`sample_points` of boolean masks, read at the points only: a float copy of all targets would fill a GPU.

    Args:
        masks: (R, H, W) bool, contiguous.
        rows: (...) int64, which mask.
        points: (..., P, 2) float32; what `rows` and this have in front is broadcast.

    Returns:
        (..., P) float32.
    """
    height, width = masks.shape[-2:]
    flat = masks.reshape(-1)
    corner = points * points.new_tensor([width, height]) - 0.5
    first = corner.floor()
    fraction = corner - first
    x, y = first.long().unbind(-1)
    base = rows[..., None] * (height * width)
    total: Tensor | float = 0.0
    for down in (0, 1):
        for right in (0, 1):
            column, line = x + right, y + down
            share_x, share_y = (fraction if end else 1 - fraction for end in (right, down))
            share = share_x[..., 0] * share_y[..., 1]
            inside = (column >= 0) & (column < width) & (line >= 0) & (line < height)
            place = line.clamp(0, height - 1) * width + column.clamp(0, width - 1)
            total = total + flat[base + place] * (share * inside)
    return total  # type: ignore[return-value]
