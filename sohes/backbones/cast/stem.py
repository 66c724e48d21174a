"""Convolutions in place of a ViT's patch embedding (README §8).

Xiao et al., "Early Convolutions Help Transformers See Better" (2021), as MoCo-v3 and CAST have it.
"""

from __future__ import annotations

from typing import Any

from timm.layers import PatchEmbed
from torch import nn

STRIDES = {8: (2, 2, 2, 1), 16: (2, 2, 2, 2)}  # [CAST], MoCo-v3


class ConvStem(PatchEmbed):
    """Four convolutions of 3 x 3, of 1/8, 1/4, 1/2 and all of the width, each with batch norm, and one of 1 x 1.

    It stands in for timm's `PatchEmbed`, whose arguments it takes; its stride is the patch.
    """

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        patch_size: int = 16,
        in_chans: int = 3,
        embed_dim: int = 768,
        **options: Any,
    ) -> None:
        super().__init__(img_size=img_size, patch_size=patch_size, in_chans=in_chans, embed_dim=embed_dim, **options)
        if patch_size not in STRIDES or embed_dim % 8:
            raise ValueError(
                f"a stem of stride {patch_size} and width {embed_dim}: the stride must be one of {list(STRIDES)}, "
                "the width a multiple of 8"
            )
        widths = [in_chans, embed_dim // 8, embed_dim // 4, embed_dim // 2, embed_dim]
        layers: list[nn.Module] = []
        for inside, outside, stride in zip(widths, widths[1:], STRIDES[patch_size], strict=False):
            layers += [
                nn.Conv2d(inside, outside, 3, stride=stride, padding=1, bias=False),
                nn.BatchNorm2d(outside),
                nn.ReLU(inplace=True),
            ]
        self.proj = nn.Sequential(*layers, nn.Conv2d(embed_dim, embed_dim, 1))  # type: ignore[assignment]
