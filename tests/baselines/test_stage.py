"""A cell of a suite: data in, record out, going on after an interruption, and what is missing."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from sohes.baselines import classical
from sohes.baselines.stage import (
    FelzenszwalbConfig,
    PredictionsConfig,
    SamConfig,
    SlicMergeConfig,
    felzenszwalb,
    predictions,
    sam,
    slic_merge,
)
from sohes.data.coco import read_coco
from sohes.data.images import ImageArray
from sohes.data.label_store import LabelStore, LabelWriter
from sohes.data.scenes.scene import write_scenes
from sohes.errors import ConfigError, DataError, WeightsError
from sohes.masks import MaskForest
from sohes.records import StageResult


@pytest.fixture(scope="module")
def truth(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ground truth of five generated scenes."""
    folder = tmp_path_factory.mktemp("scenes")
    write_scenes(folder, train=1, val=5, size=64, seed=3)
    return folder / "val.json"


def values(result: StageResult) -> dict[str, float]:
    return {row.metric: row.value for row in result.measurements}


def test_measures_by_the_published_protocol(truth: Path, tmp_path: Path) -> None:
    config = SlicMergeConfig(model="floor", dataset="scenes", ground_truth=str(truth), superpixels=60)
    result = slic_merge(config, {}, tmp_path)
    row = next(row for row in result.measurements if row.metric == "mask_ar_1000")
    assert (row.method, row.dataset, row.protocol) == ("floor", "scenes", "mask_ar1000_v1")
    assert (row.n_images, row.of_images) == (5, None)
    assert (row.backbone, row.init, row.supervision, row.arm) == ("none", "none (colours)", "none", "")
    assert 0 < row.value <= 100
    assert len(LabelStore(tmp_path / "predictions")) == 5


def test_limited_images_are_said(truth: Path, tmp_path: Path) -> None:
    config = FelzenszwalbConfig(model="f", dataset="scenes", ground_truth=str(truth), max_images=2)
    result = felzenszwalb(config, {}, tmp_path)
    assert {(row.dataset, row.n_images, row.of_images) for row in result.measurements} == {("scenes", 2, 5)}
    assert LabelStore(tmp_path / "predictions").image_ids == [item.id for item in read_coco(truth).items[:2]]


def test_goes_on_after_an_interruption(truth: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = FelzenszwalbConfig(model="f", dataset="scenes", ground_truth=str(truth))
    undisturbed = felzenszwalb(config, {}, tmp_path / "whole")
    segmented: list[int] = []
    segment: Callable[..., MaskForest] = classical.Felzenszwalb.predict

    def interrupted(self: classical.Felzenszwalb, image: ImageArray) -> MaskForest:
        if len(segmented) == 3:
            segmented.append(-1)
            raise KeyboardInterrupt
        segmented.append(1)
        return segment(self, image)

    monkeypatch.setattr(classical.Felzenszwalb, "predict", interrupted)
    writer_init = LabelWriter.__init__
    monkeypatch.setattr(
        LabelWriter, "__init__", lambda self, folder, **given: writer_init(self, folder, **(given | {"shard_size": 1}))
    )
    with pytest.raises(KeyboardInterrupt):
        felzenszwalb(config, {}, tmp_path / "cut")
    resumed = felzenszwalb(config, {}, tmp_path / "cut")
    assert segmented.count(1) == 5  # three before, two after
    assert resumed.measurements == undisturbed.measurements


def test_a_broken_image_is_skipped_and_counted(truth: Path, tmp_path: Path) -> None:
    content = json.loads(truth.read_text())
    for image in content["images"]:
        image["file_name"] = str(truth.parent / image["file_name"])
    whole = tmp_path / "whole.json"
    whole.write_text(json.dumps(content))
    (tmp_path / "broken.png").write_bytes(b"no picture")
    content["images"][1]["file_name"] = "broken.png"
    broken = tmp_path / "val.json"
    broken.write_text(json.dumps(content))
    results = [
        felzenszwalb(FelzenszwalbConfig(model="f", dataset=str(path)), {}, tmp_path / path.stem)
        for path in (whole, broken)
    ]
    assert results[0].notes == []
    missed, skipped = results[1].notes
    assert missed.startswith("1 of ")
    assert missed.endswith("have no predictions: their objects count as missed")
    assert "broken.png" in skipped
    assert values(results[1])["mask_ar_1000"] < values(results[0])["mask_ar_1000"]


def test_predictions_of_another_system(truth: Path, tmp_path: Path) -> None:
    """The ground truth as results: all recalled; one entry broken: counted."""
    source = read_coco(truth)
    rows = [
        {"image_id": item.id, "category_id": 1, "segmentation": rle, "score": 0.5}
        for item in source.items
        for rle in source.forest(item.id).rles
    ]
    file = tmp_path / "other" / "scenes.json"
    file.parent.mkdir()
    file.write_text(json.dumps([*rows, {"image_id": 10**6, "segmentation": rows[0]["segmentation"], "score": 1}]))
    config = PredictionsConfig(
        model="cutler",
        dataset="scenes",
        ground_truth=str(truth),
        max_images=3,
        predictions=str(tmp_path / "other" / "{dataset}.json"),
    )
    assert config.outside_inputs() == [truth, file]
    result = predictions(config, {}, tmp_path / "out")
    assert values(result)["mask_ar_1000"] == pytest.approx(100.0)
    assert {row.n_images for row in result.measurements} == {3}
    assert any("image outside the ground truth" in note for note in result.notes)


def test_what_is_missing(truth: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The launcher gets no file for it; the stage says what to do, data first: weights may take long to miss."""
    monkeypatch.setenv("SOHES_DATA", str(tmp_path))
    config = SamConfig(model="sam", dataset="coco", weights=str(tmp_path / "sam"))
    assert config.outside_inputs() == []
    with pytest.raises(DataError, match="sohes data prepare coco"):
        sam(config, {}, tmp_path)
    with pytest.raises(WeightsError, match="hf download"):
        sam(replace(config, ground_truth=str(truth)), {}, tmp_path)
    given = PredictionsConfig(model="m", dataset="x", ground_truth=str(truth), predictions="gone.json")
    with pytest.raises(DataError, match=r"gone\.json: no predictions here"):
        predictions(given, {}, tmp_path)


def test_settings_of_the_baseline_are_checked_with_the_cell() -> None:
    with pytest.raises(ConfigError, match="superpixels"):
        SlicMergeConfig(model="m", dataset="d", superpixels=0)
