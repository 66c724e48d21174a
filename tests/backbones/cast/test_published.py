"""Checkpoints of the published shapes and names; a number per tensor, so that each is seen where it belongs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor

from sohes.backbones.cast.published import from_published
from sohes.backbones.timm_folder import load_backbone_folder, save_backbone_folder
from sohes.backbones.weights import resolve_weights
from sohes.errors import WeightsError

State = dict[str, Tensor]


def constant(value: int, *shape: int) -> Tensor:
    """One number in memory."""
    return torch.full((1,), float(value)).expand(*shape)


def linear(name: str, inside: int, outside: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (outside, inside), f"{name}.bias": (outside,)}


def norm(name: str, dim: int, *, batch: bool = False) -> dict[str, tuple[int, ...]]:
    running = {f"{name}.running_mean": (dim,), f"{name}.running_var": (dim,)} if batch else {}
    return {f"{name}.weight": (dim,), f"{name}.bias": (dim,)} | running


def published(*, deep: bool = False, fusion: bool = False, learned: bool = False) -> State:
    """A CAST-S as it is published, in the order of its parts."""
    dim, depths = 384, (6, 3, 3, 3) if deep else (3, 3, 3, 2)
    shapes: dict[str, tuple[int, ...]] = {"cls_token": (1, 1, dim)}
    shapes |= {"pos_embed": (1, 785, dim)} if learned else {"pos_embed": (1, 784, dim), "pe_token": (1, 1, dim)}
    inside = 3
    for place, width in enumerate((dim // 8, dim // 4, dim // 2, dim)):
        shapes[f"patch_embed.proj.{3 * place}.weight"] = (width, inside, 3, 3)
        shapes |= norm(f"patch_embed.proj.{3 * place + 1}", width, batch=True)
        inside = width
    shapes |= {"patch_embed.proj.12.weight": (dim, dim, 1, 1), "patch_embed.proj.12.bias": (dim,)}
    block = (
        norm("norm1", dim)
        | linear("attn.qkv", dim, 3 * dim)
        | linear("attn.proj", dim, dim)
        | norm("norm2", dim)
        | linear("mlp.fc1", dim, 4 * dim)
        | linear("mlp.fc2", 4 * dim, dim)
    )
    pool = (
        {"centroid_fc.bias": (dim,)}
        | norm("centroid_fc.norm", dim)
        | linear("centroid_fc.attn.qkv", dim, 3 * dim)
        | linear("centroid_fc.attn.proj", dim, dim)
        | norm("fc1.0", dim)
        | linear("fc1.1", dim, 4 * dim)
        | norm("fc2.0", 4 * dim)
        | linear("fc2.1", 4 * dim, dim)
    )
    first = 0
    for level, depth in enumerate(depths, start=1):
        for place in range(depth):
            number = place if fusion else first + place
            shapes |= {f"blocks{level}.{number}.{name}": shape for name, shape in block.items()}
        shapes |= {f"pool{level}.pool_block.{name}": shape for name, shape in pool.items()}
        first += depth
    if fusion:
        shapes |= norm("block_fusion.proj_blocks.0.norm", 4 * dim, batch=True)
        shapes |= linear("block_fusion.proj_blocks.2", 4 * dim, dim)
    else:
        shapes |= norm("norm", dim)
    state = {name: constant(place % 2048, *shape) for place, (name, shape) in enumerate(shapes.items(), start=1)}
    if not fusion:  # every block twice
        state |= {"blocks" + name[7:]: value for name, value in state.items() if name.startswith("blocks")}
    return state


def prefixed(state: State, prefix: str) -> State:
    return {prefix + name: value for name, value in state.items()}


def moco(state: State) -> dict[str, Any]:
    """As MoCo-v3's code saves it, with heads of three layers."""
    heads = {"head.0.weight": constant(1, 4096, 384), "head.1.running_mean": constant(1, 4096)}
    other = {name: value + 1 for name, value in state.items() if value.numel() < 10_000}
    return {
        "epoch": 100,
        "state_dict": prefixed(state | heads, "module.base_encoder.")
        | prefixed(other | {"pool1.pool_block.centroid_fc.bias": constant(7, 384)}, "module.momentum_encoder.")
        | {"module.predictor.0.weight": constant(1, 4096, 256)},
    }


def deit(state: State) -> dict[str, Any]:
    """As DeiT's code saves it, with a classifier and a moving average."""
    state = state | {"head.weight": constant(1, 1000, 384), "head.bias": constant(1, 1000)}
    return {"model": state, "model_ema": {name: constant(2000, *value.shape) for name, value in state.items()}}


