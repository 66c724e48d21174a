"""Any way to segment an image, run over a set of images into a label store, so that an interrupted run goes on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from sohes.data import images
from sohes.data.coco import ImageSet
from sohes.data.labels import LabelWriter
from sohes.errors import DataError
from sohes.masks import MaskForest
from sohes.progress import track


def label_images(
    segment: Callable[[images.ImageArray], MaskForest],
    source: ImageSet,
    folder: Path,
    *,
    header: Mapping[str, Any],
    description: str,
    shard_size: int = 16,
) -> dict[str, str]:
    """Segment every image of `source` that the store does not hold yet.

    Args:
        segment: image (H, W, 3) uint8 RGB to forest.
        source: the images.
        folder: of the label store.
        header: what the forests depend on; see `LabelWriter`.
        description: shown beside the progress.
        shard_size: images a shard, what an interrupted run loses at most.

    Returns:
        The reason for each file that was skipped, because it or its forest cannot be used.

    Raises:
        DataError: the store was made with another header, or cannot be read.
    """
    failed = {}
    with LabelWriter(folder, header=header, shard_size=shard_size) as writer:
        left = [item for item in source.items if item.id not in writer.done]
        for item in track(left, description, total=len(source), done=len(source) - len(left)):
            try:
                forest = segment(images.load_image(item.path))
            except DataError as error:
                failed[str(item.path)] = str(error)
            else:
                writer.add(item.id, str(item.path), forest)
    return failed
