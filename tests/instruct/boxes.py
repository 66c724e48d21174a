"""Masks that can be worked out by hand."""

from __future__ import annotations

import numpy as np


def boxes(*corners: tuple[int, int, int, int], size: int = 20) -> np.ndarray:
    """Rectangles (M, size, size) bool of (top, left, bottom, right)."""
    masks = np.zeros((len(corners), size, size), dtype=bool)
    for mask, (top, left, bottom, right) in zip(masks, corners, strict=True):
        mask[top:bottom, left:right] = True
    return masks
