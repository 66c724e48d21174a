"""Baselines whose masks CLIP names: a tiny random SAM and a tiny random CLIP, read as CAST reads SAM."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sohes.baselines.part_naming_stage import SamNamingConfig, VitKmeansNamingConfig, sam, vit_kmeans
from sohes.baselines.registry import make_baseline
from sohes.baselines.settings import SamSettings
from sohes.evaluation.clip import ClipNamer
from sohes.evaluation.part_naming import OnSquare, Vocabulary, evaluate_part_naming, mask_segments
from tests.baselines.test_sam import tiny_sam
from tests.evaluation.test_part_naming import tiny_clip, two_images

GRID: dict[str, Any] = {"points_per_side": 2, "pred_iou_thresh": 0, "stability_score_thresh": 0, "box_nms_iou": 1.0}


@pytest.fixture
def given(tmp_path: Path) -> dict[str, Any]:
    (tmp_path / "clip").mkdir()
    truth = two_images(tmp_path)
    return {"dataset": "toys", "ground_truth": str(truth.source), "clip": str(tiny_clip(tmp_path / "clip"))}


def test_masks_of_sam(given: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "sam").mkdir()
    weights = tiny_sam(tmp_path / "sam")
    config = SamNamingConfig(method="SAM", weights=str(weights), **given, **GRID)
    assert config.read_out == "masks"
    assert config.outside_inputs() == [Path(given["ground_truth"]), Path(given["clip"]), weights]
    rows = {row.metric: row for row in sam(config, {}, tmp_path / "out").measurements}
    truth = two_images(tmp_path)
    own = OnSquare(make_baseline("sam", SamSettings(weights=str(weights), **GRID)), 16)
    predictions = {item.id: own.predict(item.path) for item in truth.items}
    namer = ClipNamer(given["clip"], Vocabulary.of(truth).names)
    scores = evaluate_part_naming(truth, predictions, namer, mask_segments, side_px=16)
    assert {metric: row.value for metric, row in rows.items()} == {
        metric: pytest.approx(value) for metric, (value, _) in scores.metrics().items()
    }
    row = rows["miou_image_object"]
    assert (row.method, row.supervision, row.protocol) == ("SAM", "masks", "part_naming_whole_v1")
    assert row.init == "SAM weights sam"


def test_levels_of_k_means(given: dict[str, Any], tmp_path: Path) -> None:
    config = VitKmeansNamingConfig(
        method="k-means",
        backbone="random:vit_tiny_patch16_224",
        size_px=64,
        clusters=(8, 6, 4, 2),
        **given,
    )
    assert config.read_out == "levels"
    rows = vit_kmeans(config, {}, tmp_path / "out").measurements
    assert {row.metric for row in rows} == {
        *("miou_image_object", "miou_image_part", "miou_dataset_object", "miou_dataset_part")
    }
    assert {(row.n_images, row.supervision) for row in rows} == {(2, "none")}
