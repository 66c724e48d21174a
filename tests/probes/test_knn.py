from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from sohes.errors import ConfigError
from sohes.probes import knn
from sohes.probes.features import Features
from sohes.probes.patches import LabelledPatches


@pytest.mark.parametrize("block", [7, 1000])
def test_transfer_is_that_of_brute_force(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(knn, "_BLOCK", block)
    generator = torch.Generator().manual_seed(0)
    queries, bank = (normalize(torch.randn(count, 6, generator=generator), dim=1) for count in (9, 40))
    labels = torch.rand(40, 3, generator=generator)
    found = knn.transfer(queries, bank, labels, k=5, temperature=0.1)
    for place, query in enumerate(queries.double().numpy()):
        cosine = bank.double().numpy() @ query
        nearest = np.argsort(-cosine)[:5]
        weights = np.exp(cosine[nearest] / 0.1)
        expected = (weights[:, None] * labels.numpy()[nearest]).sum(0) / weights.sum()
        np.testing.assert_allclose(found[place], expected, atol=1e-5)


def test_a_bank_that_does_not_fit_is_said_before_it_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    patches = LabelledPatches(
        Features((tmp_path / "never read.npy",), 16, 8, 4), np.ones((1, 4), bool), np.ones((4, 2), np.float32)
    )
    monkeypatch.setattr("sohes.probes.patches.free_bytes", lambda device: 4 * 4 * 6 - 1)
    with pytest.raises(ConfigError, match=r"4 train patches need 0\.0 GB .* lower them with max_train=N"):
        knn.memory_bank(patches, torch.device("cpu"))
