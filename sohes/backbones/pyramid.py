"""A timm ViT as a `transformers` backbone with four maps: a quarter, half, once and twice its patch stride.

The simple feature pyramid of ViTDet (Li et al., 2022): every scale comes from the last block's tokens, so the ViT
itself stays plain and goes back to timm unchanged (README §4).
"""

from __future__ import annotations

from typing import Any

from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from transformers import AutoBackbone, AutoConfig
from transformers.modeling_outputs import BackboneOutput

from sohes.backbones.neck import SCALES, TimmNeck, TimmNeckConfig


@strict
class TimmPyramidConfig(TimmNeckConfig):
    """`pyramid_dim` is the number of channels of every map."""

    model_type = "timm_vit_pyramid"

    pyramid_dim: int = 256


class LayerNorm2d(nn.LayerNorm):
    """Layer norm over the channels of (B, C, H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def _scaled(dim: int, out: int, scale: str) -> nn.Sequential:
    resize: dict[str, list[nn.Module]] = {
        "stride_quarter": [
            nn.ConvTranspose2d(dim, out, 2, stride=2),
            LayerNorm2d(out),
            nn.GELU(),
            nn.ConvTranspose2d(out, out, 2, stride=2),
        ],
        "stride_half": [nn.ConvTranspose2d(dim, out, 2, stride=2)],
        "stride_one": [nn.Conv2d(dim, out, 1)],
        "stride_two": [nn.Conv2d(dim, out, 2, stride=2)],
    }
    return nn.Sequential(*resize[scale], LayerNorm2d(out))


class TimmPyramid(TimmNeck):
    """Every map is made from the ViT's output, by convolutions that scale it; `pyramid_dim` channels."""

    config_class = TimmPyramidConfig

    def __init__(self, config: TimmPyramidConfig) -> None:
        super().__init__(config)
        self.num_features = [config.pyramid_dim] * len(SCALES)
        self.scales = nn.ModuleList([_scaled(self.vit.embed_dim, config.pyramid_dim, scale) for scale in SCALES])
        self.post_init()

    def forward(self, pixel_values: Tensor, **_: Any) -> BackboneOutput:  # type: ignore[override]
        tokens = self.vit.forward_features(pixel_values)[:, self.vit.num_prefix_tokens :]
        grid = tokens.transpose(1, 2).unflatten(2, self.grid_size(pixel_values))
        return BackboneOutput(feature_maps=tuple(scale(grid) for scale in self.scales))


AutoConfig.register(TimmPyramidConfig.model_type, TimmPyramidConfig)
AutoBackbone.register(TimmPyramidConfig, TimmPyramid)
