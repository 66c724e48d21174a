"""Help pages of all commands: each ends with an example."""

from __future__ import annotations

import argparse
import textwrap
from typing import Any

_WIDTH = 78


def help_page(example: str, description: str = "") -> dict[str, Any]:
    """What a parser needs for a help page that ends with an example."""
    return {
        "description": textwrap.fill(description, _WIDTH) or None,
        "epilog": f"example:\n  {example}",
        "formatter_class": argparse.RawDescriptionHelpFormatter,
    }
