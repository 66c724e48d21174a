"""The classical floor on pictures whose entities colour alone tells."""

from __future__ import annotations

import numpy as np
import pytest

from sohes.baselines.registry import make_baseline
from sohes.baselines.settings import FelzenszwalbSettings, SlicMergeSettings
from sohes.data.images import ImageArray
from sohes.errors import ConfigError
from sohes.masks import pairwise_iou
from sohes.rle import BoolArray, encode_masks

CLASSICAL = {
    "felzenszwalb": FelzenszwalbSettings(scales=(50.0, 200.0), sigma=0.4),
    "slic_merge": SlicMergeSettings(superpixels=60),
}


@pytest.fixture
def scene() -> tuple[ImageArray, BoolArray]:
    """A green square on blue ground with a red square inside, a little noisy; and the two squares."""
    squares = np.zeros((2, 64, 96), dtype=bool)
    squares[0, 8:56, 16:64] = True
    squares[1, 20:40, 28:48] = True
    image = np.full((64, 96, 3), (20, 40, 160), dtype=np.int64)
    image[squares[0]] = (40, 170, 60)
    image[squares[1]] = (190, 40, 40)
    noise = np.random.default_rng(0).integers(-3, 4, image.shape)
    return (image + noise).astype(np.uint8), squares


@pytest.mark.parametrize("name", CLASSICAL)
def test_finds_what_differs_in_colour(name: str, scene: tuple[ImageArray, BoolArray]) -> None:
    image, (outer, inner) = scene
    forest = make_baseline(name, CLASSICAL[name]).predict(image)
    ring = outer & ~inner  # neighbours of different colour are never one region below the last merges
    found = pairwise_iou(encode_masks(np.stack([inner, ring])), forest.rles)
    assert (found.max(axis=1) > 0.8).all()
    assert (np.diff(forest.scores) <= 0).all()
    assert forest.scores.min() >= 0
    assert forest.scores.max() <= 1
    assert found[0].argmax() < 6  # it stands out


@pytest.mark.parametrize("name", CLASSICAL)
def test_repeats_itself(name: str, scene: tuple[ImageArray, BoolArray]) -> None:
    first, second = (make_baseline(name, CLASSICAL[name]).predict(scene[0]) for _ in range(2))
    assert first.rles == second.rles
    assert np.array_equal(first.scores, second.scores)


@pytest.mark.parametrize("name", CLASSICAL)
@pytest.mark.parametrize("size_hw", [(1, 1), (1, 9), (30, 40)])
def test_plain_images(name: str, size_hw: tuple[int, int]) -> None:
    forest = make_baseline(name).predict(np.full((*size_hw, 3), 128, dtype=np.uint8))
    assert forest.size_hw == size_hw
    assert not (forest.areas == size_hw[0] * size_hw[1]).any()


def test_slic_merge_is_a_tree(scene: tuple[ImageArray, BoolArray]) -> None:
    """Regions of a merge tree are nested or disjoint, and the leaves cover the image."""
    forest = make_baseline("slic_merge", CLASSICAL["slic_merge"]).predict(scene[0])
    masks = forest.masks.reshape(len(forest), -1).astype(np.int64)
    overlap, areas = masks @ masks.T, masks.sum(axis=1)
    smaller = np.minimum(areas[:, None], areas[None])
    assert ((overlap == 0) | (overlap == smaller)).all()
    assert masks.any(axis=0).all()


def test_slic_merge_joins_by_wards_cost(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three flat stripes of given superpixels: the cost of a union decides, not the distance of the colours alone."""
    from sohes.baselines import classical

    labels = np.zeros((10, 40), dtype=np.int64)
    labels[:, 1:20], labels[:, 20:] = 1, 2
    image = np.zeros((10, 40, 3), dtype=np.uint8)
    image[:, 1:20], image[:, 20:] = 40, 70
    # grey levels 0, 40, 70 have L* 0, 15.9, 29.7; pixels 10, 190, 200:
    # first and second sqrt(10*190/200) * 15.9 = 49, second and third sqrt(190*200/390) * 13.9 = 137
    monkeypatch.setattr(classical, "slic", lambda *given, **settings: labels)
    forest = make_baseline("slic_merge").predict(image)
    assert sorted(forest.areas.tolist()) == [10, 190, 200, 200]
    joined = labels <= 1
    assert any(np.array_equal(mask, joined) for mask in forest.masks)
    assert not any(np.array_equal(mask, labels >= 1) for mask in forest.masks)


def test_settings_are_checked() -> None:
    with pytest.raises(ConfigError, match="scales must be non-empty list of float above 0"):
        FelzenszwalbSettings(scales=())
    with pytest.raises(ConfigError, match="superpixels must be int of at least 1"):
        SlicMergeSettings(superpixels=0)
