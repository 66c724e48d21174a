"""`sohes segment`: a picture and a JSON per image."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sohes.commands.inference import add_inference, parse_inference
from sohes.errors import ConfigError, DataError
from sohes.files import atomic_path, printable, shortened, write_json
from sohes.help import help_page

if TYPE_CHECKING:
    from sohes.data.images import ImageArray
    from sohes.masks import MaskForest
    from sohes.segmenters.segmenter import Inference


def add_parser(commands: Any) -> None:
    """Describe the command."""
    parser = commands.add_parser(
        "segment",
        help="segment images, with a trained checkpoint or by phase 1",
        **help_page(
            "sohes segment photos/ --checkpoint runs/sohes_full-demo/correct/segmenter --out out/",
            "Without a checkpoint, phase 1 of SOHES segments: what `sohes explore` finds with nothing set, by the ViT "
            "that comes packaged.",
        ),
    )
    parser.add_argument(
        "source",
        nargs="+",
        metavar="SOURCE",
        help="folders, image files, .txt with a path on each line, tar archives ('a/{000..019}.tar'), or a COCO .json",
    )
    parser.add_argument("--checkpoint", type=Path, help="segmenter folder, …/correct/segmenter of a run")
    parser.add_argument("--out", required=True, type=Path, help="folder for one PNG and one JSON per image")
    parser.add_argument("--min-score", type=float, default=0.5, help="show masks scored above this (default 0.5)")
    add_inference(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Segment every image; broken ones are skipped and counted. 1 when none could be read."""
    if not 0 <= options.min_score <= 1:
        raise DataError(f"--min-score must lie in [0, 1], not {options.min_score}")
    inference = parse_inference(options)
    if inference and not options.checkpoint:
        raise ConfigError(f"{inference.name} needs --checkpoint: it is for masks of a segmenter")
    from PIL import Image

    from sohes.data.draw import overlay
    from sohes.data.listing import list_images
    from sohes.progress import track

    listing = list_images(*options.source, leave_out=options.out)
    segment = (
        _trained(options.checkpoint, inference, options.min_score)
        if options.checkpoint
        else _phase_1(options.min_score)
    )
    paths = [Path(name) for name in listing.names]
    names = output_names(paths)
    skipped = {}
    for place, path in enumerate(track(paths, "segment")):
        try:
            image = listing.load(place)
        except DataError as error:
            print(f"sohes: skipped: {error}", file=sys.stderr)
            skipped[printable(path)] = str(error)
            continue
        forest = segment(image)
        picture = options.out / f"{names[path]}.png"
        with atomic_path(picture) as temporary:
            Image.fromarray(overlay(image, forest)).save(temporary)
        write_json(options.out / f"{names[path]}.json", forest_json(forest, path))
        print(f"{picture}: {len(forest)} entities, {int((forest.depth > 0).sum())} of them parts")
    (options.out / "skipped.json").unlink(missing_ok=True)  # of an earlier call
    if skipped:
        write_json(options.out / "skipped.json", [{"file": f, "reason": r} for f, r in skipped.items()])
        print(f"sohes: {len(skipped)} of {len(paths)} images could not be read", file=sys.stderr)
    for line in listing.notes:
        print(line)
    return 1 if len(skipped) == len(paths) else 0


def _trained(checkpoint: Path, inference: Inference | None, min_score: float) -> Callable[[ImageArray], MaskForest]:
    from sohes.segmenters.segmenter import load_segmenter

    trained = load_segmenter(checkpoint)
    segmenter = inference.around(trained) if inference else trained
    return lambda image: segmenter.segment(image, min_score=min_score)


def _phase_1(min_score: float) -> Callable[[ImageArray], MaskForest]:
    from sohes.backbones.timm_vit import load_backbone
    from sohes.backbones.weights import PACKAGED
    from sohes.explore.explorer import Explorer
    from sohes.segmenters.decode import select_forest

    backbone = load_backbone(PACKAGED)
    print(f"no --checkpoint: phase 1 with nothing set, on {backbone.provenance.label}", file=sys.stderr)
    explorer = Explorer(backbone)
    return lambda image: select_forest(explorer(image), min_score=min_score)


def output_names(paths: Sequence[Path]) -> dict[Path, str]:
    """A file name (no suffix) for each path: its stem, made distinct by the folder's name where stems repeat."""
    names: dict[Path, str] = {}
    taken = {"skipped"}  # skipped.json
    for path in paths:
        stem, count = shortened(path.stem), 1
        name = stem
        while name in taken and path not in names:
            name = f"{shortened(path.parent.name)}-{stem}" + (f"-{count}" if count > 1 else "")
            count += 1
        taken.add(name)
        names.setdefault(path, name)
    return names


def forest_json(forest: MaskForest, path: Path) -> dict[str, Any]:
    """A forest as plain JSON: file, size, and per mask id, RLE, box, area, score, parent (null for a root), depth."""
    return {
        "file": str(path),
        "height": forest.size_hw[0],
        "width": forest.size_hw[1],
        "masks": [
            {
                "id": entity.index,
                "segmentation": entity.rle,
                "bbox": list(entity.box_xywh),
                "area": entity.area,
                "score": round(entity.score, 4),
                "parent": entity.parent,
                "depth": entity.depth,
            }
            for entity in forest
        ],
    }
