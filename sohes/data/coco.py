"""COCO files as this project reads and writes them: masks as RLE or polygons, optionally with `parent_id`.

A root's `parent_id` is null or absent. Files of others that mark roots by 0 are read as well, see `zero_is_root`.
Entries that cannot be used are left out, counted and named with their position; the rest is used.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import numba
import numpy as np
from pycocotools import mask as coco_mask

from sohes.data.images import MAX_PIXELS
from sohes.data.problems import Problems
from sohes.errors import DataError
from sohes.files import read_json, write_json
from sohes.masks import MaskForest

Entry = dict[str, Any]
T = TypeVar("T")

_MISSING = object()
_FARTHEST_PX = 100_000
LARGEST_ID = 2**63 - 1  # what a label store holds
_NAMED_AT_MOST = 5


@dataclass(frozen=True)
class ImageItem:
    """One image of a set; height and width in px, as looked at (EXIF applied)."""

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

    def rle(self, size_hw: tuple[int, int]) -> dict[str, Any]:
        """Compressed RLE with `counts` as str."""
        shape: Any = self.segmentation
        if isinstance(shape, list):
            shape = coco_mask.merge(coco_mask.frPyObjects(shape, *size_hw))
        elif isinstance(shape["counts"], list):
            shape = coco_mask.frPyObjects(shape, *size_hw)
        counts = shape["counts"]
        return {"size": list(size_hw), "counts": counts.decode("ascii") if isinstance(counts, bytes) else counts}


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


def ancestors_of(parent: Sequence[int] | np.ndarray[Any, Any]) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Ancestor matrix (M, M) bool of a tree given by its parents (M,), -1 for a root."""
    ancestor = np.zeros((len(parent), len(parent)), dtype=bool)
    for index in range(len(parent)):
        above = parent[index]
        while above >= 0:
            ancestor[above, index] = True
            above = parent[above]
    return ancestor


