"""Verdicts: what the numbers of runs that differ in their seed alone show. Of one seed there is none."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

from results.words import one_decimal

_RESAMPLES = 10_000
ONE_SEED = "one seed, no verdict"


@dataclass(frozen=True)
class Difference:
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
    def words(self) -> str:
        """The mean and the interval.

        >>> paired_difference([2.0, 3.0]).words
        '+2.5, 95 % interval +2.0 to +3.0 over 2 seeds'
        """
        if self.seeds == 1:
            return f"{one_decimal(self.mean):+}, {ONE_SEED}"
        ends = f"{one_decimal(self.low):+} to {one_decimal(self.high):+}"
        return f"{one_decimal(self.mean):+}, 95 % interval {ends} over {self.seeds} seeds"


def paired_difference(differences: ArrayLike) -> Difference:
    """Mean of paired differences with its 95 % percentile interval over 10,000 resamples of the seeds."""
    values = np.asarray(differences, float)
    if len(values) == 1:
        return Difference(float(values[0]))
    means = values[_resamples(len(values))].mean(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    return Difference(float(values.mean()), float(low), float(high), len(values))


@cache
def _resamples(count: int) -> NDArray[np.intp]:
    return np.random.default_rng(0).integers(count, size=(_RESAMPLES, count))
