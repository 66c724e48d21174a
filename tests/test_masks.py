"""Mask algebra against plain NumPy, and forests worked by hand."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from sohes.masks import (
    Entity,
    MaskForest,
    coverage_ancestors,
    depths,
    nearest_parents,
    non_maximum_suppression,
    pairwise_coverage,
    pairwise_iou,
)
from sohes.rle import BoolArray, encode_masks

SIZE = (30, 40)


def box(top: int, left: int, height: int, width: int) -> BoolArray:
    mask = np.zeros(SIZE, dtype=bool)
    mask[top : top + height, left : left + width] = True
    return mask


def random_masks(seed: int, count: int, size: tuple[int, int] = SIZE) -> BoolArray:
    """Boxes, many of them nested, and noise."""
    rng = np.random.default_rng(seed)
    masks = np.zeros((count, *size), dtype=bool)
    for mask in masks:
        top, left = rng.integers(0, size[0] - 1), rng.integers(0, size[1] - 1)
        mask[top : rng.integers(top + 1, size[0] + 1), left : rng.integers(left + 1, size[1] + 1)] = True
    masks[::5] &= rng.random(masks[::5].shape) < 0.7
    return masks


def chain(count: int) -> BoolArray:
    """Ancestor matrix of 0 > 1 > 2 > ..."""
    return np.triu(np.ones((count, count), dtype=bool), 1)


def overlaps(masks: BoolArray, others: BoolArray) -> np.ndarray:
    return np.array([[np.count_nonzero(a & b) for b in others] for a in masks], dtype=float)


@pytest.mark.parametrize("count", [1, 25, 320])
def test_iou_and_coverage_by_counting_pixels(count: int) -> None:
    masks = random_masks(count, count)
    areas = masks.sum((1, 2)).astype(float)
    assert areas.min() > 0
    common = overlaps(masks, masks)
    union = areas[:, None] + areas[None, :] - common
    rles = encode_masks(masks)
    np.testing.assert_allclose(pairwise_iou(rles), common / union, atol=1e-12)
    # [i, j]: how much of j lies in i
    np.testing.assert_allclose(pairwise_coverage(rles), common / areas[None, :], atol=1e-12)


def test_iou_is_that_of_pycocotools_to_the_last_bit() -> None:
    rles, others = encode_masks(random_masks(5, 60)), encode_masks(random_masks(6, 20))
    assert np.array_equal(pairwise_iou(rles, others), coco_mask.iou(rles, others, [0] * len(others)))
    assert np.array_equal(pairwise_coverage(rles), coco_mask.iou(rles, rles, [1] * len(rles)).T)


def test_empty_masks_have_nothing_in_common() -> None:
    rles = encode_masks(np.stack([np.zeros(SIZE, dtype=bool), np.zeros(SIZE, dtype=bool), np.ones(SIZE, dtype=bool)]))
    assert pairwise_iou(rles).tolist() == [[0, 0, 0], [0, 0, 0], [0, 0, 1]]
    assert pairwise_coverage(rles).tolist() == [[0, 0, 0], [0, 0, 0], [0, 0, 1]]


def test_iou_with_other_masks() -> None:
    masks, others = random_masks(1, 6), random_masks(2, 4)
    common = overlaps(masks, others)
    union = masks.sum((1, 2))[:, None] + others.sum((1, 2))[None, :] - common
    np.testing.assert_allclose(pairwise_iou(encode_masks(masks), encode_masks(others)), common / union, atol=1e-12)
    assert pairwise_iou([], encode_masks(others)).shape == (0, 4)
    assert pairwise_iou(encode_masks(masks), []).shape == (6, 0)
    assert pairwise_coverage([]).shape == (0, 0)


def test_areas_of_more_than_255_masks() -> None:
    # pycocotools 2.0.11, given a list of more than 255 masks, overflows under NumPy 2
    masks = random_masks(3, 320, (60, 80))
    masks[0] = True  # 4,800 px
    forest = MaskForest.from_masks(masks)
    assert forest.areas.tolist() == masks.sum((1, 2)).tolist()
    rows, columns = masks.any(2), masks.any(1)
    expected = [
        (np.flatnonzero(c)[0], np.flatnonzero(r)[0], np.ptp(np.flatnonzero(c)) + 1, np.ptp(np.flatnonzero(r)) + 1)
        for r, c in zip(rows, columns, strict=True)
    ]
    np.testing.assert_array_equal(forest.boxes_xywh, expected)
    assert np.array_equal(forest.masks, masks)
    assert (forest.parent[1:] >= 0).all()  # the first mask covers the image


def test_suppression_golden() -> None:
    # 0 and 1 overlap by 0.9, 1 and 2 by 0.9, 0 and 2 by 0.5; 3 is alone; exactly at the threshold nothing goes
    iou = np.eye(4)
    iou[0, 1] = iou[1, 0] = iou[1, 2] = iou[2, 1] = 0.9
    iou[0, 2] = iou[2, 0] = 0.5
    assert non_maximum_suppression(iou, [0, 1, 2, 3], 0.8).tolist() == [0, 2, 3]  # 1 is gone and spares 2
    assert non_maximum_suppression(iou, [3, 1, 0, 2], 0.8).tolist() == [3, 1]
    assert non_maximum_suppression(iou, [0, 1, 2, 3], 0.9).tolist() == [0, 1, 2, 3]
    assert non_maximum_suppression(iou, [2, 0], 0.4).tolist() == [2]
    assert non_maximum_suppression(np.zeros((0, 0)), [], 0.5).tolist() == []


def test_coverage_rule() -> None:
    whole, part, twin = box(0, 0, 20, 20), box(0, 0, 10, 10), box(0, 0, 20, 19)
    sticking_out = box(0, 12, 10, 10)  # 8 of its 10 columns lie in the whole
    covered = pairwise_coverage(encode_masks(np.stack([whole, part, twin, sticking_out])))
    expected = np.zeros((4, 4), dtype=bool)
    expected[0, 1] = expected[2, 1] = True  # the twins cover each other by 0.95 and more: neither is part of the other
    assert np.array_equal(coverage_ancestors(covered), expected)
    expected[0, 3] = True
    assert np.array_equal(coverage_ancestors(covered, 0.8), expected)


def test_relation_is_closed_along_a_chain() -> None:
    covered = np.array([[1.0, 0.92, 0.85], [0.3, 1.0, 0.92], [0.1, 0.3, 1.0]])
    ancestor = coverage_ancestors(covered)
    assert ancestor[0, 2]  # although 0 covers only 0.85 of 2
    assert np.array_equal(ancestor, chain(3))


def closure(relation: BoolArray) -> BoolArray:
    """By chains of every length."""
    reach, chains = relation.copy(), relation.astype(int)
    for _ in range(len(relation)):
        chains = np.minimum(chains @ relation.astype(int), 1)
        reach |= chains > 0
    return reach


@pytest.mark.parametrize("count", [9, 40])
def test_relation_is_closed_whatever_the_order(count: int) -> None:
    rng = np.random.default_rng(count)
    order = rng.permutation(count)
    relation = np.triu(rng.random((count, count)) < 2 / count, 1)[np.ix_(order, order)]  # long chains, out of order
    expected = closure(relation)
    assert expected.sum() > relation.sum()
    assert np.array_equal(coverage_ancestors(relation.astype(float)), expected)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), count=st.integers(1, 25), theta=st.sampled_from([0.6, 0.9, 1.0]))
def test_forests_of_random_masks(seed: int, count: int, theta: float) -> None:
    masks = random_masks(seed, count)
    masks = masks[masks.any((1, 2))]
    forest = MaskForest.from_masks(masks, theta_cover=theta)
    covered = pairwise_coverage(forest.rles)
    assert np.array_equal(forest.ancestor, closure((covered >= theta) & (covered < theta).T))
    above, below = np.nonzero(forest.ancestor)
    assert (forest.areas[above] > forest.areas[below]).all()  # hence no cycle
    for index, parent in enumerate(forest.parent):
        ancestors = np.flatnonzero(forest.ancestor[:, index])
        if len(ancestors) == 0:
            assert parent == -1
            assert forest.depth[index] == 0
        else:
            assert parent == min(ancestors, key=lambda i: (forest.areas[i], i))
            assert forest.depth[index] == forest.depth[parent] + 1


def test_parent_is_the_smallest_ancestor() -> None:
    ancestor = np.zeros((4, 4), dtype=bool)
    ancestor[[0, 1, 2], 3] = True
    assert nearest_parents(ancestor, np.array([30, 20, 20, 5])).tolist() == [-1, -1, -1, 1]
    assert nearest_parents(np.zeros((0, 0), dtype=bool), np.zeros(0)).shape == (0,)


def test_depths() -> None:
    assert depths(np.array([-1, 0, 1, 1, -1, 4])).tolist() == [0, 1, 2, 2, 0, 1]
    assert depths(np.array([2, 0, -1])).tolist() == [1, 2, 0]
    assert depths(np.zeros(0, dtype=np.int64)).tolist() == []
    with pytest.raises(AssertionError, match="cycle"):
        depths(np.array([1, 0]))


def forest_of_four() -> MaskForest:
    """0 > 1 > 2 > 3."""
    masks = np.stack([box(0, 0, 20, 30), box(0, 0, 15, 20), box(0, 0, 10, 10), box(0, 0, 4, 4)])
    scores = np.array([0.1, 0.2, 0.3, 0.4])
    return MaskForest.from_masks(masks, scores=scores, attributes={"name": np.array(list("abcd"))})


def test_forest_from_masks() -> None:
    forest = forest_of_four()
    assert np.array_equal(forest.ancestor, chain(4))
    assert forest.parent.tolist() == [-1, 0, 1, 2]
    assert forest.depth.tolist() == [0, 1, 2, 3]
    assert forest.size_hw == SIZE
    assert forest.scores.dtype == np.float32
    assert len(forest) == 4
    assert forest.boxes_xywh[1].tolist() == [0, 0, 20, 15]


def test_selection_gives_a_lost_parent_s_place_to_the_nearest_ancestor_kept() -> None:
    forest = forest_of_four()
    chosen = forest.select([3, 0])
    assert chosen.parent.tolist() == [1, -1]
    assert chosen.ancestor.tolist() == [[False, False], [True, False]]
    assert chosen.attributes["name"].tolist() == ["d", "a"]
    assert chosen.scores.tolist() == pytest.approx([0.4, 0.1])
    assert np.array_equal(chosen.masks, forest.masks[[3, 0]])
    assert forest.select([3, 2, 1]).parent.tolist() == [1, 2, -1]
    assert forest.select([1, 3]).depth.tolist() == [0, 1]
    assert forest.parent.tolist() == [-1, 0, 1, 2]  # untouched


def test_empty_forests() -> None:
    assert len(forest_of_four().select([])) == 0
    empty = MaskForest.from_masks(np.zeros((0, *SIZE), dtype=bool))
    assert empty.size_hw == SIZE
    assert empty.masks.shape == (0, *SIZE)
    assert empty.boxes_xywh.shape == (0, 4)
    assert len(empty.select([])) == 0


def test_columns_must_fit() -> None:
    forest = forest_of_four()
    with pytest.raises(AssertionError):
        MaskForest(SIZE, forest.rles, forest.scores[:3], forest.ancestor, forest.parent)
    with pytest.raises(AssertionError, match="its own ancestor"):
        MaskForest(SIZE, forest.rles, forest.scores, np.eye(4, dtype=bool), forest.parent)


def family() -> MaskForest:
    """A whole of 10 x 20 px, its part with a part of its own, and another whole."""
    masks = np.stack([box(0, 0, 10, 20), box(0, 0, 10, 10), box(2, 2, 3, 4), box(20, 5, 10, 10)])
    columns = {"cohesion": np.array([0.5, np.nan, 0.25, 1], np.float32), "source": np.array(["global"] * 4, object)}
    return MaskForest.from_masks(masks, scores=np.array([0.5, 0.25, 0.75, 1.0]), attributes=columns)


def test_one_line_says_what_a_forest_is() -> None:
    assert repr(family()) == "MaskForest(size_hw=(30, 40), masks=4, roots=2, max_depth=2)"
    assert repr(family().select([])) == "MaskForest(size_hw=(30, 40), masks=0, roots=0, max_depth=0)"


def test_forests_are_equal_when_all_their_values_are() -> None:
    forest = family()
    assert forest == forest
    assert forest == family()
    as_bytes = [rle | {"counts": rle["counts"].encode()} for rle in forest.rles]  # as pycocotools gives them
    assert replace(forest, rles=as_bytes) == forest
    others = [
        replace(forest, size_hw=(40, 30)),
        replace(forest, rles=forest.rles[::-1]),
        replace(forest, scores=np.array([0.5, 0.25, 0.75, 0.9], np.float32)),
        replace(forest, ancestor=np.zeros((4, 4), dtype=bool)),
        replace(forest, parent=np.array([-1, 0, 0, -1])),
        replace(forest, attributes={}),
        replace(forest, attributes=forest.attributes | {"source": np.array(["local"] * 4, object)}),
        replace(forest, attributes=forest.attributes | {"cohesion": np.array([0.5, 0, 0.25, 1], np.float32)}),
        forest.select([0, 1, 2]),
        "a forest",
    ]
    assert not any(forest == other for other in others)
    with pytest.raises(TypeError, match="unhashable"):
        hash(forest)


def test_iterating_gives_every_mask() -> None:
    forest = family()
    entities = list(forest)
    assert entities[2] == Entity(
        index=2, rle=forest.rles[2], score=0.75, area=12, box_xywh=(2.0, 2.0, 4.0, 3.0), parent=1, depth=2
    )
    assert [entity.parent for entity in entities] == [None, 0, 1, None]
    assert all(np.array_equal(entity.mask, mask) for entity, mask in zip(forest, forest.masks, strict=True))
    assert list(forest.select([])) == []


def test_coco_annotations() -> None:
    forest = family()
    rows = json.loads(json.dumps(forest.to_coco(image_id=0, first_id=10)))
    assert [row["id"] for row in rows] == [10, 11, 12, 13]
    assert [row["parent_id"] for row in rows] == [None, 10, 11, None]
    assert [row["score"] for row in rows] == [0.5, 0.25, 0.75, 1.0]
    assert {key: rows[2][key] for key in ("image_id", "category_id", "area", "bbox", "iscrowd")} == {
        "image_id": 0,
        "category_id": 1,
        "area": 12,
        "bbox": [2.0, 2.0, 4.0, 3.0],
        "iscrowd": 0,
    }
    for row, mask in zip(rows, forest.masks, strict=True):
        assert np.array_equal(coco_mask.decode(row["segmentation"]), mask)
    assert [(row["id"], row["image_id"], row["parent_id"]) for row in forest.to_coco()][:2] == [(1, 1, None), (2, 1, 1)]


def test_coco_annotations_keep_what_a_ground_truth_knows() -> None:
    truth = {"category_id": np.array([3, 4, 5, 6]), "iscrowd": np.array([0, 0, 0, 1])}
    rows = replace(family(), attributes=truth).to_coco()
    assert [(row["category_id"], row["iscrowd"]) for row in rows] == [(3, 0), (4, 0), (5, 0), (6, 1)]
    as_bytes = [rle | {"counts": rle["counts"].encode()} for rle in family().rles]
    assert replace(family(), rles=as_bytes).to_coco() == family().to_coco()
