"""Pictures of a forest: wholes, parts and subparts side by side, and contact sheets."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from sohes.data.coco import ImageSet
from sohes.data.images import ImageArray, load_image
from sohes.files import atomic_path, shortened
from sohes.masks import MaskForest, ancestors_of, coverage_ancestors, pairwise_coverage
from sohes.plotting import distinct_hues, oklch
from sohes.rle import BoolArray, IntArray, MaskRuns

LEVELS = ("wholes", "parts", "subparts")  # depth 0, 1, and 2 or more
SHOWN = 64  # masks of a deep forest at most
PANEL_PX = 1024  # longer side of a panel; larger pictures are scaled down
_GAP = 6  # px of white between panels
_CAPTION_PX = 18
_MIN_SIDE_PX = 200  # smaller pictures are enlarged, or their captions would not fit
_TINT = 0.6
_CROSSING = (0.1, 0.9)  # masks of which the smaller lies in the other to such a share cross ...
_ALIKE = 0.8  # ... and those of which each covers so much of the other look the same


def overlay(image: ImageArray, forest: MaskForest) -> ImageArray:
    """Four panels in a row: the picture, then the three of `level_panels`. A panel has `PANEL_PX` at most.

    Args:
        image: (H, W, 3) uint8 RGB.
        forest: masks of the same size.

    Returns:
        (H', W', 3) uint8 RGB, with a line of captions.
    """
    if image.shape[:2] != forest.size_hw:
        raise ValueError(f"the picture is {image.shape[:2]} px, the masks are {forest.size_hw} px")
    image = panel_sized(image)
    captions, panels = zip(*level_panels(image, forest), strict=True)
    return grid([image, *panels], ["image", *captions], columns=1 + len(panels))


def level_panels(image: ImageArray, forest: MaskForest) -> list[tuple[str, ImageArray]]:
    """Captions and panels: the wholes, the parts, and the subparts with all that is deeper, see `named_levels`.

    A part has about the hue of its whole, lighter or darker. Outside a panel's masks the picture is pale, the levels
    above show as outlines. Larger masks are painted first.

    Args:
        image: (H, W, 3) uint8 RGB; may be a smaller version of the picture that the masks belong to.
        forest: the masks.
    """
    forest = named_levels(forest)
    colours, depth = forest_colours(forest), np.minimum(forest.depth, len(LEVELS) - 1)
    panels = []
    above = np.zeros(image.shape[:2], np.uint8)
    for level, name in enumerate(LEVELS):
        chosen = np.flatnonzero(depth == level)
        ink, outlines = _drawn(forest.select(chosen), (image.shape[0], image.shape[1]))
        panels.append((f"{name}: {len(chosen)}", _coloured(image, ink, colours[chosen], above)))
        above |= outlines
    return panels


def named_levels(forest: MaskForest) -> MaskForest:
    """The forest whose roots are wholes, their children parts, and what lies deeper subparts: most often itself.

    Where most masks lie deeper than subparts, their depth names no level that a person would. Then the `SHOWN` best
    masks are taken, see `best_masks`, and of those that lie in one another the best is a whole: what contains it is a
    group and left out, what lies in it are its parts, chosen in the same way, and so are theirs.
    """
    if 2 * np.count_nonzero(forest.depth >= len(LEVELS)) <= len(forest):
        return forest
    best = best_masks(forest, SHOWN)
    inside = coverage_ancestors(pairwise_coverage([forest.rles[index] for index in best]), _CROSSING[1])
    kept: list[int] = []
    parent: list[int] = []

    def choose(left: IntArray, above: int, levels: int) -> None:
        while levels and len(left):
            first = left[0]
            kept.append(first)
            parent.append(above)
            choose(left[inside[first, left]], len(kept) - 1, levels - 1)
            left = left[1:][~(inside[first, left[1:]] | inside[left[1:], first])]

    choose(np.arange(len(best)), -1, len(LEVELS))
    chosen = forest.select(best[kept])
    return replace(chosen, parent=np.asarray(parent, dtype=np.int64), ancestor=ancestors_of(parent))


def best_masks(forest: MaskForest, count: int) -> IntArray:
    """The best masks of which any two lie apart or one in the other, (K,) indices, best first; of equals the larger.

    Masks that cross a better one, or look the same, are left out. Only the best 4 x `count` are considered.

    Args:
        forest: ranked by its scores.
        count: masks at most.
    """
    order = np.lexsort((-forest.areas, -forest.scores))[: 4 * count]
    covered = pairwise_coverage([forest.rles[index] for index in order])
    inside, mutual = np.maximum(covered, covered.T), np.minimum(covered, covered.T)
    clash = ((_CROSSING[0] < inside) & (inside < _CROSSING[1])) | (mutual > _ALIKE)
    left = np.ones(len(order), dtype=bool)
    best: list[int] = []
    for place, index in enumerate(order.tolist()):
        if left[place] and len(best) < count:
            best.append(index)
            left &= ~clash[place]
    return np.asarray(best, dtype=np.int64)


def panel_sized(image: ImageArray, longest_px: int | None = None) -> ImageArray:
    """The picture as a panel has it: its longer side at most `longest_px`, by default `PANEL_PX`."""
    height, width = image.shape[:2]
    shrink = (longest_px or PANEL_PX) / max(height, width)
    if shrink >= 1:
        return image
    size = max(1, round(width * shrink)), max(1, round(height * shrink))
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8)


def forest_colours(forest: MaskForest) -> NDArray[np.float32]:
    """A colour for each mask (M, 3) RGB 0..255: one hue for each root, lightness and a little hue for its parts."""
    roots = np.flatnonzero(forest.parent < 0)
    order = roots[np.argsort(-forest.areas[roots], kind="stable")]
    hue, light = np.zeros(len(forest)), np.full(len(forest), 0.62)
    hue[order] = distinct_hues(len(order))
    children = np.zeros(len(forest), dtype=int)
    for index in np.argsort(forest.depth, kind="stable"):
        parent = forest.parent[index]
        if parent < 0:
            continue
        rank = children[parent]
        children[parent] += 1
        hue[index] = hue[parent] + (0.0, 0.05, -0.05, 0.09, -0.09)[rank % 5]
        light[index] = (0.74, 0.5, 0.63, 0.82, 0.43)[(rank + forest.depth[index]) % 5]
    return (255 * oklch(light, 0.19, hue)).astype(np.float32)


def paint(
    image: ImageArray, forest: MaskForest, colours: NDArray[np.float32], outlined: MaskForest | None = None
) -> ImageArray:
    """One panel: masks tinted and outlined, others only outlined, faintly; all else pale.

    A mask is never decoded at the size it has, and only one at a time, so a thousand masks of a photograph of 24
    megapixels take a second and a few MB.

    Args:
        image: (H, W, 3) uint8 RGB; may be a smaller version of the picture that the masks belong to.
        forest: larger masks are painted first.
        colours: (M, 3) RGB 0..255; see `forest_colours`.
        outlined: masks of the same picture.
    """
    size_hw = (image.shape[0], image.shape[1])
    faint = _drawn(outlined, size_hw)[1] if outlined else np.zeros(size_hw, np.uint8)
    return _coloured(image, _drawn(forest, size_hw)[0], colours, faint)


def _drawn(forest: MaskForest, size_hw: tuple[int, int]) -> tuple[NDArray[np.int32], NDArray[np.uint8]]:
    """What covers each pixel (H, W): -1 nothing, i mask i, M + i its outline; and all outlines, 1 px wide, 0 or 1."""
    ink, outlines = np.full(size_hw, -1, np.int32), np.zeros(size_hw, np.uint8)
    thickness = max(1, round(max(size_hw) / 320))
    for index, mask, (top, left) in sampled(forest, size_hw):
        np.copyto(ink[top : top + mask.shape[0], left : left + mask.shape[1]], index, where=mask)
        shape = mask.view(np.uint8)
        contours, _ = cv2.findContours(shape, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE, offset=(left, top))
        cv2.drawContours(ink, contours, -1, len(forest) + index, thickness)
        cv2.drawContours(outlines, contours, -1, 1, 1)
    return ink, outlines


def _coloured(
    image: ImageArray, ink: NDArray[np.int32], colours: NDArray[np.float32], faint: NDArray[np.uint8]
) -> ImageArray:
    """The panel of what `_drawn` gives, with other outlines below it."""
    grey = image.astype(np.float32).mean(axis=2, keepdims=True)
    panel = np.repeat(0.35 * grey + 0.65 * 255, 3, axis=2)
    panel[faint > 0] = 150.0
    tinted, edge = (ink >= 0) & (ink < len(colours)), ink >= len(colours)
    panel[tinted] = (1 - _TINT) * grey[tinted] + _TINT * colours[ink[tinted]]
    panel[edge] = 0.4 * colours[ink[edge] - len(colours)]
    return np.clip(np.rint(panel), 0, 255).astype(np.uint8)


def sampled(forest: MaskForest, size_hw: tuple[int, int]) -> Iterator[tuple[int, BoolArray, tuple[int, int]]]:
    """Masks as seen at another size, largest first: index, mask (h, w) bool within its box, and the box's corner."""
    rows, columns = (
        ((np.arange(side) + 0.5) * full / side).astype(np.int64)
        for side, full in zip(size_hw, forest.size_hw, strict=True)
    )
    runs = MaskRuns.of_rles(forest.rles, forest.size_hw).window(rows, columns)
    boxes = forest.boxes_xywh
    lefts, tops = np.searchsorted(columns, boxes[:, 0]), np.searchsorted(rows, boxes[:, 1])
    rights = np.searchsorted(columns, boxes[:, 0] + boxes[:, 2])
    bottoms = np.searchsorted(rows, boxes[:, 1] + boxes[:, 3])
    canvas = np.zeros((1, size_hw[1], size_hw[0]), dtype=bool)  # column by column, as the runs are
    for index in np.argsort(-forest.areas, kind="stable"):
        top, left = int(tops[index]), int(lefts[index])
        view = canvas[0, left : rights[index], top : bottoms[index]]
        if view.size:
            runs.paint(np.array([index]), canvas.transpose(0, 2, 1))
            yield int(index), cv2.transpose(view.view(np.uint8)).view(bool), (top, left)
            view[:] = False


