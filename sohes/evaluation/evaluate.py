"""Predictions against a ground truth, by every metric that applies, in one pass over the images."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from sohes.data.coco import ImageSet
from sohes.data.problems import Problems
from sohes.errors import DataError
from sohes.evaluation.best_overlap import BestOverlap, BestOverlapScorer
from sohes.evaluation.hierarchy import HierarchyScorer, HierarchyScores
from sohes.evaluation.inputs import checked
from sohes.evaluation.mask_recall import MaskRecall, MaskScorer
from sohes.evaluation.predictions import Predictions
from sohes.evaluation.protocols import FOREST_DEPTH, get_protocol
from sohes.evaluation.regions import RegionScorer, RegionScores
from sohes.masks import MaskForest
from sohes.progress import Reporter
from sohes.records import Measurement

DEPTHS = 8  # that are told apart; the last has all that lies deeper, too


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """All numbers of one set of predictions.

    Attributes:
        masks: recall and precision.
        overlap: of wholes and parts with the best mask.
        hierarchy: where both sides tell wholes from parts.
        regions: where they were asked for.
        depths: masks per image at depth 0, 1, ...; where the predictions tell wholes from parts.
    """

    masks: MaskRecall
    overlap: BestOverlap
    hierarchy: HierarchyScores | None
    regions: RegionScores | None = None
    depths: tuple[float, ...] = ()

    def metrics(self) -> dict[str, tuple[float, str]]:
        """Value, in the unit of its protocol, and protocol of every metric by name; NaN where nothing decides it."""
        found = self.masks.metrics() | self.overlap.metrics()
        for scores in (self.hierarchy, self.regions):
            found |= scores.metrics() if scores else {}
        return found | {f"masks_depth_{d}": (count, FOREST_DEPTH.id) for d, count in enumerate(self.depths)}

    def measurements(
        self,
        found: Predictions,
        *,
        method: str,
        dataset: str,
        split: str = "",
        of_images: int | None = None,
        arm: str = "",
    ) -> list[Measurement]:
        """The metrics of the predictions `found`, ready for a record; those that are NaN are left out.

        The other arguments are fields of `Measurement`.
        """
        return [
            Measurement(
                method=method,
                backbone=found.backbone,
                init=found.init,
                dataset=dataset,
                split=split,
                protocol=get_protocol(protocol).id,
                metric=metric,
                value=value,
                unit=get_protocol(protocol).unit,
                n_images=self.masks.n_images,
                of_images=of_images,
                arm=arm,
                supervision=found.supervision,
            )
            for metric, (value, protocol) in self.metrics().items()
            if not math.isnan(value)
        ]


def evaluate_predictions(
    truth: ImageSet,
    predictions: Mapping[int, MaskForest],
    *,
    related: bool = True,
    regions: RegionScorer | None = None,
    problems: Problems | None = None,
    description: str = "evaluate",
) -> Evaluation:
    """Score predictions image by image.

    See `evaluate_masks`, `evaluate_best_overlap`, `evaluate_hierarchy` and `evaluate_regions`.

    Args:
        truth: ground truth.
        predictions: forest by image id.
        related: whether the forests tell wholes from parts.
        regions: scores the partitions that the forests make, on the images of `truth`.
        problems: what was left out of the predictions, to explain why there are none.
        description: shown beside the progress.

    Raises:
        DataError: predictions that do not fit, see `checked`; no object to be found, or no mask that was predicted:
            then 0 would be no measurement.
    """
    masks, overlap, hierarchy = MaskScorer(truth), BestOverlapScorer(truth), HierarchyScorer(truth)
    depths, n_forests = np.zeros(DEPTHS, np.int64), 0
    with_parents = related and any(row.parent_id is not None for rows in truth.annotations.values() for row in rows)
    with Reporter(description, len(predictions)) as reporter:
        for item, forest in checked(truth, predictions):
            masks.add(item, forest)
            overlap.add(item, forest)
            if with_parents:
                hierarchy.add(item, forest)
            if related:
                depths += np.bincount(np.minimum(forest.depth, DEPTHS - 1), minlength=DEPTHS)
                n_forests += 1
            if regions:
                regions.add(item, forest)
            reporter.advance()
    result = masks.result()
    if not result.n_objects:
        raise DataError(f"{truth.source}: no object in its {len(truth)} images, so there is nothing to score")
    if not result.n_predictions:
        reasons = problems.lines() if problems else []
        raise DataError("; ".join([f"no usable mask on any of the {len(truth)} images of {truth.source}", *reasons]))
    return Evaluation(
        masks=result,
        overlap=overlap.result(),
        hierarchy=hierarchy.result() if with_parents else None,
        regions=regions.result() if regions else None,
        depths=tuple((depths / n_forests).tolist()) if related else (),
    )
