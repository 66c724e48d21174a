"""Stages: a backbone folder under an MMSegmentation and an MMDetection head, trained and scored on labelled data."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import AfterValidator

from sohes.configuration import Count, Natural, settings
from sohes.errors import SohesError, unknown_name
from sohes.records import Measurement, StageResult, config_hash

if TYPE_CHECKING:
    from mmengine.config import Config

    from sohes.backbones.timm_folder import BackboneFolder
    from transfer.data import HeadData
    from transfer.mm_run import HeadRun

# A launcher reads these configurations without loading torch or mmcv; so what a stage needs is imported inside it.

_SEMANTIC = {"mIoU": "miou_dataset", "aAcc": "acc_pixel"}
_INSTANCE = {
    "coco/bbox_mAP": "box_ap",
    "coco/segm_mAP": "mask_ap",
    "coco/bbox_mAP_50": "box_ap50",
    "coco/segm_mAP_50": "mask_ap50",
}


Arm = Literal["", "start", "trained"]
CONFIGS = Path(__file__).resolve().parent / "configs"


def recipe_names(task: str) -> list[str]:
    """Recipes of a task ("semantic" or "instance")."""
    return sorted(path.stem for path in (CONFIGS / task).glob("*.py"))


def _known_recipe(task: str, recipe: str) -> str:
    if recipe not in recipe_names(task):
        raise ValueError(unknown_name(f"{task} recipe", recipe, recipe_names(task)))
    return recipe


@settings
class SemanticConfig:
    """Semantic segmentation by an MMSegmentation head."""

    NOT_IN_HASH: ClassVar[frozenset[str]] = frozenset({"checkpoint_every", "n_pictures"})

    recipe: Annotated[str, AfterValidator(partial(_known_recipe, "semantic"))] = "upernet_160k"
    """Name of a file in transfer/configs/semantic."""
    iterations: Count | None = None
    """Training steps; null: the recipe's own number."""
    checkpoint_every: Count = 1000
    """Steps between checkpoints."""
    n_pictures: Natural = 4
    """Val images drawn beside their ground truth."""
    seed: Natural = 0
    """Of the head's weights, the order of samples and their augmentation."""
    arm: Arm = ""
    """Which backbone it is in a run that compares both: start or trained."""


@settings
class InstanceConfig:
    """Detection and instance segmentation by an MMDetection head; otherwise as `SemanticConfig`."""

    NOT_IN_HASH: ClassVar[frozenset[str]] = SemanticConfig.NOT_IN_HASH

    recipe: Annotated[str, AfterValidator(partial(_known_recipe, "instance"))] = "mask_rcnn_1x"
    """Name of a file in transfer/configs/instance."""
    iterations: Count | None = None
    """Training steps; null: the recipe's own number."""
    checkpoint_every: Count = 1000
    """Steps between checkpoints."""
    n_pictures: Natural = 4
    """Val images drawn beside their ground truth."""
    seed: Natural = 0
    """Of the head's weights, the order of samples and their augmentation."""
    arm: Arm = ""
    """Which backbone it is in a run that compares both: start or trained."""


def semantic(config: SemanticConfig, inputs: dict[str, Path], out: Path) -> StageResult:
    """Data-set mIoU and pixel accuracy of a semantic head.

    `inputs`: "backbone", a timm folder; "data", a folder with train.json and val.json. mIoU sums intersections and
    unions over all val images and divides once per class (MMSegmentation's IoUMetric).
    Writes label maps, checkpoints, `head.pth`, mmengine's log, `predictions.png`, `loss.csv`, `loss.png` below `out`.

    Raises:
        SohesError: the MM stack does not work here, the recipe does not exist, data or weights cannot be used.
    """
    from sohes.mm.check import require
    from transfer.data import write_label_maps

    require()
    data = write_label_maps(inputs["data"], Path(out) / "label_maps")
    return _run("semantic", config, inputs, Path(out), data, names=_SEMANTIC, scale=1.0, protocol="mmseg_miou_v1")


