"""Context-aware embedding: tokens seen in view of those close in appearance and in space (README §8).

Ours throughout; the paper's abstract says no more than that.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sohes.errors import ConfigError
from sohes.methods.fs4.context_settings import ContextSettings

_STEPS = 2  # of smoothing
_TIE = 1e-5  # weights are the same up to rounding


def grid_positions(size_hw: tuple[int, int], device: torch.device | str = "cpu") -> Tensor:
    """Centres (h * w, 2) of the cells of a grid, x and y in (0, 1), row by row.

    >>> grid_positions((1, 2))
    tensor([[0.2500, 0.5000],
            [0.7500, 0.5000]])
    """
    y, x = ((torch.arange(side, device=device) + 0.5) / side for side in size_hw)
    return torch.cartesian_prod(y, x).flip(1)


def squared_distances(positions: Tensor) -> Tensor:
    """(m, m) between positions (m, 2)."""
    return (positions[:, None] - positions).square().sum(2)


def neighbourhood(tokens: Tensor, positions: Tensor, settings: ContextSettings, *, neighbours: int) -> Tensor:
    """Weights (B, m, m) float32 of a token's neighbours, in a row each.

    A weight is exp((cosine - 1) / temperature) * exp(-distance² / (2 sigma²)), or one of the two. It is 0 for the token
    itself and for duplicates, and for all but the largest `neighbours` of a row; what ties with the last of them stays,
    so that nothing depends on the order of the tokens.

    Args:
        tokens: (B, m, D) float32, of length 1.
        positions: (m, 2) in [0, 1], the same for all B.
        settings: `cae` is not "none".
        neighbours: kept in a row.
    """
    cosines = tokens @ tokens.transpose(1, 2)
    exponents = torch.zeros_like(cosines)
    if settings.cae != "space":
        exponents += (cosines - 1) / settings.cae_temperature
    if settings.cae != "appearance":
        exponents -= squared_distances(positions) / (2 * settings.cae_sigma**2)
    itself = torch.eye(len(positions), dtype=torch.bool, device=tokens.device)
    weights = exponents.exp().masked_fill(itself | (cosines > 1 - settings.cae_duplicate), 0)
    if neighbours < len(positions):
        last = weights.topk(neighbours, dim=2).values[:, :, -1:]
        weights = weights.masked_fill(weights < last * (1 - _TIE), 0)
    return weights


def smoothed(tokens: Tensor, weights: Tensor, strength: float) -> Tensor:
    """Tokens (B, m, D) of length 1 that moved twice towards the weighted mean of their neighbours.

    Args:
        tokens: (B, m, D), of length 1.
        weights: (B, m, m), see `neighbourhood`; a token without neighbours stays.
        strength: of the mean, beside the token itself.
    """
    means = weights / weights.sum(2, keepdim=True).clamp(min=torch.finfo(weights.dtype).tiny)
    for _ in range(_STEPS):
        tokens = F.normalize(tokens + strength * (means @ tokens), dim=2)
    return tokens


@torch.no_grad()
def embed_region(tokens: Tensor, positions: Tensor, settings: ContextSettings) -> Tensor:
    """Embeddings (B, D) float32 of length 1: the mean of the smoothed tokens, weighed by their neighbours' support.

    Where no token has a neighbour, or `cae` is "none", all weigh the same.

    Args:
        tokens: (B, m, D) of B regions of one shape.
        positions: (m, 2) in the region, in [0, 1].
        settings: of the neighbourhood.
    """
    with torch.autocast(tokens.device.type, enabled=False):
        tokens = F.normalize(tokens.float(), dim=2)
        if settings.cae == "none":
            return F.normalize(tokens.mean(1), dim=1)
        weights = neighbourhood(tokens, positions, settings, neighbours=settings.cae_neighbours)
        support = weights.sum(2)
        support = torch.where(support.sum(1, keepdim=True) > 0, support, 1)
        tokens = smoothed(tokens, weights, settings.cae_strength)
        return F.normalize(torch.einsum("bm,bmd->bd", support / support.sum(1, keepdim=True), tokens), dim=1)


class ContextAttention(nn.Module):
    """The same in the network: tokens attend to their neighbours, and one query to all of them for the whole view.

    y_i = x_i + gamma W_o sum_j softmax_j(q_i k_j / sqrt(d) - distance² / (2 sigma²)) v_j, with a sigma for each head.
    gamma starts at 0, so that the network begins as it is without. `cae` leaves out one of the two terms.

    Args:
        dim: D, channels of the map.
        settings: `cae` is not "none".
        pool: whether there is a global feature.

    Raises:
        ConfigError: the channels cannot be shared out among the heads.
    """

    def __init__(self, dim: int, settings: ContextSettings, *, pool: bool = True) -> None:
        super().__init__()
        heads = settings.cae_heads
        if dim % heads:
            raise ConfigError(f"cae_heads={heads} does not divide the {dim} channels of the network; take 1")
        self.settings, self.heads = settings, heads
        self.queries_keys = nn.Linear(dim, 2 * dim) if settings.cae != "space" else None
        self.values = nn.Linear(dim, dim)
        self.out = nn.Linear(dim, dim, bias=False)  # so that a token without neighbours stays
        self.gamma = nn.Parameter(torch.zeros(1))
        self.log_sigma = None
        if settings.cae != "appearance":
            self.log_sigma = nn.Parameter(torch.full((heads,), settings.cae_sigma).log())
        self.pool = None
        if pool:
            self.query_token = nn.Parameter(torch.randn(1, 1, dim) / dim**0.5)
            self.pool = nn.MultiheadAttention(dim, heads, batch_first=True)

    def forward(self, maps: Tensor) -> tuple[Tensor, Tensor | None]:
        """The map in view of its neighbours (B, D, h, w), and the global feature (B, D), of a map (B, D, h, w)."""
        size_hw = maps.shape[-2:]
        positions = grid_positions((size_hw[0], size_hw[1]), maps.device)
        tokens = maps.flatten(2).transpose(1, 2)
        tokens = tokens + self.gamma * self.out(self._attended(tokens, positions))
        found = tokens.transpose(1, 2).unflatten(2, size_hw)
        if self.pool is None:
            return found, None
        query = self.query_token.expand(len(tokens), -1, -1)
        pooled, _ = self.pool(query, tokens, tokens, need_weights=False)
        return found, pooled[:, 0]

    def _attended(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """What the neighbours of tokens (B, m, D) say, (B, m, D); 0 for a token that has none."""
        with torch.no_grad(), torch.autocast(tokens.device.type, enabled=False):
            weights = neighbourhood(
                F.normalize(tokens.float(), dim=2),
                positions,
                self.settings,
                neighbours=self.settings.cae_attention_neighbours,
            )
            chosen = weights[:, None] > 0  # (B, 1, m, m)
            alone = ~chosen.any(dim=3, keepdim=True)
        values = self._by_head(self.values(tokens))
        queries = keys = torch.zeros_like(values)
        if self.queries_keys is not None:
            queries, keys = map(self._by_head, self.queries_keys(tokens).chunk(2, dim=2))
        nearness = tokens.new_zeros(())
        if self.log_sigma is not None:
            nearness = -squared_distances(positions) / (2 * (2 * self.log_sigma).exp()[:, None, None])
        bias = torch.where(chosen | alone, nearness, -torch.inf)  # a row of -inf would be NaN
        found = F.scaled_dot_product_attention(queries, keys, values, attn_mask=bias.to(queries.dtype))
        return found.masked_fill(alone, 0).transpose(1, 2).flatten(2)

    def _by_head(self, tokens: Tensor) -> Tensor:
        """(B, m, D) to (B, heads, m, D / heads)."""
        return tokens.unflatten(2, (self.heads, -1)).transpose(1, 2)
