"""Run records and published numbers, joined: `python -m results.aggregate RUN_DIR... [--out DIR]`.

Writes `tables/*.csv|md|tex`, `plots/*.png` and `summary.md` below the output folder.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from results.plots import write_phase_plots, write_transfer_plots
from results.published import published_rows
from results.render import to_csv, to_latex, to_markdown
from results.runs import TABLES_STAGE, Run, load_run
from results.schema import Row
from results.summary import summary
from results.table import Table
from results.tables.phases import hierarchy, phases
from results.tables.probes import probes
from results.tables.regions import regions
from results.tables.transfer import transfer, transfer_pairs
from results.tables.zero_shot import zero_shot
from sohes.errors import ConfigError, SohesError, unknown_name
from sohes.files import write_text
from sohes.help import help_page


@dataclass(frozen=True)
class Written:
    """What was written: the summary page, all files with it first, and the verdict sentences."""

    summary: Path
    files: tuple[Path, ...]
    verdicts: tuple[str, ...]


TABLES: dict[str, Callable[[Sequence[Run], Sequence[Row]], Table]] = {
    "phases": lambda runs, published: phases(runs),
    "zero_shot": zero_shot,
    "hierarchy": lambda runs, published: hierarchy(runs),
    "transfer": transfer,
    "probes": probes,
    "regions": regions,
}


def aggregate(folders: Sequence[Path], out: Path, *, tables: Sequence[str] = tuple(TABLES)) -> Written:
    """Read run folders and write tables, plots and the summary below `out`.

    Args:
        tables: names of the tables wanted; one without a number says so in its verdict.

    Raises:
        DataError: a folder without records, or a record that cannot be read or breaks the schema.
        ConfigError: an unknown table.
    """
    if unknown := [name for name in tables if name not in TABLES]:
        raise ConfigError(unknown_name("table", unknown[0], TABLES))
    runs = [load_run(folder) for folder in folders]
    published = published_rows()
    built = [TABLES[name](runs, published) for name in tables]
    measured = [row for run in runs for row in run.rows]
    plots = write_phase_plots(runs, published, out / "plots") if "phases" in tables else []
    plots += write_transfer_plots(transfer_pairs(runs), out / "plots") if "transfer" in tables else []
    files = {
        out / "summary.md": summary(runs, built, plots, out),
        out / "tables" / "measured.csv": to_csv(measured),  # every measured number, also those no table shows
    }
    for table in built:
        files[out / "tables" / f"{table.name}.csv"] = to_csv(table.rows)
        files[out / "tables" / f"{table.name}.md"] = to_markdown(table)
        files[out / "tables" / f"{table.name}.tex"] = to_latex(table)
    for path, text in files.items():
        write_text(path, text)
    verdicts = [verdict for table in built for verdict in table.verdicts]
    verdicts += [f"{stage} did not finish: {why}" for run in runs for stage, why in run.unfinished.items()]
    return Written(out / "summary.md", (*files, *plots), tuple(verdicts))


def make_parser() -> argparse.ArgumentParser:
    """What the command takes."""
    page = help_page("python -m results.aggregate runs/sohes_full-demo --out tables/", __doc__ or "")
    parser = argparse.ArgumentParser(prog="python -m results.aggregate", **page)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN_DIR", help="run folder, such as runs/demo")
    parser.add_argument("--out", type=Path, help=f"output folder; default for one run: RUN_DIR/{TABLES_STAGE}")
    parser.add_argument(
        "--tables", nargs="+", default=list(TABLES), metavar="NAME", help=f"which of {', '.join(TABLES)}"
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; exit status 1 with one message for what a user can mend."""
    parser = make_parser()
    options = parser.parse_args(arguments)
    if options.out is None and len(options.runs) > 1:
        parser.error("several runs need --out DIR")
    try:
        written = aggregate(options.runs, options.out or options.runs[0] / TABLES_STAGE, tables=options.tables)
    except SohesError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print("\n".join([*written.verdicts, "", *map(str, written.files)]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
