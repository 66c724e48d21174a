"""COCO files: both mask forms, the parent tree, and errors that name the entry."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from sohes.data.coco import ImageItem, read_coco
from sohes.data.coco_writer import write_coco
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
    assert forest.attributes["category_id"].tolist() == [2, 1, -1]
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


@pytest.mark.parametrize("root", [None, 0, ...])
def test_a_root_has_no_parent(tmp_path: Path, root: Any) -> None:
    value = document()
    value["annotations"][0]["parent_id"] = root
    if root is ...:
        del value["annotations"][0]["parent_id"]
    assert [row.parent_id for row in read_coco(save(tmp_path, value)).annotations[3]] == [None, 1, 5]


def numbered_from_0(parents: list[int | None]) -> dict[str, Any]:
    value = document()
    for index, (row, parent) in enumerate(zip(value["annotations"], parents, strict=True)):
        row |= {"id": index, "parent_id": parent}
    return value


def test_annotations_may_be_numbered_from_0(tmp_path: Path) -> None:
    images = read_coco(save(tmp_path, numbered_from_0([None, 0, 1])))
    assert [row.parent_id for row in images.annotations[3]] == [None, 0, 1]
    assert images.forest(3).parent.tolist() == [-1, 0, 1]
    write_coco(tmp_path / "copy.json", images.items, images.annotations, [])
    assert [row["parent_id"] for row in json.loads((tmp_path / "copy.json").read_text())["annotations"]] == [None, 0, 1]
    assert read_coco(tmp_path / "copy.json").forest(3).parent.tolist() == [-1, 0, 1]


def test_ids_from_0_and_0_for_every_root(tmp_path: Path) -> None:
    assert read_coco(save(tmp_path, numbered_from_0([0, 0, 0]))).forest(3).parent.tolist() == [-1, -1, -1]
    with pytest.raises(DataError, match=r"has the id 0, and parent_id 0 marks roots as well; write null"):
        read_coco(save(tmp_path, numbered_from_0([0, 0, 1])))


def test_a_part_of_a_mask_that_is_left_out_goes_to_the_mask_above(tmp_path: Path) -> None:
    value = document()
    value["annotations"][1]["segmentation"] = []
    images = read_coco(save(tmp_path, value))
    assert [(row.id, row.parent_id) for row in images.annotations[3]] == [(1, None), (7, 1)]


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
            value["annotations"][2] = "x"
        case "nameless category":
            value["categories"] = [{"id": 1}]
    return value


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("no images", "field 'images' must be a list"),
        ("image twice", r"ids must be unique, these are not: images\[0\] \(3\), images\[1\] \(3\)"),
        ("annotation twice", r"ids must be unique, these are not: annotations\[0\] \(1\), annotations\[1\] \(1\)"),
        ("unknown parent", r"null for a root; these are not: annotations\[1\] \(parent_id 2\)"),
        ("parent elsewhere", r"these are not: annotations\[1\] \(parent_id 1\), annotations\[2\] \(parent_id 5\)"),
        ("cycle", r"their own ancestors: annotations\[0\], annotations\[1\], annotations\[2\]"),
        ("nameless category", r"no entry of 'categories' can be used \(1 are there\): .*categories\[0\] has no 'name'"),
    ],
)
def test_bad_documents(tmp_path: Path, change: str, message: str) -> None:
    path = save(tmp_path, break_document(change))
    with pytest.raises(DataError, match=message) as caught:
        read_coco(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("no height", r"images\[1\] has no 'height'"),
        ("text height", r"images\[1\] field 'height' is '6'; it must be of type int"),
        ("flat", r"images\[1\] is 0 x 8 px"),
        ("unknown image", r"annotations\[1\] belongs to image 4, but 'images' has no such id"),
        ("no mask", r"annotations\[1\] has no 'segmentation'"),
        ("short polygon", r"annotations\[0\] field 'segmentation': each polygon needs"),
        ("other size", r"RLE size \[8, 6\] differs from the image's \[height, width\] \[6, 8\]"),
        ("short counts", r"RLE counts sum to 16, the image has 48 pixels"),
        ("far polygon", r"coordinates must be numbers in px"),
        ("cut counts", r"annotations\[2\] field 'segmentation': RLE counts cannot be decoded"),
        ("no counts", r"RLE counts cannot be decoded"),
        ("foreign letters", r"RLE counts cannot be decoded"),
        ("entry is text", r"annotations\[2\] must be an object"),
    ],
)
def test_an_entry_that_cannot_be_used_is_named_and_left_out(tmp_path: Path, change: str, message: str) -> None:
    images = read_coco(save(tmp_path, break_document(change)))
    (line,) = images.problems.lines()
    assert line.startswith("skipped 1 x entry of ")
    assert re.search(message, line)
    assert len(images) + len(images.annotations[3]) == 4  # of five entries


ODD = {
    "size null": {"segmentation": {"size": None, "counts": [48]}},
    "counts hold null": {"segmentation": {"size": [6, 8], "counts": [5, None, 43]}},
    "counts nested": {"segmentation": {"size": [6, 8], "counts": [[5, 10], 33]}},
    "counts not whole": {"segmentation": {"size": [6, 8], "counts": [5.5, 42.5]}},
    "counts huge": {"segmentation": {"size": [6, 8], "counts": [2**70, 48]}},
    "no polygon": {"segmentation": []},
    "line": {"segmentation": [[1, 1, 5, 5]]},
    "polygon and point": {"segmentation": [[1, 1, 5, 1, 5, 5], [3, 3]]},
    "polygon of text": {"segmentation": [["1", "1", "5", "1", "5", "5"]]},
    "crowd in words": {"iscrowd": "no"},
    "id of 64 bits": {"id": 2**63},
    "id of text": {"id": "2"},
    "image of text": {"image_id": "3"},
    "image is a list": {"image_id": [3]},
    "category in words": {"category_id": "car"},
    "score infinite": {"score": float("inf")},
    "parent in words": {"parent_id": "1"},
}


@pytest.mark.parametrize("name", ODD)
def test_odd_fields_are_named_not_raised(tmp_path: Path, name: str) -> None:
    value = document()
    value["annotations"][2] |= ODD[name]
    images = read_coco(save(tmp_path, value))
    assert [row.id for row in images.annotations[3]] == [1, 5]
    (line,) = images.problems.lines()
    assert "annotations[2]" in line


def test_several_broken_entries_are_named_in_one_pass(tmp_path: Path) -> None:
    value = document()
    for row in value["annotations"][1:]:
        row["segmentation"] = None
    value["images"].append({"id": 2**63, "file_name": "c.jpg", "height": 6, "width": 8})
    value["images"].append({"id": 11, "file_name": "d\0.jpg", "height": 6, "width": 8})
    value["images"].append({"id": 12, "file_name": "e.jpg", "height": 10**6, "width": 10**6})
    images = read_coco(save(tmp_path, value))
    assert images.problems.counts == {
        "entry of 'images' that cannot be used": 3,
        "entry of 'annotations' that cannot be used": 2,
    }
    for place in ("images[2]", "images[3]", "images[4]", "annotations[1]", "annotations[2]"):
        assert place in " ".join(images.problems.lines())


def test_no_annotation_that_can_be_used_is_an_error(tmp_path: Path) -> None:
    value = document()
    for row in value["annotations"]:
        row["id"] += 2**63
    with pytest.raises(DataError, match=r"no entry of 'annotations' can be used \(3 are there\).*must fit 64 bits"):
        read_coco(save(tmp_path, value))


def test_a_list_that_is_null_is_empty(tmp_path: Path) -> None:
    value = document() | {"annotations": None, "categories": None}
    images = read_coco(save(tmp_path, value))
    assert (images.annotations, images.categories) == ({}, [])
    with pytest.raises(DataError, match="field 'images' must be a list"):
        read_coco(save(tmp_path, value | {"images": None}))


def test_crowd_as_bool_or_null(tmp_path: Path) -> None:
    value = document()
    for row, crowd in zip(value["annotations"], (False, True, None), strict=True):
        row["iscrowd"] = crowd
    assert [row.iscrowd for row in read_coco(save(tmp_path, value)).annotations[3]] == [0, 1, 0]


def test_names_written_on_windows(tmp_path: Path) -> None:
    value = document()
    value["images"][0]["file_name"] = "sub\\a.jpg"
    assert read_coco(save(tmp_path, value)).items[0].path == tmp_path / "sub" / "a.jpg"
    (tmp_path / "sub\\a.jpg").touch()  # elsewhere it is a name like any other
    assert read_coco(save(tmp_path, value)).items[0].path == tmp_path / "sub\\a.jpg"


def test_a_list_is_not_coco(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is an object with 'images'"):
        read_coco(save(tmp_path, []))
