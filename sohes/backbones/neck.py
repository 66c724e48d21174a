"""What the ways around a timm ViT have in common: a `transformers` backbone with maps at four scales (README §4)."""

from __future__ import annotations

from typing import Any

import torch
from huggingface_hub.dataclasses import strict
from timm.models import checkpoint
from torch import Tensor, nn
from transformers.backbone_utils import BackboneConfigMixin, BackboneMixin
from transformers.configuration_utils import PreTrainedConfig
from transformers.modeling_utils import PreTrainedModel

from sohes.backbones.timm_folder import VisionTransformer, build_vit

SCALES = ["stride_quarter", "stride_half", "stride_one", "stride_two"]  # times the patch's stride


@strict
class TimmNeckConfig(BackboneConfigMixin, PreTrainedConfig):
    """`timm_config` is the content of a timm folder's config.json."""

    timm_config: dict[str, Any] | None = None
    _out_features: list[str] | None = None
    _out_indices: list[int] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        self.stage_names = list(SCALES)
        self.set_output_features_output_indices(
            out_features=kwargs.pop("out_features", SCALES), out_indices=kwargs.pop("out_indices", None)
        )
        super().__post_init__(**kwargs)


class TimmNeck(BackboneMixin, PreTrainedModel):
    """(B, 3, H, W) normalised pixels, H and W multiples of the patch, to four maps of `channels` channels each.

    With h x w patches the maps have 4h x 4w, 2h x 2w, h x w and (h // 2) x (w // 2) pixels. The ViT stays a timm model
    and goes back to timm as `vit`.
    """

    main_input_name = "pixel_values"
    base_model_prefix = "backbone"

    def __init__(self, config: TimmNeckConfig) -> None:
        super().__init__(config)
        self.vit: VisionTransformer = build_vit(config.timm_config or {})

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Every module keeps its own initialisation; the ViT's weights are loaded by whoever builds the model."""
        init_buffers(module)

    def grid_size(self, pixel_values: Tensor) -> tuple[int, int]:
        """See `grid_size`."""
        return grid_size(self.vit, pixel_values)


def init_buffers(module: nn.Module) -> None:
    """Fill what no file holds of a timm module, rotary frequencies for one: transformers loads a model without."""
    fill = getattr(module, "init_non_persistent_buffers", None)
    if callable(fill):
        fill()


def grid_size(vit: VisionTransformer, pixel_values: Tensor) -> tuple[int, int]:
    """Patches in a column and in a row of images (B, 3, H, W)."""
    patch_height, patch_width = vit.patch_embed.patch_size
    return pixel_values.shape[-2] // patch_height, pixel_values.shape[-1] // patch_width


def embed(vit: VisionTransformer, pixel_values: Tensor) -> tuple[Tensor, list[dict[str, Any]]]:
    """A ViT's tokens (B, T, D) before its blocks, and further arguments of each: timm's Eva ViTs rotate positions."""
    tokens = vit._pos_embed(vit.patch_embed(pixel_values))
    if not isinstance(tokens, tuple):
        return vit.norm_pre(tokens), [{} for _ in vit.blocks]
    tokens, rope = tokens
    own = rope if getattr(vit, "rope_mixed", False) else [rope] * len(vit.blocks)
    return vit.norm_pre(tokens), [{"rope": one} for one in own]


def run(vit: VisionTransformer, part: nn.Module, tokens: Tensor, **arguments: Any) -> Tensor:
    """What a block of the ViT, or what stands beside one, makes of tokens; not kept where the ViT checkpoints."""
    if vit.grad_checkpointing and torch.is_grad_enabled():
        return checkpoint(part, tokens, **arguments)
    return part(tokens, **arguments)
