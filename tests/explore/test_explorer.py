"""Phase 1 on pictures whose colours are the features, so that what must be found is known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from sohes.errors import ConfigError
from sohes.explore import Explorer, ExploreSettings
from sohes.explore.explorer import Candidate, Crop, Region, _touches_inner_side, find_regions, upsample
from sohes.masks import BoolArray, MaskForest

RED, YELLOW, GREEN, BLUE = (255, 0, 0), (255, 255, 0), (0, 255, 0), (0, 0, 255)
Image = NDArray[np.uint8]


class Colours(nn.Module):
    """A backbone whose feature of a patch is the patch's mean colour."""

    feature = "key"
    patch_size = 8

    def __init__(self) -> None:
        super().__init__()
        self.vit = nn.Linear(1, 1)
        self.seen: list[tuple[int, ...]] = []

    def forward(self, images: Tensor) -> Tensor:
        self.seen.append(tuple(images.shape))
        return F.avg_pool2d(images, self.patch_size)


def explorer(**settings: Any) -> Explorer:
    defaults = {"size_global": 192, "theta_merge": (0.9, 0.6), "max_crops": 0, "refiner": "none"}
    return Explorer(Colours(), ExploreSettings(**defaults | settings))  # type: ignore[arg-type]


def picture(side: int = 192, ground: tuple[int, int, int] = BLUE) -> Image:
    return np.full((side, side, 3), ground, np.uint8)


def paint(image: Image, colour: tuple[int, int, int], top: int, left: int, height: int, width: int) -> BoolArray:
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


def small_object() -> tuple[Image, BoolArray]:
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
    # one look at the whole image, one at all crops together: one crop for the full patch, one for the half
    assert with_crops.backbone.seen == [(1, 3, 128, 128), (2, 3, 128, 128)]  # type: ignore[comparison-overlap]


def test_crops_are_limited_in_number() -> None:
    image = picture(512)
    squares = [paint(image, RED, top, left, 16, 32) for top, left in ((64, 64), (64, 352), (352, 64), (352, 352))]
    settings: dict[str, Any] = {"size_global": 256, "size_local": 128, "theta_small": 0.005, "min_area_px": 50}
    few = explorer(**settings, max_crops=2)
    few(image)
    assert few.backbone.seen[1][0] == 2  # type: ignore[index]
    enough = explorer(**settings, max_crops=64)
    places(enough(image), {str(index): square for index, square in enumerate(squares)}, 0.9)
    assert enough.backbone.seen[1][0] == 4  # type: ignore[index]


def test_close_neighbours_share_a_crop() -> None:
    settings: dict[str, Any] = {"size_global": 256, "size_local": 128, "min_side_px": 128, "max_crops": 64}
    for left, crops in ((128, 1), (208, 2)):
        image = picture(256)
        squares = [paint(image, RED, 120, place, 16, 16) for place in (104, left)]
        found = explorer(**settings)
        places(found(image), {str(index): square for index, square in enumerate(squares)}, 0.85)
        assert found.backbone.seen[1][0] == crops  # type: ignore[index]


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


def candidate(mask: BoolArray, patches: BoolArray) -> Candidate:
    return Candidate(mask.astype(np.float32), Region(patches, 0, 0, 1.0), 10.0, local=True)


def test_a_local_mask_must_lie_on_the_region_it_was_looked_up_for() -> None:
    patches = np.zeros((10, 10), dtype=bool)
    patches[4, 4] = True  # of 10 px; grown by one patch: px 30 to 60 both ways
    blank = picture(100)
    region = candidate(paint(blank, RED, 40, 40, 10, 10), patches)
    for left, expected in ((30, True), (50, True), (51, False), (70, False)):  # 20 px wide: half of it ends at 60
        found = candidate(paint(blank, RED, 40, left, 10, 20), patches)
        assert explorer()._accepts(found, region) == expected
    assert not explorer()._accepts(candidate(np.zeros((100, 100), dtype=bool), patches), region)


@pytest.mark.parametrize(
    ("corner", "touching"),
    [
        ((50, 50), ["top", "bottom", "left", "right"]),
        ((0, 50), ["bottom", "left", "right"]),
        ((150, 100), ["top", "left"]),
    ],
)
def test_a_region_at_an_inner_side_of_its_crop_may_go_on_outside(corner: tuple[int, int], touching: list[str]) -> None:
    sides = {
        "top": np.s_[0, 2],
        "bottom": np.s_[-1, 2],
        "left": np.s_[2, 0],
        "right": np.s_[2, -1],
        "none": np.s_[2, 2],
    }
    for side, place in sides.items():
        patches = np.zeros((5, 5), dtype=bool)
        patches[place] = True
        assert _touches_inner_side(patches, Crop(*corner, 100), 250, 200) == (side in touching)


