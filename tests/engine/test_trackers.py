"""What a tracker is given, and that a resumed training goes on in the same run of it."""

from __future__ import annotations

import importlib.util
import itertools
import logging
import struct
import sys
import time
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from mmengine.hooks import Hook
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard import SummaryWriter

from sohes.engine.history import picture_path
from sohes.engine.hooks import SeedHook
from sohes.engine.settings import RunSettings
from sohes.engine.trackers import TrackerHook
from sohes.errors import ConfigError, SohesError
from sohes.files import read_json
from tests.engine.toy import STEPS, Line, curves, end, fail, fit, interrupt, stop_at


class Draws(Hook):
    """Leaves a picture of the model after the second step."""

    def __init__(self, out: Path) -> None:
        self.path = picture_path(out, 2)

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        if batch_idx == 1:
            self.path.parent.mkdir(exist_ok=True)
            Image.fromarray(np.full((4, 6, 3), 9, np.uint8)).save(self.path)


def train(out: Path, tracker: str, **changes: Any) -> Line:
    model = Line()
    settings = RunSettings(checkpoint_every=2, workers=0, tracker=tracker)  # type: ignore[arg-type]
    fit(model, out, **{"settings": settings, "hooks": [Draws(out)]} | changes)
    return model


def stopped_and_resumed(out: Path, tracker: str, monkeypatch: pytest.MonkeyPatch, at: int = 2) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(SeedHook, "before_train_iter", stop_at(at, interrupt))
        with pytest.raises(KeyboardInterrupt, match="to resume"):
            train(out, tracker)
    train(out, tracker)


def history(out: Path) -> dict[int, dict[str, float]]:
    return pd.read_csv(out / "history.csv").set_index("step").to_dict("index")


