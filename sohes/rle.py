"""Run-length algebra of masks: COCO's RLE read, written and checked; masks measured, compared, cut and painted.

A run is a stretch of set pixels, column by column as in COCO's RLE. A crop of a large image needs a few hundred
thousand runs of its masks where the masks themselves have hundreds of millions of pixels. The kernels release the GIL.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numba
import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from sohes.errors import DataError

BoolArray = NDArray[np.bool_]
IntArray = NDArray[np.int64]
RunArray = NDArray[np.int32]

_LIMIT = 1 << 31  # px; images are smaller

Rle = dict[str, Any]  # COCO's: `size` [height, width] and `counts`, here compressed to text, ready for JSON


def encode_masks(masks: BoolArray) -> list[Rle]:
    """RLE of each mask of (M, H, W) bool."""
    return [encode_window(mask, (0, 0), (masks.shape[1], masks.shape[2])) for mask in masks]


def encode_window(mask: BoolArray, corner: tuple[int, int], size_hw: tuple[int, int]) -> Rle:
    """RLE of one mask that is seen through a window of the image; the cost is that of the window.

    Args:
        mask: (h, w) bool; outside the window nothing is set.
        corner: (top, left) of the window in the image.
        size_hw: image size in px.
    """
    height, width = size_hw
    flat = np.zeros(mask.shape[1] * height + 2, dtype=bool)  # a zero, the window's columns at full height, a zero
    columns = flat[1:-1].reshape(mask.shape[1], height)
    columns[:, corner[0] : corner[0] + mask.shape[0]] = cv2.transpose(mask.view(np.uint8)).view(bool)
    bounds = np.flatnonzero(flat[1:] != flat[:-1]) + corner[1] * height  # where runs start and end, in turn
    counts = np.diff(bounds, prepend=0, append=height * width)
    counts = counts if counts[-1] else counts[:-1]
    return compressed({"size": [height, width], "counts": counts.tolist()}, size_hw)


def encode_label_map(labels: NDArray[np.integer]) -> list[Rle]:
    """RLE of every region of a label map (H, W), in the order of the labels.

    The map is read once, so thousands of regions of a large image cost no more than one.
    """
    flat = labels.ravel(order="F")
    starts = np.flatnonzero(np.r_[True, flat[1:] != flat[:-1]])
    ends = np.r_[starts[1:], flat.size]
    order = np.argsort(flat[starts], kind="stable")
    _, first = np.unique(flat[starts][order], return_index=True)
    size_hw, rles = (labels.shape[0], labels.shape[1]), []
    for runs in np.split(order, first[1:]):
        edges = np.r_[0, np.stack([starts[runs], ends[runs]], axis=1).ravel(), flat.size]
        rles.append(compressed({"size": list(size_hw), "counts": np.diff(edges).tolist()}, size_hw))
    return rles


def compressed(segmentation: Mapping[str, Any] | list[list[float]], size_hw: tuple[int, int]) -> Rle:
    """RLE with text as `counts`, of an RLE with a list, bytes or text, or of polygons in px by COCO's rule."""
    shape: Any = segmentation
    if isinstance(shape, list):
        shape = coco_mask.merge(coco_mask.frPyObjects(shape, *size_hw))
    elif isinstance(shape["counts"], list):
        shape = coco_mask.frPyObjects(shape, *size_hw)
    return {"size": list(size_hw), "counts": rle_text(shape)}


def rle_text(rle: Mapping[str, Any]) -> str:
    """`counts` of a compressed RLE as text; pycocotools itself writes bytes."""
    counts: str | bytes = rle["counts"]
    return counts.decode("ascii") if isinstance(counts, bytes) else counts


def check_rle(where: str, rle: Mapping[str, Any], size_hw: tuple[int, int]) -> None:
    """Refuse an RLE that pycocotools would turn into a wrong mask, or read beyond its memory for.

    Args:
        where: what the message begins with: file, entry and field.
        rle: with `counts` as text or as a list.
        size_hw: of its image in px.

    Raises:
        DataError: it is of another size, or its counts are damaged or do not add up to the image's pixels.
    """
    if rle.get("size") != list(size_hw):
        raise DataError(f"{where}: RLE size {rle.get('size')} differs from the image's [height, width] {list(size_hw)}")
    counts = rle["counts"]
    if isinstance(counts, list):
        total = sum(counts) if all(type(run) is int and 0 <= run < _LIMIT for run in counts) else -1
    else:
        letters = np.frombuffer(_letters(counts), np.uint8)
        _, total = _decode(letters, (0, len(letters)), None)
    if total < 0:
        raise DataError(f"{where}: RLE counts cannot be decoded; they are cut off or damaged")
    if total != size_hw[0] * size_hw[1]:
        raise DataError(f"{where}: RLE counts sum to {total}, the image has {size_hw[0] * size_hw[1]} pixels")


def decode_masks(rles: Sequence[Mapping[str, Any]], size_hw: tuple[int, int]) -> BoolArray:
    """Masks (M, H, W) bool of RLEs, all of the same size."""
    if len(rles) == 0:
        return np.zeros((0, *size_hw), dtype=bool)
    return np.moveaxis(coco_mask.decode(list(rles)), -1, 0).view(bool)


def rle_areas(rles: Sequence[Mapping[str, Any]]) -> IntArray:
    """Pixels of each mask, (M,)."""
    # one at a time: given a list, pycocotools 2.0.11 overflows beyond 255 masks under NumPy 2
    return np.asarray([coco_mask.area(rle) for rle in rles], dtype=np.int64)


