"""The loss against labels of regions, and the link between them and the pixels (README §7)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from mmengine.dist import all_reduce, get_world_size
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import roi_align

from sohes.methods.fs4.geometry import boxes_in_view
from sohes.methods.fs4.pyramid_settings import PyramidSettings
from sohes.methods.fs4.regions import cell_boxes, level_slices

_CELLS = 3  # along a side of an aligned region
_STD = 0.02  # of the heads' weights at the start


class RegionView(NamedTuple):
    """What the network says of one view of a batch.

    Attributes:
        crops: (B, 5), what the view shows of the base square, see `boxes_in_view`.
        maps: (B, D, h, w), the trunk's last map.
        pooled: (B, D), the global feature for the first level; None: the mean of the map, as for the others.
        embeddings: (B, C, h', w') of the view's pixels, before any warp.
    """

    crops: Tensor
    maps: Tensor
    pooled: Tensor | None
    embeddings: Tensor


class PyramidLoss(NamedTuple):
    """Cross-entropy of the regions, weighed by level; that of the link, 0 where there is none."""

    pyramid: Tensor
    link: Tensor


class PyramidHeads(nn.Module):
    """Classifiers of regions, one for each level, and of images by the mean of their pixels.

    Args:
        dim: D, channels of the trunk's last map.
        embedding_dim: C, channels of a pixel's embedding.
        settings: grids, clusters and weights; `pgg_link_weight=0`: no link.
    """

    boxes: Tensor

    def __init__(self, dim: int, embedding_dim: int, settings: PyramidSettings) -> None:
        super().__init__()
        self.settings = settings
        self.weights = nn.ParameterList(torch.empty(count, dim) for count in settings.pgg_clusters)
        self.link = None
        if settings.pgg_link_weight:
            self.link = nn.Parameter(torch.empty(settings.pgg_clusters[0], embedding_dim))
        self.register_buffer("boxes", cell_boxes(settings.pgg_grids, settings.pgg_overlap), persistent=False)
        self.reset()

    def reset(self) -> None:
        """Random weights, as at the start: the clusters of a new round are others."""
        for weight in self.parameters():
            nn.init.trunc_normal_(weight, std=_STD)

    def forward(self, views: Sequence[RegionView], labels: Tensor, confidence: Tensor) -> PyramidLoss:
        """Mean of the losses of the views; float32.

        In a view and level it is the mean of the cross-entropy over the regions of all processes, weighed by their
        confidence; a region counts if the view shows enough of it. A level of which nothing counts adds 0.

        Args:
            views: of the same images.
            labels: (B, R) int64, regions in the order of `cell_boxes`.
            confidence: (B, R).
        """
        with torch.autocast(labels.device.type, enabled=False):
            found = [self._view_loss(view, labels, confidence.float()) for view in views]
        return PyramidLoss(*(torch.stack(terms).mean() for terms in zip(*found, strict=True)))

    def _view_loss(self, view: RegionView, labels: Tensor, confidence: Tensor) -> PyramidLoss:
        settings = self.settings
        boxes, visible = boxes_in_view(self.boxes, view.crops)
        weights = confidence * (visible >= settings.pgg_min_visible)
        vectors = region_vectors(view.maps, boxes)
        if view.pooled is not None:  # the first level is one region
            vectors = torch.cat([view.pooled.float()[:, None], vectors[:, 1:]], dim=1)
        loss = vectors.new_zeros(())
        for level, weight, classifier in zip(
            level_slices(settings.pgg_grids), settings.pgg_level_weights, self.weights, strict=True
        ):
            loss = loss + weight * _mean_entropy(
                self._logits(vectors[:, level], classifier), labels[:, level], weights[:, level]
            )
        if self.link is None:
            return PyramidLoss(loss, torch.zeros_like(loss))
        mean = F.normalize(view.embeddings.float(), dim=1).mean((2, 3))
        return PyramidLoss(loss, _mean_entropy(self._logits(mean[:, None], self.link), labels[:, :1], weights[:, :1]))

    def _logits(self, vectors: Tensor, classifier: Tensor) -> Tensor:
        """(B, c, K) of vectors (B, c, D) and class vectors (K, D)."""
        cosines = F.normalize(vectors, dim=2) @ F.normalize(classifier, dim=1).T
        return cosines / self.settings.pgg_temperature


def region_vectors(maps: Tensor, boxes: Tensor) -> Tensor:
    """Means (B, R, D) float32 of regions: RoIAlign to 3 x 3 cells, in float32, and their mean.

    Args:
        maps: (B, D, h, w).
        boxes: (B, R, 4) xyxy, fractions of the map.
    """
    height, width = maps.shape[2:]
    scale = boxes.new_tensor([width, height, width, height])
    with torch.autocast(maps.device.type, enabled=False):
        found = roi_align(maps.float(), list((boxes * scale).float()), _CELLS, aligned=True)
    return found.mean((2, 3)).unflatten(0, boxes.shape[:2])


def _mean_entropy(logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """Weighted mean, over the regions of all processes, of the cross-entropy of logits (B, c, K) and labels (B, c)."""
    entropy = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").unflatten(0, labels.shape)
    total = weights.sum()
    all_reduce(total)
    total = total.clamp(min=torch.finfo(total.dtype).tiny)
    return (entropy * weights).sum() * get_world_size() / total  # the processes' mean is minimised
