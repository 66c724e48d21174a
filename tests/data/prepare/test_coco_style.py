"""COCO, LVIS, EntitySeg, PACO and PartImageNet, each from two or three images in its official form."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sohes.errors import DataError

from .conftest import Prepare, box, box_rle, photo, save


def image(image_id: int, **fields: Any) -> dict[str, Any]:
    return {"id": image_id, "width": 8, "height": 6, **fields}


def annotation(number: int, image_id: int, segmentation: Any, **fields: Any) -> dict[str, Any]:
    return {"id": number, "image_id": image_id, "category_id": 17, "segmentation": segmentation, **fields}


@pytest.fixture
def coco(root: Path) -> dict[str, Any]:
    """COCO val2017 of two images; the first has a polygon of two rings and a crowd, the second nothing."""
    photo(root / "val2017/000000000139.jpg")
    photo(root / "val2017/000000000285.jpg")
    crowd = {"size": [6, 8], "counts": [0, 12, 36]}  # the first two columns
    return {
        "images": [image(139, file_name="000000000139.jpg"), image(285, file_name="000000000285.jpg")],
        "annotations": [
            annotation(900, 139, box(0, 0, 4, 2) + box(6, 4, 2, 2), iscrowd=0, area=99),
            annotation(901, 139, crowd, iscrowd=1, category_id=1),
        ],
        "categories": [{"id": 17, "name": "cat"}, {"id": 1, "name": "person"}],
    }


COCO_JSON = "annotations/instances_val2017.json"


def test_coco(root: Path, coco: dict[str, Any], prepared: Prepare) -> None:
    save(root / COCO_JSON, coco)
    report, images = prepared("coco")
    assert [(item.id, item.size_hw, item.path) for item in images.items] == [
        (139, (6, 8), root / "val2017/000000000139.jpg"),
        (285, (6, 8), root / "val2017/000000000285.jpg"),
    ]
    forest = images.forest(139)
    expected = np.zeros((2, 6, 8), dtype=bool)
    expected[0, :2, :4] = expected[0, 4:, 6:] = expected[1, :, :2] = True
    assert np.array_equal(forest.masks, expected)
    assert forest.attributes["annotation_id"].tolist() == [1, 2]
    assert forest.attributes["iscrowd"].tolist() == [0, 1]
    assert forest.attributes["category_id"].tolist() == [1, 1]
    assert len(images.forest(285)) == 0
    assert images.categories == [{"id": 1, "name": "entity"}]
    value = json.loads(report.path.read_text())
    assert [row["source_category_id"] for row in value["annotations"]] == [17, 1]
    assert [(row["area"], row["bbox"]) for row in value["annotations"]] == [(12, [0, 0, 8, 6]), (12, [0, 0, 2, 6])]
    assert "2 images, 2 masks, of them 1 crowds, 1.0 per image" in report.summary()
    assert report.warnings == [
        "the download has 2 images, the official one 5000; is it complete?",
        "the download has 2 masks, the official one 36781; is it complete?",
    ]


def test_broken_annotations_are_left_out_and_counted(root: Path, coco: dict[str, Any], prepared: Prepare) -> None:
    rle = box_rle(0, 0, 2, 2)
    coco["annotations"] = [
        annotation(1, 139, rle),
        annotation(2, 139, rle | {"counts": rle["counts"][:-1]}),
        annotation(3, 139, [[0, 0, 5, 5]]),
        annotation(4, 139, {"size": [6, 8], "counts": [48]}),
        annotation(5, 140, rle),
        {"id": 6, "image_id": 139},
        "text",
        annotation(8, 285, box(1, 1, 2, 2)),
    ]
    coco["images"] += [image(285, file_name="000000000139.jpg"), {"id": 7, "file_name": "a.jpg"}, "text"]
    save(root / COCO_JSON, coco)
    report, images = prepared("coco")
    assert [row.id for row in images.annotations[139] + images.annotations[285]] == [1, 2]
    assert len(images) == 2
    left_out = report.warnings[:4]
    assert left_out[0] == (
        "skipped 3 x image without id, size or file name, or with an id given before, e.g. images[2]; images[3]; "
        "images[4]"
    )
    assert left_out[1] == "skipped 2 x mask of an unknown image, e.g. annotations[4]; annotations[6]"
    assert left_out[2].startswith("skipped 3 x mask that cannot be used, e.g. mask 2 of 000000000139.jpg: RLE counts")
    assert left_out[3] == "skipped 1 x mask without a pixel, e.g. mask 4 of 000000000139.jpg"
    assert "the download has 6 masks" in report.warnings[-1]  # what is left out was there


@pytest.mark.parametrize("value", [[], {"images": []}, {"images": {}, "annotations": []}])
def test_another_json(root: Path, coco: dict[str, Any], prepared: Prepare, value: Any) -> None:
    save(root / COCO_JSON, value)
    with pytest.raises(DataError, match=r"instances_val2017\.json: must be an object with the lists"):
        prepared("coco")


def test_lvis_finds_its_images_in_both_splits(root: Path, prepared: Prepare) -> None:
    photo(root / "train2017/000000000001.jpg")
    photo(root / "val2017/000000000002.jpg")
    entries = [
        image(1, coco_url="http://images.cocodataset.org/train2017/000000000001.jpg", not_exhaustive_category_ids=[17]),
        image(2, coco_url="http://images.cocodataset.org/val2017/000000000002.jpg", neg_category_ids=[3]),
    ]
    save(root / "lvis_v1_val.json", {"images": entries, "annotations": [annotation(5, 2, box(0, 0, 3, 3))]})
    _, images = prepared("lvis")
    assert [item.path.relative_to(root).as_posix() for item in images.items] == [
        "train2017/000000000001.jpg",
        "val2017/000000000002.jpg",
    ]
    assert images.forest(2).areas.tolist() == [9]


def test_entityseg_takes_the_small_images(root: Path, prepared: Prepare) -> None:
    photo(root / "images_lr/entity_01_11580/a.jpg")
    photo(root / "entity_01_11580/a.jpg", 16, 12)
    entry = image(4, file_name="entity_01_11580/a.jpg")
    save(
        root / "annotations/entityseg_val_lr.json",
        {"images": [entry], "annotations": [annotation(1, 4, box_rle(1, 0, 2, 6))]},
    )
    _, images = prepared("entityseg")
    assert images.items[0].path == root / "images_lr/entity_01_11580/a.jpg"
    assert images.forest(4).areas.tolist() == [12]


@pytest.fixture
def paco(root: Path) -> Path:
    """Two objects, the first with two parts; one part names an object that is not there."""
    photo(root / "train2017/000000000009.jpg")
    rows = [
        annotation(11, 9, box_rle(0, 0, 2, 2), obj_ann_id=10),
        annotation(10, 9, box(0, 0, 4, 4), obj_ann_id=10),
        annotation(12, 9, box_rle(2, 2, 1, 1), obj_ann_id=10),
        annotation(20, 9, box(5, 0, 3, 3), obj_ann_id=20),
        annotation(31, 9, box_rle(7, 5, 1, 1), obj_ann_id=30),
    ]
    save(
        root / "annotations/paco_lvis_v1_val.json",
        {"images": [image(9, file_name="train2017/000000000009.jpg")], "annotations": rows},
    )
    return root


def test_paco_is_parts_alone(paco: Path, prepared: Prepare) -> None:
    report, images = prepared("paco")
    forest = images.forest(9)
    assert forest.areas.tolist() == [4, 1, 1]
    assert forest.parent.tolist() == [-1, -1, -1]
    assert report.warnings == ["the download has 1 images, the official one 2410; is it complete?"]


def test_paco_hierarchy_has_the_wholes(paco: Path, prepared: Prepare) -> None:
    report, images = prepared("paco_hierarchy")
    forest = images.forest(9)
    assert forest.areas.tolist() == [4, 16, 1, 9, 1]
    assert forest.parent.tolist() == [1, -1, 1, -1, -1]
    assert "with a parent 40.0%" in report.summary()
    assert report.warnings[0] == "skipped 1 x parent that does not exist, its parts now roots, e.g. 30 of mask 31"


@pytest.mark.parametrize("folder", ["val/n02009229", "images/val", "val"])
@pytest.mark.parametrize("place", ["val.json", "annotations/val/val.json"])
def test_partimagenet(root: Path, prepared: Prepare, folder: str, place: str) -> None:
    photo(root / folder / "n02009229_11045.JPEG")
    entry = image(0, file_name="n02009229_11045.JPEG")
    rows = [annotation(0, 0, box(0, 0, 4, 4), category_id=0), annotation(1, 0, box(0, 0, 2, 2), category_id=1)]
    save(root / place, {"images": [entry], "annotations": rows})
    report, images = prepared("partimagenet")
    assert images.items[0].path == root / folder / "n02009229_11045.JPEG"
    assert images.forest(0).areas.tolist() == [16, 4]
    assert images.forest(0).parent.tolist() == [-1, -1]  # annotation 0 is no parent of roots
    assert report.counts["with a parent"] == 0


def test_a_part_of_something_broken_belongs_to_what_is_above(root: Path, prepared: Prepare) -> None:
    photo(root / "images/a.jpg")
    rows = [
        annotation(1, 3, box(0, 0, 6, 6), parent_id=0),
        annotation(2, 3, [[0, 0]], parent_id=1),
        annotation(3, 3, box(0, 0, 2, 2), parent_id=2),
        annotation(4, 3, box(7, 5, 1, 1), parent_id=None),
    ]
    save(root / "instances.json", {"images": [image(3, file_name="a.jpg")], "annotations": rows})
    _, images = prepared("pascal_part")
    assert images.forest(3).parent.tolist() == [-1, 0, -1]


READY = {"coco_panoptic": 0.0, "pascal_part": 398 / 451, "ccp_clothing_parts": 422 / 482, "car_parts": 0.0}


@pytest.mark.assets
@pytest.mark.parametrize("name", READY)
def test_real_sets(assets: Path, tmp_path: Path, name: str) -> None:
    from sohes.data.coco import read_coco
    from sohes.data.prepare.build import prepare

    report = prepare(name, assets / "data" / name, tmp_path / "out.json")
    assert report.warnings == []  # the counts are those of the catalogue, and every mask can be used
    assert report.counts["with a parent"] == pytest.approx(READY[name] * report.counts["masks"])
    before, after = read_coco(assets / "data" / name / "instances.json"), read_coco(report.path)
    for item in before.items[::20]:
        old = before.forest(item.id)
        new = after.forest(item.id)
        assert np.array_equal(old.areas, new.areas)
        assert np.array_equal(old.parent, new.parent)
