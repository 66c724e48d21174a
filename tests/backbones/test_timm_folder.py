"""A folder written here is one that timm loads, bit for bit."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from timm.models import save_for_hf

from sohes.backbones.provenance import RANDOM, Provenance
from sohes.backbones.timm_folder import (
    BackboneFolder,
    build_vit,
    input_normalisation,
    load_backbone_folder,
    save_backbone_folder,
)
from sohes.errors import DataError, WeightsError


def features(model: torch.nn.Module, side: int) -> torch.Tensor:
    images = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return model.eval().forward_features(images)


def test_timm_loads_what_was_saved(tmp_path: Path, variant: BackboneFolder) -> None:
    folder = save_backbone_folder(tmp_path / "vit", variant.model, variant.provenance)
    by_timm = timm.create_model(f"local-dir:{folder}", pretrained=True)
    again = load_backbone_folder(folder).model
    side = variant.model.patch_embed.img_size[0]
    expected = features(variant.model, side)
    assert torch.equal(features(by_timm, side), expected)
    assert torch.equal(features(again, side), expected)
    assert again.num_prefix_tokens == variant.model.num_prefix_tokens


def test_saved_twice_is_the_same(tmp_path: Path, saved: Path) -> None:
    loaded = load_backbone_folder(saved)
    again = save_backbone_folder(tmp_path / "again", loaded.model, loaded.provenance)
    for name in ("config.json", "model.safetensors", "provenance.json"):
        assert (again / name).read_bytes() == (saved / name).read_bytes()


def test_provenance(saved: Path) -> None:
    provenance = load_backbone_folder(saved).provenance
    digest = hashlib.sha256((saved / "model.safetensors").read_bytes()).hexdigest()
    assert provenance == Provenance(timm_name="test_vit", steps=(replace(RANDOM, sha256=digest),), sha256=digest)


def test_a_folder_made_elsewhere(tmp_path: Path) -> None:
    model = timm.create_model("test_vit", num_classes=7)  # with a classifier, which features do not need
    save_for_hf(model, str(tmp_path / "theirs"), safe_serialization=True)
    loaded = load_backbone_folder(tmp_path / "theirs")
    (step,) = loaded.provenance.steps
    assert (step.method, step.supervision, step.note) == ("timm folder theirs", "unknown", "left out: head.*")
    assert torch.equal(features(loaded.model, 160), features(model, 160))


def test_any_input_size(saved: Path) -> None:
    model = load_backbone_folder(saved).model
    assert features(model, 64).shape == (2, 1 + 16, 64)


def test_normalisation_comes_from_the_config_and_stays_there(saved: Path) -> None:
    config = json.loads((saved / "config.json").read_text())
    config["pretrained_cfg"] |= {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}
    (saved / "config.json").write_text(json.dumps(config))
    mean, std = input_normalisation(load_backbone_folder(saved).model)
    assert mean.shape == std.shape == (1, 3, 1, 1)
    assert mean.flatten().tolist() == pytest.approx([0.1, 0.2, 0.3])
    assert std.flatten().tolist() == pytest.approx([0.4, 0.5, 0.6])
    plain = input_normalisation(build_vit({"architecture": "test_vit"}))[0]  # another model of the same architecture
    assert plain.flatten().tolist() == pytest.approx([0.5, 0.5, 0.5])


def test_missing_files(saved: Path) -> None:
    (saved / "model.safetensors").unlink()
    with pytest.raises(WeightsError, match=r"model\.safetensors: no such file"):
        load_backbone_folder(saved)
    (saved / "config.json").unlink()
    with pytest.raises(WeightsError, match=r"not a timm folder, config\.json is missing"):
        load_backbone_folder(saved)


def test_damaged_files(saved: Path) -> None:
    content = (saved / "model.safetensors").read_bytes()
    (saved / "model.safetensors").write_bytes(content[: len(content) // 2])
    with pytest.raises(WeightsError, match=r"model\.safetensors: damaged .*; copy or download it again"):
        load_backbone_folder(saved)
    (saved / "config.json").write_text("{")
    with pytest.raises(DataError, match=r"config\.json: not valid JSON"):
        load_backbone_folder(saved)


def test_a_config_that_names_nothing(saved: Path) -> None:
    (saved / "config.json").write_text("{}")
    with pytest.raises(WeightsError, match=r"config\.json: no field 'architecture'"):
        load_backbone_folder(saved)


def test_weights_that_do_not_fit_are_listed(saved: Path) -> None:
    state = load_file(saved / "model.safetensors")
    state["extra"] = state.pop("norm.weight")
    state["cls_token"] = torch.zeros(1, 1, 32)
    for key in [key for key in state if key.startswith("blocks.5.")]:
        del state[key]
    save_file(state, saved / "model.safetensors")
    with pytest.raises(WeightsError) as caught:
        load_backbone_folder(saved)
    message = str(caught.value)
    assert "13 missing: " in message
    assert "and 8 more" in message
    assert "1 unexpected: extra" in message
    assert "1 of another shape: cls_token (1, 1, 32) instead of (1, 1, 64)" in message
    assert "weights.architecture=" in message


def test_half_precision_weights_are_loaded_into_single(saved: Path) -> None:
    path = saved / "model.safetensors"
    save_file({key: value.half() for key, value in load_file(path).items()}, path)
    assert load_backbone_folder(saved).model.cls_token.dtype == torch.float32


def test_an_interrupted_write_keeps_the_old_folder(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {path.name: path.read_bytes() for path in saved.iterdir()}

    def fail(*_: object) -> None:
        raise OSError("unplugged")

    loaded = load_backbone_folder(saved)
    monkeypatch.setattr("sohes.backbones.timm_folder.write_json", fail)
    with pytest.raises(OSError, match="unplugged"):
        save_backbone_folder(saved, loaded.model, loaded.provenance)
    assert {path.name: path.read_bytes() for path in saved.iterdir()} == before
    assert [path.name for path in saved.parent.iterdir()] == [saved.name]


def test_what_is_not_a_vit_is_refused() -> None:
    with pytest.raises(WeightsError, match="did you mean 'vit_base_patch16_224'"):
        build_vit({"architecture": "vit_base_patch16_22"})
    with pytest.raises(WeightsError, match=r"resnet18 is a ResNet, where a ViT is needed: choose a timm vit_\* model"):
        build_vit({"architecture": "resnet18"})
    with pytest.raises(WeightsError, match=r"test_convnext: neither a ViT that takes any input size nor a ResNet"):
        build_vit({"architecture": "test_convnext"})
