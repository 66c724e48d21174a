"""Run records and published numbers, joined: `python -m results.aggregate RUN_DIR... [--out DIR]`, or `sohes tables`.

Writes `report.html`, `summary.md`, `tables/*.csv|md|tex` and `plots/*` below the output folder.
"""

from __future__ import annotations

import argparse
import gzip
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from results.latex import to_latex
from results.plots.write import write_plots
from results.published import BIBLIOGRAPHY, published_rows
from results.render import to_csv, to_markdown
from results.report.write import write_report
from results.runs import Measurements, read_runs
from results.summary import summary
from results.table import Table
from results.tables.ablation import ablation
from results.tables.cost import cost
from results.tables.methods import methods
from results.tables.part_naming import part_naming
from results.tables.phases import hierarchy, phases
from results.tables.probes import probes
from results.tables.regions import regions
from results.tables.transfer import transfer
from results.tables.zero_shot import zero_shot
from sohes.errors import ConfigError, SohesError, unknown_name
from sohes.files import atomic_path, write_text
from sohes.help import add_tables_options, expand_runs, help_page

_VERDICTS = 40  # that are printed


@dataclass(frozen=True)
class Written:
    """What was written: two pages and all files with them first, verdicts, and a sentence for all left out."""

    report: Path
    summary: Path
    files: tuple[Path, ...]
    verdicts: tuple[str, ...]
    problems: tuple[str, ...]


TABLES: dict[str, Callable[[Measurements, pd.DataFrame], Table]] = {
    "methods": methods,
    "phases": phases,
    "zero_shot": zero_shot,
    "hierarchy": hierarchy,
    "transfer": transfer,
    "probes": probes,
    "regions": regions,
    "part_naming": part_naming,
    "ablation": ablation,
    "cost": cost,
}


def aggregate(
    folders: Sequence[Path],
    out: Path,
    *,
    tables: Sequence[str] = tuple(TABLES),
    methods: Sequence[str] = (),
    datasets: Sequence[str] = (),
    pictures: Path | None = None,
) -> Written:
    """Read run folders and write tables, plots, the summary and the report below `out`.

    Args:
        tables: names of the tables wanted; one without a number says so in its verdict.
        methods: of the rows wanted, measured and cited ones; none for all.
        datasets: likewise.
        pictures: folder of the photographs that the report may show, see `write_report`.

    Raises:
        DataError: no record that can be read.
        ConfigError: an unknown table, method or data set.
    """
    for name in tables:
        if name not in TABLES:
            raise ConfigError(unknown_name("table", name, TABLES))
    found, published = chosen(read_runs(folders), published_rows(), methods, datasets)
    built = [TABLES[name](found, published) for name in tables]
    plots, problems = write_plots(found.frame, out / "plots")
    texts = {
        out / "summary.md": summary(found, built, plots, problems, out),
        out / "tables" / BIBLIOGRAPHY.name: BIBLIOGRAPHY.read_text(encoding="utf-8"),
    }
    for table in built:
        texts |= {
            out / "tables" / f"{table.name}.csv": to_csv(table.frame),
            out / "tables" / f"{table.name}.md": to_markdown(table),
            out / "tables" / f"{table.name}.tex": to_latex(table),
        }
    for path, text in texts.items():
        write_text(path, text)
    measured = out / "tables" / "measured.csv.gz"  # every measured number, also those no table shows
    _write_compressed(measured, found.frame)
    verdicts = [verdict.words for table in built for verdict in table.verdicts]
    verdicts += [f"{stage} did not finish: {why}" for run in found.runs for stage, why in run.unfinished.items()]
    report = write_report(replace(found, problems=(*found.problems, *problems)), built, plots, out, pictures=pictures)
    files = (report, *texts, measured, *plots)
    return Written(report, out / "summary.md", files, tuple(verdicts), (*found.problems, *problems))


def _write_compressed(path: Path, frame: pd.DataFrame) -> None:
    """A frame as compressed CSV; the same frame gives the same bytes."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(gzip.compress(to_csv(frame).encode(), 1, mtime=0))


def chosen(
    found: Measurements, published: pd.DataFrame, methods: Sequence[str], datasets: Sequence[str]
) -> tuple[Measurements, pd.DataFrame]:
    """The rows of these methods (or of backbones that they trained) and data sets; all where none is named.

    Raises:
        ConfigError: a name that no row has.
    """
    frame = found.frame
    for kind, names, columns in (("method", methods, ("method", "trained_by")), ("data set", datasets, ("dataset",))):
        if names:
            known = {name for rows in (frame, published) for column in columns for name in rows[column]} - {""}
            for name in names:
                if name not in known:
                    raise ConfigError(unknown_name(kind, name, known))
            frame, published = (_with_any(rows, columns, names) for rows in (frame, published))
    return replace(found, frame=frame), published


def _with_any(rows: pd.DataFrame, columns: Iterable[str], names: Sequence[str]) -> pd.DataFrame:
    return rows[pd.concat([rows[column].isin(names) for column in columns], axis=1).any(axis=1)]


def make_parser() -> argparse.ArgumentParser:
    """What the command takes."""
    page = help_page("python -m results.aggregate runs/sohes_full-demo --out tables/", __doc__ or "")
    parser = argparse.ArgumentParser(prog="python -m results.aggregate", **page)
    add_tables_options(parser)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; exit status 1 with one message for what a user can mend."""
    try:
        return run(make_parser().parse_args(arguments))
    except SohesError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def run(options: argparse.Namespace) -> int:
    """Write what the options ask for; print verdicts, files and what was left out."""
    folders = expand_runs(options.runs)
    if options.out is None and len(folders) > 1:
        raise ConfigError("several runs need --out DIR")
    written = aggregate(
        folders,
        options.out or folders[0] / "tables",
        tables=options.tables or tuple(TABLES),
        methods=options.methods,
        datasets=options.datasets,
        pictures=options.pictures,
    )
    more = len(written.verdicts) - _VERDICTS
    print("\n".join([*written.verdicts[:_VERDICTS], *([f"and {more} more verdicts"] if more > 0 else [])]))
    print("\n".join(["", *map(str, written.files)]))
    if written.problems:
        print("\n".join(["", f"{len(written.problems)} left out:", *written.problems]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
