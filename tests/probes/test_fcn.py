"""FCN probe: the head's shape, what it learns, its schedule, and the same bytes again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sohes.errors import DataError
from sohes.evaluation.semantic import semantic_scores
from sohes.probes.fcn import FcnHead, fcn_probe, train_head
from sohes.probes.scoring import Task, annotation

from .colours import make_task, write_data


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOHES_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("sohes.probes.fcn.CHANNELS", 16)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_data(tmp_path / "data")


def train(task: Task, **options: Any) -> FcnHead:
    labels = np.stack([annotation(item, size_px=task.size_px, score_px=100) for item in task.data.train])
    settings = {"classes": 4, "steps": 4, "batch": 2, "lr": 0.05, "grid_px": None, "seed": 0}
    return train_head(task.train, labels, **(settings | options), device=torch.device("cpu"))


def test_published_head(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    head = FcnHead(384, 21)
    shapes = {name: tuple(value.shape) for name, value in head.named_parameters() if value.ndim == 4}
    assert list(shapes.values()) == [(512, 384, 3, 3), (512, 512, 3, 3), (512, 896, 3, 3), (21, 512, 1, 1)]
    assert head(torch.zeros(2, 384, 5, 7)).shape == (2, 21, 5, 7)


def test_learns_colours(data: Path) -> None:
    losses: list[float] = []
    train(make_task(data), steps=40, on_step=losses.append)
    assert len(losses) == 40
    assert np.mean(losses[-5:]) < 0.5 * np.mean(losses[:5])
    (scored,) = fcn_probe(make_task(data, fcn_steps=120, fcn_batch=4, fcn_lr=0.1), 0)
    assert scored.protocol == "probe_fcn_32_full_v1"
    assert scored.notes == ("FCN probe: 120 steps of 4 images",)
    assert semantic_scores(scored.confusions).miou > 0.8


def test_steps_of_thirty_epochs_by_default(data: Path) -> None:
    (scored,) = fcn_probe(make_task(data, fcn_batch=3), 0)
    assert scored.notes == ("FCN probe: 60 steps of 3 images",)  # 4 images are 2 batches of at most 3


def test_the_seed_decides_everything_and_nothing_else_does(data: Path) -> None:
    task = make_task(data)
    state = torch.get_rng_state()
    first, second, other = train(task), train(task), train(task, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    same = [torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True)]
    differ = [torch.equal(a, b) for a, b in zip(first.parameters(), other.parameters(), strict=True)]
    assert all(same)
    assert not any(differ)
    assert not first.training


def test_learning_rate_falls_after_two_thirds(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rates: list[float] = []
    step = torch.optim.SGD.step

    def spy(optimizer: torch.optim.SGD, *arguments: Any) -> Any:
        rates.append(optimizer.param_groups[0]["lr"])
        return step(optimizer, *arguments)

    monkeypatch.setattr(torch.optim.SGD, "step", spy)
    train(make_task(data), steps=6, lr=0.01)
    assert rates == pytest.approx([0.01] * 4 + [0.001] * 2)


def test_grid_of_the_head(data: Path) -> None:
    shapes: list[tuple[int, ...]] = []
    hook = torch.nn.modules.module.register_module_forward_pre_hook(
        lambda module, inputs: shapes.append(tuple(inputs[0].shape)) if isinstance(module, FcnHead) else None
    )
    try:
        train(make_task(data), steps=1)
        train(make_task(data), steps=1, grid_px=20)
    finally:
        hook.remove()
    assert shapes == [(2, 6, 8, 8), (2, 6, 20, 20)]


def test_no_label(data: Path) -> None:
    task = make_task(data)
    with pytest.raises(DataError, match="no train image has a label at 100 x 100 px"):
        train_head(
            task.train,
            np.full((4, 100, 100), 255, np.uint8),
            classes=4,
            steps=1,
            batch=1,
            lr=0.1,
            grid_px=None,
            seed=0,
            device=torch.device("cpu"),
        )
