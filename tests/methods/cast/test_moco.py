"""Heads and loss: the values of the authors' code, and those that the formulas give by hand."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sohes.methods.cast.moco import contrastive_term, feature_std, projection_head


def golden() -> dict[str, Tensor]:
    with np.load(Path(__file__).parent / "golden" / "moco_loss.npz") as file:
        return {key: torch.from_numpy(np.asarray(file[key])) for key in file.files}


@pytest.mark.parametrize(("keys", "expected"), [("k", "loss"), ("near", "loss_near"), ("q", "loss_same")])
def test_loss_is_that_of_the_code(keys: str, expected: str) -> None:
    values = golden()
    found = contrastive_term(values["q"], values[keys], float(values["temperature"]))
    torch.testing.assert_close(found.loss, values[expected], atol=1e-6, rtol=0)


@pytest.mark.parametrize("count", [1, 2, 7])
def test_loss_of_orthogonal_keys(count: int) -> None:
    """2 T log(1 + (M - 1) exp(-1 / T)), which is 0 where a query has no key but its own."""
    keys, temperature = 3 * torch.eye(8)[:count], 0.2
    found = contrastive_term(keys, keys, temperature)
    expected = 2 * temperature * math.log(1 + (count - 1) * math.exp(-1 / temperature))
    assert float(found.loss) == pytest.approx(expected, abs=1e-6)
    assert float(found.accuracy) == 1


def test_accuracy_counts_queries_with_their_own_key() -> None:
    keys = torch.eye(4)
    queries = keys[[0, 1, 3, 2]]
    assert float(contrastive_term(queries, keys, 0.2).accuracy) == 0.5


def test_no_gradient_goes_through_keys() -> None:
    queries, keys = torch.rand(2, 3, 5).requires_grad_(True).unbind()
    queries.retain_grad()
    keys.retain_grad()
    contrastive_term(queries, keys, 0.2).loss.backward()
    assert queries.grad is not None
    assert keys.grad is None


@pytest.mark.parametrize("layers", [2, 3])
def test_head(layers: int) -> None:
    head = projection_head(6, 10, 4, layers=layers)
    assert [type(part) for part in head] == [nn.Linear, nn.BatchNorm1d, nn.ReLU] * (layers - 1) + [
        nn.Linear,
        nn.BatchNorm1d,
    ]
    shapes = [tuple(p.shape) for p in head.parameters() if p.ndim == 2]
    assert shapes == [(10, 6), *[(10, 10)] * (layers - 2), (4, 10)]
    assert len(list(head.parameters())) == 3 * layers - 2  # no biases, and the last norm has nothing
    out = head(torch.randn(64, 6, generator=torch.Generator().manual_seed(0)))
    torch.testing.assert_close(out.mean(0), torch.zeros(4), atol=1e-5, rtol=0)
    torch.testing.assert_close(out.std(0, correction=0), torch.ones(4), atol=1e-2, rtol=0)


def test_feature_std() -> None:
    """0 of equal directions, 1 of ones that cancel out, and else NumPy's over all dimensions."""
    assert float(feature_std(torch.tensor([[1.0, 1.0], [2.0, 2.0]]))) == pytest.approx(0, abs=1e-3)
    assert float(feature_std(torch.tensor([[1.0, 0.0], [-5.0, 0.0]]))) == pytest.approx(1)
    features = torch.randn(9, 5, generator=torch.Generator().manual_seed(0))
    expected = np.sqrt(np.var(F.normalize(features, dim=1).numpy(), axis=0).sum())
    assert float(feature_std(features)) == pytest.approx(expected, abs=1e-6)
