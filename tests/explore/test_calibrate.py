"""Calibrated thresholds on feature maps whose regions at every cosine are known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from torch import Tensor

from sohes.backbones.timm_vit import DenseViT
from sohes.errors import DataError
from sohes.explore.agglomerate import merge_patches
from sohes.explore.calibrate import calibrate_thresholds
from sohes.explore.explorer import Explorer
from sohes.explore.settings import ExploreSettings
from sohes.masks import FloatArray
from tests.backbones.conftest import tiny
from tests.explore.colours import Colours
from tests.explore.test_explorer import clouds

COUNTS = (16, 8, 4, 2, 1)


def ladder(common: float = 0.5) -> FloatArray:
    """A row of 16 patches that merge in pairs, fours, eights and then all, at cosines far apart.

    Two patches share a direction for each group of 2, 4 and 8 that both are in, and all share one of length `common`.
    """
    features = np.zeros((1, 16, 31), np.float32)
    for patch in range(16):
        for level, length in enumerate((1, 1, 1, 1)):
            features[0, patch, 32 - (32 >> level) + (patch >> level)] = length
    features[..., 30] = common
    return features


def regions(features: FloatArray, thresholds: tuple[float, ...]) -> list[int]:
    return [len(np.unique(level)) for level in merge_patches(features, thresholds)]


def test_the_ladder_is_what_it_says() -> None:
    features = ladder()[0].astype(float)
    groups, cosines = features, []
    while len(groups) > 1:
        unit = groups / np.linalg.norm(groups, axis=1, keepdims=True)
        cosines.append(float(unit[0] @ unit[1]))
        groups = groups.reshape(len(groups) // 2, 2, -1).sum(1)
    assert (np.diff([1, *cosines]) < -0.05).all()
    between = np.convolve([1, *cosines], [0.5, 0.5], "valid")
    assert regions(ladder(), (*between, -1.0)) == [16, 8, 4, 2, 1]


@pytest.mark.parametrize("common", [0, 0.5, 5, 40])
@pytest.mark.parametrize("scale", [1.0, 1e-3, 1024.0])
def test_backbones_alike_but_for_scale_and_offset_are_cut_into_as_many_regions(common: float, scale: float) -> None:
    """An offset of 40 lifts the lowest cosine above 0.99."""
    features = ladder(common) * np.float32(scale)
    thresholds = calibrate_thresholds([features], COUNTS)
    assert list(thresholds) == sorted(set(thresholds), reverse=True)
    assert all(-1 <= threshold <= 1 for threshold in thresholds)
    assert regions(features, thresholds) == [16, 8, 4, 2, 1]
    ExploreSettings(theta_merge=thresholds)  # takes them


def test_a_scale_that_is_exact_gives_the_same_thresholds() -> None:
    assert calibrate_thresholds([ladder()], COUNTS) == calibrate_thresholds([ladder() * np.float32(4)], COUNTS)


def test_the_order_of_the_counts_does_not_matter() -> None:
    assert calibrate_thresholds([ladder()], (2, 16, 1, 4, 8)) == calibrate_thresholds([ladder()], COUNTS)


def test_counts_that_ask_for_the_same_share_a_threshold() -> None:
    thresholds = calibrate_thresholds([ladder()], (500, 16, 15, 12, 3, 4))
    assert regions(ladder(), thresholds) == [16, 4]  # 12 is nearer to 16 than to 8, as ratios go; so is 3 to 4


def test_numbers_of_regions_are_averaged_geometrically() -> None:
    constant = np.ones((3, 3, 2), np.float32)  # one region at any cosine
    assert regions(ladder(), calibrate_thresholds([constant, ladder()], (4,))) == [16]
    assert regions(ladder(), calibrate_thresholds([constant, ladder(), ladder()], (4,))) == [8]
    assert regions(ladder(), calibrate_thresholds(iter([ladder()]), (4,))) == [4]


def test_without_images() -> None:
    with pytest.raises(ValueError, match="cannot be calibrated without any image"):
        calibrate_thresholds([], COUNTS)


def uncalibrated(**settings: Any) -> Explorer:
    options: dict[str, Any] = {"algorithm": "sohes", "size_global": 96, "max_crops": 0, "region_counts": (4, 12, 30)}
    return Explorer(Colours(), ExploreSettings(**options | settings))


def test_without_images_an_explorer_stays_as_it_is() -> None:
    explorer = uncalibrated()
    assert explorer.calibrated([]) is explorer


def test_an_explorer_that_needs_no_thresholds_stays_as_it_is() -> None:
    never = iter([np.zeros(0, np.uint8)])
    for explorer in (uncalibrated(theta_merge=(0.5,)), uncalibrated(algorithm="superpixels")):
        assert explorer.calibrated(never) is explorer


class Offset(Colours):
    """Another backbone: its features share a large part."""

    def colours(self, images: Tensor) -> Tensor:
        return super().colours(images) + 3


@pytest.mark.parametrize(("backbone", "center"), [(Colours, False), (Colours, True), (Offset, False), (Offset, True)])
@pytest.mark.parametrize("keep_aspect", [False, True])
def test_calibrated_explorers_find_as_many_regions(backbone: type[Colours], center: bool, keep_aspect: bool) -> None:
    explorer = uncalibrated(center=center, keep_aspect=keep_aspect)
    explorer = Explorer(backbone(), explorer.settings)
    images = [clouds(seed, 60, 90) for seed in range(4)]
    calibrated = explorer.calibrated(iter(images))
    assert explorer.settings.theta_merge is None
    thresholds = calibrated.settings.theta_merge
    assert thresholds is not None
    assert calibrated.backbone is explorer.backbone
    assert calibrated.settings == ExploreSettings(**vars(explorer.settings) | {"theta_merge": thresholds})
    logs = []
    for image in images:
        (view,) = next(calibrated.explore(image))
        (features,) = calibrated.features([view])
        logs.append(np.log(regions(features - features.mean((0, 1)) if center else features, thresholds)))
    np.testing.assert_allclose(np.exp(np.mean(logs, axis=0)), (30, 12, 4), rtol=0.3)
    assert len(calibrated(images[0])) > 0


@pytest.mark.parametrize("variant", ["patch 8", "register tokens"])
def test_vits_of_random_weights(variant: str) -> None:
    settings = ExploreSettings(
        algorithm="sohes", size_global=112, max_crops=0, region_counts=(4, 12, 30), min_area_px=1
    )
    explorer = Explorer(DenseViT(tiny(variant)), settings).calibrated([clouds(0, 60, 90), clouds(1, 90, 60)])
    thresholds = explorer.settings.theta_merge
    assert thresholds is not None
    assert len(thresholds) == 3
    assert list(thresholds) == sorted(thresholds, reverse=True)
    assert len(explorer(clouds(0, 60, 90))) > 0


def test_features_that_are_not_finite() -> None:
    explorer = uncalibrated()
    colours = explorer.backbone.colours  # type: ignore[attr-defined]
    explorer.backbone.colours = lambda images: colours(images) / 0  # type: ignore[attr-defined]
    with pytest.raises(DataError, match="hold NaN or infinite values"):
        explorer.calibrated([clouds(0, 60, 90)])
