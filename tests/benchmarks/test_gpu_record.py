"""The record of a GPU is written whatever happens to its steps."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from benchmarks import deformable, gpu_record, timed_training
from benchmarks.gpu_record import RecordStep, prepare, record, steps
from sohes.data.label_store import LabelStore
from sohes.errors import ConfigError, DataError, SohesError
from sohes.files import read_json, write_json
from sohes.segmenters.segmenter import load_segmenter
from tests.probes.synthetic import write_folder

TOY = """
import json, signal, sys, time
what, out = sys.argv[1], sys.argv[sys.argv.index("--json") + 1]
if what == "raise":
    raise RuntimeError("no kernel")
if what == "train":  # until it is told to stop
    signal.signal(signal.SIGUSR2, lambda *_: sys.exit("saved"))
if what in ("sleep", "train"):
    print("began", flush=True)
    time.sleep(60)
json.dump({"told": sys.argv[2:-2] + sys.argv[-1:]}, open(out, "w"))
"""
TINY = {  # what follows on a command line wins
    "benchmarks.deformable": ("--repeats", "1"),
    "benchmarks.train_step": (
        *("--segmenters", "eomt", "--sizes", "64", "--batch", "1", "--queries", "8", "--targets", "2", "--steps", "1"),
    ),
    "benchmarks.explore_throughput": (
        *("--limit", "2", "--rounds", "1", "--set", "algorithm=sohes", "size_global=96", "max_crops=1"),
        *("size_local=48", "min_side_px=16", "min_area_px=20", "theta_merge=null"),
    ),
    "benchmarks.timed_training": (
        *("--minutes", "1", "--set", "workers=0", "batch_size=2", "crop_px=64", "points=32"),
        *("min_area_px=8", "inference_short_px=64", "inference_long_px=64"),
    ),
}


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module `toy` that processes find, and the folder of a record."""
    (tmp_path / "toy.py").write_text(TOY)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return tmp_path / "out"


def run_toys(out: Path, minutes: float, *planned: tuple[str, float | None]) -> list[dict[str, Any]]:
    """Steps of the record in the file."""
    out.mkdir()
    record([RecordStep(what, "toy", (what,), seconds) for what, seconds in planned], out, minutes)
    return read_json(out / "record.json")["steps"]


def test_a_step_that_raises_is_noted_and_the_next_goes_on(toy: Path) -> None:
    failed, done = run_toys(toy, 1, ("raise", 20), ("write", 20))
    assert (failed["state"], failed["reason"]) == ("failed", "RuntimeError: no kernel")
    assert failed["printed"][0].startswith("Traceback")
    assert done["state"] == "done"


def test_no_time_after_the_first_step(toy: Path) -> None:
    done, left_out, training = run_toys(toy, 0.4, ("write", 20), ("write", 30), ("train", None))
    assert done["state"] == "done"
    assert left_out["state"] == training["state"] == "left out"
    assert left_out["reason"].endswith("30 s are needed")


def test_what_takes_too_long_is_stopped(toy: Path) -> None:
    stopped, done = run_toys(toy, 1, ("sleep", 1), ("write", 20))
    assert (stopped["state"], stopped["reason"]) == ("stopped", "took more than 1 s: began")
    assert done["state"] == "done"


def test_a_training_is_told_the_time_and_may_save(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_record, "GRACE_S", 1.0)
    (stopped,) = run_toys(toy, 0.06, ("train", None))
    assert stopped["command"][-2] == "--minutes"
    assert 0 < float(stopped["command"][-1]) * 60 < 0.06 * 60 - 1
    assert stopped["state"] == "stopped"
    assert stopped["reason"].endswith("saved")


def test_a_record_of_before_its_first_step(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever ends the whole process finds what was reached."""
    toy.mkdir()
    monkeypatch.setattr(gpu_record, "run", lambda *_: sys.exit("killed"))
    with pytest.raises(SystemExit):
        record([RecordStep("first", "toy", (), 1), RecordStep("second", "toy", (), 1)], toy, 1)
    assert [entry["state"] for entry in read_json(toy / "record.json")["steps"]] == ["running", "not begun"]


def test_what_is_carried_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photographs = write_folder(tmp_path / "data", train=2, val=1) / "images"
    monkeypatch.setattr(gpu_record, "MOST_BYTES", 100_000)
    with pytest.raises(SohesError, match="more than 0"):
        prepare(tmp_path / "carried", str(photographs), "random:vit_tiny_patch16_224")


def test_nothing_begins_without_what_is_trained_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    missing = ["--images", str(tmp_path), "--labels", str(tmp_path), "--weights", "weights", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["gpu_record", *missing])
    with pytest.raises(DataError, match=r"train\.json: not there; write it with --prepare"):
        gpu_record.main()


def test_every_step_on_what_was_prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of it in this process, tiny; what was prepared has been carried to another folder."""
    photographs = write_folder(tmp_path / "data", train=3, val=1) / "images"
    Image.new("RGB", (1000, 600), "red").save(photographs / "large.png")
    size = prepare(tmp_path / "here", str(photographs), "random:vit_tiny_patch16_224", photographs=4)
    assert size < 20_000_000
    there = (tmp_path / "here").rename(tmp_path / "there")
    assert max(Image.open(path).size for path in there.glob("images/*.jpg")) == (480, 288)
    assert len(LabelStore(there / "labels")) == 4

    def in_process(step: RecordStep, path: Path, seconds: float) -> dict[str, Any]:
        write_json(path.with_suffix(".json"), None)
        arguments: Sequence[str] = (*step.arguments, "--json", str(path.with_suffix(".json")), *TINY[step.script])
        monkeypatch.setattr(sys, "argv", [step.script, *arguments])
        import_module(step.script).main()
        return {"state": "done", "result": read_json(path.with_suffix(".json"))}

    monkeypatch.setattr(gpu_record, "run", in_process)
    monkeypatch.setattr(deformable, "CASES", {"tiny": (1, 4, 32)})
    monkeypatch.setattr(timed_training, "TRIAL_STEPS", 2)
    monkeypatch.setattr(timed_training, "fitting_steps", lambda history, whole_s, left_s: 3)
    options = Namespace(images=there / "images", labels=there / "labels", weights=str(there / "backbone"))
    every = steps(Namespace(**vars(options), out=tmp_path / "out"))
    planned = list({step.script: step for step in every[::-1]}.values())[::-1]  # the first of each script
    record(planned, tmp_path / "out", 9)
    found = read_json(tmp_path / "out" / "record.json")["steps"]
    assert [(entry["name"], entry["state"]) for entry in found] == [(step.name, "done") for step in planned]
    assert all(entry["result"]["hardware"] for entry in found)
    assert found[-1]["result"]["steps"] == 3
    assert load_segmenter(tmp_path / "out" / "training" / "segmenter").model.config.query_start == "patches"


def test_the_steps_leave_time_to_train() -> None:
    """In the worst case, of the default nine minutes."""
    options = Namespace(images=Path("images"), labels=Path("labels"), weights="weights", out=Path("out"))
    *measured, training = steps(options)
    assert sum(step.seconds for step in measured) < 7 * 60
    assert training.seconds is None


def test_a_training_without_time_says_so() -> None:
    history = timed_training.pd.DataFrame({"step_seconds": [1.0, 1.0]})
    with pytest.raises(ConfigError, match="give more minutes"):
        timed_training.fitting_steps(history, whole_s=20, left_s=15)
