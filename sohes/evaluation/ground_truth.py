"""Ground truth in COCO form, checked once: image sizes, objects as RLE, parents."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from sohes.errors import DataError
from sohes.files import read_json
from sohes.masks import MaskForest

CocoSource = Mapping[str, Any] | str | os.PathLike[str]


@dataclass(frozen=True)
class ObjectMask:
    """One annotated object: its mask at image size, its parent's id (0 for a root), and whether it marks a crowd."""

    id: int
    rle: dict[str, Any]
    parent_id: int
    crowd: bool


@dataclass(frozen=True)
class GroundTruth:
    """Objects of every image; an image without objects has an empty list.

    Attributes:
        name: file name, or "ground truth" for a dict; used in messages.
        sizes_hw: (height, width) in px by image id.
        objects: objects by image id, in the order of the file.
    """

    name: str
    sizes_hw: dict[int, tuple[int, int]]
    objects: dict[int, list[ObjectMask]]

    def check(self, predictions: Mapping[int, MaskForest]) -> None:
        """Refuse predictions that do not belong to this ground truth.

        Raises:
            DataError: an image id that is not in the ground truth, a size that differs from the image's, or a score
                that is not finite; the message names the image.
        """
        unknown = [image_id for image_id in predictions if image_id not in self.sizes_hw]
        if unknown:
            raise DataError(
                f"predictions for {len(unknown)} images, among them id {unknown[0]!r}, are not in {self.name}; its ids "
                f"begin with {sorted(self.sizes_hw)[:3]}. Predict on the images of that file."
            )
        for image_id, forest in predictions.items():
            sizes = {tuple(forest.size_hw)} | {tuple(rle["size"]) for rle in forest.rles}
            if wrong := sizes - {self.sizes_hw[image_id]}:
                raise DataError(
                    f"predictions for image {image_id} have size (height, width) {min(wrong)}, the image in "
                    f"{self.name} has {self.sizes_hw[image_id]}. Resize the masks to the image before evaluating."
                )
            if not np.isfinite(forest.scores).all():
                raise DataError(f"predictions for image {image_id} have a score that is not finite; scores rank masks")


def load_ground_truth(source: CocoSource) -> GroundTruth:
    """Ground truth of a COCO dict or the path of a COCO JSON file.

    Polygons, compressed and uncompressed RLE are read; `parent_id` is optional (0, a root, where absent).

    Raises:
        DataError: a missing field, an annotation of an unknown image, a mask whose size differs from its image's, a
            parent that does not exist or lies in another image, or a cycle of parents.
    """
    name, coco = ("ground truth", source) if isinstance(source, Mapping) else (str(source), read_json(Path(source)))
    try:
        sizes = {int(image["id"]): (int(image["height"]), int(image["width"])) for image in coco["images"]}
        objects: dict[int, list[ObjectMask]] = {image_id: [] for image_id in sizes}
        for annotation in coco["annotations"]:
            image_id = int(annotation["image_id"])
            if image_id not in sizes:
                raise DataError(
                    f"{name}: annotation {annotation['id']} belongs to image {image_id}, which is not among 'images'"
                )
            objects[image_id].append(_object(annotation, sizes[image_id], name))
    except (KeyError, TypeError) as error:
        raise DataError(f"{name}: not in COCO form, field {error} is missing or of the wrong type") from error
    for image_id, members in objects.items():
        _check_parents(members, f"{name}: image {image_id}")
    return GroundTruth(name=name, sizes_hw=sizes, objects=objects)


def _object(annotation: Mapping[str, Any], size_hw: tuple[int, int], name: str) -> ObjectMask:
    """One annotation with its mask as compressed RLE."""
    segmentation = annotation["segmentation"]
    try:
        if isinstance(segmentation, list):
            rle = coco_mask.merge(coco_mask.frPyObjects(segmentation, *size_hw))
        elif isinstance(segmentation["counts"], list):
            rle = coco_mask.frPyObjects(segmentation, *size_hw)
        else:
            rle = dict(segmentation)
    except (TypeError, ValueError, IndexError) as error:
        raise DataError(f"{name}: annotation {annotation['id']}, field 'segmentation': {error}") from error
    # an empty polygon list becomes a mask without a size: an object without pixels
    if list(rle["size"]) == [0, 0]:
        rle = coco_mask.encode(np.zeros(size_hw, np.uint8, order="F"))
    if tuple(rle["size"]) != size_hw:
        raise DataError(
            f"{name}: annotation {annotation['id']} has a mask of size (height, width) {tuple(rle['size'])}, "
            f"its image has {size_hw}"
        )
    return ObjectMask(
        id=int(annotation["id"]),
        rle=rle,
        parent_id=int(annotation.get("parent_id", 0)),
        crowd=bool(annotation.get("iscrowd", 0)),
    )


def _check_parents(objects: list[ObjectMask], where: str) -> None:
    """Raise DataError unless the parents of one image's objects form a forest."""
    parent = {item.id: item.parent_id for item in objects}
    for item in objects:
        above, steps = item.parent_id, 0
        while above:
            if above not in parent:
                raise DataError(f"{where}: field 'parent_id' {above} is not an annotation of this image; a root has 0")
            above, steps = parent[above], steps + 1
            if steps > len(objects):
                raise DataError(f"{where}: the parents of annotation {item.id} form a cycle; a root has 'parent_id' 0")
