"""Two sets of predictions of the same images, compared image by image (README §8)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
from rich.table import Table

from sohes.data.coco import ImageSet
from sohes.data.problems import Problems
from sohes.errors import DataError
from sohes.evaluation.bootstrap import recall_interval
from sohes.evaluation.image_scores import ImageScores, image_scores
from sohes.evaluation.inputs import checked
from sohes.evaluation.mask_recall import SIZES, MaskScorer
from sohes.evaluation.matching import IOU_THRESHOLDS
from sohes.evaluation.predictions import open_predictions, short_name
from sohes.files import write_text
from sohes.progress import track

METRICS = (*SIZES, "mask_ar_100")
_FOUND = [name.replace("mask_ar", "found") for name in METRICS]
_OBJECTS = [name.replace("mask_ar_1000", "objects").replace("mask_ar_100", "objects") for name in METRICS]
_SIZE_NAMES = ("all", "small", "medium", "large", "all")
_THRESHOLDS = len(IOU_THRESHOLDS)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two methods on one data set.

    Attributes:
        a, b: what is compared, on the images that both have.
        metrics: by metric, in percent and points: `a`, `b`, `difference` (b minus a) with the ends `low` and `high` of
            its 95 % interval, `n_images` and `n_objects` that count; NaN where no object decides a number.
        images: by name, those with objects: `a`, `b` and `difference` of AR@1000, the most changed first.
        notes: what was left out.
    """

    a: ImageScores
    b: ImageScores
    metrics: pd.DataFrame
    images: pd.DataFrame
    notes: tuple[str, ...]

    def table(self) -> Table:
        """For a terminal; differences whose interval excludes 0 are bold."""
        counts = f"{self.metrics['n_images'].max()} images, {self.metrics['n_objects'].max():,} objects"
        table = Table(title=f"{self.a.data}: {counts}\nA {self.a.method}\nB {self.b.method}", title_justify="left")
        for name in ("metric", "objects", "A", "B", "B - A", "95 % interval"):
            table.add_column(name, justify="left" if name in ("metric", "objects") else "right")
        numbers = self.metrics[["a", "b", "difference", "low", "high"]].to_numpy(float)
        for metric, size, (first, second, difference, low, high) in zip(METRICS, _SIZE_NAMES, numbers, strict=True):
            if np.isnan(difference):  # no object of that size
                continue
            change = f"{difference:+.2f}" if difference else "0.00"
            table.add_row(
                "AR@100" if metric == "mask_ar_100" else "AR@1000",
                size,
                f"{first:.2f}",
                f"{second:.2f}",
                f"[bold]{change}[/bold]" if low > 0 or high < 0 else change,
                "none" if np.isnan(low) else f"{low:.2f} to {high:.2f}",
            )
        return table


def score_images(predictions: Path, truth: ImageSet, problems: Problems) -> ImageScores:
    """Predictions scored image by image; see `evaluate_masks`.

    Of a label store the images that it has are scored, those without a mask among them; of a COCO file, which cannot
    name an image without masks, all images of the ground truth.

    Args:
        predictions: label store, COCO file with scores, or COCO results file.
        truth: the ground truth.
        problems: counts what is skipped.

    Raises:
        DataError: predictions that cannot be used, see `open_predictions`.
        ConfigError: a segmenter folder, which has to predict first.
    """
    found = open_predictions(predictions, truth, problems)
    if not predictions.is_file():
        known = set(found)
        truth = replace(truth, items=[item for item in truth.items if item.id in known])
    scorer = MaskScorer(truth)
    for item, forest in track(checked(truth, found), f"score {short_name(predictions)}", total=len(found)):
        scorer.add(item, forest)
    return image_scores(scorer.result(), truth, found, method=short_name(predictions), dataset=short_name(truth.source))


