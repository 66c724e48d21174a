"""A timm ViT as a `transformers` backbone with four maps: a quarter, half, once and twice its patch stride.

The simple feature pyramid of ViTDet (Li et al., 2022): every scale comes from the last block's tokens, so the ViT
itself stays plain and goes back to timm unchanged.
"""

from __future__ import annotations

from typing import Any

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from transformers import AutoBackbone, AutoConfig
from transformers.backbone_utils import BackboneConfigMixin, BackboneMixin
from transformers.configuration_utils import PreTrainedConfig
from transformers.modeling_outputs import BackboneOutput
from transformers.modeling_utils import PreTrainedModel

from sohes.backbones.timm_folder import TimmViT, build_vit

_STAGES = ["stride_quarter", "stride_half", "stride_one", "stride_two"]


@strict
class TimmPyramidConfig(BackboneConfigMixin, PreTrainedConfig):
    """`timm_config` is the content of a timm folder's config.json; `pyramid_dim` the channels of every map."""

    model_type = "timm_vit_pyramid"

    timm_config: dict[str, Any] | None = None
    pyramid_dim: int = 256
    _out_features: list[str] | None = None
    _out_indices: list[int] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        self.stage_names = list(_STAGES)
        self.set_output_features_output_indices(
            out_features=kwargs.pop("out_features", _STAGES), out_indices=kwargs.pop("out_indices", None)
        )
        super().__post_init__(**kwargs)


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


class TimmPyramid(BackboneMixin, PreTrainedModel):
    """(B, 3, H, W) normalised pixels, H and W multiples of the patch, to four maps (B, `pyramid_dim`, ·, ·)."""

    config_class = TimmPyramidConfig
    main_input_name = "pixel_values"
    base_model_prefix = "backbone"

    def __init__(self, config: TimmPyramidConfig) -> None:
        super().__init__(config)
        self.vit: TimmViT = build_vit(config.timm_config or {})
        self.num_features = [config.pyramid_dim] * len(_STAGES)
        self.scales = nn.ModuleList([_scaled(self.vit.embed_dim, config.pyramid_dim, stage) for stage in _STAGES])
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Every module keeps its own initialisation; the ViT's weights are loaded by whoever builds the model."""

    def forward(self, pixel_values: Tensor, **_: Any) -> BackboneOutput:  # type: ignore[override]
        patch = int(self.vit.patch_embed.patch_size[0])
        height, width = (side // patch for side in pixel_values.shape[-2:])
        tokens = self.vit.forward_features(pixel_values)[:, self.vit.num_prefix_tokens :]
        grid = tokens.transpose(1, 2).unflatten(2, (height, width))
        return BackboneOutput(feature_maps=tuple(scale(grid) for scale in self.scales))


AutoConfig.register(TimmPyramidConfig.model_type, TimmPyramidConfig)
AutoBackbone.register(TimmPyramidConfig, TimmPyramid)
