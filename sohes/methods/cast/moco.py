"""MoCo-v3 (Chen, Xie and He, ICCV 2021): the projected encoder and the contrastive loss (README §3 and §4)."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from mmengine.dist import all_gather, all_reduce, get_rank
from torch import Tensor, nn
from torch.nn import functional as F

from sohes.backbones.projector import projection_head
from sohes.methods.cast.encoder import encode


class ProjectedEncoder(nn.Module):
    """An encoder of images and its projector.

    Args:
        encoder: a timm model without classifier, or a CAST.
        hidden_dim: width of the projector's two hidden layers.
        projection_dim: width of the projections.
    """

    def __init__(self, encoder: Any, *, hidden_dim: int, projection_dim: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.projector = projection_head(encoder.num_features, hidden_dim, projection_dim, layers=3)

    def forward(self, images: Tensor, superpixels: Tensor | None) -> tuple[Tensor, Tensor]:
        """Features (B, D) and their projections (B, d)."""
        features = encode(self.encoder, images, superpixels)
        return features, self.projector(features)


class ContrastiveTerm(NamedTuple):
    """Loss of a batch of queries, and the share of them that are nearest to their own key."""

    loss: Tensor
    accuracy: Tensor


def contrastive_term(queries: Tensor, keys: Tensor, temperature: float) -> ContrastiveTerm:
    """Cross-entropy of telling a query's own key among the keys of all processes, times 2 · `temperature`.

    Args:
        queries: (B, d), of any length.
        keys: (B, d), the same; no gradient goes through them.
        temperature: of the softmax over keys.
    """
    queries = F.normalize(queries.float(), dim=1)
    gathered = torch.cat(all_gather(F.normalize(keys.detach().float(), dim=1)))
    logits = queries @ gathered.T / temperature
    own = torch.arange(len(queries), device=queries.device) + get_rank() * len(queries)
    accuracy = (logits.detach().argmax(1) == own).float().mean()
    return ContrastiveTerm(2 * temperature * F.cross_entropy(logits, own), accuracy)


@torch.no_grad()
def feature_std(features: Tensor) -> Tensor:
    """Standard deviation of features (B, D), each brought to unit length, over all processes and dimensions together.

    The root of the mean squared distance to their mean: 0 where all are alike, 1 where they cancel out (README §6).
    """
    mean = F.normalize(features.float(), dim=1).mean(0)
    all_reduce(mean, op="mean")
    return (1 - mean.square().sum()).clamp(min=0).sqrt()
