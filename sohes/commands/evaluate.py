"""`sohes evaluate`: predictions of any system against a ground truth."""

from __future__ import annotations

import argparse
import json
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sohes.commands.inference import add_inference, parse_inference
from sohes.errors import ConfigError
from sohes.help import help_page


def add_parser(commands: Any) -> None:
    """Describe the command."""
    parser = commands.add_parser(
        "evaluate",
        help="score predictions: mask AR, AP, hierarchy, partitions",
        **help_page("sohes evaluate labels/ --ground-truth coco.json --out scores/"),
    )
    parser.add_argument(
        "predictions",
        type=Path,
        metavar="PRED",
        help="label store, segmenter folder, COCO results, COCO file with scores",
    )
    parser.add_argument("--ground-truth", required=True, metavar="GT", help="COCO file, or name of a prepared data set")
    parser.add_argument("--out", type=Path, help="folder for record, CSV files, pictures, predictions of a segmenter")
    parser.add_argument(
        "--regions",
        nargs="?",
        const="",
        metavar="DIR",
        help="score partitions too: covering of GT's objects, or covering, Rand index and variation of information "
        "against every annotator of BSDS500's groundTruth/SPLIT",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the table")
    parser.add_argument("--strict", action="store_true", help="stop at the first broken entry, skip none")
    parser.add_argument("--method", help="name of what made the predictions (default: PRED's last two parts)")
    parser.add_argument("--limit", type=int, metavar="N", help="score the first N images of the ground truth only")
    add_inference(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Score, print, and write; what was skipped stands in the table, with --json on stderr."""
    if options.limit is not None and options.limit < 1:
        raise ConfigError(f"--limit must be at least 1, not {options.limit}")
    inference = parse_inference(options)
    from rich.console import Console

    from sohes.data.coco import read_coco
    from sohes.data.image_root import with_image_root
    from sohes.data.prepare import DATASETS, resolve_ground_truth
    from sohes.data.problems import Problems
    from sohes.evaluation.evaluate import evaluate_predictions
    from sohes.evaluation.inputs import first_images
    from sohes.evaluation.predictions import open_predictions, short_name
    from sohes.evaluation.regions import RegionScorer
    from sohes.evaluation.report import EvaluationReport

    started = datetime.now(UTC)
    path = resolve_ground_truth(options.ground_truth)
    truth = read_coco(path, Problems(strict=options.strict))
    if options.out is not None:  # a segmenter and the pictures open the images
        truth = with_image_root(truth)
    problems = Problems(strict=options.strict)
    predictions = open_predictions(
        options.predictions, truth, problems, out=options.out, limit=options.limit, inference=inference
    )
    wanted = first_images(truth, options.limit)
    regions = None
    if options.regions is not None:
        regions = RegionScorer(wanted, Path(options.regions) if options.regions else None)
    report = EvaluationReport(
        evaluation=evaluate_predictions(
            wanted, predictions, related=predictions.related, regions=regions, problems=problems
        ),
        truth=wanted,
        predictions=predictions,
        method=options.method or short_name(options.predictions),
        dataset=options.ground_truth if options.ground_truth in DATASETS else short_name(path),
        of_images=len(truth) if len(wanted) < len(truth) else None,
        problems=problems,
        config={
            "predictions": str(options.predictions),
            "ground_truth": str(path),
            "limit": options.limit,
            "strict": options.strict,
            "regions": options.regions,
            "inference": inference.name if inference else None,
        },
        started=started,
    )
    if options.json:
        print(json.dumps(report.as_json(), allow_nan=False))
        for line in report.left_out():
            print(f"sohes: {line}", file=sys.stderr)
    else:
        Console().print(report.table())
        print(report.protocols())
    if options.out is not None:
        print(*report.write(options.out), sep="\n", file=sys.stderr)
    return 0
