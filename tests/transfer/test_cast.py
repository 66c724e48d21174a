"""A CAST under the heads, from folder to measurement."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from sohes.backbones.timm_folder import load_backbone_folder, save_backbone_folder
from sohes.backbones.weights import resolve_weights
from sohes.errors import WeightsError
from transfer.data import write_label_maps
from transfer.stages import InstanceConfig, SemanticConfig, instance, semantic

pytestmark = [pytest.mark.transfer, pytest.mark.usefixtures("mm_stack")]


@pytest.mark.parametrize(
    ("stage", "config", "metric"),
    [
        (semantic, SemanticConfig(recipe="linear_frozen", iterations=2, n_pictures=1), "miou_dataset"),
        (instance, InstanceConfig(recipe="mask_rcnn_frozen", iterations=2, n_pictures=1), "box_ap"),
    ],
)
def test_a_stage_scores_it(stage: Any, config: Any, metric: str, cast: Path, scenes: Path, tmp_path: Path) -> None:
    result = stage(config, {"backbone": cast, "data": scenes}, tmp_path)
    row = result.measurements[0]
    assert (row.backbone, row.init, row.metric, row.n_images) == ("cast_tiny", "random weights", metric, 3)
    assert 0 <= row.value <= 100


def test_it_is_finetuned_and_its_batch_norms_keep_their_statistics(cast: Path, scenes: Path, tmp_path: Path) -> None:
    from transfer.mm_run import complete_config, load_recipe, train_and_evaluate

    recipe = load_recipe("semantic", "linear_frozen")
    recipe.model.backbone.frozen = False
    recipe.train_dataloader.batch_size = 2
    start = load_backbone_folder(cast)
    config = complete_config(
        recipe, backbone=cast, folder=start, data=write_label_maps(scenes, tmp_path / "maps"), out=tmp_path,
        iterations=2, seed=0,
    )  # fmt: skip
    run = train_and_evaluate(config, tmp_path, checkpoint_every=100)
    before, after = start.model.state_dict(), run.runner.model.backbone.vit.state_dict()
    moved = {key for key, values in before.items() if not torch.equal(after[key].cpu(), values)}
    assert {
        "patch_embed.proj.0.weight",
        "patch_embed.proj.1.weight",
        "blocks.0.attn.qkv.weight",
        "norm.weight",
    } <= moved
    assert not [key for key in moved if "running" in key or key.startswith("pools.3.")]


def test_a_resnet_is_refused_before_training(scenes: Path, tmp_path: Path) -> None:
    folder = save_backbone_folder(tmp_path / "resnet", *resolve_weights("random:test_resnet"))
    with pytest.raises(WeightsError, match="test_resnet is a ResNet, where a ViT or CAST is needed"):
        semantic(SemanticConfig(recipe="linear_frozen"), {"backbone": folder, "data": scenes}, tmp_path / "out")
    assert not list((tmp_path / "out").glob("*.log"))
