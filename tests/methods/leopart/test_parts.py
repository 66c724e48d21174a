"""Assignment, foreground, alignment, loss and queue, each against what can be told without them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor

from sohes.data.views import sample_rng
from sohes.methods.leopart.alignment import align
from sohes.methods.leopart.assignment import sinkhorn
from sohes.methods.leopart.foreground import blurred, foreground_mask, without_specks
from sohes.methods.leopart.losses import SharedBoxes, SpatialLoss, spatial_loss
from sohes.methods.leopart.queue import EmbeddingQueue
from sohes.methods.leopart.settings import CropSettings
from sohes.methods.leopart.views import draw_views, shared_boxes


def test_sinkhorn_is_the_plain_loop_in_float64() -> None:
    logits = torch.rand(40, 6, generator=torch.Generator().manual_seed(0)) * 2 - 1
    plan = np.exp(logits.double().numpy().T / 0.05)
    plan /= plan.sum()
    for _ in range(3):
        plan *= (1 / 6 / plan.sum(1))[:, None]
        plan *= (1 / 40 / plan.sum(0))[None]
    found = sinkhorn(logits, epsilon=0.05, iterations=3)
    np.testing.assert_allclose(found.numpy(), (plan / plan.sum(0)).T, atol=1e-5)
    torch.testing.assert_close(found.sum(1), torch.ones(40))


def test_sinkhorn_fills_prototypes_alike() -> None:
    """Although nearly all tokens prefer the first."""
    logits = torch.rand(200, 4, generator=torch.Generator().manual_seed(0)) + torch.tensor([1.0, 0, 0, 0])
    found = sinkhorn(logits, epsilon=0.5, iterations=100)
    torch.testing.assert_close(found.sum(0), torch.full((4,), 50.0), atol=0.01, rtol=0)


def test_foreground_holds_its_share_and_no_less_would() -> None:
    attention = torch.rand(4, 1, 12, 10, generator=torch.Generator().manual_seed(0)) ** 4
    smooth, masks = blurred(attention), foreground_mask(attention, 0.6)
    for values, mask in zip(smooth, masks, strict=True):
        highest, total = values.flatten().sort(descending=True).values, values.sum()
        count = int((highest.cumsum(0) < 0.6 * total).sum()) + 1
        kept = values >= highest[count - 1]  # the fewest that hold the share
        assert not (mask.bool() & ~kept).any()
        assert (kept & ~mask.bool()).sum() < 10  # specks
        labels, found = ndimage.label(mask[0].numpy(), np.ones((3, 3)))
        assert all((labels == label).sum() > 2 for label in range(1, found + 1))


@pytest.mark.parametrize("density", [0.05, 0.15, 0.3])
def test_specks_are_what_labelling_finds(density: float) -> None:
    masks = (torch.rand(30, 1, 9, 11, generator=torch.Generator().manual_seed(0)) < density).float()
    expected = masks.clone()
    for mask in expected:
        labels, found = ndimage.label(mask[0].numpy(), np.ones((3, 3)))
        for label in range(1, found + 1):
            if (labels == label).sum() <= 2:
                mask[0][torch.from_numpy(labels == label)] = 0
    assert not torch.equal(expected, masks)
    assert torch.equal(without_specks(masks), expected)


@pytest.mark.parametrize(("patch_px", "sides"), [(16, (224, 96)), (14, (224, 98)), (8, (224, 96))])
def test_aligned_grids_show_the_same_places(patch_px: int, sides: tuple[int, int]) -> None:
    """Maps of coordinates instead of features: both grids agree to half a patch of the coarser crop."""
    for seed in range(20):
        views = draw_views((300, 400), sample_rng(seed, 0), CropSettings(), sides)
        maps, tokens = [], []
        for view in views:
            step_x, step_y = (side * patch_px / view.size_hw[0] for side in (view.width, view.height))
            centres = torch.arange(view.size_hw[0] // patch_px) + 0.5
            x, y = view.left + centres * step_x, view.top + centres * step_y
            maps.append(torch.stack([x.expand(len(y), -1), y[:, None].expand(-1, len(x))])[None])
            tokens.append(torch.tensor([step_x, step_y])[:, None, None])
        in_global, in_all = shared_boxes(views)
        zero = torch.zeros(1, dtype=torch.int64)
        for i, v in [(i, v) for i in range(2) for v in range(6) if v != i]:
            options: dict[str, Any] = {"patch_px": patch_px, "cells": 7}
            one = align(maps[i], in_global[i, v][None], zero, **options)[0]
            other = align(maps[v], in_all[v, i][None], zero, **options)[0]
            assert bool(((one - other).abs() <= 0.5 * torch.maximum(tokens[i], tokens[v])).all())


def whole_boxes(images: int, crops: int) -> SharedBoxes:
    """All crops show the same 64 px."""
    box = torch.tensor([0.0, 0, 64, 64])
    return SharedBoxes(box.expand(images, 2, crops, 4), box.expand(images, crops, 2, 4))


def loss_of(assignments: Tensor, predictions: Tensor, masks: Tensor | None = None, local: int = 2) -> SpatialLoss:
    """With the same predictions (B, K, 8, 8) in all crops."""
    crops = predictions.expand(2 + local, *predictions.shape)
    return spatial_loss(
        assignments.expand(2, *assignments.shape),
        crops[:2],
        crops[2:],
        whole_boxes(len(predictions), 2 + local),
        masks,
        patch_px=8,
        cells=4,
        whole_cell=0.999,
        temperature=0.1,
    )


@pytest.fixture
def one_hot() -> Tensor:
    """(3, 5, 8, 8): one prototype for each image."""
    assignments = torch.zeros(3, 5, 8, 8)
    for image in range(3):
        assignments[image, image] = 1
    return assignments


@pytest.mark.parametrize("local", [0, 2])
def test_loss_of_certain_and_of_uniform_predictions(one_hot: Tensor, local: int) -> None:
    right, uniform = (
        loss_of(one_hot, 100 * one_hot, local=local),
        loss_of(one_hot, torch.zeros(3, 5, 8, 8), local=local),
    )
    assert float(right.loss) == pytest.approx(0, abs=1e-6)
    assert float(uniform.loss) == pytest.approx(math.log(5), rel=1e-6)
    assert float(right.cells) == 1


def test_only_cells_wholly_inside_the_mask_count(one_hot: Tensor) -> None:
    """Predictions are wrong outside, so each cell that reaches there would show."""
    masks = torch.zeros(2, 3, 1, 8, 8)
    masks[..., :5] = 1  # two of four cells, and half of the third
    predictions = 100 * one_hot.clone()
    predictions[..., 4:] = 0
    found = loss_of(one_hot, predictions, masks)
    assert float(found.loss) == pytest.approx(0, abs=1e-3)
    assert float(found.cells) == pytest.approx(0.5)


def test_an_empty_mask_has_no_loss_and_no_nan(one_hot: Tensor) -> None:
    predictions = torch.zeros(3, 5, 8, 8, requires_grad=True)
    found = loss_of(one_hot, predictions, torch.zeros(2, 3, 1, 8, 8))
    found.loss.backward()
    assert float(found.loss.detach()) == float(found.cells) == 0
    assert predictions.grad is not None
    assert not predictions.grad.any()


def test_queue_is_used_when_full_and_keeps_the_newest() -> None:
    queue = EmbeddingQueue(5, 1)
    for place in range(4):
        assert len(queue.own_rows(0)) == 0
        tokens = torch.full((4, 1), float(place))
        queue.push(0, tokens, torch.tensor([1.0, 0, 1, 0]), torch.rand(4), count=3)  # only two are foreground
        if 2 * (place + 1) >= 5:
            break
    assert place == 2
    assert sorted(queue.own_rows(0)[:, 0].tolist()) == [0, 1, 1, 2, 2]
    assert len(queue.own_rows(1)) == 0


def test_queue_draws_from_the_foreground_by_the_lowest_numbers() -> None:
    queue = EmbeddingQueue(2, 1)
    tokens = torch.arange(6.0)[:, None]
    random = torch.tensor([0.1, 0.9, 0.2, 0.8, 0.3, 0.7])
    queue.push(1, tokens, torch.tensor([0.0, 1, 1, 1, 1, 1]), random, count=2)
    assert queue.own_rows(1)[:, 0].tolist() == [2, 4]


def test_nothing_joins_without_a_foreground() -> None:
    queue = EmbeddingQueue(2, 1)
    queue.push(0, torch.ones(3, 1), torch.zeros(3), torch.rand(3), count=2)
    assert queue.pushed.tolist() == [0, 0]
    assert not queue.rows.any()
