"""Noise for the student: colours change, places do not."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from sohes.instruct.photometric import _erase, add_noise


class Draws:
    """Stands for a generator: `random` answers from a list, the rest is real."""

    def __init__(self, *answers: float, seed: int = 0) -> None:
        self.answers = list(answers)
        self.real = np.random.default_rng(seed)

    def random(self) -> float:
        return self.answers.pop(0)

    def __getattr__(self, name: str) -> object:
        return getattr(self.real, name)


# colour jitter, greyscale, blur, three erasures
NEVER = (1.0,) * 6


def picture(height: int = 40, width: int = 50) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def noise(*answers: float) -> np.ndarray:
    draws = Draws(*answers)
    noisy = add_noise(picture(), draws)  # type: ignore[arg-type]
    assert not draws.answers  # six draws decide
    return noisy


def test_nothing_happens_when_every_draw_fails() -> None:
    assert np.array_equal(noise(*NEVER), picture())


def test_greyscale() -> None:
    noisy = noise(1, 0, 1, 1, 1, 1)
    expected = cv2.cvtColor(picture(), cv2.COLOR_RGB2GRAY).astype(int)
    assert np.ptp(noisy, axis=-1).max() == 0
    assert np.abs(noisy[..., 0] - expected).max() <= 1


def test_blur_keeps_the_mean_and_smooths() -> None:
    noisy = noise(1, 1, 0, 1, 1, 1).astype(float)
    assert noisy.std() < picture().std()
    assert noisy.mean() == pytest.approx(picture().mean(), abs=2)


@pytest.mark.parametrize(("place", "low", "high"), [(3, 0.05, 0.2), (4, 0.02, 0.2), (5, 0.02, 0.2)])
def test_erasures_change_one_rectangle(place: int, low: float, high: float) -> None:
    for seed in range(20):
        answers = [1.0] * 6
        answers[place] = 0.0
        noisy = add_noise(picture(), Draws(*answers, seed=seed))  # type: ignore[arg-type]
        changed = (noisy != picture()).any(-1)
        rows, columns = np.flatnonzero(changed.any(1)), np.flatnonzero(changed.any(0))
        if len(rows) == 0:
            continue  # the rectangle did not fit
        box = (np.ptp(rows) + 1) * (np.ptp(columns) + 1)
        assert changed.sum() > 0.97 * box
        assert 0.8 * low <= box / changed.size <= 1.2 * high


def test_probabilities() -> None:
    """The draws' limits are those of README §2 of `correct`."""
    limits = (0.8, 0.2, 0.5, 0.7, 0.5, 0.3)
    for place, limit in enumerate(limits):
        for value, changes in ((limit - 1e-6, True), (limit, False)):
            answers = [1.0] * 6
            answers[place] = value
            noisy = [add_noise(picture(), Draws(*answers, seed=seed)) for seed in range(4)]  # type: ignore[arg-type]
            assert any(not np.array_equal(one, picture()) for one in noisy) == changes


@pytest.mark.parametrize("size_hw", [(1, 1), (1, 40), (33, 1), (24, 60)])
def test_shape_type_and_repeatability(size_hw: tuple[int, int]) -> None:
    image = picture(*size_hw)
    for seed in range(30):
        noisy = add_noise(image, np.random.default_rng(seed))
        assert noisy.shape == image.shape
        assert noisy.dtype == np.uint8
        assert np.array_equal(noisy, add_noise(image, np.random.default_rng(seed)))
    assert np.array_equal(image, picture(*size_hw))  # the original is left alone


def test_mirrored_views_are_taken_too() -> None:
    """A flipped crop has negative strides."""
    mirrored = picture()[:, ::-1]
    for seed in range(10):
        rng = np.random.default_rng
        assert np.array_equal(add_noise(mirrored, rng(seed)), add_noise(mirrored.copy(), rng(seed)))


def test_a_rectangle_that_never_fits_is_left_out() -> None:
    image = np.zeros((1, 200, 3), np.uint8)
    _erase(image, (0.5, 0.5), (8.0, 8.0), np.random.default_rng(0))  # 28 px high
    assert not image.any()


def test_a_rectangle_that_does_not_fit_is_drawn_again() -> None:
    """A fifth of the image at ratios of up to 8: one in six is too high, but hardly ten in a row."""
    for seed in range(60):
        image = np.zeros((40, 40, 3), np.uint8)
        _erase(image, (0.2, 0.2), (0.05, 8.0), np.random.default_rng(seed))
        assert 0.1 < image.any(-1).mean() < 0.25
