"""In-context retrieval: without a bound it is the k-NN probe; how a bank is drawn, and what does not fit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from sohes.errors import ConfigError
from sohes.evaluation.semantic import semantic_scores
from sohes.probes import incontext, patches
from sohes.probes.incontext import build_bank, draw_patches, incontext_probe, patches_of_each
from sohes.probes.knn import knn_probe

from .colours import make_task, write_data


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOHES_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_data(tmp_path / "data")


def test_without_a_bound_it_is_the_knn_probe(data: Path) -> None:
    task = make_task(data, neighbours=5)
    (ours,), (theirs,) = incontext_probe(task, 0), knn_probe(task, 0)
    assert np.array_equal(ours.confusions, theirs.confusions)
    assert ours.protocol == "probe_incontext_32_full_v1"
    assert ours.notes == ("in-context probe: a bank of 224 of the 256 train patches, 5 neighbours",)  # less a border


def test_a_small_bank(data: Path) -> None:
    task = make_task(data, neighbours=3, bank_size=63)  # 15 of each image
    (scored,) = incontext_probe(task, 0)
    assert "a bank of 60 of the 256" in scored.notes[0]
    assert semantic_scores(scored.confusions).miou > 0.9
    again, other = incontext_probe(task, 0)[0], incontext_probe(task, 1)[0]
    assert np.array_equal(scored.confusions, again.confusions)
    bank = [
        build_bank(task.train, task.data.train, classes=4, each=15, seed=seed, device=torch.device("cpu"))
        for seed in (0, 0, 1)
    ]
    assert torch.equal(bank[0][0], bank[1][0])
    assert not torch.equal(bank[0][0], bank[2][0])
    assert other.protocol == scored.protocol
    features, labels = bank[0]
    assert features.norm(dim=1).allclose(torch.ones(60))
    assert labels.sum(dim=1).allclose(torch.ones(60))


def test_rare_classes_are_preferred() -> None:
    shares = np.zeros((100, 3), np.float32)
    shares[:90, 0] = shares[90:, 1] = 1
    often = [sum(place >= 90 for place in draw_patches(shares, 20, np.random.default_rng(seed))) for seed in range(40)]
    # of a class's n patches the ranks are uniform in [0, n]: below any r <= 10 lie r of either class on average
    assert 7 < np.mean(often) < 11  # 20 drawn at random would hold 2
    assert np.array_equal(draw_patches(shares, 500, np.random.default_rng(0)), np.arange(100))


def test_what_cannot_be(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"bank_size=3 is less than a patch of each of the 4 train images"):
        incontext_probe(make_task(data, bank_size=3), 0)
    with pytest.raises(ConfigError, match=r"neighbours=30: the bank has 8 patches"):
        incontext_probe(make_task(data, bank_size=8), 0)
    monkeypatch.setattr("sohes.probes.neighbours.rounds", lambda device: False)
    for module in (patches, incontext):
        monkeypatch.setattr(module, "free_bytes", lambda device: 4 * (6 + 4) * 41)
    with pytest.raises(ConfigError, match=r"the 256 patches of the bank need .* bank_size=40"):
        patches_of_each(make_task(data))
    incontext_probe(make_task(data, bank_size=40, neighbours=5), 0)
