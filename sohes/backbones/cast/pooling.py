"""Graph pooling: tokens go, in shares, to some of them that become the next level's tokens (README §8)."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from timm.layers import Attention
from torch import Tensor, nn

from sohes.backbones.cast.sampling import farthest_points, masked_mean

SHARPNESS = 5  # of the softmax over cosines [CAST]
DROPOUT = 0.1  # [CAST]
NORM_EPS = 1e-6  # [CAST]


class Pooled(NamedTuple):
    """N tokens pooled to K.

    Attributes:
        cls: (B, 1, D), the class token after the same layers.
        tokens: (B, K, D).
        logits: (B, N, K), 5 times the cosine of each token and each centroid; its softmax is the token's shares.
        picked: (B, K) int64, which tokens are the centroids.
    """

    cls: Tensor
    tokens: Tensor
    logits: Tensor
    picked: Tensor


class Affinity(nn.Module):
    """Features by whose cosines tokens are grouped: one attention, then centred at a learned point."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim, eps=NORM_EPS)
        self.attn = Attention(dim, num_heads=num_heads, qkv_bias=True)
        self.bias = nn.Parameter(torch.empty(dim).normal_(0, 1e-2))

    def forward(self, tokens: Tensor, empty: Tensor | None) -> Tensor:
        """(B, N, D) of tokens (B, N, D); empty ones (B, N) have no part in those of the others."""
        tokens = tokens + self.attn(self.norm(tokens), attn_mask=attention_mask(empty))
        return tokens - masked_mean(tokens, empty) + self.bias


class GraphPooling(nn.Module):
    """CAST's pooling of tokens.

    Args:
        dim: D, a multiple of num_heads.
        num_heads: of the attention between tokens.
        mask_empty: whether empty tokens are left out altogether. False is the released code's arithmetic, where they
            only cannot become centroids.
    """

    def __init__(self, dim: int, num_heads: int, *, mask_empty: bool = True) -> None:
        super().__init__()
        self.mask_empty = mask_empty
        self.affinity = Affinity(dim, num_heads)
        self.expand = nn.Sequential(
            nn.LayerNorm(dim), nn.Linear(dim, 4 * dim), nn.GELU(), nn.Dropout(DROPOUT)
        )  # eps 1e-5, as of `reduce` [CAST]
        self.reduce = nn.Sequential(nn.LayerNorm(4 * dim), nn.Linear(4 * dim, dim))

    def forward(self, cls: Tensor, tokens: Tensor, count: int, empty: Tensor | None = None) -> Pooled:
        """Pool tokens (B, N, D), of which those in `empty` (B, N) bool stand for nothing, to `count`.

        The class token (B, 1, D) is mixed with none of them.
        """
        picked = farthest_points(tokens, count, empty)
        masked = empty if self.mask_empty else None
        features = self.affinity(tokens, masked)
        with torch.autocast(tokens.device.type, enabled=False):  # half precision would make ties
            features = F.normalize(features.float(), dim=-1)
            logits = SHARPNESS * features @ gather_tokens(features, picked).transpose(1, 2)
            shares = logits.softmax(dim=-1)
            if masked is not None:
                shares = shares.masked_fill(masked.unsqueeze(2), 0)
            shares = shares / shares.sum(dim=1, keepdim=True)
        expanded = self.expand(torch.cat([cls, tokens], dim=1))
        groups = shares.transpose(1, 2) @ expanded[:, 1:].to(shares.dtype)
        reduced = self.reduce(torch.cat([expanded[:, :1], groups.to(expanded.dtype)], dim=1))
        return Pooled(cls + reduced[:, :1], gather_tokens(tokens, picked) + reduced[:, 1:], logits, picked)


def attention_mask(empty: Tensor | None, prefix: int = 0) -> Tensor | None:
    """Who is attended to, (B, 1, 1, prefix + N) bool: all but the empty tokens (B, N)."""
    return None if empty is None else ~F.pad(empty, (prefix, 0))[:, None, None]


def gather_tokens(tokens: Tensor, places: Tensor) -> Tensor:
    """(B, K, D), the tokens (B, N, D) at places (B, K)."""
    return tokens.gather(1, places.unsqueeze(2).expand(-1, -1, tokens.shape[2]))
