"""Architectures that timm knows by name once `sohes` is imported (README §8).

cast_tiny, cast_small, cast_small_deep, cast_base, cast_base_deep   class-token variants
the same and _fusion                                                fusion variants
vit_conv_tiny, vit_conv_small, vit_conv_base                        plain ViTs with the same stem, at stride 16, and as
                                                                    many blocks
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.vision_transformer import VisionTransformer
from torch import nn

# The models are imported when one is built: this runs at the end of timm's import, which may be one of theirs.

# all but tiny, which is for processors [ours], with 12 heads [CAST]
_SIZES: dict[str, dict[str, Any]] = {
    "tiny": {"embed_dim": 128, "depths": (2, 2, 2, 1), "num_heads": 4},
    "small": {"embed_dim": 384, "depths": (3, 3, 3, 2), "num_heads": 12},
    "small_deep": {"embed_dim": 384, "depths": (6, 3, 3, 3), "num_heads": 12},
    "base": {"embed_dim": 768, "depths": (3, 3, 3, 2), "num_heads": 12},
    "base_deep": {"embed_dim": 768, "depths": (6, 3, 3, 3), "num_heads": 12},
}
CASTS: dict[str, dict[str, Any]] = {
    f"cast_{size}{suffix}": {**of, "fusion": bool(suffix)} for suffix in ("", "_fusion") for size, of in _SIZES.items()
}
CONV_VITS: dict[str, dict[str, Any]] = {
    f"vit_conv_{size}": {
        "embed_dim": _SIZES[size]["embed_dim"],
        "depth": sum(_SIZES[size]["depths"]),
        "num_heads": _SIZES[size]["num_heads"],
    }
    for size in ("tiny", "small", "base")
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
