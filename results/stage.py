"""The last stage of a recipe: tables, plots, the summary and the report of the run it belongs to."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from sohes.configuration import NonEmpty, settings
from sohes.records import StageResult


@settings
class TablesConfig:
    """Which tables; what is in them follows from the run's records."""

    tables: NonEmpty[
        Literal[
            "methods",
            "phases",
            "zero_shot",
            "hierarchy",
            "transfer",
            "probes",
            "regions",
            "part_naming",
            "ablation",
            "cost",
        ]
    ] = (
        *("methods", "phases", "zero_shot", "hierarchy", "transfer"),
        *("probes", "regions", "part_naming", "ablation", "cost"),
    )
    """Tables that are written, see `results.aggregate`."""


def tables(config: TablesConfig, inputs: dict[str, Path], out: Path) -> StageResult:
    """Write tables, plots, summary.md and report.html below `out` from the records of the run folder `inputs["run"]`.

    The notes are the verdict sentences (whether mask AR climbs, what heads gained, what is missing) and what was left
    out.

    Raises:
        DataError: no record in the run folder that can be read.
        ConfigError: an unknown table.
    """
    from results.aggregate import aggregate  # here: a launcher that reads the configuration needs no plots

    written = aggregate([inputs["run"]], out, tables=config.tables)
    page = written.report
    shown = page.relative_to(Path.cwd()) if page.is_relative_to(Path.cwd()) else page
    return StageResult(notes=(f"the report: {shown}", *written.verdicts, *written.problems), artefacts=written.files)
