"""The ancestor head at its start, and what it can learn."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from sohes.masks import pairwise_coverage
from sohes.rle import encode_masks
from sohes.segmenters.ancestor_head import AncestorHead, coverage


def rectangles(count: int) -> Tensor:
    """Mask logits (1, `count`, 24, 24) of random rectangles."""
    rng = np.random.default_rng(0)
    logits = torch.full((1, count, 24, 24), -1.0)
    for mask in logits[0]:
        top, left, bottom, right = (*rng.integers(0, 12, 2), *rng.integers(13, 25, 2))
        mask[top:bottom, left:right] = 1.0
    return logits


def test_ancestor_head_starts_as_the_coverage_rule() -> None:
    masks = rectangles(40)
    head = AncestorHead(8, 4)
    with torch.no_grad():
        said = head(torch.zeros(1, 40, 8), masks)[0] > 0
    covered = pairwise_coverage(encode_masks((masks[0] > 0).numpy()))
    rule = (covered >= 0.9) & ~(covered >= 0.9).T
    decided = np.abs(covered - 0.9) > 0.01  # the queries move the threshold a little
    decided &= decided.T
    assert rule.sum() > 20
    assert np.array_equal(said.numpy()[decided], rule[decided])


def test_coverage_is_exact_in_half_precision() -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(coverage(rectangles(6)).diagonal(dim1=1, dim2=2), torch.ones(1, 6))


def test_ancestor_head_tells_the_direction() -> None:
    """The formula, and that it is not symmetric."""
    torch.manual_seed(0)
    head, masks = AncestorHead(8, 4), torch.full((1, 5, 4, 4), -1.0)
    queries = torch.randn(1, 5, 8)
    masks[0, 1] = 1.0
    masks[0, 3, :2] = 1.0  # half of mask 1
    with torch.no_grad():
        logits = head(queries, masks)[0]
        above, below = head.as_ancestor(queries)[0], head.as_descendant(queries)[0]
        product = float(above[1] @ below[3]) / 4**0.5
    rule = min(math.log(99) - math.log(9), math.log(9) - 0)  # log-odds of 0.99 for a whole, of 0.5 for a half
    assert float(logits[1, 3]) == pytest.approx(2 * rule + product, rel=1e-4)
    assert float(logits[3, 1]) < -4


def test_ancestor_head_without_the_rule_sees_queries_alone() -> None:
    torch.manual_seed(0)
    head, queries = AncestorHead(8, 4, rule=False), torch.randn(1, 5, 8)
    with torch.no_grad():
        logits = head(queries, rectangles(5))
        above, below = head.as_ancestor(queries)[0], head.as_descendant(queries)[0]
        silent = head(torch.zeros(1, 5, 8), rectangles(5)).sigmoid() - 0.05
        assert torch.equal(logits, head(queries, -rectangles(5)))
    assert float(logits[0, 1, 3]) == pytest.approx(float(above[1] @ below[3]) / 4**0.5 - math.log(19), rel=1e-4)
    assert silent.abs().max() < 0.02  # one pair in twenty, but for the biases of the embeddings


@pytest.mark.parametrize("rule", [True, False])
def test_ancestor_head_can_learn_a_chain(rule: bool) -> None:
    """Any order of four queries is within its reach, whatever their masks say."""
    torch.manual_seed(0)
    head, queries, masks = AncestorHead(8, 4, rule=rule), torch.randn(1, 4, 8), torch.ones(1, 4, 2, 2)
    wanted = torch.triu(torch.ones(4, 4), 1)
    optimizer = torch.optim.Adam(head.parameters(), lr=0.05)
    for _ in range(150):
        loss = torch.nn.functional.binary_cross_entropy_with_logits(head(queries, masks)[0], wanted)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert torch.equal(head(queries, masks)[0] > 0, wanted.bool())
