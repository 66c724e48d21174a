"""The centre square of a photograph, and of its label map: what PiCIE, STEGO and FS4 train and score on (README §6)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import center_crop, resize

from sohes.data.images import ImageArray
from sohes.data.label_maps import LabelMap


def centre_square(
    image: ImageArray,
    side_px: int,
    *,
    short_px: int | None = None,
    interpolation: InterpolationMode = InterpolationMode.BILINEAR,
) -> ImageArray:
    """Short side brought to `short_px`, antialiased, then the square in the middle.

    Args:
        image: (H, W, 3) uint8.
        side_px: side of the square.
        short_px: at least that; None for the same.
        interpolation: of the pixels.

    Returns:
        (side_px, side_px, 3) uint8.
    """
    return _square(image, side_px, short_px or side_px, interpolation)


def centre_square_labels(label_map: LabelMap, side_px: int) -> LabelMap:
    """The same square of a label map (H, W) uint8, by nearest neighbour: (side_px, side_px) uint8."""
    return _square(label_map, side_px, side_px, InterpolationMode.NEAREST)


def _square(values: NDArray[np.uint8], side_px: int, short_px: int, mode: InterpolationMode) -> NDArray[np.uint8]:
    return np.asarray(center_crop(resize(Image.fromarray(values), [short_px], mode), [side_px, side_px]))
