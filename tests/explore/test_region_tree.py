"""The tree of regions against plain loops over superpixels and pixels."""

from __future__ import annotations

from dataclasses import fields

import cv2
import numpy as np
import pytest
from scipy import ndimage

from sohes.data.superpixels.felzenszwalb import felzenszwalb
from sohes.explore.region_tree import RegionTree, grow_tree
from sohes.explore.superpixel_graph import edge_strength, mean_colours
from sohes.masks import FloatArray
from sohes.rle import BoolArray
from tests.data.superpixels.test_felzenszwalb import Image, Labels, few_colours


def test_a_picture_of_one_colour_is_one_superpixel() -> None:
    image = np.full((9, 14, 3), 77, np.uint8)
    labels = felzenszwalb(image, scale=1, sigma=0.8, min_size=1)
    assert not labels.any()
    features = np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32)
    tree = grow_tree(image, labels, features, edge_strength(image), edge_weight=0.1, size_weight=0.1)
    assert (len(tree), tree.parent.tolist(), tree.areas.tolist()) == (1, [-1], [126])
    assert tree.boxes.tolist() == [[0, 0, 9, 14]]
    assert tree.window(0)[0].all()
    assert (tree.perimeter.tolist(), tree.contrast.tolist()) == ([46], [0])


@pytest.mark.parametrize("size_hw", [(1, 1), (1, 9), (2, 1)])
def test_the_smallest_pictures(size_hw: tuple[int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*size_hw, 3), dtype=np.uint8)
    labels = felzenszwalb(image, scale=1, sigma=0, min_size=1)
    count = size_hw[0] * size_hw[1]
    assert labels.ravel().tolist() == list(range(count))
    edges = edge_strength(image)
    tree = grow_tree(image, labels, np.ones((3, 3, 2), np.float32), edges, edge_weight=0.1, size_weight=0.1)
    assert len(tree) == 2 * count - 1
    assert tree.areas[-1] == count


def example(seed: int) -> tuple[Image, Labels, FloatArray]:
    """A picture of 17 x 22 px with some 15 superpixels, and a feature map of 4 x 5 patches."""
    rng = np.random.default_rng(seed)
    image = few_colours(seed, 17, 22)
    labels = felzenszwalb(image, scale=50, sigma=0, min_size=6)
    features = ndimage.gaussian_filter(rng.normal(size=(4, 5, 6)), (0.7, 0.7, 0)).astype(np.float32)
    return image, labels, features


def grow_by_loops(
    labels: Labels, features: FloatArray, strength: FloatArray, edge_weight: float, size_weight: float
) -> tuple[list[int], list[float], list[BoolArray]]:
    """Parents, similarities at which regions came to be, and masks, from scratch at every merger.

    Ties go to the pair of the smallest superpixels: each region counts as its smallest, the smaller region is first.
    """
    whole = cv2.resize(features.astype(np.float64), labels.shape[::-1], interpolation=cv2.INTER_LINEAR)
    masks = [labels == label for label in range(labels.max() + 1)]
    parents, born = [-1] * len(masks), [1.0] * len(masks)
    alive = {number: number for number in range(len(masks))}  # by smallest superpixel
    across, down = np.maximum(strength[:, :-1], strength[:, 1:]), np.maximum(strength[:-1], strength[1:])
    strongest = np.concatenate([across.ravel(), down.ravel()])
    while len(alive) > 1:
        region = np.zeros(labels.shape, int)
        for smallest, number in alive.items():
            region[masks[number]] = smallest
        sides = [(region[:, :-1], region[:, 1:]), (region[:-1], region[1:])]
        first, second = (np.concatenate([side[end].ravel() for side in sides]) for end in (0, 1))
        pairs = np.minimum(first, second), np.maximum(first, second)
        best = None
        for a, b in sorted({*zip(*pairs, strict=True)}):
            if a == b:
                continue
            along = strongest[(pairs[0] == a) & (pairs[1] == b)]
            x, y = (whole[masks[alive[c]]].sum(0) for c in (a, b))
            lengths = np.linalg.norm(x), np.linalg.norm(y)
            cosine = x @ y / (lengths[0] * lengths[1]) if min(lengths) > 1e-9 else -1.0
            similarity = cosine - edge_weight * np.mean(along)
            smaller = min(masks[alive[a]].sum(), masks[alive[b]].sum())
            rank = np.float32(similarity - size_weight * np.log(smaller))
            if best is None or rank > best[0]:
                best = rank, similarity, a, b
        assert best is not None
        _, similarity, a, b = best
        for c in (a, b):
            parents[alive[c]] = len(masks)
        masks.append(masks[alive[a]] | masks[alive[b]])
        parents.append(-1)
        born.append(float(similarity))
        alive[a] = len(masks) - 1
        del alive[b]
    return parents, born, masks


