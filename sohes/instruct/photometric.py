"""Strong photometric noise for the student's view, geometry left alone (README §2 of `correct`, values of HASSOD).

All on 8-bit pixels, as in Pillow's and torchvision's operations of the same names.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

# probability, share of the image, aspect ratio of each erased rectangle
_ERASURES = ((0.7, (0.05, 0.2), (0.3, 3.3)), (0.5, (0.02, 0.2), (0.1, 6.0)), (0.3, (0.02, 0.2), (0.05, 8.0)))
_ERASE_ATTEMPTS = 10  # rectangles drawn until one fits
_LUMA = np.asarray((0.299, 0.587, 0.114))


def add_noise(image: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Colour jitter, greyscale, blur and erased rectangles on an image (H, W, 3) uint8 RGB, in a copy."""
    noisy = np.array(image, order="C")
    if rng.random() < 0.8:
        noisy = _jitter(noisy, rng)
    if rng.random() < 0.2:
        noisy = _uint8(cv2.cvtColor(cv2.cvtColor(noisy, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB))
    if rng.random() < 0.5:
        noisy = _uint8(cv2.GaussianBlur(noisy, (0, 0), rng.uniform(0.1, 2.0)))
    for probability, share, aspect in _ERASURES:
        if rng.random() < probability:
            _erase(noisy, share, aspect, rng)
    return noisy


def _jitter(image: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Brightness, contrast and saturation by 0.4, hue by 0.1 of the circle."""
    brightness, contrast, saturation = rng.uniform(0.6, 1.4, 3)
    mean = brightness * (_LUMA @ np.asarray(cv2.mean(image))[:3])
    # the first three are affine in the colour, so one matrix does them; contrast leaves the mean luma where it is
    mix = saturation * np.eye(3) + (1 - saturation) * _LUMA
    shift = np.full((3, 1), (1 - contrast) * mean)
    jittered = cv2.transform(image, np.hstack([brightness * contrast * mix, shift]))
    turn = round(rng.uniform(-0.1, 0.1) * 256)
    hue, purity, value = cv2.split(cv2.cvtColor(jittered, cv2.COLOR_RGB2HSV_FULL))
    turned = cv2.merge([_uint8(hue) + np.uint8(turn % 256), purity, value])  # the circle has 256 steps
    return _uint8(cv2.cvtColor(turned, cv2.COLOR_HSV2RGB_FULL))


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


def _uint8(image: object) -> NDArray[np.uint8]:
    """OpenCV's stubs know no types of pixels."""
    return np.asarray(image, np.uint8)
