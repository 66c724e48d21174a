from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sohes.errors import DataError
from sohes.files import write_json
from sohes.probes.image_data import main_class, read_classed_images


def write_classes(folder: Path, **images: dict[str, int]) -> Path:
    """`train={"cat": 2}`: two images of 8 x 12 px in train/cat."""
    for split, classes in images.items():
        for name, count in classes.items():
            (folder / split / name).mkdir(parents=True)
            for place in range(count):
                Image.new("RGB", (12, 8), (place, 0, 0)).save(folder / split / name / f"{name}_{place}.png")
    return folder


def test_folders_are_classes(tmp_path: Path) -> None:
    data = read_classed_images(write_classes(tmp_path / "zoo", train={"dog": 1, "cat": 3}, val={"dog": 2, "cat": 2}))
    assert (data.name, data.classes) == ("zoo", ("cat", "dog"))
    assert [item.name for item in data.train] == ["cat_0.png", "dog_0.png", "cat_1.png", "cat_2.png"]  # in turns
    assert data.labels("train").tolist() == [0, 1, 0, 0]
    assert data.labels("val").tolist() == [0, 1, 0, 1]
    assert (data.val[0].size_hw, data.of_val, data.notes) == ((8, 12), 4, ())
    some = read_classed_images(tmp_path / "zoo", max_val=2, max_train=3)
    assert (some.labels("val").tolist(), some.of_val, len(some.train)) == ([0, 1], 4, 3)
    before = data.digest()
    assert read_classed_images(tmp_path / "zoo").digest() == before != some.digest()
    Image.new("RGB", (12, 9)).save(data.val[1].image)
    assert read_classed_images(tmp_path / "zoo").digest() != before


def test_what_is_left_out_is_counted(tmp_path: Path) -> None:
    folder = write_classes(tmp_path, train={"cat": 2, "dog": 2}, val={"cat": 2, "emu": 1, "yak": 2, "dog": 1})
    Image.new("RGB", (4, 4)).save(folder / "train" / "loose.png")
    (folder / "train" / "cat" / "broken.jpg").write_bytes(b"no image")
    (folder / "train" / "cat" / "notes.txt").write_text("no image either")
    data = read_classed_images(folder)
    assert (data.classes, len(data.train), len(data.val), data.of_val) == (("cat", "dog"), 4, 3, 3)
    loose, broken, unknown = data.notes
    assert loose.startswith(f"1 images directly in {folder / 'train'} have no class")
    assert broken.startswith(f"1 of 5 images of {folder / 'train'} cannot be read and are left out")
    assert unknown.startswith("3 of 6 val images are of classes that no train image has")
    assert unknown.endswith("emu (1); yak (2)")


@pytest.mark.parametrize(
    ("train", "val", "words"),
    [
        ({"cat": 2}, {"cat": 1}, "all 2 train images are of class 'cat'; .* at least two"),
        ({"cat": 1, "dog": 1}, {"emu": 1}, "no val image is of a class that a train image has"),
        ({"cat": 1, "dog": 1}, {"cat": 0}, "no image in a folder of its class; put images into .*/val/CLASS/"),
    ],
)
def test_folders_without_what_is_needed(train: dict[str, int], val: dict[str, int], words: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=words):
        read_classed_images(write_classes(tmp_path, train=train, val=val))


def test_neither_folders_nor_labels(tmp_path: Path) -> None:
    write_classes(tmp_path, train={"cat": 1})
    with pytest.raises(DataError, match=r"it needs train\.json and .* also takes train/CLASS and val/CLASS"):
        read_classed_images(tmp_path)


def test_the_class_with_most_pixels() -> None:
    label_map = np.array([[0, 0, 0, 0], [2, 2, 1, 255], [255, 255, 255, 255]], np.uint8)
    assert main_class(label_map, frozenset()) == 0
    assert main_class(label_map, frozenset({0})) == 2
    assert main_class(label_map, frozenset({0, 1, 2})) is None
    assert main_class(np.array([[3, 1]], np.uint8), frozenset()) == 1


def write_label_maps(folder: Path, **maps: list[list[int]]) -> Path:
    """`train=[[0, 1, 1]]`: an image of three columns of these labels."""
    for split, rows in maps.items():
        for place, row in enumerate(rows):
            labels = np.array([row] * 8, np.uint8)
            for kind, array in (("images", np.repeat(labels[..., None], 3, 2)), ("masks", labels)):
                (folder / kind / split).mkdir(parents=True, exist_ok=True)
                Image.fromarray(array).save(folder / kind / split / f"{place}.png")
    return folder


def test_label_maps_give_classes(tmp_path: Path) -> None:
    maps = {"train": [[0, 0, 3], [0, 1, 1], [0, 0, 0]], "val": [[3, 3, 1], [2, 2, 0], [255, 0, 0], [1, 255, 255]]}
    folder = write_label_maps(tmp_path / "set", **maps)
    (folder / "classes.txt").write_text("Background\ncat\ndog\nemu\n")
    data = read_classed_images(folder)
    assert data.classes == ("cat", "emu")  # those of train
    assert data.labels("train").tolist() == [1, 0]
    assert [item.name for item in data.val] == ["0.png", "3.png"]
    assert data.labels("val").tolist() == [1, 0]
    notes = "\n".join(data.notes)
    assert "1 of 3 train images have no annotated class and are left out" in notes
    assert "1 of 4 val images have no annotated class and are left out" in notes
    assert "1 of 3 val images are of classes that no train image has, and are left out: dog (1)" in notes
    assert "most of its annotated pixels, background left out (Background)" in notes
    (folder / "classes.txt").write_text("sky\ncat\ndog\nemu\n")  # no background: a class as the others
    assert read_classed_images(folder).classes == ("sky", "cat")


def test_categories_give_classes_and_stuff_lies_behind(tmp_path: Path) -> None:
    def square(key: int, image: int, category: int, side: int) -> dict[str, object]:
        polygon = [0, 0, side, 0, side, side, 0, side]
        area = side * side
        facts = {"id": key, "image_id": image, "category_id": category, "iscrowd": 0, "area": area}
        return facts | {"bbox": [0, 0, side, side], "segmentation": [polygon]}

    for split, shift in (("train", 0), ("val", 1)):
        for place in (0, 1):
            Image.new("RGB", (20, 20), (place, shift, 0)).save(tmp_path / f"{split}_{place}.png")
        categories = [
            {"id": key, "name": name, "isthing": int(key != 7)} for key, name in ((7, "sea"), (8, "cat"), (9, "dog"))
        ]
        rows = [square(1, 1, 7, 20), square(2, 1, 8, 10), square(3, 1, 9, 6), square(4, 2, 7, 20), square(5, 2, 9, 3)]
        images = [{"id": key + 1, "file_name": f"{split}_{key}.png", "height": 20, "width": 20} for key in (0, 1)]
        write_json(tmp_path / f"{split}.json", {"images": images, "annotations": rows, "categories": categories})
    data = read_classed_images(tmp_path)
    assert data.classes == ("cat", "dog")
    assert data.labels("val").tolist() == [0, 1]
