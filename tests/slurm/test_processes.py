"""A stage in several processes: one result, one record, and signals and errors that find their way."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
import torch

from slurm.graph import load_graph
from slurm.job import Job, make_job
from slurm.plan import make_plan
from slurm.state import StageFolder
from sohes.engine.checkpoints import checkpoints
from sohes.errors import ConfigError, DataError, SohesError
from sohes.records import read_record
from tests.slurm.conftest import HERE, command, environment, wait_until
from tests.slurm.test_local import alive

RECIPE, SCALE = str(HERE / "training.yaml"), str(HERE / "plain.yaml")


def job(run_dir: Path, stage: str, *overrides: str, recipe: str = RECIPE) -> Job:
    """The stage, to be run from this process."""
    graph = load_graph(recipe, SCALE, overrides=overrides)
    return make_job(make_plan(graph, run_dir)[stage], graph, run_dir, captures=False)


def processes(folder: Path) -> list[int]:
    """Ids of the stage's processes, of all attempts."""
    file = folder / "processes.txt"
    return [int(line.split()[0]) for line in file.read_text().splitlines()] if file.exists() else []


@pytest.fixture(autouse=True, scope="module")
def machine_without_gpus() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("torch.cuda.device_count", lambda: 0)
        patch.setenv("CUDA_VISIBLE_DEVICES", "")
        patch.setenv("OMP_NUM_THREADS", "4")
        yield


def test_the_recipe_says_which_stages_are_distributed(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    text = (HERE / "training.yaml").read_text()

    def gpus(content: str, *overrides: str) -> int:
        recipe.write_text(content)
        return job(tmp_path, "add", *overrides, recipe=str(recipe)).gpus

    assert gpus(text) == 2
    assert gpus(text, "add.resources.gpus=0") == 1
    assert gpus(text.replace("distributed: true", "distributed: false")) == 1
    assert gpus(text.replace("    distributed: true\n", "")) == 1
    with pytest.raises(ConfigError, match="'distributed' must be true or false, given 2"):
        gpus(text.replace("true", "2"))


def test_two_processes_give_one_record(run_dir: Path, capfd: pytest.CaptureFixture[str]) -> None:
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    job(run_dir, "add")()
    folder = run_dir / "add"
    assert read_record(folder / "record.json").notes == ["process 0: sum 3, 2 threads each"]
    lines = (folder / "processes.txt").read_text().splitlines()
    assert sorted(line.split(maxsplit=1)[1] for line in lines) == ["0 True", "1 False"]  # one shows its progress
    output = capfd.readouterr().out
    assert [output.count(f"process {rank} is done") for rank in (0, 1)] == [1, 1]
    assert not any(alive(pid) for pid in processes(folder))
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert os.environ["OMP_NUM_THREADS"] == "4"


@pytest.mark.parametrize(
    ("how", "kind", "message"),
    [
        ("user", DataError, "image 7 is odd; use an even one"),
        ("bug", RuntimeError, "TwoError: no such thing"),
        ("killed", SohesError, r"one of the 2 processes .* exited without a message \(SIGKILL\)\. .*"),
    ],
)
def test_the_error_of_another_process_arrives(run_dir: Path, how: str, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind) as raised:
        job(run_dir, "add", f"add.fail={how}")()
    assert re.fullmatch(message, str(raised.value))  # `match` would read the notes as well
    folder = StageFolder(run_dir, "add")
    error = folder.error()
    assert error is not None
    assert error["expected"] == issubclass(kind, SohesError)
    if how != "killed":
        (note,) = raised.value.__notes__  # the log shows it last
        assert note.startswith("In training process 1:\nTraceback")
        assert "_fail(config.fail)" in note
    assert [alive(pid) for pid in processes(folder.path)] == [False, False]


def step(run_dir: Path) -> int:
    """How far the training is, as the launcher's board would show it."""
    progress = StageFolder(run_dir, "learn").progress()
    return progress["done"] if progress else 0


def start(run_dir: Path) -> subprocess.Popen[str]:
    """A launcher whose training has done its first step."""
    arguments = [RECIPE, "--scale", SCALE, "--executor", "local", "--run-dir", str(run_dir), "--only", "learn"]
    launcher = subprocess.Popen(
        command(*arguments, "learn.image_s=1"), env=environment(), stdout=subprocess.PIPE, text=True
    )
    wait_until(lambda: step(run_dir) or launcher.poll() is not None, seconds=120)
    return launcher


@pytest.fixture(scope="module")
def alone(machine_without_gpus: None, tmp_path_factory: pytest.TempPathFactory) -> torch.Tensor:
    """The weights after a training in the stage's own process."""
    run_dir = tmp_path_factory.mktemp("alone")
    job(run_dir, "learn", "learn.resources.gpus=1")()
    assert read_record(run_dir / "learn" / "record.json").notes == ["process 0 of 1"]
    return weights(run_dir)


def weights(run_dir: Path) -> torch.Tensor:
    state = torch.load(checkpoints(run_dir / "learn")[0], weights_only=True)
    return torch.cat([value.flatten() for value in state["model"].values()])


def check_finished(run_dir: Path, alone: torch.Tensor) -> None:
    assert read_record(run_dir / "learn" / "record.json").notes == ["process 0 of 2"]
    assert pd.read_csv(run_dir / "learn" / "history.csv")["step"].tolist() == [0, 1, 2, 3]  # each once
    assert torch.allclose(weights(run_dir), alone, rtol=1e-4)
    assert step(run_dir) == 4


@pytest.mark.slow
def test_interrupted_training_saves_and_resumes_later(run_dir: Path, alone: torch.Tensor) -> None:
    launcher = start(run_dir)
    launcher.send_signal(signal.SIGINT)
    output, _ = launcher.communicate(timeout=60)
    assert launcher.returncode == 130, output
    folder = StageFolder(run_dir, "learn")
    assert not any(alive(pid) for pid in processes(folder.path))
    status = folder.status()
    assert status is not None
    assert status.state == "interrupted"
    assert 0 < saved(run_dir) < 4

    job(run_dir, "learn")()
    check_finished(run_dir, alone)


@pytest.mark.slow
def test_requeued_training_saves_before(run_dir: Path, alone: torch.Tensor) -> None:
    """submitit's local executor requeues a job by starting it again."""
    launcher = start(run_dir)
    folder = StageFolder(run_dir, "learn")
    status = folder.status()
    assert status is not None
    os.kill(status.pid, signal.SIGUSR2)
    wait_until(lambda: not any(alive(pid) for pid in processes(folder.path)[:2]))
    assert 0 < saved(run_dir) < 4
    output, _ = launcher.communicate(timeout=120)
    assert launcher.returncode == 0, output
    assert "learn resumes (attempt 2)" in folder.log.read_text()
    check_finished(run_dir, alone)


def saved(run_dir: Path) -> int:
    """Step of the only checkpoint; without an interruption there is one at the end."""
    (checkpoint,) = checkpoints(run_dir / "learn")
    return int(checkpoint.stem.split("-")[1])
