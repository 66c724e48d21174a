"""What the phase starts from, and what it leaves; each made once."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.phases import TINY, prepare, run


@pytest.fixture(scope="session", params=TINY)
def start(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the phase starts from, for each kind of segmenter."""
    return prepare(tmp_path_factory.mktemp("start"), request.param)


@pytest.fixture(scope="session")
def undisturbed(start: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The phase's folder after a training without interruption."""
    return run("instruct", start, tmp_path_factory.mktemp("undisturbed") / "instruct")
