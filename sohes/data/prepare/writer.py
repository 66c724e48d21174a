"""The class-agnostic COCO file, written annotation by annotation: a set of millions of masks never lies in memory."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from sohes.data.coco import Annotation, ImageItem, check_segmentation
from sohes.data.coco_writer import annotation_entry, image_entry
from sohes.data.prepare.source import AnnotatedImage
from sohes.data.problems import Problems
from sohes.errors import DataError
from sohes.masks import AREA_CLASSES


class CocoWriter:
    """Writes annotated images as they come; call `finish` after the last.

    Attributes:
        counts: "images"; "masks", and of them "crowds", "with a parent", "size S", "size M" and "size L"; and masks
            "left out", which `problems` explains.
    """

    def __init__(self, file: TextIO, folder: Path, problems: Problems) -> None:
        self.counts: Counter[str] = Counter()
        self._file, self._folder, self._problems = file, folder, problems
        self._images: list[dict[str, Any]] = []
        self._file.write('{"annotations": [')

    def add(self, image: AnnotatedImage) -> None:
        """Write one image's masks, numbered on from those before; those that cannot be used are left out."""
        self._images.append(image_entry(image.item, self._folder))
        self.counts["images"] += 1
        kept = [(i, entry) for i, row in enumerate(image.rows) if (entry := self._entry(row, image.item)) is not None]
        first = self.counts["masks"] + 1
        new_ids = {image.rows[index].id: first + place for place, (index, _) in enumerate(kept)}
        by_id = {row.id: row for row in image.rows}
        for place, (index, entry) in enumerate(kept):
            entry["id"] = first + place
            entry["parent_id"] = self._parent(image.rows[index], by_id, new_ids)
            entry |= {name: column[index] for name, column in image.columns.items()}
            self._file.write(("," if entry["id"] > 1 else "") + "\n" + json.dumps(entry, allow_nan=False))
            self._count(entry)

    def finish(self, categories: Sequence[Mapping[str, Any]], info: Mapping[str, Any]) -> None:
        """Write images, categories and `info`."""
        value = {"images": self._images, "categories": list(categories), "info": info}
        rest = json.dumps(value, allow_nan=False)
        self._file.write("\n], " + rest.removeprefix("{") + "\n")

    def _entry(self, row: Annotation, item: ImageItem) -> dict[str, Any] | None:
        """The entry, id and parent still those of the download; None, and counted, when the mask cannot be used."""
        where = f"mask {row.id} of {item.path.name}"
        try:
            check_segmentation(where, row.segmentation, item.size_hw)
            entry = annotation_entry(row, item)
            if entry["area"] > 0:
                return entry
            self._problems.add("mask without a pixel", where)
        except DataError as error:
            self._problems.add("mask that cannot be used", str(error))
        self.counts["left out"] += 1
        return None

    def _parent(self, row: Annotation, by_id: Mapping[int, Annotation], new_ids: Mapping[int, int]) -> int | None:
        """New id of the closest ancestor that was kept; None for a root."""
        if row.parent_id is not None and row.parent_id not in by_id:
            self._problems.add("parent that does not exist, its parts now roots", f"{row.parent_id} of mask {row.id}")
        above, seen = row.parent_id, {row.id}
        while above is not None and above in by_id and above not in seen:
            if above in new_ids:
                return new_ids[above]
            seen.add(above)
            above = by_id[above].parent_id
        return None

    def _count(self, entry: Mapping[str, Any]) -> None:
        self.counts["masks"] += 1
        self.counts["crowds"] += entry["iscrowd"]
        self.counts["with a parent"] += entry["parent_id"] is not None
        for name, (low, high) in AREA_CLASSES.items():
            self.counts[f"size {name.upper()}"] += low <= entry["area"] < high
