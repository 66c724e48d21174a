"""Nearest patches, exact by either way, against brute force in double precision."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from sohes.probes import neighbours
from sohes.probes.neighbours import LabelTransfer, largest, patch_bytes

CPU = torch.device("cpu")


def expected(queries: Tensor, bank: Tensor, labels: Tensor, *, k: int, temperature: float) -> np.ndarray:
    found = []
    for query in queries.double().numpy():
        cosine = bank.double().numpy() @ query
        nearest = np.argsort(-cosine)[:k]
        weights = np.exp((cosine[nearest] - cosine.max()) / temperature)
        found.append((weights[:, None] * labels.double().numpy()[nearest]).sum(0) / weights.sum())
    return np.array(found)


@pytest.mark.parametrize("cells", [100, 2**25])
@pytest.mark.parametrize("spread", [1.0, 0.03])  # of directions: among similar ones bfloat16 is in doubt
@pytest.mark.parametrize("rounds", [False, True])
def test_labels_are_those_of_brute_force(
    rounds: bool, spread: float, cells: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(neighbours, "rounds", lambda device: rounds)
    monkeypatch.setattr(neighbours, "_CELLS", cells)
    monkeypatch.setattr(neighbours, "_AT_ONCE", 4)
    generator = torch.Generator().manual_seed(0)
    queries, bank = (normalize(1 + spread * torch.randn(count, 24, generator=generator), dim=1) for count in (9, 1003))
    labels = torch.rand(1003, 3, generator=generator)
    decided: list[int] = []
    nearest = LabelTransfer._nearest
    monkeypatch.setattr(
        LabelTransfer, "_nearest", lambda self, some: (decided.append(len(some)), nearest(self, some))[1]
    )
    found = LabelTransfer(bank, labels, k=5, temperature=0.1)(queries)
    np.testing.assert_allclose(found, expected(queries, bank, labels, k=5, temperature=0.1), atol=2e-5)
    assert sum(decided) == (0 if rounds and spread == 1 else 9)


@pytest.mark.parametrize(("columns", "count"), [(40, 5), (163, 4), (7, 7), (1000, 30)])
def test_the_largest_of_a_row(columns: int, count: int) -> None:
    scores = torch.from_numpy(np.random.default_rng(0).permutation(6 * columns).reshape(6, columns)).float()
    values, places = largest(scores, count)
    order = np.argsort(-scores.numpy(), axis=1)[:, :count]
    np.testing.assert_array_equal(places, order)
    np.testing.assert_array_equal(values, np.take_along_axis(scores.numpy(), order, 1))


def test_memory_of_a_patch(monkeypatch: pytest.MonkeyPatch) -> None:
    for rounds, n_bytes in ((False, 4 * 12), (True, 4 * 12 + 2 * 10)):
        monkeypatch.setattr(neighbours, "rounds", lambda device, rounds=rounds: rounds)
        assert patch_bytes(10, 2, CPU) == n_bytes
