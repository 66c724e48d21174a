"""Help pages of all commands: each ends with an example; and the options of tables, which two commands share."""

from __future__ import annotations

import argparse
import glob
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sohes.errors import DataError

_WIDTH = 78


def help_page(example: str, description: str = "") -> dict[str, Any]:
    """What a parser needs for a help page that ends with an example."""
    return {
        "description": textwrap.fill(description, _WIDTH) or None,
        "epilog": f"example:\n  {example}",
        "formatter_class": argparse.RawDescriptionHelpFormatter,
    }


def add_tables_options(parser: argparse.ArgumentParser) -> None:
    """What `sohes tables` and `python -m results.aggregate` take."""
    parser.add_argument("runs", nargs="+", metavar="RUNS", help="run folders, or patterns such as 'runs/seed-*'")
    parser.add_argument("--out", type=Path, metavar="DIR", help="output folder; default for one run: its tables/")
    for name, words in (("tables", "tables"), ("methods", "methods, measured or cited"), ("datasets", "data sets")):
        parser.add_argument(f"--{name}", nargs="+", default=[], metavar="NAME", help=f"only these {words}")
    parser.add_argument(
        "--pictures", type=Path, metavar="DIR", help="folder of the runs' photographs, which the report then shows"
    )


def expand_runs(patterns: Sequence[str]) -> list[Path]:
    """Folders by their names or by patterns (`*`, `?`, `**`), in order.

    Raises:
        DataError: a name or pattern that no folder has.
    """
    found: list[Path] = []
    for pattern in patterns:
        names = [pattern] if Path(pattern).is_dir() else sorted(glob.glob(pattern, recursive=True))
        folders = [Path(name) for name in names if Path(name).is_dir()]
        if not folders:
            raise DataError(f"{pattern}: no such folder; give the folder of a run, such as runs/sohes_full-demo")
        found += folders
    return found
