"""Duplicates, relations and choice, in batches, against plain loops."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sohes import masks as mask_algebra
from sohes.correct import pseudo_labels
from sohes.correct.pseudo_labels import (
    choose,
    content_mask,
    coverage_ancestors,
    greedy_suppression,
    iou,
    read_predictions,
)
from sohes.rle import encode_masks
from sohes.segmenters.entity import prediction_scores
from sohes.segmenters.matching import Targets


def plain_suppression(duplicate: Tensor) -> list[bool]:
    kept = [True] * len(duplicate)
    for i in range(len(kept)):
        for j in range(i + 1, len(kept)):
            if kept[i] and duplicate[i, j]:
                kept[j] = False
    return kept


@pytest.mark.parametrize("product", [pseudo_labels._integer_product, pseudo_labels._float_product])
@pytest.mark.parametrize(("count", "others", "pixels"), [(0, 3, 5), (3, 0, 5), (1, 1, 1), (5, 20, 2**17 + 3)])
def test_common_pixels_are_counted_exactly(
    product: Callable[[Tensor, Tensor], Tensor], count: int, others: int, pixels: int
) -> None:
    """On processors and, as on GPUs, in pieces of floats."""
    rng = np.random.default_rng(0)
    first, second = (rng.random((rows, pixels)) < 0.9 for rows in (count, others))
    shared = product(torch.from_numpy(first), torch.from_numpy(second))
    assert shared.dtype == torch.float32
    assert np.array_equal(shared, first.astype(np.int64) @ second.T.astype(np.int64))


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), count=st.integers(1, 30), density=st.floats(0, 1))
def test_suppression_is_the_greedy_one(seed: int, count: int, density: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    duplicate = (torch.rand(3, count, count, generator=generator) < density).triu(1)
    assert greedy_suppression(duplicate).tolist() == [plain_suppression(image) for image in duplicate]


@pytest.mark.parametrize("count", [1, 2, 8, 9, 16, 17, 100])
def test_suppression_along_a_chain(count: int) -> None:
    """Each is a duplicate of the one before: every second one stays. The longest way that there is."""
    duplicate = torch.ones(count, count, dtype=torch.bool).triu(1).tril(1)
    assert greedy_suppression(duplicate[None])[0].tolist() == [place % 2 == 0 for place in range(count)]


def random_boxes(seed: int, count: int, size: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    masks = np.zeros((count, size, size), dtype=bool)
    for mask in masks:
        (top, bottom), (left, right) = np.sort(rng.integers(0, size + 1, (2, 2)))
        mask[top:bottom, left:right] = True
    return masks


@pytest.mark.parametrize("seed", range(10))
def test_relations_and_iou_are_those_of_the_mask_algebra(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pseudo_labels, "_PIXELS", 37)  # several pieces, the last one smaller
    masks = random_boxes(seed, 25, 12)
    rles = encode_masks(masks)
    found = torch.from_numpy(masks)
    expected = mask_algebra.coverage_ancestors(mask_algebra.pairwise_coverage(rles), 0.75)
    assert np.array_equal(coverage_ancestors(found, 0.75).numpy(), expected)
    np.testing.assert_allclose(iou(found[:10], found[7:]).numpy(), mask_algebra.pairwise_iou(rles)[:10, 7:], atol=1e-6)


def test_a_chain_is_closed() -> None:
    """Each mask half as wide as the one before, with a fifth beyond its end: of the one before that it covers less."""
    masks = torch.zeros(5, 1, 500, dtype=torch.bool)
    end = 320
    for mask, width in zip(masks, (320, 160, 80, 40, 20), strict=True):
        end += width // 5 if width < 320 else 0
        mask[:, end - width : end] = True
    assert not pseudo_labels.shared_pixels(masks, masks)[0, 4]
    assert torch.equal(coverage_ancestors(masks, 0.75), torch.ones(5, 5, dtype=torch.bool).triu(1))


@pytest.mark.parametrize("seed", range(6))
def test_predictions_by_a_plain_loop(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Logits of a quarter of the canvas, two images with padding, in chunks."""
    monkeypatch.setattr(pseudo_labels, "_CHUNK", 5)
    generator = torch.Generator().manual_seed(seed)
    entity = torch.randn(2, 12, 2, generator=generator)
    logits = torch.nn.functional.avg_pool2d(torch.randn(2, 12, 10, 10, generator=generator), 5, 1, 2) * 20
    logits[:, 6:] = logits[:, :6] + 0.5 * torch.randn(2, 6, 10, 10, generator=generator)  # some nearly the same
    logits[:, 3] = -5.0  # nothing
    content = torch.tensor([[40, 33], [21, 40]])
    given_labels = torch.from_numpy(random_boxes(seed, 6, 40)).view(2, 3, 40, 40)
    found = read_predictions(entity, logits, content_mask(content, (40, 40)), given_labels, 0.7)
    removed = 0
    for image in range(2):
        full = torch.nn.functional.interpolate(logits[image][None], (40, 40), mode="bilinear", align_corners=False)[0]
        full[:, content[image, 0] :] = full[:, :, content[image, 1] :] = -1e4
        scores, binary = prediction_scores(entity[image], full), full > 0
        order = sorted(range(12), key=lambda query: -float(scores[query]))
        likeness = iou(binary, binary)
        kept: list[int] = []
        for query in order:
            if binary[query].any() and all(likeness[query, better] <= 0.7 for better in kept):
                kept.append(query)
        assert found.query[image].tolist() == order
        assert found.areas[image].tolist() == binary[order].sum((1, 2)).tolist()
        expected = [float(scores[query]) if query in kept else 0.0 for query in order]
        assert found.scores[image].tolist() == pytest.approx(expected, rel=1e-5)
        assert torch.equal(found.agreement[image], iou(given_labels[image], binary).amax(1))
        removed += 11 - len(kept)
    assert removed > 0


def test_choice_keeps_the_order_and_pads() -> None:
    places, real = choose(torch.tensor([[False, True, True, False], [False] * 4, [True, False, False, False]]))
    assert real.tolist() == [[True, True], [False, False], [True, False]]
    assert places[0].tolist() == [1, 2]
    assert int(places[2, 0]) == 0
    none_places, none_real = choose(torch.zeros(2, 3, dtype=torch.bool))
    assert none_places.shape == none_real.shape == (2, 1)  # one place at least, as in any set of targets
    assert not none_real.any()


def test_selected_targets_keep_their_relations() -> None:
    masks = torch.from_numpy(random_boxes(0, 4, 8))[None]
    ancestor = torch.ones(1, 4, 4, dtype=torch.bool).triu(1)
    valid = torch.tensor([[True, True, True, False]])
    chosen = pseudo_labels.select(
        Targets(masks, valid, ancestor, torch.tensor([5])), torch.tensor([[True, False, True, True]])
    )
    assert torch.equal(chosen.masks, masks[:, [0, 2]])
    assert chosen.valid.tolist() == [[True, True]]  # the last was padding
    assert chosen.ancestor[0].nonzero().tolist() == [[0, 1]]
    assert chosen.keys.tolist() == [5]