class Wandb(ModuleType):
    """The calls of wandb's client that are made, and what they were given."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.__spec__ = ModuleSpec("wandb", None, origin="here")
        self.runs: list[dict[str, Any]] = []
        self.ids = itertools.count()
        self.run = SimpleNamespace()
        self.config = SimpleNamespace(update=lambda values: self.runs[-1]["config"].append(values))
        self.fails_at = -1

    def init(self, **given: Any) -> None:
        self.run.id = given["id"] or f"id{next(self.ids)}"
        self.runs.append({"given": given, "config": [], "rows": [], "axes": [], "ends": []})

    def define_metric(self, **axis: str) -> None:
        self.runs[-1]["axes"].append(axis)

    def log(self, row: dict[str, Any], commit: bool) -> None:
        if row["step"] == self.fails_at:
            raise ConnectionResetError("Connection lost")
        self.runs[-1]["rows"].append(row)

    def Image(self, pixels: np.ndarray) -> np.ndarray:
        return pixels

    def finish(self, exit_code: int) -> None:
        self.runs[-1]["ends"].append(exit_code)


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> Wandb:
    fake = Wandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    return fake


def scalars(rows: list[dict[str, Any]]) -> dict[int, dict[str, float]]:
    """By step; each step once."""
    found = [row for row in rows if "loss" in row]
    steps = {row["step"]: {name: value for name, value in row.items() if name != "step"} for row in found}
    assert len(steps) == len(found)
    return steps


def assert_same(found: dict[int, dict[str, float]], expected: dict[int, dict[str, float]]) -> None:
    assert found.keys() == expected.keys()
    for step, values in expected.items():
        assert found[step] == pytest.approx(values, rel=1e-5), step  # the file has six digits


def test_wandb_is_given_history_settings_and_pictures(wandb: Wandb, tmp_path: Path) -> None:
    out = tmp_path / "my-run" / "instruct"
    train(out, "wandb")
    (run,) = wandb.runs
    assert run["given"]["project"] == "sohes"
    assert run["given"]["name"] == "my-run/instruct"
    assert run["given"]["dir"] == str(out)
    assert {"name": "*", "step_metric": "step"} in run["axes"]
    (config,) = run["config"]
    assert (config["iterations"], config["checkpoint_every"], config["seed"]) == (STEPS, 2, 0)
    assert_same(scalars(run["rows"]), history(out))
    watched, last = [row for row in run["rows"] if "loss" not in row]
    assert watched["step"] == 1
    assert watched["watch"].shape == (4, 6, 3)
    assert last["step"] == STEPS - 1
    assert np.array_equal(last["curves"], np.asarray(Image.open(out / "curves.png").convert("RGB")))
    assert run["ends"] == [0]


def test_no_tracker_changes_the_training(wandb: Wandb, tmp_path: Path) -> None:
    for tracker in ("tensorboard", "wandb"):
        train(tmp_path / tracker, tracker)
    assert curves(tmp_path / "wandb") == curves(tmp_path / "tensorboard")
    assert not (tmp_path / "wandb" / "tensorboard").exists()


def test_a_resumed_training_goes_on_in_the_same_run(
    wandb: Wandb, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped_and_resumed(tmp_path, "wandb", monkeypatch)
    first, second = wandb.runs
    assert [run["given"]["id"] for run in wandb.runs] == [None, "id0"]
    assert first["given"]["resume"] == "allow"
    assert (first["ends"], second["ends"]) == ([1], [0])
    assert second["config"] == []
    assert_same(scalars(first["rows"] + second["rows"]), history(tmp_path))


def test_a_training_from_scratch_is_another_run(wandb: Wandb, tmp_path: Path) -> None:
    for _ in range(2):
        train(tmp_path, "wandb")
        for path in tmp_path.glob("checkpoint-*"):
            path.unlink()
    assert [run["given"]["id"] for run in wandb.runs] == [None, None]
    assert read_json(tmp_path / "tracker.json") == {"wandb": "id1"}


def test_a_finished_training_does_not_connect_again(wandb: Wandb, tmp_path: Path) -> None:
    train(tmp_path, "wandb")
    train(tmp_path, "wandb")
    assert len(wandb.runs) == 1


def test_a_tracker_that_fails_does_not_end_the_training(
    wandb: Wandb, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    wandb.fails_at = 2
    with caplog.at_level(logging.WARNING):
        train(tmp_path, "wandb")
    assert end(tmp_path)["step"] == STEPS
    assert scalars(wandb.runs[0]["rows"]).keys() == {0, 1}
    assert caplog.text.count("tracker=wandb failed and gets no more of this training (Connection lost)") == 1


def test_a_tracker_that_cannot_be_started(wandb: Wandb, tmp_path: Path) -> None:
    def init(**given: Any) -> None:
        raise RuntimeError("No API key configured")

    wandb.init = init  # type: ignore[method-assign]
    model = Line()
    with pytest.raises(SohesError, match=r"tracker=wandb cannot be started \(No API key .*WANDB_MODE=offline"):
        fit(model, tmp_path, settings=RunSettings(workers=0, tracker="wandb"))
    assert model.calls == 0


def test_only_the_main_process_has_a_tracker(wandb: Wandb, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sohes.engine.runner.is_main_process", lambda: False)
    train(tmp_path, "wandb")
    assert wandb.runs == []


@pytest.mark.parametrize("tracker", ["wandb", "mlflow"])
def test_a_tracker_that_is_not_installed(tracker: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the current folder has runs of it, in a folder of its name."""
    (tmp_path / tracker).mkdir()
    real = importlib.util.find_spec
    with monkeypatch.context() as patch:
        patch.setattr(sys, "path", [str(tmp_path)])
        patch.delitem(sys.modules, tracker, raising=False)
        importlib.invalidate_caches()
        assert real(tracker) is not None
        with pytest.raises(ConfigError, match=rf"tracker={tracker} needs .* pip install 'sohes\[{tracker}\]'"):
            RunSettings(tracker=tracker)


def test_tensorboard_resumed_in_the_same_second(tmp_path: Path) -> None:
    """The number of the resumed process sorts first here, as it may when numbers start from 1 again."""
    folder = tmp_path / "tensorboard"
    with SummaryWriter(str(folder)) as first:
        for step in range(3):
            first.add_scalar("loss", 1.0, step)
    (path,) = folder.iterdir()
    path.rename(folder / f"events.out.tfevents.{int(time.time()):010d}.~.9.9")
    with TrackerHook(tmp_path, "tensorboard", {}) as hook:
        for step in range(1, 4):
            hook.before_train_iter(None, step)  # type: ignore[arg-type]
            hook.after_train_iter(None, step, outputs={"loss": 2.0})  # type: ignore[arg-type]
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(0, 1.0), (1, 2.0), (2, 2.0), (3, 2.0)]


