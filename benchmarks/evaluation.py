"""Mask recall against pycocotools: `python benchmarks/evaluation.py [--images N] [--objects N] [--json FILE]`.

Same masks, one process, one thread; every number must be equal to 1e-9. Generated blobs, 1,000 predictions per image,
half of them shifted objects. Both take their masks as RLE from memory. Times are CPU seconds, those of pycocotools
without its `loadRes`.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from sohes.data.coco import Annotation, ImageItem, ImageSet
from sohes.evaluation.mask_recall import LIMITS, evaluate_masks
from sohes.files import write_json
from sohes.masks import MaskForest
from sohes.records import commit, hardware, versions
from sohes.rle import encode_masks

SIZE_HW = (480, 640)
PREDICTIONS = 1000


def blob(rng: np.random.Generator) -> NDArray[np.bool_]:
    """A random shape of radius 6 to 150 px with a rough outline."""
    height, width = SIZE_HW
    radius = np.exp(rng.uniform(np.log(6), np.log(150), 2))
    angle = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    reach = 1 + 0.25 * rng.normal(size=24)
    x = rng.integers(width) + radius[0] * reach * np.cos(angle)
    y = rng.integers(height) + radius[1] * reach * np.sin(angle)
    mask = np.zeros(SIZE_HW, np.uint8)
    cv2.fillPoly(mask, [np.stack([x, y], axis=1).astype(np.int32)], 1)
    return mask.astype(bool)


def scene(rng: np.random.Generator, objects: int) -> tuple[list[dict[str, Any]], MaskForest]:
    """Objects and 1,000 predictions of one image."""
    truth = [blob(rng) for _ in range(objects)]
    found = [
        np.roll(truth[rng.integers(objects)], tuple(rng.integers(-8, 9, 2)), (0, 1))
        if rng.random() < 0.5
        else blob(rng)
        for _ in range(PREDICTIONS)
    ]
    forest = MaskForest(
        size_hw=SIZE_HW,
        rles=encode_masks(np.stack(found)),
        scores=rng.random(PREDICTIONS, dtype=np.float32),
        ancestor=np.broadcast_to(np.False_, (PREDICTIONS, PREDICTIONS)),
        parent=np.full(PREDICTIONS, -1, np.int64),
    )
    return encode_masks(np.stack(truth)), forest


def by_pycocotools(truth: ImageSet, predictions: dict[int, MaskForest]) -> dict[str, float]:
    """The numbers of the reference, summarised from its arrays."""
    images = [{"id": item.id, "height": item.height, "width": item.width} for item in truth.items]
    annotations = [vars(row) | {"area": 0.0} for rows in truth.annotations.values() for row in rows]
    results = [
        {"image_id": image_id, "category_id": 1, "segmentation": rle, "score": float(score)}
        for image_id, forest in predictions.items()
        for rle, score in zip(forest.rles, forest.scores, strict=True)
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        reference = COCO()
        reference.dataset = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "entity"}]}
        reference.createIndex()
        for row in annotations:
            row["area"] = float(reference.annToMask(row).sum())
        evaluator = COCOeval(reference, reference.loadRes(results), "segm")
        evaluator.params.maxDets = list(LIMITS)
        start = time.process_time()
        evaluator.evaluate()
        evaluator.accumulate()
        seconds = time.process_time() - start
    recall, precision = evaluator.eval["recall"][:, 0], evaluator.eval["precision"][:, :, 0, 0, -1]

    def mean(values: NDArray[np.float64]) -> float:
        return float(values[values > -1].mean())

    numbers = {f"mask_ar_{limit}": mean(recall[:, 0, place]) for place, limit in enumerate(LIMITS)}
    numbers |= {f"mask_ar_1000_{size}": mean(recall[:, place, -1]) for place, size in enumerate("sml", start=1)}
    return numbers | {"mask_ap": mean(precision), "mask_ap50": mean(precision[0]), "seconds": seconds}


def main() -> None:
    """Time both on the same masks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=20)
    parser.add_argument("--objects", type=int, nargs="+", default=[20, 100], help="annotated objects an image")
    parser.add_argument("--json", type=Path, help="write the figures here")
    options = parser.parse_args()
    rng, rows = np.random.default_rng(0), []
    items = [ImageItem(image_id, Path("none"), *SIZE_HW) for image_id in range(1, options.images + 1)]
    for objects in options.objects:
        scenes = {item.id: scene(rng, objects) for item in items}
        annotations = {
            image_id: [
                Annotation(id=objects * image_id + place, image_id=image_id, category_id=1, segmentation=rle)
                for place, rle in enumerate(rles)
            ]
            for image_id, (rles, _) in scenes.items()
        }
        truth = ImageSet(Path("generated"), items, annotations)
        predictions = {image_id: forest for image_id, (_, forest) in scenes.items()}
        evaluate_masks(truth, {})  # compile
        start = time.process_time()
        ours = evaluate_masks(truth, predictions)
        seconds = time.process_time() - start
        reference = by_pycocotools(truth, predictions)
        reference_seconds = reference.pop("seconds")
        for metric, value in reference.items():
            assert abs(getattr(ours, metric) - value) < 1e-9, f"{metric}: {getattr(ours, metric)} and {value}"
        rows.append({"objects": objects, "seconds": seconds, "pycocotools_seconds": reference_seconds})
        print(
            f"{len(items)} images x {PREDICTIONS} masks, {objects:3d} objects an image: {seconds:6.2f} s   "
            f"pycocotools {reference_seconds:6.2f} s   ratio {reference_seconds / seconds:5.1f}   "
            f"{len(reference)} numbers equal",
            flush=True,
        )
    if options.json:
        figures = {"images": len(items), "predictions": PREDICTIONS, "size_hw": SIZE_HW, "rows": rows}
        write_json(options.json, figures | {"commit": commit(), "hardware": hardware(), "versions": versions()})


if __name__ == "__main__":
    main()