def instance(config: InstanceConfig, inputs: dict[str, Path], out: Path) -> StageResult:
    """COCO box and mask AP of an instance head; `inputs` as in `semantic`.

    Writes the instance files and what `semantic` writes below `out`.

    Raises:
        SohesError: as `semantic`.
    """
    from sohes.mm.check import require
    from transfer.data import write_instances

    require()
    data = write_instances(inputs["data"], Path(out) / "instances")
    return _run("instance", config, inputs, Path(out), data, names=_INSTANCE, scale=100.0, protocol="mmdet_coco_ap_v1")


def _run(
    task: str,
    config: SemanticConfig | InstanceConfig,
    inputs: dict[str, Path],
    out: Path,
    data: HeadData,
    *,
    names: dict[str, str],
    scale: float,
    protocol: str,
) -> StageResult:
    from sohes.backbones.timm_folder import load_backbone_folder, weights_digest
    from transfer.mm_run import complete_config, load_recipe, train_and_evaluate
    from transfer.pictures import write_loss_curve, write_predictions

    recipe = load_recipe(task, config.recipe)
    folder = load_backbone_folder(inputs["backbone"])
    full = complete_config(
        recipe,
        backbone=inputs["backbone"],
        folder=folder,
        data=data,
        out=out,
        iterations=config.iterations,
        seed=config.seed,
    )
    identity = {
        "config": config_hash(config),
        "backbone": weights_digest(folder.model),
        "classes": list(data.classes),
    }
    run = train_and_evaluate(full, out, checkpoint_every=config.checkpoint_every, identity=identity)
    values = {ours: scale * _measured(run, theirs) for theirs, ours in names.items()}
    artefacts = [
        write_predictions(out / "predictions.png", run, task=task, count=config.n_pictures),
        *write_loss_curve(out / "loss.png", run),
    ]
    return StageResult(
        measurements=[
            Measurement(
                method=full.method,
                backbone=folder.provenance.timm_name,
                init=folder.provenance.label,
                dataset=_data_name(inputs["data"]),
                split="val",
                protocol=protocol,
                metric=name,
                value=value,
                n_images=data.n_val,
                arm=config.arm,
                supervision=folder.provenance.supervision,
                trained_by=folder.provenance.steps[-1].method,
            )
            for name, value in values.items()
        ],
        notes=[_note(full, folder, values, data), *_remarks(run, data)],
        artefacts=artefacts,
    )


def _measured(run: HeadRun, metric: str) -> float:
    """A metric as MMSeg or MMDet reports it; -1 and NaN are theirs for "nothing to score"."""
    from transfer.mm_run import LOG

    value = float(run.metrics.get(metric, math.nan))
    if not value >= 0:
        log = Path(run.config.work_dir).parent / LOG
        raise SohesError(f"{run.config.method}: the evaluation gave no {metric} ({value}); see {log}")
    return value


def _remarks(run: HeadRun, data: HeadData) -> list[str]:
    """What a reader of the scores should know."""
    from transfer.mm_data import DETECTIONS

    remarks = list(data.notes)
    trained = len(run.runner.train_dataloader.dataset)
    if trained < data.n_train:
        remarks.append(f"trained on {trained} of {data.n_train} images: the others have no instance, or are too small")
    if run.metrics.get(DETECTIONS) == 0:
        remarks.append("nothing was detected in any val image, so every AP is 0")
    return [f"{run.config.method}: {remark}" for remark in remarks]


def _data_name(folder: Path) -> str:
    from sohes.data.sources import SOURCE_FILE, data_name

    return data_name(folder) if (folder / SOURCE_FILE).exists() else folder.name


def _note(config: Config, folder: BackboneFolder, values: Mapping[str, float], data: HeadData) -> str:
    numbers = ", ".join(f"{name} {value:.1f}" for name, value in values.items())
    return (
        f"{config.method} on {folder.provenance.label}: {numbers} after {config.iterations} steps, "
        f"{len(data.classes)} classes, {data.n_val} val images."
    )
