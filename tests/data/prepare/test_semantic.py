"""Semantic sets out of tiny downloads in the official layouts, and their class lists."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from sohes.cli import main
from sohes.data.label_maps import read_label_map, read_listing
from sohes.data.prepare import SEMANTIC_SETS, prepared, resolve_ground_truth
from sohes.data.prepare import semantic_classes as known
from sohes.data.prepare.semantic import PreparedLabels, prepare_semantic
from sohes.errors import DataError
from sohes.probes.data import read_probe_data

from .conftest import box, photo, save

# STEGO's `fine_to_coarse` (github.com/mhamilton723/STEGO, src/data.py, MIT) as runs of the labels 0 to 181: "length x
# class"; PiCIE has the same
STEGO = (
    "1x9 8x11 6x8 10x7 8x6 10x10 8x5 10x2 10x3 6x0 6x1 8x4 2x17 1x22 2x20 1x22 1x15 1x25 1x16 1x13 2x12 2x17 1x23 "
    "2x15 1x17 1x15 1x21 1x15 1x25 5x13 1x22 1x26 2x14 1x15 1x22 2x21 1x24 1x20 1x22 1x15 1x17 1x16 1x15 1x22 "
    "1x24 1x21 1x17 1x25 1x16 1x21 1x17 1x22 1x16 2x21 1x25 1x21 1x26 1x21 1x24 1x20 1x17 1x14 1x21 1x26 1x15 "
    "1x23 1x20 1x21 1x24 1x15 1x24 1x22 1x25 1x15 1x20 2x17 1x22 1x14 7x18 2x26 2x19 1x24"
)


def png(path: Path, values: ArrayLike, *, colours: bool = False) -> None:
    """A label map; with a palette as VOC has it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(np.asarray(values, np.uint8))
    if colours:
        image = image.convert("P")
        image.putdata(np.asarray(values).ravel().tolist())
        image.putpalette(np.random.default_rng(0).integers(0, 256, 768).tolist())
    image.save(path)


def rows(*values: int) -> NDArray[np.uint8]:
    """A map of 6 x 8 px; the rows have these values, the last one for the rest."""
    column = [*values, *[values[-1]] * 6][:6]
    return np.tile(np.array(column, np.uint8)[:, None], (1, 8))


def labels_of(report: PreparedLabels, split: str = "val") -> dict[str, NDArray[np.uint8]]:
    """Label map by the photograph's name, read as a probe reads it."""
    pairs, classes = read_listing(report.path / f"{split}.json")
    assert len(classes) == report.classes
    assert all(image.is_file() for image, _ in pairs)
    return {image.name: read_label_map(labels) for image, labels in pairs}


def voc(root: Path, *, top: str = "VOCdevkit/VOC2012") -> Path:
    """Two images of train, one of val."""
    for split, names in (("train", ("2007_000032", "2007_000039")), ("val", ("2007_000033",))):
        folder = root / top / "ImageSets/Segmentation"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{split}.txt").write_text("".join(f"{name}\n" for name in names))
        for name in names:
            photo(root / top / "JPEGImages" / f"{name}.jpg")
            png(root / top / "SegmentationClass" / f"{name}.png", rows(0, 15, 20, 255), colours=True)
    return root / top


@pytest.mark.parametrize("top", ["VOCdevkit/VOC2012", "VOC2012", "."])
def test_voc(root: Path, tmp_path: Path, top: str) -> None:
    voc(root, top=top)
    report = prepare_semantic("voc2012", root, tmp_path / "out")
    assert np.array_equal(labels_of(report)["2007_000033.jpg"], rows(0, 15, 20, 255))
    assert list(labels_of(report, "train")) == ["2007_000032.jpg", "2007_000039.jpg"]
    assert report.summary().startswith("2 train images, 1 val images, 21 classes\n")
    assert report.warnings == [
        "the download has 2 train images, the official one 1464; is it complete?",
        "the download has 1 val images, the official one 1449; is it complete?",
    ]


