"""Label store: the mask forest of every image in Parquet shards, one row an image (SOHES specification, section 2.9).

A store is a folder of `labels-00000.parquet`, `labels-00001.parquet`, ... Shard k belongs to the images at the places
k * shard_size, k * shard_size + 1, ... of their order; it is written at once, carries the store's header and names the
images among its own that could not be used. Masks are COCO RLE at the image's size; a mask's `id` is its place in the
row, a root's `parent` is null.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from sohes.errors import DataError
from sohes.files import atomic_path, printable
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
_HEADER, _PLACES = b"sohes", b"sohes.places"  # keys of a shard's metadata
_ROWS_A_GROUP = 4  # what reading one image at random decodes
_SHARDS, _LARGEST_SHARD = 256, 64


def even_shard_size(total: int) -> int:
    """Images a shard, such that any number of jobs up to some dozen divide `total` images evenly, a shard being whole.

    It depends on nothing else, so that a store is the same whatever number of jobs made it.
    """
    return max(1, min(_LARGEST_SHARD, total // _SHARDS))


class LabelWriter:
    """Writes a label store; goes on where an interrupted one stopped.

    Use as a context manager. A shard depends on its own images only, so its bytes are the same after any interruption,
    and when several jobs write one store together. Leaving by an exception keeps the finished shards.

    Args:
        folder: of the store; made if missing.
        header: what the labels depend on (config hash, backbone, refiner, ...), JSON-able. An entry "total" is the
            number of images, by which a reader knows that some are missing.
        shard_size: images a shard; an interrupted run loses at most that many.

    Raises:
        DataError: the folder holds a store with another header or shard size, or a shard that cannot be read.
    """

    def __init__(self, folder: Path, *, header: Mapping[str, Any], shard_size: int = 64) -> None:
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.shard_size = shard_size
        self.header = json.loads(json.dumps(dict(header), sort_keys=True))
        shards = [self._checked(path) for path in _shards(self.folder)]
        self._finished = {shard.number: shard.places for shard in shards}
        self._unused = {shard.number: [entry["file"] for entry in shard.skipped] for shard in shards}
        self._numbers: Iterator[int] = itertools.count(max(self._finished, default=-1) + 1)
        self._begin()

    def _checked(self, path: Path) -> _Shard:
        shard = _Shard.read(path)
        where = "write to another folder, or remove this one to make them anew"
        if shard.header != self.header:
            raise DataError(
                f"{path}: holds labels made with other settings ({_difference(shard.header, self.header)}); {where}"
            )
        if shard.places.start != shard.number * self.shard_size or len(shard.places) > self.shard_size:
            raise DataError(
                f"{path}: holds another number of images than the {self.shard_size} of a shard now; {where}"
            )
        return shard

    def reopen(self, usable: Callable[[str], bool]) -> None:
        """Count those shards as unfinished that skipped a file which is `usable` by now."""
        for number, files in self._unused.items():
            if any(map(usable, files)):
                del self._finished[number]

    def left(self, total: int, job: tuple[int, int] = (0, 1)) -> list[range]:
        """Places of images that no finished shard holds, shard by shard: give just these to `add` or `skip`, in order.

        Args:
            total: images of the whole store.
            job: (i, n) for every n-th shard from the i-th on, so that n jobs share the work.

        Raises:
            DataError: the store holds more than `total` images.
        """
        if any(places.stop > total for places in self._finished.values()):
            raise DataError(f"{self.folder}: holds labels of more than these {total} images; remove it, to begin anew")
        shards = {k: places for k, places in self.shards(total, job).items() if self._finished.get(k) != places}
        self._numbers = iter(shards)
        self._begin()
        return list(shards.values())

    def shards(self, total: int, job: tuple[int, int] = (0, 1)) -> dict[int, range]:
        """Numbers of a job's shards, and the places of their images; see `left`."""
        size = self.shard_size
        numbers = range(job[0], max(-(-total // size), 1), job[1])
        return {number: range(number * size, min((number + 1) * size, total)) for number in numbers}

    def add(self, image_id: int, file: str, forest: MaskForest) -> None:
        """Append one image.

        Raises:
            ValueError: the forest has an attribute that the store has no column for.
        """
        self._rows.append(_row(image_id, file, forest))
        self._next_place()

    def skip(self, file: str, reason: str) -> None:
        """Note that the image whose turn it is cannot be used."""
        self._skipped.append({"file": printable(file), "reason": reason})
        self._next_place()

    def close(self) -> None:
        """Write what is left as the last, short shard. A store without images gets one empty shard, for its header."""
        if self._rows or self._skipped or self._number == 0:
            self._flush()

    def _begin(self) -> None:
        self._number = next(self._numbers, -1)
        self._rows: list[dict[str, Any]] = []
        self._skipped: list[dict[str, str]] = []

    def _next_place(self) -> None:
        if len(self._rows) + len(self._skipped) == self.shard_size:
            self._flush()

    def _flush(self) -> None:
        places = {
            "first": self._number * self.shard_size,
            "count": len(self._rows) + len(self._skipped),
            "skipped": self._skipped,
        }
        metadata = {
            key: json.dumps(value, sort_keys=True) for key, value in ((_HEADER, self.header), (_PLACES, places))
        }
        table = pa.Table.from_pylist(self._rows, schema=SCHEMA.with_metadata(metadata))
        with atomic_path(self.folder / f"labels-{self._number:05d}.parquet") as temporary:
            pq.write_table(table, temporary, row_group_size=_ROWS_A_GROUP, compression="zstd")
        for leftover in self.folder.glob(f".labels-{self._number:05d}.*"):  # of a run that was killed while it wrote
            leftover.unlink(missing_ok=True)
        self._begin()

    def __enter__(self) -> LabelWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()


@dataclass(frozen=True)
class _Shard:
    """What a shard says about itself."""

    path: Path
    number: int
    header: dict[str, Any]
    places: range
    skipped: list[dict[str, str]]
    image_ids: NDArray[np.int64]
    files: pa.ChunkedArray

    @classmethod
    def read(cls, path: Path) -> _Shard:
        with _opened(path) as file:
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


class LabelStore:
    """Reads a label store, one row group at a time; may be shared with forked and pickled to spawned workers.

    Args:
        folder: of the store.
        partial: take a store that is still being written for what it holds.

    Attributes:
        header: as given to the writer.
        skipped: file and reason of the images that could not be used.

    Raises:
        DataError: no store there, a shard is damaged, shards have different headers, or some are missing.
    """

    def __init__(self, folder: Path, *, partial: bool = False) -> None:
        self.folder = Path(folder)
        self._paths = _shards(self.folder)
        if not self._paths:
            raise DataError(
                f"{self.folder}: no label store here (no labels-00000.parquet); run the explore stage first"
            )
        shards = [_Shard.read(path) for path in self._paths]
        self.header: dict[str, Any] = shards[0].header
        for shard in shards:
            if shard.header != self.header:
                raise DataError(
                    f"{shard.path}: its header differs from that of {self._paths[0].name}; make the store anew"
                )
        if not partial:
            self._refuse_missing(shards)
        self.skipped = {entry["file"]: entry["reason"] for shard in shards for entry in shard.skipped}
        self._ids = np.concatenate([shard.image_ids for shard in shards])
        self._files = pa.chunked_array([chunk for shard in shards for chunk in shard.files.chunks], pa.string())
        self._starts = np.cumsum([0, *(len(shard.image_ids) for shard in shards)])  # first row of each shard
        self._order = np.argsort(self._ids, kind="stable")
        self._last_group: tuple[tuple[int, int], list[dict[str, Any]]] = ((-1, -1), [])

    def _refuse_missing(self, shards: list[_Shard]) -> None:
        for index, shard in enumerate(shards):
            if shard.number != index:
                raise DataError(
                    f"{self.folder}: shard labels-{index:05d}.parquet is missing; run what made the store again (every "
                    "job of it), finished shards are kept"
                )
        seen, total = sum(len(shard.places) for shard in shards), self.header.get("total", 0)
        if seen < total:
            raise DataError(
                f"{self.folder}: only {seen} of {total} images are done; run what made the store again (every job of "
                "it), finished shards are kept"
            )

    @property
    def image_ids(self) -> list[int]:
        """Ids of the images, in the order they were written."""
        ids: list[int] = self._ids.tolist()
        return ids

    @property
    def files(self) -> dict[int, str]:
        """The file of each image by id, as given to the writer."""
        return dict(zip(self.image_ids, self._files.to_pylist(), strict=True))

    def __len__(self) -> int:
        return len(self._ids)

    def __contains__(self, image_id: int) -> bool:
        return self._find(image_id) is not None

    def __iter__(self) -> Iterator[tuple[int, MaskForest]]:
        """Image ids and forests, in the order they were written."""
        for row in self.rows():
            yield row["image_id"], _forest(row)

    def rows(self) -> Iterator[dict[str, Any]]:
        """The rows as `SCHEMA` has them, in the order they were written."""
        return (self._at(place) for place in range(len(self)))

    def columns(self, *names: str) -> Iterator[pa.ListArray]:
        """Some fields of the masks of all images, shard by shard: a list of structs an image."""
        for path in self._paths:
            with _opened(path) as file:
                table = file.read([f"masks.list.element.{name}" for name in names])
            yield from table.column("masks").chunks

    def forest(self, image_id: int) -> MaskForest:
        """The forest of one image; KeyError when the store does not hold it."""
        return _forest(self._row(image_id))

    def file(self, image_id: int) -> str:
        """The image's file, as given to the writer."""
        place = self._find(image_id)
        if place is None:
            raise KeyError(image_id)
        return str(self._files[place].as_py())

    def _find(self, image_id: int) -> int | None:
        rank = int(np.searchsorted(self._ids, image_id, sorter=self._order))
        found = rank < len(self) and self._ids[self._order[rank]] == image_id
        return int(self._order[rank]) if found else None

    def _row(self, image_id: int) -> dict[str, Any]:
        place = self._find(image_id)
        if place is None:
            raise KeyError(image_id)
        return self._at(place)

    def _at(self, place: int) -> dict[str, Any]:
        shard = int(np.searchsorted(self._starts, place, side="right")) - 1
        group, offset = divmod(place - int(self._starts[shard]), _ROWS_A_GROUP)
        known, rows = self._last_group
        if known != (shard, group):
            with _opened(self._paths[shard]) as file:
                rows = file.read_row_group(group).to_pylist()
            self._last_group = ((shard, group), rows)
        return rows[offset]


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
    return sorted(folder.glob("labels-*.parquet"), key=lambda path: (len(path.name), path.name))


@contextmanager
def _opened(path: Path) -> Iterator[pq.ParquetFile]:
    try:
        with pq.ParquetFile(path, memory_map=True) as file:
            yield file
    except (OSError, pa.ArrowException, KeyError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"{path}: damaged label shard ({reason}); delete it and run what made it again") from error


def _difference(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    keys = [key for key in sorted({*found, *wanted}) if found.get(key) != wanted.get(key)]
    return ", ".join(f"{key}: {found.get(key)!r} there, {wanted.get(key)!r} now" for key in keys)
