"""Multi-scale deformable attention on CPUs: compiled loops, with the same result for any number of threads (README §2).

The threads are Python's: numba's own parallel loops would set how many threads torch uses for everything else.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from math import floor
from typing import Any

import numba
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

# sums over channels may be reordered, once and for all when compiled, so that they use vector instructions
_compiled = numba.njit(cache=True, nogil=True, error_model="numpy", fastmath={"reassoc", "contract"})


def forward(value: Tensor, sides: Sequence[int], locations: Tensor, weights: Tensor) -> Tensor:
    """Output (B, Q, heads * C) in the value's format; arguments as of `deformable_attention`, sides flattened."""
    batch, _, heads, channels = value.shape
    locations = locations.contiguous()
    output = locations.new_zeros(batch, weights.shape[1], heads, channels)
    arrays = (_array(value, locations), _levels(sides), _array(locations), _array(weights), _array(output))
    _in_threads(_forward, batch * weights.shape[1], *arrays)
    return output.flatten(2).to(value.dtype)


def backward(
    grad: Tensor, value: Tensor, sides: Sequence[int], locations: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of value, locations and weights, for one of the output."""
    grad = grad.unflatten(2, value.shape[2:])
    shapes = (value.shape, locations.shape, weights.shape)
    of_value, of_locations, of_weights = (torch.zeros(shape, dtype=locations.dtype) for shape in shapes)
    given = (_array(grad, locations), _array(value, locations), _levels(sides), _array(locations), _array(weights))
    found = (_array(of_value), _array(of_locations), _array(of_weights))
    _in_threads(_backward, value.shape[0] * value.shape[2], *given, *found)
    return of_value.to(value.dtype), of_locations, of_weights


def _array(tensor: Tensor, like: Tensor | None = None) -> NDArray[Any]:
    """Contiguous and in the format of `like`: a view wherever the tensor is that already."""
    return tensor.detach().to(tensor.dtype if like is None else like.dtype).contiguous().numpy()


def _levels(sides: Sequence[int]) -> NDArray[np.int64]:
    """(L, 3): height, width and first pixel of every map."""
    shapes = np.asarray(sides, np.int64).reshape(-1, 2)
    ends = np.cumsum(shapes[:, 0] * shapes[:, 1])
    return np.column_stack([shapes, np.concatenate([[0], ends[:-1]])])


def _in_threads(work: Callable[..., None], count: int, *arrays: NDArray[Any]) -> None:
    """`work(first, end, *arrays)` on all of `count` items, shared out to as many threads as torch uses."""
    threads = max(1, min(torch.get_num_threads(), count))
    parts = list(pairwise(count * part // threads for part in range(threads + 1)))
    if threads == 1:
        work(0, count, *arrays)
        return
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda part: work(*part, *arrays), parts))


@numba.njit(cache=True, error_model="numpy")
def _neighbours(position, size):  # type: ignore[no-untyped-def]
    """The two pixels beside a position in one direction, clamped; their shares in the sample; the shares' slopes."""
    first = floor(position)
    fraction = position - first
    has_first, has_second = 1.0 * (first >= 0), 1.0 * (first + 1 < size)
    shares = ((1 - fraction) * has_first, fraction * has_second)
    return (max(first, 0), min(first + 1, size - 1)), shares, (-has_first, has_second)


@_compiled
def _forward(first, end, value, levels, locations, weights, output):  # type: ignore[no-untyped-def]
    """Outputs of the (image, query) pairs from `first` to before `end`."""
    real = value.dtype.type
    channels = value.shape[3]
    _, queries, heads, depth, points = weights.shape
    for item in range(first, end):
        b, q = item // queries, item % queries
        for h in range(heads):
            for level in range(depth):
                height, width, start = levels[level]
                for p in range(points):
                    x = locations[b, q, h, level, p, 0] * width - 0.5
                    y = locations[b, q, h, level, p, 1] * height - 0.5
                    if not (-1 < x < width and -1 < y < height):
                        continue
                    (left, right), (at_left, at_right), _ = _neighbours(x, width)
                    (top, bottom), (at_top, at_bottom), _ = _neighbours(y, height)
                    weight = weights[b, q, h, level, p]
                    upper, lower = start + top * width, start + bottom * width
                    w00, w01 = real(weight * at_top * at_left), real(weight * at_top * at_right)
                    w10, w11 = real(weight * at_bottom * at_left), real(weight * at_bottom * at_right)
                    for c in range(channels):
                        output[b, q, h, c] += (
                            w00 * value[b, upper + left, h, c]
                            + w01 * value[b, upper + right, h, c]
                            + w10 * value[b, lower + left, h, c]
                            + w11 * value[b, lower + right, h, c]
                        )


@_compiled
def _backward(  # type: ignore[no-untyped-def]
    first, end, grad, value, levels, locations, weights, of_value, of_locations, of_weights
):
    """Gradients of the (image, head) pairs from `first` to before `end`: no two of them write to the same place."""
    real = value.dtype.type
    channels = value.shape[3]
    _, queries, heads, depth, points = weights.shape
    for item in range(first, end):
        b, h = item // heads, item % heads
        for q in range(queries):
            for level in range(depth):
                height, width, start = levels[level]
                for p in range(points):
                    x = locations[b, q, h, level, p, 0] * width - 0.5
                    y = locations[b, q, h, level, p, 1] * height - 0.5
                    if not (-1 < x < width and -1 < y < height):
                        continue
                    (left, right), (at_left, at_right), (left_slope, right_slope) = _neighbours(x, width)
                    (top, bottom), (at_top, at_bottom), (top_slope, bottom_slope) = _neighbours(y, height)
                    weight = weights[b, q, h, level, p]
                    upper, lower = start + top * width, start + bottom * width
                    w00, w01 = real(weight * at_top * at_left), real(weight * at_top * at_right)
                    w10, w11 = real(weight * at_bottom * at_left), real(weight * at_bottom * at_right)
                    d00, d01, d10, d11 = real(0), real(0), real(0), real(0)  # products of gradient and pixel
                    for c in range(channels):
                        g = grad[b, q, h, c]
                        d00 += g * value[b, upper + left, h, c]
                        d01 += g * value[b, upper + right, h, c]
                        d10 += g * value[b, lower + left, h, c]
                        d11 += g * value[b, lower + right, h, c]
                    for c in range(channels):
                        g = grad[b, q, h, c]
                        of_value[b, upper + left, h, c] += w00 * g
                        of_value[b, upper + right, h, c] += w01 * g
                        of_value[b, lower + left, h, c] += w10 * g
                        of_value[b, lower + right, h, c] += w11 * g
                    in_top = at_left * d00 + at_right * d01
                    in_bottom = at_left * d10 + at_right * d11
                    of_weights[b, q, h, level, p] = at_top * in_top + at_bottom * in_bottom
                    across = at_top * (left_slope * d00 + right_slope * d01)
                    across += at_bottom * (left_slope * d10 + right_slope * d11)
                    of_locations[b, q, h, level, p, 0] = weight * width * across
                    of_locations[b, q, h, level, p, 1] = (
                        weight * height * (top_slope * in_top + bottom_slope * in_bottom)
                    )
