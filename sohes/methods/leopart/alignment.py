"""The same region of two crops on one grid, by RoIAlign (README §5)."""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.ops import roi_align


def align(maps: Tensor, boxes: Tensor, places: Tensor, *, patch_px: int, cells: int) -> Tensor:
    """Regions (R, C, cells, cells) float32 of maps, each cell the mean of bilinear samples.

    In float32, and px are divided by the patch before anything else: RoIAlign takes as many samples as a cell has
    patches, rounded up, and the boxes of whole crops lie exactly where that number jumps.

    Args:
        maps: (M, C, h, w), a value per patch.
        boxes: (R, 4) xyxy in px of the crops.
        places: (R,) int64, which map each box is in.
        patch_px: side of a patch.
        cells: side of the grid.
    """
    regions = torch.cat([places[:, None].to(boxes), boxes.float() / patch_px], dim=1)
    with torch.autocast(maps.device.type, enabled=False):
        return roi_align(maps.float(), regions, cells, aligned=True)
