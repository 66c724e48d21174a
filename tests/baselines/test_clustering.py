"""Clustering baselines with a random ViT: what "DINO" leaves out of phase 1."""

from __future__ import annotations

import numpy as np
import pytest

from sohes.baselines.registry import make_baseline
from sohes.baselines.settings import DinoSettings, SohesSettings
from sohes.errors import ConfigError, WeightsError

# what the suite's single-threshold rows are made with
PUBLISHED = {
    "algorithm": "sohes",
    "max_masks": 300,
    "center": False,
    "size_global": 480,
    "keep_aspect": False,
    "refine_iou": 0.5,
    "nms_iou": 0.9,
}
TINY = {"backbone": "random:vit_tiny_patch16_224", "center": True, "size_global": 128, "min_patches": 2}


@pytest.fixture
def image() -> np.ndarray:
    image = np.full((96, 96, 3), 30, dtype=np.uint8)
    image[16:64, 16:64] = (200, 40, 40)
    return image


def test_scores_rank_by_cohesion(image: np.ndarray) -> None:
    baseline = make_baseline(
        "sohes", SohesSettings(**TINY, algorithm="sohes", theta_merge=(0.8, 0.4, 0.1), max_crops=2, size_local=64)
    )
    forest = baseline.predict(image)
    assert len(forest) > 1
    assert np.array_equal(forest.scores, forest.attributes["cohesion"])
    assert (baseline.backbone, baseline.init) == ("vit_tiny_patch16_224", "random weights")
    assert baseline.supervision == "none"


def test_dino_is_one_level_without_local_step(image: np.ndarray) -> None:
    forest = make_baseline("dino", DinoSettings(**TINY)).predict(image)
    assert len(forest) > 0
    assert set(forest.attributes["level_first"]) == {0}
    assert set(forest.attributes["source"]) == {"global"}
    settings = DinoSettings()
    assert {key: getattr(settings, key) for key in PUBLISHED} == PUBLISHED
    assert (settings.theta_merge, settings.max_crops) == ((0.4,), 0)
    with pytest.raises(ConfigError, match="one threshold without local step"):
        DinoSettings(theta_merge=(0.4, 0.2))
    with pytest.raises(ConfigError, match="one threshold without local step"):
        DinoSettings(max_crops=4)


def test_missing_backbone() -> None:
    with pytest.raises(WeightsError, match="no such file"):
        make_baseline("dino", DinoSettings(backbone="gone/weights.safetensors"))
