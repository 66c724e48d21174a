"""Better masks of a segmenter: snapped ones, and phase 1's regions that it supports."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from sohes.backbones.timm_vit import DenseViT
from sohes.data.images import ImageArray, ImageLike
from sohes.errors import ConfigError
from sohes.explore.explorer import Explorer
from sohes.explore.inference import SnappedSegmenter, SupportedExplorer, make_inference, own_explorer
from sohes.explore.settings import ExploreSettings
from sohes.masks import MaskForest
from sohes.rle import BoolArray
from sohes.segmenters.entity import EntityPredictor
from sohes.segmenters.segmenter import Segmenter
from sohes.segmenters.tiles import TiledSegmenter
from tests.explore.colours import Colours
from tests.explore.test_ranking import overlap
from tests.segmenters.test_segmenter import HALVES
from tests.segmenters.tiny import PROVENANCE, tiny_segmenter


class Given(Segmenter):
    """Predicts given masks, whatever the image."""

    backbone, init, supervision = "vit_x", "weights", "none"

    def __init__(self, masks: BoolArray, scores: list[float]) -> None:
        self.forest = MaskForest.from_masks(masks, scores=np.asarray(scores, np.float32))

    def predict(self, image: ImageLike) -> MaskForest:
        return self.forest


def explorer(**settings: Any) -> Explorer:
    options = {"size_global": 96, "superpixel_sigma": 0.0, "min_area_px": 20, **settings}
    return Explorer(Colours(), ExploreSettings(**options))


def picture() -> tuple[ImageArray, BoolArray, BoolArray]:
    """A disc and, far from it, a square, of plain colours; and their masks."""
    rows, columns = np.ogrid[:96, :128]
    disc = np.hypot(rows - 48, columns - 40) < 25
    square = (np.abs(rows - 40) < 15) & (np.abs(columns - 100) < 15)
    image = np.full((96, 128, 3), (40, 120, 60), np.uint8)
    image[disc], image[square] = (200, 40, 40), (40, 40, 200)
    return image, disc, square


def rough(mask: BoolArray) -> BoolArray:
    """The mask at an eighth of its size and enlarged again."""
    small = mask.reshape(12, 8, 16, 8).mean(axis=(1, 3)) > 0.5
    return small.repeat(8, axis=0).repeat(8, axis=1)


def test_rough_masks_get_the_outlines_of_the_image() -> None:
    image, disc, square = picture()
    masks = np.stack([rough(disc), rough(square)])
    assert overlap(masks[0], disc) < 0.95
    segmenter = Given(masks, [0.9, 0.8])
    snapped = SnappedSegmenter(segmenter, explorer())
    forest = snapped.predict(image)
    assert np.array_equal(forest.masks, [disc, square])
    expected = [score * overlap(*pair) for score, pair in ((0.9, (masks[0], disc)), (0.8, (masks[1], square)))]
    assert forest.scores.tolist() == pytest.approx(expected)
    assert (snapped.backbone, snapped.init, snapped.supervision) == ("vit_x", "weights", "none")


def test_masks_that_become_alike_stay_once_with_the_higher_score() -> None:
    image, disc, square = picture()
    shifted = np.roll(disc, 3, axis=1)
    forest = SnappedSegmenter(Given(np.stack([shifted, square, disc]), [0.5, 0.6, 0.7]), explorer()).predict(image)
    assert np.array_equal(forest.masks, [disc, square])
    assert forest.scores.tolist() == pytest.approx([0.7, 0.6])


def test_relations_of_snapped_masks_are_those_of_coverage() -> None:
    image, disc, square = picture()
    masks = np.stack([disc, square, np.ones_like(disc)])
    forest = SnappedSegmenter(Given(masks, [0.5, 0.6, 0.7]), explorer(max_area_frac=1.0)).predict(image)
    assert np.array_equal(forest.masks, masks[::-1])
    assert forest.parent.tolist() == [-1, 0, 0]
    assert forest == MaskForest.from_rles(forest.rles, forest.size_hw, scores=forest.scores)


def test_no_mask_becomes_the_whole_image() -> None:
    """Phase 1 leaves out what covers more than `max_area_frac`; all masks would be parts of it."""
    image, disc, _ = picture()
    whole = np.ones_like(disc)
    forest = SnappedSegmenter(Given(np.stack([whole, disc]), [0.9, 0.5]), explorer()).predict(image)
    assert forest.areas.max() <= 0.9 * whole.size
    assert any(np.array_equal(mask, disc) for mask in forest.masks)


def test_the_segmenter_decides_which_region_is_first() -> None:
    """Either the disc or the square, by what is predicted more surely."""
    image, disc, square = picture()
    for scores, first in (([0.9, 0.3], disc), ([0.2, 0.9], square)):
        segmenter = Given(np.stack([rough(disc), rough(square)]), scores)
        forest = SupportedExplorer(segmenter, explorer()).predict(image)
        assert np.array_equal(forest.masks[0], first)
        assert (np.diff(forest.scores) <= 0).all()
        assert {mask.tobytes() for mask in forest.masks} >= {disc.tobytes(), square.tobytes()}


def test_without_a_prediction_phase_1_decides() -> None:
    image = picture()[0]
    nothing = Given(np.zeros((0, *image.shape[:2]), dtype=bool), [])
    found, expected = SupportedExplorer(nothing, explorer()).predict(image), explorer()(image)
    assert found.rles == expected.rles
    assert found.scores == pytest.approx(expected.scores)


@pytest.mark.parametrize("size_hw", [(1, 1), (1, 90), (40, 56)], ids=str)
@pytest.mark.parametrize("kind", ["eomt", "pyramid"])
def test_every_way_on_images_of_any_size(kind: str, size_hw: tuple[int, int]) -> None:
    trained = EntityPredictor(tiny_segmenter(kind).eval(), PROVENANCE)
    image = np.random.default_rng(0).integers(0, 256, (*size_hw, 3), dtype=np.uint8)
    plain = trained.predict(image)
    for options in ({"tiles": 2}, {"snap": True}, {"explore": True}, {"tiles": 3, "snap": True}):
        segmenter = make_inference(**options).around(trained)
        forest = segmenter.predict(image)
        assert forest.size_hw == size_hw
        assert (np.diff(forest.scores) <= 0).all()
        assert len(segmenter.segment(image, min_score=0)) <= len(forest) <= 1000
        assert segmenter.backbone == trained.backbone
    assert trained.predict(image) == plain, "the model is no longer what it was"


def test_ways_have_names_and_are_nested() -> None:
    trained = EntityPredictor(tiny_segmenter("eomt").eval(), PROVENANCE)
    names = [make_inference(**options).name for options in ({"tiles": 3, "snap": True}, {"tiles": 2, "explore": True})]
    assert names == ["--tiles 3 --snap", "--tiles 2 --explore"]
    snapped = make_inference(tiles=3, snap=True).around(trained)
    assert isinstance(snapped, SnappedSegmenter)
    assert isinstance(snapped.segmenter, TiledSegmenter)
    assert (snapped.segmenter.segmenter, snapped.segmenter.tiles) == (trained, 3)


@pytest.mark.parametrize(("kind", "blocks"), [("eomt", 1), ("pyramid", 2)])
def test_trees_are_led_by_the_own_vit(kind: str, blocks: int) -> None:
    """Its weights are not copied; where queries join the patches, it ends."""
    trained = EntityPredictor(tiny_segmenter(kind).eval(), PROVENANCE)
    backbone = own_explorer(trained).backbone
    assert isinstance(backbone, DenseViT)
    assert len(backbone.vit.blocks) == blocks
    assert backbone.vit.patch_embed.proj.weight is trained.model.vit.patch_embed.proj.weight
    assert len(trained.model.vit.blocks) == 2
    assert backbone.provenance == trained.provenance


def test_a_segmenter_of_another_kind() -> None:
    with pytest.raises(ConfigError, match="needs an entity segmenter, not Halves"):
        make_inference(snap=True).around(HALVES)
    assert len(make_inference(tiles=2).around(HALVES).predict(np.zeros((4, 6, 3), np.uint8))) == 2


def test_regions_are_not_snapped_again() -> None:
    with pytest.raises(ConfigError, match="--snap and --explore cannot be combined"):
        make_inference(snap=True, explore=True)
