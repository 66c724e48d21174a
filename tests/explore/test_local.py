"""The local step by hand-worked cases, and against its text written out patch by patch."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from numpy.typing import NDArray

from sohes.explore.local import Crop, accepted, plan_crops, small_regions
from sohes.explore.regions import Rectangle, Regions, find_regions
from sohes.explore.settings import ExploreSettings


def clustered(labels: NDArray[np.integer]) -> Regions:
    """Regions of a grid on which every label has a direction of its own."""
    return find_regions(np.eye(labels.max() + 1, dtype=np.float32)[labels], (0.9,))


def grid(height: int, width: int, **rectangles: tuple[int, int, int, int]) -> NDArray[np.int64]:
    """Zeros with rectangles (top, left, bottom, right; in patches) numbered in the order given."""
    labels = np.zeros((height, width), np.int64)
    for label, (top, left, bottom, right) in enumerate(rectangles.values(), start=1):
        labels[top:bottom, left:right] = label
    return labels


def at(regions: Regions, row: int, column: int) -> int:
    """Index of the region that a patch is in."""
    return regions.numbers.tolist().index(regions.levels[0, row, column])


def options(**changes: Any) -> ExploreSettings:
    return ExploreSettings(**{"theta_small": 1.0, "crop_ratio": 2.0, "min_side_px": 10} | changes)


def test_small_regions_come_largest_first() -> None:
    regions = clustered(grid(10, 10, one=(0, 0, 1, 1), four=(0, 2, 2, 4), another=(4, 4, 5, 5), two=(8, 8, 9, 10)))
    places = [(0, 2), (8, 8), (0, 0), (4, 4)]  # four, two, then one and one in order of creation: single patches first
    assert small_regions(regions, options(theta_small=0.05)) == [at(regions, *place) for place in places]
    assert small_regions(regions, options(theta_small=0.04)) == [at(regions, *place) for place in places[1:]]
    assert small_regions(regions, options(theta_small=0.05, max_crops=0)) == []


def crop_of(box: tuple[int, int, int, int], size_hw: tuple[int, int], **changes: Any) -> Rectangle:
    """Where one region of a 20 x 20 grid is shown."""
    regions = clustered(grid(20, 20, region=box))
    index = at(regions, *box[:2])
    (crop,) = plan_crops(regions, [index], size_hw, options(**changes))
    assert crop.small == [index]
    return crop.window


@pytest.mark.parametrize(
    ("box", "size_hw", "changes", "expected"),
    [
        ((8, 9, 10, 12), (200, 200), {}, (60, 75, 60, 60)),  # box 20 x 30 px around (90, 105), twice its longer side
        ((8, 9, 10, 12), (200, 200), {"crop_ratio": 3.0}, (45, 60, 90, 90)),
        ((8, 9, 10, 12), (200, 200), {"min_side_px": 100}, (40, 55, 100, 100)),
        ((8, 9, 10, 12), (200, 200), {"min_side_px": 300}, (0, 0, 200, 200)),  # never larger than the image
        ((0, 0, 2, 3), (200, 200), {}, (0, 0, 60, 60)),  # shifted, not cut
        ((18, 17, 20, 20), (200, 200), {}, (140, 140, 60, 60)),
        ((8, 9, 10, 12), (100, 400), {}, (0, 160, 100, 100)),  # box 10 x 60 px, and the image's shorter side is 100
        ((8, 2, 10, 18), (100, 400), {}, (0, 150, 100, 100)),  # box of 320 px: the crop shows its middle
        ((2, 8, 18, 10), (400, 100), {}, (150, 0, 100, 100)),
        ((7, 7, 8, 8), (7, 9), {}, (0, 0, 7, 7)),
    ],
)
def test_places_of_crops(
    box: tuple[int, int, int, int],
    size_hw: tuple[int, int],
    changes: dict[str, Any],
    expected: tuple[int, int, int, int],
) -> None:
    assert crop_of(box, size_hw, **changes) == Rectangle(*expected)


@pytest.mark.parametrize(
    ("left", "shared"),
    # the first crop shows px 35 to 75 both ways, its central half 45 to 65; the second box is 10 px wide
    [(45, True), (44, False), (55, True), (56, False)],
)
def test_a_crop_serves_what_lies_in_its_central_half(left: int, shared: bool) -> None:
    regions = clustered(grid(160, 160, first=(50, 50, 60, 60), second=(62, left, 63, left + 10)))
    small = [at(regions, 50, 50), at(regions, 62, left)]
    crops = plan_crops(regions, small, (160, 160), options(min_side_px=40))
    assert [crop.small for crop in crops] == ([small] if shared else [[small[0]], [small[1]]])


@pytest.mark.parametrize(("side", "shared"), [(40, True), (20, True), (19, False), (80, True), (81, False)])
def test_a_crop_serves_what_wants_about_its_size(side: int, shared: bool) -> None:
    crop = Crop(Rectangle(100, 100, 40, 40))
    assert crop.shows(np.array([[115.0, 115, 120, 125]]), np.array([side])).tolist() == [shared]


def test_the_first_crop_that_shows_a_region_serves_it() -> None:
    labels = grid(100, 100, first=(40, 40, 50, 50), second=(40, 56, 50, 66), third=(42, 52, 44, 54))
    regions = clustered(labels)
    small = [at(regions, 40, 40), at(regions, 40, 56), at(regions, 42, 52)]
    crops = plan_crops(regions, small, (100, 100), options(min_side_px=40))
    assert [crop.small for crop in crops] == [[small[0], small[2]], [small[1]]]


def test_crops_are_limited_in_number_but_go_on_serving() -> None:
    labels = grid(100, 100, a=(10, 10, 14, 14), b=(10, 60, 14, 63), c=(60, 10, 63, 12), near_a=(15, 10, 16, 11))
    regions = clustered(labels)
    small = [at(regions, *place) for place in ((10, 10), (10, 60), (60, 10), (15, 10))]
    settings = options(min_side_px=20)
    crops = plan_crops(regions, small, (100, 100), options(min_side_px=20, max_crops=2))
    assert [crop.small for crop in crops] == [[small[0], small[3]], [small[1]]]
    assert len(plan_crops(regions, small, (100, 100), settings)) == 3


# 160 x 160 px, seen whole as 16 x 16 patches of 10 px and in the crop as 16 x 16 patches of 5 px. The small region is
# px 60 to 80 both ways: patches 6 to 10 of the crop; grown by a global patch, patches 4 to 12.
SIZE = (160, 160)
WINDOW = Rectangle(30, 30, 80, 80)
WHOLE = clustered(grid(16, 16, region=(6, 6, 8, 8)))
REGION = at(WHOLE, 6, 6)


def judge(*cells: tuple[int, int, int, int], **changes: Any) -> tuple[bool, bool]:
    """Whether a candidate made of those rectangles is accepted, and whether it replaces the small region."""
    labels = np.zeros((16, 16), np.int64)
    for top, left, bottom, right in cells:
        labels[top:bottom, left:right] = 1
    inside = clustered(labels)
    taken, replaced = accepted(Crop(WINDOW, [REGION]), inside, WHOLE, SIZE, options(**changes))
    assert set(taken) <= {at(inside, *cells[0][:2])}  # the rest of the crop is cut off by all its sides
    assert set(replaced) <= {REGION}
    return bool(taken), bool(replaced)


def test_a_candidate_needs_so_many_patches() -> None:
    assert judge((6, 6, 8, 8), min_patches=4) == (True, True)
    assert judge((6, 6, 7, 9), min_patches=4) == (False, False)
    assert judge((6, 6, 7, 9), min_patches=3) == (True, False)


def test_a_candidate_must_be_small_in_the_image() -> None:
    share = 16 * 25 / 160**2
    assert judge((6, 6, 10, 10), theta_small=share) == (False, False)
    assert judge((6, 6, 10, 10), theta_small=float(np.nextafter(share, 1))) == (True, True)


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        ([(6, 8, 10, 16)], False),  # 4 x 8 patches, 4 x 4 of them near, but the crop's side cuts it off
        ([(6, 7, 10, 15)], True),
        ([(6, 8, 10, 15)], True),  # 16 of 28
        ([(6, 9, 10, 15)], True),  # 12 of 24
        ([(6, 10, 10, 15)], False),  # 8 of 20
        ([(4, 4, 6, 6)], True),  # across the corner
        ([(2, 4, 4, 6)], False),
        ([(3, 3, 5, 5)], False),  # 1 of 4
        ([(12, 12, 15, 15)], False),
    ],
)
def test_half_of_a_candidate_must_lie_on_the_region_grown_by_a_patch(
    cells: list[tuple[int, int, int, int]], expected: bool
) -> None:
    assert judge(*cells)[0] == expected


def test_what_replaces_a_region() -> None:
    assert judge((6, 6, 8, 8)) == (True, True)  # 4 of its 16 patches: IoU 0.25
    assert judge((6, 6, 8, 8), (5, 6, 6, 7)) == (True, False)  # 4 / 17
    assert judge((4, 4, 12, 12)) == (True, True)  # 16 / 64
    assert judge((4, 4, 12, 13)) == (True, False)  # 16 / 72
    tail = (6, 10, 7, 15), (7, 14, 14, 15)  # 12 patches, 2 of them near: with the region's 16, 18 of 28
    assert judge((6, 6, 10, 10), *tail, (14, 7, 15, 15)) == (True, True)  # 18 of 36
    assert judge((6, 6, 10, 10), *tail, (14, 6, 15, 15)) == (False, False)  # 18 of 37, whose IoU would do


@pytest.mark.parametrize(
    ("window", "sides"),
    [
        ((40, 40), "top bottom left right"),
        ((0, 40), "bottom left right"),
        ((40, 0), "top bottom right"),
        ((80, 40), "top left right"),
        ((40, 80), "top bottom left"),
        ((80, 80), "top left"),
    ],
)
def test_a_candidate_at_an_inner_side_of_its_crop_may_go_on_outside(window: tuple[int, int], sides: str) -> None:
    everything = clustered(grid(16, 16))  # so that any candidate lies on it
    boxes = {"top": (0, 7, 2, 9), "bottom": (14, 7, 16, 9), "left": (7, 0, 9, 2), "right": (7, 14, 9, 16)}
    for side, box in (boxes | {"none": (1, 1, 15, 15)}).items():
        inside = clustered(grid(16, 16, candidate=box))
        taken, _ = accepted(Crop(Rectangle(*window, 80, 80), [0]), inside, everything, SIZE, options())
        assert (at(inside, *box[:2]) in taken) == (side not in sides.split()), side


def test_all_sides_of_a_crop_of_the_whole_image_are_sides_of_the_image() -> None:
    everything = clustered(grid(16, 16))
    settings = cast(ExploreSettings, SimpleNamespace(**vars(options()) | {"theta_small": 1.01}))  # the image is small
    assert accepted(Crop(Rectangle(0, 0, 160, 160), [0]), everything, everything, SIZE, settings) == ([0], [0])


def test_each_region_of_a_crop_is_judged_by_itself() -> None:
    whole = clustered(grid(16, 16, left=(6, 5, 8, 7), right=(6, 9, 8, 10)))  # patches 4 to 8 and 12 to 14 of the crop
    left, right = at(whole, 6, 5), at(whole, 6, 9)
    inside = clustered(grid(16, 16, one=(6, 4, 8, 6), two=(6, 12, 10, 14), far=(1, 8, 3, 10)))
    one, two = at(inside, 6, 4), at(inside, 6, 12)
    for small, expected in (
        ([left, right], ([one, two], [left, right])),
        ([right], ([two], [right])),
        ([left], ([one], [left])),
        ([], ([], [])),
    ):
        assert accepted(Crop(WINDOW, small), inside, whole, SIZE, options(min_patches=1)) == expected


@pytest.mark.parametrize("turned", [False, True])
def test_patches_need_not_be_square(turned: bool) -> None:
    """120 x 240 px as 12 x 12 patches; the region is px 50 to 60 by 100 to 120: 5 to 7 by 4 to 8 of the crop's 5 px."""
    turn = (lambda pair: pair[::-1]) if turned else (lambda pair: pair)
    whole = clustered(grid(12, 12, region=(5, 5, 6, 6)))
    region, window = at(whole, 5, 5), Rectangle(*turn((25, 80)), 60, 60)
    for column, replaces in ((3, False), (4, True), (7, True), (8, False)):
        labels = grid(12, 12, quarter=(5, column, 7, column + 1))
        inside = clustered(labels.T if turned else labels)
        settings = options(min_patches=1)
        found = accepted(Crop(window, [region]), inside, whole, turn((120, 240)), settings)
        assert found == ([at(inside, *turn((5, column)))], [region] if replaces else [])


