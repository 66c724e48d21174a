"""One step: who learns, who follows, what is drawn at random."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sohes.backbones.timm_folder import build_vit
from sohes.errors import ConfigError
from sohes.methods.leopart.module import LeopartModule, drawn
from sohes.methods.leopart.network import SampledDropPath, install_drop_paths
from sohes.methods.leopart.settings import CropSettings, LeopartConfig, crop_sides
from sohes.methods.leopart.views import collate, draw_views, shared_boxes
from tests.backbones.conftest import VARIANTS, tiny
from tests.methods.leopart.tiny import TINY, VIT


def module(vit: Any = None, **changes: Any) -> LeopartModule:
    torch.manual_seed(0)
    config = LeopartConfig(**TINY | {"drop_path": 0.0} | changes)
    return LeopartModule(vit or build_vit(VIT), config, iterations=10, bf16=False).train()


def batch(images: int = 2, sides: tuple[int, int] = (64, 32), local: int = 2, first: int = 0) -> dict[str, Tensor]:
    """Noise, with the boxes of real crops."""
    samples = []
    for image in range(first, first + images):
        rng = torch.Generator().manual_seed(image)
        views = draw_views((200, 300), np.random.default_rng(image), CropSettings(local_crops=local), sides)
        boxes_global, boxes_all = shared_boxes(views)
        crops = [
            torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8, generator=rng)
            for count, side in zip((2, local), sides, strict=True)
        ]
        samples.append(
            {
                "global_crops": crops[0],
                "local_crops": crops[1],
                "boxes_global": boxes_global,
                "boxes_all": boxes_all,
                "key": torch.tensor(image),
            }
        )
    return collate(samples)


@pytest.mark.parametrize("kind", VARIANTS)
def test_any_vit_trains(kind: str) -> None:
    vit = tiny(kind).model
    has_class = vit.cls_token is not None
    if not has_class:
        with pytest.raises(ConfigError, match=r"no class token, .*, and no foreground; set mask=all"):
            module(vit)
    patch_px = vit.patch_embed.patch_size[0]
    sides = crop_sides(CropSettings(global_px=4 * patch_px, local_px=2 * patch_px), patch_px)
    trained = module(vit, mask="fg" if has_class else "all", drop_path=0.1)
    outputs = trained(**batch(sides=sides))
    outputs["loss"].backward()
    assert all(bool(value.isfinite().all()) for value in outputs.values())
    silent = [name for name, p in trained.student.named_parameters() if p.requires_grad and p.grad is None]
    assert not silent  # or a distributed training would wait for them
    assert all(p.grad is None for p in trained.teacher.parameters())
    trained.before_step(0)


@pytest.mark.parametrize(("local", "mask"), [(0, "all"), (2, "bg"), (2, "fg")])
def test_modes(local: int, mask: str) -> None:
    trained = module(local_crops=local, mask=mask, queue=0)
    outputs = trained(**batch(local=local))
    assert torch.isfinite(outputs["loss"])
    assert 0 <= outputs["aligned_cells"] <= 1
    assert (float(outputs["aligned_cells"]) == 1) == (mask == "all")


def test_teacher_starts_as_the_student_or_with_other_heads() -> None:
    copied, other = module(), module(teacher_head="independent")
    assert all(map(torch.equal, copied.teacher.parameters(), copied.student.parameters()))
    assert not torch.equal(other.teacher.prototypes.weight, other.student.prototypes.weight)
    assert torch.equal(other.teacher.vit.pos_embed, other.student.vit.pos_embed)


def test_teacher_follows_with_its_momentum() -> None:
    trained = module(momentum=0.0, momentum_end=1.0)
    with torch.no_grad():
        for parameter in trained.student.parameters():
            parameter += 1
    before = trained.teacher.head[0].weight.clone()
    trained.before_step(10)  # the last one: momentum 1
    assert torch.equal(trained.teacher.head[0].weight, before)
    trained.before_step(0)
    assert all(map(torch.equal, trained.teacher.parameters(), trained.student.parameters()))


def test_the_student_may_teach_itself() -> None:
    trained = module(use_teacher=False, drop_path=0.5)
    outputs = trained(**batch())
    outputs["loss"].backward()
    trained.before_step(0)
    assert not [name for name in trained.state_dict() if name.startswith("teacher")]


def test_prototypes_have_unit_length_in_each_pass() -> None:
    trained = module()
    with torch.no_grad():
        trained.student.prototypes.weight *= 7
    trained(**batch())
    for network in (trained.student, trained.teacher):
        torch.testing.assert_close(network.prototypes.weight.norm(dim=1), torch.ones(8))


@pytest.mark.parametrize("scorer", ["student", "teacher"])
def test_the_queue_changes_the_loss_once_full(scorer: str) -> None:
    """After one step of two images with ten embeddings each; the same weights without a queue say another loss."""
    queued, alone = module(queue=20, queue_prototypes=scorer, mask="all"), module(queue=0, mask="all")
    losses = [[one(**batch(first=first))["loss"].item() for first in (0, 2)] for one in (queued, alone)]
    assert queued.queue.pushed.tolist() == [40, 40]
    assert losses[0][0] == losses[1][0]
    assert losses[0][1] != losses[1][1]


def test_queue_prototypes_are_those_of_the_student() -> None:
    found = []
    for scorer in ("student", "teacher"):
        trained = module(queue=20, queue_prototypes=scorer, mask="all", teacher_head="independent")
        trained(**batch())
        found.append(trained(**batch(first=2))["loss"].item())
    assert found[0] != found[1]


def test_what_is_drawn_belongs_to_the_sample() -> None:
    keys = torch.tensor([5, 6, 7])
    together, alone = drawn(keys, 0, 3), drawn(keys[1:2], 0, 3)
    assert torch.equal(together[1], alone[0])
    assert not torch.equal(alone, drawn(keys[1:2], 1, 3))


def test_stochastic_depth_keeps_the_mean() -> None:
    drop = SampledDropPath(0.25)
    branch = torch.ones(1000, 2, 3)
    assert torch.equal(drop(branch), branch)
    drop.random = torch.rand(1000, generator=torch.Generator().manual_seed(0))
    dropped = drop(branch)
    assert dropped.unique().tolist() == pytest.approx([0, 4 / 3])
    assert float(dropped.mean()) == pytest.approx(1, abs=0.05)


def test_stochastic_depth_rises_over_the_blocks() -> None:
    vit = tiny("patch 16").model
    drops = install_drop_paths(vit, 0.1)
    rates = torch.linspace(0, 0.1, 6).repeat_interleave(2).tolist()
    assert [drop.rate for drop in drops] == pytest.approx(rates)
    assert vit.blocks[5].drop_path2 is drops[-1]


def test_stochastic_depth_is_the_students_alone() -> None:
    trained = module(drop_path=0.9)
    assert trained.student.drop_paths
    assert not trained.teacher.drop_paths
    assert not [layer for layer in trained.teacher.modules() if isinstance(layer, SampledDropPath)]
    again = module(drop_path=0.9)
    assert trained(**batch())["loss"].item() == again(**batch())["loss"].item()  # drawn by key
    assert again(**batch())["loss"].item() != module()(**batch())["loss"].item()


def test_usage_tells_a_collapse() -> None:
    trained = module()
    one = torch.zeros(2, 4, 8)
    one[..., 3] = 10
    collapsed, uniform = trained._collapse(one), trained._collapse(torch.zeros(2, 4, 8))
    assert float(collapsed["prototype_usage"]) == pytest.approx(1 / 8, rel=1e-3)
    assert float(collapsed["token_entropy"]) == pytest.approx(0, abs=1e-3)
    assert float(uniform["prototype_usage"]) == pytest.approx(1)
    assert float(uniform["token_entropy"]) == pytest.approx(1)
