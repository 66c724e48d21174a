"""The values of PiCIE's own code; `golden/README.md` says how they were made and how exact they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from sohes.evaluation.clustering import evaluate_clusters
from sohes.methods.fs4.geometry import warp
from sohes.methods.fs4.kmeans import MiniBatchKMeans, assign
from sohes.methods.fs4.losses import view_losses


def golden(name: str) -> dict[str, Any]:
    with np.load(Path(__file__).parent / "golden" / f"{name}.npz") as file:
        return {key: file[key] if file[key].dtype.kind == "U" else torch.from_numpy(file[key]) for key in file.files}


def crops(scale: Tensor, place: Tensor, side: int) -> Tensor:
    """PiCIE's rectangles in a map of this side: whole cells."""
    rows = []
    for share, (down, across) in zip(scale.tolist(), place.tolist(), strict=True):
        size = int(share * side)
        rows.append([round((side - size) * across), round((side - size) * down), size, size, 0])
    return torch.tensor(rows) / torch.tensor([side, side, side, side, 1])


@pytest.mark.parametrize(("name", "size"), [("image", 32), ("embedding", 8)])
def test_shared_crop(name: str, size: int) -> None:
    values = golden("shared_crop")
    maps = values[name]
    found = warp(maps, crops(values["scale"], values["place"], maps.shape[-1]), size)
    torch.testing.assert_close(found, values[f"{name}_crop"], atol=1e-6, rtol=0)


@pytest.mark.parametrize("case", ["plain", "weighted", "weighted_mse"])
def test_view_losses(case: str) -> None:
    values = golden("view_losses")
    both = {name: tuple(values[f"{name}{view}"] for view in (1, 2)) for name in ("features", "labels", "centroids")}
    found = view_losses(
        tuple(F.normalize(features, dim=1) for features in both["features"]),
        both["labels"],
        torch.stack(both["centroids"]),
        weights=None if case == "plain" else torch.stack([values["weights1"], values["weights2"]]),
        temperature=1.0,
        mse=case.endswith("mse"),
    )
    expected = dict(zip(values["order"].tolist(), values[case].tolist(), strict=True))
    assert float(found.total) == pytest.approx(expected["total"], abs=1e-6)
    assert float(found.within) == pytest.approx(expected["within"], abs=1e-6)
    assert float(found.across) == pytest.approx(expected["across"], abs=1e-6)
    if found.mse is not None:
        assert float(found.mse) == pytest.approx(expected["mse"], abs=1e-6)


def test_mini_batch_kmeans() -> None:
    values = golden("mini_batch_kmeans")
    batches = [F.normalize(batch, dim=1).permute(0, 2, 3, 1).flatten(0, 2) for batch in values["batches"]]
    first = int(values["init_batches"])
    start = values["initial_centroids"]
    counts = torch.bincount(assign(torch.cat(batches[:first]), start), minlength=len(start))
    found = MiniBatchKMeans(start, counts, spherical=False)
    for batch in batches[first:]:
        found.update(batch)
    torch.testing.assert_close(found.centroids, values["centroids"], atol=1e-5, rtol=0)


def test_hungarian() -> None:
    """PiCIE's evaluation is ours with the naming "hungarian"."""
    values = golden("hungarian")
    labels = values["labels"].numpy().astype(int)
    labels[labels < 0] = 255
    found = evaluate_clusters(zip(values["clusters"].numpy(), labels, strict=True), clusters=27, classes=27).hungarian
    assert 100 * found.accuracy == pytest.approx(float(values["accuracy"]), abs=1e-9)
    assert 100 * found.miou == pytest.approx(float(values["mean_iou"]), abs=1e-9)
    in_cluster_order = found.iou[found.classes]  # NaN where a cluster has no class
    np.testing.assert_allclose(100 * in_cluster_order, values["iou_in_cluster_order"].numpy(), atol=1e-9)
