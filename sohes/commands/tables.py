"""`sohes tables`: run records and published numbers to tables, plots and a summary."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from sohes.errors import ConfigError
from sohes.help import add_tables_options, help_page

CHECKOUT = Path(__file__).resolve().parents[2]


def add_parser(commands: Any) -> None:
    """Describe the command."""
    parser = commands.add_parser(
        "tables",
        help="tables for papers and a summary, from the records of runs",
        **help_page("sohes tables runs/seed-0 runs/seed-1 --out joined/"),
    )
    add_tables_options(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Write tables.

    Raises:
        ConfigError: this installation has no `results`.
    """
    if not (CHECKOUT / "results" / "aggregate.py").is_file():
        raise ConfigError("tables are made by `results`, which is in no wheel; clone the repository and run this there")
    if str(CHECKOUT) not in sys.path:
        sys.path.insert(0, str(CHECKOUT))
    from results import aggregate

    return aggregate.run(options)
