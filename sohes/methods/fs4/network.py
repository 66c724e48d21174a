"""A network that embeds pixels: a timm ViT or ResNet, and a decoder that brings its maps to one grid (README §3)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from sohes.backbones.precision import autocast
from sohes.errors import ConfigError

_GROUPS = 8  # of the decoder's norm
_STAGES = 4  # of a ResNet, at strides 4, 8, 16 and 32


class PixelNetwork(nn.Module):
    """Embeddings of pixels, and the trunk's own last map.

    Args:
        trunk: a timm ViT or ResNet.
        decoder: makes an embedding map of the trunk's maps, the finest first.
        maps: how many of these it takes, the last ones.
    """

    def __init__(self, trunk: Any, decoder: nn.Module, *, maps: int) -> None:
        super().__init__()
        self.trunk, self.decoder, self.maps = trunk, decoder, maps
        if hasattr(trunk, "fc_norm"):
            trunk.fc_norm.requires_grad_(False)  # of a pooled classifier; no map goes through it

    def forward(self, images: Tensor, *, bf16: bool = False) -> tuple[Tensor, Tensor]:
        """Of normalised images (B, 3, S, S).

        Args:
            images: float32.
            bf16: heavy products in bfloat16, where the device has it.

        Returns:
            Embeddings (B, C, h, w) and the trunk's last map (B, D, h', w'), after its last norm; float32.
        """
        with autocast(images.device, enabled=bf16):
            found = self.trunk.forward_intermediates(images, indices=self.maps, norm=True, intermediates_only=True)
            embeddings = self.decoder(found)
        return embeddings.float(), found[-1].float()


class TokenDecoder(nn.Module):
    """Tokens of a ViT at another resolution: narrowed, resized bilinearly, and refined.

    Args:
        width: channels of the tokens.
        dim: C, of the embeddings; a multiple of 8.
        side: h and w of the embeddings.
    """

    def __init__(self, width: int, dim: int, side: int) -> None:
        super().__init__()
        self.side = side
        self.narrow = nn.Conv2d(width, dim, 1)
        self.refine = nn.Sequential(
            nn.Conv2d(dim, dim, 3, padding=1), nn.GroupNorm(_GROUPS, dim), nn.GELU(), nn.Conv2d(dim, dim, 1)
        )

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """(B, C, side, side) of one map (B, D, h', w')."""
        narrow = self.narrow(maps[-1])
        return self.refine(F.interpolate(narrow, size=(self.side, self.side), mode="bilinear", align_corners=False))


class FpnDecoder(nn.Module):
    """PiCIE's feature pyramid: coarse maps are enlarged and added to finer ones, nothing follows.

    Args:
        widths: channels of the maps, the finest first.
        dim: C, of the embeddings.
    """

    def __init__(self, widths: Sequence[int], dim: int) -> None:
        super().__init__()
        self.lateral = nn.ModuleList(nn.Conv2d(width, dim, 1) for width in widths)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """(B, C, h, w) on the grid of the finest map."""
        *finer, total = [layer(one) for layer, one in zip(self.lateral, maps, strict=True)]
        for lateral in reversed(finer):
            size = lateral.shape[-2:]
            total = lateral + F.interpolate(total, size=size, mode="bilinear", align_corners=False)
        return total


def build_network(trunk: Any, *, dim: int, side: int, view_px: int) -> PixelNetwork:
    """A timm ViT or ResNet with its random decoder.

    Args:
        trunk: with its start weights.
        dim: C, of the embeddings.
        side: h and w of the embeddings.
        view_px: side of the images.

    Raises:
        ConfigError: neither of both, or a ResNet whose finest map has another side.
    """
    if hasattr(trunk, "patch_embed"):
        return PixelNetwork(trunk, TokenDecoder(trunk.embed_dim, dim, side), maps=1)
    if not hasattr(trunk, "layer4"):
        raise ConfigError(f"{type(trunk).__name__} is neither a ViT nor a ResNet; give a backbone of one of these")
    if side != -(-view_px // 4):
        raise ConfigError(
            f"embedding_side={side}, but the finest map of a ResNet has a side of {-(-view_px // 4)} where "
            f"view_px={view_px}; set embedding_side to that"
        )
    widths = [stage["num_chs"] for stage in trunk.feature_info[-_STAGES:]]
    return PixelNetwork(trunk, FpnDecoder(widths, dim), maps=_STAGES)
