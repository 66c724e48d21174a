from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, interpolate

from sohes.errors import DataError
from sohes.probes import sgd
from sohes.probes.features import Features
from sohes.probes.sgd import train_layer

IMAGES, DIM, CLASSES = 7, 5, 3


@pytest.fixture
def features(tmp_path: Path) -> Features:
    rng = np.random.default_rng(0)
    files = tuple(tmp_path / f"{place}.npy" for place in range(IMAGES))
    for file in files:
        np.save(file, rng.normal(size=(4, 4, DIM)).astype(np.float32))
    return Features(files, 32, 8, DIM)


@pytest.fixture
def labels(features: Features) -> np.ndarray:
    """The class of a pixel is the largest of three channels, upsampled; the last image has no label."""
    maps = torch.from_numpy(features.stack()).permute(0, 3, 1, 2)[:, :CLASSES]
    found = interpolate(maps, (100, 100), mode="bilinear").argmax(1).to(torch.uint8).numpy()
    found[:, :20] = 255
    found[-1] = 255
    return found


def layer(seed: int = 0) -> nn.Linear:
    torch.manual_seed(seed)
    return nn.Linear(DIM, CLASSES)


def test_one_step_is_sgd_on_upsampled_features(
    features: Features, labels: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against one step of plain SGD with features upsampled before the layer, all labelled images at once."""
    monkeypatch.setattr(sgd, "_AT_ONCE", 4)
    ours, theirs = layer(), layer()
    train_layer(ours, features, labels, epochs=1, batch=IMAGES, lr=0.1, seed=0)
    big = interpolate(torch.from_numpy(features.stack()[:-1]).permute(0, 3, 1, 2), (100, 100), mode="bilinear")
    scores = theirs(big.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    cross_entropy(scores, torch.from_numpy(labels[:-1]).long(), ignore_index=255).backward()
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert other.grad is not None
        torch.testing.assert_close(one.data, other.data - 0.1 * (other.grad + 1e-4 * other.data), atol=1e-5, rtol=1e-4)


def test_it_learns_and_is_seeded(features: Features, labels: np.ndarray) -> None:
    trained = []
    for seed in (1, 1, 2):
        trained.append(layer())
        train_layer(trained[-1], features, labels, epochs=60, batch=2, lr=0.3, seed=seed)
    assert torch.equal(trained[0].weight, trained[1].weight)
    assert not torch.equal(trained[0].weight, trained[2].weight)
    scores = trained[0](torch.from_numpy(features.stack()[:-1])).permute(0, 3, 1, 2)
    predicted = interpolate(scores, (100, 100), mode="bilinear").argmax(1).numpy()
    known = labels[:-1] != 255
    assert (predicted == labels[:-1])[known].mean() > 0.95
    with pytest.raises(DataError, match="no train image has a label at 100 x 100 px"):
        train_layer(layer(), features, np.full_like(labels, 255), epochs=1, batch=2, lr=0.1, seed=0)
