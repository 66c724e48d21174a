"""Samples: geometry on record, only seed and position decide."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sohes.configuration import Settings
from sohes.data.coco import ImageItem
from sohes.data.views import overlap_px, sample_rng
from sohes.errors import ConfigError, DataError
from sohes.methods.leopart.settings import CropSettings, LeopartConfig, crop_sides
from sohes.methods.leopart.stage import usable_images
from sohes.methods.leopart.views import CropSamples, collate, draw_views, shared_boxes


@pytest.mark.parametrize("size_hw", [(240, 320), (60, 500), (500, 60), (14, 14), (3, 200), (1, 1)])
def test_every_crop_overlaps_both_global_ones(size_hw: tuple[int, int]) -> None:
    area = size_hw[0] * size_hw[1]
    short = []
    for seed in range(60):
        views = draw_views(size_hw, sample_rng(seed, 0), CropSettings(), (224, 96))
        assert [view.size_hw[0] for view in views] == [224, 224, 96, 96, 96, 96]
        in_global, in_all = shared_boxes(views)
        assert bool((in_global[..., 2:] > in_global[..., :2]).all())
        assert bool((in_all[..., 2:] > in_all[..., :2]).all())
        assert in_global.min() >= -1e-3
        assert in_global.max() <= 224 + 1e-3
        assert in_all[2:].max() <= 96 + 1e-3
        for place, view in enumerate(views[1:], 1):
            floor = int(area * 0.01 * (2 if place < 2 else 1))
            short += [overlap_px(view, other) <= floor for other in views[: min(place, 2)]]
    if min(size_hw) > 100:  # where drawing again always helps
        assert not any(short)


def test_areas_are_those_of_the_settings() -> None:
    """Of whole pixels, so to within their rounding."""
    settings = CropSettings(global_area_min=0.3, global_area_max=0.4, local_area_min=0.1, local_area_max=0.12)
    for seed in range(30):
        views = draw_views((400, 500), sample_rng(seed, 0), settings, (224, 96))
        shares = np.array([view.width * view.height / 200_000 for view in views])
        assert ((shares[:2] > 0.295) & (shares[:2] < 0.405)).all()
        assert ((shares[2:] > 0.098) & (shares[2:] < 0.122)).all()


@pytest.fixture
def items(tmp_path: Path) -> list[ImageItem]:
    found = []
    for place in range(3):
        pixels = np.random.default_rng(place).integers(0, 256, (50, 70, 3), dtype=np.uint8)
        path = tmp_path / f"{place}.png"
        Image.fromarray(pixels).save(path)
        found.append(ImageItem(place + 1, path, 50, 70))
    return found


def test_samples_repeat_and_differ_by_position(items: list[ImageItem]) -> None:
    settings = CropSettings(local_crops=3)
    samples = CropSamples(items, settings, sides=(64, 32), seed=1)
    one, again = samples[4], CropSamples(items, settings, sides=(64, 32), seed=1)[4]
    assert one["global_crops"].shape == (2, 3, 64, 64)
    assert one["local_crops"].shape == (3, 3, 32, 32)
    assert one["global_crops"].dtype == torch.uint8
    assert one["boxes_global"].shape == (2, 5, 4)
    assert one["boxes_all"].shape == (5, 2, 4)
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert not torch.equal(one["global_crops"], samples[5]["global_crops"])
    assert not torch.equal(one["key"], samples[1]["key"])
    batch = collate([samples[0], samples[1]])
    assert torch.equal(batch["boxes_all"][1], samples[1]["boxes_all"])


def test_without_local_crops(items: list[ImageItem]) -> None:
    sample = CropSamples(items, CropSettings(local_crops=0), sides=(64, 32), seed=0)[0]
    assert sample["local_crops"].shape == (0, 3, 32, 32)
    assert sample["boxes_all"].shape == (2, 2, 4)


def test_sides_follow_the_patch() -> None:
    assert crop_sides(CropSettings(), 16) == (224, 96)
    assert crop_sides(CropSettings(), 14) == (224, 98)
    assert crop_sides(CropSettings(global_px=112, local_px=42), 14) == (112, 42)
    with pytest.raises(ConfigError, match=r"global_px=230 is not a multiple of the backbone's 14 px patches.* try 224"):
        crop_sides(CropSettings(global_px=230), 14)
    with pytest.raises(ConfigError, match=r"global_px=48 .* at least 4 .* try 64"):
        crop_sides(CropSettings(global_px=48), 16)


def test_settings_are_checked() -> None:
    with pytest.raises(ConfigError, match=r"local_area_min=0.5 is above local_area_max=0.25"):
        CropSettings(local_area_min=0.5)
    with pytest.raises(ConfigError, match=r"epsilon must be float of at least 0.025"):
        LeopartConfig(epsilon=0.01)
    settings = Settings(LeopartConfig, "leopart")
    with pytest.raises(ConfigError, match="mask"):
        settings.update_text("mask", "foreground", "the command line")


class Weights:
    patch_px = 14


def test_check_beside_the_weights() -> None:
    LeopartConfig().check_beside([Weights(), object()])
    with pytest.raises(ConfigError, match="local_px=96"):
        LeopartConfig(local_px=96).check_beside([Weights()])


def test_more_prototypes_than_patches() -> None:
    assert LeopartConfig(batch_size=2, accumulate=2, prototypes=256).sides(14) == (224, 98)
    with pytest.raises(ConfigError, match=r"prototypes=300 cannot get equal shares of the 256 patches .* at most 256"):
        LeopartConfig(batch_size=2, accumulate=2, prototypes=300).sides(14)


def test_images_smaller_than_a_patch() -> None:
    items = [ImageItem(place, Path(f"{place}.png"), *size) for place, size in enumerate([(40, 7), (8, 8), (3, 90)])]
    assert [item.id for item in usable_images(items, 8, Path("train.json"))] == [1]
    with pytest.raises(DataError, match=r"train.json: holds 3 images, all with a side below the patch of 16 px"):
        usable_images(items, 16, Path("train.json"))
    with pytest.raises(DataError, match=r"train.json: holds no image"):
        usable_images([], 16, Path("train.json"))
