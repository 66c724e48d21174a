"""Label store: the mask forest of every image, one row each, written shard by shard, read at random (README §1)."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa

from sohes.data.label_shards import (
    GROUP_ROWS,
    Shard,
    forest_row,
    opened,
    row_forest,
    shard_paths,
    write_shard,
)
from sohes.errors import DataError
from sohes.files import printable
from sohes.masks import MaskForest

_SHARDS, _LARGEST_SHARD = 256, 64


def even_shard_size(total: int) -> int:
    """Images per shard, such that any number of jobs up to some dozen share `total` images evenly, shard by shard.

    It depends on nothing else, so that a store is the same whatever number of jobs made it.
    """
    return max(1, min(_LARGEST_SHARD, total // _SHARDS))


class LabelWriter:
    """Writes a label store; resumes where an interrupted one stopped.

    Use as a context manager. A shard depends on its own images only, so its bytes are the same after any interruption,
    and when several jobs write one store together. Leaving by an exception keeps the finished shards.

    Args:
        folder: of the store; made if missing.
        header: what the labels depend on (config hash, backbone, refiner, ...), JSON-able. An entry "total" is the
            number of images, by which a reader knows that some are missing.
        shard_size: images per shard; an interruption loses at most that many.

    Raises:
        DataError: the folder holds a store with another header or shard size, or a shard that cannot be read.
    """

    def __init__(self, folder: Path, *, header: Mapping[str, Any], shard_size: int = 64) -> None:
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.shard_size = shard_size
        self.header = json.loads(json.dumps(dict(header), sort_keys=True))
        shards = [self._checked(path) for path in shard_paths(self.folder)]
        self._finished = {shard.number: shard.places for shard in shards}
        self._unused = {shard.number: [entry["file"] for entry in shard.skipped] for shard in shards}
        self._numbers: Iterator[int] = itertools.count(max(self._finished, default=-1) + 1)
        self._begin()

    def _checked(self, path: Path) -> Shard:
        shard = Shard.read(path)
        where = "write to another folder, or remove this one to make them from scratch"
        if shard.header != self.header:
            raise DataError(
                f"{path}: holds labels made with other settings ({_difference(shard.header, self.header)}); {where}"
            )
        if shard.places.start != shard.number * self.shard_size or len(shard.places) > self.shard_size:
            raise DataError(
                f"{path}: has another number of images per shard than the {self.shard_size} of now; {where}"
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
            raise DataError(f"{self.folder}: holds labels of more than these {total} images; remove it to start over")
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
        self._rows.append(forest_row(image_id, file, forest))
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
        first = self._number * self.shard_size
        write_shard(self.folder, self._number, first, self.header, self._rows, self._skipped)
        self._begin()

    def __enter__(self) -> LabelWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()


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
        self._paths = shard_paths(self.folder)
        if not self._paths:
            raise DataError(
                f"{self.folder}: no label store here (no labels-00000.parquet); run the explore stage first"
            )
        shards = [Shard.read(path) for path in self._paths]
        self.header: dict[str, Any] = shards[0].header
        for shard in shards:
            if shard.header != self.header:
                raise DataError(
                    f"{shard.path}: its header differs from that of {self._paths[0].name}; make the store from scratch"
                )
        if not partial:
            self._refuse_missing(shards)
        self.skipped = {entry["file"]: entry["reason"] for shard in shards for entry in shard.skipped}
        self._ids = np.concatenate([shard.image_ids for shard in shards])
        self._files = pa.chunked_array([chunk for shard in shards for chunk in shard.files.chunks], pa.string())
        self._starts = np.cumsum([0, *(len(shard.image_ids) for shard in shards)])  # first row of each shard
        self._order = np.argsort(self._ids, kind="stable")
        self._last_group: tuple[tuple[int, int], pa.Table] = ((-1, -1), pa.table({}))

    def _refuse_missing(self, shards: list[Shard]) -> None:
        for index, shard in enumerate(shards):
            if shard.number != index:
                raise DataError(
                    f"{self.folder}: shard labels-{index:05d}.parquet is missing; rerun what made the store (every "
                    "job of it), finished shards are kept"
                )
        seen, total = sum(len(shard.places) for shard in shards), self.header.get("total", 0)
        if seen < total:
            raise DataError(
                f"{self.folder}: only {seen} of {total} images are done; rerun what made the store (every job of "
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
            yield row["image_id"], row_forest(row)

    def rows(self) -> Iterator[dict[str, Any]]:
        """The rows as `forest_row` makes them, in the order they were written."""
        return (self._at(place) for place in range(len(self)))

    def columns(self, *names: str) -> Iterator[pa.ListArray]:
        """Some fields of the masks of all images, shard by shard: a list of structs per image."""
        for path in self._paths:
            with opened(path) as file:
                table = file.read([f"masks.list.element.{name}" for name in names])
            yield from table.column("masks").chunks

    def forest(self, image_id: int) -> MaskForest:
        """The forest of one image; KeyError when the store does not hold it."""
        return row_forest(self._row(image_id))

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
        group, offset = divmod(place - int(self._starts[shard]), GROUP_ROWS)
        known, table = self._last_group
        if known != (shard, group):
            with opened(self._paths[shard]) as file:
                table = file.read_row_group(group)
            self._last_group = ((shard, group), table)
        row: dict[str, Any] = table.slice(offset, 1).to_pylist()[0]
        return row


def _difference(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    keys = [key for key in sorted({*found, *wanted}) if found.get(key) != wanted.get(key)]
    return ", ".join(f"{key}: {found.get(key)!r} there, {wanted.get(key)!r} now" for key in keys)
