from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sohes.data.label_maps import write_listing
from sohes.data.scenes.scene import write_scenes
from sohes.errors import DataError
from sohes.probes.data import patch_shares, read_probe_data
from tests.probes.synthetic import NAMES, SIZE_HW, write_folder


def test_a_folder_of_label_maps(tmp_path: Path) -> None:
    data = read_probe_data(write_folder(tmp_path / "bands"))
    assert (data.name, data.classes, data.notes) == ("bands", NAMES, ())
    assert (len(data.train), len(data.val), data.of_train, data.of_val) == (4, 3, 4, 3)
    item = data.val[1]
    assert (item.name, item.size_hw) == ("01.png", SIZE_HW)
    label_map = item.label_map()
    assert (label_map.shape, label_map.dtype) == (SIZE_HW, np.uint8)
    assert set(np.unique(label_map)) == {0, 1, 2, 255}
    few = read_probe_data(tmp_path / "bands", max_train=2, max_val=1)
    assert (len(few.train), len(few.val), few.of_train, few.of_val) == (2, 1, 4, 3)
    assert few.val == data.val[:1]


def test_classes_without_names_are_numbered(tmp_path: Path) -> None:
    (write_folder(tmp_path) / "classes.txt").unlink()
    assert read_probe_data(tmp_path).classes == ("class 0", "class 1", "class 2")


def test_classes_that_do_not_occur_are_named(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, train=1, val=1)
    (folder / "classes.txt").write_text("rose\ngrass\nsky\nunicorn\n")
    mask = folder / "masks" / "val" / "00.png"
    label_map = np.asarray(Image.open(mask)).copy()
    label_map[label_map == 2] = 1
    Image.fromarray(label_map).save(mask)
    assert read_probe_data(folder).notes == (
        "1 of 4 classes never occur: unicorn",
        "1 of 4 classes occur in train alone (nothing to score): sky",
    )


def test_coco_files_are_painted(tmp_path: Path) -> None:
    write_scenes(tmp_path / "scenes", train=2, val=1, size=64, seed=0)
    data = read_probe_data(tmp_path / "scenes")
    assert (data.name, len(data.train), len(data.val)) == ("generated scenes", 2, 1)
    assert "sky" in data.classes or "water" in data.classes
    label_map = data.val[0].label_map()
    assert label_map.shape == (64, 64)
    assert set(np.unique(label_map).tolist()) - {255} <= set(range(len(data.classes)))


def test_one_coco_file_is_halved(tmp_path: Path) -> None:
    write_scenes(tmp_path, train=4, val=1, size=64, seed=0)
    data = read_probe_data(tmp_path / "train.json")
    assert (len(data.train), len(data.val)) == (2, 2)
    assert not {item.image for item in data.train} & {item.image for item in data.val}
    assert data.notes[0].endswith("train.json: one file; a random half of its images is val (2 of 4)")


def test_lists_and_prepared_sets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_folder(tmp_path / "bands")
    for split in ("train", "val"):
        pairs = [(path, folder / "masks" / split / path.name) for path in sorted((folder / "images" / split).iterdir())]
        write_listing(tmp_path / "sets" / "mine" / f"{split}.json", pairs, NAMES)
    monkeypatch.setenv("SOHES_DATA", str(tmp_path / "sets"))
    data = read_probe_data("mine")
    assert (data.name, data.classes) == ("mine", NAMES)
    assert [item.image for item in data.val] == sorted((folder / "images" / "val").iterdir())


def test_an_image_of_both_splits_is_said(tmp_path: Path) -> None:
    folder = write_folder(tmp_path)
    pairs = [(path, folder / "masks" / "val" / path.name) for path in sorted((folder / "images" / "val").iterdir())]
    for split in ("train", "val"):
        write_listing(tmp_path / "lists" / f"{split}.json", pairs, NAMES)
    (note,) = read_probe_data(tmp_path / "lists").notes
    assert note.startswith("3 images are in train and in val")


def _small(folder: Path) -> None:
    Image.new("L", (SIZE_HW[1] // 2, SIZE_HW[0])).save(folder / "masks" / "val" / "01.png")


def _foreign(folder: Path) -> None:
    Image.new("L", SIZE_HW[::-1], 7).save(folder / "masks" / "train" / "00.png")


def _lonely(folder: Path) -> None:
    (folder / "images" / "val" / "02.png").unlink()


def _void(folder: Path) -> None:
    for path in (folder / "masks" / "val").iterdir():
        Image.new("L", SIZE_HW[::-1], 255).save(path)


def _unlabelled(folder: Path) -> None:
    for path in (folder / "masks" / "train").iterdir():
        path.unlink()


def _single(folder: Path) -> None:
    for path in (folder / "masks").rglob("*.png"):
        Image.new("L", SIZE_HW[::-1], 1).save(path)


def _twins(folder: Path) -> None:
    Image.new("RGB", SIZE_HW[::-1]).save(folder / "images" / "val" / "02.jpg")


def _other_classes(folder: Path) -> None:
    for split in ("train", "val"):
        write_listing(folder / f"{split}.json", [], [split])


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (_small, r"1 label map\(s\) of another size than their images: .*01\.png is 40 x 28, 01\.png 40 x 56 \(height"),
        (_foreign, r"00\.png: label 7, but classes.txt has 3 names, so labels end at 2"),
        (_lonely, r"1 label maps without an image in .*images/val: 02"),
        (_void, "all pixels of split 'val' are 255"),
        (_unlabelled, "no label map in split 'train'"),
        (_single, "only 'grass' occurs in the label maps"),
        (_twins, r"would share one label map"),
        (_other_classes, "'classes' of train.json and of val.json differ"),
    ],
)
def test_data_that_cannot_be_used(tmp_path: Path, spoil, words: str) -> None:  # type: ignore[no-untyped-def]
    spoil(write_folder(tmp_path))
    with pytest.raises(DataError, match=words):
        read_probe_data(tmp_path)


def test_what_is_no_data_says_what_is(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file, folder or prepared set"):
        read_probe_data(tmp_path / "nothing")
    with pytest.raises(DataError, match=r"it needs train\.json and val\.json, or images/train and masks/train"):
        read_probe_data(tmp_path)
    (tmp_path / "a.json").write_text(json.dumps({"images": [], "annotations": [], "categories": []}))
    with pytest.raises(DataError):
        read_probe_data(tmp_path / "a.json")


def test_digest_changes_with_any_file(tmp_path: Path) -> None:
    folder = write_folder(tmp_path)
    before = read_probe_data(folder).digest()
    assert read_probe_data(folder).digest() == before
    mask = folder / "masks" / "val" / "00.png"
    label_map = np.asarray(Image.open(mask)).copy()
    label_map[-1] = 255
    Image.fromarray(label_map).save(mask)
    assert read_probe_data(folder).digest() != before


def test_shares_of_patches() -> None:
    """Against counting in loops, on a map that is brought to the size without resampling."""
    rng = np.random.default_rng(0)
    label_map = rng.choice(np.uint8([0, 1, 2, 255]), (12, 12))
    shares = patch_shares(label_map, size_px=12, patch_px=4, classes=3)
    assert (shares.shape, shares.dtype) == ((3, 3, 4), np.float32)
    for row in range(3):
        for column in range(3):
            cell = label_map[4 * row : 4 * row + 4, 4 * column : 4 * column + 4]
            np.testing.assert_allclose(shares[row, column], [(cell == value).mean() for value in (0, 1, 2, 255)])
