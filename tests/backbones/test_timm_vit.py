"""Dense features against the ViT taken apart by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from sohes.backbones.dense import DenseFeatures
from sohes.backbones.precision import autocast, autocast_dtype
from sohes.backbones.provenance import RANDOM, Provenance
from sohes.backbones.timm_folder import BackboneFolder, build_vit, weights_digest
from sohes.backbones.timm_vit import DenseViT, load_backbone
from sohes.errors import ConfigError, WeightsError
from tests.backbones.conftest import tiny


def pictures(patch: int, rows: int = 3, columns: int = 5) -> Tensor:
    """Two random pictures, wider than high, so that mixed-up axes show."""
    return torch.rand(2, 3, rows * patch, columns * patch, generator=torch.Generator().manual_seed(0))


def input_of_last_block(vit: nn.Module, images: Tensor) -> Tensor:
    tokens = vit.norm_pre(vit.patch_drop(vit._pos_embed(vit.patch_embed(images))))
    for block in vit.blocks[:-1]:
        tokens = block(tokens)
    return tokens


def check(found: DenseFeatures, tokens: Tensor, prefix: int, *, with_class: bool) -> None:
    """Map and class token of pictures of 3 x 5 patches are these tokens, `prefix` of them before the patches'."""
    assert found.map.dtype == torch.float32
    torch.testing.assert_close(found.map, as_map(tokens, prefix, 3, 5))
    assert (found.cls_token is not None) == with_class
    if found.cls_token is not None:
        assert found.cls_token.dtype == torch.float32
        torch.testing.assert_close(found.cls_token, tokens[:, 0])


def as_map(tokens: Tensor, prefix: int, rows: int, columns: int) -> Tensor:
    """Patch (r, c) of the map is token prefix + r · columns + c."""
    grid = torch.empty(len(tokens), tokens.shape[2], rows, columns)
    for row in range(rows):
        for column in range(columns):
            grid[:, :, row, column] = tokens[:, prefix + row * columns + column]
    return grid


