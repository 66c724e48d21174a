"""The regions that clustering leaves on one feature map, and their masks at image size (README §3, 5)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numba
import numpy as np
from numpy.typing import NDArray

from sohes.explore.agglomerate import merge_patches
from sohes.masks import FloatArray
from sohes.rle import BoolArray


class Rectangle(NamedTuple):
    """A part of the image, in px."""

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
    columns = _describe(np.ascontiguousarray(features).reshape(-1, features.shape[-1]), levels)
    return Regions(levels, *columns)


@numba.njit(nogil=True, cache=True)
def _describe(
    features: FloatArray, levels: NDArray[np.int32]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], FloatArray]:
    """Numbers, sizes, first and last levels, boxes and cohesions of all regions, see `Regions`."""
    width = levels.shape[2]
    maps = levels.reshape(len(levels), -1)
    most = maps.max() + 1
    size, first, last = np.zeros(most, np.int64), np.full(most, -1), np.full(most, -1)
    for level in range(len(maps)):
        for number in maps[level]:
            if first[number] < 0:
                first[number] = level
            size[number] += first[number] == level
            last[number] = level
    numbers = np.flatnonzero(size)
    ends = np.cumsum(size)  # of each region's part of `members`, once they are filled in from the end
    members = np.empty(ends[-1], np.int64)
    for level in range(len(maps)):
        for patch in range(maps.shape[1]):
            number = maps[level, patch]
            if first[number] == level:
                ends[number] -= 1
                members[ends[number]] = patch
    weights = np.empty(len(features))  # that give all features the length 1
    for patch in range(len(features)):
        weights[patch] = 1 / max(_length(features[patch]), 1e-12)
    boxes, cohesion = np.empty((len(numbers), 4), np.int64), np.empty(len(numbers), np.float32)
    for index, number in enumerate(numbers):
        total = np.zeros(features.shape[1])
        top = left = maps.shape[1]
        bottom = right = 0
        for patch in members[ends[number] : ends[number] + size[number]]:
            row, column = patch // width, patch % width
            top, left, bottom, right = min(top, row), min(left, column), max(bottom, row + 1), max(right, column + 1)
            for c in range(len(total)):
                total[c] += features[patch, c] * weights[patch]
        boxes[index, 0], boxes[index, 1], boxes[index, 2], boxes[index, 3] = top, left, bottom, right
        cohesion[index] = _length(total) / size[number]
    return numbers, size[numbers], first[numbers], last[numbers], boxes, cohesion


@numba.njit(nogil=True, cache=True, fastmath={"reassoc", "contract"})
def _length(vector: NDArray[np.floating]) -> float:
    square = 0.0
    for value in vector:
        square += np.float64(value) * np.float64(value)
    return np.sqrt(square)


class Upsampler:
    """Soft masks of patch regions at image size: bilinear with half-pixel centres, one window at a time.

    Args:
        grid_hw: patches of the feature map.
        view: the part of the image that the feature map shows.
        size_hw: image size in px.
    """

    def __init__(self, grid_hw: tuple[int, int], view: Rectangle, size_hw: tuple[int, int]) -> None:
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
        above, before = self._view.top + top, self._view.left + left
        corner = max(0, above - margin), max(0, before - margin)
        end = (
            min(self._size_hw[0], above + bottom - top + margin),
            min(self._size_hw[1], before + right - left + margin),
        )
        out = np.zeros((end[0] - corner[0], end[1] - corner[1]), np.float32)
        soft = out[above - corner[0] :, before - corner[1] :]
        rows, columns = self._rows[top:bottom], self._columns[left:right]
        _interpolate(patches, rows["patch"] - box[0], rows["next"], columns["patch"] - box[1], columns["next"], soft)
        return out, corner


_PLACE = np.dtype([("patch", np.int64), ("next", np.float32)])


def _interpolation(patches: int, pixels: int) -> NDArray[np.void]:
    """For bilinear up-sampling in one direction, half-pixel centres, edges repeated: (pixels,) records.

    Pixel i has weight `next` in patch `patch` + 1 and the rest in `patch`.
    """
    place = np.clip((np.arange(pixels) + 0.5) * patches / pixels - 0.5, 0, patches - 1)
    places = np.empty(pixels, _PLACE)
    places["patch"] = np.minimum(place.astype(np.int64), max(patches - 2, 0))
    places["next"] = place - places["patch"]
    return places


@numba.njit(nogil=True, cache=True)
def _interpolate(
    patches: BoolArray,
    rows: NDArray[np.int64],
    row_weights: FloatArray,
    columns: NDArray[np.int64],
    column_weights: FloatArray,
    soft: FloatArray,
) -> None:
    """Fill the top left of `soft` from patches (h, w), beyond which all is 0; places count from their first patch.

    In place of a product of matrices: a BLAS has threads of its own, which would get in the way of the stream's.
    """
    height, width = patches.shape
    line = np.zeros(width + 4, np.float32)  # a row of patches as the pixel row sees it, two zeros at each end
    for y in range(len(rows)):
        row, weight = rows[y], row_weights[y]
        for j in range(width):
            here = np.float32(1) - weight if 0 <= row < height and patches[row, j] else np.float32(0)
            line[j + 2] = here + weight if 0 <= row + 1 < height and patches[row + 1, j] else here
        for x in range(len(columns)):
            j = min(max(columns[x], -2), width) + 2  # patches may be smaller than pixels
            soft[y, x] = line[j] * (np.float32(1) - column_weights[x]) + line[j + 1] * column_weights[x]
