"""A training of phase 3 that was stopped, however, and run again ends as if it had never stopped, to the bit."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from sohes.data.coco import read_coco
from sohes.data.label_store import LabelStore
from sohes.engine.checkpoints import checkpoints
from sohes.engine.hooks import SeedHook
from sohes.errors import SohesError
from sohes.evaluation.mask_recall import evaluate_masks
from sohes.instruct.watch import read_watched
from sohes.segmenters.segmenter import load_segmenter
from tests.engine.toy import end, fail, interrupt, stop_at
from tests.phases import STEPS, assert_same_end, results, run


def test_history_has_every_step_once(undisturbed: Path) -> None:
    history = pd.read_csv(undisturbed / "history.csv")
    assert history["step"].tolist() == list(range(STEPS))
    assert history.drop(columns="label_agreement").notna().all(axis=None)
    fading = 0.5 + 0.5 * np.cos(np.pi * history["step"] / STEPS)
    initial, teacher = (history.filter(regex=f"._{name}$").sum(axis=1) for name in ("initial", "teacher"))
    expected = fading * initial + (3 - fading) * teacher
    assert history["loss"].to_numpy() == pytest.approx(expected.to_numpy(), rel=1e-4)
    assert history["grad_norm"].gt(0).all()
    assert {"tau_s", "teacher_labels"} <= set(history.columns)
    # warm-up over two steps, then a cosine
    rates = history["lr"].to_numpy()
    assert rates[0] == pytest.approx(1e-5, rel=0.01)
    assert rates.max() == pytest.approx(1e-3, rel=0.01)
    assert rates[-1] < 0.5e-3


def test_trains_what_it_should(undisturbed: Path, start: Path) -> None:
    """Weights moved from their start; the teacher lags behind the student."""
    found = results(undisturbed)
    teacher = found["segmenter.class_predictor.weight"]
    student = found["student.class_predictor.weight"]
    begin = results(start)["segmenter.class_predictor.weight"]
    assert 0 < float((teacher - begin).norm()) < float((student - begin).norm())


def test_the_teacher_is_watched(undisturbed: Path, start: Path) -> None:
    watched = read_watched(read_coco(start / "images" / "val.json"), LabelStore(start / "watch"), 8)
    segmenter = load_segmenter(undisturbed / "segmenter", device="cpu")
    found = {i: segmenter.predict(image) for i, image in watched.images.items()}
    last = pd.read_csv(undisturbed / "history.csv")["label_agreement"].iloc[-1]
    assert last == pytest.approx(100 * evaluate_masks(watched.truth, found).mask_ar_1000, rel=1e-4)
    assert load_segmenter(undisturbed / "best", device="cpu").provenance == segmenter.provenance


@pytest.mark.parametrize("step", [0, 3])
def test_interrupted(
    undisturbed: Path, start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    """Ctrl-C: the running step is finished and saved, then the training ends."""
    before = signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patch:
        patch.setattr(SeedHook, "before_train_iter", stop_at(step, interrupt))
        with pytest.raises(KeyboardInterrupt, match=f"stopped after step {step + 1}"):
            run("correct", start, tmp_path)
    assert signal.getsignal(signal.SIGINT) is before
    assert end(tmp_path)["step"] == step + 1
    assert not (tmp_path / "segmenter").exists()
    with pytest.raises(SohesError, match=rf"checkpoint-00000{step + 1}.pth: was written by another configuration"):
        run("correct", start, tmp_path, lr=2e-3)
    assert_same_end(run("correct", start, tmp_path), undisturbed)


def test_failed_between_checkpoints(
    undisturbed: Path, start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps 4 and 5 are done again from the checkpoint of step 4; other workers and intervals change nothing."""
    with monkeypatch.context() as patch:
        patch.setattr(SeedHook, "before_train_iter", stop_at(5, fail))
        with pytest.raises(OSError, match="went away"):
            run("correct", start, tmp_path)
    assert end(tmp_path)["step"] == 4
    assert_same_end(run("correct", start, tmp_path, workers=1, checkpoint_every=100), undisturbed)


KILLED = """
import sys
from pathlib import Path
from sohes.engine.hooks import SeedHook
from tests.engine.toy import kill, stop_at
from tests.phases import run

SeedHook.before_train_iter = stop_at(3, kill)
run("correct", Path(sys.argv[1]), Path(sys.argv[2]))
"""


@pytest.mark.slow
def test_killed(undisturbed: Path, start: Path, tmp_path: Path) -> None:
    """Teacher, thresholds and guard come back in a new process."""
    done = subprocess.run([sys.executable, "-c", KILLED, start, tmp_path], capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert checkpoints(tmp_path)[0].name == "checkpoint-000002.pth"
    assert_same_end(run("correct", start, tmp_path), undisturbed)
