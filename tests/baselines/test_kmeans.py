"""k-means of a ViT's tokens: equal to k-means of the pixels, nested, and used like any segmenter."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from sohes.baselines.registry import make_baseline
from sohes.baselines.settings import VitKmeansSettings
from sohes.errors import ConfigError, WeightsError

TINY: dict[str, Any] = {"backbone": "random:vit_tiny_patch16_224", "size_px": 64, "clusters": (12, 6, 3)}


def test_is_used_like_any_segmenter() -> None:
    image = np.random.default_rng(0).integers(0, 256, (50, 70, 3), np.uint8)
    image[10:30, 10:40] = (200, 40, 40)
    segmenter = make_baseline("vit_kmeans", VitKmeansSettings(**TINY))
    forest = segmenter.predict(image)
    assert forest == make_baseline("vit_kmeans", VitKmeansSettings(**TINY)).predict(image)
    assert forest.size_hw == (50, 70)
    assert set(forest.attributes["source"]) == {"level 1", "level 2", "level 3"}
    assert (np.diff(forest.scores) <= 0).all()
    assert 0 <= forest.scores.min() <= forest.scores.max() <= 1
    coarsest = forest.masks[forest.attributes["source"] == "level 3"]
    assert (coarsest.sum(axis=0) == 1).all()  # a partition, and all else lies in it
    assert (forest.parent[forest.attributes["source"] == "level 3"] == -1).all()
    assert (forest.parent[forest.attributes["source"] != "level 3"] >= 0).all()
    assert len({*forest.attributes["category_id"].tolist()}) <= 12 + 6 + 3
    assert (segmenter.backbone, segmenter.init, segmenter.supervision) == (
        *("vit_tiny_patch16_224", "random weights"),
        "none",
    )


def test_settings_are_checked() -> None:
    with pytest.raises(ConfigError, match="clusters must fall from level to level"):
        VitKmeansSettings(clusters=(8, 16))
    with pytest.raises(
        ConfigError, match="size_px=100 is no multiple of vit_tiny_patch16_224's patch of 16 px; take 96"
    ):
        make_baseline("vit_kmeans", VitKmeansSettings(**TINY | {"size_px": 100}))
    with pytest.raises(WeightsError, match="no such file"):
        make_baseline("vit_kmeans", VitKmeansSettings(backbone="gone/weights.safetensors"))
