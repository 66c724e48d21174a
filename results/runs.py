"""Run folders: their records, the numbers measured in them as one frame, and which runs repeat each other."""

from __future__ import annotations

import gc
import math
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from operator import attrgetter
from pathlib import Path
from typing import Any

import pandas as pd

from results.schema import DATA, MEASURED, PAPER_SCALE, make_frame
from sohes.errors import DataError
from sohes.files import read_json
from sohes.progress import track
from sohes.records import RECORD_FILE, Measurement, Record, content_hash, read_record

TABLES_STAGE = "tables"  # the stage that writes tables measures nothing
_FACTS = tuple(field.name for field in fields(Measurement))
_CELL = ("run", "method", "arm", "backbone", "init", "trained_by", "protocol", *DATA, "n_images", "metric")


@dataclass(frozen=True)
class Run:
    """A run folder with its records, in order of their start.

    Attributes:
        unfinished: the stages that were started and did not finish, with the reason.
        name: of the folder, with its parent's where another run has the same.
        group: what runs are called together that differ in their seed alone; `name` for any other.
    """

    folder: Path
    records: tuple[Record, ...]
    unfinished: Mapping[str, str]
    name: str
    group: str = ""


@dataclass(frozen=True)
class Measurements:
    """All that was measured in some runs.

    Attributes:
        frame: one row a number, with the columns `schema.COLUMNS`.
        runs: the runs, in the order given.
        problems: a sentence for each record and each number that was left out.
    """

    frame: pd.DataFrame
    runs: tuple[Run, ...]
    problems: tuple[str, ...]


def read_runs(folders: Sequence[Path]) -> Measurements:
    """Read run folders; a broken record, or a number that cannot be one, is left out and named in `problems`.

    Raises:
        DataError: no record that can be read in any of them.
    """
    with _without_collection():
        return _read_runs(folders)


