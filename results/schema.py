"""One row is one number, measured or cited. A measured number can never look like a cited one: the checks are here.

A measured row carries a dagger and its scale on the method ("SOHES phase 3 †demo") and its scale before the data
("demo · scenes val, not comparable"); a cited row carries neither, and names its publication.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from decimal import Decimal, InvalidOperation
from functools import cache
from importlib import resources
from pathlib import Path

from sohes.errors import DataError
from sohes.files import read_json
from sohes.records import RECORD_FILE, Record, read_records

DAGGER = "†"
MEASURED, CITED = "measured", "cited"
PUBLISHED = "published"  # the scale of every cited row
PAPER_SCALE = "paper"
NOT_COMPARABLE = ", not comparable"
TABLES_STAGE = "tables"  # the stage that writes tables measures nothing


@dataclass(frozen=True, kw_only=True)
class Row:
    """One number with all that is needed to trace it. `value` is a plain decimal, for cited rows as printed.

    Raises:
        DataError: on construction, when the row breaks a rule of this module's docstring or `value` is not a plain
            decimal.
    """

    kind: str  # "measured" or "cited"
    scale: str  # of the run: "demo", "small", "paper"; "published" for a cited row
    method: str
    backbone: str
    init: str  # start weights in words; empty where a publication does not say
    train_data: str
    supervision: str  # what people gave to what was trained; empty where a measured row does not say
    data: str
    metric: str
    value: str
    unit: str
    source: str
    protocol: str = ""
    n_images: str = ""
    run: str = ""
    stage: str = ""
    arm: str = ""  # as in `Measurement`
    seed: str = ""
    commit: str = ""
    config_hash: str = ""
    hardware: str = ""
    date: str = ""

    def __post_init__(self) -> None:
        problem = self._problem()
        if problem:
            raise DataError(f"table row of method '{self.method}', metric '{self.metric}': {problem}")

    def _problem(self) -> str:
        """What is wrong with this row; empty when nothing is."""
        if not self.source.strip():
            return "field 'source' is empty; every number names its record or its publication"
        if not is_plain_decimal(self.value):
            return f"field 'value' is '{self.value}', not a plain decimal"
        if self.kind == MEASURED:
            return self._measured_problem()
        if self.kind != CITED:
            return f"field 'kind' is '{self.kind}', not '{MEASURED}' or '{CITED}'"
        if self.scale != PUBLISHED or self.source.startswith(MEASURED):
            return f"a cited row has scale '{PUBLISHED}' and a publication as source"
        if DAGGER in self.method or " · " in self.data:
            return "a cited row carries no dagger and no scale; those mark measured rows"
        return ""

    def _measured_problem(self) -> str:
        if not self.scale or self.scale == PUBLISHED:
            return f"a measured row has the scale of its run, not '{self.scale}'"
        if not self.source.startswith(f"{MEASURED}: ") or "@" not in self.source:
            return "field 'source' of a measured row reads 'measured: PATH/record.json @COMMIT'"
        if not self.method.endswith(marker(self.scale)):
            return f"the method of a measured row at scale '{self.scale}' ends with '{marker(self.scale)}'"
        if self.data != described_data(self.scale, self.data.partition(" · ")[2].removesuffix(NOT_COMPARABLE)):
            return (
                f"field 'data' is '{self.data}'; at scale '{self.scale}' it reads '{described_data(self.scale, '…')}'"
            )
        return ""

    @property
    def number(self) -> float:
        """The value as a float."""
        return float(self.value)


COLUMNS = tuple(column.name for column in fields(Row))


def marker(scale: str) -> str:
    """What marks the method of a measured row: a dagger and the scale, at paper scale "†ours"."""
    return DAGGER + _label(scale)


def described_data(scale: str, data: str) -> str:
    """Evaluation data of a measured row, with the scale before it; below paper scale it says "not comparable"."""
    return f"{_label(scale)} · {data}" + ("" if scale == PAPER_SCALE else NOT_COMPARABLE)


def _label(scale: str) -> str:
    # "paper" alone would read as "from the paper"
    return "ours" if scale == PAPER_SCALE else scale


def is_plain_decimal(text: str) -> bool:
    """Whether `text` is a finite number without exponent."""
    try:
        return Decimal(text).is_finite() and "e" not in text.lower()
    except InvalidOperation:
        return False


def plain_decimal(value: float) -> str:
    """All digits of `value`, never with an exponent.

    >>> plain_decimal(1e-05)
    '0.00001'
    """
    return format(Decimal(repr(float(value))), "f")


def record_rows(record: Record, run: Path) -> list[Row]:
    """The measurements of one record, marked as measured; `run` is the run's folder."""
    path = Path(*Path(run).resolve().parts[-2:]) / record.stage / RECORD_FILE
    return [
        Row(
            kind=MEASURED,
            scale=record.scale,
            method=f"{item.method} {marker(record.scale)}",
            backbone=item.backbone,
            init=item.init,
            train_data="",
            supervision=item.supervision,
            data=described_data(record.scale, item.data),
            metric=item.metric,
            value=plain_decimal(item.value),
            unit=item.unit,
            source=f"{MEASURED}: {path} @{record.commit}",
            protocol=item.protocol,
            n_images=str(item.n_images),
            run=record.run,
            stage=record.stage,
            arm=item.arm,
            seed=str(record.seed),
            commit=record.commit,
            config_hash=record.config_hash,
            hardware=record.hardware,
            date=record.started,
        )
        for item in record.measurements
    ]