def read_coco(path: Path, problems: Problems | None = None) -> ImageSet:
    """Read a COCO file. The images are not opened.

    A `file_name` is taken relative to `info.image_root` where the file has one (see `labels.export_coco`), else to the
    file's own folder. Ids are any integers of 64 bits, 0 among them.

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
    annotations: dict[int, list[Annotation]] = {}
    for row in _with_parents(path, rows, _entries(path, value, "annotations", needed=False)):
        annotations.setdefault(row.image_id, []).append(row)
    return ImageSet(path, list(items.values()), annotations, list(categories.values()), image_root, problems)


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
        "area": int(coco_mask.area(rle)),
        "bbox": [float(side) for side in coco_mask.toBbox(rle)],
        "iscrowd": row.iscrowd,
        "parent_id": row.parent_id,
    }


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
        raise DataError(f"{path}: {name}[{index}] field '{key}' is {value}; integers must fit 64 bits, so number anew")
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
    if shape.get("size") != list(size_hw):
        raise DataError(
            f"{where}: RLE size {shape.get('size')} differs from the image's [height, width] {list(size_hw)}"
        )
    total = _pixels(counts)
    if total < 0:
        raise DataError(f"{where}: RLE counts cannot be decoded; they are cut off or damaged")
    if total != size_hw[0] * size_hw[1]:
        raise DataError(f"{where}: RLE counts sum to {total}, the image has {size_hw[0] * size_hw[1]} pixels")


def _is_near(value: Any) -> bool:
    return isinstance(value, int | float) and abs(value) <= _FARTHEST_PX  # false for NaN


def _pixels(counts: str | list[int]) -> int:
    """Pixels that the runs of an RLE cover together; -1 if it is no RLE."""
    if isinstance(counts, str):
        return int(_compressed_pixels(np.frombuffer(counts.encode("utf-8"), np.uint8)))
    if not all(type(run) is int and 0 <= run < 1 << 31 for run in counts):  # px; images are smaller
        return -1
    return sum(counts)


@numba.njit(cache=True, nogil=True)
def _compressed_pixels(letters):  # type: ignore[no-untyped-def]
    """The format is LEB128 with 5 bits a letter, and from the fourth run on the difference to the last but one run."""
    total = count = previous = before = run = shift = 0
    for letter in letters:
        digit = np.int64(letter) - 48
        if not 0 <= digit < 64 or shift == 60:  # no run is that long
            return -1
        run |= (digit & 31) << shift
        shift += 5
        if digit & 32:  # more letters follow
            continue
        if digit & 16:  # negative
            run -= np.int64(1) << shift
        if count > 2:
            run += before
        if not 0 <= run < 1 << 31:  # px; images are smaller
            return -1
        total += run
        before, previous = previous, run
        count += 1
        run = shift = 0
    return total if count and shift == 0 else -1


def _refuse_twice(path: Path, name: str, ids: Mapping[int, int]) -> None:
    """`ids` by position; all that are repeated are named."""
    counts = Counter(ids.values())
    twice = [f"{name}[{index}] ({value})" for index, value in ids.items() if counts[value] > 1]
    if twice:
        raise DataError(f"{path}: ids must be unique, these are not: {_some(twice)}; number them anew")


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED_AT_MOST} more" if len(names) > _NAMED_AT_MOST else ""
    return ", ".join(names[:_NAMED_AT_MOST]) + more


def _with_parents(path: Path, rows: Mapping[int, Annotation], entries: Sequence[Any]) -> Iterator[Annotation]:
    """The usable annotations, by position, with their parents; one that was left out hands its parts on to its own.

    Raises:
        DataError: parents that are no annotation of the image, or that go round in a circle; all are named.
    """
    above = {e["id"]: e.get("parent_id") for e in entries if isinstance(e, dict) and isinstance(e.get("id"), int)}
    above |= {row.id: row.parent_id for row in rows.values()}
    if zero_is_root(path, above):
        above = {child: parent or None for child, parent in above.items()}
    image_of = {row.id: row.image_id for row in rows.values()}
    wrong = []
    parents: dict[int, int | None] = {}
    for index, row in rows.items():
        seen = {row.id}
        parent = above[row.id]
        while parent is not None and parent not in image_of and parent in above and parent not in seen:
            seen.add(parent)
            parent = above[parent]
        parents[row.id] = parent
        if parent is not None and (parent in seen or image_of.get(parent) != row.image_id):
            wrong.append(f"annotations[{index}] (parent_id {row.parent_id})")
    if wrong:
        raise DataError(
            f"{path}: a parent_id must be the id of another annotation of the same image, or null for a root; these "
            f"are not: {_some(wrong)}"
        )
    if circle := _circle(parents):
        places = [f"annotations[{index}]" for index, row in rows.items() if row.id in circle]
        raise DataError(f"{path}: by their parent_id these are their own ancestors: {_some(places)}")
    return (replace(row, parent_id=parents[row.id]) for row in rows.values())


def zero_is_root(path: Path, parents: Mapping[int, int | None]) -> bool:
    """Whether parent_id 0 means "none" in this file.

    Args:
        path: of the file.
        parents: annotation id to parent_id.

    Raises:
        DataError: 0 is an annotation and marks roots as well, so nobody can tell its parts from roots.
    """
    if 0 not in parents:
        return True
    if parents[0] != 0:
        return False
    if set(parents.values()) <= {0, None}:  # no mask is part of another
        return True
    raise DataError(
        f"{path}: an annotation has the id 0, and parent_id 0 marks roots as well; write null for a root, or number "
        "the annotations from 1"
    )


def _circle(parents: Mapping[int, int | None]) -> set[int]:
    """The members of a cycle, or those that lead into it; empty without one."""
    safe: set[int | None] = {None}
    for start in parents:
        chain: dict[int | None, None] = {}
        current: int | None = start
        while current not in safe and current not in chain:
            chain[current] = None
            current = parents[current] if current is not None else None
        if current in chain:
            return {member for member in chain if member is not None}
        safe.update(chain)
    return set()
