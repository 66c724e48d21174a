from __future__ import annotations

from pathlib import Path

import pytest

from sohes.errors import ConfigError
from sohes.probes import features
from sohes.probes.knn import knn_probe

from .colours import make_task, write_data


def test_what_cannot_be_is_said_before_features_are_extracted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "_maps", None)
    task = make_task(write_data(tmp_path / "data"))
    monkeypatch.setattr("sohes.probes.neighbours.rounds", lambda device: False)
    monkeypatch.setattr("sohes.probes.patches.free_bytes", lambda device: 224 * 4 * (6 + 4) - 1)
    with pytest.raises(ConfigError, match=r"224 train patches need 0\.0 GB .* with max_train=N or size_px=N"):
        knn_probe(task, 0)
    with pytest.raises(ConfigError, match="neighbours=225: there are only 224 labelled train patches; lower it"):
        knn_probe(make_task(tmp_path / "data", neighbours=225), 0)
