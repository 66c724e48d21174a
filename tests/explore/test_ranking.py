"""The ranked regions of several trees against plain loops over decoded masks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from sohes.data.superpixels.felzenszwalb import felzenszwalb
from sohes.explore.ranking import ranked_forest
from sohes.explore.region_tree import RegionTree, grow_tree
from sohes.explore.superpixel_graph import edge_strength
from sohes.masks import MaskForest
from sohes.rle import BoolArray
from tests.data.superpixels.test_felzenszwalb import few_colours

OPTIONS: dict[str, Any] = {"min_area": 4, "max_area": 300, "max_masks": 1000, "nms_iou": 0.95, "theta_cover": 0.9}


def trees_of(seed: int, scales: tuple[float, ...] = (20, 50, 120)) -> list[RegionTree]:
    """Trees of a picture of 17 x 22 px."""
    image = few_colours(seed, 17, 22)
    features = np.random.default_rng(seed).normal(size=(4, 5, 6)).astype(np.float32)
    edges = edge_strength(image)
    trees = []
    for scale in scales:
        labels = felzenszwalb(image, scale=scale, sigma=0, min_size=3)
        trees.append(grow_tree(image, labels, features, edges, edge_weight=0.05, size_weight=0.1))
    return trees


def whole_mask(tree: RegionTree, region: int) -> BoolArray:
    mask = np.zeros(tree.rank.shape, dtype=bool)
    window, (top, left) = tree.window(region)
    mask[top : top + window.shape[0], left : left + window.shape[1]] = window
    return mask


def overlap(one: BoolArray, other: BoolArray) -> float:
    return float((one & other).sum() / (one | other).sum())


def rank_by_loops(
    trees: list[RegionTree], options: dict[str, Any], support: list[np.ndarray] | None = None
) -> tuple[list[BoolArray], list[float]]:
    """Masks in order, and what ranks each over the median merit plus itself."""
    masks: list[list[BoolArray]] = [
        [
            mask
            for region in range(len(tree))
            if options["min_area"] <= (mask := whole_mask(tree, region)).sum() <= options["max_area"]
        ]
        for tree in trees
    ]
    pool, merits = [], []
    for index, tree in enumerate(trees):
        regions = [r for r in range(len(tree)) if options["min_area"] <= tree.areas[r] <= options["max_area"]]
        for mask, region in zip(masks[index], regions, strict=True):
            others = [
                max((overlap(mask, it) for it in masks[other]), default=0.0)
                for other in range(len(trees))
                if other != index
            ]
            agreement = np.mean(others) if others else 1.0
            compactness = 4 * np.pi * mask.sum() / float(tree.perimeter[region]) ** 2
            contrast = max(float(tree.contrast[region]), 1.0)
            standing = np.sqrt(max(float(tree.persistence[region]), 1e-3) * contrast * mask.sum())
            pool.append(mask)
            merits.append(agreement * compactness * standing)
            if support is not None:
                merits[-1] *= support[index][region] ** 0.5
    left, chosen, ranking = set(range(len(pool))), [], []
    while left and len(chosen) < options["max_masks"]:
        closest = {i: max((overlap(pool[i], pool[j]) for j in chosen), default=0.0) for i in left}
        left = {i for i in left if closest[i] <= options["nms_iou"]}
        if not left:
            break
        best = max(sorted(left), key=lambda i: merits[i] * np.sqrt(1 - closest[i]))
        chosen.append(best)
        ranking.append(merits[best] * np.sqrt(1 - closest[best]))
        left.remove(best)
    median = np.median(merits)
    return [pool[i] for i in chosen], [value / (value + median) for value in ranking]


@pytest.mark.parametrize("changes", [{}, {"nms_iou": 0.6}, {"nms_iou": 1.0}, {"max_masks": 7}, {"min_area": 30}])
@pytest.mark.parametrize("seed", range(3))
def test_order_and_scores_by_loops(seed: int, changes: dict[str, Any]) -> None:
    trees, options = trees_of(seed), OPTIONS | changes
    forest = ranked_forest(trees, **options)
    masks, scores = rank_by_loops(trees, options)
    assert len(masks) > 5
    np.testing.assert_allclose(forest.scores, scores, rtol=1e-5)
    for found, expected in zip(forest.masks, masks, strict=True):
        assert np.array_equal(found, expected)
    assert (np.diff(forest.scores) <= 0).all()


@pytest.mark.parametrize("seed", range(3))
def test_support_by_loops(seed: int) -> None:
    trees, rng = trees_of(seed), np.random.default_rng(seed)
    support = [rng.random(len(tree)) for tree in trees]
    forest = ranked_forest(trees, **OPTIONS, support=support)
    masks, scores = rank_by_loops(trees, OPTIONS, support)
    np.testing.assert_allclose(forest.scores, scores, rtol=1e-5)
    assert np.array_equal(forest.masks, masks)
    assert forest.rles != ranked_forest(trees, **OPTIONS).rles


@pytest.mark.parametrize("seed", range(3))
def test_one_tree_has_nothing_to_agree_with(seed: int) -> None:
    trees = trees_of(seed, (50,))
    forest = ranked_forest(trees, **OPTIONS)
    masks, scores = rank_by_loops(trees, OPTIONS)
    np.testing.assert_allclose(forest.scores, scores, rtol=1e-5)
    assert np.array_equal(forest.masks, masks)


@pytest.mark.parametrize("theta_cover", [0.75, 0.9, 1.0])
@pytest.mark.parametrize("seed", range(3))
def test_relations_are_those_of_the_masks(seed: int, theta_cover: float) -> None:
    forest = ranked_forest(trees_of(seed), **OPTIONS | {"theta_cover": theta_cover})
    expected = MaskForest.from_rles(forest.rles, forest.size_hw, scores=forest.scores, theta_cover=theta_cover)
    assert np.array_equal(forest.ancestor, expected.ancestor)
    assert np.array_equal(forest.parent, expected.parent)
    assert forest.ancestor.any()


@pytest.mark.parametrize("seed", range(3))
def test_order_of_cuts_by_loops(seed: int) -> None:
    trees = trees_of(seed)
    everything = OPTIONS | {"min_area": 0, "max_area": 17 * 22, "nms_iou": 1.0}
    forest = ranked_forest(trees, **everything)
    assert len(forest) == sum(len(tree) for tree in trees)
    pools = [[whole_mask(tree, region) for region in range(len(tree))] for tree in trees]
    expected = []
    for own, tree in enumerate(trees):
        for region, parent in enumerate(tree.parent):
            # those made before the parent and merged in it or later; the last one stands alone
            there = (np.arange(len(tree)) < parent) & ((tree.parent >= parent) | (tree.parent < 0))
            others = [max(overlap(pools[own][region], it) for it in pools[i]) for i in range(len(trees)) if i != own]
            expected.append(np.mean(others) ** 2 * max(float(tree.contrast[region]), 1.0) / max(there.sum(), 1))
    np.testing.assert_allclose(np.sort(forest.attributes["cut"]), np.sort(expected), rtol=1e-5)
    of_masks: dict[bytes, set[np.float32]] = {mask.tobytes(): set() for pool in pools for mask in pool}
    for mask, value in zip((mask for pool in pools for mask in pool), expected, strict=True):
        of_masks[mask.tobytes()].add(np.float32(value))
    for mask, value in zip(forest.masks, forest.attributes["cut"], strict=True):
        assert min(abs(value / it - 1) for it in of_masks[mask.tobytes()]) < 1e-5


def test_what_several_trees_hold_comes_first() -> None:
    """Two squares alike in everything; one is a region of both trees, of the other the second tree has a half only."""
    image = np.full((20, 50, 3), 60, np.uint8)
    squares = np.zeros((2, *image.shape[:2]), dtype=bool)
    squares[0, 5:15, 5:15] = squares[1, 5:15, 35:45] = True
    image[squares.any(axis=0)] = 200
    features = np.zeros((20, 50, 2), np.float32)
    features[..., 0] = np.where(squares.any(axis=0), 1, -1)
    both = squares[0] + 2 * squares[1].astype(np.int32)
    half = both.copy()
    half[5:10, 35:45] = 0
    options = OPTIONS | {"max_area": 150}
    for labels in ((both, half), (half, both)):
        trees = [
            grow_tree(image, each, features, edge_strength(image), edge_weight=0, size_weight=0) for each in labels
        ]
        assert np.array_equal(ranked_forest(trees, **options).masks[0], squares[0])


def test_nothing_of_the_size_asked_for() -> None:
    forest = ranked_forest(trees_of(0), **OPTIONS | {"min_area": 10**6, "max_area": 10**7})
    assert (len(forest), forest.size_hw) == (0, (17, 22))
    assert forest.attributes["cohesion"].dtype == forest.attributes["cut"].dtype == np.float32
