"""Multi-scale deformable attention on GPUs: one Triton kernel for each direction (README §3).

A program takes a few (image, query, head) triples, all channels of a head at once; sums are kept in the precision of
the locations. The gradient of the value is collected by atomic additions, whose order is not fixed.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 16  # triples of a program


def forward(value: Tensor, sides: Sequence[int], locations: Tensor, weights: Tensor) -> Tensor:
    """Output (B, Q, heads * C) in the value's format; arguments as of `deformable_attention`, sides flattened."""
    batch, queries, heads, _, _ = weights.shape
    output = torch.empty(batch, queries, heads * value.shape[3], dtype=value.dtype, device=value.device)
    pointers = (value.contiguous(), _levels(tuple(sides), value.device), locations.contiguous(), weights.contiguous())
    with torch.cuda.device_of(value):  # Triton would launch on the current device
        forward_kernel[_grid(weights)](*pointers, output, **_sizes(value, weights))
    return output


def backward(
    grad: Tensor, value: Tensor, sides: Sequence[int], locations: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of value, locations and weights, for one of the output."""
    value, locations, weights = value.contiguous(), locations.contiguous(), weights.contiguous()
    of_value = torch.zeros(value.shape, dtype=locations.dtype, device=value.device)
    of_locations, of_weights = torch.empty_like(locations), torch.empty_like(weights)
    pointers = (grad.contiguous(), value, _levels(tuple(sides), value.device), locations, weights)
    with torch.cuda.device_of(value):
        backward_kernel[_grid(weights)](*pointers, of_value, of_locations, of_weights, **_sizes(value, weights))
    return of_value.to(value.dtype), of_locations, of_weights


@lru_cache(maxsize=256)
def _levels(sides: tuple[int, ...], device: torch.device) -> Tensor:
    """(L, 3) int32: height, width and first pixel of every map; kept, since a copy to the GPU would make it wait."""
    shapes = torch.tensor(sides, dtype=torch.int32).view(-1, 2)
    pixels = shapes.prod(1, dtype=torch.int32)
    return torch.cat([shapes, (pixels.cumsum(0, dtype=torch.int32) - pixels)[:, None]], dim=1).to(device)


def _grid(weights: Tensor) -> tuple[int]:
    return (triton.cdiv(weights.shape[0] * weights.shape[1] * weights.shape[2], BLOCK),)


def _sizes(value: Tensor, weights: Tensor) -> dict[str, int]:
    batch, queries, heads, depth, points = weights.shape
    return {
        "triples": batch * queries * heads,
        "queries": queries,
        "pixels": value.shape[1],
        "HEADS": heads,
        "DEPTH": depth,
        "POINTS": points,
        "CHANNELS": value.shape[3],
        "CHANNEL_BLOCK": triton.next_power_of_2(value.shape[3]),
        "BLOCK": BLOCK,
    }


@triton.jit
def neighbours(position, size, within):  # type: ignore[no-untyped-def]
    """The pixel below a position in one direction, its share in the sample, and whether it and the next one exist."""
    position = tl.where(within, position, 0.0)
    below = tl.floor(position)
    first = below.to(tl.int32)
    return first, 1 - (position - below), within & (first >= 0), within & (first + 1 < size)


@triton.jit
def locate(levels, level, locations, at, inside):  # type: ignore[no-untyped-def]
    """Height and width of a map, the pixel above and to the left of a sample, and both directions' neighbours."""
    height, width, start = tl.load(levels + 3 * level), tl.load(levels + 3 * level + 1), tl.load(levels + 3 * level + 2)
    x = tl.load(locations + 2 * at, inside, -1.0) * width - 0.5
    y = tl.load(locations + 2 * at + 1, inside, -1.0) * height - 0.5
    within = inside & (x > -1) & (x < width) & (y > -1) & (y < height)
    left, at_left, has_left, has_right = neighbours(x, width, within)
    top, at_top, has_top, has_bottom = neighbours(y, height, within)
    return height, width, start + top * width + left, at_left, has_left, has_right, at_top, has_top, has_bottom


@triton.jit
def forward_kernel(  # type: ignore[no-untyped-def]
    value, levels, locations, weights, output, triples, queries, pixels,
    HEADS: tl.constexpr, DEPTH: tl.constexpr, POINTS: tl.constexpr, CHANNELS: tl.constexpr,
    CHANNEL_BLOCK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Every program writes the output of `BLOCK` triples."""
    triple = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    channel = tl.arange(0, CHANNEL_BLOCK)[None, :]
    inside = triple < triples
    image, head = triple // (queries * HEADS), triple % HEADS
    real = locations.dtype.element_ty
    total = tl.zeros([BLOCK, CHANNEL_BLOCK], real)
    for sample in range(DEPTH * POINTS):
        at = triple * (DEPTH * POINTS) + sample
        weight = tl.load(weights + at, inside, 0.0)
        _, width, pixel, at_left, has_left, has_right, at_top, has_top, has_bottom = locate(
            levels, sample // POINTS, locations, at, inside
        )
        place = ((image * pixels + pixel) * HEADS + head)[:, None] * CHANNELS + channel
        step: tl.constexpr = HEADS * CHANNELS
        for down in tl.static_range(2):
            for right in tl.static_range(2):
                exists = (has_bottom if down else has_top) & (has_right if right else has_left)
                mask = exists[:, None] & (channel < CHANNELS)
                share = (1 - at_top if down else at_top) * (1 - at_left if right else at_left)
                corner = tl.load(value + place + (down * width + right) * step, mask, 0.0)
                total += (weight * share)[:, None] * corner.to(real)
    tl.store(output + triple[:, None] * CHANNELS + channel, total, inside[:, None] & (channel < CHANNELS))


@triton.jit
def backward_kernel(  # type: ignore[no-untyped-def]
    grad, value, levels, locations, weights, of_value, of_locations, of_weights, triples, queries, pixels,
    HEADS: tl.constexpr, DEPTH: tl.constexpr, POINTS: tl.constexpr, CHANNELS: tl.constexpr,
    CHANNEL_BLOCK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Every program writes the gradients of `BLOCK` triples' locations and weights, and adds to the value's."""
    triple = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    channel = tl.arange(0, CHANNEL_BLOCK)[None, :]
    inside = triple < triples
    image, head = triple // (queries * HEADS), triple % HEADS
    real = locations.dtype.element_ty
    given = tl.load(grad + triple[:, None] * CHANNELS + channel, inside[:, None] & (channel < CHANNELS), 0.0).to(real)
    for sample in range(DEPTH * POINTS):
        at = triple * (DEPTH * POINTS) + sample
        weight = tl.load(weights + at, inside, 0.0)
        height, width, pixel, at_left, has_left, has_right, at_top, has_top, has_bottom = locate(
            levels, sample // POINTS, locations, at, inside
        )
        place = ((image * pixels + pixel) * HEADS + head)[:, None] * CHANNELS + channel
        step: tl.constexpr = HEADS * CHANNELS
        of_weight = tl.zeros([BLOCK], real)
        across = tl.zeros([BLOCK], real)
        along = tl.zeros([BLOCK], real)
        for down in tl.static_range(2):
            for right in tl.static_range(2):
                exists = (has_bottom if down else has_top) & (has_right if right else has_left)
                mask = exists[:, None] & (channel < CHANNELS)
                x_share = 1 - at_left if right else at_left
                y_share = 1 - at_top if down else at_top
                corner = place + (down * width + right) * step
                product = tl.sum(given * tl.load(value + corner, mask, 0.0).to(real), axis=1)
                tl.atomic_add(of_value + corner, (weight * x_share * y_share)[:, None] * given, mask, sem="relaxed")
                of_weight += x_share * y_share * product
                across += (y_share if right else -y_share) * product
                along += (x_share if down else -x_share) * product
        tl.store(of_weights + at, of_weight, inside)
        tl.store(of_locations + 2 * at, weight * width * across, inside)
        tl.store(of_locations + 2 * at + 1, weight * height * along, inside)