def test_voc_aug(root: Path, tmp_path: Path) -> None:
    top = voc(root)
    (top / "ImageSets/Segmentation/trainaug.txt").write_text("2008_000002\n")
    photo(top / "JPEGImages/2008_000002.jpg")
    png(top / "SegmentationClassAug/2008_000002.png", rows(20))
    report = prepare_semantic("voc2012_aug", root, tmp_path / "out")
    assert {name: set(np.unique(labels)) for name, labels in labels_of(report, "train").items()} == {
        "2008_000002.jpg": {20}
    }
    assert list(labels_of(report)) == ["2007_000033.jpg"]


def test_coco_stuff27(root: Path, tmp_path: Path) -> None:
    for split in ("train2017", "val2017"):
        photo(root / split / "000000000139.jpg")
        # a value is an id less 1: person, the last vehicle, banner, wood
        png(root / "stuffthingmaps_trainval2017" / split / "000000000139.png", rows(0, 8, 91, 181, 255))
    report = prepare_semantic("coco_stuff27", root, tmp_path / "out")
    names = [*known.COCO_STUFF27]
    expected = [names.index(name) for name in ("person", "vehicle", "textile", "solid")]
    assert np.array_equal(labels_of(report)["000000000139.jpg"], rows(*expected, 255))


def curated(root: Path, *, top: str = ".") -> dict[str, Path]:
    """Three labelled photographs in each split; lists of PiCIE's repository name two of train, one of val."""
    lists = {}
    for split, names in (("train", ("000000000009", "000000000030")), ("val", ("000000000285",))):
        for name in ("000000000009", "000000000030", "000000000285"):
            photo(root / f"{split}2017" / f"{name}.jpg")
            png(root / "stuffthingmaps_trainval2017" / f"{split}2017" / f"{name}.png", rows(0, 105))
        lists[split] = root / top / f"curated/{split}2017/Coco164kFull_Stuff_Coarse_7.txt"
        lists[split].parent.mkdir(parents=True, exist_ok=True)
        lists[split].write_text("".join(f"{name}\n" for name in names))
    return lists


@pytest.mark.parametrize("top", [".", "PiCIE"])
def test_curated_lists_of_coco_stuff27(root: Path, tmp_path: Path, top: str) -> None:
    lists = curated(root, top=top)
    report = prepare_semantic("coco_stuff27", root, tmp_path / "out")
    assert list(labels_of(report, "train")) == ["000000000009.jpg", "000000000030.jpg"]
    assert list(labels_of(report)) == ["000000000285.jpg"]
    chosen = {split: f"those of {path.relative_to(root)}" for split, path in lists.items()}
    assert report.summary().startswith(
        f"2 train images ({chosen['train']}), 1 val images ({chosen['val']}), 27 classes\n"
    )
    assert report.warnings == [
        "the list has 2 train images, the official one 49629; is it complete?",
        "the list has 1 val images, the official one 2175; is it complete?",
    ]
    source = json.loads((tmp_path / "out/source.json").read_text())
    assert {split: source[f"{split}_images"] for split in ("train", "val")} == chosen
    notes = read_probe_data(tmp_path / "out").notes
    assert f"train images of coco_stuff27: {chosen['train']}; val images of coco_stuff27: {chosen['val']}" in notes
    lists["val"].write_text("000000000285.jpg\n\n000000000009.jpg\n")  # with suffixes
    assert len(labels_of(prepare_semantic("coco_stuff27", root, tmp_path / "out"))) == 2


def test_without_curated_lists_all_images_are_taken(root: Path, tmp_path: Path) -> None:
    lists = curated(root)
    lists["val"].unlink()
    report = prepare_semantic("coco_stuff27", root, tmp_path / "out")
    assert report.images == {"train": 2, "val": 3}
    assert report.chosen["val"] == "all of the download, which has no list"
    assert report.warnings[1] == "the download has 3 val images, the official one 5000; is it complete?"


def test_a_curated_list_that_does_not_fit_the_download(root: Path, tmp_path: Path) -> None:
    listing = curated(root)["val"]
    (root / "val2017/000000000030.jpg").unlink()
    listing.write_text("000000000009\n000000000030\n000000000285\n000000000724\n")
    with pytest.raises(DataError) as caught:
        prepare_semantic("coco_stuff27", root, tmp_path / "out")
    assert str(caught.value) == (
        f"{listing}: 2 of its 4 images lack their photograph or their label map in the download, the first is "
        "'000000000030'; complete the download, or remove the list to take all images"
    )
    listing.write_text("\n")
    with pytest.raises(DataError, match=r"Coarse_7\.txt: names no image; give the whole list, or remove it"):
        prepare_semantic("coco_stuff27", root, tmp_path / "out")


