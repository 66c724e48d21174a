"""Two tables of the phases: does mask AR climb from labels to phase 3, and are the relations between masks right."""

from __future__ import annotations

import math
from itertools import pairwise

import pandas as pd

from results.runs import Measurements
from results.table import DATA_KEYS, Table, averaged, method_blocks, named
from results.verdicts import (
    BETTER,
    MISSING,
    ONE_SEED,
    OPEN,
    WORSE,
    Compared,
    PairedDifference,
    Verdict,
    compared,
    paired_difference,
)
from results.words import DASH, data_of, one_decimal
from sohes.records import PHASES

PHASE_METRICS = ("mask_ar_1000", "mask_ar_1000_s", "mask_ar_1000_m", "mask_ar_1000_l", "mask_ap")
F1, RULE_F1 = "relation_f1", "coverage_relation_f1"
HIERARCHY_METRICS = (
    "relation_precision",
    "relation_recall",
    F1,
    RULE_F1,
    "parent_accuracy",
    "coverage_parent_accuracy",
)
OVERLAP_METRICS = ("best_overlap_wholes", "best_overlap_parts")
_NEED_PARENTS = (*HIERARCHY_METRICS, "best_overlap_parts")
_WORDS = {1: "beats", 0: "is not shown to differ from", -1: "does NOT reach"}


def phases(found: Measurements, published: pd.DataFrame) -> Table:
    """Labels, phase 2, phase 3 on the data of the runs."""
    frame = found.frame[found.frame["arm"].isin(PHASES) & found.frame["metric"].isin(PHASE_METRICS)]
    rows = averaged(frame)
    rows = rows.sort_values("arm", key=lambda arm: arm.map(PHASES.index), kind="stable")
    main = frame[frame["metric"] == PHASE_METRICS[0]]
    verdicts = []
    for own in compared(main, (*DATA_KEYS, "group"), "arm"):
        verdict = phases_verdict(own)
        verdicts.append(Verdict(verdict.kind, f"Mask AR of {own.row.group} ({data_of(own.row)}) {verdict.words}"))
    missing = "Mask AR was not measured: no ground truth was given, or the stage 'evaluate' has not finished"
    return Table(
        name="phases",
        title="From labels to segmenter: class-agnostic mask AR of each phase, in %",
        frame=rows,
        blocks=tuple(
            method_blocks(
                rows,
                PHASE_METRICS,
                "AR@1000: recall at up to 1,000 masks per image, mean over IoU 0.50 to 0.95.",
                "S, M, L: objects below 32², up to 96², above 96² px.",
                "The labels carry no learned score, so their AP says little; their AR does not depend on scores.",
                ranked=PHASE_METRICS,
            )
        ),
        verdicts=tuple(verdicts) or (Verdict(MISSING, missing),),
    )


def phases_verdict(values: Compared) -> Verdict:
    """Whether AR@1000 rises from labels to phase 2 to phase 3, judged over seeds; the sides are PHASES.

    >>> phases_verdict(Compared(None, {"run": {"labels": 12.1, "phase 2": 18.0, "phase 3": 19.2}})).words
    '12.1 → 18.0 → 19.2 (AR@1000, labels → phase 2 → phase 3): one seed, no verdict'
    """
    means = {name: values.mean(name) for name in PHASES}
    trail = " → ".join(DASH if math.isnan(mean) else str(one_decimal(mean)) for mean in means.values())
    trail = f"{trail} (AR@1000, {' → '.join(PHASES)})"
    if missing := [name for name, mean in means.items() if math.isnan(mean)]:
        return Verdict(MISSING, f"{trail}: {' and '.join(missing)} not measured")
    gains = {name: values.differences(name, before) for before, name in pairwise(PHASES)}
    if any(len(own) < 2 for own in gains.values()):
        return Verdict(OPEN, f"{trail}: {ONE_SEED}")
    steps = {name: paired_difference(own) for name, own in gains.items()}
    shown = "; ".join(f"{name} {step.words}" for name, step in steps.items())
    kind, words = _judged(steps)
    return Verdict(kind, f"{words}: {trail}; {shown}")


def _judged(steps: dict[str, PairedDifference]) -> tuple[str, str]:
    falls, flat = ([name for name, step in steps.items() if step.sign == sign] for sign in (-1, 0))
    if falls:
        return WORSE, f"FALLS at {' and '.join(falls)}"
    return (OPEN, f"is not shown to climb at {' and '.join(flat)}") if flat else (BETTER, "climbs")


def hierarchy(found: Measurements, published: pd.DataFrame) -> Table:
    """How well each phase tells wholes from parts, beside the coverage rule on the same masks, and finds both.

    Of data without parts it has nothing, though wholes are scored there, too.
    """
    metrics = (*HIERARCHY_METRICS, *OVERLAP_METRICS, "masks_per_image")
    frame = found.frame[found.frame["metric"].isin(metrics)]
    with_parts = frame["metric"].isin(_NEED_PARENTS)
    frame = frame[with_parts.groupby([frame[key] for key in DATA_KEYS], dropna=False).transform("any")]
    rows = averaged(frame)
    notes = (
        "Coverage rule: i is an ancestor of j when i covers at least 90 % of j but not the reverse.",
        "A head that starts as this rule (stage instruct notes it) is near it by construction.",
        "Best overlap: highest IoU of an annotated object with a mask of the image; more masks cannot lose.",
    )
    own = [name for name in HIERARCHY_METRICS if not name.startswith("coverage")]
    return Table(
        name="hierarchy",
        title="Wholes and parts: relations between masks matched to ground truth, and overlap with the best mask, in %",
        frame=rows,
        blocks=tuple(method_blocks(rows, metrics, *notes, ranked=(*own, *OVERLAP_METRICS))),
        verdicts=tuple(_hierarchy_verdicts(frame))
        or (Verdict(MISSING, "Hierarchy was not measured: it needs ground truth with a parent_id field"),),
    )


def _hierarchy_verdicts(frame: pd.DataFrame) -> list[Verdict]:
    """Relation F1 against the coverage rule's, for each method of each group of runs."""
    verdicts = []
    rows = frame[frame["metric"].isin((F1, RULE_F1))]
    for own in compared(rows.assign(name=named(rows)), (*DATA_KEYS, "group", "name"), "metric"):
        if gains := own.differences(F1, RULE_F1):
            gain = paired_difference(gains)
            words = _WORDS[gain.sign] if gain.seeds > 1 else "against"
            ours, rule = one_decimal(own.mean(F1)), one_decimal(own.mean(RULE_F1))
            sentence = f"{own.row.name}: relation F1 {ours} {words} the coverage rule's {rule} ({gain.words})"
            verdicts.append(Verdict(gain.kind, sentence))
    return verdicts