def grid(images: Sequence[ImageArray], captions: Sequence[str], columns: int) -> ImageArray:
    """Contact sheet on white, row by row; each picture is brought into the size of the first, its shape kept.

    Args:
        images: each (H, W, 3) uint8 RGB.
        captions: one for each picture, shortened to fit; "" for none.
        columns: pictures per row, at least 1.
    """
    if not images or len(images) != len(captions) or columns < 1:
        raise ValueError(f"{len(images)} pictures, {len(captions)} captions, {columns} columns")
    height, width = images[0].shape[:2]
    enlarge = max(1.0, _MIN_SIDE_PX / width)
    height, width = max(1, round(height * enlarge)), round(width * enlarge)
    line = _CAPTION_PX + 4 if any(captions) else 0
    columns = min(columns, len(images))
    pictures = [_fitted(image, (height, width)) for image in images]
    rows = [pictures[start : start + columns] for start in range(0, len(pictures), columns)]
    heights = [line + max(picture.height for picture in row) + _GAP for row in rows]
    sheet = Image.new("RGB", (columns * (width + _GAP) + _GAP, sum(heights) + _GAP), "white")
    pen = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=_CAPTION_PX * 0.75)
    for place, (picture, caption) in enumerate(zip(pictures, captions, strict=True)):
        x = _GAP + place % columns * (width + _GAP)
        y = _GAP + sum(heights[: place // columns])
        sheet.paste(picture, (x, y + line))
        while caption and pen.textlength(caption, font=font) > width:
            caption = caption[:-2].rstrip("…") + "…" if len(caption) > 2 else ""
        pen.text((x + 1, y + line / 2), caption, fill="black", font=font, anchor="lm")
    return np.asarray(sheet, dtype=np.uint8)


def _fitted(image: ImageArray, size_hw: tuple[int, int]) -> Image.Image:
    """The picture as large as it fits."""
    scale = min(size_hw[0] / image.shape[0], size_hw[1] / image.shape[1])
    size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
    picture = Image.fromarray(image)
    return picture if picture.size == size else picture.resize(size, Image.Resampling.BICUBIC)


def write_overlays(
    source: ImageSet, forests: Mapping[str, Callable[[int], MaskForest]], folder: Path, count: int
) -> list[Path]:
    """Pictures of the first images: an overlay for each way to segment it, one below the other.

    Args:
        source: the images.
        forests: caption of a row, and the forest of an image id.
        folder: of the PNG files, named after the images.
        count: images drawn.
    """
    drawn = []
    for item in source.items[:count]:
        image = load_image(item.path)
        rows = [overlay(image, forest_of(item.id)) for forest_of in forests.values()]
        path = folder / f"{shortened(item.path.stem)}-{item.id}.png"  # names alone may repeat in subfolders
        with atomic_path(path) as temporary:
            picture = rows[0] if len(rows) == 1 else grid(rows, list(forests), columns=1)
            Image.fromarray(picture).save(temporary)
        drawn.append(path)
    return drawn
