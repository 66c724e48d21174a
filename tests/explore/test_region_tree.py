"""The tree of regions against plain loops over superpixels and pixels."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from scipy import ndimage
from skimage.color import rgb2lab

from sohes.explore.region_tree import RegionTree, edge_strength, grow_tree
from sohes.explore.superpixels import superpixels
from sohes.masks import FloatArray
from sohes.rle import BoolArray
from tests.explore.test_superpixels import Image, Labels, few_colours


def test_a_picture_of_one_colour_is_one_superpixel() -> None:
    image = np.full((9, 14, 3), 77, np.uint8)
    labels = superpixels(image, scale=1, sigma=0.8, min_size=1)
    assert not labels.any()
    features = np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32)
    tree = grow_tree(image, labels, features, edge_weight=0.1)
    assert (len(tree), tree.parent.tolist(), tree.areas.tolist()) == (1, [-1], [126])
    assert tree.boxes.tolist() == [[0, 0, 9, 14]]
    assert tree.scores.tolist() == [0.5]
    assert tree.window(0)[0].all()
    forest = tree.forest(np.array([0]))
    assert forest.masks.all()
    assert forest.parent.tolist() == [-1]


@pytest.mark.parametrize("size_hw", [(1, 1), (1, 9), (2, 1)])
def test_the_smallest_pictures(size_hw: tuple[int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*size_hw, 3), dtype=np.uint8)
    labels = superpixels(image, scale=1, sigma=0, min_size=1)
    count = size_hw[0] * size_hw[1]
    assert labels.ravel().tolist() == list(range(count))
    tree = grow_tree(image, labels, np.ones((3, 3, 2), np.float32), edge_weight=0.1)
    assert len(tree) == 2 * count - 1
    assert tree.areas[-1] == count


def test_edge_strength_by_other_libraries() -> None:
    image = few_colours(1, 33, 41)
    image[:16] = ndimage.gaussian_filter(image[:16], (2, 2, 0))
    lab = rgb2lab(image)
    answers = []
    for sigma in (1, 2):
        smooth = ndimage.gaussian_filter(lab, (sigma, sigma, 0), mode="mirror")
        slopes = [
            ndimage.sobel(plane, axis, mode="mirror") / 8 for plane in np.moveaxis(smooth, -1, 0) for axis in (0, 1)
        ]
        answers.append(sigma * np.linalg.norm(slopes, axis=0))
    found = edge_strength(image)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, np.maximum(*answers), rtol=0.02, atol=0.05)  # CIELAB's constants differ
    assert (answers[0] > answers[1] + 1).any()
    assert (answers[1] > answers[0] + 1).any()


def test_edge_strength_of_a_large_picture_is_that_of_its_parts() -> None:
    image = few_colours(3, 1100, 40)
    whole = edge_strength(image)
    for top in (0, 480, 500, 700):
        part = edge_strength(image[top : top + 400])
        np.testing.assert_array_equal(part[20:-20], whole[top + 20 : top + 380])


def example(seed: int) -> tuple[Image, Labels, FloatArray]:
    """A picture of 17 x 22 px with some 15 superpixels, and a feature map of 4 x 5 patches."""
    rng = np.random.default_rng(seed)
    image = few_colours(seed, 17, 22)
    labels = superpixels(image, scale=50, sigma=0, min_size=6)
    features = ndimage.gaussian_filter(rng.normal(size=(4, 5, 6)), (0.7, 0.7, 0)).astype(np.float32)
    return image, labels, features


def grow_by_loops(
    labels: Labels, features: FloatArray, strength: FloatArray, edge_weight: float
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
            similarity = np.float32(cosine - edge_weight * np.mean(along))
            if best is None or similarity > best[0]:
                best = similarity, a, b
        assert best is not None
        similarity, a, b = best
        for c in (a, b):
            parents[alive[c]] = len(masks)
        masks.append(masks[alive[a]] | masks[alive[b]])
        parents.append(-1)
        born.append(float(similarity))
        alive[a] = len(masks) - 1
        del alive[b]
    return parents, born, masks


def check_tree(
    tree: RegionTree, labels: Labels, features: FloatArray, strength: FloatArray, edge_weight: float
) -> None:
    parents, born, masks = grow_by_loops(labels, features, strength, edge_weight)
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


@pytest.mark.parametrize("edge_weight", [0, 0.02, 0.5])
@pytest.mark.parametrize("seed", range(3))
def test_trees_by_loops(seed: int, edge_weight: float) -> None:
    image, labels, features = example(seed)
    assert labels.max() > 10
    tree = grow_tree(image, labels, features, edge_weight=edge_weight)
    check_tree(tree, labels, features, edge_strength(image), edge_weight)


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
    tree = grow_tree(blank, labels, features, edge_weight=0.1)
    check_tree(tree, labels, features, edge_strength(blank), 0.1)


def test_a_tie_that_only_a_merger_makes() -> None:
    """Region 0 is as similar to 3 as, later, to 1 and 2 together; before, it is less similar to each of them."""
    labels = np.array([[0, 0, 0], [1, 2, 3]], np.int32)
    vectors = np.array([[1, 1, 0, 0, 0], [2, 0, 2, 1, 1], [0, 2, 2, 1, 1], [1, 0, -1, 0, 0]], np.float32)
    tree = grow_tree(np.zeros((2, 3, 3), np.uint8), labels, vectors[labels], edge_weight=0)
    assert tree.parent.tolist() == [5, 4, 4, 6, 5, 6, -1]


def test_edges_decide_where_features_do_not() -> None:
    image = np.full((10, 30, 3), 128, np.uint8)
    image[:, 10:20], image[:, 20:] = 140, 250
    labels = superpixels(image, scale=1, sigma=0, min_size=1)
    tree = grow_tree(image, labels, np.ones((2, 6, 3), np.float32), edge_weight=0.1)
    assert tree.parent.tolist() == [3, 3, 4, 4, -1]
    assert tree.persistence[0] < tree.persistence[2]


def test_scores_rank_by_persistence_and_size() -> None:
    image, labels, features = example(0)
    tree = grow_tree(image, labels, features, edge_weight=0.05)
    standing = tree.persistence * np.sqrt(tree.areas)
    assert np.array_equal(np.argsort(tree.scores, kind="stable"), np.argsort(standing, kind="stable"))
    assert tree.scores.min() >= 0
    assert tree.scores.max() < 1
    assert np.median(tree.scores) == pytest.approx(0.5)
    np.testing.assert_allclose(tree.scores, standing / (standing + np.median(standing)), rtol=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_forests_of_chosen_regions(seed: int) -> None:
    image, labels, features = example(seed)
    tree = grow_tree(image, labels, features, edge_weight=0.05)
    rng = np.random.default_rng(seed)
    for count in (0, 1, 9, len(tree)):
        chosen = rng.choice(len(tree), count, replace=False)
        forest = tree.forest(chosen)
        assert forest.size_hw == labels.shape
        assert forest.scores.tolist() == tree.scores[chosen].tolist()
        assert forest.attributes["cohesion"].tolist() == tree.cohesion[chosen].tolist()
        masks = forest.masks
        for index, region in enumerate(chosen):
            mask = np.zeros(labels.shape, dtype=bool)
            window, (top, left) = tree.window(region)
            mask[top : top + window.shape[0], left : left + window.shape[1]] = window
            assert np.array_equal(masks[index], mask)
            above = [other for other in range(count) if other != index and (masks[other] >= masks[index]).all()]
            assert np.flatnonzero(forest.ancestor[:, index]).tolist() == above
            nearest = min(above, key=lambda other: masks[other].sum(), default=-1)
            assert forest.parent[index] == nearest


def test_the_same_picture_gives_the_same_tree() -> None:
    image, labels, features = example(3)
    trees = [grow_tree(image, labels.copy(), features.copy(), edge_weight=0.05) for _ in range(2)]
    for name in ("rank", "start", "stop", "parent", "areas", "boxes", "persistence", "cohesion"):
        first, second = (getattr(tree, name) for tree in trees)
        assert first.tobytes() == second.tobytes()


def test_scale_of_the_features_does_not_matter() -> None:
    image, labels, features = example(2)
    tree, other = (grow_tree(image, labels, features * scale, edge_weight=0.05) for scale in (1, np.float32(1024)))
    assert tree.parent.tolist() == other.parent.tolist()
    assert tree.persistence.tolist() == other.persistence.tolist()
