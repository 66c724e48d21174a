"""Hierarchy metrics on scenes small enough to count by hand."""

import json
import math

import numpy as np
import pytest

from sohes.errors import ConfigError, DataError
from sohes.evaluation.hierarchy import evaluate_hierarchy
from sohes.evaluation.protocols import PROTOCOLS, get_protocol
from sohes.masks import MaskForest
from sohes.rle import encode_masks
from tests.evaluation.truth import image_set

SIZE = (40, 60)


def box(top, left, height, width):
    mask = np.zeros(SIZE, bool)
    mask[top : top + height, left : left + width] = True
    return mask


# a whole with two parts, one of which has a subpart; and a second whole beside it
WHOLE, PART_A, PART_B, SUB, OTHER = (
    box(0, 0, 20, 40),
    box(0, 0, 20, 18),
    box(0, 20, 20, 18),
    box(2, 2, 8, 8),
    box(25, 0, 10, 30),
)


def document(**changes):
    masks = [WHOLE, PART_A, PART_B, SUB, OTHER]
    parents = [0, 1, 1, 2, 0]
    annotations = [
        {"id": index + 1, "image_id": 1, "category_id": 1, "segmentation": rle, "parent_id": parent}
        for index, (rle, parent) in enumerate(zip(encode_masks(np.stack(masks)), parents, strict=True))
    ]
    for index, fields in changes.items():
        annotations[int(index[1:]) - 1] |= fields
    images = [{"id": 1, "file_name": "x", "height": SIZE[0], "width": SIZE[1]}]
    return {"images": images, "annotations": annotations, "categories": []}


def ground_truth(**changes):
    return image_set(document(**changes))


def forest(masks, relations, parent):
    """`relations`: (ancestor, part) pairs."""
    ancestor = np.zeros((len(masks), len(masks)), bool)
    for above, below in relations:
        ancestor[above, below] = True
    return MaskForest(
        size_hw=SIZE,
        rles=encode_masks(np.stack(masks)),
        scores=np.linspace(1, 0.1, len(masks)).astype(np.float32),
        ancestor=ancestor,
        parent=np.asarray(parent, np.int64),
    )


def test_golden_counts():
    # Annotated ancestor pairs: W>A, W>B, W>S, A>S: 4.
    # Predicted, in the order W, A, B, S, O: W>A, W>S (not W>B, not A>S), and wrongly O>B.
    predicted = forest([WHOLE, PART_A, PART_B, SUB, OTHER], [(0, 1), (0, 3), (4, 2)], [-1, 0, 4, 0, -1])
    scores = evaluate_hierarchy(ground_truth(), {1: predicted})
    assert scores.n_matched == 5
    assert scores.relation_precision == pytest.approx(2 / 3)
    assert scores.relation_recall == pytest.approx(2 / 4)
    assert scores.relation_f1 == pytest.approx(4 / 7)
    # parents: A right (W); B wrong (O, should be W); S wrong (W, should be A)
    assert scores.parent_accuracy == pytest.approx(1 / 3)
    # nesting in this scene is exact, so the coverage rule finds the annotated relation
    assert scores.coverage_relation_f1 == 1.0
    assert scores.coverage_parent_accuracy == 1.0
    # depths 0, 1, 1, 1, 0
    assert scores.mean_depth == pytest.approx(3 / 5)
    assert scores.depth_share == pytest.approx((2 / 5, 3 / 5))


def test_masks_without_partner_neither_help_nor_hurt():
    # the part between whole and subpart is predicted, but shifted so far that it has no partner; an extra mask is noise
    shifted = box(0, 0, 20, 38)  # IoU with PART_A 18/38 < 0.5; with WHOLE 0.95, where WHOLE itself is the better match
    predicted = forest([WHOLE, shifted, SUB, box(30, 40, 5, 5)], [(0, 1), (0, 2), (1, 2), (0, 3)], [-1, 0, 1, 0])
    scores = evaluate_hierarchy(ground_truth(), {1: predicted})
    assert scores.n_matched == 2  # W and S; the only annotated pair among them is W>S
    assert (scores.relation_precision, scores.relation_recall, scores.relation_f1) == (1.0, 1.0, 1.0)
    assert scores.parent_accuracy == 1.0  # S's nearest matched ancestor is W on both sides