def test_a_piece_of_a_region_that_the_crop_cannot_hold_does_not_replace_it() -> None:
    """100 x 400 px; the region is a line of 300 px, of which the crop shows 100."""
    whole = clustered(grid(20, 20, line=(10, 2, 11, 17)))
    line = at(whole, 10, 2)
    (crop,) = plan_crops(whole, [line], (100, 400), options())
    assert crop.window == Rectangle(0, 140, 100, 100)
    inside = clustered(grid(20, 20, piece=(10, 5, 11, 15)))  # px 165 to 215: half of what is seen, a sixth of the line
    assert accepted(crop, inside, whole, (100, 400), options()) == ([at(inside, 10, 5)], [])


def scene(seed: int) -> NDArray[np.int64]:
    """A picture of up to 12 rectangles, one value each."""
    rng = np.random.default_rng(seed)
    picture = np.zeros(rng.integers(60, 240, 2), np.int64)
    for label in range(1, 13):
        top, left = rng.integers(0, picture.shape)
        height, width = rng.integers(3, 40, 2)
        picture[top : top + height, left : left + width] = label
    return picture


def seen(picture: NDArray[np.int64], grid_hw: tuple[int, int]) -> Regions:
    """The regions of a grid of patches, each worth what is in its middle."""
    rows, columns = (
        ((np.arange(n) + 0.5) * side / n).astype(int) for n, side in zip(grid_hw, picture.shape, strict=True)
    )
    return clustered(picture[rows[:, None], columns])


