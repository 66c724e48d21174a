"""The training step of MoCo-v3 (README §3 and §4)."""

from __future__ import annotations

import copy
from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch import Tensor, nn

from sohes.backbones.precision import autocast
from sohes.backbones.projector import projection_head
from sohes.backbones.timm_folder import input_normalisation
from sohes.engine.ema import update_ema
from sohes.engine.hooks import bare
from sohes.engine.schedules import cosine
from sohes.methods.cast.encoder import check_encoder
from sohes.methods.cast.moco import ProjectedEncoder, contrastive_term, feature_std
from sohes.methods.cast.settings import ContrastSettings


class MocoModule(BaseModel):
    """What mmengine's Runner trains: query encoder and predictor; the key encoder follows.

    Args:
        encoder: see `ProjectedEncoder`; with its start weights, trained in place.
        settings: heads, loss and key encoder.
        iterations: steps of the training.
        bf16: see `CastConfig`.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, encoder: Any, settings: ContrastSettings, *, iterations: int, bf16: bool = True) -> None:
        super().__init__()
        hidden_dim, projection_dim = settings.hidden_dim, settings.projection_dim
        self.query = ProjectedEncoder(encoder, hidden_dim=hidden_dim, projection_dim=projection_dim)
        self.predictor = projection_head(projection_dim, hidden_dim, projection_dim, layers=2)
        self.key = copy.deepcopy(self.query).requires_grad_(
            False
        )  # trains as to batch norm and dropout, as in the code
        self.settings, self.iterations, self.bf16 = settings, iterations, bf16
        mean, std = input_normalisation(encoder)
        self.register_buffer("mean", mean, persistent=False)
        self.register_buffer("std", std, persistent=False)

    def check(self, images: Tensor, superpixels: Tensor | None = None) -> None:
        """Make sure that the encoder takes the views of a batch from `views.collate`.

        Raises:
            ConfigError: it does not; the message is its own.
        """
        check_encoder(self.query, *self._views(images, superpixels)[0])

    def follow(self, step: int) -> None:
        """Move the key encoder towards the query encoder, before this step's keys are computed."""
        update_ema(self.key, self.query, cosine(self.settings.momentum, 1.0, step, self.iterations))

    def forward(
        self, images: Tensor, superpixels: Tensor | None = None, mode: str = "loss", **_: Any
    ) -> dict[str, Tensor]:
        """Loss of a batch from `views.collate`, and what shows a collapse (README §6)."""
        views = self._views(images, superpixels)
        # a view at a time, so that batch norms see one view, as in the code
        with autocast(images.device, enabled=self.bf16):
            with torch.no_grad():
                keys = [self.key(*view)[1] for view in views]
            features, projections = zip(*(self.query(*view) for view in views), strict=True)
            queries = [self.predictor(projection) for projection in projections]
        temperature = self.settings.temperature
        terms = [contrastive_term(queries[one], keys[1 - one], temperature) for one in range(2)]
        return {
            "loss": terms[0].loss + terms[1].loss,
            "accuracy": (terms[0].accuracy + terms[1].accuracy) / 2,
            "feature_std": feature_std(torch.cat(features)),
        }

    def encoders(self) -> dict[str, nn.Module]:
        """The encoder, by the folder that it is left in."""
        return {"backbone": self.query.encoder}

    def heads(self) -> dict[str, nn.Module]:
        """Projector and predictor."""
        return {"projector": self.query.projector, "predictor": self.predictor}

    def _views(self, images: Tensor, superpixels: Tensor | None) -> list[tuple[Tensor, Tensor | None]]:
        """Normalised images (B, 3, S, S) and superpixels (B, S, S) of each view."""
        pixels = (images.transpose(0, 1).float() / 255 - self.mean) / self.std
        labels = (None, None) if superpixels is None else superpixels.transpose(0, 1).long()
        return list(zip(pixels, labels, strict=True))


class KeyHook(Hook):
    """Calls the model's `follow(step)` before each step."""

    def before_train_iter(self, runner: Runner, batch_idx: int, *args: Any, **kwargs: Any) -> None:
        bare(runner.model).follow(batch_idx)
