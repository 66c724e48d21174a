"""What a set of unlabelled images teaches: clusters, foreground, parts and communities (README §9 and §10)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sohes.backbones.pixel_clusters import unit_length
from sohes.data.listing import Listing
from sohes.errors import ConfigError, DataError
from sohes.masks import FloatArray
from sohes.methods.clusters import assign, fit_centroids
from sohes.methods.forest import resized
from sohes.methods.leopart.clusters import (
    ForegroundScores,
    foreground_clusters,
    labels_threshold,
    quantile_threshold,
)
from sohes.methods.leopart.communities import (
    OFFSETS,
    choose_markov_time,
    co_occurrence,
    edge_threshold,
    find_communities,
    find_edges,
    require_infomap,
)
from sohes.methods.leopart.patches import Look, Patches, drawn_places
from sohes.methods.leopart.segment_settings import SegmentSettings
from sohes.methods.leopart.segmenter import Statistics
from sohes.progress import track
from sohes.records import content_hash
from sohes.rle import BoolArray, IntArray

_MAP_PX = 100  # side of the maps that clusters are scored and counted on [Leopart]
_NEAR = 2  # communities that it may be more or less than are aimed at


@dataclass(frozen=True)
class Fitted:
    """Statistics, how they were made (see `LeopartSegmenter`), and what a reader should know."""

    statistics: Statistics
    facts: dict[str, Any]
    notes: list[str]


def fit_statistics(
    listing: Listing,
    look: Look,
    settings: SegmentSettings,
    folder: Path,
    *,
    model: str,
    batch: int = 1,
    truth: Callable[[int], BoolArray] | None = None,
) -> Fitted:
    """Statistics of a set of images.

    Args:
        listing: the images; nothing but their pixels is used, unless `threshold=labels`.
        look: tokens and noisy foreground of images.
        settings: all but `attention_mass`, which is `look`'s.
        folder: for files while it works, see `Patches`; removed at the end.
        model: names the weights behind `look`, so that what was interrupted resumes with the same.
        batch: images that are looked at together.
        truth: annotated foreground (H, W) of an image by its place, for `threshold=labels`.

    Raises:
        DataError: too few images or patches for so many clusters, or nothing is foreground.
        ConfigError: infomap is not installed, or settings do not fit the ViT.
    """
    require_infomap()
    if settings.threshold == "labels" and truth is None:
        raise ConfigError("threshold=labels needs annotated images; set threshold=quantile")
    if not len(listing):
        raise DataError("no image to make statistics from; give a folder with some")
    places = drawn_places(len(listing), settings.images, settings.seed)
    depends = {key: value for key, value in asdict(settings).items() if key in ("size_px", "pca", "pca_images")}
    identity = content_hash([depends, settings.attention_mass, model, listing.digest, places.tolist()])
    patches = Patches(listing, places.tolist(), look, size_px=settings.size_px, folder=folder, identity=identity)
    projection = patches.project(settings.pca_images, settings.pca, batch=batch)
    patches.fill(projection, batch=batch)
    if not len(patches):
        raise DataError(f"none of the {len(places)} images can be read: {next(iter(patches.skipped.values()))}")
    work = _Fit(patches, settings)
    work.find_foreground(truth)
    work.find_parts()
    work.find_communities()
    statistics = Statistics(
        mean=projection.mean,
        scale=projection.scale,
        axes=projection.axes,
        foreground_centroids=work.centroids,
        foreground_scores=work.scores,
        foreground=work.foreground,
        part_centroids=work.parts,
        co_occurrence=work.co_occurrence,
        communities=work.communities,
    )
    facts = {"size_px": settings.size_px, "images": len(patches), **work.facts, "settings": asdict(settings)}
    notes = [*work.notes, *(f"skipped {reason}" for reason in patches.skipped.values())]
    patches.remove()
    return Fitted(statistics, facts, notes)


class _Fit:
    """The steps after the patches are there, one after the other."""

    def __init__(self, patches: Patches, settings: SegmentSettings) -> None:
        self._patches, self._settings = patches, settings
        self._random = np.random.default_rng(settings.seed)
        self.facts: dict[str, Any] = {}
        self.notes: list[str] = []

    def find_foreground(self, truth: Callable[[int], BoolArray] | None) -> None:
        """Cluster all patches, and tell which clusters are foreground."""
        settings = self._settings
        points = self._patches.draw(self._random, settings.tokens, lambda points: np.ones(len(points), bool))
        self.centroids = self._centroids(unit_length(points), settings.foreground_clusters, "foreground_clusters")
        scores = ForegroundScores(settings.foreground_clusters)
        for _, clusters, inside in self._cluster_maps("scores of clusters"):
            scores.add(clusters, inside)
        self.scores = scores.result()
        if settings.threshold == "quantile":
            threshold = quantile_threshold(self.scores, settings.background_share)
            how = f"{100 * settings.background_share:.0f} % of them are background"
        elif settings.threshold == "fixed":
            assert settings.score_threshold is not None
            threshold, how = settings.score_threshold, "as set"
        else:
            assert truth is not None
            pairs = (
                (clusters, _map_sized(truth(place)).astype(bool))
                for place, clusters, _ in self._cluster_maps("search of the threshold")
            )
            threshold, tried = labels_threshold(self.scores, pairs)
            how = f"chosen WITH LABELS, Jaccard index {tried[-1][2]:.3f}"
        self.foreground = foreground_clusters(self.scores, threshold)
        count = int(self.foreground.sum())
        self.facts |= {"score_threshold": threshold, "foreground_clusters": count}
        self.notes.append(
            f"foreground: {count} of {settings.foreground_clusters} clusters, score at least {threshold:.3f} ({how})"
        )

    def find_parts(self) -> None:
        """Cluster the patches of the foreground."""
        points = self._patches.draw(
            self._random, self._settings.tokens, lambda points: self.foreground[self._clusters(points)]
        )
        self.parts = self._centroids(points, self._settings.parts, "parts")

    def find_communities(self) -> None:
        """Which parts lie beside each other, and so are parts of one kind of object."""
        settings = self._settings
        self.co_occurrence = co_occurrence(self._part_maps(), settings.parts + 1, OFFSETS[settings.offsets])
        unseen = int((~self.co_occurrence.any(axis=1)).sum())
        threshold = settings.edge_threshold or edge_threshold(self.co_occurrence, settings.edge_share)
        edges = find_edges(self.co_occurrence, threshold)
        time, seed = settings.markov_time, settings.seed
        preferred = settings.communities if time else 0
        time = time or choose_markov_time(edges, communities=settings.communities, seed=seed)
        self.communities = find_communities(edges, markov_time=time, seed=seed, preferred=preferred)
        count = int(self.communities.max())
        self.facts |= {"edge_threshold": threshold, "markov_time": time, "preferred": preferred, "communities": count}
        self.facts["published"] = settings.published
        ways = ["as set" if given else "without labels" for given in (settings.edge_threshold, settings.markov_time)]
        self.notes.append(
            f"communities: {count} of {edges.joined} of {edges.nodes} parts (the background is one of them); edge "
            f"threshold {threshold:.3g} ({ways[0]}), Markov time {time:.3g} ({ways[1]})"
        )
        if settings.published:
            self.notes.append(
                f"constants of the communities: {settings.published}, found with labels of VOC 2012 train"
            )
        if unseen:
            self.notes.append(f"{unseen} parts have no other beside them in any image; each is an object by itself")
        if abs(count - settings.communities) > _NEAR:
            why = "" if settings.markov_time else "; no Markov time tried gives them"
            self.notes.append(f"{settings.communities} communities were aimed at{why}")

    def _centroids(self, points: FloatArray, count: int, name: str) -> FloatArray:
        settings = self._settings
        return fit_centroids(
            points, count, seed=settings.seed, restarts=settings.restarts, iterations=settings.iterations, name=name
        )

    def _clusters(self, points: FloatArray) -> IntArray:
        return assign(unit_length(points), self.centroids)

    def _cluster_maps(self, description: str) -> Iterator[tuple[int, NDArray[np.integer], BoolArray]]:
        for place, points, inside in track(self._patches, description, total=len(self._patches)):
            clusters = self._clusters(points.reshape(-1, points.shape[-1])).reshape(points.shape[:2])
            yield place, _map_sized(clusters), _map_sized(inside).astype(bool)

    def _part_maps(self) -> Iterator[NDArray[np.integer]]:
        """Parts of every image, the background as one more."""
        for _, points, _ in track(self._patches, "co-occurrence of parts", total=len(self._patches)):
            flat = points.reshape(-1, points.shape[-1])
            inside = self.foreground[self._clusters(flat)]
            parts = np.full(len(flat), self._settings.parts, np.int64)
            parts[inside] = assign(flat[inside], self.parts)
            yield _map_sized(parts.reshape(points.shape[:2]))


def _map_sized(labels: NDArray) -> NDArray[np.integer]:
    return resized(labels.astype(np.int32), (_MAP_PX, _MAP_PX))
