"""The head that predicts which entity is part of which (README §2)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class AncestorHead(nn.Module):
    """P[i, j]: is query i's entity an ancestor of query j's? (README §2; the form is this project's.)

    With `rule` it starts as the coverage rule that made the labels (j lies in i by at least `theta_cover`, i in j by
    less), applied to the predicted masks. It learns how sharp that rule is and where its threshold lies for masks that
    are less exact, and from the queries what the masks do not say: two embeddings of each, one a role, for the relation
    is not symmetric. Without, the embeddings are all it has, and it starts by saying no to every pair.
    """

    def __init__(self, dim: int, hidden: int, *, rule: bool = True) -> None:
        super().__init__()
        self.as_ancestor = nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, hidden))
        self.as_descendant = nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, hidden))
        self.rule = rule
        if rule:
            self.threshold = nn.Parameter(torch.tensor(math.log(0.9 / 0.1)))
            self.sharpness = nn.Parameter(torch.tensor(2.0))
        else:
            self.bias = nn.Parameter(torch.tensor(math.log(0.05 / 0.95)))  # few pairs are related

    def forward(self, queries: Tensor, mask_logits: Tensor) -> Tensor:
        """Logits (B, N, N) float32 of queries (B, N, D) and their masks (B, N, h, w); the diagonal means nothing."""
        ancestor, descendant = self.as_ancestor(queries), self.as_descendant(queries)
        product = (ancestor @ descendant.transpose(1, 2)).float() / ancestor.shape[-1] ** 0.5
        if not self.rule:
            return product + self.bias
        covered = torch.logit(coverage(mask_logits), eps=0.01)
        rule = torch.minimum(covered - self.threshold, self.threshold - covered.transpose(1, 2))
        return self.sharpness * rule + product


@torch.no_grad()
def coverage(mask_logits: Tensor) -> Tensor:
    """C[i, j] (B, N, N) float32: the share of mask j that mask i covers, of logits (B, N, h, w); 0 of an empty mask."""
    with torch.autocast(mask_logits.device.type, enabled=False):  # areas beyond 256 px are not exact in bfloat16
        inside = (mask_logits > 0).flatten(2).float()
        return inside @ inside.transpose(1, 2) / inside.sum(-1).clamp(min=1)[:, None, :]
