from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Features of a test are kept in its own folder."""
    monkeypatch.setenv("SOHES_CACHE", str(tmp_path / "cache"))
