"""Colours in place of embeddings."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from sohes.methods.fs4.network import PixelMaps


class Colours(nn.Module):
    """In place of a network: the mean colour of each cell of a square.

    Args:
        side: cells along a side.
        view_px: of a square.

    Attributes:
        seen: shapes of what it was given.
    """

    def __init__(self, side: int, view_px: int) -> None:
        super().__init__()
        self.side = side
        self.built = {"side": side, "view_px": view_px}
        self.seen: list[tuple[int, ...]] = []
        self.trunk = nn.Linear(1, 1)
        self.trunk.pretrained_cfg = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}

    def forward(self, images: Tensor) -> PixelMaps:
        self.seen.append(tuple(images.shape))
        maps = F.adaptive_avg_pool2d(images, self.side)
        return PixelMaps(maps, maps, None)
