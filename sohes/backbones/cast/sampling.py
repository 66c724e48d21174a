"""Farthest point sampling among tokens, for which CAST's pooling needs centroids (README §8)."""

from __future__ import annotations

import torch
from torch import Tensor

_PICKED, _NEVER = -1, -2  # in place of a distance


@torch.no_grad()
def farthest_points(tokens: Tensor, count: int, empty: Tensor | None = None) -> Tensor:
    """Tokens of which each is the farthest from those before it, the first one the farthest from their mean.

    Distances are Euclidean, in float64; of equally far ones the first is taken [CAST]. No token is taken twice, unless
    there are fewer than are to be picked; then the first is taken again [ours].

    Args:
        tokens: (B, N, D).
        count: K, tokens to pick.
        empty: (B, N) bool, tokens that are neither picked nor part of the mean; in each image some are not.

    Returns:
        (B, K) int64.
    """
    points = torch.cat([masked_mean(tokens, empty), tokens], dim=1).double()
    # by products of matrices; exact enough in float64, and a third of the time of differences
    distances = torch.cdist(points, points, compute_mode="use_mm_for_euclid_dist")
    distances.diagonal(dim1=1, dim2=2).fill_(_PICKED)  # so what is picked is out
    images = torch.arange(len(points), device=points.device)
    nearest = distances[:, 0].clone()  # distance to the nearest of those picked, below 0 for what is no longer there
    nearest[:, 0] = _NEVER
    if empty is not None:
        nearest[:, 1:].masked_fill_(empty, _NEVER)
    picked = []
    for _ in range(count):
        pick = nearest.argmax(dim=1)
        nearest = torch.fmin(nearest, distances[images, pick])  # what is not finite is picked, and picked once
        picked.append(pick - 1)
    return torch.stack(picked, dim=1)


def masked_mean(tokens: Tensor, empty: Tensor | None) -> Tensor:
    """Mean (B, 1, D) of those of the tokens (B, N, D) that are not empty (B, N); of nothing, 0."""
    if empty is None:
        return tokens.mean(dim=1, keepdim=True)
    kept = (~empty).unsqueeze(2).to(tokens.dtype)
    return (tokens * kept).sum(dim=1, keepdim=True) / kept.sum(dim=1, keepdim=True).clamp(min=1)
