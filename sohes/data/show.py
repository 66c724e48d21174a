"""A forest in a notebook: a small inline picture, or matplotlib axes. `MaskForest` imports it to draw itself."""

from __future__ import annotations

import base64
import io
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from sohes.data.draw import LEVELS, forest_colours, named_levels, overlay, sampled
from sohes.data.images import ImageArray, ImageLike, as_image
from sohes.errors import DataError
from sohes.masks import MaskForest

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_INLINE_PX = 256
_PLOT_PX = 1024
_FIGURE_INCHES = 12.0


def colour_map(forest: MaskForest, longest_px: int) -> ImageArray:
    """Each pixel in the colour of the smallest mask there, white where there is none; (h, w, 3) uint8.

    Masks are sampled at the size of the map, never decoded at the image's.

    Args:
        forest: of any size.
        longest_px: the longer side of the map at most.
    """
    scale = min(1.0, longest_px / max(forest.size_hw))
    height, width = (max(1, round(side * scale)) for side in forest.size_hw)
    picture = np.full((height, width, 3), 255, np.uint8)
    colours = forest_colours(forest).round().astype(np.uint8)
    for index, mask, (top, left) in sampled(forest, (height, width)):
        picture[top : top + mask.shape[0], left : left + mask.shape[1]][mask] = colours[index]
    return picture


def html(forest: MaskForest) -> str:
    """A small picture and a line of counts; independent of the image's size."""
    file = io.BytesIO()
    Image.fromarray(colour_map(forest, _INLINE_PX)).save(file, format="PNG")
    data = base64.b64encode(file.getvalue()).decode("ascii")
    named = named_levels(forest)
    counts = np.bincount(np.minimum(named.depth, len(LEVELS) - 1), minlength=len(LEVELS))
    levels = ", ".join(f"{count} {name}" for count, name in zip(counts, LEVELS, strict=True))
    among = ":" if len(named) == len(forest) else ", among them"
    height, width = forest.size_hw
    return (
        f'<figure style="margin: 0"><img src="data:image/png;base64,{data}" alt="map of the masks">'
        f"<figcaption>{height} x {width} px, {len(forest)} masks{among} {levels}</figcaption></figure>"
    )


def plot(forest: MaskForest, image: ImageLike | None, ax: Axes | None) -> Axes:
    """See `MaskForest.plot`."""
    if image is None:
        picture = colour_map(forest, _PLOT_PX)
    else:
        pixels = as_image(image)
        if pixels.shape[:2] != forest.size_hw:
            raise DataError(
                f"the image is {pixels.shape[0]} x {pixels.shape[1]} px, the forest is of one of "
                f"{forest.size_hw[0]} x {forest.size_hw[1]} px; give the image that was segmented"
            )
        picture = overlay(pixels, forest)
    if ax is None:
        import matplotlib.pyplot as plt

        inches = _FIGURE_INCHES / max(picture.shape[:2])
        size = (picture.shape[1] * inches, picture.shape[0] * inches)
        _, ax = plt.subplots(figsize=size, layout="constrained")
    ax.imshow(picture)
    ax.set_axis_off()
    return ax
