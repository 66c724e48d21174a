"""Stages that run in several processes: one adds up their ranks and can fail, one learns y = 2 x with the real loop."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from sohes.errors import DataError
from sohes.records import StageResult

STEPS = 4


@dataclass(frozen=True, kw_only=True)
class AddConfig:
    fail: str = ""  # how the last process fails while the others wait for it: user, bug, killed


class TwoError(Exception):
    """Cannot be unpickled, like some libraries' errors."""

    def __init__(self, first: str, second: str) -> None:
        super().__init__(f"{first} {second}")


def add(config: AddConfig, inputs: dict[str, Path], out: Path) -> StageResult:
    """Each process appends a line to `processes.txt`: its id, its rank, and whether its progress is shown."""
    import torch
    from torch import distributed

    distributed.init_process_group("gloo")
    rank, count = distributed.get_rank(), distributed.get_world_size()
    with (out / "processes.txt").open("a") as file:
        file.write(f"{os.getpid()} {rank} {'SOHES_PROGRESS' in os.environ}\n")
    if rank == count - 1:
        _fail(config.fail)
    total = torch.tensor(rank + 1)
    distributed.all_reduce(total)
    print(f"process {rank} is done")
    return StageResult(notes=[f"process {rank}: sum {total}, {os.environ['OMP_NUM_THREADS']} threads each"])


def _fail(how: str) -> None:
    if how == "user":
        raise DataError("image 7 is odd; use an even one")
    if how == "bug":
        raise TwoError("no such", "thing")
    if how == "killed":
        os.kill(os.getpid(), signal.SIGKILL)


@dataclass(frozen=True, kw_only=True)
class LearnConfig:
    NOT_IN_HASH: ClassVar[frozenset[str]] = frozenset({"image_s", "workers"})

    image_s: float = 0.0  # time that an image takes, from the second on, until there is a file `hurry`
    steps: int = STEPS
    workers: int = 0
    seed: int = 0


def learn(config: LearnConfig, inputs: dict[str, Path], out: Path) -> StageResult:
    """Each process appends its id to `processes.txt`, the main one each step that it begins to `steps.txt`."""
    import torch
    from mmengine.dist import get_rank, get_world_size, is_main_process
    from mmengine.hooks import Hook
    from mmengine.model import BaseModel
    from safetensors.torch import save_model
    from torch import Tensor, nn

    from sohes.engine.runner import train
    from sohes.engine.settings import OptimSettings, RunSettings

    class Line(BaseModel):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.layers = nn.Sequential(nn.Linear(1, 4), nn.Linear(4, 1))

        def forward(self, x: Tensor, mode: str = "loss") -> dict[str, Tensor]:
            return {"loss_line": (self.layers(x) - 2 * x).square().mean()}

    class Numbers(torch.utils.data.Dataset):
        def __getitem__(self, position: int) -> Tensor:
            time.sleep(config.image_s if position and not (out / "hurry").exists() else 0.0)
            return torch.tensor([float(position)]) / 10

    class Steps(Hook):
        def before_train_iter(self, runner: Any, batch_idx: int, *args: Any, **kwargs: Any) -> None:
            if is_main_process():
                with (out / "steps.txt").open("a") as file:
                    file.write(f"{os.getpid()} {batch_idx}\n")

    with (out / "processes.txt").open("a") as file:
        file.write(f"{os.getpid()}\n")
    model = Line()
    train(
        model,
        [{"params": list(model.parameters()), "lr": 1e-2}],
        Numbers(),
        out=out,
        description="line",
        data="numbers",
        optim=OptimSettings(iterations=config.steps, clip_norm=1.0, batch_size=2, schedule="step"),
        settings=RunSettings(checkpoint_every=10000, workers=config.workers),
        seed=config.seed,
        collate=lambda rows: {"x": torch.stack(rows)},
        hooks=[Steps()],
        identity={},
    )
    if is_main_process():
        save_model(model, str(out / "weights.safetensors"))
    return StageResult(notes=[f"process {get_rank()} of {get_world_size()}"])
