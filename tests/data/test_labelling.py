"""Labelling a list of images file by file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from sohes.data.label_store import LabelStore
from sohes.data.labelling import Job, Outcome, label_listing
from sohes.data.listing import list_images
from sohes.errors import DataError
from sohes.masks import MaskForest


def test_a_skipped_file_is_tried_again(tmp_path: Path) -> None:
    """Its shard alone is rewritten, once the file can be read; the others keep their bytes."""
    photos = tmp_path / "photos"
    photos.mkdir()
    for name in range(6):
        Image.fromarray(np.full((4, 5, 3), name, np.uint8)).save(photos / f"{name}.png")
    whole = (photos / "3.png").read_bytes()
    (photos / "3.png").write_bytes(whole[:40])
    seen: list[int] = []

    def label() -> list[int]:
        seen.clear()

        def segment(jobs: Iterable[Job]) -> Iterator[Outcome]:
            for place, load in jobs:
                try:
                    image = load()
                except DataError as error:
                    yield place, error
                else:
                    seen.append(int(image[0, 0, 0]))
                    yield place, MaskForest.from_rles([], (4, 5))

        listing = list_images(str(photos))
        label_listing(segment, listing, tmp_path / "labels", header={}, description="label", shard_size=2)
        return seen

    assert label() == [0, 1, 2, 4, 5]
    assert list(LabelStore(tmp_path / "labels").skipped) == [str(photos / "3.png")]
    assert label() == []
    first = (tmp_path / "labels/labels-00000.parquet").stat().st_mtime_ns
    (photos / "3.png").write_bytes(whole)
    assert label() == [2, 3]
    assert LabelStore(tmp_path / "labels").skipped == {}
    assert len(LabelStore(tmp_path / "labels")) == 6
    assert (tmp_path / "labels/labels-00000.parquet").stat().st_mtime_ns == first
