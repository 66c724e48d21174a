"""Tiles: where they lie, what of them is taken, and how it is merged, against plain loops over decoded masks."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from sohes.data.images import ImageLike, as_image
from sohes.errors import ConfigError
from sohes.masks import MaskForest
from sohes.rle import BoolArray
from sohes.segmenters.entity import EntityPredictor
from sohes.segmenters.segmenter import Segmenter
from sohes.segmenters.tiles import TiledSegmenter, tile_windows
from tests.segmenters.tiny import PROVENANCE, tiny_segmenter


class Greys(Segmenter):
    """Finds the pixels of each shade of grey but black, and scores them by it; it keeps the sizes that it saw."""

    backbone, init, supervision = "vit_x", "weights", "none"

    def __init__(self) -> None:
        self.seen: list[tuple[int, ...]] = []

    def predict(self, image: ImageLike) -> MaskForest:
        grey = as_image(image)[..., 0]
        self.seen.append(grey.shape)
        shades = sorted({*grey.ravel().tolist()} - {0}, reverse=True)
        masks = np.zeros((len(shades), *grey.shape), dtype=bool)
        for mask, shade in zip(masks, shades, strict=True):
            mask[:] = grey == shade
        return MaskForest.from_masks(masks, scores=np.asarray(shades, np.float32) / 255)


class Noise(Greys):
    """Finds random boxes, others in every image, with random scores, some of them equal."""

    def predict(self, image: ImageLike) -> MaskForest:
        array = as_image(image)
        height, width = array.shape[:2]
        rng = np.random.default_rng(int(array.sum()))
        masks = np.zeros((12, height, width), dtype=bool)
        for mask in masks:
            top, left = rng.integers(0, height), rng.integers(0, width)
            mask[top : top + rng.integers(1, height + 1), left : left + rng.integers(1, width + 1)] = True
        return MaskForest.from_masks(masks, scores=rng.integers(1, 9, len(masks)).astype(np.float32) / 8)


def grey(height: int, width: int) -> np.ndarray:
    return np.zeros((height, width, 3), np.uint8)


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def merge_by_loops(
    image: np.ndarray, segmenter: Segmenter, windows: list[tuple[slice, slice]], nms_iou: float
) -> list[tuple[float, BoolArray]]:
    height, width = image.shape[:2]
    kept: list[tuple[float, BoolArray]] = []
    for rows, columns in [(slice(0, height), slice(0, width)), *windows]:
        forest = segmenter.predict(image[rows, columns])
        for mask, score in zip(forest.masks, forest.scores, strict=True):
            whole = np.zeros((height, width), dtype=bool)
            whole[rows, columns] = mask
            # what reaches a border of the tile could go on beyond it
            if (
                (rows.start > 0 and mask[0].any())
                or (rows.stop < height and mask[-1].any())
                or (columns.start > 0 and mask[:, 0].any())
                or (columns.stop < width and mask[:, -1].any())
            ):
                continue
            kept.append((float(score), whole))
        best: list[tuple[float, BoolArray]] = []
        for score, mask in sorted(kept, key=lambda pair: -pair[0]):
            if all((mask & other).sum() / (mask | other).sum() <= nms_iou for _, other in best):
                best.append((score, mask))
        kept = best
    return kept


@pytest.mark.parametrize("tiles", [2, 3])
@pytest.mark.parametrize("size_hw", [(31, 40), (7, 50), (3, 3)], ids=str)
def test_merged_by_loops(size_hw: tuple[int, int], tiles: int) -> None:
    image = noise(*size_hw)
    forest = TiledSegmenter(Noise(), tiles).predict(image)
    expected = merge_by_loops(image, Noise(), list(tile_windows(size_hw, tiles)), 0.9)
    assert forest.scores.tolist() == [score for score, _ in expected]
    assert np.array_equal(forest.masks, [mask for _, mask in expected])
    again = MaskForest.from_rles(forest.rles, size_hw, scores=forest.scores)
    assert forest == again, "relations are not those of coverage"


@pytest.mark.parametrize("tiles", [2, 3, 5])
@pytest.mark.parametrize("size_hw", [(100, 64), (321, 481), (9, 9)], ids=str)
def test_tiles_cover_the_image_and_overlap(size_hw: tuple[int, int], tiles: int) -> None:
    windows = list(tile_windows(size_hw, tiles))
    assert len(windows) == tiles**2
    covered = np.zeros(size_hw, dtype=int)
    for rows, columns in windows:
        covered[rows, columns] += 1
        assert rows.stop <= size_hw[0]
        assert columns.stop <= size_hw[1]
    assert (covered > 0).all()
    tops = sorted({rows.start for rows, _ in windows})
    side = windows[0][0].stop
    shared = [one + side - other for one, other in pairwise(tops)]
    assert min(shared) >= side // 4 - 1


def test_two_tiles_by_hand() -> None:
    """Of 70 px, 40 and 40 share 10, a quarter."""
    assert list(tile_windows((70, 7), 2)) == [
        (slice(0, 40), slice(0, 4)),
        (slice(0, 40), slice(3, 7)),
        (slice(30, 70), slice(0, 4)),
        (slice(30, 70), slice(3, 7)),
    ]


def test_what_only_a_tile_sees_is_found_and_what_it_cuts_is_not() -> None:
    class Near(Greys):
        """Sees nothing smaller than a hundredth of what it is shown."""

        def predict(self, image: ImageLike) -> MaskForest:
            forest = super().predict(image)
            return forest.select(np.flatnonzero(forest.areas * 100 >= np.prod(forest.size_hw)))

    image = grey(70, 70)
    image[5:10, 5:10] = 100  # 25 px, at the first tile's corner, of 1600
    image[20:50, 20:50] = 200  # cut off by every tile
    assert len(Near().predict(image)) == 1
    forest = TiledSegmenter(Near(), 2).predict(image)
    assert forest.areas.tolist() == [900, 25]
    assert forest.masks[1][5:10, 5:10].all()


def test_a_mask_at_the_edge_of_the_image_is_whole() -> None:
    image = grey(70, 70)
    image[:6, :6] = 50
    image[64:, 30:36] = 90
    tiles = TiledSegmenter(Greys(), 2)
    assert tiles.predict(image) == Greys().predict(image)  # once, though the whole and a tile find it


@pytest.mark.parametrize("size_hw", [(1, 1), (1, 9), (2, 2), (64, 64)], ids=str)
def test_tiny_and_uniform_images(size_hw: tuple[int, int]) -> None:
    image = grey(*size_hw) + np.uint8(7)
    forest = TiledSegmenter(Greys(), 3).predict(image)
    assert forest.size_hw == size_hw
    assert forest.areas.tolist() == [size_hw[0] * size_hw[1]]
    nothing = TiledSegmenter(Greys(), 3).predict(grey(*size_hw))
    assert (len(nothing), nothing.size_hw) == (0, size_hw)


def test_an_image_of_one_pixel_is_seen_once() -> None:
    greys = Greys()
    TiledSegmenter(greys, 3).predict(grey(1, 1))
    assert greys.seen == [(1, 1)]


def test_a_trained_segmenter_in_tiles() -> None:
    """Each tile is shown at the model's input size."""
    predictor = EntityPredictor(tiny_segmenter("eomt").eval(), PROVENANCE)
    tiled = TiledSegmenter(predictor, 2)
    image = noise(50, 70)
    forest = tiled.predict(image)
    assert (np.diff(forest.scores) <= 0).all()
    assert len(forest) > 0
    assert (tiled.backbone, tiled.init, tiled.supervision) == (
        predictor.backbone,
        predictor.init,
        predictor.supervision,
    )
    assert [rle["size"] for rle in forest.rles] == [[50, 70]] * len(forest)


@pytest.mark.parametrize("tiles", [1, 0, -2])
def test_fewer_than_two_tiles(tiles: int) -> None:
    with pytest.raises(ConfigError, match=f"at least 2, not {tiles}"):
        TiledSegmenter(Greys(), tiles)
