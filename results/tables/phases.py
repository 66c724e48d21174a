"""Two tables of the phases: does mask AR climb from labels to phase 3, and are the relations between masks right."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from results.runs import Run
from results.schema import DATA, Row, by_key, find
from results.table import Block, Table, method_block, repeats_blocks
from results.words import DASH, data_of, method_of, number_of, one_decimal
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


def phases(runs: Sequence[Run]) -> Table:
    """Labels, phase 2, phase 3 on the data of each run."""
    rows = [row for run in runs for row in run.rows if row.arm in PHASES and row.metric in PHASE_METRICS]
    groups = list(by_key(rows, "run", *DATA).values())
    verdicts = [
        f"Mask AR of run {group[0].run} ({data_of(group[0])}) {phases_verdict(phase_values(group))}" for group in groups
    ]
    measured = {row.run for row in rows}
    verdicts += [
        f"Mask AR of run {run.name} {phases_verdict([None] * len(PHASES))}" for run in runs if run.name not in measured
    ]
    return Table(
        name="phases",
        title="From labels to segmenter: class-agnostic mask AR of each phase, in %",
        rows=tuple(rows),
        blocks=(*repeats_blocks(runs, rows, PHASE_METRICS), *map(_phase_block, groups)),
        verdicts=tuple(verdicts),
    )


def _phase_block(group: Sequence[Row]) -> Block:
    return method_block(
        f"run {group[0].run}",
        sorted(group, key=lambda row: PHASES.index(row.arm)),
        PHASE_METRICS,
        "AR@1000: recall at up to 1,000 masks per image, mean over IoU 0.50 to 0.95.",
        "S, M, L: objects below 32², up to 96², above 96² px.",
        "The labels carry no learned score, so their AP says little; their AR does not depend on scores.",
    )


def phase_values(rows: Iterable[Row]) -> list[float | None]:
    """AR@1000 of the three phases; None where it was not measured."""
    by_arm = by_key(rows, "arm")
    found = [find(by_arm.get((arm,), ()), "mask_ar_1000") for arm in PHASES]
    return [None if row is None else row.value for row in found]


def phases_verdict(values: Sequence[float | None]) -> str:
    """Whether AR@1000 rises from labels to phase 2 to phase 3, judged on the printed digits.

    >>> phases_verdict([12.1, 18.0, 17.96])
    'does NOT climb at phase 3: 12.1 → 18.0 → 18.0 (AR@1000, labels → phase 2 → phase 3)'
    """
    known = [None if value is None else one_decimal(value) for value in values]
    missing = [name for name, value in zip(PHASES, known, strict=True) if value is None]
    trail = " → ".join(DASH if value is None else str(value) for value in known)
    trail = f"{trail} (AR@1000, {' → '.join(PHASES)})"
    if len(missing) == len(PHASES):
        return "was not measured: no ground truth was given, or the stage 'evaluate' has not finished"
    flat = [
        name
        for name, before, after in zip(PHASES[1:], known, known[1:], strict=False)
        if before is not None and after is not None and after <= before
    ]
    if flat:
        return f"does NOT climb at {' and '.join(flat)}: {trail}"
    if missing:
        return f"cannot be judged, {' and '.join(missing)} not measured: {trail}"
    return f"climbs: {trail}"


def hierarchy(runs: Sequence[Run]) -> Table:
    """How well each phase tells wholes from parts, beside the coverage rule on the same masks."""
    rows = [row for run in runs for row in run.rows if row.metric in HIERARCHY_METRICS]
    blocks, verdicts = repeats_blocks(runs, rows, HIERARCHY_METRICS), []
    for (run, *_), group in by_key(rows, "run", *DATA).items():
        notes = (
            "Coverage rule: i is an ancestor of j when i covers at least 90 % of j but not the reverse.",
            "A head that starts as this rule (stage instruct notes it) is near it by construction.",
        )
        blocks.append(method_block(f"run {run}", group, HIERARCHY_METRICS, *notes))
        where = f" of run {run}" if len(runs) > 1 else ""
        methods = by_key(group, "method").values()
        verdicts += [f"{method_of(own[0])}{where}: {_hierarchy_verdict(own)}" for own in methods]
    return Table(
        name="hierarchy",
        title="Relations between masks matched to ground truth, in %",
        rows=tuple(rows),
        blocks=tuple(blocks),
        verdicts=tuple(verdicts) or ("Hierarchy was not measured: it needs ground truth with a parent_id field",),
    )


def _hierarchy_verdict(rows: Sequence[Row]) -> str:
    own, rule = find(rows, "relation_f1"), find(rows, "coverage_relation_f1")
    if own is None or rule is None:
        return "relation F1 was not measured"
    gain = one_decimal(own.value) - one_decimal(rule.value)
    word = "beats" if gain > 0 else "equals" if gain == 0 else "does NOT reach"
    return f"relation F1 {number_of(own)} {word} the coverage rule's {number_of(rule)}"
