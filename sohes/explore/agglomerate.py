"""Greedy agglomerative merging of 4-adjacent image patches at descending similarity thresholds (README §3).

The feature of a region is the sum of its patches' features; the two adjacent regions of highest cosine similarity merge
first, as long as they are at least as similar as the threshold. The order is what defines the result: merging changes
similarities both ways, so no dendrogram cut gives the same regions.

The time goes into inner products of long vectors, and few of them ever decide a merger. So they are computed lazily:
when regions a and b become k, the triangle inequality of angles bounds the new similarities from the old ones, and a
bound is replaced by the similarity itself only when it stands above everything else.
"""

from __future__ import annotations

from collections.abc import Sequence

import numba
import numpy as np
from numpy.typing import NDArray

_ZERO_LENGTH = 1e-12
_GRID = 1e9  # similarities are rounded to its fractions: far above the rounding of sums, far below that of features
_STEP = 1 / _GRID
_NONE = -1


def merge_patches(features: NDArray[np.floating], thresholds: Sequence[float]) -> NDArray[np.int32]:
    """Nested regions of a feature map.

    Similarities and thresholds are rounded to nine decimals, so that equal ones are equal in whatever order they were
    summed. Ties go to the pair with the smaller first region, then the smaller second; regions are numbered in order
    of creation, patches first (row-major). A feature of zero length (below 1e-12) is similar to nothing (-1).

    Args:
        features: (H, W, C) float, finite. Scaling all of them by a constant changes nothing.
        thresholds: cosines; sorted descending, duplicates dropped.

    Returns:
        (T, H, W) int32, one map per threshold. Equal numbers are one 4-connected region, in every map that has it.

    Raises:
        ValueError: not three-dimensional, empty, or not finite.
    """
    features = np.asarray(features)
    if features.ndim != 3 or features.size == 0:
        raise ValueError(f"features must be a non-empty (H, W, C) array, not one of shape {features.shape}")
    height, width, channels = features.shape
    levels = np.asarray(sorted(set(map(float, thresholds)), reverse=True))
    precision = np.float32 if features.dtype in (np.float16, np.float32) else np.float64
    patches = np.ascontiguousarray(features, dtype=precision).reshape(-1, channels)
    lengths, products = _inner_products(patches, width)
    if not np.isfinite(lengths.sum() ** 2):
        raise ValueError("features hold NaN or infinite values, or values too large to be squared")
    sums = np.empty((len(patches) // 2, channels))  # pages that are never written take no memory
    return _merge(patches, sums, lengths, products, width, levels).reshape(len(levels), height, width)


# A region lives in the slot of one of its patches, i. e. patch i in slot i; mergers empty the other slots.
_SLOT = np.dtype(
    [
        ("number", np.int32),  # of its region; beyond all regions if it is empty
        ("row", np.int32),  # of its vector in `sums`; _NONE for a patch
        ("length", np.float64),  # of its vector
        ("ring", np.int32),  # one of its links
        ("double", np.int32),  # link of another slot to this one, noted while two rings become one; else _NONE
        # its entry in the contest: the best of the edges to older regions
        ("best", np.int32),  # the link
        ("older", np.int32),  # number of the region at its end
        ("similarity", np.float64),  # or the upper bound
    ],
    align=True,
)
# Edge e is an adjacency of two slots, each of which has a link to the other: 2e and 2e + 1. A slot's links are a ring.
_LINK = np.dtype([("to", np.int32), ("after", np.int32), ("before", np.int32)], align=True)
_EDGE = np.dtype([("similarity", np.float64), ("exact", np.bool_)], align=True)  # not exact: an upper bound

_compiled = numba.njit(cache=True, nogil=True, error_model="numpy")
_vectorised = numba.njit(cache=True, nogil=True, error_model="numpy", fastmath={"reassoc", "contract"})


@_vectorised
def _dot(x, y):  # type: ignore[no-untyped-def]
    total = 0.0
    for c in range(x.size):
        total += np.float64(x[c]) * np.float64(y[c])
    return total


@_vectorised
def _add(total, x):  # type: ignore[no-untyped-def]
    """Add x to a sum, in place; the length of the result."""
    square = 0.0
    for c in range(x.size):
        total[c] += np.float64(x[c])
        square += total[c] * total[c]
    return np.sqrt(square)


@_vectorised
def _three_dots(x, y, z):  # type: ignore[no-untyped-def]
    """Products of x with itself, y and z, reading x once."""
    own = first = second = 0.0
    for c in range(x.size):
        value = np.float64(x[c])
        own += value * value
        first += value * np.float64(y[c])
        second += value * np.float64(z[c])
    return own, first, second


@_compiled
def _inner_products(patches, width):  # type: ignore[no-untyped-def]
    """Lengths (N,) of the patches, and their products (2N,) with the right (2i) and the lower (2i + 1) neighbour."""
    count = len(patches)
    lengths = np.empty(count)
    products = np.empty(2 * count)  # where there is no neighbour, a number that nobody reads
    for i in range(count):
        right, below = min(i + 1, count - 1), min(i + width, count - 1)
        square, products[2 * i], products[2 * i + 1] = _three_dots(patches[i], patches[right], patches[below])
        lengths[i] = np.sqrt(square)
    return lengths, products


@_compiled
def _rounded(cosine):  # type: ignore[no-untyped-def]
    return np.rint(cosine * _GRID) / _GRID


@_compiled
def _cosine(product, length, other_length):  # type: ignore[no-untyped-def]
    if min(length, other_length) < _ZERO_LENGTH:
        return -1.0
    return _rounded(product / (length * other_length))


@_compiled
def _similarity(slots, patches, sums, a, b):  # type: ignore[no-untyped-def]
    if slots[a].row < 0:
        a, b = b, a  # two patches never come here: their products are known from the start
    total, other = sums[slots[a].row], slots[b].row
    product = _dot(total, patches[b]) if other < 0 else _dot(total, sums[other])
    return _cosine(product, slots[a].length, slots[b].length)


@_compiled
def _join_rings(links, p, q):  # type: ignore[no-untyped-def]
    """One ring of the two that hold links p and q; either may be _NONE."""
    if p < 0 or q < 0:
        return max(p, q)
    end, other_end = links[p].before, links[q].before
    links[end].after, links[q].before = q, end
    links[other_end].after, links[p].before = p, other_end
    return p


@_compiled
def _unlink(slots, links, slot, link):  # type: ignore[no-untyped-def]
    before, after = links[link].before, links[link].after
    links[before].after, links[after].before = after, before
    if slots[slot].ring == link:
        slots[slot].ring = _NONE if after == link else after


@_compiled
def _following(slots, links, slot, link):  # type: ignore[no-untyped-def]
    """The next link of a slot; _NONE when all have been visited."""
    after = links[link].after
    return _NONE if after == slots[slot].ring else after


@_compiled
def _grid_graph(lengths, products, width):  # type: ignore[no-untyped-def]
    count = len(lengths)
    slots, links, edges = np.empty(count, _SLOT), np.empty(4 * count, _LINK), np.empty(2 * count, _EDGE)
    for i in range(count):
        slots[i].number, slots[i].length = i, lengths[i]
        slots[i].row = slots[i].ring = slots[i].double = _NONE
    for i in range(count):
        right, below = (i + 1) % width != 0, i + width < count
        for edge, other, exists in ((2 * i, i + 1, right), (2 * i + 1, i + width, below)):
            if not exists:
                continue
            edges[edge].similarity = _cosine(products[edge], lengths[i], lengths[other])
            edges[edge].exact = True
            for slot, link, end in ((i, 2 * edge, other), (other, 2 * edge + 1, i)):
                links[link].to = end
                links[link].before = links[link].after = link
                slots[slot].ring = _join_rings(links, slots[slot].ring, link)
    return slots, links, edges


@_compiled
def _third_side(cosine, between, sine):  # type: ignore[no-untyped-def]
    """Upper bound of cos(b, x), where cos(a, x) is at most `cosine` and cos(a, b) is `between`, its sine `sine`."""
    if cosine >= between:
        return 1.0
    return cosine * between + sine * np.sqrt(1 - cosine * cosine)


@_compiled
def _set_bound(edges, edge, bound):  # type: ignore[no-untyped-def]
    """The similarity of an edge is not known any more, but is no higher than the bound, give or take rounding."""
    edges[edge].similarity = min(max(bound + _STEP, -1.0), 1.0)
    edges[edge].exact = False


@_compiled
def _pool_vectors(slots, patches, sums, free, kept, gone):  # type: ignore[no-untyped-def]
    """Add the vector of one slot to that of another, which is not a patch unless both are."""
    row, other = slots[kept].row, slots[gone].row
    if row < 0:
        row = slots[kept].row = free[free[0]]
        free[0] -= 1
        for c in range(patches.shape[1]):
            sums[row, c] = patches[kept, c]
    if other < 0:
        slots[kept].length = _add(sums[row], patches[gone])
    else:
        slots[kept].length = _add(sums[row], sums[other])
        free[0] += 1
        free[free[0]] = other


@_compiled
def _pool_links(slots, links, edges, kept, gone, between, weights):  # type: ignore[no-untyped-def]
    """Give one slot the links of another, drop those that are double now, and bound the similarities of the union.

    Let u and v be the unit vectors of the two regions, with cosine `between`, and w and z their lengths as fractions of
    the union's, the `weights`. The union's unit vector is wu + zv; its cosine with any x is w cos(u, x) + z cos(v, x).
    """
    w, z = weights
    sine = np.sqrt(max(0.0, 1 - between * between))
    link = slots[gone].ring
    while link >= 0:
        slots[links[link].to].double = link
        link = _following(slots, links, gone, link)

    link = slots[kept].ring
    while link >= 0:
        neighbour, edge = links[link].to, link >> 1
        double = slots[neighbour].double
        cosine = edges[edge].similarity + _STEP
        if double >= 0:
            other_cosine = edges[double >> 1].similarity + _STEP
            slots[neighbour].double = _NONE
            _unlink(slots, links, gone, double)
            _unlink(slots, links, neighbour, double ^ 1)
        else:
            other_cosine = _third_side(cosine, between, sine)
        _set_bound(edges, edge, w * cosine + z * other_cosine)
        link = _following(slots, links, kept, link)

    link = slots[gone].ring
    while link >= 0:
        edge = link >> 1
        cosine = edges[edge].similarity + _STEP
        _set_bound(edges, edge, w * _third_side(cosine, between, sine) + z * cosine)
        slots[links[link].to].double = _NONE
        links[link ^ 1].to = kept
        link = _following(slots, links, gone, link)
    slots[kept].ring = _join_rings(links, slots[kept].ring, slots[gone].ring)


@_compiled
def _join(slots, links, edges, patches, sums, free, link):  # type: ignore[no-untyped-def]
    """Merge the regions at the two ends of a link: the slot of the union, and the slot that is empty now."""
    if slots[links[link ^ 1].to].row < 0:
        link ^= 1
    kept, gone = links[link ^ 1].to, links[link].to
    _unlink(slots, links, kept, link)
    _unlink(slots, links, gone, link ^ 1)
    length, other_length = slots[kept].length, slots[gone].length
    _pool_vectors(slots, patches, sums, free, kept, gone)
    # Zero vectors need no care: they merge at -1, where all that is left becomes one region, whatever the order.
    union = max(slots[kept].length, _ZERO_LENGTH)
    between = edges[link >> 1].similarity - _STEP
    _pool_links(slots, links, edges, kept, gone, between, (length / union, other_length / union))
    return kept, gone


@_compiled
def _comes_first(similarity, older, entry):  # type: ignore[no-untyped-def]
    return similarity > entry.similarity or (similarity == entry.similarity and older < entry.older)


@_compiled
def _play(slots, tree, node):  # type: ignore[no-untyped-def]
    """The better of the two slots that have won below a node."""
    i, j = tree[2 * node], tree[2 * node + 1]
    a, b = slots[i], slots[j]
    if a.similarity != b.similarity:
        return i if a.similarity > b.similarity else j
    if a.older != b.older:
        return i if a.older < b.older else j
    return i if a.number < b.number else j


@_compiled
def _replay(slots, tree, slot):  # type: ignore[no-untyped-def]
    """Repeat the games that depend on a slot's entry."""
    node = (len(slots) + slot) // 2
    while node >= 1:
        winner = _play(slots, tree, node)
        if winner == tree[node] and winner != slot:
            return
        tree[node] = winner
        node //= 2


@_compiled
def _best_rival(slots, tree, slot):  # type: ignore[no-untyped-def]
    """The highest similarity or bound among the entries of all other slots."""
    node = len(slots) + slot
    best = -np.inf
    while node > 1:
        best = max(best, slots[tree[node ^ 1]].similarity)
        node //= 2
    return best


@_compiled
def _enter(slots, links, edges, patches, sums, slot, rival):  # type: ignore[no-untyped-def]
    """Enter the best edge of a slot; a bound that would be the best and reaches the rival is made exact first."""
    entry = slots[slot]
    entry.best, entry.similarity, entry.older = _NONE, -np.inf, 0
    link = entry.ring
    while link >= 0:
        edge = edges[link >> 1]
        if edge.similarity >= entry.similarity:
            other = links[link].to
            older = slots[other].number
            if older < entry.number and _comes_first(edge.similarity, older, entry):
                if edge.similarity >= rival and not edge.exact:
                    edge.similarity = _similarity(slots, patches, sums, slot, other)
                    edge.exact = True
                if _comes_first(edge.similarity, older, entry):
                    entry.best, entry.similarity, entry.older = link, edge.similarity, older
        link = _following(slots, links, slot, link)


@_compiled
def _label(merged_into, labels):  # type: ignore[no-untyped-def]
    """The region of every patch, from the region that each region has merged into (itself, if it stands)."""
    for patch in range(len(labels)):
        region = patch
        while merged_into[region] != region:
            merged_into[region] = merged_into[merged_into[region]]
            region = merged_into[region]
        labels[patch] = region


@_compiled
def _merge(patches, sums, lengths, products, width, levels):  # type: ignore[no-untyped-def]
    """`merge_patches` on (N, C) patches, with room for (N // 2, C) sums; (T, N) int32 out."""
    count = len(patches)
    slots, links, edges = _grid_graph(lengths, products, width)
    free = np.arange(-1, len(sums)).astype(np.int32)  # stack of the rows of `sums` that are free; its height in front
    free[0] = len(sums)
    for slot in range(count):
        _enter(slots, links, edges, patches, sums, slot, 1.0)
    tree = np.arange(-count, count).astype(np.int32)  # node i is the better of nodes 2i and 2i + 1; leaf N + slot
    for node in range(count - 1, 0, -1):
        tree[node] = _play(slots, tree, node)

    last = 2 * count - 2  # number of the region that is the whole map
    merged_into = np.arange(last + 1).astype(np.int32)
    labels = np.empty((len(levels), count), np.int32)
    number = count
    for t in range(len(levels)):
        threshold = _rounded(levels[t])
        while number <= last:
            slot = tree[1]
            link = slots[slot].best
            if slots[slot].similarity < threshold:
                break
            other = links[link].to
            if slots[other].number > slots[slot].number or not edges[link >> 1].exact:
                _enter(slots, links, edges, patches, sums, slot, _best_rival(slots, tree, slot))
                _replay(slots, tree, slot)
                continue
            merged_into[slots[slot].number] = merged_into[slots[other].number] = number
            kept, gone = _join(slots, links, edges, patches, sums, free, link)
            slots[gone].number, slots[gone].similarity = last + 1, -np.inf
            _replay(slots, tree, gone)
            slots[kept].number = number
            _enter(slots, links, edges, patches, sums, kept, _best_rival(slots, tree, kept))
            _replay(slots, tree, kept)
            number += 1
        _label(merged_into, labels[t])
    return labels
