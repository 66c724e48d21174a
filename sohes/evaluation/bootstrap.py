"""How far a recall would move with other images of the same kind. Protocol "mask_ar1000_bootstrap_v1" (README §2)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 1000
SEED = 0
PERCENTILES = (2.5, 97.5)


def recall_interval(matched: NDArray[np.floating], objects: NDArray[np.integer]) -> list[tuple[float, float]]:
    """95 % percentile bootstrap interval of pooled recall, images drawn with replacement (Efron and Tibshirani, 1993).

    Args:
        matched: (I, A) objects found in each image, for each of A columns.
        objects: (I, A) objects to be found.

    Returns:
        Low and high end for each column; NaN for fewer than two images, or where no resample holds an object.
    """
    count = len(objects)
    if count < 2:
        return [(np.nan, np.nan)] * objects.shape[1]
    rng = np.random.default_rng(SEED)
    recall = np.full((RESAMPLES, objects.shape[1]), np.nan)
    for row in recall:
        times = np.bincount(rng.integers(count, size=count), minlength=count).astype(np.float64)
        drawn = times @ objects
        np.divide(times @ matched, drawn, out=row, where=drawn > 0)
    defined = [column[~np.isnan(column)] for column in recall.T]
    return [_ends(column) if column.size else (np.nan, np.nan) for column in defined]


def _ends(values: NDArray[np.float64]) -> tuple[float, float]:
    low, high = np.percentile(values, PERCENTILES)
    return float(low), float(high)
