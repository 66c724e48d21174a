"""What a frozen backbone of dense features offers, whatever model is behind it (README §1)."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol, runtime_checkable

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


class SegmentFeatures(NamedTuple):
    """Segments of one image, K of them.

    Attributes:
        labels: (H, W) int64, from 0 on without gaps.
        features: (K, D) float32 of length 1, the mean over each segment's pixels, each of length 1 before.
    """

    labels: Tensor
    features: Tensor


@runtime_checkable
class SegmentingBackbone(DenseBackbone, Protocol):
    """A dense backbone that groups an image into segments on its way to the features."""

    def segments(self, images: Tensor, embed: Callable[[Tensor], Tensor]) -> list[SegmentFeatures]:
        """Its coarsest segments of RGB images (B, 3, H, W) float32 in [0, 1], one of `SegmentFeatures` an image.

        Args:
            images: as for a call.
            embed: what becomes of features (N, D) before they are averaged.

        Raises:
            ValueError: as a call.
        """
