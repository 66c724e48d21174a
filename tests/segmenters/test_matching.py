"""Matching against all permutations, assignment against SciPy, padding of targets."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional as F

from sohes.segmenters import matching as matching_module
from sohes.segmenters.assignment import assign
from sohes.segmenters.matching import Targets, match
from tests.segmenters.samples import SETTINGS, grid_points, make_output, make_targets

Costs = NDArray[np.float32]


@pytest.fixture
def full_grid(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every pixel is a sampled point, once."""
    monkeypatch.setattr(
        matching_module, "random_points", lambda keys, use, rows, points, device: grid_points(len(rows))
    )


@torch.no_grad()
def pair_cost(entity: Tensor, mask: Tensor, target: Tensor) -> float:
    """Mask2Former's cost of one query and one target, all pixels."""
    target = target.float()
    probability = mask.sigmoid()
    dice = 1 - (2 * (probability * target).sum() + 1) / (probability.sum() + target.sum() + 1)
    cross_entropy = F.binary_cross_entropy_with_logits(mask, target)
    return float(5 * cross_entropy + 5 * dice - 2 * entity.softmax(-1)[0])


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.usefixtures("full_grid")
def test_matching_is_the_cheapest_of_all(seed: int) -> None:
    output, targets = make_output(2, 5, layers=2, seed=seed), make_targets([3, 2], seed=seed + 10)
    matchings = match(output, targets, SETTINGS)
    assert len(matchings) == 2
    for layer, matching in enumerate(matchings):
        for image, count in enumerate([3, 2]):
            cost = [
                [
                    pair_cost(
                        output.entity_logits[layer][image, query],
                        output.mask_logits(layer)[image, query],
                        targets.masks[image, target],
                    )
                    for target in range(count)
                ]
                for query in range(5)
            ]
            best = min(
                itertools.permutations(range(5), count),
                key=lambda queries: sum(cost[q][t] for t, q in enumerate(queries)),
            )
            own = matching.image == image
            found = sorted(zip(matching.target[own].tolist(), matching.query[own].tolist(), strict=True))
            assert found == list(enumerate(best))


def test_more_targets_than_queries() -> None:
    matchings = match(make_output(1, 2), make_targets([4]), SETTINGS)
    assert sorted(matchings[0].query.tolist()) == [0, 1]
    assert len(set(matchings[0].target.tolist())) == 2


def test_matching_survives_numbers_that_are_not() -> None:
    output = make_output(1, 3)
    with torch.no_grad():
        output.mask_embeddings[0][0, 1] = torch.nan
    (matching,) = match(output, make_targets([2]), SETTINGS)
    assert sorted(matching.query.tolist()) == [0, 2]


KINDS: dict[str, Callable[[np.random.Generator, int, int], NDArray[np.floating]]] = {
    "uniform": lambda rng, rows, columns: rng.random((rows, columns)),
    "negative": lambda rng, rows, columns: rng.normal(-5, 2, (rows, columns)),
    "queries alike": lambda rng, rows, columns: rng.gamma(2, 1, (1, columns)) + rng.gamma(2, 0.1, (rows, columns)),
    "rank one": lambda rng, rows, columns: rng.normal(size=(rows, 1)) + rng.normal(size=(1, columns)),
    "ties": lambda rng, rows, columns: rng.integers(0, 4, (rows, columns)).astype(float),
    "constant": lambda rng, rows, columns: np.ones((rows, columns)),
    "some invalid": lambda rng, rows, columns: np.where(rng.random((rows, columns)) < 0.3, 1e6, rng.random()),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (1, 9), (7, 7), (5, 30), (40, 90), (30, 12), (9, 1)])
def test_assignment_is_as_cheap_as_scipys(kind: str, rows: int, columns: int) -> None:
    rng = np.random.default_rng(rows * columns)
    costs = (
        np.stack([KINDS[kind](rng, rows, columns) for _ in range(6)]).reshape(2, 3, rows, columns).astype(np.float32)
    )
    found = assign(costs, [rows] * 3)
    for place in np.ndindex(2, 3):
        cost, own = costs[place].astype(float), np.flatnonzero(found[place] >= 0)
        assert len(own) == min(rows, columns)
        assert len(set(found[place][own])) == len(own)
        best = linear_sum_assignment(cost)
        assert cost[own, found[place][own]].sum() == pytest.approx(cost[best].sum(), rel=1e-9, abs=1e-9)
        if kind in ("uniform", "negative", "queries alike"):  # one optimum
            assert found[place][best[0]].tolist() == best[1].tolist()


def test_rows_that_do_not_count_are_left_out() -> None:
    costs = np.random.default_rng(0).random((2, 3, 4, 6)).astype(np.float32)
    found = assign(costs, [4, 0, 2])
    assert (found >= 0).sum(-1).tolist() == [[4, 0, 2]] * 2
    assert np.array_equal(found[:, 2, :2], assign(costs[:, 2:, :2], [2])[:, 0])


def test_padding_of_targets() -> None:
    masks = [torch.rand(count, 4, 6) > 0.5 for count in (2, 0, 3)]
    relations = [torch.rand(count, count) > 0.5 for count in (2, 0, 3)]
    targets = Targets.pad(masks, relations)
    assert targets.valid.tolist() == [[True, True, False], [False] * 3, [True] * 3]
    assert torch.equal(targets.masks[0, :2], masks[0])
    assert torch.equal(targets.masks[2], masks[2])
    assert torch.equal(targets.ancestor[0, :2, :2], relations[0])
    assert torch.equal(targets.ancestor[2], relations[2])
    assert not targets.masks[0, 2].any()
    assert not targets.ancestor[0, 2].any()
    assert not targets.ancestor[0, :, 2].any()
