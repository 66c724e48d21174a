"""The first images are drawn while the others are still to come."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sohes.data.draw import overlay
from sohes.data.label_store import LabelStore, LabelWriter
from sohes.data.labelling import Outcome
from sohes.data.listing import Listing, list_images
from sohes.errors import DataError
from sohes.explore.overlays import FirstOverlays
from sohes.masks import MaskForest

BROKEN = 1


@pytest.fixture
def listing(tmp_path: Path) -> Listing:
    """Five images; the second is reported as broken."""
    (tmp_path / "photos").mkdir()
    for name in range(5):
        Image.fromarray(np.full((60, 80, 3), 40 * name, np.uint8)).save(tmp_path / "photos" / f"{name}.png")
    return list_images(str(tmp_path / "photos"))


def outcomes() -> Iterator[Outcome]:
    for place in range(5):
        yield place, DataError("broken") if place == BROKEN else halves()


def halves() -> MaskForest:
    masks = np.zeros((2, 60, 80), dtype=bool)
    masks[0, :, :40] = masks[1, :, 40:] = True
    return MaskForest.from_masks(masks)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*"))


def test_a_picture_is_there_before_the_next_image_is_explored(listing: Listing, tmp_path: Path) -> None:
    folder = tmp_path / "overlays"
    seen = []
    for place, _ in FirstOverlays(listing, 3, folder).drawn_from(outcomes()):
        seen.append((place, names(folder)))
    assert seen == [
        (0, ["0-1.png"]),
        (1, ["0-1.png"]),
        (2, ["0-1.png", "2-3.png"]),
        (3, ["0-1.png", "2-3.png"]),
        (4, ["0-1.png", "2-3.png"]),
    ]
    assert np.array_equal(np.asarray(Image.open(folder / "2-3.png")), overlay(listing.load(2), halves()))


def test_what_is_missing_in_the_end_is_drawn(listing: Listing, tmp_path: Path) -> None:
    folder = tmp_path / "overlays"
    first = FirstOverlays(listing, 3, folder)
    with LabelWriter(tmp_path / "labels", header={}) as writer:
        for place, result in first.drawn_from(outcomes()):
            if isinstance(result, MaskForest):
                writer.add(listing.ids[place], listing.names[place], result)
            else:
                writer.skip(listing.names[place], str(result))
    store = LabelStore(tmp_path / "labels")
    (tmp_path / "photos" / "0.png").unlink()
    before = (folder / "2-3.png").stat().st_mtime_ns
    assert [path.name for path in first.complete(store)] == ["0-1.png", "2-3.png", "3-4.png"]
    assert (folder / "2-3.png").stat().st_mtime_ns == before
    other = FirstOverlays(listing, 3, tmp_path / "other")
    assert [path.name for path in other.complete(store)] == ["2-3.png", "3-4.png"], "an image that is gone is left out"
    assert FirstOverlays(listing, 0, tmp_path / "none").complete(store) == []
    assert not (tmp_path / "none").exists()