@torch.no_grad()
def test_keys_are_those_of_the_last_block(variant: BackboneFolder) -> None:
    vit = variant.model
    images = pictures(vit.patch_embed.patch_size[0])
    mean, std = (torch.tensor(vit.pretrained_cfg[name]).view(1, 3, 1, 1) for name in ("mean", "std"))
    with autocast(images.device):
        block = vit.blocks[-1]
        qkv = block.attn.qkv(block.norm1(input_of_last_block(vit, (images - mean) / std))).float()
    heads = block.attn.num_heads
    keys = qkv.view(2, qkv.shape[1], 3, heads, vit.embed_dim // heads)[:, :, 1].flatten(2)
    found = DenseViT(variant, feature="key")(images)
    check(found, keys, vit.num_prefix_tokens, with_class="cls_token" in vit.state_dict())


@torch.no_grad()
def test_tokens_are_the_normalised_output(variant: BackboneFolder) -> None:
    vit = variant.model
    images = pictures(vit.patch_embed.patch_size[0])
    mean, std = (torch.tensor(vit.pretrained_cfg[name]).view(1, 3, 1, 1) for name in ("mean", "std"))
    with autocast(images.device):
        tokens = vit.norm(vit.blocks[-1](input_of_last_block(vit, (images - mean) / std))).float()
    found = DenseViT(variant, feature="token")(images)
    check(found, tokens, vit.num_prefix_tokens, with_class="cls_token" in vit.state_dict())


ANY = [  # of other families, all of 2 blocks of width 64
    ("vit_small_patch14_reg4_dinov2", 112),
    ("vit_medium_patch16_reg4_gap_256", 64),
    ("vit_base_patch8_224", 64),
    ("vit_base_patch16_siglip_224", 64),
    ("vit_base_patch16_clip_224", 64),
    ("deit_tiny_distilled_patch16_224", 64),
    ("vit_medium_patch16_rope_reg1_gap_256", 64),  # Eva: rotary positions, no bias of keys
    ("vit_small_patch16_dinov3", 64),
]


@torch.no_grad()
@pytest.mark.parametrize(("architecture", "img_size"), ANY)
def test_any_vit_at_any_size(architecture: str, img_size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    # a product that is rounded before its bias is added differs by far more than what is looked for here
    monkeypatch.setattr("sohes.backbones.precision._cpu_has_bf16", lambda: False)
    torch.manual_seed(0)
    arguments = {"depth": 2, "embed_dim": 64, "num_heads": 2, "img_size": img_size}
    vit = build_vit({"architecture": architecture, "model_args": arguments}).eval()
    for name, bias in vit.named_parameters():  # those that start as zeros do not show
        if name.endswith("bias"):
            nn.init.normal_(bias)
    folder = BackboneFolder(vit, {}, Provenance(timm_name=architecture, steps=(RANDOM,)))
    backbones = {feature: DenseViT(folder, feature=feature) for feature in ("key", "token")}
    patch = backbones["key"].patch_size
    block = vit.blocks[-1]
    weight = block.attn.qkv.weight[64:128]
    bias = 0 if block.attn.qkv.bias is None else block.attn.qkv.bias[64:128]
    for rows, columns in ((1, 1), (2, 7), (9, 4)):
        images = pictures(patch, rows, columns)
        mean, std = (torch.tensor(vit.pretrained_cfg[name]).view(1, 3, 1, 1) for name in ("mean", "std"))
        with autocast(images.device):
            last, (before, _) = vit.forward_intermediates((images - mean) / std, indices=2)
            keys = block.norm1(before.movedim(1, -1)) @ weight.T + bias
        expected = {"key": keys.movedim(-1, 1), "token": as_map(last, vit.num_prefix_tokens, rows, columns)}
        for feature, backbone in backbones.items():
            found, cls_token = backbone(images)
            assert (cls_token is None) == ("cls_token" not in vit.state_dict())
            assert found.shape == (2, 64, rows, columns)
            torch.testing.assert_close(found, expected[feature].float(), msg=lambda text, f=feature: f"{f}: {text}")


def test_prefix_tokens_are_what_the_variants_say() -> None:
    counts = {"patch 16": 1, "register tokens": 5, "registers, no class token": 4, "no class token": 0}
    assert {name: tiny(name).model.num_prefix_tokens for name in counts} == counts


def test_each_call_stands_alone() -> None:
    model = DenseViT(tiny("patch 16"))
    first, second = pictures(16), pictures(16, 2, 2)
    expected = model(first).map
    assert model(second).map.shape == (2, 64, 2, 2)
    assert torch.equal(model(first).map, expected)


def test_frozen() -> None:
    model = DenseViT(tiny("patch 16"))
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert not any(features.requires_grad for features in model(pictures(16)))


@pytest.mark.parametrize("size", [(33, 32), (32, 40)])
def test_sides_must_be_multiples_of_the_patch(size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=f"{size[0]}x{size[1]} px is not a multiple of the patch size 16"):
        DenseViT(tiny("patch 16"))(torch.zeros(1, 3, *size))


def test_what_cannot_be_had_is_refused() -> None:
    with pytest.raises(ConfigError, match="not 'query'"):
        DenseViT(tiny("patch 16"), feature="query")
    apart = build_vit({"architecture": "eva02_tiny_patch14_224", "model_args": {"depth": 1, "qkv_fused": False}})
    folder = BackboneFolder(apart, {}, Provenance(timm_name="eva02_tiny_patch14_224", steps=(RANDOM,)))
    with pytest.raises(ConfigError, match=r"no joint qkv layer; use explore\.feature=token"):
        DenseViT(folder)
    assert DenseViT(folder, feature="token")(pictures(14)).map.shape == (2, 192, 3, 5)


def test_loaded_from_a_folder(saved: Path) -> None:
    model = load_backbone(saved, device=torch.device("cpu"))
    assert (model.patch_size, model.embed_dim, model.feature) == (16, 64, "key")
    assert model.provenance.label == "random weights"
    torch.testing.assert_close(model(pictures(16)), DenseViT(tiny("patch 16"))(pictures(16)))
    assert model.weights_digest() == weights_digest(tiny("patch 16").model)


def test_loaded_from_all_that_weights_come_in(tmp_path: Path) -> None:
    named = load_backbone("random:vit_small_patch16_224", feature="token", device="cpu")
    assert (named.patch_size, named.embed_dim, named.feature) == (16, 384, "token")
    file = tmp_path / "vit.safetensors"
    save_file(named.vit.state_dict(), file)
    for source in (file, str(file)):
        filed = load_backbone(source, architecture="vit_small_patch16_224.dino", feature="token", device="cpu")
        assert not filed.vit.training
        assert filed.provenance.timm_name == "vit_small_patch16_224"
        assert all(map(torch.equal, filed.vit.parameters(), named.vit.parameters()))
    with pytest.raises(WeightsError, match="Python: architecture=NAME"):
        load_backbone(file)
    with pytest.raises(WeightsError, match="did you mean 'vit_small_patch16_224"):
        load_backbone("vit_smal_patch16_224.augreg_in21k")
    with pytest.raises(WeightsError, match="no such file or folder"):
        load_backbone(tmp_path / "gone")


def test_half_precision_only_where_the_processor_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for native, expected in ((True, torch.bfloat16), (False, None)):
        monkeypatch.setattr("sohes.backbones.precision._cpu_has_bf16", lambda native=native: native)
        assert autocast_dtype("cpu") is expected
        with autocast("cpu"):
            assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == (expected or torch.float32)
        with autocast("cpu", enabled=False):
            assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32
