"""Cluster probe: a slow twin of spherical k-means, data whose clusters are known, and scores worked out apart."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.optimize import linear_sum_assignment
from sklearn.cluster import kmeans_plusplus
from threadpoolctl import threadpool_limits
from torch.nn.functional import interpolate

from sohes import cli
from sohes.backbones.pixel_clusters import unit_length
from sohes.backbones.timm_folder import save_backbone_folder
from sohes.backbones.weights import resolve_weights
from sohes.data.square import centre_square_labels
from sohes.errors import ConfigError, DataError
from sohes.evaluation.cluster_probe import cluster_probe_metrics
from sohes.evaluation.clustering import ClusterScorer
from sohes.evaluation.semantic import semantic_scores
from sohes.probes import features
from sohes.probes.cluster import cluster_probe, drawn_patches, spherical_kmeans
from sohes.probes.features import Features
from sohes.probes.scoring import Task
from sohes.probes.settings import ProbeConfig
from sohes.records import read_record

from .colours import PATCH_PX, make_task, write_data

SIDE = 320 // PATCH_PX


def task_of(folder: Path, **settings: int) -> Task:
    return replace(make_task(folder, **settings), size_px=320, view="square")


def on_the_sphere(rng: np.random.Generator, means: np.ndarray, each: int, noise: float) -> np.ndarray:
    points = np.repeat(means, each, axis=0) + noise * rng.normal(size=(each * len(means), means.shape[1]))
    return unit_length(rng.permutation(points))


def test_separated_clusters_are_recovered() -> None:
    rng = np.random.default_rng(0)
    means = np.linalg.qr(rng.normal(size=(6, 6)))[0][:4]
    found = spherical_kmeans(on_the_sphere(rng, means, 500, 0.05), 4, seed=3)
    assert found.dtype == np.float32
    assert np.allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)
    cosines = means @ found.T
    rows, columns = linear_sum_assignment(-cosines)
    assert (cosines[rows, columns] > 0.999).all()


def test_a_twin_in_loops(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sohes.probes.cluster._ROWS", 100)
    rng = np.random.default_rng(1)
    points = unit_length(rng.normal(size=(730, 5)))
    centres = kmeans_plusplus(points, 7, random_state=2)[0].astype(float)
    for _ in range(50):
        nearest = [max(range(7), key=lambda k: float(point @ centres[k])) for point in points.astype(float)]
        for k in range(7):
            total = sum(point for point, own in zip(points.astype(float), nearest, strict=True) if own == k)
            centres[k] = total / np.linalg.norm(total)
    assert np.allclose(spherical_kmeans(points, 7, seed=2), centres, atol=1e-5)


def test_the_same_whatever_the_number_of_threads() -> None:
    points = unit_length(np.random.default_rng(0).normal(size=(3000, 48)))
    found = []
    for threads in (1, 2):
        with threadpool_limits(threads):
            found.append(spherical_kmeans(points, 9, seed=4))
    assert np.array_equal(*found)
    assert not np.array_equal(found[0], spherical_kmeans(points, 9, seed=5))


@pytest.mark.parametrize("distinct", [1, 3])
def test_fewer_distinct_patches_than_clusters(distinct: int) -> None:
    points = np.tile(np.eye(6, dtype=np.float32)[:distinct], (100, 1))
    with pytest.raises(DataError, match="4 clusters need 4 distinct patches, and there are fewer"):
        spherical_kmeans(points, 4, seed=0)


def test_patches_are_drawn_from_all_images(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=(5, 4, 4, 3)).astype(np.float32)
    files = [tmp_path / f"{place}.npy" for place in range(5)]
    for file, one in zip(files, values, strict=True):
        np.save(file, one)
    maps = Features(files=tuple(files), size_px=16, patch_px=4, dim=3)
    unit = values.reshape(-1, 3) / np.linalg.norm(values.reshape(-1, 3), axis=1, keepdims=True)
    assert np.allclose(drawn_patches(maps, 80, seed=0), unit, atol=1e-6)
    some = drawn_patches(maps, 30, seed=0)
    rows = [int(np.flatnonzero(np.isclose(unit, one, atol=1e-6).all(axis=1))[0]) for one in some]
    assert len(set(rows)) == 30
    assert rows == sorted(rows)
    assert {row // 16 for row in rows} == set(range(5))
    assert np.array_equal(some, drawn_patches(maps, 30, seed=0))
    assert not np.array_equal(some, drawn_patches(maps, 30, seed=1))


def test_colours_are_found(tmp_path: Path) -> None:
    task = task_of(write_data(tmp_path / "data"), tokens=5000)
    best = max((cluster_probe(task, seed)[0] for seed in range(3)), key=lambda one: np.trace(one.confusions.sum(0)))
    assert (best.method, best.protocol) == ("cluster probe", "probe_cluster_crop320_v1")
    assert best.confusions.shape == (4, 4, 4)
    assert best.confusions.sum() == 4 * 320 * 290  # ten pixels for one; the border of three rows does not count
    assert semantic_scores(best.confusions).accuracy > 0.98  # all but borders between patches
    truth = np.kron(task.data.val[2].label_map(), np.ones((10, 10), int))
    assert (best.label_map(2)[30:] == truth[30:]).mean() > 0.98
    scorer = ClusterScorer(clusters=4, classes=4)  # as a method scores label maps of its own
    for place, item in enumerate(task.data.val):
        scorer.add(best.label_map(place), centre_square_labels(item.label_map(), 320))
    metrics = cluster_probe_metrics(scorer.result().hungarian, task.data.classes)
    assert metrics["miou_dataset"] == (pytest.approx(100 * semantic_scores(best.confusions).miou), best.protocol)
    assert best.notes == (
        "4 clusters of 5000 patches of 4 train images, without augmentation; labels of val match them to classes",
    )


def test_scores_worked_out_apart(tmp_path: Path) -> None:
    """Photographs that are no squares, one cluster too few for its colours: against PyTorch and SciPy written out."""
    write_data(tmp_path, classes=4)
    rng = np.random.default_rng(5)
    for split in ("train", "val"):
        for place in range(4):
            for kind in ("images", "masks"):
                path = tmp_path / kind / split / f"{place}.png"
                pixels = np.asarray(Image.open(path))
                pixels = np.concatenate([pixels, np.roll(pixels, place + 3, axis=0)[:, : 7 + place]], axis=1)
                if kind == "images":
                    pixels = np.clip(pixels + rng.integers(-90, 90, pixels.shape), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(path)
    task = task_of(tmp_path)
    found = cluster_probe(task, 1)[0]
    train = np.stack([task.train[place] for place in range(4)]).reshape(-1, 6)
    centroids = spherical_kmeans(train / np.linalg.norm(train, axis=1, keepdims=True), 4, seed=1)
    counts = np.zeros((4, 4), np.int64)
    for place, item in enumerate(task.data.val):
        assert item.size_hw[0] < item.size_hw[1]
        maps = np.asarray(task.val[place])
        maps = maps / np.linalg.norm(maps, axis=-1, keepdims=True)
        scores = torch.from_numpy(maps @ centroids.T).permute(2, 0, 1)[None]
        clusters = interpolate(scores, (320, 320), mode="bilinear", align_corners=False)[0].argmax(0).numpy()
        size = (int(320 * item.size_hw[1] / item.size_hw[0]), 320)
        labels = np.asarray(Image.fromarray(item.label_map()).resize(size, Image.Resampling.NEAREST))
        labels = labels[:, round((size[0] - 320) / 2) :][:, :320]
        np.add.at(counts, (labels[labels != 255], clusters[labels != 255]), 1)
    rows, columns = linear_sum_assignment(-counts)
    matched = counts[:, columns]
    assert rows.tolist() == [0, 1, 2, 3]
    difference = np.abs(found.confusions.sum(axis=0) - matched).sum()
    assert difference <= 1e-4 * matched.sum()  # ties of rounding


def test_numbers_that_cannot_be_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "_maps", None)  # refused before features are extracted
    task = task_of(write_data(tmp_path), tokens=3)
    with monkeypatch.context() as patch:
        patch.setattr("sohes.probes.patches.free_bytes", lambda device: 8 * 5000 * 6 - 1)
        with pytest.raises(ConfigError, match=r"5000 patches to cluster need 0\.0 GB .* lower them with tokens=N"):
            cluster_probe(replace(task, config=replace(task.config, tokens=5000)), 0)
    with pytest.raises(ConfigError, match=f"4 clusters.* but 3 of the {4 * SIDE**2} train patches .* or raise tokens"):
        cluster_probe(task, 0)


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, provenance = resolve_weights("random:test_vit")
    save_backbone_folder(tmp_path / "backbone", model, provenance)
    data = write_data(tmp_path / "data")
    (data / "classes.txt").write_text("person\nanimal\nsky\nwater\n")
    out = tmp_path / "out"
    command = ["probe", str(tmp_path / "backbone"), "--data", str(data), "--probe", "cluster", "--out", str(out)]
    assert cli.main([*command, "--set", "tokens=2000", "pictures=2"]) == 0
    assert "probe_cluster_crop320_alone_v1" in capsys.readouterr().out
    record = read_record(out / "record.json")
    rows = {row.metric: row for row in record.measurements}
    names = ("miou_dataset", "acc_pixel", "miou_things", "miou_things_alone", "miou_stuff", "miou_stuff_alone")
    assert tuple(rows) == names
    assert {row.n_seeds for row in rows.values()} == {5}
    assert rows["miou_dataset"].value == pytest.approx((rows["miou_things"].value + rows["miou_stuff"].value) / 2)
    assert {asdict(row)["method"] for row in rows.values()} == {"cluster probe"}
    assert not any("multiple of the patch" in note for note in record.notes)
    assert len(list(out.glob("scores-*.npz"))) == 5
    assert record.artefacts == ["classes.csv", "classes.png", "label_maps.png", "features.png"]
    assert ProbeConfig(probe="cluster").seeds is None
