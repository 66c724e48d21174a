"""Label store: the mask forest of every image in Parquet shards, one row an image (SOHES specification, section 2.9).

A store is a folder of `labels-00000.parquet`, `labels-00001.parquet`, ...; each shard is written at once and carries
the store's header. Masks are COCO RLE at the image's size; a mask's `id` is its place in the row, a root's `parent` is
null.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from sohes.errors import DataError
from sohes.files import atomic_path
from sohes.masks import MaskForest

# columns of `MaskForest.attributes` that are kept, null where a forest has none
ATTRIBUTES = {
    "source": pa.string(),  # "global" or "local" clustering
    "level_first": pa.int32(),  # first and last merging threshold at which the region exists
    "level_last": pa.int32(),
    "cohesion": pa.float32(),
    "refine_iou": pa.float32(),  # IoU of the mask before and after refinement
}
_MASK = pa.struct(
    [
        ("id", pa.int32()),
        ("rle", pa.string()),
        ("area", pa.int64()),
        ("bbox", pa.list_(pa.float32())),  # xywh, px
        ("score", pa.float32()),
        ("parent", pa.int32()),
        ("depth", pa.int32()),
        ("ancestors", pa.list_(pa.int32())),
        *ATTRIBUTES.items(),
    ]
)
SCHEMA = pa.schema(
    [
        ("image_id", pa.int64()),
        ("file", pa.string()),
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("masks", pa.list_(_MASK)),
    ]
)
_HEADER = b"sohes"
_ROWS_A_GROUP = 4  # what reading one image at random decodes


class LabelWriter:
    """Writes a label store; goes on where an interrupted one stopped.

    Use as a context manager and skip the images in `done`. Leaving it by an exception keeps the finished shards; the
    bytes written in the end are those of an undisturbed run over the same images in the same order.

    Args:
        folder: of the store; made if missing.
        header: what the labels depend on (config hash, backbone, refiner, ...), JSON-able.
        shard_size: images a shard; an interrupted run loses at most one shard's work.

    Raises:
        DataError: the folder holds a store with another header, or a shard that cannot be read.
    """

    def __init__(self, folder: Path, *, header: Mapping[str, Any], shard_size: int = 64) -> None:
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.shard_size = shard_size
        self.header = json.loads(json.dumps(dict(header), sort_keys=True))
        self._schema = SCHEMA.with_metadata({_HEADER: json.dumps(self.header, sort_keys=True).encode()})
        self._rows: list[dict[str, Any]] = []
        self.done: set[int] = set()
        self._shard = 0
        for path in _shards(self.folder):
            self._take_over(path)

    def _take_over(self, path: Path) -> None:
        if read_header(path) != self.header:
            raise DataError(
                f"{path}: holds labels made with other settings ({_difference(read_header(path), self.header)}); write "
                "to another folder, or remove this one to make them anew"
            )
        ids = _read(path, ["image_id"]).column("image_id").to_pylist()
        self.done.update(ids)
        if len(ids) < self.shard_size:  # the last, short shard of a run that ended: fill it up
            self._rows = _read(path).to_pylist()
        else:
            self._shard += 1

    def add(self, image_id: int, file: str, forest: MaskForest) -> None:
        """Append one image.

        Raises:
            ValueError: its id is already there, or the forest has an attribute that the store has no column for.
        """
        if image_id in self.done:
            raise ValueError(f"image {image_id} is already in {self.folder}")
        self._rows.append(_row(image_id, file, forest))
        self.done.add(image_id)
        if len(self._rows) == self.shard_size:
            self._flush()

    def close(self) -> None:
        """Write what is left as the last, short shard. An empty store gets one empty shard, for its header."""
        if self._rows or self._shard == 0:
            self._flush()

    def _flush(self) -> None:
        table = pa.Table.from_pylist(self._rows, schema=self._schema)
        with atomic_path(self.folder / f"labels-{self._shard:05d}.parquet") as temporary:
            pq.write_table(table, temporary, row_group_size=_ROWS_A_GROUP, compression="zstd")
        self._rows = []
        self._shard += 1

    def __enter__(self) -> LabelWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()


class LabelStore:
    """Reads a label store, one row group at a time; may be shared with forked and pickled to spawned workers.

    Raises:
        DataError: no store there, a shard is damaged, or shards have different headers.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        self._paths = _shards(self.folder)
        if not self._paths:
            raise DataError(
                f"{self.folder}: no label store here (no labels-00000.parquet); run the explore stage first"
            )
        self.header: dict[str, Any] = read_header(self._paths[0])
        self.image_ids: list[int] = []
        self._place: dict[int, tuple[int, int]] = {}  # image id to shard and row
        self._last_group: tuple[tuple[int, int], list[dict[str, Any]]] = ((-1, -1), [])
        for shard, path in enumerate(self._paths):
            if read_header(path) != self.header:
                raise DataError(f"{path}: its header differs from that of {self._paths[0].name}; make the store anew")
            ids = _read(path, ["image_id"]).column("image_id").to_pylist()
            self._place.update({image_id: (shard, row) for row, image_id in enumerate(ids)})
            self.image_ids += ids

    def __len__(self) -> int:
        return len(self.image_ids)

    def __contains__(self, image_id: int) -> bool:
        return image_id in self._place

    def __iter__(self) -> Iterator[tuple[int, MaskForest]]:
        """Image ids and forests, in the order they were written."""
        for image_id in self.image_ids:
            yield image_id, self.forest(image_id)

    def forest(self, image_id: int) -> MaskForest:
        """The forest of one image; KeyError when the store does not hold it."""
        return _forest(self._row(image_id))

    def file(self, image_id: int) -> str:
        """The image's file, as given to the writer."""
        return str(self._row(image_id)["file"])

    def _row(self, image_id: int) -> dict[str, Any]:
        shard, row = self._place[image_id]
        group, offset = divmod(row, _ROWS_A_GROUP)
        place, rows = self._last_group
        if place != (shard, group):
            rows = _row_group(self._paths[shard], group)
            self._last_group = ((shard, group), rows)
        return rows[offset]


