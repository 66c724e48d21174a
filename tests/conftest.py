"""What several packages' tests share."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def interruptible() -> Iterator[None]:
    """A shell starts background jobs with Ctrl-C ignored, and every process that a test starts would inherit that."""
    before = signal.getsignal(signal.SIGINT)
    if before is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="session")
def assets() -> Path:
    """Folder with photographs and weights that are not in the repository; the test is skipped without it."""
    folder = os.environ.get("SOHES_ASSETS")
    if not folder or not Path(folder).is_dir():
        pytest.skip("needs real photographs and weights: set SOHES_ASSETS to the folder that holds data/ and weights/")
    return Path(folder)


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    """Rounding depends on their number: a test that left another one would fail later ones that compare bits."""
    before = torch.get_num_threads()
    yield
    assert torch.get_num_threads() == before
