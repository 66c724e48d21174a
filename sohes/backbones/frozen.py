"""What frozen timm models have in common as dense backbones (README §1)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sohes.backbones.provenance import Provenance
from sohes.backbones.timm_folder import BackboneFolder, TimmModel, input_normalisation, weights_digest
from sohes.errors import ConfigError

FEATURES = ("key", "token")


class FrozenTimm(nn.Module):
    """A frozen timm model, whose own normalisation of the input is part of it.

    Args:
        folder: a loaded timm folder.
        feature: "key" or "token".
        embed_dim: channels of the map.

    Raises:
        ConfigError: no such feature.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, folder: BackboneFolder, *, feature: str, embed_dim: int) -> None:
        super().__init__()
        if feature not in FEATURES:
            raise ConfigError(f"feature must be one of {FEATURES}, not '{feature}'")
        self.model: TimmModel = folder.model.eval().requires_grad_(False)
        self.provenance: Provenance = folder.provenance
        self.feature, self.patch_size, self.embed_dim = feature, folder.patch_px, embed_dim
        mean, std = input_normalisation(self.model)
        self.register_buffer("mean", mean, persistent=False)
        self.register_buffer("std", std, persistent=False)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.mean.device

    def weights_digest(self) -> str:
        """See `timm_folder.weights_digest`."""
        return weights_digest(self.model)

    def normalised(self, images: Tensor) -> Tensor:
        """What the model wants of RGB images (B, 3, H, W) in [0, 1].

        Raises:
            ValueError: H or W is not a multiple of the patch.
        """
        height, width = images.shape[-2:]
        if height % self.patch_size or width % self.patch_size:
            raise ValueError(f"input of {height}x{width} px is not a multiple of the patch size {self.patch_size}")
        return (images - self.mean) / self.std
