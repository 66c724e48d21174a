"""Facts in words, for tables, verdicts and plots.

Here alone a measured row gets its dagger and its scale ("SOHES phase 3 †demo"), and its data the scale in front and a
"not comparable" behind ("demo · scenes (val), not comparable"); a cited row gets neither. A `row` is one of
`DataFrame.itertuples`.
"""

from __future__ import annotations

import math
import re
from decimal import ROUND_HALF_UP, Decimal
from typing import Any

import pandas as pd

from results.schema import MEASURED, PAPER_SCALE, POINTS
from sohes.records import describe_data

DASH = "\N{EN DASH}"
DAGGER = "†"

METRIC_TITLES = {
    "mask_ar_1000": "AR@1000",
    "mask_ar_1000_s": "AR S",
    "mask_ar_1000_m": "AR M",
    "mask_ar_1000_l": "AR L",
    "mask_ap": "mask AP",
    "acc_top1": "top-1 accuracy",
    "acc_top1_linear": "linear top-1 accuracy",
    "acc_top1_knn": "k-NN top-1 accuracy",
    "miou": "mIoU as printed",
    "miou_finetuned": "fine-tuned mIoU",
    "miou_image_object_8_segments": "object mIoU per image, 8 segments",
    "miou_image_part_16_segments": "part mIoU per image, 16 segments",
    "miou_object": "object mIoU",
    "miou_image_object": "object mIoU per image",
    "miou_image_part": "part mIoU per image",
    "miou_dataset_object": "object mIoU over the data set",
    "miou_dataset_part": "part mIoU over the data set",
    "mask_ap50": "mask AP50",
    "mask_ap75": "mask AP75",
    "box_ap": "box AP",
    "box_ap50": "box AP50",
    "miou_dataset": "mIoU",
    "acc_pixel": "pixel accuracy",
    "miou_things": "mIoU of things",
    "miou_stuff": "mIoU of stuff",
    "miou_things_alone": "mIoU of things alone",
    "miou_stuff_alone": "mIoU of stuff alone",
    "cluster_miou_leopart": "mIoU, one to one by IoU",
    "cluster_miou_hungarian": "mIoU, one to one by pixels",
    "cluster_miou_iou": "mIoU, many to one by IoU",
    "cluster_miou_majority": "mIoU, many to one by pixels",
    "cluster_accuracy_leopart": "pixel accuracy, one to one by IoU",
    "cluster_accuracy_hungarian": "pixel accuracy, one to one by pixels",
    "cluster_accuracy_iou": "pixel accuracy, many to one by IoU",
    "cluster_accuracy_majority": "pixel accuracy, many to one by pixels",
    "miou_linear_probe": "linear mIoU",
    "miou_fcn_probe": "FCN mIoU",
    "miou_overcluster_500": "K=500 mIoU",
    "miou_retrieval": "retrieval mIoU",
    "miou_hungarian_21": "unsupervised mIoU, 21 classes",
    "relation_precision": "relation precision",
    "relation_recall": "relation recall",
    "relation_f1": "relation F1",
    "coverage_relation_f1": "coverage rule: F1",
    "parent_accuracy": "parent accuracy",
    "coverage_parent_accuracy": "coverage rule: parents",
    "best_overlap_wholes": "best overlap of wholes",
    "best_overlap_parts": "best overlap of parts",
    "masks_per_image": "masks per image",
    "region_covering_ods": "covering ODS",
    "region_covering_ois": "covering OIS",
    "region_covering_best": "covering best",
    "region_pri_ods": "PRI ODS",
    "region_pri_ois": "PRI OIS",
    "region_vi_ods": "VI ODS",
    "region_vi_ois": "VI OIS",
    "cost_parameters": "parameters (M)",
    "cost_gflops": "GFLOPs",
    "cost_images_per_s": "images/s",
    "cost_memory": "memory (GB)",
    "cost_hours": "hours",
    "segment_covering_ods": "covering of objects ODS",
    "segment_covering_ois": "covering of objects OIS",
    "segment_covering_best": "covering of objects best",
}
_PLACES = {"bits": "0.01", "h": "0.01"}
_PATTERNS = {  # of metrics with a number in their name
    r"mask_ar_(\d+)": "AR@{}",
    r"masks_depth_(\d+)": "masks of depth {}",
    r"mask_recall_iou(\d+)": "recall at IoU 0.{}",
    r"miou_(\d+)_classes": "mIoU over {} chosen classes",
}
_ENDS = {"_low": "lower end of its 95 % interval", "_high": "upper end of its 95 % interval"}


