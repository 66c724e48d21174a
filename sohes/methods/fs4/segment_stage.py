"""The segmenter as a stage: what the training left and images in, segmenter folder out (README §10)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import ClassVar

from sohes.configuration import Natural, Share, settings
from sohes.files import read_json
from sohes.methods.fs4.segment_settings import Fs4SegmentSettings
from sohes.methods.fs4.stage import DECODER
from sohes.methods.held_out import score_held_out
from sohes.records import StageResult

# A launcher reads the configuration without loading torch; so what the stage needs is imported inside it.


@settings
class Fs4SegmenterConfig(Fs4SegmentSettings):
    """The segmenter of the images of a run."""

    NOT_IN_HASH: ClassVar[frozenset[str]] = frozenset({"pictures", "min_score"})

    pictures: Natural = 6
    """Pictures drawn of held-out images."""
    min_score: Share = 0.5
    """Score of what the pictures show at least; the numbers take every mask."""


def segmenter(config: Fs4SegmenterConfig, inputs: dict[str, Path], out: Path) -> StageResult:
    """Cluster the pixels of unlabelled images, and score the masks on held-out ones where those have a ground truth.

    Inputs: `training`, the folder of FS4's stage or of PiCIE alone, and images. Writes `segmenter/` and pictures.
    """
    from sohes.backbones.provenance import PROVENANCE, read_provenance
    from sohes.backbones.timm_folder import CONFIG
    from sohes.data.coco import read_coco
    from sohes.data.listing import Listing
    from sohes.data.sources import data_name
    from sohes.methods.fs4.make import make_segmenter

    folder, dataset = out / "segmenter", data_name(inputs["images"])
    if not folder.exists():
        training, train = inputs["training"], read_coco(inputs["images"] / "train.json")
        made = make_segmenter(
            training / "backbone",
            training / DECODER,
            Listing.of_items(train.items),
            config,
            out / "pixels",
            data=dataset,
        )
        made.save(folder)
    scores = score_held_out(
        read_coco(inputs["images"] / "val.json"),
        out,
        method=read_provenance(folder / PROVENANCE).steps[-1].method,
        dataset=dataset,
        pictures=config.pictures,
        min_score=config.min_score,
    )
    return replace(scores, notes=[*read_json(folder / CONFIG)["facts"]["notes"], *scores.notes])
