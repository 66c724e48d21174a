"""Which clusters of patches are foreground (README §9)."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from sohes.errors import ConfigError, DataError
from sohes.rle import BoolArray

_CUTS = (0.55, 0.75)  # shares of background clusters that are tried with labels [Leopart]
_SNAP = np.arange(0, 1, 0.05)  # scores that a threshold found so is rounded to [Leopart]


class ForegroundScores:
    """How much of each cluster lies in a noisy foreground: precision in an image, mean over the images that have it.

    Args:
        count: K, number of clusters.
    """

    def __init__(self, count: int) -> None:
        self._sum = np.zeros(count)
        self._images = np.zeros(count, np.int64)

    def add(self, clusters: NDArray[np.integer], foreground: BoolArray) -> None:
        """Take an image's cluster map (H, W) in [0, K) and its noisy foreground (H, W)."""
        flat, count = clusters.ravel(), len(self._sum)
        pixels = np.bincount(flat, minlength=count)
        inside = np.bincount(flat[foreground.ravel()], minlength=count)
        self._sum += inside / np.maximum(pixels, 1)
        self._images += pixels > 0

    def result(self) -> NDArray[np.float64]:
        """(K,) in [0, 1]; 0 for a cluster that no image has.

        Raises:
            DataError: nothing lies in the foreground.
        """
        if not self._sum.any():
            raise DataError("the noisy foreground is empty in every image; take attention of another backbone")
        return self._sum / np.maximum(self._images, 1)


def quantile_threshold(scores: NDArray[np.floating], background_share: float) -> float:
    """The lowest score of a foreground cluster when so large a share of the clusters is background."""
    place = min(int(background_share * len(scores)), len(scores) - 1)
    return float(np.sort(scores)[place])


def labels_threshold(
    scores: NDArray[np.floating], images: Iterable[tuple[NDArray[np.integer], BoolArray]]
) -> tuple[float, list[tuple[float, int, float]]]:
    """The threshold as it is published, for which labels are read.

    Args:
        scores: (K,) of the clusters.
        images: cluster map and annotated foreground (H, W) of each; in the public code 255 counts as foreground.

    Returns:
        The threshold; and score, number of background clusters and Jaccard index of each cut, the best one last.
    """
    count = len(scores)
    cuts = range(int(_CUTS[0] * count), int(_CUTS[1] * count))
    if not cuts:
        raise ConfigError(f"threshold=labels tries nothing with {count} foreground_clusters; take 20 or more")
    rank = np.argsort(np.argsort(scores))
    jaccard, seen = np.zeros(len(cuts)), 0
    for clusters, truth in images:
        ranks = rank[clusters]
        for index, cut in enumerate(cuts):
            found = ranks >= cut
            jaccard[index] += np.count_nonzero(found & truth) / max(np.count_nonzero(found | truth), 1)
        seen += 1
    if not seen:
        raise DataError("threshold=labels, but no image has annotations; set threshold=quantile")
    tried = sorted(zip(np.sort(scores)[cuts], cuts, jaccard / seen, strict=True), key=lambda cut: cut[2])
    threshold = min(_SNAP, key=lambda score: abs(score - tried[-1][0]))
    return float(threshold), [(float(score), cut, float(value)) for score, cut, value in tried]


def foreground_clusters(scores: NDArray[np.floating], threshold: float) -> BoolArray:
    """Which clusters (K,) are foreground.

    Raises:
        DataError: none of them.
    """
    chosen: BoolArray = scores >= threshold
    if not chosen.any():
        raise DataError(
            f"no cluster's score reaches the threshold {threshold:.3g}, the highest is {scores.max():.3g}; lower "
            "score_threshold, or set threshold=quantile"
        )
    return chosen
