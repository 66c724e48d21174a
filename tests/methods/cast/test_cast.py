"""CAST itself under both objectives: what it takes, learns and leaves."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from sohes.backbones import timm_cast
from sohes.backbones.provenance import RANDOM, Provenance
from sohes.backbones.timm_folder import build_backbone, load_backbone_folder, save_backbone_folder
from sohes.data.coco import read_coco
from sohes.errors import ConfigError
from sohes.methods.cast.module import MocoModule
from sohes.methods.cast.settings import CastConfig, ContrastSettings
from sohes.methods.cast.views import ViewPairs, collate
from tests.methods.cast.test_module import HEADS, batch
from tests.methods.cast.tiny import TINY, run, squares

VIEWS: dict[str, Any] = {"view_px": 64, "superpixel_px": 16, "area_min": 0.8, "momentum": 0.9, "lr": 3e-3}


def tiny_cast(architecture: str) -> dict[str, Any]:
    arguments = {"embed_dim": 32, "num_heads": 4, "depths": [1, 1, 1, 1], "tokens": [8, 4, 2, 2], "img_size": 64}
    return {"architecture": architecture, "model_args": arguments}


@pytest.fixture(params=["cast_small", "cast_small_fusion"])
def cast_start(request: pytest.FixtureRequest, start: Path, tmp_path: Path) -> Path:
    """A random CAST and images."""
    folder = tmp_path / "start"
    folder.mkdir()
    (folder / "images").symlink_to(start / "images")
    torch.manual_seed(0)
    model = build_backbone(tiny_cast(request.param))
    save_backbone_folder(folder / "backbone", model, Provenance(timm_name=request.param, steps=(RANDOM,)))
    return folder


@pytest.mark.parametrize("architecture", ["cast_small", "cast_small_fusion"])
def test_every_parameter_learns(architecture: str) -> None:
    torch.manual_seed(0)
    trained = MocoModule(build_backbone(tiny_cast(architecture)), ContrastSettings(**HEADS), iterations=10).train()
    outputs = trained(**batch(side=64, superpixels=16))
    outputs["loss"].backward()
    silent = [name for name, p in trained.named_parameters() if p.requires_grad and p.grad is None]
    assert not silent  # or a distributed training would wait for them


@pytest.mark.parametrize("architecture", ["cast_small", "cast_small_fusion"])
def test_a_fixed_batch_is_learnt_by_heart(architecture: str, start: Path) -> None:
    """Two views of each of eight scenes, in 40 steps."""
    torch.manual_seed(0)
    trained = MocoModule(build_backbone(tiny_cast(architecture)), ContrastSettings(**HEADS), iterations=40).train()
    items = read_coco(start / "images" / "train.json").items
    samples = ViewPairs(items, CastConfig(**TINY | VIEWS), batch_size=8, seed=0, superpixels=squares)
    data = collate([samples[position] for position in range(8)])
    optimizer = torch.optim.AdamW([p for p in trained.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for step in range(40):
        trained.follow(step)
        loss = trained(**data)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])


def test_moco(cast_start: Path, tmp_path: Path) -> None:
    """The folder that is left gives finite features by the training's superpixels."""
    out = run(cast_start, tmp_path / "out", **VIEWS, iterations=2)
    left = load_backbone_folder(out / "backbone")
    assert left.timm_config["model_args"]["superpixels"]["method"] == "grid"
    assert left.model.superpixel_settings["block_px"] == 16
    found = timm_cast.DenseCAST(left)(torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)))
    assert found.map.shape == (2, 32 if left.model.fusion else 128, 8, 8)
    assert bool(found.map.isfinite().all())


def test_classification_learns_positions(start: Path, tmp_path: Path) -> None:
    """The images of a folder for each class; SEEDS finds the superpixels."""
    from sohes.data.stage import ImagesConfig, images

    for name in ("even", "odd"):
        (tmp_path / "photos" / name).mkdir(parents=True)
    for number, path in enumerate(sorted((start / "images" / "train").glob("*.png"))):
        shutil.copy(path, tmp_path / "photos" / ("even", "odd")[number % 2])
    images(ImagesConfig(folder=str(tmp_path / "photos"), val_fraction=0.2), {}, tmp_path / "images")
    torch.manual_seed(0)
    model = build_backbone(tiny_cast("cast_small"))
    before = model.pos_embed.clone()
    save_backbone_folder(tmp_path / "backbone", model, Provenance(timm_name="cast_small", steps=(RANDOM,)))
    out = run(tmp_path, tmp_path / "out", **VIEWS | {"superpixels": "seeds"}, iterations=3, objective="classify")
    left = load_backbone_folder(out / "backbone")
    assert left.timm_config["model_args"]["learned_positions"] is True
    assert not torch.equal(left.model.pos_embed, before)


def test_too_few_superpixels(cast_start: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"view_px=32 does not fit the backbone: .*4 superpixels"):
        run(cast_start, tmp_path / "out", view_px=32, superpixel_px=16)
