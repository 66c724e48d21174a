"""What a data worker delivers per second: `python benchmarks/training_data.py [--json FILE]`.

Generated photographs and label stores, phase 3 (clean and noisy view). Before: masks decoded in full, then indexed, and
compared pixel by pixel; after: `ForestSamples`. One process, one thread, the same samples to the last bit. Times are
those of the processor, so that other work on the machine counts less.
"""

from __future__ import annotations

import argparse
import math
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from benchmarks.mask_algebra import nested_masks
from sohes.data.coco import ImageItem, ImageSet
from sohes.data.label_store import LabelStore, LabelWriter
from sohes.data.views import View
from sohes.files import write_json
from sohes.instruct.dataset import ForestSamples, collate
from sohes.instruct.settings import SampleSettings
from sohes.masks import MaskForest
from sohes.records import hardware
from sohes.rle import IntArray, decode_masks

# image size, masks per image, canvas: as in SA-1B, and as in BSDS500 at demo scale
CASES = (((1500, 2250), 150, 1024), ((321, 481), 40, 224))
IMAGES_A_SECOND = 16.0  # that a step of 16 images may want


class DecodedSamples(ForestSamples):
    """The plain way: every mask in full, then the view of it, then products of all pairs of masks."""

    def _targets(self, forest: MaskForest, view: View, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        count, size, settings = len(forest), self.settings.crop_px, self.settings
        chosen: IntArray = np.arange(count)
        if count > settings.max_targets:
            chosen = np.sort(rng.choice(count, settings.max_targets, replace=False))
        full = decode_masks([forest.rles[i] for i in chosen], forest.size_hw)
        rows, columns = view.grid(forest.size_hw)
        masks = full[:, rows][:, :, columns]
        flat = masks.reshape(count, -1).astype(np.float32)
        areas, shared = flat.sum(1), flat @ flat.T
        stays = (areas >= settings.min_area_px) & (areas >= settings.min_area_left * full.sum((1, 2)) * view.area_scale)
        same = shared > settings.same_iou * (areas[:, None] + areas[None, :] - shared)
        ancestor = forest.ancestor[np.ix_(chosen, chosen)]
        stays &= ~(same & ancestor & stays[None, :]).any(axis=1)
        kept = np.flatnonzero(stays)
        canvas = np.zeros((len(kept), size, size), dtype=bool)
        canvas[:, : len(rows), : len(columns)] = masks[kept]
        return torch.from_numpy(canvas), torch.from_numpy(ancestor[np.ix_(kept, kept)])


def write_store(folder: Path, size_hw: tuple[int, int], masks: int, images: int) -> tuple[ImageSet, LabelStore]:
    """Photograph-like JPEG files and their forests."""
    items = []
    with LabelWriter(folder / "labels", header={}) as writer:
        for place in range(images):
            rng = np.random.default_rng(place)
            coarse = rng.integers(0, 256, (size_hw[0] // 16, size_hw[1] // 16, 3)).astype(np.float32)
            smooth = cv2.resize(coarse, size_hw[::-1], interpolation=cv2.INTER_CUBIC)
            pixels = (smooth + rng.normal(0, 8, smooth.shape)).clip(0, 255).astype(np.uint8)
            path = folder / f"{place}.jpg"
            Image.fromarray(pixels).save(path, quality=90)
            items.append(ImageItem(place + 1, path, *size_hw))
            writer.add(place + 1, str(path), MaskForest.from_rles(nested_masks(masks, size_hw, seed=place), size_hw))
    return ImageSet(folder / "images.json", items), LabelStore(folder / "labels")


def timed(function: Callable[[], Any]) -> tuple[float, Any]:
    """Processor seconds, and the result."""
    start = time.process_time()
    result = function()
    return time.process_time() - start, result


def assert_equal(left: Sequence[dict[str, Tensor]], right: Sequence[dict[str, Tensor]]) -> None:
    """The same samples to the last bit."""
    for one, other in zip(left, right, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            assert torch.equal(one[name], other[name]), f"{name} differs"


def measure(folder: Path, size_hw: tuple[int, int], masks: int, crop_px: int, samples: int) -> dict[str, Any]:
    """Seconds a sample of both, and of making a batch of what they give."""
    images, store = write_store(folder, size_hw, masks, images=4)
    options: dict[str, Any] = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225), "seed": 0}
    after = ForestSamples(images, store, SampleSettings(crop_px=crop_px), noisy_view=True, **options)
    before = DecodedSamples(images, store, SampleSettings(crop_px=crop_px), noisy_view=True, **options)
    after[0]  # compile
    after_s, new = timed(lambda: [after[position] for position in range(samples)])
    before_s, old = timed(lambda: [before[position] for position in range(samples)])
    assert_equal(new, old)
    collate_s, batch = timed(lambda: collate(new))
    row = {
        "size_hw": list(size_hw),
        "masks": masks,
        "crop_px": crop_px,
        "samples": samples,
        "targets": float(batch["valid"].sum(1).float().mean()),
        "before_s": before_s / samples,
        "after_s": after_s / samples,
        "collate_s": collate_s / samples,
    }
    row["ratio"] = row["before_s"] / row["after_s"]
    for name in ("before", "after"):
        row[f"workers_{name}"] = math.ceil(IMAGES_A_SECOND * (row[f"{name}_s"] + row["collate_s"]))
    return row


def main() -> None:
    """Measure every case."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--json", type=Path, help="write the times here")
    options = parser.parse_args()
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    rows = []
    for size_hw, masks, crop_px in CASES:
        with tempfile.TemporaryDirectory() as folder:
            row = measure(Path(folder), size_hw, masks, crop_px, options.samples)
        rows.append(row)
        print(
            f"{masks} masks of {size_hw[0]} x {size_hw[1]} px, canvas {crop_px} px, {row['targets']:.0f} targets left, "
            f"equal to the last bit:\n"
            f"  before {1 / row['before_s']:.2f} samples/s, after {1 / row['after_s']:.2f}, ratio {row['ratio']:.1f}\n"
            f"  making a batch takes another {row['collate_s'] * 1e3:.1f} ms a sample, "
            f"{row['collate_s'] / (row['collate_s'] + row['after_s']):.0%} of the worker's time\n"
            f"  {IMAGES_A_SECOND:.0f} images/s need {row['workers_after']} workers, {row['workers_before']} before",
            flush=True,
        )
    if options.json:
        write_json(options.json, {"hardware": hardware(), "rows": rows})


if __name__ == "__main__":
    main()
