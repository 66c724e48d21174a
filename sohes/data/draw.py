"""Pictures of a forest: wholes, parts and subparts side by side, and contact sheets."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from sohes.data.images import ImageArray
from sohes.masks import BoolArray, MaskForest

LEVELS = ("wholes", "parts", "subparts")  # depth 0, 1, and 2 or more
_GAP = 6  # px of white between panels
_CAPTION_PX = 18
_MIN_SIDE_PX = 200  # smaller pictures are enlarged, or their captions would not fit
_TINT = 0.6
_GOLDEN = 0.61803398875  # steps of the golden ratio keep neighbouring hues apart


def overlay(image: ImageArray, forest: MaskForest) -> ImageArray:
    """Four panels in a row: the picture, then its wholes, its parts, and its subparts with all that is deeper.

    A part has about the hue of its whole, lighter or darker. Outside a panel's masks the picture is pale, the levels
    above show as outlines. Larger masks are painted first.

    Args:
        image: (H, W, 3) uint8 RGB.
        forest: masks of the same size.

    Returns:
        (H', W', 3) uint8 RGB, with a line of captions.
    """
    if image.shape[:2] != forest.size_hw:
        raise ValueError(f"the picture is {image.shape[:2]} px, the masks are {forest.size_hw} px")
    colours, masks, depth = forest_colours(forest), forest.masks, np.minimum(forest.depth, len(LEVELS) - 1)
    panels, captions = [image], ["image"]
    for level, name in enumerate(LEVELS):
        chosen = np.flatnonzero(depth == level)
        panels.append(paint(image, masks[chosen], colours[chosen], masks[depth < level]))
        captions.append(f"{name}: {len(chosen)}")
    return grid(panels, captions, columns=len(panels))


def forest_colours(forest: MaskForest) -> NDArray[np.float32]:
    """A colour for each mask (M, 3) RGB 0..255: one hue for each root, lightness and a little hue for its parts."""
    roots = np.flatnonzero(forest.parent < 0)
    order = roots[np.argsort(-forest.areas[roots], kind="stable")]
    hue = np.zeros(len(forest))
    hue[order] = (0.02 + _GOLDEN * np.arange(len(order))) % 1
    light, rank = np.full(len(forest), 0.5), np.zeros(len(forest), dtype=int)
    children = np.zeros(len(forest), dtype=int)
    for index in np.argsort(forest.depth, kind="stable"):
        parent = forest.parent[index]
        if parent < 0:
            continue
        rank[index] = children[parent]
        children[parent] += 1
        hue[index] = (hue[parent] + (0.0, 0.05, -0.05, 0.09, -0.09)[rank[index] % 5]) % 1
        light[index] = (0.64, 0.4, 0.52, 0.72, 0.33)[(rank[index] + forest.depth[index]) % 5]
    colours = [colorsys.hls_to_rgb(h, lightness, 0.85) for h, lightness in zip(hue, light, strict=True)]
    return np.array(colours, dtype=np.float32).reshape(-1, 3) * 255


def paint(image: ImageArray, masks: BoolArray, colours: NDArray[np.float32], outlined: BoolArray) -> ImageArray:
    """One panel: masks (M, H, W) tinted and outlined, others only outlined, faintly; all else pale.

    Args:
        image: (H, W, 3) uint8 RGB.
        masks: larger ones are painted first.
        colours: (M, 3) RGB 0..255; see `forest_colours`.
        outlined: (N, H, W).
    """
    grey = image.astype(np.float32).mean(axis=2, keepdims=True)
    panel = np.repeat(0.35 * grey + 0.65 * 255, 3, axis=2)
    thickness = max(1, round(max(image.shape[:2]) / 320))
    for mask in outlined:
        _outline(panel, mask, [150.0] * 3, 1)
    for index in np.argsort(-masks.sum((1, 2)), kind="stable"):
        mask, colour = masks[index], colours[index]
        panel[mask] = (1 - _TINT) * grey[mask] + _TINT * colour
        _outline(panel, mask, (colour * 0.4).tolist(), thickness)
    return np.clip(np.rint(panel), 0, 255).astype(np.uint8)


def _outline(panel: NDArray[np.float32], mask: NDArray[np.bool_], colour: list[float], thickness: int) -> None:
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(panel, contours, -1, colour, thickness)


def grid(images: Sequence[ImageArray], captions: Sequence[str], columns: int) -> ImageArray:
    """Contact sheet on white, row by row; each picture is brought into the size of the first, its shape kept.

    Args:
        images: each (H, W, 3) uint8 RGB.
        captions: one for each picture, shortened to fit; "" for none.
        columns: pictures a row, at least 1.
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
