"""What all segmenters share: what is shown of a prediction, the facts for a record, and who loads a folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from sohes.backbones.provenance import RANDOM, Provenance, Step
from sohes.data.images import ImageLike, as_image
from sohes.errors import WeightsError
from sohes.files import write_json
from sohes.masks import MaskForest
from sohes.segmenters.entity import load_model
from sohes.segmenters.eomt import EomtSegmenterConfig
from sohes.segmenters.mask2former import Mask2FormerSegmenterConfig
from sohes.segmenters.segmenter import KINDS, Segmenter, TrainedSegmenter, load_segmenter

PICTURE = np.zeros((4, 6, 3), np.uint8)


class Halves(TrainedSegmenter):
    """Another kind: finds the left half twice, less surely the second time, and the whole image, hardly."""

    description = "Halves."

    def predict(self, image: ImageLike) -> MaskForest:
        masks = np.zeros((3, *as_image(image).shape[:2]), dtype=bool)
        masks[:2, :, : masks.shape[2] // 2] = True
        masks[2] = True
        return MaskForest.from_masks(masks, scores=np.array([0.9, 0.8, 0.2], np.float32))

    def _write(self, folder: Path) -> Path:
        write_json(folder / "config.json", {"model_type": "halves"})
        return folder


HALVES = Halves(
    Provenance(timm_name="vit_x", steps=(RANDOM, Step(method="Halving", supervision="masks"), Step(method="More")))
)


def load_halves(folder: Path, device: torch.device) -> Halves:
    assert device == torch.device("cpu")
    return HALVES


def test_what_is_shown_is_sure_and_there_once() -> None:
    assert len(HALVES.predict(PICTURE)) == 3
    assert HALVES.segment(PICTURE).areas.tolist() == [12]
    assert HALVES.segment(PICTURE, min_score=0.1).areas.tolist() == [12, 24]
    assert len(HALVES.segment(PICTURE, min_score=0.95)) == 0


def test_facts_for_a_record_are_those_of_the_provenance() -> None:
    """The start weights, for the last training is the segmenter's own; but all that people gave."""
    assert (HALVES.backbone, HALVES.init, HALVES.supervision) == (
        "vit_x",
        "Halving from random weights",
        "masks, unknown",
    )


def test_one_line_makes_a_kind_of_segmenter_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(KINDS, "halves", f"{__name__}:load_halves")
    folder = HALVES.save(tmp_path / "s")
    assert load_segmenter(folder, device="cpu") is HALVES
    with pytest.raises(
        WeightsError, match=r"kind halves; this takes sohes_entity_segmenter or sohes_eomt_segmenter only"
    ):
        load_model(folder)


def test_unknown_kinds_name_the_known_ones(tmp_path: Path) -> None:
    for kind in ("halves", ["sohes_entity_segmenter"]):
        write_json(tmp_path / "config.json", {"model_type": kind})
        with pytest.raises(
            WeightsError,
            match=r"config\.json: unknown kind of segmenter .*Known: cast_segmenter, fs4_segmenter, leopart_segmenter",
        ):
            load_segmenter(tmp_path)


def test_folders_of_before_are_still_known() -> None:
    """What their config.json calls them."""
    assert Mask2FormerSegmenterConfig.model_type == "sohes_entity_segmenter" in KINDS
    assert EomtSegmenterConfig.model_type == "sohes_eomt_segmenter" in KINDS


def test_a_segmenter_predicts() -> None:
    with pytest.raises(TypeError, match="abstract"):
        Segmenter()  # type: ignore[abstract]
