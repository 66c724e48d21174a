"""SEEDS against label maps of OpenCV's, and against its own rules where nothing is stored."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from sohes.data.superpixels.seeds import seeds

GOLDEN = np.load(Path(__file__).parent / "golden" / "opencv_seeds.npz")
MAPS = [name for name in GOLDEN if name.startswith("labels_")]


def smooth(seed: int, height: int, width: int) -> NDArray[np.uint8]:
    coarse = np.random.default_rng(seed).integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8)
    return np.asarray(cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC), np.uint8)


@pytest.mark.parametrize("name", MAPS)
def test_label_maps_are_those_of_opencv(name: str) -> None:
    assert len(MAPS) == 8
    _, size, bins, iterations = name.split("_")
    image = GOLDEN[f"image_{size}"]
    found = seeds(image, image[..., 0].size // 256, bins=int(bins), iterations=int(iterations))
    assert found.dtype == np.int32
    assert np.array_equal(found, GOLDEN[name])


def test_borders_move_to_edges() -> None:
    """A vertical edge 5 px beside a border of the grid, which one round of pixels could not reach."""
    image = np.full((96, 96, 3), 40, np.uint8)
    image[:, 53:] = (200, 90, 60)
    grid = seeds(np.zeros_like(image), 36, bins=15, iterations=0)
    assert (grid[:, 52] == grid[:, 53]).all()
    found = seeds(image, 36, bins=15, iterations=20)
    assert (found[:, 52] != found[:, 53]).all()
