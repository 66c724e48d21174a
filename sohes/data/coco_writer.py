"""COCO files as this project writes them: masks as compressed RLE, null as the `parent_id` of a root."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sohes.data.coco import Annotation, ImageItem
from sohes.data.label_store import LabelStore
from sohes.files import atomic_path, write_json
from sohes.rle import rle_areas, rle_boxes_xywh


def write_coco(
    path: Path,
    items: Iterable[ImageItem],
    annotations: Mapping[int, Sequence[Annotation]],
    categories: Sequence[Mapping[str, Any]],
    *,
    info: Mapping[str, Any] | None = None,
) -> None:
    """Write a COCO file, masks as RLE. A `file_name` is relative for images inside the file's folder, else absolute."""
    folder = Path(path).resolve().parent
    items = list(items)
    images = [image_entry(item, folder) for item in items]
    rows = [annotation_entry(row, item) for item in items for row in annotations.get(item.id, ())]
    value = {"info": dict(info or {}), "images": images, "annotations": rows, "categories": list(categories)}
    write_json(path, value, indent=None)


def image_entry(item: ImageItem, folder: Path) -> dict[str, Any]:
    """An entry of 'images' for a file in `folder`, which must be resolved."""
    full = item.path.resolve()
    name = full.relative_to(folder) if full.is_relative_to(folder) else full
    return {"id": item.id, "file_name": name.as_posix(), "width": item.width, "height": item.height}


def annotation_entry(row: Annotation, item: ImageItem) -> dict[str, Any]:
    """An entry of 'annotations'; area and box are the mask's own, in px."""
    rle = row.rle(item.size_hw)
    return {
        "id": row.id,
        "image_id": item.id,
        "category_id": 1 if row.category_id is None else row.category_id,
        "segmentation": rle,
        "area": int(rle_areas([rle])[0]),
        "bbox": rle_boxes_xywh([rle])[0].tolist(),
        "iscrowd": row.iscrowd,
        "parent_id": row.parent_id,
    }


def export_coco(store: LabelStore, path: Path) -> None:
    """Write a store as one COCO file: category 1 "entity", `parent_id` (null: root), `score`. Memory: a few images.

    Images are named relative to the folder that all of them share, which `info.image_root` holds, since most readers
    join a folder of their own with the name.
    """
    root = _shared_folder(store.files.values())
    with atomic_path(Path(path)) as temporary, temporary.open("w", encoding="utf-8") as out:
        out.write(f'{{"info": {json.dumps({"image_root": root})}, "images": [')
        for index, row in enumerate(store.rows()):
            name = os.path.relpath(row["file"], root) if root else row["file"]
            image = {"id": row["image_id"], "file_name": name, "width": row["width"], "height": row["height"]}
            out.write((",\n" if index else "\n") + json.dumps(image))
        out.write('\n], "annotations": [')
        written = 0
        for image_id, forest in store:
            for entry in forest.to_coco(image_id=image_id, first_id=written + 1):
                out.write((",\n" if written else "\n") + json.dumps(entry))
                written += 1
        out.write('\n], "categories": [{"id": 1, "name": "entity"}]}\n')


def _shared_folder(files: Iterable[str]) -> str:
    """The deepest folder that holds all files, as they name it; "" where there is none."""
    folders = {os.path.dirname(file) for file in files}
    try:
        return os.path.commonpath(folders) if folders else ""
    except ValueError:  # some are absolute, some are not
        return ""
