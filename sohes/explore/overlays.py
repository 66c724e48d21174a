"""Pictures of the first images of a listing, drawn as soon as their forests exist: hours of work, seen in minutes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from PIL import Image

from sohes.data.draw import overlay
from sohes.data.label_store import LabelStore
from sohes.data.labelling import Outcome
from sohes.data.listing import Listing
from sohes.errors import DataError
from sohes.files import atomic_path, shortened
from sohes.masks import MaskForest


class FirstOverlays:
    """The first images, drawn into a folder. An image that is gone is left out.

    Args:
        listing: the images.
        count: how many.
        folder: of the PNG files, named after the images; see `overlay`.
    """

    def __init__(self, listing: Listing, count: int, folder: Path) -> None:
        self._listing, self._count, self._folder = listing, count, folder

    def drawn_from(self, outcomes: Iterable[Outcome]) -> Iterator[Outcome]:
        """The outcomes as they come, each of the first images drawn before it is passed on."""
        for place, result in outcomes:
            if place < self._count and isinstance(result, MaskForest):
                self._draw(place, result)
            yield place, result

    def complete(self, store: LabelStore) -> list[Path]:
        """Draw what is missing beside a finished store, since broken images came first or none were asked for before.

        Returns:
            The pictures, in the order of the listing.
        """
        wanted = set(store.image_ids[: self._count])
        paths = []
        for place, image_id in enumerate(self._listing.ids):
            if image_id in wanted:
                paths.append(self._path(place))
                if not paths[-1].exists():
                    self._draw(place, store.forest(image_id))
        return [path for path in paths if path.exists()]

    def _path(self, place: int) -> Path:
        name = shortened(Path(self._listing.names[place]).stem)  # may repeat in subfolders
        return self._folder / f"{name}-{self._listing.ids[place]}.png"

    def _draw(self, place: int, forest: MaskForest) -> None:
        try:
            picture = overlay(self._listing.load(place), forest)
        except (DataError, ValueError):  # gone, or another picture by now
            return
        with atomic_path(self._path(place)) as temporary:
            Image.fromarray(picture).save(temporary)
