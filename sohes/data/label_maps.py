"""Semantic label maps: painted out of labelled COCO files, read from PNG files, and listed.

What becomes a class of a pair of COCO files:

- The 'categories' of `train.json` define the classes; see `sohes.data.labelled` for those of `val.json`.
- As in COCO's panoptic files, `"isthing": 0` marks stuff: label maps have it, behind all things.
  `"ispart": 1` (generated scenes) marks parts, which are no classes. Unmarked categories are things.
- Only categories with at least one such annotation in train or val become classes, in the order of `train.json`. Those
  of one split alone are named in the notes.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco_mask

from sohes.data.coco import Annotation, ImageItem, ImageSet
from sohes.data.labelled import Category, Labelled, few
from sohes.errors import DataError
from sohes.files import read_json, write_json

IGNORE = 255  # value of a pixel without a label; neither trained on nor scored

LabelMap = NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class LabelledClasses:
    """Images of both splits, the categories that become classes, and what a reader of scores should know.

    Attributes:
        sets: "train" and "val", with categories under the ids of train.
        classes: categories in label order.
        notes: images left out, classes of one split alone.
    """

    sets: dict[str, ImageSet]
    classes: list[Category]
    notes: list[str]

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the classes, in label order."""
        return tuple(category["name"] for category in self.classes)

    @property
    def label(self) -> dict[int | None, int]:
        """Label of each category id that is a class."""
        return {category["id"]: index for index, category in enumerate(self.classes)}

    @property
    def stuff(self) -> set[int | None]:
        """Ids of the classes that are painted behind all others."""
        return {category["id"] for category in self.classes if is_stuff(category)}

    def paint(self, split: str, item: ImageItem) -> LabelMap:
        """Label map (H, W) uint8 of an image."""
        return paint(self.sets[split].annotations.get(item.id, ()), item.size_hw, self.label, self.stuff)


def semantic_classes(labelled: Labelled) -> LabelledClasses:
    """The classes of label maps: every category but parts.

    Raises:
        DataError: no labels in a split; fewer than two classes or more than 255.
    """
    found = find_classes(labelled, lambda category, row: not category.get("ispart"), "any category", least=2)
    if len(found.classes) > IGNORE:
        raise DataError(
            f"{labelled.train.source}: {len(found.classes)} classes; a label map holds at most {IGNORE}. Give a file "
            "with fewer 'categories'"
        )
    return found


def find_classes(
    labelled: Labelled, counts: Callable[[Category, Annotation], bool], kind: str, *, least: int
) -> LabelledClasses:
    """The categories that become classes.

    Args:
        labelled: both splits.
        counts: says which annotations make their category a class; crowds never do.
        kind: the same in words.
        least: number of classes needed.

    Raises:
        DataError: no such annotation in a split; too few classes.
    """
    sets = {"train": labelled.train, "val": labelled.val}
    by_id = {category["id"]: category for category in labelled.train.categories}
    seen: dict[str, set[int | None]] = {}
    for split, images in sets.items():
        rows = [row for group in images.annotations.values() for row in group if not row.iscrowd]
        seen[split] = {row.category_id for row in rows if counts(by_id[row.category_id], row)}
        if not seen[split]:
            raise DataError(f"{images.source}: no annotations ({kind}); labels are needed in train and in val")
    classes = [category for key, category in by_id.items() if key in seen["train"] | seen["val"]]
    if len(classes) < least:
        names = ", ".join(category["name"] for category in classes)
        raise DataError(
            f"{labelled.train.source}: {len(classes)} class(es) with annotations ({kind}): {names}; at least {least} "
            "needed. Give a file whose 'categories' name the kinds of objects"
        )
    present = {
        split: [index for index, category in enumerate(classes) if category["id"] in keys]
        for split, keys in seen.items()
    }
    notes = [*labelled.notes, *one_sided([category["name"] for category in classes], present)]
    return LabelledClasses(sets=sets, classes=classes, notes=notes)


def one_sided(names: Sequence[str], present: Mapping[str, Collection[int]]) -> list[str]:
    """Notes on the classes that occur in one split alone, out of the labels that occur in "train" and in "val"."""
    notes = []
    for split, other, so in (("train", "val", "nothing to score"), ("val", "train", "not learned, yet scored")):
        if alone := [names[label] for label in sorted(set(present[split]) - set(present[other]))]:
            notes.append(f"{len(alone)} of {len(names)} classes occur in {split} alone ({so}): {few(alone)}")
    return notes


def is_stuff(category: Category) -> bool:
    """Whether a category is amorphous, and lies behind all things."""
    return not category.get("isthing", 1)


def paint(
    rows: Sequence[Annotation], size_hw: tuple[int, int], label: Mapping[int | None, int], stuff: Collection[int | None]
) -> LabelMap:
    """Label map (H, W) uint8 of one image's masks, 255 where none lies.

    Stuff is painted before things, and larger masks before smaller ones, so that what lies in front shows.

    Args:
        rows: masks; those whose category is not in `label` are left out.
        size_hw: of the image, px.
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


def read_label_map(path: Path) -> LabelMap:
    """Label map (H, W) uint8 of a PNG file with one channel: grey values, or places in a palette, are the labels.

    Raises:
        DataError: missing, damaged, of several channels, or with values above 255.
    """
    try:
        with Image.open(path, formats=["PNG"]) as image:
            mode, values = image.mode, np.asarray(image)
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such label map") from error
    except Exception as error:  # a damaged file can raise almost anything
        raise DataError(f"{path}: cannot be read as a PNG label map ({error or type(error).__name__})") from error
    if values.ndim != 2:
        raise DataError(
            f"{path}: a picture of mode {mode}, no label map; labels are the values of one channel (grey or palette). "
            "Convert its colours to class numbers"
        )
    if values.min() < 0 or values.max() > IGNORE:
        raise DataError(
            f"{path}: labels {values.min()} to {values.max()}; they must lie in 0 to 254, 255 for pixels without one"
        )
    return values.astype(np.uint8)


def write_listing(path: Path, items: Sequence[tuple[Path, Path]], classes: Sequence[str], **also: Any) -> None:
    """Write a list of images and their label maps, as JSON: what heads and probes read.

    `{"classes": […], "items": [{"img_path", "seg_map_path"}]}`, paths absolute.

    Args:
        path: of the file.
        items: image and PNG label map.
        classes: names, in label order.
        also: further fields.
    """
    entries = [{"img_path": str(image.resolve()), "seg_map_path": str(mask.resolve())} for image, mask in items]
    write_json(path, {**also, "classes": list(classes), "items": entries})


def read_listing(path: Path) -> tuple[list[tuple[Path, Path]], tuple[str, ...]]:
    """Images with their label maps, and class names, of a file of `write_listing`; relative paths from its folder.

    Raises:
        DataError: not such a file; the message names the field.
    """
    value = read_json(path)
    try:
        classes = tuple(map(str, value["classes"]))
        items = [(path.parent / entry["img_path"], path.parent / entry["seg_map_path"]) for entry in value["items"]]
    except (KeyError, TypeError) as error:
        raise DataError(
            f"{path}: not a list of label maps ({type(error).__name__}: {error}); it needs the fields 'classes' and "
            "'items', each item with 'img_path' and 'seg_map_path'"
        ) from error
    return items, classes
