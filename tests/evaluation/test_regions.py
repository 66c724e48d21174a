"""The region benchmark of BSDS500: by hand on 4 x 4 px, and against scikit-learn and scikit-image."""

from __future__ import annotations

import json
from math import log2
from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat
from skimage.metrics import variation_of_information
from sklearn.metrics import rand_score

from sohes.data.coco import ImageSet
from sohes.errors import DataError
from sohes.evaluation.partitions import MASK_COUNTS, partitions
from sohes.evaluation.regions import (
    RegionScorer,
    best_iou,
    evaluate_regions,
    information,
    label_overlaps,
    object_overlaps,
    rand_index,
)
from sohes.masks import MaskForest
from sohes.rle import encode_masks

from .truth import image_set

HALVES = np.array([[1, 1, 2, 2]] * 4)
ROWS = np.array([[1] * 4, [1] * 4, [2] * 4, [2] * 4])
CORNER = np.array([[1, 2, 2, 2], *[[2] * 4] * 3])
QUARTERS = HALVES + 2 * ROWS


def annotators(folder: Path, name: str, *maps: np.ndarray) -> Path:
    """A ground truth file of BSDS500."""
    cells = np.empty((1, len(maps)), dtype=object)
    for index, labels in enumerate(maps):
        cells[0, index] = {"Segmentation": labels.astype(np.uint16), "Boundaries": labels > 1}
    folder.mkdir(exist_ok=True)
    savemat(folder / f"{name}.mat", {"groundTruth": cells})
    return folder


def forest_of(*maps: np.ndarray) -> MaskForest:
    """The segments of label maps, those of the first with the highest scores."""
    masks = [labels == name for labels in maps for name in np.unique(labels)]
    return MaskForest.from_masks(np.array(masks), scores=np.arange(len(masks), 0, -1))


def images(*names: str, objects: dict[str, np.ndarray] | None = None) -> ImageSet:
    """Pictures of 4 x 4 px, whose ids count from 1, and their objects."""
    rows = [
        {"image_id": names.index(name) + 1, "category_id": 1, "segmentation": rle}
        for name, masks in (objects or {}).items()
        for rle in encode_masks(masks)
    ]
    return image_set(
        {
            "images": [
                {"id": index, "file_name": f"{name}.jpg", "height": 4, "width": 4}
                for index, name in enumerate(names, start=1)
            ],
            "annotations": [{"id": index, **row} for index, row in enumerate(rows, start=1)],
        }
    )


def test_one_image_by_hand(tmp_path: Path) -> None:
    folder = annotators(tmp_path, "1", HALVES, CORNER)
    scores = evaluate_regions(images("1"), {1: forest_of(HALVES, QUARTERS)}, folder)
    # Levels: the whole; the left half and the rest; the same; then quarters come, in the end all four.
    whole, halves, quarters = (scores.by_level[MASK_COUNTS.index(count)] for count in (0, 2, 6))
    # Segments: two halves of 8 px, the corner of 1, the rest of 15; together 32.
    # The whole has IoU 8/16, 8/16, 1/16 and 15/16 with them. Halves: 1, 1, 1/8, and 8/15 with the right one.
    # Quarters: 4/8, 4/8, 1/4, 4/15.
    assert whole[0] == pytest.approx((8 / 2 + 8 / 2 + 1 / 16 + 15 * 15 / 16) / 32)
    assert halves[0] == pytest.approx((8 + 8 + 1 / 8 + 15 * 8 / 15) / 32)
    assert quarters[0] == pytest.approx((4 + 4 + 1 / 4 + 15 * 4 / 15) / 32)
    assert scores.covering[2] == pytest.approx((8 + 8 + 1 / 4 + 15 * 15 / 16) / 32)  # each segment its best level
    # Of 120 pairs of pixels the whole joins all; halves part 8 x 8, the corner 1 x 15.
    assert whole[1] == pytest.approx(((120 - 64) / 120 + (120 - 15) / 120) / 2)
    # Halves and corner: of 64 pairs that halves part, the corner joins 64 - 8; of 15 of the corner, halves join 7.
    assert halves[1] == pytest.approx((1 + (120 - 56 - 7) / 120) / 2)
    # Information of the whole is the other's entropy: 1 bit, and that of 1 in 16.
    corner = log2(16) / 16 + 15 / 16 * log2(16 / 15)
    assert whole[2] == pytest.approx((1 + corner) / 2)
    # Halves and corner meet in 1, 7 and 8 px.
    joint = log2(16) / 16 + 7 / 16 * log2(16 / 7) + 1 / 2
    assert halves[2] == pytest.approx((0 + 2 * joint - 1 - corner) / 2)
    # Quarters of halves: one bit more; ODS and OIS of one image are the same.
    assert scores.vi == pytest.approx((min(scores.by_level[:, 2]),) * 2)
    assert scores.pri == pytest.approx((max(scores.by_level[:, 1]),) * 2)


