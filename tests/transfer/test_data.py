from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sohes.data.coco import read_coco
from sohes.errors import DataError
from transfer.data import write_instances, write_label_maps

CATEGORIES = [
    {"id": 7, "name": "car", "supercategory": "object"},
    {"id": 9, "name": "sky", "supercategory": "stuff"},
    {"id": 12, "name": "car:wheel", "supercategory": "car"},
    {"id": 13, "name": "boat", "supercategory": "object"},
    {"id": 20, "name": "never used", "supercategory": "object"},
]


def box(x: int, y: int, width: int, height: int) -> list[list[float]]:
    """Polygon that covers exactly these pixels."""
    return [[x, y, x + width, y, x + width, y + height, x, y + height]]


def coco(rows: list[dict[str, Any]], categories: list[dict[str, Any]] = CATEGORIES) -> dict[str, Any]:
    """One image of 6 x 4 px (width x height)."""
    annotations = [{"id": i + 1, "image_id": 5, "iscrowd": 0, "parent_id": 0} | row for i, row in enumerate(rows)]
    image = {"id": 5, "file_name": "a.png", "width": 6, "height": 4}
    return {"images": [image], "annotations": annotations, "categories": categories}


SCENE = [
    {"category_id": 13, "segmentation": box(1, 2, 1, 1)},  # small, in front of the car
    {"category_id": 7, "segmentation": box(0, 1, 3, 3)},
    {"category_id": 12, "segmentation": box(2, 3, 1, 1), "parent_id": 2},  # a part: not a class
    {"category_id": 9, "segmentation": box(0, 0, 4, 2)},  # stuff: smaller than the car, yet behind it
]


def write(folder: Path, train: dict[str, Any], val: dict[str, Any]) -> Path:
    for name, value in (("train", train), ("val", val)):
        (folder / f"{name}.json").write_text(json.dumps(value))
    return folder


def test_label_map_of_a_scene_is_painted_stuff_first_then_large_to_small(tmp_path: Path) -> None:
    data = write_label_maps(write(tmp_path, coco(SCENE), coco(SCENE)), tmp_path / "maps")
    assert data.classes == ("car", "sky", "boat")
    listing = json.loads(data.train.read_text())
    assert listing["classes"] == ["car", "sky", "boat"]
    item = listing["items"][0]
    assert item["img_path"] == str(tmp_path / "a.png")
    expected = [
        [1, 1, 1, 1, 255, 255],
        [0, 0, 0, 1, 255, 255],
        [0, 2, 0, 255, 255, 255],
        [0, 0, 0, 255, 255, 255],
    ]
    np.testing.assert_array_equal(np.asarray(Image.open(item["seg_map_path"])), expected)


def test_label_maps_are_kept_for_the_same_source_and_painted_anew_for_another(tmp_path: Path) -> None:
    folder = write(tmp_path, coco(SCENE), coco(SCENE))
    data = write_label_maps(folder, tmp_path / "maps")
    png = Path(json.loads(data.val.read_text())["items"][0]["seg_map_path"])
    png.write_bytes(b"kept")
    write_label_maps(folder, tmp_path / "maps")
    assert png.read_bytes() == b"kept"
    moved = [{"category_id": 13, "segmentation": box(5, 3, 1, 1)}, *SCENE[1:]]
    write(tmp_path, coco(SCENE), coco(moved))
    write_label_maps(folder, tmp_path / "maps")
    assert np.argwhere(np.asarray(Image.open(png)) == 2).tolist() == [[3, 5]]


def test_instances_of_a_scene_are_its_objects_with_ids_from_one(tmp_path: Path) -> None:
    data = write_instances(write(tmp_path, coco(SCENE), coco(SCENE[1:2])), tmp_path / "instances")
    assert data.classes == ("car", "boat")
    train = read_coco(data.train)
    assert [category["name"] for category in train.categories] == ["car", "boat"]
    assert [category["id"] for category in train.categories] == [1, 2]
    assert [row.category_id for row in train.annotations[5]] == [2, 1]
    assert train.items[0].path == tmp_path / "a.png"
    assert [row.category_id for row in read_coco(data.val).annotations[5]] == [1]


def test_a_foreign_file_gives_all_categories_and_its_things(tmp_path: Path) -> None:
    categories = [
        {"id": 1, "name": "dog", "supercategory": "animal", "isthing": 1},
        {"id": 2, "name": "grass", "supercategory": "ground", "isthing": 0},
        {"id": 3, "name": "tail"},
    ]
    rows = [
        {"category_id": 1, "segmentation": box(0, 0, 3, 3)},
        {"category_id": 2, "segmentation": box(3, 0, 3, 4)},
        {"category_id": 3, "segmentation": box(0, 0, 1, 1), "parent_id": 1},
    ]
    folder = write(tmp_path, coco(rows, categories), coco(rows, categories))
    assert write_label_maps(folder, tmp_path / "maps").classes == ("dog", "grass", "tail")
    assert write_instances(folder, tmp_path / "instances").classes == ("dog",)


@pytest.mark.parametrize(
    ("train", "message"),
    [
        (coco(SCENE[1:2]), r"train\.json: 1 class\(es\).*car; at least 2"),
        (coco([]), r"train\.json: no annotations"),
        (coco([{"category_id": 12, "segmentation": box(0, 0, 1, 1)}]), r"train\.json: no annotations"),
        ({"images": [], "annotations": [], "categories": []}, r"train\.json: field 'images' is empty"),
    ],
)
def test_data_without_enough_labels_is_refused(tmp_path: Path, train: dict[str, Any], message: str) -> None:
    folder = write(tmp_path, train, coco(SCENE[1:2]))
    with pytest.raises(DataError, match=message):
        write_label_maps(folder, tmp_path / "maps")


def test_a_missing_split_is_named(tmp_path: Path) -> None:
    (tmp_path / "train.json").write_text(json.dumps(coco(SCENE)))
    with pytest.raises(DataError, match=r"val\.json"):
        write_instances(tmp_path, tmp_path / "instances")
