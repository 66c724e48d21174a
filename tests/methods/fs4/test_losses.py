"""The loss of a pair of views where its value is known by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from sohes.methods.fs4.losses import ViewLosses, class_weights, view_losses

CENTROIDS = torch.eye(4)[:3]  # K = 3, C = 4


def losses(first: Tensor, second: Tensor, labels: Tensor, **changes: object) -> ViewLosses:
    options = {"weights": None, "temperature": 1.0, "mse": False} | changes
    return view_losses((first, second), (labels, labels), torch.stack([CENTROIDS] * 2), **options)  # type: ignore[arg-type]


@pytest.fixture
def labels() -> Tensor:
    return torch.randint(0, 3, (2, 5, 6), generator=torch.Generator().manual_seed(0))


def test_separable_and_cold_is_zero(labels: Tensor) -> None:
    embeddings = CENTROIDS[labels].permute(0, 3, 1, 2)
    found = losses(embeddings, embeddings, labels, temperature=0.01)
    assert float(found.total) < 1e-6
    warm = losses(embeddings, embeddings, labels)
    assert float(warm.total) == pytest.approx(math.log(1 + 2 / math.e), rel=1e-6)


def test_across_is_within_where_the_views_are_equal(labels: Tensor) -> None:
    embeddings = F.normalize(torch.randn(2, 4, 5, 6, generator=torch.Generator().manual_seed(1)), dim=1)
    found = losses(embeddings, embeddings, labels, mse=True)
    assert torch.equal(found.within, found.across)
    assert float(found.mse) == 0
    assert float(found.total) == pytest.approx(float(found.within) / 2)


def test_weights_are_those_of_cross_entropy(labels: Tensor) -> None:
    generator = torch.Generator().manual_seed(1)
    embeddings = F.normalize(torch.randn(2, 4, 5, 6, generator=generator), dim=1)
    weights = torch.tensor([[0.2, 0.3, 0.5], [0.2, 0.3, 0.5]])
    expected = F.cross_entropy(torch.einsum("bchw,kc->bkhw", embeddings, CENTROIDS), labels, weights[0])
    assert float(losses(embeddings, embeddings, labels, weights=weights).total) == pytest.approx(float(expected))


def test_class_weights() -> None:
    counts = torch.tensor([[1, 3, 0], [2, 2, 4]])
    assert class_weights(counts, "none") is None
    assert class_weights(counts, "freq").tolist() == [[0.25, 0.75, 0], [0.25, 0.25, 0.5]]
    torch.testing.assert_close(class_weights(counts, "inverse_sqrt")[0], torch.tensor([2, (4 / 3) ** 0.5, 0]))
