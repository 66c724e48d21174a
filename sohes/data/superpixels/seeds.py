"""SEEDS: superpixels that exchange blocks, then pixels, along their borders (README §8).

Van den Bergh, Boix, Roig, de Capitani and Van Gool, ECCV 2012. What OpenCV leaves open in the paper is done as there
(contrib module ximgproc, two levels, prior 2, no double step), to the last pixel, so CAST sees the superpixels it was
made for.
"""

from __future__ import annotations

import cv2
import numba
import numpy as np
from numpy.typing import NDArray

from sohes.data.superpixels.grid import blocks, fine_grid_hw

_BLOCKS = 4  # of a superpixel at the start, by which OpenCV counts, though where the grid is uneven some have more


def seeds(image: NDArray[np.uint8], count: int, *, bins: int, iterations: int) -> NDArray[np.int32]:
    """SEEDS on CIELAB.

    Args:
        image: (H, W, 3) uint8 RGB, sides of 16 px and more.
        count: superpixels to ask for; see `fine_grid_hw` for how many there are.
        bins: of a colour histogram along each channel.
        iterations: rounds over all pixels.

    Returns:
        (H, W) int32, numbered row by row of the grid they started from. A superpixel of few pixels may lose them all.
    """
    size_hw = image.shape[0], image.shape[1]
    fine_hw = rows, columns = fine_grid_hw(*size_hw, count)
    fine, start = blocks(size_hw, fine_hw).ravel(), blocks(size_hw, (rows // 2, columns // 2)).ravel()
    owner = np.empty(rows * columns, np.int32)  # superpixel of each small block
    owner[fine] = start  # one across a border of the larger blocks is its last pixel's
    colours, histograms = _histograms(
        cv2.cvtColor(image, cv2.COLOR_RGB2LAB), bins, owner[fine], rows // 2 * (columns // 2)
    )
    _exchange_blocks(owner, columns, fine, colours, histograms)
    labels = owner[fine]
    _exchange_pixels(labels, size_hw[1], colours, histograms, iterations)
    return labels.reshape(size_hw)


@numba.njit(cache=True, nogil=True)
def _histograms(lab, bins, labels, count):  # type: ignore[no-untyped-def]
    """The bin of each pixel, numbered among those that occur (most are empty), and histograms (count, bins)."""
    number = np.full(bins**3, -1, np.int32)
    colours = np.empty(len(labels), np.int32)
    used = 0
    flat = lab.reshape(-1, 3)
    for pixel in range(len(labels)):
        place = 0
        for channel in range(3):
            place = place * bins + flat[pixel, channel] * bins // 256
        if number[place] < 0:
            number[place] = used
            used += 1
        colours[pixel] = number[place]
    histograms = np.zeros((count, used), np.int32)
    for pixel in range(len(labels)):
        histograms[labels[pixel], colours[pixel]] += 1
    return colours, histograms


@numba.njit(cache=True, nogil=True)
def _may_leave(labels, place, back, side):  # type: ignore[no-untyped-def]
    """Whether a superpixel stays in one piece without `place`, seen in its 3 x 3 less the column that takes it.

    `back` is the step away from that column, `side` the one along it.
    """
    label = labels[place]
    behind, before, after = labels[place + back] == label, labels[place - side] == label, labels[place + side] == label
    # without branches, which no processor foresees here
    torn = before & after & (labels[place + back] != label)
    torn |= behind & before & (labels[place + back - side] != label)
    torn |= behind & after & (labels[place + back + side] != label)
    return not torn


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _exchange_blocks(owner, columns, fine, colours, histograms):  # type: ignore[no-untyped-def]
    """One round over the small blocks, horizontally, then vertically; the outermost ones stay."""
    rows = len(owner) // columns
    sizes = histograms.sum(axis=1)
    parts = np.full(len(histograms), _BLOCKS)
    # colours by block
    stops = np.zeros(len(owner) + 1, np.int64)
    for block in fine:
        stops[block + 1] += 1
    stops = np.cumsum(stops)
    sorted_colours = np.empty_like(colours)
    for pixel in range(len(fine)):
        sorted_colours[stops[fine[pixel]]] = colours[pixel]
        stops[fine[pixel]] += 1
    tally = np.zeros(histograms.shape[1], np.int32)

    for ahead, side, lines, length in ((1, columns, rows, columns), (columns, 1, columns, rows)):
        for line in range(1, lines - 1):
            step = 1
            while step < length - 2:
                place = line * side + step * ahead
                step += 1
                if owner[place] == owner[place + ahead]:
                    continue
                for block, back in ((place, -ahead), (place + ahead, ahead)):
                    old, new = owner[block], owner[block - back]
                    if parts[old] < 2 or (parts[old] > 2 and not _may_leave(owner, block, back, side)):
                        continue
                    pixels = sorted_colours[stops[block - 1] : stops[block]]
                    if _fits_better(pixels, tally, histograms, sizes, old, new):
                        for colour in pixels:
                            histograms[old, colour] -= 1
                            histograms[new, colour] += 1
                        sizes[old] -= len(pixels)
                        sizes[new] += len(pixels)
                        parts[old] -= 1
                        parts[new] += 1
                        owner[block] = new
                        step += back == ahead  # the next pair would begin with the block that has just moved
                        break


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _fits_better(pixels, tally, histograms, sizes, old, new):  # type: ignore[no-untyped-def]
    """Whether a block's colour histogram intersects more with that of `new` than with what it leaves of `old`."""
    size = len(pixels)
    size_new, size_old = sizes[new], sizes[old] - size
    for colour in pixels:
        tally[colour] += 1
    common_new = common_old = 0
    for colour in pixels:
        held = tally[colour]
        tally[colour] = 0  # counted once, and clear for the next block
        common_new += min(histograms[new, colour] * size, held * size_new)
        common_old += min((histograms[old, colour] - held) * size, held * size_old)
    # single precision as in OpenCV; of nothing left, 0 / 0 is no reason to move
    share_new = np.float32(common_new) / np.float32(size_new * size)
    share_old = np.float32(common_old) / np.float32(size_old * size)
    return share_new - share_old > 0


@numba.njit(cache=True, nogil=True)
def _exchange_pixels(labels, width, colours, histograms, iterations):  # type: ignore[no-untyped-def]
    height = len(labels) // width
    sizes = histograms.sum(axis=1).astype(np.float32)
    # around a pair of pixels, from its first
    beside = (-width - 1, -width, -width + 1, -width + 2, -1, 2, width - 1, width, width + 1, width + 2)
    # OpenCV's for a vertical pair reaches one too far on the right; of the last column that is the next line's first
    above = (-width - 1, -width, -width + 1, -1, 2, width - 1, width + 2, 2 * width - 1, 2 * width, 2 * width + 1)
    for iteration in range(iterations):
        forward = iteration % 2 == 0
        _sweep(labels, 1, width, height, width, beside, colours, histograms, sizes, forward)
        _sweep(labels, width, 1, width, height, above, colours, histograms, sizes, forward)
        last = (height - 1) * width
        for column in range(width):
            _move(labels, column, labels[width + column], colours, histograms, sizes)
            _move(labels, last + column, labels[last - width + column], colours, histograms, sizes)
        for first in range(0, len(labels), width):
            _move(labels, first, labels[first + 1], colours, histograms, sizes)
            _move(labels, first + width - 1, labels[first + width - 2], colours, histograms, sizes)


@numba.njit(cache=True, nogil=True)
def _move(labels, pixel, new, colours, histograms, sizes):  # type: ignore[no-untyped-def]
    old, colour = labels[pixel], colours[pixel]
    histograms[old, colour] -= 1
    histograms[new, colour] += 1
    sizes[old] -= 1
    sizes[new] += 1
    labels[pixel] = new


@numba.njit(cache=True, nogil=True)
def _sweep(  # type: ignore[no-untyped-def]
    labels, ahead, side, lines, length, around, colours, histograms, sizes, forward
):
    """One round over all pairs of pixels along rows or along columns.

    Of a pair with two labels, the first pixel may go to the second's superpixel, or else the second to the first's;
    the other way round where not `forward`.
    """
    for line in range(1, lines - 1):
        step = 1
        while step < length - 2:
            first = line * side + step * ahead
            second = first + ahead
            step += 1
            if labels[first] == labels[second]:
                continue
            pixel, other, back = (first, second, -ahead) if forward else (second, first, ahead)
            if not _may_leave(labels, pixel, back, side):
                continue
            old, new = labels[pixel], labels[other]
            if _is_likelier(colours[pixel], old, new, labels, first, around, histograms, sizes):
                _move(labels, pixel, new, colours, histograms, sizes)
                step += pixel == second  # the next pair would begin with what has just moved
            elif _may_leave(labels, other, -back, side) and _is_likelier(
                colours[other], new, old, labels, first, around, histograms, sizes
            ):
                _move(labels, other, old, colours, histograms, sizes)
                step += other == second


@numba.njit(cache=True, nogil=True)
def _is_likelier(colour, old, new, labels, first, around, histograms, sizes):  # type: ignore[no-untyped-def]
    """Whether a pixel of this colour is rather `new`'s, by both histograms and the labels around its pair, squared."""
    if histograms[new, colour] == 0:
        return False
    near_old = near_new = 0
    for offset in around:
        near_old += labels[first + offset] == old
        near_new += labels[first + offset] == new
    # in single precision and in the order of OpenCV, which decides between almost equal ones
    prior = np.float32(near_old) / np.float32(near_new) if near_new else np.float32(1)
    likely_old = np.float32(histograms[old, colour]) * sizes[new] * sizes[new] * (prior * prior)
    likely_new = np.float32(histograms[new, colour]) * sizes[old] * sizes[old]
    return likely_new > likely_old
