"""CAST's forward pass as released (github.com/twke18/CAST at ec85adf), in plain words of our own, on weights of ours.

Segment means by scattered sums, a pass over the map each for features, positions and what is empty; attention with its
weights spelled out, as in the timm of that time; in the dense form maps that are interpolated to every pixel. Farthest
points are a loop as the graph library's, compiled as that is. What the code computes and throws away is left out.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from itertools import islice
from typing import Any

import numba
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sohes.backbones.cast.model import CAST
from sohes.backbones.cast.pooling import GraphPooling


class PublishedCAST(nn.Module):
    """The released arithmetic on a copy of a model.

    Args:
        model: with positions of the images' size; `mask_empty` is not heeded.
    """

    def __init__(self, model: CAST) -> None:
        super().__init__()
        self.model = copy.deepcopy(model)
        for module in self.model.modules():
            if hasattr(module, "fused_attn"):
                module.fused_attn = False

    def forward(
        self, images: Tensor, superpixels: Tensor, counts: Sequence[int], *, full_resolution: bool = False
    ) -> Tensor:
        """The class token (B, D), or the fused superpixels (B, N, D); arguments as those of `CAST.segment`."""
        model = self.model
        cells = model.patch_embed.proj(images).permute(0, 2, 3, 1)
        fusion = model.fusion is not None
        tokens, empty = average(cells, superpixels, positions_of(model), upsample=fusion, reduce=not full_resolution)
        cls = (model.cls_token + model.pos_embed[:, :1]).expand(len(images), -1, -1)
        blocks = iter(model.blocks)
        outputs, classes, logits = [], [], []
        for depth, pool, count in zip(model.depths, model.pools, counts, strict=True):
            x = torch.cat([cls, tokens], dim=1)
            for block in islice(blocks, depth):
                x = block(x)
            cls, tokens, level_logits = pooled(pool, x[:, :1], x[:, 1:], empty, count)
            outputs.append(x[:, 1:])
            classes.append(cls)
            logits.append(level_logits)
            empty = torch.zeros(tokens.shape[:2], dtype=torch.bool)
        if not fusion:
            read: Tensor = model.norm(x)[:, 0]
            return read
        return fused(model.fusion, outputs, classes, logits)


def positions_of(model: CAST) -> Tensor:
    """The table (1, h, w, D)."""
    return model.pos_embed[:, 1:].unflatten(1, model.patch_embed.grid_size)


def average(
    cells: Tensor, superpixels: Tensor, positions: Tensor, *, upsample: bool, reduce: bool
) -> tuple[Tensor, Tensor]:
    """Tokens (B, N, D) of a map (B, h, w, D), positions added, and which of them are empty (B, N).

    Args:
        cells: the stem's map.
        superpixels: (B, H, W) int64.
        positions: (1, h, w, D).
        upsample: whether maps are interpolated to the labels, as in the fusion form.
        reduce: whether the labels are first brought to the map's size.
    """
    if reduce:
        superpixels = F.interpolate(superpixels[:, None].float(), cells.shape[1:3], mode="nearest")[:, 0].long()
    size = superpixels.shape[1:]
    if upsample:
        cells = F.interpolate(cells.permute(0, 3, 1, 2), size=size, mode="bilinear").permute(0, 2, 3, 1)
        positions = F.interpolate(positions.permute(0, 3, 1, 2), size=size, mode="bicubic").permute(0, 2, 3, 1)
    tokens = segment_mean(cells, superpixels)
    empty = segment_mean(cells.new_ones(*superpixels.shape, 1), superpixels)[..., 0] <= 0.5
    return tokens + segment_mean(positions.expand(len(cells), -1, -1, -1), superpixels), empty


def segment_mean(cells: Tensor, labels: Tensor) -> Tensor:
    """Means (B, N, C) of a map (B, H, W, C) over labels (B, H, W)."""
    batch, channels, count = len(cells), cells.shape[-1], int(labels.max()) + 1
    rows = (torch.arange(batch)[:, None] * count + labels.flatten(1)).flatten()
    sizes = cells.new_zeros(batch * count).scatter_add_(0, rows, cells.new_ones(len(rows)))
    sums = cells.new_zeros(batch * count, channels)
    sums = sums.scatter_add_(0, rows[:, None].expand(-1, channels), cells.reshape(-1, channels))
    return (sums / torch.where(sizes == 0, 1, sizes)[:, None]).unflatten(0, (batch, count))


def pooled(pool: GraphPooling, cls: Tensor, tokens: Tensor, empty: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Class token (B, 1, D), tokens (B, K, D) and logits (B, N, K) after a pooling."""
    picked = farthest(tokens, empty, count)[..., None].expand(-1, -1, tokens.shape[2])
    affinity: Any = pool.affinity
    features = tokens + affinity.attn(affinity.norm(tokens))
    features = features - features.mean(dim=1, keepdim=True) + affinity.bias
    centres = F.normalize(features.gather(1, picked), dim=-1)
    logits = 5 * torch.einsum("bnd,bkd->bnk", F.normalize(features, dim=-1), centres)
    shares = logits.softmax(dim=-1)
    expanded = pool.expand(torch.cat([cls, tokens], dim=1))
    sizes = torch.einsum("bnk,bno->bko", shares, tokens.new_ones(*tokens.shape[:2], 1))
    groups = torch.einsum("bnk,bnd->bkd", shares, expanded[:, 1:]) / sizes
    reduced = pool.reduce(torch.cat([expanded[:, :1], groups], dim=1))
    return cls + reduced[:, :1], tokens.gather(1, picked) + reduced[:, 1:], logits


