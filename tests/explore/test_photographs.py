"""The four photographs, and their picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image
from skimage import data

from sohes.explore.photographs import draw_photographs, photographs, small_photographs, write_photographs
from sohes.masks import MaskForest


def halves(name: str) -> MaskForest:
    """Left half, right half."""
    image = small_photographs()[name]
    masks = np.zeros((2, *image.shape[:2]), dtype=bool)
    masks[0, :, : image.shape[1] // 2] = masks[1, :, image.shape[1] // 2 :] = True
    return MaskForest.from_masks(masks)


def test_they_are_those_of_scikit_image() -> None:
    found = photographs()
    assert list(found) == ["chelsea", "coffee", "astronaut", "rocket"]
    assert all(np.array_equal(image, getattr(data, name)()) for name, image in found.items())


def test_a_column_for_each_and_a_row_for_each_level(tmp_path: Path) -> None:
    path = draw_photographs({"one": halves, "other": halves}, tmp_path / "a.jpg")
    picture = Image.open(path)
    widths = [451, 450, 300, 450]  # of 451 x 300, 600 x 400, 512 x 512 and 640 x 427 px at a height of 300
    assert picture.size == (sum(widths) + 4 * 2 * 6, 7 * (300 + 22 + 6) + 6)
    before = path.read_bytes()
    assert draw_photographs({"one": halves, "other": halves}, path).read_bytes() == before


def test_written_they_are_an_image_set_without_ground_truth(tmp_path: Path) -> None:
    images = write_photographs(tmp_path)
    assert list(images.names.values()) == [f"images/{name}.png" for name in photographs()]
    assert images.items[0].size_hw == (300, 451)
    assert not images.annotations