FORMS: dict[str, tuple[dict[str, bool], Callable[[State], dict[str, Any]], str, str]] = {
    "MoCo-v3": ({}, moco, "cast_small", "none (probable)"),
    "MoCo-v3, deep": ({"deep": True}, moco, "cast_small_deep", "none (probable)"),
    "MoCo-v3, fusion": ({"fusion": True}, moco, "cast_small_fusion", "none (probable)"),
    "DeiT": ({"learned": True}, deit, "cast_small", "image labels (probable)"),
}


@pytest.mark.parametrize("form", FORMS)
def test_published_files(form: str, tmp_path: Path) -> None:
    parts, wrap, name, supervision = FORMS[form]
    state = published(**parts)
    torch.save(wrap(state), tmp_path / "checkpoint.pth")
    model, provenance = resolve_weights(str(tmp_path / "checkpoint.pth"))
    assert (provenance.timm_name, provenance.supervision) == (name, supervision)
    own = model.state_dict()
    # some by hand: first and last of a level, and what is renamed
    block = "blocks4.1." if "fusion" in form else f"blocks4.{14 if 'deep' in form else 10}."
    last = 14 if "deep" in form else 10
    pairs = {
        f"blocks.{last}.attn.qkv.weight": block + "attn.qkv.weight",
        "blocks.0.norm1.bias": "blocks1.0.norm1.bias",
        "pools.2.affinity.attn.proj.bias": "pool3.pool_block.centroid_fc.attn.proj.bias",
        "pools.0.expand.1.weight": "pool1.pool_block.fc1.1.weight",
        "pools.3.reduce.0.bias": "pool4.pool_block.fc2.0.bias",
        "patch_embed.proj.10.running_var": "patch_embed.proj.10.running_var",
    }
    if "deep" in form:
        pairs[f"blocks.{last}.attn.qkv.weight"] = "blocks4.14.attn.qkv.weight"
    pairs |= {"fusion.proj.bias": "block_fusion.proj_blocks.2.bias"} if "fusion" in form else {"norm.bias": "norm.bias"}
    for ours, their in pairs.items():
        assert torch.equal(own[ours], state[their]), ours
    table = state["pos_embed"] if form == "DeiT" else torch.cat([state["pe_token"], state["pos_embed"]], dim=1)
    assert torch.equal(own["pos_embed"], table)
    # all of them: each number once
    numbers = sorted(float(value.flatten()[0]) for value in from_published(state).values())
    found = sorted(float(value.flatten()[0]) for name, value in own.items() if "num_batches" not in name)
    assert found == numbers
    if form == "DeiT":
        assert model.pos_embed.requires_grad
        saved = load_backbone_folder(save_backbone_folder(tmp_path / "folder", model, provenance)).model
        assert saved.superpixel_settings == {"bins": 5, "iterations": 15}


def test_another_variant_is_refused_by_name(tmp_path: Path) -> None:
    torch.save(published(fusion=True), tmp_path / "moco.pth")
    with pytest.raises(WeightsError, match="these weights are of cast_small_fusion, not of cast_small;"):
        resolve_weights(str(tmp_path / "moco.pth"), architecture="cast_small")
    model, provenance = resolve_weights(str(tmp_path / "moco.pth"), architecture="cast_small_fusion.moco")
    assert provenance.steps[0].method == "file moco (CAST, by MoCo-v3)"
    assert isinstance(model, type(timm.create_model("cast_small_fusion", embed_dim=24)))


def test_own_weights_without_their_folder(tmp_path: Path) -> None:
    own = timm.create_model("cast_tiny", num_classes=0, embed_dim=24, depths=(1, 1, 1, 1)).state_dict()
    torch.save({"model": own}, tmp_path / "own.pth")
    with pytest.raises(WeightsError, match=r"own\.pth: weights of a CAST as this project saves them; give the folder"):
        resolve_weights(str(tmp_path / "own.pth"), architecture="cast_tiny")


def test_of_no_known_width(tmp_path: Path) -> None:
    state = {name: value for name, value in published().items() if not name.startswith(("blocks1.2", "blocks.2."))}
    torch.save(state, tmp_path / "moco.pth")
    with pytest.raises(WeightsError, match=r"a CAST of width 384 with 2, 3, 3, 2 blocks, which is none of cast_tiny,"):
        resolve_weights(str(tmp_path / "moco.pth"))