def test_filters() -> None:
    image = picture()
    small, large = paint(image, GREEN, 16, 16, 16, 16), paint(image, RED, 64, 0, 128, 192)
    assert len(explorer()(image)) == 3  # and the blue rest
    assert len(explorer(min_area_px=300)(image)) == 2
    no_large = explorer(max_area_frac=0.5)(image)
    assert overlap(no_large.masks[0], large) < 0.1
    assert len(no_large) == 2
    assert len(explorer(min_patches=5)(image)) == 2
    places(explorer(min_patches=4)(image), {"small": small}, 0.8)


def test_a_mask_that_refinement_changes_too_much_is_dropped() -> None:
    image = picture()
    paint(image, GREEN, 64, 64, 64, 64)
    found = explorer(refiner="guided")
    kept = found(image).attributes["refine_iou"]
    assert ((kept >= 0.5) & (kept < 1)).all()
    assert len(found(image)) == 1
    assert len(explorer(refiner="guided", refine_iou=0.999)(image)) == 0


def test_duplicates_go_and_the_better_stays() -> None:
    image = picture()
    square = paint(image, GREEN, 64, 64, 64, 64)
    paint(image, (0, 255, 140), 64, 64, 8, 64)  # a strip that joins the square at 0.6: IoU 7/8 with what is without it
    levels = explorer(nms_iou=0.9)(image)
    assert len(levels) == 3  # square without strip, strip, both
    fewer = explorer(nms_iou=0.8)(image)
    assert len(fewer) == 2
    pure = square & (image == GREEN).all(-1)
    places(fewer, {"more cohesive": pure}, 0.97)


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
    image = picture(ground=(250, 200, 200))
    paint(image, (200, 250, 200), 48, 48, 96, 96)
    assert len(explorer(center=False)(image)) == 0  # cosine 0.99: one region, the whole image, too large
    assert len(explorer(center=True)(image)) == 1


def test_aspect_is_kept_only_if_asked() -> None:
    image = np.zeros((96, 192, 3), np.uint8)
    for keep, expected in ((False, (1, 3, 192, 192)), (True, (1, 3, 96, 192))):
        found = explorer(keep_aspect=keep)
        assert found(image).size_hw == (96, 192)
        assert found.backbone.seen[0] == expected  # type: ignore[index]


def test_the_same_image_gives_the_same_forest() -> None:
    image = np.random.default_rng(0).integers(0, 256, (128, 160, 3), dtype=np.uint8)
    settings: dict[str, Any] = {"max_crops": 8, "size_local": 64, "center": True, "theta_merge": (0.6, 0.3, 0.1)}
    first, second = explorer(**settings)(image), explorer(**settings)(image)
    assert len(first) > 5
    assert first.rles == second.rles
    assert np.array_equal(first.parent, second.parent)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"theta_merge": ()}, "theta_merge must hold cosines"),
        ({"theta_merge": (0.5, 2.0)}, "theta_merge must hold cosines"),
        ({"refiner": "sam"}, "refiner must be one of"),
        ({"theta_cover": 0.5}, r"theta_cover must lie in \(0.5, 1\]"),
    ],
)
def test_settings_that_make_no_sense(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ExploreSettings(**change)


def test_regions_and_the_levels_they_stand_at() -> None:
    features = np.zeros((1, 4, 2), np.float32)
    features[0, :2] = [1, 0]
    features[0, 2:] = [0.8, 0.6]  # cosine 0.8
    regions = find_regions(features, (0.9, 0.85, 0.5))
    shown = [(region.patches[0].tolist(), region.level_first, region.level_last) for region in regions]
    assert shown == [
        ([True, True, False, False], 0, 1),
        ([False, False, True, True], 0, 1),
        ([True, True, True, True], 2, 2),
    ]


def test_crops_stay_inside_the_image() -> None:
    settings = ExploreSettings(crop_ratio=2, min_side_px=64)
    mask = np.zeros((200, 300), dtype=bool)
    mask[10:20, 250:300] = True
    assert Crop.around(mask, settings) == Crop(0, 200, 100)
    tiny = np.zeros((40, 300), dtype=bool)
    tiny[20:24, 100:104] = True
    assert Crop.around(tiny, settings) == Crop(0, 82, 40)  # never larger than the image


def test_upsampling_keeps_the_middle_of_each_patch() -> None:
    patches = np.array([[True, False], [False, True]])
    soft = upsample(patches, (20, 20))
    assert soft.shape == (20, 20)
    # centres of patches lie between pixels 4 and 5, 14 and 15
    np.testing.assert_allclose(soft[4:6, 4:6], 1, atol=0.1)
    np.testing.assert_allclose(soft[4:6, 14:16], 0, atol=0.1)
    np.testing.assert_allclose(soft, 1 - soft[:, ::-1], atol=1e-6)


def test_a_real_vit_of_random_weights() -> None:
    from sohes.backbones.timm_vit import DenseViT
    from tests.backbones.conftest import tiny

    image = picture(96)
    half = paint(image, GREEN, 0, 0, 96, 48)
    settings = ExploreSettings(size_global=192, max_crops=0, center=True, theta_merge=(0.0,))
    forest = Explorer(DenseViT(tiny("patch 16"), feature="token"), settings)(image)
    places(forest, {"left": half, "right": ~half}, 0.9)
