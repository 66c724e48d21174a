"""A model that trains in no time, and ways to stop a training at a step."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from torch import Tensor, nn

from sohes.engine.checkpoints import checkpoints
from sohes.engine.hooks import SeedHook
from sohes.engine.optimizer import parameter_groups
from sohes.engine.runner import train
from sohes.engine.settings import OptimSettings, RunSettings

STEPS = 6


class Line(BaseModel):
    """Learns y = 2 x, disturbed by up to `noise`; the loss of forward pass `bad_call` is not finite."""

    def __init__(self, *, noise: float = 0.0, bad_call: int = -1) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(1, 4), nn.Linear(4, 1))
        self.noise, self.bad_call, self.calls, self.draws = noise, bad_call, 0, []

    def forward(self, x: Tensor, mode: str = "loss") -> dict[str, Tensor]:
        draw = torch.rand(())
        loss = (self.layers(x) - 2 * x - self.noise * draw).square().mean()
        self.draws.append(float(draw))
        self.calls += 1
        return {"loss_line": loss * (torch.nan if self.calls - 1 == self.bad_call else 1)}


class Numbers(torch.utils.data.Dataset):
    def __getitem__(self, position: int) -> Tensor:
        return torch.tensor([float(position)]) / 10


class Counter(Hook):
    """Counts steps; the count is state."""

    def __init__(self) -> None:
        self.count = 0

    def state_dict(self) -> dict[str, int]:
        return {"count": self.count}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        self.count = state["count"]

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        self.count += 1
        outputs["count"] = float(self.count)


def optimiser(**changes: Any) -> OptimSettings:
    return OptimSettings(**{"iterations": STEPS, "clip_norm": 1.0, "batch_size": 2, "schedule": "step"} | changes)


def fit(model: Line, out: Path, data: Numbers | None = None, *, lr: float = 1e-2, **changes: Any) -> None:
    """Train `model` in `out`; `changes` are arguments of `train`."""
    options: dict[str, Any] = {
        "seed": 0,
        "settings": RunSettings(checkpoint_every=2, workers=0),
        "optim": optimiser(),
        "description": "line",
        "data": "numbers",
        "identity": {},
        "collate": collate,
    } | changes
    train(model, parameter_groups(model, lr=lr, weight_decay=0.05), data or Numbers(), out=out, **options)


def collate(rows: list[Tensor]) -> dict[str, Tensor]:
    return {"x": torch.stack(rows)}


def end(out: Path) -> dict[str, Any]:
    """The last checkpoint."""
    return torch.load(checkpoints(out)[0], weights_only=True)


def stop_at(step: int, how: Callable[[], None]) -> Callable[..., None]:
    """A replacement of the seed hook's `before_train_iter` that does `how` at the start of that step, once."""
    real = SeedHook.before_train_iter
    done = []

    def before_train_iter(self: SeedHook, run: Any, batch_idx: int, *args: Any, **kwargs: Any) -> None:
        if batch_idx == step and not done:
            done.append(step)
            how()
        real(self, run, batch_idx, *args, **kwargs)

    return before_train_iter


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def fail() -> None:
    raise OSError("the disk went away")


def assert_equal(first: Any, second: Any, where: str = "checkpoint") -> None:
    """The same to the bit: weights, optimiser, schedules, state of model and hooks."""
    assert type(first) is type(second), where
    if isinstance(first, torch.Tensor):
        assert torch.equal(first, second), where
    elif isinstance(first, dict):
        assert first.keys() == second.keys(), where
        for key in first:
            assert_equal(first[key], second[key], f"{where}.{key}")
    elif isinstance(first, list | tuple):
        assert len(first) == len(second), where
        for place, pair in enumerate(zip(first, second, strict=True)):
            assert_equal(*pair, f"{where}[{place}]")
    else:
        assert first == second, where


def curves(out: Path) -> str:
    """The history without the columns that measure time."""
    history = pd.read_csv(out / "history.csv", dtype=str)
    return history.drop(columns=["data_seconds", "step_seconds"]).to_csv()
