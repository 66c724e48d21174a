"""Slow, obvious twins of what `sohes.explore` does fast."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def guided_filter_by_loops(
    luma: NDArray[np.float32], soft: NDArray[np.float32], radius: int, eps: float
) -> NDArray[np.float64]:
    """Equations 5, 6 and 8 of He et al. (2010), window by window; beyond the border the image is mirrored."""
    guide, values = (np.pad(array.astype(np.float64), 2 * radius, mode="symmetric") for array in (luma, soft))
    rows, columns = guide.shape
    slope, offset = np.zeros(guide.shape), np.zeros(guide.shape)
    for row in range(radius, rows - radius):
        for column in range(radius, columns - radius):
            window = np.s_[row - radius : row + radius + 1, column - radius : column + radius + 1]
            inside, target = guide[window], values[window]
            slope[row, column] = ((inside * target).mean() - inside.mean() * target.mean()) / (inside.var() + eps)
            offset[row, column] = target.mean() - slope[row, column] * inside.mean()
    out = np.zeros(luma.shape)
    for row in range(luma.shape[0]):
        for column in range(luma.shape[1]):
            window = np.s_[row + radius : row + 3 * radius + 1, column + radius : column + 3 * radius + 1]
            out[row, column] = slope[window].mean() * luma[row, column] + offset[window].mean()
    return out
