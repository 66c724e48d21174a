"""An epoch's labels: what they are the nearest of, how they are counted, and where a collapse ends a training."""

from __future__ import annotations

import errno
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from sohes.errors import SohesError
from sohes.files import file_digest
from sohes.methods.fs4 import pixel_labels
from sohes.methods.fs4.monitor import CollapseMonitor, Row, check_collapse
from sohes.methods.fs4.pixel_labels import PixelLabels, make_pixel_labels
from tests.methods.fs4.tiny import IMAGES, config, samples

SIDE, CELLS = 16, 16 * 16


def embed(batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Colours as embeddings (B, 8, 16, 16), whatever the geometry."""
    found = []
    for view in ("view_a", "view_b"):
        colours = F.adaptive_avg_pool2d(batch[view].float() / 255, SIDE)
        found.append(F.normalize(torch.cat([colours, 1 - colours, colours[:, :2] ** 2], dim=1), dim=1))
    return found[0], found[1]


def made(start: Path, folder: Path, epoch: int = 1, **changes: Any) -> tuple[PixelLabels, Row]:
    settings = config(**changes)
    return make_pixel_labels(embed, samples(start, **changes), epoch, folder, settings, workers=0)


@pytest.mark.parametrize("cluster_batch", [2, 3, 8])
def test_labels_are_those_of_the_nearest_centroid(start: Path, tmp_path: Path, cluster_batch: int) -> None:
    """With batches of equal and of different sizes, and with one that initialises alone."""
    found, row = made(start, tmp_path, cluster_batch=cluster_batch)
    assert found.path == tmp_path / "epoch-0001.npy"
    assert found.digest == file_digest(found.path)
    assert np.load(found.path).dtype == np.uint8
    torch.testing.assert_close(found.centroids.norm(dim=2), torch.ones(2, 4))
    source = samples(start)
    for index in range(IMAGES):
        labels = found.of(torch.tensor([index]))
        sample = {name: value[None] for name, value in source.sample(1, index).items()}
        for view, maps in enumerate(embed(sample)):
            distances = torch.cdist(maps[0].flatten(1).T, found.centroids[view])
            assert torch.equal(labels[view].flatten(), distances.argmin(1))
    assert found.counts.sum(1).tolist() == [IMAGES * CELLS] * 2
    for view in range(2):
        every = np.load(found.path)[:, view]
        assert np.bincount(every.ravel(), minlength=4).tolist() == found.counts[view].tolist()
        assert row[f"clusters_{view + 1}"] == len(np.unique(every))
        assert row[f"largest_share_{view + 1}"] == pytest.approx(np.bincount(every.ravel()).max() / every.size)


def test_16_bits_above_256_clusters(start: Path, tmp_path: Path) -> None:
    found, _ = made(start, tmp_path, clusters=300)
    assert np.load(found.path).dtype == np.uint16
    assert int(torch.stack(found.of(torch.arange(IMAGES))).max()) > 255


def test_a_pool_of_some_pixels_counts_for_all(start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The batches after it are weighed against all pixels of the first ones, not only the drawn ones."""
    sizes, fitted = [], []
    real = pixel_labels.fit_kmeans

    def fit(points: Tensor, *args: Any, **options: Any) -> Any:
        sizes.append(len(points))
        fitted.append(real(points, *args, **options))
        return fitted[-1]

    monkeypatch.setattr(pixel_labels, "_POOL", 360)
    monkeypatch.setattr(pixel_labels, "fit_kmeans", fit)
    made(start, tmp_path)
    assert sizes == [6 * 60] * 2  # two batches of three images
    assert [float(one.counts.sum()) for one in fitted] == pytest.approx([IMAGES * CELLS] * 2)


def test_a_full_disk(start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def allocate(*_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(pixel_labels.os, "posix_fallocate", allocate)
    with pytest.raises(SohesError, match=r"no space left while writing epoch-0001.npy. Free some space"):
        made(start, tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_same_again(start: Path, tmp_path: Path) -> None:
    state = torch.get_rng_state()
    first, second = made(start, tmp_path / "a"), made(start, tmp_path / "b")
    assert first[0].digest == second[0].digest
    assert first[1] == second[1]
    assert torch.equal(torch.get_rng_state(), state)  # a step's random numbers stay what they were
    assert made(start, tmp_path / "c", epoch=0)[0].digest != first[0].digest


def monitored(first: list[int], second: list[int], *, temperature: float = 1.0) -> Row:
    """What the monitor says of embeddings that are the centroids of these clusters."""
    axes = torch.eye(4)
    centroids = torch.stack([axes, axes])
    monitor = CollapseMonitor(4, temperature, torch.device("cpu"))
    monitor.add([axes[first], axes[second]], [torch.tensor(first), torch.tensor(second)], centroids)
    return monitor.row(7)


def test_monitor() -> None:
    row = monitored([0, 0, 0, 1], [0, 1, 2, 3])
    assert (row["epoch"], row["clusters_1"], row["clusters_2"]) == (7, 2, 4)
    assert (row["largest_share_1"], row["largest_share_2"]) == (0.75, 0.25)
    assert row["agreement"] == 0.25  # of the first pixel alone
    certain = math.e / (math.e + 3)
    entropy = -certain * math.log(certain) - 3 * (1 - certain) / 3 * math.log((1 - certain) / 3)
    assert row["entropy_1"] == pytest.approx(entropy / math.log(4), rel=1e-6)
    assert monitored([0], [0], temperature=0.01)["entropy_2"] == pytest.approx(0, abs=1e-6)


def test_a_collapse_ends_the_training() -> None:
    fine, large, few = monitored([0, 1], [2, 3]), monitored([0, 1, 2, 3], [0, 0, 0, 1]), monitored([0], [0, 1])
    check_collapse([fine, large, fine], 4)
    check_collapse([large, fine, large], 4)
    with pytest.raises(SohesError, match=r"epoch 7, view 2: one cluster holds 75% of the pixels, 75% the epoch before"):
        check_collapse([fine, large, large], 4)
    with pytest.raises(SohesError, match=r"epoch 7, view 1: the pixels use 1 of 4 clusters; .* lower lr"):
        check_collapse([few], 4)
