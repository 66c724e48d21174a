"""Tiny downloads in the official layouts, and their preparation."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from sohes.data.coco import ImageSet, read_coco
from sohes.data.prepare.build import Prepared, prepare

Prepare = Callable[..., tuple[Prepared, ImageSet]]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Folder of the download."""
    folder = tmp_path / "download"
    folder.mkdir()
    return folder


@pytest.fixture
def prepared(root: Path, tmp_path: Path) -> Prepare:
    """Prepares a data set out of `root`, and reads what was written."""

    def run(name: str, **options: Any) -> tuple[Prepared, ImageSet]:
        report = prepare(name, root, tmp_path / "out" / f"{name}.json", **options)
        return report, read_coco(report.path)

    return run


def photo(path: Path, width: int = 8, height: int = 6) -> None:
    """A grey photograph."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (width, height), "grey").save(path)


def save(path: Path, value: Any) -> None:
    """A JSON file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def box(x: int, y: int, width: int, height: int) -> list[list[float]]:
    """A rectangle as COCO polygons."""
    return [[x, y, x + width, y, x + width, y + height, x, y + height]]


def box_rle(x: int, y: int, width: int, height: int, *, size_wh: tuple[int, int] = (8, 6)) -> dict[str, Any]:
    """A rectangle as compressed RLE."""
    mask = np.zeros(size_wh[::-1], dtype=np.uint8, order="F")
    mask[y : y + height, x : x + width] = 1
    rle = coco_mask.encode(mask)
    return {"size": list(mask.shape), "counts": rle["counts"].decode()}
