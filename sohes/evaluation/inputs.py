"""What every metric takes: ground truth read from a COCO file, and predictions checked against it, image by image."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from sohes.data.coco import ImageItem, ImageSet, read_coco
from sohes.data.problems import Problems
from sohes.errors import DataError
from sohes.masks import MaskForest

Truth = ImageSet | str | os.PathLike[str]


def read_truth(ground_truth: Truth) -> ImageSet:
    """The ground truth, read if it is given as a path.

    Raises:
        DataError: a COCO file that cannot be used; see `read_coco`.
    """
    return ground_truth if isinstance(ground_truth, ImageSet) else read_coco(Path(ground_truth))


def first_images(truth: ImageSet, count: int | None) -> ImageSet:
    """The ground truth of the first `count` images; of all for None."""
    items = truth.items[:count]
    return replace(truth, items=items, annotations={i.id: truth.annotations.get(i.id, []) for i in items})


def left_out(truth: ImageSet, predictions: Collection[int], problems: Problems) -> list[str]:
    """What of the ground truth and of the predictions was not used, a sentence for each kind.

    Args:
        truth: ground truth.
        predictions: ids of the images that have some.
        problems: what was left out of them.
    """
    missing = sum(item.id not in predictions for item in truth.items)
    lines = [f"{missing} of {len(truth)} images have no predictions: their objects count as missed"]
    return [*(lines if missing else []), *truth.problems.lines(), *problems.lines()]


def checked(truth: ImageSet, predictions: Mapping[int, MaskForest]) -> Iterator[tuple[ImageItem, MaskForest]]:
    """Images and what was predicted on them, one at a time, in the order of the predictions.

    Raises:
        DataError: predictions for an image that is not in the ground truth, at another size than the image's, or with
            a score that is not finite. The message names the image.
    """
    known = {item.id: item for item in truth.items}
    unknown = [image_id for image_id in predictions if image_id not in known]
    if unknown:
        raise DataError(
            f"predictions for {len(unknown)} images, among them id {unknown[0]!r}, are not in {truth.source}; its ids "
            f"begin with {sorted(known)[:3]}. Predict on the images of that file."
        )
    for image_id, forest in predictions.items():
        item = known[image_id]
        if problem := forest_problem(forest, item):
            raise DataError(f"predictions for image {image_id} of {truth.source}: {problem}")
        yield item, forest


def forest_problem(forest: MaskForest, item: ImageItem) -> str:
    """Why a forest cannot be scored on an image; empty when nothing is wrong."""
    given = {tuple(forest.size_hw)} | {tuple(rle["size"]) for rle in forest.rles}
    if wrong := given - {item.size_hw}:
        return (
            f"masks of size (height, width) {min(wrong)}, the image has {item.size_hw}. Resize the masks to the image "
            "before evaluating."
        )
    if not np.isfinite(forest.scores).all():
        return "a score is not finite; scores rank masks"
    return ""
