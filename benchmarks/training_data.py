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
from numpy.typing import NDArray
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
from sohes.rle import BoolArray, IntArray, Rle, decode_masks

# image size, masks per image, how they are shown: as in SA-1B, as in BSDS500 at demo scale, and with copy-paste
CASES = (
    ((1500, 2250), 150, SampleSettings(crop_px=1024)),
    ((321, 481), 40, SampleSettings(crop_px=224)),
    ((321, 481), 100, SampleSettings(crop_px=448, scale_min=1.0, copy_paste=1.0)),
)
IMAGES_A_SECOND = 16.0  # that a step of 16 images may want


class DecodedMasks:
    """What `ForestSamples` asks of `MaskRuns`, the plain way: masks in full, products of all pairs."""

    def __init__(self, masks: BoolArray) -> None:
        self.masks, flat = masks, masks.reshape(len(masks), -1).astype(np.float32)
        self.areas, self._shared = flat.sum(1).astype(np.int64), (flat @ flat.T).astype(np.int64)

    def common(self, pairs: IntArray) -> IntArray:
        """Pixels that both masks of each pair (P, 2) have, (P,)."""
        return self._shared[pairs[:, 0], pairs[:, 1]]

    def within(self, region: BoolArray) -> DecodedMasks:
        """What the masks have of a region (S, S) bool."""
        return DecodedMasks(self.masks & region[: self.masks.shape[1], : self.masks.shape[2]])

    def paint(self, index: IntArray, canvas: BoolArray) -> None:
        """Copy masks to the top left of `canvas` (K, S, S) bool."""
        canvas[:, : self.masks.shape[1], : self.masks.shape[2]] = self.masks[index]


class DecodedSamples(ForestSamples):
    """The plain way: every mask in full, then the view of it."""

    def _cut(self, rles: Sequence[Rle], view: View, size_hw: tuple[int, int]) -> tuple[Any, NDArray[np.floating]]:
        full, (rows, columns) = decode_masks(rles, size_hw), view.grid(size_hw)
        return DecodedMasks(full[:, rows][:, :, columns]), full.sum((1, 2)) * view.area_scale


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


def measure(
    folder: Path, size_hw: tuple[int, int], masks: int, settings: SampleSettings, samples: int
) -> dict[str, Any]:
    """Seconds a sample of both, and of making a batch of what they give."""
    images, store = write_store(folder, size_hw, masks, images=4)
    options: dict[str, Any] = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225), "seed": 0, "length": 1}
    after = ForestSamples(images, store, settings, noisy_view=True, **options)
    before = DecodedSamples(images, store, settings, noisy_view=True, **options)
    after[0]  # compile
    after_s, new = timed(lambda: [after[position] for position in range(samples)])
    before_s, old = timed(lambda: [before[position] for position in range(samples)])
    assert_equal(new, old)
    collate_s, batch = timed(lambda: collate(new))
    row = {
        "size_hw": list(size_hw),
        "masks": masks,
        "crop_px": settings.crop_px,
        "copy_paste": settings.copy_paste,
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
    for size_hw, masks, settings in CASES:
        with tempfile.TemporaryDirectory() as folder:
            row = measure(Path(folder), size_hw, masks, settings, options.samples)
        rows.append(row)
        print(
            f"{masks} masks of {size_hw[0]} x {size_hw[1]} px, canvas {settings.crop_px} px, copy-paste "
            f"{settings.copy_paste:.0%}, {row['targets']:.0f} targets left, equal to the last bit:\n"
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
