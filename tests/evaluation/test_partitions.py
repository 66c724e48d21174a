"""Forests as partitions: painted by hand, and by brute force where masks overlap in any way."""

from __future__ import annotations

import numpy as np
import pytest

from sohes.evaluation.partitions import MASK_COUNTS, partitions
from sohes.masks import MaskForest


def masks(*pictures: str) -> np.ndarray:
    """Masks written as rows of # and dots, "##. #.." for two rows."""
    return np.array([[[pixel == "#" for pixel in row] for row in picture.split()] for picture in pictures])


def same(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether two label maps are one partition."""
    pairs = set(zip(one.ravel().tolist(), other.ravel().tolist(), strict=True))
    return len(pairs) == len({a for a, _ in pairs}) == len({b for _, b in pairs})


def test_masks_come_by_score_and_are_painted_from_large_to_small() -> None:
    forest = MaskForest.from_masks(masks("#... #...", "###. ###.", ".#.. ...."), scores=np.array([0.5, 0.7, 0.6]))
    found = partitions(forest, (0, 1, 2, 3))
    assert [found.label_map(level).tolist() for level in range(4)] == [
        [[0, 0, 0, 0], [0, 0, 0, 0]],  # no mask: one region
        [[1, 1, 1, 0], [1, 1, 1, 0]],  # the large one, and what is left
        [[1, 2, 1, 0], [1, 1, 1, 0]],
        [[3, 2, 1, 0], [3, 1, 1, 0]],  # the best by score stays, whatever its place in the file
    ]
    assert found.atoms.max() == 3


def test_the_order_of_cuts_stands_above_scores() -> None:
    drawn, cut = masks("##..", "..##", ".#.."), np.array([3, 2, 5], np.float32)
    told = MaskForest.from_masks(drawn, scores=np.array([0.9, 0.8, 0.1]), attributes={"cut": cut})
    found, expected = partitions(told), partitions(MaskForest.from_masks(drawn, scores=cut))
    assert np.array_equal(found.atoms, expected.atoms)
    assert np.array_equal(found.regions, expected.regions)
    assert found.label_map(1).tolist() == [[0, 1, 0, 0]]


def test_of_equal_masks_the_best_is_on_top() -> None:
    forest = MaskForest.from_masks(masks("##.", ".##"), scores=np.array([0.2, 0.9]))
    assert partitions(forest, (2,)).label_map(0).tolist() == [[1, 0, 0]]
    forest = MaskForest.from_masks(masks("##.", ".##"), scores=np.array([0.5, 0.5]))
    assert partitions(forest, (2,)).label_map(0).tolist() == [[0, 0, 1]]


def test_levels_go_up_to_a_thousand_masks() -> None:
    assert MASK_COUNTS[:5] == (0, 1, 2, 3, 4)
    assert MASK_COUNTS[-1] == 1000
    assert (np.diff(MASK_COUNTS) > 0).all()


@pytest.mark.parametrize("count", [0, 1, 40])
def test_brute_force(count: int) -> None:
    rng = np.random.default_rng(count)
    drawn = np.zeros((count, 17, 23), bool)
    for mask in drawn:
        top, left = rng.integers(0, 12, 2)
        mask[top : top + rng.integers(1, 12), left : left + rng.integers(1, 14)] = True
        mask &= rng.random(mask.shape) < 0.9
    scores = rng.integers(0, 9, count) / 8  # ties
    forest = MaskForest.from_rles([], (17, 23)) if count == 0 else MaskForest.from_masks(drawn, scores=scores)
    found = partitions(forest)
    order = sorted(range(count), key=lambda mask: -scores[mask])
    for level, taken in enumerate(MASK_COUNTS):
        expected = np.full((17, 23), -1)
        best_last = sorted(order[:taken][::-1], key=lambda mask: -drawn[mask].sum())
        for mask in best_last:
            expected[drawn[mask]] = mask
        assert same(found.label_map(level), expected)
        assert set(found.regions[level]) == set(range(len(np.unique(expected))))


def test_an_atom_is_what_the_same_masks_have() -> None:
    rng = np.random.default_rng(0)
    drawn = rng.random((6, 9, 11)) < 0.5
    found = partitions(MaskForest.from_masks(drawn))
    assert same(found.atoms, np.tensordot(1 << np.arange(6), drawn, axes=1))


def test_a_tree_whose_last_merges_come_first_is_cut_by_its_number_of_regions() -> None:
    rng = np.random.default_rng(0)
    pieces = [labels == name for labels in [rng.integers(0, 8, (6, 9))] for name in range(8)]
    alive, drawn, merged_by = list(range(8)), [*pieces], {}
    cuts = [pieces]  # the partition after each merge
    for merge in range(7):
        pair = [alive.pop(rng.integers(len(alive))) for _ in range(2)]
        merged_by |= dict.fromkeys(pair, merge)
        alive.append(len(drawn))
        drawn.append(drawn[pair[0]] | drawn[pair[1]])
        cuts.append([drawn[region] for region in alive])
    scores = np.array([merged_by.get(region, 7) for region in range(len(drawn))])
    found = partitions(MaskForest.from_masks(np.array(drawn), scores=scores), tuple(range(1, 16, 2)))
    for level, cut in enumerate(reversed(cuts)):  # the root, then both children of each merge
        assert same(found.label_map(level), sum(index * region for index, region in enumerate(cut)))