def test_scales_over_images(tmp_path: Path) -> None:
    # the first image is right at two masks, the second at six
    for name, labels in (("1", HALVES), ("2", QUARTERS)):
        folder = annotators(tmp_path, name, labels)
    found = {1: forest_of(HALVES, QUARTERS), 2: forest_of(HALVES, QUARTERS)}
    scores = evaluate_regions(images("1", "2"), found, folder)
    # halves cover quarters by a half, and the reverse
    assert scores.covering == pytest.approx((0.75, 1, 1))
    # of 120 pairs of pixels quarters part 96, halves 64 of these
    assert scores.pri == pytest.approx(((1 + (120 - 32) / 120) / 2, 1))
    assert scores.vi == pytest.approx((0.5, 0))
    metrics = scores.metrics()
    assert metrics["region_covering_ods"] == (pytest.approx(75), "region_covering_v1")
    assert metrics["region_vi_ods"] == (pytest.approx(0.5), "region_vi_v1")
    assert set(metrics) == {
        *(f"region_covering_{scale}" for scale in ("ods", "ois", "best")),
        *(f"region_{name}_{scale}" for name in ("pri", "vi") for scale in ("ods", "ois")),
    }


def test_annotators_weigh_by_area_in_covering_and_alike_otherwise(tmp_path: Path) -> None:
    annotators(tmp_path, "1", HALVES, HALVES, HALVES)
    folder = annotators(tmp_path, "2", QUARTERS)
    scores = evaluate_regions(images("1", "2"), {1: forest_of(HALVES), 2: forest_of(HALVES)}, folder)
    assert scores.covering[0] == pytest.approx((3 * 1 + 1 / 2) / 4)  # pooled over annotators of all images
    assert scores.vi[0] == pytest.approx((0 + 1) / 2)  # the mean of images


@pytest.mark.parametrize("seed", range(5))
def test_libraries(seed: int) -> None:
    rng = np.random.default_rng(seed)
    labels, forest = rng.integers(0, 5, (13, 11)), MaskForest.from_masks(rng.random((9, 13, 11)) < 0.3)
    found = partitions(forest)
    for level in (0, 1, 5, 9):
        ours = found.label_map(level)
        table = label_overlaps(ours, labels)
        assert rand_index(table) == pytest.approx(rand_score(labels.ravel(), ours.ravel()), abs=1e-12)
        assert information(table) == pytest.approx(sum(variation_of_information(labels, ours)), abs=1e-12)


def test_largest_iou_by_brute_force() -> None:
    rng = np.random.default_rng(0)
    regions, segments = rng.integers(0, 7, (12, 9)), rng.random((5, 12, 9)) < 0.4
    expected = [
        max(
            ((regions == region) & segment).sum() / ((regions == region) | segment).sum()
            for region in range(regions.max() + 1)
        )
        for segment in segments
    ]
    table = object_overlaps(regions, encode_masks(segments))
    assert best_iou(table, np.bincount(regions.ravel()), table.sum(axis=0)) == pytest.approx(expected)


def test_scales_are_ordered(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    found = {}
    for index in (1, 2, 3):
        folder = annotators(tmp_path, str(index), *rng.integers(1, 5, (2, 4, 4)))
        found[index] = MaskForest.from_masks(rng.random((12, 4, 4)) < 0.4, scores=rng.random(12))
    scores = evaluate_regions(images("1", "2", "3"), found, folder)
    assert scores.covering[0] < scores.covering[1] < scores.covering[2]
    assert scores.pri[0] <= scores.pri[1]
    assert scores.vi[0] >= scores.vi[1]


def test_no_masks_are_one_region(tmp_path: Path) -> None:
    folder = annotators(tmp_path, "1", HALVES)
    for found in ({}, {1: MaskForest.from_rles([], (4, 4))}):
        scores = evaluate_regions(images("1"), found, folder)
        assert scores.covering == pytest.approx((0.5, 0.5, 0.5))
        assert scores.vi == pytest.approx((1, 1))


def test_objects_that_overlap() -> None:
    objects = np.array([HALVES == 1, CORNER == 1, np.ones((4, 4), bool)])
    scores = evaluate_regions(images("1", "2", objects={"1": objects}), {1: forest_of(HALVES)})
    # Whole or halves, in which the left half, the corner and all have IoU 1/2, 1/16, 1 or 1, 1/8, 1/2; an image
    # without objects decides nothing.
    assert scores.covering == pytest.approx(
        ((8 / 2 + 1 / 16 + 16) / 25, (8 / 2 + 1 / 16 + 16) / 25, (8 + 1 / 8 + 16) / 25)
    )
    assert {protocol for _, protocol in scores.metrics().values()} == {"segment_covering_v1"}
    assert set(scores.metrics()) == {f"segment_covering_{scale}" for scale in ("ods", "ois", "best")}
    json.dumps(scores.metrics(), allow_nan=False)


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    folder = annotators(tmp_path, "1", np.ones((5, 4)))
    with pytest.raises(DataError, match=r"2\.mat: no such file, and 1 more are missing; give the folder"):
        RegionScorer(images("1", "2", "3"), folder)
    with pytest.raises(DataError, match=r"1\.mat: 'Segmentation' is \(5, 4\) px, the image \(4, 4\) px"):
        evaluate_regions(images("1"), {}, folder)
    (tmp_path / "1.mat").write_text("no")
    with pytest.raises(DataError, match=r"1\.mat: not a BSDS500 ground truth"):
        evaluate_regions(images("1"), {}, folder)
