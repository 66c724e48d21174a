"""Whether the clusters of pixels collapse: seen in an epoch's labels; a training that does is ended (README §4)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from mmengine.dist import all_reduce
from torch import Tensor

from sohes.errors import SohesError
from sohes.files import write_text
from sohes.methods.fs4.kmeans import CHUNK, assign

LARGEST_SHARE = 0.6  # of the pixels in one cluster, from which on, two epochs running, a training ends
Row = dict[str, float]


class CollapseMonitor:
    """Collects, over the images of an epoch and all processes, how the pixels of both views use their clusters.

    Args:
        clusters: K.
        temperature: of the softmax over clusters.
        device: of what is collected.
    """

    def __init__(self, clusters: int, temperature: float, device: torch.device) -> None:
        self._temperature = temperature
        self.counts = torch.zeros(2, clusters, dtype=torch.int64, device=device)
        self._entropy = torch.zeros(2, dtype=torch.float64, device=device)
        self._agreed = torch.zeros(2, dtype=torch.float64, device=device)

    def add(self, embeddings: Sequence[Tensor], labels: Sequence[Tensor], centroids: Tensor) -> None:
        """Take embeddings (n, C) and their labels (n,) of both views, pixel beside pixel, and centroids (2, K, C)."""
        for view, other in ((0, 1), (1, 0)):
            parts = (part.split(CHUNK) for part in (embeddings[view], embeddings[other], labels[view]))
            for points, others, chosen in zip(*parts, strict=True):
                self.counts[view] += torch.bincount(chosen, minlength=self.counts.shape[1])
                log_p = (points @ centroids[view].T / self._temperature).log_softmax(1)
                self._entropy[view] -= (log_p.exp() * log_p).sum(dtype=torch.float64)
                self._agreed[view] += (assign(others, centroids[view]) == chosen).sum()

    def row(self, epoch: int) -> Row:
        """What the epoch's line says.

        For each view: clusters that hold pixels, share of the largest one, and mean entropy of a pixel's posterior over
        log K. And `agreement`: how often one view's embedding is nearest to the other view's cluster, in that one's
        clusters; those of the two views cannot be compared themselves.
        """
        for total in (self.counts, self._entropy, self._agreed):
            all_reduce(total)
        pixels = self.counts.sum(1)
        used = (self.counts > 0).sum(1).tolist()
        largest = (self.counts.amax(1) / pixels).tolist()
        entropy = (self._entropy / pixels / math.log(self.counts.shape[1])).tolist()
        found: Row = {"epoch": epoch}
        for name, values in (("clusters", used), ("largest_share", largest), ("entropy", entropy)):
            found |= {f"{name}_{view}": value for view, value in enumerate(values, start=1)}
        return found | {"agreement": float((self._agreed / pixels).mean())}


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """Write the lines of all epochs as CSV."""
    lines = [",".join(rows[0]), *(",".join(f"{value:.6g}" for value in row.values()) for row in rows)]
    write_text(path, "\n".join(lines) + "\n")


def check_collapse(rows: Sequence[Row], clusters: int) -> None:
    """Look at the last epochs.

    Raises:
        SohesError: fewer than half of the clusters are used, or one holds most pixels for the second time running.
    """
    remedy = "start the stage from scratch with a lower lr, class_weight=inverse_sqrt, other start weights or clusters"
    for view in (1, 2):
        used, shares = rows[-1][f"clusters_{view}"], [row[f"largest_share_{view}"] for row in rows[-2:]]
        epoch = f"epoch {rows[-1]['epoch']:.0f}, view {view}"
        if used < clusters / 2:
            raise SohesError(f"{epoch}: the pixels use {used:.0f} of {clusters} clusters; {remedy}")
        if len(shares) == 2 and min(shares) > LARGEST_SHARE:
            raise SohesError(
                f"{epoch}: one cluster holds {shares[1]:.0%} of the pixels, {shares[0]:.0%} the epoch before; {remedy}"
            )
