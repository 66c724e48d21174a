"""COCO files: both mask forms, the parent tree, and errors that name the entry."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from sohes.data.coco import ImageItem, check_segmentation, read_coco, write_coco
from sohes.errors import DataError


def document() -> dict[str, Any]:
    """Two images of 6 x 8 px; in the first a 4 x 4 square, in it a 2 x 2 one, and in that a single pixel."""
    square = [[1, 1, 5, 1, 5, 5, 1, 5]]
    inner = {"size": [6, 8], "counts": [14, 2, 4, 2, 26]}  # columns 2 and 3, rows 2 and 3
    pixel = np.zeros((6, 8), dtype=np.uint8, order="F")
    pixel[2, 2] = 1
    dot = coco_mask.encode(pixel)
    return {
        "images": [
            {"id": 3, "file_name": "sub/a.jpg", "height": 6, "width": 8},
            {"id": 9, "file_name": "b.jpg", "height": 6, "width": 8},
        ],
        "annotations": [
            {"id": 1, "image_id": 3, "category_id": 2, "segmentation": square, "parent_id": 0},
            {"id": 5, "image_id": 3, "category_id": 1, "segmentation": inner, "parent_id": 1, "iscrowd": 1},
            {
                "id": 7,
                "image_id": 3,
                "segmentation": {"size": [6, 8], "counts": dot["counts"].decode()},
                "parent_id": 5,
            },
        ],
        "categories": [{"id": 1, "name": "part"}, {"id": 2, "name": "whole"}],
    }


def save(folder: Path, value: Any) -> Path:
    path = folder / "truth.json"
    path.write_text(json.dumps(value))
    return path


def test_reads_polygons_and_both_kinds_of_rle(tmp_path: Path) -> None:
    images = read_coco(save(tmp_path, document()))
    assert images.items[0] == ImageItem(3, tmp_path / "sub/a.jpg", 6, 8)
    forest = images.forest(3)
    expected = np.zeros((3, 6, 8), dtype=bool)
    expected[0, 1:5, 1:5] = expected[1, 2:4, 2:4] = expected[2, 2, 2] = True
    assert np.array_equal(forest.masks, expected)
    assert forest.parent.tolist() == [-1, 0, 1]
    assert forest.ancestor.tolist() == [[False, True, True], [False, False, True], [False, False, False]]
    assert forest.attributes["category_id"].tolist() == [2, 1, 1]
    assert forest.attributes["annotation_id"].tolist() == [1, 5, 7]
    assert forest.attributes["iscrowd"].tolist() == [0, 1, 0]
    assert len(images.forest(9)) == 0


def test_written_and_read_again(tmp_path: Path) -> None:
    images = read_coco(save(tmp_path, document()))
    outside = ImageItem(9, tmp_path.parent / "elsewhere.jpg", 6, 8)
    write_coco(tmp_path / "copy.json", [images.items[0], outside], images.annotations, images.categories)
    names = [image["file_name"] for image in json.loads((tmp_path / "copy.json").read_text())["images"]]
    assert names == ["sub/a.jpg", str(outside.path)]
    again = read_coco(tmp_path / "copy.json")
    assert [item.path for item in again.items] == [images.items[0].path, outside.path]
    assert again.forest(3).rles == images.forest(3).rles
    assert again.forest(3).parent.tolist() == [-1, 0, 1]
    row = json.loads((tmp_path / "copy.json").read_text())["annotations"][0]
    assert (row["area"], row["bbox"]) == (16, [1, 1, 4, 4])


def test_null_parent_is_a_root(tmp_path: Path) -> None:
    value = document()
    value["annotations"][0]["parent_id"] = None
    assert read_coco(save(tmp_path, value)).annotations[3][0].parent_id == 0


def dot_counts(value: dict[str, Any]) -> str:
    return value["annotations"][2]["segmentation"]["counts"]


def break_document(change: str) -> dict[str, Any]:
    value = document()
    first, second = value["annotations"][:2]
    match change:
        case "no images":
            del value["images"]
        case "no height":
            del value["images"][1]["height"]
        case "text height":
            value["images"][1]["height"] = "6"
        case "flat":
            value["images"][1]["height"] = 0
        case "image twice":
            value["images"][1]["id"] = 3
        case "annotation twice":
            second["id"] = 1
        case "unknown image":
            second["image_id"] = 4
        case "no mask":
            del second["segmentation"]
        case "short polygon":
            first["segmentation"] = [[0, 0, 1, 1]]
        case "other size":
            second["segmentation"]["size"] = [8, 6]
        case "short counts":
            second["segmentation"]["counts"] = [14, 2]
        case "far polygon":
            first["segmentation"] = [[0, 0, float("nan"), 1, 2, 2]]
        case "cut counts":
            value["annotations"][2]["segmentation"]["counts"] = dot_counts(value)[:-1]
        case "no counts":
            value["annotations"][2]["segmentation"]["counts"] = ""
        case "foreign letters":
            value["annotations"][2]["segmentation"]["counts"] = "é" + dot_counts(value)
        case "unknown parent":
            second["parent_id"] = 2
        case "parent elsewhere":
            second["image_id"] = 9
        case "cycle":
            first["parent_id"] = 7
        case "entry is text":
            value["annotations"][0] = "x"
        case "nameless category":
            value["categories"] = [{"id": 1}]
    return value


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("no images", "field 'images' must be a list"),
        ("no height", r"images\[1\] has no 'height'"),
        ("text height", r"images\[1\] field 'height' is '6'; it must be of type int"),
        ("flat", r"images\[1\] is 0 x 8 px"),
        ("image twice", r"images\[1\] repeats id 3"),
        ("annotation twice", r"annotations\[1\] repeats id 1"),
        ("unknown image", r"annotations\[1\] belongs to image 4, but 'images' has no such id"),
        ("no mask", r"annotations\[1\] has no 'segmentation'"),
        ("short polygon", r"annotations\[0\] field 'segmentation': each polygon needs"),
        ("other size", r"RLE size \[8, 6\] differs from the image's \[height, width\] \[6, 8\]"),
        ("short counts", r"RLE counts sum to 16, the image has 48 pixels"),
        ("far polygon", r"coordinates must be numbers in px"),
        ("cut counts", r"annotations\[2\] field 'segmentation': RLE counts cannot be decoded"),
        ("no counts", r"RLE counts cannot be decoded"),
        ("foreign letters", r"RLE counts cannot be decoded"),
        ("unknown parent", r"annotations\[1\] has parent_id 2, which is no annotation of image 3"),
        ("parent elsewhere", r"annotations\[1\] has parent_id 1, which is no annotation of image 9"),
        ("cycle", "is its own ancestor"),
        ("entry is text", r"annotations\[0\] must be an object"),
        ("nameless category", r"categories\[0\] has no 'name'"),
    ],
)
def test_bad_documents(tmp_path: Path, change: str, message: str) -> None:
    path = save(tmp_path, break_document(change))
    with pytest.raises(DataError, match=message) as caught:
        read_coco(path)
    assert str(path) in str(caught.value)


def test_every_rle_of_pycocotools_is_accepted() -> None:
    rng = np.random.default_rng(0)
    for share in np.linspace(0, 1, 40):
        mask = rng.random((rng.integers(1, 70), rng.integers(1, 70))) < share
        mask[: len(mask) // 3] = share > 0.5  # long runs beside short ones
        rle = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
        counts = rle["counts"].decode()
        check_segmentation("mask", {"size": list(mask.shape), "counts": counts}, mask.shape)
        with pytest.raises(DataError, match=r"^mask: RLE counts sum to"):
            check_segmentation("mask", {"size": list(mask.shape), "counts": counts + "1"}, mask.shape)


def test_a_list_is_not_coco(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is an object with 'images'"):
        read_coco(save(tmp_path, []))
