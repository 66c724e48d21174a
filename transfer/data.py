"""Labelled COCO files as the two forms the heads train on: semantic label maps, and instances with contiguous ids.

What becomes a class of label maps `sohes.data.label_maps` says. Instances are the roots of things. Crowds stay marked
as such: MMDet does not train on them, and COCO's AP does not count them.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image

from sohes.data.coco import Annotation, ImageItem
from sohes.data.coco_writer import write_coco
from sohes.data.label_maps import LabelledClasses, find_classes, is_stuff, semantic_classes, write_listing
from sohes.data.labelled import Category, Labelled, read_labelled
from sohes.files import atomic_path, read_json
from sohes.progress import track
from sohes.records import content_hash


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


def write_label_maps(data: Path, out: Path) -> HeadData:
    """Paint the masks of `data/train.json` and `data/val.json` into one PNG per image, below `out`.

    A pixel's value is its class counted from 0, or 255 where no mask lies: such pixels are ignored in training and in
    the score. `out` then holds train.json and val.json, see `sohes.data.label_maps.write_listing`. A split whose file
    is there for the same source is kept as it is.

    Raises:
        DataError: as `read_labelled`; no labels in a split; fewer than two classes or more than 255.
    """
    found = semantic_classes(_read(data))
    for split in found.sets:
        _write_split_maps(Path(out), split, found)
    return _head_data(found, Path(out))


def write_instances(data: Path, out: Path) -> HeadData:
    """Write `out/train.json` and `out/val.json`: roots of things only, ids from 1, those of categories in label order.

    Raises:
        DataError: as `write_label_maps`, but one class is enough.
    """

    def counts(category: Category, row: Annotation) -> bool:
        return not (is_stuff(category) or category.get("ispart")) and row.parent_id is None

    found = find_classes(_read(data), counts, "root annotations of things", least=1)
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
    return _head_data(found, Path(out))


def _write_split_maps(out: Path, split: str, found: LabelledClasses) -> None:
    listing, images = out / f"{split}.json", found.sets[split]
    file = images.source
    chosen = [[item.id for item in images.items], sorted(found.label.items()), sorted(found.stuff)]
    source = content_hash([str(file.resolve()), file.read_text(encoding="utf-8"), list(found.names), chosen])
    if listing.exists() and read_json(listing)["source"] == source:
        return
    pairs = []
    for item in track(images.items, f"painting {split} label maps"):
        path = out / split / f"{item.id:012d}.png"
        with atomic_path(path) as temporary:
            Image.fromarray(found.paint(split, item)).save(temporary)
        pairs.append((item.path, path))
    write_listing(listing, pairs, found.names, source=source)


def _read(data: Path) -> Labelled:
    return read_labelled(Path(data) / "train.json", Path(data) / "val.json")


def _head_data(found: LabelledClasses, out: Path) -> HeadData:
    return HeadData(
        classes=found.names,
        train=out / "train.json",
        val=out / "val.json",
        n_train=len(found.sets["train"]),
        n_val=len(found.sets["val"]),
        notes=tuple(found.notes),
    )


def _absolute(item: ImageItem) -> ImageItem:
    return replace(item, path=item.path.resolve())
