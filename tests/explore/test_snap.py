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
def test_superpixels_that_are_mostly_inside_by_loops(seed: int) -> None:
    masks = random_masks(seed, (17, 22))
    for tree in trees_of(seed):
        expected = []
        for mask in masks:
            union = np.zeros_like(mask)
            for rank in range(len(tree) // 2 + 1):
                superpixel = tree.rank == rank
                if 2 * (mask & superpixel).sum() > superpixel.sum():
                    union |= superpixel
            expected.append(union if union.any() else mask)
        assert np.array_equal(decode_masks(snapped(encode_masks(masks), tree), (17, 22)), expected)


def test_regions_stay_as_they_are() -> None:
    for tree in trees_of(1):
        regions = encode_masks(np.stack([whole_mask(tree, region) for region in range(len(tree))]))
        assert snapped(regions, tree) == regions
        assert (region_iou(regions, tree).diagonal() == 1).all()


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
    """A mask of more than half of it becomes the image; others stay."""
    tree = single(size_hw)
    masks = np.zeros((2, *size_hw), dtype=bool)
    masks[0] = True
    masks[0, 0, 1:] = False
    masks[1, 0, 0] = True
    masks[1] &= size_hw != (1, 1)
    found = decode_masks(snapped(encode_masks(masks), tree), size_hw)
    assert found[0].all()
    assert np.array_equal(found[1], masks[1])


def test_no_masks() -> None:
    trees = trees_of(0)
    assert snapped([], trees[0]) == []
    nothing = MaskForest.from_rles([], (17, 22))
    for support, tree in zip(region_support(nothing, trees), trees, strict=True):
        assert support.tolist() == [0] * len(tree)
