"""PartImageNet in its official form: parts as annotated, and wholes made of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sohes.errors import DataError

from .conftest import Prepare, box, photo, save

CATEGORIES = [
    {"id": 0, "name": "Quadruped Head", "supercategory": "Quadruped"},
    {"id": 1, "name": "Quadruped Body", "supercategory": "Quadruped"},
    {"id": 2, "name": "Car Tier", "supercategory": "Car"},
]


def annotation(number: int, image_id: int, category: Any, segmentation: Any) -> dict[str, Any]:
    return {"id": number, "image_id": image_id, "category_id": category, "segmentation": segmentation, "iscrowd": 0}


@pytest.fixture
def download(root: Path) -> dict[str, Any]:
    """Two images, one named with its class folder; the first has two heads, a body and a tyre.

    A part whose mask is broken, one of a category that is not listed, and one of no image.
    """
    photo(root / "images/val/n02009229_1.JPEG")
    photo(root / "images/val/n02009229_2.JPEG")
    names = ("n02009229_1.JPEG", "n02009229/n02009229_2.JPEG")
    return {
        "images": [{"id": i, "file_name": name, "width": 8, "height": 6} for i, name in enumerate(names)],
        "annotations": [
            annotation(0, 0, 0, box(0, 0, 2, 2)),
            annotation(1, 0, 2, box(6, 4, 2, 2)),
            annotation(2, 0, 1, box(1, 0, 3, 4)),
            annotation(3, 0, 0, box(0, 5, 1, 1)),
            annotation(4, 0, 1, [[0, 0, 5, 5]]),
            annotation(5, 0, 7, box(0, 0, 1, 1)),
            annotation(6, 9, 0, box(0, 0, 1, 1)),
            annotation(7, 1, 2, [[0, 0, 5, 5]]),
        ],
        "categories": CATEGORIES,
    }


def test_wholes_are_unions_of_parts(root: Path, download: dict[str, Any], prepared: Prepare) -> None:
    save(root / "annotations/val.json", download)
    report, images = prepared("partimagenet_hierarchy")
    forest = images.forest(0)
    quadruped = np.zeros((6, 8), bool)
    quadruped[:2, :2] = quadruped[:4, 1:4] = quadruped[5, 0] = True
    assert forest.areas.tolist() == [4, 4, 12, 1, quadruped.sum(), 4]  # parts in their order, then the wholes
    assert np.array_equal(forest.masks[4], quadruped)
    assert forest.parent.tolist() == [4, 5, 4, 4, -1, -1]
    assert forest.attributes["category_id"].tolist() == [0, 2, 1, 0, 3, 4]
    assert images.categories == [
        *CATEGORIES,
        {"id": 3, "name": "Quadruped", "supercategory": "Quadruped"},
        {"id": 4, "name": "Car", "supercategory": "Car"},
    ]
    assert len(images.forest(1)) == 0  # its one part is broken, so there is no whole
    assert [item.path.name for item in images.items] == ["n02009229_1.JPEG", "n02009229_2.JPEG"]
    assert json.loads(report.path.read_text())["info"]["description"].endswith("objects and their parts; 5 categories")


def test_what_is_left_out_is_counted_and_named(root: Path, download: dict[str, Any], prepared: Prepare) -> None:
    save(root / "annotations/val.json", download)
    report, _ = prepared("partimagenet_hierarchy")
    kinds = [warning.partition(", e.g.")[0] for warning in report.warnings]
    assert kinds == [
        "skipped 1 x mask of an unknown image",
        "skipped 1 x part of an unknown category",
        "skipped 2 x mask that cannot be used",
        "the download has 2 images, the official one 2957; is it complete?",
        "the download has 5 categories, the official one 51; is it complete?",
    ]
    assert "mask 5 of n02009229_1.JPEG: category 7" in report.warnings[1]
    assert (report.counts["masks"], report.counts["with a parent"]) == (6, 4)


def test_the_parts_alone_are_as_before(root: Path, download: dict[str, Any], prepared: Prepare) -> None:
    """The ground truth of mask AR has neither wholes nor names."""
    save(root / "annotations/val.json", download)
    _, images = prepared("partimagenet")
    assert images.forest(0).areas.tolist() == [4, 4, 12, 1, 1]
    assert images.categories == [{"id": 1, "name": "entity"}]


@pytest.mark.parametrize("categories", [None, "text", [], [{"id": 0, "name": "Quadruped Head"}]])
def test_categories_are_needed(root: Path, download: dict[str, Any], prepared: Prepare, categories: Any) -> None:
    save(root / "annotations/val.json", download | {"categories": categories})
    with pytest.raises(DataError, match=r"val\.json: 'categories' must be .* take the annotations of"):
        prepared("partimagenet_hierarchy")
