"""COCO files as this project reads them: masks as RLE or polygons, optionally with `parent_id` (README §2).

Entries that cannot be used are left out, counted and named with their position; the rest is used.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from sohes.data.images import MAX_PIXELS
from sohes.data.parents import first_few, resolve_parents
from sohes.data.problems import Problems
from sohes.errors import DataError
from sohes.files import read_json
from sohes.masks import MaskForest, ancestors_of
from sohes.rle import Rle, check_rle, compressed

Entry = dict[str, Any]
T = TypeVar("T")

_MISSING = object()
_FARTHEST_PX = 100_000
LARGEST_ID = 2**63 - 1  # what a label store holds


@dataclass(frozen=True)
class ImageItem:
    """One image of a set; height and width in px, with EXIF rotation applied."""

    id: int
    path: Path
    height: int
    width: int

    @property
    def size_hw(self) -> tuple[int, int]:
        """Height and width in px."""
        return self.height, self.width


@dataclass(frozen=True)
class Annotation:
    """One mask. `segmentation` is COCO RLE (compressed or not) or a list of polygons in px; a root has no parent.

    `category_id` is None where the file gives none, `score` where it is no prediction.
    """

    id: int
    image_id: int
    category_id: int | None
    segmentation: dict[str, Any] | list[list[float]]
    parent_id: int | None = None
    iscrowd: int = 0
    score: float | None = None

    def rle(self, size_hw: tuple[int, int]) -> Rle:
        """The mask as RLE with text as `counts`."""
        return compressed(self.segmentation, size_hw)


@dataclass(frozen=True)
class ImageSet:
    """Images with, where known, their ground truth.

    Attributes:
        source: the file this was read from.
        items: images in file order.
        annotations: image id to its masks; an image without any has no entry.
        categories: COCO categories.
        image_root: the folder from which the file names its images, where it is not the file's own.
        problems: the entries that were left out.
    """

    source: Path
    items: list[ImageItem]
    annotations: dict[int, list[Annotation]] = field(default_factory=dict)
    categories: list[dict[str, Any]] = field(default_factory=list)
    image_root: Path | None = None
    problems: Problems = field(default_factory=Problems, compare=False)

    def __len__(self) -> int:
        return len(self.items)

    def item(self, image_id: int) -> ImageItem:
        """The image of that id; KeyError when there is none."""
        by_id = self.__dict__.get("_by_id")
        if by_id is None:
            by_id = {item.id: item for item in self.items}
            object.__setattr__(self, "_by_id", by_id)
        return by_id[image_id]

    @property
    def root(self) -> Path:
        """The folder from which the file names its images."""
        return self.source.parent if self.image_root is None else self.image_root

    @property
    def names(self) -> dict[int, str]:
        """Name of each image by id: relative to `root` where it lies below it, else the whole path."""
        within = ((item, item.path.is_relative_to(self.root)) for item in self.items)
        return {item.id: str(item.path.relative_to(self.root) if inside else item.path) for item, inside in within}

    def forest(self, image_id: int) -> MaskForest:
        """Masks of one image, scores 1 where it gives none.

        Attributes: `category_id` (-1 for none), `annotation_id`, `iscrowd`.
        """
        rows = self.annotations.get(image_id, [])
        size_hw = self.item(image_id).size_hw
        place: dict[int | None, int] = {row.id: index for index, row in enumerate(rows)}
        parent = np.array([place.get(row.parent_id, -1) for row in rows], dtype=np.int64)
        return MaskForest(
            size_hw=size_hw,
            rles=[row.rle(size_hw) for row in rows],
            scores=np.array([1.0 if row.score is None else row.score for row in rows], dtype=np.float32),
            ancestor=ancestors_of(parent),
            parent=parent,
            attributes={
                "category_id": np.array([-1 if r.category_id is None else r.category_id for r in rows], dtype=np.int64),
                "annotation_id": np.array([row.id for row in rows], dtype=np.int64),
                "iscrowd": np.array([row.iscrowd for row in rows], dtype=np.int64),
            },
        )


def read_coco(path: Path, problems: Problems | None = None) -> ImageSet:
    """Read a COCO file. The images are not opened.

    A `file_name` is taken relative to `info.image_root` where the file has one (see `coco_writer.export_coco`), else to
    the file's own folder. Ids are any integers of 64 bits, 0 among them.

    Args:
        path: of the file.
        problems: counts the entries that are left out; a new one if None.

    Raises:
        DataError: not JSON or not a COCO file; an image id or an annotation id given twice; a parent that is no
            annotation of its image; none of the images, or none of the annotations, can be used. The message names
            file, entries and remedy.
    """
    path = Path(path)
    value = read_json(path)
    if not isinstance(value, dict):
        raise DataError(f"{path}: a COCO file is an object with 'images' and 'annotations', this is a {_kind(value)}")
    info = value.get("info")
    given_root = info.get("image_root") if isinstance(info, dict) else None
    image_root = path.parent / given_root if isinstance(given_root, str) else None
    root = image_root or path.parent
    problems = Problems() if problems is None else problems

    def usable(name: str, parse: Callable[[Entry, int], T], *, needed: bool = False) -> dict[int, T]:
        """Parsed entries by their position; the others are counted."""
        found: dict[int, T] = {}
        entries = _entries(path, value, name, needed=needed)
        for index, entry in enumerate(entries):
            try:
                if not isinstance(entry, dict):
                    raise DataError(f"{path}: {name}[{index}] must be an object, not {_kind(entry)}")
                found[index] = parse(entry, index)
            except DataError as error:
                problems.add(f"entry of '{name}' that cannot be used", str(error))
        if entries and not found:
            raise DataError(f"{path}: no entry of '{name}' can be used ({len(entries)} are there): {_last(problems)}")
        return found

    items = usable("images", lambda entry, index: _item(path, root, entry, index), needed=True)
    _refuse_twice(path, "images", {index: item.id for index, item in items.items()})
    sizes = {item.id: item.size_hw for item in items.values()}
    rows = usable("annotations", lambda entry, index: _annotation(path, entry, index, sizes))
    _refuse_twice(path, "annotations", {index: row.id for index, row in rows.items()})
    categories = usable("categories", lambda entry, index: _category(path, entry, index))
    entries = _entries(path, value, "annotations", needed=False)
    given = {e["id"]: e.get("parent_id") for e in entries if isinstance(e, dict) and isinstance(e.get("id"), int)}
    given |= {row.id: row.parent_id for row in rows.values()}
    image_of = {row.id: row.image_id for row in rows.values()}
    parents = resolve_parents(path, given, {row.id: index for index, row in rows.items()}, image_of)
    annotations: dict[int, list[Annotation]] = {}
    for row in rows.values():
        same = row.parent_id == parents[row.id]
        annotations.setdefault(row.image_id, []).append(row if same else replace(row, parent_id=parents[row.id]))
    return ImageSet(path, list(items.values()), annotations, list(categories.values()), image_root, problems)


def _entries(path: Path, value: Entry, name: str, *, needed: bool) -> list[Any]:
    entries = value.get(name)
    if entries is None and not needed:
        return []
    if not isinstance(entries, list):
        raise DataError(f"{path}: field '{name}' must be a list; is this a COCO file?")
    return entries


def _kind(value: Any) -> str:
    return "list" if isinstance(value, list) else type(value).__name__


def _last(problems: Problems) -> str:
    *_, examples = problems.examples.values()
    return "; ".join(examples)


def _get(path: Path, name: str, entry: Entry, index: int, key: str, kind: type, default: Any = _MISSING) -> Any:
    """A field of the given kind; `default` where it is absent or null."""
    value = entry.get(key)
    if value is None and default is not _MISSING:
        return default
    if key not in entry:
        raise DataError(f"{path}: {name}[{index}] has no '{key}'; add it ({kind.__name__})")
    if kind is int and isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise DataError(f"{path}: {name}[{index}] field '{key}' is {value!r}; it must be of type {kind.__name__}")
    if isinstance(value, int) and not -LARGEST_ID <= value <= LARGEST_ID:
        raise DataError(
            f"{path}: {name}[{index}] field '{key}' is {value}; integers must fit 64 bits, so renumber them"
        )
    return value


def _item(path: Path, root: Path, entry: Entry, index: int) -> ImageItem:
    file_name = _get(path, "images", entry, index, "file_name", str)
    try:
        os.fsencode(file_name)
    except UnicodeEncodeError:
        file_name = "\0"
    if not file_name.strip() or "\0" in file_name:
        raise DataError(f"{path}: images[{index}] field 'file_name' is {entry['file_name']!r}, which names no file")
    file = root / file_name
    if "\\" in file_name and not file.exists():  # written on Windows
        file = root / file_name.replace("\\", "/")
    height, width = (_get(path, "images", entry, index, key, int) for key in ("height", "width"))
    if min(height, width) < 1 or height * width > MAX_PIXELS:
        raise DataError(
            f"{path}: images[{index}] is {height} x {width} px; both sides must be at least 1, and the pixels no more "
            f"than {MAX_PIXELS}"
        )
    return ImageItem(_get(path, "images", entry, index, "id", int), file, height, width)


def _category(path: Path, entry: Entry, index: int) -> Entry:
    _get(path, "categories", entry, index, "id", int)
    _get(path, "categories", entry, index, "name", str)
    return entry


def _annotation(path: Path, entry: Entry, index: int, sizes: Mapping[int, tuple[int, int]]) -> Annotation:
    image_id = _get(path, "annotations", entry, index, "image_id", int)
    if image_id not in sizes:
        raise DataError(
            f"{path}: annotations[{index}] belongs to image {image_id}, but 'images' has no such id "
            f"(ids there: {', '.join(map(str, list(sizes)[:3]))}, ...); add the image or remove the annotation"
        )
    if "segmentation" not in entry:
        raise DataError(f"{path}: annotations[{index}] has no 'segmentation'; give polygons or RLE")
    shape = entry["segmentation"]
    check_segmentation(f"{path}: annotations[{index}] field 'segmentation'", shape, sizes[image_id])
    crowd = entry.get("iscrowd")
    return Annotation(
        id=_get(path, "annotations", entry, index, "id", int),
        image_id=image_id,
        category_id=_get(path, "annotations", entry, index, "category_id", int, None),
        segmentation=shape,
        parent_id=_get(path, "annotations", entry, index, "parent_id", int, None),
        iscrowd=int(crowd) if isinstance(crowd, bool) else _get(path, "annotations", entry, index, "iscrowd", int, 0),
        score=_score(path, entry, index),
    )


def _score(path: Path, entry: Entry, index: int) -> float | None:
    score = entry.get("score")
    if score is None:
        return None
    if isinstance(score, bool) or not isinstance(score, int | float) or not np.isfinite(float(score)):
        raise DataError(f"{path}: annotations[{index}] field 'score' is {score!r}; it must be a finite number")
    return float(score)


def check_segmentation(where: str, shape: Any, size_hw: tuple[int, int]) -> None:
    """Refuse polygons or an RLE that pycocotools would turn into a wrong mask, or read beyond its memory for.

    Raises:
        DataError: a polygon of fewer than three points or with coordinates far outside; an RLE that is not of this
            size. The message begins with `where`.
    """
    if isinstance(shape, list):
        if not shape or not all(isinstance(ring, list) and len(ring) >= 6 and len(ring) % 2 == 0 for ring in shape):
            raise DataError(f"{where}: each polygon needs x, y of at least three points; remove empty ones")
        if not all(_is_near(value) for ring in shape for value in ring):
            raise DataError(f"{where}: coordinates must be numbers in px, no more than {_FARTHEST_PX} away")
        return
    counts = shape.get("counts") if isinstance(shape, dict) else None
    if not isinstance(shape, dict) or not isinstance(counts, str | list):
        raise DataError(f"{where}: must be a list of polygons or an RLE object with 'size' and 'counts'")
    check_rle(where, shape, size_hw)


def _is_near(value: Any) -> bool:
    return isinstance(value, int | float) and abs(value) <= _FARTHEST_PX  # false for NaN


def _refuse_twice(path: Path, name: str, ids: Mapping[int, int]) -> None:
    """`ids` by position; all that are repeated are named."""
    counts = Counter(ids.values())
    twice = [f"{name}[{index}] ({value})" for index, value in ids.items() if counts[value] > 1]
    if twice:
        raise DataError(f"{path}: ids must be unique, these are not: {first_few(twice)}; renumber them")
