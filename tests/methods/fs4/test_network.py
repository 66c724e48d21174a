"""Any timm ViT and the ResNets embed pixels on the grid that is asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch.nn import functional as F

from sohes.errors import ConfigError, WeightsError
from sohes.methods.fs4.context_settings import ContextSettings
from sohes.methods.fs4.network import FpnDecoder, PixelNetwork, build_network, load_network, save_network
from tests.backbones.conftest import VARIANTS, tiny


def built(trunk: Any, *, cae: Any = "none", pool: bool = False, **sizes: int) -> PixelNetwork:
    return build_network(trunk, **sizes, context=ContextSettings(cae=cae), pool=pool)


@pytest.mark.parametrize("kind", VARIANTS)
def test_any_vit(kind: str) -> None:
    vit = tiny(kind).model
    patch_px = vit.patch_embed.patch_size[0]
    network = built(vit, dim=16, side=12, view_px=4 * patch_px)
    images = torch.rand(2, 3, 4 * patch_px, 4 * patch_px)
    embeddings, deep, _ = network(images)
    assert embeddings.shape == (2, 16, 12, 12)
    assert deep.shape == (2, 64, 4, 4)
    expected = vit.forward_features(images)[:, vit.num_prefix_tokens :]
    torch.testing.assert_close(deep.flatten(2).transpose(1, 2), expected)
    embeddings.sum().backward()
    silent = [name for name, p in network.named_parameters() if p.requires_grad and p.grad is None]
    assert not silent  # or a distributed training would wait for them


def test_resnet() -> None:
    resnet = timm.create_model("resnet18", pretrained=False, num_classes=0).eval()
    network = built(resnet, dim=16, side=16, view_px=64)
    images = torch.rand(2, 3, 64, 64)
    embeddings, deep, _ = network(images)
    assert embeddings.shape == (2, 16, 16, 16)
    torch.testing.assert_close(deep, resnet.forward_features(images))
    embeddings.sum().backward()
    assert not [name for name, p in network.named_parameters() if p.grad is None]


def test_pyramid_adds_from_coarse_to_fine() -> None:
    """By hand with weights of 1 and constant maps: nothing is lost and nothing follows the sum."""
    decoder = FpnDecoder([1, 1, 1, 1], 8)
    for layer in decoder.lateral:
        torch.nn.init.ones_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
    maps = [torch.full((1, 1, 8 // 2**level, 8 // 2**level), 10.0**level) for level in range(4)]
    assert torch.equal(decoder(maps), torch.full((1, 8, 8, 8), 1111.0))
    maps[1] = torch.rand(1, 1, 4, 4)
    zeros = [torch.zeros_like(one) if place != 1 else one for place, one in enumerate(maps)]
    expected = F.interpolate(maps[1], size=8, mode="bilinear", align_corners=False)
    torch.testing.assert_close(decoder(zeros)[:, :1], expected)


def test_what_cannot_be_built() -> None:
    resnet = timm.create_model("resnet18", pretrained=False, num_classes=0)
    with pytest.raises(ConfigError, match=r"embedding_side=80, but .* a side of 16 where view_px=64"):
        built(resnet, dim=16, side=80, view_px=64)
    with pytest.raises(ConfigError, match="Linear is neither a ViT nor a ResNet"):
        built(torch.nn.Linear(1, 1), dim=16, side=80, view_px=64)
    cast = timm.create_model("cast_small", embed_dim=24, depths=(1, 1, 1, 1))
    with pytest.raises(ConfigError, match="CAST is neither a ViT nor a ResNet"):
        built(cast, dim=16, side=16, view_px=64)


@pytest.mark.parametrize("pool", [False, True])
def test_context_changes_nothing_at_first(pool: bool) -> None:
    vit, images = tiny("patch 16").model, torch.rand(2, 3, 64, 64)
    torch.manual_seed(0)
    plain = built(vit, dim=16, side=8, view_px=64)
    torch.manual_seed(0)
    seen = built(vit, cae="both", pool=pool, dim=16, side=8, view_px=64)
    seen.decoder.load_state_dict(plain.decoder.state_dict())
    torch.testing.assert_close(seen(images).embeddings, plain(images).embeddings)
    pooled = seen(images).pooled
    assert (pooled is not None and pooled.shape == (2, 64)) if pool else pooled is None
    (seen(images).embeddings.sum() + (pooled.sum() if pooled is not None else 0)).backward()
    assert not [name for name, p in seen.named_parameters() if p.requires_grad and p.grad is None]


def test_saved_and_loaded(tmp_path: Path) -> None:
    vit, images = tiny("patch 16").model, torch.rand(1, 3, 64, 64)
    network = built(vit, cae="space", pool=True, dim=16, side=8, view_px=64).eval()
    torch.nn.init.ones_(network.context.gamma)
    save_network(tmp_path / "decoder.safetensors", network)
    again = load_network(vit, tmp_path / "decoder.safetensors")
    torch.testing.assert_close(again(images).embeddings, network(images).embeddings, rtol=0, atol=0)
    with pytest.raises(WeightsError, match=r"none.safetensors: not the decoder of this backbone"):
        load_network(vit, tmp_path / "none.safetensors")
    resnet = timm.create_model("resnet18", pretrained=False, num_classes=0)
    with pytest.raises(WeightsError, match="not the decoder of this backbone"):
        load_network(resnet, tmp_path / "decoder.safetensors")
