"""What MoCo-v3 starts from, and what it leaves; each made once."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.methods.cast.tiny import prepare, run


@pytest.fixture(scope="session")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Backbone and images."""
    return prepare(tmp_path_factory.mktemp("start"))


@pytest.fixture(scope="session")
def undisturbed(start: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The stage's folder after a training without interruption."""
    return run(start, tmp_path_factory.mktemp("undisturbed") / "cast")
