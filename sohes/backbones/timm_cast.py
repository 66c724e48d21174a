"""Dense features of CAST at any input size (README §8)."""

from __future__ import annotations

import torch
from torch import Tensor

from sohes.backbones.cast.pooling import gather_tokens
from sohes.backbones.dense import DenseFeatures
from sohes.backbones.frozen import FrozenTimm
from sohes.backbones.precision import autocast
from sohes.backbones.timm_folder import BackboneFolder
from sohes.errors import ConfigError


class DenseCAST(FrozenTimm):
    """A frozen CAST as a `DenseBackbone`: each cell of the stem's grid, 8 px, has the feature of its superpixel.

    That is the fused one of a model with fusion; of one without, the outputs of the four levels, each of length 1, side
    by side. Superpixels are found on the CPU, by the model's own settings.

    Args:
        folder: a loaded timm folder.
        feature: "token", what a model puts out, be it a ViT or CAST.

    Raises:
        ConfigError: keys are asked for, which no layer shares among all superpixels.
    """

    def __init__(self, folder: BackboneFolder, *, feature: str = "token") -> None:
        model = folder.model
        joined = 1 if model.fusion else len(model.depths)
        super().__init__(folder, feature=feature, embed_dim=joined * model.embed_dim)
        if feature == "key":
            raise ConfigError(
                f"{self.provenance.timm_name} has no keys of all superpixels; use explore.feature=token, or a ViT"
            )

    @torch.no_grad()
    def forward(self, images: Tensor) -> DenseFeatures:
        """Features of RGB images (B, 3, H, W) in [0, 1]; H and W multiples of 8.

        Raises:
            ValueError: they are not.
            ConfigError: the images are too small for superpixels, or have fewer than the model has tokens.
        """
        images = self.normalised(images)
        try:
            with autocast(images.device):
                found = self.model.segment(images, full_resolution=self.model.fusion is not None)
        except ValueError as error:  # the size is a setting of whoever asks: probe.size_px, explore.size_local, ...
            raise ConfigError(f"{self.provenance.timm_name}: {error}") from error
        cells = found.superpixels[:, :: self.patch_size, :: self.patch_size]
        features = gather_tokens(found.features().float(), cells.flatten(1)).transpose(1, 2)
        return DenseFeatures(features.unflatten(2, cells.shape[1:]), None if found.cls is None else found.cls.float())
