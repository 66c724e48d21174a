r"""A table as LaTeX: floats that fit into a text width of 345 pt or more and onto a page, in letters of 7 pt.

Best numbers are bold, second best underlined, cited methods carry their \cite. Columns of numbers that do not fit go
into a further float; lines for which a page has no room are left to the CSV file, and a note says so.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pandas as pd

from results.render import shown_notes
from results.table import Block, Table, styled
from results.words import DASH

PREAMBLE = r"\usepackage{booktabs}, \usepackage{tabularx}"
_WIDTH_PT = 345.0  # text of article, the narrowest of the usual ones
_WORDS_PT, _ALL_WORDS_PT = 52.0, 90.0  # least width of a column of words, and of all words of a line in one column
_SEP_PT = 6.0  # between two columns
_LINES = 42  # of 8.4 pt that leave room on a page for caption and notes
_FONT = r"\fontsize{7}{8.4}\selectfont"
_CHARACTERS = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "\0": r"\allowbreak{}",
    "[": "{[}",
    "]": "{]}",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedblright{}",
    "†": r"\textdagger{}",
    "·": r"\textperiodcentered{}",
    "→": r"$\rightarrow$",
    DASH: "--",
    "²": r"\texttwosuperior{}",
    "±": r"$\pm$",
    "…": r"\dots{}",
    "Δ": r"$\Delta$",
    "µ": r"$\mu$",
    "\N{MULTIPLICATION SIGN}": r"$\times$",
    "\N{MINUS SIGN}": r"$-$",
}
_TEXT_COLUMN = r">{\raggedright\arraybackslash\hspace{0pt}}X"
_LONG, _BREAK = re.compile(r"\S{11,}"), re.compile(r"[-_/.,:=@+](?=\S)|[^\W_]{8}(?=[^\W_]{4})")
_WIDE = re.compile(r"[A-ZΔ%±@mw&]")
_NARROW = re.compile(r"[ .,:;'!|()\[\]/iljtf-]")


@dataclass(frozen=True)
class _Part:
    """Lines and columns of a block that fit into a float, as LaTeX; the first `words` columns are text."""

    lines: pd.DataFrame
    marks: pd.DataFrame
    rule: int  # lines above the rule between cited and measured ones
    words: int


def to_latex(table: Table) -> str:
    """All blocks of a table as floats of LaTeX."""
    texts = [f"% needs {PREAMBLE}; the keys of \\cite are in published.bib"]
    for index, block in enumerate(table.blocks, start=1):
        parts = list(_parts(block))
        for number, part in enumerate(parts, start=1):
            caption = f"{table.title}. {block.heading}" + (f" ({number} of {len(parts)})" if len(parts) > 1 else "")
            label = f"tab:{table.name.replace('_', '-')}-{index}" + (f"-{number}" if len(parts) > 1 else "")
            texts.append(
                _float(part, caption, label, shown_notes(block, len(part.lines)) if number == len(parts) else [])
            )
    return "\n\n".join(texts) + "\n"


def _float(part: _Part, caption: str, label: str, notes: Sequence[str]) -> str:
    """One float; the columns of text share the width that the columns of numbers leave."""
    columns = "L" * part.words + "r" * (len(part.lines.columns) - part.words)
    rows = styled(part.lines, part.marks, latex=True).to_latex(hrules=True, column_format=columns).split("\n")
    rows[0] = rf"\begin{{tabularx}}{{\textwidth}}{{@{{}}{columns.replace('L', _TEXT_COLUMN)}@{{}}}}"
    rows[rows.index(r"\end{tabular}")] = r"\end{tabularx}"
    if part.rule:
        rows.insert(rows.index(r"\midrule") + 1 + part.rule, r"\midrule")
    small = [rf"\par\smallskip\parbox{{\textwidth}}{{\raggedright{_FONT} {escape_latex(' '.join(notes))}\par}}"]
    return "\n".join(
        [
            r"\begin{table*}[tp]",
            r"\centering",
            rf"\caption{{{escape_latex(caption)}.}}",
            rf"\label{{{label}}}",
            rf"{_FONT}\setlength{{\tabcolsep}}{{{_SEP_PT / 2:g}pt}}",
            *filter(None, rows),
            *(small if notes else []),
            r"\end{table*}",
        ]
    )


def _parts(block: Block) -> Iterator[_Part]:
    """The block in parts that fit into the width; the last line of a block that is cut says so."""
    names = block.words
    for numbers, merged in _columns(block):
        left = _WIDTH_PT - sum(_column_width(block.lines[name]) for name in numbers)
        words, count = (names[:1], 1) if merged else (names, len(names))
        size = _page(block.lines[names], left / count, merged)
        lines = block.lines[:size].map(escape_latex)
        cites = block.facts["bibkey"].where(block.facts["cited"], "")[:size]
        lines[names[0]] += [rf" \cite{{{key}}}" if key else "" for key in cites]
        if merged:
            lines[words[0]] = lines[names].agg(_joined, axis=1)
        titles = {name: _header(name) for name in numbers} | {name: escape_latex(name) for name in words}
        lines = lines[[*words, *numbers]].rename(columns=titles)
        marks = block.marks.loc[: size - 1, [*words, *numbers]].rename(columns=titles)
        yield _Part(lines, marks, block.rule if block.rule < size else 0, count)


def _page(words: pd.DataFrame, width: float, merged: bool) -> int:
    """How many lines fit onto a page, each as high as its highest column of words."""
    used = 0
    for index, cells in enumerate(words.itertuples(index=False)):
        used += max(math.ceil(1.3 * _width(cell) / width) for cell in ([", ".join(cells)] if merged else cells))
        if used > _LINES and index:
            return index
    return len(words)


def _joined(cells: pd.Series[str]) -> str:
    return ", ".join(cell for cell in cells if cell != _CHARACTERS[DASH])


def _columns(block: Block) -> Iterator[tuple[list[str], bool]]:
    """Columns of numbers that fit beside the words, and whether all words have to share a column for that."""
    widths = {name: _column_width(block.lines[name]) for name in map(str, block.lines) if name not in block.words}
    most = _WIDTH_PT - _WORDS_PT * len(block.words)
    merged = sum(widths.values()) > most
    most = _WIDTH_PT - _ALL_WORDS_PT if merged else most
    columns: list[str] = []
    for name, width in widths.items():
        if columns and sum(widths[other] for other in columns) + width > most:
            yield columns, merged
            columns = []
        columns.append(name)
    yield columns, merged


def _header(title: str) -> str:
    """A title in lines of a few letters, flush right over its numbers."""
    return rf"\shortstack[r]{{{chr(10).join(map(escape_latex, _wrapped(title)))}}}".replace("\n", r"\\")


def _wrapped(title: str) -> list[str]:
    """A title in lines of at most eight letters where its words allow that; MixedCase may break."""
    lines = [""]
    for piece in re.findall(r"\s*(?:[^\s\-_A-Z]+|[A-Z][^\s\-_A-Z]*)[\-_]?|\s*[\-_]", title) or [title]:
        if len((lines[-1] + piece).strip()) <= 8 or (lines[-1] and lines[-1][-1].isupper() and piece[0].isupper()):
            lines[-1] += piece
        else:
            lines.append(piece)
    return [line.strip() for line in lines if line.strip()]


def _column_width(column: pd.Series[str]) -> float:
    """Points that a column of numbers takes, with the space beside it."""
    texts = [*column.unique(), *_wrapped(str(column.name))]
    return 1.12 * max(map(_width, texts)) + _SEP_PT


def _width(text: str) -> float:
    """About how many points a text of 7 pt takes."""
    return 4.0 * len(text) + 1.9 * len(_WIDE.findall(text)) - 1.4 * len(_NARROW.findall(text))


def escape_latex(text: str) -> str:
    """`text` with every character that LaTeX would interpret as a command, and places where long names may break.

    Letters outside Latin alphabets, which the usual fonts lack, become question marks.
    """
    text = _LONG.sub(lambda found: _BREAK.sub("\\g<0>\0", found[0]), text)
    return "".join(_CHARACTERS.get(c) or (c if " " <= c < "\u0180" else "?") for c in text)
