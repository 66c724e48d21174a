"""What several packages' tests share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def assets() -> Path:
    """Folder with photographs and weights that are not in the repository; the test is skipped without it."""
    folder = os.environ.get("SOHES_ASSETS")
    if not folder or not Path(folder).is_dir():
        pytest.skip("needs real photographs and weights: set SOHES_ASSETS to the folder that holds data/ and weights/")
    return Path(folder)
