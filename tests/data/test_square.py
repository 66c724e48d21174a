"""The centre square, against the resizing and cropping of PiCIE's evaluation written out with Pillow."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from sohes.data.square import centre_square, centre_square_labels


@pytest.mark.parametrize("size_hw", [(480, 640), (333, 500), (500, 333), (90, 91), (320, 320), (427, 640), (12, 40)])
def test_picie(size_hw: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (*size_hw, 3), dtype=np.uint8)
    labels = rng.integers(0, 28, size_hw, dtype=np.uint8)
    height, width = size_hw
    size = (320, int(320 * height / width)) if width <= height else (int(320 * width / height), 320)
    left, top = (round((side - 320) / 2) for side in size)
    box = (left, top, left + 320, top + 320)
    expected = Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR).crop(box)
    assert np.array_equal(centre_square(pixels, 320), np.asarray(expected))
    nearest = Image.fromarray(labels).resize(size, Image.Resampling.NEAREST).crop(box)
    found = centre_square_labels(labels, 320)
    assert np.array_equal(found, np.asarray(nearest))
    assert found.dtype == np.uint8
