"""`report.html`: claims, pictures, tables, plots and provenance of one or more runs in one file that needs no other."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import jinja2
from markupsafe import Markup

from results.render import to_html
from results.report.change import changes
from results.report.gallery import gallery
from results.report.svg import inline_svg, plot_title
from results.runs import Measurements
from results.schema import MEASURED, PAPER_SCALE
from results.summary import wall_time
from results.table import Table
from results.verdicts import MISSING, Verdict
from sohes.files import write_text

REPORT_FILE = "report.html"
_HERE = Path(__file__).parent
_RUNS = 20  # whose stages are listed one by one
_CLAIMS = 8  # that are seen at once


def write_report(
    measurements: Measurements,
    tables: Sequence[Table],
    plots: Sequence[Path],
    out: Path,
    *,
    pictures: Path | None = None,
) -> Path:
    """Write the page; the same runs give the same bytes.

    Args:
        measurements: of the runs.
        tables: in the order of the page; those without a number are left out.
        plots: files of plots; of those that have an SVG of the same name, this is shown.
        out: folder of the page.
        pictures: folder of the photographs that the runs' data sets name; without it the gallery shows generated
            scenes and the photographs of scikit-image alone.

    Returns:
        The page, `out/report.html`.
    """
    records = [record for run in measurements.runs for record in run.records]
    scales = sorted({record.scale for record in records})
    claims = [verdict for table in tables for verdict in table.verdicts]
    unfinished = [(run.name, stage) for run in measurements.runs for stage in run.unfinished]
    claims += [Verdict(MISSING, f"{name}: stage {stage} did not finish") for name, stage in unfinished]
    shown = [claim for claim in claims if claim.kind != MISSING]
    pages = [(_has_measured(table), Markup(to_html(table))) for table in tables if table.blocks]
    text = _template().render(
        names=list(dict.fromkeys(run.name for run in measurements.runs)),
        scales=scales,
        seeds=sorted({record.seed for record in records}),
        dates=sorted({record.started[:10] for record in records}),
        reduced=scales != [PAPER_SCALE],
        claims=shown[:_CLAIMS],
        further_claims=shown[_CLAIMS : 20 * _CLAIMS],
        missing=[claim.words for claim in claims if claim.kind == MISSING][: 20 * _CLAIMS],
        changes=changes(measurements.frame),
        gallery=gallery(measurements.runs, pictures),
        measured=[html for has_measured, html in pages if has_measured],
        cited=[html for has_measured, html in pages if not has_measured],
        plots=_plots(plots),
        runs=measurements.runs[:_RUNS],
        further_runs=max(0, len(measurements.runs) - _RUNS),
        problems=measurements.problems,
        wall_time=wall_time,
        style=Markup((_HERE / "report.css").read_text(encoding="utf-8")),
        script=Markup((_HERE / "report.js").read_text(encoding="utf-8")),
    )
    path = out / REPORT_FILE
    write_text(path, text)
    return path


@cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_HERE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("template.html.j2")


def _has_measured(table: Table) -> bool:
    return bool((table.frame["kind"] == MEASURED).any())


def _plots(paths: Sequence[Path]) -> list[Markup]:
    """SVG of each plot once, whatever kinds of files it has."""
    files = dict.fromkeys(path.with_suffix(".svg") for path in paths)
    return [
        Markup(inline_svg(path.read_text(encoding="utf-8"), f"plot{number}", plot_title(path)))
        for number, path in enumerate(files)
        if path.is_file()
    ]
