"""What is left out is counted once, by kind, with three examples."""

from __future__ import annotations

import pytest

from sohes.data.problems import Problems
from sohes.errors import DataError


def test_three_examples_are_named() -> None:
    problems = Problems()
    for number in range(5):
        problems.add("odd one", str(number))
    problems.add("even one", "x")
    problems.add("even one", "x")  # asked for again
    assert problems.lines() == ["skipped 5 x odd one, e.g. 0; 1; 2", "skipped 1 x even one, e.g. x"]
    assert bool(problems)
    assert not Problems()


def test_strict_raises_the_first() -> None:
    with pytest.raises(DataError, match="a broken entry"):
        Problems(strict=True).add("kind", "a broken entry")
