"""Windows of masks from their runs, against decoding and indexing."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sohes.masks import encode_masks
from sohes.rle import BoolArray, IntArray, MaskRuns


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


def test_painting_leaves_the_rest_alone() -> None:
    masks = random_masks(np.random.default_rng(1), 5, (6, 7))
    canvas = np.zeros((2, 9, 8), dtype=bool)
    MaskRuns.of_rles(encode_masks(masks), (6, 7)).paint(np.array([4, 1]), canvas)
    assert np.array_equal(canvas[:, :6, :7], masks[[4, 1]])
    assert canvas.sum() == masks[[4, 1]].sum()


def test_falling_rows_are_refused() -> None:
    with pytest.raises(AssertionError, match="rows must not fall"):
        decode_window(encode_masks(np.ones((1, 4, 4), bool)), (4, 4), np.array([2, 1]), np.arange(4))
