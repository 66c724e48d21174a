"""FS4's training step: the loss between the two views of a batch, and that of their regions (README §5 and §7)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from mmengine.model import BaseModel
from torch import Tensor
from torch.nn import functional as F

from sohes.backbones.timm_folder import input_normalisation
from sohes.methods.fs4.geometry import warp
from sohes.methods.fs4.losses import class_weights, view_losses
from sohes.methods.fs4.network import PixelMaps, build_network
from sohes.methods.fs4.pixel_labels import PixelLabels
from sohes.methods.fs4.pyramid import PyramidLabels
from sohes.methods.fs4.pyramid_loss import PyramidHeads, RegionView
from sohes.methods.fs4.settings import Fs4Config


class Fs4Module(BaseModel):
    """What mmengine's Runner trains.

    Args:
        trunk: a timm ViT or ResNet with its start weights, which the network takes over.
        config: sides, decoder and loss.

    Attributes:
        labels: of the running epoch; whoever trains sets them before its first step.
        heads: of the regions; None where there is no pyramid.

    Raises:
        ConfigError: see `build_network`.
    """

    mean: Tensor
    std: Tensor
    labels: PixelLabels | None = None

    def __init__(self, trunk: Any, config: Fs4Config) -> None:
        super().__init__()
        self.network = build_network(
            trunk,
            dim=config.embedding_dim,
            side=config.embedding_side,
            view_px=config.view_px,
            context=config,
            pool=config.pgg,
        )
        self.heads = PyramidHeads(trunk.num_features, config.embedding_dim, config) if config.pgg else None
        self.config = config
        self._regions: tuple[Tensor, Tensor] | None = None
        self._first_epoch = 0
        mean, std = input_normalisation(trunk)
        self.register_buffer("mean", mean, persistent=False)
        self.register_buffer("std", std, persistent=False)

    def begin_round(self, first_epoch: int, regions: PyramidLabels) -> None:
        """Take the regions' labels of a round that begins with this epoch; their clusters are new, so are the heads."""
        assert self.heads is not None
        self.heads.reset()
        self._first_epoch = first_epoch
        self._regions = (torch.from_numpy(regions.labels.astype(np.int64)), torch.from_numpy(regions.confidence))

    def embed(self, view_a: Tensor, view_b: Tensor, crop: Tensor) -> tuple[Tensor, Tensor]:
        """Embeddings (B, C, h, w) float32 of unit length of both views, cell on cell.

        View 1 is cut out of the image, view 2 out of the embeddings of the whole: so the network learns to embed a part
        as it embeds it in the whole.

        Args:
            view_a, view_b: (B, 3, S, S) uint8 RGB.
            crop: (B, 5), see `geometry`.
        """
        return _aligned(self._seen(view_a), self._seen(view_b), crop)

    def _seen(self, view: Tensor) -> PixelMaps:
        images = (view.to(self.mean.device).float() / 255 - self.mean) / self.std
        found: PixelMaps = self.network(images, bf16=self.config.bf16)
        return found

    def forward(
        self,
        view_a: Tensor,
        view_b: Tensor,
        crop: Tensor,
        index: Tensor,
        epoch: Tensor,
        mode: str = "loss",
        **_: Any,
    ) -> dict[str, Tensor]:
        """Loss of a batch from `views.collate`, and its parts."""
        assert self.labels is not None
        assert bool((epoch == self.labels.epoch).all())
        config, device = self.config, self.mean.device
        weights = class_weights(self.labels.counts, config.class_weight)
        seen = self._seen(view_a), self._seen(view_b)
        found = view_losses(
            _aligned(*seen, crop),
            self.labels.of(index.to(device)),
            self.labels.centroids.to(device),
            weights=None if weights is None else weights.to(device),
            temperature=config.temperature,
            mse=config.mse,
        )
        parts = {"within": found.within, "across": found.across} | ({} if found.mse is None else {"mse": found.mse})
        return {"loss_pixels": found.total, **self._region_losses(seen, crop, index, int(epoch[0])), **parts}

    def _region_losses(
        self, seen: tuple[PixelMaps, PixelMaps], crop: Tensor, index: Tensor, epoch: int
    ) -> dict[str, Tensor]:
        if self.heads is None:
            return {}
        assert self._regions is not None
        whole = torch.zeros_like(crop)
        whole[:, 2:4] = 1
        views = [
            RegionView(shown.to(self.mean.device), one.deep, one.pooled, one.embeddings)
            for shown, one in zip((crop, whole), seen, strict=True)
        ]
        labels, confidence = (table[index.cpu()].to(self.mean.device) for table in self._regions)
        found = self.heads(views, labels, confidence)
        losses = {"loss_pyramid": self.config.pyramid_weight(epoch - self._first_epoch) * found.pyramid}
        if self.config.pgg_link_weight:
            losses["loss_link"] = self.config.pgg_link_weight * found.link
        return losses


def _aligned(first: PixelMaps, second: PixelMaps, crop: Tensor) -> tuple[Tensor, Tensor]:
    """Embeddings of unit length of a part and of the same part of the whole."""
    side = first.embeddings.shape[-1]
    return F.normalize(first.embeddings, dim=1), F.normalize(warp(second.embeddings, crop, side), dim=1)
