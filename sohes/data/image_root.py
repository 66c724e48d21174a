"""The folder that the images of a COCO file lie in, where that is not the file's own, as in most downloads."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from sohes.data.coco import ImageSet
from sohes.errors import DataError

_ASKED = 20  # images that decide whether a folder is looked for
_DEPTH = 3
_ANNOTATIONS = "annotations"  # folder of the JSON files in COCO's own layout, beside those of the images


def with_image_root(images: ImageSet) -> ImageSet:
    """The set as it is where its images lie at their names, else with the folder that holds them; which one is logged.

    Folders below the file's own are tried, and in COCO's layout those beside it.

    Raises:
        DataError: several folders hold equally many of the images.
    """
    if not images.items or any(item.path.exists() for item in images.items[:_ASKED]):
        return images
    names = images.names
    first = list(names.values())[:_ASKED]
    folder = images.source.absolute().parent
    base = folder.parent if folder.name == _ANNOTATIONS else folder
    found = {}
    for root in _folders(base):
        if any((root / name).is_file() for name in first):
            found[root] = sum((root / name).is_file() for name in names.values())
    best = [root for root, count in found.items() if count == max(found.values())]
    if len(best) > 1:
        raise DataError(
            f"{images.source}: its images lie in {best[0]} as well as in {best[1]}; move one away, or write the folder "
            f'into field \'info\': {{"image_root": "{best[0]}"}}'
        )
    if not best:
        return images  # opening them says which are missing
    logging.getLogger(__name__).warning(
        "%s: %d of its %d images are taken from %s", images.source, found[best[0]], len(names), best[0]
    )
    items = [replace(item, path=best[0] / names[item.id]) for item in images.items]
    return replace(images, items=items, image_root=best[0])


def _folders(base: Path) -> Iterator[Path]:
    """The folder and those below it, hidden ones left out, as deep as downloads go."""
    for where, folders, _ in os.walk(base):
        path = Path(where)
        deep = len(path.parts) - len(base.parts) >= _DEPTH
        folders[:] = [] if deep else sorted(name for name in folders if not name.startswith("."))
        yield path
