"""Masks as runs of set pixels: cut, measured and compared without ever being full.

A crop of a large image needs a few hundred thousand runs of its masks where the masks themselves have hundreds of
millions of pixels. The kernels hold no Python lock.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

BoolArray = NDArray[np.bool_]
IntArray = NDArray[np.int64]
RunArray = NDArray[np.int32]


def read_runs(rles: Sequence[Mapping[str, Any]]) -> tuple[RunArray, RunArray, RunArray]:
    """Start, end and mask (R,) of each run of set pixels of COCO RLEs, in their order."""
    texts = [rle["counts"] if isinstance(rle["counts"], bytes) else rle["counts"].encode("ascii") for rle in rles]
    digits = np.frombuffer(b"".join(texts), np.uint8).astype(np.int64) - 48
    return _read_runs(digits, np.cumsum([0, *map(len, texts)]))


@dataclass(frozen=True)
class MaskRuns:
    """Masks of one size as runs of set pixels, column by column as in COCO's RLE.

    Attributes:
        size_hw: of the masks in px.
        starts, ends: (R,) int32, half-open, rising within a mask; pixel (y, x) has the place x·H + y.
        first: (M + 1,) int64, mask m owns the runs from `first[m]` to `first[m + 1]`.
    """

    size_hw: tuple[int, int]
    starts: RunArray
    ends: RunArray
    first: IntArray

    @classmethod
    def of_rles(cls, rles: Sequence[Mapping[str, Any]], size_hw: tuple[int, int]) -> MaskRuns:
        """Read COCO RLEs, all of size `size_hw`."""
        starts, ends, owners = read_runs(rles)
        return cls(size_hw, starts, ends, np.searchsorted(owners, np.arange(len(rles) + 1)))

    def __len__(self) -> int:
        return len(self.first) - 1

    @property
    def areas(self) -> IntArray:
        """Pixels of each mask, (M,)."""
        total = np.concatenate([[0], np.cumsum(self.ends - self.starts, dtype=np.int64)])
        return total[self.first[1:]] - total[self.first[:-1]]

    def window(self, rows: IntArray, columns: IntArray) -> MaskRuns:
        """The masks at the given rows (h,), rising or repeated, and columns (w,), in any order."""
        height = self.size_hw[0]
        assert (np.diff(rows) >= 0).all(), "rows must not fall"
        above = np.searchsorted(rows, np.arange(height + 1))  # of how many sampled rows a row is the end
        most = _window_runs(self.starts, self.ends, self.first, above, columns, self.size_hw, None, None)[-1]
        starts, ends = np.empty(most, np.int32), np.empty(most, np.int32)
        first = _window_runs(self.starts, self.ends, self.first, above, columns, self.size_hw, starts, ends)
        return MaskRuns((len(rows), len(columns)), starts, ends, first)

    def common(self, pairs: IntArray) -> IntArray:
        """Pixels that both masks of each pair (P, 2) have, (P,)."""
        return _common(self.starts, self.ends, self.first, pairs)

    def paint(self, index: IntArray, canvas: BoolArray) -> None:
        """Set the pixels of masks `index` (K,) in `canvas` (K, H' ≥ H, W' ≥ W) bool, at its top left."""
        _paint(self.starts, self.ends, self.first, index, self.size_hw[0], canvas)


@numba.njit(cache=True, nogil=True)
def _read_runs(digits: IntArray, offsets: IntArray) -> tuple[RunArray, RunArray, RunArray]:
    """`read_runs` of the `counts` one after another, less "0".

    A count is written in groups of five bits, lowest first, and from the fourth on as the difference to the one two
    before. Images have less than 2^31 px.
    """
    starts = np.empty(len(digits), np.int32)
    ends, owners = np.empty_like(starts), np.empty_like(starts)
    found = 0
    for mask in range(len(offsets) - 1):
        position = count = previous = before = value = shift = 0
        for digit in digits[offsets[mask] : offsets[mask + 1]]:
            value |= (digit & 31) << shift
            shift += 5
            if digit & 32:  # more groups follow
                continue
            if digit & 16:  # negative
                value -= 1 << shift
            if count > 2:
                value += before
            if count % 2 and value:
                starts[found], ends[found], owners[found] = position, position + value, mask
                found += 1
            position += value
            before, previous = previous, value
            count += 1
            value = shift = 0
    return starts[:found], ends[:found], owners[:found]


@numba.njit(cache=True, nogil=True)
def _window_runs(starts, ends, first, above, columns, size_hw, out_starts, out_ends):  # type: ignore[no-untyped-def]
    """Runs of the window into `out_starts` and `out_ends`; returns the first run of each mask.

    Without arrays to write to they are only counted. `above[y]`: sampled rows above row y.
    """
    height, width = size_hw
    sampled = above[height]
    out_first = np.zeros(len(first), np.int64)
    reaching = np.empty(width, np.int64)
    found = 0
    for mask in range(len(first) - 1):
        run, stop = first[mask], first[mask + 1]
        for column in range(width):  # the first run that reaches into a column
            while run < stop and ends[run] <= column * height:
                run += 1
            reaching[column] = run
        last = -1  # where the run before ended
        for place in range(len(columns)):
            top = columns[place] * height
            run = reaching[columns[place]]
            while run < stop and starts[run] < top + height:
                start = place * sampled + above[max(starts[run] - top, 0)]
                end = place * sampled + above[min(ends[run] - top, height)]
                run += 1
                if start == end:
                    continue
                if start != last:
                    if out_starts is not None:
                        out_starts[found] = start
                    found += 1
                if out_ends is not None:
                    out_ends[found - 1] = end
                last = end
        out_first[mask + 1] = found
    return out_first


@numba.njit(cache=True, nogil=True)
def _common(starts, ends, first, pairs):  # type: ignore[no-untyped-def]
    common = np.zeros(len(pairs), np.int64)
    for pair in range(len(pairs)):
        a, b = first[pairs[pair, 0]], first[pairs[pair, 1]]
        a_stop, b_stop = first[pairs[pair, 0] + 1], first[pairs[pair, 1] + 1]
        while a < a_stop and b < b_stop:
            common[pair] += max(0, min(ends[a], ends[b]) - max(starts[a], starts[b]))
            if ends[a] < ends[b]:
                a += 1
            else:
                b += 1
    return common


@numba.njit(cache=True, nogil=True)
def _paint(starts, ends, first, index, height, canvas):  # type: ignore[no-untyped-def]
    for place in range(len(index)):
        mask = canvas[place]
        for run in range(first[index[place]], first[index[place] + 1]):
            column, row = divmod(starts[run], height)
            for _ in range(ends[run] - starts[run]):
                mask[row, column] = True
                row += 1
                if row == height:
                    row, column = 0, column + 1
