"""Run folders: their records, the rows measured in them, and which of them repeat each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from results.schema import MEASURED, PAPER_SCALE, Row
from sohes.errors import DataError
from sohes.files import read_json
from sohes.records import RECORD_FILE, Record, read_records

TABLES_STAGE = "tables"  # the stage that writes tables measures nothing


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

    @property
    def name(self) -> str:
        """What the records call the run."""
        return self.records[0].run


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


def record_rows(record: Record, run: Path) -> list[Row]:
    """The measurements of one record as rows; `run` is the run's folder."""
    return [
        Row(
            kind=MEASURED,
            scale=record.scale,
            comparable=record.scale == PAPER_SCALE,
            source=Path(*Path(run).resolve().parts[-2:], record.stage, RECORD_FILE).as_posix(),
            run=record.run,
            stage=record.stage,
            seed=record.seed,
            commit=record.commit,
            config_hash=record.config_hash,
            hardware=record.hardware,
            date=record.started,
            **vars(item),
        )
        for item in record.measurements
    ]


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
