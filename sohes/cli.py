"""The `sohes` command."""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Sequence

from sohes import __version__
from sohes.commands import compare, data, doctor, evaluate, explore, labels, probe, segment, tables
from sohes.errors import SohesError
from sohes.help import help_page

_COMMANDS = (explore, labels, segment, evaluate, compare, probe, tables, data, doctor)


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # no file's name is too odd for a terminal to show
    options = make_parser().parse_args(arguments)
    try:
        return int(options.run(options))
    except SohesError as error:
        print(f"sohes: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("sohes: interrupted; run the same command again to resume", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output went away
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def make_parser() -> argparse.ArgumentParser:
    """What the command takes."""
    page = help_page("sohes explore --help", "Entities, parts and subparts from raw images.")
    parser = argparse.ArgumentParser(prog="sohes", **page)
    parser.add_argument("--version", action="version", version=f"sohes {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in _COMMANDS:
        command.add_parser(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
