"""The parts of the training loop."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from mmengine.model import BaseModel
from torch import Tensor, nn

from sohes.engine import runner
from sohes.engine.history import draw_history
from sohes.engine.runner import StepSampler, freeze_blocks, parameter_groups, train
from sohes.errors import SohesError
from sohes.settings import OptimSettings
from tests.segmenters.tiny import tiny_segmenter


class Line(BaseModel):
    """Learns y = 2 x; its first layer stands for a backbone."""

    def __init__(self, bad_step: int = -1) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.backbone = nn.Linear(1, 4)
        self.head = nn.Linear(4, 1)
        self.bad_step, self.calls, self.draws = bad_step, 0, []

    def forward(self, x: Tensor, mode: str = "loss") -> dict[str, Tensor]:
        loss = (self.head(self.backbone(x)) - 2 * x).square().mean()
        self.draws.append(float(torch.rand(())))
        self.calls += 1
        return {"loss_line": loss * (torch.nan if self.calls - 1 == self.bad_step else 1)}


class Numbers(torch.utils.data.Dataset):
    def __getitem__(self, position: int) -> Tensor:
        return torch.tensor([float(position)]) / 10


def fit(model: Line, out: Path, **changes: Any) -> None:
    options: dict[str, Any] = {
        "iterations": 4,
        "batch_size": 2,
        "seed": 0,
        "checkpoint_every": 2,
        "workers": 0,
        "optim": OptimSettings(lr=1e-2, clip_norm=1.0),
        "description": "line",
        "identity": {},
        "collate": lambda rows: {"x": torch.stack(rows)},
    } | changes
    train(model, parameter_groups(model, model.backbone, options["optim"]), Numbers(), out=out, **options)


def test_loss_that_is_no_number(tmp_path: Path) -> None:
    with pytest.raises(SohesError, match=r"the loss is nan at step 3; lower the learning rate"):
        fit(Line(bad_step=3), tmp_path)
    state = torch.load(tmp_path / runner.CHECKPOINT, weights_only=True)
    assert state["step"] == 2
    assert all(value.isfinite().all() for value in state["model"].values())


def test_random_numbers_depend_on_seed_and_step(tmp_path: Path) -> None:
    draws = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        model = Line()
        fit(model, tmp_path / name, seed=seed)
        draws.append(model.draws)
    assert draws[0] == draws[1]
    assert len({*draws[0], *draws[2]}) == 8


def test_no_learning_rate_no_change(tmp_path: Path) -> None:
    """Nothing but the optimiser touches the weights: mmengine must not initialise them anew."""
    segmenter = tiny_segmenter()
    before = {name: value.clone() for name, value in segmenter.state_dict().items()}

    class Whole(Line):
        def __init__(self) -> None:
            super().__init__()
            self.segmenter = segmenter

    fit(Whole(), tmp_path, optim=OptimSettings(lr=0.0))
    assert all(torch.equal(value, before[name]) for name, value in segmenter.state_dict().items())


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("step", [1.0] * 9 + [0.1]),
        ("cosine", [0.5 * (1 + torch.cos(torch.tensor(i * torch.pi / 10)).item()) for i in range(10)]),
    ],
)
def test_schedules(tmp_path: Path, schedule: str, expected: list[float]) -> None:
    fit(Line(), tmp_path, iterations=10, optim=OptimSettings(lr=1.0, schedule=schedule, clip_norm=1e-3))
    assert pd.read_csv(tmp_path / "history.csv")["lr"].tolist() == pytest.approx(expected, rel=1e-3)


def test_gradients_are_clipped(tmp_path: Path) -> None:
    """Plain descent with rate 1: the step is as long as the limit."""
    model = Line()
    before = torch.nn.utils.parameters_to_vector(model.parameters()).detach()
    fit(
        model,
        tmp_path,
        iterations=1,
        optim=OptimSettings(lr=1e-3, weight_decay=0.0, clip_norm=1e-4, backbone_lr_factor=1.0),
    )
    state = torch.load(tmp_path / runner.CHECKPOINT, weights_only=True)["optimizer"]["state"]
    momentum = torch.cat([entry["exp_avg"].flatten() for entry in state.values()]) / 0.1  # the gradient of step 1
    assert float(momentum.norm()) == pytest.approx(1e-4, rel=1e-3)
    assert not torch.equal(torch.nn.utils.parameters_to_vector(model.parameters()).detach(), before)


def test_parameter_groups() -> None:
    model = tiny_segmenter()
    settings = OptimSettings(lr=1.0, backbone_lr_factor=0.25, weight_decay=0.5)
    groups = parameter_groups(model, model.vit, settings)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    placed = {names[id(p)]: (group["lr"], group["weight_decay"]) for group in groups for p in group["params"]}
    assert len(placed) == sum(len(group["params"]) for group in groups) == len(names)  # each once
    vit = "model.pixel_level_module.encoder.vit."
    expected = {
        vit + "blocks.0.attn.qkv.weight": (0.25, 0.5),
        vit + "patch_embed.proj.weight": (0.25, 0.5),
        vit + "blocks.0.attn.qkv.bias": (0.25, 0.0),
        vit + "norm.weight": (0.25, 0.0),
        vit + "pos_embed": (0.25, 0.0),
        vit + "cls_token": (0.25, 0.0),
        "class_predictor.weight": (1.0, 0.5),
        "class_predictor.bias": (1.0, 0.0),
        "ancestor_head.bias": (1.0, 0.0),
        "model.pixel_level_module.decoder.level_embed": (1.0, 0.0),
        "model.transformer_module.level_embed.weight": (1.0, 0.0),
        "model.transformer_module.queries_embedder.weight": (1.0, 0.0),
        "model.transformer_module.queries_features.weight": (1.0, 0.0),
    }
    assert {name: placed[name] for name in expected} == expected
    decayed = [name for name, (_, decay) in placed.items() if decay]
    assert not [name for name in decayed if "norm" in name or name.endswith("bias")]


def test_frozen_parameters_are_in_no_group() -> None:
    model = tiny_segmenter()
    freeze_blocks(model.vit, 1)
    trained = {name for name, parameter in model.vit.named_parameters() if parameter.requires_grad}
    assert trained == {name for name, _ in model.vit.named_parameters() if name.startswith(("blocks.1.", "norm."))}
    groups = parameter_groups(model, model.vit, OptimSettings())
    assert all(parameter.requires_grad for group in groups for parameter in group["params"])


def test_nothing_is_frozen_by_default() -> None:
    model = tiny_segmenter()
    freeze_blocks(model.vit, 0)
    assert all(parameter.requires_grad for parameter in model.parameters())


def positions(sampler: StepSampler, count: int) -> list[int]:
    return [position for position, _ in zip(sampler, range(count), strict=False)]


def test_order_of_one_process() -> None:
    assert positions(StepSampler(3), 7) == [0, 1, 2, 3, 4, 5, 6]
    sampler = StepSampler(3)
    sampler.skip(2 * 3)
    assert positions(sampler, 4) == [6, 7, 8, 9]


def test_two_processes_share_each_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "get_world_size", lambda: 2)
    shares = []
    for rank in (0, 1):
        monkeypatch.setattr(runner, "get_rank", lambda rank=rank: rank)
        sampler = StepSampler(2)
        shares.append(positions(sampler, 6))
        sampler.skip(2 * 2)  # two steps of this process
        assert positions(sampler, 2) == shares[-1][4:]
    assert shares == [[0, 1, 4, 5, 8, 9], [2, 3, 6, 7, 10, 11]]


def test_curves_need_a_history(tmp_path: Path) -> None:
    draw_history(tmp_path / "none.csv", tmp_path / "curves.png")
    (tmp_path / "short.csv").write_text("step,lr,loss\n0,1,2\n")
    draw_history(tmp_path / "short.csv", tmp_path / "curves.png")
    assert not (tmp_path / "curves.png").exists()
    (tmp_path / "torn.csv").write_text("step,lr,loss\n0,1,2\n1,1,1\n2,")  # the last line was cut by a kill
    draw_history(tmp_path / "torn.csv", tmp_path / "curves.png")
    assert (tmp_path / "curves.png").exists()
