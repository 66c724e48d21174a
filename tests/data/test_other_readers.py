"""Our COCO export as other tools read it: equal masks, with the images in a folder of the tool's own choice."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sohes.data.coco_writer import export_coco
from sohes.data.label_store import LabelStore, LabelWriter
from sohes.masks import MaskForest
from sohes.rle import BoolArray

SIZE = (40, 60)
NAMES = ("a.png", "b.png")


@pytest.fixture
def masks() -> dict[str, BoolArray]:
    """Masks (3, H, W) of each image: a whole with a hole, its part, and something of one pixel."""
    found = {}
    for place, name in enumerate(NAMES):
        image = np.zeros((3, *SIZE), bool)
        image[0, 2:30, 5 + place : 40] = True
        image[0, 8:12, 10:14] = False
        image[1, 15:25, 10:20] = True
        image[2, 39, 59] = True
        found[name] = image
    return found


@pytest.fixture
def export(tmp_path: Path, masks: dict[str, BoolArray]) -> Path:
    """The export of a store whose images lie in photos/."""
    (tmp_path / "photos").mkdir()
    with LabelWriter(tmp_path / "labels", header={}) as writer:
        for place, (name, image) in enumerate(masks.items()):
            file = tmp_path / "photos" / name
            Image.new("RGB", SIZE[::-1], (90, 90, place)).save(file)
            writer.add(place + 1, str(file), MaskForest.from_masks(image))
    path = tmp_path / "export.json"
    export_coco(LabelStore(tmp_path / "labels"), path)
    return path


def test_supervision(export: Path, masks: dict[str, BoolArray]) -> None:
    supervision = pytest.importorskip("supervision", reason="the extra dev is not installed")
    data = supervision.DetectionDataset.from_coco(str(export.parent / "photos"), str(export), force_masks=True)
    assert len(data) == len(NAMES)
    for path, _, found in data:
        assert np.array_equal(found.mask.astype(bool), masks[Path(path).name])


def test_datumaro(export: Path, masks: dict[str, BoolArray], tmp_path: Path) -> None:
    datumaro = pytest.importorskip("datumaro", reason="`make install` brings it, beside the extra dev")
    from datumaro.components.annotation import Mask

    (tmp_path / "set" / "annotations").mkdir(parents=True)  # the layout that this reader asks for
    shutil.copy(export, tmp_path / "set" / "annotations" / "instances_all.json")
    shutil.copytree(export.parent / "photos", tmp_path / "set" / "images" / "all")
    data = list(datumaro.Dataset.import_from(str(tmp_path / "set"), "coco_instances"))
    assert len(data) == len(NAMES)
    for item in data:
        rows = sorted((row for row in item.annotations if isinstance(row, Mask)), key=lambda row: row.id)
        found = np.stack([row.image for row in rows]).astype(bool)
        assert np.array_equal(found, masks[Path(item.media.path).name])
