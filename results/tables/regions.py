"""The region benchmark of BSDS500: cited numbers, and the runs' own in blocks of their own."""

from __future__ import annotations

import pandas as pd

from results.runs import Measurements
from results.table import Table, averaged, cited_blocks, method_blocks
from results.verdicts import MISSING, Verdict
from results.words import separation_notes

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
    words, as_printed = {"Method": "method", "Data": "data"}, f"Fractions, as printed; {_UNITS}."
    blocks = cited_blocks(cited, BSDS500, words=words, lower=_LOWER, notes=(as_printed,))
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
