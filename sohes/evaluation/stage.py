"""Labels, phase 2 and phase 3 on held-out images, as a stage."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sohes.configuration import Natural, Share, settings
from sohes.records import PHASES, Measurement, StageResult

if TYPE_CHECKING:
    from sohes.data.coco import ImageSet
    from sohes.evaluation.predictions import Predictions
    from sohes.masks import MaskForest

# A launcher reads the configuration without loading torch; so what the stage needs is imported inside it.


@settings
class EvaluateConfig:
    """Evaluation on the held-out images."""

    method: str = "SOHES"
    """Method whose labels and phases these are, as tables call it."""
    pictures: Natural = 6
    """Pictures drawn: ground truth, labels, phase 2 and phase 3 of an image, one below the other."""
    min_score: Share = 0.5
    """Score of what the pictures show at least; the numbers take every prediction."""


def evaluate(config: EvaluateConfig, inputs: dict[str, Path], out: Path) -> StageResult:
    """Score labels, phase 2 and phase 3 on the held-out images. Inputs: images, labels, instruct, correct.

    The cards of both segmenters get their numbers.
    """
    from sohes.backbones.card import add_numbers
    from sohes.data.coco import read_coco
    from sohes.data.draw import write_overlays
    from sohes.data.label_store import LabelStore
    from sohes.data.problems import Problems
    from sohes.data.sources import data_name
    from sohes.evaluation.evaluate import evaluate_predictions
    from sohes.evaluation.image_scores import ImageScores, image_scores, write_scores
    from sohes.evaluation.inputs import left_out
    from sohes.evaluation.predictions import from_store, run_segmenter
    from sohes.segmenters.decode import select_forest

    truth = read_coco(inputs["images"] / "val.json")
    dataset = data_name(inputs["images"])
    problems = Problems()
    predictions = {f"{config.method} labels (phase 1)": from_store(LabelStore(inputs["labels"]), truth, problems)}
    notes = []
    for phase, folder in (("phase 2", inputs["instruct"]), ("phase 3", inputs["correct"])):
        store, failed = run_segmenter(folder, truth, out / phase.replace(" ", ""), f"predict {phase}")
        predictions[f"{config.method} {phase}"] = from_store(store, truth, problems)
        notes += [f"skipped {file}: {reason}" for file, reason in failed.items()]

    def shown(forests: Predictions) -> Callable[[int], MaskForest]:
        return lambda image_id: select_forest(forests[image_id], min_score=config.min_score)

    rows = {name: shown(forests) for name, forests in predictions.items()}
    if truth.annotations:
        rows = {"ground truth": truth.forest, **rows}
    everywhere = set.intersection(*(set(forests) for forests in predictions.values()))
    seen = replace(truth, items=[item for item in truth.items if item.id in everywhere])
    drawn = write_overlays(seen, rows, out / "pictures", config.pictures)
    if not truth.annotations:
        notes.append("no ground truth for the held-out images: nothing is scored")
        return StageResult(notes=notes, artefacts=drawn)
    measurements: list[Measurement] = []
    by_image: list[ImageScores] = []
    for arm, (method, forests) in zip(PHASES, predictions.items(), strict=True):
        scores = evaluate_predictions(truth, forests, problems=problems, description=f"evaluate {method}")
        facts: Any = {"method": method, "dataset": dataset, "split": "held out", "arm": arm}
        measurements += scores.measurements(forests, **facts)
        by_image.append(image_scores(scores.masks, truth, forests, **facts))
        notes += [f"{method}: {line}" for line in left_out(truth, set(forests), Problems())]
    for arm, name in (("phase 2", "instruct"), ("phase 3", "correct")):
        add_numbers(inputs[name], [row for row in measurements if row.arm == arm])
    if seen.items:
        notes.append(_as_labels(seen, *list(predictions.values())[:2]))
    written = write_scores(out, by_image)
    return StageResult(measurements=measurements, notes=[*notes, *problems.lines()], artefacts=[*drawn, *written])


def _as_labels(truth: ImageSet, clusters: Predictions, predicted: Predictions) -> str:
    """How good a teacher phase 3 had: as many of phase 2's best masks as there are labels, scored beside those."""
    from sohes.evaluation.mask_recall import evaluate_masks
    from sohes.segmenters.decode import select_forest

    def best(image_id: int) -> MaskForest:
        distinct = select_forest(predicted[image_id], min_score=0.0)
        return distinct.select(range(min(len(distinct), len(clusters[image_id]))))

    ids = [item.id for item in truth.items]
    teacher, labels = replace(predicted, image_ids=ids, forest=best), replace(clusters, image_ids=ids)
    ours, theirs = (evaluate_masks(truth, found).mask_ar_1000 for found in (teacher, labels))
    return (
        "the teacher with which phase 3 began: as many of its best masks as there are labels have "
        f"AR@1000 {100 * ours:.1f}, the labels {100 * theirs:.1f}"
    )
