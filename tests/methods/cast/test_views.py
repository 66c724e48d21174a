"""Samples: what is drawn and how often, superpixels of the very view; only seed and position decide."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sohes.configuration import Settings
from sohes.data.coco import ImageItem
from sohes.errors import ConfigError
from sohes.methods.cast import views
from sohes.methods.cast.settings import CastConfig, CastCropSettings
from sohes.methods.cast.views import ViewPairs, collate, draw_view
from tests.methods.cast.tiny import squares

SMALL = CastCropSettings(view_px=32, superpixel_px=8)


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
    samples = ViewPairs(items, SMALL, batch_size=2, seed=1, superpixels=squares)
    one, again = samples[4], ViewPairs(items, SMALL, batch_size=2, seed=1, superpixels=squares)[4]
    assert one["images"].shape == (2, 3, 32, 32)
    assert one["images"].dtype == torch.uint8
    assert one["superpixels"].shape == (2, 32, 32)
    assert one["superpixels"].dtype == torch.int16
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert not torch.equal(one["images"], samples[5]["images"])
    assert not torch.equal(one["images"][0], one["images"][1])
    batch = collate([samples[0], samples[1]])
    assert torch.equal(batch["images"][1], samples[1]["images"])
    assert ViewPairs(items, SMALL, batch_size=2, seed=1, superpixels=None)[4].keys() == {"images"}


def test_superpixels_are_of_the_view_as_the_network_gets_it(items: list[ImageItem]) -> None:
    sample = ViewPairs(items, SMALL, batch_size=2, seed=0, superpixels=lambda view: view.astype(np.int32).sum(-1))[0]
    assert torch.equal(sample["superpixels"].int(), sample["images"].int().sum(1))


def test_no_batch_has_an_image_twice(items: list[ImageItem]) -> None:
    """Black is black after any jitter; one of three images is, and the first view is never solarised."""
    for place, item in enumerate(items):
        Image.fromarray(np.full((20, 20, 3), 60 * place, np.uint8)).save(item.path)
    samples = ViewPairs(items, SMALL, batch_size=2, seed=0, superpixels=None)
    black = [int(samples[position]["images"][0].max()) == 0 for position in range(24)]
    pairs = list(zip(black[::2], black[1::2], strict=True))
    assert (True, True) not in pairs
    assert 0 < sum(map(any, pairs)) < 12  # each epoch is one batch, without one of the images
    with pytest.raises(ConfigError, match="batch_size=4 is more than the 3 images there are"):
        ViewPairs(items, SMALL, batch_size=4, seed=0, superpixels=None)


def test_views_are_distorted_as_often_as_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """Jitter, grey, blur, solarisation, in this order."""
    calls: list[str] = []
    names = ("colour_jitter", "greyscale", "blur", "solarise")
    for name in names:
        monkeypatch.setattr(views, name, lambda image, *_, name=name, **__: calls.append(name) or image)
    image = np.zeros((20, 20, 3), np.uint8)
    image[:, 10:] = 200
    mirrored = 0
    for number, expected in enumerate([(0.8, 0.2, 1.0, 0.0), (0.8, 0.2, 0.1, 0.2)]):
        counts = dict.fromkeys(names, 0)
        for seed in range(400):
            calls.clear()
            whole = CastCropSettings(view_px=16, area_min=1.0)
            view = draw_view(image, np.random.default_rng([seed, number]), whole, number)
            mirrored += int(view[0, 0, 0] == 200)
            assert calls == [name for name in names if name in calls]
            for name in calls:
                counts[name] += 1
        assert [count / 400 for count in counts.values()] == pytest.approx(expected, abs=0.06)
    assert mirrored / 800 == pytest.approx(0.5, abs=0.06)


def test_first_views_are_blurred() -> None:
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    settings = CastCropSettings(view_px=64, area_min=1.0)
    rough = [[], []]
    for seed in range(60):
        for number in range(2):
            view = draw_view(image, np.random.default_rng([seed, number]), settings, number).astype(int)
            rough[number].append(np.abs(np.diff(view, axis=0)).mean() / view.std())
    assert np.median(rough[0]) < 0.8 * np.median(rough[1])


def test_settings_are_checked() -> None:
    settings = Settings(CastConfig, "cast")
    with pytest.raises(ConfigError, match="superpixels"):
        settings.update_text("superpixels", "seed", "the command line")
    CastConfig().check_view(8, superpixels=True)
    CastConfig(view_px=98).check_view(14)
    with pytest.raises(ConfigError, match=r"view_px=98 is not a multiple of the backbone's 16 px patches; try 96"):
        CastConfig(view_px=98).check_view(16)
    with pytest.raises(ConfigError, match=r"view_px=168 is not a multiple of superpixel_px=16; try 160"):
        CastConfig(view_px=168).check_view(8, superpixels=True)
    with pytest.raises(ConfigError, match=r"view_px=8 is too small for superpixels; set it to at least 16"):
        CastConfig(view_px=8, superpixel_px=8).check_view(8, superpixels=True)
    settings.update({"preset": "classify", "superpixels": "slic"}, "a recipe")  # bins are its own, not asked for
    assert settings.build().superpixel_bins == 5
    settings.update_text("superpixel_bins", "7", "the command line")
    with pytest.raises(
        ConfigError, match=r"cast\.superpixel_bins has no effect with superpixels=slic, only with .*seeds"
    ):
        settings.build()


def test_chosen_superpixels() -> None:
    assert CastConfig(superpixel_px=8).chosen_superpixels() == ["superpixel_px=8"]
    classify = CastConfig.PRESETS["classify"]
    assert CastConfig(**classify).chosen_superpixels() == []
    assert CastConfig(**classify | {"superpixel_bins": 15}).chosen_superpixels() == ["superpixel_bins=15"]


@pytest.mark.parametrize("size_hw", [(1, 1), (1, 300), (400, 2)])
def test_views_of_strips(size_hw: tuple[int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*size_hw, 3), np.uint8)
    view = draw_view(image, np.random.default_rng(0), CastConfig(view_px=32), 0)
    assert (view.shape, view.dtype) == ((32, 32, 3), np.uint8)


class Weights:
    patch_px = 14


def test_check_beside_the_weights() -> None:
    CastConfig().check_beside([Weights(), object()])
    with pytest.raises(ConfigError, match="view_px=96"):
        CastConfig(view_px=96).check_beside([Weights()])
