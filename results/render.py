"""A table as CSV (one row one number), Markdown and LaTeX (booktabs)."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable
from dataclasses import astuple

from results.schema import COLUMNS, Row
from results.table import DASH, Block, Table

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
_NUMBER = re.compile(r"[+-]?\d+(\.\d*)?( ± \d+(\.\d*)?)?")


def to_csv(rows: Iterable[Row]) -> str:
    """All rows under the columns of `Row`; plain decimals, the source in every row."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(astuple(row) for row in rows)
    return text.getvalue()


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
    lines = list(_numbered(block, sources))
    used = [source for source in sources if any(line[-1] == source for line in block.lines)]
    verdicts = [f"{verdict}." for verdict in table.verdicts] if block.measured else []
    small = [*verdicts, *block.notes, *(f"[{sources[source]}] {source}." for source in used)]
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
    """Number of each source, in order of first appearance; the last column of every block is the source."""
    sources: dict[str, int] = {}
    for block in table.blocks:
        for line in block.lines:
            sources.setdefault(line[-1], len(sources) + 1)
    return sources


def _numbered(block: Block, sources: dict[str, int]) -> list[tuple[str, ...]]:
    """The lines with their source as a number in brackets."""
    return [(*line[:-1], f"[{sources[line[-1]]}]") for line in block.lines]


def _numeric_columns(block: Block) -> list[bool]:
    """Which columns hold numbers (or dashes) only; they are set flush right."""
    return [
        all(cell == DASH or _NUMBER.fullmatch(cell) for cell in cells) for cells in zip(*block.lines, strict=True)
    ] or [False] * len(block.header)
