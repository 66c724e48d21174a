"""The segmenter as a stage: a trained CAST and images in, segmenter folder out (README §8)."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from sohes.configuration import Natural, Share, settings
from sohes.methods.cast.segment_settings import CastSegmentSettings
from sohes.methods.held_out import score_held_out
from sohes.records import StageResult

# A launcher reads the configuration without loading torch; so what the stage needs is imported inside it.


@settings
class CastSegmenterConfig(CastSegmentSettings):
    """The segmenter of a run."""

    NOT_IN_HASH: ClassVar[frozenset[str]] = frozenset({"pictures", "min_score"})

    pictures: Natural = 6
    """Pictures drawn of held-out images."""
    min_score: Share = 0.5
    """Score of what the pictures show at least; the numbers take every mask."""


def segmenter(config: CastSegmenterConfig, inputs: dict[str, Path], out: Path) -> StageResult:
    """Make a segmenter, for which nothing is learnt, and score its masks on held-out images with a ground truth.

    Inputs: `backbone`, the folder of a CAST, and images. Writes `segmenter/` and pictures.

    Raises:
        WeightsError: the folder holds another model.
    """
    from sohes.backbones.timm_folder import load_backbone_folder
    from sohes.data.coco import read_coco
    from sohes.data.sources import data_name
    from sohes.methods.cast.segmenter import CASTSegmenter

    folder = out / "segmenter"
    if not folder.exists():
        CASTSegmenter(load_backbone_folder(inputs["backbone"]), short_px=config.short_px).save(folder)
    return score_held_out(
        read_coco(inputs["images"] / "val.json"),
        out,
        method="CAST",
        dataset=data_name(inputs["images"]),
        pictures=config.pictures,
        min_score=config.min_score,
    )
