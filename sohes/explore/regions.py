"""The regions that clustering leaves on one feature map, and their masks at image size (§2.2 and 2.4 of the notes)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numba
import numpy as np
from numpy.typing import NDArray

from sohes.explore.agglomerate import merge_patches
from sohes.masks import BoolArray, FloatArray


@dataclass(frozen=True)
class Window:
    """A rectangle of the image, in px."""

    top: int
    left: int
    height: int
    width: int


@dataclass(frozen=True)
class Regions:
    """Every region that stands at the end of at least one level, in order of creation.

    Attributes:
        levels: (T, h, w) int32, region numbers of each patch at each threshold, see `merge_patches`.
        numbers: (R,) region numbers, ascending.
        sizes: (R,) patches.
        first, last: (R,) indices of the first and the last level at which the region stands.
        boxes: (R, 4) top, left, bottom, right in patches, the ends exclusive.
        cohesion: (R,) length of the mean unit feature, 1 = perfectly uniform.
    """

    levels: NDArray[np.int32]
    numbers: NDArray[np.int64]
    sizes: NDArray[np.int64]
    first: NDArray[np.int64]
    last: NDArray[np.int64]
    boxes: NDArray[np.int64]
    cohesion: FloatArray

    def __len__(self) -> int:
        return len(self.numbers)

    def patches(self, index: int) -> BoolArray:
        """Patches (h', w') of a region inside its box."""
        top, left, bottom, right = self.boxes[index]
        inside: BoolArray = self.levels[self.first[index], top:bottom, left:right] == self.numbers[index]
        return inside


def find_regions(features: FloatArray, thresholds: Sequence[float]) -> Regions:
    """Cluster a feature map (h, w, D) at descending cosines."""
    levels = merge_patches(features, thresholds)
    length = np.linalg.norm(features, axis=-1, keepdims=True)
    unit = (features / np.maximum(length, 1e-12)).reshape(-1, features.shape[-1])
    seen = np.zeros(levels.max() + 1, dtype=bool)
    last = np.zeros(levels.max() + 1, dtype=np.int64)
    columns: list[tuple[NDArray[np.int64], ...]] = []
    cohesion = []
    width = levels.shape[2]
    for level, flat in enumerate(levels.reshape(len(levels), -1)):
        last[flat] = level
        order = np.flatnonzero(~seen[flat])  # patches of regions that are new at this level
        if not len(order):
            continue
        order = order[np.argsort(flat[order], kind="stable")]
        numbers, starts, sizes = np.unique(flat[order].astype(np.int64), return_index=True, return_counts=True)
        seen[numbers] = True
        rows, cols = np.divmod(order, width)
        box = [
            np.minimum.reduceat(rows, starts),
            np.minimum.reduceat(cols, starts),
            np.maximum.reduceat(rows, starts) + 1,
            np.maximum.reduceat(cols, starts) + 1,
        ]
        columns.append((numbers, sizes, np.full(len(numbers), level), *box))
        cohesion.append(np.linalg.norm(_sums(unit, order, starts), axis=1) / sizes)
    numbers, sizes, first, *box = (np.concatenate(column) for column in zip(*columns, strict=True))
    order = np.argsort(numbers)
    return Regions(
        levels=levels,
        numbers=numbers[order],
        sizes=sizes[order],
        first=first[order],
        last=last[numbers[order]],
        boxes=np.stack(box, axis=1)[order],
        cohesion=np.concatenate(cohesion)[order].astype(np.float32),
    )


@numba.njit(nogil=True, cache=True)
def _sums(features: FloatArray, order: NDArray[np.int64], starts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Sum of the rows `order[starts[i] : starts[i + 1]]` of (N, D), for each i: (len(starts), D) float64."""
    sums = np.zeros((len(starts), features.shape[1]))
    for region in range(len(starts)):
        end = starts[region + 1] if region + 1 < len(starts) else len(order)
        for place in range(starts[region], end):
            sums[region] += features[order[place]]
    return sums


class Upsampler:
    """Soft masks of patch regions at image size: bilinear with half-pixel centres, one window at a time.

    Args:
        grid_hw: patches of the feature map.
        view: the part of the image that the feature map shows.
        size_hw: image size in px.
    """

    def __init__(self, grid_hw: tuple[int, int], view: Window, size_hw: tuple[int, int]) -> None:
        self._view, self._size_hw = view, size_hw
        self._rows = _interpolation(grid_hw[0], view.height)
        self._columns = _interpolation(grid_hw[1], view.width)
        self._patch_hw = view.height / grid_hw[0], view.width / grid_hw[1]

    def window(self, patches: BoolArray, box: Sequence[int], margin: int) -> tuple[FloatArray, tuple[int, int]]:
        """The soft mask of `patches` that lie at `box` (patches), see `Regions`.

        Returns:
            A window (h, w) float32 that reaches `margin` px beyond the soft mask or ends with the image, and its
            corner (top, left) in the image.
        """
        inner = []  # what the soft mask can reach: one patch more on each side, inside the view
        for first, last, patch, side in zip(
            box[:2], box[2:], self._patch_hw, (self._view.height, self._view.width), strict=True
        ):
            inner.append((max(0, int((first - 1) * patch)), min(side, int(np.ceil((last + 1) * patch)))))
        (top, bottom), (left, right) = inner
        rows = self._rows[top:bottom, box[0] : box[2]]
        columns = self._columns[left:right, box[1] : box[3]]
        soft = rows @ patches.astype(np.float32) @ columns.T
        above, before = self._view.top + top, self._view.left + left
        corner = max(0, above - margin), max(0, before - margin)
        end = (
            min(self._size_hw[0], above + soft.shape[0] + margin),
            min(self._size_hw[1], before + soft.shape[1] + margin),
        )
        out = np.zeros((end[0] - corner[0], end[1] - corner[1]), np.float32)
        out[
            above - corner[0] : above - corner[0] + soft.shape[0],
            before - corner[1] : before - corner[1] + soft.shape[1],
        ] = soft
        return out, corner


def _interpolation(patches: int, pixels: int) -> FloatArray:
    """Weights (pixels, patches) of bilinear up-sampling in one direction, half-pixel centres, edges repeated."""
    place = np.clip((np.arange(pixels) + 0.5) * patches / pixels - 0.5, 0, patches - 1)
    below = np.minimum(place.astype(np.int64), max(patches - 2, 0))
    weights = np.zeros((pixels, patches), np.float32)
    pixel = np.arange(pixels)
    weights[pixel, below] = 1 - (place - below)
    weights[pixel, np.minimum(below + 1, patches - 1)] += (place - below).astype(np.float32)
    return weights
