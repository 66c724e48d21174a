"""`sohes doctor`."""

from __future__ import annotations

import argparse
from typing import Any

from sohes.help import help_page


def add_parser(commands: Any) -> None:
    """Describe the command."""
    parser = commands.add_parser(
        "doctor", help="what works on this machine, and how to mend what does not", **help_page("sohes doctor")
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print the report; 1 when something is broken."""
    from sohes.doctor import print_report

    return print_report()
