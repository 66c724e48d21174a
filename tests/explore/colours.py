"""A backbone whose features are known: what a patch looks like."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from sohes.backbones.dense import DenseFeatures
from sohes.backbones.provenance import RANDOM, Provenance


class Colours:
    """A `DenseBackbone`, and nothing more: a patch's feature is its mean colour. It keeps the shapes of its batches."""

    patch_size, embed_dim, feature = 8, 3, "key"
    provenance = Provenance(timm_name="colours", steps=(RANDOM,))
    device = torch.device("cpu")

    def __init__(self) -> None:
        self.seen: list[tuple[int, ...]] = []

    def __call__(self, images: Tensor) -> DenseFeatures:
        self.seen.append(tuple(images.shape))
        return DenseFeatures(self.colours(images), None)

    def colours(self, images: Tensor) -> Tensor:
        return F.avg_pool2d(images, self.patch_size)

    def weights_digest(self) -> str:
        return "colours"
