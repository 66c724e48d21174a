"""Overlays and contact sheets."""

from __future__ import annotations

import colorsys
import os
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from sohes.data import draw
from sohes.data.coco import read_coco
from sohes.data.draw import best_masks, forest_colours, grid, level_panels, named_levels, overlay
from sohes.data.images import load_image
from sohes.masks import MaskForest
from sohes.rle import encode_window

WIDTH, GAP, LINE = 240, 6, 22  # of a panel, between panels, of the captions


def forest() -> MaskForest:
    """Left half with two parts, one of which has a subpart; right half without parts."""
    masks = np.zeros((5, 240, 240), dtype=bool)
    masks[0, :, :120] = masks[1, :100, :100] = masks[2, 130:, :100] = masks[3, 20:60, 20:60] = masks[4, :, 120:] = True
    return MaskForest.from_masks(masks)


def panel(picture: np.ndarray, index: int) -> np.ndarray:
    x = GAP + index * (WIDTH + GAP)
    return picture[GAP + LINE : GAP + LINE + WIDTH, x : x + WIDTH]


def test_each_level_has_its_panel() -> None:
    image = np.full((240, 240, 3), 128, dtype=np.uint8)
    picture = overlay(image, forest())
    assert picture.shape == (GAP + LINE + WIDTH + GAP, GAP + 4 * (WIDTH + GAP), 3)
    assert np.array_equal(panel(picture, 0), image)
    coloured = [np.ptp(panel(picture, level + 1).astype(int), axis=2) > 40 for level in range(3)]
    samples = {"whole": (115, 110), "part": (80, 80), "subpart": (40, 40), "second whole": (100, 200)}
    seen = {name: [bool(level[place]) for level in coloured] for name, place in samples.items()}
    assert seen == {
        "whole": [True, False, False],
        "part": [True, True, False],
        "subpart": [True, True, True],
        "second whole": [True, False, False],
    }


def test_parts_keep_about_the_hue_of_their_whole() -> None:
    colours = forest_colours(forest()) / 255
    hue = np.array([colorsys.rgb_to_hls(*colour)[0] for colour in colours])
    apart = np.abs((hue[:, None] - hue[None, :] + 0.5) % 1 - 0.5)
    assert apart[0, [1, 2, 3]].max() < 0.12
    assert apart[0, 4] > 0.25
    assert len({tuple(colour) for colour in colours.round(3)}) == 5
    assert np.array_equal(forest_colours(forest()) / 255, colours)


def test_a_small_mask_stays_in_sight_whatever_the_order() -> None:
    """Two overlapping wholes, neither part of the other by the rule (the smaller is covered to 0.8)."""
    masks = np.zeros((2, 240, 240), dtype=bool)
    masks[0, 60:120, 52:112], masks[1, 20:220, 64:240] = True, True
    for order in ([0, 1], [1, 0]):
        picture = panel(overlay(np.full((240, 240, 3), 128, dtype=np.uint8), MaskForest.from_masks(masks[order])), 1)
        assert np.array_equal(picture[90, 90], picture[90, 58])
        assert not np.array_equal(picture[90, 90], picture[180, 180])


def nested(*sides: int) -> np.ndarray:
    """Squares of a picture of 240 px that share a corner, (M, 240, 240)."""
    rows, columns = np.mgrid[:240, :240]
    return np.stack([np.maximum(rows, columns) < side for side in sides])


def test_levels_of_a_deep_forest_are_chosen_by_score() -> None:
    """Of nested squares the best is the whole; the larger one is a group, and of those inside one at a time is best."""
    masks = np.concatenate([nested(200, 160, 120, 80, 50, 30, 20, 12), np.roll(nested(30), 205, axis=(1, 2))])
    masks = np.concatenate([masks, np.roll(nested(20, 14), 130, axis=(1, 2))])  # inside the second square only
    scores = np.array([0.5, 0.9, 0.8, 0.7, 0.4, 0.3, 0.2, 0.1, 0.6, 0.55, 0.65])
    deep = MaskForest.from_masks(masks, scores=scores)
    assert deep.depth.tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 0, 2, 3]
    named = named_levels(deep)
    assert named.scores.tolist() == pytest.approx([0.9, 0.8, 0.7, 0.65, 0.6])
    assert named.parent.tolist() == [-1, 0, 1, 0, -1]
    assert np.argwhere(named.ancestor).tolist() == [[0, 1], [0, 2], [0, 3], [1, 2]]
    image = np.full((240, 240, 3), 128, dtype=np.uint8)
    assert [caption for caption, _ in level_panels(image, deep)] == ["wholes: 2", "parts: 2", "subparts: 1"]
    shallow = deep.select([1, 2, 3, 8])
    assert named_levels(shallow) is shallow


