from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import torch

from sohes.probes.data import read_probe_data
from sohes.probes.scoring import annotation, to_label_map
from tests.probes.synthetic import write_folder


def test_scores_are_upsampled_and_not_labels() -> None:
    """A ramp between two patches: the class changes where the scores cross, far from the border of the patches."""
    scores = torch.tensor([[[0.0, 0.3], [1.0, 0.3]]])  # 1 x 2 patches, 2 classes: class 0 rises from 0 to 1
    found = to_label_map(scores.repeat(2, 1, 1), (4, 80), size_px=None)
    crossing = 0.3 * 40 + 20  # patch centres are at 20 and 60
    assert found.shape == (4, 80)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, np.where(np.arange(80) + 0.5 < crossing, 1, 0)[None].repeat(4, 0))


def test_scores_go_through_the_size_of_the_features() -> None:
    """Against OpenCV's bilinear resizing, which has the same convention of corners, twice."""
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(4, 4, 3)).astype(np.float32)
    found = to_label_map(torch.from_numpy(scores), (30, 50), size_px=16)
    square = cv2.resize(scores, (16, 16), interpolation=cv2.INTER_LINEAR)
    expected = cv2.resize(square, (50, 30), interpolation=cv2.INTER_LINEAR).argmax(2)
    assert (found == expected).mean() > 0.995


def test_annotations_are_scored_at_their_own_size_or_at_another(tmp_path: Path) -> None:
    item = read_probe_data(write_folder(tmp_path)).val[0]
    np.testing.assert_array_equal(annotation(item, size_px=64, score_px=None), item.label_map())
    small = annotation(item, size_px=64, score_px=10)
    assert (small.shape, small.dtype) == ((10, 10), np.uint8)
    row = item.label_map()[30]
    # pixel x of 10 is pixel floor(6.4 x) of 64, whose centre lies at that share of the 56 columns
    expected = row[((np.floor(6.4 * np.arange(10)) + 0.5) / 64 * 56).astype(int)]
    np.testing.assert_array_equal(small[8], expected)
    assert (small[0] == 255).all()
