"""Phase 1 as a stage: images in, label stores out; and as a picture, beside what was trained on its labels."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from sohes.configuration import Count, Natural, settings
from sohes.errors import DataError
from sohes.explore.settings import ExploreSettings
from sohes.records import StageResult

if TYPE_CHECKING:
    from sohes.masks import MaskForest

# A launcher reads the configuration without loading torch; so what the stage needs is imported inside it.


@settings
class ExploreConfig(ExploreSettings):
    """Phase 1 on the images of a run."""

    NOT_IN_HASH: ClassVar[frozenset[str]] = frozenset({"overlays"})

    shard_size: Count = 64
    """Images per Parquet shard; what an interruption loses at most."""
    overlays: Natural = 6
    """Pictures drawn, of the first training images."""


def explore(config: ExploreConfig, inputs: dict[str, Path], out: Path) -> StageResult:
    """Pseudo-labels of the training and the held-out images. Inputs: backbone, images. Writes `train/`, `val/`."""
    from sohes.backbones.timm_vit import load_backbone
    from sohes.data.coco import read_coco
    from sohes.data.label_store import LabelStore
    from sohes.data.listing import Listing
    from sohes.data.stage import NONE_TO_TRAIN_ON
    from sohes.data.summary import summarise
    from sohes.explore.explorer import Explorer
    from sohes.explore.stream import calibrated_on, explore_listing, require_masks

    sources = {split: read_coco(inputs["images"] / f"{split}.json") for split in ("train", "val")}
    if not sources["train"].items:
        raise DataError(NONE_TO_TRAIN_ON)
    explorer = Explorer(load_backbone(inputs["backbone"], feature=config.feature), config)
    explorer = calibrated_on(explorer, Listing.of_items(sources["train"].items))
    notes, drawn = [], []
    for split, source in sources.items():
        drawn += explore_listing(
            explorer,
            Listing.of_items(source.items),
            out / split,
            description=f"explore {split}",
            shard_size=config.shard_size,
            overlays=config.overlays if split == "train" else 0,
            overlay_folder=out / "overlays",
        )
        store = LabelStore(out / split)
        summary = summarise(store)
        if split == "train":
            require_masks(summary, config, store.folder)
        bare = f", {summary.without_masks} of them without any" if summary.without_masks else ""
        notes.append(f"phase 1: {summary.masks_per_image:.1f} masks per image on {len(store)} {split} images{bare}")
        notes += [f"skipped {file}: {reason}" for file, reason in store.skipped.items()]
    return StageResult(notes=notes, artefacts=drawn)


@settings
class PhotographsConfig:
    """The photographs and what is drawn of them are the same for every run."""


def photographs(config: PhotographsConfig, inputs: dict[str, Path], out: Path) -> StageResult:
    """Four real photographs by phase 1 with nothing set, and by a run's segmenter. Inputs: backbone, segmenter.

    Writes a picture, and the photographs with the label stores `phase1/` and `trained/` for the report's gallery.
    """
    from sohes.backbones.timm_vit import load_backbone
    from sohes.data.label_store import LabelStore
    from sohes.data.listing import Listing
    from sohes.evaluation.predictions import run_segmenter
    from sohes.explore.explorer import Explorer
    from sohes.explore.photographs import draw_photographs, write_photographs
    from sohes.explore.stream import explore_listing
    from sohes.segmenters.decode import select_forest

    images = write_photographs(out)
    listing = Listing.of_items(images.items)
    explore_listing(Explorer(load_backbone(inputs["backbone"])), listing, out / "phase1", description="phase 1")
    explored = LabelStore(out / "phase1")
    predicted, _ = run_segmenter(inputs["segmenter"], images, out / "trained", "trained")
    ids = {item.path.stem: item.id for item in images.items}
    ways: dict[str, Callable[[str], MaskForest]] = {
        "phase 1": lambda name: explored.forest(ids[name]),
        "trained": lambda name: select_forest(predicted.forest(ids[name]), min_score=0.5),
    }
    path = draw_photographs(ways, out / "photographs.jpg")
    shown = path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
    return StageResult(
        notes=[f"{shown}: real photographs by phase 1 with nothing set, and by this run's segmenter"], artefacts=[path]
    )
