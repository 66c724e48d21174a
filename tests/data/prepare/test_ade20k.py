"""ADE20K's instance PNGs: green counts, red is only the class."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from .conftest import Prepare, photo


@pytest.fixture
def ade(root: Path) -> Path:
    """Two images of 8 x 6 px; in the first two beds and a lamp, in the second nothing."""
    labels = root / "annotations_instance/validation"
    labels.mkdir(parents=True)
    pixels = np.zeros((6, 8, 3), dtype=np.uint8)
    pixels[:2, :4, :2] = (1, 1)  # bed 1
    pixels[4:, :4, :2] = (1, 4)  # bed 4: ids need not be dense
    pixels[:, 6, :2] = (19, 2)  # lamp
    pixels[:, 7, 0] = 8  # a class without an instance
    Image.fromarray(pixels).save(labels / "ADE_val_00000007.png")
    Image.fromarray(np.zeros((6, 8, 3), np.uint8)).save(labels / "ADE_val_00000012.png")
    for number in (7, 12):
        photo(root / f"images/validation/ADE_val_{number:08}.jpg")
    return root


def test_instances(ade: Path, prepared: Prepare) -> None:
    report, images = prepared("ade20k")
    assert [(item.id, item.path.name) for item in images.items] == [
        (7, "ADE_val_00000007.jpg"),
        (12, "ADE_val_00000012.jpg"),
    ]
    expected = np.zeros((3, 6, 8), dtype=bool)
    expected[0, :2, :4] = expected[1, :, 6] = expected[2, 4:, :4] = True
    assert np.array_equal(images.forest(7).masks, expected)
    assert len(images.forest(12)) == 0
    rows = json.loads(report.path.read_text())["annotations"]
    assert [row["source_category_id"] for row in rows] == [1, 19, 1]
    assert report.warnings == ["the download has 2 images, the official one 2000; is it complete?"]


def test_broken_labels_and_missing_photographs(ade: Path, prepared: Prepare) -> None:
    labels = ade / "annotations_instance/validation"
    (labels / "ADE_val_00000001.png").write_bytes((labels / "ADE_val_00000007.png").read_bytes()[:60])
    Image.new("L", (8, 6)).save(labels / "ADE_val_00000002.png")
    Image.new("RGB", (8, 6)).save(labels / "ADE_odd.png")
    (ade / "images/validation/ADE_val_00000012.jpg").unlink()
    report, images = prepared("ade20k")
    assert [item.id for item in images.items] == [7]
    assert report.warnings[0].startswith("skipped 4 x image that cannot be used, e.g. ")
    assert "ADE_val_00000001.png: cannot be read as an image" in report.warnings[0]
    assert "ADE_val_00000002.png: must be an RGB image" in report.warnings[0]
    assert report.warnings[0].count("; ") == 2  # three are named
