"""Downloads keep their JSON files apart from the images."""

from __future__ import annotations

from pathlib import Path

import pytest

from sohes.data.coco import ImageItem, ImageSet
from sohes.data.image_root import with_image_root
from sohes.data.listing import list_images
from sohes.errors import DataError
from sohes.files import write_json


def image_set(source: Path, *names: str) -> ImageSet:
    return ImageSet(source, [ImageItem(place, source.parent / name, 4, 6) for place, name in enumerate(names)])


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def test_images_at_their_names_are_left_alone(tmp_path: Path) -> None:
    touch(tmp_path / "a.jpg", tmp_path / "sub" / "a.jpg", tmp_path / "sub" / "b.jpg")
    images = image_set(tmp_path / "set.json", "a.jpg", "gone.jpg")
    assert with_image_root(images) is images


def test_a_folder_below_the_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = tmp_path / "images" / "val"
    touch(root / "a.jpg", root / "more" / "b.jpg", tmp_path / "images" / "train" / "c.jpg")
    found = with_image_root(image_set(tmp_path / "val.json", "a.jpg", "more/b.jpg", "gone.jpg"))
    assert [item.path for item in found.items] == [root / "a.jpg", root / "more/b.jpg", root / "gone.jpg"]
    assert found.names == {0: "a.jpg", 1: "more/b.jpg", 2: "gone.jpg"}
    assert f"2 of its 3 images are taken from {root}" in caplog.text


def test_the_folder_of_most_images_is_taken(tmp_path: Path) -> None:
    touch(*(tmp_path / "train" / name for name in ("1.jpg", "2.jpg")), tmp_path / "val" / "2.jpg")
    assert with_image_root(image_set(tmp_path / "a.json", "1.jpg", "2.jpg")).root == tmp_path / "train"
    touch(tmp_path / "val" / "1.jpg")
    with pytest.raises(DataError, match=r"its images lie in .*/train as well as in .*/val; move one away"):
        with_image_root(image_set(tmp_path / "a.json", "1.jpg", "2.jpg"))


def test_coco_s_own_layout(tmp_path: Path) -> None:
    touch(tmp_path / "val2017" / "000000000139.jpg")
    source = tmp_path / "annotations" / "instances_val2017.json"
    entry = {"id": 139, "file_name": "000000000139.jpg", "height": 4, "width": 6}
    write_json(source, {"images": [entry], "annotations": []})
    assert list_images(str(source)).names == [str(tmp_path / "val2017" / "000000000139.jpg")]


def test_images_that_are_nowhere(tmp_path: Path) -> None:
    images = image_set(tmp_path / "set.json", "a.jpg")
    assert with_image_root(images) is images
    assert with_image_root(image_set(tmp_path / "set.json")).items == []