def test_coverage_rule_needs_ninety_percent():
    # the predicted part sticks out of the predicted whole by 20 %: no relation by the rule, yet the head knows it
    part = box(4, 26, 10, 10)
    annotations = document()
    annotations["annotations"] = annotations["annotations"][:3]
    whole = box(0, 0, 20, 34)  # 8 of 10 columns of `part` lie inside
    annotations["annotations"][2]["segmentation"] = encode_masks(part[None])[0]
    scores = evaluate_hierarchy(image_set(annotations), {1: forest([whole, part], [(0, 1)], [-1, 0])})
    assert scores.n_matched == 2
    assert scores.relation_f1 == 1.0
    assert scores.coverage_relation_f1 == 0.0
    assert scores.coverage_parent_accuracy == 0.0


def test_matching_is_one_to_one_with_largest_total_overlap():
    # P0 fits A best but also B; P1 fits only A. Taking the best pair first would leave P1 and B alone.
    first, second = box(0, 0, 10, 20), box(0, 4, 10, 20)
    annotations = {
        "images": [{"id": 1, "file_name": "x", "height": SIZE[0], "width": SIZE[1]}],
        "annotations": [
            {"id": 1 + i, "image_id": 1, "segmentation": rle, "parent_id": i}
            for i, rle in enumerate(encode_masks(np.stack([first, second])))
        ],
    }
    predicted = forest([box(0, 1, 10, 20), box(0, 0, 10, 12)], [], [-1, -1])
    # IoU: P0-A 19/21, P0-B 17/23; P1-A 12/20, P1-B 8/24
    assert evaluate_hierarchy(image_set(annotations), {1: predicted}).n_matched == 2


def test_crowds_do_not_count_and_their_parts_move_up():
    # A is a crowd: S becomes a child of W. Left: W, B, S, O with pairs W>B, W>S
    predicted = forest([WHOLE, PART_B, SUB, OTHER], [(0, 1), (0, 2)], [-1, 0, 0, -1])
    scores = evaluate_hierarchy(ground_truth(_2={"iscrowd": 1}), {1: predicted})
    assert scores.n_matched == 4
    assert scores.relation_f1 == 1.0
    assert scores.parent_accuracy == 1.0
    # a prediction of the crowd itself has no partner
    predicted = forest([WHOLE, PART_A, PART_B, SUB], [(0, 2), (0, 3), (1, 2)], [-1, -1, 0, 0])
    scores = evaluate_hierarchy(ground_truth(_2={"iscrowd": 1}), {1: predicted})
    assert scores.n_matched == 3
    assert scores.relation_f1 == 1.0


def test_nothing_to_judge_is_nan():
    flat = ground_truth(_2={"parent_id": 0}, _3={"parent_id": 0}, _4={"parent_id": 0})
    predicted = forest([box(25, 0, 10, 30)], [], [-1])
    scores = evaluate_hierarchy(flat, {1: predicted})
    assert math.isnan(scores.relation_f1)
    assert math.isnan(scores.parent_accuracy)
    assert all(math.isnan(value) for value, _ in scores.metrics().values())
    empty = evaluate_hierarchy(flat, {})
    assert empty.n_matched == 0
    assert math.isnan(empty.mean_depth)


def test_metrics_are_percent():
    predicted = forest([WHOLE, PART_A, PART_B, SUB, OTHER], [(0, 1), (0, 3), (4, 2)], [-1, 0, 4, 0, -1])
    metrics = evaluate_hierarchy(ground_truth(), {1: predicted}).metrics()
    assert metrics["relation_f1"] == (pytest.approx(400 / 7), "hierarchy_v1")
    assert metrics["coverage_relation_f1"] == (100.0, "hierarchy_v1")


def test_bad_parents_are_refused():
    with pytest.raises(DataError, match=r"another annotation of the same image, .* \(parent_id 77\)"):
        ground_truth(_3={"parent_id": 77})
    with pytest.raises(DataError, match="their own ancestors"):
        ground_truth(_1={"parent_id": 4})
    with pytest.raises(DataError, match="its ids begin with"):
        evaluate_hierarchy(ground_truth(), {5: forest([WHOLE], [], [-1])})


def test_a_file_gives_the_same_as_what_was_read_from_it(tmp_path):
    path = tmp_path / "val.json"
    path.write_text(json.dumps(document()))
    predicted = {1: forest([WHOLE, PART_A, PART_B, SUB, OTHER], [(0, 1), (0, 3), (4, 2)], [-1, 0, 4, 0, -1])}
    assert evaluate_hierarchy(path, predicted) == evaluate_hierarchy(ground_truth(), predicted)


def test_protocols_by_id():
    assert get_protocol("mask_ar1000_v1").id == "mask_ar1000_v1"
    assert all(key == value.id and value.source for key, value in PROTOCOLS.items())
    with pytest.raises(ConfigError, match="did you mean 'hierarchy_v1'"):
        get_protocol("hierarchy_v2")
