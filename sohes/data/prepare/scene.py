"""What a converter hands over: the images of a download with their masks, and a count of what it had to leave out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sohes.data.coco import Annotation, ImageItem

_EXAMPLES = 3


@dataclass(frozen=True)
class Scene:
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
    """A download that was opened: one entry an image, and what reads an entry (DataError when it cannot be used)."""

    entries: Sequence[Any]
    read: Callable[[Any], Scene]


class Tally:
    """Counts what is left out, by reason, and keeps the first few of each kind as examples."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}
        self._examples: dict[str, list[str]] = {}

    def add(self, reason: str, example: str) -> None:
        """Count one more."""
        self.counts[reason] = self.counts.get(reason, 0) + 1
        examples = self._examples.setdefault(reason, [])
        if len(examples) < _EXAMPLES:
            examples.append(example)

    def lines(self) -> list[str]:
        """One line a reason: how many, why, and the examples."""
        return [
            f"{count} {reason}: {'; '.join(self._examples[reason])}{'; ...' if count > _EXAMPLES else ''}"
            for reason, count in self.counts.items()
        ]


Converter = Callable[[Path, Sequence[Path], Tally], Source]
"""Opens a download: its root, the files found there in the order of the data set's needs, and the tally."""
