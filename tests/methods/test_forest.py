"""Label maps of patches as a forest: components, nesting, sizes that are no multiple of a patch."""

from __future__ import annotations

import numpy as np

from sohes.masks import MaskForest
from sohes.methods.forest import nested_forest, resized

PARTS = np.array(
    [
        [10, 10, -1, 12],
        [11, 11, -1, 12],
        [-1, -1, -1, -1],
        [10, -1, 10, 11],
    ]
)
OBJECTS = np.where(PARTS < 0, -1, np.where(PARTS == 12, 3, 2))
FOREGROUND = np.where(PARTS < 0, -1, 1)
CONFIDENCE = np.where(PARTS == 12, 0.5, 0.75).astype(np.float32)
LEVELS = {"foreground": FOREGROUND, "object": OBJECTS, "part": PARTS}


def described(forest: MaskForest) -> list[tuple[str, int, int, int]]:
    """Level, category, area, and the area of what it is part of."""
    areas = [*forest.areas.tolist(), 0]  # the last for a root
    rows = zip(forest.attributes["source"], forest.attributes["category_id"], forest.areas, forest.parent, strict=True)
    return sorted((str(source), int(category), int(area), areas[parent]) for source, category, area, parent in rows)


def test_components_of_every_level_nested() -> None:
    forest = nested_forest(LEVELS, CONFIDENCE, (8, 8))
    assert described(forest) == [
        ("foreground", 1, 4, 0),  # a single patch of part 10 is a whole foreground
        ("foreground", 1, 8, 0),
        ("foreground", 1, 8, 0),
        ("foreground", 1, 16, 0),
        ("part", 10, 4, 8),
        ("part", 10, 8, 16),
        ("part", 11, 4, 8),
        ("part", 11, 8, 16),
    ]
    assert forest.scores.tolist() == sorted(forest.scores.tolist(), reverse=True)
    assert set(forest.scores.tolist()) == {0.5, 0.75}


def test_confidence_of_each_level() -> None:
    """Each level's masks have their own; where they are one, the coarser one's counts."""
    of_levels = np.stack([np.full((4, 4), sure, np.float32) for sure in (0.25, 0.5, 1.0)])
    forest = nested_forest(LEVELS, of_levels, (8, 8))
    by_level = {name: set(forest.scores[forest.attributes["source"] == name]) for name in ("foreground", "part")}
    assert by_level == {"foreground": {0.25}, "part": {1.0}}


def test_nesting_holds_on_drawn_maps_of_any_size() -> None:
    random = np.random.default_rng(0)
    for size_hw in ((37, 53), (12, 12), (5, 9), (3, 200), (1, 1)):
        parts = random.integers(-2, 6, (12, 12))
        parts = np.where(parts < 0, -1, parts)
        objects = np.where(parts < 0, -1, 100 + parts // 2)
        levels = {"foreground": np.where(parts < 0, -1, 200), "object": objects, "part": parts}
        forest = nested_forest(levels, np.ones((12, 12), np.float32), size_hw)
        assert forest.size_hw == size_hw
        assert (forest.areas > 0).all()
        masks = forest.masks
        for index, parent in enumerate(forest.parent):
            if parent >= 0:
                assert not (masks[index] & ~masks[parent]).any()
                assert masks[index].sum() < masks[parent].sum()
        covered = masks.any(axis=0) if len(forest) else np.zeros(size_hw, bool)
        np.testing.assert_array_equal(covered, resized(parts, size_hw) >= 0)
        finest = resized(parts, size_hw)
        for mask, source, category in zip(
            masks, forest.attributes["source"], forest.attributes["category_id"], strict=True
        ):
            if source == "part":
                assert (finest[mask] == category).all()


def test_nothing_is_an_empty_forest() -> None:
    nothing = np.full((4, 4), -1)
    forest = nested_forest(dict.fromkeys(LEVELS, nothing), CONFIDENCE, (8, 6))
    assert len(forest) == 0
    assert forest.size_hw == (8, 6)


def test_at_most_a_thousand_masks_the_best_of_them() -> None:
    side = 50
    parts = np.indices((side, side)).sum(0) % 2  # 2,500 components of one patch
    confidence = np.random.default_rng(1).random((side, side)).astype(np.float32)
    forest = nested_forest({"foreground": np.full((side, side), 9), "part": parts}, confidence, (side, side))
    assert len(forest) == 1000
    assert forest.scores.min() >= np.sort(confidence.ravel())[-1000]
