"""`sohes data`: official data sets as class-agnostic COCO files, or as label maps of their classes."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from sohes.errors import DataError
from sohes.help import help_page


def add_parser(commands: Any) -> None:
    """Describe the command."""
    parser = commands.add_parser(
        "data", help="prepare data sets for evaluation and probes", **help_page("sohes data list")
    )
    actions = parser.add_subparsers(required=True, metavar="ACTION")
    listing = actions.add_parser(
        "list",
        help="the known data sets, which are prepared, and where they come from",
        **help_page("sohes data list"),
    )
    listing.set_defaults(run=run_list)
    prepare = actions.add_parser(
        "prepare",
        help="turn an official download into one class-agnostic COCO file, or into label maps",
        **help_page(
            "sohes data prepare bsds500 --root downloads/bsds500",
            "Turn an official download into one class-agnostic COCO file, or a semantic one into label maps for sohes "
            "probe. What is missing in the folder is named, with where to get it: point --root at an empty "
            "folder to see what a data set needs.",
        ),
    )
    prepare.add_argument("name", metavar="NAME", help="data set, see `sohes data list`")
    prepare.add_argument("--root", required=True, type=Path, metavar="DIR", help="folder of the unpacked download")
    prepare.add_argument(
        "--out",
        type=Path,
        metavar="PATH",
        help="file or folder to write; default: NAME.json or NAME in $SOHES_DATA, else ~/.cache/sohes/data",
    )
    prepare.add_argument(
        "--limit",
        type=int,
        metavar="N",
        help="take N images (of label maps: of each split), drawn with a fixed seed (default: all; sa1b 1000)",
    )
    prepare.set_defaults(run=run_prepare)


def run_prepare(options: argparse.Namespace) -> int:
    """Prepare one data set; warnings go to stderr."""
    if options.limit is not None and options.limit < 1:
        raise DataError(f"--limit must be at least 1, not {options.limit}")
    from sohes.data.prepare import DATASETS, SEMANTIC_SETS, prepared
    from sohes.data.prepare.build import Prepared, prepare
    from sohes.data.prepare.semantic import PreparedLabels, prepare_semantic
    from sohes.errors import unknown_name

    name, out = options.name, options.out or prepared(options.name)
    done: Prepared | PreparedLabels
    if name in DATASETS:
        done = prepare(name, options.root, out, limit=options.limit)
    elif name in SEMANTIC_SETS:
        done = prepare_semantic(name, options.root, out, limit=options.limit)
    else:
        raise DataError(unknown_name("data set", name, [*DATASETS, *SEMANTIC_SETS]))
    for warning in done.warnings:
        print(f"sohes: {name}: {warning}", file=sys.stderr)
    print(done.summary())
    return 0


def run_list(options: argparse.Namespace) -> int:
    """Print the known data sets: name, images, whether it is prepared; what it is; where from, on what terms."""
    from sohes.data.prepare import DATASETS, SEMANTIC_SETS, prepared
    from sohes.data.prepare.catalogue import Dataset
    from sohes.data.prepare.semantic_sets import SemanticSet

    counts = {name: f"{dataset.sample or dataset.images:,} images" for name, dataset in DATASETS.items()}
    for name, labelled in SEMANTIC_SETS.items():
        counts[name] = f"{labelled.train.images:,} train and {labelled.val.images:,} val images, label maps"
    known: dict[str, Dataset | SemanticSet] = {**DATASETS, **SEMANTIC_SETS}
    for name, dataset in known.items():
        path = prepared(name)
        print(f"{name:<24}{path if path.exists() else 'not prepared'}")
        print(f"    {dataset.title} ({counts[name]})")
        print(f"    {dataset.page}; licence: {dataset.licence}")
    return 0
