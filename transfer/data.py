"""Labelled COCO files as the two forms the heads train on: semantic label maps, and instances with contiguous ids.

Which annotations count:

- A file whose categories carry the supercategories "object" or "stuff" (generated scenes) gives semantic maps of both,
  and instances of "object". Its other categories are parts and are left out.
- Any other file gives semantic maps of all its categories, and instances of all roots, except those of categories
  marked `"isthing": 0`. Crowds stay marked as such: MMDet does not train on them, and COCO's AP does not count them.

Only categories with at least one such annotation in train or val become classes, in the order of the file.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco_mask

from sohes.data.coco import Annotation, ImageItem, ImageSet, read_coco, write_coco
from sohes.errors import DataError
from sohes.files import atomic_path, read_json, write_json
from sohes.progress import track
from sohes.records import content_hash

IGNORE = 255  # value of a pixel without a label; neither trained on nor scored
SPLITS = ("train", "val")

Category = dict[str, Any]
LabelMap = NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class HeadData:
    """Data that a head's datasets read.

    Attributes:
        classes: names, in label order.
        train, val: semantic: lists of image and label map; instance: COCO files. Image paths in them are absolute.
        n_val: images in val.
    """

    classes: tuple[str, ...]
    train: Path
    val: Path
    n_val: int


def write_label_maps(data: Path, out: Path) -> HeadData:
    """Paint the masks of `data/train.json` and `data/val.json` into one PNG an image, below `out`.

    A pixel's value is its class counted from 0, or 255 where no mask lies: such pixels are ignored in training and in
    the score. Stuff is painted before objects, and larger masks before smaller ones, so that what lies in front shows.
    `out` then holds train.json and val.json:
    `{"source": hash, "classes": […], "items": [{"img_path", "seg_map_path"}]}`.
    A split whose file is there for the same source is kept as it is.

    Raises:
        DataError: a file is missing or invalid, fewer than two classes or more than 255, or an empty split.
    """
    sets = {split: read_coco(Path(data) / f"{split}.json") for split in SPLITS}
    categories = _classes(sets, _is_semantic, kind="object or stuff" if _is_scene_like(sets) else "any category")
    if len(categories) > IGNORE:
        raise DataError(f"{data}: {len(categories)} classes; a label map holds at most {IGNORE}")
    for split, images in sets.items():
        _write_split_maps(Path(out), split, images, categories)
    return _head_data(categories, Path(out), sets)


def write_instances(data: Path, out: Path) -> HeadData:
    """Write `out/train.json` and `out/val.json`: root objects only, category ids 1..K in label order.

    Raises:
        DataError: as `write_label_maps`, but one class is enough.
    """
    sets = {split: read_coco(Path(data) / f"{split}.json") for split in SPLITS}
    categories = _classes(sets, _is_instance, kind="root objects", least=1, roots_only=True)
    label = {category["id"]: index + 1 for index, category in enumerate(categories)}
    for split, images in sets.items():
        rows = {
            item.id: [
                replace(row, category_id=label[row.category_id], parent_id=0)
                for row in images.annotations.get(item.id, ())
                if row.category_id in label and row.parent_id == 0
            ]
            for item in images.items
        }
        named = [{"id": label[category["id"]], "name": category["name"]} for category in categories]
        write_coco(Path(out) / f"{split}.json", [_absolute(item) for item in images.items], rows, named)
    return _head_data(categories, Path(out), sets)


def paint(rows: Sequence[Annotation], size_hw: tuple[int, int], label: dict[int, int], stuff: set[int]) -> LabelMap:
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


def _write_split_maps(out: Path, split: str, images: ImageSet, categories: Sequence[Category]) -> None:
    listing = out / f"{split}.json"
    source = content_hash(
        [str(images.source.resolve()), images.source.read_text(encoding="utf-8"), [entry["id"] for entry in categories]]
    )
    if listing.exists() and read_json(listing)["source"] == source:
        return
    label = {category["id"]: index for index, category in enumerate(categories)}
    stuff = {category["id"] for category in categories if category.get("supercategory") == "stuff"}
    entries = []
    for item in track(images.items, f"painting {split} label maps"):
        path = out.resolve() / split / f"{item.id:012d}.png"
        with atomic_path(path) as temporary:
            Image.fromarray(paint(images.annotations.get(item.id, ()), item.size_hw, label, stuff)).save(temporary)
        entries.append({"img_path": str(_absolute(item).path), "seg_map_path": str(path)})
    names = [category["name"] for category in categories]
    write_json(listing, {"source": source, "classes": names, "items": entries})


def _classes(
    sets: dict[str, ImageSet],
    counts: Callable[[Category, bool], bool],
    *,
    kind: str,
    least: int = 2,
    roots_only: bool = False,
) -> list[Category]:
    """Categories that count and occur."""
    train, val = (sets[split] for split in SPLITS)
    scene_like = _is_scene_like(sets)
    by_id = {category["id"]: category for category in [*train.categories, *val.categories]}
    used: set[int] = set()
    for images in (train, val):
        if not images.items:
            raise DataError(f"{images.source}: field 'images' is empty; at least one image is needed")
        rows = [row for group in images.annotations.values() for row in group if not row.iscrowd]
        ids = {row.category_id for row in rows if row.parent_id == 0 or not roots_only} & by_id.keys()
        ids = {key for key in ids if counts(by_id[key], scene_like)}
        if not ids:
            raise DataError(f"{images.source}: no annotations ({kind}); the heads need labels in train and in val")
        used |= ids
    found = [category for key, category in by_id.items() if key in used]
    if len(found) < least:
        names = ", ".join(category["name"] for category in found)
        raise DataError(
            f"{train.source}: {len(found)} class(es) with annotations ({kind}): {names}; at least {least} needed. "
            "Give a file whose 'categories' name the kinds of objects"
        )
    return found


def _is_scene_like(sets: dict[str, ImageSet]) -> bool:
    """Whether the categories are told apart by the supercategories "object" and "stuff"."""
    return any(c.get("supercategory") in ("object", "stuff") for images in sets.values() for c in images.categories)


def _is_semantic(category: Category, scene_like: bool) -> bool:
    return not scene_like or category.get("supercategory") in ("object", "stuff")


def _is_instance(category: Category, scene_like: bool) -> bool:
    if scene_like:
        return category.get("supercategory") == "object"
    return bool(category.get("isthing", 1))


def _absolute(item: ImageItem) -> ImageItem:
    return replace(item, path=item.path.resolve())


def _head_data(categories: Sequence[Category], out: Path, sets: dict[str, ImageSet]) -> HeadData:
    names = tuple(str(category["name"]) for category in categories)
    return HeadData(classes=names, train=out / "train.json", val=out / "val.json", n_val=len(sets["val"]))
