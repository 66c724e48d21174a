"""View 1 as a rectangle of the base square: maps and boxes of the base brought into it (README §2).

`Crop` tensors (B, 5) float32: left, top, width and height as shares of the square, and 1 where the view is mirrored
from left to right, else 0.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from sohes.data.views import View

_FLIP = 0.5  # probability


def draw_crop(rng: np.random.Generator, *, base_px: int, view_px: int, crop_min: float) -> View:
    """A square of whole pixels of the base, anywhere in it, mirrored or not; see `ViewSettings`."""
    side = int(rng.uniform(crop_min, 1) * base_px) or 1
    top, left = (round((base_px - side) * rng.random()) for _ in range(2))
    return View(left, top, side, side, (view_px, view_px), bool(rng.random() < _FLIP))


def as_crop(view: View, base_px: int) -> Tensor:
    """A view of a base of this side as a row (5,) of `Crop`."""
    shares = [value / base_px for value in (view.left, view.top, view.width, view.height)]
    return torch.tensor([*shares, float(view.flipped)], dtype=torch.float32)


def warp(maps: Tensor, crops: Tensor, size: int) -> Tensor:
    """What a view shows of maps of the base: cut out, resized bilinearly, mirrored; differentiable.

    On whole cells it is torch's `interpolate` of what is cut out; products of matrices, whose gradient needs no
    additions in any order on a GPU.

    Args:
        maps: (B, C, h, w).
        crops: (B, 5), see above.
        size: side of the result, cells.

    Returns:
        (B, C, size, size) float32.
    """
    left, top, width, height, flip = crops.to(maps.device).unbind(1)
    down = _weights(top, height, torch.zeros_like(flip), maps.shape[2], size)
    across = _weights(left, width, flip, maps.shape[3], size)
    with torch.autocast(maps.device.type, enabled=False):
        return torch.einsum("bchj,bwj->bchw", torch.einsum("bhi,bcij->bchj", down, maps.float()), across)


def _weights(start: Tensor, extent: Tensor, flip: Tensor, cells: int, size: int) -> Tensor:
    """Share (B, size, cells) of each cell of the base in each of the view's, along one axis; start and extent (B,)."""
    steps = (torch.arange(size, device=start.device) + 0.5) / size
    steps = torch.where(flip[:, None] > 0, 1 - steps, steps)
    low, high = start * cells + 0.5, (start + extent) * cells - 0.5
    middle = (low + high) / 2  # of a view that is narrower than a cell
    places = (start[:, None] + steps * extent[:, None]) * cells
    places = places.clamp(torch.minimum(low, middle)[:, None], torch.maximum(high, middle)[:, None])
    centres = torch.arange(cells, device=start.device) + 0.5
    return (1 - (places.clamp(0.5, cells - 0.5)[..., None] - centres).abs()).clamp(min=0)


def boxes_in_view(boxes: Tensor, crops: Tensor) -> tuple[Tensor, Tensor]:
    """Boxes of the base in the coordinates of views.

    Args:
        boxes: (n, 4) xyxy as shares of the base.
        crops: (B, 5), see above.

    Returns:
        (B, n, 4) xyxy as shares of the view, clipped to it, float32; (B, n) share of each box that is visible.
    """
    left, top, width, height, flip = crops[:, :, None].unbind(1)
    x = (boxes.to(crops)[None, :, 0::2] - left[..., None]) / width[..., None]
    y = (boxes.to(crops)[None, :, 1::2] - top[..., None]) / height[..., None]
    x = torch.where(flip[..., None] > 0, 1 - x.flip(-1), x)
    whole = (x[..., 1] - x[..., 0]) * (y[..., 1] - y[..., 0])
    x, y = x.clamp(0, 1), y.clamp(0, 1)
    visible = (x[..., 1] - x[..., 0]) * (y[..., 1] - y[..., 0]) / whole
    return torch.stack([x[..., 0], y[..., 0], x[..., 1], y[..., 1]], dim=-1), visible
