"""A training of phase 2 that was stopped, however, and run again ends as if it had never stopped, to the bit."""

from __future__ import annotations

import re
import signal
from pathlib import Path

import pandas as pd
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from sohes.engine.hooks import SeedHook
from sohes.errors import SohesError
from tests.engine.toy import end, fail, interrupt, stop_at
from tests.phases import STEPS, assert_same_end, run


def test_history_has_every_step_once(undisturbed: Path) -> None:
    history = pd.read_csv(undisturbed / "history.csv")
    assert history["step"].tolist() == list(range(STEPS))
    assert history.drop(columns="label_agreement").notna().all(axis=None)
    assert history["label_agreement"].notna().tolist() == [False, False, True] * 2
    terms = history[["loss_entity", "loss_mask", "loss_dice", "loss_ancestor"]].sum(axis=1)
    assert history["loss"].to_numpy() == pytest.approx(terms.to_numpy(), rel=1e-4)
    assert history["grad_norm"].gt(0).all()
    # warm-up over two steps; then the steps at 90 and 95 %
    rates = history["lr"].to_numpy()
    assert rates[0] == pytest.approx(1e-5, rel=0.01)
    assert rates.max() == pytest.approx(1e-3, rel=0.01)
    assert rates[-1] < 0.5e-3


def test_interrupted(undisturbed: Path, start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C: the running step is finished and saved, then the training ends."""
    before = signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patch:
        patch.setattr(SeedHook, "before_train_iter", stop_at(3, interrupt))
        with pytest.raises(KeyboardInterrupt, match="stopped after step 4"):
            run("instruct", start, tmp_path)
    assert signal.getsignal(signal.SIGINT) is before
    assert end(tmp_path)["step"] == 4
    assert not (tmp_path / "segmenter").exists()
    with pytest.raises(SohesError, match=r"checkpoint-000004.pth: was written by another configuration"):
        run("instruct", start, tmp_path, lr=2e-3)
    assert_same_end(run("instruct", start, tmp_path), undisturbed)


def test_failed_between_checkpoints(
    undisturbed: Path, start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps 4 and 5 are done again from the checkpoint of step 4; other workers and intervals change nothing."""
    with monkeypatch.context() as patch:
        patch.setattr(SeedHook, "before_train_iter", stop_at(5, fail))
        with pytest.raises(OSError, match="went away"):
            run("instruct", start, tmp_path)
    assert end(tmp_path)["step"] == 4
    assert len(pd.read_csv(tmp_path / "history.csv")) == 5
    assert_same_end(run("instruct", start, tmp_path, workers=1, checkpoint_every=100), undisturbed)


def test_stochastic_depth_falls_alike_after_an_interruption(
    start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = run("instruct", start, tmp_path / "undisturbed", drop_path_rate=0.5)
    with monkeypatch.context() as patch:
        patch.setattr(SeedHook, "before_train_iter", stop_at(5, fail))
        with pytest.raises(OSError, match="went away"):
            run("instruct", start, tmp_path / "resumed", drop_path_rate=0.5)
    assert_same_end(run("instruct", start, tmp_path / "resumed", drop_path_rate=0.5), expected)


def test_finished_training_is_not_run_again(undisturbed: Path, start: Path, tmp_path: Path) -> None:
    run("instruct", start, tmp_path)
    before = (tmp_path / "history.csv").read_bytes()
    run("instruct", start, tmp_path)
    assert (tmp_path / "history.csv").read_bytes() == before
    assert_same_end(tmp_path, undisturbed)


def test_tensorboard_holds_the_history_and_the_pictures(undisturbed: Path) -> None:
    events = EventAccumulator(str(undisturbed / "tensorboard"), size_guidance={"scalars": 0, "images": 0})
    events.Reload()
    history = pd.read_csv(undisturbed / "history.csv").set_index("step")
    assert set(events.Tags()["scalars"]) == set(history.columns)
    for name in history.columns:
        found = {event.step: event.value for event in events.Scalars(name)}
        assert found == pytest.approx(history[name].dropna().to_dict(), rel=1e-4), name
    assert [event.step for event in events.Images("watch")] == [2, 5]


def test_the_card_shows_the_last_picture(undisturbed: Path) -> None:
    text = (undisturbed / "segmenter" / "README.md").read_text()
    (link,) = re.findall(r"!\[.*\]\((.*)\)", text)
    assert (undisturbed / "segmenter" / link).resolve() == (undisturbed / "watch" / "step-000006.png").resolve()
