"""The region benchmark of BSDS500: cited numbers, and the runs' own in blocks of their own."""

from __future__ import annotations

import pandas as pd

from results.runs import Measurements
from results.schema import DATA, each
from results.table import Block, Table, averaged, make_block, method_blocks
from results.verdicts import MISSING, Verdict
from results.words import data_of, separation_notes, title_of

BSDS500 = (
    *(f"region_covering_{scale}" for scale in ("ods", "ois", "best")),
    *(f"region_{name}_{scale}" for name in ("pri", "vi") for scale in ("ods", "ois")),
)
OBJECTS = tuple(f"segment_covering_{scale}" for scale in ("ods", "ois", "best"))
_LOWER = tuple(metric for metric in BSDS500 if "_vi_" in metric)
_UNITS = "Variation of Information in bits, lower is better"


def regions(found: Measurements, published: pd.DataFrame) -> Table:
    """Partitions against the annotators of BSDS500, and against objects whose annotators are not known."""
    cited = published[published["metric"].isin(BSDS500)]
    blocks = [_cited_block(cited)] if len(cited) else []
    rows = averaged(found.frame[found.frame["metric"].isin(BSDS500 + OBJECTS)])
    for metrics in (BSDS500, OBJECTS):
        own = rows[rows["metric"].isin(metrics)]
        lower = [metric for metric in _LOWER if metric in metrics]
        notes = (f"Percent; {_UNITS}." if lower else "Objects whose annotators are not known.", *separation_notes(own))
        blocks += method_blocks(own, metrics, *notes, lower=lower)
    return Table(
        name="regions",
        title="Partitions: the region benchmark of BSDS500",
        frame=pd.concat([rows, cited]),
        blocks=tuple(blocks),
        verdicts=() if len(rows) else (Verdict(MISSING, "Partitions were not measured (sohes evaluate --regions)"),),
    )


def _cited_block(rows: pd.DataFrame) -> Block:
    return make_block(
        "Cited from publications",
        rows.assign(
            line=rows.groupby(["method", *DATA, "source"], dropna=False, sort=False).ngroup(),
            column=rows["metric"].map(title_of),
            data=[data_of(row) for row in each(rows)],
        ),
        words={"Method": "method", "Data": "data"},
        columns=list(map(title_of, BSDS500)),
        lower=list(map(title_of, _LOWER)),
        notes=(f"Fractions, as printed; {_UNITS}.",),
    )
