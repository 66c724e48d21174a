from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from sohes.errors import ConfigError
from sohes.probes import knn
from sohes.probes.features import Features
from sohes.probes.patches import LabelledPatches


def test_a_bank_that_does_not_fit_is_said_before_it_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    patches = LabelledPatches(
        Features((tmp_path / "never read.npy",), 16, 8, 4), np.ones((1, 4), bool), np.ones((4, 2), np.float32)
    )
    monkeypatch.setattr("sohes.probes.neighbours.rounds", lambda device: False)
    monkeypatch.setattr("sohes.probes.patches.free_bytes", lambda device: 4 * 4 * 6 - 1)
    with pytest.raises(ConfigError, match=r"4 train patches need 0\.0 GB .* lower them with max_train=N"):
        knn.memory_bank(patches, torch.device("cpu"))
