"""Dense features of CAST at any input size (README §8)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import normalize

from sohes.backbones.cast.model import Segmented
from sohes.backbones.cast.pooling import gather_tokens
from sohes.backbones.dense import DenseFeatures, SegmentFeatures
from sohes.backbones.frozen import FrozenTimm
from sohes.backbones.precision import autocast
from sohes.backbones.timm_folder import BackboneFolder
from sohes.errors import ConfigError


class DenseCAST(FrozenTimm):
    """A frozen CAST as a `DenseBackbone`: each cell of 8 px has the feature of the superpixel in its middle.

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
        found = self._segmented(images)
        patch, middle = self.patch_size, self.patch_size // 2
        cells = found.superpixels[:, middle::patch, middle::patch]
        features = gather_tokens(found.features().float(), cells.flatten(1)).transpose(1, 2)
        return DenseFeatures(features.unflatten(2, cells.shape[1:]), None if found.cls is None else found.cls.float())

    @torch.no_grad()
    def segments(self, images: Tensor, embed: Callable[[Tensor], Tensor]) -> list[SegmentFeatures]:
        """See `SegmentingBackbone.segments`: unions of superpixels, by what all levels make of them [CAST]."""
        found = self._segmented(images)
        maps = found.segments().maps(found.superpixels)[-1]
        features = [normalize(embed(one.float()), dim=1) for one in found.features()]
        return [_averaged(*one) for one in zip(maps, found.superpixels, features, strict=True)]

    def _segmented(self, images: Tensor) -> Segmented:
        images = self.normalised(images)
        try:
            with autocast(images.device):
                found: Segmented = self.model.segment(images, full_resolution=self.model.fusion is not None)
        except ValueError as error:  # the size is a setting of whoever asks: probe.size_px, explore.size_local, ...
            raise ConfigError(f"{self.provenance.timm_name}: {error}") from error
        return found


def _averaged(segments: Tensor, superpixels: Tensor, features: Tensor) -> SegmentFeatures:
    """Features (N, D) of superpixels (H, W), averaged over the pixels of segments (H, W)."""
    labels, count = segments.unique(return_inverse=True)[1], len(features)
    pairs, pixels = (labels * count + superpixels).unique(return_counts=True)  # a superpixel lies in one segment
    own, part = pairs // count, pairs % count
    sums = features.new_zeros(int(labels.max()) + 1, features.shape[1])
    sums.index_add_(0, own, features[part] * pixels[:, None])
    return SegmentFeatures(labels, normalize(sums, dim=1))
