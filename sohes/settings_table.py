"""Settings as a table for people: what can be set, to what it is set, and what it means."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

_LIST_CHARS = 16  # longer lists show their ends only


def show_value(value: Any) -> str:
    """A value as it is typed on the command line, long lists shortened.

    >>> show_value(None), show_value((0.5, 0.25)), show_value("key")
    ('null', '[0.5, 0.25]', 'key')
    """
    if isinstance(value, str):
        return value
    if not isinstance(value, list | tuple):
        return json.dumps(value)
    text = json.dumps(value)
    return text if len(text) <= _LIST_CHARS else f"[{show_value(value[0])}, … {show_value(value[-1])}]"


def split_origin(text: str) -> tuple[str, str]:
    """What a field's text says, and the origin of its default in brackets at the end.

    >>> split_origin("Side of a resized crop, px [UnSAM].")
    ('Side of a resized crop, px', 'UnSAM')
    """
    match = re.fullmatch(r"(.*?)\s*(?:\[([^]]*)\])?\.?", text, re.DOTALL)
    assert match is not None
    return match[1], match[2] or ""


def print_table(title: str, headers: Sequence[str], rows: Sequence[Sequence[str]], console: Console) -> None:
    """Print a table that folds into a terminal's width; in a pipe, one plain line a row."""
    if not console.is_terminal:
        widths = [max(map(len, column)) for column in zip(headers, *rows, strict=True)]
        for row in ((title,), headers, *rows):
            line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=False))
            console.print(line.rstrip(), soft_wrap=True, markup=False, highlight=False)
        return
    table = Table(title=escape(title), title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, padding=(0, 1))
    for header in headers:
        table.add_column(header, overflow="fold")
    for row in rows:
        table.add_row(*map(escape, row))
    console.print(table)
