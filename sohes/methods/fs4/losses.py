"""The loss between two views: each is to say its own cluster labels, and those of the other (README §5)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from mmengine.dist import all_reduce, get_world_size
from torch import Tensor
from torch.nn import functional as F


class ViewLosses(NamedTuple):
    """Scalars of a batch. `total` is what is minimised: the mean of `within` and `across`, or of that and `mse`."""

    total: Tensor
    within: Tensor
    across: Tensor
    mse: Tensor | None


def view_losses(
    embeddings: tuple[Tensor, Tensor],
    labels: tuple[Tensor, Tensor],
    centroids: Tensor,
    *,
    weights: Tensor | None,
    temperature: float,
    mse: bool,
) -> ViewLosses:
    """Cross-entropy of clusters, with the centroids as classifier.

    Args:
        embeddings: of the views, (B, C, h, w) float32 of unit length each, cell on cell.
        labels: of the views, (B, h, w) int64 each.
        centroids: (2, K, C) of the views' clusters, which have nothing to do with one another.
        weights: (2, K) of the clusters, see `class_weights`; None: all alike.
        temperature: of the softmax.
        mse: whether to average with the squared difference of the embeddings.
    """

    def entropy(shown: int, said: int) -> Tensor:
        """Of the clusters of view `said`, in the embeddings of view `shown`."""
        weight = None if weights is None else weights[said]
        summed = F.cross_entropy(logits[shown][:, said], labels[said].flatten(1), weight, reduction="sum")
        return summed / _total_weight(labels[said], weight)

    with torch.autocast(embeddings[0].device.type, enabled=False):
        classifier = centroids.flatten(0, 1) / temperature  # of both views at once: embeddings are read once
        logits = [(classifier @ maps.flatten(2)).unflatten(1, centroids.shape[:2]) for maps in embeddings]
        within = (entropy(0, 0) + entropy(1, 1)) / 2
        across = (entropy(0, 1) + entropy(1, 0)) / 2
        total = (within + across) / 2
        if not mse:
            return ViewLosses(total, within, across, None)
        difference = F.mse_loss(*embeddings)
        return ViewLosses((total + difference) / 2, within, across, difference)


def _total_weight(labels: Tensor, weight: Tensor | None) -> Tensor:
    """Mean over the processes of the pixels' weight, since the mean of their losses is minimised."""
    total = torch.tensor(float(labels.numel()), device=labels.device) if weight is None else weight[labels].sum()
    all_reduce(total)
    return (total / get_world_size()).clamp(min=torch.finfo(torch.float32).tiny)


def class_weights(counts: Tensor, kind: str) -> Tensor | None:
    """Weights (2, K) float32 of clusters by how many pixels (2, K) they hold; see `PixelSettings.class_weight`."""
    if kind == "none":
        return None
    shares = (counts / counts.sum(1, keepdim=True)).float()
    return shares if kind == "freq" else torch.where(shares > 0, shares.clamp(min=1e-12).rsqrt(), 0)
