"""Merging against a twin that scans all pairs, and what must hold for any map."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import ndimage

from benchmarks.clustering import dictionary_scan
from sohes.explore.agglomerate import merge_patches

THRESHOLDS = [0.9, 0.6, 0.5, 0.3, 0.1, -0.2]


def random_map(seed: int) -> NDArray[np.float64]:
    """A random map of one of many kinds. Small integers make exact ties, which floats of any kind hardly ever do."""
    rng = np.random.default_rng(seed)
    height, width = [(1, 1), (1, 12), (12, 1), (2, 2), (3, 7), (6, 6), (8, 5), (9, 9)][seed % 8]
    channels = int(rng.choice([1, 2, 3, 16]))
    kind = ["gaussian", "smooth", "ties", "constant", "zeros inside", "positive", "float32"][seed % 7]
    features = rng.normal(size=(height, width, channels))
    if kind == "smooth":
        features = ndimage.gaussian_filter(features, (1.5, 1.5, 0)) * 10
    elif kind == "ties":
        features = rng.integers(-2, 3, features.shape).astype(float)
    elif kind == "constant":
        features = np.ones_like(features) * rng.integers(1, 4, channels)
    elif kind == "zeros inside":
        features = rng.integers(-2, 3, features.shape) * (rng.random((height, width, 1)) < 0.6)
    elif kind == "positive":
        features = np.abs(features)
    elif kind == "float32":
        features = features.astype(np.float32)
    return features


@pytest.mark.parametrize("seed", range(224))
def test_equals_the_twin(seed: int) -> None:
    features = random_map(seed)
    assert np.array_equal(merge_patches(features, THRESHOLDS), dictionary_scan(features, THRESHOLDS))


def test_equals_the_twin_where_the_heap_fills_up() -> None:
    # one region grows around 144 others and sees each of them at every merger: stale entries fill the heap seven times
    features = np.array([1.0, 0.0]) + np.random.default_rng(0).normal(size=(24, 24, 2)) * 0.01
    features[::2, ::2] = [0, 1]
    assert np.array_equal(merge_patches(features, [0.5, -1.0]), dictionary_scan(features, [0.5, -1.0]))


def test_thresholds_beyond_every_cosine() -> None:
    features = random_map(5)
    apart, joined = merge_patches(features, [-1.5, 1.5])
    assert np.array_equal(apart, np.arange(apart.size).reshape(apart.shape))
    assert len(np.unique(joined)) == 1
    assert joined[0, 0] == 2 * joined.size - 2  # the last of size - 1 mergers


def test_order_and_repetition_of_thresholds_do_not_matter() -> None:
    features = random_map(8)
    expected = merge_patches(features, [0.9, 0.5, 0.1])
    assert expected.shape == (3, *features.shape[:2])
    assert expected.dtype == np.int32
    assert np.array_equal(merge_patches(features, [0.1, 0.9, 0.5, 0.9]), expected)
    assert np.array_equal(merge_patches(features, [0.5])[0], expected[1])


def test_the_input_is_left_alone() -> None:
    features = random_map(0)
    before = features.copy()
    merge_patches(features, THRESHOLDS)
    assert np.array_equal(features, before)


def test_golden() -> None:
    # 2 x 2: the upper pair is equal (cosine 1), the lower pair has 0.8; their sums (2, 0) and (1.8, .6) have 0.949
    features = np.array([[[1, 0], [1, 0]], [[1, 0], [0.8, 0.6]]], dtype=float)
    levels = merge_patches(features, [0.99, 0.85, 0.75])
    # patches 0 and 1 merge first (smallest of the ties), as region 4; then 2 joins it as 5 (cosine 1)
    assert levels[0].tolist() == [[5, 5], [5, 3]]
    assert levels[1].tolist() == [[5, 5], [5, 3]]  # 3 has cosine 0.8 with the rest
    assert levels[2].tolist() == [[6, 6], [6, 6]]


@pytest.mark.parametrize("shape", [(4, 4), (0, 4, 3), (4, 4, 0), (1, 2, 3, 4)])
def test_wrong_shapes(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"non-empty \(H, W, C\) array, not one of shape"):
        merge_patches(np.zeros(shape), [0.5])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_not_finite(bad: float) -> None:
    features = np.ones((2, 2, 2))
    features[1, 0, 1] = bad
    with pytest.raises(ValueError, match="NaN or infinite"):
        merge_patches(features, [0.5])


maps = st.builds(
    lambda seed, height, width, channels, top: (
        np.random.default_rng(seed).integers(-top, top + 1, (height, width, channels)).astype(float)
    ),
    st.integers(0, 10**6),
    st.integers(1, 12),
    st.integers(1, 12),
    st.integers(1, 6),
    st.sampled_from([1, 3, 1000]),
)
levels_of = st.lists(st.floats(-1.0, 1.0), min_size=1, max_size=5)


def cosine(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    lengths = np.linalg.norm(first) * np.linalg.norm(second)
    return float(first @ second / lengths) if lengths > 1e-9 else -1.0


@settings(max_examples=120, deadline=None)
@given(features=maps, thresholds=levels_of)
def test_levels_nest_and_regions_hang_together(features: NDArray[np.float64], thresholds: list[float]) -> None:
    levels = merge_patches(features, thresholds)
    for level, threshold in zip(levels, sorted(set(thresholds), reverse=True), strict=True):
        sums = {number: features[level == number].sum(0) for number in np.unique(level)}
        for number in sums:
            assert ndimage.label(level == number)[1] == 1
        # no two neighbours are left that should have merged
        pairs = {*zip(level[:, :-1].flat, level[:, 1:].flat, strict=True)}
        pairs |= {*zip(level[:-1].flat, level[1:].flat, strict=True)}
        assert all(cosine(sums[a], sums[b]) < threshold + 1e-9 for a, b in pairs if a != b)
    for fine, coarse in itertools.pairwise(levels):
        for number in np.unique(fine):
            around = np.unique(coarse[fine == number])
            assert len(around) == 1
            if around[0] == number:  # a number stands for the same patches wherever it appears
                assert np.array_equal(fine == number, coarse == number)
            else:
                assert around[0] > fine.max()


@settings(max_examples=60, deadline=None)
@given(features=maps, thresholds=levels_of, power=st.integers(-20, 20))
def test_scale_does_not_matter(features: NDArray[np.float64], thresholds: list[float], power: int) -> None:
    # powers of two are exact, so that even ties stay ties
    assert np.array_equal(merge_patches(features * 2.0**power, thresholds), merge_patches(features, thresholds))


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), height=st.integers(1, 12), width=st.integers(1, 12))
def test_a_piecewise_constant_map_is_recovered(seed: int, height: int, width: int) -> None:
    rng = np.random.default_rng(seed)
    kinds = rng.integers(0, 3, (height, width))
    brightness = rng.uniform(0.5, 2, (height, width, 1))  # lengths do not count, directions do
    found = merge_patches(np.eye(3)[kinds] * brightness, [0.9])[0]
    expected = np.zeros((height, width), dtype=int)
    for kind in range(3):
        parts = ndimage.label(kinds == kind)[0]
        expected += np.where(parts, parts + expected.max(), 0)
    assert np.array_equal(found[..., None, None] == found, expected[..., None, None] == expected)
