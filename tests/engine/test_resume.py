"""A training that was stopped, however, and run again ends as if it had never stopped, to the bit."""

from __future__ import annotations

import logging
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import pandas as pd
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from sohes.engine.checkpoints import checkpoints
from sohes.engine.hooks import SeedHook
from sohes.engine.settings import RunSettings
from sohes.errors import SohesError
from tests.engine.toy import STEPS, Counter, Line, assert_equal, curves, end, fail, fit, interrupt, optimiser, stop_at

OPTIM = optimiser(batch_size=4, accumulate=2, warmup=2, schedule="cosine")


def train(out: Path, **changes: Any) -> Line:
    model = Line(noise=0.5)
    fit(model, out, **{"optim": OPTIM, "hooks": [Counter()]} | changes)
    return model


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("undisturbed")
    train(out)
    return out


def assert_same_end(out: Path, expected: Path) -> None:
    assert_equal(end(out), end(expected))
    assert end(out)["hooks"]["Counter"] == {"count": STEPS}
    assert curves(out) == curves(expected)
    assert (out / "curves.png").stat().st_size > 1000
    assert not list(out.glob(".checkpoint*"))
    assert tensorboard_steps(out) == list(range(STEPS))


def tensorboard_steps(out: Path) -> list[int]:
    """Steps of the loss as TensorBoard shows them."""
    events = EventAccumulator(str(out / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    return [event.step for event in events.Scalars("loss")]


@pytest.mark.parametrize("step", [0, 3])
def test_interrupted(undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Ctrl-C: the running step is finished and saved, then the training ends."""
    before = signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patch:
        patch.setattr(SeedHook, "before_train_iter", stop_at(step, interrupt))
        with pytest.raises(KeyboardInterrupt, match=f"stopped after step {step + 1}; .* to resume"):
            train(tmp_path)
    assert signal.getsignal(signal.SIGINT) is before
    assert end(tmp_path)["step"] == step + 1
    assert train(tmp_path).calls == 2 * (STEPS - step - 1)  # two micro-batches per step
    assert_same_end(tmp_path, undisturbed)


def test_failed_between_checkpoints(undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps 4 and 5 are done again from the checkpoint of step 4; other intervals change nothing."""
    with monkeypatch.context() as patch:
        patch.setattr(SeedHook, "before_train_iter", stop_at(5, fail))
        with pytest.raises(OSError, match="went away"):
            train(tmp_path)
    assert end(tmp_path)["step"] == 4
    assert len(pd.read_csv(tmp_path / "history.csv")) == 5
    train(tmp_path, settings=RunSettings(checkpoint_every=100, workers=1))
    assert_same_end(tmp_path, undisturbed)


KILLED = """
import sys
from pathlib import Path
import torch
from sohes.engine.hooks import SeedHook
from tests.engine.test_resume import train
from tests.engine.toy import kill, stop_at

out, step = Path(sys.argv[1]), int(sys.argv[2])
save = torch.save

def save_half(state, path):
    save(state, path)
    if state["step"] == -step:
        path.write_bytes(path.read_bytes()[:1000])
        kill()

if step < 0:  # in the middle of writing the checkpoint of that step
    torch.save = save_half
else:
    SeedHook.before_train_iter = stop_at(step, kill)
train(out)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("step", "left"), [(1, 0), (3, 2), (5, 4), (-4, 2)], ids=["before the first", "after one", "after two", "saving"]
)
def test_killed(undisturbed: Path, tmp_path: Path, step: int, left: int) -> None:
    """SIGKILL at a step, or half-way through a checkpoint, leaves the checkpoint of step `left`."""
    done = subprocess.run([sys.executable, "-c", KILLED, tmp_path, str(step)], capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert [path.name for path in checkpoints(tmp_path)[:1]] == [f"checkpoint-{left:06d}.pth"] * (left > 0)
    train(tmp_path)
    assert_same_end(tmp_path, undisturbed)


@pytest.mark.parametrize("damage", ["cut", "flipped"])
def test_damaged_checkpoint(undisturbed: Path, tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    """The one before it is taken, with a warning, and the end is the same."""
    train(tmp_path)
    newest, before = checkpoints(tmp_path)
    assert [newest.name, before.name] == ["checkpoint-000006.pth", "checkpoint-000004.pth"]
    content = bytearray(newest.read_bytes())
    if damage == "cut":
        content = content[: len(content) // 2]
    else:
        with ZipFile(newest) as archive:  # a byte of the largest tensor; one between two entries would harm nothing
            largest = archive.read(max(archive.infolist(), key=lambda entry: entry.file_size))
        content[content.index(largest) + len(largest) // 2] ^= 0xFF
    newest.write_bytes(content)
    with caplog.at_level(logging.WARNING):
        train(tmp_path)
    assert f"{newest}: damaged" in caplog.text
    assert_same_end(tmp_path, undisturbed)


def test_finished_training_is_not_run_again(undisturbed: Path, tmp_path: Path) -> None:
    train(tmp_path)
    before = (tmp_path / "history.csv").read_bytes()
    again = train(tmp_path)
    assert again.calls == 0
    assert torch.equal(again.layers[0].weight, end(undisturbed)["model"]["layers.0.weight"])  # the trained weights
    assert (tmp_path / "history.csv").read_bytes() == before
    assert_same_end(tmp_path, undisturbed)


def test_checkpoint_of_another_identity(tmp_path: Path) -> None:
    train(tmp_path, optim=replace(OPTIM, iterations=3), identity={"config": "a"})
    with pytest.raises(SohesError, match=r"checkpoint-000003.pth: was written by another configuration; .* scratch"):
        train(tmp_path, identity={"config": "b"})
    assert end(tmp_path)["step"] == 3
