"""A table as CSV (one row one number), Markdown and LaTeX (booktabs)."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from dataclasses import astuple
from decimal import Decimal
from typing import Any

from results.schema import COLUMNS, Row
from results.table import Block, Cell, Mean, Table
from results.words import DASH, method_of, number_of, one_decimal

_LATEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "†": r"\textdagger{}",
    "·": r"\textperiodcentered{}",
    "→": r"$\rightarrow$",
    DASH: "--",
    "²": r"\textsuperscript{2}",
    "±": r"$\pm$",
    "…": r"\dots{}",
    "\N{MULTIPLICATION SIGN}": r"$\times$",
}


def to_csv(rows: Iterable[Row]) -> str:
    """All rows under the columns of `Row`: every digit, plain decimals, nothing where a fact is missing."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(map(_csv_cell, astuple(row)) for row in rows)
    return text.getvalue()


def _csv_cell(value: Any) -> Any:
    return plain_decimal(value) if isinstance(value, float) else value


def plain_decimal(value: float) -> str:
    """All digits of `value`, never with an exponent.

    >>> plain_decimal(1e-05)
    '0.00001'
    """
    return format(Decimal(repr(float(value))), "f")


def lines_in_words(block: Block) -> list[tuple[str, ...]]:
    """The cells of each line as they are read, the method first, the source last."""
    return [(method_of(line.row), *map(_in_words, line.cells), line.source) for line in block.lines]


def _in_words(cell: Cell) -> str:
    match cell:
        case None:
            return DASH
        case Row():
            return number_of(cell)
        case Mean():
            return f"{one_decimal(cell.value)} ± {one_decimal(cell.deviation)}"
        case Decimal():
            return f"{cell:+.1f}"
        case float():
            return str(one_decimal(cell))
    return str(cell)


def to_markdown(table: Table) -> str:
    """Heading, verdicts, one Markdown table a block, sources by number, notes."""
    sources = _sources(table)
    parts = [f"## {table.title}", "\n".join(f"- **{verdict}**" for verdict in table.verdicts)]
    for block in table.blocks:
        right = _numeric_columns(block)
        rule = ["---:" if is_right else "---" for is_right in right]
        lines = [_markdown_line(cells) for cells in (block.header, rule, *_numbered(block, sources))]
        parts += [f"### {block.heading}", "\n".join(lines), "\n".join(f"- {note}" for note in block.notes)]
    parts.append("\n".join(f"- [{number}] {source}" for source, number in sources.items()))
    return "\n\n".join(part for part in parts if part) + "\n"


def _markdown_line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |"


def to_latex(table: Table) -> str:
    """One `table` environment a block, never measured and cited lines in the same one; needs booktabs and graphicx."""
    sources = _sources(table)
    parts = [
        r"% needs \usepackage[T1]{fontenc}, \usepackage{booktabs}, \usepackage{graphicx}",
        f"% {escape_latex(table.title)}",
    ]
    parts += [f"% {escape_latex(verdict)}" for verdict in table.verdicts]
    parts += [_latex_block(table, block, index, sources) for index, block in enumerate(table.blocks, start=1)]
    return "\n".join(parts) + "\n"


def _latex_block(table: Table, block: Block, index: int, sources: dict[str, int]) -> str:
    columns = "".join("r" if is_right else "l" for is_right in _numeric_columns(block))
    lines = _numbered(block, sources)
    used = {line.source for line in block.lines}
    verdicts = [f"{verdict}." for verdict in table.verdicts] if block.measured else []
    small = [
        *verdicts,
        *block.notes,
        *(f"[{number}] {source}." for source, number in sources.items() if source in used),
    ]
    return "\n".join(
        [
            r"\begin{table}[t]",
            r"\centering",
            rf"\caption{{{escape_latex(f'{table.title}. {block.heading}.')}}}",
            rf"\label{{tab:{table.name.replace('_', '-')}-{index}}}",
            r"\resizebox{\linewidth}{!}{%",
            rf"\begin{{tabular}}{{{columns}}}",
            r"\toprule",
            _latex_line(block.header),
            r"\midrule",
            *map(_latex_line, lines),
            r"\bottomrule",
            r"\end{tabular}}",
            *(rf"\par\smallskip{{\footnotesize {escape_latex(text)}\par}}" for text in small),
            r"\end{table}",
        ]
    )


def _latex_line(cells: Iterable[str]) -> str:
    # braces keep a cell that begins with "[" from being read as the optional argument of the line before
    return " & ".join(f"{{{escape_latex(cell)}}}" for cell in cells) + r" \\"


def escape_latex(text: str) -> str:
    """`text` with every character that LaTeX would interpret, or T1 fonts lack, written as a command."""
    return "".join(_LATEX.get(character, character) for character in text)


def _sources(table: Table) -> dict[str, int]:
    """Number of each source, in order of first appearance."""
    sources = dict.fromkeys(line.source for block in table.blocks for line in block.lines)
    return {source: number for number, source in enumerate(sources, start=1)}


def _numbered(block: Block, sources: dict[str, int]) -> list[tuple[str, ...]]:
    """The lines with their source as a number in brackets."""
    return [(*line[:-1], f"[{sources[line[-1]]}]") for line in lines_in_words(block)]


def _numeric_columns(block: Block) -> list[bool]:
    """Which columns hold numbers (or dashes) only; they are set flush right."""
    columns = zip(*(line.cells for line in block.lines), strict=True)
    return [False, *(not any(isinstance(cell, str) for cell in cells) for cells in columns), False]
