"""Merging against a dictionary scan of all pairs and against exact arithmetic, and what must hold for any map."""

from __future__ import annotations

import itertools
import tracemalloc
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import ndimage

from benchmarks.clustering import dictionary_scan
from sohes.explore import agglomerate
from sohes.explore.agglomerate import merge_patches
from tests.explore.reference import merge_by_fractions

THRESHOLDS = [1.5, 1.0, 0.95, 0.9, 0.8, 0.6, 0.5, 0.3, 0.1, 0.0, -0.2, -0.5, -1.0, -2.0]
KINDS = [
    "gaussian",
    "float32",
    "smooth",
    "positive",
    "integers",
    "zeros inside",
    "integers, zeros inside",
    "constant",
    "constant direction",
    "duplicates",
    "duplicates in float32",
    "duplicates of any length",
    "opposites",
    "hardly longer than zero",
    "lengths far apart",
]


def random_map(kind: str, seed: int) -> NDArray[np.floating]:
    """A random map of 1 x 1 to 11 x 11 patches."""
    rng = np.random.default_rng(seed)
    height, width = rng.integers(1, 12, 2)
    channels = int(rng.choice([1, 2, 3, 16, 77]))
    features = rng.normal(size=(height, width, channels))
    few = rng.normal(size=(rng.integers(1, 5), channels))
    picked = rng.integers(0, len(few), (height, width))
    holes = rng.random((height, width, 1)) < rng.random()
    lengths = rng.uniform(0.1, 4, (height, width, 1))
    match kind:
        case "gaussian":
            return features
        case "float32":
            return features.astype(np.float32)
        case "smooth":
            return ndimage.gaussian_filter(features, (1.5, 1.5, 0)) * 10
        case "positive":
            return np.abs(features)
        case "integers":
            return rng.integers(-2, 3, features.shape).astype(float)
        case "zeros inside":
            return features * holes
        case "integers, zeros inside":
            return (rng.integers(-1, 2, features.shape) * holes).astype(np.float32)
        case "constant":
            return np.full_like(features, 0.1) * few[0]
        case "constant direction":
            return np.full_like(features, 0.1) * lengths
        case "duplicates":
            return few[picked]
        case "duplicates in float32":
            return few.astype(np.float32)[picked]
        case "duplicates of any length":
            return few[picked] * lengths
        case "opposites":
            return few[picked] * rng.choice([-1, 1], (height, width, 1))
        case "hardly longer than zero":
            return features * 10.0 ** rng.integers(-14, -10, (height, width, 1))
        case "lengths far apart":
            return features * 10.0 ** rng.integers(-8, 8, (height, width, 1))
    raise ValueError(kind)


@pytest.mark.parametrize("seed", range(25))
@pytest.mark.parametrize("kind", KINDS)
def test_equals_the_dictionary_scan(kind: str, seed: int) -> None:
    features = random_map(kind, seed)
    assert np.array_equal(merge_patches(features, THRESHOLDS), dictionary_scan(features, THRESHOLDS))


@pytest.mark.parametrize("shape", [(1, 300, 5), (300, 1, 5), (2, 150, 1), (30, 30, 32), (20, 40, 384)])
@pytest.mark.parametrize("noise", [0.01, 0.3, 10])
def test_equals_the_dictionary_scan_on_larger_maps(shape: tuple[int, int, int], noise: float) -> None:
    rng = np.random.default_rng(3)
    blocks = rng.normal(size=(4, 4, shape[2])).repeat(75, axis=0).repeat(75, axis=1)[: shape[0], : shape[1]]
    features = (blocks + noise * rng.normal(size=shape)).astype(np.float32)
    assert np.array_equal(merge_patches(features, THRESHOLDS), dictionary_scan(features, THRESHOLDS))


@pytest.mark.parametrize("seed", range(40))
def test_ties_are_those_of_exact_arithmetic(seed: int) -> None:
    rng = np.random.default_rng(seed)
    features = rng.integers(-2, 3, (*rng.integers(1, 7, 2), rng.integers(1, 4)))
    thresholds = [Fraction(i, 5) for i in range(-6, 7)]
    found = merge_patches(features, [float(threshold) for threshold in thresholds])
    assert np.array_equal(found, merge_by_fractions(features, thresholds))


def comb(length: int) -> NDArray[np.float64]:
    """A spine of `length` patches between two rows of teeth, which it joins one after the other."""
    rng = np.random.default_rng(0)
    angles = np.where(np.arange(length) % 2, 1, -1) * rng.uniform(0.3, 1.2, (3, length))
    angles[1] = rng.normal(size=length) * 0.001
    return np.stack([np.cos(angles), np.sin(angles)], axis=-1)


def lattice(side: int) -> NDArray[np.float64]:
    """One region that goes around a quarter of all patches."""
    features = np.array([1.0, 0.0]) + np.random.default_rng(0).normal(size=(side, side, 2)) * 0.01
    features[::2, ::2] = [0, 1]
    return features


def snake(side: int) -> NDArray[np.float64]:
    """One winding region, all other patches along it."""
    rng = np.random.default_rng(0)
    features = np.array([0.2, 1.0, 0.0]) + rng.normal(size=(side, side, 3)) * [0.0, 0.5, 0.5]
    features[::2] = features[1::4, -1] = features[3::4, 0] = [1.0, 0.0, 0.0]
    return features


