"""Run lengths against plain NumPy and pycocotools: formats, checks, intersections, windows."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from sohes.errors import DataError
from sohes.rle import (
    BoolArray,
    IntArray,
    MaskRuns,
    check_rle,
    compressed,
    decode_masks,
    encode_label_map,
    encode_masks,
    encode_window,
    pairwise_intersections,
    rle_areas,
    rle_boxes_xywh,
    union,
)

SIZE = (30, 40)


@pytest.mark.parametrize("count", [0, 1, 7])
def test_rle_there_and_back_through_json(count: int) -> None:
    masks = np.random.default_rng(count).random((count, *SIZE)) < 0.5
    rles = json.loads(json.dumps(encode_masks(masks)))
    assert np.array_equal(decode_masks(rles, SIZE), masks)
    assert decode_masks(rles, SIZE).dtype == bool
    assert rle_areas(rles).tolist() == masks.sum((1, 2)).tolist()


def test_empty_and_full_masks() -> None:
    masks = np.stack([np.zeros(SIZE, dtype=bool), np.ones(SIZE, dtype=bool)])
    rles = encode_masks(masks)
    assert np.array_equal(decode_masks(rles, SIZE), masks)
    assert rle_areas(rles).tolist() == [0, 1200]


@settings(max_examples=200, deadline=None)
@given(seed=st.integers(0, 10**6), density=st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0]))
def test_a_mask_encoded_from_its_window_is_that_of_pycocotools(seed: int, density: float) -> None:
    rng = np.random.default_rng(seed)
    size = rng.integers(1, 10, 2)
    height, width = rng.integers(1, size + 1)
    top, left = rng.integers(0, size - (height, width) + 1)
    window = rng.random((height, width)) < density
    mask = np.zeros(size, np.uint8)
    mask[top : top + height, left : left + width] = window
    expected = coco_mask.encode(np.asfortranarray(mask))["counts"].decode()
    rle = encode_window(window, (int(top), int(left)), (int(size[0]), int(size[1])))
    assert rle == {"size": size.tolist(), "counts": expected}
    decoded = decode_masks([rle], tuple(size.tolist()))
    assert encode_masks(decoded) == [rle]  # whatever the order in memory


@pytest.mark.parametrize("size_hw", [(1, 1), (1, 7), (9, 1), (23, 31)])
def test_every_region_of_a_label_map(size_hw: tuple[int, int]) -> None:
    labels = np.random.default_rng(0).integers(-2, 4, size_hw)  # scattered pixels, labels with gaps
    expected = [labels == label for label in np.unique(labels)]
    assert np.array_equal(decode_masks(encode_label_map(labels), size_hw), np.stack(expected))


def test_every_rle_of_pycocotools_passes_the_check() -> None:
    rng = np.random.default_rng(0)
    for share in np.linspace(0, 1, 40):
        mask = rng.random((rng.integers(1, 70), rng.integers(1, 70))) < share
        mask[: len(mask) // 3] = share > 0.5  # long runs beside short ones
        rle = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
        counts = rle["counts"].decode()
        check_rle("mask", {"size": list(mask.shape), "counts": counts}, mask.shape)
        with pytest.raises(DataError, match=r"^mask: RLE counts sum to"):
            check_rle("mask", {"size": list(mask.shape), "counts": counts + "1"}, mask.shape)


@pytest.mark.parametrize(
    "counts", ["", "é0", "0" * 3 + "\x7f", "o" * 13, "\ud800", [3, -1, 4], [True, 5], [1.0, 5], [2**31, 1]]
)
def test_damaged_counts_are_refused(counts: str | list[Any]) -> None:
    """Nothing there, foreign letters, a count without end, and lists that hold no counts."""
    with pytest.raises(DataError, match=r"^a\.json: RLE counts cannot be decoded"):
        check_rle("a.json", {"size": [2, 3], "counts": counts}, (2, 3))


@pytest.mark.parametrize(
    ("size", "message"), [([3, 2], r"RLE size \[3, 2\] differs from .* \[2, 3\]"), (None, "RLE size None")]
)
def test_other_sizes_are_refused(size: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        check_rle("a.json", {"size": size, "counts": [6]}, (2, 3))


def test_every_form_of_a_mask_is_compressed_alike() -> None:
    mask = np.zeros(SIZE, dtype=bool)
    mask[2:9, 5:30] = True
    (expected,) = encode_masks(mask[None])
    counts = [5 * 30 + 2, *[7, 23] * 24, 7, 1200 - 5 * 30 - 2 - 24 * 30 - 7]
    polygon = [[5, 2, 30, 2, 30, 9, 5, 9]]
    for form in (expected, {"counts": expected["counts"].encode()}, {"size": [30, 40], "counts": counts}, polygon):
        assert compressed(form, SIZE) == expected


def test_union_and_boxes() -> None:
    masks = np.random.default_rng(0).random((3, *SIZE)) < 0.02
    rles = encode_masks(masks)
    assert union(rles) == encode_masks(masks.any(0)[None])[0]
    rows, columns = (np.flatnonzero(masks[1].any(axis)) for axis in (1, 0))
    box = [columns[0], rows[0], np.ptp(columns) + 1, np.ptp(rows) + 1]
    assert rle_boxes_xywh(rles)[1].tolist() == box
    assert rle_boxes_xywh([]).shape == (0, 4)


def overlaps(masks: BoolArray) -> IntArray:
    return np.array([[np.count_nonzero(a & b) for b in masks] for a in masks]).reshape(len(masks), len(masks))


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), count=st.integers(0, 12))
def test_intersections_by_counting_pixels(seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    size = tuple(rng.integers(1, 12, 2).tolist())
    masks = rng.random((count, *size)) < rng.choice([0, 0.1, 0.5, 0.95, 1], (count, 1, 1))
    masks[1::4] = masks[::4][: len(masks[1::4])]  # twins
    for mask in masks[2::4]:
        mask[...] = False
        mask[rng.integers(size[0]), rng.integers(size[1])] = True  # one pixel
    rles = encode_masks(masks)
    common = pairwise_intersections(rles)
    assert common.dtype == np.int64
    assert np.array_equal(common, overlaps(masks))
    assert np.array_equal(common, pairwise_intersections([{**rle, "counts": rle["counts"].encode()} for rle in rles]))


def test_intersections_in_a_large_image() -> None:
    masks = np.zeros((5, 700, 900), dtype=bool)  # counts of several groups, and differences of both signs
    masks[0] = True
    masks[1, 100:600, 200:800] = True
    masks[2, 300:700, :500] = True
    masks[3, ::2, ::3] = True
    masks[4, -1, -1] = True
    assert np.array_equal(pairwise_intersections(encode_masks(masks)), overlaps(masks))


def test_masks_of_two_images_are_refused() -> None:
    with pytest.raises(AssertionError, match="several images"):
        pairwise_intersections(
            encode_masks(np.ones((1, 3, 4), dtype=bool)) + encode_masks(np.ones((1, 4, 3), dtype=bool))
        )


def decode_window(rles: list[dict], size_hw: tuple[int, int], rows: IntArray, columns: IntArray) -> BoolArray:
    """The window of all masks, painted."""
    masks = np.zeros((len(rles), len(rows), len(columns)), dtype=bool)
    MaskRuns.of_rles(rles, size_hw).window(rows, columns).paint(np.arange(len(rles)), masks)
    return masks


def random_masks(rng: np.random.Generator, count: int, size_hw: tuple[int, int]) -> BoolArray:
    """Noise of all densities, some empty, some full, some of whole columns."""
    masks = rng.random((count, *size_hw)) < rng.choice([0, 0.05, 0.5, 0.95, 1], (count, 1, 1))
    masks[2::3] = rng.random((len(masks[2::3]), 1, size_hw[1])) < 0.6
    return masks


@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 10**6), count=st.integers(0, 7), text=st.booleans())
def test_a_window_is_what_indexing_takes(seed: int, count: int, text: bool) -> None:
    """Rows left out and repeated; columns too, and in any order; both may be outside of what a mask covers."""
    rng = np.random.default_rng(seed)
    size_hw = (int(rng.integers(1, 14)), int(rng.integers(1, 14)))
    masks = random_masks(rng, count, size_hw)
    rows = np.sort(rng.integers(0, size_hw[0], rng.integers(1, 20)))
    columns = rng.integers(0, size_hw[1], rng.integers(1, 20))
    rles = encode_masks(masks)
    if not text:
        rles = [{**rle, "counts": rle["counts"].encode()} for rle in rles]
    expected = masks[:, rows][:, :, columns]
    found = decode_window(rles, size_hw, rows, columns)
    assert found.dtype == bool
    assert np.array_equal(found, expected)
    runs = MaskRuns.of_rles(rles, size_hw).window(rows, columns)
    assert (len(runs), runs.size_hw) == (count, (len(rows), len(columns)))
    assert runs.areas.tolist() == expected.sum((1, 2)).tolist()


@pytest.mark.parametrize("flipped", [False, True])
def test_flipped_crop_of_a_larger_image(flipped: bool) -> None:
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:90, :130]
    centres = rng.uniform(0, 130, (12, 2))
    masks = np.stack([(y - top) ** 2 + 0.5 * (x - left) ** 2 < 30**2 for top, left in centres])
    rows, columns = np.arange(10, 80), np.repeat(np.arange(20, 100), 3)[:: -1 if flipped else 1]
    assert np.array_equal(decode_window(encode_masks(masks), (90, 130), rows, columns), masks[:, rows][:, :, columns])


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_common_pixels(seed: int) -> None:
    rng = np.random.default_rng(seed)
    masks = random_masks(rng, 6, (int(rng.integers(1, 12)), int(rng.integers(1, 12))))
    pairs = rng.integers(0, 6, (10, 2))
    runs = MaskRuns.of_rles(encode_masks(masks), (masks.shape[1], masks.shape[2]))
    assert runs.common(pairs).tolist() == [np.count_nonzero(masks[a] & masks[b]) for a, b in pairs]


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 10**6), count=st.integers(0, 6))
def test_a_region_of_the_masks(seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    size_hw = (int(rng.integers(1, 12)), int(rng.integers(1, 12)))
    masks, region = random_masks(rng, count, size_hw), random_masks(rng, 1, (14, 13))[0]
    runs = MaskRuns.of_rles(encode_masks(masks), size_hw).within(region)
    expected, found = masks & region[: size_hw[0], : size_hw[1]], np.zeros_like(masks)
    runs.paint(np.arange(count), found)
    assert np.array_equal(found, expected)
    assert (runs.areas.tolist(), runs.size_hw) == (expected.sum((1, 2)).tolist(), size_hw)


def test_painting_leaves_the_rest_alone() -> None:
    masks = random_masks(np.random.default_rng(1), 5, (6, 7))
    canvas = np.zeros((2, 9, 8), dtype=bool)
    MaskRuns.of_rles(encode_masks(masks), (6, 7)).paint(np.array([4, 1]), canvas)
    assert np.array_equal(canvas[:, :6, :7], masks[[4, 1]])
    assert canvas.sum() == masks[[4, 1]].sum()


def test_falling_rows_are_refused() -> None:
    with pytest.raises(AssertionError, match="rows must not fall"):
        decode_window(encode_masks(np.ones((1, 4, 4), bool)), (4, 4), np.array([2, 1]), np.arange(4))
