"""MoCo-v3's fixed table of positions, which CAST has too (README §8)."""

from __future__ import annotations

import torch
from torch import Tensor

TEMPERATURE = 10_000.0  # [CAST], MoCo-v3


def sincos_table(grid_hw: tuple[int, int], dim: int) -> Tensor:
    """(1, 1 + h w, D) float32: 0 for the class token, then sine and cosine of a cell's row, and of its column.

    The row comes first, though the authors call it width; their checkpoints hang on it [CAST]. D is a
    multiple of 4.
    """
    rates = TEMPERATURE ** -(torch.arange(dim // 4) / (dim // 4))
    row, column = (
        (place.flatten().float()[:, None] * rates)
        for place in torch.meshgrid(*(torch.arange(size) for size in grid_hw), indexing="ij")
    )
    cells = torch.cat([row.sin(), row.cos(), column.sin(), column.cos()], dim=1)
    return torch.cat([torch.zeros(1, dim), cells])[None]
