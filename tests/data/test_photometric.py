"""Photometric augmentation: colours change, places do not."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torchvision.transforms.v2 import functional

from sohes.data.photometric import colour_jitter, distort, solarise


def test_jitter_moves_no_pixel() -> None:
    """A picture of two colours stays one of two colours, with the same border."""
    image = np.zeros((20, 30, 3), np.uint8)
    image[:, :13] = (200, 40, 90)
    image[:, 13:] = (30, 160, 60)
    for seed in range(20):
        jittered = colour_jitter(image, np.random.default_rng(seed), strength=0.4, hue=0.1)
        assert np.ptp(jittered[:, :13], axis=(0, 1)).max() == 0
        assert np.ptp(jittered[:, 13:], axis=(0, 1)).max() == 0
        assert (jittered[0, 0] != jittered[0, -1]).any()


@pytest.mark.parametrize("seed", range(12))
def test_jitter_is_that_of_torchvision(seed: int) -> None:
    """In floating point, one after another, on colours so dull that none is clipped in between."""
    image = np.random.default_rng(seed).integers(90, 131, (16, 20, 3), dtype=np.uint8)
    brightness, contrast, saturation = np.random.default_rng(seed).uniform(0.6, 1.4, 3)
    rng = np.random.default_rng(seed)
    rng.uniform(size=3)
    hue = rng.uniform(-0.1, 0.1)
    expected = torch.from_numpy(image).permute(2, 0, 1) / 255
    for adjust, factor in (
        (functional.adjust_brightness, brightness),
        (functional.adjust_contrast, contrast),
        (functional.adjust_saturation, saturation),
        (functional.adjust_hue, hue),
    ):
        expected = adjust(expected, float(factor))
    jittered = colour_jitter(image, np.random.default_rng(seed), strength=0.4, hue=0.1)
    assert np.abs(jittered - expected.permute(1, 2, 0).numpy() * 255).max() < 4


def test_strength_bounds_the_brightness() -> None:
    """A grey picture has neither saturation nor hue, and contrast leaves its mean alone."""
    grey = np.full((8, 8, 3), 100, np.uint8)
    found = [colour_jitter(grey, np.random.default_rng(s), strength=0.8, hue=0.2)[0, 0, 0] for s in range(200)]
    assert 20 <= min(found) < 30
    assert 170 < max(found) <= 180


def test_distort_leaves_the_original_alone_and_repeats() -> None:
    image = np.random.default_rng(0).integers(0, 256, (12, 9, 3), dtype=np.uint8)
    before = image.copy()
    views = [distort(image, np.random.default_rng(seed), strength=0.8, hue=0.2) for seed in range(40)]
    assert np.array_equal(image, before)
    assert np.array_equal(views[3], distort(image, np.random.default_rng(3), strength=0.8, hue=0.2))
    grey = sum(np.ptp(view, axis=-1).max() == 0 for view in views)
    assert 2 <= grey <= 16  # one in five


def test_saturation_may_have_a_strength_of_its_own() -> None:
    """It is drawn third, so the other two stay as they are."""
    image = np.random.default_rng(0).integers(90, 131, (8, 8, 3), dtype=np.uint8)
    same, other = (
        colour_jitter(image, np.random.default_rng(1), strength=0.4, hue=0.0, saturation_strength=own)
        for own in (0.4, 0.0)
    )
    assert np.array_equal(same, colour_jitter(image, np.random.default_rng(1), strength=0.4, hue=0.0))
    brightness, contrast, _ = np.random.default_rng(1).uniform(0.6, 1.4, 3)
    expected = functional.adjust_brightness(torch.from_numpy(image).permute(2, 0, 1) / 255, brightness)
    expected = functional.adjust_contrast(expected, contrast).permute(1, 2, 0).numpy() * 255
    assert np.abs(other - expected).max() < 2


def test_solarise_is_that_of_pillow() -> None:
    image = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    assert np.array_equal(solarise(image), np.asarray(ImageOps.solarize(Image.fromarray(image))))
