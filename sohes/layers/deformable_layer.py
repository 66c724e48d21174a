"""The layer around deformable attention: where each query looks, how much it weighs what it finds there."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sohes.layers.deformable import deformable_attention


class DeformableAttention(nn.Module):
    """Queries look at a few points of feature maps (Zhu et al., 2021); at first on a ring, with equal weights.

    Args:
        dim: channels of queries, tokens and output.
        heads: head m starts looking in direction 2 pi m / heads.
        levels: number of maps.
        points: of a head and map; point k starts k + 1 pixels away.
        value_ratio: width of what the heads read, against `dim`; rounded down to a whole number a head.
    """

    def __init__(self, dim: int, heads: int, levels: int, *, points: int = 4, value_ratio: float = 0.5) -> None:
        super().__init__()
        self.n_heads, self.n_levels, self.n_points = heads, levels, points
        width = max(1, int(dim * value_ratio) // heads) * heads
        self.sampling_offsets = nn.Linear(dim, heads * levels * points * 2)
        self.attention_weights = nn.Linear(dim, heads * levels * points)
        self.value_proj = nn.Linear(dim, width)
        self.output_proj = nn.Linear(width, dim)
        self._reset()

    @torch.no_grad()
    def _reset(self) -> None:
        for layer in (self.sampling_offsets, self.attention_weights):
            nn.init.zeros_(layer.weight)
        for layer in (self.attention_weights, self.value_proj, self.output_proj):
            nn.init.zeros_(layer.bias)
        for layer in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(layer.weight)
        angles = torch.arange(self.n_heads) * (2 * math.pi / self.n_heads)
        ring = torch.stack([angles.cos(), angles.sin()], -1)
        ring = ring / ring.abs().amax(-1, keepdim=True)  # onto the square around a pixel
        steps = torch.arange(1, self.n_points + 1)[:, None]
        offsets = (ring[:, None, None] * steps).expand(-1, self.n_levels, -1, -1)
        self.sampling_offsets.bias.copy_(offsets.flatten())

    def forward(self, queries: Tensor, references: Tensor, tokens: Tensor, shapes: Sequence[tuple[int, int]]) -> Tensor:
        """(B, Q, D) of queries (B, Q, D) at `references`, see `attend`, and tokens (B, S, D) of maps of `shapes`."""
        return attend(self, queries, references, tokens, shapes)[0]


def attend(
    layer: Any, queries: Tensor, references: Tensor, tokens: Tensor, shapes: Sequence[tuple[int, int]]
) -> tuple[Tensor, Tensor]:
    """Output and weights (B, Q, heads, L, P) of a layer with the parts of `DeformableAttention` or of `transformers`'.

    Args:
        layer: holds the four linear layers and the numbers of heads, levels and points.
        queries: (B, Q, D).
        references: (B or 1, Q, L or 1, 2), the x and y in [0, 1] that the queries' offsets, in pixels, start from.
        tokens: (B, S, D), the maps' pixels in row-major order, one map after the other.
        shapes: (height, width) of the L maps.
    """
    grid = (layer.n_levels, layer.n_points)
    value = layer.value_proj(tokens).unflatten(-1, (layer.n_heads, -1))
    offsets = layer.sampling_offsets(queries).unflatten(-1, (layer.n_heads, *grid, 2))
    weights = layer.attention_weights(queries).unflatten(-1, (layer.n_heads, -1)).softmax(-1).unflatten(-1, grid)
    sizes = torch.tensor([[width, height] for height, width in shapes], dtype=torch.float32, device=queries.device)
    locations = references[:, :, None, :, None] + offsets / sizes[:, None]
    return layer.output_proj(deformable_attention(value, shapes, locations, weights)), weights


def pixel_centres(shapes: Sequence[tuple[int, int]], device: torch.device) -> Tensor:
    """(1, S, 1, 2) float32: x and y in [0, 1] of the pixels of maps, in row-major order, one map after the other."""
    centres = []
    for height, width in shapes:
        y, x = (torch.arange(side, dtype=torch.float32, device=device).add(0.5) / side for side in (height, width))
        centres.append(torch.stack(torch.meshgrid(x, y, indexing="xy"), -1).flatten(0, 1))
    return torch.cat(centres)[None, :, None]
