"""The grid of blocks that superpixels start from, and that says how many there are (README §8)."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

LEAST_PX = 16  # side of an image


def grid_hw(height: int, width: int, block_px: int) -> tuple[int, int]:
    """Rows and columns of superpixels of an image: those of OpenCV's SEEDS, asked for one per block_px² pixels.

    Raises:
        ValueError: a side of the image is below 16 px.

    >>> grid_hw(224, 224, 16), grid_hw(512, 512, 16), grid_hw(375, 500, 16)
    ((14, 14), (32, 32), (20, 27))
    """
    if min(height, width) < LEAST_PX:
        raise ValueError(f"an image of {height} x {width} px has no superpixels; its sides are at least {LEAST_PX} px")
    rows, columns = fine_grid_hw(height, width, requested(height, width, block_px))
    return rows // 2, columns // 2


def requested(height: int, width: int, block_px: int) -> int:
    """Superpixels to ask for. There come to be fewer where the sides are no multiples of `block_px`."""
    return height * width // block_px**2


def fine_grid_hw(height: int, width: int, count: int) -> tuple[int, int]:
    """Rows and columns of the small blocks of SEEDS, of which 2 x 2 and more make one of about `count` superpixels."""
    # in the single precision of OpenCV, on which the number hangs
    size = np.float32
    rows = max(1, math.floor(np.sqrt(size(count) * size(height) / size(width))))
    columns = max(1, rows * width // height)
    block_h, block_w = (math.ceil(size(of) / size(n) / size(2)) for of, n in ((height, rows), (width, columns)))
    return max(2, height // block_h), max(2, width // block_w)


def blocks(size_hw: tuple[int, int], grid: tuple[int, int]) -> NDArray[np.int32]:
    """Blocks of equal sides, give or take a pixel: (H, W) int32, numbered row by row."""
    rows, columns = (np.arange(of) * n // of for of, n in zip(size_hw, grid, strict=True))
    return (rows[:, None] * grid[1] + columns).astype(np.int32)
