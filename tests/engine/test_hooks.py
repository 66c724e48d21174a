"""Hooks of any training."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from sohes.engine.hooks import AfterStepHook, ProgressHook
from sohes.engine.schedules import cosine
from tests.engine.toy import Line, fit


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
    fit(model, tmp_path, iterations=2, hooks=[AfterStepHook()])
    first: Tensor = model.layers[0].weight[0, 0].detach()
    assert torch.equal(model.follower, first)
    header, *rows = (tmp_path / "history.csv").read_text().splitlines()
    assert header.split(",")[-1] == "follower"
    assert len(rows) == 2
    assert float(rows[-1].split(",")[-1]) == pytest.approx(float(first), rel=1e-4)


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
