"""Two tables of the phases: does mask AR climb from labels to phase 3, and are the relations between masks right."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pandas as pd

from results.runs import Measurements
from results.table import Table, averaged, by_data, method_blocks, named
from results.verdicts import ONE_SEED, Difference, paired_difference
from results.words import DASH, data_of, one_decimal
from sohes.records import PHASES

PHASE_METRICS = ("mask_ar_1000", "mask_ar_1000_s", "mask_ar_1000_m", "mask_ar_1000_l", "mask_ap")
HIERARCHY_METRICS = (
    "relation_precision",
    "relation_recall",
    "relation_f1",
    "coverage_relation_f1",
    "parent_accuracy",
    "coverage_parent_accuracy",
)


def phases(found: Measurements, published: pd.DataFrame) -> Table:
    """Labels, phase 2, phase 3 on the data of the runs."""
    frame = found.frame[found.frame["arm"].isin(PHASES) & found.frame["metric"].isin(PHASE_METRICS)]
    rows = averaged(frame)
    rows = rows.sort_values("arm", key=lambda arm: arm.map(PHASES.index), kind="stable")
    main = frame[frame["metric"] == PHASE_METRICS[0]]
    verdicts = [
        f"Mask AR of {group} ({data_of(own.iloc[0])}) {phases_verdict(_by_phase(own))}"
        for data in by_data(main)
        for group, own in data.groupby("group", sort=False)
    ]
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
        verdicts=tuple(verdicts)
        or ("Mask AR was not measured: no ground truth was given, or the stage 'evaluate' has not finished",),
    )


def _by_phase(rows: pd.DataFrame) -> pd.DataFrame:
    """AR@1000, a row for each run, a column for each phase; NaN where it was not measured."""
    return rows.pivot_table(index="run", columns="arm", values="value", sort=False).reindex(columns=list(PHASES))


def phases_verdict(values: pd.DataFrame) -> str:
    """Whether AR@1000 rises from labels to phase 2 to phase 3, judged over seeds; `values` are those of `_by_phase`.

    >>> phases_verdict(pd.DataFrame([[12.1, 18.0, 19.2]], columns=PHASES))
    '12.1 → 18.0 → 19.2 (AR@1000, labels → phase 2 → phase 3): one seed, no verdict'
    """
    trail = " → ".join(DASH if np.isnan(mean) else str(one_decimal(mean)) for mean in values.mean())
    trail = f"{trail} (AR@1000, {' → '.join(PHASES)})"
    if missing := [name for name in PHASES if values[name].isna().all()]:
        return f"{trail}: {' and '.join(missing)} not measured"
    steps = {
        name: paired_difference(gains)
        for before, name in pairwise(PHASES)
        if len(gains := (values[name] - values[before]).dropna())
    }
    if any(step.seeds == 1 for step in steps.values()):
        return f"{trail}: {ONE_SEED}"
    shown = "; ".join(f"{name} {step.words}" for name, step in steps.items())
    return f"{_judged(steps)}: {trail}; {shown}"


def _judged(steps: dict[str, Difference]) -> str:
    falls, flat = ([name for name, step in steps.items() if step.sign == sign] for sign in (-1, 0))
    if falls:
        return f"FALLS at {' and '.join(falls)}"
    return f"is not shown to climb at {' and '.join(flat)}" if flat else "climbs"


def hierarchy(found: Measurements, published: pd.DataFrame) -> Table:
    """How well each phase tells wholes from parts, beside the coverage rule on the same masks."""
    frame = found.frame[found.frame["metric"].isin(HIERARCHY_METRICS)]
    rows = averaged(frame)
    notes = (
        "Coverage rule: i is an ancestor of j when i covers at least 90 % of j but not the reverse.",
        "A head that starts as this rule (stage instruct notes it) is near it by construction.",
    )
    own = [name for name in HIERARCHY_METRICS if not name.startswith("coverage")]
    return Table(
        name="hierarchy",
        title="Relations between masks matched to ground truth, in %",
        frame=rows,
        blocks=tuple(method_blocks(rows, HIERARCHY_METRICS, *notes, ranked=own)),
        verdicts=tuple(_hierarchy_verdicts(frame))
        or ("Hierarchy was not measured: it needs ground truth with a parent_id field",),
    )


def _hierarchy_verdicts(frame: pd.DataFrame) -> list[str]:
    """Relation F1 against the coverage rule's, for each method of each group of runs."""
    verdicts = []
    for data in by_data(frame[frame["metric"].isin(("relation_f1", "coverage_relation_f1"))]):
        for name, own in data.groupby(named(data), sort=False):
            values = own.pivot_table(index="run", columns="metric", values="value").dropna()
            if values.shape[1] == 2 and len(values):
                gain = paired_difference(values["relation_f1"] - values["coverage_relation_f1"])
                words = {1: "beats", 0: "is not shown to differ from", -1: "does NOT reach"}[gain.sign]
                ours, rule = (one_decimal(values[metric].mean()) for metric in ("relation_f1", "coverage_relation_f1"))
                words = words if gain.seeds > 1 else "against"
                verdicts.append(f"{name}: relation F1 {ours} {words} the coverage rule's {rule} ({gain.words})")
    return verdicts
