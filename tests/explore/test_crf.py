"""The windowed CRF against mean field by loops over pixels and labels, and on displaced edges."""

from __future__ import annotations

import itertools
import math

import cv2
import numpy as np
import pytest

from sohes.explore.crf import ITERATIONS, LocalCRF, mean_field, pair_weights


def kernels_by_loops(image: np.ndarray) -> np.ndarray:
    """(N, N): 7 x smoothness + 10 x appearance, each normalised by the root of its sums at both ends, 15 px window."""
    pixels = list(itertools.product(range(image.shape[0]), range(image.shape[1])))
    both = np.zeros((2, len(pixels), len(pixels)))
    for (i, (y, x)), (j, (v, u)) in itertools.product(enumerate(pixels), repeat=2):
        if max(abs(y - v), abs(x - u)) <= 7:
            squared = (y - v) ** 2 + (x - u) ** 2
            contrast = sum((float(a) - float(b)) ** 2 for a, b in zip(image[y, x], image[v, u], strict=True))
            both[0, i, j] = math.exp(-squared / (2 * 3**2))
            both[1, i, j] = math.exp(-squared / (2 * 50**2) - contrast / (2 * 5**2))
    smoothness, appearance = (kernel / np.sqrt(np.outer(kernel.sum(0), kernel.sum(1))) for kernel in both)
    return 7 * smoothness + 10 * appearance


def mean_field_by_labels(probabilities: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """Mean field of labels (L, N) with Potts compatibility: ten parallel updates."""
    unary = -np.log(np.clip(probabilities, 1e-5, 1 - 1e-5))
    belief = np.exp(-unary) / np.exp(-unary).sum(axis=0)
    for _ in range(10):
        energy = unary.copy()
        for label, other in itertools.permutations(range(len(unary)), 2):
            energy[label] += kernel @ belief[other]
        belief = np.exp(-energy) / np.exp(-energy).sum(axis=0)
    return belief


def textured(seed: int, height: int, width: int) -> np.ndarray:
    """Noise faint enough for neighbours to be alike, around two brightnesses."""
    rng = np.random.default_rng(seed)
    image = rng.integers(100, 108, (height, width, 3))
    image[:, width // 2 :] += 6
    return image.astype(np.uint8)


@pytest.mark.parametrize("size", [(9, 11), (3, 20), (1, 1)])
def test_mean_field_is_that_of_the_loops(size: tuple[int, int]) -> None:
    image = textured(0, *size)
    soft = np.random.default_rng(1).random(size).astype(np.float32)
    expected = mean_field_by_labels(np.stack([soft.ravel(), 1 - soft.ravel()]), kernels_by_loops(image))[0]
    found = mean_field(soft, *pair_weights(image))
    assert ITERATIONS == 10
    assert found.dtype == np.float32
    np.testing.assert_allclose(found.ravel(), expected, atol=2e-4)


def test_one_mask_against_the_rest_is_the_joint_problem_where_two_regions_meet() -> None:
    image = textured(2, 8, 30)
    ramp = np.clip((np.arange(30) - 8) / 4, 0, 1)[None].repeat(8, axis=0)  # three regions in a row, two soft borders
    other = np.clip((np.arange(30) - 18) / 4, 0, 1)[None].repeat(8, axis=0)
    labels = np.stack([1 - ramp, ramp - other, other]).reshape(3, -1)
    joint = mean_field_by_labels(labels, kernels_by_loops(image))
    weights = pair_weights(image)
    for label, expected in zip(labels, joint, strict=True):
        alone = mean_field(label.reshape(8, 30).astype(np.float32), *weights).ravel()
        np.testing.assert_allclose(alone, expected, atol=1e-3)


def displaced(shift: int, patch: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A noisy image with a bright square of 10 patches, a soft mask that is off by `shift` px, and the square."""
    side = 20 * patch
    truth = np.zeros((side, side), dtype=bool)
    truth[5 * patch + shift : 15 * patch + shift, 5 * patch + shift : 15 * patch + shift] = True
    noise = np.random.default_rng(0).normal(0, 1.5, (side, side, 3))
    image = np.where(truth[..., None], 180, 60) + noise
    grid = np.zeros((20, 20), np.float32)
    grid[5:15, 5:15] = 1
    return image.astype(np.uint8), cv2.resize(grid, (side, side)), truth


@pytest.mark.parametrize("patch", [8, 20])
def test_a_displaced_edge_is_recovered(patch: int) -> None:
    image, soft, truth = displaced(3 * patch // 8, patch)
    refined = LocalCRF(image, float(patch), (0, 0, *truth.shape))(soft, (0, 0))
    before, after = ((mask ^ truth).sum() for mask in (soft >= 0.5, refined))
    canvas_px = patch / 8
    assert before > 2.5 * canvas_px * 40 * patch
    assert after < canvas_px * 40 * patch  # less than a pixel of the canvas along the whole outline


@pytest.mark.parametrize("patch", [8, 20])
def test_a_window_gives_what_the_image_gives(patch: int) -> None:
    image, soft, _ = displaced(patch // 4, patch)
    whole = LocalCRF(image, float(patch), (0, 0, *soft.shape))(soft, (0, 0))
    rows, columns = np.nonzero(soft)
    top, left, bottom, right = rows.min(), columns.min(), rows.max() + 1, columns.max() + 1
    refiner = LocalCRF(image, float(patch), (top, left, bottom - top, right - left))
    window = np.s_[top - refiner.margin : bottom + refiner.margin, left - refiner.margin : right + refiner.margin]
    refined = refiner(soft[window], (top - refiner.margin, left - refiner.margin))
    assert whole.any()
    assert not whole[: top - refiner.margin].any()
    assert (refined ^ whole[window]).sum() <= 0.002 * whole.sum()  # the canvas lies a fraction of a pixel elsewhere


def test_a_flat_image_keeps_the_mask_but_for_its_corners() -> None:
    _, soft, _ = displaced(0, 8)
    image = np.full((*soft.shape, 3), 90, np.uint8)
    changed = LocalCRF(image, 8.0, (0, 0, *soft.shape))(soft, (0, 0)) ^ (soft >= 0.5)
    changed[36:60, 36:60] = changed[36:60, 100:124] = changed[100:124, 36:60] = changed[100:124, 100:124] = False
    assert not changed.any()
