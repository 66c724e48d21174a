"""A timm ViT under an MMSegmentation or MMDetection head (README §1).

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

from sohes.backbones.precision import autocast
from sohes.backbones.timm_folder import load_backbone_folder
from sohes.errors import ConfigError

STRIDES = (4, 8, 16, 32)


# In the root registry: those of mmseg and mmdet are its children and find it from either scope.
@MODELS.register_module()
class TimmViT(BaseModule):
    """Any timm ViT folder as a backbone with four levels of `embed_dim` channels at strides 4, 8, 16, 32.

    Images whose sides are no multiples of the patch are resized inside (not padded) to the nearest ones, so the map
    covers the image and nothing else. The head's data preprocessor normalises them by the folder's mean and deviation.

    Args:
        folder: timm folder (config.json, model.safetensors).
        out_blocks: block whose normalised output feeds each of the four levels, counted from 0; None takes the last
            block of each quarter of the depth (as the MAE and BEiT recipes do).
        frozen: no gradient, and eval mode whatever `train()` says. The ViT trains by default, as other backbones do.
        deconv: learn the upsampling by transposed convolutions (ViTDet) instead of interpolating.
        drop_path_rate: stochastic depth, for finetuning.

    Raises:
        WeightsError: the folder cannot be loaded, or holds a ResNet.
        ConfigError: `out_blocks` does not fit the depth.
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
        _ = load_backbone_folder(Path(folder)).vit  # timm's own errors do not name the file or the remedy
        vit: Any = timm.create_model(
            f"local-dir:{folder}", pretrained=True, num_classes=0, dynamic_img_size=True, drop_path_rate=drop_path_rate
        )
        self.vit = vit
        self.frozen = frozen
        self.embed_dim: int = vit.embed_dim
        self.patch_size: int = vit.patch_embed.patch_size[0]
        depth = len(vit.blocks)
        self.out_blocks = tuple(out_blocks or (max(depth * quarter // 4, 1) - 1 for quarter in (1, 2, 3, 4)))
        if len(self.out_blocks) != len(STRIDES) or not all(0 <= block < depth for block in self.out_blocks):
            raise ConfigError(f"out_blocks must be four of 0..{depth - 1}, not {self.out_blocks}")
        self.resample = nn.ModuleList(
            _upsampling(self.embed_dim, level) if deconv else nn.Identity() for level in range(len(STRIDES))
        )
        if frozen:
            self.vit.requires_grad_(False)
        self.train()

    def init_weights(self) -> None:
        """Keep the loaded weights: the inherited method would let timm initialise the ViT again."""

    def train(self, mode: bool = True) -> TimmViT:
        """As usual, but a frozen ViT stays in eval mode."""
        super().train(mode)
        if self.frozen:
            self.vit.eval()
        return self

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Four maps (B, D, ceil(H/s), ceil(W/s)) float32, s = 4, 8, 16, 32, of normalised images (B, 3, H, W)."""
        height, width = images.shape[-2:]
        maps = self._block_maps(images)
        levels = []
        for stride, block, resample in zip(STRIDES, self.out_blocks, self.resample, strict=True):
            size_hw = (-(-height // stride), -(-width // stride))
            levels.append(_resize(resample(maps[block]), size_hw))
        return tuple(levels)

    def _block_maps(self, images: Tensor) -> dict[int, Tensor]:
        """Normalised output (B, D, h, w) of each block in `out_blocks`."""
        patch = self.patch_size
        height, width = (max(round(side / patch), 1) * patch for side in images.shape[-2:])
        blocks = sorted(set(self.out_blocks))
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen), autocast(images.device):
            vit: Any = self.vit
            maps = vit.forward_intermediates(
                _resize(images, (height, width)), indices=blocks, norm=True, stop_early=True, intermediates_only=True
            )
        return {block: features.float() for block, features in zip(blocks, maps, strict=True)}


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
