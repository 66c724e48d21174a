"""Zero-shot mask AR@1000: published numbers, ours beside them where data and protocol are the same, else apart."""

from __future__ import annotations

import re

import pandas as pd

from results.runs import Measurements
from results.schema import each
from results.table import Block, Table, averaged, data_title, make_block, named
from results.verdicts import MISSING, Verdict
from results.words import separation_notes, supervision_class, supervision_notes, title_of

DATASETS = ("COCO", "LVIS", "ADE20K", "EntitySeg", "SA-1B", "PartImageNet", "PACO", "mean of 7")
CITED_METHODS = ("SAM", "FreeSOLO", "CutLER", "HASSOD", "SOHES", "UnSAM", "UnSAM+", "MoSA")
METRIC = "mask_ar_1000"
_WORDS = {"Method": "name", "Backbone": "backbone", "Training images": "train_data", "Supervision": "given"}


def zero_shot(found: Measurements, published: pd.DataFrame) -> Table:
    """Published mask AR@1000 on seven data sets with the runs' comparable numbers, and the others by data set."""
    cited = _cited(published)
    rows = averaged(found.frame[found.frame["metric"] == METRIC])
    rows = rows.assign(line=rows["group"] + "\0" + rows["method"] + "\0" + rows["backbone"] + "\0" + rows["init"])
    rows["column"] = _published_column(rows, cited)
    beside, apart = rows[rows["column"] != ""], rows[rows["column"] == ""]
    blocks = [_public_block(cited, beside)] if len(cited) else []
    blocks += [_own_block(apart)] if len(apart) else []
    missing = "Zero-shot AR@1000 was not measured; the table holds cited numbers only"
    return Table(
        name="zero_shot",
        title="Zero-shot class-agnostic mask AR@1000, in %",
        frame=pd.concat([cited, rows]),
        blocks=tuple(blocks),
        verdicts=() if len(rows) else (Verdict(MISSING, missing),),
    )


def _cited(published: pd.DataFrame) -> pd.DataFrame:
    """Each method's rows per amount of training data, from the one source that covers most data sets.

    Sources describe the same training set in different words, so what covers fewer data sets adds nothing.
    """
    rows = published[(published["metric"] == METRIC) & published["dataset"].isin(DATASETS)]
    rows = rows[rows["method"].isin(CITED_METHODS)]
    rows = rows.assign(line=rows.groupby(["method", "train_data", "supervision", "source"], sort=False).ngroup())
    rows["covered"] = rows.groupby("line")["dataset"].transform("nunique")
    rows = rows[rows["covered"] == rows.groupby("method")["covered"].transform("max")]
    first = rows.drop_duplicates(["method", "train_data", "supervision", "dataset"])
    rows = first.assign(column=first["dataset"], order=first["method"].map(CITED_METHODS.index))
    return rows.sort_values("order", kind="stable")


def _published_column(rows: pd.DataFrame, cited: pd.DataFrame) -> pd.Series[str]:
    """The published data set that a measured number stands under: same protocol, data set, split, and images."""
    places = {
        (row.protocol, _plain(row.dataset), row.split, row.n_images): row.dataset for row in each(cited) if row.protocol
    }
    columns = [
        places.get((row.protocol, _plain(row.dataset), row.split, row.n_images), "")
        if row.comparable and pd.isna(row.of_images)
        else ""
        for row in each(rows)
    ]
    return pd.Series(columns, index=rows.index, dtype=object)


def _plain(dataset: str) -> str:
    return re.sub(r"\W|_", "", dataset).casefold()


def _public_block(cited: pd.DataFrame, beside: pd.DataFrame) -> Block:
    measured = beside.assign(train_data=beside["init"].map("from {}".format))
    rows = pd.concat([cited, measured])
    names = [*cited["method"], *named(beside)]
    return make_block(
        "Cited from publications" + (", and measured on the same images" if len(beside) else ""),
        rows.assign(name=names, given=rows["supervision"].map(supervision_class)),
        words=_WORDS,
        columns=DATASETS,
        notes=(*separation_notes(beside), *supervision_notes(rows)),
    )


def _own_block(rows: pd.DataFrame) -> Block:
    """A line for each method, a column for each data set; the mean where a method has all of them."""
    rows = rows.assign(column=[data_title(row) for row in each(rows)], name=named(rows))
    columns = list(dict.fromkeys(rows["column"]))
    rows["given"] = rows["supervision"].map(supervision_class)
    if len(columns) > 1:
        means = rows.groupby("line", sort=False)["value"].agg(["mean", "count"])
        whole = means.index[means["count"] == len(columns)]
        first = rows[rows["line"].isin(whole)].drop_duplicates("line")
        first = first.assign(column="mean", value=first["line"].map(means["mean"]), sd=float("nan"))
        rows, columns = pd.concat([rows, first]), [*columns, "mean"]
    heading = "Measured by this project"
    if len(columns) == 1:
        heading, rows, columns = f"{heading} on {columns[0]}", rows.assign(column=title_of(METRIC)), [title_of(METRIC)]
    return make_block(
        heading,
        rows,
        words={"Method": "name", "Backbone": "backbone", "Start weights": "init", "Supervision": "given"},
        columns=columns,
        notes=(*separation_notes(rows), *supervision_notes(rows)),
    )
