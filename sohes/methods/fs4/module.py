"""FS4's training step: the loss between the two views of a batch (README §5)."""

from __future__ import annotations

from typing import Any

from mmengine.model import BaseModel
from torch import Tensor
from torch.nn import functional as F

from sohes.backbones.timm_folder import input_normalisation
from sohes.methods.fs4.geometry import warp
from sohes.methods.fs4.losses import class_weights, view_losses
from sohes.methods.fs4.network import build_network
from sohes.methods.fs4.pixel_labels import PixelLabels
from sohes.methods.fs4.settings import Fs4Config


class Fs4Module(BaseModel):
    """What mmengine's Runner trains.

    Args:
        trunk: a timm ViT or ResNet with its start weights, which the network takes over.
        config: sides, decoder and loss.

    Attributes:
        labels: of the running epoch; whoever trains sets them before its first step.

    Raises:
        ConfigError: see `build_network`.
    """

    mean: Tensor
    std: Tensor
    labels: PixelLabels | None = None

    def __init__(self, trunk: Any, config: Fs4Config) -> None:
        super().__init__()
        self.network = build_network(
            trunk, dim=config.embedding_dim, side=config.embedding_side, view_px=config.view_px
        )
        self.config = config
        mean, std = input_normalisation(trunk)
        self.register_buffer("mean", mean, persistent=False)
        self.register_buffer("std", std, persistent=False)

    def embed(self, view_a: Tensor, view_b: Tensor, crop: Tensor) -> tuple[Tensor, Tensor]:
        """Embeddings (B, C, h, w) float32 of unit length of both views, cell on cell.

        View 1 is cut out of the image, view 2 out of the embeddings of the whole: so the network learns to embed a part
        as it embeds it in the whole.

        Args:
            view_a, view_b: (B, 3, S, S) uint8 RGB.
            crop: (B, 5), see `geometry`.
        """
        first, second = (self.network(self._normalised(view), bf16=self.config.bf16)[0] for view in (view_a, view_b))
        return F.normalize(first, dim=1), F.normalize(warp(second, crop, first.shape[-1]), dim=1)

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
        found = view_losses(
            self.embed(view_a, view_b, crop),
            self.labels.of(index.to(device)),
            self.labels.centroids.to(device),
            weights=None if weights is None else weights.to(device),
            temperature=config.temperature,
            mse=config.mse,
        )
        parts = {"within": found.within, "across": found.across} | ({} if found.mse is None else {"mse": found.mse})
        return {"loss": found.total, **parts}

    def _normalised(self, view: Tensor) -> Tensor:
        return (view.to(self.mean.device).float() / 255 - self.mean) / self.std
