"""A table as CSV (one row one number), Markdown and HTML; `results.latex` writes LaTeX."""

from __future__ import annotations

import csv
import html
import io
from collections.abc import Iterable
from decimal import Decimal
from typing import Any

import numpy as np
import pandas as pd

from results.schema import COLUMNS
from results.table import BEST, SECOND, Block, Table, styled

LINES, _NOTES = 100, 8  # of a block that are shown
SOURCE = "Source"  # title of the column that says which
MARKDOWN = {BEST: "**{}**", SECOND: "<u>{}</u>", "": "{}"}


def to_csv(frame: pd.DataFrame) -> str:
    """All rows under `schema.COLUMNS`: every digit, plain decimals, nothing where a fact is missing."""
    lines = zip(*(_csv_column(frame[name]) for name in COLUMNS), strict=True)
    return "\n".join([",".join(COLUMNS), *map(",".join, lines), ""])


def _csv_column(column: pd.Series[Any]) -> list[str]:
    if column.name in ("value", "sd"):
        return [plain_decimal(value) for value in column.tolist()]
    codes, distinct = column.factorize()  # there are few: to write each once takes a third of pandas' time
    texts = np.array([*map(_csv_cell, distinct.tolist()), ""], dtype=object)  # the last one, -1, is of what is missing
    return list(texts[codes])


def _csv_cell(value: Any) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow([value, ""])  # a row of one empty cell would be quoted
    return text.getvalue().removesuffix(",\n")


def plain_decimal(value: float) -> str:
    """All digits of `value`, never with an exponent; empty for NaN.

    >>> plain_decimal(1e-05)
    '0.00001'
    """
    text = repr(float(value))
    return "" if text == "nan" else format(Decimal(text), "f") if "e" in text else text


def to_markdown(table: Table) -> str:
    """Heading, one Markdown table a block, notes, sources by number."""
    sources = _sources(table)
    parts = [f"## {table.title}"]
    for block in table.blocks:
        shown = block.lines[:LINES].to_numpy()
        texts = zip(block.marks[:LINES].to_numpy().ravel(), shown.ravel(), strict=True)
        cells = [MARKDOWN[mark].format(_cell(text)) for mark, text in texts]
        width = shown.shape[1]
        lines = [
            [*cells[width * index : width * (index + 1)], f"[{sources[source]}]"]
            for index, source in enumerate(block.facts["source"][:LINES])
        ]
        if 0 < block.rule < LINES:
            lines.insert(block.rule, ["*measured by this project*", *[""] * width])
        rule = ["---" if name in block.words else "---:" for name in block.lines]
        lines = [[*(_cell(str(name)) for name in block.lines), SOURCE], [*rule, "---"], *lines]
        parts += [f"### {block.heading}", "\n".join(f"| {' | '.join(line)} |" for line in lines)]
        parts.append("\n".join(f"- {note}" for note in shown_notes(block)))
    parts.append("\n".join(f"- [{number}] {source}" for source, number in sources.items()))
    return "\n\n".join(part for part in parts if part) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", r"\|")


def to_html(table: Table) -> str:
    """A section: heading, for each block its heading, a `<table>` in a box that scrolls and notes; then all sources.

    The last cell of a line is a link to its source.
    """
    sources = _sources(table)
    parts = [f'<section class="table" id="table-{table.name}">', f"<h2>{html.escape(table.title)}</h2>"]
    for index, block in enumerate(table.blocks, start=1):
        attributes = f'class="numbers" data-rule="{block.rule}"'
        lines = block.lines[:LINES].assign(**{SOURCE: block.facts["source"].map(sources)})
        styler = styled(lines, block.marks[:LINES].assign(**{SOURCE: ""})).format(escape="html")
        styler = styler.format(f'<a href="#{table.name}-source-{{0}}">[{{0}}]</a>', subset=[SOURCE])
        styler = styler.format_index(escape="html", axis=1).set_uuid(f"{table.name}-{index}")
        parts += [
            f"<h3>{html.escape(block.heading)}</h3>",
            f'<div class="scroll">{styler.set_table_attributes(attributes).to_html()}</div>',
            _list("notes", (f"<li>{html.escape(note)}</li>" for note in shown_notes(block))),
        ]
    items = (
        f'<li id="{table.name}-source-{number}">[{number}] {html.escape(source)}</li>'
        for source, number in sources.items()
    )
    return "\n".join([*(part for part in parts if part), _list("sources", items), "</section>"]) + "\n"


def _list(name: str, items: Iterable[str]) -> str:
    text = "".join(items)
    return f'<ul class="{name}">{text}</ul>' if text else ""


def shown_notes(block: Block, lines: int = LINES) -> list[str]:
    """The notes, or the first ones and how many are left out; how many of `lines` lines have no room."""
    left, more = len(block.notes) - _NOTES, len(block.lines) - lines
    notes = [*block.notes[:_NOTES], *([f"{left} more notes of this kind are left out."] if left > 0 else [])]
    return [*notes, *([f"{more} more lines are in the CSV file."] if more > 0 else [])]


def _sources(table: Table) -> dict[Any, int]:
    """Number of each source, in order of first appearance."""
    sources = dict.fromkeys(source for block in table.blocks for source in block.facts["source"][:LINES])
    return {source: number for number, source in enumerate(sources, start=1)}