def rle_boxes_xywh(rles: Sequence[Mapping[str, Any]]) -> NDArray[np.float64]:
    """Tight boxes in px, (M, 4)."""
    return np.asarray(coco_mask.toBbox(list(rles)) if rles else np.zeros((0, 4)), dtype=np.float64)


def union(rles: Sequence[Mapping[str, Any]]) -> Rle:
    """All pixels of some masks of one image as one mask."""
    joined: Rle = coco_mask.merge(list(rles))
    return {"size": joined["size"], "counts": rle_text(joined)}


def pairwise_intersections(rles: Sequence[Mapping[str, Any]]) -> IntArray:
    """Pixels that every pair of masks of one image have in common, (M, M); the diagonal holds the areas.

    One sweep along the runs of all masks: the work is the number of overlapping pairs of runs, not of masks.
    """
    assert len({tuple(rle["size"]) for rle in rles}) <= 1, "masks of several images"
    starts, ends, owners = read_runs(rles)
    order = np.argsort(starts, kind="stable")
    later = _sweep(starts[order], ends[order], owners[order], len(rles)).astype(np.int64)
    common = later + later.T
    np.fill_diagonal(common, later.diagonal())
    return common


@numba.njit(cache=True, nogil=True)
def _sweep(
    starts: NDArray[np.int32], ends: NDArray[np.int32], owners: NDArray[np.int32], masks: int
) -> NDArray[np.int32]:
    """common[i, j]: pixels of i and j in runs of i that start while one of j is open, so common + its transpose is all.

    The runs come in order of their starts. The diagonal holds the areas.
    """
    common = np.zeros((masks, masks), np.int32)
    open_ends, open_owners = np.empty(masks, np.int32), np.empty(masks, np.int32)
    opened = 0
    for run in range(len(starts)):
        start, end = starts[run], ends[run]
        row = common[owners[run]]
        row[owners[run]] += end - start
        kept = 0
        for other in range(opened):
            if open_ends[other] > start:
                open_ends[kept], open_owners[kept] = open_ends[other], open_owners[other]
                row[open_owners[other]] += min(open_ends[other], end) - start
                kept += 1
        open_ends[kept], open_owners[kept] = end, owners[run]
        opened = kept + 1
    return common


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
        """Read RLEs, all of size `size_hw`."""
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

    def within(self, region: BoolArray) -> MaskRuns:
        """What the masks have of a region (H' ≥ H, W' ≥ W) bool."""
        flat = region[: self.size_hw[0], : self.size_hw[1]].ravel(order="F")
        opens, closes = np.flatnonzero(np.diff(flat, prepend=False, append=False)).astype(np.int32).reshape(-1, 2).T
        begin = np.searchsorted(closes, self.starts, side="right")  # the region's first run that a run meets
        counts = np.searchsorted(opens, self.ends, side="left") - begin
        before = np.concatenate([[0], np.cumsum(counts)])
        run = np.repeat(np.arange(len(counts)), counts)
        met = np.arange(before[-1]) - before[run] + begin[run]
        starts, ends = np.maximum(self.starts[run], opens[met]), np.minimum(self.ends[run], closes[met])
        return MaskRuns(self.size_hw, starts, ends, before[self.first])

    def common(self, pairs: IntArray) -> IntArray:
        """Pixels that both masks of each pair (P, 2) have, (P,)."""
        return _common(self.starts, self.ends, self.first, pairs)

    def paint(self, index: IntArray, canvas: BoolArray) -> None:
        """Set the pixels of masks `index` (K,) in `canvas` (K, H' ≥ H, W' ≥ W) bool, at its top left."""
        _paint(self.starts, self.ends, self.first, index, self.size_hw[0], canvas)


def read_runs(rles: Sequence[Mapping[str, Any]]) -> tuple[RunArray, RunArray, RunArray]:
    """Start, end and mask (R,) of each run of set pixels of compressed RLEs, in their order."""
    texts = [_letters(rle_text(rle)) for rle in rles]
    letters = np.frombuffer(b"".join(texts), np.uint8)
    runs = np.empty((3, len(letters)), np.int32)
    found, _ = _decode(letters, np.cumsum([0, *map(len, texts)]), runs)
    return runs[0, :found], runs[1, :found], runs[2, :found]


def _letters(counts: str) -> bytes:
    return counts.encode(errors="surrogatepass")


@numba.njit(cache=True, nogil=True)
def _decode(letters, offsets, runs):  # type: ignore[no-untyped-def]
    """Runs of compressed counts that follow one another, each from one offset to the next.

    Returns their number, and the pixels that the last counts cover together, set or not; -1 where they are damaged.
    `runs` (3, R) is where start, end and mask are written to; without it they are only counted.

    A count is written in groups of five bits, lowest first, a letter for each from "0" on; and from the fourth count on
    as the difference to the one two before.
    """
    found = position = 0
    for mask in range(len(offsets) - 1):
        position = count = previous = before = value = shift = 0
        for letter in letters[offsets[mask] : offsets[mask + 1]]:
            digit = np.int64(letter) - 48
            if not 0 <= digit < 64 or shift == 60:  # no count is that long
                count = 0
                break
            value |= (digit & 31) << shift
            shift += 5
            if digit & 32:  # more groups follow
                continue
            if digit & 16:  # negative
                value -= np.int64(1) << shift
            if count > 2:
                value += before
            if not 0 <= value < _LIMIT:
                count = 0
                break
            if count % 2 and value:
                if runs is not None:
                    runs[0, found], runs[1, found], runs[2, found] = position, position + value, mask
                found += 1
            position += value
            before, previous = previous, value
            count += 1
            value = shift = 0
        if count == 0 or shift:
            position = -1
    return found, position


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
