"""Facts in words, for tables, verdicts and plots.

Here alone a measured row gets its dagger and its scale ("SOHES phase 3 †demo"), and its data the scale in front and a
"not comparable" behind ("demo · scenes (val), not comparable"); a cited row gets neither.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from decimal import ROUND_HALF_UP, Decimal

from results.schema import MEASURED, PAPER_SCALE, Row, by_key
from sohes.records import describe_data

DASH = "\N{EN DASH}"
DAGGER = "†"

METRIC_TITLES = {
    "mask_ar_1000": "AR@1000",
    "mask_ar_1000_s": "AR S",
    "mask_ar_1000_m": "AR M",
    "mask_ar_1000_l": "AR L",
    "mask_ap": "mask AP",
    "mask_ap50": "mask AP50",
    "mask_ap75": "mask AP75",
    "box_ap": "box AP",
    "box_ap50": "box AP50",
    "miou_dataset": "mIoU",
    "acc_pixel": "pixel accuracy",
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
    "region_covering_ods": "covering ODS",
    "region_covering_ois": "covering OIS",
    "region_covering_best": "covering best",
    "region_pri_ods": "PRI ODS",
    "region_pri_ois": "PRI OIS",
    "region_vi_ods": "VI ODS",
    "region_vi_ois": "VI OIS",
    "segment_covering_ods": "covering of objects ODS",
    "segment_covering_ois": "covering of objects OIS",
    "segment_covering_best": "covering of objects best",
}
_PATTERNS = {  # of metrics with a number in their name
    r"mask_ar_(\d+)": "AR@{}",
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
    for end, words in _ENDS.items():
        if metric.endswith(end):
            return f"{title_of(metric.removesuffix(end))}, {words}"
    for pattern, title in _PATTERNS.items():
        if found := re.fullmatch(pattern, metric):
            return title.format(found[1])
    return metric


def one_decimal(value: float) -> Decimal:
    """The value as tables print it, halves away from zero; verdicts are judged on these digits.

    >>> one_decimal(25.25)
    Decimal('25.3')
    """
    return Decimal(repr(value)).quantize(Decimal("0.1"), ROUND_HALF_UP)


def number_of(row: Row) -> str:
    """A cited number as printed, a measured one to one decimal (bits to two), with its deviation over seeds, if any."""

    def rounded(value: float) -> str:
        return f"{value:.2f}" if row.unit == "bits" else str(one_decimal(value))

    return row.printed or rounded(row.value) + ("" if row.sd is None else f" ± {rounded(row.sd)}")


def marker(scale: str) -> str:
    """What marks a measured row: a dagger and the scale, at paper scale "†ours"."""
    return DAGGER + _label(scale)


def method_of(row: Row) -> str:
    """The method, of a measured row with its marker."""
    return f"{row.method} {marker(row.scale)}" if row.kind == MEASURED else row.method


def data_of(row: Row) -> str:
    """On what it was measured; for a measured row with the scale before it, and behind it whether it is comparable."""
    words = describe_data(row.dataset, row.split, row.n_images, row.of_images)
    if row.kind != MEASURED:
        return words
    return f"{_label(row.scale)} · {words}" + ("" if row.comparable else ", not comparable")


def source_of(rows: Iterable[Row]) -> str:
    """Where the numbers of a line come from: their records, or the one publication."""
    rows = list(rows)
    if rows[0].kind != MEASURED:
        return rows[0].source
    return f"{MEASURED}: {'; '.join(dict.fromkeys(f'{row.source} @{row.commit}' for row in rows))}"


def _label(scale: str) -> str:
    # "paper" alone would read as "from the paper"
    return "ours" if scale == PAPER_SCALE else scale


def supervision_notes(measured: Iterable[Row]) -> tuple[str, ...]:
    """What people gave to measured rows: one note for each start of theirs."""
    stated = dict.fromkeys((row.init, row.supervision) for row in measured if row.supervision)
    return tuple(f"Supervision behind rows that start from {init}: {words}." for init, words in stated)


def seed_notes(measured: Iterable[Row]) -> tuple[str, ...]:
    """What ± means behind measured rows: one note for each number of seeds."""
    numbers = dict.fromkeys(row.n_seeds for row in measured if row.n_seeds)
    return tuple(f"Mean ± standard deviation over {number} seeds, where a number depends on one." for number in numbers)


def separation_notes(measured: Sequence[Row]) -> tuple[str, ...]:
    """One note for each marker in a table: what it means."""
    return tuple(
        f"{marker(scale)}: measured by this project at scale '{scale}', on its own data; not a published result and "
        "not to be compared with one."
        if scale != PAPER_SCALE
        else f"{marker(scale)}: measured by this project at paper scale; not a published result."
        for (scale,) in by_key(measured, "scale")
    )
