"""Mask algebra against pycocotools on 2,000 nested masks: `python benchmarks/mask_algebra.py [--json FILE]`.

Same RLEs, one process, one thread; IoU and coverage must be equal to the last bit. Times are those of the processor, so
that other work on the machine counts less.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from sohes.files import write_json
from sohes.masks import coverage_ancestors, non_maximum_suppression, pairwise_coverage, pairwise_iou
from sohes.records import hardware
from sohes.rle import encode_masks, encode_window, pairwise_intersections

SIZES_HW = ((321, 481), (1024, 1024), (1500, 2250))


def nested_masks(count: int, size_hw: tuple[int, int], seed: int = 0) -> list[dict[str, Any]]:
    """RLEs of ragged ellipses, each in the box of another or of the image."""
    import cv2

    rng = np.random.default_rng(seed)
    height, width = size_hw
    coarse = rng.normal(size=(height // 4, width // 4)).astype(np.float32)
    ragged = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC) * np.float32(0.15)
    boxes, rles = [(0, 0, height, width)], []
    while len(rles) < count:
        top, left, h, w = boxes[rng.integers(len(boxes))]
        inner_h, inner_w = max(8, int(h * rng.uniform(0.3, 0.9))), max(8, int(w * rng.uniform(0.3, 0.9)))
        top, left = top + int(rng.integers(0, h - inner_h + 1)), left + int(rng.integers(0, w - inner_w + 1))
        y, x = np.ogrid[-1 : 1 : inner_h * 1j, -1 : 1 : inner_w * 1j]
        mask = y**2 + x**2 + ragged[top : top + inner_h, left : left + inner_w] < 1
        if mask.sum() >= 30:
            rles.append(encode_window(mask, (top, left), size_hw))
            if min(inner_h, inner_w) > 24:
                boxes.append((top, left, inner_h, inner_w))
    return rles


def best_of(repeats: int, function: Callable[[], Any]) -> tuple[float, Any]:
    """Processor seconds of the fastest run, and the result."""
    seconds, result = np.inf, None
    for _ in range(repeats):
        start = time.process_time()
        result = function()
        seconds = min(seconds, time.process_time() - start)
    return float(seconds), result


def measure(size_hw: tuple[int, int], count: int) -> dict[str, Any]:
    """Times in seconds at one image size."""
    rles = nested_masks(count, size_hw)
    coco_iou_s, coco_iou = best_of(2, lambda: coco_mask.iou(rles, rles, [0] * count))
    coco_coverage_s, coco_coverage = best_of(2, lambda: coco_mask.iou(rles, rles, [1] * count).T)
    intersections_s, _ = best_of(5, lambda: pairwise_intersections(rles))
    iou_s, iou = best_of(5, lambda: pairwise_iou(rles))
    coverage_s, coverage = best_of(5, lambda: pairwise_coverage(rles))
    assert np.array_equal(iou, coco_iou), "IoU differs"
    assert np.array_equal(coverage, coco_coverage), "coverage differs"
    suppression_s, kept = best_of(5, lambda: non_maximum_suppression(iou, range(count), 0.9))
    ancestors_s, ancestor = best_of(5, lambda: coverage_ancestors(coverage))
    masks = np.ascontiguousarray(np.moveaxis(coco_mask.decode(rles[:100]), -1, 0)).view(bool)
    encode_s, encoded = best_of(3, lambda: encode_masks(masks))
    coco_encode_s, coco_encoded = best_of(3, lambda: [coco_mask.encode(np.asfortranarray(m, np.uint8)) for m in masks])
    assert [rle["counts"] for rle in encoded] == [rle["counts"].decode() for rle in coco_encoded], "RLEs differ"
    return {
        "size_hw": list(size_hw),
        "masks": count,
        "kept": len(kept),
        "ancestor_pairs": int(ancestor.sum()),
        "intersections_s": intersections_s,
        "iou_s": iou_s,
        "coverage_s": coverage_s,
        "nms_s": suppression_s,
        "ancestors_s": ancestors_s,
        "pycocotools_iou_s": coco_iou_s,
        "pycocotools_coverage_s": coco_coverage_s,
        "iou_ratio": coco_iou_s / iou_s,
        "encode_ms_per_mask": encode_s / len(masks) * 1e3,
        "pycocotools_encode_ms_per_mask": coco_encode_s / len(masks) * 1e3,
    }


def main() -> None:
    """Time both at every size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--masks", type=int, default=2000)
    parser.add_argument("--json", type=Path, help="write the times here")
    options = parser.parse_args()
    nested = nested_masks(3, (64, 64))
    pairwise_iou(nested)  # compile
    rows = []
    for size_hw in SIZES_HW:
        row = measure(size_hw, options.masks)
        rows.append(row)
        print(f"{options.masks} masks of {size_hw[0]} x {size_hw[1]} px, equal to the last bit:", flush=True)
        print(
            f"  IoU {row['iou_s']:.3f} s, pycocotools {row['pycocotools_iou_s']:.2f} s, ratio {row['iou_ratio']:.0f}\n"
            f"  coverage {row['coverage_s']:.3f} s, pycocotools {row['pycocotools_coverage_s']:.2f} s\n"
            f"  NMS {row['nms_s']:.4f} s, ancestors {row['ancestors_s']:.4f} s\n"
            f"  encoding a mask {row['encode_ms_per_mask']:.3f} ms, "
            f"pycocotools {row['pycocotools_encode_ms_per_mask']:.3f} ms",
            flush=True,
        )
    if options.json:
        write_json(options.json, {"hardware": hardware(), "rows": rows})


if __name__ == "__main__":
    main()
