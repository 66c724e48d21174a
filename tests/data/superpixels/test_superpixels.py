"""Every method through the one door: sizes, labels, errors."""

from __future__ import annotations

import subprocess
import sys

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from sohes.data.superpixels.grid import fine_grid_hw, grid_hw
from sohes.data.superpixels.settings import SuperpixelSettings
from sohes.data.superpixels.superpixels import superpixels
from sohes.errors import ConfigError
from tests.data.superpixels.test_seeds import smooth

METHODS = ("seeds", "slic", "graph", "grid")
SIZES = [(224, 224), (16, 16), (17, 16), (16, 90), (101, 64), (48, 200)]


def found(image: NDArray[np.uint8], method: str, block_px: int = 16) -> NDArray[np.int32]:
    return superpixels(image, SuperpixelSettings(method=method, block_px=block_px))


@pytest.mark.parametrize(
    ("size_hw", "count"), [((224, 224), 196), ((512, 512), 1024), ((375, 500), 910), ((333, 500), 805)]
)
def test_grids_of_opencv(size_hw: tuple[int, int], count: int) -> None:
    """Of OpenCV's SEEDS, asked for 196 at 224² and for 1024 elsewhere: its getNumberOfSuperpixels."""
    rows, columns = fine_grid_hw(*size_hw, 196 if count == 196 else 1024)
    assert (rows // 2) * (columns // 2) == count


@pytest.mark.parametrize("block_px", [8, 16, 32])
def test_multiples_of_the_block_are_cut_into_blocks(block_px: int) -> None:
    for rows in range(2, 20):
        for columns in range(rows // 2, 3 * rows):
            if min(rows, columns) * block_px >= 16:
                assert grid_hw(rows * block_px, columns * block_px, block_px) == (rows, columns)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("size_hw", SIZES)
@pytest.mark.parametrize("kind", ["smooth", "flat", "noise", "grey"])
def test_labels(method: str, size_hw: tuple[int, int], kind: str) -> None:
    image = smooth(0, *size_hw)
    if kind == "flat":
        image[:] = 130
    elif kind == "noise":
        image = np.random.default_rng(1).integers(0, 256, image.shape, dtype=np.uint8)
    elif kind == "grey":
        image[:] = image[..., :1]
    before = image.copy()
    labels = found(image, method)
    assert labels.shape == size_hw
    assert labels.dtype == np.int32
    used, count = np.unique(labels), np.prod(grid_hw(*size_hw, 16))
    assert used[0] == 0
    if method == "slic":
        assert len(used) <= count
        assert used[-1] == len(used) - 1
    else:
        assert np.array_equal(used, np.arange(count))
    assert np.array_equal(image, before)
    assert np.array_equal(found(image, method), labels)


@pytest.mark.parametrize("method", ["seeds", "graph", "grid"])
def test_a_flat_image_is_cut_into_equal_parts(method: str) -> None:
    areas = np.bincount(found(np.full((128, 160, 3), 77, np.uint8), method).ravel())
    assert len(areas) == 80
    assert areas.min() == areas.max() == 256


@pytest.mark.parametrize("seed", range(3))
def test_merged_regions_hang_together(seed: int) -> None:
    labels = found(smooth(seed, 96, 128), "graph")
    for label in range(48):
        assert cv2.connectedComponents((labels == label).astype(np.uint8), connectivity=4)[0] == 2


def test_square_blocks() -> None:
    labels = found(smooth(0, 48, 80), "grid")
    assert np.array_equal(labels, np.arange(15).reshape(3, 5).repeat(16, 0).repeat(16, 1))


@pytest.mark.parametrize("method", ["seeds", "slic", "graph"])
def test_an_outline_is_kept(method: str) -> None:
    """Of a disc, which blocks would cut: nearly all its pixels lie in superpixels that are its own."""
    y, x = np.mgrid[:160, :160]
    disc = (y - 83) ** 2 + (x - 71) ** 2 < 47**2
    image = np.where(disc[..., None], np.array([180, 60, 50]), np.array([70, 120, 60])).astype(np.uint8)
    image += np.random.default_rng(0).integers(0, 12, image.shape, dtype=np.uint8)

    def astray(labels: NDArray[np.int32]) -> int:
        inside = np.bincount(labels.ravel(), disc.ravel())
        return int(np.minimum(inside, np.bincount(labels.ravel()) - inside).sum())

    assert astray(found(image, method)) < 0.1 * astray(found(image, "grid"))


def test_too_small_or_of_another_type() -> None:
    settings = SuperpixelSettings()
    with pytest.raises(ValueError, match="15 x 40 px has no superpixels; its sides are at least 16 px"):
        superpixels(np.zeros((15, 40, 3), np.uint8), settings)
    with pytest.raises(ValueError, match=r"\(20, 40, 3\) float64"):
        superpixels(np.zeros((20, 40, 3)), settings)
    with pytest.raises(ValueError, match=r"\(20, 40\) uint8"):
        superpixels(np.zeros((20, 40), np.uint8), settings)


@pytest.mark.parametrize("wrong", [{"method": "watershed"}, {"block_px": 3}, {"bins": 1}, {"iterations": -1}])
def test_settings_are_checked(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        SuperpixelSettings(**wrong)


def test_settings_load_neither_torch_nor_opencv() -> None:
    code = "import sys, sohes.data.superpixels.settings; print({'torch', 'cv2', 'numba'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
