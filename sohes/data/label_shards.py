"""One shard of a label store: its columns, the forest in a row, and what it says about itself (README §1)."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
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
    "source": pa.string(),  # "global" or "local" clustering; the level of a method that has named ones
    "level_first": pa.int32(),  # first and last merging threshold at which the region exists
    "level_last": pa.int32(),
    "cohesion": pa.float32(),
    "refine_iou": pa.float32(),  # IoU of the mask before and after refinement
}
# those that only some methods have: a shard without them has no such columns
RARE = {
    "category_id": pa.int64(),
    "cut": pa.float32(),  # the higher, the earlier the mask counts in partitions of the image
}
_MASK = [
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


def _schema(rows: Sequence[Mapping[str, Any]]) -> pa.Schema:
    """Of a shard with these rows."""
    present = {name for row in rows for mask in row["masks"][:1] for name in mask}
    mask = pa.struct([*_MASK, *((name, kind) for name, kind in RARE.items() if name in present)])
    return pa.schema(
        [
            ("image_id", pa.int64()),
            ("file", pa.string()),
            ("height", pa.int32()),
            ("width", pa.int32()),
            ("masks", pa.list_(mask)),
        ]
    )


_HEADER, _PLACES = b"sohes", b"sohes.places"  # keys of a shard's metadata
GROUP_ROWS = 4  # what reading one image at random decodes


@dataclass(frozen=True)
class Shard:
    """What a shard says about itself.

    Attributes:
        path: of its file.
        number: in its store, from 0.
        header: the store's.
        places: of its images in the order of all.
        skipped: "file" and "reason" of those that could not be used.
        image_ids, files: of the others, a row each.
    """

    path: Path
    number: int
    header: dict[str, Any]
    places: range
    skipped: list[dict[str, str]]
    image_ids: NDArray[np.int64]
    files: pa.ChunkedArray

    @classmethod
    def read(cls, path: Path) -> Shard:
        """Read it, the masks left aside.

        Raises:
            DataError: it is damaged.
        """
        with opened(path) as file:
            metadata = file.schema_arrow.metadata or {}
            places = json.loads(metadata[_PLACES])
            table = file.read(["image_id", "file"])
            return cls(
                path=path,
                number=int(path.stem.removeprefix("labels-")),
                header=json.loads(metadata[_HEADER]),
                places=range(places["first"], places["first"] + places["count"]),
                skipped=places["skipped"],
                image_ids=table.column("image_id").to_numpy(),
                files=table.column("file"),
            )


def write_shard(
    folder: Path,
    number: int,
    first: int,
    header: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    skipped: Sequence[Mapping[str, str]],
) -> None:
    """Write a shard at once; `first` is the place of its first image, the rest is as in `Shard` and `forest_row`."""
    places = {"first": first, "count": len(rows) + len(skipped), "skipped": skipped}
    metadata = {key: json.dumps(value, sort_keys=True) for key, value in ((_HEADER, header), (_PLACES, places))}
    table = pa.Table.from_pylist(rows, schema=_schema(rows).with_metadata(metadata))
    with atomic_path(folder / f"labels-{number:05d}.parquet") as temporary:
        pq.write_table(table, temporary, row_group_size=GROUP_ROWS, compression="zstd")
    for leftover in folder.glob(f".labels-{number:05d}.*"):  # of a process that was killed while it wrote
        leftover.unlink(missing_ok=True)


def forest_row(image_id: int, file: str, forest: MaskForest) -> dict[str, Any]:
    """A row as a shard has it.

    Raises:
        ValueError: the forest has an attribute that there is no column for.
    """
    unknown = set(forest.attributes) - set(ATTRIBUTES | RARE)
    if unknown:
        raise ValueError(f"the label store has no column for {sorted(unknown)}; columns: {sorted(ATTRIBUTES | RARE)}")
    columns = {name: column.tolist() for name, column in forest.attributes.items()}
    masks = [
        {
            "id": entity.index,
            "rle": entity.rle["counts"],
            "area": entity.area,
            "bbox": list(entity.box_xywh),
            "score": entity.score,
            "parent": entity.parent,
            "depth": entity.depth,
            "ancestors": np.flatnonzero(forest.ancestor[:, entity.index]).tolist(),
            **{name: column[entity.index] for name, column in columns.items()},
        }
        for entity in forest
    ]
    height, width = forest.size_hw
    return {"image_id": int(image_id), "file": file, "height": height, "width": width, "masks": masks}


def row_forest(row: Mapping[str, Any]) -> MaskForest:
    """The forest of a row."""
    masks, size_hw = row["masks"], (row["height"], row["width"])
    ancestor = np.zeros((len(masks), len(masks)), dtype=bool)
    for index, mask in enumerate(masks):
        ancestor[mask["ancestors"], index] = True
    attributes: dict[str, NDArray[Any]] = {}
    for name, kind in (ATTRIBUTES | RARE).items():
        column = [mask.get(name) for mask in masks]
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


def shard_paths(folder: Path) -> list[Path]:
    """The shards of a store by number."""
    return sorted(folder.glob("labels-*.parquet"), key=lambda path: (len(path.name), path.name))


@contextmanager
def opened(path: Path) -> Iterator[pq.ParquetFile]:
    """A shard open for reading; DataError when it is damaged."""
    try:
        with pq.ParquetFile(path, memory_map=True) as file:
            yield file
    except (OSError, pa.ArrowException, KeyError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"{path}: damaged label shard ({reason}); delete it and rerun what made it") from error