def test_the_best_masks_nest_or_lie_apart() -> None:
    """Left half; its near copy; a band across both halves; a band of which a tenth lies outside; right half; a part."""
    masks = np.zeros((6, 240, 240), dtype=bool)
    masks[0, :, :120] = masks[1, :, :125] = masks[2, 100:140] = masks[3, 10:20, 25:125] = masks[4, :, 120:] = True
    masks[5, 50:60, 10:110] = True
    scores = np.array([0.9, 0.8, 0.7, 0.6, 0.5, 0.5])
    assert best_masks(MaskForest.from_masks(masks, scores=scores), 6).tolist() == [0, 3, 4, 5]
    assert best_masks(MaskForest.from_masks(masks, scores=scores), 2).tolist() == [0, 3]
    assert best_masks(MaskForest.from_masks(masks[[5, 0, 1]]), 3).tolist() == [2, 0], "of equals the largest"
    assert best_masks(MaskForest.from_masks(masks[:0]), 3).tolist() == []


def test_an_empty_forest_and_a_tiny_picture() -> None:
    picture = overlay(np.zeros((1, 5, 3), dtype=np.uint8), MaskForest.from_masks(np.zeros((0, 1, 5), dtype=bool)))
    assert picture.shape[2] == 3
    with pytest.raises(ValueError, match="masks are"):
        overlay(np.zeros((4, 5, 3), dtype=np.uint8), MaskForest.from_masks(np.zeros((0, 5, 4), dtype=bool)))


def test_a_large_picture_is_scaled_down_with_its_masks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every 4 x 4 block of a picture of 2000 px is alike, so each panel is that of the small picture."""
    rng = np.random.default_rng(0)
    small = np.zeros((12, 300, 500), dtype=bool)
    for mask in small:
        top, left, height, width = rng.integers((0, 0, 10, 10), (200, 400, 100, 100))
        mask[top : top + height, left : left + width] = rng.random((height, width)) < 0.9
    image = rng.integers(0, 256, (300, 500, 3), dtype=np.uint8)
    large = [np.repeat(np.repeat(array, 4, axis), 4, axis + 1) for array, axis in ((image, 0), (small, 1))]
    forest = MaskForest.from_masks(small)
    many = MaskForest.from_masks(large[1])
    assert overlay(large[0], many).shape[1] == GAP + 4 * (1024 + GAP)
    monkeypatch.setattr(draw, "PANEL_PX", 500)
    assert np.array_equal(overlay(large[0], many), overlay(image, forest))


def test_many_masks_of_a_large_photograph_need_little_memory() -> None:
    """200 masks of 6 megapixels are 1.2 GB as arrays."""
    size_hw, rng = (2000, 3000), np.random.default_rng(0)
    disc = np.hypot(*np.ogrid[-1:1:300j, -1:1:300j]) <= 1
    corners = rng.integers(0, 1700, (200, 2)).tolist()
    rles = [encode_window(disc, (top, left), size_hw) for top, left in corners]
    forest = MaskForest.from_rles(rles, size_hw)
    image = np.zeros((*size_hw, 3), dtype=np.uint8)
    overlay(image[:100, :100], MaskForest.from_masks(np.ones((1, 100, 100), dtype=bool)))  # compiles
    tracemalloc.start()
    picture = overlay(image, forest)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert picture.shape[1] > 4000
    assert peak < 150e6


def test_grid_places_pictures_row_by_row() -> None:
    pictures = [np.full((200, 300, 3), value, dtype=np.uint8) for value in (10, 60, 110)]
    sheet = grid(pictures, ["", "", ""], columns=2)
    assert sheet.shape == (2 * 206 + 6, 2 * 306 + 6, 3)
    assert [int(sheet[y, x, 0]) for y, x in ((100, 100), (100, 400), (300, 100), (300, 400))] == [10, 60, 110, 255]
    captioned = grid(pictures, ["a long caption " * 20, "b", ""], columns=2)
    assert captioned.shape[0] == sheet.shape[0] + 2 * LINE
    strip = captioned[6 : 6 + LINE]
    assert strip[:, 6:306].min() < 128
    assert strip[:, 306:312].min() == 255, "a caption must not run into the next column"
    flat = [*pictures, np.full((100, 300, 3), 90, dtype=np.uint8)]
    assert grid(flat[2:], ["", ""], columns=1).shape[0] == 6 + 206 + 106, "a row is as high as its pictures"
    with pytest.raises(ValueError, match="3 pictures, 1 captions"):
        grid(pictures, ["a"], columns=2)


@pytest.mark.skipif("SOHES_ASSETS" not in os.environ, reason="SOHES_ASSETS names no folder of real images")
def test_real_parts_are_read_and_drawn() -> None:
    folder = Path(os.environ["SOHES_ASSETS"]) / "data" / "pascal_part"
    images = read_coco(folder / "instances.json")
    assert len(images) == 18
    assert sum(int((images.forest(item.id).parent < 0).sum()) for item in images.items) == 53  # as its README counts
    item = images.items[3]
    picture = overlay(load_image(folder / "images" / item.path.name), images.forest(item.id))
    assert picture.shape[1] > 4 * item.width
