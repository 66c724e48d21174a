"""PartImageNet with its wholes: the parts as annotated, and of each super-category in an image the union of its parts.

Parts and wholes keep their names as categories, a part with its super-category, so that segments can be named.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sohes.data.coco import Annotation, check_segmentation
from sohes.data.prepare.coco_style import CocoStyle, by_synset
from sohes.data.prepare.source import AnnotatedImage, Source
from sohes.data.problems import Problems
from sohes.errors import DataError
from sohes.files import read_json
from sohes.rle import Rle, union


def open_partimagenet(root: Path, files: Sequence[Path], problems: Problems) -> Source:
    """Converter; `files` are val.json and the folder of the photographs.

    Raises:
        DataError: no list of categories in which each has an id, a name and a super-category.
    """
    parts = CocoStyle(by_synset)(root, files, problems)
    names = _Names.read(files[0])
    return Source(parts.entries, lambda item: _with_wholes(parts.read(item), names, problems), names.categories)


@dataclass(frozen=True)
class _Names:
    """Categories of parts as the file has them, then those of wholes; and the whole's of each part's, by id."""

    categories: list[dict[str, Any]]
    whole: Mapping[int, int]

    @classmethod
    def read(cls, path: Path) -> _Names:
        try:
            rows = read_json(path)["categories"]
            parts = [{key: row[key] for key in ("id", "name", "supercategory")} for row in rows]
            supers = list(dict.fromkeys(part["supercategory"] for part in parts))
            first = 1 + max(part["id"] for part in parts)
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"{path}: 'categories' must be a list of objects with 'id', 'name' and 'supercategory' ({error!r}); "
                "take the annotations of PartImageNet_OOD.zip"
            ) from error
        ids = {name: first + place for place, name in enumerate(supers)}
        wholes = [{"id": own, "name": name, "supercategory": name} for name, own in ids.items()]
        return cls([*parts, *wholes], {part["id"]: ids[part["supercategory"]] for part in parts})


def _with_wholes(image: AnnotatedImage, names: _Names, problems: Problems) -> AnnotatedImage:
    """The image's parts, then its wholes, which are their parents."""
    item, parts = image.item, []
    first = 1 + max((row.id for row in image.rows), default=0)
    ids: dict[int, int] = {}  # of the wholes, by category
    masks: dict[int, list[Rle]] = {}  # of their parts, likewise
    for row, category in zip(image.rows, image.columns["source_category_id"], strict=True):
        whole = names.whole.get(category) if isinstance(category, int) else None
        if whole is None:
            problems.add("part of an unknown category", f"mask {row.id} of {item.path.name}: category {category!r}")
            continue
        own_id = ids.setdefault(whole, first + len(ids))
        parts.append(replace(row, category_id=category, parent_id=own_id))
        with suppress(DataError):  # what is broken the writer counts and names
            check_segmentation("", row.segmentation, item.size_hw)
            masks.setdefault(whole, []).append(row.rle(item.size_hw))
    wholes = [Annotation(ids[whole], item.id, whole, union(rles)) for whole, rles in masks.items()]
    return AnnotatedImage(item, [*parts, *wholes])
