"""The stages around phases 2 and 3: weights, images, phase 1, evaluation, export. Files in, files out.

Every stage is a function of a config, the paths of earlier artefacts and its own folder. The launcher runs each in its
own process; nothing stops you from calling them yourself.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Self

from pydantic import Field, model_validator

from sohes.configuration import Count, Natural, Share, settings
from sohes.errors import ConfigError, DataError
from sohes.files import atomic_path, read_json, shortened, write_json
from sohes.records import LADDER, Measurement, StageResult
from sohes.settings import ExploreSettings, TeacherSettings

if TYPE_CHECKING:
    from sohes.backbones.provenance import Provenance
    from sohes.data.coco import ImageSet
    from sohes.evaluation.predictions import Predictions
    from sohes.masks import MaskForest

# A launcher reads these configurations without loading torch; so what a stage needs is imported inside it.

_SCENES = "generated scenes"
_NONE_TO_TRAIN_ON = (
    "the ground truth names every image, and what it names is held out: none is left to train on. Give more images, or "
    "hold out a share of these: images.val_fraction=0.1"
)
_WEIGHT_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")
ScenePx = Annotated[int, Field(ge=64)]


@settings
class WeightsConfig:
    """Starting weights: see `sohes.backbones.weights.resolve_weights`."""

    source: str = "vit_base_patch16_224.dino"
    """Of the ViT that is trained: a timm name, a weights file, a timm folder, or random:NAME [paper]."""
    clustering_source: str | None = None
    """Of the frozen ViT of phase 1, if it is another one."""
    architecture: str | None = None
    """timm name of a weights file, with tag, where it cannot be told."""
    clustering_architecture: str | None = None
    """The same of the file of clustering_source."""

    def outside_inputs(self) -> list[Path]:
        """Files whose change makes the stage run again; one that is named as a file is to be there."""
        paths = [Path(source).expanduser() for source in (self.source, self.clustering_source) if source]
        return [path for path in paths if path.exists() or path.suffix in _WEIGHT_SUFFIXES]

    @property
    def patch_px(self) -> int | None:
        """Patch of the ViT that is trained, None where only reading all of the weights tells."""
        path = Path(self.source).expanduser()
        name = self.architecture or self.source
        if path.is_file():
            if path.suffix == ".safetensors" and (patch := _patch_in_header(path)):
                return patch
            name = self.architecture or ""
        elif path.is_dir() and (path / "config.json").exists():
            name = str(read_json(path / "config.json").get("architecture", ""))
        match = re.search(r"(?:patch|vit[tsblg])(\d+)", name)
        return int(match[1]) if match else None


def _patch_in_header(path: Path) -> int | None:
    """Side of the patches that the header of a safetensors file tells."""
    try:
        with path.open("rb") as file:
            header = json.loads(file.read(min(int.from_bytes(file.read(8), "little"), 2**24)))
        shapes = [entry["shape"] for key, entry in header.items() if key.endswith("patch_embed.proj.weight")]
        return int(shapes[0][-1]) if shapes else None
    except (OSError, ValueError, AttributeError, LookupError, TypeError):
        return None  # what is wrong with it is the stage's to say


def weights(config: WeightsConfig, inputs: dict[str, Path], out: Path) -> StageResult:
    """Bring the starting weights into timm folders: `backbone/`, and `clustering/` for phase 1."""
    from sohes.backbones.timm_folder import save_backbone_folder
    from sohes.backbones.weights import resolve_weights

    model, provenance = resolve_weights(config.source, architecture=config.architecture)
    save_backbone_folder(out / "backbone", model, provenance)
    notes = ["start backbone: " + _origin(provenance)]
    clustering = out / "clustering"
    if config.clustering_source:
        model, provenance = resolve_weights(config.clustering_source, architecture=config.clustering_architecture)
        save_backbone_folder(clustering, model, provenance)
        notes.append("clustering backbone: " + _origin(provenance))
    elif not clustering.is_symlink():
        clustering.symlink_to("backbone")
    return StageResult(notes=notes)


def _origin(provenance: Provenance) -> str:
    words = f"{provenance.timm_name}, {provenance.label}; supervision: {provenance.supervision}"
    return "; ".join(filter(None, (words, provenance.steps[0].note)))


@settings
class ImagesConfig:
    """Raw images: a folder of photographs, or generated scenes where no folder is given."""

    folder: str | None = None
    """Folder of photographs; null: scenes are generated."""
    ground_truth: str | None = None
    """COCO JSON of some of the images; those are held out."""
    max_train: Count | None = None
    """Images to learn from, at most; null: all."""
    max_val: Count | None = None
    """Images held out, at most; null: all."""
    val_fraction: Share | None = None
    """Share held out where no ground truth decides; null: 0.1, and with a ground truth the images that it names."""
    scenes_train: Natural = 0
    """Generated scenes to learn from."""
    scenes_val: Natural = 0
    """Generated scenes held out."""
    scenes_px: ScenePx = 224
    """Side of a generated scene, px."""
    seed: Natural = 0
    """Of the scenes, or of the draw of held-out images."""

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
    from sohes.data.scenes import write_scenes
    from sohes.data.sources import check_images, split_images, write_split

    if config.folder is None:
        if not config.scenes_train:
            raise ConfigError("images.folder is not set: pass --images DIR with the photographs to learn from")
        write_scenes(out, train=config.scenes_train, val=config.scenes_val, size=config.scenes_px, seed=config.seed)
        write_json(out / "skipped.json", [])
        write_json(out / "source.json", {"name": _SCENES})
        return StageResult(
            notes=[f"images: {config.scenes_train} {_SCENES} to learn from, {config.scenes_val} held out"]
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
    write_json(out / "source.json", {"name": folder.resolve().name})
    notes = [f"images: {len(split.train)} of {folder} to learn from, {len(split.val)} held out", *listing.notes]
    if not split.train:
        notes.append(_NONE_TO_TRAIN_ON)
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
    """COCO file with categories that the heads learn from; null: scenes are generated."""
    val: str | None = None
    """COCO file with the same categories that the heads are scored on."""
    scenes_train: Count = 48
    """Generated scenes that the heads learn from."""
    scenes_val: Count = 24
    """Generated scenes that the heads are scored on."""
    scenes_px: ScenePx = 224
    """Side of a generated scene, px."""
    seed: Natural = 0
    """Of the scenes."""

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
    from sohes.data.coco import write_coco
    from sohes.data.labelled import read_labelled
    from sohes.data.scenes import write_scenes

    if config.train is None or config.val is None:
        # other scenes than those that were learnt from
        write_scenes(
            out, train=config.scenes_train, val=config.scenes_val, size=config.scenes_px, seed=config.seed + 1000
        )
        write_json(out / "source.json", {"name": _SCENES})
        return StageResult(notes=[f"transfer data: {config.scenes_train} + {config.scenes_val} {_SCENES}"])
    found = read_labelled(Path(config.train).expanduser(), Path(config.val).expanduser())
    sets = {"train": found.train, "val": found.val}
    notes = [f"transfer data: {config.train} and {config.val}", *found.notes]
    for split, images in sets.items():
        write_coco(out / f"{split}.json", images.items, images.annotations, images.categories)
    files = {split: {os.path.realpath(item.path) for item in images.items} for split, images in sets.items()}
    if both := files["train"] & files["val"]:
        notes.append(
            f"{len(both)} images are in train and in val, e.g. {min(both)}: their score is of the training data"
        )
    write_json(out / "source.json", {"name": Path(config.train).stem})
    return StageResult(notes=notes)


@settings
class ExploreConfig(ExploreSettings):
    """Phase 1 on the images of a run."""

    NOT_IN_HASH: ClassVar[frozenset[str]] = frozenset({"overlays"})

    shard_size: Count = 64
    """Images per Parquet shard; what an interrupted run loses at most."""
    overlays: Natural = 6
    """Pictures drawn."""


def explore(config: ExploreConfig, inputs: dict[str, Path], out: Path) -> StageResult:
    """Pseudo-labels of the training and the held-out images. Inputs: backbone, images. Writes `train/`, `val/`."""
    from sohes.backbones.timm_vit import load_backbone
    from sohes.data.coco import read_coco
    from sohes.data.labels import LabelStore
    from sohes.data.listing import Listing
    from sohes.data.summary import summarise
    from sohes.explore import Explorer
    from sohes.explore.stream import calibrated_on, explore_listing, require_masks

    sources = {split: read_coco(inputs["images"] / f"{split}.json") for split in ("train", "val")}
    if not sources["train"].items:
        raise DataError(_NONE_TO_TRAIN_ON)
    explorer = Explorer(load_backbone(inputs["backbone"], feature=config.feature), config)
    explorer = calibrated_on(explorer, Listing.of_items(sources["train"].items))
    notes = []
    for split, source in sources.items():
        listing = Listing.of_items(source.items)
        explore_listing(explorer, listing, out / split, description=f"explore {split}", shard_size=config.shard_size)
        store = LabelStore(out / split)
        summary = summarise(store)
        if split == "train":
            require_masks(summary, config, store.folder)
        bare = f", {summary.without_masks} of them without any" if summary.without_masks else ""
        notes.append(f"phase 1: {summary.masks_an_image:.1f} masks per image on {len(store)} {split} images{bare}")
        notes += [f"skipped {file}: {reason}" for file, reason in store.skipped.items()]
    labelled_ids = [item for item in source.items if item.id in store]
    drawn = _draw(replace(source, items=labelled_ids), {"labels": store.forest}, out / "overlays", config.overlays)
    return StageResult(notes=notes, artefacts=drawn)


def _draw(source: ImageSet, forests: Mapping[str, Callable[[int], MaskForest]], folder: Path, count: int) -> list[Path]:
    """Pictures of the first images: an overlay for each way to segment it, one below the other.

    Args:
        source: the images.
        forests: caption of a row, and the forest of an image id.
        folder: of the PNG files, named after the images.
        count: images drawn.
    """
    from PIL import Image

    from sohes.data.draw import grid, overlay
    from sohes.data.images import load_image

    drawn = []
    for item in source.items[:count]:
        image = load_image(item.path)
        rows = [overlay(image, forest_of(item.id)) for forest_of in forests.values()]
        path = folder / f"{shortened(item.path.stem)}-{item.id}.png"  # names alone may repeat in subfolders
        with atomic_path(path) as temporary:
            picture = rows[0] if len(rows) == 1 else grid(rows, list(forests), columns=1)
            Image.fromarray(picture).save(temporary)
        drawn.append(path)
    return drawn


@settings
class EvaluateConfig:
    """Evaluation on the held-out images."""

    pictures: Natural = 6
    """Pictures drawn: ground truth, labels, phase 2 and phase 3 of an image, one below the other."""
    min_score: Share = 0.5
    """Score of what the pictures show at least; the numbers take every prediction."""


def evaluate(config: EvaluateConfig, inputs: dict[str, Path], out: Path) -> StageResult:
    """Score labels, phase 2 and phase 3 on the held-out images. Inputs: images, labels, instruct, correct."""
    from sohes.data.coco import read_coco
    from sohes.data.labels import LabelStore
    from sohes.data.problems import Problems
    from sohes.evaluation.evaluate import evaluate_predictions
    from sohes.evaluation.inputs import left_out
    from sohes.evaluation.predictions import from_store, run_segmenter
    from sohes.segmenters.decode import select_forest

    truth = read_coco(inputs["images"] / "val.json")
    data = f"{read_json(inputs['images'] / 'source.json')['name']} (held out)"
    problems = Problems()
    predictions = {"SOHES labels (phase 1)": from_store(LabelStore(inputs["labels"]), truth, problems)}
    notes = []
    for phase, folder in (("phase 2", inputs["instruct"]), ("phase 3", inputs["correct"])):
        store, failed = run_segmenter(folder, truth, out / phase.replace(" ", ""), f"predict {phase}")
        predictions[f"SOHES {phase}"] = from_store(store, truth, problems)
        notes += [f"skipped {file}: {reason}" for file, reason in failed.items()]

    def shown(forests: Predictions) -> Callable[[int], MaskForest]:
        return lambda image_id: select_forest(forests[image_id], min_score=config.min_score)

    rows = {name: shown(forests) for name, forests in predictions.items()}
    if truth.annotations:
        rows = {"ground truth": truth.forest, **rows}
    everywhere = set.intersection(*(set(forests) for forests in predictions.values()))
    seen = replace(truth, items=[item for item in truth.items if item.id in everywhere])
    drawn = _draw(seen, rows, out / "pictures", config.pictures)
    if not truth.annotations:
        notes.append("no ground truth for the held-out images: nothing is scored")
        return StageResult(notes=notes, artefacts=drawn)
    measurements: list[Measurement] = []
    for arm, (method, forests) in zip(LADDER, predictions.items(), strict=True):
        scores = evaluate_predictions(truth, forests, problems=problems, description=f"evaluate {method}")
        rows_of = scores.measurements(method=method, backbone=forests.backbone, init=forests.init, data=data)
        measurements += [replace(row, arm=arm, supervision=forests.supervision) for row in rows_of]
        notes += [f"{method}: {line}" for line in left_out(truth, set(forests), Problems())]
    if seen.items:
        notes.append(_as_labels(seen, *list(predictions.values())[:2]))
    return StageResult(measurements=measurements, notes=[*notes, *problems.lines()], artefacts=drawn)


def _as_labels(truth: ImageSet, clusters: Predictions, predicted: Predictions) -> str:
    """How good a teacher phase 3 had: as many of phase 2's best masks as there are labels, scored beside those."""
    from sohes.evaluation.mask_recall import evaluate_masks
    from sohes.segmenters.decode import select_forest

    def best(image_id: int) -> MaskForest:
        distinct = select_forest(predicted[image_id], min_score=0.0, nms_iou=TeacherSettings.teacher_nms_iou)
        return distinct.select(range(min(len(distinct), len(clusters[image_id]))))

    ids = [item.id for item in truth.items]
    teacher, labels = replace(predicted, image_ids=ids, forest=best), replace(clusters, image_ids=ids)
    ours, theirs = (evaluate_masks(truth, found).mask_ar_1000 for found in (teacher, labels))
    return (
        "the teacher with which phase 3 began: as many of its best masks as there are labels have "
        f"AR@1000 {100 * ours:.1f}, the labels {100 * theirs:.1f}"
    )


@settings
class ExportConfig:
    """Export has nothing to choose."""


def export(config: ExportConfig, inputs: dict[str, Path], out: Path) -> StageResult:
    """The ViT inside a segmenter as a timm folder. Input: segmenter. Writes `backbone/`."""
    folder = export_backbone(inputs["segmenter"], out / "backbone")
    shown = os.path.relpath(folder) if folder.is_relative_to(Path.cwd()) else folder
    return StageResult(notes=[f'the backbone: timm.create_model("local-dir:{shown}", pretrained=True)'])


def export_backbone(segmenter: Path, folder: Path) -> Path:
    """Write the ViT inside the segmenter folder `segmenter` to the timm folder `folder`."""
    from sohes.backbones.timm_folder import save_backbone_folder
    from sohes.segmenters.segmenter import load_model

    model, provenance = load_model(segmenter)
    return save_backbone_folder(folder, model.vit, provenance)
