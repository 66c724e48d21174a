"""The class token's attention is the one that an unfused attention multiplies the values by."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import Tensor

from sohes.backbones.attention import ClassAttention
from sohes.backbones.timm_folder import VisionTransformer
from sohes.errors import ConfigError
from tests.backbones.conftest import tiny

KINDS = ("patch 16", "patch 14", "patch 8", "register tokens", "query-key norm")


def unfused(vit: VisionTransformer, images: Tensor) -> Tensor:
    """(B, heads, N) as timm's own loop computes it before its dropout."""
    attention, found = vit.blocks[-1].attn, []
    attention.fused_attn = False
    handle = attention.attn_drop.register_forward_hook(lambda module, inputs, output: found.append(output))
    vit.forward_features(images)
    handle.remove()
    attention.fused_attn = True
    return found[0][:, :, 0, vit.num_prefix_tokens :]


def check(vit: VisionTransformer, side: int) -> None:
    images = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    kept = ClassAttention(vit)
    with torch.no_grad():
        expected = unfused(vit, images)
        vit.forward_features(images)
    found = kept.take()
    assert found.dtype == torch.float32
    assert found.shape[-1] == (side // vit.patch_embed.patch_size[0]) ** 2
    assert float(found.sum(-1).max()) <= 1
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_any_vit(kind: str) -> None:
    vit = tiny(kind).model
    check(vit, 8 * vit.patch_embed.patch_size[0])


def test_rotary_positions() -> None:
    torch.manual_seed(0)
    vit = timm.create_model(
        "vit_small_patch16_dinov3", depth=2, embed_dim=32, num_heads=2, num_classes=0, dynamic_img_size=True
    )
    torch.nn.init.normal_(vit.blocks[-1].attn.qkv.weight, std=0.2)  # or all tokens would weigh alike
    check(vit.eval(), 96)


@pytest.mark.parametrize("kind", ["no class token", "registers, no class token"])
def test_without_a_class_token(kind: str) -> None:
    with pytest.raises(ConfigError, match="has no class token, so"):
        ClassAttention(tiny(kind).model)


def test_an_attention_that_cannot_be_read() -> None:
    vit = tiny("patch 16").model
    vit.blocks[-1].attn = torch.nn.Identity()
    with pytest.raises(ConfigError, match="is not one whose queries and keys can be read"):
        ClassAttention(vit)
