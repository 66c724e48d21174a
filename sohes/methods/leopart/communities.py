"""Which clusters belong together: those that lie beside each other, by Infomap's communities (README §10)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from types import ModuleType

import numpy as np
from numpy.typing import NDArray

from sohes.errors import ConfigError, DataError
from sohes.installation import install_extra
from sohes.rle import IntArray

# (dy, dx) in px -> how often it counts. The angles of the public code hold 4π/3 for 5π/4, and at a distance of 2 its
# diagonals are rounded back to 1: these are the places that it looks at.
EXACT = {
    **{(-1, 0): 1, (1, 0): 1, (0, -1): 1, (0, 1): 1, (-2, 0): 1, (2, 0): 1, (0, -2): 1, (0, 2): 1},
    **{(-1, 1): 2, (1, -1): 2, (1, 1): 2, (-1, -1): 1, (-2, -1): 1},
}
CLEAN = {(d * dy, d * dx): 1 for d in (1, 2) for dy in (-1, 0, 1) for dx in (-1, 0, 1) if (dy, dx) != (0, 0)}
OFFSETS = {"exact": EXACT, "clean": CLEAN}

_MARKOV_TIMES = np.geomspace(0.1, 10, 41)  # that are tried where none is given


@dataclass(frozen=True)
class Edges:
    """An undirected graph of clusters.

    Attributes:
        nodes: number of clusters, with an edge or without.
        pairs: (E, 2) int64, the smaller index first.
        weights: (E,) float64.
    """

    nodes: int
    pairs: IntArray
    weights: NDArray[np.float64]

    @property
    def joined(self) -> int:
        """Clusters that have an edge."""
        return len(np.unique(self.pairs))


def co_occurrence(
    maps: Iterable[NDArray[np.integer]], ids: int, offsets: dict[tuple[int, int], int] = CLEAN
) -> NDArray[np.float64]:
    """How often each id has each other one beside it: a grey-level co-occurrence matrix, row-stochastic on average.

    In an image the counts of an id, less those with itself, are divided by their sum; the mean is that over the images
    in which the id has any neighbour. The row of an id that has none anywhere is zero; in the public code it is NaN.

    Args:
        maps: of ids in [0, `ids`), each (H, W).
        ids: number of ids.
        offsets: (dy, dx) of the neighbours in px, and how often each counts.

    Returns:
        (ids, ids) float64; not symmetric.
    """
    total, images = np.zeros((ids, ids)), np.zeros(ids, np.int64)
    for labels in maps:
        counts = np.zeros(ids * ids, np.int64)
        for (dy, dx), times in offsets.items():
            here, there = _shifted(labels, dy, dx)
            pairs = here.astype(np.int64) * ids + there
            counts += times * np.bincount(pairs.ravel(), minlength=ids * ids)
        square = counts.reshape(ids, ids)
        np.fill_diagonal(square, 0)
        sums = square.sum(axis=1)
        total += square / np.maximum(sums, 1)[:, None]
        images += sums > 0
    return total / np.maximum(images, 1)[:, None]


def _shifted(labels: NDArray[np.integer], dy: int, dx: int) -> tuple[NDArray[np.integer], NDArray[np.integer]]:
    """The pixels that have a neighbour at (dy, dx), and those neighbours."""
    height, width = labels.shape
    rows, columns = max(height - abs(dy), 0), max(width - abs(dx), 0)
    top, left = max(-dy, 0), max(-dx, 0)
    here = labels[top : top + rows, left : left + columns]
    there = labels[top + dy : top + dy + rows, left + dx : left + dx + columns]
    return here, there


def _mutual(adjacency: NDArray[np.float64]) -> NDArray[np.float64]:
    """The lesser of both directions."""
    mutual = np.minimum(adjacency, adjacency.T)
    np.fill_diagonal(mutual, 0)
    return mutual


def find_edges(adjacency: NDArray[np.float64], threshold: float) -> Edges:
    """Edges between clusters that have each other beside them at least so often; their weight is the lesser of both."""
    weights = np.triu(_mutual(adjacency))
    pairs = np.argwhere((weights >= threshold) & (weights > 0))
    return Edges(len(adjacency), pairs, weights[pairs[:, 0], pairs[:, 1]])


def edge_threshold(adjacency: NDArray[np.float64], share: float) -> float:
    """The highest threshold that leaves an edge to `share` of the clusters that have a neighbour at all.

    Raises:
        DataError: none has.
    """
    strongest = _mutual(adjacency).max(axis=1)
    strongest = np.sort(strongest[strongest > 0])[::-1]
    if not len(strongest):
        raise DataError("no part has another beside it in any image, so there are no communities; set parts higher")
    return float(strongest[int(np.ceil(share * len(strongest))) - 1])


def find_communities(edges: Edges, *, markov_time: float, seed: int, preferred: int = 0) -> IntArray:
    """Infomap's two-level communities of the graph.

    Args:
        edges: of the graph.
        markov_time: a longer one gives fewer communities.
        seed: any number from 0 on.
        preferred: number of communities that Infomap is asked to prefer; 0: none.

    Returns:
        Community of each cluster (nodes,), counted from 1; 0 for a cluster without an edge.

    Raises:
        ConfigError: the package infomap is not installed.
    """
    infomap = require_infomap()
    found = np.zeros(edges.nodes, np.int64)
    if len(edges.pairs):
        options = f"--two-level --silent --markov-time {float(markov_time)} --seed {seed + 1}"  # it refuses seed 0
        if preferred:
            options += f" --preferred-number-of-modules {preferred}"
        graph = infomap.Infomap(options)
        for (one, other), weight in zip(edges.pairs.tolist(), edges.weights.tolist(), strict=True):
            graph.add_link(one, other, weight)
        for node, community in graph.run().modules().items():
            found[node] = community
    return found


def choose_markov_time(edges: Edges, *, communities: int, seed: int) -> float:
    """The Markov time that gives `communities`, or a number nearest to it; of several the one nearest to 1."""
    numbers = [find_communities(edges, markov_time=time, seed=seed).max() for time in _MARKOV_TIMES]
    miss = np.abs(np.asarray(numbers) - communities)
    nearest = np.lexsort((np.abs(np.log(_MARKOV_TIMES)), miss))[0]
    return float(_MARKOV_TIMES[nearest])


def require_infomap() -> ModuleType:
    """The package infomap.

    Raises:
        ConfigError: it is not installed; the message says how to add it.
    """
    try:
        import infomap
    except ImportError as error:
        raise ConfigError(
            "communities of parts need the package infomap, an extra because its licence is the GPL: "
            f"{install_extra('leopart')}"
        ) from error
    return infomap
