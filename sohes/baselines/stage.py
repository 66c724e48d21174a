"""Stages of a benchmark suite: one model on one data set, segmented, kept, scored by the published protocol.

An interrupted stage resumes: its predictions lie in a label store in its folder.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from sohes.baselines.registry import make_baseline_for
from sohes.baselines.settings import (
    DinoSettings,
    FelzenszwalbSettings,
    SamSettings,
    SlicMergeSettings,
    SohesSettings,
    VitKmeansSettings,
)
from sohes.configuration import Count, settings
from sohes.data.prepare import resolve_ground_truth
from sohes.errors import DataError
from sohes.records import StageResult, config_hash

if TYPE_CHECKING:
    from sohes.data.coco import ImageSet
    from sohes.data.problems import Problems
    from sohes.evaluation.predictions import Predictions

# A launcher reads these configurations without loading torch; so what a stage needs is imported inside it.


@settings
class CellConfig:
    """One cell of a suite's table."""

    SOURCE: ClassVar[str] = ""  # the field that names weights or predictions

    model: str
    """Row of the table, the method's name."""
    dataset: str
    """Column of the table."""
    ground_truth: str | None = None
    """COCO file or name of a prepared data set, where it is not `dataset` itself."""
    max_images: Count | None = None
    """First images of the data set that are scored; null: all."""

    def truth_file(self) -> Path:
        """The COCO file of the data set; DataError when it is not there."""
        return resolve_ground_truth(self.ground_truth or self.dataset)

    def outside_inputs(self) -> list[Path]:
        """Files whose change makes the stage run again; one that is missing is the stage's to report."""
        try:
            paths = [self.truth_file()]
        except DataError:
            paths = []
        source = Path(getattr(self, self.SOURCE)).expanduser() if self.SOURCE else None
        return [*paths, source] if source is not None and source.exists() else paths


@settings
class SamConfig(CellConfig, SamSettings):
    """SAM's automatic masks."""

    SOURCE: ClassVar[str] = "weights"


@settings
class DinoConfig(CellConfig, DinoSettings):
    """Single-threshold clustering."""

    SOURCE: ClassVar[str] = "backbone"


@settings
class SohesConfig(CellConfig, SohesSettings):
    """Phase 1."""

    SOURCE: ClassVar[str] = "backbone"


@settings
class VitKmeansConfig(CellConfig, VitKmeansSettings):
    """k-means of a ViT's tokens."""

    SOURCE: ClassVar[str] = "backbone"


@settings
class FelzenszwalbConfig(CellConfig, FelzenszwalbSettings):
    """Graph-based segmentation."""


@settings
class SlicMergeConfig(CellConfig, SlicMergeSettings):
    """Merged superpixels."""


@settings
class PredictionsConfig(CellConfig):
    """A trained segmenter, a label store, or another system's COCO results; `{dataset}` in the path is filled in."""

    SOURCE: ClassVar[str] = "predictions"

    predictions: str
    """Segmenter folder, label store or COCO results."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "predictions", self.predictions.replace("{dataset}", self.dataset))


def sam(config: SamConfig, inputs: dict[str, Path], out: Path) -> StageResult:
    """SAM's automatic masks on one data set."""
    return _baseline("sam", config, out)


def dino(config: DinoConfig, inputs: dict[str, Path], out: Path) -> StageResult:
    """Single-threshold clustering on one data set."""
    return _baseline("dino", config, out)


def sohes(config: SohesConfig, inputs: dict[str, Path], out: Path) -> StageResult:
    """Phase 1 on one data set."""
    return _baseline("sohes", config, out)


def vit_kmeans(config: VitKmeansConfig, inputs: dict[str, Path], out: Path) -> StageResult:
    """k-means of a ViT's tokens on one data set."""
    return _baseline("vit_kmeans", config, out)


def felzenszwalb(config: FelzenszwalbConfig, inputs: dict[str, Path], out: Path) -> StageResult:
    """Felzenszwalb's regions on one data set."""
    return _baseline("felzenszwalb", config, out)


def slic_merge(config: SlicMergeConfig, inputs: dict[str, Path], out: Path) -> StageResult:
    """Merged superpixels on one data set."""
    return _baseline("slic_merge", config, out)


def predictions(config: PredictionsConfig, inputs: dict[str, Path], out: Path) -> StageResult:
    """Predictions that exist, or those of a trained segmenter, on one data set."""
    from sohes.data.coco import read_coco
    from sohes.data.image_root import with_image_root
    from sohes.data.problems import Problems
    from sohes.evaluation.predictions import open_predictions

    truth, problems = with_image_root(read_coco(config.truth_file())), Problems()
    found = open_predictions(Path(config.predictions).expanduser(), truth, problems, out=out, limit=config.max_images)
    return _scored(config, truth, found, problems, out)


def _baseline(name: str, config: CellConfig, out: Path) -> StageResult:
    """Segment with a baseline, and score. The data come first: weights may take long to load, or be missing."""
    from sohes.data.coco import read_coco
    from sohes.data.image_root import with_image_root
    from sohes.data.labelling import label_images
    from sohes.data.problems import Problems
    from sohes.evaluation.inputs import first_images
    from sohes.evaluation.predictions import open_predictions

    truth = with_image_root(read_coco(config.truth_file()))
    wanted = first_images(truth, config.max_images)
    baseline = make_baseline_for(wanted, name, config)
    failed = label_images(
        baseline.predict,
        wanted,
        out / "predictions",
        header={"model": config.model, "settings": config_hash(config)},
        description=f"{config.model} on {config.dataset}",
    )
    problems = Problems()
    found = open_predictions(out / "predictions", truth, problems, limit=config.max_images)
    found = replace(found, backbone=baseline.backbone, init=baseline.init, supervision=baseline.supervision)
    result = _scored(config, truth, found, problems, out)
    return replace(result, notes=[*result.notes, *(f"skipped {reason}" for reason in failed.values())])


def _scored(config: CellConfig, truth: ImageSet, found: Predictions, problems: Problems, out: Path) -> StageResult:
    from sohes.evaluation.evaluate import evaluate_predictions
    from sohes.evaluation.image_scores import image_scores, write_scores
    from sohes.evaluation.inputs import first_images, left_out

    wanted = first_images(truth, config.max_images)
    scores = evaluate_predictions(wanted, found, related=found.related, problems=problems)
    of_images = len(truth) if len(wanted) < len(truth) else None
    rows = scores.measurements(found, method=config.model, dataset=config.dataset, of_images=of_images)
    by_image = image_scores(scores.masks, wanted, found, method=config.model, dataset=config.dataset)
    written = write_scores(out, [by_image])
    # what is broken may show while it is scored
    return StageResult(measurements=rows, notes=left_out(wanted, found, problems), artefacts=written)
