"""Targets: which labels of a view stay, against products of all masks; the area bound of the curriculum."""

from __future__ import annotations

import numpy as np
import pytest

from sohes.instruct.settings import SampleSettings
from sohes.instruct.targets import area_bound_px, surviving_targets
from sohes.rle import BoolArray, IntArray, MaskRuns, encode_masks
from tests.instruct.boxes import boxes

SETTINGS = SampleSettings(crop_px=48, min_area_px=4)


def surviving(masks: BoolArray, before: np.ndarray, ancestor: BoolArray, settings: SampleSettings) -> IntArray:
    runs = MaskRuns.of_rles(encode_masks(masks), (masks.shape[1], masks.shape[2]))
    return surviving_targets(runs, before, ancestor, settings)


def chain(count: int) -> np.ndarray:
    return np.triu(np.ones((count, count), dtype=bool), 1)


def test_small_and_cut_targets_go() -> None:
    masks = boxes((0, 0, 10, 10), (0, 0, 5, 5), (0, 0, 3, 3))
    settings = SampleSettings(min_area_px=10, min_area_left=0.25)
    before = np.array([100.0, 101.0, 9.0])  # the second has lost just more than three quarters, the third is small
    assert surviving(masks, before, np.zeros((3, 3), bool), settings).tolist() == [0]
    before[1] = 100.0  # exactly a quarter is left
    assert surviving(masks, before, np.zeros((3, 3), bool), settings).tolist() == [0, 1]


@pytest.mark.parametrize("seed", range(20))
def test_survivors_by_products_of_all_masks(seed: int) -> None:
    """Crowded masks with near twins: every pair in full."""
    rng = np.random.default_rng(seed)
    masks = np.repeat(rng.random((6, 12, 12)) < 0.7, 4, axis=0)
    masks ^= rng.random(masks.shape) < rng.choice([0, 0.02, 0.05], (24, 1, 1))
    before, ancestor = masks.sum((1, 2)) * rng.uniform(1, 2, 24), chain(24) & (rng.random((24, 24)) < 0.5)
    settings = SampleSettings(min_area_px=95, min_area_left=0.6, same_iou=0.9)
    common = np.array([[(a & b).sum() for b in masks] for a in masks])
    union = np.array([[(a | b).sum() for b in masks] for a in masks])
    stays = (masks.sum((1, 2)) >= 95) & (masks.sum((1, 2)) >= 0.6 * before)
    gone = [any(ancestor[i, j] and stays[j] and common[i, j] > 0.9 * union[i, j] for j in range(24)) for i in range(24)]
    assert 0 < np.sum(stays & gone) < np.sum(stays)
    assert surviving(masks, before, ancestor, settings).tolist() == np.flatnonzero(stays & ~np.array(gone)).tolist()


def test_whole_that_became_its_part_goes() -> None:
    masks = boxes((0, 0, 10, 10), (0, 0, 10, 10), (0, 0, 5, 5))
    masks[1, 0, :4] = False  # IoU 0.96 with the first
    areas = masks.sum((1, 2)).astype(float)
    assert surviving(masks, areas, chain(3), SETTINGS).tolist() == [1, 2]
    assert surviving(masks, areas, np.zeros((3, 3), bool), SETTINGS).tolist() == [0, 1, 2]  # no kin: both stay
    masks[1, 0, 4] = False  # IoU 0.95 is not above 0.95
    assert surviving(masks, masks.sum((1, 2)).astype(float), chain(3), SETTINGS).tolist() == [0, 1, 2]


def test_whole_stays_when_its_twin_is_no_target() -> None:
    masks = boxes((0, 0, 10, 10), (0, 0, 10, 10))
    before = np.array([100.0, 5000.0])  # of the part too little is left
    assert surviving(masks, before, chain(2), SETTINGS).tolist() == [0]


def test_the_area_bound_falls_by_the_same_factor_in_the_same_time() -> None:
    """Of a canvas of 512 px a 16th is 16,384 px, 2^14; to 2^6 it takes 8 halvings."""
    settings = SampleSettings(crop_px=512, min_area_px=64, curriculum=0.8)
    bounds = [area_bound_px(halvings / 10, settings) for halvings in range(11)]
    assert bounds == [16384, 8192, 4096, 2048, 1024, 512, 256, 128, 64, 64, 64]
    assert area_bound_px(0.0, SampleSettings(crop_px=512, min_area_px=64)) == 64  # no curriculum
    assert area_bound_px(0.0, SampleSettings(crop_px=32, min_area_px=100, curriculum=1.0)) == 100  # above a 16th
    assert area_bound_px(1.0, SampleSettings(crop_px=512, min_area_px=0, curriculum=1.0)) == 0
