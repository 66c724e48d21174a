"""Segments named by CLIP as wholes and as parts: cited numbers, and the runs' own in blocks of their own."""

from __future__ import annotations

import pandas as pd

from results.runs import Measurements
from results.schema import DATA, each
from results.table import Block, Table, averaged, make_block, method_blocks
from results.verdicts import MISSING, Verdict
from results.words import data_of, separation_notes, title_of

METRICS = ("miou_image_object", "miou_image_part", "miou_dataset_object", "miou_dataset_part")
CITED = ("miou_image_object_8_segments", "miou_image_part_16_segments")


def part_naming(found: Measurements, published: pd.DataFrame) -> Table:
    """Published and measured numbers, apart: the former do not say what becomes of absent classes."""
    cited = published[published["metric"].isin(CITED)]
    rows = averaged(found.frame[found.frame["metric"].isin(METRICS)])
    return Table(
        name="part_naming",
        title="Segments named by CLIP as wholes and as parts",
        frame=pd.concat([rows, cited]),
        blocks=(
            *([_cited_block(cited)] if len(cited) else []),
            *method_blocks(rows, METRICS, *separation_notes(rows)),
        ),
        verdicts=() if len(rows) else (Verdict(MISSING, "Segments were not named"),),
    )


def _cited_block(rows: pd.DataFrame) -> Block:
    return make_block(
        "Cited from publications",
        rows.assign(
            line=rows.groupby(["method", "backbone", *DATA, "source"], dropna=False, sort=False).ngroup(),
            column=rows["metric"].map(title_of),
            data=[data_of(row) for row in each(rows)],
        ),
        words={"Method": "method", "Backbone": "backbone", "Training images": "train_data", "Data": "data"},
        columns=list(map(title_of, CITED)),
        notes=("What becomes of classes that are absent from an image is not said, so ours stand apart.",),
    )
