"""One row is one number with its facts, measured or cited; `results.words` turns facts into words.

A measured number can never pass for a cited one: a row says of which kind it is, a measured one names its run and
commit, a cited one its digits as printed, and the checks are here.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, fields
from decimal import Decimal, InvalidOperation
from typing import Any

from sohes.errors import DataError

MEASURED, CITED = "measured", "cited"
PAPER_SCALE = "paper"
DATA = ("dataset", "split", "of_images")  # fields that say on what a number was measured


@dataclass(frozen=True, kw_only=True)
class Row:
    """One number with all that is needed to trace it.

    Raises:
        DataError: on construction, when a measured row looks like a cited one or the reverse, or nothing says where the
            number comes from.
    """

    kind: str  # "measured" or "cited"
    scale: str = ""  # of the run that measured it: "demo", "small", "paper"; empty for a cited row
    comparable: bool = False  # with published numbers; a measured one below paper scale is not
    method: str
    arm: str = ""  # as in `Measurement`
    backbone: str
    backbone_note: str = ""  # of a publication
    init: str = ""  # start weights in words; empty where a publication does not say
    trained_by: str = ""  # as in `Measurement`
    train_data: str = ""
    supervision: str = ""  # what people gave to what was trained; empty where a measured row does not say
    dataset: str
    split: str = ""
    metric: str
    value: float
    sd: float | None = None  # as in `Measurement`
    n_seeds: int | None = None
    printed: str = ""  # the digits of a publication
    unit: str
    n_images: int | None = None
    of_images: int | None = None  # as in `Measurement`
    protocol: str = ""
    source: str  # path of the record, or place in a publication
    publication: str = ""  # arXiv id or address, where the source has one
    run: str = ""
    stage: str = ""
    seed: int | None = None
    commit: str = ""
    config_hash: str = ""
    hardware: str = ""
    date: str = ""

    def __post_init__(self) -> None:
        if problem := self._problem():
            raise DataError(f"table row of method '{self.method}', metric '{self.metric}': {problem}")

    def _problem(self) -> str:
        """What is wrong with this row; empty when nothing is."""
        if self.kind not in (MEASURED, CITED):
            return f"field 'kind' is '{self.kind}', not '{MEASURED}' or '{CITED}'"
        if not self.source.strip():
            return "field 'source' is empty; every number names its record or its publication"
        if not math.isfinite(self.value):
            return f"field 'value' is {self.value}, not a finite number"
        if self.sd is not None and not math.isfinite(self.sd):
            return f"field 'sd' is {self.sd}, not a finite number"
        traced = {"scale": self.scale, "run": self.run, "stage": self.stage, "commit": self.commit}
        if self.kind == MEASURED:
            return self._measured_problem([name for name, text in traced.items() if not text])
        return self._cited_problem([name for name, text in traced.items() if text])

    def _measured_problem(self, missing: list[str]) -> str:
        if missing:
            return f"a measured row names its {' and '.join(missing)}"
        if self.printed or self.publication:
            return "fields 'printed' and 'publication' are those of a cited row"
        if self.comparable and self.scale != PAPER_SCALE:
            return f"field 'comparable' is true; at scale '{self.scale}' nothing is comparable with published numbers"
        return ""

    def _cited_problem(self, given: list[str]) -> str:
        if given:
            return f"a cited row has no {' and no '.join(given)}; those are of a run"
        if not is_plain_decimal(self.printed) or float(self.printed) != self.value:
            return f"field 'printed' is '{self.printed}', not the plain decimal of the value {self.value}"
        return ""


PROBE = "probe_"  # how the protocols of frozen probes begin

COLUMNS = tuple(column.name for column in fields(Row))


def is_plain_decimal(text: str) -> bool:
    """Whether `text` is a finite number without exponent."""
    try:
        return Decimal(text).is_finite() and "e" not in text.lower()
    except InvalidOperation:
        return False


def is_probe(row: Row) -> bool:
    """Whether it is a number of a probe of frozen features."""
    return row.protocol.startswith(PROBE)


def by_key(rows: Iterable[Row], *names: str) -> dict[tuple[Any, ...], list[Row]]:
    """Rows grouped by the named fields, groups in order of first appearance."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(getattr(row, name) for name in names), []).append(row)
    return groups


def find(rows: Iterable[Row], metric: str) -> Row | None:
    """The row of that metric, None when there is none.

    Raises:
        DataError: two different numbers for one cell.
    """
    found = [row for row in rows if row.metric == metric]
    if len({row.value for row in found}) > 1:
        sources = ", ".join(dict.fromkeys(row.source for row in found))
        raise DataError(f"two values of {metric} for '{found[0].method}' on '{found[0].dataset}': {sources}")
    return found[0] if found else None
