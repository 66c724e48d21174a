"""The superpixels of an image, by any method (README §8)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sohes.data.superpixels.felzenszwalb import felzenszwalb
from sohes.data.superpixels.grid import blocks, grid_hw, requested
from sohes.data.superpixels.merging import merge_regions, pieces
from sohes.data.superpixels.seeds import seeds
from sohes.data.superpixels.settings import SuperpixelSettings

_BLOCK_LAB = 3.0  # CIELAB units that the side of a block is worth in `graph` [ours]


def superpixels(image: NDArray[np.uint8], settings: SuperpixelSettings) -> NDArray[np.int32]:
    """Cut an image into superpixels.

    Args:
        image: (H, W, 3) uint8 RGB, sides of 16 px and more.
        settings: method, size, and what belongs to the method.

    Returns:
        (H, W) int32, labels in 0 .. n - 1, n being rows times columns of `grid_hw`. Each of them occurs with `grid` and
        `graph`; `seeds` could empty one; `slic` may use fewer, then the first ones.

    Raises:
        ValueError: an image of another type, or too small.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"superpixels are of (H, W, 3) uint8 images, not of {image.shape} {image.dtype}")
    size_hw = image.shape[0], image.shape[1]
    grid = grid_hw(*size_hw, settings.block_px)
    match settings.method:
        case "seeds":
            count = requested(*size_hw, settings.block_px)
            return seeds(image, count, bins=settings.bins, iterations=settings.iterations)
        case "grid":
            return blocks(size_hw, grid)
        case "graph":
            regions = felzenszwalb(image, scale=10, sigma=0.8, min_size=settings.block_px**2 // 16)
            regions = pieces(regions, blocks(size_hw, grid))  # or a plain image had too few
        case "slic":
            from skimage.segmentation import slic  # slow to import

            regions = np.asarray(slic(image, grid[0] * grid[1], compactness=10, start_label=0), np.int32)
    return merge_regions(regions, image, grid[0] * grid[1], place_weight=_BLOCK_LAB / settings.block_px)
