"""The page that joins verdicts, tables, plots, notes and provenance of one or more runs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from results.render import to_markdown
from results.runs import Measurements, Run
from results.schema import PAPER_SCALE
from results.table import Table

_VERDICTS, _PROBLEMS, _RUNS, _NOTES = 60, 200, 20, 100  # that the page has room for
PICTURES = (".png", ".jpg", ".svg")


def summary(
    found: Measurements, tables: Sequence[Table], plots: Sequence[Path], problems: Sequence[str], out: Path
) -> str:
    """The page as Markdown; links are relative to `out`, the folder it will lie in.

    Args:
        problems: what the plots left out.
    """
    verdicts = [verdict.words for table in tables for verdict in table.verdicts]
    parts = [
        "# Results",
        _origin(found.runs),
        _bounded("## What the numbers say", verdicts, _VERDICTS),
        _bounded("## Left out", [*found.problems, *problems], _PROBLEMS),
        *(f"![{path.stem.replace('_', ' ')}]({_link(path, out)})" for path in plots if path.suffix == ".png"),
        *(to_markdown(table) for table in tables),
        *(_run_part(run, found.frame, out) for run in found.runs[:_RUNS]),
        f"{len(found.runs) - _RUNS} more runs: see their records." if len(found.runs) > _RUNS else "",
    ]
    return "\n\n".join(part.strip() for part in parts if part.strip()) + "\n"


def _bounded(heading: str, sentences: Sequence[str], most: int) -> str:
    """A list under a heading, its first items where there are many; nothing where there is none."""
    lines = [f"- {sentence}" for sentence in sentences[:most]]
    lines += [f"- and {len(sentences) - most} more"] if len(sentences) > most else []
    return "\n".join([heading, "", *lines]) if lines else ""


def _origin(runs: Sequence[Run]) -> str:
    scales = sorted({record.scale for run in runs for record in run.records})
    text = f"Measured at scale {', '.join(scales)}, beside cited numbers. Measured rows carry † and their scale."
    if scales != [PAPER_SCALE]:
        text += " A row below paper scale shows that the pipeline works; it is no reproduction of a published result."
    return text


def _run_part(run: Run, frame: pd.DataFrame, out: Path) -> str:
    parts = [
        f"## Run {run.name}",
        _bounded("### Stages that did not finish", [f"{stage}: {why}" for stage, why in run.unfinished.items()], _RUNS),
        _provenance(run, frame),
        _bounded("### Notes of the stages", [f"{r.stage}: {note}" for r in run.records for note in r.notes], _NOTES),
        _pictures(run, out),
    ]
    return "\n\n".join(part for part in parts if part)


def _provenance(run: Run, frame: pd.DataFrame) -> str:
    first = run.records[0]
    seeds = ", ".join(sorted({str(record.seed) for record in run.records}))
    starts = frame.loc[frame["run"] == run.name, ["backbone", "init", "supervision"]].drop_duplicates()
    lines = [
        f"Recipe {first.recipe}, scale {first.scale}, seed {seeds}.",
        *(
            f"Backbone {backbone}; weights: {init}" + (f"; supervision: {given}." if given else ".")
            for backbone, init, given in starts.itertuples(index=False)
        ),
        f"Versions: {', '.join(f'{name} {version}' for name, version in first.versions.items())}.",
    ]
    table = ["| Stage | Wall time | Started (UTC) | Commit | Config | Hardware |", "|---|---:|---|---|---|---|"]
    table += [
        f"| {record.stage} | {wall_time(record.seconds)} | {record.started[:19]} | {record.commit} "
        f"| {record.config_hash} | {record.hardware} |"
        for record in run.records
    ]
    total = sum(record.seconds for record in run.records)
    table.append(f"| **sum of the stages** | **{wall_time(total)}** | | | | |")
    return "### Provenance\n\n" + "\n".join(f"- {line}" for line in lines) + "\n\n" + "\n".join(table)


def _pictures(run: Run, out: Path) -> str:
    paths = [
        run.folder / record.stage / name
        for record in run.records
        for name in record.artefacts
        if name.endswith(PICTURES)
    ]
    links = [f"[{path.relative_to(run.folder)}]({_link(path, out)})" for path in paths]
    return _bounded("### Pictures of the stages", links, _NOTES)


def wall_time(seconds: float) -> str:
    """Seconds for reading.

    >>> wall_time(7.3), wall_time(95), wall_time(7325)
    ('7.3 s', '1 min 35 s', '2 h 02 min')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def _link(path: Path, out: Path) -> str:
    return Path(os.path.relpath(path, out)).as_posix()
