"""What a frozen backbone of dense features offers, whatever model is behind it (README §1)."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from sohes.backbones.provenance import Provenance


class DenseFeatures(NamedTuple):
    """Features of a batch of images, float32.

    Attributes:
        map: (B, D, h, w), a vector per patch.
        cls_token: (B, D), the same of the class token; None where the model has none.
    """

    map: Tensor
    cls_token: Tensor | None


class DenseBackbone(Protocol):
    """A frozen model that turns images into feature maps; several threads may call it at once.

    Attributes:
        patch_size: side of a patch, px.
        embed_dim: D, channels of the features.
        feature: what the features are, in a word for records: "key", "token".
        provenance: where the weights come from.
    """

    patch_size: int
    embed_dim: int
    feature: str
    provenance: Provenance

    @property
    def device(self) -> torch.device:
        """Where the model is, and wants its images."""

    def __call__(self, images: Tensor) -> DenseFeatures:
        """Features of RGB images (B, 3, H, W) float32 in [0, 1]; what else a model wants of its input, it does itself.

        Raises:
            ValueError: H or W is not a multiple of the patch.
        """

    def weights_digest(self) -> str:
        """Hash of names and values of the weights: the same wherever they were read from."""
