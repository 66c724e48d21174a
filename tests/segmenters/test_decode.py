"""Relations become forests: exactly where they are consistent, somehow but always where they are not."""

from __future__ import annotations

import numpy as np
import pytest

from sohes.masks import MaskForest
from sohes.rle import encode_masks
from sohes.segmenters.decode import decode_parents, relations, select_forest


def random_tree(rng: np.random.Generator, count: int) -> np.ndarray:
    """Parents of a random forest; a parent may come after its child."""
    names = rng.permutation(count)
    parent = np.full(count, -1)
    for place in range(1, count):
        if rng.random() > 0.25:
            parent[names[place]] = names[rng.integers(place)]
    return parent


def ancestor_matrix(parent: np.ndarray) -> np.ndarray:
    ancestor = np.zeros((len(parent), len(parent)), dtype=bool)
    for child in range(len(parent)):
        above = parent[child]
        while above >= 0:
            ancestor[above, child] = True
            above = parent[above]
    return ancestor


def consistent_areas(parent: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Areas that fall from parent to child, otherwise arbitrary."""
    ancestor = ancestor_matrix(parent)
    return (1000 - 20 * ancestor.sum(0) + rng.integers(0, 20, len(parent))).astype(np.int64)


@pytest.mark.parametrize("seed", range(300))
def test_consistent_relations_give_their_tree_back(seed: int) -> None:
    rng = np.random.default_rng(seed)
    parent = random_tree(rng, int(rng.integers(1, 25)))
    ancestor, areas = ancestor_matrix(parent), consistent_areas(parent, rng)
    noise = rng.random(ancestor.shape)
    probability = np.where(ancestor, 0.51 + 0.49 * noise, 0.49 * noise)
    relation = relations(probability, areas)
    assert np.array_equal(relation, ancestor)
    assert np.array_equal(decode_parents(relation, areas, probability), parent)


@pytest.mark.parametrize("seed", range(50))
def test_any_probabilities_give_a_forest(seed: int) -> None:
    rng = np.random.default_rng(seed)
    count = int(rng.integers(0, 40))
    probability, areas = rng.random((count, count)), rng.integers(1, 30, count)
    relation = relations(probability, areas)
    parent = decode_parents(relation, areas, probability)
    for child in range(count):
        if parent[child] < 0:
            assert not relation[:, child].any()
        else:
            assert relation[parent[child], child]
            assert areas[parent[child]] > areas[child]  # so there is no cycle


def test_relation_needs_threshold_direction_and_area() -> None:
    probability = np.array([[0.9, 0.9, 0.4], [0.95, 0.9, 0.9], [0.1, 0.9, 0.9]])
    areas = np.array([30, 20, 20])
    # 0 over 1: 1 over 0 is likelier; 0 over 2: below the threshold; 1 over 2 and 2 over 1: neither is larger
    assert not relations(probability, areas).any()
    probability[1, 0] = 0.8
    assert np.argwhere(relations(probability, areas)).tolist() == [[0, 1]]
    assert np.argwhere(relations(probability, areas, 0.3)).tolist() == [[0, 1], [0, 2]]


def test_ties_go_to_the_smaller_area_then_to_the_likelier() -> None:
    relation = np.zeros((4, 4), dtype=bool)
    relation[:3, 3] = True  # three ancestors, none above another
    probability = np.full((4, 4), 0.6)
    assert decode_parents(relation, np.array([9, 7, 8, 1]), probability)[3] == 1
    probability[2, 3] = 0.7
    assert decode_parents(relation, np.array([9, 7, 7, 1]), probability)[3] == 2


def nested(scores: list[float], *, size: int = 20) -> MaskForest:
    """Squares, each inside the one before; every larger one is an ancestor."""
    count = len(scores)
    masks = np.zeros((count, size, size), dtype=bool)
    for place in range(count):
        masks[place, : size - 4 * place, : size - 4 * place] = True
    return MaskForest(
        size_hw=(size, size),
        rles=encode_masks(masks),
        scores=np.asarray(scores, np.float32),
        ancestor=np.triu(np.ones((count, count), dtype=bool), 1),
        parent=np.arange(count) - 1,
    )


def test_selection_drops_what_is_unsure_and_closes_the_gap() -> None:
    chosen = select_forest(nested([0.6, 0.2, 0.9, 0.5]))
    assert chosen.scores.tolist() == pytest.approx([0.9, 0.6])  # best first; 0.5 is not above 0.5
    assert chosen.parent.tolist() == [1, -1]


def test_selection_drops_duplicates() -> None:
    masks = np.zeros((3, 20, 20), dtype=bool)
    masks[0, :10, :10] = True
    masks[1, :10, :10] = True
    masks[1, 0, 0] = False
    masks[2, :10, :8] = True  # IoU 0.8 with the first, which is gone, and 0.79 with the second
    forest = MaskForest.from_masks(masks, scores=np.array([0.7, 0.8, 0.6]))
    assert select_forest(forest).scores.tolist() == pytest.approx([0.8, 0.6])
    assert select_forest(forest, nms_iou=0.75).scores.tolist() == pytest.approx([0.8])


def test_parent_among_the_chosen_when_the_decoded_one_is_dropped() -> None:
    """Mask 2 hangs on the unsure mask 1, which hangs on nothing, but 0 is above 2 as well."""
    forest = nested([0.9, 0.1, 0.8])
    relation = np.zeros((3, 3), dtype=bool)
    relation[0, 2] = relation[1, 2] = True
    forest = MaskForest(forest.size_hw, forest.rles, forest.scores, relation, np.array([-1, -1, 1]))
    assert select_forest(forest).parent.tolist() == [-1, 0]


def test_nothing_to_select() -> None:
    assert len(select_forest(nested([0.1, 0.2]))) == 0
    assert len(select_forest(nested([]))) == 0
