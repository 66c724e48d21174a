"""Phase 1 on pictures whose colours are the features, so that what must be found is known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from sohes.backbones.timm_folder import BackboneFolder
from sohes.backbones.timm_vit import DenseViT, load_backbone
from sohes.backbones.weights import resolve_weights
from sohes.data.images import load_image
from sohes.errors import ConfigError, DataError
from sohes.explore.explorer import Explorer, Found
from sohes.explore.regions import Rectangle, find_regions
from sohes.explore.settings import PAPER, ExploreSettings
from sohes.masks import MaskForest
from sohes.rle import BoolArray, encode_masks
from tests.backbones.conftest import VARIANTS, tiny
from tests.explore.colours import Colours

RED, YELLOW, GREEN, BLUE = (255, 0, 0), (255, 255, 0), (0, 255, 0), (0, 0, 255)
Picture = NDArray[np.uint8]


def explorer(**settings: Any) -> Explorer:
    defaults = {"size_global": 192, "theta_merge": (0.9, 0.6), "max_crops": 0, "refiner": "none"}
    return Explorer(Colours(), ExploreSettings(**{**PAPER, **defaults, **settings}))


def picture(height: int = 192, width: int | None = None, ground: tuple[int, int, int] = BLUE) -> Picture:
    return np.full((height, width or height, 3), ground, np.uint8)


def paint(image: Picture, colour: tuple[int, int, int], top: int, left: int, height: int, width: int) -> BoolArray:
    """Paint a rectangle and return its mask."""
    window = np.s_[top : top + height, left : left + width]
    image[window] = colour
    mask = np.zeros(image.shape[:2], dtype=bool)
    mask[window] = True
    return mask


def overlap(mask: BoolArray, other: BoolArray) -> float:
    return float((mask & other).sum() / (mask | other).sum())


def places(forest: MaskForest, expected: dict[str, BoolArray], iou: float) -> dict[str, int]:
    """Where each expected mask is in the forest; fails unless each is there."""
    masks = forest.masks
    found = {}
    for name, mask in expected.items():
        ious = [overlap(mask, other) for other in masks]
        assert max(ious, default=0) >= iou, (name, ious)
        found[name] = int(np.argmax(ious))
    return found


@pytest.mark.parametrize(("refiner", "iou"), [("none", 0.97), ("guided", 0.93)])
def test_known_masks_and_their_tree(refiner: str, iou: float) -> None:
    image = picture()
    expected = {"red": paint(image, RED, 32, 24, 64, 40), "yellow": paint(image, YELLOW, 32, 64, 64, 40)}
    expected["whole"] = expected["red"] | expected["yellow"]  # cosine 0.71: apart at 0.9, joined at 0.6
    expected["green"] = paint(image, GREEN, 128, 120, 48, 48)
    expected["ground"] = (image == BLUE).all(-1)
    forest = explorer(refiner=refiner)(image)
    # a hole is filled, and with its holes the ground would be everything, which is dropped as too large
    del expected["ground"]
    found = places(forest, expected, iou)
    assert len(forest) == len(expected)
    assert forest.size_hw == (192, 192)
    assert forest.parent[found["red"]] == forest.parent[found["yellow"]] == found["whole"]
    assert forest.parent[found["whole"]] == forest.parent[found["green"]] == -1
    first, last = forest.attributes["level_first"], forest.attributes["level_last"]
    assert (first[found["red"]], last[found["red"]]) == (0, 0)
    assert (first[found["whole"]], last[found["whole"]]) == (1, 1)
    assert (first[found["green"]], last[found["green"]]) == (0, 1)
    assert set(forest.attributes["source"]) == {"global"}
    cohesion = forest.attributes["cohesion"]
    assert cohesion[found["green"]] == pytest.approx(1)
    assert cohesion[found["whole"]] == pytest.approx(np.cos(np.pi / 8), abs=1e-3)  # two directions, 45° apart, halves


def small_object() -> tuple[Picture, BoolArray]:
    """256 px wide; 16 x 24 px of red, which the global grid of 16 px sees as a patch and a half."""
    image = picture(256)
    return image, paint(image, RED, 64, 64, 16, 24)


def test_the_local_step_finds_what_the_global_one_misses() -> None:
    image, small = small_object()
    settings: dict[str, Any] = {"size_global": 128, "size_local": 128, "min_patches": 4}
    without = explorer(**settings, max_crops=0)(image)
    assert max([overlap(small, mask) for mask in without.masks], default=0) < 0.1
    with_crops = explorer(**settings, max_crops=4)
    forest = with_crops(image)
    place = places(forest, {"small": small}, 0.9)["small"]
    assert forest.attributes["source"][place] == "local"
    # one view of the whole image, then one crop for the full patch, one for the half
    assert with_crops.backbone.seen == [(1, 3, 128, 128)] * 3


def test_small_regions_without_a_crop_stay_if_they_have_enough_patches() -> None:
    image = picture(512)
    corners = ((64, 64), (64, 352), (352, 64), (352, 352))
    squares = {str(index): paint(image, RED, *corner, 32, 32) for index, corner in enumerate(corners)}
    options: dict[str, Any] = {"size_global": 256, "size_local": 128}  # patches of 16 px: 4 of each square
    for crops, min_patches, expected in ((64, 4, 4), (2, 4, 4), (2, 5, 2), (0, 4, 4), (0, 5, 0)):
        found = explorer(**options, max_crops=crops, min_patches=min_patches)
        forest = found(image)
        assert len(found.backbone.seen) == 1 + min(crops, 4)
        assert len(forest) == expected
        assert (forest.attributes["source"] == "local").sum() == min(crops, 4)
        if expected == 4:
            places(forest, squares, 0.9)


def test_a_local_mask_replaces_the_global_one_it_sharpens() -> None:
    image, _ = small_object()
    settings: dict[str, Any] = {"size_global": 128, "size_local": 128, "min_patches": 1}
    coarse = paint(picture(256), RED, 64, 64, 16, 16)  # the patch that is red all over
    for crops, expected in ((0, True), (4, False)):
        forest = explorer(**settings, max_crops=crops)(image)
        is_global = forest.attributes["source"] == "global"
        assert any(overlap(coarse, mask) > 0.5 for mask in forest.masks[is_global]) == expected


def test_what_is_large_in_close_up_is_not_a_small_entity() -> None:
    image, small = small_object()  # 384 of 65,536 px are 0.59 %; the patch that finds it is 0.39 %
    settings: dict[str, Any] = {"size_global": 128, "size_local": 128, "max_crops": 4}
    places(explorer(**settings, theta_small=0.006)(image), {"small": small}, 0.9)
    forest = explorer(**settings, theta_small=0.0055)(image)
    assert max([overlap(small, mask) for mask in forest.masks], default=0) < 0.1


def square(side: int = 64, **settings: Any) -> MaskForest:
    """What is found of a green square in the middle of 192 x 192 px of blue."""
    image = picture()
    paint(image, GREEN, 64, 64, side, side)
    return explorer(**settings)(image)


def test_filter_by_area() -> None:
    (area,) = square().areas
    assert len(square(min_area_px=int(area))) == 1
    assert len(square(min_area_px=int(area) + 1)) == 0
    assert len(square(max_area_frac=area / 192**2)) == 1
    assert len(square(max_area_frac=(area - 0.5) / 192**2)) == 0


def test_filter_by_number_of_patches() -> None:
    assert len(square(24, min_patches=9)) == 1
    assert len(square(24, min_patches=10)) == 0


def test_filter_by_what_refinement_changed() -> None:
    (kept,) = square(refiner="guided").attributes["refine_iou"]
    assert 0.5 <= kept < 1
    assert len(square(refiner="guided", refine_iou=float(np.nextafter(kept, np.float32(0))))) == 1
    assert len(square(refiner="guided", refine_iou=float(np.nextafter(kept, np.float32(1))))) == 0
    unchanged = square(refine_iou=1.0)  # still enough
    assert unchanged.attributes["refine_iou"].tolist() == [1]


def test_holes_are_filled_and_crumbs_removed() -> None:
    image = picture()
    ring = paint(image, RED, 48, 48, 96, 96)
    paint(image, BLUE, 80, 80, 32, 32)
    places(explorer()(image), {"filled": ring}, 0.97)


def test_local_masks_must_be_larger_in_a_large_image() -> None:
    """At least a hundred-thousandth of it."""
    features = np.zeros((3, 3, 2), np.float32)
    features[..., 0], features[1, 1] = 1, (0, 1)
    regions = find_regions(features, (0.9,))
    small = regions.sizes.tolist().index(1)

    def areas(width: int, source: str) -> list[int]:
        image = np.broadcast_to(np.uint8(0), (10_000, width, 3))
        found = explorer()._masks(image, regions, Rectangle(0, 0, 60, 60), [small], source=source)
        return [mask.area for mask in found]

    (area,) = areas(100, "local")
    assert areas(10 * area, "local") == [area]
    assert areas(10 * area + 1, "local") == []
    assert areas(10 * area + 1, "global") == [area]


def test_duplicates_go_and_the_better_stays() -> None:
    image = picture()
    green = paint(image, GREEN, 64, 64, 64, 64)
    paint(image, (0, 255, 140), 64, 64, 8, 64)  # a strip that joins the square at 0.6: IoU 7/8 with what is without it
    levels = explorer(nms_iou=0.9)(image)
    assert len(levels) == 3  # square without strip, strip, both
    fewer = explorer(nms_iou=0.8)(image)
    assert len(fewer) == 2
    pure = green & (image == GREEN).all(-1)
    places(fewer, {"more cohesive": pure}, 0.97)


def candidates(seed: int, count: int) -> tuple[list[Found], BoolArray]:
    """Rectangles of all size classes, many of them near duplicates, with many ties, and their masks."""
    rng = np.random.default_rng(seed)
    masks = np.zeros((count, 150, 160), dtype=bool)
    for index in range(count):
        if index and rng.random() < 0.6:
            masks[index] = np.roll(masks[rng.integers(index)], rng.integers(-2, 3), axis=rng.integers(2))
            continue
        height, width = rng.choice([8, 32, 64, 96, 144], 2)
        top, left = rng.integers(0, 151 - height), rng.integers(0, 161 - width)
        masks[index, top : top + height, left : left + width] = True
    found = [
        Found(
            rle=rle,
            area=int(mask.sum()),
            source="global",
            level_first=0,
            level_last=0,
            cohesion=float(rng.choice([0.5, 0.75])),
            refine_iou=float(rng.choice([0.75, 1.0])),
        )
        for rle, mask in zip(encode_masks(masks), masks, strict=True)
    ]
    return found, masks


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    count=st.integers(0, 30),
    nms_iou=st.sampled_from([0.3, 0.8, 0.9]),
    max_masks=st.sampled_from([1, 5, 300]),
)
def test_suppression_and_cap_by_their_rules(seed: int, count: int, nms_iou: float, max_masks: int) -> None:
    found, masks = candidates(seed, count)
    # best first: sorts are stable, so from the last criterion to the first
    order = sorted(range(count), key=lambda i: found[i].area, reverse=True)
    order = sorted(order, key=lambda i: found[i].cohesion, reverse=True)
    order = sorted(order, key=lambda i: found[i].refine_iou, reverse=True)
    kept: list[int] = []
    for index in order:
        if all(overlap(masks[index], masks[better]) <= nms_iou for better in kept):
            kept.append(index)
    if len(kept) > max_masks:
        classes = ["s" if found[i].area < 32**2 else "m" if found[i].area < 96**2 else "l" for i in kept]
        chosen = []
        for place, index in enumerate(kept):
            room = classes.count(classes[place]) * max_masks // len(kept)
            if classes[:place].count(classes[place]) < room:
                chosen.append(index)
        kept = chosen
    assert explorer(nms_iou=nms_iou, max_masks=max_masks)._without_duplicates(found) == kept


def test_the_cap_is_shared_out_among_the_sizes() -> None:
    image = picture(480)
    for index in range(12):  # 24 x 24 = 576 px: small
        paint(image, GREEN, 16 + 80 * (index // 6), 16 + 72 * (index % 6), 24, 24)
    for index in range(6):  # 48 x 48 = 2,304 px: medium
        paint(image, RED, 176 + 96 * (index // 3), 16 + 96 * (index % 3), 48, 48)
    settings: dict[str, Any] = {"size_global": 480, "theta_merge": (0.9,)}
    everything = explorer(**settings)(image)
    assert len(everything) == 18
    capped = explorer(**settings, max_masks=9)(image)
    assert sorted(np.where(capped.areas < 32**2, "s", "m")) == ["m"] * 3 + ["s"] * 6


def test_centred_features_tell_apart_what_shares_a_colour_cast() -> None:
    image = picture(ground=(250, 200, 200))  # and the mean colour is that of neither
    paint(image, (200, 250, 200), 48, 48, 96, 96)
    assert len(explorer(center=False)(image)) == 0  # cosine 0.99: one region, the whole image, too large
    assert len(explorer(center=True)(image)) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"theta_merge": ()}, r"theta_merge must be non-empty list of float in \[-1, 1.01\] or null, given \(\)"),
        ({"theta_merge": (0.5, 2.0)}, r"theta_merge must be .*, given \(0.5, 2.0\)"),
        ({"region_counts": (4, 0)}, "region_counts must be non-empty list of int of at least 1"),
        ({"region_counts": ()}, "region_counts must be non-empty list of int of at least 1"),
        ({"algorithm": "superpixel"}, "did you mean 'superpixels'"),
        ({"refiner": "sam"}, "unknown refiner 'sam'. Known: cascadepsp, guided"),
        ({"theta_cover": 0.5}, r"theta_cover must be float in \(0.5, 1\], given 0.5"),
    ],
)
def test_settings_that_make_no_sense(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ExploreSettings(**change)


def random_tree(seed: int) -> tuple[list[tuple[int, int, int, int]], list[int]]:
    """Rectangles (top, left, bottom, right) of patches on a grid of 40 x 48, nested or apart, and each one's parent.

    Between two borders are two patches or more.
    """
    rng = np.random.default_rng(seed)
    boxes, parents, pending = [(0, 0, 40, 48)], [-1], [0]
    while pending:
        parent = pending.pop(0)
        top, left, bottom, right = boxes[parent]
        top, left, bottom, right = top + 2, left + 2, bottom - 2, right - 2
        parts = rng.integers(1, 4)  # side by side along the longer side
        for part in range(parts):
            if right - left >= bottom - top:
                first, last = left + (right - left) * part // parts, left + (right - left) * (part + 1) // parts - 2
                box = (top, first, bottom - rng.integers(0, 3), last)
            else:
                first, last = top + (bottom - top) * part // parts, top + (bottom - top) * (part + 1) // parts - 2
                box = (first, left, last, right - rng.integers(0, 3))
            if min(box[2] - box[0], box[3] - box[1]) >= 3 and (parent == 0 or rng.random() < 0.8):
                boxes.append(tuple(map(int, box)))
                parents.append(parent - 1)  # the ground, number 0, is no mask
                pending.append(len(boxes) - 1)
    return boxes[1:], parents[1:]


def relation(parents: list[int]) -> BoolArray:
    """Ancestor matrix of a tree."""
    ancestor = np.zeros((len(parents), len(parents)), dtype=bool)
    for index, above in enumerate(parents):
        while above >= 0:
            ancestor[above, index] = True
            above = parents[above]
    return ancestor


@pytest.mark.parametrize("seed", range(8))
def test_a_tree_of_flat_colours_comes_back_exactly(seed: int) -> None:
    boxes, parents = random_tree(seed)
    assert len(boxes) > 3
    image = picture(320, 384)
    depth = relation(parents).sum(0)
    masks = {}
    for index, (top, left, bottom, right) in enumerate(boxes):
        colour = (RED, GREEN, BLUE)[depth[index] % 3]
        masks[str(index)] = paint(image, colour, 8 * top, 8 * left, 8 * (bottom - top), 8 * (right - left))
    # nothing is too small, and filling the holes may change a mask by any amount
    no_filters = {"min_patches": 1, "min_area_px": 1, "refine_iou": 0.0}
    forest = explorer(size_global=384, keep_aspect=True, theta_merge=(0.999,), **no_filters)(image)
    found = [*places(forest, masks, 0.95).values()]
    assert sorted(found) == [*range(len(boxes))] == [*range(len(forest))]
    assert np.array_equal(forest.ancestor[np.ix_(found, found)], relation(parents))
    assert [found.index(above) if above >= 0 else -1 for above in forest.parent[found]] == parents
    np.testing.assert_allclose(forest.attributes["cohesion"], 1, rtol=1e-6)
    # and from the masks themselves, in any order
    order = np.random.default_rng(seed).permutation(len(boxes))
    again = MaskForest.from_masks(np.stack([masks[str(index)] for index in order]))
    assert np.array_equal(again.ancestor, relation(parents)[np.ix_(order, order)])
    assert [order[above] if above >= 0 else -1 for above in again.parent] == [parents[index] for index in order]


def clouds(seed: int, height: int, width: int) -> Picture:
    """Random colours that change smoothly."""
    coarse = np.random.default_rng(seed).integers(0, 256, (12, 12, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


MANY: dict[str, Any] = {
    "max_crops": 8,
    "size_local": 64,
    "theta_small": 0.05,
    "min_side_px": 16,
    "center": True,
    "theta_merge": (0.6, 0.3, 0.1),
}


@settings(max_examples=8, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    refiner=st.sampled_from(["none", "guided"]),
    theta_cover=st.sampled_from([0.6, 0.9, 1.0]),
)
def test_what_holds_for_any_picture(seed: int, refiner: str, theta_cover: float) -> None:
    height, width = np.random.default_rng(seed).integers(40, 160, 2).tolist()
    found = explorer(**MANY, refiner=refiner, theta_cover=theta_cover)
    options, forest = found.settings, found(clouds(seed, height, width))
    masks, areas = forest.masks, forest.areas
    assert forest.size_hw == (height, width)
    assert masks.shape == (len(forest), height, width)
    assert ((options.min_area_px <= areas) & (areas <= options.max_area_frac * height * width)).all()
    assert (forest.attributes["refine_iou"] >= options.refine_iou).all()
    assert (forest.attributes["level_first"] <= forest.attributes["level_last"]).all()
    for first in range(len(forest)):
        for second in range(first):
            assert overlap(masks[first], masks[second]) <= options.nms_iou
    above, below = np.nonzero(forest.ancestor)
    assert (areas[above] > areas[below]).all()  # hence no cycle
    assert not ((forest.ancestor.astype(int) @ forest.ancestor > 0) & ~forest.ancestor).any()  # closed
    assert np.array_equal(forest.ancestor, MaskForest.from_masks(masks, theta_cover=theta_cover).ancestor)


def test_the_same_picture_gives_the_same_bytes() -> None:
    image = clouds(3, 128, 160)
    first, second = (explorer(**MANY, refiner="guided")(image) for _ in range(2))
    assert len(first) > 5
    assert "local" in first.attributes["source"]
    assert first.rles == second.rles
    for name, column in {**first.attributes, "parent": first.parent, "ancestor": first.ancestor}.items():
        other = {**second.attributes, "parent": second.parent, "ancestor": second.ancestor}[name]
        assert column.tolist() == other.tolist()
        assert column.dtype == other.dtype


@pytest.mark.parametrize("algorithm", ["sohes", "superpixels"])
def test_exploration_step_by_step(algorithm: str) -> None:
    image = clouds(1, 100, 130)
    found = explorer(**MANY, algorithm=algorithm)
    exploration = found.explore(image)
    views, rounds = next(exploration), 0
    forest = None
    while forest is None:
        rounds += 1
        assert {view.dtype for view in views} == {np.dtype(np.uint8)}
        (size,) = {view.shape for view in views}
        assert size == ((192, 192, 3), (64, 64, 3))[rounds - 1]
        maps = found.features(views)
        assert {(each.shape, each.dtype.name) for each in maps} == {((size[0] // 8, size[1] // 8, 3), "float32")}
        try:
            views = exploration.send(maps)
        except StopIteration as end:
            forest = end.value
    assert rounds == (2 if algorithm == "sohes" else 1)
    expected = found(image)
    assert forest.rles == expected.rles
    assert forest.parent.tolist() == expected.parent.tolist()
    assert len(forest) > 3


def test_features_are_those_of_each_view() -> None:
    found = explorer()
    views = [clouds(seed, 24, 40) for seed in range(3)]
    for view, features in zip(views, found.features(views), strict=True):
        expected = view.reshape(3, 8, 5, 8, 3).mean((1, 3)) / 255
        np.testing.assert_allclose(features, expected, atol=1e-6)


@pytest.mark.parametrize(
    ("size_hw", "keep_aspect", "size", "expected"),
    [
        ((96, 192), False, 192, (192, 192)),
        ((96, 192), True, 192, (96, 192)),
        ((192, 96), True, 192, (192, 96)),
        ((100, 333), True, 192, (56, 192)),  # 57.7 px are nearer to 7 patches than to 8
        ((100, 333), False, 190, (192, 192)),
        ((4, 1000), True, 192, (8, 192)),  # one patch at least
        ((30, 20), True, 60, (64, 40)),  # 7.5 and 5 patches
    ],
)
def test_sizes_of_the_global_view(
    size_hw: tuple[int, int], keep_aspect: bool, size: int, expected: tuple[int, int]
) -> None:
    (view,) = next(explorer(keep_aspect=keep_aspect, size_global=size).explore(clouds(0, *size_hw)))
    assert view.shape == (*expected, 3)


def test_views_are_resized_by_lanczos() -> None:
    image = clouds(0, 50, 60)
    (view,) = next(explorer().explore(image))
    assert np.array_equal(view, np.asarray(Image.fromarray(image).resize((192, 192), Image.Resampling.LANCZOS)))


def test_sides_of_crops_are_whole_patches() -> None:
    image, _ = small_object()
    found = explorer(size_global=128, size_local=100, max_crops=4)
    found(image)
    assert set(found.backbone.seen[1:]) == {(1, 3, 96, 96)}


@pytest.mark.parametrize("keep_aspect", [False, True])
@pytest.mark.parametrize("size_hw", [(96, 192), (192, 96), (144, 192)])
def test_masks_are_where_they_belong_in_pictures_that_are_not_square(
    size_hw: tuple[int, int], keep_aspect: bool
) -> None:
    image = picture(*size_hw)
    expected = {"red": paint(image, RED, 24, 24, 48, 24), "green": paint(image, GREEN, 24, 48, 24, 24)}
    forest = explorer(keep_aspect=keep_aspect)(image)
    places(forest, expected, 0.9)
    assert len(forest) == 2


def test_a_small_object_in_a_picture_that_is_not_square() -> None:
    image = picture(160, 480)
    small = paint(image, RED, 40, 360, 24, 24)
    for keep_aspect in (False, True):
        options: dict[str, Any] = {"size_global": 160, "size_local": 128, "keep_aspect": keep_aspect}
        forest = explorer(**options, max_crops=4)(image)
        place = places(forest, {"small": small}, 0.9)["small"]
        assert forest.attributes["source"][place] == "local"


@pytest.mark.parametrize("refiner", ["none", "guided", "local_crf"])
@pytest.mark.parametrize("size_hw", [(1, 1), (1, 2), (3, 1), (4, 6)])
def test_pictures_smaller_than_a_patch(size_hw: tuple[int, int], refiner: str) -> None:
    image = picture(*size_hw)
    left = paint(image, RED, 0, 0, size_hw[0], size_hw[1] // 2)
    options: dict[str, Any] = {"min_area_px": 1, "max_area_frac": 1.0, "theta_merge": (0.5,), "max_crops": 4}
    forest = explorer(**options, refiner=refiner)(image)
    assert forest.size_hw == size_hw
    if refiner == "none":
        expected = [left, ~left] if left.any() else [np.ones(size_hw, dtype=bool)]
        assert {mask.tobytes() for mask in forest.masks} == {mask.tobytes() for mask in expected}


def test_a_single_patch() -> None:
    for max_area_frac, count in ((0.9, 0), (1.0, 1)):
        forest = explorer(size_global=8, min_patches=1, max_area_frac=max_area_frac)(picture(40, 60))
        assert len(forest) == count
        assert forest.masks.all()
        assert forest.parent.tolist() == [-1] * count
        assert forest.size_hw == (40, 60)


def test_a_picture_of_one_colour_has_no_masks() -> None:
    forest = explorer(max_crops=4)(picture())
    assert len(forest) == 0
    assert forest.masks.shape == (0, 192, 192)
    assert forest.attributes["source"].shape == (0,)


def test_without_calibration_an_image_gives_its_own_thresholds() -> None:
    image = clouds(3, 96, 128)
    open_ended = explorer(theta_merge=None, region_counts=(4, 12, 30), max_crops=2, theta_small=0.1)
    forest = open_ended(image)
    assert len(forest) > 4
    assert forest.rles == open_ended.calibrated([image])(image).rles
    assert open_ended.settings.theta_merge is None


@pytest.mark.parametrize(
    ("size_hw", "grid"),
    [
        ((321, 481), (43, 64)),  # 80 patches of 6 px, were they not too many
        ((200, 300), (33, 50)),
        ((40, 30), (32, 24)),
        ((3000, 4000), (48, 64)),
        ((2, 900), (1, 64)),
    ],
)
def test_with_nothing_set_the_view_suits_the_image(size_hw: tuple[int, int], grid: tuple[int, int]) -> None:
    found = Explorer(Colours())
    (view,) = next(found.explore(clouds(0, *size_hw)))
    assert view.shape == (8 * grid[0], 8 * grid[1], 3)


@pytest.mark.parametrize("variant", VARIANTS)
def test_any_vit_with_nothing_set(variant: str) -> None:
    found = Explorer(DenseViT(tiny(variant)))
    forest = found(clouds(5, 120, 160))
    assert len(forest) >= 20
    assert forest.areas.min() >= 100
    assert forest.depth.max() >= 1
    assert len(found(picture(120, 160))) == 0  # blank


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(
    ("settings", "step"), [({}, 0), ({"center": True}, 0), ({"algorithm": "superpixels"}, 0), ({"max_crops": 4}, 1)]
)
def test_features_that_are_not_finite(settings: dict[str, Any], step: int, bad: float) -> None:
    """Make the picture unusable, whether they are of the whole or of a crop."""
    image, _ = small_object()
    found = explorer(size_global=128, size_local=128, **settings)
    exploration = found.explore(image)
    views = next(exploration)
    for _ in range(step):
        views = exploration.send(found.features(views))
    maps = found.features(views)
    maps[-1][1, 2, 0] = bad
    with pytest.raises(DataError, match="features of the image hold NaN or infinite values"):
        exploration.send(maps)


def test_superpixels_instead_of_patches() -> None:
    image = picture(120, 160)
    expected = {"red": paint(image, RED, 11, 13, 50, 41), "green": paint(image, GREEN, 61, 13, 37, 41)}
    expected["both"] = expected["red"] | expected["green"]
    expected["ground"] = (image == BLUE).all(-1)
    options: dict[str, Any] = {"algorithm": "superpixels", "size_global": 160, "superpixel_sigma": 0.0}
    forest = explorer(**options)(image)
    found = places(forest, expected, 1)  # to the pixel
    assert len(forest) == 4  # the whole picture is too large
    assert [forest.parent[found[name]] for name in expected] == [found["both"]] * 2 + [-1, -1]
    assert (np.diff(forest.scores) <= 0).all()
    assert explorer(**options, max_masks=2)(image).rles == forest.rles[:2]
    assert explorer(**options, superpixel_scale=(50.0,))(image).rles  # one tree

    areas = np.sort(forest.areas)
    for bound, kept in ((areas[0], areas), (areas[0] + 1, areas[1:]), (10**6, [])):
        assert sorted(explorer(**options, min_area_px=int(bound))(image).areas) == list(kept)
    for bound, kept in ((areas[-1], areas), (areas[-1] - 0.5, areas[:-1])):
        assert sorted(explorer(**options, max_area_frac=bound / (120 * 160))(image).areas) == list(kept)


@pytest.mark.parametrize("feature", ["key", "token"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_any_vit_on_pictures_of_any_size(variant: str, feature: str) -> None:
    backbone = DenseViT(tiny(variant), feature=feature)
    patch = backbone.patch_size
    options: dict[str, Any] = {"algorithm": "sohes", "size_global": 100, "size_local": 50, "theta_merge": (0.3,)}
    for size_hw, keep_aspect in (((37, 101), False), ((37, 101), True), ((64, 48), True)):
        settings = ExploreSettings(**options, keep_aspect=keep_aspect, theta_small=0.5, max_crops=2)
        found = Explorer(backbone, settings)
        image = clouds(2, *size_hw)
        exploration = found.explore(image)
        views = next(exploration)
        sides = [100 * side / max(size_hw) if keep_aspect else 100 for side in size_hw]
        forest = None
        for grid in (tuple(round(side / patch) for side in sides), (round(50 / patch),) * 2):
            assert views
            maps = found.features(views)
            for view, features in zip(views, maps, strict=True):
                assert view.shape == (grid[0] * patch, grid[1] * patch, 3)
                assert features.shape == (*grid, backbone.embed_dim)
                pixels = torch.from_numpy(view.astype(np.float32) / 255).movedim(-1, 0)[None]
                np.testing.assert_allclose(features, backbone(pixels).map[0].movedim(0, -1), rtol=1e-3, atol=1e-4)
            try:
                views = exploration.send(maps)
            except StopIteration as end:
                forest = end.value
        assert isinstance(forest, MaskForest)
        assert forest.size_hw == size_hw


@pytest.mark.slow
@pytest.mark.assets
@pytest.mark.parametrize("weights", ["weights/dinov2_vits14.safetensors", "random:vit_small_patch16_224"])
def test_photographs_with_nothing_set(assets: Path, weights: str) -> None:
    source = weights if weights.startswith("random:") else str(assets / weights)
    model, provenance = resolve_weights(source)
    photographs = sorted((assets / "data" / "bsds500" / "images" / "val").iterdir())[:3]
    images = [load_image(path) for path in photographs]
    found = Explorer(DenseViT(BackboneFolder(model, {}, provenance))).calibrated(images)
    assert np.mean([len(found(image)) for image in images]) >= 20


def test_what_a_vit_of_random_weights_sees() -> None:
    image = picture(96)
    half = paint(image, GREEN, 0, 0, 96, 48)
    settings = ExploreSettings(algorithm="sohes", size_global=192, max_crops=0, theta_merge=(0.0,))
    forest = Explorer(DenseViT(tiny("patch 16"), feature="token"), settings)(image)
    places(forest, {"left": half, "right": ~half}, 0.9)


def test_what_a_resnet_of_random_weights_sees() -> None:
    image = picture(192)
    half = paint(image, GREEN, 0, 0, 192, 96)
    settings = ExploreSettings(algorithm="sohes", size_global=384, max_crops=0, theta_merge=(0.0,))
    forest = Explorer(load_backbone("random:resnet18", feature="token", device="cpu"), settings)(image)
    places(forest, {"left": half, "right": ~half}, 0.8)


def test_an_image_in_any_form_gives_one_forest(tmp_path: Path) -> None:
    image = picture()
    paint(image, RED, 0, 0, 192, 96)
    Image.fromarray(image).save(tmp_path / "a.png")
    expected = explorer()(image)
    assert len(expected) == 2
    chw = torch.from_numpy(image).permute(2, 0, 1)
    for form in (tmp_path / "a.png", str(tmp_path / "a.png"), Image.fromarray(image), chw, chw / 255, image / 255):
        assert explorer()(form) == expected
    with pytest.raises(DataError, match="floating-point pixels must lie in"):
        explorer()(chw.float())
