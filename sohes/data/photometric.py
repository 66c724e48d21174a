"""Photometric augmentation on 8-bit pixels, as Pillow's and torchvision's operations of the same names (README §4)."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

_LUMA = np.asarray((0.299, 0.587, 0.114))


def distort(image: NDArray[np.uint8], rng: np.random.Generator, *, strength: float, hue: float) -> NDArray[np.uint8]:
    """Colour jitter, greyscale and blur with the probabilities 0.8, 0.2 and 0.5 of MoCo v2, in a copy.

    Args:
        image: (H, W, 3) uint8 RGB.
        rng: that it is drawn from.
        strength, hue: of the jitter, see `colour_jitter`.
    """
    noisy = np.array(image, order="C")
    if rng.random() < 0.8:
        noisy = colour_jitter(noisy, rng, strength=strength, hue=hue)
    if rng.random() < 0.2:
        noisy = greyscale(noisy)
    if rng.random() < 0.5:
        noisy = blur(noisy, rng)
    return noisy


def colour_jitter(
    image: NDArray[np.uint8],
    rng: np.random.Generator,
    *,
    strength: float,
    hue: float,
    saturation_strength: float | None = None,
) -> NDArray[np.uint8]:
    """Brightness, contrast and saturation times 1 - `strength` to 1 + `strength`, hue by up to `hue` of the circle.

    In this order, and clipped only before the hue is turned. `saturation_strength` is that of the saturation where it
    has one of its own.
    """
    strengths = np.array([strength, strength, strength if saturation_strength is None else saturation_strength])
    brightness, contrast, saturation = rng.uniform(1 - strengths, 1 + strengths)
    mean = brightness * (_LUMA @ np.asarray(cv2.mean(image))[:3])
    # the first three are affine in the colour, so one matrix does them; contrast leaves the mean luma where it is
    mix = saturation * np.eye(3) + (1 - saturation) * _LUMA
    shift = np.full((3, 1), (1 - contrast) * mean)
    jittered = cv2.transform(image, np.hstack([brightness * contrast * mix, shift]))
    turn = round(rng.uniform(-hue, hue) * 256)
    angle, purity, value = cv2.split(cv2.cvtColor(jittered, cv2.COLOR_RGB2HSV_FULL))
    turned = cv2.merge([_uint8(angle) + np.uint8(turn % 256), purity, value])  # the circle has 256 steps
    return _uint8(cv2.cvtColor(turned, cv2.COLOR_HSV2RGB_FULL))


def greyscale(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The luma in all three channels."""
    return _uint8(cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB))


def blur(image: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """A Gaussian blur, sigma 0.1 to 2 px."""
    return _uint8(cv2.GaussianBlur(image, (0, 0), rng.uniform(0.1, 2.0)))


def solarise(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """What is 128 or brighter, inverted."""
    return np.where(image < 128, image, 255 - image)


def _uint8(image: object) -> NDArray[np.uint8]:
    """OpenCV's stubs know no types of pixels."""
    return np.asarray(image, np.uint8)