@contextmanager
def _without_collection() -> Iterator[None]:
    """All that is read is kept: to look for garbage among it again and again takes a sixth of the time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _read_runs(folders: Sequence[Path]) -> Measurements:
    problems: list[str] = []
    distinct = list({folder.resolve(): folder for folder in map(Path, folders)}.values())
    found = [run for folder in track(distinct, "records") if (run := _read_run(folder, problems))]
    if not found:
        raise DataError("\n".join(problems) or "no run folder was given; give one, such as runs/sohes_full-demo")
    runs = grouped(_with_own_names(found))
    return Measurements(_frame(runs, problems), runs, tuple(problems))


def _read_run(folder: Path, problems: list[str]) -> Run | None:
    """A run with the records that can be read; None where there is none."""
    records: list[Record] = []
    unfinished: dict[str, str] = {}
    there = 0
    for entry in sorted(os.scandir(folder), key=attrgetter("name")) if folder.is_dir() else []:
        if entry.name == TABLES_STAGE or not entry.is_dir():
            continue
        names = set(os.listdir(entry.path))
        if RECORD_FILE in names:
            there += 1
            try:
                records.append(read_record(Path(entry.path, RECORD_FILE)))
            except DataError as error:
                problems.append(f"left out: {error}")
        elif "status.json" in names:
            unfinished[entry.name] = _reason(Path(entry.path))
    if not there:
        problems.append(f"{folder}: no */{RECORD_FILE} in it; give the folder of a run, such as runs/sohes_full-demo")
    if not records:
        return None
    records.sort(key=attrgetter("started"))
    return Run(folder, tuple(records), unfinished, folder.resolve().name)


def _with_own_names(runs: Sequence[Run]) -> list[Run]:
    count = Counter(run.name for run in runs)
    return [replace(run, name="/".join(_parts(run.folder))) if count[run.name] > 1 else run for run in runs]


def _parts(folder: Path) -> tuple[str, ...]:
    return folder.resolve().parts[-2:]


def _reason(stage: Path) -> str:
    """Why a stage that was started has no record."""
    try:
        return str(read_json(stage / "error.json")["message"])
    except (DataError, TypeError, KeyError):
        return "it still runs, or was interrupted or killed"


def grouped(runs: Sequence[Run]) -> tuple[Run, ...]:
    """The runs, each with its group: same recipe, scale and settings of every stage, and all seeds differ.

    A run that lacks stages, because it has not finished, belongs to the one group that has its stages and more.
    """
    stages = [frozenset((r.stage, content_hash({**r.config, "seed": None})) for r in run.records) for run in runs]
    kinds = [(run.records[0].recipe, run.records[0].scale) for run in runs]
    found: dict[Any, dict[Any, None]] = {}
    for kind, own in zip(kinds, stages, strict=True):
        found.setdefault(kind, {})[own] = None
    wider = {(kind, own): _wider(own, others) for kind, others in found.items() for own in others}
    members: dict[Any, list[int]] = {}
    seen: Counter[Any] = Counter()
    for index, pair in enumerate(zip(kinds, stages, strict=True)):
        key = pair[0], wider[pair], runs[index].records[0].seed
        members.setdefault((*key[:2], seen[key]), []).append(index)  # the same seed again is another group
        seen[key] += 1
    groups: dict[int, str] = {}
    used: set[str] = set()
    for indices in members.values():
        name = common = runs[indices[0]].name
        if len(indices) > 1:
            common = _common([runs[index].name for index in indices])
        name = common if common and common not in used else name
        used.add(name)
        groups |= dict.fromkeys(indices, name)
    return tuple(replace(run, group=groups[index]) for index, run in enumerate(runs))


def _common(names: Sequence[str]) -> str:
    """What the names begin with, without the number of a seed."""
    first, last = min(names), max(names)
    length = next((at for at, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))
    return first[:length].rstrip("-_/.0123456789")


def _wider(stages: frozenset[Any], others: Iterable[frozenset[Any]]) -> frozenset[Any]:
    """The one set of stages among `others` that has all of these and more; these where there are none or several."""
    found = [other for other in others if stages < other]
    return found[0] if len(found) == 1 else stages


def _frame(runs: Sequence[Run], problems: list[str]) -> pd.DataFrame:
    """The numbers of all records; those that cannot be one are named in `problems`."""
    rows: list[Measurement] = []
    facts: list[dict[str, Any]] = []
    for run in runs:
        parts = _parts(run.folder)
        for record in run.records:
            own = _facts(run, record) | {"source": "/".join((*parts, record.stage, RECORD_FILE))}
            for item in record.measurements:
                if problem := _problem(item):
                    problems.append(f"left out: {own['source']}, {item.metric} of '{item.method}': {problem}")
                else:
                    rows.append(item)
                    facts.append(own)
    columns: dict[str, list[Any]] = {name: [getattr(row, name) for row in rows] for name in _FACTS}
    columns |= {name: [own[name] for own in facts] for name in (facts[0] if facts else ())}
    return _without_conflicts(make_frame(columns), problems)


def _facts(run: Run, record: Record) -> dict[str, Any]:
    """What all numbers of a record have in common."""
    return {
        "kind": MEASURED,
        "scale": record.scale,
        "comparable": record.scale == PAPER_SCALE,
        "run": run.name,
        "stage": record.stage,
        "recipe": record.recipe,
        "group": run.group,
        "seed": record.seed,
        "commit": record.commit,
        "config_hash": record.config_hash,
        "hardware": record.hardware,
        "date": record.started,
    }


def _problem(item: Measurement) -> str:
    """Why a number is none; empty when it is one."""
    for name, number in (("value", item.value), ("sd", 0.0 if item.sd is None else item.sd)):
        if not math.isfinite(number):
            return f"field '{name}' is {number}, not a finite number"
    if item.unit == "%" and not 0 <= item.value <= 100:
        return f"field 'value' is {item.value}, not a percentage from 0 to 100"
    return ""


def _without_conflicts(frame: pd.DataFrame, problems: list[str]) -> pd.DataFrame:
    """Of one number in several records, the first; of different numbers for one cell of a table, none."""
    again = frame[frame.duplicated(list(_CELL), keep=False)]
    drop = list(again.index[again.duplicated(list(_CELL))])
    for _, rows in again.groupby(list(_CELL), dropna=False, sort=False):
        if rows["value"].nunique() > 1:
            first = rows.iloc[0]
            problems.append(
                f"left out: {len(rows)} values of {first['metric']} for '{first['method']}' on '{first['dataset']}': "
                + ", ".join(dict.fromkeys(rows["source"]))
            )
            drop += list(rows.index)
    return frame.drop(index=drop).reset_index(drop=True)
