"""Any way to segment images, applied to a listing, its forests kept in a label store; what was interrupted resumes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from sohes.data.coco import ImageSet
from sohes.data.images import ImageArray
from sohes.data.label_store import LabelStore, LabelWriter
from sohes.data.listing import Listing
from sohes.errors import DataError
from sohes.masks import MaskForest
from sohes.progress import Reporter

Job = tuple[int, Callable[[], ImageArray]]  # place of an image, and what loads it
Outcome = tuple[int, MaskForest | DataError]  # place of an image, and its forest or why there is none


def label_images(
    segment: Callable[[ImageArray], MaskForest],
    source: ImageSet,
    folder: Path,
    *,
    header: Mapping[str, Any],
    description: str,
    shard_size: int = 16,
) -> dict[str, str]:
    """Segment every image of `source` that the store does not hold yet, one by one.

    Args:
        segment: image (H, W, 3) uint8 RGB to forest.
        source: the images.
        folder: of the label store.
        header: what the forests depend on; see `LabelWriter`.
        description: shown beside the progress.
        shard_size: images per shard, what an interruption loses at most.

    Returns:
        The reason for each file that was skipped, because it or its forest cannot be used.

    Raises:
        DataError: the store was made with another header, or cannot be read.
    """

    def one_by_one(jobs: Iterable[Job]) -> Iterator[Outcome]:
        for place, load in jobs:
            try:
                yield place, segment(load())
            except DataError as error:
                yield place, error

    listing = Listing.of_items(source.items)
    label_listing(one_by_one, listing, folder, header=header, description=description, shard_size=shard_size)
    return LabelStore(folder).skipped


def label_listing(
    segment: Callable[[Iterable[Job]], Iterable[Outcome]],
    listing: Listing,
    folder: Path,
    *,
    header: Mapping[str, Any],
    description: str,
    shard_size: int,
    job: tuple[int, int] = (0, 1),
) -> None:
    """Segment every image of a listing, or every one of a job's part, that the store does not hold yet.

    Files that were skipped before are tried again.

    Args:
        segment: gives the results for many images in the order in which it takes them.
        listing: the images.
        folder: of the label store.
        header: what the forests depend on; see `LabelWriter`.
        description: shown beside the progress.
        shard_size: images per shard, what an interruption loses at most.
        job: (i, n) for the i-th of n jobs that write the store together, i counted from 0.

    Raises:
        DataError: the store was made with another header, or cannot be read.
    """
    with LabelWriter(folder, header=header, shard_size=shard_size) as writer:
        writer.reopen(partial(_loads, listing))
        share = sum(map(len, writer.shards(len(listing), job).values()))
        left = writer.left(len(listing), job)
        jobs = ((place, partial(listing.load, place)) for places in left for place in places)
        done = share - sum(map(len, left))
        masks = images = 0
        with Reporter(description, share, done=done) as reporter:
            for place, result in segment(jobs):
                if isinstance(result, DataError):
                    writer.skip(listing.names[place], str(result))
                else:
                    writer.add(listing.ids[place], listing.names[place], result)
                    masks, images = masks + len(result), images + 1
                reporter.advance(note=f"{masks / max(images, 1):.0f} masks per image")


def _loads(listing: Listing, name: str) -> bool:
    if name not in listing.names:
        return False
    try:
        listing.load(listing.names.index(name))
    except DataError:
        return False
    return True
