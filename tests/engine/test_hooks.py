"""Hooks of any training."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from sohes.engine.hooks import AfterStepHook, BeforeStepHook, ProgressHook, WeightDecayHook
from sohes.engine.schedules import cosine
from tests.engine.toy import Line, end, fit, optimiser


class Averaged(Line):
    """Has a weight that follows the first one."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("follower", torch.zeros(()))

    def after_step(self) -> dict[str, float]:
        self.follower.copy_(self.layers[0].weight.detach()[0, 0])
        return {"follower": float(self.follower)}


def test_after_step(tmp_path: Path) -> None:
    """Called after each step of the optimiser, on the weights that it left; the history has what it returns."""
    model = Averaged()
    fit(model, tmp_path, optim=optimiser(iterations=2), hooks=[AfterStepHook()])
    first: Tensor = model.layers[0].weight[0, 0].detach()
    assert torch.equal(model.follower, first)
    header, *rows = (tmp_path / "history.csv").read_text().splitlines()
    assert header.split(",")[-1] == "follower"
    assert len(rows) == 2
    assert float(rows[-1].split(",")[-1]) == pytest.approx(float(first), rel=1e-4)


class Remembering(Line):
    """Notes the weights before each step, and the gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.before: list[tuple[int, float, float]] = []

    def before_step(self, step: int) -> None:
        weight = self.layers[1].bias
        self.before.append((step, float(weight.detach()), float(weight.grad)))


def test_before_step(tmp_path: Path) -> None:
    """Called once a step, after all micro-batches, on the weights that the step is about to change."""
    model, optim = Remembering(), optimiser(iterations=3, batch_size=4, accumulate=2)
    start = float(model.layers[1].bias.detach())
    fit(model, tmp_path, hooks=[BeforeStepHook()], optim=optim)
    assert [step for step, _, _ in model.before] == [0, 1, 2]
    assert model.before[0][1] == start
    assert all(gradient for _, _, gradient in model.before)
    assert len({weight for _, weight, _ in model.before} | {float(model.layers[1].bias.detach())}) == 4


def test_weight_decay(tmp_path: Path) -> None:
    """Half a cosine over the steps; biases have none. A resumed training has the same."""
    model = Line()
    fit(model, tmp_path, optim=optimiser(iterations=4), hooks=[WeightDecayHook(0.05, 0.5)])
    groups = end(tmp_path)["optimizer"]["param_groups"]
    assert [group["weight_decay"] for group in groups] == pytest.approx([cosine(0.05, 0.5, 3, 4), 0.0])
    hook = WeightDecayHook(0.05, 0.5)
    optimizer = SimpleNamespace(param_groups=[{"weight_decay": 0.3}, {"weight_decay": 0.0}])
    runner: Any = SimpleNamespace(max_iters=4, optim_wrapper=SimpleNamespace(optimizer=optimizer))
    hook.before_train_iter(runner, 0)
    assert [group["weight_decay"] for group in optimizer.param_groups] == pytest.approx([0.05, 0.0])


def test_progress(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A resumed training is shown from where it resumes; a test after it is shown as well."""
    file = tmp_path / "progress.json"
    monkeypatch.setenv("SOHES_PROGRESS", str(file))

    def shown() -> list[Any]:
        state = json.loads(file.read_text())
        return [state[key] for key in ("description", "done", "total")]

    runner: Any = SimpleNamespace(max_iters=10, test_dataloader=[1, 2])
    hook = ProgressHook("line", testing="line, tested")
    hook.before_train(runner)
    assert shown() == ["line", 0, 10]
    hook.before_train_iter(runner, 9)
    hook.after_train_iter(runner, 9, outputs={"loss": torch.tensor(0.5)})
    assert shown() == ["line", 10, 10]
    hook.after_train(runner)
    hook.before_test(runner)
    hook.after_test_iter(runner, 0)
    hook.close()
    hook.close()
    assert shown() == ["line, tested", 1, 2]


@pytest.mark.parametrize(("start", "end"), [(1.0, 0.0), (0.04, 0.5)])
def test_cosine(start: float, end: float) -> None:
    """As torch's scheduler has it."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(()))], lr=start)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=7, eta_min=end)
    for step in range(8):
        assert cosine(start, end, step, 7) == pytest.approx(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
