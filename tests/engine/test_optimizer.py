"""Which parameter learns how fast."""

from __future__ import annotations

import pytest
import timm
from timm.optim import param_groups_layer_decay

from sohes.engine.optimizer import freeze_blocks, layer_factors, parameter_groups
from tests.segmenters.tiny import tiny_segmenter


def test_parameter_groups() -> None:
    model = tiny_segmenter()
    groups = parameter_groups(model, lr=1.0, weight_decay=0.5, factors=dict.fromkeys(model.vit.parameters(), 0.25))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    placed = {names[id(p)]: (group["lr"], group["weight_decay"]) for group in groups for p in group["params"]}
    assert len(placed) == sum(len(group["params"]) for group in groups) == len(names)  # each once
    vit = "model.pixel_level_module.encoder.vit."
    expected = {
        vit + "blocks.0.attn.qkv.weight": (0.25, 0.5),
        vit + "patch_embed.proj.weight": (0.25, 0.5),
        vit + "blocks.0.attn.qkv.bias": (0.25, 0.0),
        vit + "norm.weight": (0.25, 0.0),
        vit + "pos_embed": (0.25, 0.0),
        vit + "cls_token": (0.25, 0.0),
        "class_predictor.weight": (1.0, 0.5),
        "class_predictor.bias": (1.0, 0.0),
        "ancestor_head.threshold": (1.0, 0.0),
        "model.pixel_level_module.decoder.level_embed": (1.0, 0.0),
        "model.transformer_module.level_embed.weight": (1.0, 0.0),
        "model.transformer_module.queries_embedder.weight": (1.0, 0.0),
        "model.transformer_module.queries_features.weight": (1.0, 0.0),
    }
    assert {name: placed[name] for name in expected} == expected
    decayed = [name for name, (_, decay) in placed.items() if decay]
    assert not [name for name in decayed if "norm" in name or name.endswith("bias")]


def test_embeddings_may_decay() -> None:
    """Tokens and position tables, as in DINO's code; vectors never do."""
    vit = timm.create_model("vit_tiny_patch16_224", depth=1, embed_dim=32, num_heads=2, num_classes=0)
    for decays in (False, True):
        groups = parameter_groups(vit, lr=1.0, weight_decay=0.5, decay_embeddings=decays)
        decayed = {id(p) for group in groups if group["weight_decay"] for p in group["params"]}
        assert {id(vit.cls_token) in decayed, id(vit.pos_embed) in decayed} == {decays}
        assert id(vit.patch_embed.proj.weight) in decayed
        assert not decayed & {id(p) for p in vit.parameters() if p.ndim < 2}


@pytest.mark.parametrize("architecture", ["vit_tiny_patch16_224", "vit_small_patch16_dinov3"])
def test_layer_decay_counts_layers_as_timm_does(architecture: str) -> None:
    vit = timm.create_model(architecture, depth=3, embed_dim=32, num_heads=2, num_classes=0)
    factors = layer_factors(vit, 0.25)
    groups = parameter_groups(vit, lr=0.5, weight_decay=0.0, factors=factors)
    found = {id(p): group["lr"] for group in groups for p in group["params"]}
    reference = param_groups_layer_decay(vit, layer_decay=0.25)
    expected = {id(p): 0.5 * group["lr_scale"] for group in reference for p in group["params"]}
    assert found == pytest.approx(expected)
    assert found[id(vit.blocks[-1].mlp.fc2.weight)] == found[id(vit.norm.weight)] == 0.5
    assert found[id(vit.patch_embed.proj.weight)] == pytest.approx(0.5 * 0.25**3)


def test_under_a_head_the_norm_counts_to_the_head() -> None:
    """As `get_num_layer_for_vit` of BEiT: embeddings 0, blocks 1 to depth, the rest depth + 1."""
    vit = timm.create_model("vit_tiny_patch16_224", depth=3, embed_dim=32, num_heads=2, num_classes=0)
    factors = layer_factors(vit, 0.5, with_head=True)
    found = {name: factors[parameter] for name, parameter in vit.named_parameters()}
    assert found["norm.weight"] == found["norm.bias"] == 1.0
    assert [found[f"blocks.{place}.norm1.weight"] for place in range(3)] == [0.125, 0.25, 0.5]
    assert found["pos_embed"] == found["cls_token"] == found["patch_embed.proj.bias"] == 0.0625


def test_poolings_of_a_cast_learn_as_the_block_before_them() -> None:
    """Worked by hand: embeddings 0, blocks 1 to 5, of which levels end at 2, 3, 4 and 5; what reads them, 6."""
    for name, last in (("cast_small", "norm.weight"), ("cast_small_fusion", "fusion.proj.weight")):
        cast = timm.create_model(name, depths=(2, 1, 1, 1), embed_dim=24, num_classes=0)
        factors = layer_factors(cast, 0.5, with_head=True)
        found = {name: factors[parameter] for name, parameter in cast.named_parameters()}
        assert [found[f"blocks.{place}.norm1.weight"] for place in range(5)] == [2.0**-k for k in (5, 4, 3, 2, 1)]
        assert [found[f"pools.{level}.affinity.bias"] for level in range(4)] == [2.0**-k for k in (4, 3, 2, 1)]
        assert found["patch_embed.proj.0.weight"] == found["pos_embed"] == found["cls_token"] == 2.0**-6
        assert found[last] == 1.0
        assert layer_factors(cast, 0.5)[dict(cast.named_parameters())[last]] == 1.0


def test_frozen_parameters_are_in_no_group() -> None:
    model = tiny_segmenter()
    freeze_blocks(model.vit, 1)
    trained = {name for name, parameter in model.vit.named_parameters() if parameter.requires_grad}
    assert trained == {name for name, _ in model.vit.named_parameters() if name.startswith(("blocks.1.", "norm."))}
    groups = parameter_groups(model, lr=1.0, weight_decay=0.0)
    assert all(parameter.requires_grad for group in groups for parameter in group["params"])


def test_nothing_is_frozen_by_default() -> None:
    model = tiny_segmenter()
    freeze_blocks(model.vit, 0)
    assert all(parameter.requires_grad for parameter in model.parameters())