def test_coco_stuff15(root: Path, tmp_path: Path) -> None:
    for split in ("train", "val"):
        photo(root / f"{split}2017" / "000000000139.jpg")
        # no label, banner, window-other, wood, things
        png(root / f"annotations/stuff_{split}2017_pixelmaps" / "000000000139.png", rows(0, 92, 181, 182, 183))
    report = prepare_semantic("coco_stuff15", root, tmp_path / "out")
    names = sorted(known.COCO_STUFF)
    expected = [names.index(name) for name in ("textile", "window", "solid")]
    assert np.array_equal(labels_of(report)["000000000139.jpg"], rows(255, *expected, 255))


def panoptic(root: Path, segments: list[dict[str, int]]) -> None:
    """Image 139 in both splits; its rows are the segments 0, 1, 300 and 70,000."""
    ids = np.zeros((6, 8), np.int64)
    ids[1], ids[2], ids[3:] = 1, 300, 70_000
    for split in ("train", "val"):
        photo(root / f"{split}2017" / "000000000139.jpg")
        png(
            root / f"annotations/panoptic_{split}2017/000000000139.png",
            np.stack([ids % 256, ids // 256 % 256, ids // 65_536], axis=-1),
        )
        images = [{"id": 139, "file_name": "000000000139.jpg", "height": 6, "width": 8}]
        annotation = {"image_id": 139, "file_name": "000000000139.png", "segments_info": segments}
        save(root / f"annotations/panoptic_{split}2017.json", {"images": images, "annotations": [annotation]})


def test_coco_thing12(root: Path, tmp_path: Path) -> None:
    panoptic(root, [{"id": 1, "category_id": 1}, {"id": 300, "category_id": 90}, {"id": 70_000, "category_id": 184}])
    report = prepare_semantic("coco_thing12", root, tmp_path / "out")
    names = sorted(known.COCO_THINGS)
    expected = rows(255, names.index("person"), names.index("indoor"), 255)  # stuff has no class
    assert np.array_equal(labels_of(report)["000000000139.jpg"], expected)


def test_a_segment_that_nobody_describes(root: Path, tmp_path: Path) -> None:
    panoptic(root, [{"id": 1, "category_id": 1}])
    with pytest.raises(DataError, match=r"no image of coco_thing12 train can be used; .*segment 300 is not in its"):
        prepare_semantic("coco_thing12", root, tmp_path / "out")


@pytest.mark.parametrize("top", ["", "ADEChallengeData2016"])
def test_ade20k(root: Path, tmp_path: Path, top: str) -> None:
    for split in ("training", "validation"):
        photo(root / top / "images" / split / "ADE_0001.jpg")
        png(root / top / "annotations" / split / "ADE_0001.png", rows(0, 1, 150))
    report = prepare_semantic("ade20k_150", root, tmp_path / "out")
    assert np.array_equal(labels_of(report)["ADE_0001.jpg"], rows(255, 0, 149))


@pytest.mark.parametrize(("name", "expected"), [("cityscapes", (0, 255, 18)), ("cityscapes27", (0, 2, 26))])
def test_cityscapes(root: Path, tmp_path: Path, name: str, expected: tuple[int, ...]) -> None:
    for split, town in (("train", "aachen"), ("val", "lindau")):
        stem = f"{town}_000000_000019"
        photo(root / f"leftImg8bit/{split}/{town}/{stem}_leftImg8bit.png")
        png(root / f"gtFine/{split}/{town}/{stem}_gtFine_labelIds.png", rows(3, 7, 9, 33, 255))
        png(root / f"gtFine/{split}/{town}/{stem}_gtFine_instanceIds.png", rows(1))
    report = prepare_semantic(name, root, tmp_path / "out")
    assert np.array_equal(labels_of(report)["lindau_000000_000019_leftImg8bit.png"], rows(255, *expected, 255))


def test_coco_panoptic27(root: Path, tmp_path: Path) -> None:
    images, masks = [], []
    for number, split in ((9, "train2017"), (139, "val2017")):
        name = f"{split}/{number:012}.jpg"
        photo(root / "images" / name)
        images.append({"id": number, "file_name": f"images/{name}", "width": 8, "height": 6})
        for place, (category, height) in enumerate(((187, 6), (1, 2))):  # a person before the sky
            segmentation = box(0, 0, 8, height)
            masks.append(
                {"id": 2 * number + place, "image_id": number, "category_id": category}
                | {
                    "segmentation": segmentation,
                    "area": 1,
                    "bbox": [0, 0, 8, height],
                    "iscrowd": 0,
                    "parent_id": 0,
                }
            )
    categories = [
        {"id": 1, "name": "person", "supercategory": "person", "isthing": 1},
        {"id": 187, "name": "sky-other-merged", "supercategory": "sky", "isthing": 0},
    ]
    save(root / "instances.json", {"images": images, "annotations": masks, "categories": categories})
    report = prepare_semantic("coco_panoptic27", root, tmp_path / "out")
    person, sky = (known.COCO_STUFF27.index(name) for name in ("person", "sky"))
    assert np.array_equal(labels_of(report)["000000000139.jpg"], rows(person, person, sky))
    assert list(labels_of(report, "train")) == ["000000000009.jpg"]


def test_what_cannot_be_used_is_counted_and_named(root: Path, tmp_path: Path) -> None:
    top = voc(root)
    names = ["2007_000033", "a", "b", "c", "d"]
    (top / "ImageSets/Segmentation/val.txt").write_text("\n".join(names))
    photo(top / "JPEGImages/a.jpg")  # without a label map
    png(top / "SegmentationClass/b.png", rows(1))  # without a photograph
    photo(top / "JPEGImages/c.jpg", 9, 6)
    png(top / "SegmentationClass/c.png", rows(1))
    photo(top / "JPEGImages/d.jpg")
    png(top / "SegmentationClass/d.png", rows(1, 21))
    report = prepare_semantic("voc2012", root, tmp_path / "out")
    assert list(labels_of(report)) == ["2007_000033.jpg"]
    assert report.warnings[0].startswith("skipped 4 x image that cannot be used, e.g. ")
    assert "SegmentationClass/a.png is missing" in report.warnings[0]
    assert "JPEGImages/b.jpg is missing" in report.warnings[0]
    assert "c.png is 6 x 8 px" in report.warnings[0]
    (top / "ImageSets/Segmentation/val.txt").write_text("d\n")
    with pytest.raises(DataError, match=r"d\.png: 40 pixels have the label 21, which this data set does not know"):
        prepare_semantic("voc2012", root, tmp_path / "out")


def test_goes_on_where_it_was(root: Path, tmp_path: Path) -> None:
    top, out = voc(root), tmp_path / "out"
    prepare_semantic("voc2012", root, out)
    first = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    kept, again = out / "labels/train/2007_000032.png", out / "labels/val/2007_000033.png"
    kept.write_bytes(first[again] + b" ")  # as new as it is, nobody looks into it
    again.unlink()
    prepare_semantic("voc2012", root, out)
    assert kept.read_bytes() == first[again] + b" "
    os.utime(top / "SegmentationClass/2007_000032.png", (2e9, 2e9))
    prepare_semantic("voc2012", root, out)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == first


def test_a_folder_that_holds_something_else(root: Path, tmp_path: Path) -> None:
    voc(root)
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="a file; --out must be a folder"):
        prepare_semantic("voc2012", root, tmp_path / "file")
    with pytest.raises(DataError, match="holds something else"):
        prepare_semantic("voc2012", root, tmp_path)
    prepare_semantic("voc2012", root, tmp_path / "out")
    (root / "VOCdevkit/VOC2012/ImageSets/Segmentation/trainaug.txt").write_text("2007_000032\n")
    (root / "VOCdevkit/VOC2012/SegmentationClassAug").mkdir()
    with pytest.raises(DataError, match=r"holds another data set, see source\.json"):
        prepare_semantic("voc2012_aug", root, tmp_path / "out")


@pytest.mark.parametrize("name", SEMANTIC_SETS)
def test_an_empty_folder_is_told_everything_it_lacks(root: Path, tmp_path: Path, name: str) -> None:
    dataset = SEMANTIC_SETS[name]
    with pytest.raises(DataError) as caught:
        prepare_semantic(name, root, tmp_path / "out")
    message = str(caught.value)
    assert f"{len(dataset.needs)} of the {len(dataset.needs)} files or folders that {name} needs" in message
    assert all(need.source in message for need in dataset.needs)
    assert not (tmp_path / "out").exists()


def test_command(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SOHES_DATA", str(tmp_path / "data"))
    voc(root)
    assert main(["data", "prepare", "voc2012", "--root", str(root), "--limit", "1"]) == 0
    assert prepared("voc2012") == tmp_path / "data/voc2012"
    assert capsys.readouterr().out.endswith(f"written to {tmp_path / 'data/voc2012'}\n")
    assert len(json.loads((tmp_path / "data/voc2012/train.json").read_text())["items"]) == 1
    assert main(["data", "list"]) == 0
    listing = capsys.readouterr().out
    assert f"voc2012                 {tmp_path / 'data/voc2012'}\n" in listing
    assert "(118,287 train and 5,000 val images, label maps)" in listing
    assert main(["data", "prepare", "voc2021", "--root", str(root)]) == 1
    assert "unknown data set 'voc2021'; did you mean 'voc2012'?" in capsys.readouterr().err
    with pytest.raises(DataError, match="label maps, without masks"):
        resolve_ground_truth("voc2012")


def test_a_probe_reads_it_by_name(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOHES_DATA", str(tmp_path / "data"))
    with pytest.raises(DataError, match="not prepared yet; run: sohes data prepare voc2012 --root DIR"):
        read_probe_data("voc2012")
    voc(root)
    prepare_semantic("voc2012", root, prepared("voc2012"))
    data = read_probe_data("voc2012")
    assert (data.name, len(data.classes), len(data.train), len(data.val)) == ("voc2012", 21, 2, 1)
    assert np.array_equal(data.val[0].label_map(), rows(0, 15, 20, 255))


@pytest.mark.parametrize(
    ("name", "classes", "train", "val"),
    [
        ("voc2012", 21, 1_464, 1_449),
        ("voc2012_aug", 21, 10_582, 1_449),
        ("coco_stuff27", 27, 118_287, 5_000),
        ("coco_thing12", 12, 118_287, 5_000),
        ("coco_stuff15", 15, 118_287, 5_000),
        ("ade20k_150", 150, 20_210, 2_000),
        ("cityscapes", 19, 2_975, 500),
        ("cityscapes27", 27, 2_975, 500),
        ("coco_panoptic27", 27, 40, 100),
    ],
)
def test_official_counts(name: str, classes: int, train: int, val: int) -> None:
    dataset = SEMANTIC_SETS[name]
    assert len(set(dataset.classes)) == len(dataset.classes) == classes
    assert (dataset.train.images, dataset.val.images) == (train, val)


def test_coco_classes() -> None:
    """STEGO's table, and the official super-categories: 80 things of 91 ids, 91 kinds of stuff."""
    runs = [tuple(map(int, run.split("x"))) for run in STEGO.split()]
    expected = [coarse for length, coarse in runs for _ in range(length)]
    assert len(expected) == 182
    assert known.COCO_STUFF27_TABLE[:182].tolist() == expected
    assert set(known.COCO_STUFF27_TABLE[182:255].tolist()) == {-1}
    ids = [category for group in (known.COCO_THINGS | known.COCO_STUFF).values() for category in group]
    assert sorted(ids) == list(range(1, 183))
    assert sum(len(group) for group in known.COCO_STUFF.values()) == 91
    counts = np.bincount(known.COCO_STUFF27_TABLE[:182]).tolist()
    assert counts == [
        6,
        6,
        10,
        10,
        8,
        8,
        8,
        10,
        6,
        1,
        10,
        8,
        2,
        6,
        4,
        11,
        4,
        11,
        7,
        2,
        6,
        11,
        9,
        2,
        6,
        5,
        5,
    ]  # of PiCIE


@pytest.mark.assets
def test_coco_classes_of_the_panoptic_file(assets: Path) -> None:
    for entry in json.loads((assets / "data/coco_panoptic/instances.json").read_text())["categories"]:
        group = (known.COCO_THINGS if entry["isthing"] else known.COCO_STUFF)[entry["supercategory"]]
        assert entry["id"] in group or entry["name"].endswith("-merged")
