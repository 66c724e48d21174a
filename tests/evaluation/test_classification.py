from __future__ import annotations

import numpy as np
import pytest

from sohes.errors import DataError
from sohes.evaluation.classification import accuracy_difference, class_accuracy, image_protocol


def test_accuracy_of_each_class_by_hand() -> None:
    right = np.array([True, False, True, True, False])
    found = class_accuracy(right, np.array([0, 0, 2, 0, 2]), classes=4)
    np.testing.assert_array_equal(found, [2 / 3, np.nan, 0.5, np.nan])


def test_a_difference_has_the_interval_of_a_mean() -> None:
    """Of 400 images ours gains 100 and loses 20: by the normal approximation 0.2 ± 1.96 sd / 20."""
    ours, theirs = np.zeros(400, bool), np.zeros(400, bool)
    ours[:150], theirs[100:170] = True, True
    found = accuracy_difference(ours, theirs)
    gains = np.repeat([1.0, 0.0, -1.0], (100, 280, 20))
    assert found.value == pytest.approx(0.2)
    assert (found.low, found.high) == pytest.approx(
        (0.2 - 1.96 * gains.std() / 20, 0.2 + 1.96 * gains.std() / 20), abs=0.01
    )
    assert found.sentence("image_knn", "points").startswith("image_knn: +20.0 points against the start backbone")
    assert "no difference" not in found.sentence("", "")


def test_the_same_images_on_both_sides() -> None:
    right = np.array([True, False, False])
    same = accuracy_difference(right, right)
    assert (same.value, same.low, same.high) == (0, 0, 0)
    assert same.sentence("image_knn", "points").endswith("no difference is shown")
    assert np.isnan(accuracy_difference(right[:1], ~right[:1]).low)
    with pytest.raises(DataError, match="3 and 2 scored images are not the same"):
        accuracy_difference(right, right[:2])


def test_the_protocol_names_what_is_seen() -> None:
    assert image_protocol("linear", size_px=64).id == "probe_image_linear_64_v1"
