"""SA-1B: beside each photograph a JSON with 'image' and 'annotations' (facebookresearch/segment-anything, README)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sohes.data.coco import Annotation, ImageItem
from sohes.data.prepare.source import AnnotatedImage, Source
from sohes.data.problems import Problems
from sohes.errors import DataError
from sohes.files import read_json


def open_sa1b(root: Path, files: Sequence[Path], problems: Problems) -> Source:
    """Converter; takes every pack below the root. One JSON is read at a time."""
    paths = sorted(root.rglob("sa_*.json"), key=lambda path: (len(path.name), path.name, path))
    return Source(paths, _annotated)


def _annotated(path: Path) -> AnnotatedImage:
    value = read_json(path)
    try:
        image = value["image"]
        item = ImageItem(int(image["image_id"]), path.with_suffix(".jpg"), int(image["height"]), int(image["width"]))
        shapes = [entry["segmentation"] for entry in value["annotations"]]
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path}: not an SA-1B annotation; {error!r} in 'image' or 'annotations'") from error
    return AnnotatedImage(item, [Annotation(index + 1, item.id, 1, shape) for index, shape in enumerate(shapes)])
