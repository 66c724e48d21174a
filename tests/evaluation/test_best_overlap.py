"""Average best overlap: by hand, against brute force over pixels, and where nothing decides it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from sohes.data.coco import ImageSet
from sohes.errors import DataError
from sohes.evaluation.best_overlap import evaluate_best_overlap
from sohes.evaluation.evaluate import evaluate_predictions
from sohes.masks import MaskForest
from sohes.rle import BoolArray, encode_masks
from tests.evaluation.truth import image_set

SIZE = (30, 40)


def box(top: int, left: int, height: int, width: int) -> BoolArray:
    mask = np.zeros(SIZE, bool)
    mask[top : top + height, left : left + width] = True
    return mask


def truth(images: dict[int, list[tuple[BoolArray, dict[str, Any]]]]) -> ImageSet:
    """Annotations are numbered from 1 through all images."""
    annotations: list[dict[str, Any]] = []
    for image_id, objects in images.items():
        for mask, fields in objects:
            own = {"id": len(annotations) + 1, "image_id": image_id, "segmentation": encode_masks(mask[None])[0]}
            annotations.append(own | {"category_id": 1} | fields)
    items = [{"id": image_id, "file_name": f"{image_id}.png", "height": 30, "width": 40} for image_id in images]
    return image_set({"images": items, "annotations": annotations, "categories": []})


def forest(masks: Sequence[BoolArray], scores: Sequence[float]) -> MaskForest:
    return MaskForest.from_rles(encode_masks(np.array(masks)), SIZE, scores=np.array(scores))


@pytest.fixture
def by_hand() -> tuple[ImageSet, dict[int, MaskForest]]:
    """A whole of two parts, and a whole in a second image without predictions; crowds that do not count.

    The third mask serves the whole better than the first one does, and the second part best, too.
    """
    images = {
        1: [
            (box(0, 0, 10, 10), {}),
            (box(0, 0, 10, 5), {"parent_id": 1}),
            (box(0, 5, 10, 5), {"parent_id": 4}),  # of a crowd, so of the whole
            (box(0, 0, 10, 10), {"parent_id": 1, "iscrowd": 1}),
        ],
        2: [(box(0, 0, 20, 20), {})],
        3: [(box(0, 0, 5, 5), {"iscrowd": 1})],
    }
    return truth(images), {1: forest([box(0, 0, 10, 8), box(0, 0, 10, 4), box(0, 1, 10, 9)], [0.9, 0.5, 0.5])}


def test_by_hand(by_hand: tuple[ImageSet, dict[int, MaskForest]]) -> None:
    scores = evaluate_best_overlap(*by_hand)
    whole, part, other = 90 / 100, 40 / 50, 50 / 90
    assert scores.wholes == pytest.approx(whole / 2)  # the second image's is missed
    assert scores.parts == pytest.approx((part + other) / 2)
    assert scores.objects == pytest.approx((whole + part + other) / 4)
    assert (scores.wholes_image, scores.parts_image) == pytest.approx((whole / 2, (part + other) / 2))
    assert scores.masks_per_image == 1.0  # three masks, three images


@pytest.mark.parametrize(
    ("count", "total"), [(1, 0.8 + 50 / 80 + 30 / 100), (2, 0.8 + 0.8 + 30 / 100), (3, 0.9 + 0.8 + 50 / 90)]
)
def test_the_best_masks_alone(by_hand: tuple[ImageSet, dict[int, MaskForest]], count: int, total: float) -> None:
    scores = evaluate_best_overlap(*by_hand, count=count)
    assert scores.objects == pytest.approx(total / 4)
    assert scores.masks_per_image == pytest.approx(count / 3)


def test_equals_brute_force_over_pixels() -> None:
    rng = np.random.default_rng(0)

    def drawn(count: int) -> BoolArray:
        corners = rng.integers(0, 25, (count, 4))
        return np.array([box(top, left, 3 + height, 3 + width) for top, left, height, width in corners])

    images, predictions, wholes, parts = {}, {}, [], []
    first = 1
    for image_id in range(8):
        objects, masks = drawn(6), drawn(image_id)
        images[image_id] = [
            (mask, {"parent_id": first + index // 2 - 1 if 1 < index < 4 else None})
            for index, mask in enumerate(objects)
        ]
        first += len(objects)
        if image_id:
            predictions[image_id] = forest(masks, rng.random(image_id).tolist())
        best = [max((np.sum(mask & own) / np.sum(mask | own) for mask in masks), default=0.0) for own in objects]
        wholes.append([best[index] for index in (0, 1, 4, 5)])
        parts.append([best[index] for index in (2, 3)])
    scores = evaluate_best_overlap(truth(images), predictions)
    assert scores.wholes == pytest.approx(np.mean(wholes), abs=1e-12)
    assert scores.parts == pytest.approx(np.mean(parts), abs=1e-12)
    assert scores.objects == pytest.approx(np.mean(np.hstack([wholes, parts])), abs=1e-12)
    assert scores.masks_per_image == pytest.approx(sum(range(8)) / 8)


def test_images_weigh_alike_in_the_second_mean() -> None:
    images = {1: [(box(0, 0, 10, 10), {})], 2: [(box(0, left, 5, 5), {}) for left in (0, 10, 20)]}
    scores = evaluate_best_overlap(truth(images), {1: forest([box(0, 0, 10, 10)], [1.0])})
    assert (scores.wholes, scores.wholes_image) == pytest.approx((1 / 4, 1 / 2))


def test_without_parents_there_are_wholes_alone() -> None:
    images = truth({1: [(box(0, 0, 10, 10), {})]})
    result = evaluate_predictions(images, {1: forest([box(0, 0, 10, 5), box(0, 0, 2, 2)], [0.1, 0.9])})
    found = {
        name: value for name, value in result.metrics().items() if value[1] in ("best_overlap_v1", "mask_count_v1")
    }
    assert found == {
        "best_overlap_wholes": (pytest.approx(50.0), "best_overlap_v1"),
        "best_overlap_wholes_image": (pytest.approx(50.0), "best_overlap_v1"),
        "masks_per_image": (2.0, "mask_count_v1"),
    }


def test_parts_are_measured_with_a_unit(by_hand: tuple[ImageSet, dict[int, MaskForest]]) -> None:
    images, predictions = by_hand
    metrics = evaluate_predictions(images, predictions).metrics()
    assert metrics["best_overlap_parts"] == (pytest.approx(50 * (0.8 + 50 / 90)), "best_overlap_v1")
    assert metrics["best_overlap_parts_image"] == metrics["best_overlap_parts"]


def test_nothing_to_overlap() -> None:
    scores = evaluate_best_overlap(truth({1: []}), {1: forest([box(0, 0, 2, 2)], [1.0])})
    assert math.isnan(scores.objects)
    assert math.isnan(scores.wholes_image)
    with pytest.raises(DataError, match="Predict on the images of that file"):
        evaluate_best_overlap(truth({1: []}), {2: forest([box(0, 0, 2, 2)], [1.0])})
