"""What a converter hands over: the images of a download with their masks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sohes.data.coco import Annotation, ImageItem
from sohes.data.problems import Problems

ENTITY: Sequence[Mapping[str, Any]] = ({"id": 1, "name": "entity"},)


@dataclass(frozen=True)
class AnnotatedImage:
    """One image and its masks.

    Attributes:
        item: the image; its file need not exist.
        rows: masks with the ids and parents of the download; nothing about them is checked yet.
        columns: further fields of the masks, each as long as `rows`.
    """

    item: ImageItem
    rows: list[Annotation]
    columns: dict[str, Sequence[Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Source:
    """A download that was opened.

    Attributes:
        entries: one per image.
        read: reads an entry; DataError when it cannot be used.
        categories: COCO categories of its masks, where they keep their names.
    """

    entries: Sequence[Any]
    read: Callable[[Any], AnnotatedImage]
    categories: Sequence[Mapping[str, Any]] = ENTITY


Converter = Callable[[Path, Sequence[Path], Problems], Source]
"""Opens a download: its root, the files found there in the order of the needs, what counts broken entries."""
