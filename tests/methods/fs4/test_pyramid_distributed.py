"""Two processes make the same embeddings and losses as one does, under torchrun as a user would."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from sohes.methods.fs4 import regions
from sohes.methods.fs4.pyramid_loss import RegionView
from sohes.methods.fs4.regions import RegionStore
from tests.methods.fs4.test_pyramid import batch, heads
from tests.methods.fs4.test_regions import Squares, embedder
from tests.processes import run_two

SCRIPT = """
import sys
from pathlib import Path
import torch
from mmengine.dist import all_reduce, get_rank
from sohes.engine.runner import join_processes
from tests.methods.fs4.test_pyramid_distributed import filled, gradient

join_processes()
out = Path(sys.argv[1])
filled(out)
found = gradient(slice(get_rank(), get_rank() + 1) if get_rank() == 0 else slice(1, 3))
all_reduce(found, op="mean")
if get_rank() == 0:
    torch.save(found, out / "gradient.pt")
"""


def filled(folder: Path) -> RegionStore:
    """Seven images, three of a file."""
    regions._PER_FILE = 3
    store = RegionStore(folder / "regions", 7, "these")
    store.fill(embedder(), Squares(7), batch=2)
    return store


def gradient(images: slice) -> Tensor:
    """Loss, and its gradient in the heads, of some images of a batch; the others are another process's."""
    views, labels, confidence = batch()
    module = heads()
    part = [RegionView(*(tensor[images] for tensor in view if tensor is not None)) for view in views]
    found = module(part, labels[images], confidence[images])
    total = found.pyramid + found.link
    total.backward()
    grads = [parameter.grad.flatten() for parameter in module.parameters() if parameter.grad is not None]
    return torch.cat([total.detach()[None], *grads])


@pytest.mark.slow
def test_two_processes_are_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_two(SCRIPT, tmp_path, tmp_path / "two")
    monkeypatch.setattr(regions, "_PER_FILE", 3)
    one, two = filled(tmp_path / "one"), RegionStore(tmp_path / "two" / "regions", 7, "these")
    for mine, theirs in zip(one.level(slice(0, 21)), two.level(slice(0, 21)), strict=True):
        assert np.array_equal(mine, theirs)
    torch.testing.assert_close(torch.load(tmp_path / "two" / "gradient.pt"), gradient(slice(0, 3)))
