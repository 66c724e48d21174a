"""Architectures that timm knows by name once `sohes` is imported (README §8).

cast_small, cast_small_deep, cast_base, cast_base_deep   class-token variants
the same and _fusion                                     fusion variants
vit_conv_small, vit_conv_base                            plain ViTs with the same stem, at stride 16, and as many blocks
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.vision_transformer import VisionTransformer
from torch import nn

# The models are imported when one is built: this runs at the end of timm's import, which may be one of theirs.

_WIDTHS = {"small": 384, "base": 768}
_DEPTHS = {"": (3, 3, 3, 2), "_deep": (6, 3, 3, 3)}
CASTS: dict[str, dict[str, Any]] = {  # all with 12 heads [CAST]
    f"cast_{size}{deep}{fusion}": {"embed_dim": width, "depths": depths, "fusion": bool(fusion)}
    for fusion in ("", "_fusion")
    for size, width in _WIDTHS.items()
    for deep, depths in _DEPTHS.items()
}
CONV_VITS: dict[str, dict[str, Any]] = {
    f"vit_conv_{size}": {"embed_dim": width, "depth": 11, "num_heads": 12} for size, width in _WIDTHS.items()
}


def _cast(**arguments: Any) -> nn.Module:
    from sohes.backbones.cast.model import CAST

    return CAST(**arguments)


def _conv_vit(**arguments: Any) -> nn.Module:
    """A ViT of timm's class as MoCo-v3 has it, with a convolutional stem and the fixed table of positions."""
    from sohes.backbones.cast.positions import sincos_table
    from sohes.backbones.cast.stem import ConvStem

    vit = VisionTransformer(embed_layer=ConvStem, weight_init="moco", **arguments)
    table = sincos_table(vit.patch_embed.grid_size, vit.embed_dim)
    vit.pos_embed = nn.Parameter(table, requires_grad=False)
    return vit


default_cfgs = generate_default_cfgs(
    {
        name: {
            "num_classes": 1000,
            "input_size": (3, 224, 224),
            "crop_pct": 0.875,
            "interpolation": "bicubic",
            "mean": IMAGENET_DEFAULT_MEAN,
            "std": IMAGENET_DEFAULT_STD,
            "first_conv": "patch_embed.proj.0",
            "classifier": "head",
            "fixed_input_size": name in CONV_VITS,
        }
        for name in (*CASTS, *CONV_VITS)
    }
)


def _register(name: str, build: Callable[..., nn.Module], defaults: dict[str, Any]) -> None:
    def create(pretrained: bool = False, **arguments: Any) -> nn.Module:
        model: nn.Module = build_model_with_cfg(build, name, pretrained, **defaults | arguments)
        return model

    create.__name__ = name  # under which timm registers it
    register_model(create)


for _name, _defaults in CASTS.items():
    _register(_name, _cast, _defaults)
for _name, _defaults in CONV_VITS.items():
    _register(_name, _conv_vit, _defaults)
