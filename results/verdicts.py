"""Verdicts: what the numbers of runs that differ in their seed alone show. Of one seed there is none."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from results.schema import each
from results.words import one_decimal

BETTER, WORSE, OPEN, MISSING = "better", "worse", "open", "missing"
_RESAMPLES, _OUTSIDE = 1_000, 25  # resamples, and how many of them lie beyond either end of a 95 % interval
ONE_SEED = "one seed, no verdict"


@dataclass(frozen=True)
class Verdict:
    """What numbers show.

    Attributes:
        kind: BETTER, WORSE, OPEN (nothing is shown) or MISSING (nothing was measured).
        words: the sentence.
    """

    kind: str
    words: str


@dataclass(frozen=True)
class PairedDifference:
    """The mean of paired differences, one a seed, with its bootstrap interval; without one for a single seed."""

    mean: float
    low: float = float("nan")
    high: float = float("nan")
    seeds: int = 1

    @property
    def sign(self) -> int:
        """1 and -1 where the interval excludes 0, else 0."""
        return int(self.low > 0) - int(self.high < 0)

    @property
    def kind(self) -> str:
        """Of a verdict on it."""
        return {1: BETTER, 0: OPEN, -1: WORSE}[self.sign]

    @property
    def words(self) -> str:
        """The mean and the interval.

        >>> paired_difference([2.0, 3.0]).words
        '+2.5, 95 % interval +2.0 to +3.0 over 2 seeds'
        """
        if self.seeds == 1:
            return f"{one_decimal(self.mean):+}, {ONE_SEED}"
        ends = f"{one_decimal(self.low):+} to {one_decimal(self.high):+}"
        return f"{one_decimal(self.mean):+}, 95 % interval {ends} over {self.seeds} seeds"


def paired_difference(differences: Iterable[float]) -> PairedDifference:
    """Mean of paired differences with its 95 % percentile interval over 1,000 resamples of the seeds."""
    values = np.fromiter(differences, float)
    if len(values) == 1:
        return PairedDifference(float(values[0]))
    means = np.sort(values[_resamples(len(values))].mean(axis=1))
    return PairedDifference(float(values.mean()), float(means[_OUTSIDE]), float(means[-1 - _OUTSIDE]), len(values))


@cache
def _resamples(count: int) -> NDArray[np.intp]:
    return np.random.default_rng(0).integers(count, size=(_RESAMPLES, count))


@dataclass(frozen=True)
class Compared:
    """What is compared within each run: the value of each side by run, and one of the rows that they come from."""

    row: Any
    runs: dict[Any, dict[str, float]]

    def mean(self, side: str) -> float:
        """Of all runs that have that side; NaN where none has."""
        values = [run[side] for run in self.runs.values() if side in run]
        return sum(values) / len(values) if values else float("nan")

    def differences(self, side: str, other: str) -> list[float]:
        """`side` minus `other`, of each run that has both."""
        return [run[side] - run[other] for run in self.runs.values() if side in run and other in run]


def compared(rows: pd.DataFrame, same: Sequence[str], side: str, *, run: str = "run") -> list[Compared]:
    """Rows that agree in the columns `same`, by their columns `run` and `side`; in order of appearance."""
    found: dict[tuple[Any, ...], Compared] = {}
    keys = zip(*(rows[name].tolist() for name in same), strict=True)
    for key, row, which in zip(keys, each(rows), rows[run].tolist(), strict=True):
        own = found.setdefault(key, Compared(row, {}))
        own.runs.setdefault(which, {}).setdefault(getattr(row, side), row.value)
    return list(found.values())
