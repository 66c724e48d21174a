from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sohes.data.coco import read_coco
from sohes.errors import DataError
from transfer.data import HeadData, write_instances, write_label_maps

CATEGORIES = [
    {"id": 7, "name": "car", "isthing": 1},
    {"id": 9, "name": "sky", "isthing": 0},
    {"id": 12, "name": "car:wheel", "isthing": 1, "ispart": 1},
    {"id": 13, "name": "boat"},
    {"id": 20, "name": "never used", "isthing": 1},
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
    """Both files, and the images they name."""
    for name, value in (("train", train), ("val", val)):
        (folder / f"{name}.json").write_text(json.dumps(value))
        for image in value["images"]:
            Image.new("RGB", (image["width"], image["height"])).save(folder / image["file_name"])
    return folder


def labels_of(data: HeadData) -> dict[str, list[str]]:
    """Class names of the instances that the heads are given, in file order."""
    return {
        split: [data.classes[row.category_id - 1] for row in read_coco(getattr(data, split)).annotations[5]]
        for split in ("train", "val")
    }


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


def test_label_maps_are_kept_for_the_same_source_and_painted_again_for_another(tmp_path: Path) -> None:
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


NAMES = ("car", "person", "tree")
ONE_EACH = [{"category_id": index + 1, "segmentation": box(2 * index, 0, 2, 2)} for index in range(3)]


def named(*names: str, **marks: Any) -> list[dict[str, Any]]:
    """Categories numbered from 1."""
    return [{"id": index, "name": name, **marks} for index, name in enumerate(names, start=1)]


def test_categories_are_matched_by_name_whatever_their_ids(tmp_path: Path) -> None:
    val = [{"id": 1, "name": "person"}, {"id": 40, "name": "car"}, {"id": 3, "name": "tree"}]
    rows = [ONE_EACH[0], ONE_EACH[1] | {"category_id": 40}, ONE_EACH[2]]
    folder = write(tmp_path, coco(ONE_EACH, named(*NAMES)), coco(rows, val))
    instances = write_instances(folder, tmp_path / "instances")
    assert instances.classes == NAMES
    assert labels_of(instances) == {"train": ["car", "person", "tree"], "val": ["person", "car", "tree"]}
    maps = write_label_maps(folder, tmp_path / "maps")
    assert maps.classes == NAMES
    png = json.loads(maps.val.read_text())["items"][0]["seg_map_path"]
    assert np.asarray(Image.open(png))[0].tolist() == [1, 1, 0, 0, 2, 2]
    assert instances.notes == maps.notes == ()


def test_supercategories_mean_nothing(tmp_path: Path) -> None:
    categories = [
        entry | {"supercategory": above}
        for entry, above in zip(named(*NAMES), ("stuff", "person", "object"), strict=True)
    ]
    folder = write(tmp_path, coco(ONE_EACH, categories), coco(ONE_EACH, categories))
    assert write_instances(folder, tmp_path / "instances").classes == NAMES
    assert write_label_maps(folder, tmp_path / "maps").classes == NAMES


def test_annotations_of_unlisted_categories_are_all_named_at_once(tmp_path: Path) -> None:
    rows = [*ONE_EACH, *ONE_EACH, ONE_EACH[2], ONE_EACH[2]]
    nameless = {"segmentation": box(0, 0, 1, 1)}  # without a category_id
    folder = write(tmp_path, coco(rows, named(*NAMES[:2])), coco([*ONE_EACH[:2], nameless], named(*NAMES)))
    for prepare in (write_instances, write_label_maps):
        with pytest.raises(DataError) as caught:
            prepare(folder, tmp_path / "out")
        train, val = str(caught.value).split("\n")
        assert f"{folder / 'train.json'}: 'categories' does not list the category of 4 annotation(s)" in train
        assert "annotations[2] has category_id 3; annotations[5] has category_id 3" in train
        assert "and 1 more; it lists 1 'car'; 2 'person'" in train
        assert f"{folder / 'val.json'}" in val
        assert "1 annotation(s): annotations[2] has no category_id" in val


def test_other_lists_in_val(tmp_path: Path) -> None:
    """Fewer, more, or without annotations: all the same, as long as every annotated one is known to train."""
    val = [{"id": 8, "name": "cloud"}, {"id": 2, "name": "person"}, {"id": 1, "name": "car"}]
    folder = write(tmp_path, coco(ONE_EACH, named(*NAMES)), coco(ONE_EACH[:2], val))
    data = write_instances(folder, tmp_path / "out")
    assert data.classes == NAMES
    assert data.notes == ("1 of 3 classes occur in train alone (nothing to score): tree",)
    folder = write(tmp_path, coco(ONE_EACH[:2], named(*NAMES)), coco(ONE_EACH, named(*NAMES)))
    data = write_instances(folder, tmp_path / "out")
    assert data.classes == NAMES
    assert data.notes == ("1 of 3 classes occur in val alone (not learned, yet scored): tree",)


@pytest.mark.parametrize(
    ("train", "val", "message"),
    [
        (NAMES, ("car", "people", "tree"), r"val\.json: 1 annotated categories .*'people'.*Known: car, person, tree"),
        (("traffic_light", *NAMES[1:]), ("traffic light", *NAMES[1:]), r"did you mean 'traffic_light'"),
        (("Car", *NAMES[1:]), NAMES, r"category 1 'car' and category 1 'Car' of .*train\.json cannot be told apart"),
        (("dining  table", *NAMES[1:]), ("dining table ", *NAMES[1:]), r"cannot be told apart"),
        (("car", "tree", "car"), NAMES, r"train\.json: category 3 'car' and category 1 'car'"),
        (NAMES, ("car", "tree", "car"), r"val\.json: category 3 'car' and category 1 'car'"),
    ],
)
def test_names_that_do_not_tell_classes_apart_are_refused(
    tmp_path: Path, train: tuple[str, ...], val: tuple[str, ...], message: str
) -> None:
    folder = write(tmp_path, coco(ONE_EACH, named(*train)), coco(ONE_EACH, named(*val)))
    for prepare in (write_instances, write_label_maps):
        with pytest.raises(DataError, match=message):
            prepare(folder, tmp_path / "out")


def test_a_second_entry_of_a_name_that_nothing_uses_does_no_harm(tmp_path: Path) -> None:
    """Some exporters list the name of the data set as a category 0."""
    categories = [{"id": 0, "name": "car", "isthing": 0}, *named(*NAMES)]
    data = write_instances(write(tmp_path, coco(ONE_EACH, categories), coco(ONE_EACH, categories)), tmp_path / "out")
    assert data.classes == NAMES
    assert labels_of(data)["train"] == list(NAMES)


@pytest.mark.parametrize(
    ("categories", "message"),
    [
        (named(*NAMES, isthing="0"), r"train\.json: field 'isthing' of category 1 'car' is '0'; it must be 0 or 1"),
        (named(*NAMES, ispart="no"), r"field 'ispart' of category 1 'car' is 'no'"),
        ([*named(*NAMES), {"id": 2, "name": "dog"}], r"train\.json: category 2 'dog' repeats the id of 'person'"),
    ],
)
def test_categories_that_contradict_themselves_are_refused(
    tmp_path: Path, categories: list[dict[str, Any]], message: str
) -> None:
    folder = write(tmp_path, coco(ONE_EACH, categories), coco(ONE_EACH, named(*NAMES)))
    with pytest.raises(DataError, match=message):
        write_instances(folder, tmp_path / "out")


def test_a_category_of_crowds_alone_is_no_class_and_crowds_stay_marked(tmp_path: Path) -> None:
    rows = [ONE_EACH[0], ONE_EACH[1], ONE_EACH[1] | {"iscrowd": 1}, ONE_EACH[2] | {"iscrowd": 1}]
    folder = write(tmp_path, coco(rows, named(*NAMES)), coco(rows, named(*NAMES)))
    data = write_instances(folder, tmp_path / "out")
    assert data.classes == ("car", "person")
    assert [(row.category_id, row.iscrowd) for row in read_coco(data.train).annotations[5]] == [(1, 0), (2, 0), (2, 1)]


def test_annotations_are_numbered_from_1(tmp_path: Path) -> None:
    """In pycocotools' scores a prediction that is matched to annotation 0 counts as a false one."""
    rows = [
        {"id": place, "parent_id": None, "category_id": 13, "segmentation": box(place, 0, 1, 1)} for place in (0, 1)
    ]
    data = write_instances(write(tmp_path, coco(rows), coco(rows)), tmp_path / "out")
    assert [row["id"] for row in json.loads(data.val.read_text())["annotations"]] == [1, 2]


PREPARE = [write_instances, write_label_maps]


@pytest.mark.parametrize("prepare", PREPARE)
def test_images_of_another_size_than_their_annotations_are_named(
    tmp_path: Path, prepare: Callable[[Path, Path], HeadData]
) -> None:
    folder = write(tmp_path, coco(ONE_EACH, named(*NAMES)), coco(ONE_EACH, named(*NAMES)))
    Image.new("RGB", (3, 2)).save(folder / "a.png")
    with pytest.raises(DataError) as caught:
        prepare(folder, tmp_path / "out")
    for split, line in zip(("train", "val"), str(caught.value).split("\n"), strict=True):
        assert line.startswith(f"{folder / split}.json: 1 image(s) are of another size")
        assert f"{folder / 'a.png'} is 2 x 3, its entry says 4 x 6" in line


@pytest.mark.parametrize("prepare", PREPARE)
def test_sizes_are_those_of_the_image_as_looked_at(tmp_path: Path, prepare: Callable[[Path, Path], HeadData]) -> None:
    folder = write(tmp_path, coco(ONE_EACH, named(*NAMES)), coco(ONE_EACH, named(*NAMES)))
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    Image.new("RGB", (4, 6)).save(folder / "a.png", exif=exif)
    assert prepare(folder, tmp_path / "out").n_train == 1
    Image.new("RGB", (6, 4)).save(folder / "a.png", exif=exif)
    with pytest.raises(DataError, match=r"a\.png is 6 x 4, its entry says 4 x 6"):
        prepare(folder, tmp_path / "again")


@pytest.mark.parametrize("prepare", PREPARE)
def test_images_that_cannot_be_read_are_left_out_and_counted(
    tmp_path: Path, prepare: Callable[[Path, Path], HeadData]
) -> None:
    train, val = coco(ONE_EACH, named(*NAMES)), coco(ONE_EACH, named(*NAMES))
    for key, name in ((6, "gone.png"), (7, "cut.png"), (8, "whole.png")):
        train["images"].append(train["images"][0] | {"id": key, "file_name": name})
        train["annotations"] += [
            row | {"id": 10 * key + row["id"], "image_id": key} for row in train["annotations"][:3]
        ]
    folder = write(tmp_path, train, val)
    (folder / "gone.png").unlink()
    cut = folder / "cut.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (4, 6, 3), dtype=np.uint8)).save(cut)
    cut.write_bytes(cut.read_bytes()[:70])  # the header is whole
    data = prepare(folder, tmp_path / "out")
    assert (data.n_train, data.n_val) == (2, 1)
    (note,) = data.notes
    assert "train.json: 2 of 4 images cannot be read and are left out" in note
    assert f"{folder / 'gone.png'} (no such image)" in note
    assert str(cut) in note
    listing = json.loads(data.train.read_text())
    left = [Path(item.get("file_name") or item["img_path"]).name for item in listing.get("images") or listing["items"]]
    assert left == ["a.png", "whole.png"]
    (folder / "a.png").unlink()
    with pytest.raises(DataError, match=r"val\.json: none of its 1 images can be read"):
        prepare(folder, tmp_path / "out")


def test_a_missing_split_is_named(tmp_path: Path) -> None:
    (tmp_path / "train.json").write_text(json.dumps(coco(SCENE)))
    with pytest.raises(DataError, match=r"val\.json"):
        write_instances(tmp_path, tmp_path / "instances")
