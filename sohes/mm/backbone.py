"""A timm ViT or CAST under an MMSegmentation or MMDetection head (README §1, §2).

The plain ViT has one resolution; heads want maps at strides 4, 8, 16 and 32. As in ViTDet's simple feature pyramid
(arXiv 2203.16527) they are made from the ViT's own map, here optionally from a different block for each level.
Deviation: the levels have exactly those strides for any patch size (8, 14, 16), by one bilinear resampling at the end.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from mmengine.model import BaseModule
from mmengine.registry import MODELS
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from sohes.backbones.cast.model import CAST
from sohes.backbones.precision import autocast
from sohes.backbones.timm_folder import load_backbone_folder, without_classifier
from sohes.errors import ConfigError
from sohes.mm.cast_maps import cast_maps

STRIDES = (4, 8, 16, 32)


# In the root registry: those of mmseg and mmdet are its children and find it from either scope.
@MODELS.register_module()
class TimmViT(BaseModule):
    """Any timm folder of a ViT or CAST as a backbone with four levels of `embed_dim` channels at strides 4, 8, 16, 32.

    Images whose sides are no multiples of the patch are resized inside (not padded) to the nearest ones, so the map
    covers the image and nothing else. The head's data preprocessor normalises them by the folder's mean and deviation.
    Batch norms, which CAST and convolutional stems have, keep their statistics: batches under heads are small.

    Args:
        folder: timm folder (config.json, model.safetensors).
        out_blocks: block of a ViT whose normalised output feeds each of the four levels, counted from 0; None takes the
            last block of each quarter of the depth (as the MAE and BEiT recipes do), or each level of a CAST.
        frozen: no gradient, and eval mode whatever `train()` says. The model trains by default, as other backbones do.
        deconv: learn the upsampling of a ViT's map by transposed convolutions (ViTDet) instead of interpolating.
        drop_path_rate: stochastic depth, for finetuning.

    Raises:
        WeightsError: the folder cannot be loaded, or holds a ResNet.
        ConfigError: `out_blocks` does not fit the depth, or is given for a CAST.
    """

    def __init__(
        self,
        folder: str,
        *,
        out_blocks: Sequence[int] | None = None,
        frozen: bool = False,
        deconv: bool = False,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        loaded = load_backbone_folder(Path(folder))  # timm's own errors do not name the file or the remedy
        _ = loaded.transformer
        vit: Any = timm.create_model(
            f"local-dir:{folder}",
            pretrained=True,
            drop_path_rate=drop_path_rate,
            **without_classifier(loaded.provenance.timm_name),
        )
        self.vit = vit
        self.frozen = frozen
        self.embed_dim: int = vit.embed_dim
        self.patch_size: int = vit.patch_embed.patch_size[0]
        self.is_cast = isinstance(vit, CAST)
        if self.is_cast:
            if out_blocks is not None:
                raise ConfigError(f"{folder} is a CAST, whose maps are its levels: leave out_blocks out")
            vit.pools[-1].requires_grad_(False)  # whose groups are no map's
        else:
            depth = len(vit.blocks)
            self.out_blocks = tuple(out_blocks or (max(depth * quarter // 4, 1) - 1 for quarter in (1, 2, 3, 4)))
            if len(self.out_blocks) != len(STRIDES) or not all(0 <= block < depth for block in self.out_blocks):
                raise ConfigError(f"out_blocks must be four of 0..{depth - 1}, not {self.out_blocks}")
        upsampled = deconv and not self.is_cast
        self.resample = nn.ModuleList(
            _upsampling(self.embed_dim, level) if upsampled else nn.Identity() for level in range(len(STRIDES))
        )
        if frozen:
            self.vit.requires_grad_(False)
        self.train()

    def init_weights(self) -> None:
        """Keep the loaded weights: the inherited method would let timm initialise the ViT again."""

    def train(self, mode: bool = True) -> TimmViT:
        """As usual, but a frozen model stays in eval mode, and so does every batch norm."""
        super().train(mode)
        for module in self.vit.modules():
            if self.frozen or isinstance(module, _BatchNorm):
                module.training = False
        return self

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Four maps (B, D, ceil(H/s), ceil(W/s)) float32, s = 4, 8, 16, 32, of normalised images (B, 3, H, W).

        Raises:
            ConfigError: images too small for a CAST.
        """
        height, width = images.shape[-2:]
        images = _resize(images, (self._fitting(height), self._fitting(width)))
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen), autocast(images.device):
            maps = cast_maps(self.vit, images, STRIDES) if self.is_cast else self._block_maps(images)
        levels = []
        for stride, features, resample in zip(STRIDES, maps, self.resample, strict=True):
            size_hw = (-(-height // stride), -(-width // stride))
            levels.append(_resize(resample(features), size_hw))
        return tuple(levels)

    def _fitting(self, side: int) -> int:
        """The nearest multiple of the patch."""
        return max(round(side / self.patch_size), 1) * self.patch_size

    def _block_maps(self, images: Tensor) -> list[Tensor]:
        """Normalised output (B, D, h, w) of the block of each level."""
        blocks = sorted(set(self.out_blocks))
        vit: Any = self.vit
        maps = vit.forward_intermediates(images, indices=blocks, norm=True, stop_early=True, intermediates_only=True)
        found = {block: features.float() for block, features in zip(blocks, maps, strict=True)}
        return [found[block] for block in self.out_blocks]


def _resize(maps: Tensor, size_hw: tuple[int, int]) -> Tensor:
    """Bilinear, averaging where it shrinks; `maps` itself when the size is right."""
    if maps.shape[-2:] == size_hw:
        return maps
    shrinks = maps.shape[-2] > size_hw[0] or maps.shape[-1] > size_hw[1]
    return F.interpolate(maps, size_hw, mode="bilinear", align_corners=False, antialias=shrinks)


def _upsampling(dim: int, level: int) -> nn.Module:
    """ViTDet's layers: x4, x2, x1, x0.5 of the ViT's map; `dim` channels in and out."""
    if level == 0:
        return nn.Sequential(
            nn.ConvTranspose2d(dim, dim, 2, stride=2),
            nn.GroupNorm(1, dim),
            nn.GELU(),
            nn.ConvTranspose2d(dim, dim, 2, stride=2),
        )
    if level == 1:
        return nn.ConvTranspose2d(dim, dim, 2, stride=2)
    return nn.MaxPool2d(2, ceil_mode=True) if level == 3 else nn.Identity()
