"""Sizes that are segmented, and masks to a ranked forest."""

from __future__ import annotations

import numpy as np
import pytest

from sohes.baselines.regions import MAX_MASKS, enlarged, ranked_forest, shrunk
from sohes.masks import pairwise_iou
from sohes.rle import encode_label_map, encode_masks


def test_forest_is_ranked_distinct_and_without_the_whole_image() -> None:
    masks = np.zeros((5, 20, 20), dtype=bool)
    masks[0] = True  # the image
    masks[1, :10, :10] = True
    masks[2, :10, :10] = True  # the same again, better
    masks[3, :5, :5] = True
    masks[4, 10:, 10:] = True  # as good as the third, and larger
    rles = encode_masks(masks)
    forest = ranked_forest(rles, pairwise_iou(rles), np.array([0.9, 0.2, 0.7, 0.5, 0.5]), (20, 20))
    assert np.array_equal(forest.masks, masks[[2, 4, 3]])
    assert forest.scores.tolist() == pytest.approx([0.7, 0.5, 0.5])
    assert forest.parent.tolist() == [-1, -1, 0]


def test_at_most_as_many_as_the_protocol_counts() -> None:
    labels = np.arange(40 * 30).reshape(40, 30)
    scores = np.linspace(0, 1, labels.size)
    forest = ranked_forest(encode_label_map(labels), np.eye(labels.size), scores, (40, 30))
    assert len(forest) == MAX_MASKS
    assert forest.scores[-1] == pytest.approx(scores[-MAX_MASKS])


def test_large_images_are_segmented_small() -> None:
    image = np.zeros((300, 900, 3), dtype=np.uint8)
    image[:, 450:] = 200
    small = shrunk(image, 90)
    assert small.shape == (30, 90, 3)
    assert np.array_equal(enlarged(small[..., 0], (300, 900)), image[..., 0])
    assert shrunk(image, 900) is image
    assert np.array_equal(enlarged(np.array([[1, 2]]), (1, 5)), [[1, 1, 2, 2, 2]])  # pixel centres decide
