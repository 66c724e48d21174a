"""Phase 2 learns."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest
import torch

from sohes.backbones.timm_folder import save_backbone_folder
from sohes.backbones.weights import resolve_weights
from sohes.data.coco import read_coco
from sohes.data.label_store import LabelStore, LabelWriter
from sohes.data.scenes.scene import write_scenes
from sohes.errors import ConfigError, WeightsError
from sohes.instruct import training
from sohes.instruct.dataset import ForestSamples, collate
from sohes.instruct.module import InstructModule
from sohes.instruct.settings import SampleSettings
from sohes.instruct.stage import InstructConfig, instruct
from sohes.segmenters.entity import load_model
from tests.phases import COMMON, instruct_config
from tests.segmenters.tiny import KINDS, LOSSES, PROVENANCE, tiny_segmenter


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two generated scenes with their true forests as labels."""
    folder = tmp_path_factory.mktemp("scenes")
    write_scenes(folder, train=2, val=1, size=64)
    images = read_coco(folder / "train.json")
    with LabelWriter(folder / "labels", header={}) as writer:
        for item in images.items:
            forest = images.forest(item.id)
            forest.attributes.clear()
            writer.add(item.id, str(item.path), forest)
    return folder


@pytest.mark.parametrize(("kind", "steps"), [("pyramid", 10), ("adapter", 10), ("eomt", 60), ("patches", 60)])
def test_some_steps_reduce_every_term(scenes: Path, kind: str, steps: int) -> None:
    settings = SampleSettings(crop_px=64, scale_min=1, scale_max=1, flip=0, min_area_px=16)
    normal = {"mean": (0.5,) * 3, "std": (0.25,) * 3}
    images, store = read_coco(scenes / "train.json"), LabelStore(scenes / "labels")
    dataset = ForestSamples(images, store, settings, seed=0, length=2, **normal)
    batch = collate([dataset[0], dataset[1]])
    module = InstructModule(tiny_segmenter(kind, queries=16), LOSSES)
    optimizer = torch.optim.AdamW(module.parameters(), lr=2e-3)
    history = []
    for _ in range(steps):
        terms = module(**batch)
        assert set(terms) == {"loss_entity", "loss_mask", "loss_dice", "loss_ancestor"}
        loss = sum(terms.values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append({name: float(value.detach()) for name, value in terms.items()})
    assert sum(history[-1].values()) < 0.85 * sum(history[0].values())
    assert history[-1]["loss_ancestor"] < history[0]["loss_ancestor"]
    gradients = {name: parameter.grad for name, parameter in module.named_parameters()}
    assert [name for name, gradient in gradients.items() if gradient is None] == []  # what distributed training needs


@pytest.mark.parametrize("kind", ["pyramid", "eomt", "patches"])
@pytest.mark.parametrize(("bf16", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_bfloat16_where_the_device_has_it_and_the_setting_allows_it(
    scenes: Path, monkeypatch: pytest.MonkeyPatch, bf16: bool, dtype: torch.dtype, kind: str
) -> None:
    monkeypatch.setattr("sohes.backbones.precision._cpu_has_bf16", lambda: True)
    settings = SampleSettings(crop_px=64, scale_min=1, scale_max=1, flip=0, min_area_px=16)
    normal = {"mean": (0.5,) * 3, "std": (0.25,) * 3}
    images, store = read_coco(scenes / "train.json"), LabelStore(scenes / "labels")
    dataset = ForestSamples(images, store, settings, seed=0, length=2, **normal)
    module = InstructModule(tiny_segmenter(kind), LOSSES, bf16=bf16)
    seen = []
    module.segmenter.register_forward_hook(lambda _, inputs, output: seen.append(output.pixel_features[-1].dtype))
    terms = module(**collate([dataset[0]]))
    assert seen == [dtype]
    assert {value.dtype for value in terms.values()} == {torch.float32}


def test_canvas_must_fit_the_patches(scenes: Path, tmp_path: Path) -> None:
    inputs = {
        "backbone": save_backbone_folder(tmp_path / "vit", tiny_segmenter().vit, PROVENANCE),
        "images": scenes,
        "labels": scenes / "labels",
    }
    for crop, remedy in ((50, 48), (16, 32)):
        with pytest.raises(ConfigError, match=f"crop_px={crop} .* 16 px patches; try {remedy}"):
            instruct(InstructConfig(crop_px=crop, hidden_dim=32, queries=4), inputs, tmp_path / "out")


@pytest.mark.parametrize("kind", ["mask2former", "eomt"])
def test_a_resnet_is_refused(kind: Literal["mask2former", "eomt"], scenes: Path, tmp_path: Path) -> None:
    resnet = save_backbone_folder(tmp_path / "resnet", *resolve_weights("random:test_resnet"))
    inputs = {"backbone": resnet, "images": scenes, "labels": scenes / "labels"}
    with pytest.raises(WeightsError, match="test_resnet is a ResNet, where a ViT is needed"):
        instruct(InstructConfig(segmenter=kind, hidden_dim=32, queries=4), inputs, tmp_path / "out")


@pytest.mark.parametrize("kind", KINDS)
def test_the_vit_learns_slower_and_its_first_blocks_slowest(kind: str) -> None:
    module = InstructModule(tiny_segmenter(kind), LOSSES)
    config = InstructConfig(lr=1.0, backbone_lr_factor=0.5, layer_decay=0.5)
    groups = training._parameter_groups(module, module.segmenter, config)
    rates = {id(parameter): group["lr"] for group in groups for parameter in group["params"]}
    vit = module.segmenter.vit
    assert len(rates) == len(list(module.parameters()))
    assert rates[id(vit.norm.weight)] == rates[id(vit.blocks[1].mlp.fc1.weight)] == 0.5
    assert rates[id(vit.blocks[0].mlp.fc1.weight)] == 0.25
    assert rates[id(vit.pos_embed)] == 0.125
    assert rates[id(module.segmenter.class_predictor.weight)] == 1.0


@pytest.mark.parametrize("rule", [True, False])
def test_the_record_says_how_the_ancestor_head_started(start: Path, tmp_path: Path, rule: bool) -> None:
    inputs = {name: start / name for name in ("images", "labels", "backbone")}
    config = instruct_config(start, ancestor_rule=rule)
    result = instruct(config, inputs, tmp_path)
    said = "starts as the coverage rule" if rule else "from the queries alone"
    assert [note for note in result.notes if note.startswith("ancestor head: " + said)] == result.notes[-1:]
    model, _ = load_model(tmp_path / "segmenter")
    assert model.title.lower() == config.segmenter
    assert model.ancestor_head.rule is rule


def test_from_a_segmenter(scenes: Path, tmp_path: Path) -> None:
    """The second training begins where the first ended, and says so; another segmenter is refused."""
    inputs = {
        "backbone": save_backbone_folder(tmp_path / "vit", tiny_segmenter().vit, PROVENANCE),
        "images": scenes,
        "labels": scenes / "labels",
    }
    tiny = {**COMMON, "segmenter": "eomt", "query_start": "patches", "iterations": 2, "warmup": 0}
    instruct(InstructConfig(**tiny), inputs, tmp_path / "first")
    first = tmp_path / "first" / "segmenter"
    instruct(InstructConfig(**tiny | {"lr": 1e-12, "start": str(first)}), inputs, tmp_path / "second")
    (one, before), (two, after) = (load_model(tmp_path / name / "segmenter") for name in ("first", "second"))
    for name, value in one.state_dict().items():
        torch.testing.assert_close(two.state_dict()[name], value, atol=1e-9, rtol=1e-6)
    assert [step.method for step in after.steps] == [*(step.method for step in before.steps), "SOHES"]
    with pytest.raises(WeightsError, match=r"start=.*first/segmenter: not a segmenter of these settings; give"):
        instruct(InstructConfig(**tiny | {"query_start": "learnt", "start": str(first)}), inputs, tmp_path / "third")
    with pytest.raises(WeightsError, match="vit: not a segmenter folder"):
        instruct(InstructConfig(**tiny, start=str(tmp_path / "vit")), inputs, tmp_path / "fourth")
