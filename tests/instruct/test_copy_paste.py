"""Copy-paste: what is pasted, what it covers, and what remains; worked out by hand and pixel by pixel."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from sohes.data.coco import ImageItem
from sohes.data.views import View
from sohes.instruct.copy_paste import blend, draw_entities, paste
from sohes.instruct.settings import SampleSettings
from sohes.instruct.targets import ViewedLabels, surviving_targets
from sohes.masks import coverage_ancestors, pairwise_coverage
from sohes.rle import MaskRuns, encode_masks
from tests.instruct.boxes import boxes

SETTINGS = SampleSettings(crop_px=20, min_area_px=4, min_area_left=0.25)


def viewed(masks: np.ndarray, scores: list[float] | None = None) -> ViewedLabels:
    """Labels (M, H, W) of an image that is seen in full, related by the coverage rule."""
    size_hw = (masks.shape[1], masks.shape[2])
    rles = encode_masks(masks)
    runs, ancestor = MaskRuns.of_rles(rles, size_hw), coverage_ancestors(pairwise_coverage(rles), 0.9)
    areas = masks.sum((1, 2)).astype(float)
    return ViewedLabels(
        item=ImageItem(1, Path("none.png"), *size_hw),
        view=View(0, 0, size_hw[1], size_hw[0], size_hw, False),
        scores=np.asarray(scores or np.ones(len(masks)), np.float32),
        masks=runs,
        areas_before=areas,
        ancestor=ancestor,
        kept=surviving_targets(runs, areas, ancestor, SETTINGS),
    )


def painted(labels: ViewedLabels) -> np.ndarray:
    """Its targets, (K, 20, 20)."""
    canvas = np.zeros((len(labels.kept), 20, 20), dtype=bool)
    labels.masks.paint(labels.kept, canvas)
    return canvas


def test_an_entity_comes_with_its_parts_and_hides_what_is_below() -> None:
    above = viewed(boxes((5, 5, 15, 15), (5, 5, 10, 10), (0, 0, 20, 20)))  # the last is too large to be pasted
    below = viewed(boxes((0, 0, 20, 20), (4, 4, 16, 16), (6, 6, 9, 9), (16, 0, 20, 20)))
    for seed in range(20):
        pasted = paste(below, above, SETTINGS, np.random.default_rng(seed))
        assert pasted
        left, added, region = pasted
        if region.sum() == 100:  # the square, not its part alone
            break
    square = boxes((5, 5, 15, 15))[0]
    assert np.array_equal(region, square)
    assert added.kept.tolist() == [0, 1]
    assert np.array_equal(painted(added), boxes((5, 5, 15, 15), (5, 5, 10, 10)))
    # of the square with 144 px 44 are left, more than a quarter; the one in it is hidden
    assert left.kept.tolist() == [0, 1, 3]
    assert np.array_equal(painted(left), boxes((0, 0, 20, 20), (4, 4, 16, 16), (16, 0, 20, 20)) & ~square)


def crowd(rng: np.random.Generator) -> np.ndarray:
    """Rectangles (M, h, w) bool in a view of some size, cut off by it."""
    height, width = rng.integers(12, 21, 2)
    corners = rng.integers(0, 20, (25, 2, 2))
    masks = boxes(*[(*pair.min(0), *(pair.max(0) + 1)) for pair in corners])[:, :height, :width]
    return masks[masks.any((1, 2))]


def test_pasting_pixel_by_pixel() -> None:
    """Views of several sizes with crowds of targets, cut and clipped in full; in a few pairs nothing fits."""
    done = 0
    for seed in range(30):
        rng = np.random.default_rng(seed)
        crowds = crowd(rng), crowd(rng)
        below, above = (viewed(masks, rng.random(len(masks)).tolist()) for masks in crowds)
        if pasted := paste(below, above, SETTINGS, rng):
            left, added, region = pasted
            _, height, width = crowds[0].shape
            assert 0 < region.sum() <= height * width / 3
            assert not region[height:].any()
            assert not region[:, width:].any()
            assert set(added.kept) <= set(above.kept)
            for layer, before, masks, seen in ((left, below, crowds[0], ~region), (added, above, crowds[1], region)):
                full = np.zeros((len(masks), 20, 20), dtype=bool)
                full[:, : masks.shape[1], : masks.shape[2]] = masks
                assert np.array_equal(painted(layer), full[layer.kept] & seen)
                areas = (full & seen).sum((1, 2))
                large = (areas >= 4) & (areas >= 0.25 * full.sum((1, 2)))
                assert large[layer.kept].all()
                if layer is left:  # what went is too small, or like a part of it that is still there
                    gone = np.setdiff1d(before.kept, left.kept)
                    assert (~large[gone] | before.ancestor[np.ix_(gone, left.kept)].any(1)).all()
            done += 1
    assert done > 25


def test_what_is_pasted_is_among_the_best_that_fit() -> None:
    """30 rows of 20 px in the order of their scores, and one square that is too large and scores highest."""
    masks = np.concatenate([np.eye(30, dtype=bool)[:, :, None].repeat(20, 2), np.ones((1, 30, 20), bool)])
    above = viewed(masks, [*np.linspace(0.9, 0.1, 30), 1.0])
    drawn = [draw_entities(above, 60, np.random.default_rng(seed)).tolist() for seed in range(200)]
    assert {len(indices) for indices in drawn} == {1, 2, 3}  # four would have 80 px
    assert {index for indices in drawn for index in indices} == set(range(20))
    assert draw_entities(above, 10, np.random.default_rng(0)).tolist() == []
    whole = viewed(boxes((0, 0, 20, 20)))
    assert paste(whole, whole, SETTINGS, np.random.default_rng(0)) is None


def test_outlines_are_soft_and_the_rest_is_as_it_was() -> None:
    """A white half-plane on black: half of the white at the edge, all or nothing 4 px from it."""
    below, above = np.zeros((16, 20, 3), np.uint8), np.full((20, 12, 3), 255, np.uint8)
    region = np.zeros((24, 24), dtype=bool)
    region[:, 10:] = True  # beyond column 12 the last one of the view above goes on
    row = blend(below, above, region)[8, :, 0].tolist()
    assert blend(below, above, region).shape == (16, 20, 3)
    assert row[:6] == [0] * 6
    assert row[14:] == [255] * 6
    assert 60 < row[9] < 127 < row[10] < 195
    assert row[9] + row[10] == 255
    assert np.array_equal(blend(below, above, np.zeros((24, 24), bool)), below)