def check_tree(
    tree: RegionTree, labels: Labels, features: FloatArray, strength: FloatArray, edge_weight: float, size_weight: float
) -> None:
    parents, born, masks = grow_by_loops(labels, features, strength, edge_weight, size_weight)
    assert tree.parent.tolist() == parents
    died = [born[parent] if parent >= 0 else -1 for parent in parents]
    expected = np.maximum(np.subtract(born, died), 0)
    np.testing.assert_allclose(tree.persistence, expected, atol=1e-5)
    unit = features / np.maximum(np.linalg.norm(features, axis=-1, keepdims=True), 1e-12)
    whole = cv2.resize(unit.astype(np.float64), labels.shape[::-1], interpolation=cv2.INTER_LINEAR)
    for region, mask in enumerate(masks):
        rows, columns = np.nonzero(mask)
        assert tree.areas[region] == len(rows)
        box = [rows.min(), columns.min(), rows.max() + 1, columns.max() + 1]
        assert tree.boxes[region].tolist() == box
        window, corner = tree.window(region)
        assert corner == (box[0], box[1])
        assert np.array_equal(window, mask[box[0] : box[2], box[1] : box[3]])
        cohesion = np.linalg.norm(whole[mask].sum(0)) / len(rows)
        assert tree.cohesion[region] == pytest.approx(cohesion, abs=1e-5)


@pytest.mark.parametrize("weights", [(0, 0), (0.02, 0.1), (0.5, 0.03), (0.05, 2)])
@pytest.mark.parametrize("seed", range(3))
def test_trees_by_loops(seed: int, weights: tuple[float, float]) -> None:
    image, labels, features = example(seed)
    assert labels.max() > 10
    edges = edge_strength(image)
    tree = grow_tree(image, labels, features, edges, edge_weight=weights[0], size_weight=weights[1])
    check_tree(tree, labels, features, edges, *weights)


@pytest.mark.parametrize("seed", range(3))
def test_outlines_and_contrast_by_loops(seed: int) -> None:
    image, labels, features = example(seed)
    tree = grow_tree(image, labels, features, edge_strength(image), edge_weight=0.05, size_weight=0.1)
    colour = mean_colours(labels, image)[labels]
    for region in range(len(tree)):
        mask = np.zeros(labels.shape, dtype=bool)
        window, (top, left) = tree.window(region)
        mask[top : top + window.shape[0], left : left + window.shape[1]] = window
        framed = np.pad(mask, 1)
        around, perimeter = [], 0
        for y, x in zip(*np.nonzero(framed), strict=True):
            for row, column in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)):
                if not framed[row, column]:
                    perimeter += 1
                    if 0 < row <= labels.shape[0] and 0 < column <= labels.shape[1]:
                        around.append(colour[row - 1, column - 1])
        assert tree.perimeter[region] == perimeter
        expected = np.linalg.norm(colour[mask].mean(0) - np.mean(around, axis=0)) if around else 0
        assert tree.contrast[region] == pytest.approx(expected, abs=1e-3)