@torch.no_grad()
def farthest(tokens: Tensor, empty: Tensor, count: int) -> Tensor:
    """Tokens (B, K) of (B, N, D) that are farthest from each other, from their mean on; empty ones lie at the mean."""
    kept = (~empty)[..., None].to(tokens.dtype)
    mean = ((tokens * kept).sum(dim=1) / kept.sum(dim=1).clamp(min=1))[:, None]
    points = torch.cat([mean, torch.where(empty[..., None], mean, tokens)], dim=1)
    return torch.from_numpy(_sample(points.to(torch.float64).numpy(), count + 1))[:, 1:] - 1


@numba.njit(cache=True)
def _sample(points, count):  # type: ignore[no-untyped-def]
    picked = np.zeros((len(points), count), np.int64)
    for image in range(len(points)):
        nearest = np.full(points.shape[1], np.inf)
        for place in range(1, count):
            last, best, most = picked[image, place - 1], 0, -1.0
            for point in range(points.shape[1]):
                distance = 0.0
                for channel in range(points.shape[2]):
                    difference = points[image, point, channel] - points[image, last, channel]
                    distance += difference * difference
                nearest[point] = min(nearest[point], distance)
                if nearest[point] > most:
                    best, most = point, nearest[point]
            picked[image, place] = best
    return picked


def fused(fusion: Any, outputs: Sequence[Tensor], classes: Sequence[Tensor], logits: Sequence[Tensor]) -> Tensor:
    """Fused superpixels (B, N, D) of the blocks' outputs, the class tokens and logits of all levels."""
    joined, label = [outputs[0]], None
    for output, level in zip(outputs[1:], logits, strict=False):
        chosen = level.argmax(dim=-1)
        label = chosen if label is None else chosen.gather(1, label)
        joined.append(output.gather(1, label[..., None].expand(-1, -1, output.shape[2])))
    rows = torch.cat([torch.cat(list(classes), dim=-1), torch.cat(joined, dim=-1)], dim=1)
    rows = fusion.norm(rows.transpose(1, 2)).transpose(1, 2)
    projected: Tensor = fusion.proj(fusion.drop(rows))[:, 1:]
    return projected
