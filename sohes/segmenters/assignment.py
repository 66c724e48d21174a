"""Linear sum assignment by SciPy, on the columns that matter and many problems in threads (it releases the GIL)."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from sohes.records import usable_cores


def assign(costs: NDArray[np.float32], counts: Sequence[int]) -> NDArray[np.int64]:
    """The cheapest assignment of rows to columns, each column taken at most once, in every problem.

    Args:
        costs: (L, B, M, N) float32, finite.
        counts: (B,) how many of the M rows of a problem count.

    Returns:
        (L, B, M): the column of each row; -1 for what does not count, or what is left when rows outnumber columns.
    """
    columns = np.full(costs.shape[:3], -1, np.int64)

    def solve(place: tuple[int, ...]) -> None:
        cost, chosen = costs[place][: counts[place[1]]], columns[place]
        if cost.shape[0] <= cost.shape[1]:
            chosen[: len(cost)] = _columns(cost)
        else:
            chosen[_columns(cost.T)] = np.arange(cost.shape[1])

    problems = list(np.ndindex(costs.shape[:2]))
    with ThreadPoolExecutor(min(len(problems), usable_cores())) as pool:
        list(pool.map(solve, problems))
    return columns


def _columns(cost: NDArray[np.float32]) -> NDArray[np.int64]:
    """The column of every row of `cost` (R, C), R at most C.

    The other rows can take R - 1 columns at most, so a row never needs more than its R cheapest. Queries much alike,
    as early in training, make searches long, and then most columns are among no row's cheapest: a fifth of the time.
    """
    rows = len(cost)
    if rows == 0:
        return np.empty(0, np.int64)
    limits = np.partition(cost, rows - 1, axis=1)[:, rows - 1 : rows]
    useful = np.flatnonzero((cost <= limits).any(axis=0))
    return useful[linear_sum_assignment(cost[:, useful])[1]]
