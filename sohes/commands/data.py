"""`sohes data`: official data sets as class-agnostic COCO files."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from sohes.errors import DataError
from sohes.help import help_page


def add_parser(commands: Any) -> None:
    """Describe the command."""
    parser = commands.add_parser("data", help="prepare data sets for evaluation", **help_page("sohes data list"))
    actions = parser.add_subparsers(required=True, metavar="ACTION")
    listing = actions.add_parser(
        "list",
        help="the known data sets, which are prepared, and where they come from",
        **help_page("sohes data list"),
    )
    listing.set_defaults(run=run_list)
    prepare = actions.add_parser(
        "prepare",
        help="turn an official download into one class-agnostic COCO file",
        **help_page(
            "sohes data prepare bsds500 --root downloads/bsds500",
            "Turn an official download into one class-agnostic COCO file. What is missing in the folder is named, with "
            "where to get it: point --root at an empty folder to see what a data set needs.",
        ),
    )
    prepare.add_argument("name", metavar="NAME", help="data set, see `sohes data list`")
    prepare.add_argument("--root", required=True, type=Path, metavar="DIR", help="folder of the unpacked download")
    prepare.add_argument(
        "--out", type=Path, metavar="FILE", help="default: NAME.json in $SOHES_DATA, else ~/.cache/sohes/data"
    )
    prepare.add_argument(
        "--limit", type=int, metavar="N", help="take N images, drawn with a fixed seed (default: all; sa1b 1000)"
    )
    prepare.set_defaults(run=run_prepare)


def run_prepare(options: argparse.Namespace) -> int:
    """Prepare one data set; warnings go to stderr."""
    if options.limit is not None and options.limit < 1:
        raise DataError(f"--limit must be at least 1, not {options.limit}")
    from sohes.data.prepare import prepared_file
    from sohes.data.prepare.build import prepare

    prepared = prepare(options.name, options.root, options.out or prepared_file(options.name), limit=options.limit)
    for warning in prepared.warnings:
        print(f"sohes: {options.name}: {warning}", file=sys.stderr)
    print(prepared.summary())
    return 0


def run_list(options: argparse.Namespace) -> int:
    """Print the known data sets: name, images, whether it is prepared; what it is; where from, on what terms."""
    from sohes.data.prepare import DATASETS, prepared_file

    for name, dataset in DATASETS.items():
        path = prepared_file(name)
        print(f"{name:<20}{path if path.is_file() else 'not prepared'}")
        print(f"    {dataset.title} ({dataset.sample or dataset.images:,} images)")
        print(f"    {dataset.page}; licence: {dataset.licence}")
    return 0
