from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from sohes.backbones.timm_folder import load_backbone_folder
from sohes.errors import ConfigError
from transfer.data import HeadData, write_instances, write_label_maps

pytestmark = [pytest.mark.transfer, pytest.mark.usefixtures("mm_stack")]

RECIPES = [
    ("semantic", "linear_frozen"),
    ("semantic", "upernet_160k"),
    ("instance", "mask_rcnn_frozen"),
    ("instance", "mask_rcnn_1x"),
]


@pytest.fixture(scope="module")
def prepared(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, HeadData]:
    out = tmp_path_factory.mktemp("prepared")
    return {
        "semantic": write_label_maps(scenes, out / "maps"),
        "instance": write_instances(scenes, out / "instances"),
    }


def completed(task: str, recipe: str, backbone: Path, data: HeadData, out: Path, iterations: int | None = None) -> Any:
    from transfer.mm_run import complete_config, load_recipe

    return complete_config(
        load_recipe(task, recipe),
        backbone=backbone,
        folder=load_backbone_folder(backbone),
        data=data,
        out=out,
        iterations=iterations,
        seed=0,
    )


@pytest.mark.parametrize("folder", ["backbone", "cast"])
@pytest.mark.parametrize(("task", "recipe"), RECIPES)
def test_every_recipe_builds_a_model_and_an_optimiser(
    task: str, recipe: str, folder: str, request: pytest.FixtureRequest, prepared: dict[str, HeadData], tmp_path: Path
) -> None:
    from mmengine.optim import build_optim_wrapper
    from mmengine.registry import MODELS, DefaultScope

    config = completed(task, recipe, request.getfixturevalue(folder), prepared[task], tmp_path)
    with DefaultScope.overwrite_default_scope(config.default_scope):
        model = MODELS.build(config.model)
        wrapper = build_optim_wrapper(model, config.optim_wrapper)
    n_classes = len(prepared[task].classes)
    head = model.decode_head if task == "semantic" else model.roi_head.bbox_head
    assert head.num_classes == n_classes
    trained = {id(parameter) for parameter in model.parameters() if parameter.requires_grad}
    given = {id(p) for group in wrapper.optimizer.param_groups for p in group["params"] if p.requires_grad}
    assert given == trained
    assert any(p.requires_grad for p in model.backbone.vit.parameters()) == (not model.backbone.frozen)
    mean = model.data_preprocessor.mean.flatten()
    torch.testing.assert_close(mean, 255 * torch.tensor(model.backbone.vit.pretrained_cfg["mean"]))
    assert config.param_scheduler[-1].end == config.iterations


def test_layer_decay_halves_the_rate_block_by_block(
    backbone: Path, prepared: dict[str, HeadData], tmp_path: Path
) -> None:
    from mmengine.optim import build_optim_wrapper
    from mmengine.registry import MODELS, DefaultScope

    config = completed("semantic", "upernet_160k", backbone, prepared["semantic"], tmp_path)
    config.optim_wrapper.paramwise_cfg.layer_decay = 0.5
    config.optim_wrapper.optimizer.lr = 1.0
    with DefaultScope.overwrite_default_scope("mmseg"):
        model = MODELS.build(config.model)
        groups = build_optim_wrapper(model, config.optim_wrapper).optimizer.param_groups
    found = {id(p): (group["lr"], group["weight_decay"]) for group in groups for p in group["params"]}
    vit = model.backbone.vit
    assert found[id(vit.pos_embed)] == (0.5**7, 0.0)
    assert found[id(vit.patch_embed.proj.weight)] == (0.5**7, 0.01)
    assert found[id(vit.blocks[0].mlp.fc1.weight)] == (0.5**6, 0.01)
    assert found[id(vit.blocks[5].mlp.fc1.bias)] == (0.5, 0.0)
    assert found[id(model.decode_head.conv_seg.weight)] == (1.0, 0.01)
    assert found[id(model.backbone.resample[1].weight)] == (1.0, 0.01)


def test_a_shorter_run_keeps_the_shape_of_the_schedule(
    backbone: Path, prepared: dict[str, HeadData], tmp_path: Path
) -> None:
    config = completed("instance", "mask_rcnn_1x", backbone, prepared["instance"], tmp_path, iterations=9_000)
    warmup, steps = config.param_scheduler
    assert (warmup.end, steps.end, steps.milestones) == (50, 9_000, [6_000, 8_250])
    assert config.train_cfg.max_iters == 9_000


def test_an_unknown_recipe_names_the_nearest() -> None:
    from transfer.mm_run import load_recipe

    with pytest.raises(ConfigError, match="did you mean 'linear_frozen'"):
        load_recipe("semantic", "linear_frosen")


def test_the_sampler_draws_by_position(prepared: dict[str, HeadData]) -> None:
    from transfer.mm_data import ResumableSampler

    def draws(skipped: int) -> list[tuple[int, float]]:
        sampler = ResumableSampler(list(range(5)), seed=1)
        sampler.skip(skipped)
        stream = iter(sampler)
        return [(next(stream), float(torch.rand(()))) for _ in range(12 - skipped)]

    assert draws(7) == draws(0)[7:]
    assert len({value for _, value in draws(0)}) == 12
