"""Fresh clusters of the pixels of a set of images, without augmentation, as PiCIE makes them for its final numbers."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from scipy.cluster.hierarchy import cut_tree, linkage
from torch import Tensor

from sohes.data.listing import Listing
from sohes.data.square import centre_square
from sohes.errors import DataError
from sohes.files import atomic_path, read_json, write_json
from sohes.masks import FloatArray
from sohes.methods.fs4.embed import Embedder
from sohes.methods.fs4.kmeans import MiniBatchKMeans, fit_kmeans
from sohes.methods.fs4.segment_settings import Fs4SegmentSettings
from sohes.progress import Reporter, track
from sohes.records import content_hash
from sohes.rle import IntArray

_Means: TypeAlias = dict[tuple[int, int], MiniBatchKMeans]  # by number of clusters and seed

_BATCH = 32  # images that move the centroids at a time
_SAVE_EVERY = 32  # batches, what an interruption loses at most
_STATE, _SKIPPED, _IDENTITY = "state.npz", "skipped.json", "identity.json"


@dataclass(frozen=True)
class PixelClusters:
    """Clusters of pixels.

    Attributes:
        centroids: by the number of clusters K, (S, K, C) float32 of unit length, of S seeds.
        images: how many they are made of.
        skipped: why an image was left out, by its name.
    """

    centroids: Mapping[int, FloatArray]
    images: int
    skipped: Mapping[str, str]


def fit_clusters(
    listing: Listing, embedder: Embedder, settings: Fs4SegmentSettings, folder: Path, *, model: str
) -> PixelClusters:
    """Clusters of the pixels of images, each number of clusters with each seed, in one pass over the images.

    Args:
        listing: the images.
        embedder: of their middle squares.
        settings: of the clusters.
        folder: for files while it works, removed at the end; an interrupted call with the same arguments continues.
        model: names the embedder's weights.

    Raises:
        ConfigError: fewer pixels than clusters.
        DataError: no image can be read.
    """
    if not len(listing):
        raise DataError("no image to make clusters of; give a folder with some")
    made = _ClusterFit(listing, embedder, settings, folder, model)
    found = made.clusters()
    shutil.rmtree(folder)
    return found


class _ClusterFit:
    """The work of `fit_clusters` and what of it is kept in files."""

    def __init__(
        self, listing: Listing, embedder: Embedder, settings: Fs4SegmentSettings, folder: Path, model: str
    ) -> None:
        self._listing, self._embedder, self._settings, self._folder = listing, embedder, settings, folder
        order = np.random.default_rng(settings.seed).permutation(len(listing))[: settings.images]
        self._order: IntArray = order
        first = min(len(order), settings.init_images)
        cells = embedder.side**2
        self._drawn = min(cells, -(-settings.init_pixels // first))  # pixels of an image
        self._first = -(-first // _BATCH)  # batches
        self._batches = [order[start : start + _BATCH].tolist() for start in range(0, len(order), _BATCH)]
        identity = content_hash([asdict(settings), embedder.view_px, embedder.side, model, listing.digest])
        known = folder / _IDENTITY
        if folder.exists() and not (known.exists() and read_json(known) == identity):
            shutil.rmtree(folder)
        folder.mkdir(parents=True, exist_ok=True)
        write_json(known, identity)
        skipped = folder / _SKIPPED
        self._skipped: dict[str, str] = read_json(skipped) if skipped.exists() else {}

    def clusters(self) -> PixelClusters:
        done, found = self._saved() or (self._first, self._started())
        with Reporter("clusters", len(self._batches), done=done) as reporter:
            for place in range(done, len(self._batches)):
                embeddings = self._embedded(self._batches[place])
                if embeddings is not None:
                    points = embeddings.permute(0, 2, 3, 1).flatten(0, 2)
                    for one in found.values():
                        one.update(points)
                if (place + 1) % _SAVE_EVERY == 0:
                    self._save(place + 1, found)
                reporter.advance()
        centroids = {
            number: np.stack([found[number, seed].centroids.cpu().numpy() for seed in range(self._settings.seeds)])
            for number in self._settings.clusters
        }
        return PixelClusters(centroids, len(self._order) - len(self._skipped), self._skipped)

    def _started(self) -> _Means:
        """k-means of some pixels of the first images."""
        settings, found = self._settings, {}
        first = track(range(self._first), "pixels of the first clusters")
        parts = [points for place in first if len(points := self._pixels(place))]
        if not parts:
            raise DataError(
                f"none of the first {len(self._skipped)} images can be read: {next(iter(self._skipped.values()))}"
            )
        pool = torch.cat(parts).to(self._embedder.device)
        for number, seed in track(list(product(settings.clusters, range(settings.seeds))), "first clusters"):
            one = fit_kmeans(pool, number, iterations=settings.kmeans_iterations, seed=settings.seed * 1_000_003 + seed)
            one.counts = one.counts * (self._embedder.side**2 / self._drawn)  # the others stand behind those drawn
            found[number, seed] = one
        self._save(self._first, found)
        return found

    def _pixels(self, place: int) -> Tensor:
        """Some pixels (n, C) of a batch, from their file or new."""
        path = self._folder / f"pixels-{place:05d}.npy"
        if not path.exists():
            embeddings = self._embedded(self._batches[place])
            drawn = torch.zeros(0, 1) if embeddings is None else self._chosen(embeddings, place)
            with atomic_path(path) as temporary, temporary.open("wb") as file:
                np.save(file, drawn.cpu().numpy())
        return torch.from_numpy(np.load(path))

    def _chosen(self, embeddings: Tensor, place: int) -> Tensor:
        """`drawn` pixels (n, C) of each image of embeddings (B, C, h, w)."""
        rng = np.random.default_rng([self._settings.seed, place])
        flat = embeddings.flatten(2).transpose(1, 2)
        cells = [rng.choice(flat.shape[1], self._drawn, replace=False) for _ in flat]
        return torch.cat([one[torch.from_numpy(own)] for one, own in zip(flat.cpu(), cells, strict=True)])

    def _embedded(self, batch: list[int]) -> Tensor | None:
        """Embeddings (B, C, h, w) of the images that can be read; None where there is none."""
        views = []
        for place in batch:
            try:
                square = centre_square(self._listing.load(place), self._embedder.view_px)
            except DataError as error:
                self._skipped[self._listing.names[place]] = str(error)
                write_json(self._folder / _SKIPPED, self._skipped)
                continue
            views.append(torch.tensor(square).permute(2, 0, 1))
        if not views:
            return None
        embeddings = self._embedder.squares(torch.stack(views))
        if not bool(embeddings.isfinite().all()):
            raise DataError(f"{self._listing.names[batch[0]]}: the embeddings hold NaN or infinity")
        return embeddings

    def _saved(self) -> tuple[int, _Means] | None:
        """Batches done, and the clusters then; None where not even the first are there."""
        path = self._folder / _STATE
        if not path.exists():
            return None
        with np.load(path) as state:
            tensors = {name: torch.from_numpy(state[name]).to(self._embedder.device) for name in state.files}
        found = {
            (number, seed): MiniBatchKMeans(tensors[f"means_{number}_{seed}"], tensors[f"counts_{number}_{seed}"])
            for number, seed in product(self._settings.clusters, range(self._settings.seeds))
        }
        return int(tensors["done"]), found

    def _save(self, done: int, found: _Means) -> None:
        arrays: dict[str, Any] = {"done": np.array(done)}
        for (number, seed), one in found.items():
            arrays[f"means_{number}_{seed}"] = one.means.cpu().numpy()
            arrays[f"counts_{number}_{seed}"] = one.counts.cpu().numpy()
        with atomic_path(self._folder / _STATE) as temporary, temporary.open("wb") as file:
            np.savez(file, **arrays)


def merged_clusters(centroids: FloatArray, counts: tuple[int, ...]) -> IntArray:
    """Which of fewer clusters each is part of, (len(counts), K), by average linkage of cosine distances.

    Args:
        centroids: (K, C).
        counts: numbers of clusters, each below K.
    """
    tree = linkage(centroids.astype(np.float64), "average", metric="cosine")
    return np.asarray(cut_tree(tree, n_clusters=list(counts)).T, np.int64)
