"""Stage functions of a toy recipe: they count, can be slow, and fail in the way that their configuration names."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import results
import slurm
from sohes.errors import DataError
from sohes.progress import track
from sohes.records import Measurement, StageResult


@dataclass(frozen=True, kw_only=True)
class GatherConfig:
    folder: str = ""
    ground_truth: str | None = None
    count: int = 3
    seed: int = 0

    def outside_inputs(self) -> list[Path]:
        return [Path(self.folder)] if self.folder else []


def gather(config: GatherConfig, inputs: dict[str, Path], out: Path) -> StageResult:
    (out / "numbers.json").write_text(json.dumps(list(range(config.count))))
    return StageResult(notes=[f"gathered {config.count} with seed {config.seed}"])


@dataclass(frozen=True, kw_only=True)
class WorkConfig:
    NOT_IN_HASH: ClassVar[frozenset[str]] = frozenset({"step_s", "fail"})

    rate: float = 1e-3
    sizes: tuple[int, ...] = (1, 2)
    fast: bool = False
    name: str = "toy"
    limit: int | None = None
    step_s: float = 0.0
    fail: str = ""  # how to fail at the second step: user, bug, killed, crashed, exits, full


def work(config: WorkConfig, inputs: dict[str, Path], out: Path) -> StageResult:
    """One file per step; a step that has its file is not done again. `attempts.txt` tells who did which."""
    (out / "environment.json").write_text(json.dumps(dict(os.environ)))
    numbers = json.loads(inputs["numbers"].read_text())
    for number in track(numbers, "steps"):
        path = out / f"step_{number}.txt"
        if path.exists():
            continue
        time.sleep(config.step_s if number else 0.0)  # the first step is quick, so that tests soon find it done
        if number == 1:
            _fail(config.fail)
        with (out / "attempts.txt").open("a") as file:
            file.write(f"{os.getpid()} {number}\n")
        path.write_text("done")
    print("work is done", flush=True)
    row = Measurement(
        method="toy",
        backbone="none",
        init="none",
        dataset="numbers",
        protocol="v1",
        metric="sum",
        value=3.5,
        n_images=3,
    )
    return StageResult(measurements=[row], notes=[os.environ.get("OMP_NUM_THREADS", "threads not set")])


def _fail(how: str) -> None:
    if how == "user":
        raise DataError("numbers.json: number 1 is odd; use an even one")
    if how == "bug":
        raise KeyError("no such thing")
    if how == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "crashed":
        os.kill(os.getpid(), signal.SIGSEGV)
    if how == "exits":
        os._exit(3)
    if how == "full":
        with open("/dev/full", "w") as file:
            file.write("x")


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    title: str = "report"


def report(config: ReportConfig, inputs: dict[str, Path], out: Path) -> StageResult:
    names = sorted(path.parent.name for path in inputs["run"].glob("*/record.json") if path.parent != out)
    (out / "tables").mkdir(exist_ok=True)
    table = out / "tables" / "summary.md"
    table.write_text(f"# {config.title}\n{names}\n")
    return StageResult(artefacts=[table], notes=[os.environ.get("CUDA_VISIBLE_DEVICES", "devices not set")])


def places(config: ReportConfig, inputs: dict[str, Path], out: Path) -> StageResult:
    """Where packages with common names come from, in this process and in one that it starts."""
    code = "import results, slurm; print(results.__file__); print(slurm.__file__)"
    started = subprocess.run([sys.executable, "-c", code], cwd=out, capture_output=True, text=True, check=True).stdout
    return StageResult(notes=[str(results.__file__), str(slurm.__file__), *started.splitlines()])


@dataclass(frozen=True, kw_only=True)
class CellConfig(WorkConfig):
    model: str
    dataset: str


def cell(config: CellConfig, inputs: dict[str, Path], out: Path) -> StageResult:
    return work(config, inputs, out)


@dataclass(frozen=True, kw_only=True)
class QuickConfig:
    model: str
    dataset: str


def quick(config: QuickConfig, inputs: dict[str, Path], out: Path) -> StageResult:
    return StageResult(notes=[f"{config.model} on {config.dataset}, job {os.environ.get('SUBMITIT_LOCAL_JOB_ID')}"])
