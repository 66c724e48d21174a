"""The segmenter as a stage: backbone and images in, segmenter folder out."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from sohes.configuration import Natural, Share, settings
from sohes.files import read_json
from sohes.methods.held_out import score_held_out
from sohes.methods.leopart.segment_settings import METHOD, SegmentSettings, check_size
from sohes.records import StageResult

if TYPE_CHECKING:
    from sohes.data.coco import ImageSet
    from sohes.rle import BoolArray

# A launcher reads the configuration without loading torch; so what the stage needs is imported inside it.


@settings
class SegmenterConfig(SegmentSettings):
    """The segmenter of the images of a run."""

    NOT_IN_HASH: ClassVar[frozenset[str]] = frozenset({"pictures", "min_score"})

    pictures: Natural = 6
    """Pictures drawn of held-out images."""
    min_score: Share = 0.5
    """Score of what the pictures show at least; the numbers take every mask."""

    def check_beside(self, others: Iterable[Any]) -> None:
        """Check against the configurations of the stages before: what they say of the ViT's patch.

        Raises:
            ConfigError: the square that images are resized to is no multiple of it.
        """
        for other in others:
            if patch_px := getattr(other, "patch_px", None):
                check_size(self.size_px, patch_px, "the backbone")


def segmenter(config: SegmenterConfig, inputs: dict[str, Path], out: Path) -> StageResult:
    """Make a segmenter of unlabelled images, and score its masks on held-out ones where those have a ground truth.

    Inputs: backbone, images, and optionally `attention`, a backbone whose attention tells the noisy foreground in place
    of the first one's: its start. Writes `segmenter/` and pictures.
    """
    from sohes.backbones.timm_folder import CONFIG
    from sohes.data.coco import read_coco
    from sohes.data.listing import Listing
    from sohes.data.sources import data_name
    from sohes.methods.leopart.make import make_segmenter

    folder, dataset = out / "segmenter", data_name(inputs["images"])
    if not folder.exists():
        train = read_coco(inputs["images"] / "train.json")
        made = make_segmenter(
            inputs["backbone"],
            Listing.of_items(train.items),
            config,
            out / "patches",
            attention=inputs.get("attention"),
            data=dataset,
            truth=_truth(train) if train.annotations else None,
        )
        made.save(folder)
    notes = read_json(folder / CONFIG)["facts"]["notes"]
    scores = score_held_out(
        read_coco(inputs["images"] / "val.json"),
        out,
        method=METHOD,
        dataset=dataset,
        pictures=config.pictures,
        min_score=config.min_score,
    )
    return replace(scores, notes=[*notes, *scores.notes])


def _truth(images: ImageSet) -> Callable[[int], BoolArray]:
    """Where an image has any annotation, by its place."""
    import numpy as np

    from sohes.rle import decode_masks

    def foreground(place: int) -> BoolArray:
        item = images.items[place]
        return np.asarray(decode_masks(images.forest(item.id).rles, item.size_hw).any(axis=0))

    return foreground
