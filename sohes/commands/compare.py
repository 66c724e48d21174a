"""`sohes compare`: two sets of predictions on the same images."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sohes.errors import SohesError
from sohes.help import help_page

if TYPE_CHECKING:
    from sohes.evaluation.compare import Comparison
    from sohes.evaluation.image_scores import ImageScores


def add_parser(commands: Any) -> None:
    """Describe the command."""
    parser = commands.add_parser(
        "compare",
        help="how two evaluations differ, image by image, with intervals",
        **help_page("sohes compare runs/before runs/after --out changes/"),
    )
    kinds = "run folder, folder of `sohes evaluate --out`, or, with --ground-truth, label store or COCO file of results"
    parser.add_argument("a", type=Path, metavar="A", help=kinds)
    parser.add_argument("b", type=Path, metavar="B", help="the same; differences are B minus A")
    parser.add_argument(
        "--ground-truth", metavar="GT", help="COCO file, or name of a prepared data set: A and B are predictions"
    )
    parser.add_argument("--out", type=Path, help="folder for compare.csv and pictures of the images that changed most")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Compare, print, and write; what is left out goes to stderr."""
    from rich.console import Console

    from sohes.evaluation.compare import compare, write_comparisons
    from sohes.evaluation.image_scores import read_scores

    if options.ground_truth is None:
        a, b = read_scores(options.a), read_scores(options.b)
    else:
        a, b = _scored(options)
    comparisons = compare(a, b)
    notes = [note for comparison in comparisons for note in comparison.notes]
    console = Console()
    for comparison in comparisons:
        console.print(comparison.table())
    print("Mask AR in %, B - A in points; bold: the 95 % interval over images, drawn together for both, excludes 0.")
    if options.out is not None:
        write_comparisons(options.out / "compare.csv", comparisons)
        print(options.out / "compare.csv")
        for place, comparison in enumerate(comparisons, start=1):
            name = "changed.png" if len(comparisons) == 1 else f"changed_{place}.png"
            drawn, unread = _draw(comparison, options.out / name)
            print(*drawn, sep="\n", end="\n" if drawn else "")
            notes += unread
    for note in dict.fromkeys(notes):
        print(f"sohes: {note}", file=sys.stderr)
    return 0


def _scored(options: argparse.Namespace) -> tuple[list[ImageScores], list[ImageScores]]:
    from sohes.data.coco import read_coco
    from sohes.data.prepare import resolve_ground_truth
    from sohes.data.problems import Problems
    from sohes.evaluation.compare import score_images

    truth, problems = read_coco(resolve_ground_truth(options.ground_truth)), Problems()
    a, b = ([score_images(path, truth, problems)] for path in (options.a, options.b))
    for line in [*truth.problems.lines(), *problems.lines()]:
        print(f"sohes: {line}", file=sys.stderr)
    return a, b


def _draw(comparison: Comparison, path: Path) -> tuple[list[Path], list[str]]:
    """The picture of the images that changed most; why there is none."""
    from sohes.data.coco import read_coco
    from sohes.data.image_root import with_image_root
    from sohes.data.problems import Problems
    from sohes.evaluation.pictures import draw_changed
    from sohes.evaluation.predictions import open_predictions

    changed = comparison.images[comparison.images["difference"] != 0]
    if changed.empty:
        return [], [f"{comparison.b.method}: no image changed, so there is no picture"]
    try:
        truth = with_image_root(read_coco(comparison.a.ground_truth))
        found = []
        for side in (comparison.a, comparison.b):
            if side.predictions is None:
                return [], [f"{side.method}: its predictions are in no file, so there is no picture"]
            found.append(open_predictions(side.predictions, truth, Problems()))
    except SohesError as error:  # moved, or gone by now
        return [], [f"no picture: {error}"]
    ids = {name: image_id for image_id, name in truth.names.items()}
    pairs = changed[["a", "b"]].to_numpy(float).tolist()
    recall = {ids[name]: (first, second) for name, (first, second) in zip(changed.index, pairs, strict=True)}
    return draw_changed(truth, found[0], found[1], recall, path)
