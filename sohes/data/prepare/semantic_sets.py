"""The semantic data sets that `sohes data prepare` knows: where things lie in a download, and how its labels are read.

Counts are those of the official releases.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from sohes.data.coco import ImageItem, ImageSet, read_coco
from sohes.data.label_maps import IGNORE, LabelMap, paint, read_label_map
from sohes.data.prepare import semantic_classes as known
from sohes.data.prepare.catalogue import Need
from sohes.data.prepare.semantic_classes import Table
from sohes.errors import DataError
from sohes.files import read_json, read_text


@dataclass(frozen=True, kw_only=True)
class LabelledFile:
    """An image of a download and its labels.

    Attributes:
        name: of the label map that is written, without a suffix.
        image: the photograph.
        labels: file that the labels come from.
        read: gives them, as classes of the prepared set; DataError when they cannot be used.
    """

    name: str
    image: Path
    labels: Path
    read: Callable[[], LabelMap]


@dataclass(frozen=True, kw_only=True)
class SemanticSplit:
    """One split.

    Attributes:
        needs: what must lie below the root.
        open: its images, out of the found files in the order of `needs`.
        images: how many it has officially.
        listed: a list of some of them, a name on each line, which alone are taken where the download has it.
        listed_images: how many it has officially.
    """

    needs: tuple[Need, ...]
    open: Callable[[Sequence[Path]], list[LabelledFile]]
    images: int
    listed: Need | None = None
    listed_images: int = 0


@dataclass(frozen=True, kw_only=True)
class SemanticSet:
    """One data set with a class for each pixel, or 255 for none."""

    title: str
    page: str
    licence: str
    classes: tuple[str, ...]
    train: SemanticSplit
    val: SemanticSplit

    @property
    def splits(self) -> dict[str, SemanticSplit]:
        """By name."""
        return {"train": self.train, "val": self.val}

    @property
    def needs(self) -> tuple[Need, ...]:
        """Of both splits, each once."""
        return tuple(dict.fromkeys((*self.train.needs, *self.val.needs)))


def by_table(path: Path, table: Table) -> LabelMap:
    """A label map with its values replaced by their classes.

    Raises:
        DataError: it cannot be read, or has a value that is none of the data set's.
    """
    values = read_label_map(path)
    classes = table[values]
    if (unknown := values[classes < 0]).size:
        raise DataError(f"{path}: {unknown.size} pixels have the label {unknown[0]}, which this data set does not know")
    return classes.astype(np.uint8)


def open_listed(files: Sequence[Path], *, table: Table) -> list[LabelledFile]:
    """VOC: names in a text file, label maps and photographs in one folder each."""
    listing, labels, photos = files
    names = [line.split()[0] for line in read_text(listing).splitlines() if line.strip()]
    return [_file(name, labels / f"{name}.png", photos / f"{name}.jpg", table) for name in names]


def open_folders(
    files: Sequence[Path], *, table: Table, labels_end: str = ".png", image_end: str = ".jpg"
) -> list[LabelledFile]:
    """Every label map of a folder and those below; the photographs lie alike in another one."""
    labels, photos = files
    paths = sorted(labels.rglob(f"*{labels_end}"))
    names = [str(path.relative_to(labels)).removesuffix(labels_end) for path in paths]
    return [_file(name, path, photos / f"{name}{image_end}", table) for name, path in zip(names, paths, strict=True)]


def _file(name: str, labels: Path, photo: Path, table: Table) -> LabelledFile:
    return LabelledFile(name=name, image=photo, labels=labels, read=partial(by_table, labels, table))


def open_panoptic(files: Sequence[Path], *, classes: dict[int, int]) -> list[LabelledFile]:
    """COCO panoptic: a PNG whose colour is the id of a segment (R + 256 G + 65,536 B), and its category in the JSON.

    Args:
        files: the JSON, the folder of PNGs, the folder of photographs.
        classes: category id to class; other categories have none.
    """
    source, segments, photos = files
    try:
        value = read_json(source)
        names = {entry["id"]: entry["file_name"] for entry in value["images"]}
        entries = [(entry["image_id"], entry["file_name"], entry["segments_info"]) for entry in value["annotations"]]
        found = [
            LabelledFile(
                name=Path(png).stem,
                image=photos / names[image_id],
                labels=segments / png,
                read=partial(
                    _panoptic,
                    segments / png,
                    {int(row["id"]): classes.get(row["category_id"], IGNORE) for row in rows},
                ),
            )
            for image_id, png, rows in entries
        ]
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{source}: not a COCO panoptic file; {error!r} in 'images' or 'annotations'") from error
    return sorted(found, key=lambda entry: entry.name)


def _panoptic(path: Path, classes: dict[int, int]) -> LabelMap:
    try:
        with Image.open(path, formats=["PNG"]) as image:
            colours = np.asarray(image.convert("RGB"), dtype=np.int64)
    except Exception as error:  # a damaged file can raise almost anything in a decoder
        raise DataError(f"{path}: cannot be read as a PNG ({error or type(error).__name__})") from error
    ids, places = np.unique(colours @ [1, 256, 65_536], return_inverse=True)
    if unknown := set(ids.tolist()) - {0, *classes}:
        raise DataError(f"{path}: segment {min(unknown)} is not in its 'segments_info'")
    return np.array([classes.get(key, IGNORE) for key in ids.tolist()], np.uint8)[places.reshape(colours.shape[:2])]


def open_painted(files: Sequence[Path], *, split: str, names: Sequence[str]) -> list[LabelledFile]:
    """A COCO file of masks with super-categories; `split` is the folder of its images, `names` are the classes."""
    source, photos = files
    images = read_coco(source)
    place = {name: index for index, name in enumerate(names)}
    label: dict[int | None, int] = {
        entry["id"]: place[entry["supercategory"]] for entry in images.categories if entry.get("supercategory") in place
    }
    stuff = {entry["id"] for entry in images.categories if not entry.get("isthing", 1)}
    items = [item for item in images.items if item.path.parent.name == split]
    return [
        LabelledFile(
            name=item.path.stem,
            image=photos / split / item.path.name,
            labels=source,
            read=partial(_painted, images, item, label, stuff),
        )
        for item in items
    ]


def _painted(images: ImageSet, item: ImageItem, label: dict[int | None, int], stuff: set[int | None]) -> LabelMap:
    return paint(images.annotations.get(item.id, ()), item.size_hw, label, stuff)


_COCO_PAGE = "https://cocodataset.org/#download"
_COCO_LICENCE = "annotations CC BY 4.0; images under their Flickr licences"
_COCO_IMAGES = {"train": 118_287, "val": 5_000}
_CURATED_IMAGES = {"train": 49_629, "val": 2_175}  # of IIC, PiCIE and STEGO


def _coco_photos(split: str) -> Need:
    return Need(
        (f"{split}2017", f"images/{split}2017", f"coco/images/{split}2017"),
        f"http://images.cocodataset.org/zips/{split}2017.zip",
    )


def _voc(split: str, images: int, *, augmented: bool = False) -> SemanticSplit:
    """`augmented`: SBD's masks added, by the lists and label maps that DeepLab's users share."""
    top = ("VOCdevkit/VOC2012/", "VOC2012/", "")
    archive = "http://host.robots.ox.ac.uk/pascal/VOC/voc2012/VOCtrainval_11-May-2012.tar"
    lists = [f"ImageSets/Segmentation/{split}.txt"]
    labels, source = "SegmentationClass", archive
    if augmented:
        lists = [
            f"ImageSets/{where}/{name}.txt"
            for where in ("Segmentation", "SegmentationAug")
            for name in ("trainaug", "train_aug")
        ]
        labels, source = "SegmentationClassAug", "SegmentationClassAug.zip and trainaug.txt: SBD's masks as PNG"
    return SemanticSplit(
        needs=(
            Need(tuple(f"{folder}{name}" for name in lists for folder in top), source),
            Need(tuple(f"{folder}{labels}" for folder in top), source),
            Need(tuple(f"{folder}JPEGImages" for folder in top), archive),
        ),
        open=partial(open_listed, table=known.VOC_TABLE),
        images=images,
    )


def _voc_set(title: str, train: SemanticSplit) -> SemanticSet:
    return SemanticSet(
        title=title,
        page="http://host.robots.ox.ac.uk/pascal/VOC/voc2012/",
        licence="images under Flickr's terms, research use",
        classes=known.VOC,
        train=train,
        val=_voc("val", 1_449),
    )


def _coco(title: str, classes: tuple[str, ...], split: Callable[[str], SemanticSplit]) -> SemanticSet:
    return SemanticSet(
        title=title,
        page=_COCO_PAGE,
        licence=_COCO_LICENCE,
        classes=classes,
        train=split("train"),
        val=split("val"),
    )


def _thing_and_stuff_maps(split: str) -> SemanticSplit:
    maps = Need(
        (f"stuffthingmaps_trainval2017/{split}2017", f"stuffthingmaps/{split}2017", f"annotations/{split}2017"),
        "http://calvin.inf.ed.ac.uk/wp-content/uploads/data/cocostuffdataset/stuffthingmaps_trainval2017.zip",
    )
    return SemanticSplit(
        needs=(maps, _coco_photos(split)),
        open=partial(open_folders, table=known.COCO_STUFF27_TABLE),
        images=_COCO_IMAGES[split],
        listed=Need(
            tuple(f"{top}curated/{split}2017/Coco164kFull_Stuff_Coarse_7.txt" for top in ("", "*/")),
            "https://github.com/janghyuncho/PiCIE",
        ),
        listed_images=_CURATED_IMAGES[split],
    )


def _stuff_maps(split: str) -> SemanticSplit:
    name = f"stuff_{split}2017_pixelmaps"
    maps = Need(
        (f"annotations/{name}", name, f"stuff_annotations/{name}"),
        f"{name}.zip inside http://images.cocodataset.org/annotations/stuff_annotations_trainval2017.zip",
    )
    return SemanticSplit(
        needs=(maps, _coco_photos(split)),
        open=partial(open_folders, table=known.COCO_STUFF15_TABLE),
        images=_COCO_IMAGES[split],
    )


def _panoptic_maps(split: str) -> SemanticSplit:
    name = f"panoptic_{split}2017"
    archive = "http://images.cocodataset.org/annotations/panoptic_annotations_trainval2017.zip"
    return SemanticSplit(
        needs=(
            Need((f"annotations/{name}.json", f"{name}.json"), archive),
            Need((f"annotations/{name}", name), f"{name}.zip inside {archive}"),
            _coco_photos(split),
        ),
        open=partial(open_panoptic, classes=known.coco_labels(known.COCO_THING12)),
        images=_COCO_IMAGES[split],
    )


def _panoptic_subset(split: str, images: int) -> SemanticSplit:
    return SemanticSplit(
        needs=(Need(("instances.json",), "this set's folder"), Need(("images",), "this set's folder")),
        open=partial(open_painted, split=f"{split}2017", names=known.COCO_STUFF27),
        images=images,
    )


def _ade20k(split: str, images: int) -> SemanticSplit:
    archive = "http://data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip"
    return SemanticSplit(
        needs=tuple(
            Need((f"ADEChallengeData2016/{kind}/{split}", f"{kind}/{split}"), archive)
            for kind in ("annotations", "images")
        ),
        open=partial(open_folders, table=known.ADE20K_TABLE),
        images=images,
    )


def _cityscapes(title: str, classes: tuple[str, ...], table: Table) -> SemanticSet:
    def split(name: str, images: int) -> SemanticSplit:
        return SemanticSplit(
            needs=(
                Need((f"gtFine/{name}", f"gtFine_trainvaltest/gtFine/{name}"), "gtFine_trainvaltest.zip"),
                Need(
                    (f"leftImg8bit/{name}", f"leftImg8bit_trainvaltest/leftImg8bit/{name}"),
                    "leftImg8bit_trainvaltest.zip",
                ),
            ),
            open=partial(open_folders, table=table, labels_end="_gtFine_labelIds.png", image_end="_leftImg8bit.png"),
            images=images,
        )

    return SemanticSet(
        title=title,
        page="https://www.cityscapes-dataset.com/downloads/",
        licence="Cityscapes terms, non-commercial research; registration",
        classes=classes,
        train=split("train", 2_975),
        val=split("val", 500),
    )


SEMANTIC_SETS = {
    "voc2012": _voc_set("PASCAL VOC 2012, train and val", _voc("train", 1_464)),
    "voc2012_aug": _voc_set("PASCAL VOC 2012, trainaug and val", _voc("train", 10_582, augmented=True)),
    "coco_stuff27": _coco("COCO-Stuff, 27 coarse things and stuff", known.COCO_STUFF27, _thing_and_stuff_maps),
    "coco_thing12": _coco("COCO-Thing of Leopart, 12 super-categories", known.COCO_THING12, _panoptic_maps),
    "coco_stuff15": _coco("COCO-Stuff of Leopart, 15 super-categories", known.COCO_STUFF15, _stuff_maps),
    "ade20k_150": SemanticSet(
        title="ADE20K SceneParsing, 150 classes",
        page="http://sceneparsing.csail.mit.edu/",
        licence="BSD 3-clause annotations; images for non-commercial research",
        classes=known.ADE20K,
        train=_ade20k("training", 20_210),
        val=_ade20k("validation", 2_000),
    ),
    "cityscapes": _cityscapes("Cityscapes, fine, 19 classes", known.CITYSCAPES19, known.CITYSCAPES19_TABLE),
    "cityscapes27": _cityscapes("Cityscapes, fine, 27 classes", known.CITYSCAPES27, known.CITYSCAPES27_TABLE),
    "coco_panoptic27": SemanticSet(
        title="COCO 2017 panoptic subset, 27 coarse things and stuff",
        page=_COCO_PAGE,
        licence=_COCO_LICENCE,
        classes=known.COCO_STUFF27,
        train=_panoptic_subset("train", 40),
        val=_panoptic_subset("val", 100),
    ),
}
