"""Slow, obvious twins of what `sohes.explore` does fast."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray


def merge_by_fractions(features: NDArray[np.integer], thresholds: Sequence[Fraction]) -> NDArray[np.int32]:
    """Patch merging of whole numbers without any rounding: cosines are compared by their squares, with their sign."""
    height, width, channels = features.shape
    sums = {patch: [int(x) for x in vector] for patch, vector in enumerate(features.reshape(-1, channels))}
    labels = np.arange(height * width).reshape(height, width)

    def signed_square(a: int, b: int) -> Fraction:
        product = sum(x * y for x, y in zip(sums[a], sums[b], strict=True))
        squares = sum(x * x for x in sums[a]) * sum(y * y for y in sums[b])
        return Fraction(product * abs(product), squares) if squares else Fraction(-1)

    maps = []
    for threshold in sorted(set(thresholds), reverse=True):
        while True:
            pairs = {*zip(labels[:, :-1].flat, labels[:, 1:].flat, strict=True)}
            pairs |= {*zip(labels[:-1].flat, labels[1:].flat, strict=True)}
            ranked = sorted((-signed_square(a, b), min(a, b), max(a, b)) for a, b in pairs if a != b)
            if not ranked or -ranked[0][0] < threshold * abs(threshold):
                break
            _, a, b = ranked[0]
            new = max(sums) + 1
            sums[new] = [x + y for x, y in zip(sums[a], sums[b], strict=True)]
            labels[(labels == a) | (labels == b)] = new
        maps.append(labels.astype(np.int32))
    return np.stack(maps)


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