def title_of(metric: str) -> str:
    """A metric's name for readers; an unknown one as it is.

    >>> title_of("miou_6_classes"), title_of("mask_ar_1000_s_low")
    ('mIoU over 6 chosen classes', 'AR S, lower end of its 95 % interval')
    """
    if title := METRIC_TITLES.get(metric):
        return title
    if metric.endswith("_difference"):
        return f"Δ {title_of(metric.removesuffix('_difference'))}"
    for end, words in _ENDS.items():
        if metric.endswith(end):
            return f"{title_of(metric.removesuffix(end))}, {words}"
    for pattern, title in _PATTERNS.items():
        if found := re.fullmatch(pattern, metric):
            return title.format(found[1])
    return metric


def one_decimal(value: float) -> Decimal:
    """The value as tables print it, halves away from zero.

    >>> one_decimal(25.25)
    Decimal('25.3')
    """
    return _rounded(value, "0.1")


def number_of(row: Any) -> str:
    """A cited number as printed, a measured one to one decimal (bits and hours to two), with its deviation.

    A difference, in points, has a sign.
    """
    if row.printed:
        return str(row.printed)
    places = _PLACES.get(row.unit, "0.1")
    text = f"{_rounded(row.value, places):{'+' if row.unit == POINTS else ''}}"
    return text if math.isnan(row.sd) else f"{text} ± {_rounded(row.sd, places)}"


def _rounded(value: float, places: str) -> Decimal:
    return Decimal(repr(float(value))).quantize(Decimal(places), ROUND_HALF_UP)


def marker(scale: str) -> str:
    """What marks a measured row: a dagger and the scale, at paper scale "†ours"."""
    return DAGGER + _label(scale)


def method_of(row: Any) -> str:
    """The method, of a measured row with its marker."""
    return f"{row.method} {marker(row.scale)}" if row.kind == MEASURED else str(row.method)


def data_of(row: Any) -> str:
    """On what it was measured; for a measured row with the scale before it, and behind it whether it is comparable."""
    words = bare_data_of(row)
    if row.kind != MEASURED:
        return words
    return f"{_label(row.scale)} · {words}" + ("" if row.comparable else ", not comparable")


def bare_data_of(row: Any) -> str:
    """Data set, split, and which part of it, where it was a part."""
    return describe_data(row.dataset, row.split, row.n_images, None if pd.isna(row.of_images) else row.of_images)


def source_of(row: Any) -> str:
    """Where a number comes from: its record and commit, or the publication."""
    return f"{MEASURED}: {row.source} @{row.commit}" if row.kind == MEASURED else str(row.source)


def _label(scale: str) -> str:
    # "paper" alone would read as "from the paper"
    return "ours" if scale == PAPER_SCALE else scale


def supervision_class(words: str) -> str:
    """What people gave, in one word: "none", "refiner" (of pseudo-labels, trained on masks), "labels", "masks".

    Tables mark the best within each class. An en dash where nothing is stated.

    >>> supervision_class("none (linear probe uses labels)"), supervision_class("image labels, masks (probable)")
    ('none', 'masks')
    """
    if "refiner" in words:
        return "refiner"
    if words.startswith("none") and "mask" not in words:
        return "none"
    for word in ("mask", "label", "text"):
        if word in words:
            return word if word == "text" else f"{word}s"
    return DASH


def supervision_notes(rows: pd.DataFrame) -> tuple[str, ...]:
    """What people gave: a note for each start of measured rows, and one for each kind of supervision of cited ones."""
    measured = rows[(rows["kind"] == MEASURED) & (rows["supervision"] != "")]
    stated = dict.fromkeys(zip(measured["init"], measured["supervision"], strict=True))
    cited = rows[rows["kind"] != MEASURED].groupby("supervision", sort=False)["method"].unique()
    return (
        *(f"Supervision of {', '.join(names)}: {words}." for words, names in cited.items()),
        *(f"Supervision behind rows that start from {init}: {words}." for init, words in stated),
    )


def separation_notes(measured: pd.DataFrame) -> tuple[str, ...]:
    """One note for each marker in a table: what it means."""
    return tuple(
        f"{marker(scale)}: measured by this project at scale '{scale}', on its own data; not a published result and "
        "not to be compared with one."
        if scale != PAPER_SCALE
        else f"{marker(scale)}: measured by this project at paper scale; not a published result."
        for scale in dict.fromkeys(measured["scale"])
    )


SEEDS_NOTE = "Mean ± standard deviation over runs that differ in their seed alone; their number under Seeds."
