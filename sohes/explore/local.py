"""The local step: close-up crops around small regions, and what of their clustering to believe (README §4)."""

from __future__ import annotations

from dataclasses import dataclass, field

import cv2
import numpy as np
from numpy.typing import NDArray

from sohes.explore.regions import Rectangle, Regions
from sohes.explore.settings import ExploreSettings
from sohes.rle import BoolArray


@dataclass
class Crop:
    """A square window of the image and the small regions that it shows."""

    window: Rectangle
    small: list[int] = field(default_factory=list)  # indices of global regions

    def shows(self, boxes: NDArray[np.float64], sides: NDArray[np.float64]) -> BoolArray:
        """Which regions can use this crop, (R,) bool: their boxes lie in its central half, its side suits them.

        Args:
            boxes: (R, 4) top, left, bottom, right in px.
            sides: (R,) that they want, px; the crop's may be half or twice as much.
        """
        start, quarter = np.asarray([self.window.top, self.window.left]), self.window.height / 4
        central = (boxes[:, :2] >= start + quarter).all(1) & (boxes[:, 2:] <= start + 3 * quarter).all(1)
        ratio = self.window.height / sides
        shown: BoolArray = central & (ratio >= 0.5) & (ratio <= 2)
        return shown


def small_regions(regions: Regions, settings: ExploreSettings) -> list[int]:
    """Indices of the regions below `theta_small`, largest first, ties in order of creation."""
    share = regions.sizes / regions.levels[0].size
    small = np.flatnonzero(share < settings.theta_small) if settings.max_crops else np.zeros(0, np.int64)
    order: list[int] = small[np.argsort(-regions.sizes[small], kind="stable")].tolist()
    return order


def plan_crops(regions: Regions, small: list[int], size_hw: tuple[int, int], settings: ExploreSettings) -> list[Crop]:
    """Crops of at most `max_crops` for the small regions; a region that no crop serves is in none of them."""
    height, width = size_hw
    boxes = regions.boxes[small] * np.tile(np.divide(size_hw, regions.levels.shape[1:]), 2)
    longest = (boxes[:, 2:] - boxes[:, :2]).max(axis=1)
    sides = np.minimum(np.maximum(np.rint(settings.crop_ratio * longest), settings.min_side_px), min(size_hw))
    waiting = np.ones(len(small), dtype=bool)
    crops: list[Crop] = []
    while waiting.any() and len(crops) < settings.max_crops:
        region = int(waiting.argmax())
        box, side = boxes[region], int(sides[region])
        top = min(max(round((box[0] + box[2] - side) / 2), 0), height - side)
        left = min(max(round((box[1] + box[3] - side) / 2), 0), width - side)
        crop = Crop(Rectangle(top, left, side, side))
        served = waiting & crop.shows(boxes, sides)
        served[region] = True
        waiting &= ~served
        crop.small += [small[i] for i in np.flatnonzero(served)]
        crops.append(crop)
    return crops


def accepted(
    crop: Crop, inside: Regions, regions: Regions, size_hw: tuple[int, int], settings: ExploreSettings
) -> tuple[list[int], list[int]]:
    """Which regions of a crop to take, and which small regions they replace.

    A region of the crop is taken for a small region when at least half of it lies on the small region grown by one
    global patch; it replaces the small region when their IoU is 0.25 or more. Both are counted in patches of the crop.

    Args:
        crop: the crop.
        inside: the regions found in it.
        regions: the regions of the whole image, `crop.small` among them.

    Returns:
        Indices into `inside`, and into `regions`.
    """
    possible = np.flatnonzero(_could_be_entities(crop.window, inside, size_hw, settings))
    if not len(possible):
        return [], []
    member = np.stack([inside.levels[inside.first[i]] == inside.numbers[i] for i in possible]).reshape(
        len(possible), -1
    )
    sizes = inside.sizes[possible]
    taken = np.zeros(len(possible), dtype=bool)
    replaced = []
    rows, columns = _global_patches(crop.window, inside.levels.shape[1:], regions.levels.shape[1:], size_hw)
    scale = size_hw[0] * size_hw[1] / regions.levels[0].size / _patch_area(crop.window, inside)
    for index in crop.small:
        patches = regions.levels[regions.first[index]] == regions.numbers[index]
        grown = cv2.dilate(patches.view(np.uint8), np.ones((3, 3), np.uint8)).view(bool)
        near, common = (
            np.count_nonzero(member & shown[rows[:, None], columns].ravel(), axis=1) for shown in (grown, patches)
        )
        close = near >= 0.5 * sizes
        taken |= close
        iou = common / (sizes + scale * regions.sizes[index] - common)  # of all of it, even if the crop shows less
        if (close & (iou >= 0.25)).any():
            replaced.append(index)
    return possible[taken].tolist(), replaced


def _could_be_entities(
    window: Rectangle, inside: Regions, size_hw: tuple[int, int], settings: ExploreSettings
) -> BoolArray:
    """Regions of a crop that are large enough, small in the image, and not cut off by the crop: (R,) bool."""
    grid = inside.levels.shape[1:]
    share = inside.sizes * _patch_area(window, inside) / (size_hw[0] * size_hw[1])
    top, left, bottom, right = inside.boxes.T
    cut = (top == 0) & (window.top > 0)
    cut |= (left == 0) & (window.left > 0)
    cut |= (bottom == grid[0]) & (window.top + window.height < size_hw[0])
    cut |= (right == grid[1]) & (window.left + window.width < size_hw[1])
    return (inside.sizes >= settings.min_patches) & (share < settings.theta_small) & ~cut


def _patch_area(window: Rectangle, inside: Regions) -> float:
    """Of a patch of a crop, px."""
    return window.height * window.width / inside.levels[0].size


def _global_patches(
    window: Rectangle, local_hw: tuple[int, ...], global_hw: tuple[int, ...], size_hw: tuple[int, int]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Row and column of the global patch under the centre of each row and column of the crop's patches."""
    rows = (window.top + (np.arange(local_hw[0]) + 0.5) * window.height / local_hw[0]) * global_hw[0] / size_hw[0]
    columns = (window.left + (np.arange(local_hw[1]) + 0.5) * window.width / local_hw[1]) * global_hw[1] / size_hw[1]
    return rows.astype(np.int64), columns.astype(np.int64)