@dataclass(frozen=True)
class Run:
    """A run folder with its records, in order of their start, and the rows measured in it.

    Attributes:
        unfinished: the stages that were started and did not finish, with the reason.
    """

    folder: Path
    records: tuple[Record, ...]
    rows: tuple[Row, ...]
    unfinished: Mapping[str, str]


def load_run(folder: Path) -> Run:
    """Read a run folder.

    Raises:
        DataError: no record in it, or a record that cannot be read.
    """
    records = tuple(record for record in read_records(folder) if record.stage != TABLES_STAGE)
    if not records:
        raise DataError(f"{folder}: no */{RECORD_FILE} in it; give the folder of a run, such as runs/demo")
    rows = tuple(row for record in records for row in record_rows(record, folder))
    return Run(Path(folder), records, rows, unfinished_stages(folder))


def group_repeats(runs: Sequence[Run]) -> list[list[Run]]:
    """Runs that differ in their seed alone together, every other run by itself."""
    groups: list[list[Run]] = []
    for run in runs:
        group = next((group for group in groups if all(_repeats(run, other) for other in group)), None)
        if group is None:
            groups.append([run])
        else:
            group.append(run)
    return groups


def _repeats(run: Run, other: Run) -> bool:
    """Whether the seeds differ and in all stages that both have, a measuring one among them, nothing else does."""
    first, second = run.records[0], other.records[0]
    if first.seed == second.seed or (first.recipe, first.scale) != (second.recipe, second.scale):
        return False
    theirs = {record.stage: record for record in other.records}
    shared = [(record, theirs[record.stage]) for record in run.records if record.stage in theirs]
    return any(record.measurements for record, _ in shared) and all(
        {**record.config, "seed": None} == {**their.config, "seed": None} for record, their in shared
    )


def unfinished_stages(folder: Path) -> dict[str, str]:
    """Stages of a run folder that left a `status.json` but no record, with the message of their `error.json`."""
    stages = [path.parent for path in sorted(Path(folder).glob("*/status.json"))]
    stages = [stage for stage in stages if stage.name != TABLES_STAGE and not (stage / RECORD_FILE).exists()]
    return {stage.name: _reason(stage) for stage in stages}


def _reason(stage: Path) -> str:
    error = stage / "error.json"
    return str(read_json(error)["message"]) if error.exists() else "it still runs, or was interrupted or killed"


@cache
def published_rows() -> tuple[Row, ...]:
    """Every cited number of published.csv, as printed in its source."""
    text = resources.files("results").joinpath("published.csv").read_text(encoding="utf-8")
    return tuple(_published_row(line) for line in csv.DictReader(text.splitlines()))


def _published_row(line: dict[str, str]) -> Row:
    train = ", ".join(
        part for part in (line["train_data"], line["train_images"] and f"{line['train_images']} images") if part
    )
    return Row(
        kind=CITED,
        scale=PUBLISHED,
        method=line["method"],
        backbone=line["backbone"],
        init="",
        train_data=train or "not stated",
        supervision=line["supervision"],
        data=f"{line['dataset']} ({line['split']})" if line["split"] else line["dataset"],
        metric=line["metric"],
        value=line["value"],
        unit=line["unit"],
        source=line["source"],
    )
