"""`sohes labels`: inspect a label store, or export its masks."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sohes.errors import ConfigError, DataError
from sohes.files import atomic_path, shortened
from sohes.help import help_page

if TYPE_CHECKING:
    from sohes.data.label_store import LabelStore


def add_parser(commands: Any) -> None:
    """Describe the command."""
    parser = commands.add_parser(
        "labels",
        help="export, show or sum up the labels of `sohes explore`",
        **help_page("sohes labels summary labels/"),
    )
    actions = parser.add_subparsers(required=True, metavar="ACTION")
    export = actions.add_parser(
        "export",
        help="write a label store as one COCO file",
        **help_page("sohes labels export labels/ --out labels.json"),
    )
    export.add_argument("labels", type=Path, metavar="LABELS", help="folder of the label store")
    export.add_argument("--out", required=True, type=Path, metavar="FILE", help="COCO JSON; `parent_id` null is a root")
    export.set_defaults(run=run_export)
    show = actions.add_parser(
        "show",
        help="draw overlays: wholes, parts and subparts beside the image",
        **help_page("sohes labels show labels/ --out overlays/ --count 6"),
    )
    show.add_argument("labels", type=Path, metavar="LABELS", help="folder of the label store, also an unfinished one")
    show.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder of the PNG files")
    show.add_argument("--count", type=int, default=12, metavar="N", help="images, spread over the store (default 12)")
    show.set_defaults(run=run_show)
    summary = actions.add_parser(
        "summary", help="masks per image, depths and sizes", **help_page("sohes labels summary labels/ --json")
    )
    summary.add_argument(
        "labels", type=Path, metavar="LABELS", help="folder of the label store, also an unfinished one"
    )
    summary.add_argument("--json", action="store_true", help="print one JSON object")
    summary.set_defaults(run=run_summary)


def run_export(options: argparse.Namespace) -> int:
    """Write the COCO file."""
    from sohes.data.coco_writer import export_coco
    from sohes.data.label_store import LabelStore

    store = LabelStore(options.labels)
    export_coco(store, options.out)
    print(f"{options.out}: {len(store):,} images")
    return 0


def run_show(options: argparse.Namespace) -> int:
    """Draw; 1 when no image could be drawn."""
    if options.count < 1:
        raise ConfigError(f"--count must be at least 1, not {options.count}")
    from sohes.data.label_store import LabelStore

    drawn = draw_overlays(LabelStore(options.labels, partial=True), options.out, options.count)
    print(*drawn, sep="\n")
    return 0 if drawn else 1


def run_summary(options: argparse.Namespace) -> int:
    """Print the summary."""
    from sohes.data.label_store import LabelStore
    from sohes.data.summary import summarise

    summary = summarise(LabelStore(options.labels, partial=True))
    print(json.dumps(summary.as_json()) if options.json else "\n".join(summary.lines()))
    return 0


def draw_overlays(store: LabelStore, folder: Path, count: int) -> list[Path]:
    """Overlays of `count` images, spread evenly over the store; an image that is gone is left out with a message."""
    import numpy as np
    from PIL import Image

    from sohes.data.draw import overlay
    from sohes.data.images import load_image

    drawn = []
    ids = store.image_ids
    for place in np.unique(np.linspace(0, len(ids) - 1, min(count, len(ids))).astype(int)).tolist():
        name = store.file(ids[place])
        try:
            picture = overlay(load_image(Path(name)), store.forest(ids[place]))
        except (DataError, ValueError) as error:  # gone, or another picture by now
            print(f"sohes: not drawn: {name}: {error}", file=sys.stderr)
            continue
        path = folder / f"{shortened(Path(name).stem)}-{ids[place]}.png"
        with atomic_path(path) as temporary:
            Image.fromarray(picture).save(temporary)
        drawn.append(path)
    return drawn
