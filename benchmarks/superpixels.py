"""Superpixels by every method: `python benchmarks/superpixels.py [--ground-truth COCO] [--images N] [--json FILE]`.

Milliseconds of one processor for images of 224² and 512² px, one superpixel for 16² px; where a COCO file is given, how
the superpixels of its first images, as they are, keep to its masks. Without one, generated images. Where OpenCV has its
contrib modules (opencv-contrib-python-headless), its SEEDS take turns with ours and the label maps must be equal.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from sohes.data.coco import read_coco
from sohes.data.image_root import with_image_root
from sohes.data.images import load_image
from sohes.data.superpixels.grid import requested
from sohes.data.superpixels.settings import SuperpixelSettings
from sohes.data.superpixels.superpixels import superpixels
from sohes.evaluation.inputs import first_images
from sohes.evaluation.superpixels import SuperpixelScores, superpixel_scores
from sohes.files import write_json
from sohes.masks import BoolArray
from sohes.progress import track
from sohes.records import commit, hardware, versions
from sohes.rle import decode_masks

METHODS = {
    "grid": SuperpixelSettings(method="grid"),
    "seeds": SuperpixelSettings(),
    "seeds, 5 bins, 15 rounds": SuperpixelSettings(bins=5, iterations=15),
    "slic": SuperpixelSettings(method="slic"),
    "graph": SuperpixelSettings(method="graph"),
}
SIDES_PX = (224, 512)
ROUNDS = 5
WHOLE = 0.95  # a mask of more than that of its image asks nothing of superpixels

Image = NDArray[np.uint8]
Labels = NDArray[np.int32]


def photographs(path: Path, count: int) -> list[tuple[Image, BoolArray]]:
    """The first images of a COCO file with their masks (M, H, W)."""
    truth, found = first_images(with_image_root(read_coco(path)), count), []
    for item in truth.items:
        masks = decode_masks([row.rle(item.size_hw) for row in truth.annotations[item.id]], item.size_hw)
        found.append((load_image(item.path), masks[masks.mean(axis=(1, 2)) <= WHOLE]))
    return found


def generated(count: int) -> Iterator[tuple[Image, BoolArray]]:
    """Smooth colours with a little noise, 320 x 480 px; no masks."""
    rng = np.random.default_rng(0)
    for _ in range(count):
        coarse = rng.integers(0, 256, (14, 20, 3), dtype=np.uint8)
        smooth = cv2.resize(coarse, (480, 320), interpolation=cv2.INTER_CUBIC).astype(np.int16)
        noisy = (smooth + rng.integers(-5, 6, smooth.shape)).clip(0, 255)
        yield noisy.astype(np.uint8), np.zeros((0, 320, 480), bool)


def square(image: Image, side_px: int) -> Image:
    """The square in an image's middle, resized."""
    side = min(image.shape[:2])
    top, left = ((of - side) // 2 for of in image.shape[:2])
    middle = np.ascontiguousarray(image[top : top + side, left : left + side])
    return np.asarray(cv2.resize(middle, (side_px, side_px), interpolation=cv2.INTER_AREA), np.uint8)


def opencv_seeds(image: Image, settings: SuperpixelSettings) -> Labels:
    """OpenCV's, called as CAST calls it."""
    height, width = image.shape[:2]
    count = requested(height, width, settings.block_px)
    made = cv2.ximgproc.createSuperpixelSEEDS(width, height, 3, count, 1, 2, settings.bins, False)  # type: ignore[attr-defined]
    made.iterate(cv2.cvtColor(image, cv2.COLOR_RGB2LAB), settings.iterations)
    return np.asarray(made.getLabels(), np.int32)


def timed(function: Callable[[], Labels]) -> tuple[Labels, float]:
    """Labels and processor milliseconds of the fastest of some rounds."""
    best = np.inf
    for _ in range(ROUNDS):
        start = time.process_time()
        labels = function()
        best = min(best, time.process_time() - start)
    return labels, 1e3 * best


def measure(settings: SuperpixelSettings, images: list[tuple[Image, BoolArray]]) -> dict[str, float]:
    """One row: means over the images."""
    superpixels(square(images[0][0], 64), settings)  # compile
    row: dict[str, float] = {}
    for side in SIDES_PX:
        ours, theirs = [], []
        for image, _ in images:
            crop = square(image, side)
            labels, taken = timed(lambda crop=crop: superpixels(crop, settings))  # type: ignore[misc]
            ours.append(taken)
            if settings.method == "seeds" and hasattr(cv2, "ximgproc"):
                reference, taken = timed(lambda crop=crop: opencv_seeds(crop, settings))  # type: ignore[misc]
                assert np.array_equal(labels, reference), "OpenCV's superpixels differ"
                theirs.append(taken)
        row[f"ms_{side}px"] = float(np.mean(ours))
        if theirs:
            row[f"opencv_ms_{side}px"] = float(np.mean(theirs))
    scores = [superpixel_scores(superpixels(image, settings), masks) for image, masks in images if len(masks)]
    if scores:
        row |= dict(zip(SuperpixelScores._fields, np.mean(scores, axis=0).tolist(), strict=True))
        row["superpixels"] = float(np.mean([superpixels(image, settings).max() + 1 for image, _ in images]))
    return row


def main() -> None:
    """Measure every method."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ground-truth", type=Path, metavar="COCO", help="file of images with masks")
    parser.add_argument("--images", type=int, default=20, metavar="N", help="how many of them (default: 20)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there")
    options = parser.parse_args()
    cv2.setNumThreads(1)
    source = options.ground_truth
    images = photographs(source, options.images) if source else list(generated(options.images))
    rows = {name: measure(settings, images) for name, settings in track(METHODS.items(), "methods")}
    for name, row in rows.items():
        print(f"{name:26s}" + "  ".join(f"{key} {value:.4g}" for key, value in row.items()))
    if options.json:
        record = {"hardware": hardware(), "versions": versions(), "commit": commit(), "images": len(images)}
        write_json(options.json, {**record, "rows": rows})


if __name__ == "__main__":
    main()
