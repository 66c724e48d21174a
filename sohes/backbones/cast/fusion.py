"""The features of all levels, joined for each superpixel (README §8)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

DROPOUT = 0.2  # [CAST]


class Fusion(nn.Module):
    """Batch norm over superpixels and class tokens together, dropout, and a projection of 4 D channels to D.

    Args:
        dim: D.
        levels: how many are joined.
    """

    def __init__(self, dim: int, levels: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(levels * dim)
        self.drop = nn.Dropout(DROPOUT)
        self.proj = nn.Linear(levels * dim, dim)

    def forward(self, cls: Tensor, superpixels: Tensor, empty: Tensor | None) -> Tensor:
        """(B, N, D) of class tokens (B, 1, 4 D) and superpixels (B, N, 4 D); 0 for empty ones (B, N).

        The class tokens come no further, but are part of the statistics [CAST]; what is empty is not.
        """
        count = superpixels.shape[1]
        joined = torch.cat([cls, superpixels], dim=1)
        if empty is None:
            return self._project(joined.flatten(0, 1)).unflatten(0, (-1, 1 + count))[:, 1:]
        kept = ~torch.cat([torch.zeros_like(empty[:, :1]), empty], dim=1)
        rows = self._project(joined[kept])
        fused = rows.new_zeros(*kept.shape, rows.shape[1])
        fused[kept] = rows
        return fused[:, 1:]

    def _project(self, rows: Tensor) -> Tensor:
        projected: Tensor = self.proj(self.drop(self.norm(rows)))
        return projected
