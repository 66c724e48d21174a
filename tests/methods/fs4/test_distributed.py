"""Two processes cluster, label and train as one does with the same batch, under torchrun as a user would."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from sohes.engine.checkpoints import checkpoints
from sohes.methods.fs4.kmeans import MiniBatchKMeans, fit_kmeans
from tests.methods.fs4.test_kmeans import gaussians
from tests.methods.fs4.tiny import run
from tests.processes import run_two

CHANGES = {"rounds": 1, "class_weight": "inverse_sqrt"}
SCRIPT = """
import sys
from pathlib import Path
import torch
from mmengine.dist import get_rank
from tests.methods.fs4.test_distributed import CHANGES, clustered
from tests.methods.fs4.tiny import run

out = run(Path(sys.argv[1]), Path(sys.argv[2]), **CHANGES)
found = clustered(get_rank(), 2)
if get_rank() == 0:
    torch.save({"centroids": found.centroids, "counts": found.counts}, out / "kmeans.pt")
"""


def clustered(rank: int, world: int) -> MiniBatchKMeans:
    """Of batches of 100 and 51 points, the process's part of each."""
    points = gaussians(600, spread=0.5)
    found = fit_kmeans(points[:300], 4, iterations=4, seed=0)
    for batch in points[300:].split((100, 100, 51, 49)):
        found.update(batch.tensor_split(world)[rank])
    return found


@pytest.fixture(scope="module")
def folders(start: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """What one process left, and what two left."""
    folder = tmp_path_factory.mktemp("processes")
    run_two(SCRIPT, folder, start, folder / "two")
    return run(start, folder / "one", **CHANGES), folder / "two"


@pytest.mark.slow
def test_kmeans_is_over_all_processes(folders: tuple[Path, Path]) -> None:
    found, expected = torch.load(folders[1] / "kmeans.pt"), clustered(0, 1)
    torch.testing.assert_close(found["centroids"], expected.centroids, atol=1e-6, rtol=0)
    assert torch.equal(found["counts"], expected.counts)


@pytest.mark.slow
def test_two_processes_train_as_one(folders: tuple[Path, Path]) -> None:
    """The lines of the epochs say that the labels are the same, but for pixels between two clusters."""
    one, two = (pd.read_csv(folder / "round-1" / "epochs.csv") for folder in folders)
    pd.testing.assert_frame_equal(one, two, check_exact=False, atol=2e-3)
    one, two = (pd.read_csv(folder / "round-1" / "history.csv") for folder in folders)
    columns = ["step", "loss", "within", "across", "lr"]
    pd.testing.assert_frame_equal(one[columns], two[columns], check_exact=False, rtol=2e-3)
    first, second = (torch.load(checkpoints(folder / "round-1")[0], weights_only=True) for folder in folders)
    labels = [state["hooks"]["PixelLabelHook"]["labels"] for state in (first, second)]
    np.testing.assert_allclose(labels[0]["centroids"], labels[1]["centroids"], atol=2e-3)
