"""Strong photometric noise for the student's view, geometry left alone (README §2 of `correct`, values of HASSOD)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sohes.data.photometric import distort

# probability, share of the image, aspect ratio of each erased rectangle
_ERASURES = ((0.7, (0.05, 0.2), (0.3, 3.3)), (0.5, (0.02, 0.2), (0.1, 6.0)), (0.3, (0.02, 0.2), (0.05, 8.0)))
_ERASE_ATTEMPTS = 10  # rectangles drawn until one fits


def add_noise(image: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Colour jitter, greyscale, blur and erased rectangles on an image (H, W, 3) uint8 RGB, in a copy."""
    noisy = distort(image, rng, strength=0.4, hue=0.1)
    for probability, share, aspect in _ERASURES:
        if rng.random() < probability:
            _erase(noisy, share, aspect, rng)
    return noisy


def _erase(
    image: NDArray[np.uint8], share: tuple[float, float], aspect: tuple[float, float], rng: np.random.Generator
) -> None:
    """Fill one rectangle with noise, in place; nothing when none of several fits."""
    height, width = image.shape[:2]
    for _ in range(_ERASE_ATTEMPTS):
        area = rng.uniform(*share) * height * width
        ratio = np.exp(rng.uniform(*np.log(aspect)))
        h, w = round((area * ratio) ** 0.5), round((area / ratio) ** 0.5)
        if 0 < h <= height and 0 < w <= width:
            top, left = rng.integers(0, height - h + 1), rng.integers(0, width - w + 1)
            noise = rng.standard_normal((h, w, 3), np.float32) * np.float32(60) + np.float32(127)
            image[top : top + h, left : left + w] = noise.clip(0, 255)
            return
