"""Co-occurrence, edges and communities: against the authors' own code, and where the answer is known."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from sohes.errors import ConfigError, DataError
from sohes.methods.leopart.communities import (
    CLEAN,
    EXACT,
    Edges,
    choose_markov_time,
    co_occurrence,
    edge_threshold,
    find_communities,
    find_edges,
)

GOLDEN = Path(__file__).parent / "golden"
BLOCKS = np.kron(np.eye(3), np.ones((4, 4)))  # three groups of four ids that lie beside each other


def same_partition(one: np.ndarray, other: np.ndarray) -> bool:
    return np.array_equal(one[:, None] == one, other[:, None] == other) and np.array_equal(one == 0, other == 0)


def block_maps(count: int = 30) -> list[np.ndarray]:
    """Left and right half of each map are of one group each."""
    random = np.random.default_rng(0)
    maps = []
    for _ in range(count):
        left, right = random.choice(3, 2, replace=False)
        maps.append(
            np.hstack([left * 4 + random.integers(0, 4, (20, 10)), right * 4 + random.integers(0, 4, (20, 10))])
        )
    return maps


def test_co_occurrence_is_the_authors() -> None:
    golden = np.load(GOLDEN / "co_occurrence.npz")
    ids = int(golden["num_clusters"])
    assert {(int(dy), int(dx)): int(times) for dy, dx, times in golden["offsets"]} == EXACT
    expected = golden["adjacency"]
    assert np.isnan(expected[9]).all()  # an id that never occurs; zero here
    np.testing.assert_allclose(co_occurrence(golden["clusters"], ids, EXACT), np.nan_to_num(expected), atol=1e-12)


def test_co_occurrence_counts_all_neighbours_at_two_distances() -> None:
    """A slow, obvious count on a small map."""
    labels = np.random.default_rng(3).integers(0, 4, (7, 9))
    counts = np.zeros((4, 4))
    for y in range(7):
        for x in range(9):
            for distance in (1, 2):
                for dy in (-distance, 0, distance):
                    for dx in (-distance, 0, distance):
                        if (dy or dx) and 0 <= y + dy < 7 and 0 <= x + dx < 9:
                            counts[labels[y, x], labels[y + dy, x + dx]] += 1
    np.fill_diagonal(counts, 0)
    np.testing.assert_allclose(co_occurrence([labels], 4), counts / counts.sum(axis=1, keepdims=True))
    assert len(CLEAN) == 16
    assert not co_occurrence([np.zeros((1, 1), np.int64)], 2).any()  # smaller than any offset


def test_edges_and_communities_are_the_authors() -> None:
    pytest.importorskip("infomap")
    golden = np.load(GOLDEN / "communities.npz")
    edges = find_edges(golden["adjacency"], float(golden["weight_threshold"]))
    np.testing.assert_array_equal(edges.pairs, golden["edges"][:, :2])
    np.testing.assert_allclose(edges.weights, golden["edges"][:, 2], atol=1e-12)
    compared = 0
    for time, preferred, seed, modules in zip(
        golden["markov_time"], golden["preferred_modules"], golden["seed"], golden["modules"], strict=True
    ):
        if preferred in (0, 4):  # with 20 it depends on Infomap's version
            found = find_communities(edges, markov_time=float(time), seed=int(seed) - 1, preferred=int(preferred))
            assert same_partition(found, modules)
            compared += 1
    assert compared == 20


def test_groups_that_lie_together_are_communities() -> None:
    pytest.importorskip("infomap")
    adjacency = co_occurrence(block_maps(), 12)
    edges = find_edges(adjacency, edge_threshold(adjacency, 0.95))
    assert edges.joined == 12
    time = choose_markov_time(edges, communities=3, seed=0)
    found = find_communities(edges, markov_time=time, seed=0)
    assert same_partition(found, np.repeat([1, 2, 3], 4))


def test_the_threshold_leaves_its_share_of_clusters_an_edge() -> None:
    random = np.random.default_rng(4)
    adjacency = random.random((40, 40))
    adjacency[:, 39] = adjacency[39] = 0  # has no neighbour
    for share in (0.5, 0.95, 1.0):
        threshold = edge_threshold(adjacency, share)
        assert find_edges(adjacency, threshold).joined >= share * 39
        assert find_edges(adjacency, threshold + 1e-9).joined < max(share * 39, find_edges(adjacency, threshold).joined)
    with pytest.raises(DataError, match=r"no part has another beside it"):
        edge_threshold(np.zeros((3, 3)), 0.95)


def test_a_longer_markov_time_gives_fewer_communities() -> None:
    pytest.importorskip("infomap")
    adjacency = co_occurrence(block_maps(), 12)
    edges = find_edges(adjacency, 0.01)
    numbers = [find_communities(edges, markov_time=time, seed=0).max() for time in (0.3, 1.0, 5.0)]
    assert numbers == sorted(numbers, reverse=True)
    assert numbers[0] > numbers[-1]


def test_clusters_without_an_edge_are_in_no_community() -> None:
    pytest.importorskip("infomap")
    none = Edges(3, np.zeros((0, 2), np.int64), np.zeros(0))
    assert find_communities(none, markov_time=1.0, seed=0).tolist() == [0, 0, 0]
    one = Edges(3, np.array([[0, 2]]), np.array([0.5]))
    found = find_communities(one, markov_time=1.0, seed=0)
    assert found[1] == 0
    assert found[0] > 0
    assert found[2] > 0


def test_without_infomap_the_message_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "infomap", None)
    with pytest.raises(ConfigError, match=r"need the package infomap, .* GPL: make -B install"):
        find_communities(Edges(2, np.array([[0, 1]]), np.ones(1)), markov_time=1.0, seed=0)
