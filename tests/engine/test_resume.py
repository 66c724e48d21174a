"""A run that was stopped, however, and started again ends as if it had never stopped, to the bit."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch

from sohes.engine import runner
from sohes.engine.runner import CHECKPOINT
from sohes.errors import SohesError
from tests.engine.conftest import STEPS, interrupt, results, run, stop_at

PHASES = ("instruct", "correct")


def checkpoint_step(out: Path) -> int:
    return int(torch.load(out / CHECKPOINT, weights_only=True)["step"])


def assert_same_end(out: Path, expected: Path) -> None:
    found, wanted = results(out), results(expected)
    assert found.keys() == wanted.keys()
    assert [name for name in wanted if not torch.equal(found[name], wanted[name])] == []
    assert (out / "history.csv").read_text() == (expected / "history.csv").read_text()
    assert (out / "curves.png").stat().st_size > 1000


@pytest.mark.parametrize("phase", PHASES)
def test_history_has_every_step_once(undisturbed: dict[str, Path], phase: str) -> None:
    history = pd.read_csv(undisturbed[phase] / "history.csv")
    assert history["step"].tolist() == list(range(STEPS))
    assert history.notna().all(axis=None)
    terms = [name for name in history.columns if name.startswith("loss_")]
    assert history["loss"].to_numpy() == pytest.approx(history[terms].sum(axis=1).to_numpy(), rel=1e-4)
    assert history["grad_norm"].gt(0).all()
    assert set(history.columns) >= {"loss_entity", "lr"} if phase == "instruct" else {"tau_s", "teacher_labels"}
    # warm-up over two steps; then the phase's own schedule
    rates = history["lr"].to_numpy()
    assert rates[0] == pytest.approx(1e-5, rel=0.01)
    assert rates.max() == pytest.approx(1e-3, rel=0.01)
    assert rates[-1] < 0.5e-3


def test_runs_train_what_they_should(undisturbed: dict[str, Path], start: Path) -> None:
    """Weights moved from their start; the teacher lags behind the student."""
    found = results(undisturbed["correct"])
    first = results(start)
    teacher = found["segmenter.class_predictor.weight"]
    student = found["student.class_predictor.weight"]
    begin = first["segmenter.class_predictor.weight"]
    assert 0 < float((teacher - begin).norm()) < float((student - begin).norm())


@pytest.mark.parametrize(("phase", "step"), [("instruct", 3), ("correct", 0), ("correct", 3)])
def test_interrupted(
    undisturbed: dict[str, Path], start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, phase: str, step: int
) -> None:
    """Ctrl-C: the running step is finished and saved, then the run ends."""
    before = signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patch:
        patch.setattr(runner.StepHook, "before_train_iter", stop_at(step, interrupt))
        with pytest.raises(KeyboardInterrupt, match=f"stopped after step {step + 1}"):
            run(phase, start, tmp_path)
    assert signal.getsignal(signal.SIGINT) is before
    assert checkpoint_step(tmp_path) == step + 1
    assert not (tmp_path / "segmenter").exists()
    run(phase, start, tmp_path)
    assert_same_end(tmp_path, undisturbed[phase])


@pytest.mark.parametrize("phase", PHASES)
def test_failed_between_checkpoints(
    undisturbed: dict[str, Path], start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, phase: str
) -> None:
    """Steps 4 and 5 are done again from the checkpoint of step 4; other workers and intervals change nothing."""

    def fail() -> None:
        raise OSError("the disk went away")

    with monkeypatch.context() as patch:
        patch.setattr(runner.StepHook, "before_train_iter", stop_at(5, fail))
        with pytest.raises(OSError, match="went away"):
            run(phase, start, tmp_path)
    assert checkpoint_step(tmp_path) == 4
    assert len(pd.read_csv(tmp_path / "history.csv")) == 5
    run(phase, start, tmp_path, workers=1, checkpoint_every=100)
    assert_same_end(tmp_path, undisturbed[phase])


KILLED = """
import sys
from pathlib import Path
from sohes.engine import runner
from tests.engine.conftest import kill, run, stop_at
runner.StepHook.before_train_iter = stop_at(3, kill)
run("correct", Path(sys.argv[1]), Path(sys.argv[2]))
"""


def test_killed(undisturbed: dict[str, Path], start: Path, tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, start, tmp_path], capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert checkpoint_step(tmp_path) == 2
    run("correct", start, tmp_path)
    assert_same_end(tmp_path, undisturbed["correct"])


def test_finished_run_is_not_run_again(undisturbed: dict[str, Path], start: Path, tmp_path: Path) -> None:
    run("instruct", start, tmp_path)
    before = (tmp_path / "history.csv").read_bytes()
    run("instruct", start, tmp_path)
    assert (tmp_path / "history.csv").read_bytes() == before
    assert_same_end(tmp_path, undisturbed["instruct"])


@pytest.mark.parametrize("phase", PHASES)
def test_checkpoint_of_another_configuration(
    start: Path, tmp_path: Path, phase: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(runner.StepHook, "before_train_iter", stop_at(0, interrupt))
        with pytest.raises(KeyboardInterrupt):
            run(phase, start, tmp_path)
    with pytest.raises(SohesError, match=r"checkpoint.pth: was written by another configuration"):
        run(phase, start, tmp_path, lr=2e-3)
    assert checkpoint_step(tmp_path) == 1
