"""What every metric takes: ground truth read from a COCO file, and predictions checked against it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from sohes.data.coco import ImageSet, read_coco
from sohes.errors import DataError
from sohes.masks import MaskForest

Truth = ImageSet | str | os.PathLike[str]


def load_inputs(ground_truth: Truth, predictions: Mapping[int, MaskForest]) -> ImageSet:
    """The ground truth, read if it is given as a path, once the predictions are known to belong to it.

    Raises:
        DataError: a COCO file that cannot be used (see `read_coco`); predictions for an image that is not in it, at
            another size than the image's, or with a score that is not finite. The message names the image.
    """
    truth = ground_truth if isinstance(ground_truth, ImageSet) else read_coco(Path(ground_truth))
    sizes = {item.id: item.size_hw for item in truth.items}
    unknown = [image_id for image_id in predictions if image_id not in sizes]
    if unknown:
        raise DataError(
            f"predictions for {len(unknown)} images, among them id {unknown[0]!r}, are not in {truth.source}; its ids "
            f"begin with {sorted(sizes)[:3]}. Predict on the images of that file."
        )
    for image_id, forest in predictions.items():
        given = {tuple(forest.size_hw)} | {tuple(rle["size"]) for rle in forest.rles}
        if wrong := given - {sizes[image_id]}:
            raise DataError(
                f"predictions for image {image_id} have size (height, width) {min(wrong)}, the image in "
                f"{truth.source} has {sizes[image_id]}. Resize the masks to the image before evaluating."
            )
        if not np.isfinite(forest.scores).all():
            raise DataError(f"predictions for image {image_id} have a score that is not finite; scores rank masks")
    return truth