CROWDED = [comb(250), lattice(41), snake(41), pytest.param(comb(1200), marks=pytest.mark.slow)]


@pytest.mark.parametrize("features", CROWDED, ids=["comb", "lattice", "snake", "long comb"])
def test_equals_the_dictionary_scan_where_one_region_touches_very_many(features: NDArray[np.float64]) -> None:
    thresholds = [0.95, 0.8, 0.6, 0.3, -1.0]
    assert np.array_equal(merge_patches(features, thresholds), dictionary_scan(features, thresholds))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["noise", "lattice"])
def test_bounded_memory_at_256_x_256_x_768(kind: str) -> None:
    rng = np.random.default_rng(0)
    features = rng.standard_normal((256, 256, 768), np.float32)
    if kind == "noise":
        features += 2 * rng.standard_normal((16, 16, 768), np.float32).repeat(16, axis=0).repeat(16, axis=1)
    else:
        features[:, np.arange(256) % 4 > 0] = features[np.arange(256) % 4 > 0] = features[1, 1]  # around 4096 patches
    tracemalloc.start()
    level, whole = merge_patches(features, [0.8, -2.0])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1.1 * features.nbytes
    assert np.unique(whole).tolist() == [2 * 256 * 256 - 2]
    numbers, level = np.unique(level, return_inverse=True)
    if kind == "noise":
        assert 200 < len(numbers) < 1000
        blocks = np.arange(256).repeat(16).reshape(16, 256).repeat(16, axis=0)
        inside = np.bincount(level.ravel(), blocks.ravel()) / np.bincount(level.ravel())
        assert np.array_equal(inside[level], blocks)  # no region reaches beyond its block
    else:
        assert len(numbers) == 64 * 64 + 1


def test_nine_decimals_decide() -> None:
    features = np.array([[[1, 0], [0.6, 0.8]]])
    merged = [len(np.unique(level)) for level in merge_patches(features, [0.6 + 6e-10, 0.6 + 4e-10])]
    assert merged == [2, 1]


def test_one_threshold_or_none() -> None:
    features = random_map("smooth", 1)
    assert np.array_equal(merge_patches(features, [0.7]), dictionary_scan(features, [0.7]))
    assert merge_patches(features, []).shape == (0, *features.shape[:2])


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int8])
def test_any_number_type(dtype: type) -> None:
    features = (np.random.default_rng(0).normal(size=(9, 8, 20)) * 3).astype(dtype)
    assert np.array_equal(merge_patches(features, THRESHOLDS), dictionary_scan(features, THRESHOLDS))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_any_layout(dtype: type) -> None:
    contiguous = np.random.default_rng(0).normal(size=(9, 8, 20)).astype(dtype)
    expected = dictionary_scan(contiguous, THRESHOLDS)
    channels_first = np.moveaxis(np.ascontiguousarray(np.moveaxis(contiguous, -1, 0)), 0, -1)
    every_other = np.repeat(contiguous, 2, axis=1)[:, ::2]
    backwards = np.ascontiguousarray(contiguous[::-1, :, ::-1])[::-1, :, ::-1]
    for features in (channels_first, every_other, backwards, np.asfortranarray(contiguous)):
        assert not features.flags.c_contiguous
        assert np.array_equal(merge_patches(features, THRESHOLDS), expected)


def test_threads_run_side_by_side() -> None:
    assert agglomerate._merge.targetoptions["nogil"]
    assert agglomerate._inner_products.targetoptions["nogil"]


def test_thresholds_beyond_every_cosine() -> None:
    features = random_map("gaussian", 5)
    apart, joined = merge_patches(features, [-1.5, 1.5])
    assert np.array_equal(apart, np.arange(apart.size).reshape(apart.shape))
    assert len(np.unique(joined)) == 1
    assert joined[0, 0] == 2 * joined.size - 2  # the last of size - 1 mergers


def test_order_and_repetition_of_thresholds_do_not_matter() -> None:
    features = random_map("gaussian", 8)
    expected = merge_patches(features, [0.9, 0.5, 0.1])
    assert expected.shape == (3, *features.shape[:2])
    assert expected.dtype == np.int32
    assert np.array_equal(merge_patches(features, [0.1, 0.9, 0.5, 0.9]), expected)
    assert np.array_equal(merge_patches(features, [0.5])[0], expected[1])


def test_the_input_is_left_alone() -> None:
    features = random_map("gaussian", 0)
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


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [(0, 0, 0), (1, 0, 1), (2, 3, 4)])
def test_not_finite(place: tuple[int, ...], bad: float, dtype: type) -> None:
    features = np.ones((3, 4, 5), dtype)
    features[place] = bad
    with pytest.raises(ValueError, match="NaN or infinite"):
        merge_patches(features, [0.5])


def test_too_large_to_be_squared() -> None:
    assert len(np.unique(merge_patches(np.full((2, 2, 2), 1e150), [0.5]))) == 1
    with pytest.raises(ValueError, match="too large to be squared"):
        merge_patches(np.full((2, 2, 2), 1e160), [0.5])


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
