"""Labelled COCO files as the two forms the heads train on: semantic label maps, and instances with contiguous ids.

What becomes a class:

- The 'categories' of `train.json` define the classes; see `sohes.data.labelled` for those of `val.json`.
- As in COCO's panoptic files, `"isthing": 0` marks stuff: semantic maps have it, behind all things; instances do not.
  `"ispart": 1` (generated scenes) marks parts, which are classes of neither. Unmarked categories are things.
- Instances are the roots of things. Crowds stay marked as such: MMDet does not train on them, and COCO's AP does not
  count them.
- Only categories with at least one such annotation in train or val become classes, in the order of `train.json`. Those
  of one split alone are named in the notes.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco_mask

from sohes.data.coco import Annotation, ImageItem, ImageSet
from sohes.data.coco_writer import write_coco
from sohes.data.labelled import Category, few, read_labelled
from sohes.errors import DataError
from sohes.files import atomic_path, read_json, write_json
from sohes.progress import track
from sohes.records import content_hash

IGNORE = 255  # value of a pixel without a label; neither trained on nor scored

LabelMap = NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class HeadData:
    """Data that a head's datasets read.

    Attributes:
        classes: names, in label order.
        train, val: semantic: lists of image and label map; instance: COCO files. Image paths in them are absolute.
        n_train, n_val: images in them.
        notes: what a reader of the scores should know: images left out, classes of one split alone.
    """

    classes: tuple[str, ...]
    train: Path
    val: Path
    n_train: int
    n_val: int
    notes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class _Classes:
    """Images of both splits, the categories that become classes, and each such category id's class index."""

    sets: dict[str, ImageSet]
    classes: list[Category]
    notes: list[str]

    @property
    def label(self) -> dict[int | None, int]:
        return {category["id"]: index for index, category in enumerate(self.classes)}

    def head_data(self, out: Path) -> HeadData:
        return HeadData(
            classes=tuple(category["name"] for category in self.classes),
            train=out / "train.json",
            val=out / "val.json",
            n_train=len(self.sets["train"]),
            n_val=len(self.sets["val"]),
            notes=tuple(self.notes),
        )


def write_label_maps(data: Path, out: Path) -> HeadData:
    """Paint the masks of `data/train.json` and `data/val.json` into one PNG per image, below `out`.

    A pixel's value is its class counted from 0, or 255 where no mask lies: such pixels are ignored in training and in
    the score. Stuff is painted before things, and larger masks before smaller ones, so that what lies in front shows.
    `out` then holds train.json and val.json:
    `{"source": hash, "classes": […], "items": [{"img_path", "seg_map_path"}]}`.
    A split whose file is there for the same source is kept as it is.

    Raises:
        DataError: as `read_labelled`; no labels in a split; fewer than two classes or more than 255.
    """
    found = _classes(data, lambda category, row: not category.get("ispart"), "any category", least=2)
    if len(found.classes) > IGNORE:
        raise DataError(f"{data}: {len(found.classes)} classes; a label map holds at most {IGNORE}")
    for split, images in found.sets.items():
        _write_split_maps(Path(out), split, images, found)
    return found.head_data(Path(out))


def write_instances(data: Path, out: Path) -> HeadData:
    """Write `out/train.json` and `out/val.json`: roots of things only, ids from 1, those of categories in label order.

    Raises:
        DataError: as `write_label_maps`, but one class is enough.
    """

    def counts(category: Category, row: Annotation) -> bool:
        return not (_is_stuff(category) or category.get("ispart")) and row.parent_id is None

    found = _classes(data, counts, "root annotations of things", least=1)
    label = found.label
    named = [{"id": index, "name": category["name"]} for index, category in enumerate(found.classes, start=1)]
    for split, images in found.sets.items():
        numbers = itertools.count(1)  # pycocotools takes a match with annotation 0 for none
        rows = {
            image_id: [
                replace(row, id=next(numbers), category_id=label[row.category_id] + 1)
                for row in group
                if row.category_id in label and row.parent_id is None
            ]
            for image_id, group in images.annotations.items()
        }
        write_coco(Path(out) / f"{split}.json", [_absolute(item) for item in images.items], rows, named)
    return found.head_data(Path(out))


