"""COCO files as this project reads and writes them: masks as RLE or polygons, optionally with `parent_id` (0: root)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numba
import numpy as np
from pycocotools import mask as coco_mask

from sohes.errors import DataError
from sohes.files import read_json, write_json
from sohes.masks import MaskForest

_MISSING = object()
_FARTHEST_PX = 100_000


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
    """One mask of a ground truth. `segmentation` is COCO RLE (compressed or not) or a list of polygons in px."""

    id: int
    image_id: int
    category_id: int
    segmentation: dict[str, Any] | list[list[float]]
    parent_id: int = 0
    iscrowd: int = 0

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
    """

    source: Path
    items: list[ImageItem]
    annotations: dict[int, list[Annotation]] = field(default_factory=dict)
    categories: list[dict[str, Any]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.items)

    def item(self, image_id: int) -> ImageItem:
        """The image of that id; KeyError when there is none."""
        by_id = self.__dict__.get("_by_id")
        if by_id is None:
            by_id = {item.id: item for item in self.items}
            object.__setattr__(self, "_by_id", by_id)
        return by_id[image_id]

    def forest(self, image_id: int) -> MaskForest:
        """Ground truth of one image, scores 1; attributes `category_id`, `annotation_id` and `iscrowd`."""
        rows = self.annotations.get(image_id, [])
        size_hw = self.item(image_id).size_hw
        place = {row.id: index for index, row in enumerate(rows)}
        parent = np.array([place.get(row.parent_id, -1) for row in rows], dtype=np.int64)
        return MaskForest(
            size_hw=size_hw,
            rles=[row.rle(size_hw) for row in rows],
            scores=np.ones(len(rows), dtype=np.float32),
            ancestor=ancestors_of(parent),
            parent=parent,
            attributes={
                "category_id": np.array([row.category_id for row in rows], dtype=np.int64),
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


def read_coco(path: Path) -> ImageSet:
    """Read a COCO file; `file_name` is taken relative to the file's folder. The images are not opened.

    Raises:
        DataError: not JSON, a field missing or of the wrong type, an id given twice, an annotation of an image or a
            parent that does not exist. The message names file, entry and remedy.
    """
    path = Path(path)
    value = read_json(path)
    if not isinstance(value, dict):
        raise DataError(f"{path}: a COCO file is an object with 'images' and 'annotations', this is a list")
    items = [_item(path, entry, index) for index, entry in _entries(path, value, "images")]
    sizes = {item.id: item.size_hw for item in items}
    _refuse_twice(path, "images", [item.id for item in items])
    rows = [
        _annotation(path, entry, index, sizes) for index, entry in _entries(path, value, "annotations", needed=False)
    ]
    _refuse_twice(path, "annotations", [row.id for row in rows])
    _check_parents(path, rows)
    categories = [entry for _, entry in _entries(path, value, "categories", needed=False)]
    for index, entry in enumerate(categories):
        _get(path, "categories", entry, index, "id", int)
        _get(path, "categories", entry, index, "name", str)
    annotations: dict[int, list[Annotation]] = {}
    for row in rows:
        annotations.setdefault(row.image_id, []).append(row)
    return ImageSet(path, items, annotations, categories)


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
        "category_id": row.category_id,
        "segmentation": rle,
        "area": int(coco_mask.area(rle)),
        "bbox": [float(side) for side in coco_mask.toBbox(rle)],
        "iscrowd": row.iscrowd,
        "parent_id": row.parent_id,
    }


def _entries(
    path: Path, value: dict[str, Any], name: str, *, needed: bool = True
) -> Iterable[tuple[int, dict[str, Any]]]:
    entries = value.get(name, None if needed else [])
    if not isinstance(entries, list):
        raise DataError(f"{path}: field '{name}' must be a list; is this a COCO file?")
    for index, entry in enumerate(entries):
        if not isinstance(entry, dict):
            raise DataError(f"{path}: {name}[{index}] must be an object, not {type(entry).__name__}")
        yield index, entry


def _get(
    path: Path, name: str, entry: dict[str, Any], index: int, key: str, kind: type, default: Any = _MISSING
) -> Any:
    value = entry.get(key, default)
    if value is _MISSING:
        raise DataError(f"{path}: {name}[{index}] has no '{key}'; add it ({kind.__name__})")
    if kind is int and isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise DataError(f"{path}: {name}[{index}] field '{key}' is {value!r}; it must be of type {kind.__name__}")
    return value


def _item(path: Path, entry: dict[str, Any], index: int) -> ImageItem:
    file_name = _get(path, "images", entry, index, "file_name", str)
    height, width = (_get(path, "images", entry, index, key, int) for key in ("height", "width"))
    if min(height, width) < 1:
        raise DataError(f"{path}: images[{index}] is {height} x {width} px; both sides must be at least 1")
    return ImageItem(_get(path, "images", entry, index, "id", int), path.parent / file_name, height, width)


def _annotation(path: Path, entry: dict[str, Any], index: int, sizes: Mapping[int, tuple[int, int]]) -> Annotation:
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
    return Annotation(
        id=_get(path, "annotations", entry, index, "id", int),
        image_id=image_id,
        category_id=_get(path, "annotations", entry, index, "category_id", int, 1),
        segmentation=shape,
        # some writers use null for a root
        parent_id=0 if entry.get("parent_id") is None else _get(path, "annotations", entry, index, "parent_id", int),
        iscrowd=_get(path, "annotations", entry, index, "iscrowd", int, 0),
    )


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
    if list(shape.get("size", ())) != list(size_hw):
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
    runs = np.asarray(counts, dtype=np.int64)
    return -1 if (runs < 0).any() else int(runs.sum())


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


def _refuse_twice(path: Path, name: str, ids: list[int]) -> None:
    seen: set[int] = set()
    for index, value in enumerate(ids):
        if value in seen:
            raise DataError(f"{path}: {name}[{index}] repeats id {value}; ids must be unique")
        seen.add(value)


def _check_parents(path: Path, rows: Sequence[Annotation]) -> None:
    by_id = {row.id: row for row in rows}
    for index, row in enumerate(rows):
        seen, above = {row.id}, row
        while above.parent_id != 0:
            parent = by_id.get(above.parent_id)
            if parent is None or parent.image_id != row.image_id:
                raise DataError(
                    f"{path}: annotations[{index}] has parent_id {above.parent_id}, which is no annotation of image "
                    f"{row.image_id}; use 0 for a root"
                )
            if parent.id in seen:
                raise DataError(f"{path}: annotations[{index}] is its own ancestor through parent_id {parent.id}")
            seen.add(parent.id)
            above = parent