def test_tensorboard_shows_settings_and_curves(tmp_path: Path) -> None:
    train(tmp_path, "tensorboard")
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert events.Tags()["images"] == ["watch", "curves"]
    (config,) = events.Tensors("config/text_summary")
    assert b"iterations = 6" in config.tensor_proto.string_val[0]


def wandb_records(path: Path) -> Iterator[Any]:
    """Records of a file of wandb's: a header, then blocks of 32 KiB as LevelDB's log has them."""
    from wandb.proto.wandb_internal_pb2 import Record  # type: ignore[import-not-found,unused-ignore]

    raw, part, at = path.read_bytes(), b"", 7
    while at + 7 <= len(raw):
        if (left := 32768 - at % 32768) < 7:
            at += left
            continue
        _, size, kind = struct.unpack("<IHB", raw[at : at + 7])
        part, at = part + raw[at + 7 : at + 7 + size], at + 7 + size
        if kind in (1, 4):  # whole, or the last part
            record = Record()
            record.ParseFromString(part)
            part = b""
            yield record


def test_wandb_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real client, without a network: two files of one run."""
    pytest.importorskip("wandb", reason="wandb is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    out = tmp_path / "my-run" / "line"
    stopped_and_resumed(out, "wandb", monkeypatch)
    files = sorted((out / "wandb").glob("offline-run-*/*.wandb"))
    run = read_json(out / "tracker.json")["wandb"]
    assert [file.name for file in files] == [f"run-{run}.wandb"] * 2
    rows, config, names = [], {}, set()
    for record in itertools.chain.from_iterable(map(wandb_records, files)):
        if record.HasField("history"):
            items = [item for item in record.history.item if len(item.nested_key) == 1]  # a picture has several
            rows.append({item.nested_key[0]: float(item.value_json) for item in items if item.nested_key[0][0] != "_"})
        if record.HasField("run"):
            names.add((record.run.project, record.run.display_name, record.run.run_id))
        for update in [*record.run.config.update, *record.config.update]:
            config[update.key] = update.value_json
    assert names == {("sohes", "my-run/line", run)}
    assert config["iterations"] == f"{STEPS}"
    assert_same(scalars(rows), history(out))
    assert len(list((out / "wandb").glob("offline-run-*/files/media/images/*.png"))) == 3  # watch, curves of each


def test_mlflow_in_the_folder_of_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real client; a step that was made again is there twice, for a run of MLflow forgets nothing."""
    mlflow = pytest.importorskip("mlflow", reason="mlflow is not installed")
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "my-run" / "line"
    with monkeypatch.context() as patch:
        patch.setattr(SeedHook, "before_train_iter", stop_at(5, fail))
        with pytest.raises(OSError, match="went away"):
            train(out, "mlflow")
    client = mlflow.MlflowClient()
    run = read_json(out / "tracker.json")["mlflow"]
    assert client.get_run(run).info.status == "FAILED"
    train(out, "mlflow")
    assert [path.name for path in tmp_path.iterdir()] == ["my-run"]
    (found,) = client.search_runs([client.get_experiment_by_name("sohes").experiment_id])
    assert (found.info.run_id, found.info.status, found.info.run_name) == (run, "FINISHED", "my-run/line")
    assert found.data.params["iterations"] == f"{STEPS}"
    expected = history(out)
    for name in expected[0]:
        points = client.get_metric_history(run, name)
        assert sorted(point.step for point in points) == [0, 1, 2, 3, 4, 4, 5]
        if "seconds" not in name:
            assert {point.step: point.value for point in points} == pytest.approx(
                {step: values[name] for step, values in expected.items()}, rel=1e-5
            )
    pictures = [item.path for folder in ("watch", "curves") for item in client.list_artifacts(run, folder)]
    assert pictures == ["watch/step-000002.png", "curves/step-000005.png", "curves/step-000006.png"]
