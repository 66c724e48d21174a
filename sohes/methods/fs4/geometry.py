"""Where things of the base square lie in a view of it."""

from __future__ import annotations

import torch
from torch import Tensor


def boxes_in_view(boxes: Tensor, crops: Tensor) -> tuple[Tensor, Tensor]:
    """Boxes as a crop shows them, clipped to it.

    Args:
        boxes: (n, 4) xyxy, fractions of the base square.
        crops: (B, 5) left, top, width and height, fractions of the base square; 1 where mirrored from left to right.

    Returns:
        Boxes (B, n, 4) xyxy, fractions of the view; of each the share of its area (B, n) that the view shows. A box
        outside the view is empty and lies on its border.
    """
    corner, size, flipped = crops[:, None, :2], crops[:, None, 2:4], crops[:, 4:] > 0.5
    low, high = ((part - corner) / size for part in boxes.to(crops).split(2, dim=1))
    left, right = low[..., 0], high[..., 0]
    left, right = torch.where(flipped, 1 - right, left), torch.where(flipped, 1 - left, right)
    whole = torch.stack([left, low[..., 1], right, high[..., 1]], dim=2)
    clipped = whole.clamp(0, 1)
    return clipped, _area(clipped) / _area(whole)


def _area(boxes: Tensor) -> Tensor:
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])
