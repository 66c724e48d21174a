"""Segments named by CLIP as wholes and as parts: cited numbers, and the runs' own in blocks of their own."""

from __future__ import annotations

import pandas as pd

from results.runs import Measurements
from results.table import Table, averaged, cited_blocks, method_blocks
from results.verdicts import MISSING, Verdict
from results.words import separation_notes

METRICS = ("miou_image_object", "miou_image_part", "miou_dataset_object", "miou_dataset_part")
_WORDS = {"Method": "method", "Backbone": "backbone", "Training images": "train_data", "Data": "data"}
_ABSENT = "What becomes of classes that are absent from an image is not said, so ours stand apart."
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
            *cited_blocks(cited, CITED, words=_WORDS, notes=(_ABSENT,)),
            *method_blocks(rows, METRICS, *separation_notes(rows)),
        ),
        verdicts=() if len(rows) else (Verdict(MISSING, "Segments were not named"),),
    )
