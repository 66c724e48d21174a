"""Colours in place of embeddings."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


class Colours(nn.Module):
    """In place of a network: the mean colour of each cell of a square.

    Args:
        side: cells along a side.

    Attributes:
        seen: shapes of what it was given.
    """

    def __init__(self, side: int) -> None:
        super().__init__()
        self.side = side
        self.seen: list[tuple[int, ...]] = []
        self.trunk = nn.Linear(1, 1)
        self.trunk.pretrained_cfg = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        self.seen.append(tuple(images.shape))
        maps = F.adaptive_avg_pool2d(images, self.side)
        return maps, maps
