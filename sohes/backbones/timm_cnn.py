"""Dense features of any timm ResNet at any input size (README §7)."""

from __future__ import annotations

import torch
from torch import Tensor

from sohes.backbones.dense import DenseFeatures
from sohes.backbones.frozen import FrozenTimm
from sohes.backbones.precision import autocast
from sohes.backbones.timm_folder import BackboneFolder
from sohes.errors import ConfigError


class DenseCNN(FrozenTimm):
    """A frozen timm ResNet as a `DenseBackbone`: its features are the map of the last stage, without a class token.

    Its patch is the stride of that map, 32 px unless the ResNet is dilated. Batch norm uses its running statistics.

    Args:
        folder: a loaded timm folder.
        feature: "token", what a model puts out, be it a ViT or a ResNet.

    Raises:
        ConfigError: keys are asked for, which only attention has.
    """

    def __init__(self, folder: BackboneFolder, *, feature: str = "token") -> None:
        super().__init__(folder, feature=feature, embed_dim=folder.model.num_features)
        if feature == "key":
            raise ConfigError(
                f"{self.provenance.timm_name} is a ResNet and has no keys; use explore.feature=token, or a ViT"
            )

    @torch.no_grad()
    def forward(self, images: Tensor) -> DenseFeatures:
        """Features of RGB images (B, 3, H, W) in [0, 1]; H and W multiples of the patch."""
        with autocast(images.device):
            maps = self.model.forward_features(self.normalised(images))
        return DenseFeatures(maps.float(), None)
