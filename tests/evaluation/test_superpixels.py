"""Scores of superpixels, worked by hand."""

from __future__ import annotations

import numpy as np
import pytest

from sohes.evaluation.superpixels import superpixel_scores


def test_by_hand() -> None:
    """Columns 0-3 and 4-9 of a 4 x 10 image, and masks of columns 0-4, 0-1 and of all but the last column."""
    labels = np.repeat([0, 1], [4, 6])[None].repeat(4, 0)
    masks = np.zeros((3, 4, 10), bool)
    masks[0, :, :5], masks[1, :, :2], masks[2, :, :9] = True, True, True
    found = superpixel_scores(labels, masks)
    # borders: human ones in columns 4, 1 and 8, ours in column 3; column 8 is 5 px away
    assert found.boundary_recall == pytest.approx(2 / 3)
    assert found.boundary_share == pytest.approx(1 / 10)
    # inside of both superpixels: 16 and 4, 8 and 0, 16 and 20 px; areas 16 and 24 px
    assert found.undersegmentation == pytest.approx((0 + 4 + 8 + 0 + 0 + 4) / (20 + 8 + 36))
    # the second mask has half of a superpixel, so none
    assert found.achievable_iou == pytest.approx(np.mean([16 / 20, 0, 36 / 40]))


@pytest.mark.parametrize(("tolerance_px", "expected"), [(2.0, 1.0), (1.9, 0.0)])
def test_tolerance(tolerance_px: float, expected: float) -> None:
    labels = np.repeat([0, 1], [4, 6])[None].repeat(4, 0)
    masks = np.repeat([True, False], [6, 4])[None, None].repeat(4, 1)
    assert superpixel_scores(labels, masks, tolerance_px=tolerance_px).boundary_recall == expected


def test_superpixels_that_are_the_masks() -> None:
    labels = np.random.default_rng(0).integers(0, 3, (20, 30))
    found = superpixel_scores(labels, np.stack([labels == 0, labels > 0, labels == 2]))
    assert found[:3] == (1.0, 0.0, 1.0)
