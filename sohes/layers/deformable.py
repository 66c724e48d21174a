"""Multi-scale deformable attention (Zhu et al., Deformable DETR, 2021), by the fastest correct path of each device.

CPUs run compiled loops, NVIDIA GPUs a Triton kernel; every other device runs `reference_deformable_attention` (README).
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from sohes.layers import deformable_cpu

_HAS_TRITON = importlib.util.find_spec("triton") is not None


def deformable_attention(
    value: Tensor, shapes: Sequence[tuple[int, int]], locations: Tensor, weights: Tensor
) -> Tensor:
    """Weighted sum of bilinear samples of feature maps, zero outside them; a pixel's centre is at (index + 0.5) / size.

    Differentiable once, in all three tensors. Sums are float32 whatever the value's format (float64 for float64). The
    value's gradient is summed in a fixed order on CPUs, by atomic additions in any order on GPUs.

    Args:
        value: (B, S, heads, C) floating; the maps' pixels in row-major order, one map after the other.
        shapes: (height, width) of the L maps, S pixels in all.
        locations: (B, Q, heads, L, P, 2) floating, x and y of the P samples of a map, in [0, 1] from edge to edge.
        weights: (B, Q, heads, L, P) floating.

    Returns:
        (B, Q, heads * C) in the value's format.

    Raises:
        ValueError: the shapes of the arguments do not fit together.
    """
    _check(value, shapes, locations, weights)
    kind = value.device.type
    if kind == "cpu" or (kind == "cuda" and _HAS_TRITON):
        precision = torch.promote_types(value.dtype, torch.float32)
        sides = [int(side) for shape in shapes for side in shape]
        return _attend(value, sides, locations.to(precision), weights.to(precision))
    return reference_deformable_attention(value, shapes, locations, weights)


def reference_deformable_attention(
    value: Tensor, shapes: Sequence[tuple[int, int]], locations: Tensor, weights: Tensor
) -> Tensor:
    """`deformable_attention` in plain tensor operations: the definition, for any device."""
    precision = torch.promote_types(value.dtype, torch.float32)
    batch, _, heads, _ = value.shape
    maps = value.to(precision).permute(0, 2, 3, 1).flatten(0, 1)  # (B * heads, C, S)
    grids = (2 * locations.to(precision) - 1).transpose(1, 2).flatten(0, 1)  # (B * heads, Q, L, P, 2), in [-1, 1]
    samples = [
        functional.grid_sample(level.unflatten(2, shape), grid, padding_mode="zeros", align_corners=False)
        for level, shape, grid in zip(
            maps.split([height * width for height, width in shapes], dim=2), shapes, grids.unbind(2), strict=True
        )
    ]
    weights = weights.to(precision).transpose(1, 2).flatten(0, 1).unsqueeze(1)  # (B * heads, 1, Q, L, P)
    output = (torch.stack(samples, dim=3) * weights).sum((3, 4))  # (B * heads, C, Q)
    return output.unflatten(0, (batch, heads)).permute(0, 3, 1, 2).flatten(2).to(value.dtype)


def _check(value: Tensor, shapes: Sequence[tuple[int, int]], locations: Tensor, weights: Tensor) -> None:
    batch, pixels, heads, _ = value.shape
    queries, points = weights.shape[1], weights.shape[-1]
    if sum(height * width for height, width in shapes) != pixels:
        raise ValueError(f"maps of {list(shapes)} do not have the value's {pixels} pixels")
    if weights.shape != (batch, queries, heads, len(shapes), points) or locations.shape != (*weights.shape, 2):
        raise ValueError(
            f"weights {tuple(weights.shape)} and locations {tuple(locations.shape)} do not fit a value "
            f"{tuple(value.shape)} of {len(shapes)} maps"
        )


# Operators rather than an autograd function, so that torch.compile sees one node instead of breaking the graph.
_ARGUMENTS = "Tensor value, SymInt[] sides, Tensor locations, Tensor weights"


@torch.library.custom_op(
    "sohes::deformable_attention", mutates_args=(), device_types="cpu", schema=f"({_ARGUMENTS}) -> Tensor"
)
def _attend(value: Tensor, sides: Sequence[int], locations: Tensor, weights: Tensor) -> Tensor:
    return deformable_cpu.forward(value, sides, locations, weights)


@torch.library.custom_op(
    "sohes::deformable_attention_backward",
    mutates_args=(),
    device_types="cpu",
    schema=f"(Tensor grad, {_ARGUMENTS}) -> (Tensor, Tensor, Tensor)",
)
def _attend_backward(
    grad: Tensor, value: Tensor, sides: Sequence[int], locations: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return deformable_cpu.backward(grad, value, sides, locations, weights)


@_attend.register_kernel("cuda")
def _attend_cuda(value: Tensor, sides: Sequence[int], locations: Tensor, weights: Tensor) -> Tensor:
    from sohes.layers import deformable_triton

    return deformable_triton.forward(value, sides, locations, weights)


@_attend_backward.register_kernel("cuda")
def _attend_backward_cuda(
    grad: Tensor, value: Tensor, sides: Sequence[int], locations: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    from sohes.layers import deformable_triton

    return deformable_triton.backward(grad, value, sides, locations, weights)


@_attend.register_fake
def _attend_fake(value: Tensor, sides: Sequence[int], locations: Tensor, weights: Tensor) -> Tensor:
    return value.new_empty(value.shape[0], weights.shape[1], value.shape[2] * value.shape[3])


@_attend_backward.register_fake
def _attend_backward_fake(
    grad: Tensor, value: Tensor, sides: Sequence[int], locations: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return tuple(tensor.new_empty(tensor.shape) for tensor in (value, locations, weights))  # type: ignore[return-value]


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    value, ctx.sides, locations, weights = inputs
    ctx.save_for_backward(value, locations, weights)


def _gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    value, locations, weights = ctx.saved_tensors
    of_value, of_locations, of_weights = _attend_backward(grad, value, ctx.sides, locations, weights)
    return of_value, None, of_locations, of_weights


_attend.register_autograd(_gradients, setup_context=_save)
