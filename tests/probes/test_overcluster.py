"""Over-clustering: scikit-learn's standardisation and PCA, torch's upsampling, and data whose clusters are known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.preprocessing import StandardScaler
from torch.nn.functional import interpolate

from sohes.errors import ConfigError
from sohes.evaluation.semantic import semantic_scores
from sohes.probes.features import Features
from sohes.probes.overcluster import cluster_maps, nearest, overcluster_probe, principal_components

from .colours import make_task, write_data


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOHES_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_data(tmp_path / "data")


def features(folder: Path, values: np.ndarray) -> Features:
    """Feature maps (N, h, w, D) in files."""
    files = []
    for place, one in enumerate(values):
        files.append(folder / f"{place}.npy")
        np.save(files[-1], one.astype(np.float32))
    return Features(files=tuple(files), size_px=4 * values.shape[1], patch_px=4, dim=values.shape[-1])


def test_principal_components_are_scikit_learns(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    values = (rng.normal(size=(5, 6, 6, 12)) @ rng.normal(size=(12, 12)) + 30 * rng.normal(size=12)).astype(np.float32)
    values[..., 3] = 7  # a dimension that says nothing
    found = principal_components(features(tmp_path, values), components=4)
    flat = values.reshape(-1, 12).astype(np.float64)
    expected = PCA(4).fit_transform(StandardScaler().fit_transform(flat)).reshape(5, 6, 6, 4)
    assert found.dtype == np.float32
    assert np.allclose(np.abs(found), np.abs(expected), atol=2e-4)
    assert principal_components(features(tmp_path, values), components=50).shape == (5, 6, 6, 12)


@pytest.mark.parametrize(("small", "large"), [((3, 5), (7, 11)), ((8, 8), (100, 100)), ((28, 28), (100, 375))])
def test_nearest_is_torchs(small: tuple[int, int], large: tuple[int, int]) -> None:
    values = np.random.default_rng(0).integers(0, 500, small).astype(np.int32)
    expected = interpolate(torch.from_numpy(values)[None, None].double(), large, mode="nearest")[0, 0]
    assert np.array_equal(nearest(values, large), expected.numpy())


def test_best_restart_and_the_same_bytes_again() -> None:
    points = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype(np.float32)
    found = cluster_maps(points, 9, seed=4, restarts=3)
    assert np.array_equal(found, cluster_maps(points, 9, seed=4, restarts=3))
    assert not np.array_equal(found, cluster_maps(points, 9, seed=5, restarts=3))
    flat = points.reshape(-1, 3)
    fits = [KMeans(9, n_init=1, max_iter=100, random_state=4 + 1_000_000 * restart).fit(flat) for restart in range(3)]
    best = min(fits, key=lambda fit: fit.inertia_)
    assert len({fit.inertia_ for fit in fits}) > 1
    assert np.array_equal(found.ravel(), best.labels_)


def test_colours_are_found(data: Path) -> None:
    task = make_task(data, clusters=(8, 12), restarts=4)
    scored = overcluster_probe(task, 0)
    assert [one.protocol for one in scored] == [
        "probe_cluster8_32_full_v1",
        "probe_cluster12_32_full_v1",
        "probe_cluster4_matched_32_full_v1",
    ]
    for one in scored:
        assert semantic_scores(one.confusions).miou == 1
        assert one.confusions.shape == (4, 4, 4)
        assert one.confusions.sum() == 4 * 32 * 29  # the border does not count
        truth = task.data.val[2].label_map()
        predicted = one.label_map(2)
        assert np.array_equal(predicted[3:], truth[3:])
    assert "labels of val name them" in scored[0].notes[0]
    at_100 = overcluster_probe(make_task(data, clusters=(8,), score_px=16), 0)[0]
    assert at_100.protocol == "probe_cluster8_32_16_v1"
    assert at_100.confusions.sum() == 4 * 16 * 14


def test_numbers_of_clusters_that_cannot_be(data: Path) -> None:
    with pytest.raises(ConfigError, match="300 clusters, but the val images have 256 patches; take fewer clusters"):
        overcluster_probe(make_task(data, clusters=(8, 300)), 0)
    with pytest.raises(ConfigError, match="3 clusters cannot name 4 classes"):
        overcluster_probe(make_task(data, clusters=(3,)), 0)


def reference(points: np.ndarray, masks: list[np.ndarray], k: int, seed: int) -> np.ndarray:
    """Per-image confusions by the formula of the outside reference: k-means and majority at the masks' own size."""
    side = points.shape[1]
    ids = KMeans(k, n_init=1, max_iter=100, random_state=seed).fit_predict(points.reshape(-1, points.shape[-1]))
    at = [
        interpolate(torch.from_numpy(one.reshape(1, 1, side, side)).double(), mask.shape, mode="nearest")[0, 0].long()
        for one, mask in zip(ids.reshape(-1, side * side), masks, strict=True)
    ]
    counts = torch.zeros(k, 21, dtype=torch.long)
    for clusters, mask in zip(at, masks, strict=True):
        truth = torch.from_numpy(mask).long()
        ok = truth != 255
        counts += torch.bincount(clusters[ok] * 21 + truth[ok], minlength=k * 21).view(k, 21)
    names = counts.argmax(1)
    total = torch.zeros(21, 21, dtype=torch.long)
    for clusters, mask in zip(at, masks, strict=True):
        truth = torch.from_numpy(mask).long()
        ok = truth != 255
        total += torch.bincount(truth[ok] * 21 + names[clusters][ok], minlength=441).view(21, 21)
    return total.numpy()


@pytest.mark.assets
@pytest.mark.slow
def test_photographs_by_the_reference_formula(assets: Path, tmp_path: Path) -> None:
    from sohes.backbones.timm_vit import load_backbone
    from sohes.probes.data import read_probe_data
    from sohes.probes.scoring import Task
    from sohes.probes.settings import ProbeConfig

    task = Task(
        config=ProbeConfig(clusters=(60,)),
        data=read_probe_data(assets / "data/voc2012_animals", max_val=12, max_train=1),
        backbone=load_backbone(assets / "weights/dinov2_vits14.safetensors", feature="token"),
        size_px=112,
        name="",
        out=tmp_path,
    )
    ours = overcluster_probe(task, 1)[0]
    tokens = task.val.stack().astype(np.float64).reshape(-1, task.val.dim)
    standard = torch.from_numpy((tokens - tokens.mean(0)) / tokens.std(0, ddof=1))
    points = (standard @ torch.linalg.eigh(torch.cov(standard.T))[1][:, -50:]).float().numpy()
    total = reference(points.reshape(12, 8, 8, 50), [item.label_map() for item in task.data.val], 60, 1)
    theirs = semantic_scores(total[None])
    assert abs(semantic_scores(ours.confusions).miou - theirs.miou) < 0.01
    assert ours.protocol == "probe_cluster60_112_full_v1"