def test_a_size_weight_lets_small_regions_merge_first() -> None:
    """Of four stripes the two wide ones are the most alike; with a weight the narrow ones go first."""
    labels = np.repeat(np.arange(4, dtype=np.int32), [20, 20, 2, 2])[None].repeat(6, 0)
    vectors = np.array([[1, 0], [1, 0.1], [0.5, 1], [0, 1]], np.float32)
    blank = np.zeros((*labels.shape, 3), np.uint8)
    edges = edge_strength(blank)
    firsts = []
    for size_weight in (0, 0.2):
        tree = grow_tree(blank, labels, vectors[labels], edges, edge_weight=0, size_weight=size_weight)
        firsts.append(np.flatnonzero(tree.parent == 4).tolist())
    assert firsts == [[0, 1], [2, 3]]


@pytest.mark.parametrize("kind", ["all alike", "zero", "two directions", "some zero"])
def test_ties_go_to_the_smallest_superpixels(kind: str) -> None:
    _, labels, features = example(4)
    rng = np.random.default_rng(0)
    match kind:
        case "all alike":
            features[:] = 1
        case "zero":
            features[:] = 0
        case "two directions":
            features = np.eye(6, dtype=np.float32)[rng.integers(0, 2, (4, 5))]
        case "some zero":
            features[:, 2:] = 0
    blank = np.full((*labels.shape, 3), 200, np.uint8)  # no edges, so only features count
    edges = edge_strength(blank)
    tree = grow_tree(blank, labels, features, edges, edge_weight=0.1, size_weight=0)
    check_tree(tree, labels, features, edges, 0.1, 0)


def test_a_tie_that_only_a_merger_makes() -> None:
    """Region 0 is as similar to 3 as, later, to 1 and 2 together; before, it is less similar to each of them."""
    labels = np.array([[0, 0, 0], [1, 2, 3]], np.int32)
    vectors = np.array([[1, 1, 0, 0, 0], [2, 0, 2, 1, 1], [0, 2, 2, 1, 1], [1, 0, -1, 0, 0]], np.float32)
    image, edges = np.zeros((2, 3, 3), np.uint8), np.zeros((2, 3), np.float32)
    tree = grow_tree(image, labels, vectors[labels], edges, edge_weight=0, size_weight=0)
    assert tree.parent.tolist() == [5, 4, 4, 6, 5, 6, -1]


def test_edges_decide_where_features_do_not() -> None:
    image = np.full((10, 30, 3), 128, np.uint8)
    image[:, 10:20], image[:, 20:] = 140, 250
    labels = felzenszwalb(image, scale=1, sigma=0, min_size=1)
    features, edges = np.ones((2, 6, 3), np.float32), edge_strength(image)
    tree = grow_tree(image, labels, features, edges, edge_weight=0.1, size_weight=0)
    assert tree.parent.tolist() == [3, 3, 4, 4, -1]
    assert tree.persistence[0] < tree.persistence[2]


def test_the_same_picture_gives_the_same_tree() -> None:
    image, labels, features = example(3)
    edges = edge_strength(image)
    trees = [
        grow_tree(image, labels.copy(), features.copy(), edges, edge_weight=0.05, size_weight=0.1) for _ in range(2)
    ]
    for field in fields(RegionTree):
        first, second = (getattr(tree, field.name) for tree in trees)
        assert first.tobytes() == second.tobytes()


def test_scale_of_the_features_does_not_matter() -> None:
    image, labels, features = example(2)
    edges = edge_strength(image)
    tree, other = (
        grow_tree(image, labels, features * scale, edges, edge_weight=0.05, size_weight=0.1)
        for scale in (1, np.float32(1024))
    )
    assert tree.parent.tolist() == other.parent.tolist()
    assert tree.persistence.tolist() == other.persistence.tolist()
