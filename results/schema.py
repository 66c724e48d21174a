"""One row of a frame is one number with its facts, measured or cited; `results.words` turns facts into words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pandas as pd

MEASURED, CITED = "measured", "cited"
PAPER_SCALE = "paper"
POINTS = "points"  # the unit of differences between percentages
DATA = ("dataset", "split", "of_images")  # columns that say on what a number was measured
PROBE = "probe_"  # how the protocols of frozen probes begin

TYPES = {  # of each column; "object" is text, empty and a number missing where a row has no such fact
    "kind": "object",  # "measured" or "cited"
    "scale": "object",  # of the run that measured it: "demo", "small", "paper"; empty for a cited row
    "comparable": "bool",  # with published numbers; a measured one below paper scale is not
    "method": "object",
    "arm": "object",  # as in `Measurement`
    "backbone": "object",
    "backbone_note": "object",  # of a publication
    "init": "object",  # start weights in words
    "trained_by": "object",  # as in `Measurement`
    "train_data": "object",  # of a publication
    "supervision": "object",  # what people gave to what was trained
    "dataset": "object",
    "split": "object",
    "metric": "object",
    "value": "float64",
    "sd": "float64",  # as in `Measurement`; over runs that differ in their seed alone in the frame of a table
    "n_seeds": "Int64",
    "printed": "object",  # the digits of a publication
    "unit": "object",
    "n_images": "Int64",
    "of_images": "Int64",  # as in `Measurement`
    "protocol": "object",
    "source": "object",  # path of the record, or place in a publication
    "publication": "object",  # arXiv id or address, where the source has one
    "bibkey": "object",  # of the publication in published.bib
    "run": "object",
    "stage": "object",
    "recipe": "object",
    "group": "object",  # what runs are called together that differ in their seed alone
    "seed": "Int64",
    "commit": "object",
    "config_hash": "object",
    "hardware": "object",
    "date": "object",
}
COLUMNS = tuple(TYPES)
_EMPTY: dict[str, Any] = {"object": "", "bool": False, "float64": float("nan"), "Int64": pd.NA}


def make_frame(columns: Mapping[str, Sequence[Any]]) -> pd.DataFrame:
    """Rows with the columns COLUMNS and their types; a column that is not given is empty."""
    length = len(next(iter(columns.values())))
    filled = {name: columns.get(name, [_EMPTY[kind]] * length) for name, kind in TYPES.items()}
    return pd.DataFrame({name: pd.Series(values, dtype=TYPES[name]) for name, values in filled.items()})


def is_probe(rows: pd.DataFrame) -> pd.Series[bool]:
    """Which rows are numbers of probes of frozen features."""
    return rows["protocol"].str.startswith(PROBE)


def each(rows: pd.DataFrame) -> Iterator[Any]:
    """The rows one by one, their columns as attributes."""
    return iter(rows.itertuples())
