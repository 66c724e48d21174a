"""Masks beside region trees, against plain loops over decoded masks."""

from __future__ import annotations

import numpy as np
import pytest

from sohes.explore.region_tree import RegionTree, grow_tree
from sohes.explore.snap import region_iou, region_support, snapped
from sohes.explore.superpixel_graph import edge_strength
from sohes.masks import MaskForest
from sohes.rle import BoolArray, decode_masks, encode_masks
from tests.explore.test_ranking import overlap, trees_of, whole_mask


def random_masks(seed: int, size_hw: tuple[int, int], count: int = 12) -> BoolArray:
    """Boxes, some with holes, one pixel, the whole image, and random pixels."""
    rng = np.random.default_rng(seed)
    masks = np.zeros((count, *size_hw), dtype=bool)
    for mask in masks[:-3]:
        top, left = rng.integers(0, size_hw[0]), rng.integers(0, size_hw[1])
        mask[top : top + rng.integers(1, 12), left : left + rng.integers(1, 15)] = True
        mask &= rng.random(size_hw) > rng.choice([0, 0.2])
    masks[-3, rng.integers(size_hw[0]), rng.integers(size_hw[1])] = True
    masks[-2] = True
    masks[-1] = rng.random(size_hw) > 0.5
    return masks[masks.any(axis=(1, 2))]


@pytest.mark.parametrize("seed", range(4))
def test_iou_with_every_region_by_loops(seed: int) -> None:
    masks = random_masks(seed, (17, 22))
    for tree in trees_of(seed):
        found = region_iou(encode_masks(masks), tree)
        assert found.dtype == np.float32
        regions = [whole_mask(tree, region) for region in range(len(tree))]
        expected = [[overlap(mask, region) for region in regions] for mask in masks]
        np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("max_area", [17 * 22, 40])
def test_most_alike_by_loops(seed: int, max_area: int) -> None:
    """The first of those that are equally alike; masks that touch no region of that area at most are gone."""
    masks, trees = random_masks(seed, (17, 22)), trees_of(seed)
    scores = np.random.default_rng(seed).random(len(masks)).astype(np.float32)
    rles, found = snapped(MaskForest.from_masks(masks, scores=scores), trees, max_area=max_area)
    regions = np.stack([whole_mask(tree, region) for tree in trees for region in range(len(tree))])
    regions = regions[regions.sum(axis=(1, 2)) <= max_area]
    alike = np.array([[overlap(mask, region) for region in regions] for mask in masks])
    touching = alike.max(axis=1) > 0
    assert np.array_equal(decode_masks(rles, (17, 22)), regions[alike.argmax(axis=1)][touching])
    np.testing.assert_allclose(found, (scores * alike.max(axis=1))[touching], rtol=1e-6)
    assert found.dtype == np.float32


def test_regions_stay_as_they_are() -> None:
    for tree in trees_of(1):
        regions = encode_masks(np.stack([whole_mask(tree, region) for region in range(len(tree))]))
        rles, scores = snapped(MaskForest.from_rles(regions, (17, 22)), [tree], max_area=17 * 22)
        assert rles == regions
        assert (scores == 1).all()


@pytest.mark.parametrize("seed", range(3))
def test_support_by_loops(seed: int) -> None:
    trees, masks = trees_of(seed), random_masks(seed, (17, 22))
    scores = np.random.default_rng(seed).random(len(masks)).astype(np.float32)
    found = region_support(MaskForest.from_masks(masks, scores=scores), trees)
    for support, tree in zip(found, trees, strict=True):
        for region in range(len(tree)):
            there = whole_mask(tree, region)
            best = max(score * overlap(mask, there) for mask, score in zip(masks, scores, strict=True))
            assert support[region] == pytest.approx(best, rel=1e-5)


def single(size_hw: tuple[int, int]) -> RegionTree:
    """The tree of an image that is one superpixel."""
    image, labels = np.full((*size_hw, 3), 9, np.uint8), np.zeros(size_hw, np.int32)
    features = np.ones((1, 1, 2), np.float32)
    return grow_tree(image, labels, features, edge_strength(image), edge_weight=0, size_weight=0)


@pytest.mark.parametrize("size_hw", [(1, 1), (4, 6)])
def test_one_superpixel(size_hw: tuple[int, int]) -> None:
    """The image is all that a mask can become; where that is too large, nothing is left."""
    masks = np.zeros((2, *size_hw), dtype=bool)
    masks[0] = True
    masks[1, 0, 0] = True
    area = size_hw[0] * size_hw[1]
    rles, scores = snapped(MaskForest.from_masks(masks), [single(size_hw)], max_area=area)
    assert decode_masks(rles, size_hw).all()
    assert scores.tolist() == pytest.approx([1, 1 / area])
    rles, scores = snapped(MaskForest.from_masks(masks), [single(size_hw)], max_area=0.9 * area)
    assert (rles, scores.tolist()) == ([], [])


def test_no_masks() -> None:
    trees = trees_of(0)
    nothing = MaskForest.from_rles([], (17, 22))
    rles, scores = snapped(nothing, trees, max_area=17 * 22)
    assert (rles, scores.tolist()) == ([], [])
    for support, tree in zip(region_support(nothing, trees), trees, strict=True):
        assert support.tolist() == [0] * len(tree)