def members(regions: Regions, index: int) -> set[tuple[int, int]]:
    return {(int(row), int(column)) for row, column in np.argwhere(regions.levels[0] == regions.numbers[index])}


def by_the_text(
    crop: Crop, inside: Regions, regions: Regions, size_hw: tuple[int, int], settings: ExploreSettings
) -> tuple[list[int], set[int]]:
    """The rules of acceptance and replacement, patch by patch."""
    window = crop.window
    local_hw, global_hw = inside.levels.shape[1:], regions.levels.shape[1:]
    local_px = window.height / local_hw[0], window.width / local_hw[1]
    global_px = size_hw[0] / global_hw[0], size_hw[1] / global_hw[1]
    taken, replaced = set(), set()
    for index in crop.small:
        region = members(regions, index)
        area = len(region) * global_px[0] * global_px[1]
        for candidate in range(len(inside)):
            patches = members(inside, candidate)
            px = len(patches) * local_px[0] * local_px[1]
            if len(patches) < settings.min_patches or px >= settings.theta_small * size_hw[0] * size_hw[1]:
                continue
            if any(
                (row == 0 and window.top > 0)
                or (column == 0 and window.left > 0)
                or (row == local_hw[0] - 1 and window.top + window.height < size_hw[0])
                or (column == local_hw[1] - 1 and window.left + window.width < size_hw[1])
                for row, column in patches
            ):
                continue
            below = [  # the global patch under the centre of each
                (
                    int((window.top + (row + 0.5) * local_px[0]) // global_px[0]),
                    int((window.left + (column + 0.5) * local_px[1]) // global_px[1]),
                )
                for row, column in patches
            ]
            near = sum(any((y + i, x + j) in region for i in (-1, 0, 1) for j in (-1, 0, 1)) for y, x in below)
            if near < len(patches) / 2:
                continue
            taken.add(candidate)
            common = sum(place in region for place in below) * local_px[0] * local_px[1]
            if common / (px + area - common) >= 0.25:
                replaced.add(index)
    return sorted(taken), replaced


def test_equals_the_text_written_out() -> None:
    settings = options(theta_small=0.03, min_patches=2, min_side_px=20)
    count = np.zeros(2, int)
    for seed in range(30):
        picture = scene(seed)
        size_hw = (picture.shape[0], picture.shape[1])
        regions = seen(picture, (14, 11))
        for crop in plan_crops(regions, small_regions(regions, settings), size_hw, settings):
            window = crop.window
            view = picture[window.top : window.top + window.height, window.left : window.left + window.width]
            inside = seen(view, (9, 10))
            taken, replaced = accepted(crop, inside, regions, size_hw, settings)
            assert (taken, set(replaced)) == by_the_text(crop, inside, regions, size_hw, settings), seed
            assert len(set(replaced)) == len(replaced)
            count += len(taken), len(replaced)
    assert (count > 100).all()
