"""Downloads that are one COCO-style JSON: COCO, LVIS, EntitySeg, PACO, PartImageNet, and sets already in that form."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sohes.data.coco import Annotation, ImageItem
from sohes.data.prepare.scene import Scene, Source, Tally
from sohes.errors import DataError
from sohes.files import read_json

Entry = dict[str, Any]


@dataclass(frozen=True)
class CocoStyle:
    """Converter of a COCO-style JSON, the first of the data set's needs.

    Attributes:
        places: where the file of an entry of 'images' may lie below the root, most likely first.
        keep: whether an entry of 'annotations' counts.
        parent: id of the annotation that an entry is part of; 0 for none.
    """

    places: Callable[[Entry], Sequence[str]]
    keep: Callable[[Entry], bool] = lambda entry: True
    parent: Callable[[Entry], Any] = lambda entry: 0

    def __call__(self, root: Path, files: Sequence[Path], tally: Tally) -> Source:
        """Read the JSON and sort its annotations by image."""
        value = read_json(files[0])
        lists = [value.get(name) if isinstance(value, dict) else None for name in ("images", "annotations")]
        if not all(isinstance(entries, list) for entries in lists):
            raise DataError(f"{files[0]}: must be an object with the lists 'images' and 'annotations'")
        items: dict[int, ImageItem] = {}
        for index, entry in enumerate(value["images"]):
            item = self._item(root, entry)
            if item is None or item.id in items:
                tally.add("images without id, size or file name, or with an id given before", f"images[{index}]")
            else:
                items[item.id] = item
        groups: dict[int, list[Entry]] = {image_id: [] for image_id in items}
        for index, entry in enumerate(value["annotations"]):
            image_id = entry.get("image_id") if isinstance(entry, dict) else None
            if not isinstance(image_id, int) or image_id not in groups:
                tally.add("masks of an unknown image", f"annotations[{index}]")
            elif self.keep(entry):
                groups[image_id].append(entry)
        return Source(list(items.values()), lambda item: self._scene(item, groups[item.id]))

    def _item(self, root: Path, entry: Entry) -> ImageItem | None:
        try:
            paths = [root / place for place in self.places(entry)]
            path = next((path for path in paths if path.is_file()), paths[0])
            item = ImageItem(int(entry["id"]), path, int(entry["height"]), int(entry["width"]))
        except (KeyError, TypeError, ValueError, AttributeError):
            return None
        return item if min(item.size_hw) > 0 else None

    def _scene(self, item: ImageItem, entries: Sequence[Entry]) -> Scene:
        rows = [
            Annotation(
                id=_integer(entry.get("id")),
                image_id=item.id,
                category_id=1,
                segmentation=entry.get("segmentation", []),
                parent_id=_integer(self.parent(entry)),
                iscrowd=int(bool(entry.get("iscrowd"))),
            )
            for entry in entries
        ]
        return Scene(item, rows, {"source_category_id": [entry.get("category_id") for entry in entries]})


def _integer(value: Any) -> int:
    return value if isinstance(value, int) else 0


def in_folder(*folders: str) -> Callable[[Entry], Sequence[str]]:
    """Images lie in one of these folders, under their `file_name`."""
    return lambda entry: [f"{folder}/{entry['file_name']}" for folder in folders]


def by_coco_url(entry: Entry) -> Sequence[str]:
    """LVIS gives no file name; the split and the name are the end of `coco_url`."""
    split, name = str(entry["coco_url"]).split("/")[-2:]
    return [f"{split}/{name}"]


def by_synset(entry: Entry) -> Sequence[str]:
    """ImageNet files begin with their synset; PartImageNet's archive has a folder for each, some copies do not."""
    name = str(entry["file_name"])
    synset = name.split("_")[0]
    return [f"{folder}/{inner}" for folder in ("val", "images/val") for inner in (f"{synset}/{name}", name)]


def is_paco_part(entry: Entry) -> bool:
    """In PACO `obj_ann_id` names the object that an annotation is part of; an object names itself."""
    return entry.get("obj_ann_id") != entry.get("id")


def paco_object(entry: Entry) -> Any:
    """The object that a part belongs to, 0 for an object."""
    return entry.get("obj_ann_id") if is_paco_part(entry) else 0


def given_parent(entry: Entry) -> Any:
    """The parent in sets that have `parent_id` already."""
    return entry.get("parent_id")
