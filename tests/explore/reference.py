"""Slow, obvious twins of what `sohes.explore` does fast."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def merge_patches_by_scanning(features: NDArray[np.floating], thresholds: list[float]) -> NDArray[np.int32]:
    """The same as `merge_patches`: before each merge, all similarities are looked through."""
    height, width, channels = features.shape
    count = height * width
    sums = dict(enumerate(features.reshape(count, channels).astype(np.float64)))
    members = {index: [index] for index in range(count)}
    neighbours: dict[int, set[int]] = {index: set() for index in range(count)}
    for index in range(count):
        right, below = index + 1, index + width
        for other in ([right] if right % width else []) + ([below] if below < count else []):
            neighbours[index].add(other)
            neighbours[other].add(index)

    def similarity(first: int, second: int) -> float:
        lengths = [np.sqrt((sums[region] ** 2).sum()) for region in (first, second)]
        if min(lengths) < 1e-12:
            return -1.0
        return float((sums[first] * sums[second]).sum() / (lengths[0] * lengths[1]))

    similarities = {(a, b): similarity(a, b) for a in neighbours for b in neighbours[a] if a < b}
    created = count
    levels = []
    for threshold in sorted(set(thresholds), reverse=True):
        while similarities:
            (a, b), highest = min(similarities.items(), key=lambda item: (-item[1], item[0]))
            if highest < threshold:
                break
            sums[created] = sums.pop(a) + sums.pop(b)
            members[created] = members.pop(a) + members.pop(b)
            around = (neighbours.pop(a) | neighbours.pop(b)) - {a, b}
            neighbours[created] = around
            similarities = {pair: value for pair, value in similarities.items() if not {a, b} & set(pair)}
            for other in around:
                neighbours[other] = neighbours[other] - {a, b} | {created}
                similarities[other, created] = similarity(other, created)
            created += 1
        level = np.empty(count, np.int32)
        for region, patches in members.items():
            level[patches] = region
        levels.append(level.reshape(height, width))
    return np.stack(levels)


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