def read_header(path: Path) -> dict[str, Any]:
    """Header of the store that the shard at `path` belongs to."""
    try:
        metadata = pq.read_schema(path).metadata or {}
        return dict(json.loads(metadata[_HEADER]))
    except (OSError, pa.ArrowException, KeyError, ValueError) as error:
        raise _damaged(path, error) from error


def export_coco(store: LabelStore, path: Path) -> None:
    """Write a store as one COCO file: category 1 "entity", `parent_id` (0: root), `score`. Memory: a few images."""
    with atomic_path(Path(path)) as temporary, temporary.open("w", encoding="utf-8") as out:
        out.write('{"images": [')
        for index, image_id in enumerate(store.image_ids):
            row = store._row(image_id)
            image = {"id": image_id, "file_name": row["file"], "width": row["width"], "height": row["height"]}
            out.write((",\n" if index else "\n") + json.dumps(image))
        out.write('\n], "annotations": [')
        written = 0
        for image_id in store.image_ids:
            row = store._row(image_id)
            for mask in row["masks"]:
                out.write((",\n" if written or mask["id"] else "\n") + json.dumps(_annotation(row, mask, written + 1)))
            written += len(row["masks"])
        out.write('\n], "categories": [{"id": 1, "name": "entity"}]}\n')


def _annotation(row: Mapping[str, Any], mask: Mapping[str, Any], first: int) -> dict[str, Any]:
    return {
        "id": first + mask["id"],
        "image_id": row["image_id"],
        "category_id": 1,
        "segmentation": {"size": [row["height"], row["width"]], "counts": mask["rle"]},
        "area": mask["area"],
        "bbox": mask["bbox"],
        "iscrowd": 0,
        "parent_id": 0 if mask["parent"] is None else first + mask["parent"],
        "score": mask["score"],
    }


def _row(image_id: int, file: str, forest: MaskForest) -> dict[str, Any]:
    unknown = set(forest.attributes) - set(ATTRIBUTES)
    if unknown:
        raise ValueError(f"the label store has no column for {sorted(unknown)}; columns: {sorted(ATTRIBUTES)}")
    columns = {name: column.tolist() for name, column in forest.attributes.items()}
    areas, boxes, depth = forest.areas.tolist(), forest.boxes_xywh.tolist(), forest.depth.tolist()
    masks = [
        {
            "id": index,
            "rle": forest.rles[index]["counts"],
            "area": areas[index],
            "bbox": boxes[index],
            "score": float(forest.scores[index]),
            "parent": int(forest.parent[index]) if forest.parent[index] >= 0 else None,
            "depth": depth[index],
            "ancestors": np.flatnonzero(forest.ancestor[:, index]).tolist(),
            **{name: column[index] for name, column in columns.items()},
        }
        for index in range(len(forest))
    ]
    height, width = forest.size_hw
    return {"image_id": int(image_id), "file": file, "height": height, "width": width, "masks": masks}


def _forest(row: Mapping[str, Any]) -> MaskForest:
    masks, size_hw = row["masks"], (row["height"], row["width"])
    ancestor = np.zeros((len(masks), len(masks)), dtype=bool)
    for index, mask in enumerate(masks):
        ancestor[mask["ancestors"], index] = True
    attributes: dict[str, NDArray[Any]] = {}
    for name, kind in ATTRIBUTES.items():
        column = [mask[name] for mask in masks]
        if masks and column[0] is not None:
            attributes[name] = np.asarray(column, dtype=None if kind == pa.string() else kind.to_pandas_dtype())
    return MaskForest(
        size_hw=size_hw,
        rles=[{"size": list(size_hw), "counts": mask["rle"]} for mask in masks],
        scores=np.asarray([mask["score"] for mask in masks], dtype=np.float32),
        ancestor=ancestor,
        parent=np.asarray([-1 if mask["parent"] is None else mask["parent"] for mask in masks], dtype=np.int64),
        attributes=attributes,
    )


def _shards(folder: Path) -> list[Path]:
    paths = sorted(folder.glob("labels-*.parquet"))
    for index, path in enumerate(paths):
        if path.name != f"labels-{index:05d}.parquet":
            raise DataError(f"{folder}: shard labels-{index:05d}.parquet is missing; make the store anew")
    return paths


def _read(path: Path, columns: list[str] | None = None) -> pa.Table:
    try:
        return pq.read_table(path, columns=columns, memory_map=True)
    except (OSError, pa.ArrowException) as error:
        raise _damaged(path, error) from error


def _row_group(path: Path, group: int) -> list[dict[str, Any]]:
    try:
        with pq.ParquetFile(path, memory_map=True) as file:
            return file.read_row_group(group).to_pylist()
    except (OSError, pa.ArrowException) as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> DataError:
    return DataError(
        f"{path}: damaged label shard ({str(error).splitlines()[0]}); delete it and the shards after it, and run the "
        "stage again"
    )


def _difference(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    keys = [key for key in sorted({*found, *wanted}) if found.get(key) != wanted.get(key)]
    return ", ".join(f"{key}: {found.get(key)!r} there, {wanted.get(key)!r} now" for key in keys)
