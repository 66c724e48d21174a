"""Masks of a segmenter that was made without labels, on held-out images: scored where there is a truth, and drawn."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from sohes.records import StageResult

if TYPE_CHECKING:
    from sohes.data.coco import ImageSet

# For stages, which a launcher reads without loading torch; so what is needed is imported inside.


def score_held_out(
    truth: ImageSet, out: Path, *, method: str, dataset: str, pictures: int, min_score: float
) -> StageResult:
    """Predict with `out/segmenter`, score and draw; its card gets the numbers.

    Args:
        truth: the images, with or without annotations.
        out: folder of the stage.
        method: as tables call it.
        dataset: likewise.
        pictures: how many are drawn.
        min_score: of the masks that these show; the numbers take every mask.
    """
    from sohes.backbones.card import add_numbers
    from sohes.data.draw import write_overlays
    from sohes.data.problems import Problems
    from sohes.evaluation.evaluate import evaluate_predictions
    from sohes.evaluation.image_scores import image_scores, write_scores
    from sohes.evaluation.inputs import left_out
    from sohes.evaluation.predictions import from_store, run_segmenter
    from sohes.segmenters.decode import select_forest

    problems = Problems()
    store, failed = run_segmenter(out / "segmenter", truth, out / "predictions", "predict")
    notes = [f"skipped {file}: {reason}" for file, reason in failed.items()]
    found = from_store(store, truth, problems)
    rows = {method: lambda image_id: select_forest(found[image_id], min_score=min_score)}
    if truth.annotations:
        rows = {"ground truth": truth.forest, **rows}
    seen = replace(truth, items=[item for item in truth.items if item.id in set(found)])
    drawn = write_overlays(seen, rows, out / "pictures", pictures)
    if not truth.annotations:
        return StageResult(
            notes=[*notes, "no ground truth for the held-out images: nothing is scored"], artefacts=drawn
        )
    scores = evaluate_predictions(truth, found, problems=problems, description=f"evaluate {method}")
    rows_scored = scores.measurements(found, method=method, dataset=dataset, split="held out")
    add_numbers(out / "segmenter", rows_scored)
    by_image = image_scores(scores.masks, truth, found, method=method, dataset=dataset, split="held out")
    written = write_scores(out, [by_image])
    return StageResult(
        measurements=rows_scored,
        notes=[*notes, *left_out(truth, set(found), problems)],
        artefacts=[*drawn, *written],
    )
