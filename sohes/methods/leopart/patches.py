"""Projected patches of a data set with their noisy foreground, made once and kept in files (README §9)."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sohes.data.listing import Listing
from sohes.errors import DataError
from sohes.files import atomic_path, read_json, write_json
from sohes.masks import FloatArray
from sohes.methods.clusters import Moments, Projection
from sohes.methods.leopart.segmenter import square_view
from sohes.progress import Reporter
from sohes.rle import BoolArray, IntArray

# images (B, 3, S, S) float32 in [0, 1] to their tokens (B, h, w, D) float32 and their noisy foreground (B, h', w')
Look = Callable[[Tensor], tuple[FloatArray, BoolArray]]

_PROJECTION, _POINTS, _INSIDE, _STATE = "projection.npz", "points.npy", "inside.npy", "state.json"
_SAVE_EVERY = 32  # images, what an interruption loses at most


class Patches:
    """Of each image its projected patches, and which of them are in the noisy foreground.

    They lie in files that are mapped into memory, P numbers per patch instead of the ViT's D, so that there may be more
    images than fit. Made with the same `identity` in the same folder again, it continues.

    Args:
        listing: of the images.
        places: of those that are used.
        look: see `Look`.
        size_px: side of the square that images are resized to.
        folder: for the files; made if missing.
        identity: of all that the patches depend on.

    Attributes:
        skipped: why an image was left out, by its place.
    """

    def __init__(
        self, listing: Listing, places: Sequence[int], look: Look, *, size_px: int, folder: Path, identity: str
    ) -> None:
        self._listing, self._places, self._look, self._size_px = listing, list(places), look, size_px
        self.skipped: dict[int, str] = {}
        self._folder, self._done = folder, 0
        state = read_json(folder / _STATE) if (folder / _STATE).exists() else {}
        if state.get("identity") == identity:
            self._done = state["done"]
            self.skipped = {int(place): reason for place, reason in state["skipped"].items()}
        elif folder.exists():
            shutil.rmtree(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self._identity = identity
        self._save()

    def project(self, images: int, dims: int, *, batch: int) -> Projection:
        """Scaler and PCA of the patches of at most so many images, spread over all of them.

        Raises:
            DataError: none of them can be read, or their features are not finite.
            ConfigError: more dimensions than there can be.
        """
        path = self._folder / _PROJECTION
        if path.exists():
            with np.load(path) as known:
                return Projection(known["mean"], known["scale"], known["axes"])
        spread = np.unique(np.linspace(0, len(self._places) - 1, min(images, len(self._places))).astype(int))
        moments = None
        for _, tokens, _ in self._looked([self._places[index] for index in spread], "scaler and PCA", batch):
            moments = moments or Moments(tokens.shape[-1])
            moments.add(tokens.reshape(-1, tokens.shape[-1]))
        if moments is None:
            raise DataError(f"none of the {len(spread)} images can be read: {next(iter(self.skipped.values()))}")
        found = moments.projection(dims)
        with atomic_path(path) as temporary:
            np.savez(temporary, mean=found.mean, scale=found.scale, axes=found.axes)
        return found

    def fill(self, projection: Projection, *, batch: int) -> None:
        """Make what is not there yet."""
        left = self._places[self._done :]
        for place, tokens, inside in self._looked(left, "patches", batch, done=self._done):
            row = self._places.index(place, self._done)
            grid = tokens.shape[:2]
            points = projection(tokens.reshape(-1, tokens.shape[-1])).reshape(*grid, -1)
            self._open(_POINTS, points)[row] = points
            self._open(_INSIDE, inside)[row] = inside
            self._done = row + 1
            if self._done % _SAVE_EVERY == 0:
                self._save()
        self._done = len(self._places)
        self._save()

    def __iter__(self) -> Iterator[tuple[int, FloatArray, BoolArray]]:
        """Place, projected patches (h, w, P) and noisy foreground (h', w') of every image that can be used."""
        points, inside = (np.load(self._folder / name, mmap_mode="r") for name in (_POINTS, _INSIDE))
        for row, place in enumerate(self._places):
            if place not in self.skipped:
                yield place, np.array(points[row]), np.array(inside[row])

    def __len__(self) -> int:
        return len(self._places) - len(self.skipped)

    def draw(self, random: np.random.Generator, count: int, inside: Callable[[FloatArray], BoolArray]) -> FloatArray:
        """At most about `count` of the projected patches (N, P) that are `inside`, as many of each image as it has."""
        kept = [np.flatnonzero(inside(points.reshape(-1, points.shape[-1]))) for _, points, _ in self]
        total = sum(map(len, kept))
        chosen: list[FloatArray] = []
        for (_, points, _), places in zip(self, kept, strict=True):
            if total > count:
                wanted = random.binomial(len(places), count / total)
                places = np.sort(random.choice(places, wanted, replace=False))
            chosen.append(points.reshape(-1, points.shape[-1])[places])
        return np.concatenate(chosen)

    def remove(self) -> None:
        """Delete the files."""
        shutil.rmtree(self._folder)

    def _looked(
        self, places: Sequence[int], description: str, batch: int, *, done: int = 0
    ) -> Iterator[tuple[int, FloatArray, BoolArray]]:
        """Place, tokens (h, w, D) and noisy foreground of the images at `places` that can be read."""
        with Reporter(description, done + len(places), done=done) as reporter:
            for start in range(0, len(places), batch):
                views, read = [], []
                for place in places[start : start + batch]:
                    try:
                        views.append(square_view(self._listing.load(place), self._size_px))
                        read.append(place)
                    except DataError as error:
                        self.skipped[place] = str(error)
                if views:
                    tokens, inside = self._look(torch.stack(views))
                    if not np.isfinite(tokens).all():
                        raise DataError(f"{self._listing.names[read[0]]}: the ViT's features hold NaN or infinity")
                    yield from zip(read, tokens, inside, strict=True)
                reporter.advance(min(batch, len(places) - start))

    def _open(self, name: str, like: FloatArray | BoolArray) -> np.memmap:
        """The array of all images, its values as `like`, made when it is first needed."""
        path = self._folder / name
        shape = (len(self._places), *like.shape)
        mode = "r+" if path.exists() else "w+"
        return np.lib.format.open_memmap(path, mode=mode, dtype=like.dtype, shape=None if mode == "r+" else shape)

    def _save(self) -> None:
        skipped = {str(place): reason for place, reason in self.skipped.items()}
        write_json(
            self._folder / _STATE, {"identity": self._identity, "done": self._done, "skipped": skipped}, indent=None
        )


def drawn_places(total: int, count: int | None, seed: int) -> IntArray:
    """Places of at most `count` of `total` images, in their order."""
    if count is None or total <= count:
        return np.arange(total)
    return np.sort(np.random.default_rng(seed).choice(total, count, replace=False))
