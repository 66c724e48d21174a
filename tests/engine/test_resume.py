"""A run that was stopped, however, and started again ends as if it had never stopped, to the bit."""

from __future__ import annotations

import logging
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard import SummaryWriter

from sohes.engine.checkpoints import checkpoints
from sohes.engine.hooks import SeedHook
from sohes.engine.tensorboard import TensorBoardHook
from sohes.errors import SohesError
from tests.engine.conftest import STEPS, interrupt, results, run, stop_at

PHASES = ("instruct", "correct")


def checkpoint_step(out: Path) -> int:
    return int(torch.load(checkpoints(out)[0], weights_only=True)["step"])


def assert_equal(first: Any, second: Any, where: str = "checkpoint") -> None:
    """The same to the bit: weights, optimiser, schedules, teacher, thresholds, state of the hooks."""
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


def sheets(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (out / "watch").iterdir()}


def assert_same_end(out: Path, expected: Path) -> None:
    found, wanted = results(out), results(expected)
    assert found.keys() == wanted.keys()
    assert [name for name in wanted if not torch.equal(found[name], wanted[name])] == []
    assert_equal(*(torch.load(checkpoints(folder)[0], weights_only=True) for folder in (out, expected)))
    assert curves(out) == curves(expected)
    assert sheets(out) == sheets(expected)
    assert (out / "curves.png").stat().st_size > 1000


TERMS = {"instruct": {"all": "^loss_"}, "correct": {"initial": "._initial$", "teacher": "._teacher$"}}


@pytest.mark.parametrize("phase", PHASES)
def test_history_has_every_step_once(undisturbed: dict[str, Path], phase: str) -> None:
    history = pd.read_csv(undisturbed[phase] / "history.csv")
    assert history["step"].tolist() == list(range(STEPS))
    assert history.drop(columns="label_agreement").notna().all(axis=None)
    assert history["label_agreement"].notna().tolist() == [False, False, True] * 2
    terms = {name: history.filter(regex=pattern).sum(axis=1) for name, pattern in TERMS[phase].items()}
    if phase == "correct":
        fading = 0.5 + 0.5 * np.cos(np.pi * history["step"] / STEPS)
        terms = {"initial": fading * terms["initial"], "teacher": (3 - fading) * terms["teacher"]}
    assert history["loss"].to_numpy() == pytest.approx(sum(terms.values()).to_numpy(), rel=1e-4)
    assert history["grad_norm"].gt(0).all()
    own = {"instruct": {"loss_entity", "loss_ancestor"}, "correct": {"tau_s", "teacher_labels"}}
    assert set(history.columns) >= own[phase]
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
        patch.setattr(SeedHook, "before_train_iter", stop_at(step, interrupt))
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
        patch.setattr(SeedHook, "before_train_iter", stop_at(5, fail))
        with pytest.raises(OSError, match="went away"):
            run(phase, start, tmp_path)
    assert checkpoint_step(tmp_path) == 4
    assert len(pd.read_csv(tmp_path / "history.csv")) == 5
    run(phase, start, tmp_path, workers=1, checkpoint_every=100)
    assert_same_end(tmp_path, undisturbed[phase])


KILLED = """
import sys
from pathlib import Path
import torch
from sohes.engine.hooks import SeedHook
from tests.engine.conftest import kill, run, stop_at

phase, start, out, step = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4])
save = torch.save

def save_half(state, path):
    save(state, path)
    if state["step"] == -step:
        path.write_bytes(path.read_bytes()[:5000])
        kill()

if step < 0:  # in the middle of writing the checkpoint of that step
    torch.save = save_half
else:
    SeedHook.before_train_iter = stop_at(step, kill)
run(phase, start, out)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("phase", "step", "left"),
    [("instruct", 1, None), ("correct", 3, None), ("correct", 5, None), ("correct", -4, 2)],
    ids=["before the first checkpoint", "instruct", "correct", "while saving"],
)
def test_killed(
    undisturbed: dict[str, Path], start: Path, tmp_path: Path, phase: str, step: int, left: int | None
) -> None:
    """SIGKILL at any step, or half-way through a checkpoint; the step is drawn anew each time, and named on failure."""
    command = [sys.executable, "-c", KILLED, phase, start, tmp_path, str(step)]
    done = subprocess.run(command, capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    last = step // 2 * 2 if left is None else left
    assert [path.name for path in checkpoints(tmp_path)[:1]] == [f"checkpoint-{last:06d}.pth"] * (last > 0), step
    run(phase, start, tmp_path)
    assert_same_end(tmp_path, undisturbed[phase])
    assert not list(tmp_path.glob(".checkpoint*")), step
    assert tensorboard_steps(tmp_path) == list(range(STEPS)), step


def tensorboard_steps(out: Path) -> list[int]:
    """Steps of the loss as TensorBoard shows them."""
    events = EventAccumulator(str(out / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    return [event.step for event in events.Scalars("loss")]


def test_tensorboard_resumed_in_the_same_second(tmp_path: Path) -> None:
    """The number of the resumed process sorts first here, as it may when numbers begin anew."""
    folder = tmp_path / "tensorboard"
    with SummaryWriter(str(folder)) as first:
        for step in range(3):
            first.add_scalar("loss", 1.0, step)
    (path,) = folder.iterdir()
    path.rename(folder / f"events.out.tfevents.{int(time.time()):010d}.~.9.9")
    hook = TensorBoardHook(tmp_path)
    for step in range(1, 4):
        hook.after_train_iter(None, step, outputs={"loss": 2.0})
    hook.after_train(None)
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(0, 1.0), (1, 2.0), (2, 2.0), (3, 2.0)]


def test_tensorboard_holds_the_history_and_the_sheets(undisturbed: dict[str, Path]) -> None:
    out = undisturbed["instruct"]
    events = EventAccumulator(str(out / "tensorboard"), size_guidance={"scalars": 0, "images": 0})
    events.Reload()
    history = pd.read_csv(out / "history.csv").set_index("step")
    assert set(events.Tags()["scalars"]) == set(history.columns)
    for name in history.columns:
        found = {event.step: event.value for event in events.Scalars(name)}
        assert found == pytest.approx(history[name].dropna().to_dict(), rel=1e-4), name
    assert [event.step for event in events.Images("watch")] == [2, 5]


@pytest.mark.parametrize("damage", ["cut", "flipped"])
def test_damaged_checkpoint(
    undisturbed: dict[str, Path], start: Path, tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The one before it is taken, with a warning, and the end is the same."""
    shutil.copytree(undisturbed["instruct"], tmp_path, dirs_exist_ok=True)
    newest, before = checkpoints(tmp_path)
    assert [newest.name, before.name] == ["checkpoint-000006.pth", "checkpoint-000004.pth"]
    content = bytearray(newest.read_bytes())
    if damage == "cut":
        content = content[: len(content) // 2]
    else:
        content[len(content) // 2] ^= 0xFF
    newest.write_bytes(content)
    with caplog.at_level(logging.WARNING):
        run("instruct", start, tmp_path)
    assert f"{newest}: damaged" in caplog.text
    assert_same_end(tmp_path, undisturbed["instruct"])


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
        patch.setattr(SeedHook, "before_train_iter", stop_at(0, interrupt))
        with pytest.raises(KeyboardInterrupt):
            run(phase, start, tmp_path)
    with pytest.raises(SohesError, match=r"checkpoint-000001.pth: was written by another configuration"):
        run(phase, start, tmp_path, lr=2e-3)
    assert checkpoint_step(tmp_path) == 1
