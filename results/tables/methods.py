"""One line a method: what its backbone and its segmenter reach, whichever run measured it; with published numbers."""

from __future__ import annotations

from typing import Any

import pandas as pd

from results.runs import Measurements
from results.schema import each
from results.table import Block, Table, averaged, make_block
from results.verdicts import MISSING, Verdict
from results.words import (
    bare_data_of,
    data_of,
    marker,
    separation_notes,
    supervision_class,
    supervision_notes,
    title_of,
)
from sohes.records import PHASES, START, TRAINED

METRICS = (
    *("mask_ar_1000", "miou_dataset", "box_ap", "mask_ap", "cluster_miou_leopart", "cluster_miou_hungarian"),
    *("acc_top1_linear", "acc_top1_knn"),
)
METHODS = ("SOHES", "Leopart", "CAST", "FS4 (reconstruction)")
_MOCO, _CAST_NETWORKS = "MoCo-v3", "cast_"  # CAST is its network, trained without labels by another's method
PUBLISHED = tuple(name.split()[0] for name in METHODS)  # as publications call them


def methods(found: Measurements, published: pd.DataFrame) -> Table:
    """Methods side by side under the same heads, probes and data, each beside its start."""
    frame = found.frame[found.frame["metric"].isin(METRICS)]
    trainers = list(dict.fromkeys([*METHODS, *frame.loc[frame["arm"] == TRAINED, "trained_by"]]))
    rows = averaged(frame)
    rows = rows.assign(made_by=[_made_by(row, trainers) for row in each(rows)])
    rows = rows[rows["made_by"] != ""]
    missing = "No method was measured under a head, a probe, or as a segmenter"
    blocks = [_block(own) for _, own in rows.groupby("scale", sort=False)]
    cited = published[published["method"].str.split(" ").str[0].isin(PUBLISHED)]
    cited = cited[~cited["method"].str.contains("pseudo-labels")]
    return Table(
        name="methods",
        title="Methods side by side",
        frame=pd.concat([rows, cited]),
        blocks=(*blocks, *([_cited_block(cited)] if len(cited) else [])),
        verdicts=() if len(rows) else (Verdict(MISSING, missing),),
    )


def _made_by(row: Any, trainers: list[str]) -> str:
    """The method behind a number, "start" for the backbone that it began as; empty where neither is known."""
    arm, method = row.arm, row.method
    if arm in (START, TRAINED):
        if arm == TRAINED and row.trained_by == _MOCO and row.backbone.startswith(_CAST_NETWORKS):
            return "CAST"
        return START if arm == START else str(row.trained_by)
    if arm in PHASES[:-1]:
        return ""
    return next((name for name in trainers if method == name or method.startswith((f"{name} ", f"{name}:"))), "")


def _block(rows: pd.DataFrame) -> Block:
    several = rows.groupby(["made_by", "backbone"])["group"].transform("nunique") > 1
    name = rows["made_by"] + " " + rows["scale"].map(marker)
    name = name.where(~several, name + " · " + rows["group"])
    test = rows["method"].where(rows["arm"].isin((START, TRAINED)), "segmenter")
    data = pd.Series([bare_data_of(row) for row in each(rows)], index=rows.index, dtype=object)
    title = rows["metric"].map(title_of) + ", " + test
    rows = rows.assign(name=name, column=title if data.nunique() == 1 else title + ", " + data)
    rows["class"] = rows["supervision"].map(supervision_class)
    rows = rows.assign(line=name + "\0" + rows["backbone"]).sort_values(
        "made_by", key=lambda names: names != START, kind="stable"
    )
    return make_block(
        "Measured by this project on " + ", ".join(dict.fromkeys(map(data_of, each(rows)))),
        rows,
        words={"Method": "name", "Backbone": "backbone", "Supervision": "class"},
        columns=list(dict.fromkeys(rows["column"])),
        notes=(*separation_notes(rows), *supervision_notes(rows)),
    )


def _cited_block(rows: pd.DataFrame) -> Block:
    return make_block(
        "Cited from publications",
        rows.assign(
            line=range(len(rows)),
            column="Value",
            data=[data_of(row) for row in each(rows)],
            title=rows["metric"].map(title_of) + (" (" + rows["unit"] + ")"),
        ),
        words={"Method": "method", "Backbone": "backbone", "Data": "data", "Metric": "title"},
        columns=["Value"],
        ranked=(),
    )
