"""A table: blocks of lines, each block wholly measured or wholly cited; numbers stay numbers until rendered."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from statistics import mean, stdev

from results.runs import Run, group_repeats
from results.schema import DATA, MEASURED, Row, by_key, find
from results.words import data_of, source_of, supervision_notes, title_of
from sohes.errors import DataError


@dataclass(frozen=True)
class Mean:
    """Of several runs that differ in their seed alone."""

    value: float
    deviation: float  # of a sample (n - 1)


# a row stands for its number, a decimal for a difference of printed digits, None for what was not measured
Cell = Row | Mean | Decimal | float | int | str | None


@dataclass(frozen=True)
class Line:
    """One line: `row` is one of those it is made of, and names the method in its first cell."""

    row: Row
    cells: tuple[Cell, ...]  # between the method and the source
    source: str


@dataclass(frozen=True, kw_only=True)
class Block:
    """Lines under one header, all measured or all cited.

    Raises:
        DataError: on construction, when measured and cited rows are mixed, or a line is not as long as the header.
    """

    heading: str
    header: tuple[str, ...]  # the method's title first, the source's last
    lines: tuple[Line, ...]
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        rows = [row for line in self.lines for row in (line.row, *line.cells) if isinstance(row, Row)]
        if len({row.kind for row in rows}) > 1:
            raise DataError(f"table block '{self.heading}': measured and cited rows in one block")
        for line in self.lines:
            if len(line.cells) + 2 != len(self.header):
                raise DataError(
                    f"table block '{self.heading}': {len(line.cells) + 2} cells under {len(self.header)} titles"
                )

    @property
    def measured(self) -> bool:
        """Whether this project measured its numbers."""
        return any(line.row.kind == MEASURED for line in self.lines)


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table in all its forms: `rows` for the CSV (one row one number), `blocks` for reading."""

    name: str
    title: str
    rows: tuple[Row, ...]
    blocks: tuple[Block, ...]
    verdicts: tuple[str, ...] = ()


def method_block(heading: str, rows: Sequence[Row], metrics: Sequence[str], *notes: str) -> Block:
    """Measured rows on one data set, one line a method; of several runs mean and deviation."""
    return Block(
        heading=f"Measured · {heading} · {data_of(rows[0])}",
        header=("Method", *map(title_of, metrics), "Images", "Source"),
        lines=tuple(
            Line(own[0], (*(_cell(own, metric, rows) for metric in metrics), own[0].n_images), source_of(own))
            for own in by_key(rows, "method").values()
        ),
        notes=(*notes, *supervision_notes(rows)),
    )


def _cell(own: Sequence[Row], metric: str, rows: Sequence[Row]) -> Row | Mean | None:
    """A method's number of one run; of several, their mean, or nothing if one of the runs lacks it."""
    runs = by_key(rows, "run")
    if len(runs) == 1:
        return find(own, metric)
    found = [find(group, metric) for group in by_key(own, "run").values()]
    values = [row.value for row in found if row is not None]
    return Mean(mean(values), stdev(values)) if len(values) == len(runs) else None


def repeats_blocks(runs: Sequence[Run], rows: Sequence[Row], metrics: Sequence[str]) -> list[Block]:
    """A block of means for each group of runs that differ in their seed alone, and each of their data sets."""
    blocks = []
    for group in group_repeats(runs):
        seeds = {run.name: str(run.records[0].seed) for run in group}
        if len(group) > 1:
            heading = f"{len(group)} runs, seeds {', '.join(seeds.values())}"
            note = "Mean ± standard deviation over the runs, which differ in their seed alone."
            by_data = by_key((row for row in rows if row.run in seeds), *DATA)
            blocks += [method_block(heading, own, metrics, note) for own in by_data.values()]
    return blocks
