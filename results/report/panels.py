"""One panel of the gallery: a forest made small, in an order that the slider can cut, in the colours of the truth.

Regions come in an order in which none stands before what it is part of, so the first k of them are a forest for every
k: that is what the slider cuts (README §3).
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sohes.data.draw import best_masks, forest_colours, sampled
from sohes.data.images import ImageArray
from sohes.masks import MaskForest, pairwise_iou
from sohes.rle import IntArray, encode_window

REGIONS = 64  # of a forest at most
FOUND_IOU = 0.5  # at which a region is one of the ground truth's
_OBJECTS = 256  # of a ground truth at most
_LONGEST_PX = 512  # of an image on the page
_SHORTEST_PX = 448  # smaller ones are enlarged to it, or their outlines would be coarse
_PALE = 0.55  # how much grey is in the colour of a region that is no object of the ground truth
_QUALITY = 85  # of JPEG


def ordered(forest: MaskForest, ranked: Sequence[int] | IntArray | None = None) -> IntArray:
    """Indices of masks such that none stands before what it is part of; else in the order of `ranked`.

    Args:
        forest: the masks.
        ranked: the masks wanted, best first; None: all, largest first.
    """
    ranked = np.argsort(-forest.areas, kind="stable") if ranked is None else np.asarray(ranked, np.int64)
    chosen = forest.select(ranked)
    rank = np.arange(len(chosen))
    for index in np.argsort(-chosen.depth, kind="stable"):  # what is part of it lifts a region
        if (parent := chosen.parent[index]) >= 0:
            rank[parent] = min(rank[parent], rank[index])
    return np.asarray(ranked)[np.lexsort((chosen.depth, rank))]


def encoded_panel(name: str, forest: MaskForest, truth: MaskForest | None, size_hw: tuple[int, int]) -> dict[str, Any]:
    """A forest for the page, at another size.

    Args:
        name: title of the panel.
        forest: of the image.
        truth: its ground truth, which `forest` itself may be.
        size_hw: of the masks on the page, px.

    Returns:
        `masks`, each with its `id` in `forest`, its `parent` among them (-1: none), `score`, `area` in px of the image,
        `colour`, COCO's `rle` at `size_hw`, and with a ground truth the `iou` with its best object; and `best`: for
        each object the place of its best mask, -1 below an IoU of `FOUND_IOU`, and that IoU.
    """
    is_truth = forest is truth
    order = ordered(forest)[:_OBJECTS] if is_truth else ordered(forest, best_masks(forest, REGIONS))
    chosen = forest.select(order)
    colours = matched_colours(chosen, truth)
    rles: dict[int, str] = {}
    for index, window, corner in sampled(chosen, size_hw):
        rles[index] = encode_window(window, corner, size_hw)["counts"]
    masks: list[dict[str, Any]] = [
        {
            "id": int(order[entity.index]),
            "parent": -1 if entity.parent is None else entity.parent,
            "score": None if is_truth else round(entity.score, 3),
            "area": entity.area,
            "colour": "#" + colours[entity.index].round().astype(np.uint8).tobytes().hex(),
            "rle": rles.get(entity.index, ""),
        }
        for entity in chosen
    ]
    panel: dict[str, Any] = {"title": name, "truth": is_truth, "masks": masks}
    if truth is not None and len(truth) and not is_truth:
        objects = truth.select(ordered(truth)[:_OBJECTS])
        iou = pairwise_iou(chosen.rles, objects.rles) if masks else np.zeros((0, len(objects)))
        for mask, row in zip(masks, iou, strict=True):
            mask["iou"], mask["object"] = round(float(row.max()), 3), int(row.argmax())
        found = iou.max(axis=0, initial=0.0)
        best = [int(column.argmax()) if high >= FOUND_IOU else -1 for column, high in zip(iou.T, found, strict=True)]
        panel["best"] = [[index, round(float(high), 3)] for index, high in zip(best, found, strict=True)]
    return panel


def matched_colours(forest: MaskForest, truth: MaskForest | None) -> NDArray[np.float32]:
    """A colour for each mask (M, 3) RGB 0..255: that of the object it finds, paler ones of its own for the others."""
    colours = forest_colours(forest)
    if truth is None or truth is forest or not len(truth) or not len(forest):
        return colours
    iou = pairwise_iou(forest.rles, truth.rles)
    found = iou.max(axis=1) >= FOUND_IOU
    pale = (1 - _PALE) * colours + _PALE * colours.mean(axis=1, keepdims=True)
    return np.where(found[:, None], forest_colours(truth)[iou.argmax(axis=1)], pale).astype(np.float32)


def data_uri(image: ImageArray) -> str:
    """A picture (H, W, 3) uint8 RGB inside an address; the same picture gives the same text."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, format="JPEG", quality=_QUALITY, subsampling=0, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode("ascii")


def page_sized(image: ImageArray) -> ImageArray:
    """The picture as the page has it, at most 512 px."""
    height, width = image.shape[:2]
    longest = max(height, width)
    scale = min(max(longest, _SHORTEST_PX), _LONGEST_PX) / longest
    if scale == 1:
        return image
    size = max(1, round(width * scale)), max(1, round(height * scale))
    way = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(image, size, interpolation=way), np.uint8)
