"""Two processes: keys of both, and the training of one with the same batch where nothing is normalised over it."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from sohes.methods.cast.moco import contrastive_term, feature_std
from tests.methods.cast.tiny import run
from tests.processes import run_two

SCRIPT = """
import sys
from pathlib import Path
import torch
from mmengine.dist import get_rank
from sohes.methods.cast.moco import feature_std
from tests.methods.cast.test_distributed import term, pairs, run_without_norms

run_without_norms(Path(sys.argv[1]), Path(sys.argv[2]))
queries, keys = (part.chunk(2)[get_rank()] for part in pairs())
found = [*term(queries, keys), feature_std(queries)]
torch.save(torch.stack(found), Path(sys.argv[2]) / f"term-{get_rank()}.pt")
"""


def pairs() -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(0)
    keys = torch.randn(6, 8, generator=rng)
    return keys + torch.randn(6, 8, generator=rng), keys


def term(queries: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
    return contrastive_term(queries, keys, 0.2)


def scale(norm: nn.BatchNorm1d, rows: Tensor) -> Tensor:
    return rows * norm.weight + norm.bias if norm.affine else rows


def run_without_norms(start: Path, out: Path) -> Path:
    """A training in which batch norms only scale and shift."""
    real = nn.BatchNorm1d.forward
    nn.BatchNorm1d.forward = scale  # type: ignore[method-assign]
    try:
        return run(start, out, momentum=0.9)
    finally:
        nn.BatchNorm1d.forward = real  # type: ignore[method-assign]


@pytest.fixture(scope="module")
def folders(start: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """What one process left, and what two left."""
    folder = tmp_path_factory.mktemp("processes")
    run_two(SCRIPT, folder, start, folder / "two")
    return run_without_norms(start, folder / "one"), folder / "two"


@pytest.mark.slow
def test_keys_are_those_of_all_processes(folders: tuple[Path, Path]) -> None:
    found = torch.stack([torch.load(folders[1] / f"term-{rank}.pt") for rank in range(2)]).mean(0)
    queries, keys = pairs()
    torch.testing.assert_close(found, torch.stack([*term(queries, keys), feature_std(queries)]))


@pytest.mark.slow
def test_two_processes_train_as_one(folders: tuple[Path, Path]) -> None:
    histories = [pd.read_csv(folder / "history.csv") for folder in folders]
    one, two = (history.drop(columns=["data_seconds", "step_seconds"]) for history in histories)
    assert one.columns.tolist() == two.columns.tolist()
    pd.testing.assert_frame_equal(one, two, check_exact=False, rtol=1e-3)