def paint(
    rows: Sequence[Annotation], size_hw: tuple[int, int], label: Mapping[int | None, int], stuff: Collection[int | None]
) -> LabelMap:
    """Label map (H, W) uint8 of one image's masks.

    Args:
        rows: masks; those whose category is not in `label` are left out.
        label: category id to class index.
        stuff: category ids painted before all others.
    """
    known = [row for row in rows if row.category_id in label]
    rles = [row.rle(size_hw) for row in known]
    areas = coco_mask.area(rles) if rles else []
    order = sorted(range(len(known)), key=lambda i: (known[i].category_id not in stuff, -int(areas[i])))
    label_map = np.full(size_hw, IGNORE, dtype=np.uint8)
    for index in order:
        label_map[coco_mask.decode(rles[index]).astype(bool)] = label[known[index].category_id]
    return label_map


def _write_split_maps(out: Path, split: str, images: ImageSet, found: _Classes) -> None:
    listing = out / f"{split}.json"
    names = [category["name"] for category in found.classes]
    label = found.label
    stuff = {category["id"] for category in found.classes if _is_stuff(category)}
    file = images.source
    chosen = [[item.id for item in images.items], sorted(label.items()), sorted(stuff)]
    source = content_hash([str(file.resolve()), file.read_text(encoding="utf-8"), names, chosen])
    if listing.exists() and read_json(listing)["source"] == source:
        return
    entries = []
    for item in track(images.items, f"painting {split} label maps"):
        path = out.resolve() / split / f"{item.id:012d}.png"
        with atomic_path(path) as temporary:
            Image.fromarray(paint(images.annotations.get(item.id, ()), item.size_hw, label, stuff)).save(temporary)
        entries.append({"img_path": str(_absolute(item).path), "seg_map_path": str(path)})
    write_json(listing, {"source": source, "classes": names, "items": entries})


def _classes(data: Path, counts: Callable[[Category, Annotation], bool], kind: str, *, least: int) -> _Classes:
    """Read both splits; `counts` says which annotations make their category a class, and `kind` the same in words."""
    labelled = read_labelled(Path(data) / "train.json", Path(data) / "val.json")
    sets = {"train": labelled.train, "val": labelled.val}
    by_id = {category["id"]: category for category in labelled.train.categories}
    seen: dict[str, set[int | None]] = {}
    for split, images in sets.items():
        rows = [row for group in images.annotations.values() for row in group if not row.iscrowd]
        seen[split] = {row.category_id for row in rows if counts(by_id[row.category_id], row)}
        if not seen[split]:
            raise DataError(f"{images.source}: no annotations ({kind}); the heads need labels in train and in val")
    classes = [category for key, category in by_id.items() if key in seen["train"] | seen["val"]]
    if len(classes) < least:
        names = ", ".join(category["name"] for category in classes)
        raise DataError(
            f"{labelled.train.source}: {len(classes)} class(es) with annotations ({kind}): {names}; at least {least} "
            "needed. Give a file whose 'categories' name the kinds of objects"
        )
    notes = list(labelled.notes)
    for split, other, so in (("train", "val", "nothing to score"), ("val", "train", "not learned, yet scored")):
        if alone := [category["name"] for category in classes if category["id"] not in seen[other]]:
            notes.append(f"{len(alone)} of {len(classes)} classes occur in {split} alone ({so}): {few(alone)}")
    return _Classes(sets=sets, classes=classes, notes=notes)


def _is_stuff(category: Category) -> bool:
    return not category.get("isthing", 1)


def _absolute(item: ImageItem) -> ImageItem:
    return replace(item, path=item.path.resolve())
