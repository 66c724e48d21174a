"""Two processes on one machine train phases 2 and 3 as one does with the same batch, under torchrun as a user would."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor

from sohes.engine.checkpoints import checkpoints
from sohes.segmenters.entity import load_model
from tests.phases import run
from tests.processes import run_two

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "instruct": ("instruct", {}),
    "correct": ("correct", {}),
    "accumulated": ("instruct", {"batch_size": 4, "accumulate": 2}),
}
SCRIPT = """
import sys
from pathlib import Path
from tests.correct.test_distributed import CASES
from tests.phases import run

for name, (phase, changes) in CASES.items():
    run(phase, Path(sys.argv[1]), Path(sys.argv[2]) / name, **changes)
"""


@pytest.fixture(scope="module")
def folders(start: Path, undisturbed: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path]]:
    """Of each case: what one process left, and what two left."""
    folder = tmp_path_factory.mktemp("processes")
    run_two(SCRIPT, folder, start, folder / "two")
    one = {"correct": undisturbed}
    for name in CASES.keys() - one.keys():
        phase, changes = CASES[name]
        one[name] = run(phase, start, folder / name, **changes)
    return {name: (one[name], folder / "two" / name) for name in CASES}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["instruct", "correct"])
@torch.no_grad()
def test_what_is_not_compared_has_no_effect(folders: dict[str, tuple[Path, Path]], name: str) -> None:
    model = load_model(folders[name][0] / "segmenter")[0].eval()
    pixels = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    before = model(pixels)
    moved = [value for key, value in model.named_parameters() if WITHOUT_EFFECT.search(key)]
    assert moved or model.title == "EoMT"  # of which all is compared
    for value in moved:
        value += torch.linspace(-0.05, 0.05, value.numel())
    after = model(pixels)
    for one, other in zip(
        (*before.entity_logits, before.mask_logits(), before.ancestor_logits),
        (*after.entity_logits, after.mask_logits(), after.ancestor_logits),
        strict=True,
    ):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", list(CASES))
def test_two_processes_train_as_one(folders: dict[str, tuple[Path, Path]], name: str) -> None:
    histories = [pd.read_csv(folder / "history.csv") for folder in folders[name]]
    one, two = (history.drop(columns=["data_seconds", "step_seconds"]) for history in histories)
    assert one.columns.tolist() == two.columns.tolist()
    pd.testing.assert_frame_equal(one, two, check_exact=False, rtol=1e-4)
    last, before = (weights(path) for path in checkpoints(folders[name][0]))  # two steps apart
    other = weights(checkpoints(folders[name][1])[0])
    assert float((other - last).norm()) < 0.01 * float((last - before).norm())


# What these add is the same for all keys of an attention or taken out by the norm that follows: their gradient is zero
# in theory, and Adam makes steps of its rounding.
WITHOUT_EFFECT = re.compile(r"(input_projections\.\d\.0|encoder\.(norms\.\d|scales\.(0\.4|[1-3]\.1))|k_proj)\.bias$")


def weights(checkpoint: Path) -> Tensor:
    """The weights of a checkpoint that have an effect, student's and teacher's in phase 3."""
    state = torch.load(checkpoint, weights_only=True)["model"]
    keys = [key for key in sorted(state) if key.startswith(("segm", "student", "teacher"))]
    return torch.cat([state[key].flatten() for key in keys if not WITHOUT_EFFECT.search(key)])
