"""Strong photometric noise for the student's view, geometry left alone (§4.2 of the method notes, values of HASSOD)."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

# probability, share of the image, aspect ratio of each erased rectangle
_ERASURES = ((0.7, (0.05, 0.2), (0.3, 3.3)), (0.5, (0.02, 0.2), (0.1, 6.0)), (0.3, (0.02, 0.2), (0.05, 8.0)))
_LUMA = np.asarray((0.299, 0.587, 0.114), np.float32)


def add_noise(image: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Colour jitter, greyscale, blur and erased rectangles on an image (H, W, 3) uint8 RGB."""
    noisy = image.astype(np.float32)
    if rng.random() < 0.8:
        noisy = _jitter(noisy, rng)
    if rng.random() < 0.2:
        noisy = np.repeat((noisy @ _LUMA)[..., None], 3, axis=-1)
    if rng.random() < 0.5:
        noisy = np.asarray(cv2.GaussianBlur(noisy, (0, 0), rng.uniform(0.1, 2.0)), np.float32)
    noisy = np.ascontiguousarray(noisy)
    for probability, share, aspect in _ERASURES:
        if rng.random() < probability:
            _erase(noisy, share, aspect, rng)
    return noisy.clip(0, 255).astype(np.uint8)


def _jitter(image: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    """Brightness, contrast and saturation by 0.4, hue by 0.1 of the circle."""
    brightness, contrast, saturation = (np.float32(factor) for factor in rng.uniform(0.6, 1.4, 3))
    image = image * brightness
    mean = np.float32((image @ _LUMA).mean())
    image = (image - mean) * contrast + mean
    grey = (image @ _LUMA)[..., None]
    image = ((image - grey) * saturation + grey).clip(0, 255)
    hsv = cv2.cvtColor(image / np.float32(255), cv2.COLOR_RGB2HSV)
    hsv[..., 0] = (hsv[..., 0] + np.float32(rng.uniform(-36, 36))) % 360
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB) * np.float32(255)


def _erase(
    image: NDArray[np.float32], share: tuple[float, float], aspect: tuple[float, float], rng: np.random.Generator
) -> None:
    """Fill one rectangle with noise, in place; nothing when it does not fit."""
    height, width = image.shape[:2]
    area = rng.uniform(*share) * height * width
    ratio = np.exp(rng.uniform(*np.log(aspect)))
    h, w = round((area * ratio) ** 0.5), round((area / ratio) ** 0.5)
    if 0 < h <= height and 0 < w <= width:
        top, left = rng.integers(0, height - h + 1), rng.integers(0, width - w + 1)
        image[top : top + h, left : left + w] = rng.normal(127, 60, (h, w, 3))
