"""Cited numbers: the rows of published.csv."""

from __future__ import annotations

import csv
from functools import cache
from importlib import resources

from results.schema import CITED, Row


@cache
def published_rows() -> tuple[Row, ...]:
    """Every cited number, as printed in its source."""
    text = resources.files("results").joinpath("published.csv").read_text(encoding="utf-8")
    return tuple(_row(line) for line in csv.DictReader(text.splitlines()))


def _row(line: dict[str, str]) -> Row:
    images = line["train_images"] and f"{line['train_images']} images"
    return Row(
        kind=CITED,
        comparable=True,
        method=line["method"],
        backbone=line["backbone"],
        backbone_note=line["backbone_note"],
        train_data=", ".join(part for part in (line["train_data"], images) if part) or "not stated",
        supervision=line["supervision"],
        dataset=line["dataset"],
        split=line["split"],
        metric=line["metric"],
        value=float(line["value"]),
        printed=line["value"],
        unit=line["unit"],
        source=line["source"],
        publication=line["publication"],
    )
