"""The region benchmark of BSDS500: cited numbers, and the runs' own in blocks of their own."""

from __future__ import annotations

from collections.abc import Sequence

from results.runs import Run
from results.schema import DATA, Row, by_key, find
from results.table import Block, Line, Table, method_block
from results.words import data_of, separation_notes, source_of, title_of

BSDS500 = (
    *(f"region_covering_{scale}" for scale in ("ods", "ois", "best")),
    *(f"region_{name}_{scale}" for name in ("pri", "vi") for scale in ("ods", "ois")),
)
OBJECTS = tuple(f"segment_covering_{scale}" for scale in ("ods", "ois", "best"))
_UNITS = "Variation of Information in bits, lower is better"


def regions(runs: Sequence[Run], published: Sequence[Row]) -> Table:
    """Partitions against the annotators of BSDS500, and against objects whose annotators are not known."""
    cited = [row for row in published if row.metric in BSDS500]
    measured = [row for run in runs for row in run.rows if row.metric in BSDS500 + OBJECTS]
    blocks = [_cited_block(cited)]
    for metrics, heading in ((BSDS500, "every annotator"), (OBJECTS, "objects, annotators not known")):
        for own in by_key((row for row in measured if row.metric in metrics), "run", *DATA).values():
            blocks.append(method_block(heading, own, metrics, f"Percent; {_UNITS}.", *separation_notes(own)))
    return Table(
        name="regions",
        title="Partitions: the region benchmark of BSDS500",
        rows=(*measured, *cited),
        blocks=tuple(blocks),
        verdicts=() if measured else ("Partitions were not measured (sohes evaluate --regions)",),
    )


def _cited_block(rows: Sequence[Row]) -> Block:
    return Block(
        heading="Cited from publications",
        header=("Method", "Data", *map(title_of, BSDS500), "Source"),
        lines=tuple(
            Line(own[0], (data_of(own[0]), *(find(own, metric) for metric in BSDS500)), source_of(own))
            for own in by_key(rows, "method", *DATA, "source").values()
        ),
        notes=(f"Fractions, as printed; {_UNITS}.",),
    )
