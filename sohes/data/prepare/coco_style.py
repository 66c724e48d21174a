"""Downloads that are one COCO-style JSON: COCO, LVIS, EntitySeg, PACO, PartImageNet, and sets already in that form."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sohes.data.coco import LARGEST_ID, Annotation, ImageItem
from sohes.data.parents import zero_is_root
from sohes.data.prepare.source import AnnotatedImage, Source
from sohes.data.problems import Problems
from sohes.errors import DataError
from sohes.files import read_json

Entry = dict[str, Any]


@dataclass(frozen=True)
class CocoStyle:
    """Converter of a COCO-style JSON, the first of the data set's needs.

    Attributes:
        places: where the file of an entry of 'images' may lie below the root, most likely first.
        keep: whether an entry of 'annotations' counts.
        parent: id of the annotation that an entry is part of; None for none.
    """

    places: Callable[[Entry], Sequence[str]]
    keep: Callable[[Entry], bool] = lambda entry: True
    parent: Callable[[Entry], Any] = lambda entry: None

    def __call__(self, root: Path, files: Sequence[Path], problems: Problems) -> Source:
        """Read the JSON and sort its annotations by image."""
        value = read_json(files[0])
        lists = [value.get(name) if isinstance(value, dict) else None for name in ("images", "annotations")]
        if not all(isinstance(entries, list) for entries in lists):
            raise DataError(f"{files[0]}: must be an object with the lists 'images' and 'annotations'")
        items: dict[int, ImageItem] = {}
        for index, entry in enumerate(value["images"]):
            item = self._item(root, entry)
            if item is None or item.id in items:
                problems.add("image without id, size or file name, or with an id given before", f"images[{index}]")
            else:
                items[item.id] = item
        groups: dict[int, list[Entry]] = {image_id: [] for image_id in items}
        parents: dict[int, int | None] = {}
        for index, entry in enumerate(value["annotations"]):
            image_id = _id(entry.get("image_id")) if isinstance(entry, dict) else None
            own_id = _id(entry.get("id")) if isinstance(entry, dict) else None
            if image_id not in groups:
                problems.add("mask of an unknown image", f"annotations[{index}]")
            elif own_id is None:
                problems.add("mask without an id", f"annotations[{index}]")
            elif self.keep(entry):
                groups[image_id].append(entry)
                parents[own_id] = _id(self.parent(entry))
        if zero_is_root(files[0], parents):
            parents = {own_id: parent or None for own_id, parent in parents.items()}
        return Source(list(items.values()), lambda item: self._annotated(item, groups[item.id], parents))

    def _item(self, root: Path, entry: Entry) -> ImageItem | None:
        try:
            paths = [root / place for place in self.places(entry)]
            path = next((path for path in paths if path.is_file()), paths[0])
            image_id, height, width = (_id(entry[key]) for key in ("id", "height", "width"))
        except (KeyError, TypeError, ValueError, AttributeError):
            return None
        if image_id is None or height is None or width is None or min(height, width) < 1:
            return None
        return ImageItem(image_id, path, height, width)

    def _annotated(
        self, item: ImageItem, entries: Sequence[Entry], parents: Mapping[int, int | None]
    ) -> AnnotatedImage:
        ids = [own_id for entry in entries if (own_id := _id(entry["id"])) is not None]
        rows = [
            Annotation(
                id=own_id,
                image_id=item.id,
                category_id=1,
                segmentation=entry.get("segmentation", []),
                parent_id=parents[own_id],
                iscrowd=int(bool(entry.get("iscrowd"))),
            )
            for own_id, entry in zip(ids, entries, strict=True)
        ]
        return AnnotatedImage(item, rows, {"source_category_id": [entry.get("category_id") for entry in entries]})


def _id(value: Any) -> int | None:
    """An integer of 64 bits, also one written as text, read alike wherever an id may stand; else None."""
    if (isinstance(value, str) and value.strip().isdecimal()) or (isinstance(value, float) and value.is_integer()):
        value = int(value)
    return value if type(value) is int and abs(value) <= LARGEST_ID else None


def in_folder(*folders: str) -> Callable[[Entry], Sequence[str]]:
    """Images lie in one of these folders, under their `file_name`."""
    return lambda entry: [f"{folder}/{entry['file_name']}" for folder in folders]


def by_coco_url(entry: Entry) -> Sequence[str]:
    """LVIS gives no file name; the split and the name are the end of `coco_url`."""
    split, name = str(entry["coco_url"]).split("/")[-2:]
    return [f"{split}/{name}"]


def by_synset(entry: Entry) -> Sequence[str]:
    """ImageNet files begin with their synset; PartImageNet's archive has a folder for each, some copies do not."""
    given = str(entry["file_name"])  # perhaps with that folder
    name = given.rsplit("/", 1)[-1]
    inside = dict.fromkeys((f"{name.split('_')[0]}/{name}", given, name))
    return [f"{folder}/{inner}" for folder in ("val", "images/val") for inner in inside]


def is_paco_part(entry: Entry) -> bool:
    """In PACO `obj_ann_id` names the object that an annotation is part of; an object names itself."""
    return entry.get("obj_ann_id") != entry.get("id")


def paco_object(entry: Entry) -> Any:
    """The object that a part belongs to, None for an object."""
    return entry.get("obj_ann_id") if is_paco_part(entry) else None


def given_parent(entry: Entry) -> Any:
    """The parent in sets that have `parent_id` already."""
    return entry.get("parent_id")