def compare(a: Sequence[ImageScores], b: Sequence[ImageScores]) -> list[Comparison]:
    """Every method of `a` with its counterpart in `b` on the same data: of the same arm, or of the same name.

    Where there is no such pair and one side has a single method, that one is compared with each of the other side.

    Raises:
        DataError: nothing to compare, or different ground truths.
    """
    comparisons = []
    for data in dict.fromkeys(one.data for one in a):
        left, right = ([one for one in side if one.data == data] for side in (a, b))
        pairs = [(one, other) for one in left for other in right if _name(one) == _name(other)]
        if not pairs and 1 in (len(left), len(right)):
            pairs = [(one, other) for one in left for other in right]
        comparisons += [compare_pair(one, other) for one, other in pairs]
    if not comparisons:
        has = [", ".join(f"{one.method} on {one.data}" for one in side) for side in (a, b)]
        raise DataError(
            f"nothing to compare: A has {has[0]}; B has {has[1]}. Both need a method of the same arm or name, or one "
            "method alone, on the same data; or give predictions together with --ground-truth"
        )
    return comparisons


def _name(one: ImageScores) -> str:
    return one.arm or one.method


def compare_pair(a: ImageScores, b: ImageScores) -> Comparison:
    """Recall of `b` minus that of `a`, pooled over the images that both have, and by image.

    Both see the same resampled images: recall pooled over images is linear in the objects found, so the interval of the
    difference is that of the difference in objects found. Protocol "mask_ar1000_bootstrap_v1" otherwise.

    Raises:
        DataError: no image in common, or other objects in one that is.
    """
    where = f"'{a.method}' and '{b.method}' on {a.data}"
    for side in (a, b):
        if not side.images.index.is_unique:
            twice = side.images.index[side.images.index.duplicated()][0]
            raise DataError(f"{where}: {side.ground_truth} names image '{twice}' twice, so images cannot be paired")
    both = a.images.index.intersection(b.images.index, sort=False)
    if not len(both):
        raise DataError(f"{where}: none of the {len(a.images)} images of A is among the {len(b.images)} of B")
    one, other = a.images.loc[both], b.images.loc[both]
    objects = one[_OBJECTS].to_numpy()
    if (differs := (objects != other[_OBJECTS].to_numpy()).any(axis=1)).any():
        raise DataError(
            f"{where}: {differs.sum()} images, among them '{both[differs.argmax()]}', "
            f"have other objects in {a.ground_truth} than in {b.ground_truth}; score both on one ground truth"
        )
    found = [side[_FOUND].to_numpy() / _THRESHOLDS for side in (one, other)]
    total = objects.sum(axis=0)
    with np.errstate(invalid="ignore"):
        recall = [100 * side.sum(axis=0) / total for side in found]
        by_image = [100 * side[:, 0] / objects[:, 0] for side in found]
        difference = 100 * (found[1] - found[0]).sum(axis=0) / total
    low, high = 100 * np.array(recall_interval(found[1] - found[0], objects)).T
    metrics = {"a": recall[0], "b": recall[1], "difference": difference, "low": low, "high": high}
    metrics |= {"n_images": (objects > 0).sum(axis=0), "n_objects": total}
    images = pd.DataFrame({"a": by_image[0], "b": by_image[1], "difference": by_image[1] - by_image[0]}, index=both)
    images = images[objects[:, 0] > 0].sort_values("difference", key=lambda d: -d.abs(), kind="stable")
    table = pd.DataFrame(metrics, index=pd.Index(METRICS, name="metric"))
    return Comparison(a=a, b=b, metrics=table, images=images, notes=_alone(a, b))


def _alone(a: ImageScores, b: ImageScores) -> tuple[str, ...]:
    numbers = {
        name: len(one.images.index.difference(two.images.index)) for name, one, two in (("A", a, b), ("B", b, a))
    }
    return tuple(
        f"{number} images that only {name} has on {a.data} are left out" for name, number in numbers.items() if number
    )


def write_comparisons(path: Path, comparisons: Sequence[Comparison]) -> None:
    """Write all numbers as CSV, a line for each data set, pair of methods and metric."""
    keys = ["dataset", "split", "method_a", "method_b"]
    tables = {(one.a.dataset, one.a.split, one.a.method, one.b.method): one.metrics for one in comparisons}
    write_text(path, pd.concat(tables, names=keys).to_csv(lineterminator="\n"))
