"""What no training can be made of is refused."""

from __future__ import annotations

from typing import Any

import pytest

from sohes.engine.settings import OptimSettings
from sohes.errors import ConfigError


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"iterations": 5, "warmup": 5}, "warmup=5 leaves none of iterations=5"),
        ({"batch_size": 6, "accumulate": 4}, "batch_size=6 is not a multiple of accumulate=4"),
    ],
)
def test_what_does_not_fit_together_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        OptimSettings(**changes)
