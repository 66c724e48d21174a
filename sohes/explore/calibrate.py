"""Merging thresholds that suit a backbone, from how its features merge rather than by hand [ours] (README §7).

How alike neighbouring features are differs widely between ViTs: cosines that leave ten regions of one leave one of
another. What a list of thresholds is for is a range of granularities, and that a number of regions says for any ViT.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from sohes.explore.agglomerate import merge_patches
from sohes.masks import FloatArray

# cosines tried, dense towards 1, where the features of some ViTs crowd
_TRIED: list[float] = (1 - np.geomspace(1e-4, 2, 200)).tolist()


def calibrate_thresholds(features: Iterable[FloatArray], region_counts: Sequence[int]) -> tuple[float, ...]:
    """The cosines at which merging leaves about `region_counts` regions of an image, descending.

    Args:
        features: feature maps (h, w, D) of some images; their numbers of regions are averaged geometrically.
        region_counts: regions of a whole image, at least one.

    Returns:
        One threshold for each count, fewer where two counts ask for the same.

    Raises:
        ValueError: no feature map.
    """
    logs = [np.log([len(np.unique(level)) for level in merge_patches(one, _TRIED)]) for one in features]
    if not logs:
        raise ValueError("thresholds cannot be calibrated without any image")
    mean = np.mean(logs, axis=0)  # not increasing: merging at lower cosines leaves fewer regions
    nearest = {int(np.abs(mean - np.log(count)).argmin()) for count in region_counts}
    return tuple(round(_TRIED[index], 6) for index in sorted(nearest))
