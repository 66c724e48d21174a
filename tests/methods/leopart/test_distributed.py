"""Two processes train as one does with the same batch, under torchrun as a user would; queue and depth included."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
import torch
from torch import Tensor

from sohes.engine.checkpoints import checkpoints
from sohes.methods.leopart.assignment import sinkhorn
from tests.methods.leopart.tiny import run
from tests.processes import run_two

CHANGES = {"batch_size": 4, "drop_path": 0.3, "lr": 1e-3, "queue": 35}
SCRIPT = """
import sys
from pathlib import Path
import torch
from mmengine.dist import all_gather, get_rank
from sohes.methods.leopart.assignment import sinkhorn
from tests.methods.leopart.test_distributed import CHANGES, logits
from tests.methods.leopart.tiny import run

out = run(Path(sys.argv[1]), Path(sys.argv[2]), **CHANGES)
rows = all_gather(sinkhorn(logits().chunk(2)[get_rank()], epsilon=0.05, iterations=3))
if get_rank() == 0:
    torch.save(torch.cat(rows), out / "sinkhorn.pt")
"""


def logits() -> Tensor:
    return torch.rand(64, 7, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.fixture(scope="module")
def folders(start: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """What one process left, and what two left."""
    folder = tmp_path_factory.mktemp("processes")
    run_two(SCRIPT, folder, start, folder / "two")
    return run(start, folder / "one", **CHANGES), folder / "two"


@pytest.mark.slow
def test_sinkhorn_is_over_all_processes(folders: tuple[Path, Path]) -> None:
    found = torch.load(folders[1] / "sinkhorn.pt")
    torch.testing.assert_close(found, sinkhorn(logits(), epsilon=0.05, iterations=3), atol=1e-6, rtol=1e-5)


@pytest.mark.slow
def test_two_processes_train_as_one(folders: tuple[Path, Path]) -> None:
    histories = [pd.read_csv(folder / "history.csv") for folder in folders]
    one, two = (history.drop(columns=["data_seconds", "step_seconds"]) for history in histories)
    assert one.columns.tolist() == two.columns.tolist()
    pd.testing.assert_frame_equal(one, two, check_exact=False, rtol=1e-4)
    last, before = (torch.load(path, weights_only=True)["model"] for path in checkpoints(folders[0]))
    other = torch.load(checkpoints(folders[1])[0], weights_only=True)["model"]
    assert torch.equal(other["queue.pushed"], last["queue.pushed"])
    torch.testing.assert_close(other["queue.rows"], last["queue.rows"], atol=1e-3, rtol=0)
    for network in ("student.", "teacher."):
        moved = weights(last, network) - weights(before, network)
        assert float((weights(other, network) - weights(last, network)).norm()) < 0.01 * float(moved.norm())


def weights(state: dict[str, Tensor], network: str) -> Tensor:
    """The weights of a network that have an effect: a key's bias adds the same to all scores of a query."""
    found = []
    for key in sorted(key for key in state if key.startswith(network)):
        value = state[key]
        if key.endswith("qkv.bias"):
            query, _, values = value.chunk(3)
            value = torch.cat([query, values])
        found.append(value.flatten())
    return torch.cat(found)
