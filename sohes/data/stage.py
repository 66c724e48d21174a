"""Stages that provide images to train on, and labelled ones for the transfer heads."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, model_validator

from sohes.configuration import Count, Natural, Share, settings
from sohes.errors import ConfigError, DataError
from sohes.files import write_json
from sohes.records import StageResult

# A launcher reads these configurations without loading torch; so what a stage needs is imported inside it.

NONE_TO_TRAIN_ON = (
    "the ground truth names every image, and what it names is held out: none is left to train on. Give more images, or "
    "hold out a share of these: images.val_fraction=0.1"
)
ScenePx = Annotated[int, Field(ge=64)]


@settings
class ImagesConfig:
    """Raw images: a folder of photographs, or generated scenes where no folder is given."""

    folder: str | None = None
    """Folder of photographs; null: scenes are generated."""
    ground_truth: str | None = None
    """COCO JSON of some of the images; those are held out."""
    max_train: Count | None = None
    """Images to train on, at most; null: all."""
    max_val: Count | None = None
    """Images held out, at most; null: all."""
    val_fraction: Share | None = None
    """Share held out where no ground truth decides; null: 0.1, and with a ground truth the images that it names."""
    scenes_train: Natural = 0
    """Generated scenes to train on."""
    scenes_val: Natural = 0
    """Generated scenes held out."""
    scenes_px: ScenePx = 224
    """Side of a generated scene, px."""
    seed: Natural = 0
    """Seed of the scenes, or of the draw of held-out images."""

    @model_validator(mode="after")
    def _scenes_to_hold_out(self) -> Self:
        if self.folder is None and self.scenes_train and not self.scenes_val:
            raise ValueError(f"scenes_val=0 holds out none beside scenes_train={self.scenes_train}; make it at least 1")
        return self

    def outside_inputs(self) -> list[Path]:
        """Files whose change makes the stage run again."""
        return [Path(path).expanduser() for path in (self.folder, self.ground_truth) if path]


def images(config: ImagesConfig, inputs: dict[str, Path], out: Path) -> StageResult:
    """Find, check and split the images: `train.json`, `val.json` (COCO form), `skipped.json`, `source.json`."""
    from sohes.data.coco import read_coco
    from sohes.data.listing import list_images
    from sohes.data.scenes.scene import write_scenes
    from sohes.data.sources import GENERATED, SOURCE_FILE, check_images, split_images, write_split

    if config.folder is None:
        if not config.scenes_train:
            raise ConfigError("images.folder is not set: pass --images DIR with the photographs to train on")
        write_scenes(out, train=config.scenes_train, val=config.scenes_val, size=config.scenes_px, seed=config.seed)
        write_json(out / "skipped.json", [])
        return StageResult(
            notes=[f"images: {config.scenes_train} {GENERATED} to train on, {config.scenes_val} held out"]
        )
    folder = Path(config.folder).expanduser()
    listing = list_images(folder)
    items, skipped = check_images(listing)
    write_json(out / "skipped.json", [{"file": file, "reason": reason} for file, reason in skipped.items()])
    if not items:
        raise DataError(f"{folder}: none of the {len(skipped)} images can be read; see {out / 'skipped.json'}")
    truth = read_coco(Path(config.ground_truth).expanduser()) if config.ground_truth else None
    split = split_images(
        items,
        truth,
        max_train=config.max_train,
        max_val=config.max_val,
        val_fraction=config.val_fraction,
        seed=config.seed,
        skipped=skipped,
    )
    write_split(out, split, ground_truth=truth, skipped=skipped)
    write_json(out / SOURCE_FILE, {"name": folder.resolve().name})
    notes = [f"images: {len(split.train)} of {folder} to train on, {len(split.val)} held out", *listing.notes]
    if not split.train:
        notes.append(NONE_TO_TRAIN_ON)
    if split.unmatched:
        notes.append(f"{len(split.unmatched)} ground-truth entries have no usable image, e.g. {split.unmatched[0]}")
    if truth is not None:
        notes += [f"{truth.source}: {line}" for line in truth.problems.lines()]
    else:
        notes.append("no ground truth was given (--ground-truth COCO.json), so nothing is scored on these images")
    if skipped:
        shown = "; ".join(f"{file} ({reason})" for file, reason in list(skipped.items())[:3])
        notes.append(f"{len(skipped)} broken image(s) skipped: {shown}; all in {out / 'skipped.json'}")
    return StageResult(notes=notes)


@settings
class LabelledConfig:
    """Labelled data of the transfer heads: COCO files with categories, or generated scenes."""

    train: str | None = None
    """COCO file with categories that the heads are trained on; null: scenes are generated."""
    val: str | None = None
    """COCO file with the same categories that the heads are scored on."""
    scenes_train: Count = 48
    """Generated scenes that the heads are trained on."""
    scenes_val: Count = 24
    """Generated scenes that the heads are scored on."""
    scenes_px: ScenePx = 224
    """Side of a generated scene, px."""
    seed: Natural = 0
    """Seed of the scenes."""

    @model_validator(mode="after")
    def _both_or_none(self) -> Self:
        if (self.train is None) != (self.val is None):
            raise ValueError("train and val go together: give both COCO files or neither")
        return self

    def outside_inputs(self) -> list[Path]:
        """Files whose change makes the stage run again."""
        return [Path(path).expanduser() for path in (self.train, self.val) if path]


def labelled(config: LabelledConfig, inputs: dict[str, Path], out: Path) -> StageResult:
    """Labelled images for the transfer heads: `train.json` and `val.json` (COCO form), `source.json`."""
    from sohes.data.coco_writer import write_coco
    from sohes.data.labelled import read_labelled
    from sohes.data.scenes.scene import write_scenes
    from sohes.data.sources import GENERATED, SOURCE_FILE

    if config.train is None or config.val is None:
        # other scenes than those of pretraining
        write_scenes(
            out, train=config.scenes_train, val=config.scenes_val, size=config.scenes_px, seed=config.seed + 1000
        )
        return StageResult(notes=[f"transfer data: {config.scenes_train} + {config.scenes_val} {GENERATED}"])
    found = read_labelled(Path(config.train).expanduser(), Path(config.val).expanduser())
    sets = {"train": found.train, "val": found.val}
    notes = [f"transfer data: {config.train} and {config.val}", *found.notes]
    for split, images in sets.items():
        write_coco(out / f"{split}.json", images.items, images.annotations, images.categories)
    files = {split: {os.path.realpath(item.path) for item in images.items} for split, images in sets.items()}
    if both := files["train"] & files["val"]:
        notes.append(
            f"{len(both)} images are in train and in val, e.g. {min(both)}: on them the score is one of training data"
        )
    write_json(out / SOURCE_FILE, {"name": Path(config.train).stem})
    return StageResult(notes=notes)
