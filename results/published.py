"""Cited numbers: the rows of published.csv that could be verified."""

from __future__ import annotations

import csv
from decimal import Decimal, InvalidOperation
from functools import cache
from pathlib import Path

import pandas as pd

from results.schema import CITED, make_frame
from sohes.errors import DataError

FILE = Path(__file__).with_name("published.csv")
BIBLIOGRAPHY = FILE.with_suffix(".bib")


@cache
def published_rows() -> pd.DataFrame:
    """Every cited number that is marked as verified, with the columns `schema.COLUMNS`, as printed in its source.

    Raises:
        DataError: a row whose value is no plain decimal, which has no source, or which says of `verified` neither
            yes nor no.
    """
    with FILE.open(encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    for number, line in enumerate(lines, start=2):
        if problem := _problem(line):
            raise DataError(f"{FILE}, row {number}, method '{line['method']}': {problem}")
    rows = [line for line in lines if line["verified"] == "yes"]
    columns = {name: [line.get(name, "") for line in rows] for name in rows[0]}
    return make_frame(
        columns
        | {
            "kind": [CITED] * len(rows),
            "comparable": [True] * len(rows),
            "train_data": [_train_data(line) for line in rows],
            "value": [float(line["value"]) for line in rows],
            "printed": columns["value"],
            "n_images": [int(line["n_images"]) if line["n_images"] else None for line in rows],
        }
    )


def _problem(line: dict[str, str]) -> str:
    try:
        plain = Decimal(line["value"]).is_finite() and "e" not in line["value"].lower()
    except InvalidOperation:
        plain = False
    if not plain:
        return f"field 'value' is '{line['value']}', not a plain decimal"
    if not line["source"].strip():
        return "field 'source' is empty; every number names its publication"
    if line["verified"] not in ("yes", "no"):
        return f"field 'verified' is '{line['verified']}', not yes or no"
    return ""


def _train_data(line: dict[str, str]) -> str:
    images = line["train_images"] and f"{line['train_images']} images"
    return ", ".join(part for part in (line["train_data"], images) if part) or "not stated"
