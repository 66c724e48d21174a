"""A table: blocks of lines, each block wholly measured or wholly cited, and the helpers every table uses."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal
from statistics import mean, stdev

from results.schema import DAGGER, MEASURED, Row, Run, group_repeats
from sohes.errors import DataError

DASH = "\N{EN DASH}"

METRIC_TITLES = {
    "mask_ar_1000": "AR@1000",
    "mask_ar_1000_s": "AR S",
    "mask_ar_1000_m": "AR M",
    "mask_ar_1000_l": "AR L",
    "mask_ap": "mask AP",
    "mask_ap50": "mask AP50",
    "box_ap": "box AP",
    "box_ap50": "box AP50",
    "miou_dataset": "mIoU",
    "acc_pixel": "pixel accuracy",
    "relation_precision": "relation precision",
    "relation_recall": "relation recall",
    "relation_f1": "relation F1",
    "coverage_relation_f1": "coverage rule: F1",
    "parent_accuracy": "parent accuracy",
    "coverage_parent_accuracy": "coverage rule: parents",
}


@dataclass(frozen=True, kw_only=True)
class Block:
    """Lines under one header, all measured or all cited; the last cell of a line is its source.

    Raises:
        DataError: on construction, when a measured line has no dagger in its first cell, a cited line has one anywhere,
            or a line is not as long as the header.
    """

    measured: bool
    heading: str
    header: tuple[str, ...]
    lines: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for line in self.lines:
            if len(line) != len(self.header):
                raise DataError(f"table block '{self.heading}': {len(line)} cells under {len(self.header)} titles")
            if self.measured and DAGGER not in line[0]:
                raise DataError(f"table block '{self.heading}': measured line '{line[0]}' lacks its '{DAGGER}'")
            if not self.measured and any(DAGGER in cell for cell in line):
                raise DataError(f"table block '{self.heading}': '{line[0]}' is measured, the block is of cited numbers")


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table in all its forms: `rows` for the CSV (one row one number), `blocks` for reading."""

    name: str
    title: str
    rows: tuple[Row, ...]
    blocks: tuple[Block, ...]
    verdicts: tuple[str, ...] = ()


def title_of(metric: str) -> str:
    """A metric's name for readers; an unknown one as it is."""
    return METRIC_TITLES.get(metric, metric)


def phase_of(row: Row) -> str:
    """The method without its marker."""
    return row.method.partition(f" {DAGGER}")[0]


def by_key(rows: Iterable[Row], *names: str) -> dict[tuple[str, ...], list[Row]]:
    """Rows grouped by the named fields, groups in order of first appearance."""
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(getattr(row, name) for name in names), []).append(row)
    return groups


def find(rows: Iterable[Row], metric: str) -> Row | None:
    """The row of that metric, None when there is none.

    Raises:
        DataError: two different numbers for one cell.
    """
    found = [row for row in rows if row.metric == metric]
    if len({row.value for row in found}) > 1:
        raise DataError(f"two values of {metric} for '{found[0].method}' on '{found[0].data}': {found[0].source}")
    return found[0] if found else None


def show(row: Row | None) -> str:
    """A number for reading: a measured one to one decimal, a cited one as printed, a missing one as a dash."""
    if row is None:
        return DASH
    return str(one_decimal(row.number)) if row.kind == MEASURED else row.value


def one_decimal(value: float) -> Decimal:
    """The value as tables print it, halves away from zero; verdicts are judged on these digits.

    >>> one_decimal(25.25)
    Decimal('25.3')
    """
    return Decimal(repr(value)).quantize(Decimal("0.1"), ROUND_HALF_UP)


def method_block(heading: str, rows: Sequence[Row], metrics: Sequence[str], *notes: str) -> Block:
    """Measured rows, one line a method; of several runs, which differ in their seed alone, mean and deviation."""
    runs = len(by_key(rows, "run"))
    return Block(
        measured=True,
        heading=f"Measured · {heading}",
        header=("Method", *map(title_of, metrics), "Images", "Source"),
        lines=tuple(
            (method, *(_cell(own, metric, runs) for metric in metrics), own[0].n_images, _source(own))
            for (method,), own in by_key(rows, "method").items()
        ),
        notes=(*notes, *supervision_notes(rows)),
    )


def supervision_notes(measured: Iterable[Row]) -> tuple[str, ...]:
    """What people gave to measured rows: one note for each start of theirs."""
    stated = dict.fromkeys((row.init, row.supervision) for row in measured if row.supervision)
    return tuple(f"Supervision behind rows that start from {init}: {words}." for init, words in stated)


def _cell(rows: Sequence[Row], metric: str, runs: int) -> str:
    """The number of one run; of several, their mean and a sample's deviation (n - 1), a dash if one run lacks it."""
    if runs == 1:
        return show(find(rows, metric))
    found = [find(own, metric) for own in by_key(rows, "run").values()]
    values = [row.number for row in found if row is not None]
    return f"{one_decimal(mean(values))} ± {one_decimal(stdev(values))}" if len(values) == runs else DASH


def _source(rows: Sequence[Row]) -> str:
    return f"{MEASURED}: {'; '.join(dict.fromkeys(row.source.removeprefix(f'{MEASURED}: ') for row in rows))}"


def repeats_blocks(runs: Sequence[Run], rows: Sequence[Row], metrics: Sequence[str]) -> list[Block]:
    """A block of means for each group of runs that differ in their seed alone, and each of their data sets."""
    blocks = []
    for group in group_repeats(runs):
        seeds = {run.records[0].run: str(run.records[0].seed) for run in group}
        if len(group) > 1:
            heading = f"{len(group)} runs, seeds {', '.join(seeds.values())}"
            note = "Mean ± standard deviation over the runs, which differ in their seed alone."
            by_data = by_key((row for row in rows if row.run in seeds), "data")
            blocks += [method_block(f"{heading} · {data}", own, metrics, note) for (data,), own in by_data.items()]
    return blocks


def separation_notes(measured: Sequence[Row]) -> tuple[str, ...]:
    """One note for each marker in a table: what it means."""
    return tuple(
        f"{DAGGER}{scale}: measured by this project at scale '{scale}', on its own data; not a published result and "
        "not to be compared with one."
        if scale != "paper"
        else f"{DAGGER}ours: measured by this project at paper scale; not a published result."
        for (scale,) in by_key(measured, "scale")
    )
