"""Folders, the check of every image, and which images are held out."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sohes.data.coco import Annotation, ImageItem, ImageSet, read_coco
from sohes.data.images import load_image
from sohes.data.listing import list_images
from sohes.data.sources import check_images, data_name, split_images, write_split
from sohes.errors import DataError


def make_images(folder: Path, *names: str, size_hw: tuple[int, int] = (6, 8)) -> list[Path]:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size_hw[::-1]).save(folder / name)
    return [folder / name for name in names]


def items_of(folder: Path, *names: str) -> list[ImageItem]:
    return [ImageItem(index + 1, folder / name, 6, 8) for index, name in enumerate(names)]


def truth_of(folder: Path, *names: str, size_hw: tuple[int, int] = (6, 8)) -> ImageSet:
    items = [ImageItem(100 + index, folder / name, *size_hw) for index, name in enumerate(names)]
    square = [[1.0, 1, 5, 1, 5, 5, 1, 5]]
    rows = {item.id: [Annotation(item.id * 10, item.id, 1, square)] for item in items}
    return ImageSet(folder / "truth.json", items, rows, [{"id": 1, "name": "entity"}])


def test_broken_images_are_skipped_with_the_reason(tmp_path: Path) -> None:
    paths = make_images(tmp_path, "a.png", "b.png", "c.png")
    paths[1].write_bytes(paths[1].read_bytes()[:40])
    items, skipped = check_images(list_images(tmp_path))
    assert [(item.id, item.path.name, item.size_hw) for item in items] == [(1, "a.png", (6, 8)), (3, "c.png", (6, 8))]
    assert list(skipped) == [str(paths[1])]
    assert skipped[str(paths[1])].startswith("cannot be read")


def test_members_of_archives_are_images_like_others(tmp_path: Path) -> None:
    (path,) = make_images(tmp_path, "a.png", size_hw=(5, 9))
    with tarfile.open(tmp_path / "b.tar", "w") as file:
        file.add(path, "./inside/c.png")
    items, skipped = check_images(list_images(tmp_path))
    assert [(item.path, item.size_hw) for item in items] == [
        (path, (5, 9)),
        (tmp_path / "b.tar" / "inside" / "c.png", (5, 9)),
    ]
    assert skipped == {}
    assert np.array_equal(load_image(items[1].path), load_image(path))


def test_named_images_are_held_out(tmp_path: Path) -> None:
    items = items_of(tmp_path, "a.png", "b.png", "x/c.png", "d.png")
    split = split_images(items, truth_of(tmp_path, "c.png", "a.png", "gone.png"))
    assert [item.id for item in split.train] == [2, 4]
    assert [item.id for item in split.val] == [1, 3]
    assert split.truth == {3: 100, 1: 101}
    assert split.unmatched == ["gone.png"]


def test_the_end_of_the_path_decides_between_equal_names(tmp_path: Path) -> None:
    items = items_of(tmp_path, "x/a.png", "y/a.png", "b.png")
    other = tmp_path / "annotations"
    assert split_images(items, truth_of(other, "y/a.png")).truth == {2: 100}
    with pytest.raises(DataError, match=r"'a\.png' could be '.*x/a\.png' or '.*y/a\.png'"):
        split_images(items, truth_of(other, "a.png"))
    assert split_images(items, truth_of(tmp_path / "x", "a.png")).truth == {1: 100}  # that very file


def test_two_entries_for_one_image(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"'a\.png' and 'x/a\.png' both mean '.*/x/a\.png'"):
        split_images(items_of(tmp_path, "x/a.png", "b.png"), truth_of(tmp_path / "annotations", "a.png", "x/a.png"))


def test_truth_of_other_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"'other\.jpg'.*a\.png'"):
        split_images(items_of(tmp_path, "a.png", "b.png"), truth_of(tmp_path, "other.jpg"))


def test_other_sizes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"image 100 is 8 x 6 px.* but .*a\.png is 6 x 8 px"):
        split_images(items_of(tmp_path, "a.png", "b.png"), truth_of(tmp_path, "a.png", size_hw=(8, 6)))


def test_a_ground_truth_that_names_every_image_leaves_none_to_train_on(tmp_path: Path) -> None:
    items = items_of(tmp_path, "a.png", "b.png", "c.png")
    split = split_images(items, truth_of(tmp_path, "c.png", "a.png", "b.png"))
    assert split.train == []
    assert split.val == items


def test_an_entry_whose_image_was_skipped_is_left_over(tmp_path: Path) -> None:
    """Frames of two videos share their names; the damaged one of the second is not the whole one of the first."""
    items = items_of(tmp_path, "drive1/0.png", "drive1/1.png", "drive2/0.png")
    truth = truth_of(tmp_path, "drive2/0.png", "drive2/1.png")
    split = split_images(items, truth, skipped={str(tmp_path / "drive2/1.png"): "cut off"})
    assert split.truth == {3: 100}
    assert split.unmatched == ["drive2/1.png"]
    with pytest.raises(DataError, match="all its images were skipped"):
        split_images(items, truth_of(tmp_path, "drive2/1.png"), skipped={str(tmp_path / "drive2/1.png"): "cut off"})


@pytest.mark.parametrize("covered", [False, True])
def test_without_a_decision_a_fraction_is_held_out(tmp_path: Path, covered: bool) -> None:
    names = [f"{index:02d}.png" for index in range(40)]
    items = items_of(tmp_path, *names)
    truth = truth_of(tmp_path, *names) if covered else None
    split = split_images(items, truth, val_fraction=0.25, seed=3)
    assert len(split.val) == 10
    assert sorted(item.id for item in split.train + split.val) == list(range(1, 41))
    assert split == split_images(items, truth, val_fraction=0.25, seed=3)
    assert split.val != split_images(items, truth, val_fraction=0.25, seed=4).val
    assert len(split.truth) == (10 if covered else 0)


def test_limits(tmp_path: Path) -> None:
    items = items_of(tmp_path, *[f"{index:02d}.png" for index in range(40)])
    split = split_images(items, max_train=7, max_val=3, val_fraction=0.5)
    assert (len(split.train), len(split.val)) == (7, 3)
    assert not {item.id for item in split.train} & {item.id for item in split.val}
    assert [item.id for item in split.train] == sorted(item.id for item in split.train)


def test_one_image_cannot_be_split(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="at least two"):
        split_images(items_of(tmp_path, "a.png"))


def test_write_split(tmp_path: Path) -> None:
    items = items_of(tmp_path / "photos", "a.png", "b.png", "c.png")
    truth = truth_of(tmp_path / "photos", "b.png")
    out = tmp_path / "out"
    split = split_images(items, truth)
    write_split(out, split, ground_truth=truth, skipped={"d.png": "truncated"})
    train, val = read_coco(out / "train.json"), read_coco(out / "val.json")
    assert [(item.id, item.path) for item in train.items] == [(1, items[0].path), (3, items[2].path)]
    assert train.annotations == {}
    assert [item.id for item in val.items] == [2]
    assert val.forest(2).areas.tolist() == [16]
    assert json.loads((out / "skipped.json").read_text()) == [{"file": "d.png", "reason": "truncated"}]


@pytest.mark.parametrize(
    ("text", "problem"), [(None, "source.json: not there"), ("{}", "has no field 'name'"), ("[1]", "'name'")]
)
def test_images_of_nothing_known(tmp_path: Path, text: str | None, problem: str) -> None:
    if text is not None:
        (tmp_path / "source.json").write_text(text)
    with pytest.raises(DataError, match=problem):
        data_name(tmp_path)
