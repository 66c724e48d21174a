"""The adapter: starts at the plain ViT, adds to it, and is saved, loaded and trained as part of a segmenter."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoBackbone
from transformers.models.mask2former.modeling_mask2former import (
    Mask2FormerPixelDecoderEncoderMultiscaleDeformableAttention,
)

from sohes.backbones.adapter import TimmAdapter, TimmAdapterConfig, to_maps, to_tokens
from sohes.backbones.provenance import RANDOM, Provenance
from sohes.backbones.timm_folder import save_backbone_folder
from sohes.errors import ConfigError
from sohes.instruct.stage import InstructConfig
from sohes.layers.deformable_layer import DeformableAttention, pixel_centres
from sohes.segmenters.mask2former import Mask2FormerSegmenter, PixelDecoderAttention, build_mask2former
from tests.backbones.conftest import VARIANTS as PLAIN

VARIANTS: dict[str, dict[str, Any]] = PLAIN | {
    "rotated positions": {
        "architecture": "vit_small_patch16_dinov3",
        "model_args": {"depth": 5, "embed_dim": 64, "num_heads": 2, "img_size": 64},
    },
}
SEGMENTER = {
    "num_queries": 6,
    "feature_size": 32,
    "mask_feature_size": 32,
    "hidden_dim": 32,
    "encoder_feedforward_dim": 64,
    "dim_feedforward": 64,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "num_attention_heads": 2,
    "ancestor_dim": 8,
}


def build(variant: str = "patch 16") -> TimmAdapter:
    torch.manual_seed(0)
    return TimmAdapter(TimmAdapterConfig(timm_config=VARIANTS[variant])).eval()


def opened(model: TimmAdapter) -> TimmAdapter:
    """The same as if it had been trained: its injectors inject, and queries decide where attention falls."""
    model = copy.deepcopy(model)
    for injector in model.injectors:
        nn.init.normal_(injector.gamma)
    for module in model.modules():
        if isinstance(module, DeformableAttention):
            nn.init.normal_(module.sampling_offsets.weight, std=0.1)
            nn.init.normal_(module.attention_weights.weight, std=0.1)
    return model


def last_tokens(model: TimmAdapter, images: Tensor) -> Tensor:
    """All tokens after the last block and norm."""
    seen: list[Tensor] = []
    handle = model.vit.norm.register_forward_hook(lambda module, inputs, output: seen.append(output))
    model(images)
    handle.remove()
    return seen[-1]


@pytest.mark.parametrize(
    ("variant", "patch"), [("patch 8", 8), ("patch 14", 14), ("patch 16", 16), ("register tokens", 14)]
)
@torch.no_grad()
def test_maps_at_a_quarter_half_once_and_twice_the_stride(variant: str, patch: int) -> None:
    maps = build(variant)(torch.randn(2, 3, 4 * patch, 7 * patch)).feature_maps
    assert [tuple(one.shape) for one in maps] == [(2, 64, 16, 28), (2, 64, 8, 14), (2, 64, 4, 7), (2, 64, 2, 3)]


@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_starts_exactly_at_the_plain_vit(variant: str) -> None:
    model = build(variant)
    side = 3 * int(model.vit.patch_embed.patch_size[0])
    images = torch.randn(1, 3, side, 2 * side)
    expected = model.vit.forward_features(images)
    assert torch.equal(last_tokens(model, images), expected)
    assert not torch.allclose(last_tokens(opened(model), images), expected, atol=1e-3)


@torch.no_grad()
def test_maps_see_finer_than_a_patch() -> None:
    """Pixels swapped within one patch, whose sum stays: the maps change near it and hardly anywhere else."""
    model, images = build(), torch.zeros(1, 3, 96, 96)
    images[..., 32:36, 32:36] = 3.0
    moved = images.roll((8, 8), dims=(2, 3))
    first, second = model(images).feature_maps[0][0], model(moved).feature_maps[0][0]
    assert (first[:, 8, 8] - second[:, 8, 8]).norm() > 5 * (first[:, 22, 22] - second[:, 22, 22]).norm()


@torch.no_grad()
def test_an_image_does_not_depend_on_its_batch() -> None:
    model, images = opened(build()).train().double(), torch.randn(3, 3, 32, 48, dtype=torch.float64)
    together = model(images).feature_maps
    for index in range(3):
        for one, all_of_them in zip(model(images[index : index + 1]).feature_maps, together, strict=True):
            torch.testing.assert_close(one[0], all_of_them[index], atol=1e-4, rtol=1e-4)


def test_every_parameter_learns_and_checkpointing_changes_nothing() -> None:
    model, images = opened(build("patch 14")), torch.randn(2, 3, 28, 42)
    found = []
    for checkpointing in (False, True):
        model.vit.set_grad_checkpointing(checkpointing)
        model.zero_grad()
        sum((one * one.detach().sin()).sum() for one in model(images).feature_maps).backward()
        assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []
        found.append({name: parameter.grad.clone() for name, parameter in model.named_parameters()})
    for name, gradient in found[0].items():
        assert gradient.abs().max() > 0, name
        torch.testing.assert_close(found[1][name], gradient)


def test_the_blocks_are_spread_evenly() -> None:
    """Six blocks over four stages, in order: 1, 2, 1, 2."""
    model, order = build(), []
    for number, block in enumerate(model.vit.blocks):
        block.register_forward_hook(lambda *_, number=number: order.append(number))
    for injector in model.injectors:
        injector.register_forward_hook(lambda *_: order.append("injector"))
    with torch.no_grad():
        model(torch.randn(1, 3, 32, 32))
    assert order == ["injector", 0, "injector", 1, 2, "injector", 3, "injector", 4, 5]


def test_tokens_and_maps_are_each_others_reverse() -> None:
    maps = [torch.randn(2, 5, 4, 6), torch.randn(2, 5, 2, 3)]
    tokens = to_tokens(maps)
    assert torch.equal(tokens[1, 24 + 3 + 2], maps[1][1, :, 1, 2])
    assert all(torch.equal(one, other) for one, other in zip(to_maps(tokens, [(4, 6), (2, 3)]), maps, strict=True))


def test_pixel_centres() -> None:
    centres = pixel_centres([(2, 4), (1, 1)], torch.device("cpu"))
    assert centres.shape == (1, 9, 1, 2)
    assert centres[0, 5, 0].tolist() == [0.375, 0.75]  # second row, second column
    assert centres[0, 8, 0].tolist() == [0.5, 0.5]


@torch.no_grad()
def test_attention_starts_on_a_ring_with_equal_weights() -> None:
    """One map that holds its own column: a head that attends to the right sees 1 to 4 more, on average 2.5."""
    layer = DeformableAttention(8, heads=4, levels=1)
    assert layer.value_proj.out_features == 4
    for projection in (layer.value_proj, layer.output_proj):
        nn.init.zeros_(projection.weight)
    layer.value_proj.weight[:, 0] = 1
    layer.output_proj.weight[:4, :4] = torch.eye(4)
    tokens = torch.zeros(1, 15 * 15, 8)
    tokens[0, :, 0] = torch.arange(15.0).repeat(15)
    output = layer(torch.randn(1, 1, 8), torch.tensor([0.5, 0.5]).view(1, 1, 1, 2), tokens, [(15, 15)])
    torch.testing.assert_close(output[0, 0, :4], torch.tensor([9.5, 7.0, 4.5, 7.0]))


@pytest.mark.parametrize("variant", ["patch 14", "rotated positions"])
@torch.no_grad()
def test_saved_and_loaded(variant: str, tmp_path: Path) -> None:
    """Rotary frequencies too, which are in no file."""
    model = opened(build(variant))
    model.save_pretrained(tmp_path)
    again = TimmAdapter.from_pretrained(tmp_path).eval()
    state = again.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    side = 2 * int(model.vit.patch_embed.patch_size[0])
    images = torch.randn(1, 3, side, 2 * side)
    for one, other in zip(again(images).feature_maps, model(images).feature_maps, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def test_its_library_finds_it_by_its_config() -> None:
    model = AutoBackbone.from_config(TimmAdapterConfig(timm_config=VARIANTS["patch 16"]))
    assert isinstance(model, TimmAdapter)
    assert model.channels == [64, 64, 64, 64]


@pytest.mark.parametrize("neck", ["adapter", "pyramid"])
@torch.no_grad()
def test_a_segmenter_saved_and_loaded(neck: str, tmp_path: Path) -> None:
    model = build_mask2former(VARIANTS["patch 8"], neck=neck, seed=0, pyramid_dim=32, **SEGMENTER).eval()
    assert model.model.pixel_level_module.encoder.config.model_type == f"timm_vit_{neck}"
    if neck == "adapter":
        model.model.pixel_level_module.encoder = opened(model.model.pixel_level_module.encoder)
    model.save_pretrained(tmp_path)
    again = Mask2FormerSegmenter.from_pretrained(tmp_path).eval()
    pixels = torch.randn(1, 3, 32, 48)
    found, expected = again(pixels), model(pixels)
    assert torch.equal(found.mask_logits(), expected.mask_logits())
    assert torch.equal(found.entity_logits[-1], expected.entity_logits[-1])
    assert torch.equal(found.ancestor_logits, expected.ancestor_logits)


@pytest.mark.parametrize("neck", ["adapter", "pyramid"])
@torch.no_grad()
def test_stochastic_depth_is_in_training_alone(neck: str, tmp_path: Path) -> None:
    options = {"neck": neck, "seed": 0, "pyramid_dim": 32} | SEGMENTER
    timm_config = VARIANTS["patch 16"]
    plain = build_mask2former(timm_config, **options).eval()
    build_mask2former(timm_config, **options, drop_path_rate=0.3).save_pretrained(tmp_path / "segmenter")
    model = Mask2FormerSegmenter.from_pretrained(tmp_path / "segmenter").eval()  # as phase 3 finds it
    assert "model_args" not in timm_config
    rates = [getattr(block.drop_path2, "drop_prob", 0.0) for block in model.vit.blocks]
    assert rates == pytest.approx([0, 0.06, 0.12, 0.18, 0.24, 0.3])
    encoder = model.model.pixel_level_module.encoder
    assert neck == "pyramid" or [each.drop_path.drop_prob for each in encoder.extractors] == [0.3] * 4

    pixels = torch.randn(2, 3, 32, 48)
    torch.testing.assert_close(model(pixels).mask_logits(), plain(pixels).mask_logits(), atol=1e-5, rtol=1e-5)
    model.train()
    found = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        found.append(model(pixels).mask_logits())
    assert torch.equal(found[0], found[1])
    assert not torch.allclose(found[0], found[2], atol=1e-3)

    folder = save_backbone_folder(tmp_path / "vit", model.vit, Provenance(timm_name="test_vit", steps=(RANDOM,)))
    assert "drop_path" not in (folder / "config.json").read_text()


@torch.no_grad()
def test_the_pixel_decoder_attends_as_its_library_does() -> None:
    """Same parameters, same start, same output as the module whose place it takes."""
    model = build_mask2former(VARIANTS["patch 8"], neck="pyramid", seed=0, pyramid_dim=32, **SEGMENTER)
    for layer in model.model.pixel_level_module.decoder.encoder.layers:
        ours = layer.self_attn
        assert type(ours) is PixelDecoderAttention
        theirs = Mask2FormerPixelDecoderEncoderMultiscaleDeformableAttention(32, 2, 3, 4)
        assert ours.sampling_offsets.bias.view(2, 3, 4, 2)[1, 2, 3].tolist() == pytest.approx([-4, 0], abs=1e-5)
        nn.init.normal_(ours.sampling_offsets.weight)
        theirs.load_state_dict(ours.state_dict())
        shapes = [(2, 3), (4, 6), (8, 12)]
        tokens, positions = torch.randn(2, 2, 126, 32).unbind()
        arguments = {
            "encoder_hidden_states": tokens,
            "position_embeddings": positions,
            "reference_points": pixel_centres(shapes, tokens.device).expand(2, -1, 3, -1),
            "spatial_shapes_list": shapes,
        }
        for one, other in zip(ours(tokens, **arguments), theirs(tokens, **arguments), strict=True):
            torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


def test_a_neck_that_does_not_exist() -> None:
    assert InstructConfig().neck == "adapter"
    with pytest.raises(ConfigError, match="unknown neck 'piramid'; did you mean 'pyramid'"):
        InstructConfig(neck="piramid")
